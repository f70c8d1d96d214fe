"""A coloured surface fused from rendered depth: truncated signed distances on a grid, then marching tetrahedra.

Signed distance: positive in free space in front of a surface, negative behind it, in units of the truncation length (Curless and
Levoy 1996). Tetrahedra rather than cubes: sixteen cases need no table and leave no holes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.errors import DegenerateCloudError, MissingDependencyError
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array, Reporter, StepReport

_TRUNCATION_VOXELS = 4.0
_SLAB_VOXELS = 1_000_000
_FARTHEST = 15.0
"""In median distances of the splats: what lies beyond is sky or backdrop, no surface, and would stretch the volume."""
_BOUNDS_STRIDE = 7
# Six tetrahedra that share a cube's diagonal; corner number = 4 x + 2 y + z.
_TETRAHEDRA = ((0, 1, 3, 7), (0, 1, 5, 7), (0, 2, 3, 7), (0, 2, 6, 7), (0, 4, 5, 7), (0, 4, 6, 7))


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: (V, 3) canonical space.
        colors: (V, 3) uint8.
        faces: (T, 3) rows of vertices, counter-clockwise seen from free space.
    """

    vertices: Array
    colors: Array
    faces: Array


@dataclass
class Volume:
    """Distances on a grid of points `origin + voxel * (i, j, k)`.

    Attributes:
        origin: (3,).
        voxel: edge length.
        distance: (X, Y, Z) float32 mean truncated distance, -1..1.
        weight: (X, Y, Z) float32 number of views that saw the point.
        color: (X, Y, Z, 3) float32 mean colour, 0..255.
    """

    origin: Array
    voxel: float
    distance: Array
    weight: Array
    color: Array


def fuse_mesh(view: SplatView, resolution: int, report: Reporter) -> Mesh:
    """The surface that the trained cameras see.

    Raises:
        DegenerateCloudError: the renders show no surface.
    """
    cameras = view.trained.cameras
    if not np.isfinite(view.far):
        view = replace(view, far=_FARTHEST * view.median_depth)
    renders = []
    for i in range(len(cameras)):
        output = view.render(cameras.c2w[i], cameras.K[i], cameras.size)
        renders.append((depth_image(output), rgb_image(output)))
    volume = empty_volume(_seen_points([r[0] for r in renders], cameras.c2w, cameras.K), resolution)
    for i, (depth, image) in enumerate(renders):
        integrate(volume, depth, image, cameras.w2c[i], cameras.K[i])
        report.step(StepReport(stage="fuse", step=i, total=len(cameras)))
    mesh = extract(volume)
    if not len(mesh.faces):
        raise DegenerateCloudError(
            "the renders show no surface to fuse", "raise --config.mesh-resolution, or check the world in the viewer"
        )
    return mesh


def _seen_points(depths: list[Array], c2w: Array, K: Array) -> Array:
    """Some of the surface points that the renders show."""
    points = []
    for depth, pose, k in zip(depths, c2w, K, strict=True):
        y, x = np.nonzero(depth > 0)
        y, x = y[::_BOUNDS_STRIDE], x[::_BOUNDS_STRIDE]
        z = depth[y, x]
        local = np.stack([(x + 0.5 - k[0, 2]) / k[0, 0] * z, (y + 0.5 - k[1, 2]) / k[1, 1] * z, z], axis=1)
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
    return np.concatenate(points)


def empty_volume(points: Array, resolution: int) -> Volume:
    """A volume around most of the points, `resolution` voxels along its longest side.

    Raises:
        DegenerateCloudError: too few points.
    """
    if len(points) < 10:
        raise DegenerateCloudError("the renders show no surface to fuse", "check the world in the viewer")
    low, high = np.percentile(points, [1, 99], axis=0)
    voxel = float((high - low).max() / resolution)
    margin = 2 * _TRUNCATION_VOXELS * voxel
    shape = tuple(int(n) for n in np.ceil((high - low + 2 * margin) / voxel).astype(int) + 1)
    return Volume(
        origin=low - margin,
        voxel=voxel,
        distance=np.zeros(shape, np.float32),
        weight=np.zeros(shape, np.float32),
        color=np.zeros((*shape, 3), np.float32),
    )


def integrate(volume: Volume, depth: Array, image: Array, w2c: Array, K: Array) -> None:
    """Adds one view to the running means.

    Args:
        volume: changed in place.
        depth: (h, w) camera z, 0 where unknown.
        image: (h, w, 3) uint8.
        w2c: (4, 4).
        K: (3, 3) in pixels.
    """
    nx, ny, nz = volume.distance.shape
    slab = max(1, _SLAB_VOXELS // (ny * nz))
    grid_y, grid_z = np.meshgrid(np.arange(ny), np.arange(nz), indexing="ij")
    truncation = _TRUNCATION_VOXELS * volume.voxel
    for start in range(0, nx, slab):
        xs = np.arange(start, min(start + slab, nx))
        index = np.stack(np.broadcast_arrays(xs[:, None, None], grid_y[None], grid_z[None]), axis=-1)
        local = (volume.origin + volume.voxel * index) @ w2c[:3, :3].T + w2c[:3, 3]
        z = local[..., 2]
        safe = np.where(z > 1e-6, z, 1.0)
        u = np.floor(K[0, 0] * local[..., 0] / safe + K[0, 2]).astype(np.int64)
        v = np.floor(K[1, 1] * local[..., 1] / safe + K[1, 2]).astype(np.int64)
        inside = (z > 1e-6) & (u >= 0) & (u < depth.shape[1]) & (v >= 0) & (v < depth.shape[0])
        u, v = np.where(inside, u, 0), np.where(inside, v, 0)
        seen = depth[v, u]
        signed = (seen - z) / truncation
        use = inside & (seen > 0) & (signed > -1)
        part = slice(start, start + len(xs))
        count = volume.weight[part] + use
        share = np.where(use, 1 / np.maximum(count, 1), 0)
        volume.distance[part] += share * (np.clip(signed, -1, 1) - volume.distance[part])
        volume.color[part] += share[..., None] * (image[v, u] - volume.color[part])
        volume.weight[part] = count


def extract(volume: Volume) -> Mesh:
    """The zero level of the distances, where all corners of a cell were seen."""
    shape = volume.distance.shape
    corner_offsets = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    corners = _active_cells(volume)[:, None] + corner_offsets @ strides
    distance = volume.distance.ravel()
    edges, towards = [np.zeros((0, 3, 2), np.int64)], [np.zeros((0, 3))]
    for tetrahedron in _TETRAHEDRA:
        ids = corners[:, tetrahedron]
        for part in _triangles(ids, distance[ids] < 0):
            edges.append(part)
            # from behind the surface to in front of it, over the three edges
            ends = np.stack(np.unravel_index(part, shape), axis=-1).astype(np.float64)
            towards.append((ends[:, :, 1] - ends[:, :, 0]).sum(axis=1))
    return _weld(volume, np.concatenate(edges), np.concatenate(towards))


def _active_cells(volume: Volume) -> Array:
    """(C,) flat index of the first corner of the cells that were seen whole and that the surface crosses."""
    blocks = [
        (slice(x, volume.distance.shape[0] - 1 + x), slice(y, volume.distance.shape[1] - 1 + y), slice(z, volume.distance.shape[2] - 1 + z))
        for x in (0, 1)
        for y in (0, 1)
        for z in (0, 1)
    ]
    lowest = np.minimum.reduce([volume.distance[b] for b in blocks])
    highest = np.maximum.reduce([volume.distance[b] for b in blocks])
    seen = np.minimum.reduce([volume.weight[b] for b in blocks]) > 0
    # A jump from free space to the far end of the truncation is an edge of what was seen, no surface.
    crossed = (lowest < 0) & (highest >= 0) & (highest - lowest < 1.5)
    return np.ravel_multi_index(np.nonzero(seen & crossed), volume.distance.shape)


def _triangles(ids: Array, behind: Array) -> list[Array]:
    """Triangles of tetrahedra as (T, 3, 2): three edges each, from the corner behind the surface to the one in front.

    Args:
        ids: (C, 4) corners.
        behind: (C, 4) whether the corner lies behind the surface.
    """
    order = np.argsort(~behind, axis=1, kind="stable")
    count = behind.sum(axis=1)
    a, b, c, d = np.take_along_axis(ids, order, axis=1).T

    def edges(which: Array, *pairs: tuple[Array, Array]) -> Array:
        return np.stack([np.stack([p[which], q[which]], axis=1) for p, q in pairs], axis=1)

    one, two, three = count == 1, count == 2, count == 3
    return [
        edges(one, (a, b), (a, c), (a, d)),
        edges(three, (a, d), (b, d), (c, d)),
        edges(two, (a, c), (a, d), (b, d)),
        edges(two, (a, c), (b, d), (b, c)),
    ]


def _weld(volume: Volume, edges: Array, towards: Array) -> Mesh:
    """One vertex per crossed grid edge, triangles turned to face free space, degenerate ones dropped."""
    shape = volume.distance.shape
    total = int(np.prod(shape))
    keys = np.minimum(edges[..., 0], edges[..., 1]) * total + np.maximum(edges[..., 0], edges[..., 1])
    unique, faces = np.unique(keys.ravel(), return_inverse=True)
    first, second = unique // total, unique % total
    distance, color = volume.distance.ravel(), volume.color.reshape(-1, 3)
    share = (distance[first] / (distance[first] - distance[second]))[:, None]
    ends = [np.stack(np.unravel_index(i, shape), axis=1).astype(np.float64) for i in (first, second)]
    vertices = volume.origin + volume.voxel * (ends[0] + share * (ends[1] - ends[0]))
    colors = np.clip(color[first] + share * (color[second] - color[first]) + 0.5, 0, 255).astype(np.uint8)
    faces = faces.reshape(-1, 3)
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    away = (normal * towards).sum(axis=1) < 0
    faces[away] = faces[away][:, ::-1]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return Mesh(vertices, colors, faces[distinct])


def write_mesh(path: Path, mesh: Mesh, kind: str) -> None:
    """Writes the mesh as "ply" or "glb" with vertex colours.

    Raises:
        MissingDependencyError: trimesh is not installed.
    """
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise MissingDependencyError("mesh export needs the package 'trimesh', which is not installed", "pip install trimesh") from error
    model = trimesh.Trimesh(vertices=mesh.vertices, faces=mesh.faces, vertex_colors=mesh.colors, process=False)
    exported = model.export(file_type=kind)
    assert isinstance(exported, bytes)  # both kinds are binary
    path.write_bytes(exported)
