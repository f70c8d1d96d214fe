"""Coarse to fine, and training by the clock."""

import itertools
import time

import numpy as np
import pytest
import torch

from tests.train_gs.test_train_gs import build, make_config
from train_gs.resolution import LEAST_SIDE, Shown, scale_at
from train_gs.train import train
from utils.errors import ConfigError


def frames(height: int, width: int) -> Shown:
    rows = torch.arange(height)[:, None, None].expand(height, width, 3)
    images = (2 * rows).to(torch.uint8)[None]
    used = torch.ones(1, height, width, dtype=torch.bool)
    used[0, 0, 0] = False
    return Shown(images, used, torch.tensor([[[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]]]))


def test_smaller_frames_average_and_keep_the_view() -> None:
    half = frames(128, 160).resized(0.5)
    assert half.size == (64, 80) and half.used is not None
    np.testing.assert_array_equal(half.images[0, :, 7, 1], 4 * np.arange(64) + 1)
    assert not half.used[0, 0, 0] and int(half.used.sum()) == 64 * 80 - 1
    np.testing.assert_allclose(half.K[0], [[50, 0, 40], [0, 50, 32], [0, 0, 1]])


def test_frames_that_are_small_already_stay() -> None:
    small = frames(LEAST_SIDE + 2, 160)
    assert small.resized(0.5) is small


def test_sizes_take_their_turns() -> None:
    assert [scale_at(p, (0.25, 0.5), 0.4) for p in (0.0, 0.19, 0.21, 0.39, 0.4, 1.0)] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert scale_at(0.1, (), 0.4) == 1.0


def test_training_by_the_clock_ends_in_time_with_its_schedule_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(num_iters=100_000, budget_seconds=2.0)
    trainer = build(config)
    ticks = itertools.count(1000.0, 0.01)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    train(trainer)
    assert trainer.done and 2.0 <= trainer.seconds < 2.2
    assert 10 < trainer.iteration < 200 and trainer.bands_active
    rate = next(g["lr"] / g["base_lr"] for g in trainer.optimizer.param_groups if g["name"] == "sh0")
    assert rate < config.lr_decay + 0.05


def test_the_clock_stands_still_between_a_stop_and_its_resumption() -> None:
    config = make_config(budget_seconds=100.0)
    trainer = build(config)
    trainer.step()
    state = trainer.state()
    resumed = build(config)
    resumed.load(state)
    assert resumed.seconds == state["seconds"]


def test_a_clock_goes_with_one_view_in_each_step() -> None:
    with pytest.raises(ConfigError, match="budget_seconds"):
        make_config(budget_seconds=5.0, views_per_step=2)
