"""Each check catches what it is named for and nothing else: a method each that breaks the contract there alone."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sembench.checks import (
    CHECKS,
    CheckResult,
    check_restorer,
    checks_of,
    conformance,
    parametrize_with_checks,
    run_apart,
)
from sembench.commands import app
from sembench.errors import CheckError, InputError

BASE = '''
"""Methods, of which each breaks one promise."""

import os
import signal
import sys
import time
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from scipy.ndimage import gaussian_filter

from sembench.errors import InputError
from sembench.restorer import Control, Need, Restorer, check_image


Side = Annotated[int, Field(ge=1, le=9)]


class Good(Restorer):
    """Keeps every promise."""

    class Settings(Restorer.Settings):
        strength: float = Field(0.9, gt=0, le=1, description="factor on the image")
        mode: Literal["one", "two"] = Field("one", description="a choice")
        sides: tuple[Side, ...] = Field((3,), max_length=4, description="some sides")

    def restore(self, image, /):
        check_image(image)
        return self.changed(image.copy())

    def changed(self, image):
        return image * np.float32(self.settings.strength)


class Learner(Good):
    """Learns one number and keeps every promise."""

    def fit(self, training, /):
        import torch

        self.state = {"offset": torch.tensor([self.start() + float(training.batch(0)[0].clean.mean()) / 100])}

    def start(self):
        return 0.0

    def restore(self, image, /):
        check_image(image)
        if self.state is None:
            raise InputError("Learner is not fitted: `sembench adapt` fits it")
        return np.clip(image + np.float32(self.state["offset"].item()), 0, 255)


class TellsTruth(Control):
    """A control that keeps every promise."""

    def restore(self, image, truth, /):
        check_image(image)
        return truth.reference.copy()
'''

BROKEN: dict[str, str] = {
    "described": """
    class Settings(Restorer.Settings):
        strength: float = Field(0.9, gt=0, description="bounded below alone")
""",
    "settings_roundtrip": """
    class Settings(Good.Settings):
        model_config = ConfigDict(frozen=True, extra="ignore")
""",
    "shape_dtype_finite": """
    def changed(self, image):
        return image.repeat(2, axis=1)[:, : image.shape[1] // 2 * 2]
""",
    "input_untouched": """
    def restore(self, image, /):
        check_image(image)
        image *= np.float32(0.5)
        return image
""",
    "keeps_intensity": """
    keeps_intensity = True
""",
    "rejects_bad_input": """
    def restore(self, image, /):
        return self.changed(image.copy())
""",
    "seeded": """
    def changed(self, image):
        return np.clip(image + np.random.default_rng().normal(0, 1, image.shape), 0, 255).astype(np.float32)
""",
    "order_free": """
    seen = 1.0

    def changed(self, image):
        self.seen = 0.5 * self.seen + 0.002 * image.mean()
        return image * np.float32(min(self.seen, 1))
""",
    "reference_blind": """
    def changed(self, image):
        frame = sys._getframe()
        while frame is not None and "case" not in frame.f_locals:
            frame = frame.f_back
        reference = frame.f_locals["case"].reference if frame else image
        return (0.5 * image + 0.5 * reference.mean()).astype(np.float32)
""",
    "not_fitted": """
    def restore(self, image, /):
        return image.copy() if self.state is None and check_image(image) is None else super().restore(image)
""",
    "fit_keeps_settings": """
    def start(self):
        return 0.0 if self.state is None else self.state["offset"].item()
""",
    "state_roundtrip": """
    learnt = 0.0

    def fit(self, training, /):
        super().fit(training)
        self.learnt = 10.0

    def restore(self, image, /):
        return np.clip(super().restore(image) - np.float32(self.learnt), 0, 255)
""",
    "needs_honest": """
    def changed(self, image):
        import pytest_timeout

        return image
""",
    "tiling_seamless": """
    def tile_overlap(self):
        return 2

    def changed(self, image):
        return gaussian_filter(image, 3)
""",
    "cpu_gpu_agree": """
    def changed(self, image):
        return image * np.float32(0.9 if self.device == "cpu" else 0.8)
""",
}
MORE = {
    "DrawsGlobally": (
        "seeded",
        """
    def changed(self, image):
        return np.clip(image + np.random.normal(0, 1, image.shape), 0, 255).astype(np.float32)
""",
    ),
    "BatchesTogether": (
        "order_free",
        """
    def restore_many(self, images):
        level = float(np.mean([image.mean() for image in images]))
        return [image * np.float32(level / 255) for image in images]
""",
    ),
    "NotANumber": (
        "shape_dtype_finite",
        """
    def changed(self, image):
        return np.where(np.arange(image.shape[1]) == 698, np.float32(np.nan), image)
""",
    ),
    "NamesNoCheck": ("described", '    expected_failures = {"tiling": "a mistake"}\n'),
    "DiesOnOddSizes": (
        "shape_dtype_finite",
        """
    def changed(self, image):
        if image.shape[1] % 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return image
""",
    ),
    "LeavesOnOddSizes": ("shape_dtype_finite", "    def changed(self, image):\n        sys.exit(0)\n"),
    "NeverEnds": ("seeded", "    def changed(self, image):\n        time.sleep(100)\n"),
}
LEARNERS = ("not_fitted", "fit_keeps_settings", "state_roundtrip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    text = BASE
    for name, body in BROKEN.items():
        base = "Learner" if name in LEARNERS else "Good"
        text += f'\n\nclass Breaks_{name}({base}):\n    """Breaks {name}."""\n{body}'
    for name, (_, body) in MORE.items():
        text += f'\n\nclass {name}(Good):\n    """A method that breaks."""\n{body}'
    (folder / "methods.py").write_text(text, encoding="utf-8")
    (folder / "heavy.py").write_text(text + "\nimport torch\n", encoding="utf-8")
    (folder / "calls.py").write_text(
        BASE + "\nimport socket\ntry:\n    socket.getaddrinfo('example.invalid', 80)\nexcept OSError:\n    pass\n"
    )
    return folder


def outcomes(results: list[CheckResult], outcome: str) -> set[str]:
    return {result.name for result in results if result.outcome == outcome}


def why(results: list[CheckResult]) -> str:
    return "; ".join(f"{result.name}: {result.message}" for result in results if result.outcome == "failed")


def test_the_checks_are_the_sixteen_of_the_contract() -> None:
    assert list(CHECKS) == [
        "described", "import_light", "settings_roundtrip", "shape_dtype_finite", "input_untouched", "keeps_intensity",
        "rejects_bad_input", "seeded", "order_free", "reference_blind", "not_fitted", "fit_keeps_settings",
        "state_roundtrip", "needs_honest", "tiling_seamless", "cpu_gpu_agree",
    ]  # fmt: skip
    assert all(function.__doc__ for function in CHECKS.values())


def test_a_good_method_fails_none_and_skips_with_reasons(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "gpus", lambda: 0)
    for name, skipped in {
        "Good": {"keeps_intensity", *LEARNERS, "tiling_seamless", "cpu_gpu_agree"},
        "Learner": {"keeps_intensity", "tiling_seamless", "cpu_gpu_agree"},
        "TellsTruth": {"keeps_intensity", "reference_blind", *LEARNERS, "tiling_seamless", "cpu_gpu_agree"},
    }.items():
        results = check_restorer(f"{folder}/methods.py:{name}", fit=True)
        assert outcomes(results, "failed") == set(), why(results)
        assert outcomes(results, "skipped") == skipped
        assert all(result.message for result in results if result.outcome == "skipped")
    unfitted = check_restorer(f"{folder}/methods.py:Learner")
    assert outcomes(unfitted, "passed") == {
        "described", "import_light", "settings_roundtrip", "not_fitted", "needs_honest",
    }  # fmt: skip
    assert outcomes(unfitted, "failed") == set(), why(unfitted)


@pytest.mark.parametrize("name", [*BROKEN, "import_light"])
def test_a_method_that_breaks_one_promise_fails_that_check_alone(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "needs_honest" and find_spec("pytest_timeout") is None:
        pytest.skip("needs pytest-timeout, a package that nothing requires")
    monkeypatch.setattr(conformance, "gpus", lambda: 1)
    target = f"{folder}/heavy.py:Good" if name == "import_light" else f"{folder}/methods.py:Breaks_{name}"
    results = check_restorer(target, fit=name in LEARNERS)
    assert outcomes(results, "failed") == {name}, why(results)
    told = next(result.message for result in results if result.name == name)
    assert ": " in told
    assert "\n" not in told


@pytest.mark.parametrize("name", ["DrawsGlobally", "BatchesTogether", "NotANumber", "NamesNoCheck"])
def test_other_ways_to_break_a_promise(name: str, folder: Path) -> None:
    results = check_restorer(f"{folder}/methods.py:{name}")
    assert outcomes(results, "failed") == {MORE[name][0]}, why(results)


def needs_told(target: str) -> str:
    return why(check_restorer(target, only=["needs_honest"]))


@pytest.mark.skipif(find_spec("pywt") is None, reason="needs PyWavelets, which nothing requires")
def test_a_package_that_another_one_asks_for_is_named_with_what_to_do(tmp_path: Path) -> None:
    """scikit-image says in a sentence that PyWavelets is missing; the ImportError itself names no module."""
    body = """
    def changed(self, image):
        from skimage.restoration import denoise_wavelet

        return np.clip(255 * denoise_wavelet(image / 255), 0, 255).astype(np.float32)
"""
    code = f'{BASE}\n\nclass Wavelet(Good):\n    """Thresholds wavelets."""\n{body}'
    (tmp_path / "wavelet.py").write_text(code, encoding="utf-8")
    told = needs_told(f"{tmp_path}/wavelet.py:Wavelet")
    assert "pywt (PyWavelets) is imported, through skimage, and sembench does not require it" in told
    for advice in (
        "from sembench.restorer import Need",
        "@classmethod def needs(cls, settings) -> list[Need]",
        "Need('PyWavelets', 'not installed', 'pip install PyWavelets')",
    ):
        assert advice in told

    information = tmp_path / "sembench_wavelet-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sembench-wavelet\nVersion: 0.1.0\n")
    (information / "entry_points.txt").write_text("[sembench.restorers]\nwavelet = wavelet:Wavelet\n")
    done = subprocess.run(
        [sys.executable, "-m", "sembench", "check", "wavelet", "--only", "needs_honest"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "pywt (PyWavelets) is imported, through skimage, and the pyproject.toml of sembench-wavelet does not require "
        "it: add 'PyWavelets' to its `dependencies` and install it again"
    ) in done.stdout


def test_what_is_imported_and_not_installed_is_told_as_such(tmp_path: Path) -> None:
    bodies = {
        "Absent": "import surely_not_there\n        return image",
        "Partial": "from numpy import surely_not_there\n        return image",
        "Says": "raise ImportError('the licence dongle is not plugged in')",
    }
    code = BASE + "".join(
        f'\n\nclass {name}(Good):\n    """Lacks something."""\n\n    def changed(self, image):\n        {body}\n'
        for name, body in bodies.items()
    )
    (tmp_path / "lacking.py").write_text(code, encoding="utf-8")
    told = {name: needs_told(f"{tmp_path}/lacking.py:{name}") for name in bodies}
    assert "surely_not_there is imported and is not installed here" in told["Absent"]
    assert "surely_not_there" in told["Partial"]
    assert "the licence dongle is not plugged in" in told["Says"]
    assert all("needs()" in text for text in told.values())


def test_a_method_that_looks_at_the_whole_image_is_told_not_to_tile(folder: Path) -> None:
    results = check_restorer(f"{folder}/methods.py:Breaks_tiling_seamless", only=["tiling_seamless"])
    assert "leave tile_overlap out" in why(results)
    assert "whole image" in why(results)


def test_distributions_are_found_where_another_package_has_taken_that_from_python_s_finder() -> None:
    """As the backport of importlib.metadata does in every process that imports it."""
    code = (
        "import sys, importlib.metadata\n"
        "from importlib.machinery import PathFinder\n"
        "del PathFinder.find_distributions\n"
        "from sembench.checks.fresh import _Hiding\n"
        "sys.meta_path[:] = [_Hiding(['torch'])]\n"
        "print(importlib.metadata.version('sembench'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, version("sembench")), done.stderr


def test_an_import_that_asks_the_network_is_caught_even_if_it_hides_it(folder: Path) -> None:
    results = check_restorer(f"{folder}/calls.py:Good", only=["import_light"])
    assert "example.invalid" in why(results)


def test_the_global_random_streams_are_as_before(folder: Path) -> None:
    import random

    import numpy as np

    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    check_restorer(f"{folder}/methods.py:DrawsGlobally", only=["seeded", "order_free"])
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())  # noqa: NPY002


def test_expected_failures_are_told_and_so_are_those_that_pass(folder: Path) -> None:
    expected = {"seeded": "draws on purpose", "described": "is not so"}
    results = check_restorer(f"{folder}/methods.py:Breaks_seeded", expected_failures=expected)
    assert outcomes(results, "expected") == {"seeded"}
    assert outcomes(results, "failed") == {"described"}
    assert "draws on purpose" in next(result.message for result in results if result.name == "seeded")
    assert "is not so" in why(results)
    assert "take it out" in why(results)


def test_what_is_named_wrongly_is_refused_with_a_suggestion(folder: Path) -> None:
    good = f"{folder}/methods.py:Good"
    for call in (
        lambda: check_restorer(good, expected_failures={"seedd": "why"}),
        lambda: check_restorer(good, only=["seedd"]),
        lambda: checks_of(good, only=["seedd"]),
        lambda: parametrize_with_checks([good], expected_failures={"seedd": "why"}),
    ):
        with pytest.raises(InputError, match="did you mean 'seeded'"):
            call()
    with pytest.raises(InputError, match="did you mean 'strength'"):
        check_restorer(good, {"strenth": 1})
    for target, message in (
        ("gausian", "did you mean 'gaussian'"),
        ("pytest", "brings no plugin"),
        ("nowhere.py:Good", "no such file"),
        ("sembench", "--set is for one restorer"),
    ):
        with pytest.raises(InputError, match=message):
            checks_of(target, {"strength": 1})
    with pytest.raises(InputError, match="is not a restorer"):
        check_restorer(int)


def test_a_package_brings_the_checks_of_all_its_plugins() -> None:
    checks = checks_of("SemBench", only=["described", "metric_described", "protocol_described"])
    assert {("gaussian", "described"), ("psnr", "metric_described"), ("s2s", "protocol_described")} <= {
        (check.target, check.name) for check in checks
    }


def test_a_plugin_that_dies_exits_or_never_ends_is_a_failed_check(folder: Path) -> None:
    dying = run_apart(checks_of(f"{folder}/methods.py:DiesOnOddSizes", only=["shape_dtype_finite", "seeded"]))
    assert outcomes(dying, "failed") == {"shape_dtype_finite"}
    assert outcomes(dying, "passed") == {"seeded"}
    assert "SIGSEGV" in why(dying)
    leaving = run_apart(checks_of(f"{folder}/methods.py:LeavesOnOddSizes", only=["seeded"]))
    assert "SystemExit" in why(leaving)
    started = time.monotonic()
    endless = run_apart(checks_of(f"{folder}/methods.py:NeverEnds", only=["seeded"]), limit_s=4)
    assert "longer than 4 s" in why(endless)
    assert time.monotonic() - started < 60


def test_the_pytest_face_passes_fails_skips_and_expects(folder: Path) -> None:
    mark = parametrize_with_checks([(f"{folder}/methods.py:Breaks_order_free", {"strength": 0.5})])
    found = {str(parameter.id).rpartition("-")[2]: parameter.values[0] for parameter in mark.args[1]}
    assert list(found) == list(CHECKS)
    found["described"]()
    with pytest.raises(pytest.fail.Exception, match="keep nothing on self"):
        found["order_free"]()
    with pytest.raises(pytest.skip.Exception, match="does not learn"):
        found["not_fitted"]()
    expecting = parametrize_with_checks(
        [f"{folder}/methods.py:Breaks_order_free"], expected_failures={"order_free": "it remembers"}
    )
    with pytest.raises(pytest.xfail.Exception, match="it remembers"):
        next(p.values[0] for p in expecting.args[1] if "order_free" in str(p.id).rpartition("-")[2])()


def test_the_command_counts_and_fails(folder: Path) -> None:
    def invoke(*words: str):
        return CliRunner().invoke(app, ["check", *words])

    done = invoke(f"{folder}/methods.py:Good", "--set", "strength=0.5", "--only", "seeded", "--only", "not_fitted")
    assert done.exit_code == 0, done.output
    assert "1 checks ran: 1 passed, 0 failed; 1 skipped (1 does not learn)" in done.output
    broken = invoke(f"{folder}/methods.py:Breaks_seeded", "--only", "seeded", "--json")
    assert isinstance(broken.exception, CheckError)
    assert broken.exception.exit_code == 1
    told = json.loads(broken.stdout)
    assert told["counts"] == {"passed": 0, "failed": 1, "skipped": 0, "expected": 0}
    assert "default_rng" in told["checks"][0]["message"]


def test_a_file_that_ends_its_process_when_it_is_imported_fails_every_check(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    words = ["check", f"{tmp_path}/ends.py:Any", "--only", "described", "--only", "seeded", "--json"]
    done = CliRunner().invoke(app, words)
    told = json.loads(done.stdout)
    assert told["counts"]["failed"] == 2
    assert "exit code 3" in told["checks"][0]["message"]


def test_a_caller_that_is_killed_leaves_no_process(folder: Path) -> None:
    import signal
    import subprocess
    import sys

    import psutil

    command = [sys.executable, "-m", "sembench", "check", f"{folder}/methods.py:NeverEnds", "--only", "seeded"]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.2)
        children = psutil.Process(caller.pid).children(recursive=True)
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
