"""Runs that are disturbed for some minutes, held against one that was left alone.

Workers and whole runs are killed or interrupted, restored and input images vanish, records are torn, the disk is full,
the clock jumps; with --cluster the run goes through a dask scheduler of two workers on this machine, which are killed
and restarted too. Then the same command is given in peace, with --retry-failed, until it succeeds. At the end every
case must be recorded, no case solved twice but for images that had vanished, and every record and image be equal to
those of the undisturbed run, timings aside. Exit 1 where that is not so.

    python benchmarks/soak.py [--seconds 180] [--seed 1] [--cluster]

Linux; everything happens in a temporary folder.
"""

import argparse
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from sembench import phantom
from sembench.execution.merge import TIMINGS
from sembench.micrograph import write_grid_png

CASES = 10
PROTOCOL = """
name = "soak"
version = 1
title = "Small cases"
question = "Is anything lost?"
seed = 7
time_limit_s = 120
data = { set = "semcorpus", size = 192, fields = "s2s_fields" }
degradation = { fixed = { rx = 2.0, ry = 2.0 } }
metrics = { primary = "psnr", names = ["psnr", "ssim"] }
"""
METHOD = '''
import time
import numpy as np
from sembench.restorer import Restorer

class Draws(Restorer):
    """Takes its time, and draws from the global stream."""
    def restore(self, image, /):
        time.sleep(0.5)
        return image + np.random.normal(0, 2, image.shape).astype(np.float32)
'''
JUMPING_CLOCK = """
import os, time
_true = time.time
def _jumping():
    try:
        with open(os.environ["SOAK_CLOCK"]) as file:
            return _true() + float(file.read() or 0)
    except (OSError, ValueError):
        return _true()
time.time = _jumping
"""
ENDINGS = {0, 2, 3, 4, 5, 130, -signal.SIGKILL, -signal.SIGINT}
"""How a disturbed command may end: done, a line of what is wrong, or what was done to it."""


class Bench:
    """A folder with a protocol, images, a method and runs, and the processes that work on it."""

    def __init__(self, folder: Path, seed: int, cluster: bool) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.vanished: Counter[str] = Counter()
        self.faults: list[str] = []
        self.last_words = ""
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.1:{_free_port()}" if cluster else ""
        (folder / "soak.toml").write_text(PROTOCOL)
        (folder / "method.py").write_text(METHOD)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(JUMPING_CLOCK)
        (folder / "images").mkdir()
        for index in range(1, CASES + 1):
            image = phantom.corpus_scene(seed, f"S{index}", 192).image
            write_grid_png(folder / "images" / f"case{index}.png", image)

    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.folder / "site"), "SOAK_CLOCK": str(self.folder / "clock")}
        return {**os.environ, **own, "SEMBENCH_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    def start(self, out: str, *words: str, room: int | None = None, alone: bool = False) -> "subprocess.Popen[str]":
        command = ["run", "--restorer", "input,method.py:Draws", "--protocol", "soak.toml", "--data", "images"]
        where = ["--workers", "2"] if alone or not self.address else ["--scheduler", self.address]

        def little_room() -> None:
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        return subprocess.Popen(
            [sys.executable, "-m", "sembench", *command, "--crop-bottom", "0", *where, "--out", out, *words],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=little_room,
        )

    def service(self, name: str) -> None:
        """Start the scheduler or a worker, or start it again."""
        words = {"scheduler": ["--port", self.address.rpartition(":")[2], "--host", "127.0.0.1"]}
        module = f"distributed.cli.dask_{name.partition('-')[0]}"
        own = words.get(name, [f"tcp://{self.address}", "--nthreads", "1", "--local-directory", str(self.folder)])
        self.services[name] = subprocess.Popen(
            [sys.executable, "-m", module, *own, "--no-dashboard"],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def supervise(self) -> None:
        """Start again what has ended, as a cluster does: dask's workers end with their scheduler."""
        for name, service in list(self.services.items()):
            if service.poll() is not None:
                self.service(name)
                self.done["dask service started again"] += 1

    def ended(self, process: "subprocess.Popen[str]") -> int:
        while True:
            try:
                _, errors = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                self.supervise()
        self.last_words = f"{process.returncode}: {errors.strip()[-300:]}"
        if process.returncode not in ENDINGS or "Traceback" in errors:
            self.faults.append(f"ended with {self.last_words}")
        return process.returncode

    def disturb(self, process: "subprocess.Popen[str]", out: Path) -> None:
        """One thing that goes wrong, drawn by chance."""
        kinds: dict[str, Callable[[], object]] = {
            "worker killed": lambda: self._kill_worker(process),
            "run killed": lambda: _kill_with_children(process.pid),
            "interrupted": lambda: process.send_signal(signal.SIGINT),
            "restored image gone": lambda: self._remove_image(out),
            "input gone for a while": self._hide_input,
            "clock jumped": self._jump,
        }
        if self.address:
            kinds["scheduler restarted"] = lambda: self._restart("scheduler")
            kinds["dask worker restarted"] = lambda: self._restart(self.random.choice(["worker-1", "worker-2"]))
        kind = self.random.choice(list(kinds))
        kinds[kind]()
        self.done[kind] += 1

    def _kill_worker(self, process: "subprocess.Popen[str]") -> None:
        roots = [process.pid, *(service.pid for service in self.services.values())]
        found = [child for pid in roots for child in _children(pid) if "spawn_main" in " ".join(_words(child))]
        if found:
            _kill(self.random.choice(found))

    def _remove_image(self, out: Path) -> None:
        images = sorted((out / "restored").rglob("case*.png"))
        if images:
            chosen = self.random.choice(images)
            chosen.unlink(missing_ok=True)
            self.vanished[f"{chosen.parent.name}/{chosen.stem}"] += 1

    def _hide_input(self) -> None:
        chosen = self.random.choice(sorted((self.folder / "images").glob("*.png")))
        hidden = self.folder / chosen.name
        chosen.rename(hidden)
        time.sleep(1)
        hidden.rename(chosen)

    def _jump(self) -> None:
        (self.folder / "clock").write_text(str(self.random.uniform(-1e7, 1e7)))

    def _restart(self, name: str) -> None:
        _kill_with_children(self.services[name].pid)
        self.services[name].wait()
        self.service(name)

    def close(self) -> None:
        for service in self.services.values():
            _kill_with_children(service.pid)
            service.wait()


def soak(bench: Bench, seconds: float) -> list[str]:
    """Disturb runs for so long, let each be finished in peace, and tell all that was found wrong."""
    if bench.ended(bench.start("alone", alone=True)):
        return [*bench.faults, "the undisturbed run did not succeed"]
    expected = effective(bench.folder / "alone")
    if bench.address:
        for name in ("scheduler", "worker-1", "worker-2"):
            bench.service(name)
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        number += 1
        out = bench.folder / f"disturbed-{number}"
        bench.vanished.clear()
        starts = 0
        while time.monotonic() < until and starts < 6:
            starts += 1
            _tear(bench, out)
            full = bench.random.random() < 0.2
            bench.done["disk full"] += full
            process = bench.start(out.name, "--retry-failed", room=2500 * starts if full else None)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(bench.random.uniform(0.5, 4))
                bench.supervise()
                if process.poll() is None:
                    bench.disturb(process, out)
            if process.poll() is None:
                _kill_with_children(process.pid)
            bench.ended(process)
        for _ in range(10):
            if bench.ended(bench.start(out.name, "--retry-failed")) == 0:
                break
        else:
            bench.faults.append(f"{out.name}: never finished in peace, at last with {bench.last_words}")
            continue
        bench.faults += compared(out, expected, bench.folder / "alone", bench.vanished)
    bench.done["runs finished"] = number
    return bench.faults


def _tear(bench: Bench, out: Path) -> None:
    records = out / "records.jsonl"
    if records.is_file() and bench.random.random() < 0.3:
        with records.open("ab") as file:
            file.write(b'{"row": "torn')
        bench.done["record torn"] += 1


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def effective(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last record of each row and case, timings aside."""
    return {
        (record["row"], record["case"]): {name: value for name, value in record.items() if name not in TIMINGS}
        for record in lines(out)
    }


def compared(
    out: Path, expected: dict[tuple[str, str], dict[str, Any]], alone: Path, vanished: Counter[str]
) -> list[str]:
    """What is lost, twice there, or other than in the undisturbed run."""
    found = effective(out)
    told = [f"{out.name}: {key} is lost" for key in expected.keys() - found.keys()]
    told += [f"{out.name}: {key} was never asked for" for key in found.keys() - expected.keys()]
    told += [f"{out.name}: {key} differs" for key in expected.keys() & found.keys() if expected[key] != found[key]]
    solved = Counter((record["row"], record["case"]) for record in lines(out) if record["status"] == "ok")
    told += [
        f"{out.name}: {row} on {case} was solved {count} times"
        for (row, case), count in solved.items()
        if count > 1 + vanished[f"{row}/{case}"]
    ]
    for record in expected.values():
        image = record["image"]
        if not (out / image).is_file() or (out / image).read_bytes() != (alone / image).read_bytes():
            told.append(f"{out.name}: {image} is not that of the undisturbed run")
    return told


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _kill_with_children(pid: int) -> None:
    children = _children(pid)
    os.kill(pid, signal.SIGKILL)
    for child in children:
        _kill(child)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", action="store_true", help="through a dask scheduler and two workers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.seed, given.cluster)
        try:
            faults = soak(bench, given.seconds)
        finally:
            bench.close()
    print(", ".join(f"{count} x {what}" for what, count in sorted(bench.done.items())))
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{2 * CASES} records a run expected: {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
