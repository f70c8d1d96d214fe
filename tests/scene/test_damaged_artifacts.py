"""Artifacts of this program whose content is of another kind than it was written: an error that says which, never a fault."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.preprocess import default_root
from tests.train_gs.test_train_gs import make_world
from utils.errors import ConfigError, CorruptArtifactError, V2WError
from utils.scene import artifacts
from utils.scene.foreign import read_arrays
from utils.scene.json_files import json_object, read_json
from utils.scene.lock import writing_scene
from utils.scene.manifest import write_manifest


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    folder = tmp_path / "scene" / "run" / "after_global_optimization"
    folder.mkdir(parents=True)
    artifacts.save_alignment(folder, make_world()[1], {})
    write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={}, backends={}, seed=0, seconds=0.0)
    return folder


def spoil(path: Path, change: object) -> None:
    """Changes a file and what the manifest says of it, as another program would write it."""
    manifest = path.parent / "manifest.json"
    manifest.unlink()
    torch.save(change, path) if path.suffix == ".pt" else np.savez(path, **change)  # type: ignore[arg-type]
    write_manifest(path.parent, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={}, backends={}, seed=0, seconds=0.0)


@pytest.mark.parametrize(
    "nodes", [torch.zeros(1, 4, 4, 4, 3), torch.zeros(0), "text", None, torch.full((2, 4, 5, 3), float("nan"))], ids=str
)
def test_a_field_of_another_kind(alignment: Path, nodes: object) -> None:
    spoil(alignment / "per_frame_local_deform_00001.pt", {"nodes": nodes})
    with pytest.raises(CorruptArtifactError) as caught:
        artifacts.load_alignment(alignment)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["K", "size", "frame_ids", "inv_depth_range", "original_w2c"])
@pytest.mark.parametrize("kind", ["text", "empty", "nan"])
def test_arrays_of_another_kind(alignment: Path, name: str, kind: str) -> None:
    with np.load(alignment / "alignment.npz") as stored:
        arrays = dict(stored)
    other = {"text": np.array(["a", "b"]), "empty": arrays[name][:0], "nan": np.full(arrays[name].shape, np.nan)}
    spoil(alignment / "alignment.npz", arrays | {name: other[kind]})
    with pytest.raises(V2WError) as caught:
        artifacts.load_alignment(alignment)
    assert caught.value.hint


def test_a_cloud_of_another_kind(alignment: Path) -> None:
    spoil(alignment / "canonical_points.npz", dict.fromkeys(("points", "colors", "frame", "pixel"), np.array(3.0)))
    with pytest.raises(CorruptArtifactError):
        artifacts.load_cloud(alignment)


def test_a_lattice_without_depth(alignment: Path) -> None:
    with np.load(alignment / "alignment.npz") as stored:
        arrays = dict(stored)
    spoil(alignment / "alignment.npz", arrays | {"inv_depth_range": np.zeros_like(arrays["inv_depth_range"])})
    with pytest.raises(CorruptArtifactError, match="inverse depths"):
        artifacts.load_alignment(alignment)


@pytest.mark.parametrize("frame", [np.inf, 99, -1])
def test_points_of_frames_that_are_not_there(alignment: Path, frame: float) -> None:
    with np.load(alignment / "canonical_points.npz") as stored:
        arrays = dict(stored)
    changed = arrays["frame"].astype(float) if np.isinf(frame) else arrays["frame"].copy()
    changed[:2] = frame
    spoil(alignment / "canonical_points.npz", arrays | {"frame": changed})
    with pytest.raises(CorruptArtifactError, match="frames"):
        artifacts.load_alignment(alignment)


def test_json_that_is_no_object(tmp_path: Path) -> None:
    for text in ("[]", "3", '"x"', "null"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(CorruptArtifactError):
            read_json(tmp_path / "a.json")
        assert json_object(tmp_path / "a.json") == {}


def test_inputs_without_a_name_have_a_root_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shots" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shots")
    assert default_root((), Path()) == tmp_path / "shots_preprocessed"
    assert default_root((Path("deep/.."),), None) == tmp_path / "shots_preprocessed"
    with pytest.raises(ConfigError):
        default_root((), Path("/"))


def test_a_root_with_a_name_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(V2WError) as caught, writing_scene(tmp_path / ("a" * 300)):
        pass
    assert "shorter" in caught.value.hint


def test_an_npz_that_declares_more_than_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "poses.npz"
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("extrinsics.npy", b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        read_arrays(path)
