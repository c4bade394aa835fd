"""Flat fields: nothing but a case's own noise, known or read off its input."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from sembench import fast_scan, protocol
from sembench.cases import plan_cases
from sembench.cases.flat import FIELDS, SIDE, correlated_noise, flat_fields, noise_spectrum

S2S, S2R = protocol.load("s2s"), protocol.load("s2r")


def neighbours(noise: np.ndarray, axis: int) -> float:
    first, second = (np.delete(noise, i, axis) for i in (-1, 0))
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def structure(side: int = 320) -> np.ndarray:
    """Edges and blobs as sharp as a micrograph's that is sampled well: nothing beyond 0.35 cycles/px."""
    field = gaussian_filter(np.random.default_rng(1).standard_normal((side, side)), 4)
    return gaussian_filter(np.where(field > 0, 180.0, 60.0), 1.2)


def test_white_noise_of_the_paper_s_model_has_the_case_s_variance() -> None:
    plan = plan_cases(S2S, "phantom", limit=5)
    fields = flat_fields(plan.specs)
    assert [field.case_id for field in fields] == ["flat-P001", "flat-P002", "flat-P003"]
    assert len(fields) == FIELDS
    case, like = fields[1].make(S2S), plan.specs[1].make(S2S)
    assert case.flat
    assert case.degraded.shape == (SIDE, SIDE)
    assert case.reference is not None
    assert np.ptp(case.reference) == 0
    assert like.degradation is not None
    expected = like.degradation
    signal = expected.a * float(case.reference[0, 0]) + expected.b
    assert case.degraded.mean() == pytest.approx(signal, abs=0.2)
    assert case.degraded.var() == pytest.approx(signal / expected.dose + expected.sigma**2, rel=0.03)
    assert neighbours(case.degraded, 1) == pytest.approx(0, abs=0.02)
    again = fields[1].make(S2S)
    assert np.array_equal(again.degraded, case.degraded)


def test_noise_of_a_fast_scan_is_read_off_its_input() -> None:
    plan = plan_cases(S2R, "phantom", limit=3)
    like = plan.specs[0].make(S2R)
    case = flat_fields(plan.specs)[0].make(S2R)
    assert case.margin == like.margin
    expected = fast_scan.noise_variance(like.reference).mean()
    assert case.degraded.var() == pytest.approx(expected, rel=0.15)
    assert neighbours(case.degraded, 1) == pytest.approx(0.48, abs=0.04)
    assert neighbours(case.degraded, 0) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("correlation", [0.0, 0.62])
def test_structure_does_not_count_as_noise(correlation: float) -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(320, 320))
    if correlation:
        noise = gaussian_filter1d(noise, correlation, axis=1)
    noise *= 6 / noise.std()
    found = noise_spectrum(structure() + noise)
    made = correlated_noise(found, (400, 300), rng)
    assert made.std() == pytest.approx(6, rel=0.04)
    assert neighbours(made, 1) == pytest.approx(neighbours(noise, 1), abs=0.03)
    assert made.mean() == pytest.approx(0, abs=0.3)


def test_without_noise_there_is_next_to_none() -> None:
    assert correlated_noise(noise_spectrum(structure()), (256, 256), np.random.default_rng(0)).std() < 0.3
