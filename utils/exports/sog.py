"""The SOG format of PlayCanvas, version 2: a ZIP of lossless WebP images, one pixel per splat, and `meta.json`.

Positions are 16 bits per axis over the range of sign(v) log(1 + |v|), scales and colours are rows of codebooks of 256 values,
rotations the smallest three in 8 bits, harmonics rows of a palette whose entries are rows of another codebook.
"""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.exports.order import morton_order
from utils.exports.ply import host
from utils.types import Array, Splats

_CODES = 256
_PALETTE_WIDTH = 64
_LARGEST_PALETTE = 64
_LLOYD_STEPS = 4
_BINS = 8192


def write_sog(path: Path, splats: Splats) -> None:
    """Writes the splats in the order of a space-filling curve, so that neighbouring pixels are alike."""
    splats = splats.select(torch.from_numpy(morton_order(host(splats.means))))
    count = len(splats)
    width = max(4, int(np.ceil(np.sqrt(count) / 4)) * 4)
    size = (max(4, int(np.ceil(count / width / 4)) * 4), width)
    images: dict[str, Array] = {}

    squeezed = np.sign(host(splats.means)) * np.log1p(np.abs(host(splats.means).astype(np.float64)))
    low, high = (squeezed.min(axis=0), squeezed.max(axis=0)) if count else (np.zeros(3), np.zeros(3))
    fixed = np.rint(65535 * (squeezed - low) / np.maximum(high - low, 1e-12)).astype(np.uint16)
    images["means_l.webp"], images["means_u.webp"] = _image(fixed & 255, size), _image(fixed >> 8, size)

    scale_codes, scale_rows = codebook(host(splats.log_scales))
    images["scales.webp"] = _image(scale_rows, size)
    images["quats.webp"] = _image(_smallest_three(host(splats.quats)), size)
    color_codes, color_rows = codebook(host(splats.sh[:, 0]))
    opacity = np.rint(255 * host(torch.sigmoid(splats.logit_opacities)))[:, None]
    images["sh0.webp"] = _image(np.concatenate([color_rows, opacity], axis=1), size)
    meta = {
        "version": 2,
        "asset": {"generator": "video_to_world"},
        "count": count,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_codes.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": color_codes.tolist(), "files": ["sh0.webp"]},
    }
    if splats.sh_degree and count:
        meta["shN"] = _harmonics(host(splats.sh[:, 1:]), splats.sh_degree, size, images)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("meta.json", json.dumps(meta))
        for name, pixels in images.items():
            archive.writestr(name, _webp(pixels))


def _image(values: Array, size: tuple[int, int]) -> Array:
    """(h, w, 4) uint8 with the rows of values (N, up to 4) as pixels; missing channels are 0, alpha 255."""
    flat = np.zeros((size[0] * size[1], 4), np.uint8)
    flat[:, 3] = 255
    flat[: len(values), : values.shape[1]] = values
    return flat.reshape(*size, 4)


def _webp(rgba: Array) -> bytes:
    """Lossless; OpenCV drops the colour of pixels of alpha 0 only, which are splats that nobody sees."""
    done, data = cv2.imencode(".webp", np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]), [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert done
    return data.tobytes()


def _smallest_three(wxyz: Array) -> Array:
    """(N, 4) bytes: three components over -sqrt(1/2)..sqrt(1/2), and 252 plus the index of the largest, which is left out."""
    unit = wxyz / np.maximum(np.linalg.norm(wxyz, axis=1, keepdims=True), 1e-12)
    largest = np.abs(unit).argmax(axis=1)
    unit = unit * np.where(np.take_along_axis(unit, largest[:, None], axis=1) < 0, -1.0, 1.0)
    columns = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    others = np.take_along_axis(unit, columns, axis=1) * np.sqrt(2.0) * 0.5 + 0.5
    return np.concatenate([np.rint(255 * np.clip(others, 0, 1)), 252 + largest[:, None]], axis=1)


def codebook(values: Array) -> tuple[Array, Array]:
    """(256,) sorted values and the row of the nearest for each of `values`, any shape: one-dimensional k-means on a histogram.

    Two thirds of the codes start where values are dense, one third evenly over the range: a rare huge scale fills half a picture.
    """
    flat = values.ravel().astype(np.float64)
    if not len(flat):
        return np.zeros(_CODES), np.zeros(values.shape, np.uint8)
    low, high = float(flat.min()), float(flat.max())
    if high <= low:
        return np.full(_CODES, low), np.zeros(values.shape, np.uint8)
    counts, edges = np.histogram(flat, bins=_BINS, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    density = np.cbrt(counts.astype(np.float64))  # optimal codes are as dense as the cube root of the values (Panter and Dite 1951)
    density += 0.5 * density.mean()
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    codes = np.interp((np.arange(_CODES) + 0.5) / _CODES * cumulative[-1], cumulative, edges)
    for _ in range(_LLOYD_STEPS):
        nearest = _nearest(codes, centres)
        weight = np.bincount(nearest, counts, _CODES)
        mean = np.bincount(nearest, counts * centres, _CODES)
        codes = np.sort(np.where(weight > 0, mean / np.maximum(weight, 1), codes))
    return codes, _nearest(codes, flat).reshape(values.shape).astype(np.uint8)


def _nearest(codes: Array, values: Array) -> Array:
    return np.searchsorted((codes[1:] + codes[:-1]) / 2, values)


def _harmonics(rest: Array, degree: int, size: tuple[int, int], images: dict[str, Array]) -> dict[str, object]:
    """The entry of meta.json; its two images are added to `images`."""
    count, coefficients = rest.shape[:2]
    entries = min(_LARGEST_PALETTE, 2 ** int(np.log2(max(count / 1024, 1)))) * 1024
    labels, palette = palette_of(rest.reshape(count, -1), entries)
    codes, rows = codebook(palette)
    sheet = np.zeros((int(np.ceil(len(palette) / _PALETTE_WIDTH)) * _PALETTE_WIDTH, coefficients, 3), np.uint8)
    sheet[: len(palette)] = rows.reshape(-1, coefficients, 3)
    images["shN_centroids.webp"] = _image(sheet.reshape(-1, 3), (len(sheet) // _PALETTE_WIDTH, _PALETTE_WIDTH * coefficients))
    images["shN_labels.webp"] = _image(np.stack([labels & 255, labels >> 8], axis=1), size)
    return {
        "count": len(palette),
        "bands": degree,
        "codebook": codes.tolist(),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }


def palette_of(vectors: Array, entries: int) -> tuple[Array, Array]:
    """Label (N,) and palette (P, d), P <= entries a power of two: halves every cell at the median of its widest axis, to the end.

    Much faster than k-means with tens of thousands of centres, which harmonics, small as they are, do not need.
    """
    count, cell = len(vectors), np.zeros(len(vectors), np.int64)
    values = vectors.astype(np.float64)
    for _ in range(int(np.log2(entries))):
        axis = _widest(values, cell)
        along = values[np.arange(count), axis[cell]]
        order = np.lexsort((along, cell))
        sizes = np.bincount(cell, minlength=int(cell.max(initial=0)) + 1)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        place = np.empty(count, np.int64)
        place[order] = np.arange(count) - starts[cell[order]]
        cell = 2 * cell + (2 * place >= sizes[cell])
    used, labels = np.unique(cell, return_inverse=True)
    sizes = np.bincount(labels, minlength=len(used))
    palette = np.stack([np.bincount(labels, values[:, k], len(used)) / sizes for k in range(values.shape[1])], axis=1)
    return labels, palette


def _widest(values: Array, cell: Array) -> Array:
    """(C,) axis of the largest variance in each cell."""
    cells = int(cell.max(initial=0)) + 1
    sizes = np.maximum(np.bincount(cell, minlength=cells), 1)
    spread = []
    for k in range(values.shape[1]):
        mean = np.bincount(cell, values[:, k], cells) / sizes
        spread.append(np.bincount(cell, (values[:, k] - mean[cell]) ** 2, cells))
    return np.argmax(np.stack(spread, axis=1), axis=1)
