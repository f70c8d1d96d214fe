"""Matches between features: mutual nearest neighbours, refinement of matched cells, and whether two images show one place."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.device.accelerator import in_chunks
from utils.matching.xfeat.features import Cells, Keypoints
from utils.matching.xfeat.network import CELL, XFeatNetwork
from utils.types import Array

MIN_COSINE = 0.82
"""Between the descriptors of a match; the paper's."""
_SHARPNESS = 3.0  # factor on the logits of the refinement, and
_MIN_CONFIDENCE = 0.25  # the largest of their probabilities that a match of cells needs; both are the paper's
_FEW, _HOPEFUL = 512, 12
"""Keypoints of each image with which a pair is tried, and matches among them that make it worth more."""
_PRODUCTS = 200_000_000
"""Cosines of a batch of pairs on a GPU: 2.4 GB with their maxima. On the CPU pairs come one by one, within the cache's reach."""
_INLIER_PX = 1.5
SAME_PLACE, MIN_SHARE = 40, 0.4
"""Verified matches, and their share of all, with which two images show the same place. Measured: images of different clips have 20 at
most, opposite views of an orbit 28 and a share of 0.33; views that overlap have 90 and more and a share of 0.43 (medians)."""


@dataclass(frozen=True, eq=False)
class PlaceMatches:
    """Matches between two images.

    Attributes:
        first_px: (N, 2) float32 x, y in the first image.
        second_px: (N, 2) float32 x, y in the second one.
        confidence: (N,) float32, 0 to 1.
    """

    first_px: Array
    second_px: Array
    confidence: Array

    def __len__(self) -> int:
        return len(self.first_px)

    def reversed(self) -> "PlaceMatches":
        """The same pair in the other order."""
        return PlaceMatches(self.second_px, self.first_px, self.confidence)


@torch.inference_mode()
def mutual_nearest(first: Tensor, second: Tensor, min_cosine: float = MIN_COSINE) -> tuple[Tensor, Tensor]:
    """Of pairs of sets of unit descriptors (B, N, D) and (B, M, D): each one's partner (B, N), -1 for none, and the cosine (B, N).

    Partners are each other's nearest and at least `min_cosine` alike. Rows of zeros, which fill up shorter sets, have none.
    """
    cosine = first @ second.mT
    if not cosine.numel():
        return torch.full(first.shape[:2], -1, device=first.device), first.new_zeros(first.shape[:2])
    best, there = cosine.max(2)
    back = cosine.argmax(1)
    own = torch.arange(first.shape[1], device=first.device)
    mutual = (back.gather(1, there) == own) & (best > max(min_cosine, 0.0))
    return torch.where(mutual, there, -1), best


def match_keypoints(features: Sequence[Keypoints], pairs: Sequence[tuple[int, int]], min_cosine: float = MIN_COSINE) -> list[Array]:
    """For each pair of images (N, 2) int64 rows of their keypoints that match; batched on the device that holds them."""
    if not pairs:
        return []
    longest = max(1, *(len(f) for f in features))
    size = max(1, _PRODUCTS // longest**2) if features[0].px.device.type == "cuda" else 1

    def work(chunk: Sequence[tuple[int, int]]) -> list[Array]:
        first, second = (_filled([features[pair[side]].descriptors for pair in chunk]) for side in (0, 1))
        partners = mutual_nearest(first, second, min_cosine)[0].cpu().numpy()
        return [np.column_stack([np.flatnonzero(row >= 0), row[row >= 0]]).astype(np.int64) for row in partners]

    return in_chunks(work, pairs, size, "matching of features")


def hopeful(features: Sequence[Keypoints], pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The pairs of images that are worth a closer look, and how many of their most reliable keypoints match: a millisecond a pair."""
    few = [own.best(_FEW) for own in features]
    return {pair: len(rows) for pair, rows in zip(pairs, match_keypoints(few, pairs), strict=True) if len(rows) >= _HOPEFUL}


def _filled(descriptors: list[Tensor]) -> Tensor:
    """(B, N, D) sets of descriptors, rows of zeros after the shorter ones."""
    if len(descriptors) == 1:
        return descriptors[0][None]
    return torch.nn.utils.rnn.pad_sequence(descriptors, batch_first=True)


@torch.inference_mode()
def match_cells(network: XFeatNetwork, first: Cells, second: Cells, min_cosine: float = MIN_COSINE) -> PlaceMatches:
    """Semi-dense matches of two images: cells that are each other's nearest, refined to parts of a pixel in the first image.

    The head tells where in the first one's cell the centre of the second one's lies.
    """
    unit = [functional.normalize(cells.descriptors, dim=-1)[None] for cells in (first, second)]
    partner = mutual_nearest(unit[0], unit[1], min_cosine)[0][0]
    rows = (partner >= 0).nonzero()[:, 0]
    partner = partner[rows]
    logits = network.refine(first.descriptors[rows], second.descriptors[partner])
    offset, confidence = _expected_offset(logits)
    sure = confidence > _MIN_CONFIDENCE
    a = (first.corner_px[rows] + offset * first.px_of_net)[sure]
    b = (second.corner_px[partner] + 0.5 * CELL * second.px_of_net)[sure]
    return PlaceMatches(*(value.float().cpu().numpy() for value in (a, b, confidence[sure])))


def _expected_offset(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) mean place x, y within a cell, in the network's pixels from its corner, and the largest probability (N,); of logits (N, 64).

    The network was taught the floor of places counted from the centre of the cell's first pixel, so that its answer k stands for k + 1
    from the corner in the mean. Measured with shifted and zoomed copies of images: with it, and the second image's centre as the place
    sought, matches are off by less than 0.4 px in the mean.
    """
    share = (_SHARPNESS * logits).softmax(-1)
    index = torch.arange(CELL, device=logits.device, dtype=logits.dtype) + 1.0
    grid = share.view(-1, CELL, CELL)
    return torch.stack([grid.sum(1) @ index, grid.sum(2) @ index], -1), share.amax(-1)


def same_place(first: Keypoints, second: Keypoints) -> int:
    """How many matches of two images agree with one camera motion, 0 where chance explains them: more than 0 is one place.

    Images may be of different clips and cameras: a fundamental matrix is fitted (MAGSAC), no focal length is needed.
    """
    (rows,) = match_keypoints([first, second], [(0, 1)])
    a, b = first.px[rows[:, 0]].cpu().numpy(), second.px[rows[:, 1]].cpu().numpy()
    return int(verified(a, b).sum())


def verified(first_px: Array, second_px: Array) -> Array:
    """(N,) bool: matches (N, 2) in pixels that agree with one fundamental matrix; none where these are too few to be more than chance."""
    none = np.zeros(len(first_px), bool)
    if len(first_px) < SAME_PLACE:
        return none
    cv2.setRNGSeed(0)
    _, inliers = cv2.findFundamentalMat(first_px, second_px, cv2.USAC_MAGSAC, _INLIER_PX, 0.999, 2000)
    if inliers is None or inliers.sum() < max(SAME_PLACE, MIN_SHARE * len(first_px)):
        return none
    kept: Array = inliers[:, 0] > 0
    return kept
