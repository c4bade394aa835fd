"""Cases on the workers of a dask scheduler: the records of a local run, wherever the files lie and whoever dies."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from sembench.errors import InputError, UnavailableError
from sembench.execution import cluster, provenance, shipping
from sembench.execution.merge import TIMINGS
from sembench.execution.prepare import prepare
from sembench.execution.records import Record
from sembench.execution.request import RunRequest
from sembench.execution.run import execute
from sembench.processes import THREAD_VARIABLES

dask = pytest.importorskip("dask", reason="needs the extra `cluster`")
distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")

PROTOCOL = """
name = "small"
version = 1
title = "Small cases"
question = "Does the bench run?"
seed = 7
time_limit_s = 60
data = { set = "semcorpus", size = 192, fields = "s2s_fields" }
degradation = { fixed = { rx = 2.0, ry = 2.0 } }
metrics = { primary = "psnr", names = ["psnr", "ssim"] }
"""

METHODS = '''
import os, signal, time
from pathlib import Path
import numpy as np
from sembench.restorer import Restorer

class Draws(Restorer):
    """Draws from the global stream: only a process of one case at a time repeats it."""
    def restore(self, image, /):
        return image + np.random.normal(0, 3, image.shape).astype(np.float32)

class Dies(Restorer):
    """Kills its process."""
    def restore(self, image, /):
        os.kill(os.getpid(), signal.SIGKILL)

class Deserts(Restorer):
    """Kills the whole worker: the first case once, the second always."""
    def restore(self, image, /):
        flag = Path(__file__).with_name("deserted")
        always = image.shape[1] == 48
        if always or not flag.exists():
            flag.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(30)
        return image
'''


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two workers of one thread in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
    ) as running:
        yield running.scheduler_address


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "small.toml").write_text(PROTOCOL)
    (folder / "methods.py").write_text(METHODS)
    images = folder / "images"
    images.mkdir()
    (images / "one.txt").write_text("[SemImageFile]\nPixelSize=2.5\n")
    rng = np.random.default_rng(1)
    for name in ("one", "two"):
        Picture.fromarray(rng.integers(30, 220, (60, 70), np.uint8)).save(images / f"{name}.png")
    (images / "none.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def local(bench: Path) -> list[Record]:
    return run(bench, "local", ("input", "Draws"), workers=1)


def run(bench: Path, out: str, names: tuple[str, ...], hear: Any = None, **options: Any) -> list[Record]:
    restorers = tuple(f"{bench / 'methods.py'}:{name}" if name[0].isupper() else name for name in names)
    request = RunRequest(restorers, str(bench / "small.toml"), str(bench / "images"), bench / out, **options)
    return execute(prepare(request), request, None, hear)


def told(records: list[Record]) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def stored(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "restored").rglob("*.png")}


@pytest.mark.parametrize("shared", [True, False], ids=["by path", "by content"])
def test_records_and_images_are_those_of_a_local_run(
    bench: Path, local: list[Record], scheduler: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        holds = shipping._holds
        monkeypatch.setattr(
            shipping, "_holds", lambda folder, parcel: not folder.is_relative_to(bench) and holds(folder, parcel)
        )
    out = "by-path" if shared else "by-content"
    spread = run(bench, out, ("input", "Draws"), scheduler=scheduler)
    assert told(spread) == told(local)
    assert {r["case"]: r["status"] for r in spread} == {"none": "failed", "one": "ok", "two": "ok"}
    assert all("images/none.png" in r["reason"] for r in spread if r["case"] == "none")
    assert stored(bench / out) == stored(bench / "local")
    assert cluster._at_rest == {}


def test_a_worker_of_other_versions_ends_the_run(bench: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**provenance.versions(), "python": "2.7"}
    order = cluster.Order
    monkeypatch.setattr(cluster, "Order", lambda token, job, _: order(token, job, other))
    with pytest.raises(InputError, match=r"other versions \(python 3.* for 2.7\)"):
        run(bench, "out", ("input",), scheduler=scheduler)


def test_a_scheduler_that_is_not_there_is_one_line(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(UnavailableError, match="cannot be reached") as refusal:
        run(bench, "out", ("input",), scheduler="127.0.0.1:9")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        run(bench, "out", ("input",), scheduler="no address at all")


@pytest.mark.parametrize("ended", ["CancelledError", "CommClosedError"])
def test_a_scheduler_that_is_lost_is_one_line(ended: str) -> None:
    """Whether what is under way was given up, or a result was just on its way."""
    distributed = pytest.importorskip("distributed")
    error = {"CancelledError": distributed.CancelledError, "CommClosedError": distributed.comm.CommClosedError}[ended]

    class Lost:
        def result(self) -> Any:
            raise error("Stream is closed")

    run: Any = object.__new__(cluster._Run)
    run._address = "127.0.0.1:8786"
    with pytest.raises(UnavailableError, match="the scheduler was lost: run again to resume"):
        run._answer(Lost())


def test_a_file_is_found_by_path_only_where_it_is_the_same(tmp_path: Path) -> None:
    home, shelf = tmp_path / "home", tmp_path / "shelf"
    home.mkdir()
    (home / "a.png").write_bytes(b"image")
    (home / "a.txt").write_bytes(b"sidecar")
    parcel = shipping._parcel(str(home / "a.png"))
    assert parcel is not None
    assert [name for name, _ in parcel.files] == ["a.png", "a.txt"]
    contents = shipping.contents(parcel)
    assert shipping.place(parcel, shelf, {}) == home / "a.png"
    (home / "a.txt").write_bytes(b"another sidecar")
    assert shipping.place(parcel, shelf, {}) is None
    placed = shipping.place(parcel, shelf, contents)
    assert placed is not None
    assert placed.is_relative_to(shelf)
    assert (placed.read_bytes(), placed.with_suffix(".txt").read_bytes()) == (b"image", b"sidecar")
    placed.write_bytes(b"damaged on the shelf")
    os.utime(placed, (1, 1))
    assert shipping.place(parcel, shelf, {}) is None


def test_that_a_run_waits_for_workers_is_told_until_there_are_some(
    bench: Path, local: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOOK_S", 0.05)
    monkeypatch.setattr(cluster, "TELL_AFTER_S", 0.3)
    heard: list[str] = []
    nodes = distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50
    )
    with nodes as running:

        def hear(name: str, told: Any, notice: str) -> None:
            heard.append(notice)
            if len(heard) == 3:
                running.scale(1)

        spread = run(bench, "awaited", ("input",), hear=hear, scheduler=running.scheduler_address)
    assert told(spread) == [record for record in told(local) if record["restorer"] == "input"]
    *waits, found = heard
    assert len(waits) >= 3
    for notice, seconds in zip(waits, ("0.3 s", "0.6 s", "1.2 s"), strict=False):
        assert notice.startswith(f"{running.scheduler_address} has had no worker for {seconds}, ")
        assert f"dask worker {running.scheduler_address}" in notice
        assert "\n" not in notice
    assert found == f"{running.scheduler_address} has 1 worker now: the run goes on"


def test_that_all_workers_are_there_is_not_told(bench: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOOK_S", 0.02)
    heard: list[str] = []
    run(bench, "quiet", ("input",), hear=lambda name, told, notice: heard.append(notice), scheduler=scheduler)
    assert heard == []


@pytest.mark.slow
def test_workers_that_die_are_survived(bench: Path) -> None:
    Picture.fromarray(np.full((48, 48), 90, np.uint8)).save(bench / "images" / "small.png")
    few = dask.config.set(
        {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "10 minutes"}
    )
    nodes = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
    with few, nodes as running:
        records = run(bench, "deserted", ("Deserts", "Dies"), scheduler=running.scheduler_address)
    by_key = {(record["restorer"], record["case"]): record for record in records}
    assert len(by_key) == len(records) == 8
    assert {case for (name, case), record in by_key.items() if name == "Deserts" and record["status"] == "ok"} == {
        "one",
        "two",
    }
    assert "every worker that took it died" in by_key["Deserts", "small"]["reason"]
    assert "killed its worker" in by_key["Dies", "one"]["reason"]


def test_no_traceback_of_dask_or_tornado_is_printed_over_our_own_error(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(name) for name in ("distributed.client", "tornado.application", "asyncio")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.ERROR)
    with cluster._connected(scheduler):
        assert not any(logger.isEnabledFor(logging.ERROR) for logger in loggers)
