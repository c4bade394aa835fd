"""Draw how the states that ship were learnt: matched PSNR on the fixed validation patches against steps.

    python benchmarks/learning_curves.py DEGRADATION OUT.png

Prints, for each method, the best step and what the last fifth of its budget gained: who still climbs is not done.
The patches are the same for all methods; what is kept is the state of the lowest loss, which need not be that of the
highest PSNR.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESTORERS = Path(__file__).parents[1] / "restorers"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b7480", "#000000")
STYLES = ("-", "--")
"""Every other curve is dashed, so that one which lies on another does not hide it."""


def curves(degradation: str) -> dict[str, list[dict[str, Any]]]:
    """Method -> its learning curve, a dict a validation."""
    found = {}
    for path in sorted(RESTORERS.glob(f"**/states/*-{degradation}.json")):
        curve = json.loads(path.read_text(encoding="utf-8"))["report"]["curve"]
        if curve and "psnr_matched" in curve[0]:
            found[path.stem.removesuffix(f"-{degradation}")] = curve
    return found


def main(degradation: str, out: Path) -> int:
    """Draw the figure and print the table; 2 where no state ships."""
    found = curves(degradation)
    if not found:
        print(f"no state for {degradation!r} ships", file=sys.stderr)
        return 2
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    print("| method | steps | best step | psnr_matched there (dB) | gained in the last fifth (dB) |")
    print("|---|---|---|---|---|")
    ranked = sorted(found.items(), key=lambda item: -max(row["psnr_matched"] for row in item[1]))
    for index, (name, curve) in enumerate(ranked):
        style = STYLES[(index + index // len(COLOURS)) % len(STYLES)]
        steps, values = ([row[key] for row in curve] for key in ("step", "psnr_matched"))
        axes.plot(steps, values, style, color=COLOURS[index % len(COLOURS)], label=name, linewidth=1.5)
        best = max(range(len(values)), key=values.__getitem__)
        late = values[-1] - values[int(0.8 * len(values)) - 1]
        print(f"| {name} | {steps[-1]} | {steps[best]} | {values[best]:.2f} | {late:+.3f} |")
    axes.set_xlabel("step of 4 patches")
    axes.set_ylabel("matched PSNR on validation patches, dB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(out, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
