"""Pages keep their word: links lead somewhere, tables hold what is registered, commands and code are real."""

import contextlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from sembench.checks import CHECKS, check_restorer
from sembench.commands import app
from sembench.datasets.manifest import load_fields, load_line_images, load_manifest, names
from sembench.line_scenes import SCENES
from sembench.metrics.table import MetricSpec
from sembench.optics import generator
from sembench.phantom import corpus_scene
from sembench.protocol import load
from sembench.registry import METRICS, PROTOCOLS, RESTORERS, find_method, plugins
from sembench.restorer import Budget, TrainingSet

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
    ROOT / "leaderboard" / "README.md",
    *sorted((ROOT / "restorers" / "semfm" / "weights").glob("*.md")),
]
OF_THE_EXAMPLE = {"sharpen", "small_defocus", "sembench-sharpen"}
FENCE = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def shipped(group: str) -> dict[str, Any]:
    """Name -> loaded target of each plugin that sembench itself brings."""
    return {name: one.load() for name, (one, *_) in plugins(group).items() if one.distribution == "sembench"}


def tables(page: Path, first: str) -> list[dict[str, str]]:
    """The lines of all tables of a page whose first column is `first`, a dictionary each."""
    found: list[dict[str, str]] = []
    header: list[str] = []
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not header:
            header = cells
        elif not set(line) <= set("|-: ") and header[0] == first:
            found.append(dict(zip(header, cells, strict=True)))
    return found


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, hyphens for spaces, no punctuation."""
    headings = [
        re.sub(r"[`*]|\]\([^)]*\)|\[", "", line) for line in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_a_broken_anchor_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What `s2s`, s2r say: all\n\n```\n# no heading\n```\n\n## One's own pairs\n")
    assert anchors(page) == {"what-s2s-s2r-say-all", "ones-own-pairs"}


def test_the_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of(DOCS / "README.md")))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} == linked


# Tables


def test_the_map_has_every_module_in_the_order_of_imports() -> None:
    spec = importlib.util.spec_from_file_location("layout", ROOT / "tests" / "test_layout.py")
    assert spec is not None
    assert spec.loader is not None
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    page = DOCS / "architecture.md"
    listed = [code(row["module"]) for row in tables(page, "module")]
    assert listed == [[name] for name in layout.ORDER]
    alone = [path.stem for path in (ROOT / "restorers").glob("*.py")]
    shared = {name for name in layout.SHARED_BY_RESTORERS if name in alone} - {"blind_wiener"}
    assert shared <= {Path(name).stem for name in re.findall(r"[\w/]+\.py", prose(page))}


def metric_rows() -> Iterator[tuple[str, str, dict[str, str]]]:
    """(name, suffix, line) of every metric on the page, those that a line adds by suffix too."""
    for row in tables(DOCS / "metrics.md", "metric"):
        (name,) = code(row["metric"])
        yield from ((name + suffix, suffix, row) for suffix in ("", *code(row.get("also", ""))))


def test_the_metrics_are_those_of_the_registry() -> None:
    known = shipped(METRICS)
    listed = [name for name, _, _ in metric_rows()]
    assert sorted(listed) == sorted(known)
    for name, suffix, row in metric_rows():
        spec = known[name]
        unit = "nm" if suffix == "_nm" else row["unit"]
        better = "–" if suffix == "_spread" else row["better"]
        assert (spec.unit or "–", spec.better.replace("none", "–")) == (unit, better), name
        assert spec.tolerance == float(row["tolerance"]), name


def test_what_a_metric_needs_is_what_the_page_says() -> None:
    known = shipped(METRICS)
    for name, suffix, row in metric_rows():
        spec, needs = known[name], row["needs"]
        assert (spec.needs is not list) == ("weights" in needs), name
        if not isinstance(spec, MetricSpec):
            continue
        assert spec.name == name
        assert spec.needs_reference == ("reference" in needs and suffix != "_truth"), name
        assert spec.needs_truth == (suffix == "_truth"), name
        assert spec.needs_pixel_size == (suffix == "_nm"), name
        assert spec.needs_degradation == ("degradation" in needs), name
        assert spec.needs_flat == ("flat field" in needs), name
        side = re.search(r"(\d+) px", needs)
        assert spec.smallest_side == (int(side[1]) if side else 1), name


def test_the_data_sets_are_those_of_the_registry_with_their_licences_and_numbers() -> None:
    rows = {code(row["set"])[0]: row for row in tables(DOCS / "data.md", "set")}
    assert list(rows) == [name for name in names() if name in shipped("sembench.datasets")]
    for name, row in rows.items():
        dataset = load_manifest(name)
        files = {one.file: one for one in dataset.rows}
        rest = row["licences"]
        for licence in sorted({one.licence for one in dataset.rows}, key=len, reverse=True):
            assert licence in rest, name
            rest = rest.replace(licence, "", 1)
        assert set(rest) <= set("; "), name
        sidecars = sum(one.role == "sidecar" for one in files.values())
        assert int(re.match(r"\d+", row["files"])[0]) == len(files) - sidecars, name  # type: ignore[index]
        megabytes = sum(one.bytes for one in files.values()) / 1e6
        assert float(row["MB"]) == pytest.approx(megabytes, abs=0.05 if megabytes > 0.1 else 0.005), name


def test_which_protocols_use_a_set() -> None:
    used: dict[str, set[str]] = {}
    for name, path in shipped(PROTOCOLS).items():
        data = load(str(path)).data
        used.setdefault(data.set, set()).add(f"`{name}`")
        if data.training_set and data.training_set != data.set:
            used.setdefault(data.training_set, set()).add(f"`{name}` (training)")
        for other in data.also or ():
            used.setdefault(other, set()).add(f"`{name}`")
    for row in tables(DOCS / "data.md", "set"):
        told = row["protocols"].replace(" (each by `--data`)", "").replace("–", "")
        assert set(told.split(", ")) - {""} == used.get(code(row["set"])[0], set())


def test_the_splits_have_the_numbers_told() -> None:
    for row in tables(DOCS / "data.md", "split"):
        (split,) = code(row["split"])
        images = load_manifest("semcorpus").select(split=split, role="image")
        pairs = [
            len({one.pair for one in load_manifest(name).select(split=split)} - {""}) for name in ("kriss", "semsr")
        ]
        told = [row["semcorpus, images (groups)"], row["kriss, pairs"], row["semsr, pairs"]]
        assert told == [f"{len(images)} ({len({one.group for one in images})})", *(str(n or "–") for n in pairs)]


def test_the_protocols_are_those_that_ship() -> None:
    rows = {code(row["protocol"])[0]: row for row in tables(DOCS / "protocols.md", "protocol") if "minutes" in row}
    known = {name: load(str(path)) for name, path in shipped(PROTOCOLS).items()}
    assert set(rows) == set(known)
    for name, row in rows.items():
        protocol = known[name]
        assert code(row["primary metric"]) == [protocol.metrics.primary], name
        degradation = protocol.degradation.name + (", fixed" if protocol.degradation.fixed else "")
        assert row["degradation"] == degradation, name
        assert row["training"] == ("–" if protocol.scope == "set" else protocol.training_degradation), name
        assert ("not published" in row["question"]) == (not protocol.published), name


def test_the_protocols_have_the_numbers_of_cases_told() -> None:
    rows = tables(DOCS / "protocols.md", "protocol")
    told = {code(row["protocol"])[0]: row["cases"] for row in rows if "cases" in row}
    for name, listed in (("s2s", "s2s_fields"), ("s2s_validation", "s2s_validation_fields")):
        fields = load_fields(listed)
        side, groups = fields[0].width, len({field.group for field in fields})
        assert told[name] == f"{len(fields)} fields, {side} × {side} px, {groups} groups"
    tiles = load_fields("clustering_tiles")
    assert f"{len(tiles)} tiles" in told["clustering"]
    assert f"{len({tile.group for tile in tiles})} groups" in told["clustering"]
    pairs = {row.pair for row in load_manifest("kriss").select(split="evaluation")}
    assert told["s2r"] == f"{len(pairs)} real pairs"
    real = load_line_images()
    groups = SCENES + len({image.group for image in real})
    assert told["metrology"] == f"{SCENES} phantom scenes and {len(real)} of real lines, {groups} groups"


# Commands


def console_lines(page: Path) -> list[str]:
    """Every line of a page's blocks that calls sembench, its words from there on."""
    found = []
    for block in FENCE.findall(text_of(page)):
        if not re.match(r"```(console|bash|)\n", block):
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            runs = r"(?:sembench|python -m sembench|torchrun .*-m sembench) (.*)"
            call = re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?" + runs, line)
            if call:
                found.append(call[1])
    return found


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words that follow; AssertionError for one that is not there."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    return command, rest


def parsed(line: str) -> dict[str, Any]:
    """The values that a command line gives to its command, which is not called; AssertionError where it is refused."""
    command, rest = command_of(shlex.split(line, comments=True))
    if not hasattr(command, "commands"):
        try:
            return dict(command.make_context(command.name, rest).params)
        except Exception as error:
            raise AssertionError(f"sembench {line}: {error}") from error
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(rest) <= known, f"sembench {line}"
    return {}


@each_page
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    for line in console_lines(page):
        given = parsed(line)
        restorers = [name for name in (given.get("restorer") or "").split(",") if name]
        unknown = {name for name in restorers if ".py" not in name and not name.startswith("$")}
        assert unknown <= {*plugins(RESTORERS), *OF_THE_EXAMPLE}, line
        protocol = given.get("protocol")
        assert protocol is None or protocol in {*plugins(PROTOCOLS), *OF_THE_EXAMPLE}, line
        for setting in given.get("set_") or ():
            name, _, key = setting.partition("=")[0].rpartition(".")
            for one in [name] if name else restorers:
                if one in plugins(RESTORERS):
                    assert key in find_method(one).cls.Settings.model_fields, line


@each_page
def test_commands_and_options_named_in_the_text_are_there(page: Path) -> None:
    for span in code(prose(page)):
        if not span.startswith("sembench "):
            continue
        command, rest = command_of(re.findall(r"[^\s\[\]]+", span)[1:])
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in rest if word.startswith("-")} <= known, span


@each_page
def test_scripts_and_modules_that_a_page_runs_are_there(page: Path) -> None:
    text = text_of(page)
    scripts = re.findall(r"python ((?:benchmarks|\.ci|tests)/[\w/.]+\.py)", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    modules = re.findall(r"python -m (restorers[\w.]*)", text)
    assert [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None] == []


WRONG = ("runn", "run --protocoll s2s", "measure", "data fetch", "degrade a.tif --seed x", "train x --stage 7")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        parsed(line)


# Code


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that docs/adding-a-method.md shows, each under the name that stands above it."""
    folder = tmp_path_factory.mktemp("methods")
    blocks = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text_of(DOCS / "adding-a-method.md"), re.DOTALL)
    assert [name for name, _ in blocks] == ["lee.py", "linear.py"]
    for name, written in blocks:
        (folder / name).write_text(written, encoding="utf-8")
    return folder


QUICK = (
    *("described", "settings_roundtrip", "shape_dtype_finite", "input_untouched", "keeps_intensity"),
    *("rejects_bad_input", "seeded", "order_free", "reference_blind", "not_fitted", "fit_keeps_settings"),
)


@pytest.mark.parametrize(("target", "fit"), [("lee.py:Lee", False), ("linear.py:Linear", True)])
def test_the_methods_that_are_shown_keep_the_contract(methods: Path, target: str, fit: bool) -> None:
    results = check_restorer(str(methods / target), only=QUICK, fit=fit)
    assert [result for result in results if result.outcome == "failed"] == []
    skipped = {result.name for result in results if result.outcome == "skipped"}
    assert skipped == ({"keeps_intensity"} if fit else {"not_fitted", "fit_keeps_settings"})


def test_the_methods_that_are_shown_restore(methods: Path) -> None:
    """Squared error on a patch not learnt from: below the input's for the filter, lower still for the learnt one."""
    images = tuple(corpus_scene(1, f"T{i:03d}", 320).image for i in (1, 2, 3))
    training = TrainingSet(images[:2], images[2:], budget=Budget("few", 6), seed=1)
    patch = training.validation_patches()[0]
    linear = find_method(str(methods / "linear.py")).cls()
    linear.fit(training)
    lee = find_method(str(methods / "lee.py")).cls()
    errors = [
        float(np.mean((image - patch.clean) ** 2))
        for image in (linear.restore(patch.degraded), lee.restore(patch.degraded), patch.degraded)
    ]
    assert errors == sorted(errors)
    noise = generator(1, "flat").normal(128, 5, (64, 64)).astype(np.float32)
    assert np.std(lee.restore(noise)) < 0.5 * np.std(noise)


def test_the_pytest_cases_that_are_shown_pass(methods: Path) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", text_of(DOCS / "adding-a-method.md"), re.DOTALL)
                if "parametrize_with_checks" in block)  # fmt: skip
    names: dict[str, Any] = {}
    exec(code.replace('"lee"', repr(f"{methods / 'lee.py'}:Lee")), names)
    (mark,) = names["test_contract"].pytestmark
    assert len(mark.args[1]) == 2 * len(CHECKS)
    passed = 0
    for case in mark.args[1]:
        with contextlib.suppress(pytest.skip.Exception):
            names["test_contract"](*case.values)
            passed += 1
    assert passed >= 2 * 10


def test_the_entry_point_that_is_shown_is_of_the_group_that_is_searched() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", text_of(DOCS / "adding-a-method.md"), re.DOTALL)
    assert tomllib.loads(block)["project"]["entry-points"].keys() == {RESTORERS}
