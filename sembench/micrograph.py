"""Micrographs: gray levels 0..255, pixel size in nm, reading, writing, and the grid on which scores stand."""

import hashlib
import io
import itertools
import logging
import lzma
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sembench.errors import InputError, WriteError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff")
"""Suffixes of readable images; each may be followed by `.xz`."""

WRITTEN_SUFFIXES = (".npy", ".png", ".tif", ".tiff")
"""Suffixes of images that `write` makes."""

GRID_STEPS = 256
"""Steps of the scoring grid in one gray level."""

BAR_FRACTION = 0.0667
"""Share of the height that the paper cuts at the bottom as data bar."""

LARGEST_PRINT_FREE_NM = 20_000.0
"""TIFF resolution tags that give this pixel size (nm) or more are print resolutions."""

LARGEST_RATIONAL = 2**31
"""TIFF resolution tags cannot hold more pixels per cm than about this."""

DIFFERENCE_TOLD = 0.01
"""Relative difference of two pixel sizes from which on it is told."""

MOST_EXPANDED_BYTES = 2**31
"""An .xz file is expanded up to this size, so that a small one cannot fill the memory."""

MOST_EXPANSION = 2000
"""No compression of TIFF makes an image so much smaller, unless it is flat."""

LARGE_BYTES = 2**26
"""A compressed TIFF's image up to this size is read whatever the size of its file."""

MOST_PAGES = 256
"""A TIFF with more pages is no single image; where its pages follow each other in a circle they would never end."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R recommendation BT.601."""

JEOL_PICTURE_WIDTH_MM = 127.0
"""Width of the picture to which a JEOL magnification refers, where the micron bar's length is missing."""

NM_PER_UNIT = {
    "fm": 1e-6,
    "pm": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "\\u00b5m": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "inch": 2.54e7,
    "m": 1e9,
}

DESCRIPTION_TAG, RESOLUTION_TAGS, RESOLUTION_UNIT_TAG = 270, (282, 283), 296
FEI_TAGS, ZEISS_TAG, TESCAN_TAG, HITACHI_TAG = (34682, 34680), 34118, 50431, 40092
READ_TAGS = (DESCRIPTION_TAG, *RESOLUTION_TAGS, RESOLUTION_UNIT_TAG, *FEI_TAGS, ZEISS_TAG, TESCAN_TAG, HITACHI_TAG)


@dataclass(frozen=True, eq=False)
class Micrograph:
    """One image with what is known of it.

    pixels: float32 (H, W), gray levels 0..255 (float files as they are); pixel_size_nm: (x, y) or None where not known;
    pixel_size_source: where the pixel size stands, empty where not known; notices: one line each, for the user;
    file: the path as it was given.
    """

    pixels: NDArray[np.float32]
    pixel_size_nm: tuple[float, float] | None
    pixel_size_source: str
    notices: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class _PixelSize:
    """A pixel size (nm) that was found, where, and what to say of it."""

    x: float
    y: float
    source: str
    notice: str = ""


@dataclass(frozen=True, eq=False)
class _Decoded:
    """What a file holds: (H, W) or (H, W, channels) in its own dtype, its TIFF tags, and what to say of it.

    highest: the greatest value that the samples can have, where they have fewer bits than the dtype.
    """

    values: NDArray[Any]
    highest: int | None = None
    tags: Mapping[int, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


class _UnreadableError(Exception):
    """The content is not what it should be; the message goes behind the file's name."""


def read(
    path: str | Path,
    *,
    crop: tuple[int, int, int, int] = (0, 0, 0, 0),
    crop_bottom: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Micrograph:
    """Read a PNG, TIFF, JPEG, BMP or .npy image, or one of them compressed as `.xz`.

    The kind is told by the content, not by the name. Sidecars with the pixel size (.txt, .hdr) are looked for beside
    the file. crop, crop_bottom, value_range: as for read_bytes. Raises InputError with the file's name.
    """
    path = Path(path)
    content = _file_content(path)
    return read_bytes(
        content,
        str(path),
        sidecars=_sidecars(path),
        crop=crop,
        crop_bottom=crop_bottom,
        value_range=value_range,
    )


def read_bytes(
    content: bytes,
    file: str,
    *,
    sidecars: Mapping[str, bytes] | None = None,
    crop: tuple[int, int, int, int] = (0, 0, 0, 0),
    crop_bottom: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Micrograph:
    """Read an image from its bytes.

    content: PNG, TIFF, JPEG, BMP or .npy, xz-compressed or not; file: its name, for messages;
    sidecars: content of text files beside it by suffix (`.txt`, `.hdr`);
    crop: rows and columns to cut (top, bottom, left, right); crop_bottom: takes the place of the bottom rows:
    `auto` (the data bar's usual share), a number of rows, or a fraction of the height (with a point);
    value_range: the values that become 0 and 255, in place of the whole range of an integer dtype, others clipped.
    Integers are scaled by the whole range of their dtype; floats are taken as they are and must be finite.
    Raises InputError with the file's name.
    """
    if value_range is not None:
        _check_range(value_range)
    try:
        decoded = _decode(_expand(content))
        values = _crop(decoded.values, crop, crop_bottom)
        gray = _gray(values)
        pixels = _scale(gray, _full_range(values.dtype, decoded.highest), value_range)
        notices = [*decoded.notices, *_range_notices(pixels, gray, values.dtype, value_range)]
        size, size_notices = _choose_size(decoded, sidecars or {})
    except _UnreadableError as error:
        raise InputError(f"{file}: {error}") from error
    return Micrograph(
        pixels=pixels,
        pixel_size_nm=(size.x, size.y) if size else None,
        pixel_size_source=size.source if size else "",
        notices=tuple(f"{file}: {notice}" for notice in [*notices, *size_notices]),
        file=file,
    )


def write(
    path: str | Path,
    image: Micrograph | NDArray[np.floating],
    pixel_size_nm: tuple[float, float] | None = None,
) -> None:
    """Write an image: .tif or .npy as float32 without loss, .png in 8 bit, rounded and clipped.

    image: a Micrograph, or (H, W) gray levels; pixel_size_nm: (x, y), in place of the micrograph's own.
    Only .tif keeps the pixel size: in its description, from which `read` gets it back exactly, and in the resolution
    tags. The file appears under its name only when it is complete; missing folders are made.
    Raises InputError where the suffix or the image is wrong, WriteError where it cannot be written.
    """
    path = Path(path)
    if isinstance(image, Micrograph):
        pixels, size = image.pixels, pixel_size_nm or image.pixel_size_nm
    else:
        pixels, size = image, pixel_size_nm
    pixels = _finite_plane(pixels)
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        content = _tiff_bytes(pixels, size)
    elif suffix == ".npy":
        content = _npy_bytes(pixels)
    elif suffix == ".png":
        content = _png_bytes(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))
    else:
        raise InputError(f"{path}: cannot write {suffix or 'a name without suffix'}: use {', '.join(WRITTEN_SUFFIXES)}")
    write_atomically(path, content)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it; WriteError in one line where that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{path}: cannot be written ({reason}): choose another place or make room") from error


def to_grid(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Clip to 0..255 and round to 1/256 gray level, half to even; float32 (H, W), on which every step is exact.

    Raises InputError where the image is not 2-D or not finite.

    >>> to_grid(np.array([[-3.0, 0.004, 300.0]])).tolist()
    [[0.0, 0.00390625, 255.0]]
    """
    steps = np.rint(np.clip(_finite_plane(image), 0, 255) * GRID_STEPS)
    return np.asarray((steps / GRID_STEPS).astype(np.float32))


def encode_grid(image: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The image on the grid as integers, 256 x the gray level: uint16 (H, W), 65 280 at most."""
    return (to_grid(image) * GRID_STEPS).astype(np.uint16)


def grid_bytes(image: NDArray[np.floating]) -> bytes:
    """The image on the grid as a lossless 16-bit gray PNG; equal images give equal bytes."""
    return _png_bytes(encode_grid(image))


def grid_sha256(image: NDArray[np.floating]) -> str:
    """SHA-256 (hex) of the file that write_grid_png makes of the image."""
    return hashlib.sha256(grid_bytes(image)).hexdigest()


def write_grid_png(path: str | Path, image: NDArray[np.floating]) -> str:
    """Store the image on the grid as a lossless 16-bit PNG; returns the SHA-256 (hex) of the file's bytes.

    Raises InputError where the image is not 2-D or not finite, WriteError where it cannot be written.
    """
    content = grid_bytes(image)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_grid_png(path: str | Path) -> NDArray[np.float32]:
    """Read what write_grid_png stored: float32 (H, W), gray levels 0..255 in steps of 1/256, exactly as written.

    Raises InputError where the file is missing, damaged or not of that kind.
    """
    path = Path(path)
    try:
        values = _decode(_file_content(path)).values
    except _UnreadableError as error:
        raise InputError(f"{path}: {error}") from error
    if values.dtype != np.uint16 or values.ndim != 2 or values.max() > 255 * GRID_STEPS:
        raise InputError(f"{path}: not a stored result (16-bit gray PNG of 256 x the gray level): give one of a run")
    return (values / np.float32(GRID_STEPS)).astype(np.float32)


def list_images(folder: str | Path) -> list[Path]:
    """The readable images of a folder by their suffix, sorted by name; hidden files and subfolders are left out.

    Raises InputError where the folder is missing or cannot be read.
    """
    folder = Path(folder)
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if _plain_name(path).lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder}: cannot be listed ({reason}): give a folder of images") from error


def image_stem(path: str | Path) -> str:
    """The file's name without its image suffix and `.xz`: `a.b.tif.xz` gives `a.b`."""
    return Path(_plain_name(Path(path))).stem


def crop_bottom_rows(crop_bottom: str, height: int) -> int:
    """Rows to cut at the bottom of an image of this height: `auto`, a number of rows, or a fraction (with a point).

    Raises InputError where the text is none of them.

    >>> crop_bottom_rows("auto", 960), crop_bottom_rows("59", 960), crop_bottom_rows("0.1", 960)
    (64, 59, 96)
    """
    text = crop_bottom.strip().lower()
    if text == "auto":
        return round(BAR_FRACTION * height)
    try:
        if re.fullmatch(r"\d+", text):
            return int(text)
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 <= fraction < 1:
        raise InputError(f"crop-bottom {crop_bottom!r}: give auto, 0, a number of rows, or a fraction below 1")
    return round(fraction * height)


def parse_range(text: str) -> tuple[float, float]:
    """The value range from `lo,hi`: the values that become 0 and 255; InputError where it is not that.

    >>> parse_range("0,4095")
    (0.0, 4095.0)
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"range {text!r}: give two numbers as lo,hi, for example 0,4095") from None
    _check_range((low, high))
    return low, high


def _check_range(value_range: tuple[float, float]) -> None:
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"range {low:g},{high:g}: give two finite numbers, the lower first, for example 0,4095")


def _finite_plane(image: NDArray[Any]) -> NDArray[Any]:
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0:
        raise InputError(f"an image must be 2-D (H, W) and not empty: this one has shape {image.shape}")
    if not np.isfinite(image).all():
        raise InputError(f"image has {int((~np.isfinite(image)).sum())} values that are not finite (NaN or infinite)")
    return image


# Files


def _plain_name(path: Path) -> str:
    return path.name[:-3] if path.name.lower().endswith(".xz") else path.name


def _file_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder: give an image") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the file") from error


def _expand(content: bytes) -> bytes:
    if not content.startswith(b"\xfd7zXZ\x00"):
        return content
    try:
        with lzma.open(io.BytesIO(content)) as file:
            expanded = file.read(MOST_EXPANDED_BYTES + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise _UnreadableError(f"damaged .xz file ({_one_line(error)}): get the file again") from error
    if len(expanded) > MOST_EXPANDED_BYTES:
        raise _UnreadableError(f"more than {MOST_EXPANDED_BYTES >> 20} MiB in an .xz file: expand it yourself")
    return expanded


def _sidecars(path: Path) -> dict[str, bytes]:
    return {suffix: _file_content(beside) for suffix, beside in sidecar_files(path).items()}


def sidecar_files(path: Path) -> dict[str, Path]:
    """Text files beside an image that may hold its pixel size, by suffix."""
    name = _plain_name(path)
    stem, image_suffix = Path(name).stem, Path(name).suffix.lstrip(".")
    found = {}
    for suffix in (".txt", ".hdr"):
        for candidate in (f"{stem}{suffix}", f"{stem}-{image_suffix}{suffix}", f"{name}{suffix}"):
            spellings = (candidate, f"{candidate[:-4]}{suffix.upper()}", f"{candidate}.xz")
            beside = next((path.with_name(spelling) for spelling in spellings if _is_file(path, spelling)), None)
            if beside is not None:
                found[suffix] = beside
                break
    return found


def _is_file(path: Path, name: str) -> bool:
    try:
        return path.with_name(name).is_file()
    except OSError:
        return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# Decoding


def _decode(content: bytes) -> _Decoded:
    if not content:
        raise _UnreadableError("the file is empty: get it again")
    kinds: dict[str, tuple[tuple[bytes, ...], Callable[[bytes], _Decoded]]] = {
        "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _decode_tiff),
        "PNG": ((b"\x89PNG\r\n\x1a\n",), _decode_png),
        "JPEG": ((b"\xff\xd8\xff",), _decode_pillow),
        "BMP": ((b"BM",), _decode_pillow),
        ".npy": ((b"\x93NUMPY",), _decode_npy),
    }
    kind = next((name for name, (starts, _) in kinds.items() if content.startswith(starts)), None)
    if kind is None:
        raise _UnreadableError("not a PNG, TIFF, JPEG, BMP or .npy image: give one of these")
    try:
        with _quiet():
            decoded = kinds[kind][1](content)
    except _UnreadableError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise _UnreadableError(f"damaged {kind} image ({_one_line(error)}): get the file again") from error
    if decoded.values.size == 0:
        raise _UnreadableError(f"the image has no pixels: its shape is {decoded.values.shape}")
    if decoded.values.dtype.kind not in "biuf":
        raise _UnreadableError(f"values of kind {decoded.values.dtype} are no gray levels: give integers or floats")
    return decoded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of the decoding libraries from the user: what matters is raised or becomes a notice."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in ("tifffile", "PIL")]
    for logger in loggers:
        logger.addFilter(refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(refuse)


def _decode_npy(content: bytes) -> _Decoded:
    return _Decoded(np.load(io.BytesIO(content), allow_pickle=False))


def _decode_pillow(content: bytes) -> _Decoded:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("BMP", "JPEG", "PNG")) as image:
        if image.mode == "P":
            return _Decoded(np.array(image.convert("RGBA" if "transparency" in image.info else "RGB")))
        if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I"):
            raise _UnreadableError(f"colour mode {image.mode} is not supported: save it as gray or RGB")
        values = np.array(image)
    return _Decoded(values.astype(np.uint16) if values.dtype == np.int32 else values)


def _decode_png(content: bytes) -> _Decoded:
    """PNG by Pillow, but for colour or alpha in 16 bit, which Pillow cuts to 8 bit."""
    if len(content) < 33:
        raise _UnreadableError("truncated PNG image: get the file again")
    bits, colour, _, _, interlaced = struct.unpack(">5B", content[24:29])
    if bits < 16 or colour == 0:
        return _decode_pillow(content)
    if interlaced:
        raise _UnreadableError("interlaced 16-bit colour PNG is not supported: save it without interlacing")
    import imagecodecs

    return _Decoded(np.asarray(imagecodecs.png_decode(_critical_chunks(content))))


def _critical_chunks(content: bytes) -> bytes:
    """A PNG without its ancillary chunks, about which libpng would print warnings."""
    kept, position = [content[:8]], 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunk = content[position : position + 12 + length]
        if chunk[4:5].isupper():
            kept.append(chunk)
        position += len(chunk)
    return b"".join(kept)


def _decode_tiff(content: bytes) -> _Decoded:
    from tifffile import TiffFile, TiffPage

    with TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages[0]
        if not isinstance(page, TiffPage):
            raise _UnreadableError("the TIFF's first page cannot be read: get the file again")
        notices = _page_notices(tiff, page)
        extents = zip(page.dataoffsets, page.databytecounts, strict=False)
        if not page.dataoffsets or max(offset + count for offset, count in extents) > len(content):
            raise _UnreadableError("truncated TIFF image (pixels lie beyond the end of the file): get the file again")
        _check_claim(page, len(content))
        return _Decoded(_tiff_values(page), _highest_sample(page), _tiff_tags(page), notices)


def _check_claim(page: "TiffPage", file_bytes: int) -> None:
    """Refuse an image that is too large for its file, before memory is taken for it."""
    claimed = page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
    most = file_bytes if page.compression == 1 else max(MOST_EXPANSION * file_bytes, LARGE_BYTES)
    if claimed > most:
        raise _UnreadableError(
            f"{page.imagelength} x {page.imagewidth} px in a file of {file_bytes} bytes cannot be: get the file again"
        )


def _page_notices(tiff: "TiffFile", page: "TiffPage") -> tuple[str, ...]:
    """What to say of further pages; a stack of equal pages is refused."""
    pages = list(itertools.islice(tiff.pages, MOST_PAGES + 1))
    if len(pages) > MOST_PAGES:
        raise _UnreadableError(
            f"more than {MOST_PAGES} pages, or pages in a circle: split it into single images, or get the file again"
        )
    alike = sum(other.shape == page.shape for other in pages)
    if alike > 1:
        raise _UnreadableError(f"a stack of {alike} pages, not one image: split it into single images")
    if tiff.series and tiff.series[0].size != page.size:
        raise _UnreadableError(f"a stack of shape {tiff.series[0].shape}, not one image: split it into single images")
    if len(pages) > 1:
        return (f"the first of {len(pages)} pages of different size is read",)
    return ()


def _tiff_values(page: "TiffPage") -> NDArray[Any]:
    from tifffile import COMPRESSION, PHOTOMETRIC

    jpeg = page.compression in (COMPRESSION.JPEG, COMPRESSION.OJPEG)
    known = {PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE}
    if page.photometric not in known and not (jpeg and page.photometric == PHOTOMETRIC.YCBCR):
        name = getattr(page.photometric, "name", page.photometric)
        raise _UnreadableError(f"colour space {name} is not supported: save it as gray or RGB")
    values = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise _UnreadableError(f"a stack of shape {page.shape}, not one image: split it into single images")
    if page.photometric == PHOTOMETRIC.PALETTE:
        return _palette_colours(values, page.colormap)
    if page.photometric == PHOTOMETRIC.MINISWHITE and values.dtype.kind in "biu":
        highest = _highest_sample(page)
        return ~values if highest is None else highest - values
    return values


def _highest_sample(page: "TiffPage") -> int | None:
    """The greatest value of samples that have fewer bits than the dtype they are read into, and are no indices."""
    bits, dtype = page.bitspersample, page.dtype
    if dtype is None or dtype.kind != "u" or page.colormap is not None or not isinstance(bits, int):
        return None
    return 2**bits - 1 if bits < 8 * dtype.itemsize else None


def _palette_colours(indices: NDArray[Any], colours: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a palette image. The upper byte counts: writers fill the lower with 0 or repeat the upper.

    Some writers put 8-bit values in the 16-bit map.
    """
    if colours is None:
        raise _UnreadableError("palette TIFF without its colour map: get the file again")
    table = colours if colours.max() < 256 else colours >> 8
    plane = indices if indices.ndim == 2 else indices[..., 0]
    return np.asarray(np.moveaxis(table.astype(np.uint8), 0, -1)[plane])


def _tiff_tags(page: "TiffPage") -> dict[int, Any]:
    tags = {}
    for code in READ_TAGS:
        tag = page.tags.get(code)
        if tag is not None:
            try:
                tags[code] = tag.value
            except Exception:  # a damaged tag costs the pixel size, not the image
                continue
    return tags


# Gray levels


def _crop(values: NDArray[Any], crop: tuple[int, int, int, int], crop_bottom: str | None) -> NDArray[Any]:
    if values.ndim not in (2, 3):
        raise _UnreadableError(f"values of shape {values.shape} are not one image (H, W): split them into images")
    height, width = values.shape[:2]
    top, bottom, left, right = crop
    if crop_bottom is not None:
        bottom = crop_bottom_rows(crop_bottom, height)
    if min(top, bottom, left, right) < 0:
        raise InputError(f"crop {crop}: give numbers that are not negative")
    if top + bottom >= height or left + right >= width:
        raise _UnreadableError(
            f"nothing is left of {height} x {width} px when top {top}, bottom {bottom}, left {left}, right {right} "
            "are cut: crop less"
        )
    return values[top : height - bottom, left : width - right]


def _gray(values: NDArray[Any]) -> NDArray[Any]:
    """One channel in the values' own units: the only one, one of equal ones, or the luma; alpha is dropped."""
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    if channels in (1, 2):
        return values[..., 0]
    if channels not in (3, 4):
        raise _UnreadableError(f"values of shape {values.shape} are not one image: give gray or RGB(A)")
    red, green, blue = (values[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    return LUMA[0] * red.astype(np.float64) + LUMA[1] * green + LUMA[2] * blue


def _full_range(dtype: np.dtype[Any], highest: int | None) -> tuple[int, int] | None:
    """The values that an integer dtype, or samples of fewer bits in it, can have; None for floats."""
    if dtype.kind == "f":
        return None
    if highest is not None or dtype.kind == "b":
        return 0, highest or 1
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _scale(
    gray: NDArray[Any], full_range: tuple[int, int] | None, value_range: tuple[float, float] | None
) -> NDArray[np.float32]:
    levels = gray.astype(np.float64)
    if not np.isfinite(levels).all():
        count = int((~np.isfinite(levels)).sum())
        raise _UnreadableError(f"{count} values are not finite (NaN or infinite): replace them")
    if value_range is not None:
        low, high = value_range
        return np.clip((levels - low) * 255.0 / (high - low), 0.0, 255.0).astype(np.float32)
    if full_range is None:
        return levels.astype(np.float32)
    low, high = full_range
    return ((levels - low) * 255.0 / (high - low)).astype(np.float32)


def _range_notices(
    pixels: NDArray[np.float32],
    gray: NDArray[Any],
    dtype: np.dtype[Any],
    value_range: tuple[float, float] | None,
) -> list[str]:
    if value_range is not None:
        return []
    low, high = float(gray.min()), float(gray.max())
    if dtype == np.uint16 and 255 < high <= 4095:
        return [f"no 16-bit value above {high:g}: give the range 0,4095 if the data are 12 bit"]
    if dtype.kind == "f" and low >= 0 and 0 < high <= 1:
        return ["float values lie in 0..1 and are taken as gray levels 0..255: give the range 0,1 if 1 is white"]
    if pixels.min() < 0 or pixels.max() > 255:
        return [f"float values run from {low:g} to {high:g}: beyond 0..255 they are clipped when scored"]
    return []


# Pixel size


def _choose_size(decoded: _Decoded, sidecars: Mapping[str, bytes]) -> tuple[_PixelSize | None, list[str]]:
    """The first pixel size found, and what to say: the finder's own notice, and sources that differ from it."""
    tags, width = decoded.tags, decoded.values.shape[1]
    text = _text(sidecars.get(".txt", b""))
    found = [
        size
        for size in (
            _own_size(tags),
            *(_fei_size(tags, code) for code in FEI_TAGS),
            _zeiss_size(tags),
            _tescan_size(_text(tags.get(TESCAN_TAG, b"")), f"TESCAN tag {TESCAN_TAG}"),
            _tescan_size(_text(sidecars.get(".hdr", b"")), "TESCAN .hdr sidecar"),
            _hitachi_size(text, "Hitachi .txt sidecar"),
            _hitachi_size(_text(tags.get(HITACHI_TAG, b"")), f"Hitachi tag {HITACHI_TAG}"),
            _jeol_size(text, width),
            _resolution_size(tags),
        )
        if size is not None
    ]
    if not found:
        return None, []
    first = found[0]
    notices = [first.notice] if first.notice else []
    for other in found[1:]:
        if max(abs(other.x / first.x - 1), abs(other.y / first.y - 1)) > DIFFERENCE_TOLD:
            notices.append(
                f"pixel size {first.x:g} nm ({first.source}) is used, though {other.source} says {other.x:g} nm"
            )
    return first, notices


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _size(x: Any, y: Any, nm: float, source: str, notice: str = "") -> _PixelSize | None:
    """A pixel size from two numbers in units of `nm`; y may be missing; None where it is no positive number of nm."""
    across, down = _positive(x), _positive(y)
    if across is None:
        return None
    in_nm = _positive(across * nm), _positive((down or across) * nm)
    return None if in_nm[0] is None or in_nm[1] is None else _PixelSize(in_nm[0], in_nm[1], source, notice)


def _text(raw: Any) -> str:
    """Text of a tag or sidecar: UTF-16 where it has a byte order mark or zero bytes, else one byte a character."""
    if isinstance(raw, str):
        return raw
    try:
        content = bytes(raw)
        content = _expand(content)
    except (TypeError, ValueError, _UnreadableError):
        return ""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if content[1:64:2].count(0) > len(content[1:64:2]) // 2:
        return content.decode("utf-16-le", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _entry(text: str, pattern: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else None


_NUMBER = r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"


def _own_size(tags: Mapping[int, Any]) -> _PixelSize | None:
    text = _text(tags.get(DESCRIPTION_TAG, b""))
    across, down = (_entry(text, rf"^sembench pixel_size_nm_{axis}={_NUMBER}$") for axis in "xy")
    return _size(across, down, 1.0, "sembench description")


def _fei_size(tags: Mapping[int, Any], code: int) -> _PixelSize | None:
    """PixelWidth in metres, of the section that names the beam's scan, of the electron beam, or of any scan."""
    sections = tags.get(code)
    if not isinstance(sections, Mapping):
        return None
    beam = sections.get("Beam")
    named = str(beam.get("Scan", "")) if isinstance(beam, Mapping) else ""
    for name in (named, "EScan", "Scan", "IScan"):
        section = sections.get(name)
        if isinstance(section, Mapping):
            size = _size(section.get("PixelWidth"), section.get("PixelHeight"), 1e9, f"FEI tag {code}")
            if size is not None:
                return size
    return None


def _zeiss_size(tags: Mapping[int, Any]) -> _PixelSize | None:
    entries = tags.get(ZEISS_TAG)
    if not isinstance(entries, Mapping):
        return None
    source = f"Zeiss tag {ZEISS_TAG}"
    for key, notice in (
        ("ap_image_pixel_size", ""),
        ("ap_pixel_size", "pixel size from AP_PIXEL_SIZE, the display's, as AP_IMAGE_PIXEL_SIZE is missing: check it"),
    ):
        entry = entries.get(key)
        if isinstance(entry, tuple) and len(entry) >= 3:
            size = _size(entry[1], None, NM_PER_UNIT.get(str(entry[2]).strip().lower(), 0.0), source, notice)
            if size is not None:
                return size
    return None


def _tescan_size(text: str, source: str) -> _PixelSize | None:
    across, down = (_entry(text, rf"\bPixelSize{axis}\s*=\s*{_NUMBER}") for axis in "XY")
    return _size(across, down, 1e9, source)


def _hitachi_size(text: str, source: str) -> _PixelSize | None:
    return _size(_entry(text, rf"^PixelSize\s*=\s*{_NUMBER}"), None, 1.0, source)


def _jeol_size(text: str, width: int) -> _PixelSize | None:
    """Micron marker over micron bar; without the bar's length, the magnification of a picture of the usual width."""
    source = "JEOL .txt sidecar"
    bar = _positive(_entry(text, rf"^\$+SM_MICRON_BAR\s+{_NUMBER}"))
    marker = re.search(rf"^\$+SM_MICRON_MARKER\s+{_NUMBER}\s*(\S+)", text, re.MULTILINE)
    if bar is not None and marker is not None:
        return _size(marker.group(1), None, NM_PER_UNIT.get(marker.group(2).lower(), 0.0) / bar, source)
    magnification = _positive(_entry(text, rf"^\$+CM_MAG\s+{_NUMBER}"))
    if magnification is None:
        return None
    pixels = _positive(_entry(text, rf"^\$+CM_FULL_SIZE\s+{_NUMBER}")) or width
    notice = (
        f"the sidecar has no SM_MICRON_BAR: pixel size from the magnification of a picture "
        f"{JEOL_PICTURE_WIDTH_MM:g} mm wide: check it against the micron bar"
    )
    return _size(JEOL_PICTURE_WIDTH_MM / (magnification * pixels), None, 1e6, f"{source}, magnification", notice)


def _resolution_size(tags: Mapping[int, Any]) -> _PixelSize | None:
    """Pixel size by the TIFF resolution tags, the unit from its tag or from an ImageJ description."""
    text = _text(tags.get(DESCRIPTION_TAG, b""))
    unit = {2: "inch", 3: "cm"}.get(_integer(tags.get(RESOLUTION_UNIT_TAG, 2)), "")
    if text.startswith("ImageJ="):
        unit = _entry(text, r"^unit=(\S+)") or unit
    nm = NM_PER_UNIT.get(unit.lower())
    resolutions = [_ratio(tags.get(code)) for code in RESOLUTION_TAGS]
    if nm is None or resolutions[0] is None:
        return None
    down = 1 / resolutions[1] if resolutions[1] else None
    size = _size(1 / resolutions[0], down, nm, "TIFF resolution tags")
    return size if size is not None and max(size.x, size.y) < LARGEST_PRINT_FREE_NM else None


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) >= 2:
        upper, lower = _positive(value[0]), _positive(value[1])
        return upper / lower if upper and lower else None
    return _positive(value)


# Encoding


def _png_bytes(values: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A gray PNG, packed for speed: the noise of micrographs leaves a slower packing nothing to gain."""
    import imagecodecs

    return bytes(
        imagecodecs.png_encode(
            np.ascontiguousarray(values),
            level=1,
            strategy=imagecodecs.PNG.STRATEGY.RLE,
            filter=imagecodecs.PNG.FILTER.SUB,
        )
    )


def _npy_bytes(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def _tiff_bytes(pixels: NDArray[Any], pixel_size_nm: tuple[float, float] | None) -> bytes:
    import tifffile

    options: dict[str, Any] = {}
    if pixel_size_nm is not None:
        x, y = (float(size) for size in pixel_size_nm)
        if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
            raise InputError(f"pixel size {x:g}, {y:g} nm: give two finite numbers above 0")
        options = {"description": f"sembench pixel_size_nm_x={x!r}\nsembench pixel_size_nm_y={y!r}\n"}
        per_cm = (NM_PER_UNIT["cm"] / x, NM_PER_UNIT["cm"] / y)
        if max(per_cm) < LARGEST_RATIONAL:
            options |= {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
    buffer = io.BytesIO()
    with _quiet():
        tifffile.imwrite(
            buffer, pixels.astype(np.float32), photometric="minisblack", metadata=None, software="sembench", **options
        )
    return buffer.getvalue()
