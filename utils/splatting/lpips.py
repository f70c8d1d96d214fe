"""LPIPS (Zhang et al., CVPR 2018) where its package and the weights of its backbone are installed."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from utils.device.torchvision_compat import ensure_torchvision
from utils.errors import MissingDependencyError

_log = logging.getLogger(__name__)

# What torch.hub names the backbone files in its cache; lpips brings its own linear layers.
_BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}

Lpips = Callable[[Tensor, Tensor], Tensor]


def backbone_path(net: str) -> Path:
    """Where the backbone's weights are looked for; this program never downloads them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net]


@cache
def load_lpips(net: str = "alex", device: str = "cpu") -> Lpips | None:
    """The distance, or None where it cannot be had; then the reason is logged, once for each argument.

    Args:
        net: `alex` for measuring, `vgg` for training.
        device: where the images will be.

    Returns:
        A function of two images (H, W, 3) in 0..1 that gives a scalar, differentiable in both.
    """
    path = backbone_path(net)
    try:
        ensure_torchvision()
        import lpips
    except (MissingDependencyError, ModuleNotFoundError) as error:
        _log.warning("LPIPS is left out: %s", getattr(error, "message", f"the package '{getattr(error, 'name', '')}' is not installed"))
        return None
    if not path.is_file():
        source = f"https://download.pytorch.org/models/{path.name}"
        _log.warning("LPIPS is left out: the weights %s are missing; get them from %s", os.fspath(path), source)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips asks torchvision for its weights in an old way
        network = lpips.LPIPS(net=net, verbose=False).to(device).eval().requires_grad_(False)

    def distance(image: Tensor, target: Tensor) -> Tensor:
        a, b = (x.permute(2, 0, 1)[None] for x in (image, target))
        return network(a, b, normalize=True).squeeze()

    return distance
