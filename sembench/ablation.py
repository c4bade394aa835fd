"""Ablations: variants of restorers from a list, fitted at one budget, compared with the first of them case by case."""

import csv
import io
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sembench.comparison import Comparison, compare_rows
from sembench.errors import InputError
from sembench.execution import fits
from sembench.execution.plan import Row
from sembench.execution.prepare import prepare
from sembench.execution.records import Record
from sembench.execution.request import FitListener, Listener, RunPlan, RunRequest
from sembench.execution.run import execute
from sembench.metrics.table import MetricSpec
from sembench.micrograph import write_atomically
from sembench.registry import METRICS, find_method, plugin
from sembench.report import write_derived
from sembench.results import summarise
from sembench.statistics import Interval

TABLED = ("psnr_matched", "ssim_matched", "lpips_matched")
"""Metrics of the table where the protocol has them; else its primary one alone."""


class Variant(BaseModel):
    """One line of an ablation: a restorer with settings that differ from its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    restorer: str
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)


class VariantList(BaseModel):
    """A list of variants; the first is what the others are compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str
    variant: tuple[Variant, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _named_apart(self) -> "VariantList":
        names = [variant.name for variant in self.variant]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"variant {doubled[0]!r} is named twice")
        return self


@dataclass(frozen=True)
class Finding:
    """What one metric says of a variant: its mean, and the paired difference from the first (None for the first)."""

    mean: Interval
    difference: Interval | None
    mark: str


@dataclass(frozen=True, eq=False)
class AblationRow:
    """A variant as measured: its findings by metric (None where it has no value), and what its fit reports."""

    variant: Variant
    row: Row
    findings: dict[str, Finding | None]
    failed: int
    fit: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Variants in the order of their list, the metrics they are compared by, the run folder and what it counted."""

    title: str
    rows: tuple[AblationRow, ...]
    metrics: tuple[MetricSpec, ...]
    folder: Path
    cases: int
    groups: int
    separable: bool
    notices: tuple[str, ...]


def variant_list(target: str) -> VariantList:
    """A list from a TOML file, or the one that a restorer brings along under its name.

    Raises InputError, one line, for a file that is none and for a restorer without a list.
    """
    path = Path(target)
    if path.suffix != ".toml":
        found = getattr(find_method(target).cls, "ablations", None)
        if found is None:
            raise InputError(f"restorer {target!r} brings no list of variants: give a TOML file")
        path = Path(found)
    try:
        return VariantList(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of variants: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {f'{key}: ' if key else ''}{message}") from error


def plan(variants: VariantList, request: RunRequest) -> list[RunPlan]:
    """One plan a variant, all of one folder; every refusal comes from here, before anything is fitted."""
    plans = []
    for variant in variants.variant:
        settings = tuple(f"{key}={value}" for key, value in variant.settings.items())
        plans.append(prepare(replace(request, restorers=(variant.restorer,), settings=settings)))
    ids = [one.rows[0].row_id for one in plans]
    for index, row_id in enumerate(ids):
        if row_id in ids[:index]:
            names = [variant.name for variant in variants.variant]
            raise InputError(f"variants {names[ids.index(row_id)]!r} and {names[index]!r} are the same")
    return plans


def ablate(
    variants: VariantList,
    plans: list[RunPlan],
    request: RunRequest,
    on_record: Callable[[str], Listener] | None = None,
    on_fit: FitListener | None = None,
) -> Ablation:
    """Fit and run what is missing, variant by variant, and compare; the same request goes on where it stopped.

    on_record: called with a variant's name, gives what is told of its records. ablation.csv is written to the folder.
    """
    records: list[Record] = []
    rows: list[Row] = []
    for variant, one in zip(variants.variant, plans, strict=True):
        listener = on_record(variant.name) if on_record else None
        records += execute(one, request, listener, on_fit)
        rows.append(replace(one.rows[0], name=variant.name, variant={}))
    merged = replace(plans[0], rows=tuple(rows), fit_plans={k: v for one in plans for k, v in one.fit_plans.items()})
    write_derived(merged, records)
    found = _findings(variants, merged, records)
    write_atomically(found.folder / "ablation.csv", _as_csv(found).encode())
    return found


def _findings(variants: VariantList, merged: RunPlan, records: list[Record]) -> Ablation:
    names = [name for name in TABLED if name in merged.metrics] or [merged.protocol.metrics.primary]
    metrics = [plugin(METRICS, name).load() for name in names]
    compared: dict[str, Comparison] = {
        metric.name: compare_rows(merged.rows, records, metric, most_missing=1.0) for metric in metrics
    }
    failed = {line.row.row_id: line.failed for line in summarise(merged.rows, records, merged.metrics)}
    lines = []
    for variant, row in zip(variants.variant, merged.rows, strict=True):
        findings = {name: _finding(comparison, row.name, merged.rows[0].name) for name, comparison in compared.items()}
        state = fits.find(merged.fit_plans[row.row_id]) if row.row_id in merged.fit_plans else None
        lines.append(AblationRow(variant, row, findings, failed[row.row_id], dict(state.report) if state else {}))
    first = compared[names[0]]
    notices = tuple(dict.fromkeys(notice for one in compared.values() for notice in one.notices))
    title, folder = variants.title, merged.folder
    return Ablation(title, tuple(lines), tuple(metrics), folder, first.cases, first.groups, first.separable, notices)


def _finding(comparison: Comparison, name: str, reference: str) -> Finding | None:
    mean = next((contender.mean for contender in comparison.contenders if contender.name == name), None)
    if mean is None:
        return None
    if name == reference or all(contender.name != reference for contender in comparison.contenders):
        return Finding(mean, None, "")
    pair = next(pair for pair in comparison.against(reference) if pair.first == name)
    return Finding(mean, pair.interval, comparison.mark(pair))


def _as_csv(found: Ablation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["variant", "restorer", "row", "steps", "seconds", "parameters_trained", "failed"]
    for metric in found.metrics:
        unit = f"_{metric.unit.lower()}" if metric.unit else ""
        head += [f"{metric.name}{unit}", *(f"{metric.name}_{what}{unit}" for what in ("less_first", "low", "high"))]
        head.append(f"{metric.name}_mark")
    writer.writerow(head)
    for line in found.rows:
        told = [line.fit.get(name, "") for name in ("steps", "seconds", "parameters_trained")]
        cells: list[Any] = [line.variant.name, line.variant.restorer, line.row.row_id, *told, line.failed]
        for metric in found.metrics:
            finding = line.findings[metric.name]
            difference = finding.difference if finding else None
            cells.append(finding.mean.mean if finding else "")
            cells += [difference.mean, difference.low, difference.high] if difference else ["", "", ""]
            cells.append(finding.mark if finding else "")
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def as_json(found: Ablation) -> dict[str, Any]:
    """The ablation as plain values."""
    return {
        "title": found.title,
        "run": str(found.folder),
        "cases": found.cases,
        "groups": found.groups,
        "separable": found.separable,
        "notices": list(found.notices),
        "variants": [
            {
                "variant": line.variant.name,
                "restorer": line.variant.restorer,
                "settings": dict(line.variant.settings),
                "row": line.row.row_id,
                "failed": line.failed,
                "fit": {key: value for key, value in line.fit.items() if key != "curve"},
                "metrics": {name: _plain(finding) for name, finding in line.findings.items()},
            }
            for line in found.rows
        ],
    }


def _plain(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    told: dict[str, Any] = {"mean": finding.mean.mean, "low": finding.mean.low, "high": finding.mean.high}
    if finding.difference:
        between = finding.difference
        told |= {"difference": between.mean, "difference_low": between.low, "difference_high": between.high}
    return told | {"mark": finding.mark}
