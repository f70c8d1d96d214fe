"""A tiny scene root with every artifact up to trained splats, made without running the stages: splats stand on the true surface."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from tests.box_world import make_box_world
from train_gs.start.initialize import initial_splats
from utils.cameras.projection import transform, unproject_depth
from utils.deformation.artifact import INVERSE_SCHEMA, save_inverse
from utils.deformation.inverse import inverse_of_alignment
from utils.exports.cameras.nerfstudio import OPENGL_FROM_OPENCV
from utils.scene import artifacts
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.manifest import write_manifest
from utils.scene.transaction import publish
from utils.splatting.checkpoint import GS_SCHEMA, MODEL, TrainedScene, save_checkpoint
from utils.types import Alignment, CanonicalCloud, LatticeFields, Scene

FRAMES, SIZE = 5, (48, 80)
RUN = "frame_to_model_icp_5_1_offset0"


def write_trained_world(root: Path, renderer: str = "3dgs") -> RunLayout:
    """Fills `root`; returns the run's layout."""
    world = make_box_world(FRAMES, SIZE, warp=0.0)
    return write_trained_scene(root, replace(world.scene, cameras=world.true, depth=world.true_depth.astype(np.float32)), renderer)


def write_trained_scene(root: Path, scene: Scene, renderer: str = "3dgs") -> RunLayout:
    """The same of any consistent scene of FRAMES frames of SIZE without sky."""
    layout = SceneLayout(root)
    cameras = scene.cameras
    with publish(layout.npz_dir, "geometry/1") as folder:
        artifacts.save_results(folder, scene)
    run = layout.run(RUN)
    points = np.concatenate(
        [transform(p, unproject_depth(d, k)).reshape(-1, 3) for p, d, k in zip(cameras.c2w, scene.depth, cameras.K, strict=True)]
    )
    pixels = SIZE[0] * SIZE[1]
    cloud = CanonicalCloud(
        points=points.astype(np.float32),
        colors=scene.images.reshape(-1, 3),
        frame=np.repeat(np.arange(FRAMES, dtype=np.int32), pixels),
        pixel=np.tile(np.arange(pixels, dtype=np.int32), FRAMES),
    )
    alignment = Alignment(
        cameras=cameras,
        fields=LatticeFields(nodes=np.zeros((FRAMES, 2, 3, 3, 3), np.float32), inv_depth_range=np.tile([0.1, 2.0], (FRAMES, 1))),
        cloud=cloud,
        original_w2c=cameras.w2c,
        aligned=np.ones(FRAMES, bool),
    )
    with publish(run.after_global_optimization, "alignment/2") as folder:
        artifacts.save_alignment(folder, alignment, {})
        (folder / "report.json").write_text(
            json.dumps({"frame_residual": [0.1, 0.2, 0.15, 0.12, 0.11], "curve": {"step": [0, 1, 2], "loss": [3.0, 2.0, 1.5]}})
        )
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={"iterations": 3}, inputs={}, seconds=2.5)
    with publish(run.inverse_deformation, "inverse_deformation/2") as folder:
        save_inverse(folder, inverse_of_alignment(alignment))
        write_manifest(folder, schema=INVERSE_SCHEMA, config=InverseDeformationConfig(), inputs={})
    _write_splats(run, alignment, renderer)
    _write_path(layout.path_json, alignment)
    return run


def _write_splats(run: RunLayout, alignment: Alignment, renderer: str) -> None:
    settings = GSConfig(renderer=renderer, target_num_points=6000, initial_opacity=0.95, sh_degree=1)  # type: ignore[arg-type]
    splats = initial_splats(alignment.cloud, alignment.cameras, settings, 2.0)
    heldout = np.zeros(FRAMES, bool)
    heldout[2] = True
    trained = TrainedScene(
        splats=splats, cameras=alignment.cameras, heldout=heldout, renderer=renderer, appearance=torch.eye(3, 4).repeat(FRAMES, 1, 1)
    )
    with publish(run.gs(renderer), "gs/1") as folder:
        save_checkpoint(folder / MODEL, trained)
        artifacts.write_json(folder / "config.json", settings)
        artifacts.write_json(folder / "report.json", {"splats": len(splats), "curve": [{"step": i, "loss": 1 / (i + 1)} for i in range(5)]})
        write_manifest(folder, schema=GS_SCHEMA, config=settings, inputs={}, backends={"rasterizer": "numba: no CUDA"}, seconds=12.0)


def _write_path(path: Path, alignment: Alignment) -> None:
    k = alignment.cameras.K[0]
    h, w = alignment.cameras.size
    frames = [
        {"file_path": f"{i}.png", "transform_matrix": (c2w @ OPENGL_FROM_OPENCV).tolist()}
        for i, c2w in enumerate(alignment.cameras.c2w[:3])
    ]
    content = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "w": w, "h": h, "scale_factor": 1.0, "frames": frames}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
