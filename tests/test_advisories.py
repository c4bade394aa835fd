"""The comparison with published advisories: what it asks, what it says, and that silence is no failure."""

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("advisories", ROOT / ".ci" / "advisories.py")
assert SPEC is not None
assert SPEC.loader is not None
advisories: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(advisories)

PINS = """# comment==1
numpy==2.3.1
jinja2==2.4.1 ; python_version > "3"
torch-extra.one==0.1+cpu  # why
"""
PACKAGES = [("numpy", "2.3.1"), ("jinja2", "2.4.1"), ("torch-extra.one", "0.1+cpu")]


@contextmanager
def answering(answer: Callable[[dict[str, Any]], bytes], status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A server on the loopback that answers every question so; its address, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            content = answer(asked[-1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *told: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    (tmp_path / "constraints.txt").write_text(PINS)
    return tmp_path / "constraints.txt"


def known(*of_each: list[str]) -> Callable[[dict[str, Any]], bytes]:
    results = [{"vulns": [{"id": told, "modified": "2024"} for told in ids]} if ids else {} for ids in of_each]
    return lambda asked: json.dumps({"results": results}).encode()


def test_every_pinned_version_is_read() -> None:
    assert advisories.pinned(PINS) == PACKAGES
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(advisories.pinned("\n".join(lines))) == sum("==" in line.partition("#")[0] for line in lines) > 100


def test_one_question_and_a_line_for_each_advisory(pins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(known([], ["PYSEC-2019-217", "GHSA-462w-v97r-4m45"], [])) as (address, asked):
        assert advisories.main(pins, address) == 1
    (question,) = asked
    assert [(part["package"]["name"], part["version"]) for part in question["queries"]] == PACKAGES
    assert {part["package"]["ecosystem"] for part in question["queries"]} == {"PyPI"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:-1]] == [
        "jinja2 2.4.1: PYSEC-2019-217",
        "jinja2 2.4.1: GHSA-462w-v97r-4m45",
    ]
    assert lines[-1] == "advisories: 3 pinned versions compared, 2 found"


def test_none_known_and_accepted_ones(
    pins: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(known([], [], [])) as (address, _):
        assert advisories.main(pins, address) == 0
    monkeypatch.setattr(advisories, "ACCEPTED", {"PYSEC-1": "its function is not called"})
    with answering(known(["PYSEC-1"], [], [])) as (address, _):
        assert advisories.main(pins, address) == 0
    assert capsys.readouterr().out.splitlines() == ["advisories: 3 pinned versions compared, 0 found"] * 2


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda asked: b"<html>not here</html>", 200),
        (lambda asked: b"{}", 503),
        (lambda asked: b"[]", 200),
        (lambda asked: b'{"results": [{}]}', 200),
        (lambda asked: b'{"results": [{}, {"vulns": [{}]}, {}]}', 200),
        (lambda asked: b'{"results": [{}, {"vulns": [{"id": "a\\n\\u001b[2J"}]}, {}]}', 200),
        (lambda asked: b'{"results": [null, {}, {}]}', 200),
    ],
)
def test_no_answer_that_counts_is_one_line_and_no_failure(
    answer: Callable[[Any], bytes], status: int, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(answer, status) as (address, _):
        assert advisories.main(pins, address) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("advisories: skipped, no answer (")


def test_silence_and_a_closed_door_are_no_failure(pins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = threading.Event()

    def silent(asked: Any) -> bytes:
        done.wait(5)
        return b""

    with answering(silent) as (address, _):
        assert advisories.main(pins, address, 0.2) == 0
        done.set()
    assert advisories.main(pins, address, 0.2) == 0
    assert [line.partition(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        "advisories: skipped, no answer"
    ] * 2
