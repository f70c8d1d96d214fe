"""The one-file page: it opens from disk without network where the clip began, plays, and holds what it should."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs.evaluation import ExportConfig
from eval_gs.metrics import psnr
from tests.browser import Browser, browser_or_skip, until
from tests.trained_world import RUN, write_trained_world
from utils.exports.stage import run as export
from utils.scene.layout import SceneLayout
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.render import SplatView, resolve_rasterizer, rgb_image


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("world <&> 静")
    write_trained_world(root)
    return root, export(ExportConfig(root_path=root, format="html", credit="Made by <me>, CC0"))


def test_page_needs_nothing_from_elsewhere(page: tuple[Path, Path]) -> None:
    root, path = page
    text = path.read_text(encoding="utf-8")
    assert path.name == "world.html"
    assert not re.search(r"""(src|href)=["']|https?://|import\s*\(|@import|fetch\(["']""", text)
    assert "Made by &lt;me&gt;, CC0" in text and f"<title>{html.escape(root.name)}</title>" in text
    world = json.loads(re.search(r"const world = (\{.*\});", text)[1])  # type: ignore[index]
    cameras = load_checkpoint(SceneLayout(root).run(RUN).gs("3dgs")).cameras
    np.testing.assert_allclose(np.reshape(world["cameras"][1]["c2w"], (4, 4)), cameras.c2w[1], atol=1e-5)
    assert len(world["path"]["poses"]) == 3 and world["path"]["seconds"] == pytest.approx(2 / 30)


def test_page_opens_at_the_first_camera_and_plays(page: tuple[Path, Path]) -> None:
    browser_or_skip()
    root, path = page
    trained = load_checkpoint(SceneLayout(root).run(RUN).gs("3dgs"))
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    view = SplatView(trained, rasterizer, device)
    with Browser((800, 480)) as browser:
        browser.open(path.as_uri())
        until(lambda: browser.run("globalThis.viewer && viewer.count"), 60)
        until(lambda: browser.run("document.getElementById('message').hidden"), 10)
        np.testing.assert_allclose(browser.run("viewer.pose.c2w"), trained.cameras.c2w[0].ravel(), atol=1e-5)
        shown = browser.picture()
        K = trained.cameras.K[0].copy()
        K[:2] *= 800 / trained.cameras.size[1]
        expected = rgb_image(view.render(trained.cameras.c2w[0], K, (480, 800)))
        free = (slice(60, 400), slice(20, 780))  # no title, no buttons
        assert psnr(shown[free], expected[free]) > 30
        browser.click("document.getElementById('play')")
        until(lambda: browser.run("viewer.time >= viewer.duration && !viewer.playing"), 20)
        browser.click("document.getElementById('home')")
        until(lambda: np.allclose(browser.run("viewer.pose.c2w"), trained.cameras.c2w[0].ravel(), atol=1e-5), 20)
        assert browser.worst_contrast()[0] > 4.5
