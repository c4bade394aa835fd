"""`sembench doctor`: versions, devices, folders, and what cannot run here and why."""

from typing import Annotated, Any

import typer


def doctor(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show versions, devices, caches, licences to mind, and what is unavailable with its mend."""
    import json

    from rich.console import Console
    from rich.table import Table

    found = examine()
    if json_:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    for title, entries in found.items():
        table = Table(title=title.replace("_", " "), title_justify="left", show_header=False)
        table.add_column("what")
        table.add_column("value", overflow="fold")
        for key, value in entries.items():
            table.add_row(key, str(value))
        if not entries:
            table.add_row("nothing", "")
        console.print(table)


def examine() -> dict[str, dict[str, Any]]:
    """Everything doctor prints, as plain values."""
    import os

    from sembench.commands import listing
    from sembench.datasets import cache
    from sembench.errors import SembenchError
    from sembench.execution.provenance import environment

    described = environment()
    libraries = described.pop("libraries")
    unavailable: dict[str, Any] = {}
    licences: dict[str, Any] = {}
    for row in listing.restorers():
        if row["unavailable"]:
            unavailable[f"restorer {row['name']}"] = row["unavailable"]
        if row["licence"] and "non-commercial" in row["licence"]:
            licences[f"restorer {row['name']}"] = row["licence"]
    for row in listing.metrics():
        if row["unavailable"]:
            unavailable[f"metric {row['name']}"] = row["unavailable"]
    licences["metric niqe"] = "pyiqa: PolyForm-Noncommercial-1.0.0"
    for row in listing.datasets():
        if row["unavailable"] or row["missing"]:
            missing = f"{row['missing']} of {row['files']} files are not here: sembench data fetch {row['name']}"
            unavailable[f"data {row['name']}"] = row["unavailable"] or missing
    try:
        folder = str(cache.data_folder() or "not set")
    except SembenchError as error:
        folder = str(error)
    return {
        "system": described | {"cores": os.cpu_count(), "devices": ", ".join(_devices())},
        "libraries": libraries,
        "folders": {"SEMBENCH_DATA": folder, "cache": str(cache.cache_folder())},
        "licences_to_mind": licences,
        "unavailable": unavailable,
    }


def _devices() -> list[str]:
    import torch

    names = ["cpu"]
    names += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names
