"""How far a learned method's scores move when nothing but the seed of its fit changes, from rows of one run.

    sembench run --protocol s2s --restorer semfm,unet,nafnet,noise2noise --set seed=1 --out RUN   (then seed=2)
    python benchmarks/seed_spread.py RUN [RUN ...] [--write docs/seed-spread.md]

Takes every method that has rows of its present version with default settings and the standard budget for two seeds at
least; the cases must be the same. The seed draws patches, degradations and first weights. What is told is apart from
the intervals over groups of images, which say nothing of it.
"""

import argparse
import json
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from sembench.errors import InputError, SembenchError
from sembench.execution.plan import Row
from sembench.execution.recorded import read_run
from sembench.registry import find_method
from sembench.statistics import mean_interval

METRICS_SHOWN = ("psnr", "ssim", "lpips", "psnr_matched", "ssim_matched", "lpips_matched")
Values = dict[str, dict[str, float]]
"""Of one row: the value of each case, by metric."""


def collected(folders: list[Path]) -> tuple[str, dict[str, dict[int, Values]], dict[str, str]]:
    """Protocol and cases in words; by method and seed the values; and the group of each case."""
    methods: dict[str, dict[int, Values]] = {}
    groups: dict[str, str] = {}
    told: set[str] = set()
    for run in map(read_run, folders):
        for record in run.records:
            groups[record["case"]] = record["group"]
        protocol = run.description["protocol"]
        told.add(f"Protocol `{protocol['name']}`, version {protocol['version']}, on {run.description['data']}")
        rows = {row["row"]: row for row in run.description["rows"]}
        for row in run.rows:
            fit = rows[row.row_id].get("fit")
            if not fit or "seed" not in row.settings or not _as_shipped(row, fit["identity"]):
                continue
            own = [record for record in run.records if record["row"] == row.row_id and record["status"] == "ok"]
            if not own:
                continue
            values = {metric: {record["case"]: record["metrics"][metric] for record in own} for metric in METRICS_SHOWN}
            methods.setdefault(row.name, {})[row.settings["seed"]] = values
    for name, seeds in methods.items():
        if len({frozenset(values[METRICS_SHOWN[0]]) for values in seeds.values()}) > 1:
            raise InputError(f"{name}: its seeds were not solved on the same cases: run the missing ones")
    if len(told) != 1:
        raise InputError(f"the runs are of different protocols or data: {'; '.join(sorted(told))}")
    return told.pop(), {name: seeds for name, seeds in methods.items() if len(seeds) > 1}, groups


def _as_shipped(row: Row, identity: dict[str, Any]) -> bool:
    """Whether a row is of its method's present version with the standard budget, and has its settings, but the seed."""
    cls, apart = find_method(row.name).cls, ("seed", "degradation")
    default = {k: v for k, v in cls.Settings().model_dump(mode="json").items() if k not in apart}
    own = {k: v for k, v in row.settings.items() if k not in apart}
    return (own, identity["version"], identity["budget"][0]) == (default, cls.version, "standard")


def _text(value: float, metric: str, sign: str = "") -> str:
    return f"{value:{sign}.{3 if metric.startswith('psnr') else 4}f}"


def _means(seeds: dict[int, Values], metric: str) -> list[float]:
    return [float(np.mean(list(seeds[seed][metric].values()))) for seed in sorted(seeds)]


def page(told: str, methods: dict[str, dict[int, Values]], groups: dict[str, str]) -> str:
    """The tables, as Markdown."""
    cases = {case for seeds in methods.values() for values in seeds.values() for case in values["psnr"]}
    order = sorted(methods, key=lambda name: -float(np.mean(_means(methods[name], "psnr_matched"))))
    text = [
        "# From seed to seed",
        "",
        "What a learned method's scores owe to the seed of its fit, which draws patches, degradations and first "
        "weights. The intervals of the other pages are over specimens, for one given fit; they say nothing of this.",
        "",
        f"{told}: {len(cases)} cases in {len({groups[case] for case in cases})} groups, standard budget. Written by "
        "`python benchmarks/seed_spread.py RUN ... --write docs/seed-spread.md`.",
        "",
        "## Each fit",
        "",
        "Spread: standard deviation over seeds. Half width: of the 95 % interval over groups of the fit with seed 0, "
        "for scale.",
        "",
        "| method | metric | " + " | ".join(f"seed {seed}" for seed in _seeds(methods)) + " | spread | half width |",
        "|---|---|" + "---|" * (len(_seeds(methods)) + 2),
    ]
    for name, metric in product(order, METRICS_SHOWN):
        seeds = methods[name]
        means = dict(zip(sorted(seeds), _means(seeds, metric), strict=True))
        first = seeds[min(seeds)][metric]
        interval = mean_interval(list(first.values()), [groups[case] for case in first])
        half = (
            "–" if interval.low is None or interval.high is None else _text((interval.high - interval.low) / 2, metric)
        )
        cells = [_text(means[seed], metric) if seed in means else "–" for seed in _seeds(methods)]
        spread = _text(float(np.std(list(means.values()), ddof=1)), metric)
        unit = " (dB)" if metric.startswith("psnr") else ""
        text.append("| " + " | ".join([name, metric + unit, *cells, spread, half]) + " |")
    text += [
        "",
        "## Does the order hold?",
        "",
        "Difference of means between two methods over all pairs of their seeds, smallest to largest. Where both have "
        "the same sign, no choice among these seeds turns the order around.",
        "",
        "| first | second | psnr_matched (dB) | lpips_matched |",
        "|---|---|---|---|",
    ]
    for one, other in combinations(order, 2):
        cells = []
        for metric in ("psnr_matched", "lpips_matched"):
            apart = [a - b for a, b in product(_means(methods[one], metric), _means(methods[other], metric))]
            turned = "" if min(apart) * max(apart) > 0 else " **turns**"
            cells.append(f"{_text(min(apart), metric, '+')} to {_text(max(apart), metric, '+')}{turned}")
        text.append(f"| {one} | {other} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _seeds(methods: dict[str, dict[int, Values]]) -> list[int]:
    return sorted({seed for seeds in methods.values() for seed in seeds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", type=Path, help="the page to write; else it is printed")
    parser.add_argument("--json", action="store_true", help="means by method, metric and seed, as JSON")
    given = parser.parse_args()
    try:
        told, methods, groups = collected(given.runs)
        if not methods:
            raise InputError("no method has rows of two seeds: run it again with --set seed=1")
    except SembenchError as error:
        sys.exit(f"seed_spread: {error}")
    if given.json:
        print(json.dumps({n: {m: dict(zip(sorted(s), _means(s, m), strict=True)) for m in METRICS_SHOWN}
                          for n, s in methods.items()}))  # fmt: skip
        return
    text = page(told, methods, groups)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
