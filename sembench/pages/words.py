"""What results show, in plain sentences: who is ahead, who cannot be told apart, who biases CD, what was left out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sembench.comparison import Comparison, equivalence_margin
from sembench.execution.plan import Row
from sembench.execution.records import LEFT_OUT, Record
from sembench.marks import Bias, Mark
from sembench.pages.crosses import MOST_REASONS
from sembench.pages.numbers import counted, fixed, signed
from sembench.pages.standings import sharing
from sembench.statistics import Interval

Sentences = list[tuple[str, list[str]]]


def summary(
    comparison: Comparison | str,
    labels: Mapping[str, str],
    rows: Sequence[Row],
    records: Sequence[Record],
    marks: Mapping[str, Sequence[Mark]],
    biases: Mapping[str, Bias],
) -> Sentences:
    """Pairs of a subject and its sentences; comparison: or why there is none; labels: row id -> name."""
    told: Sentences = []
    if isinstance(comparison, str):
        told.append(("Compared", [f"Nothing: {comparison}."]))
    else:
        told += _standing(comparison)
    told += _bias(biases, labels)
    lost = [
        f"{labels[row.row_id]}: {mark.told}."
        for row in rows
        for mark in marks.get(row.row_id, ())
        if mark.short.startswith("SSIM")
    ]
    if lost:
        told.append(("Lost structure", lost))
    told += _missing(labels, rows, records, () if isinstance(comparison, str) else comparison.notices)
    return told


def basis(cases: int, ranked: int, unranked: int) -> str:
    """On what letters and ranks rest, in a sentence or two."""
    solved = f"{counted(cases, 'case')} that all {ranked} {'ranked ' if unranked else ''}restorers solved"
    told = f"Those who share a letter are not told apart; letters and ranks are of the {solved}."
    if not unranked:
        return told
    missing = "Who lacks a value on more than a tenth of the cases stands below, unranked: its mean is of other cases."
    return f"{told} {missing}"


def _standing(comparison: Comparison) -> Sentences:
    metric, contenders = comparison.metric, comparison.contenders
    unit = f" {metric.unit}" if metric.unit else ""
    where = f"{counted(comparison.cases, 'case')} in {counted(comparison.groups, 'group')}"
    told: Sentences = []
    first = contenders[0]
    if metric.better != "none":
        others = len(contenders) - 1
        beaten = sum(pair.better == first.name for pair in comparison.pairs)
        every = "every other ranked restorer" if comparison.unranked else "every other restorer"
        which = {0: "none of the others", others: every}.get(beaten, f"{beaten} of {others} others")
        mean = f"{metric.name} {_between(first.mean, unit)} on {where}"
        told.append(("Best mean", [f"{first.name}: {mean}; established to be better than {which}."]))
    if not comparison.separable:
        told.append(("Not told apart", [f"Any of them, whatever the means: {comparison.too_few}."]))
    else:
        tied = [_listed(names) for names in sharing({one.name: one.letters for one in contenders}) if len(names) > 1]
        told.append(("Not told apart", [f"{names}." for names in tied] or ["None: every pair is told apart."]))
    margin = equivalence_margin(metric)
    alike = [pair for pair in comparison.pairs if pair.equivalent]
    if alike:
        names = "; ".join(f"{pair.first} and {pair.second}" for pair in alike)
        told.append((f"Equivalent within ±{margin:g}{unit}", [f"{names}."]))
    return told


def _bias(biases: Mapping[str, Bias], labels: Mapping[str, str]) -> Sentences:
    if not biases:
        return []
    established = [
        f"{labels[row_id]} moves the CD by {_signed_between(bias.mean)} on average, p {bias.p_holm:.2g} (Holm)."
        for row_id, bias in sorted(biases.items(), key=lambda found: -abs(found[1].mean.mean))
        if bias.established
    ]
    others = [labels[row_id] for row_id, bias in biases.items() if not bias.established]
    if not established:
        return [("CD bias", ["Established for no restorer; that shows no absence of bias."])]
    unsure = [f"Not established for {_listed(others)}; that shows no absence of bias."] if others else []
    return [("CD bias", established + unsure)]


def _missing(
    labels: Mapping[str, str], rows: Sequence[Row], records: Iterable[Record], notices: Sequence[str]
) -> Sentences:
    kept = list(records)
    left_out = {record["case"]: record.get("reason", "") for record in kept if record["status"] == LEFT_OUT}
    told: Sentences = []
    if left_out:
        reasons = Counter(left_out.values()).most_common(MOST_REASONS)
        said = "; ".join(f"{count} × {reason}" for reason, count in reasons)
        told.append(("Left out", [f"{counted(len(left_out), 'case')}, whoever restores them: {said}."]))
    failed = Counter(record["row"] for record in kept if record["status"] == "failed")
    if failed:
        said = ", ".join(f"{labels[row.row_id]} {failed[row.row_id]}" for row in rows if failed[row.row_id])
        told.append(("Failed", [f"{said} of its cases; the reasons stand below."]))
    if notices:
        told.append(("Compared", [f"{notice}." for notice in notices]))
    return told


def _between(interval: Interval, unit: str) -> str:
    if interval.low is None or interval.high is None:
        return f"{fixed(interval.mean, 3)}{unit} (no interval: {interval.method})"
    return f"{fixed(interval.mean, 3)}{unit} ({fixed(interval.low, 3)} to {fixed(interval.high, 3)})"


def _signed_between(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{signed(interval.mean, 3)} px"
    return f"{signed(interval.mean, 3)} px ({signed(interval.low, 3)} to {signed(interval.high, 3)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
