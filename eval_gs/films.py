"""How large and how fast films are: the clip's own size and duration; and the film with the clip and the world side by side."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from utils.device.threads import num_threads
from utils.scene.json_files import json_object
from utils.scene.layout import SceneLayout
from utils.scene.media import read_image, resize_area
from utils.splatting.render import SplatView, rgb_images
from utils.types import Array, CameraSet

_LEAST_SIDE, _MOST_SIDE = 720, 2160
"""Pixels along the shorter side of a film: at least, and at most without being asked."""
_MOST_ENLARGED = 3.0
"""Finer than by this, splats show their own edges and no more of the scene."""
_BESIDE_SIDE = 540
"""The same of each half of the film with two halves."""
_MOST_BESIDE = 240
"""Frames of that film; of a longer clip every second, third ... is shown, for twice, three times as long."""
_GAP = 4
_READ_AHEAD = 16  # frames


@dataclass(frozen=True)
class Clip:
    """What films take from the clip.

    Attributes:
        size: (h, w) of its frames; of the training's images where it is not known.
        fps: frames per second; 0 if unknown.
        frames: number of frames.
        used: number of frames of the scene.
    """

    size: tuple[int, int]
    fps: float
    frames: int
    used: int

    def scene_fps(self, otherwise: float) -> float:
        """Frames per second at which the scene's frames last as long as the clip."""
        return self.fps * self.used / self.frames if self.fps > 0 and self.frames else otherwise


def clip_of(root: Path, trained: CameraSet) -> Clip:
    """The clip of a scene, as far as stage 0 wrote it down."""
    layout = SceneLayout(root)
    chosen = json_object(layout.preprocess_json)
    totals = chosen.get("clip_frames")
    frames = sum(totals) if isinstance(totals, list) and all(isinstance(n, int) for n in totals) else 0
    fps, used = chosen.get("fps"), chosen.get("num_frames_used")
    first = (json_object(layout.clip_cameras / "transforms.json").get("frames") or [{}])[0]
    h, w = first.get("h"), first.get("w")
    return Clip(
        size=(h, w) if isinstance(h, int) and isinstance(w, int) and min(h, w) > 0 else trained.size,
        fps=float(fps) if isinstance(fps, int | float) else 0.0,
        frames=frames,
        used=used if isinstance(used, int) else len(trained),
    )


def film_size(clip: tuple[int, int], height: int, own: bool) -> tuple[int, int]:
    """(h, w) of films, both even, in the clip's proportions.

    Args:
        clip: (h, w) of its frames.
        height: what was asked for; 0 for 720 along the shorter side, or the clip's own size where it is larger.
        own: whether the clip's own size may be taken: not on a CPU, where large pictures take long.
    """
    side = min(clip)
    wanted = height / clip[0] if height > 0 else (np.clip(side, _LEAST_SIDE, _MOST_SIDE) if own else _LEAST_SIDE) / side
    return _even(clip[0] * wanted), _even(clip[1] * wanted)


def drawn_size(film: tuple[int, int], trained: tuple[int, int]) -> tuple[int, int]:
    """(h, w) at which a film is rendered on a CPU and then enlarged: at most `_MOST_ENLARGED` times as fine as the splats were trained.

    Args:
        film: (h, w) of the film.
        trained: (h, w) of the images that were trained on.
    """
    share = min(1.0, _MOST_ENLARGED * min(trained) / min(film))
    return _even(film[0] * share), _even(film[1] * share)


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2))


@dataclass(frozen=True)
class Beside:
    """The frames of a clip and where they were taken from, for a film of clip and world side by side.

    Attributes:
        cameras: at the size of a half.
        files: the frames' files; empty to show `images`.
        images: (F, h, w, 3) uint8, shown where there are no files.
        fps: frames per second.
    """

    cameras: CameraSet
    files: list[Path]
    images: Array
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of a picture with both halves."""
        h, w = self.cameras.size
        return (h, 2 * w + _GAP) if _is_beside(h, w) else (2 * h, w)

    def pictures(self, view: SplatView) -> Iterator[Callable[[], Array]]:
        """What makes each (h, w, 3) uint8 picture; the world's half is drawn by then."""
        for frame, world in zip(self._frames(), rgb_images(view.render_all(self.cameras)), strict=True):
            yield partial(side_by_side, frame, world)

    def _frames(self) -> Iterator[Array]:
        """(h, w, 3) uint8 frames of the clip at the size of the cameras; threads read a few of them ahead."""

        def read(i: int) -> Array:
            return resize_area(read_image(self.files[i]) if self.files else self.images[i], self.cameras.size)

        waiting: deque[Future[Array]] = deque()
        with ThreadPoolExecutor(num_threads()) as pool:
            for i in range(len(self.cameras)):
                waiting.append(pool.submit(read, i))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def beside(root: Path, clip: Clip, cameras: CameraSet | None, trained: CameraSet, images: Array) -> Beside:
    """What the film shows: every frame of the clip where all were placed and are there, else those that were trained on.

    Args:
        root: the scene.
        clip: of it.
        cameras: of every frame of the clip (`paths.clip_path`), None if they are not known.
        trained: of the frames of `images`.
        images: (F, h, w, 3) uint8.
    """
    size = tuple(_even(s * _BESIDE_SIDE / min(clip.size)) for s in clip.size)
    folder = SceneLayout(root).clip_cameras
    files = [(folder / str(f.get("file_path"))).resolve() for f in json_object(folder / "transforms.json").get("frames") or []]
    if cameras is None or len(files) != len(cameras) or not all(f.is_file() for f in files):
        return Beside(trained.resized((size[0], size[1])), [], images, max(clip.scene_fps(10.0), 1.0))
    step = -(-len(files) // _MOST_BESIDE)
    every = cameras.select(slice(0, None, step)).resized((size[0], size[1]))
    return Beside(every, files[::step], images[:0], max((clip.fps or 10.0) / step, 1.0))


def side_by_side(clip: Array, world: Array) -> Array:
    """Two pictures of one size beside each other, or above each other if they are wide as a cinema's, with their names."""
    h, w = clip.shape[:2]
    halves = [_named(clip, "clip"), _named(world, "world")]
    gap = np.full((h, _GAP, 3), 24, np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], axis=1) if _is_beside(h, w) else np.concatenate(halves, axis=0)


def _is_beside(h: int, w: int) -> bool:
    return w < 2.2 * h


def _named(image: Array, words: str) -> Array:
    image, scale = image.copy(), image.shape[0] / 540
    for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        at, width = (round(14 * scale), round(34 * scale)), max(1, round(thickness * scale))
        cv2.putText(image, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, colour, width, cv2.LINE_AA)
    return image
