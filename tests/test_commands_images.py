"""`degrade` and `restore` on small files: what is written, printed and refused, against the library called directly."""

import hashlib
import json
from functools import partial
from pathlib import Path

import command_lines
import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import save as serialise

from sembench import micrograph as mg
from sembench import optics, phantom
from sembench.commands.images import degrade, restore
from sembench.errors import CasesFailed, InputError, UnavailableError, WriteError

APP = typer.Typer()
APP.command()(degrade)
APP.command()(restore)
run, succeed, refuse = (partial(do, APP) for do in (command_lines.invoke, command_lines.succeed, command_lines.refuse))

SETTINGS = {"rx": 2.0, "ry": 3.0, "beta": 1.95, "theta": 0.3, "a": 1.05, "b": 9.0, "sigma": 4.0, "dose": 5.0}

METHODS = '''
import numpy as np
from pydantic import Field

from sembench.errors import InputError
from sembench.restorer import Control, Need, Restorer


class Brighter(Restorer):
    """Adds a constant."""

    class Settings(Restorer.Settings):
        by: float = Field(10.0, ge=0, le=500, description="gray levels added")

    def restore(self, image, /):
        assert not image.flags.writeable and image.dtype == np.float32
        return image + np.float32(self.settings.by)


class Faulty(Restorer):
    """Fails on bright images."""

    def restore(self, image, /):
        if image.mean() > 200:
            raise RuntimeError("too\\nbright")
        return image


class Nan(Restorer):
    """Gives NaN."""

    def restore(self, image, /):
        return image * np.float32(np.nan)


class Shrinks(Restorer):
    """Gives a smaller image."""

    def restore(self, image, /):
        return image[1:]


class Refuses(Restorer):
    """Refuses what it is given."""

    def restore(self, image, /):
        raise InputError("image is too plain: give another")


class Missing(Restorer):
    """Needs what is not there."""

    @classmethod
    def needs(cls, settings):
        return [Need("weights", "not downloaded", "run fetch")]


class Truthful(Control):
    """Is told the truth."""


class Learnt(Restorer):
    """Adds a ramp along x that it was fitted."""

    def fit(self, training, /):
        pass

    def restore(self, image, /):
        return image + np.float32(self.state["slope"].item()) * np.arange(image.shape[1], dtype=np.float32)


class Negative(Learnt):
    """Tells a spread below 0."""

    def uncertainty(self, image, /):
        return -np.ones_like(image)
'''


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    path = tmp_path / "clean.tif"
    mg.write(path, mg.to_grid(rng.uniform(20, 190, (60, 72))), (4.5, 4.5))
    return path


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    path = tmp_path / "methods.py"
    path.write_text(METHODS)
    return path


def fixed_options() -> list[str]:
    return [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]


# degrade


def test_degrade_is_the_forward_model(clean: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "d.tif"
    small = ["--rx", 2.5, "--ry", 1.5]
    record = json.loads(succeed("degrade", clean, "-o", output, "--seed", 7, *small, "--json").stdout)
    expected, parameters = optics.degrade_case(mg.read(clean).pixels, 7, "clean", {"rx": 2.5, "ry": 1.5})
    written = mg.read(output)
    np.testing.assert_array_equal(written.pixels, expected)
    assert written.pixel_size_nm == (4.5, 4.5)
    assert {name: record[name] for name in optics.RANGES} == parameters.as_dict()
    assert (record["seed"], record["image_id"], record["output"]) == (7, "clean", str(output))


def test_degrade_by_id_and_seed(clean: Path, tmp_path: Path) -> None:
    def pixels(name: str, *options: object) -> np.ndarray:
        succeed("degrade", clean, "-o", tmp_path / name, "--rx", 2, "--ry", 2, *options)
        return np.load(tmp_path / name)

    first = pixels("a.npy", "--seed", 1, "--image-id", "field-1")
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, pixels("b.npy", "--seed", 1, "--image-id", "field-1"))
    assert not np.array_equal(first, pixels("c.npy", "--seed", 2, "--image-id", "field-1"))
    assert not np.array_equal(first, pixels("d.npy", "--seed", 1, "--image-id", "field-2"))


def test_degrade_every_parameter_fixed_and_no_noise(clean: Path, tmp_path: Path) -> None:
    output = tmp_path / "d.npy"
    record = json.loads(succeed("degrade", clean, "-o", output, *fixed_options(), "--no-noise", "--json").stdout)
    assert {name: record[name] for name in SETTINGS} == SETTINGS
    assert record["noise"] is False
    expected = optics.degrade(mg.read(clean).pixels, optics.Degradation(**SETTINGS), None)
    np.testing.assert_array_equal(np.load(output), expected)


def test_degrade_png_is_rounded_and_the_lost_pixel_size_told(clean: Path, tmp_path: Path) -> None:
    result = succeed("degrade", clean, "-o", tmp_path / "d.png", *fixed_options(), "--no-noise")
    expected = optics.degrade(mg.read(clean).pixels, optics.Degradation(**SETTINGS), None)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "d.png")), np.rint(expected))
    assert "does not keep the pixel size" in result.stderr
    assert "dose" in result.stdout


def test_degrade_range_and_crop(tmp_path: Path) -> None:
    values = (np.arange(60 * 64, dtype=np.uint16).reshape(60, 64)) % 4096
    Image.fromarray(values).save(tmp_path / "raw.png")
    output = tmp_path / "d.npy"
    options = ["--range", "0,4095", "--crop-bottom", "auto", *fixed_options(), "--no-noise"]
    succeed("degrade", tmp_path / "raw.png", "-o", output, *options)
    clean = mg.to_grid(values[:56] * (255 / 4095))
    np.testing.assert_allclose(
        np.load(output), optics.degrade(clean, optics.Degradation(**SETTINGS), None), rtol=0, atol=1e-4
    )


def test_degrade_refuses(clean: Path, tmp_path: Path) -> None:
    assert ".tif, .npy or .png" in refuse(InputError, "degrade", clean, "-o", tmp_path / "d.jpg")
    assert "overwrite" in refuse(InputError, "degrade", clean, "-o", clean)
    assert "no such file" in refuse(InputError, "degrade", tmp_path / "x.png", "-o", tmp_path / "d.tif")
    small = refuse(InputError, "degrade", clean, "-o", tmp_path / "d.tif", "--rx", 30)
    assert small.startswith(f"{clean}: ")
    assert "too small" in small
    assert "above 0" in refuse(InputError, "degrade", clean, "-o", tmp_path / "d.tif", "--rx", 0)
    assert "for example" in refuse(InputError, "degrade", clean, "-o", tmp_path / "d.tif", "--range", "9")
    (tmp_path / "file").touch()
    refuse(WriteError, "degrade", clean, "-o", tmp_path / "file" / "d.tif", *fixed_options())
    assert run("degrade", clean, "-o", tmp_path / "d.tif", "--seed", -1).exit_code == 2


# restore


def test_restore_one_image(clean: Path, methods: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "r.tif", tmp_path / "p.png"
    arguments = ["--restorer", f"{methods}:Brighter", "-o", output, "--set", "by=100", "--picture", picture, "--json"]
    record = json.loads(succeed("restore", clean, *arguments).stdout)
    before = mg.read(clean).pixels
    written = mg.read(output)
    np.testing.assert_array_equal(written.pixels, np.minimum(before + 100, 255))
    assert written.pixel_size_nm == (4.5, 4.5)
    assert record["settings"] == {"by": "100"}
    (image,) = record["images"]
    assert (image["image"], image["output"], image["status"]) == (str(clean), str(output), "restored")
    assert image["pixel_size_nm"] == [4.5, 4.5]
    both = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(both[:, :72], np.rint(before))
    np.testing.assert_array_equal(both[:, -72:], np.rint(np.minimum(before + 100, 255)))
    assert (both[:, 72:-72] == 255).all()


def test_restore_crops_and_takes_a_range(methods: Path, tmp_path: Path) -> None:
    values = np.full((100, 64), 819, np.uint16)
    Image.fromarray(values).save(tmp_path / "raw.png")
    arguments = ["--restorer", f"{methods}:Brighter", "-o", tmp_path / "out", "--crop-bottom", "0.2"]
    succeed("restore", tmp_path / "raw.png", *arguments, "--range", "0,4095", "--set", "by=0")
    np.testing.assert_array_equal(mg.read(tmp_path / "out" / "raw.tif").pixels, np.full((80, 64), 51.0))


def test_restore_folder_goes_on_after_a_failure(methods: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    for name, level in (("a", 10), ("b", 250), ("c", 30)):
        mg.write(folder / f"{name}.png", np.full((40, 40), float(level)))
    mg.write(folder / "d.tif", np.full((20, 20), 9.0))
    (folder / "e.png").write_text("no image")
    arguments = ["restore", folder, "--restorer", f"{methods}:Faulty", "-o", output, "--picture", tmp_path / "pictures"]
    result = run(*arguments, "--json")
    assert isinstance(result.exception, CasesFailed)
    assert str(result.exception).startswith("3 of 5 images failed, first: ")
    records = {Path(record["image"]).name: record for record in json.loads(result.stdout)["images"]}
    failed = {name: record["reason"] for name, record in records.items() if record["status"] == "failed"}
    assert sorted(failed) == ["b.png", "d.tif", "e.png"]
    assert "RuntimeError: too bright" in failed["b.png"]
    assert "20 x 20 px is too small" in failed["d.tif"]
    assert "not a PNG" in failed["e.png"]
    assert all(reason in result.stderr for reason in failed.values())
    assert sorted(path.name for path in output.iterdir()) == ["a.tif", "c.tif"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a.png", "c.png"]
    assert isinstance(run(*arguments).exception, CasesFailed)


def test_restore_says_how_many_files_it_replaced(methods: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        mg.write(tmp_path / "in" / f"{name}.png", np.full((40, 40), 250.0 if name == "c" else 7.0))
    output, pictures = tmp_path / "out", tmp_path / "pictures"
    arguments = ["restore", tmp_path / "in", "-o", output, "--picture", pictures]
    assert "replaced" not in succeed(*arguments, "--restorer", f"{methods}:Brighter").stderr
    (output / "b.tif").unlink()
    result = run(*arguments, "--restorer", f"{methods}:Faulty", "--json")
    assert isinstance(result.exception, CasesFailed), "c fails: what stood there before is left"
    (said,) = [line for line in result.stderr.splitlines() if "replaced" in line]
    assert said.startswith("notice: 3 files that were there before were replaced, ")
    assert str(output / "a.tif") in said, "with its picture, and that of b"
    names = [[Path(path).name for path in image.get("replaced", [])] for image in json.loads(result.stdout)["images"]]
    assert names == [["a.tif", "a.png"], ["b.png"], []]
    assert np.all(mg.read(output / "a.tif").pixels == 7)
    one = ["restore", tmp_path / "in" / "a.png", "--restorer", f"{methods}:Brighter", "-o", tmp_path / "one.tif"]
    assert "replaced" not in succeed(*one).stderr
    assert f"notice: 1 file that was there before was replaced: {tmp_path / 'one.tif'}\n" in succeed(*one).stderr


def test_restore_folder_without_failure(methods: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mg.write(tmp_path / "in" / f"{name}.png", np.full((40, 40), 7.0))
    result = succeed("restore", tmp_path / "in", "--restorer", f"{methods}:Brighter", "-o", tmp_path / "out")
    assert "restored" in result.stdout
    assert np.all(mg.read(tmp_path / "out" / "b.tif").pixels == 17)


def test_restore_by_entry_point_name(clean: Path, tmp_path: Path) -> None:
    succeed("restore", clean, "--restorer", "input", "-o", tmp_path / "r.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), mg.read(clean).pixels)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("Truthful", InputError, "is a control"),
        ("Missing", UnavailableError, "run fetch"),
        ("Nan", CasesFailed, "not finite"),
        ("Shrinks", CasesFailed, "result of shape (59, 72)"),
        ("Refuses", InputError, "clean.tif: image is too plain"),
        ("Absent", InputError, "Absent"),
    ],
)
def test_wrong_restorers(
    clean: Path, methods: Path, tmp_path: Path, name: str, kind: type[Exception], text: str
) -> None:
    output = tmp_path / "r.tif"
    assert text in refuse(kind, "restore", clean, "--restorer", f"{methods}:{name}", "-o", output)
    assert not output.exists()


def test_restore_refuses(clean: Path, methods: Path, tmp_path: Path) -> None:
    brighter = ["--restorer", f"{methods}:Brighter"]
    output = tmp_path / "r.tif"
    assert "KEY=VALUE" in refuse(InputError, "restore", clean, *brighter, "-o", output, "--set", "by")
    assert "has no setting" in refuse(InputError, "restore", clean, *brighter, "-o", output, "--set", "bye=3")
    assert "overwrite" in refuse(InputError, "restore", clean, *brighter, "-o", clean)
    assert "overwrite" in refuse(InputError, "restore", clean, *brighter, "-o", tmp_path)
    assert "ending in" in refuse(InputError, "restore", clean, *brighter, "-o", tmp_path / "r.gif")
    picture = ["-o", output, "--picture", tmp_path / "p.jpg"]
    assert "a picture is a PNG" in refuse(InputError, "restore", clean, *brighter, *picture)
    small = tmp_path / "small.png"
    mg.write(small, np.zeros((31, 60)))
    text = refuse(InputError, "restore", small, *brighter, "-o", output)
    assert text.startswith(f"{small}: ")
    assert "32 px" in text
    assert "no such file" in refuse(InputError, "restore", tmp_path / "none", *brighter, "-o", output)
    (tmp_path / "empty").mkdir()
    assert "no image" in refuse(InputError, "restore", tmp_path / "empty", *brighter, "-o", tmp_path / "out")
    assert "a folder with -o" in refuse(InputError, "restore", tmp_path / "empty", *brighter, "-o", clean)
    for name in ("same.png", "same.tif"):
        mg.write(tmp_path / "twins" / name, np.zeros((40, 40)))
    assert "same.png" in refuse(InputError, "restore", tmp_path / "twins", *brighter, "-o", tmp_path / "out")
    (tmp_path / "file").touch()
    refuse(WriteError, "restore", clean, *brighter, "-o", tmp_path / "file" / "r.tif")


# what a method that learns was trained on, and how far it agrees with itself


def fitted(folder: Path, degradation: str | None) -> Path:
    """A state as `adapt --out` writes it, its description naming the degradation; None: without a description."""
    state = folder / "learnt.safetensors"
    state.write_bytes(serialise({"slope": np.array([0.25], np.float16)}))
    if degradation is not None:
        told = {
            "identity": {"degradation": degradation},
            "state_sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
        }
        state.with_suffix(".json").write_text(json.dumps(told))
    return state


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """An ordinary field of 240 x 256 px."""
    scene = mg.to_grid(phantom.corpus_scene(2604, "T001", 256).image)
    degraded = optics.degrade(scene, optics.Degradation(**SETTINGS), np.random.default_rng(1))
    mg.write(tmp_path / "field.tif", degraded[:240], (2.0, 2.0))
    return tmp_path / "field.tif"


def strange(path: Path, sigma: float = 150) -> Path:
    mg.write(path, mg.to_grid(np.random.default_rng(2).normal(128, sigma, (230, 250))))
    return path


def test_restore_warns_once_an_image_of_what_it_was_not_trained_on(field: Path, methods: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    field.rename(folder / "field.tif")
    noise = strange(folder / "noise.tif")
    state = fitted(tmp_path, "broad")
    arguments = ["restore", folder, "--restorer", f"{methods}:Learnt", "--state", state, "-o", tmp_path / "out"]
    arguments.append("--no-blank-field")
    result = succeed(*arguments, "--json")
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"{noise}: outside of what {methods}:Learnt was trained on (broad): noise ")
    assert "structure" in line
    told = json.loads(result.stdout)
    assert told["degradation"] == "broad"
    ordinary, outside = told["images"]
    assert (ordinary["outside"], ordinary["notices"]) == ([], [])
    assert [part["quantity"] for part in outside["outside"]] == ["noise", "structure"]
    assert outside["outside"][0]["found"] > outside["outside"][0]["limit"] > 20
    assert outside["notices"] == [line]
    assert line in succeed(*arguments).stderr.splitlines()


def test_restore_compares_with_the_degradation_that_the_state_was_fitted_by(
    methods: Path, tmp_path: Path, field: Path
) -> None:
    noisy = tmp_path / "noisy.tif"
    scene = mg.read(field).pixels.astype(np.float64)
    mg.write(noisy, mg.to_grid(scene + np.random.default_rng(3).normal(0, 30, scene.shape)))
    arguments = ["restore", noisy, "--restorer", f"{methods}:Learnt", "-o", tmp_path / "r.tif", "--json"]
    found = {
        degradation: json.loads(succeed(*arguments, "--state", fitted(tmp_path, degradation)).stdout)["images"][0]
        for degradation in ("paper", "broad")
    }
    assert [part["quantity"] for part in found["paper"]["outside"]] == ["noise"]
    assert found["broad"]["outside"] == []


def test_restore_says_where_nothing_is_known_of_the_training(methods: Path, tmp_path: Path) -> None:
    noise = strange(tmp_path / "noise.tif")
    arguments = ["restore", noise, "--restorer", f"{methods}:Learnt", "-o", tmp_path / "r.tif", "--json"]
    state = fitted(tmp_path, None)
    result = succeed(*arguments, "--state", state)
    assert f"{state}: its training degradation is not known" in result.stderr
    assert json.loads(result.stdout)["images"][0]["outside"] is None
    fitted(tmp_path, "broad")
    state.write_bytes(serialise({"slope": np.array([0.5], np.float16)}))
    assert "is not known" in succeed(*arguments, "--state", state).stderr, (
        "a description of another state counts for none"
    )


def test_restore_does_not_judge_for_methods_that_do_not_learn(tmp_path: Path) -> None:
    noise = strange(tmp_path / "noise.tif")
    result = succeed("restore", noise, "--restorer", "gaussian", "-o", tmp_path / "r.tif", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["images"][0]["outside"] is None


def test_restore_writes_the_spread_beside_the_result(field: Path, methods: Path, tmp_path: Path) -> None:
    state = fitted(tmp_path, "broad")
    arguments = ["restore", field, "--restorer", f"{methods}:Learnt", "--state", state, "-o", tmp_path / "r.npy"]
    succeed(*arguments)
    alone = np.load(tmp_path / "r.npy")
    result = succeed(*arguments, "--uncertainty", "--json")
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), alone)
    (image,) = json.loads(result.stdout)["images"]
    written = mg.read(tmp_path / "r-spread-gray-levels.tif")
    x, y = 0.25 * np.arange(256)[None], 0.25 * np.arange(240)[:, None]
    ramps = np.stack(np.broadcast_arrays(x, 0.25 * 255 - x, y, 0.25 * 239 - y))
    np.testing.assert_allclose(written.pixels, np.std(np.tile(ramps, (2, 1, 1)), axis=0, ddof=1), atol=2e-3)
    assert written.pixel_size_nm == (2.0, 2.0)
    spread = {"file": str(tmp_path / "r-spread-gray-levels.tif"), "unit": "gray levels"}
    assert image["spread"] == spread | {"mean": pytest.approx(float(written.pixels.mean()), rel=1e-6)}
    assert "mean spread" in " ".join(succeed(*arguments, "--uncertainty").stdout.split())
    assert json.loads(succeed(*arguments, "--json").stdout)["images"][0]["spread"] is None


def test_restore_says_that_a_method_cannot_tell_its_spread(clean: Path, tmp_path: Path) -> None:
    for source, output in ((clean, tmp_path / "r.tif"), (clean.parent, tmp_path / "out")):
        error = run("restore", source, "--restorer", "input", "-o", output, "--uncertainty").exception
        assert isinstance(error, InputError)
        assert error.exit_code == 2
        assert "input cannot tell how far its result may be off" in str(error)
        assert "\n" not in str(error)
        assert not output.exists()


def test_restore_refuses_a_wrong_spread_and_names_that_are_taken(clean: Path, methods: Path, tmp_path: Path) -> None:
    state = fitted(tmp_path, "broad")
    wrong = ["restore", clean, "--restorer", f"{methods}:Negative", "--state", state, "-o", tmp_path / "r.tif"]
    assert "its spread is wrong" in refuse(CasesFailed, *wrong, "--uncertainty")
    assert not (tmp_path / "r.tif").exists()
    for name in ("a", "a-spread-gray-levels"):
        mg.write(tmp_path / "in" / f"{name}.png", np.full((40, 40), 7.0))
    taken = ["restore", tmp_path / "in", "--restorer", "input", "-o", tmp_path / "out"]
    assert "would overwrite" in refuse(InputError, *taken, "--uncertainty")
    succeed(*taken)
