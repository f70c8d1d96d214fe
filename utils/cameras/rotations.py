"""Quaternions (w, x, y, z) and rotation matrices (torch, any batch shape)."""

import torch
from torch import Tensor


def quat_to_matrix(quat: Tensor) -> Tensor:
    """(..., 4) quaternions of any norm -> (..., 3, 3) rotations."""
    w, x, y, z = torch.nn.functional.normalize(quat, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).reshape(*quat.shape[:-1], 3, 3)


def matrix_to_quat(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotations -> (..., 4) unit quaternions (sign arbitrary).

    Shepperd's method: of the four equivalent forms, the one with the largest divisor (J. Guidance and Control 1, 1978).
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.reshape(*matrix.shape[:-2], 9).unbind(-1)
    forms = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20], -1),
            torch.stack([m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = torch.stack([m00 + m11 + m22, m00, m11, m22], -1).argmax(-1)
    chosen = torch.take_along_dim(forms, best[..., None, None].expand(*best.shape, 1, 4), -2)[..., 0, :]
    return torch.nn.functional.normalize(chosen, dim=-1)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of (..., 4): the rotation of b, then that of a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def normal_to_quat(normal: Tensor) -> Tensor:
    """(..., 3) unit normals -> (..., 4) the shortest rotation that takes +z to the normal."""
    x, y, z = normal.unbind(-1)
    w = torch.where(z < 0, (x * x + y * y) / (1 - z), 1 + z)  # alike, but 1 + z loses its digits near -z
    quat = torch.stack([w, -y, x, torch.zeros_like(z)], -1)
    flipped = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=normal.dtype, device=normal.device)  # +z to -z: about x
    quat = torch.where((quat.square().sum(-1) < 1e-12)[..., None], flipped, quat)
    return torch.nn.functional.normalize(quat, dim=-1)
