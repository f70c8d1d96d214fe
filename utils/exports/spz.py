"""The SPZ format: about a tenth of the size of a PLY. Version 2 (gzip) for old readers, 3 (gzip), and 4 (zstd, the newest).

By attribute: positions (24-bit fixed point), opacities, colours, log scales (one byte each), rotations (version 2: three bytes,
later the smallest three in 10 bits each), spherical harmonics (one byte, coefficient-major, first band rounded to 5 bits, the rest
to 4). Versions 2 and 3 are one gzip stream after a 16-byte header inside of it; version 4 is a 32-byte header, a table of stream
sizes, and one zstd stream per attribute. SPZ stores right-up-back axes; files in other formats of this program are
right-down-front, so y and z change sign here.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from utils.errors import MissingDependencyError
from utils.exports.ply import host
from utils.types import Array, Splats

MAGIC = 0x5053474E  # "NGSP"
VERSIONS = (2, 3, 4)
SHORTEST_LOG_SCALE, LONGEST_LOG_SCALE = -10.0, 255 / 16 - 10
_COLOR_SCALE = 0.15
_MAX_SH_DEGREE = 3
_ZSTD_LEVEL = 12
# Signs of the harmonics of degree 1 to 3 under (x, y, z) -> (x, -y, -z).
FLIP_SH = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], dtype=np.float32)


def write_spz(path: Path, splats: Splats, version: int = 3) -> None:
    """Writes the splats; harmonics beyond degree 3 are left out.

    Raises:
        MissingDependencyError: version 4 needs the package zstandard.
    """
    assert version in VERSIONS
    degree = min(splats.sh_degree, _MAX_SH_DEGREE)
    positions = host(splats.means) * np.array([1, -1, -1], dtype=np.float32)
    fractional_bits = _fractional_bits(positions)
    streams = [
        _fixed_24(positions, fractional_bits),
        _to_byte(host(torch.sigmoid(splats.logit_opacities)) * 255),
        _to_byte((host(splats.sh[:, 0]) * _COLOR_SCALE + 0.5) * 255),
        _to_byte((host(splats.log_scales) + 10) * 16),
        _first_three(_flipped(splats)) if version == 2 else _smallest_three(_flipped(splats)),
        _harmonics(host(splats.sh[:, 1 : (degree + 1) ** 2])),
    ]
    head = struct.pack("<IIIBBB", MAGIC, version, len(splats), degree, fractional_bits, 0)
    if version < 4:
        path.write_bytes(gzip.compress(head + b"\0" + b"".join(streams), mtime=0))
    else:
        path.write_bytes(_zstd_container(head, [s for s in streams if s]))


def _zstd_container(head: bytes, streams: list[bytes]) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "SPZ version 4 needs the package 'zstandard', which is not installed",
            "pip install zstandard, or export without --config.layout newest",
        ) from error
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    packed = [compressor.compress(s) for s in streams]
    table = b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in zip(packed, streams, strict=True))
    return head + struct.pack("<BI12x", len(streams), 32) + table + b"".join(packed)


def _fractional_bits(positions: Array) -> int:
    """How many of the 24 bits can be spent after the point without overflow."""
    extent = max(float(np.abs(positions).max(initial=0.0)), 1e-6)
    return int(np.clip(22 - np.ceil(np.log2(extent)), 1, 20))


def _fixed_24(values: Array, fractional_bits: int) -> bytes:
    limit = 2**23 - 1
    fixed = np.clip(np.rint(values.astype(np.float64) * 2**fractional_bits), -limit, limit).astype("<i4")
    return fixed.reshape(-1, 1).view(np.uint8)[:, :3].tobytes()


def _to_byte(values: Array) -> bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).tobytes()


def _flipped(splats: Splats) -> Array:
    """(N, 4) unit quaternions xyzw in right-up-back axes."""
    quats = host(splats.quats)
    unit = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    return np.stack([unit[:, 1], -unit[:, 2], -unit[:, 3], unit[:, 0]], axis=1)


def _first_three(xyzw: Array) -> bytes:
    """Rotations as three bytes, x y z of the quaternion whose w is positive."""
    return _to_byte(xyzw[:, :3] * np.where(xyzw[:, 3:] < 0, -127.5, 127.5) + 127.5)


def _smallest_three(xyzw: Array) -> bytes:
    """Rotations as 32 bits: the index of the largest component (of xyzw), then sign and 9-bit magnitude of the other three."""
    rows = np.arange(len(xyzw))
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw = xyzw * np.where(xyzw[rows, largest] < 0, -1.0, 1.0)[:, None]
    packed = largest.astype(np.uint32)
    for component in range(4):
        value = xyzw[:, component]
        magnitude = np.minimum(np.abs(value) * np.sqrt(2.0) * 511 + 0.5, 511).astype(np.uint32)
        code = ((value < 0).astype(np.uint32) << np.uint32(9)) | magnitude
        packed = np.where(largest == component, packed, (packed << np.uint32(10)) | code)
    return packed.astype("<u4").tobytes()


def _harmonics(rest: Array) -> bytes:
    """(N, B - 1, 3) coefficients as bytes around 128, rounded to the middle of buckets of 8 (first band) and 16."""
    count = rest.shape[1]
    bucket = np.where(np.arange(count) < 3, 8, 16)[None, :, None]
    level = np.rint(rest * FLIP_SH[None, :count, None] * 128) + 128
    return _to_byte(np.floor((level + bucket // 2) / bucket) * bucket)
