"""Stage 1 of the published method: frame after frame onto a growing model, rigid first, then with a field of twists."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from configs.icp import IcpConfig, resolve_field
from configs.stage1_align import FrameToModelICPConfig
from utils.cameras import se3
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import zero_fields
from utils.device.accelerator import accelerator
from utils.errors import DegenerateCloudError, NonFiniteError
from utils.matching.contract import MATCHERS, Matcher, MatchSet, match_pairs, prepare_pairs
from utils.points.surface import fit_normals, make_tree
from utils.published import terms
from utils.published.filtering import ResidualHistory
from utils.published.frames import (
    UNITS_PER_DEPTH,
    FramePoints,
    field_displacement,
    frame_points,
    place,
    pose_twists,
    poses,
    stored_fields,
    unit_scale,
)
from utils.published.image_matches import matched_rows, reference_frames
from utils.published.model import CanonicalModel
from utils.published.rigid import align_rigid
from utils.published.stopping import EarlyStopping
from utils.published.twist_fields import make_field, resolve_backend
from utils.registration.result import Diagnostics, Registration
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints, KeptMatches
from utils.types import NULL_REPORTER, Array, Reporter, Scene, StepReport


def torch_device() -> torch.device:
    """Where fields are optimised."""
    return accelerator() or torch.device("cpu")


def align_frame_to_model(
    scene: Scene,
    usable: Array,
    config: FrameToModelICPConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> tuple[Registration, Array]:
    """Poses and fields of all frames, and (F, H, W) bool which pixels passed the filter and make up the canonical cloud.

    Args:
        scene: the frames, in temporal order; the first one does not move.
        usable: (F, H, W) bool, pixels that take part.
        config: of stage 1; `icp` and `twists` are used, and the matcher of `matching`.
        report: progress.
        matcher: replaces the one named in the config.
        checkpoints: parts that an interrupted run finished.

    Raises:
        DegenerateCloudError: the first frame has too few usable pixels.
    """
    icp, scale = config.icp, unit_scale(scene)
    frames = frame_points(scene, usable)
    if len(frames[0]) <= icp.normal_neighbors:
        raise DegenerateCloudError(f"the first frame has {len(frames[0])} usable pixels", "lower the confidence percentiles of alignment")
    if resolve_field(config.field, "parity") == "hashgrid":
        resolve_backend(config.twists, torch_device(), report.note)
    clock = [time.perf_counter()]
    matches = _image_matches(scene, usable, config, report, matcher, checkpoints)
    clock.append(time.perf_counter())
    count, (h, w) = len(scene), scene.cameras.size
    twists = pose_twists(scene.cameras, scale)
    model = CanonicalModel(count, h * w, icp.normal_neighbors, icp.color_neighbors)
    model.add(0, _placed(frames[0].points, twists[0]), frames[0].intensity, frames[0].pixel)
    history, displacement = ResidualHistory(), dict[int, Array]()
    aligned, quality = np.arange(count) == 0, np.full((3, count), np.nan)
    for f in range(1, count):
        done = checkpoints.load(f"parity_{f}")
        if done is None:
            done = register_frame(f, frames[f], twists[f], model, [m for m in matches if m.source == f and aligned[m.target]], config)
            checkpoints.save(f"parity_{f}", done)
        quality[:, f] = done["quality"]
        if quality[0, f] < icp.min_fitness:
            report.note(f"frame {int(scene.cameras.frame_ids[f])} does not meet the frames before it and is left out")
            continue
        aligned[f], twists[f], displacement[f] = True, done["pose"], done["displacement"]
        moved = _placed(frames[f].points + displacement[f], twists[f])
        keep = history.keep(*residuals(moved, frames[f].intensity, model, icp.max_corr_dist), icp)
        model.add(f, moved[keep], frames[f].intensity[keep], frames[f].pixel[keep])
        last = dict(zip(done["terms"].tolist(), done["values"].tolist(), strict=True))
        values = {"iterations": float(done["iterations"]), "fitness": float(quality[0, f]), "kept": float(keep.mean()), **last}
        report.step(StepReport("frame to model", f - 1, count - 1, values))
    clock.append(time.perf_counter())
    stored = stored_fields(scene, frames, displacement.get, config.twists, report)
    moves = aligned & (np.arange(count) > 0)
    cameras = replace(scene.cameras, c2w=np.where(moves[:, None, None], poses(twists, scale), scene.cameras.c2w))
    matched = np.array([sum(len(m) for m in matches if m.source == f) for f in range(count)])
    seconds = {"matching": clock[1] - clock[0], "solving": clock[2] - clock[1]}
    fitness, before, after = quality
    in_model = (model.row_of_pixel >= 0).reshape(count, h, w)
    return Registration(cameras, stored, aligned, Diagnostics(matched, fitness, before, after, seconds=seconds)), in_model


def register_frame(
    index: int, frame: FramePoints, pose: Array, model: CanonicalModel, matches: list[MatchSet], config: FrameToModelICPConfig
) -> dict[str, Array]:
    """One frame onto the model: its pose rigidly, then pose and field together.

    Args:
        index: of the frame; draws of one frame do not depend on those of another.
        frame: its points.
        pose: (6,) twist to start from.
        model: does not move.
        matches: from the frame to frames in the model.
        config: terms and schedule.

    Returns:
        `pose` (6,); `displacement` (N, 3) of its points in camera space; `quality`, the share of its points that have a neighbour and the
        median distance of these along the normal before and after, in depths; `iterations`; `terms` and their last weighted `values`.
    """
    icp, device = config.icp, torch_device()
    rng = np.random.default_rng(config.twists.seed + index)
    own_row = np.full(model.row_of_pixel.shape[1], -1, np.int64)
    own_row[frame.pixel] = np.arange(len(frame))
    pairs = matched_rows(matches, own_row, model, frame.box.size[1], icp, rng)
    start = se3.exp(torch.from_numpy(pose)).numpy()
    world = frame.points @ start[:3, :3].T + start[:3, 3]
    motion = align_rigid(world, frame.intensity, model.points, model.intensity, icp) if icp.rigid_radii else np.eye(4)
    twist = nn.Parameter(se3.log(torch.from_numpy(motion @ start)).float().to(device))
    field = make_field(resolve_field(config.field, "parity"), frame.box, config.twists, device)
    rows = np.arange(len(frame))
    if 0 < icp.max_points < len(frame):
        rows = np.sort(rng.choice(len(frame), icp.max_points, replace=False))
    placed = world @ (motion[:3, :3].T) + motion[:3, 3]
    normals = fit_normals(make_tree(placed), placed, icp.normal_neighbors) if icp.min_normal_cos > 0 else None
    job = _NonRigid(frame, rows, pairs, model, icp, device, torch.Generator().manual_seed(int(rng.integers(2**31))), normals)
    iterations, values = _optimise(job, twist, field, icp)
    final = twist.detach().double().cpu().numpy()
    displacement = field_displacement(field, frame.points, device)
    before, _ = _distance(model, world, icp.max_corr_dist)
    after, fitness = _distance(model, _placed(frame.points + displacement, final), icp.max_corr_dist)
    return {
        "pose": final,
        "displacement": displacement,
        "quality": np.array([fitness, before / UNITS_PER_DEPTH, after / UNITS_PER_DEPTH]),
        "iterations": np.array(iterations),
        "terms": np.array(list(values), str),
        "values": np.array(list(values.values()), float),
    }


def _optimise(job: "_NonRigid", twist: nn.Parameter, field: nn.Module, config: IcpConfig) -> tuple[int, dict[str, float]]:
    """Trains pose and field in place; the iterations it took and the last weighted value of every term."""
    adam = torch.optim.Adam([twist, *field.parameters()], lr=config.lr, fused=True)
    stopping = EarlyStopping(config.early_stopping_patience, config.early_stopping_min_iters, config.early_stopping_min_delta)
    values: dict[str, float] = {}
    for iteration in range(config.n_iter):
        loss, weighted, inliers = job.loss(twist, field, iteration)
        if inliers < 3:
            return iteration, values
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of a frame became {float(loss)} in iteration {iteration}", "lower icp.lr")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        values = {name: float(value.detach()) for name, value in weighted.items()}
        if stopping.update({name: values[name] for name in ("data", "match", "color") if name in values}):
            return iteration + 1, values
    return config.n_iter, values


class _NonRigid:
    """Terms of one frame's non-rigid step, with what does not change from iteration to iteration."""

    def __init__(
        self,
        frame: FramePoints,
        rows: Array,
        pairs: tuple[Array, Array],
        model: CanonicalModel,
        config: IcpConfig,
        device: torch.device,
        generator: torch.Generator,
        normals: Array | None = None,
    ):
        self._model, self._config, self._generator = model, config, generator
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
        # The field is evaluated once for a point that takes part in several terms or matches.
        needed = np.unique(np.concatenate([rows, pairs[0]] if config.match_weight > 0 else [rows]))
        self._all = tensor(frame.points[needed])
        self._rows, self._match_rows = tensor(np.searchsorted(needed, rows)), tensor(np.searchsorted(needed, pairs[0]))
        self._shade, self._targets = tensor(frame.intensity[rows]), tensor(model.points[pairs[1]])
        self._trust = tensor(frame.confidence[rows]) if config.confidence_weights else None
        self._normals = None if normals is None else normals[rows]
        self._steps = terms.axis_steps(config.smoothness_step, device)
        self._weights = {
            "data": config.data_weight,
            "color": config.color_weight,
            "match": config.match_weight if len(pairs[0]) else 0.0,
            "smoothness": config.smoothness_weight,
            "magnitude": config.magnitude_weight,
        }

    def loss(self, pose: Tensor, field: nn.Module, iteration: int) -> tuple[Tensor, dict[str, Tensor], int]:
        """Loss, its weighted terms, and the number of points that have a neighbour."""
        config = self._config
        smooth = self._weights["smoothness"] > 0 and iteration % config.smoothness_every == 0
        points = self._all[self._rows]
        centers = points[:0]
        if smooth:
            centers = terms.smoothness_centers(points, config.smoothness_samples, config.smoothness_step, self._generator)
        shifted = (centers + self._steps[:, None]).reshape(-1, 3)
        # One evaluation for all terms: a pass over a field's parameters costs as much as ten thousand points.
        parts = [self._all, centers, shifted]
        twists, center_twists, shifted_twists = field(torch.cat(parts)).split([len(p) for p in parts])
        placed = place(pose, twists, self._all)
        moved = placed[self._rows]
        rows, partners = self._partners(moved.detach().cpu().numpy(), iteration)
        if len(rows) < 3:
            return moved.sum(), {}, len(rows)
        tensor = lambda a: torch.from_numpy(a).to(moved.device)  # noqa: E731
        index = tensor(rows)
        model, shade = self._model, self._shade[index]
        delta = moved[index] - tensor(model.points[partners])
        normals, gradients, other = tensor(model.normals[partners]), tensor(model.gradients[partners]), tensor(model.intensity[partners])
        weights = self._weights if smooth else {**self._weights, "smoothness": 0.0}
        weight = None if self._trust is None else self._trust[index]
        certainty = torch.ones(len(self._targets), device=moved.device)
        terms_by_name: dict[str, terms.Term] = {
            "data": lambda: terms.robust_distance(delta, normals if config.metric == "point2plane" else None, config.robust_scale, weight),
            "color": lambda: terms.color(delta, normals, gradients, other, shade, config.color_gate),
            "match": lambda: terms.matches(placed[self._match_rows] - self._targets, certainty, config.match_max_dist),
            "smoothness": lambda: terms.smoothness(center_twists, shifted_twists.reshape(len(self._steps), -1, 6)),
            "magnitude": lambda: terms.magnitude(twists[self._rows]),
        }
        loss, values = terms.total(weights, terms_by_name)
        return loss, values, len(rows)

    def _partners(self, points: Array, iteration: int) -> tuple[Array, Array]:
        """Rows of the points (N, 3) that have a neighbour on a surface of the same direction, and these neighbours' rows in the model."""
        rows, partners = self._model.nearest(points, search_radius(self._config, iteration))
        if self._normals is None:
            return rows, partners
        alike = np.abs((self._normals[rows] * self._model.normals[partners]).sum(1)) >= self._config.min_normal_cos
        return rows[alike], partners[alike]


def search_radius(config: IcpConfig, iteration: int) -> float:
    """Within which a point has a neighbour: falls geometrically from the start's to the last one over half of the iterations."""
    if config.start_corr_dist <= config.max_corr_dist:
        return config.max_corr_dist
    done = min(2 * iteration / max(config.n_iter, 1), 1.0)
    return config.start_corr_dist * (config.max_corr_dist / config.start_corr_dist) ** done


def _placed(points: Array, pose: Array) -> Array:
    """(N, 3) float32 canonical positions of displaced camera-space points."""
    c2w = se3.exp(torch.from_numpy(np.asarray(pose, np.float64))).numpy()
    return (points @ c2w[:3, :3].T + c2w[:3, 3]).astype(np.float32)


def residuals(moved: Array, shade: Array, model: CanonicalModel, radius: float) -> tuple[Array, Array, Array]:
    """Squared geometric and photometric residual (N,) of placed points (N, 3), and (N,) bool whether they have a neighbour."""
    rows, partners = model.nearest(moved, radius)
    delta = torch.from_numpy(moved[rows] - model.points[partners])
    normals = torch.from_numpy(model.normals[partners])
    color = terms.color_residual(
        delta,
        normals,
        torch.from_numpy(model.gradients[partners]),
        torch.from_numpy(model.intensity[partners]),
        torch.from_numpy(shade[rows]),
    )
    geometric, photometric, valid = np.zeros(len(moved)), np.zeros(len(moved)), np.zeros(len(moved), bool)
    geometric[rows] = terms.plane_distance(delta, normals).square().numpy()
    photometric[rows] = color.square().numpy()
    valid[rows] = True
    return geometric, photometric, valid


def _distance(model: CanonicalModel, points: Array, radius: float) -> tuple[float, float]:
    """Median distance along the normal of the points near the model, in units (NaN if none is), and their share of all."""
    rows, partners = model.nearest(points, radius)
    if len(rows) == 0:
        return float("nan"), 0.0
    along = ((points[rows] - model.points[partners]) * model.normals[partners]).sum(1)
    return float(np.median(np.abs(along))), len(rows) / len(points)


def _image_matches(
    scene: Scene, usable: Array, config: FrameToModelICPConfig, report: Reporter, matcher: Matcher | None, checkpoints: Checkpoints
) -> list[MatchSet]:
    """Matches of every frame with its references, from the geometry as it came."""
    if config.icp.match_weight == 0 or (config.matching.matcher == "none" and matcher is None):
        return []
    pairs = [(f, reference) for f in range(1, len(scene)) for reference in reference_frames(f, config.icp)]
    geometry = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (2, 2, 2)))
    h, w = scene.cameras.size
    grid = max(1, round(float(np.sqrt(0.5 * h * w / config.icp.match_samples))))  # about half of all pixels match
    inner: Matcher = matcher or MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    matcher = KeptMatches(inner, checkpoints, "parity_matches")
    prepare_pairs(matcher, [(j, i) for i, j in pairs], report)
    return match_pairs(matcher, pairs, geometry, lambda n: report.step(StepReport("matching", n - 1, len(pairs))))
