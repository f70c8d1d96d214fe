"""Weights of Depth Anything 3: their licences, where they lie on disk, and the network they belong to.

The package's own entry point (`depth_anything_3.api`) imports exporters with many dependencies; the network alone needs none of them,
so it is built here from the package's configuration files. Package: depth-anything-3, Apache-2.0; Lin et al., 2025.
"""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import ConfigError, CorruptArtifactError, MissingDependencyError, V2WError
from utils.third_party import available
from utils.types import NULL_REPORTER, Reporter

DEFAULT_MODEL = "depth-anything/DA3NESTED-GIANT-LARGE-1.1"
# What stands in for the default where only permissive licences are allowed: poses and depth, and a second net for metres and sky.
COMMERCIAL_MODEL = "depth-anything/DA3-BASE"
COMMERCIAL_METRIC_MODEL = "depth-anything/DA3METRIC-LARGE"

_PERMISSIVE, _NONCOMMERCIAL = "Apache-2.0", "CC-BY-NC-4.0"
_UNKNOWN = "not known to this program; see the model's card"
# By architecture, as the authors' model table states it. Where hub page and table disagree, the stricter one is meant.
LICENSES = {
    "da3-small": _PERMISSIVE,
    "da3-base": _PERMISSIVE,
    "da3-large": _NONCOMMERCIAL,
    "da3-giant": _NONCOMMERCIAL,
    "da3nested-giant-large": _NONCOMMERCIAL,
    "da3metric-large": _PERMISSIVE,
    "da3mono-large": _PERMISSIVE,
}
_WITHOUT_CAMERAS = ("da3metric-large", "da3mono-large")
_FILES = ("config.json", "model.safetensors")
_INSTALL = (
    "in this program's folder: pip install --no-deps depth-anything-3==0.1.1 && pip install -e '.[da3]'; or choose the backend 'sfm',"
    " which needs neither package nor weights"
)


@dataclass(frozen=True)
class Weights:
    """One set of weights.

    Attributes:
        name: hub name or folder, as given.
        license: SPDX identifier, or that it is not known.
    """

    name: str
    license: str


def choose_weights(model_name: str, commercial_safe: bool) -> Weights:
    """The weights to use for poses and depth.

    Raises:
        ConfigError: the model has no cameras, or `commercial_safe` forbids it.
    """
    if commercial_safe and model_name == DEFAULT_MODEL:
        model_name = COMMERCIAL_MODEL
    preset = _preset_of_name(model_name)
    if preset in _WITHOUT_CAMERAS:
        raise ConfigError(f"{model_name} estimates depth only, no cameras", f"choose for example {COMMERCIAL_MODEL} or {DEFAULT_MODEL}")
    weights = Weights(model_name, LICENSES.get(preset, _UNKNOWN))
    _require_permissive(weights, commercial_safe, f"{COMMERCIAL_MODEL} or depth-anything/DA3-SMALL")
    return weights


def metric_weights(model_name: str, commercial_safe: bool = False) -> Weights:
    """The weights of a second network that brings metric scale and sky to a model without them.

    Raises:
        ConfigError: another kind of model, or `commercial_safe` forbids it.
    """
    preset = _preset_of_name(model_name)
    if preset and preset != "da3metric-large":
        raise ConfigError(f"{model_name} does not estimate metric depth and sky", f"use {COMMERCIAL_METRIC_MODEL}")
    weights = Weights(model_name, LICENSES.get(preset, _UNKNOWN))
    _require_permissive(weights, commercial_safe, COMMERCIAL_METRIC_MODEL)
    return weights


def _require_permissive(weights: Weights, commercial_safe: bool, instead: str) -> None:
    if commercial_safe and weights.license != _PERMISSIVE:
        raise ConfigError(
            f"the licence of {weights.name} is {weights.license}, but only permissive licences are allowed",
            f"use {instead}, or switch commercial_safe off",
        )


def _preset_of_name(model_name: str) -> str:
    """Architecture of a published hub name or of a local folder; empty if neither."""
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return _read_preset(folder)
    owner, _, name = model_name.rpartition("/")
    preset = name.lower().removesuffix("-1.1")
    return preset if owner == "depth-anything" and preset in LICENSES else ""


def _read_preset(folder: Path) -> str:
    path = folder / _FILES[0]
    if not path.is_file():
        raise MissingDependencyError(f"{folder} holds no {_FILES[0]}", f"the folder of a model holds {' and '.join(_FILES)}")
    try:
        preset = json.loads(path.read_text())["model_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path} does not name its model: {error!r}", "download the model again") from error
    return str(preset)


def locate(weights: Weights, report: Reporter) -> Path:
    """Folder with `config.json` and `model.safetensors`: a local one, the hub's cache, or a fresh download.

    Raises:
        MissingDependencyError: not there and not downloadable; the hint says how to get them.
    """
    folder = Path(weights.name).expanduser()
    if folder.is_dir():
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise MissingDependencyError(
                f"{folder} holds no {' and no '.join(missing)}", f"the folder of a model holds {' and '.join(_FILES)}"
            )
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", weights.name) or weights.name.startswith("."):
        raise MissingDependencyError(f"the model folder {weights.name} does not exist", f"give a folder or a hub name like {DEFAULT_MODEL}")
    return _from_hub(weights, report)


def missing() -> list[str]:
    """Packages of the backend that are not installed."""
    packages = ("depth_anything_3", "addict", "omegaconf", "einops", "safetensors", "huggingface_hub")
    return [name for name in packages if not available(name)]


def ready(model_name: str, commercial_safe: bool = False) -> bool:
    """Whether package and weights are on this machine, so that nothing would be downloaded."""
    if missing():
        return False
    try:
        weights = choose_weights(model_name, commercial_safe)
        if Path(weights.name).expanduser().is_dir():
            locate(weights, NULL_REPORTER)
        else:
            _cached(weights)
    except (ImportError, OSError, ValueError, V2WError):
        return False
    return True


def _cached(weights: Weights) -> Path:
    """Folder of the hub's cache that holds the weights; raises OSError or ValueError if none does."""
    from huggingface_hub import hf_hub_download

    return Path([hf_hub_download(weights.name, name, local_files_only=True) for name in _FILES][-1]).parent


def _from_hub(weights: Weights, report: Reporter) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"models are fetched by huggingface_hub, but the package '{error.name}' is missing", _INSTALL
        ) from error
    try:
        return _cached(weights)
    except (OSError, ValueError):  # not in the cache yet
        report.note(f"downloading {weights.name} (licence: {weights.license})")
    try:
        return Path([hf_hub_download(weights.name, name) for name in _FILES][-1]).parent
    except Exception as error:  # the hub client raises many kinds of errors: offline, no such model, disk, network
        raise MissingDependencyError(
            f"the weights {weights.name} are not on this machine and could not be downloaded: {_first_line(error)}",
            f"on a machine with internet: hf download {weights.name} {' '.join(_FILES)} --local-dir MODEL; copy the folder MODEL here and"
            " give its path as the model name; or choose the backend 'sfm', which needs no weights",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_network(weights: Weights, metric: Weights | None, device: torch.device, report: Reporter) -> Any:
    """The network in evaluation mode; with `metric`, one that takes metric scale and sky from a second set of weights.

    It is called as `net(images, None, None, [], False, use_ray_pose, strategy)` with images (1, N, 3, H, W), normalised.

    Raises:
        MissingDependencyError: package or weights are missing.
        CorruptArtifactError: the weights do not fit the network.
    """
    folder = locate(weights, report)
    metric_folder = locate(metric, report) if metric else None
    available("depth_anything_3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it registers its configuration resolver in an old way
            from depth_anything_3.cfg import create_object, load_config
            from depth_anything_3.registry import MODEL_REGISTRY
            from depth_anything_3.utils.logger import logger
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the backend 'da3' needs the package '{error.name}', which is not installed", _INSTALL) from error
    logger.level = 1  # warnings and errors; it prints to stdout

    def config_of(where: Path) -> Any:
        preset = _read_preset(where)
        if preset not in MODEL_REGISTRY:
            raise CorruptArtifactError(
                f"{where} names the model '{preset}', which this version of depth-anything-3 does not know",
                f"it knows: {', '.join(MODEL_REGISTRY)}",
            )
        config = load_config(MODEL_REGISTRY[preset])
        for part in (config, config.get("anyview", {})):
            for head in ("gs_head", "gs_adapter"):  # Gaussians are made by this program
                part.pop(head, None)
        return config

    config = config_of(folder)
    if metric_folder is not None:
        kind = {"path": "depth_anything_3.model.da3", "name": "NestedDepthAnything3Net", "args": "as_params"}
        config = {"__object__": kind, "anyview": config, "metric": config_of(metric_folder)}
    with torch.random.fork_rng(), torch.device(device):  # initial values are overwritten and must not move the caller's generator
        network = create_object(config)
    if metric_folder is None:
        _fill(network, folder / _FILES[1], device)
    else:
        _fill(network.da3, folder / _FILES[1], device)
        _fill(network.da3_metric, metric_folder / _FILES[1], device)
    return network.eval().requires_grad_(False)


def _fill(network: torch.nn.Module, path: Path, device: torch.device) -> None:
    """Loads a weights file; every parameter must get a value."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    again = "download the model again, or check that config.json and model.safetensors belong together"
    try:
        stored = {key.removeprefix("model."): value for key, value in load_file(str(path), device=str(device)).items()}
    except (SafetensorError, OSError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {_first_line(error)}", again) from error
    stored = {key: value for key, value in stored.items() if not key.startswith(("gs_head.", "gs_adapter.", "da3.gs_"))}
    try:
        result = network.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        raise CorruptArtifactError(f"{path} does not fit its network: {_first_line(error)}", again) from error
    # A parameter shared between layers is stored under one of its names only.
    own = network.state_dict()
    filled = {own[key].data_ptr() for key in stored if key in own}
    missing = [key for key in result.missing_keys if own[key].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise CorruptArtifactError(
            f"{path} does not fit its network: {len(missing)} parameters are missing, {len(result.unexpected_keys)} are unknown,"
            f" for example {[*missing, *result.unexpected_keys][0]}",
            again,
        )
