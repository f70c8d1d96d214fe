"""What the export command does: locate, select, turn upright, write, check; a file or folder appears whole or not at all."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.evaluation import ExportConfig
from utils.errors import ConfigError
from utils.exports.cameras.colmap import write_colmap_binary, write_colmap_text
from utils.exports.cameras.nerfstudio import write_transforms
from utils.exports.check import ExportCheck, psnr_of_file, record
from utils.exports.compressed_ply import write_compressed_ply
from utils.exports.gltf_splats import write_splat_glb
from utils.exports.meshes.mesh import fuse_mesh, simplified, surface_views
from utils.exports.meshes.mesh_files import write_collider_glb, write_mesh_glb, write_mesh_ply, write_textured_glb
from utils.exports.meshes.texture import textured
from utils.exports.ply import flatten_discs, write_splat_ply
from utils.exports.select import (
    UP_AXES,
    draw_in,
    drop_non_finite,
    most_important,
    padded_harmonics,
    scene_up,
    transform_cameras,
    transform_splats,
    upright,
)
from utils.exports.sog import write_sog
from utils.exports.splat import write_splat
from utils.exports.spz import LONGEST_LOG_SCALE, SHORTEST_LOG_SCALE, write_spz
from utils.exports.usd import USD_SUFFIXES, write_usd
from utils.exports.world_html import Showing, write_world_html
from utils.scene import artifacts
from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.media import write_image
from utils.scene.trajectories import extend_path, load_trajectory
from utils.scene.transaction import publish, publish_file
from utils.splatting.checkpoint import MODEL, TrainedScene, load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer, training_settings
from utils.splatting.sh import sh_basis
from utils.types import NULL_REPORTER, Array, CameraSet, Reporter, Scene, Splats

_FILE_NAMES = {
    "ply": "splats_{renderer}.ply",
    "ply-compressed": "splats_{renderer}.compressed.ply",
    "splat": "splats_{renderer}.splat",
    "spz": "splats_{renderer}.spz",
    "sog": "splats_{renderer}.sog",
    "glb": "splats_{renderer}.glb",
    "usd": "splats_{renderer}.usdc",
    "html": "world.html",
    "colmap": "colmap",
    "colmap-bin": "colmap_bin",
    "nerfstudio": "nerfstudio",
    "cloud": "canonical_cloud.ply",
    "cloud-npz": "canonical_cloud.npz",
    "mesh-ply": "mesh.ply",
    "mesh-glb": "mesh.glb",
    "mesh-textured": "mesh_textured.glb",
    "collider": "collider.glb",
}
_FOLDERS = ("colmap", "colmap-bin", "nerfstudio")
_SPLATS = ("ply", "ply-compressed", "splat", "spz", "sog", "glb", "usd")
_MESHES = ("mesh-ply", "mesh-glb", "mesh-textured", "collider")
# Formats whose axes are x right, y up, z back by definition; the others are x right, y down, z forward as splat PLYs are.
_Y_UP_FORMATS = ("spz", "glb", "usd", "mesh-glb", "mesh-textured", "collider")
_QUANTISED = ("ply-compressed", "spz", "sog", "html")
_FARTHEST = 64.0
"""In median distances of the splats: how far from the cameras a quantised format holds splats."""
_TRIANGLES = {"collider": 150_000, "mesh-textured": 60_000}
_TEXTURE_VIEW = 1024  # longer side in pixels of the renders that colour a texture
# From x right, y down, z forward to x right, y up, z back, and the other way round.
_Y_UP = np.diag([1.0, -1.0, -1.0])


def run(config: ExportConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Writes one export; returns its path."""
    run_layout, checkpoint = locate_checkpoint(config.root_path, config.run, config.checkpoint_dir)
    trained = load_checkpoint(checkpoint)
    target = config.out_ply or checkpoint / _FILE_NAMES[config.format].format(renderer=trained.renderer)
    if config.format == "usd" and target.suffix not in USD_SUFFIXES:
        raise ConfigError(f"{target}: a USD file is known by its name", f"end --config.out-ply in {', '.join(USD_SUFFIXES)}")
    rotation = file_from_world(trained.cameras, config)
    reads = [SceneLayout(config.root_path).results_npz, checkpoint / MODEL]
    if config.format in _FOLDERS:
        with publish(target, f"export-{config.format}", reads=reads, report=report) as folder:
            _write_scene(folder, trained.cameras, _alignment(config, run_layout, checkpoint), rotation, config, report)
    else:
        with publish_file(target, reads=reads, report=report) as path:
            check = _write_file(path, trained, rotation, _alignment(config, run_layout, checkpoint), config, report)
        if check is not None:
            record(checkpoint, target.name, check)
    report.note(f"export: wrote {target}")
    return target


def _alignment(config: ExportConfig, run_layout: RunLayout, checkpoint: Path) -> Path:
    """Folder of the alignment whose cloud is exported: the one given, or that of the training."""
    known = training_settings(checkpoint).get("global_opt_subdir", run_layout.after_global_optimization.name)
    return run_layout.part(config.global_opt_subdir or known, "global_opt_subdir")


def _write_file(
    path: Path, trained: TrainedScene, rotation: Array, alignment: Path, config: ExportConfig, report: Reporter
) -> ExportCheck | None:
    """Writes a format that is a single file; for splats, how it compares with them."""
    offset = world_offset(config.root_path, rotation, config.scale)
    if len(offset):
        report.note(
            f"export: positions lie around ({', '.join(f'{v:.3f}' for v in offset)}) in the input's coordinates: add that (world_offset)"
        )
    if config.format in _SPLATS or config.format == "html":
        return _write_splats(path, trained, rotation, config, report)
    if config.format in _MESHES:
        _write_mesh(path, trained, rotation, config, report)
    else:
        _write_scene(path, trained.cameras, alignment, rotation, config, report)
    return None


def file_from_world(cameras: CameraSet, config: ExportConfig) -> Array:
    """Rotation (3, 3) of the world into the file's axes: as `config.up` says, or the axes usual for the format."""
    if config.up == "keep":
        return _Y_UP if config.format in _Y_UP_FORMATS else np.eye(3)
    return upright(cameras, config.up)


def export_splats(trained: TrainedScene, rotation: Array, scale: float, max_points: int) -> Splats:
    """The splats as they go into a file: finite, the most important ones, discs given a thickness, turned and scaled."""
    splats = most_important(drop_non_finite(trained.splats), max_points)
    if trained.renderer == "2dgs":
        splats = flatten_discs(splats)
    if scale == 1.0 and np.array_equal(rotation, np.eye(3)):
        return splats
    return transform_splats(splats, rotation, scale, sh_basis)


def _write_splats(path: Path, trained: TrainedScene, rotation: Array, config: ExportConfig, report: Reporter) -> ExportCheck:
    started = time.perf_counter()
    rasterizer, device, _ = resolve_rasterizer(config.rasterizer, config.device)
    view = SplatView(trained, rasterizer, device)
    # The writer of SPZ turns right-down-front into the format's axes itself, by signs.
    handed = _Y_UP @ rotation if config.format == "spz" else rotation
    splats, drawn_in = export_splats(trained, np.eye(3), 1.0, config.max_points), 0
    if config.format in _QUANTISED:
        middle = torch.from_numpy(trained.cameras.centers.mean(axis=0)).to(splats.means)
        splats, drawn_in = draw_in(splats, middle, _FARTHEST * view.median_depth)
    splats = transform_splats(splats, handed, config.scale, sh_basis)
    if config.layout == "strict":
        splats = padded_harmonics(splats)
    _writer(trained, view, rotation, config)(path, splats)
    seconds = time.perf_counter() - started
    clamped = _clamped(splats) if config.format in ("spz", "html") else 0
    held = _Y_UP @ rotation if config.format == "html" else rotation  # the page holds an SPZ
    suffix = path.suffix if config.format == "usd" else Path(_FILE_NAMES[config.format]).suffix
    exported, psnr = psnr_of_file(path, view, held, config.scale, suffix)
    report.note(f"export: {len(exported)} of {len(trained.splats)} splats, {path.stat().st_size / 1e6:.2f} MB")
    if drawn_in:
        report.note(f"export: {drawn_in} splats beyond {_FARTHEST:.0f} median distances were moved nearer, for the format's steps")
    if clamped:
        report.note(f"export: {clamped} splats larger or smaller than this format can hold were clamped; --config.scale may help")
    report.note(f"export: read back and drawn at {len(psnr)} cameras, {min(psnr):.1f} dB at the worst against our own renders")
    return ExportCheck(
        format=config.format,
        splats=len(exported),
        bytes=path.stat().st_size,
        seconds=round(seconds, 2),
        psnr=psnr,
        drawn_in=drawn_in,
        clamped=clamped,
    )


def _writer(trained: TrainedScene, view: SplatView, rotation: Array, config: ExportConfig) -> Callable[[Path, Splats], None]:
    """What writes splats that are in the file's axes already, or for SPZ in the axes of a PLY."""
    strict, newest = config.layout == "strict", config.layout == "newest"
    writers: dict[str, Callable[[Path, Splats], None]] = {
        "ply": lambda path, splats: write_splat_ply(path, splats, trained.renderer, strict=strict),
        "ply-compressed": write_compressed_ply,
        "splat": write_splat,
        "spz": lambda path, splats: write_spz(path, splats, 2 if strict else 4 if newest else 3),
        "sog": write_sog,
        "glb": write_splat_glb,
        "usd": lambda path, splats: write_usd(path, splats, z_up=config.up == "z", metres_per_unit=1.0),
        "html": lambda path, splats: write_world_html(path, splats, _showing(view, rotation, config)),
    }
    return writers[config.format]


def _clamped(splats: Splats) -> int:
    """How many splats SPZ cannot hold in their size; that thin axes become a little thicker does not show."""
    largest = splats.log_scales.max(dim=1).values
    return int(((largest > LONGEST_LOG_SCALE) | (largest < SHORTEST_LOG_SCALE)).sum())


def _showing(view: SplatView, rotation: Array, config: ExportConfig) -> Showing:
    """Cameras and fly-through in the file's axes."""
    cameras, layout = view.trained.cameras, SceneLayout(config.root_path)
    path = load_trajectory(layout.path_json) if layout.path_json.is_file() else extend_path(cameras, view.median_depth)
    return Showing(
        cameras=transform_cameras(cameras, rotation, config.scale),
        path=transform_cameras(path, rotation, config.scale),
        up=np.array(UP_AXES[config.up]) if config.up != "keep" else scene_up(cameras),
        near=view.near * config.scale,
        title=config.title or config.root_path.resolve().name,
        credit=config.credit,
    )


def world_offset(root: Path, rotation: Array, scale: float) -> Array:
    """What to add to exported positions to be where a geo-referenced input was; (3,) in the export's axes and unit, (0,) for none."""
    stored = np.array(json_object(SceneLayout(root).preprocess_json).get("world_offset") or [], np.float64)
    return scale * rotation @ stored if stored.shape == (3,) and np.isfinite(stored).all() else np.zeros(0)


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
    offset = world_offset(config.root_path, rotation, config.scale)
    names = [f"frame_{i:05d}.png" for i in cameras.frame_ids]
    (path / "images").mkdir(parents=True)
    for name, frame_id in zip(names, cameras.frame_ids, strict=True):
        write_image(path / "images" / name, scene.images[frame_id])
    masks = _write_masks(path / "masks", scene, cameras, names)
    if config.format == "nerfstudio":
        artifacts.write_points_ply(path / "sparse_pc.ply", points, cloud.colors)
        more = [{"mask_path": f"masks/{name}"} for name in masks]
        write_transforms(path / "transforms.json", cameras, [f"images/{n}" for n in names], "sparse_pc.ply", more=more, offset=offset)
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
    view = SplatView(trained, rasterizer, device)
    views = surface_views(view, config.mesh_resolution, report)
    mesh = fuse_mesh(views, config.mesh_resolution, watertight=config.watertight)
    triangles = config.mesh_triangles if config.mesh_triangles > 0 else _TRIANGLES.get(config.format, 0)
    if triangles:
        mesh = simplified(mesh, triangles)
    report.note(f"export: {len(mesh.faces)} triangles")
    turned = replace(mesh, vertices=config.scale * mesh.vertices @ rotation.T)
    if config.format == "mesh-textured":
        pictures = surface_views(view, min(config.texture_size // 2, _TEXTURE_VIEW), report)
        painted = textured(mesh, pictures, config.texture_size)
        report.note(f"export: {100 * painted.seen:.0f} % of the surface coloured by a view that sees it")
        write_textured_glb(
            path, replace(painted, vertices=config.scale * painted.vertices @ rotation.T, normals=painted.normals @ rotation.T)
        )
    else:
        writers = {"mesh-ply": write_mesh_ply, "mesh-glb": write_mesh_glb, "collider": write_collider_glb}
        writers[config.format](path, turned)
