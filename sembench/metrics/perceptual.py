"""Perceptual metrics: LPIPS (a distance of network features) and NIQE (no reference); neither judges SEM images."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sembench.errors import UnavailableError
from sembench.metrics.fidelity import matched_image
from sembench.metrics.table import MetricCase, MetricSpec, Scored, UndefinedError
from sembench.torchvision_compat import ensure_torchvision

if TYPE_CHECKING:
    from torch import Tensor

ALEXNET = "alexnet_features.safetensors"
NIQE_PARAMETERS = "niqe_modelparameters.mat"
SMALLEST_LPIPS = 32
SMALLEST_NIQE = 192
"""Two of NIQE's 96 px blocks a side: from one block alone the fit of a normal distribution means nothing."""

_PYIQA = "pyiqa (PolyForm-Noncommercial): pip install sembench[noncommercial]"
_weights: dict[str, Path] = {}


def use_weights(files: Mapping[str, Path | str]) -> None:
    """Say where the weights lie: file name (`ALEXNET`, `NIQE_PARAMETERS`) -> path. To be called in every process."""
    _weights.update({name: Path(path) for name, path in files.items()})


def weights_in_use() -> dict[str, Path]:
    """What `use_weights` was told so far, to be told to another process."""
    return dict(_weights)


def load_lpips(alexnet: Path | str) -> Any:
    """The lpips package's network (AlexNet, version 0.1), float32, without a download; it may be kept.

    alexnet: safetensors with torchvision's `features.*` tensors. Source: Zhang et al., CVPR 2018.
    Raises UnavailableError where torchvision or lpips cannot be imported.
    """
    ensure_torchvision()
    import warnings

    import torch
    from safetensors.torch import load_file

    try:
        import lpips
    except ImportError as error:
        raise UnavailableError(f"lpips cannot be imported ({error}): pip install lpips") from error

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    features = load_file(os.fspath(alexnet))
    backbone = {key: features["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
    network.net.load_state_dict(backbone, assign=True)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False, assign=True)
    return network.eval().requires_grad_(False)


def lpips_features(network: Any, image: "Tensor") -> "list[Tensor]":
    """Features of an image (1, 3, H, W) in -1..1 at the five layers, each of unit length over its channels."""
    import lpips

    return [lpips.normalize_tensor(layer) for layer in network.net(network.scaling_layer(image))]


def lpips_distance(network: Any, first: "list[Tensor]", second: "list[Tensor]") -> float:
    """LPIPS between two images given by their features: squared differences, weighted, averaged, summed over layers."""
    weighted = (head((one - other) ** 2).mean() for head, one, other in zip(network.lins, first, second, strict=True))
    return float(sum(weighted))


def to_tensor(image: "NDArray[np.floating[Any]]") -> "Tensor":
    """Gray levels 0..255 (H, W) as a float32 tensor (1, 3, H, W) in -1..1, the gray repeated."""
    import torch

    scaled = (np.asarray(image, np.float64) / 127.5 - 1).astype(np.float32)
    return torch.from_numpy(scaled).expand(1, 3, -1, -1)


def niqe(image: "NDArray[np.floating[Any]]", parameters: Path | str) -> float:
    """NIQE of one gray image (H, W), gray levels 0..255, at least 192 x 192 px; lower is nearer to natural photographs.

    parameters: the pristine model, a .mat file as the authors publish it. The image is clipped to 0..255 and rounded to
    whole gray levels. Raises UndefinedError where the image has too little structure to fit the model, UnavailableError
    where pyiqa is not installed. Source: Mittal et al., IEEE SPL 20 (2013), as pyiqa computes it.
    """
    import torch

    clipped = np.clip(image, 0, 255)
    if np.ptp(np.round(clipped)) == 0:
        raise UndefinedError("the image is constant in whole gray levels")
    unit = torch.from_numpy((clipped / 255).astype(np.float32))[None, None]
    metric = _niqe_metric(str(parameters))
    try:
        with _one_thread():
            value = float(metric(unit))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise UndefinedError("the image has too little structure for the model to be fitted") from error
    if not np.isfinite(value):
        raise UndefinedError("the image has too little structure for the model to be fitted")
    return value


def _pyiqa_is_installed() -> bool:
    return importlib.util.find_spec("pyiqa") is not None


@lru_cache(maxsize=1)
def _niqe_metric(parameters: str) -> Any:
    if not _pyiqa_is_installed():
        raise UnavailableError(f"NIQE needs {_PYIQA}")
    ensure_torchvision()
    import pyiqa

    return pyiqa.create_metric("niqe", pretrained_model_path=parameters, device="cpu")


@lru_cache(maxsize=1)
def _network(alexnet: str) -> Any:
    return load_lpips(alexnet)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread in torch, so that sums do not depend on the machine; the number is put back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _missing_weight(name: str) -> list[str]:
    path = _weights.get(name)
    if path is not None and path.is_file():
        return []
    where = "was not located" if path is None else f"is not at {path}"
    return [f"{name} {where}: put it into the folder `weights` of SEMBENCH_DATA, or allow its download"]


def _weight(name: str) -> str:
    missing = _missing_weight(name)
    if missing:
        raise UnavailableError(missing[0])
    return os.fspath(_weights[name])


def _reference_features(case: MetricCase) -> "list[Tensor]":
    return _features(case.once(MetricCase.inner_reference))


def _features(image: "NDArray[np.floating[Any]]") -> "list[Tensor]":
    network = _network(_weight(ALEXNET))
    with _one_thread():
        return lpips_features(network, to_tensor(image))


def _distance_to_reference(image: "NDArray[np.floating[Any]]", case: MetricCase) -> float:
    features = _features(image)
    reference = case.once(_reference_features)
    with _one_thread():
        return lpips_distance(_network(_weight(ALEXNET)), reference, features)


def _lpips(scored: Scored) -> float:
    return _distance_to_reference(scored.inner_restored(), scored.case)


def _lpips_matched(scored: Scored) -> float:
    return _distance_to_reference(scored.once(matched_image), scored.case)


def _niqe(scored: Scored) -> float:
    return niqe(scored.case.inner(scored.restored), _weight(NIQE_PARAMETERS))


def _lpips_needs() -> list[str]:
    return _missing_weight(ALEXNET)


def _niqe_needs() -> list[str]:
    extra = [] if _pyiqa_is_installed() else [_PYIQA]
    return extra + _missing_weight(NIQE_PARAMETERS)


LPIPS = MetricSpec(
    name="lpips",
    title="LPIPS (AlexNet, v0.1)",
    unit="",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_lpips,
    version=1,
    tolerance=1e-4,
    needs=_lpips_needs,
    smallest_side=SMALLEST_LPIPS,
)
LPIPS_MATCHED = MetricSpec(
    name="lpips_matched",
    title="LPIPS (AlexNet, v0.1), gain and offset matched",
    unit="",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_lpips_matched,
    version=1,
    tolerance=1e-4,
    needs=_lpips_needs,
    smallest_side=SMALLEST_LPIPS,
)
NIQE = MetricSpec(
    name="niqe",
    title="NIQE (pyiqa)",
    unit="",
    better="lower",
    needs_reference=False,
    needs_degradation=False,
    function=_niqe,
    version=1,
    tolerance=1e-2,
    needs=_niqe_needs,
    smallest_side=SMALLEST_NIQE,
)
