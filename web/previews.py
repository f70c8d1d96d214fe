"""Pictures of a run on its way: depth of its middle frame, and its points seen from a little aside."""

from pathlib import Path

import cv2
import numpy as np

from utils.scene.layout import SceneLayout
from utils.viewer.world import RECORD, aligned_cloud, alignment_folder, input_cloud

_SIZE = (270, 480)
_FIELD_OF_VIEW = 0.9


def available(root: Path) -> list[str]:
    """The pictures that can be made now."""
    return ["depth", "points"] if SceneLayout(root).results_npz.is_file() else []


def picture(root: Path, kind: str) -> bytes:
    """A JPEG.

    Raises:
        OSError: what it is made from is not there.
    """
    made = depth_picture(SceneLayout(root).results_npz) if kind == "depth" else points_picture(root)
    return cv2.imencode(".jpg", made, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def version(root: Path) -> str:
    """Changes when the pictures do."""
    layout = SceneLayout(root)
    aligned = _newest_alignment(layout)
    times = [p.stat().st_mtime_ns for p in (layout.results_npz, aligned) if p is not None and p.exists()]
    return f"{max(times, default=0):x}"


def depth_picture(results: Path) -> np.ndarray:
    """(h, w, 3) BGR: near is bright."""
    with np.load(results) as data:
        depth = data["depth"][len(data["depth"]) // 2]
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.where(known, 1 / np.maximum(depth, 1e-9), 0)
    low, high = np.percentile(inverse[known], (2, 98)) if known.any() else (0, 1)
    flat = high - low < 1e-3 * high
    grey = np.full_like(inverse, 0.5) if flat else np.clip((inverse - low) / max(high - low, 1e-9), 0, 1)
    picture = cv2.applyColorMap((grey * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    picture[~known] = 0
    return picture


def points_picture(root: Path) -> np.ndarray:
    """(h, w, 3) BGR: the cloud of the newest alignment, or of geometry, from behind and above the middle camera."""
    layout = SceneLayout(root)
    folder = _newest_alignment(layout)
    cloud = np.frombuffer(aligned_cloud(folder) if folder is not None else input_cloud(layout.results_npz), RECORD)
    with np.load(layout.results_npz) as data:
        w2c = data["extrinsics"][len(data["extrinsics"]) // 2].astype(np.float64)
    points = cloud["position"].astype(np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    middle = np.median(points, axis=0)
    # Turned about what the camera sees, by 25 degrees down and 20 to the side, from half as far again.
    turn = cv2.Rodrigues(np.array([np.radians(25), 0, 0]))[0] @ cv2.Rodrigues(np.array([0, np.radians(20), 0]))[0]
    seen = (points - middle) @ turn.T + np.array([0, 0, 1.5 * np.linalg.norm(middle)])
    h, w = _SIZE
    focal = 0.5 * h / np.tan(_FIELD_OF_VIEW / 2)
    ahead = seen[:, 2] > 1e-6
    seen, colors = seen[ahead], cloud["rgba"][ahead, :3]
    x, y = (focal * seen[:, :2] / seen[:, 2:] + (w / 2, h / 2)).T.astype(int)
    inside = (x >= 0) & (x < w - 1) & (y >= 0) & (y < h - 1)
    order = np.argsort(-seen[inside, 2])
    x, y, colors = x[inside][order], y[inside][order], colors[inside][order]
    picture = np.full((h, w, 3), 24, np.uint8)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        picture[y + dy, x + dx] = colors[:, ::-1]
    return picture


def _newest_alignment(layout: SceneLayout) -> Path | None:
    folders = [alignment_folder(layout.run(name).root) for name in layout.runs()]
    return next((f for f in reversed(folders) if f is not None), None)
