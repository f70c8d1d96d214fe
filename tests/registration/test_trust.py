"""Which pixels supervise: masked ones do not, contradicting ones less and less, detail is not mistaken for contradiction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.train_gs.test_train_gs import FRAMES, SIZE, data_of, make_config, make_world
from train_gs.measure import render_frame
from train_gs.stage import make_trainer
from train_gs.train import Trainer, train
from train_gs.trust import PixelTrust, weighted_pair
from utils.deformation.inverse import inverse_of_alignment
from utils.scene import artifacts
from utils.scene.masks import apply_masks

BOX = (slice(6, 16), slice(8, 20))


def spoiled_trainer(masked: bool = False, **changes: object) -> Trainer:
    """A bright box in frame 2 that no other frame shows; not in the cloud."""
    scene, alignment = make_world()
    images = scene.images.copy()
    images[2][BOX] = (255, 0, 255)
    scene = replace(scene, images=images)
    if masked:
        keep = np.ones(scene.depth.shape, bool)
        keep[2][BOX] = False
        scene = apply_masks(scene, keep)
    config = make_config(refine_deformation=False, num_iters=120, appearance="none", **changes)
    data = data_of(scene, alignment, config)
    return make_trainer(alignment, data, inverse_of_alignment(alignment), "numba", torch.device("cpu"), config)


def ghost(trainer: Trainer) -> float:
    """How far the box, as frame 2 sees the trained world, is from the wall, which is what all other frames show there."""
    scene, alignment = make_world()
    seen = render_frame(train(trainer), 2, trainer.rasterizer, inverse_of_alignment(alignment)).rgb
    return float((seen - torch.from_numpy(scene.images[2]) / 255.0).abs()[BOX].mean())


def test_contradicting_pixels_lose_their_weight_and_leave_less_of_a_ghost() -> None:
    plain, robust = spoiled_trainer(), spoiled_trainer(robust=True)
    assert ghost(robust) < 0.6 * ghost(plain)
    assert robust.trust is not None
    weights = robust.trust.weights(2)
    assert weights[8:14, 11:17].max() < 0.1
    assert weights[:, 26:].min() > 0.9
    assert all(robust.trust.weights(v).mean() > 0.97 for v in robust.training_views if v != 2)


def test_masked_pixels_do_not_supervise() -> None:
    assert ghost(spoiled_trainer(masked=True)) < 0.5 * ghost(spoiled_trainer())


def test_blurred_detail_is_trusted_and_a_patch_of_another_colour_is_not() -> None:
    trust = PixelTrust(None, [0, 1], 2, (48, 64), torch.device("cpu"))
    checker = ((torch.arange(48)[:, None] + torch.arange(64)) % 2).float()[..., None].expand(48, 64, 3)
    patch = torch.full((48, 64, 3), 0.5)
    patch[16:32, 16:32, 0] = 1.0
    grey = torch.full((48, 64, 3), 0.5)
    for _ in range(5):
        trust.observe(grey - checker, 0)
        trust.observe(grey - patch, 1)
    assert trust.weights(1).min() == 1.0  # nothing is judged yet
    trust.settle()
    assert trust.weights(0).min() == 1.0
    assert trust.weights(1)[20:28, 20:28].max() < 0.2
    assert trust.weights(1)[:, 40:].min() == 1.0


def test_weighted_pair_scales_the_gradient_and_keeps_the_image() -> None:
    rgb = torch.rand(4, 5, 3, requires_grad=True)
    target, weight = torch.rand(4, 5, 3), torch.linspace(0, 1, 20).reshape(4, 5)
    seen, wanted = weighted_pair(rgb, target, weight)
    torch.testing.assert_close(seen, rgb)
    (seen - wanted).abs().sum().backward()
    torch.testing.assert_close(rgb.grad, weight[..., None] * torch.sign(rgb.detach() - target))


def test_masks_travel_with_the_scene(tmp_path: Path) -> None:
    scene, _ = make_world()
    keep = np.ones((FRAMES, *SIZE), bool)
    keep[3][BOX] = False
    masked = apply_masks(apply_masks(scene, keep), np.roll(keep, 1, axis=0))
    folder = tmp_path / "exports" / "npz"
    folder.mkdir(parents=True)
    artifacts.save_results(folder, masked)
    ignored = artifacts.load_scene(tmp_path).select([4]).ignored
    assert ignored is not None
    np.testing.assert_array_equal(ignored[0], ~keep[3])
    artifacts.save_results(folder, scene)
    assert artifacts.load_scene(tmp_path).ignored is None


def test_masked_pixels_do_not_speak_against_their_neighbours() -> None:
    used = torch.ones(1, *SIZE, dtype=torch.bool)
    used[0, 4:8, 8:14] = False
    trust = PixelTrust(used, [0], 1, SIZE, torch.device("cpu"))
    trust.observe(torch.where(used[0, ..., None], 0.01, 1.0).expand(*SIZE, 3), 0)
    assert float(trust.errors.max()) < 0.02
