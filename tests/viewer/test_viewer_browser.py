"""The viewer in a real browser: the picture against our own renderer, keys, timeline, comparison, crop, a training that goes on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the viewer extra is not installed")
pytest.importorskip("uvicorn", reason="the viewer extra is not installed")

from eval_gs.metrics import psnr
from tests.browser import Browser, browser_or_skip, until
from tests.trained_world import FRAMES, write_trained_world
from tests.viewer_site import served
from utils.exports.ply import read_splat_ply, write_splat_ply
from utils.exports.view import write_view
from utils.scene.media import decode
from utils.splatting.checkpoint import MODEL, load_checkpoint, unfinished
from utils.splatting.render import SplatView, resolve_rasterizer, rgb_image
from utils.viewer.prepare import prepare
from utils.viewer.world import World

WIDTH, HEIGHT = 800, 500
# The part of the page that no panel covers.
FREE = (slice(80, 400), slice(40, 460))
READY = "document.documentElement.dataset.ready === '1'"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[Browser, World, str]]:
    browser_or_skip()
    root = tmp_path_factory.mktemp("viewer_page")
    run = write_trained_world(root)
    folder = run.gs("3dgs")
    write_splat_ply(folder / "splats_3dgs.ply", load_checkpoint(folder / MODEL).splats, "3dgs")
    (root / "frames_subsampled").mkdir()
    for i in range(FRAMES):
        cv2.imwrite(str(root / "frames_subsampled" / f"{i:06d}.png"), np.full((48, 80, 3), (0, 0, 255), np.uint8))
    world = World(root, folder)
    prepare(world)
    with served(world) as url, Browser((WIDTH, HEIGHT)) as browser:
        browser.open(f"{url}/")
        until(lambda: browser.run(READY), 60)
        yield browser, world, url


def still(browser: Browser) -> np.ndarray:
    """The window when the last move has been drawn."""
    browser.run("new Promise((done) => setTimeout(done, 700))")
    return browser.picture()


def direct(browser: Browser, world: World) -> np.ndarray:
    """What the canvas should show, rendered here."""
    trained = load_checkpoint(world.folder / MODEL)
    pose = browser.run("({ c2w: app.viewer.pose.c2w, fov: app.viewer.pose.fov })")
    focal = HEIGHT / (2 * np.tan(pose["fov"] / 2))
    K = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    return rgb_image(SplatView(trained, rasterizer, device, near=1e-3).render(np.reshape(pose["c2w"], (4, 4)), K, (HEIGHT, WIDTH)))


def test_canvas_shows_the_world_from_the_first_camera_at_full_resolution(page) -> None:
    browser, world, _ = page
    browser.run("app.viewer.home(false)")
    assert psnr(still(browser)[FREE], direct(browser, world)[FREE]) > 38
    np.testing.assert_allclose(browser.run("app.viewer.pose.c2w"), browser.run("app.description.cameras[0].c2w"))
    assert browser.run("document.getElementById('canvas').width") == WIDTH
    assert browser.run("performance.getEntriesByType('resource').every((r) => r.name.startsWith(location.origin))")


def test_dragging_orbits_and_keys_lead_back(page) -> None:
    browser, world, _ = page
    home = browser.run("app.viewer.pose.c2w")
    distance = "Math.hypot(...[3, 7, 11].map((k, i) => app.viewer.pose.c2w[k] - app.viewer.pivot[i]))"
    before = browser.run(distance)
    browser.drag((300, 250), (420, 280))
    assert np.abs(np.subtract(browser.run("app.viewer.pose.c2w"), home)).max() > 0.1
    assert browser.run(distance) == pytest.approx(before, rel=1e-6)
    assert psnr(still(browser)[FREE], direct(browser, world)[FREE]) > 38
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="r", code="KeyR", windowsVirtualKeyCode=82)
    until(lambda: np.abs(np.subtract(browser.run("app.viewer.pose.c2w"), home)).max() < 1e-5, 5)


def test_who_flies_away_is_shown_the_way_home(page) -> None:
    browser, *_ = page
    browser.run("app.viewer.controls.look(500, 0); app.viewer.controls.fly([0, 0, 60])")
    until(lambda: not browser.run("document.getElementById('lost').hidden"), 5)
    browser.click("document.getElementById('lost-home')")
    until(lambda: browser.run("document.getElementById('lost').hidden"), 5)


def test_timeline_goes_from_frame_to_frame_by_keyboard(page) -> None:
    browser, *_ = page
    browser.run("document.getElementById('time').focus()")
    browser.press("ArrowRight", 39)
    browser.press("ArrowRight", 39)
    np.testing.assert_allclose(browser.run("app.viewer.pose.c2w"), browser.run("app.description.cameras[2].c2w"), atol=1e-6)
    assert browser.run("document.getElementById('time').getAttribute('aria-valuetext')") == f"frame 3 of {FRAMES}"
    browser.click("document.getElementById('play')")
    until(lambda: browser.run("app.viewer.playing"), 5)
    until(lambda: not browser.run("app.viewer.playing") and browser.run("app.viewer.time === app.viewer.duration"), 20)
    browser.run("document.getElementById('path').value = 'fly'; document.getElementById('path').dispatchEvent(new Event('change'))")
    assert "/ 0.1 s" in browser.run("document.getElementById('time-words').textContent")
    browser.run("app.timeline.choose('clip')")


def test_the_clips_frame_lies_over_the_world_up_to_the_line(page) -> None:
    browser, *_ = page
    browser.run("app.timeline.go(0)")
    browser.click("document.getElementById('do-compare')")
    picture = still(browser)
    red = (picture[..., 0] > 240) & (picture[..., 1:].max(-1) < 15)
    assert red[200:300, 60:360].mean() > 0.99 and red[200:300, 440:700].mean() == 0
    browser.drag((300, 150), (340, 160))  # leaves the frame's camera
    until(lambda: browser.run("document.getElementById('still').hidden"), 5)
    browser.run("app.timeline.go(0)")
    assert not browser.run("document.getElementById('still').hidden")
    browser.click("document.getElementById('do-compare')")
    assert browser.run("document.getElementById('still').hidden")


def test_points_before_and_after_alignment_take_the_worlds_place(page) -> None:
    browser, world, _ = page
    browser.run("app.viewer.home(false)")
    splats = still(browser)
    browser.run("app.show('before')")
    until(lambda: browser.run("app.viewer.count") == FRAMES * 48 * 80, 20)
    assert 15 < psnr(still(browser)[FREE], splats[FREE]) < 36  # the same place, of balls
    browser.run("app.show('world')")
    until(lambda: browser.run("app.viewer.count") == len(load_checkpoint(world.folder / MODEL).splats), 20)
    assert psnr(still(browser)[FREE], splats[FREE]) > 45


def test_what_is_cropped_is_gone_from_picture_and_file(page, tmp_path) -> None:
    browser, world, _ = page
    browser.click("document.getElementById('do-edit')")
    browser.click("document.getElementById('tool-box')")
    browser.run("(() => { const e = document.getElementById('box-right'); e.value = 100; e.dispatchEvent(new Event('input')); })()")
    browser.click("document.getElementById('edit-delete')")
    gone = browser.run("[...app.editor.deleted]")
    assert 0.2 < np.mean(gone) < 0.8
    browser.click("document.getElementById('edit-save')")
    file = until(lambda: next(browser.downloads.glob("*_edited.ply"), None), 20)
    kept, whole = read_splat_ply(until(lambda: file.stat().st_size and file, 5)), load_checkpoint(world.folder / MODEL).splats
    np.testing.assert_array_equal(kept.means.numpy(), whole.means.numpy()[~np.array(gone, bool)])
    browser.click("document.getElementById('edit-undo')")
    assert browser.run("app.viewer.hidden === null")
    browser.click("document.getElementById('tool-brush')")
    browser.drag((300, 250), (320, 250))
    until(lambda: browser.run("app.editor.selected.some(Boolean)"), 5)
    assert 0 < browser.run("app.editor.selected.reduce((a, b) => a + b)") < len(whole) / 2
    browser.run("app.open('')")
    assert browser.run("app.viewer.controls.enabled")


def test_several_clips_have_a_path_each(page) -> None:
    browser, world, url = page
    record = world.root / "preprocess_frames.json"
    record.write_text(json.dumps({"positions": [0, 4, 8, 12, 16], "clip_frames": [10, 10]}))
    try:
        browser.open(f"{url}/")
        until(lambda: browser.run(READY), 60)
        assert browser.run("[...document.getElementById('path').options].map((o) => o.text).join()").startswith("All clips,Clip 1,Clip 2")
        browser.run("app.timeline.choose('clip2')")
        assert browser.run("document.getElementById('time-words').textContent") == "frame 1 / 2"
        assert browser.run("app.viewer.pose.c2w.every((v, i) => Math.abs(v - app.description.cameras[3].c2w[i]) < 1e-4)")
        browser.run("app.timeline.step(1)")
        assert browser.run("[app.timeline.frame, document.getElementById('time-words').textContent].join()") == "4,frame 2 / 2"
        record.write_text('{"positions": [0, "x"], "clip_frames": 3}')
        assert world.clips([0, 1]) == [0, 0]
    finally:
        record.unlink()
        browser.open(f"{url}/")
        until(lambda: browser.run(READY), 60)


def test_a_film_of_a_path_is_made_in_the_browser_at_the_size_that_was_asked_for(page) -> None:
    browser, *_ = page
    if not browser.run("!document.getElementById('film').hidden"):
        pytest.skip("this browser encodes no films")
    browser.run(
        "document.getElementById('shot-size').add(new Option('small', '321x200', true, true)); void (app.description.seconds = 0.5)"
    )
    browser.run("app.timeline.choose('clip'), app.film()")
    assert browser.run("document.getElementById('toast').textContent") == "The film is saved"
    file = until(lambda: next(browser.downloads.glob("*.mp4"), None), 30)
    frames = until(lambda: list(decode(file)), 20)
    assert len(frames) == 15 and frames[0].shape == (200, 320, 3)
    with av.open(str(file)) as film:
        assert float(film.duration) / av.time_base == pytest.approx(0.5)
    for share, frame in ((0.0, frames[0]), (1.0, frames[-1])):
        seek = f"app.viewer.renderPixels(app.timeline.poses('clip', 320 / 200).poses.at({-1 if share else 0}), 320, 200)"
        shown = np.reshape(browser.run(f"[...{seek}]"), (200, 320, 4))[..., :3].astype(np.uint8)
        assert psnr(frame, shown) > 24
    browser.run("void app.film()")
    browser.run("app.film()")  # again: stop
    until(lambda: browser.run("document.getElementById('toast').textContent") == "No film was saved", 20)


def test_screenshot_has_the_size_that_was_asked_for(page) -> None:
    browser, *_ = page
    browser.run("document.getElementById('shot-size').value = '1920x1080'; app.picture()")
    file = until(lambda: next(browser.downloads.glob("*.png"), None), 30)
    assert until(lambda: cv2.imread(str(file)) is not None and cv2.imread(str(file)).shape, 10) == (1080, 1920, 3)


def test_everything_has_a_name_and_shows_focus(page) -> None:
    browser, *_ = page
    nameless = """[...document.querySelectorAll("button, input, select, a[href]")].filter((e) => e.checkVisibility()
      && !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    browser.run("app.open('settings')")
    assert browser.run(nameless) == []
    browser.run("app.open('edit')")
    assert browser.run(nameless) == []
    browser.run("app.open('')")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390), (1920, 1080)])
def test_it_fits_every_window(page, width, height) -> None:
    browser, _, url = page
    browser.resize(width, height)
    browser.open(f"{url}/?{width}")
    until(lambda: browser.run(READY), 60)
    inside = """[...document.querySelectorAll("button, select, #time")].filter((e) => e.checkVisibility()).every((e) => {
      const b = e.getBoundingClientRect(); return b.left >= 0 && b.top >= 0 && b.right <= innerWidth && b.bottom <= innerHeight; })"""
    assert browser.run(inside) and browser.run("document.documentElement.scrollWidth") <= width
    assert still(browser)[height // 2 - 40 : height // 2 + 40, width // 2 - 40 : width // 2 + 40].std() > 2
    browser.resize(WIDTH, HEIGHT)


def test_training_that_goes_on_is_followed(page) -> None:
    browser, world, url = page
    trained = load_checkpoint(world.folder / MODEL)
    write_view(unfinished(world.folder) / "view", trained, unfinished=True)
    browser.open(f"{url}/?live")
    until(lambda: browser.run(READY), 60)
    assert "live" in browser.run("document.getElementById('facts').textContent")
    before = still(browser)
    dark = replace(trained, splats=replace(trained.splats, sh=-trained.splats.sh))
    write_view(unfinished(world.folder) / "view", dark, unfinished=True)
    until(lambda: psnr(browser.picture()[FREE], before[FREE]) < 20, 20)
    for path in Path(unfinished(world.folder) / "view").iterdir():
        path.unlink()
