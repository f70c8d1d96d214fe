"""The far shell: it stands where pixels see none of the cloud, shows their colours, and does not stretch a mesh."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.train_gs.test_train_gs import DEPTH, FRAMES, SIZE, data_of, make_config, make_world
from tests.trained_world import write_trained_world
from train_gs.stage import make_trainer
from train_gs.start.shell import joined, shell_splats
from utils.deformation.inverse import IdentityInverseWarp
from utils.exports.meshes.mesh import fuse_mesh, surface_views
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.rasterize.contract import load_rasterizer
from utils.splatting.render import SplatView
from utils.splatting.view import rigid, view_gaussians
from utils.types import NULL_REPORTER, Alignment, Scene

SKY = (40, 90, 220)


def sky_world() -> tuple[Scene, Alignment]:
    """The upper half of every frame is sky: blue, without points."""
    scene, alignment = make_world(bend=0.0)
    images = scene.images.copy()
    images[:, : SIZE[0] // 2] = SKY
    cloud = alignment.cloud
    return replace(scene, images=images), replace(alignment, cloud=cloud.select(cloud.pixel // SIZE[1] >= SIZE[0] // 2))


def test_shell_stands_where_no_points_are_and_has_the_colour_of_the_sky() -> None:
    scene, alignment = sky_world()
    config = make_config(shell_share=0.5)
    shell = shell_splats(alignment.cloud.points, scene.cameras, scene.images, config, DEPTH)
    assert shell is not None
    assert len(shell) <= 0.5 * config.target_num_points
    away = shell.means - torch.from_numpy(scene.cameras.centers.mean(0)).float()
    assert away.norm(dim=1).min() > 15 * DEPTH
    assert (away[:, 1] < 0).all()  # y points down
    c2w = torch.from_numpy(scene.cameras.c2w[2]).float()
    gaussians = view_gaussians(shell, c2w, rigid(shell, c2w), active_degree=0, turn=False)
    seen = load_rasterizer("numba", "cpu").render(gaussians, torch.from_numpy(scene.cameras.K[2]).float(), SIZE, "3dgs")
    assert seen.alpha[2:8, 4:-4].min() > 0.5
    assert seen.alpha[-8:].max() < 0.05
    color = (seen.rgb / seen.alpha[..., None])[4, 16] * 255
    torch.testing.assert_close(color, torch.tensor(SKY).float(), atol=6, rtol=0)


def test_no_shell_where_the_cloud_covers_the_frames() -> None:
    scene, alignment = make_world(bend=0.0)
    assert shell_splats(alignment.cloud.points, scene.cameras, scene.images, make_config(shell_share=0.5), DEPTH) is None


def test_shell_shares_the_budget() -> None:
    scene, alignment = sky_world()
    config = make_config(shell_share=0.3, target_num_points=300, deform=False)
    data = data_of(scene, alignment, config)
    trainer = make_trainer(alignment, data, IdentityInverseWarp(), "numba", torch.device("cpu"), config)
    assert len(trainer.parameters.means) <= 300
    far = (trainer.parameters.means.detach() - torch.from_numpy(scene.cameras.centers.mean(0)).float()).norm(dim=1) > 15 * DEPTH
    assert 10 <= int(far.sum()) <= 90
    assert np.isfinite(trainer.step()["loss"])
    assert len(data.cameras) == FRAMES


def test_shell_does_not_stretch_a_mesh(tmp_path: Path) -> None:
    trained = load_checkpoint(write_trained_world(tmp_path).gs("3dgs"))
    rasterizer = load_rasterizer("numba", "cpu")
    middle = torch.from_numpy(trained.cameras.centers.mean(0)).float()
    view = SplatView(trained, rasterizer, torch.device("cpu"))
    spread = 40 * view.median_depth
    few = trained.splats.select(torch.arange(0, len(trained.splats), 10))
    directions = torch.nn.functional.normalize(few.means - middle, dim=1)
    shell = replace(few, means=middle + spread * directions, log_scales=few.log_scales + 5.0)
    behind = replace(trained, splats=joined(trained.splats.select(torch.arange(0, len(trained.splats), 2)), shell))
    plain = fuse_mesh(surface_views(view, 24, NULL_REPORTER), 24).vertices
    shelled = fuse_mesh(surface_views(SplatView(behind, rasterizer, torch.device("cpu")), 24, NULL_REPORTER), 24).vertices
    extent = plain.max(0) - plain.min(0)
    assert ((shelled.max(0) - shelled.min(0)) < 1.3 * extent).all()
