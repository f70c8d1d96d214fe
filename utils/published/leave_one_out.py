"""Stage 2 of the published method: all frames at once, each drawn to the surface of the others."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from configs.icp import LeaveOneOutConfig, resolve_field
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.errors import NonFiniteError, NoOverlapError
from utils.points.surface import color_gradients, fit_normals, make_tree
from utils.published import terms
from utils.published.frame_to_model import torch_device
from utils.published.frames import (
    displaced_points,
    field_displacement,
    frame_points,
    place,
    pose_twists,
    poses,
    stored_fields,
    unit_scale,
)
from utils.published.resume import ResumableTraining
from utils.published.twist_fields import FrameBox, make_field, resolve_backend
from utils.registration.result import Registration
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints
from utils.runtime import cpu_count
from utils.types import NULL_REPORTER, Array, Reporter, Scene, StepReport

_MIN_DRAW, _MAX_DRAW, _MAX_ROUNDS = 1024, 400_000, 50


class Frames(nn.Module):
    """All frames with their poses and fields: rows of one point set -> canonical positions.

    The fields come on top of what the frames were displaced by before: `points` are camera-space points after that.
    The first frame neither moves nor deforms.
    """

    def __init__(self, points: list[Array], twists: Array, fields: list[nn.Module], device: torch.device):
        super().__init__()
        self.offsets = np.concatenate([[0], np.cumsum([len(p) for p in points])])
        self.frame = np.repeat(np.arange(len(points)), np.diff(self.offsets))
        self.points = torch.from_numpy(np.concatenate(points)).to(device)
        self.twists = nn.Parameter(torch.from_numpy(twists).float().to(device))
        self.fields = nn.ModuleList(fields)
        self.start = self.twists.detach().clone()

    def poses(self) -> Tensor:
        """(F, 6), of which the first is constant."""
        return torch.cat([self.start[:1], self.twists[1:]])

    def place(self, rows: Tensor) -> Tensor:
        """(M, 3) canonical positions of rows (M,) in any order; one evaluation per frame."""
        frame = torch.from_numpy(self.frame).to(rows.device)[rows]
        order = torch.argsort(frame, stable=True)
        counts = torch.bincount(frame, minlength=len(self.fields)).tolist()
        poses, parts = self.poses(), []
        for f, part in enumerate(rows[order].split(counts)):
            p = self.points[part]
            parts.append(place(poses[f], self.fields[f](p) if f > 0 and len(part) else None, p))
        return torch.cat(parts)[torch.argsort(order)]

    @torch.no_grad()
    def place_all(self) -> Array:
        """(N, 3) float32 canonical positions of all points."""
        blocks = torch.arange(len(self.points), device=self.points.device).split(200_000)
        return torch.cat([self.place(rows) for rows in blocks]).cpu().numpy()


@dataclass(frozen=True)
class SharedSurface:
    """All frames as one surface, as of its last update; normals (N, 3), gradients (N, 3), intensity (N,)."""

    tree: cKDTree
    normals: Array
    gradients: Array
    intensity: Array

    @classmethod
    def of(cls, points: Array, intensity: Array, config: LeaveOneOutConfig) -> "SharedSurface":
        """Of placed points (N, 3)."""
        tree = make_tree(points)
        normals = fit_normals(tree, points, config.normal_neighbors)
        gradients = np.zeros_like(normals)
        if config.color_weight > 0:
            gradients = color_gradients(tree, intensity, points, normals, intensity, config.color_neighbors)
        return cls(tree, normals, gradients, intensity)


def align_leave_one_out(
    scene: Scene,
    start: Registration,
    usable: Array,
    in_cloud: Array,
    config: GlobalOptimizationConfig,
    report: Reporter = NULL_REPORTER,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> Registration:
    """Poses and fields refined jointly.

    Args:
        scene: the frames with their poses before any alignment.
        start: result of stage 1, of any method.
        usable: (F, H, W) bool, pixels whose displacement is handed on.
        in_cloud: (F, H, W) bool, pixels of the canonical cloud: what is optimised.
        config: of stage 2; `loo` and `twists` are used.
        report: progress.
        checkpoints: the last interval between two updates of the surface that an interrupted run finished.

    Raises:
        NoOverlapError: no frame lies near another.
    """
    loo, device, scale = config.loo, torch_device(), unit_scale(scene)
    kind = resolve_field(config.field, "parity")
    if kind == "hashgrid":
        resolve_backend(config.twists, device, report.note)
    clock = time.perf_counter()
    active = np.flatnonzero(start.aligned)
    everyone = frame_points(scene, usable & start.aligned[:, None, None])
    frames = [everyone[f].select(in_cloud[f].ravel()[everyone[f].pixel]) for f in active]
    before = lambda f, frame: displaced_points(scene, start.cameras, start.fields, int(f), frame.points, scale)  # noqa: E731
    displaced = [before(f, frame) for f, frame in zip(active, frames, strict=True)]
    boxes = [FrameBox.around(p, f.box.K, f.box.size, f.box.inv_depth) for p, f in zip(displaced, frames, strict=True)]
    fields = [make_field(kind, box, config.twists, device) for box in boxes]
    joint = Frames(displaced, pose_twists(start.cameras.select(active), scale), fields, device)
    shade = np.concatenate([f.intensity for f in frames])
    optimise(joint, boxes, shade, loo, config.twists.seed, report, checkpoints)

    def displacement(f: int) -> Array | None:
        if f not in active:
            return None
        points = before(f, everyone[f])
        moved = points if f == active[0] else points + field_displacement(fields[int(np.searchsorted(active, f))], points, device)
        return moved - everyone[f].points

    stored = stored_fields(scene, everyone, displacement, config.twists, report)
    c2w = start.cameras.c2w.copy()
    c2w[active[1:]] = poses(joint.twists[1:].detach().double().cpu().numpy(), scale)
    seconds = start.diagnostics.seconds | {"leave one out": time.perf_counter() - clock}
    return Registration(replace(start.cameras, c2w=c2w), stored, start.aligned, replace(start.diagnostics, seconds=seconds))


def optimise(
    joint: Frames,
    boxes: list[FrameBox],
    shade: Array,
    config: LeaveOneOutConfig,
    seed: int,
    report: Reporter,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> None:
    """Trains poses and fields in place; see `align_leave_one_out`."""
    device = joint.points.device
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    anchors = [_anchor_points(box, config.anchor_samples, rng).to(device) for box in boxes]
    with torch.no_grad():
        anchored = [field(p) for field, p in zip(joint.fields, anchors, strict=True)]
    parameters = [joint.twists, *(p for field in list(joint.fields)[1:] for p in field.parameters())]
    adam = torch.optim.Adam(parameters, lr=config.lr, fused=True)
    resumable = ResumableTraining(checkpoints, "leave_one_out", parameters, adam, generator, rng)
    first = resumable.restore()
    surface = SharedSurface.of(joint.place_all(), shade, config)
    steps = terms.axis_steps(config.smoothness_step, device)
    weights = {
        "leave one out": config.loo_weight,
        "thin shell": config.thin_shell_weight,
        "color": config.color_weight,
        "anchor": config.anchor_weight,
        "smoothness": config.smoothness_weight,
    }
    for iteration in range(first, config.n_iters):
        if iteration > first and iteration % config.rebuild_every == 0:
            resumable.save(iteration)
            surface = SharedSurface.of(joint.place_all(), shade, config)
        pairs = draw_pairs(joint, surface, config, rng)
        if len(pairs.weight) == 0:
            raise NoOverlapError("no point of a frame lies near another frame", "raise loo.max_corr_dist, or align with stage 1 first")
        loss, values = terms.total(weights, _terms(joint, surface, pairs, anchors, anchored, steps, config, generator))
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the joint loss became {float(loss)} in iteration {iteration}", "lower loo.lr")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        adam.step()
        shown = {name: float(value.detach()) for name, value in values.items()} | {"pairs": float(len(pairs.weight))}
        report.step(StepReport("leave one out", iteration, config.n_iters, shown))


@dataclass(frozen=True)
class Pairs:
    """Sampled pairs of rows (M,) of different frames, and their weights (M,)."""

    source: Array
    target: Array
    weight: Array


def draw_pairs(joint: Frames, surface: SharedSurface, config: LeaveOneOutConfig, rng: np.random.Generator) -> Pairs:
    """Up to `max_pairs` pairs of a random row and one of its neighbours in another frame, drawn evenly among these.

    Weighted by their number, sums over the sample estimate sums over all pairs. Neighbours are looked up for drawn rows only.
    """
    parts: list[tuple[Array, Array, Array]] = []
    num_pairs, count = 0, len(joint.points)
    batch = min(max(_MIN_DRAW, min(count, _MAX_DRAW)), 2 * config.max_pairs)
    for _ in range(_MAX_ROUNDS):
        rows = rng.integers(count, size=batch)
        with torch.no_grad():
            points = joint.place(torch.from_numpy(rows).to(joint.points.device)).cpu().numpy()
        k = min(config.neighbors, count)
        distance, index = surface.tree.query(points, k=k, distance_upper_bound=config.max_corr_dist, workers=cpu_count())
        valid = np.isfinite(distance)
        valid &= joint.frame[np.where(valid, index, 0)] != joint.frame[rows][:, None]
        choices = valid.sum(1)
        has = choices > 0
        pick = (rng.random(int(has.sum())) * choices[has]).astype(int)
        column = np.argmax(np.cumsum(valid[has], 1) == pick[:, None] + 1, axis=1)
        parts.append((rows[has], index[has][np.arange(len(pick)), column], choices[has]))
        num_pairs += len(pick)
        if num_pairs >= config.max_pairs or (num_pairs == 0 and len(parts) >= 3):
            break
    source, target, weight = (np.concatenate(column)[: config.max_pairs] for column in zip(*parts, strict=True))
    return Pairs(source, target, weight.astype(np.float32))


def _terms(
    joint: Frames,
    surface: SharedSurface,
    pairs: Pairs,
    anchors: list[Tensor],
    anchored: list[Tensor],
    steps: Tensor,
    config: LeaveOneOutConfig,
    generator: torch.Generator,
) -> dict[str, terms.Term]:
    """The terms of one iteration, by name."""
    device = joint.points.device
    tensor = lambda a: torch.from_numpy(a).to(device)  # noqa: E731
    source, target, weight = tensor(pairs.source), tensor(pairs.target), tensor(pairs.weight)
    moved_source, moved_target = joint.place(torch.cat([source, target])).split(len(source))
    delta = moved_source - moved_target
    target_normals, source_normals = tensor(surface.normals[pairs.target]), tensor(surface.normals[pairs.source])
    moving = range(1, len(joint.fields))

    def color() -> Tensor:
        gradients = tensor(surface.gradients[pairs.target])
        shades = tensor(surface.intensity[pairs.target]), tensor(surface.intensity[pairs.source])
        return terms.color(delta, target_normals, gradients, *shades, config.color_gate, weight)

    def anchor() -> Tensor:
        local = [terms.anchor(joint.fields[f](anchors[f]), anchored[f]) for f in moving]
        glob = [terms.anchor(joint.twists[f], joint.start[f]) for f in moving]
        return torch.stack(local).mean() + torch.stack(glob).mean()

    def smoothness() -> Tensor:
        parts = []
        for f in moving:
            own = joint.points[int(joint.offsets[f]) : int(joint.offsets[f + 1])]
            centers = terms.smoothness_centers(own, config.smoothness_samples, config.smoothness_step, generator)
            shifted = (centers + steps[:, None]).reshape(-1, 3)
            at, beside = joint.fields[f](torch.cat([centers, shifted])).split([len(centers), len(shifted)])
            parts.append(terms.smoothness(at, beside.reshape(len(steps), -1, 6)))
        return torch.stack(parts).mean()

    return {
        "leave one out": lambda: terms.leave_one_out(delta, target_normals, weight),
        "thin shell": lambda: terms.thin_shell(delta, source_normals, weight),
        "color": color,
        "anchor": anchor,
        "smoothness": smoothness,
    }


def _anchor_points(box: FrameBox, count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3) float32 uniform in the box."""
    return torch.from_numpy((box.low + rng.random((count, 3)) * (box.high - box.low)).astype(np.float32))
