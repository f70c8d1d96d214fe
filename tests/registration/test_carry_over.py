"""Fields that last carry over to a frame that took no part, fields that fit noise do not and are weakened."""

from dataclasses import replace

import numpy as np
import pytest

from tests.box_world import make_box_world
from tests.registration.test_registration import ExactMatcher
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.registration.carry_over import CarryOver, measure_carry_over, pairs_with_neighbours, scaled, with_held_out
from utils.registration.result import Registration
from utils.registration.sequential import unaligned
from utils.types import Array, LatticeFields

FRAMES, HELD = 7, 3


def found(offsets: Array, fields: Array) -> CarryOver:
    """Frames whose given cameras are off by `offsets` (F, 3), world axes, and whose fields move them by `fields` (F, 3)."""
    world = make_box_world(frames=FRAMES, size=(48, 80), warp=0.0)
    c2w = world.true.c2w.copy()
    c2w[:, :3, 3] += offsets
    scene = replace(world.scene, cameras=replace(world.true, c2w=c2w), depth=world.true_depth.astype(np.float32))
    rows = np.setdiff1d(np.arange(FRAMES), [HELD])
    start: Registration = unaligned(scene.select(rows))
    moved = np.einsum("fba,fb->fa", c2w[rows, :3, :3], fields[rows])
    nodes = np.broadcast_to(moved[:, None, None, None], (len(rows), 2, 6, 8, 3)).astype(np.float32)
    result = replace(start, fields=LatticeFields(nodes=nodes, inv_depth_range=start.fields.inv_depth_range))
    clips = np.zeros(FRAMES, int)
    every, whole = with_held_out(scene, result, np.array([HELD]), clips)
    held = whole.cameras.frame_ids == HELD
    matcher = ExactMatcher(replace(world, scene=scene))
    geometry = AlignedGeometry(every, whole.cameras, whole.fields)
    pairs = pairs_with_neighbours(whole.aligned, held, clips)
    return measure_carry_over(every, whole, held, [matcher.match(i, j, geometry) for i, j in pairs])


def drift() -> Array:
    return np.outer(np.linspace(-1, 1, FRAMES), [0.08, 0.03, 0.0])


def test_a_drift_carries_over() -> None:
    carried = found(drift(), -drift())
    assert carried.errors_px[0, 0] < 0.15
    assert carried.errors_px[0, -1] > 0.4
    assert carried.strength.tolist() == [1.0]
    assert "weakened" not in carried.words()


def test_what_only_single_frames_have_is_weakened() -> None:
    noise = 0.08 * np.random.default_rng(1).standard_normal((FRAMES, 3))
    carried = found(np.zeros((FRAMES, 3)), noise)
    assert carried.errors_px[0, -1] < 0.05  # rigid rendering is right
    assert carried.errors_px[0, 0] > 0.3
    assert carried.strength.tolist() == [0.0]
    assert "do not carry over around 3" in carried.words()
    assert carried.report()["rigid_px"][0] < 0.05


def test_half_of_it_carries_over() -> None:
    carried = found(drift(), -2 * drift())
    assert carried.strength.tolist() == [0.5]


def test_strength_between_held_out_frames_and_across_clips() -> None:
    carried = CarryOver(np.array([2, 6, 12]), np.array([9, 9, 0]), np.array([[1, 0.1], [1, 0.1], [np.nan] * 2]), np.array([0.0, 1.0, 1.0]))
    ids, clips = np.array([0, 3, 4, 7, 8, 10]), np.array([0, 0, 0, 0, 1, 1])
    at = carried.at(ids, clips, np.array([0, 0, 1]))
    np.testing.assert_allclose(at, [0, 0.25, 0.5, 1, 1, 1])
    fields = LatticeFields(nodes=np.ones((6, 2, 2, 2, 3), np.float32), inv_depth_range=np.tile([0.1, 1.0], (6, 1)))
    np.testing.assert_allclose(scaled(fields, at).nodes[:, 0, 0, 0, 0], at)


@pytest.mark.parametrize(("aligned", "expected"), [([1, 1, 0, 1, 1], {1, 0, 3, 4}), ([1, 0, 0, 0, 1], {0, 4})])
def test_pairs_are_with_aligned_frames_of_the_clip(aligned: list[int], expected: set[int]) -> None:
    heldout = np.arange(6) == 2
    pairs = pairs_with_neighbours(np.array([*aligned, 1], bool), heldout, np.array([0, 0, 0, 0, 0, 1]))
    assert {a for _, a in pairs} == expected
    assert {h for h, _ in pairs} == {2}
    assert len(pairs) == len(set(pairs))
