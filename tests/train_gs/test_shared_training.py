"""Training whose steps see several views: in one process, in two (gloo on the CPU), and through the stage."""

import json
import math
from pathlib import Path

import pytest
import torch

import train_gs.stage
import train_inverse_deformation.stage
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from tests.train_gs.test_train_gs import data_of, make_config, make_world
from tests.train_gs.test_train_gs_stage import Notes, root, settings  # noqa: F401  (a fixture)
from train_gs.shared import SharedTrainer, for_shared_steps, share_of, together
from train_gs.stage import make_trainer
from train_gs.train import Trainer, train
from utils.deformation.inverse import inverse_of_alignment
from utils.errors import ConfigError, OptimizationError

CPU = torch.device("cpu")


def trainer_of(config: GSConfig) -> Trainer:
    scene, alignment = make_world()
    return make_trainer(alignment, data_of(scene, alignment, config), inverse_of_alignment(alignment), "numba", CPU, config)


def config_of(**changes: object) -> GSConfig:
    return make_config(**{"num_iters": 24, "sh_full_from_iter": 8, "warp_refresh_visits": 1, "seed": 3, **changes})


def test_a_step_averages_the_gradients_of_its_views() -> None:
    trainer = trainer_of(config_of(views_per_step=2))
    assert isinstance(trainer, SharedTrainer)
    order = trainer._next_view(), trainer._next_view()
    singles = []
    for view in order:
        alone = trainer_of(config_of())
        alone._backward(view)
        singles.append((alone.parameters.means.grad, alone.parameters.sh0.grad, alone.appearance.deviations[view].grad))
    trainer._clear_gradients(list(order))
    for view in order:
        trainer._update(view)
    trainer._average(trainer._flat)
    torch.testing.assert_close(trainer.parameters.means.grad, (singles[0][0] + singles[1][0]) / 2)
    torch.testing.assert_close(trainer.parameters.sh0.grad, (singles[0][1] + singles[1][1]) / 2)
    for view, (_, _, own) in zip(order, singles, strict=True):
        torch.testing.assert_close(trainer.appearance.deviations[view].grad, own / 2)
    unseen = next(v for v in trainer.training_views if v not in order)
    assert trainer.appearance.deviations[unseen].grad is None


def test_frames_are_counted_not_steps() -> None:
    config = for_shared_steps(config_of(num_iters=1000, sh_full_from_iter=300, relocate_every=100), 4)
    assert (config.num_iters, config.sh_start, config.relocate_every) == (250, 75, 25)
    trainer = trainer_of(config_of(views_per_step=4))
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert groups["sh0"]["base_lr"] == pytest.approx(2 * config.lr_sh0)
    assert groups["sh0"]["betas"] == pytest.approx((0.9**4, 0.999**4))
    while not trainer.done:
        trainer.step()
    assert trainer.iteration == math.ceil(24 / 4)
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert groups["shN"]["base_lr"] == pytest.approx(2 * config.lr_shN)


def test_two_processes_end_where_one_does() -> None:
    results, values = [], []
    for gpus in (1, 2):
        trainer = trainer_of(config_of(gpus=gpus, views_per_step=2))
        with together(trainer, "numba"):
            trained = train(trainer)
        results.append(trained.splats)
        values.append(trainer.history[-1]["loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    for name in ("means", "log_scales", "logit_opacities", "sh"):
        torch.testing.assert_close(getattr(results[0], name), getattr(results[1], name), rtol=1e-3, atol=1e-4)


def test_a_process_that_dies_ends_the_training() -> None:
    trainer = trainer_of(config_of(views_per_step=2))
    assert isinstance(trainer, SharedTrainer)
    dead = type("Process", (), {"exitcode": 1, "name": "training process 1"})()
    trainer.others = [dead]
    with pytest.raises(OptimizationError, match="training process 1"):
        trainer._require_others()
    dead.exitcode = 77
    with pytest.raises(torch.OutOfMemoryError):
        trainer._require_others()


def test_more_gpus_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="has 1"):
        share_of(config_of(gpus=2), torch.device("cuda"))
    with pytest.raises(ConfigError, match="share"):
        share_of(config_of(gpus=2, views_per_step=3), CPU)


def test_the_stage_trains_with_several_views(root: Path) -> None:  # noqa: F811
    train_inverse_deformation.stage.run(InverseDeformationConfig(root_path=root, run="r", validation_points=200))
    out = train_gs.stage.run(settings(root, views_per_step=2, device="cpu"), Notes())
    assert json.loads((out / "report.json").read_text())["curve"][-1]["step"] == 6


def test_shared_steps_stop_on_a_plateau() -> None:
    rates = ("sh0", "shN", "opacities", "scales", "quats", "positions", "cams", "appearance", "deformation")
    trainer = trainer_of(config_of(num_iters=200, views_per_step=2, plateau_rounds=3, **{f"lr_{name}": 0.0 for name in rates}))
    train(trainer)
    assert trainer.plateau.reached
    assert trainer.iteration < 30
