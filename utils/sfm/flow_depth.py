"""Dense depth of posed frames by triangulating optical flow to several neighbours.

For a reference frame and a current depth, each neighbour image is first warped into the reference by that depth, so that the flow
which remains is small even over wide baselines; flow plus warp is a dense match, and all matches of a pixel are triangulated
together along its ray. Iterated, the depth converges like coarse-to-fine multi-view stereo, with matches that may lie off their
epipolar line, since frames of a generated clip disagree.

The kernels release the GIL and run on one core each: callers put frames on threads, which has no barriers to wait at.

K may differ in x and y; pixel centres at +0.5; depth is camera z.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from utils.cameras.projection import invert_rigid
from utils.runtime import cpu_count
from utils.types import Array

# Forward-backward consistency of the flow, pixels.
CYCLE_PX = 1.0
# A match may lie this many pixels off its epipolar line: frames of a generated clip disagree by about one.
EPIPOLAR_PX = 1.5
# Inlier gate of a view: its inverse depth lies within this share of the median, or within so many pixels of flow error.
INLIER, INLIER_PX = 0.04, 0.7
# Up to this size flow runs at full resolution, beyond at half.
FINE_FLOW_PIXELS = 100_000
# Weight of smoothness in the flow's variational refinement (OpenCV's presets: 20).
_FLOW_SMOOTHNESS = 5.0


@dataclass(frozen=True)
class RayDepth:
    """Triangulated inverse depth of one frame, along the rays of its pixels.

    Attributes:
        inverse: (H, W) float32 1/z, may be slightly negative for far points, 0 where unknown.
        weight: (H, W) float32 information: sum over inlier views of (pixels of parallax per 1 % of depth, at most 1)^2; 0 = unknown.
        views: (H, W) float32 number of inlier views.
        far: (H, W) bool, matched well but without measurable parallax.
    """

    inverse: Array
    weight: Array
    views: Array
    far: Array


@dataclass(frozen=True)
class Measured:
    """What flow tells of one frame.

    Attributes:
        ray: its depth along the rays.
        matches: (V, G, 2) float32 pixel coordinates in the V views of the pixels that were asked for.
        valid: (V, G) bool, which of them hold.
    """

    ray: RayDepth
    matches: Array
    valid: Array


@contextmanager
def frame_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool with one frame per core; OpenCV, which would start as many threads in every one of them, is kept to one."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(cpu_count()) as pool:
            yield pool
    finally:
        cv2.setNumThreads(before)


_LOCAL = threading.local()


def dense_flow(pixels: int) -> "cv2.DISOpticalFlow":
    """Dense inverse search (Kroeger et al. 2016) that keeps edges: OpenCV's medium preset, finer and less smooth.

    Each thread keeps one for either scale, with its buffers: making them anew took a fifth of the time.

    The preset stops at half the resolution and smears motion over depth edges. On exact synthetic clips of 252 px full resolution
    took the median depth error from 1.0 to 0.6 % and the weaker smoothness from there to 0.5 %; it costs twice the time.

    Args:
        pixels: of the images.
    """
    kept: dict[int, cv2.DISOpticalFlow] = _LOCAL.__dict__.setdefault("flows", {})
    finest = 0 if pixels <= FINE_FLOW_PIXELS else 1
    if finest not in kept:
        kept[finest] = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        kept[finest].setFinestScale(finest)
        kept[finest].setVariationalRefinementAlpha(_FLOW_SMOOTHNESS)
    return kept[finest]


def zoomed_relative(w2c: Array, K: Array, w2c_ref: Array, K_ref: Array) -> tuple[Array, Array]:
    """Rotations (V, 3, 3) and translations (V, 3) of cameras (V, 4, 4) from a reference, to be used with the K of the reference.

    A camera of the same principal point and another focal length is one of the reference's whose x and y are scaled, so that neither
    matching nor triangulation has to know of two focal lengths. z is the camera's own.
    """
    relative = w2c @ invert_rigid(w2c_ref)
    scale = np.diagonal(K, axis1=-2, axis2=-1) / np.diagonal(K_ref, axis1=-2, axis2=-1)
    relative[..., :3, :] *= scale[..., None]
    return np.ascontiguousarray(relative[..., :3, :3]), np.ascontiguousarray(relative[..., :3, 3])


def match_through_depth(reference: Array, neighbour: Array, inverse: Array, pose: tuple[Array, Array], K: Array) -> tuple[Array, Array]:
    """Where each reference pixel is seen in the neighbour, starting the search at the current depth.

    Args:
        reference: (H, W) uint8 grey.
        neighbour: (H, W) uint8 grey.
        inverse: (H, W) float32 current 1/z of the reference, >= 0.
        pose: rotation (3, 3) and translation (3,), neighbour camera from reference camera; see `zoomed_relative`.
        K: (3, 3) of the reference.

    Returns:
        (H, W, 2) float32 pixel coordinates in the neighbour, and (H, W) bool, matches that pass the forward-backward check.
    """
    height, width = reference.shape
    start, visible = project_inverse(inverse, pose[0], pose[1], K)
    # remap counts from the first pixel's centre, our coordinates from its corner
    warped = cv2.remap(neighbour, start[..., 0] - 0.5, start[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    warped = np.where(visible, warped, reference)
    flow = dense_flow(height * width)
    forward, backward = flow.calc(reference, warped, None), flow.calc(warped, reference, None)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    cycle = cv2.remap(backward, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(1e3, 1e3))
    cycle += forward
    consistent = (np.abs(cycle[..., 0]) < CYCLE_PX) & (np.abs(cycle[..., 1]) < CYCLE_PX)
    match = cv2.remap(start, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.remap(visible.astype(np.uint8), to_x, to_y, cv2.INTER_NEAREST) > 0
    inside = (match[..., 0] > 0) & (match[..., 0] < width) & (match[..., 1] > 0) & (match[..., 1] < height)
    return match, consistent & seen & visible & inside


@njit(nogil=True, cache=True)
def project_inverse(inverse: Array, rotation: Array, translation: Array, K: Array) -> tuple[Array, Array]:
    """Neighbour pixel (H, W, 2) of every reference pixel at 1/z, and whether it lies in front and inside."""
    height, width = inverse.shape
    out = np.empty((height, width, 2), np.float32)
    visible = np.empty((height, width), np.bool_)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for row in range(height):
        for column in range(width):
            rx, ry, w = (column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, inverse[row, column]
            qx = rotation[0, 0] * rx + rotation[0, 1] * ry + rotation[0, 2] + w * translation[0]
            qy = rotation[1, 0] * rx + rotation[1, 1] * ry + rotation[1, 2] + w * translation[1]
            qz = rotation[2, 0] * rx + rotation[2, 1] * ry + rotation[2, 2] + w * translation[2]
            safe = qz if qz > 1e-3 else 1e-3
            u, v = fx * qx / safe + cx, fy * qy / safe + cy
            out[row, column, 0], out[row, column, 1] = u, v
            visible[row, column] = qz > 1e-3 and u > 0 and u < width and v > 0 and v < height
    return out, visible


def triangulate(matches: Array, valid: Array, rotations: Array, translations: Array, K: Array) -> RayDepth:
    """Inverse depth along each reference ray from its matches in V views: weighted median, then weighted mean of the inliers.

    Args:
        matches: (V, H, W, 2) float32 pixel coordinates in the views.
        valid: (V, H, W) bool, matches that count.
        rotations: (V, 3, 3) view camera from reference camera, see `zoomed_relative`.
        translations: (V, 3).
        K: (3, 3) of the reference.
    """
    inverse, information, views, far = _triangulate(
        matches, valid, rotations.astype(np.float64), translations.astype(np.float64), K.astype(np.float64)
    )
    return RayDepth(inverse, information, views, far)


@njit(nogil=True, cache=True)
def _triangulate(matches: Array, valid: Array, rotations: Array, translations: Array, K: Array) -> tuple[Array, Array, Array, Array]:
    count, height, width = valid.shape
    out = np.zeros((height, width), np.float32)
    information = np.zeros((height, width), np.float32)
    inliers = np.zeros((height, width), np.float32)
    far = np.zeros((height, width), np.bool_)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for row in range(height):
        value = np.empty(count, np.float64)
        weight = np.empty(count, np.float64)
        slope = np.empty(count, np.float64)
        order = np.empty(count, np.int64)
        for column in range(width):
            rx, ry = (column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy
            num_matches = 0
            for v in range(count):
                if not valid[v, row, column]:
                    continue
                R, t = rotations[v], translations[v]
                mx = R[0, 0] * rx + R[0, 1] * ry + R[0, 2]
                my = R[1, 0] * rx + R[1, 1] * ry + R[1, 2]
                mz = R[2, 0] * rx + R[2, 1] * ry + R[2, 2]
                px, py = (matches[v, row, column, 0] - cx) / fx, (matches[v, row, column, 1] - cy) / fy
                # (mx + w tx) / (mz + w tz) = px, and y alike: two linear equations a w = b in w = 1/z, in pixels at infinity
                ax, bx = (t[0] - px * t[2]) * fx / mz, (px * mz - mx) * fx / mz
                ay, by = (t[1] - py * t[2]) * fy / mz, (py * mz - my) * fy / mz
                norm = ax * ax + ay * ay
                if mz < 1e-3 or norm < 1e-18:
                    continue
                w = (ax * bx + ay * by) / norm
                depth_ratio = mz / max(mz + w * t[2], 1e-3)
                off = abs(ax * by - ay * bx) / np.sqrt(norm) * depth_ratio
                if off > EPIPOLAR_PX or mz + w * t[2] < 1e-3:
                    continue
                value[num_matches], slope[num_matches] = w, np.sqrt(norm)
                num_matches += 1
            if num_matches == 0:
                continue
            total = 0.0
            for i in range(num_matches):
                # pixels of parallax: what one pixel of error is compared with
                weight[i] = slope[i] * slope[i]
                total += weight[i]
            # insertion into the sorted ones: V is about eight
            for i in range(num_matches):
                place = i
                while place > 0 and value[order[place - 1]] > value[i]:
                    order[place] = order[place - 1]
                    place -= 1
                order[place] = i
            half, median = 0.0, value[order[num_matches - 1]]
            for i in order[:num_matches]:
                half += weight[i]
                if half >= 0.5 * total:
                    median = value[i]
                    break
            weighted, total, num_inliers, info = 0.0, 0.0, 0, 0.0
            for i in range(num_matches):
                if abs(value[i] - median) < max(INLIER * abs(median), INLIER_PX / slope[i]):
                    weighted += weight[i] * value[i]
                    total += weight[i]
                    num_inliers += 1
                    sensitivity = 0.01 * abs(median) * slope[i]
                    info += min(sensitivity, 1.0) ** 2
            w = weighted / max(total, 1e-18)
            out[row, column] = w
            inliers[row, column] = num_inliers
            # error of w if every match is off by 0.5 px, independently
            far[row, column] = w < 2.0 * 0.5 / np.sqrt(max(total, 1e-18)) and num_inliers >= 3 and 2 * num_inliers >= num_matches
            information[row, column] = info if (w > 0 and 2 * num_inliers >= num_matches) else 0.0
    return out, information, inliers, far


# Frames, counted in chosen ones, whose depth is reprojected into a frame.
REPROJECTED_FROM = (1, 2, 4, 7)


def reproject_depth(inverse: Array, valid: Array, w2c: Array, K: Array, row: int) -> tuple[Array, Array]:
    """Inverse depth of one frame from other frames' depth: helps where its own neighbours show it too little parallax.

    Args:
        inverse: (F, H, W) float32 1/z of all frames.
        valid: (F, H, W) bool, pixels that are reprojected.
        w2c: (F, 4, 4).
        K: (F, 3, 3).
        row: the frame.

    Returns:
        (H, W) float32 1/z, the median of the frames that reach a pixel, and (H, W) float32 how many do.
    """
    others = [j for o in REPROJECTED_FROM for j in (row - o, row + o) if 0 <= j < len(inverse)]
    layers = np.stack(
        [_splat(inverse[j], valid[j], *zoomed_relative(w2c[row], K[row], w2c[j], K[j]), K[j].astype(np.float64)) for j in others]
    )
    count = (layers > 0).sum(0)
    ordered = np.sort(np.where(layers > 0, layers, np.inf), axis=0)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    return np.where(count > 0, middle, 0).astype(np.float32), count.astype(np.float32)


@njit(nogil=True, cache=True)
def _splat(inverse: Array, valid: Array, rotation: Array, translation: Array, K: Array) -> Array:
    """(H, W) float32 1/z of a depth image seen from another camera (its pose from the image's camera), nearest wins; 0 = nothing."""
    height, width = inverse.shape
    out = np.zeros((height, width), np.float32)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for row in range(height):
        for column in range(width):
            w = inverse[row, column]
            if not valid[row, column] or w <= 0:
                continue
            rx, ry = (column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy
            qz = rotation[2, 0] * rx + rotation[2, 1] * ry + rotation[2, 2] + w * translation[2]
            if qz <= 1e-3:
                continue
            qx = rotation[0, 0] * rx + rotation[0, 1] * ry + rotation[0, 2] + w * translation[0]
            qy = rotation[1, 0] * rx + rotation[1, 1] * ry + rotation[1, 2] + w * translation[1]
            u, v = int(np.floor(fx * qx / qz + cx)), int(np.floor(fy * qy / qz + cy))
            if 0 <= u < width and 0 <= v < height:
                out[v, u] = max(out[v, u], w / qz)
    return out


# Support: depths differ by less than this share. Contradiction (free-space violation): twice this in front of a seen surface.
_AGREE = 0.03
# Other frames against which each depth map is checked.
_CHECKED_AGAINST = 8


def agreement(depth: Array, w2c: Array, K: Array) -> Array:
    """Geometric consistency of each pixel, (F, H, W) float32 0..1: mean support over the other frames that see its place.

    A pixel is reprojected into up to 8 other frames. There its depth agrees (support 0.5 to 1), is hidden behind something nearer (not
    counted), or floats in front of what that frame sees (support 0). K is that of each frame (F, 3, 3), or of all (3, 3).
    """
    frames, K = len(depth), np.broadcast_to(K, (len(depth), 3, 3))
    offsets = sorted({round(o) for o in np.geomspace(1, max(frames // 2, 1), _CHECKED_AGAINST // 2)})

    def support_of(i: int) -> Array:
        others = [j for o in offsets for j in (i - o, i + o) if 0 <= j < frames]
        relative = zoomed_relative(w2c[others], K[others], w2c[i], K[i])
        return _support(depth[i], depth[np.array(others)], *relative, K[i].astype(np.float64))

    with frame_threads() as pool:
        return np.stack(list(pool.map(support_of, range(frames))))


@njit(nogil=True, cache=True)
def _support(depth: Array, others: Array, rotations: Array, translations: Array, K: Array) -> Array:
    count, height, width = others.shape
    out = np.zeros((height, width), np.float32)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for row in range(height):
        for column in range(width):
            z = depth[row, column]
            x, y = (column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z
            support, seen = 0.0, 0
            for v in range(count):
                R, t = rotations[v], translations[v]
                qz = R[2, 0] * x + R[2, 1] * y + R[2, 2] * z + t[2]
                if qz <= 1e-6:
                    continue
                u = fx * (R[0, 0] * x + R[0, 1] * y + R[0, 2] * z + t[0]) / qz + cx
                w = fy * (R[1, 0] * x + R[1, 1] * y + R[1, 2] * z + t[1]) / qz + cy
                if u < 0 or w < 0 or u >= width or w >= height:
                    continue
                difference = (others[v, int(w), int(u)] - qz) / qz
                if abs(difference) < _AGREE:
                    support += 1.0 - abs(difference) / _AGREE * 0.5
                    seen += 1
                elif difference > 2 * _AGREE:
                    seen += 1
            if seen > 0:
                out[row, column] = support / seen
    return out
