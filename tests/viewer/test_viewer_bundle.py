"""The browser viewer against the project's own rasteriser at the same poses, and what its controls do."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval_gs.metrics import psnr
from tests.browser import Browser, browser_or_skip, until
from tests.known_scene import SIZE, known_scene
from utils.exports.ply import write_splat_ply
from utils.exports.splat import write_splat
from utils.exports.spz import write_spz
from utils.splatting.render import SplatView, resolve_rasterizer, rgb_image
from utils.viewer_bundle import FOLDER, MODULES, bundled

PAGE = """<!doctype html><style>html,body{margin:0;height:100%}canvas{width:100vw;height:100vh;display:block}</style>
<canvas></canvas><script type="module">SCRIPT; window.createViewer = createViewer; window.ready = 1;</script>"""
LOAD = """(async () => {
  const bytes = Uint8Array.from(atob(DATA), (c) => c.charCodeAt(0)).buffer;
  window.v ??= await createViewer(document.querySelector("canvas"), {cameras: CAMERAS, near: 0.02});
  await v.load(bytes, {keepView: false});
  return v.count;
})()"""
PIXELS = """(() => { const p = v.renderPixels(CAMERA, WIDTH, HEIGHT); let s = "";
  for (let i = 0; i < p.length; i += 8192) s += String.fromCharCode(...p.subarray(i, i + 8192)); return btoa(s); })()"""
SCENE = known_scene()


def camera(i: int) -> dict[str, object]:
    cameras = SCENE.cameras
    K = cameras.K[i]
    h, w = SIZE
    return {"c2w": cameras.c2w[i].ravel().tolist(), "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "width": w, "height": h}


def test_modules_are_joined_in_an_order_that_works() -> None:
    assert {p.name for p in FOLDER.glob("*.js")} == set(MODULES)
    script = bundled()
    assert "import " not in script.replace("import.meta", "") and "\nexport " not in script
    with pytest.raises(ValueError, match=r"viewer\.js imports .*renderer\.js"):
        bundled(("pose.js", "viewer.js"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Browser]:
    browser_or_skip()
    path = tmp_path_factory.mktemp("bundle") / "page.html"
    path.write_text(PAGE.replace("SCRIPT", bundled()))
    with Browser((640, 480)) as browser:
        browser.open(path.as_uri())
        until(lambda: browser.run("window.ready"), 20)
        yield browser


def load(browser: Browser, path: Path) -> int:
    data = base64.b64encode(path.read_bytes()).decode()
    cameras = json.dumps([camera(i) for i in range(3)])
    return browser.run(LOAD.replace("DATA", json.dumps(data)).replace("CAMERAS", cameras))


def shown(browser: Browser, i: int) -> np.ndarray:
    script = PIXELS.replace("CAMERA", json.dumps(camera(i))).replace("WIDTH", str(SIZE[1])).replace("HEIGHT", str(SIZE[0]))
    return np.frombuffer(base64.b64decode(browser.run(script)), np.uint8).reshape(*SIZE, 4)[..., :3]


def write(path: Path) -> Path:
    splats = SCENE.splats
    if path.suffix == ".ply":
        write_splat_ply(path, splats, "3dgs")
    elif path.suffix == ".splat":
        write_splat(path, splats)
    else:
        write_spz(path, splats)
    return path


@pytest.mark.parametrize(("kind", "least"), [("ply", 50), ("spz", 33), ("splat", 18)])  # SPZ rounds harmonics, .splat has none
def test_pictures_equal_the_rasterizers(page: Browser, tmp_path: Path, kind: str, least: float) -> None:
    assert load(page, write(tmp_path / f"a.{kind}")) == len(SCENE.splats)
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    view = SplatView(SCENE, rasterizer, device)
    for i in range(3):
        expected = rgb_image(view.render(SCENE.cameras.c2w[i], SCENE.cameras.K[i], SIZE))
        assert psnr(shown(page, i), expected) > least


def test_above_is_red_left_is_green_near_is_blue(page: Browser, tmp_path: Path) -> None:
    for kind in ("ply", "spz", "splat"):
        load(page, write(tmp_path / f"a.{kind}"))
        picture = shown(page, 0).astype(int)
        h, w = SIZE
        assert picture[: h // 4, :, 0].mean() > 2 * picture[-h // 4 :, :, 0].mean()
        assert picture[:, : w // 4, 1].mean() > 2 * picture[:, -w // 4 :, 1].mean()
        middle = picture[h // 2 - 4 : h // 2 + 8, w // 2 - 4 : w // 2 + 8].mean(axis=(0, 1))
        assert middle.argmax() == 2


def test_home_picks_hides_tints_and_moves(page: Browser, tmp_path: Path) -> None:
    load(page, write(tmp_path / "a.ply"))
    page.run("v.home(false), 0")
    assert page.run("v.pose.c2w") == camera(0)["c2w"]
    near = page.run("v.pick(640 / 2 + 40, 480 / 2 + 53)")
    far = page.run("v.pick(60, 60)")
    assert 1.0 < near[2] < 1.8 and 2.5 < far[2] < 3.5
    ball = page.run("v.splatsAt(640 / 2 + 40, 480 / 2 + 53, 5).filter((i) => i < 600).length")
    assert ball > 5
    page.run("(() => { const m = new Uint8Array(v.count); m.fill(1, 0, 600); v.setHidden(m); return 0; })()")
    assert shown(page, 0)[40:60, 60:76, 2].mean() < 60
    page.run("v.setHidden(null), v.setTint(new Uint8Array(v.count).fill(1), [[0, 0, 0, 0], [1, 1, 1, 1]]), 0")
    assert shown(page, 0).min(axis=2).mean() > 100
    page.run("v.setTint(null), 0")
    page.drag((320, 240), (400, 240))
    moved = page.run("[v.pose.c2w[3], v.pose.c2w[11], v.pivot]")
    assert moved[0] < -0.2  # the scene follows the pointer to the right: the camera goes left around the pivot
    page.press("r", 82)
    page.run("v.canvas.dispatchEvent(new KeyboardEvent('keydown', {code: 'KeyR'})), 0")
    until(lambda: np.allclose(page.run("v.pose.c2w"), camera(0)["c2w"], atol=1e-6), 10)


def test_fly_through_plays_to_its_end_and_screenshots_have_the_size_asked_for(page: Browser, tmp_path: Path) -> None:
    load(page, write(tmp_path / "a.ply"))
    poses = json.dumps([{"c2w": camera(i)["c2w"], "fov": 0.8} for i in range(3)])
    page.run(f"v.path = {{poses: {poses}, seconds: 0.6}}, v.play(), 0")
    assert page.run("v.playing")
    until(lambda: not page.run("v.playing"), 20)
    np.testing.assert_allclose(page.run("v.pose.c2w"), camera(2)["c2w"], atol=1e-6)
    assert page.run("v.screenshot({width: 50, height: 40}).then(createImageBitmap).then((p) => [p.width, p.height])") == [50, 40]
