"""Reading and writing what stages hand to each other: results.npz, alignments, clouds. One writer and one checked reader each."""

import contextlib
import errno
import functools
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.cameras import se3
from utils.errors import CorruptArtifactError, MissingArtifactError
from utils.scene.folders import list_frames
from utils.scene.foreign import read_arrays, scene_of
from utils.scene.json_files import read_json
from utils.scene.layout import SceneLayout
from utils.scene.manifest import MANIFEST, content_hash, portable, read_manifest, require_fresh, sha256, writing
from utils.scene.media import read_frames
from utils.types import CONVENTIONS, Alignment, Array, CameraSet, CanonicalCloud, LatticeFields, Scene

_LOGGER = logging.getLogger(__name__)
# What has been told of files.
_TOLD: set[tuple[Path, str]] = set()

ALIGNMENT_SCHEMA = "alignment/2"
_MADE_BY = {
    "results": "python preprocess_video.py --input_video CLIP --scene_root {root}",
    "after_non_rigid_icp": "python -m frame_to_model_icp --config.root-path {root}",
    "after_global_optimization": "python -m global_optimization --config.root-path {root} --config.run {run}",
    "inverse_deformation": "python -m train_inverse_deformation --config.root-path {root} --config.run {run}",
}


# ------------------------------------------------------------------------------------------------ results.npz


def save_results(folder: Path, scene: Scene) -> Path:
    """Writes `results.npz` in the layout of Depth Anything 3: image, depth, conf, extrinsics (w2c), intrinsics; `ignored` with masks."""
    path = folder / "results.npz"
    arrays: dict[str, Any] = {
        "image": scene.images,
        "depth": scene.depth.astype(np.float32),
        "conf": scene.confidence.astype(np.float32),
        "extrinsics": scene.cameras.w2c[:, :3].astype(np.float32),
        "intrinsics": scene.cameras.K.astype(np.float32),
    }
    if scene.ignored is not None:
        arrays["ignored"] = scene.ignored
    np.savez(path, **arrays)
    return path


def load_scene(root: Path) -> Scene:
    """The scene of `<root>/exports/npz/results.npz`, whoever wrote it.

    Other programs' arrays are understood as `utils.scene.foreign` says. Non-finite or non-positive depth counts as unknown (0), with the
    lowest confidence; images that the file lacks are looked for in the scene's folders.

    Raises:
        MissingArtifactError: no results.npz.
        CorruptArtifactError: truncated file, missing arrays, wrong shapes, no valid depth, or poses that are no rigid motions.
    """
    path = SceneLayout(root).results_npz
    if not path.is_file():
        raise MissingArtifactError(f"{path} is missing", "make it with: " + _MADE_BY["results"].format(root=root))
    found = read_arrays(path, ours=(path.parent / MANIFEST).is_file())
    if found.images is None and found.depth is not None:
        found.images = _images_beside(root, found.size, len(found))
    scene = scene_of(path, found)
    for note in found.notes:  # once: every stage of a run reads the file
        if (path, note) not in _TOLD:
            _TOLD.add((path, note))
            _LOGGER.info("  %s: %s", path.name, note)
    return scene


def _images_beside(root: Path, size: tuple[int, int], frames: int) -> Array | None:
    """(N, H, W, 3) images of a scene folder whose results.npz has none, as Depth Anything 3's small export."""
    layout = SceneLayout(root)
    for folder in (root / "input_images", root / "images", layout.frames_subsampled, layout.frames):
        if folder.is_dir() and len(paths := list_frames(folder)) == frames:
            return read_frames(paths, size)
    return None


def count_frames(root: Path) -> int:
    """Frames of the scene that results.npz holds.

    Raises:
        CorruptArtifactError: unreadable.
    """
    path = SceneLayout(root).results_npz
    if (path.parent / MANIFEST).is_file():
        return len(_read_npz(path, ("intrinsics",))["intrinsics"])
    return len(load_scene(root))


def clip_of_frames(root: Path, frames: int) -> Array:
    """(frames,) number of the clip that each frame of results.npz is from; all 0 where nothing tells."""
    path = SceneLayout(root).preprocess_json
    told = read_json(path) if path.is_file() else {}
    positions, totals = told.get("positions", []), told.get("clip_frames", [])
    if len(positions) != frames or not totals:
        return np.zeros(frames, int)
    return np.searchsorted(np.cumsum(totals), positions, side="right")


def scene_id(root: Path) -> str:
    """Content id of results.npz: its bytes, since other programs write it too."""
    path = SceneLayout(root).results_npz
    if not path.is_file():
        raise MissingArtifactError(f"{path} is missing", "make it with: " + _MADE_BY["results"].format(root=root))
    stat = path.stat()
    return _results_id(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _results_id(path: Path, size: int, changed: int) -> str:
    """The id of the file as it is; every stage of a run asks for it."""
    return content_hash("results", sha256(path))


def _read_npz(path: Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [k for k in keys if k not in stored.files]
            if missing:
                raise CorruptArtifactError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(stored.files) or 'nothing'}",
                    "give a results.npz with image, depth, conf, extrinsics and intrinsics, as Depth Anything 3 exports it",
                )
            return {k: stored[k] for k in (*keys, *optional) if k in stored.files}
    except (zipfile.BadZipFile, ValueError, OverflowError, EOFError, OSError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}", "the file is truncated or no npz; make it again") from error


# ------------------------------------------------------------------------------------------------ alignment


def save_alignment(folder: Path, alignment: Alignment, config: Any) -> dict[str, str]:
    """Writes the files of `after_non_rigid_icp/` or `after_global_optimization/` (call inside `publish`, before `write_manifest`).

    Returns:
        `sha256` of the large ones, by name.
    """
    (folder / "config.json").write_text(json.dumps(portable(config), indent=1))
    (folder / "convention.json").write_text(
        json.dumps({"variant": "c2w", "global_deform_is": "c2w", "local_deform_space": "camera", **CONVENTIONS}, indent=1)
    )
    twists = se3.log(torch.from_numpy(alignment.cameras.c2w)) if len(alignment.cameras) else torch.zeros(0, 6)
    for i, twist in enumerate(twists):
        save_tensors(folder / f"per_frame_global_deform_{i:05d}.pt", twist)
        save_tensors(folder / f"per_frame_local_deform_{i:05d}.pt", {"nodes": torch.from_numpy(alignment.fields.nodes[i])})
    np.savez(
        folder / "alignment.npz",
        K=alignment.cameras.K,
        size=np.array(alignment.cameras.size),
        frame_ids=alignment.cameras.frame_ids,
        inv_depth_range=alignment.fields.inv_depth_range,
        original_w2c=alignment.original_w2c,
        aligned=alignment.aligned,
        heldout=alignment.heldout,
        **({} if alignment.color_maps is None else {"color_maps": alignment.color_maps}),  # type: ignore[arg-type]
    )
    return save_cloud(folder, alignment.cloud)


def load_alignment(folder: Path, made_by: str = "", with_cloud: bool = True) -> Alignment:
    """An alignment as `save_alignment` wrote it; the manifest is checked first.

    Args:
        folder: the artifact.
        made_by: the command that makes it, for hints.
        with_cloud: read the cloud too, by far the largest part; otherwise it is empty.

    Raises:
        ArtifactError: missing, corrupt, or of another format.
    """
    made_by = made_by or _MADE_BY.get(folder.name, "run_reconstruction.py").format(root=folder.parent.parent, run=folder.parent.name)
    read_manifest(folder, ALIGNMENT_SCHEMA, made_by)
    needed = ("K", "size", "frame_ids", "inv_depth_range", "original_w2c", "aligned")
    stored = _read_npz(folder / "alignment.npz", needed, ("color_maps", "heldout"))
    with understood(folder, made_by):
        frames = len(stored["frame_ids"])
        twists = torch.stack([load_tensors(folder / f"per_frame_global_deform_{i:05d}.pt") for i in range(frames)])
        nodes = np.stack([load_tensors(folder / f"per_frame_local_deform_{i:05d}.pt")["nodes"].numpy() for i in range(frames)])
        h, w = (int(v) for v in stored["size"])
        cameras = CameraSet(c2w=se3.exp(twists.double()).numpy(), K=stored["K"], size=(h, w), frame_ids=stored["frame_ids"])
        for values in (cameras.c2w, cameras.K, nodes, stored["inv_depth_range"], stored["original_w2c"]):
            if not np.isfinite(values).all():
                raise ValueError("some numbers are infinite, or none")
        if not (stored["inv_depth_range"] > 0).all():
            raise ValueError("inverse depths of the lattice that are not above 0")
        if stored["original_w2c"].shape != cameras.c2w.shape or stored["frame_ids"].dtype.kind not in "iu":
            raise ValueError("poses or numbers of frames of another kind")
        cloud = load_cloud(folder) if with_cloud else _empty_cloud()
        if not np.isin(cloud.frame, stored["frame_ids"]).all():
            raise ValueError("points of frames that are not in the alignment")
        return Alignment(
            cameras=cameras,
            fields=LatticeFields(nodes=nodes, inv_depth_range=stored["inv_depth_range"]),
            cloud=cloud,
            original_w2c=stored["original_w2c"],
            aligned=stored["aligned"],
            color_maps=stored.get("color_maps"),
            heldout=stored.get("heldout", np.zeros(0, np.int64)),
        )


def save_cloud(folder: Path, cloud: CanonicalCloud) -> dict[str, str]:
    """`canonical_points.npz` for programs and `aligned_points.ply` for eyes; returns their `sha256` by name."""
    arrays, points = folder / "canonical_points.npz", folder / "aligned_points.ply"

    def for_programs() -> str:
        np.savez(
            arrays,
            points=cloud.points.astype(np.float32, copy=False),
            colors=cloud.colors.astype(np.uint8, copy=False),
            frame=cloud.frame.astype(np.int32, copy=False),
            pixel=cloud.pixel.astype(np.int32, copy=False),
        )
        return sha256(arrays)

    def for_eyes() -> str:
        write_points_ply(points, cloud.points, cloud.colors)
        return sha256(points)

    with ThreadPoolExecutor(2) as pool:  # checksums and writing release the interpreter
        written = {arrays.name: pool.submit(for_programs), points.name: pool.submit(for_eyes)}
        return {name: one.result() for name, one in written.items()}


def _empty_cloud() -> CanonicalCloud:
    return CanonicalCloud(
        points=np.zeros((0, 3), np.float32), colors=np.zeros((0, 3), np.uint8), frame=np.zeros(0, np.int32), pixel=np.zeros(0, np.int32)
    )


def load_cloud(folder: Path) -> CanonicalCloud:
    """The cloud of `canonical_points.npz`; raises ArtifactError if it is missing or damaged."""
    path = folder / "canonical_points.npz"
    with understood(path, _MADE_BY.get(folder.name, "run_reconstruction.py").format(root=folder.parent.parent, run=folder.parent.name)):
        stored = _read_npz(path, ("points", "colors", "frame", "pixel"))
        if stored["frame"].dtype.kind not in "iu" or stored["pixel"].dtype.kind not in "iu":
            raise ValueError("frames or pixels that are no whole numbers")
        return CanonicalCloud(**stored)


def write_points_ply(path: Path, points: Array, colors: Array) -> None:
    """Binary little-endian PLY of coloured points: points (N, 3) float, colors (N, 3) uint8."""
    row = np.empty(len(points), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    row["xyz"], row["rgb"] = points, colors
    header = "ply\nformat binary_little_endian 1.0\n" + f"element vertex {len(points)}\n"
    header += "".join(f"property float {c}\n" for c in "xyz") + "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    with path.open("wb") as stream:
        stream.write((header + "end_header\n").encode())
        stream.write(row.data)  # tofile does not tell why it fails


# ------------------------------------------------------------------------------------------------ tensors and reports


@contextlib.contextmanager
def understood(what: Path, made_by: str) -> Iterator[None]:
    """Around code that takes stored values for what they should be: whatever it stumbles over, the file is at fault.

    Raises:
        CorruptArtifactError: values of another type, shape or range.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        told = f"{type(error).__name__} {error}"
        raise CorruptArtifactError(f"{what} does not hold what it should: {told}", f"make it again with: {made_by}") from error


def load_tensors(path: Path) -> Any:
    """A `.pt` file of tensors and plain values; pickled code is refused.

    Raises:
        ArtifactError: missing or unreadable.
    """
    if not path.is_file():
        raise MissingArtifactError(f"{path} is missing", "run the stage that writes it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        raise CorruptArtifactError(f"{path} cannot be read: {error}", "run the stage that writes it again") from error


def save_tensors(path: Path, value: Any) -> None:
    """Writes a `.pt` file of tensors and plain values; on a failure nothing is left of it.

    Raises:
        ArtifactError: the file system refuses.
    """
    with writing(path):
        try:
            torch.save(value, path)
        except (RuntimeError, OSError) as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) or "inline_container" not in str(error):
                raise
            # torch has lost the reason: nearly always the disk is full, and writing as much again tells
            raise OSError(_why_not(path) or errno.ENOSPC, "the file could not be written whole", str(path)) from error


def _why_not(path: Path) -> int:
    """Number of the error that writing a megabyte here meets; 0 for none."""
    try:
        path.write_bytes(bytes(1 << 20))
    except OSError as error:
        return error.errno or 0
    finally:
        path.unlink(missing_ok=True)
    return 0


def write_json(path: Path, value: Any) -> None:
    """JSON, written beside and renamed, so that a reader never sees half a file.

    Raises:
        ArtifactError: the file system refuses.
    """
    with writing(path):
        beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            beside.write_text(json.dumps(portable(value), indent=1))
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def artifact_id(folder: Path, schema: str, made_by: str = "", made_from: dict[str, str] | None = None) -> str:
    """Content id of an artifact folder, for the manifest of what is derived from it.

    Args:
        folder: the artifact.
        schema: its format.
        made_by: the command that makes it, for hints.
        made_from: content ids of its inputs as they are now; those that its manifest knows must agree.

    Raises:
        ArtifactError: missing, corrupt, of another format, or stale.
    """
    made_by = made_by or _MADE_BY.get(folder.name, "run_reconstruction.py").format(root=folder.parent.parent, run=folder.parent.name)
    manifest = read_manifest(folder, schema, made_by)
    require_fresh(folder, manifest, made_from or {}, made_by)
    return manifest.content_id
