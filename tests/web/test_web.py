"""The web page without a browser: uploads, queue, restart, results, and what must be refused."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the web extra is not installed")
pytest.importorskip("uvicorn", reason="the web extra is not installed")

from tests.web_site import QUICK, STAND_IN, site, write_clip
from utils.errors import ConfigError, InputError
from web import clips
from web.jobs import JobStore, new_id
from web.runner import explain

ROOT = Path(__file__).resolve().parents[2]


def finished(job):
    return job["state"] in ("done", "failed", "cancelled")


def test_a_clip_becomes_a_world_that_can_be_fetched(tmp_path):
    clip = write_clip(tmp_path / "my clip.mp4")
    with site(tmp_path / "w") as page:
        job_id = page.upload(clip, mode="extensive", renderer="3dgs", frames=8, resolution=140)
        job = page.until(job_id, finished)
        assert job["state"] == "done" and job["name"] == "my clip.mp4" and "96 x 64" in job["about"] and "8 frames" in job["about"]
        assert job["stages"] == ["geometry", "alignment", "3dgs splats", "exports"] and len(job["times"]) == 3
        kinds = {f["key"].rpartition("/")[2]: f["kind"] for f in job["files"]}
        assert kinds == {
            "render_gs_video.mp4": "film",
            "splats_3dgs.ply": "export",
            "splats_3dgs.spz": "export",
            "world.html": "export",
        }
        assert [(v["grade"], v["psnr"]) for v in job["verdicts"]] == [
            ("usable", 18.5)
        ]  # not the 24.5 dB through each frame's own deformation
        for file in job["files"]:
            assert len(page.get(f"/jobs/{job_id}/files/{file['key']}")) == file["bytes"]
        film = next(f["key"] for f in job["files"] if f["kind"] == "film")
        status, part, _ = page.ask("GET", f"/jobs/{job_id}/files/{film}", headers={"Range": "bytes=4-7"})
        assert (status, part) == (206, b"ftyp")
        assert b"A report" in page.get(f"/jobs/{job_id}/report")
        papers = zipfile.ZipFile(io.BytesIO(page.get(f"/jobs/{job_id}/papers.zip")))
        assert {Path(n).name for n in papers.namelist()} == {"report.html", "run_summary.json", "metrics.json"}
        assert page.get(f"/jobs/{job_id}/thumbnail").startswith(b"\xff\xd8")
        argv = json.loads((tmp_path / "w" / job_id / "world" / "argv.json").read_text())
        given = dict(zip(argv[::2], argv[1::2], strict=True))
        assert given["--config.mode"] == "extensive" and given["--config.renderer"] == "3dgs"
        assert given["--config.preprocess-max-frames"] == given["--config.stage1.alignment.num-frames"] == "8"
        assert given["--config.preprocess-process-res"] == "140"
    assert not [p for p in (tmp_path / "w").iterdir() if p.name.startswith(".upload")]


def test_the_real_driver_understands_the_command(tmp_path):
    from run_reconstruction import configure, plan
    from web.jobs import Job
    from web.runner import pipeline_command

    store = JobStore(tmp_path)
    (tmp_path / "coming").mkdir()
    job = store.add(
        Job(id="a", name="a.mp4", source="clip.mp4", mode="fast", renderer="both", frames=12, resolution=140), tmp_path / "coming"
    )
    config = configure(pipeline_command(QUICK, store, job)[len(QUICK.pipeline) :])
    assert config.renderers == ("2dgs", "3dgs") and config.stage0.max_frames == 12 and config.stage1.alignment.num_frames == 12
    assert config.progress_file == tmp_path / "a" / "progress.json" and config.scene_root == tmp_path / "a" / "world"
    assert plan(config)[0].config.input_video == (tmp_path / "a" / "clip.mp4",)


def test_frames_in_a_zip_keep_their_order_and_lose_their_paths(tmp_path):
    path = tmp_path / "frames.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in (10, 2, 1, 3, 4, 5, 6, 7):
            picture = cv2.imencode(".png", np.full((72, 96, 3), 20 * number, np.uint8))[1].tobytes()
            archive.writestr(f"../../evil/frame{number}.png", picture)
        archive.writestr("__MACOSX/._frame1.png", b"no image")
        archive.writestr("../notes.txt", b"no image")
    with site(tmp_path / "w") as page:
        job_id = page.upload(path)
        assert page.until(job_id, finished)["about"] == "96 x 72, 8 frames"
    frames = sorted((tmp_path / "w" / job_id / "frames").iterdir())
    assert [cv2.imread(str(f))[0, 0, 0] for f in frames] == [20, 40, 60, 80, 100, 120, 140, 200]
    assert not (tmp_path / "evil").exists() and not (tmp_path / "w" / "evil").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.exe", b"MZ" + bytes(100), "not a kind of file"),
        ("a", b"x" * 100, "not a kind of file"),
        ("a.mp4", b"#EXTM3U\nfile:///etc/passwd\n", "not what its name says"),
        ("a.gif", b"ffconcat version 1.0\nfile /etc/passwd\n", "not what its name says"),
        ("a.mp4", b"\0\0\0\x18ftypisom" + bytes(200), "cannot be read as a video"),
        ("a.zip", b"PK\x03\x04" + bytes(100), "cannot be unpacked"),
        ("a.mp4", b"", "empty"),
    ],
)
def test_what_is_no_clip_is_refused_in_words(tmp_path, name, content, words):
    with site(tmp_path / "w") as page:
        status, said = page.post("/api/jobs", content, name=name)
        assert status == 422 and words in said["error"] and said["hint"]
        assert json.loads(page.get("/api/state"))["jobs"] == []
    assert {p.name for p in (tmp_path / "w").iterdir()} == {".lock"}


def test_too_large_an_upload_is_refused_announced_or_not(tmp_path):
    with site(tmp_path / "w", max_upload_mb=1) as page:
        big = b"\0\0\0\x18ftypisom" + bytes(2 << 20)
        assert page.ask("POST", "/api/jobs?name=a.mp4", None, {"Content-Length": str(len(big))})[0] == 413
        connection = __import__("http.client").client.HTTPConnection("127.0.0.1", page.port, timeout=10)
        try:
            connection.request("POST", "/api/jobs?name=a.mp4", iter([big[: 1 << 20], big[1 << 20 :]]), encode_chunked=True)
            assert connection.getresponse().status == 413
        except ConnectionError:
            pass  # refused while still sending
        finally:
            connection.close()
        assert json.loads(page.get("/api/state"))["jobs"] == []


@pytest.mark.parametrize("bad", [{"mode": "best"}, {"renderer": "--x"}, {"frames": "7"}, {"frames": "-5"}, {"resolution": "9" * 30}])
def test_settings_are_checked(tmp_path, bad):
    with site(tmp_path / "w") as page:
        status, said = page.post("/api/jobs", b"x", name="a.mp4", **bad)
        assert status == 422 and next(iter(bad)) in said["error"]


def test_errors_of_the_pipeline_are_shown_as_they_are_and_a_run_can_go_on(tmp_path):
    with site(tmp_path / "w") as page:
        failed = page.until(page.upload(write_clip(tmp_path / "a.mp4", b"error")), finished)
        assert (failed["state"], failed["error"]) == ("failed", "the camera hardly moves")
        assert failed["hint"] == "pass a clip in which the camera travels"
        crashed = page.until(page.upload(write_clip(tmp_path / "b.mp4", b"crash")), finished)
        assert "exit code 1" in crashed["error"] and "RuntimeError: a bug" in crashed["error"]
        assert b"some chatter" in page.get(f"/jobs/{failed['id']}/log")
        assert page.post(f"/api/jobs/{failed['id']}/resume")[0] == 200
        again = page.until(failed["id"], lambda j: finished(j) and j["finished"] > failed["finished"])
        assert again["times"][0]["kept"]


def test_memory_and_unknown_ends_are_explained():
    assert "memory" in explain(137, "")[0]
    assert explain(2, "error: one\nhint: first\nerror: two\n")[0] == "two"
    assert explain(2, "12%|##\rerror: x\nhint: y") == ("x", "y")


def test_one_job_at_a_time_in_order_and_cancel(tmp_path):
    slow, quick = write_clip(tmp_path / "slow.mp4", b"_slow"), write_clip(tmp_path / "quick.mp4")
    with site(tmp_path / "w", max_queue=2) as page:
        first = page.upload(slow)
        page.until(first, lambda j: j["number"] == 2 and j["state"] == "running")
        second, third = page.upload(quick), page.upload(quick)
        assert (page.job(second)["place"], page.job(third)["place"]) == (1, 2)
        status, said = page.post("/api/jobs", quick.read_bytes(), name="q.mp4")
        assert status == 429 and "waiting already" in said["error"]
        assert page.ask("DELETE", f"/api/jobs/{first}")[0] == 409
        page.post(f"/api/jobs/{third}/cancel")
        page.post(f"/api/jobs/{first}/cancel")
        assert page.until(first, finished)["state"] == "cancelled"
        assert page.until(second, finished)["state"] == "done" and page.job(third)["state"] == "cancelled"
        (tmp_path / "w" / first / "world" / "be_quick").touch()
        page.post(f"/api/jobs/{first}/resume")
        resumed = page.until(first, lambda j: j["state"] == "done")
        assert [t["kept"] for t in resumed["times"]] == [True, False, False]
        assert page.ask("DELETE", f"/api/jobs/{first}")[0] == 200 and not (tmp_path / "w" / first).exists()
        assert page.ask("GET", f"/jobs/{first}/report")[0] == 404


def test_a_restart_loses_nothing(tmp_path):
    workspace = tmp_path / "w"
    with site(workspace) as page:
        done = page.upload(write_clip(tmp_path / "quick.mp4"))
        page.until(done, finished)
        under = page.upload(write_clip(tmp_path / "slow.mp4", b"_slow"))
        page.until(under, lambda j: j["number"] == 2 and j["state"] == "running")
        waiting = page.upload(write_clip(tmp_path / "next.mp4"))
    (workspace / under / "world" / "be_quick").touch()
    (workspace / "broken").mkdir()
    (workspace / "broken" / "job.json").write_text("{half")
    with site(workspace) as page:
        assert page.job(done)["state"] == "done"
        resumed = page.until(under, finished)
        assert resumed["state"] == "done" and resumed["times"][0]["kept"]
        after = page.until(waiting, finished)
        assert after["state"] == "done" and after["started"] >= resumed["finished"]


def test_what_a_killed_server_left_running_is_ended_and_its_job_queued_again(tmp_path):
    workspace = (tmp_path / "w").resolve()
    with site(workspace) as page:
        job_id = page.upload(write_clip(tmp_path / "a.mp4"))
        page.until(job_id, finished)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    left = subprocess.Popen([*sleeper, str(workspace / job_id)], start_new_session=True)
    stranger = subprocess.Popen(sleeper, start_new_session=True)
    try:
        path = workspace / job_id / "job.json"
        job = json.loads(path.read_text())
        for process in (stranger, left):
            path.write_text(json.dumps(job | {"state": "running", "pid": process.pid, "reconstructed": False}))
            if process is left:
                import threading

                threading.Thread(target=left.wait, daemon=True).start()  # reaps it, as init would
            assert [j.state for j in JobStore(workspace).all()] == ["queued"]
        assert left.poll() is not None and stranger.poll() is None
    finally:
        for process in (left, stranger):
            process.kill()
            process.wait()


def test_two_servers_do_not_share_a_workspace(tmp_path):
    from web.server import claimed

    with site(tmp_path / "w"), pytest.raises(ConfigError, match="another server"), claimed((tmp_path / "w").resolve()):
        pass


def test_a_lock_that_is_no_file_is_told_and_a_link_is_not_emptied(tmp_path):
    from web.server import claimed

    piped, linked = tmp_path / "piped", tmp_path / "linked"
    for folder in (piped, linked):
        folder.mkdir()
    os.mkfifo(piped / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock is not a file"), claimed(piped):
        pass
    letter = tmp_path / "letter.txt"
    letter.write_text("dear diary")
    (linked / ".lock").symlink_to(letter)
    with claimed(linked):
        assert letter.read_text() == "dear diary"


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/JOB/files/../job.json",
        "/jobs/JOB/files/..%2fjob.json",
        "/jobs/JOB/files//etc/passwd",
        "/jobs/JOB/files/argv.json",
        "/jobs/../secret/report",
        "/jobs/..%2f..%2fsecret/report",
        "/jobs/%2e%2e/report",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
    ],
)
def test_only_what_is_offered_is_sent(tmp_path, path):
    (tmp_path / "secret" / "world").mkdir(parents=True)
    (tmp_path / "secret" / "world" / "report.html").write_text("secret")
    with site(tmp_path / "w") as page:
        job_id = page.upload(write_clip(tmp_path / "a.mp4"))
        page.until(job_id, finished)
        status, body, _ = page.ask("GET", path.replace("JOB", job_id))
        assert status == 404 and b"secret" not in body


def test_foreign_sites_are_refused(tmp_path):
    with site(tmp_path / "w") as page:
        assert page.ask("GET", "/api/state", headers={"Host": "evil.example"})[0] == 403  # a name of theirs that leads here
        assert page.ask("GET", "/api/state", headers={"Host": f"localhost:{page.port}"})[0] == 200
        ours = f"http://127.0.0.1:{page.port}"
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert page.ask("POST", "/api/jobs/x/cancel", headers=headers)[0] == 403
        assert page.ask("POST", "/api/jobs/x/cancel", headers={"Origin": ours, "Sec-Fetch-Site": "same-origin"})[0] == 404
        _, body, headers = page.ask("GET", "/")
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert b"http://" not in body and b"https://" not in body
    for name in ("page.css", "page.js"):
        text = (ROOT / "web" / "static" / name).read_text()
        assert "http" not in text.replace("XMLHttpRequest", "") and "innerHTML" not in text


def test_names_are_made_harmless():
    assert clips.shown_name("../../etc/pass wd.mp4") == "pass wd.mp4"
    assert clips.shown_name("C:\\clips\\<b>ä.MP4") == "_b_ä.MP4"
    assert clips.shown_name("静止画.mp4") == "静止画.mp4" and clips.shown_name("gpj.\u202e4pm.mp4") == "gpj.4pm.mp4"
    assert clips.shown_name("a\0b\nc.mp4") == "ab c.mp4" and len(clips.shown_name("画" * 500 + ".mp4").encode()) <= 180
    assert clips.shown_name("") == clips.shown_name("..") == "clip"
    assert len(clips.shown_name("x" * 500 + ".mp4")) == 80 and clips.type_of("x" * 500 + ".MP4") == ".mp4"
    assert new_id("../Ü b.mp4").endswith("-u-b") and "/" not in new_id("a/b")
    with pytest.raises(InputError):
        clips.type_of("mp4")


def test_meshes_on_request_and_an_export_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("web.server.find_spec", lambda name: object())
    with site(tmp_path / "w") as page:
        job_id = page.upload(write_clip(tmp_path / "a.mp4"))
        before = page.until(job_id, finished)
        assert page.post(f"/api/jobs/{job_id}/exports", kind="mesh")[0] == 200
        job = page.until(job_id, lambda j: not j["extras"])
        assert job["finished"] == before["finished"] and 0 < job["spent"] == before["spent"]  # what the world took, without the mesh
        assert job["state"] == "done" and any(f["key"].endswith("mesh.glb") for f in job["files"])
        assert job["export_errors"] == {"mesh-ply": "no surface train longer"}


def test_time_left_is_a_guess_at_first_and_learnt_from_an_earlier_run(tmp_path):
    clip = write_clip(tmp_path / "a.mp4")
    slow = write_clip(tmp_path / "slow.mp4", b"_slow")
    with site(tmp_path / "w") as page:
        presets = json.loads(page.get("/api/state"))["presets"]
        assert 60 < presets["fast"]["seconds"] < presets["extensive"]["seconds"] and not presets["fast"]["measured"]
        unknown = page.upload(slow)
        job = page.until(unknown, lambda j: j["number"] == 2)
        assert 0 < job["left"] < 10 * presets["fast"]["seconds"] and 0 < job["share"] < 1
        waiting = page.job(page.upload(clip))
        assert waiting["place"] == 1 and waiting["starts_in"] > 0 and waiting["left"] > waiting["starts_in"]
        page.post(f"/api/jobs/{unknown}/cancel")
        page.until(waiting["id"], finished)
        assert (
            json.loads(page.get("/api/state"))["presets"]["fast"] | {"seconds": 30.0, "measured": True}
            == json.loads(page.get("/api/state"))["presets"]["fast"]
        )
        job = page.until(page.upload(slow), lambda j: j["number"] == 2 and j["step"] == 4)
        assert job["known"] and 10 < job["left"] <= 20  # the summary says 10 s for each of the two stages


def test_again_with_other_settings_makes_another_world_of_the_kept_clip(tmp_path):
    with site(tmp_path / "w") as page:
        first = page.upload(write_clip(tmp_path / "庭.mp4"))
        page.until(first, finished)
        assert page.post(f"/api/jobs/{first}/again", mode="best")[0] == 422 and page.post("/api/jobs/none/again")[0] == 404
        status, said = page.post(f"/api/jobs/{first}/again", mode="extensive", frames=9)
        assert status == 201
        second = page.until(said["id"], finished)
        assert second["state"] == "done" and (second["name"], second["mode"], second["frames"]) == ("庭.mp4", "extensive", 9)
        assert page.ask("DELETE", f"/api/jobs/{first}")[0] == 200
        assert (tmp_path / "w" / said["id"] / "clip.mp4").stat().st_size > 0 and page.job(said["id"])["thumbnail"]
        name = page.ask("GET", f"/jobs/{said['id']}/papers.zip")[2]["content-disposition"]
        assert "utf-8''%E5%BA%AD_report.zip" in name


def test_a_failed_run_names_its_stage_and_a_link_to_nothing_leads_back(tmp_path):
    with site(tmp_path / "w") as page:
        job = page.until(page.upload(write_clip(tmp_path / "a.mp4", b"error")), finished)
        assert job["state"] == "failed" and job["stage"] == "alignment"
        status, body, headers = page.ask("GET", "/jobs/gone/report", headers={"Accept": "text/html"})
        assert status == 404 and headers["content-type"].startswith("text/html") and b'href="../../"' in body


def test_pictures_of_a_run_on_its_way(tmp_path):
    from tests.trained_world import write_trained_world
    from web import previews

    root = tmp_path / "world"
    assert previews.available(root) == []
    write_trained_world(root)
    assert previews.available(root) == ["depth", "points"]
    points = cv2.imdecode(np.frombuffer(previews.picture(root, "points"), np.uint8), cv2.IMREAD_COLOR)
    assert points.std() > 10
    assert cv2.imdecode(np.frombuffer(previews.picture(root, "depth"), np.uint8), cv2.IMREAD_COLOR).any()
    ramp = np.tile(np.linspace(1, 4, 60, dtype=np.float32), (40, 1))
    np.savez(tmp_path / "results.npz", depth=ramp[None])
    picture = previews.depth_picture(tmp_path / "results.npz").astype(int).sum(-1)
    assert picture[:, 5].mean() > picture[:, -5].mean() + 100  # near is bright


def test_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "web", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and all(f in done.stdout for f in ("--port", "--host", "--workspace"))
    assert STAND_IN.is_file()
    file = tmp_path / "file"
    file.touch()
    bad = subprocess.run(
        [sys.executable, "-m", "web", "--workspace", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert bad.returncode == 2 and "error:" in bad.stderr and "hint:" in bad.stderr
