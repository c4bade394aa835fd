"""What goes wrong around a run: kills, full disks, bad files, broken methods; nothing is lost, one line says why."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_lines import call, command, wait_until, without_data
from PIL import Image as PillowImage
from small import install_plugin, protocol_file, records_of

small_protocol = partial(protocol_file, time_limit_s=20, data={"fields": "s2s_fields"})

METHODS = '''
import os, signal, sys, time
import numpy as np
from sembench.restorer import Restorer

class Slow(Restorer):
    """Takes its time and counts its calls."""
    def restore(self, image, /):
        time.sleep(0.3)
        with open(os.environ["CALLS"], "a") as calls:
            calls.write("x")
        return image

class Good(Restorer):
    """Works."""
    def restore(self, image, /):
        return image * np.float32(0.9)

class Hangs(Restorer):
    """Never returns."""
    def restore(self, image, /):
        time.sleep(1000)

class Nan(Restorer):
    """Returns a NaN."""
    def restore(self, image, /):
        out = image.copy(); out[3, 4] = np.nan
        return out

class Shape(Restorer):
    """Returns another shape."""
    def restore(self, image, /):
        return image[1:]

class List(Restorer):
    """Returns a list."""
    def restore(self, image, /):
        return image.tolist()

class Writes(Restorer):
    """Writes into its input."""
    def restore(self, image, /):
        image[0, 0] = 1
        return image

class Forces(Restorer):
    """Makes its input writable, then writes."""
    def restore(self, image, /):
        image.setflags(write=True); image += 1
        return image

class Dies(Restorer):
    """Kills its worker."""
    def restore(self, image, /):
        os.kill(os.getpid(), signal.SIGKILL)

class Raises(Restorer):
    """Raises."""
    def restore(self, image, /):
        raise RuntimeError("no idea")

class Prints(Restorer):
    """Prints a megabyte."""
    def restore(self, image, /):
        print("x" * 1_000_000); os.write(1, b"y" * 1_000_000); os.write(2, b"z" * 1_000_000)
        print("x" * 1_000_000, file=sys.stderr)
        return image
'''


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    small_protocol(tmp_path)
    (tmp_path / "methods.py").write_text(METHODS)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    return without_data(folder, CALLS=str(folder / "calls"), **more)


def run(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A run of the small protocol."""
    return call(folder, "run", "--protocol", "small.toml", *words, env=environment(folder), timeout=200, **more)


def cases(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["restore_seconds"]
    return rows


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_kill_9_then_the_same_command_gives_the_summary_of_an_unbroken_run(bench: Path) -> None:
    words = ("--restorer", "methods.py:Slow,input", "--data", "phantom", "--limit", "6", "--workers", "2")
    whole = run(bench, *words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    (bench / "calls").unlink()
    broken = subprocess.Popen(
        command("run", "--protocol", "small.toml", *words, "--out", "broken"),
        cwd=bench,
        env=environment(bench),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    records = bench / "broken" / "records.jsonl"
    wait_until(lambda: records.is_file() and records.read_bytes().count(b"\n") >= 4, every=0.02)
    os.killpg(broken.pid, signal.SIGKILL)
    broken.wait()
    done = [json.loads(line) for line in records.read_bytes().split(b"\n")[:-1]]
    with records.open("ab") as file:
        file.write(b'{"row": "torn')
    again = run(bench, *words, "--out", "broken")
    assert again.returncode == 0, again.stderr
    lines = records_of(bench / "broken")
    keys = [(line["row"], line["case"]) for line in lines]
    assert lines[: len(done)] == done
    assert len(set(keys)) == len(keys) == 12
    assert cases(bench / "broken") == cases(bench / "whole")
    assert (bench / "broken" / "summary.csv").read_text() == (bench / "whole" / "summary.csv").read_text()


def test_the_number_of_workers_changes_no_digit(bench: Path) -> None:
    words = ("--restorer", "input,tv,blind_wiener,oracle", "--data", "phantom", "--limit", "3")
    for workers in ("1", "2"):
        done = run(bench, *words, "--workers", workers, "--out", f"with-{workers}")
        assert done.returncode == 0, done.stderr
    assert cases(bench / "with-1") == cases(bench / "with-2")
    oracle = [row for row in cases(bench / "with-1") if row["restorer"] == "oracle"]
    assert [(row["psnr"], row["ssim"]) for row in oracle] == [("100.0", "1.0")] * 3


def test_broken_methods_fail_alone_with_their_reason(bench: Path) -> None:
    names = ("Good", "Nan", "Shape", "List", "Writes", "Forces", "Dies", "Raises", "Prints")
    targets = ",".join(f"methods.py:{name}" for name in names)
    done = run(bench, "--restorer", targets, "--data", "phantom", "--limit", "1", "--json", "--out", "out")
    assert done.returncode == 3
    assert "--retry-failed" in last_line(done)
    assert len(done.stderr) < 10_000
    rows = {row["restorer"]: row for row in json.loads(done.stdout)["rows"]}
    assert {name for name in names if rows[name]["failed"]} == set(names) - {"Good", "Prints"}
    assert rows["Good"]["metrics"]["psnr"]["n"] == 1
    reasons = {row["restorer"]: row["reason"] for row in cases(bench / "out")}
    for name, words in {
        "Nan": "not finite",
        "Shape": "shape (191, 192)",
        "List": "returned list",
        "Writes": "read-only",
        "Forces": "changed its input",
        "Dies": "killed its worker",
        "Raises": "no idea",
    }.items():
        assert words in reasons[name], name
    before = (bench / "out" / "records.jsonl").read_text().count("\n")
    again = run(bench, "--restorer", targets, "--data", "phantom", "--limit", "1", "--out", "out")
    assert (bench / "out" / "records.jsonl").read_text().count("\n") == before
    assert again.returncode == 3
    run(bench, "--restorer", "methods.py:Raises", "--data", "phantom", "--limit", "1", "--out", "out", "--retry-failed")
    assert (bench / "out" / "records.jsonl").read_text().count("\n") == before + 1


def test_a_method_that_hangs_is_stopped(bench: Path) -> None:
    small_protocol(bench, time_limit_s=4)
    done = run(bench, "--restorer", "methods.py:Hangs,input", "--data", "phantom", "--limit", "1", "--out", "out")
    assert done.returncode == 3
    by_name = {row["restorer"]: row for row in cases(bench / "out")}
    assert "time limit of 4 s" in by_name["Hangs"]["reason"]
    assert by_name["input"]["status"] == "ok"


def test_bad_files_of_a_folder_fail_alone(bench: Path) -> None:
    folder = bench / "mine"
    folder.mkdir()
    rng = np.random.default_rng(1)
    image = rng.integers(40, 200, (100, 90), dtype=np.uint8)
    PillowImage.fromarray(image).save(folder / "good.png")
    PillowImage.fromarray(np.zeros((80, 80), np.uint8)).save(folder / "black.png")
    PillowImage.fromarray(image[:20, :20]).save(folder / "tiny.png")
    (folder / "text.png").write_text("not a picture")
    tifffile.imwrite(folder / "cut.tif", image)
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:900])
    with_nan = image.astype(np.float32)
    with_nan[5, 5] = np.nan
    tifffile.imwrite(folder / "nan.tif", with_nan)
    done = run(bench, "--restorer", "input", "--data", "mine", "--out", "out")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    by_case = {row["case"]: row for row in cases(bench / "out")}
    assert {name for name, row in by_case.items() if row["status"] == "ok"} == {"good", "black"}
    assert "too small" in by_case["tiny"]["reason"]
    for name, file in {"text": "text.png", "cut": "cut.tif", "nan": "nan.tif"}.items():
        assert file in by_case[name]["reason"]


def test_a_full_disk_ends_with_5_and_the_run_goes_on_later(bench: Path) -> None:
    words = ("--restorer", "input", "--data", "phantom", "--limit", "6", "--workers", "1", "--out", "out")
    assert run(bench, *words).returncode == 0
    room = (bench / "out" / "records.jsonl").stat().st_size // 2
    expected = cases(bench / "out")
    subprocess.run(["rm", "-r", str(bench / "out")], check=True)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 10_000), max(room, 10_000)))

    done = run(bench, *words, preexec_fn=little_room)
    assert done.returncode == 5, done.stderr
    assert str(Path("out")) in last_line(done)
    kept = [line for line in _lines(bench / "out" / "records.jsonl") if line]
    assert all(json.loads(line)["status"] == "ok" for line in kept)
    assert run(bench, *words).returncode == 0
    assert cases(bench / "out") == expected
    assert _lines(bench / "out" / "records.jsonl")[: len(kept)] == kept


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--restorer", "gausian"], 2, "did you mean 'gaussian'?"),
        (["--restorer", "gaussian", "--set", "sgima=2"], 2, "did you mean 'sigma'?"),
        (["--restorer", "gaussian", "--set", "sigma=-1"], 2, "greater than 0"),
        (["--restorer", "gaussian,tv", "--set", "sigma=2"], 2, "say which restorer"),
        (["--restorer", "nowhere.py:Mine"], 2, "nowhere.py"),
        (["--restorer", "broken.py"], 2, "cannot be imported: ModuleNotFoundError"),
        (["--restorer", "methods.py:Goood"], 2, "did you mean 'Good'?"),
        (["--restorer", "input", "--data", "semcorpsu"], 2, "did you mean 'semcorpus'?"),
        (["--restorer", "input", "--limit", "0"], 2, "--limit"),
        (["--restorer", "input", "--limit", "few"], 2, "'--limit'"),
        (["--restorers", "input"], 2, "--restorers"),
        (["--restorer", "input", "--data", "phantom", "--limit", "1", "--out", "small.toml/run"], 5, "small.toml/run"),
        (["--restorer", "input", "--require-real"], 4, "SEMBENCH_DATA"),
    ],
)
def test_a_refusal_is_one_line_with_its_exit_code(bench: Path, words: list[str], code: int, says: str) -> None:
    (bench / "broken.py").write_text("import surely_not_there\n")
    done = run(bench, *words)
    assert done.returncode == code, done.stderr
    assert says in last_line(done)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed = 7", "sead = 7", "did you mean 'seed'?"),
        ("rx = 2.0", "rz = 2.0", "unknown parameter 'rz'"),
        ('fields = "s2s_fields"', 'feilds = "s2s_fields"', "did you mean 'fields'?"),
        ('fields = "s2s_fields"', 'train = "evaluation"', "splits overlap"),
        ('primary = "psnr"', 'primary = "lpips"', "primary metric 'lpips'"),
        ("[metrics]", "[metrics", "not valid TOML"),
    ],
)
def test_a_wrong_protocol_is_refused_by_name(bench: Path, old: str, new: str, says: str) -> None:
    sound = (bench / "small.toml").read_text()
    assert old in sound
    (bench / "small.toml").write_text(sound.replace(old, new))
    done = run(bench, "--restorer", "input")
    assert done.returncode == 2
    assert says in last_line(done)
    assert "small.toml" in last_line(done)


def test_without_data_and_network_the_phantom_runs_and_says_so(bench: Path) -> None:
    done = run(bench, "--restorer", "input", "--limit", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert "running on the phantom instead" in done.stderr
    assert "phantom" in json.loads(done.stdout)["run"]


def test_a_folder_of_another_run_is_refused_and_a_larger_limit_extends(bench: Path) -> None:
    words = ("--restorer", "input", "--data", "phantom", "--out", "out")
    assert run(bench, *words, "--limit", "1").returncode == 0
    first = (bench / "out" / "records.jsonl").read_text()
    assert run(bench, *words, "--limit", "2").returncode == 0
    assert (bench / "out" / "records.jsonl").read_text().startswith(first)
    small_protocol(bench, seed=8)
    done = run(bench, *words, "--limit", "1")
    assert done.returncode == 2
    digest = json.loads((bench / "out" / "run.json").read_text())["digest"]
    assert digest[:8] in last_line(done)


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(bench: Path) -> None:
    words = ("--restorer", "methods.py:Slow", "--data", "phantom", "--limit", "30", "--workers", "1", "--out", "out")
    started = subprocess.Popen(
        command("run", "--protocol", "small.toml", *words),
        cwd=bench,
        env=environment(bench),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(_lines(bench / "out" / "records.jsonl")) >= 2)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "the same command goes on from there" in errors
    assert 2 <= len(_lines(bench / "out" / "records.jsonl")) < 30


def test_a_broken_plugin_stops_only_runs_that_name_it(bench: Path) -> None:
    claims = {"broken": "surely_not_there:Mine", "gaussian": "else_where:Gaussian"}
    install_plugin(bench / "site", "brokenpack", claims)
    variables = environment(bench, PYTHONPATH=str(bench / "site"))

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return call(bench, *words, env=variables)

    listed = ask("list", "restorers", "--json")
    assert listed.returncode == 0, listed.stderr
    reasons = {row["name"]: row["unavailable"] for row in json.loads(listed.stdout)["restorers"]}
    assert "surely_not_there" in reasons["broken"]
    assert "brokenpack and sembench" in reasons["gaussian"]
    small = ("run", "--protocol", "small.toml", "--data", "phantom", "--limit", "1", "--restorer")
    assert ask(*small, "input").returncode == 0
    named = ask(*small, "broken")
    assert named.returncode == 2
    assert "brokenpack" in last_line(named)
    clash = ask(*small, "gaussian")
    assert clash.returncode == 2
    assert "claimed by brokenpack and sembench" in last_line(clash)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, sembench.commands\n"
        "try: sembench.commands.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'pydantic', 'torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
