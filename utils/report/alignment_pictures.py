"""Pictures of one alignment for people: the cloud from above before and after, residuals by pair, displacement by frame."""

from dataclasses import replace

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.registration.result import PairDiagnostics
from utils.report import pictures
from utils.types import Alignment, Array, Scene

_WIDTH = 480
_GROUND, _INK, _FAINT = (24, 24, 24), (235, 235, 235), (90, 90, 90)
_BARS = ((86, 180, 233), (230, 159, 0))  # told apart with any colour vision
_MAX_POINTS = 250_000


def thinned(alignment: Alignment, count: int) -> Alignment:
    """The alignment with at most `count` points of its cloud, drawn at random but always the same: enough for a picture, and quick."""
    if len(alignment.cloud) <= count:
        return alignment
    rows = np.sort(np.random.default_rng(0).integers(len(alignment.cloud), size=count))
    return replace(alignment, cloud=alignment.cloud.select(rows))


def unaligned_cloud(scene: Scene, alignment: Alignment) -> tuple[Array, Array]:
    """World points and colours of the aligned frames' depth with the poses before alignment; the same pixels as the canonical cloud.

    Args:
        scene: all frames of results.npz, indexed by frame id.
        alignment: its cloud says which pixels.
    """
    cloud = alignment.cloud
    positions = {int(f): i for i, f in enumerate(alignment.cameras.frame_ids)}
    where = {int(f): i for i, f in enumerate(scene.cameras.frame_ids)}
    c2w = invert_rigid(alignment.original_w2c)
    width = scene.cameras.size[1]
    points, colors = [], []
    for frame_id in np.unique(cloud.frame):
        pixel, frame = cloud.pixel[cloud.frame == frame_id], where[int(frame_id)]
        y, x = pixel // width, pixel % width
        depth = scene.depth[frame, y, x]
        k = scene.cameras.K[frame]
        rays = np.stack([(x + 0.5 - k[0, 2]) / k[0, 0], (y + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(x))], axis=1)
        pose = c2w[positions[int(frame_id)]]
        points.append((rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3])
        colors.append(scene.images[frame, y, x])
    if not points:
        return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    return np.concatenate(points), np.concatenate(colors)


def extent(values: Array) -> tuple[float, float]:
    """Where most of the values lie, with a margin."""
    low, high = np.percentile(values, [1, 99])
    margin = 0.08 * (high - low)
    return float(low - margin), float(high + margin)


def top_down(scene: Scene, alignment: Alignment) -> Array:
    """(h, w, 3) uint8: the cloud from above before (left) and after (right), the same pixels and the same part of space."""
    alignment = thinned(alignment, _MAX_POINTS)
    after, after_colors = alignment.cloud.points, alignment.cloud.colors
    before, before_colors = unaligned_cloud(scene, alignment)
    up = -alignment.cameras.c2w[:, :3, 1].mean(axis=0)
    right, level_up, back = pictures.plan_basis(up / max(np.linalg.norm(up), 1e-9), alignment.cameras.c2w[:, :3, 2].mean(axis=0))
    bounds = (*extent(after @ right), *extent(after @ -back))
    halves = []
    for name, points, colors in (("before", before, before_colors), ("after", after, after_colors)):
        image = pictures.scatter(points @ right, points @ -back, colors, points @ level_up, bounds, _WIDTH)
        halves.append(pictures.labelled(np.where(image[..., 3:] > 0, image[..., :3], 24).astype(np.uint8), f"from above, {name}"))
    return pictures.grid([halves])


def residual_matrix(pairs: list[PairDiagnostics], frame_ids: Array) -> Array:
    """(h, w, 3) uint8: median distance of matched points by pair of frames, before (left) and after (right), on one logarithmic scale.

    Row and column are frames in order; black pairs have not been matched.
    """
    frames = len(frame_ids)
    values = np.full((2, frames, frames), np.nan)
    for p in pairs:
        for layer, value in enumerate((p.before, p.after)):
            values[layer, p.source, p.target] = values[layer, p.target, p.source] = value
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1e-4, 1e-2)
    high = max(high, 1.001 * low)
    share = np.log(np.clip(np.nan_to_num(values, nan=low), low, high) / low) / np.log(high / low)
    colors = cv2.applyColorMap((share * 255).astype(np.uint8).reshape(2 * frames, frames), cv2.COLORMAP_TURBO)[..., ::-1]
    colors = np.where(np.isfinite(values).reshape(2 * frames, frames, 1), colors, 0).astype(np.uint8).reshape(2, frames, frames, 3)
    edge = max(_WIDTH * 3 // 4 // frames, 1) * frames
    words = (f"before; violet is {100 * low:.2g} % of depth", f"after; dark red is {100 * high:.2g} % of depth")
    enlarged = (cv2.resize(image, (edge, edge), interpolation=cv2.INTER_NEAREST) for image in colors)
    return pictures.grid([[pictures.labelled(image, text) for image, text in zip(enlarged, words, strict=True)]])


def displacement_plot(moved: Array, frame_ids: Array, aligned: Array) -> Array:
    """(h, w, 3) uint8 bars by frame: median and 95th percentile of the distance that its pixels are moved, in percent of depth.

    Args:
        moved: (F, 2) in depths, see `displacement.displacements`.
        frame_ids: (F,) written below.
        aligned: (F,) bool; the others stay empty.
    """
    percent = np.where(aligned[:, None], np.nan_to_num(100 * moved), 0.0)
    top = float(percent.max()) * 1.08 or 1.0
    left, bottom, h, w = 52, 26, 220, 2 * _WIDTH
    image = np.full((h, w, 3), _GROUND, np.uint8)
    y_of = lambda value: round(float((h - bottom) - value / top * (h - bottom - 8)))  # noqa: E731
    for tick in np.linspace(0, top, 4):
        cv2.line(image, (left, y_of(tick)), (w - 4, y_of(tick)), _FAINT, 1)
        _write(image, f"{tick:.2g} %", (2, y_of(tick) + 4))
    width = (w - left - 8) / len(percent)
    for frame, values in enumerate(percent):
        x0 = left + 4 + frame * width
        for layer in (1, 0):  # the higher bar first, the median in front of it
            if not values[layer]:
                continue
            edge = width * (0.1 if layer else 0.25)
            corners = (int(x0 + edge), y_of(values[layer])), (max(int(x0 + width - edge), int(x0 + edge)), y_of(0))
            cv2.rectangle(image, *corners, _BARS[layer], -1)
        if frame % max(len(percent) // 12, 1) == 0:
            _write(image, str(int(frame_ids[frame])), (int(x0 + width / 4), h - 10))
    return pictures.labelled(image, "displacement by frame, % of depth: median (blue), 95 % (orange)")


def _write(image: Array, text: str, at: tuple[int, int]) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA)
