"""The fitted states that ship: made by one path, all there, small, and found by what a run asks for."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from restorers import ship
from sembench.errors import InputError
from sembench.execution import adaptation, fits
from sembench.restorer import FitProgress

ROOT = Path(__file__).parents[1] / "restorers"
MEGABYTE = 1_000_000
TOLD = [
    (name, protocol)
    for protocol in ship.PROTOCOLS
    for name in ship.learned()
    if (name, protocol) not in ship.NOT_SHIPPED
]


@pytest.mark.data
@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize(("name", "protocol"), TOLD, ids=lambda value: str(value))
def test_what_a_standard_run_asks_for_is_shipped_whole_and_small(
    name: str, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path))
    plan = adaptation.prepare(adaptation.AdaptRequest(name, protocol))
    found = fits.find(plan)
    assert found is not None, f"python -m restorers.ship {name}"
    assert found.source == "shipped"
    limit = 8 if "mae" in name or "semfm" in name else 3
    assert found.path.stat().st_size < limit * MEGABYTE
    assert found.report["steps"] == plan.budget.steps == 4000


def test_all_weights_together_are_below_90_mb() -> None:
    files = list(ROOT.rglob("*.safetensors"))
    assert len(files) > len(TOLD)
    assert sum(file.stat().st_size for file in files) < 90 * MEGABYTE


@pytest.mark.data
@pytest.mark.usefixtures("data_folder")
def test_a_state_is_made_once_and_a_second_call_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ship, "PROTOCOLS", ("s2s",))
    steps: list[int] = []

    def report(name: str, told: FitProgress | None, notice: str) -> None:
        steps.extend([told.step] if told else [])

    def made() -> Iterator[fits.FittedState]:
        return ship.ship(["nafnet"], report, folder=tmp_path / "states", budget="0.05min")

    (state,) = made()
    first, ran = state.path.read_bytes(), len(steps)
    assert ran
    (again,) = made()
    assert again.path.read_bytes() == first
    assert len(steps) == ran
    told = json.loads((tmp_path / "states" / "nafnet-paper.json").read_text())
    assert told["state_sha256"] == again.sha256
    assert told["identity"]["degradation"] == "paper"


def test_what_does_not_learn_or_is_unknown_is_refused(tmp_path: Path) -> None:
    for name in ("gaussian", "nafnett"):
        with pytest.raises(InputError, match="is no restorer of this package that learns"):
            list(ship.ship([name], lambda *_: None, folder=tmp_path))


def test_what_does_not_ship_says_why(tmp_path: Path) -> None:
    notices: list[str] = []
    assert not list(ship.ship(["vit_mae_imagenet"], lambda *told: notices.append(told[2]), folder=tmp_path))
    assert all("does not ship: its 26 M" in notice for notice in notices)
    assert len(notices) == len(ship.PROTOCOLS)
