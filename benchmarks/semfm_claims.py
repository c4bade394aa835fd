"""Print every row of a run of s2s, and what semfm gains over it, controls included, with 95 % intervals.

    python benchmarks/semfm_claims.py RUN

Differences are semfm less the other, over the cases that both solved. A gain counts where the interval, bootstrap-t
over groups, excludes zero. Exits with 1 where semfm does not beat one of `BEATEN` on PSNR, SSIM and their matched kin,
or is established worse than blind_wiener on a matched metric, or is not better than it on LPIPS.
"""

import sys
from pathlib import Path
from typing import Any

from sembench.comparison import row_labels
from sembench.execution.recorded import read_run
from sembench.statistics import mean_interval

METRICS = ("psnr", "ssim", "lpips", "psnr_matched", "ssim_matched", "lpips_matched")
LOWER_IS_BETTER = ("lpips", "lpips_matched")
BEATEN = (
    *("input", "affine", "gaussian_affine", "bm3d", "richardson_lucy", "wiener", "semfm_plain", "semfm_zero_shot"),
)
FIDELITY = ("psnr", "ssim", "psnr_matched", "ssim_matched")


def verdict(low: float, high: float, metric: str) -> str:
    """better, worse or open, as the interval of (semfm less the other) has it."""
    if low <= 0 <= high:
        return "open"
    return "better" if (low > 0) != (metric in LOWER_IS_BETTER) else "worse"


def mean_of(cases: dict[str, dict[str, Any]], metric: str) -> float:
    """Mean over cases."""
    return sum(float(one[metric]) for one in cases.values()) / len(cases)


def main(folder: Path) -> int:
    """Print the table and what of the claims does not hold."""
    run = read_run(folder)
    labels = row_labels(run.rows)
    values: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in labels.values()}
    groups = {}
    for record in run.records:
        if record["status"] == "ok":
            values[labels[record["row"]]][record["case"]] = record["metrics"]
            groups[record["case"]] = record["group"]
    ours = next(
        label for label in values if label == "semfm" or (label.startswith("semfm (") and "physics=True" in label)
    )
    print("| row | cases | " + " | ".join(METRICS) + " |\n|---|---|" + "---|" * len(METRICS))
    for label, cases in sorted(values.items(), key=lambda item: -mean_of(item[1], "psnr_matched")):
        cells = []
        for metric in METRICS:
            found = mean_interval([one[metric] for one in cases.values()], [groups[case] for case in cases])
            digits = 2 if metric.startswith("psnr") else 3
            between = f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if found.low is not None else ""
            cells.append(f"{found.mean:.{digits}f}{between}")
        print(f"| {label} | {len(cases)} | " + " | ".join(cells) + " |")
    print(f"\n{ours} less each other, mean and 95 % interval of the paired difference\n")
    print("| against | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    verdicts: dict[str, dict[str, str]] = {}
    for label, cases in values.items():
        shared = sorted(cases.keys() & values[ours].keys())
        if label == ours or not shared:
            continue
        cells = []
        verdicts[label] = {}
        for metric in METRICS:
            gains = [values[ours][case][metric] - cases[case][metric] for case in shared]
            found = mean_interval(gains, [groups[case] for case in shared])
            if found.low is None or found.high is None:
                cells.append(f"{found.mean:+.4f}")
                continue
            verdicts[label][metric] = verdict(found.low, found.high, metric)
            digits = 2 if metric.startswith("psnr") else 4
            between = f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
            cells.append(f"{found.mean:+.{digits}f} {between} {verdicts[label][metric]}")
        print(f"| {label} | " + " | ".join(cells) + " |")
    missed = [
        f"not better than {name} on {metric}"
        for name in BEATEN
        for metric in FIDELITY
        if verdicts.get(name, {}).get(metric) != "better"
    ]
    told = verdicts.get("blind_wiener", {})
    missed += [f"worse than blind_wiener on {name}" for name in FIDELITY[2:] if told.get(name, "worse") == "worse"]
    missed += [f"not better than blind_wiener on {name}" for name in LOWER_IS_BETTER if told.get(name) != "better"]
    print("\n" + ("\n".join(missed) if missed else "all claims hold"))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
