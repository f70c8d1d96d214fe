"""Which frames the splats are trained on, which are only measured or shown, and where each of them is."""

from dataclasses import dataclass, replace

import numpy as np

from configs.stage3_gs import GSConfig
from train_gs.left_out import with_left_out
from utils.deformation.between import with_frames_between
from utils.deformation.inverse import FixedPointInverseWarp, InverseWarp, inverse_of_alignment
from utils.errors import ConfigError
from utils.reporting import number_ranges
from utils.types import Alignment, Array, Reporter, Scene


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The F frames of a training.

    Attributes:
        alignment: poses, fields and colours of all of them.
        warp: the inverse deformation of all of them.
        heldout: (F,) bool, only measured.
        left_out: (F,) bool, alignment could not place them: neither trained on nor counted.
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
        report: told which frames are left out.

    Raises:
        ConfigError: there is no such reference frame, or nothing is left to train on.
    """
    own, reference = alignment.cameras.frame_ids, config.reference_frame
    if reference >= len(own):
        raise ConfigError(f"reference_frame is {reference}, the alignment has {len(own)} frames", "counted from 0")
    heldout = held_out_ids(alignment, config)
    left_out = own[~alignment.aligned]
    if config.left_out == "train":
        alignment = with_left_out(scene, alignment, report)
        left_out = left_out[:0]
    elif len(left_out):
        report.note(f"splatting: not trained on frames that alignment left out: {number_ranges(left_out.tolist())}")
    between = _between(config, scene, own, heldout, left_out)
    extended = bool(len(between)) and _can_be_blended(config, warp, report)
    if extended:
        if config.left_out == "train":
            alignment = replace(alignment, aligned=np.ones(len(own), bool))  # what they have is theirs
        alignment = with_frames_between(scene, alignment, between, clips)
        warp = inverse_of_alignment(alignment) if config.deform else warp
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
    kept = wanted if wanted in sound or not len(sound) else sound[0]
    return int(np.searchsorted(ids, kept))
