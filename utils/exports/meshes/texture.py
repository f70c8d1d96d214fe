"""A texture for a mesh: an atlas of its surface, each texel coloured from the views that see it best.

The views are renders of the consistent world, not the frames of the clip: frames of a generated clip disagree by several pixels,
and blending them blurs or doubles what the splats show once.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy.ndimage import distance_transform_edt

from utils.errors import MissingDependencyError
from utils.exports.meshes.mesh import Mesh, SurfaceView, vertex_normals
from utils.types import Array

# A view sees a texel if the texel is not farther behind what the view shows than this share of its depth.
_BEHIND = 0.02
# Weight of a view: (cosine of the angle of view / distance squared) to this power; larger is sharper, with harder seams.
_SHARPNESS = 3.0
_LEAST_COSINE = 0.05


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh whose vertices are split at the seams of its atlas.

    Attributes:
        vertices: (V, 3).
        normals: (V, 3) unit.
        uv: (V, 2) place in the texture, 0..1, v downwards as in glTF.
        faces: (T, 3).
        texture: (s, s, 3) uint8 sRGB.
        seen: share of the surface's texels that a view saw; the others have the colours of their neighbours.
    """

    vertices: Array
    normals: Array
    uv: Array
    faces: Array
    texture: Array
    seen: float


def textured(mesh: Mesh, views: list[SurfaceView], size: int) -> TexturedMesh:
    """The mesh with a texture of (size, size) texels.

    Raises:
        MissingDependencyError: xatlas is not installed.
    """
    origin, faces, uv = _unwrapped(mesh, size)
    vertices, normals = mesh.vertices[origin], vertex_normals(mesh)[origin]
    place, direction, covered = _rasterized(uv * size, faces, vertices, normals, size)
    total, weight = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    for view in views:
        center = -view.w2c[:3, :3].T @ view.w2c[:3, 3]
        arrays = (view.depth, view.image, np.ascontiguousarray(view.w2c), np.ascontiguousarray(view.K))
        _add_view(place, direction, covered, *arrays, center, total, weight)
    seen = weight > 0
    nearest = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    color = (total / np.maximum(weight, 1e-30)[..., None])[tuple(nearest)]
    share = float((seen & covered).sum() / max(int(covered.sum()), 1))
    return TexturedMesh(vertices, normals, uv, faces, np.clip(color + 0.5, 0, 255).astype(np.uint8), share)


def _unwrapped(mesh: Mesh, size: int) -> tuple[Array, Array, Array]:
    """Vertex of the mesh (V,) for each vertex of the atlas, faces (T, 3) and uv (V, 2)."""
    try:
        import xatlas
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a textured mesh needs the package 'xatlas', which is not installed", 'pip install -e ".[mesh]"'
        ) from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_iterations = 1
    packing.resolution, packing.padding, packing.bilinear, packing.bruteForce = size, 2, True, False
    atlas.generate(charts, packing)
    origin, faces, uv = atlas[0]
    return origin.astype(np.int64), faces.astype(np.int64), uv.astype(np.float64)


@njit(cache=True)
def _rasterized(uv, faces, vertices, normals, size):
    """Position and normal of the surface at the centre of each texel, and which texels the atlas covers."""
    place, direction = np.zeros((size, size, 3), np.float32), np.zeros((size, size, 3), np.float32)
    covered = np.zeros((size, size), np.bool_)
    for t in range(len(faces)):
        a, b, c = faces[t]
        ax, ay, bx, by, cx, cy = uv[a, 0], uv[a, 1], uv[b, 0], uv[b, 1], uv[c, 0], uv[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0:
            continue
        for row in range(max(0, int(min(ay, by, cy)) - 1), min(size, int(max(ay, by, cy)) + 2)):
            for column in range(max(0, int(min(ax, bx, cx)) - 1), min(size, int(max(ax, bx, cx)) + 2)):
                x, y = column + 0.5, row + 0.5
                u = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
                v = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
                w = 1 - u - v
                if min(u, v, w) < -1e-6:
                    continue
                covered[row, column] = True
                for k in range(3):
                    place[row, column, k] = u * vertices[a, k] + v * vertices[b, k] + w * vertices[c, k]
                    direction[row, column, k] = u * normals[a, k] + v * normals[b, k] + w * normals[c, k]
    return place, direction, covered


@njit(parallel=True, cache=True)
def _add_view(place, direction, covered, depth, image, w2c, K, center, total, weight):
    """Adds what a view shows of the texels, bilinearly, weighted by how well it sees them."""
    h, w = depth.shape
    for row in prange(covered.shape[0]):
        for column in range(covered.shape[1]):
            if not covered[row, column]:
                continue
            p = place[row, column]
            z = w2c[2, 0] * p[0] + w2c[2, 1] * p[1] + w2c[2, 2] * p[2] + w2c[2, 3]
            if z <= 1e-6:
                continue
            x = K[0, 0] * (w2c[0, 0] * p[0] + w2c[0, 1] * p[1] + w2c[0, 2] * p[2] + w2c[0, 3]) / z + K[0, 2]
            y = K[1, 1] * (w2c[1, 0] * p[0] + w2c[1, 1] * p[1] + w2c[1, 2] * p[2] + w2c[1, 3]) / z + K[1, 2]
            if x < 0.5 or y < 0.5 or x >= w - 0.5 or y >= h - 0.5:
                continue
            shown = depth[int(y), int(x)]
            if shown <= 0 or z > shown * (1 + _BEHIND):
                continue
            n = direction[row, column]
            ox, oy, oz = center[0] - p[0], center[1] - p[1], center[2] - p[2]
            squared = ox * ox + oy * oy + oz * oz
            length = np.sqrt(squared * (n[0] * n[0] + n[1] * n[1] + n[2] * n[2]))
            cosine = (n[0] * ox + n[1] * oy + n[2] * oz) / max(length, 1e-30)
            if cosine < _LEAST_COSINE:
                continue
            share = (cosine / squared) ** _SHARPNESS
            left, top = int(x - 0.5), int(y - 0.5)
            right, bottom = min(left + 1, w - 1), min(top + 1, h - 1)
            fx, fy = x - 0.5 - left, y - 0.5 - top
            weight[row, column] += share
            for k in range(3):
                upper = (1 - fx) * image[top, left, k] + fx * image[top, right, k]
                lower = (1 - fx) * image[bottom, left, k] + fx * image[bottom, right, k]
                total[row, column, k] += share * ((1 - fy) * upper + fy * lower)
