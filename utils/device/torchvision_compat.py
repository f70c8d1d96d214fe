"""Imports torchvision beside a PyTorch it was not compiled for.

PyPI's torchvision is built against the CUDA PyTorch. Next to a CPU build its compiled operators cannot load, and `import torchvision`
then stops at registering fake kernels for operators that do not exist. Declaring the schemas of those operators is enough for all of
torchvision that is Python: transforms and models. Only what needs the compiled code (`ops.nms`, `io.read_image`) stays unusable.

Everything that imports torchvision, directly or through another package, calls `ensure_torchvision` first.
"""

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

import torch

from utils.errors import MissingDependencyError

# Operators with a fake kernel in torchvision's Python code; their schemas are part of its public operator set.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# Schemas live as long as the library object that declared them.
_libraries: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Makes `import torchvision` work in this process; does nothing if it works already.

    Raises:
        MissingDependencyError: torchvision is not installed, or does not fit this PyTorch for another reason.
    """
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("the package 'torchvision' is not installed", "install it with: pip install 'torchvision>=0.24,<0.29'")
    if not _compiled_part_loads(Path(spec.origin).parent):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(name + schema)
        _libraries.append(library)
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"torchvision does not work with torch {torch.__version__}: {error}",
            "install the matching pair, for example torch 2.13 with torchvision 0.28",
        ) from error


def _compiled_part_loads(folder: Path) -> bool:
    for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        with suppress(OSError):
            torch.ops.load_library(str(library))
            return True
    return False
