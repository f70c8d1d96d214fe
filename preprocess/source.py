"""The input of stage 0: what it consists of, what is found in it, which of its frames become the scene, and these as files."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from configs.preprocess import PreprocessConfig
from utils.errors import ConfigError, InputError
from utils.imports.cameras import files_of_cameras, read_cameras
from utils.runtime import cpu_count, in_threads
from utils.scene.clip.borders import Crop
from utils.scene.clip.extract import all_fit, require_room, write_frames
from utils.scene.clip.plan import ClipPlan, Finding, joined, plan_clip
from utils.scene.clip.survey import Survey, survey_clip, survey_images
from utils.scene.folders import FrameFolder, frame_folder
from utils.scene.frame_selection import between, choose_uniform, prefer_sharp, share_fairly
from utils.scene.layout import SceneLayout
from utils.scene.manifest import content_hash, fingerprints
from utils.scene.masks import mask_files
from utils.scene.media import exists, list_clips, read_image, read_opacity, stored_on_its_side, write_image
from utils.types import Array, Reporter

# Frames read at a time while a folder is looked at.
_READ_AHEAD = 16


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip, or one folder of frames.

    Attributes:
        path: the file, or the folder.
        survey: what it shows.
        plan: what is used of it.
        files: its frames, if it is a folder.
        names: what its frames are called, if it is a folder.
        upright: its pictures are turned as their EXIF says.
    """

    path: Path
    survey: Survey
    plan: ClipPlan
    files: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    upright: bool = True


@dataclass(frozen=True, kw_only=True)
class Source:
    """The usable frames of the input on disk.

    Attributes:
        frames: every one in order; where they are written until the whole of stage 0 is published.
        names: what they are called: the file's name, with its folder where there are several.
        totals: frames of each clip.
        folder: where they will lie.
        fps: frames a second of the first clip, 0 if unknown.
        masks: folder of masks of their transparent pixels, named like them; None if they have none.
        crop: what was cut off them, so that masks made for whole frames still fit.
        whole: (h, w) of the frames before that.
        findings: what was found in the input.
        numbers: of every frame in the input, from 0, whatever was left out.
        total: frames of the input.
        counted: it is made of clips: the names are their frames' numbers.
    """

    frames: list[Path]
    names: list[str]
    totals: list[int]
    folder: Path
    fps: float = 0.0
    masks: Path | None = None
    crop: Crop = field(default_factory=Crop)
    whole: tuple[int, int] = (0, 0)
    findings: tuple[Finding, ...] = ()
    numbers: tuple[int, ...] = ()
    total: int = 0
    counted: bool = False

    def place(self, position: int) -> Path:
        """Where a frame will lie."""
        return self.folder / self.names[position]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Positions in the source, increasing.

    Attributes:
        scene: frames that become the scene.
        read: these and the frames in between that help to measure depth.
    """

    scene: list[int]
    read: list[int]


def input_ids(config: PreprocessConfig) -> dict[str, str]:
    """Content ids of everything that is read: neither times nor the folders and names of clips matter.

    Names of frames, masks and depth images do, since cameras, masks and frames belong together by them.

    Raises:
        InputError: an input does not exist or cannot be read.
    """
    if config.input_video:
        ids = {"source": content_hash("clips", _contents(list_clips(config.input_video)))}
    else:
        ids = {"source": _named(frame_folder(_folder(config)).frames, _folder(config))}
    for name, given in (("cameras", config.cameras), ("pose_priors", config.pose_priors), ("masks", config.masks)):
        if given is None:
            continue
        if not exists(given):
            raise InputError(f"{given} does not exist", f"check the path given to --{name}")
        if name != "masks":
            ids[name] = _named(files_of_cameras(given), given)
        else:
            ids[name] = _named(mask_files(given), given)
    return ids


def _named(files: list[Path], below: Path) -> str:
    """Hash of names and contents of files."""
    return content_hash([os.path.relpath(path, below) for path in files], _contents(files))


def _contents(files: list[Path]) -> list[str]:
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is no file", "give clips, images and cameras as plain files")
    try:
        return fingerprints(files)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the file and its permissions") from error


def _folder(config: PreprocessConfig) -> Path:
    if config.frames_dir is None:
        raise InputError("no frames were given", "pass --input_video CLIP or --frames_dir FOLDER")
    return config.frames_dir


@dataclass(frozen=True, kw_only=True)
class Input:
    """The input, looked at: what is used of it, before anything is written.

    Attributes:
        clips: its clips, or the cameras of its folder.
        choice: frames of the scene, as positions among the usable ones.
        findings: what was found.
    """

    clips: list[Clip]
    choice: Choice
    findings: tuple[Finding, ...]

    @property
    def crop(self) -> Crop:
        """What is cut off every frame."""
        return self.clips[0].plan.crop

    @property
    def transparent(self) -> bool:
        """Some frames have pixels that do not count."""
        return any(clip.plan.transparent for clip in self.clips)

    @property
    def writes(self) -> bool:
        """Frames or masks are written: those of a folder stay where they lie, unless something is cut off them or their EXIF not heeded."""
        return not self.clips[0].files or bool(self.crop) or self.transparent or not self.clips[0].upright


def look_at(config: PreprocessConfig, report: Reporter) -> Input:
    """Looks at every frame of the input and chooses among the usable ones; nothing is written.

    Raises:
        InputError: fewer than two frames, clips of several sizes, or an input that cannot be read.
    """
    clips = _looked_at(config, report)
    findings = _told(clips, report)
    plans = joined([clip.plan for clip in clips])
    clips = [replace(clip, plan=plan) for clip, plan in zip(clips, plans, strict=True)]
    choice = choose(config, [clip.plan.used for clip in clips], [clip.survey for clip in clips], report)
    return Input(clips=clips, choice=choice, findings=findings)


def frames_on_disk(
    config: PreprocessConfig, seen: Input, layout: SceneLayout, staging: Path | None, report: Reporter
) -> tuple[Source, Choice]:
    """The usable frames as files, and the choice among them. Those of clips are named by their position in the clip, from 1.

    Args:
        config: the format of frames.
        seen: the input.
        layout: of the scene.
        staging: the folder that will be `frames/`; None if nothing is written.
        report: told if not all frames are written.

    Raises:
        ArtifactError: the frames cannot be written, or would not fit on the disk.
    """
    if seen.clips[0].files:
        return _from_folder(layout, seen, staging)
    if staging is None:
        raise ValueError("the frames of clips need a folder")
    return _from_clips(config, layout, seen, staging, report)


def _looked_at(config: PreprocessConfig, report: Reporter) -> list[Clip]:
    """Surveys and plans of all clips, or of all cameras of a folder."""
    # Given cameras hold for whole frames, and a data set's frames need not follow each other.
    as_is = config.as_is or config.given_cameras is not None
    if config.input_video:
        paths = list_clips(config.input_video)
        surveys = [survey_clip(path, sharp=config.prefer_sharp) for path in paths]
        _require_one_size(surveys)
        _require_two(sum(map(len, surveys)), ", ".join(path.name for path in paths))
        frames = _frame_of_each(config, [len(survey) for survey in surveys])
        plans = [plan_clip(survey, as_is=as_is, part_of=frame) for survey, frame in zip(surveys, frames, strict=True)]
        return [Clip(path=p, survey=s, plan=plan) for p, s, plan in zip(paths, surveys, plans, strict=True)]
    folder = frame_folder(_folder(config))
    _require_two(len(folder.frames), str(folder.root))
    for skipped in folder.skipped:
        report.note(f"frames: {skipped}")
    upright = config.given_cameras is None or _cameras_are_upright(folder, config.given_cameras, report)
    clips, first = [], 0
    for total, named in zip(folder.totals, _frame_of_each(config, list(folder.totals)), strict=True):
        files = folder.frames[first : first + total]
        survey = _folder_survey(folder, files, config.prefer_sharp, upright=upright)
        plan = plan_clip(survey, as_is=as_is, part_of=named)
        names = tuple(folder.names[first : first + total])
        clips.append(Clip(path=folder.root, survey=survey, plan=plan, files=tuple(files), names=names, upright=upright))
        first += total
    return clips


def _frame_of_each(config: PreprocessConfig, totals: list[int]) -> list[int | None]:
    """For each clip of so many frames the one that `part_of` names, from 0; None where it is in another clip, or none is named.

    Raises:
        ConfigError: there is no such frame.
    """
    if config.part_of is None:
        return [None] * len(totals)
    if config.part_of > sum(totals):
        raise ConfigError(f"part_of names frame {config.part_of}, the input has {sum(totals)}", "frames are counted from 1")
    ends = np.cumsum(totals)
    clip = int(np.searchsorted(ends, config.part_of))
    frame = config.part_of - 1 - int(ends[clip] - totals[clip])
    return [frame if k == clip else None for k in range(len(totals))]


def _cameras_are_upright(folder: FrameFolder, given: Path, report: Reporter) -> bool:
    """Whether given cameras are those of the pictures as their EXIF turns them, and not as they are stored (COLMAP does not heed it).

    Told by the pictures that EXIF lays on their side: their two sizes differ, and the cameras' is one of them.
    """
    turned = [row for row, path in enumerate(folder.frames) if stored_on_its_side(path)]
    if not turned:
        return True
    height, width = read_image(folder.frames[turned[0]]).shape[:2]
    cameras = read_cameras(given, (height, width))
    row = int(cameras.rows([f"{folder.root.name}/{name}" for name in folder.names])[turned[0]])
    if row < 0:
        return True
    aspect = float(np.log(cameras.sizes[row, 1] / cameras.sizes[row, 0]))
    if abs(aspect - np.log(width / height)) <= abs(aspect - np.log(height / width)):
        return True
    report.note(f"frames: cameras are those of the pictures as stored, {height}x{width}: their EXIF, which turns them, is not heeded")
    return False


def _folder_survey(folder: FrameFolder, files: list[Path], sharp: bool, *, upright: bool) -> Survey:
    """A look at image files, read a few at a time."""

    def pairs() -> Iterator[tuple[Array, Array | None]]:
        with ThreadPoolExecutor(cpu_count()) as pool:
            for first in range(0, len(files), _READ_AHEAD):
                yield from pool.map(
                    lambda path: (read_image(path, upright=upright), read_opacity(path)), files[first : first + _READ_AHEAD]
                )

    return survey_images(folder.root.name, pairs(), len(files), sharp=sharp)


def _told(clips: list[Clip], report: Reporter) -> tuple[Finding, ...]:
    """One line for each finding on the console; all of them."""
    found = []
    for clip in clips:
        for finding in clip.plan.findings:
            report.note(f"{clip.survey.name}: {finding.text}")
            found.append(finding)
    return tuple(found)


def _from_clips(config: PreprocessConfig, layout: SceneLayout, seen: Input, staging: Path, report: Reporter) -> tuple[Source, Choice]:
    """The frames of clips: all usable ones, or those that are read where all would take too much disk."""
    first_clip, choice = seen.clips[0], seen.choice
    used = [clip.plan.used for clip in seen.clips]
    starts = np.cumsum([0, *map(len, used)])
    size = seen.crop.size(first_clip.survey.size)
    wanted = list(range(starts[-1]))
    # The shutter is told from the motion between neighbours, so these have to be there.
    if config.lens == "none" and not all_fit([(size, len(wanted))], config.image_ext, staging):
        report.note(f"frames: {len(choice.read)} of {len(wanted)} are written, since all would take too much disk")
        wanted = choice.read
    require_room(size, len(wanted) + len(choice.scene), config.image_ext, staging)
    masks = staging / "masks" if seen.transparent else None
    if masks is not None:
        masks.mkdir()
    totals: list[int] = []
    paths: list[Path] = []
    first = 1
    for clip, mine, start, end in zip(seen.clips, used, starts[:-1], starts[1:], strict=True):
        positions = mine[[w - start for w in wanted if start <= w < end]]
        paths += write_frames(clip.path, clip.survey, clip.plan, positions, staging, extension=config.image_ext, first=first, masks=masks)
        totals.append(len(positions))
        first += len(clip.survey)
    source = Source(
        frames=paths,
        names=[path.name for path in paths],
        totals=totals,
        folder=layout.frames,
        fps=0.0 if first_clip.survey.facts is None else first_clip.survey.facts.fps,
        masks=masks,
        crop=seen.crop,
        whole=first_clip.survey.size,
        findings=seen.findings,
        numbers=tuple(int(path.stem) - 1 for path in paths),
        total=first - 1,
        counted=True,
    )
    return source, _among(choice, wanted)


def _among(choice: Choice, wanted: list[int]) -> Choice:
    """The choice as positions among the frames that are written."""
    place = {position: row for row, position in enumerate(wanted)}
    return Choice(scene=[place[p] for p in choice.scene], read=[place[p] for p in choice.read])


def _from_folder(layout: SceneLayout, seen: Input, staging: Path | None) -> tuple[Source, Choice]:
    """The usable frames of a folder: where they lie, or cut in `frames/`."""
    originals = [clip.files[i] for clip in seen.clips for i in clip.plan.used]
    names = [clip.names[i] for clip in seen.clips for i in clip.plan.used]
    starts = np.cumsum([0, *(len(clip.files) for clip in seen.clips)])
    frames, folder, masks = originals, seen.clips[0].path, None
    upright = seen.clips[0].upright
    if staging is not None and (seen.crop or not upright):
        _written(originals, names, staging, seen.crop, upright=upright)
        names = [_png(name) for name in names]
        frames, folder = [staging / name for name in names], layout.frames
    if staging is not None and seen.transparent:
        masks = staging / "masks"
        _written_masks(originals, names, masks, seen.crop)
    source = Source(
        frames=frames,
        names=names,
        totals=[len(clip.plan.used) for clip in seen.clips],
        folder=folder,
        masks=masks,
        crop=seen.crop,
        whole=seen.clips[0].survey.size,
        findings=seen.findings,
        numbers=tuple(int(start + i) for start, clip in zip(starts[:-1], seen.clips, strict=True) for i in clip.plan.used),
        total=int(starts[-1]),
    )
    return source, seen.choice


def _png(name: str) -> str:
    return str(Path(name).with_suffix(".png"))


def _written(frames: list[Path], names: list[str], folder: Path, crop: Crop, *, upright: bool) -> None:
    def write(path: Path, name: str) -> None:
        target = folder / _png(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, crop.of(read_image(path, upright=upright)))

    in_threads(write, frames, names)


def _written_masks(frames: list[Path], names: list[str], folder: Path, crop: Crop) -> None:
    for path, name in zip(frames, names, strict=True):
        opacity = read_opacity(path)
        if opacity is None:
            opacity = np.full(read_image(path).shape[:2], 255, np.uint8)
        target = folder / _png(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, np.where(crop.of(opacity) >= 128, 255, 0).astype(np.uint8))


def _require_two(count: int, where: str) -> None:
    if count < 2:
        raise InputError(
            f"{where}: {count} frame, at least 2 are needed, 24 or more are sensible",
            "use a clip or folder that shows the scene from several positions",
        )


def _require_one_size(surveys: list[Survey]) -> None:
    """All clips of a scene must show frames of one size."""
    height, width = surveys[0].size
    for survey in surveys[1:]:
        if survey.size != (height, width):
            raise InputError(
                f"{survey.name} is {survey.size[1]}x{survey.size[0]}, but {surveys[0].name} is {width}x{height}",
                "clips of one scene are taken for one camera: crop or resize them to the same size first, or leave this one out",
            )


def choose(config: PreprocessConfig, used: list[Array], surveys: list[Survey], report: Reporter) -> Choice:
    """Spreads the scene's frames evenly over the usable ones of each clip, every clip with an equal share.

    Args:
        config: how many, and how.
        used: positions of the usable frames of each clip.
        surveys: of each clip, for sharpness.
        report: told if frames are far apart.
    """
    scene: list[int] = []
    read: list[int] = []
    first = 0
    totals = [len(positions) for positions in used]
    _require_two(sum(totals), "usable frames")
    for positions, survey, share in zip(used, surveys, share_fairly(totals, config.max_frames), strict=True):
        selection = choose_uniform(len(positions), share, config.max_stride)
        if selection.sparse:
            report.note(
                f"frames: {share} of {len(positions)} are chosen, {selection.stride:.1f} apart (more than max_stride"
                f" {config.max_stride}), to cover the whole clip"
            )
        indices = selection.indices
        if config.prefer_sharp:
            indices = prefer_sharp(indices, survey.sharpness[positions])
        scene += (first + indices).tolist()
        read += (first + between(indices, config.between_frames)).tolist()
        first += len(positions)
    return Choice(scene=scene, read=read)
