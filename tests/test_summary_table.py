"""The table that `sembench run` prints, of records whose scores are known."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import protocol_text

from sembench.cases import PHANTOM, plan_cases
from sembench.commands import run as module
from sembench.commands.run import _show_summary
from sembench.execution.plan import Row
from sembench.execution.request import RunPlan
from sembench.protocol import parse
from sembench.results import ordered, ordering_metric, summarise
from sembench.statistics import mean_interval

GROUPS = 12
SKEWED = 15 + np.random.default_rng(4).lognormal(1.2, 0.6, GROUPS)


def _shown(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    psnr: dict[str, Sequence[float]],
    names: Sequence[str] = ("ssim", "psnr"),
) -> str:
    """What is printed of a run of one case a group; psnr: restorer -> its values."""
    protocol = parse(protocol_text(metrics=names), "small.toml")
    rows = tuple(Row(name, "", "restorer", {}, f"{name}-1") for name in psnr)
    count = len(next(iter(psnr.values())))
    cases = plan_cases(protocol, PHANTOM, limit=count)
    records: list[dict[str, Any]] = []
    for row in rows:
        for number, spec in enumerate(cases.specs):
            values = dict.fromkeys(protocol.metrics.names, 0.5 + number / 100) | {"psnr": float(psnr[row.name][number])}
            about = {"row": row.row_id, "restorer": row.name, "kind": row.kind, "case": spec.case_id}
            records.append({**about, "group": f"g{number}", "status": "ok", "metrics": values, "seconds": {}})
    plan = RunPlan(protocol, cases, rows, protocol.metrics.names, {}, folder, ())
    summary = summarise(plan.rows, records, plan.metrics)
    _show_summary(plan, ordered(summary, ordering_metric(protocol, plan.metrics)), records)
    return capsys.readouterr().out


def _cells(output: str, name: str) -> list[str]:
    line = next(line for line in output.splitlines() if line.startswith(f"│ {name}"))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_primary_metric_has_the_limits_of_its_interval_and_the_others_their_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = mean_interval(SKEWED, list(range(GROUPS)))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean > 1.3 * (found.mean - found.low), "this interval is not symmetric"
    output = _shown(tmp_path, capsys, {"input": SKEWED, "gaussian": SKEWED + 0.01})
    assert f"{found.mean:.2f} [{found.low:.1f}, {found.high:.1f}]" in _cells(output, "input")
    assert "0.555" in _cells(output, "input")
    assert "±" not in output
    assert "half width" not in output
    footer = " ".join(output.split())
    assert "in brackets the 95 % interval of psnr over groups" in footer
    assert "those of the other metrics are in summary.csv and report.html" in footer


def test_limits_have_as_many_digits_as_they_bear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = 20 + SKEWED / 1e3
    found = mean_interval(narrow, list(range(GROUPS)))
    output = _shown(tmp_path, capsys, {"input": narrow, "gaussian": narrow - 1})
    assert f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]" in _cells(output, "input")


def test_without_an_interval_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = _shown(tmp_path, capsys, {"input": [20.0, 21.0], "gaussian": [19.0, 22.0]})
    assert "20.50" in _cells(output, "input")
    assert "no interval of psnr: too few groups" in output
    assert "in brackets" not in output


def test_with_few_groups_the_footer_says_that_nothing_can_be_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"input": SKEWED[:5], "gaussian": SKEWED[:5] + 3}
    footer = _shown(tmp_path, capsys, few)
    assert "too few groups to separate: with 5 groups no p falls below 0.062, and 1 pair must be tested" in footer
    assert "nothing can be told apart" in footer
    many = {"input": SKEWED, "gaussian": SKEWED + 3}
    footer = _shown(tmp_path, capsys, many)
    assert "letters: on psnr, those who share one are not told apart" in footer
    assert "too few" not in footer


def test_a_narrow_terminal_hides_other_metrics_before_the_primary_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import rich.console

    class Terminal(rich.console.Console):
        def __init__(self, **told: Any) -> None:
            super().__init__(**{"width": 62, "force_terminal": True, "color_system": None, **told})

    monkeypatch.setattr(rich.console, "Console", Terminal)
    output = _shown(
        tmp_path, capsys, {"input": SKEWED, "gaussian": SKEWED + 3}, ["ssim", "psnr_matched", "ssim_matched", "psnr"]
    )
    assert "for want of width without ssim, psnr_matched, ssim_matched" in output
    assert "psnr ↑" in output


@pytest.mark.parametrize(("done", "wanted"), [(1, "25 s/case"), (2, "12 s/case"), (10, "2.5 s/case"), (50, "2.0/s")])
def test_progress_tells_seconds_a_case_where_less_than_one_a_second_is_done(
    monkeypatch: pytest.MonkeyPatch, done: int, wanted: str
) -> None:
    from rich.console import Console

    clock = iter([100.0, *[100.0] * (done - 1), 125.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock, 125.0))
    errors = io.StringIO()
    with module.CaseProgress(Console(file=errors, width=200)) as told:
        for number in range(done):
            told({"restorer": "tv", "status": "ok"}, done - number)
    assert f"{done} of {done + 1} ({wanted}, about " in errors.getvalue()
    assert "0.0/s" not in errors.getvalue()
