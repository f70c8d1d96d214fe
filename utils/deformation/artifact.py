"""Files of stage 3.1: `inverse_local.pt` (tensors) and `config.pt` (plain values); `convention.json` for other readers."""

from pathlib import Path
from typing import Any

from torch import Tensor

from utils.deformation.inverse import FixedPointInverseWarp, IdentityInverseWarp, InverseWarp
from utils.deformation.lattice.reference import LatticeField
from utils.deformation.network import network_from_state
from utils.errors import CorruptArtifactError
from utils.scene.artifacts import load_tensors, save_tensors, understood, write_json
from utils.scene.manifest import read_manifest
from utils.types import CONVENTIONS

INVERSE_SCHEMA = "inverse_deformation/2"


def save_inverse(folder: Path, warp: InverseWarp) -> None:
    """Writes the warp's files (call inside `publish`)."""
    save_tensors(folder / "inverse_local.pt", dict(warp.state_dict()))
    save_tensors(folder / "config.pt", {**warp.config(), "convention": "c2w"})
    write_json(folder / "convention.json", {"variant": "c2w", "local_deform_space": "camera", **CONVENTIONS})


def load_inverse(folder: Path) -> InverseWarp:
    """The warp of a stage-3.1 folder.

    Raises:
        ArtifactError: missing, unfinished, of another format, or damaged.
    """
    root, run = folder.parent.parent, folder.parent.name
    read_manifest(folder, INVERSE_SCHEMA, f"python -m train_inverse_deformation --config.root-path {root} --config.run {run}")
    return _read(folder)


def trained_inverse(checkpoint: Path, stage_folder: Path) -> InverseWarp:
    """The inverse that splats were trained through: refined, in the checkpoint's folder, if it was refined there.

    Raises:
        ArtifactError: missing, unfinished, of another format, or damaged.
    """
    if not (checkpoint / "inverse_local.pt").is_file():
        return load_inverse(stage_folder)
    return _read(checkpoint)


def _read(folder: Path) -> InverseWarp:
    with understood(folder / "inverse_local.pt", "python -m train_inverse_deformation, then python -m train_gs"):
        return inverse_from_state(load_tensors(folder / "config.pt"), load_tensors(folder / "inverse_local.pt"))


def inverse_from_state(config: dict[str, Any], state: dict[str, Tensor]) -> InverseWarp:
    """The warp that `InverseWarp.config()` and `state_dict()` describe.

    Raises:
        CorruptArtifactError: an unknown method or missing tensors.
    """
    method = config.get("method")
    if method == "identity":
        return IdentityInverseWarp()
    if method == "fixed_point":
        try:
            parts = {name: state[f"field.{name}"] for name in ("nodes", "inv_depth_range", "K", "size")}
        except KeyError as error:
            raise CorruptArtifactError(f"inverse_local.pt has no tensor {error}", "re-run train_inverse_deformation") from error
        _require_shapes(parts)
        return FixedPointInverseWarp(LatticeField(**parts))
    if method == "network":
        return network_from_state(config, state)
    raise CorruptArtifactError(f"inverse deformation of unknown method {method!r}", "re-run train_inverse_deformation")


def _require_shapes(parts: dict[str, Tensor]) -> None:
    """Raises CorruptArtifactError if the tensors of a lattice field (F frames) do not fit each other."""
    nodes = parts["nodes"]
    frames = nodes.shape[0] if nodes.ndim else 0
    expected = {"nodes": (frames, *nodes.shape[1:4], 3), "inv_depth_range": (frames, 2), "K": (frames, 3, 3), "size": (2,)}
    for name, shape in expected.items():
        found = tuple(parts[name].shape)
        if found != shape or (name == "nodes" and (len(found) != 5 or frames == 0)):
            raise CorruptArtifactError(f"inverse_local.pt: {name} has shape {found}, expected {shape}", "re-run train_inverse_deformation")
