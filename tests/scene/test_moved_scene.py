"""A scene that is moved, renamed, copied without times or opened by another spelling of its path is the same scene."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train_gs.stage
import train_inverse_deformation.stage
from configs.preprocess import PreprocessConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from preprocess import stage
from preprocess.source import input_ids
from tests.notes import Notes
from tests.sfm.test_preprocess import FlatGeometry, brightness_clip
from tests.trained_world import RUN, write_trained_world
from utils.exports.cameras.nerfstudio import write_transforms
from utils.geometry_backend import GEOMETRY
from utils.scene.checkpoints import CheckpointFolder, forget_parts, parts_of
from utils.scene.layout import SceneLayout
from utils.scene.manifest import fingerprint, in_scene, portable, read_manifest, significant
from utils.scene.media import write_image
from utils.splatting.checkpoint import GS_SCHEMA
from utils.types import CameraSet


@pytest.fixture(autouse=True)
def flat() -> None:
    GEOMETRY.register("flat", f"{FlatGeometry.__module__}:FlatGeometry")


def elsewhere(root: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same scene in another place, or by another path."""
    target = root.parent / "new name"
    if how == "moved":
        return root.rename(target)
    if how == "copied":
        shutil.copytree(root, target, copy_function=shutil.copyfile)
        return target
    if how == "linked":
        target.symlink_to(root)
        return target
    monkeypatch.chdir(root.parent)
    return Path(root.name)


WAYS = ["moved", "copied", "linked", "relative"]


@pytest.mark.parametrize("how", WAYS)
def test_stage_0_is_kept(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clip renamed and of another time, too."""
    brightness_clip(tmp_path / "clip.mp4", 0, 12)
    settings = {"backend": "flat", "process_res": 64, "max_frames": 4}
    root = stage.run(PreprocessConfig(input_video=(tmp_path / "clip.mp4",), **settings))  # type: ignore[arg-type]
    root = elsewhere(root, how, monkeypatch)
    clip = (tmp_path / "clip.mp4").rename(tmp_path / "renamed.mp4")
    os.utime(clip, (1, 1))
    stage.run(PreprocessConfig(input_video=(clip,), scene_root=root, **settings), notes := Notes())  # type: ignore[arg-type]
    assert "is current" in notes.lines[0]


@pytest.mark.parametrize("how", WAYS)
def test_inverse_and_splats_are_kept(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their settings name the inverse and the images by paths."""
    root = tmp_path / "scene"
    write_trained_world(root)
    out = "gs_again"

    def both(root: Path, notes: Notes) -> None:
        inverse = InverseDeformationConfig(root_path=root, run=RUN, validation_points=50)
        folder = train_inverse_deformation.stage.run(replace(inverse, out_path=root / RUN / "inverse_again"), notes)
        splats = GSConfig(root_path=root, run=RUN, inverse_deform_dir=folder, out_dir=root / RUN / out, device="cpu")
        train_gs.stage.run(replace(splats, num_iters=2, target_num_points=100), notes)

    both(root, Notes())
    root = elsewhere(root, how, monkeypatch)
    both(root, notes := Notes())
    assert len(notes.lines) == 2 and all("is current" in line for line in notes.lines)
    stored = read_manifest(root / RUN / out, GS_SCHEMA, "").config
    assert stored["root_path"] == "." and stored["inverse_deform_dir"] == f"{RUN}/inverse_again"
    assert in_scene(root, stored["inverse_deform_dir"]) == root / RUN / "inverse_again"


@pytest.mark.parametrize("how", WAYS)
def test_finished_parts_are_found_again(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scene"
    config = GSConfig(root_path=root, run="r", original_images_dir=root / "frames")
    CheckpointFolder(root / "r" / "out", config, {"a": "1"}).save("part", {"x": np.arange(3)})
    root = elsewhere(root, how, monkeypatch)
    config = replace(config, root_path=root, original_images_dir=root / "frames")
    assert len(CheckpointFolder(root / "r" / "out", config, {"a": "1"})) == 1


def test_paths_outside_the_scene_stay_absolute_and_inside_it_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = GSConfig(root_path=Path("scene"), run="r", original_images_dir=Path("photos"), inverse_deform_dir=Path("scene/r/inverse"))
    stored = portable(config)
    assert (stored["root_path"], stored["original_images_dir"], stored["inverse_deform_dir"]) == (
        ".",
        str(tmp_path / "photos"),
        "r/inverse",
    )
    assert significant(stored) == significant(portable(replace(config, root_path=tmp_path / "scene")))
    assert in_scene(tmp_path / "scene", None) is None
    (tmp_path / "as_typed").mkdir()
    assert in_scene(tmp_path / "scene", "as_typed") == Path("as_typed")  # written by an earlier version


# ------------------------------------------------------------------------------------------------ what counts as a change


def test_the_newest_run_is_told_by_manifests_where_times_are_lost(tmp_path: Path) -> None:
    for name, created in (("a", "2024-01-02"), ("b", "2024-01-01")):
        folder = tmp_path / f"frame_to_model_icp_{name}" / "after_non_rigid_icp"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f'{{"created": "{created}T00:00:00+0000"}}')
    assert [name[-1] for name in SceneLayout(tmp_path).runs()] == ["b", "a"]


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_a_fingerprint_tells_contents_and_nothing_else(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    os.utime(tmp_path / "b", (1, 1))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    for change in (b"x" + content[1:], content[:-1] + b"x", content + b"x", content[: size // 2]):
        (tmp_path / "b").write_bytes(change)
        assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_imported_depth_and_masks_are_inputs(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(3):
        write_image(tmp_path / "shots" / f"{i}.png", np.full((28, 42, 3), 60 * i, np.uint8))
        write_image(tmp_path / "masks" / f"{i}.png", np.full((28, 42), 255, np.uint8))
        np.save(tmp_path / f"{i}.npy", np.ones((28, 42), np.float32))
    K = np.tile(np.array([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]), (3, 1, 1))
    cameras = CameraSet(c2w=np.tile(np.eye(4), (3, 1, 1)), K=K, size=(28, 42), frame_ids=np.arange(3))
    more = [{"depth_file_path": f"{i}.npy"} for i in range(3)]
    write_transforms(tmp_path / "transforms.json", cameras, [f"shots/{i}.png" for i in range(3)], "p.ply", more=more)
    config = PreprocessConfig(frames_dir=tmp_path / "shots", cameras=tmp_path, masks=tmp_path / "masks")
    before = input_ids(config)
    assert input_ids(config) == before
    np.save(tmp_path / "1.npy", np.full((28, 42), 2, np.float32))
    changed = input_ids(config)
    assert {name for name in before if before[name] != changed[name]} == {"cameras"}
    write_image(tmp_path / "masks" / "2.png", np.zeros((28, 42), np.uint8))
    assert input_ids(config)["masks"] != changed["masks"]
    (tmp_path / "notes.txt").write_text("not read")
    assert input_ids(config)["cameras"] == changed["cameras"]


def test_parts_of_a_finished_result_are_removed_but_not_a_users_folder(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "out", {}, {}).save("part", {"x": np.arange(3)})
    for name in ("state.pt", "preview.pt", "preview.partial", "view/0.jpg"):  # of a training
        (parts_of(tmp_path / "out") / name).parent.mkdir(exist_ok=True)
        (parts_of(tmp_path / "out") / name).touch()
    forget_parts(tmp_path / "out")
    assert not parts_of(tmp_path / "out").exists()
    parts_of(tmp_path / "mine").mkdir()
    (parts_of(tmp_path / "mine") / "cv.txt").write_text("mine")
    forget_parts(tmp_path / "mine")
    assert (parts_of(tmp_path / "mine") / "cv.txt").exists()
