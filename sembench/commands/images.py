"""`sembench restore` and `sembench degrade`: single images and folders, outside any protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sembench.micrograph import Micrograph

Range = Annotated[
    str | None, typer.Option("--range", help="Values lo,hi that become 0 and 255 (12 bit in 16: 0,4095).")
]
CropBottom = Annotated[str, typer.Option("--crop-bottom", help="Rows to cut at the bottom: auto, 0, ROWS or FRACTION.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")]

PICTURE_GAP = 8
"""White columns between the two halves of a picture (px)."""


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
    from sembench.errors import InputError
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
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.tif, .npy or .png; a folder gets NAME.tif.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="What a restorer learnt: a file of `sembench adapt`; else what ships for broad.")
    ] = None,
    crop_bottom: CropBottom = "0",
    value_range: Range = None,
    picture: Annotated[
        Path | None, typer.Option(help="Input and result side by side, as PNG (of a folder: a folder of them).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Restore one image or every image of a folder."""
    from sembench.errors import CasesFailed, SembenchError, WriteError

    jobs = _jobs(source, output, picture)
    method, given = _load_restorer(restorer, settings or [], state)
    records = []
    for image, target, side_by_side in _progress(jobs):
        try:
            records.append(_restore_one(method, image, target, side_by_side, crop_bottom, value_range))
        except WriteError:
            raise
        except SembenchError as error:
            if not source.is_dir():
                raise
            records.append(_failure(image, str(error)))
        except Exception as error:  # a restorer may raise anything; the other images go on
            reason = " ".join(str(error).split())[:300]
            records.append(_failure(image, f"{image}: {restorer} failed ({type(error).__name__}: {reason})"))
    _report_restored(records, restorer, given, json_output)
    failed = [record["reason"] for record in records if record["status"] == "failed"]
    if failed:
        first = failed[0] if len(records) == 1 else f"{len(failed)} of {len(records)} images failed, first: {failed[0]}"
        raise CasesFailed(first)


def _read(image: Path, crop_bottom: str, value_range: str | None) -> "Micrograph":
    from sembench.micrograph import parse_range, read

    return read(image, crop_bottom=crop_bottom, value_range=None if value_range is None else parse_range(value_range))


def _jobs(source: Path, output: Path, picture: Path | None) -> list[tuple[Path, Path, Path | None]]:
    """Each image with the file for its result and, if asked for, for its picture; InputError before anything runs."""
    from sembench.errors import InputError
    from sembench.micrograph import image_stem, list_images

    if not source.is_dir():
        target = output if output.suffix and not output.is_dir() else output / f"{image_stem(source)}.tif"
        jobs: list[tuple[Path, Path, Path | None]] = [(source, target, picture)]
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
        jobs = [
            (image, output / f"{image_stem(image)}.tif", picture / f"{image_stem(image)}.png" if picture else None)
            for image in images
        ]
    for image, target, side_by_side in jobs:
        _refuse_unwritable(target)
        _refuse_same(image, target)
        if side_by_side is not None:
            if side_by_side.suffix.lower() != ".png":
                raise InputError(f"{side_by_side}: a picture is a PNG: give a name that ends in .png")
            _refuse_same(image, side_by_side)
            _refuse_same(target, side_by_side)
    return jobs


def _load_restorer(restorer: str, settings: list[str], state: Path | None = None) -> tuple[Any, dict[str, str]]:
    from sembench.errors import InputError, UnavailableError
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
    _load_state(restorer, method, state)
    return method, given


def _load_state(restorer: str, method: Any, state: Path | None) -> None:
    """Give a restorer that learns what it learnt: the file named, else the state that ships for real images."""
    from sembench.errors import InputError, UnavailableError
    from sembench.execution.fits import find_shipped, load_state
    from sembench.registry import find_method

    if not method.learns():
        if state is not None:
            raise InputError(f"--state {state}: restorer {restorer} does not learn: leave it out")
        return
    if state is not None:
        method.state = load_state(state)
        return
    degradation = getattr(method.settings, "degradation", "none")
    shipped = find_shipped(find_method(restorer), method.settings, "broad" if degradation == "none" else degradation)
    if shipped is None:
        raise UnavailableError(
            f"restorer {restorer} is not fitted and no state ships for these settings: "
            f"fit it with `sembench adapt {restorer}` and give its file with --state"
        )
    method.state = load_state(shipped.path, shipped.sha256)


def _restore_one(
    method: Any, image: Path, output: Path, picture: Path | None, crop_bottom: str, value_range: str | None
) -> dict[str, Any]:
    """Restore one image as a run does: on the grid, read-only, the result checked; returns its record."""
    import time

    import numpy as np

    from sembench.errors import InputError
    from sembench.micrograph import to_grid, write
    from sembench.restorer import check_image

    micrograph = _read(image, crop_bottom, value_range)
    try:
        check_image(micrograph.pixels)
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    pixels = to_grid(micrograph.pixels)
    pixels.flags.writeable = False
    start = time.perf_counter()
    try:
        restored = np.asarray(method.restore(pixels))
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    seconds = time.perf_counter() - start
    if restored.shape != pixels.shape:
        raise ValueError(f"result of shape {restored.shape} for an image of shape {pixels.shape}")
    try:
        restored = to_grid(restored)
    except InputError as error:
        raise ValueError(f"the result is wrong: {error}") from error
    write(output, restored, micrograph.pixel_size_nm)
    if picture is not None:
        gap = np.full((pixels.shape[0], PICTURE_GAP), 255.0, dtype=np.float32)
        write(picture, np.hstack([pixels, gap, restored]))
    notices = [*micrograph.notices, *_size_lost(micrograph, output)]
    return {
        "image": str(image),
        "status": "restored",
        "output": str(output),
        "picture": str(picture) if picture else None,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "pixel_size_nm": micrograph.pixel_size_nm,
        "pixel_size_source": micrograph.pixel_size_source,
        "seconds": seconds,
        "notices": notices,
    }


def _failure(image: Path, reason: str) -> dict[str, Any]:
    return {"image": str(image), "status": "failed", "reason": reason}


def _report_restored(records: list[dict[str, Any]], restorer: str, given: dict[str, str], as_json: bool) -> None:
    _tell([notice for record in records for notice in record.get("notices", [])])
    if len(records) > 1:
        _tell([record["reason"] for record in records if record["status"] == "failed"])
    if as_json:
        _print_json({"restorer": restorer, "settings": given, "images": records})
        return
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
    folders = sorted({str(Path(record["output"]).parent) for record in records if "output" in record})
    _print_table(" -> ".join([restorer, *folders]), ["image", "status", "output", "pixel size (nm)", "seconds"], rows)


def _progress(jobs: list[Any]) -> Any:
    """The jobs in turn, with a progress bar on stderr where there is more than one."""
    if len(jobs) == 1:
        return jobs
    from rich.console import Console
    from rich.progress import track

    return track(jobs, description="restoring", console=Console(stderr=True), transient=True)


def _refuse_unwritable(output: Path) -> None:
    from sembench.errors import InputError
    from sembench.micrograph import WRITTEN_SUFFIXES

    if output.suffix.lower() not in WRITTEN_SUFFIXES:
        raise InputError(f"{output}: cannot write this kind of image: give a name ending in .tif, .npy or .png")


def _refuse_same(image: Path, output: Path) -> None:
    from sembench.errors import InputError

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
    Console().print(table)
