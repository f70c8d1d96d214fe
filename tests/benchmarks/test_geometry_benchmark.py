"""The geometry benchmark's table of rows: printed as they come, kept, and not measured twice."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import geometry
from benchmarks.geometry import Table, clips, decoding
from tests.scene.test_media import moving_frames
from utils.errors import GeometryError
from utils.scene import media
from utils.types import Array, CameraSet, Scene


def test_rows_are_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip that fails and its decoding, stopped after the first and started again."""
    media.write_mp4(tmp_path / "moving.mp4", moving_frames(9), 10)
    asked = []

    def refuse(images: Array, count: int, longest: int) -> object:
        asked.append((len(images), count, longest))
        raise GeometryError("no parallax", "")

    monkeypatch.setattr(geometry, "estimate", refuse)
    for _ in range(2):
        clips(Table(tmp_path / "rows.jsonl", as_json=True), tmp_path, tmp_path, 6, [56, 84], [])
        decoding(Table(tmp_path / "rows.jsonl", as_json=True), tmp_path, [])
    assert asked == [(9, 6, 56), (9, 6, 84)]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 6 and printed[:3] == printed[3:]
    assert printed[0]["failed"] == "no parallax" and printed[2]["frames"] == 9
    clips(Table(tmp_path / "rows.jsonl", as_json=True), tmp_path, tmp_path, 5, [56], ["moving"])
    assert asked[2:] == [(9, 5, 56)], "another number of frames is another row"


def test_trajectory_error_is_blind_to_a_similarity_and_not_to_a_mirror() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 3)).cumsum(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert geometry.trajectory_error(3 * truth @ turn.T + 5, truth) < 1e-9
    assert geometry.trajectory_error(truth * [1, 1, -1], truth) > 0.03


def test_sky_does_not_count_as_unmeasured() -> None:
    truth = np.full((2, 10, 10), 3.0)
    truth[:, :4] = 0
    depth, confidence = np.full(truth.shape, 3.0, np.float32), np.full(truth.shape, 1.5, np.float32)
    depth[:, :3], confidence[:, :5] = 9.0, 1.0
    cameras = CameraSet(c2w=np.tile(np.eye(4), (2, 1, 1)), K=np.tile(np.eye(3), (2, 1, 1)), size=(10, 10), frame_ids=np.arange(2))
    scene = Scene(cameras=cameras, images=np.zeros((2, 10, 10, 3), np.uint8), depth=depth, confidence=confidence)
    depth[:, 9, 9] = 4.0
    assert geometry.sky_coverage(scene, truth) == (pytest.approx(50 / 60), pytest.approx(0.75 + 0.25))
    depth[:, 3] = 2.0
    assert geometry.sky_coverage(scene, truth)[1] == pytest.approx(0.75)
