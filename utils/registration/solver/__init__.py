"""Robust least squares for poses and displacement lattices: chooses between the Numba and the Triton solver.

The objective, its unknowns and the symbols are defined in `problem`.

May import: what `utils.registration` may.
Start: `solve` here; `numba` is the readable one of the two solvers.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import torch

from configs.stage1_align import SolverConfig
from utils.device.accelerator import accelerator, or_on_cpu
from utils.device.triton_support import triton_ready
from utils.registration.solver.numba import solve_on_cpu
from utils.registration.solver.problem import LatticeShape, Problem, SavedSteps, State
from utils.types import Array

_HELD = 1e6  # `pose_ridge` of cameras that stay: they would move by a millionth of what they may otherwise


def solve(
    problem: Problem,
    state: State,
    shape: LatticeShape,
    config: SolverConfig,
    samples: float,
    first: Array | None = None,
    saved: SavedSteps | None = None,
    origin: Array | None = None,
) -> State:
    """The state after all reweighting steps.

    Args:
        problem: the matches.
        state: where to start; not changed.
        shape: of the lattices.
        config: weights and schedule; with an infinite `pose_ridge` the cameras keep the bits they came with.
        samples: pixels of a pair that were tried as matches; the data weight is inverse to it, so that sampling does not matter.
        first: (M, 3) distances of the matches that set the weights of the first step, if not those of `state`.
        saved: steps that an interrupted run finished (CPU only: the GPU is done before a step is on disk).
        origin: (F*N, 3) nodes that smoothness and ridge are measured from; None: zero.
    """
    origin = np.zeros_like(state.nodes) if origin is None else origin
    if math.isinf(config.pose_ridge):
        done = solve(problem, state, shape, replace(config, pose_ridge=_HELD), samples, first, saved, origin)
        return State(state.c2w.copy(), done.nodes, state.update.copy())
    alone = len(state.c2w) == 1  # one frame is solved on the CPU in less time than the launches take
    if not alone and accelerator() is not None and triton_ready():
        from utils.registration.solver import triton as solver_triton

        work = functools.partial(solver_triton.solve, problem, state, shape, config, samples, first, origin, torch.device("cuda"))
        return or_on_cpu(work, lambda: solve_on_cpu(problem, state, shape, config, samples, first, saved, origin), "alignment")
    return solve_on_cpu(problem, state, shape, config, samples, first, saved, origin)
