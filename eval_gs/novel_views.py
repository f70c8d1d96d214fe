"""Novel views of a synthetic world against its clean truth.

The reconstruction lives in its own frame and scale: its points and the true ones, pixel by pixel of the input frames, give the
similarity that carries the true novel cameras into it. One similarity for all views is the strict figure; one per view forgives a
bend of the whole world, which no method can see in frames that all share it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval_gs.metrics import psnr, ssim
from utils.cameras.projection import pixel_centers, project, transform
from utils.cameras.similarity import Similarity, fit_points
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp
from utils.errors import InputError
from utils.registration import forward_points
from utils.scene.json_files import read_json
from utils.scene.layout import SceneLayout
from utils.splatting.render import SplatView, rgb_image
from utils.synthetic import GroundTruth
from utils.types import Alignment, Array, CameraSet, Scene

# A true point is seen by a novel view if it lies within this share of the depth there.
_SAME_DEPTH = 0.02


@dataclass(frozen=True)
class PointPairs:
    """Places of N pixels of the input frames.

    Attributes:
        points: (N, 3) reconstructed.
        truth: (N, 3) true.
        depth: (N,) true camera z.
    """

    points: Array
    truth: Array
    depth: Array

    def fit(self, rows: Array | None = None) -> Similarity:
        """The similarity from the reconstruction to the truth, over all pairs or those of `rows` (N,) bool."""
        if rows is None:
            rows = np.ones(len(self.points), bool)
        return fit_points(self.points[rows], self.truth[rows], self.depth[rows])


def as_trained(alignment: Alignment, cameras: CameraSet, warp: InverseWarp) -> Alignment:
    """The alignment with the poses and the deformation that training refined: the space that the splats are in."""
    rows = np.flatnonzero(np.isin(cameras.frame_ids, alignment.cameras.frame_ids))
    refined = replace(alignment, cameras=cameras.select(rows).resized(alignment.cameras.size))
    if not isinstance(warp, FixedPointInverseWarp):
        return refined
    return replace(refined, fields=replace(alignment.fields, nodes=warp.field.nodes[rows].cpu().numpy()))


def source_positions(root: Path, frames: int, clip_frames: int) -> Array:
    """(F,) position in the clip of each frame of a scene.

    Raises:
        InputError: not known, or beyond the end of the clip.
    """
    path = SceneLayout(root).preprocess_json
    known = read_json(path).get("positions") if path.is_file() else None
    if known is None and frames == clip_frames:
        known = range(frames)  # made by another program from every frame
    if known is None:
        raise InputError(f"{root} does not say which frames of the clip it uses", "make it again with preprocess_video.py --overwrite")
    positions = np.array(list(known), int)
    if len(positions) != frames or (len(positions) and positions.max() >= clip_frames):
        raise InputError(
            f"{root} uses {frames} frames up to number {positions.max(initial=-1) + 1}, the truth has {clip_frames}",
            "give the ground_truth.npz of the clip that the scene was made from",
        )
    return positions


def point_pairs(scene: Scene, alignment: Alignment, truth: GroundTruth, positions: Array) -> PointPairs:
    """Reconstructed and true places of all pixels of the aligned frames whose both are known; `positions` (F,) as in the clip."""
    rows = np.flatnonzero(alignment.aligned)
    ids = alignment.cameras.frame_ids[rows]
    fields = replace(alignment.fields, nodes=alignment.fields.nodes[rows], inv_depth_range=alignment.fields.inv_depth_range[rows])
    points = forward_points(scene.select(ids), alignment.cameras.select(rows), fields)
    x, y = pixel_centers(scene.cameras.size)
    shown, size = truth.cameras.size, scene.cameras.size
    column, row = (x * shown[1] / size[1]).astype(int), (y * shown[0] / size[0]).astype(int)
    places = truth.canonical[positions[ids]][:, row, column]
    known = np.isfinite(points).all(-1) & np.isfinite(places).all(-1)
    return PointPairs(points=points[known], truth=places[known], depth=truth.depth[positions[ids]][:, row, column][known])


def novel_scores(view: SplatView, pairs: PointPairs, truth: GroundTruth) -> dict[str, float]:
    """Means over the novel views: PSNR in dB and SSIM, with one similarity for all views and (`_per_view`) with one for each.

    `misfit` is the median distance of the fitted points from the truth, as a share of their depth.
    """
    cameras, together = truth.novel_cameras, pairs.fit()
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_per_view": [], "ssim_per_view": []}
    for i, expected in enumerate(truth.novel_images):
        for name, fit in (("", together), ("_per_view", pairs.fit(_seen(pairs, cameras, truth.novel_depth[i], i)))):
            image = rgb_image(view.render(fit.camera_before(cameras.c2w[i]), cameras.K[i], cameras.size))
            scores["psnr" + name].append(psnr(image, expected))
            scores["ssim" + name].append(ssim(image, expected))
    misfit = np.linalg.norm(together.apply(pairs.points.astype(np.float64)) - pairs.truth, axis=1) / pairs.depth
    return {name: float(np.mean(values)) for name, values in scores.items()} | {"views": len(cameras), "misfit": float(np.median(misfit))}


def _seen(pairs: PointPairs, cameras: CameraSet, depth: Array, view: int) -> Array:
    """(N,) bool, true points that lie in the novel view and are not hidden there."""
    height, width = cameras.size
    x, y, z = project(transform(cameras.w2c[view], pairs.truth.astype(np.float64)), cameras.K[view])
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rendered = depth[np.where(inside, y, 0).astype(int), np.where(inside, x, 0).astype(int)]
    return inside & (np.abs(rendered - z) < _SAME_DEPTH * z)
