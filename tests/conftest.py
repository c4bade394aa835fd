"""Shared fixtures: the folder of real data or none, a command line in this process, a browser without a window."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

pytest.register_assert_rewrite("command_lines", "pictures", "small")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that SEMBENCH_DATA names; a test that asks for it is skipped where it is not set."""
    named = os.environ.get("SEMBENCH_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip("needs real data: set SEMBENCH_DATA to a folder laid out as <set>/<file>")
    return Path(named)


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data folder and an empty cache: where that is."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEMBENCH_CACHE", str(folder))
    monkeypatch.delenv("SEMBENCH_DATA", raising=False)
    return folder


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process; its exit code, stdout and stderr."""
    from command_lines import exit_code

    def told(*words: object) -> tuple[int, str, str]:
        code = exit_code(monkeypatch, *words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return told


class Chromium:
    """A browser without a window, told what to do over two pipes (Chrome DevTools Protocol).

    events: what it told of the page that is open; it answers within a minute or a test fails.
    """

    def __init__(self, executable: str, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def place() -> None:
            first, second = os.dup(commands), os.dup(answers)
            os.dup2(first, 3)
            os.dup2(second, 4)

        quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update")
        self._process = subprocess.Popen(
            [
                *(executable, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            close_fds=False,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], 60)
            content = os.read(self._answers, 1 << 20) if ready else b""
            if not content:
                raise RuntimeError("the browser says nothing any more")
            self._buffer += content
        whole, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        return message

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def open(self, path: Path, *, width: int = 1400, dark: bool = False) -> None:
        """Open a file and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def do(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            code = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors, warnings and dialogs of the page."""
        self.do("0")
        methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [e for e in self.events if e.get("method") in (*methods, "Page.javascriptDialogOpening")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, those apart that hold what they name."""
        self.do("0")
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Chromium; a test that asks for it is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((found for name in names if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    opened = Chromium(executable, tmp_path_factory.mktemp("profile"))
    try:
        yield opened
    finally:
        opened.close()
