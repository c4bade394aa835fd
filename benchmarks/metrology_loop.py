"""What finding edges for all rows and edges at once saves over a plain loop of the same mathematics.

    python benchmarks/metrology_loop.py [--json] [--rows 895] [--repeats 5]

One process and one image of 1280 x 895 px with about 50 lines. The edge stage runs as it is, and with each step that
visits points one by one written as a loop over edges and rows: areas, windows, mean edge, matched filter, neighbours'
tails, residuals. Both in turn; the positions must agree. --json: one object, with the seconds of a whole measurement,
fits included, and the ratio of the edge stages: the median of the pairs, the smallest and the largest.
"""

import argparse
import json
import statistics
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from in_turn import compare, timed
from threadpoolctl import threadpool_limits

from sembench import phantom
from sembench.metrology import edges, template
from sembench.metrology.grating import Grating, find_grating
from sembench.metrology.lines import measure_lines
from sembench.metrology.matched_filter import CONVERGED, MOST_STEPS, STEPS_PER_PX, MatchedFilter
from sembench.metrology.tracking import Field
from sembench.optics import generator

LARGEST_DIFFERENCE = 1e-6


class PlainField(Field):
    """Sums and windows, a point at a time."""

    def span_sums(self, middle: Any, half: int) -> Any:
        sums = np.empty(middle.shape)
        for edge in range(middle.shape[0]):
            for row in range(middle.shape[1]):
                first = min(max(middle[edge, row] - half, 0), self.columns - 2 * half - 1)
                sums[edge, row] = self.values[row, first : first + 2 * half + 1].sum()
        return sums

    def windows(self, middle: Any, half: int) -> Any:
        out = np.empty((*middle.shape, 2 * half + 1))
        for edge in range(middle.shape[0]):
            for row in range(middle.shape[1]):
                first = middle[edge, row] - half
                window = self.values[row, first : first + 2 * half + 1]
                out[edge, row] = window if edge % 2 == 0 else window[::-1]
        return out


class PlainFilter(MatchedFilter):
    """The same table and the same steps, a window at a time."""

    def locate(self, windows: Any, start: Any, farthest: float) -> Any:
        position, stuck = np.empty(start.shape), np.zeros(start.shape, dtype=bool)
        for edge in range(start.shape[0]):
            for row in range(start.shape[1]):
                window = windows[edge, row]
                low = max(start[edge, row] - farthest, self._grid[0])
                high = min(start[edge, row] + farthest, self._grid[-1])
                here = min(max(start[edge, row], low), high)
                for step in range(MOST_STEPS):
                    index = min(max(round(here * STEPS_PER_PX) + self._middle, 0), self._grid.size - 1)
                    excess = window @ self._slopes[index] - self._expected[index]
                    move = min(max(excess / self._response[index], -1), 1)
                    there = min(max(self._grid[index] - move, low), high)
                    moved, here = abs(there - here), there
                    if step and moved <= CONVERGED:
                        break
                position[edge, row] = here
                stuck[edge, row] = here <= low or here >= high
        return position, stuck

    def mean_squares(self, windows: Any, position: Any) -> Any:
        squares = np.empty(position.shape)
        for edge in range(position.shape[0]):
            for row in range(position.shape[1]):
                index = min(max(round(position[edge, row] * STEPS_PER_PX) + self._middle, 0), self._grid.size - 1)
                squares[edge, row] = np.mean((windows[edge, row] - self._values[index]) ** 2)
        return squares


def plain_normalised(field: Any, positions: Any, half: int, levels: Any) -> Any:
    """`edges._normalised`, a window at a time."""
    middle = np.clip(np.rint(positions).astype(int), half, field.columns - 1 - half)
    windows = field.windows(middle, half)
    contrast = levels.contrast
    for edge in range(middle.shape[0]):
        for row in range(middle.shape[1]):
            windows[edge, row] = (windows[edge, row] - levels.outside[edge, row]) / contrast[edge, row]
    return windows, middle


def plain_mean_profile(windows: Any, offset: Any) -> Any:
    """`template.mean_profile`, a window at a time."""
    size, phases = windows.shape[-1], template.PHASES
    total, number = np.zeros(phases * size + 1), np.zeros(phases * size + 1)
    for edge in range(offset.shape[0]):
        for row in range(offset.shape[1]):
            first = phases - (round(phases * offset[edge, row]) + phases // 2)
            total[first : first + phases * size : phases] += windows[edge, row]
            number[first : first + phases * size : phases] += 1
    u = (np.arange(total.size) - phases // 2) / phases - size // 2
    kept = number >= min(template.FEWEST_SAMPLES, max(number.max() / 4, 1))
    return u[kept], total[kept] / number[kept], number[kept]


def plain_tails(shown: Any, gaps: Any, found: Any, half: int) -> Any:
    """`edges._tails`, a window at a time."""
    if whole_tails(shown, gaps, found, half) is None:
        return None
    pixels = np.arange(-half, half + 1)
    total = np.zeros((*found.shape, pixels.size))
    for edge in range(found.shape[0]):
        for row in range(found.shape[1]):
            line, space = gaps[0][edge, row] + found[edge, row], gaps[1][edge, row] - found[edge, row]
            for distance, inside in ((line, 1), (space, 0)):
                near = round(distance * STEPS_PER_PX) / STEPS_PER_PX
                total[edge, row] += shown.shape((near if inside else -near) - pixels) - inside
    return total


whole_tails = edges._tails


def plain_edges(grating: Grating) -> edges.Edges:
    """The edge stage with its loops written out."""
    with (
        mock.patch.object(edges, "Field", PlainField),
        mock.patch.object(edges, "MatchedFilter", PlainFilter),
        mock.patch.object(edges, "_normalised", plain_normalised),
        mock.patch.object(edges, "_tails", plain_tails),
        mock.patch.object(template, "mean_profile", plain_mean_profile),
    ):
        return edges.find_edges(grating)


def image(rows: int) -> Any:
    """The lines that are timed: pitch 25.4 px, contrast-to-noise ratio 5."""
    rng = generator(1, "loop", "scene")
    scene = phantom.lines(
        rng, height=rows, width=1280, pitch=25.4, duty=0.5, sigma=1.0, xi=20.0, hurst=0.6, edge_sigma=1.3, tilt_deg=0.5
    )
    return scene.image + rng.normal(0, 24, scene.image.shape)


def main() -> int:
    """Print the times; 1 where the positions differ."""
    parser = argparse.ArgumentParser(description="The edge stage against a plain loop.")
    parser.add_argument("--rows", type=int, default=895)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pixels = image(options.rows)
    whole = [timed(partial(measure_lines, pixels))[0] for _ in range(options.repeats)]
    grating = find_grating(pixels, bright=True)
    both = compare(partial(edges.find_edges, grating), partial(plain_edges, grating), options.repeats)
    found, plain = both.results
    apart = float(np.abs(found.positions - plain.positions).max())
    seen = {
        "seconds": statistics.median(whole),
        "edge_seconds": statistics.median(own for own, _ in both.seconds),
        "loop_seconds": statistics.median(loop for _, loop in both.seconds),
        "ratio": both.ratio.median,
        "smallest_ratio": min(both.ratio.of_pairs),
        "largest_ratio": max(both.ratio.of_pairs),
        "largest_difference_px": apart,
        "lines": len(found.positions) // 2,
    }
    if options.json:
        print(json.dumps(seen))
    else:
        for name, value in seen.items():
            print(f"{name:24} {value:.6g}")
    return 0 if apart <= LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    with threadpool_limits(1):
        raise SystemExit(main())
