"""Features of images: keypoints with descriptors (sparse) and the cells of the descriptor map (semi-dense), from one pass of the network.

Images are enlarged or reduced to `LONGEST_SIDE` and to sides that the network takes, without borders. Every position that leaves this
module is in pixels of the image given, the centre of its pixel (row i, column j) at (j + 0.5, i + 0.5); `px_of_net` (x, y) carries
positions in the network's image, which has its centres at +0.5 too, there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.device.accelerator import accelerator, in_chunks
from utils.matching.xfeat.network import CELL, MULTIPLE, XFeatNetwork, keypoint_map
from utils.matching.xfeat.weights import load_network
from utils.types import Array

LONGEST_SIDE = 768
"""Of the network's image. Enlarging frames of 512 px to it halves the error of positions and finds half as many matches again."""
MAX_KEYPOINTS = 2048
MAX_CELLS = 2048
_MIN_PROBABILITY = 0.05  # of a keypoint at a pixel
_APART = 2  # a keypoint is the largest within so many of the network's pixels
_BATCH_PIXELS = 8_000_000
"""Of the network's images that go through a GPU at once; about 400 bytes are in use for each at the peak."""


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """What the network finds in one image of `size` (h, w), on the network's device.

    Attributes:
        size: (h, w) of the image.
        descriptors: (64, H/8, W/8), not of unit length.
        keypoints: (H, W) probability of a keypoint at each pixel of the network's image.
        reliability: (H/8, W/8), 0 to 1.
    """

    size: tuple[int, int]
    descriptors: Tensor
    keypoints: Tensor
    reliability: Tensor

    @property
    def px_of_net(self) -> Tensor:
        """(2,) width and height of the network's pixels, in pixels of the image."""
        (h, w), (net_h, net_w) = self.size, self.keypoints.shape
        return self.keypoints.new_tensor([w / net_w, h / net_h])


@dataclass(frozen=True, eq=False)
class Keypoints:
    """The keypoints of one image, the most reliable first.

    Attributes:
        px: (N, 2) x, y in the image.
        descriptors: (N, 64) of unit length.
        scores: (N,) probability times reliability.
    """

    px: Tensor
    descriptors: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.px)

    def best(self, count: int) -> "Keypoints":
        """The most reliable ones."""
        return Keypoints(self.px[:count], self.descriptors[:count], self.scores[:count])


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of an image's descriptor map, the most reliable first.

    Attributes:
        corner_px: (M, 2) x, y of the upper left corner of each cell in the image.
        descriptors: (M, 64), not of unit length.
        reliability: (M,), 0 to 1.
        px_of_net: (2,) size of the network's pixels in pixels of the image; a cell is 8 by 8 of them.
    """

    corner_px: Tensor
    descriptors: Tensor
    reliability: Tensor
    px_of_net: Tensor

    def __len__(self) -> int:
        return len(self.corner_px)


class XFeat:
    """The network on its device, for images.

    Args:
        network: in evaluation mode, on `device`.
        device: where maps and features stay.
    """

    def __init__(self, network: XFeatNetwork, device: torch.device):
        self.network = network
        self.device = device

    @classmethod
    def load(cls) -> "XFeat":
        """With the published weights, on the GPU where there is one.

        Raises:
            MissingDependencyError: the weights are not installed.
        """
        device = accelerator() or torch.device("cpu")
        return cls(load_network(device), device)

    def maps(self, images: Array | Sequence[Array]) -> Iterator[FeatureMaps]:
        """Maps of each of the images (F, h, w, 3) uint8 of one size, in their order; computed in batches as they are asked for."""
        if not len(images):
            return
        net_h, net_w = network_size(images[0].shape[:2])
        batch = max(1, _BATCH_PIXELS // (net_h * net_w)) if self.device.type == "cuda" else 1
        for start in range(0, len(images), batch):
            part = range(start, min(start + batch, len(images)))
            yield from in_chunks(lambda rows: self._pass([images[i] for i in rows]), part, batch, "features")

    @torch.inference_mode()
    def _pass(self, images: list[Array]) -> list[FeatureMaps]:
        size = images[0].shape[:2]
        stack = torch.from_numpy(np.stack(images)).to(self.device)
        grey = stack.float().mean(-1)[:, None]
        grey = functional.interpolate(grey, network_size(size), mode="bilinear", align_corners=False, antialias=True)
        descriptors, logits, reliability = self.network(grey)
        probability = keypoint_map(logits)
        return [FeatureMaps(size, d, p, r[0]) for d, p, r in zip(descriptors, probability, reliability, strict=True)]


def network_size(size: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of the network's image for an image of `size` (h, w): its longest side at `LONGEST_SIDE`, both near to multiples of 32."""
    scale = LONGEST_SIDE / max(size)
    h, w = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in size)
    return h, w


@torch.inference_mode()
def find_keypoints(maps: FeatureMaps, count: int = MAX_KEYPOINTS, keep: Array | None = None) -> Keypoints:
    """At most `count` keypoints of an image, the most reliable; only where `keep` (h, w) bool holds."""
    probability = maps.keypoints[None]
    largest = functional.max_pool2d(probability, 2 * _APART + 1, stride=1, padding=_APART)
    i, j = ((probability == largest) & (probability > _MIN_PROBABILITY))[0].nonzero().unbind(-1)
    places = _between_pixels(maps.keypoints, i, j)
    if keep is not None:
        allowed = torch.from_numpy(keep).to(places.device)[_pixel_of(places * maps.px_of_net, maps.size)]
        i, j, places = i[allowed], j[allowed], places[allowed]
    size = places.new_tensor([maps.keypoints.shape[1], maps.keypoints.shape[0]])
    scores = maps.keypoints[i, j] * _sampled(maps.reliability[None], places / size, "bilinear")[:, 0]
    order = scores.argsort(descending=True, stable=True)[:count]
    descriptors = functional.normalize(_sampled(maps.descriptors, places[order] / size, "bicubic"), dim=-1)
    return Keypoints(places[order] * maps.px_of_net, descriptors, scores[order])


@torch.inference_mode()
def find_cells(maps: FeatureMaps, count: int = MAX_CELLS) -> Cells:
    """At most `count` cells of an image, the most reliable first."""
    descriptors = maps.descriptors.flatten(1).mT
    columns = maps.descriptors.shape[2]
    reliability, order = maps.reliability.flatten().sort(descending=True, stable=True)
    order = order[:count]
    corner = torch.stack([order % columns, order // columns], -1) * CELL
    return Cells(corner * maps.px_of_net, descriptors[order], reliability[:count], maps.px_of_net)


def _between_pixels(probability: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """(N, 2) x, y of the peaks at pixels (i, j), centres at +0.5: the mean of each one's 3 x 3 pixels, weighted by probability.

    A third less scattered than the peak's own pixel (0.57 instead of 0.71 px, median, between shifted copies of an image).
    """
    padded = functional.pad(probability[None, None], (1, 1, 1, 1))[0, 0]
    step = torch.arange(3, device=i.device)
    patch = padded[i[:, None, None] + step[:, None], j[:, None, None] + step]
    share = patch / patch.sum((1, 2), keepdim=True)
    offset = torch.stack([share.sum(1) @ (step - 1.0), share.sum(2) @ (step - 1.0)], -1)
    return torch.stack([j, i], -1) + 0.5 + offset


def _pixel_of(places: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels that hold places (N, 2), the nearest ones for places outside."""
    x, y = places.floor().long().unbind(-1)
    return y.clamp(0, size[0] - 1), x.clamp(0, size[1] - 1)


def _sampled(maps: Tensor, shares: Tensor, mode: str) -> Tensor:
    """(N, C) of maps (C, H, W) at places given as shares (N, 2) of width and height: cells have their centres at +0.5, like pixels."""
    grid = (2 * shares - 1)[None, None]
    found = functional.grid_sample(maps[None], grid, mode=mode, padding_mode="border", align_corners=False)
    return found[0, :, 0].mT
