"""How accurate the metrology is: every bar beside what was seen on scenes of known truth, drawn anew from a seed.

    python benchmarks/metrology.py --seed 1                      all rows; exit 1 where a bar is missed
    python benchmarks/metrology.py --rows white,contacts         some groups of rows
    python benchmarks/metrology.py --keep seen.jsonl             what is finished is kept, and taken up again
    python benchmarks/metrology.py --write docs/metrology-accuracy.md
    python benchmarks/metrology.py --repeatability               what 30 noise draws of one scene scatter by

C is the difference of the levels over the noise per pixel. Errors are those of a scene against the truth of the same
lines and rows. Real images are used where SEMBENCH_DATA, or the cache, has them. One thread a process.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from metrology_measured import CONTRASTS, UNITS, collect, truth_of, units_of
from metrology_report import ROWS, Seen, bars, tables
from metrology_scenes import drawn_lines, with_noise

from sembench.metrology.lines import measure_lines
from sembench.optics import generator

DRAWS = 30
"""Noise draws of the repeatability table."""


def repeatability(seed: int) -> Iterator[str]:
    """Lines of Markdown: the scatter of one scene's numbers over noise draws, by contrast-to-noise ratio."""
    scene = drawn_lines(
        seed, "repeatability", pitch=40.0, duty=0.5, sigma=1.0, xi=20.0, hurst=0.6, edge_sigma=1.2, tilt_deg=0.5
    )
    truth = truth_of(scene.edges)
    yield f"{DRAWS} noise draws of one scene, 1024 x 1024 px: CD {truth['cd']:.2f} px, LWR {truth['lwr']:.2f} px."
    yield ""
    yield "| C | CD 3 sigma px | LWR raw 3 sigma px | LWR unbiased 3 sigma px | mean LWR raw px | mean unbiased px |"
    yield "|---|---|---|---|---|---|"
    for contrast in CONTRASTS[1:]:
        found = []
        for draw in range(DRAWS):
            print(f"\rC {contrast:g}, draw {draw + 1} of {DRAWS} ", end="", file=sys.stderr, flush=True)
            found.append(measure_lines(with_noise(scene, contrast, generator(seed, f"repeat-{contrast}-{draw}"))))
        columns = [
            np.array([math.nan if value is None else value for value in values])
            for values in ([m.cd_mean for m in found], [m.lwr for m in found], [m.lwr_unbiased for m in found])
        ]
        scatter = " | ".join(f"{3 * column.std(ddof=1):.3f}" for column in columns)
        yield f"| {contrast:g} | {scatter} | {columns[1].mean():.2f} | {columns[2].mean():.2f} |"
    print(file=sys.stderr)


def main() -> int:
    """Print every bar and what was seen; 1 where one is missed."""
    parser = argparse.ArgumentParser(description="Accuracy of the metrology beside its bars.")
    parser.add_argument("--seed", type=int, default=1, help="of all scenes")
    parser.add_argument("--scenes", type=int, default=15, help="scenes a row")
    parser.add_argument("--rows", default=",".join(UNITS), help=f"groups of rows: {', '.join(UNITS)}")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--keep", type=Path, help="file of finished work, taken up again")
    parser.add_argument("--write", type=Path, help="page to write")
    parser.add_argument("--json", action="store_true", help="rows and records as JSON")
    parser.add_argument("--repeatability", action="store_true", help="print the table of docs/metrology.md instead")
    given = parser.parse_args()
    if given.repeatability:
        print("\n".join(repeatability(given.seed)))
        return 0
    groups = given.rows.split(",")
    unknown = [group for group in groups if group not in UNITS]
    if unknown:
        parser.error(f"no rows {unknown[0]!r}: give some of {', '.join(UNITS)}")
    units = [unit for group in groups for unit in units_of(group, given.seed, given.scenes)]
    records = collect(units, given.workers, given.keep)
    rows = [row for group in groups if group in ROWS for row in ROWS[group](Seen(records, group))]
    missed = sum(row.verdict == "MISSED" for row in rows)
    page = [
        "# Accuracy of the metrology",
        "",
        f"Written by `python benchmarks/metrology.py --seed {given.seed} --scenes {given.scenes} --write FILE`.",
        "Scenes of 1024 x 1024 px with known edges: pitch 20 to 80 px, roughness sigma 0.5 to 2 px (at most an eighth",
        "of the narrower of line and space), xi 8 to 40 px, H 0.3 to 0.9, blur 0.8 to 2 px, tilt to 2 degrees, half of",
        "them with horizontal lines. C: difference of the levels over the noise per pixel. Errors are those of one",
        "scene, against the truth of the same lines and rows.",
        "",
        "## Bars",
        "",
        *bars(rows),
        *tables(records),
    ]
    if given.json:
        print(
            json.dumps(
                {
                    "seed": given.seed,
                    "rows": [row.__dict__ | {"verdict": row.verdict} for row in rows],
                    "records": records,
                }
            )
        )
    else:
        print("\n".join(page[10:]))
    if given.write:
        given.write.write_text("\n".join(page) + "\n", encoding="utf-8")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
