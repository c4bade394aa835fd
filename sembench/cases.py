"""From a protocol to its cases: where each image is, how it is cut, how it is degraded."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sembench import micrograph, phantom
from sembench.datasets import cache, splits
from sembench.datasets.manifest import Dataset, ManifestRow, load_fields
from sembench.errors import InputError, UnavailableError
from sembench.optics import Degradation, degrade_case
from sembench.protocol import Protocol, digest_of
from sembench.registry import DATASETS, plugin, plugins, suggestion
from sembench.restorer import Image

PHANTOM = "phantom"
PHANTOM_CASES = 100


@dataclass(frozen=True)
class CaseSpec:
    """What it takes to make one case: where its image is and which part of it; no pixels."""

    case_id: str
    group: str
    path: str
    crop: tuple[int, int, int, int]
    x: int
    y: int
    width: int
    height: int
    crop_bottom: str = "0"


@dataclass(frozen=True)
class CasePlan:
    """The cases of a protocol on one data set, in the order in which `--limit` takes them."""

    data: str
    digest: str
    specs: tuple[CaseSpec, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One case: the reference and the degraded image on the grid of SCIENCE 1, and the true parameters."""

    case_id: str
    group: str
    reference: Image
    degraded: Image
    degradation: Degradation | None


def round_robin(specs: Iterable[CaseSpec]) -> tuple[CaseSpec, ...]:
    """The first of every group, then the second of every group, and so on; groups in order of appearance."""
    groups: dict[str, list[CaseSpec]] = {}
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
        return _dataset_plan(protocol, plugin(DATASETS, name).load()(), limit)
    except UnavailableError as error:
        if require_real or protocol.data.fallback is None:
            raise
        plan = _phantom_plan(protocol, limit)
        notice = f"the real images of {name} cannot be had ({error}); running on the phantom instead"
        return CasePlan(plan.data, plan.digest, plan.specs, (notice,))


def _ordered(protocol: Protocol, specs: Iterable[CaseSpec], limit: int | None) -> tuple[CaseSpec, ...]:
    ordered = round_robin(specs) if protocol.order == "round_robin" else tuple(specs)
    return ordered[:limit]


def _phantom_plan(protocol: Protocol, limit: int | None) -> CasePlan:
    side = protocol.data.size
    specs = [
        CaseSpec(case_id, case_id, PHANTOM, (0, 0, 0, 0), 0, 0, side, side)
        for case_id in (f"P{i:03d}" for i in range(1, PHANTOM_CASES + 1))
    ]
    digest = digest_of([PHANTOM, phantom.VERSION, protocol.seed, side, PHANTOM_CASES])
    return CasePlan(PHANTOM, digest, _ordered(protocol, specs, limit))


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
        CaseSpec(name, name, str(file.resolve()), (0, 0, 0, 0), -1, -1, side, side, crop_bottom)
        for name, file in zip(names, files, strict=True)
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
        CaseSpec(f.field_id, f.group, f.file, evaluation[f.file].crop_px, f.x, f.y, f.width, f.height) for f in fields
    ]
    chosen = _ordered(protocol, placed, limit)
    paths = {file: str(cache.locate(dataset, evaluation[file])) for file in dict.fromkeys(spec.path for spec in chosen)}
    specs = tuple(CaseSpec(s.case_id, s.group, paths[s.path], s.crop, s.x, s.y, s.width, s.height) for s in chosen)
    return CasePlan(dataset.name, digest, specs)


def reference_field(protocol: Protocol, spec: CaseSpec) -> Image:
    """The reference of one case on the grid: cut from its file, or a phantom scene."""
    if spec.path == PHANTOM:
        return micrograph.to_grid(phantom.corpus_scene(protocol.seed, spec.case_id, spec.width).image)
    pixels = micrograph.read(Path(spec.path), crop=spec.crop, crop_bottom=spec.crop_bottom).pixels
    height, width = pixels.shape
    if spec.x < 0:
        rows, columns = min(spec.height, height), min(spec.width, width)
        top, left = (height - rows) // 2, (width - columns) // 2
        return micrograph.to_grid(pixels[top : top + rows, left : left + columns])
    if spec.x + spec.width > width or spec.y + spec.height > height:
        raise InputError(f"{spec.path}: field {spec.case_id} reaches beyond the image of {height} x {width} px")
    return micrograph.to_grid(pixels[spec.y : spec.y + spec.height, spec.x : spec.x + spec.width])


def make_case(protocol: Protocol, spec: CaseSpec) -> Case:
    """Make one case; deterministic in (protocol seed, case id)."""
    reference = reference_field(protocol, spec)
    degraded, parameters = degrade_case(reference, protocol.seed, spec.case_id, protocol.degradation.fixed)
    return Case(spec.case_id, spec.group, reference, micrograph.to_grid(degraded), parameters)
