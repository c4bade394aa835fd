"""A restorer whose code changes while its version stays: its records are kept, and that is told."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sembench.commands import app
from sembench.execution.prepare import prepare
from sembench.execution.request import RunPlan, RunRequest
from sembench.execution.reuse import reusable
from sembench.execution.run import execute
from sembench.registry import MethodTarget, brought_by, code_digest, find_method

PROTOCOL = """
name = "small"
version = 1
title = "Small cases"
question = "Does the bench run?"
seed = 7
time_limit_s = 60
data = { set = "semcorpus", size = 192, fields = "s2s_fields" }
degradation = { fixed = { rx = 2.0, ry = 2.0 } }
metrics = { primary = "psnr", names = ["psnr", "ssim"] }
"""

RESTORER = '''
"""A restorer of a package."""

import numpy as np

from sembench.restorer import Restorer


class Dims(Restorer):
    """Takes gray levels away."""

    def restore(self, image, /):
        return np.clip(image - 1, 0, 255)
'''


class Bench:
    """A folder with an installed plugin, and runs of it into `out`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "site" / "dims_plugin" / "restorer.py"
        information = folder / "site" / "sembench_dims-0.1.0.dist-info"
        for made in (self.code.parent, information):
            made.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sembench-dims\nVersion: 0.1.0\n")
        (information / "entry_points.txt").write_text("[sembench.restorers]\ndims = dims_plugin.restorer:Dims\n")
        (self.code.parent / "__init__.py").touch()
        self.code.write_text(RESTORER)
        (folder / "small.toml").write_text(PROTOCOL)

    def request(self, out: str = "out", **options: Any) -> RunRequest:
        options = {"restorers": ("dims",), "limit": 1, "workers": 1, **options}
        return RunRequest(protocol=str(self.folder / "small.toml"), data="phantom", out=self.folder / out, **options)

    def plan(self, **options: Any) -> RunPlan:
        return prepare(self.request(**options))

    def notices(self, **options: Any) -> list[str]:
        """What a command says of changed code before it runs."""
        return [notice for notice in self.plan(**options).notices if "code" in notice]

    def run(self, **options: Any) -> list[dict[str, Any]]:
        request = self.request(**options)
        return execute(prepare(request), request)

    def row(self, out: str = "out") -> dict[str, Any]:
        """What run.json says of the only row."""
        (row,) = json.loads((self.folder / out / "run.json").read_text())["rows"]
        return dict(row)

    def change(self, by: str) -> str:
        """Take so many gray levels away instead of 1; the code's digest."""
        self.code.write_text(RESTORER.replace("image - 1", f"image - {by}"))
        return str(self.digest())

    def digest(self) -> str | None:
        return code_digest(find_method("dims"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("dims_plugin", "dims_plugin.restorer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def test_the_digest_of_a_plugin_is_of_every_python_file_of_its_package(bench: Bench) -> None:
    before = bench.digest()
    (bench.code.parent / "notes.txt").write_text("no code")
    assert bench.digest() == before
    (bench.code.parent / "inner").mkdir()
    helper = bench.code.parent / "inner" / "kernel.py"
    helper.write_text("WIDTH = 3\n")
    with_helper = bench.digest()
    helper.write_text("WIDTH = 5\n")
    assert len({before, with_helper, bench.digest()}) == 3
    helper.rename(helper.with_name("other.py"))
    renamed = bench.digest()
    helper.with_name("other.py").rename(helper)
    assert renamed != bench.digest()
    assert brought_by(find_method("dims")) == "sembench-dims 0.1.0"


def test_the_digest_of_an_own_method_is_of_its_file_or_its_subpackage_alone() -> None:
    gaussian, unet, semfm = (find_method(name) for name in ("gaussian", "unet", "semfm"))
    file = sys.modules[gaussian.cls.__module__].__file__
    assert file is not None
    assert code_digest(gaussian) == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert len({code_digest(method) for method in (gaussian, unet, semfm)}) == 3
    assert code_digest(find_method("semfm_plain")) == code_digest(semfm), "one subpackage"
    assert {brought_by(method) for method in (gaussian, unet, semfm)} == {""}


def test_the_digest_of_a_file_is_its_own_and_code_that_cannot_be_read_has_none(bench: Bench) -> None:
    method = find_method(f"{bench.code}:Dims")
    assert code_digest(method) == method.source_sha256 == hashlib.sha256(bench.code.read_bytes()).hexdigest()
    assert brought_by(method) == ""
    installed = find_method("dims")
    sys.modules["dims_plugin"].__file__ = sys.modules["dims_plugin.restorer"].__file__ = None
    assert code_digest(installed) is None
    assert code_digest(MethodTarget("dims", type("Made", (), {"__module__": "nowhere"}), None)) is None


def test_records_of_changed_code_are_kept_and_told_until_they_are_made_again(bench: Bench) -> None:
    first = bench.run()
    old = bench.digest()
    described = bench.row()
    assert described["code_sha256"] == old
    assert described["distribution"] == "sembench-dims 0.1.0"
    assert bench.notices() == []

    new = bench.change("60")
    assert new != old
    (told,) = bench.notices()
    assert told.startswith("dims: its code has changed since its records were made")
    assert "`version`" in told
    assert "--fresh" in told
    assert bench.notices(fresh=True) == []
    assert bench.notices(out="elsewhere") == []
    assert bench.run() == first, "the row is the same, so that its records stay"
    assert bench.row() == described, "which the old code made"
    assert bench.notices() == [told]

    again = bench.run(fresh=True)
    assert again[0]["row"] == first[0]["row"]
    assert again[0]["metrics"] != first[0]["metrics"]
    assert bench.row()["code_sha256"] == new
    assert bench.notices() == []


def test_a_row_whose_cases_two_states_of_the_code_made_tells_both(bench: Bench) -> None:
    old = bench.digest()
    bench.run()
    new = bench.change("60")
    bench.run(limit=2)
    assert (bench.row()["code_sha256"], bench.row()["code_sha256_also"]) == (old, [new])
    assert bench.change("1") == old
    assert len(bench.notices()) == 1, "one case is of the other state"


def test_records_that_are_made_again_are_of_the_new_code(bench: Bench) -> None:
    bench.code.write_text(RESTORER.replace("image - 1", "image - nothing"))
    assert bench.run()[0]["status"] == "failed"
    new = bench.change("2")
    assert len(bench.notices()) == 1
    assert bench.notices(retry_failed=True) == [], "nothing of the old code stays"
    (record,) = bench.run(retry_failed=True)
    assert record["status"] == "ok"
    assert bench.row()["code_sha256"] == new

    newer = bench.change("3")
    out = bench.folder / "out"
    (out / record["image"]).unlink()
    for flat in (out / "restored").rglob("*.png"):
        flat.unlink()
    assert bench.notices() == []
    bench.run()
    assert bench.row()["code_sha256"] == newer
    assert "code_sha256_also" not in bench.row()


def test_of_records_from_before_digests_were_kept_nothing_is_claimed(bench: Bench) -> None:
    bench.run()
    path = bench.folder / "out" / "run.json"
    description = json.loads(path.read_text())
    del description["rows"][0]["code_sha256"], description["rows"][0]["distribution"]
    path.write_text(json.dumps(description))
    bench.change("60")
    assert bench.notices() == []
    bench.run(limit=2)
    assert "code_sha256" not in bench.row(), "one of the two cases is of code that nobody knows"


def test_a_folder_that_is_no_run_is_refused_by_the_run_and_not_by_the_notice(bench: Bench) -> None:
    out = bench.folder / "out"
    bench.run()
    bench.change("60")
    description = json.loads((out / "run.json").read_text())
    for odd in ("no json", "[]", '{"digest": 3}', json.dumps(description | {"rows": [{"row": 5}, 7]})):
        (out / "run.json").write_text(odd)
        assert bench.notices() == []
    (out / "run.json").write_text(json.dumps(description))
    (out / "records.jsonl").write_text("no record\n")
    assert bench.notices() == []


def test_records_of_another_run_that_other_code_made_are_not_taken(bench: Bench) -> None:
    bench.run(out="first")
    old = bench.digest()
    new = bench.change("60")
    heard: list[tuple[str, str]] = []
    request = bench.request(limit=1)
    plan = prepare(request)
    taken = reusable(plan, bench.folder / "first")
    assert taken
    (record,) = execute(plan, request, None, lambda name, _, notice: heard.append((name, notice)), taken)
    assert record["metrics"] != taken[0].record["metrics"]
    assert bench.row()["code_sha256"] == new
    (name, notice), last = heard
    assert (name, last) == ("dims", ("", "reused, 0 records: nothing"))
    assert "other code" in notice
    assert str(bench.folder / "first") in notice

    bench.change("1")
    plan = replace(plan, folder=bench.folder / "third")
    (record,) = execute(plan, replace(request, out=plan.folder), None, None, taken)
    assert record["metrics"] == taken[0].record["metrics"]
    assert bench.row("third")["code_sha256"] == old


def test_records_of_other_code_are_not_counted_as_reused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(out="first", restorers=("dims", "input"))
    bench.change("60")
    monkeypatch.chdir(bench.folder)
    words = "run --protocol small.toml --data phantom --restorer dims,input --limit 1 --workers 1 --reuse first"
    done = CliRunner().invoke(app, [*words.split(), "--out", "out"])
    assert done.exit_code == 0, done.output
    assert "dims: 2 records of first are not taken: other code made them" in done.stderr
    assert "reused, 2 records: input\n" in done.stderr


def test_the_command_says_it_in_one_line_and_the_report_names_the_package(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    bench.change("60")
    monkeypatch.chdir(bench.folder)
    words = "run --protocol small.toml --data phantom --restorer dims --limit 1 --workers 1 --out out --json"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    (said,) = [line for line in done.stderr.splitlines() if "code" in line]
    assert said.startswith("notice: dims: its code has changed")
    report = (bench.folder / "out" / "report.html").read_text()
    assert "sembench-dims 0.1.0" in report
    assert bench.row()["code_sha256"][:12] in report
