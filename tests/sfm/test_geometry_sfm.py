"""Structure from motion, flow depth and bundle adjustment, on rendered worlds with known truth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.twins import GPU
from utils.cameras import se3
from utils.cameras.projection import invert_rigid
from utils.errors import GeometryError, InputError, UnknownBackendError
from utils.geometry_backend import GEOMETRY, ClipFrames
from utils.sfm import depth_completion, flow_depth, plane_sweep
from utils.sfm import mapping as sfm_poses
from utils.sfm.backend import MEDIAN_DEPTH, SfmGeometry, _match, choose_neighbours
from utils.sfm.depth_completion import PosedClip
from utils.sfm.depth_filling import edge_couplings, fill_and_smooth, fill_layers, fill_robust, scatter_weight
from utils.sfm.flow_depth import RayDepth
from utils.sfm.plane_sweep import downweight_contradicted, sweep
from utils.sfm.solvers import dense_bundle_adjustment as flow_bundle
from utils.sfm.solvers import parts as solver_parts
from utils.synthetic.world import SyntheticWorld, WorldConfig, make_world
from utils.types import NULL_REPORTER, Array, CameraSet

K = np.array([[200.0, 0, 126], [0, 190, 70], [0, 0, 1]])


def alike(frames: int, *zoom: float) -> np.ndarray:
    """(frames, 3, 3) that camera for every frame, its focal length times `zoom`."""
    intrinsics = np.repeat(K[None], frames, 0)
    intrinsics[:, [0, 1], [0, 1]] *= np.array(zoom or (1.0,))[:, None]
    return intrinsics


SIZE = (140, 252)


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N, 3) source moved onto target by the best similarity."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    return (s * np.diag(flip)).sum() / (a**2).sum() * a @ (u @ flip @ vt).T + target.mean(0)


def plane_view(w2c: np.ndarray, normal: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Grey image and depth of a textured plane n.x = d seen by a camera: smooth texture fixed to the plane."""
    c2w = np.linalg.inv(w2c)
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    ray = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1) @ c2w[:3, :3].T
    depth = (distance - normal @ c2w[:3, 3]) / (ray @ normal)
    point = c2w[:3, 3] + depth[..., None] * ray
    rng = np.random.default_rng(3)
    waves = sum(np.sin(point @ rng.normal(0, f, 3) + rng.uniform(0, 6)) for f in (2.0, 4.0, 7.0, 11.0) for _ in range(6))
    return np.clip(128 + 22 * waves, 0, 255).astype(np.uint8), depth.astype(np.float32)


def plane_clip() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five views of a slanted plane: greys (5, H, W), depths (5, H, W), w2c (5, 4, 4)."""
    twists = np.zeros((5, 6))
    twists[:, 3] = np.linspace(-0.6, 0.6, 5)
    twists[:, 4] = [0.1, -0.1, 0, 0.1, -0.1]
    twists[:, 1] = np.linspace(-0.08, 0.08, 5)
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    views = [plane_view(pose, np.array([0.3, 0.1, 1.0]), 4.0) for pose in w2c]
    return np.stack([g for g, _ in views]), np.stack([d for _, d in views]), w2c


def test_flow_through_depth_triangulates_the_plane() -> None:
    grays, depths, w2c = plane_clip()
    inverse = np.full(SIZE, 1 / 4.0, np.float32)
    others = [0, 1, 3, 4]
    relative = w2c[others] @ np.linalg.inv(w2c[2])
    for _ in range(2):
        found = [
            flow_depth.match_through_depth(grays[2], grays[k], inverse, (T[:3, :3].copy(), T[:3, 3].copy()), K)
            for k, T in zip(others, relative, strict=True)
        ]
        ray = flow_depth.triangulate(
            np.stack([m for m, _ in found]), np.stack([t for _, t in found]), relative[:, :3, :3], relative[:, :3, 3], K
        )
        inverse, _ = fill_and_smooth(ray.inverse, ray.weight, edge_couplings(np.repeat(grays[2][..., None], 3, -1)), 15.0)
    measured = ray.weight > 0
    error = np.abs(ray.inverse * depths[2] - 1)
    assert measured.mean() > 0.9
    assert np.median(error[measured]) < 0.004
    assert np.median(np.abs(inverse * depths[2] - 1)) < 0.004


def test_exact_matches_give_exact_depth_and_far_points_are_known_as_far() -> None:
    _, depths, w2c = plane_clip()
    relative = w2c[[0, 1, 3, 4]] @ np.linalg.inv(w2c[2])
    starts = [flow_depth.project_inverse(1 / depths[2], T[:3, :3].copy(), T[:3, 3].copy(), K) for T in relative]
    trusted = np.stack([visible for _, visible in starts])
    ray = flow_depth.triangulate(np.stack([m for m, _ in starts]), trusted, relative[:, :3, :3], relative[:, :3, 3], K)
    both = trusted.all(0)
    np.testing.assert_allclose(1 / ray.inverse[both], depths[2][both], rtol=2e-4)
    assert not ray.far[both].any()
    infinite = [flow_depth.project_inverse(np.zeros(SIZE, np.float32), T[:3, :3].copy(), T[:3, 3].copy(), K) for T in relative]
    ray = flow_depth.triangulate(
        np.stack([m for m, _ in infinite]), np.stack([v for _, v in infinite]), relative[:, :3, :3], relative[:, :3, 3], K
    )
    assert ray.far[np.stack([v for _, v in infinite]).all(0)].all()


def test_agreement_rewards_the_true_surface_and_punishes_floaters() -> None:
    _, depths, w2c = plane_clip()
    votes = flow_depth.agreement(depths, w2c, K)
    assert np.median(votes) > 0.95
    floating = depths.copy()
    floating[2, 60:80, 110:140] *= 0.7
    assert flow_depth.agreement(floating, w2c, K)[2, 62:78, 112:138].max() < 0.1


def test_depth_is_carried_from_other_frames() -> None:
    _, depths, w2c = plane_clip()
    inverse, trusted = 1 / depths, np.ones(depths.shape, bool)
    inverse[2], trusted[2] = 9.0, False
    value, count = flow_depth.reproject_depth(inverse, trusted, w2c, alike(len(w2c)), 2)
    assert (count > 0).mean() > 0.95 and count.max() == 4
    assert np.median(np.abs(value * depths[2] - 1)[count > 0]) < 0.004


def test_plane_sweep_finds_the_plane_across_a_blank_patch_and_doubts_what_contradicts_it() -> None:
    grays, depths, w2c = plane_clip()
    relative = w2c @ np.linalg.inv(w2c[2])
    patch = np.array([[x, y] for x in (-0.5, 0.5) for y in (-0.3, 0.3)])
    corners = np.column_stack([patch, 4.0 - 0.3 * patch[:, 0] - 0.1 * patch[:, 1]]) @ w2c[2][:3, :3].T + w2c[2][:3, 3]
    for gray, T in zip(grays, relative, strict=True):
        seen = (corners @ T[:3, :3].T + T[:3, 3]) @ K.T
        outline = cv2.convexHull((seen[:, :2] / seen[:, 2:]).astype(np.int32))
        cv2.fillConvexPoly(gray, outline, 128)
    others = [0, 1, 3, 4]
    poses = np.ascontiguousarray(relative[others, :3, :3]), np.ascontiguousarray(relative[others, :3, 3])
    # Only the range of the given depth counts.
    given = np.linspace(1 / 6, 1 / 3, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    swept, spacing = sweep(np.repeat(grays[2][..., None], 3, -1), grays[[2, *others]], poses, K, given)
    truth = 1 / depths[2]
    blank = cv2.erode((grays[2] == 128).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert blank.sum() > 500
    error = np.abs(swept / truth - 1)
    assert np.median(error) < 0.01 and np.median(error[blank]) < 0.03
    weight = np.ones(SIZE, np.float32)
    assert downweight_contradicted(truth, weight, swept, spacing)[blank].mean() > 0.7
    assert downweight_contradicted(0.7 * truth, weight, swept, spacing)[blank].max() < 0.1


def test_flow_does_not_depend_on_what_its_thread_matched_before() -> None:
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 256, (220, 300)).astype(np.uint8), (0, 0), 2)
    for size in ((140, 252), (90, 120), (140, 252), (120, 90)):
        a, b = (np.ascontiguousarray(wall[: size[0], x : size[1] + x]) for x in (0, 3))
        fresh = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        fresh.setFinestScale(0)
        fresh.setVariationalRefinementAlpha(5.0)
        np.testing.assert_array_equal(flow_depth.dense_flow(a.size).calc(a, b, None), fresh.calc(a, b, None))


def plain_costs(grays: Array, poses: tuple[Array, Array], planes: Array, keep: Array) -> Array:
    """What `plane_sweep._costs` says it computes, in array operations of float64."""

    def blur(image: Array) -> Array:
        return cv2.blur(image, (5, 5))

    def whole(mask: Array) -> Array:
        return cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0

    def look(image: Array, at: Array) -> Array:
        coordinates = np.moveaxis(at - 0.5, -1, 0)[::-1]
        return ndimage.map_coordinates(image, coordinates, order=1, mode="nearest")

    grays = grays.astype(np.float64)
    mean = blur(grays[0])
    variance = blur(grays[0] ** 2) - mean**2
    costs, comparable = [], whole(keep[0])
    for plane in planes:
        alike, hidden = [], np.zeros(mean.shape)
        for gray, mask, R, t in zip(grays[1:], keep[1:], *poses, strict=True):
            at, visible = flow_depth.project_inverse(np.full(mean.shape, plane, np.float32), R, t, K)
            seen, unmasked = look(gray, at), whole(look(mask.astype(np.float64), at) > 0.999)
            hidden += visible & ~unmasked
            spread = blur(seen**2) - blur(seen) ** 2
            common = blur(grays[0] * seen) - mean * blur(seen)
            alike.append(np.where(visible & unmasked, (common + 1) / np.sqrt((variance + 2) * (spread + 2)), -1))
        half = max(min(2, len(alike)), len(grays) // 2)
        comparable = comparable & (hidden <= len(alike) - half)
        costs.append(1 - np.clip(np.sort(alike, axis=0)[-half:].mean(0), 0, 1))
    return np.stack(costs, -1) * np.where(comparable, variance / (variance + 64), 0)[..., None]


def test_costs_of_a_sweep_are_those_of_its_plain_twin() -> None:
    grays, _, w2c = plane_clip()
    others = [0, 1, 3, 4]
    relative = w2c[others] @ np.linalg.inv(w2c[2])
    poses = np.ascontiguousarray(relative[:, :3, :3]), np.ascontiguousarray(relative[:, :3, 3])
    keep = np.ones((5, *SIZE), bool)
    keep[0, 40:80, 100:160] = False
    keep[2:, 90:120, 20:150] = False
    planes, shown = np.linspace(0.15, 0.4, 5), grays[[2, *others]].astype(np.float32)
    got, expected = plane_sweep._costs(shown, poses, K, planes, keep), plain_costs(shown, poses, planes, keep)
    assert (expected == 0).mean() > 0.05 and (expected > 0.1).mean() > 0.3
    # a mask's edge or the picture's may fall on either side of a pixel
    assert (np.abs(got - expected) > 1e-4).mean() < 1e-3


def test_a_plane_sweep_abstains_where_it_has_nothing_to_tell_by() -> None:
    grays, depths, w2c = plane_clip()
    others = [0, 1, 3, 4]
    relative = w2c[others] @ np.linalg.inv(w2c[2])
    poses = np.ascontiguousarray(relative[:, :3, :3]), np.ascontiguousarray(relative[:, :3, 3])
    inverse, weight = (1 / depths[2]).astype(np.float32), np.ones(SIZE, np.float32)
    color = np.repeat(grays[2][..., None], 3, -1)
    blank = grays[[2, *others]]
    blank[0] = 128
    still = np.tile(np.eye(3), (4, 1, 1)), np.zeros((4, 3))
    for image, seen, moved in ((np.full_like(color, 128), blank, poses), (color, grays[[2] * 5], still)):
        swept, spacing = sweep(image, seen, moved, K, inverse)
        assert np.isnan(swept).all()
        np.testing.assert_array_equal(downweight_contradicted(inverse, weight, swept, spacing), weight)
    keep = np.ones((5, *SIZE), bool)
    keep[0, 40:80, 100:160] = False
    swept, _ = sweep(color, grays[[2, *others]], poses, K, inverse, keep)
    assert np.isnan(swept[40:80, 100:160]).all() and np.isfinite(swept).mean() > 0.9
    assert np.nanmedian(np.abs(swept / inverse - 1)) < 0.01


@pytest.mark.parametrize("device", [None, GPU])
def test_what_is_masked_in_other_frames_doubts_nothing(device: torch.device | None) -> None:
    """A sticker near the camera, masked in eight of nine frames and absent from the one between them."""
    twists = np.zeros((9, 6))
    twists[:, 3] = np.linspace(-0.5, 0.5, 9)
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    grays, depths = (np.stack(part) for part in zip(*(plane_view(pose, np.array([0.3, 0.1, 1.0]), 4.0) for pose in w2c), strict=True))
    keep = np.ones(grays.shape, bool)
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (44, 44)).astype(np.uint8), (0, 0), 1.5)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    for row, pose in enumerate(w2c):
        if row != 4:
            x = round(K[0, 0] * pose[0, 3] / 2.0 + K[0, 2]) - 22
            grays[row, 45:89, x : x + 44], keep[row, 43:91, x - 2 : x + 46] = texture, False
    inverse = list((1 / depths).astype(np.float32))
    inverse[4][:20, :20] = 0.5  # planes reach the sticker
    ones = np.ones(SIZE, np.float32)
    rays = [RayDepth(inverse=i, weight=ones * k, views=4 * ones, far=ones < 0) for i, k in zip(1 / depths, keep, strict=True)]
    neighbours = [[k for k in range(row - 2, row + 3) if k != row and 0 <= k < 9] for row in range(9)]
    clip = PosedClip(grays=grays, w2c=w2c, K=alike(9), refs=np.arange(9), sparse=[np.zeros((0, 3))] * 9, keep=keep)
    images = [np.repeat(gray[..., None], 3, -1) for gray in grays]
    behind = np.s_[50:84, 110:142]
    with flow_depth.frame_threads() as pool:
        heeded, ignored = (
            depth_completion._downweight_swept(c, images, neighbours, rays, inverse, pool, device)[4].weight
            for c in (clip, replace(clip, keep=None))
        )
    assert np.median(heeded[behind]) > 0.5 and np.median(heeded) > 0.7
    assert np.median(ignored[behind]) < 0.3


def test_masked_pixels_of_either_frame_are_not_matched() -> None:
    grays, depths, w2c = plane_clip()
    clip = PosedClip(grays=grays, w2c=w2c, K=alike(len(w2c)), refs=np.array([2]), sparse=[np.zeros((0, 3))])
    matches, trusted = _match(clip, 0, [1, 3], 1 / depths[2])
    keep = np.ones(grays.shape, bool)
    keep[2, :, :60], keep[3, :70] = False, False
    same, masked = _match(replace(clip, keep=keep), 0, [1, 3], 1 / depths[2])
    np.testing.assert_array_equal(matches, same)
    assert not masked[:, :, :60].any() and masked[0, :, 60:].sum() == trusted[0, :, 60:].sum()
    np.testing.assert_array_equal(masked[1, :, 60:], (trusted[1] & (matches[1, ..., 1] >= 70))[:, 60:])


def test_neighbours_are_near_in_time_and_seen_past_far_points() -> None:
    w2c = np.tile(np.eye(4), (40, 1, 1))
    w2c[:, 0, 3] = -np.minimum(np.arange(40), 39) * 0.08
    rng = np.random.default_rng(0)
    near = rng.random(200) < 0.4
    sparse = np.column_stack([rng.uniform(20, 230, 200), rng.uniform(10, 130, 200), np.where(near, 1 / 4, 1 / 60)])
    clip = PosedClip(grays=np.zeros((40, *SIZE), np.uint8), w2c=w2c, K=alike(40), refs=np.array([20, 39]), sparse=[sparse, sparse])
    middle, last = choose_neighbours(clip, 0), choose_neighbours(clip, 1)
    assert 19 in middle and 21 in middle and max(middle) > 26 and min(middle) < 14
    assert len(set(last)) == len(last) and sorted(last)[-4:] == [35, 36, 37, 38]


def test_scattered_values_are_taken_for_guesses() -> None:
    value = (0.2 + 0.001 * np.arange(60, dtype=np.float32))[None].repeat(40, 0)
    weight = np.ones_like(value)
    noise = np.random.default_rng(0).normal(1, 0.2, (40, 30)).astype(np.float32)
    value[:, 30:] *= noise
    trust = scatter_weight(value, weight)
    assert trust[:, 5:24].min() > 0.8 and np.median(trust[:, 36:]) < 0.05
    weight[:, 30:] = 0
    assert scatter_weight(value, weight)[:, 5:].min() > 0.8, "what has no weight does not count"


def test_a_weak_layer_that_contradicts_its_surroundings_is_outvoted() -> None:
    truth = (0.2 + 0.002 * np.arange(60, dtype=np.float32))[None].repeat(60, 0)
    patch = np.s_[22:38, 22:38]
    value, weight = np.stack([truth, truth]), np.ones((2, 60, 60), np.float32)
    weight[1] = 0
    value[0][patch] *= 0.6
    weight[0][patch] = weight[1][patch] = 0.05
    couplings = edge_couplings(np.full((60, 60, 3), 128, np.uint8))
    blended, robust = (fill(value, weight, couplings, 4.0) for fill in (fill_layers, fill_robust))
    off = [float(np.abs(filled / truth - 1)[patch].max()) for filled in (blended, robust)]
    assert off[0] > 0.12 and off[1] < 0.05
    assert np.abs(robust / truth - 1)[:15].max() < 0.03


@pytest.mark.filterwarnings("error")
def test_a_value_with_nothing_known_around_it_does_not_overflow() -> None:
    value, weight = np.zeros((2, 9, 9), np.float32), np.zeros((2, 9, 9), np.float32)
    value[0, 4, 4], weight[0, 4, 4] = 3e3, 1e-30
    value[1], weight[1] = 1e-20, 1.0
    couplings = edge_couplings(np.zeros((9, 9, 3), np.uint8))
    assert np.isfinite(fill_robust(value, weight, couplings, 4.0)).all()


def test_filling_follows_image_edges() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    value, weight = np.zeros((40, 60), np.float32), np.zeros((40, 60), np.float32)
    value[10, 10], value[30, 50] = 1.0, 3.0
    weight[value > 0] = 1.0
    filled, _ = fill_and_smooth(value, weight, edge_couplings(image), 1000.0)
    assert np.isfinite(filled).all()
    assert np.abs(filled[:, :30] - 1).max() < 0.2 and np.abs(filled[:, 30:] - 3).max() < 0.2


def scattered_matches(w2c: np.ndarray, noise_px: float, K: np.ndarray | None = None) -> tuple[flow_bundle.Matches, np.ndarray]:
    """Points of every frame seen by all others, and their true 1/z."""
    rng = np.random.default_rng(0)
    K = alike(len(w2c)) if K is None else K
    rows, inverse = [], []
    for host in range(len(w2c)):
        for _ in range(60):
            pixel, w = rng.uniform([0, 0], [SIZE[1], SIZE[0]]), 1 / rng.uniform(2, 8)
            ray = np.linalg.inv(K[host]) @ [*pixel, 1]
            for target in set(range(len(w2c))) - {host}:
                relative = w2c[target] @ np.linalg.inv(w2c[host])
                seen = K[target] @ (relative[:3, :3] @ ray + w * relative[:3, 3])
                rows.append((host, target, len(inverse), *pixel, *(seen[:2] / seen[2] + rng.normal(0, noise_px, 2))))
            inverse.append(w)
    table = np.array(rows)
    ids = table[:, :3].astype(np.int64)
    return (
        flow_bundle.Matches(host=ids[:, 0], target=ids[:, 1], point=ids[:, 2], host_px=table[:, 3:5], target_px=table[:, 5:]),
        np.array(inverse),
    )


def test_bundle_adjustment_recovers_poses_and_focal_length() -> None:
    rng = np.random.default_rng(1)
    twists = np.zeros((7, 6))
    twists[:, 3] = np.linspace(-1, 1, 7)
    twists[:, 4] = 0.2 * np.sin(np.arange(7))
    twists[:, :3] = rng.normal(0, 0.08, (7, 3))
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    matches, inverse = scattered_matches(w2c, 0.05)
    noise = rng.normal(0, 1, (7, 6)) * [0.01, 0.01, 0.01, 0.03, 0.03, 0.03]
    noise[0] = 0
    start_K = alike(7, 1.05)
    prior = flow_bundle.FocalPrior(center_px=230.0, sigma=0.25, independent=7)
    bundle = flow_bundle.adjust(
        se3.exp(torch.from_numpy(noise)).numpy() @ w2c, start_K, matches, inverse * rng.uniform(0.9, 1.1, len(inverse)), focal=prior
    )
    assert bundle.before_px > 2 and bundle.after_px < 0.08
    np.testing.assert_allclose(bundle.K[:, [0, 1], [0, 1]], [[200, 190]] * 7, rtol=2e-3)
    truth = invert_rigid(w2c)[:, :3, 3]
    assert np.abs(umeyama(invert_rigid(bundle.w2c)[:, :3, 3], truth) - truth).max() < 2e-3
    held = flow_bundle.adjust(w2c, start_K, matches, inverse, focal=None)
    np.testing.assert_allclose(held.K, start_K, rtol=1e-6)


@pytest.mark.parametrize("block", [6, 7])
def test_elimination_of_the_points_is_the_schur_complement(block: int) -> None:
    rng = np.random.default_rng(2)
    twists = np.zeros((4, 6))
    twists[:, 3] = np.linspace(-1, 1, 4)
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    matches, inverse = scattered_matches(w2c, 2.0)
    some = matches.point < 6
    # every point is also seen a second time by its last target
    last = np.flatnonzero(some & np.r_[matches.point[1:] != matches.point[:-1], True])
    rows = np.sort(np.r_[np.flatnonzero(some), last])
    packed = [values[rows] for values in (matches.host, matches.target, matches.point, matches.host_px, matches.target_px)]
    packed += [np.zeros((len(rows), 2))] * 2
    w, found, n = inverse[:6] * rng.uniform(0.9, 1.1, 6), np.zeros(2), 4 * block + 7 - block
    full, right, crosses = np.zeros((n, n)), np.zeros(n), np.zeros((6, n))
    point_H, point_g = np.zeros(6), np.zeros(6)
    half = np.zeros((n, n))
    settings = w, found, block, False, flow_bundle.CAUCHY_PX
    cross = flow_bundle._normal_equations(w2c, alike(4), *settings, *packed, half, right, point_H, point_g)
    for m, (a, b, p) in enumerate(zip(*packed[:3], strict=True)):
        crosses[p, block * a : block * (a + 1)] += cross[m, :block]
        crosses[p, block * b : block * (b + 1)] += cross[m, block : 2 * block]
        crosses[p, 4 * block :] += cross[m, 2 * block :]
    full = half + half.T
    scale = 1 / (point_H * 1.001 + 1e-9)
    flow_bundle._eliminate(half, right_left := right.copy(), block, point_H, point_g, cross, *packed[:3])
    np.testing.assert_allclose(half + half.T, full - crosses.T @ (scale[:, None] * crosses), rtol=1e-9, atol=1e-9 * full.max())
    np.testing.assert_allclose(right_left, right - crosses.T @ (scale * point_g), rtol=1e-9, atol=1e-9 * np.abs(right).max())
    assert (np.linalg.eigvalsh(full) > -1e-9 * full.max()).all()


@pytest.mark.parametrize("block", [6, 7])
def test_gradient_of_the_bundle_is_that_of_its_cost(block: int) -> None:
    """With every frame's focal length free, and with one factor on all of different ones."""
    twists = np.zeros((3, 6))
    twists[:, 3] = np.linspace(-1, 1, 3)
    w2c, K = se3.exp(torch.from_numpy(twists)).numpy(), alike(3, 1.0, 1.3, 0.8)
    matches, w = scattered_matches(w2c, 0.3, K)
    none = np.zeros((len(matches.point), 2))
    packed = matches.host, matches.target, matches.point, matches.host_px, matches.target_px, none, none
    n = 3 * block + 7 - block
    half, g, point_H, point_g = np.zeros((n, n)), np.zeros(n), np.zeros(len(w)), np.zeros(len(w))
    flow_bundle._normal_equations(w2c, K, w, np.zeros(2), block, False, 1.0, *packed, half, g, point_H, point_g)

    def cost(step: np.ndarray) -> float:
        own = step[: 3 * block].reshape(3, block)
        zoomed = K.copy()
        zoomed[:, [0, 1], [0, 1]] *= np.exp(own[:, 6] if block == 7 else np.full(3, step[-1]))[:, None]
        moved = se3.exp(torch.from_numpy(own[:, :6].copy())).numpy() @ w2c
        return 0.5 * flow_bundle._cost(flow_bundle._squared(moved, zoomed, w, np.zeros(2), *packed), 1.0)

    slopes = [(cost(1e-5 * unit) - cost(-1e-5 * unit)) / 2e-5 for unit in np.eye(n)]
    np.testing.assert_allclose(g, slopes, rtol=1e-4, atol=1e-4 * np.abs(g).max())


def with_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    for module in (solver_parts, flow_depth, sfm_poses):
        monkeypatch.setattr(module, "cpu_count", lambda: cores)


def test_bundle_adjustment_does_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    twists = np.zeros((14, 6))
    twists[:, 3] = np.linspace(-1, 1, 14)
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    matches, inverse = scattered_matches(w2c, 0.3)
    prior = flow_bundle.FocalPrior(center_px=230.0, sigma=0.25, independent=14)
    threads, found = torch.get_num_threads(), []
    try:
        for cores in (1, 2, 7):
            with_cores(monkeypatch, cores)
            torch.set_num_threads(cores)
            found.append(flow_bundle.adjust(w2c, alike(14), matches, inverse * 1.02, focal=prior, steps=4))
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(threads)
    assert found[0].after_px < found[0].before_px
    for bundle in found[1:]:
        assert all(np.array_equal(getattr(bundle, name), getattr(found[0], name)) for name in ("w2c", "K", "inverse"))


def test_pairs_of_long_clips_join_neighbours_and_ends() -> None:
    pairs = sfm_poses.sparse_pairs(120)
    assert {(i, i + 1) for i in range(119)} <= set(pairs)
    assert all(0 <= a < b < 120 for a, b in pairs)
    assert len(pairs) < 120 * 119 / 2 / 3 and max(b - a for a, b in pairs) > 100


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return make_world(WorldConfig(layout="room", frames=14, size=(144, 256), severity="none", seed=1))


def test_depth_poses_and_focal_length_of_an_exact_clip(world: SyntheticWorld) -> None:
    frames = ClipFrames(images=world.images, chosen=np.arange(0, 14, 2), size=SIZE, names=tuple(str(i) for i in range(len(world.images))))
    scene = SfmGeometry(seed=0).estimate(frames, NULL_REPORTER)
    assert scene.cameras.frame_ids.tolist() == list(range(7)) and scene.cameras.size == SIZE
    truth = CameraSet(c2w=world.cameras.c2w, K=world.cameras.K, size=(144, 256), frame_ids=np.arange(14)).select(frames.chosen)
    path = np.linalg.norm(np.diff(truth.centers, axis=0), axis=1).sum()
    offset = umeyama(scene.cameras.centers, truth.centers) - truth.centers
    assert np.sqrt((offset**2).sum(1).mean()) < 0.01 * path
    assert scene.cameras.K[0, 0, 0] == pytest.approx(truth.resized(SIZE).K[0, 0, 0], rel=0.05)
    assert scene.valid.all() and scene.confidence.min() >= 1
    assert scene.median_depth == pytest.approx(MEDIAN_DEPTH, rel=1e-3)
    rows = (np.arange(SIZE[0]) + 0.5) / SIZE[0] * 144
    columns = (np.arange(SIZE[1]) + 0.5) / SIZE[1] * 256
    true_depth = world.depth[frames.chosen][:, rows.astype(int)][:, :, columns.astype(int)]
    ratio = np.where(true_depth > 0, scene.depth / np.maximum(true_depth, 1e-6), np.nan)
    ratio /= np.nanmedian(ratio)
    error = np.abs(ratio - 1)
    assert np.nanmedian(error) < 0.0105
    trusted = scene.confidence > np.median(scene.confidence)
    assert np.nanmedian(error[trusted]) < np.nanmedian(error[~trusted])


def test_cameras_and_depth_do_not_depend_on_the_number_of_cores(world: SyntheticWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    # with every second frame left out of mapping, so that those between are placed as well
    names = tuple(str(i) for i in range(14))
    frames = ClipFrames(images=world.images[:, ::2, ::2], chosen=np.arange(0, 14, 2), size=(72, 128), names=names)
    found = []
    for cores in (1, 3):
        with_cores(monkeypatch, cores)
        found.append(SfmGeometry(seed=0).estimate(frames, NULL_REPORTER))
    one, three = found
    assert np.array_equal(one.cameras.c2w, three.cameras.c2w) and np.array_equal(one.cameras.K, three.cameras.K)
    assert np.array_equal(one.depth, three.depth) and np.array_equal(one.confidence, three.confidence)


def test_standing_camera_is_explained(world: SyntheticWorld) -> None:
    still = np.repeat(world.images[:1], 9, axis=0)
    frames = ClipFrames(images=still, chosen=np.arange(9), size=SIZE, names=("",) * 9)
    with pytest.raises(GeometryError, match="does not move") as caught:
        SfmGeometry(seed=0).estimate(frames, NULL_REPORTER)
    assert "moves" in caught.value.hint


def test_blank_frames_are_explained() -> None:
    blank = np.full((9, 90, 160, 3), 120, np.uint8)
    with pytest.raises(GeometryError):
        sfm_poses.map_frames(blank, seed=0, report=NULL_REPORTER)


def test_one_frame_and_unknown_backend() -> None:
    with pytest.raises(InputError, match="at least 2"):
        ClipFrames(images=np.zeros((1, 9, 9, 3), np.uint8), chosen=np.arange(1), size=(14, 14), names=("a",))
    with pytest.raises(UnknownBackendError, match="laser"):
        GEOMETRY.load("laser")


def test_missing_frames_are_named_as_ranges() -> None:
    assert sfm_poses.number_ranges([3, 4, 5, 9]) == "3-5, 9"
