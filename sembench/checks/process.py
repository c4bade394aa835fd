"""A process apart: what crashes, exits or never ends there is told to the caller, whose own process goes on."""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

GRACE_S = 5.0
"""Seconds that a process which is no longer needed has to clean up."""


class ProcessLost(Exception):
    """The process ended, or was stopped at its time limit, before it answered; the message says how."""


class ProcessApart:
    """A Python process that runs functions of modules, named `module:function`, on plain values.

    fresh: each call runs in a process in which none ran before (forked from one that has imported sembench and nothing
    else); otherwise one process does them all, so that what they import and keep is shared.
    """

    def __init__(self, *, fresh: bool) -> None:
        self.fresh = fresh
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: str, words: Mapping[str, Any], limit_s: float) -> Any:
        """The function's plain value; ProcessLost where the process crashed, exited, or took too long."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"function": function, "words": dict(words)}).encode() + b"\n")
            process.stdin.flush()
            line = _line(process.stdout, limit_s)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self._stop()
            raise ProcessLost(f"took longer than {limit_s:g} s and was stopped") from None
        except BaseException:
            self._stop()
            raise
        if not line:
            raise ProcessLost(_ending(self._stop(GRACE_S)))
        answer = json.loads(line)
        if "lost" in answer:
            raise ProcessLost(answer["lost"])
        return answer["value"]

    def close(self) -> None:
        """End the process and what it started."""
        if self._process:
            self._stop(GRACE_S)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            code = f"from sembench.checks.process import serve; serve({self.fresh}, {os.getpid()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **THREADS},
                start_new_session=True,
            )
        return self._process

    def _stop(self, grace_s: float = 0.0) -> int:
        """End the process, which may clean up first, and its group; its exit code."""
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        return process.wait()


def _line(stream: Any, limit_s: float) -> bytes:
    """What the stream holds up to its next line break; empty where it ended."""
    until = time.monotonic() + limit_s
    found = b""
    while not found.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            raise TimeoutError
        part = os.read(stream.fileno(), 65536)
        if not part:
            return b""
        found += part
    return found


def _ending(code: int) -> str:
    if code < 0:
        return f"killed its process (signal {signal.Signals(-code).name})"
    return f"ended its process (exit code {code})"


def serve(fresh: bool, caller: int) -> None:
    """Answer calls until the caller (a process id) is gone; what plugins print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    calls, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    if fresh:
        importlib.import_module("sembench.checks.fresh")
    else:
        threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    while line := calls.readline():
        call = json.loads(line)
        answer = _forked(call, calls) if fresh else _answer(call)
        answers.write(answer + b"\n")
        answers.flush()


def _answer(call: dict[str, Any]) -> bytes:
    module, _, name = call["function"].partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(**call["words"])
    except BaseException as error:
        return json.dumps({"lost": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}).encode()
    return json.dumps({"value": value}).encode()


def _forked(call: dict[str, Any], calls: BinaryIO) -> bytes:
    """The answer of a child of this process, which ends with the caller or with the child."""
    readable, writable = os.pipe()
    server = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(readable)
        threading.Thread(target=_end_with, args=(server,), daemon=True).start()
        os.write(writable, _answer(call))
        os._exit(0)
    os.close(writable)
    answer = b""
    while True:
        ready = select.select([readable, calls.fileno()], [], [])[0]
        if readable in ready:
            part = os.read(readable, 65536)
            if not part:
                break
            answer += part
        else:
            os.kill(child, signal.SIGKILL)
            os._exit(1)
    os.close(readable)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer or json.dumps({"lost": _ending(code)}).encode()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
