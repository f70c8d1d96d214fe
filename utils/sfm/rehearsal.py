"""Compiles the code of mapping's solvers and of the depth rounds on a thread while features are found and matched.

A first run on a machine else waits for Numba at every step. Nothing has to be listed: a made clip goes through the same functions.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import cv2
import numpy as np

from utils.geometry_backend import ClipFrames
from utils.sfm.depth_completion import PosedClip
from utils.sfm.solvers.global_positions import global_positions
from utils.sfm.solvers.parts import threads_given_back
from utils.sfm.solvers.track_bundle_adjustment import adjust_tracks
from utils.sfm.solvers.tracks import Placed, Tracks, without_narrow

_FRAMES, _SIZE, _FOCAL, _STEP, _DEPTH = 5, (48, 64), 55.0, 2, 3.0


def made_clip(frames: int = _FRAMES, size: tuple[int, int] = _SIZE) -> tuple[PosedClip, ClipFrames]:
    """A textured wall that a posed camera moves along, two pixels a frame."""
    height, width = size
    wall = np.random.default_rng(0).integers(0, 256, (height, width + frames * _STEP), np.uint8)
    wall = cv2.cvtColor(cv2.GaussianBlur(wall, (0, 0), 1.0), cv2.COLOR_GRAY2RGB)
    images = np.stack([wall[:, i * _STEP : i * _STEP + width] for i in range(frames)])
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 0, 3] = -np.arange(frames) * _STEP * _DEPTH / _FOCAL
    y, x = (grid.ravel() for grid in np.mgrid[4:height:8, 4:width:8])
    seen = np.column_stack([x, y, np.full(len(x), 1 / _DEPTH)])
    clip = PosedClip(
        grays=np.ascontiguousarray(images[..., 0]),
        w2c=w2c,
        K=np.tile(np.array([[_FOCAL, 0, width / 2], [0, _FOCAL, height / 2], [0, 0, 1]]), (frames, 1, 1)),
        refs=np.arange(frames),
        sparse=[seen] * frames,
    )
    return clip, ClipFrames(images=images, chosen=np.arange(frames), size=size, names=("",) * frames)


def place_made_points() -> tuple[Tracks, Placed]:
    """Cameras and points as mapping's solvers find them from what four cameras see of sixteen points; and what they see."""
    random = np.random.default_rng(0)
    points, frames, K = random.uniform([-1, -1, 3], [1, 1, 5], (16, 3)), 4, np.diag([_FOCAL, _FOCAL, 1.0])
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, :3, 3] = random.uniform(-1, 1, (frames, 3))
    tracks = Tracks(first=np.arange(0, 65, frames), frame=np.tile(np.arange(frames), 16), at=np.zeros((64, 2)))
    seen = Placed(w2c=w2c, K=K, points=points).seen(tracks)
    tracks = replace(tracks, at=seen[:, :2] / seen[:, 2:] * _FOCAL)
    centers, found = global_positions(seen / np.linalg.norm(seen, axis=1, keepdims=True), tracks, frames, 0)
    w2c[:, :3, 3] = -centers
    placed = adjust_tracks(tracks, Placed(w2c=w2c, K=K, points=found), free_focal=False)
    return without_narrow(tracks, placed, 0.1)


@contextlib.contextmanager
def rehearsing(rounds: Callable[[PosedClip, ClipFrames], object]) -> Iterator[None]:
    """Inside, a thread takes the made clip through `rounds`; what goes wrong there does no harm and is left to the real one."""

    def rehearse() -> None:
        with contextlib.suppress(Exception):
            place_made_points()
            rounds(*made_clip())

    threads = cv2.getNumThreads()
    thread = threading.Thread(target=rehearse, name="rehearsal")
    thread.start()
    try:
        yield
    finally:
        thread.join()
        threads_given_back()  # a solver of this thread may have ended while one of the rehearsal was at work
        cv2.setNumThreads(threads)  # which the rounds set for themselves, and perhaps what was at work meanwhile
