"""`sembench run` with plugins that misbehave outside their restore call, and what a run folder may hold."""

import csv
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from command_lines import command, wait_until, without_data
from small import install_plugin, protocol_file, protocol_text, records_of, write_records

from sembench import cases, protocol
from sembench.datasets.manifest import load_manifest
from sembench.errors import InputError
from sembench.processes import interrupts_held

METHODS = '''
import sys, time
from pydantic import Field
from pathlib import Path
from pydantic import BaseModel
from sembench.restorer import Control, Restorer

print("imported with a greeting")

class Sleeps(Restorer):
    """Sleeps for a minute, once it has said so."""
    def restore(self, image, /):
        Path("asleep").touch(); time.sleep(50)
        return image

class Vandal(Control):
    """Overwrites the reference that it is shown."""
    def restore(self, image, truth, /):
        truth.reference.setflags(write=True); truth.reference[:] = 0
        return image

class Listed(Restorer):
    """Has a setting of several values."""
    class Settings(Restorer.Settings):
        blocks: tuple[int, ...] = Field((1, 2), description="of each resolution")
    def restore(self, image, /):
        return image / sum(self.settings.blocks)

class Perceptive(Restorer):
    """Was trained on what it may be scored by."""
    @classmethod
    def trained_on(cls, settings):
        return ("lpips",)
    def restore(self, image, /):
        return image + 1

class Exits(Restorer):
    """Calls sys.exit."""
    def restore(self, image, /):
        sys.exit("[/bold] \\udc80 enough")
'''

PLUGINS = '''
from pydantic import Field
from sembench.restorer import Restorer

class Demanding(Restorer):
    """A setting has no default."""
    class Settings(Restorer.Settings):
        width: float = Field(gt=0)

class Helpless(Restorer):
    """Cannot say what it needs."""
    @classmethod
    def needs(cls, settings):
        raise RuntimeError("no idea")

def function(image):
    return image
'''


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    protocol_file(tmp_path, time_limit_s=60)
    (tmp_path / "methods.py").write_text(METHODS)
    return tmp_path


def start(folder: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
    """Start sembench in a folder, in a session of its own, without data and without a network."""
    offline = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    return subprocess.Popen(
        command(*words),
        cwd=folder,
        env=without_data(folder, **offline, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ask(folder: Path, *words: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    started = start(folder, *words, **variables)
    output, errors = started.communicate(timeout=200)
    assert "Traceback" not in errors
    return started.returncode, output, errors


def small(*words: str) -> tuple[str, ...]:
    return ("run", "--protocol", "small.toml", "--data", "phantom", "--out", "out", "--workers", "1", *words)


def test_a_plugin_spoils_neither_the_json_nor_the_reference_nor_the_other_cases(bench: Path) -> None:
    methods = "methods.py:Vandal,methods.py:Exits,oracle"
    code, output, errors = ask(bench, *small("--restorer", methods, "--limit", "1", "--json"))
    assert code == 3
    rows = {row["restorer"]: row for row in json.loads(output)["rows"]}
    assert rows["oracle"]["metrics"]["psnr"]["mean"] == 100
    assert rows["Exits"]["failed"] == 1
    assert "[/bold] \\udc80 enough" in errors
    assert "left out" not in errors, "psnr and ssim need no weights"


def test_a_setting_may_hold_several_values(bench: Path) -> None:
    code, out, errors = ask(bench, *small("--restorer", "methods.py:Listed", "--limit", "1", "--json"))
    assert code == 0, errors
    assert json.loads(out)["rows"][0]["failed"] == 0


def test_every_row_of_the_folder_stands_in_its_tables_and_those_of_the_command_on_the_screen(bench: Path) -> None:
    methods = "input,methods.py:Perceptive"
    code, output, _ = ask(bench, *small("--restorer", methods, "--limit", "2"))
    assert code == 0
    shown = {line.split()[1]: line for line in output.splitlines() if line.startswith("│")}
    assert "trained on LPIPS" in shown["Perceptive"]
    assert shown["input"].split("│")[2].strip() == "a"
    code, output, errors = ask(bench, *small("--restorer", "gaussian", "--set", "gaussian.sigma=2", "--limit", "1"))
    assert code == 0, errors
    assert "│ gaussian (sigma=2.0)" in output
    assert "│ input" not in output
    assert "also hold Perceptive, input, of earlier commands" in output
    with (bench / "out" / "summary.csv").open(newline="") as file:
        rows = {row["restorer"]: row for row in csv.DictReader(file)}
    assert {name: (row["variant"], row["solved"]) for name, row in rows.items()} == {
        "gaussian": ("sigma=2.0", "1"),
        "input": ("", "2"),
        "Perceptive": ("", "2"),
    }
    report = (bench / "out" / "report.html").read_text()
    assert all(name in report for name in ("(sigma=2.0)", "Perceptive", "trained on LPIPS"))
    description = json.loads((bench / "out" / "run.json").read_text())
    assert (description["limit"], len(description["cases"])) == (2, 2)
    source = bench / "methods.py"
    source.write_text(source.read_text().replace("image + 1", "image + 2"))
    assert ask(bench, *small("--restorer", "methods.py:Perceptive", "--limit", "1"))[0] == 0
    with (bench / "out" / "summary.csv").open(newline="") as file:
        assert [row["restorer"] for row in csv.DictReader(file)].count("Perceptive") == 1, "what it was before is gone"


def test_a_worker_ends_soon_after_its_run_was_killed(bench: Path) -> None:
    run = start(bench, *small("--restorer", "methods.py:Sleeps", "--limit", "1"))
    wait_until((bench / "asleep").exists)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert workers
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive


@pytest.mark.parametrize("when", ["while workers start", "while workers work"])
def test_ctrl_c_of_the_whole_group_is_one_line_and_130(bench: Path, when: str) -> None:
    run = start(bench, *small("--restorer", "methods.py:Sleeps", "--limit", "2"))
    wait_until((bench / ("asleep" if when == "while workers work" else "out/run.json")).exists)
    if when == "while workers start":
        wait_until(lambda: psutil.Process(run.pid).children(recursive=True), 60, every=0.005)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    said = [line for line in errors.splitlines() if "greeting" not in line]
    assert len(said) == 1
    assert "the same command goes on" in said[0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads signal masks from /proc")
def test_a_worker_is_deaf_to_ctrl_c_from_its_first_instruction(bench: Path) -> None:
    """Else Ctrl-C while a worker's Python starts prints that Python's traceback over the resume line."""
    run = start(bench, *small("--restorer", "methods.py:Sleeps", "--limit", "2"))
    wait_until((bench / "asleep").exists)
    children = psutil.Process(run.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    masks = [_blocked_signals(worker.pid) for worker in workers]
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert workers
    assert all(mask & 1 << (signal.SIGINT - 1) for mask in masks)


def test_an_interrupt_that_another_thread_takes_waits_until_workers_stand() -> None:
    """Else it hits while a new process is handed what it starts with, and that process prints a traceback."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    seen = []

    def start_workers() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            seen.append("workers stand")

    try:
        with pytest.raises(KeyboardInterrupt):
            start_workers()
    finally:
        over.set()
        other.join()
    assert seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _blocked_signals(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)


def test_a_plugin_that_exits_on_import_is_refused(bench: Path) -> None:
    (bench / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    code, _, errors = ask(bench, *small("--restorer", "leaves.py:Mine"))
    assert code == 2
    assert "leaves.py: cannot be imported: SystemExit" in errors


def test_plugins_that_cannot_be_described_are_listed_with_the_reason(bench: Path) -> None:
    names = {"demanding": "odd:Demanding", "helpless": "odd:Helpless", "loose": "odd:function"}
    install_plugin(bench / "site", "odd", names)
    (bench / "site" / "odd.py").write_text(PLUGINS)
    site = str(bench / "site")
    code, output, _ = ask(bench, "list", "restorers", "--json", PYTHONPATH=site)
    assert code == 0
    reasons = {row["name"]: row["unavailable"] for row in json.loads(output)["restorers"]}
    assert "width" in reasons["demanding"]
    assert "cannot say what it needs: RuntimeError: no idea" in reasons["helpless"]
    assert "is not a restorer" in reasons["loose"]
    assert reasons["input"] is None
    for name in names:
        code, _, errors = ask(bench, *small("--restorer", f"input,{name}"), PYTHONPATH=site)
        assert code == 2
        assert name in errors


def test_a_run_folder_dry_extended_repaired_and_fresh(bench: Path) -> None:
    code, output, _ = ask(bench, *small("--restorer", "input", "--limit", "1", "--dry-run", "--json"))
    assert code == 0
    assert json.loads(output)["cases"] == 1
    assert not (bench / "out").exists()

    assert ask(bench, *small("--restorer", "input", "--limit", "1"))[0] == 0
    records = bench / "out" / "records.jsonl"
    (first,) = records_of(bench / "out")
    assert ask(bench, *small("--restorer", "input,median", "--limit", "1"))[0] == 0
    assert [record["restorer"] for record in records_of(bench / "out")] == ["input", "median"]

    del first["metrics"]["ssim"]
    write_records(bench / "out", [first])
    assert ask(bench, *small("--restorer", "input", "--limit", "1"))[0] == 0
    assert "ssim" in records_of(bench / "out")[-1]["metrics"]

    description = bench / "out" / "run.json"
    kept = description.read_text()
    description.unlink()
    code, _, errors = ask(bench, *small("--restorer", "input", "--limit", "1"))
    assert code == 2
    assert "no run.json" in errors

    description.write_text(kept)
    assert ask(bench, *small("--restorer", "input", "--limit", "1", "--fresh"))[0] == 0
    assert records.read_text().count("\n") == 1


def test_a_folder_never_passes_for_a_data_set(bench: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    monkeypatch.chdir(bench)
    monkeypatch.delenv("SEMBENCH_DATA", raising=False)
    for name in ("phantom", "semcorpus", "mine"):
        (bench / name).mkdir()
        Image.new("L", (200, 200), 99).save(bench / name / "one.png")
    parsed = protocol.parse(protocol_text(), "small.toml")
    assert cases.plan_cases(parsed, "./phantom").data == "folder-phantom"
    assert cases.plan_cases(parsed, "./semcorpus").data == "folder-semcorpus"
    assert cases.plan_cases(parsed, "mine").data == "mine"
    assert isinstance(cases.plan_cases(parsed, "phantom").specs[0], cases.PhantomSpec)
    with pytest.raises(InputError, match="fields is missing"):
        cases.plan_cases(parsed)
    shutil.copy(bench / "mine" / "one.png", bench / "mine" / "two.png")
    (bench / "mine" / "two.tif").write_bytes(b"")
    ids = [spec.case_id for spec in cases.plan_cases(parsed, "mine").specs]
    assert ids == ["one.png", "two.png", "two.tif"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rx = 2.0", "rx = -2.0", "rx = -2: give a number above 0"),
        ("rx = 2.0", "rx = nan", "give a finite number"),
        ("seed = 7", "seed = 7\nmargin = 96", "margin of 96 px leaves nothing"),
    ],
)
def test_a_protocol_of_which_no_case_could_be_made_is_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        protocol.parse(protocol_text().replace(old, new), "small.toml")


def test_a_group_in_two_splits_is_refused() -> None:
    corpus = load_manifest("semcorpus")
    parsed = protocol.parse(protocol_text(), "small.toml")
    assert set(cases.roles(parsed, corpus)) == {"train", "validation", "evaluation"}
    group = corpus.select(split="train")[0].group
    mixed = [replace(row, group=group) if row.split == "evaluation" else row for row in corpus.rows]
    with pytest.raises(InputError, match=f"same group {group}"):
        cases.roles(parsed, replace(corpus, rows=tuple(mixed)))
