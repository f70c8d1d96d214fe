"""Lists of scenes: folders, JSON, CSV; names and settings."""

import json

import pytest

from batch.scenes import SceneEntry, read_scenes
from utils.errors import ConfigError, InputError


def test_a_folder_holds_clips_frames_places_and_results(tmp_path):
    for name in ("a.mp4", "b.MOV", "c.npz", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").touch()
    (tmp_path / "room" / "exports" / "npz").mkdir(parents=True)
    (tmp_path / "room" / "exports" / "npz" / "results.npz").touch()
    (tmp_path / "empty").mkdir()
    assert [(e.name, e.sources) for e in read_scenes(str(tmp_path))] == [
        (name, (str(tmp_path / source),))
        for name, source in [("a", "a.mp4"), ("b", "b.MOV"), ("c", "c.npz"), ("frames", "frames"), ("room", "room")]
    ]


def test_a_json_list_gives_names_settings_and_several_clips(tmp_path):
    rows = [
        "a.mp4",
        {"source": ["x/a.mp4", "s3://bucket/b.mp4"], "settings": {"mode": "extensive", "stage0.max_frames": 48, "skip_eval": True}},
        {"source": "/far/a.mp4", "name": "my kitchen!", "settings": {"stage0.mask_overlays": False, "stage2.matching.gaps": [1, 2]}},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"scenes": rows}))
    assert read_scenes(str(tmp_path / "list.json")) == [
        SceneEntry("a", (str(tmp_path / "a.mp4"),)),
        SceneEntry(
            "a_2",
            (str(tmp_path / "x/a.mp4"), "s3://bucket/b.mp4"),
            ("--config.mode", "extensive", "--config.stage0.max-frames", "48", "--config.skip-eval"),
        ),
        SceneEntry("my_kitchen", ("/far/a.mp4",), ("--config.stage0.no-mask-overlays", "--config.stage2.matching.gaps", "1", "2")),
    ]


def test_a_csv_has_settings_as_columns(tmp_path):
    (tmp_path / "list.csv").write_text("source,name,mode,stage0.max_frames,skip_eval\na.mp4;b.mp4,two,extensive,,TRUE\nc.mp4,,,12,\n")
    assert read_scenes(str(tmp_path / "list.csv")) == [
        SceneEntry("two", (str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")), ("--config.mode", "extensive", "--config.skip-eval")),
        SceneEntry("c", (str(tmp_path / "c.mp4"),), ("--config.stage0.max-frames", "12")),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.json", "{", "cannot be read"),
        ("l.json", '{"scene": []}', "holds no list"),
        ("l.json", "[]", "holds no scenes"),
        ("l.json", '[{"name": "a"}]', "scene 1 names no source"),
        ("l.json", '[{"source": "a.mp4", "flags": "--mode fast"}]', "flags is not known"),
        ("l.json", '[{"source": "a.mp4", "settings": {"mode": {"a": 1}}}]', "the value of mode"),
        ("l.csv", "clip\na.mp4\n", "no column `source`"),
        ("l.txt", "a.mp4", "is no list of scenes"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigError, InputError), match=words) as caught:
        read_scenes(str(tmp_path / name))
    assert caught.value.hint
    with pytest.raises(InputError, match="is not there"):
        read_scenes(str(tmp_path / "none"))
