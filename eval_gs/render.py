"""Films: the consistent world along a camera path, as PNGs and an MP4, with the agreement of neighbouring renders on the side."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eval_gs.behind import Behind
from eval_gs.metrics import PairConsistency, pair_consistency
from utils.report import pictures
from utils.scene.media import Mp4Writer, write_image
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array, CameraSet, Reporter, StepReport

# Measuring more pairs than this along one path takes longer than it tells.
_MAX_PAIRS = 40
# Small films go into a page as they are, so they must stay below a few megabytes.
_PREVIEW_WIDTH, _WIDE_PREVIEW_WIDTH, _PREVIEW_QUALITY = 640, 960, 27


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """How a path is filmed.

    Attributes:
        size: (h, w) of the MP4.
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


def film(
    view: SplatView, cameras: CameraSet, folder: Path, name: str, options: FilmOptions, report: Reporter, small: Path | None = None
) -> dict[str, float]:
    """Renders a path into `<folder>/frames_<name>/frame_%05d.png`, at the size of its cameras, and `<folder>/render_<name>.mp4`.

    Args:
        view: the world.
        cameras: the path.
        folder: where the results go.
        name: of the path.
        options: how it is filmed.
        report: told about every view.
        small: also write a small film here, for a page.

    Returns:
        Medians over neighbouring renders (see `PairConsistency`); empty if not measured.
    """
    words = f"render {name.replace('_', ' ')}"
    pairs = _stills(view, cameras, folder / f"frames_{name}", words, options, report)
    if options.save_video and len(cameras):
        write_film(folder / f"render_{name}.mp4", _views(view, cameras.resized(options.size), options), options.fps, report, words, small)
    return median_consistency(pairs)


def _views(view: SplatView, cameras: CameraSet, options: FilmOptions) -> tuple[int, Iterator[Array]]:
    """How many pictures a film has, and the pictures one by one, so that memory does not grow with the path."""
    views = (view.render(cameras.c2w[i], cameras.K[i], cameras.size) for i in range(len(cameras)))
    return len(cameras), (rgb_image(output, options.white) for output in views)


def write_film(path: Path, film: tuple[int, Iterator[Array]], fps: float, report: Reporter, words: str, small: Path | None = None) -> None:
    """Encodes pictures while the next ones are made, each film on a thread of its own.

    Args:
        path: of the film.
        film: number of pictures, and (h, w, 3) uint8 pictures.
        fps: frames per second.
        report: told about every picture.
        words: what is reported.
        small: a second film of the same, at most 640 pixels wide (960 for pictures wider than 16:9), for a page.
    """
    count, images = film
    with ExitStack() as stack:
        films = [(stack.enter_context(Mp4Writer(path, fps, speed="veryfast")), False)]
        films += [] if small is None else [(stack.enter_context(Mp4Writer(small, fps, quality=_PREVIEW_QUALITY)), True)]
        encoding = [(writer, stack.enter_context(Behind[None](threads=1)), preview) for writer, preview in films]
        for i, image in enumerate(images):
            for writer, thread, preview in encoding:
                thread.do(partial(_encode, writer, image, preview))
            report.step(StepReport(stage=words, step=i, total=count))


def _encode(film: Mp4Writer, image: Array, preview: bool) -> None:
    width = _PREVIEW_WIDTH if image.shape[1] < 2 * image.shape[0] else _WIDE_PREVIEW_WIDTH
    film.add(pictures.fit_width(image, width) if preview else image)


def _stills(view: SplatView, cameras: CameraSet, folder: Path, words: str, options: FilmOptions, report: Reporter) -> list[PairConsistency]:
    """Writes the PNGs of a path, compares neighbouring views, and skips views that are needed for neither."""
    measured = _measured_positions(len(cameras)) if options.measure else set()
    wanted = set(range(len(cameras))) if options.save_images else measured | {i - 1 for i in measured}
    if options.save_images:
        folder.mkdir(parents=True, exist_ok=True)
    previous: tuple[Array, Array] | None = None
    with Behind[None]() as writing, Behind[PairConsistency]() as comparing:
        for i in sorted(wanted):
            output = view.render(cameras.c2w[i], cameras.K[i], cameras.size)
            image, depth = rgb_image(output), depth_image(output)
            if i in measured and previous is not None:
                b_from_a = np.linalg.inv(cameras.c2w[i]) @ cameras.c2w[i - 1]
                pair = (previous[0], image), (previous[1], depth), b_from_a, (cameras.K[i - 1], cameras.K[i])
                comparing.do(partial(pair_consistency, *pair))
            previous = image, depth
            if options.save_images:
                shown = rgb_image(output, white=True) if options.white else image
                writing.do(partial(write_image, folder / f"frame_{i:05d}.png", shown))
            report.step(StepReport(stage=words, step=i, total=len(cameras)))
    return comparing.results


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
