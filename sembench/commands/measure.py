"""`sembench measure`: widths and roughness of lines, diameters of contacts, with what is needed to judge them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sembench.measurement import Measured

Kind = Literal["auto", "lines", "contacts"]
Polarity = Literal["bright", "dark"]
Level = Literal["plateau", "smile2", "rim"]

SECONDS_A_LINE = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def measure(
    sources: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, or folders of images.")],
    pixel_size: Annotated[
        str | None,
        typer.Option("--pixel-size", metavar="NM", help="Pixel size (nm), or X,Y, of files without."),
    ] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Lengths in px: no pixel size is needed.")] = False,
    kind: Annotated[Kind, typer.Option(help="What to look for; auto: lines, else contacts.")] = "auto",
    polarity: Annotated[Polarity, typer.Option(help="Lines or contacts are the bright or the dark part.")] = "bright",
    level: Annotated[
        Level,
        typer.Option(help="Where an edge is: half way between plateaus; as SMILE2; for bright rims."),
    ] = "plateau",
    crop_bottom: Annotated[
        str,
        typer.Option(help="Data bar at the bottom: 0, ROWS or FRACTION; auto: cut where the whole image is refused."),
    ] = "auto",
    value_range: Annotated[
        str | None, typer.Option("--range", help="Values lo,hi that become 0 and 255 (12 bit in 16: 0,4095).")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Edges drawn on the image, as PNG (for several images: a folder of them).")
    ] = None,
    psd: Annotated[
        Path | None, typer.Option(help="Spectra of edges and widths: PNG (several: a folder of them), or one CSV.")
    ] = None,
    edges: Annotated[Path | None, typer.Option(help="CSV with every edge point, in px of the image.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV with one row an image, every quantity.")] = None,
    trend: Annotated[
        Path | None, typer.Option(help="CSV with columns file and a value such as dose_mj_cm2: results against it.")
    ] = None,
    trend_plot: Annotated[
        Path | None,
        typer.Option("--trend-plot", help="PNG of the trend; a CSV beside it.", show_default="NAME-trend.png"),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")] = False,
) -> None:
    """Measure CD, LWR, LER of lines, or diameters of contacts; refuse with a reason what cannot be measured.

    Raw values are as the image has them, noise included; unbiased ones have the noise of the edge positions taken out.
    """
    from sembench import measurement
    from sembench.errors import InputError
    from sembench.micrograph import crop_bottom_rows, parse_range

    if pixels and pixel_size is not None:
        raise InputError("--pixels and --pixel-size: lengths come in one unit: leave one of them out")
    if kind == "contacts" and level != "plateau":
        raise InputError(f"--level {level} has no meaning for contacts: leave it out")
    request = measurement.Request(
        pixel_size_nm=None if pixel_size is None else measurement.parse_pixel_size(pixel_size),
        pixels=pixels,
        kind=kind,
        polarity=polarity,
        level=level,
        crop_bottom=crop_bottom,
        value_range=None if value_range is None else parse_range(value_range),
    )
    crop_bottom_rows(crop_bottom, 1)
    images = measurement.find_images(sources)
    outputs = _Outputs(images, request.unit)
    outputs.pictures(overlay, psd)
    outputs.tables(psd, edges, csv)
    outputs.trend(trend, trend_plot)
    results = []
    for image in _progress(images):
        measured = measurement.measure_file(image, request, hint=len(images) < measurement.FEWEST_FOR_SPEED)
        outputs.take(measured)
        results.append(measured.without_arrays())
    records = [measured.record for measured in results]
    outputs.finish(records)
    for notice in [notice for measured in results for notice in measured.notices]:
        typer.echo(notice, err=True)
    if len(results) == 1 and results[0].unreadable and not json_output:
        raise InputError(f"{results[0].file}: {results[0].refused}")
    if json_output:
        import json

        typer.echo(json.dumps([measurement.json_record(r, request) for r in records], indent=2, allow_nan=False))
    else:
        _show(records, request.unit)
        outputs.show_trend()
    unreadable = [measured for measured in results if measured.unreadable]
    if unreadable:
        first = f"{unreadable[0].file}: {unreadable[0].refused}"
        more = "" if len(results) == 1 else f"{len(unreadable)} of {len(results)} files cannot be read, first: "
        raise InputError(f"{more}{first}")


class _Outputs:
    """The files that were asked for: their names are checked before anything runs, most are written at the end."""

    def __init__(self, images: list[Path], unit: str) -> None:
        self.images = images
        self.unit = unit
        self.overlays: dict[str, Path] = {}
        self.psd_pictures: dict[str, Path] = {}
        self.written: dict[Path, Path] = {}
        self.csv: Path | None = None
        self.edges: Path | None = None
        self.psd: Path | None = None
        self.edge_rows: list[list[Any]] = []
        self.psd_rows: list[list[Any]] = []
        self.series: Any = None
        self.plot = Path()
        self.curves: list[Any] = []

    def pictures(self, overlay: Path | None, psd: Path | None) -> None:
        """One picture an image: `target` itself for one image, else NAME.png in the folder `target`."""
        if overlay is not None:
            self.overlays = self._one_each("--overlay", overlay)
        if psd is not None and psd.suffix.lower() != ".csv":
            self.psd_pictures = self._one_each("--psd", psd)

    def _one_each(self, option: str, target: Path) -> dict[str, Path]:
        from sembench.errors import InputError
        from sembench.micrograph import image_stem

        if target.suffix and not target.is_dir():
            kinds = ".png or .csv" if option == "--psd" else ".png"
            if target.suffix.lower() != ".png":
                raise InputError(f"{option} {target}: cannot write this kind of file: give a name ending in {kinds}")
            if len(self.images) > 1:
                raise InputError(f"{option} {target}: one picture for {len(self.images)} images: give a folder")
            return {str(self.images[0]): self._claim(option, target)}
        if target.is_file():
            raise InputError(f"{option} {target}: this is a file: give a PNG or a folder")
        return {str(image): self._claim(option, target / f"{image_stem(image)}.png") for image in self.images}

    def tables(self, psd: Path | None, edges: Path | None, csv: Path | None) -> None:
        """The CSV files of all images together."""
        self.psd = self._table("--psd", psd) if psd is not None and psd.suffix.lower() == ".csv" else None
        self.edges = self._table("--edges", edges)
        self.csv = self._table("--csv", csv)

    def _table(self, option: str, target: Path | None) -> Path | None:
        from sembench.errors import InputError

        if target is None:
            return None
        if target.suffix.lower() != ".csv" or target.is_dir():
            raise InputError(f"{option} {target}: this is written as CSV: give a name that ends in .csv")
        return self._claim(option, target)

    def trend(self, trend: Path | None, plot: Path | None) -> None:
        """Read the series, which must fit the images, before anything is measured."""
        from sembench.errors import InputError
        from sembench.trend import read_series

        if trend is None:
            if plot is not None:
                raise InputError(f"--trend-plot {plot}: there is no trend without --trend: give it too")
            return
        names = [image.name for image in self.images]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{trend}: two images are called {name}: measure them apart")
        self.series = read_series(trend, names)
        target = trend.with_name(f"{trend.stem}-trend.png") if plot is None else plot
        if target.suffix.lower() != ".png":
            raise InputError(f"--trend-plot {target}: a picture is a PNG: give a name that ends in .png")
        self.plot = self._claim("--trend", target)
        if self._claim("--trend", target.with_suffix(".csv")).resolve() == trend.resolve():
            raise InputError(f"--trend-plot {target}: the coefficients beside it would overwrite {trend}: rename one")

    def _claim(self, option: str, target: Path) -> Path:
        from sembench.errors import InputError

        place = target.resolve()
        for image in self.images:
            if image.resolve() == place:
                raise InputError(f"{option} {target}: would overwrite {image}: give another name or folder")
        if place in self.written:
            raise InputError(f"{option} {target}: written twice: give every file and every image a name of its own")
        self.written[place] = target
        return target

    def take(self, measured: "Measured") -> None:
        """Draw one image's pictures and keep its rows."""
        from sembench import figures
        from sembench.measurement_tables import edge_rows, spectrum_rows

        name, scale = Path(measured.file).name, measured.scale_nm
        pixels, lines, contacts = measured.pixels, measured.lines, measured.contacts
        if self.edges is not None:
            self.edge_rows += edge_rows(measured)
        if self.psd is not None:
            self.psd_rows += spectrum_rows(measured)
        if pixels is not None and lines is not None:
            if measured.file in self.overlays:
                figures.line_overlay(self.overlays[measured.file], name, pixels, lines, scale)
            if measured.file in self.psd_pictures:
                title = f"{name}: spectra of edges and widths"
                figures.psd_curves(self.psd_pictures[measured.file], title, lines, scale)
        elif pixels is not None and contacts is not None and measured.file in self.overlays:
            figures.contact_overlay(self.overlays[measured.file], name, pixels, contacts, scale)

    def finish(self, records: list[dict[str, Any]]) -> None:
        """Write the files that hold all images."""
        from sembench import measurement_tables as tables
        from sembench.micrograph import write_atomically

        if self.csv is not None:
            write_atomically(self.csv, tables.records_csv(records, self.unit))
        if self.edges is not None:
            write_atomically(self.edges, tables.edges_csv(self.edge_rows))
        if self.psd is not None:
            write_atomically(self.psd, tables.spectra_csv(self.psd_rows, self.unit))
        if self.series is not None:
            self._draw_trend(records)

    def _draw_trend(self, records: list[dict[str, Any]]) -> None:
        from sembench import figures
        from sembench import trend as trends
        from sembench.measurement_tables import csv_bytes
        from sembench.micrograph import write_atomically

        series = self.series
        for record in records:
            if Path(record["file"]).name not in series.values:
                typer.echo(f"{record['file']}: not in {series.path}: left out of the trend", err=True)
        self.curves = trends.curves(series, records, self.unit)
        if not any(curve.fit for curve in self.curves):
            self.curves = []
            typer.echo(f"{series.path}: no trend: measured at fewer than two different values", err=True)
            return
        panels: dict[str, dict[str, Any]] = {}
        for curve in self.curves:
            panel = panels.setdefault(f"{curve.panel} ({curve.unit})", {})
            panel[curve.name] = (curve.x, curve.y, curve.fit)
        count = max(len(curve.x) for curve in self.curves)
        figures.trend(self.plot, f"{series.path.name}: {count} of {len(records)} images", series.label, panels)
        rows = trends.coefficient_rows(series, self.curves)
        write_atomically(self.plot.with_suffix(".csv"), csv_bytes(trends.COLUMNS, rows))

    def show_trend(self) -> None:
        """The coefficients as a table."""
        if not self.curves:
            return
        from sembench.trend import coefficient_rows

        rows = [
            [row[0], row[1], str(row[3]), *(_with_error(*row[at : at + 2]) for at in (4, 6, 8)), _number(row[10])]
            for row in coefficient_rows(self.series, self.curves)
        ]
        header = ["quantity", "unit", "points", "c0", "c1", "c2", "residual"]
        _print_table(f"y = c0 + c1 x + c2 x\u00b2, x: {self.series.label}; \u00b1: standard error", header, rows)
        typer.echo(f"{self.plot}, {self.plot.with_suffix('.csv')}")


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} \u00b1{error:.2g}"


def _progress(images: list[Path]) -> "Iterator[Path]":
    """The images in turn, with a bar on a terminal and now and then a line elsewhere."""
    import time

    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import track

        yield from track(images, description="measuring", console=console, transient=True)
        return
    started = told = time.monotonic()
    for done, image in enumerate(images):
        now = time.monotonic()
        if done and now - told > SECONDS_A_LINE:
            told = now
            left = (now - started) / done * (len(images) - done)
            typer.echo(f"{done} of {len(images)} measured, about {left:.0f} s left", err=True)
        yield image


def _show(records: list[dict[str, Any]], unit: str) -> None:
    if len(records) == 1 and records[0]["refused"] is None:
        _show_one(records[0], unit)
        return
    for kind, columns in _COLUMNS.items():
        found = [record for record in records if record["kind"] == kind and record["refused"] is None]
        if found:
            header = ["file", *(title.format(unit=unit) for title, *_ in columns)]
            _print_table(
                f"{kind}: {len(found)} of {len(records)} images",
                header,
                [[Path(r["file"]).name, *_row(r, columns, unit)] for r in found],
            )
    for record in records:
        for flag in record["flags"]:
            typer.echo(f"flag: {record['file']}: {flag}")
        if record["refused"] is not None:
            typer.echo(f"refused: {record['file']}: {record['refused']}")


_COLUMNS: "dict[str, Sequence[tuple[str, str, str | None]]]" = {
    "lines": (
        ("CD\n{unit}", "cd_mean_{unit}", None),
        ("CD std\n{unit}", "cd_std_{unit}", None),
        ("pitch\n{unit}", "pitch_{unit}", None),
        ("LWR raw\n{unit}", "lwr_{unit}", "lwr_se_{unit}"),
        ("LWR\nunbiased", "lwr_unbiased_{unit}", None),
        ("LER raw\n{unit}", "ler_{unit}", None),
        ("LER\nunbiased", "ler_unbiased_{unit}", None),
        ("C/N", "contrast_to_noise", None),
    ),
    "contacts": (
        ("count", "count", None),
        ("CD x\n{unit}", "cd_x_{unit}", None),
        ("CD y\n{unit}", "cd_y_{unit}", None),
        ("diameter\n{unit}", "diameter_{unit}", None),
        ("LCDU\n{unit}", "lcdu_{unit}", None),
        ("CER\n{unit}", "cer_{unit}", None),
        ("C/N", "contrast_to_noise", None),
    ),
}
"""Columns of the table of several images: header, key, key of the standard error."""


def _row(record: dict[str, Any], columns: "Sequence[tuple[str, str, str | None]]", unit: str) -> list[str]:
    cells = []
    for _, key, error in columns:
        cell = _number(record.get(key.format(unit=unit)))
        if error is not None and record.get(error.format(unit=unit)) is not None:
            cell += f" \u00b1{record[error.format(unit=unit)]:.2f}"
        cells.append(cell)
    return cells


_QUANTITIES: "dict[str, Sequence[tuple[str, str, str | None, str]]]" = {
    "lines": (
        ("CD, mean", "cd_mean_{unit}", None, "over all rows and lines"),
        ("CD, std between lines", "cd_std_{unit}", None, "of the lines' means; scan distortion included"),
        ("CD over pitch", "cd_over_pitch", None, "mean of width over local pitch"),
        ("pitch", "pitch_{unit}", None, ""),
        ("LWR, raw", "lwr_{unit}", "lwr_se_{unit}", "3 sigma, noise included"),
        ("LWR, unbiased", "lwr_unbiased_{unit}", None, "3 sigma, noise taken out; void after a denoiser"),
        ("LER, raw", "ler_{unit}", "ler_se_{unit}", "3 sigma, noise included"),
        ("LER, unbiased", "ler_unbiased_{unit}", None, "3 sigma, noise taken out; void after a denoiser"),
        ("LER, common motion removed", "ler_common_removed_{unit}", None, "without what moves all edges alike"),
        ("roughness sigma", "sigma_{unit}", None, "of an edge: fitted model"),
        ("correlation length xi", "xi_{unit}", None, "of an edge: fitted model"),
        ("roughness exponent H", "hurst", None, "of an edge: fitted model"),
        ("edge noise", "edge_noise_{unit}", None, "1 sigma of an edge position, from the fitted model"),
        ("edge blur", "edge_blur_{unit}", None, "1 sigma of the edge profile"),
        ("contrast to noise", "contrast_to_noise", None, "level difference over noise of a pixel"),
        ("tilt", "tilt_deg", None, ""),
        ("points lost", "lost_fraction", None, "share of edge points, bridged by straight lines"),
    ),
    "contacts": (
        ("CD x, mean", "cd_x_{unit}", None, "extent of the fitted ellipses along x"),
        ("CD y, mean", "cd_y_{unit}", None, "extent of the fitted ellipses along y"),
        ("equivalent diameter", "diameter_{unit}", None, "mean"),
        ("LCDU", "lcdu_{unit}", None, "3 sigma of the diameter between contacts"),
        ("LCDU, unbiased", "lcdu_unbiased_{unit}", None, "noise taken out; void after a denoiser"),
        ("contour roughness", "cer_{unit}", None, "3 sigma about the ellipse, noise included"),
        ("contour roughness, unbiased", "cer_unbiased_{unit}", None, "noise taken out; void after a denoiser"),
        ("pitch", "pitch_{unit}", None, "median distance of nearest neighbours"),
        ("contrast to noise", "contrast_to_noise", None, "level difference over noise of a pixel"),
        ("rays lost", "lost_fraction", None, "share of contour points without an edge"),
    ),
}
"""Rows of the table of one image: quantity, key, key of the standard error, remark."""


def _show_one(record: dict[str, Any], unit: str) -> None:
    """One image: a quantity a line, then how it was measured."""
    rows = []
    for name, key, error, remark in _QUANTITIES[record["kind"]]:
        key = key.format(unit=unit)
        if key not in record:
            continue
        spread = None if error is None else record.get(error.format(unit=unit))
        value = record[key]
        its_unit = unit if key.endswith(f"_{unit}") else "\u00b0" if key.endswith("_deg") else ""
        if key == "lost_fraction" and value is not None:
            value, its_unit = 100 * value, "%"
        rows.append([name, _number(value), its_unit, "" if spread is None else f"\u00b1{_number(spread)}", remark])
    _print_table(str(record["file"]), ["quantity", "value", "unit", "standard\nerror", "remark"], rows)
    typer.echo(_how(record))
    for flag in record["flags"]:
        typer.echo(f"flag: {flag}")


def _how(record: dict[str, Any]) -> str:
    """Edges and length used, level, polarity and pixel size: what a report must state beside its numbers."""
    level = record["level"]
    if record.get("level_fraction") is not None:
        level = f"{level} ({100 * record['level_fraction']:.0f} % between the plateaus)"
    if record["kind"] == "lines":
        used = f"{record['lines']} {record['polarity']} {record['orientation']} lines, {record['edges']} edges"
        if record.get("rows") is not None:
            used += f" of {record['rows']} rows"
    else:
        used = f"{record['count']} complete {record['polarity']} contacts"
    size = record["pixel_size_nm"]
    pixel = (
        "not known" if size is None else f"{size:g} nm" if isinstance(size, float) else f"{size[0]:g} x {size[1]:g} nm"
    )
    window = "" if record.get("window_px") is None else f"; window {record['window_px']} px"
    return f"{used}; level {level}{window}; pixel size {pixel}"


def _number(value: Any) -> str:
    if value is None:
        return "\u2013"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 1000 else 0}f}"


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    words = ("quantity", "unit", "remark")
    for number, column in enumerate(columns):
        left = column in words or number == 0
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    wide = Console(width=max(console.width, 110)) if not console.is_terminal else console
    wide.print(table)
