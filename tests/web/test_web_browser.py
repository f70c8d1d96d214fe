"""The web page in a real browser: a clip dropped, watched, looked at, downloaded and found again; by keyboard, on a phone, readable.

`V2W_WEB_REAL=1 python -m pytest tests/web/test_web_browser.py` runs the real pipeline on a small demo clip too (some minutes).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the web extra is not installed")
pytest.importorskip("uvicorn", reason="the web extra is not installed")

from tests.browser import Browser, browser_or_skip, until
from tests.web_site import Client, site, write_clip
from web.processes import Commands

TAB, ENTER, SPACE, RIGHT = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " "), ("ArrowRight", 39)
# The lowest contrast of any shown text against what is behind it, and its text (WCAG 2: 4.5 for text of this size).
CONTRAST = """(() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  let worst = [99, ""];
  for (const e of document.body.querySelectorAll("*")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3 && n.data.trim()).map((n) => n.data).join("");
    if (!text || !e.checkVisibility() || e.closest(":disabled")) continue;
    let behind = e;
    while (behind && parse(getComputedStyle(behind).backgroundColor)[3] < 1) behind = behind.parentElement;
    const a = light(parse(getComputedStyle(e).color)), b = light(parse(getComputedStyle(behind || document.body).backgroundColor));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, text];
  }
  return worst;
})()"""
FOCUS = """(() => {
  const e = document.activeElement, ring = (x) => getComputedStyle(x).outlineStyle !== "none";
  if (e === document.body) return ["", true];  // past the last one
  return [e.id || e.textContent.trim() || e.name || e.ariaLabel, e.tagName === "VIDEO" || ring(e) || ring(e.closest("#drop") || e)];
})()"""


@pytest.fixture(scope="module")
def browser():
    browser_or_skip()
    with Browser((1280, 900)) as opened:
        yield opened


def visit(browser: Browser, page: Client) -> None:
    browser.open(f"http://localhost:{page.port}/")
    until(lambda: browser.run("page.state !== null"), 60)


def give_file(browser: Browser, path: Path) -> None:
    """What the system's file dialog does."""
    found = browser.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=found)
    until(lambda: path.name in browser.run("document.getElementById('file-name').textContent"), 5)


def tab_to(browser: Browser, words: str, most: int = 40) -> None:
    """Presses Tab until something that says these words has the focus; everything passed shows a ring."""
    for _ in range(most):
        browser.press(*TAB)
        said, ring = browser.run(FOCUS)
        assert ring, f"no focus ring on {said}"
        if words in said:
            return
    raise AssertionError(f"Tab never reaches {words}")


def shown(browser: Browser) -> str:
    return browser.run("document.body.innerText")


def test_a_visit_by_keyboard_from_upload_to_download_and_after_a_restart(browser, tmp_path):
    clip = write_clip(tmp_path / "court yard.mp4", b"_slow")
    with site(tmp_path / "w") as page:
        visit(browser, page)
        assert "None yet" in shown(browser)
        tab_to(browser, "file")
        give_file(browser, clip)
        tab_to(browser, "mode", 2)  # past "remove" to the radio buttons
        browser.press(*RIGHT)
        tab_to(browser, "More settings", 1)
        browser.press(*ENTER)
        tab_to(browser, "frames", 3)
        browser.call("Input.insertText", text="8")
        tab_to(browser, "go")
        browser.press(*ENTER)
        until(lambda: browser.run("document.querySelector('.stages [aria-current=step]')?.textContent.includes('each frame')"), 60)
        until(lambda: "Fitting each frame to the others 4/5" in shown(browser) and "left" in shown(browser), 60)
        assert "Extensive preset, at most 8 frames" in shown(browser) and "%" in browser.run("document.title")
        job = browser.run("page.state.jobs[0].id")
        tab_to(browser, "Cancel")
        browser.press(*SPACE)
        until(lambda: "cancelled" in shown(browser), 15)
        (tmp_path / "w" / job / "world" / "be_quick").touch()
        tab_to(browser, "Go on")
        browser.press(*ENTER)
        until(lambda: browser.run("!!document.querySelector('.badge.done')"), 60)
        until(lambda: "Usable near the clip's own views" in shown(browser) and "18.5 dB" in shown(browser), 5)
        until(lambda: browser.run("document.querySelector('video').videoWidth") == 96, 10)  # the film plays here
        tab_to(browser, "Splats, PLY")
        browser.press(*ENTER)
        until(lambda: (browser.downloads / "court yard_splats_3dgs.ply").read_bytes().startswith(b"ply"), 60)
        tab_to(browser, "Walk through it")
        browser.press(*ENTER)
        until(lambda: browser.run("document.documentElement.dataset.ready === '1'"), 60)
        assert browser.run("location.pathname") == f"/jobs/{job}/view/" and browser.run("app.viewer.count") == 200
        browser.click("document.getElementById('back')")
        until(lambda: browser.run("!!document.querySelector('.badge.done')"), 60)
        assert browser.run("performance.getEntriesByType('resource').every((r) => r.name.startsWith(location.origin))")
        browser.open(f"http://localhost:{page.port}/jobs/{job}/report")
        assert browser.run("getComputedStyle(document.querySelector('h1')).color") == "rgb(34, 34, 34)"  # its own style is allowed
    with site(tmp_path / "w") as page:
        visit(browser, page)
        assert "court yard.mp4" in shown(browser) and browser.run("!!document.querySelector('.badge.done')")
        browser.click("document.querySelector('.head')")
        until(lambda: "Splats, SPZ" in shown(browser), 5)
        tab_to(browser, "Delete")
        browser.press(*ENTER)
        until(lambda: browser.run("document.getElementById('sure').open"), 5)
        tab_to(browser, "Delete", 3)
        browser.press(*ENTER)
        until(lambda: "None yet" in shown(browser), 60)


def test_readable_at_every_width_light_and_dark(browser, tmp_path):
    with site(tmp_path / "w") as page:
        good = page.upload(write_clip(tmp_path / "good.mp4"))
        bad = page.upload(write_clip(tmp_path / f"{'long_name_' * 7}.mp4", b"error"))
        slow = page.upload(write_clip(tmp_path / "slow.mp4", b"_slow"))
        page.upload(write_clip(tmp_path / "waiting.mp4"))
        page.until(slow, lambda j: j["number"] == 2)
        for job in (good, bad, slow):
            for width, dark in ((1280, False), (390, False), (390, True), (320, True)):
                browser.resize(width, 844, dark)
                browser.open(f"http://localhost:{page.port}/?{width}{dark}#{job}")
                until(lambda: browser.run("page.state !== null && document.querySelectorAll('.job').length === 4"), 60)
                assert browser.run("document.documentElement.scrollWidth") <= width
                ratio, text = browser.run(CONTRAST)
                assert ratio >= 4.5, f"{text!r} has a contrast of {ratio:.2f} at {width} px, dark: {dark}"
        browser.resize(1280, 900)


DROP = """(() => { const d = new DataTransfer();
  for (const [words, name] of %s) d.items.add(new File([words], name));
  dispatchEvent(new DragEvent("dragenter", { dataTransfer: d }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: d, bubbles: true, cancelable: true })); })()"""
SAID = "document.getElementById('problem').innerText"


def test_what_cannot_be_used_is_said_before_and_after_sending(browser, tmp_path):
    with site(tmp_path / "w", max_upload_mb=1) as page:
        visit(browser, page)
        browser.run(DROP % '[["x", "notes.txt"]]')
        assert "not a kind of file" in browser.run(SAID)
        browser.run(DROP % '[["x".repeat(1100000), "big.mp4"]]')
        assert "at most 1 MB" in browser.run(SAID)
        browser.run(DROP % '[["#EXTM3U and more than that", "list.mp4"]]')
        assert browser.run(SAID) == "" and browser.run("document.getElementById('veil').hidden")
        browser.click("document.getElementById('go')")
        until(lambda: "not what its name says" in browser.run(SAID), 60)
    until(lambda: "does not answer" in shown(browser), 10)  # the server is gone now, and the page says so


def test_several_clips_dropped_anywhere_become_several_worlds(browser, tmp_path):
    clips = [write_clip(tmp_path / name) for name in ("静止画.mp4", "b.mp4", "c.mp4")]
    with site(tmp_path / "w") as page:
        visit(browser, page)
        found = browser.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
        browser.call("DOM.setFileInputFiles", files=[str(c) for c in clips], objectId=found)
        until(lambda: "3 clips" in shown(browser) and "Make 3 worlds" in shown(browser), 5)
        browser.click("document.querySelector('#chosen li:nth-child(2) button')")
        until(lambda: "2 clips" in shown(browser), 5)
        browser.click("document.getElementById('go')")
        until(lambda: {"静止画.mp4", "c.mp4"} == set(browser.run("page.state.jobs.map((j) => j.name)")), 60)
        until(lambda: browser.run("document.querySelectorAll('.badge.done').length") == 2, 60)


def test_another_file_again_and_delete_keep_the_focus(browser, tmp_path):
    with site(tmp_path / "w") as page:
        first = page.upload(write_clip(tmp_path / "a.mp4"))
        page.until(first, lambda j: j["state"] == "done")
        browser.open(f"http://localhost:{page.port}/#{first}")
        until(lambda: "Make this file too" in shown(browser), 60)
        assert "World as one file" in shown(browser)
        browser.run("document.querySelector('.body select').value = 'splat'")
        browser.click("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Make this file too')")
        until(lambda: "Splats, .splat" in browser.run("document.querySelector('.files').innerText"), 60)
        tab_to(browser, "Again with other settings", 60)
        browser.press(*ENTER)
        until(lambda: browser.run("document.getElementById('again').open"), 5)
        browser.run("document.getElementById('again-form').frames.value = 12")
        browser.click("document.querySelector('#again-form .main')")
        until(lambda: browser.run("page.state.jobs.length") == 2, 30)
        until(lambda: browser.run("document.querySelectorAll('.badge.done').length") == 2, 60)
        assert browser.run("page.state.jobs[0].frames") == 12
        tab_to(browser, "Delete", 60)
        browser.press(*ENTER)
        tab_to(browser, "Delete", 3)
        browser.press(*ENTER)
        until(lambda: browser.run("page.state.jobs.length") == 1, 30)
        until(lambda: "a.mp4" in browser.run("document.activeElement.textContent"), 5)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("V2W_WEB_REAL"), reason="takes minutes: set V2W_WEB_REAL=1")
def test_the_demo_clip_becomes_a_world_in_the_browser(browser, tmp_path):
    flags = ["--out", str(tmp_path / "d"), "--frames", "12", "--size", "192x108", "--path-scale", "2"]
    subprocess.run([sys.executable, "-m", "utils.synthetic", *flags], check=True)
    with site(tmp_path / "w", Commands()) as page:
        visit(browser, page)
        give_file(browser, tmp_path / "d" / "clip.mp4")
        browser.run("document.querySelector('[name=resolution]').value = 192")
        browser.click("document.getElementById('go')")
        until(lambda: browser.run("!!document.querySelector('.badge.done')"), 900)
        assert "Fly-through" in shown(browser) and "Splats, PLY" in shown(browser)
        browser.click("[...document.querySelectorAll('a')].find((b) => b.textContent === 'Walk through it')")
        until(lambda: browser.run("document.documentElement.dataset.ready === '1'"), 60)
