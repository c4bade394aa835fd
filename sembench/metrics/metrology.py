"""What a restoration does to a measurement of lines: differences of CD, LWR, LER, PSD and edge positions.

The restored image is measured as its reference is. Both are compared over the lines and rows they share, against the
focused reference, and on phantom scenes against the true edges too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from sembench.metrics.table import Better, Image, MetricCase, MetricSpec, Scored, UndefinedError
from sembench.metrology.lines import LineMeasurement, measure_lines
from sembench.metrology.refusal import MeasurementRefused
from sembench.metrology.roughness import straighten, three_sigma
from sembench.metrology.spectrum import band_sigma, spectrum

Array = NDArray[np.float64]

ROUGHNESS_BAND_END = 0.1
"""psd_error compares 3 sqrt(integral of the width PSD) from 1/N to here (cycles/px): noise touches this band least."""
LOG_DISTANCE_BAND = (0.01, 0.25)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Lengths of one set of edges (px), the width's PSD, and the edges themselves about their mean slope."""

    line_cds: Array
    lwr: float
    ler: float
    roughness: float
    lwr_unbiased: float | None
    ler_unbiased: float | None
    frequency: Array
    power: Array
    edges: Array


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The same lines and rows as restored and as they should be; scale: nm a px across the lines, where known."""

    restored: _Numbers
    wanted: _Numbers
    scale: float | None


def _measure(image: Image) -> LineMeasurement:
    try:
        return measure_lines(image)
    except MeasurementRefused as refusal:
        raise UndefinedError(f"measurement refused: {refusal}") from refusal


def _measured(scored: Scored) -> LineMeasurement:
    return _measure(scored.case.inner(scored.restored))


def _measured_reference(case: MetricCase) -> LineMeasurement:
    try:
        return _measure(case.inner_reference().astype(np.float32))
    except UndefinedError as error:
        raise UndefinedError(f"on the reference: {error}") from error


def _numbers(edges: Array, edge_noise: float | None, width_noise: float | None) -> _Numbers:
    """From edges (rows, 2 n), left and right in turn; the noises are standard deviations (px), None where unknown."""
    curves = straighten(edges)
    widths = spectrum(curves.widths, curves.spacing)
    edge_variance = float(curves.edges.var(axis=0).mean())
    return _Numbers(
        line_cds=curves.line_cds,
        lwr=three_sigma(widths.variance),
        ler=three_sigma(edge_variance),
        roughness=3 * band_sigma(widths, widths.df, ROUGHNESS_BAND_END),
        lwr_unbiased=None if width_noise is None else three_sigma(widths.variance, width_noise**2),
        ler_unbiased=None if edge_noise is None else three_sigma(edge_variance, edge_noise**2),
        frequency=widths.frequency,
        power=widths.power,
        edges=curves.edges,
    )


def _shared(one: Array, one_rows: Array, other: Array, other_rows: Array, pitch: float) -> tuple[Array, Array]:
    """The lines and rows that both sets of edges (rows, 2 n) hold, paired where centres lie within half a pitch."""
    rows, at_one, at_other = np.intersect1d(one_rows, other_rows, return_indices=True)
    if rows.size < 2:
        raise UndefinedError("restored image and reference share no rows of lines")
    one, other = one[at_one], other[at_other]
    distance = np.abs(_centres(one)[:, None] - _centres(other))
    nearest = distance.argmin(axis=1)
    close = np.flatnonzero(distance[np.arange(len(nearest)), nearest] < pitch / 2)
    if close.size < 2:
        raise UndefinedError(f"restored image and reference share {close.size} lines: two are needed")
    return one[:, _columns(close)], other[:, _columns(nearest[close])]


def _centres(edges: Array) -> Array:
    return np.asarray(edges.mean(axis=0).reshape(-1, 2).mean(axis=1))


def _columns(lines: NDArray[np.intp]) -> NDArray[np.intp]:
    return (2 * lines[:, None] + np.arange(2)).ravel()


def _against_reference(scored: Scored) -> _Comparison:
    wanted = scored.case.once(_measured_reference)
    found = scored.once(_measured)
    if found.orientation != wanted.orientation:
        raise UndefinedError(
            f"lines are {found.orientation} in the restored image, {wanted.orientation} in the reference"
        )
    edges, true_edges = _shared(
        found.edge_positions, found.edge_rows, wanted.edge_positions, wanted.edge_rows, wanted.pitch
    )
    size = scored.case.pixel_size_nm
    return _Comparison(
        _numbers(edges, *_noises(found)),
        _numbers(true_edges, *_noises(wanted)),
        None if size is None else size[0 if wanted.orientation == "vertical" else 1],
    )


def _against_truth(scored: Scored) -> _Comparison:
    truth = scored.case.truth
    if truth is None:
        raise UndefinedError("needs the true edges and this case has none")
    found = scored.once(_measured)
    margin = scored.case.margin
    if found.orientation != "vertical":
        raise UndefinedError("lines are horizontal in the restored image, vertical in truth")
    edges, true_edges = _shared(
        found.edge_positions + margin, found.edge_rows + margin, truth.edges, truth.rows, found.pitch
    )
    return _Comparison(_numbers(edges, *_noises(found)), _numbers(true_edges, 0.0, 0.0), None)


def _noises(measurement: LineMeasurement) -> tuple[float | None, float | None]:
    if measurement.lwr_unbiased is None or measurement.ler_unbiased is None:
        return None, None
    return measurement.edge_noise, measurement.width_noise


def _unbiased(numbers: _Numbers, name: str) -> float:
    value: float | None = getattr(numbers, name)
    if value is None:
        raise UndefinedError("noise-limited: no unbiased roughness")
    return value


def _cd_measured(c: _Comparison) -> float:
    return float(c.restored.line_cds.mean())


def _lwr_measured(c: _Comparison) -> float:
    return c.restored.lwr


def _cd_bias(c: _Comparison) -> float:
    return float(c.restored.line_cds.mean() - c.wanted.line_cds.mean())


def _cd_error(c: _Comparison) -> float:
    return abs(_cd_bias(c))


def _cd_line_error(c: _Comparison) -> float:
    return float(np.sqrt(np.mean((c.restored.line_cds - c.wanted.line_cds) ** 2)))


def _cd_std_error(c: _Comparison) -> float:
    return abs(float(c.restored.line_cds.std(ddof=1) - c.wanted.line_cds.std(ddof=1)))


def _lwr_bias(c: _Comparison) -> float:
    return c.restored.lwr - c.wanted.lwr


def _lwr_error(c: _Comparison) -> float:
    return abs(_lwr_bias(c))


def _ler_error(c: _Comparison) -> float:
    return abs(c.restored.ler - c.wanted.ler)


def _psd_error(c: _Comparison) -> float:
    return abs(c.restored.roughness - c.wanted.roughness)


def _avg_error(c: _Comparison) -> float:
    return float(np.mean([f(c) for f in (_cd_error, _cd_std_error, _lwr_error, _ler_error, _psd_error)]))


def _lwr_unbiased_error(c: _Comparison) -> float:
    return abs(_unbiased(c.restored, "lwr_unbiased") - _unbiased(c.wanted, "lwr_unbiased"))


def _ler_unbiased_error(c: _Comparison) -> float:
    return abs(_unbiased(c.restored, "ler_unbiased") - _unbiased(c.wanted, "ler_unbiased"))


def _edge_placement_error(c: _Comparison) -> float:
    difference = c.restored.edges - c.wanted.edges
    return float(np.sqrt(np.mean((difference - difference.mean()) ** 2)))


def _psd_log_distance(c: _Comparison) -> float:
    low, high = LOG_DISTANCE_BAND
    band = (c.wanted.frequency >= low) & (c.wanted.frequency <= high)
    return float(np.mean(np.abs(np.log(c.restored.power[band] / c.wanted.power[band]))))


@dataclass(frozen=True)
class _Quantity:
    """A difference of one number, in px unless it has no unit."""

    name: str
    title: str
    function: Callable[[_Comparison], float]
    better: Better = "lower"
    length: bool = True


QUANTITIES = (
    _Quantity("cd_error", "CD, absolute difference; its mean over cases is CD(MAE)", _cd_error),
    _Quantity(
        "avg_error", "Mean of the errors of CD, CD std, LWR, LER and PSD; its mean over cases is Avg(MAE)", _avg_error
    ),
    _Quantity("cd_line_error", "CD of single lines, rms difference", _cd_line_error),
    _Quantity("cd_std_error", "CD spread between lines, absolute difference", _cd_std_error),
    _Quantity("lwr_error", "LWR as measured, absolute difference", _lwr_error),
    _Quantity("ler_error", "LER as measured, absolute difference", _ler_error),
    _Quantity("psd_error", "3 sigma of the width PSD below 0.1 cycles/px, absolute difference", _psd_error),
    _Quantity("lwr_unbiased_error", "LWR without noise, absolute difference", _lwr_unbiased_error),
    _Quantity("ler_unbiased_error", "LER without noise, absolute difference", _ler_unbiased_error),
    _Quantity("cd_measured", "CD of the restored image", _cd_measured, "none"),
    _Quantity("lwr_measured", "LWR of the restored image", _lwr_measured, "none"),
    _Quantity("cd_bias", "CD, difference", _cd_bias, "none"),
    _Quantity("lwr_bias", "LWR as measured, difference", _lwr_bias, "none"),
    _Quantity("edge_placement_error", "Edge placement, rms difference about its mean", _edge_placement_error),
    _Quantity(
        "psd_log_distance",
        "Width PSD, mean modulus of the log ratio from 0.01 to 0.25 cycles/px",
        _psd_log_distance,
        length=False,
    ),
)


def _spec(quantity: _Quantity, *, truth: bool = False, nm: bool = False) -> MetricSpec:
    compare = _against_truth if truth else _against_reference

    def value(scored: Scored) -> float:
        comparison = scored.once(compare)
        return quantity.function(comparison) * (comparison.scale or math.nan if nm else 1.0)

    return MetricSpec(
        name=quantity.name + ("_truth" if truth else "") + ("_nm" if nm else ""),
        title=quantity.title + (" from the truth" if truth else ""),
        unit=("nm" if nm else "px") if quantity.length else "",
        better=quantity.better,
        needs_reference=not truth,
        needs_degradation=False,
        function=value,
        version=1,
        tolerance=1e-4,
        needs_truth=truth,
        needs_pixel_size=nm,
    )


def _lost_rows(scored: Scored) -> float:
    return scored.once(_measured).lost_fraction


def _is_measured(scored: Scored) -> float:
    try:
        scored.once(_measured)
    except UndefinedError:
        return 0.0
    return 1.0


def _plain(name: str, title: str, unit: str, better: Better, function: Callable[[Scored], float]) -> MetricSpec:
    return MetricSpec(name, title, unit, better, False, False, function, version=1, tolerance=1e-6)


SPECS = SimpleNamespace(
    lost_rows=_plain("lost_rows", "Edge points lost", "share", "lower", _lost_rows),
    measured=_plain("measured", "Lines could be measured", "share", "higher", _is_measured),
    **{
        spec.name: spec
        for quantity in QUANTITIES
        for spec in (
            _spec(quantity),
            *([] if quantity.name.endswith("_measured") else [_spec(quantity, truth=True)]),
            *([_spec(quantity, nm=True)] if quantity.length else []),
        )
    },
)
"""Every metric of this family by name."""
