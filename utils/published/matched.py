"""Hash grids on top of the joint lattice alignment, fitted to image matches: for warps that a lattice cannot follow."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from configs.icp import MatchedFieldConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.cameras import se3
from utils.cameras.projection import unproject
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.errors import NonFiniteError, NoOverlapError
from utils.matching.contract import MATCHERS, Matcher, MatchSet, match_grid, match_pairs, prepare_pairs
from utils.matching.pairs import choose_pairs, overlaps
from utils.matching.support import supported_matches
from utils.published import terms
from utils.published.frame_to_model import torch_device
from utils.published.frames import UNITS_PER_DEPTH, displaced_points, field_displacement, frame_points, stored_fields, unit_scale
from utils.published.resume import ResumableTraining
from utils.published.twist_fields import FrameBox, make_field, resolve_backend
from utils.registration.result import Registration
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints, keeping_matches
from utils.types import NULL_REPORTER, Array, Reporter, Scene, StepReport

_KEEP_EVERY = 50  # iterations from one kept state to the next


def refine_matched(
    scene: Scene,
    start: Registration,
    usable: Array,
    config: GlobalOptimizationConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> Registration:
    """The alignment with a hash grid per frame added to its displacement; poses stay.

    Matches are found again from the aligned geometry. Both ends of a match move; the ridge on the mean squared displacement is the gauge.

    Args:
        scene: the frames with their poses before any alignment.
        start: result of the joint lattice alignment.
        usable: (F, H, W) bool.
        config: of stage 2; `refine`, `twists`, `matching` and the match sigma of `fine` are used.
        report: progress.
        matcher: replaces the one named in the config.
        checkpoints: matches and training that an interrupted run finished.

    Raises:
        NoOverlapError: no pair of frames has matches.
    """
    if config.matching.matcher == "none" and matcher is None:
        return start
    device, scale = torch_device(), unit_scale(scene)
    resolve_backend(config.twists, device, report.note)
    clock = time.perf_counter()
    active = np.flatnonzero(start.aligned)
    matches = _matches(scene, start, active, usable, config, report, matcher, checkpoints)
    frames = frame_points(scene, usable & start.aligned[:, None, None])
    moved = {int(f): displaced_points(scene, start.cameras, start.fields, int(f), frames[f].points, scale) for f in active}
    fields: dict[int, nn.Module] = {}
    for f, points in moved.items():
        box = FrameBox.around(points, frames[f].box.K, frames[f].box.size, frames[f].box.inv_depth)
        fields[f] = make_field("hashgrid", box, config.twists, device)
    ends = _Ends(scene, start, matches, scale, device)
    fit(fields, ends, config.refine, config.fine.match_sigma * UNITS_PER_DEPTH, config.twists.seed, report, checkpoints)

    def displacement(f: int) -> Array | None:
        return moved[f] + field_displacement(fields[f], moved[f], device) - frames[f].points if f in fields else None

    stored = stored_fields(scene, frames, displacement, config.twists, report)
    seconds = start.diagnostics.seconds | {"hash grids": time.perf_counter() - clock}
    return replace(start, fields=stored, diagnostics=replace(start.diagnostics, seconds=seconds))


class _Ends:
    """Both ends of all matches as camera-space points after the lattice displacement, units.

    Attributes:
        frame: (M, 2) frame of each end.
        points: (M, 2, 3).
        depth: (M,) mean depth of both ends.
        rotation: (F, 3, 3) of the camera-to-world transforms, which do not change.
        shift: (F, 3) of the same.
    """

    def __init__(self, scene: Scene, start: Registration, matches: list[MatchSet], scale: float, device: torch.device):
        points, frame, depth = [], [], []
        for m in matches:
            sides = ((m.source, m.source_px, m.source_depth), (m.target, m.target_px, m.target_depth))
            lifted = [unproject(px[:, 0], px[:, 1], d, scene.cameras.K[f]).astype(np.float32) * np.float32(scale) for f, px, d in sides]
            moved = [displaced_points(scene, start.cameras, start.fields, f, p, scale) for (f, _, _), p in zip(sides, lifted, strict=True)]
            points.append(np.stack(moved, 1))
            frame.append(np.tile([m.source, m.target], (len(m), 1)))
            depth.append((m.source_depth + m.target_depth) / 2 * scale)
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
        self.frame, self.points = tensor(np.concatenate(frame)), tensor(np.concatenate(points).astype(np.float32))
        self.depth = tensor(np.concatenate(depth).astype(np.float32))
        c2w = start.cameras.c2w.astype(np.float32)
        self.rotation, self.shift = tensor(c2w[:, :3, :3]), tensor(c2w[:, :3, 3] * np.float32(scale))

    def __len__(self) -> int:
        return len(self.depth)


def fit(
    fields: dict[int, nn.Module],
    ends: _Ends,
    config: MatchedFieldConfig,
    sigma: float,
    seed: int,
    report: Reporter,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> None:
    """Trains the fields in place; sigma is the expected distance of matches at the median depth, units."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for field in fields.values() for p in field.parameters()]
    adam = torch.optim.Adam(parameters, lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(config.n_iters, 1))
    resumable = ResumableTraining(checkpoints, "hash_grids", parameters, adam, generator)
    first = schedule.last_epoch = resumable.restore()
    weights = {"match": 1.0, "smoothness": config.smoothness_weight, "magnitude": config.magnitude_weight}
    steps = terms.axis_steps(config.smoothness_step, ends.points.device)
    count = min(config.max_pairs, len(ends))
    for iteration in range(first, config.n_iters):
        if iteration > first and iteration % _KEEP_EVERY == 0:
            resumable.save(iteration)
        rows = torch.randperm(len(ends), generator=generator)[:count].to(ends.points.device)
        loss, values = terms.total(weights, _terms(fields, ends, rows, steps, config, sigma, generator))
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of the hash grids became {float(loss)} in iteration {iteration}", "lower refine.lr")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
        shown = {name: float(value.detach()) for name, value in values.items()}
        report.step(StepReport("hash grids", iteration, config.n_iters, shown))


def _terms(
    fields: dict[int, nn.Module],
    ends: _Ends,
    rows: Tensor,
    steps: Tensor,
    config: MatchedFieldConfig,
    sigma: float,
    generator: torch.Generator,
) -> dict[str, terms.Term]:
    """The terms of one iteration; every field is evaluated once, for matches and smoothness together."""
    points, frame = ends.points[rows].reshape(-1, 3), ends.frame[rows].reshape(-1)
    order = torch.argsort(frame, stable=True)
    placed, squares, rough = [], [], []
    for f, field in fields.items():
        own = points[order[frame[order] == f]]
        if len(own) == 0:
            continue
        centers = terms.smoothness_centers(own, 0.02, config.smoothness_step, generator)
        shifted = (centers + steps[:, None]).reshape(-1, 3)
        twists, at, beside = field(torch.cat([own, centers, shifted])).split([len(own), len(centers), len(shifted)])
        warped = se3.warp(twists, own)
        placed.append(warped @ ends.rotation[f].T + ends.shift[f])
        squares.append((warped - own).square().sum(-1))
        rough.append(terms.smoothness(at, beside.reshape(len(steps), -1, 6)))
    canonical = torch.cat(placed)[torch.argsort(order)].reshape(-1, 2, 3)
    # Scaled to the median depth: what a pixel covers grows with depth, and so does the error of a match.
    squared = (canonical[:, 0] - canonical[:, 1]).square().sum(-1) * (UNITS_PER_DEPTH / ends.depth[rows]).square()
    return {
        "match": lambda: terms.geman_mcclure(squared, config.robust_scale * sigma).mean(),
        "smoothness": lambda: torch.stack(rough).mean(),
        "magnitude": lambda: torch.cat(squares).mean(),
    }


def _matches(
    scene: Scene,
    start: Registration,
    active: Array,
    usable: Array,
    config: GlobalOptimizationConfig,
    report: Reporter,
    matcher: Matcher | None,
    checkpoints: Checkpoints,
) -> list[MatchSet]:
    """Matches of the joint solver's pairs, from the aligned geometry."""
    geometry = AlignedGeometry(scene, start.cameras, start.fields)
    pairs = choose_pairs(overlaps(geometry, active), active, config.matching)
    grid = match_grid(scene, len(pairs), config.matching)
    chosen: Matcher = matcher or MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    chosen = keeping_matches(chosen, checkpoints, "matches_hash_grids")
    prepare_pairs(chosen, pairs, report)
    matches = match_pairs(chosen, pairs, geometry, lambda n: report.step(StepReport("matching for hash grids", n - 1, len(pairs))))
    matches = supported_matches(matches, scene.cameras.size[0] * scene.cameras.size[1] / grid**2)
    if not matches:
        raise NoOverlapError("no two frames show the same surface", "check poses and depth of stage 0, or use fewer, closer frames")
    return matches
