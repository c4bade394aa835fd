"""From a protocol to its cases: where each image is, how it is cut, how it is degraded."""

import hashlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TypeVar

from sembench import line_scenes, micrograph, phantom
from sembench.datasets import cache, splits
from sembench.datasets.manifest import Dataset, ManifestRow, load_fields, load_line_images
from sembench.errors import InputError, UnavailableError
from sembench.line_scenes import LineTruth
from sembench.optics import Degradation, degrade_case
from sembench.protocol import Protocol, digest_of
from sembench.registry import DATASETS, plugin, plugins, suggestion
from sembench.restorer import Image

PHANTOM = "phantom"
PHANTOM_CASES = 100


@dataclass(frozen=True)
class Case:
    """One case: reference and degraded image on the grid of SCIENCE 1, how it was degraded and what is known besides.

    pixel_size_nm: (x, y); truth: true edges of the lines. None where nobody knows.
    """

    case_id: str
    group: str
    reference: Image
    degraded: Image
    degradation: Degradation | None
    pixel_size_nm: tuple[float, float] | None = None
    truth: LineTruth | None = None


@dataclass(frozen=True)
class CaseSpec:
    """What it takes to make one case, without its pixels."""

    case_id: str
    group: str

    def make(self, protocol: Protocol) -> Case:
        """The case itself; deterministic in (protocol seed, case id)."""
        raise NotImplementedError


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
        height, width = image.pixels.shape
        if self.x + self.width > width or self.y + self.height > height:
            raise InputError(f"{self.path}: field {self.case_id} reaches beyond the image of {height} x {width} px")
        field = image.pixels[self.y : self.y + self.height, self.x : self.x + self.width]
        return _degraded(protocol, self, micrograph.to_grid(field), image.pixel_size_nm)


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


@dataclass(frozen=True)
class LineSceneSpec(CaseSpec):
    """A phantom scene of rough lines with known truth."""

    def make(self, protocol: Protocol) -> Case:
        made = line_scenes.phantom_lines(protocol.seed, self.case_id)
        return Case(self.case_id, self.group, made.reference, made.degraded, made.degradation, None, made.truth)


@dataclass(frozen=True)
class RealLinesSpec(CaseSpec):
    """A real image of lines, degraded at a given contrast-to-noise ratio."""

    path: str
    crop: tuple[int, int, int, int]
    contrast: float
    space_level: float
    line_level: float
    pitch: float

    def make(self, protocol: Protocol) -> Case:
        image = micrograph.read(Path(self.path), crop=self.crop)
        made = line_scenes.real_lines(
            image.pixels, self.space_level, self.line_level, self.pitch, self.contrast, protocol.seed, self.case_id
        )
        return Case(self.case_id, self.group, made.reference, made.degraded, made.degradation, image.pixel_size_nm)


def _degraded(protocol: Protocol, spec: CaseSpec, reference: Image, pixel_size_nm: tuple[float, float] | None) -> Case:
    degraded, parameters = degrade_case(reference, protocol.seed, spec.case_id, protocol.degradation.fixed)
    return Case(spec.case_id, spec.group, reference, micrograph.to_grid(degraded), parameters, pixel_size_nm)


@dataclass(frozen=True)
class CasePlan:
    """The cases of a protocol on one data set, in the order in which `--limit` takes them."""

    data: str
    digest: str
    specs: tuple[CaseSpec, ...]
    notices: tuple[str, ...] = ()


Spec = TypeVar("Spec", bound=CaseSpec)


def round_robin(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """The first of every group, then the second of every group, and so on; groups in order of appearance."""
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        groups.setdefault(spec.group, []).append(spec)
    rounds = max((len(group) for group in groups.values()), default=0)
    return tuple(group[i] for i in range(rounds) for group in groups.values() if i < len(group))


def plan_cases(
    protocol: Protocol,
    data: str | None = None,
    *,
    limit: int | None = None,
    require_real: bool = False,
    crop_bottom: str = "auto",
) -> CasePlan:
    """The cases of a protocol on its own data set, on `phantom`, or on a folder of focused micrographs.

    crop_bottom: how the data bar of a folder's images is cut, `auto`, `0`, rows or a fraction.
    Where the protocol's own data cannot be had the phantom takes its place, with a notice.
    Raises UnavailableError where `require_real` forbids that, InputError for an unknown name.
    """
    name = data or protocol.data.set
    if name == PHANTOM:
        if require_real:
            raise UnavailableError("--require-real refuses --data phantom: leave one of them out")
        return _phantom_plan(protocol, limit)
    known = plugins(DATASETS)
    if name not in known:
        if Path(name).is_dir():
            return _folder_plan(protocol, Path(name), limit, crop_bottom)
        raise InputError(f"{name}: neither a folder nor a data set: {suggestion(name, [*known, PHANTOM])}")
    if name != protocol.data.set:
        raise InputError(
            f"protocol {protocol.name!r} has no fields for data set {name!r}: "
            f"give --data {protocol.data.set}, phantom or a folder"
        )
    try:
        dataset = plugin(DATASETS, name).load()()
        plan_set = _line_plan if protocol.data.scenes == "lines" else _dataset_plan
        return plan_set(protocol, dataset, limit)
    except UnavailableError as error:
        if require_real or protocol.data.fallback is None:
            raise
        plan = _phantom_plan(protocol, limit)
        instead = "running on the phantom scenes alone" if protocol.data.scenes else "running on the phantom instead"
        notice = f"the real images of {name} cannot be had ({error}); {instead}"
        return CasePlan(plan.data, plan.digest, plan.specs, (notice,))


def _ordered(protocol: Protocol, specs: Iterable[Spec], limit: int | None) -> tuple[Spec, ...]:
    ordered = round_robin(specs) if protocol.order == "round_robin" else tuple(specs)
    return ordered[:limit]


def _phantom_plan(protocol: Protocol, limit: int | None) -> CasePlan:
    if protocol.data.scenes == "lines":
        digest = digest_of([PHANTOM, phantom.VERSION, line_scenes.VERSION, protocol.seed, line_scenes.SCENES])
        return CasePlan(PHANTOM, digest, _ordered(protocol, _line_scenes(), limit))
    side = protocol.data.size
    specs = [PhantomSpec(name, name, side) for name in (f"P{i:03d}" for i in range(1, PHANTOM_CASES + 1))]
    digest = digest_of([PHANTOM, phantom.VERSION, protocol.seed, side, PHANTOM_CASES])
    return CasePlan(PHANTOM, digest, _ordered(protocol, specs, limit))


def _line_scenes() -> list[CaseSpec]:
    return [LineSceneSpec(name, name) for name in line_scenes.scene_ids()]


def _line_plan(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
    """Real images of lines, each at its contrasts, and the phantom scenes after the first of each."""
    rows = {row.file: row for row in dataset.rows}
    listed = load_line_images()
    digest = digest_of(
        [
            [phantom.VERSION, line_scenes.VERSION, protocol.seed, line_scenes.SCENES],
            [[*astuple(image), rows[image.file].sha256, rows[image.file].crop_px] for image in listed],
        ]
    )
    real = [
        RealLinesSpec(
            case_id=image.case_id,
            group=image.group,
            path=str(cache.locate(dataset, rows[image.file])),
            crop=rows[image.file].crop_px,
            contrast=image.contrast,
            space_level=image.space_level,
            line_level=image.line_level,
            pitch=image.pitch_px,
        )
        for image in listed
    ]
    return CasePlan(dataset.name, digest, _ordered(protocol, [*real, *_line_scenes()], limit))


def _folder_plan(protocol: Protocol, folder: Path, limit: int | None, crop_bottom: str) -> CasePlan:
    files = micrograph.list_images(folder)
    if not files:
        raise InputError(f"{folder}: no images in it (PNG, TIFF, JPEG, BMP)")
    try:
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}): free it, or take it out of the folder"
        ) from error
    side = protocol.data.size
    stems = [micrograph.image_stem(file) for file in files]
    names = stems if len(set(stems)) == len(stems) else [file.name for file in files]
    specs = [
        CentreSpec(name, name, str(file.resolve()), crop_bottom, side) for name, file in zip(names, files, strict=True)
    ]
    digest = digest_of([side, crop_bottom, [[file.name, sha256] for file, sha256 in zip(files, hashes, strict=True)]])
    notice = (
        f"{folder}: {len(files)} images, each its own group; the central {side} x {side} px of each "
        f"after --crop-bottom {crop_bottom}"
    )
    own_name = folder.resolve().name
    data = f"folder-{own_name}" if own_name in (PHANTOM, *plugins(DATASETS)) else own_name
    return CasePlan(data, digest, _ordered(protocol, specs, limit), (notice,))


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


def _dataset_plan(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
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
    chosen = _ordered(protocol, placed, limit)
    paths = {file: str(cache.locate(dataset, evaluation[file])) for file in dict.fromkeys(spec.path for spec in chosen)}
    return CasePlan(dataset.name, digest, tuple(replace(spec, path=paths[spec.path]) for spec in chosen))
