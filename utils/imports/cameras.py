"""Cameras from other programs, as this one has them: OpenCV axes, camera-to-world, pixel centres at +0.5.

COLMAP puts pixel centres at +0.5 too, so its intrinsics are taken over as they are; nerfstudio's come from COLMAP as a rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.errors import CorruptArtifactError, InputError, MissingArtifactError
from utils.imports import colmap, trajectories, transforms
from utils.imports.lens import ImportedLens, through
from utils.imports.names import matched
from utils.scene.foreign import Foreign, read_arrays, understood
from utils.scene.masks import read_mask
from utils.scene.media import exists, natural_name
from utils.types import Array

# Cameras whose middle is farther from the origin than this many times their own spread are brought to it: float32 would step.
_FAR_AWAY = 100.0
_HINT = "give a transforms.json, an npz of poses, or a COLMAP model: cameras and images as .bin or .txt"
# Trajectories beside transforms.json, npz and COLMAP models; they are only taken if they are given themselves.
_TEXT = (".txt", ".csv")
# Focal length in longest sides where a source has none, until matches tell it.
_GUESSED_FOCAL = 0.9


@dataclass(frozen=True, kw_only=True)
class ImportedCameras:
    """Cameras of N images, each at the image's own size.

    Attributes:
        names: (N,) image names, as written in the source, possibly with folders; empty if the source names none.
        c2w: (N, 4, 4) float64; NaN if the source has depth alone.
        lenses: (N,) camera model of each.
        depths: (N,) depth image or array of each, or None.
        masks: (N,) mask of each, or None.
        depth_unit: scene units of one step of the stored depth.
        offset: (3,) what was taken off all positions.
        notes: what was assumed, in words.
        numbers: (N,) of the frames in their clip, from 0, where the source tells; else they follow each other.
        focal_known: the source has intrinsics; else the focal length is a guess.
    """

    names: tuple[str, ...]
    c2w: Array
    lenses: tuple[ImportedLens, ...]
    depths: tuple[Path | Array | None, ...]
    masks: tuple[Path | None, ...] = ()
    depth_unit: float = 1.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    focal_known: bool = True

    @property
    def posed(self) -> bool:
        """The source has poses."""
        return bool(np.isfinite(self.c2w).all())

    def first(self, count: int) -> "ImportedCameras":
        """The first cameras of a source without names."""
        return replace(self, c2w=self.c2w[:count], lenses=self.lenses[:count], depths=self.depths[:count])

    def as_seen_by(self, K: Array, size: tuple[int, int]) -> "ImportedCameras":
        """The same frames under a pinhole K (3, 3) of a picture of `size` (h, w)."""
        lenses = []
        for height, width in self.sizes.tolist():
            x, y = width / size[1], height / size[0]
            lenses.append(ImportedLens("PINHOLE", (K[0, 0] * x, K[1, 1] * y, K[0, 2] * x, K[1, 2] * y), (height, width)))
        return replace(self, lenses=tuple(lenses))

    @cached_property
    def K(self) -> Array:
        """(N, 3, 3) float64, pixels of the image's `sizes`."""
        return np.stack([lens.K for lens in self.lenses])

    @cached_property
    def sizes(self) -> Array:
        """(N, 2) int, height and width."""
        return np.array([lens.size for lens in self.lenses])

    def rows(self, names: Sequence[str], numbers: Array | None = None, total: int | None = None, *, counted: bool = False) -> Array:
        """(M,) row of each of these frames, -1 for none: by number, by name (see `names.matched`), or one after another.

        Args:
            names: of the frames.
            numbers: (M,) of the frames in their input, from 0; by default these are all of it.
            total: frames of the input.
            counted: the names are only numbers that this program gave to the frames of a clip.

        Raises:
            InputError: a name fits several images, or there are no names and another number of frames.
        """
        total = len(names) if total is None else total
        numbers = np.arange(len(names)) if numbers is None else numbers
        if self.numbers:
            row_of = {number: row for row, number in enumerate(self.numbers)}
            return np.array([row_of.get(int(number), -1) for number in numbers], np.int64)
        order = self._in_order(total)
        if self.names and not (counted and order is not None):
            rows = matched(self.names, names)
            if (rows >= 0).any() or not counted:
                return rows
        if order is None:
            raise InputError(
                f"the cameras are those of {len(self.c2w)} frames{'' if self.names else ' without names'}, but there are {total} frames",
                "give exactly the frames that the cameras were made for, or cameras of all of these",
            )
        return np.array(order, np.int64)[numbers]

    def _in_order(self, total: int) -> list[int] | None:
        """Rows of so many frames that follow each other: all, or those of the one folder that holds so many (SEVA lists its input too)."""
        if not self.names:
            return list(range(total)) if len(self.c2w) == total else None
        folders: dict[str, list[int]] = {}
        for row in sorted(range(len(self.names)), key=lambda row: natural_name(self.names[row])):
            folders.setdefault(str(PurePosixPath(self.names[row]).parent), []).append(row)
        fitting = [rows for rows in folders.values() if len(rows) == total]
        return fitting[0] if len(fitting) == 1 else None

    def intrinsics(self, row: int, size: tuple[int, int]) -> Array:
        """K (3, 3) of an image when it is resized to (h, w)."""
        return np.diag([size[1] / self.sizes[row, 1], size[0] / self.sizes[row, 0], 1.0]) @ self.K[row]

    def undistorted(self, row: int, image: Array, K: Array | None = None) -> tuple[Array, Array]:
        """(h, w, 3) image as a pinhole sees it, and (h, w) bool where it shows anything.

        Args:
            row: of the image.
            image: (h, w, 3).
            K: of the pinhole in pixels of the image; by default the camera's own without its distortion.
        """
        h, w = image.shape[:2]
        own = self.intrinsics(row, (h, w))
        K = own if K is None else K
        if self.lenses[row].plain and np.allclose(K, own, rtol=0, atol=1e-3):
            return image, np.ones((h, w), bool)
        return through(self.lenses[row].seen_at(K, (h, w)), image)

    def depth(self, row: int, size: tuple[int, int], K: Array) -> Array:
        """(h, w) float32 camera z in scene units as a pinhole sees it, 0 where unknown.

        Args:
            row: of the image.
            size: (h, w).
            K: of the pinhole.

        Raises:
            InputError: no depth file, or an unreadable one.
        """
        stored = self._stored_depth(row)
        # The nearest value: a mean across an edge is no depth. Pixel centres map onto pixel centres.
        at = self.lenses[row].seen_at(K, size)
        x, y = (np.floor(at[..., k] * stored.shape[1 - k]).astype(np.int64) for k in (0, 1))
        inside = (x >= 0) & (y >= 0) & (x < stored.shape[1]) & (y < stored.shape[0])
        depth = stored[y.clip(0, stored.shape[0] - 1), x.clip(0, stored.shape[1] - 1)].astype(np.float32) * np.float32(self.depth_unit)
        return np.where(inside & np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)

    def keep(self, row: int, size: tuple[int, int], K: Array) -> Array | None:
        """(h, w) bool pixels to use as a pinhole sees them, those whose mask is white; None if the image has no mask.

        Args:
            row: of the image.
            size: (h, w).
            K: of the pinhole.

        Raises:
            InputError: the mask is named but not there, unreadable or of another aspect than the image.
        """
        path = self.masks[row] if self.masks else None
        if path is None:
            return None
        if not path.is_file():
            raise InputError(f"{self.names[row]} has no mask file {path}", "add it, or remove its mask_path")
        height, width = (int(side) for side in self.sizes[row])
        white = read_mask(path, size, (height, width))
        if self.lenses[row].plain and np.allclose(K, self.intrinsics(row, size), rtol=0, atol=1e-3):
            return white
        return through(self.lenses[row].seen_at(K, size), white.astype(np.uint8), nearest=True)[0] > 0

    def _stored_depth(self, row: int) -> Array:
        path = self.depths[row]
        if isinstance(path, np.ndarray):
            return path
        if path is None or not path.is_file():
            raise InputError(f"{self.names[row]} has no depth file{f' {path}' if path else ''}", "add it, or remove all depth_file_path")
        try:
            stored = np.load(path, allow_pickle=False) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        except (OSError, ValueError, cv2.error) as error:
            raise InputError(f"{path} cannot be read: {error}", "write the depth again") from error
        if stored is None or stored.squeeze().ndim != 2 or not np.issubdtype(stored.dtype, np.number):
            raise InputError(f"{path} is no depth image", "give one channel: PNG with 16 bits, TIFF or NPY")
        return np.asarray(stored.squeeze())


def read_cameras(source: Path, image_size: tuple[int, int] | None = None) -> ImportedCameras:
    """Cameras of a COLMAP model folder, of JSON, npz, npy or text files, or of a folder that holds any of them.

    Args:
        source: the file or folder.
        image_size: (h, w) of the frames, where the source does not tell.

    Raises:
        MissingArtifactError: nothing of the kind there.
        CorruptArtifactError: unreadable, or without cameras.
    """
    place = locate_cameras(source)
    if place.is_dir() and not colmap.has_model(place):
        return _near_origin(_of_one_each(place))
    if place.is_dir():
        return _near_origin(read_colmap(place, source))
    readers = {".json": read_transforms, ".npz": read_npz}
    return _near_origin(readers.get(place.suffix.lower(), read_text)(place, image_size))


def files_of_cameras(source: Path) -> list[Path]:
    """Every file that importing cameras reads: the model or the JSON or npz files, and the depth images that they name.

    Raises:
        ArtifactError: see `read_cameras`.
    """
    place = locate_cameras(source)
    if place.is_dir():
        return sorted(p for p in place.iterdir() if p.suffix in (".bin", ".txt", ".json"))
    if place.suffix.lower() != ".json":
        return [place, *_beside_poses(place)]
    named = transforms.files_named(_json_files(place))
    return [*_json_files(place), *sorted({path for path in named if path.is_file()})]


def locate_cameras(source: Path) -> Path:
    """The file, or the folder of the COLMAP model with most images, that is meant by a path.

    Raises:
        MissingArtifactError: nothing of the kind there.
    """
    if exists(source) and source.is_file() and source.suffix.lower() in (".json", ".npz", ".npy", *_TEXT):
        return source.parent if colmap.has_model(source.parent) and source.stem in ("cameras", "images") else source
    if exists(source) and source.is_dir():
        if models := _models(source):
            return models[0] if len(models) == 1 else max(models, key=colmap.count_images)
        for name in ("transforms.json", "cameras.json", "metadata.json"):
            if (source / name).is_file():
                return source / name
        if several := sorted(source.glob("transforms_*.json")):
            return several[0]
        for name in ("results.npz", "exports/npz/results.npz", "exports/mini_npz/results.npz", "predictions.npz"):
            if (source / name).is_file():
                return source / name
        for place in (source / "keyframes" / "corrected_cameras", source / "keyframes" / "cameras", source):
            if trajectories.has_one_each(place):
                return place
        for single in (sorted((source / "pose").glob("*.npz")), sorted(source.glob("*.npz")), sorted(source.glob("*.json"))):
            if len(single) == 1:  # ViPE's poses; the one file of cameras that is there
                return single[0]
    raise MissingArtifactError(f"no cameras found in {str(source)[:300]}", _HINT)


def _models(source: Path) -> list[Path]:
    """Folders of COLMAP models, those that belong to one reconstruction together."""
    if colmap.has_model(source):
        return [source]
    for place in (source / "sparse", source / "colmap" / "sparse", source, source / "colmap", source / "dense" / "sparse"):
        if not place.is_dir():
            continue
        below = sorted(p for p in place.iterdir() if p.is_dir() and colmap.has_model(p))
        if below:
            return below
        if colmap.has_model(place):
            return [place]
    return []


def read_colmap(folder: Path, source: Path | None = None) -> ImportedCameras:
    """Registered images of a COLMAP model, binary or text, by name.

    Args:
        folder: of the model.
        source: where it was looked for; what other models there are is said.

    Raises:
        ArtifactError: see `colmap.read_model`.
    """
    model = colmap.read_model(folder)
    others = [] if source is None else [p for p in _models(source) if p != folder]
    notes: tuple[str, ...] = ()
    if others:
        counts = ", ".join(f"{p.name} ({colmap.count_images(p)} images)" for p in others)
        notes = (f"of {len(others) + 1} COLMAP models {folder.name} is used, with {len(model.names)} images; not used: {counts}",)
    return ImportedCameras(
        names=model.names, c2w=invert_rigid(model.w2c), lenses=model.lenses, depths=(None,) * len(model.names), notes=notes
    )


def _json_files(path: Path) -> list[Path]:
    """The file, and those that split one data set with it: transforms_train.json, transforms_val.json, transforms_test.json."""
    if path.name.startswith("transforms_"):
        return sorted(path.parent.glob("transforms_*.json"))
    return [path]


def read_transforms(path: Path, image_size: tuple[int, int] | None = None) -> ImportedCameras:
    """Cameras of a nerfstudio `transforms.json` or one of its kin, with the depth files it names, or of a trajectory in JSON.

    Raises:
        ArtifactError: see `transforms.read_json_cameras`.
    """
    content = transforms.load_json(path)
    try:
        arrays = trajectories.of_json(path, content)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise CorruptArtifactError(f"{path} is no usable trajectory: {str(error)[:200]}", "export the cameras again") from error
    if arrays is not None:
        return _of_arrays(path, understood(path, arrays), image_size)
    found = transforms.read_json_cameras(_json_files(path), image_size)
    return ImportedCameras(
        names=found.names, c2w=found.c2w, lenses=found.lenses, depths=found.depths, masks=found.masks, depth_unit=found.depth_unit
    )


def _of_one_each(folder: Path) -> ImportedCameras:
    """Cameras of a folder of JSON files, one for each picture and called like it (Polycam, 3D Scanner App)."""
    frames = []
    for path in sorted(folder.glob("*.json"), key=lambda path: natural_name(path.name)):
        frame = trajectories.of_phone(transforms.load_json(path))
        if frame is not None:
            frames.append({"file_path": path.stem, **frame})
    found = transforms.of_frames(folder, frames)
    return ImportedCameras(names=found.names, c2w=found.c2w, lenses=found.lenses, depths=found.depths, masks=found.masks)


def read_npz(path: Path, image_size: tuple[int, int] | None = None) -> ImportedCameras:
    """Cameras, depth, or both, of an npz file of another program; of ViPE's two files either may be given.

    Raises:
        ArtifactError: neither poses nor depth in it.
    """
    found = read_arrays(path)
    for other in _beside_poses(path):
        beside = read_arrays(other)
        if not set(found.numbers) <= set(beside.numbers):
            raise CorruptArtifactError(f"{other} lacks frames that {path} has", "give poses and intrinsics of the same frames")
        place = {number: row for row, number in enumerate(beside.numbers)}
        both = beside.select(np.array([place[number] for number in found.numbers]))
        found.K = both.K if found.K is None else found.K
        found.w2c = both.w2c if found.w2c is None else found.w2c
    return _of_arrays(path, found, image_size)


def _beside_poses(path: Path) -> list[Path]:
    """ViPE keeps poses and intrinsics of a clip as `pose/CLIP.npz` and `intrinsics/CLIP.npz`: the other file."""
    other = {"pose": "intrinsics", "intrinsics": "pose"}.get(path.parent.name)
    beside = None if other is None or path.suffix.lower() != ".npz" else path.parent.parent / other / path.name
    return [beside] if beside is not None and beside.is_file() else []


def read_text(path: Path, image_size: tuple[int, int] | None = None) -> ImportedCameras:
    """Cameras of a trajectory in text, or of a plain array of poses (npy).

    Raises:
        CorruptArtifactError: unreadable.
    """
    if path.suffix.lower() != ".npy":
        return _of_arrays(path, understood(path, trajectories.of_text(path)), image_size)
    try:
        poses = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}", "save an array of poses (N, 4, 4)") from error
    return _of_arrays(path, understood(path, {"c2w": poses}), image_size)


def _of_arrays(path: Path, found: Foreign, image_size: tuple[int, int] | None) -> ImportedCameras:
    """Cameras of arrays; what is missing is marked as such."""
    if found.w2c is None and found.depth is None:
        raise MissingArtifactError(f"{path} holds neither poses nor depth", "leave --cameras out: both are then estimated from the frames")
    count, K, notes = len(found), found.K, list(found.notes)
    own = found.size if found.depth is not None or found.images is not None else None
    size = found.stated if own is None else own
    if K is not None and own is None:
        K, size = _of_shares(K, size or image_size)
    elif K is not None and own is not None and found.stated not in (None, own):
        centre = np.median(K[:, :2, 2], axis=0)
        if (np.abs(centre / own[::-1] - 0.5) > np.abs(centre / found.stated[::-1] - 0.5)).any():
            K = np.diag([own[1] / found.stated[1], own[0] / found.stated[0], 1.0]) @ K
            notes.append(f"intrinsics are those of a picture of {found.stated[1]}x{found.stated[0]}: they are scaled")
    if K is None:
        size = size or image_size
        if size is None:
            raise MissingArtifactError(f"{path} holds no intrinsics", "give them too")
        f = _GUESSED_FOCAL * max(size)
        K = np.repeat(np.array([[f, 0, size[1] / 2], [0, f, size[0] / 2], [0, 0, 1.0]])[None], count, axis=0)
    sizes = [size] * count if size else [(max(1, round(2 * each[1, 2])), max(1, round(2 * each[0, 2]))) for each in K]
    return ImportedCameras(
        names=found.names,
        c2w=np.full((count, 4, 4), np.nan) if found.w2c is None else invert_rigid(found.w2c),
        lenses=tuple(ImportedLens("PINHOLE", (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), s) for k, s in zip(K, sizes, strict=True)),
        depths=(None,) * count if found.depth is None else tuple(found.depth),
        notes=tuple(notes),
        numbers=found.numbers,
        focal_known=found.K is not None,
    )


def _of_shares(K: Array, size: tuple[int, int] | None) -> tuple[Array, tuple[int, int] | None]:
    """Intrinsics in pixels, of shares of the picture where they are that; and the size that they are of, if it is known."""
    if not ((K[:, :2, 2] < 2).all() and np.median(K[:, 0, 0]) < 20):
        # Another size of the same aspect is told by the principal point, unless the file says its own.
        return K, size if size and np.abs(np.median(K[:, :2, 2], axis=0) / size[::-1] - 0.5).max() < 0.1 else None
    if size is None:
        return K, None
    return np.diag([size[1], size[0], 1.0]) @ K, size


def _near_origin(cameras: ImportedCameras) -> ImportedCameras:
    """The cameras about the origin if they are far from it, as geo-referenced ones are."""
    if not cameras.posed:
        return cameras
    centres = cameras.c2w[:, :3, 3]
    middle = np.median(centres, axis=0)
    spread = float(np.linalg.norm(centres - middle, axis=1).max())
    if np.linalg.norm(middle) <= _FAR_AWAY * max(spread, 1e-9):
        return cameras
    c2w = cameras.c2w.copy()
    c2w[:, :3, 3] -= middle
    where = ", ".join(f"{value:.3f}" for value in middle)
    note = f"cameras lie around ({where}): that is taken off all positions and kept as world_offset"
    return replace(cameras, c2w=c2w, offset=(float(middle[0]), float(middle[1]), float(middle[2])), notes=(*cameras.notes, note))
