"""`sembench` in a process of its own, on small images drawn for it: its time, and the memory that it held. Linux."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SMALL = """
name = "small"
version = 1
title = "Small images, for memory and overhead"
question = "Does the harness itself cost anything?"
seed = 1
[data]
set = "semcorpus"
size = {size}
[degradation]
name = "paper"
[metrics]
primary = "psnr"
names = [{names}]
"""
WITH_USAGE = """
import atexit, json, os, resource, sys, threading, time
import psutil
workers, watching = {}, 0
def peak(pid):
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM")), 0)
def watch():
    global watching
    while True:
        for child in psutil.Process().children(recursive=True):
            try:
                workers[child.pid] = max(workers.get(child.pid, 0), peak(child.pid))
            except OSError:
                pass
        watching = time.thread_time()
        time.sleep(0.3)
def report():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used) - watching
    told = {"cpu_s": cpu_s, "command_mib": peak(os.getpid()), "worker_mib": max(workers.values(), default=0)}
    print("used", json.dumps(told), file=sys.stderr)
atexit.register(report)
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "sembench"
from sembench.commands import main
main()
"""
"""A command that tells at its end what it used. The kernel's largest resident size, ru_maxrss, would not do: a process
inherits that of the one that started it."""


@dataclass(frozen=True)
class Used:
    """What a command took: seconds start to end, processor seconds with its workers, peak memory in MiB, also of the
    largest worker."""

    wall_s: float
    cpu_s: float
    command_mib: float
    worker_mib: float


def python(*arguments: str | Path) -> list[str | Path]:
    """This interpreter with arguments."""
    return [sys.executable, *arguments]


def wall(command: Sequence[str | Path], **variables: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that a command takes, start to end, and what it printed; its failure ends the benchmark."""
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=os.environ | variables)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(str(part) for part in command)} failed:\n{done.stderr}")
    return seconds, done


def sembench(*words: str | Path) -> Used:
    """A sembench command, and what it used."""
    seconds, done = wall(python("-c", WITH_USAGE, *words))
    line = next(line for line in reversed(done.stderr.splitlines()) if line.startswith("used "))
    told = json.loads(line.removeprefix("used "))
    return Used(seconds, **told)


def draw_images(folder: Path, count: int, side: int = 160) -> None:
    """A folder of PNG files with smooth random texture."""
    import numpy as np
    from scipy.ndimage import gaussian_filter
    from skimage.io import imsave

    folder.mkdir()
    rng = np.random.default_rng(7)
    for index in range(count):
        texture = gaussian_filter(rng.standard_normal((side, side)), 3)
        gray = np.clip(128 + 40 * texture / texture.std(), 0, 255)
        imsave(folder / f"image{index:04d}.png", gray.astype(np.uint8), check_contrast=False)
