"""The settings of pretraining: a TOML file with the sections model, data, experts, report, one a stage, restoring."""

import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from restorers.semfm.model import CONFIGS, ModelConfig
from restorers.semfm.packing import Augmentation
from sembench.errors import InputError
from sembench.registry import suggestion

FOLDER = Path(__file__).parent / "configs"
"""Where the shipped recipes lie; each can be given by its name without `.toml`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(_Part):
    """Which images, and how a sample is cut from them."""

    name: str = Field(default="semcorpus", description="a set with pretraining splits, or a folder of images")
    megabytes: float = Field(default=58.0, gt=0, description="limit of the packed file; images are shrunk to fit")
    native_share: float = Field(default=0.0, ge=0, le=1, description="share of samples cut at scale 1")
    smallest_crop: float = Field(
        default=0.2, gt=0, le=1, description="least share of the image's area in a resized crop"
    )
    phantom_share: float = Field(default=0.0, ge=0, le=1, description="share of samples cut from drawn scenes")
    phantom_scenes: int = Field(default=40, ge=1, le=400, description="how many scenes are drawn, if any")
    contrast_jitter: float = Field(default=0.1, ge=0, lt=1, description="gain about middle gray: 1 - j .. 1 + j")
    brightness_jitter: float = Field(default=0.04, ge=0, lt=1, description="offset, of the full scale: -j .. j")
    validation_samples: int = Field(default=64, ge=1, description="fixed crops with fixed masks that validation uses")
    seed: int = Field(default=0, ge=0, description="seed of weights, crops and masks")

    def augmentation(self, size: int) -> Augmentation:
        """How training samples of that side (px) are cut."""
        return Augmentation(size, **{f.name: getattr(self, f.name) for f in fields(Augmentation) if f.name != "size"})


class ExpertsPart(_Part):
    """What becomes of the feed-forward layers at the start of stage 2."""

    experts: int = Field(default=8, ge=2, le=64)
    top_k: int = Field(default=1, ge=1)
    experts_in: Literal["encoder", "decoder", "both"] = "encoder"
    every: int = Field(default=1, ge=1, description="experts in each, or in each second, ... block")
    noise: float = Field(default=0.02, ge=0, description="noise on each copy, of its weight matrix' standard deviation")


class ReportPart(_Part):
    """What is written on the way; nothing here changes what is learned."""

    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    picture_every: int = Field(default=500, ge=1)
    tensorboard: bool = True


class StagePart(_Part):
    """One stage: length, optimizer (AdamW), loss weights (eq. 10, 15, 16)."""

    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1, description="in place of steps; see Samples.per_epoch")
    batch: int = Field(ge=1, description="images of one process in one forward pass")
    accumulate: int = Field(default=1, ge=1, description="forward passes of a step")
    learning_rate: float = Field(gt=0, description="the highest")
    final_share: float = Field(default=1.0, ge=0, le=1, description="share of it that a half cosine leads to")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear rise from 0")
    weight_decay: float = Field(default=0.0, ge=0, description="of weight matrices, not of biases, norms and tokens")
    beta2: float = Field(default=0.999, gt=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    precision: Literal["float32", "bf16"] = "bf16"
    validate_every: int = Field(default=200, ge=1)
    distillation: float = Field(default=1.0, ge=0, description="lambda of eq. 10; stages 2 and 3")
    balance: float = Field(default=0.01, ge=0, description="mu of eq. 10; stages 2 and 3")
    balance_by: Literal["probability", "choice"] = Field(
        default="probability", description="probability: eq. 9; choice: K sum of share taken times mean probability"
    )
    fft: float = Field(default=0.1, ge=0, description="weight of eq. 12; stage 3")
    psd: float = Field(default=0.1, ge=0, description="weight of eq. 14; stage 3")
    psd_log: bool = Field(default=True, description="log1p of the spectra inside eq. 14's difference")
    kinship: float | None = Field(
        default=None, gt=0, description="weight of losses.kinship; samples are then pairs of crops of one image"
    )

    @model_validator(mode="after")
    def _length(self) -> "StagePart":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.kinship and self.batch % 2:
            raise ValueError("kinship is told between pairs: give an even batch")
        return self


class RestoringPart(_Part):
    """What follows the stages: encoder, decoder and pixel path learn to restore the images of pretraining."""

    encoder: Literal["pretrained", "random", "none"] = Field(
        default="pretrained", description="where the encoder comes from; random and none: to compare with"
    )
    encoder_rate: float = Field(default=0.3, ge=0, le=1, description="its share of the learning rate; 0: frozen")
    kept: float = Field(default=1.0, ge=0, description="weight of the mean token's turn away from what it was")
    steps: int = Field(ge=1)
    batch: int = Field(default=4, ge=1, description="patches of a step")
    learning_rate: float = Field(default=1e-3, gt=0, description="the highest; a cosine leads to 1 % of it")
    width: int = Field(default=24, ge=8, multiple_of=8, description="channels of the pixel path at half resolution")
    coarse_blocks: int = Field(default=3, ge=1, description="its residual blocks at an eighth of the resolution")
    seed: int = Field(default=0, ge=0, description="seed of patches and first weights")


class Recipe(_Part):
    """A whole file of settings."""

    model: dict[str, Any] = Field(default_factory=dict)
    data: DataPart = DataPart()
    experts: ExpertsPart = ExpertsPart()
    report: ReportPart = ReportPart()
    stage1: StagePart | None = None
    stage2: StagePart | None = None
    stage3: StagePart | None = None
    restoring: RestoringPart | None = None

    @model_validator(mode="after")
    def _needed(self) -> "Recipe":
        if self.restoring and self.restoring.encoder == "pretrained" and not self.stages:
            raise ValueError("restoring trains a pretrained encoder on: give a stage, or another restoring.encoder")
        odd = self.data.validation_samples % 2
        if odd and any(self.stage(number).kinship for number in self.stages):
            raise ValueError("kinship is told between pairs: give an even data.validation_samples")
        return self

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that it has, in order."""
        return tuple(number for number in (1, 2, 3) if getattr(self, f"stage{number}") is not None)

    def stage(self, number: int) -> StagePart:
        """The settings of one stage; InputError where the file has none."""
        part = getattr(self, f"stage{number}")
        if not isinstance(part, StagePart):
            raise InputError(f"the config has no section [stage{number}]: add it, or give another --recipe")
        return part

    def architecture(self, mean: float, std: float) -> ModelConfig:
        """The dense network's sizes, with the gray statistics of the training images; InputError for a wrong one."""
        given = dict(self.model)
        base = given.pop("config", "tiny")
        if base not in CONFIGS:
            raise InputError(f"model.config {base!r} is not known: {suggestion(str(base), CONFIGS)}")
        allowed = {f.name for f in fields(ModelConfig)} - {"mean", "std", "channels", *ExpertsPart.model_fields}
        for key in given:
            if key not in allowed - {"gate_gradient"}:
                raise InputError(f"unknown key 'model.{key}': {suggestion(key, allowed)}")
        return ModelConfig(**{**asdict(CONFIGS[base]), **given, "mean": mean, "std": std})

    def identity(self, number: int, images_per_step: int) -> dict[str, Any]:
        """All that decides what a stage learns, as a flat table; batch and accumulate count by their product."""
        stage = self.stage(number).model_dump(exclude={"batch", "accumulate"})
        sections = {"model": self.model, "data": self.data.model_dump(exclude={"name"}), f"stage{number}": stage}
        if number > 1:
            sections["experts"] = self.experts.model_dump()
        flat = {f"{section}.{key}": value for section, part in sections.items() for key, value in part.items()}
        return {**flat, "images a step": images_per_step}


def load_recipe(config: Path) -> Recipe:
    """Read a recipe: a TOML file, or the name of a shipped one. Raises InputError, one line with file and key."""
    path = config if config.suffix == ".toml" else FOLDER / f"{config}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise InputError(f"{config}: no such file; give a TOML file, or one of {shipped}")
    try:
        return Recipe(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error}); mend it") from error
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{path}: unknown key {key!r}: {_near(first['loc'])}") from error
        raise InputError(f"{path}: key {key!r}: {first['msg'].removeprefix('Value error, ')}") from error


def _near(location: tuple[int | str, ...]) -> str:
    parts: dict[str, type[BaseModel]] = {"data": DataPart, "experts": ExpertsPart, "report": ReportPart}
    parts["restoring"] = RestoringPart
    part = parts.get(str(location[0]), StagePart) if len(location) > 1 else Recipe
    return suggestion(str(location[-1]), part.model_fields)
