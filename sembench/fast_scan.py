"""Simulated pairs of a fast and a slow scan: other physics than the forward model, as measured on real fast scans.

Shot noise with gain above 1 and a smooth detector response along the fast axis, a Gaussian beam, rows that drift.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sembench import phantom
from sembench.micrograph import to_grid
from sembench.optics import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
SIDE = 448
BEAM_SIGMA = (0.5, 1.2)
DRIFT = 0.4
"""Standard deviation (px) of the rows' slow wandering along x, which registration cannot take out."""
GAIN, OFFSET = 3.65, -14.0
"""Noise variance = 3.65 mean - 14 gray levels squared, as on the fast scans of kriss."""
DETECTOR_SIGMA = 0.62
"""Sigma (px) of the detector's response along x: pixels correlate by 0.48 and 0.07 at lags 1 and 2, as measured."""
REFERENCE_SIGMA = 1.9


@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """Both scans of one scene, (SIDE, SIDE), gray levels on the grid."""

    degraded: "NDArray[np.float32]"
    reference: "NDArray[np.float32]"


def noise_variance(mean: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """Variance (gray levels squared) of a fast scan at a mean gray level, rolling off where the detector clips."""
    roll_off = np.clip((250.0 - mean) / 60.0, 0.1, 1.0)
    return np.asarray(np.maximum(GAIN * mean + OFFSET, 4.0) * roll_off)


def simulated_pair(seed: int, case_id: str) -> SimulatedPair:
    """One scene scanned slowly and fast, case id a kind and a number, `dwell01`; deterministic in (seed, case id)."""
    from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

    rng = generator(seed, case_id, "fast scan")
    scene_id = f"{case_id[0].upper()}{int(case_id[-2:]):03d}"
    scene = phantom.corpus_scene(seed, scene_id, SIDE).image.astype(np.float64)
    clean = 20 + 200 * scene / 255
    beam = gaussian_filter(clean, rng.uniform(*BEAM_SIGMA), mode="reflect")
    walk = gaussian_filter1d(rng.normal(size=SIDE), 12, mode="reflect")
    walk *= DRIFT / walk.std()
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    moved = map_coordinates(beam, [rows, columns + walk[:, None]], order=3, mode="reflect")
    noise = gaussian_filter1d(rng.normal(size=(SIDE, SIDE + 16)), DETECTOR_SIGMA, axis=1)[:, 8:-8]
    noise /= noise.std()
    degraded = np.clip(moved + np.sqrt(noise_variance(moved)) * noise, 0, 255)
    reference = np.clip(clean + rng.normal(0, REFERENCE_SIGMA, clean.shape), 0, 255)
    return SimulatedPair(to_grid(degraded), to_grid(reference))
