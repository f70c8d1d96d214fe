"""Training of the network inverse: pairs of a camera-space point and where the forward field takes it, made anew again and again."""

import math

import numpy as np
import torch
from torch import Tensor

from configs.stage3_inverse_deformation import InverseDeformationConfig
from train_inverse_deformation.validate import surface_points
from utils.deformation.lattice.reference import LatticeField
from utils.deformation.network import NetworkInverseWarp
from utils.types import NULL_REPORTER, Reporter, Scene, StepReport

_NEIGHBOR_STEP = 0.01
"""Distance, in depths, over which the twist is held smooth."""


def fit_network(
    field: LatticeField, scene: Scene, config: InverseDeformationConfig, report: Reporter = NULL_REPORTER
) -> NetworkInverseWarp:
    """The trained inverse of all views.

    Args:
        field: forward fields, float32.
        scene: of the aligned frames, in the order of the fields; its depth says where surfaces are.
        config: stage settings.
        report: told the loss.
    """
    torch.manual_seed(config.seed)
    shape = {"octaves": config.octaves, "code": config.view_embed_dim, "neurons": config.n_neurons, "layers": config.n_hidden_layers}
    warp = NetworkInverseWarp(field.K, field.size, field.inv_depth_range, **shape)
    optimizer = torch.optim.Adam(warp.parameters(), lr=config.lr)
    rng = np.random.default_rng([config.seed, 1])
    for step in range(config.num_steps):
        optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
        views = rng.choice(len(field), size=min(config.views_per_step, len(field)), replace=False).tolist()
        losses = [view_loss(warp, field, view, _points(scene, view, config, rng), config) for view in views]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report.step(StepReport(stage="inverse network", step=step, total=config.num_steps, values={"loss": loss.item()}))
    return warp.requires_grad_(False)


def view_loss(warp: NetworkInverseWarp, field: LatticeField, view: int, points: Tensor, config: InverseDeformationConfig) -> Tensor:
    """Squared errors in fractions of the depth: of the way back, of the way there and back, and the twist's size and unsteadiness."""
    with torch.no_grad():
        y = points + field.displacement(points, view)
        nearby = y + _NEIGHBOR_STEP * points[:, 2:] * torch.randn_like(y)
    inverse_depth = 1.0 / points[:, 2:]
    twist = warp.twist(y, view)
    q = warp.apply_twist(y, twist)
    back = ((q - points) * inverse_depth).square().sum(-1).mean()
    cycle = ((q + field.displacement(q, view) - y) * inverse_depth).square().sum(-1).mean()
    size = twist.square().sum(-1).mean()
    unsteady = (twist - warp.twist(nearby, view)).square().sum(-1).mean()
    return back + config.cycle_weight * cycle + config.magnitude_weight * size + config.smoothness_weight * unsteady


def _points(scene: Scene, view: int, config: InverseDeformationConfig, rng: np.random.Generator) -> Tensor:
    """(n, 3) random places on the view's surface, a third of them at depths in between those of two pixels."""
    points = surface_points(scene, view, config.batch_size // config.views_per_step, rng).float()
    between = torch.from_numpy(rng.random((len(points) // 3, 1))).float()
    partner = points[torch.from_numpy(rng.permutation(len(points))[: len(between)])]
    first = points[: len(between)]
    depth = (1 - between) * first[:, 2:] + between * partner[:, 2:]
    return torch.cat([first / first[:, 2:] * depth, points[len(between) :]])
