"""The published alignment (arXiv 2603.16736): gradient descent on surface, colour and match terms, frame to model, then leave-one-out.

Kept as a configuration to compare with (`--config.method parity`): its terms, order and schedule, in our own code. `terms` holds each term
as a function, `surface` what they need of the model. Lengths in here are in units, thirds of the scene's median depth (`configs.icp`).

What differs from the publication, on purpose: pixels have their centre at +0.5 and the pixel of a coordinate is its floor; lengths scale
with the scene; early stopping does not depend on logging; a rigid pass ends when it has converged; normals and colour gradients are those
at insertion in stage 1 and are refreshed together in stage 2; stage 2 draws points first and looks up neighbours of those only; frames
without overlap are reported and left out; every random number is seeded; stage 2's field is an increment over stage 1's, which is handed
on as a lattice; networks run in float32 without tiny-cuda-nn.

May import: `utils.registration`, `utils.matching`, `utils.deformation`, `utils.points` and below.
Start: `frame_to_model` (stage 1), `leave_one_out` (stage 2).
"""

from utils.published.frame_to_model import align_frame_to_model
from utils.published.leave_one_out import align_leave_one_out
from utils.published.matched import refine_matched

__all__ = ["align_frame_to_model", "align_leave_one_out", "refine_matched"]
