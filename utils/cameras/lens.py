"""Lens distortion of real footage: one radial term, taken out of the frames before anything is measured in them.

Distorted = undistorted * (1 + k r^2), r the undistorted distance from the optical axis in focal lengths (COLMAP's SIMPLE_RADIAL, OpenCV's
k1). The optical axis goes through the middle of the image. Pixel centres at +0.5.
"""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from utils.errors import ConfigError
from utils.types import Array


@dataclass(frozen=True)
class Lens:
    """A camera's distortion.

    Attributes:
        focal: in longest sides of the image.
        k: radial coefficient; negative is barrel distortion, which wide lenses have.
    """

    focal: float
    k: float
    # Beyond this coefficient the model folds the image over itself within the view.
    STRONGEST: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        if not self.focal > 0 or not abs(self.k) <= self.STRONGEST:
            raise ConfigError(
                f"lens {self.focal:g},{self.k:g} is implausible",
                f"give focal length (in longest sides) and radial coefficient (at most {self.STRONGEST}), for example 0.82,-0.03",
            )

    def enlarged(self, size: tuple[int, int]) -> float:
        """Focal length of the undistorted image over the original's, so that a pincushion's corners stay filled."""
        corner = (np.hypot(*size) / 2 / (self.focal * max(size))) ** 2
        return 1.0 + max(self.k, 0.0) * float(corner)

    def as_camera(self, focal: float, size: tuple[int, int]) -> tuple[float, float]:
        """Focal length in pixels and k1 of the original image, whose undistorted image was found to have the focal length given.

        That one may differ a little from the lens's own; then rays do too, and the coefficient, which counts in squared rays, with them.
        """
        ratio = self.focal * max(size) * self.enlarged(size) / focal
        return self.focal * max(size) / ratio, self.k / ratio**2

    def sources(self, size: tuple[int, int]) -> Array:
        """(h, w, 2) float32: for each pixel of the undistorted image its pixel coordinate in the original."""
        height, width = size
        focal = self.focal * max(size)
        x = (np.arange(width) + 0.5 - width / 2) / (focal * self.enlarged(size))
        y = (np.arange(height) + 0.5 - height / 2) / (focal * self.enlarged(size))
        stretch = 1 + self.k * (x[None] ** 2 + y[:, None] ** 2)
        return np.stack([x[None] * stretch * focal + width / 2, y[:, None] * stretch * focal + height / 2], -1).astype(np.float32)

    def undistorted(self, image: Array, *, nearest: bool = False) -> Array:
        """The image (h, w[, C]) as a camera without distortion would show it, at the same size."""
        at = self.sources(image.shape[:2]) - np.float32(0.5)
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.remap(image, at[..., 0], at[..., 1], how, borderMode=cv2.BORDER_REPLICATE)


def parse_lens(text: str) -> Lens:
    """The lens of "FOCAL,K".

    Raises:
        ConfigError: anything else.
    """
    try:
        focal, k = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"lens '{text}' is not understood", "give none, estimate, or focal length and coefficient such as 0.82,-0.03"
        ) from None
    return Lens(focal, k)
