"""Dose and focus series: the polynomial against numpy's and against exact curves, and what a CSV may get wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sembench.errors import InputError
from sembench.trend import coefficient_rows, curves, fit_polynomial, read_series

NAMES = ["a.tif", "b.tif", "c.tif", "d.tif", "e.tif"]


def test_coefficients_and_their_errors_are_those_of_numpy() -> None:
    rng = np.random.default_rng(4)
    x = np.array([36.0, 38, 40, 42, 44, 44])
    y = 30 - 0.8 * x + 0.01 * x**2 + rng.normal(0, 0.1, x.size)
    expected, covariance = np.polyfit(x, y, 2, cov=True)
    fit = fit_polynomial(x, y)
    np.testing.assert_allclose(fit.coefficients, expected[::-1], rtol=1e-7)
    assert fit.standard_errors is not None
    np.testing.assert_allclose(fit.standard_errors, np.sqrt(np.diag(covariance))[::-1], rtol=1e-6)
    assert fit.residual == pytest.approx(math.sqrt(np.sum((np.polyval(expected, x) - y) ** 2) / 3))
    np.testing.assert_allclose(fit(x), np.polyval(expected, x))


@given(st.tuples(*[st.floats(-5, 5)] * 3), st.floats(-1e4, 1e4), st.floats(0.01, 100))
def test_a_parabola_is_found_wherever_it_lies(c: tuple[float, float, float], centre: float, spread: float) -> None:
    x = centre + spread * np.linspace(-1, 1, 7)
    t = (x - centre) / spread
    y = c[0] + c[1] * t + c[2] * t**2
    fit = fit_polynomial(x, y)
    middle = np.linspace(x[0], x[-1], 11)
    at = (middle - centre) / spread
    size = np.abs(fit.coefficients) @ np.abs(centre + spread) ** np.arange(3)
    np.testing.assert_allclose(fit(middle), c[0] + c[1] * at + c[2] * at**2, atol=1e-8 + 1e-12 * size)


@pytest.mark.parametrize(("x", "order"), [([1, 2], 1), ([1, 2, 3], 1), ([1, 1, 2, 2], 1), ([1, 2, 3, 4], 2)])
def test_few_points_make_a_straight_line(x: list[float], order: int) -> None:
    fit = fit_polynomial(x, 2 * np.array(x) + 1)
    assert len(fit.coefficients) == order + 1
    assert fit.coefficients[:2] == pytest.approx((1, 2), abs=1e-9)
    assert (fit.standard_errors is None) == (len(x) == order + 1)


def test_one_value_is_too_few() -> None:
    with pytest.raises(InputError, match="too few"):
        fit_polynomial([3, 3, 3], [1, 2, 3])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_series_is_read_with_its_label(tmp_path: Path) -> None:
    series = read_series(write(tmp_path / "s.csv", "dose_mJ_cm2,file\n36,x/a.tif\n\n38.5, b.tif\n"), NAMES)
    assert series.values == {"a.tif": 36.0, "b.tif": 38.5}
    assert series.label == "dose (mJ/cm²)"
    assert read_series(write(tmp_path / "f.csv", "file,focus_nm\na.tif,-20\n"), NAMES).label == "focus (nm)"
    assert read_series(write(tmp_path / "g.csv", "file,value\na.tif,1\n"), NAMES).label == "value"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,dose\na.tif,1\nz.tif,2\n", "line 3: z.tif is not among the images"),
        ("file,dose\na.tif,1\na.tif,2\n", "line 3: a.tif stands there twice"),
        ("file,dose\na.tif,nan\n", "line 2: value 'nan' is not a finite number"),
        ("file,dose\na.tif,\n", "line 2: value '' is not a finite number"),
        ("file,dose\na.tif\n", "line 2: 1 cells"),
        ("name,dose\na.tif,1\n", "columns are name, dose"),
        ("file;dose\na.tif;1\n", "columns are file;dose"),
        ("file,dose,focus\na.tif,1,2\n", "columns are file, dose, focus"),
        ("file,dose\n", "no line below the header"),
        ("", "columns are nothing"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "s.csv", text)
    with pytest.raises(InputError) as caught:
        read_series(path, NAMES)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_series_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\xd8")
    for path, reason in ((tmp_path / "none.csv", "cannot be read"), (tmp_path / "b.csv", "not a text file")):
        with pytest.raises(InputError, match=reason):
            read_series(path, NAMES)


def test_refused_images_and_missing_quantities_are_left_out(tmp_path: Path) -> None:
    lines = "\n".join(f"{name},{dose}" for name, dose in zip(NAMES, (1, 2, 3, 4, 5), strict=True))
    series = read_series(write(tmp_path / "s.csv", f"file,dose\n{lines}\n"), NAMES)
    records = [
        {"file": f"in/{name}", "kind": "lines", "cd_mean_nm": 10.0 + i, "lwr_nm": 3.0, "lwr_unbiased_nm": None}
        for i, name in enumerate(NAMES)
    ]
    records[1] |= {"kind": None, "cd_mean_nm": None, "lwr_nm": None}
    records.append({**records[0], "file": "in/other.tif"})
    found = curves(series, records, "nm")
    assert [curve.name for curve in found] == ["CD", "LWR raw"]
    np.testing.assert_array_equal(found[0].x, [1, 3, 4, 5])
    rows = coefficient_rows(series, found)
    assert rows[0][:4] == ["CD", "nm", "dose", 4]
    np.testing.assert_allclose(np.array(rows[0][4::2][:3], float), [9, 1, 0], atol=1e-9)
