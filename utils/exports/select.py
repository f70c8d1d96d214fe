"""What is exported and how it stands: the most important splats, and the world turned upright and scaled."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat, quat_multiply
from utils.errors import GeometryError
from utils.types import Array, CameraSet, Splats

# Where "up" points in the exported file, by the name users give it.
UP_AXES: dict[str, tuple[float, float, float]] = {
    "x": (1, 0, 0),
    "y": (0, 1, 0),
    "z": (0, 0, 1),
    "-x": (-1, 0, 0),
    "-y": (0, -1, 0),
    "-z": (0, 0, -1),
}


def importance(splats: Splats) -> Tensor:
    """(N,) opacity times the area of the two largest axes, in squared scene units: how much of a picture a splat can fill."""
    largest = torch.sort(splats.log_scales, dim=1, descending=True).values[:, :2]
    return torch.sigmoid(splats.logit_opacities) * torch.exp(largest.sum(dim=1))


def most_important(splats: Splats, max_points: int) -> Splats:
    """The `max_points` most important splats in their old order; all of them if `max_points` is not positive."""
    if max_points <= 0 or max_points >= len(splats):
        return splats
    keep = torch.topk(importance(splats), max_points).indices
    return splats.select(torch.sort(keep).values)


def drop_non_finite(splats: Splats) -> Splats:
    """The splats all of whose values are finite."""
    finite = torch.isfinite(splats.means).all(1) & torch.isfinite(splats.quats).all(1)
    finite &= torch.isfinite(splats.log_scales).all(1) & torch.isfinite(splats.logit_opacities)
    finite &= torch.isfinite(splats.sh).all(2).all(1)
    return splats if bool(finite.all()) else splats.select(torch.nonzero(finite)[:, 0])


def draw_in(splats: Splats, eye: Tensor, farthest: float) -> tuple[Splats, int]:
    """The splats with those beyond `farthest` from `eye` moved to that distance along the line of sight, and how many those are.

    They shrink in the same measure, so that from near `eye` the picture stays: a stray splat at a million units would otherwise
    take all of the steps that a quantised format has for positions.
    """
    offset = splats.means - eye
    distance = offset.norm(dim=1)
    share = torch.clamp(farthest / distance.clamp_min(1e-12), max=1.0)
    moved = replace(splats, means=eye + share[:, None] * offset, log_scales=splats.log_scales + torch.log(share)[:, None])
    far = int((distance > farthest).sum())
    return (moved, far) if far else (splats, 0)


def padded_harmonics(splats: Splats, degree: int = 3) -> Splats:
    """The splats with zero coefficients up to `degree`, for readers that know only that many."""
    missing = (degree + 1) ** 2 - splats.sh.shape[1]
    if missing <= 0:
        return splats
    return replace(splats, sh=torch.cat([splats.sh, splats.sh.new_zeros(len(splats), missing, 3)], dim=1))


def scene_up(cameras: CameraSet) -> Array:
    """(3,) unit vector that points up, from how the cameras were held.

    People hold cameras level: the right axes lie in the horizontal plane, so up is the direction they spread least in, with the
    sign of the mean image up. With a single viewing direction that plane is not determined and the mean image up is used.

    Raises:
        GeometryError: the cameras' image up directions cancel.
    """
    mean_up = -cameras.c2w[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(mean_up))
    if length < 1e-6:
        raise GeometryError("the cameras' up directions cancel, so up is unknown", "export with --config.up keep")
    right = cameras.c2w[:, :3, 0]
    _, singular, axes = np.linalg.svd(right, full_matrices=True)
    if len(cameras) < 3 or singular[1] < 0.2 * singular[0]:
        return mean_up / length
    up = axes[2] if axes[2] @ mean_up > 0 else -axes[2]
    # A rolled or hand-held clip can fool the plane fit; the mean image up cannot be that far off.
    return up if up @ mean_up > np.cos(np.radians(30)) * length else mean_up / length


def rotation_between(source: Array, target: Array) -> Array:
    """(3, 3) the smallest rotation that takes unit vector `source` to unit vector `target`."""
    axis = np.cross(source, target)
    cosine = float(source @ target)
    if cosine < -1 + 1e-12:
        helper = np.eye(3)[np.argmin(np.abs(source))]
        axis = np.cross(source, helper)
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def upright(cameras: CameraSet, up: str) -> Array:
    """(3, 3) rotation of the world that turns the scene's up direction to the axis named `up`; identity for "keep"."""
    if up == "keep":
        return np.eye(3)
    return rotation_between(scene_up(cameras), np.array(UP_AXES[up], dtype=np.float64))


def transform_cameras(cameras: CameraSet, rotation: Array, scale: float) -> CameraSet:
    """The cameras in a world that was rotated, then scaled, about the origin."""
    c2w = cameras.c2w.copy()
    c2w[:, :3, :3] = rotation @ c2w[:, :3, :3]
    c2w[:, :3, 3] = scale * cameras.c2w[:, :3, 3] @ rotation.T
    return replace(cameras, c2w=c2w)


def transform_splats(splats: Splats, rotation: Array, scale: float, sh_basis: Callable[[Tensor, int], Tensor]) -> Splats:
    """The splats in a world that was rotated, then scaled, about the origin, with their view-dependent colour.

    Args:
        splats: what to transform.
        rotation: (3, 3).
        scale: positive factor on all lengths.
        sh_basis: (M, 3) unit directions and degree -> (M, B) spherical-harmonic values.
    """
    turn = torch.from_numpy(rotation).to(splats.means)
    return Splats(
        means=scale * splats.means @ turn.T,
        quats=quat_multiply(matrix_to_quat(turn)[None], splats.quats),
        log_scales=splats.log_scales + float(np.log(scale)),
        logit_opacities=splats.logit_opacities,
        sh=rotate_sh(splats.sh, rotation, sh_basis),
    )


def rotate_sh(sh: Tensor, rotation: Array, sh_basis: Callable[[Tensor, int], Tensor]) -> Tensor:
    """(N, B, 3) coefficients of the rotated function: `new(R d) = old(d)` for every direction d.

    Each band maps to itself; its matrix follows from evaluating the basis at enough directions, whatever signs it uses.
    """
    degree = round(sh.shape[1] ** 0.5) - 1
    if degree == 0:
        return sh
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(256, 3, generator=generator, dtype=torch.float64), dim=1)
    turned = directions @ torch.from_numpy(rotation).double().T
    old, new = sh_basis(directions, degree).double(), sh_basis(turned, degree).double()
    bands = [sh[:, :1]]
    for band in range(1, degree + 1):
        columns = slice(band * band, (band + 1) * (band + 1))
        matrix = torch.linalg.lstsq(new[:, columns], old[:, columns]).solution
        bands.append(torch.einsum("ij,njc->nic", matrix.to(sh), sh[:, columns]))
    return torch.cat(bands, dim=1)
