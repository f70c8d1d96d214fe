"""The viewer: poses to and from the page, pictures, recorded paths, and a server that answers."""

import socket
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs.evaluation import ViewerConfig
from eval_gs.metrics import psnr
from tests.trained_world import SIZE, write_trained_world
from utils.errors import ConfigError, MissingArtifactError
from utils.scene.trajectories import load_trajectory
from utils.splatting.checkpoint import MODEL, PREVIEW, save_checkpoint, unfinished
from utils.splatting.render import locate_checkpoint, rgb_image
from utils.viewer.app import Exhibit, ViewerApp, _Visitor, free_port, load_exhibit
from utils.viewer.picture import normals_of_depth, picture
from utils.viewer.pose import ViewPose, from_page, path_through, render_size, to_page, vertical_fov
from utils.viewer.source import locate_source


@pytest.fixture(scope="module")
def exhibit(tmp_path_factory) -> Exhibit:
    root = tmp_path_factory.mktemp("viewer")
    write_trained_world(root, "2dgs")
    return load_exhibit(ViewerConfig(root_path=root, device="cpu"))


@pytest.fixture(scope="module")
def app(exhibit: Exhibit):
    pytest.importorskip("viser")
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    running = ViewerApp(exhibit, ViewerConfig(root_path=Path(), port=taken.getsockname()[1], max_side=160))
    yield running, taken.getsockname()[1]
    running.stop()
    taken.close()


class Client(SimpleNamespace):
    """A visitor's browser, as far as the app sees it."""

    def __init__(self, exhibit: Exhibit, position: int) -> None:
        cameras = exhibit.view.trained.cameras
        wxyz, place = to_page(cameras.c2w[position], exhibit.unit)
        fov = vertical_fov(cameras.K[position], cameras.size)
        self.camera = SimpleNamespace(wxyz=wxyz, position=place, fov=fov, aspect=SIZE[1] / SIZE[0])
        self.shown: list[dict] = []
        self.scene = SimpleNamespace(set_background_image=lambda image, **more: self.shown.append({"image": image, **more}))
        self.files: list[tuple[str, bytes]] = []
        self.send_file_download = lambda name, content, **_: self.files.append((name, content))


def test_pose_survives_the_way_to_the_page_and_back(exhibit: Exhibit) -> None:
    c2w = exhibit.view.trained.cameras.c2w[3]
    wxyz, position = to_page(c2w, 2.5)
    np.testing.assert_allclose(position, c2w[:3, 3] / 2.5)
    np.testing.assert_allclose(from_page(wxyz, position, 1.0, 2.5).c2w, c2w, atol=1e-12)


def test_intrinsics_have_the_field_of_view() -> None:
    K = ViewPose(np.eye(4), np.radians(90)).intrinsics((100, 200))
    np.testing.assert_allclose(K, [[50, 0, 100], [0, 50, 50], [0, 0, 1]])
    assert vertical_fov(K, (100, 200)) == pytest.approx(np.radians(90))
    assert render_size(2.0, 300) == (150, 300) and render_size(0.5, 300) == (300, 150)


def test_picture_equals_a_direct_render(exhibit: Exhibit) -> None:
    cameras, view = exhibit.view.trained.cameras, exhibit.view
    pose = ViewPose(cameras.c2w[1], vertical_fov(cameras.K[1], SIZE))
    image, depth = picture(view, pose, SIZE, "rgb", False)
    assert psnr(image, rgb_image(view.render(cameras.c2w[1], pose.intrinsics(SIZE), SIZE))) > 60
    middle = depth[SIZE[0] // 2, SIZE[1] // 2]
    assert middle == pytest.approx(exhibit.scene.depth[1, SIZE[0] // 2, SIZE[1] // 2], rel=0.03)
    for mode in ("depth", "normal", "alpha"):
        other, _ = picture(view, pose, SIZE, mode, False)  # type: ignore[arg-type]
        assert other.shape == (*SIZE, 3) and other.dtype == np.uint8 and other.any()


def test_normals_of_a_tilted_plane() -> None:
    K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    x = (np.arange(64) + 0.5 - 32) / 50
    depth = np.tile(2 / (1 - 0.5 * x), (48, 1))  # z = 2 + 0.5 X
    expected = np.array([0.5, 0, -1]) / np.linalg.norm([0.5, 0, -1])
    normal = normals_of_depth(depth, K)
    np.testing.assert_allclose(normal[1:-1, 1:-1].reshape(-1, 3), np.tile(expected, (46 * 62, 1)), atol=1e-6)
    depth[10, 10] = 0
    assert not normals_of_depth(depth, K)[10, 11].any()


def test_far_plane_hides_what_is_behind_it(exhibit: Exhibit) -> None:
    from dataclasses import replace

    cameras = exhibit.view.trained.cameras
    near_only = replace(exhibit.view, far=0.5)
    assert float(near_only.render(cameras.c2w[0], cameras.K[0], SIZE).alpha.max()) == 0.0


def test_path_visits_the_recorded_views_in_order(exhibit: Exhibit) -> None:
    cameras = exhibit.view.trained.cameras
    views = [ViewPose(cameras.c2w[i], 0.5 + 0.1 * i) for i in (0, 2, 4)]
    path = path_through(views, SIZE, 10)
    assert len(path) == 21
    for at, view in zip((0, 10, 20), views, strict=True):
        np.testing.assert_allclose(path.c2w[at], view.c2w, atol=1e-9)
        assert vertical_fov(path.K[at], SIZE) == pytest.approx(view.fov)
    assert len(path_through(views[:1], SIZE, 10)) == 1


def test_server_answers_on_the_next_free_port_of_localhost(app) -> None:
    running, taken = app
    assert running.port > taken and running.server.get_host() == "127.0.0.1"
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}", timeout=10) as answer:
        assert answer.status == 200 and b"<html" in answer.read().lower()
    with pytest.raises(ConfigError, match="cannot be used"):
        free_port("203.0.113.1", 8080)


def test_visitor_gets_pictures_records_and_saves_a_path(app, exhibit: Exhibit) -> None:
    running, _ = app
    client = Client(exhibit, 2)
    running._send_picture(_Visitor(client), 80)
    shown = client.shown[-1]
    assert shown["image"].shape == (*SIZE, 3) and shown["depth"].shape == SIZE
    assert np.median(shown["depth"]) == pytest.approx(np.median(exhibit.scene.depth[2]) / exhibit.unit, rel=0.05)
    assert running.save_path() is None
    for position in (0, 3):
        running._record(SimpleNamespace(client=Client(exhibit, position)))
    saved = running.save_path()
    path = load_trajectory(saved)
    np.testing.assert_allclose(path.c2w[0], exhibit.view.trained.cameras.c2w[0], atol=1e-6)
    np.testing.assert_allclose(path.c2w[-1], exhibit.view.trained.cameras.c2w[3], atol=1e-6)
    assert running.save_path() != saved
    running._send_screenshot(SimpleNamespace(client=client))
    assert client.files[0][1].startswith(b"\x89PNG")


def test_clouds_before_and_after_lie_on_each_other_here(app) -> None:
    running, _ = app
    before, _ = running._input_cloud(1)
    after, _ = running._canonical_cloud(1)
    np.testing.assert_allclose(before, after, atol=1e-3)
    assert len(running._input_cloud(None)[0]) == 5 * len(before)
    running.show_canonical.value = running.show_input.value = True
    running._add_clouds()
    running.show_canonical.value = running.show_input.value = False
    running._add_clouds()


def test_training_without_a_result_is_opened_and_then_followed(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    folder, config = run.gs("3dgs"), ViewerConfig(root_path=tmp_path, device="cpu")
    unfinished(folder).mkdir()
    (folder / MODEL).rename(unfinished(folder) / PREVIEW)
    with pytest.raises(MissingArtifactError):
        locate_checkpoint(tmp_path, "", None)  # an unfinished training is nothing to export or evaluate
    exhibit = load_exhibit(config)
    assert exhibit.shown[0].name == PREVIEW and exhibit.refreshed() is None
    save_checkpoint(folder / MODEL, exhibit.view.trained)
    fresh = exhibit.refreshed()
    assert fresh is not None and fresh.shown[0] == folder / MODEL and fresh.unit == exhibit.unit
    with pytest.raises(MissingArtifactError):
        locate_source(ViewerConfig(root_path=tmp_path, checkpoint_dir=Path("gs_2dgs")))
