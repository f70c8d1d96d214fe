"""Splats as PLY, in the property order that viewers and trainers agree on.

`x y z f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3`, float32 little endian; `f_rest` is channel-major (all higher coefficients
of red, then green, then blue), opacity is a logit, scales are logarithms, rotations are wxyz (Kerbl et al. 2023, the layout of
the authors' own files without the unused normals).
"""

from pathlib import Path

import numpy as np
import torch

from utils.errors import CorruptArtifactError
from utils.types import Array, Splats

# A 2DGS disc is given this thickness, as a share of its smaller radius, for viewers that know ellipsoids only.
_DISC_THICKNESS = 0.01


def host(tensor: torch.Tensor) -> Array:
    """The tensor as a float32 array."""
    return tensor.detach().cpu().float().numpy()


def flatten_discs(splats: Splats) -> Splats:
    """Discs as thin ellipsoids: the third scale, which 2DGS ignores, becomes 1 % of the smaller radius."""
    thin = splats.log_scales[:, :2].min(dim=1, keepdim=True).values + float(np.log(_DISC_THICKNESS))
    log_scales = torch.cat([splats.log_scales[:, :2], thin], dim=1)
    return Splats(splats.means, splats.quats, log_scales, splats.logit_opacities, splats.sh)


def splat_property_names(sh_degree: int, *, normals: bool = False) -> list[str]:
    """The vertex properties in file order."""
    rest = 3 * ((sh_degree + 1) ** 2 - 1)
    names = ["x", "y", "z", *(["nx", "ny", "nz"] if normals else [])]
    names += [*(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest))]
    return [*names, "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def write_splat_ply(path: Path, splats: Splats, renderer: str, *, strict: bool = False) -> None:
    """Writes the splats.

    Args:
        path: the file.
        splats: 2DGS splats must have been flattened (`flatten_discs`).
        renderer: "3dgs" or "2dgs"; the latter is marked by a comment that viewers which know it honour.
        strict: as the authors' own files: with their unused normals, all zero, and without comments.
    """
    count = len(splats)
    rest = splats.sh[:, 1:].transpose(1, 2).reshape(count, -1)
    quats = torch.nn.functional.normalize(splats.quats, dim=1)
    unused = splats.means.new_zeros(count, 3 if strict else 0)
    columns = [splats.means, unused, splats.sh[:, 0], rest, splats.logit_opacities[:, None], splats.log_scales, quats]
    table = host(torch.cat([c.detach().float() for c in columns], 1))  # on the device of the splats: one copy to the host
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += ["comment SplatRenderMode: 2dgs"] if renderer == "2dgs" and not strict else []
    lines += [f"element vertex {count}"]
    lines += [f"property float {name}" for name in splat_property_names(splats.sh_degree, normals=strict)]
    header = "\n".join([*lines, "end_header", ""])
    with path.open("wb") as stream:
        stream.write(header.encode("ascii"))
        np.ascontiguousarray(table, dtype="<f4").tofile(stream)


def read_splat_ply(path: Path) -> Splats:
    """Reads what `write_splat_ply` wrote.

    Raises:
        CorruptArtifactError: not such a file.
    """
    head, marker, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii", "replace").splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    counts = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
    degree = round((1 + sum(n.startswith("f_rest_") for n in names) / 3) ** 0.5) - 1
    expected = len(counts) == 1 and bool(marker) and names == splat_property_names(degree)
    if not expected or len(body) != 4 * len(names) * counts[0]:
        raise CorruptArtifactError(f"{path} is not a complete splat PLY", "export it again")
    table = torch.from_numpy(np.frombuffer(body, dtype="<f4").reshape(counts[0], len(names)).copy())
    rest = table[:, 6:-8].reshape(counts[0], 3, -1).transpose(1, 2)
    return Splats(
        means=table[:, :3],
        quats=table[:, -4:],
        log_scales=table[:, -7:-4],
        logit_opacities=table[:, -8],
        sh=torch.cat([table[:, None, 3:6], rest], dim=1),
    )
