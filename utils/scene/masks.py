"""Which pixels of the frames may be used. White (128..255) means use, black means ignore.

Masks act on the scene before it is saved: an ignored pixel gets depth 0, which every later stage takes as unknown, and is marked as
ignored, since splatting learns colours from pixels of unknown depth too.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from utils.errors import InputError
from utils.scene.clip.borders import Crop
from utils.scene.clip.marks import find_mark
from utils.scene.media import IMAGE_SUFFIXES, exists, read_image
from utils.types import Array, Scene

# Sky in results.npz: the lowest confidence there is, at a depth that no nearer surface reaches.
SKY_CONFIDENCE = 1.0
SKY_DEPTH_LIMIT = 200.0

# Share of the pixels of a clip that must look like sky, and confidence above which depth is measured rather than guessed.
_LEAST_SKY, _MEASURED = 0.002, 1.1
# Sky is measured in a smaller share of its pixels than this, and in the median farther than this percentile of the rest. Seen: an orbit
# outdoors 1 % and 90, a synthetic green 28 % and 96, a kitchen's white ceiling 65 % and 35.
_SKY_MEASURED, _SKY_RANK = 0.4, 70.0

# Width over height of a mask may differ from the frames' by this share (rounding of small masks).
_SAME_ASPECT = 0.03

# An overlay's pixels vary by less than this (8-bit levels, standard deviation over time): compression noise stays below it.
_STATIC_LEVELS = 2.5
# ... while most pixels around it vary by more than this.
_MOVING_LEVELS = 8.0
# Larger still areas are taken for a part of the scene, such as a clear sky. Share of the image.
_LARGEST_OVERLAY = 0.05


def load_masks(
    folder: Path,
    names: Sequence[str],
    size: tuple[int, int],
    shown: tuple[int, int] | None = None,
    cut: tuple[tuple[int, int], Crop] | None = None,
) -> Array:
    """Masks of the frames, True = use.

    A frame `000012.png` finds `000012.<any image>` or `000012.png.<any image>`, in a sub-folder as the frame is or in the folder itself.
    A folder with one single image means that image for every frame. A pixel of the result is used only if all of the mask under it is
    white.

    Args:
        folder: of mask images, grey or colour, of any size with the frames' aspect, or of the result's.
        names: F frame file names, with or without suffix.
        size: (H, W) of the result.
        shown: (h, w) of the frames, whose aspect differs a little from the result's; default: the result's.
        cut: size of the frames before something was cut off them, and that; masks may be made for those too.

    Returns:
        (F, H, W) bool.

    Raises:
        InputError: no masks, a frame without one, one that is no image, or one of another aspect.
    """
    if not exists(folder) or not folder.is_dir():
        raise InputError(f"mask folder {folder} does not exist", "give a folder of images: white = use, black = ignore")
    files = mask_files(folder)
    if not files:
        raise InputError(f"mask folder {folder} holds no images", f"masks must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}")
    if len(files) == 1:
        return np.repeat(read_mask(files[0], size, shown, cut)[None], len(names), axis=0)
    found = _masks_of(folder, files, names)
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{folder} has no mask for {len(missing)} of {len(names)} frames, the first is {missing[0]}",
            "name each mask like its frame, or leave one single image that holds for all frames",
        )
    return np.stack([read_mask(path, size, shown, cut) for path in found if path is not None])


def unmasked(folder: Path, names: Sequence[str]) -> list[int]:
    """Which of the frames (positions in `names`) have no mask in a folder that `load_masks` takes."""
    files = mask_files(folder) if folder.is_dir() else []
    return [] if len(files) < 2 else [i for i, path in enumerate(_masks_of(folder, files, names)) if path is None]


def mask_files(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders, without hidden ones."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file())


def _masks_of(folder: Path, files: Sequence[Path], names: Sequence[str]) -> list[Path | None]:
    """The mask of each frame: by its path in the folder, or else by its name where only one mask is called so."""
    by_path = {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.stem, []).append(path)
    found: list[Path | None] = []
    for name in names:
        bare = PurePosixPath(name)
        there = by_path.get(name) or by_path.get(bare.with_suffix("").as_posix())
        called = by_stem.get(bare.name) or by_stem.get(bare.stem) or []
        found.append(there or (called[0] if len(called) == 1 else None))
    return found


def read_mask(path: Path, size: tuple[int, int], shown: tuple[int, int] | None, cut: tuple[tuple[int, int], Crop] | None = None) -> Array:
    """(H, W) bool of one mask, True where all of it is white.

    Args:
        path: the mask.
        size: (H, W) of the result.
        shown: (h, w) of the frame, whose aspect differs a little from the result's; default: the result's.
        cut: see `load_masks`.

    Raises:
        InputError: no image, or one of another aspect.
    """
    white = (read_image(path).max(axis=-1) >= 128).astype(np.float32)
    if cut is not None and cut[1]:
        white = _cut_like(white, *cut, shown or size)
    height, width = white.shape
    if all(abs(np.log(width * h / (height * w))) > _SAME_ASPECT for h, w in (size, shown or size)):
        h, w = shown or size
        raise InputError(
            f"mask {path} is {width}x{height}, which is no scaled {w}x{h} as the frames are",
            "masks must show the whole frame, at any size: export them without cropping or turning",
        )
    shrinks = white.size >= size[0] * size[1]
    share = cv2.resize(white, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    return share > 0.999


def _cut_like(white: Array, whole: tuple[int, int], crop: Crop, shown: tuple[int, int]) -> Array:
    """A mask of whole frames without what was cut off them; one of the cut frames as it is."""
    aspect = np.log(white.shape[1] / white.shape[0])
    of_whole, of_cut = (abs(aspect - np.log(w / h)) for h, w in (whole, shown))
    if of_cut < of_whole:
        return white
    scale = white.shape[0] / whole[0], white.shape[1] / whole[1]
    sides = (round(side * scale[i // 2]) for i, side in enumerate(crop.sides))
    return Crop(*sides).of(white)


def apply_masks(scene: Scene, keep: Array, names: Sequence[str] | None = None) -> Scene:
    """The scene with depth 0 and the lowest confidence where `keep` (F, H, W) is False.

    Raises:
        InputError: a mask leaves nothing of a frame.
    """
    depth = np.where(keep, scene.depth, 0).astype(np.float32)
    empty = np.flatnonzero(~(np.isfinite(depth) & (depth > 0)).any(axis=(1, 2)))
    if len(empty):
        name = names[empty[0]] if names else f"frame {scene.cameras.frame_ids[empty[0]]}"
        raise InputError(f"the masks leave no pixel of {name} to use", "white means use, black means ignore: invert the masks if needed")
    confidence = np.where(keep, scene.confidence, scene.confidence.min()).astype(np.float32)
    ignored = ~keep if scene.ignored is None else scene.ignored | ~keep
    return replace(scene, depth=depth, confidence=confidence, ignored=ignored)


def used_pixels(scene: Scene, rows: Array, size: tuple[int, int]) -> Array | None:
    """(F, H, W) bool: pixels of these frames, at another size, that lie on no ignored one; None without masks."""
    if scene.ignored is None:
        return None
    shares = [cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR) for mask in scene.ignored[rows]]
    return np.stack(shares) <= 0


def mark_sky(scene: Scene, sky: Array) -> Scene:
    """The scene with sky pixels (F, H, W) pushed to the 99th percentile of all other depths, at the lowest confidence."""
    ground = scene.valid & ~sky
    if not ground.any() or not sky.any():
        return scene
    far = min(float(np.percentile(scene.depth[ground], 99)), SKY_DEPTH_LIMIT)
    return replace(
        scene,
        depth=np.where(sky, far, scene.depth).astype(np.float32),
        confidence=np.where(sky, min(SKY_CONFIDENCE, float(scene.confidence.min())), scene.confidence).astype(np.float32),
    )


def detect_static_overlay(images: Array) -> Array:
    """Pixels that stay as they are while the picture around them moves: logos, watermarks, frames of a player.

    Opaque ones, and half-transparent ones by their edges. Where the surroundings do not move either (a still camera, a clear sky)
    nothing is reported.

    Args:
        images: (F, H, W, 3) uint8; fewer than 8 frames tell too little, and nothing is reported.

    Returns:
        (H, W) bool, True = overlay; with a margin of about one pixel per hundred of the image's longest side.
    """
    h, w = images.shape[1:3]
    if len(images) < 8:
        return np.zeros((h, w), bool)
    # One channel at a time: the standard deviation over time without a float copy of the clip.
    spread = np.max([images[..., c].astype(np.float32).std(axis=0) for c in range(3)], axis=0)
    static = (spread < _STATIC_LEVELS).astype(np.uint8)
    moving = spread > _MOVING_LEVELS
    margin = 1 + round(0.01 * max(h, w))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(static, connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    area[0] = 0  # the label of all that varies
    overlay = np.zeros((h, w), bool)
    for label in np.flatnonzero((area >= 4 + round(2e-5 * h * w)) & (area <= _LARGEST_OVERLAY * h * w)):
        grown = cv2.dilate((labels == label).astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)).astype(bool)
        ring = grown & (static == 0)
        if ring.any() and moving[ring].mean() > 0.6:
            overlay |= grown
    mark = find_mark(np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]))
    return overlay if mark is None else overlay | mark.mask


def detect_sky(images: Array) -> Array:
    """A guess at the sky: smooth, bright and bluish or grey, and joined to the image's upper edge.

    Args:
        images: (F, H, W, 3) uint8.

    Returns:
        (F, H, W) bool. Meant for geometry backends that have no sky of their own; a white ceiling looks the same to it.
    """
    return np.stack([_sky_of(image) for image in images])


def is_sky(scene: Scene, sky: Array) -> bool:
    """Whether what looks like sky (F, H, W) is sky, as far as the geometry tells over the whole clip.

    Sky has nothing to triangulate and, if anything, is far. A white ceiling looks alike, but is measured, or filled from walls that are
    no farther than the rest. Only for confidence that is lowest where depth is a guess, as structure from motion gives it.
    """
    found, ground = sky & scene.valid, scene.valid & ~sky
    if found.mean() < _LEAST_SKY or not ground.any():
        return False
    measured = float((scene.confidence[found] > _MEASURED).mean())
    return measured < _SKY_MEASURED and float(np.median(scene.depth[found])) > float(np.percentile(scene.depth[ground], _SKY_RANK))


def _sky_of(image: Array) -> Array:
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5).astype(np.int16)
    red, green, blue = smooth[..., 0], smooth[..., 1], smooth[..., 2]
    brightness = smooth.max(axis=-1)
    coloured = (blue >= red - 6) & (blue >= green - 12) & (brightness > 110)
    grey = cv2.cvtColor(smooth.astype(np.uint8), cv2.COLOR_RGB2GRAY).astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8
    candidate = (coloured & (slope < 4)).astype(np.uint8)
    candidate = cv2.morphologyEx(candidate, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(candidate, connectivity=4)
    touching = np.unique(labels[: max(1, image.shape[0] // 50)])
    return np.isin(labels, touching[touching > 0])
