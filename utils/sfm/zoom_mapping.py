"""Global mapping of a clip whose focal length changes steadily: the change is undone by scaling the features of each frame.

Focal lengths per frame make global mapping a matter of chance: COLMAP's, which asks pairs of frames for theirs, found those of an exact
dolly zoom with 3 of 9 seeds. Features scaled about the principal point by 1 / ratio are those of a camera of one focal length, which our
own mapping handles well. It suffices that the ratios are roughly right: for a zoom to 0.6, those to 0.5 and 0.7 both let 99 % of the
matches agree (one focal length for all: 89 %), and adjustment with a focal length for every frame does the rest.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.geometry_backend import SparseModel
from utils.sfm.global_mapping import map_globally
from utils.sfm.matches_database import with_scaled_features
from utils.types import Array

STEADY_ZOOMS = (0.5, 0.7, 1.4, 2.0)
"""Focal length of the last frame over that of the first, of the zooms that are tried."""


def steady_zoom(end: float, count: int) -> Array:
    """(F,) focal lengths over their geometric mean, of a zoom from 1 to `end` in equal ratios."""
    return end ** (np.linspace(0, 1, count) - 0.5)


def map_zooming(database: Path, ratios: Array, seed: int) -> SparseModel | None:
    """The largest model of a database whose frames have focal lengths in these ratios, `None` if there is none.

    Args:
        database: of images `<position>.png`, in the folder `images` beside it, that share a camera.
        ratios: (F,) focal length of each frame, times one that all share and which is found.
        seed: of what starts at random.

    Returns:
        A model whose `seen_at` are the database's unscaled features, in pixels, and whose K (R, 3, 3) has each frame's focal length.
    """
    with tempfile.TemporaryDirectory(prefix="v2w_sfm_") as folder:
        scaled = Path(folder) / "database.db"
        with_scaled_features(database, 1 / ratios, scaled, seed)
        model = map_globally(scaled, database.with_name("images"), seed, fixed_focal=False)
    if model is None:
        return None
    K, own = model.K.copy(), ratios[model.frames]
    K[:, 0, 0] *= own
    K[:, 1, 1] *= own
    center = K[0, :2, 2]
    return replace(model, K=K, seen_at=(model.seen_at - center) * own[model.seen_by, None] + center)
