"""Cameras from other programs, as this one has them: OpenCV axes, camera-to-world, pixel centres at +0.5.

COLMAP puts pixel centres at +0.5 too, so its intrinsics are taken over as they are; nerfstudio's come from COLMAP as a rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.errors import InputError, MissingArtifactError
from utils.imports import colmap, transforms
from utils.imports.lens import ImportedLens, through
from utils.imports.names import matched
from utils.scene.foreign import read_arrays
from utils.scene.masks import read_mask
from utils.scene.media import exists
from utils.types import Array

# Cameras whose middle is farther from the origin than this many times their own spread are brought to it: float32 would step.
_FAR_AWAY = 100.0
_HINT = "give a transforms.json, an npz of poses, or a COLMAP model: cameras and images as .bin or .txt"


@dataclass(frozen=True, kw_only=True)
class ImportedCameras:
    """Cameras of N images, each at the image's own size.

    Attributes:
        names: (N,) image names, as written in the source, possibly with folders; empty if the source names none.
        c2w: (N, 4, 4) float64.
        lenses: (N,) camera model of each.
        depths: (N,) depth image or array of each, or None.
        masks: (N,) mask of each, or None.
        depth_unit: scene units of one step of the stored depth.
        offset: (3,) what was taken off all positions.
        notes: what was assumed, in words.
    """

    names: tuple[str, ...]
    c2w: Array
    lenses: tuple[ImportedLens, ...]
    depths: tuple[Path | Array | None, ...]
    masks: tuple[Path | None, ...] = ()
    depth_unit: float = 1.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()

    @cached_property
    def K(self) -> Array:
        """(N, 3, 3) float64, pixels of the image's `sizes`."""
        return np.stack([lens.K for lens in self.lenses])

    @cached_property
    def sizes(self) -> Array:
        """(N, 2) int, height and width."""
        return np.array([lens.size for lens in self.lenses])

    def rows(self, names: Sequence[str]) -> Array:
        """(M,) row of each of these file names, -1 for none; see `names.matched`.

        Raises:
            InputError: a name fits several images, or there are no names and another number of frames.
        """
        if self.names:
            return matched(self.names, names)
        if len(names) != len(self.c2w):
            raise InputError(
                f"the cameras are those of {len(self.c2w)} frames without names, but there are {len(names)} frames",
                "give exactly the frames that the cameras were made for, with --as_is",
            )
        return np.arange(len(names))

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
    """Cameras of a COLMAP model folder, of JSON or npz files, or of a folder that holds any of them.

    Args:
        source: the file or folder.
        image_size: (h, w) of the frames, where the source does not tell.

    Raises:
        MissingArtifactError: nothing of the kind there.
        CorruptArtifactError: unreadable, or without cameras.
    """
    place = locate_cameras(source)
    if place.is_dir():
        return _near_origin(read_colmap(place, source))
    if place.suffix == ".npz":
        return _near_origin(read_npz(place))
    return _near_origin(read_transforms(place, image_size))


def files_of_cameras(source: Path) -> list[Path]:
    """Every file that importing cameras reads: the model or the JSON or npz files, and the depth images that they name.

    Raises:
        ArtifactError: see `read_cameras`.
    """
    place = locate_cameras(source)
    if place.is_dir():
        return sorted(p for p in place.iterdir() if p.suffix in (".bin", ".txt"))
    if place.suffix == ".npz":
        return [place]
    named = transforms.files_named(_json_files(place))
    return [*_json_files(place), *sorted({path for path in named if path.is_file()})]


def locate_cameras(source: Path) -> Path:
    """The JSON or npz file, or the folder of the COLMAP model with most images, that is meant by a path.

    Raises:
        MissingArtifactError: nothing of the kind there.
    """
    if exists(source) and source.is_file() and source.suffix.lower() in (".json", ".npz"):
        return source
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
    """Cameras of a nerfstudio `transforms.json` or one of its kin, with the depth files it names.

    Raises:
        ArtifactError: see `transforms.read_json_cameras`.
    """
    found = transforms.read_json_cameras(_json_files(path), image_size)
    return ImportedCameras(
        names=found.names, c2w=found.c2w, lenses=found.lenses, depths=found.depths, masks=found.masks, depth_unit=found.depth_unit
    )


def read_npz(path: Path) -> ImportedCameras:
    """Cameras, and depth if there is any, of an npz file of another program.

    Raises:
        CorruptArtifactError: no poses or intrinsics in it.
    """
    found = read_arrays(path)
    if found.w2c is None or found.K is None:
        raise MissingArtifactError(f"{path} holds no poses and intrinsics", "leave --cameras out: they are then estimated from the frames")
    if found.depth is None and found.images is None:
        sizes = [(max(1, round(2 * K[1, 2])), max(1, round(2 * K[0, 2]))) for K in found.K]
    else:
        sizes = [found.size] * len(found)
    lenses = tuple(ImportedLens("PINHOLE", (K[0, 0], K[1, 1], K[0, 2], K[1, 2]), size) for K, size in zip(found.K, sizes, strict=True))
    depths = (None,) * len(found) if found.depth is None else tuple(found.depth)
    return ImportedCameras(names=found.names, c2w=invert_rigid(found.w2c), lenses=lenses, depths=depths, notes=tuple(found.notes))


def _near_origin(cameras: ImportedCameras) -> ImportedCameras:
    """The cameras about the origin if they are far from it, as geo-referenced ones are."""
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
