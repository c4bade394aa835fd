"""Tiles: what comes of an image in tiles is what comes of it at once; how large they are follows from the memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sembench.checks.subject import scene
from sembench.execution import tiles
from sembench.registry import RESTORERS, find_method, load_method, plugins
from sembench.restorer import Image

GIGABYTE = 10**9


def tiled_methods() -> list[str]:
    """The restorers of this suite that may be cut."""
    own = [name for name, claims in plugins(RESTORERS).items() if claims[0].distribution == "sembench"]
    classes = {name: find_method(name).cls for name in own}
    return [name for name, cls in classes.items() if cls.kind == "restorer" and cls().tile_overlap() is not None]


def test_some_methods_may_be_cut() -> None:
    assert {"input", "gaussian", "median"} <= {*tiled_methods()}


@pytest.mark.parametrize("name", tiled_methods())
@pytest.mark.parametrize("shape", [(300, 411), (64, 700)])
def test_tiles_give_the_whole_image_within_the_stated_tolerance(name: str, shape: tuple[int, int]) -> None:
    method, image = load_method(name), scene(*shape)
    overlap = method.tile_overlap()
    whole = method.restore(image)
    for side in (64, 96, 200):
        apart = np.abs(tiles.restore_tiles(method.restore, image, overlap, side) - whole).max()
        assert apart <= method.tile_tolerance <= 0.01
    if overlap:
        narrow = tiles.restore_tiles(method.restore, image, 0, 64)
        assert np.abs(narrow - whole).max() > 1, "without surroundings the seams show"


@given(st.integers(32, 400), st.integers(32, 400), st.integers(64, 200), st.integers(0, 40))
def test_every_pixel_is_made_once_by_a_tile_that_sees_its_surroundings(
    height: int, width: int, side: int, overlap: int
) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (height, width)).astype(np.float32)
    seen: list[tuple[int, ...]] = []
    told: list[tuple[int, int]] = []

    def same(part: Image) -> Image:
        assert not part.flags.writeable
        seen.append(part.shape)
        return part

    made = tiles.restore_tiles(same, image, overlap, side, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(made, image)
    count = tiles.tile_count(image.shape, side)
    assert told == [(done, count) for done in range(1, count + 1)]
    assert all(32 <= length <= side + 2 * overlap for shape in seen for length in shape)


def test_a_tile_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"result of shape \(69, 70\) for a tile of shape \(70, 70\)"):
        tiles.restore_tiles(lambda part: part[1:], scene(128, 128), 6, 64)


@pytest.mark.parametrize("overlap", [0, 13, 160])
@pytest.mark.parametrize("free", [0.2, 2, 16, 100])
def test_tiles_take_no_more_than_half_of_the_free_memory(free: float, overlap: int) -> None:
    room = free * GIGABYTE / 2
    for shape in ((768, 1024), (4096, 6144), (20_000, 30_000)):
        side = tiles.tile_side(shape, overlap, int(free * GIGABYTE))
        if side is None:
            assert shape[0] * shape[1] * tiles.BYTES_A_PIXEL <= room
        elif side > tiles.SMALLEST_TILE:
            assert shape[0] * shape[1] * tiles.BYTES_A_PIXEL > room
            assert (side + 2 * overlap) ** 2 * tiles.BYTES_A_PIXEL <= room
            assert (side + 2 * overlap + 1) ** 2 * tiles.BYTES_A_PIXEL > room


def test_an_image_of_ordinary_size_is_restored_at_once_where_memory_is_ample() -> None:
    assert tiles.tile_side((1024, 1280), 13, 8 * GIGABYTE) is None
    assert tiles.tile_count((1024, 1280), None) == 1
    assert tiles.tile_side((12_000, 16_000), 13, 8 * GIGABYTE) is not None


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert 0 < tiles.free_memory(tmp_path) < 2**50
    for name, text in (
        ("memory.max", "5000000"),
        ("memory.current", "4000000"),
        ("memory.stat", "anon 3000000\ninactive_file 500000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert tiles.free_memory(tmp_path) == 1_500_000
    (tmp_path / "memory.current").write_text("9000000")
    assert tiles.free_memory(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert tiles.free_memory(tmp_path) > 10_000_000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("7000000")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000000")
    assert tiles.free_memory(tmp_path) == 6_000_000


def test_memory_is_what_tiles_are_for() -> None:
    """The largest array that a method is handed stays as small as the tile, whatever the image."""
    sizes: list[int] = []

    def smooth(part: Image) -> Image:
        sizes.append(part.size)
        return np.asarray(gaussian_filter(part, 2), np.float32)

    image = scene(600, 900)
    side = tiles.tile_side(image.shape, 9, 2 * 300**2 * tiles.BYTES_A_PIXEL)
    assert side == 282
    tiles.restore_tiles(smooth, image, 9, side)
    assert max(sizes) <= 300**2
