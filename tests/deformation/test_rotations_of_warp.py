"""Noise of the deformation along the line of sight, which frames do not show, does less harm if splats are only moved by it."""

from dataclasses import replace

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from tests.train_gs.test_train_gs import data_of, make_config, make_world
from train_gs.measure import averages, measure
from train_gs.stage import make_trainer
from train_gs.train import train
from utils.deformation.inverse import inverse_of_alignment
from utils.types import Alignment, LatticeFields


def noisy_depth(alignment: Alignment, share: float) -> LatticeFields:
    """Fields that move every node along its own line of sight by a random part of its depth, different in every frame."""
    nu, nv, nz = 12, 9, 2
    (h, w), K = alignment.cameras.size, alignment.cameras.K[0]
    y, x = np.meshgrid(np.linspace(0, h, nv), np.linspace(0, w, nu), indexing="ij")
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    bounds = alignment.fields.inv_depth_range
    depth = 1 / np.linspace(bounds[:, 0], bounds[:, 1], nz, axis=1)
    amount = share * np.random.default_rng(0).standard_normal((len(bounds), 1, nv, nu)) * depth[:, :, None, None]
    return LatticeFields(nodes=(amount[..., None] * rays).astype(np.float32), inv_depth_range=bounds)


def heldout(config: GSConfig) -> float:
    """Held-out PSNR in dB on frames that agree, through such fields."""
    scene, alignment = make_world(0.0)
    warp = inverse_of_alignment(replace(alignment, fields=noisy_depth(alignment, 0.02)))
    trainer = make_trainer(alignment, data_of(scene, alignment, config), warp, "numba", torch.device("cpu"), config)
    rows = measure(train(trainer), trainer.data, trainer.rasterizer, warp, turn=config.deform_inverse_rotations)
    return averages(rows)["heldout_psnr"]


def test_noise_along_the_line_of_sight_does_not_turn_splats_by_default() -> None:
    config = make_config(refine_deformation=False)
    assert heldout(config) > heldout(replace(config, deform_inverse_rotations=True)) + 0.3
