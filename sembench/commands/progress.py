"""Progress of a command on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_A_LINE = 10.0


class Progress:
    """How many of how many things are done, and how fast, of one step after another; use it as a context."""

    def __init__(self, notes: "Console", waiting: str) -> None:
        self.notes, self.waiting = notes, waiting

    def __enter__(self) -> Self:
        import time

        self.started = self.reported = time.monotonic()
        self.bar = None
        if self.notes.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self.notes, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.waiting, total=None, rate="")
        return self

    def begin(self, what: str, total: int) -> None:
        """A step of so many things begins; its rate is its own."""
        import time

        self.started = time.monotonic()
        if self.bar:
            self.bar.reset(self.task, total=total, description=what, rate="")

    def show(self, what: str, done: int, total: int, failed: int = 0) -> None:
        """So many things of the step are done, one at least; what: the last of them, or the step."""
        import time

        now = time.monotonic()
        rate = done / max(now - self.started, 1e-9)
        text = rate_text(rate) + (f", {failed} failed" if failed else "")
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, description=what, rate=text)
        elif now - self.reported > SECONDS_A_LINE:
            self.reported = now
            left = (total - done) / rate
            line = f"{done} of {total} ({text}, about {left:.0f} s left): {what}"
            self.notes.print(line, soft_wrap=True, markup=False)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()


def rate_text(rate: float) -> str:
    """Cases a second or, where that is less than one, seconds a case.

    >>> rate_text(3.14), rate_text(0.2), rate_text(0.02)
    ('3.1/s', '5.0 s/case', '50 s/case')
    """
    if rate >= 1:
        return f"{rate:.1f}/s"
    seconds = 1 / rate
    return f"{seconds:.1f} s/case" if seconds < 10 else f"{seconds:.0f} s/case"
