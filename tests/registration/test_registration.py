"""Alignment: lattice kernels against the definition, the solver's gradient and optimum, matches against truth, and the whole."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs.stage1_align import FrameToModelICPConfig, MatchingConfig, PointFilterConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from tests.box_world import make_box_world
from utils.cameras.projection import pixel_centers, project, transform, unproject_depth
from utils.deformation.lattice.numba import resampled, zero_fields
from utils.matching.flow.dis import FlowMatcher
from utils.matching.pairs import choose_pairs
from utils.matching.support import match_trust
from utils.registration import AlignedGeometry, MatchSet, align_jointly, align_sequential, build_cloud, forward_points, usable_pixels
from utils.registration.gauge import CORRELATION_FRAMES, Votes, common_displacement, motions
from utils.registration.sequential import unaligned
from utils.registration.solver import numba as solver
from utils.registration.solver import solve
from utils.registration.solver.problem import LatticeShape, build_problem, from_fields, initial_state, relative_errors, to_fields

COARSE = SolverConfig(lattice=(10, 6, 3), cg_iterations=25)
MATCHING = MatchingConfig(matches_per_frame=2000)
STAGE1 = FrameToModelICPConfig(root_path=Path(), matching=MATCHING, solver=COARSE)
STAGE2 = GlobalOptimizationConfig(root_path=Path(), run="r", matching=MATCHING, coarse=COARSE, fine=replace(COARSE, lattice=(14, 8, 3)))


def random_geometry(frames=3, size=(40, 64)):
    world = make_box_world(frames, size)
    fields = zero_fields(world.scene.depth, world.scene.valid, (5, 4, 3))
    fields.nodes[:] = 0.02 * np.random.default_rng(1).standard_normal(fields.nodes.shape)
    return world, AlignedGeometry(world.scene, world.scene.cameras, fields)


class ExactMatcher:
    """Matches from the truth: where pixel p of the source lands in the target."""

    def __init__(self, world, step=3):
        self.world, self.step = world, step

    def match(self, source, target, geometry):
        world, (h, w) = self.world, self.world.true.size
        points = transform(world.true.c2w[source], unproject_depth(world.true_depth[source], world.true.K[source]))
        x, y, z = project(transform(world.true.w2c[target], points), world.true.K[target])
        px, py = pixel_centers((h, w))
        keep = (z > 0) & (x > 1) & (y > 1) & (x < w - 1) & (y < h - 1)
        keep[np.arange(h) % self.step != 0] = False
        i, j = np.nonzero(keep)
        a, b = (x[i, j] - 0.5).astype(int), (y[i, j] - 0.5).astype(int)
        fx, fy = x[i, j] - 0.5 - a, y[i, j] - 0.5 - b
        d = world.scene.depth[target]
        depth = (1 - fy) * ((1 - fx) * d[b, a] + fx * d[b, a + 1]) + fy * ((1 - fx) * d[b + 1, a] + fx * d[b + 1, a + 1])
        return MatchSet(
            source,
            target,
            np.stack([px[i, j], py[i, j]], 1),
            np.stack([x[i, j], y[i, j]], 1).astype(np.float32),
            world.scene.depth[source][i, j],
            depth.astype(np.float32),
        )


# ---------------------------------------------------------------------------------------------- lattice


def test_forward_is_pose_of_point_plus_node_displacement():
    _, geometry = random_geometry()
    fields, cameras = geometry.fields, geometry.cameras
    low, high = fields.inv_depth_range[1]
    for a, b, c in ((0, 0, 0), (2, 1, 1), (4, 3, 2)):
        z = 1 / (low + (high - low) * c / 2)
        pixel = np.array([[a / 4 * 64, b / 3 * 40]])
        K = cameras.K[1]
        point = np.array([(pixel[0, 0] - K[0, 2]) / K[0, 0] * z, (pixel[0, 1] - K[1, 2]) / K[1, 1] * z, z])
        expected = transform(cameras.c2w[1], point + fields.nodes[1, c, b, a])
        np.testing.assert_allclose(geometry.lift(1, pixel, np.array([z]))[0], expected, atol=1e-5)


def test_projection_inverts_the_forward_map():
    world, geometry = random_geometry()
    projected = geometry.project(2, geometry.canonical(2).reshape(-1, 3), steps=8)
    x, y = pixel_centers(world.scene.cameras.size)
    np.testing.assert_allclose(projected[:, 0], x.ravel(), atol=0.02)
    np.testing.assert_allclose(projected[:, 1], y.ravel(), atol=0.02)
    np.testing.assert_allclose(projected[:, 2], world.scene.depth[2].ravel(), rtol=1e-3)


def test_points_without_depth_or_behind_the_camera_are_nan():
    _, geometry = random_geometry()
    assert np.isnan(geometry.forward(0, np.array([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]))).all()
    behind = geometry.cameras.c2w[0, :3, 3] - geometry.cameras.c2w[0, :3, 2]
    assert np.isnan(geometry.project(0, behind[None])).all()


def test_resampling_keeps_a_linear_displacement():
    _, geometry = random_geometry()
    fields = geometry.fields
    nz, nv, nu = fields.nodes.shape[1:4]
    fields.nodes[:] = (np.arange(nu) / (nu - 1) + 2 * np.arange(nv)[:, None] / (nv - 1) + np.arange(nz)[:, None, None])[None, ..., None]
    before = geometry.canonical(1)
    after = replace(geometry, fields=resampled(fields, (9, 7, 5))).canonical(1)
    np.testing.assert_allclose(after, before, atol=1e-4)


# ---------------------------------------------------------------------------------------------- pairs and matches


def test_pairs_use_gaps_revisits_and_overlap():
    overlap = np.full((12, 12), 0.5)
    overlap[0, 11] = overlap[11, 0] = 0.9
    overlap[3, 5] = overlap[5, 3] = 0.0
    pairs = choose_pairs(overlap, np.arange(12), MatchingConfig(gaps=(1, 2), revisits_per_frame=1))
    assert {(k, k + 1) for k in range(11)} <= set(pairs)
    assert (0, 11) in pairs
    assert (3, 5) not in pairs
    assert pairs == sorted(set(pairs))
    assert choose_pairs(np.ones((2, 2)), np.arange(2), MatchingConfig()) == [(0, 1)]


def test_gaps_bridge_a_frame_that_is_left_out():
    pairs = choose_pairs(np.ones((4, 4)), np.array([0, 1, 3]), MatchingConfig(gaps=(1,), revisits_per_frame=0))
    assert pairs == [(0, 1), (1, 3)]


def test_flow_matches_see_the_same_true_point():
    world = make_box_world(4, (72, 128))
    scene = world.scene
    geometry = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (4, 3, 2)))
    match = FlowMatcher(scene, usable_pixels(scene, scene.valid, PointFilterConfig()), 2, MATCHING).match(2, 0, geometry)
    assert len(match) > 800
    i, j = (np.floor(match.source_px[:, k]).astype(int) for k in (1, 0))
    points = transform(world.true.c2w[2], unproject_depth(world.true_depth[2], world.true.K[2]))[i, j]
    x, y, _ = project(transform(world.true.w2c[0], points), world.true.K[0])
    error = np.hypot(x - match.target_px[:, 0], y - match.target_px[:, 1])
    assert np.median(error) < 0.1
    assert np.mean(error > 1) < 0.02
    np.testing.assert_allclose(match.source_depth, scene.depth[2][i, j])


# ---------------------------------------------------------------------------------------------- solver


def exact_problem(frames=4):
    world = make_box_world(frames, (48, 80))
    scene, matcher = world.scene, ExactMatcher(world)
    bounds = zero_fields(scene.depth, scene.valid, COARSE.lattice).inv_depth_range
    shape = LatticeShape(COARSE.lattice, bounds, scene.median_depth)
    matches = [matcher.match(i, j, None) for i in range(frames) for j in range(i + 1, frames)]
    return world, shape, matches, build_problem(matches, scene.cameras, shape, COARSE.match_sigma)


def test_solver_and_stored_fields_measure_the_same():
    world, shape, matches, problem = exact_problem()
    state = solve(problem, initial_state(world.scene.cameras, shape), shape, COARSE, 500.0)
    geometry = AlignedGeometry(world.scene, replace(world.scene.cameras, c2w=state.c2w), to_fields(state, shape))
    stored = np.concatenate(
        [
            np.linalg.norm(
                geometry.lift(m.source, m.source_px, m.source_depth) - geometry.lift(m.target, m.target_px, m.target_depth), axis=1
            )
            for m in matches
        ]
    )
    np.testing.assert_allclose(stored / problem.depth, relative_errors(problem, state, shape), atol=3e-6)


def test_solver_removes_the_error_and_does_not_shrink_the_scene():
    world, shape, _, problem = exact_problem()
    start = initial_state(world.scene.cameras, shape)
    state = solve(problem, start, shape, COARSE, 500.0)
    before, after = (np.median(relative_errors(problem, s, shape)) for s in (start, state))
    assert after < 0.08 * before
    size = [
        np.linalg.norm(p - p.mean((0, 1, 2)), axis=-1).mean()
        for p in (forward_points(world.scene, replace(world.scene.cameras, c2w=s.c2w), to_fields(s, shape)) for s in (start, state))
    ]
    assert abs(size[1] / size[0] - 1) < 0.01


def test_gauge_is_shared_by_all_frames():
    world, shape, _, problem = exact_problem()
    state = solve(problem, initial_state(world.scene.cameras, shape), shape, COARSE, 500.0)
    moved = forward_points(world.scene, replace(world.scene.cameras, c2w=state.c2w), to_fields(state, shape))
    start = unaligned(world.scene)
    shift = (moved - forward_points(world.scene, start.cameras, start.fields)).mean((1, 2))
    assert np.linalg.norm(shift.mean(0)) < 0.4 * np.linalg.norm(shift, axis=1).mean()
    assert np.linalg.norm(shift, axis=1).min() > 0.02 * np.linalg.norm(shift, axis=1).max()


def test_noise_in_depth_does_not_contract_the_scene(monkeypatch):
    world, shape, matches, _ = exact_problem()
    rng = np.random.default_rng(0)

    def noisy(depth):
        far = depth > world.scene.median_depth  # noise everywhere would only change the scale
        return (depth * (1 + far * 0.01 * rng.normal(size=len(depth)))).astype(np.float32)

    matches = [replace(m, source_depth=noisy(m.source_depth), target_depth=noisy(m.target_depth)) for m in matches]
    problem, config = build_problem(matches, world.scene.cameras, shape, 0.01), replace(COARSE, match_sigma=0.01, ridge=0.001)

    def stretch():
        """Change of the distance between the first and the last layer, over all frames, in units of that distance."""
        state = solve(problem, initial_state(world.scene.cameras, shape), shape, config, 500.0)
        along = to_fields(state, shape).nodes[..., 2].mean((0, 2, 3))
        low, high = shape.inv_depth.mean(0)
        return (along[0] - along[-1]) / (1 / low - 1 / high)

    compensated = stretch()
    monkeypatch.setattr(solver, "add_noise_gradient", lambda *args: None)
    plain = stretch()
    assert plain < -0.05
    assert abs(compensated) < 0.4 * abs(plain)


def test_robust_weights_survive_wrong_matches():
    world, shape, matches, _ = exact_problem()
    rng = np.random.default_rng(0)
    spoiled = []
    for match in matches:
        wrong = rng.random(len(match)) < 0.2
        shift = np.where(wrong[:, None], rng.uniform(4, 12, (len(match), 2)), 0).astype(np.float32)
        spoiled.append(replace(match, target_px=match.target_px + shift))
    clean = build_problem(matches, world.scene.cameras, shape, COARSE.match_sigma)
    dirty = build_problem(spoiled, world.scene.cameras, shape, COARSE.match_sigma)
    start = initial_state(world.scene.cameras, shape)
    state = solve(dirty, start, shape, COARSE, 500.0)
    before, after = (np.median(relative_errors(clean, s, shape)) for s in (start, state))
    assert after < 0.25 * before


def test_held_cameras_move_less_and_the_field_does_the_work():
    world, shape, _, problem = exact_problem()
    start = initial_state(world.scene.cameras, shape)
    held, free = (solve(problem, start, shape, replace(COARSE, pose_ridge=weight), 500.0) for weight in (30.0, 0.03))
    moved = [np.linalg.norm(state.c2w[:, :3, 3] - start.c2w[:, :3, 3], axis=1).max() for state in (held, free)]
    assert moved[0] < 0.2 * moved[1]
    errors = [np.median(relative_errors(problem, state, shape)) for state in (held, free)]
    assert errors[0] < 1.2 * errors[1]


def test_matches_of_sure_pixels_count_more():
    world, shape, matches, _ = exact_problem()
    scene, match = world.scene, matches[0]
    confidence = scene.confidence.copy()
    x, y = match.source_px[5].astype(int)
    confidence[match.source, y, x] = 2.0  # the other end stays at the median of 1: the less sure end counts
    x, y = match.source_px[9].astype(int)
    confidence[match.source, y, x] = 0.5
    trust = match_trust(replace(scene, confidence=confidence), [match], 2.0)
    assert trust[9] / trust[0] == pytest.approx(0.25) and trust[5] == trust[0] and trust.mean() == pytest.approx(1)
    assert match_trust(scene, matches, 0.0) is None
    plain, weighted = (build_problem([match], scene.cameras, shape, 0.003, trust=t).information[:, 0] for t in (None, trust))
    np.testing.assert_allclose(weighted, plain * trust, rtol=1e-6)


def test_rigid_only_moves_no_node():
    world, shape, _, problem = exact_problem()
    state = solve(problem, initial_state(world.scene.cameras, shape), shape, replace(COARSE, rigid_only=True), 500.0)
    assert not state.nodes.any()
    assert not np.allclose(state.c2w, world.scene.cameras.c2w)


def test_nodes_of_stored_fields_are_those_of_the_state():
    world, shape, _, problem = exact_problem()
    state = solve(problem, initial_state(world.scene.cameras, shape), shape, COARSE, 500.0)
    cameras = replace(world.scene.cameras, c2w=state.c2w)
    np.testing.assert_allclose(from_fields(to_fields(state, shape), cameras, shape), state.nodes, atol=1e-6)


def test_solver_stays_at_its_origin_where_matches_say_nothing():
    world, shape, matches, _ = exact_problem()
    problem = build_problem(matches[:1], world.scene.cameras, shape, COARSE.match_sigma)  # frames 2 and 3 have no match
    start = initial_state(world.scene.cameras, shape)
    start.nodes[:] = 0.002 * np.random.default_rng(0).normal(size=start.nodes.shape)
    state = solve(problem, start, shape, COARSE, 500.0, origin=start.nodes)
    alone = slice(2 * shape.count, None)
    np.testing.assert_array_equal(state.nodes[alone], start.nodes[alone])
    assert np.abs(state.nodes - start.nodes).max() > 1e-4


def test_what_all_frames_do_is_common_and_what_one_does_is_shared_out():
    world = make_box_world(4, (48, 80))
    still = replace(world.true, c2w=np.repeat(world.true.c2w[:1], 4, 0))  # every frame sees all that the others see
    scene = replace(world.scene, cameras=still, depth=np.repeat(world.true_depth[:1], 4, 0))
    shift = 0.02 * scene.median_depth * np.array([0.5, -0.3, 0.8])
    fields = zero_fields(scene.depth, scene.valid, (6, 4, 3))
    camera = np.einsum("fba,b->fa", scene.cameras.c2w[:, :3, :3], shift)[:, None, None, None]
    shifted = lambda sign: AlignedGeometry(scene, scene.cameras, replace(fields, nodes=fields.nodes + sign * camera))
    every = common_displacement(shifted(1.0), scene.valid, np.arange(4), (6, 4, 3)).nodes
    assert np.abs(every - camera).max() < 0.05 * np.abs(shift).max()
    sign = np.array([1.0, -1, 1, -1])[:, None, None, None, None]
    to_and_fro = common_displacement(shifted(sign), scene.valid, np.arange(4), (6, 4, 3)).nodes
    assert np.abs(to_and_fro).max() < 0.2 * np.abs(shift).max()


def passing_votes(error):
    """What ten cameras that pass a wall, each seeing a third of it, say of it if they show it off by error(frame, arm, point)."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(0, 12, 400), rng.uniform(-1, 1, 400), rng.uniform(2, 3, 400)], 1)
    parts = []
    for frame in range(10):
        seen = np.flatnonzero(np.abs(points[:, 0] - 1 - frame * 10 / 9) < 2)
        arm = points[seen] - (1 + frame * 10 / 9, 0, 0)
        parts.append((seen, np.full(len(seen), frame), error(frame, arm, points[seen]), arm))
    probe, frame, moved, arm = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Votes(probe, frame, moved, arm, np.bincount(probe, minlength=len(points)))


def test_motions_of_whole_frames_do_not_bend_the_mean():
    votes = passing_votes(lambda frame, arm, _point: 0.02 * (-1) ** frame * arm)
    left = votes.mean(votes.moved - motions(votes))
    assert np.linalg.norm(left, axis=1).mean() < 0.5 * np.linalg.norm(votes.mean(votes.moved), axis=1).mean()


def test_waves_that_all_frames_show_are_common_and_no_motion():
    wave = lambda point: 0.02 * np.sin(4 * point[:, [1, 2, 0]])
    votes = passing_votes(lambda _frame, _arm, point: wave(point))
    left = votes.mean(votes.moved - motions(votes)) - votes.mean(votes.moved)
    assert np.linalg.norm(left, axis=1).mean() < 0.1 * np.linalg.norm(votes.mean(votes.moved), axis=1).mean()


def test_votes_weigh_what_the_best_mean_of_correlated_errors_gives_them():
    frame, probe = np.array([3, 40, 0, 1, 7, 30, 5]), np.array([0, 0, 1, 1, 1, 1, 2])
    order = np.random.default_rng(0).permutation(len(frame))
    none = np.zeros((len(frame), 3))
    weight = np.empty(len(frame))
    weight[order] = Votes(probe[order], frame[order], none, none, np.bincount(probe)).weight
    for each in range(3):
        of_probe = frame[probe == each]
        covariance = np.exp(-np.abs(np.subtract.outer(of_probe, of_probe)) / CORRELATION_FRAMES)
        np.testing.assert_allclose(weight[probe == each], np.linalg.solve(covariance, np.ones(len(of_probe))))


# ---------------------------------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def aligned():
    world = make_box_world(5, (72, 128))
    usable = usable_pixels(world.scene, world.scene.valid, STAGE1.filter)
    first = align_sequential(world.scene, usable, STAGE1)
    return world, usable, first, align_jointly(world.scene, first, usable, STAGE2)


def error_of(world, result):
    return world.consistency(forward_points(world.scene, result.cameras, result.fields))


def test_both_stages_bring_pixels_of_one_point_together(aligned):
    world, _, first, second = aligned
    before = error_of(world, unaligned(world.scene))
    assert error_of(world, first) < 0.15 * before
    assert error_of(world, second) < 0.08 * before
    assert first.aligned.all()
    assert second.aligned.all()
    assert np.nanmedian(second.diagnostics.after) < 0.1 * np.nanmedian(second.diagnostics.before)


def test_joint_solve_is_repeatable(aligned):
    world, usable, first, second = aligned
    again = align_jointly(world.scene, first, usable, STAGE2)
    np.testing.assert_array_equal(again.cameras.c2w, second.cameras.c2w)
    np.testing.assert_array_equal(again.fields.nodes, second.fields.nodes)


def test_other_matchers_can_be_plugged_in():
    world = make_box_world(4, (48, 80))
    start = unaligned(world.scene)
    result = align_jointly(world.scene, start, world.scene.valid, STAGE2, matcher=ExactMatcher(world))
    assert error_of(world, result) < 0.08 * error_of(world, start)
    off = replace(STAGE2, matching=replace(MATCHING, matcher="none"))
    assert align_jointly(world.scene, start, world.scene.valid, off) is start


def with_a_frame_of_noise(frame):
    """A scene whose image of this frame shows nothing that the others show."""
    scene = make_box_world(5, (48, 80)).scene
    images = scene.images.copy()
    images[frame] = np.random.default_rng(0).permutation(images[frame].reshape(-1, 3)).reshape(images[frame].shape)
    return replace(scene, images=images)


@pytest.mark.parametrize("frame", [0, 2])
def test_a_frame_of_another_place_is_left_out(frame):
    scene = with_a_frame_of_noise(frame)
    usable = usable_pixels(scene, scene.valid, STAGE1.filter)
    told, expected = [], np.arange(5) != frame
    first = align_sequential(scene, usable, STAGE1, SimpleNamespace(step=lambda _: None, note=told.append))
    np.testing.assert_array_equal(first.aligned, expected)
    assert sum("left out" in line for line in told) == 1 and any(f"frame {frame} " in line for line in told)
    second = align_jointly(scene, first, usable, STAGE2)
    np.testing.assert_array_equal(second.aligned, expected)
    cloud = build_cloud(scene, second.cameras, second.fields, second.aligned, usable, STAGE1.filter)
    assert frame not in cloud.frame


def test_cloud_drops_what_other_frames_see_through_and_keeps_the_rest():
    world = make_box_world(5, (48, 80), warp=0.0)
    depth = world.scene.depth.copy()
    depth[2, 20:24, 30:34] *= 0.6
    scene = replace(world.scene, depth=depth)
    start = unaligned(scene)
    usable = scene.valid  # the edges around the floater stay, so that only the vote can remove it
    cloud = build_cloud(scene, start.cameras, start.fields, start.aligned, usable, STAGE1.filter)
    kept = np.zeros(depth.shape, bool)
    kept[cloud.frame, cloud.pixel // 80, cloud.pixel % 80] = True
    assert not kept[2, 20:24, 30:34].any()
    assert kept.mean() > 0.97
    assert (np.diff(cloud.frame) >= 0).all()
    np.testing.assert_array_equal(cloud.colors, scene.images[cloud.frame, cloud.pixel // 80, cloud.pixel % 80])
