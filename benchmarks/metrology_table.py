"""Print a run of the protocol metrology as a Markdown page, all cases together and by what was done to them.

Restorers that have not been run on all cases are left out.

python benchmarks/metrology_table.py RUN > docs/results-metrology.md
"""

import csv
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sembench.statistics import mean_interval

Row = dict[str, str]
HEAD = """# metrology, version 1: what restorations do to a measurement of lines

Means and 95 % intervals over groups, px unless nm is said, lower is better; n✗: cases refused by the measurement, which
are in no mean, so that a method with crosses is judged on easier cases. `cd_error` averaged is CD(MAE), `avg_error`
Avg(MAE) of arXiv 2604.05960, Table 4. `oracle`, `ideal_wiener` and `gaussian_affine` are controls;
the last measures as `gaussian` does, as no measurement depends on gain and offset. Learned methods restore by their
`broad` states. Letters and ranks: [leaderboard](../leaderboard/index.html). bm3d is not in it yet: 85 s an image.

- **CD needs no restoration.** Nobody is established closer to the reference than the raw image; median and nafnet are
  established farther. noise2noise, semfm and nafnet shift CD on average while PSNR rose (mark *CD biased*): by 0.04,
  0.05 and 0.19 px.
- **Nor does roughness, once its noise is taken out**: read off the raw image that way (`input`, `lwr_unbiased_error`)
  it is closer than any restored image gets. Read off as it stands, noise2noise errs least (LWR 0.20 px, the raw image
  1.9), then unet and tv.
- **What restorations gain is edge placement**: where each single edge is. noise2noise, semfm_no_encoder, semfm and
  vit_mae_sem are at 0.39 to 0.41 px, the raw image at 0.98, the linear limit (`ideal_wiener`) at 0.35.
- The paper's adaptation to the letter (semfm_plain), zero shot, Richardson-Lucy and Wiener leave 15 to 52 of 66 images
  in a state that the measurement refuses.

![Edges found in one phantom scene, degraded, restored four ways, and focused](metrology-lines.png)

*Scene M001 as `sembench run --protocol metrology --data phantom` draws it; below, spectra of its line widths.*

![Spectra of the line widths in each image](metrology-psd.png)"""
COLUMNS = (
    "cd_error", "cd_std_error", "lwr_error", "ler_error", "psd_error", "avg_error", "lwr_unbiased_error",
    "edge_placement_error", "psd_log_distance",
)  # fmt: skip
SUBSETS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("All 66 cases", lambda case: True),
    ("M001 to M024: white noise", lambda case: "M001" <= case <= "M024"),
    ("M025 to M048: noise correlated along x as in a fast scan", lambda case: "M025" <= case <= "M048"),
    ("M049 to M060: bright rims, measured as if there were none", lambda case: "M049" <= case <= "M060"),
    ("R01 to R06: real EUV lines, in nm", lambda case: case.startswith("R")),
)


def cell(rows: Sequence[Row], metric: str) -> str:
    """Mean and half width of the interval of one metric, and how many cases could not be measured."""
    valued = [row for row in rows if row[metric]]
    crosses = f" {len(rows) - len(valued)}✗" if len(valued) < len(rows) else ""
    if not valued:
        return crosses.strip()
    interval = mean_interval([float(row[metric]) for row in valued], [row["group"] for row in valued])
    text = f"{interval.mean:.3f}"
    if interval.low is not None and interval.high is not None:
        text += f" [{interval.low:.3f}, {interval.high:.3f}]"
    return text + crosses


def table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """One Markdown table, a line a restorer, by the mean of the first column; those with crosses there come last."""
    names = list(dict.fromkeys(row["restorer"] for row in rows))
    by_name = {name: [row for row in rows if row["restorer"] == name] for name in names}

    def place(name: str) -> tuple[int, float]:
        values = [float(row[columns[0]]) for row in by_name[name] if row[columns[0]]]
        return len(by_name[name]) - len(values), sum(values) / max(1, len(values))

    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in sorted(names, key=place):
        lines.append(f"| {name} | " + " | ".join(cell(by_name[name], column) for column in columns) + " |")
    return lines


def main(run: Path) -> None:
    """Print the page."""
    with (run / "cases.csv").open(newline="", encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    counts = Counter(row["restorer"] for row in every)
    rows = [row for row in every if counts[row["restorer"]] == max(counts.values())]
    print(HEAD)
    for title, belongs in SUBSETS:
        chosen = [row for row in rows if belongs(row["case"])]
        nm = title.startswith("R01")
        columns = [f"{name}_nm" if nm and name != "psd_log_distance" else name for name in COLUMNS]
        print(f"\n## {title}\n")
        print("\n".join(table(chosen, columns)))
    truth = [name for name in (f"{column}_truth" for column in COLUMNS) if name in rows[0]]
    print("\n## The 60 phantom scenes against the true edges\n")
    print("\n".join(table([row for row in rows if row["case"].startswith("M")], truth)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
