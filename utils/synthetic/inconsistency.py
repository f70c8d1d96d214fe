"""Synthetic inconsistency between frames (warps, colour drift, object motion), and the errors of predicted geometry.

Every drift is one stationary process in time: a sum of sinusoids whose amplitudes fall with frequency so that the difference between
two frames grows about like gap^0.6, as that of generated video does. It depends on the frame index only, so the first frames of a
long world are those of a short one. Drifts are not centred: the true world is not the mean of what the frames show.

Strengths are given at severity 1 ("medium") and multiply with the severity; lengths are relative to the scene's median depth.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import ConfigError
from utils.synthetic.raycast import Primitives, Warp
from utils.types import Array, CameraSet

SEVERITIES = {"none": 0.0, "low": 0.5, "medium": 1.0, "high": 2.0}
WARPS = ("smooth", "sharp", "object")

# RMS length of the change between adjacent frames, relative to the median depth, of everything that moves the geometry ...
WARP_STEP = 0.0031
# ... and of the parts that only the predicted geometry has: relative depth scale, depth shift, rotation (radians), translation.
DEPTH_SCALE_STEP = 0.0006
DEPTH_SHIFT_STEP = 0.0004
ROTATION_STEP = 0.0007
TRANSLATION_STEP = 0.0010
# Change between adjacent frames of the gain (relative) and offset (of 0..1) of each colour channel.
GAIN_STEP = 0.008
OFFSET_STEP = 0.003
# Standard deviation of the depth noise, relative to the depth; half of its variance is correlated over a few pixels.
DEPTH_NOISE = 0.0014
NOISE_BLUR_PX = 2.5
# A pixel is at an edge if the depths of its 3x3 neighbourhood differ by more than this share; so many of them get a mixed depth.
EDGE_RANGE = 0.04
EDGE_OUTLIERS = 0.5

NUM_WAVES = 8
WAVELENGTHS = (0.5, 1.2)  # of the displacement field, in median depths
PERIODS = (5.0, 9.0, 16.0, 29.0, 52.0, 90.0)  # of the drifts, in frames
HURST = 0.6
# Share of the smooth field that is left when the inconsistency is that of a fault plane or of single objects.
SMOOTH_SHARE = {"smooth": 1.0, "sharp": 0.6, "object": 0.6}
JUMP_STEP = 0.0035
OBJECT_SHIFT_STEP = 0.003
OBJECT_TURN_STEP = 0.003
# Things that come and go: how long a coming and going takes, in frames, and the share of it for which they are there.
PRESENCE_PERIODS = (18.0, 40.0)
PRESENCE_SHARE = 0.6


def severity_value(severity: str | float) -> float:
    """The factor of a named severity, or the number itself.

    Raises:
        ConfigError: unknown name, or negative.
    """
    if isinstance(severity, str) and severity in SEVERITIES:
        return SEVERITIES[severity]
    try:
        value = float(severity)
    except ValueError as error:
        raise ConfigError(f"unknown severity '{severity}'", f"choose one of {', '.join(SEVERITIES)} or give a number") from error
    if not 0.0 <= value <= 4.0:
        raise ConfigError(f"severity {value} is outside 0..4", "1 is medium; beyond 4 the displaced space folds over")
    return value


def drift(frames: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """(frames, *shape) independent smooth processes; the change between adjacent frames has a standard deviation of 1."""
    periods = np.array(PERIODS)
    amplitude = periods**HURST
    # Variance of a(t+1) - a(t) for a = A sin(2 pi t / T + random phase): 2 A^2 sin^2(pi / T).
    step = np.sqrt((2.0 * (amplitude * np.sin(np.pi / periods)) ** 2).sum())
    phase = rng.uniform(0.0, 2.0 * np.pi, (len(periods), *shape))
    # Frequencies differ between the processes, else all of them would repeat together.
    rate = 2.0 * np.pi / (periods.reshape(-1, *[1] * len(shape)) * rng.uniform(0.85, 1.15, phase.shape))
    time = np.arange(frames).reshape(-1, 1, *[1] * len(shape))
    waves = np.sin(rate[None] * time + phase[None])
    return np.einsum("p,fp...->f...", amplitude / step, waves)


@dataclass(frozen=True)
class Inconsistency:
    """The per-frame deviations of one world; F frames, N objects.

    Attributes:
        wave: (k, 3), phase: (k,), amplitude: (F, k, 3): the displacement fields, see `raycast.Warp`.
        plane: (4,) normal and offset of the fault plane.
        jump: (F, 3) slip across it, scene units.
        object_turn: (F, N, 3) rotation vector of each object about its centre, radians.
        object_shift: (F, N, 3) scene units.
        gain: (F, 3), offset: (F, 3): colour = gain * true + offset in sRGB 0..1.
        depth_scale: (F,), depth_shift: (F,) scene units: predicted = scale * true + shift.
        pose_turn: (F, 3) radians, pose_shift: (F, 3) scene units: error of the predicted poses.
        noise: standard deviation of the relative depth noise.
        outliers: share of the edge pixels with a mixed depth.
    """

    wave: Array
    phase: Array
    amplitude: Array
    plane: Array
    jump: Array
    object_turn: Array
    object_shift: Array
    gain: Array
    offset: Array
    depth_scale: Array
    depth_shift: Array
    pose_turn: Array
    pose_shift: Array
    noise: float
    outliers: float

    def warp(self, frame: int) -> Warp:
        """The displacement field of a frame."""
        return Warp(self.wave, self.phase, self.amplitude[frame], self.plane[:3], float(self.plane[3]), self.jump[frame])

    def still(self) -> Warp:
        """No displacement."""
        return Warp(self.wave, self.phase, np.zeros_like(self.amplitude[0]), self.plane[:3], float(self.plane[3]), np.zeros(3))


def make_inconsistency(
    frames: int, *, warp: str, severity: float, scale: float, shapes: Primitives, pivot: Array, seed: int
) -> Inconsistency:
    """The deviations of a world.

    Args:
        frames: how many.
        warp: "smooth", "sharp" (a fault plane through the scene) or "object" (things that slide by themselves).
        severity: factor on every strength.
        scale: median depth of the scene, scene units.
        shapes: for the number of objects.
        pivot: (3,) a point in the middle of what is seen; the fault plane passes through it.
        seed: of all random numbers.

    Raises:
        ConfigError: unknown warp.
    """
    if warp not in WARPS:
        raise ConfigError(f"unknown warp '{warp}'", f"choose one of {', '.join(WARPS)}")
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence([seed, 77]).spawn(8)]
    spatial = streams[0]
    direction = spatial.normal(size=(NUM_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = 2 * np.pi / (scale * spatial.uniform(*WAVELENGTHS, (NUM_WAVES, 1))) * direction
    phase = spatial.uniform(0, 2 * np.pi, NUM_WAVES)
    # Mean square of a sine is 1/2: the length of the step of a sum of k sines with 3 components each has the asked RMS.
    share = np.sqrt(2.0 / (3 * NUM_WAVES)) * WARP_STEP * SMOOTH_SHARE[warp]
    length = severity * scale
    num_objects = int(shapes.object_id.max()) + 1
    normal = spatial.normal(size=3) * (1.0, 0.3, 0.5)
    normal /= np.linalg.norm(normal)
    slip = drift(frames, (3,), streams[1]) / np.sqrt(3)
    slip -= (slip @ normal)[:, None] * normal  # along the plane, so that nothing opens or overlaps
    moving = (np.arange(num_objects) > 0)[None, :, None] * (warp == "object")
    object_drift = drift(frames, (2, num_objects, 3), streams[2]) / np.sqrt(3)
    depth = drift(frames, (2,), streams[4])
    pose = drift(frames, (2, 3), streams[5]) / np.sqrt(3)
    color = drift(frames, (2, 3), streams[6]) * 0.5
    color += drift(frames, (2, 1), streams[7])  # most of it is exposure, common to the channels
    return Inconsistency(
        wave=wave,
        phase=phase,
        amplitude=share * length * drift(frames, (NUM_WAVES, 3), streams[3]),
        plane=np.append(normal, normal @ pivot),
        jump=JUMP_STEP * length * slip * (warp == "sharp"),
        object_turn=OBJECT_TURN_STEP * severity * object_drift[:, 0] * moving,
        object_shift=OBJECT_SHIFT_STEP * length * object_drift[:, 1] * moving,
        gain=np.exp(GAIN_STEP * severity * color[:, 0]),
        offset=OFFSET_STEP * severity * color[:, 1],
        depth_scale=np.exp(DEPTH_SCALE_STEP * severity * depth[:, 0]),
        depth_shift=DEPTH_SHIFT_STEP * length * depth[:, 1],
        pose_turn=ROTATION_STEP * severity * pose[:, 0],
        pose_shift=TRANSLATION_STEP * length * pose[:, 1],
        noise=DEPTH_NOISE * severity,
        outliers=min(1.0, EDGE_OUTLIERS * severity),
    )


def object_presence(frames: int, num_objects: int, share: float, seed: int) -> Array:
    """(F, N) bool, the object is there in the frame; the fixed structure (object 0) always is.

    Args:
        frames: how many.
        num_objects: N.
        share: of the objects that come and go, 0..1.
        seed: of all random numbers.
    """
    rng = np.random.default_rng([seed, 313])
    order = rng.permutation(np.arange(1, num_objects))
    fleeting = np.zeros(num_objects, bool)
    fleeting[order[: round(share * len(order))]] = True
    period, phase = rng.uniform(*PRESENCE_PERIODS, num_objects), rng.random(num_objects)
    cycle = (np.arange(frames)[:, None] / period + phase) % 1.0
    return (cycle < PRESENCE_SHARE) | ~fleeting


def present_shapes(shapes: Primitives, present: Array) -> Primitives:
    """The primitives of the objects that are there; `present` is (N,) bool."""
    keep = present[shapes.object_id]
    return shapes if keep.all() else Primitives(*(column[keep] for column in shapes))


def object_centers(shapes: Primitives) -> Array:
    """(N, 3) mean primitive centre of each object."""
    counts = np.maximum(np.bincount(shapes.object_id), 1)
    sums = [np.bincount(shapes.object_id, shapes.canonical_center[:, axis]) for axis in range(3)]
    return np.stack(sums, axis=1) / counts[:, None]


def rotation_matrices(vectors: Array) -> Array:
    """(N, 3, 3) rotations of rotation vectors (N, 3) in radians."""
    return np.stack([cv2.Rodrigues(np.asarray(vector, np.float64).reshape(3, 1))[0] for vector in vectors])


def pose_shapes(shapes: Primitives, turn: Array, shift: Array) -> Primitives:
    """The primitives with each object turned about its centre and shifted.

    Args:
        shapes: in canonical pose.
        turn: (N, 3) rotation vector of each object, radians.
        shift: (N, 3) scene units.
    """
    rotation = rotation_matrices(turn)[shapes.object_id]
    pivot = object_centers(shapes)[shapes.object_id]
    center = np.einsum("pij,pj->pi", rotation, shapes.canonical_center - pivot) + pivot + shift[shapes.object_id]
    # unit shape from posed world = unit shape from canonical world, after undoing the turn
    inverse = np.linalg.inv(shapes.canonical_map) @ np.swapaxes(rotation, 1, 2)
    return shapes._replace(posed_center=center, posed_inverse=np.ascontiguousarray(inverse))


def tint(color: Array, gain: Array, offset: Array) -> Array:
    """uint8 image of a float sRGB 0..1 image after the frame's colour drift."""
    return (np.clip(color * gain.astype(np.float32) + offset.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)


class NoisyDepth(NamedTuple):
    """Depth (h, w) float64 with noise and edge outliers, 0 at sky, and its confidence (h, w) float32, 1 (none) to about 8."""

    depth: Array
    confidence: Array


def corrupt_depth(depth: Array, *, noise: float, outliers: float, rng: np.random.Generator) -> NoisyDepth:
    """Depth noise, mixed depths at edges, and a confidence that knows most of it.

    Args:
        depth: (h, w) true camera z, 0 at sky.
        noise: standard deviation of the relative noise.
        outliers: share of the edge pixels that get a depth between the two sides.
        rng: random numbers of this frame.
    """
    shape = depth.shape
    fine = rng.normal(size=shape)
    coarse = _blurred(rng.normal(size=shape), NOISE_BLUR_PX)
    uneven = np.exp(0.35 * _blurred(rng.normal(size=shape), 12.0))
    noisy = depth * (1.0 + noise * uneven * np.sqrt(0.5) * (fine + coarse))
    seen = depth > 0
    kernel = np.ones((3, 3), np.uint8)
    low = cv2.erode(np.where(seen, depth, 1e6).astype(np.float32), kernel)
    high = cv2.dilate(depth.astype(np.float32), kernel)
    edge = seen & (high - low > EDGE_RANGE * low)
    mixed = edge & (rng.random(shape) < outliers)
    share = rng.random(shape)
    noisy = np.where(mixed, (1 - share) * low + share * high, noisy)
    near_edge = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 1.0)
    certainty = np.exp(-2.5 * near_edge) / uneven * np.exp(0.1 * rng.normal(size=shape))
    confidence = np.where(seen, 1.0 + 4.0 * certainty, 1.0)
    return NoisyDepth(np.where(seen, noisy, 0.0), confidence.astype(np.float32))


def _blurred(white: Array, sigma: float) -> Array:
    """White noise smoothed over `sigma` pixels, again with unit variance."""
    smooth = cv2.GaussianBlur(white, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return smooth * (2.0 * np.sqrt(np.pi) * sigma)


def drifted_cameras(cameras: CameraSet, inconsistency: Inconsistency) -> CameraSet:
    """The cameras with the pose drift: turned about their own centres (world axes), then shifted."""
    c2w = cameras.c2w.copy()
    c2w[:, :3, :3] = rotation_matrices(inconsistency.pose_turn) @ c2w[:, :3, :3]
    c2w[:, :3, 3] += inconsistency.pose_shift
    return CameraSet(c2w=c2w, K=cameras.K, size=cameras.size, frame_ids=cameras.frame_ids)
