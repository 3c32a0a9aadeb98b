"""torchvision's import, beside a CPU-only torch.

The torchvision of PyPI is built for torch with CUDA. Beside a torch without it, its
compiled operators are not loaded, and ``import torchvision`` ends with "operator
torchvision::nms does not exist", because it describes two operators that nobody has
declared. Declaring their schemas, where they are absent, cures the import. Nothing
here or in pytorch-fid ever calls the two (they suppress overlapping boxes).

Nothing at module level: torchvision is imported only by whom needs it.
"""

import functools
import importlib
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_SYMPTOM = "torchvision::nms does not exist"


def load_torchvision() -> ModuleType:
    """Import torchvision, after declaring its two operators where they are absent.

    Guarantees:
        Where torchvision imports by itself, nothing is declared.

    Returns:
        The module ``torchvision``.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    _declare_operators()
    return importlib.import_module("torchvision")


def load_pytorch_fid() -> ModuleType:
    """Import ``pytorch_fid.inception``, which imports torchvision.

    Raises:
        ImportError: pytorch-fid or torchvision is not installed.
    """
    load_torchvision()
    return importlib.import_module("pytorch_fid.inception")


@functools.cache  # a library's declarations vanish with the object, so it is kept
def _declare_operators() -> torch.library.Library:
    """Declare the schemas of the operators that torchvision has not loaded."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library
