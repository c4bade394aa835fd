"""The same cases, restorers and metrics as `sembench run`, written down as a person would who has no suite.

One process, one image after another; every function is called with its own package's defaults for speed. Only the
cases come from sembench, as both sides must see the same pixels. Each restored image is saved as a 16-bit PNG of
256 x the gray level and scored as saved. Numeric libraries take as many threads as they like, bm3d one.

    python benchmarks/plain.py --cases 4 --data phantom --out scores.csv
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import bm3d
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter
from scipy.signal import fftconvolve
from skimage import io, restoration
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sembench.cases import plan_cases
from sembench.datasets.cache import locate_weight
from sembench.metrics import perceptual
from sembench.optics import Degradation, airy_psf
from sembench.protocol import load
from sembench.torchvision_compat import ensure_torchvision

Image = NDArray[Any]
RESTORERS = ("input", "gaussian", "median", "tv", "richardson_lucy", "wiener", "bm3d")


def noise_sigma(image: Image) -> float:
    """Noise level from the difference to a 3 x 3 median."""
    residual = image - median_filter(image, size=3)
    return float(np.median(np.abs(residual - np.median(residual))) / 0.6745)


def with_fixed_kernel(image: Image, name: str) -> Image:
    """Deconvolve by scikit-image with the Airy kernel of radius 15.5 px, borders reflected."""
    kernel = airy_psf(15.5, 15.5, 1.95, 0.0)
    half = kernel.shape[0] // 2
    padded = np.pad(image / np.float32(255), half, mode="reflect")
    if name == "wiener":
        restored = restoration.wiener(padded, kernel, 0.01)
    else:
        restored = restoration.richardson_lucy(padded, kernel, 30)
    return np.clip(restored[half:-half, half:-half], 0, 1) * 255


def restore(name: str, image: Image) -> Image:
    """One restored image, gray levels 0..255."""
    if name == "gaussian":
        return gaussian_filter(image, 1.0)
    if name == "median":
        return median_filter(image, size=5)
    if name == "tv":
        scaled = image / np.float32(255)
        return restoration.denoise_tv_chambolle(scaled, weight=2.5 * noise_sigma(scaled)) * 255
    if name in ("richardson_lucy", "wiener"):
        return with_fixed_kernel(image, name)
    if name == "bm3d":
        scaled = image.astype(np.float64) / 255
        profile = bm3d.BM3DProfile()
        profile.num_threads = 1
        return (np.clip(bm3d.bm3d(scaled, noise_sigma(scaled), profile), 0, 1) * 255).astype(np.float32)
    return image


def save_and_load(path: Path, image: Image) -> Image:
    """Save as a 16-bit PNG and return what the file holds."""
    steps = np.round(np.clip(image, 0, 255) * 256).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, steps, check_contrast=False)
    return io.imread(path).astype(np.float64) / 256


def similarity(reference: Image, image: Image) -> float:
    """SSIM with the window of Wang et al."""
    return structural_similarity(
        reference, image, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def match(reference: Image, image: Image) -> tuple[float, float]:
    """Gain and offset that bring the image nearest to the reference, both smoothed."""
    smooth, target = gaussian_filter(image, 3), gaussian_filter(reference, 3)
    gain, offset = np.polyfit(smooth.ravel(), target.ravel(), 1)
    return float(gain), float(offset)


def residual(image: Image, degraded: Image, truth: Degradation | None) -> Image:
    """The image degraded once more, less the input, in standard deviations of the noise."""
    if truth is None:
        return np.full(image.shape, np.nan)
    kernel = airy_psf(truth.rx, truth.ry, truth.beta, truth.theta)
    padded = np.pad(image, kernel.shape[0] // 2, mode="reflect")
    signal = np.maximum(0, truth.a * fftconvolve(padded, kernel, mode="valid") + truth.b)
    return (np.minimum(signal, 255) - degraded) / np.sqrt(signal / truth.dose + truth.sigma**2)


def to_tensor(image: Image) -> torch.Tensor:
    """(1, 3, H, W) in -1..1."""
    return torch.from_numpy((image / 127.5 - 1).astype(np.float32)).expand(1, 3, -1, -1)


class Scores:
    """The metrics of the s2s protocol; the networks are loaded once."""

    def __init__(self) -> None:
        ensure_torchvision()
        import pyiqa

        alexnet = locate_weight(perceptual.ALEXNET)
        parameters = locate_weight(perceptual.NIQE_PARAMETERS)
        if alexnet is None or parameters is None:
            raise SystemExit("weights of LPIPS or NIQE cannot be had: set SEMBENCH_DATA or allow their download")
        self.lpips = perceptual.load_lpips(alexnet)
        self.niqe = pyiqa.create_metric("niqe", pretrained_model_path=str(parameters), device="cpu")

    def of(self, reference: Image, image: Image, degraded: Image, truth: Degradation | None) -> dict[str, float]:
        """Every metric of one restored image."""
        gain, offset = match(reference, image)
        matched = np.clip(gain * image + offset, 0, 255)
        beyond = np.abs(residual(image, degraded, truth))
        with torch.no_grad():
            return {
                "psnr": peak_signal_noise_ratio(reference, image, data_range=255),
                "ssim": similarity(reference, image),
                "lpips": float(self.lpips(to_tensor(reference), to_tensor(image))),
                "psnr_matched": peak_signal_noise_ratio(reference, matched, data_range=255),
                "ssim_matched": similarity(reference, matched),
                "lpips_matched": float(self.lpips(to_tensor(reference), to_tensor(matched))),
                "match_gain": gain,
                "match_offset": offset,
                "niqe": float(self.niqe(torch.from_numpy((image / 255).astype(np.float32))[None, None])),
                "residual_median": float(np.median(beyond)),
                "residual_beyond_3": float(np.mean(beyond > 3)),
            }


def main() -> None:
    """Restore and score every case, one after another, and write one CSV line each."""
    parser = argparse.ArgumentParser(description="The cases of s2s, restored and scored by a plain script.")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--data", default="phantom", help="phantom, semcorpus or a folder")
    parser.add_argument("--restorers", default=",".join(RESTORERS))
    parser.add_argument("--out", type=Path, default=Path("plain/scores.csv"))
    given = parser.parse_args()
    protocol = load("s2s")
    scores = Scores()
    lines = []
    for spec in plan_cases(protocol, given.data, limit=given.cases).specs:
        case = spec.make(protocol)
        reference, degraded = case.reference.astype(np.float64), case.degraded.astype(np.float64)
        for name in given.restorers.split(","):
            path = given.out.parent / "restored" / name / f"{spec.case_id}.png"
            image = save_and_load(path, restore(name, case.degraded))
            values = scores.of(reference, image, degraded, case.degradation)
            lines.append({"restorer": name, "case": spec.case_id, **values})
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
