"""`model_final.pt`: trained splats with everything that rendering, export and evaluation need, readable on its own."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import CorruptArtifactError, MissingArtifactError
from utils.scene.artifacts import load_tensors, save_tensors
from utils.scene.checkpoints import parts_of
from utils.splatting.coverage import Coverage
from utils.splatting.view import near_plane
from utils.types import Array, CameraSet, Splats

MODEL = "model_final.pt"
PREVIEW = "preview.pt"
GS_SCHEMA = "gs/1"


def unfinished(folder: Path) -> Path:
    """Where a training that will become `folder` keeps its state and, as `preview.pt`, a checkpoint of the splats so far."""
    return parts_of(folder)


@dataclass(frozen=True, kw_only=True)
class TrainedScene:
    """The result of stage 3.2.

    Attributes:
        splats: canonical space.
        cameras: refined cameras of all aligned frames, training and held-out, at the training resolution.
        heldout: (F,) bool, frames that were never trained on.
        renderer: "2dgs" or "3dgs".
        appearance: (F, 3, 4) colour map of each frame, rgb' = M[:, :3] @ rgb + M[:, 3]; not part of the world's colours.
        near: nearest depth that training drew, scene units; 0 where that is not known: what `near_plane` says.
        left_out: (F,) bool, frames that alignment could not place: not trained on, cameras from their neighbours. Empty for none.
        coverage: what the frames know of each splat; None where nobody measured.
    """

    splats: Splats
    cameras: CameraSet
    heldout: Array
    renderer: str
    appearance: Tensor
    near: float = 0.0
    left_out: Array = field(default_factory=lambda: np.zeros(0, bool))
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        if self.near <= 0:
            object.__setattr__(self, "near", near_plane(self.splats.means, self.cameras))
        if not len(self.left_out):
            object.__setattr__(self, "left_out", np.zeros(len(self.cameras), bool))

    @property
    def trained(self) -> Array:
        """(F,) bool, frames that were trained on."""
        trained: Array = ~(self.heldout | self.left_out)
        return trained


def save_checkpoint(path: Path, scene: TrainedScene) -> None:
    """Writes the file; names of the splat tensors as in the published checkpoints."""
    splats = scene.splats
    save_tensors(
        path,
        {
            "canonical_points": splats.means.detach().cpu(),
            "sh_dc": splats.sh[:, :1].detach().cpu().clone(),
            "sh_rest": splats.sh[:, 1:].detach().cpu().clone(),
            "logit_opacities": splats.logit_opacities.detach().cpu()[:, None],
            "log_scales": splats.log_scales.detach().cpu(),
            "quats": splats.quats.detach().cpu(),
            "c2w": torch.from_numpy(scene.cameras.c2w),
            "K": torch.from_numpy(scene.cameras.K),
            "size": torch.tensor(scene.cameras.size),
            "frame_ids": torch.from_numpy(np.asarray(scene.cameras.frame_ids)),
            "heldout": torch.from_numpy(np.asarray(scene.heldout, bool)),
            "appearance": scene.appearance.detach().cpu(),
            "renderer": scene.renderer,
            "near": torch.tensor(scene.near),
            "left_out": torch.from_numpy(np.asarray(scene.left_out, bool)),
            **({} if scene.coverage is None else {f"seen_{k}": v.cpu() for k, v in vars(scene.coverage).items()}),
        },
    )


def load_checkpoint(path: Path) -> TrainedScene:
    """The trained scene of a checkpoint file, or of the `model_final.pt` of a folder.

    Raises:
        MissingArtifactError: no such file.
        CorruptArtifactError: damaged, or tensors are missing.
    """
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise MissingArtifactError(f"{path} is missing", "train it with: python -m train_gs")
    stored = load_tensors(path)
    try:
        splats = Splats(
            means=stored["canonical_points"],
            quats=stored["quats"],
            log_scales=stored["log_scales"],
            logit_opacities=stored["logit_opacities"][:, 0],
            sh=torch.cat([stored["sh_dc"], stored["sh_rest"]], 1),
        )
        h, w = stored["size"].tolist()
        cameras = CameraSet(c2w=stored["c2w"].numpy(), K=stored["K"].numpy(), size=(h, w), frame_ids=stored["frame_ids"].numpy())
        return TrainedScene(
            splats=splats,
            cameras=cameras,
            heldout=stored["heldout"].numpy(),
            renderer=stored["renderer"],
            appearance=stored["appearance"],
            near=float(stored.get("near", 0.0)),
            left_out=stored["left_out"].numpy() if "left_out" in stored else np.zeros(0, bool),
            coverage=_coverage(stored),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CorruptArtifactError(f"{path} is no checkpoint of trained splats: {error}", "train it again") from error


def _coverage(stored: dict[str, Tensor]) -> Coverage | None:
    names = [f"seen_{part.name}" for part in fields(Coverage)]
    return Coverage(*(stored[name] for name in names)) if all(name in stored for name in names) else None
