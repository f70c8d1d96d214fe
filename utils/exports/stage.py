"""What the export command does: locate, select, turn upright, write; a file or folder appears whole or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.evaluation import ExportConfig
from utils.exports.colmap import write_colmap_binary, write_colmap_text
from utils.exports.mesh import fuse_mesh, write_mesh
from utils.exports.nerfstudio import write_transforms
from utils.exports.ply import flatten_discs, write_splat_ply
from utils.exports.select import drop_non_finite, most_important, transform_cameras, transform_splats, upright
from utils.exports.splat import write_splat
from utils.exports.spz import write_spz
from utils.scene import artifacts
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.media import write_image
from utils.scene.transaction import publish, publish_file
from utils.splatting.checkpoint import MODEL, TrainedScene, load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer, training_settings
from utils.splatting.sh import sh_basis
from utils.types import NULL_REPORTER, Array, CameraSet, Reporter, Scene, Splats

_FILE_NAMES = {
    "ply": "splats_{renderer}.ply",
    "splat": "splats_{renderer}.splat",
    "spz": "splats_{renderer}.spz",
    "colmap": "colmap",
    "colmap-bin": "colmap_bin",
    "nerfstudio": "nerfstudio",
    "cloud": "canonical_cloud.ply",
    "cloud-npz": "canonical_cloud.npz",
    "mesh-ply": "mesh.ply",
    "mesh-glb": "mesh.glb",
}
_FOLDERS = ("colmap", "colmap-bin", "nerfstudio")
# From x right, y down, z forward to x right, y up, z back, and the other way round.
_Y_UP = np.diag([1.0, -1.0, -1.0])


def run(config: ExportConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Writes one export; returns its path."""
    run_layout, checkpoint = locate_checkpoint(config.root_path, config.run, config.checkpoint_dir)
    trained = load_checkpoint(checkpoint)
    target = config.out_ply or checkpoint / _FILE_NAMES[config.format].format(renderer=trained.renderer)
    rotation = _turn(trained.cameras, config)
    reads = [SceneLayout(config.root_path).results_npz, checkpoint / MODEL]
    if config.format in _FOLDERS:
        with publish(target, f"export-{config.format}", reads=reads, report=report) as folder:
            _write_scene(folder, trained.cameras, _alignment(config, run_layout, checkpoint), rotation, config, report)
    else:
        with publish_file(target, reads=reads, report=report) as path:
            if config.format in ("ply", "splat", "spz"):
                _write_splats(path, trained, rotation, config, report)
            elif config.format in ("mesh-ply", "mesh-glb"):
                _write_mesh(path, trained, rotation, config, report)
            else:
                _write_scene(path, trained.cameras, _alignment(config, run_layout, checkpoint), rotation, config, report)
    report.note(f"export: wrote {target}")
    return target


def _alignment(config: ExportConfig, run_layout: RunLayout, checkpoint: Path) -> Path:
    """Folder of the alignment whose cloud is exported: the one given, or that of the training."""
    known = training_settings(checkpoint).get("global_opt_subdir", run_layout.after_global_optimization.name)
    return run_layout.part(config.global_opt_subdir or known, "global_opt_subdir")


def _turn(cameras: CameraSet, config: ExportConfig) -> Array:
    """Rotation (3, 3) of the world before it is written: `config.up` is meant in the file's own axes."""
    rotation = upright(cameras, config.up)
    if config.format == "spz" and config.up != "keep":
        return _Y_UP @ rotation  # the writer turns right-down-front into the format's axes
    if config.format == "mesh-glb" and config.up == "keep":
        return _Y_UP
    return rotation


def export_splats(trained: TrainedScene, rotation: Array, scale: float, max_points: int) -> Splats:
    """The splats as they go into a file: finite, the most important ones, discs given a thickness, turned and scaled."""
    splats = most_important(drop_non_finite(trained.splats), max_points)
    if trained.renderer == "2dgs":
        splats = flatten_discs(splats)
    if scale == 1.0 and np.array_equal(rotation, np.eye(3)):
        return splats
    return transform_splats(splats, rotation, scale, sh_basis)


def _write_splats(path: Path, trained: TrainedScene, rotation: Array, config: ExportConfig, report: Reporter) -> None:
    splats = export_splats(trained, rotation, config.scale, config.max_points)
    if config.format == "ply":
        write_splat_ply(path, splats, trained.renderer)
    elif config.format == "splat":
        write_splat(path, splats)
    else:
        write_spz(path, splats)
    report.note(f"export: {len(splats)} of {len(trained.splats)} splats")


def _write_scene(path: Path, cameras: CameraSet, source: Path, rotation: Array, config: ExportConfig, report: Reporter) -> None:
    """Cameras, images and canonical cloud, or the cloud alone."""
    cloud = artifacts.load_alignment(source).cloud
    if 0 < config.max_points < len(cloud):
        # The cloud is ordered by frame; a fixed random choice thins all frames alike.
        cloud = cloud.select(np.sort(np.random.default_rng(0).choice(len(cloud), config.max_points, replace=False)))
    points = config.scale * cloud.points @ rotation.T
    report.note(f"export: {len(points)} points")
    if config.format == "cloud":
        artifacts.write_points_ply(path, points, cloud.colors)
        return
    if config.format == "cloud-npz":
        with path.open("wb") as stream:
            np.savez_compressed(stream, points=points.astype(np.float32), colors=cloud.colors, frame=cloud.frame, pixel=cloud.pixel)
        return
    scene = artifacts.load_scene(config.root_path)
    cameras = transform_cameras(cameras, rotation, config.scale).resized(scene.cameras.size)
    names = [f"frame_{i:05d}.png" for i in cameras.frame_ids]
    (path / "images").mkdir(parents=True)
    for name, frame_id in zip(names, cameras.frame_ids, strict=True):
        write_image(path / "images" / name, scene.images[frame_id])
    masks = _write_masks(path / "masks", scene, cameras, names)
    if config.format == "nerfstudio":
        artifacts.write_points_ply(path / "sparse_pc.ply", points, cloud.colors)
        more = [{"mask_path": f"masks/{name}"} for name in masks]
        write_transforms(path / "transforms.json", cameras, [f"images/{n}" for n in names], "sparse_pc.ply", more=more)
        return
    model = path / "sparse" / "0"
    model.mkdir(parents=True)
    writer = write_colmap_text if config.format == "colmap" else write_colmap_binary
    writer(model, cameras, names, points, cloud.colors)


def _write_masks(folder: Path, scene: Scene, cameras: CameraSet, names: list[str]) -> list[str]:
    """White where pixels may be used, named as COLMAP looks for them; the names, none where nothing is masked."""
    if scene.ignored is None:
        return []
    folder.mkdir()
    for name, frame_id in zip(names, cameras.frame_ids, strict=True):
        write_image(folder / f"{name}.png", np.where(scene.ignored[frame_id], 0, 255).astype(np.uint8))
    return [f"{name}.png" for name in names]


def _write_mesh(path: Path, trained: TrainedScene, rotation: Array, config: ExportConfig, report: Reporter) -> None:
    rasterizer, device, _ = resolve_rasterizer(config.rasterizer, config.device)
    mesh = fuse_mesh(SplatView(trained, rasterizer, device), config.mesh_resolution, report)
    turned = replace(mesh, vertices=config.scale * mesh.vertices @ rotation.T)
    write_mesh(path, turned, config.format.removeprefix("mesh-"))
    report.note(f"export: {len(mesh.faces)} triangles")
