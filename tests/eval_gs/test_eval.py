"""Evaluation and export of a tiny trained world, from the files on disk to the files on disk."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from configs.evaluation import EvalConfig, ExportConfig
from configs.pipeline import preset
from configs.stage3_gs import GSConfig
from eval_gs.metrics import psnr
from eval_gs.paths import look_at, make_path
from eval_gs.stage import run as evaluate
from tests.trained_world import FRAMES, RUN, SIZE, write_trained_scene, write_trained_world
from utils.cameras.similarity import Similarity
from utils.errors import ConfigError, InputError, MissingArtifactError
from utils.exports.ply import read_splat_ply
from utils.exports.select import transform_cameras, upright
from utils.exports.stage import run as export
from utils.runtime import cuda_device_present
from utils.scene.artifacts import write_json
from utils.scene.layout import SceneLayout
from utils.scene.manifest import MARK, write_manifest
from utils.scene.media import read_image
from utils.scene.trajectories import load_trajectory
from utils.splatting.checkpoint import GS_SCHEMA, load_checkpoint
from utils.splatting.render import SplatView, depth_image, locate_checkpoint, resolve_rasterizer, rgb_image, rgb_images
from utils.synthetic.inconsistency import rotation_matrices
from utils.synthetic.world import WorldConfig, make_world, save_world
from utils.types import Scene


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_trained_world(folder, "3dgs")
    return folder


@pytest.fixture(scope="module")
def result(root: Path) -> Path:
    return evaluate(EvalConfig(root_path=root, extra_paths=("orbit",), extra_path_frames=12))


def open_view(root: Path) -> SplatView:
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    return SplatView(load_checkpoint(locate_checkpoint(root, "", None)[1]), rasterizer, device)


def test_films_have_all_frames_and_play_in_a_browser(result: Path) -> None:
    for name, count in (("gs_video", 3), ("input_poses", FRAMES), ("optimised_poses", FRAMES), ("orbit", 12)):
        assert len(list((result / f"frames_{name}").glob("frame_*.png"))) == count
        with av.open(str(result / f"render_{name}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert sum(1 for _ in container.decode(stream)) == count
            # on a CPU films from the clip's own poses have the size of the training, as the pictures beside have
            assert (stream.height, stream.width) == (SIZE if name.endswith("_poses") and not cuda_device_present() else (720, 1200))
        path = load_trajectory(result / f"{name}_transforms.json")
        assert len(path) == count and path.size == SIZE


def test_renders_stand_where_the_cameras_stood(result: Path) -> None:
    """The fly-through (OpenGL axes on disk), the input poses and the trained poses show the same views in this world."""
    for i in range(3):
        films = [read_image(result / f"frames_{name}" / f"frame_{i:05d}.png") for name in ("gs_video", "input_poses", "optimised_poses")]
        assert psnr(films[0], films[2]) > 40 and psnr(films[1], films[2]) > 40


def test_metrics_tell_training_from_held_out_frames(result: Path) -> None:
    metrics = json.loads((result / "metrics.json").read_text())
    assert [f["heldout"] for f in metrics["frames"]] == [False, False, True, False, False]
    assert metrics["train"]["frames"] == 4 and metrics["heldout"]["frames"] == 1
    mean = np.mean([f["psnr"] for f in metrics["frames"] if not f["heldout"]])
    assert metrics["train"]["psnr"] == pytest.approx(mean)
    assert metrics["heldout"]["psnr"] > 18  # no deformation in this world and splats on the surface
    assert metrics["frames"][0]["canonical_psnr"] == pytest.approx(metrics["frames"][0]["psnr"])
    assert metrics["consistency"]["orbit"]["reprojection_px"] < 0.5
    assert json.loads((result / "eval_config.json").read_text())["fps"] == 30


def test_a_current_evaluation_is_skipped(root: Path, result: Path) -> None:
    before = (result / "manifest.json").read_text()
    evaluate(EvalConfig(root_path=root, extra_paths=("orbit",), extra_path_frames=12))
    assert (result / "manifest.json").read_text() == before


def test_options_size_white_and_count(root: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        root_path=root, out_dir=tmp_path / "out", override_width=40, override_height=24, max_frames=2, white_background=True,
        save_video=False, metrics=False, render_input_poses=False, render_optimised_poses=False, report=False,
    )  # fmt: skip
    out = evaluate(config)
    images = sorted((out / "frames_gs_video").glob("*.png"))
    assert len(images) == 2 and read_image(images[0]).shape == (24, 40, 3)
    assert not (out / "metrics.json").exists() and not list(out.glob("*.mp4"))


def test_frames_are_rendered_through_their_colour_map(root: Path) -> None:
    view = open_view(root)
    from utils.deformation.inverse import IdentityInverseWarp

    plain = view.render_frame(IdentityInverseWarp(), 1)
    swap = torch.zeros(3, 4)
    swap[0, 2] = swap[1, 1] = swap[2, 0] = 1.0
    swap[:, 3] = 0.1
    view.trained.appearance[1] = swap
    mapped = view.render_frame(IdentityInverseWarp(), 1)
    torch.testing.assert_close(mapped.rgb, plain.rgb.flip(-1) + 0.1 * plain.alpha[..., None])


def test_views_of_a_path_are_those_rendered_alone(root: Path) -> None:
    view = open_view(root)
    cameras, positions = view.trained.cameras, [2, 0]
    alone = [view.render(cameras.c2w[i], cameras.K[i], cameras.size) for i in positions]
    for output, expected in zip(view.render_all(cameras, positions), alone, strict=True):
        assert torch.equal(output.rgb, expected.rgb) and torch.equal(output.alpha, expected.alpha)
    pictures = list(rgb_images(view.render_all(cameras, positions), white=True))
    assert all(np.array_equal(a, rgb_image(b, white=True)) for a, b in zip(pictures, alone, strict=True))
    assert len(list(view.render_all(cameras))) == len(cameras)


@pytest.mark.skipif(not cuda_device_present(), reason="needs a GPU")
def test_pictures_from_a_gpu_come_in_order_and_whole(root: Path) -> None:
    _, checkpoint = locate_checkpoint(root, "", None)
    rasterizer, device, _ = resolve_rasterizer("auto", "cuda")
    view = SplatView(load_checkpoint(checkpoint), rasterizer, device)
    cameras = view.trained.cameras
    expected = [rgb_image(view.render(cameras.c2w[i], cameras.K[i], cameras.size)) for i in range(len(cameras))]
    pictures = list(rgb_images(view.render_all(cameras)))
    assert len(pictures) == len(expected) and all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))


def test_white_background_shows_only_where_nothing_is(root: Path) -> None:
    view = open_view(root)
    away = view.trained.cameras.c2w[0].copy()
    away[:3, 3] += 100 * away[:3, 2]
    output = view.render(away, view.trained.cameras.K[0], SIZE)
    assert rgb_image(output, white=True).min() == 255 and rgb_image(output).max() == 0
    assert depth_image(output).max() == 0


@pytest.mark.parametrize("kind", ["orbit", "spiral", "dolly"])
def test_made_paths_look_at_the_scene(kind: str, root: Path) -> None:
    cameras = load_checkpoint(locate_checkpoint(root, "", None)[1]).cameras
    path = make_path(kind, cameras, 2.0, 8)
    middle = cameras.c2w[len(cameras) // 2]
    target = middle[:3, 3] + 2.0 * middle[:3, 2]
    for pose in path.c2w:
        np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-9)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        in_camera = pose[:3, :3].T @ (target - pose[:3, 3])
        assert in_camera[2] > 1 and np.abs(in_camera[:2]).max() < 1e-6
        assert pose[:3, 1] @ middle[:3, 1] > 0.9
    travelled = np.abs(path.centers - middle[:3, 3]).max()
    assert 0.05 < travelled < 1.0
    with pytest.raises(ConfigError, match="no camera path"):
        make_path("zigzag", cameras, 2.0, 8)


def test_look_at_keeps_image_down_down() -> None:
    pose = look_at(np.array([0, 0, -3.0]), np.zeros(3), np.array([0, 1.0, 0]))
    np.testing.assert_allclose(pose[:3, :3], np.eye(3), atol=1e-12)


def test_exported_ply_renders_the_same_picture_turned_upright_and_scaled(root: Path, tmp_path: Path) -> None:
    view = open_view(root)
    cameras = view.trained.cameras
    original = rgb_image(view.render(cameras.c2w[1], cameras.K[1], SIZE))
    path = export(ExportConfig(root_path=root, out_ply=tmp_path / "a" / "world.ply", up="z", scale=2.0))
    moved = transform_cameras(cameras, upright(cameras, "z"), 2.0)
    read_back = SplatView(replace(view.trained, splats=read_splat_ply(path), cameras=moved), view.rasterizer, view.device)
    assert psnr(rgb_image(read_back.render(moved.c2w[1], moved.K[1], SIZE)), original) > 45
    assert {p.name for p in path.parent.iterdir()} == {"world.ply", MARK}


@pytest.mark.parametrize("kind", ["ply", "splat", "spz", "cloud", "colmap", "colmap-bin", "nerfstudio"])
def test_every_export_is_written_twice_without_leftovers(kind: str, root: Path, tmp_path: Path) -> None:
    config = ExportConfig(root_path=root, format=kind, out_ply=tmp_path / "out", max_points=500)  # type: ignore[arg-type]
    assert export(config).exists() and export(config).exists()
    assert {p.name for p in tmp_path.iterdir()} - {MARK} == {"out"}
    if kind == "colmap-bin":
        pycolmap = pytest.importorskip("pycolmap")
        model = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0"))
        assert (model.num_images(), model.num_points3D()) == (FRAMES, 500)
        assert {i.name for i in model.images.values()} == {p.name for p in (tmp_path / "out" / "images").iterdir()}
    if kind == "splat":
        assert (tmp_path / "out").stat().st_size == 500 * 32


def test_what_is_missing_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no alignment run") as caught:
        locate_checkpoint(tmp_path, "", None)
    assert "run_reconstruction.py" in caught.value.hint
    with pytest.raises(ConfigError, match="no run 'x'") as unknown:
        locate_checkpoint(root, "x", None)
    assert RUN in unknown.value.hint
    with pytest.raises(MissingArtifactError, match="gs_2dgs"):
        locate_checkpoint(root, RUN, Path("gs_2dgs"))
    assert locate_checkpoint(root, RUN, Path("gs_3dgs"))[1].name == "gs_3dgs"
    with pytest.raises(ConfigError, match="go together"):
        EvalConfig(root_path=root, override_width=30)


def test_evaluation_goes_on_on_the_cpu_when_gpu_memory_is_short(root: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    import eval_gs.stage as stage

    load, devices = stage._load_subject, []

    def first_full(config, layout, checkpoint, device):
        devices.append(device)
        if len(devices) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(config, layout, checkpoint, device)

    monkeypatch.setattr(stage, "_load_subject", first_full)
    flags = {"render_gs_video_path": False, "render_input_poses": False, "report": False, "save_images": False}
    out = evaluate(EvalConfig(root_path=root, out_dir=tmp_path / "films", **flags))
    assert devices == ["auto", "cpu"] and (out / "manifest.json").is_file()
    assert caplog.text.count("out of GPU memory") == 1


def test_stills_of_the_fly_through_are_left_out_if_so_wanted(root: Path, tmp_path: Path) -> None:
    assert not preset("fast", "cpu").eval.save_path_images and preset("extensive", "cpu").eval.save_path_images
    flags = {"max_frames": 3, "metrics": False, "save_video": False, "render_input_poses": False, "report": False}
    out = evaluate(EvalConfig(root_path=root, out_dir=tmp_path / "stills", save_path_images=False, **flags))
    assert len(list((out / "frames_optimised_poses").glob("*.png"))) > 1 and not (out / "frames_gs_video").exists()


def test_novel_views_of_a_synthetic_world_are_measured_against_the_clean_truth(tmp_path: Path) -> None:
    """The reconstruction has a frame and scale of its own and uses every other frame of the clip."""
    world = make_world(WorldConfig(frames=2 * FRAMES - 1, size=SIZE, severity="none", pose_errors=0.0, path_scale=2.0))
    save_world(world, tmp_path / "truth")
    used = list(range(0, len(world), 2))
    similarity = Similarity(2.5, rotation_matrices(np.array([[0.4, 1.1, -0.7]]))[0], np.array([3.0, -1.0, 2.0]))
    cameras = replace(world.cameras.select(used), frame_ids=np.arange(FRAMES))
    cameras = replace(cameras, c2w=np.stack([similarity.camera_before(c2w) for c2w in cameras.c2w]))
    depth = world.depth[used] / np.float32(similarity.scale)
    scene = Scene(cameras=cameras, images=world.images[used], depth=depth, confidence=np.ones_like(depth))
    root = tmp_path / "scene"
    write_trained_scene(root, scene)
    config = EvalConfig(
        root_path=root, ground_truth=tmp_path / "truth", save_images=False, save_video=False, report=False,
        render_gs_video_path=False, render_input_poses=False, render_optimised_poses=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="which frames of the clip"):
        evaluate(config)
    book = SceneLayout(root).preprocess_json
    book.write_text(json.dumps({"positions": used}))
    metrics = json.loads((evaluate(config) / "metrics.json").read_text())
    scores = metrics["novel_views"]
    assert scores["psnr"] == pytest.approx(metrics["train"]["psnr"], abs=1.0)  # this world is consistent: new views are as good
    assert scores["ssim"] == pytest.approx(metrics["train"]["ssim"], abs=0.05)
    assert scores["views"] == 8 and scores["misfit"] < 1e-3
    assert scores["psnr_per_view"] == pytest.approx(scores["psnr"], abs=0.3)
    book.write_text(json.dumps({"positions": used[::-1]}))
    off = json.loads((evaluate(replace(config, overwrite=True)) / "metrics.json").read_text())["novel_views"]
    assert off["misfit"] > 0.01 and off["psnr"] < scores["psnr"]  # a wrong truth shows
    book.write_text(json.dumps({"positions": [p + 1 for p in used]}))
    with pytest.raises(InputError, match=r"the truth has 9"):
        evaluate(replace(config, overwrite=True))
    with pytest.raises(MissingArtifactError, match="nowhere does not exist"):
        evaluate(replace(config, ground_truth=tmp_path / "nowhere"))


def test_a_scene_without_a_fly_through_gets_one(root: Path, tmp_path: Path) -> None:
    """As results.npz of another program comes alone."""
    alone = tmp_path / "scene"
    write_trained_world(alone)
    SceneLayout(alone).path_json.unlink()
    out = evaluate(EvalConfig(root_path=alone, save_images=False, save_video=False, report=False, render_input_poses=False))
    assert len(load_trajectory(out / "gs_video_transforms.json")) > FRAMES
    with pytest.raises(MissingArtifactError):
        evaluate(EvalConfig(root_path=alone, transforms_path=tmp_path / "none.json", report=False))


def test_splats_of_stage_1s_alignment_and_those_that_lie_elsewhere_are_exported_and_evaluated(tmp_path: Path) -> None:
    root = tmp_path / "scene"
    run = write_trained_world(root)
    run.after_global_optimization.rename(run.after_non_rigid_icp)  # as with --config.skip-global-optimization
    settings = GSConfig(run=RUN, global_opt_subdir="after_non_rigid_icp")
    write_json(run.gs("3dgs") / "config.json", settings)
    write_manifest(run.gs("3dgs"), schema=GS_SCHEMA, config=settings, inputs={})
    elsewhere = tmp_path / "mine" / "splats"
    elsewhere.parent.mkdir()
    run.gs("3dgs").rename(elsewhere)  # as with train_gs --config.out-dir
    assert locate_checkpoint(root, "", elsewhere)[0].root == run.root
    out = export(ExportConfig(root_path=root, checkpoint_dir=elsewhere, format="colmap"))
    assert (out / "sparse" / "0" / "points3D.txt").stat().st_size > 10_000
    evaluate(EvalConfig(root_path=root, checkpoint_dir=elsewhere, save_images=False, save_video=False, report=False))
