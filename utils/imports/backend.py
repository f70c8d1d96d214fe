"""The geometry backend for clips whose cameras or depth another program has found, or whose video model was given them.

Given poses are taken as they are, in their own units, once the frames' matches have told in which convention they were written; as priors
they stay where matches agree. Where the source has depth for every frame, that is used; else depth is measured along the poses. Where it
has depth alone, poses are estimated from matches, in the depth's unit.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.errors import ConfigError, GeometryError
from utils.geometry_backend import ClipFrames
from utils.imports.cameras import ImportedCameras, read_cameras
from utils.imports.conventions import Verdict, judge
from utils.imports.priors import hold_or_place
from utils.imports.sightings import Sightings, depth_ratio, find_sightings
from utils.reporting import number_ranges
from utils.scene.masks import apply_masks
from utils.sfm.backend import SfmGeometry
from utils.sfm.flow_depth import agreement
from utils.sfm.posed_depth import depth_along_poses
from utils.types import Array, CameraSet, Reporter, Scene

# Focal lengths may differ from their median by this factor; frames are brought to it.
_ZOOM = 1.6
# Aspects of frame and camera may differ by this share (rounding).
_SAME_ASPECT = 0.02
# Frames whose matches are looked at to tell the convention, and how far they are apart among the chosen ones.
_JUDGED, _GAPS, _PRIOR_GAPS = 24, (1, 3), (1, 2, 4, 8, 16)
# Below this share of agreeing matches cameras are doubted; a prior is dropped where fewer cameras stay than this share of the frames.
_DOUBTED, _LEAST_STAY = 0.6, 0.3
# Depth is brought to the unit of the poses, or of the other frames, where it is off by more than this factor.
_SAME_UNIT, _SAME_SCALE = 1.1, 1.03


@dataclass(frozen=True, kw_only=True)
class ImportGeometry:
    """Cameras or depth from files; see the module.

    Attributes:
        source: COLMAP model folder, transforms.json, npz or another file of cameras, or a folder that holds one.
        prior: the cameras need not hold.
        use_depth: take the source's depth where it has some.
        seed: makes mapping repeatable where poses are missing.
        provenance: for the manifest, filled by `estimate`: whether `depth` is `stored` or `measured` along the cameras, and what was told
            of the `cameras`.
    """

    source: Path | None = None
    prior: bool = False
    use_depth: bool = True
    seed: int = 0
    provenance: dict[str, str] = field(default_factory=dict, init=False)

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """The chosen frames that have a camera in the source.

        Raises:
            ConfigError: no source is given.
            InputError: cameras without names of another number of frames.
            GeometryError: fewer than two chosen frames have a camera.
        """
        if self.source is None:
            raise ConfigError("the backend 'import' needs to know where the cameras are", "give a COLMAP model or a transforms.json")
        cameras = read_cameras(self.source, (frames.images.shape[1], frames.images.shape[2]))
        total = frames.total or len(frames.images)
        if self.prior and not cameras.names and not cameras.numbers and len(cameras.c2w) > total:
            report.note(f"cameras: {len(cameras.c2w)} are given for {total} frames: the first {total} are taken for theirs")
            cameras = cameras.first(total)
        for note in cameras.notes:
            report.note(f"cameras: {note}")
        named = [f"{frames.folder}/{name}" for name in frames.names]
        rows = cameras.rows(named, frames.numbers, total, counted=frames.counted)
        kept = np.flatnonzero(rows[frames.chosen] >= 0)
        if len(kept) < 2:
            raise GeometryError(
                f"{len(kept)} of {len(frames.chosen)} chosen frames have a camera in {self.source}; its {len(cameras.c2w)} images are named"
                f" like {cameras.names[0] if cameras.names else 'nothing'}, the {total} frames like {frames.names[0]}",
                "use --frames_dir with the folder of images that the cameras were made from",
            )
        if len(kept) < len(frames.chosen):
            absent = [frames.names[i] for i in frames.chosen[rows[frames.chosen] < 0]]
            report.note(
                f"frames without a camera, which are left out: {len(absent)}, {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
            )
        if any(cameras.offset):
            self.provenance["world_offset"] = " ".join(repr(value) for value in cameras.offset)
        if not cameras.posed:
            return self._with_depth_alone(frames, cameras, rows, report)
        clip = self._heard(_straight(frames, cameras, rows, kept, self.prior, report), cameras, report)
        if clip is None:
            self.provenance["cameras"] = "estimated, since matches contradict the given ones"
            return SfmGeometry(seed=self.seed).estimate(frames, report)
        return self._scene(clip, frames, cameras, report)

    def _heard(self, clip: "_Clip", cameras: ImportedCameras, report: Reporter) -> "_Clip | None":
        """The clip with its cameras as the frames' matches speak for them; None if these speak against a prior."""
        verdict = judge(clip.sightings, clip.w2c, clip.K, focal_known=cameras.focal_known)
        clip = _in_convention(clip, verdict, cameras, report)
        if verdict.known and verdict.found < _DOUBTED and not self.prior:
            report.note(
                f"warning: only {verdict.found:.0%} of the frames' matches agree with the given cameras, in whatever convention: do these"
                " belong to these frames, in this order?"
            )
        if self.prior or verdict.convention.text != "as they were read":
            self.provenance["cameras"] = f"given, {verdict.convention.text}"
        return self._held(clip, report) if self.prior and verdict.known else clip

    def _held(self, clip: "_Clip", report: Reporter) -> "_Clip | None":
        """The clip with the cameras of a prior that matches agree with, and the other frames placed among them."""
        placed = hold_or_place(clip.sightings, clip.w2c, clip.K)
        stays, moved, open_ = (mask[clip.refs] for mask in (placed.stays, placed.moved, placed.unjudged))
        if stays.sum() < max(2, _LEAST_STAY * len(clip.refs)):
            report.note(
                f"cameras: matches agree with those given for only {stays.sum()} of {len(clip.refs)} frames: they are estimated from the"
                " frames instead"
            )
            return None
        report.note(f"cameras: matches agree with those given for {stays.sum()} of {len(clip.refs)} frames, and these stay")
        if moved.any():
            report.note(f"cameras: {moved.sum()} frames are placed anew by their matches: {number_ranges(np.flatnonzero(moved).tolist())}")
        if open_.any():
            report.note(f"cameras: {open_.sum()} stay as given, too few matches tell: {number_ranges(np.flatnonzero(open_).tolist())}")
        self.provenance["cameras"] += f"; {stays.sum()} stay, {moved.sum()} placed anew, {open_.sum()} unjudged"
        w2c = placed.w2c.copy()
        between = np.setdiff1d(np.flatnonzero(placed.unjudged), clip.refs)
        w2c[between] = np.nan  # they only help, and need not
        return replace(clip, w2c=w2c)

    def _scene(self, clip: "_Clip", frames: ClipFrames, cameras: ImportedCameras, report: Reporter) -> Scene:
        refs, K, w2c, size = clip.refs, clip.K, clip.w2c, frames.size
        chosen_rows = clip.rows[refs]
        stored = self.use_depth and all(cameras.depths[row] is not None for row in chosen_rows)
        self.provenance["depth"] = "stored" if stored else "measured"
        if stored:
            depth = np.stack([cameras.depth(int(row), size, K) for row in chosen_rows]) * _unit_of_depth(clip, cameras, report)
            confidence = 1.0 + np.clip(agreement(depth, w2c[refs], K), 0, None)
            report.note(f"cameras and depth of {len(refs)} frames imported")
        else:
            depth, confidence = depth_along_poses(clip.images, w2c, K, refs, report)
            report.note(f"cameras of {len(refs)} frames imported, depth measured along them")
        known = clip.shown[refs] & (depth > 0)
        depth, confidence = np.where(known, depth, 0).astype(np.float32), np.where(known, confidence, 1).astype(np.float32)
        placed = CameraSet(c2w=invert_rigid(w2c[refs]), K=np.repeat(K[None], len(refs), axis=0), size=size, frame_ids=clip.kept)
        scene = Scene(cameras=placed, images=clip.images[refs], depth=depth, confidence=confidence)
        return _with_depth(_masked(scene, frames, cameras, chosen_rows, refs, report), frames, report)

    def _with_depth_alone(self, frames: ClipFrames, cameras: ImportedCameras, rows: Array, report: Reporter) -> Scene:
        """Poses estimated from the frames, in the unit of the stored depth."""
        _require_shape(frames, cameras, rows)
        report.note("cameras: the source has depth but no poses: these are estimated from the frames' matches")
        mapped = SfmGeometry(seed=self.seed).estimate(frames, report)
        refs = frames.chosen[mapped.cameras.frame_ids]
        mapped, refs = mapped.select(np.flatnonzero(rows[refs] >= 0)), refs[rows[refs] >= 0]
        K, size = mapped.cameras.K, mapped.cameras.size
        depth = np.stack([cameras.as_seen_by(own, size).depth(int(row), size, own) for row, own in zip(rows[refs], K, strict=True)])
        sure = (depth > 0) & (mapped.confidence >= np.median(mapped.confidence))
        ratios = np.array([np.median((d / m)[s]) if s.any() else np.nan for d, m, s in zip(depth, mapped.depth, sure, strict=True)])
        unit = float(np.nanmedian(ratios))
        own = np.where(np.isfinite(ratios), unit / ratios, 1.0)
        if (off := np.abs(np.log(own)) > np.log(_SAME_SCALE)).any():
            scales = f"{1 / own.max():.2f} to {1 / own.min():.2f}"
            report.note(f"cameras: depth of {off.sum()} of {len(own)} frames has a scale of its own, {scales}: it is brought to one")
            depth = depth * np.where(off, own, 1.0)[:, None, None].astype(np.float32)
        c2w = mapped.cameras.c2w.copy()
        c2w[:, :3, 3] *= unit
        confidence = np.where(depth > 0, 1.0 + np.clip(agreement(depth, invert_rigid(c2w), K), 0, None), 1).astype(np.float32)
        self.provenance.update(depth="stored", cameras="estimated")
        report.note(f"depth of {len(refs)} frames imported, cameras estimated in its unit")
        scene = Scene(cameras=replace(mapped.cameras, c2w=c2w), images=mapped.images, depth=depth, confidence=confidence)
        return _with_depth(_masked(scene, frames, cameras, rows[refs], refs, report), frames, report)


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """Frames as a pinhole K (3, 3) sees them, with the cameras given for them.

    Attributes:
        images: (T, H, W, 3) uint8, straightened.
        shown: (T, H, W) bool, where they show anything.
        w2c: (T, 4, 4), NaN without a camera.
        K: of all.
        rows: (T,) of the source, -1 for none.
        kept: (R,) rows of the chosen frames that have a camera.
        refs: (R,) and their positions.
        sightings: matches between frames.
    """

    images: Array
    shown: Array
    w2c: Array
    K: Array
    rows: Array
    kept: Array
    refs: Array
    sightings: Sightings


def _straight(frames: ClipFrames, cameras: ImportedCameras, rows: Array, kept: Array, everything: bool, report: Reporter) -> _Clip:
    """The frames without their lens, with their cameras as read, and their matches: of everything that has a camera, or of some."""
    size = frames.size
    posed = np.flatnonzero(rows >= 0)
    _require_shape(frames, cameras, rows)
    K = _shared(np.stack([cameras.intrinsics(int(row), size) for row in rows[posed]]), report)
    images = np.zeros((len(frames.images), *size, 3), np.uint8)
    shown = np.zeros((len(frames.images), *size), bool)
    w2c = np.full((len(frames.images), 4, 4), np.nan)
    for position in posed:
        images[position], shown[position] = cameras.undistorted(int(rows[position]), frames.picture(int(position)), K)
        w2c[position] = invert_rigid(cameras.c2w[rows[position]])
    refs = frames.chosen[kept]
    pairs = _neighbours(refs, np.setdiff1d(posed, refs) if everything else posed[:0], _PRIOR_GAPS if everything else _GAPS)
    sightings = find_sightings([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images], pairs)
    return _Clip(images=images, shown=shown, w2c=w2c, K=K, rows=rows, kept=kept, refs=refs, sightings=sightings)


def _neighbours(refs: Array, between: Array, gaps: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs of frames that are matched: chosen ones with the next ones, some of them if only these count, and others with those around."""
    starts = len(refs) if gaps == _PRIOR_GAPS else min(len(refs), _JUDGED)
    some = np.unique(np.linspace(0, len(refs) - 1, starts).astype(int))
    pairs = [(int(refs[i]), int(refs[i + gap])) for gap in gaps for i in some if i + gap < len(refs)]
    for frame in between.tolist():
        after = int(np.searchsorted(refs, frame))
        pairs += [(int(refs[i]), frame) for i in (after - 1, after) if 0 <= i < len(refs)]
    return pairs


def _in_convention(clip: _Clip, verdict: Verdict, cameras: ImportedCameras, report: Reporter) -> _Clip:
    """The clip with poses and focal length as the matches speak for; what that changes is said."""
    if not verdict.known:
        if not cameras.focal_known:
            report.note("cameras: no focal length is given, and too few matches tell it: 0.9 of the longest side is taken")
        return clip
    w2c, K = clip.w2c, clip.K.copy()
    if (text := verdict.convention.text) != "as they were read":
        report.note(
            f"cameras: {verdict.given:.0%} of the frames' matches agree with the poses as they were read, {verdict.found:.0%} where {text}:"
            " they are taken so"
        )
        w2c = np.where(np.isfinite(w2c), verdict.convention.applied(w2c), np.nan)
    if (verdict.focal != 1.0 or not cameras.focal_known) and all(lens.plain for lens in cameras.lenses):
        K[[0, 1], [0, 1]] *= verdict.focal
        share = K[0, 0] / max(clip.images.shape[1:3])
        told = f"the focal length is {verdict.focal:.2f} times the one given" if cameras.focal_known else "no focal length is given"
        report.note(f"cameras: {told}; by what the frames' matches say, {share:.2f} of the longest side is taken")
    return replace(clip, w2c=w2c, K=K)


def _unit_of_depth(clip: _Clip, cameras: ImportedCameras, report: Reporter) -> np.float32:
    """What brings stored depth to the unit of the poses: 1 unless the points that matches give along the poses lie elsewhere."""
    stored = {int(ref): cameras.depth(int(clip.rows[ref]), clip.images.shape[1:3], clip.K) for ref in clip.refs}
    ratio = depth_ratio(clip.sightings, clip.w2c, clip.K, stored)
    if ratio is None or abs(np.log(ratio)) < np.log(_SAME_UNIT):
        return np.float32(1)
    report.note(f"cameras: stored depth is in another unit than the poses: it is multiplied by {ratio:.4g}, by what matches say")
    return np.float32(ratio)


def _with_depth(scene: Scene, frames: ClipFrames, report: Reporter) -> Scene:
    """The scene without frames that have no depth at all.

    Raises:
        GeometryError: fewer than two have.
    """
    there = (scene.depth > 0).any(axis=(1, 2))
    if there.all():
        return scene
    if there.sum() < 2:
        raise GeometryError(f"{there.sum()} of {len(scene)} frames have depth, at least 2 are needed", "give depth of more frames, or none")
    names = [frames.names[i] for i in frames.chosen[scene.cameras.frame_ids[~there]]]
    report.note(f"frames without depth, which are left out: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    return scene.select(np.flatnonzero(there))


def _masked(scene: Scene, frames: ClipFrames, cameras: ImportedCameras, rows: Array, refs: Array, report: Reporter) -> Scene:
    """The scene without what the source's own masks take out.

    Raises:
        InputError: a mask that is missing, does not fit, or leaves nothing.
    """
    size = scene.cameras.size
    masks = [cameras.keep(int(row), size, K) for row, K in zip(rows, scene.cameras.K, strict=True)]
    if all(mask is None for mask in masks):
        return scene
    keep = np.stack([np.ones(size, bool) if mask is None else mask for mask in masks])
    report.note(f"masks of the data set: {1 - keep.mean():.1%} of the frames is left out")
    return apply_masks(scene, keep, [frames.names[i] for i in refs])


def _require_shape(frames: ClipFrames, cameras: ImportedCameras, rows: Array) -> None:
    """The frames have the aspect of the images that the cameras were made for.

    Raises:
        GeometryError: they do not.
    """
    h, w = frames.images.shape[1:3]
    for position in np.flatnonzero(rows >= 0):
        height, width = cameras.sizes[rows[position]]
        if abs(np.log(w * height / (h * width))) > _SAME_ASPECT:
            turned = abs(np.log(w * width / (h * height))) <= _SAME_ASPECT
            raise GeometryError(
                f"{frames.names[position]} has the aspect {w}x{h}, but its camera is that of a picture of {width}x{height}",
                "the file is turned by its EXIF: save the frames as the cameras saw them, without EXIF"
                if turned
                else "use the very images that the cameras were made from, neither cut nor stretched",
            )


def _shared(K: Array, report: Reporter) -> Array:
    """The one K of all frames: their median. Frames of another one are brought to it as they are straightened.

    Raises:
        GeometryError: focal lengths differ by more than a lens and its focusing make them.
    """
    middle = np.median(K, axis=0)
    off = K[:, [0, 1], [0, 1]] / middle[[0, 1], [0, 1]]
    if off.max() > _ZOOM or off.min() < 1 / _ZOOM:
        raise GeometryError(
            f"the imported cameras differ in their intrinsics: focal lengths are {off.min():.2f} to {off.max():.2f} times the middle one",
            "leave out the frames that were zoomed, or import them as a scene of their own",
        )
    if np.abs(K - middle).max() > 0.5:
        report.note(f"cameras: focal lengths vary by {100 * (off.max() - off.min()):.1f} %; all frames are brought to the middle one")
    return middle
