"""Code of the depth rounds that is compiled while mapping is at work."""

import cv2
import numpy as np
from numba.core.registry import CPUDispatcher

from utils.sfm import backend, depth_filling, flow_depth, plane_sweep
from utils.sfm.depth_completion import PosedClip
from utils.sfm.rehearsal import made_clip, place_made_points, rehearsing
from utils.sfm.solvers import dense_bundle_adjustment, global_positions, track_bundle_adjustment
from utils.sfm.solvers import tracks as tracks_module
from utils.sfm.solvers.tracks import plane_errors


def test_the_rehearsal_compiles_all_that_mapping_and_the_depth_rounds_call() -> None:
    clip, depth, confidence = backend.depth_of(*made_clip())
    np.testing.assert_allclose(depth, 3.0, rtol=1e-3)
    assert confidence.min() >= 1.0 and np.isfinite(clip.w2c).all()
    tracks, placed = place_made_points()
    assert plane_errors(tracks, placed).max() < 1e-3
    parts = {
        "_look",
        "_moments",
        "_times",
        "_blur",
        "_whole_windows",
        "_mean_of_largest",
        "_without_scale",
        "inverse_3x3",
        "_derivatives",
    }  # compiled into what calls them
    for module in (
        flow_depth,
        plane_sweep,
        depth_filling,
        dense_bundle_adjustment,
        global_positions,
        track_bundle_adjustment,
        tracks_module,
    ):
        compiled = {name: f.signatures for name, f in vars(module).items() if isinstance(f, CPUDispatcher) and name not in parts}
        assert compiled and all(compiled.values()), (module.__name__, compiled)


def test_a_rehearsal_that_fails_does_no_harm() -> None:
    seen: list[tuple[int, ...]] = []

    def rounds(clip: PosedClip, _: object) -> None:
        seen.append(clip.grays.shape)
        cv2.setNumThreads(1)
        raise ZeroDivisionError

    before = cv2.getNumThreads()
    with rehearsing(rounds):
        pass
    assert seen == [(5, 48, 64)] and cv2.getNumThreads() == before
