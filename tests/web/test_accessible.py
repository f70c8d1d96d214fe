"""axe-core finds nothing on the pages people see: report, one-file world, viewer, web page; on a desk and on a phone."""

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the web extra is not installed")
pytest.importorskip("uvicorn", reason="the web extra is not installed")

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from configs.evaluation import EvalConfig, ExportConfig
from eval_gs.stage import run as evaluate
from tests.browser import Browser, axe_or_skip, browser_or_skip, until
from tests.trained_world import FRAMES, write_trained_world
from tests.viewer_site import served
from tests.web_site import site, write_clip
from utils.exports.stage import run as export
from utils.viewer.prepare import prepare
from utils.viewer.world import World
from web.server import _REPORT_POLICY

DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    browser_or_skip()
    root = tmp_path_factory.mktemp("accessible")
    run = write_trained_world(root)
    (root / "frames_subsampled").mkdir()
    for i in range(FRAMES):
        cv2.imwrite(str(root / "frames_subsampled" / f"{i:06d}.png"), np.full((48, 80, 3), 90, np.uint8))
    evaluate(EvalConfig(root_path=root, max_frames=8))
    return World(root, run.gs("3dgs"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser_or_skip()
    with Browser(DESK) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_report(browser: Browser, world: World, size: tuple[int, int], dark: bool) -> None:
    axe = axe_or_skip()
    browser.resize(*size, dark)
    browser.open((world.root / "report.html").as_uri())
    assert browser.violations(axe) == []
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.violations(axe) == []
    browser.run("document.querySelector('.zoom').click()")
    assert browser.violations(axe) == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_one_file_world(browser: Browser, world: World, size: tuple[int, int]) -> None:
    axe = axe_or_skip()
    browser.resize(*size)
    browser.open(export(ExportConfig(root_path=world.root, format="html", credit="CC0")).as_uri())
    assert browser.violations(axe) == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_viewer(browser: Browser, world: World, size: tuple[int, int]) -> None:
    axe = axe_or_skip()
    prepare(world)
    browser.resize(*size)
    with served(world) as url:
        browser.open(f"{url}/")
        until(lambda: browser.run("document.documentElement.dataset.ready === '1'"), 60)
        for state in ("1", "app.open('settings')", "app.open('edit')", "app.editor.choose('box')", "app.open('')", "app.compare.toggle()"):
            browser.run(f"void ({state})")
            assert browser.violations(axe) == [], state
        browser.run("document.getElementById('help').showModal()")
        assert browser.violations(axe) == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_page_with_a_finished_world(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    axe = axe_or_skip()
    browser.resize(*size)
    with site(tmp_path / "w") as page:
        browser.open(f"http://localhost:{page.port}/")
        until(lambda: browser.run("page.state !== null"), 60)
        assert browser.violations(axe) == []
        job = page.upload(write_clip(tmp_path / "court.mp4"))
        page.until(job, lambda j: j["state"] == "done")
        browser.open(f"http://localhost:{page.port}/#{job}")
        until(lambda: browser.run("!!document.querySelector('.badge.done')"), 60)
        assert browser.violations(axe) == []


def test_the_pages_policy_lets_the_reports_own_script_and_films_run(browser: Browser, world: World) -> None:
    async def report(_: Request) -> Response:
        return FileResponse(world.root / "report.html", headers={"content-security-policy": _REPORT_POLICY})

    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/", report)]), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    browser.resize(*DESK)
    try:
        until(lambda: server.started, 30)
        browser.open(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/")
        assert browser.run("!!document.querySelector('.compare.live') && !!document.querySelector('dialog')")
        films = "[...document.querySelectorAll('video')]"
        until(lambda: browser.run(f"{films}.length === 2 && {films}.every((f) => f.videoWidth > 0 && f.muted && !f.paused)"), 20)
    finally:
        server.should_exit = True
        thread.join()
