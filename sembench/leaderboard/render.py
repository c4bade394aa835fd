"""The published rows as one static page and as tables of a README, from the tables and their bundles."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from sembench.comparison import Comparison, compare_rows, row_labels
from sembench.errors import InputError
from sembench.execution.plan import Row
from sembench.execution.recorded import RecordedRun
from sembench.execution.records import Record
from sembench.execution.worker import FLAT_METRICS
from sembench.leaderboard.bundle import read_bundle
from sembench.leaderboard.illustrations import Illustration, Scene, illustrations
from sembench.leaderboard.rows import Published, Score, read_rows
from sembench.marks import cd_biases, marks
from sembench.micrograph import write_atomically
from sembench.pages import crosses, words
from sembench.pages.crosses import Cross
from sembench.pages.document import render
from sembench.pages.numbers import counted, decimals, fixed, places
from sembench.pages.pairs import PairTable, pair_table
from sembench.pages.standings import Column, Line, Standings, beside, column, standings
from sembench.registry import METRICS, plugin, plugins
from sembench.statistics import Interval

PAGE = "index.html"
FIRST = ("s2s", "s2s_midpoint", "s2r", "s2r_broad", "real_pairs", "metrology", "clustering")
"""The order in which a reader meets protocols; others follow by name."""
README_METRICS = 3
"""Metrics beside the primary one in a README."""


@dataclass(frozen=True)
class MetricLine:
    """One metric in a restorer's section: its column, and what the row has of it; flat: of flat fields, not cases."""

    column: Column
    interval: Any
    cross: Cross
    flat: bool = False


@dataclass(frozen=True)
class Profile:
    """A restorer's section: row id, settings, provenance, every metric, what its bundle is, and a picture if any."""

    line: Line
    row: str
    settings: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    metrics: tuple[MetricLine, ...]
    bundle: str
    picture: Illustration | None = None


@dataclass(frozen=True)
class Part:
    """The rows of one protocol on one data set; scenes: the cases that its pictures show."""

    key: str
    data: str
    table: Standings
    pairs: PairTable | None
    words: words.Sentences
    profiles: tuple[Profile, ...]
    scenes: tuple[Scene, ...] = ()


@dataclass(frozen=True)
class Tab:
    """One table file: protocol, version, its parts, and what its filters offer; digest: of the protocol."""

    key: str
    file: str
    name: str
    version: int
    protocol: Mapping[str, Any]
    parts: tuple[Part, ...]
    devices: tuple[str, ...]
    budgets: tuple[str, ...]
    digest: str = ""

    @property
    def pictured(self) -> bool:
        """Whether any of its rows has a picture."""
        return any(part.scenes for part in self.parts)


def write_page(folder: Path, tabs: Sequence[Tab]) -> Path:
    """Write index.html of a leaderboard, see `read_tabs`; returns its path."""
    path = folder / PAGE
    write_atomically(path, render("leaderboard.html", {"tabs": tabs}).encode("utf-8", "backslashreplace"))
    return path


def read_tabs(folder: Path) -> list[Tab]:
    """What the page shows of each table of a leaderboard and its bundles, in the order of its tabs.

    Raises InputError, one line, where the folder holds no table, or one or a bundle is not what was published.
    """
    names = [found for path in folder.glob("*.csv") if (found := re.fullmatch(r"([a-z][a-z0-9_]*)-v(\d+)", path.stem))]
    if not names:
        raise InputError(f"{folder}: holds no table <protocol>-v<version>.csv: publish a run there first")

    def place(found: "re.Match[str]") -> tuple[int, str, int]:
        name = found[1]
        return FIRST.index(name) if name in FIRST else len(FIRST), name, -int(found[2])

    tabs = (_tab(folder, found[0], found[1], int(found[2])) for found in sorted(names, key=place))
    return [tab for tab in tabs if tab.parts]


def illustrated(tabs: Sequence[Tab], runs: Sequence[RecordedRun]) -> tuple[list[Tab], list[str]]:
    """The tabs with a picture of each row whose restored image lies in the folder of one of the runs, and notices.

    A run illustrates rows of its own protocol and row id, which are the same method, settings and fitted state; its
    data may be others. One on the part's own data comes first, then the order of the runs decides. Raises InputError,
    one line, where a run is none that this version knows.
    """
    by_tab: dict[str, list[dict[str, Illustration]]] = {}
    notices: list[str] = []
    for run in runs:
        folder, told = run.folder, run.description["protocol"]
        label = f"{told['name']} v{told.get('version')}"
        tab = next((tab for tab in tabs if f"{tab.name} v{tab.version}" == label), None)
        if tab is None:
            notices.append(f"{folder}: is of protocol {label}, of which there is no table: nothing of it is shown")
        elif run.description["protocol_digest"] != tab.digest:
            notices.append(f"{folder}: its {label} is another protocol than that of the table: nothing of it is shown")
        else:
            wanted = {profile.row for part in tab.parts for profile in part.profiles}
            found, left_out = illustrations(run, wanted)
            by_tab.setdefault(tab.key, []).append(found)
            notices += left_out
    shown = [
        replace(tab, parts=tuple(_illustrated(part, by_tab.get(tab.key, ())) for part in tab.parts)) for tab in tabs
    ]
    real = {scene.data for tab in shown for part in tab.parts for scene in part.scenes if not scene.simulated}
    if real:
        notices.append(f"the page holds parts of images of {', '.join(sorted(real))}: share it as their licence allows")
    return shown, notices


def _illustrated(part: Part, found: Sequence[Mapping[str, Illustration]]) -> Part:
    """The part with a picture of each of its rows that any run has."""
    scenes: dict[tuple[str, str], Scene] = {}
    profiles = []
    for profile in part.profiles:
        own = [pictures[profile.row] for pictures in found if profile.row in pictures]
        picture = min(own, key=lambda one: one.scene.data != part.data, default=None)
        if picture is not None:
            scene = picture.scene
            key = f"{part.key}-scene-{len(scenes) + 1}"
            known = scenes.setdefault((scene.data_digest, scene.case), replace(scene, key=key))
            picture = replace(picture, scene=known)
        profiles.append(replace(profile, picture=picture))
    return replace(part, profiles=tuple(profiles), scenes=tuple(scenes.values()))


def _tab(folder: Path, stem: str, name: str, version: int) -> Tab:
    file = f"{stem}.csv"
    rows = read_rows(folder / file)
    runs = {row.bundle: read_bundle(folder / row.bundle) for row in rows}
    by_data: dict[str, list[Published]] = {}
    for row in rows:
        by_data.setdefault(row.data_digest, []).append(row)
    parts = tuple(
        _part(f"{stem}-{number}" if len(by_data) > 1 else stem, own, runs)
        for number, own in enumerate(by_data.values(), 1)
    )
    protocol = runs[rows[0].bundle].description["protocol"] if rows else {}
    return Tab(
        stem,
        file,
        name,
        version,
        protocol,
        parts,
        tuple(sorted({row.device or "unknown" for row in rows})),
        tuple(sorted({row.budget or "none" for row in rows})),
        rows[0].protocol_digest if rows else "",
    )


def _part(key: str, rows: Sequence[Published], runs: Mapping[str, RecordedRun]) -> Part:
    own = [runs[row.bundle] for row in rows]
    plain = [run.rows[0] for run in own]
    records = [record for run in own for record in run.records]
    labels = row_labels(plain)
    protocol = own[0].description["protocol"]
    primary, listed = _metrics(protocol, rows)
    flat = [name for name in FLAT_METRICS if name in rows[0].scores and name not in protocol["metrics"]["names"]]
    others = beside([*(name for name in listed if name not in flat), *flat], primary)
    comparison = _compared(plain, records, primary, protocol)
    found = marks(plain, records)
    lines = [
        _line(f"{key}-{number}", row, labels[row.row], run, found.get(row.row, ()), [primary, *listed])
        for number, (row, run) in enumerate(zip(rows, own, strict=True), 1)
    ]
    caption = _caption(rows, protocol)
    if any(row.scores[name].interval for row in rows for name in flat):
        caption += f" {' and '.join(flat)}: of flat fields with the cases' noise, not ranked."
    table = standings(key, caption, column(primary), others, lines)
    by_line = {line.key: (row, run) for line, row, run in zip(lines, rows, own, strict=True)}
    return Part(
        key,
        rows[0].data,
        table,
        pair_table(f"{key}-pairs", comparison),
        words.summary(comparison, labels, plain, records, found, cd_biases(plain, records)),
        tuple(_profile(line, *by_line[line.key]) for line in table.lines),
    )


def _metrics(protocol: Mapping[str, Any], rows: Sequence[Published]) -> tuple[str, list[str]]:
    """The primary metric and those that the protocol's table shows, as far as the rows have them."""
    told = protocol.get("metrics", {})
    known = list(rows[0].scores)
    primary = told.get("primary")
    if primary not in known:
        raise InputError(f"{rows[0].bundle}: its protocol's primary metric {primary!r} is no column of the table")
    return str(primary), [name for name in told.get("table") or known if name in known]


def _compared(
    rows: Sequence[Row], records: Sequence[Record], primary: str, protocol: Mapping[str, Any]
) -> Comparison | str:
    """The comparison by the primary metric, or why there is none."""
    if protocol.get("scope") == "set":
        return "the protocol scores one set of tiles, so that there are no cases to compare on"
    if primary not in plugins(METRICS):
        return f"the metric {primary} is not installed here"
    try:
        return compare_rows(rows, records, plugin(METRICS, primary).load())
    except InputError as error:
        return str(error)


def _caption(rows: Sequence[Published], protocol: Mapping[str, Any]) -> str:
    if protocol.get("scope") == "set":
        return "Mean over the seeds of KMeans; one set of tiles, so that there is no interval."
    most = max(rows, key=lambda row: row.cases - row.left_out)
    basis = f"{counted(most.cases - most.left_out, 'case')} in {counted(most.groups, 'group')}"
    text = f"{rows[0].data}, {basis}. Mean and 95 % interval over groups, which alone are independent."
    placed = next((row for row in rows if row.ranked_cases), None)
    if placed is None or placed.ranked_cases is None:
        return text
    ranked = sum(row.ranked_cases is not None for row in rows)
    out = sum(row.kind == "restorer" and row.ranked_cases is None for row in rows)
    return f"{text} {words.basis(placed.ranked_cases, ranked, out)}"


def _line(key: str, row: Published, name: str, run: RecordedRun, found: Sequence[Any], shown: Sequence[str]) -> Line:
    records = run.records
    missing = {metric: crosses.undefined(records, metric) for metric in shown if row.scores[metric].undefined}
    missing |= {metric: Cross(row.scores[metric].undefined) for metric in row.scores if metric in FLAT_METRICS}
    return Line(
        key,
        name,
        row.kind,
        {metric: score.interval for metric, score in row.scores.items()},
        missing,
        row.letters,
        row.rank,
        row.rank_without_group,
        crosses.failed(records),
        tuple(found),
        row.seconds_median,
        row.budget,
        row.device,
        crosses.values(records, shown[0]),
        key,
        filtered=True,
        unranked=_unranked(row, row.scores[shown[0]].interval),
    )


def _unranked(row: Published, primary: Interval | None) -> str:
    """Why a restorer has no rank among others that have one, else empty; primary: its primary metric's interval."""
    if row.kind == "control" or row.ranked_cases is not None or row.missing is None:
        return ""
    return f"no value on {row.missing} of {row.missing + (primary.n if primary else 0)} cases"


def _profile(line: Line, row: Published, run: RecordedRun) -> Profile:
    stated = run.description["rows"][0]
    environment = run.description.get("environments", {}).get(row.environment, {})
    libraries = environment.get("libraries", {})
    provenance = [
        ("summary", stated.get("summary")),
        ("row", row.row),
        ("version of the method", row.version),
        ("licence", row.licence),
        ("citation", stated.get("citation")),
        ("source, SHA-256", row.source_sha256),
        ("pretrained weights, SHA-256", row.weights_sha256),
        ("fitted state, SHA-256", row.state_sha256),
        ("fitted state from", row.state_from),
        ("budget", row.budget),
        ("fit", _fit(row)),
        ("restored on", row.device),
        ("largest memory (MB)", None if row.peak_memory_mb is None else fixed(row.peak_memory_mb, 0)),
        ("cases", f"{row.cases}: {row.solved} solved, {row.failed} failed, {row.left_out} left out"),
        ("started", row.started),
        ("sembench", row.sembench),
        ("commit", row.commit),
        ("Python", environment.get("python")),
        ("platform", environment.get("platform")),
        ("processor", environment.get("processor")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))),
        ("protocol digest", row.protocol_digest),
        ("data digest", row.data_digest),
        ("bundle, SHA-256", row.bundle_sha256),
    ]
    return Profile(
        line,
        row.row,
        tuple((name, _text(value)) for name, value in sorted((row.variant | row.settings).items())),
        tuple((name, _text(value)) for name, value in provenance if value not in (None, "")),
        tuple(
            MetricLine(_rounded(name, score), score.interval, _cross(run, name, score), name in FLAT_METRICS)
            for name, score in row.scores.items()
            if score.interval or score.undefined
        ),
        row.bundle,
    )


def _cross(run: RecordedRun, name: str, score: Score) -> Cross:
    """Cases, or flat fields, without a value of a metric."""
    return Cross(score.undefined) if name in FLAT_METRICS else crosses.undefined(run.records, name)


def _rounded(name: str, score: Score) -> Column:
    return replace(column(name), decimals=decimals([score.interval]))


def _fit(row: Published) -> str:
    told = [
        (row.fit_steps, "{:,} steps"),
        (row.parameters, "{:,} parameters"),
        (row.multiply_adds_per_px, "{:,.0f} multiply-adds per px"),
        (row.fit_seconds, "{:,.0f} s"),
        (row.fit_device or None, "on {}"),
    ]
    return ", ".join(text.format(value) for value, text in told if value is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def update_readme(path: Path, tabs: Sequence[Tab]) -> list[str]:
    """Put the tables of protocols between their markers in a Markdown file; returns the protocols found there.

    Markers are `<!-- sembench:leaderboard:NAME -->` and `<!-- /sembench:leaderboard:NAME -->`; of each protocol the
    newest version counts. Raises InputError where a marker is open or nothing is published for it.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a README: {error}") from error
    newest: dict[str, Tab] = {}
    for tab in tabs:
        if tab.name not in newest or tab.version > newest[tab.name].version:
            newest[tab.name] = tab
    named = re.findall(r"<!-- sembench:leaderboard:([^\s>]+) -->", text)
    for name in named:
        start, end = (f"<!-- {slash}sembench:leaderboard:{name} -->" for slash in ("", "/"))
        if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
            raise InputError(f"{path}: needs one `{start}` and one `{end}` behind it")
        if name not in newest:
            raise InputError(f"{path}: nothing is published for the marker of {name}: take it out, or publish first")
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{markdown(newest[name])}\n{end}{rest.partition(end)[2]}"
    if named:
        write_atomically(path, text.encode())
    return named


def markdown(tab: Tab) -> str:
    """The table of a tab's restorers, then controls, in Markdown; the data set before each of several."""
    told = []
    for part in tab.parts:
        if len(tab.parts) > 1:
            told.append(f"{_cell(part.data)}:\n")
        told.append(_markdown_table(part.table))
    return "\n".join(told).rstrip("\n")


def _markdown_table(table: Standings) -> str:
    others = table.others[:README_METRICS]
    headings = ["restorer", _heading(table.primary, "95 % interval"), "letters", "rank"]
    headings += ["marks"] if table.has("marks") else []
    headings += [_heading(other) for other in others]
    headings += ["failed (cases)", "budget"]
    marked = [":--"] if table.has("marks") else []
    lines = [headings, [":--", "--:", ":--", "--:", *marked, *["--:"] * len(others), "--:", ":--"]]
    for line in table.lines:
        own = line.values.get(table.primary.name)
        value = fixed(own.mean if own else None, table.primary.decimals)
        if own and own.low is not None:
            value += f" ({fixed(own.low, table.primary.decimals)} to {fixed(own.high, table.primary.decimals)})"
        means = [(line.values.get(other.name), other.decimals) for other in others]
        control = line.kind == "control"
        lines.append(
            [
                f"*{_cell(line.name)}* (control)" if control else _cell(line.name),
                value,
                line.letters,
                places(line.rank) if line.rank else f"unranked: {line.unranked}" if line.unranked else "",
                *(_cell(", ".join(mark.short for mark in line.marks)) for _ in marked),
                *(fixed(mean.mean if mean else None, digits) for mean, digits in means),
                str(line.failed.count or ""),
                line.budget,
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _heading(own: Column, what: str = "") -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[own.better]
    told = ", ".join(text for text in (own.unit, what) if text)
    return f"{own.name}{arrow} ({told})" if told else f"{own.name}{arrow}"


def _cell(text: str) -> str:
    """A text that Markdown shows as it stands."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))
