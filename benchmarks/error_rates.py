"""How often intervals cover the truth and equal methods are told apart, at the real groups of each protocol.

    python benchmarks/error_rates.py [--quick] [--runs 4000] [--draws 1999] [--seed 1]

Scores, or differences of two methods, are simulated with mean 0: an effect of the group and one of the case, of the
same distribution, for several shares of the variance that belong to the group (the correlation within it). On each
sample the suite's own functions run, `mean_intervals` and `paired_ps`, with fewer resamples than they take by default.
Bars: the 95 % interval covers 0 in 93 to 97 % of the samples, the paired test gives p <= 0.05 in 5 % at most, each
give or take two standard errors. Exit 1 where one is missed. What is beyond the bars (longer tails, fewer groups than
bootstrap-t takes) is measured and told apart from them; docs/statistics.md says what follows from it.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sembench.cases import plan_cases
from sembench.errors import UnavailableError
from sembench.protocol import load
from sembench.registry import PROTOCOLS, plugins
from sembench.results import in_stratum, strata
from sembench.statistics.intervals import FEWEST_FOR_BOOTSTRAP, FEWEST_GROUPS, mean_intervals
from sembench.statistics.pairs import SIGNIFICANCE, can_separate, paired_ps

Array = NDArray[np.float64]
Sizes = tuple[int, ...]

COVERAGE = (0.93, 0.97)
CORRELATIONS = (0.0, 0.5, 0.9)
SPREAD_AT_SKEWNESS_2 = 0.5513
"""Standard deviation of the logarithm at which a lognormal variable has skewness 2."""


@dataclass(frozen=True)
class Distribution:
    """Where effects come from: mean 0, variance 1."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], Array]


def lognormal(spread: float) -> Callable[[np.random.Generator, tuple[int, int]], Array]:
    """Lognormal, shifted and scaled to mean 0 and variance 1; spread: of the logarithm."""
    mean = math.exp(spread**2 / 2)
    deviation = mean * math.sqrt(math.expm1(spread**2))
    return lambda rng, shape: (rng.lognormal(0, spread, shape) - mean) / deviation


NORMAL = Distribution("normal", lambda rng, shape: rng.normal(size=shape))
SKEWED = (
    Distribution("gamma, skewness 2", lambda rng, shape: rng.gamma(1, size=shape) - 1),
    Distribution("lognormal, skewness 2", lognormal(SPREAD_AT_SKEWNESS_2)),
)
LONG_TAIL = Distribution("lognormal, skewness 6", lognormal(1.0))
FOLDERS: tuple[Sizes, ...] = ((1,) * 8, (1,) * 12)
"""Groups of a user's own folder: each image is one."""


@dataclass(frozen=True)
class Rates:
    """Shares of so many samples: intervals that cover the truth, and equal methods told apart."""

    coverage: float
    told_apart: float
    runs: int

    @property
    def missed(self) -> list[str]:
        """The bars that are missed by more than two standard errors."""
        low, high = (bar + sign * 2 * error(bar, self.runs) for bar, sign in zip(COVERAGE, (-1, 1), strict=True))
        names = [] if low <= self.coverage <= high else ["coverage"]
        most = SIGNIFICANCE + 2 * error(SIGNIFICANCE, self.runs)
        return names if self.told_apart <= most else [*names, "type I"]


def error(share: float, runs: int) -> float:
    """Binomial standard error."""
    return math.sqrt(share * (1 - share) / runs)


def sample(sizes: Sizes, correlation: float, source: Distribution, runs: int, rng: np.random.Generator) -> Array:
    """Values (cases, runs) of mean 0 and variance 1, cases of a group next to each other."""
    groups = np.repeat(source.draw(rng, (len(sizes), runs)), sizes, axis=0)
    return math.sqrt(correlation) * groups + math.sqrt(1 - correlation) * source.draw(rng, groups.shape)


def rates(values: Array, sizes: Sizes, draws: int) -> Rates:
    """What the suite says of values whose true mean is 0."""
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    intervals = mean_intervals(values, labels, draws=draws)
    covered = [i.low is not None and i.high is not None and i.low <= 0 <= i.high for i in intervals]
    p = paired_ps(values, labels, draws=draws)
    return Rates(float(np.mean(covered)), float((p <= SIGNIFICANCE).mean()), values.shape[1])


def real_sizes() -> tuple[dict[Sizes, str], list[str]]:
    """Group sizes of each shipped protocol on each of its data sets, and of each kind that is reported apart.

    Sizes -> who has them; and what could not be had.
    """
    owners: dict[Sizes, dict[str, list[str]]] = {}
    missing = []
    for name in sorted(plugins(PROTOCOLS)):
        protocol = load(name)
        for data in (protocol.data.set, *(protocol.data.also or ())):
            try:
                cases: list[dict[str, Any]] = [
                    {"group": spec.group} for spec in plan_cases(protocol, data, require_real=True).specs
                ]
            except UnavailableError as problem:
                missing.append(f"{name} on {data} is left out: {problem}")
                continue
            owners.setdefault(group_sizes(cases), {}).setdefault(data, []).append(name)
            for kind in strata(cases):
                apart = group_sizes(in_stratum(cases, kind))
                owners.setdefault(apart, {}).setdefault(f"{data} {kind}", []).append(name)
    told = {
        sizes: "; ".join(f"{data} ({', '.join(names)})" for data, names in known.items())
        for sizes, known in owners.items()
    }
    return told, missing


def group_sizes(cases: Iterable[dict[str, Any]]) -> Sizes:
    """Cases in each group, the largest first."""
    return tuple(sorted(Counter(case["group"] for case in cases).values(), reverse=True))


def in_words(sizes: Sizes) -> str:
    """Such as `100 cases in 40 groups: 8, 9 x 4, 26 x 2, 4 x 1`."""
    counted = [str(size) if times == 1 else f"{times} x {size}" for size, times in Counter(sizes).items()]
    return f"{sum(sizes)} case(s) in {len(sizes)} group(s): {', '.join(counted)}"


def table(sizes: Sizes, sources: Sequence[Distribution], given: argparse.Namespace) -> list[tuple[str, Rates]]:
    """Print the lines of one set of groups; returns each with what it was about."""
    found = []
    print("| differences | correlation in groups | coverage, % | type I, % | |", flush=True)
    print("|---|---|---|---|---|")
    for place, source in enumerate(sources):
        for correlation in CORRELATIONS:
            rng = np.random.default_rng([given.seed, *sizes, place, round(10 * correlation)])
            line = rates(sample(sizes, correlation, source, given.runs, rng), sizes, given.draws)
            cells = [
                f"{100 * share:.1f} ± {100 * error(share, line.runs):.1f}" for share in (line.coverage, line.told_apart)
            ]
            verdict = f"misses {', '.join(line.missed)}" if line.missed else "holds"
            print(f"| {source.name} | {correlation} | {' | '.join(cells)} | {verdict} |", flush=True)
            found.append((f"{source.name}, {correlation}, {len(sizes)} groups", line))
    print()
    return found


def limits(few: dict[Sizes, str], enough: dict[Sizes, str], given: argparse.Namespace) -> None:
    """Print what no bar is promised for."""
    print("# Beyond the bars: no promise\n")
    for sizes, owner in few.items():
        print(f"## {owner}\n\n{in_words(sizes)}")
        if len(sizes) < FEWEST_GROUPS:
            print("Too few groups: neither an interval nor a pair told apart.\n")
            continue
        print(f"Student's interval{'' if can_separate(len(sizes), 1) else '; no pair can be told apart'}\n")
        table(sizes, (NORMAL, *SKEWED[:1]), given)
    for sizes, owner in enough.items():
        print(f"## {owner}\n\n{in_words(sizes)}\n")
        table(sizes, (LONG_TAIL,), given)
    for sizes in FOLDERS:
        print(f"## a folder of {len(sizes)} images\n")
        table(sizes, (NORMAL, *SKEWED[:1]), given)


def main() -> int:
    """Print every line; 1 where a bar is missed, 2 where no protocol's groups are known."""
    parser = argparse.ArgumentParser(description="Coverage and type-I error at the real groups of each protocol.")
    parser.add_argument("--runs", type=int, default=4000, help="samples a line")
    parser.add_argument("--draws", type=int, default=1999, help="resamples and sign flips a sample")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="1500 samples a line, 499 resamples, the bars alone")
    given = parser.parse_args()
    if given.quick:
        given.runs, given.draws = 1500, 499
    started = time.perf_counter()
    known, missing = real_sizes()
    for line in missing:
        print(f"notice: {line}", file=sys.stderr)
    enough = {sizes: owner for sizes, owner in known.items() if len(sizes) >= FEWEST_FOR_BOOTSTRAP}
    if not enough:
        print("no protocol's data is at hand: set SEMBENCH_DATA", file=sys.stderr)
        return 2
    print(f"{given.runs} samples a line, {given.draws} resamples a sample, seed {given.seed}\n")
    found = []
    for sizes, owner in enough.items():
        print(f"## {owner}\n\n{in_words(sizes)}\n")
        found += table(sizes, (NORMAL, *SKEWED), given)
    missed = [f"{what}: {', '.join(line.missed)}" for what, line in found if line.missed]
    if not given.quick:
        limits({sizes: owner for sizes, owner in known.items() if sizes not in enough}, enough, given)
    coverage, apart = [line.coverage for _, line in found], [line.told_apart for _, line in found]
    print(f"Bars: {len(found) - len(missed)} of {len(found)} lines hold; {time.perf_counter() - started:.0f} s")
    print(f"coverage {100 * min(coverage):.1f} to {100 * max(coverage):.1f} %, type I {100 * max(apart):.1f} % at most")
    for text in missed:
        print(f"missed: {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
