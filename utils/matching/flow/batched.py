"""Flow matches of many pairs at once in torch: what `FlowMatcher` does pair by pair on the CPU, for a GPU.

Prediction, flow and all checks of a batch of pairs stay on the device; only the matches come back.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from configs.stage1_align import MatchingConfig
from utils.cameras.pixels import pixel_grid
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.batched import DeviceGeometry
from utils.device.accelerator import accelerator, in_chunks
from utils.matching.checks import FLAT
from utils.matching.contract import MatchSet, grid_phase
from utils.matching.flow.seeds import SeededGeometry
from utils.matching.optical_flow.reference import box_mean, dense_flow, sample
from utils.types import Array, Scene

_BATCH_PIXELS = 8_000_000
"""Pixels of a batch, both directions counted; about 200 bytes are in use for each at the peak."""
_LUMINANCE = (0.299, 0.587, 0.114)


class TorchFlowMatcher:
    """Optical flow on the geometry-warped target image, both directions, checked against each other; batched over pairs.

    With several GPUs each takes a part of the pairs, in a thread of its own: starting processes would take longer than the matching.
    """

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig):
        self._parts = [_DeviceMatcher(scene, usable, grid, config, device) for device in devices(config.gpus)]

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of one pair."""
        return self.match_all([(source, target)], geometry)[0]

    def match_all(
        self, pairs: list[tuple[int, int]], geometry: AlignedGeometry, on_pair: Callable[[int], None] = lambda done: None
    ) -> list[MatchSet]:
        """Matches of all pairs, in their order; `on_pair` hears the number of pairs that are done."""
        done, lock = 0, threading.Lock()

        def more(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                on_pair(done)

        shares = [chunk.tolist() for chunk in np.array_split(np.array(pairs, int).reshape(-1, 2), len(self._parts))]
        with ThreadPoolExecutor(len(self._parts)) as pool:
            found = pool.map(lambda part, share: part.match_all(share, geometry, more), self._parts, shares)
            return [match for matches in found for match in matches]


def devices(count: int) -> list[torch.device]:
    """The GPUs to use, at most `count` of them; where there is none, as many times the CPU."""
    first = accelerator()
    if first is None:
        return [torch.device("cpu")] * count
    if count == 1:
        return [first]
    return [torch.device("cuda", index) for index in range(min(count, torch.cuda.device_count()))]


class _DeviceMatcher:
    """The matcher on one device."""

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig, device: torch.device):
        self._device, self._grid, self._config = device, grid, config
        self._depth = torch.from_numpy(np.where(scene.valid, scene.depth, 0).astype(np.float32)).to(device)
        self._usable = torch.from_numpy(np.ascontiguousarray(usable)).to(device)
        weights = torch.tensor(_LUMINANCE, device=device)
        self._gray = torch.stack([torch.from_numpy(image).to(device).float() @ weights for image in scene.images])

    def match_all(self, pairs: list[tuple[int, int]], geometry: AlignedGeometry, more: Callable[[int], None]) -> list[MatchSet]:
        """Matches of all pairs; `more` hears of further pairs that are done."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        placed = DeviceGeometry.of(geometry, self._depth)
        corrections = geometry.corrections if isinstance(geometry, SeededGeometry) else {}
        size = max(1, _BATCH_PIXELS // (2 * self._depth[0].numel()))

        def work(chunk: Sequence[tuple[int, int]]) -> list[MatchSet]:
            found = self._match_batch([(a, b) for a, b in chunk], placed, corrections)
            more(len(found))
            return found

        return in_chunks(work, pairs, size, "matching")

    def _match_batch(
        self, pairs: list[tuple[int, int]], geometry: DeviceGeometry, corrections: Mapping[tuple[int, int], Array]
    ) -> list[MatchSet]:
        both = np.array(pairs + [(b, a) for a, b in pairs])
        first, second = (torch.from_numpy(frames.copy()).to(self._device) for frames in both.T)
        predicted = corrected(geometry.predict(both[:, 0], both[:, 1]), both, corrections)
        h, w = geometry.size
        known = ((predicted > 0) & (predicted < torch.tensor([w, h], device=self._device))).all(-1)  # False for NaN
        predicted = torch.where(known[..., None], predicted, torch.nan)
        source = self._gray[first]
        warped = sample(self._gray[second, None], torch.nan_to_num(predicted))[:, 0]
        warped = torch.where(known, warped, source)
        flow = dense_flow(source, warped, known)
        count = len(pairs)
        alike = patches_agree(source[:count], warped[:count], flow[:count], self._config.min_correlation)
        rows, keep = self._select(pairs, predicted, flow, self._usable[first[:count]] & alike)
        sizes = keep.sum(1).cpu().numpy()
        parts = np.split(rows[keep].cpu().numpy(), np.cumsum(sizes)[:-1])
        return [MatchSet(a, b, part[:, 0:2], part[:, 2:4], part[:, 4], part[:, 5]) for (a, b), part in zip(pairs, parts, strict=True)]

    def _select(self, pairs: list[tuple[int, int]], predicted: Tensor, flow: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Source x, y, target x, y, source and target depth (B, G, 6) on each pair's grid, and which of them pass every check (B, G)."""
        count, (h, w) = len(pairs), predicted.shape[1:3]
        pair = torch.arange(count, device=self._device)[:, None]
        source, target = torch.tensor(pairs, device=self._device).unbind(1)
        i, j = self._grid_pixels(pairs, h, w)
        inside = (i < h) & (j < w)
        i, j = i.clamp(max=h - 1), j.clamp(max=w - 1)
        there = follow(predicted, flow, pair, i, j)
        depth = depth_at(self._depth, self._usable, target[:, None], there)
        # The way back, interpolated between the four pixels around the target.
        corners = Corners.around(torch.nan_to_num(there), h, w)
        back = corners.mix([follow(predicted, flow, pair + count, a, b) for a, b in corners.pixels()])
        start = torch.stack([j, i], -1) + 0.5
        cycle = (back - start).square().sum(-1)
        keep = inside & usable[pair, i, j] & (depth > 0) & (cycle < self._config.max_cycle_error_px**2)  # False for NaN
        own = self._depth[source[:, None], i, j]
        return torch.cat([start, there, own[..., None], depth[..., None]], -1), keep

    def _grid_pixels(self, pairs: list[tuple[int, int]], h: int, w: int) -> tuple[Tensor, Tensor]:
        """Rows and columns (B, G) of the pixels tried, of which some lie outside of the image."""
        step = self._grid
        phase = torch.tensor([grid_phase(a, b, step) for a, b in pairs], device=self._device)
        rows = phase[:, :1] + torch.arange(0, h, step, device=self._device)
        columns = phase[:, 1:] + torch.arange(0, w, step, device=self._device)
        shape = (len(pairs), rows.shape[1], columns.shape[1])
        return rows[:, :, None].expand(shape).flatten(1), columns[:, None].expand(shape).flatten(1)


def corrected(predicted: Tensor, pairs: Array, corrections: Mapping[tuple[int, int], Array]) -> Tensor:
    """Predictions (B, H, W, 2) of pairs (B, 2) with the corrections of those that have one, see `SeededGeometry`."""
    own = [corrections.get((int(a), int(b))) for a, b in pairs]
    if all(one is None for one in own):
        return predicted
    blank = np.zeros_like(next(one for one in own if one is not None))
    coarse = torch.from_numpy(np.stack([blank if one is None else one for one in own])).to(predicted)
    fine = functional.interpolate(coarse.permute(0, 3, 1, 2), predicted.shape[1:3], mode="bilinear", align_corners=False)
    return predicted + fine.permute(0, 2, 3, 1)


class Corners:
    """The four pixels around places (B, G, 2), and their bilinear weights.

    Args:
        i: (B, G) upper row.
        j: (B, G) left column.
        fraction: (B, G, 2) across and down.
    """

    def __init__(self, i: Tensor, j: Tensor, fraction: Tensor):
        self._i, self._j, self._fraction = i, j, fraction

    @classmethod
    def around(cls, places: Tensor, h: int, w: int) -> "Corners":
        """Around finite places in an image of h x w pixels."""
        x, y = (places - 0.5).unbind(-1)
        j, i = x.floor().clamp(0, w - 2), y.floor().clamp(0, h - 2)
        return cls(i.long(), j.long(), torch.stack([x - j, y - i], -1))

    def pixels(self) -> list[tuple[Tensor, Tensor]]:
        """Row and column (B, G) of upper left, upper right, lower left, lower right."""
        return [(self._i + k // 2, self._j + k % 2) for k in range(4)]

    def mix(self, values: list[Tensor]) -> Tensor:
        """Interpolates values (B, G, C) of the four pixels; NaN next to NaN."""
        fx, fy = self._fraction[..., :1], self._fraction[..., 1:]
        top = values[0] * (1 - fx) + values[1] * fx
        return top * (1 - fy) + (values[2] * (1 - fx) + values[3] * fx) * fy


def within(places: Tensor, h: int, w: int) -> Tensor:
    """(B, G) bool: places (B, G, 2) that have four pixels around them; False for NaN."""
    x, y = places.unbind(-1)
    return (x >= 0.5) & (y >= 0.5) & (x <= w - 0.5) & (y <= h - 0.5)


def follow(predicted: Tensor, flow: Tensor, image: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """(B, G, 2) where pixels (i, j) of images go: the prediction at the pixel's flow target, NaN where there is none."""
    h, w = predicted.shape[1:3]
    places = torch.stack([j, i], -1) + 0.5 + flow[image, i, j]
    corners = Corners.around(torch.nan_to_num(places), h, w)  # flow that diverged: an index from NaN would end the GPU's context
    found = corners.mix([predicted[image, a, b] for a, b in corners.pixels()])
    return torch.where(within(places, h, w)[..., None], found, torch.nan)


def depth_at(depth: Tensor, usable: Tensor, frame: Tensor, places: Tensor) -> Tensor:
    """(B, G) bilinear depth of frames at places (B, G, 2), NaN if one of the four pixels is not usable."""
    h, w = depth.shape[1:]
    corners = Corners.around(torch.nan_to_num(places), h, w)
    values = [torch.where(usable[frame, a, b], depth[frame, a, b], torch.nan)[..., None] for a, b in corners.pixels()]
    return torch.where(within(places, h, w), corners.mix(values)[..., 0], torch.nan)


def patches_agree(images: Tensor, others: Tensor, flow: Tensor, min_correlation: float) -> Tensor:
    """(B, H, W) bool: `utils.matching.checks.patches_agree` for images (B, H, W)."""
    h, w = images.shape[1:]
    a = images[:, None]
    b = sample(others[:, None], pixel_grid(h, w, images.device) + flow)
    inside = box_mean(torch.ones_like(a[:1]))
    mean_a, mean_b, aa, bb, ab = (box_mean(torch.cat([a, b, a * a, b * b, a * b], 1)) / inside).split(1, 1)
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    correlated = covariance > min_correlation * (var_a * var_b).clamp(min=0).sqrt()
    alike = (correlated & (var_a > 0) & (var_b > 0)) | (var_a + var_b - 2 * covariance < FLAT**2)
    return alike[:, 0]
