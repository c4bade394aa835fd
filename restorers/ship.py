"""Make the fitted states that ship and are not there yet: `python -m restorers.ship [NAME ...]`, one after another."""

import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from sembench.errors import InputError, SembenchError
from sembench.execution import adaptation, fits
from sembench.registry import RESTORERS, find_method, plugins, suggestion

PROTOCOLS = ("s2s", "s2r_broad")
"""What the states that ship are fitted for: the training images of the paper, degraded as `paper` and as `broad`."""

NOT_SHIPPED = {
    ("vit_mae_imagenet", "s2s"): "its 26 M trained parameters are 52 MB",
    ("vit_mae_imagenet", "s2r_broad"): "its 26 M trained parameters are 52 MB",
    ("semfm_l1_tv", "s2r_broad"): "semfm's files would come to more than 40 MB; on s2s it is the weakest variant",
}
"""What is fitted where it is used, and why."""


def learned() -> tuple[str, ...]:
    """The restorers of this package that learn."""
    own = [name for name, claims in plugins(RESTORERS).items() if claims[0].target.startswith("restorers.")]
    classes = {name: find_method(name).cls for name in own}
    return tuple(name for name, cls in classes.items() if cls.kind == "restorer" and cls.learns())


def ship(
    names: Sequence[str], report: adaptation.Reporter, *, folder: Path | None = None, budget: str = "standard"
) -> Iterator[fits.FittedState]:
    """Fit each method for each of PROTOCOLS, one at a time, and write its state and description where they ship.

    What is there or in the cache is not fitted again, and a fit that was interrupted goes on. folder: instead of the
    methods' own. Raises InputError for a name that is not one of `learned`.
    """
    for name in names:
        if name not in learned():
            raise InputError(f"{name!r} is no restorer of this package that learns: {suggestion(name, learned())}")
    for protocol in PROTOCOLS:
        for name in names:
            if (name, protocol) in NOT_SHIPPED:
                report(name, None, f"{name} for {protocol} does not ship: {NOT_SHIPPED[name, protocol]}")
                continue
            plan = adaptation.prepare(adaptation.AdaptRequest(name, protocol, budget=budget))
            yield adaptation.export(plan, adaptation.fit(plan, report), folder or _states(plan))


def _states(plan: fits.FitPlan) -> Path:
    return Path(str(resources.files(plan.method.cls.__module__.rpartition(".")[0]))) / "states"


if __name__ == "__main__":
    from rich.console import Console

    from sembench.commands.run import FitReporter

    try:
        for state in ship(sys.argv[1:] or learned(), FitReporter(Console(stderr=True, highlight=False))):
            print(f"{state.path}  {state.sha256}")
    except SembenchError as error:
        sys.exit(f"sembench: {error}")
