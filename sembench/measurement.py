"""Measure image files as a user asks for it: which kind, in which unit, a reason where nothing can be measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sembench.errors import InputError
from sembench.metrology.refusal import MeasurementRefused
from sembench.micrograph import DIFFERENCE_TOLD, Micrograph, crop_bottom_rows, list_images, read

if TYPE_CHECKING:
    from sembench.metrology.contacts import ContactMeasurement
    from sembench.metrology.lines import LineMeasurement
    from sembench.restorer import Image

DATA_BARS = ("auto", "0.125")
"""Shares of the height that are tried as data bar where a whole image is refused."""
FEWEST_FOR_SPEED = 20
"""Images from which on none is tried with other options to say what would help."""
MOST_CLIPPED = 0.2
"""Share of pixels at gray level 0, or at 255, from which on an image counts as saturated: half a plateau or more."""
CLIPPED_TOLD = 0.01
LEAST_NOISE = 200.0
"""Contrast to noise from which on an image counts as free of noise."""

LINE_KEYS = (
    "file", "refused", "kind", "polarity", "level", "orientation", "tilt_deg", "pixel_size_nm", "lines", "edges",
    "contrast_to_noise", "pitch_{unit}", "cd_mean_{unit}", "cd_std_{unit}", "cd_over_pitch", "lwr_{unit}",
    "lwr_se_{unit}", "ler_{unit}", "lwr_unbiased_{unit}", "ler_unbiased_{unit}", "edge_noise_{unit}", "sigma_{unit}",
    "xi_{unit}", "hurst", "lost_fraction", "flags",
)  # fmt: skip
"""Keys of a line image in JSON, {unit} being nm or px."""
CONTACT_KEYS = (
    "file", "refused", "kind", "polarity", "level", "pixel_size_nm", "count", "contrast_to_noise", "cd_x_{unit}",
    "cd_y_{unit}", "diameter_{unit}", "cer_{unit}", "lcdu_{unit}", "lost_fraction", "flags",
)  # fmt: skip
"""Keys of an image of contacts or pillars in JSON."""


@dataclass(frozen=True)
class Request:
    """What is asked of every image.

    pixel_size_nm: (x, y) as given by hand, or None; pixels: lengths in px, whatever is known; kind: auto, lines or
    contacts; polarity: bright or dark; level: plateau, smile2 or rim (lines alone); value_range, crop_bottom: as for
    `sembench.micrograph.read`, but `auto` takes the whole image first, and less where that is refused.
    """

    pixel_size_nm: tuple[float, float] | None = None
    pixels: bool = False
    kind: str = "auto"
    polarity: str = "bright"
    level: str = "plateau"
    crop_bottom: str = "auto"
    value_range: tuple[float, float] | None = None

    @property
    def looks_for_bar(self) -> bool:
        """Whether an image that is refused is tried again without its data bar."""
        return self.crop_bottom.strip() == "auto"

    @property
    def unit(self) -> str:
        """Unit of every length in a record: nm or px."""
        return "px" if self.pixels else "nm"


@dataclass(frozen=True, eq=False)
class Measured:
    """One file's outcome: its record, and where it was measured the pixels and the measurement.

    record: a plain value a quantity, the keys of JSON among them; unreadable: the file could not be read at all;
    scale_nm: the pixel size in which the record's lengths stand, None in px; notices: one line each.
    """

    file: str
    record: dict[str, Any]
    unreadable: bool = False
    pixels: "Image | None" = None
    lines: "LineMeasurement | None" = None
    contacts: "ContactMeasurement | None" = None
    scale_nm: tuple[float, float] | None = None
    notices: tuple[str, ...] = ()

    @property
    def refused(self) -> str | None:
        """Why there is no measurement, or None."""
        reason: str | None = self.record["refused"]
        return reason

    def without_arrays(self) -> "Measured":
        """The same without pixels and measurement, which are what takes memory."""
        return replace(self, pixels=None, lines=None, contacts=None)


def parse_pixel_size(text: str) -> tuple[float, float]:
    """The pixel size (x, y) in nm from `NM` or `X,Y`; InputError where it is not that, or not above 0.

    >>> parse_pixel_size("0.8"), parse_pixel_size("0.8,1.6")
    ((0.8, 0.8), (0.8, 1.6))
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise InputError(f"--pixel-size {text}: give nm a pixel, above 0, as one number or as X,Y, for example 0.8")
    return numbers[0], numbers[-1]


def find_images(sources: Sequence[Path]) -> list[Path]:
    """The images that files and folders stand for, in their order; a file need not be there.

    Raises InputError where a folder holds no image, or an image is given twice.
    """
    images: list[Path] = []
    for source in sources:
        if not source.is_dir():
            images.append(source)
            continue
        inside = list_images(source)
        if not inside:
            raise InputError(f"{source}: no image in this folder: give one with PNG, TIFF, JPEG, BMP or .npy images")
        images += inside
    seen: dict[Path, Path] = {}
    for image in images:
        other = seen.setdefault(image.resolve(), image)
        if other is not image:
            shown = "" if str(other) == str(image) else f", also as {other}"
            raise InputError(f"{image}: given twice{shown}: leave one out")
    return images


def measure_file(path: Path, request: Request, *, hint: bool = True) -> Measured:
    """Read and measure one file; whatever is wrong with it becomes the reason in its record.

    hint: try a refused image with the other polarity, and say so where it helps.
    """
    try:
        whole = "0" if request.looks_for_bar else request.crop_bottom
        micrograph = read(path, crop_bottom=whole, value_range=request.value_range)
    except InputError as error:
        return Measured(str(path), _refusal(path, request, _behind_name(str(error), path)), unreadable=True)
    try:
        return _measure(micrograph, request, hint)
    except (MeasurementRefused, InputError) as error:
        record = _refusal(path, request, str(error))
        record["pixel_size_nm"] = _plain_size(micrograph.pixel_size_nm)
        return Measured(str(path), record, notices=micrograph.notices)


def _behind_name(message: str, path: Path) -> str:
    return message.removeprefix(f"{path}: ")


def _measure(micrograph: Micrograph, request: Request, hint: bool) -> Measured:
    size = _pixel_size(micrograph, request)
    try:
        pixels, lines, contacts = _find_below_bar(micrograph.pixels, request)
    except MeasurementRefused as error:
        raise MeasurementRefused(f"{error}{_hint(micrograph.pixels, request) if hint else ''}") from error
    cut = len(micrograph.pixels) - len(pixels)
    notices = (*micrograph.notices, *([f"the bottom {cut} rows were cut off as a data bar"] if cut else []))
    scale = None if request.pixels else size
    if lines is not None:
        record = {**lines.as_record(scale), "kind": "lines"}
    if contacts is not None:
        record = {**contacts.as_record(scale), "kind": "contacts"}
    return Measured(
        micrograph.file,
        {"file": micrograph.file, "refused": None, **record, "pixel_size_nm": _plain_size(size)},
        pixels=pixels,
        lines=lines,
        contacts=contacts,
        scale_nm=scale,
        notices=notices,
    )


def _pixel_size(micrograph: Micrograph, request: Request) -> tuple[float, float] | None:
    """The pixel size to be used; MeasurementRefused where there is none, or the file and the user disagree."""
    stored, given = micrograph.pixel_size_nm, request.pixel_size_nm
    if stored is None:
        if given is None and not request.pixels:
            raise MeasurementRefused("no pixel size in the file: give --pixel-size NM, or --pixels for lengths in px")
        return given
    if given is not None and max(abs(g / s - 1) for g, s in zip(given, stored, strict=True)) > DIFFERENCE_TOLD:
        raise MeasurementRefused(
            f"pixel size {_size_text(given)} nm given, but {micrograph.pixel_size_source} says {_size_text(stored)}: "
            "leave --pixel-size out, or correct the file"
        )
    return stored


def _size_text(size: tuple[float, float]) -> str:
    return f"{size[0]:g}" if size[0] == size[1] else f"{size[0]:g},{size[1]:g}"


def _plain_size(size: tuple[float, float] | None) -> float | list[float] | None:
    """One number where pixels are square, else [x, y]."""
    return None if size is None else size[0] if size[0] == size[1] else list(size)


def _with_clipping(pixels: "Image", contacts: "ContactMeasurement") -> "ContactMeasurement":
    """The same with a flag where pixels are cut off at black or white; MeasurementRefused where a plateau is.

    Where there is no noise, a level at the end of the scale is a drawing's and not cut off.
    """
    if not contacts.contrast_to_noise < LEAST_NOISE:
        return contacts
    flags = []
    for level, share in ((0, float(np.mean(pixels <= 0))), (255, float(np.mean(pixels >= 255)))):
        if share > MOST_CLIPPED:
            raise MeasurementRefused(f"saturated: {100 * share:.0f} % of the pixels stand at gray level {level}")
        if share > CLIPPED_TOLD:
            flags.append(f"{100 * share:.0f} % of the pixels clipped at gray level {level}")
    return replace(contacts, flags=(*contacts.flags, *flags))


def _find(pixels: "Image", request: Request) -> "tuple[LineMeasurement | None, ContactMeasurement | None]":
    from sembench.metrology.contacts import measure_contacts
    from sembench.metrology.lines import measure_lines

    no_lines = ""
    if request.kind != "contacts":
        try:
            return measure_lines(pixels, polarity=request.polarity, level=request.level), None
        except MeasurementRefused as error:
            if request.kind == "lines":
                raise
            no_lines = str(error)
    try:
        return None, _with_clipping(pixels, measure_contacts(pixels, polarity=request.polarity))
    except MeasurementRefused as error:
        if not no_lines or no_lines == str(error):
            raise
        raise MeasurementRefused(f"no lines ({no_lines}), no contacts ({error})") from error


def _find_below_bar(
    pixels: "Image", request: Request
) -> "tuple[Image, LineMeasurement | None, ContactMeasurement | None]":
    """What was found and in which pixels: all, or where those are refused and it may be, all but a data bar."""
    try:
        return pixels, *_find(pixels, request)
    except MeasurementRefused:
        if not request.looks_for_bar:
            raise
        for bar in DATA_BARS:
            above = pixels[: len(pixels) - crop_bottom_rows(bar, len(pixels))]
            try:
                return above, *_find(above, request)
            except (MeasurementRefused, InputError):
                continue
        raise


def _hint(pixels: "Image", request: Request) -> str:
    """The option with which a refused image could be measured: the other polarity; or nothing."""
    other = "dark" if request.polarity == "bright" else "bright"
    try:
        _find_below_bar(pixels, replace(request, polarity=other))
    except (MeasurementRefused, InputError):
        return ""
    return f": with --polarity {other} it can be measured"


def json_record(record: dict[str, Any], request: Request) -> dict[str, Any]:
    """The record with the keys of JSON alone; a refused image of unknown kind has those of lines."""
    keys = CONTACT_KEYS if record["kind"] == "contacts" else LINE_KEYS
    return {key: plain(record.get(key)) for key in (key.format(unit=request.unit) for key in keys)}


def plain(value: Any) -> Any:
    """A value that JSON can hold: numbers of numpy as Python's, None for what is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refusal(path: Path, request: Request, reason: str) -> dict[str, Any]:
    keys = CONTACT_KEYS if request.kind == "contacts" else LINE_KEYS
    return {
        **{key.format(unit=request.unit): None for key in keys},
        "file": str(path),
        "refused": " ".join(reason.split()),
        "kind": None if request.kind == "auto" else request.kind,
        "polarity": request.polarity,
        "level": "plateau" if request.kind == "contacts" else request.level,
        "flags": [],
    }
