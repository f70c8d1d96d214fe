"""The synthetic inconsistent world: an input clip whose frames contradict each other, with everything that is true about it."""

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path as FilePath

import av
import numpy as np

from utils.errors import ConfigError, CorruptArtifactError, MissingArtifactError
from utils.runtime import ffmpeg_name
from utils.synthetic.inconsistency import (
    Inconsistency,
    corrupt_depth,
    drifted_cameras,
    make_inconsistency,
    object_centers,
    object_presence,
    pose_shapes,
    present_shapes,
    rotation_matrices,
    severity_value,
    tint,
)
from utils.synthetic.raycast import View, render_view
from utils.synthetic.scenes import REFERENCE_FRAMES, Place, build_place
from utils.synthetic.texture import TEXTURES
from utils.types import NULL_REPORTER, Array, CameraSet, Reporter, Scene, StepReport

FOCAL = 0.85  # focal length in image widths
NUM_NOVEL_VIEWS = 8
# Offsets of the novel views beside the path, right and down, in median depths; every other one lies on the path.
NOVEL_ASIDE = ((0.0, 0.0), (0.025, -0.02), (0.0, 0.0), (-0.025, 0.015))
SKY_SHELL = 1.2  # depth that a predictor gives the sky, in largest true depths
FRAME_RATE = 12
CRF = "12"
GROUND_TRUTH_VERSION = 1
_REMAKE = "make it again with `python -m utils.synthetic --out DIR`"


@dataclass(frozen=True)
class WorldConfig:
    """What determines a world.

    Attributes:
        layout: one of `scenes.LAYOUTS`.
        frames: number of frames; they move at the same speed whatever their number, and turn back after about 45.
        size: (h, w) in pixels.
        severity: "none", "low", "medium", "high" or a factor (medium is 1); scales every inconsistency, 0 = consistent.
        seed: of the place, its textures and all deviations.
        path_scale: speed of the camera; larger gives wider baselines between frames.
        warp: "smooth", "sharp" or "object": how the shown space differs between frames.
        texture: "rich", "weak" (nearly of one colour) or "repeated" (chequered tiles): what optical flow has to hold on to.
        occluders: slender posts close to the camera, which hide and uncover what is behind them.
        vanishing: share of the objects that appear and disappear during the clip, 0..1; clean views show all of them.
        pose_errors: factor on the errors of the predicted poses.
        turning: radians by which object 1 turns about its vertical from the first frame to the last: what a camera that goes round sees
            at the end is not what it saw at the start.
        zoom: factor by which the focal length grows from the first frame to the last.
        dolly: how far the camera backs away meanwhile along its axis, as a share of what keeps the size of things at the median depth:
            0 is a zoom alone, 1 a dolly zoom.
    """

    layout: str = "room"
    frames: int = 28
    size: tuple[int, int] = (144, 256)
    severity: str | float = "medium"
    seed: int = 0
    path_scale: float = 1.0
    warp: str = "smooth"
    texture: str = "rich"
    occluders: int = 0
    vanishing: float = 0.0
    pose_errors: float = 1.0
    turning: float = 0.0
    zoom: float = 1.0
    dolly: float = 0.0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"a world of {self.frames} frames", "ask for at least 1")
        if min(self.size) < 16:
            raise ConfigError(f"a world of {self.size[1]}x{self.size[0]} pixels", "ask for at least 16x16")
        if not self.path_scale >= 0:
            raise ConfigError(f"path_scale {self.path_scale} is negative", "1 is the usual speed, 0 a still camera")
        if self.texture not in TEXTURES:
            raise ConfigError(f"unknown texture '{self.texture}'", f"choose one of {', '.join(TEXTURES)}")
        if self.occluders < 0:
            raise ConfigError(f"{self.occluders} occluders", "ask for 0 or more")
        if not 0 <= self.vanishing <= 1:
            raise ConfigError(f"vanishing share {self.vanishing} is outside 0..1", "0 keeps all objects in all frames")
        if not self.pose_errors >= 0:
            raise ConfigError(f"pose_errors {self.pose_errors} is negative", "0 predicts true poses")
        if not abs(self.turning) <= 2 * np.pi:
            raise ConfigError(f"turning {self.turning} is more than a full turn", "give radians, at most 2 pi either way")
        if not 0.2 <= self.zoom <= 5:
            raise ConfigError(f"zoom {self.zoom} is outside 0.2..5", "1 keeps the focal length")
        severity_value(self.severity)

    def progress(self, frame: float) -> float:
        """Progress along the path at a frame, 1 at the last of 28 frames."""
        return self.path_scale * frame / (REFERENCE_FRAMES - 1)

    def zooms(self, frames: Array) -> Array:
        """(F,) factor on the focal length at frames (F,): it grows by the same factor from each to the next."""
        return self.zoom ** (frames / max(self.frames - 1, 1))


@dataclass(frozen=True)
class SyntheticWorld:
    """A world and its truth; F frames of H x W.

    Attributes:
        config: what it was made from.
        images: (F, H, W, 3) uint8, displaced and with colour drift: the input clip.
        cameras: the true cameras.
        depth: (F, H, W) float32 camera z of the displaced surface, 0 at sky.
        canonical: (F, H, W, 3) float32 canonical point seen by the pixel centre; NaN at sky and in folds.
        normal: (F, H, W, 3) float32 canonical surface normal there, towards the camera; 0 where canonical is NaN.
        object_id: (F, H, W) int16, -1 at sky, 0 for the fixed structure.
        scale: median depth of the undisplaced scene: what the strengths are relative to.
        place: the shapes and materials.
        inconsistency: the true deviations.
    """

    config: WorldConfig
    images: Array
    cameras: CameraSet
    depth: Array
    canonical: Array
    normal: Array
    object_id: Array
    scale: float
    place: Place = field(repr=False)
    inconsistency: Inconsistency = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def valid(self) -> Array:
        """(F, H, W) bool, the pixel has a canonical point."""
        return np.isfinite(self.canonical[..., 0])

    @cached_property
    def median_depth(self) -> float:
        """Median depth over all frames, the unit of the metrics."""
        return float(np.median(self.depth[self.depth > 0]))

    @cached_property
    def clean_images(self) -> Array:
        """(F, H, W, 3) uint8 from the same cameras, with no displacement and no colour drift."""
        return self._render_clean(self.cameras, np.arange(self.config.frames, dtype=float))[0]

    @cached_property
    def novel_cameras(self) -> CameraSet:
        """Cameras between the input frames and beside the path, for clean held-out views."""
        config = self.config
        poses = []
        for index, frame in enumerate(self._novel_frames):
            right, down = NOVEL_ASIDE[index % len(NOVEL_ASIDE)]
            aside = (right * self.scale, down * self.scale)
            poses.append(self.place.path.c2w(config.progress(float(frame)), aside))
        return _zoomed(_cameras(np.stack(poses), config.size), config, self._novel_frames, self.scale)

    @property
    def _novel_frames(self) -> Array:
        """(V,) where along the clip the novel views are, in frames."""
        last = max(self.config.frames - 1, 0)
        frames = (np.arange(NUM_NOVEL_VIEWS) + 0.5) / NUM_NOVEL_VIEWS * last
        return np.floor(frames) + 0.5 if last > 0 else frames

    @property
    def novel_images(self) -> Array:
        """(V, H, W, 3) uint8 clean images of the novel cameras."""
        return self._novel[0]

    @property
    def novel_depth(self) -> Array:
        """(V, H, W) float32 true camera z of the novel cameras, 0 at sky."""
        return self._novel[1]

    @cached_property
    def _novel(self) -> tuple[Array, Array]:
        return self._render_clean(self.novel_cameras, self._novel_frames)

    def _render_clean(self, cameras: CameraSet, frames: Array) -> tuple[Array, Array]:
        """uint8 images and depth of cameras in the canonical world, as it is at these frames (they may lie between two)."""
        still = self.inconsistency.still()
        views = [
            render_view(
                present_shapes(self.place.shapes, self.place.present(self.config.progress(float(frame)))),
                self.place.materials,
                still,
                cameras=cameras,
                index=index,
                scale=self.scale,
                salt=self.config.seed,
            )
            for index, frame in enumerate(frames)
        ]
        images = np.stack([tint(view.color, np.ones(3), np.zeros(3)) for view in views])
        return images, np.stack([view.depth for view in views])

    def deform(self, frame: int, points: Array, object_id: Array) -> Array:
        """Where a frame shows canonical points.

        Args:
            frame: index of the frame.
            points: (N, 3) canonical.
            object_id: (N,) the object of each point.

        Returns:
            (N, 3) float64 world positions in the space of the true cameras.
        """
        posed = self.deform_rigid(frame, points, object_id)
        return posed + evaluate_warp(self.inconsistency, frame, posed)

    def deform_rigid(self, frame: int, points: Array, object_id: Array) -> Array:
        """(N, 3) float64: only the offset of each point's object, the first half of `deform`; arguments as there."""
        pivot = object_centers(self.place.shapes)
        rotation = rotation_matrices(self.inconsistency.object_turn[frame])
        relative = points.astype(np.float64) - pivot[object_id]
        shift = pivot[object_id] + self.inconsistency.object_shift[frame][object_id]
        return np.einsum("nij,nj->ni", rotation[object_id], relative) + shift

    @cached_property
    def _noisy(self) -> tuple[Array, Array]:
        """(F, H, W) float64 depth with noise and outliers but no drift, and the confidence float32."""
        frames = []
        for index in range(len(self)):
            rng = np.random.default_rng([self.config.seed, 991, index])
            frames.append(
                corrupt_depth(
                    self.depth[index].astype(np.float64),
                    noise=self.inconsistency.noise,
                    outliers=self.inconsistency.outliers,
                    rng=rng,
                )
            )
        return np.stack([frame.depth for frame in frames]), np.stack([frame.confidence for frame in frames])

    def _drifted(self, depth: Array, seen: Array) -> Array:
        """Depth (F, H, W) with each frame's drift; the sky, which is not seen, has no shift."""
        scale, shift = (value[:, None, None] for value in (self.inconsistency.depth_scale, self.inconsistency.depth_shift))
        return depth * scale + np.where(seen, shift, 0.0)

    @property
    def noiseless_depth(self) -> Array:
        """(F, H, W) what would be predicted without noise and outliers, 0 at sky."""
        return self._drifted(self.depth, self.depth > 0)

    def predicted_scene(self) -> Scene:
        """What a depth and pose network would make of the clip: drifting poses, drifting and noisy depth, a confidence.

        The sky is a far shell of low confidence, as networks predict it.
        """
        noisy, confidence = self._noisy
        seen = noisy > 0
        depth = self._drifted(np.where(seen, noisy, SKY_SHELL * self.depth.max()), seen)
        return Scene(
            cameras=drifted_cameras(self.cameras, self.inconsistency),
            images=self.images,
            depth=np.maximum(depth, 1e-3 * self.scale).astype(np.float32),
            confidence=confidence,
        )

    def oracle_points(self) -> Array:
        """(F, H, W, 3) float32 canonical positions with displacement and drifts undone, so that only the depth noise is left."""
        noisy, _ = self._noisy
        rays = camera_rays(self.cameras)
        error = (noisy - self.depth)[..., None] * rays
        return (self.canonical + error).astype(np.float32)


def evaluate_warp(inconsistency: Inconsistency, frame: int, points: Array) -> Array:
    """(N, 3) float64 displacement w(Y) of a frame at points Y (N, 3), see `raycast.Warp`."""
    warp = inconsistency.warp(frame)
    waves = np.sin(points @ warp.wave.T + warp.phase)
    side = np.where(points @ warp.plane_normal > warp.plane_offset, 0.5, -0.5)
    return waves @ warp.amplitude + side[:, None] * warp.jump


def camera_rays(cameras: CameraSet) -> Array:
    """(F, H, W, 3) float64 world-space rays of camera z = 1 through the pixel centres."""
    height, width = cameras.size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    return np.einsum("fij,fjk,hwk->fhwi", cameras.c2w[:, :3, :3], np.linalg.inv(cameras.K), pixels, optimize=True)


def _cameras(c2w: Array, size: tuple[int, int]) -> CameraSet:
    """Pinhole cameras of the project's usual focal length."""
    height, width = size
    focal = FOCAL * width
    K = np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])
    frames = len(c2w)
    return CameraSet(c2w=c2w, K=np.repeat(K[None], frames, 0), size=size, frame_ids=np.arange(frames))


def _zoomed(cameras: CameraSet, config: WorldConfig, frames: Array, scale: float) -> CameraSet:
    """The cameras at frames (F,) zoomed, and moved along their axes as the configuration says; `scale` is the median depth."""
    grown = config.zooms(frames)
    c2w, K = cameras.c2w.copy(), cameras.K.copy()
    K[:, [0, 1], [0, 1]] *= grown[:, None]
    c2w[:, :3, 3] -= (config.dolly * scale * (grown - 1))[:, None] * c2w[:, :3, 2]
    return replace(cameras, c2w=c2w, K=K)


def _probe(place: Place, seed: int) -> tuple[float, Array]:
    """Median depth of the undisplaced scene and (3,) the median point seen; the same for every number of frames and size."""
    cameras = _cameras(np.stack([place.path.c2w(progress) for progress in (0.0, 0.5, 1.0)]), (36, 64))
    still = make_inconsistency(1, warp="smooth", severity=0.0, scale=1.0, shapes=place.shapes, pivot=np.zeros(3), seed=0)
    views = [
        render_view(place.shapes, place.materials, still.still(), cameras=cameras, index=index, scale=1.0, salt=seed) for index in range(3)
    ]
    depth = np.stack([view.depth for view in views])
    points = np.stack([view.canonical for view in views])
    return float(np.median(depth[depth > 0])), np.nanmedian(points.reshape(-1, 3), axis=0).astype(np.float64)


def make_world(config: WorldConfig, report: Reporter = NULL_REPORTER) -> SyntheticWorld:
    """The world of a configuration: the same bits for the same configuration on one machine.

    Args:
        config: what it is made from.
        report: told about every frame.

    Raises:
        ConfigError: unknown layout, warp or severity.
    """
    place = build_place(config.layout, config.seed, occluders=config.occluders, texture=config.texture)
    scale, pivot = _probe(place, config.seed)
    inconsistency = make_inconsistency(
        config.frames,
        warp=config.warp,
        severity=severity_value(config.severity),
        scale=scale,
        shapes=place.shapes,
        pivot=pivot,
        seed=config.seed,
    )
    errors = {name: getattr(inconsistency, name) * config.pose_errors for name in ("pose_turn", "pose_shift")}
    inconsistency = _with_turning(replace(inconsistency, **errors), config)
    poses = np.stack([place.path.c2w(config.progress(frame)) for frame in range(config.frames)])
    cameras = _zoomed(_cameras(poses, config.size), config, np.arange(config.frames), scale)
    present = object_presence(config.frames, len(object_centers(place.shapes)), config.vanishing, config.seed)
    views: list[View] = []
    for frame in range(config.frames):
        shapes = pose_shapes(place.shapes, inconsistency.object_turn[frame], inconsistency.object_shift[frame])
        shapes = present_shapes(shapes, present[frame] & place.present(config.progress(frame)))
        warp = inconsistency.warp(frame)
        view = render_view(shapes, place.materials, warp, cameras=cameras, index=frame, scale=scale, salt=config.seed)
        views.append(view)
        report.step(StepReport(stage="frames of the clip", step=frame, total=config.frames))
    images = [tint(view.color, inconsistency.gain[frame], inconsistency.offset[frame]) for frame, view in enumerate(views)]
    return SyntheticWorld(
        config=config,
        images=np.stack(images),
        cameras=cameras,
        depth=np.stack([view.depth for view in views]),
        canonical=np.stack([view.canonical for view in views]),
        normal=np.stack([view.normal for view in views]),
        object_id=np.stack([view.object_id for view in views]),
        scale=scale,
        place=place,
        inconsistency=inconsistency,
    )


def _with_turning(inconsistency: Inconsistency, config: WorldConfig) -> Inconsistency:
    """With the steady turn of object 1 about the vertical (y) axis; a place without objects stays as it is."""
    turn = inconsistency.object_turn.copy()
    if config.turning and turn.shape[1] > 1:
        turn[:, 1, 1] += config.turning * np.linspace(0, 1, config.frames)
    return replace(inconsistency, object_turn=turn)


@dataclass(frozen=True)
class GroundTruth:
    """What `ground_truth.npz` holds; attributes as in `SyntheticWorld`. `make_world(config)` gives the rest."""

    config: WorldConfig
    cameras: CameraSet
    depth: Array
    canonical: Array
    object_id: Array
    novel_cameras: CameraSet
    novel_images: Array
    novel_depth: Array


def write_clip(path: FilePath, images: Array) -> None:
    """Write images (F, H, W, 3) uint8 as an H.264 MP4 of 12 frames a second; height and width must be even.

    Raises:
        ConfigError: odd size.
    """
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ConfigError(f"an MP4 cannot be {width}x{height}", "choose an even width and height")
    partial = path.with_name(f".{path.name}.partial")
    with av.open(ffmpeg_name(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": CRF})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def save_world(world: SyntheticWorld, out: FilePath) -> None:
    """Write `clip.mp4` and `ground_truth.npz` into a folder, which is made if it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    write_clip(out / "clip.mp4", world.images)
    partial = out / ".ground_truth.partial.npz"
    np.savez_compressed(
        partial,
        version=GROUND_TRUTH_VERSION,
        config=json.dumps(asdict(world.config)),
        c2w=world.cameras.c2w,
        K=world.cameras.K,
        depth=world.depth,
        canonical=world.canonical,
        object_id=world.object_id,
        novel_c2w=world.novel_cameras.c2w,
        novel_K=world.novel_cameras.K,
        novel_images=world.novel_images,
        novel_depth=world.novel_depth,
    )
    partial.replace(out / "ground_truth.npz")


def ground_truth_file(path: FilePath | str) -> FilePath:
    """The `ground_truth.npz`, given itself or its folder.

    Raises:
        MissingArtifactError: no such file.
    """
    file = FilePath(path)
    file = file / "ground_truth.npz" if file.is_dir() else file
    if not file.is_file():
        raise MissingArtifactError(f"{file} does not exist", _REMAKE)
    return file


def load_ground_truth(path: FilePath | str) -> GroundTruth:
    """Read a `ground_truth.npz`, given itself or its folder.

    Raises:
        MissingArtifactError: no such file.
        CorruptArtifactError: it lacks a key or is of another version.
    """
    file = ground_truth_file(path)
    try:
        with np.load(file) as data:
            if int(data["version"]) != GROUND_TRUTH_VERSION:
                raise CorruptArtifactError(f"{file} has version {int(data['version'])}", _REMAKE)
            settings = json.loads(str(data["config"]))
            config = replace(WorldConfig(), **{**settings, "size": tuple(settings["size"])})
            frames, views = len(data["c2w"]), len(data["novel_c2w"])
            return GroundTruth(
                config=config,
                cameras=CameraSet(c2w=data["c2w"], K=data["K"], size=config.size, frame_ids=np.arange(frames)),
                depth=data["depth"],
                canonical=data["canonical"],
                object_id=data["object_id"],
                novel_cameras=CameraSet(c2w=data["novel_c2w"], K=data["novel_K"], size=config.size, frame_ids=np.arange(views)),
                novel_images=data["novel_images"],
                novel_depth=data["novel_depth"],
            )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptArtifactError(f"{file} cannot be read: {error}", _REMAKE) from error
