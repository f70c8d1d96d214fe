"""The part of a training step between poses and images on a GPU: draws a view, and steps the splats that it sees.

Takes the place of `view_gaussians`, the rasteriser and Adam for 3D Gaussians. What is drawn is the same; Adam leaves splats alone that a
view does not see (their moments do not fade meanwhile), as in Mallick et al., "Taming 3DGS", 2024.
"""

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from train_gs.fused.triton import see_colors, see_geometry, step_colors, step_geometry
from train_gs.population import SplatRows
from utils.deformation.inverse.reference import FIXED_POINT_STEPS, LEAST_DETERMINANT, NEWTON_STEPS, TOLERANCE
from utils.splatting.rasterize.triton import SHAPES, Binned, Projected, Segments, TritonRasterizer, bin_pairs, blend, blend_backward
from utils.types import RenderOutput

if TYPE_CHECKING:
    from train_gs.refine import FieldRefinement

RATES = ("positions", "quats", "scales", "opacities", "sh0", "shN")
"""Order of the learning rates that the kernels read."""
_GEOMETRY, _COLORS = 128, 64
"""Splats per program."""


class FusedStep:
    """Draws one view at a time, then steps.

    Args:
        rows: the trained tensors; stepped in place.
        optimizer: holds their moments and counts their steps; never steps them itself.
        rates: (6,) learning rates on the device, in the order of `RATES`.
        rasterizer: its budget and shape are used.
        near: nearest depth that is drawn, scene units.
        decay: weight decay of the higher bands.
    """

    def __init__(
        self, rows: SplatRows, optimizer: torch.optim.Optimizer, rates: Tensor, rasterizer: TritonRasterizer, near: float, decay: float
    ):
        self._rows, self._optimizer, self._rates, self._near, self._decay = rows, optimizer, rates, near, decay
        self._shape, self._budget = rasterizer.shape or SHAPES["3dgs"], rasterizer.budget

    def draw(
        self, pose: tuple[Tensor, Tensor], lattice: tuple[Tensor, Tensor] | None, K: Tensor, size: tuple[int, int], bands: int
    ) -> RenderOutput:
        """One view on black; gradients end at the images, which `step` takes further.

        Args:
            pose: (4, 4) camera-to-world, and quaternion (4,) of its inverse's rotation, with their autograd history.
            lattice: nodes (nz, nv, nu, 3) of the frame's deformation and its coordinate map (8,); None draws rigidly.
            K: (3, 3) in pixels of `size`.
            size: (h, w).
            bands: colour bands in use, 1, 4, 9 or 16.
        """
        means, quats, log_scales, logits, sh0, higher = self._rows
        num, (height, width) = len(means), size
        self._pose, self._K, self._bands, self._size = pose, K.contiguous(), bands, size
        c2w, turn = (t.detach().contiguous() for t in pose)
        projected = Projected.empty(num, means.device)
        self._solved = means.new_empty(num, 3)
        self._harmonics = means.new_empty(num if bands > 1 else 0, 16)
        self._jacobian = means.new_empty(num if lattice is not None else 0, 9)
        nodes, coordinates = (means, means) if lattice is None else lattice  # not read without a deformation
        nz, nv, nu = nodes.shape[:3] if lattice is not None else (1, 1, 1)
        p = projected
        see_geometry[(triton.cdiv(num, _GEOMETRY),)](
            means, quats, log_scales, logits, c2w, turn, nodes, coordinates, self._K, p.records, p.rects, p.counts, p.depths,
            self._solved, self._jacobian, self._harmonics, num, nu, nv, nz, width, height, self._near, TOLERANCE, LEAST_DETERMINANT,
            ACTIVE=bands, WARP=lattice is not None, FIXED_POINT_STEPS=FIXED_POINT_STEPS, NEWTON_STEPS=NEWTON_STEPS, TILE=self._shape.tile,
            BLOCK=_GEOMETRY,
        )  # fmt: skip
        see_colors[(triton.cdiv(num, _COLORS),)](
            sh0, higher, self._harmonics, p.counts, p.records, num, STORED=higher.shape[1], ACTIVE=bands, BLOCK=_COLORS
        )
        self._warped = lattice is not None
        self._binned: Binned = bin_pairs(projected, size, self._shape, self._budget)
        rgb, alpha, depth, cut = blend(self._binned, size, self._shape, keep=True)
        assert cut is not None
        self._cut: Segments = cut
        self._images = tuple(image.requires_grad_() for image in (rgb, alpha, depth))
        return RenderOutput(*self._images)

    def step(self, refinement: "FieldRefinement | None", view: int) -> None:
        """Steps the splats by the gradients that the images have now, and hands gradients on to the pose and the refinement."""
        rows, binned, (height, width) = self._rows, self._binned, self._size
        incoming = tuple(torch.zeros_like(i) if i.grad is None else i.grad for i in self._images)
        images = tuple(i.detach() for i in self._images)
        gradients = blend_backward(binned, self._cut, images, incoming, self._shape)
        means, num = rows.means, len(rows.means)
        c2w, turn = (t.detach().contiguous() for t in self._pose)
        moments = [tensor for rows_of in rows[:4] for tensor in self._moments(rows_of)]
        step = self._state(rows.sh0)["step"]
        higher_state = self._state(rows.shN) if self._bands > 1 else self._state(rows.sh0)
        higher_moments = (higher_state["exp_avg"], higher_state["exp_avg_sq"])
        step_colors[(triton.cdiv(num, _COLORS),)](
            rows.sh0, rows.shN, self._harmonics, binned.counts, binned.records, gradients, *self._moments(rows.sh0), *higher_moments,
            self._rates, step, higher_state["step"], self._decay, num, STORED=rows.shN.shape[1], ACTIVE=self._bands, BLOCK=_COLORS,
        )  # fmt: skip
        programs = triton.cdiv(num, _GEOMETRY)
        back, sums = torch.empty_like(means), means.new_empty(programs, 16)
        step_geometry[(programs,)](
            means, rows.quats, rows.log_scales, rows.logit_opacities, c2w, turn, self._solved, self._jacobian, self._K, binned.records,
            gradients, binned.counts, *moments, self._rates, step, back, sums, num, width, height,
            WARP=self._warped, MOVE=means.requires_grad, BLOCK=_GEOMETRY,
        )  # fmt: skip
        torch._foreach_add_([state["step"] for state in map(self._optimizer.state.get, rows) if state], 1.0)
        if self._pose[0].requires_grad:
            self._hand_on(sums.sum(0))
        if refinement is not None:
            refinement.add_gradient(view, self._solved, back)

    def _hand_on(self, sums: Tensor) -> None:
        """Gradients of the pose from the sums over all splats."""
        g_c2w = sums.new_zeros(4, 4)
        g_c2w[:3, :3], g_c2w[:3, 3] = sums[:9].view(3, 3), sums[9:12]
        torch.autograd.backward(self._pose, (g_c2w, sums[12:]))

    def _state(self, tensor: Tensor) -> dict[str, Tensor]:
        return self._optimizer.state[tensor]  # type: ignore[no-any-return]

    def _moments(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Those of Adam; of a tensor that is not trained, the tensor itself, which the kernels then leave alone."""
        state = self._optimizer.state.get(tensor)
        return (state["exp_avg"], state["exp_avg_sq"]) if state else (tensor, tensor)
