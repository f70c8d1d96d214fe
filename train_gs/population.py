"""A fixed number of splat slots: dead (transparent) splats are relocated onto living ones, drawn by opacity (MCMC relocation).

Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", 2024: a splat that has become transparent is placed on another
one, drawn by opacity, and both are made fainter and smaller such that together they look as the one did before (their eq. 9, for an
image in place of a line). Slots that the initial cloud does not fill are dead from the start, so the world grows by the same step, at a
limited rate, without new tensors: recorded steps, optimiser moments and saved states keep their shapes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from utils.cameras.rotations import quat_to_matrix
from utils.types import Splats

EMPTY_LOGIT = -20.0
"""Opacity logit of a slot that holds no splat: no rasteriser draws it."""
_MOST_COPIES = 51
_NOISE_SHARPNESS, _NOISE_CENTER = 100.0, 0.005


class SplatRows(NamedTuple):
    """The trained tensors of the splats, one row each: leaf tensors that an optimiser steps."""

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh0: Tensor
    shN: Tensor


def with_spare_slots(splats: Splats, budget: int) -> Splats:
    """The splats and, up to the budget, empty slots at the places of random ones (evenly drawn, the same for every run)."""
    spare = budget - len(splats)
    if spare <= 0:
        return splats
    places = torch.linspace(0, len(splats) - 1, spare).round().long()
    rows = torch.cat([torch.arange(len(splats)), places])
    filled = splats.select(rows)
    logits = filled.logit_opacities.clone()
    logits[len(splats) :] = EMPTY_LOGIT
    return Splats(filled.means, filled.quats, filled.log_scales, logits, filled.sh)


def living(splats: Splats, least_opacity: float) -> Tensor:
    """(N,) bool, splats that can be seen."""
    return splats.logit_opacities.detach().sigmoid() >= least_opacity


def shared_between(opacity: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scale factor of each of n coinciding splats that together look like one.

    o' = 1 - (1 - o)^(1/n) keeps the centre. The n profiles compose to 1 - (1 - o' exp(-r^2 / 2 s'^2))^n; its integral over the image,
    2 pi s'^2 sum_{k=0..n-1} C(n, k+1) (-1)^k o'^(k+1) / (k+1), is to be that of the one, 2 pi s^2 o. (The paper's eq. 9 takes the
    integral along a line, sqrt(k+1) and s in place of k+1 and s^2; the copies then lie too thin on the image.)

    Args:
        opacity: (M,) of the one.
        copies: (M,) integers n >= 1, at most 51 count.
    """
    copies = copies.clamp(1, _MOST_COPIES)
    shared = 1 - (1 - opacity.double()) ** (1 / copies)
    total = torch.zeros_like(shared)
    for k in range(int(copies.max())):
        chosen = torch.exp(torch.lgamma(copies + 1.0) - math.lgamma(k + 2.0) - torch.lgamma((copies - k).clamp(min=1).double()))
        term = chosen * (-1) ** k * shared ** (k + 1) / (k + 1)
        total = total + torch.where(copies > k, term, 0.0)
    return shared.to(opacity), (opacity.double() / total).sqrt().to(opacity)


@torch.no_grad()
def relocate(
    rows: SplatRows, optimizer: torch.optim.Optimizer, *, most: int, least_opacity: float, by_gradient: bool, generator: torch.Generator
) -> int:
    """Turns up to `most` dead slots into copies of living splats; returns how many. Works in place.

    The optimiser's moments of every row that changes start again from zero: they belong to another splat.

    Args:
        rows: the trained tensors.
        optimizer: what steps them.
        most: slots to fill.
        least_opacity: fainter splats are dead.
        by_gradient: draw by opacity times the size of the recent gradients of the position (where the picture is still wrong),
            not by opacity alone.
        generator: of the draws, on the CPU.
    """
    opacity = rows.logit_opacities.sigmoid()
    dead = torch.nonzero(opacity < least_opacity)[:, 0]
    weight = torch.where(opacity < least_opacity, 0.0, opacity)
    if by_gradient and rows.means in optimizer.state:
        weight = weight * optimizer.state[rows.means]["exp_avg_sq"].sum(-1).sqrt()
    if len(dead) > most:
        dead = dead[torch.randperm(len(dead), generator=generator)[:most].to(dead.device)]
    if not len(dead) or not bool(weight.sum() > 0):
        return 0
    drawn = torch.multinomial(weight.double().cpu(), len(dead), replacement=True, generator=generator).to(dead.device)
    copies = torch.bincount(drawn, minlength=len(opacity))
    source = torch.nonzero(copies)[:, 0]
    shared, shrink = shared_between(opacity[source], copies[source] + 1)
    rows.logit_opacities[source] = torch.logit(shared.clamp(least_opacity, 1 - 1e-6))
    rows.log_scales[source] += shrink.log()[:, None]
    for tensor in rows:
        tensor[dead] = tensor[drawn]
    _forget_moments(rows, optimizer, torch.cat([source, dead]))
    return len(dead)


def _forget_moments(rows: SplatRows, optimizer: torch.optim.Optimizer, index: Tensor) -> None:
    for tensor in rows:
        state = optimizer.state.get(tensor, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][index] = 0.0


@torch.no_grad()
def shake(rows: SplatRows, size: float, generator: torch.Generator) -> None:
    """Langevin noise on the positions of faint splats, along their own axes, so that they explore (eq. 8 of the paper).

    Args:
        rows: the trained tensors; the means change in place.
        size: factor on a splat's own extent; falls with the learning rate.
        generator: on the tensors' device.
    """
    means = rows.means
    faint = torch.sigmoid(-_NOISE_SHARPNESS * (rows.logit_opacities.sigmoid() - _NOISE_CENTER))
    noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
    rotation = quat_to_matrix(torch.nn.functional.normalize(rows.quats, dim=-1))
    along = (rotation @ (rows.log_scales.exp() * noise)[:, :, None])[:, :, 0]
    means += size * faint[:, None] * along
