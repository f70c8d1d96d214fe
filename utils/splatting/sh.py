"""View-dependent colour as real spherical harmonics."""

import torch
from torch import Tensor

# Normalisation of the real spherical harmonics, with the signs (Condon-Shortley) of the files that 3DGS programs exchange.
C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)

MAX_DEGREE = 3


def evaluate_sh(sh: Tensor, directions: Tensor, active_degree: int) -> Tensor:
    """Colours (N, 3), `max(0, 0.5 + sum_k sh_k Y_k(direction))`.

    Args:
        sh: (N, B, 3) coefficients, B >= (active_degree + 1)^2; those of higher degrees are left out.
        directions: (N, 3) from the camera's centre to the Gaussian, in the frame of the coefficients; any length.
        active_degree: 0..3.
    """
    bands = (active_degree + 1) ** 2
    if active_degree == 0:
        return torch.clamp_min(0.5 + C0 * sh[:, 0], 0.0)
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=-1), active_degree)
    return torch.clamp_min(0.5 + (basis[:, :, None] * sh[:, :bands]).sum(1), 0.0)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """(N, (degree + 1)^2) values of the real spherical harmonics at unit directions (N, 3)."""
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree {degree} is not in 0..{MAX_DEGREE}")
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    terms = [torch.full_like(x, C0)]
    if degree >= 1:
        terms += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        terms += [C2[0] * x * y, -C2[0] * y * z, C2[1] * (2 * zz - xx - yy), -C2[0] * x * z, C2[2] * (xx - yy)]
    if degree >= 3:
        terms += [
            -C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -C3[2] * x * (4 * zz - xx - yy),
            C3[4] * z * (xx - yy),
            -C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(terms, dim=-1)
