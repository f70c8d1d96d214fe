"""The `.splat` format: 32 bytes per splat, no view-dependent colour, read by most web viewers.

Per splat: position 3 float32, scale 3 float32 (linear), colour and opacity 4 uint8, rotation 4 uint8 (wxyz, 128 + 128 q).
"""

from pathlib import Path

import numpy as np
import torch

from utils.exports.ply import host
from utils.exports.select import importance
from utils.splatting.sh import C0
from utils.types import Splats

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def write_splat(path: Path, splats: Splats) -> None:
    """Writes the splats, the most important first, so that a viewer that streams the file shows the scene early."""
    splats = splats.select(torch.argsort(importance(splats), descending=True))
    rgb = 0.5 + C0 * host(splats.sh[:, 0])
    alpha = host(torch.sigmoid(splats.logit_opacities))[:, None]
    rotation = host(torch.nn.functional.normalize(splats.quats, dim=1))
    table = np.empty(len(splats), dtype=RECORD)
    table["position"] = host(splats.means)
    table["scale"] = host(torch.exp(splats.log_scales))
    table["rgba"] = np.clip(np.concatenate([rgb, alpha], axis=1) * 255 + 0.5, 0, 255).astype(np.uint8)
    table["rotation"] = np.clip(rotation * 128 + 128.5, 0, 255).astype(np.uint8)
    path.write_bytes(table.tobytes())
