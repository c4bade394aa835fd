"""Whatever a file or a command line holds: it is understood, or refused in one line that says what to do."""

import contextlib
import csv
import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sembench import commands, protocol
from sembench.datasets.manifest import FOLDER, load_manifest
from sembench.errors import SembenchError
from sembench.execution.folder import read_description
from sembench.execution.merge import merge
from sembench.execution.recorded import read_run
from sembench.execution.records import Records, read_records
from sembench.results import write_tables

quick = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

RUN_JSON = {
    "schema": 1,
    "digest": "d" * 64,
    "protocol_digest": "p" * 64,
    "data_digest": "e" * 64,
    "data": "phantom",
    "metrics": ["psnr"],
    "rows": [
        {"row": "input-1", "restorer": "input", "kind": "restorer", "settings": {}, "fit": {"state_sha256": None}}
    ],
    "limit": 1,
    "cases": ["P001"],
    "notices": [],
    "environment": {"python": "3.11"},
    "started": "2026-01-01T00:00:00Z",
    "shard": "1/2",
}
RECORD = {"row": "input-1", "case": "P001", "group": "P001", "status": "failed", "restorer": "input", "metrics": {}}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "../..", "a" * 300, "\n", "{{ x }}", "\ud800", "1e400", "-0", "2026-01-01"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


def refused_in_one_line(act: Callable[[], Any]) -> Any:
    """What the act gives, or None where it was refused properly; any other error is the test's failure."""
    try:
        return act()
    except SembenchError as error:
        told = str(error)
        assert told
        assert "\n" not in told, told
        assert len(told) < 2000, told[:100]
        return None


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The address of every value inside plain data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, part in inner for place in places(part, (*at, key)))]


@st.composite
def spoilt(draw: st.DrawFn, sound: Any) -> Any:
    """Plain data, one to three values of which are replaced, taken out or joined by others."""
    value = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(value) or [("new",)]))
        parent = value
        for key in way:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace":
            parent[last] = draw(anything)
        elif kind == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(anything)
        else:
            parent.append(draw(anything))
    return value


def as_toml(value: Any) -> str:
    """A value as TOML in one line; JSON's strings are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if value is None:
        return "''"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


with (Path(protocol.__file__).parents[1] / "protocols" / "s2r.toml").open("rb") as file:
    SOUND = tomllib.load(file)


@quick
@given(spoilt(SOUND))
def test_a_spoilt_protocol(values: dict[str, Any]) -> None:
    text = "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in values.items())
    parsed = refused_in_one_line(lambda: protocol.parse(text, "spoilt.toml"))
    if parsed is not None:
        again = protocol.Protocol(**json.loads(parsed.model_dump_json()))
        assert again.digest == parsed.digest


@quick
@given(st.text(max_size=60))
@example("a = 2026-02-31")
@example("[data]\nset = 'x'\n[data]\n")
def test_any_text_as_a_protocol(text: str) -> None:
    assert refused_in_one_line(lambda: protocol.parse(text, "any.toml")) is None


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000], ids=["deep", "long"])
def test_values_that_no_parser_takes(value: str, tmp_path: Path) -> None:
    assert refused_in_one_line(lambda: protocol.parse(f"a = {value}", "any.toml")) is None
    for name in ("run.json", "records.jsonl"):
        (tmp_path / name).write_text(value + "\n")
    assert refused_in_one_line(lambda: read_run(tmp_path)) is None
    assert refused_in_one_line(lambda: Records(tmp_path / "records.jsonl")) is None
    assert refused_in_one_line(lambda: read_description(tmp_path, "d" * 64)) is None


@quick
@given(st.data())
def test_a_spoilt_manifest(tmp_path: Path, data: st.DataObject) -> None:
    with (FOLDER / "semcorpus.csv").open(newline="", encoding="utf-8") as sound:
        lines = [line for _, line in zip(range(4), csv.reader(sound), strict=False)]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.text(max_size=8) | scalars.map(str))
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    file = tmp_path / "manifest.csv"
    file.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    refused_in_one_line(lambda: load_manifest(file))


@quick
@given(st.lists(spoilt(RECORD).map(json.dumps) | st.text(max_size=20), max_size=3), st.booleans())
@example(['"status"', "null", "[]"], True)
def test_spoilt_records(tmp_path: Path, lines: list[str], ended: bool) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(("\n".join(lines) + ("\n" if ended else "")).encode("utf-8", "surrogatepass"))
    read = refused_in_one_line(lambda: read_records(file))
    opened = refused_in_one_line(lambda: Records(file))
    assert (read is None) == (opened is None)
    if read is not None:
        assert read[0] == opened.all()
        assert {type(record[name]) for record in read[0] for name in ("row", "case", "status")} <= {str}


@settings(quick, max_examples=40)
@given(spoilt(RUN_JSON), spoilt(RECORD) | st.just(RECORD))
@example({**RUN_JSON, "rows": [{**RUN_JSON["rows"][0], "row": []}]}, RECORD)
@example({**RUN_JSON, "shard": "1/999999999"}, RECORD)
@example(RUN_JSON, {**RECORD, "status": "ok", "image": "a", "image_sha256": None})
def test_a_spoilt_run_folder(tmp_path: Path, description: Any, record: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"protocol": SOUND, **description}))
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    refused_in_one_line(lambda: read_run(folder))
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    merged = refused_in_one_line(lambda: merge([folder], out))
    if merged is not None:
        assert len(merged.records) == 1
        refused_in_one_line(lambda: write_tables(out, merged.protocol, merged.rows, merged.metrics, merged.records))


words = st.text(st.characters(blacklist_characters="\0", blacklist_categories=()), max_size=8) | st.sampled_from(
    ["-1", "0", "nan", "1e400", "1/2", "2/1", "..", "/", "input", "gaussian", "s2s", "s2r", "phantom", "sigma=2", "=",
     "gaussian.sigma=", "input.py:X", ".py:", "run.toml", "10min", "cuda:9", "auto", "50%", "\udcff"]
)  # fmt: skip
OPTIONS = {
    "run": ["--restorer", "--protocol", "--data", "--out", "--limit", "--workers", "--set", "--crop-bottom", "--budget",
            "--device", "--shard", "--skip-unavailable", "--require-real"],
    "merge": ["--out", "--json"],
    "compare": ["--metric", "--json"],
    "restore": ["--method", "--out", "--set"],
    "measure": ["--pixel-size", "--json"],
    "list": ["--json"],
}  # fmt: skip
FIXED = {"run": ["--dry-run", "--data", "phantom"]}
"""Stands first, lest an option take --dry-run for its value and a whole benchmark be run."""


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(list(OPTIONS)))
    given = draw(st.lists(st.sampled_from(OPTIONS[command]) | words, max_size=5))
    return [command, *FIXED.get(command, []), *given]


@settings(quick, max_examples=50)
@given(lines())
@example(["run", "--out", "\udcff", "--restorer", "input", "--dry-run", "--data", "phantom"])
@example(["run", "--shard", "3/2", "--restorer", "input", "--dry-run", "--data", "phantom"])
@example(["merge", "nowhere"])
def test_any_command_line(tmp_path: Path, no_data: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sembench", *line])
    out, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=how) for how in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        commands.main()
    errors.flush()
    told = errors.buffer.getvalue().decode()
    assert ended.value.code in (0, 1, 2, 4, 5), told
    if ended.value.code:
        assert told.strip().splitlines()[-1:] or out, line
        assert "Traceback" not in told
    assert Path.cwd() == tmp_path
