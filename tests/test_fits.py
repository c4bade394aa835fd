"""Fitted states: what they depend on, the cache that keeps them, kills and damage; a run and `adapt` through them."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import call, command, wait_until
from safetensors.numpy import load as load_numpy
from small import LEARNING, protocol_file, records_of

from sembench.errors import InputError, UnavailableError
from sembench.execution import fits
from sembench.execution.training import TrainingImages, folder_images, training_images
from sembench.micrograph import write
from sembench.protocol import load
from sembench.registry import MethodTarget, find_method, resolve_settings
from sembench.restorer import Budget

METHODS = '''
import os, time
from typing import Literal
import numpy as np
from pydantic import Field
from sembench.restorer import Restorer

class Learner(Restorer):
    """Learns one number; each fit leaves a mark."""
    settings_after_fit = ("late",)
    class Settings(Restorer.Settings):
        factor: float = Field(1.0, gt=0, description="factor")
        late: int = Field(0, ge=0, description="used by restore alone")
        seed: int = Field(0, ge=0, description="seed")
        degradation: Literal["none", "paper", "broad"] = Field("none", description="degradation")
    def fit(self, training, /):
        import torch
        with open(os.environ["MARKS"], "a") as marks:
            marks.write("x")
        patch = training.batch(0)[0]
        time.sleep(float(os.environ.get("FIT_SECONDS", "0")))
        offset = float(patch.degraded.mean() - patch.clean.mean()) * self.settings.factor
        self.state = {"offset": torch.tensor([offset])}
        self.report = {"steps": training.budget.steps}
    def restore(self, image, /):
        return image - np.float32(self.state["offset"].item())

class Lazy(Restorer):
    """Forgets its state."""
    def fit(self, training, /):
        pass

class Breaks(Restorer):
    """Breaks in its fit."""
    def fit(self, training, /):
        raise RuntimeError("no idea")
'''


@pytest.fixture
def bench(tmp_path: Path, no_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    protocol_file(tmp_path, metrics=("psnr",), data=LEARNING, fixed={})
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.setenv("MARKS", str(tmp_path / "marks"))
    return tmp_path


def images(seed: int = 0) -> TrainingImages:
    rng = np.random.default_rng(seed)
    pixels = tuple(rng.uniform(0, 255, (240, 250)).astype(np.float32) for _ in range(2))
    return TrainingImages("mine", f"digest-{seed}", lambda: {"train": pixels[:1], "validation": pixels[1:]})


def plan(bench: Path, *, name: str = "Learner", data: int = 0, budget: str = "quick", **settings: Any) -> fits.FitPlan:
    method = find_method(f"{bench / 'methods.py'}:{name}")
    return fits.plan_fit(method, resolve_settings(method, settings, "paper"), images(data), "paper", Budget.of(budget))


def marks(bench: Path) -> int:
    return len((bench / "marks").read_text()) if (bench / "marks").is_file() else 0


def test_a_second_call_finds_the_first_ones_state(bench: Path) -> None:
    made = fits.ensure(plan(bench))
    found = fits.ensure(plan(bench))
    assert (made.source, found.source) == ("fitted", "cached")
    assert made.sha256 == found.sha256
    assert marks(bench) == 1
    assert fits.load_state(found.path, found.sha256)["offset"].dtype.itemsize == 2
    again = fits.ensure(plan(bench), fresh=True)
    assert marks(bench) == 2
    assert again.sha256 == made.sha256


def test_whatever_a_fit_depends_on_is_in_its_identity(bench: Path) -> None:
    base = plan(bench).digest
    assert plan(bench, late=3).digest == base
    others = [
        plan(bench, factor=2.0),
        plan(bench, seed=1),
        plan(bench, data=1),
        plan(bench, budget="standard"),
        plan(bench, degradation="broad"),
    ]
    assert len({base, *(other.digest for other in others)}) == len(others) + 1
    (bench / "methods.py").write_text(METHODS + "\n# changed\n")
    assert plan(bench).digest != base


@pytest.mark.parametrize("damage", ["state", "description", "half", "foreign", "no state"])
def test_what_is_damaged_is_fitted_again_with_a_notice(bench: Path, damage: str) -> None:
    made = fits.ensure(plan(bench))
    description = made.path.parent / fits.DESCRIPTION
    if damage == "state":
        made.path.write_bytes(made.path.read_bytes()[:-1] + b"!")
    elif damage == "description":
        description.write_text("{")
    elif damage == "half":
        made.path.write_bytes(made.path.read_bytes()[:10])
    elif damage == "foreign":
        description.write_text(json.dumps(json.loads(description.read_text()) | {"digest": "0" * 64}))
    else:
        made.path.unlink()
    notices: list[str] = []
    again = fits.ensure(plan(bench), notices=notices)
    assert again.source == "fitted"
    assert again.sha256 == made.sha256
    assert len(notices) == 1
    assert "fitted again" in notices[0]
    assert "\n" not in notices[0]


def test_a_state_without_its_description_is_not_done(bench: Path) -> None:
    made = fits.ensure(plan(bench))
    (made.path.parent / fits.DESCRIPTION).unlink()
    assert fits.find(plan(bench)) is None


@pytest.mark.parametrize(("name", "words"), [("Lazy", "left no state"), ("Breaks", "RuntimeError: no idea")])
def test_a_fit_that_fails_says_so_in_one_line(bench: Path, name: str, words: str) -> None:
    with pytest.raises(UnavailableError, match=words) as caught:
        fits.ensure(plan(bench, name=name))
    assert "\n" not in str(caught.value)
    assert fits.find(plan(bench, name=name)) is None


def test_two_processes_do_not_fit_the_same(bench: Path) -> None:
    from filelock import FileLock

    made = plan(bench)
    made.folder.mkdir(parents=True)
    with FileLock(made.folder / ".lock"), pytest.raises(InputError, match="another process is fitting Learner"):
        fits.ensure(made)


def test_a_state_is_never_unpickled(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / "state.safetensors"
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not a fitted state"):
        fits.load_state(file)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="changed since"):
        fits.load_state(file, "0" * 64)
    with pytest.raises(InputError, match="cannot be read"):
        fits.load_state(tmp_path / "none")


def test_training_images_are_known_before_they_are_read() -> None:
    s2s, midpoint = load("s2s"), load("s2s_midpoint")
    assert training_images(s2s, "semcorpus").digest == training_images(midpoint, "semcorpus").digest
    assert training_images(s2s, "a-folder").digest == training_images(s2s, "semcorpus").digest
    assert training_images(s2s, "phantom").digest != training_images(s2s, "semcorpus").digest


@pytest.mark.data
def test_the_ten_training_images_of_s2s(data_folder: Path) -> None:
    found = training_images(load("s2s"), "semcorpus").load()
    assert (len(found["train"]), len(found["validation"])) == (8, 2)
    assert all(image.dtype == np.float32 and min(image.shape) >= 600 for images in found.values() for image in images)


def test_a_folder_keeps_every_fifth_image_for_validation(tmp_path: Path) -> None:
    for i in range(7):
        write(tmp_path / f"{i}.png", np.full((64, 64 + i), 10 * i, np.float32))
    found = folder_images(tmp_path, "0").load()
    assert [image.shape[1] - 64 for image in found["train"]] == [0, 1, 2, 3, 5, 6]
    assert [image.shape[1] - 64 for image in found["validation"]] == [4]
    assert folder_images(tmp_path, "0").digest != folder_images(tmp_path, "auto").digest
    for i in range(1, 7):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(InputError, match="1 images: give 2 at least"):
        folder_images(tmp_path)


def test_a_run_fits_first_once_and_its_records_name_the_state(bench: Path) -> None:
    words = ("run", "--protocol", "small.toml", "--restorer", "methods.py:Learner,input", "--data", "phantom")
    words = (*words, "--limit", "2", "--workers", "1", "--out", "out", "--json")
    done = call(bench, *words, "--budget", "quick")
    assert done.returncode == 0, done.stderr
    assert "fitting Learner" in done.stderr
    records = records_of(bench / "out")
    learnt = [record for record in records if record["restorer"] == "Learner"]
    state = next((bench / "cache" / "fits").glob("Learner-*/state.safetensors"))
    described = json.loads((state.parent / "fit.json").read_text())
    assert {record["state_sha256"] for record in learnt} == {described["state_sha256"]}
    assert not any("state_sha256" in record for record in records if record["restorer"] == "input")
    row = next(row for row in json.loads((bench / "out" / "run.json").read_text())["rows"] if "fit" in row)
    assert row["fit"]["state_sha256"] == described["state_sha256"]
    assert row["fit"]["identity"]["budget"][0] == "quick"
    assert load_numpy(state.read_bytes())["offset"].dtype == np.float16
    assert call(bench, *words, "--budget", "quick").returncode == 0
    assert marks(bench) == 1
    other = call(bench, *words, "--budget", "standard", "--dry-run")
    assert learnt[0]["row"] not in other.stdout
    assert "to be made" in other.stdout


def test_a_fit_killed_in_the_middle_is_never_served_as_done(bench: Path) -> None:
    (bench / "mine").mkdir()
    for i in range(2):
        write(bench / "mine" / f"{i}.png", np.random.default_rng(i).uniform(0, 255, (240, 250)).astype(np.float32))
    words = ("adapt", "methods.py:Learner", "--protocol", "small.toml", "--data", "mine", "--budget", "quick")
    slow = subprocess.Popen(
        command(*words),
        cwd=bench,
        env={**os.environ, "FIT_SECONDS": "60"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: marks(bench), 120)
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    assert not list((bench / "cache" / "fits").glob("*/fit.json"))
    done = call(bench, *words, "--json", "--out", "states")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert marks(bench) == 2
    assert len(list((bench / "cache" / "fits").glob("*"))) == 1
    assert Path(told["state"]).name == "Learner-broad.safetensors"
    state = (bench / told["state"]).read_bytes()
    write(bench / "image.tif", np.full((64, 64), 100, np.float32))
    restored = ("restore", "image.tif", "--restorer", "methods.py:Learner", "-o", "out.npy")
    with_state = call(bench, *restored, "--state", told["state"])
    assert with_state.returncode == 0, with_state.stderr
    offset = float(load_numpy(state)["offset"][0])
    np.testing.assert_allclose(np.load(bench / "out.npy"), 100 - offset, atol=1 / 256)
    without = call(bench, *restored)
    assert without.returncode == 4
    assert "sembench adapt methods.py:Learner" in without.stderr
    assert without.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("input",), "does not learn"),
        (("methods.py:Learner", "--budget", "soon"), "budget 'soon' is not known"),
        (("methods.py:Learner", "--set", "factor=-1"), "is refused"),
        (("methods.py:Learner", "--data", "nowhere"), "neither a folder nor a data set"),
        (("methods.py:Learner", "--degradation", "brod"), "did you mean 'broad'"),
        (("methods.py:Learner", "--device", "gpu"), "give cpu, cuda or cuda:N"),
    ],
)
def test_a_wrong_request_is_one_line(bench: Path, words: tuple[str, ...], message: str) -> None:
    from sembench.execution import adaptation

    options = dict(zip(words[1::2], words[2::2], strict=True))
    request = adaptation.AdaptRequest(
        words[0].replace("methods.py", str(bench / "methods.py")),
        data=options.get("--data", "phantom"),
        degradation=options.get("--degradation"),
        budget=options.get("--budget"),
        settings=(options["--set"],) if "--set" in options else (),
        device=options.get("--device", "cpu"),
    )
    with pytest.raises(InputError, match=message) as caught:
        adaptation.prepare(request)
    assert "\n" not in str(caught.value)


def test_no_fit_leaves_out_what_is_not_fitted_yet(bench: Path) -> None:
    import torch

    from sembench.execution.prepare import prepare
    from sembench.execution.request import RunRequest

    method = f"{bench / 'methods.py'}:Learner"
    request = RunRequest(("input", method), str(bench / "small.toml"), data="phantom", limit=1, no_fit=True)
    without = prepare(request)
    assert [row.name for row in without.rows] == ["input"]
    assert without.fit_plans == {}
    assert any(notice.startswith("Learner is left out: it is not fitted yet") for notice in without.notices)
    with pytest.raises(UnavailableError, match="nothing is left to run"):
        prepare(replace(request, restorers=(method,)))
    (fit,) = prepare(replace(request, no_fit=False)).fit_plans.values()
    state = fits.serialise({"offset": torch.zeros(1)}, "Learner")
    fits.store(fit, state, {}, fit.folder / fits.STATE, fit.folder / fits.DESCRIPTION)
    assert [row.name for row in prepare(request).rows] == ["input", "Learner"]


def test_phantom_cases_take_a_shipped_state_of_the_protocol_s_own_images(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    package = bench / "shipping"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "methods.py").write_text(METHODS)
    monkeypatch.syspath_prepend(str(bench))
    from importlib import import_module

    method = MethodTarget("learner", import_module("shipping.methods").Learner, None)
    settings = resolve_settings(method, {}, "paper")

    def planned(data: str, budget: str = "standard") -> fits.FitPlan:
        return fits.plan_for(method, settings, load("s2s"), data, Budget.of(budget))

    real, phantom = planned("semcorpus"), planned("phantom")
    assert phantom.digest != real.digest
    content = fits.serialise({"offset": torch.zeros(1)}, "learner")
    states = package / "states"
    fits.store(real, content, {}, states / "learner-paper.safetensors", states / "learner-paper.json")
    assert planned("phantom").digest == real.digest
    assert planned("phantom", "quick").digest not in (real.digest, phantom.digest)
