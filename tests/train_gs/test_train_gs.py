"""Splatting through the deformation on a small analytic world: a textured wall that every frame sees bent in its own way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.stage3_gs import GSConfig
from train_gs.appearance import Appearance
from train_gs.cameras import CameraRefinement
from train_gs.data import CorrectionSources, TrainingData
from train_gs.losses import depth_normals
from train_gs.measure import averages, measure
from train_gs.stage import make_trainer, training_data
from train_gs.start.initialize import initial_splats, merge_copies
from train_gs.supervision import heldout_frames, supervision
from train_gs.train import Trainer, train
from train_gs.warp import WarpCache
from utils.cameras import se3
from utils.deformation.inverse import IdentityInverseWarp, InverseWarp, inverse_of_alignment
from utils.errors import ConfigError, CorruptArtifactError, MissingArtifactError, NonFiniteError
from utils.scene.masks import apply_masks
from utils.splatting.checkpoint import load_checkpoint, save_checkpoint
from utils.splatting.view import view_gaussians
from utils.types import NULL_REPORTER, Alignment, Array, CameraSet, CanonicalCloud, LatticeFields, Scene, Splats

SIZE, FRAMES, DEPTH, SLOPE = (24, 32), 6, 3.0, 0.4


def wall_color(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth texture of the wall z = DEPTH + SLOPE * x; slanted, so that small turns do not reorder the splats in depth."""
    channels = [np.sin(5 * x + y), np.cos(4 * y - 2 * x), np.sin(3 * x * y + 1)]
    return (127.5 + 100 * np.stack(channels, -1)).astype(np.uint8)


def make_world(bend: float = 0.12) -> tuple[Scene, Alignment]:
    """Frames that show the wall shifted sideways by `bend` times their own sign; the alignment knows."""
    w2c = np.tile(np.eye(4), (FRAMES, 1, 1))
    w2c[:, 0, 3] = -np.linspace(-0.2, 0.2, FRAMES)
    c2w = np.linalg.inv(w2c)
    K = np.tile(np.array([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]), (FRAMES, 1, 1))
    cameras = CameraSet(c2w=c2w, K=K, size=SIZE, frame_ids=np.arange(FRAMES))
    columns, rows = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    rays = np.stack([(columns - 16) / 30, (rows - 12) / 30, np.ones_like(rows)], -1)
    shift = bend * np.where(np.arange(FRAMES) % 2 == 0, 1.0, -1.0)
    aside = c2w[:, 0, 3] + shift
    depth = (DEPTH + SLOPE * aside)[:, None, None] / (1 - SLOPE * rays[..., 0])
    canonical = depth[..., None] * rays + np.stack([aside, 0 * aside, 0 * aside], -1)[:, None, None]
    images = wall_color(canonical[..., 0], canonical[..., 1])
    depth = depth.astype(np.float32)
    nodes = np.zeros((FRAMES, 2, 3, 4, 3), np.float32)
    nodes[..., 0] = shift[:, None, None, None]
    cloud = CanonicalCloud(
        points=canonical.reshape(-1, 3).astype(np.float32),
        colors=images.reshape(-1, 3),
        frame=np.repeat(np.arange(FRAMES), columns.size).astype(np.int32),
        pixel=np.tile(np.arange(columns.size), FRAMES).astype(np.int32),
    )
    scene = Scene(cameras=cameras, images=images, depth=depth, confidence=np.ones_like(depth))
    alignment = Alignment(
        cameras=cameras,
        fields=LatticeFields(nodes=nodes, inv_depth_range=np.tile([0.15, 0.6], (FRAMES, 1))),
        cloud=cloud,
        original_w2c=w2c,
        aligned=np.ones(FRAMES, bool),
    )
    return scene, alignment


def make_config(**changes: object) -> GSConfig:
    base = GSConfig(
        renderer="3dgs", num_iters=60, target_num_points=900, sh_degree=1, holdout_every=3, normal_k=8, log_every=10, save_every=25
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def data_of(scene: Scene, alignment: Alignment, config: GSConfig) -> TrainingData:
    """What the stage would train on where every frame is aligned."""
    clips = np.zeros(len(scene), int)
    return training_data(scene, supervision(config, scene, alignment, IdentityInverseWarp(), clips, NULL_REPORTER), config)


def correction_sources(trained: Array, frame_ids: Array | None = None) -> CorrectionSources:
    """Of one clip; untrained frames take over what their neighbours learn."""
    trained = np.asarray(trained, bool)
    ids = np.arange(len(trained)) if frame_ids is None else frame_ids
    return CorrectionSources(frame_ids=ids, trained=trained, blended=np.ones(len(trained), bool), clips=np.zeros(len(trained), int))


def build(config: GSConfig, bend: float = 0.12, warp: InverseWarp | None = None) -> Trainer:
    scene, alignment = make_world(bend)
    warp = warp or inverse_of_alignment(alignment)
    return make_trainer(alignment, data_of(scene, alignment, config), warp, "numba", torch.device("cpu"), config)


def psnr_of(trainer: Trainer, warp: InverseWarp) -> dict[str, float]:
    rows = measure(train(trainer), trainer.data, trainer.rasterizer, warp, turn=True)
    return averages(rows)


def test_deformation_explains_inconsistent_frames_and_rigid_rendering_does_not() -> None:
    _, alignment = make_world()
    warp = inverse_of_alignment(alignment)
    deformed = psnr_of(build(make_config()), warp)
    rigid = psnr_of(build(make_config(deform=False), warp=IdentityInverseWarp()), IdentityInverseWarp())
    assert deformed["heldout_psnr"] > 23
    assert deformed["heldout_psnr"] > rigid["heldout_psnr"] + 3
    assert deformed["heldout_psnr"] > deformed["heldout_psnr_rigid"] + 3


def test_two_dimensional_splats_train() -> None:
    _, alignment = make_world()
    values = psnr_of(build(make_config(renderer="2dgs", num_iters=30)), inverse_of_alignment(alignment))
    assert values["heldout_psnr"] > 22


def test_held_out_frames_are_neither_seen_nor_in_the_cloud() -> None:
    config = make_config()
    scene, alignment = make_world()
    trainer = build(config)
    heldout = np.flatnonzero(trainer.data.heldout)
    assert list(heldout) == [1, 4]
    spoiled = scene.images.copy()
    spoiled[heldout] = 0
    colors = alignment.cloud.colors.copy()
    colors[np.isin(alignment.cloud.frame, heldout)] = 0
    scene, alignment = replace(scene, images=spoiled), replace(alignment, cloud=replace(alignment.cloud, colors=colors))
    other = make_trainer(
        alignment,
        data_of(scene, alignment, config),
        inverse_of_alignment(alignment),
        "numba",
        torch.device("cpu"),
        config,
    )
    for a, b in zip(train(trainer).splats.__dict__.values(), train(other).splats.__dict__.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight, first = build(make_config()), build(make_config())
    states = []
    expected = train(straight, save=lambda t: states.append(t.iteration) or t.state())
    assert states == [25, 50]

    class Killed(Exception):
        pass

    def stop(trainer: Trainer) -> None:
        torch.save(trainer.state(), tmp_path / f"{trainer.iteration}.pt")
        if trainer.iteration == 50:
            raise Killed

    with pytest.raises(Killed):
        train(first, save=stop)
    resumed = build(make_config())
    resumed.load(torch.load(tmp_path / "50.pt", weights_only=True))
    assert resumed.iteration == 50
    result = train(resumed)
    assert torch.equal(result.splats.means, expected.splats.means)
    assert torch.equal(result.splats.sh, expected.splats.sh)
    np.testing.assert_array_equal(result.cameras.c2w, expected.cameras.c2w)
    assert [row["step"] for row in resumed.history] == [10, 20, 30, 40, 50, 60]


def test_reporter_changes_nothing() -> None:
    class Loud:
        def __init__(self) -> None:
            self.steps = 0

        def step(self, report: object) -> None:
            self.steps += 1
            torch.rand(3)

        def note(self, message: str) -> None:
            raise AssertionError(message)

    loud = Loud()
    a, b = train(build(make_config(num_iters=20)), loud), train(build(make_config(num_iters=20)))  # type: ignore[arg-type]
    assert loud.steps == 20
    assert torch.equal(a.splats.means, b.splats.means)


def test_cameras_and_means_freeze_when_the_bands_start() -> None:
    trainer = build(make_config(num_iters=30, sh_full_from_iter=15, sh_freeze_means_when_full_sh=True))
    for _ in range(15):
        trainer.step()
    twist, means = trainer.poses.twists[2].detach().clone(), trainer.parameters.means.detach().clone()
    assert twist.abs().max() > 0
    assert trainer.poses.twists[0].abs().max() == 0  # the reference
    assert trainer.parameters.shN.abs().max() == 0
    for _ in range(15):
        trainer.step()
    assert torch.equal(trainer.poses.twists[2], twist)
    assert torch.equal(trainer.parameters.means, means)
    assert trainer.parameters.shN.abs().max() > 0
    # Adam's step count of the bands starts with them, so their first updates are not larger than the rate
    assert trainer.parameters.shN.abs().max() <= 15 * 1.25e-4 * 1.01


def test_every_rate_falls_to_its_own_share() -> None:
    trainer = build(make_config(num_iters=4, sh_full_from_iter=1))
    rates = []
    for _ in range(4):
        trainer.step()
        rates.append({g["name"]: g["lr"] / g["base_lr"] for g in trainer.optimizer.param_groups})
    assert set(rates[-1]) == {"sh0", "shN", "opacities", "scales", "quats", "positions", "cams", "deformation", "appearance"}
    for name in rates[0]:
        values = [r[name] for r in rates]
        assert values[0] == pytest.approx(1.0)
        assert values == sorted(values, reverse=True)


def test_pose_refinement_finds_a_disturbed_pose() -> None:
    scene, alignment = make_world(bend=0.0)
    c2w = alignment.cameras.c2w.copy()
    twist = torch.tensor([0.0, 0.0, 0.0, 0.06, -0.04, 0.0], dtype=torch.float64)
    c2w[3] = (se3.exp(twist) @ torch.from_numpy(c2w[3])).numpy()
    disturbed = replace(alignment, cameras=replace(alignment.cameras, c2w=c2w))
    settings = {"deform": False, "appearance": "none", "optimize_positions": False, "cam_reg_weight": 0.0}
    known = build(make_config(num_iters=150, optimize_cams=False, **settings), 0.0, IdentityInverseWarp())
    splats = train(known).splats
    still = {f"lr_{name}": 0.0 for name in ("sh0", "shN", "opacities", "scales", "quats")}
    config = make_config(num_iters=200, lr_cams=1e-3, sh_full_from_iter=200, **settings, **still)
    data = data_of(scene, disturbed, config)
    trainer = Trainer(splats, data, IdentityInverseWarp(), known.rasterizer, config)
    refined, truth = train(trainer).cameras.c2w[3], alignment.cameras.c2w[3]
    pixel = DEPTH / 30
    # where the optical axis meets the wall; turning and moving sideways look nearly alike in one image
    before, after = (np.abs(m[:2, 3] + DEPTH * m[:2, 2] - truth[:2, 3]).max() / pixel for m in (c2w[3], refined))
    assert before > 0.55
    assert after < 0.25


def test_view_gaussians_follow_pose_and_deformation() -> None:
    c2w = se3.exp(torch.tensor([0.2, -0.4, 0.3, 1.0, 2.0, -0.5]))
    splats = Splats(
        means=c2w[None, :3, 3] + c2w[:3, 2] * 4.0,
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        log_scales=torch.zeros(1, 3),
        logit_opacities=torch.zeros(1),
        sh=torch.zeros(1, 1, 3),
    )
    local = IdentityInverseWarp().linearize(torch.zeros(1, 3), 0)
    seen = view_gaussians(splats, c2w, local, active_degree=0, turn=True)
    torch.testing.assert_close(seen.means, torch.tensor([[0.0, 0.0, 4.0]]), atol=1e-5, rtol=0)
    from utils.cameras.rotations import quat_to_matrix

    torch.testing.assert_close(quat_to_matrix(seen.quats)[0], c2w[:3, :3].T, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.opacities, torch.tensor([0.5]))


def test_warp_cache_renews_after_its_visits_and_never_once_frozen() -> None:
    class Counting(IdentityInverseWarp):
        solved = 0

        def linearize(self, y: torch.Tensor, frame_index: int):
            self.solved += 1
            return super().linearize(y, frame_index)

    warp = Counting()
    cache = WarpCache(warp.linearize, refresh_visits=3)
    y = torch.zeros(2, 3)
    for _ in range(7):
        cache.at(y, 0)
    assert warp.solved == 3
    cache.freeze()
    for _ in range(9):
        cache.at(y, 0)
    assert warp.solved == 4


def cameras_at(*centers: tuple[float, float, float]) -> CameraSet:
    """Cameras that look along +z, their pixels a hundredth of the depth."""
    c2w = np.tile(np.eye(4), (len(centers), 1, 1))
    c2w[:, :3, 3] = centers
    K = np.tile(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), (len(centers), 1, 1))
    return CameraSet(c2w=c2w, K=K, size=(100, 100), frame_ids=np.arange(len(centers)))


def cloud_of(points: Array, frame: Array) -> CanonicalCloud:
    count = len(points)
    colors = np.full((count, 3), 90, np.uint8)
    return CanonicalCloud(points=points.astype(np.float32), colors=colors, frame=frame.astype(np.int32), pixel=np.zeros(count, np.int32))


def wall(depth: float, count: int, rng: np.random.Generator, x: float = 0.0) -> Array:
    """(count, 3) points of a square of edge 2 around x at a depth."""
    return np.stack([rng.uniform(x - 1, x + 1, count), rng.uniform(-1, 1, count), np.full(count, depth)], -1)


def test_merge_meets_the_budget_and_joins_copies() -> None:
    rng = np.random.default_rng(0)
    surface = wall(3.0, 4000, rng)
    cloud = cloud_of(np.concatenate([surface + rng.normal(0, 2e-3, surface.shape) for _ in range(5)]), np.zeros(20000))
    merged, colors = merge_copies(cloud, cameras_at((0, 0, 0)), 1000)
    assert 850 <= len(merged) <= 1000
    assert np.abs(merged[:, 2] - 3).std() < 1.5e-3
    np.testing.assert_allclose(colors, 90)
    same, _ = merge_copies(cloud, cameras_at((0, 0, 0)), 30000)
    assert len(same) == 20000


def test_a_camera_beside_a_surface_that_it_does_not_see_makes_no_finer_splats() -> None:
    rng = np.random.default_rng(0)
    cloud = cloud_of(np.concatenate([wall(4.0, 20000, rng), wall(4.0, 20000, rng, 3.0)]), np.zeros(40000))
    merged, _ = merge_copies(cloud, cameras_at((1.5, 0, 0), (3.0, 0, 3.8)), 2000)
    beside = int((merged[:, 0] > 1.5).sum())
    assert 0.4 < beside / len(merged) < 0.6


def test_splats_are_as_fine_as_the_nearest_view_and_finer_where_many_look() -> None:
    rng = np.random.default_rng(0)
    once, often = wall(4.0, 20000, rng), np.concatenate([wall(4.0, 20000, rng, 4.0) for _ in range(16)])
    frames = np.concatenate([np.zeros(20000), np.repeat(np.arange(16), 20000)])
    merged, _ = merge_copies(cloud_of(np.concatenate([once, often]), frames), cameras_at(*[(2.0, 0, 0)] * 16), 5000)
    assert 2 < (merged[:, 0] > 2).sum() / (merged[:, 0] < 2).sum() < 6  # the square root of 16 in theory
    # A second frame sees one half from a third of the distance: nine times as many splats, however coarse the first one's copies.
    far, near = wall(4.0, 20000, rng, 4.0), wall(4.0, 180000, rng, 4.0)
    cloud = cloud_of(np.concatenate([once, far, near]), np.repeat([0, 0, 1], [20000, 20000, 180000]))
    merged, _ = merge_copies(cloud, cameras_at((2.0, 0, 0), (4.0, 0, 2.7)), 5000)
    assert 4 < (merged[:, 0] > 2).sum() / (merged[:, 0] < 2).sum() < 15


def test_without_merging_the_splats_are_points_of_the_cloud() -> None:
    scene, alignment = make_world(0.0)
    splats = initial_splats(alignment.cloud, scene.cameras, make_config(merge_copies=False, target_num_points=200), DEPTH)
    given = {tuple(point) for point in alignment.cloud.points.astype(np.float32)}
    assert len({tuple(mean) for mean in splats.means.numpy()} & given) == len(splats.means) == 200


def test_initial_splats_lie_flat_on_the_surface() -> None:
    scene, alignment = make_world(0.0)
    splats = initial_splats(alignment.cloud, scene.cameras, make_config(), DEPTH)
    from utils.cameras.rotations import quat_to_matrix

    normals = quat_to_matrix(splats.quats)[:, :, 2]
    expected = torch.tensor([-SLOPE, 0.0, 1.0]) / (1 + SLOPE**2) ** 0.5
    assert (normals @ expected).abs().median() > 0.99
    ratio = (splats.log_scales[:, 2] - splats.log_scales[:, 0]).exp()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1))
    rgb = splats.sh[:, 0] * 0.28209479177387814 + 0.5
    expected = wall_color(splats.means[:, 0].numpy(), splats.means[:, 1].numpy()) / 255.0
    assert np.abs(rgb.numpy() - expected).mean() < 0.03


def test_appearance_is_centred_and_interpolated() -> None:
    appearance = Appearance(4, torch.device("cpu"))
    with torch.no_grad():
        for i, value in enumerate((0.1, 0.0, 0.5, 0.3)):
            appearance.deviations[i].fill_(value)
    appearance.center([0, 2, 3])
    torch.testing.assert_close(appearance.deviations[0], torch.full((3, 4), -0.2))
    matrices = appearance.matrices(correction_sources([True, False, True, True]))
    identity = torch.eye(3, 4)
    torch.testing.assert_close(matrices[1] - identity, torch.zeros(3, 4), atol=1e-6, rtol=0)
    rgb, alpha = torch.rand(2, 3, 3), torch.ones(2, 3)
    expected = rgb @ matrices[3, :, :3].T + matrices[3, :, 3]
    torch.testing.assert_close(appearance(rgb, alpha, 3), expected)


def test_pose_of_untrained_frames_is_interpolated() -> None:
    values = torch.tensor([[0.0], [9.0], [4.0]])
    sources = correction_sources([True, False, True], frame_ids=np.array([0, 1, 4]))
    torch.testing.assert_close(sources.fill(values), torch.tensor([[0.0], [1.0], [4.0]]))
    of_its_own = replace(sources, blended=np.zeros(3, bool))
    torch.testing.assert_close(of_its_own.fill(values), torch.tensor([[0.0], [0.0], [4.0]]))
    torch.testing.assert_close(of_its_own.fill(values, everywhere=True), torch.tensor([[0.0], [1.0], [4.0]]))
    at_a_border = replace(sources, clips=np.array([0, 1, 1]))
    torch.testing.assert_close(at_a_border.fill(values), torch.tensor([[0.0], [4.0], [4.0]]))
    alone = replace(sources, clips=np.array([0, 2, 1]))
    torch.testing.assert_close(alone.fill(values), torch.tensor([[0.0], [0.0], [4.0]]))
    scene, _ = make_world()
    poses = CameraRefinement(scene.cameras, DEPTH, torch.device("cpu"))
    same = poses.refined(scene.cameras, correction_sources(np.ones(FRAMES, bool)))
    np.testing.assert_allclose(same.c2w, scene.cameras.c2w, atol=1e-6)


def test_depth_normals_of_a_tilted_plane() -> None:
    K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, -1.0]), dim=0)
    x = (torch.arange(32) + 0.5 - 16) / 30
    y = (torch.arange(24) + 0.5 - 12) / 30
    rays = torch.stack([x.expand(24, 32), y[:, None].expand(24, 32), torch.ones(24, 32)], -1)
    depth = 3.0 * normal[2] / (rays @ normal)
    found, defined = depth_normals(depth, torch.ones(24, 32, dtype=torch.bool), K)
    assert defined[1:-1, 1:-1].all()
    assert not defined[0].any()
    torch.testing.assert_close(found[5, 7], normal, atol=1e-4, rtol=0)


def test_checkpoint_round_trip_and_damage(tmp_path: Path) -> None:
    scene = train(build(make_config(num_iters=3)))
    save_checkpoint(tmp_path / "model_final.pt", scene)
    again = load_checkpoint(tmp_path)
    assert torch.equal(again.splats.sh, scene.splats.sh)
    assert torch.equal(again.splats.logit_opacities, scene.splats.logit_opacities)
    np.testing.assert_array_equal(again.cameras.c2w, scene.cameras.c2w)
    np.testing.assert_array_equal(again.heldout, scene.heldout)
    assert (again.renderer, again.cameras.size) == ("3dgs", SIZE)
    with pytest.raises(MissingArtifactError):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"quats": torch.zeros(1, 4)}, tmp_path / "bad.pt")
    with pytest.raises(CorruptArtifactError):
        load_checkpoint(tmp_path / "bad.pt")


def test_a_broken_loss_names_step_and_frame() -> None:
    trainer = build(make_config())
    with torch.no_grad():
        trainer.parameters.sh0.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 0, frame"):
        trainer.step()


@pytest.mark.parametrize("robust", [False, True])
def test_masked_pixels_change_nothing(robust: bool) -> None:
    """Trainings whose frames differ only where they are masked end with the same bits and report the same quality."""
    config = make_config(num_iters=24, robust=robust, robust_from=0.2, shell_share=0.2)
    scene, alignment = make_world()
    keep = np.ones((FRAMES, *SIZE), bool)
    keep[:, 8:16, 10:20] = False
    cloud = alignment.cloud
    alignment = replace(alignment, cloud=cloud.select(keep[cloud.frame, cloud.pixel // SIZE[1], cloud.pixel % SIZE[1]]))
    ends, quality = [], []
    for color in (0, 255):
        spoiled = replace(apply_masks(scene, keep), images=np.where(keep[..., None], scene.images, np.uint8(color)))
        warp = inverse_of_alignment(alignment)
        trainer = make_trainer(alignment, data_of(spoiled, alignment, config), warp, "numba", torch.device("cpu"), config)
        trained = train(trainer)
        ends.append(trained.splats)
        quality.append([(row["psnr"], row["psnr_rigid"]) for row in measure(trained, trainer.data, trainer.rasterizer, warp, turn=True)])
        quality[-1] += [row["psnr"] for row in trainer.history]
    for first, second in zip(vars(ends[0]).values(), vars(ends[1]).values(), strict=True):
        assert torch.equal(first, second)
    assert quality[0] == quality[1]


def test_settings_that_cannot_be_used() -> None:
    assert list(np.flatnonzero(heldout_frames(17, 8))) == [4, 12]
    assert not heldout_frames(5, 0).any()
    for change in ({"holdout_every": 1}, {"num_iters": 0}, {"sh_degree": 4}, {"image_scale": 0.0}, {"initial_opacity": 1.0}):
        with pytest.raises(ConfigError):
            make_config(**change)
