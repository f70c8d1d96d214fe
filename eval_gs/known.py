"""Where a camera sees what frames know: how much of its picture is made of splats that several frames have on a surface of theirs."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from utils.report import pictures
from utils.report.alignment_pictures import extent
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.render import SplatView
from utils.types import Array, CameraSet

LEAST_VIEWS = 2
"""Frames that must know a splat; what one frame alone shows was never confirmed."""
_SMALL = 160  # pixels along the longest side of the pictures that are judged
_WELL_KNOWN = 0.7
"""A view is well known if it shows at least this share of what the cameras of the clip usually do."""
_SHORT_GAP = 0.03
"""Runs of badly known views up to this share of the path are passed through."""
_JUDGED_EVERY = 3  # views of a path
_SHORTEST = 24  # views; a shorter film is not worth it
_OPAQUE, _MOST_SHOWN, _MANY_DIRECTIONS, _PLAN_WIDTH = 0.3, 200_000, 8, 720


def known_shares(view: SplatView, cameras: CameraSet) -> Array:
    """(P,) share of each camera's picture, 0..1, that is made of splats which at least two frames know; 1 where nobody measured."""
    coverage = view.trained.coverage
    if coverage is None or len(coverage) != len(view.splats):
        return np.ones(len(cameras))
    known = (coverage.views >= LEAST_VIEWS).to(view.device).float()[:, None].repeat(1, 3)
    scale = min(1.0, _SMALL / max(cameras.size))
    small = cameras.resized((max(1, round(cameras.size[0] * scale)), max(1, round(cameras.size[1] * scale))))
    shares = [(output.rgb[..., 0] > 0.5).float().mean() for output in view.render_all(small, colors=known)]
    return torch.stack(shares).cpu().numpy().astype(float) if shares else np.ones(0)


@dataclass(frozen=True)
class WellKnown:
    """The part of a camera path that shows what frames know.

    Attributes:
        start: first view of it.
        stop: one after the last view.
        shares: (P,) of all views of the path.
        usual: share that the clip's own cameras see.
    """

    start: int
    stop: int
    shares: Array
    usual: float

    def words(self, name: str) -> str:
        """One line if views are left out, else nothing."""
        left = len(self.shares) - (self.stop - self.start)
        return f"{left} of {len(self.shares)} views of the {name} are left out: they show what fewer than two frames know" if left else ""


def well_known_part(view: SplatView, path: CameraSet) -> WellKnown:
    """The longest run of a path whose views are well known; all of it if that run is too short to be a film."""
    trained = view.trained
    own = trained.cameras.select(np.flatnonzero(trained.trained))
    usual = float(np.median(known_shares(view, own.select(np.unique(np.linspace(0, len(own) - 1, min(24, len(own))).round().astype(int))))))
    # Shares change slowly along a path.
    at = np.unique(np.r_[0 : len(path) : _JUDGED_EVERY, len(path) - 1])
    shares = np.interp(np.arange(len(path)), at, known_shares(view, path.select(at)))
    good = closed(shares >= _WELL_KNOWN * usual, int(_SHORT_GAP * len(path)))
    start, stop = longest_run(good)
    if stop - start < min(_SHORTEST, len(path)):
        start, stop = 0, len(path)
    return WellKnown(start, stop, shares, usual)


def closed(good: Array, longest_gap: int) -> Array:
    """(P,) bool, `good` with runs of False of up to this length between True ones set to True."""
    filled = good.copy()
    at = np.flatnonzero(good)
    for a, b in itertools.pairwise(at):
        if 1 < b - a <= longest_gap + 1:
            filled[a:b] = True
    return filled


def longest_run(good: Array) -> tuple[int, int]:
    """First and one-after-last position of the longest run of True; (0, 0) without any."""
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int))).reshape(-1, 2)
    if not len(edges):
        return 0, 0
    start, stop = edges[np.argmax(edges[:, 1] - edges[:, 0])]
    return int(start), int(stop)


def coverage_plan(trained: TrainedScene) -> Array:
    """(h, w, 3) uint8: the world from above, each splat in the colour of how many directions it is known from, and the cameras.

    Violet is none, dark red eight and more. Cameras that were trained on are white, held-out ones yellow, left-out ones red. Splats that
    are nearly transparent are not shown.
    """
    cameras, coverage, splats = trained.cameras, trained.coverage, trained.splats
    if coverage is None:
        raise ValueError("nobody measured what the frames know")
    shown = torch.nonzero(splats.logit_opacities.sigmoid().cpu() > _OPAQUE)[:, 0]
    shown = shown[:: max(1, len(shown) // _MOST_SHOWN)]
    points = splats.means.cpu()[shown].numpy()
    share = np.clip(coverage.directions.cpu()[shown].numpy() / _MANY_DIRECTIONS, 0, 1)
    colors = cv2.applyColorMap((share * 255).astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    up = -cameras.c2w[:, :3, 1].mean(axis=0)
    right, level_up, back = pictures.plan_basis(up / max(np.linalg.norm(up), 1e-9), cameras.c2w[:, :3, 2].mean(axis=0))
    bounds = (*_span(points @ right, cameras.centers @ right), *_span(points @ -back, cameras.centers @ -back))
    dots = _dots(cameras.centers @ right, cameras.centers @ -back, (bounds[1] - bounds[0]) / _PLAN_WIDTH)
    kinds = np.where(trained.left_out[:, None], (230, 40, 40), np.where(trained.heldout[:, None], (250, 220, 40), (255, 255, 255)))
    across, along = (np.concatenate([points @ axis, dot]) for axis, dot in ((right, dots[0]), (-back, dots[1])))
    painted = np.concatenate([colors, np.repeat(kinds, dots[0].size // len(cameras), axis=0)]).astype(np.uint8)
    order = np.concatenate([points @ level_up, np.full(dots[0].size, np.inf)])
    image = pictures.scatter(across, along, painted, order, bounds, _PLAN_WIDTH)
    return np.where(image[..., 3:] > 0, image[..., :3], 24).astype(np.uint8)


def _span(points: Array, cameras: Array) -> tuple[float, float]:
    """Where most points and all cameras lie."""
    low, high = extent(points)
    return min(low, float(cameras.min())), max(high, float(cameras.max()))


def _dots(x: Array, y: Array, pixel: float) -> tuple[Array, Array]:
    """Each place as 5 x 5 places a pixel apart."""
    across, down = (axis.ravel() * pixel for axis in np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)))
    return (x[:, None] + across).ravel(), (y[:, None] + down).ravel()
