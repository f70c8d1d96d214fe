"""What a viewer's server reads of a scene, without PyTorch: files for the browser, frames, clouds before and after alignment.

A training that goes on keeps its `view` folder beside the folder it will become; the newest of both is shown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout

# Names of `utils.splatting.checkpoint` and `utils.exports.view`, which are not imported: they load PyTorch.
MODEL, PREVIEW, VIEW, SETTINGS = "model_final.pt", "preview.pt", "view", "view.json"
Cloud = Literal["before", "after"]
_MOST_POINTS = 150_000
# The `.splat` format, see `utils.exports.splat`.
RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


@dataclass(frozen=True)
class Shown:
    """What can be shown now.

    Attributes:
        settings: content of `view.json`.
        file: the splats.
        version: changes when the splats do.
    """

    settings: dict[str, Any]
    file: Path
    version: str


@dataclass(frozen=True)
class World:
    """One training of a scene, finished or not.

    Attributes:
        root: the scene.
        folder: where the trained splats are or will be.
    """

    root: Path
    folder: Path

    @property
    def unfinished(self) -> Path:
        """Where the training keeps its state until it is done."""
        return self.folder.with_name(f"{self.folder.name}.resume")

    def prepared(self) -> bool:
        """Whether the files for the browser are as new as the splats they show."""
        model = _time(self.folder / MODEL)
        return not model or _time(self.folder / VIEW / SETTINGS) >= model

    def look(self) -> Shown | None:
        """The newest splats with what belongs to them; None if there are none, or they are being replaced."""
        found = [f / VIEW / SETTINGS for f in (self.folder, self.unfinished)]
        newest = max(found, key=_time)
        try:
            settings = json_object(newest)
            file = newest.parent / settings["file"]
            return Shown(settings, file, f"{_time(newest):x}-{file.stat().st_mtime_ns:x}{file.suffix}")
        except (OSError, KeyError, TypeError):
            return None

    def ply(self) -> Path | None:
        """The exact file of a finished world; its rows are in the order of the splats that are shown."""
        path = self.folder / f"splats_{self.folder.name.removeprefix('gs_')}.ply"
        return path if path.is_file() else None

    def frame(self, frame_id: int) -> Path | None:
        """The picture of a frame of the scene."""
        folder = SceneLayout(self.root).frames_subsampled
        try:
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        except OSError:
            return None
        return files[frame_id] if 0 <= frame_id < len(files) else None

    def clips(self, frames: list[int]) -> list[int]:
        """Number of the clip, from 0, that each of these frames of the scene is from; all 0 where nothing tells."""
        told = json_object(SceneLayout(self.root).preprocess_json)
        positions, totals = told.get("positions"), told.get("clip_frames")
        if not isinstance(positions, list) or not isinstance(totals, list) or max(frames, default=0) >= len(positions):
            return [0] * len(frames)
        try:
            ends = np.cumsum([int(total) for total in totals])
            return [int(np.searchsorted(ends, int(positions[frame]), side="right")) for frame in frames]
        except (TypeError, ValueError):
            return [0] * len(frames)

    def clouds(self) -> list[Cloud]:
        """The clouds that can be shown."""
        before = SceneLayout(self.root).results_npz.is_file()
        return [*(["before"] if before else []), *(["after"] if alignment_folder(self.folder.parent) else [])]  # type: ignore[list-item]

    def cloud(self, which: Cloud) -> bytes:
        """Points as small balls in the `.splat` format: stage 0's depth with its poses, or the cloud after alignment.

        Raises:
            OSError: it is not there.
        """
        if which == "before":
            return input_cloud(SceneLayout(self.root).results_npz)
        folder = alignment_folder(self.folder.parent)
        if folder is None:
            raise FileNotFoundError(which)
        return aligned_cloud(folder)


def newest_training(root: Path) -> Path | None:
    """The folder of the newest training of a scene, finished or under way."""
    layout = SceneLayout(root)
    found: dict[Path, int] = {}
    for name in layout.runs():
        for path in (*layout.run(name).root.glob(f"gs_*/{MODEL}"), *layout.run(name).root.glob(f"gs_*.resume/{VIEW}/{SETTINGS}")):
            folder = next(p for p in path.parents if p.name.startswith("gs_"))
            folder = folder.with_suffix("") if folder.suffix == ".resume" else folder
            if not folder.suffix:
                found[folder] = max(found.get(folder, 0), _time(path))
    return max(found, key=lambda f: found[f], default=None)


def input_cloud(results: Path) -> bytes:
    """World points of stage 0's depth and poses."""
    with np.load(results) as data:
        depth, images = data["depth"], data["image"]
        K, w2c = data["intrinsics"].astype(np.float64), data["extrinsics"].astype(np.float64)
    known = np.isfinite(depth) & (depth > 0)
    step = max(1, int(np.count_nonzero(known) / _MOST_POINTS))
    points, colors, sizes = [], [], []
    for i in range(len(depth)):
        y, x = (v[i % step :: step] for v in np.nonzero(known[i]))
        z = depth[i, y, x].astype(np.float64)
        rays = np.stack([(x + 0.5 - K[i, 0, 2]) / K[i, 0, 0], (y + 0.5 - K[i, 1, 2]) / K[i, 1, 1], np.ones(len(x))], axis=1)
        rotation, shift = w2c[i, :3, :3], w2c[i, :3, 3]
        points.append((rays * z[:, None] - shift) @ rotation)
        colors.append(images[i, y, x])
        sizes.append(z / K[i, 0, 0])
    return balls(np.concatenate(points), np.concatenate(colors), 0.35 * np.sqrt(step) * np.concatenate(sizes))


def aligned_cloud(folder: Path) -> bytes:
    """The canonical cloud of an alignment."""
    with np.load(folder / "canonical_points.npz") as data:
        step = max(1, len(data["points"]) // _MOST_POINTS)
        points, colors, frame = (data[name][::step] for name in ("points", "colors", "frame"))
    with np.load(folder / "alignment.npz") as data:
        w2c, focal, ids = data["original_w2c"], data["K"][:, 0, 0], data["frame_ids"]
    position = np.searchsorted(ids, frame).clip(0, len(ids) - 1)
    depth = np.einsum("nk,nk->n", w2c[position, 2, :3], points) + w2c[position, 2, 3]
    return balls(points, colors, 0.35 * np.sqrt(step) * np.abs(depth) / focal[position])


def balls(points: np.ndarray, colors: np.ndarray, sizes: np.ndarray) -> bytes:
    """Points (n, 3) with colours (n, 3) uint8 as round splats of these standard deviations (n,), in the `.splat` format."""
    table = np.zeros(len(points), dtype=RECORD)
    table["position"] = points
    table["scale"] = np.maximum(sizes, 1e-9)[:, None]
    table["rgba"][:, :3] = colors
    table["rgba"][:, 3] = 255
    table["rotation"] = (255, 128, 128, 128)
    return table.tobytes()


def alignment_folder(run: Path) -> Path | None:
    """The newest alignment of a run that is whole; None if there is none."""
    layout = RunLayout(run)
    for folder in (layout.after_global_optimization, layout.after_non_rigid_icp):
        if (folder / "canonical_points.npz").is_file() and (folder / "alignment.npz").is_file():
            return folder
    return None


def _time(path: Path) -> int:
    """When the file was written, in nanoseconds; 0 if it is not there, as while it is being replaced."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
