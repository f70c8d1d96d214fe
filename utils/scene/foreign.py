"""Arrays that other programs save (Depth Anything 3, VGGT, MapAnything, Pi3 and their kin) as this one has them.

They agree on what they hold and differ in names, axes, types and in which way a pose points. Names and shapes say most of it; what they
leave open is told from the content: whether extrinsics are w2c or c2w by which of both lets the frames' depth agree, and whether
intrinsics are those of the original image by where the principal point lies.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.cameras.projection import invert_rigid, orthonormalized, to_4x4
from utils.errors import CorruptArtifactError
from utils.scene.resample import resized
from utils.types import Array, CameraSet, Scene

# Names by what they hold, the first that is there counts.
NAMES = {
    "image": ("image", "images", "imgs", "rgb", "rgbs", "img", "colors", "img_no_norm", "video"),
    "depth": ("depth", "depths", "depth_map", "depth_maps", "depth_z", "predicted_depth", "depthmap", "depthmaps"),
    "conf": ("conf", "confidence", "depth_conf", "confs", "conf_map", "depth_confidence", "confidences", "world_points_conf"),
    "w2c": ("extrinsics", "extrinsic", "w2c", "w2cs", "world_to_cam", "cam_from_world", "viewmats", "world_to_camera"),
    "c2w": (
        "camera_poses",
        "c2w",
        "c2ws",
        "cam_c2w",
        "cam2world",
        "cam_to_world",
        "poses",
        "pose",
        "camera_pose",
        "cams2world",
        "camera_to_world",
    ),
    "K": ("intrinsics", "intrinsic", "K", "Ks", "camera_intrinsics", "intrinsic_matrix", "cam_K"),
    "local": ("local_points", "pts3d_cam", "points_local", "camera_points"),
    "world": ("world_points", "pts3d", "points", "point_map", "world_points_from_depth"),
    "ignored": ("ignored",),
    "names": ("names", "image_names", "filenames", "image_paths"),
    "height": ("image_height", "height"),
    "width": ("image_width", "width"),
    "numbers": ("inds", "frame_indices"),
    "data": ("data",),
}
# Rotations may deviate from orthonormal by this (half precision, text).
_SKEW = 0.05
# A principal point this far from the middle, as a share of the image, is that of another size.
_OFF_CENTRE = 0.2
# The other direction of the poses is taken where depth agrees this much better with it; pairs and pixels that are compared.
_CLEARLY = 0.5
_GAPS, _PIXELS = (1, 3), 400
# A file may unpack to this many bytes, or to this many times its size.
_MOST_UNPACKED, _MOST_RATIO = 4e9, 60
# Pixels a side that a frame needs at least.
_LEAST_SIDE = 4


@dataclass(kw_only=True)
class Foreign:
    """What a file holds, N frames; None for what it lacks.

    Attributes:
        images: (N, H, W, 3) uint8.
        depth: (N, H, W) float32, 0 where unknown.
        confidence: (N, H, W) float32.
        w2c: (N, 4, 4) float64.
        K: (N, 3, 3) float64, pixels of depth, or of the images if there is no depth.
        ignored: (N, H, W) bool.
        names: of the images.
        stated: (H, W) that the file says its intrinsics are of; None if it says nothing.
        numbers: of the frames in their clip, from 0; empty for all in order.
        notes: what was assumed, in words.
    """

    images: Array | None = None
    depth: Array | None = None
    confidence: Array | None = None
    w2c: Array | None = None
    K: Array | None = None
    ignored: Array | None = None
    names: tuple[str, ...] = ()
    stated: tuple[int, int] | None = None
    numbers: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        there = next((a for a in (self.images, self.depth, self.w2c, self.K) if a is not None), None)
        return 0 if there is None else len(there)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        there = self.depth if self.depth is not None else self.images
        if there is None:
            raise ValueError("neither depth nor images")
        return there.shape[1], there.shape[2]

    def select(self, rows: Array) -> "Foreign":
        """Some of the frames."""
        one = lambda array: None if array is None else array[rows]  # noqa: E731
        return Foreign(
            images=one(self.images),
            depth=one(self.depth),
            confidence=one(self.confidence),
            w2c=one(self.w2c),
            K=one(self.K),
            ignored=one(self.ignored),
            names=tuple(self.names[int(i)] for i in rows) if self.names else (),
            stated=self.stated,
            numbers=tuple(self.numbers[int(i)] for i in rows) if self.numbers else (),
            notes=self.notes,
        )


def named(there: Iterable[str]) -> dict[str, str]:
    """What each name in a file holds: kind -> name."""
    names = {name.lower(): name for name in there}
    found: dict[str, str] = {}
    for kind, known in NAMES.items():
        match = next((names[name.lower()] for name in known if name.lower() in names), None)
        if match is not None:
            found[kind] = match
    return found


def understood(path: Path, stored: Mapping[str, Any], *, ours: bool = False) -> Foreign:
    """The arrays of a file in this program's conventions.

    Args:
        path: the file, for messages.
        stored: name -> array.
        ours: directions and sizes are known to be right.

    Raises:
        CorruptArtifactError: shapes or values that make no sense.
    """
    kinds = named(stored)
    get = lambda kind: _array(path, kinds[kind], stored[kinds[kind]]) if kind in kinds else None  # noqa: E731
    result = Foreign()
    result.images = _images(path, get("image"))
    result.depth = _maps(path, "depth", get("depth"))
    result.confidence = _maps(path, "conf", get("conf"))
    if result.confidence is not None:
        result.confidence = _bounded(result.confidence)
    result.K = _intrinsics(path, get("K"))
    w2c, c2w = get("w2c"), get("c2w")
    if w2c is not None:
        result.w2c = _poses(path, kinds["w2c"], w2c)
    elif c2w is not None:
        result.w2c = invert_rigid(_poses(path, kinds["c2w"], c2w))
    if (data := get("data")) is not None and "numbers" in kinds:
        _of_vipe(path, result, data)
    result.stated = _stated(stored, kinds)
    local, world = get("local"), get("world")
    if result.depth is None and local is not None:
        _from_local(path, result, _maps(path, kinds["local"], local, 3))
    elif result.depth is None and world is not None and result.w2c is not None:
        points = _maps(path, kinds["world"], world, 3)
        result.depth = np.einsum("nhwc,nc->nhw", points, result.w2c[:, 2, :3]).astype(np.float32) + result.w2c[:, 2, 3][
            :, None, None
        ].astype(np.float32)
    ignored = get("ignored")
    result.ignored = None if ignored is None else ignored.astype(bool)
    if "names" in kinds:
        result.names = tuple(str(name) for name in np.asarray(stored[kinds["names"]]).ravel())
    if (numbers := get("numbers")) is not None:
        result.numbers = tuple(int(number) for number in numbers.ravel())
    _one_count(path, result)
    _one_size(path, result)
    if result.depth is not None:
        result.depth = np.where(np.isfinite(result.depth) & (result.depth > 0), result.depth, 0).astype(np.float32)
    if ours:
        return result
    if result.K is not None and (result.depth is not None or result.images is not None):
        _own_intrinsics(result)
    _told_direction(result)
    return result


def _of_vipe(path: Path, result: Foreign, data: Array) -> None:
    """ViPE's files of one array each (Lyra): poses c2w (N, 4, 4), or intrinsics (N, 4) or (N, 3, 3)."""
    if data.shape[1:] in ((4, 4), (16,)):
        result.w2c = invert_rigid(_poses(path, "data", data.reshape(-1, 4, 4)))
    elif result.K is None:
        result.K = _intrinsics(path, data)


def _stated(stored: Mapping[str, Any], kinds: Mapping[str, str]) -> tuple[int, int] | None:
    """(H, W) that the file states."""
    if "height" not in kinds or "width" not in kinds:
        return None
    sides = [np.asarray(stored[kinds[name]]).ravel() for name in ("height", "width")]
    if not all(side.size and np.issubdtype(side.dtype, np.number) and 1 <= side[0] <= 1e6 for side in sides):
        return None
    return int(sides[0][0]), int(sides[1][0])


def read_arrays(path: Path, *, ours: bool = False) -> Foreign:
    """What an npz file of another program holds.

    Args:
        path: the file.
        ours: this program wrote it, so that nothing has to be told from its content.

    Raises:
        CorruptArtifactError: no npz, one that would unpack to very much more than it is, or arrays that make no sense.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(_MOST_UNPACKED, _MOST_RATIO * path.stat().st_size):
            raise CorruptArtifactError(
                f"{path} unpacks from {path.stat().st_size / 1e6:.1f} MB to {unpacked / 1e9:.1f} GB",
                "such a file holds no frames; make it again",
            )
        with np.load(path, allow_pickle=False) as stored:
            wanted = named(stored.files).values()
            arrays, notes = {}, []
            for name in wanted:
                try:
                    arrays[name] = stored[name]
                except ValueError as error:  # None and other objects are stored as pickles
                    if "pickle" not in str(error):
                        raise
                    notes.append(f"{name} holds no array and is not heeded")
            held = stored.files
    except (
        zipfile.BadZipFile,
        ValueError,
        OverflowError,
        EOFError,
        OSError,
        zlib.error,
        NotImplementedError,
        MemoryError,
        KeyError,
    ) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}", "the file is truncated or no npz; make it again") from error
    result = understood(path, arrays, ours=ours)
    if not len(result):
        raise CorruptArtifactError(
            f"{path} lacks image, depth, extrinsics and intrinsics; it holds {', '.join(held[:12]) or 'nothing'}",
            "give arrays of frames, as Depth Anything 3, VGGT, MapAnything or Pi3 save them",
        )
    result.notes[:0] = notes
    return result


def scene_of(path: Path, found: Foreign) -> Scene:
    """The scene that a file holds all of; frames without any depth are left out.

    Raises:
        CorruptArtifactError: something is missing, or fewer than two frames have depth.
    """
    images, depth, w2c, K = found.images, found.depth, found.w2c, found.K
    if images is None or depth is None or w2c is None or K is None:
        held = {"image": images, "depth": depth, "extrinsics": w2c, "intrinsics": K}
        raise CorruptArtifactError(
            f"{path} lacks {', '.join(name for name, array in held.items() if array is None)}",
            f"let it be made up for from the frames: python preprocess_video.py --frames_dir FRAMES --cameras {path}",
        )
    shown = np.flatnonzero((depth > 0).any(axis=(1, 2)))
    if len(shown) < 2:
        raise CorruptArtifactError(f"{path}: it holds {len(shown)} frame(s) with valid depth, at least 2 are needed", "give more frames")
    if len(shown) < len(depth):
        first = np.setdiff1d(np.arange(len(depth)), shown)[0]
        found.notes.append(f"{len(depth) - len(shown)} frames without any depth are left out, the first is {first}")
        return scene_of(path, found.select(shown))
    height, width = found.size
    if min(height, width) < _LEAST_SIDE:
        raise CorruptArtifactError(f"{path}: frames of {width}x{height} pixels", f"give frames of at least {_LEAST_SIDE} pixels a side")
    known = depth > 0
    confidence = np.ones_like(depth) if found.confidence is None else found.confidence
    if not known.all():
        confidence = np.where(known, confidence, min(float(confidence.min()), 1.0)).astype(np.float32)
    cameras = CameraSet(c2w=invert_rigid(w2c), K=K, size=found.size, frame_ids=np.arange(len(depth)))
    return Scene(cameras=cameras, images=images, depth=depth, confidence=confidence, ignored=found.ignored)


def _array(path: Path, name: str, value: Any) -> Array:
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise CorruptArtifactError(f"{path}: {name} holds {array.dtype}, expected numbers", "save arrays of numbers")
    return array


def _fail(path: Path, name: str, shape: tuple[int, ...], wanted: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{path}: {name} has shape {shape}, expected {wanted}", "see docs/file-formats.md for the arrays that are understood"
    )


def _images(path: Path, array: Array | None) -> Array | None:
    """(N, H, W, 3) uint8."""
    if array is None:
        return None
    shape = array.shape
    while array.ndim > 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4 and array.shape[-1] not in (3, 4) and array.shape[1] in (3, 4):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] not in (3, 4):
        raise _fail(path, "image", shape, "(N, H, W, 3) or (N, 3, H, W)")
    array = array[..., :3]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float32))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < -0.01:
        values = (values + 1) / 2 if low >= -1.01 and high <= 1.01 else (values - low) / max(high - low, 1e-6)
    elif high > 1.5:
        values = values / (255 if high <= 255.5 else 65535)
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _maps(path: Path, name: str, array: Array | None, channels: int = 1) -> Any:
    """(N, H, W) float32, or (N, H, W, channels)."""
    if array is None:
        return None
    shape, dims = array.shape, 3 if channels == 1 else 4
    while array.ndim > dims and (array.shape[-1] == 1 and channels == 1):
        array = array[..., 0]
    while array.ndim > dims and 1 in array.shape[: array.ndim - dims + 1]:
        array = array.squeeze(array.shape.index(1))
    if channels > 1 and array.ndim == dims and array.shape[-1] != channels and array.shape[1] == channels:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != dims or (channels > 1 and array.shape[-1] != channels) or 0 in array.shape:
        raise _fail(path, name, shape, "(N, H, W)" if channels == 1 else f"(N, H, W, {channels})")
    return array.astype(np.float32)


def _bounded(confidence: Array) -> Array:
    """Confidence without negative values: those are logits."""
    finite = confidence[np.isfinite(confidence)]
    if not finite.size:
        return np.zeros_like(confidence)
    if finite.min() < 0:
        confidence = 1 / (1 + np.exp(-np.clip(confidence, -30, 30)))
        finite = confidence[np.isfinite(confidence)]
    return np.where(np.isfinite(confidence), confidence, finite.min()).astype(np.float32)


def _intrinsics(path: Path, array: Array | None) -> Array | None:
    """(N, 3, 3); one for all stays (1, 3, 3)."""
    if array is None:
        return None
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.shape[-2:] == (4, 4):
        array = array[..., :3, :3]
    if array.ndim == 2 and array.shape == (3, 3):
        array = array[None]
    elif array.ndim in (1, 2) and array.shape[-1] == 4:  # fx, fy, cx, cy
        rows = array.reshape(-1, 4).astype(np.float64)
        array = np.tile(np.eye(3), (len(rows), 1, 1))
        array[:, [0, 1, 0, 1], [0, 1, 2, 2]] = rows
    if array.ndim != 3 or array.shape[1:] != (3, 3):
        raise _fail(path, "intrinsics", shape, "(N, 3, 3)")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise CorruptArtifactError(f"{path}: a pose or an intrinsic matrix is not finite", "correct the file, or make it again")
    if not (array[:, [0, 1], [0, 1]] > 0).all():
        raise CorruptArtifactError(f"{path}: a focal length is not positive", "correct the file, or make it again")
    return array


def _poses(path: Path, name: str, array: Array) -> Array:
    """(N, 4, 4) rigid."""
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[1:] not in ((3, 4), (4, 4)):
        raise _fail(path, name, shape, "(N, 3, 4) or (N, 4, 4)")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise CorruptArtifactError(f"{path}: a pose or an intrinsic matrix is not finite", "correct the file, or make it again")
    if array.shape[1:] == (4, 4) and np.abs(array[:, 3, :3]).max() > 1e-6 and np.abs(array[:, :3, 3]).max() < 1e-6:
        array = array.transpose(0, 2, 1)  # saved for row vectors
    poses = to_4x4(array[:, :3])
    skew = np.abs(np.swapaxes(poses[:, :3, :3], 1, 2) @ poses[:, :3, :3] - np.eye(3)).max()
    if not skew < _SKEW:
        raise CorruptArtifactError(
            f"{path}: {name} are no rigid motions (rotation deviates from orthonormal by {skew:.3g})", "correct the file, or make it again"
        )
    if (np.linalg.det(poses[:, :3, :3]) < 0).any():
        raise CorruptArtifactError(f"{path}: {name} hold mirrored cameras (determinant -1)", "correct the file, or make it again")
    return orthonormalized(poses)


def _from_local(path: Path, result: Foreign, points: Array) -> None:
    """Depth, and intrinsics if there are none, of camera-space points (N, H, W, 3)."""
    result.depth = points[..., 2].astype(np.float32)
    if result.K is not None:
        return
    height, width = points.shape[1:3]
    K = np.zeros((len(points), 3, 3))
    for row, (x, y, z) in enumerate(points.transpose(0, 3, 1, 2)):
        seen = np.isfinite(z) & (z > 1e-6)
        if seen.sum() < 100:
            raise CorruptArtifactError(f"{path}: frame {row} has no points to tell its focal length from", "make the file again")
        v, u = np.nonzero(seen)
        fx, cx = np.polyfit(x[seen] / z[seen], u + 0.5, 1)
        fy, cy = np.polyfit(y[seen] / z[seen], v + 0.5, 1)
        K[row] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    if not (np.isfinite(K).all() and (K[:, [0, 1], [0, 1]] > 0).all()):
        raise CorruptArtifactError(f"{path}: the points are those of no pinhole camera", "save intrinsics too")
    shared = np.median(K, axis=0)
    if np.abs(K - shared).max() < 0.02 * max(height, width):
        K[:] = shared
    result.K = K
    result.notes.append(f"focal length {np.median(K[:, 0, 0]):.0f} px is told from the points")


def _one_count(path: Path, result: Foreign) -> None:
    """All arrays have one number of frames; one K stands for all."""
    counts = {
        name: len(array)
        for name, array in (("image", result.images), ("depth", result.depth), ("conf", result.confidence), ("extrinsics", result.w2c))
        if array is not None
    }
    if not counts:
        return
    frames = max(counts.values())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CorruptArtifactError(f"{path}: arrays of several numbers of frames: {listed}", "save all arrays for the same frames")
    if result.K is not None and len(result.K) == 1:
        result.K = np.repeat(result.K, frames, axis=0)
    if result.numbers and len(result.numbers) != frames:
        raise CorruptArtifactError(f"{path}: {len(result.numbers)} numbers of {frames} frames", "save all arrays for the same frames")
    if result.K is not None and len(result.K) != frames:
        raise CorruptArtifactError(
            f"{path}: intrinsics of {len(result.K)} frames, but {frames} frames", "save all arrays for the same frames"
        )


def _one_size(path: Path, result: Foreign) -> None:
    """Images, confidence and masks have the size of depth."""
    if result.depth is None:
        return
    size = result.size
    if result.images is not None and result.images.shape[1:3] != size:
        h, w = result.images.shape[1:3]
        if abs(np.log(w * size[0] / (h * size[1]))) > 0.06:
            raise CorruptArtifactError(
                f"{path}: depth has shape {result.depth.shape}, images are {w}x{h}: another aspect", "save depth and images of one size"
            )
        result.images = np.stack([resized(image, size) for image in result.images])
        result.notes.append(f"images of {w}x{h} are brought to the size of depth, {size[1]}x{size[0]}")
    for name, array in (("conf", result.confidence), ("ignored", result.ignored)):
        if array is not None and array.shape != result.depth.shape:
            raise CorruptArtifactError(f"{path}: {name} has shape {array.shape}, expected {result.depth.shape}", "save arrays of one size")


def _own_intrinsics(result: Foreign) -> None:
    """Intrinsics of this size: those of the original image, or of an image of width 1, are scaled."""
    height, width = result.size
    K = result.K
    if K is None:
        return
    centre = np.median(K[:, :2, 2], axis=0)
    if (K[:, :2, 2] < 2).all() and (centre > 0.2).all() and max(width, height) > 16 and np.median(K[:, 0, 0]) < 8:
        result.K = np.diag([width, height, 1.0]) @ K
        result.notes.append("intrinsics are shares of the image's size")
        return
    off = np.abs(centre / [width, height] - 0.5)
    if (off > _OFF_CENTRE).all() and (centre > 1).all():
        scale = np.array([width, height]) / (2 * centre)
        if 0.8 < scale[0] / scale[1] < 1.25:
            result.K = np.diag([*scale, 1.0]) @ K
            original = f"{2 * centre[0]:.0f}x{2 * centre[1]:.0f}"
            result.notes.append(f"intrinsics are those of a picture of {original}, not {width}x{height}: they are scaled")


def _told_direction(result: Foreign) -> None:
    """Turns poses round where depth says that they are the other way round."""
    if result.w2c is None or result.depth is None or result.K is None or len(result.w2c) < 2:
        return
    given = _disagreement(result.depth, result.w2c, result.K)
    turned = _disagreement(result.depth, invert_rigid(result.w2c), result.K)
    if turned < _CLEARLY * given:
        result.w2c = invert_rigid(result.w2c)
        result.notes.append("poses are camera-to-world by what depth says, and are taken so")


def _disagreement(depth: Array, w2c: Array, K: Array) -> float:
    """Median over pixels of how much a frame's depth, carried into another frame, differs from that one's; 1 where it lands outside."""
    frames, height, width = depth.shape
    rng = np.random.default_rng(0)
    errors = []
    for gap in _GAPS:
        for a in np.unique(np.linspace(0, frames - 1 - gap, 12).astype(int)) if frames > gap else ():
            b = a + gap
            y, x = rng.integers(0, height, _PIXELS), rng.integers(0, width, _PIXELS)
            z = depth[a, y, x].astype(np.float64)
            y, x, z = y[z > 0], x[z > 0], z[z > 0]
            local = np.stack([(x + 0.5 - K[a, 0, 2]) / K[a, 0, 0] * z, (y + 0.5 - K[a, 1, 2]) / K[a, 1, 1] * z, z, np.ones_like(z)], -1)
            there = local @ (w2c[b] @ invert_rigid(w2c[a])).T
            error = np.ones(len(z))
            front = there[:, 2] > 1e-9
            px = K[b, 0, 0] * there[:, 0] / np.where(front, there[:, 2], 1) + K[b, 0, 2]
            py = K[b, 1, 1] * there[:, 1] / np.where(front, there[:, 2], 1) + K[b, 1, 2]
            inside = front & (px >= 0) & (py >= 0) & (px < width) & (py < height)
            found = depth[b, py[inside].astype(int), px[inside].astype(int)]
            seen = found > 0
            error[np.flatnonzero(inside)[seen]] = np.minimum(np.abs(np.log(found[seen] / there[inside, 2][seen])), 1)
            errors.append(error)
    return float(np.median(np.concatenate(errors))) if errors else 1.0
