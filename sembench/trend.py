"""A list of images by dose or focus, and the polynomial through what was measured on them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sembench.errors import InputError

ORDER = 2
FEWEST_FOR_CURVATURE = 4
"""Points below which a straight line is drawn."""

QUANTITIES = {
    "lines": (("CD", "CD", "cd_mean"), ("LWR", "LWR raw", "lwr"), ("LWR", "LWR unbiased", "lwr_unbiased")),
    "contacts": (("diameter", "diameter", "diameter"), ("LCDU", "LCDU", "lcdu")),
}
"""What is followed, by kind of image: panel of the plot, name of the curve, key of the record without its unit."""

UNITS = {
    "mj_cm2": "mJ/cm²",
    "uc_cm2": "µC/cm²",
    "nm": "nm",
    "um": "µm",
    "mm": "mm",
    "pa": "pA",
    "kv": "kV",
    "s": "s",
    "percent": "%",
}
"""Endings of a column's name and the units that they stand for."""


@dataclass(frozen=True)
class Series:
    """What each image was exposed or taken with: file name -> value; column: the value's column as it stands."""

    path: Path
    column: str
    values: dict[str, float]

    @property
    def label(self) -> str:
        """The column as an axis label: `dose_mj_cm2` gives `dose (mJ/cm²)`."""
        lower = self.column.lower()
        for ending, unit in UNITS.items():
            if lower.endswith(f"_{ending}"):
                return f"{self.column[: -len(ending) - 1].replace('_', ' ')} ({unit})"
        return self.column.replace("_", " ")


@dataclass(frozen=True)
class PolynomialFit:
    """y = c0 + c1 x + c2 x^2 by least squares, c0 first.

    standard_errors: from the residuals, None where no degree of freedom is left; residual: their standard deviation,
    in units of y; points: how many were fitted.
    """

    coefficients: tuple[float, ...]
    standard_errors: tuple[float, ...] | None
    residual: float | None
    points: int

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """The polynomial at x."""
        return np.asarray(np.polynomial.polynomial.polyval(np.asarray(x, np.float64), np.asarray(self.coefficients)))


@dataclass(frozen=True, eq=False)
class Curve:
    """One measured quantity against the series: values x and y, and the polynomial, None where there are too few."""

    panel: str
    name: str
    unit: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    fit: PolynomialFit | None


def read_series(path: str | Path, names: Sequence[str]) -> Series:
    """Read a CSV with the columns `file` and one value, named with its unit (`dose_mj_cm2`, `focus_nm`).

    names: the images' file names; each line must name one of them, by its name alone, and none twice; values are
    finite. Raises InputError with the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8: give a CSV with columns file and a value") from error
    lines = list(csv.reader(io.StringIO(text, newline="")))
    header = [cell.strip() for cell in lines[0]] if lines else []
    if len(header) != 2 or "file" not in header:
        shown = ", ".join(header) or "nothing"
        raise InputError(f"{path}: columns are {shown[:100]}: give two, file and a value such as dose_mj_cm2")
    at = header.index("file")
    values: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line):
            continue
        where = f"{path}, line {number}"
        if len(line) != 2:
            raise InputError(f"{where}: {len(line)} cells, not two: give a file and a value")
        name = Path(line[at].strip()).name
        if name in values:
            raise InputError(f"{where}: {name} stands there twice: leave one")
        if name not in names:
            raise InputError(f"{where}: {name or 'no name'} is not among the images to be measured: check the name")
        values[name] = _finite(line[1 - at], where)
    if not values:
        raise InputError(f"{path}: no line below the header: give a file and a value a line")
    return Series(path, header[1 - at], values)


def _finite(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: value {cell.strip()!r} is not a finite number: mend it or leave the line out")
    return value


def fit_polynomial(x: ArrayLike, y: ArrayLike) -> PolynomialFit:
    """Least squares of order 2, or 1 where there are fewer than four points or three different x.

    x, y: (n,), finite. The fit is made about the mean of x and then written in powers of x, so that a range far from
    0 costs no digits. Raises InputError where there are fewer than two different x.
    """
    abscissa, ordinate = np.asarray(x, np.float64), np.asarray(y, np.float64)
    different = len(np.unique(abscissa))
    if different < 2:
        raise InputError(f"{different} value is too few for a fit: measure at two different values at least")
    order = ORDER if len(abscissa) >= FEWEST_FOR_CURVATURE and different > ORDER else 1
    centre, spread = float(abscissa.mean()), float(abscissa.std())
    design = np.vander((abscissa - centre) / spread, order + 1, increasing=True)
    scaled, *_ = np.linalg.lstsq(design, ordinate, rcond=None)
    powers = _powers(order, centre, spread)
    freedom = len(abscissa) - order - 1
    coefficients = tuple(float(c) for c in powers @ scaled)
    if freedom < 1:
        return PolynomialFit(coefficients, None, None, len(abscissa))
    variance = float(np.sum((ordinate - design @ scaled) ** 2)) / freedom
    covariance = variance * powers @ np.linalg.inv(design.T @ design) @ powers.T
    errors = tuple(float(e) for e in np.sqrt(np.diag(covariance)))
    return PolynomialFit(coefficients, errors, math.sqrt(variance), len(abscissa))


def curves(series: Series, records: Sequence[Mapping[str, Any]], unit: str) -> list[Curve]:
    """CD and LWR (raw, unbiased) of lines, diameter and LCDU of contacts against the series, each with its fit.

    records: as `sembench.measurement` makes them, lengths in `unit`; those that were refused, do not stand in the
    series or lack a quantity are left out of it, and a quantity that no record has is left out.
    """
    found = []
    for kind, quantities in QUANTITIES.items():
        for panel, name, key in quantities:
            points = [
                (series.values[Path(record["file"]).name], record[f"{key}_{unit}"])
                for record in records
                if record["kind"] == kind
                and Path(record["file"]).name in series.values
                and record.get(f"{key}_{unit}") is not None
            ]
            if points:
                x, y = (np.array(column, np.float64) for column in zip(*points, strict=True))
                fit = fit_polynomial(x, y) if len(np.unique(x)) > 1 else None
                found.append(Curve(panel, name, unit, x, y, fit))
    return found


COLUMNS = ("quantity", "unit", "against", "points", "c0", "c0_se", "c1", "c1_se", "c2", "c2_se", "residual_sd")


def coefficient_rows(series: Series, found: Sequence[Curve]) -> list[list[Any]]:
    """One row a fitted curve, see COLUMNS: y = c0 + c1 x + c2 x^2, None where there is no value."""
    rows = []
    for curve in found:
        if curve.fit is None:
            continue
        errors = curve.fit.standard_errors or (None,) * len(curve.fit.coefficients)
        cells = [cell for pair in zip(curve.fit.coefficients, errors, strict=True) for cell in pair]
        cells += [None] * (2 * (ORDER + 1) - len(cells))
        rows.append([curve.name, curve.unit, series.column, curve.fit.points, *cells, curve.fit.residual])
    return rows


def _powers(order: int, centre: float, spread: float) -> NDArray[np.float64]:
    """(order + 1, order + 1): coefficients in powers of x from those in powers of (x - centre) / spread."""
    step = np.polynomial.Polynomial([-centre / spread, 1 / spread])
    matrix = np.zeros((order + 1, order + 1))
    for power in range(order + 1):
        column = (step**power).coef
        matrix[: len(column), power] = column
    return matrix
