"""A coloured surface fused from rendered depth: truncated signed distances on a grid, then surface nets: well-shaped triangles, no
table of cases, and a third of the triangles of marching cubes or tetrahedra.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from utils.errors import DegenerateCloudError, MissingDependencyError
from utils.exports.meshes.volume import Volume, closed, empty_volume, free_around, integrate, without_edges
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array, Reporter, StepReport

_FARTHEST = 15.0
"""In median distances of the splats: what lies beyond is sky or backdrop, no surface, and would stretch the volume."""
_BOUNDS_STRIDE = 7
_VIEWS = 64
_LEAST_PART = 0.01
_PAIRS = 12
_SAME_SURFACE = 0.3
"""Share of the depth up to which two views mean the same surface."""
_CAREFUL = 3  # of fast-simplification's 0..10; more is faster, but leaves edges with more than two triangles
_ONE_SIDED = 0.5
_ROOM_AROUND_CAMERAS = 0.15
"""In mean depths: what a closed room leaves free around the cameras."""
_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
_CELL_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


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


@dataclass(frozen=True)
class SurfaceView:
    """What one camera sees of the world.

    Attributes:
        depth: (h, w) float32 camera z; 0 where no surface is seen or two are mixed.
        image: (h, w, 3) uint8.
        w2c: (4, 4).
        K: (3, 3) in pixels.
    """

    depth: Array
    image: Array
    w2c: Array
    K: Array


def surface_views(view: SplatView, longest: int, report: Reporter) -> list[SurfaceView]:
    """The world as some of the trained cameras see it, at most `_VIEWS` evenly chosen ones.

    Args:
        view: what is drawn; what is very far away is left out, as it is no surface.
        longest: longer side of the pictures in pixels, at least that of training.
        report: told of each.
    """
    cameras = view.trained.cameras
    if not np.isfinite(view.far):
        view = replace(view, far=_FARTHEST * view.median_depth)
    share = max(1.0, longest / max(cameras.size))
    cameras = cameras.resized((round(share * cameras.size[0]), round(share * cameras.size[1])))
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(_VIEWS, len(cameras))).round().astype(int))
    views = []
    for step, i in enumerate(chosen):
        output = view.render(cameras.c2w[i], cameras.K[i], cameras.size)
        views.append(SurfaceView(without_edges(depth_image(output)), rgb_image(output), cameras.w2c[i], cameras.K[i]))
        report.step(StepReport(stage="surface", step=step, total=len(chosen)))
    return views


def fuse_mesh(views: list[SurfaceView], resolution: int, *, watertight: bool = False) -> Mesh:
    """The surface that the views see, floaters removed.

    Args:
        views: depth and colour.
        resolution: voxels along the longest side.
        watertight: close what no view saw.

    Raises:
        DegenerateCloudError: the views show no surface.
    """
    points = _seen_points(views)
    centers = np.stack([-v.w2c[:3, :3].T @ v.w2c[:3, 3] for v in views])
    inside = _stand_inside(views, points)
    include = centers if watertight and inside else None
    volume = empty_volume(points, resolution, _disagreement(views), include)
    for view in views:
        integrate(volume, view.depth, view.image, view.w2c, view.K)
    if watertight:
        if inside:
            free_around(volume, centers, _ROOM_AROUND_CAMERAS * float(np.median([v.depth[v.depth > 0].mean() for v in views])))
        volume = closed(volume, from_inside=inside)
    mesh = extract(volume, edges=watertight)
    if not len(mesh.faces):
        raise DegenerateCloudError(
            "the renders show no surface to fuse", "raise --config.mesh-resolution, or check the world in the viewer"
        )
    return largest_parts(mesh)


def _stand_inside(views: list[SurfaceView], points: Array) -> bool:
    """Whether cameras stand in the world, as in a room, and not around an object that they look at from all sides."""
    centers = np.stack([-v.w2c[:3, :3].T @ v.w2c[:3, 3] for v in views])
    towards = np.median(points, axis=0) - centers
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    looking = float(np.mean([d @ v.w2c[2, :3] for d, v in zip(towards, views, strict=True)]))
    around = float(np.linalg.norm(towards.mean(axis=0))) < _ONE_SIDED
    return not (around and looking > _ONE_SIDED)


def _disagreement(views: list[SurfaceView]) -> float:
    """Distance between the surfaces that views a quarter of the path apart show, in scene units: upper quartile over pixels."""
    gaps, apart = [np.zeros(1)], max(1, len(views) // 4)
    for first, second in list(zip(views[:-apart], views[apart:], strict=True))[:: max(1, (len(views) - apart) // _PAIRS)]:
        points = _seen_points([first])
        local = points @ second.w2c[:3, :3].T + second.w2c[:3, 3]
        local = local[local[:, 2] > 0]
        x, y = (np.floor(second.K[k, k] * local[:, k] / local[:, 2] + second.K[k, 2]).astype(int) for k in (0, 1))
        h, w = second.depth.shape
        within = (x >= 0) & (y >= 0) & (x < w) & (y < h)
        shown, z = second.depth[y[within], x[within]], local[within, 2]
        gap = np.abs(shown - z)[shown > 0]
        gaps.append(gap[gap < _SAME_SURFACE * z[shown > 0]])
    return float(np.percentile(np.concatenate(gaps), 75))


def _seen_points(views: list[SurfaceView]) -> Array:
    """Some of the surface points that the views show."""
    points = []
    for view in views:
        y, x = np.nonzero(view.depth > 0)
        y, x = y[::_BOUNDS_STRIDE], x[::_BOUNDS_STRIDE]
        z, k = view.depth[y, x], view.K
        local = np.stack([(x + 0.5 - k[0, 2]) / k[0, 0] * z, (y + 0.5 - k[1, 2]) / k[1, 1] * z, z], axis=1)
        points.append((local - view.w2c[:3, 3]) @ view.w2c[:3, :3])
    return np.concatenate(points)


def extract(volume: Volume, *, edges: bool = False) -> Mesh:
    """The zero level of the distances, where all corners of a cell were seen; with `edges` also that between free and unseen space.

    One vertex per cell that the surface crosses, at the mean of its crossings of the cell's edges, and one quad per crossed edge of
    the grid, between the four cells around it (surface nets, Gibson 1998).
    """
    cells = np.stack(np.nonzero(_active_cells(volume, edges)), axis=1)
    corners = np.ravel_multi_index((cells[:, None] + _CORNERS).reshape(-1, 3).T, volume.distance.shape).reshape(-1, 8)
    distance = volume.distance.ravel()[corners].astype(np.float64)
    color = volume.color.reshape(-1, 3)[corners].astype(np.float64)
    first, second = np.array(_CELL_EDGES).T
    crossed = (distance[:, first] < 0) != (distance[:, second] < 0)
    gap = distance[:, first] - distance[:, second]
    share = np.where(crossed, distance[:, first] / np.where(crossed, gap, 1), 0)[..., None]
    weight = crossed[..., None] / crossed.sum(axis=1)[:, None, None]
    offset = (weight * (_CORNERS[first] + share * (_CORNERS[second] - _CORNERS[first]))).sum(axis=1)
    shade = (weight * (color[:, first] + share * (color[:, second] - color[:, first]))).sum(axis=1)
    vertices = volume.origin + volume.voxel * (cells + offset)
    return Mesh(vertices, np.clip(shade + 0.5, 0, 255).astype(np.uint8), _quads(volume, cells, vertices))


def _active_cells(volume: Volume, edges: bool) -> Array:
    """(X - 1, Y - 1, Z - 1) whether a cell was seen whole and the surface crosses it."""
    ends = tuple(n - 1 for n in volume.distance.shape)
    blocks = [tuple(slice(c, n + c) for c, n in zip(corner, ends, strict=True)) for corner in _CORNERS]
    lowest = np.minimum.reduce([volume.distance[b] for b in blocks])
    highest = np.maximum.reduce([volume.distance[b] for b in blocks])
    seen = np.minimum.reduce([volume.weight[b] for b in blocks]) > 0
    # A jump from free space to the far end of the truncation is an edge of what was seen, no surface.
    crossed = (lowest < 0) & (highest >= 0)
    if not edges:
        crossed &= highest - lowest < 1.5
    return seen & crossed


def _quads(volume: Volume, cells: Array, vertices: Array) -> Array:
    """(T, 3) triangles around the crossed edges of the grid whose four cells have a vertex, facing free space."""
    number = np.full(volume.distance.shape, -1, np.int64)
    number[tuple(cells.T)] = np.arange(len(cells))
    behind = volume.distance < 0
    faces = [np.zeros((0, 3), np.int64)]
    for axis in range(3):
        start = [slice(1, None)] * 3
        start[axis] = slice(0, -1)
        end = [slice(1, None)] * 3
        a, b = behind[tuple(start)], behind[tuple(end)]
        at = np.stack(np.nonzero(a != b), axis=1) + [k != axis for k in range(3)]
        u, v = np.eye(3, dtype=np.int64)[[(axis + 1) % 3, (axis + 2) % 3]]
        ring = np.stack([number[tuple((at - step).T)] for step in (0 * u, u, u + v, v)], axis=1)
        whole = (ring >= 0).all(axis=1)
        ring, forward = ring[whole], behind[tuple(at[whole].T)]
        ring = np.where(forward[:, None], ring, ring[:, ::-1])  # counter-clockwise about +axis where free space is that way
        faces.append(_split(ring, vertices))
    return np.concatenate(faces)


def _split(ring: Array, vertices: Array) -> Array:
    """Two triangles for each quad (Q, 4), cut along the shorter diagonal."""
    p = vertices[ring]
    other = np.linalg.norm(p[:, 0] - p[:, 2], axis=1) > np.linalg.norm(p[:, 1] - p[:, 3], axis=1)
    ring = np.where(other[:, None], np.roll(ring, -1, axis=1), ring)
    return np.concatenate([ring[:, [0, 1, 2]], ring[:, [0, 2, 3]]])


def largest_parts(mesh: Mesh) -> Mesh:
    """The mesh without loose parts that have less than a hundredth of the triangles of the largest part: floaters."""
    count, part = connected_parts(mesh)
    sizes = np.bincount(part[mesh.faces[:, 0]], minlength=count)
    return _only(mesh, sizes[part[mesh.faces[:, 0]]] >= _LEAST_PART * sizes.max(initial=0))


def connected_parts(mesh: Mesh) -> tuple[int, Array]:
    """How many parts hang together by edges, and (V,) the part of each vertex."""
    a, b = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]]).T
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(mesh.vertices),) * 2)
    return connected_components(graph, directed=False)


def _only(mesh: Mesh, keep: Array) -> Mesh:
    """The triangles to keep (T,) with the vertices that they use."""
    used, faces = np.unique(mesh.faces[keep].ravel(), return_inverse=True)
    return Mesh(mesh.vertices[used], mesh.colors[used], faces.reshape(-1, 3))


def simplified(mesh: Mesh, triangles: int) -> Mesh:
    """About the same surface with at most about `triangles` triangles, by quadric error (Garland and Heckbert 1997).

    Raises:
        MissingDependencyError: fast-simplification is not installed.
    """
    if len(mesh.faces) <= triangles:
        return mesh
    try:
        import fast_simplification
    except ModuleNotFoundError as error:
        raise MissingDependencyError("simplifying a mesh needs the package 'fast-simplification'", 'pip install -e ".[mesh]"') from error
    arrays = mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)
    points, faces = fast_simplification.simplify(*arrays, target_count=triangles, agg=_CAREFUL)
    nearest = cKDTree(mesh.vertices).query(points)[1]
    # Two triangles with the same corners, back to back, are a fold of no thickness; without both a closed surface stays closed.
    _, same, times = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    return _only(Mesh(points.astype(np.float64), mesh.colors[nearest], faces.astype(np.int64)), times[same.ravel()] == 1)


def vertex_normals(mesh: Mesh) -> Array:
    """(V, 3) unit normals, means of the triangles around a vertex weighted by their areas."""
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack([np.bincount(mesh.faces.ravel(), np.repeat(normal[:, k], 3), len(mesh.vertices)) for k in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-30), [0.0, 0.0, 1.0])
