"""Reads exported splat files back, each from the description of its format, to check what other programs will get.

Nothing is shared with the writers but constants of the formats. Splats come in the file's own axes.
"""

import base64
import gzip
import json
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.errors import CorruptArtifactError, MissingDependencyError
from utils.splatting.sh import C0
from utils.types import Array, Splats

_PLY_TYPES = {"float": "<f4", "uint": "<u4", "uchar": "u1"}
_GLTF_TYPES = {5126: "<f4", 5125: "<u4", 5123: "<u2", 5121: "u1"}
_GLTF_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_OPACITY_MARGIN = 1e-7


def read_splats(path: Path, suffix: str = "") -> Splats:
    """The splats of a PLY (plain or compressed), .splat, .spz, .sog, .glb, USD or world.html file.

    Args:
        path: the file.
        suffix: which of these it is, where its name does not say.

    Raises:
        CorruptArtifactError: not a whole file of the kind its name says.
        MissingDependencyError: a package to read it with is not installed.
    """
    try:
        return _READERS[suffix or path.suffix](path)
    except (ValueError, KeyError, IndexError, struct.error, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptArtifactError(f"{path} cannot be read as {suffix or path.suffix}: {error!r}", "export it again") from error


def _splats(means: Array, wxyz: Array, log_scales: Array, opacity: Array, sh: Array) -> Splats:
    """From opacities 0..1."""
    opacity = np.clip(opacity.astype(np.float64), _OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
    parts = (means, wxyz, log_scales, np.log(opacity / (1 - opacity)), sh)
    return Splats(*(torch.from_numpy(np.array(p, dtype=np.float32)) for p in parts))


def _ply(path: Path) -> Splats:
    tables = _ply_tables(path.read_bytes())
    if "chunk" in tables:
        return _compressed(tables)
    vertex = tables["vertex"]
    called = vertex.dtype.names or ()
    rest = [n for n in called if n.startswith("f_rest_")]
    # one number after the other where all are of one kind: columns of records took five times as long
    plain = vertex.view("<f4").reshape(len(vertex), -1) if {vertex.dtype[n] for n in called} == {np.dtype("<f4")} else None

    def columns(*names: str) -> Array:
        if plain is not None:
            return plain[:, [called.index(n) for n in names]]
        return np.stack([vertex[n] for n in names], axis=1) if names else np.zeros((len(vertex), 0), np.float32)

    higher = columns(*(f"f_rest_{i}" for i in range(len(rest)))).reshape(len(vertex), 3, -1).transpose(0, 2, 1)
    sh = np.concatenate([columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None], higher], axis=1)
    parts = (columns("x", "y", "z"), columns("rot_0", "rot_1", "rot_2", "rot_3"), columns("scale_0", "scale_1", "scale_2"))
    return Splats(*(torch.from_numpy(np.ascontiguousarray(p)) for p in (*parts, vertex["opacity"], sh)))


def _ply_tables(raw: bytes) -> dict[str, Array]:
    """The elements of a binary PLY by name, as record arrays."""
    head, marker, body = raw.partition(b"end_header\n")
    if not marker:
        raise ValueError("no end of header")
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in head.decode("ascii").splitlines():
        words = line.split()
        if words[0] == "element":
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property":
            elements[-1][2].append((words[2], _PLY_TYPES[words[1]]))
    tables, at = {}, 0
    for name, count, fields in elements:
        dtype = np.dtype(fields)
        tables[name] = np.frombuffer(body, dtype, count, at)
        at += count * dtype.itemsize
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes too many")
    return tables


def _fields(words: Array, widths: tuple[int, ...]) -> Array:
    """(N, k) fields of 32-bit words, first in the highest bits, as shares of their range."""
    shift, out = 32, []
    for width in widths:
        shift -= width
        out.append((words >> shift & (2**width - 1)) / (2**width - 1))
    return np.stack(out, axis=1)


def _compressed(tables: dict[str, Array]) -> Splats:
    chunk, vertex = tables["chunk"], tables["vertex"]
    of = np.arange(len(vertex)) // 256

    def spread(shares: Array, axes: tuple[str, ...]) -> Array:
        low, high = (np.stack([chunk[f"{end}_{a}"] for a in axes], axis=1)[of] for end in ("min", "max"))
        return low + shares * (high - low)

    colored = _fields(vertex["packed_color"].astype(np.int64), (8, 8, 8, 8))
    dc = (spread(colored[:, :3], ("r", "g", "b")) - 0.5) / C0
    stored = tables.get("sh")
    names = stored.dtype.names or () if stored is not None else ()
    rest = np.stack([stored[n] for n in names], axis=1) if stored is not None else np.zeros((len(vertex), 0))
    higher = (((rest + 0.5) / 256 - 0.5) * 8).reshape(len(vertex), 3, rest.shape[1] // 3).transpose(0, 2, 1)
    return _splats(
        spread(_fields(vertex["packed_position"].astype(np.int64), (11, 10, 11)), ("x", "y", "z")),
        _three_and_largest(_fields(vertex["packed_rotation"].astype(np.int64), (2, 10, 10, 10)) * [3, 1, 1, 1]),
        spread(_fields(vertex["packed_scale"].astype(np.int64), (11, 10, 11)), ("scale_x", "scale_y", "scale_z")),
        colored[:, 3],
        np.concatenate([dc[:, None], higher], axis=1),
    )


def _three_and_largest(coded: Array) -> Array:
    """(N, 4) quaternions of rows (which is left out, the other three as shares of -sqrt(1/2)..sqrt(1/2)), in the same order."""
    others = (coded[:, 1:] - 0.5) * np.sqrt(2)
    left_out = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    quats = np.zeros((len(coded), 4))
    for largest in range(4):
        mine = np.rint(coded[:, 0]) == largest
        quats[np.ix_(mine, [k for k in range(4) if k != largest])] = others[mine]
        quats[mine, largest] = left_out[mine]
    return quats


def _splat(path: Path) -> Splats:
    table = np.fromfile(path, np.dtype([("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("q", "u1", 4)]))
    if path.stat().st_size != 32 * len(table):
        raise ValueError("not a multiple of 32 bytes")
    quats = (table["q"].astype(np.float32) - 128) / 128
    return _splats(table["p"], quats, np.log(table["s"]), table["c"][:, 3] / 255, ((table["c"][:, :3] / 255 - 0.5) / C0)[:, None])


def _html(path: Path) -> Splats:
    """The SPZ inside of a page, right-up-back as all SPZ."""
    _, start, rest = path.read_text(encoding="utf-8").partition('atob("')
    if not start:
        raise ValueError("no splats inside")
    return _spz_bytes(base64.b64decode(rest.partition('"')[0], validate=True))


def _spz(path: Path) -> Splats:
    return _spz_bytes(path.read_bytes())


def _spz_bytes(raw: bytes) -> Splats:
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    magic, version, count, degree, bits, _, streams = struct.unpack_from("<IIIBBBB", raw)
    if magic != 0x5053474E:
        raise ValueError("not an SPZ file")
    rest = (degree + 1) ** 2 - 1
    sizes = [count * k for k in (9, 1, 3, 3, 3 if version < 3 else 4, 3 * rest)]
    body = raw[16:] if version < 4 else _zstd_streams(raw, streams)
    if len(body) != sum(sizes):
        raise ValueError(f"{len(body)} bytes of attributes instead of {sum(sizes)}")
    cuts = np.cumsum([0, *sizes])
    place, alpha, color, scale, turn, harmonics = (np.frombuffer(body[a:b], np.uint8).astype(np.int64) for a, b in pairwise(cuts))
    fixed = place.reshape(count, 3, 3) @ [1, 256, 65536]
    fixed = np.where(fixed >= 2**23, fixed - 2**24, fixed)
    xyzw = _spz_three(turn.reshape(count, 3)) if version < 3 else _spz_smallest(turn.reshape(count, 4) @ [1, 2**8, 2**16, 2**24])
    dc = (color.reshape(count, 1, 3) / 255 - 0.5) / 0.15
    return _splats(
        fixed / 2**bits,
        xyzw[:, [3, 0, 1, 2]],
        scale.reshape(count, 3) / 16 - 10,
        alpha / 255,
        np.concatenate([dc, (harmonics.reshape(count, rest, 3) - 128) / 128], axis=1),
    )


def _zstd_streams(raw: bytes, streams: int) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingDependencyError("reading SPZ version 4 needs the package 'zstandard'", "pip install zstandard") from error
    (table,) = struct.unpack_from("<I", raw, 16)
    at, parts = table + 16 * streams, []
    for i in range(streams):
        packed, whole = struct.unpack_from("<QQ", raw, table + 16 * i)
        parts.append(zstandard.ZstdDecompressor().decompress(raw[at : at + packed], max_output_size=whole))
        at += packed
    return b"".join(parts)


def _spz_three(xyz: Array) -> Array:
    three = xyz / 127.5 - 1
    return np.concatenate([three, np.sqrt(np.maximum(0, 1 - (three**2).sum(axis=1, keepdims=True)))], axis=1)


def _spz_smallest(words: Array) -> Array:
    quats, largest = np.zeros((len(words), 4)), words >> 30
    for component in (3, 2, 1, 0):
        here = largest != component
        value = (words & 511) / 511 * np.sqrt(0.5) * np.where(words & 512, -1, 1)
        quats[here, component] = value[here]
        words = np.where(here, words >> 10, words)
    left_out = np.sqrt(np.maximum(0, 1 - (quats**2).sum(axis=1)))
    quats[np.arange(len(quats)), largest] = left_out
    return quats


def _sog(path: Path) -> Splats:
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))

        def pixels(name: str) -> Array:
            decoded = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            if decoded is None:
                raise ValueError(f"{name} is no picture")
            return decoded[..., [2, 1, 0, 3]] if decoded.shape[-1] == 4 else decoded[..., ::-1]

        count = meta["count"]
        low, high = (_rows(pixels(n), count).astype(np.float64) for n in meta["means"]["files"])
        mins, maxs = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
        squeezed = mins + (low + 256 * high) / 65535 * (maxs - mins)
        scales = np.array(meta["scales"]["codebook"])[_rows(pixels(meta["scales"]["files"][0]), count)]
        turn = _rows(pixels(meta["quats"]["files"][0]), count, 4).astype(np.float64)
        color = _rows(pixels(meta["sh0"]["files"][0]), count, 4)
        sh = np.array(meta["sh0"]["codebook"])[color[:, :3]][:, None]
        if "shN" in meta:
            entry = meta["shN"]
            centroids, labels = (pixels(n) for n in entry["files"])
            coefficients = (entry["bands"] + 1) ** 2 - 1
            palette = np.array(entry["codebook"])[centroids[..., :3].reshape(-1, coefficients, 3)]
            rows = _rows(labels, count).astype(np.int64)
            sh = np.concatenate([sh, palette[rows[:, 0] + 256 * rows[:, 1]]], axis=1)
    quats = _three_and_largest(np.concatenate([turn[:, 3:] - 252, turn[:, :3] / 255], axis=1))
    return _splats(np.sign(squeezed) * np.expm1(np.abs(squeezed)), quats, scales, color[:, 3] / 255, sh)


def _rows(image: Array, count: int, channels: int = 3) -> Array:
    if image.shape[-1] < channels:  # an image that is opaque everywhere is stored without alpha
        image = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)
    return image.reshape(-1, image.shape[-1])[:count, :channels]


def _glb(path: Path) -> Splats:
    raw = path.read_bytes()
    magic, _, total, size, _ = struct.unpack_from("<4sIII4s", raw)
    if magic != b"glTF" or total != len(raw):
        raise ValueError("not a whole binary glTF")
    document: dict[str, Any] = json.loads(raw[20 : 20 + size])
    body = raw[28 + size :]
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def values(name: str) -> Array:
        accessor = document["accessors"][attributes[name]]
        view = document["bufferViews"][accessor["bufferView"]]
        dtype, width = np.dtype(_GLTF_TYPES[accessor["componentType"]]), _GLTF_WIDTHS[accessor["type"]]
        return np.frombuffer(body, dtype, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)

    prefix = "KHR_gaussian_splatting:"
    harmonics = sorted(n for n in attributes if n.startswith(prefix + "SH_"))  # degrees and coefficients have one digit
    return _splats(
        values("POSITION"),
        values(prefix + "ROTATION")[:, [3, 0, 1, 2]],
        np.log(values(prefix + "SCALE")),
        values(prefix + "OPACITY")[:, 0],
        np.stack([values(n) for n in harmonics], axis=1),
    )


def _usd(path: Path) -> Splats:
    try:
        from pxr import Usd, UsdVol
    except ModuleNotFoundError as error:
        raise MissingDependencyError("reading USD needs the package 'usd-core'", "pip install 'usd-core>=26.3'") from error
    stage = Usd.Stage.Open(str(path))
    field = next(p for p in stage.Traverse() if p.GetTypeName() == "ParticleField3DGaussianSplat")
    splats = UsdVol.ParticleField3DGaussianSplat(field)
    quats = [(q.GetReal(), *q.GetImaginary()) for q in splats.GetOrientationsAttr().Get()]
    degree = splats.GetRadianceSphericalHarmonicsDegreeAttr().Get()
    sh = np.array(splats.GetRadianceSphericalHarmonicsCoefficientsAttr().Get()).reshape(-1, (degree + 1) ** 2, 3)
    scales, means = np.array(splats.GetScalesAttr().Get()), np.array(splats.GetPositionsAttr().Get())
    return _splats(means, np.array(quats), np.log(scales), np.array(splats.GetOpacitiesAttr().Get()), sh)


_READERS: dict[str, Callable[[Path], Splats]] = {
    ".ply": _ply,
    ".splat": _splat,
    ".spz": _spz,
    ".sog": _sog,
    ".glb": _glb,
    ".usdc": _usd,
    ".usda": _usd,
    ".usd": _usd,
    ".html": _html,
}
