"""How much of the alignment's deformation to render through: tried on a small copy of the scene.

Displacements that flow measured carry its noise. Where frames contradict each other, that is nothing against what they undo; where the
geometry already agrees, rendering through them can only spread the noise. A few hundred coarse steps tell extreme cases apart: the
strength whose world explains its training frames best. Displacements below a pixel of the small images are invisible to it, so it errs
towards weaker ones; since splats are only moved and not turned, all of the field was best wherever it was measured, so the trial is made
on request only.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.measure import training_psnr
from train_gs.train import Trainer, TrainingData
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp
from utils.types import NULL_REPORTER, Reporter

STRENGTHS = (1.0, 0.5, 0.0)
"""Strongest first."""
_STEPS, _SPLATS, _LONGEST_SIDE = 250, 8000, 128
_CLEAR_GAIN = 0.03
"""In dB; what a weaker deformation must gain over a stronger one."""

MakeTrainer = Callable[[TrainingData, InverseWarp, GSConfig], Trainer]


def scaled(warp: InverseWarp, strength: float) -> InverseWarp:
    """The inverse of the deformation times `strength`; only lattice fields can be scaled."""
    if strength == 1.0 or not isinstance(warp, FixedPointInverseWarp):
        return warp
    result = copy.deepcopy(warp)
    result.field.nodes *= strength
    return result


def chosen_strength(make: MakeTrainer, data: TrainingData, warp: InverseWarp, config: GSConfig, report: Reporter = NULL_REPORTER) -> float:
    """The strength that is set, or the best of a trial: ever weaker ones as long as they gain; 1 for runs hardly longer than the trial.

    Args:
        make: gives a trainer for data, a warp and settings.
        data: of the whole training.
        warp: the alignment's inverse deformation.
        config: of the whole training.
        report: told what was chosen and why.
    """
    if config.deform_strength is not None:
        return config.deform_strength
    if not isinstance(warp, FixedPointInverseWarp) or config.num_iters < 2 * _STEPS:
        return 1.0
    small = reduced(data)
    trial = replace(
        config, num_iters=_STEPS, target_num_points=min(_SPLATS, config.target_num_points), renderer="3dgs", gpus=1, views_per_step=0,
        relocate_every=0, initial_fill=1.0, noise=0.0, lpips_weight=0.0, robust=False, plateau_rounds=0, sh_full_from_iter=_STEPS,
    )  # fmt: skip
    best, found = STRENGTHS[0], {}
    for strength in STRENGTHS:
        found[strength] = _explained(make, small, scaled(warp, strength), trial)
        if found[strength] > found[best] + _CLEAR_GAIN:
            best = strength
        elif strength != best:
            break
    words = ", ".join(f"{value:.2f} dB at {strength:g}" for strength, value in found.items())
    report.note(f"splatting: deformation at strength {best:g} (training frames in a small trial: {words})")
    return best


def _explained(make: MakeTrainer, data: TrainingData, warp: InverseWarp, config: GSConfig) -> float:
    """Mean PSNR in dB over the training frames after a short training."""
    trainer = make(data, warp, config)
    while not trainer.done:
        trainer.step()
    trainer.release()
    turn = config.deform_inverse_rotations
    return training_psnr(trainer.result(), data, trainer.rasterizer, trainer.trained_warp(), turn=turn)


def reduced(data: TrainingData) -> TrainingData:
    """The same with images of at most `_LONGEST_SIDE` pixels."""
    h, w = data.cameras.size
    factor = min(1.0, _LONGEST_SIDE / max(h, w))
    size = (max(1, round(h * factor)), max(1, round(w * factor)))
    if size == (h, w):
        return data
    images = np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in data.images.cpu().numpy()])
    used = None
    if data.used is not None:
        shares = [cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA) for mask in data.used.cpu().numpy().astype(np.float32)]
        used = torch.from_numpy(np.stack(shares) > 0.999)
    return replace(data, cameras=data.cameras.resized(size), images=torch.from_numpy(images), used=used)
