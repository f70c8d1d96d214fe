"""Image quality and multi-view consistency numbers, each with its unit.

Images are (h, w, 3) sRGB, uint8 or float 0..1. Depth is camera z, 0 where nothing was rendered. Flow is (h, w, 2) in pixels:
the content of pixel p in image a lies at p + flow[p] in image b.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from utils.errors import MissingDependencyError
from utils.types import Array

_SSIM_SIGMA = 1.5
_SSIM_WINDOW = 11
_FORWARD_BACKWARD_PX = 1.5
_ALEXNET_WEIGHTS = "alexnet-owt-7be5be79.pth"


def as_float(image: Array) -> Array:
    """The image as float64 in 0..1."""
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255.0
    return np.clip(image.astype(np.float64), 0.0, 1.0)


def as_uint8(image: Array) -> Array:
    """The image as uint8, rounded."""
    if image.dtype == np.uint8:
        return image
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def psnr(image: Array, reference: Array, mask: Array | None = None) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; 100 where the images are equal.

    Args:
        image: (h, w, 3).
        reference: (h, w, 3).
        mask: (h, w) bool, pixels that count; all of them without it.
    """
    squared = (as_float(image) - as_float(reference)) ** 2
    mse = float(squared.mean() if mask is None else squared[mask].mean())
    return float(min(100.0, -10.0 * np.log10(max(mse, 1e-10))))


def ssim(image: Array, reference: Array, mask: Array | None = None) -> float:
    """Mean structural similarity, -1..1 (Wang et al. 2004), per channel.

    Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03; only windows that lie inside the image count.

    Args:
        image: (h, w, 3).
        reference: (h, w, 3).
        mask: (h, w) bool, pixels whose windows count; all of them without it.
    """
    a, b = as_float(image), as_float(reference)

    def blur(x: Array) -> Array:
        return cv2.GaussianBlur(x, (_SSIM_WINDOW, _SSIM_WINDOW), _SSIM_SIGMA)

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    border = _SSIM_WINDOW // 2
    inside = (slice(border, -border), slice(border, -border)) if min(score.shape[:2]) > 2 * border else (slice(None), slice(None))
    if mask is not None and mask[inside].any():
        return float(score[inside][mask[inside]].mean())
    return float(score[inside].mean())


def sharpness(image: Array, mask: Array | None = None) -> float:
    """Variance of the Laplacian of the grey image, in squared 8-bit grey levels; larger is sharper. Over the mask (h, w) if given."""
    edges = cv2.Laplacian(cv2.cvtColor(as_uint8(image), cv2.COLOR_RGB2GRAY), cv2.CV_64F)
    return float((edges if mask is None else edges[mask]).var())


def dense_flow(image_a: Array, image_b: Array) -> Array:
    """(h, w, 2) float32 optical flow from a to b in pixels (DIS, Kroeger et al. 2016)."""
    grey_a = cv2.cvtColor(as_uint8(image_a), cv2.COLOR_RGB2GRAY)
    grey_b = cv2.cvtColor(as_uint8(image_b), cv2.COLOR_RGB2GRAY)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return dis.calc(grey_a, grey_b, None)


def _sample(image: Array, x: Array, y: Array) -> Array:
    """Bilinear samples at pixel-centre coordinates (x, y); OpenCV counts from the centre of the first pixel."""
    return cv2.remap(image, (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _pixel_centres(size: tuple[int, int]) -> tuple[Array, Array]:
    h, w = size
    return np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)


def round_trip_error(flow_ab: Array, flow_ba: Array) -> Array:
    """(h, w) distance in pixels between a pixel and where it lands after flowing to b and back."""
    x, y = _pixel_centres(flow_ab.shape[:2])
    back = _sample(flow_ba, x + flow_ab[..., 0], y + flow_ab[..., 1])
    return np.linalg.norm(flow_ab + back, axis=-1)


def reprojected_flow(depth_a: Array, depth_b: Array, b_from_a: Array, K_a: Array, K_b: Array) -> tuple[Array, Array]:
    """Flow from a to b that the rendered depth and the two cameras imply, and where it can be trusted.

    A pixel counts if it has depth, lands inside b and is not hidden there (its depth agrees with b's to 5 %).

    Args:
        depth_a: (h, w) camera z.
        depth_b: (h, w) camera z.
        b_from_a: (4, 4), camera b from camera a.
        K_a: (3, 3) pixels.
        K_b: (3, 3) pixels.

    Returns:
        flow (h, w, 2) in pixels and valid (h, w) bool.
    """
    h, w = depth_a.shape
    x, y = _pixel_centres((h, w))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K_a).T
    points = (rays * depth_a[..., None]) @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    z = points[..., 2]
    safe_z = np.where(z > 1e-9, z, 1.0)
    pixel = (points / safe_z[..., None]) @ K_b.T
    inside = (pixel[..., 0] >= 0) & (pixel[..., 0] < w) & (pixel[..., 1] >= 0) & (pixel[..., 1] < h)
    seen = _sample(depth_b.astype(np.float32), pixel[..., 0], pixel[..., 1])
    valid = (depth_a > 0) & (z > 1e-9) & inside & (np.abs(seen - z) < 0.05 * z)
    return np.stack([pixel[..., 0] - x, pixel[..., 1] - y], axis=-1), valid


@dataclass(frozen=True, kw_only=True)
class PairConsistency:
    """How well two neighbouring renders agree with one rigid world.

    Attributes:
        reprojection_px: median distance in pixels between the optical flow and the flow that depth and cameras imply.
        flow_round_trip_px: mean distance in pixels after flowing to the neighbour and back (the photometric consistency of
            WorldScore, Duan et al. 2025).
        flow_photometric: mean absolute colour difference, 0..1, between a pixel and the one its flow leads to.
        coverage: share of the pixels the reprojection was measured on, 0..1.
    """

    reprojection_px: float
    flow_round_trip_px: float
    flow_photometric: float
    coverage: float


def pair_consistency(
    images: tuple[Array, Array], depths: tuple[Array, Array], b_from_a: Array, intrinsics: tuple[Array, Array]
) -> PairConsistency:
    """Consistency of two renders a and b of neighbouring views.

    Args:
        images: two (h, w, 3).
        depths: two (h, w) camera z, 0 where nothing was rendered.
        b_from_a: (4, 4), camera b from camera a.
        intrinsics: two (3, 3) in pixels.
    """
    flow_ab, flow_ba = dense_flow(images[0], images[1]), dense_flow(images[1], images[0])
    round_trip = round_trip_error(flow_ab, flow_ba)
    x, y = _pixel_centres(flow_ab.shape[:2])
    warped = _sample(as_float(images[1]), x + flow_ab[..., 0], y + flow_ab[..., 1])
    difference = np.abs(warped - as_float(images[0])).mean(axis=-1)
    expected, valid = reprojected_flow(depths[0], depths[1], b_from_a, intrinsics[0], intrinsics[1])
    # Where the flow does not return it is wrong (hidden or out of view) and says nothing about the world.
    consistent = round_trip < _FORWARD_BACKWARD_PX
    use = valid & consistent
    error = np.linalg.norm(flow_ab - expected, axis=-1)
    return PairConsistency(
        reprojection_px=float(np.median(error[use])) if use.any() else float("nan"),
        flow_round_trip_px=float(round_trip.mean()),
        flow_photometric=float(difference[consistent].mean()) if consistent.any() else float("nan"),
        coverage=float(use.mean()),
    )


class PerceptualDistance(Protocol):
    """Distance of two (h, w, 3) images, 0 for equal ones."""

    def __call__(self, image: Array, reference: Array) -> float:
        """The distance."""
        ...


class Lpips:
    """LPIPS (Zhang et al. 2018) with the AlexNet backbone.

    Raises:
        MissingDependencyError: the package or the weights of its backbone are not on this machine. Nothing is downloaded.
    """

    def __init__(self) -> None:
        try:
            import lpips
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"LPIPS needs the package '{error.name}', which is not installed",
                "pip install -e '.[lpips]' in this program's folder, or do without LPIPS",
            ) from error
        weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET_WEIGHTS
        if not weights.is_file():  # the package would fetch them
            raise MissingDependencyError(
                f"LPIPS needs AlexNet's weights at {weights}",
                f"get them from https://download.pytorch.org/models/{_ALEXNET_WEIGHTS}, or do without LPIPS",
            )
        network = lpips.LPIPS(net="alex", verbose=False)
        self._network = network.eval()

    @torch.no_grad()
    def __call__(self, image: Array, reference: Array) -> float:
        """LPIPS of the two images."""
        pair = [torch.from_numpy(as_float(x)).float().permute(2, 0, 1)[None] * 2 - 1 for x in (image, reference)]
        return float(self._network(*pair))
