"""The images that methods may learn from: a protocol's roles train and validation, phantom scenes, a user's folder."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sembench import micrograph, phantom
from sembench.cases import PHANTOM, STAND_IN
from sembench.datasets import cache, splits
from sembench.datasets.manifest import load_train_files
from sembench.errors import InputError
from sembench.protocol import Protocol, digest_of
from sembench.registry import DATASETS, plugin
from sembench.restorer import Image, TrainingSet

PHANTOM_SCENES = {"train": ("T", 8), "validation": ("V", 2)}
"""Letter and number of the phantom scenes that methods learn from where there are no real images."""

PHANTOM_SIDE = 512
"""Side of those scenes (px)."""

ImagesByRole = dict[str, tuple[Image, ...]]


@dataclass(frozen=True)
class TrainingImages:
    """What a method may learn from: known by its digest, read only when a fit needs it.

    data: the name of the set; digest: SHA-256 over the files' contents and crops, or of what the phantom depends on.
    """

    data: str
    digest: str
    _load: Callable[[], ImagesByRole]

    def load(self) -> ImagesByRole:
        """{"train": images, "validation": images} on the grid; UnavailableError where a file cannot be had."""
        return self._load()

    def training_set(self, degradation: str) -> TrainingSet:
        """The images, read now, as patches to learn from; UnavailableError where a file cannot be had."""
        images = self.load()
        return TrainingSet(images["train"], images["validation"], degradation)


def training_images(protocol: Protocol, data: str) -> TrainingImages:
    """The images of the roles train and validation, for cases that come from `data` (as CasePlan.data names it).

    Cases of the phantom are learnt from phantom scenes; all others, a user's folder too, from the protocol's own set.
    """
    if data in (PHANTOM, STAND_IN):
        return _phantom_images(protocol)
    dataset = plugin(DATASETS, protocol.data.training_set or protocol.data.set).load()()
    chosen = {
        role: [row for row in dataset.rows if row.split == split and row.role in ("image", "reference")]
        for role, split in (("train", protocol.data.train), ("validation", protocol.data.validation))
    }
    splits.check_disjoint(
        {**chosen, "evaluation": [row for row in dataset.rows if row.split == protocol.data.evaluation]}
    )
    if protocol.data.training_fields:
        listed = load_train_files()
        chosen = {role: [row for row in rows if row.file in listed[role]] for role, rows in chosen.items()}
    digest = digest_of([dataset.name, {role: [[r.sha256, r.crop_px] for r in rows] for role, rows in chosen.items()}])

    def load() -> ImagesByRole:
        located = {role: [(cache.locate(dataset, row), row.crop_px) for row in rows] for role, rows in chosen.items()}
        return {
            role: tuple(micrograph.to_grid(micrograph.read(path, crop=crop).pixels) for path, crop in files if path)
            for role, files in located.items()
        }

    return TrainingImages(dataset.name, digest, load)


def _phantom_images(protocol: Protocol) -> TrainingImages:
    def load() -> ImagesByRole:
        return {
            role: tuple(
                micrograph.to_grid(phantom.corpus_scene(protocol.seed, f"{letter}{i:03d}", PHANTOM_SIDE).image)
                for i in range(1, number + 1)
            )
            for role, (letter, number) in PHANTOM_SCENES.items()
        }

    digest = digest_of([PHANTOM, phantom.VERSION, protocol.seed, PHANTOM_SIDE, PHANTOM_SCENES])
    return TrainingImages(PHANTOM, digest, load)


def folder_images(folder: Path, crop_bottom: str = "auto") -> TrainingImages:
    """A user's own focused micrographs: every fifth image, or the last of fewer, is for validation.

    Raises InputError for a folder with fewer than two images or with an image that cannot be read.
    """
    files = micrograph.list_images(folder)
    if len(files) < 2:
        raise InputError(f"{folder}: {len(files)} images: give 2 at least, one to learn from and one to validate by")
    try:
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}): take it out of the folder") from error
    held_out = files[4::5] or files[-1:]

    def load() -> ImagesByRole:
        pixels = {file: micrograph.to_grid(micrograph.read(file, crop_bottom=crop_bottom).pixels) for file in files}
        return {
            "train": tuple(image for file, image in pixels.items() if file not in held_out),
            "validation": tuple(pixels[file] for file in held_out),
        }

    return TrainingImages(folder.resolve().name, digest_of([crop_bottom, hashes]), load)
