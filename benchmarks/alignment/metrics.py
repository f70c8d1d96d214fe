"""How well reconstructed canonical positions of a synthetic world agree with each other and with the truth.

Everything is measured after one global similarity fit of all points to the truth. Symbols: X is the true canonical point of a pixel,
Q the reconstructed one after the fit, e = Q - X its error. Lengths are in scene units, and once more in percent of the median depth.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from utils.cameras.similarity import Similarity, fit_points, fit_similarity
from utils.errors import GeometryError
from utils.synthetic import SyntheticWorld
from utils.types import Array, CameraSet

GAPS = (1, 2, 4, 8, 16, 32)
PIXELS_PER_PAIR = 400
PAIRS_PER_GAP = 48
# A partner is accepted if it shows the same point to this share of the distance between neighbouring pixels' points ...
SAME_POINT = 0.5
# ... and its four pixels lie on one surface: their points are closer together than this share of their depth.
ONE_SURFACE = 0.05
THICKNESS_POINTS = 60_000
THICKNESS_QUERIES = 1_500
THICKNESS_NEIGHBOURS = 32
THICKNESS_RADIUS = 0.02  # of the median depth
SAME_NORMAL = 0.9
SIGMA_PER_DEVIATION = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
CLOUD_POINTS = 250_000
CLOUD_QUERIES = 20_000
F_SCORE_THRESHOLD = 0.005  # of the median depth


@dataclass(frozen=True)
class Correspondences:
    """M pairs of a pixel and the place where another frame shows the same true point.

    Attributes:
        gap: (M,) frames between the two.
        frame: (M, 2) index of both frames.
        pixel: (M, 2) row and column in the first frame.
        place: (M, 2) x and y in the second frame, in pixels (pixel centres at +0.5).
        corner: (M, 2) row and column of the upper left of the four pixels around `place`.
    """

    gap: Array
    frame: Array
    pixel: Array
    place: Array
    corner: Array

    def __len__(self) -> int:
        return len(self.gap)


def fit_to_truth(world: SyntheticWorld, points: Array, mask: Array) -> Similarity:
    """The similarity from reconstructed points to the truth, see `fit_points`.

    Args:
        world: the truth.
        points: (F, H, W, 3) reconstructed canonical positions.
        mask: (F, H, W) bool, pixels to use; where true, points and truth must be finite.
    """
    index = np.flatnonzero(mask)
    truth, depth = world.canonical.reshape(-1, 3)[index], world.depth.reshape(-1)[index]
    return fit_points(points.reshape(-1, 3)[index], truth, depth)


def _subset(index: Array, count: int) -> Array:
    """At most `count` of the entries, at random but always the same; in order."""
    if len(index) <= count:
        return index
    return np.sort(np.random.default_rng(0).choice(index, count, replace=False))


def find_correspondences(world: SyntheticWorld, gaps: tuple[int, ...] = GAPS) -> Correspondences:
    """Pixels of different frames that see the same true point, at random pixels of all or many pairs of every gap.

    A true point is shown by frame j where its displacement puts it; it is visible there if the canonical points around that place
    agree with it.
    """
    rng = np.random.default_rng(1)
    found = []
    for gap in gaps:
        starts = np.arange(len(world) - gap) if gap < len(world) else np.arange(0)
        if len(starts) > PAIRS_PER_GAP:
            starts = np.sort(rng.choice(starts, PAIRS_PER_GAP, replace=False))
        for start in starts:
            # Both directions, so that what only one of the two frames sees well is not favoured.
            for first, second in ((int(start), int(start) + gap), (int(start) + gap, int(start))):
                found.append(_partners(world, first, second, rng))
    if not found:
        raise GeometryError(f"{len(world)} frame has no pairs", "make a world of at least two frames")
    columns = [np.concatenate(part) for part in zip(*found, strict=True)]
    return Correspondences(*columns)


def _partners(world: SyntheticWorld, first: int, second: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """The columns of `Correspondences` for random pixels of one frame and their places in another."""
    candidates = np.argwhere(world.valid[first])
    pixel = candidates[rng.choice(len(candidates), min(PIXELS_PER_PAIR, len(candidates)), replace=False)]
    pixel, place, corner = true_partners(world, first, second, pixel)
    gap = np.full(len(pixel), abs(second - first))
    return gap, np.tile([first, second], (len(pixel), 1)), pixel, place, corner


def true_partners(world: SyntheticWorld, first: int, second: int, pixel: Array) -> tuple[Array, Array, Array]:
    """Where another frame shows what pixels (M, 2: row, column) of one frame show, from the truth.

    Returns:
        Of the N <= M pixels that the other frame sees on one surface: the pixels (N, 2), their places (N, 2) x and y there, and the
        upper left (N, 2) of the four pixels around each place.
    """
    height, width = world.cameras.size
    truth = world.canonical[first][pixel[:, 0], pixel[:, 1]].astype(np.float64)
    shown = world.deform(second, truth, world.object_id[first][pixel[:, 0], pixel[:, 1]])
    w2c = world.cameras.w2c[second]
    camera = shown @ w2c[:3, :3].T + w2c[:3, 3]
    projected = camera @ world.cameras.K[second].T
    place = projected[:, :2] / np.where(np.abs(projected[:, 2:]) < 1e-12, 1e-12, projected[:, 2:])
    corner = np.floor(place[:, ::-1] - 0.5)
    inside = (camera[:, 2] > 0) & (corner >= 0).all(1) & (corner[:, 0] < height - 1) & (corner[:, 1] < width - 1)
    pixel, truth, place, corner = pixel[inside], truth[inside], place[inside], corner[inside].astype(np.int64)
    around = _around(world.canonical[second], corner).astype(np.float64)
    spread = np.linalg.norm(around - around[:, ::-1], axis=-1).max(1)
    seen = (_bilinear(place, corner)[..., None] * around).sum(1)
    depth = _around(world.depth[second], corner).min(1)
    # Comparisons with NaN are false: a partner with an unknown pixel is dropped.
    same = (np.linalg.norm(seen - truth, axis=1) < SAME_POINT * spread) & (spread < ONE_SURFACE * depth)
    return pixel[same], place[same], corner[same]


def _around(image: Array, corner: Array) -> Array:
    """(M, 4, ...) the values of four pixels: upper left, upper right, lower left, lower right."""
    row, column = corner[:, 0], corner[:, 1]
    return np.stack([image[row, column], image[row, column + 1], image[row + 1, column], image[row + 1, column + 1]], axis=1)


def _bilinear(place: Array, corner: Array) -> Array:
    """(M, 4) bilinear weights of the four pixels of `_around`."""
    right = place[:, 0] - 0.5 - corner[:, 1]
    down = place[:, 1] - 0.5 - corner[:, 0]
    return np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], axis=1)


def consistency_distances(error: Array, mask: Array, pairs: Correspondences) -> tuple[Array, Array]:
    """Distances between the reconstructed positions of the two pixels of each pair, and the gaps of those pairs.

    Q_i(p) - Q_j(q) = e_i(p) - e_j(q), because both show the same X; errors are interpolated instead of positions, so that the
    curvature of the perspective between two pixel centres does not count as inconsistency.

    Args:
        error: (F, H, W, 3) e.
        mask: (F, H, W) bool; pairs that touch a pixel outside are dropped.
        pairs: the correspondences.
    """
    first, second = pairs.frame[:, 0], pairs.frame[:, 1]
    row, column = pairs.corner[:, 0], pairs.corner[:, 1]
    keep = mask[first, pairs.pixel[:, 0], pairs.pixel[:, 1]].copy()
    weight = _bilinear(pairs.place, pairs.corner)
    there = np.zeros((len(pairs), 3))
    for index, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        keep &= mask[second, row + down, column + right]
        there += weight[:, index, None] * error[second, row + down, column + right]
    here = error[first, pairs.pixel[:, 0], pairs.pixel[:, 1]]
    return np.linalg.norm(here - there, axis=1)[keep], pairs.gap[keep]


def thickness(world: SyntheticWorld, error: Array, mask: Array) -> float:
    """Mean standard deviation, along the true normal, of the errors of neighbouring points of all frames.

    From the median absolute deviation of each neighbourhood: one mixed depth at an edge is a stray point, not a thick surface.
    """
    index = _subset(np.flatnonzero(mask), THICKNESS_POINTS)
    points = world.canonical.reshape(-1, 3)[index]
    normals = world.normal.reshape(-1, 3)[index]
    errors = error.reshape(-1, 3)[index]
    queries = _subset(np.arange(len(index)), THICKNESS_QUERIES)
    neighbours = min(THICKNESS_NEIGHBOURS, len(index))
    distance, near = cKDTree(points).query(points[queries], k=neighbours)
    distance, near = distance.reshape(len(queries), -1), near.reshape(len(queries), -1)
    normal = normals[queries][:, None, :]
    alike = (normals[near] * normal).sum(-1) > SAME_NORMAL
    alike &= distance < THICKNESS_RADIUS * world.median_depth
    count = alike.sum(1)
    height = np.where(alike, (errors[near] * normal).sum(-1), np.nan)
    enough = count >= neighbours // 3
    if not enough.any():
        raise GeometryError("no neighbourhood is dense enough for a thickness", "use more frames or a larger size")
    height = height[enough]
    deviation = np.nanmedian(np.abs(height - np.nanmedian(height, axis=1, keepdims=True)), axis=1)
    return float(SIGMA_PER_DEVIATION * deviation.mean())


def f_score(world: SyntheticWorld, points: Array, mask: Array, threshold: float) -> float:
    """F-score 0..1 of the reconstructed cloud against the true one at a distance in scene units.

    Args:
        world: the truth.
        points: (F, H, W, 3) reconstructed, after the similarity fit.
        mask: (F, H, W) bool, pixels that were reconstructed; the truth is all that the frames see.
        threshold: distance up to which a point counts as met.
    """
    truth = world.canonical[world.valid]
    cloud = points[mask].astype(np.float32)
    shares = []
    for queries, base in ((cloud, truth), (truth, cloud)):
        tree = cKDTree(base[_subset(np.arange(len(base)), CLOUD_POINTS)])
        chosen = queries[_subset(np.arange(len(queries)), CLOUD_QUERIES)]
        distance, _ = tree.query(chosen, distance_upper_bound=threshold)
        shares.append(float(np.isfinite(distance).mean()))
    precision, recall = shares
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def trajectory_error(world: SyntheticWorld, cameras: CameraSet) -> tuple[float, float]:
    """RMS distance of the camera centres after their own similarity fit, and RMS angle in degrees after the best rotation."""
    ones = np.ones(len(cameras))
    fit = fit_similarity(cameras.centers, world.cameras.centers, ones)
    distance = np.linalg.norm(fit.apply(cameras.centers) - world.cameras.centers, axis=1)
    # The common rotation is taken from the orientations: centres on a line leave it open.
    relative = world.cameras.c2w[:, :3, :3] @ np.swapaxes(cameras.c2w[:, :3, :3], 1, 2)
    u, _, vt = np.linalg.svd(relative.sum(0))
    common = (u * np.array([1.0, 1.0, np.linalg.det(u @ vt)])) @ vt
    trace = np.einsum("ij,fij->f", common, relative)
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0)))
    return float(np.sqrt((distance**2).mean())), float(np.sqrt((angle**2).mean()))


def removed(before: float, after: float, oracle: float) -> float:
    """Share of the removable error that was removed, in percent; removable is what the oracle does not have."""
    if before <= oracle:
        raise GeometryError(f"nothing to remove: input {before:.4g}, oracle {oracle:.4g}", "use a world with a higher severity")
    return 100.0 * (before - after) / (before - oracle)


def evaluate(
    world: SyntheticWorld,
    points: Array,
    mask: Array,
    cameras: CameraSet | None = None,
    correspondences: Correspondences | None = None,
) -> dict[str, float]:
    """All metrics of one reconstruction.

    Args:
        world: the truth.
        points: (F, H, W, 3) reconstructed canonical position of every pixel.
        mask: (F, H, W) bool, the pixels that were reconstructed.
        cameras: the F reconstructed cameras; the trajectory is left out if None.
        correspondences: of `find_correspondences(world)`, to find them once for several reconstructions.

    Returns:
        `consistency_median`, `_mean` and `consistency_gap_N` (medians), `thickness`, `error_to_truth` (median),
        `error_to_truth_p90`, `trajectory_error`: scene units, each also with `_percent` of the median depth. `fit_scale`: what the
        reconstruction must be multiplied with (above 1: it has shrunk). `f_score` 0..1. `rotation_error_deg`. `num_pairs`, `coverage`.

    Raises:
        GeometryError: nothing to compare.
    """
    use = mask & world.valid & np.isfinite(points).all(-1)
    if np.count_nonzero(use) < 100:
        raise GeometryError(f"{np.count_nonzero(use)} reconstructed pixels to compare", "pass the mask of aligned pixels")
    fit = fit_to_truth(world, points, use)
    fitted = fit.apply(np.where(use[..., None], points, 0.0).astype(np.float64))
    error = np.where(use[..., None], fitted - world.canonical, 0.0)
    pairs = find_correspondences(world) if correspondences is None else correspondences
    distance, gap = consistency_distances(error, use, pairs)
    if not len(distance):
        raise GeometryError("no two reconstructed pixels see the same point", "pass more frames or a larger mask")
    size = np.linalg.norm(error[use], axis=1)
    lengths = {"consistency_median": float(np.median(distance)), "consistency_mean": float(distance.mean())}
    for value in np.unique(gap):
        lengths[f"consistency_gap_{value}"] = float(np.median(distance[gap == value]))
    lengths["thickness"] = thickness(world, error, use)
    lengths["error_to_truth"] = float(np.median(size))
    lengths["error_to_truth_p90"] = float(np.quantile(size, 0.9))
    other = {"fit_scale": fit.scale, "num_pairs": float(len(distance)), "coverage": float(use.sum() / world.valid.sum())}
    other["f_score"] = f_score(world, fitted, use, F_SCORE_THRESHOLD * world.median_depth)
    if cameras is not None and len(cameras) >= 3:
        lengths["trajectory_error"], other["rotation_error_deg"] = trajectory_error(world, cameras)
    percent = {f"{name}_percent": 100.0 * value / world.median_depth for name, value in lengths.items()}
    return {**lengths, **percent, **other}


def input_points(world: SyntheticWorld) -> tuple[Array, Array, CameraSet]:
    """The predicted geometry as it is: positions (F, H, W, 3) float32, mask (F, H, W) of the seen surfaces, cameras."""
    scene = world.predicted_scene()
    height, width = scene.cameras.size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    points = np.empty((*scene.depth.shape, 3), np.float32)
    for frame, (c2w, K) in enumerate(zip(scene.cameras.c2w, scene.cameras.K, strict=True)):
        camera = (pixels @ np.linalg.inv(K).T) * scene.depth[frame][..., None]
        points[frame] = camera @ c2w[:3, :3].T + c2w[:3, 3]
    return points, world.valid, scene.cameras
