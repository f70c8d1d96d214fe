"""The viewer in a real browser: pictures, modes, keyboard, a recorded path and its film, screenshot, a training that goes on."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.base import parse
from configs.evaluation import EvalConfig, ViewerConfig
from eval_gs.metrics import psnr
from eval_gs.stage import run as evaluate
from tests.browser import Browser, browser_or_skip, until
from tests.trained_world import write_trained_world
from utils.scene.trajectories import load_trajectory
from utils.splatting.checkpoint import MODEL, PREVIEW, load_checkpoint, save_checkpoint, unfinished
from utils.splatting.render import rgb_image
from utils.viewer.app import ViewerApp, load_exhibit
from utils.viewer.picture import picture
from utils.viewer.pose import render_size

WIDTH, HEIGHT = 800, 500
# The part of the page that no panel and no notice covers.
FREE = (slice(190, 440), slice(50, 455))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[Browser, ViewerApp, Path]]:
    pytest.importorskip("viser")
    browser_or_skip()
    root = tmp_path_factory.mktemp("viewer_page")
    write_trained_world(root, "2dgs")
    config = ViewerConfig(root_path=root, device="cpu", port=8470, max_side=WIDTH, moving_side=160, show_cameras=False)
    app = ViewerApp(load_exhibit(config), config)
    with Browser((WIDTH, HEIGHT)) as browser:
        browser.open(app.url)
        until(lambda: app._visitors and browser.run("document.querySelectorAll('canvas').length"), 60)
        yield browser, app, root
    app.stop()


def visitor_of(app: ViewerApp):
    return next(iter(app._visitors.values()))


def direct(app: ViewerApp, mode: str = "rgb") -> np.ndarray:
    """What the page should show, rendered here."""
    client = visitor_of(app).client
    size = render_size(client.camera.aspect, WIDTH)
    image, _ = picture(app.exhibit.view, app._pose_of(client), size, mode, False)  # type: ignore[arg-type]
    return cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def agreement(browser: Browser, app: ViewerApp, mode: str = "rgb") -> float:
    """PSNR in dB of the page's canvas against a direct render of the same view."""
    return psnr(browser.picture()[FREE], direct(app, mode)[FREE])


def button(words: str) -> str:
    return f"[...document.querySelectorAll('button')].find(e => e.innerText.includes('{words}'))"


def tab_to(browser: Browser, words: str) -> None:
    """Moves the keyboard's focus to the button with these words."""
    for _ in range(60):
        browser.press("Tab", 9)
        if browser.run("document.activeElement.innerText") == words:
            return
    raise AssertionError(f"the keyboard does not reach '{words}'")


def test_canvas_shows_the_render_of_the_visitors_view(page) -> None:
    browser, app, _ = page
    until(lambda: agreement(browser, app) > 30, 60)
    mirrored = psnr(browser.picture()[FREE], direct(app)[:, ::-1][FREE])
    assert mirrored < agreement(browser, app) - 8


@pytest.mark.parametrize("mode", ["depth", "normal", "alpha", "rgb"])
def test_modes_switch(page, mode: str) -> None:
    browser, app, _ = page
    current = app.mode.value
    browser.click(f"document.querySelector('input[value={current}]')")
    until(lambda: browser.run(f"[...document.querySelectorAll('[role=option]')].some(e => e.innerText == '{mode}')"), 60)
    browser.click(f"[...document.querySelectorAll('[role=option]')].find(e => e.innerText == '{mode}')")
    until(lambda: app.mode.value == mode, 60)
    until(lambda: agreement(browser, app, mode) > 24, 60)
    if current != mode:
        assert psnr(direct(app, mode), direct(app, current)) < 20  # so a picture of the old mode would not have passed


def test_path_is_recorded_by_keyboard_saved_and_filmed(page) -> None:
    browser, app, root = page
    tab_to(browser, "Add this view")
    browser.press("Enter", 13, "\r")
    until(lambda: len(app._recorded) == 1, 60)
    before = app._pose_of(visitor_of(app).client).c2w
    browser.drag((200, 300), (260, 320))
    until(lambda: np.abs(app._pose_of(visitor_of(app).client).c2w - before).max() > 1e-3, 60)
    tab_to(browser, "Add this view")
    browser.press("Enter", 13, "\r")
    until(lambda: len(app._recorded) == 2, 60)
    browser.click(button("Save path"))
    saved = root / "gs_video" / "recorded_00_transforms.json"
    until(saved.is_file, 60)
    until(lambda: "eval_gs" in browser.run("document.body.innerText"), 60)

    path = load_trajectory(saved)
    np.testing.assert_allclose(path.c2w[0], before, atol=1e-6)
    config = parse(EvalConfig, shlex.split(app.film_command(saved))[3:])
    out = evaluate(replace(config, max_frames=3))
    assert out == root / "gs_video" / "recorded_00" and (out / "render_gs_video.mp4").stat().st_size > 500
    filmed = cv2.imread(str(out / "frames_gs_video" / "frame_00000.png"))[..., ::-1]
    expected = rgb_image(app.exhibit.view.render(before, path.K[0], path.size))
    assert psnr(filmed, expected) > 40
    assert not (app.exhibit.source.folder / "gs_video_eval").exists()  # the film leaves the evaluation alone


def test_screenshot_is_downloaded(page) -> None:
    browser, app, _ = page
    browser.click(button("Save screenshot"))
    file = until(lambda: next(browser.downloads.glob("*.png"), None), 60)
    until(lambda: cv2.imread(str(file)) is not None, 60)
    image = cv2.imread(str(file))[..., ::-1]
    assert psnr(cv2.resize(image, (WIDTH, HEIGHT)), direct(app)) > 35


def test_fly_through_plays_and_stops(page) -> None:
    browser, app, _ = page
    app.exhibit = replace(app.exhibit, path=app.exhibit.path.select(np.zeros(500, int)))  # long enough to be stopped
    browser.click(button("Play or stop"))
    until(lambda: visitor_of(app).playing, 60)
    until(lambda: np.abs(app._pose_of(visitor_of(app).client).c2w - app.exhibit.path.c2w[0]).max() < 1e-3, 60)
    browser.click(button("Play or stop"))
    until(lambda: not visitor_of(app).playing, 60)


def test_training_that_goes_on_is_followed(page) -> None:
    browser, app, _ = page
    folder = app.exhibit.source.folder
    trained = load_checkpoint(folder / MODEL)
    unfinished(folder).mkdir()
    dark = replace(trained, splats=replace(trained.splats, sh=-trained.splats.sh))
    beside = unfinished(folder) / "preview.partial"
    save_checkpoint(beside, dark)
    beside.replace(unfinished(folder) / PREVIEW)
    old = direct(app)
    until(lambda: "unfinished training" in browser.run("document.body.innerText"), 15)
    until(lambda: agreement(browser, app) > 30, 30)
    assert psnr(direct(app), old) < 20
