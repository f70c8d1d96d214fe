"""Ray caster for boxes, ellipsoids and capped cylinders, seen through a smooth displacement of space.

A frame shows the canonical point X at Y = rigid(X), then p = Y + w(Y): first the rigid offset of the object the point belongs to,
then the frame's displacement field w. Rigid offsets are exact (they pose the primitives). For w, the ray p(t) = o + t d is bent
where the shapes are: Y(t) = p(t) - w(Y(t)). Which primitive is seen is found on a piecewise linear Y(t), tabulated for the corners
of each image tile. The hit on that primitive is then polished by Newton's method with the exact w, so depth, canonical position and
colour are those of the true ray; only the silhouettes of occluders are approximate, by a small part of a pixel.

Primitives are unit shapes under an affine map, coloured by `texture.surface_color`. Directions have camera z = 1, so the ray parameter
t *is* the depth.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from utils.synthetic.texture import Materials, sky_color, surface_color
from utils.types import Array, CameraSet

BOX, ELLIPSOID, CYLINDER = range(3)

FAR = 1e30
NEAR = 1e-3
TILE = 8
# Depths at which bent rays are tabulated, in median depths; between them, and between tile corners, they are interpolated.
KNOTS = np.geomspace(0.08, 25.0, 120)
SEGMENTS_PER_LOG = (len(KNOTS) - 1) / float(np.log(KNOTS[-1] / KNOTS[0]))
# Y = p - w(Y) gains a digit each time, and starts from the solution at the knot before.
INVERSE_ITERATIONS = 3
POLISH_ITERATIONS = 10
# A hit has settled when the depth changes by less than this share of it. For colour a hundredth of a pixel is enough, even in large images.
SETTLED = 1e-8
SETTLED_COLOR = 1e-5
# Direction to the light: above (y is down), from the left, from behind the camera.
LIGHT = np.array([-0.45, -0.78, -0.43])


class Primitives(NamedTuple):
    """P shapes of one frame; `posed_*` is where the frame has them, `canonical_*` where the world has them.

    Attributes:
        kind: (P,) int64, BOX, ELLIPSOID or CYLINDER (axis = local y).
        half: (P, 3) float64, half extents along the local axes.
        material: (P,) int64.
        object_id: (P,) int64; primitives of one object move together.
        canonical_center: (P, 3) float64.
        canonical_map: (P, 3, 3) float64, world from unit shape.
        posed_center: (P, 3) float64.
        posed_inverse: (P, 3, 3) float64, unit shape from world.
        radius: (P,) float64, of the bounding sphere.
    """

    kind: Array
    half: Array
    material: Array
    object_id: Array
    canonical_center: Array
    canonical_map: Array
    posed_center: Array
    posed_inverse: Array
    radius: Array


class Warp(NamedTuple):
    """The displacement field of one frame: sinusoids, and a jump across a plane.

    w(Y) = sum_k amplitude_k sin(wave_k . Y + phase_k) + jump * (0.5 if plane_normal . Y > plane_offset else -0.5).

    Attributes:
        wave: (k, 3) float64, radians per scene unit.
        phase: (k,) float64, radians.
        amplitude: (k, 3) float64, scene units.
        plane_normal: (3,) float64.
        plane_offset: float.
        jump: (3,) float64, scene units.
    """

    wave: Array
    phase: Array
    amplitude: Array
    plane_normal: Array
    plane_offset: float
    jump: Array


class View(NamedTuple):
    """What one camera sees. Pixels that see sky have depth 0 and object_id -1.

    Attributes:
        color: (h, w, 3) float32 sRGB 0..1, 2x2 samples per pixel.
        depth: (h, w) float32, camera z of the displaced surface at the pixel centre.
        canonical: (h, w, 3) float32, NaN at sky and where the fixed point did not settle (folds of the displacement).
        normal: (h, w, 3) float32, canonical unit normal towards the camera; 0 where canonical is NaN.
        object_id: (h, w) int16.
    """

    color: Array
    depth: Array
    canonical: Array
    normal: Array
    object_id: Array


@njit(cache=True)
def displacement(warp, x, y, z):
    """w(Y) as (x, y, z) in scene units."""
    wx = wy = wz = 0.0
    for k in range(warp.phase.shape[0]):
        value = np.sin(warp.wave[k, 0] * x + warp.wave[k, 1] * y + warp.wave[k, 2] * z + warp.phase[k])
        wx += warp.amplitude[k, 0] * value
        wy += warp.amplitude[k, 1] * value
        wz += warp.amplitude[k, 2] * value
    normal = warp.plane_normal
    side = 0.5 if normal[0] * x + normal[1] * y + normal[2] * z > warp.plane_offset else -0.5
    return wx + side * warp.jump[0], wy + side * warp.jump[1], wz + side * warp.jump[2]


@njit(inline="always")
def _apply(matrix, x, y, z):
    """A 3x3 matrix times a vector, as a tuple."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z,
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z,
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z,
    )


@njit(cache=True)
def _hit_box(ox, oy, oz, dx, dy, dz):
    """Smallest t > NEAR at which the ray meets the cube -1..1, entering or, from the inside, leaving; FAR if none."""
    enter, leave = -FAR, FAR
    for o, d in ((ox, dx), (oy, dy), (oz, dz)):
        if abs(d) < 1e-14:
            if abs(o) > 1.0:
                return FAR
            continue
        first, second = (-1.0 - o) / d, (1.0 - o) / d
        if first > second:
            first, second = second, first
        enter = max(enter, first)
        leave = min(leave, second)
    if enter > leave:
        return FAR
    if enter > NEAR:
        return enter
    return leave if leave > NEAR else FAR


@njit(cache=True)
def _hit_sphere(ox, oy, oz, dx, dy, dz):
    """Smallest t > NEAR at which the ray meets the unit sphere; FAR if none."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    disc = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    if disc <= 0.0:
        return FAR
    root = np.sqrt(disc)
    if (-b - root) / a > NEAR:
        return (-b - root) / a
    return (-b + root) / a if (-b + root) / a > NEAR else FAR


@njit(cache=True)
def _hit_cylinder(ox, oy, oz, dx, dy, dz):
    """Smallest t > NEAR at which the ray enters the cylinder x^2 + z^2 <= 1, |y| <= 1 from outside; FAR if none."""
    enter, leave = -FAR, FAR
    if abs(dy) < 1e-14:
        if abs(oy) > 1.0:
            return FAR
    else:
        first, second = (-1.0 - oy) / dy, (1.0 - oy) / dy
        enter, leave = min(first, second), max(first, second)
    a = dx * dx + dz * dz
    b = ox * dx + oz * dz
    c = ox * ox + oz * oz - 1.0
    if a < 1e-24:
        if c > 0.0:
            return FAR
    else:
        disc = b * b - a * c
        if disc <= 0.0:
            return FAR
        root = np.sqrt(disc)
        enter = max(enter, (-b - root) / a)
        leave = min(leave, (-b + root) / a)
    return enter if NEAR < enter < leave else FAR


@njit(inline="always")
def _hit_unit(kind, ux, uy, uz, vx, vy, vz):
    """Smallest t > NEAR at which a ray meets the unit shape of a kind; FAR if none."""
    if kind == BOX:
        return _hit_box(ux, uy, uz, vx, vy, vz)
    if kind == ELLIPSOID:
        return _hit_sphere(ux, uy, uz, vx, vy, vz)
    return _hit_cylinder(ux, uy, uz, vx, vy, vz)


@njit(cache=True)
def _hit(shapes, p, ox, oy, oz, dx, dy, dz):
    """Smallest t > NEAR at which a straight ray meets primitive p; FAR if none."""
    center = shapes.posed_center[p]
    inverse = shapes.posed_inverse[p]
    ux, uy, uz = _apply(inverse, ox - center[0], oy - center[1], oz - center[2])
    vx, vy, vz = _apply(inverse, dx, dy, dz)
    return _hit_unit(shapes.kind[p], ux, uy, uz, vx, vy, vz)


@njit(cache=True)
def _enter_grown(shapes, p, margin, ox, oy, oz, dx, dy, dz):
    """Depth at which a straight ray enters primitive p grown by `margin`: NEAR from inside its box, FAR if it misses."""
    center = shapes.posed_center[p]
    inverse = shapes.posed_inverse[p]
    half = shapes.half[p]
    ux, uy, uz = _apply(inverse, ox - center[0], oy - center[1], oz - center[2])
    vx, vy, vz = _apply(inverse, dx, dy, dz)
    sx, sy, sz = half[0] / (half[0] + margin), half[1] / (half[1] + margin), half[2] / (half[2] + margin)
    ux, uy, uz = ux * sx, uy * sy, uz * sz
    if abs(ux) <= 1.0 and abs(uy) <= 1.0 and abs(uz) <= 1.0:
        return NEAR
    return _hit_unit(shapes.kind[p], ux, uy, uz, vx * sx, vy * sy, vz * sz)


@njit(cache=True)
def _tabulate(warp, knots, origin, rotation, intrinsics, top, left, table):
    """Fill `table` (4, knots, 3) with the displacement along the rays through a tile's corners (left to right, then down)."""
    for corner in range(4):
        dx, dy, dz = _ray(rotation, intrinsics, left + TILE * (corner & 1), top + TILE * (corner >> 1))
        wx = wy = wz = 0.0
        for knot in range(knots.shape[0]):
            px, py, pz = origin[0] + knots[knot] * dx, origin[1] + knots[knot] * dy, origin[2] + knots[knot] * dz
            for _ in range(INVERSE_ITERATIONS):
                wx, wy, wz = displacement(warp, px - wx, py - wy, pz - wz)
            table[corner, knot] = (wx, wy, wz)


@njit(inline="always")
def _segment(knots, t):
    """Index of the segment of the table that holds depth t: -1 before the first knot, the last knot beyond it."""
    last = knots.shape[0] - 1
    if t < knots[0]:
        return -1
    return min(int(np.log(t / knots[0]) * SEGMENTS_PER_LOG), last)


@njit(cache=True)
def _bend(table, knots, segment, u, v):
    """Displacement w(t) = a + t b on a segment, for a ray at tile fractions (u, v): (ax, ay, az, bx, by, bz)."""
    first = max(segment, 0)
    second = min(segment + 1, knots.shape[0] - 1)
    weights = ((1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v)
    sx = sy = sz = ex = ey = ez = 0.0
    for corner in range(4):
        weight = weights[corner]
        sx += weight * table[corner, first, 0]
        sy += weight * table[corner, first, 1]
        sz += weight * table[corner, first, 2]
        ex += weight * table[corner, second, 0]
        ey += weight * table[corner, second, 1]
        ez += weight * table[corner, second, 2]
    if first == second:
        return sx, sy, sz, 0.0, 0.0, 0.0
    start = knots[first]
    rate = 1.0 / (knots[second] - start)
    bx, by, bz = (ex - sx) * rate, (ey - sy) * rate, (ez - sz) * rate
    return sx - start * bx, sy - start * by, sz - start * bz, bx, by, bz


@njit(cache=True)
def _hit_bent(shapes, p, table, knots, u, v, origin, direction, begin, end):
    """Depth at which a bent ray first meets primitive p between depths `begin` and `end`; FAR if it does not."""
    last = knots.shape[0] - 1
    for segment in range(_segment(knots, begin), last + 1):
        start = knots[segment] if segment >= 0 else 0.0
        if start > end:
            return FAR
        stop = knots[segment + 1] if segment < last else FAR
        ax, ay, az, bx, by, bz = _bend(table, knots, segment, u, v)
        ox, oy, oz = origin[0] - ax, origin[1] - ay, origin[2] - az
        t = _hit(shapes, p, ox, oy, oz, direction[0] - bx, direction[1] - by, direction[2] - bz)
        # A hit outside the segment is one of its straight extension, not of the ray.
        if start * (1.0 - 1e-9) <= t <= stop * (1.0 + 1e-9) and t < FAR:
            return t
    return FAR


@njit(cache=True)
def _cast(shapes, margin, tile, count, table, knots, u, v, origin, direction):
    """The nearest hit of a bent ray among the tile's primitives: (t, primitive or -1)."""
    dx, dy, dz = direction
    length = np.sqrt(dx * dx + dy * dy + dz * dz)
    nearest = FAR
    nearest_primitive = -1
    for slot in range(count):
        p = tile[slot]
        # A bent ray is never farther than `margin` from the straight one, at equal depths.
        enter = _enter_grown(shapes, p, margin, origin[0], origin[1], origin[2], dx, dy, dz)
        if enter > nearest or enter >= FAR:
            continue
        leave = enter + 2.0 * (shapes.radius[p] + margin) / length
        t = _hit_bent(shapes, p, table, knots, u, v, origin, direction, enter, min(leave, nearest))
        if t < nearest:
            nearest = t
            nearest_primitive = p
    return nearest, nearest_primitive


@njit(cache=True)
def _directional(warp, x, y, z, dx, dy, dz):
    """(dw/dY) d at Y, away from the fault plane."""
    gx = gy = gz = 0.0
    for k in range(warp.phase.shape[0]):
        wave = warp.wave[k]
        slope = np.cos(wave[0] * x + wave[1] * y + wave[2] * z + warp.phase[k])
        slope *= wave[0] * dx + wave[1] * dy + wave[2] * dz
        gx += warp.amplitude[k, 0] * slope
        gy += warp.amplitude[k, 1] * slope
        gz += warp.amplitude[k, 2] * slope
    return gx, gy, gz


@njit(cache=True)
def _polish(shapes, warp, p, origin, direction, t, tolerance):
    """The exact hit of a bent ray on primitive p, near depth t: (t, x, y, z of the hit before displacement, settled to `tolerance`).

    `t` stays as it was if the hit does not settle, which happens where the displaced surface folds over or turns away.
    """
    dx, dy, dz = direction
    first = t
    wx = wy = wz = 0.0
    hx = hy = hz = 0.0
    for _ in range(POLISH_ITERATIONS):
        px, py, pz = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
        change = 0.0
        for _ in range(INVERSE_ITERATIONS):
            nx, ny, nz = displacement(warp, px - wx, py - wy, pz - wz)
            change = abs(nx - wx) + abs(ny - wy) + abs(nz - wz)
            wx, wy, wz = nx, ny, nz
        hx, hy, hz = px - wx, py - wy, pz - wz
        gx, gy, gz = _directional(warp, hx, hy, hz, dx, dy, dz)
        # dY/dt = d - (dw/dY) dY/dt, to first order; what is left out only slows the convergence.
        bx, by, bz = dx - gx, dy - gy, dz - gz
        new = _hit(shapes, p, hx - t * bx, hy - t * by, hz - t * bz, bx, by, bz)
        if new >= FAR:
            break
        step = new - t
        if abs(step) + change <= tolerance * new:
            return new, hx + step * bx, hy + step * by, hz + step * bz, True
        t = new
    return first, hx, hy, hz, False


@njit(cache=True)
def _unit_hit(shapes, p, x, y, z):
    """The unit-shape coordinates and the unit-shape normal of a point on primitive p."""
    center = shapes.posed_center[p]
    ux, uy, uz = _apply(shapes.posed_inverse[p], x - center[0], y - center[1], z - center[2])
    ax, ay, az = abs(ux), abs(uy), abs(uz)
    if shapes.kind[p] == ELLIPSOID:
        return ux, uy, uz, ux, uy, uz
    if shapes.kind[p] == CYLINDER:
        if ay > 1.0 - 1e-9:
            return ux, uy, uz, 0.0, uy, 0.0
        return ux, uy, uz, ux, 0.0, uz
    if ax >= ay and ax >= az:
        return ux, uy, uz, ux, 0.0, 0.0
    if ay >= az:
        return ux, uy, uz, 0.0, uy, 0.0
    return ux, uy, uz, 0.0, 0.0, uz


@njit(cache=True)
def _normal(shapes, p, nx, ny, nz):
    """Canonical unit normal of primitive p from its unit-shape normal (inverse transpose: axes divided by the extents)."""
    half = shapes.half[p]
    # The map is R diag(half), its inverse transpose R diag(1 / half) = map diag(1 / half^2).
    x, y, z = _apply(shapes.canonical_map[p], nx / half[0] ** 2, ny / half[1] ** 2, nz / half[2] ** 2)
    length = np.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@njit(cache=True)
def _shade(shapes, materials, p, hit, direction, depth, pixel_angle, light):
    """Colour (sRGB) of a hit: texture times a light that is fixed in the canonical world, so that no frame is lit differently."""
    ux, uy, uz, vx, vy, vz = _unit_hit(shapes, p, hit[0], hit[1], hit[2])
    nx, ny, nz = _normal(shapes, p, vx, vy, vz)
    dx, dy, dz = direction
    length = np.sqrt(dx * dx + dy * dy + dz * dz)
    facing = (nx * dx + ny * dy + nz * dz) / length
    half = shapes.half[p]
    footprint = depth * length * pixel_angle / np.sqrt(max(abs(facing), 0.04))
    red, green, blue = surface_color(materials, shapes.material[p], ux * half[0], uy * half[1], uz * half[2], footprint)
    if facing > 0.0:
        nx, ny, nz = -nx, -ny, -nz
    level = 0.8 + 0.25 * (nx * light[0] + ny * light[1] + nz * light[2])
    return red * level, green * level, blue * level


@njit(cache=True)
def _cull(shapes, origin, axis, cos_half, sin_half, margin, tile):
    """Fill `tile` with the primitives whose bounding sphere, grown by `margin`, meets a cone; return how many."""
    count = 0
    for p in range(shapes.kind.shape[0]):
        cx = shapes.posed_center[p, 0] - origin[0]
        cy = shapes.posed_center[p, 1] - origin[1]
        cz = shapes.posed_center[p, 2] - origin[2]
        along = cx * axis[0] + cy * axis[1] + cz * axis[2]
        squared = cx * cx + cy * cy + cz * cz
        aside = np.sqrt(max(squared - along * along, 0.0))
        # Signed distance of the centre to the cone's surface, positive outside.
        if aside * cos_half - along * sin_half <= shapes.radius[p] + margin:
            tile[count] = p
            count += 1
    return count


@njit(cache=True)
def _ray(rotation, intrinsics, x, y):
    """World direction with camera z = 1 of an image point in pixels."""
    fx, fy, cx, cy = intrinsics
    return _apply(rotation, (x - cx) / fx, (y - cy) / fy, 1.0)


@njit(cache=True)
def _tile_cone(rotation, intrinsics, top, left, bottom, right):
    """Axis, cosine and sine of the half angle of a cone that holds a tile."""
    ax, ay, az = _ray(rotation, intrinsics, 0.5 * (left + right), 0.5 * (top + bottom))
    norm = np.sqrt(ax * ax + ay * ay + az * az)
    ax, ay, az = ax / norm, ay / norm, az / norm
    smallest = 1.0
    for x in (left, right):
        for y in (top, bottom):
            bx, by, bz = _ray(rotation, intrinsics, float(x), float(y))
            cosine = (ax * bx + ay * by + az * bz) / np.sqrt(bx * bx + by * by + bz * bz)
            smallest = min(smallest, cosine)
    return (ax, ay, az), smallest, np.sqrt(max(1.0 - smallest * smallest, 0.0))


@njit(cache=True)
def _sample(shapes, materials, warp, margin, tile, count, table, knots, u, v, origin, direction, angle, light, salt):
    """Colour (sRGB) of one ray at its exact hit: the table is off by up to half a pixel, and a clip must agree with its truth."""
    t, p = _cast(shapes, margin, tile, count, table, knots, u, v, origin, direction)
    dx, dy, dz = direction
    if p < 0:
        return sky_color(dx, dy, dz, angle, salt)
    exact, x, y, z, settled = _polish(shapes, warp, p, origin, direction, t, SETTLED_COLOR)
    if settled:
        return _shade(shapes, materials, p, (x, y, z), direction, exact, angle, light)
    ax, ay, az, bx, by, bz = _bend(table, knots, _segment(knots, t), u, v)
    hit = (
        origin[0] - ax + t * (dx - bx),
        origin[1] - ay + t * (dy - by),
        origin[2] - az + t * (dz - bz),
    )
    return _shade(shapes, materials, p, hit, direction, t, angle, light)


@njit(cache=True, parallel=True)
def _render_color(shapes, materials, warp, knots, margin, intrinsics, rotation, center, light, salt, color):
    """Fill the image of one view with 2x2 samples per pixel; tiles are independent, so threads do not change the result."""
    height, width = color.shape[:2]
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    origin = (center[0], center[1], center[2])
    angle = 1.0 / intrinsics[0]
    for index in prange(across * down):
        top, left = (index // across) * TILE, (index % across) * TILE
        axis, cosine, sine = _tile_cone(rotation, intrinsics, top, left, top + TILE, left + TILE)
        tile = np.empty(shapes.kind.shape[0], np.int64)
        count = _cull(shapes, origin, axis, cosine, sine, margin, tile)
        table = np.empty((4, knots.shape[0], 3))
        _tabulate(warp, knots, origin, rotation, intrinsics, top, left, table)
        for row in range(top, min(top + TILE, height)):
            for column in range(left, min(left + TILE, width)):
                red = green = blue = 0.0
                for sample in range(4):
                    x = column + 0.25 + 0.5 * (sample & 1)
                    y = row + 0.25 + 0.5 * (sample >> 1)
                    u, v = (x - left) / TILE, (y - top) / TILE
                    direction = _ray(rotation, intrinsics, x, y)
                    r, g, b = _sample(
                        shapes, materials, warp, margin, tile, count, table, knots, u, v, origin, direction, angle, light, salt
                    )
                    red += 0.25 * min(max(r, 0.0), 1.0)
                    green += 0.25 * min(max(g, 0.0), 1.0)
                    blue += 0.25 * min(max(b, 0.0), 1.0)
                color[row, column] = (red, green, blue)


@njit(cache=True, parallel=True)
def _render_geometry(shapes, warp, knots, margin, intrinsics, rotation, center, depth, canonical, normal, ids):
    """Fill the geometry maps of one view at the pixel centres."""
    height, width = depth.shape
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    origin = (center[0], center[1], center[2])
    for index in prange(across * down):
        top, left = (index // across) * TILE, (index % across) * TILE
        axis, cosine, sine = _tile_cone(rotation, intrinsics, top, left, top + TILE, left + TILE)
        tile = np.empty(shapes.kind.shape[0], np.int64)
        count = _cull(shapes, origin, axis, cosine, sine, margin, tile)
        table = np.empty((4, knots.shape[0], 3))
        _tabulate(warp, knots, origin, rotation, intrinsics, top, left, table)
        for row in range(top, min(top + TILE, height)):
            for column in range(left, min(left + TILE, width)):
                u, v = (column + 0.5 - left) / TILE, (row + 0.5 - top) / TILE
                direction = _ray(rotation, intrinsics, column + 0.5, row + 0.5)
                t, p = _cast(shapes, margin, tile, count, table, knots, u, v, origin, direction)
                depth[row, column] = 0.0
                canonical[row, column] = np.nan
                normal[row, column] = 0.0
                ids[row, column] = -1
                if p < 0:
                    continue
                t, x, y, z, settled = _polish(shapes, warp, p, origin, direction, t, SETTLED)
                depth[row, column] = t
                ids[row, column] = shapes.object_id[p]
                if not settled:
                    continue
                ux, uy, uz, vx, vy, vz = _unit_hit(shapes, p, x, y, z)
                px, py, pz = _apply(shapes.canonical_map[p], ux, uy, uz)
                base = shapes.canonical_center[p]
                canonical[row, column] = (px + base[0], py + base[1], pz + base[2])
                nx, ny, nz = _normal(shapes, p, vx, vy, vz)
                sign = -1.0 if nx * direction[0] + ny * direction[1] + nz * direction[2] > 0.0 else 1.0
                normal[row, column] = (sign * nx, sign * ny, sign * nz)


def render_view(shapes: Primitives, materials: Materials, warp: Warp, *, cameras: CameraSet, index: int, scale: float, salt: int) -> View:
    """The view of one camera.

    Args:
        shapes: posed for the frame.
        materials: table that `shapes.material` points into.
        warp: the frame's displacement field.
        cameras: the camera set; skew is ignored.
        index: position of the camera in the set.
        scale: median depth of the scene.
        salt: seed of the sky.
    """
    height, width = cameras.size
    K, c2w = cameras.K[index], cameras.c2w[index]
    view = View(
        color=np.empty((height, width, 3), np.float32),
        depth=np.empty((height, width), np.float32),
        canonical=np.empty((height, width, 3), np.float32),
        normal=np.empty((height, width, 3), np.float32),
        object_id=np.empty((height, width), np.int16),
    )
    # No displacement is longer than this.
    margin = float(np.linalg.norm(warp.amplitude, axis=1).sum() + np.linalg.norm(warp.jump)) + 1e-9
    intrinsics = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
    rotation = np.ascontiguousarray(c2w[:3, :3], dtype=np.float64)
    center = np.ascontiguousarray(c2w[:3, 3], dtype=np.float64)
    knots = KNOTS * scale
    light = LIGHT / np.linalg.norm(LIGHT)
    _render_color(shapes, materials, warp, knots, margin, intrinsics, rotation, center, light, salt, view.color)
    _render_geometry(shapes, warp, knots, margin, intrinsics, rotation, center, view.depth, view.canonical, view.normal, view.object_id)
    return view
