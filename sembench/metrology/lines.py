"""Widths and roughness of lines and spaces: CD, LWR, LER and pitch, raw and with the noise taken out."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sembench.errors import InputError
from sembench.metrology.edges import Edges, find_edges
from sembench.metrology.grating import find_grating
from sembench.metrology.refusal import MeasurementRefused
from sembench.metrology.roughness import straighten, three_sigma
from sembench.metrology.smile import flattened, middle_of_extremes
from sembench.metrology.spectrum import (
    Spectrum,
    SpectrumModel,
    band_sigma,
    fit_model,
    noise_floor,
    spectrum,
    standard_error,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLARITIES = ("bright", "dark")
LEVELS = ("plateau", "smile2", "rim")
WIDEST_SCATTER = 0.4
LARGEST_EDGE_NOISE = 2.2
HIGHEST_WIDTH_FREQUENCY = 0.1
FLOOR = "noise taken from the floor of the spectrum"
HIDDEN = "noise-limited: roughness cannot be told from noise"


@dataclass(frozen=True, eq=False)
class LineMeasurement:
    """What one image of lines and spaces shows; lengths in px, n complete lines, N rows along them.

    polarity, level: as asked; level_fraction: the level used, 0 at the spaces' plateau and 1 at the lines';
    orientation: the way the lines run, "vertical" or "horizontal"; tilt_deg: of their edges, positive where the
    position grows along the line; window_px: width of the window in which an edge is sought; edge_blur: Gaussian sigma
    of the edge; cd_mean, cd_std: over lines, of line_cds (n,); cd_over_pitch: width over local pitch, and its standard
    deviation; lwr, ler: 3 sigma; *_se: standard error against an infinitely long line; ler_common_removed: without the
    motion common to all edges; *_unbiased: noise taken out, None where it hides the roughness; lwr_from_spectrum: of
    frequencies up to 0.1 cycles/px alone; edge_noise, width_noise: the noise's part, 1 sigma; model, width_model: of
    the edges' and the widths' spectra; lost_fraction: edge points interpolated; flags: what to know before the numbers
    are used; edge_positions (N, 2 n): left, right, left, ... across the lines, lost (N, 2 n) which of them were
    interpolated; edge_rows (N,): coordinate along the lines.
    """

    polarity: str
    level: str
    level_fraction: float
    orientation: str
    tilt_deg: float
    rows: int
    lines: int
    edges: int
    window_px: int
    noise_sigma: float
    contrast_to_noise: float
    edge_blur: float
    pitch: float
    line_cds: "NDArray[np.float64]"
    cd_mean: float
    cd_std: float
    cd_over_pitch: float
    cd_over_pitch_std: float
    lwr: float
    lwr_se: float
    ler: float
    ler_se: float
    ler_common_removed: float
    lwr_unbiased: float | None
    ler_unbiased: float | None
    lwr_from_spectrum: float
    edge_noise: float
    width_noise: float
    model: SpectrumModel | None
    width_model: SpectrumModel | None
    lost_fraction: float
    flags: tuple[str, ...]
    edge_positions: "NDArray[np.float64]"
    lost: "NDArray[np.bool_]"
    edge_rows: "NDArray[np.float64]"
    edge_spectrum: Spectrum
    width_spectrum: Spectrum

    def as_record(self, pixel_size_nm: tuple[float, float] | None) -> dict[str, Any]:
        """The numbers as plain values that JSON can hold; lengths end in _nm, or in _px where the pixel size is None.

        pixel_size_nm: nm along x and y. Lengths across the lines take the size across, xi that along the lines.
        Raises InputError where a size is not above 0.
        """
        across, along, tilt_deg, unit = self._scales(pixel_size_nm)
        model = self.model
        known = model is not None and model.converged
        lengths: dict[str, tuple[float | None, float]] = {
            "pitch": (self.pitch, across),
            "cd_mean": (self.cd_mean, across),
            "cd_std": (self.cd_std, across),
            "lwr": (self.lwr, across),
            "lwr_se": (self.lwr_se, across),
            "ler": (self.ler, across),
            "ler_se": (self.ler_se, across),
            "ler_common_removed": (self.ler_common_removed, across),
            "lwr_unbiased": (self.lwr_unbiased, across),
            "ler_unbiased": (self.ler_unbiased, across),
            "lwr_from_spectrum": (self.lwr_from_spectrum, across),
            "edge_noise": (self.edge_noise, across),
            "width_noise": (self.width_noise, across),
            "edge_blur": (self.edge_blur, across),
            "sigma": (model.sigma if known and model else None, across),
            "xi": (model.xi if known and model else None, along),
            "length": (self.rows / math.cos(math.radians(self.tilt_deg)), along),
        }
        return {
            "polarity": self.polarity,
            "level": self.level,
            "level_fraction": self.level_fraction,
            "orientation": self.orientation,
            "tilt_deg": tilt_deg,
            "pixel_size_nm": _plain_size(pixel_size_nm),
            "lines": self.lines,
            "edges": self.edges,
            "rows": self.rows,
            "window_px": self.window_px,
            "noise_sigma": self.noise_sigma,
            "contrast_to_noise": _finite(self.contrast_to_noise),
            **{f"{name}_{unit}": _finite(value, scale) for name, (value, scale) in lengths.items()},
            "cd_over_pitch": self.cd_over_pitch,
            "cd_over_pitch_std": self.cd_over_pitch_std,
            "hurst": _finite(model.hurst) if known and model else None,
            "lost_fraction": self.lost_fraction,
            "flags": list(self.flags),
        }

    def _scales(self, pixel_size_nm: tuple[float, float] | None) -> tuple[float, float, float, str]:
        """Factors across and along the lines, the tilt in degrees on the specimen, and the unit."""
        if pixel_size_nm is None:
            return 1.0, 1.0, self.tilt_deg, "px"
        if not all(math.isfinite(size) and size > 0 for size in pixel_size_nm):
            raise InputError(f"pixel size is {pixel_size_nm[0]} x {pixel_size_nm[1]} nm: give numbers above 0")
        across, along = pixel_size_nm if self.orientation == "vertical" else pixel_size_nm[::-1]
        tilt = math.radians(self.tilt_deg)
        on_specimen = math.atan(math.tan(tilt) * across / along)
        ratio = math.cos(on_specimen) / math.cos(tilt)
        return across * ratio, along / ratio, math.degrees(on_specimen), "nm"


def _finite(value: float | None, scale: float = 1.0) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value * scale)


def _plain_size(pixel_size_nm: tuple[float, float] | None) -> float | list[float] | None:
    if pixel_size_nm is None:
        return None
    x, y = (float(size) for size in pixel_size_nm)
    return x if x == y else [x, y]


def measure_lines(
    image: "NDArray[np.floating]", *, polarity: str = "bright", level: str = "plateau", fit: bool = True
) -> LineMeasurement:
    """Measure the lines of an image: CD, pitch, LWR, LER and their spectra.

    image: (H, W), any gray scale, the instrument's data bar cut off; at least 64 px a side and three whole lines,
    tilted by 10 degrees at most. polarity: which side is the line, "bright" or "dark".
    level: where an edge is: "plateau", half-way between the plateaus of line and space; "rim", the same with a bright
    rim fitted and taken off; "smile2", the middle of the medians of all rows' extremes on the flattened image, to
    compare with numbers of SMILE (Mochi, 2020).
    fit: fit the roughness model (Palasantzas, 1993), whose noise part unbiased values take out; without it the floor of
    the spectrum stands in.
    Raises MeasurementRefused with the reason where the image is not of lines and spaces that can be trusted, InputError
    for a polarity or level of another name.
    """
    if polarity not in POLARITIES:
        raise InputError(f"polarity is {polarity!r}: give one of {', '.join(POLARITIES)}")
    if level not in LEVELS:
        raise InputError(f"level is {level!r}: give one of {', '.join(LEVELS)}")
    grating = find_grating(flattened(image) if level == "smile2" else image, bright=polarity == "bright")
    threshold = middle_of_extremes(grating.field) if level == "smile2" else None
    edges = find_edges(grating, threshold=threshold, rim=level == "rim")
    return _numbers(edges, polarity, level, grating.transposed, fit=fit)


def _numbers(edges: Edges, polarity: str, level: str, transposed: bool, *, fit: bool) -> LineMeasurement:
    positions = np.ascontiguousarray(edges.positions.T)
    curves = straighten(positions)
    line_cds = curves.line_cds
    means = curves.edges.mean(axis=0)
    pitch = float((means[2:] - means[:-2]).mean())
    narrower = min(float(line_cds.mean()), pitch - float(line_cds.mean()))
    width_spectrum, edge_spectrum = spectrum(curves.widths, curves.spacing), spectrum(curves.edges, curves.spacing)
    width_sigma, edge_sigma = math.sqrt(width_spectrum.variance), math.sqrt(edge_spectrum.variance)
    if width_sigma > WIDEST_SCATTER * narrower:
        raise MeasurementRefused(
            f"widths scatter by {width_sigma:.1f} px (1 sigma), too much for lines or spaces of {narrower:.1f} px"
        )
    model, edge_variance = _noise(edge_spectrum, fit)
    width_model, width_variance = _noise(width_spectrum, fit)
    hidden = math.sqrt(edge_variance) > LARGEST_EDGE_NOISE
    flags = list(edges.flags)
    flags += model.flags if model else ()
    flags += () if model and width_model and model.converged and width_model.converged else (FLOOR,)
    flags += (HIDDEN,) if hidden else ()
    contrast = float(edges.levels.contrast.mean())
    noise = edges.levels.noise_sigma
    ratio = line_cds / _local_pitch(means)
    length = len(positions)
    return LineMeasurement(
        polarity=polarity,
        level=level,
        level_fraction=edges.level,
        orientation="horizontal" if transposed else "vertical",
        tilt_deg=math.degrees(math.atan(curves.slope)),
        rows=length,
        lines=line_cds.size,
        edges=means.size,
        window_px=2 * edges.window + 1,
        noise_sigma=noise,
        contrast_to_noise=contrast / noise if noise > 0 else math.inf,
        edge_blur=edges.template.shape.blur,
        pitch=pitch,
        line_cds=line_cds,
        cd_mean=float(line_cds.mean()),
        cd_std=float(line_cds.std(ddof=1)),
        cd_over_pitch=float(ratio.mean()),
        cd_over_pitch_std=float(ratio.std(ddof=1)),
        lwr=3 * width_sigma,
        lwr_se=_three_sigma_error(width_spectrum),
        ler=3 * edge_sigma,
        ler_se=_three_sigma_error(edge_spectrum),
        ler_common_removed=_without_common(curves.edges),
        lwr_unbiased=None if hidden else three_sigma(width_spectrum.variance, width_variance),
        ler_unbiased=None if hidden else three_sigma(edge_spectrum.variance, edge_variance),
        lwr_from_spectrum=3 * band_sigma(width_spectrum, width_spectrum.df, HIGHEST_WIDTH_FREQUENCY),
        edge_noise=math.sqrt(edge_variance),
        width_noise=math.sqrt(width_variance),
        model=model,
        width_model=width_model,
        lost_fraction=float(edges.lost.mean()),
        flags=tuple(dict.fromkeys(flags)),
        edge_positions=positions,
        lost=np.ascontiguousarray(edges.lost.T),
        edge_rows=np.arange(length, dtype=np.float64),
        edge_spectrum=edge_spectrum,
        width_spectrum=width_spectrum,
    )


def _noise(s: Spectrum, fit: bool) -> tuple[SpectrumModel | None, float]:
    """The model of a spectrum, and the noise variance: the model's, or the floor where there is none that converged."""
    model = fit_model(s) if fit else None
    if model is not None and model.converged:
        return model, model.noise_variance
    return model, noise_floor(s)


def _three_sigma_error(s: Spectrum) -> float:
    sigma = math.sqrt(s.variance)
    return 3 * standard_error(s) / (2 * sigma) if sigma > 0 else 0.0


def _without_common(upright: "NDArray[np.float64]") -> float:
    """LER (3 sigma) after what all edges of a row have in common is taken off."""
    count = upright.shape[1]
    deviation = upright - upright.mean(axis=0)
    deviation = deviation - deviation.mean(axis=1, keepdims=True)
    return three_sigma(float(np.mean(deviation**2)) * count / (count - 1))


def _local_pitch(means: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Distance of each line's middle to those beside it."""
    return np.gradient((means[0::2] + means[1::2]) / 2)
