"""Relocation of splats: what a viewer sees does not change, moments start again, the world grows to its budget, runs resume."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stage3_gs import GSConfig
from tests.train_gs.test_train_gs import build, make_config
from train_gs.population import EMPTY_LOGIT, SplatRows, living, relocate, shake, shared_between, with_spare_slots
from train_gs.train import SplatParameters, train
from utils.errors import ConfigError
from utils.splatting.rasterize.contract import load_rasterizer
from utils.splatting.view import CameraGaussians
from utils.types import Splats


def one_splat_and_dead_ones(opacity: float, dead: int) -> SplatParameters:
    count = 1 + dead
    logits = torch.full((count,), EMPTY_LOGIT)
    logits[0] = torch.logit(torch.tensor(opacity))
    return SplatParameters(
        Splats(
            means=torch.tensor([[0.0, 0.0, 2.0]]).repeat(count, 1),
            quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
            log_scales=torch.full((count, 3), -1.5),
            logit_opacities=logits,
            sh=torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0)),
        )
    )


def seen(rows: SplatRows) -> torch.Tensor:
    gaussians = CameraGaussians(
        rows.means, rows.quats, rows.log_scales.exp(), rows.logit_opacities.sigmoid(), torch.ones(len(rows.means), 3)
    )
    K = torch.tensor([[60.0, 0, 32], [0, 60.0, 32], [0, 0, 1]])
    with torch.no_grad():
        return load_rasterizer("numba", "cpu").render(gaussians, K, (64, 64), "3dgs").rgb[..., 0]


@pytest.mark.parametrize(("opacity", "cut_off"), [(0.3, 0.04), (0.9, 0.012)])
def test_copies_look_like_the_one_they_came_from(opacity: float, cut_off: float) -> None:
    parameters = one_splat_and_dead_ones(opacity, dead=3)
    rows, before = parameters.rows(), seen(parameters.rows())
    optimizer = torch.optim.Adam(list(rows), lr=0.0)
    moved = relocate(rows, optimizer, most=3, least_opacity=0.005, by_gradient=False, generator=torch.Generator().manual_seed(0))
    after = seen(rows)
    assert moved == 3
    assert living(parameters.complete(), 0.005).all()
    torch.testing.assert_close(parameters.sh0[3], parameters.sh0[0])
    assert (after.sum() / before.sum() - 1).abs() < cut_off  # the rasteriser leaves out the faint rims
    assert (after - before).abs().max() < 0.12 * opacity
    parameters.log_scales.data[:] = -1.5  # without the factor on the scales it grows
    assert seen(rows).sum() > 1.05 * after.sum()


def test_shared_opacity_composes_to_the_original() -> None:
    opacity, copies = torch.tensor([0.2, 0.7, 0.95, 0.5]), torch.tensor([2, 5, 51, 1])
    shared, shrink = shared_between(opacity, copies)
    torch.testing.assert_close(1 - (1 - shared) ** copies, opacity, rtol=1e-4, atol=0)
    assert float(shrink[3]) == pytest.approx(1.0)
    assert (shrink[:3] < 1).all()
    assert float(shrink[0]) == pytest.approx(
        float(0.2 / (2 * shared[0] - shared[0] ** 2 / 2)) ** 0.5, rel=1e-4
    )  # the sum written out for n = 2


def test_only_rows_that_change_lose_their_moments_and_the_rate_is_kept() -> None:
    logits = torch.tensor([2.0, 2.0, 2.0, -9.0, -9.0, -9.0])
    parameters = SplatParameters(Splats(torch.randn(6, 3), torch.randn(6, 4), torch.zeros(6, 3), logits, torch.zeros(6, 1, 3)))
    rows = parameters.rows()
    optimizer = torch.optim.Adam(list(rows), lr=0.0)
    sum(tensor.square().sum() + tensor.sum() for tensor in rows).backward()
    optimizer.step()
    optimizer.state[rows.means]["exp_avg_sq"][:] = 0
    optimizer.state[rows.means]["exp_avg_sq"][1] = 1.0
    generator = torch.Generator().manual_seed(0)
    assert relocate(rows, optimizer, most=2, least_opacity=0.005, by_gradient=True, generator=generator) == 2
    alike = (rows.means == rows.means[1]).all(-1)  # only splat 1 has a gradient to speak of, so it is drawn both times
    assert int(alike.sum()) == 3
    moments = optimizer.state[rows.logit_opacities]["exp_avg"]
    assert (moments[alike] == 0).all()
    assert (moments[~alike] != 0).all()


def test_nothing_moves_where_nothing_lives() -> None:
    parameters = one_splat_and_dead_ones(0.0001, dead=3)
    rows = parameters.rows()
    generator = torch.Generator().manual_seed(0)
    assert relocate(rows, torch.optim.Adam(list(rows)), most=3, least_opacity=0.005, by_gradient=False, generator=generator) == 0


def test_spare_slots_are_invisible() -> None:
    splats = one_splat_and_dead_ones(0.5, dead=0).complete()
    more = with_spare_slots(splats, 5)
    assert len(more) == 5
    assert living(more, 0.005).tolist() == [True] + [False] * 4
    assert with_spare_slots(splats, 1) is splats


def test_world_grows_to_its_budget_and_leaves_the_dead_out() -> None:
    config = make_config(initial_fill=0.5, relocate_every=10, relocate_rate=0.25, num_iters=40, relocate_until=1.0, target_num_points=600)
    trainer = build(config)
    assert len(trainer.parameters.means) == 600
    start = len(trainer.result().splats)
    assert start <= 300
    grown = train(trainer)
    assert 1.5 * start < len(grown.splats) <= 600
    assert len(grown.splats) == int(living(trainer.parameters.complete(), config.dead_opacity).sum())


def test_training_that_relocates_and_shakes_resumes_with_the_same_bits() -> None:
    config = make_config(initial_fill=0.5, relocate_every=10, num_iters=40, noise=0.5, target_num_points=400)
    straight, first, second = build(config), build(config), build(config)
    expected = train(straight)
    for _ in range(20):
        first.step()
    second.load(copy.deepcopy(first.state()))
    # the state drops the local warps of the run that goes on, too
    assert torch.equal(train(second).splats.means, train(first).splats.means)
    assert len(second.result().splats) == len(expected.splats)


def test_noise_moves_faint_splats_only() -> None:
    parameters = one_splat_and_dead_ones(0.5, dead=1)
    before = parameters.means.detach().clone()
    shake(parameters.rows(), 1.0, torch.Generator().manual_seed(0))
    moved = (parameters.means.detach() - before).norm(dim=-1)
    assert moved[0] < 1e-6
    assert 0.01 < moved[1] < 2.0


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing fills"):
        GSConfig(initial_fill=0.5)
    with pytest.raises(ConfigError, match="initial_fill"):
        replace(make_config(), initial_fill=0.0)
    assert np.isfinite(GSConfig(initial_fill=0.5, relocate_every=50).initial_fill)
