"""Matches and triangulation of `flow_depth` for many frames at once in torch, for a GPU.

Same steps and thresholds as the compiled code, with the flow of `utils.matching.optical_flow`. Only inverse depth and the matches that
bundle adjustment asks for leave the device.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.cameras.pixels import pixel_grid
from utils.device.accelerator import in_chunks
from utils.matching.optical_flow.reference import Level, dense_flow, sample
from utils.sfm.depth_completion import PosedClip, relative_poses
from utils.sfm.flow_depth import CYCLE_PX, EPIPOLAR_PX, FINE_FLOW_PIXELS, INLIER, INLIER_PX, Measured, RayDepth
from utils.types import Array

_BATCH_PIXELS = 6_000_000
"""Pixels of a batch of pairs, both directions counted; about 200 bytes are in use for each at the peak."""

# Flow between a frame and a neighbour far off, seen through a first depth: wider steps and less smoothness than where alignment has
# brought frames together. On a kitchen of 504 px depth then shows other frames as the compiled code's does: mean difference 8.75 grey
# levels against 8.68; 8.93 at full resolution with the alignment's levels and smoothness, where a tenth of the pixels stayed unmatched.
_LEVELS = (Level(8, 2, 4), Level(4, 2, 4), Level(2, 2, 4), Level(1, 1, 3))
_SMOOTHNESS = 5.0
# Share of a pixel that must be known for one of half the resolution to be.
_ALL_KNOWN = 0.99


class BatchedFlowDepth:
    """Measures the refs of a clip from their neighbours, a batch of pairs at a time.

    Args:
        grays: (T, H, W) uint8.
        keep: (T, H, W) bool, pixels that may be matched; None: all.
        device: where.
    """

    def __init__(self, grays: Array, keep: Array | None, device: torch.device):
        self._device = device
        self._grays = torch.from_numpy(np.ascontiguousarray(grays)).to(device)
        self._keep = None if keep is None else torch.from_numpy(np.ascontiguousarray(keep)).to(device)

    def measure_all(
        self, clip: PosedClip, neighbours: list[list[int]], inverse: list[Array], at: tuple[Array, Array]
    ) -> Iterator[Measured]:
        """What flow through the current depth tells of every ref, in order.

        Args:
            clip: the cameras of now, frames as given before.
            neighbours: positions of the frames that each ref is matched with.
            inverse: (H, W) float32 current 1/z of each ref.
            at: rows and columns (G,) where the matches themselves are wanted.
        """
        pairs = max(1, _BATCH_PIXELS // (2 * inverse[0].size))
        row = 0
        while row < len(neighbours):
            end, count = row, 0
            while end < len(neighbours) and (end == row or count + len(neighbours[end]) <= pairs):
                count += len(neighbours[end])
                end += 1
            yield from self._measure(clip, list(range(row, end)), neighbours, inverse, at, pairs)
            row = end

    @torch.no_grad()
    def _measure(
        self, clip: PosedClip, rows: list[int], neighbours: list[list[int]], inverse: list[Array], at: tuple[Array, Array], most: int
    ) -> list[Measured]:
        poses = [relative_poses(clip, row, neighbours[row]) for row in rows]
        current = torch.from_numpy(np.stack([inverse[row] for row in rows])).to(self._device)
        all_pairs = [(index, view) for index, row in enumerate(rows) for view in range(len(neighbours[row]))]

        def match(pairs: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
            index = torch.tensor([i for i, _ in pairs], device=self._device)
            first = torch.tensor([int(clip.refs[rows[i]]) for i, _ in pairs], device=self._device)
            second = torch.tensor([neighbours[rows[i]][v] for i, v in pairs], device=self._device)
            rotations, translations = (
                torch.from_numpy(np.stack([poses[i][part][v] for i, v in pairs])).to(self._device, torch.float32) for part in (0, 1)
            )
            images = self._grays[first].float(), self._grays[second].float()
            matches, valid = match_through_depth(
                *images, current[index], (rotations, translations), clip.K[clip.refs[rows]][[i for i, _ in pairs]]
            )
            if self._keep is not None:
                valid = valid & self._keep[first] & _nearest(self._keep[second], matches)
            return list(zip(matches, valid, strict=True))

        matched = in_chunks(match, all_pairs, most, "depth")
        found, start = [], 0
        y, x = (torch.from_numpy(axis).to(self._device) for axis in at)
        for row, (rotations, translations) in zip(rows, poses, strict=True):
            K = clip.K[clip.refs[row]]
            own = matched[start : start + len(neighbours[row])]
            start += len(own)
            matches, valid = torch.stack([m for m, _ in own]), torch.stack([v for _, v in own])
            inverse_depth, weight, views, far = (part.cpu().numpy() for part in triangulate(matches, valid, rotations, translations, K))
            there = matches[:, y, x].cpu().numpy(), valid[:, y, x].cpu().numpy()
            found.append(Measured(RayDepth(inverse_depth, weight, views, far), *there))
        return found


def match_through_depth(
    reference: Tensor, neighbour: Tensor, inverse: Tensor, pose: tuple[Tensor, Tensor], K: Array
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
    scale = flow.new_tensor([width / half[1], height / half[0]])
    return F.interpolate(flow, (height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1) * scale


def project_inverse(inverse: Tensor, rotation: Tensor, translation: Tensor, K: Array) -> tuple[Tensor, Tensor]:
    """Neighbour pixel (B, H, W, 2) of every reference pixel at 1/z (B, H, W), and whether it lies in front and inside; K (B, 3, 3)."""
    height, width = inverse.shape[1:]
    focal, centre = _intrinsics(K, inverse)
    rays = F.pad((pixel_grid(height, width, inverse.device) - centre) / focal, (0, 1), value=1.0)
    q = torch.einsum("bij,bhwj->bhwi", rotation, rays) + inverse[..., None] * translation[:, None, None]
    pixel = focal * q[..., :2] / q[..., 2:].clamp(min=1e-3) + centre
    return pixel, (q[..., 2] > 1e-3) & _inside(pixel, height, width)


def triangulate(matches: Tensor, valid: Tensor, rotations: Array, translations: Array, K: Array) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`flow_depth.triangulate`: weighted median, then weighted mean of the inliers of V matches along each ray.

    Args:
        matches: (V, H, W, 2) float32 pixel coordinates in the views.
        valid: (V, H, W) bool, matches that count.
        rotations: (V, 3, 3) view camera from reference camera.
        translations: (V, 3).
        K: (3, 3).

    Returns:
        1/z, weight, views (float32) and far (bool), (H, W) each, as in `RayDepth`.
    """
    height, width = valid.shape[1:]
    focal, centre = _intrinsics(K, matches)
    R, t = (torch.from_numpy(part).to(matches) for part in (rotations, translations))
    rays = F.pad((pixel_grid(height, width, matches.device) - centre) / focal, (0, 1), value=1.0)
    m = torch.einsum("vij,hwj->vhwi", R, rays)
    p = (matches - centre) / focal
    # (m + w t)_xy / (m + w t)_z = p: two linear equations a w = b in w = 1/z, in pixels at infinity
    z, tz = m[..., 2], t[:, 2, None, None]
    a = (t[:, None, None, :2] - p * tz[..., None]) * focal / z[..., None]
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
    total, count = weight.sum(0), inlier.sum(0)
    inverse = (weight * torch.where(inlier, value, 0.0)).sum(0) / total.clamp(min=1e-18)
    information = torch.where(inlier, (0.01 * median.abs() * slope).clamp(max=1.0).square(), 0.0).sum(0)
    enough = 2 * count >= good.sum(0)
    far = (inverse < 1.0 / total.clamp(min=1e-18).sqrt()) & (count >= 3) & enough
    return inverse, torch.where((inverse > 0) & enough, information, 0.0), count.float(), far


def _weighted_median(value: Tensor, weight: Tensor) -> Tensor:
    """(H, W) the first of the sorted values (V, H, W) at which half of the weight (V, H, W) is reached; 0 where there is none."""
    ordered, order = value.sort(0)
    reached = weight.gather(0, order).cumsum(0)
    first = (reached < 0.5 * reached[-1:]).sum(0, keepdim=True)
    median = ordered.gather(0, first)[0]
    return torch.where(median.isfinite(), median, 0.0)


def _intrinsics(K: Array, like: Tensor) -> tuple[Tensor, Tensor]:
    """Focal length and principal point, (2,) or for K (B, 3, 3) (B, 1, 1, 2) each, on the device of a tensor."""
    focal, centre = (np.expand_dims(part, (-3, -2)) if K.ndim > 2 else part for part in (K[..., [0, 1], [0, 1]], K[..., :2, 2]))
    return like.new_tensor(focal), like.new_tensor(centre)


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
