"""The published alignment: every term alone, its schedule, and that the whole of it pulls frames together."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.icp import IcpConfig, LeaveOneOutConfig, MatchedFieldConfig, TwistFieldConfig
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig, PointFilterConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from tests.box_world import make_box_world
from tests.registration.test_registration import ExactMatcher
from tests.registration.test_stage1 import FAST, write_box
from utils.cameras import se3
from utils.cameras.projection import unproject
from utils.deformation.lattice.numba import forward_kernel
from utils.deformation.lattice_fit import fit_lattice
from utils.errors import ConfigError
from utils.matching.contract import MatchSet
from utils.points.surface import color_gradients, fit_normals, make_tree
from utils.published import align_frame_to_model, align_leave_one_out, matched, refine_matched, terms
from utils.published.filtering import ResidualHistory, threshold
from utils.published.frame_to_model import _NonRigid, search_radius
from utils.published.frames import frame_points
from utils.published.image_matches import matched_rows, reference_frames
from utils.published.leave_one_out import Frames, SharedSurface, draw_pairs
from utils.published.model import CanonicalModel
from utils.published.rigid import align_rigid
from utils.published.stopping import EarlyStopping
from utils.published.twist_fields import make_field
from utils.registration import align_jointly, forward_points, usable_pixels
from utils.registration.sequential import unaligned
from utils.scene import artifacts
from utils.types import NullReporter

TWISTS = TwistFieldConfig(levels=6, log2_table_size=12, max_resolution=128, neurons=16, lattice=(8, 6, 3), stored_lattice=(16, 10, 4))
ICP = IcpConfig(n_iter=20, rigid_iters=(10, 10), max_points=600, early_stopping_min_iters=10, lr=2e-3, max_corr_dist=0.1)


# ---------------------------------------------------------------------------------------------- terms


def test_point_to_plane_ignores_sliding_and_point_to_point_does_not():
    delta = torch.tensor([[0.3, 0.0, 0.2]])
    normal = torch.tensor([[0.0, 0.0, -1.0]])
    assert terms.point_to_plane(delta, normal).item() == pytest.approx(0.04)
    assert terms.point_to_point(delta).item() == pytest.approx(0.13)


def test_color_sees_sliding_on_a_colour_ramp():
    """Intensity rises by 2 per unit of x; a point that is 0.1 too far right is 0.2 too dark for its place."""
    normal, gradient = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    delta = torch.tensor([[0.1, 0.0, 5.0]], requires_grad=True)
    shade = torch.tensor([0.5])
    residual = terms.color_residual(delta, normal, gradient, shade, shade)
    assert residual.item() == pytest.approx(0.2)
    residual.square().sum().backward()
    assert delta.grad[0, 0] > 0  # descent moves the point back
    assert delta.grad[0, 2] == 0  # colour says nothing along the normal


def test_color_gate_drops_other_surfaces_unless_nothing_is_left():
    delta, normals = torch.zeros(5, 3), torch.tensor([[0.0, 0.0, 1.0]]).repeat(5, 1)
    own = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0])
    model = torch.full((5,), 0.45)
    assert terms.color(delta, normals, normals, model, own, 0.1).item() == pytest.approx(0.05**2)
    assert terms.color(delta, normals, normals, model, own, 0.01).item() == pytest.approx((4 * 0.05**2 + 0.55**2) / 5)


def test_smoothness_is_the_squared_twist_difference_a_step_apart():
    centers = torch.zeros(4, 6)
    shifted = torch.zeros(6, 4, 6)
    shifted[0, :, 2] = 3.0
    assert terms.smoothness(centers, shifted).item() == pytest.approx(9 / 6)
    places = terms.smoothness_centers(torch.zeros(100, 3), 0.1, 0.05, torch.Generator().manual_seed(0))
    assert len(places) == 50
    assert places[10:].std().item() == pytest.approx(0.025, rel=0.2)
    assert sorted(terms.axis_steps(0.05, places.device).sum(1).tolist()) == pytest.approx([-0.05] * 3 + [0.05] * 3)


def test_robust_distance_is_squared_near_zero_and_bounded_far_away():
    normal = torch.tensor([[0.0, 0.0, 1.0]])
    near, far = torch.tensor([[9.0, 0.0, 0.001]]), torch.tensor([[9.0, 0.0, 5.0]])
    assert terms.robust_distance(near, normal, 0.1).item() == pytest.approx(1e-6, rel=1e-3)
    assert terms.robust_distance(far, normal, 0.1).item() == pytest.approx(0.01, rel=1e-3)
    assert terms.robust_distance(far, normal, 0.0).item() == pytest.approx(25)
    assert terms.robust_distance(near, None, 0.0).item() == pytest.approx(81)
    both = torch.cat([near, far])
    assert terms.robust_distance(both, normal.expand(2, 3), 0.0, torch.tensor([1.0, 3.0])).item() == pytest.approx(0.75 * 25, rel=1e-3)


def test_search_radius_falls_over_half_of_the_iterations():
    config = IcpConfig(start_corr_dist=0.12, max_corr_dist=0.03, n_iter=100)
    assert [search_radius(config, i) for i in (0, 25, 50, 99)] == pytest.approx([0.12, 0.06, 0.03, 0.03])
    assert search_radius(IcpConfig(max_corr_dist=0.03), 0) == 0.03


def test_neighbours_of_another_direction_take_no_part(box):
    """A point beside a surface of another direction has no neighbour, however near."""
    frame = frame_points(box.scene, usable_of(box))[0]
    model = CanonicalModel(1, 10, 3, 3)
    model.add(0, np.array([[0, 0, 1], [0.1, 0, 1], [0, 0.1, 1], [0.1, 0.1, 1]]), np.zeros(4, np.float32), np.arange(4))
    points = np.array([[0.01, 0.01, 1.01], [0.05, 0.05, 1.01]])
    none = np.zeros(0, np.int64)
    for normals, expected in (([[0, 0, -1.0], [1, 0, 0]], [0]), ([[0, 0.6, 0.8], [0, 0, 1.0]], [0, 1])):
        config = IcpConfig(min_normal_cos=0.7, max_corr_dist=0.5)
        rows = np.arange(2)
        job = _NonRigid(frame, rows, (none, none), model, config, torch.device("cpu"), torch.Generator(), np.array(normals))
        assert job._partners(points, 0)[0].tolist() == expected


def test_unsure_points_pull_less(box):
    """Three points above a plane: the data term is the mean of their squared heights, or nearly the sure one's."""
    some = frame_points(box.scene, usable_of(box))[0].select(np.arange(3))
    frame = replace(
        some, points=np.array([[0, 0, 1.1], [0.1, 0.1, 1.2], [0, 0.1, 1.2]], np.float32), confidence=np.array([1, 0.01, 0.01], np.float32)
    )
    grid = np.stack(np.meshgrid([0, 0.05, 0.1], [0, 0.05, 0.1]), -1).reshape(-1, 2)
    model = CanonicalModel(1, 9, 5, 5)
    model.add(0, np.column_stack([grid, np.ones(9)]), np.zeros(9, np.float32), np.arange(9))
    none, cpu, losses = np.zeros(0, np.int64), torch.device("cpu"), []
    for weights in (False, True):
        icp = replace(ICP, max_corr_dist=0.5, confidence_weights=weights, color_weight=0, smoothness_weight=0, match_weight=0)
        job = _NonRigid(frame, np.arange(3), (none, none), model, icp, cpu, torch.Generator())
        losses.append(job.loss(torch.zeros(6), make_field("lattice", frame.box, TWISTS, cpu), 0)[1]["data"].item())
    assert losses == pytest.approx([(0.01 + 2 * 0.04) / 3, (0.01 + 2 * 0.01 * 0.04) / 1.02], rel=1e-3)


def test_matches_are_gated_and_weighted():
    delta = torch.tensor([[0.1, 0, 0], [0, 0.2, 0], [3.0, 0, 0]])
    certainty = torch.tensor([0.8, 0.2, 1.0])
    assert terms.matches(delta, certainty, 1.0).item() == pytest.approx(0.8 * (0.8 * 0.01 + 0.2 * 0.04))
    assert terms.matches(delta, certainty, 0.01).item() == 0
    assert terms.matches(delta, certainty, None).item() > 4


def test_anchor_and_magnitude():
    twists = torch.zeros(10, 6, requires_grad=True)
    terms.magnitude(twists).backward()
    assert torch.isfinite(twists.grad).all()
    assert terms.magnitude(torch.tensor([[3.0, 0, 0, 0, 4, 0]])).item() == pytest.approx(5)
    assert terms.anchor(torch.ones(4, 6), torch.zeros(4, 6)).item() == pytest.approx(1)


def test_terms_of_weight_zero_are_not_evaluated():
    def refuse():
        raise AssertionError

    loss, values = terms.total({"a": 2.0, "b": 0.0}, {"a": lambda: torch.tensor(3.0), "b": refuse})
    assert loss == 6
    assert list(values) == ["a"]


def test_pair_terms_use_the_normals_of_their_ends():
    delta = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    x, y = torch.tensor([[1.0, 0, 0]] * 2), torch.tensor([[0, 1.0, 0]] * 2)
    weights = torch.tensor([1.0, 3.0])
    assert terms.leave_one_out(delta, x, weights).item() == pytest.approx(1)
    assert terms.thin_shell(delta, y, weights).item() == pytest.approx(4)
    assert terms.weighted_mean(torch.tensor([0.0, 4.0]), weights).item() == pytest.approx(3)


# ---------------------------------------------------------------------------------------------- surface, schedule, filter


def ramp_plane(count=3000, seed=0):
    """Points of the plane x + z = 0 and their intensity, which rises by 0.5 per unit of y."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-1, 1, (2, count))
    return np.stack([a, b, -a], 1).astype(np.float32), (0.5 + 0.5 * b).astype(np.float32)


def test_normals_and_colour_gradients_of_a_plane():
    points, shade = ramp_plane()
    tree = make_tree(points)
    normals = fit_normals(tree, points, 20)
    assert np.abs(np.abs(normals @ np.array([1, 0, 1]) / np.sqrt(2)) - 1).max() < 1e-4
    gradients = color_gradients(tree, shade, points, normals, shade, 10)
    np.testing.assert_allclose(np.median(gradients, 0), [0, 0.5, 0], atol=0.02)


def test_early_stopping_waits_for_every_term():
    stopping = EarlyStopping(patience=2, min_iters=3, min_delta=0.1)
    assert [stopping.update({"a": a, "b": b}) for a, b in ((5, 1), (5, 0.5), (5, 0.45), (5, 0.45))] == [False, False, False, True]
    never = EarlyStopping(0, 0, 0.1)
    assert not any(never.update({"a": 1.0}) for _ in range(50))


def test_rigid_icp_finds_a_motion():
    world = make_box_world(1, (48, 80))
    from utils.published.frames import frame_points

    frame = frame_points(world.scene, world.scene.valid)[0]
    motion = se3.exp(torch.tensor([0.004, -0.003, 0.002, 0.012, -0.008, 0.01], dtype=torch.float64)).numpy()
    moved = frame.points @ motion[:3, :3].T + motion[:3, 3]
    config = IcpConfig(rigid_radii=(0.2, 0.1), rigid_iters=(80, 60))
    found = align_rigid(frame.points, frame.intensity, moved.astype(np.float32), frame.intensity, config)
    before, after = (np.linalg.norm(frame.points @ m[:3, :3].T + m[:3, 3] - moved, axis=1).mean() for m in (np.eye(4), found))
    assert after < 0.35 * before


def test_filter_drops_what_fits_worst_and_keeps_what_has_no_neighbour():
    history, config = ResidualHistory(), IcpConfig()
    rng = np.random.default_rng(0)
    valid = np.ones(1000, bool)
    valid[:100] = False
    first = rng.random(1000)
    first[:100] = 50
    keep = history.keep(first, np.zeros(1000), valid, config)
    assert keep[:100].all()
    assert keep[100:].mean() == pytest.approx(0.8, abs=0.01)
    assert first[100:][keep[100:]].max() < first[100:][~keep[100:]].min()
    spoiled = np.where(np.arange(1000) % 10 == 0, 30.0, first)
    second = history.keep(spoiled, np.zeros(1000), valid, replace(config, filter_worst_pct=0.0))
    assert not second[100::10].any()
    assert second[:100].all()
    assert threshold([1.0, 2.0, 3.0], 2) == pytest.approx(2 + 2 * 1.4826)


def test_reference_frames_are_recent_and_spread():
    config = IcpConfig()
    assert reference_frames(20, config) == list(range(20))
    chosen = reference_frames(40, config)
    assert chosen == [*range(0, 30, 3), *range(30, 40)]
    strided = reference_frames(41, replace(config, match_sampling="strided"))
    assert len(strided) == 20
    assert strided[-1] == 40
    pairs = sum(len(reference_frames(f, config)) for f in range(50))
    assert pairs == 790


def test_matches_are_looked_up_by_the_floor_of_their_pixels():
    model = CanonicalModel(2, 12, 3, 3)
    model.row_of_pixel[0, 5] = 7
    own_row = np.full(12, -1)
    own_row[2] = 3
    pixels = np.array([[2.9, 0.9], [2.5, 0.5]], np.float32), np.array([[1.9, 1.2], [0.5, 0.5]], np.float32)
    match = MatchSet(1, 0, *pixels, np.ones(2, np.float32), np.ones(2, np.float32))
    own, other = matched_rows([match], own_row, model, 4, IcpConfig(), np.random.default_rng(0))
    assert (own.tolist(), other.tolist()) == ([3], [7])


def test_lattice_fit_reproduces_what_a_lattice_shows():
    rng = np.random.default_rng(0)
    K, size, inv_depth = np.array([[60.0, 0, 32], [0, 60.0, 20], [0, 0, 1]]), (40, 64), np.array([0.2, 1.0])
    nodes = rng.normal(size=(3, 4, 5, 3)).astype(np.float32) * 0.1
    pixels, depth = rng.uniform(0, 1, (4000, 2)) * [64, 40], 1 / rng.uniform(0.2, 1.0, 4000)
    points = unproject(pixels[:, 0], pixels[:, 1], depth, K)
    intrinsics = np.array([60.0, 60.0, 32, 20])
    shown = np.empty(points.shape, np.float32)
    forward_kernel(points, intrinsics, size, np.eye(4), nodes, inv_depth, shown)
    fitted, misfit = fit_lattice(pixels, depth, shown - points, size, inv_depth, (5, 4, 3))
    assert misfit.max() < 2e-3
    np.testing.assert_allclose(fitted, nodes, atol=5e-3)


# ---------------------------------------------------------------------------------------------- stages


def still_frames(points):
    fields = [torch.nn.Identity() for _ in points]
    for field in fields:
        field.forward = lambda p: torch.zeros(len(p), 6)
    return Frames(points, np.zeros((len(points), 6)), fields, torch.device("cpu"))


def test_weighted_pairs_estimate_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    points = [rng.uniform(0, 1, (n, 3)).astype(np.float32) for n in (300, 100, 200)]
    joint, config = still_frames(points), LeaveOneOutConfig(max_corr_dist=0.15, max_pairs=20_000, color_weight=0)
    everything = np.concatenate(points)
    surface = SharedSurface.of(everything, np.zeros(600, np.float32), config)
    pairs = draw_pairs(joint, surface, config, rng)
    assert len(pairs.weight) == 20_000
    assert (joint.frame[pairs.source] != joint.frame[pairs.target]).all()
    length = np.linalg.norm(everything[pairs.source] - everything[pairs.target], axis=1)
    assert length.max() < 0.15
    distance, index = surface.tree.query(everything, k=5, distance_upper_bound=0.15)
    valid = np.isfinite(distance)
    valid &= joint.frame[np.where(valid, index, 0)] != joint.frame[:, None]
    assert np.average(length, weights=pairs.weight) == pytest.approx(distance[valid].mean(), rel=0.02)


def test_rows_of_all_frames_are_placed_in_their_order():
    points = [np.full((3, 3), f + 1.0, np.float32) for f in range(3)]
    joint = still_frames(points)
    with torch.no_grad():
        joint.twists[:, 3] = torch.tensor([9.0, 1.0, 2.0])  # the first frame does not move
    placed = joint.place(torch.tensor([8, 0, 4, 1]))
    np.testing.assert_allclose(placed.detach().numpy(), [[5, 3, 3], [1, 1, 1], [3, 2, 2], [1, 1, 1]])


@pytest.fixture(scope="module")
def box():
    return make_box_world(3, (48, 80))


class Recorder(NullReporter):
    def __init__(self):
        self.values = []

    def step(self, report):
        self.values.append(report.values)


def usable_of(world):
    return usable_pixels(world.scene, world.scene.valid, PointFilterConfig())


@pytest.mark.parametrize("field", ["hashgrid", "lattice"])
def test_both_stages_pull_the_frames_together(box, field):
    usable, scene = usable_of(box), box.scene
    config = FrameToModelICPConfig(method="parity", field=field, icp=ICP, twists=TWISTS)
    first, kept = align_frame_to_model(scene, usable, config, matcher=ExactMatcher(box))
    assert first.aligned.all()
    assert (kept <= usable).all()
    assert (kept[0] == usable[0]).all()
    np.testing.assert_array_equal(first.cameras.c2w[0], scene.cameras.c2w[0])
    start = unaligned(scene)
    consistency = [box.consistency(forward_points(scene, r.cameras, r.fields)) for r in (start, first)]
    assert consistency[1] < 0.6 * consistency[0]
    loo = LeaveOneOutConfig(n_iters=8, max_pairs=1500, rebuild_every=6, max_corr_dist=0.1, anchor_samples=64)
    joint = GlobalOptimizationConfig(method="parity", field=field, loo=loo, twists=TWISTS)
    recorded = Recorder()
    second = align_leave_one_out(scene, first, usable, kept, joint, recorded)
    assert recorded.values[-1]["thin shell"] < 0.95 * recorded.values[0]["thin shell"]
    np.testing.assert_array_equal(second.cameras.c2w[0], scene.cameras.c2w[0])
    again = align_leave_one_out(scene, first, usable, kept, joint)  # no reporter, same result
    np.testing.assert_array_equal(second.fields.nodes, again.fields.nodes)


def test_a_frame_that_meets_nothing_is_left_out(box):
    scene = box.scene
    c2w = scene.cameras.c2w.copy()
    c2w[1, :3, 3] += 100
    config = FrameToModelICPConfig(method="parity", icp=replace(ICP, n_iter=3, match_weight=0.0, rigid_iters=(2, 2)), twists=TWISTS)
    result, kept = align_frame_to_model(replace(scene, cameras=replace(scene.cameras, c2w=c2w)), usable_of(box), config)
    assert result.aligned.tolist() == [True, False, True]
    assert not kept[1].any()
    np.testing.assert_array_equal(result.cameras.c2w[1], c2w[1])


def test_hash_grids_go_on_where_a_stiff_lattice_stops(box):
    scene, usable, exact = box.scene, usable_of(box), ExactMatcher(box)
    stiff = SolverConfig(lattice=(2, 2, 2), cg_iterations=20, rigid_only=True)
    config = GlobalOptimizationConfig(
        field="hashgrid", coarse=stiff, fine=stiff, rounds=1, twists=TWISTS, refine=MatchedFieldConfig(n_iters=60, lr=3e-3)
    )
    start = align_jointly(scene, unaligned(scene), usable, config, matcher=exact)
    refined = refine_matched(scene, start, usable, config, matcher=exact)
    before, after = (box.consistency(forward_points(scene, r.cameras, r.fields)) for r in (start, refined))
    assert after < 0.7 * before


def test_stages_on_disk_take_the_method_from_their_settings(tmp_path):
    world = write_box(tmp_path, frames=3, size=(32, 48))
    data = AlignmentDataConfig(num_frames=3, stride=1)
    icp = replace(ICP, n_iter=4, rigid_iters=(3, 3))
    config = FrameToModelICPConfig(root_path=tmp_path, alignment=data, method="parity", icp=icp, twists=TWISTS, **FAST)
    first = stage1.run(config)
    alignment = artifacts.load_alignment(first)
    assert alignment.fields.nodes.shape[1:4] == (4, 10, 16)
    points = forward_points(world.scene, alignment.cameras, alignment.fields).reshape(3, -1, 3)
    np.testing.assert_allclose(alignment.cloud.points, points[alignment.cloud.frame, alignment.cloud.pixel], atol=2e-5)
    loo = LeaveOneOutConfig(n_iters=2, max_pairs=200, anchor_samples=16)
    shared = {"root_path": tmp_path, "run": first.parent.name, "twists": TWISTS, "matching": MatchingConfig(matches_per_frame=500)}
    second = artifacts.load_alignment(stage2.run(GlobalOptimizationConfig(method="parity", loo=loo, **shared)))
    np.testing.assert_array_equal(second.cloud.pixel, alignment.cloud.pixel)
    refined = stage2.run(
        GlobalOptimizationConfig(
            field="hashgrid", out_subdir="refined", coarse=FAST["solver"], rounds=1, refine=MatchedFieldConfig(n_iters=2), **shared
        )
    )
    assert artifacts.load_alignment(refined).fields.nodes.shape[1:4] == (4, 10, 16)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="parity only"):
        FrameToModelICPConfig(field="hashgrid")
    with pytest.raises(ConfigError, match="rigid_iters"):
        IcpConfig(rigid_radii=(0.1,))
    with pytest.raises(ConfigError, match="match_weight"):
        IcpConfig(match_weight=-1)


class Kept(dict):
    """Checkpoints in memory."""

    def load(self, name):
        return self.get(name)

    def save(self, name, arrays):
        self[name] = arrays


def test_an_interrupted_run_goes_on_with_the_same_bits(box):
    config = FrameToModelICPConfig(method="parity", icp=replace(ICP, n_iter=3, rigid_iters=(2, 2)), twists=TWISTS)
    parts = Kept()
    whole, kept = align_frame_to_model(box.scene, usable_of(box), config, matcher=ExactMatcher(box), checkpoints=parts)
    interrupted = Kept({name: arrays for name, arrays in parts.items() if name != "parity_2"})
    resumed, kept_again = align_frame_to_model(box.scene, usable_of(box), config, matcher=ExactMatcher(box), checkpoints=interrupted)
    np.testing.assert_array_equal(resumed.cameras.c2w, whole.cameras.c2w)
    np.testing.assert_array_equal(resumed.fields.nodes, whole.fields.nodes)
    np.testing.assert_array_equal(kept, kept_again)


class DiesAfterSaving(Kept):
    """A run that is killed as soon as a part of this name is kept."""

    def __init__(self, name, saves):
        super().__init__()
        self.name, self.left = name, saves

    def save(self, name, arrays):
        super().save(name, arrays)
        self.left -= name == self.name
        if not self.left:
            raise KeyboardInterrupt


class Steps(NullReporter):
    """Counts the steps of each phase."""

    def __init__(self):
        self.count = Counter()

    def step(self, report):
        self.count[report.stage] += 1


def goes_on(run, name, phase, iterations, saves):
    """`run(checkpoints, report)` killed when `name` was saved for the `saves`th time, then run again, against a run in one go."""
    whole, parts, report = run(Kept(), Steps()), DiesAfterSaving(name, saves), Steps()
    with pytest.raises(KeyboardInterrupt):
        run(parts, NullReporter())
    resumed = run(Kept(parts), report)
    assert report.count[phase] == iterations
    np.testing.assert_array_equal(resumed.cameras.c2w, whole.cameras.c2w)
    np.testing.assert_array_equal(resumed.fields.nodes, whole.fields.nodes)


@pytest.mark.parametrize("field", ["hashgrid", "lattice"])
def test_leave_one_out_goes_on_from_its_last_interval_with_the_same_bits(box, field):
    loo = LeaveOneOutConfig(n_iters=8, rebuild_every=3, max_pairs=300, anchor_samples=32, smoothness_weight=1.0)
    config = GlobalOptimizationConfig(method="parity", field=field, loo=loo, twists=TWISTS)
    usable, start = usable_of(box), unaligned(box.scene)
    run = lambda parts, report: align_leave_one_out(box.scene, start, usable, usable, config, report, parts)
    goes_on(run, "leave_one_out", "leave one out", iterations=2, saves=2)


def test_hash_grids_on_matches_go_on_with_the_same_bits(box, monkeypatch):
    monkeypatch.setattr(matched, "_KEEP_EVERY", 3)
    config = GlobalOptimizationConfig(field="hashgrid", twists=TWISTS, refine=MatchedFieldConfig(n_iters=8, lr=3e-3, max_pairs=300))
    usable, start, exact = usable_of(box), unaligned(box.scene), ExactMatcher(box)
    run = lambda parts, report: refine_matched(box.scene, start, usable, config, report, exact, parts)
    goes_on(run, "hash_grids", "hash grids", iterations=5, saves=1)
