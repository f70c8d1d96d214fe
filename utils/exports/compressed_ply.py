"""The compressed PLY of PlayCanvas and SuperSplat: 16 bytes a splat and 3 bytes per higher harmonic.

Splats lie in runs of 256 ("chunks"); each chunk stores the range of its positions, log scales and colours as floats, and its splats
their place in those ranges: 11, 10 and 11 bits for positions and for scales, 10 bits each for the smallest three of a quaternion,
8 bits each for colour and opacity. Harmonics are bytes over -4..4, channel-major as in the plain PLY.
"""

from pathlib import Path

import numpy as np
import torch

from utils.exports.order import morton_order
from utils.exports.ply import host
from utils.splatting.sh import C0
from utils.types import Array, Splats

CHUNK = 256
_MOST_LOG_SCALE = 20.0
_NAMES = ("x", "y", "z", "scale_x", "scale_y", "scale_z")


def write_compressed_ply(path: Path, splats: Splats) -> None:
    """Writes the splats in the order of a space-filling curve."""
    order = morton_order(host(splats.means))
    splats = splats.select(torch.from_numpy(order))
    count, rest = len(splats), 3 * (splats.sh.shape[1] - 1)
    means, log_scales = host(splats.means), np.clip(host(splats.log_scales), -_MOST_LOG_SCALE, _MOST_LOG_SCALE)
    colors = 0.5 + C0 * host(splats.sh[:, 0])
    starts = np.arange(0, count, CHUNK)
    ranges = [
        (np.minimum.reduceat(v, starts), np.maximum.reduceat(v, starts)) if count else (np.zeros((0, 3)),) * 2
        for v in (means, log_scales, colors)
    ]
    (mean_low, mean_high), (scale_low, scale_high), (color_low, color_high) = ranges
    chunks = np.concatenate([mean_low, mean_high, scale_low, scale_high, color_low, color_high], axis=1).astype("<f4")
    stored = np.split(chunks, 6, axis=1)  # as readers will have them
    opacity = host(torch.sigmoid(splats.logit_opacities))[:, None]
    colored = np.concatenate([_share(colors, stored[4], stored[5]), opacity], axis=1)
    words = np.stack(
        [
            _bits(_share(means, stored[0], stored[1]), (11, 10, 11)),
            _smallest_three(host(splats.quats)),
            _bits(_share(log_scales, stored[2], stored[3]), (11, 10, 11)),
            _bits(colored, (8, 8, 8, 8)),
        ],
        axis=1,
    ).astype("<u4")
    harmonics = host(splats.sh[:, 1:]).transpose(0, 2, 1).reshape(count, rest)
    with path.open("wb") as stream:
        stream.write(_header(len(starts), count, rest))
        stream.write(chunks.tobytes())
        stream.write(words.tobytes())
        stream.write(np.clip(np.floor((harmonics / 8 + 0.5) * 256), 0, 255).astype(np.uint8).tobytes())


def _header(chunks: int, count: int, rest: int) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {chunks}"]
    for name in ("x", "scale_x"):
        axes = _NAMES[:3] if name == "x" else _NAMES[3:]
        lines += [f"property float {end}_{axis}" for end in ("min", "max") for axis in axes]
    lines += [f"property float {end}_{channel}" for end in ("min", "max") for channel in "rgb"]
    lines.append(f"element vertex {count}")
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    if rest:
        lines.append(f"element sh {count}")
        lines += [f"property uchar f_rest_{i}" for i in range(rest)]
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")


def _share(values: Array, low: Array, high: Array) -> Array:
    """Place of each row in the range of its chunk, 0..1."""
    chunk = np.arange(len(values)) // CHUNK
    span = (high - low)[chunk]
    return np.where(span > 0, (values - low[chunk]) / np.where(span > 0, span, 1), 0)


def _bits(shares: Array, widths: tuple[int, ...]) -> Array:
    """Shares 0..1 (N, k) as one word each, the first in the highest bits."""
    word = np.zeros(len(shares), np.uint32)
    for column, width in enumerate(widths):
        top = 2**width - 1
        level = np.clip(np.floor(shares[:, column].astype(np.float64) * top + 0.5), 0, top).astype(np.uint32)
        word = (word << np.uint32(width)) | level
    return word


def _smallest_three(wxyz: Array) -> Array:
    """Two bits for the largest component, then the other three over -sqrt(1/2)..sqrt(1/2), 10 bits each."""
    unit = wxyz / np.maximum(np.linalg.norm(wxyz, axis=1, keepdims=True), 1e-12)
    largest = np.abs(unit).argmax(axis=1)
    unit = unit * np.where(np.take_along_axis(unit, largest[:, None], axis=1) < 0, -1.0, 1.0)
    columns = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    others = np.take_along_axis(unit, columns, axis=1) * np.sqrt(0.5) + 0.5
    return (largest.astype(np.uint32) << np.uint32(30)) | _bits(others, (10, 10, 10))
