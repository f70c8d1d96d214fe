"""Films: the consistent world along a camera path, as PNGs and an MP4, with the agreement of neighbouring renders on the side."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eval_gs.behind import Behind
from eval_gs.metrics import PairConsistency, pair_consistency
from utils.scene.media import write_image, write_mp4
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array, CameraSet, Reporter, StepReport

# Measuring more pairs than this along one path takes longer than it tells.
_MAX_PAIRS = 40


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """How a path is filmed.

    Attributes:
        fps: of the MP4.
        save_images: write PNGs.
        save_video: write the MP4.
        white: background of the pictures.
        measure: compare neighbouring renders.
    """

    fps: int
    save_images: bool
    save_video: bool
    white: bool
    measure: bool


def film(view: SplatView, cameras: CameraSet, folder: Path, name: str, options: FilmOptions, report: Reporter) -> dict[str, float]:
    """Renders a path into `<folder>/frames_<name>/frame_%05d.png` and `<folder>/render_<name>.mp4`.

    Returns:
        Medians over neighbouring renders (see `PairConsistency`); empty if not measured.
    """
    pairs: list[PairConsistency] = []
    frames = _frames(view, cameras, folder / f"frames_{name}", name, options, report, pairs)
    if options.save_video:
        write_mp4(folder / f"render_{name}.mp4", frames, options.fps)
    else:
        for _ in frames:
            pass
    return median_consistency(pairs)


def _frames(
    view: SplatView,
    cameras: CameraSet,
    folder: Path,
    name: str,
    options: FilmOptions,
    report: Reporter,
    pairs: list[PairConsistency],
) -> Iterator[Array]:
    """The pictures one by one, so that memory does not grow with the path; `pairs` is full after the last."""
    if options.save_images:
        folder.mkdir(parents=True, exist_ok=True)
    measured = _measured_positions(len(cameras)) if options.measure else set()
    previous: tuple[Array, Array] | None = None
    with Behind[None]() as writing, Behind[PairConsistency]() as comparing:
        for i in range(len(cameras)):
            output = view.render(cameras.c2w[i], cameras.K[i], cameras.size)
            image, depth = rgb_image(output), depth_image(output)
            if i in measured and previous is not None:
                b_from_a = np.linalg.inv(cameras.c2w[i]) @ cameras.c2w[i - 1]
                pair = (previous[0], image), (previous[1], depth), b_from_a, (cameras.K[i - 1], cameras.K[i])
                comparing.do(partial(pair_consistency, *pair))
            previous = image, depth
            shown = rgb_image(output, white=True) if options.white else image
            if options.save_images:
                writing.do(partial(write_image, folder / f"frame_{i:05d}.png", shown))
            report.step(StepReport(stage=f"render {name.replace('_', ' ')}", step=i, total=len(cameras)))
            yield shown
    pairs += comparing.results


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
