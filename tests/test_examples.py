"""The examples run as they stand: the plugin in an environment of its own, and what wraps a model or a program."""

import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from scipy.signal import fftconvolve

from sembench.checks import check_restorer
from sembench.checks.subject import scene
from sembench.errors import InputError
from sembench.optics import airy_psf
from sembench.registry import find_method, load_method, needs_of

EXAMPLES = Path(__file__).parents[1] / "examples"


def failures(results: list) -> list[str]:
    return [f"{result.name}: {result.message}" for result in results if result.outcome == "failed"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A clean virtual environment with the plugin installed; it sees this one's packages, so nothing is downloaded."""
    if find_spec("hatchling") is None or find_spec("pip") is None:
        pytest.skip("needs pip and hatchling here, to build the plugin without a download")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLES / "plugin", folder / "plugin", ignore=shutil.ignore_patterns("__pycache__", "dist"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "outer.pth").write_text("\n".join(lines) + "\n")

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "SEMBENCH_CACHE": str(folder / "cache")}
        settings.pop("VIRTUAL_ENV", None)
        settings.pop("PYTHONPATH", None)
        return subprocess.run(
            [str(folder / "venv" / "bin" / "python"), *words],
            cwd=folder / "plugin",
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )

    installed = python("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", ".")
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(folder / "plugin" / "src")
    return python


def test_the_plugin_installs_is_listed_and_run(environment: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    listed = environment("-m", "sembench", "list", "restorers", "--json")
    assert "sharpen" in {row["name"] for row in json.loads(listed.stdout)["restorers"]}
    run = "run --protocol small_defocus --data phantom --restorer sharpen,input --limit 1 --workers 1 --json"
    done = environment("-m", "sembench", *run.split())
    assert done.returncode == 0, done.stderr
    rows = {row["restorer"]: row["metrics"]["gradient_error"]["mean"] for row in json.loads(done.stdout)["rows"]}
    assert rows["sharpen"] < rows["input"]


@pytest.mark.slow
def test_the_installed_plugin_passes_its_checks_and_its_tests(
    environment: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    checked = environment("-m", "sembench", "check", "sembench-sharpen", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = json.loads(checked.stdout)
    assert told["counts"]["failed"] == 0
    assert {check["subject"] for check in told["checks"]} == {"sharpen", "gradient_error", "small_defocus"}
    passed = {(check["subject"], check["name"]) for check in told["checks"] if check["outcome"] == "passed"}
    assert {
        ("sharpen", "keeps_intensity"),
        ("sharpen", "tiling_seamless"),
        ("gradient_error", "metric_direction"),
        ("small_defocus", "protocol_cases"),
    } <= passed
    tested = environment("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout


def test_the_plugin_keeps_the_contract_without_being_installed() -> None:
    folder = EXAMPLES / "plugin" / "src" / "sembench_sharpen"
    assert failures(check_restorer(f"{folder / 'restorer.py'}:Sharpen")) == []


def test_the_plugin_shows_what_a_row_is_told_apart_and_credited_by() -> None:
    cls = find_method(f"{EXAMPLES / 'plugin' / 'src' / 'sembench_sharpen' / 'restorer.py'}:Sharpen").cls
    assert {"version", "licence", "citation"} <= vars(cls).keys()
    assert cls.citation


def test_the_needs_of_the_tutorial_are_told_where_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class of the tutorial as it stands there."""
    text = (EXAMPLES / "plugin" / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def needs" in block)
    (tmp_path / "wavelet.py").write_text(code, encoding="utf-8")
    method = find_method(f"{tmp_path / 'wavelet.py'}:Wavelet")
    settings = method.cls.Settings()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert needs_of(method, settings) == ["PyWavelets: not installed; pip install PyWavelets"]
    monkeypatch.undo()
    assert failures(check_restorer(f"{tmp_path / 'wavelet.py'}:Wavelet")) == []


def test_a_torchscript_file(tmp_path: Path) -> None:
    import torch

    mean = torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False)
    with torch.no_grad():
        mean.weight.fill_(1 / 9)
    torch.jit.trace(mean, torch.zeros(1, 1, 40, 40)).save(str(tmp_path / "model.pt"))
    target = f"{EXAMPLES / 'wrapping' / 'torchscript_model.py'}:TorchScriptModel"
    settings = {"file": str(tmp_path / "model.pt")}
    image = scene(50, 60)
    expected = uniform_filter(image.astype(np.float64), 3, mode="mirror")
    np.testing.assert_allclose(load_method(target, settings).restore(image), expected, atol=1e-3)
    assert failures(check_restorer(target, settings)) == []
    missing = check_restorer(target, {"file": str(tmp_path / "none.pt")}, only=["needs_honest", "seeded"])
    assert {result.outcome for result in missing} == {"passed", "skipped"}


def test_an_onnx_file_or_an_honest_need(tmp_path: Path) -> None:
    target = f"{EXAMPLES / 'wrapping' / 'onnx_model.py'}:OnnxModel"
    results = check_restorer(target, {"file": str(tmp_path / "model.onnx")})
    assert failures(results) == []
    assert any("onnxruntime" in result.message or "model.onnx" in result.message for result in results)


def test_an_onnx_model_restores(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx and onnxruntime")
    pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime")
    sides = ["n", 1, "h", "w"]
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sides)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sides)
    half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "half"], ["y"])], "half", [value], [out], [half])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model.onnx"))
    target = f"{EXAMPLES / 'wrapping' / 'onnx_model.py'}:OnnxModel"
    image = scene(50, 60)
    restored = load_method(target, {"file": str(tmp_path / "model.onnx")}).restore(image)
    np.testing.assert_allclose(restored, image / 2, atol=1e-3)


def test_a_deepinv_reconstructor_or_an_honest_need() -> None:
    target = f"{EXAMPLES / 'wrapping' / 'deepinv_reconstructor.py'}:DeepinvDeconvolution"
    if find_spec("deepinv") is None:
        (result,) = check_restorer(target, only=["seeded"])
        assert (result.outcome, "pip install deepinv" in result.message) == ("skipped", True)
        return
    sharp = scene(64, 72)
    blurred = fftconvolve(np.pad(sharp, 9, mode="reflect"), airy_psf(3.0, 3.0, 2.0), mode="valid")
    degraded = np.clip(blurred + np.random.default_rng(1).normal(0, 2, sharp.shape), 0, 255).astype(np.float32)
    restored = load_method(target).restore(degraded)
    assert np.mean((restored - sharp) ** 2) < 0.8 * np.mean((degraded - sharp) ** 2)
    assert failures(check_restorer(target, only=["seeded", "input_untouched", "rejects_bad_input"])) == []


def test_a_program_that_reads_and_writes_files(tmp_path: Path) -> None:
    program = tmp_path / "copies"
    program.write_text('#!/bin/sh\ncp "$1" "$2"\n')
    program.chmod(0o755)
    target = f"{EXAMPLES / 'wrapping' / 'command_line.py'}:CommandLine"
    settings = {"program": str(program)}
    image = scene(50, 60)
    np.testing.assert_array_equal(load_method(target, settings).restore(image), image)
    assert failures(check_restorer(target, settings)) == []
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(InputError, match=r"code 3.*no licence"):
        load_method(target, {"program": str(failing)}).restore(image)
