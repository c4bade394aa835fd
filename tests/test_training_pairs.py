"""Real pairs to learn from: which ones, how they are matched, and fits that go on from another's state."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import call
from scipy.ndimage import gaussian_filter
from small import pair_folder, scene

from sembench import micrograph
from sembench.cases import STAND_IN
from sembench.errors import InputError
from sembench.execution import adaptation, fits
from sembench.execution.training_pairs import training_pair_folder, training_pairs
from sembench.protocol import load
from sembench.registry import find_method, resolve_settings
from sembench.restorer import Budget, PairSet

REAL_PAIRS = load("real_pairs")

METHOD = '''
from typing import Literal
from pydantic import Field
from sembench.restorer import Restorer

class Learner(Restorer):
    """Counts its steps, from where it starts."""
    class Settings(Restorer.Settings):
        degradation: Literal["none", "paper", "broad"] = Field("none", description="degradation")
    def fit(self, training, /):
        import torch
        before = float(training.start.state["steps"]) if training.start else 0.0
        self.state = {"steps": torch.tensor([before + training.budget.steps])}
        self.report = {"pairs": len(getattr(training, "inputs", ())), "rate": getattr(training.start, "rate", None)}
    def restore(self, image, /):
        return image
'''


@pytest.fixture
def bench(tmp_path: Path, no_data: Path) -> Path:
    (tmp_path / "methods.py").write_text(METHOD)
    return tmp_path


def plan(bench: Path, data: str = "phantom", pairs: int | None = None, budget: str = "standard") -> fits.FitPlan:
    method = find_method(f"{bench / 'methods.py'}:Learner")
    settings = resolve_settings(method, {}, "broad")
    return fits.plan_for(method, settings, REAL_PAIRS, data, Budget.of(budget), pairs=pairs)


def steps(state: fits.FittedState) -> float:
    return float(fits.load_state(state.path, state.sha256)["steps"])


def own_pairs(folder: Path, number: int) -> Path:
    """References at half the contrast of their inputs."""
    return pair_folder(folder, map(str, range(1, number + 1)), blur=0, offset=40, gain=0.5)


def test_the_protocol_s_numbers() -> None:
    part = REAL_PAIRS.fine_tuning
    assert part is not None
    assert Budget.of("standard").share(part.share).steps == 400
    assert Budget.of("10min").share(0.1).minutes == pytest.approx(1)
    assert Budget("tiny", 3).share(0.1).steps == 1
    broad = load("s2r_broad")
    for same in ("data", "degradation", "alignment", "metrics", "margin", "budget"):
        assert getattr(REAL_PAIRS, same) == getattr(broad, same)


def test_the_start_is_the_fit_of_s2r_broad(bench: Path) -> None:
    method = find_method(f"{bench / 'methods.py'}:Learner")
    broad = fits.plan_for(
        method, resolve_settings(method, {}, "broad"), load("s2r_broad"), "kriss", Budget.of("standard")
    )
    tuned = plan(bench, "kriss")
    assert tuned.start is not None
    assert tuned.start.digest == broad.digest == plan(bench, "kriss", 0).digest
    assert tuned.identity["start"] == broad.digest
    assert plan(bench, "kriss", 8).digest == tuned.digest
    several = [plan(bench, "kriss", number).digest for number in (0, 1, 2, 5, 8)]
    several += [plan(bench).digest, plan(bench, "kriss", budget="quick").digest]
    assert len(set(several)) == len(several)
    assert plan(bench, "semsr").digest == plan(bench, "a-folder").digest == tuned.digest
    assert (tuned.kept_as, broad.kept_as) == ("Learner-broad-pairs8", "Learner-broad")


def test_a_fit_goes_on_from_the_start_s_state(bench: Path) -> None:
    tuned = plan(bench, pairs=2)
    made = fits.ensure(tuned)
    assert steps(made) == 4400
    assert made.report["pairs"] == 2
    assert made.report["rate"] == REAL_PAIRS.fine_tuning.rate  # type: ignore[union-attr]
    assert tuned.start is not None
    start = fits.find(tuned.start)
    assert start is not None
    assert steps(start) == 4000
    assert made.report["start_sha256"] == start.sha256
    assert fits.ensure(tuned).source == "cached"


def test_a_state_made_from_another_start_is_made_again(bench: Path) -> None:
    import torch

    tuned = plan(bench, pairs=1)
    fits.ensure(tuned)
    start = tuned.start
    assert start is not None
    content = fits.serialise({"steps": torch.tensor([7.0])}, "Learner")
    fits.store(start, content, {}, start.folder / fits.STATE, start.folder / fits.DESCRIPTION)
    notices: list[str] = []
    again = fits.ensure(tuned, notices=notices)
    assert "it was made from another state" in notices[0]
    assert (again.source, steps(again)) == ("fitted", 407)


def test_simulated_pairs_stand_in_for_real_ones() -> None:
    found = training_pairs(REAL_PAIRS, "phantom", 1)
    assert (found.data, found.number) == (STAND_IN, 1)
    pairs = found.training_set("broad")
    assert isinstance(pairs, PairSet)
    assert (len(pairs.inputs), len(pairs.validation_inputs)) == (1, 2)
    patch = pairs.batch(0)[0]
    assert patch.degradation is None
    smooth = [gaussian_filter(image.astype(float), 3) for image in (patch.clean, patch.degraded)]
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.98


def test_a_folder_s_pairs_are_registered_and_matched(tmp_path: Path) -> None:
    found = training_pair_folder(REAL_PAIRS, own_pairs(tmp_path / "mine", 3), None, "0")
    assert found.number == 2
    pairs = found.training_set("broad")
    for reference, degraded in zip(pairs.images, pairs.inputs, strict=True):
        assert reference.shape[1] < 256
        inner = (slice(8, -8), slice(8, -8))
        assert np.std((degraded - reference)[inner]) == pytest.approx(8, rel=0.15)
        slope, level = np.polyfit(*(gaussian_filter(x[inner], 3).ravel() for x in (reference, degraded)), 1)
        assert slope == pytest.approx(1, abs=0.03)
        assert level == pytest.approx(0, abs=4)
    assert training_pair_folder(REAL_PAIRS, tmp_path / "mine", 1, "0").digest != found.digest
    with pytest.raises(InputError, match="has 2 training pairs: give 1 to 2, or 0"):
        training_pair_folder(REAL_PAIRS, tmp_path / "mine", 3, "0")


def test_a_pair_of_two_fields_and_a_lone_pair_are_refused(tmp_path: Path) -> None:
    folder = own_pairs(tmp_path / "mine", 2)
    (folder / "reference" / "1.tif").unlink()
    micrograph.write(folder / "reference" / "1.tif", scene(9), None)
    with pytest.raises(InputError, match="nothing can be learnt from pair 1") as refusal:
        training_pair_folder(REAL_PAIRS, folder, None, "0").training_set("broad")
    assert "\n" not in str(refusal.value)
    for part in ("input", "reference"):
        (folder / part / "2.tif").unlink()
    with pytest.raises(InputError, match="give 2 at least"):
        training_pair_folder(REAL_PAIRS, folder, None, "0")


@pytest.mark.parametrize(
    ("protocol", "data", "pairs", "message"),
    [
        ("real_pairs", None, 9, "kriss has 8 training pairs"),
        ("real_pairs", "phantom", 9, "phantom_pairs has 8 training pairs"),
        ("s2r_broad", None, 2, "learns from no pairs: give real_pairs"),
        ("real_pairs", "nowhere", 2, "neither a folder nor a data set"),
    ],
)
def test_a_number_of_pairs_that_is_not_there(
    bench: Path, protocol: str, data: str | None, pairs: int, message: str
) -> None:
    request = adaptation.AdaptRequest(f"{bench / 'methods.py'}:Learner", protocol, data, pairs=pairs)
    with pytest.raises(InputError, match=message) as refusal:
        adaptation.prepare(request)
    assert "\n" not in str(refusal.value)


def test_adapt_on_one_s_own_pairs(bench: Path) -> None:
    folder = own_pairs(bench / "mine", 3)
    method = f"{bench / 'methods.py'}:Learner"
    own = adaptation.prepare(adaptation.AdaptRequest(method, "real_pairs", str(folder), crop_bottom="0"))
    assert (own.kept_as, own.identity["degradation"]) == ("Learner-broad-pairs2", "broad")
    assert own.start is not None
    assert own.start.digest == plan(bench, "kriss", 0).digest
    words = ("adapt", "methods.py:Learner", "--protocol", "real_pairs", "--data", "phantom", "--pairs", "2")
    done = call(bench, *words, "--budget", "quick", "--out", "states", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert Path(told["state"]).name == "Learner-broad-pairs2.safetensors"
    assert told["budget"] == ["quick", 20, 4]
    assert REAL_PAIRS.fine_tuning is not None
    made = json.loads((bench / "states/Learner-broad-pairs2.json").read_text())
    assert made["identity"]["rate"] == REAL_PAIRS.fine_tuning.rate


def test_fine_tuning_needs_pairs() -> None:
    broken = load("s2s").model_dump(exclude_none=True) | {"fine_tuning": {"pairs": 1, "share": 0.1, "rate": 1}}
    with pytest.raises(ValueError, match="fine_tuning needs a set of pairs"):
        type(REAL_PAIRS)(**broken)


@pytest.mark.data
def test_the_subsets_of_kriss(data_folder: Path) -> None:
    found = training_pairs(REAL_PAIRS, "kriss", 5)
    roles = found._specs()
    assert [spec.case_id for spec in roles["train"]] == ["dwell_012", "line_006", "dwell_020", "line_012", "dwell_026"]
    assert sorted(spec.case_id for spec in roles["validation"]) == ["dwell_042", "line_041"]
    pairs = training_pairs(REAL_PAIRS, "kriss", 1).training_set("broad")
    assert all(min(image.shape) > 430 for image in (*pairs.images, *pairs.validation))
