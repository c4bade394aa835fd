"""Worker processes that die where no case is to blame: while they start, or between cases."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sembench import protocol
from sembench.cases import CasePlan, plan_cases
from sembench.errors import UnavailableError
from sembench.execution import cluster, local
from sembench.execution.plan import Row
from sembench.execution.records import Record
from sembench.execution.worker import Bundle, Job

SMALL = """
name = "small"
version = 1
title = "Small cases"
question = "Is a lost worker replaced?"
seed = 7
time_limit_s = 60
data = { set = "semcorpus", size = 192, fallback = "phantom" }
degradation = { fixed = { rx = 2.0, ry = 2.0 } }
metrics = { primary = "psnr", names = ["psnr"] }
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "small.toml").write_text(SMALL)
    return Job(protocol.load(str(tmp_path / "small.toml")), ("psnr",), {}, tmp_path / "out", {})


@pytest.fixture
def cases(job: Job) -> CasePlan:
    return plan_cases(job.protocol, "phantom", limit=3)


@pytest.fixture
def killer() -> Iterator[Any]:
    """Kills so many worker processes of this one, each as soon as it is there; tells how many it got."""
    over = threading.Event()
    threads = []

    def kill(count: int) -> list[int]:
        got: list[int] = []

        def watch() -> None:
            while len(got) < count and not over.wait(0.002):
                for child in _workers():
                    if child.pid not in got:
                        os.kill(child.pid, signal.SIGKILL)
                        got.append(child.pid)

        threads.append(threading.Thread(target=watch))
        threads[-1].start()
        return got

    yield kill
    over.set()
    for thread in threads:
        thread.join()


def _workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _row(name: str = "input") -> Row:
    return Row(name, name, "restorer", {}, f"{name}-00000000")


def test_a_worker_that_is_killed_while_it_starts_costs_no_case(job: Job, cases: CasePlan, killer: Any) -> None:
    records: list[Record] = []
    got = killer(1)
    local.work([Bundle(spec, (_row(),)) for spec in cases.specs], job, 1, records.append)
    assert len(got) == 1
    assert [record["status"] for record in records] == ["ok"] * 3
    assert [record["case"] for record in records] == [spec.case_id for spec in cases.specs]


def test_a_worker_that_is_killed_between_cases_costs_no_case(job: Job, cases: CasePlan) -> None:
    lane = local.Lane(job)
    try:
        for spec in cases.specs:
            lane.give(Bundle(spec, (_row(),)))
            assert lane.next_record()["status"] == "ok"
            for worker in _workers():
                worker.kill()
            time.sleep(0.5)
    finally:
        lane.end(at_once=True)
        lane.join()


def test_workers_that_always_die_while_they_start_end_the_run_in_one_line(
    job: Job, cases: CasePlan, killer: Any
) -> None:
    records: list[Record] = []
    killer(1000)
    with pytest.raises(UnavailableError, match="die while they start"):
        local.work([Bundle(spec, (_row(),)) for spec in cases.specs], job, 1, records.append)
    assert not records


def _leave_a_lane_at_rest(job: Job, spec: Any) -> None:
    lane, _ = cluster._new_lane(cluster.Order("token", job, {}), {}, job.run_folder)
    lane.give(Bundle(spec, (_row(),)))
    assert lane.next_record()["status"] == "ok"


def test_a_dask_worker_that_ends_does_not_wait_for_its_lanes(job: Job, cases: CasePlan) -> None:
    """As when its scheduler is gone: Python joins the processes that a process started, which wait for cases."""
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_leave_a_lane_at_rest, args=(job, cases.specs[0]))
    worker.start()
    worker.join(60)
    ended = worker.exitcode
    for process in psutil.Process(worker.pid).children(recursive=True) if ended is None else ():
        process.kill()
    worker.join()
    assert ended == 0
