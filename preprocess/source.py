"""The input of stage 0: what it consists of, its frames as files, and which of them become the scene."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.preprocess import PreprocessConfig
from utils.errors import InputError
from utils.runtime import cpu_count
from utils.scene.frame_selection import between, choose_uniform, prefer_sharp, share_fairly, sharpness
from utils.scene.layout import SceneLayout
from utils.scene.manifest import content_hash, publish
from utils.scene.media import decode, extract_frames, list_clips, list_frames, read_image
from utils.types import Array, Reporter


@dataclass(frozen=True, kw_only=True)
class Source:
    """The frames of the input on disk.

    Attributes:
        frames: every frame in order.
        totals: frames of each clip.
        folder: where they lie.
        fps: frames a second of the first clip, 0 if unknown.
    """

    frames: list[Path]
    totals: list[int]
    folder: Path
    fps: float = 0.0


def fingerprint(config: PreprocessConfig) -> dict[str, str]:
    """Name, size and modification time of the inputs: hashing gigabytes of video would cost more than it protects.

    Raises:
        InputError: an input does not exist.
    """
    paths = list_clips(config.input_video) if config.input_video else list_frames(_folder(config))
    groups = {"source": paths}
    for name, given in (("cameras", config.cameras), ("masks", config.masks)):
        if given is not None:
            if not given.exists():
                raise InputError(f"{given} does not exist", f"check the path given to --{name}")
            files = [given] if given.is_file() else sorted(p for p in given.rglob("*") if p.is_file() and _describes(p, name))
            groups[name] = files
    return {name: content_hash(name, [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]) for name, files in groups.items()}


def _describes(path: Path, group: str) -> bool:
    """Whether a file in a given folder matters: every mask, but of a camera folder not the images beside the cameras."""
    return group == "masks" or path.suffix in (".bin", ".txt", ".json")


def _folder(config: PreprocessConfig) -> Path:
    if config.frames_dir is None:
        raise InputError("no frames were given", "pass --input_video CLIP or --frames_dir FOLDER")
    return config.frames_dir


def frames_on_disk(config: PreprocessConfig, layout: SceneLayout, report: Reporter) -> Source:
    """All frames as files; clips are decoded into `frames/`, numbered from 1.

    Raises:
        InputError: fewer than two frames, clips of several sizes, or a clip that cannot be decoded.
        ArtifactError: the frames cannot be written.
    """
    if not config.input_video:
        frames = list_frames(_folder(config))
        _require_two(len(frames), str(_folder(config)))
        return Source(frames=frames, totals=[len(frames)], folder=_folder(config))
    totals: list[int] = []
    fps = 0.0
    clips = list_clips(config.input_video)
    _require_one_size(clips)
    with publish(layout.frames) as folder:
        for clip in clips:
            info = extract_frames(clip, folder, extension=config.image_ext, first=1 + sum(totals))
            totals.append(len(info.frames))
            fps = fps or info.fps
            if info.broken:
                report.note(f"{clip.name} breaks off after {len(info.frames)} frames ({info.broken}); they are used")
        _require_two(sum(totals), ", ".join(clip.name for clip in clips))
    return Source(frames=list_frames(layout.frames), totals=totals, folder=layout.frames, fps=fps)


def _require_two(count: int, where: str) -> None:
    if count < 2:
        raise InputError(
            f"{where}: {count} frame, at least 2 are needed, 24 or more are sensible",
            "use a clip or folder that shows the scene from several positions",
        )


def _require_one_size(clips: list[Path]) -> None:
    """All clips of a scene must show frames of one size; told before minutes of decoding."""
    if len(clips) < 2:
        return
    sizes = [next(decode(clip)).shape[:2] for clip in clips]
    for clip, (height, width) in zip(clips, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise InputError(
                f"{clip.name} is {width}x{height}, but {clips[0].name} is {sizes[0][1]}x{sizes[0][0]}",
                "clips of one scene are taken for one camera: crop or resize them to the same size first, or leave this one out",
            )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Positions in the source, increasing.

    Attributes:
        scene: frames that become the scene.
        read: these and the frames in between that help to measure depth.
    """

    scene: list[int]
    read: list[int]


def choose(config: PreprocessConfig, source: Source, report: Reporter) -> Choice:
    """Spreads the scene's frames evenly over each clip, every clip with an equal share."""
    scene: list[int] = []
    read: list[int] = []
    first = 0
    for total, share in zip(source.totals, share_fairly(source.totals, config.max_frames), strict=True):
        selection = choose_uniform(total, share, config.max_stride)
        if selection.sparse:
            report.note(
                f"frames: {share} of {total} are chosen, {selection.stride:.1f} apart (more than max_stride"
                f" {config.max_stride}), to cover the whole clip"
            )
        indices = selection.indices
        if config.prefer_sharp:
            indices = prefer_sharp(indices, _sharpness(source.frames[first : first + total]))
        scene += (first + indices).tolist()
        read += (first + between(indices, config.between_frames)).tolist()
        first += total
    return Choice(scene=scene, read=read)


def _sharpness(paths: list[Path]) -> Array:
    with ThreadPoolExecutor(cpu_count()) as pool:
        return np.array(list(pool.map(lambda path: sharpness(read_image(path)), paths)))
