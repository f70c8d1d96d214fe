"""Who estimates cameras and depth, and which settings determine the result."""

import dataclasses
from typing import Literal

from configs.preprocess import PreprocessConfig
from utils.da3.weights import ready
from utils.device.accelerator import accelerator
from utils.geometry_backend import GEOMETRY, GeometryBackend
from utils.matching.xfeat.weights import advice, available, require_weights
from utils.runtime import cuda_device_present
from utils.types import Reporter


def resolve_backend(config: PreprocessConfig) -> str:
    """`auto`: given cameras if there are any; Depth Anything 3 where a GPU, its package and its weights are there; else `sfm`.

    Raises:
        BackendError: no backend of that name, or its package is not there.
    """
    name = config.backend
    if name == "auto":
        learned = cuda_device_present() and accelerator() is not None and ready(config.model_name, config.commercial_safe)
        name = "import" if config.given_cameras else "da3" if learned else "sfm"
    GEOMETRY.load(name)
    return name


def resolve_features(config: PreprocessConfig, backend: str, report: Reporter) -> Literal["sift", "xfeat"]:
    """What `sfm` recognises places by: `auto` is learned features where their weights are installed, else says what they would bring.

    Raises:
        MissingDependencyError: learned features are asked for without their weights.
    """
    if backend != "sfm" or config.features == "sift":
        return "sift"
    if config.features == "auto" and not available():
        report.note(advice())
        return "sift"
    require_weights()
    return "xfeat"


def make_backend(name: str, config: PreprocessConfig) -> GeometryBackend:
    """The backend of this name with the settings that concern it."""
    options: dict[str, object] = {"seed": config.seed}
    if name == "sfm":
        options["features"] = config.features
    if name == "da3":
        options |= {"model_name": config.model_name, "commercial_safe": config.commercial_safe}
    if name == "import":
        options |= {"source": config.given_cameras, "prior": config.cameras is None}
    return GEOMETRY.load(name)(**options)


def settings_of(config: PreprocessConfig, backend: str) -> dict[str, object]:
    """What determines the result; paths enter through the inputs' fingerprint."""
    plain = dataclasses.asdict(config)
    for name in ("input_video", "frames_dir", "cameras", "pose_priors", "masks", "scene_root", "overwrite"):
        del plain[name]
    if config.part_of is None:
        del plain["part_of"]  # scenes made before there was such a setting stay current
    return plain | {"backend": backend}
