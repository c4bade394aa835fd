"""Cases that the forward model makes of focused images: fields of a set, a user's images, simulated scenes."""

from dataclasses import dataclass, replace
from pathlib import Path

from sembench import micrograph, phantom
from sembench.cases.case import Case, CasePlan, CaseSpec, ordered
from sembench.cases.folder import data_name, file_sha256, named_images
from sembench.cases.lines import PHANTOM
from sembench.datasets import cache, splits
from sembench.datasets.manifest import Dataset, ManifestRow, load_fields
from sembench.errors import InputError
from sembench.optics import degrade_case
from sembench.protocol import Protocol, digest_of
from sembench.restorer import Image

PHANTOM_CASES = 100


@dataclass(frozen=True)
class PhantomSpec(CaseSpec):
    """A simulated scene that stands in for a micrograph, degraded by the protocol."""

    side: int

    def make(self, protocol: Protocol) -> Case:
        scene = phantom.corpus_scene(protocol.seed, self.case_id, self.side)
        return _degraded(protocol, self, micrograph.to_grid(scene.image), None)


@dataclass(frozen=True)
class FieldSpec(CaseSpec):
    """A rectangle of a set's image, counted from the upper left corner of what the crop leaves."""

    path: str
    crop: tuple[int, int, int, int]
    x: int
    y: int
    width: int
    height: int

    def make(self, protocol: Protocol) -> Case:
        image = micrograph.read(Path(self.path), crop=self.crop)
        return _degraded(protocol, self, micrograph.to_grid(self.cut(image.pixels)), image.pixel_size_nm)

    def cut(self, pixels: Image) -> Image:
        """The field's part of the cropped image; InputError where it reaches beyond."""
        height, width = pixels.shape
        if self.x + self.width > width or self.y + self.height > height:
            raise InputError(f"{self.path}: field {self.case_id} reaches beyond the image of {height} x {width} px")
        return pixels[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class CentreSpec(CaseSpec):
    """The central square of a user's own image, or all of it where it is smaller."""

    path: str
    crop_bottom: str
    side: int

    def make(self, protocol: Protocol) -> Case:
        image = micrograph.read(Path(self.path), crop_bottom=self.crop_bottom)
        height, width = image.pixels.shape
        rows, columns = min(self.side, height), min(self.side, width)
        top, left = (height - rows) // 2, (width - columns) // 2
        field = image.pixels[top : top + rows, left : left + columns]
        return _degraded(protocol, self, micrograph.to_grid(field), image.pixel_size_nm)


def _degraded(protocol: Protocol, spec: CaseSpec, reference: Image, pixel_size_nm: tuple[float, float] | None) -> Case:
    degraded, parameters = degrade_case(reference, protocol.seed, spec.case_id, protocol.degradation.fixed)
    return Case(spec.case_id, spec.group, reference, micrograph.to_grid(degraded), parameters, pixel_size_nm)


def plan_phantom(protocol: Protocol, limit: int | None) -> CasePlan:
    """Simulated scenes in place of micrographs."""
    side = protocol.data.size
    specs = [PhantomSpec(name, name, side) for name in (f"P{i:03d}" for i in range(1, PHANTOM_CASES + 1))]
    digest = digest_of([PHANTOM, phantom.VERSION, protocol.seed, side, PHANTOM_CASES])
    return CasePlan(PHANTOM, digest, ordered(protocol, specs, limit))


def plan_folder(protocol: Protocol, folder: Path, limit: int | None, crop_bottom: str) -> CasePlan:
    """The centre of each image in a folder, as a focused reference."""
    images = named_images(folder)
    side = protocol.data.size
    digest = digest_of([side, crop_bottom, [[file.name, file_sha256(file)] for file in images.values()]])
    specs = [CentreSpec(name, name, str(file.resolve()), crop_bottom, side) for name, file in images.items()]
    notice = (
        f"{folder}: {len(images)} images, each its own group; the central {side} x {side} px of each "
        f"after --crop-bottom {crop_bottom}"
    )
    return CasePlan(data_name(folder, PHANTOM), digest, ordered(protocol, specs, limit), (notice,))


def roles(protocol: Protocol, dataset: Dataset) -> dict[str, list[ManifestRow]]:
    """The rows of each role, checked: no group and no file may stand in two of them."""
    by_role = {
        role: [row for row in dataset.rows if row.split == split and row.role in ("image", "input", "reference")]
        for role, split in (
            ("train", protocol.data.train),
            ("validation", protocol.data.validation),
            ("evaluation", protocol.data.evaluation),
        )
    }
    for role, rows in by_role.items():
        if not rows:
            split = getattr(protocol.data, role)
            raise InputError(
                f"data set {dataset.name!r} has no images of split {split!r}: protocol {protocol.name!r} asks for it"
            )
    splits.check_disjoint(by_role)
    return by_role


def plan_fields(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
    """The frozen fields of a set."""
    evaluation = {row.file: row for row in roles(protocol, dataset)["evaluation"]}
    fields = load_fields(protocol.data.fields) if protocol.data.fields else None
    if fields is None:
        raise InputError(f"protocol {protocol.name!r}: data.fields is missing: name the frozen list of fields")
    for field in fields:
        if field.file not in evaluation:
            raise InputError(
                f"field {field.field_id} of {protocol.data.fields} lies in {field.file}, which is not of split "
                f"{protocol.data.evaluation!r}: splits overlap, correct the list"
            )
    digest = digest_of(
        [
            [f.field_id, evaluation[f.file].sha256, evaluation[f.file].crop_px, f.x, f.y, f.width, f.height]
            for f in fields
        ]
    )
    placed = [
        FieldSpec(f.field_id, f.group, f.file, evaluation[f.file].crop_px, f.x, f.y, f.width, f.height) for f in fields
    ]
    chosen = ordered(protocol, placed, limit)
    paths = {file: str(cache.locate(dataset, evaluation[file])) for file in dict.fromkeys(spec.path for spec in chosen)}
    return CasePlan(dataset.name, digest, tuple(replace(spec, path=paths[spec.path]) for spec in chosen))
