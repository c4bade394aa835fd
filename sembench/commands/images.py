"""`sembench restore` and `sembench degrade`: single images and folders, outside any protocol."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sembench.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sembench.micrograph import Micrograph
    from sembench.training_domain import Outside

Range = Annotated[
    str | None, typer.Option("--range", help="Values lo,hi that become 0 and 255 (12 bit in 16: 0,4095).")
]
CropBottom = Annotated[str, typer.Option("--crop-bottom", help="Rows to cut at the bottom: auto, 0, ROWS or FRACTION.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")]

PICTURE_GAP = 8
"""White columns between the two halves of a picture (px)."""

INVENTS = 1.1
"""Structure on a blank field, in units of the noise's own, above which a method is said to draw out of noise."""

SMALLEST_TILE = 64
"""Side (px) of a tile that can be asked for."""

SPREAD_NAME = "{stem}-spread-gray-levels.tif"
"""Name of the map beside a result."""


class _CannotTellError(InputError):
    """A restorer was asked for a spread that it does not have."""


@dataclass(frozen=True)
class _Job:
    """One image, and the files for its result and, if asked for, for picture and spread."""

    image: Path
    output: Path
    picture: Path | None
    spread: Path | None

    @property
    def written(self) -> list[Path]:
        """All that is written."""
        return [path for path in (self.output, self.picture, self.spread) if path is not None]


@dataclass(frozen=True)
class _Loaded:
    """A restorer that is ready: its name, settings as given, and its state's training degradation (None: not known).

    overlap: px around a tile on which its pixels depend; None: images are never cut.
    """

    name: str
    method: Any
    given: dict[str, str]
    degradation: str | None
    overlap: int | None = None


@dataclass(frozen=True)
class _How:
    """How images are read and restored: rows to cut, range, side of tiles (None: by memory), with a blank field."""

    crop_bottom: str
    value_range: str | None
    tile: int | None
    blank_field: bool


def degrade(
    image: Annotated[Path, typer.Argument(help="A clean image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.tif or .npy (float32), or .png (8 bit).")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    image_id: Annotated[str | None, typer.Option(help="Id of the draw; the file's stem by default.")] = None,
    rx: Annotated[float | None, typer.Option(help="Fix the kernel radius along x (px).")] = None,
    ry: Annotated[float | None, typer.Option(help="Fix the kernel radius along y (px).")] = None,
    beta: Annotated[float | None, typer.Option(help="Fix the kernel's exponent.")] = None,
    theta: Annotated[float | None, typer.Option(help="Fix the kernel's rotation (rad).")] = None,
    a: Annotated[float | None, typer.Option("--a", help="Fix the gain.")] = None,
    b: Annotated[float | None, typer.Option("--b", help="Fix the offset (gray levels).")] = None,
    sigma: Annotated[float | None, typer.Option(help="Fix the normal noise (gray levels).")] = None,
    dose: Annotated[float | None, typer.Option(help="Fix the dose (electrons per gray level).")] = None,
    no_noise: Annotated[bool, typer.Option("--no-noise", help="Blur, gain and offset only.")] = False,
    value_range: Range = None,
    crop_bottom: CropBottom = "0",
    json_output: Json = False,
) -> None:
    """Degrade a clean image by the forward model: Airy blur, gain, offset, Poisson and normal noise."""
    from sembench.micrograph import image_stem, to_grid, write
    from sembench.optics import degrade_case

    _refuse_unwritable(output)
    _refuse_same(image, output)
    fixed = {"rx": rx, "ry": ry, "beta": beta, "theta": theta, "a": a, "b": b, "sigma": sigma, "dose": dose}
    micrograph = _read(image, crop_bottom, value_range)
    case_id = image_stem(image) if image_id is None else image_id
    try:
        degraded, parameters = degrade_case(
            to_grid(micrograph.pixels),
            seed,
            case_id,
            {name: value for name, value in fixed.items() if value is not None},
            noise=not no_noise,
        )
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    write(output, degraded, micrograph.pixel_size_nm)
    _tell([*micrograph.notices, *_size_lost(micrograph, output)])
    record = {
        **parameters.as_dict(),
        "seed": seed,
        "image_id": case_id,
        "noise": not no_noise,
        "pixel_size_nm": micrograph.pixel_size_nm,
        "output": str(output),
    }
    if json_output:
        _print_json(record)
    else:
        _print_table(f"{image} -> {output}", ["parameter", "value"], [[key, _cell(record[key])] for key in record])


def restore(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="An image, or a folder of images.")],
    restorer: Annotated[str, typer.Option(help="A restorer's name, or FILE.py:Class.")],
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="FILE.tif, .npy or .png; a folder gets NAME.tif.")
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="What a restorer learnt: a file of `sembench adapt`; else what ships for broad.")
    ] = None,
    crop_bottom: CropBottom = "0",
    value_range: Range = None,
    picture: Annotated[
        Path | None, typer.Option(help="Input and result side by side, as PNG (of a folder: a folder of them).")
    ] = None,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="A map beside each result: how little the method agrees with itself."),
    ] = False,
    tile: Annotated[
        str,
        typer.Option(help="Side of tiles, px: auto (by the free memory, where the method allows), 0 for none, or N."),
    ] = "auto",
    blank_field: Annotated[
        bool,
        typer.Option(
            "--blank-field/--no-blank-field",
            help="Also restore a blank field with each image's noise: how much does the method invent?",
        ),
    ] = True,
    json_output: Json = False,
) -> None:
    """Restore one image or every image of a folder; say which lie outside of what a method that learns was taught."""
    from rich.console import Console

    from sembench.commands.progress import Progress
    from sembench.errors import CasesFailed

    jobs = _jobs(source, output, picture, uncertainty)
    how = _How(crop_bottom, value_range, _tile(tile), blank_field)
    loaded = _load_restorer(restorer, settings or [], state)
    if how.tile and loaded.overlap is None:
        raise InputError(
            f"--tile {tile}: {restorer} is never cut, as its pixels depend on the whole image, or makes its own "
            "windows: leave it out"
        )
    if loaded.method.learns() and loaded.degradation is None:
        _tell([f"{state or restorer}: its training degradation is not known: images are not compared with it"])
    records: list[dict[str, Any]] = []
    with Progress(Console(stderr=True, highlight=False), "restoring") as progress:
        for job in jobs:
            on_tile = partial(progress.show, f"tiles of {job.image.name}") if len(jobs) == 1 else None
            records.append(_record(loaded, job, how, on_tile, alone=not source.is_dir()))
            if len(jobs) > 1:
                failed = sum(record["status"] == "failed" for record in records)
                progress.show(job.image.name, len(records), len(jobs), failed)
    _report_restored(records, loaded, json_output)
    reasons = [record["reason"] for record in records if record["status"] == "failed"]
    if reasons:
        count = f"{len(reasons)} of {len(records)} images failed, first: "
        raise CasesFailed(f"{count if len(records) > 1 else ''}{reasons[0]}")


def _tile(text: str) -> int | None:
    """The side that --tile asks for; 0: never cut, None: as memory asks for it."""
    if text == "auto":
        return None
    if not text.isdecimal() or 0 < int(text) < SMALLEST_TILE:
        raise InputError(f"--tile {text}: give auto, 0 for none, or {SMALLEST_TILE} px or more")
    return int(text)


def _record(
    loaded: _Loaded, job: _Job, how: _How, on_tile: "Callable[[int, int], None] | None", *, alone: bool
) -> dict[str, Any]:
    """The record of an image, restored or failed; alone: whether what is wrong with it ends the command."""
    from sembench.errors import SembenchError, WriteError

    image = job.image
    try:
        return _restore_one(loaded, job, how, on_tile)
    except (WriteError, _CannotTellError):
        raise
    except SembenchError as error:
        if alone:
            raise
        return _failure(image, str(error))
    except Exception as error:  # a restorer may raise anything; the other images go on
        reason = " ".join(str(error).split())[:300]
        return _failure(image, f"{image}: {loaded.name} failed ({type(error).__name__}: {reason})")


def _read(image: Path, crop_bottom: str, value_range: str | None) -> "Micrograph":
    from sembench.micrograph import parse_range, read

    return read(image, crop_bottom=crop_bottom, value_range=None if value_range is None else parse_range(value_range))


def _jobs(source: Path, output: Path, picture: Path | None, uncertainty: bool) -> list[_Job]:
    """Each image with the files for its result; InputError before anything runs."""
    from sembench.micrograph import image_stem, list_images

    if not source.is_dir():
        target = output if output.suffix and not output.is_dir() else output / f"{image_stem(source)}.tif"
        jobs = [_Job(source, target, picture, _spread_file(target) if uncertainty else None)]
    else:
        if output.is_file():
            raise InputError(f"{output}: this is a file, and {source} is a folder: give a folder with -o")
        images = list_images(source)
        if not images:
            raise InputError(f"{source}: no image in this folder: give one with PNG, TIFF, JPEG, BMP or .npy images")
        first: dict[str, Path] = {}
        for image in images:
            other = first.setdefault(image_stem(image).casefold(), image)
            if other != image:
                raise InputError(f"{image}: its result would have the name of that of {other.name}: rename one of them")
        jobs = []
        for image in images:
            stem, target = image_stem(image), output / f"{image_stem(image)}.tif"
            side_by_side = picture / f"{stem}.png" if picture else None
            jobs.append(_Job(image, target, side_by_side, _spread_file(target) if uncertainty else None))
    for job in jobs:
        _refuse_unwritable(job.output)
        if job.picture is not None and job.picture.suffix.lower() != ".png":
            raise InputError(f"{job.picture}: a picture is a PNG: give a name that ends in .png")
    _refuse_overwriting(jobs)
    return jobs


def _spread_file(output: Path) -> Path:
    return output.with_name(SPREAD_NAME.format(stem=output.stem))


def _refuse_overwriting(jobs: list[_Job]) -> None:
    """No input is written over, and no file is written twice."""
    inputs = {job.image.resolve(): job.image for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        for path in job.written:
            other = inputs.get(path.resolve()) or taken.get(path.resolve())
            if other is not None:
                raise InputError(f"{path}: would overwrite {other}: give another name or folder")
            taken[path.resolve()] = path


def _load_restorer(restorer: str, settings: list[str], state: Path | None = None) -> _Loaded:
    from sembench.errors import UnavailableError
    from sembench.registry import load_method

    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {setting}: give it as KEY=VALUE")
        given[key.strip()] = value.strip()
    method = load_method(restorer, given)
    if method.kind == "control":
        raise InputError(f"{restorer} is a control and needs the truth, which an image does not have: give a restorer")
    missing = type(method).needs(method.settings)
    if missing:
        raise UnavailableError(f"restorer {restorer} is not available: {missing[0]}")
    overlap = method.tile_overlap()
    if overlap is not None and (not isinstance(overlap, int) or overlap < 0):
        raise InputError(f"restorer {restorer}: its tile_overlap gives {overlap!r}: give a whole number of px, or None")
    return _Loaded(restorer, method, given, _load_state(restorer, method, state), overlap)


def _load_state(restorer: str, method: Any, state: Path | None) -> str | None:
    """Give a restorer that learns what it learnt: the file named, else the state that ships for real images.

    Returns the degradation that it learnt by, None where that is not known.
    """
    from sembench.errors import UnavailableError
    from sembench.execution.fits import degradation_of, find_shipped, load_state
    from sembench.optics import DEGRADATION_RANGES
    from sembench.registry import find_method

    if not method.learns():
        if state is not None:
            raise InputError(f"--state {state}: restorer {restorer} does not learn: leave it out")
        return None
    if state is not None:
        method.state = load_state(state)
        learnt = degradation_of(state)
        return learnt if learnt in DEGRADATION_RANGES else None
    degradation = getattr(method.settings, "degradation", "none")
    degradation = "broad" if degradation == "none" else degradation
    shipped = find_shipped(find_method(restorer), method.settings, degradation)
    if shipped is None:
        raise UnavailableError(
            f"restorer {restorer} is not fitted and no state ships for these settings: "
            f"fit it with `sembench adapt {restorer}` and give its file with --state"
        )
    method.state = load_state(shipped.path, shipped.sha256)
    return degradation if degradation in DEGRADATION_RANGES else None


def _restore_one(loaded: _Loaded, job: _Job, how: _How, on_tile: "Callable[[int, int], None] | None") -> dict[str, Any]:
    """Restore one image as a run does: on the grid, read-only, the result checked; returns its record."""
    import time

    import numpy as np

    from sembench.execution.tiles import tile_count
    from sembench.micrograph import to_grid, write
    from sembench.restorer import check_image

    image = job.image
    micrograph = _read(image, how.crop_bottom, how.value_range)
    try:
        check_image(micrograph.pixels)
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    pixels = to_grid(micrograph.pixels)
    pixels.flags.writeable = False
    side = _side(loaded, how, pixels.shape)
    try:
        spread = None if job.spread is None else _spread(loaded, pixels)
        start = time.perf_counter()
        restored = _restored(loaded, pixels, side, on_tile)
    except _CannotTellError:
        raise
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    except MemoryError as error:
        height, width = pixels.shape
        raise InputError(
            f"{image}: memory does not do for {height} x {width} px at once: cut the image into parts, "
            f"{'give a smaller --tile' if side else 'or give a restorer that works in tiles (input, gaussian, median)'}"
        ) from error
    seconds = time.perf_counter() - start
    if restored.shape != pixels.shape:
        raise ValueError(f"result of shape {restored.shape} for an image of shape {pixels.shape}")
    try:
        restored = to_grid(restored)
    except InputError as error:
        raise ValueError(f"the result is wrong: {error}") from error
    replaced = [path for path in job.written if path.exists()]
    write(job.output, restored, micrograph.pixel_size_nm)
    if job.picture is not None:
        gap = np.full((pixels.shape[0], PICTURE_GAP), 255.0, dtype=np.float32)
        write(job.picture, np.hstack([pixels, gap, restored]))
    if job.spread is not None and spread is not None:
        write(job.spread, spread, micrograph.pixel_size_nm)
    outside = _outside(loaded, pixels)
    invented, told = _invented(loaded, image, pixels) if how.blank_field else (None, [])
    tiles = tile_count(pixels.shape, side)
    if tiles > 1 and how.tile is None:
        cut = f"{image}: restored in {tiles} tiles of {side} px for want of memory for all of it at once"
        told.append(f"{cut}: as the whole within {loaded.method.tile_tolerance:g} gray levels")
    notices = [*micrograph.notices, *_size_lost(micrograph, job.output), *_warning(loaded, image, outside), *told]
    return {
        "image": str(image),
        "status": "restored",
        "output": str(job.output),
        "picture": str(job.picture) if job.picture else None,
        "replaced": [str(path) for path in replaced],
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "pixel_size_nm": micrograph.pixel_size_nm,
        "pixel_size_source": micrograph.pixel_size_source,
        "seconds": seconds,
        "tiles": tiles,
        "invented_structure": invented,
        "spread": None
        if spread is None
        else {"file": str(job.spread), "mean": float(spread.mean()), "unit": "gray levels"},
        "outside": None if outside is None else [vars(part) for part in outside],
        "notices": notices,
    }


def _side(loaded: _Loaded, how: _How, shape: tuple[int, ...]) -> int | None:
    """Side of the tiles in which an image is restored; None: at once."""
    from sembench.execution import tiles

    if loaded.overlap is None or how.tile == 0:
        return None
    return how.tile or tiles.tile_side(shape, loaded.overlap, tiles.free_memory())


def _restored(loaded: _Loaded, pixels: Any, side: int | None, on_tile: "Callable[[int, int], None] | None") -> Any:
    import numpy as np

    from sembench.execution.tiles import restore_tiles

    if side is None or loaded.overlap is None:
        return np.asarray(loaded.method.restore(pixels))
    return restore_tiles(loaded.method.restore, pixels, loaded.overlap, side, on_tile)


def _invented(loaded: _Loaded, image: Path, pixels: Any) -> tuple[float | None, list[str]]:
    """Structure that the restorer draws on the image's blank field, None where that cannot be told; and what to say."""
    from sembench.execution.blank_field import invented_in
    from sembench.metrics.table import UndefinedError
    from sembench.micrograph import image_stem

    try:
        invented = invented_in(loaded.method.restore, pixels, image_stem(image))
    except UndefinedError:
        return None, []
    except Exception as error:  # the image itself is restored, and a restorer may raise anything
        reason = " ".join(str(error).split())[:200]
        return None, [f"{image}: its blank field could not be restored ({type(error).__name__}: {reason})"]
    if invented <= INVENTS:
        return invented, []
    return invented, [
        f"{image}: on a blank field with this image's noise {loaded.name} shows {invented:.1f} times the structure of "
        "the noise itself: fine structure in the result may be drawn out of noise: compare it with the raw image"
    ]


def _spread(loaded: _Loaded, pixels: Any) -> Any:
    """The restorer's own spread of an image, checked like a result."""
    import numpy as np

    found = loaded.method.uncertainty(pixels)
    if found is None:
        raise _CannotTellError(
            f"--uncertainty: restorer {loaded.name} cannot tell how far its result may be off: "
            "leave it out, or give a restorer that learns"
        )
    found = np.asarray(found, dtype=np.float32)
    if found.shape != pixels.shape or not np.isfinite(found).all() or found.min() < 0:
        raise ValueError(f"its spread is wrong: shape {found.shape}, finite values from 0 up are asked for")
    return found


def _outside(loaded: _Loaded, pixels: Any) -> "tuple[Outside, ...] | None":
    """What of an image lies outside of what the restorer's state was trained on; None where that is not known."""
    from sembench.training_domain import outside

    return None if loaded.degradation is None else outside(pixels, loaded.degradation)


def _warning(loaded: _Loaded, image: Path, outside: "tuple[Outside, ...] | None") -> list[str]:
    if not outside:
        return []
    told = "; ".join(str(part) for part in outside)
    return [f"{image}: outside of what {loaded.name} was trained on ({loaded.degradation}): {told}"]


def _failure(image: Path, reason: str) -> dict[str, Any]:
    return {"image": str(image), "status": "failed", "reason": reason}


def _report_restored(records: list[dict[str, Any]], loaded: _Loaded, as_json: bool) -> None:
    _tell([notice for record in records for notice in record.get("notices", [])])
    _tell(_replaced([path for record in records for path in record.get("replaced", [])]))
    if len(records) > 1:
        _tell([record["reason"] for record in records if record["status"] == "failed"])
    if as_json:
        learnt = {"restorer": loaded.name, "settings": loaded.given, "degradation": loaded.degradation}
        _print_json({**learnt, "images": records})
        return
    columns = ["image", "status", "output", "pixel size (nm)", "seconds"]
    rows = [
        [
            Path(record["image"]).name,
            record["status"],
            Path(record.get("output", "")).name,
            _cell(record.get("pixel_size_nm")),
            _cell(record.get("seconds", "")),
        ]
        for record in records
    ]
    if any(record.get("invented_structure") is not None for record in records):
        columns.append("invented (× noise)")
        for row, record in zip(rows, records, strict=True):
            found = record.get("invented_structure")
            row.append("" if found is None else f"{found:.2f}")
    if any(record.get("spread") for record in records):
        columns.append("mean spread (gray levels)")
        for row, record in zip(rows, records, strict=True):
            row.append(_cell(record["spread"]["mean"]) if record.get("spread") else "")
    folders = sorted({str(Path(record["output"]).parent) for record in records if "output" in record})
    _print_table(" -> ".join([loaded.name, *folders]), columns, rows)


def _replaced(files: list[str]) -> list[str]:
    """One line on files that stood there before, none where there was none."""
    if len(files) < 2:
        return [f"notice: 1 file that was there before was replaced: {file}" for file in files]
    return [f"notice: {len(files)} files that were there before were replaced, {files[0]} the first"]


def _refuse_unwritable(output: Path) -> None:
    from sembench.micrograph import WRITTEN_SUFFIXES

    if output.suffix.lower() not in WRITTEN_SUFFIXES:
        raise InputError(f"{output}: cannot write this kind of image: give a name ending in .tif, .npy or .png")


def _refuse_same(image: Path, output: Path) -> None:
    if image.resolve() == output.resolve():
        raise InputError(f"{output}: would overwrite {image}: give another name or folder")


def _size_lost(micrograph: "Micrograph", output: Path) -> list[str]:
    if micrograph.pixel_size_nm is None or output.suffix.lower() in (".tif", ".tiff"):
        return []
    return [f"{output}: {output.suffix} does not keep the pixel size ({_cell(micrograph.pixel_size_nm)} nm): use .tif"]


def _tell(notices: list[str]) -> None:
    for notice in notices:
        typer.echo(notice, err=True)


def _cell(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, tuple):
        x, y = value
        return f"{x:g}" if x == y else f"{x:g} x {y:g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_json(record: Any) -> None:
    import json

    typer.echo(json.dumps(record, indent=2))


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, Console(width=10_000).measure(table).maximum))
    console.print(table)
