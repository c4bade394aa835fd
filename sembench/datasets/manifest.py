"""Manifests: one row a file, with its address, its SHA-256 and what it is; frozen lists of fields beside them."""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from sembench.errors import InputError
from sembench.registry import DATASETS, plugin, plugins, suggestion

FOLDER = Path(__file__).parent / "manifests"
"""Where the shipped manifests and field lists lie."""

SETS = ("semcorpus", "kriss", "semsr", "deepfocus", "lines", "weights", "lpips_example")
SPLITS = ("pretrain", "pretrain_validation", "train", "validation", "evaluation")
ROLES = ("image", "input", "reference", "sidecar")

SHORT_COLUMNS = ("file", "url", "sha256", "bytes", "licence", "source")
FULL_COLUMNS = (
    *("file", "url", "sha256", "bytes", "split", "role", "pair", "group", "width", "height", "bits"),
    *("pixel_size_nm", "crop_px", "licence", "source", "citation", "note"),
)
OPTIONAL_COLUMNS = ("tile",)
FIELD_COLUMNS = ("file", "x", "y", "width", "height", "group")
MEND = "mend that line of the manifest"


@dataclass(frozen=True)
class ManifestRow:
    """One file of a set.

    file: path inside the set, with "/"; sha256 and bytes are those of the plain content, not of a `.xz` beside it.
    split, role, pair, group are empty where the set has none (weights); tile is "y,x" in its pair's image, or empty.
    width, height (px) and bits: None for what is no image; pixel_size_nm: None where it is not known.
    crop_px: top, bottom, left, right, the rows and columns to cut so that only micrograph remains.
    """

    file: str
    url: str
    sha256: str
    bytes: int
    split: str
    role: str
    pair: str
    tile: str
    group: str
    width: int | None
    height: int | None
    bits: int | None
    pixel_size_nm: float | None
    crop_px: tuple[int, int, int, int]
    licence: str
    source: str
    citation: str
    note: str


@dataclass(frozen=True)
class Dataset:
    """A named set: its rows in the manifest's order, and the manifest they were read from."""

    name: str
    rows: tuple[ManifestRow, ...]
    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all values of all rows in order; spelling and columns left out do not count."""
        hasher = hashlib.sha256()
        for row in self.rows:
            hasher.update(json.dumps(astuple(row), ensure_ascii=False, separators=(",", ":")).encode())
            hasher.update(b"\n")
        return hasher.hexdigest()

    @property
    def shipped(self) -> bool:
        """Whether the manifest is one of sembench's own."""
        return self.path.parent == FOLDER

    def select(self, *, split: str | None = None, role: str | None = None) -> tuple[ManifestRow, ...]:
        """The rows of one split, of one role, or of both."""
        return tuple(r for r in self.rows if split in (None, r.split) and role in (None, r.role))


@dataclass(frozen=True)
class Field:
    """A frozen rectangle (px) of a file, counted from the upper left corner of what crop_px leaves."""

    field_id: str
    file: str
    x: int
    y: int
    width: int
    height: int
    group: str


def names() -> list[str]:
    """Names of all sets: sembench's own, then those that installed packages bring along."""
    return [*SETS, *(name for name in plugins(DATASETS) if name not in SETS)]


def load_manifest(name_or_path: str | Path) -> Dataset:
    """Read a set's manifest, by the set's name or from a CSV file.

    A file `manifest.csv` is named after its folder, any other after itself.
    Raises InputError: a name not known (with the nearest), a column missing or not known, a line that is not right.
    """
    name = str(name_or_path)
    if name in SETS:
        return _parse(name, FOLDER / f"{name}.csv")
    path = Path(name_or_path)
    if path.suffix.lower() == ".csv":
        return _parse(path.parent.resolve().name if path.name == "manifest.csv" else path.stem, path)
    if name not in plugins(DATASETS):
        raise InputError(f"no data set {name!r}: {suggestion(name, names())}, or give a manifest FILE.csv")
    return _from_plugin(name)


def load_fields(name: str) -> tuple[Field, ...]:
    """Read a shipped list of rectangles, in order.

    name: `s2s_fields` (512 x 512 px), `s2s_validation_fields` (448 x 448) or `clustering_tiles` (224 x 224).
    Raises InputError for a name not known or a line that is not right.
    """
    path = _shipped_list(name, ("s2s_fields", "s2s_validation_fields", "clustering_tiles"))
    key = "tile_id" if name == "clustering_tiles" else "field_id"
    fields = []
    for where, line in _lines(path, (key, *FIELD_COLUMNS)):
        x, y, width, height = (_whole(where, column, line[column]) for column in ("x", "y", "width", "height"))
        fields.append(Field(line[key], line["file"], x, y, width, height, line["group"]))
    return tuple(fields)


@dataclass(frozen=True)
class LineImage:
    """A real image of lines and how the metrology protocol degrades it; gray levels, pitch in px."""

    case_id: str
    file: str
    group: str
    contrast: float
    space_level: float
    line_level: float
    pitch_px: float


def load_line_images() -> tuple[LineImage, ...]:
    """The real cases of the metrology protocol, in order; raises InputError for a line that is not right."""
    numbers = ("contrast", "space_level", "line_level", "pitch_px")
    images = []
    for where, line in _lines(FOLDER / "metrology_lines.csv", ("case_id", "file", "group", *numbers)):
        try:
            contrast, space, bright, pitch = (float(line[column]) for column in numbers)
        except ValueError as error:
            raise InputError(f"{where}: {error}; {MEND}") from error
        images.append(LineImage(line["case_id"], line["file"], line["group"], contrast, space, bright, pitch))
    return tuple(images)


def load_train_files() -> dict[str, tuple[str, ...]]:
    """The ten semcorpus files of s2s training: {"train": eight files, "validation": two}."""
    files: dict[str, list[str]] = {"train": [], "validation": []}
    for where, line in _lines(FOLDER / "train_fields.csv", ("file", "role")):
        if line["role"] not in files:
            raise InputError(f"{where}: role is {line['role']!r}, not train or validation; {MEND}")
        files[line["role"]].append(line["file"])
    return {role: tuple(listed) for role, listed in files.items()}


def load_alignment(name: str) -> dict[str, dict[str, str]]:
    """A shipped registration table, `kriss` or `semsr`: {pair: {column: value as written}}.

    kriss: dy = a0 + a1 yn + a2 xn, dx = b0 + b1 yn + b2 xn (px), yn = (row - H/2) / (H/2), xn likewise, on the cropped
    image; the reference on the input's grid is reference(row - dy, col - dx). Raises InputError for another name.
    """
    path = _shipped_list(f"{name}_alignment", ("kriss_alignment", "semsr_alignment"))
    return {line["pair"]: line for _, line in _lines(path, ("pair",))}


def semcorpus() -> Dataset:
    """Single focused micrographs of many instruments and materials."""
    return load_manifest("semcorpus")


def kriss() -> Dataset:
    """Sixty real pairs, fast scan against slow scan, of one specimen in one session."""
    return load_manifest("kriss")


def semsr() -> Dataset:
    """Blocks of noisy against clean scans of another instrument, of weaker provenance."""
    return load_manifest("semsr")


def deepfocus() -> Dataset:
    """One field at three focus settings: a demonstration, not for ranking."""
    return load_manifest("deepfocus")


def lines() -> Dataset:
    """Real lithographic lines and contact holes."""
    return load_manifest("lines")


def weights() -> Dataset:
    """Weights of the metrics: AlexNet's features for LPIPS, NIQE's model."""
    return load_manifest("weights")


def lpips_example() -> Dataset:
    """The three example images of the LPIPS authors, of published distances."""
    return load_manifest("lpips_example")


def _from_plugin(name: str) -> Dataset:
    claimant = plugin(DATASETS, name)
    dataset = claimant.load()()
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"data set {name!r} of package {claimant.distribution} gives a {type(dataset).__name__}: return a Dataset"
        )
    return dataset


def _shipped_list(name: str, known: tuple[str, ...]) -> Path:
    if name not in known:
        raise InputError(f"no list {name!r}: {suggestion(name, known)}")
    return FOLDER / f"{name}.csv"


def _lines(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file, line n", {column: value}) of a CSV file that has the required columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a CSV file in UTF-8") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, [])
        lacking = [column for column in required if column not in header]
        if lacking:
            raise InputError(f"{path}, line 1: no column {', '.join(lacking)}; add it to the header and to every line")
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if len(values) != len(header):
                raise InputError(f"{where}: {len(values)} values for {len(header)} columns; {MEND}")
            yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; {MEND}") from error


def _parse(name: str, path: Path) -> Dataset:
    rows: list[ManifestRow] = []
    seen: dict[tuple[str, str], str] = {}
    contents: dict[str, str] = {}
    for where, line in _lines(path, SHORT_COLUMNS):
        if not rows:
            _check_columns(path, line)
        row = _row(where, line)
        first = seen.get((row.file, row.pair))
        if first is not None:
            raise InputError(f"{where}: {row.file} stands already in {first.rsplit(', ', 1)[1]}; keep one of the two")
        seen[row.file, row.pair] = where
        if contents.setdefault(row.file, row.sha256) != row.sha256:
            raise InputError(f"{where}: {row.file} has another sha256 than in an earlier line; {MEND}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no line below the header; list at least one file")
    return Dataset(name, tuple(rows), path)


def _check_columns(path: Path, line: dict[str, str]) -> None:
    columns = list(line)
    if set(columns) == set(SHORT_COLUMNS):
        return
    known = (*FULL_COLUMNS, *OPTIONAL_COLUMNS)
    for column in columns:
        if column not in known:
            raise InputError(f"{path}, line 1: column {column!r} is not known: {suggestion(column, known)}")
    lacking = [column for column in FULL_COLUMNS if column not in columns]
    if lacking:
        raise InputError(f"{path}, line 1: no column {', '.join(lacking)}; add it to the header and to every line")


def _row(where: str, line: dict[str, str]) -> ManifestRow:
    file, sha256, url = line["file"], line["sha256"], line["url"]
    inside = PurePosixPath(file)
    if not file or inside.is_absolute() or ".." in inside.parts or "\\" in file or ":" in file:
        raise InputError(f"{where}: file {file!r} is not a path inside the set; write it like folder/name.tif")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"{where}: sha256 of {file} is {sha256!r}, not 64 digits of 0-9a-f; write sha256sum's")
    if url and not re.match("https?://", url):
        raise InputError(f"{where}: url of {file} is {url!r}; begin it with https:// or leave it empty")
    split, role = line.get("split", ""), line.get("role", "")
    if "split" in line:
        _check_choice(where, "split", split, SPLITS)
        _check_choice(where, "role", role, ROLES)
        if not line["group"]:
            raise InputError(f"{where}: {file} has no group; name its specimen, the unit of independence")
    width, height, bits = (
        _whole_or_none(where, column, line.get(column, "")) for column in ("width", "height", "bits")
    )
    crop_px = _crop(where, line.get("crop_px", ""))
    if width is not None and height is not None and (sum(crop_px[:2]) >= height or sum(crop_px[2:]) >= width):
        raise InputError(f"{where}: crop_px {crop_px} leaves nothing of {height} x {width} px; {MEND}")
    return ManifestRow(
        file=file,
        url=url,
        sha256=sha256,
        bytes=_whole(where, "bytes", line["bytes"]),
        split=split,
        role=role,
        pair=line.get("pair", ""),
        tile=line.get("tile", ""),
        group=line.get("group", ""),
        width=width,
        height=height,
        bits=bits,
        pixel_size_nm=_pixel_size(where, line.get("pixel_size_nm", "")),
        crop_px=crop_px,
        licence=line["licence"],
        source=line["source"],
        citation=line.get("citation", ""),
        note=line.get("note", ""),
    )


def _check_choice(where: str, column: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{where}: {column} {value!r} is not known: {suggestion(value, known)}")


def _whole(where: str, column: str, text: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise InputError(f"{where}: {column} is {text!r}, not a whole number from 0 up; {MEND}")
    return int(text)


def _whole_or_none(where: str, column: str, text: str) -> int | None:
    return _whole(where, column, text) if text else None


def _pixel_size(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"{where}: pixel_size_nm is {text!r}, not a number above 0; leave it empty where not known")
    return size


def _crop(where: str, text: str) -> tuple[int, int, int, int]:
    if not text:
        return (0, 0, 0, 0)
    if not re.fullmatch("[0-9]+(,[0-9]+){3}", text):
        raise InputError(f"{where}: crop_px is {text!r}, not top,bottom,left,right in whole px; {MEND}")
    top, bottom, left, right = map(int, text.split(","))
    return (top, bottom, left, right)
