"""Manifests, cache and split checks, against planted errors, planted copies and the shipped facts."""

import hashlib
import json
import lzma
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from sembench.datasets import cache, manifest, splits
from sembench.datasets.manifest import Dataset, ManifestRow, load_fields, load_manifest
from sembench.errors import InputError, UnavailableError

HEADER = ",".join(manifest.FULL_COLUMNS)
SHA = "a" * 64
LINE = f'a.tif,https://x.org/a.tif,{SHA},10,train,image,,g1,64,48,8,2.5,"0,8,0,0",MIT,src,cite,'


@pytest.fixture(autouse=True)
def own_cache(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data folder, all servers reachable again."""
    monkeypatch.setattr(cache, "_unreachable", set())
    return no_data


def row_of(content: bytes, file: str = "a.bin", **changes: Any) -> ManifestRow:
    row = ManifestRow(
        *(file, "", hashlib.sha256(content).hexdigest(), len(content), "train", "image", "", "", "g1"),
        *(None, None, None, None, (0, 0, 0, 0), "MIT", "", "", ""),
    )
    return replace(row, **changes)


def located(dataset: Dataset | str, row: ManifestRow, **options: Any) -> Path:
    """The path of a file that must be there."""
    path = cache.locate(dataset, row, **options)
    assert path is not None
    return path


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A web server on this machine: its address, the files it serves, the paths it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", files, asked
    httpd.shutdown()
    httpd.server_close()


class TestManifest:
    def test_a_row_says_what_the_line_says(self, tmp_path: Path) -> None:
        path = tmp_path / "mine" / "manifest.csv"
        path.parent.mkdir()
        path.write_text(f"{HEADER}\n{LINE}\n")
        dataset = load_manifest(path)
        row = dataset.rows[0]
        assert dataset.name == "mine"
        assert (row.bytes, row.width, row.height, row.pixel_size_nm, row.crop_px) == (10, 64, 48, 2.5, (0, 8, 0, 0))
        assert row.tile == ""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (HEADER.replace(",sha256", ""), ["line 1", "no column sha256"]),
            (f"{HEADER},licens\n{LINE},x", ["line 1", "licens", "did you mean 'licence'"]),
            (f"{HEADER}\n{LINE.replace(SHA, 'abc')}", ["line 2", "sha256 of a.tif", "'abc'"]),
            (f"{HEADER}\n{LINE}\n{LINE}", ["line 3", "a.tif stands already in line 2"]),
            (f"{HEADER}\n{LINE.replace('train', 'trian')}", ["line 2", "did you mean 'train'"]),
            (f"{HEADER}\n{LINE.replace(',g1,', ',,')}", ["line 2", "no group"]),
            (f"{HEADER}\n{LINE.replace('2.5', '-2.5')}", ["line 2", "pixel_size_nm is '-2.5'"]),
            (f"{HEADER}\n{LINE.replace('0,8,0,0', '0,48,0,0')}", ["line 2", "leaves nothing of 48 x 64"]),
            (f"{HEADER}\n{LINE.replace('0,8,0,0', '0,8,0')}", ["line 2", "crop_px is '0,8,0'"]),
            (f"{HEADER}\n{LINE.replace('a.tif,h', '../a.tif,h')}", ["line 2", "'../a.tif'", "inside the set"]),
            (f"{HEADER}\n{LINE.replace('https:', 'file:')}", ["line 2", "url of a.tif"]),
            (f"{HEADER}\n{LINE},more", ["line 2", "18 values for 17 columns"]),
            (HEADER, ["no line below the header"]),
        ],
    )
    def test_an_error_names_file_line_and_mend(self, tmp_path: Path, text: str, words: list[str]) -> None:
        path = tmp_path / "bad.csv"
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            load_manifest(path)
        message = str(caught.value)
        assert "\n" not in message
        for word in ["bad.csv", *words]:
            assert word in message

    def test_one_file_in_two_pairs_is_allowed(self) -> None:
        rows = manifest.deepfocus().rows
        assert len(rows) == 4
        assert len({row.file for row in rows}) == 3

    def test_a_name_not_known_gets_the_nearest(self) -> None:
        with pytest.raises(InputError, match="did you mean 'semcorpus'"):
            load_manifest("semcorpsu")
        with pytest.raises(InputError, match="did you mean 's2s_fields'"):
            load_fields("s2s_field")

    def test_digest_is_of_the_values(self, tmp_path: Path) -> None:
        texts = {
            "a": f"{HEADER}\n{LINE}\n",
            "b": f"{HEADER}\r\n{LINE.replace('2.5', '2.50')}\r\n",
            "c": f"{HEADER}\n{LINE.replace('2.5', '2.51')}\n",
        }
        for name, text in texts.items():
            (tmp_path / f"{name}.csv").write_bytes(text.encode())
        digests = {name: load_manifest(tmp_path / f"{name}.csv").digest for name in texts}
        assert digests["a"] == digests["b"] != digests["c"]

    def test_shipped_sets_have_the_published_counts(self) -> None:
        counts = {name: len(load_manifest(name).rows) for name in manifest.SETS}
        assert counts == {
            **{"semcorpus": 154, "kriss": 120, "semsr": 296, "deepfocus": 4},
            **{"lines": 8, "weights": 2, "lpips_example": 3},
        }
        images = Counter(row.split for row in manifest.semcorpus().select(role="image"))
        assert images["train"] == 8
        assert images["validation"] == 2
        assert images["evaluation"] == 45
        assert images["pretrain"] + images["pretrain_validation"] == 98
        pairs = {(row.split, row.pair) for row in manifest.kriss().rows}
        assert Counter(split for split, _ in pairs) == {"train": 8, "validation": 2, "evaluation": 50}
        assert {row.pair for row in manifest.semsr().rows} == set(manifest.load_alignment("semsr"))
        assert {row.pair for row in manifest.kriss().rows} == set(manifest.load_alignment("kriss"))
        assert manifest.names()[: len(manifest.SETS)] == list(manifest.SETS)

    def test_entry_points_give_their_sets(self) -> None:
        for name in manifest.SETS:
            assert getattr(manifest, name)() == load_manifest(name)

    def test_fields_are_100_in_40_groups_and_lie_inside_their_images(self) -> None:
        fields, rows = load_fields("s2s_fields"), {row.file: row for row in manifest.semcorpus().rows}
        assert len(fields) == len({field.field_id for field in fields}) == 100
        assert len({field.group for field in fields}) == 40
        tiles = load_fields("clustering_tiles")
        assert len(tiles) == 555
        assert {(f.width, f.height) for f in fields} == {(512, 512)}
        assert {(f.width, f.height) for f in tiles} == {(224, 224)}
        for field in (*fields, *tiles):
            row = rows[field.file]
            top, bottom, left, right = row.crop_px
            assert row.width is not None
            assert row.height is not None
            assert (row.split, row.group) == ("evaluation", field.group)
            assert field.x + field.width <= row.width - left - right
            assert field.y + field.height <= row.height - top - bottom

    def test_train_files_are_8_and_2_of_ten_groups(self) -> None:
        files, rows = manifest.load_train_files(), {row.file: row for row in manifest.semcorpus().rows}
        assert {role: len(listed) for role, listed in files.items()} == {"train": 8, "validation": 2}
        assert len({rows[file].group for listed in files.values() for file in listed}) == 10
        assert all(rows[file].split == role for role, listed in files.items() for file in listed)


class TestCache:
    def test_the_data_folder_comes_first_plain_or_compressed(
        self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data" / "mine"
        for folder in (data, own_cache / "data" / "mine"):
            folder.mkdir(parents=True)
        monkeypatch.setenv("SEMBENCH_DATA", str(data.parent))
        row = row_of(b"gray" * 100)
        (own_cache / "data" / "mine" / "a.bin").write_bytes(b"gray" * 100)
        assert cache.locate("mine", row) == own_cache / "data" / "mine" / "a.bin"
        (data / "a.bin.xz").write_bytes(lzma.compress(b"gray" * 100))
        assert cache.locate("mine", row) == data / "a.bin.xz"
        assert cache.read_bytes(data / "a.bin.xz") == b"gray" * 100
        (data / "a.bin").write_bytes(b"gray" * 100)
        assert cache.locate("mine", row) == data / "a.bin"

    def test_wrong_content_of_the_user_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.bin").write_bytes(b"other")
        monkeypatch.setenv("SEMBENCH_DATA", str(tmp_path))
        row = row_of(b"right")
        with pytest.raises(UnavailableError) as caught:
            cache.locate("mine", row)
        for words in ("a.bin", row.sha256[:12], hashlib.sha256(b"other").hexdigest()[:12], "fetch mine"):
            assert words in str(caught.value)

    def test_damaged_compression_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.bin.xz").write_bytes(lzma.compress(b"right" * 50)[:-20])
        monkeypatch.setenv("SEMBENCH_DATA", str(tmp_path))
        with pytest.raises(UnavailableError, match=r"a\.bin\.xz: cannot be read"):
            cache.locate("mine", row_of(b"right" * 50))

    def test_a_data_folder_that_is_none_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEMBENCH_DATA", str(tmp_path / "nowhere"))
        with pytest.raises(UnavailableError, match="SEMBENCH_DATA names"):
            cache.locate("mine", row_of(b"x"))

    def test_a_hash_is_kept_until_the_file_changes(
        self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"one")
        assert cache.content_sha256(path) == hashlib.sha256(b"one").hexdigest()
        monkeypatch.setattr(cache, "_verified", {})
        monkeypatch.setattr(cache, "_hash", lambda path: pytest.fail("hashed again"))
        assert cache.content_sha256(path) == hashlib.sha256(b"one").hexdigest()
        monkeypatch.undo()
        monkeypatch.setenv("SEMBENCH_CACHE", str(own_cache))
        path.write_bytes(b"three")
        assert cache.content_sha256(path) == hashlib.sha256(b"three").hexdigest()
        assert list(json.loads((own_cache / "verified.json").read_text())) == [str(path.resolve())]

    def test_a_spoilt_memory_costs_only_hashing(self, tmp_path: Path, own_cache: Path) -> None:
        own_cache.mkdir()
        (own_cache / "verified.json").write_text('{"x": 1, torn')
        path = tmp_path / "a.bin"
        path.write_bytes(b"one")
        assert cache.content_sha256(path) == hashlib.sha256(b"one").hexdigest()

    def test_a_download_is_kept_and_silent(
        self,
        own_cache: Path,
        server: tuple[str, dict[str, bytes], list[str]],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        address, files, asked = server
        content = bytes(range(256)) * 1000
        files["/a.bin"] = content
        row, told = row_of(content, "deep/a.bin", url=f"{address}/a.bin"), list[int]()
        assert cache.missing("mine", [row]) == [row]
        path = located("mine", row, on_bytes=told.append)
        assert path == own_cache / "data" / "mine" / "deep" / "a.bin"
        assert path.read_bytes() == content
        assert told[-1] == len(content)
        assert cache.locate("mine", row) == path
        assert asked == ["/a.bin"]
        path.write_bytes(b"spoilt")
        assert cache.missing("mine", [row]) == [row]
        assert located("mine", row).read_bytes() == content
        assert capfd.readouterr() == ("", "")

    def test_a_server_with_other_or_no_content_is_told(
        self, own_cache: Path, server: tuple[str, dict[str, bytes], list[str]]
    ) -> None:
        address, files, _ = server
        files["/a.bin"] = b"other"
        with pytest.raises(UnavailableError, match="other content"):
            cache.locate("mine", row_of(b"right", url=f"{address}/a.bin"))
        with pytest.raises(UnavailableError, match="answers 404"):
            cache.locate("mine", row_of(b"right", url=f"{address}/b.bin"))
        assert not (own_cache / "data" / "mine" / "a.bin").exists()

    def test_a_server_not_reached_is_tried_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pooch
        from requests.exceptions import ConnectTimeout

        tries = []

        def time_out(*args: object, **kwargs: object) -> str:
            tries.append(args)
            raise ConnectTimeout

        monkeypatch.setattr(pooch, "retrieve", time_out)
        for file in ("a.bin", "b.bin"):
            with pytest.raises(UnavailableError) as caught:
                cache.locate("mine", row_of(b"x", file, url="https://x.invalid/f"))
            assert "\n" not in str(caught.value)
            for words in (f"mine/{file}", "SEMBENCH_DATA", "network"):
                assert words in str(caught.value)
        assert len(tries) == 1

    def test_own_sets_lie_beside_their_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(b"x")
        row = row_of(b"x")
        assert cache.locate(Dataset("mine", (row,), tmp_path / "mine.csv"), row) == tmp_path / "a.bin"

    def test_weights_not_known_are_told(self) -> None:
        with pytest.raises(InputError, match=r"alexnet_features\.safetensors"):
            cache.locate_weight("vgg")


class TestAlexNet:
    @pytest.fixture
    def pth(self, tmp_path: Path) -> Path:
        import torch

        state = {
            "features.0.weight": torch.arange(12.0).reshape(3, 4).t(),
            "features.0.bias": torch.ones(3),
            "classifier.1.weight": torch.zeros(5),
        }
        torch.save(state, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    @pytest.fixture
    def cut(self, tmp_path: Path) -> bytes:
        from safetensors.numpy import save

        weight = np.ascontiguousarray(np.arange(12, dtype=np.float32).reshape(3, 4).T)
        return save({"features.0.weight": weight, "features.0.bias": np.ones(3, np.float32)})

    def test_only_features_are_kept(self, tmp_path: Path, pth: Path, cut: bytes) -> None:
        out = cache.cut_alexnet(pth, tmp_path / "out" / "f.safetensors", sha256=hashlib.sha256(cut).hexdigest())
        assert out.read_bytes() == cut

    def test_another_hash_leaves_nothing_behind(self, tmp_path: Path, pth: Path) -> None:
        with pytest.raises(UnavailableError, match=r"f\.safetensors: wrong content"):
            cache.cut_alexnet(pth, tmp_path / "out" / "f.safetensors", sha256=SHA)
        assert list((tmp_path / "out").iterdir()) == []

    def test_code_in_a_pth_is_refused(self, tmp_path: Path) -> None:
        import torch

        torch.save({"features.0": partial(print, "run")}, tmp_path / "net.pth")
        with pytest.raises(UnavailableError, match=r"net\.pth: no weights of torch"):
            cache.cut_alexnet(tmp_path / "net.pth", tmp_path / "f.safetensors", sha256=SHA)

    def test_a_downloaded_network_must_have_the_hash_in_its_name(
        self, own_cache: Path, pth: Path, cut: bytes, server: tuple[str, dict[str, bytes], list[str]]
    ) -> None:
        address, files, _ = server
        prefix = hashlib.sha256(pth.read_bytes()).hexdigest()[:8]
        files[f"/net-{prefix}.pth"] = files["/net-00000000.pth"] = pth.read_bytes()
        row = row_of(cut, "f.safetensors", url=f"{address}/net-{prefix}.pth")
        with pytest.raises(UnavailableError, match=r"net-00000000\.pth: wrong content"):
            cache.locate("weights", replace(row, url=f"{address}/net-00000000.pth"))
        assert located("weights", row).read_bytes() == cut
        assert [path.name for path in (own_cache / "data" / "weights").iterdir()] == ["f.safetensors"]


def scene(seed: int, shape: tuple[int, int] = (600, 800)) -> NDArray[np.float64]:
    """Blobs and texture, gray 0..255."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.normal(size=shape), 25)
    fine = ndimage.gaussian_filter(rng.normal(size=shape), 5)
    image = coarse / coarse.std() + fine / fine.std()
    return np.clip(128 + 35 * image, 0, 255)


def slow_correlation(a: NDArray[np.float64], b: NDArray[np.float64], smallest: float, area: int) -> float:
    """The definition, shift by shift."""
    best, least = -1.0, max(area, smallest * min(a.size, b.size))
    for dy in range(1 - b.shape[0], a.shape[0]):
        for dx in range(1 - b.shape[1], a.shape[1]):
            part_a = a[max(0, dy) : dy + b.shape[0], max(0, dx) : dx + b.shape[1]]
            part_b = b[max(0, -dy) : a.shape[0] - dy, max(0, -dx) : a.shape[1] - dx]
            flat = part_a.var() <= 0.05 * a.var() or part_b.var() <= 0.05 * b.var()
            if part_a.size >= least and not flat:
                best = max(best, float(np.corrcoef(part_a.ravel(), part_b.ravel())[0, 1]))
    return best


class TestSplits:
    @settings(max_examples=10, deadline=None)
    @given(
        st.integers(6, 12),
        st.integers(6, 12),
        st.integers(6, 12),
        st.integers(6, 12),
        st.integers(0, 2**32 - 1),
    )
    def test_correlation_is_its_definition(self, h: int, w: int, k: int, m: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = rng.normal(100, 20, (h, w)), rng.normal(5, 1, (k, m))
        fast = splits.correlation(splits.prepare(a, 32), splits.prepare(b, 32), smallest_overlap=0.3, smallest_area=9)
        assert fast == pytest.approx(slow_correlation(a, b, 0.3, 9), abs=1e-4)

    def test_a_flat_image_correlates_with_nothing(self) -> None:
        flat = splits.prepare(splits.flatten(np.full((64, 64), 7.0)), 256)
        assert splits.correlation(flat, splits.prepare(scene(0, (64, 64)), 256)) == -1

    def test_resize_area_is_the_mean_over_areas(self) -> None:
        image = np.random.default_rng(0).normal(size=(12, 20))
        assert splits.resize_area(image, 4, 5) == pytest.approx(image.reshape(4, 3, 5, 4).mean(axis=(1, 3)))
        spread = np.repeat(np.repeat(image, 5, axis=0), 7, axis=1)
        whole = spread.reshape(5, 12, 7, 20).mean(axis=(1, 3))
        assert splits.resize_area(image, 5, 7) == pytest.approx(whole)

    def test_hash_ignores_brightness_contrast_and_size(self) -> None:
        image = scene(1)
        changed = ndimage.zoom(image, 0.7, order=1) * 0.6 + 30
        assert (splits.perceptual_hash(image) != splits.perceptual_hash(changed)).sum() <= 4
        assert (splits.perceptual_hash(image) != splits.perceptual_hash(scene(2))).sum() > 16

    def test_planted_copies_are_found_and_nothing_else(self) -> None:
        rng = np.random.default_rng(3)
        images = [splits.SplitImage.of(f"{n}.tif", "train" if n % 2 else "pretrain", scene(n)) for n in range(8)]
        rescaled = ndimage.zoom(scene(0), 0.6, order=1) * 0.7 + 40
        whole = scene(9, (600, 1120))
        shifted = whole[:, 320:] * 0.8 + rng.normal(10, 4, (600, 800))
        images += [
            splits.SplitImage.of("rescaled.tif", "evaluation", rescaled),
            splits.SplitImage.of("left.tif", "train", whole[:, :800]),
            splits.SplitImage.of("right.tif", "evaluation", shifted),
            splits.SplitImage.of("same_split.tif", "evaluation", rescaled),
        ]
        steps: list[tuple[int, int]] = []
        found = splits.find_shared(images, on_progress=lambda done, total: steps.append((done, total)))
        assert [(f.file_a, f.file_b, f.how) for f in found] == [
            ("0.tif", "rescaled.tif", "hash"),
            ("0.tif", "same_split.tif", "hash"),
            ("left.tif", "right.tif", "overlap"),
        ]
        assert found[2].score > 0.8
        assert str(found[2]).startswith("left.tif (train) shares content with right.tif (evaluation): correlation ")
        assert steps[-1] == (len(steps), len(steps))

    def test_a_group_in_two_splits_is_told(self) -> None:
        rows = (row_of(b"a", "a"), row_of(b"b", "b", split="evaluation"), row_of(b"c", "c", group="g2"))
        problems = splits.check_groups(Dataset("mine", rows, Path("mine.csv")))
        assert problems == ["mine: group g1 stands in evaluation and train; keep it in one split"]

    @pytest.mark.parametrize("name", manifest.SETS)
    def test_no_shipped_group_is_in_two_splits(self, name: str) -> None:
        assert splits.check_groups(load_manifest(name)) == []

    def test_roles_may_not_share_group_file_or_content(self) -> None:
        a, b = row_of(b"a", "a"), row_of(b"b", "b", group="g2")
        splits.check_disjoint({"train": [a, replace(a, file="a2", sha256=SHA)], "evaluation": [b]})
        with pytest.raises(InputError, match=r"b \(evaluation\) and a \(train\) have the same group g1"):
            splits.check_disjoint({"train": [a], "evaluation": [replace(b, group="g1")]})
        with pytest.raises(InputError, match="same file"):
            splits.check_disjoint({"train": [a], "evaluation": [replace(b, file="a")]})
        with pytest.raises(InputError, match="same content"):
            splits.check_disjoint({"train": [a], "evaluation": [replace(b, sha256=a.sha256)]})


@pytest.mark.data
class TestRealData:
    @pytest.fixture(autouse=True)
    def real(self, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEMBENCH_DATA", str(data_folder))

    @pytest.mark.parametrize("name", manifest.SETS)
    def test_first_and_last_file_of_a_set_have_their_hash(self, name: str, data_folder: Path) -> None:
        dataset = load_manifest(name)
        for row in (dataset.rows[0], dataset.rows[-1]):
            path = located(dataset, row)
            content = cache.read_bytes(path)
            assert path.is_relative_to(data_folder / name)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (row.bytes, row.sha256)

    def test_train_and_evaluation_of_kriss_share_no_content(self) -> None:
        kriss = manifest.kriss()
        rows = tuple(row for row in kriss.rows if row.role == "reference")
        assert splits.check_content(Dataset("kriss", rows, kriss.path)) == []

    def test_weights_are_found(self, data_folder: Path) -> None:
        found = cache.locate_weight("niqe_modelparameters.mat", download=False)
        assert found == data_folder / "weights" / "niqe_modelparameters.mat"
