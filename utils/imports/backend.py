"""The geometry backend for clips whose cameras another program has found: COLMAP or nerfstudio, with or without depth.

Given poses are taken as they are, in their own units. Where the source has depth for every frame, that is used; else depth is measured
along the given poses.
"""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.errors import ConfigError, GeometryError
from utils.geometry_backend import ClipFrames
from utils.imports.cameras import ImportedCameras, read_cameras
from utils.sfm.flow_depth import agreement
from utils.sfm.posed_depth import depth_along_poses
from utils.types import Array, CameraSet, Reporter, Scene

# Flow depth works with one K for all frames; cameras may differ from their mean by this share of the focal length.
_SAME_K = 0.01


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
        cameras = read_cameras(self.source)
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
        return _scene(frames, cameras, rows, posed_rows, stored, report)


def _scene(frames: ClipFrames, cameras: ImportedCameras, rows: Array, posed_rows: Array, stored: bool, report: Reporter) -> Scene:
    size = frames.size
    posed = np.flatnonzero(rows >= 0)
    images = np.zeros((len(frames.images), *size, 3), np.uint8)
    shown = np.zeros((len(frames.images), *size), bool)
    w2c = np.full((len(frames.images), 4, 4), np.nan)
    for position in posed:
        images[position], shown[position] = cameras.undistorted(int(rows[position]), frames.picture(int(position)))
        w2c[position] = invert_rigid(cameras.c2w[rows[position]])
    refs = frames.chosen[posed_rows]
    chosen_rows = rows[refs]
    K = np.stack([cameras.intrinsics(int(row), size) for row in chosen_rows])
    if stored:
        depth = np.stack([_stored_depth(cameras, int(row), size) for row in chosen_rows])
        confidence = 1.0 + np.clip(agreement(depth, w2c[refs], K.mean(axis=0)), 0, None)
        report.note(f"cameras and depth of {len(refs)} frames imported")
    else:
        depth, confidence = depth_along_poses(images, w2c, _shared(K), refs, report)
        report.note(f"cameras of {len(refs)} frames imported, depth measured along them")
    known = shown[refs] & (depth > 0)
    depth, confidence = np.where(known, depth, 0).astype(np.float32), np.where(known, confidence, 1).astype(np.float32)
    placed = CameraSet(c2w=cameras.c2w[chosen_rows], K=K, size=size, frame_ids=posed_rows)
    return Scene(cameras=placed, images=images[refs], depth=depth, confidence=confidence)


def _stored_depth(cameras: ImportedCameras, row: int, size: tuple[int, int]) -> Array:
    """(H, W) float32, nearest neighbour: a mean across an edge is no depth. Undistorted like the image."""
    depth = cameras.depth(row)
    if cameras.distortion[row].any():
        K = cameras.intrinsics(row, (depth.shape[0], depth.shape[1]))
        K[:2, 2] -= 0.5
        maps = cv2.initUndistortRectifyMap(K, cameras.distortion[row], None, K, depth.shape[::-1], cv2.CV_32FC1)
        depth = cv2.remap(depth, *maps, cv2.INTER_NEAREST)
    # Pixel centres map onto pixel centres; cv2's nearest neighbour would take the corner.
    y = ((np.arange(size[0]) + 0.5) * depth.shape[0] / size[0]).astype(int)
    x = ((np.arange(size[1]) + 0.5) * depth.shape[1] / size[1]).astype(int)
    return depth[np.ix_(y, x)]


def _shared(K: Array) -> Array:
    """The one K of all frames.

    Raises:
        GeometryError: the cameras differ.
    """
    mean = K.mean(axis=0)
    if np.abs(K - mean).max() > _SAME_K * mean[0, 0]:
        raise GeometryError(
            "the imported cameras differ in their intrinsics, so depth cannot be measured between them",
            "import depth too, or cameras that share one focal length",
        )
    return mean
