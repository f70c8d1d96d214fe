"""Which frames of results.npz take part in an alignment."""

import numpy as np

from configs.stage1_align import AlignmentDataConfig
from utils.errors import ConfigError
from utils.types import Array


def split_frames(total: int, config: AlignmentDataConfig) -> tuple[Array, Array]:
    """Ascending ids of the selected frames that take part, and of those that are held out of every stage after stage 0.

    Held out are the middle of every group of `holdout_every` frames, and those named in `holdout_frames`, which need not be selected.

    Raises:
        ConfigError: fewer than 2 frames are left, or a named frame does not exist.
    """
    selected = select_frames(total, config)
    beyond = [frame for frame in config.holdout_frames if frame >= total]
    if beyond:
        raise ConfigError(f"alignment.holdout_frames names frame {beyond[0]}, there are {total}", "frames are counted from 0")
    every = config.holdout_every
    periodic = selected[every // 2 :: every] if every else selected[:0]
    heldout = np.union1d(periodic, config.holdout_frames).astype(np.int64)
    taking_part = np.setdiff1d(selected, heldout)
    if len(taking_part) < 2:
        raise ConfigError(
            f"{len(taking_part)} frame(s) to align: {len(heldout)} of {total} are held out",
            "raise alignment.holdout-every or set it to 0",
        )
    return taking_part, heldout


def select_frames(total: int, config: AlignmentDataConfig) -> Array:
    """Ascending frame ids: offset, offset + stride, ...; at most `num_frames`.

    If the frames end before `num_frames` are found, the step shrinks, to a fraction if need be, so that min(num_frames, what is there)
    frames spread evenly up to the last one. (The published rule halves the number of frames or drops the end of the clip instead.)

    Raises:
        ConfigError: fewer than 2 frames are left.
    """
    available = total - config.offset
    count = min(config.num_frames, available)
    if count < 2:
        raise ConfigError(
            f"{max(count, 0)} frame(s) to align: {total} frames, offset {config.offset}, num_frames {config.num_frames}",
            "lower alignment.offset or raise alignment.num-frames",
        )
    step = min(float(config.stride), (available - 1) / (count - 1))
    return config.offset + np.round(np.arange(count) * step).astype(np.int64)
