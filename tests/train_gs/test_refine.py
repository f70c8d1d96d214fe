"""Refinement of the deformation during training: true gradients, a displacement that is found, frames that are not trained."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.deformation.test_inverse import make_field, points_in_view
from tests.train_gs.test_train_gs import FRAMES, build, correction_sources, make_config, make_world
from train_gs.refine import FieldRefinement, TimeLinks, carried_over, interpolation, roughness, time_links
from train_gs.train import train
from utils.deformation.inverse import FixedPointInverseWarp, inverse_of_alignment
from utils.deformation.node_shift import node_shift, reference


def moved(warp: FixedPointInverseWarp, change: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Solution of q + delta(q) = y for changed nodes."""
    other = copy.deepcopy(warp)
    other.field.nodes[1] += change
    return other.linearize(y, 1).q0


def test_gradient_with_respect_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.deformation.inverse.reference.TOLERANCE", 1e-13)
    warp = FixedPointInverseWarp(make_field(0.05))
    y = points_in_view(80)
    local = warp.linearize(y, 1)
    camera = torch.from_numpy(warp.field.affine_coordinates(1))
    change = torch.zeros_like(warp.field.nodes[1], requires_grad=True)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    (weights * node_shift(change, local, camera, is_zero=True)).sum().backward()
    assert change.grad is not None
    used = torch.nonzero(change.grad.abs().sum(-1) > 0.3)[:3]
    assert len(used) == 3
    for place in used:
        for k in range(3):
            step = torch.zeros_like(change.detach())
            step[(*place, k)] = 1e-6
            numeric = (weights * (moved(warp, step, y) - moved(warp, -step, y))).sum() / 2e-6
            torch.testing.assert_close(change.grad[(*place, k)], numeric, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(change.grad, reference.shift_vjp(tuple(change.shape[:3]), local.q0, local.jacobian, camera, weights))


def test_shift_predicts_what_solving_again_gives() -> None:
    warp = FixedPointInverseWarp(make_field(0.05))
    y = points_in_view(300)
    local = warp.linearize(y, 1)
    camera = torch.from_numpy(warp.field.affine_coordinates(1))
    change = 1e-3 * torch.randn(warp.field.nodes[1].shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    predicted, exact = node_shift(change, local, camera, is_zero=False), moved(warp, change, y) - local.q0
    assert exact.norm(dim=-1).median() > 3e-4
    assert (predicted - exact).norm(dim=-1).median() < 0.03 * exact.norm(dim=-1).median()
    torch.testing.assert_close(predicted, reference.shift(change, local.q0, local.jacobian, camera))


def test_corrections_spread_linearly() -> None:
    spread = interpolation(3, 5, torch.device("cpu"))
    torch.testing.assert_close(spread @ torch.tensor([0.0, 2.0, 10.0]), torch.tensor([0.0, 1.0, 2.0, 6.0, 10.0]))
    refinement = FieldRefinement(FixedPointInverseWarp(make_field(0.05)).float(), (2, 2, 1), torch.device("cpu"))
    with torch.no_grad():
        refinement.corrections[1][0, :, 1, 0] = 0.01  # right edge: one percent of the depth to the right
    change = refinement.nodes(1) - refinement._aligned[1]
    assert change[..., 0, :].abs().max() == 0
    near, far = change[-1, 0, -1, 0], change[0, 0, -1, 0]
    inverse = refinement.warp.field.inv_depth_range[1]
    torch.testing.assert_close(torch.stack([far, near]), 0.01 / inverse.float())


def test_training_finds_a_displacement_that_the_alignment_missed() -> None:
    _, alignment = make_world()
    wrong = alignment.fields.nodes.copy()
    wrong[3, ..., 0] += 0.08  # 0.8 px
    spoiled = replace(alignment, fields=replace(alignment.fields, nodes=wrong))
    settings = {"num_iters": 150, "optimize_cams": False, "refine_lattice": (2, 2, 1), "lr_deformation": 2e-3, "target_num_points": 600}
    settings |= {"refine_size_weight": 0.0, "refine_gauge": "reference", "sh_degree": 0}
    trainer = build(make_config(refine_deformation=True, **settings), warp=inverse_of_alignment(spoiled))
    train(trainer)
    found = trainer.trained_warp()
    assert isinstance(found, FixedPointInverseWarp)
    nodes = found.field.nodes[3, ..., 0].numpy()
    assert abs((wrong[3, ..., 0] - alignment.fields.nodes[3, ..., 0]).mean()) > 0.07
    assert abs(nodes.mean() - alignment.fields.nodes[3, ..., 0].mean()) < 0.03
    np.testing.assert_array_equal(found.field.nodes[0].numpy(), alignment.fields.nodes[0])  # the reference
    # frame 1 is held out: it keeps a field of its own; one that is blended lies between those of its neighbours
    np.testing.assert_array_equal(found.field.nodes[1].numpy(), wrong[1])
    data = replace(trainer.data, blended=trainer.data.heldout)
    carried = carried_over(found, trainer.result().cameras, data.sources)
    assert isinstance(carried, FixedPointInverseWarp)
    middle = (slice(None), slice(None), slice(1, 3))
    nodes = carried.field.nodes.numpy()
    np.testing.assert_allclose(nodes[1][middle], 0.5 * (nodes[0] + nodes[2])[middle], atol=1e-3)
    np.testing.assert_array_equal(nodes[[0, 2, 3, 5]], found.field.nodes.numpy()[[0, 2, 3, 5]])
    change = (carried.field.nodes - torch.from_numpy(wrong)).numpy()
    assert len(change) == FRAMES


def test_refined_training_resumes_with_the_same_bits() -> None:
    config = make_config(refine_deformation=True, num_iters=24)
    first, second = build(config), build(config)
    for _ in range(12):
        first.step()
    second.load(copy.deepcopy(first.state()))
    assert torch.equal(train(second).splats.means, train(first).splats.means)
    a, b = first.trained_warp(), second.trained_warp()
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_mean_of_the_corrections_stays_at_zero() -> None:
    trainer = build(make_config(refine_deformation=True, num_iters=8))
    for _ in range(8):
        trainer.step()
    assert trainer.refinement is not None
    assert not trainer.order  # a round of 4 training views is over; the next one begins with the mean taken out
    trainer._next_view()
    corrections = torch.stack([trainer.refinement.corrections[v].detach() for v in trainer.training_views])
    assert corrections.abs().max() > 1e-4
    assert corrections.mean(0).abs().max() < 1e-7


def test_roughness_is_the_mean_square_of_steps_along_every_axis() -> None:
    values = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([values.diff(dim=axis).square().sum(-1).mean() for axis in range(3)]).sum()
    flat = values.reshape(-1, 3)
    torch.testing.assert_close((flat * (roughness((2, 4, 5)) @ flat)).sum(), expected)


def test_corrections_are_held_to_those_of_the_frames_beside_them() -> None:
    _, alignment = make_world()
    links = TimeLinks(np.zeros(FRAMES, int), np.full(FRAMES, 2), np.full(FRAMES, 0.25), np.full(FRAMES, 0.5))
    refinement = FieldRefinement(inverse_of_alignment(alignment), (2, 2, 1), torch.device("cpu"), links)
    with torch.no_grad():
        refinement.corrections[0] += 0.4
        refinement.corrections[2] += 0.8
        refinement.corrections[1] += 0.6
    found = refinement.change_over_time(1)
    assert found.item() == pytest.approx(0.5 * 3 * 0.1**2, rel=1e-4)  # between them lies 0.5
    found.backward()
    assert refinement.corrections[1].grad is not None
    assert refinement.corrections[0].grad is None  # only the frame of the step moves


def test_frames_are_linked_in_their_clip_as_far_as_they_show_the_same() -> None:
    scene, _ = make_world()
    trained = np.array([True, False, True, True, True, True])
    sources = replace(correction_sources(trained), clips=np.array([0, 0, 0, 0, 1, 1]))
    links = time_links(scene.cameras, sources, 3.0, 5)
    np.testing.assert_array_equal(links.before[[0, 2, 3]], [2, 0, 0])
    np.testing.assert_array_equal(links.after[[0, 2, 3]], [3, 3, 2])
    assert links.weight[2] == pytest.approx(2 / 3)
    assert links.likeness[1] == 0
    slow = links.likeness[2]
    assert 0.5 < slow < 1  # a step of the camera is 0.8 px, one of the nodes 8
    assert time_links(scene.cameras, sources, 0.3, 5).likeness[2] < 0.5 * slow
