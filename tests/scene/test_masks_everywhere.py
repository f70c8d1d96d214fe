"""Masks of every kind, followed from the command's settings through alignment, splats and evaluation: no stage may see what they hide."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

import frame_to_model_icp.stage
import global_optimization.stage
import preprocess_video
import train_gs.stage
import train_inverse_deformation.stage
from configs.evaluation import EvalConfig, ExportConfig
from configs.preprocess import PreprocessConfig
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from eval_gs import metrics
from eval_gs.stage import run as evaluate
from tests.box_world import make_box_world
from utils.cameras.projection import transform, unproject_depth
from utils.exports.stage import run as export
from utils.matching.flow.dis import FlowMatcher
from utils.scene.artifacts import load_alignment, load_scene
from utils.scene.layout import SceneLayout
from utils.scene.masks import SKY_CONFIDENCE
from utils.scene.media import read_image, write_image
from utils.types import NULL_REPORTER, Scene

FRAMES, SIZE = 9, (84, 140)
SKY, LOGO, POSTER = (150, 190, 240), (0, 255, 0), (255, 0, 255)
LOGO_AT = np.s_[66:76, 104:124]
GL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Masked:
    """A finished run on spoiled frames.

    Attributes:
        root: scene root.
        clean: (F, H, W, 3) the frames without logo and poster.
        hidden: (F, H, W) bool, logo and poster.
        sky: (F, H, W) bool.
        matched: what the flow matcher gave: frame, x, y of both ends of every match.
    """

    root: Path
    clean: np.ndarray
    hidden: np.ndarray
    sky: np.ndarray
    matched: np.ndarray


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masked]:
    """All stages, small: the upper part of the box is sky, a logo stands still, and the user's masks take a poster off the wall."""
    folder = tmp_path_factory.mktemp("masked")
    world = make_box_world(FRAMES, SIZE, warp=0.0)
    views = zip(world.true.c2w, world.true_depth, world.true.K, strict=True)
    place = np.stack([transform(pose, unproject_depth(depth, K)) for pose, depth, K in views])
    sky = place[..., 1] < -0.55
    poster = (place[..., 2] > 2.9) & (np.abs(place[..., 0] + 0.3) < 0.45) & (np.abs(place[..., 1] - 0.1) < 0.3)
    # Muted, so that nothing of the world is as colourful as what is to be hidden.
    clean = np.where(sky[..., None], np.array(SKY, np.uint8), world.scene.images // 2 + 64)
    spoiled = np.where(poster[..., None], np.array(POSTER, np.uint8), clean)
    spoiled[:, LOGO_AT[0], LOGO_AT[1]] = LOGO
    hidden = poster.copy()
    hidden[:, LOGO_AT[0], LOGO_AT[1]] = True
    for name in ("frames", "masks", "depth"):
        (folder / name).mkdir()
    entries = []
    for i in range(FRAMES):
        write_image(folder / "frames" / f"{i:03d}.png", spoiled[i])
        write_image(folder / "masks" / f"{i:03d}.png", np.where(poster[i], 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "depth" / f"{i:03d}.png"), (1000 * world.true_depth[i]).astype(np.uint16))
        K, matrix = world.true.K[i], (world.true.c2w[i] @ GL).tolist()
        entries.append({"file_path": f"{i:03d}.png", "depth_file_path": f"depth/{i:03d}.png", "transform_matrix": matrix})
        entries[-1] |= {"fl_x": K[0, 0], "fl_y": K[1, 1]}
    (folder / "transforms.json").write_text(json.dumps({"w": SIZE[1], "h": SIZE[0], "frames": entries}))
    root, ends = folder / "scene", []
    plain = FlowMatcher.match

    def watched(self: FlowMatcher, source: int, target: int, geometry: object) -> object:
        found = plain(self, source, target, geometry)  # type: ignore[arg-type]
        ends.extend(np.column_stack([np.full(len(found), f), px]) for f, px in ((source, found.source_px), (target, found.target_px)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowMatcher, "match", watched)
        _all_stages(folder, root)
    yield Masked(root, clean, hidden, sky, np.concatenate(ends))


def _all_stages(folder: Path, root: Path) -> None:
    preprocess_video.run(
        PreprocessConfig(
            frames_dir=folder / "frames", cameras=folder / "transforms.json", masks=folder / "masks", scene_root=root,
            process_res=SIZE[1], mask_overlays=True, mask_sky="on",
        ),
        NULL_REPORTER,
    )  # fmt: skip
    matching = MatchingConfig(matches_per_frame=3000)
    data = AlignmentDataConfig(num_frames=FRAMES, stride=1)
    frame_to_model_icp.stage.run(replace(FrameToModelICPConfig(root_path=root), alignment=data, matching=matching))
    name = SceneLayout(root).runs()[-1]
    global_optimization.stage.run(GlobalOptimizationConfig(root_path=root, run=name, matching=matching, heldout_pairs=3))
    train_inverse_deformation.stage.run(InverseDeformationConfig(root_path=root, run=name, validation_points=100))
    splats = GSConfig(root_path=root, run=name, renderer="3dgs", num_iters=120, target_num_points=4000, sh_degree=0, shell_share=0.3)
    train_gs.stage.run(splats)
    films = {"save_video": False, "render_gs_video_path": False, "render_input_poses": False, "render_clip_poses": True}
    evaluate(EvalConfig(root_path=root, report=False, **films))


def scene_of(run: Masked) -> Scene:
    return load_scene(run.root)


def spoilt(colors: np.ndarray) -> float:
    """Share of colours as saturated as the poster's or the logo's, which the world's never are."""
    distance = [np.abs(colors.astype(int) - spoil).max(-1) for spoil in (LOGO, POSTER)]
    return float((np.minimum(*distance) < 60).mean())


def test_stage_0_marks_what_is_hidden_and_what_is_sky(run: Masked) -> None:
    scene = scene_of(run)
    assert scene.ignored is not None and scene.ignored[run.hidden].all()
    assert scene.ignored.mean() < 1.6 * run.hidden.mean()
    assert not scene.valid[run.hidden].any()
    least = scene.confidence == SKY_CONFIDENCE
    far = float(np.median(scene.depth[least & run.sky & ~scene.ignored]))
    marked = least & (scene.depth == far)
    seen = run.sky & ~scene.ignored
    assert marked[seen].mean() > 0.85 and marked[~run.sky].mean() < 0.05
    assert far >= np.percentile(scene.depth[scene.valid & ~marked], 98)


def test_alignment_neither_matches_nor_keeps_hidden_pixels(run: Masked) -> None:
    frame, x, y = run.matched.astype(int).T
    assert len(frame) > 1000 and not run.hidden[frame, y, x].any()
    name = SceneLayout(run.root).runs()[-1]
    layout = SceneLayout(run.root).run(name)
    for folder in (layout.after_non_rigid_icp, layout.after_global_optimization):
        cloud = load_alignment(folder).cloud
        assert len(cloud) > 10_000
        assert not run.hidden.reshape(FRAMES, -1)[cloud.frame, cloud.pixel].any()


def test_splats_show_nothing_hidden_but_what_is_behind_the_logo(run: Masked) -> None:
    folder = SceneLayout(run.root).run(SceneLayout(run.root).runs()[-1]).gs("3dgs")
    films = sorted((folder / "gs_video_eval" / "frames_optimised_poses").glob("*.png"))
    renders = np.stack([read_image(path) for path in films])
    assert spoilt(renders) == 0
    logo = np.zeros(SIZE, bool)
    logo[LOGO_AT] = True
    assert np.mean([metrics.psnr(r, c, logo) for r, c in zip(renders, run.clean, strict=True)]) > 25
    assert np.mean([metrics.psnr(r, c, s & ~h) for r, c, s, h in zip(renders, run.clean, run.sky, run.hidden, strict=True)]) > 28


def test_the_clips_own_path_shows_what_the_trained_cameras_show(run: Masked) -> None:
    folder = SceneLayout(run.root).run(SceneLayout(run.root).runs()[-1]).gs("3dgs") / "gs_video_eval"
    for i in range(FRAMES):
        films = [read_image(folder / f"frames_{name}" / f"frame_{i:05d}.png") for name in ("clip_poses", "optimised_poses")]
        assert metrics.psnr(*films) > 40


@pytest.mark.parametrize("kind", ["colmap", "nerfstudio"])
def test_datasets_for_other_programs_carry_the_masks(run: Masked, tmp_path: Path, kind: Literal["colmap", "nerfstudio"]) -> None:
    folder = export(ExportConfig(root_path=run.root, format=kind, out_ply=tmp_path / "out", max_points=100))
    ignored = scene_of(run).ignored
    assert ignored is not None
    names = [f"frame_{i:05d}.png.png" for i in range(FRAMES)]
    stored = np.stack([read_image(folder / "masks" / name)[..., 0] for name in names])
    np.testing.assert_array_equal(stored == 0, ignored)
    if kind == "nerfstudio":
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        assert [frame["mask_path"] for frame in frames] == [f"masks/{name}" for name in names]


def test_quality_is_measured_on_the_other_pixels(run: Masked) -> None:
    folder = SceneLayout(run.root).run(SceneLayout(run.root).runs()[-1]).gs("3dgs")
    found = json.loads((folder / "gs_video_eval" / "metrics.json").read_text())
    trained = json.loads((folder / "report.json").read_text())
    assert found["masked"] == pytest.approx(scene_of(run).ignored.mean(), abs=0.01)  # type: ignore[union-attr]
    # Hidden pixels are saturated colours that no render shows: counted, they alone would hold these below 17 dB.
    assert found["train"]["psnr"] > 20 and found["heldout"]["psnr"] > 20
    assert trained["train_psnr"] == pytest.approx(found["train"]["psnr"], abs=0.3)
    assert found["train"]["ssim"] > 0.6
