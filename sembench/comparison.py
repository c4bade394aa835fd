"""Restorers compared pair by pair on the cases that all ranked ones solved, from the records of one run or two."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.errors import InputError
from sembench.execution.plan import Row
from sembench.execution.recorded import RecordedRun, read_run
from sembench.execution.records import LEFT_OUT, Record, key
from sembench.metrics.table import MetricSpec
from sembench.registry import METRICS, plugin, suggestion
from sembench.statistics import Interval, mean_interval
from sembench.statistics.pairs import Pair, can_separate, compare_pairs, smallest_p
from sembench.statistics.ranks import Places, letters, rank_intervals, ranks_without_each_group

TOO_FEW_GROUPS = "too few groups to separate"

MOST_MISSING = 0.1
"""Share of the cases on which a restorer may have no value and be ranked all the same."""


@dataclass(frozen=True)
class Contender:
    """One restorer's place: mean over the shared cases, letters, and its ranks (None where the metric has no better).

    rank: from 1 + those established better to n - those established worse; rank_without_group: of its mean, lowest and
    highest as each group is left out once. failed, undefined: cases without a restored image, and without a value;
    missing: cases without a value of those on which any restorer has one.
    """

    name: str
    row_id: str
    mean: Interval
    letters: str
    rank: Places | None
    rank_without_group: Places | None
    failed: int
    undefined: int
    missing: int


@dataclass(frozen=True)
class Unranked:
    """A restorer without a value on more than a tenth of the cases on which any has one: missing of so many cases.

    mean: over its own cases, which are not those of the others; None where it has no value at all.
    """

    name: str
    row_id: str
    mean: Interval | None
    failed: int
    undefined: int
    missing: int
    cases: int

    @property
    def reason(self) -> str:
        """Why it is not ranked, in a few words."""
        return f"no value on {self.missing} of {self.cases} cases"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Ranked restorers on the cases that all of them solved, best mean first, and every pair of them.

    controls: mean of each control that has a value on all of these cases. separable: whether there are groups enough
    to tell any pair apart. unranked: restorers that lack too many values, as those would decide on which cases the
    others are compared. notices: what the reader must know of cases and rows left out. pairs_in_run: those
    there would be, had none of the run's restorers been left out by name; 0 where that is not known.
    """

    metric: MetricSpec
    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    controls: dict[str, Interval]
    cases: int
    groups: int
    separable: bool
    unranked: tuple[Unranked, ...] = ()
    notices: tuple[str, ...] = ()
    pairs_in_run: int = 0

    @property
    def too_few(self) -> str:
        """Why nothing can be told apart, where the groups are too few; else empty."""
        if self.separable:
            return ""
        groups, pairs = f"{self.groups} group{'s'[: self.groups != 1]}", len(self.pairs)
        least = f"with {groups} no p falls below {smallest_p(self.groups):.2g}"
        return f"{least}, and {pairs} pair{'s'[: pairs != 1]} must be tested"

    def against(self, name: str) -> tuple[Pair, ...]:
        """Every other restorer less the named one, p values still corrected for all pairs; InputError if unknown."""
        names = [contender.name for contender in self.contenders]
        if name not in names:
            for contender in self.contenders:
                if contender.row_id == name:
                    return self.against(contender.name)
            for out in self.unranked:
                if name in (out.name, out.row_id):
                    raise InputError(
                        f"--against {name}: has {out.reason} and is not ranked: name all to compare with --restorer"
                    )
            if name in self.controls:
                raise InputError(
                    f"--against {name}: is a control, told the truth: compare with one of {', '.join(names)}"
                )
            variants = [other for other in names if other.startswith(f"{name} (")]
            if len(variants) == 1:
                return self.against(variants[0])
            if variants:
                raise InputError(f"--against {name}: there are {', '.join(variants)}: name one of them")
            raise InputError(f"--against {name}: no such restorer is compared here: {suggestion(name, names)}")
        turned = (pair.reversed() if pair.first == name else pair for pair in self.pairs)
        return tuple(pair for pair in turned if pair.second == name)

    def mark(self, pair: Pair) -> str:
        """What is known of a pair: better, worse (the first one), different; equivalent; undecided, or why not."""
        told = []
        if pair.separated:
            told.append("different" if pair.better is None else "better" if pair.better == pair.first else "worse")
        if pair.equivalent:
            told.append("equivalent")
        return ", ".join(told) or ("undecided" if self.separable else TOO_FEW_GROUPS)


def equivalence_margin(metric: MetricSpec) -> float | None:
    """The difference that does not matter: 0.1 dB, 0.05 px, 0.005 of SSIM and LPIPS; None for other metrics."""
    if metric.name in ("ssim", "ssim_matched", "lpips", "lpips_matched"):
        return 0.005
    return {"dB": 0.1, "px": 0.05}.get(metric.unit)


def compare_rows(
    rows: Sequence[Row],
    records: Iterable[Record],
    metric: MetricSpec,
    *,
    most_missing: float = MOST_MISSING,
    names: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare the rows of a run by one metric; controls stand apart. names: by row id (None: row_labels).

    Restorers without a value on more than a share `most_missing` of the cases on which any restorer has one are not
    compared, nor are those without any value. Raises InputError where fewer than two are left, no case is shared, or
    records contradict themselves.
    """
    names = names or row_labels(rows)
    by_row, groups = _by_row(rows, records)
    values = {row.row_id: _values(by_row[row.row_id].values(), metric.name) for row in rows}
    restorers = [row for row in rows if row.kind != "control"]
    every = set().union(*(values[row.row_id] for row in restorers))
    missing = {row.row_id: len(every) - len(values[row.row_id]) for row in restorers}
    valued = [row for row in restorers if values[row.row_id] and missing[row.row_id] <= most_missing * len(every)]
    counts = {row.row_id: _counts(by_row[row.row_id].values(), metric.name) for row in restorers}
    unranked = tuple(
        Unranked(
            names[row.row_id],
            row.row_id,
            mean_interval(list(own.values()), [groups[case] for case in own]) if (own := values[row.row_id]) else None,
            *counts[row.row_id],
            missing[row.row_id],
            len(every),
        )
        for row in restorers
        if row not in valued
    )
    shared, notice = _shared(metric, {names[row.row_id]: values[row.row_id] for row in valued}, unranked)
    notices = [f"{out.name} has {out.reason} and is not ranked" for out in unranked if out.mean]
    notices += [f"{out.name} has no value of {metric.name}" for out in unranked if not out.mean]
    notices += [notice] if notice else []
    labels = [groups[case] for case in shared]
    higher = {"higher": True, "lower": False, "none": None}[metric.better]
    if higher is not None:
        valued.sort(key=lambda row: sum(values[row.row_id][case] for case in shared), reverse=higher)
    scores = {names[row.row_id]: [values[row.row_id][case] for case in shared] for row in valued}
    pairs = compare_pairs(scores, labels, higher=higher, margin=equivalence_margin(metric))
    grouped = letters(list(scores), [(pair.first, pair.second) for pair in pairs if pair.separated])
    ranks: Mapping[str, Places] = {}
    robust: Mapping[str, Places] | None = None
    if higher is not None:
        ranks = rank_intervals(list(scores), [_better_first(pair) for pair in pairs if pair.separated])
        robust = ranks_without_each_group(scores, labels, higher=higher)
    contenders = tuple(
        Contender(
            name,
            row.row_id,
            mean_interval(scores[name], labels),
            grouped[name],
            ranks.get(name),
            robust[name] if robust else None,
            *counts[row.row_id],
            missing[row.row_id],
        )
        for name, row in zip(scores, valued, strict=True)
    )
    controls = {
        names[row.row_id]: mean_interval([values[row.row_id][case] for case in shared], labels)
        for row in rows
        if row.kind == "control" and set(shared) <= values[row.row_id].keys()
    }
    count = len(set(labels))
    separable = can_separate(count, len(pairs))
    return Comparison(
        metric, contenders, tuple(pairs), controls, len(shared), count, separable, unranked, tuple(notices)
    )


def _counts(records: Iterable[Record], metric: str) -> tuple[int, int]:
    """The cases without a restored image, and those without a value."""
    kept = list(records)
    return sum(record["status"] == "failed" for record in kept), sum(_undefined(record, metric) for record in kept)


def _by_row(rows: Sequence[Row], records: Iterable[Record]) -> tuple[dict[str, dict[str, Record]], dict[str, str]]:
    """The rows' records by row id and case, without cases left out for everybody; and the group of each case."""
    by_row: dict[str, dict[str, Record]] = {row.row_id: {} for row in rows}
    groups: dict[str, str] = {}
    for record in records:
        if record["row"] in by_row and record["status"] != LEFT_OUT:
            by_row[record["row"]][record["case"]] = record
            known = groups.setdefault(record["case"], record["group"])
            if known != record["group"]:
                raise InputError(
                    f"case {record['case']} is of group {known} and of group {record['group']}: mend the records"
                )
    return by_row, groups


def _shared(
    metric: MetricSpec, values: Mapping[str, dict[str, float]], unranked: Sequence[Unranked]
) -> tuple[list[str], str]:
    """The cases on which every restorer has a value, sorted; and what is to be said of the others, if there are any."""
    if len(values) < 2:
        having = f"only {next(iter(values))} has" if values else "no restorer has"
        many = [out for out in unranked if out.mean]
        if many:
            lacking = ", ".join(f"{out.name} {out.missing}" for out in many)
            raise InputError(
                f"{having} values of {metric.name} on enough of the {many[0].cases} cases (without one: {lacking}): "
                "name those to compare all the same with --restorer"
            )
        raise InputError(f"{having} values of {metric.name}: a comparison needs two restorers at least")
    shared = set.intersection(*(set(own) for own in values.values()))
    if not shared:
        fewest = min(values, key=lambda name: len(values[name]))
        raise InputError(
            f"no case has a value of {metric.name} from all {len(values)} restorers: choose fewer with --restorer; "
            f"{fewest} has the fewest values, {len(values[fewest])}"
        )
    every = set.union(*(set(own) for own in values.values()))
    missing = ", ".join(f"{name} {len(every) - len(own)}" for name, own in values.items() if len(own) < len(every))
    notice = f"{len(every) - len(shared)} of {len(every)} cases are left out for want of a value: {missing}"
    return sorted(shared), notice if missing else ""


def _better_first(pair: Pair) -> tuple[str, str]:
    return (pair.first, pair.second) if pair.better == pair.first else (pair.second, pair.first)


def _values(records: Iterable[Record], metric: str) -> dict[str, float]:
    """Case -> value of the solved ones that have one."""
    found = {}
    for record in records:
        if record["status"] != "ok":
            continue
        value = record.get("metrics", {}).get(metric)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            what = f"{record.get('restorer')} on {record['case']}"
            raise InputError(f"{what}: {metric} is recorded as {value!r}: remove that line to redo its case")
        found[record["case"]] = float(value)
    return found


def _undefined(record: Record, metric: str) -> bool:
    """Whether a solved case has no value of a metric that applies to it."""
    if record["status"] != "ok" or metric in record.get("inapplicable", ()):
        return False
    return record.get("metrics", {}).get(metric) is None


def row_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Row id -> the restorer's name, with its variant where it is not the protocol's own row.

    Where that stands for several rows, with the settings that tell them apart, or the row id where none do.
    """
    labels = {}
    for row in rows:
        namesakes = [other for other in rows if other.label == row.label]
        described = {other.row_id: _distinct_settings(other, namesakes) for other in namesakes}
        if len(namesakes) == 1:
            labels[row.row_id] = row.label
        elif all(described.values()) and len(set(described.values())) == len(namesakes):
            told = ", ".join(text for text in (row.variant_told, described[row.row_id]) if text)
            labels[row.row_id] = f"{row.name} ({told})"
        else:
            labels[row.row_id] = row.row_id
    doubled = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {row_id: row_id if label in doubled else label for row_id, label in labels.items()}


def _distinct_settings(row: Row, namesakes: Sequence[Row]) -> str:
    def differs(setting: str) -> bool:
        return len({json.dumps(other.settings.get(setting), sort_keys=True) for other in namesakes}) > 1

    settings = [f"{name}={value}" for name, value in sorted(row.settings.items()) if differs(name)]
    return ", ".join(settings)


def compare_runs(
    folders: Sequence[Path], metric: str | None = None, restorers: Sequence[str] = (), against: str | None = None
) -> tuple[RecordedRun, Comparison]:
    """Compare the restorers of one run or two of one protocol by a metric (None: the protocol's primary one).

    Where both runs hold a row's record of a case, the first run's counts. restorers: only these names, and then the
    one of `against`; all if empty. The first run comes back beside the comparison. Raises InputError, one line, for
    whatever does not fit.
    """
    if not 1 <= len(folders) <= 2:
        raise InputError(f"{len(folders)} run folders: give one or two")
    runs = [read_run(folder) for folder in folders]
    for what in ("protocol_digest", "data_digest"):
        digests = [str(run.description[what]) for run in runs]
        if len(set(digests)) > 1:
            each = " and ".join(f"{run.folder} of {digest[:8]}" for run, digest in zip(runs, digests, strict=True))
            noun = what.replace("_", " ")
            raise InputError(f"runs differ in their {noun}, {each}: only runs of equal cases can be compared")
    spec = _metric(runs, metric)
    rows = {row.row_id: row for run in reversed(runs) for row in run.rows}
    chosen = _chosen(list(rows.values()), restorers, against)
    records = {key(record): record for run in reversed(runs) for record in run.records}
    notices = [f"{run.folder}: the last record is torn and left out" for run in runs if run.torn]
    if len(runs) == 2:
        notices += _contradictions(runs[0], runs[1], spec)
    names = row_labels(list(rows.values()))
    found = compare_rows(chosen, records.values(), spec, most_missing=1.0 if restorers else MOST_MISSING, names=names)
    in_run = _pairs_in_run(rows.values(), records.values(), spec.name) if restorers else len(found.pairs)
    return runs[0], replace(found, notices=(*notices, *found.notices), pairs_in_run=in_run)


def _pairs_in_run(rows: Iterable[Row], records: Iterable[Record], metric: str) -> int:
    """The pairs of all restorers that have a value."""
    valued = {record["row"] for record in records if record.get("metrics", {}).get(metric) is not None}
    return math.comb(sum(row.kind != "control" and row.row_id in valued for row in rows), 2)


def _metric(runs: Sequence[RecordedRun], name: str | None) -> MetricSpec:
    protocol = runs[0].description["protocol"]
    recorded = {metric for run in runs for record in run.records for metric in record.get("metrics", ())}
    if name is None:
        name = str(protocol.get("metrics", {}).get("primary"))
    if name not in recorded:
        raise InputError(f"metric {name!r} is not recorded in {runs[0].folder}: {suggestion(name, recorded)}")
    loaded: MetricSpec = plugin(METRICS, name).load()
    return loaded


def _chosen(rows: list[Row], names: Sequence[str], against: str | None) -> list[Row]:
    """The rows that are named, all where none is; controls always stay, as reference lines."""
    restorers = [row for row in rows if row.kind != "control"]
    labels = row_labels(rows)
    known = {row.name for row in restorers}
    for name in names:
        if not any(name in (row.name, row.row_id, labels[row.row_id]) for row in restorers):
            if any(row.name == name for row in rows):
                raise InputError(f"--restorer {name}: is a control, told the truth, and not compared: leave it out")
            raise InputError(f"--restorer {name}: no such restorer in these runs: {suggestion(name, known)}")
    if names:
        if against is not None:
            exact = [row for row in restorers if against in (row.row_id, labels[row.row_id])]
            added = exact or [row for row in restorers if row.name == against]
            if not added and any(row.name == against for row in rows):
                raise InputError(f"--against {against}: is a control, told the truth: compare with a restorer")
            if not added:
                raise InputError(f"--against {against}: no such restorer in these runs: {suggestion(against, known)}")
            names = [*names, *(row.row_id for row in added)]
        rows = [row for row in rows if row.kind == "control" or {row.name, row.row_id, labels[row.row_id]} & {*names}]
    count = sum(row.kind != "control" for row in rows)
    if count < 2:
        raise InputError(f"{count} restorer{'' if count == 1 else 's'} to compare: a comparison needs two at least")
    return rows


def _contradictions(first: RecordedRun, second: RecordedRun, metric: MetricSpec) -> list[str]:
    """Notices of what two runs of the same cases should agree on and do not."""
    notices = []
    inputs = {record["case"]: record.get("input_sha256") for record in first.records if "input_sha256" in record}
    moved = {
        record["case"]
        for record in second.records
        if inputs.get(record["case"], record.get("input_sha256"))
        != record.get("input_sha256", inputs.get(record["case"]))
    }
    if moved:
        notices.append(f"{len(moved)} cases had other input pixels in the two runs: differences hold that too")
    before = {key(record): record for record in first.records}
    changed: Counter[str] = Counter()
    for record in second.records:
        known = before.get(key(record))
        if known is None:
            continue
        values = [other.get("metrics", {}).get(metric.name) for other in (known, record)]
        if None in values:
            same = values[0] == values[1]
        else:
            same = abs(float(values[0]) - float(values[1])) <= metric.tolerance
        changed[str(record["restorer"])] += not same
    notices += [
        f"{name}: the runs disagree on {count} cases; the first one counts" for name, count in changed.items() if count
    ]
    return notices


def as_json(run: RecordedRun, comparison: Comparison, pairs: Iterable[Pair]) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "protocol": run.description["protocol"]["name"],
        "protocol_digest": run.description["protocol_digest"],
        "data": run.description.get("data"),
        "metric": comparison.metric.name,
        "unit": comparison.metric.unit,
        "better": comparison.metric.better,
        "equivalence_margin": equivalence_margin(comparison.metric),
        "cases": comparison.cases,
        "groups": comparison.groups,
        "separable": comparison.separable,
        "pairs_corrected_for": len(comparison.pairs),
        "pairs_in_run": comparison.pairs_in_run,
        "notices": list(comparison.notices),
        "restorers": [
            {
                "restorer": contender.name,
                "row": contender.row_id,
                **_interval(contender.mean, "mean"),
                "letters": contender.letters,
                "rank": contender.rank,
                "rank_without_group": contender.rank_without_group,
                "failed": contender.failed,
                "undefined": contender.undefined,
            }
            for contender in comparison.contenders
        ],
        "unranked": [
            {
                "restorer": out.name,
                "row": out.row_id,
                "mean": out.mean.mean if out.mean else None,
                "failed": out.failed,
                "undefined": out.undefined,
                "missing": out.missing,
                "cases": out.cases,
            }
            for out in comparison.unranked
        ],
        "controls": {name: interval.mean for name, interval in comparison.controls.items()},
        "pairs": [
            {
                "restorer": pair.first,
                "against": pair.second,
                **_interval(pair.interval, "difference"),
                "interval": pair.interval.method,
                "p": pair.p,
                "p_holm": pair.p_holm,
                "wins": pair.wins,
                "losses": pair.losses,
                "ties": pair.ties,
                "separated": pair.separated,
                "equivalent": pair.equivalent,
                "mark": comparison.mark(pair),
            }
            for pair in pairs
        ],
    }


def _interval(interval: Interval, name: str) -> dict[str, float | None]:
    return {name: interval.mean, "low": interval.low, "high": interval.high}
