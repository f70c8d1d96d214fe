"""Edge-aware filling and smoothing of inverse depth, and weights that detect its outliers. Pure functions on numpy arrays.

The smoother is separable weighted least squares (Min et al., "Fast Global Image Smoothing Based on Weighted Least Squares", 2014):
1D tridiagonal systems along rows and columns whose coupling falls off with colour difference. Inverse depth, because it is linear
in the image on a plane, and because noise of a triangulated point is about constant in it.
"""

import cv2
import numpy as np
from numba import njit

from utils.types import Array

# Colour difference (0..255, L1 over channels) at which the coupling of neighbouring pixels has fallen to 1/e.
_COLOR_SIGMA = 12.0
# Passes over rows and columns; the coupling falls by four each time, which removes the streaks of a single pass.
_PASSES = 3
# Window, and standard deviation as a share of the mean at which the weight is halved: flow without texture scatters.
_SCATTER_WINDOW, _SCATTER = 9, 0.05
# Smoothing that residuals are taken against, and the Geman-McClure scale of these residuals, relative: there the weight is a quarter.
_ROBUST_STRENGTH, _ROBUST_SCALE = 60.0, 0.1
# Depth edges: deviation of 1/z from its mean over this window, relative, at which the weight is halved.
_BEND_WINDOW, _BEND = 9, 0.02


def edge_couplings(image: Array, sigma: float = _COLOR_SIGMA) -> tuple[Array, Array]:
    """Coupling 0..1 of each pixel with its right and its lower neighbour, (H, W) float32 each; 0 beyond the border."""
    smooth = image.astype(np.float32)
    right = np.zeros(image.shape[:2], np.float32)
    down = np.zeros(image.shape[:2], np.float32)
    right[:, :-1] = np.exp(-np.abs(np.diff(smooth, axis=1)).sum(-1) / sigma)
    down[:-1] = np.exp(-np.abs(np.diff(smooth, axis=0)).sum(-1) / sigma)
    # A floor lets values cross edges into regions that hold none.
    return np.maximum(right, 1e-3), np.maximum(down, 1e-3)


def fill_and_smooth(value: Array, weight: Array, couplings: tuple[Array, Array], strength: float) -> tuple[Array, Array]:
    """`value` smoothed where it is weak and interpolated where it has no weight, and the smoothed weight.

    Minimises sum weight (x - value)^2 + strength sum coupling (x_a - x_b)^2, one axis at a time.

    Args:
        value: (H, W) float32, anything where the weight is 0.
        weight: (H, W) float32, 0 = unknown.
        couplings: see `edge_couplings`.
        strength: larger is smoother; about the squared radius in pixels over which a weight of 1 is spread.

    Returns:
        (H, W) float32 value, and (H, W) float32 how much weight reached each pixel.
    """
    right, down = couplings
    top = np.where(weight > 0, weight * value, 0).astype(np.float32)
    bottom = weight.astype(np.float32)
    for step in range(_PASSES):
        scale = np.float32(strength * 4.0 ** (_PASSES - 1 - step) * 3.0 / (4.0**_PASSES - 1.0))
        top, bottom = _solve_rows(top, bottom, right, scale)
        down_t = np.ascontiguousarray(down.T)
        top_t, bottom_t = _solve_rows(np.ascontiguousarray(top.T), np.ascontiguousarray(bottom.T), down_t, scale)
        top, bottom = np.ascontiguousarray(top_t.T), np.ascontiguousarray(bottom_t.T)
    return top / np.maximum(bottom, np.float32(1e-20)), bottom


def fill_layers(value: Array, weight: Array, couplings: tuple[Array, Array], strength: float) -> Array:
    """`fill_and_smooth` of the weighted mean of several layers, the value only.

    Args:
        value: (L, H, W) float32.
        weight: (L, H, W) float32.
        couplings: see `edge_couplings`.
        strength: see `fill_and_smooth`.
    """
    total = weight.sum(0)
    mean = (weight * value).sum(0) / np.maximum(total, 1e-12)
    return fill_and_smooth(mean.astype(np.float32), total.astype(np.float32), couplings, strength)[0]


def fill_robust(value: Array, weight: Array, couplings: tuple[Array, Array], strength: float) -> Array:
    """`fill_layers` with one IRLS step: Geman-McClure weights of each layer's residuals to its surroundings."""
    around = fill_layers(value, weight, couplings, _ROBUST_STRENGTH)
    # Where nothing is known around, it is 0; a residual beyond 1e6 has no weight anyway, and its power would overflow.
    residual = np.clip((value - around) / (_ROBUST_SCALE * np.maximum(around, 1e-9)), -1e6, 1e6)
    return fill_layers(value, weight / (1 + residual * residual) ** 2, couplings, strength)


def scatter_weight(value: Array, weight: Array) -> Array:
    """(H, W) float32 weight near 1 where weighted values (H, W) vary smoothly, towards 0 where their local variance is large."""
    window = (_SCATTER_WINDOW, _SCATTER_WINDOW)
    exact, share = value.astype(np.float64), weight.astype(np.float64)
    total = np.maximum(cv2.blur(share, window), 1e-12)
    mean = cv2.blur(share * exact, window) / total
    variance = np.maximum(cv2.blur(share * exact * exact, window) / total - mean * mean, 0)
    return (1 / (1 + (variance / np.maximum((_SCATTER * mean) ** 2, 1e-18)) ** 2)).astype(np.float32)


def planarity(inverse: Array) -> Array:
    """(H, W) float32 near 1 where inverse depth is locally planar, towards 0 beside depth edges, over which flow smears."""
    bend = np.abs(cv2.blur(inverse, (_BEND_WINDOW, _BEND_WINDOW)) - inverse) / np.maximum(inverse, 1e-9)
    reach = cv2.dilate(bend.astype(np.float32), np.ones((5, 5), np.uint8))
    return 1 / (1 + (reach / _BEND) ** 2)


@njit(nogil=True, cache=True)
def _solve_rows(top: Array, bottom: Array, right: Array, strength: np.float32) -> tuple[Array, Array]:
    """Both arrays smoothed along their rows: (I + strength L) x = b by the Thomas algorithm."""
    height, width = top.shape
    out_top, out_bottom = np.empty_like(top), np.empty_like(bottom)
    for y in range(height):
        gain = np.empty(width, np.float32)
        before = np.float32(0.0)
        for x in range(width):
            after = strength * right[y, x] if x + 1 < width else np.float32(0.0)
            diagonal = np.float32(1.0) + before + after
            if x > 0:
                diagonal -= before * gain[x - 1]
                out_top[y, x] = (top[y, x] + before * out_top[y, x - 1]) / diagonal
                out_bottom[y, x] = (bottom[y, x] + before * out_bottom[y, x - 1]) / diagonal
            else:
                out_top[y, x] = top[y, x] / diagonal
                out_bottom[y, x] = bottom[y, x] / diagonal
            gain[x] = after / diagonal
            before = after
        for back in range(1, width):
            x = width - 1 - back
            out_top[y, x] += gain[x] * out_top[y, x + 1]
            out_bottom[y, x] += gain[x] * out_bottom[y, x + 1]
    return out_top, out_bottom
