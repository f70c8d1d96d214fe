"""The geometry backend for clips whose cameras another program has found: COLMAP or nerfstudio, with or without depth.

Given poses are taken as they are, in their own units. Where the source has depth for every frame, that is used; else depth is measured
along the given poses.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.cameras.projection import invert_rigid
from utils.errors import ConfigError, GeometryError
from utils.geometry_backend import ClipFrames
from utils.imports.cameras import ImportedCameras, read_cameras
from utils.scene.masks import apply_masks
from utils.sfm.flow_depth import agreement
from utils.sfm.posed_depth import depth_along_poses
from utils.types import Array, CameraSet, Reporter, Scene

# Focal lengths may differ from their median by this factor; frames are brought to it.
_ZOOM = 1.6
# Aspects of frame and camera may differ by this share (rounding).
_SAME_ASPECT = 0.02


@dataclass(frozen=True, kw_only=True)
class ImportGeometry:
    """Cameras from files; see the module.

    Attributes:
        source: COLMAP model folder, transforms.json, or a folder that holds either.
        use_depth: take the source's depth where it has some.
        seed: unused; every backend has one.
        provenance: for the manifest, filled by `estimate`: whether `depth` is `stored` or `measured` along the cameras.
    """

    source: Path | None = None
    use_depth: bool = True
    seed: int = 0
    provenance: dict[str, str] = field(default_factory=dict, init=False)

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """The chosen frames that have a camera in the source.

        Raises:
            ConfigError: no source is given.
            GeometryError: fewer than two chosen frames have a camera.
        """
        if self.source is None:
            raise ConfigError("the backend 'import' needs to know where the cameras are", "give a COLMAP model or a transforms.json")
        cameras = read_cameras(self.source, (frames.images.shape[1], frames.images.shape[2]))
        for note in cameras.notes:
            report.note(f"cameras: {note}")
        rows = cameras.rows(frames.names)
        posed_rows = np.flatnonzero(rows[frames.chosen] >= 0)
        if len(posed_rows) < 2:
            raise GeometryError(
                f"{len(posed_rows)} of {len(frames.chosen)} chosen frames have a camera in {self.source}; its images are named like"
                f" {cameras.names[0]}, the frames like {frames.names[0]}",
                "use --frames_dir with the folder of images that the cameras were made from",
            )
        if len(posed_rows) < len(frames.chosen):
            absent = [frames.names[i] for i in frames.chosen[rows[frames.chosen] < 0]]
            report.note(f"{len(absent)} frames have no camera and are left out: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}")
        stored = self.use_depth and all(cameras.depths[row] is not None for row in rows[frames.chosen[posed_rows]])
        self.provenance["depth"] = "stored" if stored else "measured"
        if any(cameras.offset):
            self.provenance["world_offset"] = " ".join(repr(value) for value in cameras.offset)
        return _scene(frames, cameras, rows, posed_rows, stored, report)


def _scene(frames: ClipFrames, cameras: ImportedCameras, rows: Array, kept: Array, stored: bool, report: Reporter) -> Scene:
    size = frames.size
    posed = np.flatnonzero(rows >= 0)
    _require_shape(frames, cameras, rows)
    K = _shared(np.stack([cameras.intrinsics(int(row), size) for row in rows[posed]]), report)
    images = np.zeros((len(frames.images), *size, 3), np.uint8)
    shown = np.zeros((len(frames.images), *size), bool)
    w2c = np.full((len(frames.images), 4, 4), np.nan)
    for position in posed:
        images[position], shown[position] = cameras.undistorted(int(rows[position]), frames.picture(int(position)), K)
        w2c[position] = invert_rigid(cameras.c2w[rows[position]])
    refs = frames.chosen[kept]
    chosen_rows = rows[refs]
    if stored:
        depth = np.stack([cameras.depth(int(row), size, K) for row in chosen_rows])
        confidence = 1.0 + np.clip(agreement(depth, w2c[refs], K), 0, None)
        report.note(f"cameras and depth of {len(refs)} frames imported")
    else:
        depth, confidence = depth_along_poses(images, w2c, K, refs, report)
        report.note(f"cameras of {len(refs)} frames imported, depth measured along them")
    known = shown[refs] & (depth > 0)
    depth, confidence = np.where(known, depth, 0).astype(np.float32), np.where(known, confidence, 1).astype(np.float32)
    placed = CameraSet(c2w=cameras.c2w[chosen_rows], K=np.repeat(K[None], len(refs), axis=0), size=size, frame_ids=kept)
    scene = Scene(cameras=placed, images=images[refs], depth=depth, confidence=confidence)
    return _masked(scene, frames, cameras, chosen_rows, refs, report)


def _masked(scene: Scene, frames: ClipFrames, cameras: ImportedCameras, rows: Array, refs: Array, report: Reporter) -> Scene:
    """The scene without what the source's own masks take out.

    Raises:
        InputError: a mask that is missing, does not fit, or leaves nothing.
    """
    size = scene.cameras.size
    masks = [cameras.keep(int(row), size, scene.cameras.K[0]) for row in rows]
    if all(mask is None for mask in masks):
        return scene
    keep = np.stack([np.ones(size, bool) if mask is None else mask for mask in masks])
    report.note(f"masks of the data set: {1 - keep.mean():.1%} of the frames is left out")
    return apply_masks(scene, keep, [frames.names[i] for i in refs])


def _require_shape(frames: ClipFrames, cameras: ImportedCameras, rows: Array) -> None:
    """The frames have the aspect of the images that the cameras were made for.

    Raises:
        GeometryError: they do not.
    """
    h, w = frames.images.shape[1:3]
    for position in np.flatnonzero(rows >= 0):
        height, width = cameras.sizes[rows[position]]
        if abs(np.log(w * height / (h * width))) > _SAME_ASPECT:
            turned = abs(np.log(w * width / (h * height))) <= _SAME_ASPECT
            raise GeometryError(
                f"{frames.names[position]} has the aspect {w}x{h}, but its camera is that of a picture of {width}x{height}",
                "the file is turned by its EXIF: save the frames as the cameras saw them, without EXIF"
                if turned
                else "use the very images that the cameras were made from, neither cut nor stretched",
            )


def _shared(K: Array, report: Reporter) -> Array:
    """The one K of all frames: their median. Frames of another one are brought to it as they are straightened.

    Raises:
        GeometryError: focal lengths differ by more than a lens and its focusing make them.
    """
    middle = np.median(K, axis=0)
    off = K[:, [0, 1], [0, 1]] / middle[[0, 1], [0, 1]]
    if off.max() > _ZOOM or off.min() < 1 / _ZOOM:
        raise GeometryError(
            f"the imported cameras differ in their intrinsics: focal lengths are {off.min():.2f} to {off.max():.2f} times the middle one",
            "leave out the frames that were zoomed, or import them as a scene of their own",
        )
    if np.abs(K - middle).max() > 0.5:
        report.note(f"cameras: focal lengths vary by {100 * (off.max() - off.min()):.1f} %; all frames are brought to the middle one")
    return middle
