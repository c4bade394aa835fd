"""Makes `import torchvision` work where its wheel was built for CUDA and torch was not."""

import importlib
import sys
import threading
from typing import Any

from sembench.errors import UnavailableError

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[Any] = []
_lock = threading.Lock()


def ensure_torchvision() -> None:
    """Import torchvision, first as it is; where only its compiled operators are missing, after declaring two of them.

    A torchvision wheel built for CUDA beside a CPU torch registers fake kernels for operators that nobody defined and
    fails to import (pytorch/vision issue 9077). Declaring the operators' schemas mends the import; non-maximum
    suppression itself stays unusable. To be called, in every process, before lpips, pyiqa or transformers are imported.
    Raises UnavailableError where torchvision is not there or fails in any other way.
    """
    with _lock:
        if "torchvision" in sys.modules:
            return
        try:
            _import_torchvision()
        except RuntimeError as error:
            if _MISSING_OPERATOR not in str(error):
                raise _unavailable(error) from error
            _declare_operators()
            try:
                _import_torchvision()
            except (ImportError, RuntimeError) as second:
                raise _unavailable(second) from second
        except ImportError as error:
            raise _unavailable(error) from error


def _import_torchvision() -> None:
    """Import torchvision or leave nothing half imported behind."""
    try:
        importlib.import_module("torchvision")
    except BaseException:
        for name in [name for name in sys.modules if name.split(".", 1)[0] == "torchvision"]:
            del sys.modules[name]
        raise


def _declare_operators() -> None:
    """Declare the two operators' schemas; torch forgets them when the library object is collected, so it is kept."""
    if _defined:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _defined.append(library)


def _unavailable(error: BaseException) -> UnavailableError:
    reason = str(error).split("\n", 1)[0]
    return UnavailableError(
        f"torchvision cannot be imported ({reason}): install the pair that belongs together, "
        "`pip install torch torchvision`"
    )
