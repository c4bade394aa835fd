"""The images of pretraining: decoded once into one packed file, and cut, turned and masked from it by sample index."""

import hashlib
import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sembench.datasets.cache import cache_folder, content_sha256, locate
from sembench.datasets.manifest import load_manifest, names
from sembench.errors import InputError, WriteError
from sembench.micrograph import list_images, read
from sembench.phantom import corpus_scene
from sembench.registry import suggestion

FORMAT = "semfm-packed-1"
TRAIN, VALIDATION = "pretrain", "pretrain_validation"
SMALLEST_SIDE = 64
"""An image with a shorter side (px) after packing is refused."""
CAP_STEP = 32
VALIDATION_EVERY = 8
"""Of a folder without splits, every eighth image by the order of content digests is for validation."""
PHANTOM_SIZE = 512
PHANTOM_SEED = 7001
VIEW_PX = 512 * 512
"""An epoch shows an image once for about every 512 x 512 px that it has, and once at least."""
ASPECT = 4 / 3
TRAIN_STREAM, VALIDATION_STREAM = 0, 1

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class PackedImage:
    """One image: uint8 (H, W), gray levels 0..255, and where it comes from."""

    file: str
    group: str
    split: str
    licence: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Packed:
    """All images of one source; the digest names sources' content, crop and size limit, so equal digest, equal pixels.

    long_side_px: images were shrunk so that no side is longer.
    """

    source: str
    path: Path
    digest: str
    long_side_px: int
    images: tuple[PackedImage, ...]

    def pixels(self, split: str) -> list[NDArray[np.uint8]]:
        """The pixels of one split, in order."""
        return [image.pixels for image in self.images if image.split == split]

    def counted(self, split: str) -> dict[str, Any]:
        """How many images and groups a split has: "images", "groups", and both under each licence in "licences"."""
        own = [image for image in self.images if image.split == split]
        licences = {
            licence: [sum(image.licence == licence for image in own),
                      len({image.group for image in own if image.licence == licence})]
            for licence in sorted({image.licence for image in own})
        }  # fmt: skip
        return {"images": len(own), "groups": len({image.group for image in own}), "licences": licences}


@dataclass(frozen=True)
class _Source:
    file: str
    path: Path
    sha256: str
    group: str
    split: str
    licence: str
    crop: tuple[int, int, int, int]
    crop_bottom: str | None
    shape: tuple[int, int] | None

    def decode(self) -> NDArray[np.float32]:
        return read(self.path, crop=self.crop, crop_bottom=self.crop_bottom).pixels


def pack(data: str, *, megabytes: float = 58.0, on_image: Callable[[int, int], None] | None = None) -> Packed:
    """The packed file of a set's pretraining splits, or of a folder's images: read from the cache, or made.

    All images are shrunk (antialiased) to one long side at most, the largest multiple of 32 px at which uint8 pixels
    of all images together take no more than `megabytes`; smaller images stay as they are. A folder has no splits:
    every eighth image is for validation, and the data bar at the bottom is cut by its usual share.
    on_image is told how many images of how many are done. Raises InputError: no images, an unknown set, an unreadable
    or too small image; UnavailableError where files cannot be had; WriteError where the cache is not writable.
    """
    sources = _folder(Path(data)) if Path(data).is_dir() else _set(data)
    described = [(s.file, s.sha256, s.split, s.group, s.crop, s.crop_bottom) for s in sources]
    digest = _digest([FORMAT, megabytes, *described])
    path = cache_folder() / "packed" / f"{Path(data).resolve().name or 'folder'}-{digest[:16]}.safetensors"
    known = _load(path, data, digest)
    if known is not None:
        return known
    cap = _long_side([source.shape or source.decode().shape for source in sources], megabytes, data)
    images = []
    for count, source in enumerate(sources, 1):
        pixels = _shrink(source.decode(), cap)
        if min(pixels.shape) < SMALLEST_SIDE:
            raise InputError(
                f"{source.path}: {pixels.shape[0]} x {pixels.shape[1]} px is too small to learn from: "
                f"{SMALLEST_SIDE} px a side at least; take it out"
            )
        images.append(PackedImage(source.file, source.group, source.split, source.licence, pixels))
        if on_image:
            on_image(count, len(sources))
    packed = Packed(data, path, digest, cap, tuple(images))
    _save(packed)
    return packed


def pack_phantoms(count: int) -> Packed:
    """`count` scenes of 512 x 512 px with known geometry, all for training; read from the cache, or drawn."""
    digest = _digest([FORMAT, "phantom", count, PHANTOM_SIZE, PHANTOM_SEED])
    path = cache_folder() / "packed" / f"phantom-{digest[:16]}.safetensors"
    known = _load(path, "phantom", digest)
    if known is not None:
        return known
    images = []
    for number in range(1, count + 1):
        scene = corpus_scene(PHANTOM_SEED, f"T{number:04d}", PHANTOM_SIZE)
        pixels = np.rint(scene.image).astype(np.uint8)
        images.append(PackedImage(f"T{number:04d}", "phantom", TRAIN, "Apache-2.0", pixels))
    packed = Packed("phantom", path, digest, PHANTOM_SIZE, tuple(images))
    _save(packed)
    return packed


def statistics(images: Sequence[NDArray[np.uint8]]) -> tuple[float, float]:
    """Mean and standard deviation of gray level / 255 over all pixels of all images."""
    counts = np.sum([np.bincount(image.ravel(), minlength=256) for image in images], axis=0).astype(np.float64)
    levels = np.arange(256) / 255
    mean = float(counts @ levels / counts.sum())
    return mean, math.sqrt(float(counts @ (levels - mean) ** 2 / counts.sum()))


def _set(data: str) -> list[_Source]:
    if "/" in data or os.sep in data:
        raise InputError(f"{data}: no such folder; give a folder of images or the name of a set")
    if data not in names():
        raise InputError(f"no data set {data!r}: {suggestion(data, names())}, or give a folder of images")
    dataset = load_manifest(data)
    rows = [row for split in (TRAIN, VALIDATION) for row in dataset.select(split=split, role="image")]
    if {row.split for row in rows} != {TRAIN, VALIDATION}:
        raise InputError(
            f"set {data!r} has no images in the splits {TRAIN} and {VALIDATION}: give another, or a folder"
        )
    sources = []
    for row in rows:
        path = locate(dataset, row)
        assert path is not None
        top, bottom, left, right = row.crop_px
        shape = (row.height - top - bottom, row.width - left - right) if row.height and row.width else None
        sources.append(_Source(row.file, path, row.sha256, row.group, row.split, row.licence, row.crop_px, None, shape))
    return sources


def _folder(folder: Path) -> list[_Source]:
    paths = list_images(folder)
    if len(paths) < 2:
        raise InputError(
            f"{folder}: {len(paths)} readable images, and pretraining needs 2 at least, one to validate on; "
            "put PNG, TIFF, JPEG, BMP or .npy files there"
        )
    hashed = sorted((content_sha256(path), path) for path in paths)
    validation = {path for _, path in hashed[::VALIDATION_EVERY]}
    if len({sha256 for sha256, _ in hashed}) < len(hashed):
        twice = next(b for a, b in itertools.pairwise(hashed) if a[0] == b[0])[1]
        raise InputError(f"{twice}: its content stands in the folder twice; remove one, so that validation stays apart")
    return [
        _Source(path.name, path, sha256, path.name, VALIDATION if path in validation else TRAIN, "", (0, 0, 0, 0),
                "auto", None)
        for sha256, path in hashed
    ]  # fmt: skip


def _digest(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described, ensure_ascii=False).encode()).hexdigest()


def _long_side(shapes: Sequence[tuple[int, ...]], megabytes: float, data: str) -> int:
    """The largest multiple of 32 px that keeps all images together within the limit."""
    longest = max(max(shape) for shape in shapes)
    for cap in range(math.ceil(longest / CAP_STEP) * CAP_STEP, 2 * CAP_STEP, -CAP_STEP):
        total = sum(math.prod(_capped(shape, cap)) for shape in shapes)
        if total <= megabytes * 1e6:
            return cap
    raise InputError(f"{data}: {len(shapes)} images do not fit into {megabytes:g} MB: raise data.megabytes")


def _capped(shape: tuple[int, ...], cap: int) -> tuple[int, int]:
    factor = min(1.0, cap / max(shape))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _shrink(pixels: NDArray[np.float32], cap: int) -> NDArray[np.uint8]:
    height, width = _capped(pixels.shape, cap)
    if (height, width) != pixels.shape:
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(resized)
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def _save(packed: Packed) -> None:
    listed = [[image.file, image.group, image.split, image.licence] for image in packed.images]
    facts = {"digest": packed.digest, "long_side_px": packed.long_side_px, "images": listed}
    tensors = {f"{number:05d}": np.ascontiguousarray(image.pixels) for number, image in enumerate(packed.images)}
    partial = packed.path.with_name(f".{packed.path.name}.{os.getpid()}.partial")
    try:
        packed.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {FORMAT: json.dumps(facts)})
        partial.replace(packed.path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise WriteError(f"{packed.path}: cannot be written ({error}); make room, or set SEMBENCH_CACHE") from error


def _load(path: Path, source: str, digest: str) -> Packed | None:
    """The packed file of this digest; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {})[FORMAT])
            if facts["digest"] != digest:
                return None
            images = tuple(
                PackedImage(
                    file=name, group=group, split=split, licence=licence, pixels=file.get_tensor(f"{number:05d}")
                )
                for number, (name, group, split, licence) in enumerate(facts["images"])
            )
        return Packed(source, path, digest, int(facts["long_side_px"]), images)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Augmentation:
    """How a sample is cut: see the settings of the same names in the section [data] of a config."""

    size: int = 224
    native_share: float = 0.0
    smallest_crop: float = 0.2
    phantom_share: float = 0.0
    contrast_jitter: float = 0.1
    brightness_jitter: float = 0.04


class Samples:
    """Training and validation patches by index: what a sample shows depends on (seed, index) and on nothing else.

    A sample is a patch float32 (size, size), gray levels 0..255, and the mask of its tokens, bool (tokens,), with
    round(mask_ratio * tokens) true. As augmentation, a crop of random area, aspect and angle is
    read through one bicubic affine map from a level of the image's pyramid, so nothing from outside the image enters;
    `native_share` of the samples are cut at scale 1 instead, turned by multiples of 90 degrees.
    With `pairs`, samples 2 k and 2 k + 1 are crops of one image, and an epoch shows each image once.
    """

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        augmentation: Augmentation,
        tokens: int,
        mask_ratio: float,
        seed: int,
        stream: int = TRAIN_STREAM,
        phantoms: Sequence[NDArray[np.uint8]] = (),
        pairs: bool = False,
    ) -> None:
        self.pyramids = [_pyramid(image, augmentation.size) for image in images]
        self.phantoms = [_pyramid(image, augmentation.size) for image in phantoms]
        self.augmentation = augmentation
        self.tokens, self.masked = tokens, round(mask_ratio * tokens)
        self.seed, self.stream = seed, stream
        self.pairs = pairs
        views = [1 if pairs else max(1, round(image.size / VIEW_PX)) for image in images]
        self.views = np.repeat(np.arange(len(images)), views)
        self._order: tuple[int, NDArray[np.int64]] = (-1, self.views)

    @property
    def per_epoch(self) -> int:
        """Samples in which every image was shown once for about every 512 x 512 px of it."""
        return len(self.views) * (2 if self.pairs else 1)

    def __call__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The sample of one index from 0."""
        rng = np.random.default_rng((self.seed, self.stream, index))
        settings = self.augmentation
        pyramid = self.pyramids[self._image_of(index // 2 if self.pairs else index)]
        scene = np.random.default_rng((self.seed, self.stream, index // 2, 2)) if self.pairs else rng
        if self.phantoms and scene.random() < settings.phantom_share:
            pyramid = self.phantoms[scene.integers(len(self.phantoms))]
        native = rng.random() < settings.native_share and min(pyramid[0].size) >= settings.size
        patch = _native(rng, pyramid[0], settings.size) if native else _turned(rng, pyramid, settings)
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        gain = 1 + settings.contrast_jitter * rng.uniform(-1, 1)
        offset = 255 * settings.brightness_jitter * rng.uniform(-1, 1)
        levels = np.clip(127.5 + gain * (np.arange(256) - 127.5) + offset, 0, 255).astype(np.float32)
        mask = np.zeros(self.tokens, np.bool_)
        mask[rng.permutation(self.tokens)[: self.masked]] = True
        return levels[patch], mask

    def batch(self, first: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`count` samples from index `first` on: patches (count, size, size) and masks (count, tokens)."""
        patches, masks = zip(*(self(first + number) for number in range(count)), strict=True)
        return np.stack(patches), np.stack(masks)

    def _image_of(self, index: int) -> int:
        """Images follow each other in an order that is drawn anew for every epoch."""
        epoch, position = divmod(index, len(self.views))
        known, order = self._order
        if known != epoch:
            order = np.random.default_rng((self.seed, self.stream, epoch, 1)).permutation(self.views)
            self._order = (epoch, order)
        return int(order[position])


def _pyramid(pixels: NDArray[np.uint8], size: int) -> list[Image.Image]:
    """The image and its halvings by 2 x 2 means, while both sides stay above `size`."""
    levels = [Image.fromarray(pixels)]
    while min(levels[-1].size) >= 2 * size:
        levels.append(levels[-1].reduce(2))
    return levels


def _native(rng: np.random.Generator, image: Image.Image, size: int) -> NDArray[np.uint8]:
    left = int(rng.integers(image.width - size + 1))
    top = int(rng.integers(image.height - size + 1))
    return np.rot90(np.asarray(image.crop((left, top, left + size, top + size))), int(rng.integers(4)))


def _turned(rng: np.random.Generator, pyramid: list[Image.Image], settings: Augmentation) -> NDArray[np.uint8]:
    width, height = pyramid[0].size
    area = rng.uniform(settings.smallest_crop, 1.0) * width * height
    aspect = math.exp(rng.uniform(-1, 1) * math.log(ASPECT))
    w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    box_w, box_h = abs(w * cos) + abs(h * sin), abs(w * sin) + abs(h * cos)
    shrink = min(1.0, width / box_w, height / box_h)
    w, h, box_w, box_h = (shrink * value for value in (w, h, box_w, box_h))
    x = box_w / 2 + rng.random() * max(0.0, width - box_w)
    y = box_h / 2 + rng.random() * max(0.0, height - box_h)
    scale = math.sqrt(w * h) / settings.size
    level = int(np.clip(math.floor(math.log2(scale)), 0, len(pyramid) - 1)) if scale > 1 else 0
    image = pyramid[level]
    n, to_x, to_y = settings.size, image.width / width, image.height / height
    along_x, along_y = (w * cos / n * to_x, w * sin / n * to_y)
    across_x, across_y = (-h * sin / n * to_x, h * cos / n * to_y)
    start_x, start_y = x * to_x - (along_x + across_x) * n / 2, y * to_y - (along_y + across_y) * n / 2
    affine = (along_x, across_x, start_x, along_y, across_y, start_y)
    return np.asarray(image.transform((n, n), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC))


class Ahead(Generic[Item]):
    """Items of a range of steps, made ahead in threads and given in order; `waited` counts the seconds of waiting."""

    def __init__(self, make: Callable[[int], Item], steps: range, *, workers: int, depth: int) -> None:
        self.make, self.steps = make, iter(steps)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="samples")
        self.waited = 0.0
        self.pending: deque[Future[Item]] = deque()
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        step = next(self.steps, None)
        if step is not None:
            self.pending.append(self.pool.submit(self.make, step))

    def __iter__(self) -> Iterator[Item]:
        while self.pending:
            started = time.perf_counter()
            item = self.pending.popleft().result()
            self.waited += time.perf_counter() - started
            self._submit()
            yield item

    def close(self) -> None:
        """Drop what is made ahead and end the threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)
