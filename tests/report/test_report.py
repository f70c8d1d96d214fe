"""The report is one file, complete, and survives missing parts."""

import base64
import json
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.evaluation import EvalConfig
from eval_gs.stage import run as evaluate
from tests.browser import Browser, browser_or_skip
from tests.trained_world import write_trained_world
from utils.report import pictures
from utils.report.charts import bar_chart, line_chart
from utils.report.findings import findings_of_parts
from utils.report.html import write_report
from utils.report.style import SCRIPT
from utils.report.verdict import verdict
from utils.scene.clip_parts import clip_contradictions, clip_parts, words_about_parts
from utils.scene.layout import SceneLayout
from utils.scene.media import write_image

VOID = {"meta", "img", "br", "line", "rect", "polyline", "input"}


class Checker(HTMLParser):
    """Collects headings and outside references and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def check(path: Path) -> tuple[str, Checker]:
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open and not checker.outside and "@import" not in text and "url(" not in text
    assert (
        re.findall(r"<script[^>]*>", text) == ["<script>"] and f"<script>{SCRIPT}</script>" in text
    )  # the one that the page's policy allows
    return text, checker


def test_report_of_a_finished_run(tmp_path: Path) -> None:
    write_trained_world(tmp_path, "2dgs")
    evaluate(EvalConfig(root_path=tmp_path, save_images=False, save_video=False, lpips=True))
    text, checker = check(tmp_path / "report.html")
    for words in (
        "Renders beside inputs",
        "normals",
        "held out",
        "PSNR per frame",
        "Cloud before and after",
        "target_num_points",
        "seed 0",
    ):
        assert words in text
    assert "LPIPS was not measured" in text or "LPIPS, through" in text
    assert checker.images >= 8 + 6 + 5 - 3 and "<svg" in text and "No evaluation" not in text
    assert text.count('class="missing"') == 0
    first = re.search(r'data:image/jpeg;base64,([^"]+)"', text)
    assert first and cv2.imdecode(np.frombuffer(base64.b64decode(first[1]), np.uint8), cv2.IMREAD_COLOR) is not None


def test_novel_views_of_a_synthetic_world_are_told(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    folder = run.evaluation(run.gs("3dgs"))
    folder.mkdir()
    scores = {"psnr": 21.52, "ssim": 0.61, "psnr_per_view": 22.75, "ssim_per_view": 0.65, "views": 8, "misfit": 0.02}
    (folder / "metrics.json").write_text(json.dumps({"train": {"psnr": 30.0, "ssim": 0.9}, "novel_views": scores}))
    text, _ = check(write_report(tmp_path))
    table = text[text.index("Novel views against the clean truth") :]
    assert re.search(r"one placement for all views \(dB\)</t.>\s*<td[^>]*>21\.52", table) and "22.75" in table
    (folder / "metrics.json").write_text(json.dumps({"train": {"psnr": 30.0, "ssim": 0.9}}))
    assert "Novel views against" not in check(write_report(tmp_path))[0]


def test_report_of_nothing_says_so(tmp_path: Path) -> None:
    text, checker = check(write_report(tmp_path))
    assert text.count('class="missing"') >= 5 and checker.images == 0
    assert "No stage has finished yet." in text and "there is no world to judge" in text


def test_report_without_evaluation_or_with_broken_files(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    (run.gs("3dgs") / "report.json").write_text("{broken")
    text, _ = check(write_report(tmp_path))
    assert "No evaluation has been run" in text and "Cloud before and after" in text and "frame residual" in text


def test_before_and_after_clouds_agree_when_alignment_changed_nothing(tmp_path: Path) -> None:
    from utils.report.alignment_pictures import unaligned_cloud
    from utils.scene.artifacts import load_alignment, load_scene

    run = write_trained_world(tmp_path)
    alignment = load_alignment(run.after_global_optimization)
    points, colors = unaligned_cloud(load_scene(tmp_path), alignment)
    np.testing.assert_allclose(points, alignment.cloud.points, atol=1e-4)
    np.testing.assert_array_equal(colors, alignment.cloud.colors)


def test_charts_escape_and_leave_out_what_is_not_finite() -> None:
    chart = line_chart({"<b>": ([0, 1, 2], [1.0, float("nan"), 3.0])}, title="t", x_label="step", y_label="loss")
    assert "&lt;b&gt;" in chart and "nan" not in chart and "<b>" not in chart
    assert line_chart({"a": ([], [])}, title="t", x_label="", y_label="") == ""
    bars = bar_chart([1.0, 2.0], title="t", x_label="frame", y_label="dB", marked=[1], marked_label="held out")
    assert bars.count("<rect") == 2 and 'class="b2"' in bars and "held out" in bars
    assert "<polyline" in line_chart({"flat": ([0, 1], [2.0, 2.0])}, title="t", x_label="", y_label="")


def test_depth_colours_and_scatter_orientation() -> None:
    depth = np.array([[1.0, 4.0, 0.0, np.nan]])
    colors = pictures.colorize_depth(depth, 1.0, 4.0)
    assert colors[0, 0, 0] > colors[0, 0, 2] and colors[0, 1, 2] > colors[0, 1, 0]  # near is red, far is blue
    assert not colors[0, 2:].any()
    red, blue = [255, 0, 0], [0, 0, 255]
    image = pictures.scatter(
        np.array([0.11, 0.91]), np.array([0.89, 0.09]), np.array([red, blue], np.uint8), np.zeros(2), (0.0, 1.0, 0.0, 1.0), 50
    )
    assert image[5, 5].tolist() == [*red, 255] and image[45, 45].tolist() == [*blue, 255]
    stacked = pictures.scatter(
        np.full(2, 0.5), np.full(2, 0.5), np.array([red, blue], np.uint8), np.array([2.0, 1.0]), (0.0, 1.0, 0.0, 1.0), 50
    )
    assert stacked[25, 25].tolist() == [*red, 255]  # the one nearer to the viewer


def test_plan_basis_is_level_and_right_handed() -> None:
    basis = pictures.plan_basis(np.array([0, 0, 1.0]), np.array([1.0, 0, -0.5]))
    np.testing.assert_allclose(basis, [[0, -1, 0], [0, 0, 1], [-1, 0, 0]], atol=1e-12)
    assert np.linalg.det(pictures.plan_basis(np.array([0, 1.0, 0]), np.array([0, -1.0, 0]))) == pytest.approx(1)


def test_alignment_residuals_and_contradictions_are_told(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    content = {
        "frames": [0, 1, 2, 3, 4],
        "residual_before": [0.02, 0.03, None, 0.03, 0.02],
        "residual_after": [0.001, 0.002, None, 0.002, 0.001],
        "contradictions": [{"frames": [1, 4], "after": 0.05}],
        "pairs": [{"source": i, "target": i + 1, "before": 0.1} for i in range(4)],
    }
    (run.after_global_optimization / "report.json").write_text(json.dumps(content))
    manifest = json.loads((run.after_global_optimization / "manifest.json").read_text())
    size = (run.after_global_optimization / "report.json").stat().st_size
    manifest["files"]["report.json"][0] = size
    (run.after_global_optimization / "manifest.json").write_text(json.dumps(manifest))
    text, _ = check(write_report(tmp_path))
    assert "disagreement with the other frames" in text and "median distance (% of depth)" in text
    assert "could not be made to agree: 2 and 5." in text
    assert "source" not in text.split("<h2>Curves and residuals</h2>")[1].split("</section>")[0]


def test_baselines_and_licences_are_told(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    evaluate(EvalConfig(root_path=tmp_path, save_images=False, save_video=False, render_gs_video_path=False, report=False))
    naive = tmp_path / "frame_to_model_icp_naive" / "gs_3dgs"
    naive.mkdir(parents=True)
    (naive / "manifest.json").write_text("{}")
    (naive / "report.json").write_text(json.dumps({"train_psnr": 11.25, "heldout_psnr": 9.75}))
    manifest = tmp_path / "exports" / "npz" / "manifest.json"
    manifest.write_text(json.dumps({"backends": {"geometry": "da3", "weights": "some/net", "weights_license": "CC-BY-NC-4.0"}}))
    text, _ = check(write_report(tmp_path))
    quality = text.split("<h2>Quality</h2>")[1].split("</section>")[0]
    assert quality.count("<th>gs_3dgs, naive baseline") == 2 and "11.25" in quality and "9.75" in quality
    assert run.root.name in text.split("<main>")[0]  # the naive run is not taken for the run that is told about
    assert "some/net are licensed CC-BY-NC-4.0: results made with them are not for commercial use." in text
    manifest.write_text(json.dumps({"backends": {"geometry": "da3", "weights": "some/net", "weights_license": "Apache-2.0"}}))
    text = write_report(tmp_path).read_text()
    assert "commercial" not in text and "Apache-2.0" in text


@pytest.mark.parametrize("dark", [False, True])
def test_report_fits_screens_and_is_readable_and_reached_by_keyboard(tmp_path: Path, dark: bool) -> None:
    browser_or_skip()
    write_trained_world(tmp_path, "2dgs")
    evaluate(EvalConfig(root_path=tmp_path, save_images=False, save_video=False, lpips=True))
    with Browser() as browser:
        for width in (1280, 390):
            browser.resize(width, 800, dark)
            browser.open((tmp_path / "report.html").as_uri())
            browser.run("for (const part of document.querySelectorAll('.part')) part.open = true")
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            ratio, words = browser.worst_contrast()
            assert ratio > 4.5, f"{words}: {ratio:.1f}"
        assert browser.picture(full=True).shape[0] == browser.run("document.documentElement.scrollHeight")
        reached = set()
        for _ in range(70):
            browser.press("Tab", 9)
            reached.add(browser.run("document.activeElement.className || document.activeElement.tagName"))
        assert {"strip", "scroll", "SUMMARY"} <= reached
        assert {"zoom", "INPUT", "command"} <= reached
        browser.run("document.querySelector('summary').focus()")
        browser.press("Enter", 13, "\r")
        assert not browser.run("document.querySelector('details').open")
        browser.run("document.querySelector('.compare input').focus()")
        browser.press("ArrowRight", 39)
        assert browser.run("getComputedStyle(document.querySelector('.compare')).getPropertyValue('--at')") == "51%"
        browser.run("document.querySelector('.part[open] .zoom').focus()")
        browser.press("Enter", 13, "\r")
        assert browser.run("document.querySelector('dialog').open && document.querySelector('dialog img').decode().then(() => true)")
        browser.press("Escape", 27)
        assert not browser.run("document.querySelector('dialog').open")


def test_what_went_wrong_is_shown_with_pictures_and_the_verdict_is_the_one_of_the_console(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    evaluate(EvalConfig(root_path=tmp_path, save_video=False, render_gs_video_path=False))
    text, _ = check(tmp_path / "report.html")
    judged = verdict(run.gs("3dgs"))
    assert judged is not None and all(escape(part) in text for part in (judged.reason[1:], judged.command))
    assert "No frame was left out" in text and "the clip</figcaption>" in text and "this world</figcaption>" in text
    rows = [{"frame_id": i, "psnr_rigid": 12.0 if i == 3 else 25.0} for i in range(5)]
    (run.gs("3dgs") / "report.json").write_text(json.dumps({"frames": rows, "train_psnr_rigid": 23.0}))
    content = {"frames": [0, 1, 2, 3, 4], "aligned": [True, False, True, True, True], "contradictions": [{"frames": [0, 4]}]}
    (run.after_global_optimization / "report.json").write_text(json.dumps(content))
    section = check(write_report(tmp_path))[0].split("<h2>What went wrong, and where</h2>")[1].split("</section>")[0]
    assert "1 of 5 frames were left out" in section and "could not be made to agree: 1 and 5" in section
    assert [section.count(words) for words in ("frame 2, left out</figcaption>", "contradicts</figcaption>", ">frame 4</figcaption>")] == [
        1,
        2,
        1,
    ]


def test_places_of_a_clip_are_told_with_frames_that_contradict_side_by_side(tmp_path: Path) -> None:
    write_trained_world(tmp_path)
    layout = SceneLayout(tmp_path)
    layout.frames.mkdir()
    (layout.frames / "torn.png").write_bytes(b"\x89PNG")
    for number, level in ((1, 40), (9, 200)):
        write_image(layout.frames / f"{number:06d}.png", np.full((30, 40, 3), level, np.uint8))
    record = {
        "source_frames_dir": "frames",
        "findings": [
            {"kind": "bars", "text": "bars are cut off"},
            {"kind": "parts", "text": "the clip shows 2 places"},
            {"kind": "contradictions", "text": "3 pairs of frames show different things"},
        ],
        "parts": [{"folder": ".", "frames": [1, 2, 3]}, {"folder": "parts/02", "frames": [9, 10]}, {"folder": None, "frames": [12]}],
        "contradictions": [
            {"frames": [1, 9], "names": ["000001.png", "000009.png"]},
            {"frames": [2, 9], "names": ["gone.png", "000009.png"]},
            {"frames": [3, 9], "names": ["torn.png", "000009.png"]},
        ],
    }
    layout.preprocess_json.write_text(json.dumps(record))
    evaluate(EvalConfig(root_path=tmp_path, save_video=False, save_images=False, render_gs_video_path=False))
    section = check(tmp_path / "report.html")[0].split("<h2>What went wrong, and where</h2>")[1].split("</section>")[0]
    assert "The clip shows 2 places. 3 pairs of frames show different things." in section and "bars" not in section
    assert f"python run_reconstruction.py {tmp_path}/parts/02" in section
    assert section.count("frames 1 and 9 of the clip, one spot</figcaption>") == 1
    assert "frames 2 and 9" not in section and "frames 3 and 9" not in section
    metrics = json.loads(next(tmp_path.glob("*/gs_3dgs/gs_video_eval/metrics.json")).read_text())
    assert metrics["parts"] == record["parts"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"parts": 3, "contradictions": [3, {"frames": [1]}], "findings": {}}',
        '{"parts": [{}]}',
        '{"contradictions": [{"frames": ["x", 2], "names": ["a.png", "b.png"]}, {"frames": [1, 2], "names": [3, "b.png"]}]}',
        '{"contradictions": [{"frames": [1, 2], "names": ["../a.png", "b.png"]}, {"frames": [1, 2], "names": ["a.png", "/b.png"]}]}',
        '{"parts": [{"folder": ".", "frames": [1]}, {"folder": "../other", "frames": [2]}, {"folder": "/other", "frames": [3]}]}',
    ],
)
def test_a_damaged_record_tells_of_no_places(tmp_path: Path, content: str) -> None:
    SceneLayout(tmp_path).preprocess_json.write_text(content)
    assert clip_parts(tmp_path) == [] == clip_contradictions(tmp_path) == words_about_parts(tmp_path) == findings_of_parts(tmp_path)


def test_before_is_the_naive_render_where_there_is_one(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    evaluate(EvalConfig(root_path=tmp_path, save_video=False, save_images=False, render_gs_video_path=False, report=False))
    assert "splatted without alignment" not in write_report(tmp_path).read_text()
    ours = run.evaluation(run.gs("3dgs")) / "report_pictures"
    shutil.copytree(ours, tmp_path / "frame_to_model_icp_naive" / "gs_3dgs" / "gs_video_eval" / "report_pictures")
    assert "splatted without alignment" in check(write_report(tmp_path))[0]


def test_disagreement_is_red_where_pictures_differ_and_grey_elsewhere() -> None:
    image = np.full((60, 80, 3), 120, np.uint8)
    render = image.copy()
    render[:, :40] = 30
    shown = pictures.disagreement(image, render).astype(int)
    assert shown[30, 10, 0] > shown[30, 10, 1] + 100 and np.ptp(shown[30, 70]) == 0


def test_exported_files_are_listed_with_their_fidelity_and_discs_are_explained(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path, "2dgs")
    record = run.gs("2dgs") / "exports.json"
    assert "Exported files" not in write_report(tmp_path).read_text()
    entry = {"format": "ply", "splats": 1234, "bytes": 2_500_000, "psnr": [99.0, 31.25, 40.0]}
    record.write_text(json.dumps({"splats_2dgs.ply": entry, "broken": {"psnr": "?"}}))
    section = check(write_report(tmp_path))[0].split("<h2>Exported files</h2>")[1].split("</section>")[0]
    assert "2.50 MB" in section and "31.2 dB" in section and "1,234" in section and "broken" not in section and "made of discs" in section
    record.write_text(json.dumps({"splats_2dgs.ply": entry | {"psnr": [50.0]}}))
    assert "made of discs" not in write_report(tmp_path).read_text()
