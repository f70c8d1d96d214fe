"""The fused step of a GPU against the step that autograd and torch's Adam take, in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.twins import CPU, GPU, difference, needs_triton, normal, uniform
from train_gs.population import SplatRows
from utils.cameras import se3
from utils.cameras.rotations import matrix_to_quat
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp, LocalWarp, camera_from_world
from utils.deformation.lattice.reference import LatticeField
from utils.splatting.rasterize.reference import TorchRasterizer
from utils.splatting.view import reference as view
from utils.types import RenderOutput, Splats

pytestmark = needs_triton
SIZE, COUNT, NEAR, DECAY = (17, 26), 60, 0.05, 0.02
RATES = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3], dtype=torch.float64)
K = torch.tensor([[24.0, 0, 13.4], [0, 23.0, 8.1], [0, 0, 1]], dtype=torch.float64)


@dataclass
class World:
    """Splats about a camera, some of them out of its sight, and a deformation."""

    rows: SplatRows
    field: LatticeField | None
    twist: Tensor


def world(deformed: bool) -> World:
    z = 2 + 2 * uniform(0, COUNT)
    means = torch.stack([(2.2 * uniform(1, COUNT) - 1.1) * z, (1.6 * uniform(2, COUNT) - 0.8) * z, z], -1)
    means[:1, 2] = -1.0
    rows = SplatRows(
        means,
        normal(3, COUNT, 4),
        -2 + 0.4 * normal(4, COUNT, 3),
        1 + normal(5, COUNT),
        normal(6, COUNT, 1, 3),
        0.3 * normal(7, COUNT, 15, 3),
    )
    field = None
    if deformed:
        nodes, bounds = 0.015 * normal(8, 1, 2, 3, 4, 3), torch.tensor([[0.2, 0.6]], dtype=torch.float64)
        field = LatticeField(nodes, bounds, K[None], torch.tensor(SIZE))
    return World(rows, field, 0.05 * normal(9, 6))


def trained(rows: SplatRows, device: torch.device, dtype: torch.dtype) -> tuple[SplatRows, torch.optim.Adam]:
    """Copies of the rows, and an optimiser that has zero moments for all of them."""
    own = SplatRows(*(torch.nn.Parameter(t.to(device, dtype, copy=True)) for t in rows))
    groups = [{"params": [t], "lr": float(rate)} for t, rate in zip(own, RATES, strict=True)]
    groups[-1]["weight_decay"] = DECAY
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    for t in own:
        optimizer.state[t] = {"step": torch.zeros((), device=device), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)}
    return own, optimizer


def loss_of(out: RenderOutput, seed: int) -> Tensor:
    images = (out.rgb, out.alpha, out.depth)
    return torch.stack([(i * normal(seed + n, *i.shape).to(i)).sum() for n, i in enumerate(images)]).sum()


def plain_steps(w: World, bands: int, steps: int) -> tuple[SplatRows, list[Tensor], Tensor, Tensor]:
    """Rows after some steps, the images, the gradient of the pose in the last step, and which splats were ever seen."""
    rows, optimizer = trained(w.rows, CPU, torch.float64)
    seen, images = torch.zeros(COUNT, dtype=torch.bool), []
    for step in range(steps):
        optimizer.zero_grad()
        twist = w.twist.clone().requires_grad_()
        c2w = se3.exp(twist)
        y = camera_from_world(rows.means.detach(), c2w.detach())
        local = LocalWarp(y, y, None, y[:, 0])
        if w.field is not None:
            warp: InverseWarp = FixedPointInverseWarp(w.field)
            local = warp.linearize(y, 0)
        splats = Splats(*rows[:5])
        gaussians = view.view_gaussians(
            splats, c2w, local, active_degree=int(bands**0.5) - 1, turn=False, higher=rows.shN if bands > 1 else None
        )
        gaussians.means.retain_grad()
        gaussians.opacities.retain_grad()
        out = TorchRasterizer(CPU).render(gaussians, K, SIZE, "3dgs", NEAR)
        images += [out.rgb.detach(), out.alpha.detach(), out.depth.detach()]
        loss_of(out, 20 + 10 * step).backward()
        seen_now = (gaussians.opacities.grad != 0) & (gaussians.opacities.detach() > 0)
        kept = [(t.detach()[~seen_now].clone(), {k: v[~seen_now].clone() for k, v in optimizer.state[t].items() if v.dim()}) for t in rows]
        optimizer.step()
        with torch.no_grad():
            for t, (values, moments) in zip(rows, kept, strict=True):
                t[~seen_now] = values
                for name, moment in moments.items():
                    optimizer.state[t][name][~seen_now] = moment
        seen |= seen_now
        assert twist.grad is not None
    return rows, images, twist.grad, seen


@pytest.mark.parametrize("deformed", [False, True])
@pytest.mark.parametrize("bands", [1, 4, 16])
def test_steps_as_autograd_and_adam_do_and_leaves_unseen_splats_alone(deformed: bool, bands: int) -> None:
    from train_gs.fused.step import FusedStep
    from utils.splatting.rasterize.triton import TritonRasterizer

    w = world(deformed)
    expected, drawn, pose_gradient, seen = plain_steps(w, bands, steps=2)
    rows, optimizer = trained(w.rows, GPU, torch.float32)
    fused = FusedStep(rows, optimizer, RATES.float().to(GPU), TritonRasterizer(GPU), NEAR, DECAY)
    lattice = None
    if w.field is not None:
        coordinates = FixedPointInverseWarp(w.field).coordinates(GPU)[0]
        lattice = (w.field.nodes[0].float().to(GPU).contiguous(), coordinates)
    images = []
    for step in range(2):
        twist = w.twist.float().to(GPU).requires_grad_()
        c2w = se3.exp(twist)
        out = fused.draw((c2w, matrix_to_quat(c2w[:3, :3].T)), lattice, K.float().to(GPU), SIZE, bands)
        images += [out.rgb.detach(), out.alpha.detach(), out.depth.detach()]
        loss_of(out, 20 + 10 * step).backward()
        fused.step(None, 0)
    assert max(difference(a, b) for a, b in zip(images, drawn, strict=True)) < 1e-4
    assert twist.grad is not None and difference(twist.grad, pose_gradient) < 1e-4
    assert 5 < int(seen.sum()) < COUNT - 5
    for name, got, wanted, before in zip(SplatRows._fields, rows, expected, w.rows, strict=True):
        moved = wanted.detach() - before
        assert difference(got.detach().cpu().double() - before.float().double(), moved) < 5e-3, name
        assert torch.equal(got.detach().cpu()[~seen], before.float()[~seen]), name
        assert float(optimizer.state[got]["step"]) == 2.0
