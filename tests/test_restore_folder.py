"""`sembench restore in/ --out out/`: names and pixel sizes kept, tiles by memory, what a method makes of nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_lines import invoke
from PIL import Image as Picture

from sembench import micrograph as mg
from sembench.checks.subject import scene
from sembench.commands import app, progress
from sembench.errors import CasesFailed, InputError
from sembench.execution import tiles

METHODS = '''
import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

from sembench.restorer import Restorer


class Counts(Restorer):
    """Adds how many pixels it was shown."""

    def tile_overlap(self):
        return 0

    def restore(self, image, /):
        return np.full_like(image, image.size / 1000)


class Odd(Counts):
    """Tells an overlap that is none."""

    def tile_overlap(self):
        return "wide"


class Dreams(Restorer):
    """Takes the highest bumps of the noise for particles."""

    def restore(self, image, /):
        smooth = gaussian_filter(image, 3)
        peaks = (smooth == maximum_filter(smooth, 31)) & (smooth > np.percentile(smooth, 98))
        return image.mean() + 60 * np.minimum(1, 40 * gaussian_filter(peaks.astype(np.float64), 3))


class Particular(Restorer):
    """Restores bright images alone."""

    def restore(self, image, /):
        if image.shape != (120, 160):
            raise RuntimeError("not of my size")
        return image


class Greedy(Restorer):
    """Asks for more memory than there is."""

    def restore(self, image, /):
        raise MemoryError
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in three formats, each with its own way to tell the pixel size."""
    images = tmp_path / "in"
    images.mkdir()
    pixels = scene(120, 160).astype(np.uint8)
    for name, unit, per_unit in (("imagej.tif", "nm", 0.4), ("fiji.ome.tif", "um", 400.0)):
        metadata = {"unit": unit}
        tifffile.imwrite(images / name, pixels, imagej=True, resolution=(per_unit, per_unit / 2), metadata=metadata)
    Picture.fromarray(pixels).save(images / "hitachi.png")
    (images / "hitachi.txt").write_text("[SemImageFile]\nPixelSize=2.5\n")
    (images / "notes.md").write_text("no image")
    (tmp_path / "methods.py").write_text(METHODS)
    return images


def restored(folder: Path, *words: object) -> dict[str, Any]:
    """What the command tells of each image, by name."""
    done = invoke(app, "restore", folder, "--out", folder.parent / "out", *words, "--json")
    assert done.exception is None, done.exception
    return {Path(one["image"]).name: one for one in json.loads(done.stdout)["images"]}


def test_names_and_pixel_sizes_are_kept_and_those_that_imagej_reads_too(folder: Path) -> None:
    told = restored(folder, "--restorer", "gaussian")
    out = folder.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["fiji.ome.tif", "hitachi.tif", "imagej.tif"]
    for name, size in (("imagej.tif", (2.5, 5.0)), ("fiji.ome.tif", (2.5, 5.0)), ("hitachi.tif", (2.5, 2.5))):
        assert mg.read(out / name).pixel_size_nm == pytest.approx(size)
        with tifffile.TiffFile(out / name) as tiff:
            tags = tiff.pages[0].tags
            assert tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER, "which ImageJ shows as micrometres"
            per_cm = [np.divide(*tags[f"{axis}Resolution"].value) for axis in "XY"]
        np.testing.assert_allclose(1e7 / np.array(per_cm), size, rtol=1e-6)
    assert told["hitachi.png"]["output"] == str(out / "hitachi.tif")
    assert told["imagej.tif"]["pixel_size_nm"] == pytest.approx([2.5, 5.0])


def test_memory_decides_on_tiles_and_the_result_stays_what_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = restored(folder, "--restorer", "gaussian", "--set", "sigma=2")
    assert {one["tiles"] for one in whole.values()} == {1}
    pixels = {name: mg.read(Path(one["output"])).pixels for name, one in whole.items()}
    monkeypatch.setattr(tiles, "free_memory", lambda: 2 * 82**2 * tiles.BYTES_A_PIXEL)
    monkeypatch.setattr(tiles, "SMALLEST_TILE", 64)
    cut = restored(folder, "--restorer", "gaussian", "--set", "sigma=2")
    assert {one["tiles"] for one in cut.values()} == {2 * 3}, "64 px and 9 px around them"
    for name, one in cut.items():
        assert "in 6 tiles of 64 px" in " ".join(one["notices"])
        assert np.abs(mg.read(Path(one["output"])).pixels - pixels[name]).max() <= 0.01 + 1 / 256
    assert {one["tiles"] for one in restored(folder, "--restorer", "tv").values()} == {1}, "it looks at the whole image"


def test_the_side_of_tiles_can_be_given(folder: Path) -> None:
    methods = folder.parent / "methods.py"
    counts = ["--restorer", f"{methods}:Counts"]
    for side, number, shown in (("80", 4, 60 * 80), ("0", 1, 120 * 160), ("auto", 1, 120 * 160)):
        (one, *_) = restored(folder, *counts, "--tile", side).values()
        assert one["tiles"] == number
        assert mg.read(Path(one["output"])).pixels[0, 0] == pytest.approx(shown / 1000, abs=0.01)
    for words, says in (
        ([*counts, "--tile", "63"], "--tile 63: give auto, 0 for none, or 64 px or more"),
        ([*counts, "--tile", "many"], "--tile many: give auto"),
        (["--restorer", "tv", "--tile", "80"], "--tile 80: tv is never cut, as its pixels depend on the whole image"),
        (["--restorer", f"{methods}:Odd"], "tile_overlap gives 'wide': give a whole number of px"),
    ):
        error = invoke(app, "restore", folder, "--out", folder.parent / "out", *words).exception
        assert isinstance(error, InputError), words
        assert says in str(error)


def test_a_blank_field_tells_how_much_a_method_invents(folder: Path) -> None:
    methods = folder.parent / "methods.py"
    done = invoke(app, "restore", folder, "--out", folder.parent / "out", "--restorer", f"{methods}:Dreams", "--json")
    images = json.loads(done.stdout)["images"]
    assert all(one["invented_structure"] > 2 for one in images)
    said = [line for line in done.stderr.splitlines() if "blank field" in line]
    assert len(said) == 3
    assert said[0].startswith(f"{folder / 'fiji.ome.tif'}: on a blank field with this image's noise ")
    assert f"{images[0]['invented_structure']:.1f} times the structure" in said[0]
    shown = invoke(app, "restore", folder, "--out", folder.parent / "out", "--restorer", "gaussian")
    assert "invented (× noise)" in shown.stdout
    assert shown.stdout.count(" │ 0.8") == 3
    assert "blank field" not in shown.stderr
    assert {one["invented_structure"] for one in restored(folder, "--restorer", "input").values()} == {1}
    without = restored(folder, "--restorer", "gaussian", "--no-blank-field")
    assert {one["invented_structure"] for one in without.values()} == {None}


def test_a_blank_field_that_cannot_be_restored_costs_no_image(folder: Path) -> None:
    mg.write(folder / "hitachi.png", np.full((120, 160), 99.0))
    told = restored(folder, "--restorer", f"{folder.parent / 'methods.py'}:Particular")
    assert {one["status"] for one in told.values()} == {"restored"}
    assert told["hitachi.png"]["invented_structure"] is None, "without noise there is nothing to invent from"
    Picture.fromarray(scene(300, 160).astype(np.uint8)).save(folder / "larger.png")
    one = ["restore", folder / "hitachi.png", "--out", folder.parent / "one.tif"]
    assert invoke(app, *one, "--restorer", "input", "--json").exception is None


def test_a_method_out_of_memory_is_one_line_that_says_what_to_do(folder: Path) -> None:
    out = folder.parent / "out"
    done = invoke(app, "restore", folder, "--out", out, "--restorer", f"{folder.parent / 'methods.py'}:Greedy")
    assert isinstance(done.exception, CasesFailed)
    assert "memory does not do for 120 x 160 px" in done.stderr
    assert "cut the image" in done.stderr


def test_how_far_a_folder_is_stands_on_stderr(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1.0)
    words = ["--restorer", "input", "--out", folder.parent / "out", "--json"]
    done = invoke(app, "restore", folder, *words)
    assert [line.split(" (")[0] for line in done.stderr.splitlines()] == ["1 of 3", "2 of 3", "3 of 3"]
    assert json.loads(done.stdout)["images"]
    one = ["--restorer", "gaussian", "--tile", "64", "--out", folder.parent / "one.tif"]
    done = invoke(app, "restore", folder / "imagej.tif", *one)
    assert "6 of 6 (" in done.stderr
