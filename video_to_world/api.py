"""The functions of `video_to_world`: reconstruct a clip, and load what a run has made.

Conventions are those of `utils.types`: OpenCV cameras, camera-to-world poses, lengths in scene units, images uint8 sRGB.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import run_reconstruction
from configs.evaluation import ExportConfig, ExportFormat
from utils.errors import MissingArtifactError
from utils.exports import stage as export_stage
from utils.scene import artifacts
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.manifest import MANIFEST
from utils.splatting.checkpoint import TrainedScene, load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer, rgb_image
from utils.types import Alignment, Array, CameraSet, Scene, Splats

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class World:
    """A trained world.

    Attributes:
        root: the scene folder.
        folder: the folder of the trained splats, `<root>/<run>/gs_<renderer>`.
        trained: splats, refined cameras, which frames were held out.
    """

    root: Path
    folder: Path
    trained: TrainedScene

    @property
    def splats(self) -> Splats:
        """Canonical splats: means in scene units, quaternions wxyz, log scales, logit opacities, spherical harmonics."""
        return self.trained.splats

    @property
    def cameras(self) -> CameraSet:
        """Refined cameras of all aligned frames."""
        return self.trained.cameras

    @property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json` of the evaluation; empty if the world was not evaluated."""
        path = RunLayout.evaluation(self.folder) / "metrics.json"
        return dict(artifacts.read_json(path)) if path.is_file() else {}

    @cached_property
    def view(self) -> SplatView:
        """The splats on the fastest device there is, ready to be rendered."""
        rasterizer, device, _ = resolve_rasterizer("auto", "auto")
        return SplatView(self.trained, rasterizer, device)

    def render(self, c2w: Array, K: Array, size: tuple[int, int]) -> Array:
        """(h, w, 3) uint8 sRGB picture of the consistent world, black where nothing is.

        Args:
            c2w: (4, 4) camera-to-world pose, OpenCV axes.
            K: (3, 3) intrinsics in pixels of `size`.
            size: (h, w).
        """
        return rgb_image(self.view.render(c2w, K, size))

    def export(self, path: PathLike, file_format: ExportFormat = "ply") -> Path:
        """Writes the world for another program; returns the path. Formats are those of `utils.export_checkpoint_to_ply`."""
        return export_stage.run(ExportConfig(root_path=self.root, checkpoint_dir=self.folder, format=file_format, out_ply=Path(path)))


def reconstruct(
    clip: PathLike | Sequence[PathLike],
    root: PathLike | None = None,
    *,
    mode: Literal["fast", "extensive"] = "fast",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    settings: Mapping[str, Any] | None = None,
) -> World:
    """Makes a world from a clip; stages whose settings and inputs have not changed are kept, as on the command line.

    Args:
        clip: a clip, several clips of one place, a folder of clips or of frames, or a scene folder to go on with.
        root: the scene folder; by default the clip's path without its extension.
        mode: preset.
        device: where to compute.
        settings: any others by their names on the command line, for example `{"stage0.max_frames": 48, "gs.num_iters": 3000}`.

    Raises:
        V2WError: the clip or a setting cannot be used; `hint` says what helps.
    """
    clips = [os.fspath(clip)] if isinstance(clip, str | os.PathLike) else [os.fspath(c) for c in clip]
    chosen: dict[str, Any] = {"mode": mode, "device": device, **(settings or {})}
    if root is not None:
        chosen["root_path"] = root
    config = run_reconstruction.configure(clips + [word for name, value in chosen.items() for word in _flag(name, value)])
    run_reconstruction.run(config)
    return load_world(config.scene_root)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--config.{name}".replace("_", "-")
    if isinstance(value, bool):
        group, _, field = flag.rpartition(".")
        return [flag if value else f"{group}.no-{field}"]
    return [flag, *(str(v) for v in value)] if isinstance(value, list | tuple) else [flag, str(value)]


def load_scene(root: PathLike) -> Scene:
    """What stage 0 has made: images, depth, confidence and cameras of the chosen frames.

    Raises:
        ArtifactError: missing or damaged.
    """
    return artifacts.load_scene(Path(root))


def load_alignment(path: PathLike) -> Alignment:
    """An alignment: poses, displacement lattices, the canonical cloud.

    Args:
        path: its folder, a run folder (its joint alignment, or else that of stage 1), or a scene folder (of its newest run).

    Raises:
        ArtifactError: missing or damaged.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return artifacts.load_alignment(folder)
    runs = [SceneLayout(folder).run(name) for name in reversed(SceneLayout(folder).runs())]
    for run in runs or [RunLayout(folder)]:
        for candidate in (run.after_global_optimization, run.after_non_rigid_icp):
            if (candidate / MANIFEST).is_file():
                return artifacts.load_alignment(candidate)
    raise MissingArtifactError(f"{folder} holds no alignment", f"make one with: python run_reconstruction.py --config.root-path {folder}")


def load_world(root: PathLike, renderer: Literal["2dgs", "3dgs"] | None = None) -> World:
    """The newest trained world of a scene folder, of one renderer or of either.

    Raises:
        ArtifactError: none is there, or it is damaged.
    """
    checkpoint = None if renderer is None else Path(f"gs_{renderer}")
    _, folder = locate_checkpoint(Path(root), "", checkpoint)
    return World(Path(root), folder, load_checkpoint(folder))
