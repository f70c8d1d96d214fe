"""Splats that float go halfway through training; what frames know of the others is part of the result."""

import numpy as np
import torch

from tests.train_gs.test_train_gs import FRAMES, build, make_config
from train_gs.floaters import with_coverage
from train_gs.population import EMPTY_LOGIT
from train_gs.train import train

BEFORE_THE_WALL = torch.tensor([0.0, 0.0, 1.2])


def test_a_splat_before_the_wall_goes_and_those_on_it_stay() -> None:
    config = make_config(num_iters=10, prune_floating_at=0.5)
    trainer = build(config)
    count = len(trainer.parameters.means)
    with torch.no_grad():
        trainer.parameters.means[7] = BEFORE_THE_WALL
    for _ in range(4):
        trainer.step()
    assert trainer.hidden is None
    trainer.step()
    assert trainer.hidden == 1
    assert trainer.parameters.logit_opacities[7] == EMPTY_LOGIT
    trained = train(trainer)
    assert (trained.splats.means - BEFORE_THE_WALL).norm(dim=1).min() < 0.1  # invisible, but there
    finished = with_coverage(trained, trainer.data, trainer.trained_warp(), config)
    assert len(finished.splats) >= count - 3
    assert (finished.splats.means - BEFORE_THE_WALL).norm(dim=1).min() > 1.0
    assert finished.coverage is not None
    assert len(finished.coverage) == len(finished.splats)
    assert finished.coverage.views.float().median() >= (FRAMES - 2) / 2
    assert not finished.coverage.floating.any()


def test_without_depth_or_at_zero_nothing_is_looked_for() -> None:
    trainer = build(make_config(num_iters=4, prune_floating_at=0.0))
    train(trainer)
    assert trainer.hidden is None


def test_frames_that_are_only_measured_know_nothing() -> None:
    trainer = build(make_config(num_iters=2))
    finished = with_coverage(train(trainer), trainer.data, trainer.trained_warp(), trainer.config)
    assert finished.coverage is not None
    assert int(finished.coverage.views.max()) == np.count_nonzero(~trainer.data.heldout)
