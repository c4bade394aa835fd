"""`sembench list`: what there is, and what of it cannot run here."""

from typing import Annotated, Any

import typer


def list_plugins(
    what: Annotated[
        str, typer.Argument(help="restorers, metrics, protocols, datasets, all, or a restorer's name for its settings.")
    ] = "all",
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List restorers, metrics, protocols and data sets, each with its licence or its question."""
    import json

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from sembench.errors import InputError
    from sembench.registry import RESTORERS, plugins, suggestion

    readers = {"restorers": restorers, "metrics": metrics, "protocols": protocols, "datasets": datasets}
    if what in plugins(RESTORERS):
        found = {what: settings_of(what)}
    elif what == "all" or what in readers:
        found = {name: read() for name, read in readers.items() if what in ("all", name)}
    else:
        raise InputError(f"unknown list {what!r}: {suggestion(what, [*readers, 'all', *plugins(RESTORERS)])}")
    if json_:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    for name, rows in found.items():
        columns = [key for key in (rows[0] if rows else ()) if any(row[key] not in (None, "") for row in rows)]
        if name == "restorers":
            columns.remove("settings")
        table = Table(title=name, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in columns:
            short = column in ("name", "kind", "version", "unit", "better", "files", "MB", "missing", "default")
            table.add_column(column, no_wrap=short, overflow="fold")
        for row in rows:
            table.add_row(*("" if row[key] is None else str(row[key]) for key in columns))
        console.print(table)
        if name == "restorers":
            console.print("settings of one: sembench list NAME", style="dim")


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
    """One line a restorer: kind, what it is, licence, settings, and why it is unavailable."""
    from sembench.errors import SembenchError
    from sembench.registry import RESTORERS, find_method, needs_of, plugins, resolve_settings

    rows = []
    for name in plugins(RESTORERS):
        row: dict[str, Any] = {"name": name, "kind": None, "what": None, "settings": None, "licence": None}
        try:
            method = find_method(name)
            row |= {"kind": method.cls.kind, "what": method.cls.summary(), "licence": method.cls.licence}
            settings = resolve_settings(method, None)
            row["settings"] = ", ".join(f"{key}={value}" for key, value in settings.model_dump().items())
            reason = "; ".join(needs_of(method, settings))
        except SembenchError as error:
            reason = str(error)
        rows.append(row | {"unavailable": reason or None})
    return rows


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
            "unavailable": reason or ("; ".join(spec.needs()) if spec else None) or None,
        }
        for name, spec, reason in _each(METRICS)
    ]


def prepare_weights() -> list[str]:
    """Tell the metrics where their weights lie; returns why some cannot be had, without a download."""
    from sembench.execution.run import find_weights
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
        try:
            protocol = load(name)
        except SembenchError as error:
            rows.append({"name": name, "version": None, "question": None, "data": None, "unavailable": str(error)})
            continue
        rows.append(
            {
                "name": name,
                "version": protocol.version,
                "question": protocol.question,
                "data": protocol.data.set,
                "unavailable": None,
            }
        )
    return rows


def datasets() -> list[dict[str, Any]]:
    """One line a data set: files, megabytes, how many are missing here, licences."""
    from sembench.datasets import cache
    from sembench.registry import DATASETS

    rows: list[dict[str, Any]] = []
    for name, target, reason in _each(DATASETS):
        if target is None:
            rows.append(
                {"name": name, "files": None, "MB": None, "missing": None, "licences": None, "unavailable": reason}
            )
            continue
        dataset = target()
        rows.append(
            {
                "name": name,
                "files": len(dataset.rows),
                "MB": round(sum(row.bytes for row in dataset.rows) / 1e6, 1),
                "missing": len(cache.missing(dataset, dataset.rows)),
                "licences": "; ".join(sorted({row.licence for row in dataset.rows})),
                "unavailable": None,
            }
        )
    return rows
