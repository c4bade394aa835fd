"""How often `restore` warns without cause, how surely with cause, and what its spread tells of the true error.

    python benchmarks/trust.py warnings [PATCHES]
    python benchmarks/trust.py spread RESTORER [CASES]

The first draws patches as training does (400 unless told otherwise), and reads the inputs of s2s and kriss; the second
restores cases of s2s (10) by the state that ships for `paper`, eight times each. Needs the real data.
"""

import sys
from collections import Counter
from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from sembench.cases import plan_cases
from sembench.datasets.cache import locate
from sembench.execution.fits import find_shipped, load_state
from sembench.execution.training import training_images
from sembench.micrograph import read, to_grid
from sembench.optics import DEGRADATIONS, Degradation, degrade
from sembench.protocol import load
from sembench.registry import DATASETS, find_method, load_method, plugin
from sembench.restorer import Budget, Image, TrainingSet
from sembench.training_domain import outside

NEIGHBOURHOOD = 4.0
"""Sigma (px) of the Gaussian under which squared spread and squared error are averaged, for the second correlation."""


def warned(what: str, images: Iterable[Image], degradation: str) -> None:
    """Print how many of the images lie outside, and by what."""
    found = [[part.quantity for part in outside(image, degradation)] for image in images]
    reasons = Counter(quantity for parts in found for quantity in parts)
    told = ", ".join(f"{quantity} {number}" for quantity, number in reasons.most_common())
    print(f"| {what} | {degradation} | {sum(map(bool, found))} of {len(found)} | {told} |", flush=True)


def count_warnings(patches: int) -> None:
    """Print a row for each kind of image."""
    protocol = load("s2s")
    learnt = training_images(protocol, protocol.data.set).load()
    print("| images | training | warned of | because of |\n|---|---|---|---|")
    for degradation in DEGRADATIONS:
        training = TrainingSet(
            learnt["train"], learnt["validation"], degradation, Budget("draws", patches, batch=1), seed=2604
        )
        drawn = (training.batch(step)[0].degraded for step in range(patches))
        warned("patches as drawn in training", drawn, degradation)
    plan = plan_cases(protocol, require_real=True)
    cases = [spec.make(protocol) for spec in plan.specs]
    warned("inputs of s2s", (case.degraded for case in cases), "paper")
    kriss = plugin(DATASETS, "kriss").load()()
    files = [locate(kriss, row) for row in kriss.rows if row.role == "input"]
    scans = [to_grid(read(file).pixels) for file in files if file]
    for degradation in DEGRADATIONS:
        warned("inputs of kriss", scans, degradation)
    clean = [case.reference for case in cases[::4] if case.reference is not None]
    rng = np.random.default_rng(2604)
    for radius in (45.0, 60.0, 90.0):
        wide = Degradation(rx=radius, ry=radius, beta=1.95, theta=0, a=1, b=5, sigma=4, dose=10)
        warned(f"s2s, blurred by {radius:g} px", (degrade(image, wide, rng) for image in clean), "broad")
    for sigma in (60.0, 80.0, 120.0):
        noisy = (to_grid(image + rng.normal(0, sigma, image.shape)) for image in clean)
        warned(f"s2s under noise of {sigma:g}", noisy, "broad")
    for sigma in (5.0, 20.0, 50.0):
        noise = (to_grid(rng.normal(128, sigma, (512, 512))) for _ in range(25))
        warned(f"pure noise of {sigma:g}", noise, "broad")


def weigh_spread(restorer: str, number: int) -> None:
    """Print rank correlation of spread and absolute error at pixels, and the ratio of their rms, case by case."""
    protocol = load("s2s")
    method = load_method(restorer, {"degradation": "paper"})
    shipped = find_shipped(find_method(restorer), method.settings, "paper")
    if shipped is None:
        sys.exit(f"no state of {restorer} ships for paper")
    method.state = load_state(shipped.path, shipped.sha256)
    rows = []
    print("| case | rank correlation, pixels | the same, neighbourhoods | rms spread | rms error | ratio |")
    print("|---|---|---|---|---|---|")
    for spec in plan_cases(protocol, limit=number, require_real=True).specs:
        case = spec.make(protocol)
        spread = method.uncertainty(case.degraded).astype(np.float64)
        error = np.abs(method.restore(case.degraded) - case.reference).astype(np.float64)
        around = [gaussian_filter(image**2, NEIGHBOURHOOD)[::8, ::8].ravel() for image in (spread, error)]
        pixels = spearmanr(spread.ravel(), error.ravel()).statistic
        means = float(np.mean(spread**2)), float(np.mean(error**2))
        rows.append((pixels, spearmanr(*around).statistic, *means))
        told = [f"{value:.2f}" for value in rows[-1][:2]] + [f"{value**0.5:.2f}" for value in means]
        print(f"| {spec.case_id} | {' | '.join(told)} | {(means[1] / means[0]) ** 0.5:.1f} |", flush=True)
    pixels, neighbourhoods, spread2, error2 = np.mean(rows, axis=0)
    rms = f"{spread2**0.5:.2f} | {error2**0.5:.2f} | {(error2 / spread2) ** 0.5:.1f} |"
    print(f"| all | {pixels:.2f} | {neighbourhoods:.2f} | {rms}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["warnings", *rest]:
            count_warnings(int(rest[0]) if rest else 400)
        case ["spread", name, *rest]:
            weigh_spread(name, int(rest[0]) if rest else 10)
        case _:
            sys.exit(__doc__)
