"""Whether to optimise the given poses: a test of how much of the matches' error a solve for the poses alone removes.

The rigid part of a frame's error can be explained by its pose or by its displacement field, and matches cannot tell which. If the frames
are distorted, refined poses bend the camera path; if the poses are nearly right, fields can take up the rest. So the poses are held fixed
unless refining them alone, without fields, removes more than `pose_evidence` of the median error: then the poses are wrong.
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from configs.stage1_align import SolverConfig
from utils.matching.contract import MatchSet
from utils.registration.depth_noise import DepthNoise
from utils.registration.solver import solve
from utils.registration.solver.problem import LatticeShape, SavedSteps, build_problem, errors_in_sigmas, initial_state
from utils.types import Array, Reporter, Scene

_MATCHES = 1000  # matches per frame that the test uses
_LATTICE = (2, 2, 2)  # not used: the fields stay still
_LEAST_LEFT = 1e-3  # share of the error that remains even with true poses: noise
_RIDGE = 0.01  # `pose_ridge` of the test, in which poses explain all of the error


def held_or_free(
    matches: list[MatchSet],
    scene: Scene,
    inv_depth: Array,
    config: SolverConfig,
    samples: float,
    first: Array | None,
    report: Reporter,
    saved: SavedSteps | None = None,
    noise: DepthNoise | None = None,
) -> SolverConfig:
    """The settings with `pose_ridge` infinite (poses held fixed) or scaled by the evidence that the poses are wrong; notes which.

    Args:
        matches: of any pairs.
        scene: the frames with the cameras as given.
        inv_depth: (F, 2) inverse-depth bounds of the lattices.
        config: `pose_evidence` is the share of the median distance of matches above which the cameras move.
        samples: pixels of a pair that were tried as matches.
        first: (M, 3) distances of all matches that set the weights of the first step, if not those of the cameras as given.
        report: told what was decided.
        saved: steps that an interrupted run finished.
        noise: of depth along the rays.
    """
    if config.rigid_only or config.pose_evidence <= 0 or math.isinf(config.pose_ridge) or not matches:
        return config
    share = rigid_share(matches, scene, inv_depth, config, samples, first, saved, noise)
    moved = share > config.pose_evidence
    report.note(
        f"cameras {'move' if moved else 'stay'}: moving them alone would remove {100 * max(share, 0.0):.0f} % of what matches disagree by "
        f"(they move above {100 * config.pose_evidence:.0f} %)"
    )
    # The weight falls with the ratio of the error that poses explain to the error that they leave.
    return replace(config, pose_ridge=config.pose_ridge * max(1.0 - share, _LEAST_LEFT) / share if moved else math.inf)


def rigid_share(
    matches: list[MatchSet],
    scene: Scene,
    inv_depth: Array,
    config: SolverConfig,
    samples: float,
    first: Array | None,
    saved: SavedSteps | None = None,
    noise: DepthNoise | None = None,
) -> float:
    """Share of the median error of matches, in standard deviations, that a solve for the poses alone removes; at most 1."""
    every = max(1, sum(len(m) for m in matches) // (_MATCHES * len(scene)))
    ends = np.cumsum([0, *(len(m) for m in matches)])
    weights = None if first is None else np.concatenate([first[a:b:every] for a, b in itertools.pairwise(ends)])
    shape = LatticeShape(_LATTICE, inv_depth, scene.median_depth)
    rigid = replace(config, lattice=_LATTICE, rigid_only=True, pose_ridge=_RIDGE)
    problem = build_problem([_thinned(m, every) for m in matches], scene.cameras, shape, config.match_sigma, noise=noise)
    start = initial_state(scene.cameras, shape)
    state = solve(problem, start, shape, rigid, samples / every, weights, saved)
    before, after = (float(np.median(errors_in_sigmas(problem, s, shape))) for s in (start, state))
    return 1.0 - after / before if before > 0 else 0.0


def _thinned(match: MatchSet, every: int) -> MatchSet:
    columns = (match.source_px, match.target_px, match.source_depth, match.target_depth)
    return MatchSet(match.source, match.target, *(column[::every] for column in columns))
