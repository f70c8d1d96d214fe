"""Estimates lens distortion and rolling shutter of a captured clip from the clip itself (self-calibration in bundle adjustment)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from utils.cameras.lens import Lens
from utils.errors import GeometryError
from utils.geometry_backend import SparseModel
from utils.scene.captured import CapturedCamera, motion_at, read_share
from utils.sfm.mapping import FOCAL_RANGE, adjusted, by_point, focal_prior, hosted, hosted_values, map_distorted
from utils.sfm.solvers.dense_bundle_adjustment import Bundle, CameraFaults, Matches, adjust, straight_rays
from utils.types import Array, Reporter

# Standard deviations of what cameras have: most lenses are corrected, and most pictures are read within the frame's interval.
_K_SIGMA, _READOUT_SIGMA = 0.1, 0.5
# A readout below this moves no pixel by anything that can be measured.
_LEAST_READOUT = 0.02
_STEPS = 60
# Observations that a frame is worth: who asks for the camera says that the clip is captured, so its frames do not contradict each other.
_WORTH = 30


def estimate_camera(
    images: Array, motion: Callable[[int], Array] | None, *, seed: int, report: Reporter, keep: Array | None = None
) -> tuple[CapturedCamera, SparseModel]:
    """Focal length, radial distortion and shutter of the camera that took the images.

    The frames are mapped as if taken by a pinhole. Then poses, points, focal length, distortion and readout are adjusted together. An
    implausible readout is left out and said.

    Args:
        images: (F, h, w, 3).
        motion: gives the motion of each image, see `ClipMotion`; `None` takes the shutter for a global one.
        seed: makes mapping repeatable.
        report: told what was found.
        keep: (F, h, w) bool, pixels that tell the camera's motion; `None` for all.

    Returns:
        The camera, and the sparse model of the images without its lens and shutter: they need not be mapped again.

    Raises:
        GeometryError: too few frames could be placed to tell, or an implausible lens.
    """
    size = (images.shape[1], images.shape[2])
    model = by_point(map_distorted(images, seed=seed, keep=keep))
    matches, start = hosted(model)
    shifts = None if motion is None else _shifts(model, motion, size)
    bundle = _adjusted(model, matches, start, shifts, size)
    if abs(bundle.readout) > 1:
        report.note(f"shutter: a readout of {bundle.readout:+.2f} frame intervals is implausible, it is not taken out")
        bundle = _adjusted(model, matches, start, None, size)
    focal, k = bundle.K[0, 0, 0] / max(size), bundle.k
    if not FOCAL_RANGE[0] <= focal <= FOCAL_RANGE[1] or abs(k) > Lens.STRONGEST:
        raise GeometryError(
            f"the clip does not tell its lens (focal length {focal:.2f} x longest side, distortion {k:+.2f})",
            "give it as FOCAL,K or leave it at none",
        )
    report.note(f"lens: focal {focal:.3f} x longest side, radial distortion {k:+.4f}")
    camera = CapturedCamera(Lens(focal=float(focal), k=k), bundle.readout if abs(bundle.readout) >= _LEAST_READOUT else 0.0)
    return camera, _straightened(model, bundle, shifts, camera, size)


def _straightened(model: SparseModel, bundle: Bundle, shifts: Array | None, camera: CapturedCamera, size: tuple[int, int]) -> SparseModel:
    """The adjusted model with its observations where the straightened images show them."""
    seen = model.seen_at if shifts is None else model.seen_at - camera.readout * shifts
    K = bundle.K.copy()  # one for all frames
    K[:, [0, 1], [0, 1]] *= camera.lens.enlarged(size)
    seen = straight_rays(seen, bundle.K[0], bundle.k) * K[0, [0, 1], [0, 1]] + K[0, :2, 2]
    return adjusted(replace(model, seen_at=seen), replace(bundle, K=K))


def _shifts(model: SparseModel, motion: Callable[[int], Array], size: tuple[int, int]) -> Array:
    """(M, 2) how far the model's observations are displaced by a readout of one frame interval."""
    shifts = np.zeros_like(model.seen_at)
    for row, frame in enumerate(model.frames):
        mine = model.seen_by == row
        at = model.seen_at[mine]
        shifts[mine] = read_share(at, size)[:, None] * motion_at(motion(int(frame)), at, size)
    return shifts


def _adjusted(model: SparseModel, matches: Matches, start: Array, shifts: Array | None, size: tuple[int, int]) -> Bundle:
    """The sparse model with lens and, if there are shifts, shutter."""
    prior = focal_prior(max(size), _WORTH * len(model.frames))
    host, target = (np.zeros_like(matches.host_px),) * 2 if shifts is None else hosted_values(model, shifts)
    faults = CameraFaults(
        host_shift=host, target_shift=target, k_sigma=_K_SIGMA, readout_sigma=_READOUT_SIGMA, independent=prior.independent
    )
    return adjust(model.w2c, model.K, matches, start, focal=prior, steps=_STEPS, faults=faults)
