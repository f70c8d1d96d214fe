"""The clip benchmark's tables and picture; one tiny clip through it."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import clips
from benchmarks.clip_pictures import sampled
from benchmarks.clip_tables import clip_tables
from utils.synthetic.world import WorldConfig, make_world

pytestmark = pytest.mark.slow


def line(clip: str, variant: str, heldout: float) -> dict:
    return {"clip": clip, "variant": variant, "heldout": heldout, "left_out": 2, "seconds": {"splats": 3.0}, "frames": []}


def test_table_and_gains_over_naive() -> None:
    lines = [line("a", "naive", 20.0), line("a", "ours", 22.0), line("b", "naive", 30.0), line("b", "ours", 29.0)]
    text = clip_tables([*lines, {"clip": "c", "variant": "ours", "error": "no two frames"}])
    assert "| a | ours |  | 22.00 |" in text
    assert "ours over naive, held out: median +0.50 dB, least -1.00 (b)" in text
    assert "* c, ours: no two frames" in text


def test_sampled_frames_cover_the_clip_and_show_held_out_ones() -> None:
    frames = sampled(30, {4, 12, 20, 28}, 5)
    assert frames[0] == 0
    assert frames[-1] == 29
    assert len({4, 12, 20, 28} & set(frames)) == 2


def test_cores_are_shared_out() -> None:
    assert clips.core_shares([0, 1, 2, 3, 4], 2) == [[0, 2, 4], [1, 3]]
    assert clips.core_shares([0, 1], 3) == [[0], [1], [0]]


def test_one_tiny_clip_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    world = make_world(WorldConfig(layout="room", frames=6, size=(84, 112), severity="medium"))
    film = cv2.VideoWriter(str(tmp_path / "tiny.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (112, 84))
    for image in world.images:
        film.write(np.ascontiguousarray(image[..., ::-1]))
    film.release()
    scene = world.predicted_scene()

    def without_mapping(given: tuple[Path, ...], root: Path, *_: object) -> None:
        assert given == (tmp_path / "tiny.mp4",)
        from benchmarks.splatting import write_scene

        write_scene(root, scene)

    monkeypatch.setattr(clips, "geometry", without_mapping)
    out = tmp_path / "out"
    flags = "--frames 6 --resolution 112 --steps 3 --splats 300 --holdout-every 3 --variants naive ours --rows 3 --device cpu"
    monkeypatch.setattr(sys, "argv", ["clips", str(tmp_path / "tiny.mp4"), "--out", str(out), *flags.split()])
    clips.main()
    lines = [json.loads(text) for text in (out / "tiny.jsonl").read_text().splitlines()]
    assert [entry["variant"] for entry in lines] == ["naive", "ours"]
    for entry in lines:
        assert "error" not in entry, entry
        assert entry["placed"] == 6
        assert entry["aligned"] + entry["left_out"] == 4
        assert [f["frame_id"] for f in entry["frames"] if f["heldout"]] == [1, 4]
        assert 0 <= entry["multi_layer"] <= 1
        assert entry["heldout_rigid"] > 5
    assert lines[0]["heldout"] == lines[0]["heldout_rigid"]  # nothing is deformed
    assert lines[1]["heldout"] != lines[1]["heldout_rigid"]
    sheet = cv2.imread(str(out / "tiny.png"))
    assert sheet.shape[1] > 4 * 300  # input, naive, ours, ours deformed
    capsys.readouterr()
    clips.main()
    assert len((out / "tiny.jsonl").read_text().splitlines()) == 2
    assert "| tiny | ours |" in capsys.readouterr().out
