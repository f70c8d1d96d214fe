"""Camera poses and sparse points of a clip by global structure from motion (pycolmap; SIFT on the CPU, XFeat beside it if wanted).

One camera of unknown focal length is shared by all frames, or each has its own if the clip zooms. Further frames are registered by
tracking the sparse points into them (PnP).
COLMAP's pixel centres are at +0.5, as ours.
"""

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeGuard
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import pycolmap

from utils.cameras.resection import resect
from utils.errors import GeometryError
from utils.geometry_backend import SparseModel
from utils.matching.retrieval import frame_vectors, pairs_of_clips
from utils.reporting import number_ranges
from utils.runtime import cpu_count, in_threads
from utils.sfm.flow_depth import frame_threads
from utils.sfm.flow_tracks import add_flow_tracks, sample_field
from utils.sfm.global_mapping import map_globally
from utils.sfm.learned_matches import add_learned_matches, learned_features
from utils.sfm.matches_agreement import agreement
from utils.sfm.matches_database import frame_ids, with_own_cameras
from utils.sfm.path_breaks import is_broken, path_breaks, turn_breaks, worst_break
from utils.sfm.solvers.dense_bundle_adjustment import Bundle, FocalPrior, Matches, Zoom, adjust, residuals
from utils.sfm.zoom_mapping import STEADY_ZOOMS, map_zooming, steady_zoom
from utils.types import Array, Reporter

# Between a fish-eye's and a long telephoto's; a focal length outside means that mapping went wrong.
FOCAL_RANGE = (0.3, 3.0)
# Field of view of 58 degrees along the longest side: the middle of what cameras and video models show.
FOCAL_PRIOR = 0.9
MIN_REGISTERED = 8

Features = Literal["sift", "xfeat"]

# Importing pycolmap installs a handler that answers the polite request to end (SIGTERM) with a stack trace; Python's own comes back.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

# Up to here all pairs are matched: 48 frames are 1128 pairs, about 10 s on two cores.
MAX_EXHAUSTIVE_FRAMES = 48


class UnmatchedError(GeometryError):
    """Frames that move and show texture, but do not match each other well enough."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences COLMAP's log, which goes to stderr for every step otherwise."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def map_frames(
    images: Array,
    *,
    seed: int,
    report: Reporter,
    keep: Array | None = None,
    features: Features = "sift",
    clips: Array | None = None,
) -> SparseModel:
    """Poses, focal length and sparse points from images of one moving camera.

    Global mapping first estimates the focal length from a prior of `FOCAL_PRIOR` times the longest side. If it registers too
    little, it is repeated with the focal length held at the prior; if it ends at an implausible one, with several of that side, of
    which the one is taken that most matches agree with. Where the focal length seems to change, every frame gets its own; see `_map_zoom`.

    Args:
        images: (F, h, w, 3) uint8, square pixels, in the order of the clip.
        seed: makes RANSAC and the solver repeatable.
        report: told which frames are missing and whether the focal length was fixed.
        keep: (F, h, w) bool, where features may lie; None: everywhere.
        features: `xfeat` adds learned matches to those of SIFT, which need their weights.
        clips: (F,) clip of each frame; None: all are of one.

    Raises:
        MissingDependencyError: the weights are not installed.
        GeometryError: fewer than two frames, or too few could be registered; says why as far as that can be seen.
    """
    if len(images) < 2:
        raise GeometryError("one frame shows no parallax", "use a clip or folder with at least two different views")
    needed = min(MIN_REGISTERED, len(images))
    with tempfile.TemporaryDirectory(prefix="v2w_sfm_") as folder, _quiet():
        with ThreadPoolExecutor(1) as beside:
            learned = beside.submit(learned_features, images, keep) if features == "xfeat" else None
            by_place = several(clips) and len(images) > MAX_EXHAUSTIVE_FRAMES
            vectors = frame_vectors([own.descriptors.cpu().numpy() for own in learned.result()]) if by_place and learned else None
            database = _match(images, Path(folder), seed, keep, clips, vectors)
            if learned is not None:
                pairs = pairs_of_clips(vectors, clips) if vectors is not None and clips is not None else None
                helped = add_learned_matches(database, learned.result(), seed=seed, pairs=pairs)
                report.note(f"poses: {helped} more pairs of frames are held together by learned matches (XFeat)")
        model = _map(database, seed)
        if model is None or len(model.frames) < needed or not _plausible(model, images):
            model = _map_with_given_focal(model, database, images, seed, needed, clips, report)
        model = _map_zoom(model, database, images, seed, needed, clips, report)
        if model is not None and len(model.frames) >= needed and is_broken(_breaks(model, clips, database)):
            model = _map_broken(model, database, images, seed, keep, clips, report)
    if model is None or len(model.frames) < needed:
        raise _explain(images, 0 if model is None else len(model.frames))
    missing = sorted(set(range(len(images))) - set(model.frames.tolist()))
    if missing:
        report.note(f"poses: {len(missing)} of {len(images)} frames could not be registered: {number_ranges(missing)}")
    return model


# Features keep this far, as a share of the longest side, from what is masked: their descriptors look at what surrounds them.
_MASK_MARGIN = 0.01


def several(clips: Array | None) -> bool:
    """Whether frames of more than one clip are meant."""
    return clips is not None and len(np.unique(clips)) > 1


def _match(
    images: Array, folder: Path, seed: int, keep: Array | None = None, clips: Array | None = None, vectors: Array | None = None
) -> Path:
    """The feature database of the images, matched and geometrically verified.

    Args:
        images: (F, h, w, 3) uint8.
        folder: of the database.
        seed: of RANSAC.
        keep: (F, h, w) bool, where features may lie; None: everywhere.
        clips: (F,) clip of each frame; None: all are of one.
        vectors: (F, C) of the frames by what they show, for many frames of several clips; None: made of SIFT's features.
    """
    pictures, database = folder / "images", folder / "database.db"
    pictures.mkdir()
    names = [str(pictures / f"{index:06d}.png") for index in range(len(images))]
    in_threads(lambda name, image: cv2.imwrite(name, image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 0]), names, images)
    height, width = images.shape[1:3]
    pycolmap.set_random_seed(seed)
    reader = pycolmap.ImageReaderOptions()
    if keep is not None:
        reader.mask_path = _write_masks(keep, folder / "masks")
    reader.camera_model = "SIMPLE_PINHOLE"
    reader.camera_params = f"{FOCAL_PRIOR * max(height, width)},{width / 2},{height / 2}"
    cpu = pycolmap.Device.cpu
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    extraction.num_threads = matching.num_threads = cpu_count()
    # Images are numbered before their features are found, or they would be in the order in which threads end. What is found in
    # an image or a pair is the same on any thread, since RANSAC is seeded for each pair.
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, pictures, camera_mode=pycolmap.CameraMode.SINGLE, options=reader)
    pycolmap.extract_features(
        database,
        pictures,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=cpu,
    )
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = seed
    if len(images) <= MAX_EXHAUSTIVE_FRAMES:
        pycolmap.match_exhaustive(database, matching_options=matching, verification_options=verification, device=cpu)
    else:
        pairs = folder / "pairs.txt"
        pairs.write_text("".join(f"{a:06d}.png {b:06d}.png\n" for a, b in _pairs(database, len(images), clips, vectors)))
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = pairs
        pycolmap.match_image_pairs(
            database, matching_options=matching, pairing_options=pairing, verification_options=verification, device=cpu
        )
    return database


def _pairs(database: Path, count: int, clips: Array | None, vectors: Array | None) -> list[tuple[int, int]]:
    """Pairs of many frames that are matched, see `_match`."""
    if clips is None or not several(clips):
        return sparse_pairs(count)
    if vectors is None:
        with pycolmap.Database.open(database) as stored:
            found = [stored.read_descriptors(image).data / np.float32(512) for image in frame_ids(stored, count)]  # of unit length
        vectors = frame_vectors(found)
    return pairs_of_clips(vectors, clips)


def _write_masks(keep: Array, folder: Path) -> Path:
    """Masks as COLMAP reads them: `<image name>.png`, black where no feature may lie."""
    folder.mkdir()
    reach = 1 + round(_MASK_MARGIN * max(keep.shape[1:]))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    for index, mask in enumerate(keep):
        cv2.imwrite(str(folder / f"{index:06d}.png.png"), cv2.erode(mask.astype(np.uint8), kernel) * 255)
    return folder


def sparse_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs for long clips: every gap up to 6, then gaps growing by a half, and all pairs of every 8th frame for loops."""
    gaps, gap = list(range(1, 7)), 9.0
    while gap < count:
        gaps.append(int(gap))
        gap *= 1.5
    pairs = {(a, a + gap) for gap in gaps for a in range(0, count - gap, 1 if gap < 12 else 2)}
    anchors = range(0, count, max(8, count // 24))
    pairs |= {(a, b) for a in anchors for b in anchors if a < b}
    return sorted(pairs)


def _map(database: Path, seed: int, focal: float | None = None) -> SparseModel | None:
    """The largest model of global mapping, `None` if there is none; with this focal length (pixels) held, or a free one."""
    with _copy_of(database, focal) as copy:
        model = map_globally(copy, database.with_name("images"), seed, fixed_focal=focal is not None)
        return None if model is None else supported(model)


@contextmanager
def _copy_of(database: Path, focal: float | None) -> Iterator[Path]:
    """A copy of a database in a folder of its own, with this focal length (pixels) if one is given; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="v2w_sfm_") as folder:
        copy = Path(folder) / "database.db"
        shutil.copy(database, copy)
        if focal is not None:
            with pycolmap.Database.open(copy) as stored:
                camera = stored.read_all_cameras()[0]
                camera.params = np.r_[focal, camera.params[1:]]
                stored.update_camera(camera)
        yield copy


# What log focal lengths change from the first to the last frame, a standard deviation: of a zoom, and of several clips with one for each.
_ZOOM_SIGMA, _CLIP_SIGMA = 1.0, 0.02
# A zoom is looked for where focal lengths of the frames' own fit the points of a model with a shared one with less than this share of its
# median error: 0.70 to 0.91 of four dolly zooms, 0.96 to 1.00 of seven clips without.
_ZOOM_SUSPECTED = 0.94
# And it is taken for one if at most this share of the matches that disagree with a shared focal length is left: 0.09 to 0.77 of three dolly
# zooms; 0.92 where a clip without was given focal lengths of its own.
_ZOOM_DISAGREES = 0.85


def zoom_of(model: SparseModel, clips: Array | None) -> Zoom | None:
    """The prior of the model's focal lengths, for frames of these clips (R,), None: all are of one; None if they share one."""
    return Zoom(model.zoom_sigma, clips) if model.zoom_sigma else None


def _map_zoom(
    shared: SparseModel | None, database: Path, images: Array, seed: int, needed: int, clips: Array | None, report: Reporter
) -> SparseModel | None:
    """The model, or one with a focal length for every frame, if that agrees with more of the matches.

    With a shared focal length the depth of a dolly zoom is bent so that it can be kept, and many true matches are left out as outliers.
    """
    size, agreed, trend = images.shape[1:3], 0.0, 0.0
    if shared is not None and len(shared.frames) >= needed:
        settled, freed = _settled_both(shared, size, clips)
        if freed.after_px > _ZOOM_SUSPECTED * settled.after_px:
            _settled_already[shared] = settled
            return shared
        agreed, needed = agreement(adjusted(by_point(shared), settled), database), max(needed, int(0.9 * len(shared.frames)))
        trend = np.polyfit(shared.frames, np.log(freed.K[:, 0, 0]), 1)[0]
    best, text, needed_agreement = shared, "", 1 - _ZOOM_DISAGREES * (1 - agreed)
    for model in _with_own_focals(database, images, seed, needed, clips, trend):
        settled, freed = _settled_both(model, size, clips)
        sigma = _ZOOM_SIGMA
        if several(clips):
            by_clip = _settled(model, size, Zoom(_CLIP_SIGMA, _clips_of(model, clips)))
            if freed.after_px > _ZOOM_SUSPECTED * by_clip.after_px:
                sigma, freed = _CLIP_SIGMA, by_clip
        own = replace(model, zoom_sigma=sigma)
        zoomed = adjusted(own, freed)
        if settled.objective > freed.objective and _plausible(zoomed, images) and agreement(zoomed, database) > needed_agreement:
            best, text, needed_agreement = own, focal_text(zoomed, size), agreement(zoomed, database)
    if text:
        report.note(f"poses: the focal length changes, every frame has its own: {text} x longest side")
    return best


def _with_own_focals(database: Path, images: Array, seed: int, needed: int, clips: Array | None, trend: float) -> Iterator[SparseModel]:
    """Models `by_point` of so many frames with a focal length for each: of several clips COLMAP's, of one those of steady zooms.

    Of the steady zooms in the sense of `trend` (any if 0) that which suits the matches best is taken, and mapped once more with what
    adjustment makes of its focal lengths.
    """
    if several(clips):
        with tempfile.TemporaryDirectory(prefix="v2w_sfm_") as folder:
            copy = Path(folder) / "database.db"
            with_own_cameras(database, database.with_name("images"), copy)
            reconstruction = _reconstruct(copy, database.with_name("images"), seed)
            if reconstruction is not None and len((model := supported(_to_model(reconstruction))).frames) >= needed:
                yield by_point(model)
        return
    count, ends = len(images), [end for end in STEADY_ZOOMS if trend * np.log(end) >= 0]
    with ThreadPoolExecutor(min(len(ends), cpu_count())) as pool:
        tried = list(pool.map(lambda end: map_zooming(database, steady_zoom(end, count), seed), ends))
    whole = [by_point(model) for model in map(_supported, tried) if model is not None and len(model.frames) >= needed]
    if not whole:
        return
    steady = max(whole, key=lambda model: agreement(model, database))
    yield steady
    logs = np.log(_settled(steady, images.shape[1:3], Zoom(_ZOOM_SIGMA)).K[:, 0, 0])
    again = _supported(map_zooming(database, np.exp(np.interp(np.arange(count), steady.frames, logs - logs.mean())), seed))
    if again is not None and len(again.frames) >= needed:
        yield by_point(again)


def _supported(model: SparseModel | None) -> SparseModel | None:
    return None if model is None else supported(model)


def _settled_both(model: SparseModel, size: tuple[int, int], clips: Array | None) -> tuple[Bundle, Bundle]:
    """The model adjusted with one focal length, and with one for every frame."""
    model = by_point(model)
    held = None if np.ptp(model.K[:, 0, 0]) else _held(model, size, zooms=False)
    return _settled(model, size, None, held), _settled(model, size, Zoom(_ZOOM_SIGMA, _clips_of(model, clips)), held)


def _clips_of(model: SparseModel, clips: Array | None) -> Array | None:
    """(R,) clip of each of the model's frames, of those of all images (F,)."""
    return None if clips is None else clips[model.frames]


# Focal lengths in longest sides that are held where the free one is implausibly short, or long.
_GIVEN_FOCALS_SHORT, _GIVEN_FOCALS_LONG = (FOCAL_PRIOR, 0.55, 0.4), (FOCAL_PRIOR, 1.5)


def _map_with_given_focal(
    free: SparseModel | None, database: Path, images: Array, seed: int, needed: int, clips: Array | None, report: Reporter
) -> SparseModel | None:
    """Global mapping with a given focal length: the prior's, or, if the free one was implausible, the one that suits the matches best."""
    longest = max(images.shape[1:3])
    focals: tuple[float, ...] = (FOCAL_PRIOR,)
    if free is not None and len(free.frames) >= needed:
        focals = _GIVEN_FOCALS_SHORT if free.focal < FOCAL_PRIOR * longest else _GIVEN_FOCALS_LONG
    report.note("poses: mapping with a free focal length failed, trying again with a fixed one")
    with ThreadPoolExecutor(min(len(focals), cpu_count())) as pool:
        models = list(pool.map(lambda focal: _map(database, seed, focal * longest), focals))
    whole = [model for model in models if model is not None and len(model.frames) >= needed]
    if len(whole) < 2:
        return whole[0] if whole else models[0]
    return min(whole, key=lambda model: _badness(model, clips, database))


def _badness(model: SparseModel, clips: Array | None, database: Path) -> tuple[float, int, float]:
    """What of several models of a clip the smallest is taken of: how badly the path breaks, frames missing, matches that disagree."""
    return float(_breaks(model, clips, database).sum()), -len(model.frames), -agreement(model, database)


# A step is confirmed by matches that turn the camera by the same, to so many degrees or this share of the turn.
_CONFIRMED_DEG, _CONFIRMED_SHARE = 4.0, 0.35
# Focal lengths that are tried where the path still breaks, times the one found: an orbit closes with the right one only.
_OTHER_FOCALS = (1.2, 1.4, 0.85)


def _map_broken(
    model: SparseModel, database: Path, images: Array, seed: int, keep: Array | None, clips: Array | None, report: Reporter
) -> SparseModel:
    """The model whose path breaks least: global mapping's, or one of those that add frame after frame, with points followed by flow.

    Global mapping places all cameras at once, and where few tracks lead from one part of a clip to the next it leaves their relative scale
    and place open. Adding frames one after another keeps the scale. Where an orbit does not close with the focal length that fits the
    single steps best, the gap ends in one step; another focal length closes it.
    """
    report.note(f"poses: the path breaks {worst_break(model, _breaks(model, clips, database))}, mapping again frame after frame")
    add_flow_tracks(database, images, seed=seed, keep=keep)

    def usable(candidate: SparseModel | None) -> TypeGuard[SparseModel]:
        return candidate is not None and _plausible(candidate, images) and len(candidate.frames) >= 0.9 * len(model.frames)

    free = _map_incrementally(database, seed, None)
    candidates = [model] + ([free] if usable(free) else [])
    if not _breaks(candidates[-1], clips, database).any():
        return candidates[-1]
    focal = model.focal if free is None or not _plausible(free, images) else free.focal
    with ThreadPoolExecutor(min(len(_OTHER_FOCALS), cpu_count())) as pool:
        others = pool.map(lambda factor: _map_incrementally(database, seed, factor * focal), _OTHER_FOCALS)
        candidates += [other for other in others if usable(other)]
    best = min(candidates, key=lambda candidate: _badness(candidate, clips, database))
    if not _breaks(best, clips, database).any():
        return best
    report.note(
        f"warning: poses still jump {worst_break(best, _breaks(best, clips, database))}: few matches join the parts before and after"
    )
    return best


def _breaks(model: SparseModel, clips: Array | None, database: Path) -> Array:
    """`path_breaks` without the turns that the two frames' own matches confirm: there the camera did turn so far.

    Of a step that is too long but turns no more than those around it matches say nothing: they know no scale.
    """
    breaks = path_breaks(model, clips)
    turned = (breaks > 0) & (turn_breaks(model, clips) > 0)
    if turned.any():
        with pycolmap.Database.open(database) as stored:
            ids = frame_ids(stored, int(model.frames[-1]) + 1)
            for step in np.flatnonzero(turned).tolist():
                if _confirmed(stored, [ids[frame] for frame in model.frames[step : step + 2]], model, step):
                    breaks[step] = 0
    return breaks


def _confirmed(stored: "pycolmap.Database", pair: list[int], model: SparseModel, step: int) -> bool:
    """Whether the rotation of a pair of images (ids), second from first, by its own matches is about that of the model's step."""
    if not stored.exists_two_view_geometry(*pair):
        return False
    geometry, cameras = stored.read_two_view_geometry(*pair), [stored.read_all_cameras()[0] for _ in pair]
    for camera, K in zip(cameras, model.K[step : step + 2], strict=True):
        camera.params = np.r_[K[0, 0], camera.params[1:]]
    first, second = (stored.read_keypoints(image)[:, :2].astype(np.float64) for image in pair)
    if not pycolmap.estimate_two_view_geometry_pose(cameras[0], first, cameras[1], second, geometry):
        return False
    assert geometry.cam2_from_cam1 is not None
    turned = model.w2c[step + 1, :3, :3] @ model.w2c[step, :3, :3].T
    difference = np.linalg.norm(cv2.Rodrigues(turned @ geometry.cam2_from_cam1.rotation.matrix().T)[0])
    return bool(np.degrees(difference) < max(_CONFIRMED_DEG, _CONFIRMED_SHARE * np.degrees(np.linalg.norm(cv2.Rodrigues(turned)[0]))))


def _map_incrementally(database: Path, seed: int, focal: float | None) -> SparseModel | None:
    """The largest model of incremental mapping, `None` if there is none; with this focal length (pixels) held, or a free one."""
    with _copy_of(database, focal) as copy:
        options = pycolmap.IncrementalPipelineOptions()
        options.random_seed, options.num_threads = seed, 1  # one thread: sums in the order in which threads end are not repeatable
        options.min_model_size = 3
        options.mapper.abs_pose_min_num_inliers, options.mapper.abs_pose_min_inlier_ratio = _LEAST_RESECTED
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = focal is None
        # Adjusted less often and less far than usual, a fifth to a half of the time: `settle_focal` adjusts what comes of it.
        options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
        options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
        options.ba_global_max_num_iterations, options.ba_local_max_num_iterations = 25, 15
        models = pycolmap.incremental_mapping(copy, database.with_name("images"), copy.parent, options)
        if not models:
            return None
        return supported(_to_model(max(models.values(), key=lambda model: model.num_reg_images())))


# Points by which incremental mapping places a frame: least number and share that agree.
_LEAST_RESECTED = (15, 0.15)
# Points that a frame must see: with fewer its pose, six numbers, rests on chance.
_LEAST_SEEN = 10


def supported(model: SparseModel) -> SparseModel:
    """The model without frames that mapping has placed by next to no points."""
    return _only(model, np.bincount(model.seen_by, minlength=len(model.frames)) >= _LEAST_SEEN)


# A clip of which a smaller share of the frames can be placed shows another place: those few lie there by chance.
_LEAST_OF_CLIP = 0.3


def of_one_place(model: SparseModel, clips: Array | None, names: Sequence[str], report: Reporter) -> SparseModel:
    """The model without clips that show another place than the others.

    Args:
        model: of all frames.
        clips: (F,) clip of each of the frames it was made from; None: all are of one.
        names: (F,) of the frames.
        report: told which clips are left out.
    """
    if clips is None or not several(clips):
        return model
    placed = {clip: float(np.isin(np.flatnonzero(clips == clip), model.frames).mean()) for clip in np.unique(clips)}
    other = [clip for clip, share in placed.items() if share < _LEAST_OF_CLIP]
    if len(other) in (0, len(placed)):
        return model
    for clip in other:
        first = names[int(np.flatnonzero(clips == clip)[0])]
        report.note(f"warning: clip {clip + 1} (from {first}) shows nothing of the place of the others and is left out")
    keep = ~np.isin(clips[model.frames], other)
    return model if keep.all() else _only(model, keep)


def restricted(model: SparseModel, images: Array, chosen: Array) -> SparseModel:
    """The model of the chosen ones (N,) of its images (T, h, w, 3), renumbered; points that only others see stay.

    Raises:
        GeometryError: too few of them are registered.
    """
    model = _only(model, np.isin(model.frames, chosen))
    if len(model.frames) < min(MIN_REGISTERED, len(chosen)):
        raise _explain(images[chosen], len(model.frames))
    return replace(model, frames=np.searchsorted(chosen, model.frames))


def _only(model: SparseModel, keep: Array) -> SparseModel:
    """The model with these of its frames (R,) bool."""
    mine = keep[model.seen_by]
    return replace(
        model,
        frames=model.frames[keep],
        w2c=model.w2c[keep],
        K=model.K[keep],
        seen_by=(np.cumsum(keep) - 1)[model.seen_by[mine]],
        seen_point=model.seen_point[mine],
        seen_at=model.seen_at[mine],
    )


def map_distorted(images: Array, *, seed: int, keep: Array | None = None) -> SparseModel:
    """Sparse model of frames (F, h, w, 3) whose lens and shutter are still unknown, mapped as if there were none.

    Points are taken from where `keep` (F, h, w) holds.

    With a lens among the unknowns mapping itself was seen to fail.

    Raises:
        GeometryError: too few frames could be placed.
    """
    with tempfile.TemporaryDirectory(prefix="v2w_lens_") as folder, _quiet():
        model = _map(_match(images, Path(folder), seed, keep), seed)
    if model is None or len(model.frames) < min(MIN_REGISTERED, len(images)):
        raise GeometryError("too few frames could be placed to estimate the lens", "give it as FOCAL,K or leave it at none")
    return model


def _reconstruct(database: Path, pictures: Path, seed: int) -> "pycolmap.Reconstruction | None":
    """The largest reconstruction of COLMAP's own global mapping, whose images may have cameras of their own; writes beside the database."""
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = seed
    # One thread: the solver's sums run in the order in which threads end, and contradictory frames make much of a rounding error
    # (focal length of one clip 0.69 to 0.75 of the longest side from run to run).
    options.num_threads = options.mapper.num_threads = 1
    options.mapper.bundle_adjustment.ceres.solver_options.num_threads = 1
    options.mapper.random_seed = seed
    options.mapper.rotation_averaging.random_seed = seed
    options.mapper.global_positioning.random_seed = seed
    options.mapper.global_positioning.use_gpu = False
    options.mapper.bundle_adjustment.ceres.use_gpu = False
    models = pycolmap.global_mapping(database, pictures, database.parent, options)
    if not models:
        return None
    return max(models.values(), key=lambda model: model.num_reg_images())


def _to_model(reconstruction: "pycolmap.Reconstruction") -> SparseModel:
    row_of_point = {identity: row for row, identity in enumerate(sorted(reconstruction.points3D))}
    images = sorted((reconstruction.images[i] for i in reconstruction.reg_image_ids()), key=lambda image: image.name)
    w2c = np.tile(np.eye(4), (len(images), 1, 1))
    seen_by, seen_point, seen_at = [], [], []
    for row, image in enumerate(images):
        w2c[row, :3] = image.cam_from_world().matrix()
        for observation in image.points2D:
            if observation.has_point3D():
                seen_by.append(row)
                seen_point.append(row_of_point[observation.point3D_id])
                seen_at.append(observation.xy)
    return SparseModel(
        frames=np.array([int(Path(image.name).stem) for image in images], np.int64),
        w2c=w2c,
        K=np.stack([reconstruction.cameras[image.camera_id].calibration_matrix() for image in images]),
        points=np.array([reconstruction.points3D[identity].xyz for identity in row_of_point]).reshape(-1, 3),
        seen_by=np.array(seen_by, np.int64),
        seen_point=np.array(seen_point, np.int64),
        seen_at=np.array(seen_at, np.float64).reshape(-1, 2),
        error_px=float(reconstruction.compute_mean_reprojection_error()),
    )


def _plausible(model: SparseModel, images: Array) -> bool:
    low, high = (factor * max(images.shape[1:3]) for factor in FOCAL_RANGE)
    return bool((low <= model.K[:, 0, 0]).all() and (model.K[:, 0, 0] <= high).all())


def _explain(images: Array, registered: int) -> GeometryError:
    """Why poses could not be found, as far as motion and texture between the first, middle and last frame tell."""
    grays = [cv2.cvtColor(images[i], cv2.COLOR_RGB2GRAY) for i in (0, len(images) // 2, len(images) - 1)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    moved = max(float(np.percentile(np.abs(flow.calc(grays[0], other, None)), 90)) for other in grays[1:])
    texture = float(np.median([np.abs(cv2.Laplacian(gray, cv2.CV_32F)).mean() for gray in grays]))
    if moved < 1.0:
        return GeometryError(
            "the camera does not move, so nothing tells how far things are",
            "use a clip in which the camera moves sideways, forwards or around the scene",
        )
    if texture < 1.0:
        return GeometryError("the frames hold too little texture to be matched", "use a sharper clip that shows more detail")
    return UnmatchedError(
        f"poses were found for only {registered} of {len(images)} frames: too little parallax (a camera that only turns"
        " or zooms), or neighbouring frames that differ too much",
        "use a clip in which the camera moves through a static scene, raise --max_frames, or choose another --backend",
    )


# Points that must be seen from directions this far apart (degrees): with fewer, positions are noise and depth has no scale.
# Of pictures of 196 px, a camera that turns leaves up to 35, one that moves at least 47.
_MIN_WIDE_POINTS, _WIDE_DEG = 40, 0.5


def check_parallax(model: SparseModel) -> None:
    """Refuses what mapping makes of a camera that only turns or zooms: poses that fit, with depth from noise, or a wall moved away from.

    Raises:
        GeometryError: too few points are seen from different directions, or a zoom alone explains where they are seen.
    """
    if _zoom_explains(model):
        raise GeometryError(
            "the camera zooms, but hardly changes its place, so nothing tells how far things are",
            "use a clip in which the camera moves sideways, forwards or around the scene",
        )
    centers = np.linalg.inv(model.w2c)[:, :3, 3]
    rays = model.points[model.seen_point] - centers[model.seen_by]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    # The widest of all pairs is within a factor of two of the widest from any one of the rays.
    first = np.full(len(model.points), -1)
    first[model.seen_point[::-1]] = np.arange(len(rays))[::-1]
    angle = np.degrees(np.arccos(np.clip((rays * rays[first[model.seen_point]]).sum(1), -1, 1)))
    wide = len(np.unique(model.seen_point[angle > _WIDE_DEG]))
    if wide < _MIN_WIDE_POINTS:
        raise GeometryError(
            f"only {wide} points are seen from different directions: the camera turns or zooms, but hardly changes its place",
            "use a clip in which the camera moves sideways, forwards or around the scene",
        )


# A zoom changes the focal length at least by this factor, and alone explains points that it fits with at most so many times the error of
# the model, at the percentiles: 1.2 to 1.35 of exact zooms. Going at a wall fits as well but for what stands out of it: 1.6 and 2.0.
_ZOOM_LEAST, _ZOOM_ERROR, _ZOOM_PERCENTILES = 1.15, 1.45, (50, 75, 90, 95)


def _zoom_explains(model: SparseModel) -> bool:
    """Whether a camera that stays in its place, turns and zooms fits the model's points nearly as well as the model."""
    if not len(model.points):
        return False
    model = by_point(model)
    matches, inverse = hosted(model)
    prior = FocalPrior(center_px=model.focal, sigma=_FOCAL_SIGMA, independent=float(len(model.frames)), zoom=Zoom(_ZOOM_SIGMA))
    w2c = model.w2c.copy()
    w2c[:, :3, 3] = 0
    still = adjust(w2c, model.K, matches, np.zeros_like(inverse), focal=prior, steps=30)  # points at infinity stay there
    errors = residuals(still.w2c, still.K, matches, still.inverse), residuals(model.w2c, model.K, matches, inverse)
    staying, moving = (np.percentile(error, _ZOOM_PERCENTILES) for error in errors)
    focal = still.K[:, 0, 0]
    return bool(focal.max() > _ZOOM_LEAST * focal.min() and (staying < _ZOOM_ERROR * moving).all())


# Focal lengths of cameras and video models scatter by about this much (standard deviation of the logarithm) around the prior.
_FOCAL_SIGMA = 0.25


def focal_prior(longest: float, frames: int) -> FocalPrior:
    """The prior for a shared focal length; each frame counts as one independent observation.

    Args:
        longest: longest side of the images, in pixels of x.
        frames: number of frames.
    """
    return FocalPrior(center_px=FOCAL_PRIOR * longest, sigma=_FOCAL_SIGMA, independent=float(frames))


def by_point(model: SparseModel) -> SparseModel:
    """The model with the observations of each point one after another."""
    order = np.lexsort((model.seen_by, model.seen_point))
    return replace(model, seen_by=model.seen_by[order], seen_point=model.seen_point[order], seen_at=model.seen_at[order])


def hosted(model: SparseModel) -> tuple[Matches, Array]:
    """Matches of every point from the first frame that sees it to the others, and its 1/z there; for a model `by_point`."""
    first, row, rest, z = _hosts(model)
    host_px, target_px = hosted_values(model, model.seen_at)
    matches = Matches(
        host=model.seen_by[first][row[rest]], target=model.seen_by[rest], point=row[rest], host_px=host_px, target_px=target_px
    )
    return matches, 1 / np.maximum(z, 1e-9)


def hosted_values(model: SparseModel, values: Array) -> tuple[Array, Array]:
    """Values of the model's observations (M, ...) for host and target of each match of `hosted`."""
    first, row, rest, _ = _hosts(model)
    return values[first][row[rest]], values[rest]


def _hosts(model: SparseModel) -> tuple[Array, Array, Array, Array]:
    """For a model `by_point`: which observations (M,) are hosts, the point of each, which are targets, and the points' z in their hosts."""
    first = np.r_[True, model.seen_point[1:] != model.seen_point[:-1]]
    row, host = np.cumsum(first) - 1, model.seen_by[first]
    z = np.einsum("mj,mj->m", model.w2c[host, 2, :3], model.points[model.seen_point[first]]) + model.w2c[host, 2, 3]
    return first, row, ~first & (z[row] > 0), z


def settle_focal(model: SparseModel, size: tuple[int, int], report: Reporter, clips: Array | None = None) -> SparseModel:
    """The model adjusted again with a prior on the focal length, which contradictory frames and forward motion leave open.

    Args:
        model: as mapped.
        size: (h, w) of the images.
        report: told the change.
        clips: (F,) clip of each of the images; None: all are of one.
    """
    bundle, model = _settled_already.get(model), by_point(model)
    settled = adjusted(model, bundle or _settled(model, size, zoom_of(model, _clips_of(model, clips))))
    report.note(f"poses: focal {focal_text(model, size)} -> {focal_text(settled, size)} x longest side with its prior")
    return settled


# Adjustments of models by `settle_focal` that were made while a zoom was looked for in them.
_settled_already: "WeakKeyDictionary[SparseModel, Bundle]" = WeakKeyDictionary()


def _settled(model: SparseModel, size: tuple[int, int], zoom: Zoom | None, held: Bundle | None = None) -> Bundle:
    """A model `by_point` adjusted with a prior on its focal length or, of a zoom, lengths; from where the prior holds them at first."""
    held = held or _held(model, size, zooms=zoom is not None)
    prior = replace(focal_prior(max(size), len(model.frames)), zoom=zoom)
    return adjust(held.w2c, held.K, hosted(model)[0], held.inverse, focal=prior, steps=30)


def _held(model: SparseModel, size: tuple[int, int], *, zooms: bool) -> Bundle:
    """A model `by_point` adjusted with its focal length held at the prior's; of a zoom, with the mean of theirs held there."""
    matches, start = hosted(model)
    K, focal = model.K.copy(), model.K[:, 0, 0, None]
    center = focal_prior(max(size), len(model.frames)).center_px
    K[:, [0, 1], [0, 1]] = center * (focal / np.exp(np.log(focal).mean()) if zooms else 1)
    return adjust(model.w2c, K, matches, start, focal=None, steps=30)


def focal_text(model: SparseModel, size: tuple[int, int]) -> str:
    """Its focal length in longest sides, of a zoom the range."""
    focal = model.K[:, 0, 0] / max(size)
    return f"{focal.min():.2f} to {focal.max():.2f}" if model.zoom_sigma else f"{model.focal / max(size):.2f}"


def adjusted(model: SparseModel, bundle: Bundle) -> SparseModel:
    """A model `by_point` with the poses, focal length and points of its bundle adjustment; points at or behind infinity are left out."""
    first = np.r_[True, model.seen_point[1:] != model.seen_point[:-1]]
    row, host = np.cumsum(first) - 1, model.seen_by[first]
    K = bundle.K[host]
    ray = np.column_stack([(model.seen_at[first] - K[:, :2, 2]) / K[:, 0, 0, None], np.ones(len(host))])
    front = np.flatnonzero(bundle.inverse > 1e-9)
    c2w = np.linalg.inv(bundle.w2c[host])
    local = ray / np.maximum(bundle.inverse, 1e-9)[:, None]
    world = np.einsum("mij,mj->mi", c2w[:, :3, :3], local) + c2w[:, :3, 3]
    renumbered = np.full(len(host), -1)
    renumbered[front] = np.arange(len(front))
    keep = renumbered[row] >= 0
    placed = replace(
        model,
        w2c=bundle.w2c,
        K=bundle.K,
        points=world[front],
        seen_by=model.seen_by[keep],
        seen_point=renumbered[row][keep],
        seen_at=model.seen_at[keep],
    )
    return replace(placed, error_px=_reprojection_error(placed))


def _reprojection_error(model: SparseModel) -> float:
    """Mean distance in pixels between where points in front of a camera are seen and where they fall."""
    w2c, K = model.w2c[model.seen_by], model.K[model.seen_by]
    local = np.einsum("mij,mj->mi", w2c[:, :3, :3], model.points[model.seen_point]) + w2c[:, :3, 3]
    front = local[:, 2] > 0
    pixels = local[front, :2] / local[front, 2:] * K[front][:, [0, 1], [0, 1]] + K[front, :2, 2]
    return float(np.linalg.norm(pixels - model.seen_at[front], axis=1).mean()) if front.any() else 0.0


# A frame in between is kept if this many tracked points agree with its pose.
_MIN_TRACKED = 20
_INLIER_PX = 2.0


def place_between(images: Array, w2c: Array, K: Array, refs: Array, model: SparseModel) -> Array:
    """`w2c` (T, 4, 4) with poses for the frames between registered ones; NaN stays where none can be found.

    The sparse points seen by the registered frame before and after are tracked into the frame by dense flow, and the pose is
    solved from them (PnP in RANSAC, then least squares).

    Args:
        images: (T, h, w, 3) uint8.
        w2c: (T, 4, 4), NaN where unknown.
        K: (T, 3, 3).
        refs: (R,) positions of the registered frames in `images`.
        model: the sparse model of those frames.
    """
    placed = w2c.copy()
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]

    def one(frame: int) -> Array | None:
        after = int(np.searchsorted(refs, frame))
        around = [row for row in (after - 1, after) if 0 <= row < len(refs)]
        world, pixels = zip(*(_tracked(grays, frame, int(refs[row]), row, model) for row in around), strict=True)
        nearest = min(around, key=lambda row: abs(int(refs[row]) - frame))
        return resect(np.concatenate(world), np.concatenate(pixels), K[frame], w2c[refs[nearest]], _INLIER_PX, _MIN_TRACKED)

    missing = np.flatnonzero(~np.isfinite(w2c[:, 0, 0])).tolist()
    with frame_threads() as pool:
        for frame, pose in zip(missing, pool.map(one, missing), strict=True):
            if pose is not None:
                placed[frame] = pose
    return placed


def _tracked(grays: list[Array], frame: int, source: int, row: int, model: SparseModel) -> tuple[Array, Array]:
    """World points (M, 3) of a registered frame and their pixels (M, 2) in another, kept where the flow returns."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward, backward = flow.calc(grays[source], grays[frame], None), flow.calc(grays[frame], grays[source], None)
    mine = model.seen_by == row
    at = model.seen_at[mine].astype(np.float32)
    moved = at + sample_field(forward, at)
    back = moved + sample_field(backward, moved)
    consistent = np.abs(back - at).max(-1) < 1.0
    return model.points[model.seen_point[mine]][consistent], moved[consistent].astype(np.float64)
