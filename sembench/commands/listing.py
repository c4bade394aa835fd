"""`sembench list`: what there is, and what of it cannot run here."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHORT = ("name", "kind", "version", "unit", "better", "files", "MB", "missing", "default", "package")
"""Columns that are never wrapped."""

NARROW_LICENCE = 14
"""Characters of a licence in a line of a table that is wrapped."""

ASIDE = ("settings", "unavailable")
"""What is said below a table, or of one thing alone, and not in a column."""


def list_plugins(
    what: Annotated[
        str,
        typer.Argument(
            help="restorers, metrics, protocols, datasets, all, or one by its name: of a restorer, FILE.py:Class too, "
            "its settings.",
            metavar="[WHAT|NAME]",
        ),
    ] = "all",
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List restorers, metrics, protocols and data sets, each with its licence or its question; or tell of one."""
    import json

    readers = {"restorers": restorers, "metrics": metrics, "protocols": protocols, "datasets": datasets}
    names = [name for name in readers if what in ("all", name)]
    found = {name: readers[name]() for name in names} or {what: _one(what)}
    if json_:
        typer.echo(json.dumps(found, indent=2))
    elif names:
        for name in names:
            _show_list(name, found[name])
        typer.echo("more of one: sembench list NAME")
    else:
        _show_one(what, found[what])


def _one(name: str) -> list[dict[str, Any]]:
    """What is said of one restorer (a line a setting), protocol, metric or data set."""
    from sembench.errors import InputError
    from sembench.registry import DATASETS, METRICS, PROTOCOLS, RESTORERS, plugins, suggestion

    if name in plugins(RESTORERS) or _is_file(name):
        return settings_of(name)
    if name in plugins(PROTOCOLS) or name.endswith(".toml"):
        return [protocol_facts(name)]
    if name in plugins(METRICS):
        return [metric_facts(name)]
    if name in plugins(DATASETS):
        return [dataset_facts(name)]
    lists = ["restorers", "metrics", "protocols", "datasets", "all"]
    hint = suggestion(
        name, [*lists, *(known for group in (RESTORERS, PROTOCOLS, METRICS, DATASETS) for known in plugins(group))]
    )
    if not hint.startswith("did you mean"):
        hint = f"give {', '.join(lists)}, the name of one that they show, or FILE.py:Class"
    raise InputError(f"nothing is named {name!r}: {hint}")


def _is_file(name: str) -> bool:
    return name.endswith(".py") or ".py:" in name


def _show_list(name: str, rows: list[dict[str, Any]]) -> None:
    """A table of what there is; on a terminal within its width, into a pipe a line each."""
    from rich.console import Console

    console = Console()
    told = [row | {"package": "" if row["package"] == "sembench" else row["package"]} for row in rows]
    _print(console, name, told)
    for row in rows:
        if row["unavailable"]:
            console.print(f"unavailable here: {row['name']}: {row['unavailable']}", soft_wrap=True, markup=False)


def _print(console: "Console", name: str, rows: list[dict[str, Any]]) -> None:
    """Print a table; where the terminal is too narrow with long texts wrapped, into a pipe as wide as it is."""
    from rich.console import Console

    table = _table(name, rows, narrow=False)
    width = Console(width=10_000).measure(table).maximum
    if width > console.width and console.is_terminal:
        table = _table(name, rows, narrow=True)
    elif width > console.width:
        console = Console(width=width)
    console.print(table)


def _table(name: str, rows: list[dict[str, Any]], narrow: bool) -> "Table":
    """A table of those columns that say anything; narrow: whether long ones are wrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    widest = NARROW_LICENCE if narrow else None
    table = Table(title=name, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    keys = [key for key in (rows[0] if rows else ()) if key not in ASIDE]
    columns = [key for key in keys if any(row[key] not in (None, "") for row in rows)]
    for column in columns:
        wrapped = narrow and column not in SHORT
        max_width = widest if column.startswith("licence") else None
        table.add_column(column, no_wrap=not wrapped, overflow="fold", max_width=max_width)
    for row in rows:
        table.add_row(*("" if row[key] is None else escape(str(row[key])) for key in columns))
    return table


def _show_one(name: str, rows: list[dict[str, Any]]) -> None:
    """All that is said of one: a line each; of a restorer its settings in a table."""
    from rich.console import Console

    from sembench.registry import RESTORERS, plugins

    console = Console()
    about = rows[0] if rows else {}
    restorer = _is_file(name) or name in plugins(RESTORERS)
    if restorer:
        about = restorer_facts(name)
    for key, value in about.items():
        if key == "metrics":
            value = [f"{one} (primary)" if one == about["primary"] else one for one in value]
        if value in (None, "", [], {}) or key in ("settings", "primary") or (key, value) == ("package", "sembench"):
            continue
        console.print(f"{key}: {_told(value)}", soft_wrap=True, markup=False, highlight=False)
    if restorer:
        if rows:
            _print(console, "settings", rows)
        else:
            console.print("no settings")


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _each(group: str) -> "list[tuple[str, Any, str]]":
    """(name, loaded target or None, reason) of every plugin of a group; a broken one is listed with its error."""
    from sembench.errors import SembenchError
    from sembench.registry import plugin, plugins

    found = []
    for name in plugins(group):
        try:
            found.append((name, plugin(group, name).load(), ""))
        except SembenchError as error:
            found.append((name, None, str(error)))
    return found


def settings_of(name: str) -> list[dict[str, Any]]:
    """One line a setting of a restorer: default, bounds, what it does."""
    from sembench.registry import find_method

    schema = find_method(name).cls.Settings.model_json_schema()
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    rows = []
    for field, facts in schema.get("properties", {}).items():
        limits = [f"{sign} {facts[key]}" for key, sign in bounds.items() if key in facts]
        choices = [str(choice) for choice in facts.get("enum", ())]
        rows.append(
            {
                "name": field,
                "default": facts.get("default"),
                "values": " or ".join(choices) or ", ".join(limits) or None,
                "what": facts.get("description"),
            }
        )
    return rows


def restorers() -> list[dict[str, Any]]:
    """One line a restorer: kind, what it is, licence, package, settings, and why it is unavailable."""
    from sembench.registry import RESTORERS, plugins

    return [restorer_facts(name) for name in plugins(RESTORERS)]


def restorer_facts(name: str) -> dict[str, Any]:
    """What is said of a restorer, by its name or FILE.py:Class; what cannot be said is None, with the reason."""
    from sembench.errors import SembenchError
    from sembench.registry import RESTORERS, find_method, needs_of, resolve_settings

    row: dict[str, Any] = {"name": name, "kind": None, "what": None, "settings": None, "licence": None}
    row["package"] = None if _is_file(name) else _package(RESTORERS, name)
    try:
        method = find_method(name)
        row |= {"kind": method.cls.kind, "what": method.cls.summary(), "licence": method.cls.licence}
        settings = resolve_settings(method, None)
        row["settings"] = ", ".join(f"{key}={value}" for key, value in settings.model_dump().items())
        reason = "; ".join(needs_of(method, settings))
    except SembenchError as error:
        reason = str(error)
    return row | {"unavailable": reason or None}


def _package(group: str, name: str) -> str:
    """The distribution that a plugin comes from, or several where they claim the same name."""
    from sembench.registry import plugins

    return " and ".join(sorted({claimed.distribution for claimed in plugins(group)[name]}))


def metrics() -> list[dict[str, Any]]:
    """One line a metric: unit, direction, and why it is unavailable."""
    from sembench.registry import METRICS

    prepare_weights()
    return [
        {
            "name": name,
            "title": spec.title if spec else None,
            "unit": spec.unit if spec else None,
            "better": spec.better if spec else None,
            "package": _package(METRICS, name),
            "unavailable": reason or ("; ".join(spec.needs()) if spec else None) or None,
        }
        for name, spec, reason in _each(METRICS)
    ]


def metric_facts(name: str) -> dict[str, Any]:
    """What is said of a metric."""
    from sembench.registry import METRICS, plugin

    prepare_weights()
    spec = plugin(METRICS, name).load()
    needs = {
        "needs_reference": "a reference",
        "needs_degradation": "the parameters of the degradation",
        "needs_truth": "the true edges",
        "needs_pixel_size": "a pixel size",
        "needs_flat": "a flat field",
    }
    return {
        "name": name,
        "title": spec.title,
        "unit": spec.unit,
        "better": spec.better,
        "needs": [told for need, told in needs.items() if getattr(spec, need, False)],
        "version": spec.version,
        "tolerance": spec.tolerance,
        "package": _package(METRICS, name),
        "unavailable": "; ".join(spec.needs()) or None,
    }


def prepare_weights() -> list[str]:
    """Tell the metrics where their weights lie; returns why some cannot be had, without a download."""
    from sembench.execution.prepare import find_weights
    from sembench.metrics import perceptual

    weights, notices = find_weights(download=False)
    perceptual.use_weights(weights)
    return notices


def protocols() -> list[dict[str, Any]]:
    """One line a protocol: version, question, data set."""
    from sembench.errors import SembenchError
    from sembench.protocol import load
    from sembench.registry import PROTOCOLS, plugins

    rows: list[dict[str, Any]] = []
    for name in plugins(PROTOCOLS):
        row: dict[str, Any] = {"name": name, "version": None, "question": None, "data": None}
        row |= {"package": _package(PROTOCOLS, name), "unavailable": None}
        try:
            protocol = load(name)
        except SembenchError as error:
            rows.append(row | {"unavailable": str(error)})
            continue
        rows.append(row | {"version": protocol.version, "question": protocol.question, "data": protocol.data.set})
    return rows


def protocol_facts(target: str) -> dict[str, Any]:
    """What a protocol, by its name or TOML file, asks and does."""
    from sembench.protocol import load
    from sembench.registry import PROTOCOLS

    protocol = load(target)
    data, degradation, primary = protocol.data, protocol.degradation, protocol.metrics.primary
    return {
        "name": protocol.name,
        "version": protocol.version,
        "title": protocol.title,
        "question": protocol.question,
        "data": data.set,
        "fields": data.fields,
        "training data": data.training_set or data.set,
        "also": list(data.also or ()),
        "degradation": "real pairs" if data.pairs else degradation.name,
        "fixed": dict(degradation.fixed),
        "training degradation": protocol.training_degradation,
        "primary": primary,
        "metrics": list(protocol.metrics.names),
        "budget": protocol.budget,
        "seed": protocol.seed,
        "published": protocol.published,
        "digest": protocol.digest,
        "package": None if target.endswith(".toml") else _package(PROTOCOLS, target),
    }


def datasets() -> list[dict[str, Any]]:
    """One line a data set: files, megabytes, how many are missing here, licences."""
    from sembench.registry import DATASETS

    return [_dataset(name, target, reason) for name, target, reason in _each(DATASETS)]


def _dataset(name: str, target: Any, reason: str) -> dict[str, Any]:
    from sembench.datasets import cache
    from sembench.registry import DATASETS

    row: dict[str, Any] = {"name": name, "files": None, "MB": None, "missing": None, "licences": None}
    if target is not None:
        rows = target().rows
        row["files"] = len(rows)
        row["MB"] = round(sum(one.bytes for one in rows) / 1e6, 1)
        row["missing"] = len(cache.missing(target(), rows))
        row["licences"] = "; ".join(sorted({one.licence for one in rows}))
    return row | {"package": _package(DATASETS, name), "unavailable": reason or None}


def dataset_facts(name: str) -> dict[str, Any]:
    """What is said of a data set: what is listed, images a split, the digest of its manifest."""
    from collections import Counter

    from sembench.datasets.manifest import SPLITS
    from sembench.registry import DATASETS, plugin

    target = plugin(DATASETS, name).load()
    found = target()
    images = Counter({one.file: one.split for one in found.rows if one.role not in ("", "sidecar")}.values())
    return {
        **_dataset(name, target, ""),
        "splits": {split: images[split] for split in SPLITS if images[split]},
        "digest": found.digest,
    }
