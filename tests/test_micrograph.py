"""Reading, writing and the grid: exact values, other libraries' files, the instruments' own files, and bad input."""

import hashlib
import io
import logging
import lzma
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sembench import micrograph as mg
from sembench.errors import InputError, WriteError

RAMP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 256


@pytest.fixture(autouse=True)
def _no_library_warning(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing that a library says may reach the user, on any path: not Python's warnings, not C's stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr().err == ""


def save(path: Path, values: np.ndarray, **options: Any) -> Path:
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values, **{"metadata": None, **options})
    else:
        Image.fromarray(values).save(path, **options)
    return path


def png16(values: np.ndarray, interlace: int = 0) -> bytes:
    """A 16-bit PNG written by hand, with a text chunk that libpng finds wrong."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, interlace)
    profile = chunk(b"iCCP", b"wrong\0\0" + zlib.compress(b"no profile"))
    parts = [chunk(b"IHDR", header), profile, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Gray levels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
def test_8_bit_values_are_the_gray_levels(tmp_path: Path, suffix: str) -> None:
    values = RAMP.astype(np.uint8)
    image = mg.read(save(tmp_path / f"a{suffix}", values))
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, values)
    assert (image.pixel_size_nm, image.pixel_size_source, image.notices) == (None, "", ())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_values_are_scaled_by_the_whole_range(tmp_path: Path, suffix: str) -> None:
    values = (RAMP * 257).astype(np.uint16)
    values[0, 0] = 1000
    expected = RAMP.astype(np.float32)
    expected[0, 0] = 1000 * 255 / 65535
    np.testing.assert_array_equal(mg.read(save(tmp_path / f"a{suffix}", values)).pixels, expected)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", RAMP.astype(np.uint8), quality=90)
    np.testing.assert_array_equal(mg.read(path).pixels, np.asarray(Image.open(path)))


def test_signed_and_boolean_and_npy_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "signed.npy", np.array([[-32768, 32767], [0, -1]], dtype=np.int16))
    np.testing.assert_allclose(
        mg.read(tmp_path / "signed.npy").pixels, [[0, 255], [32768 / 257, 32767 / 257]], rtol=1e-6
    )
    np.save(tmp_path / "mask.npy", np.array([[True, False]]))
    np.testing.assert_array_equal(mg.read(tmp_path / "mask.npy").pixels, [[255, 0]])


def test_bilevel_and_12_bit_samples_span_their_own_range(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint8) > 127).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(mg.read(tmp_path / "a.tif").pixels, np.where(RAMP > 127, 255, 0))
    twelve = (RAMP * 16).astype(np.uint16)
    twelve[0, 0] = 4095
    import imagecodecs

    packed = imagecodecs.packints_encode(twelve.ravel(), 12)
    path = save(tmp_path / "b.tif", twelve, rowsperstrip=48)
    patched = tmp_path / "c.tif"
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        start, bits, counts = page.dataoffsets[0], page.tags[258].valueoffset, page.tags[279].valueoffset
        long_count = page.tags[279].dtype == 4
    content = bytearray(path.read_bytes())
    content[start : start + len(packed)] = packed
    struct.pack_into("<H", content, bits, 12)
    struct.pack_into("<I" if long_count else "<H", content, counts, len(packed))
    patched.write_bytes(content)
    np.testing.assert_allclose(mg.read(patched).pixels, twelve * (255 / 4095), rtol=1e-6)


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", RAMP.astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(mg.read(path).pixels, 255 - RAMP)


def test_float_tiff_and_npy_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.array([[0.1, 255.0], [17.3, 200.5]], dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(mg.read(save(tmp_path / "a.tif", values)).pixels, values)
    np.testing.assert_array_equal(mg.read(tmp_path / "a.npy").pixels, values)
    np.testing.assert_array_equal(mg.read(save(tmp_path / "b.tif", values.astype(np.float64))).pixels, values)


def test_float_in_0_1_or_beyond_255_is_told(tmp_path: Path) -> None:
    assert "range 0,1" in mg.read(save(tmp_path / "a.tif", np.array([[0.0, 1.0]], np.float32))).notices[0]
    beyond = mg.read(save(tmp_path / "b.tif", np.array([[-5.0, 300.0]], np.float32)))
    np.testing.assert_array_equal(beyond.pixels, [[-5, 300]])
    assert "-5 to 300" in beyond.notices[0]


def test_value_range(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 819, 5000]], dtype=np.uint16)
    image = mg.read(save(tmp_path / "a.tif", values), value_range=(0, 4095))
    np.testing.assert_array_equal(image.pixels, np.array([[0, 255, 51, 255]], np.float32))
    assert image.notices == ()
    told = mg.read(save(tmp_path / "b.tif", values[:, :3]))
    assert "0,4095" in told.notices[0]
    unit = save(tmp_path / "c.tif", np.array([[0.0, 0.5, 1.0]], np.float32))
    np.testing.assert_array_equal(mg.read(unit, value_range=(0, 1)).pixels, [[0, 127.5, 255]])


@pytest.mark.parametrize("value_range", [(5.0, 5.0), (9.0, 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_wrong_value_range(tmp_path: Path, value_range: tuple[float, float]) -> None:
    path = save(tmp_path / "a.tif", RAMP.astype(np.uint8))
    with pytest.raises(InputError, match="the lower first"):
        mg.read(path, value_range=value_range)


# Colour


def test_luma_of_colour_and_one_of_equal_channels(tmp_path: Path) -> None:
    rgb = np.zeros((1, 4, 3), dtype=np.uint8)
    rgb[0, 0], rgb[0, 1], rgb[0, 2], rgb[0, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 20, 30)
    expected = np.array([[76.245, 149.685, 29.07, 0.299 * 10 + 0.587 * 20 + 0.114 * 30]], np.float32)
    for suffix in (".png", ".tif", ".bmp"):
        np.testing.assert_allclose(mg.read(save(tmp_path / f"a{suffix}", rgb)).pixels, expected, rtol=1e-6)
    gray = np.repeat(RAMP.astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(mg.read(save(tmp_path / "g.png", gray)).pixels, RAMP)
    planar = save(tmp_path / "p.tif", np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(mg.read(planar).pixels, expected, rtol=1e-6)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    gray = RAMP.astype(np.uint8)
    alpha = gray[::-1]
    np.testing.assert_array_equal(mg.read(save(tmp_path / "a.png", np.dstack([gray, alpha]))).pixels, gray)
    np.testing.assert_array_equal(mg.read(save(tmp_path / "b.png", np.dstack([gray] * 3 + [alpha]))).pixels, gray)
    tif = save(tmp_path / "c.tif", np.dstack([gray] * 3 + [alpha]), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(mg.read(tif).pixels, gray)


def test_16_bit_colour_png_keeps_its_16_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 65536, (20, 24, 4), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(colour))
    expected = (0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]) / 257
    np.testing.assert_allclose(mg.read(tmp_path / "a.png").pixels, expected, rtol=1e-6)
    (tmp_path / "b.png").write_bytes(png16(colour[..., :2]))
    np.testing.assert_allclose(mg.read(tmp_path / "b.png").pixels, colour[..., 0] / 257, rtol=1e-6)
    (tmp_path / "c.png").write_bytes(png16(colour, interlace=1))
    with pytest.raises(InputError, match="interlac"):
        mg.read(tmp_path / "c.png")


def test_colour_is_judged_after_the_crop(tmp_path: Path) -> None:
    rgb = np.repeat(np.full((40, 32, 1), 7, np.uint8), 3, axis=2)
    rgb[::2] += 1
    rgb[30:, :, 0] = 200
    path = save(tmp_path / "bar.png", rgb)
    cut = mg.read(path, crop=(0, 10, 0, 0)).pixels
    assert set(np.unique(cut)) == {7.0, 8.0}
    assert mg.read(path).pixels.shape == (40, 32)


@pytest.mark.parametrize("step", [256, 257, 1])
def test_palette_tiff_shows_its_colour_map(tmp_path: Path, step: int) -> None:
    indices = RAMP.astype(np.uint8)
    ramp = np.arange(256, dtype=np.uint16)[::-1] * step
    path = save(tmp_path / "a.tif", indices, photometric="palette", colormap=np.stack([ramp] * 3))
    np.testing.assert_array_equal(mg.read(path).pixels, 255 - RAMP)


def test_palette_png(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP.astype(np.uint8)).convert("P")
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=3)
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(mg.read(tmp_path / name).pixels, 255 - RAMP)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_are_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    if mode == "LAB":
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40, 3), np.uint8), photometric="cielab", metadata=None)
    else:
        image.convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: colour space .* is not supported"):
        mg.read(tmp_path / "a.tif")


def test_cmyk_jpeg_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="colour mode CMYK"):
        mg.read(tmp_path / "a.jpg")


# Crop


def test_crop_cuts_top_bottom_left_right(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RAMP.astype(np.uint8))
    np.testing.assert_array_equal(mg.read(path, crop=(1, 2, 3, 4)).pixels, RAMP[1:46, 3:60])
    np.testing.assert_array_equal(mg.read(path, crop=(1, 2, 0, 0), crop_bottom="0.25").pixels, RAMP[1:36])
    assert mg.read(path, crop_bottom="auto").pixels.shape == (45, 64)


@pytest.mark.parametrize(
    ("text", "height", "rows"),
    [("auto", 960, 64), ("auto", 1024, 68), ("AUTO", 480, 32), ("0", 960, 0), ("59", 943, 59), ("0.5", 10, 5)],
)
def test_crop_bottom_rows(text: str, height: int, rows: int) -> None:
    assert mg.crop_bottom_rows(text, height) == rows


@pytest.mark.parametrize("text", ["", "half", "-3", "1.0", "-0.1", "nan", "1e3"])
def test_wrong_crop_bottom(text: str) -> None:
    with pytest.raises(InputError, match="give auto, 0"):
        mg.crop_bottom_rows(text, 100)


@pytest.mark.parametrize("crop", [(0, 48, 0, 0), (30, 30, 0, 0), (0, 0, 64, 0), (-1, 0, 0, 0)])
def test_wrong_crop(tmp_path: Path, crop: tuple[int, int, int, int]) -> None:
    path = save(tmp_path / "a.png", RAMP.astype(np.uint8))
    with pytest.raises(InputError, match="crop"):
        mg.read(path, crop=crop)


def test_parse_range() -> None:
    assert mg.parse_range("10, 4095.5") == (10.0, 4095.5)
    for text in ("", "1", "1,2,3", "a,b", "3,1", "nan,2"):
        with pytest.raises(InputError, match="for example 0,4095"):
            mg.parse_range(text)


# Files


def test_xz_files_and_their_sidecars(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.tif", RAMP.astype(np.uint8))
    packed = tmp_path / "b.tif.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"PixelSize=12.5\r\n"))
    image = mg.read(packed)
    np.testing.assert_array_equal(image.pixels, RAMP)
    assert image.pixel_size_nm == (12.5, 12.5)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"b\.tif\.xz: damaged \.xz"):
        mg.read(packed)


def test_list_images_and_stems(tmp_path: Path) -> None:
    for name in ("b.TIF", "a.png", "c.npy", "d.jpeg.xz", "notes.txt", ".hidden.png", "e.gif", "a.b.tif"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    listed = mg.list_images(tmp_path)
    assert [path.name for path in listed] == ["a.b.tif", "a.png", "b.TIF", "c.npy", "d.jpeg.xz"]
    assert [mg.image_stem(path) for path in listed] == ["a.b", "a", "b", "c", "d"]
    with pytest.raises(InputError, match="cannot be listed"):
        mg.list_images(tmp_path / "missing")


def one_line(error: pytest.ExceptionInfo[Any], path: Path) -> str:
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".bmp", ".npy"])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"a{suffix}"
    mg_values = rng.integers(0, 256, (100, 90), dtype=np.uint8)
    if suffix == ".npy":
        np.save(path, mg_values)
    else:
        save(path, mg_values)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError) as error:
        mg.read(path)
    one_line(error, path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
def test_truncated_compressed_tiff(tmp_path: Path, compression: str | None) -> None:
    values = np.random.default_rng(0).integers(0, 256, (100, 96), dtype=np.uint8)
    path = save(tmp_path / "a.tif", values, compression=compression, rowsperstrip=16)
    assert mg.read(path).pixels.shape == (100, 96)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "truncated" in one_line(error, path)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".bmp", ".npy", ".tif.xz"])
def test_text_empty_missing_and_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "no such file" in one_line(error, path)
    path.touch()
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "empty" in one_line(error, path)
    path.write_text("Dear microscopist,\nthis is no image.\n")
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "not a PNG" in one_line(error, path)
    with pytest.raises(InputError, match="this is a folder"):
        mg.read(tmp_path)


@pytest.mark.parametrize("start", [b"II*\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"\x93NUMPY", b"II+\0"])
@given(tail=st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_line(start: bytes, tail: bytes) -> None:
    with pytest.raises(InputError) as error:
        mg.read_bytes(start + tail, "x.img")
    assert str(error.value).startswith("x.img: ")
    assert "\n" not in str(error.value)


@given(data=st.data())
def test_a_damaged_tiff_is_read_or_refused(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, RAMP.astype(np.uint8), metadata=None)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 260))] = data.draw(st.integers(0, 255))
    try:
        image = mg.read_bytes(bytes(content), "x.tif")
    except InputError:
        return
    assert image.pixels.ndim == 2


def test_small_and_black_images_are_read(tmp_path: Path) -> None:
    small = mg.read(save(tmp_path / "s.png", RAMP[:20, :20].astype(np.uint8)))
    assert small.pixels.shape == (20, 20)
    black = mg.read(save(tmp_path / "b.tif", np.zeros((64, 64), np.uint16)))
    assert black.notices == ()
    assert not black.pixels.any()
    assert mg.read(save(tmp_path / "f.tif", np.zeros((64, 64), np.float32))).notices == ()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_not_finite_is_refused(tmp_path: Path, wrong: float) -> None:
    values = np.ones((40, 40), np.float32)
    values[3, 4] = wrong
    path = save(tmp_path / "a.tif", values)
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "1 values are not finite" in one_line(error, path)


def test_pages_in_a_circle_are_refused_instead_of_followed_for_ever(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((40, 36), np.uint8))
    content = bytearray(buffer.getvalue())
    first = int.from_bytes(content[4:8], "little")
    size = 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    second = len(content)
    content += content[first : first + size] + first.to_bytes(4, "little")
    content[first + size : first + size + 4] = second.to_bytes(4, "little")
    path = tmp_path / "circle.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"circle\.tif: more than 256 pages, or pages in a circle"):
        mg.read(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_claims_more_than_its_file_holds_takes_no_memory(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "claims.tif"
    tifffile.imwrite(path, np.zeros((40, 36), np.uint8), compression=compression)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(2**27)
    with pytest.raises(InputError, match=r"claims\.tif: 40 x 134217728 px in a file of \d+ bytes cannot be"):
        mg.read(path)


def test_an_xz_file_is_expanded_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.tif.xz"
    path.write_bytes(lzma.compress(bytes(40 * 2**20)))
    monkeypatch.setattr(mg, "MOST_EXPANDED_BYTES", 2**20)
    with pytest.raises(InputError, match=r"bomb\.tif\.xz: more than 1 MiB in an \.xz file"):
        mg.read(path)


def test_stacks_are_refused_and_thumbnails_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.zeros((5, 40, 40), np.uint8), photometric="minisblack")
    with pytest.raises(InputError) as error:
        mg.read(path)
    assert "stack of 5 pages" in one_line(error, path)
    np.save(tmp_path / "b.npy", np.zeros((5, 40, 40)))
    with pytest.raises(InputError, match=r"b\.npy: values of shape"):
        mg.read(tmp_path / "b.npy")
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
        writer.write(RAMP.astype(np.uint8), metadata=None)
        writer.write(np.zeros((16, 16), np.uint8), metadata=None)
    image = mg.read(tmp_path / "c.tif")
    np.testing.assert_array_equal(image.pixels, RAMP)
    assert "first of 2 pages" in image.notices[0]


def test_objects_in_npy_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"damaged \.npy"):
        mg.read(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.ones((4, 4), complex))
    with pytest.raises(InputError, match="no gray levels"):
        mg.read(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.ones((0, 4)))
    with pytest.raises(InputError, match="no pixels"):
        mg.read(tmp_path / "c.npy")


def test_loggers_are_left_as_they_were(tmp_path: Path) -> None:
    before = list(logging.getLogger("tifffile").filters)
    with pytest.raises(InputError):
        mg.read_bytes(b"II*\0" + b"\1" * 40, "x")
    assert logging.getLogger("tifffile").filters == before


# Pixel size


def tagged(path: Path, *tags: tuple[int, int, Any], **options: Any) -> Path:
    """A TIFF with extra tags (code, TIFF type, value)."""
    extra = [(code, kind, len(value), value, True) for code, kind, value in tags]
    return save(path, RAMP.astype(np.uint8), extratags=extra, **options)


FEI = (
    "[Beam]\r\nBeam=EBeam\r\nScan=EScan\r\n[EScan]\r\nDwell=1e-6\r\n{}[Scan]\r\nPixelWidth=2e-9\r\nPixelHeight=3e-9\r\n"
)
ZEISS = "0\r\n" * 20 + "{}"


@pytest.mark.parametrize("code", [34682, 34680])
def test_fei_tags(tmp_path: Path, code: int) -> None:
    both = tagged(tmp_path / "a.tif", (code, 2, FEI.format("PixelWidth=1.5e-9\r\nPixelHeight=1.25e-9\r\n") + "\0"))
    image = mg.read(both)
    assert image.pixel_size_nm == pytest.approx((1.5, 1.25), rel=1e-12)
    assert image.pixel_size_source == f"FEI tag {code}"
    scan_only = tagged(tmp_path / "b.tif", (code, 2, FEI.format("") + "\0"))
    assert mg.read(scan_only).pixel_size_nm == pytest.approx((2.0, 3.0), rel=1e-12)


def zeiss(path: Path, *entries: tuple[str, str]) -> Path:
    text = ZEISS.format("".join(f"{name}\r\n{value}\r\n" for name, value in entries))
    return tagged(path, (34118, 2, text + "\0"))


@pytest.mark.parametrize(("value", "nm"), [("5.86 nm", 5.86), ("900.9 pm", 0.9009), ("1.2 µm", 1200.0)])
def test_zeiss_tag(tmp_path: Path, value: str, nm: float) -> None:
    text = ZEISS.format(f"AP_PIXEL_SIZE\r\nPixel Size = 77 nm\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {value}\r\n")
    raw = text.encode("cp1252") + b"\0"
    image = mg.read(tagged(tmp_path / "a.tif", (34118, 7, raw)))
    assert image.pixel_size_nm == pytest.approx((nm, nm), rel=1e-12)
    assert image.notices == ()


def test_zeiss_display_pixel_size_only_alone_and_told(tmp_path: Path) -> None:
    image = mg.read(zeiss(tmp_path / "a.tif", ("AP_PIXEL_SIZE", "Pixel Size = 53.91 nm")))
    assert image.pixel_size_nm == (53.91, 53.91)
    assert "AP_PIXEL_SIZE" in image.notices[0]
    assert image.notices[0].startswith(str(tmp_path / "a.tif"))


def test_tescan_tag_and_sidecar(tmp_path: Path) -> None:
    text = b"\x00\xffjunk\n[MAIN]\nPixelSizeX=4.5e-009\nPixelSizeY=0.000000005\n"
    image = mg.read(tagged(tmp_path / "a.tif", (50431, 1, text)))
    assert image.pixel_size_nm == pytest.approx((4.5, 5.0), rel=1e-12)
    path = save(tmp_path / "b.png", RAMP.astype(np.uint8))
    (tmp_path / "b-png.hdr").write_text("[MAIN]\r\nPixelSizeX=1e-9\r\nPixelSizeY=1e-9\r\n")
    assert mg.read(path).pixel_size_source == "TESCAN .hdr sidecar"
    assert mg.read(path).pixel_size_nm == pytest.approx((1.0, 1.0), rel=1e-12)


@pytest.mark.parametrize("encoding", ["ascii", "utf-16", "utf-8-sig", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.TXT"])
def test_hitachi_sidecar(tmp_path: Path, encoding: str, name: str) -> None:
    path = save(tmp_path / "a.jpg", RAMP.astype(np.uint8))
    (tmp_path / name).write_bytes("[SemImageFile]\r\nPixelSize=99.21875\r\nCondition=x\r\n".encode(encoding))
    assert mg.read(path).pixel_size_nm == (99.21875, 99.21875)


def test_hitachi_tag(tmp_path: Path) -> None:
    text = "SerialNumber=1\r\nPixelSize=0.827009\r\nCondition=Mag=x120k\r\n".encode("utf-16-le") + b"\0\0"
    image = mg.read(tagged(tmp_path / "a.tif", (40092, 1, text), resolution=(256, 256), resolutionunit="INCH"))
    assert (image.pixel_size_nm, image.pixel_size_source) == ((0.827009, 0.827009), "Hitachi tag 40092")
    assert image.notices == ()


def test_jeol_sidecar(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", RAMP.astype(np.uint8))
    beside = tmp_path / "a.txt"
    beside.write_text("$CM_MAG 50000\r\n$$SM_MICRON_BAR 80\r\n$$SM_MICRON_MARKER 1um\r\n")
    assert mg.read(path).pixel_size_nm == (12.5, 12.5)
    beside.write_text("$CM_MAG 50\r\n$CM_FULL_SIZE 1280 960\r\n$$SM_MICRON_MARKER 500um\r\n")
    image = mg.read(path)
    assert image.pixel_size_nm == pytest.approx((1984.375, 1984.375))
    assert "magnification" in image.notices[0]
    for unknown in ("Sample 7, seen by Ana on Monday\n", "$$SM_MICRON_BAR 80\r\n$$SM_MICRON_MARKER 1ump\r\n"):
        beside.write_text(unknown)
        assert mg.read(path).pixel_size_nm is None


@pytest.mark.parametrize(
    ("resolution", "unit", "nm"),
    [
        ((1e6, 5e5), "CENTIMETER", (10.0, 20.0)),
        ((2540, 2540), "INCH", (10_000.0, 10_000.0)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((500, 500), "CENTIMETER", None),
        ((1, 1), "NONE", None),
    ],
)
def test_resolution_tags(tmp_path: Path, resolution: tuple[float, float], unit: str, nm: Any) -> None:
    path = save(tmp_path / "a.tif", RAMP.astype(np.uint8), resolution=resolution, resolutionunit=unit)
    assert mg.read(path).pixel_size_nm == (nm if nm is None else pytest.approx(nm, rel=1e-6))


def test_imagej_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RAMP.astype(np.uint8), imagej=True, resolution=(0.2, 0.25), metadata={"unit": "nm"})
    assert mg.read(path).pixel_size_nm == pytest.approx((5, 4), rel=1e-6)
    tifffile.imwrite(path, RAMP.astype(np.uint8), imagej=True, resolution=(50, 50), metadata={"unit": "um"})
    assert mg.read(path).pixel_size_nm == pytest.approx((20, 20), rel=1e-6)


@pytest.mark.parametrize(("nm_by_resolution", "told"), [(1.5, False), (1.51, False), (1.53, True)])
def test_the_vendors_size_wins_and_a_difference_is_told(tmp_path: Path, nm_by_resolution: float, told: bool) -> None:
    text = FEI.format("PixelWidth=1.5e-9\r\nPixelHeight=1.5e-9\r\n") + "\0"
    per_cm = 1e7 / nm_by_resolution
    path = tagged(tmp_path / "a.tif", (34682, 2, text), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    image = mg.read(path)
    assert image.pixel_size_nm == pytest.approx((1.5, 1.5))
    assert bool(image.notices) is told


@pytest.mark.parametrize("value", ["0", "-1e-9", "nan", "wide", ""])
def test_a_meaningless_size_is_no_size(tmp_path: Path, value: str) -> None:
    path = tagged(tmp_path / "a.tif", (34682, 2, f"[Scan]\r\nPixelWidth={value}\r\n\0"))
    assert mg.read(path).pixel_size_nm is None


# Writing


@given(x=st.floats(1e-3, 1e7), y=st.floats(1e-3, 1e7))
def test_tif_keeps_pixels_and_pixel_size_exactly(x: float, y: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "kept.tif"
    pixels = np.random.default_rng(3).normal(100, 80, (33, 47)).astype(np.float32)
    mg.write(path, pixels, (x, y))
    image = mg.read(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.pixel_size_nm == (x, y)
    assert not [notice for notice in image.notices if "pixel size" in notice]


def test_other_programs_read_our_resolution_tags(tmp_path: Path) -> None:
    mg.write(tmp_path / "a.tif", RAMP.astype(np.float32), (4.537772, 9.0))
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "F"
        assert float(image.tag_v2[282]) == pytest.approx(1e7 / 4.537772, rel=1e-6)
        assert float(image.tag_v2[283]) == pytest.approx(1e7 / 9.0, rel=1e-6)
        assert image.tag_v2[296] == 3


def test_write_npy_png_and_micrograph(tmp_path: Path) -> None:
    values = np.array([[-4.0, 0.5, 1.5, 254.6, 300.0]], np.float32)
    mg.write(tmp_path / "deep" / "a.npy", values)
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "a.npy"), values)
    mg.write(tmp_path / "a.png", values)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), [[0, 0, 2, 255, 255]])
    source = mg.Micrograph(values, (2.0, 3.0), "by hand", (), "x")
    mg.write(tmp_path / "a.tif", source)
    assert mg.read(tmp_path / "a.tif").pixel_size_nm == (2.0, 3.0)
    mg.write(tmp_path / "a.tif", source, (5.0, 5.0))
    assert mg.read(tmp_path / "a.tif").pixel_size_nm == (5.0, 5.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tif", "deep"]


def test_write_refuses(tmp_path: Path) -> None:
    good = RAMP.astype(np.float32)
    for name in ("a.jpg", "a"):
        with pytest.raises(InputError, match=r"use \.npy, \.png"):
            mg.write(tmp_path / name, good)
    with pytest.raises(InputError, match="not finite"):
        mg.write(tmp_path / "a.tif", np.full((40, 40), np.nan))
    with pytest.raises(InputError, match="2-D"):
        mg.write(tmp_path / "a.tif", np.zeros((3, 40, 40)))
    with pytest.raises(InputError, match="above 0"):
        mg.write(tmp_path / "a.tif", good, (0.0, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_write_error_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written") as error:
        mg.write(tmp_path / "file" / "a.tif", RAMP.astype(np.float32))
    assert "\n" not in str(error.value)
    mg.write(tmp_path / "old.tif", np.full((40, 40), 7.0))

    def full(self: Path, data: bytes) -> int:
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left"):
        mg.write(tmp_path / "old.tif", RAMP.astype(np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.tif"]
    assert np.all(mg.read(tmp_path / "old.tif").pixels == 7)


# The grid

IMAGES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-50, 350))


@given(image=IMAGES)
def test_grid_is_the_nearest_of_its_points(image: np.ndarray) -> None:
    grid = mg.to_grid(image)
    assert grid.dtype == np.float32
    steps = grid.astype(np.float64) * 256
    np.testing.assert_array_equal(steps, np.round(steps))
    assert np.abs(grid.astype(np.float64) - np.clip(image, 0, 255)).max() <= 1 / 512
    np.testing.assert_array_equal(mg.to_grid(grid), grid)
    np.testing.assert_array_equal(mg.encode_grid(image), np.rint(np.clip(image, 0, 255) * 256).astype(int))


@given(image=IMAGES)
def test_grid_png_comes_back_exactly_and_pillow_agrees(
    image: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "grid.png"
    digest = mg.write_grid_png(path, image)
    np.testing.assert_array_equal(mg.read_grid_png(path), mg.to_grid(image))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), mg.encode_grid(image))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == mg.grid_sha256(image)


def test_grid_png_is_deterministic_and_memory_layout_does_not_matter() -> None:
    image = np.random.default_rng(0).normal(120, 40, (64, 96)).astype(np.float32)
    assert mg.grid_bytes(image) == mg.grid_bytes(image.copy()) == mg.grid_bytes(np.asfortranarray(image))
    assert mg.grid_bytes(image) == mg.grid_bytes(mg.to_grid(image))
    assert mg.grid_bytes(image) != mg.grid_bytes(image + 1 / 256)
    assert mg.encode_grid(np.full((2, 2), 999.0)).max() == 65280


def test_grid_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 values that are not finite"):
        mg.to_grid(np.array([[np.nan, 1.0]]))
    with pytest.raises(InputError, match="2-D"):
        mg.to_grid(np.zeros((2, 2, 2)))
    path = save(tmp_path / "a.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="not a stored result"):
        mg.read_grid_png(path)
    save(path, np.full((40, 40), 65281, np.uint16))
    with pytest.raises(InputError, match="not a stored result"):
        mg.read_grid_png(path)
    with pytest.raises(InputError, match="no such file"):
        mg.read_grid_png(tmp_path / "b.png")


# Real files


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    import csv

    with (folder / name / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["role"] != "sidecar"]


def real(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    return path if path.exists() else path.with_name(f"{path.name}.xz")


@pytest.mark.data
def test_pixel_sizes_of_the_instruments_own_files(data_folder: Path) -> None:
    rows = [row for row in rows_of(data_folder, "semcorpus") if row["note"].startswith("metadata:")]
    assert len(rows) >= 10
    for row in rows:
        image = mg.read(real(data_folder, "semcorpus", row["file"]))
        assert image.pixel_size_nm == pytest.approx((float(row["pixel_size_nm"]),) * 2, rel=2e-5), row["file"]
        assert image.pixel_size_source.startswith(row["note"].removeprefix("metadata:")), row["file"]


@pytest.mark.data
def test_pixel_sizes_of_the_line_images(data_folder: Path) -> None:
    for row in rows_of(data_folder, "lines"):
        image = mg.read(real(data_folder, "lines", row["file"]))
        if row["file"].startswith("smile2"):
            assert image.pixel_size_nm == pytest.approx((float(row["pixel_size_nm"]),) * 2, rel=1e-6), row["file"]


@pytest.mark.data
def test_print_resolutions_are_no_pixel_sizes(data_folder: Path) -> None:
    for name in ("pretrain/scaffold-d1__D1-20x-sem.tiff", "evaluation/stem-C6__C6-1-m07.tif"):
        assert mg.read(real(data_folder, "semcorpus", name)).pixel_size_nm is None


@pytest.mark.data
def test_every_real_image_is_read_and_agrees_with_pillow(data_folder: Path) -> None:
    rows = rows_of(data_folder, "semcorpus")
    for row in rows:
        path = real(data_folder, "semcorpus", row["file"])
        image = mg.read(path)
        assert image.pixels.shape == (int(row["height"]), int(row["width"])), row["file"]
        assert 0 <= image.pixels.min() < image.pixels.max() <= 255, row["file"]
        top, bottom, left, right = (int(part) for part in row["crop_px"].split(","))
        if row["bits"] == "8" and path.suffix != ".xz":
            with Image.open(path) as other:
                gray = np.asarray(other.convert("RGB").convert("L") if other.mode == "P" else other.convert("L"))
            assert np.abs(image.pixels - gray).max() <= 1, row["file"]
            cut = mg.read(path, crop=(top, bottom, left, right)).pixels
            assert cut.shape == (gray.shape[0] - top - bottom, gray.shape[1] - left - right)
