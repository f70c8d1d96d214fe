"""The viewer's server: what it reads of a scene, its addresses, a training that goes on, and who is let in."""

import json
import socket
import struct
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the viewer extra is not installed")
pytest.importorskip("uvicorn", reason="the viewer extra is not installed")

from configs.evaluation import ViewerConfig
from tests.trained_world import FRAMES, SIZE, write_trained_world
from tests.viewer_site import served
from utils.errors import ConfigError, MissingArtifactError
from utils.exports.ply import write_splat_ply
from utils.exports.view import LARGEST_PLY, view_settings, write_view
from utils.scene.artifacts import load_scene
from utils.scene.layout import RunLayout
from utils.serving.access import Access
from utils.splatting.checkpoint import MODEL, PREVIEW, load_checkpoint, save_checkpoint, unfinished
from utils.splatting.render import locate_checkpoint
from utils.viewer import app as viewer_app
from utils.viewer.prepare import prepare
from utils.viewer.source import locate_source
from utils.viewer.world import World, newest_training

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunLayout:
    return write_trained_world(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def world(run: RunLayout) -> World:
    world = World(run.root.parent, run.gs("3dgs"))
    prepare(world)
    return world


def get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()}), timeout=20
        ) as a:
            return a.status, a.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_settings_hold_the_cameras_as_trained(run: RunLayout) -> None:
    trained = load_checkpoint(run.gs("3dgs") / MODEL)
    settings = view_settings(trained, trained.cameras.select(np.arange(3)))
    assert [c["frame"] for c in settings["cameras"]] == list(range(FRAMES)) and settings["cameras"][2]["heldout"]
    for i, camera in enumerate(settings["cameras"]):
        np.testing.assert_allclose(np.reshape(camera["c2w"], (4, 4)), trained.cameras.c2w[i], atol=1e-6)
        K = trained.cameras.K[i]
        assert [camera[k] for k in ("fx", "fy", "cx", "cy")] == [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
        assert (camera["height"], camera["width"]) == SIZE
    assert len(settings["path"]["poses"]) == 3
    assert settings["path"]["poses"][1]["fov"] == pytest.approx(2 * np.arctan(0.5 * SIZE[0] / trained.cameras.K[1, 1, 1]))
    assert np.dot(settings["up"], -trained.cameras.c2w[0, :3, 1]) > 0.9


def test_a_small_ply_is_shown_as_it_is_and_a_large_one_as_spz(run: RunLayout, tmp_path: Path, monkeypatch) -> None:
    trained = load_checkpoint(run.gs("3dgs") / MODEL)
    folder = tmp_path / "gs_3dgs"
    folder.mkdir()
    write_view(folder / "view", trained)
    assert json.loads((folder / "view" / "view.json").read_text())["file"] == "splats.spz"
    write_splat_ply(folder / "splats_3dgs.ply", trained.splats, "3dgs")
    assert (folder / "splats_3dgs.ply").stat().st_size < LARGEST_PLY
    write_view(folder / "view", trained)
    shown = World(tmp_path, folder).look()
    assert shown is not None and shown.file.resolve() == folder / "splats_3dgs.ply"
    assert World(tmp_path, folder).ply() == folder / "splats_3dgs.ply"


def test_clouds_lie_where_the_frames_saw_them(world: World) -> None:
    scene = load_scene(world.root)
    assert world.clouds() == ["before", "after"]
    before, after = (np.frombuffer(world.cloud(which), RECORD) for which in ("before", "after"))
    assert len(before) == len(after) == FRAMES * SIZE[0] * SIZE[1]
    np.testing.assert_allclose(before["position"], after["position"], atol=1e-3)  # this world needs no alignment
    np.testing.assert_allclose(before["scale"], after["scale"], rtol=1e-3)
    assert np.array_equal(before["rgba"][:, :3], scene.images.reshape(-1, 3)) and (before["rgba"][:, 3] == 255).all()
    i, pixel = 2, 37 * SIZE[1] + 11
    point = before["position"][i * SIZE[0] * SIZE[1] + pixel]
    seen = scene.cameras.K[i] @ (scene.cameras.w2c[i, :3, :3] @ point + scene.cameras.w2c[i, :3, 3])
    np.testing.assert_allclose(seen[:2] / seen[2], (11.5, 37.5), atol=0.02)
    assert seen[2] == pytest.approx(scene.depth[i, 37, 11], rel=1e-4)


def test_the_server_shows_page_modules_splats_and_clouds_and_nothing_else(world: World) -> None:
    with served(world, training_cameras_scale=0.1) as url:
        status, page = get(f"{url}/")
        assert status == 200 and b"@ROOT@" not in page and world.root.name.encode() in page
        for path in ("viewer/viewer.js", "viewer/page/main.js", "viewer/page/viewer.css"):
            assert f"./{path}".encode() in page and get(f"{url}/{path}")[0] == 200
        description = json.loads(get(f"{url}/view.json")[1])
        assert description["clouds"] == ["before", "after"] and description["camera_size"] == 0.1 and not description["unfinished"]
        status, splats = get(f"{url}/{description['file']}")
        assert status == 200 and splats.startswith((b"ply", b"\x1f\x8b")) and len(splats) == description["bytes"]
        assert len(get(f"{url}/clouds/before")[1]) % 32 == 0
        for path in (
            "clouds/x",
            "frames/99",
            "frames/-1",
            "viewer/README.md",
            "viewer/__init__.py",
            "viewer/page/../../app.py",
            "viewer/..%2fapp.py",
        ):
            assert get(f"{url}/{path}")[0] == 404, path


def test_other_sites_and_strangers_are_kept_out(world: World) -> None:
    with served(world) as url:
        assert get(f"{url}/view.json", Host="evil.example")[0] == 403
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "A" * 22 + "=="}
        assert get(f"{url}/", Origin="https://evil.example", **upgrade)[0] != 101
    with served(world, Access(secret="0123456789abcdef")) as url:
        assert get(f"{url}/view.json")[0] == get(f"{url}/")[0] == 401
        assert get(f"{url}/view.json", Authorization="Bearer 0123456789abcdef")[0] == 200


def test_training_without_a_result_is_opened_and_then_followed(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    folder, config = run.gs("3dgs"), ViewerConfig(root_path=tmp_path)
    trained = load_checkpoint(folder / MODEL)
    unfinished(folder).mkdir()
    (folder / MODEL).rename(unfinished(folder) / PREVIEW)
    write_view(unfinished(folder) / "view", trained, unfinished=True)
    with pytest.raises(MissingArtifactError):
        locate_checkpoint(tmp_path, "", None)  # an unfinished training is nothing to export or evaluate
    world = World(tmp_path, locate_source(config).folder)
    prepare(world)
    shown = world.look()
    assert newest_training(tmp_path) == folder and shown is not None
    assert shown.settings["unfinished"] and shown.file.suffix == ".splat" and shown.file.stat().st_size == 32 * len(trained.splats)
    with served(world) as url:
        first = json.loads(get(f"{url}/view.json")[1])
        assert json.loads(get(f"{url}/view.json")[1])["version"] == first["version"]
        save_checkpoint(folder / MODEL, replace(trained, splats=trained.splats.select(np.arange(100))))
        second = json.loads(get(f"{url}/view.json")[1])
        assert second["version"] != first["version"] and second["splats"] == 100 and not second["unfinished"]
        assert get(f"{url}/{second['file']}")[0] == 200
    with pytest.raises(MissingArtifactError):
        locate_source(ViewerConfig(root_path=tmp_path, checkpoint_dir=Path("gs_2dgs")))


def test_a_description_that_is_damaged_shows_nothing_instead_of_ending_the_server(tmp_path: Path) -> None:
    world = World(tmp_path, tmp_path / "gs_3dgs")
    (world.folder / "view").mkdir(parents=True)
    for text in ("", "[]", "null", '{"file": 3}', '{"file": "none.ply"}', "[" * 10_000):
        (world.folder / "view" / "view.json").write_text(text)
        assert world.look() is None


def test_the_command_takes_the_next_free_port_and_says_where_it_is(world: World, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(viewer_app.listen, "run", lambda app, sock: said.append(str(sock.getsockname()[1])))
    reporter = type("R", (), {"note": lambda self, words: said.append(words), "step": lambda self, report: None})()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert viewer_app.run(ViewerConfig(root_path=world.root, port=port), reporter) == "viewer closed"
    assert f"viewer: port {port} is taken" in said[0] and said[1].startswith("viewer: open http://localhost:") and int(said[2]) > port
    said.clear()
    viewer_app.run(ViewerConfig(root_path=world.root, host="0.0.0.0", port=port), reporter)
    assert "?token=" in said[-2] and "listening on 0.0.0.0" in said[0]
    with pytest.raises(ConfigError):
        viewer_app.run(ViewerConfig(root_path=world.root, host="203.0.113.1"))


def test_normals_of_a_tilted_plane() -> None:
    from utils.report.pictures import normals_of_depth

    K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    x = (np.arange(64) + 0.5 - 32) / 50
    depth = np.tile(2 / (1 - 0.5 * x), (48, 1))  # z = 2 + 0.5 X
    expected = np.array([0.5, 0, -1]) / np.linalg.norm([0.5, 0, -1])
    normal = normals_of_depth(depth, K)
    np.testing.assert_allclose(normal[1:-1, 1:-1].reshape(-1, 3), np.tile(expected, (46 * 62, 1)), atol=1e-6)
    depth[10, 10] = 0
    assert not normals_of_depth(depth, K)[10, 11].any()


def test_the_files_of_a_splat_have_the_record_of_the_exports() -> None:
    from utils.exports.splat import RECORD as exported
    from utils.viewer.world import balls

    assert exported == RECORD
    one = balls(np.array([[1.0, 2, 3]]), np.array([[9, 8, 7]], np.uint8), np.array([0.5]))
    assert struct.unpack("<6f4B4B", one) == (1, 2, 3, 0.5, 0.5, 0.5, 9, 8, 7, 255, 255, 128, 128, 128)
