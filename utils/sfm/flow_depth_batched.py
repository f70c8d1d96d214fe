"""Matches and triangulation of `flow_depth` for many frames at once in torch, for a GPU.

Same steps and thresholds as the compiled code, with the flow of `utils.matching.optical_flow`. Only inverse depth and the matches that
bundle adjustment asks for leave the device, while the next batch is at work there.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.cameras.pixels import pixel_grid
from utils.device.accelerator import release_memory
from utils.device.recorded import OnTheWay, Recorded
from utils.matching.optical_flow.reference import Level, dense_flow, sample
from utils.sfm.depth_completion import PosedClip, relative_poses
from utils.sfm.flow_depth import CYCLE_PX, EPIPOLAR_PX, FINE_FLOW_PIXELS, INLIER, INLIER_PX, Measured, RayDepth
from utils.types import Array

_BATCH_PIXELS = 12_000_000
"""Pixels of a batch of pairs, both directions counted; about 90 bytes are in use for each at the peak. Half as many take a quarter
longer, twice as many save a twentieth."""

# Flow between a frame and a neighbour far off, seen through a first depth: wider steps and less smoothness than where alignment has
# brought frames together. On a kitchen of 504 px depth then shows other frames as the compiled code's does: mean difference 8.75 grey
# levels against 8.68; 8.93 at full resolution with the alignment's levels and smoothness, where a tenth of the pixels stayed unmatched.
# Six linearisations at the end instead of three: along true poses 7, 1 and 4 % fewer pixels off by 5 % on synthetic clips, and the RGB-D
# kitchen's measured depth off by 8.8 instead of 9.7 % (compiled code 8.8).
_LEVELS = (Level(8, 2, 4), Level(4, 2, 4), Level(2, 2, 4), Level(1, 1, 6))
_SMOOTHNESS = 5.0
# Share of a pixel that must be known for one of half the resolution to be.
_ALL_KNOWN = 0.99
_RECORDED_FROM = 4
"""Batches of a round from which recording one pays."""

_log = logging.getLogger(__name__)


class _Refs(NamedTuple):
    """What R refs are measured from, on the device; refs of fewer than V neighbours have pairs that do not count.

    Attributes:
        current: (R, H, W) float32 their 1/z.
        frame: (R,) int64 their positions in the clip.
        other: (R, V) int64 those of the neighbours.
        counts: (R, V) bool.
        rotation: (R, V, 3, 3) float32, with `translation` neighbour camera from ref camera.
        translation: (R, V, 3) float32.
        K: (R, 3, 3) float32.
    """

    current: Tensor
    frame: Tensor
    other: Tensor
    counts: Tensor
    rotation: Tensor
    translation: Tensor
    K: Tensor

    def some(self, first: int, count: int) -> "_Refs":
        """`count` refs from one on; past the last one it is repeated, so that batches are equally large."""
        rows = torch.arange(first, first + count, device=self.frame.device).clamp(max=len(self.frame) - 1)
        return _Refs(*(part[rows] for part in self))


class BatchedFlowDepth:
    """Measures the refs of a clip from their neighbours, a batch of pairs at a time.

    A batch is recorded once and replayed for the others, in later rounds too: its thousand kernels take far longer to launch than to run.

    Args:
        grays: (T, H, W) uint8.
        keep: (T, H, W) bool, pixels that may be matched; None: all.
        device: where.
    """

    def __init__(self, grays: Array, keep: Array | None, device: torch.device):
        self._device = device
        self._grays = torch.from_numpy(np.ascontiguousarray(grays)).to(device)
        self._keep = None if keep is None else torch.from_numpy(np.ascontiguousarray(keep)).to(device)
        self._pairs = max(1, _BATCH_PIXELS // (2 * grays[0].size))
        self._recorded: tuple[tuple[int, ...], Recorded] | None = None

    def measure_all(
        self, clip: PosedClip, neighbours: list[list[int]], inverse: list[Array], at: tuple[Array, Array]
    ) -> Iterator[Measured]:
        """What flow through the current depth tells of every ref, in order. While the caller works, the device is at the next batch.

        Args:
            clip: the cameras of now, frames as given before.
            neighbours: positions of the frames that each ref is matched with.
            inverse: (H, W) float32 current 1/z of each ref.
            at: rows and columns (G,) where the matches themselves are wanted.
        """
        refs = self._refs(clip, neighbours, inverse)
        places = torch.from_numpy(np.stack(at)).to(self._device)
        done = 0
        while done < len(neighbours):
            try:
                for measured in self._batches(refs, done, neighbours, places):
                    done += 1
                    yield measured
                continue
            except torch.OutOfMemoryError:
                if self._pairs == 1:
                    raise
            self._recorded = None
            release_memory()
            self._pairs = max(1, min(self._pairs, refs.other.numel()) // 2)
            _log.warning("depth: out of GPU memory, going on with %d pairs at once", self._pairs)

    def _refs(self, clip: PosedClip, neighbours: list[list[int]], inverse: list[Array]) -> _Refs:
        count, most = len(neighbours), max(len(own) for own in neighbours)
        other, counts = np.repeat(clip.refs[:, None], most, 1).astype(np.int64), np.zeros((count, most), bool)
        rotation, translation = np.tile(np.eye(3, dtype=np.float32), (count, most, 1, 1)), np.zeros((count, most, 3), np.float32)
        for row, own in enumerate(neighbours):
            other[row, : len(own)], counts[row, : len(own)] = own, True
            rotation[row, : len(own)], translation[row, : len(own)] = relative_poses(clip, row, own)
        parts = np.stack(inverse), clip.refs.astype(np.int64), other, counts, rotation, translation, clip.K[clip.refs].astype(np.float32)
        return _Refs(*(torch.from_numpy(part).to(self._device) for part in parts))

    @torch.no_grad()
    def _batches(self, refs: _Refs, first: int, neighbours: list[list[int]], places: Tensor) -> Iterator[Measured]:
        """The refs from one on. The batch asked for last is read back when the next one is already on its way."""
        size = min(max(1, self._pairs // refs.other.shape[1]), len(refs.frame))
        starts = range(first, len(neighbours), size)
        measure = self._at_once(size, len(starts), refs, places)
        before: tuple[int, OnTheWay] | None = None
        for start in starts:
            now = start, OnTheWay(measure(places, *refs.some(start, size)))
            if before is not None:
                yield from _read(*before, neighbours[before[0] : before[0] + size])
            before = now
        assert before is not None
        yield from _read(*before, neighbours[before[0] :])

    def _at_once(self, size: int, batches: int, refs: _Refs, places: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """`_measure` for batches of `size` refs, recorded if there are many."""
        if batches < _RECORDED_FROM:
            return self._measure
        shape = size, *refs.other.shape[1:], *places.shape
        if self._recorded is None or self._recorded[0] != shape:
            self._recorded = shape, Recorded(self._measure)
        return self._recorded[1]

    def _measure(self, places: Tensor, *refs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1/z, weight, views and far of some refs (R, 4, H, W), and matches (R, V, G, 2) at places (2, G), and which hold (R, V, G)."""
        some = _Refs(*refs)
        (count, views), size = some.other.shape, some.current.shape[1:]
        row = torch.arange(count, device=self._device)[:, None].expand(-1, views).flatten()
        matches = some.current.new_empty(count * views, *size, 2)
        valid = torch.empty(matches.shape[:-1], dtype=torch.bool, device=self._device)
        for start in range(0, count * views, self._pairs):
            part = slice(start, start + self._pairs)
            first, second = some.frame[row[part]], some.other.flatten()[part]
            pose = some.rotation.flatten(0, 1)[part], some.translation.flatten(0, 1)[part]
            images = self._grays[first].float(), self._grays[second].float()
            matches[part], holds = match_through_depth(*images, some.current[row[part]], pose, some.K[row[part]])
            holds &= some.counts.flatten()[part, None, None]
            valid[part] = holds if self._keep is None else holds & self._keep[first] & _nearest(self._keep[second], matches[part])
        matches, valid = matches.unflatten(0, (count, views)), valid.unflatten(0, (count, views))
        y, x = places
        ray = triangulate(matches, valid, some.rotation, some.translation, some.K)
        return torch.stack([part.float() for part in ray], 1), matches[:, :, y, x], valid[:, :, y, x]


def _read(start: int, result: OnTheWay, neighbours: list[list[int]]) -> Iterator[Measured]:
    """What a batch measured of its first refs, one for each list of neighbours."""
    rays, matches, valid = result.wait()
    for ray, match, holds, own in zip(rays, matches, valid, neighbours, strict=False):
        inverse, weight, views, far = ray.copy()
        yield Measured(RayDepth(inverse, weight, views, far > 0), match[: len(own)].copy(), holds[: len(own)].copy())


def match_through_depth(
    reference: Tensor, neighbour: Tensor, inverse: Tensor, pose: tuple[Tensor, Tensor], K: Tensor
) -> tuple[Tensor, Tensor]:
    """`flow_depth.match_through_depth` of B pairs.

    Args:
        reference: (B, H, W) float32 grey levels.
        neighbour: (B, H, W) float32.
        inverse: (B, H, W) float32 current 1/z of the reference.
        pose: rotations (B, 3, 3) and translations (B, 3), neighbour camera from reference camera.
        K: (B, 3, 3) of the references.

    Returns:
        (B, H, W, 2) float32 pixel coordinates in the neighbour, and (B, H, W) bool, matches that pass the forward-backward check.
    """
    height, width = reference.shape[1:]
    grid = pixel_grid(height, width, reference.device)
    start, visible = project_inverse(inverse, *pose, K)
    warped = torch.where(visible, sample(neighbour[:, None], start)[:, 0], reference)
    images = torch.cat([reference, warped]), torch.cat([warped, reference])
    forward, backward = _flow(*images, torch.cat([visible, torch.ones_like(visible)])).chunk(2)
    to = grid + forward
    cycle = sample(backward.permute(0, 3, 1, 2), to).permute(0, 2, 3, 1) + forward
    x, y = to.unbind(-1)
    surrounded = (x >= 0.5) & (x <= width - 0.5) & (y >= 0.5) & (y <= height - 0.5)
    consistent = (cycle.abs() < CYCLE_PX).all(-1) & surrounded
    match = sample(start.permute(0, 3, 1, 2), to).permute(0, 2, 3, 1)
    return match, consistent & _nearest(visible, to) & visible & _inside(match, height, width)


def _flow(source: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Flow (B, H, W, 2) in pixels between images (B, H, W): of small ones at full, of others at half resolution, as `flow_depth` has it."""
    height, width = source.shape[1:]
    if height * width <= FINE_FLOW_PIXELS:
        return dense_flow(source, target, known, _LEVELS, _SMOOTHNESS)
    half = height // 2, width // 2
    images = [F.interpolate(image[:, None].float(), half, mode="area")[:, 0] for image in (source, target, known)]
    flow = dense_flow(images[0], images[1], images[2] > _ALL_KNOWN, _LEVELS, _SMOOTHNESS).permute(0, 3, 1, 2)
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return flow * _half_to_full(height, width, flow.device)


@cache
def _half_to_full(height: int, width: int, device: torch.device) -> Tensor:
    """(2,) pixels of an image per pixel of one of half the resolution; kept, since a copy to the device waits for all that runs there."""
    return torch.tensor([width / (width // 2), height / (height // 2)], dtype=torch.float32, device=device)


def project_inverse(inverse: Tensor, rotation: Tensor, translation: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbour pixel (B, H, W, 2) of every reference pixel at 1/z (B, H, W), and whether it lies in front and inside; K (B, 3, 3)."""
    height, width = inverse.shape[1:]
    focal, centre = _intrinsics(K)
    rays = F.pad((pixel_grid(height, width, inverse.device) - centre) / focal, (0, 1), value=1.0)
    q = torch.einsum("bij,bhwj->bhwi", rotation, rays) + inverse[..., None] * translation[:, None, None]
    pixel = focal * q[..., :2] / q[..., 2:].clamp(min=1e-3) + centre
    return pixel, (q[..., 2] > 1e-3) & _inside(pixel, height, width)


def triangulate(
    matches: Tensor, valid: Tensor, rotations: Tensor, translations: Tensor, K: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`flow_depth.triangulate` of R refs: weighted median, then weighted mean of the inliers of V matches along each ray.

    Args:
        matches: (R, V, H, W, 2) float32 pixel coordinates in the views.
        valid: (R, V, H, W) bool, matches that count.
        rotations: (R, V, 3, 3) view camera from reference camera.
        translations: (R, V, 3).
        K: (R, 3, 3).

    Returns:
        1/z, weight, views (float32) and far (bool), (R, H, W) each, as in `RayDepth`.
    """
    height, width = valid.shape[2:]
    focal, centre = _intrinsics(K)
    rays = F.pad((pixel_grid(height, width, matches.device) - centre) / focal, (0, 1), value=1.0)
    m = torch.einsum("rvij,rhwj->rvhwi", rotations, rays)
    focal, centre, t = focal[:, None], centre[:, None], translations
    p = (matches - centre) / focal
    # (m + w t)_xy / (m + w t)_z = p: two linear equations a w = b in w = 1/z, in pixels at infinity
    z, tz = m[..., 2], t[..., 2, None, None]
    a = (t[:, :, None, None, :2] - p * tz[..., None]) * focal / z[..., None]
    b = (p * z[..., None] - m[..., :2]) * focal / z[..., None]
    norm = a.square().sum(-1)
    value = (a * b).sum(-1) / norm
    there = z + value * tz
    off = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs() / norm.sqrt() * (z / there.clamp(min=1e-3))
    good = valid & (z >= 1e-3) & (norm >= 1e-18) & (off <= EPIPOLAR_PX) & (there >= 1e-3)  # False for NaN
    weight = torch.where(good, norm, 0.0)
    value = torch.where(good, value, torch.inf)
    median = _weighted_median(value, weight)
    slope = norm.sqrt()
    inlier = good & ((value - median).abs() < torch.maximum(INLIER * median.abs(), INLIER_PX / slope))
    weight = torch.where(inlier, weight, 0.0)
    total, count = weight.sum(1), inlier.sum(1)
    inverse = (weight * torch.where(inlier, value, 0.0)).sum(1) / total.clamp(min=1e-18)
    information = torch.where(inlier, (0.01 * median.abs() * slope).clamp(max=1.0).square(), 0.0).sum(1)
    enough = 2 * count >= good.sum(1)
    far = (inverse < 1.0 / total.clamp(min=1e-18).sqrt()) & (count >= 3) & enough
    return inverse, torch.where((inverse > 0) & enough, information, 0.0), count.float(), far


def _weighted_median(value: Tensor, weight: Tensor) -> Tensor:
    """(R, 1, H, W) the first of the sorted values at which half of the weight is reached, (R, V, H, W) both; 0 where there is none."""
    half = 0.5 * weight.sum(1)
    median = torch.full_like(half, torch.inf)
    for candidate in value.unbind(1):  # V about ten: cheaper on a device than sorting them
        reached = torch.where(value <= candidate[:, None], weight, 0.0).sum(1)
        median = torch.where(reached >= half, torch.minimum(median, candidate), median)
    return torch.where(median.isfinite(), median, 0.0)[:, None]


def _intrinsics(K: Tensor) -> tuple[Tensor, Tensor]:
    """Focal length and principal point (B, 1, 1, 2) of K (B, 3, 3)."""
    return torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None, None], K[:, None, None, :2, 2]


def _inside(places: Tensor, height: int, width: int) -> Tensor:
    """(...) bool: places (..., 2) in a picture; False for NaN."""
    x, y = places.unbind(-1)
    return (x > 0) & (x < width) & (y > 0) & (y < height)


def _nearest(mask: Tensor, places: Tensor) -> Tensor:
    """(B, H, W) bool: what masks (B, H, W) say at places (B, H, W, 2); False outside."""
    height, width = mask.shape[1:]
    x, y = (places[..., k].nan_to_num(-1.0).floor().clamp(0, size - 1).long() for k, size in ((0, width), (1, height)))
    image = torch.arange(len(mask), device=mask.device)[:, None, None]
    return mask[image, y, x] & _inside(places, height, width)
