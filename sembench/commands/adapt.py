"""`sembench adapt`: fit a restorer that learns, on a protocol's images or on a user's own, and keep its state."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def adapt(
    restorer: Annotated[str, typer.Argument(help="A restorer that learns: its name, or FILE.py:Class.")],
    protocol: Annotated[str, typer.Option(help="Protocol whose training images and degradation are used.")] = "s2s",
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Instead: a folder of focused images (real_pairs: of input/ and reference/), or `phantom`.",
            show_default="the protocol's",
        ),
    ] = None,
    degradation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="paper or broad.", show_default="the protocol's; of a folder: broad"),
    ] = None,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="quick, standard, long, or 10min.", show_default="the protocol's"),
    ] = None,
    pairs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, help="How many real pairs it is fine-tuned on (real_pairs).", show_default="the protocol's"
        ),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A setting of the restorer; may be given again.", metavar="KEY=VALUE"),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder for <restorer>-<degradation>[-pairs<N>].safetensors and its .json.", show_default="the cache"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda or cuda:N.")] = "cpu",
    crop_bottom: Annotated[
        str, typer.Option(help="Data bar of a folder's images: auto, 0, rows or a fraction.")
    ] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Fit again, whatever the cache holds.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the fit's description as JSON.")] = False,
) -> None:
    """Fit a restorer; the same command again finds the state in the cache, or goes on where it stopped."""
    import json

    from rich.console import Console

    from sembench.commands.run import FitReporter
    from sembench.execution import adaptation

    request = adaptation.AdaptRequest(
        restorer, protocol, data, degradation, budget, tuple(set_ or ()), device, crop_bottom, fresh, pairs
    )
    notes = Console(stderr=True, highlight=False)
    reporter = FitReporter(notes)
    plan = adaptation.prepare(request)
    fitted = adaptation.fit(plan, reporter, fresh=fresh)
    if out is not None:
        fitted = adaptation.export(plan, fitted, out)
    told = {"restorer": plan.method.name, "state": str(fitted.path), "sha256": fitted.sha256, "source": fitted.source}
    told |= {key: value for key, value in plan.identity.items() if key in ("degradation", "budget", "seed", "settings")}
    report = {key: value for key, value in fitted.report.items() if key != "curve"}
    if json_:
        typer.echo(json.dumps({**told, "report": report}, indent=2))
        return
    for key, value in (told | report).items():
        typer.echo(f"{key}: {value}")
    typer.echo(f"use it: sembench restore IMAGE --restorer {plan.method.name} --state {fitted.path} -o OUT.tif")
