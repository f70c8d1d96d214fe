"""Images at another size, by one good filter: Lanczos with three lobes, on sRGB values, stretched where it shrinks so that nothing aliases.

Against the box filter and against itself in linear light it gives back the original best when it is enlarged again (RESULTS.md, Inputs);
OpenCV's cubic keeps more Laplacian variance, which is aliasing: it does not stretch. An image is resampled once, from its source.
"""

from functools import lru_cache

import numpy as np
from scipy.sparse import csr_matrix

from utils.types import Array

_LOBES = 3


@lru_cache(maxsize=64)
def _weights(source: int, target: int) -> csr_matrix:
    """(target, source) weights of the source's pixels in each of the target's; pixel centres at +0.5, borders cut off and normalised."""
    scale = target / source
    stretch = min(1.0, scale)
    reach = _LOBES / stretch
    centre = (np.arange(target) + 0.5) / scale - 0.5
    taps = np.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 2)
    at = np.floor(centre).astype(np.int64)[:, None] + taps[None]
    away = (at - centre[:, None]) * stretch
    weight = np.where(np.abs(away) < _LOBES, np.sinc(away) * np.sinc(away / _LOBES), 0)
    weight[(at < 0) | (at >= source)] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(target), len(taps))
    keep = weight.ravel() != 0
    return csr_matrix((weight.ravel()[keep].astype(np.float32), (rows[keep], at.ravel()[keep])), shape=(target, source))


def resized(image: Array, size: tuple[int, int]) -> Array:
    """(H, W, C) uint8 image of (h, w, C) uint8 at another size; the image itself if that is its own."""
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return image
    lines = _weights(height, size[0]) @ image.reshape(height, -1).astype(np.float32)
    lines = lines.reshape(size[0], width, channels).transpose(1, 0, 2).reshape(width, -1)
    pixels = _weights(width, size[1]) @ lines
    return np.ascontiguousarray((np.clip(pixels, 0, 255) + 0.5).astype(np.uint8).reshape(size[1], size[0], channels).transpose(1, 0, 2))
