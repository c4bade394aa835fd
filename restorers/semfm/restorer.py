"""The restorers of semfm: adapted by a few images, as the paper prints it, zero shot, and without its encoder."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from restorers.blind_wiener import LEAST_RADIUS
from restorers.semfm.spectral import (
    LEAST_CONTRAST,
    degraded_arrays,
    patch_arrays,
    patch_arrays_of_scans,
    spectral_estimate,
)
from restorers.semfm.windows import blend_windows
from sembench.errors import InputError
from sembench.optics import MIDPOINT
from sembench.restorer import PATCH_SIDE, Crops, Image, Need, Patch, Restorer, TrainingSet, check_image

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.semfm.model import MaskedAutoencoder

WEIGHTS = Path(__file__).parent / "weights"
"""Where the pretrained models lie: stage1.json, stage3.json and restoring.json, each with its shards."""

CITATION = "arXiv 2604.05960, first foundation model for SEM images"

EncoderName = Literal["random", "stage1", "stage3", "restoring"]
LossName = Literal["relative", "l1", "l1_tv"]
DegradationName = Literal["none", "paper", "broad"]

_DEGRADATION: Any = Field("none", description="training degradation, filled in from the protocol; none: broad")
_SEED: Any = Field(0, ge=0, le=2**31, description="seed of patches and first weights")
_ENCODER: Any = Field("stage3", description="pretrained model whose encoder is used; random: one that saw no image")
_CONFIG: Any = Field("tiny", description="size of the model where its encoder is random")
_LOSS_TOLD = "relative: squared error against the estimate's; paper eq. 17: l1 (Charbonnier), l1_tv (edges 3, TV 10)"
_HEAD_TOLD = "head on the tokens"
_WIDTH: Any = Field(24, ge=8, le=256, multiple_of=8, description="channels of the pixel path at half resolution")
_BATCH = 8


def _overlap(default: int) -> Any:
    return Field(default, ge=0, le=73, description="px that neighbouring windows share at least")


def _rate(default: float) -> Any:
    return Field(default, gt=0, le=0.1, description="learning rate of AdamW")


def _blocks(default: int) -> Any:
    return Field(default, ge=1, le=64, description="residual blocks of the pixel path at an eighth of the resolution")


class _Windowed(Restorer):
    """What all of semfm's restorers share: a network applied to windows."""

    citation = CITATION

    class Settings(Restorer.Settings):
        overlap: int = _overlap(64)

    _network: "nn.Module | None" = None

    def ready(self) -> "nn.Module":
        """The network, ready to restore, on its device."""
        if self._network is None:
            self._network = self._built().to(self.device).eval()
        return self._network

    def _built(self) -> "nn.Module":
        raise NotImplementedError

    def _blended(self, image: Image, estimate: Image | None, level: float, contrast: float) -> Image:
        """The network's gray levels for a whole image, not clipped."""
        import torch

        network = self.ready()
        channels = image[None] if estimate is None else np.stack([image, estimate])

        def apply(windows: NDArray[np.float32]) -> NDArray[np.float32]:
            stack = torch.from_numpy(windows).to(self.device)
            batch = {"degraded": stack[:, :1], "level": torch.tensor(level), "contrast": torch.tensor(contrast)}
            if estimate is not None:
                batch["estimate"] = stack[:, 1:]
            with torch.inference_mode():
                return network(batch)[:, 0].float().cpu().numpy()

        return blend_windows(channels, apply, side=PATCH_SIDE, overlap=self.settings.overlap, batch=_BATCH)


class _Adapted(_Windowed):
    """A network that a few images adapt."""

    version = 2
    settings_after_fit = ("overlap",)
    crops: Crops = "mixed"

    class Settings(_Windowed.Settings):
        degradation: DegradationName = _DEGRADATION
        seed: int = _SEED
        loss: LossName = Field("relative", description=_LOSS_TOLD)
        learning_rate: float = _rate(1e-3)

    @property
    def physics(self) -> bool:
        """Whether the blind spectral estimate is a second channel."""
        return False

    @property
    def keeps_domain(self) -> bool:
        """Whether the network works in the input's own gain and offset, whose mean is undone afterwards."""
        return True

    schedule: Literal["cosine", "constant"] = "cosine"

    @property
    def anchored(self) -> bool:
        """Whether the first weights restore already, so that a fit ends half way between them and what it learned."""
        return False

    def _new(self) -> "nn.Module":
        """The network as a fit begins with it."""
        raise NotImplementedError

    def _built(self) -> "nn.Module":
        from restorers import fitting

        if self.state is None:
            raise InputError(
                f"{type(self).__name__} is not fitted: `sembench run` and `sembench adapt` fit it, or load a state"
            )
        network = self._new()
        fitting.load(network, self.state)
        return network

    def fit(self, training: TrainingSet, /) -> None:
        """Train decoder and pixel path on the training set's patches; the encoder stays as it is."""
        from restorers import fitting

        self._network, self.state = None, None
        network = self._new()
        kind, target = self.settings.loss, "target" if self.keeps_domain else "clean"
        undo = self._undo if self.keeps_domain else None

        def loss(network: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
            from restorers.semfm.adaptation import restoration_loss

            start = batch["estimate" if "estimate" in batch else "degraded"]
            return restoration_loss(network(batch), batch[target], start, kind)

        fitted = fitting.fit(
            network,
            loss,
            training,
            prepare=self._prepare,
            restored=lambda network, batch: undo(network(batch)) if undo else network(batch),
            crops=self.crops,
            learning_rate=self.settings.learning_rate,
            schedule=self.schedule,
            anchored=self.anchored,
        )
        self.state, self.report = fitted.state, fitted.report

    @property
    def _blurred(self) -> bool:
        """Whether all images are known to be blurred, so that a spectrum's kernel is undone however small it is."""
        return bool(self.settings.degradation == "paper")

    @property
    def _rectified(self) -> bool:
        """Whether the pixel path has ReLU, chosen on validation patches (loss as a share of the estimate's).

        For `broad` ReLU is at 0.89 after 1000 steps and GELU at 0.96; for `paper` ReLU turns at 0.94, GELU at 0.93.
        """
        return not self._blurred

    @property
    def _prepare(self) -> Callable[[Patch], dict[str, NDArray[Any]]]:
        if not self.physics:
            return degraded_arrays
        return patch_arrays if self._blurred else patch_arrays_of_scans

    def _undo(self, gray: Any) -> Any:
        """Undo the mean gain and offset of the degradation: those of `broad` are 1 and 0."""
        return (gray - MIDPOINT.b) / MIDPOINT.a if self.settings.degradation == "paper" else gray

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        self.ready()
        image = np.asarray(image, dtype=np.float32)
        if self.physics:
            found = spectral_estimate(image, least_radius=0.0 if self._blurred else LEAST_RADIUS)
            restored = self._blended(image, found.image, found.level, found.contrast)
        else:
            restored = self._blended(image, None, float(image.mean()), max(float(image.std()), LEAST_CONTRAST))
        if self.keeps_domain:
            restored = self._undo(restored)
        return np.clip(restored, 0.0, 255.0).astype(np.float32)


class NoEncoder(_Adapted):
    """The pixel path of semfm alone, at equal parameters: what the pretrained encoder must beat."""

    class Settings(_Adapted.Settings):
        physics: bool = Field(True, description="the blind spectral estimate as second channel")
        width: int = _WIDTH
        coarse_blocks: int = _blocks(6)

    @property
    def physics(self) -> bool:
        return bool(self.settings.physics)

    def _new(self) -> "nn.Module":
        from restorers.fitting import seeded
        from restorers.semfm.adaptation import PathNetwork

        with seeded(self.settings.seed):
            blocks = (1, 1, self.settings.coarse_blocks)
            return PathNetwork(self.settings.width, blocks, physics=self.physics, rectified=self._rectified)


class _Pretrained(_Windowed):
    """What the restorers with an encoder share: its weights."""

    class Settings(_Windowed.Settings):
        encoder: EncoderName = _ENCODER
        config: Literal["tiny", "small", "base", "large"] = _CONFIG

    _embedder: "MaskedAutoencoder | None" = None

    @classmethod
    def weights_file(cls, settings: Any) -> Path | None:
        """The JSON file of the pretrained model; None for one that saw no image."""
        return None if settings.encoder == "random" else WEIGHTS / f"{settings.encoder}.json"

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        path = cls.weights_file(settings)
        if path is None or path.is_file():
            return []
        recipe = "restoring" if settings.encoder == "restoring" else "shipped"
        mend = f"train it with `sembench train semfm --recipe {recipe}`, or give --set encoder=random"
        return [Need(f"semfm weights {settings.encoder}", f"{path} is not there", mend)]

    @classmethod
    def weights_digest(cls, settings: Any) -> str:
        path = cls.weights_file(settings)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""

    @classmethod
    def pretrain(cls, **request: Any) -> Path:
        """Run a recipe of pretraining; arguments as restorers.semfm.pretraining.pretrain has them."""
        from restorers.semfm.pretraining import pretrain

        return pretrain(**request)

    def _model(self) -> "MaskedAutoencoder":
        return self._loaded()[0]

    def _loaded(self) -> "tuple[MaskedAutoencoder, dict[str, Any]]":
        """The pretrained model, and what its file tells beside it."""
        from restorers.semfm.model import CONFIGS, MaskedAutoencoder
        from restorers.semfm.storage import load_model

        path = self.weights_file(self.settings)
        if path is None:
            return MaskedAutoencoder(CONFIGS[self.settings.config], getattr(self.settings, "seed", 0)), {}
        return load_model(path)

    def embed(self, image: Image, /) -> NDArray[np.float32]:
        """The mean of the encoder's patch tokens, float32 (dim,), of length 1; sides are reflected to whole patches."""
        import torch

        check_image(image)
        if self._embedder is None:
            self._embedder = self._model().to(self.device).eval()
        model = self._embedder
        patch = model.config.patch
        grown = np.pad(image, [(0, -side % patch) for side in image.shape], mode="reflect").astype(np.float32)
        with torch.inference_mode():
            gray = torch.from_numpy(grown)[None, None].to(self.device)
            tokens = model.encode(model.normalise(gray))[0, model.prefix :].float().mean(0)
            return (tokens / tokens.norm().clamp_min(1e-12)).cpu().numpy()


class Semfm(_Pretrained, _Adapted):
    """semfm adapted by a few images: frozen encoder, decoder and pixel path on a blind spectral estimate trained."""

    ablations = Path(__file__).parent / "ablations.toml"

    class Settings(_Pretrained.Settings, _Adapted.Settings):
        decoder: Literal["pixel_path", "plain", "linear"] = Field("pixel_path", description=_HEAD_TOLD)
        physics: bool = Field(True, description="the blind spectral estimate as second channel of the pixel path")
        width: int = _WIDTH
        coarse_blocks: int = _blocks(3)

    @property
    def physics(self) -> bool:
        return bool(self.settings.physics and self.settings.decoder == "pixel_path")

    @property
    def keeps_domain(self) -> bool:
        return bool(self.settings.decoder == "pixel_path")

    def _new(self) -> "nn.Module":
        from restorers.fitting import seeded
        from restorers.semfm import adaptation

        model, told = self._loaded()
        with seeded(self.settings.seed):
            if self.settings.decoder == "plain":
                return adaptation.PlainNetwork(model)
            if self.settings.decoder == "linear":
                return adaptation.LinearNetwork(model)
            rectified = told.get("path", {}).get("rectified", self._rectified)
            sizes = (self.settings.width, (1, 1, self.settings.coarse_blocks))
            network = adaptation.TokenPathNetwork(model, *sizes, physics=self.physics, rectified=rectified)
        if brought := self._brought(told):
            network.path.load_state_dict(brought)
        return network

    @property
    def anchored(self) -> bool:
        return bool(self._brought(self._loaded()[1]))

    def _brought(self, told: dict[str, Any]) -> "dict[str, Tensor]":
        """The pixel path that the pretrained model brings; empty where it brings none of these sizes."""
        from restorers.semfm.storage import load_part

        described, file = told.get("path", {}), self.weights_file(self.settings)
        same = all(described.get(name) == getattr(self.settings, name) for name in ("width", "coarse_blocks"))
        return load_part(file, described) if file and same and self.physics else {}


class SemfmL1Tv(Semfm):
    """semfm adapted with the paper's edge and total-variation terms beside Charbonnier."""

    class Settings(Semfm.Settings):
        loss: LossName = Field("l1_tv", description=_LOSS_TOLD)


class SemfmPlain(Semfm):
    """semfm to the paper's letter: decoder alone on tokens alone, its crops, its rate, 8 px of overlap."""

    version = 1
    crops: Crops = "paper"
    schedule: Literal["cosine", "constant"] = "constant"

    class Settings(Semfm.Settings):
        decoder: Literal["pixel_path", "plain", "linear"] = Field("plain", description=_HEAD_TOLD)
        loss: LossName = Field("l1", description=_LOSS_TOLD)
        overlap: int = _overlap(8)
        learning_rate: float = _rate(1e-4)


class SemfmZeroShot(_Pretrained):
    """semfm as pretrained, never shown a degraded image: the decoder draws every patch."""

    class Settings(_Pretrained.Settings):
        overlap: int = _overlap(8)
        masking: Literal["visible", "complementary"] = Field(
            "complementary",
            description="visible: every patch is seen; complementary: each quarter drawn from the others",
        )

    def _built(self) -> "nn.Module":
        from restorers.semfm.adaptation import ZeroShotNetwork

        return ZeroShotNetwork(self._model(), self.settings.masking)

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        image = np.asarray(image, dtype=np.float32)
        restored = self._blended(image, None, float(image.mean()), max(float(image.std()), LEAST_CONTRAST))
        return np.clip(restored, 0.0, 255.0).astype(np.float32)
