"""Set the tables of arXiv 2604.05960 beside the rows of a leaderboard, as Markdown.

    python benchmarks/paper_comparison.py [LEADERBOARD] [--write docs/paper-comparison.md]

The paper's images are not public and ours are others, so changes against the degraded input are compared, not values.
Ours are means of the paired change with 95 % intervals over groups. `--write` puts each table between its markers
`<!-- table N -->` and `<!-- /table N -->`.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from sembench.execution.recorded import RecordedRun
from sembench.leaderboard.bundle import read_bundle
from sembench.leaderboard.rows import read_rows
from sembench.statistics import Interval, mean_interval

QUALITY = ("psnr", "ssim", "lpips", "niqe")
DIGITS = {"psnr": 1, "ssim": 2, "lpips": 2, "niqe": 1}
NAMES = {
    "input": "input",
    "Richardson-Lucy": "richardson_lucy",
    "Wiener": "wiener",
    "BM3D": "bm3d",
    "Noise2Void": "noise2void",
    "Noise2Noise": "noise2noise",
    "MRN": "mrn",
    "ViT-MAE (ImageNet)": "vit_mae_imagenet",
    "ViT-MAE (SEM)": "vit_mae_sem",
    "MAE+MoE zero shot": "semfm_zero_shot",
    "MAE+MoE": "semfm",
    "MAE+MoE (l1)": "semfm",
    "MAE+MoE (l1+TV)": "semfm_l1_tv",
}
"""The paper's names, and ours for the same idea."""

BESIDE = ("semfm_plain", "semfm_l1_tv")
"""Ours without a line in the paper's Tables 2 and 3: its adaptation to the letter, and with its other loss."""

TABLE_2 = {
    "input": (18.3, 0.31, 0.57, 11.8),
    "Richardson-Lucy": (15.9, 0.51, 0.76, 10.9),
    "Wiener": (14.5, 0.30, 0.83, 19.7),
    "BM3D": (18.7, 0.44, 0.51, 14.4),
    "Noise2Void": (18.9, 0.55, 0.56, 9.4),
    "Noise2Noise": (18.8, 0.55, 0.60, 9.6),
    "MRN": (19.9, 0.49, 0.62, 10.5),
    "ViT-MAE (ImageNet)": (12.5, 0.17, 0.50, 13.7),
    "MAE+MoE zero shot": (18.3, 0.50, 0.52, 5.3),
    "MAE+MoE": (20.2, 0.57, 0.50, 5.3),
}
TABLE_3 = {
    "input": (17.7, 0.62, 0.35, 7.9),
    "Richardson-Lucy": (15.8, 0.53, 0.37, 11.2),
    "Wiener": (11.9, 0.23, 0.54, 11.3),
    "BM3D": (17.8, 0.63, 0.34, 8.2),
    "Noise2Void": (17.4, 0.47, 0.34, 10.0),
    "Noise2Noise": (17.2, 0.46, 0.34, 11.1),
    "MRN": (22.8, 0.70, 0.35, 9.9),
    "ViT-MAE (SEM)": (17.7, 0.64, 0.34, 5.3),
    "MAE+MoE": (22.6, 0.70, 0.32, 9.9),
}
FOCUSED = ((16.3, 9.7), (0.4, 0.6), (4.2, 2.2), (3.3, 1.6), (4.2, 2.2))
"""Table 4, focused: CD, CD std, LWR, LER, PSD of images 1 and 2."""

TABLE_4 = {
    "input": (((16.9, 10.4), (1.4, 0.7), (6.4, 2.5), (4.6, 1.9), (6.5, 2.5)), 0.65, 0.91),
    "Richardson-Lucy": (((17.4, 10.7), (1.4, 0.8), (4.3, 1.4), (3.0, 1.1), (4.4, 1.4)), 1.05, 0.60),
    "Wiener": (None, None, None),
    "BM3D": (((17.1, 10.2), (1.6, 0.7), (4.8, 2.3), (3.4, 1.7), (5.1, 2.3)), 0.65, 0.50),
    "Noise2Noise": (((17.8, 10.6), (1.6, 0.8), (4.4, 1.4), (3.1, 1.1), (4.7, 1.4)), 1.30, 0.70),
    "Noise2Void": (((17.8, 10.8), (1.6, 0.8), (4.4, 1.4), (3.0, 1.1), (4.6, 1.4)), 1.30, 0.70),
    "MRN": (((19.7, 11.7), (1.4, 0.6), (4.0, 1.4), (2.9, 1.1), (4.1, 1.4)), 2.70, 0.92),
    "ViT-MAE (ImageNet)": (None, None, None),
    "ViT-MAE (SEM)": (((17.0, 10.1), (1.6, 0.6), (5.7, 2.0), (4.0, 1.5), (5.8, 2.0)), 0.55, 0.66),
    "MAE+MoE (l1)": (((16.1, 9.7), (1.5, 0.8), (5.4, 2.0), (3.9, 1.6), (5.7, 2.0)), 0.10, 0.52),
    "MAE+MoE (l1+TV)": (((16.7, 9.4), (1.7, 0.8), (4.1, 1.3), (3.0, 1.0), (4.5, 1.3)), 0.35, 0.53),
}
TABLE_1 = {
    "ViT-MAE Large": ("vit_mae_sem", 0.0643, 2.9303, 1462.4),
    "ViT-MAE Large + MoE": ("semfm", 0.1014, 2.5721, 2027.6),
}
CLUSTERING = ("silhouette", "davies_bouldin", "calinski_harabasz", "nmi", "ari")


class Table:
    """The rows of one published table, by restorer; a variant by its label's words."""

    def __init__(self, leaderboard: Path, name: str) -> None:
        self.runs: dict[str, RecordedRun] = {}
        for row in read_rows(leaderboard / f"{name}.csv"):
            told = ", ".join(f"{key}={value}" for key, value in row.variant.items())
            self.runs[f"{row.restorer} ({told})" if told else row.restorer] = read_bundle(leaderboard / row.bundle)

    def values(self, name: str, metric: str, chosen: str = "") -> dict[str, float]:
        """Case -> value, of cases whose id starts as told; empty where the restorer is not there."""
        if name not in self.runs:
            return {}
        found = ((r["case"], r["metrics"].get(metric)) for r in self.runs[name].records if r["status"] == "ok")
        return {case: value for case, value in found if value is not None and case.startswith(chosen)}

    def mean(self, name: str, metric: str, chosen: str = "") -> Interval:
        """Mean over cases and its interval over groups."""
        values = self.values(name, metric, chosen)
        return mean_interval(list(values.values()), [self.groups(name)[case] for case in values])

    def change(self, name: str, metric: str) -> Interval | None:
        """Mean of the paired change against the input, over the cases that both solved; None where there are none."""
        own, base = self.values(name, metric), self.values("input", metric)
        shared = sorted(own.keys() & base.keys())
        if not shared:
            return None
        return mean_interval([own[case] - base[case] for case in shared], [self.groups(name)[case] for case in shared])

    def groups(self, name: str) -> dict[str, str]:
        """Case -> group."""
        return {record["case"]: record["group"] for record in self.runs[name].records}


def sign(theirs: float, ours: Interval) -> str:
    """= or ≠ as both go the same way or not; empty where theirs is none or ours is not established."""
    if ours.low is None or ours.high is None or ours.low <= 0 <= ours.high or abs(theirs) < 1e-9:
        return ""
    return "=" if (theirs > 0) == (ours.mean > 0) else "≠"


def quality(table: Table, told: Mapping[str, Sequence[float]]) -> str:
    """Tables 2 and 3: each metric's change against the input, theirs and ours, and whether they go the same way."""
    heads = ["method", *(text for metric in QUALITY for text in (f"{metric}, paper", f"{metric}, ours"))]
    lines = []
    marks: dict[str, list[str]] = {metric: [] for metric in QUALITY}
    pairs: dict[str, list[tuple[float, float]]] = {metric: [] for metric in QUALITY}
    rows = [(name, NAMES[name]) for name in told] + [("", name) for name in BESIDE if name in table.runs]
    for theirs, ours in rows:
        if ours not in table.runs:
            lines.append([f"{theirs}, not run here", *("" for _ in heads[1:])])
            continue
        cells = [f"{theirs} ({ours})" if theirs and theirs != ours else theirs or ours]
        for number, metric in enumerate(QUALITY):
            digits = DIGITS[metric]
            if theirs == "input":
                cells += [f"{told[theirs][number]:.{digits}f}", f"{table.mean('input', metric).mean:.{digits}f}"]
                continue
            own = table.change(ours, metric)
            cells.append("")
            if theirs:
                change = told[theirs][number] - told["input"][number]
                cells[-1] = f"{change:+.{digits}f}"
            if own is None:
                cells.append("–")
                continue
            shown = f"{own.mean:+.{digits}f}"
            if theirs:
                marks[metric].append(sign(change, own))
                pairs[metric].append((told[theirs][number], table.mean(ours, metric).mean))
                shown += f" {marks[metric][-1]}".rstrip()
            cells.append(shown)
        lines.append(cells)
    same = ["same way", *(text for metric in QUALITY for text in ("", _of(marks[metric])))]
    order = ["order (Spearman)", *(text for metric in QUALITY for text in ("", f"{_rho(pairs[metric]):+.2f}"))]
    return _markdown(heads, [*lines, same, order])


def _of(marks: Sequence[str]) -> str:
    return f"{marks.count('=')} of {len(marks) - marks.count('')}"


def _rho(pairs: Sequence[tuple[float, float]]) -> float:
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def metrology(table: Table) -> str:
    """Table 4: CD(MAE) and Avg(MAE) as printed, from its own entries, and ours."""
    heads = ["method", "CD(MAE), paper", "from its entries", "Avg(MAE), paper", "from its entries"]
    heads += ["cd_error (px)", "avg_error (px)", "not measured", "R01 to R06: cd_error (nm)", "avg_error (nm)"]
    lines = []
    for theirs, (entries, cd, avg) in TABLE_4.items():
        ours = NAMES[theirs]
        cells = [f"{theirs} ({ours})" if theirs != ours else theirs]
        if entries is None:
            cells += ["✗"] * 4
        else:
            errors = [
                abs(own - focused)
                for pair, true in zip(entries, FOCUSED, strict=True)
                for own, focused in zip(pair, true, strict=True)
            ]
            cells += [f"{cd:.2f}", f"{sum(errors[:2]) / 2:.2f}", f"{avg:.2f}", f"{sum(errors) / 10:.2f}"]
        lines.append([*cells, *_measured(table, ours)])
    lines += [[f"({name})", *[""] * 4, *_measured(table, name)] for name in ("semfm_plain", "tv", "median", "unet")]
    return _markdown(heads, lines)


def _measured(table: Table, name: str) -> list[str]:
    if name not in table.runs:
        return ["not run here", "", "", "", ""]
    failed = len(table.groups(name)) - len(table.values(name, "cd_error"))
    cells = [_interval(table, name, metric) for metric in ("cd_error", "avg_error")]
    cells.append(str(failed) if failed else "")
    return [*cells, *(_interval(table, name, metric, "R") for metric in ("cd_error_nm", "avg_error_nm"))]


def _interval(table: Table, name: str, metric: str, chosen: str = "") -> str:
    if not table.values(name, metric, chosen):
        return "✗"
    found = table.mean(name, metric, chosen)
    return f"{found.mean:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None else "")


def clustering(table: Table) -> str:
    """Table 1, and ours beside it."""
    heads = ["encoder", *(f"{name}{who}" for name in CLUSTERING[:3] for who in (", paper", ", ours")), "nmi", "ari"]
    lines = []
    for theirs, (ours, *told) in TABLE_1.items():
        own = [table.mean(ours, metric).mean for metric in CLUSTERING]
        cells = [text for a, b in zip(told, own, strict=False) for text in (f"{a:.4g}", f"{b:.3g}")]
        lines.append([f"{theirs} ({ours})", *cells, *(f"{value:.3f}" for value in own[3:])])
    own = [table.mean("semfm (encoder=random)", metric).mean for metric in CLUSTERING]
    cells = [text for value in own[:3] for text in ("", f"{value:.3g}")]
    lines.append(["(an encoder that saw no image)", *cells, *(f"{value:.3f}" for value in own[3:])])
    return _markdown(heads, lines)


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *lines))


TABLES: dict[str, tuple[str, Callable[[Table], str]]] = {
    "1": ("clustering-v1", clustering),
    "2": ("s2s-v1", lambda table: quality(table, TABLE_2)),
    "3": ("s2r-v1", lambda table: quality(table, TABLE_3)),
    "3 broad": ("s2r_broad-v1", lambda table: quality(table, TABLE_3)),
    "4": ("metrology-v1", metrology),
}


def main() -> None:
    """Print all tables, or put them between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("leaderboard", type=Path, nargs="?", default=Path("leaderboard"))
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    made = {
        number: make(Table(asked.leaderboard, name))
        for number, (name, make) in TABLES.items()
        if (asked.leaderboard / f"{name}.csv").is_file()
    }
    if asked.write is None:
        print("\n\n".join(f"Table {number}\n\n{text}" for number, text in made.items()))
        return
    page = asked.write.read_text(encoding="utf-8")
    for number, text in made.items():
        page, found = re.subn(
            rf"(<!-- table {number} -->\n).*?(<!-- /table {number} -->)",
            lambda match, text=text: f"{match[1]}{text}\n{match[2]}",
            page,
            flags=re.DOTALL,
        )
        if found != 1:
            parser.error(f"{asked.write}: needs one pair of markers of table {number}")
    asked.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
