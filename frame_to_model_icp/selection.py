"""Which frames of results.npz take part in an alignment."""

import numpy as np

from configs.stage1_align import AlignmentDataConfig
from utils.errors import ConfigError
from utils.types import Array


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
