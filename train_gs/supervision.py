"""Which frames the splats are trained on, which are only measured or shown, and where each of them is."""

from dataclasses import dataclass

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.start.left_out import with_left_out
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.between import with_frames_between
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp, inverse_of_alignment
from utils.errors import ConfigError
from utils.reporting import number_ranges
from utils.splatting.coverage import measure_coverage
from utils.types import Alignment, Array, Reporter, Scene

_MOST_CONTRADICTED = 0.15
"""A frame that alignment left out is not trained on if aligned frames see through a larger share of its points."""
_EVERY = 4  # stride in pixels, in both directions, of the points of a frame that are tested


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The F frames of a training.

    Attributes:
        alignment: poses, fields and colours of all of them.
        warp: the inverse deformation of all of them.
        heldout: (F,) bool, only measured.
        left_out: (F,) bool, alignment could not place them and they contradict others: neither trained on nor counted.
        blended: (F,) bool, pose and field come from the frames beside them in time.
        clips: (F,) clip of each frame.
        reference: position of the frame whose pose stays.
        extended: the warp has more frames than that of stage 3.1.
    """

    alignment: Alignment
    warp: InverseWarp
    heldout: Array
    left_out: Array
    blended: Array
    clips: Array
    reference: int
    extended: bool


def supervision(config: GSConfig, scene: Scene, alignment: Alignment, warp: InverseWarp, clips: Array, report: Reporter) -> Supervision:
    """Roles of the frames.

    Args:
        config: of the stage.
        scene: all frames.
        alignment: of some of them.
        warp: the inverse deformation of the aligned frames.
        clips: (F,) clip of each frame of the scene.
        report: notes which frames are left out.

    Raises:
        ConfigError: there is no such reference frame, or nothing is left to train on.
    """
    own, reference = alignment.cameras.frame_ids, config.reference_frame
    if reference >= len(own):
        raise ConfigError(f"reference_frame is {reference}, the alignment has {len(own)} frames", "counted from 0")
    heldout = held_out_ids(alignment, config)
    left_out = own[~alignment.aligned]
    between = _between(config, scene, own, heldout, left_out)
    extended = bool(len(between)) and _can_be_blended(config, warp, report)
    if extended:
        alignment = with_frames_between(scene, alignment, between, clips)
        warp = inverse_of_alignment(alignment) if config.deform else warp
    if len(left_out):
        alignment, left_out = _decided(config, scene, alignment, warp, left_out, report)
    ids = alignment.cameras.frame_ids
    roles = Supervision(
        alignment=alignment,
        warp=warp,
        heldout=np.isin(ids, heldout),
        left_out=np.isin(ids, left_out) & ~np.isin(ids, heldout),
        blended=np.isin(ids, between) if extended else np.zeros(len(ids), bool),
        clips=clips[ids],
        reference=_reference(own[reference], ids, left_out),
        extended=extended,
    )
    if not (~roles.heldout & ~roles.left_out).any():
        raise ConfigError("every frame is held out or left out, none is left to train on", "raise --config.holdout-every or set it to 0")
    return roles


def _decided(
    config: GSConfig, scene: Scene, alignment: Alignment, warp: InverseWarp, left_out: Array, report: Reporter
) -> tuple[Alignment, Array]:
    """The alignment with points of left-out frames that are trained on all the same, and the ids of those that are not."""
    if config.left_out == "exclude":
        joining = left_out[:0]
    elif config.left_out == "train":
        joining = left_out
    else:
        joining = left_out[contradicted_shares(scene, alignment, warp, left_out) < _MOST_CONTRADICTED]
    if len(joining):
        alignment = with_left_out(scene, alignment, joining)
        listed = number_ranges(joining.tolist())
        report.note(f"splatting: frames {listed} were left out of the alignment and contradict nothing: trained on as stage 0 placed them")
    missing = np.setdiff1d(left_out, joining)
    if len(missing):
        report.note(f"splatting: frames {number_ranges(missing.tolist())} take no part: left out of the alignment, they contradict others")
    return alignment, missing


def contradicted_shares(scene: Scene, alignment: Alignment, warp: InverseWarp, frames: Array) -> Array:
    """(N,) share of the points of each of these frames that no aligned frame confirms and at least one sees through.

    A frame with few matches, for example of a blank wall, may still agree with all others, so matches are no criterion here.

    Args:
        scene: all frames.
        alignment: of the frames of these ids and of aligned ones.
        warp: inverse deformation of these.
        frames: (N,) ids.
    """
    cameras = alignment.cameras
    own = scene.select(cameras.frame_ids)
    geometry = AlignedGeometry(own, cameras, alignment.fields)
    sound = np.flatnonzero(alignment.aligned & ~np.isin(cameras.frame_ids, alignment.heldout))
    shares = []
    for row in np.searchsorted(cameras.frame_ids, frames).tolist():
        points = geometry.canonical(row)[::_EVERY, ::_EVERY].reshape(-1, 3)
        points = points[np.isfinite(points).all(1)]
        coverage = measure_coverage(torch.from_numpy(points), cameras, own.depth, sound, warp)
        shares.append(float(coverage.floating.float().mean()) if len(points) else 1.0)
    return np.array(shares)


def held_out_ids(alignment: Alignment, config: GSConfig) -> Array:
    """Ids of the frames to measure on: those that alignment kept out, or else every k-th of its frames; none for 0."""
    if len(alignment.heldout) and config.holdout_every:
        return alignment.heldout
    return alignment.cameras.frame_ids[heldout_positions(len(alignment.cameras), config)]


def heldout_positions(count: int, config: GSConfig) -> Array:
    """(count,) bool: every k-th frame, but not the reference."""
    heldout = heldout_frames(count, config.holdout_every)
    if config.reference_frame < count:
        heldout[config.reference_frame] = False
    return heldout


def heldout_frames(count: int, every: int) -> Array:
    """(count,) bool: the middle of every group of `every` frames; none for 0."""
    heldout = np.zeros(count, bool)
    if every:
        heldout[every // 2 :: every] = True
    return heldout


def _between(config: GSConfig, scene: Scene, own: Array, heldout: Array, left_out: Array) -> Array:
    """Ids of the frames whose pose and field come from the frames beside them."""
    unknown = np.setdiff1d(np.arange(len(scene)) if config.supervise == "all" else heldout, own)
    return np.union1d(unknown, left_out).astype(np.int64)


def _can_be_blended(config: GSConfig, warp: InverseWarp, report: Reporter) -> bool:
    """Whether frames without a field of their own can have one: only lattice fields can be blended."""
    if not config.deform or isinstance(warp, FixedPointInverseWarp):
        return True
    report.note("splatting: only the aligned frames supervise and are measured, since the network inverse knows no others")
    return False


def _reference(wanted: int, ids: Array, left_out: Array) -> int:
    """Position of the frame whose pose stays: the wanted one, or the first that is trained on if that was left out."""
    sound = np.setdiff1d(ids, left_out)
    chosen = wanted if wanted in sound or not len(sound) else sound[0]
    return int(np.searchsorted(ids, chosen))
