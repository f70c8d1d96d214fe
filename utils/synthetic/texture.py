"""Solid procedural colour: a function of a point on an object (or of a sky direction), never of the frame.

Noise is summed over octaves from the size of an object down to that of a pixel, because optical flow needs contrast at every
scale; octaves finer than a pixel's footprint are faded out, because they would alias and flicker between frames. Cell patterns
(bricks, planks, patches) take each cell's colour from a hash of its index, so nothing repeats; tiles alternate, so all of it does.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from utils.types import Array

PLASTER, BRICKS, PLANKS, PATCHES, FOLIAGE, TILES = range(6)
TEXTURES = ("rich", "calm", "weak", "repeated")

MAX_OCTAVES = 9
# Amplitude ratio of successive octaves. 0.5 would be smooth clouds; closer to 1 leaves contrast at the scale of a pixel.
OCTAVE_GAIN = 0.85
# What weak texture keeps of the colour differences, and repeated texture of the noise that tells one tile from another.
WEAK_SHARE = 0.12
REPEATED_NOISE = 0.06
# Calm texture: walls, wood and cloth in colours that people furnish with, and less of the noise.
CALM_COLORS = (
    (0.84, 0.79, 0.70),
    (0.58, 0.66, 0.58),
    (0.45, 0.57, 0.66),
    (0.80, 0.58, 0.44),
    (0.52, 0.37, 0.27),
    (0.86, 0.73, 0.50),
    (0.62, 0.36, 0.32),
    (0.34, 0.44, 0.40),
)
CALM_NOISE, CALM_SPREAD = 0.55, 0.5
CALM_WALL = 0.6  # coarsest wavelength from which something is a wall, floor or ceiling, scene units
TILE_SHARE = 0.3  # edge of a tile, in the coarsest wavelengths of its material


class Materials(NamedTuple):
    """One row per material.

    Attributes:
        kind: (M,) int64, one of PLASTER, BRICKS, PLANKS, PATCHES, FOLIAGE, TILES.
        wavelength: (M,) float64, coarsest noise wavelength in scene units.
        cell: (M, 3) float64, size of a pattern cell in scene units along the object's axes.
        offset: (M, 3) float64, where in the infinite solid texture the object is cut from.
        palette: (M, 3, 3) float64, three sRGB colours 0..1 that are mixed.
        contrast: (M,) float64, strength of the brightness noise.
    """

    kind: Array
    wavelength: Array
    cell: Array
    offset: Array
    palette: Array
    contrast: Array


def with_texture(materials: Materials, texture: str) -> Materials:
    """The materials with another texture: "rich" as they are, "calm" in furnishing colours with less noise, "weak" nearly of one
    colour, "repeated" all chequered tiles.
    """
    if texture == "rich":
        return materials
    if texture == "calm":
        return _calm(materials)
    if texture == "weak":
        mean = materials.palette.mean(1, keepdims=True)
        return materials._replace(
            kind=np.full_like(materials.kind, PLASTER),
            palette=mean + WEAK_SHARE * (materials.palette - mean),
            contrast=WEAK_SHARE * materials.contrast,
        )
    return materials._replace(
        kind=np.full_like(materials.kind, TILES),
        cell=np.repeat(TILE_SHARE * materials.wavelength[:, None], 3, axis=1),
        contrast=REPEATED_NOISE * materials.contrast,
    )


def _calm(materials: Materials) -> Materials:
    """Each material in the furnishing colour nearest to its own; large patches become painted plaster."""
    mean = materials.palette.mean(1)
    colors = np.array(CALM_COLORS)
    hue, wanted = (c - c.mean(-1, keepdims=True) for c in (mean, colors))
    nearest = np.argmin(((hue[:, None] - wanted) ** 2).sum(-1) + 0.2 * ((mean[:, None] - colors) ** 2).sum(-1), axis=1)
    wall = materials.wavelength > CALM_WALL
    light = wall & (materials.kind != PLANKS)
    nearest[light] = np.where(nearest[light] % 2, 0, 5)  # walls are cream or sand
    grey = materials.palette.mean(2, keepdims=True) / mean.mean(1)[:, None, None]  # (M, 3, 1) how light each of the three shades is
    palette = np.clip(colors[nearest][:, None] * (1 + CALM_SPREAD * (grey - 1)), 0.05, 0.95)
    return materials._replace(
        kind=np.where(wall & (materials.kind == PATCHES), PLASTER, materials.kind),
        palette=np.where((materials.kind == FOLIAGE)[:, None, None], materials.palette, palette),
        contrast=CALM_NOISE * materials.contrast,
    )


@njit(inline="always")
def _hash(x, y, z, salt):
    """A 32-bit hash of an integer lattice point (multiply-xorshift, two rounds), as a non-negative int64."""
    value = (x * 0x8DA6B343) ^ (y * 0xD8163841) ^ (z * 0xCB1AB31F) ^ (salt * 0x9E3779B1)
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)


@njit(inline="always")
def _fade(t):
    """Quintic interpolation weight with zero first and second derivative at 0 and 1 (Perlin 2002)."""
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)


@njit(cache=True, fastmath=True)
def value_noise(x, y, z, salt):
    """Two independent smooth noises in -1..1 at a point, one lattice unit per cell."""
    floor_x, floor_y, floor_z = np.floor(x), np.floor(y), np.floor(z)
    ix, iy, iz = int(floor_x), int(floor_y), int(floor_z)
    wx, wy, wz = _fade(x - floor_x), _fade(y - floor_y), _fade(z - floor_z)
    first = 0.0
    second = 0.0
    for corner in range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (wx if dx else 1.0 - wx) * (wy if dy else 1.0 - wy) * (wz if dz else 1.0 - wz)
        value = _hash(ix + dx, iy + dy, iz + dz, salt)
        first += weight * (value & 0xFFFF)
        second += weight * (value >> 16)
    return first / 32767.5 - 1.0, second / 32767.5 - 1.0


@njit(cache=True, fastmath=True)
def octave_noise(x, y, z, wavelength, footprint, salt):
    """Brightness and hue noise, about unit variance, from `wavelength` down to the footprint of a pixel.

    Args:
        x: right component of the point, scene units.
        y: down.
        z: forward.
        wavelength: of the coarsest octave, scene units.
        footprint: extent of a pixel at the point, scene units.
        salt: separates the noises of different materials.
    """
    bright = 0.0
    hue = 0.0
    power = 0.0
    amplitude = 1.0
    scale = wavelength
    for octave in range(MAX_OCTAVES):
        # Fades in between one and two and a half pixels per cell; a cell is half a period.
        fade = min(max((scale / footprint - 1.0) / 1.5, 0.0), 1.0)
        if fade <= 0.0:
            break
        # Each octave is turned and shifted, so that the lattices of the octaves do not show.
        turn = 0.9 * octave + 0.3
        cos_turn, sin_turn = np.cos(turn), np.sin(turn)
        u = cos_turn * x - sin_turn * z
        v = 0.8 * y + 0.6 * (sin_turn * x + cos_turn * z)
        w = -0.6 * y + 0.8 * (sin_turn * x + cos_turn * z)
        first, second = value_noise(u / scale + 17.3 * octave, v / scale - 5.1 * octave, w / scale, salt + octave)
        bright += amplitude * fade * first
        hue += amplitude * fade * second
        power += amplitude * amplitude
        amplitude *= OCTAVE_GAIN
        scale *= 0.5
    # Value noise has a standard deviation of about 0.32 for lattice values uniform in -1..1.
    norm = 1.0 / (0.32 * np.sqrt(power)) if power > 0.0 else 0.0
    return bright * norm, hue * norm


@njit(inline="always")
def _joint(fraction, width):
    """1 inside a cell, 0 in the joint at its border; `fraction` 0..1 across the cell, `width` of the joint in cells."""
    return min(1.0, min(fraction, 1.0 - fraction) / width)


@njit(cache=True, fastmath=True)
def _cell_pattern(kind, x, y, z, cell, hue, salt):
    """The random value 0..1 of the pattern cell at a point, a second one -1..1, and how far it is inside its joint."""
    cx, cy, cz = x / cell[0], y / cell[1], z / cell[2]
    joint = 1.0
    if kind == BRICKS:
        row = np.floor(cy)
        shift = 0.5 * (int(row) & 1)
        cx += shift
        cz += shift
        joint = min(_joint(cy - row, 0.12), 1.0)
    elif kind == PLANKS:
        # Planks run along local x; every row of planks starts somewhere else.
        row_y, row_z = np.floor(cy), np.floor(cz)
        cx += (_hash(int(row_y), int(row_z), 7, salt) & 0xFFFF) / 65536.0
        joint = _joint(cz - row_z, 0.06)
    elif kind == TILES:
        odd = (int(np.floor(cx)) + int(np.floor(cy)) + int(np.floor(cz))) & 1
        return 0.9 if odd else 0.1, 0.0, 1.0
    else:
        # Borders of patches are bent by smooth noise.
        bend_x, bend_z = value_noise(0.9 * cx + 3.7, 0.9 * cy - 1.3, 0.9 * cz, salt + 41)
        cx += 0.8 * bend_x
        cy += 0.8 * bend_z
        cz += 0.4 * (bend_x - bend_z) + 0.1 * hue
    value = _hash(int(np.floor(cx)), int(np.floor(cy)), int(np.floor(cz)), salt + 29)
    return (value & 0xFFFF) / 65535.0, (value >> 16) / 32767.5 - 1.0, joint


@njit(cache=True, fastmath=True)
def surface_color(materials, row, x, y, z, footprint):
    """Colour (r, g, b), sRGB 0..1, of a point, before shading.

    Args:
        materials: the table.
        row: the object's material.
        x: first coordinate of the point in the object's own axes, scene units.
        y: second.
        z: third.
        footprint: extent of a pixel at the point, scene units.
    """
    kind = materials.kind[row]
    offset = materials.offset[row]
    x, y, z = x + offset[0], y + offset[1], z + offset[2]
    salt = 101 * row + 13
    stretch = 0.25 if kind == PLANKS else 1.0  # wood grain follows the plank
    bright, hue = octave_noise(x * stretch, y, z, materials.wavelength[row], footprint, salt)
    pick, tint, joint = _cell_pattern(kind, x, y, z, materials.cell[row], hue, salt)
    if kind == FOLIAGE:
        bright = 1.6 * abs(bright) - 0.9
    cell_weight = 0.3 if kind == PLASTER else 0.75
    hue_weight = 0.22
    if kind == TILES:
        hue_weight = 0.0
    mix = cell_weight * (pick - 0.5) + hue_weight * hue + 0.5
    mix = 2.0 * min(max(mix, 0.0), 1.0)
    low = 0 if mix < 1.0 else 1
    part = mix - low
    palette = materials.palette[row]
    level = (1.0 + materials.contrast[row] * bright + 0.16 * tint * cell_weight) * (0.45 + 0.55 * joint)
    red = level * ((1.0 - part) * palette[low, 0] + part * palette[low + 1, 0]) + 0.02 * hue
    green = level * ((1.0 - part) * palette[low, 1] + part * palette[low + 1, 1])
    blue = level * ((1.0 - part) * palette[low, 2] + part * palette[low + 1, 2]) - 0.02 * hue
    return red, green, blue


@njit(cache=True, fastmath=True)
def sky_color(dx, dy, dz, footprint, salt):
    """Colour (r, g, b), sRGB 0..1, of the sky in a direction; y points down, `footprint` is a pixel's angle in radians."""
    length = np.sqrt(dx * dx + dy * dy + dz * dz)
    x, y, z = dx / length, dy / length, dz / length
    cloud, _ = octave_noise(x, 2.0 * y, z, 0.5, footprint, salt)
    height = min(max(-y * 2.2, 0.0), 1.0)
    cover = min(max(0.5 + 0.42 * cloud, 0.0), 1.0)
    red = (0.72 - 0.42 * height) * (1.0 - cover) + 0.93 * cover
    green = (0.80 - 0.28 * height) * (1.0 - cover) + 0.92 * cover
    blue = (0.90 - 0.08 * height) * (1.0 - cover) + 0.90 * cover
    return red, green, blue
