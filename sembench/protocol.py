"""A protocol: TOML, validated and digested."""

import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sembench.errors import InputError
from sembench.optics import RANGES
from sembench.registry import METRICS, PROTOCOLS, plugin, plugins, suggestion


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(_Part):
    """Which set, which split for each role, and how fields are cut."""

    set: str = Field(description="name of the data set")
    train: str = "train"
    validation: str = "validation"
    evaluation: str = "evaluation"
    fields: str | None = Field(None, description="name of the frozen list of evaluation fields; none: whole images")
    training_set: str | None = Field(None, description="data set of the training images; none: the same set")
    training_fields: str | None = Field(None, description="name of the frozen list of training images")
    scenes: Literal["lines"] | None = Field(None, description="phantom scenes with truth that belong to the cases")
    size: int = Field(512, ge=192, le=4096, description="side of the field cut from a phantom or a user's image, px")
    fallback: Literal["phantom"] | None = "phantom"
    pairs: bool | None = Field(None, description="whether the set holds real pairs of an input and a reference")
    also: tuple[str, ...] | None = Field(None, description="further sets of pairs that --data may name")

    @model_validator(mode="after")
    def _roles_apart(self) -> "DataPart":
        roles = {"train": self.train, "validation": self.validation, "evaluation": self.evaluation}
        for one, other in (("train", "evaluation"), ("validation", "evaluation"), ("train", "validation")):
            if roles[one] == roles[other]:
                raise ValueError(f"splits overlap: {one} and {other} both use {roles[one]!r}; give each its own split")
        return self


class DegradationPart(_Part):
    """The named degradation and the parameters that are fixed."""

    name: Literal["paper", "metrology", "none"] = "paper"
    training: Literal["paper", "broad"] | None = Field(
        None, description="degradation that learned methods are trained with; none: the same"
    )
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

    model: Literal["none", "translation", "affine"] = "none"
    margins: dict[str, int] | None = Field(
        default=None, description="margin (px) of sets that need another than the protocol's"
    )


class MetricsPart(_Part):
    """The metrics, and the one that comes first."""

    primary: str
    names: tuple[str, ...]
    table: tuple[str, ...] | None = Field(None, description="those that the printed table shows; none: all")

    @model_validator(mode="after")
    def _known(self) -> "MetricsPart":
        known = plugins(METRICS)
        for name in self.table or ():
            if name not in self.names:
                raise ValueError(f"metric {name!r} of table is not among names: {suggestion(name, self.names)}")
        for name in self.names:
            if name not in known:
                raise ValueError(f"unknown metric {name!r}: {suggestion(name, known)}")
        if self.primary not in self.names:
            raise ValueError(f"primary metric {self.primary!r} is not among names")
        return self


class FineTuningPart(_Part):
    """How fits go on from the state that the training images gave, on the set's real pairs."""

    pairs: int = Field(ge=1, description="number of training pairs")
    share: float = Field(gt=0, le=1, description="length as a share of the budget")
    rate: float = Field(gt=0, le=1, description="learning rate as a share of the method's own")


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
    scope: Literal["case", "set"] = "case"
    order: Literal["round_robin", "listed"] = "round_robin"
    margin: int = Field(0, ge=0, description="border left out of every metric, px")
    time_limit_s: float = Field(300, gt=0, description="time limit of one restoration with its metrics, s")
    budget: Literal["standard", "quick", "long"] = "standard"
    data: DataPart
    degradation: DegradationPart
    alignment: AlignmentPart = AlignmentPart()
    metrics: MetricsPart
    statistics: StatisticsPart = StatisticsPart()
    fine_tuning: FineTuningPart | None = None

    @model_validator(mode="after")
    def _margin_fits(self) -> "Protocol":
        if 2 * self.margin >= self.data.size:
            raise ValueError(f"margin of {self.margin} px leaves nothing of {self.data.size} px: give a smaller one")
        return self

    @model_validator(mode="after")
    def _pairs_to_learn_from(self) -> "Protocol":
        if self.fine_tuning and not (self.data.pairs and self.data.training_set):
            raise ValueError("fine_tuning needs a set of pairs and a training set: give data.pairs, data.training_set")
        return self

    @model_validator(mode="after")
    def _set_is_clean(self) -> "Protocol":
        if self.scope == "set" and (self.degradation.name != "none" or self.degradation.fixed):
            raise ValueError('scope "set" compares clean tiles: give degradation.name = "none" and nothing fixed')
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the parsed protocol, independent of comments, order of keys and keys that say nothing (none)."""
        return digest_of(self.model_dump(mode="json", exclude_none=True))

    @property
    def degradation_name(self) -> str:
        """The name that restorers see."""
        return self.degradation.name

    @property
    def training_degradation(self) -> str:
        """The degradation that learned methods are trained with."""
        return self.degradation.training or self.degradation.name


def digest_of(value: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
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
    found: type[BaseModel] = part
    return found


def parse(text: str, file: str) -> Protocol:
    """A protocol from TOML text; InputError names the file, the key and the nearest known key."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
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
