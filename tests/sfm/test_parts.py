"""Stage 0 on a clip of several places: the largest or the named one is built, the others are kept as scenes of their own."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import preprocess_video
from configs.preprocess import PreprocessConfig
from tests.notes import Notes
from utils.errors import ConfigError, GeometryError, V2WError
from utils.geometry_backend import GEOMETRY, ClipFrames
from utils.imports.cameras import read_transforms
from utils.scene.artifacts import load_scene
from utils.scene.clip_parts import clip_contradictions, clip_parts
from utils.scene.layout import SceneLayout
from utils.scene.media import read_image
from utils.synthetic import SyntheticWorld, WorldConfig, make_world, save_world
from utils.synthetic.world import write_clip
from utils.types import Reporter, Scene

ROUND = 32  # frames of the first of the two places


class TrueGeometry:
    """A backend that knows the world; it places the frames up to `reach` only, where the first one asked for is among them."""

    world: ClassVar[SyntheticWorld]
    reach: ClassVar[int] = 10_000
    refuses: ClassVar[bool] = False

    def __init__(self, seed: int):
        self.seed = seed

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        assert frames.numbers is not None
        numbers = frames.numbers[frames.chosen]
        later = numbers[0] >= self.reach
        if later and self.refuses:
            raise GeometryError("the camera only turns", "move it")
        rows = np.arange(len(numbers)) if later else np.flatnonzero(numbers < self.reach)
        scene = self.world.predicted_scene().select(numbers[rows])
        cameras = scene.cameras
        return Scene(
            cameras=type(cameras)(c2w=cameras.c2w, K=cameras.K, size=cameras.size, frame_ids=rows),
            images=np.stack([frames.picture(int(frames.chosen[row])) for row in rows]),
            depth=scene.depth,
            confidence=scene.confidence,
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    TrueGeometry.world = make_world(WorldConfig(layout="forgetful", frames=46, size=(112, 196), severity="low", path_scale=2.0))
    save_world(TrueGeometry.world, folder)
    return folder / "clip.mp4"


@pytest.fixture(autouse=True)
def true_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    GEOMETRY.register("true", f"{__name__}:TrueGeometry")
    monkeypatch.setattr(TrueGeometry, "reach", 10_000)
    monkeypatch.setattr(TrueGeometry, "refuses", False)


def config(clip: Path, root: Path, **changes: object) -> PreprocessConfig:
    values = {"input_video": (clip,), "scene_root": root, "max_frames": 46, "process_res": 196, "backend": "true"}
    return PreprocessConfig(**{**values, **changes})  # type: ignore[arg-type]


def numbers(root: Path) -> list[int]:
    """Frames of a scene, from 0."""
    record = json.loads(SceneLayout(root).preprocess_json.read_text())
    return [int(Path(record["frames"][position]).stem) - 1 for position in record["positions"]]


def test_the_larger_place_is_built_and_the_other_is_a_scene_of_its_own(clip: Path, tmp_path: Path) -> None:
    root, notes = tmp_path / "scene", Notes()
    preprocess_video.run(config(clip, root), notes)
    built, kept = numbers(root), numbers(root / "parts" / "02")
    assert sorted(built + kept) == list(range(46)) and abs(len(built) - ROUND) <= 3 and max(built) < min(kept)
    assert [(part.root, list(part.frames)) for part in clip_parts(root)] == [
        (root, [n + 1 for n in built]),
        (root / "parts" / "02", [n + 1 for n in kept]),
    ]
    assert len(load_scene(root)) == len(built)
    other = load_scene(root / "parts" / "02")
    np.testing.assert_allclose(other.depth, TrueGeometry.world.predicted_scene().depth[kept], rtol=1e-6)
    pairs = clip_contradictions(root)
    assert np.mean([pair.frames[0] - 1 in built and pair.frames[1] - 1 in kept for pair in pairs]) > 0.9
    for pair in pairs:
        assert [int(path.stem) for path in pair.pictures] == list(pair.frames) and read_image(pair.pictures[0]).shape == (112, 196, 3)
    for place, own in ((root, built), (root / "parts" / "02", kept)):
        cameras = SceneLayout(place).clip_cameras
        names = read_transforms(cameras / "transforms.json").names
        assert {int(Path(name).stem) - 1 for name in names} == set(own) and all((cameras / name).is_file() for name in names)
    said = [line for line in notes.lines if "places" in line]
    assert (
        len(said) == 1 and f"frames 1 to {max(built) + 1} are built" in said[0] and "parts/02" in said[0] and "--config.part-of" in said[0]
    )
    assert any("show different things in one spot, 1 to " in line and f" to {max(kept) + 1}: for example" in line for line in notes.lines)
    preprocess_video.run(config(clip, root), notes := Notes())
    assert len(notes.lines) == 1 and "current" in notes.lines[0]


@pytest.mark.parametrize("place", ["parts", "parts/02", "parts/02/exports/npz/results.npz", "parts/02/frames_subsampled/000000.png"])
def test_what_others_made_in_the_folder_of_parts_stays(clip: Path, tmp_path: Path, place: str) -> None:
    root = tmp_path / "scene"
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text("mine")
    with pytest.raises(V2WError):
        preprocess_video.run(config(clip, root), Notes())
    assert (root / place).read_text() == "mine"
    assert not SceneLayout(root).results_npz.exists()


def test_the_place_that_a_frame_shows_is_built_where_the_user_names_one(clip: Path, tmp_path: Path) -> None:
    preprocess_video.run(config(clip, tmp_path / "scene", part_of=46), Notes())
    assert min(numbers(tmp_path / "scene")) > 28 and 0 in numbers(tmp_path / "scene" / "parts" / "02")
    with pytest.raises(ConfigError, match="frame 47, the input has 46"):
        preprocess_video.run(config(clip, tmp_path / "other", part_of=47), Notes())


def test_an_input_used_as_it_is_stays_whole(clip: Path, tmp_path: Path) -> None:
    preprocess_video.run(config(clip, tmp_path / "scene", as_is=True), Notes())
    assert len(numbers(tmp_path / "scene")) == 46 and not clip_parts(tmp_path / "scene") and not (tmp_path / "scene" / "parts").exists()


def test_too_few_frames_of_another_place_are_left_out_and_named(clip: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "short.mp4", TrueGeometry.world.images[:39])
    preprocess_video.run(config(tmp_path / "short.mp4", tmp_path / "scene"), Notes())
    parts = clip_parts(tmp_path / "scene")
    assert [part.root for part in parts] == [tmp_path / "scene", None] and 0 < len(parts[1].frames) < 8
    assert not (tmp_path / "scene" / "parts").exists() and len(numbers(tmp_path / "scene")) + len(parts[1].frames) == 39


def test_frames_without_a_place_among_the_others_are_mapped_by_themselves(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrueGeometry, "reach", 24)
    root = tmp_path / "scene"
    preprocess_video.run(config(clip, root, max_frames=44), notes := Notes())
    assert max(numbers(root)) < 24 and min(numbers(root / "parts" / "02")) >= 24
    assert len(numbers(root)) + len(numbers(root / "parts" / "02")) == 44
    preprocess_video.run(config(clip, tmp_path / "named", part_of=30, max_frames=44), Notes())
    assert numbers(tmp_path / "named") == numbers(root / "parts" / "02")
    monkeypatch.setattr(TrueGeometry, "refuses", True)
    preprocess_video.run(config(clip, tmp_path / "refused"), notes := Notes())
    assert any("are left out: the camera only turns" in line for line in notes.lines) and not clip_parts(tmp_path / "refused")
    assert max(numbers(tmp_path / "refused")) < 24
