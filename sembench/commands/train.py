"""`sembench train`: pretrain the model that a restorer brings along."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

REPORT_SECONDS = 10


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A restorer that can be pretrained: semfm.")],
    recipe: Annotated[
        Path,
        typer.Option(
            help="TOML file of settings, or the name of a shipped one: shipped, restoring, restoring-gpu, paper."
        ),
    ],
    stage: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            max=3,
            help="1 masked autoencoder, 2 gates of experts, 3 everything.",
            show_default="all of the recipe, one after the other",
        ),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A set with pretraining splits, or a folder of images.", show_default="the recipe's"),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of all stages.", show_default="runs/<method>-<recipe>"),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Stop with a checkpoint after N minutes; the same command goes on.", show_default="none"),
    ] = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu or cuda.", show_default="a GPU where there is one"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the checkpoint in the folder, or start over.")
    ] = True,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Threads of this process.", show_default="its share of the cores"),
    ] = None,
) -> None:
    """Pretrain a model; the same command goes on where it stopped, and works under torchrun."""
    import os

    from rich.console import Console
    from rich.markup import escape

    from sembench.errors import InputError, SembenchError
    from sembench.registry import find_method

    pretrain = getattr(find_method(method).cls, "pretrain", None)
    if pretrain is None:
        raise InputError(f"restorer {method!r} cannot be pretrained: it has no pretrain; semfm has")
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes is {minutes:g}: give a number above 0")
    notes = Console(stderr=True, highlight=False)
    try:
        with _Progress(notes, f"stage {stage}" if stage else recipe.stem) as listener:
            written = pretrain(
                stage=stage,
                config=recipe,
                data=data,
                out=out,
                minutes=minutes,
                device=device,
                threads=threads,
                fresh=not resume,
                listener=listener,
            )
    except SembenchError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        raise typer.Exit(error.exit_code) from None
    if os.environ.get("RANK", "0") == "0":
        notes.print(f"written: {escape(str(written))}", soft_wrap=True)


class _Progress:
    """Progress of training: a bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, notes: "Console", title: str) -> None:
        self.notes, self.title = notes, title

    def __enter__(self) -> "_Progress":
        import time

        self.reported = time.monotonic()
        self.bar = None
        if self.notes.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
                console=self.notes, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=None, facts="reading images")
        return self

    def notice(self, text: str) -> None:
        self.notes.print(text, soft_wrap=True, markup=False)

    def step(self, step: int, steps: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        import time

        left = speed["seconds_left"]
        facts = f"loss {losses['loss']:.4f}, {speed['images_per_second']:.1f} images/s, {_duration(left)} left"
        if self.bar:
            self.bar.update(self.task, completed=step, total=steps, facts=facts)
        elif time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            waiting = f"{100 * speed['waiting']:.0f} % waiting for data"
            self.notes.print(f"{self.title}: {step} of {steps} ({facts}, {waiting})", soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()


def _duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole:02} s"
