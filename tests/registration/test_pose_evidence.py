"""Whether the cameras move: with poses that are wrong they do, with frames that are bent they stay to the bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stage1_align import SolverConfig
from tests.box_world import make_box_world
from tests.registration.test_registration import COARSE, STAGE1, STAGE2, ExactMatcher
from utils.cameras import se3
from utils.deformation.lattice.numba import zero_fields
from utils.errors import ConfigError
from utils.registration import align_jointly, align_sequential
from utils.registration.pose_evidence import held_or_free, rigid_share
from utils.registration.sequential import unaligned
from utils.registration.solver import solve
from utils.registration.solver.problem import LatticeShape, build_problem, initial_state
from utils.types import NullReporter


class Notes(NullReporter):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def world_of(warp, shake, frames=4):
    """A world whose depth is off by waves of `warp`, too short for a camera to explain, and whose poses are off by about `shake`."""
    world, rng = make_box_world(frames, (48, 80)), np.random.default_rng(4)
    drift = se3.exp(torch.from_numpy(rng.standard_normal((frames, 6)) * shake)).numpy()
    i, j = np.indices((48, 80))
    phase = rng.uniform(0, 6, (2, frames, 1, 1))
    depth = world.true_depth * (1 + warp * np.sin(j / 5 + phase[0]) * np.sin(i / 5 + phase[1]))
    cameras = replace(world.true, c2w=drift @ world.true.c2w)
    return replace(world, scene=replace(world.scene, depth=depth.astype(np.float32), cameras=cameras))


def evidence(world):
    scene, matcher = world.scene, ExactMatcher(world)
    matches = [matcher.match(i, j, None) for i in range(len(scene)) for j in range(i + 1, len(scene))]
    return matches, scene, zero_fields(scene.depth, scene.valid, (2, 2, 2)).inv_depth_range, COARSE, 500.0


@pytest.mark.parametrize(("warp", "shake", "least", "most"), [(0.0005, 0.01, 0.9, 1.0), (0.01, 0.0, -0.1, 0.4), (0.01, 0.02, 0.5, 0.95)])
def test_share_that_cameras_explain(warp, shake, least, most):
    matches, *rest = evidence(world_of(warp, shake))
    assert least < rigid_share(matches, *rest, None) < most


def test_share_takes_the_weights_it_is_given():
    """A third of the matches is wrong and known to be: the others count."""
    matches, *rest = evidence(world_of(0.0005, 0.01))
    rng = np.random.default_rng(0)
    wrong = [rng.random(len(m)) < 0.3 for m in matches]
    spoiled = [
        replace(m, target_px=m.target_px + np.float32(9) * w[:, None].astype(np.float32)) for m, w in zip(matches, wrong, strict=True)
    ]
    first = np.zeros((sum(map(len, matches)), 3))
    first[:, 0] = np.where(np.concatenate(wrong), 1.0, 0.001) * rest[0].median_depth
    assert rigid_share(spoiled, *rest, first) > 0.7


@pytest.mark.parametrize(("warp", "shake", "word", "moves"), [(0.0005, 0.01, "cameras move", True), (0.01, 0.0, "cameras stay", False)])
def test_both_stages_move_cameras_only_where_these_are_wrong(warp, shake, word, moves):
    world, notes = world_of(warp, shake, 5), Notes()
    usable, exact = world.scene.valid, ExactMatcher(world)
    first = align_sequential(world.scene, usable, STAGE1, notes, matcher=exact)
    second = align_jointly(world.scene, first, usable, STAGE2, notes, matcher=exact)
    assert sum(word in line for line in notes.lines) == 3  # stage 1, and every round of stage 2
    given = world.scene.cameras.c2w
    for result in (first, second):
        assert np.array_equal(result.cameras.c2w, given) is not moves
        assert np.abs(result.fields.nodes).max() > 0
    if moves:
        errors = [np.linalg.norm(np.linalg.inv(c[0]) @ c[-1] - np.linalg.inv(world.true.c2w[0]) @ world.true.c2w[-1]) for c in
                  (given, second.cameras.c2w)]  # fmt: skip
        assert errors[1] < 0.5 * errors[0]


def test_held_cameras_keep_their_bits_and_fields_do_the_work():
    world = world_of(0.01, 0.0)
    matches, scene, bounds, _, samples = evidence(world)
    shape = LatticeShape(COARSE.lattice, bounds, scene.median_depth)
    problem, start = build_problem(matches, scene.cameras, shape, COARSE.match_sigma), initial_state(scene.cameras, shape)
    held = solve(problem, start, shape, replace(COARSE, pose_ridge=math.inf), samples)
    np.testing.assert_array_equal(held.c2w, start.c2w)
    assert not held.update.any() and held.nodes.any()


def test_nothing_is_decided_where_cameras_always_or_only_move():
    matches, scene, bounds, *_ = evidence(world_of(0.01, 0.0))
    start = unaligned(scene)
    for config in (SolverConfig(pose_evidence=0.0), SolverConfig(rigid_only=True)):
        assert held_or_free(matches, scene, bounds, config, 500.0, None, NullReporter()) is config
    assert held_or_free([], scene, start.fields.inv_depth_range, SolverConfig(), 500.0, None, NullReporter()).pose_ridge < 1
    with pytest.raises(ConfigError, match="pose_evidence"):
        SolverConfig(pose_evidence=1.5)
