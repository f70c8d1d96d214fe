"""Stage 1 of the published method: frame after frame onto a growing model, rigid first, then with a field of twists."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from configs.icp import IcpConfig, resolve_field
from configs.stage1_align import FrameToModelICPConfig
from utils.deformation.twist_fields import make_field, resolve_backend
from utils.errors import DegenerateCloudError, NonFiniteError
from utils.geometry import se3
from utils.registration.geometry import AlignedGeometry
from utils.registration.icp import terms
from utils.registration.icp.filtering import ResidualHistory
from utils.registration.icp.frames import (
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
from utils.registration.icp.image_matches import matched_rows, reference_frames
from utils.registration.icp.model import CanonicalModel
from utils.registration.icp.rigid import align_rigid
from utils.registration.icp.stopping import EarlyStopping
from utils.registration.lattice import zero_fields
from utils.registration.matching import MATCHERS, Matcher, MatchSet, match_pairs, prepare_pairs
from utils.registration.result import Diagnostics, Registration
from utils.types import NULL_REPORTER, Array, Reporter, Scene, StepReport


@dataclass(frozen=True)
class Registered:
    """One frame after its registration.

    Attributes:
        pose: (6,) float64 twist of the camera-to-world transform, units.
        field: twists of its points.
        fitness: share of its points with a neighbour in the model.
        before: median distance to the model before, in units, of the points near it.
        after: the same after.
        iterations: of the non-rigid step.
        terms: last weighted value of every term.
    """

    pose: Array
    field: nn.Module
    fitness: float
    before: float
    after: float
    iterations: int
    terms: dict[str, float]


def torch_device() -> torch.device:
    """Where fields are optimised."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def align_frame_to_model(
    scene: Scene,
    usable: Array,
    config: FrameToModelICPConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
) -> tuple[Registration, Array]:
    """Poses and fields of all frames, and (F, H, W) bool which pixels passed the filter and make up the canonical cloud.

    Args:
        scene: the frames, in temporal order; the first one does not move.
        usable: (F, H, W) bool, pixels that take part.
        config: of stage 1; `icp` and `twists` are used, and the matcher of `matching`.
        report: progress.
        matcher: replaces the one named in the config.

    Raises:
        DegenerateCloudError: the first frame has too few usable pixels.
    """
    icp, device = config.icp, torch_device()
    kind = resolve_field(config.field, "parity")
    if kind == "hashgrid":
        resolve_backend(config.twists, device, report.note)
    frames, scale = frame_points(scene, usable), unit_scale(scene)
    if len(frames[0]) <= icp.normal_neighbors:
        raise DegenerateCloudError(f"the first frame has {len(frames[0])} usable pixels", "lower the confidence percentiles of alignment")
    start = time.perf_counter()
    found = _image_matches(scene, usable, config, report, matcher)
    seconds = {"matching": time.perf_counter() - start}
    count, (h, w) = len(scene), scene.cameras.size
    twists = pose_twists(scene.cameras, scale)
    model = CanonicalModel(count, h * w, icp.normal_neighbors, icp.color_neighbors)
    model.add(0, _placed(frames[0], twists[0], None, device), frames[0].intensity, frames[0].pixel)
    kept = np.zeros((count, h * w), bool)
    kept[0, frames[0].pixel] = True
    history, fields = ResidualHistory(), dict[int, nn.Module]()
    aligned, fitness, before, after = np.zeros(count, bool), *np.full((3, count), np.nan)
    aligned[0] = True
    start = time.perf_counter()
    for f in range(1, count):
        rng = np.random.default_rng(config.twists.seed + f)
        own_row = np.full(h * w, -1, np.int64)
        own_row[frames[f].pixel] = np.arange(len(frames[f]))
        pairs = matched_rows([m for m in found if m.source == f and aligned[m.target]], own_row, model, w, icp, rng)
        field = make_field(kind, frames[f].box, config.twists, device)
        result = register_frame(frames[f], twists[f], field, model, pairs, icp, rng)
        fitness[f], before[f], after[f] = result.fitness, result.before / UNITS_PER_DEPTH, result.after / UNITS_PER_DEPTH
        if result.fitness < icp.min_fitness:
            report.note(f"frame {int(scene.cameras.frame_ids[f])} does not meet the frames before it and is left out")
            continue
        aligned[f], twists[f], fields[f] = True, result.pose, field
        moved = _placed(frames[f], result.pose, field, device)
        keep = history.keep(*residuals(moved, frames[f].intensity, model, icp.max_corr_dist), icp)
        model.add(f, moved[keep], frames[f].intensity[keep], frames[f].pixel[keep])
        kept[f, frames[f].pixel[keep]] = True
        values = {"iterations": float(result.iterations), "fitness": result.fitness, "kept": float(keep.mean()), **result.terms}
        report.step(StepReport("frame to model", f - 1, count - 1, values))
    seconds["solving"] = time.perf_counter() - start
    displacement = lambda f: field_displacement(fields[f], frames[f].points, device) if f in fields else None  # noqa: E731
    stored = stored_fields(scene, frames, displacement, config.twists, report)
    cameras = replace(scene.cameras, c2w=np.where(aligned[:, None, None], poses(twists, scale), scene.cameras.c2w))
    cameras.c2w[0] = scene.cameras.c2w[0]
    numbers = np.array([sum(len(m) for m in found if m.source == f) for f in range(count)])
    diagnostics = Diagnostics(numbers, fitness, before, after, seconds=seconds)
    return Registration(cameras, stored, aligned, diagnostics), kept.reshape(count, h, w)


def register_frame(
    frame: FramePoints,
    pose: Array,
    field: nn.Module,
    model: CanonicalModel,
    pairs: tuple[Array, Array],
    config: IcpConfig,
    rng: np.random.Generator,
) -> Registered:
    """One frame onto the model: its pose rigidly, then pose and field together; `field` is trained in place.

    Args:
        frame: its points.
        pose: (6,) twist to start from.
        field: not yet trained.
        model: does not move.
        pairs: matched rows of the frame's points and of the model's.
        config: terms and schedule.
        rng: draws points and places.
    """
    device = next(field.parameters()).device
    start = se3.exp(torch.from_numpy(pose)).numpy()
    world = frame.points @ start[:3, :3].T + start[:3, 3]
    before = _typical_distance(model, world, config.max_corr_dist)
    motion = align_rigid(world, frame.intensity, model.points, model.intensity, config) if config.rigid_radii else np.eye(4)
    rigid = se3.log(torch.from_numpy(motion @ start)).float().to(device)
    global_twist = nn.Parameter(rigid)
    rows = np.arange(len(frame))
    if 0 < config.max_points < len(frame):
        rows = np.sort(rng.choice(len(frame), config.max_points, replace=False))
    job = _NonRigid(frame, rows, pairs, model, config, device, torch.Generator().manual_seed(int(rng.integers(2**31))))
    parameters = [global_twist, *field.parameters()]
    adam = torch.optim.Adam(parameters, lr=config.lr, fused=True)
    stopping = EarlyStopping(config.early_stopping_patience, config.early_stopping_min_iters, config.early_stopping_min_delta)
    values: dict[str, float] = {}
    iteration = -1
    for iteration in range(config.n_iter):
        loss, weighted, inliers = job.loss(global_twist, field, iteration)
        if inliers < 3:
            break
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of a frame became {float(loss)} in iteration {iteration}", "lower icp.lr")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        values = {name: float(value.detach()) for name, value in weighted.items()}
        if stopping.update({name: values[name] for name in ("data", "match", "color") if name in values}):
            break
    final = global_twist.detach().double().cpu().numpy()
    moved = _placed(frame, final, field, device)
    near, _ = model.nearest(moved, config.max_corr_dist)
    fitness = len(near) / max(len(frame), 1)
    after = _typical_distance(model, moved, config.max_corr_dist)
    return Registered(final, field, fitness, before, after, iteration + 1, values)


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
    ):
        self._model, self._config, self._generator = model, config, generator
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
        # The field is evaluated once for a point that takes part in several terms or matches.
        needed = np.unique(np.concatenate([rows, pairs[0]] if config.match_weight > 0 else [rows]))
        self._all = tensor(frame.points[needed])
        self._rows, self._match_rows = tensor(np.searchsorted(needed, rows)), tensor(np.searchsorted(needed, pairs[0]))
        self._shade, self._targets = tensor(frame.intensity[rows]), tensor(model.points[pairs[1]])
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
        rows, partners = self._model.nearest(moved.detach().cpu().numpy(), config.max_corr_dist)
        if len(rows) < 3:
            return moved.sum(), {}, len(rows)
        tensor = lambda a: torch.from_numpy(a).to(moved.device)  # noqa: E731
        index = tensor(rows)
        model, shade = self._model, self._shade[index]
        delta = moved[index] - tensor(model.points[partners])
        normals, gradients, other = tensor(model.normals[partners]), tensor(model.gradients[partners]), tensor(model.intensity[partners])
        weights = self._weights if smooth else {**self._weights, "smoothness": 0.0}
        certainty = torch.ones(len(self._targets), device=moved.device)
        terms_by_name: dict[str, terms.Term] = {
            "data": lambda: terms.point_to_plane(delta, normals) if config.metric == "point2plane" else terms.point_to_point(delta),
            "color": lambda: terms.color(delta, normals, gradients, other, shade, config.color_gate),
            "match": lambda: terms.matches(placed[self._match_rows] - self._targets, certainty, config.match_max_dist),
            "smoothness": lambda: terms.smoothness(center_twists, shifted_twists.reshape(len(self._steps), -1, 6)),
            "magnitude": lambda: terms.magnitude(twists[self._rows]),
        }
        loss, values = terms.total(weights, terms_by_name)
        return loss, values, len(rows)


@torch.no_grad()
def _placed(frame: FramePoints, pose: Array, field: nn.Module | None, device: torch.device) -> Array:
    """(N, 3) float32 canonical positions of a frame's points."""
    p = torch.from_numpy(frame.points).to(device)
    return place(torch.from_numpy(np.asarray(pose)).float().to(device), None if field is None else field(p), p).cpu().numpy()


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


def _typical_distance(model: CanonicalModel, points: Array, radius: float) -> float:
    """Median distance along the normal of the points near the model, in units; NaN if none is."""
    rows, partners = model.nearest(points, radius)
    if len(rows) == 0:
        return float("nan")
    return float(np.median(np.abs(((points[rows] - model.points[partners]) * model.normals[partners]).sum(1))))


def _image_matches(scene: Scene, usable: Array, config: FrameToModelICPConfig, report: Reporter, matcher: Matcher | None) -> list[MatchSet]:
    """Matches of every frame with its references, from the geometry as it came."""
    if config.icp.match_weight == 0 or (config.matching.matcher == "none" and matcher is None):
        return []
    pairs = [(f, reference) for f in range(1, len(scene)) for reference in reference_frames(f, config.icp)]
    geometry = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (2, 2, 2)))
    h, w = scene.cameras.size
    grid = max(1, round(float(np.sqrt(0.5 * h * w / config.icp.match_samples))))  # about half of all pixels match
    matcher = matcher or MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    prepare_pairs(matcher, [(j, i) for i, j in pairs], report)
    return match_pairs(matcher, pairs, geometry, lambda n: report.step(StepReport("matching", n - 1, len(pairs))))
