"""What the suite costs and what it saves, measured in one run.

1. `sembench run` with 2 workers against plain.py on the same cases: ratio of wall times, start to end, and the
   largest difference between their numbers (aim: 1.7 or more, differences within each metric's tolerance).
2. Harness overhead: the time between records that is neither restoring, scoring nor writing the image, as a share of
   one SSIM call (aim: below 0.1); making the case itself is shown apart.
3. Peak memory of the command and of its workers at 20 and at 200 cases (aim: within 5 %).
4. Time of `sembench --help` against `python -c "import typer"` (aim: at most 2).

    python benchmarks/throughput.py [--cases 4] [--data phantom] [--quick]

Every measured program runs in a process of its own; run it on an otherwise idle machine. Linux.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from programs import SMALL, draw_images, python, sembench, wall

HERE = Path(__file__).resolve().parent
RESTORERS = "input,gaussian,median,tv,richardson_lucy,wiener,bm3d"
QUICK_RESTORERS = "input,gaussian,median,tv,richardson_lucy,wiener"
WORKERS = 2
BETWEEN_RECORDS = """
import json, sys, time
from pathlib import Path
from sembench.execution.prepare import prepare
from sembench.execution.request import RunRequest
from sembench.execution.run import execute
protocol, out, limit = sys.argv[1:4]
request = RunRequest(("input", "gaussian"), protocol, data="phantom", out=Path(out), limit=int(limit), workers=1)
if __name__ == "__main__":
    plan = prepare(request)
    arrivals, started = [], time.perf_counter()
    records = execute(plan, request, lambda record, left: arrivals.append((time.perf_counter(), record["seconds"])))
    ended = time.perf_counter()
    later = [seconds for _, seconds in arrivals[1:]]
    between = arrivals[-1][0] - arrivals[0][0]
    work = sum(s["restore"] + s["score"] + s["store"] for s in later)
    cases = sum(s["case"] for s in later)
    print(json.dumps({
        "records": len(arrivals),
        "overhead_ms": 1e3 * (between - work - cases) / len(later),
        "case_ms": 1e3 * cases / (int(limit) - 1),
        "start_s": arrivals[0][0] - started,
        "end_s": ended - arrivals[-1][0],
    }))
"""
ONE_SSIM = """
import time
import numpy as np
from sembench.metrics.fidelity import ssim
rng = np.random.default_rng(0)
one, other = rng.uniform(0, 255, (2, 512, 512))
times = []
for _ in range(30):
    started = time.perf_counter()
    ssim(one, other)
    times.append(time.perf_counter() - started)
print(1e3 * sorted(times)[len(times) // 2])
"""


def against_plain(folder: Path, cases: int, data: str, restorers: str) -> None:
    """Wall time of the suite and of the plain script on the same cases, and how far their numbers lie apart."""
    common = ["--data", data, "--restorers", restorers, "--cases", str(cases)]
    plain_s, _ = wall(python(HERE / "plain.py", *common, "--out", folder / "plain" / "scores.csv"))
    run = ["-m", "sembench", "run", "--protocol", "s2s", "--data", data, "--restorer", restorers, "--limit", str(cases)]
    suite_s, _ = wall(python(*run, "--workers", str(WORKERS), "--out", folder / "suite", "--json"))
    records = [json.loads(line) for line in (folder / "suite" / "records.jsonl").read_text().splitlines()]
    spent = {part: sum(r["seconds"][part] for r in records) for part in ("case", "restore", "score", "store")}
    print(f"1. {cases} cases of {data} x {len(restorers.split(','))} restorers, {os.cpu_count()} cores")
    print(f"   plain script                 {plain_s:8.1f} s")
    print(f"   sembench run, {WORKERS} workers      {suite_s:8.1f} s")
    print(f"   ratio                        {plain_s / suite_s:8.2f}   (aim: 1.7)")
    shares = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in spent.items())
    idle = suite_s - sum(spent.values()) / WORKERS
    print(f"   in the workers: {shares}; start, end and waiting: {idle:.1f} s of wall time")
    for line in differences(folder / "plain" / "scores.csv", folder / "suite" / "cases.csv"):
        print(f"   {line}")


def differences(plain: Path, suite: Path) -> list[str]:
    """A line a metric: the largest difference between the two tables, and whether it is within the tolerance."""
    from sembench.registry import METRICS, plugin

    ours = {(row["restorer"], row["case"]): row for row in csv.DictReader(suite.read_text().splitlines())}
    theirs = {(row["restorer"], row["case"]): row for row in csv.DictReader(plain.read_text().splitlines())}
    if ours.keys() != theirs.keys():
        return [f"different cases: {sorted(ours.keys() ^ theirs.keys())}"]
    lines = []
    names = [name for name in next(iter(theirs.values())) if name not in ("restorer", "case")]
    for name in names:
        apart = max(abs(float(ours[key][name]) - float(theirs[key][name])) for key in ours)
        tolerance = plugin(METRICS, name).load().tolerance
        verdict = "identical" if apart <= tolerance else "DIFFERENT"
        lines.append(f"{name:18} differs by {apart:.1e} at most, tolerance {tolerance:.0e}: {verdict}")
    return lines


def overhead(folder: Path, cases: int) -> None:
    """Time between records that no step of the work accounts for, per record, as a share of one SSIM call."""
    protocol = folder / "overhead.toml"
    protocol.write_text(SMALL.format(size=512, names='"psnr", "ssim"'))
    script = folder / "between.py"
    script.write_text(BETWEEN_RECORDS)
    measured = []
    for turn in range(3):
        _, done = wall(python(script, protocol, folder / f"overhead{turn}", str(cases)))
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    ssim_ms = float(wall(python("-c", ONE_SSIM), OMP_NUM_THREADS="1")[1].stdout)
    middle = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
    print(f"2. overhead, {middle['records']} records of 512 x 512 px, 1 worker, median of 3 runs")
    print(f"   one SSIM call                {ssim_ms:8.2f} ms")
    print(f"   overhead a record            {middle['overhead_ms']:8.2f} ms")
    print(f"   share of one SSIM call       {middle['overhead_ms'] / ssim_ms:8.3f}   (aim: 0.1)")
    print(f"   making a case (phantom)      {middle['case_ms']:8.2f} ms")
    print(f"   until the first record       {middle['start_s']:8.2f} s, after the last {middle['end_s']:.2f} s")


def memory(folder: Path, few: int, many: int) -> None:
    """Peak memory of `sembench run` and of its largest worker with few and with many cases."""
    protocol = folder / "memory.toml"
    protocol.write_text(SMALL.format(size=192, names='"psnr"'))
    draw_images(folder / "images", many)
    peaks = {}
    for cases in (few, many):
        run = ["run", "--protocol", protocol, "--data", folder / "images", "--restorer", "input,gaussian,median"]
        out = folder / f"memory{cases}"
        used = sembench(*run, "--limit", str(cases), "--workers", str(WORKERS), "--out", out, "--json")
        peaks[cases] = used.command_mib, used.worker_mib
    print(f"3. peak memory, images of 192 x 192 px x 3 restorers, {WORKERS} workers")
    for index, what in enumerate(("command", "largest worker")):
        low, high = peaks[few][index], peaks[many][index]
        print(
            f"   {what:15} {low:7.1f} MiB at {few} cases, {high:7.1f} MiB at {many}: {100 * (high / low - 1):+.1f} % "
            "(aim: within 5 %)"
        )


def start_up(turns: int) -> None:
    """Median time of `sembench --help` and of importing typer, in turn."""
    ours, typer = [], []
    program = Path(sys.executable).with_name("sembench")
    command = [program] if program.is_file() else python("-m", "sembench")
    for _ in range(turns + 1):
        ours.append(wall([*command, "--help"])[0])
        typer.append(wall(python("-c", "import typer"))[0])
    help_s, typer_s = statistics.median(ours[1:]), statistics.median(typer[1:])
    print(f"4. sembench --help {1e3 * help_s:.0f} ms, python -c 'import typer' {1e3 * typer_s:.0f} ms: ", end="")
    print(f"{help_s / typer_s:.2f} times (aim: at most 2)")


def main() -> None:
    """Run the four measurements."""
    parser = argparse.ArgumentParser(description="Wall time, overhead, memory and start-up of sembench.")
    parser.add_argument("--cases", type=int, default=4, help="cases of the comparison with the plain script")
    parser.add_argument("--data", default="phantom", help="phantom, or semcorpus where its images are at hand")
    parser.add_argument("--quick", action="store_true", help="2 cases without bm3d, shorter measurements")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_up(3 if given.quick else 9)
        overhead(folder, 6 if given.quick else 20)
        memory(folder, 20, 200)
        against_plain(
            folder, 2 if given.quick else given.cases, given.data, QUICK_RESTORERS if given.quick else RESTORERS
        )


if __name__ == "__main__":
    main()
