"""The metrology protocol's scenes against what the science freezes."""

import numpy as np
import pytest

from sembench import line_scenes, optics


@pytest.fixture(scope="module")
def drawn() -> dict[str, line_scenes.SceneParameters]:
    ids = line_scenes.scene_ids()
    return {name: line_scenes.draw_scene(optics.generator(2604, name, "scene"), name) for name in ids}


def test_sixty_scenes_lie_in_the_frozen_ranges(drawn: dict[str, line_scenes.SceneParameters]) -> None:
    assert list(drawn) == [f"M{i:03d}" for i in range(1, 61)]
    for scene in drawn.values():
        assert 24 <= scene.pitch <= 60
        assert min(scene.duty, 1 - scene.duty) * scene.pitch >= 10 - 1e-9
        assert 0.5 <= scene.sigma <= min(1.5, scene.pitch / 20)
        assert 10 <= scene.xi <= 25
        assert 0.4 <= scene.hurst <= 0.8
        assert abs(scene.tilt_deg) <= 1


def test_duty_contrast_noise_and_rim_follow_from_the_number(drawn: dict[str, line_scenes.SceneParameters]) -> None:
    scenes = list(drawn.values())
    assert [scene.contrast for scene in scenes[:5]] == [8, 4, 2.7, 2, 8]
    assert [i for i, scene in enumerate(scenes, 1) if scene.correlated] == list(range(25, 49))
    assert [i for i, scene in enumerate(scenes, 1) if scene.rim] == list(range(49, 61))
    wide = [scene.duty for scene in scenes if scene.pitch > 30]
    assert set(np.round(wide, 9)) == {0.35, 0.5, 0.65}


@pytest.mark.parametrize(
    ("name", "contrast", "neighbour", "next_but_one"), [("M004", 2, 0, 0), ("M025", 8, 0.48, 0.066)]
)
def test_the_noise_has_the_stated_strength_and_correlation(
    name: str, contrast: float, neighbour: float, next_but_one: float
) -> None:
    made = line_scenes.phantom_lines(2604, name)
    signal = optics.blur(made.reference, made.degradation.kernel())
    step = float(np.percentile(made.reference, 95) - np.percentile(made.reference, 5))
    noise = made.degraded - signal
    near_middle = np.abs(signal - line_scenes.MIDDLE) < step / 10
    assert noise[near_middle].std() == pytest.approx(step / contrast, rel=0.02)
    line, space = signal > line_scenes.MIDDLE + step / 3, signal < line_scenes.MIDDLE - step / 3
    expected = signal[line].mean() / line_scenes.MIDDLE + 1
    assert noise[line].var() / noise[space].var() == pytest.approx(
        expected / (signal[space].mean() / line_scenes.MIDDLE + 1), rel=0.03
    )
    for lag, correlation in ((1, neighbour), (2, next_but_one)):
        found = np.corrcoef(noise[:, lag:].ravel(), noise[:, :-lag].ravel())[0, 1]
        assert found == pytest.approx(correlation, abs=0.01)
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.01
    assert np.mean((made.degraded == 0) | (made.degraded == 255)) < 1e-3
    assert np.array_equal(made.degraded, np.rint(made.degraded))


def test_truth_marks_where_the_reference_crosses_half_height() -> None:
    made = line_scenes.phantom_lines(2604, "M002")
    assert made.truth is not None
    rows = np.arange(0, 1024, 16)
    crossings = []
    for row in rows:
        for column, sign in zip(made.truth.edges[row], np.resize([1, -1], made.truth.edges.shape[1]), strict=True):
            near = np.arange(int(column) - 4, int(column) + 6)
            near = near[(near >= 0) & (near < 1024)]
            values = sign * (made.reference[row, near] - line_scenes.MIDDLE)
            crossings.append(np.interp(0, values, near) - column)
    assert abs(np.mean(crossings)) < 0.02
    assert np.std(crossings) < 0.15


def test_the_blur_is_an_airy_disc_averaged_over_pixels() -> None:
    """Against a fine numerical integral of the disc over each pixel; its first zero lies at 1.22 radii."""
    from scipy.special import j1

    radius, fine = 1.64, 60
    kernel = optics.airy_psf(radius, radius, oversampling=9)
    axis = (np.arange(11 * fine) + 0.5) / fine - 5.5
    argument = np.pi * np.hypot(*np.meshgrid(axis, axis)) / radius
    disc = (2 * j1(argument) / argument) ** 2
    integrated = disc.reshape(11, fine, 11, fine).mean(axis=(1, 3))
    assert kernel.shape == (11, 11)
    np.testing.assert_allclose(kernel, integrated / integrated.sum(), atol=1e-3)
    assert np.argmin(disc[5 * fine + fine // 2, 5 * fine + fine // 2 : 8 * fine]) / fine == pytest.approx(
        1.22 * radius, abs=0.05
    )


def test_real_lines_are_stretched_and_made_noisy() -> None:
    pixels = np.tile(np.repeat([40.0, 90.0], 16), (256, 8))
    made = line_scenes.real_lines(pixels, 40.0, 90.0, 32.0, 4.0, 2604, "R01")
    assert made.reference.min() + made.reference.max() == pytest.approx(255, abs=0.01)
    assert made.degradation.rx <= 3.2
    step = float(made.reference.max() - made.reference.min())
    assert step == pytest.approx(127.5 / (0.5 + 3.3 / 4), rel=1e-3)
    again = line_scenes.real_lines(pixels, 40.0, 90.0, 32.0, 4.0, 2604, "R01")
    assert np.array_equal(made.degraded, again.degraded)
