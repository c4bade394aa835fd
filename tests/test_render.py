"""The leaderboard's page and its tables for a README, made from tables and bundles as they are published."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import refuse, succeed
from PIL import Image
from small import write_records

from sembench.cases import plan_cases
from sembench.commands import app
from sembench.errors import InputError
from sembench.execution.plan import Row
from sembench.execution.recorded import RecordedRun, read_run
from sembench.leaderboard.bundle import bundle_files, digest, read_bundle, write_bundle
from sembench.leaderboard.ranking import ranked, row_of
from sembench.leaderboard.render import Tab, illustrated, markdown, read_tabs, update_readme, write_page
from sembench.leaderboard.rows import as_csv, table_name
from sembench.micrograph import write, write_grid_png
from sembench.pages.numbers import fixed
from sembench.protocol import load

HOSTILE = "<script>alert(1)</script>"
SCORES = {"input": 20.0, "learned": 25.0, "alike": 25.01, HOSTILE: 22.0, "oracle": 100.0}


def publish_made_up(folder: Path, name: str, scores: dict[str, float] = SCORES) -> None:
    """A table and its bundles as a publisher writes them, of made-up scores on 12 cases in 12 groups."""
    protocol = load(name)
    metrics = ["psnr_matched", "ssim_matched"]
    rng = np.random.default_rng(4)
    shifts = rng.normal(0, 1.5, 12)
    published, runs = [], {}
    for number, (restorer, score) in enumerate(scores.items()):
        row_id = f"{'hostile' if '<' in restorer else restorer}-{number:08x}"
        variant = {"pairs": 2} if restorer == "few" else {}
        kind = "control" if restorer == "oracle" else "restorer"
        row = Row(restorer, "", kind, {"width": 3}, row_id, variant=variant)
        records = []
        for case, shift in enumerate(shifts):
            own: dict[str, Any] = {"row": row_id, "restorer": restorer, "kind": row.kind, "case": f"c{case:02d}"}
            own |= {"group": f"g{case}", "device": "cuda" if restorer == "learned" else "cpu", "environment": "e" * 16}
            if restorer == HOSTILE and case == 4:
                records.append(own | {"status": "failed", "reason": "ValueError: <b>too dark</b>"})
                continue
            values: dict[str, float | None] = {
                "psnr_matched": score + shift + rng.normal(0, 0.02),
                "ssim_matched": score / 40 + rng.normal(0, 0.01),
            }
            if restorer == "patchy" and case % 2:
                values["psnr_matched"] = None
            stored = {"image": f"restored/{row_id}/c{case:02d}.png", "image_sha256": "0" * 64}
            told = {"metrics": values, "undefined": {}, "inapplicable": [], "input_sha256": "1" * 64}
            records.append(
                own | stored | told | {"status": "ok", "seconds": {"restore": 0.5}, "reference_sha256": None}
            )
        described: dict[str, Any] = {"row": row_id, "restorer": restorer, "kind": row.kind, "settings": row.settings}
        described |= {"variant": variant, "trained_on": ["lpips"] if restorer == "alike" else []}
        described |= {"version": 1, "summary": "One line.", "licence": "Apache-2.0", "citation": "Nobody 2026"}
        if restorer == "learned":
            report = {"steps": 4000, "parameters": 123456, "seconds": 900.0, "device": "cuda"}
            described |= {"budget": "standard"}
            fit = {"identity": {"budget": ["standard", 4000]}, "state_sha256": "2" * 64, "source": "shipped"}
            described |= {"fit": fit | {"report": report}}
        description = {
            **{"schema": 1, "protocol": protocol.model_dump(mode="json"), "protocol_digest": protocol.digest},
            **{"data": "semcorpus", "data_digest": "3" * 64, "metrics": metrics, "rows": [described], "git": None},
            **{"started": "2026-01-01T00:00:00Z", "environments": {"e" * 16: {"sembench": "0", "python": "3.11"}}},
        }
        files = bundle_files(RecordedRun(folder, description, (row,), tuple(records)), row)
        run = read_bundle(write_bundle(folder, files))
        published.append(row_of(run, digest(files)))
        runs[published[-1].bundle] = run
    table = folder / table_name(name, protocol.version)
    table.write_bytes(as_csv(ranked(published, runs), metrics))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard")
    publish_made_up(folder, "s2s")
    publish_made_up(folder, "s2s_midpoint", {"input": 20.0, "learned": 24.0})
    write_page(folder, read_tabs(folder))
    return folder


def test_who_lacks_too_many_cases_stands_below_the_others_and_variants_are_named(tmp_path: Path, browser: Any) -> None:
    publish_made_up(tmp_path, "s2s", {"patchy": 30.0, "input": 20.0, "few": 25.0, "oracle": 100.0})
    (tab,) = read_tabs(tmp_path)
    table = tab.parts[0].table
    assert [(line.name, line.rank) for line in table.ranked] == [
        *(("few (pairs=2)", (1, 1)), ("input", (2, 2)), ("patchy", None)),
    ], "patchy's mean of 30 is of half of the cases"
    assert table.ranked[-1].unranked == "no value on 6 of 12 cases"
    assert "of the 12 cases that all 2 ranked restorers solved" in table.caption
    assert not any("patchy" in (pair.first, pair.second) for pair, _ in tab.parts[0].pairs.lines)
    assert ("Compared", ["patchy has no value on 6 of 12 cases and is not ranked."]) in tab.parts[0].words
    lines = markdown(tab).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| few (pairs=2)", "| input", "| patchy", "| *oracle* (control)"),
    ]
    assert " |  | unranked: no value on 6 of 12 cases | " in lines[4]
    browser.open(write_page(tmp_path, [tab]))
    shown = browser.do('Array.from(document.querySelectorAll("tbody.ranked")[0].rows).map((row) => row.innerText)')
    assert shown[0].startswith("few (pairs=2)")
    assert "unranked" in shown[2]
    assert browser.complaints() == []


def test_every_published_row_stands_on_the_page_with_its_numbers(board: Path) -> None:
    page = (board / "index.html").read_text()
    tabs = read_tabs(board)
    assert [tab.name for tab in tabs] == ["s2s", "s2s_midpoint"]
    table = tabs[0].parts[0].table
    assert [line.name for line in table.ranked] == ["alike", "learned", HOSTILE, "input"]
    assert [line.letters for line in table.ranked] == ["a", "a", "b", "c"]
    assert [line.rank for line in table.ranked] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    assert [line.failed.count for line in table.ranked] == [0, 0, 1, 0]
    assert [[mark.short for mark in line.marks] for line in table.ranked] == [["trained on LPIPS"], [], [], []]
    assert [line.name for line in table.unseen] == ["oracle"]
    for tab in tabs:
        for line in tab.parts[0].table.lines:
            own = line.values["psnr_matched"]
            assert own is not None
            assert f'data-value="{own.mean}"' in page
            assert f'id="{line.page}"' in page
    assert "1 × ValueError: &lt;b&gt;too dark&lt;/b&gt;" in page
    assert "4,000 steps, 123,456 parameters" in page
    assert HOSTILE not in page
    for target in re.findall(r'<a href="\./([^"]+)"', page):
        assert (board / target).is_file(), target


def test_it_sorts_filters_and_has_a_tab_a_protocol(board: Path, browser: Any) -> None:
    page = board / "index.html"
    browser.open(page)
    assert browser.requests() == [page.resolve().as_uri()]
    shown = 'Array.from(document.querySelectorAll("[role=tabpanel]")).filter((p) => !p.hidden).map((p) => p.id).join()'
    names = (
        'Array.from(document.querySelectorAll("#s2s-v1 table.standings")[0].querySelectorAll("tbody.ranked tr"))'
        ".filter((row) => !row.hidden).map((row) => row.cells[0].innerText)"
    )
    assert browser.do(shown) == "s2s-v1"
    assert browser.do(names) == ["alike", "learned", HOSTILE, "input"]
    browser.do('document.querySelector("#s2s-v1 thead th:nth-child(2) button").click()')
    assert browser.do(names) == ["input", HOSTILE, "learned", "alike"]
    choose = (
        '{let s = document.querySelector("#s2s-v1 select[name=%s]"); s.value = "%s"; '
        's.dispatchEvent(new Event("change", {bubbles: true})); s.form.querySelector("output").innerText}'
    )
    assert browser.do(choose % ("device", "cuda")) == "1 of 5 shown; ranks are among all"
    assert browser.do(names) == ["learned"]
    assert browser.do(choose % ("device", "")) == ""
    browser.do(choose % ("budget", "none"))
    assert browser.do(names) == ["input", HOSTILE, "alike"]
    browser.do(choose % ("budget", ""))
    browser.do('document.querySelector("[role=tab][aria-selected=true]").focus()')
    browser.press("ArrowRight")
    assert browser.do(shown) == "s2s_midpoint-v1"
    assert browser.do("document.activeElement.getAttribute('aria-selected')") == "true"
    link = browser.do('document.querySelector("#s2s-v1 tbody a").hash')
    browser.do(f'location.hash = "{link}"')
    browser.do("new Promise((done) => setTimeout(done, 50))")
    browser.do("0")
    assert browser.do(f'document.querySelector("{link}").open')
    assert browser.do(shown) == "s2s-v1"
    assert browser.do('document.querySelector(".cross[title]").title') == "1 × ValueError: <b>too dark</b>"
    assert browser.complaints() == []
    for width in (390, 1400):
        browser.open(page, width=width, dark=width == 390)
        assert browser.do("document.documentElement.scrollWidth") <= width


def test_without_script_everything_is_there(board: Path) -> None:
    page = (board / "index.html").read_text()
    assert len(re.findall(r'role="tabpanel"', page)) == 2
    assert not re.findall(r'role="tabpanel"[^>]*hidden', page)


def test_a_readme_gets_the_same_table_between_its_markers(board: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    head, tail = "# Title\n\n", "\n\nbehind\n"
    readme.write_text(f"{head}<!-- sembench:leaderboard:s2s -->\nold\n<!-- /sembench:leaderboard:s2s -->{tail}")
    tabs = read_tabs(board)
    assert update_readme(readme, tabs) == ["s2s"]
    text = readme.read_text()
    assert text.startswith(head)
    assert text.endswith(tail)
    assert "old" not in text
    lines = markdown(tabs[0]).splitlines()
    assert "\n".join(lines) in text
    assert lines[0].startswith(
        "| restorer | psnr_matched ↑ (dB, 95 % interval) | letters | rank | marks | ssim_matched ↑ |"
    )
    assert "| a | 1–2 | trained on LPIPS |" in lines[2]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| alike", "| learned", "| &lt;script&gt;alert(1)&lt;/script&gt;", "| input", "| *oracle* (control)"),
    ]
    assert lines[4].split(" | ")[-2:] == ["1", " |"]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert update_readme(readme, tabs) == ["s2s"]
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<!-- sembench:leaderboard:s2s -->", "needs one"),
        ("<!-- /sembench:leaderboard:s2s --><!-- sembench:leaderboard:s2s -->", "needs one"),
        ("<!-- sembench:leaderboard:s2s -->" * 2 + "<!-- /sembench:leaderboard:s2s -->", "needs one"),
        ("<!-- sembench:leaderboard:none --><!-- /sembench:leaderboard:none -->", "nothing is published"),
    ],
)
def test_markers_that_do_not_fit_leave_the_readme_alone(board: Path, tmp_path: Path, text: str, wanted: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match=wanted) as caught:
        update_readme(readme, read_tabs(board))
    assert "\n" not in str(caught.value)
    assert readme.read_text() == text


def test_what_was_not_published_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no table"):
        read_tabs(tmp_path)
    publish_made_up(tmp_path, "s2s", {"input": 20.0, "better": 21.0})
    cases = next((tmp_path / "bundles").glob("*/cases.csv"))
    cases.write_text(cases.read_text().replace("c01", "c99"))
    with pytest.raises(InputError, match="was changed"):
        read_tabs(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert "run folder" in refuse(app, InputError, "render", run)


def test_the_command_says_what_it_wrote(board: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing marked\n")
    result = succeed(app, "render", board, "--readme", readme, "--json")
    assert json.loads(result.stdout) == {"page": str(board / "index.html"), "readmes": {str(readme): []}}
    assert readme.read_text() == "nothing marked\n"


NOTE = "No pictures: render with <code>--images RUN</code>"


def restored_by(row: str, case: Any) -> Any:
    """What a made-up row makes of a case: `learned` finds all but gain and offset, the others nothing."""
    return 0.5 * case.reference + 20 if row.startswith("learned") else case.degraded


def write_made_up_run(
    folder: Path, name: str, rows: Mapping[str, float | None], data: str = "phantom", **told: Any
) -> Path:
    """A run folder of the first case, with the image and the psnr_matched of each row; told: other in run.json."""
    protocol = load(name)
    plan = plan_cases(protocol, data)
    case = plan.specs[0].make(protocol)
    described, records = [], []
    for row, value in rows.items():
        described.append({"row": row, "restorer": row.rpartition("-")[0], "kind": "restorer", "settings": {"width": 3}})
        image = f"restored/{row}/{case.case_id}.png"
        sha256 = write_grid_png(folder / image, np.asarray(restored_by(row, case), np.float32))
        record = {"schema": 1, "row": row, "restorer": row.rpartition("-")[0], "kind": "restorer", "status": "ok"}
        record |= {"case": case.case_id, "group": case.group, "image": image, "image_sha256": sha256}
        record |= {"metrics": {"psnr_matched": value}, "input_sha256": sha256_of(case.degraded)}
        records.append(record)
    description = {
        **{"schema": 1, "protocol": protocol.model_dump(mode="json"), "protocol_digest": protocol.digest},
        **{"data": data, "data_digest": plan.digest, "metrics": ["psnr_matched"], "rows": described},
    }
    (folder / "run.json").write_text(json.dumps(description | told))
    write_records(folder, records)
    return folder


def sha256_of(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def picture_of(tab: Tab, name: str) -> Any:
    """What the tab's first part shows of a row."""
    return next(profile.picture for profile in tab.parts[0].profiles if profile.line.name == name)


def pixels_of(address: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(";base64,")[2]))).convert("RGB"), float)


@pytest.fixture(scope="module")
def phantom_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = {"input-00000000": 17.25, "learned-00000001": None, "elsewhere-00000009": 30.0}
    return write_made_up_run(tmp_path_factory.mktemp("phantom"), "s2s", rows)


@pytest.fixture(scope="module")
def tabs(board: Path) -> list[Tab]:
    return read_tabs(board)


def test_rows_are_illustrated_by_the_images_of_a_run(tabs: list[Tab], phantom_run: Path, tmp_path: Path) -> None:
    shown, notices = illustrated(tabs, [read_run(phantom_run)])
    assert notices == []
    (scene,) = shown[0].parts[0].scenes
    protocol = load("s2s")
    case = plan_cases(protocol, "phantom", limit=1).specs[0].make(protocol)
    assert (scene.data, scene.case, scene.simulated) == ("phantom", case.case_id, True)
    side, left, top = map(int, re.findall(r"\d+ x (\d+) px at column (\d+), row (\d+)", scene.part)[0])
    window = (slice(top, top + side), slice(left, left + side))
    low, high = np.percentile(case.reference, (0.3, 99.7))
    wanted = np.clip((case.reference[window] - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels_of(scene.reference)[..., 0] - wanted).mean() < 4
    none, much = (pixels_of(picture_of(shown[0], name).difference) for name in ("learned", "input"))
    assert (none.min(axis=-1) > 235).all(), "but for gain and offset there is no difference"
    assert (np.ptp(much, axis=-1) > 100).mean() > 0.3, "noise and blur differ, in red and in blue"
    assert [profile.line.name for profile in shown[0].parts[0].profiles if profile.picture] == ["learned", "input"]
    page = write_page(tmp_path, shown).read_text()
    assert page.count(NOTE) == 1, "of the other table there is no run"
    assert f"Data set phantom, case {case.case_id}, a phantom scene, simulated: the {scene.part}" in page
    assert f"psnr_matched {fixed(17.25, shown[0].parts[0].table.primary.decimals)} dB" in page
    assert "<b>Restored</b>no psnr_matched<" in page
    assert len(page.encode()) - len(write_page(tmp_path, tabs).read_bytes()) < 40_000


def test_pictures_are_seen_without_a_request(tabs: list[Tab], phantom_run: Path, tmp_path: Path, browser: Any) -> None:
    page = write_page(tmp_path, illustrated(tabs, [read_run(phantom_run)])[0])
    browser.open(page)
    assert browser.requests() == [page.resolve().as_uri()]
    browser.do('document.querySelectorAll("details").forEach((part) => { part.open = true; })')
    seen = 'Array.from(document.querySelectorAll("#s2s-v1 .shots img"), (i) => [i.naturalWidth, i.width, i.alt !== ""])'
    assert browser.do(seen) == [[102, 204, True]] * 4
    drawn = 'Array.from(document.querySelectorAll("#s2s-v1 .shots svg"), (s) => s.getBoundingClientRect().width)'
    assert browser.do(drawn) == [204] * 6
    named = 'Array.from(document.querySelectorAll(".shots svg")).every((s) => s.getAttribute("aria-label"))'
    assert browser.do(named)
    twice = '(() => { let ids = Array.from(document.querySelectorAll("[id]"), (e) => e.id); return ids.length; })()'
    assert browser.do(twice) == browser.do(twice.replace("ids.length", "new Set(ids).size"))
    for width in (375, 1400):
        browser.open(page, width=width, dark=width == 375)
        browser.do('document.querySelectorAll("details").forEach((part) => { part.open = true; })')
        assert browser.do("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_without_a_run_every_table_says_how_to_have_pictures(board: Path, tabs: list[Tab], tmp_path: Path) -> None:
    assert (board / "index.html").read_text().count(NOTE) == 2
    sets = replace(tabs[0], protocol={**tabs[0].protocol, "scope": "set"})
    assert write_page(tmp_path, [sets, tabs[1]]).read_text().count(NOTE) == 1


def test_an_image_that_was_changed_is_not_shown(tabs: list[Tab], tmp_path: Path) -> None:
    run = write_made_up_run(tmp_path, "s2s", {"input-00000000": 17.0, "learned-00000001": 20.0})
    (changed,) = (run / "restored" / "input-00000000").glob("*.png")
    Image.fromarray(np.zeros((512, 512), np.uint16)).save(changed)
    shown, (notice,) = illustrated(tabs, [read_run(run)])
    assert notice.startswith(f"{changed}: was changed")
    assert "\n" not in notice
    assert picture_of(shown[0], "input") is None
    assert picture_of(shown[0], "learned") is not None
    changed.unlink()
    shown, notices = illustrated(tabs, [read_run(run)])
    assert (picture_of(shown[0], "input"), notices) == (None, [])


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"protocol": {"name": "s2r", "version": 1}}, "is of protocol s2r v1, of which there is no table"),
        ({"protocol": {"name": "s2s", "version": 2}}, "is of protocol s2s v2, of which there is no table"),
        ({"protocol_digest": "0" * 64}, "its s2s v1 is another protocol than that of the table"),
        ({"data_digest": "0" * 64}, "is of other images of phantom than are at hand here"),
        ({"data": "nowhere"}, "its cases cannot be made here"),
    ],
)
def test_a_run_that_does_not_fit_is_named_and_left_out(
    tabs: list[Tab], phantom_run: Path, told: dict[str, Any], wanted: str
) -> None:
    run = read_run(phantom_run)
    shown, (notice,) = illustrated(tabs, [replace(run, description=run.description | told)])
    assert notice.startswith(f"{phantom_run}: {wanted}")
    assert "\n" not in notice
    assert shown == tabs


def test_an_image_restored_from_another_input_is_not_shown(tabs: list[Tab], phantom_run: Path) -> None:
    run = read_run(phantom_run)
    records = tuple(record | {"input_sha256": "0" * 64} for record in run.records)
    shown, notices = illustrated(tabs, [replace(run, records=records)])
    assert shown == tabs
    assert len(notices) == 2
    assert all("another input" in notice for notice in notices)


def test_a_run_on_the_tables_own_data_comes_first_and_real_images_are_noticed(
    tabs: list[Tab], phantom_run: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "somewhere" / "mine", tmp_path / "run"
    folder.mkdir(parents=True)
    ramp = np.linspace(20, 230, 512)[None, :] + 10 * np.sin(np.arange(512) / 5)[:, None]
    write(folder / "a.png", ramp.astype(np.float32))
    write_made_up_run(run, "s2s", {"input-00000000": 22.0}, str(folder))
    part = replace(tabs[0].parts[0], data="mine")
    shown, (notice,) = illustrated([replace(tabs[0], parts=(part,))], [read_run(phantom_run), read_run(run)])
    assert notice == "the page holds parts of images of mine: share it as their licence allows"
    assert [scene.data for scene in shown[0].parts[0].scenes] == ["phantom", "mine"]
    assert picture_of(shown[0], "input").scene.data == "mine"
    assert picture_of(shown[0], "learned").scene.data == "phantom"
    page = write_page(tmp_path, shown).read_text()
    assert "Data set mine, case a" in page
    assert str(folder) not in page
    assert len(re.findall("a phantom scene, simulated:", page)) == 1


def test_the_command_takes_runs_and_refuses_what_is_none(board: Path, phantom_run: Path, tmp_path: Path) -> None:
    before = (board / "index.html").read_bytes()
    assert refuse(app, InputError, "render", board, "--images", tmp_path).startswith(f"{tmp_path}: not a run folder")
    assert (board / "index.html").read_bytes() == before
    other = write_made_up_run(tmp_path / "other", "s2r", {"input-00000000": 20.0})
    result = succeed(app, "render", board, "--images", phantom_run, "--images", other)
    assert (
        result.stderr == f"notice: {other}: is of protocol s2r v1, of which there is no table: nothing of it is shown\n"
    )
    assert b"data:image/webp" in (board / "index.html").read_bytes()
    (board / "index.html").write_bytes(before)
