"""Cameras of a whole clip for other programs: nerfstudio's transforms.json and a COLMAP model, both of the frames as they lie on disk."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from utils.cameras.lens import Lens
from utils.cameras.projection import transform, unproject_depth
from utils.exports.cameras.colmap import write_colmap_binary
from utils.exports.cameras.nerfstudio import write_transforms
from utils.scene.artifacts import write_points_ply
from utils.sfm.clip_cameras import ClipCameras
from utils.types import Array, CameraSet, Scene

# Points of the scene that go with the cameras: enough to start splats from.
_POINTS = 50_000


def write_clip(
    folder: Path,
    found: ClipCameras,
    names: Sequence[str],
    size: tuple[int, int],
    scene: Scene,
    lens: Lens | None,
    called: Sequence[str] | None = None,
    offset: Sequence[float] = (),
) -> None:
    """Writes `transforms.json`, `points.ply` and `sparse/0/` with every frame that was placed.

    In transforms.json the entry `scene_frame` of a frame is its row in results.npz.

    Args:
        folder: a folder being published.
        found: cameras of all frames at the scene's size.
        names: their files, relative to the folder's final place.
        size: (h, w) of the files.
        scene: gives the points.
        lens: distortion that was taken out for the scene, but not of the files.
        called: their names in the COLMAP model, where the files' names do not tell them apart.
        offset: see `nerfstudio.write_transforms`.
    """
    shown = np.flatnonzero(found.placed).tolist()
    cameras = CameraSet(c2w=found.c2w[shown], K=found.K[shown], size=scene.cameras.size, frame_ids=np.array(shown)).resized(size)
    k1 = 0.0
    if lens is not None:
        cameras, k1 = _with_lens(cameras, lens)
    points, colors = _some_points(scene)
    rows = [{} if found.rows[i] < 0 else {"scene_frame": int(found.rows[i])} for i in shown]
    write_points_ply(folder / "points.ply", points, colors)
    write_transforms(folder / "transforms.json", cameras, [names[i] for i in shown], "points.ply", k1, rows, offset)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    write_colmap_binary(model, cameras, [PurePosixPath(names[i]).name if called is None else called[i] for i in shown], points, colors, k1)


def _with_lens(cameras: CameraSet, lens: Lens) -> tuple[CameraSet, float]:
    """Cameras of the distorted images, and their coefficient; frames share one lens."""
    K = cameras.K.copy()
    focal, k1 = lens.as_camera(float(np.median(K[:, 0, 0])), cameras.size)
    K[:, [0, 1], [0, 1]] *= focal / np.median(K[:, 0, 0])
    return CameraSet(c2w=cameras.c2w, K=K, size=cameras.size, frame_ids=cameras.frame_ids), k1


def _some_points(scene: Scene) -> tuple[Array, Array]:
    """World points (N, 3) and colours of the surer half of the pixels, evenly over frames and images."""
    sure = scene.valid & (scene.confidence >= np.median(scene.confidence[scene.valid]))
    flat = np.flatnonzero(sure)
    flat = flat[np.linspace(0, len(flat) - 1, min(_POINTS, len(flat))).astype(int)]
    frame, y, x = np.unravel_index(flat, sure.shape)
    points = np.zeros((len(flat), 3))
    for row in np.unique(frame):
        mine = frame == row
        camera = unproject_depth(scene.depth[row], scene.cameras.K[row])[y[mine], x[mine]].astype(np.float64)
        points[mine] = transform(scene.cameras.c2w[row], camera)
    return points, scene.images[frame, y, x]
