"""Points of frames that the alignment left out and that are trained on all the same.

Without initial splats at the surfaces that only they show, training would move splats from elsewhere there, which blurs both.
"""

from dataclasses import replace

import numpy as np

from configs.stage1_align import AlignmentDataConfig, PointFilterConfig
from utils.points.confidence import confident_pixels
from utils.registration import build_cloud, usable_pixels
from utils.types import Alignment, Array, CanonicalCloud, Scene


def with_left_out(scene: Scene, alignment: Alignment, frames: Array) -> Alignment:
    """The alignment with a cloud that holds the confident pixels of these frames too.

    Args:
        scene: all frames of stage 0.
        alignment: of all or some of them.
        frames: ids of frames that it left out.
    """
    ids = alignment.cameras.frame_ids
    joining = np.isin(ids, frames)
    data = AlignmentDataConfig(num_frames=len(scene), stride=1)
    usable = usable_pixels(scene.select(ids), confident_pixels(scene, data)[ids], PointFilterConfig())
    as_they_are = PointFilterConfig(enabled=False)  # no vote by neighbours: these frames did not agree with them
    added = build_cloud(scene.select(ids), alignment.cameras, alignment.fields, joining, usable, as_they_are, alignment.color_maps)
    return replace(alignment, cloud=joined(alignment.cloud, added))


def joined(a: CanonicalCloud, b: CanonicalCloud) -> CanonicalCloud:
    """Both, by frame."""
    both = CanonicalCloud(**{name: np.concatenate([values, getattr(b, name)]) for name, values in vars(a).items()})
    return both.select(np.argsort(both.frame, kind="stable"))
