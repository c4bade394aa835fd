"""Print a run of s2s as a Markdown page, beside figures that were found by an independent implementation.

    python benchmarks/s2s_table.py RUN > docs/results-s2s.md

Exits with 1 where a mean over all 100 fields is further from the independent figure than its rounding and 0.01 dB
or 0.001 allow. The independent figures were found with plain numpy and scikit-image on the same 100 fields, seed 2604.
"""

import csv
import sys
from pathlib import Path

COLUMNS = ("psnr", "ssim", "psnr_matched", "ssim_matched")
TOLERANCE = {"psnr": 0.015, "ssim": 0.0015, "psnr_matched": 0.015, "ssim_matched": 0.0015}
INDEPENDENT = {
    "input": (18.39, 0.351, 20.72, 0.354),
    "affine": (20.11, 0.366, 20.72, 0.354),
    "gaussian": (18.55, 0.432, 21.18, 0.456),
    "gaussian_affine": (20.33, 0.445, 21.18, 0.456),
    "median": (18.52, 0.430, 21.14, 0.455),
    "richardson_lucy": (18.21, 0.425, None, None),
    "wiener": (13.80, 0.222, 16.97, 0.285),
    "ideal_wiener": (22.91, 0.510, 22.93, 0.511),
}
SHOWN = ("psnr", "ssim", "lpips", "psnr_matched", "ssim_matched", "lpips_matched", "niqe")
HEADER = {"psnr": "psnr (dB)", "psnr_matched": "psnr_matched (dB)"}


def cell(row: dict[str, str], metric: str) -> str:
    """Mean and interval of one metric as text."""
    if not row.get(f"{metric}_mean"):
        return "–"
    digits = 2 if metric.startswith(("psnr", "niqe")) else 3
    mean = f"{float(row[f'{metric}_mean']):.{digits}f}"
    if not row[f"{metric}_low"]:
        return mean
    return f"{mean} [{float(row[f'{metric}_low']):.{digits}f}, {float(row[f'{metric}_high']):.{digits}f}]"


def main(run: Path) -> int:
    """Print the page; 1 where a figure disagrees."""
    with (run / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print("# s2s, version 1: all 100 fields of semcorpus, 40 groups\n")
    print("Means and 95 % intervals (bootstrap-t over groups), in order of the primary metric, `psnr_matched`.")
    print("Overlapping intervals do not say that two methods cannot be told apart: that takes paired tests.")
    for kind, title in (("restorer", "Restorers"), ("control", "Controls (told the truth, not ranked)")):
        print(f"\n## {title}\n")
        print("| method | " + " | ".join(HEADER.get(name, name) for name in SHOWN) + " | failed |")
        print("|---|" + "---|" * (len(SHOWN) + 1))
        for row in rows:
            if row["kind"] == kind:
                cells = " | ".join(cell(row, name) for name in SHOWN)
                print(f"| {row['restorer']} | {cells} | {row['failed']} |")
    print("\n## Against independent figures\n")
    print("Ours less the figure of another implementation, rounded to 0.01 dB and 0.001.\n")
    print("| method | " + " | ".join(HEADER.get(name, name) for name in COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    wrong = 0
    for row in rows:
        if row["restorer"] not in INDEPENDENT:
            continue
        cells = []
        for metric, theirs in zip(COLUMNS, INDEPENDENT[row["restorer"]], strict=True):
            if theirs is None:
                cells.append("not given for all fields")
                continue
            difference = float(row[f"{metric}_mean"]) - theirs
            far = abs(difference) > TOLERANCE[metric]
            wrong += far
            cells.append(f"{difference:+.4f}" + (" **differs**" if far else ""))
        print(f"| {row['restorer']} | " + " | ".join(cells) + " |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
