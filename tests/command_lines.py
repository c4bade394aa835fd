"""Calls of sembench: in this process, in one of their own, and through typer's runner."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from sembench.commands import main

Tell = Callable[..., tuple[int, str, str]]
"""The fixture `tell`: the words of a command line -> its exit code, stdout and stderr."""


def exit_code(patch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command line in this process; its exit code."""
    patch.setattr(sys, "argv", ["sembench", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def command(*words: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "sembench", *words]


def without_data(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process that has no data and keeps its cache in a folder."""
    kept = {name: value for name, value in os.environ.items() if name != "SEMBENCH_DATA"}
    return kept | {"SEMBENCH_CACHE": str(folder / "cache")} | more


def call(folder: Path, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a process of its own, in a folder; options: as for subprocess.run."""
    options = {"timeout": 250, **options}
    return subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, check=False, **options)


def wait_until(condition: Callable[[], Any], seconds: float = 100, every: float = 0.05) -> None:
    """Wait for a condition; a test fails in which it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(every)


def invoke(app: typer.Typer, *arguments: object, **options: Any) -> Result:
    """What a command of typer does, its errors kept; options: as for CliRunner.invoke."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def succeed(app: typer.Typer, *arguments: object, **options: Any) -> Result:
    """The same, where there must be no error."""
    result = invoke(app, *arguments, **options)
    if result.exception is not None:
        raise result.exception
    return result


def refuse(app: typer.Typer, kind: type[Exception], *arguments: object) -> str:
    """The one line with which a command refuses."""
    result = invoke(app, *arguments)
    assert type(result.exception) is kind, result.output
    text = str(result.exception)
    assert "\n" not in text
    return text
