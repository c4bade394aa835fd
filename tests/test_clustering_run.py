"""The protocol `clustering` run whole on phantom tiles: what is stored is what is scored, whoever computes it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sembench import cases, protocol, report, results
from sembench.cases.tiles import SceneTile
from sembench.datasets import splits
from sembench.datasets.manifest import load_fields, load_manifest
from sembench.errors import InputError, UnavailableError
from sembench.execution import embed
from sembench.execution.prepare import prepare
from sembench.execution.records import Record
from sembench.execution.request import RunRequest
from sembench.execution.run import execute
from sembench.metrics.clustering import SPECS, Embedded, evaluate_set

METHODS = '''
import numpy as np
from sembench.restorer import Restorer

class Histogram(Restorer):
    """Gray levels counted."""
    def restore(self, image, /):
        return image
    def embed(self, image, /):
        return np.histogram(image, 24, (0, 256))[0].astype(np.float64) + 1e-3

class Drawn(Restorer):
    """Draws from the global stream, so that only seeding makes it repeatable; it must not be fitted."""
    def fit(self, training, /):
        raise RuntimeError("fitted")
    def embed(self, image, /):
        return np.random.normal(size=12)

class Spoilt(Restorer):
    """Not finite for some tiles."""
    def embed(self, image, /):
        return np.array([1.0, np.nan if image[0, 0] > 60 else 2.0])
'''
NAMES = ("Histogram", "Drawn", "Spoilt")
METRICS = list(vars(SPECS).values())


def request(out: Path, *, workers: int = 2, **options: Any) -> RunRequest:
    methods = tuple(f"{out.parent / 'methods.py'}:{name}" for name in NAMES)
    options = {"restorers": methods, "data": "phantom", "limit": 50, **options}
    return RunRequest(protocol="clustering", out=out, workers=workers, **options)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "methods.py").write_text(METHODS)
    return folder


@pytest.fixture(scope="module")
def run(bench: Path) -> dict[str, Record]:
    """The records of a run of two workers, by restorer."""
    asked = request(bench / "two")
    return {record["restorer"]: record for record in execute(prepare(asked), asked)}


@pytest.fixture(scope="module")
def tile_set() -> cases.TileSetSpec:
    (spec,) = cases.plan_cases(protocol.load("clustering"), "phantom", limit=50).specs
    assert isinstance(spec, cases.TileSetSpec)
    return spec


def test_a_set_is_one_record_scored_from_the_stored_file(
    bench: Path, run: dict[str, Record], tile_set: cases.TileSetSpec
) -> None:
    assert set(run) == set(NAMES)
    record = run["Histogram"]
    assert (record["status"], record["case"], record["group"]) == ("ok", "tiles-50", "phantom")
    stored = np.load(bench / "two" / record["embeddings"])
    assert stored.dtype == np.float32
    counted = [np.histogram(image, 24, (0, 256))[0] + 1e-3 for _, image in tile_set.images(protocol.load("clustering"))]
    np.testing.assert_array_equal(stored, np.array(counted, np.float32))
    assert embed.load(bench / "two" / record["embeddings"], record["embeddings_sha256"]).shape == (50, 24)
    again = evaluate_set(METRICS, Embedded(stored, tile_set.groups))
    assert again.values == record["metrics"]


def test_an_embedding_that_is_not_finite_fails_its_restorer_alone(bench: Path, run: dict[str, Record]) -> None:
    assert run["Spoilt"]["status"] == "failed"
    assert "embed gave 1 values for tile P0" in run["Spoilt"]["reason"]
    assert not list((bench / "two" / "embeddings").glob("Spoilt-*"))
    assert not list((bench / "two").rglob("*.partial"))


def test_the_same_command_again_computes_only_what_has_vanished_and_by_one_worker_the_same(
    bench: Path, run: dict[str, Record]
) -> None:
    asked = request(bench / "two", workers=1)
    plan, lines = prepare(asked), (bench / "two" / "records.jsonl").read_text
    before = lines()
    assert len(execute(plan, asked)) == 3
    assert lines() == before
    (bench / "two" / run["Drawn"]["embeddings"]).unlink()
    execute(plan, asked)
    (added,) = lines()[len(before) :].splitlines()
    for told in ("embeddings_sha256", "input_sha256", "metrics"):
        assert json.loads(added)[told] == run["Drawn"][told]


def test_tables_and_a_picture_come_of_it_without_an_interval(bench: Path, run: dict[str, Record]) -> None:
    asked = request(bench / "two", restorers=(f"{bench / 'methods.py'}:Histogram",))
    plan = prepare(asked)
    summary = report.write_derived(plan, [run["Histogram"]])
    interval = summary[0].metrics["silhouette"]
    assert interval is not None
    assert (interval.low, interval.method) == (None, "too few groups")
    assert results.as_json(summary, plan.folder)["rows"][0]["seconds_median"] == run["Histogram"]["seconds"]["embed"]
    header, row = (bench / "two" / "cases.csv").read_text().splitlines()
    assert "embeddings_sha256" in header
    assert run["Histogram"]["embeddings_sha256"] in row
    assert len(list((bench / "two" / "figures").glob("clusters-Histogram-*.png"))) == 1


def test_embeddings_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    sha256 = embed.store(tmp_path / "some.npy", np.ones((3, 2), np.float32))
    assert embed.load(tmp_path / "some.npy", sha256).tolist() == np.ones((3, 2)).tolist()
    embed.store(tmp_path / "some.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match="not the embeddings that were scored"):
        embed.load(tmp_path / "some.npy", sha256)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([np.ones(3), np.ones(4)], "gave 4 features for tile b and 3 before"),
        ([np.ones((2, 2)), np.ones(4)], "shape \\(2, 2\\) for tile a"),
        ([[1.0, 2.0], np.ones(2)], "gave list for tile a"),
        ([np.array(["x"]), np.ones(1)], "not a real vector"),
        ([np.array([1e300]), np.ones(1)], "1 values for tile a that are not finite"),
    ],
)
def test_what_is_no_vector_is_refused_with_its_tile(given: list[Any], words: str) -> None:
    answers = iter(given)
    tiles = [("a", np.zeros((4, 4), np.float32)), ("b", np.zeros((4, 4), np.float32))]
    with pytest.raises(InputError, match=words):
        embed.embeddings(lambda image: next(answers), tiles, lambda name: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"restorers": ("median",)}, "restorer 'median' has no embed"),
        ({"restorers": ("oracle",)}, "control 'oracle' has no embed"),
        ({"limit": 49}, "--limit 49: protocol 'clustering' needs 50 tiles at least"),
        ({"data": "."}, "takes no folder: its tiles are frozen"),
    ],
)
def test_what_cannot_be_clustered_is_refused_before_anything_starts(
    bench: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        prepare(request(bench / "refused", **options))
    assert not (bench / "refused").exists()


def test_without_the_images_the_phantom_takes_their_place_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> None:
        raise UnavailableError("no network")

    monkeypatch.setattr("sembench.datasets.cache.locate", nowhere)
    plan = cases.plan_cases(protocol.load("clustering"))
    assert plan.data == "phantom"
    assert "the real images of semcorpus cannot be had (no network)" in plan.notices[0]
    with pytest.raises(UnavailableError):
        cases.plan_cases(protocol.load("clustering"), require_real=True)


def test_phantom_tiles_are_taken_in_turn_from_the_kinds_of_scene(tile_set: cases.TileSetSpec) -> None:
    assert set(Counter(tile_set.groups).values()) == {10}
    assert all(isinstance(tile, SceneTile) for tile in tile_set.tiles)
    images = dict(tile_set.images(protocol.load("clustering")))
    assert len({image.tobytes() for image in images.values()}) == 50
    assert {image.shape for image in images.values()} == {(224, 224)}
    reduced = tile_set.only([7, 3])
    assert [name for name, _ in reduced.images(protocol.load("clustering"))] == [list(images)[3], list(images)[7]]


def test_no_group_of_the_tiles_was_seen_in_pretraining() -> None:
    corpus = load_manifest("semcorpus")
    tiles = load_fields("clustering_tiles")
    assert len(tiles) == 555
    shown = {row.file: row for row in corpus.select(split="evaluation")}
    splits.check_disjoint(
        {
            "evaluation": [shown[tile.file] for tile in tiles],
            "pretraining": [row for row in corpus.rows if row.split.startswith("pretrain")],
        }
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "none"', 'name = "paper"', 'scope "set" compares clean tiles'),
        ('scope = "set"', 'scope = "case"', "of scope 'case' cannot have the metric 'silhouette'"),
    ],
)
def test_a_protocol_that_mixes_scopes_is_refused(bench: Path, old: str, new: str, words: str) -> None:
    text = (Path(__file__).parents[1] / "protocols" / "clustering.toml").read_text()
    mixed = bench / "mixed.toml"
    mixed.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        prepare(replace(request(bench / "refused", restorers=("input",)), protocol=str(mixed)))


@pytest.mark.data
def test_the_frozen_tiles_are_cut_from_the_images(data_folder: Path) -> None:
    parsed = protocol.load("clustering")
    plan = cases.plan_cases(parsed, limit=80, require_real=True)
    (spec,) = plan.specs
    assert isinstance(spec, cases.TileSetSpec)
    assert (plan.data, spec.case_id, len(set(spec.groups))) == ("semcorpus", "tiles-80", 40)
    names = [name for name, _ in spec.only(list(range(6))).images(parsed)]
    assert names == [tile.case_id for tile in spec.tiles[:6]] == sorted(names)
