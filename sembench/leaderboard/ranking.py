"""From bundles to rows: the scores of each, and letters and ranks among those on equal data."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sembench.comparison import compare_rows
from sembench.errors import InputError
from sembench.execution.recorded import RecordedRun
from sembench.execution.records import LEFT_OUT
from sembench.leaderboard.bundle import place
from sembench.leaderboard.rows import Published, Score, columns_of
from sembench.marks import marks
from sembench.protocol import Protocol
from sembench.registry import METRICS, plugin
from sembench.results import summarise, with_flat_fields
from sembench.statistics import Interval

PLACED = ("letters", "rank", "rank_without_group", "ranked_cases", "ranked_groups", "separable", "missing", "marks")
"""What a row has from its table, not from its bundle."""

RELATIVE_TOLERANCE = 1e-9
"""By which a mean or a limit may differ where another version of numpy sums it up."""


def protocol_of(run: RecordedRun) -> Protocol:
    """The protocol as the run tells it; InputError where this version does not know such a one."""
    try:
        return Protocol.model_validate_json(json.dumps(run.description["protocol"]))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{run.folder}: its protocol is none that this version knows: {reason}") from error


def row_of(run: RecordedRun, bundle_sha256: str) -> Published:
    """What a bundle's row shows, without letters and ranks."""
    protocol = protocol_of(run)
    (row,) = run.rows
    (told,) = run.description["rows"]
    computed = [name for name in protocol.metrics.names if name in run.description["metrics"]]
    (summary,) = with_flat_fields(summarise([row], run.records, computed), run.flat)
    names = columns_of(protocol)
    scores = {name: Score(summary.metrics.get(name), summary.undefined.get(name, 0)) for name in names}
    fit = told.get("fit") or {}
    report = fit.get("report") or {}
    git = run.description.get("git") or {}
    environments = {str(record.get("environment", "")) for record in run.records} - {""}
    versions = {str(told.get("sembench", "")) for told in run.description.get("environments", {}).values()}
    return Published(
        row=row.row_id,
        restorer=row.name,
        kind=row.kind,
        version=_count(told.get("version")),
        settings=row.settings,
        variant=row.variant,
        data=str(run.description["data"]),
        cases=len(run.records),
        solved=summary.solved,
        failed=summary.failed,
        left_out=summary.left_out,
        groups=len({record["group"] for record in run.records if record["status"] != LEFT_OUT}),
        letters="",
        rank=None,
        rank_without_group=None,
        ranked_cases=None,
        ranked_groups=None,
        separable="",
        missing=None,
        marks="",
        budget=str((fit.get("identity") or {}).get("budget", [""])[0]),
        fit_steps=_count(report.get("steps")),
        parameters=_count(report.get("parameters")),
        multiply_adds_per_px=_amount(report.get("multiply_adds_per_px")),
        fit_seconds=_amount(report.get("seconds")),
        fit_device=str(report.get("device") or ""),
        device=_all(str(record.get("device", "")) for record in run.records),
        seconds_median=summary.seconds,
        peak_memory_mb=max((r["peak_memory_mb"] for r in run.records if "peak_memory_mb" in r), default=None),
        state_sha256=str(fit.get("state_sha256") or ""),
        state_from=str(fit.get("state_from") or ""),
        weights_sha256=str(told.get("weights_sha256") or ""),
        source_sha256=str(told.get("source_sha256") or ""),
        licence=str(told.get("licence") or ""),
        environment=_all(environments),
        sembench=_all(versions),
        commit=f"{git['commit']}{'' if git.get('clean') else '+'}" if git.get("commit") else "",
        started=str(run.description.get("started") or ""),
        protocol_digest=str(run.description["protocol_digest"]),
        data_digest=str(run.description["data_digest"]),
        bundle=place(bundle_sha256),
        bundle_sha256=bundle_sha256,
        scores=scores,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _amount(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _all(values: Iterable[str]) -> str:
    return " ".join(sorted(set(values) - {""}))


def ranked(rows: Iterable[Published], runs: Mapping[str, RecordedRun]) -> list[Published]:
    """The rows with letters and ranks, restorers on equal data among each other; runs: bundle -> what it holds."""
    by_data: dict[str, list[Published]] = {}
    for row in rows:
        by_data.setdefault(row.data_digest, []).append(row)
    return [placed for own in by_data.values() for placed in _ranked(own, runs)]


def _ranked(rows: Sequence[Published], runs: Mapping[str, RecordedRun]) -> list[Published]:
    unplaced: dict[str, Any] = {name: "" if name in ("letters", "separable") else None for name in PLACED}
    plain, records = [runs[row.bundle].rows[0] for row in rows], [r for row in rows for r in runs[row.bundle].records]
    marked = marks(plain, records)
    told = {row.row: "; ".join(mark.short for mark in marked.get(row.row, ())) for row in rows}
    rows = [replace(row, **(unplaced | {"marks": told[row.row]})) for row in rows]
    own = [runs[row.bundle] for row in sorted(rows, key=lambda row: row.row) if row.kind == "restorer"]
    if not own:
        return rows
    primary = plugin(METRICS, protocol_of(own[0]).metrics.primary).load()
    try:
        found = compare_rows([run.rows[0] for run in own], [record for run in own for record in run.records], primary)
    except InputError:
        return rows
    placed: dict[str, dict[str, Any]] = {out.row_id: {"missing": out.missing} for out in found.unranked}
    placed |= {
        contender.row_id: {
            "letters": contender.letters,
            "rank": contender.rank,
            "rank_without_group": contender.rank_without_group,
            "ranked_cases": found.cases,
            "ranked_groups": found.groups,
            "separable": "yes" if found.separable else "no",
            "missing": contender.missing,
        }
        for contender in found.contenders
    }
    return [replace(row, **placed.get(row.row, {})) for row in rows]


def differing(told: Published, made: Published, *, placed: bool) -> list[str]:
    """The columns, of ranks and letters or of all the others, in which a row is not what its bundle gives."""
    names = [field.name for field in fields(Published) if (field.name in PLACED) == placed and field.name != "scores"]
    odd = [name for name in names if not _same(getattr(told, name), getattr(made, name))]
    if not placed:
        metrics = {*told.scores, *made.scores}
        odd += sorted(name for name in metrics if not _same_score(told.scores.get(name), made.scores.get(name)))
    return odd


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE)
    return bool(one == other)


def _same_score(one: Score | None, other: Score | None) -> bool:
    if one is None or other is None or one.undefined != other.undefined:
        return False
    if one.interval is None or other.interval is None:
        return one.interval is other.interval
    pairs = zip(_parts(one.interval), _parts(other.interval), strict=True)
    scale = max(abs(one.interval.mean), 1e-12)
    return all(
        abs(a - b) <= RELATIVE_TOLERANCE * max(scale, abs(a))
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in pairs
    )


def _parts(interval: Interval) -> tuple[Any, ...]:
    return interval.mean, interval.low, interval.high, interval.n, interval.groups, interval.method
