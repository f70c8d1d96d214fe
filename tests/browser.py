"""A headless Chromium driven over its debugging protocol: open a page, run scripts in it, press keys, take pictures."""

import base64
import importlib.util
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Software WebGL, so that it draws on any machine; no sandbox, as test machines often run as root in a container.
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0", "--mute-audio",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--disable-background-networking",
)  # fmt: skip
_STRIP = 4000
_CONTRAST = """(() => {
  const rgba = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = v => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const luminance = c => { const [r, g, b] = rgba(c).map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  let worst = [99, ""];
  for (const e of document.body.querySelectorAll("*")) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !e.checkVisibility()) continue;
    let ground = e;
    while (ground !== document.body && rgba(getComputedStyle(ground).backgroundColor)[3] < 1) ground = ground.parentElement;
    const style = getComputedStyle(e), ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(ink), luminance(getComputedStyle(ground).backgroundColor)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, text];
  }
  return worst;
})()"""


def browser_or_skip() -> str:
    """The browser's program; skips the test, by name, where there is none."""
    pytest.importorskip("websockets.sync.client")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(_NAMES)}")
    return found


def axe_or_skip() -> str:
    """axe-core, the accessibility checker, as a script for `Browser.violations`; skips the test where its package is not installed."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core here: pip install --no-deps axe-playwright-python")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


class Browser:
    """One tab. Use as a context manager."""

    def __init__(self, size: tuple[int, int] = (1280, 800)):
        self._size = size
        self._numbers = itertools.count(1)
        self.downloads = Path(tempfile.mkdtemp(prefix="browser_"))

    def __enter__(self) -> "Browser":
        from websockets.sync.client import connect

        profile = self.downloads / "profile"
        command = [
            browser_or_skip(),
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={self._size[0]},{self._size[1]}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = until(lambda: (profile / "DevToolsActivePort").read_text().split()[0], 30)
        pages = until(lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5)), 30)
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self._socket = connect(address, max_size=None, open_timeout=30)
        self.call("Page.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self.resize(*self._size)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self.downloads, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its answer; events in between are dropped."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Size of the page in CSS pixels, and the colour scheme its visitor prefers."""
        self._size = (width, height)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, url: str) -> None:
        """Goes there and waits until it has loaded."""
        self.call("Page.navigate", url=url)
        until(lambda: self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank", 60)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, full: bool = False) -> np.ndarray:
        """(h, w, 3) uint8 RGB of the window, or of the whole page (in strips: a browser draws only so much at once)."""
        if not full:
            return self._capture()
        height, strips = self.run("document.documentElement.scrollHeight"), []
        for top in range(0, height, _STRIP):
            clip = {"x": 0, "y": top, "width": self._size[0], "height": min(_STRIP, height - top), "scale": 1}
            strips.append(self._capture(clip=clip, captureBeyondViewport=True))
        return np.concatenate(strips)

    def _capture(self, **options: Any) -> np.ndarray:
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    def worst_contrast(self) -> tuple[float, str]:
        """The lowest contrast ratio (WCAG 2) of visible text against the colour behind it, and that text."""
        return tuple(self.run(_CONTRAST))

    def violations(self, axe: str) -> list[str]:
        """What axe-core finds wrong with the page as it stands: rule, how many, and the first place."""
        self.call("Runtime.evaluate", expression=axe)
        found = "r.violations.map((v) => `${v.impact} ${v.id} (${v.nodes.length}): ${v.nodes[0].html.slice(0, 150)}`)"
        return list(self.run(f"axe.run().then((r) => {found})"))

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """One key down and up."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def click(self, element: str) -> None:
        """A mouse click on the middle of the element that an expression yields."""
        script = f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
        x, y = self.run(script + " return [b.x + b.width / 2, b.y + b.height / 2]; })()")
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Left button down at one place, up at another."""
        x, y = np.linspace(start, end, 5).T.tolist()
        button = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x[0], y=y[0])
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x[0], y=y[0], **button)
        for step in range(1, 5) if start != end else ():
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x[step], y=y[step], button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x[-1], y=y[-1], **button)


def until(check: Callable[[], Any], seconds: float) -> Any:
    """The first true value of `check`; errors of a page or file that is not there yet count as not yet.

    Raises:
        TimeoutError: it stayed false.
    """
    end, last = time.monotonic() + seconds, "it stayed false"
    while time.monotonic() < end:
        try:
            if value := check():
                return value
        except (OSError, ValueError, IndexError, AssertionError) as error:
            last = repr(error)
        time.sleep(0.1)
    raise TimeoutError(f"not within {seconds:.0f} s: {last}")
