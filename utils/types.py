"""The types that cross module boundaries, and the conventions they share.

Conventions (stamped into every manifest as `CONVENTIONS`):

* Camera axes are OpenCV's: x right, y down, z forward. `K` is in pixels of the stated `size`.
* Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5); the pixel of a coordinate is its floor. Resizing by s scales
  fx, fy, cx, cy by s.
* Poses are 4x4 for column vectors: `p_world = c2w @ p_cam`. Depth is camera z, not ray length.
* Quaternions are (w, x, y, z), unit. A twist is [omega, v], rotation first. A local update multiplies from the left:
  `c2w_new = exp(xi) @ c2w`.
* Spaces: `camera`; `world`, the geometry backend's frame; `canonical`, the consistent world after alignment.
* Lengths are in scene units; nothing assumes metres, thresholds scale with the depth.
* Images are uint8 sRGB (h, w, 3) on the host and float 0..1 where they are optimised.

What a stage reads and writes is numpy on the host. What gradient descent touches is torch.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import CorruptArtifactError

CONVENTIONS: dict[str, str] = {
    "camera_axes": "opencv",
    "pixel_centre": "+0.5",
    "pose": "c2w 4x4, column vectors",
    "depth": "camera z",
    "quaternion": "wxyz",
    "twist": "[omega, v]",
}

Array = NDArray[Any]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CorruptArtifactError(message, "re-run the stage that wrote this data, or correct the imported file")


@dataclass(frozen=True, kw_only=True)
class CameraSet:
    """Pinhole cameras of F frames.

    Attributes:
        c2w: (F, 4, 4) float64, world from camera.
        K: (F, 3, 3) float64, pixels of `size`.
        size: (h, w) in pixels.
        frame_ids: (F,) int64, the frame's index in results.npz.
    """

    c2w: Array
    K: Array
    size: tuple[int, int]
    frame_ids: Array

    def __post_init__(self) -> None:
        frames = len(self.c2w)
        _require(self.c2w.shape == (frames, 4, 4), f"c2w has shape {self.c2w.shape}, expected ({frames}, 4, 4)")
        _require(self.K.shape == (frames, 3, 3), f"K has shape {self.K.shape}, expected ({frames}, 3, 3)")
        _require(len(self.frame_ids) == frames, f"{len(self.frame_ids)} frame ids for {frames} cameras")
        _require(bool(np.isfinite(self.c2w).all() and np.isfinite(self.K).all()), "a camera pose or K is not finite")

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def w2c(self) -> Array:
        """(F, 4, 4) camera from world; the exact inverse of a rigid transform."""
        rotation = np.swapaxes(self.c2w[:, :3, :3], 1, 2)
        w2c = np.zeros_like(self.c2w)
        w2c[:, :3, :3] = rotation
        w2c[:, :3, 3] = -np.einsum("fij,fj->fi", rotation, self.c2w[:, :3, 3])
        w2c[:, 3, 3] = 1.0
        return w2c

    @property
    def centers(self) -> Array:
        """(F, 3) camera centres in world space."""
        return self.c2w[:, :3, 3]

    def select(self, index: Array | slice | list[int]) -> "CameraSet":
        """The cameras at these positions (not frame ids)."""
        return replace(self, c2w=self.c2w[index], K=self.K[index], frame_ids=self.frame_ids[index])

    def resized(self, size: tuple[int, int]) -> "CameraSet":
        """The same cameras for images of another (h, w)."""
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0], 1.0])
        return replace(self, K=self.K * scale[None, :, None], size=size)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What stage 0 hands on: images, cameras, depth and its confidence at one working resolution.

    Attributes:
        cameras: the F cameras, `cameras.size == (H, W)`.
        images: (F, H, W, 3) uint8 sRGB.
        depth: (F, H, W) float32 camera z in scene units; 0 or non-finite where unknown.
        confidence: (F, H, W) float32, larger is better, comparable within one scene only.
        ignored: (F, H, W) bool, pixels that a mask takes out (their depth is 0 too); None without masks.
    """

    cameras: CameraSet
    images: Array
    depth: Array
    confidence: Array
    ignored: Array | None = None

    def __post_init__(self) -> None:
        frames, (h, w) = len(self.cameras), self.cameras.size
        for name, shape in (("images", (frames, h, w, 3)), ("depth", (frames, h, w)), ("confidence", (frames, h, w))):
            got = getattr(self, name).shape
            _require(got == shape, f"{name} has shape {got}, expected {shape}")
        _require(self.images.dtype == np.uint8, f"images have dtype {self.images.dtype}, expected uint8")

    def __len__(self) -> int:
        return len(self.cameras)

    @cached_property
    def valid(self) -> Array:
        """(F, H, W) bool, depth is finite and positive."""
        return np.isfinite(self.depth) & (self.depth > 0)

    @cached_property
    def median_depth(self) -> float:
        """Median of the valid depths: the length all thresholds are multiples of."""
        return float(np.median(self.depth[self.valid]))

    def select(self, index: Array | slice | list[int]) -> "Scene":
        """The frames at these positions; the scene itself where these are all frames in their order."""
        if not isinstance(index, slice) and np.array_equal(index, np.arange(len(self))):
            return self
        return Scene(
            cameras=self.cameras.select(index),
            images=self.images[index],
            depth=self.depth[index],
            confidence=self.confidence[index],
            ignored=None if self.ignored is None else self.ignored[index],
        )


@dataclass(frozen=True, kw_only=True)
class CanonicalCloud:
    """The merged cloud of all frames; each point knows the pixel it came from.

    Attributes:
        points: (N, 3) float32, canonical space.
        colors: (N, 3) uint8 sRGB.
        frame: (N,) int32, frame id in results.npz; non-decreasing.
        pixel: (N,) int32, y * W + x.
    """

    points: Array
    colors: Array
    frame: Array
    pixel: Array

    def __post_init__(self) -> None:
        count = len(self.points)
        _require(self.points.shape == (count, 3), f"points have shape {self.points.shape}, expected (N, 3)")
        _require(self.colors.shape == (count, 3), f"colors have shape {self.colors.shape}, expected ({count}, 3)")
        _require(len(self.frame) == count == len(self.pixel), "points, frame and pixel differ in length")

    def __len__(self) -> int:
        return len(self.points)

    def pixel_mask(self, frame_ids: Array, size: tuple[int, int]) -> Array:
        """(F, H, W) bool: which pixels of the frames of these ids the cloud is made of."""
        mask = np.zeros((len(frame_ids), size[0] * size[1]), bool)
        for row, frame in zip(mask, frame_ids, strict=True):
            row[self.pixel[self.frame == frame]] = True
        return mask.reshape(len(frame_ids), *size)

    def select(self, index: Array | slice) -> "CanonicalCloud":
        """The points at these rows; the cloud itself where a mask (N,) bool has all of them."""
        if isinstance(index, slice):
            return CanonicalCloud(points=self.points[index], colors=self.colors[index], frame=self.frame[index], pixel=self.pixel[index])
        if index.dtype == bool:
            if len(index) == len(self) and index.all():
                return self
            index = np.flatnonzero(index)  # found once, not for each array
        return CanonicalCloud(
            points=self.points.take(index, axis=0),
            colors=self.colors.take(index, axis=0),
            frame=self.frame.take(index),
            pixel=self.pixel.take(index),
        )


@dataclass(frozen=True, kw_only=True)
class LatticeFields:
    """One displacement field per frame, all of one resolution: a lattice over (u, v, inverse depth) of the frame's camera.

    A camera-space point p with depth z and pixel (x, y) lies at lattice coordinates
    `a = x / W * (nu - 1)`, `b = y / H * (nv - 1)`, `c = (1/z - inv_depth_min) / (inv_depth_max - inv_depth_min) * (nz - 1)`, each
    clamped to the lattice. The displacement over depth, `delta_i(p) / z`, is the trilinear interpolation of that at the nodes, so that
    one share of depth is the same share between two layers and beyond them: `forward_i(p) = c2w_i @ (p + delta_i(p))`.

    Attributes:
        nodes: (F, nz, nv, nu, 3) float32 displacement at the nodes, camera space, scene units.
        inv_depth_range: (F, 2) float64, lattice bounds in 1/z.
    """

    nodes: Array
    inv_depth_range: Array

    def __post_init__(self) -> None:
        _require(self.nodes.ndim == 5 and self.nodes.shape[-1] == 3, f"nodes have shape {self.nodes.shape}, expected (F, nz, nv, nu, 3)")
        _require(min(self.nodes.shape[1:4]) >= 2, f"nodes have shape {self.nodes.shape}, at least 2 nodes are needed along each axis")
        _require(self.inv_depth_range.shape == (len(self.nodes), 2), "inv_depth_range must be (F, 2)")

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Result of stage 1 or 2: refined poses, a forward displacement field per frame, and the canonical cloud.

    `canonical = c2w_i @ (p_cam + delta_i(p_cam))`, see `LatticeFields`.

    Attributes:
        cameras: refined cameras of the aligned frames at the working resolution.
        fields: one field per camera, same order.
        cloud: the filtered, merged canonical cloud.
        original_w2c: (F, 4, 4) the poses before alignment.
        aligned: (F,) bool, False for frames that could not be aligned and were left out of the cloud.
        color_maps: (F, 3, 4) colour drift, if it was estimated: frame i shows the colour c of the cloud as `M_i [c, 1]`, sRGB 0..1.
        heldout: (H,) int64 ids of frames that took no part, so that results can be measured on them; none of them is in `cameras`.
    """

    cameras: CameraSet
    fields: LatticeFields
    cloud: CanonicalCloud
    original_w2c: Array
    aligned: Array
    color_maps: Array | None = None
    heldout: Array = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Splats:
    """Gaussians in canonical space, as optimised (torch).

    Attributes:
        means: (N, 3).
        quats: (N, 4) wxyz, not necessarily unit.
        log_scales: (N, 3).
        logit_opacities: (N,).
        sh: (N, B, 3) spherical-harmonic coefficients, B = (degree + 1)^2, colour = 0.5 + sum(sh * Y).
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return round(self.sh.shape[1] ** 0.5) - 1

    def select(self, index: Tensor) -> "Splats":
        """The splats at these rows."""
        return Splats(self.means[index], self.quats[index], self.log_scales[index], self.logit_opacities[index], self.sh[index])

    def to(self, device: torch.device | str) -> "Splats":
        """The same splats on another device."""
        return Splats(
            self.means.to(device),
            self.quats.to(device),
            self.log_scales.to(device),
            self.logit_opacities.to(device),
            self.sh.to(device),
        )


@dataclass(frozen=True)
class CameraGaussians:
    """Activated Gaussians in one camera's space: what a rasteriser composites.

    Attributes:
        means: (N, 3) camera space.
        quats: (N, 4) wxyz, camera from Gaussian; normalised by the rasteriser.
        scales: (N, 3) linear, positive; the third is ignored by 2DGS.
        opacities: (N,) 0..1.
        colors: (N, 3), view-dependent colour already evaluated.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True)
class RenderOutput:
    """One rendered view on a black background.

    Attributes:
        rgb: (H, W, 3), premultiplied by alpha.
        alpha: (H, W).
        depth: (H, W) accumulated camera z, `sum(w_k z_k)`; divide by alpha for the expected depth.
        normal: (H, W, 3) accumulated camera-space normals facing the camera (2DGS only).
        distortion: (H, W) depth distortion (2DGS only).
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None
    distortion: Tensor | None = None

    def expected_depth(self) -> Tensor:
        """(H, W) depth divided by alpha, 0 where nothing was hit."""
        return torch.where(self.alpha > 1e-6, self.depth / self.alpha.clamp(min=1e-6), torch.zeros_like(self.depth))


@dataclass(frozen=True)
class StepReport:
    """One step of an optimisation, for reporters.

    Attributes:
        stage: what is running, for example "alignment".
        step: 0-based.
        total: number of steps expected.
        values: named scalars.
    """

    stage: str
    step: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


class Reporter(Protocol):
    """Receives progress; removing it must not change one bit of a result."""

    def step(self, report: StepReport) -> None:
        """One step is done."""
        ...

    def note(self, message: str) -> None:
        """One line a user should read."""
        ...


class NullReporter:
    """Swallows everything."""

    def step(self, report: StepReport) -> None:
        """Does nothing."""

    def note(self, message: str) -> None:
        """Does nothing."""


NULL_REPORTER = NullReporter()
