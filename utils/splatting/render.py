"""Renders trained splats for people and for measurements: the consistent world from any camera, or as one input frame shows it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat
from utils.deformation.inverse import InverseWarp, LocalWarp, camera_from_world
from utils.device.recorded import OnTheWay
from utils.errors import ConfigError, MissingArtifactError
from utils.scene.json_files import read_json
from utils.scene.layout import RunLayout, SceneLayout
from utils.splatting.checkpoint import MODEL, TrainedScene
from utils.splatting.rasterize.contract import Rasterizer, SplatMode, choose_rasterizer, load_rasterizer
from utils.splatting.recorded import LEAST_VIEWS, RecordedViews
from utils.splatting.view import apply_appearance, rigid, view_gaussians
from utils.types import Array, CameraGaussians, CameraSet, RenderOutput, Splats

if TYPE_CHECKING:
    from utils.splatting.rasterize.triton import PairBudget

_SAMPLED_SPLATS = 4096

_PADDING = 3  # to 32 numbers a camera: kernels are compiled anew for tensors that do not begin at a multiple of 16 bytes


@dataclass(frozen=True)
class SplatView:
    """Trained splats, ready to be rendered.

    Attributes:
        trained: the checkpoint.
        rasterizer: what draws.
        device: where the splats are.
        turn: whether the inverse deformation also turns splats, as it did in training.
        near: nearest depth that is drawn, scene units; 0 takes what training drew.
        far: farthest depth that is drawn, scene units.
        splats: the checkpoint's, on the device.
        median_depth: median distance of the splats from the cameras, scene units.
    """

    trained: TrainedScene
    rasterizer: Rasterizer
    device: torch.device
    turn: bool = True
    near: float = 0.0
    far: float = float("inf")
    splats: Splats = field(init=False)
    median_depth: float = field(init=False)
    _recorded: dict[tuple[int, int], RecordedViews] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "splats", self.trained.splats.to(self.device))
        object.__setattr__(self, "median_depth", median_depth(self.trained))
        if self.near <= 0:
            object.__setattr__(self, "near", self.trained.near)

    @torch.no_grad()
    def render(
        self, c2w: Array, K: Array, size: tuple[int, int], local: LocalWarp | None = None, colors: Tensor | None = None
    ) -> RenderOutput:
        """One view on black.

        Args:
            c2w: (4, 4).
            K: (3, 3) in pixels of `size`.
            size: (h, w).
            local: inverse deformation of a frame at the splats; without it the world is drawn as it is.
            colors: (N, 3) drawn in place of the splats' own.
        """
        (camera,) = self._on_the_device(c2w[None], K[None])
        return self._draw(camera, size, local, colors)

    def render_all(
        self, cameras: CameraSet, positions: Iterable[int] | None = None, colors: Tensor | None = None
    ) -> Iterator[RenderOutput]:
        """The world as it is from cameras at these positions, by default from all of them, one after the other as they are asked for.

        Their poses go to the device together: alone, each waited for the interpreter beside threads that write and compare pictures. Many
        views are recorded, see `RecordedViews`.

        Args:
            cameras: a path.
            positions: in it.
            colors: (N, 3) drawn in place of the splats' own.
        """
        rows = np.arange(len(cameras)) if positions is None else np.array(list(positions), int)
        placed = self._on_the_device(cameras.c2w[rows], cameras.K[rows])
        if len(placed) >= LEAST_VIEWS and self.device.type == "cuda" and not np.isfinite(self.far):
            budget = getattr(self.rasterizer, "budget", None)
            if budget is not None:
                yield from self._recording(cameras.size, colors, budget).views(placed)
                return
        for camera in placed:
            yield self._draw(camera, cameras.size, None, colors)

    def _recording(self, size: tuple[int, int], colors: Tensor | None, budget: "PairBudget") -> RecordedViews:
        """Views of one size; those in the splats' own colours are kept for the next path."""
        if colors is not None:
            return RecordedViews(lambda camera: self._draw(camera, size, None, colors), budget)
        if size not in self._recorded:
            self._recorded[size] = RecordedViews(lambda camera: self._draw(camera, size, None, None), budget)
        return self._recorded[size]

    @torch.no_grad()
    def _draw(self, camera: Tensor, size: tuple[int, int], local: LocalWarp | None, colors: Tensor | None) -> RenderOutput:
        """A view from a row of `_on_the_device`."""
        pose, intrinsics = camera[:16].view(4, 4), camera[20:29].view(3, 3)
        quat = camera[16:20] if camera.is_cuda else None
        warp = rigid(self.splats, pose) if local is None else local
        gaussians = view_gaussians(
            self.splats, pose, warp, active_degree=self.splats.sh_degree, turn=self.turn and local is not None, quat=quat
        )
        if colors is not None:
            gaussians = replace(gaussians, colors=colors)
        if np.isfinite(self.far):
            gaussians = _nearer_than(gaussians, self.far)
        mode: SplatMode = "2dgs" if self.trained.renderer == "2dgs" else "3dgs"
        return self.rasterizer.render(gaussians, intrinsics, size, mode, near=self.near)

    def _on_the_device(self, c2w: Array, K: Array) -> Tensor:
        """(P, 32) pose (4, 4), quaternion (4,) of the world-to-camera rotation and intrinsics (3, 3) of cameras (P, 4, 4) with (P, 3, 3).

        On a GPU in one copy that nothing waits for; made there, the quaternion took twenty small steps for every picture.
        """
        poses, intrinsics = (torch.from_numpy(np.ascontiguousarray(a)).float() for a in (c2w, K))
        quats = matrix_to_quat(poses[:, :3, :3].mT)
        packed = torch.cat([poses.flatten(1), quats, intrinsics.flatten(1), poses.new_zeros(len(poses), _PADDING)], 1)
        return packed.to(self.device, non_blocking=True)

    @torch.no_grad()
    def render_frame(self, warp: InverseWarp, i: int) -> RenderOutput:
        """Trained camera i as its input frame shows the world: through the frame's inverse deformation and colour map."""
        cameras = self.trained.cameras
        pose = torch.from_numpy(cameras.c2w[i]).float().to(self.device)
        local = warp.linearize(camera_from_world(self.splats.means, pose), i)
        return self.in_colors_of(self.render(cameras.c2w[i], cameras.K[i], cameras.size, local), i)

    def in_colors_of(self, output: RenderOutput, i: int) -> RenderOutput:
        """A render through the colour map of the frame of trained camera i."""
        matrix = self.trained.appearance[i].to(self.device)
        return replace(output, rgb=apply_appearance(output.rgb, output.alpha, matrix))


def _nearer_than(gaussians: CameraGaussians, far: float) -> CameraGaussians:
    keep = gaussians.means[:, 2] < far
    return CameraGaussians(
        gaussians.means[keep], gaussians.quats[keep], gaussians.scales[keep], gaussians.opacities[keep], gaussians.colors[keep]
    )


def resolve_rasterizer(name: str, device: str) -> tuple[Rasterizer, torch.device, str]:
    """The rasteriser, its device, and why; see `choose_rasterizer`.

    Raises:
        BackendError: a named rasteriser or device that is not there.
        ConfigError: CUDA was asked for and is not there.
    """
    chosen, where, reason = choose_rasterizer(name, device)
    return load_rasterizer(chosen, where), where, reason


def training_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that splats were trained with; empty if their folder does not tell."""
    path = checkpoint / "config.json"
    return dict(read_json(path)) if path.is_file() else {}


def median_depth(trained: TrainedScene) -> float:
    """Median distance of splats in front of the cameras, in scene units."""
    means = trained.splats.means.double()
    means = means[:: max(1, len(means) // _SAMPLED_SPLATS)]
    w2c = torch.from_numpy(trained.cameras.w2c)
    z = torch.einsum("fj,nj->fn", w2c[:, 2, :3], means) + w2c[:, 2, 3:]
    ahead = z[z > 0]
    return float(ahead.median()) if len(ahead) else 1.0


def rgb_image(output: RenderOutput, white: bool = False) -> Array:
    """(h, w, 3) uint8 sRGB over black, or over white."""
    return rgb_there(output, white).cpu().numpy()


def rgb_there(output: RenderOutput, white: bool = False) -> Tensor:
    """`rgb_image` on the device of the render."""
    rgb = output.rgb + (1 - output.alpha[..., None]) if white else output.rgb
    return (rgb.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def rgb_images(outputs: Iterable[RenderOutput], white: bool = False) -> Iterator[Array]:
    """`rgb_image` of each, one after the other; a GPU draws the next one while a picture is copied."""
    return (image for (image,) in on_the_host([rgb_there(output, white)] for output in outputs))


def depth_image(output: RenderOutput, least_alpha: float = 0.5) -> Array:
    """(h, w) float32 expected camera z; 0 where less than `least_alpha` was hit."""
    return depth_there(output, least_alpha).cpu().numpy()


def depth_there(output: RenderOutput, least_alpha: float = 0.5) -> Tensor:
    """`depth_image` on the device of the render."""
    depth: Tensor = torch.where(output.alpha > least_alpha, output.expected_depth(), torch.zeros_like(output.alpha))
    return depth.float()


def on_the_host(items: Iterable[list[Tensor]]) -> Iterator[list[Array]]:
    """The tensors as arrays, item after item; a GPU works on the next item while one is copied."""
    waiting: OnTheWay | None = None
    for tensors in items:
        if not tensors[0].is_cuda:
            yield [t.numpy() for t in tensors]
            continue
        begun = OnTheWay(tensors)
        if waiting is not None:
            yield waiting.wait()
        waiting = begun
    if waiting is not None:
        yield waiting.wait()


def locate_checkpoint(root: Path, run: str, checkpoint_dir: Path | None) -> tuple[RunLayout, Path]:
    """The run and the folder of trained splats that are meant; what is not given is the newest there is.

    Raises:
        MissingArtifactError: no run or no trained splats.
        ConfigError: the named run does not exist.
    """
    layout = SceneLayout(root)
    names = layout.runs()
    if checkpoint_dir is not None and (checkpoint_dir / MODEL).is_file():
        trained_in = training_settings(checkpoint_dir).get("run")  # it may lie elsewhere: train_gs --config.out-dir
        return layout.run(trained_in) if trained_in in names else RunLayout(checkpoint_dir.resolve().parent), checkpoint_dir
    if run and run not in names:
        raise ConfigError(f"{root} has no run '{run}'", f"choose one of: {', '.join(names) or '(there is none yet)'}")
    if not names:
        raise MissingArtifactError(f"{root} has no alignment run", f"make one with: python run_reconstruction.py --config.root-path {root}")
    for chosen in [layout.run(run)] if run else [layout.run(name) for name in reversed(names)]:
        if checkpoint_dir is not None:
            candidates = [chosen.root / checkpoint_dir.name]
        else:
            candidates = chosen.trained()
        for folder in candidates:
            if (folder / MODEL).is_file():
                return chosen, folder
    chosen = layout.run(run or names[-1])
    wanted = checkpoint_dir or chosen.root / "gs_3dgs"
    raise MissingArtifactError(
        f"{wanted} holds no trained splats ({MODEL})",
        f"train them with: python -m train_gs --config.root-path {root} --config.run {chosen.root.name}",
    )
