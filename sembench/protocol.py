"""A protocol: TOML, validated and digested, that turns images into cases."""

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sembench import micrograph, phantom
from sembench.datasets import cache, splits
from sembench.datasets.manifest import Dataset, ManifestRow, load_fields
from sembench.errors import InputError, UnavailableError
from sembench.optics import RANGES, Degradation, degrade_case
from sembench.registry import DATASETS, METRICS, PROTOCOLS, plugin, plugins, suggestion
from sembench.restorer import Image

PHANTOM = "phantom"
PHANTOM_CASES = 100


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(_Part):
    """Which set, which split for each role, and how fields are cut."""

    set: str = Field(description="name of the data set")
    train: str = "train"
    validation: str = "validation"
    evaluation: str = "evaluation"
    fields: str | None = Field(None, description="name of the frozen list of evaluation fields; none: whole images")
    training_fields: str | None = Field(None, description="name of the frozen list of training images")
    size: int = Field(512, ge=192, le=4096, description="side of the field cut from a phantom or a user's image, px")
    fallback: Literal["phantom"] | None = "phantom"

    @model_validator(mode="after")
    def _roles_apart(self) -> "DataPart":
        roles = {"train": self.train, "validation": self.validation, "evaluation": self.evaluation}
        for one, other in (("train", "evaluation"), ("validation", "evaluation"), ("train", "validation")):
            if roles[one] == roles[other]:
                raise ValueError(f"splits overlap: {one} and {other} both use {roles[one]!r}; give each its own split")
        return self


class DegradationPart(_Part):
    """The named degradation and the parameters that are fixed."""

    name: Literal["paper"] = "paper"
    fixed: dict[str, float] = Field(default_factory=dict)

    @field_validator("fixed")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for key in value:
            if key not in RANGES:
                raise ValueError(f"unknown parameter {key!r}: {suggestion(key, RANGES)}")
            if not math.isfinite(value[key]):
                raise ValueError(f"{key} = {value[key]}: give a finite number")
            if key in ("rx", "ry", "beta", "a", "dose") and value[key] <= 0:
                raise ValueError(f"{key} = {value[key]:g}: give a number above 0")
            if key == "sigma" and value[key] < 0:
                raise ValueError(f"{key} = {value[key]:g}: give 0 or more")
        return value


class AlignmentPart(_Part):
    """How a real pair is registered; synthetic pairs need none."""

    model: Literal["none"] = "none"


class MetricsPart(_Part):
    """The metrics, and the one that comes first."""

    primary: str
    names: tuple[str, ...]

    @model_validator(mode="after")
    def _known(self) -> "MetricsPart":
        known = plugins(METRICS)
        for name in self.names:
            if name not in known:
                raise ValueError(f"unknown metric {name!r}: {suggestion(name, known)}")
        if self.primary not in self.names:
            raise ValueError(f"primary metric {self.primary!r} is not among names")
        return self


class StatisticsPart(_Part):
    """The unit of independence."""

    cluster: Literal["group"] = "group"


class Protocol(_Part):
    """One frozen protocol; its digest is part of the identity of every row."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str
    question: str
    seed: int = Field(ge=0)
    published: bool = False
    scope: Literal["case"] = "case"
    order: Literal["round_robin", "listed"] = "round_robin"
    margin: int = Field(0, ge=0, description="border left out of every metric, px")
    time_limit_s: float = Field(300, gt=0, description="time limit of one restoration with its metrics, s")
    budget: Literal["standard", "quick", "long"] = "standard"
    data: DataPart
    degradation: DegradationPart
    alignment: AlignmentPart = AlignmentPart()
    metrics: MetricsPart
    statistics: StatisticsPart = StatisticsPart()

    @model_validator(mode="after")
    def _margin_fits(self) -> "Protocol":
        if 2 * self.margin >= self.data.size:
            raise ValueError(f"margin of {self.margin} px leaves nothing of {self.data.size} px: give a smaller one")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the parsed protocol, independent of comments and order of keys."""
        return _digest(self.model_dump(mode="json"))

    @property
    def degradation_name(self) -> str:
        """The name that restorers see."""
        return self.degradation.name


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _part_of(location: Sequence[Any]) -> type[BaseModel] | None:
    part: Any = Protocol
    for key in location:
        if not isinstance(key, str) or key not in part.model_fields:
            return None
        part = next(
            (
                t
                for t in (
                    part.model_fields[key].annotation,
                    *getattr(part.model_fields[key].annotation, "__args__", ()),
                )
                if isinstance(t, type) and issubclass(t, BaseModel)
            ),
            None,
        )
        if part is None:
            return None
    return part


def parse(text: str, file: str) -> Protocol:
    """A protocol from TOML text; InputError names the file, the key and the nearest known key."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}") from error
    try:
        return Protocol(**raw)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            part = _part_of(first["loc"][:-1])
            hint = suggestion(str(first["loc"][-1]), part.model_fields if part else ())
            raise InputError(f"{file}: unknown key {key!r}: {hint}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{file}: {f'key {key!r}: ' if key else ''}{message}") from error


def load(target: str) -> Protocol:
    """A protocol by entry-point name or by the path of a TOML file."""
    found = target if target.endswith(".toml") else plugin(PROTOCOLS, target).load()
    if not isinstance(found, str | Path):
        raise InputError(f"protocol {target!r}: its entry point gives {found!r}, not the path of a TOML file")
    path = Path(found)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a protocol: {error}") from error
    return parse(text, str(path))


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
    digest = _digest([PHANTOM, phantom.VERSION, protocol.seed, side, PHANTOM_CASES])
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
    digest = _digest([side, crop_bottom, [[file.name, sha256] for file, sha256 in zip(files, hashes, strict=True)]])
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
    digest = _digest(
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
