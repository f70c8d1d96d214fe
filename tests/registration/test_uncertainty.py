"""What hard clips taught: noisy depth, single wrong depths, frames in parts that no match connects, fields that carry over in time."""

from dataclasses import replace

import numpy as np
import pytest

from tests.box_world import make_box_world
from tests.notes import Notes
from tests.registration.test_registration import STAGE1, STAGE2, ExactMatcher
from utils.deformation.lattice.numba import forward_kernel, zero_fields
from utils.matching.contract import empty_matches
from utils.registration import align_jointly, align_sequential
from utils.registration.depth_noise import DepthNoise, measure_noise
from utils.registration.joint import carried, time_links
from utils.registration.solver import solve
from utils.registration.solver.problem import LatticeShape, build_problem, initial_state, squared_sigmas

NO_GAUGE = replace(STAGE2, mean_gauge="off", color_drift=False)


def noisy_world(share: float, frames: int = 12, warp: bool = False):
    """Exact poses, and depth that scatters along the rays by a share of it; with or without the box's own inconsistency."""
    world = make_box_world(frames, (48, 80))
    scene = world.scene if warp else replace(world.scene, cameras=world.true, depth=world.true_depth.astype(np.float32))
    rng = np.random.default_rng(0)
    depth = (scene.depth * (1 + share * rng.standard_normal(scene.depth.shape))).astype(np.float32)
    return replace(world, scene=replace(scene, depth=depth))


class PartsMatcher(ExactMatcher):
    """Exact matches within parts of the clip, none between them."""

    def __init__(self, world, border):
        super().__init__(world)
        self.border = border

    def match(self, source, target, geometry):
        if (source < self.border) != (target < self.border):
            return empty_matches(source, target)
        return super().match(source, target, geometry)


def test_a_displacement_is_one_share_of_depth_between_layers_and_beyond():
    inv_depth, size = np.array([0.1, 1.0]), (40, 64)
    layers = np.linspace(*inv_depth, 4)
    share = np.array([0.01, -0.02, 0.03])
    nodes = np.tile(share / layers[:, None], (1, 1)).reshape(4, 1, 1, 3).repeat(3, 1).repeat(5, 2).astype(np.float32)
    z = np.array([0.5, 1.0, 2.3, 4.0, 7.7, 40.0])
    points = np.stack([0.1 * z, -0.2 * z, z], 1)
    moved = np.empty(points.shape, np.float32)
    forward_kernel(points, np.array([60.0, 60.0, 32, 20]), size, np.eye(4), nodes, inv_depth, moved)
    np.testing.assert_allclose(moved - points, share * z[:, None], rtol=1e-3)


def test_single_wrong_depths_do_not_widen_the_lattice():
    world = make_box_world(4, (48, 80))
    depth = world.true_depth.copy()
    clean = zero_fields(depth, np.ones(depth.shape, bool), (6, 4, 3)).inv_depth_range
    depth[:, :3, :40] = 0.005 * np.median(depth)  # 3 % of the pixels
    bounds = zero_fields(depth, np.ones(depth.shape, bool), (6, 4, 3)).inv_depth_range
    assert (bounds == bounds[0]).all()  # a node stands for one depth in all frames
    assert bounds[0, 1] < 5 * clean[0, 1]


def test_noise_is_measured_along_the_rays():
    for share in (0.0, 0.01, 0.05):
        world = noisy_world(share)
        matches = [ExactMatcher(world, 1).match(i, i + 1, None) for i in range(11)]
        measured = measure_noise(matches, world.scene.cameras, 0.003)
        # The target's depth is interpolated between four pixels, which takes off up to half of its noise.
        assert 0.6 * share - 0.001 < np.median(measured.shares) < 1.1 * share + 0.001


def test_smooth_inconsistency_is_not_noise():
    world = make_box_world(8, (48, 80))
    matches = [ExactMatcher(world, 1).match(i, i + 1, None) for i in range(7)]
    assert measure_noise(matches, world.scene.cameras, 0.003).shares.max() < 0.002


def test_information_is_the_inverse_covariance():
    world = make_box_world(3, (48, 80))
    match = ExactMatcher(world).match(0, 2, None)
    shape = LatticeShape((4, 3, 2), zero_fields(world.scene.depth, world.scene.valid, (2, 2, 2)).inv_depth_range, 3.0)
    problem = build_problem([match], world.scene.cameras, shape, 0.004, noise=DepthNoise(np.array([1.0, 5.0]), np.array([0.02, 0.06])))
    m = 17
    covariance = (0.004 * problem.depth[m]) ** 2 * np.eye(3)
    for end, depth in enumerate((match.source_depth[m], match.target_depth[m])):
        arm = world.scene.cameras.c2w[problem.frames[m, end], :3, :3] @ problem.points[m, end]
        covariance += (np.interp(depth, [1, 5], [0.02, 0.06])) ** 2 * np.outer(arm, arm)
    d = np.array([[0.01, -0.02, 0.005]])
    expected = d[0] @ np.linalg.inv(covariance) @ d[0]
    assert squared_sigmas(problem.information[m : m + 1], d)[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("warp", [False, True])
def test_noisy_depth_leaves_no_frame_out(warp):
    world, notes = noisy_world(0.04, warp=warp), Notes()
    exact = ExactMatcher(world)
    first = align_sequential(world.scene, world.scene.valid, STAGE1, notes, matcher=exact)
    second = align_jointly(world.scene, first, world.scene.valid, NO_GAUGE, notes, matcher=exact)
    assert first.aligned.all() and second.aligned.all()
    assert np.nanmedian(second.diagnostics.fitness) > 0.8


def test_two_parts_that_nothing_connects_are_both_aligned():
    world, notes = make_box_world(12, (48, 80)), Notes()
    matcher = PartsMatcher(world, 5)
    first = align_sequential(world.scene, world.scene.valid, STAGE1, notes, matcher=matcher)
    second = align_jointly(world.scene, first, world.scene.valid, NO_GAUGE, notes, matcher=matcher)
    assert second.aligned.all()
    assert any("2 parts" in line and "0-4" in line and "5-11" in line for line in notes.lines), notes.lines
    before, after = np.nanmedian(second.diagnostics.before), np.nanmedian(second.diagnostics.after)
    assert after < 0.5 * before


def test_where_no_frames_support_each_other_the_world_stays_as_given():
    world, notes = make_box_world(4, (48, 80)), Notes()
    rng = np.random.default_rng(0)

    class Random(ExactMatcher):
        def match(self, source, target, geometry):
            found = super().match(source, target, geometry)
            return replace(found, target_px=rng.permutation(found.target_px))

    config = replace(NO_GAUGE, min_fitness=0.9)
    first = align_sequential(world.scene, world.scene.valid, STAGE1, notes, matcher=Random(world))
    second = align_jointly(world.scene, first, world.scene.valid, config, notes, matcher=Random(world))
    assert second.aligned.all() and not second.fields.nodes.any()
    np.testing.assert_array_equal(second.cameras.c2w, world.scene.cameras.c2w)
    assert any("no frames support each other" in line for line in notes.lines)


def test_a_frame_without_matches_takes_the_field_between_its_neighbours():
    world = make_box_world(5, (48, 80))
    bounds = zero_fields(world.scene.depth, world.scene.valid, (2, 2, 2)).inv_depth_range
    matches = [ExactMatcher(world).match(i, j, None) for i, j in ((0, 1), (1, 3), (0, 3), (3, 4), (1, 4))]
    config = replace(STAGE2.coarse, temporal=0.01, pose_ridge=float("inf"))
    shape = LatticeShape(config.lattice, bounds, world.scene.median_depth, time_links(np.arange(5), np.zeros(5, int)))
    problem = build_problem(matches, world.scene.cameras, shape, config.match_sigma)
    state = solve(problem, initial_state(world.scene.cameras, shape), shape, config, 2000.0)
    nodes = state.nodes.reshape(5, -1)
    between = (nodes[1] + nodes[3]) / 2
    assert np.linalg.norm(nodes[2] - between) < 0.2 * np.linalg.norm(between)
    alone = solve(problem, initial_state(world.scene.cameras, shape), replace(shape, links=None), config, 2000.0)
    assert not alone.nodes.reshape(5, -1)[2].any()


def test_links_weaken_with_the_step_between_frames_and_end_with_a_clip():
    links = time_links(np.array([0, 2, 4, 12, 14]), np.array([0, 0, 0, 0, 1]))
    np.testing.assert_allclose(links, [1, 1, 0.25, 0])


def test_fields_of_frames_left_out_come_from_both_sides():
    world = make_box_world(5, (48, 80))
    fields = zero_fields(world.scene.depth, world.scene.valid, (3, 3, 2))
    shift = np.array([0.03, -0.01, 0.02])
    cameras, clips = world.scene.cameras, np.zeros(5, int)
    fields.nodes[:] = (np.arange(5)[:, None] * shift)[:, None, None, None, :] @ np.eye(3)
    for frame in range(5):
        fields.nodes[frame] = fields.nodes[frame] @ cameras.c2w[frame, :3, :3]  # the same direction in the world
    kept = carried(fields, cameras, np.array([True, True, False, True, True]), clips)
    np.testing.assert_array_equal(kept.nodes[[0, 1, 3, 4]], fields.nodes[[0, 1, 3, 4]])
    share = (kept.nodes[2] @ cameras.c2w[2, :3, :3].T) / shift  # of frame 1 it is 1, of frame 3 it is 3; who sees a place counts more
    np.testing.assert_allclose(share, share[..., :1].repeat(3, -1), rtol=0.02)
    assert share.min() > 0.99 and share.max() < 3.01 and 1.7 < np.median(share) < 2.3
    other = carried(fields, cameras, np.array([True, True, False, True, True]), np.array([0, 0, 1, 2, 2]))
    assert not other.nodes[2].any()  # no aligned frame of its clip
