"""SIFT features (OpenCV) and their matches: mutual nearest neighbours that are clearly nearer than the second nearest.

Descriptors are square roots of normalised histograms (Arandjelovic and Zisserman, "Three things everyone should know to improve object
retrieval", CVPR 2012) as whole numbers below 128. So their products are exact, in integers as in float32, and a GPU and any number of cores
find the same matches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from utils.device.accelerator import accelerator, in_chunks
from utils.runtime import in_threads
from utils.types import Array

# Contrast and curvature that a feature needs, of OpenCV for three layers an octave: the thresholds of COLMAP. Most features of a picture.
_CONTRAST, _CURVATURE, _MOST = 0.02, 10.0, 8192
# Layers of an octave, and blur (pixels) of its first. With the usual 1.6 a sixth fewer features are matched than of COLMAP's detector; with
# 1.5 as many, as exactly placed (0.05 px between turned and zoomed copies of pictures), in a fourth of its time.
_LAYERS, _BLUR = 3, 1.5
# Grey of Rec. 709 parts colours better than OpenCV's own.
_GREY = np.array([[0.2126, 0.7152, 0.0722]])
# Pictures go on beyond their edge by so many pixels: OpenCV finds nothing near it, in coarse octaves for many pixels.
_EDGE_PX = 16
# Length of a descriptor: nearly all of its numbers stay below 128.
_UNIT = 256
# Largest angle between descriptors (radians) of a match, and its largest ratio to that of the second nearest; COLMAP's.
_MOST_ANGLE, _MOST_RATIO = 0.7, 0.8
# Products of a batch of pairs on a GPU: 0.8 GB.
_PRODUCTS = 200_000_000


@dataclass(frozen=True, eq=False)
class SiftFeatures:
    """Features of one picture.

    Attributes:
        px: (N, 2) float32 x, y, pixel centres at +0.5.
        shape: (N, 2) float32 diameter in pixels and orientation in radians.
        descriptors: (N, 128) int8, about `_UNIT` long.
    """

    px: Array
    shape: Array
    descriptors: Array

    def __len__(self) -> int:
        return len(self.px)

    @property
    def unit_descriptors(self) -> Array:
        """(N, 128) float32 of unit length."""
        return self.descriptors / np.float32(_UNIT)


def sift_features(images: Iterable[Array], keep: Iterable[Array] | None = None) -> list[SiftFeatures]:
    """Features of images (h, w, 3) uint8, the finest from pictures of twice their size.

    Args:
        images: the pictures.
        keep: (h, w) bool for each, where features may lie; None: everywhere.
    """
    images = list(images)
    return in_threads(_features, images, [None] * len(images) if keep is None else keep)


def _features(image: Array, keep: Array | None) -> SiftFeatures:
    gray = cv2.transform(image, _GREY)
    height, width = gray.shape
    inside = np.full((height, width), 255, np.uint8) if keep is None else keep.astype(np.uint8) * 255
    padding = (_EDGE_PX,) * 4
    # One detector for each picture: it keeps what it works on.
    sift = cv2.SIFT.create(_MOST, _LAYERS, _CONTRAST, _CURVATURE, _BLUR, True)
    found, descriptors = sift.detectAndCompute(
        cv2.copyMakeBorder(gray, *padding, cv2.BORDER_REPLICATE), cv2.copyMakeBorder(inside, *padding, cv2.BORDER_CONSTANT, value=0)
    )
    if not found:
        return SiftFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros((0, 128), np.int8))
    px = np.array([own.pt for own in found], np.float32) + np.float32(0.5 - _EDGE_PX)
    shape = np.array([(own.size, np.radians(own.angle)) for own in found], np.float32)
    share = descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9)
    return SiftFeatures(px, shape, np.minimum(np.sqrt(share) * _UNIT + 0.5, 127).astype(np.int8))


def match_sift(features: Sequence[SiftFeatures], pairs: Sequence[tuple[int, int]]) -> list[Array]:
    """For each pair of pictures (N, 2) int64 rows of their features that match."""
    device = accelerator()
    if device is not None:
        return _match_in_batches(features, pairs, device)
    return [_match(*(torch.from_numpy(features[k].descriptors) for k in pair)) for pair in pairs]


def _match(first: Tensor, second: Tensor) -> Array:
    """(N, 2) matches of two sets of descriptors on the CPU; NumPy's argmax is ten times as fast as PyTorch's."""
    if not len(first) or len(second) < 2:
        return np.zeros((0, 2), np.int64)
    products = _products(first, second).numpy()
    there = products.argmax(1)
    best = products[np.arange(len(first)), there]
    rows = np.flatnonzero((best >= np.floor(np.cos(_MOST_ANGLE) * _UNIT**2)) & (best == products.max(0)[there]))
    others = products[rows]
    others[np.arange(len(rows)), there[rows]] = 0
    # Where two are equally near, they are not clear, whichever comes back.
    clear = rows[_is_clear(torch.from_numpy(best[rows]), torch.from_numpy(others.max(1))).numpy()]
    return np.column_stack([clear, there[clear]])


def _products(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) products of descriptors, by the CPU's instructions for bytes if it has them: ten times as fast as in float32."""
    if _has_byte_products():
        return torch._int_mm(first, second.mT)
    return first.float() @ second.float().mT


@cache
def _has_byte_products() -> bool:
    """Whether PyTorch multiplies bytes quickly here; it says so by functions that may change their names."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return supported is not None and hasattr(torch, "_int_mm") and bool(supported())


def _is_clear(best: Tensor, second: Tensor) -> Tensor:
    """Whether products of nearest and second nearest descriptors are those of a match."""
    nearest, other = (torch.arccos((product.double() / _UNIT**2).clamp(max=1)) for product in (best, second))
    return (nearest <= _MOST_ANGLE) & (nearest < _MOST_RATIO * other)


def _match_in_batches(features: Sequence[SiftFeatures], pairs: Sequence[tuple[int, int]], device: torch.device) -> list[Array]:
    """`match_sift` on a device."""
    sets = [torch.from_numpy(own.descriptors).to(device).float() for own in features]
    size = max(1, _PRODUCTS // max(1, *(len(own) for own in features)) ** 2)

    def work(chunk: Sequence[tuple[int, int]]) -> list[Array]:
        first, second = (pad_sequence([sets[pair[side]] for pair in chunk], batch_first=True) for side in (0, 1))
        partners = _partners(first, second).cpu().numpy()
        return [np.column_stack([np.flatnonzero(row >= 0), row[row >= 0]]) for row in partners]

    return in_chunks(work, pairs, size, "matching of features")


@torch.inference_mode()
def _partners(first: Tensor, second: Tensor) -> Tensor:
    """(B, N) partner of each of the first descriptors (B, N, D) among the second (B, M, D), -1 for none; rows of zeros have none."""
    if first.shape[1] == 0 or second.shape[1] < 2:
        return torch.full(first.shape[:2], -1, device=first.device)
    products = first @ second.mT
    best, there = products.topk(2, dim=2)
    back = products.amax(1).gather(1, there[..., 0]) == best[..., 0]
    return torch.where(back & _is_clear(best[..., 0], best[..., 1]), there[..., 0], -1)
