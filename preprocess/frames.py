"""The chosen frames as the geometry sees them: read, masked, and with lens and shutter taken out."""

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from configs.preprocess import PreprocessConfig
from preprocess.source import Choice, Source
from utils.geometry_backend import ClipFrames
from utils.scene.captured import ClipMotion, Straightener, parse_camera
from utils.scene.masks import detect_static_overlay, load_masks, unmasked
from utils.scene.media import image_size, read_frames_at, read_image, resize_area, working_size
from utils.scene.resample import resized
from utils.sfm.captured_camera import estimate_camera
from utils.types import Array, Reporter

# Poses are measured on frames of up to this size, whatever the resolution of the scene: SIFT finds little at 256 pixels.
_POSE_RESOLUTION = 512


@dataclass(frozen=True, kw_only=True)
class Footage:
    """Everything the rest of stage 0 needs of the input.

    Attributes:
        source: all frames as files, lens and shutter in them.
        choice: which of them are used.
        frames: those in memory, straightened, one row for each of `choice.read`.
        straight: takes lens and shutter out of a frame; None if nothing is taken out.
    """

    source: Source
    choice: Choice
    frames: ClipFrames
    straight: Straightener | None = None

    def image(self, position: int) -> Array:
        """(h, w, 3) frame of the source at its own size, straightened."""
        image = read_image(self.source.frames[position])
        return image if self.straight is None else self.straight(image, position)

    def gray(self, position: int, size: tuple[int, int]) -> Array:
        """(H, W) grey image of any frame of the source as the scene shows it; what is in memory is not read again."""
        row = self._rows.get(position)
        image = resized(self.image(position), size) if row is None else self.frames.picture(row)
        return cv2.cvtColor(resize_area(image, size), cv2.COLOR_RGB2GRAY)

    def of(self, rows: Array) -> "Footage":
        """Of some of the chosen frames alone (ascending rows), with those frames in between that are nearest to them."""
        frames = self.frames
        owner = np.abs(np.arange(len(frames.images))[:, None] - frames.chosen).argmin(1)
        own = np.flatnonzero(np.isin(owner, rows))
        some = replace(
            frames,
            images=frames.images[own],
            chosen=np.searchsorted(own, frames.chosen[rows]),
            names=tuple(frames.names[i] for i in own),
            pictures=None if frames.pictures is None else frames.pictures[own],
            keep=None if frames.keep is None else frames.keep[own],
            mapped=None,
            clips=None if frames.clips is None else frames.clips[own],
            numbers=None if frames.numbers is None else frames.numbers[own],
        )
        choice = Choice(scene=[self.choice.scene[row] for row in rows], read=[self.choice.read[i] for i in own])
        return replace(self, frames=some, choice=choice)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {position: row for row, position in enumerate(self.choice.read)}


def load(config: PreprocessConfig, source: Source, choice: Choice, report: Reporter) -> Footage:
    """Reads, masks and straightens the chosen frames.

    Raises:
        InputError: unreadable frames or masks.
        GeometryError: the lens cannot be estimated.
    """
    frames = _read(config, source, choice)
    frames = replace(frames, keep=_matchable(config, source, frames, report))
    footage = Footage(source=source, choice=choice, frames=frames)
    return footage if config.lens == "none" else _straightened(config, footage, report)


def _read(config: PreprocessConfig, source: Source, choice: Choice) -> ClipFrames:
    size = image_size(source.frames[0])
    scale = min(1.0, max(_POSE_RESOLUTION, config.process_res) / max(size))
    working = working_size(size, config.process_res)
    images, pictures = read_frames_at([source.frames[i] for i in choice.read], (round(size[0] * scale), round(size[1] * scale)), working)
    return ClipFrames(
        images=images,
        pictures=pictures,
        chosen=np.searchsorted(choice.read, choice.scene),
        size=working,
        names=tuple(source.names[i] for i in choice.read),
        clips=np.repeat(np.arange(len(source.totals)), source.totals)[choice.read],
        numbers=np.array(source.numbers, np.int64)[choice.read],
        total=source.total,
        counted=source.counted,
        folder=source.folder.name,
    )


def _matchable(config: PreprocessConfig, source: Source, frames: ClipFrames, report: Reporter) -> Array | None:
    """(T, h, w) bool: pixels that tell the camera's motion, those that neither the user nor an overlay takes out; None for all."""
    if config.masks is None and source.masks is None and not config.mask_overlays:
        return None
    keep = np.ones(frames.images.shape[:3], bool)
    if config.mask_overlays:
        keep &= ~detect_static_overlay(frames.images)
    if source.masks is not None:
        keep &= load_masks(source.masks, frames.names, frames.images.shape[1:3])
    if config.masks is not None:
        # Frames in between only help: they may lack a mask, those of the scene may not.
        bare = np.setdiff1d(unmasked(config.masks, frames.names), frames.chosen)
        if len(bare):
            report.note(f"masks: {len(bare)} frames between those of the scene have none and are matched as they are")
        masked = np.setdiff1d(np.arange(len(frames.names)), bare)
        keep[masked] &= load_masks(
            config.masks, [frames.names[i] for i in masked], frames.images.shape[1:3], cut=(source.whole, source.crop)
        )
    return keep


def _straightened(config: PreprocessConfig, footage: Footage, report: Reporter) -> Footage:
    """The footage without lens and shutter; where these are estimated, the sparse model made on the way goes with the frames."""
    source, frames, read = footage.source, footage.frames, footage.choice.read
    motion = ClipMotion(lambda position: read_image(source.frames[position]), source.totals)
    mapped = None
    if config.lens == "estimate":
        report.note("lens and shutter: mapping the frames as they are")
        camera, mapped = estimate_camera(
            frames.images[frames.chosen],
            lambda row: motion.of(footage.choice.scene[row]),
            seed=config.seed,
            report=report,
            keep=None if frames.keep is None else frames.keep[frames.chosen],
        )
        shown = Straightener(camera, motion).readout_text(source.fps) if camera.readout else "none to be seen"
        report.note(f"shutter: {shown}")
    else:
        camera = parse_camera(config.lens)
    straight = Straightener(camera, motion)
    keep = None if frames.keep is None else straight.masks(frames.keep, read)
    footage = replace(footage, straight=straight)
    pictures = np.stack([resized(footage.image(position), frames.size) for position in read])
    images = straight.all(frames.images, read)
    return replace(footage, frames=replace(frames, images=images, pictures=pictures, keep=keep, mapped=mapped))
