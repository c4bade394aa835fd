"""report.html of a run folder: what it says is what the records say, and it needs nothing but itself."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import protocol_text

from sembench.cases import PHANTOM, plan_cases
from sembench.execution.plan import Row
from sembench.execution.request import RunPlan
from sembench.marks import cd_biases, marks
from sembench.micrograph import write_grid_png
from sembench.protocol import parse
from sembench.report import write_derived

HOSTILE = "<script>alert(1)</script>"
BY_ROW = {
    "input": (20.0, 0.6),
    "better": (25.0, 0.8),
    "alike": (25.01, 0.4),
    HOSTILE: (22.0, 0.7),
    "oracle": (100.0, 1.0),
}


def record(row: Row, case: str, group: str, **told: Any) -> dict[str, Any]:
    """A record of a case; solved where nothing else is told."""
    base = {"row": row.row_id, "restorer": row.name, "kind": row.kind, "case": case, "group": group, "status": "ok"}
    return {**base, "metrics": {}, "undefined": {}, "inapplicable": [], "seconds": {"restore": 0.5}, **told}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of 12 cases in 12 groups with its report: a failure, a case left out, a value that is missing."""
    folder = tmp_path_factory.mktemp("run")
    protocol = parse(protocol_text(question="Is <b>this</b> shown?"), "small.toml")
    cases = plan_cases(protocol, PHANTOM, limit=12)
    rows = [
        Row(
            name,
            "",
            "control" if name == "oracle" else "restorer",
            {"width": 3},
            f"{'x' if '<' in name else name}-{number:08x}",
        )
        for number, name in enumerate(BY_ROW)
    ]
    rng = np.random.default_rng(5)
    shifts = rng.normal(0, 1.5, len(cases.specs))
    records = []
    for row in rows:
        psnr, ssim = BY_ROW[row.name]
        for number, (spec, shift) in enumerate(zip(cases.specs, shifts, strict=True)):
            group = f"g{number:02d}"
            if number == 11:
                records.append(record(row, spec.case_id, group, status="left_out", reason="registration disagrees"))
            elif row.name == HOSTILE and number == 10:
                records.append(
                    record(row, spec.case_id, group, status="failed", reason="ValueError: <img src=x onerror=alert(2)>")
                )
            else:
                image = f"restored/{row.row_id}/{spec.case_id}.png"
                if number == 0:
                    write_grid_png(folder / image, spec.make(protocol).degraded)
                wobble = rng.normal(0, 0.02)
                values = {
                    "psnr": psnr + shift + wobble,
                    "ssim": None if row.name == "alike" and number == 3 else ssim + wobble,
                }
                why = {} if values["ssim"] is not None else {"ssim": "came out as nan"}
                records.append(record(row, spec.case_id, group, metrics=values, image=image, undefined=why))
    description = {
        "limit": None,
        "rows": [{"row": row.row_id} for row in rows],
        "command": ["sembench", "run"],
        "environment": {"sembench": "0", "libraries": {"numpy": "2"}},
        "protocol_digest": "ab" * 32,
    }
    (folder / "run.json").write_text(json.dumps(description))
    plan = RunPlan(protocol, cases, tuple(rows), ("psnr", "ssim"), {}, folder, ())
    write_derived(plan, records)
    return folder / "report.html"


class Tables(HTMLParser):
    """Captions, headers without scope, images without text, and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = self.captions = 0
        self.unscoped: list[str] = []
        self.silent: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag == "th" and own.get("scope") not in ("row", "col"):
            self.unscoped.append(str(own))
        if tag == "img" and not own.get("alt"):
            self.silent.append(str(own.get("src"))[:40])
        if tag == "svg" and not own.get("aria-hidden") and not own.get("aria-label"):
            self.silent.append(str(own))
        if tag == "a":
            self.links.append(str(own.get("href")))
        self.sources += [str(own[name]) for name in ("src", "href") if tag not in ("a",) and own.get(name)]
        if "id" in own:
            self.ids.append(str(own["id"]))


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    parser = Tables()
    parser.feed(run.read_text())
    return parser


def words(page: str) -> dict[str, list[str]]:
    """What the summary in words says, by subject."""
    found: dict[str, list[str]] = {}
    inside = page.partition('<dl class="words">')[2].partition("</dl>")[0]
    subject = ""
    for tag, text in re.findall(r"<(dt|dd)>(.*?)</", inside):
        if tag == "dt":
            subject = text
        else:
            found.setdefault(subject, []).append(text)
    return found


def test_it_says_who_is_ahead_and_who_cannot_be_told_apart(run: Path) -> None:
    told = words(run.read_text())
    assert told["Best mean"][0].startswith("alike: psnr 2")
    assert "established to be better than 2 of 3 others" in told["Best mean"][0]
    assert told["Not told apart"] == ["alike and better."]
    assert told["Equivalent within ±0.1 dB"] == ["alike and better."]
    assert told["Left out"] == ["1 case, whoever restores them: 1 × registration disagrees."]
    assert told["Failed"] == ["&lt;script&gt;alert(1)&lt;/script&gt; 1 of its cases; the reasons stand below."]
    assert any(text.startswith("alike: ssim is −0.") for text in told["Lost structure"])


def test_every_metric_has_the_limits_of_its_interval_and_no_half_width(run: Path) -> None:
    """Intervals of bootstrap-t are not symmetric: the limits in the page are those of summary.csv."""
    page = run.read_text()
    table = page.partition('<table class="standings">')[2].partition("</table>")[0]
    assert "±" not in table
    with (run.parent / "summary.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["restorer"] != "oracle"]
    assert len(rows) == 4
    for row in rows:
        cell = table.partition(f'data-value="{row["ssim_mean"]}">')[2].partition("</td>")[0]
        limits = re.search(r"([\d.]+) to ([\d.]+)", cell)
        assert limits is not None, cell
        for told, name in zip(limits.groups(), ("ssim_low", "ssim_high"), strict=True):
            assert abs(float(told) - float(row[name])) <= 0.51 * 10 ** -len(told.partition(".")[2])


def test_names_and_reasons_are_shown_and_not_run(run: Path) -> None:
    page = run.read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "Is &lt;b&gt;this&lt;/b&gt; shown?" in page


def test_every_link_leads_to_what_is_there_or_was_stored(run: Path, tables: Tables) -> None:
    images = set()
    for target in tables.links:
        assert target.startswith(("#", "./")), target
        if target.startswith("#"):
            assert target[1:] in tables.ids
        elif target.endswith(".png"):
            images.add(target)
        else:
            assert (run.parent / target).is_file(), target
    assert len(images) == 5 * 11 - 1
    assert all(source.startswith("data:") for source in tables.sources)
    assert len(tables.ids) == len(set(tables.ids))


def test_it_can_be_read_without_seeing_it(tables: Tables) -> None:
    assert tables.tables == tables.captions > 3
    assert tables.unscoped == []
    assert tables.silent == []


def test_it_sorts_and_asks_for_nothing(run: Path, browser: Any) -> None:
    browser.open(run)
    assert browser.requests() == [run.resolve().as_uri()]
    body = 'document.querySelector("#table ~ .wide").querySelectorAll("tbody.ranked th")'
    names = f"Array.from({body}).map((th) => th.innerText)"
    assert browser.do(names) == ["alike", "better", HOSTILE, "input"]
    assert 'aria-sort="descending"' in browser.do('document.querySelector("#table ~ .wide thead").innerHTML')
    browser.do('document.querySelector("#table ~ .wide thead th:nth-child(2) button").focus()')
    browser.press("Enter")
    assert browser.do(names) == ["input", HOSTILE, "better", "alike"]
    assert browser.do('document.querySelector("#table ~ .wide thead th:nth-child(2)").ariaSort') == "ascending"
    browser.do('document.querySelector("#table ~ .wide thead th:first-child button").click()')
    assert browser.do(names) == [HOSTILE, "alike", "better", "input"]
    assert browser.do('document.querySelector("#table ~ .wide thead th:nth-child(2)").ariaSort') == "none"
    last = 'document.querySelector("#table ~ .wide table").tBodies[1].innerText'
    assert "oracle" in browser.do(last)
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_a_phone_and_has_contrast_by_day_and_by_night(run: Path, browser: Any, width: int, dark: bool) -> None:
    browser.open(run, width=width, dark=dark)
    assert browser.do("document.documentElement.scrollWidth") <= width
    channels = "getComputedStyle(document.body).%s.match(/[0-9.]+/g).map(Number)"
    for what in ("color", "backgroundColor"):
        assert len(browser.do(channels % what)) >= 3
    for selector in ("body", "caption", "h1", "dl.words dt", "thead th", "nav a"):
        own = f'getComputedStyle(document.querySelector("{selector}")).color.match(/[0-9.]+/g).map(Number)'
        assert contrast(browser.do(own), browser.do(channels % "backgroundColor")) >= 4.5, selector
    assert browser.complaints() == []


def contrast(first: list[float], second: list[float]) -> float:
    """Contrast of two sRGB colours, 1 to 21. Source: WCAG 2.1, definition of contrast ratio."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def biased(shift: float, spread: float, *, psnr: float = 21.0) -> list[dict[str, Any]]:
    rows = [Row(name, "", "restorer", {}, f"{name}-00000000") for name in ("input", "smooth")]
    rng = np.random.default_rng(3)
    records = []
    for row, mean, level in ((rows[0], 0.0, 20.0), (rows[1], shift, psnr)):
        for case in range(12):
            values = {"cd_bias": mean + rng.normal(0, spread), "psnr_matched": level, "ssim_matched": 0.8}
            records.append(record(row, f"c{case}", f"g{case}", metrics=values))
    return [{"rows": rows}, *records]


def test_a_bias_of_the_cd_is_marked_where_it_is_established() -> None:
    (told, *records), smooth = biased(0.5, 0.1), "smooth-00000000"
    found = cd_biases(told["rows"], records)
    assert found[smooth].established
    assert found[smooth].mean.mean == pytest.approx(0.5, abs=0.1)
    assert not found["input-00000000"].established
    marked = marks(told["rows"], records)
    assert [mark.short for mark in marked[smooth]] == ["CD biased, PSNR up"]
    assert "psnr_matched rose by 1.00 dB" in marked[smooth][0].told
    assert "input-00000000" not in marked


def test_no_mark_without_evidence_and_no_praise_where_psnr_fell() -> None:
    told, *records = biased(0.0, 0.3)
    assert marks(told["rows"], records) == {}
    told, *records = biased(0.5, 0.1, psnr=19.0)
    assert [mark.short for mark in marks(told["rows"], records)["smooth-00000000"]] == ["CD biased"]
