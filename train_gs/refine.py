"""Refinement of the deformation while the splats are trained: a coarse lattice of small corrections per frame, none for the reference.

The photometric loss is sensitive to misalignments of a pixel that correspondences leave and that blur the world. The correction adds to
the forward displacement, so the result is again a lattice field with an exact inverse. Size and roughness are penalised, since a free
field would also fit detail that belongs to the splats.
"""

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train_gs.data import CorrectionSources
from utils.cameras.blending import neighbours_in_time
from utils.cameras.projection import project, transform
from utils.deformation.between import blended_fields
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp, LocalWarp
from utils.deformation.node_shift import node_shift
from utils.device.triton_support import triton_ready
from utils.types import CameraSet, LatticeFields


class FieldRefinement(nn.Module):
    """Corrections e_i on a lattice over (u, v, inverse depth), in fractions of the depth; zero at the start.

    Args:
        warp: the inverse to refine; its own copy is changed, see `warp`.
        lattice: nodes of the corrections along u, v and inverse depth; linear in between.
        device: of the training.
        links: the frames before and after each one, whose corrections should be like its own; without it none.
    """

    def __init__(self, warp: FixedPointInverseWarp, lattice: tuple[int, int, int], device: torch.device, links: "TimeLinks | None" = None):
        super().__init__()
        self._links = links
        self.warp = copy.deepcopy(warp).to(device)
        field = self.warp.field
        frames, nz, nv, nu = field.nodes.shape[:4]
        self._aligned = field.nodes.clone()
        counts = tuple(min(a, b) for a, b in zip(lattice[::-1], (nz, nv, nu), strict=True))
        self._spread = [interpolation(coarse, fine, device) for coarse, fine in zip(counts, (nz, nv, nu), strict=True)]
        between = torch.linspace(0, 1, nz, dtype=torch.float64)[None]
        far, near = field.inv_depth_range.double().cpu().split(1, 1)
        self._depth = (1 / (far + between * (near - far))).float().to(device)[:, :, None, None, None]
        # One more column, and layers in fours: rows that are aligned alike, so that one compiled kernel serves all frames.
        cameras = np.stack([np.append(field.affine_coordinates(i), 0.0) for i in range(frames)])
        self._layers = nn.functional.pad(self._depth.view(frames, nz), (0, -nz % 4))
        self._cameras = torch.from_numpy(cameras).to(device, torch.float32 if device.type == "cuda" else torch.float64)
        self.corrections = nn.ParameterList([nn.Parameter(torch.zeros(*counts, 3, device=device)) for _ in range(frames)])
        self._dense = self._whole_spread() if self._fused() else None
        self._roughness = roughness(counts).to(device) if device.type == "cuda" else None  # a few launches instead of fifty

    def _fused(self) -> bool:
        """Whether one kernel takes the gradient of a frame's corrections."""
        if self._cameras.device.type != "cuda" or not triton_ready():
            return False
        from utils.deformation.node_shift import triton

        return triton.fits(tuple(self.corrections[0].shape[:3]))  # type: ignore[arg-type]

    def _whole_spread(self) -> Tensor:
        """(nodes, coarse nodes) weights along all three axes at once."""
        along_z, along_v, along_u = self._spread
        return torch.kron(torch.kron(along_z, along_v), along_u)

    def nodes(self, view: int) -> Tensor:
        """(nz, nv, nu, 3) the frame's refined nodes, differentiable."""
        return self._aligned[view] + self._finer(self.corrections[view]) * self._depth[view]

    def _finer(self, correction: Tensor) -> Tensor:
        along_z, along_v, along_u = self._spread
        return torch.einsum(
            "Cc,cBAk->CBAk", along_z, torch.einsum("Bb,cbAk->cBAk", along_v, torch.einsum("Aa,cbak->cbAk", along_u, correction))
        )

    @torch.no_grad()
    def solve(self, y: Tensor, view: int) -> LocalWarp:
        """The local warp of the frame as it is refined now."""
        self.settle(view)
        return self.warp.linearize(y, view)

    @torch.no_grad()
    def settle(self, view: int) -> Tensor:
        """Writes the frame's refined nodes (nz, nv, nu, 3) into the warp and returns them."""
        nodes = self.warp.field.nodes[view]
        if self._dense is None:
            nodes.copy_(self.nodes(view))
        else:  # the same in two launches instead of a dozen
            moved = (self._dense @ self.corrections[view].view(-1, 3)).view_as(nodes)
            torch.addcmul(self._aligned[view], moved, self._depth[view], out=nodes)
        return nodes

    @property
    def fused(self) -> bool:
        """Whether `add_gradient` can be used."""
        return self._dense is not None

    def add_gradient(self, view: int, solved: Tensor, back: Tensor) -> None:
        """Accumulates in `grad` of a frame's corrections the gradient that comes through its splats, on a GPU.

        Args:
            view: the frame.
            solved: (N, 3) positions in front of the camera, solved with the nodes of `settle`; not read where `back` is 0.
            back: (N, 3) gradient with respect to the same before the deformation.
        """
        from utils.deformation.node_shift import triton

        correction = self.corrections[view]
        if not correction.requires_grad:
            return
        counts, coarse = tuple(self._aligned.shape[1:4]), tuple(correction.shape[:3])
        gradient = triton.correction_vjp(counts, coarse, self._cameras[view], self._layers[view], solved, None, back)  # type: ignore[arg-type]
        correction.grad = gradient.contiguous() if correction.grad is None else correction.grad + gradient

    def moved(self, means: Tensor, local: LocalWarp, view: int, *, fresh: bool) -> Tensor:
        """(N, 3) means plus their first-order shift since `solve` gave `local`; differentiable in the corrections.

        Args:
            means: (N, 3) camera-space positions that `local` gave.
            local: the frame's warp.
            view: the frame.
            fresh: `local` was solved for this step, so the shift is zero.
        """
        if not fresh or self._dense is None or local.jacobian is None:
            return means + self.shift(local, view, fresh=fresh)
        shape = tuple(self._aligned.shape[1:4])
        return _WithCorrection.apply(  # type: ignore[no-any-return]
            means, self.corrections[view], self._cameras[view], self._layers[view], local.q0, local.jacobian, shape
        )

    def shift(self, local: LocalWarp, view: int, *, fresh: bool) -> Tensor:
        """(N, 3) first-order shift of the solved points since `solve` gave `local`, differentiable in the corrections; see `moved`."""
        change = self.nodes(view) - self.warp.field.nodes[view]
        return node_shift(change, local, self._cameras[view], is_zero=fresh)

    def penalties(self, view: int) -> tuple[Tensor, Tensor]:
        """Mean square of a frame's corrections and of their differences between neighbouring nodes."""
        correction = self.corrections[view]
        if self._roughness is not None:
            flat = correction.view(-1, 3)
            return flat.square().sum() / len(flat), (flat * (self._roughness @ flat)).sum()
        steps = [correction.diff(dim=axis).square().sum(-1).mean() for axis in range(3) if correction.shape[axis] > 1]
        return correction.square().sum(-1).mean(), torch.stack(steps).sum()

    def change_over_time(self, view: int) -> Tensor:
        """Mean square difference between a frame's corrections and those interpolated from the frames beside it, times their likeness."""
        correction = self.corrections[view]
        if self._links is None or not self._links.likeness[view]:
            return correction.new_zeros(())
        before, after, weight = (values[view] for values in (self._links.before, self._links.after, self._links.weight))
        between = (1 - weight) * self.corrections[before].detach() + weight * self.corrections[after].detach()
        return float(self._links.likeness[view]) * (correction - between).square().sum(-1).mean()

    @torch.no_grad()
    def center(self, views: list[int]) -> None:
        """Subtracts the mean correction of these views from each of them: a common correction is a gauge, it moves the whole world."""
        mean = torch.stack([self.corrections[v] for v in views]).mean(0)
        for view in views:
            self.corrections[view] -= mean

    @torch.no_grad()
    def refined(self, trained: np.ndarray) -> FixedPointInverseWarp:
        """The inverse of all frames with the corrections of those that are trained, (F,) bool."""
        result = copy.deepcopy(self.warp)
        for view, correction in enumerate(self.corrections):
            finer = self._finer(correction) if trained[view] else 0.0
            result.field.nodes[view] = self._aligned[view] + finer * self._depth[view]
        return result


def carried_over(warp: InverseWarp, cameras: CameraSet, sources: CorrectionSources) -> InverseWarp:
    """The inverse with the fields of blended frames interpolated again, now from the refined fields of their trained neighbours.

    Args:
        warp: of all frames; returned as it is if it is not one of lattices.
        cameras: of all frames, refined.
        sources: which frames are trained, and which are blended.
    """
    rest = np.flatnonzero(sources.blended & ~sources.trained)
    if not isinstance(warp, FixedPointInverseWarp) or not len(rest):
        return warp
    own, field = np.flatnonzero(sources.trained), warp.field
    h, w = field.size.tolist()
    placed = CameraSet(c2w=cameras.c2w, K=field.K.double().cpu().numpy(), size=(h, w), frame_ids=sources.frame_ids)
    fields = LatticeFields(nodes=field.nodes[own].cpu().numpy(), inv_depth_range=field.inv_depth_range[own].double().cpu().numpy())
    around = neighbours_in_time(sources.frame_ids[own], sources.frame_ids[rest], sources.clips[own], sources.clips[rest])
    between = blended_fields(fields, placed.select(own), around, placed.select(rest))
    result = copy.deepcopy(warp)
    result.field.nodes[rest] = torch.from_numpy(between.nodes).to(field.nodes)
    result.field.inv_depth_range[rest] = torch.from_numpy(between.inv_depth_range).to(field.inv_depth_range)
    return result


@dataclass(frozen=True)
class TimeLinks:
    """The trained frames beside each trained one in its clip.

    Attributes:
        before: (F,) the last trained frame before it, or the first after it where there is none.
        after: (F,) the first trained frame after it, or the last before it.
        weight: (F,) share of `after`, 0..1.
        likeness: (F,) 0..1, how far the same nodes of these frames show the same place; 0 for frames that are not trained or alone.
    """

    before: np.ndarray
    after: np.ndarray
    weight: np.ndarray
    likeness: np.ndarray


def time_links(cameras: CameraSet, sources: CorrectionSources, depth: float, nodes: int) -> TimeLinks:
    """The frames beside each trained frame; `nodes` across the picture, `depth` of what is seen.

    A node stands for a part of the picture. Where the camera turns so fast that this part shows another place one frame later, there is
    no reason for alike corrections: likeness 1 / (1 + m^2), m the motion of the middle of the picture in node steps.
    """
    count = len(cameras)
    before, after, weight, likeness = np.arange(count), np.arange(count), np.zeros(count), np.zeros(count)
    middle = np.array([0.0, 0.0, depth])
    step = cameras.size[1] / max(nodes - 1, 1)
    trained = np.flatnonzero(sources.trained)
    for view in trained:
        others = trained[(trained != view) & (sources.clips[trained] == sources.clips[view])]
        if not len(others):
            continue
        around = neighbours_in_time(sources.frame_ids[others], sources.frame_ids[view : view + 1])
        before[view], after[view], weight[view] = others[around.low[0]], others[around.high[0]], around.weight[0]
        moved = []
        for other, share in ((before[view], 1 - weight[view]), (after[view], weight[view])):
            x, y, z = project(transform(cameras.w2c[other] @ cameras.c2w[view], middle), cameras.K[other])
            far = np.inf if z <= 0 else np.hypot(x - cameras.K[view, 0, 2], y - cameras.K[view, 1, 2]) / step
            moved.append(share / (1 + far**2))
        likeness[view] = sum(moved)
    return TimeLinks(before, after, weight, likeness)


class _WithCorrection(torch.autograd.Function):
    """Identity on the means (N, 3) whose backward also computes the gradient of the frame's corrections, see `node_shift`."""

    @staticmethod
    def forward(ctx: Any, means: Tensor, correction: Tensor, *others: Any) -> Tensor:
        *tensors, ctx.counts = others
        ctx.coarse = tuple(correction.shape[:3])
        ctx.save_for_backward(*tensors)
        return means.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from utils.deformation.node_shift import triton

        camera, layers, points, jacobian = ctx.saved_tensors
        gradient = triton.correction_vjp(ctx.counts, ctx.coarse, camera, layers, points, jacobian, grads[0])
        return grads[0], gradient.contiguous(), None, None, None, None, None


def roughness(counts: tuple[int, ...]) -> Tensor:
    """(M, M) Q with x^T Q x the sum over axes of the mean square difference between neighbours of values x on a grid of M nodes."""
    total = torch.zeros(1)
    for axis, count in enumerate(counts):
        if count < 2:
            continue
        difference = torch.eye(count, dtype=torch.float64).diff(dim=0)
        parts = [torch.eye(c, dtype=torch.float64) for c in counts]
        parts[axis] = difference.T @ difference / (count - 1)
        matrix = functools.reduce(torch.kron, parts)
        total = total + matrix * (count / len(matrix))
    return total.float()


def interpolation(coarse: int, fine: int, device: torch.device) -> Tensor:
    """(fine, coarse) weights that spread values at `coarse` even places linearly over `fine` places with the same ends."""
    place = torch.linspace(0, coarse - 1, fine, dtype=torch.float64)
    return (1 - (place[:, None] - torch.arange(coarse)).abs()).clamp(min=0).float().to(device)
