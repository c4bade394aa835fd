"""The images of the metrology protocol: rough lines with known truth, and real lines, blurred and made noisy.

Every number here is frozen with version 1 of the protocol.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sembench import phantom
from sembench.micrograph import to_grid
from sembench.optics import Degradation, PixelAveraged, blur, generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
SCENES = 60
SIDE = 1024
DUTIES = (0.35, 0.5, 0.65)
CONTRASTS = (8.0, 4.0, 2.7, 2.0)
NARROWEST = 10.0
EDGE_SIGMA = 1.0
RIM, RIM_LENGTH = 0.5, 3.0
FIRST_CORRELATED, FIRST_RIMMED = 25, 49
MIDDLE = 127.5
WIDEST_STEP = 100.0
CORRELATION = 0.48
"""Of the noise between neighbours along the fast axis, as measured on kriss (then 0.07 and 0.00)."""
BLUR_RADIUS = (0.8, 3.3)
SMALLEST_PITCH_OVER_RADIUS = 10.0


@dataclass(frozen=True, eq=False)
class LineTruth:
    """Where the edges of the complete lines really are.

    edges: (rows, 2 n) px, left and right edge of each line in turn, mean over each row; rows: their pixel coordinate.
    """

    edges: "NDArray[np.float64]"
    rows: "NDArray[np.float64]"


@dataclass(frozen=True, eq=False)
class LineImages:
    """A focused image of lines, the same blurred and noisy, how that was done, and the truth where it is known."""

    reference: "NDArray[np.float32]"
    degraded: "NDArray[np.float32]"
    degradation: Degradation
    truth: LineTruth | None


@dataclass(frozen=True)
class SceneParameters:
    """What one phantom scene was drawn with; lengths in px, angles in degrees, contrast in noise sigma."""

    pitch: float
    duty: float
    sigma: float
    xi: float
    hurst: float
    tilt_deg: float
    contrast: float
    rim: float
    correlated: bool


def scene_ids() -> tuple[str, ...]:
    """The case ids of the phantom scenes, M001 to M060."""
    return tuple(f"M{number:03d}" for number in range(1, SCENES + 1))


def draw_scene(rng: np.random.Generator, case_id: str) -> SceneParameters:
    """Draw pitch, sigma, xi, H and tilt of one scene; duty, contrast, noise and rim follow from its number."""
    number = int(case_id[1:])
    pitch = float(rng.uniform(24, 60))
    line_width = min(max(DUTIES[(number - 1) % len(DUTIES)] * pitch, NARROWEST), pitch - NARROWEST)
    return SceneParameters(
        pitch=pitch,
        duty=line_width / pitch,
        sigma=min(float(rng.uniform(0.5, 1.5)), pitch / 20),
        xi=float(rng.uniform(10, 25)),
        hurst=float(rng.uniform(0.4, 0.8)),
        tilt_deg=float(rng.uniform(-1, 1)),
        contrast=CONTRASTS[(number - 1) % len(CONTRASTS)],
        rim=RIM if number >= FIRST_RIMMED else 0.0,
        correlated=FIRST_CORRELATED <= number < FIRST_RIMMED,
    )


def phantom_lines(seed: int, case_id: str) -> LineImages:
    """One scene of 1024 x 1024 px with its truth; deterministic in (seed, case id)."""
    rng = generator(seed, case_id, "scene")
    drawn = draw_scene(rng, case_id)
    step = _step(drawn.contrast, drawn.rim)
    scene = phantom.lines(
        rng,
        height=SIDE,
        width=SIDE,
        pitch=drawn.pitch,
        duty=drawn.duty,
        sigma=drawn.sigma,
        xi=drawn.xi,
        hurst=drawn.hurst,
        edge_sigma=EDGE_SIGMA,
        tilt_deg=drawn.tilt_deg,
        low=MIDDLE - step / 2,
        high=MIDDLE + step / 2,
        rim=drawn.rim,
        rim_length=RIM_LENGTH,
    )
    reference = to_grid(scene.image)
    edges = np.stack([scene.truth["left_px"], scene.truth["right_px"]], axis=1).reshape(-1, SIDE).T
    truth = LineTruth(np.ascontiguousarray(edges), np.arange(SIDE, dtype=np.float64))
    rng = generator(seed, case_id)
    degradation = _degradation(rng, step, drawn.contrast, drawn.pitch)
    degraded = _acquire(reference, degradation, rng, correlated=drawn.correlated)
    return LineImages(reference, degraded, degradation, truth)


def real_lines(
    pixels: "NDArray[np.floating]", space_level: float, line_level: float, pitch: float, contrast: float, seed: int,
    case_id: str,
) -> LineImages:  # fmt: skip
    """A real image of lines, stretched so that noise of the given contrast fits in, and its degraded twin.

    pixels: (H, W), gray levels; space_level, line_level: its plateaus; pitch in px.
    """
    step = _step(contrast, 0.0)
    middle = (space_level + line_level) / 2
    reference = to_grid(MIDDLE + (pixels.astype(np.float64) - middle) * step / (line_level - space_level))
    rng = generator(seed, case_id)
    degradation = _degradation(rng, step, contrast, pitch)
    degraded = _acquire(reference, degradation, rng, correlated=False)
    return LineImages(reference, degraded, degradation, None)


def _step(contrast: float, rim: float) -> float:
    """The largest step between line and space, gray levels, at which less than 0.1 % of the pixels is clipped."""
    return min(WIDEST_STEP, MIDDLE / (0.5 + rim + 3.3 / contrast))


def _degradation(rng: np.random.Generator, step: float, contrast: float, pitch: float) -> Degradation:
    """Blur of a drawn radius; noise whose variance is half proportional to the signal, half constant."""
    radius = min(float(rng.uniform(*BLUR_RADIUS)), pitch / SMALLEST_PITCH_OVER_RADIUS)
    variance = (step / contrast) ** 2
    return PixelAveraged(
        rx=radius, ry=radius, beta=2.0, theta=0.0, a=1.0, b=0.0, sigma=float(np.sqrt(variance / 2)),
        dose=2 * MIDDLE / variance,
    )  # fmt: skip


def _acquire(
    reference: "NDArray[np.float32]", degradation: Degradation, rng: np.random.Generator, *, correlated: bool
) -> "NDArray[np.float32]":
    """The degraded image in whole gray levels; x, along a row, is the fast axis of the scan."""
    signal = blur(reference, degradation.kernel())
    height, width = reference.shape
    white = rng.normal(size=(height, width + 2))
    side = _side_weight(CORRELATION) if correlated else 0.0
    noise = (white[:, 1:-1] + side * (white[:, :-2] + white[:, 2:])) / np.sqrt(1 + 2 * side**2)
    deviation = np.sqrt(np.maximum(signal, 0) / degradation.dose + degradation.sigma**2)
    return np.asarray(np.clip(np.rint(signal + deviation * noise), 0, 255).astype(np.float32))


def _side_weight(correlation: float) -> float:
    """The weight w of (w, 1, w) that gives white noise this correlation between neighbours: 2 w / (1 + 2 w^2)."""
    return float((1 - np.sqrt(1 - 2 * correlation**2)) / (2 * correlation))
