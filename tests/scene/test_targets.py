"""Every setting that says where results go: pointed at what a user has made it is refused before any work, and nothing is lost."""

import json
from pathlib import Path

import pytest

import eval_gs.stage
import frame_to_model_icp.stage
import global_optimization.stage
import train_gs.stage
import train_inverse_deformation.stage
import utils.exports.stage
from configs.evaluation import EvalConfig, ExportConfig
from configs.preprocess import PreprocessConfig
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from preprocess import stage
from tests.notes import Notes
from tests.sfm.test_preprocess import FlatGeometry, brightness_clip
from tests.trained_world import RUN, write_trained_world
from utils.errors import ArtifactError, ConfigError, V2WError
from utils.geometry_backend import GEOMETRY
from utils.scene.layout import SceneLayout
from utils.types import NULL_REPORTER


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "scene"
    write_trained_world(root)
    return root


# Folders and files of a scene, and of a user, that a careless setting may name; relative to the scene.
REFUSED = "not made by this program|is read from there|holds another result|is a file, where|is a folder, where"
PLACES = ["../mine", "../mine/photo.jpg", ".", "exports", "exports/npz", RUN, f"{RUN}/after_global_optimization"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["inverse", "splats", "evaluation", "export", "export folder"])
def test_results_never_take_the_place_of_other_things(world: Path, command: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.parent / "mine").mkdir(exist_ok=True)
    (world.parent / "mine" / "photo.jpg").write_bytes(b"mine")
    before = snapshot(world.parent)
    monkeypatch.chdir(world)
    for target in (world / place, Path(place)):
        with pytest.raises(V2WError, match=REFUSED) as caught:
            run(command, world, target)
        assert caught.value.hint and snapshot(world.parent) == before


def run(command: str, root: Path, target: Path) -> object:
    common = {"root_path": root, "run": RUN}
    if command == "inverse":
        return train_inverse_deformation.stage.run(InverseDeformationConfig(**common, out_path=target, overwrite=True))
    if command == "splats":
        return train_gs.stage.run(GSConfig(**common, out_dir=target, num_iters=1, overwrite=True))
    if command == "evaluation":
        return eval_gs.stage.run(EvalConfig(**common, out_dir=target, overwrite=True))
    return utils.exports.stage.run(ExportConfig(**common, out_ply=target, format="colmap" if "folder" in command else "ply"))


@pytest.mark.parametrize("name", ["", ".", "..", "../../x", "a/b", "/tmp/x", "two\nlines", "x" * 300])
def test_names_of_folders_are_names(world: Path, name: str) -> None:
    before = snapshot(world)
    with pytest.raises(V2WError) as caught:
        global_optimization.stage.run(GlobalOptimizationConfig(root_path=world, run=RUN, out_subdir=name, overwrite=True))
    assert "\n" not in caught.value.message
    for config in (GSConfig(root_path=world, run=name), GSConfig(root_path=world, run=RUN, global_opt_subdir=name)):
        with pytest.raises(V2WError):
            train_gs.stage.run(config)
    if name:
        with pytest.raises(ConfigError):
            frame_to_model_icp.stage.run(FrameToModelICPConfig(root_path=world, out_suffix=f"/{name}"))
    assert snapshot(world) == before


def test_stage_2_does_not_replace_what_it_starts_from(world: Path) -> None:
    before = snapshot(world)
    config = GlobalOptimizationConfig(
        root_path=world, run=RUN, checkpoint_subdir="after_global_optimization", out_subdir="after_global_optimization", overwrite=True
    )
    with pytest.raises(ConfigError, match="is read from there"):
        global_optimization.stage.run(config)
    assert snapshot(world) == before


# ------------------------------------------------------------------------------------------------ stage 0


@pytest.fixture(autouse=True)
def flat() -> None:
    GEOMETRY.register("flat", f"{FlatGeometry.__module__}:FlatGeometry")


def preprocess(**settings: object) -> Path:
    defaults = {"backend": "flat", "process_res": 64, "max_frames": 4}
    return stage.run(PreprocessConfig(**(defaults | settings)), NULL_REPORTER)  # type: ignore[arg-type]


def test_a_clip_beside_a_folder_of_its_name_does_not_touch_it(tmp_path: Path) -> None:
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    for name in ("clip/frames/mine.png", "clip/exports/cameras/rig.json", "clip/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError, match="not made by this program") as caught:
        preprocess(input_video=(tmp_path / "clip.mp4",))
    assert caught.value.hint and snapshot(tmp_path) == before
    preprocess(input_video=(tmp_path / "clip.mp4",), scene_root=tmp_path / "scene")


def test_a_scene_among_a_users_files_leaves_them_alone(tmp_path: Path) -> None:
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "notes.txt").write_text("mine")
    for count in (4, 5):
        root = preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=count)
        assert (root / "notes.txt").read_text() == "mine"


def test_frames_of_the_scene_are_no_input_of_it(tmp_path: Path) -> None:
    """28 frames became 10, and then the first of them was missing."""
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    root = preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=6)
    before = snapshot(root)
    with pytest.raises(ConfigError, match="is read from there"):
        preprocess(frames_dir=root / "frames_subsampled", scene_root=root)
    with pytest.raises(ConfigError, match="which is read"):
        preprocess(frames_dir=root / "frames", scene_root=root / "frames" / "scene")
    assert snapshot(root) == before
    preprocess(frames_dir=root / "frames", scene_root=root)  # all of them, which stage 0 does not write then
    assert len(list((root / "frames").glob("*.png"))) == 12


def test_clips_of_one_name_do_not_share_a_scene(tmp_path: Path) -> None:
    for suffix, first in ((".mp4", 0), (".mov", 40)):
        brightness_clip(tmp_path / f"clip{suffix}", first, 12)
    root = preprocess(input_video=(tmp_path / "clip.mp4",))
    before = snapshot(root)
    with pytest.raises(ConfigError, match=r"made from clip.mp4, not from clip.mov"):
        preprocess(input_video=(tmp_path / "clip.mov",))
    assert snapshot(root) == before
    preprocess(input_video=(tmp_path / "clip.mov",), scene_root=tmp_path / "other")


def test_no_mix_of_two_runs_counts_as_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings A; B, stopped while it writes its last result; A again: what A made is all there."""
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    root = preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=6)
    before = snapshot(root)

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "save_results", stopped)
        preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=4)
    assert snapshot(root) == before
    layout = SceneLayout(root)
    assert (
        len(list(layout.frames_subsampled.glob("*.png"))) == json.loads(layout.preprocess_json.read_text())["num_frames_used"] == 5
    )  # one is not placed


def test_a_path_that_the_user_has_edited_is_not_overwritten(tmp_path: Path) -> None:
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    root = preprocess(input_video=(tmp_path / "clip.mp4",))
    path = SceneLayout(root).path_json
    path.write_text(path.read_text().replace('"scale_factor": 1.0', '"scale_factor": 2.0'))
    with pytest.raises(ArtifactError, match=r"0000_extend_transforms\.json exists"):
        preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=5)


def test_linked_folders_stay_linked(tmp_path: Path) -> None:
    """The second run ended in a NotADirectoryError after all the work."""
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    (tmp_path / "big").mkdir()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "frames").symlink_to(tmp_path / "big" / "frames")
    (tmp_path / "clip" / "exports").symlink_to(tmp_path / "big" / "exports")
    (tmp_path / "big" / "exports").mkdir()
    for count in (4, 5):
        root = preprocess(input_video=(tmp_path / "clip.mp4",), max_frames=count)
        assert (root / "frames").is_symlink() and len(list((tmp_path / "big" / "frames").glob("*.png"))) == 12
        entry = json.loads((root / "exports" / "cameras" / "transforms.json").read_text())["frames"][0]
        assert ((root / "exports" / "cameras").resolve() / entry["file_path"]).resolve() == tmp_path / "big" / "frames" / "000001.png"
    assert list((root / "frames_subsampled").glob("*.png"))


def test_notes_tell_nothing_where_nothing_was_kept(tmp_path: Path) -> None:
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    for count in (4, 5):
        config = PreprocessConfig(input_video=(tmp_path / "clip.mp4",), backend="flat", process_res=64, max_frames=count)
        stage.run(config, notes := Notes())
        assert not any("kept" in line or "cut off" in line for line in notes.lines)
