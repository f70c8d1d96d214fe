"""Films: the consistent world along a camera path, as PNGs and an MP4, with the agreement of neighbouring renders on the side."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from av import VideoFrame

from eval_gs.behind import Behind
from eval_gs.metrics import PairConsistency, pair_consistency
from utils.device.threads import num_threads
from utils.report import pictures
from utils.scene.media import Mp4Writer, film_frame, write_image
from utils.splatting.render import SplatView, depth_there, on_the_host, rgb_images, rgb_there
from utils.types import Array, CameraSet, Reporter, StepReport

# Measuring more pairs than this along one path takes longer than it tells.
_MAX_PAIRS = 40
_SPEED = "veryfast"
"""x264's preset: half the time of its usual one for a tenth more bytes."""
_WAITING_BYTES = {"cpu": 70e6, "cuda": 400e6}
"""Pictures of a film that may wait for its encoder, by what renders: a GPU is faster than the encoder, and goes on with the next film."""
# Small films go into a page as they are, so they must stay below a few megabytes.
_PREVIEW_WIDTH, _WIDE_PREVIEW_WIDTH, _PREVIEW_QUALITY = 640, 960, 24


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """How a path is filmed.

    Attributes:
        size: (h, w) of the MP4.
        drawn: (h, w) at which its pictures are rendered; None: `size`.
        fps: of the MP4.
        save_images: write PNGs.
        save_video: write the MP4.
        white: background of the pictures.
        measure: compare neighbouring renders.
    """

    size: tuple[int, int]
    fps: float
    save_images: bool
    save_video: bool
    white: bool
    measure: bool
    drawn: tuple[int, int] | None = None


class Filming:
    """Films of a world: each is encoded on a thread of its own while the next ones are rendered; a context manager that ends with them.

    Args:
        view: the world.
        folder: where the films go.
        report: told about every view.
    """

    def __init__(self, view: SplatView, folder: Path, report: Reporter):
        self._view, self._folder, self._report = view, folder, report
        self._comparing: dict[str, Behind[PairConsistency]] = {}
        self._stack = ExitStack()
        self._converting = self._stack.enter_context(ThreadPoolExecutor(num_threads(), thread_name_prefix="films"))

    def path(self, cameras: CameraSet, name: str, options: FilmOptions, small: Path | None = None) -> None:
        """Renders a path into `<folder>/frames_<name>/frame_%05d.png`, at the size of its cameras, and `<folder>/render_<name>.mp4`.

        Args:
            cameras: the path.
            name: of the path.
            options: how it is filmed.
            small: also write a small film here, for a page.
        """
        words = f"render {name.replace('_', ' ')}"
        filmed = options.save_video and len(cameras) > 0
        drawn = cameras.resized(options.drawn or options.size)
        once = filmed and drawn.size == cameras.size
        pictures = self._shots(cameras, name, options, every=once)
        if not once:
            for done, _ in enumerate(pictures):
                self._report.step(StepReport(stage=words, step=done, total=len(cameras)))
            pictures = rgb_images(self._view.render_all(drawn), options.white)
        if filmed:
            works = (partial(np.asarray, image) for image in pictures)
            self.film(self._folder / f"render_{name}.mp4", (len(cameras), options.size), works, options.fps, words, small)

    def film(
        self,
        path: Path,
        shape: tuple[int, tuple[int, int]],
        pictures: Iterable[Callable[[], Array]],
        fps: float,
        words: str,
        small: Path | None = None,
    ) -> None:
        """Renders the pictures of a film and leaves them to be finished and encoded by others.

        Args:
            path: of the film.
            shape: number of pictures, and (h, w) of the film; they are enlarged to it.
            pictures: what makes each (h, w, 3) uint8 picture of a render; done on another thread.
            fps: frames per second.
            words: what is reported.
            small: a second film of the same, at most 640 pixels wide (960 for pictures wider than 16:9), for a page.
        """
        count, size = shape
        waiting = max(2, int(_WAITING_BYTES[self._view.device.type] / (3 * size[0] * size[1])))
        whole = partial(_enlarged, size=size)
        reels = [self._stack.enter_context(_Reel(Mp4Writer(path, fps, speed=_SPEED), whole, self._converting, waiting))]
        if small is not None:
            writer = Mp4Writer(small, fps, quality=_PREVIEW_QUALITY, speed=_SPEED)
            reels.append(self._stack.enter_context(_Reel(writer, _for_a_page, self._converting, waiting)))
        for i, work in enumerate(pictures):
            picture = self._converting.submit(work)
            for reel in reels:
                reel.add(picture)
            self._report.step(StepReport(stage=words, step=i, total=count))
        for reel in reels:
            reel.end()

    def consistency(self) -> dict[str, dict[str, float]]:
        """Medians over neighbouring renders (see `PairConsistency`) of each path that was measured; waits for them."""
        return {name: medians for name, pairs in self._comparing.items() if (medians := median_consistency(pairs.end()))}

    def _shots(self, cameras: CameraSet, name: str, options: FilmOptions, every: bool) -> Iterator[Array]:
        """The pictures (h, w, 3) uint8 of a path at the size of its cameras; writes PNGs and compares neighbouring views on the way.

        Views that are neither written nor compared are skipped, unless `every` one is wanted.
        """
        measured = _measured_positions(len(cameras)) if options.measure else set()
        compared = measured | {i - 1 for i in measured}
        chosen = list(range(len(cameras))) if every or options.save_images else sorted(compared)
        folder = self._folder / f"frames_{name}"
        if options.save_images:
            folder.mkdir(parents=True, exist_ok=True)
        writing = self._stack.enter_context(Behind[None]())
        comparing = self._comparing[name] = self._stack.enter_context(Behind[PairConsistency]())
        previous: tuple[Array, Array] | None = None
        there = (
            [rgb_there(output, options.white), *([rgb_there(output), depth_there(output)] if i in compared else [])]
            for i, output in zip(chosen, self._view.render_all(cameras, chosen), strict=True)
        )
        for i, (shown, *rest) in zip(chosen, on_the_host(there), strict=True):
            current = (rest[0], rest[1]) if rest else None
            if i in measured and previous is not None and current is not None:
                b_from_a = np.linalg.inv(cameras.c2w[i]) @ cameras.c2w[i - 1]
                pair = (previous[0], current[0]), (previous[1], current[1]), b_from_a, (cameras.K[i - 1], cameras.K[i])
                comparing.do(partial(pair_consistency, *pair))
            previous = current
            if options.save_images:
                writing.do(partial(write_image, folder / f"frame_{i:05d}.png", shown))
            yield shown

    def __enter__(self) -> "Filming":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)


class _Reel:
    """A film that is encoded on a thread of its own; a context manager, at whose end the film is whole.

    Args:
        writer: of its file.
        fitted: makes the film's frame of a picture; `converting` does that, and what comes before the encoder.
        converting: threads for all films.
        waiting: pictures that may wait for the encoder.
    """

    def __init__(self, writer: Mp4Writer, fitted: Callable[[Array], VideoFrame], converting: ThreadPoolExecutor, waiting: int):
        self._writer, self._fitted, self._converting, self._ended = writer, fitted, converting, False
        self._most_waiting, self._thread = waiting, Behind[None](threads=1)

    def add(self, picture: Future[Array]) -> None:
        """The next picture, which `converting` has been given to make."""
        frame = self._converting.submit(lambda: self._fitted(picture.result()))
        self._thread.do(lambda: self._writer.add_frame(frame.result()), waiting=self._most_waiting)

    def end(self) -> None:
        """No picture follows: the file is closed as soon as the last one is encoded."""
        self._ended = True
        self._thread.do(partial(self._writer.__exit__, None, None, None))

    def __enter__(self) -> "_Reel":
        self._writer.__enter__()
        self._thread.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._thread.__exit__(kind, error, trace)
        finally:
            if not self._ended:
                self._writer.__exit__(kind, error, trace)


def _for_a_page(image: Array) -> VideoFrame:
    return film_frame(pictures.fit_width(image, _PREVIEW_WIDTH if image.shape[1] < 2 * image.shape[0] else _WIDE_PREVIEW_WIDTH))


def _enlarged(image: Array, size: tuple[int, int]) -> VideoFrame:
    return film_frame(image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC))


def _measured_positions(count: int) -> set[int]:
    if count < 2:
        return set()
    return set(np.linspace(1, count - 1, min(count - 1, _MAX_PAIRS)).round().astype(int).tolist())


def median_consistency(pairs: list[PairConsistency]) -> dict[str, float]:
    """Median of each number over the pairs where it is known; empty without pairs."""
    if not pairs:
        return {}
    table = [asdict(p) for p in pairs]
    medians = {}
    for key in table[0]:
        values = np.array([row[key] for row in table])
        if np.isfinite(values).any():
            medians[key] = float(np.nanmedian(values))
    return medians
