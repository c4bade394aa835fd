"""What pretraining tells people: a listener meanwhile; log.csv, experts.csv, TensorBoard and pictures to read."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sembench.errors import WriteError
from sembench.micrograph import write, write_atomically

COLUMNS = (
    *("step", "images", "learning_rate", "loss", "mae", "kd", "balance", "fft", "psd", "kinship", "grad_norm"),
    *("validation", "validation_mae", "expert_least", "expert_most", "images_per_second", "waiting"),
)
EXPERT_COLUMNS = ("step", "layer", "expert", "share", "probability")
GAP = 4


class Listener(Protocol):
    """Who is told how training goes; only the first process tells."""

    def notice(self, text: str) -> None:
        """Something worth a line."""

    def step(self, step: int, steps: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        """A step is done; speed: images_per_second, seconds_left, and waiting, the share of time spent for data."""


class Journal:
    """The written record of one stage in one folder; going on from a step drops what was written after it."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _keep_until(folder / "log.csv", COLUMNS, step)
            _keep_until(folder / "experts.csv", EXPERT_COLUMNS, step)
        except OSError as error:
            raise WriteError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
        self.board = _board(folder / "tensorboard", step) if tensorboard else None

    def row(self, step: int, values: dict[str, float]) -> None:
        """Add one line to log.csv; what a stage or a step lacks stays empty. Floats are written in full."""
        _append(self.folder / "log.csv", [{"step": step, **values}], COLUMNS)
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def experts(self, step: int, shares: NDArray[np.float64], probabilities: NDArray[np.float64]) -> None:
        """Write the use of experts on validation: share of tokens and mean gate probability, (layers, K) each."""
        rows = [
            {"step": step, "layer": layer, "expert": k, "share": share, "probability": probabilities[layer, k]}
            for layer, line in enumerate(shares)
            for k, share in enumerate(line)
        ]
        _append(self.folder / "experts.csv", rows, EXPERT_COLUMNS)
        write_atomically(self.folder / "pictures" / "experts.png", _histogram(step, shares))

    def picture(self, step: int, columns: Sequence[Sequence[NDArray[np.float32]]]) -> None:
        """Write one PNG: a column an image, from above the image, what the model saw, what it drew; gray 0..255."""
        height, width = columns[0][0].shape
        rows, count = len(columns[0]), len(columns)
        sheet = np.full((rows * (height + GAP) - GAP, count * (width + GAP) - GAP), 255, np.float32)
        for x, column in enumerate(columns):
            for y, tile in enumerate(column):
                top, left = y * (height + GAP), x * (width + GAP)
                sheet[top : top + height, left : left + width] = np.clip(tile, 0, 255)
        write(self.folder / "pictures" / f"step-{step:08d}.png", sheet)
        if self.board:
            self.board.add_image("reconstruction", sheet[None] / 255, step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self.board:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer; None where the extra `train` is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _keep_until(path: Path, columns: Sequence[str], step: int) -> None:
    lines: list[dict[str, str]] = []
    if step and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if (line.get("step") or "").isdigit()]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(line for line in lines if int(line["step"]) <= step)
    write_atomically(path, text.getvalue().encode())


def _append(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerows(rows)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}); make room") from error


def _histogram(step: int, shares: NDArray[np.float64]) -> bytes:
    """Share of validation tokens of each expert: a faint bar a layer, the mean over layers as a line."""
    from matplotlib.figure import Figure

    layers, experts = shares.shape
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / layers
    for layer, line in enumerate(shares):
        x = np.arange(experts) - 0.4 + (layer + 0.5) * width
        axes.bar(x, line, width, color="#0072b2", alpha=0.35 + 0.65 * layer / max(1, layers - 1))
    axes.hlines(shares.mean(0), np.arange(experts) - 0.45, np.arange(experts) + 0.45, color="#d55e00")
    axes.axhline(1 / experts, color="#6b7480", linestyle=":", linewidth=1)
    axes.set_xlabel("expert (bars: layers from first to last; line: their mean; dotted: even use)")
    axes.set_ylabel("share of validation tokens")
    axes.set_title(f"step {step}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
