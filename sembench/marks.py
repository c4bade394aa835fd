"""What must be known beside a restorer's rank: trained on a score, structure lost, or what is measured moved."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sembench.execution.plan import Row
from sembench.execution.records import Record
from sembench.statistics import Interval, mean_interval
from sembench.statistics.pairs import SIGNIFICANCE, holm, paired_p

INPUT = "input"
CD_BIAS = "cd_bias"


@dataclass(frozen=True)
class Bias:
    """Mean difference of the CD to the reference's (px) over the cases with one, and p (Holm, over all restorers)."""

    mean: Interval
    p_holm: float

    @property
    def established(self) -> bool:
        """Whether it is told apart from 0."""
        return self.p_holm <= SIGNIFICANCE


@dataclass(frozen=True)
class Mark:
    """A mark in a word or two, and in a sentence."""

    short: str
    told: str


def cd_biases(rows: Sequence[Row], records: Iterable[Record]) -> dict[str, Bias]:
    """Row id -> bias of the CD of each restorer (no control) that has one; tests as for pairs, against 0."""
    kept = list(records)
    found = {}
    for row in rows:
        values = _values(kept, row.row_id, CD_BIAS)
        if row.kind != "control" and values:
            cases, groups = zip(*values.values(), strict=True)
            found[row.row_id] = (mean_interval(cases, groups), paired_p(cases, groups))
    corrected = holm([p for _, p in found.values()])
    return {name: Bias(mean, float(p)) for (name, (mean, _)), p in zip(found.items(), corrected, strict=True)}


def marks(rows: Sequence[Row], records: Iterable[Record]) -> dict[str, tuple[Mark, ...]]:
    """Row id -> marks of each restorer that has any.

    Trained on: the metrics that its training looked at, as it declares. SSIM below the input's: mean difference over
    the cases of both, its 95 % interval below 0 where there is one. CD biased: the bias is established; told with the
    PSNR where that rose above the input's. Matched metrics before plain.
    """
    kept = list(records)
    inputs = next((row.row_id for row in rows if row.name == INPUT), None)
    biases = cd_biases(rows, kept)
    found: dict[str, tuple[Mark, ...]] = {}
    for row in rows:
        if row.kind == "control":
            continue
        own = [_trained_on(row)] if row.trained_on else []
        if inputs is not None and row.row_id != inputs:
            change = _gain(kept, row.row_id, inputs, ("ssim_matched", "ssim"))
            if change is not None and _below_0(change[1]):
                name, interval = change
                own.append(Mark("SSIM below input", f"{name} is {_signed(interval)} against the input"))
        bias = biases.get(row.row_id)
        if bias is not None and bias.established:
            told = f"CD differs from the reference by {_signed(bias.mean)} px on average (p {bias.p_holm:.2g}, Holm)"
            rise = None if inputs is None else _gain(kept, row.row_id, inputs, ("psnr_matched", "psnr"))
            rose = rise is not None and rise[1].mean > 0
            if rise is not None and rose:
                told += f", while {rise[0]} rose by {rise[1].mean:.2f} dB above the input"
            own.append(Mark("CD biased, PSNR up" if rose else "CD biased", told))
        if own:
            found[row.row_id] = tuple(own)
    return found


def _trained_on(row: Row) -> Mark:
    names = ", ".join(name.upper() for name in row.trained_on)
    return Mark(f"trained on {names}", f"its training minimised {names} or selected by it, as it declares")


def _below_0(interval: Interval) -> bool:
    return interval.mean < 0 if interval.high is None else interval.high < 0


def _signed(interval: Interval) -> str:
    between = "" if interval.low is None else f" ({interval.low:+.3g} to {interval.high:+.3g})"
    return f"{interval.mean:+.3g}{between}".replace("-", "\N{MINUS SIGN}")


def _values(records: Iterable[Record], row_id: str, metric: str) -> dict[str, tuple[float, str]]:
    """Case -> value and group of a row's solved cases that have one."""
    solved = (record for record in records if record["row"] == row_id and record["status"] == "ok")
    return {
        record["case"]: (record["metrics"][metric], record["group"])
        for record in solved
        if record["metrics"].get(metric) is not None
    }


def _gain(records: Sequence[Record], row_id: str, inputs: str, names: Sequence[str]) -> tuple[str, Interval] | None:
    """The first of the metrics that both rows have on some case, and its mean difference, this row less the input."""
    for name in names:
        own, other = (_values(records, which, name) for which in (row_id, inputs))
        shared = sorted(own.keys() & other.keys())
        if shared:
            differences = [own[case][0] - other[case][0] for case in shared]
            return name, mean_interval(differences, [own[case][1] for case in shared])
    return None
