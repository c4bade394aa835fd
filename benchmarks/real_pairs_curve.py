"""How many real pairs a learned method needs: fine-tuned on none, 1, 2, 5 and 8 of them; a Markdown page, a figure.

    python benchmarks/real_pairs_curve.py [RESTORER] [--data phantom] [--budget B] [--limit N] [--device D] [--out RUN]

RESTORER is semfm where none is given; a folder of its own under runs/ unless --out says otherwise. The state that all
numbers of pairs start from is the method's `broad` state, found in the cache or made first; the same command goes on
where it stopped. The page is printed, the figure is RUN/figures/curve-RESTORER.png.
"""

import argparse
import sys
from pathlib import Path

from sembench import figures
from sembench.execution.prepare import prepare
from sembench.execution.records import Record
from sembench.execution.request import RunPlan, RunRequest
from sembench.execution.run import execute
from sembench.registry import METRICS, plugin
from sembench.restorer import FitProgress
from sembench.results import summarise
from sembench.statistics import Interval, mean_interval

PAIRS = (0, 1, 2, 5, 8)
BASELINES = ("input", "median", "tv")
SHOWN = ("psnr_matched", "ssim_matched", "lpips_matched")


def told(name: str, progress: FitProgress | None, notice: str) -> None:
    """Notices, and a line at each validation, on stderr."""
    if progress is None:
        print(notice or f"fitting {name}", file=sys.stderr)
    elif progress.validation is not None:
        print(f"{name}: step {progress.step}, validation {progress.validation:.5f}", file=sys.stderr)


def run(request: RunRequest) -> tuple[RunPlan, list[Record]]:
    """Do what is missing of a request; its plan and records."""
    plan = prepare(request)
    return plan, execute(plan, request, None, told)


def values(records: list[Record], metric: str) -> dict[str, tuple[float, str]]:
    """Value and group of each case that has one."""
    return {
        record["case"]: (record["metrics"][metric], record["group"])
        for record in records
        if record["status"] == "ok" and record["metrics"].get(metric) is not None
    }


def gained(records: list[Record], before: list[Record], metric: str) -> Interval | None:
    """Mean and interval of the differences on the cases that both solved."""
    first, second = values(before, metric), values(records, metric)
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    return mean_interval([second[case][0] - first[case][0] for case in both], [first[case][1] for case in both])


def cell(found: Interval | None, digits: int, sign: str = "") -> str:
    """Mean and interval as text."""
    if found is None:
        return "–"
    text = f"{found.mean:{sign}.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def main() -> int:
    """Print the page and draw the figure; 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("restorer", nargs="?", default="semfm")
    parser.add_argument("--data")
    parser.add_argument("--budget")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--protocol", default="real_pairs")
    parser.add_argument("--out", type=Path)
    given = vars(parser.parse_args())
    restorer = given.pop("restorer")
    baselines, records = run(RunRequest(restorers=BASELINES, **given))
    metrics = [name for name in SHOWN if name in baselines.metrics] or [baselines.metrics[0]]
    lines = summarise(baselines.rows, records, metrics)
    failed = sum(line.failed for line in lines)
    protocol = f"{baselines.protocol.name}, version {baselines.protocol.version}"
    print(f"# {restorer} fine-tuned on real pairs: {protocol}, {baselines.cases.data}, {lines[0].solved} cases\n")
    print("Means and 95 % intervals over groups; gained: paired differences to the state before fine-tuning.")
    print("Two further pairs, the same for every number, selected the states.\n")
    print(f"| pairs | {' | '.join(metrics)} | {metrics[0]} gained |\n|---|{'---|' * (len(metrics) + 1)}")
    rows, first = [], list[Record]()
    for pairs in PAIRS:
        plan, records = run(RunRequest(restorers=(restorer,), pairs=pairs, **given))
        first = records if pairs == 0 else first
        (line,) = summarise(plan.rows, records, metrics)
        failed += line.failed
        cells = [cell(line.metrics[name], 2 if "psnr" in name else 3) for name in metrics]
        gain = "" if pairs == 0 else cell(gained(records, first, metrics[0]), 2, "+")
        print(f"| {pairs or 'none'} | {' | '.join(cells)} | {gain} |", flush=True)
        found = line.metrics[metrics[0]]
        if found is not None:
            rows.append((f"{pairs or 'no'} pair{'' if pairs == 1 else 's'}", found.mean, found.low, found.high))
    references = {}
    for line in lines:
        print(f"| {line.row.name} | {' | '.join(cell(line.metrics[n], 2 if 'psnr' in n else 3) for n in metrics)} | |")
        found = line.metrics[metrics[0]]
        if found is not None:
            references[line.row.name] = found.mean
    if rows:
        path = baselines.folder / "figures" / f"curve-{restorer.rpartition(':')[2]}.png"
        title = f"{restorer.rpartition(':')[2]} on {baselines.cases.data}: fine-tuned on so many real pairs"
        metric = plugin(METRICS, metrics[0]).load()
        figures.intervals(path, title, f"{metric.title} ({metric.unit})".removesuffix(" ()"), rows, references)
        print(f"figure: {path}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
