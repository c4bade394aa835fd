"""Windows cover every pixel with weights that sum to 1, and a model that does nothing leaves no trace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restorers.semfm.windows import blend_windows, window_starts, window_weights
from sembench.errors import InputError

SIDES = st.sampled_from([16, 30, 64, 224])


@given(
    side=SIDES,
    share=st.floats(0, 1),
    shape=st.tuples(st.integers(32, 500), st.integers(32, 500)),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_identity_gives_back_the_image_exactly(
    side: int, share: float, shape: tuple[int, int], batch: int, seed: int
) -> None:
    images = np.random.default_rng(seed).uniform(-50, 300, (2, *shape)).astype(np.float32)
    blended = blend_windows(
        images, lambda windows: windows[:, 1], side=side, overlap=int(share * (side // 3 - 1)), batch=batch
    )
    np.testing.assert_array_equal(blended, images[1])


@given(side=SIDES, share=st.floats(0, 1), length=st.integers(1, 3000))
@settings(max_examples=150, deadline=None)
def test_weights_sum_to_one_and_no_three_windows_meet(side: int, share: float, length: int) -> None:
    overlap = int(share * (side // 3 - 1))
    starts = window_starts(length, side, overlap)
    weights = window_weights(starts, side, overlap)
    total, counted = np.zeros(max(length, side)), np.zeros(max(length, side), dtype=int)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
        counted[start : start + side] += weight > 0
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert counted.max() <= 2
    assert np.count_nonzero(counted == 2) == (len(starts) - 1) * overlap
    assert starts[0] == 0
    assert starts[-1] == max(length, side) - side


def test_the_ramp_is_half_a_hann_window() -> None:
    weights = window_weights([0, 56], 64, 8)
    position = np.arange(8) + 0.5
    np.testing.assert_allclose(weights[0, 56:], np.cos(np.pi * position / 16) ** 2, atol=1e-12)
    np.testing.assert_allclose(weights[1, :8], np.sin(np.pi * position / 16) ** 2, atol=1e-12)
    assert (weights[0, :56] == 1).all()
    assert (weights[1, 8:] == 1).all()


def test_a_seam_is_as_smooth_as_its_ramp() -> None:
    """Windows that differ by a constant: the blend goes from one to the other by the ramp and nowhere else."""
    calls = iter([0.0, 100.0])
    blended = blend_windows(
        np.zeros((1, 64, 120), np.float32),
        lambda windows: np.full((1, 64, 64), next(calls), np.float32),
        side=64,
        overlap=8,
        batch=1,
    )
    assert (blended[:, :56] == 0).all()
    assert (blended[:, 64:] == 100).all()
    np.testing.assert_allclose(blended[5, 56:64], 100 * np.sin(np.pi * (np.arange(8) + 0.5) / 16) ** 2, atol=1e-4)


@pytest.mark.parametrize("overlap", [-1, 74, 300])
def test_an_overlap_of_a_third_is_refused(overlap: int) -> None:
    with pytest.raises(InputError, match="0 to 73"):
        window_starts(500, 224, overlap)
