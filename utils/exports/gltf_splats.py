"""Splats as binary glTF with the ratified extension KHR_gaussian_splatting: a point cloud that readers which know it draw as splats.

Scales and opacities are linear, rotations xyzw, harmonics one attribute per coefficient; colours are display-referred sRGB. COLOR_0
is what readers without the extension show as points; glTF wants it linear.
"""

from pathlib import Path

import numpy as np
import torch

from utils.exports.glb import POINTS, Glb, linear_from_srgb
from utils.exports.ply import host
from utils.splatting.sh import C0
from utils.types import Splats

EXTENSION = "KHR_gaussian_splatting"


def write_splat_glb(path: Path, splats: Splats) -> None:
    """Writes the splats, which are in glTF's axes already: x right, y up, z back."""
    glb = Glb("world")
    unit = host(torch.nn.functional.normalize(splats.quats, dim=1))
    opacity = host(torch.sigmoid(splats.logit_opacities))
    color = np.concatenate([linear_from_srgb(np.clip(0.5 + C0 * host(splats.sh[:, 0]), 0, 1)), opacity[:, None]], axis=1)
    attributes = {
        "POSITION": glb.accessor(host(splats.means), bounds=True),
        "COLOR_0": glb.accessor(np.rint(65535 * color).astype(np.uint16), normalized=True),
        f"{EXTENSION}:ROTATION": glb.accessor(unit[:, [1, 2, 3, 0]]),
        f"{EXTENSION}:SCALE": glb.accessor(host(torch.exp(splats.log_scales))),
        f"{EXTENSION}:OPACITY": glb.accessor(opacity),
    }
    for degree in range(splats.sh_degree + 1):
        for k in range(2 * degree + 1):
            attributes[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{k}"] = glb.accessor(host(splats.sh[:, degree * degree + k]))
    look = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "sortingMethod": "cameraDistance", "projection": "perspective"}
    glb.document["extensionsUsed"] = [EXTENSION]
    glb.document["meshes"] = [{"primitives": [{"attributes": attributes, "mode": POINTS, "extensions": {EXTENSION: look}}]}]
    glb.write(path)
