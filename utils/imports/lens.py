"""Lenses of other programs' camera models, taken out of a picture by sampling it where each pixel of a pinhole is seen.

The models are COLMAP's, computed by pycolmap; nerfstudio's and instant-ngp's are among them. Pixel centres at +0.5.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from utils.errors import ArtifactError
from utils.types import Array

# Models that show more than a pinhole can.
_ALL_AROUND = ("EQUIRECTANGULAR",)


@dataclass(frozen=True)
class ImportedLens:
    """A camera model and its parameters, in pixels of an image of one size.

    Attributes:
        model: COLMAP's name.
        params: its parameters, in COLMAP's order.
        size: (h, w) of the image.
    """

    model: str
    params: tuple[float, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.model in _ALL_AROUND:
            raise ArtifactError(f"the camera model {self.model} shows all around", "cut perspective views out of the panorama first")
        known = camera_models()
        if self.model not in known:
            raise ArtifactError(
                f"the camera model {self.model} is not known", f"undistort the images first, or use one of: {', '.join(sorted(known))}"
            )
        if len(self.params) != known[self.model]:
            raise ArtifactError(
                f"the camera model {self.model} has {known[self.model]} parameters, not {len(self.params)}", "export the cameras again"
            )
        if not np.isfinite(self.params).all() or not (np.abs(self.params) < 1e9).all():
            raise ArtifactError(f"a camera of the model {self.model} has parameters {self.params}", "export the cameras again")
        (fx, _, cx), (_, fy, cy), _ = self.K
        longest = max(self.size)
        if min(self.size) < 1 or not 1e-3 * longest < min(fx, fy) <= max(fx, fy) < 1e4 * longest:
            raise ArtifactError(
                f"a camera has focal lengths {fx:g}, {fy:g} px for a picture of {self.size[1]}x{self.size[0]}", "export the cameras again"
            )
        if max(abs(cx / self.size[1] - 0.5), abs(cy / self.size[0] - 0.5)) > 10:
            raise ArtifactError(f"a camera has its principal point at {cx:g}, {cy:g}, far outside the picture", "export the cameras again")

    @cached_property
    def _camera(self) -> Any:
        import pycolmap

        return pycolmap.Camera(model=self.model, width=self.size[1], height=self.size[0], params=list(self.params))

    @cached_property
    def K(self) -> Array:
        """(3, 3) intrinsics without distortion."""
        return np.asarray(self._camera.calibration_matrix(), np.float64)

    @property
    def plain(self) -> bool:
        """A pinhole."""
        extra = [self.params[i] for i in self._camera.extra_params_idxs()]
        bends = self.model in ("FISHEYE", "SIMPLE_FISHEYE", "EUCM") or any(extra)
        return not bends

    def seen_at(self, K: Array, size: tuple[int, int]) -> Array:
        """(h, w, 2) float32: for every pixel of a pinhole's picture where this lens shows it, as shares of its own picture.

        Args:
            K: of the pinhole, in pixels of `size`.
            size: (h, w) of its picture.
        """
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones(x.shape)], -1).reshape(-1, 3)
        pixels = np.asarray(self._camera.img_from_cam(rays), np.float64)
        lost = ~np.isfinite(pixels).all(axis=1) | self._folded(rays)
        pixels[lost] = -1e6
        return (pixels / [self.size[1], self.size[0]]).reshape(*size, 2).astype(np.float32)

    def _folded(self, rays: Array) -> Array:
        """(M,) rays beyond the angle up to which the model goes outwards: a polynomial turns back somewhere."""
        slope = np.hypot(rays[:, 0], rays[:, 1])
        steps = np.linspace(0, max(float(slope.max()), 1e-6), 512)
        probe = np.stack([steps, np.zeros_like(steps), np.ones_like(steps)], -1)
        reach = np.asarray(self._camera.img_from_cam(probe))[:, 0]
        turns = np.flatnonzero(~(np.diff(reach) > 0))
        return slope > (steps[turns[0]] if len(turns) else np.inf)


def camera_models() -> dict[str, int]:
    """COLMAP's camera models and how many parameters each has."""
    import pycolmap

    names = [name for name in dir(pycolmap.CameraModelId) if name.isupper() and name != "INVALID"]
    return {name: len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 1, 1).params) for name in names}


def through(at: Array, image: Array, *, nearest: bool = False) -> tuple[Array, Array]:
    """The picture of a pinhole from that of a lens, and (h, w) bool where it shows anything.

    Args:
        at: (h, w, 2) of `ImportedLens.seen_at`.
        image: (h', w'[, C]) the lens's picture, at any size.
        nearest: pick values instead of mixing them.
    """
    height, width = image.shape[:2]
    x, y = at[..., 0] * width - np.float32(0.5), at[..., 1] * height - np.float32(0.5)
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    # Beside the picture its edge goes on; what is not inside is masked by the caller.
    return cv2.remap(image, x, y, how, borderMode=cv2.BORDER_REPLICATE), inside
