"""Names, packages and paths of every stage are looked for before the first one begins, and all that is wrong is told at once."""

from pathlib import Path

import numpy as np
import pytest

from run_reconstruction import configure, plan, run
from utils.errors import V2WError
from utils.scene.media import write_image
from video_to_world.ahead import require_usable


def refused(flags: str, tmp_path: Path) -> V2WError:
    """The error of a whole run with these flags; nothing may have been begun."""
    frames = tmp_path / "shots"
    frames.mkdir(exist_ok=True)
    (frames / "0.png").touch()
    root = tmp_path / "scene"
    config = configure(["--config.frames-dir", str(frames), "--config.root-path", str(root), "--config.device", "cpu", *flags.split()])
    with pytest.raises(V2WError) as caught:
        run(config)
    assert not root.exists() and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--config.stage0.backend magic", "magic"),
        ("--config.stage0.backend da3", "not installed"),
        ("--config.stage0.lens fish", "fish"),
        ("--config.stage0.masks nowhere", "stage0.masks: nowhere"),
        ("--config.stage0.cameras nowhere", "stage0.cameras: nowhere"),
        ("--config.stage1.matching.matcher magic", "magic"),
        ("--config.stage2.matching.matcher romav2", "romav2"),
        ("--config.stage1.method parity --config.stage1.twists.backend tcnn", "tcnn"),
        ("--config.stage2.out-subdir a/b", "out_subdir"),
        ("--config.gs.rasterizer magic", "magic"),
        ("--config.gs.rasterizer gsplat", "gsplat"),
        ("--config.eval.rasterizer magic", "magic"),
        ("--config.eval.ground-truth nowhere", "eval.ground_truth: nowhere"),
        ("--config.eval.transforms-path nowhere", "eval.transforms_path: nowhere"),
        ("--config.gs.original-images-dir nowhere", "gs.original_images_dir: nowhere"),
        ("--config.inverse-deform-dir nowhere", "inverse_deform_dir: nowhere"),
        ("--config.alignment-run frame_to_model_icp_9_1_offset0", "frame_to_model_icp_9_1_offset0"),
    ],
)
def test_what_is_not_there_is_told_before_the_first_stage(tmp_path: Path, flags: str, named: str) -> None:
    assert named in refused(flags, tmp_path).message


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    flags = "--config.stage0.backend magic --config.stage1.matching.matcher trick --config.gs.rasterizer brush --config.stage0.masks gone"
    message = refused(flags, tmp_path).message
    assert all(word in message for word in ("magic", "trick", "brush", "gone"))


def test_the_presets_pass(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", np.zeros((8, 8, 3), np.uint8))
    config = configure(["--config.frames-dir", str(tmp_path), "--config.root-path", str(tmp_path / "scene"), "--config.device", "cpu"])
    require_usable(config, {call.module: call.config for call in plan(config)})


def test_packages_of_what_is_made_are_not_asked_for_again(tmp_path: Path) -> None:
    words = ["--config.frames-dir", str(tmp_path), "--config.root-path", str(tmp_path / "scene"), "--config.device", "cpu"]
    config = configure([*words, "--config.stage0.backend", "da3"])
    stages = {call.module: call.config for call in plan(config)}
    require_usable(config, stages, frozenset(stages))
