"""Measurements as CSV: a row an image, an edge point, or a frequency of a spectrum."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from sembench.measurement import CONTACT_KEYS, LINE_KEYS, Measured, plain


def records_csv(records: Sequence[dict[str, Any]], unit: str) -> bytes:
    """One row a file, every quantity of every record, full precision; flags joined by `; `, unknown cells empty."""
    known = [key.format(unit=unit) for key in (*LINE_KEYS, *CONTACT_KEYS)]
    present = {key: None for record in records for key in record}
    columns = [key for key in dict.fromkeys([*known, *present]) if key in present]
    return csv_bytes(columns, ([record.get(column) for column in columns] for record in records))


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        separator = "," if all(isinstance(part, float | int) for part in value) else "; "
        return separator.join(_cell(part) for part in value)
    return repr(value) if isinstance(value, float) else str(value)


EDGE_COLUMNS = ("file", "kind", "feature", "edge", "point", "x_px", "y_px", "lost")


def edges_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """The edge points of all files as CSV, see `edge_rows`."""
    return csv_bytes(EDGE_COLUMNS, rows)


def edge_rows(measured: Measured) -> list[list[Any]]:
    """Every edge point of one file in image coordinates (px, pixel centres are integers); lost ones are marked 1.

    A line has the edges left and right (upper and lower where it lies), its points count along it; a contact has one
    contour, its points count along the rays.
    """
    rows: list[list[Any]] = []
    if measured.lines is not None:
        found = measured.lines
        vertical = found.orientation == "vertical"
        sides = ("left", "right") if vertical else ("upper", "lower")
        for edge in range(found.edges):
            across, along, lost = found.edge_positions[:, edge], found.edge_rows, found.lost[:, edge]
            x, y = (across, along) if vertical else (along, across)
            rows += [
                [measured.file, "lines", edge // 2, sides[edge % 2], point, float(px), float(py), int(gone)]
                for point, (px, py, gone) in enumerate(zip(x, y, lost, strict=True))
            ]
    if measured.contacts is not None:
        for number, contact in enumerate(measured.contacts.contacts):
            rows += [
                [measured.file, "contacts", number, "contour", point, float(px), float(py), int(gone)]
                for point, ((px, py), gone) in enumerate(zip(contact.contour, contact.lost, strict=True))
            ]
    return rows


def spectrum_columns(unit: str) -> tuple[str, ...]:
    """Columns of the spectra's CSV: one-sided densities, those of the fitted model with its noise beside."""
    return (
        "file", f"frequency_per_{unit}", f"edge_psd_{unit}3", f"edge_model_{unit}3", f"edge_noise_floor_{unit}3",
        f"width_psd_{unit}3", f"width_model_{unit}3", f"width_noise_floor_{unit}3",
    )  # fmt: skip


def spectra_csv(rows: Iterable[Sequence[Any]], unit: str) -> bytes:
    """The spectra of all files as CSV, see `spectrum_rows`."""
    return csv_bytes(spectrum_columns(unit), rows)


def spectrum_rows(measured: Measured) -> list[list[Any]]:
    """The spectra of edges and widths of one file of lines, a row a frequency, in nm where its scale is known."""
    if measured.lines is None:
        return []
    from sembench.metrology.spectrum import expected_power

    found = measured.lines
    x, y = measured.scale_nm or (1.0, 1.0)
    across, along = (x, y) if found.orientation == "vertical" else (y, x)
    volume = across**2 * along
    columns: list[Any] = [found.edge_spectrum.frequency / along]
    for s, model in ((found.edge_spectrum, found.model), (found.width_spectrum, found.width_model)):
        columns.append(s.power * volume)
        if model is None or not math.isfinite(model.xi):
            columns += [[None] * len(s.power)] * 2
            continue
        expected = expected_power(s.length, model.sigma, model.xi, model.hurst, model.noise_variance, s.spacing)
        columns += [expected * volume, [2 * model.noise_variance * s.spacing * volume] * len(s.power)]
    return [[measured.file, *line] for line in zip(*columns, strict=True)]


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file, unknown values (None, not finite) as empty cells, numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
