"""What visitors, full disks and ended terminals must not do to the page; each is a finding of a review, with how to trigger it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the web extra is not installed")
pytest.importorskip("uvicorn", reason="the web extra is not installed")

from tests.browser import until
from tests.web_attacks import attacks, write_attack
from tests.web_site import QUICK, Client, site, write_clip
from utils.errors import InputError
from utils.serving.access import Access
from web import clips, jobs, uploads
from web.jobs import ConflictError, Job, JobStore, NotFoundError
from web.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = {"names with a superscript digit", "names of 5000 digits"}


def finished(job):
    return job["state"] in ("done", "failed", "cancelled") and not job["extras"]


def new_job(store: JobStore, name: str = "a", **more) -> Job:
    folder = store.workspace / f".upload-{name}"
    folder.mkdir()
    return store.add(Job(id=name, name=f"{name}.mp4", source="clip.mp4", **more), folder)


# ------------------------------------------------------------------------------------------------ uploads


@pytest.mark.parametrize("words", list(attacks()))
def test_a_small_file_that_asks_for_much_is_refused_within_limits(tmp_path, words):
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "in").mkdir()
    upload = write_attack(tmp_path / "in", attacks()[words]())
    command = [sys.executable, "-m", "web.check_upload", str(upload), upload.name, str(folder), str(1 << 30)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "40000000"})
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    said = json.loads(out.splitlines()[-1])
    assert status == 0 and ("error" in said) != (words in HARMLESS), said
    assert usage.ru_maxrss < 2_500_000, f"{usage.ru_maxrss / 1e6:.1f} GB"  # kB; the libraries alone take 0.2 GB
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 1 << 30


def test_a_check_that_dies_or_hangs_is_an_upload_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "_SECONDS_TO_CHECK", 0.5)
    for script in ("import os; os.abort()", "import time; time.sleep(60)", "print('no json')"):
        with pytest.raises(InputError, match="too much memory or time"):
            clips.accept(replace(QUICK, check=(sys.executable, "-c", script)), tmp_path / "a.mp4", "a.mp4", tmp_path, 0)


def test_no_more_wait_than_may_whoever_comes_at_once(tmp_path):
    clip, slow = write_clip(tmp_path / "a.mp4"), write_clip(tmp_path / "slow.mp4", b"_slow")
    with site(tmp_path / "w", max_queue=1) as page:
        page.until(page.upload(slow), lambda j: j["state"] == "running")
        done = finished_job(tmp_path / "w", page)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(page.post("/api/jobs", clip.read_bytes(), name="a.mp4")[0])) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [201, *[429] * 5]
        assert page.post(f"/api/jobs/{done}/resume")[0] == 409
        waiting = next(j["id"] for j in json.loads(page.get("/api/state"))["jobs"] if j["state"] == "queued")
        page.post(f"/api/jobs/{waiting}/cancel")
        page.upload(clip)
        assert page.post(f"/api/jobs/{waiting}/resume")[0] == 429  # going on, making again and further files wait too
        assert page.post(f"/api/jobs/{waiting}/again")[0] == 429


def finished_job(workspace: Path, page: Client) -> str:
    return next(j["id"] for j in json.loads(page.get("/api/state"))["jobs"])


def test_only_some_uploads_at_once_and_none_that_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_IDLE_SECONDS", 1.0)
    with site(tmp_path / "w") as page:
        slow = []
        for _ in range(uploads.MOST_UPLOADS):
            connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
            connection.putrequest("POST", "/api/jobs?name=a.mp4")
            connection.putheader("Content-Length", "1000")
            connection.endheaders()
            connection.send(b"x")
            slow.append(connection)
        until(lambda: page.post("/api/jobs", b"x", name="a.mp4")[0] == 429, 10)
        assert [connection.getresponse().status for connection in slow] == [408] * len(slow)
        assert page.post("/api/jobs", write_clip(tmp_path / "a.mp4").read_bytes(), name="a.mp4")[0] == 201
    assert not list((tmp_path / "w").glob(".upload*"))


def test_the_disk_keeps_some_space(tmp_path):
    free = shutil.disk_usage(tmp_path).free // 1_000_000
    clip = write_clip(tmp_path / "a.mp4").read_bytes()
    with site(tmp_path / "w", min_free_mb=free + 10_000) as page:
        status, said = page.post("/api/jobs", clip, name="a.mp4")
        assert status == 507 and "MB left" in said["error"]


@pytest.mark.parametrize("asked", [{"frames": "2000", "resolution": "2016"}, {"frames": "9" * 5000}, {"resolution": "1²"}])
def test_settings_that_no_machine_can_hold_are_refused_before_the_upload(tmp_path, asked):
    with site(tmp_path / "w") as page:
        assert page.post("/api/jobs", b"x", name="a.mp4", **asked)[0] == 422


# ------------------------------------------------------------------------------------------------ runner and store


class FullDisk:
    """Writes of `job.json` that fail while it is on."""

    def __init__(self, monkeypatch):
        self.on, self.refused, write = False, 0, jobs.write_job

        def refusing(path, job):
            if self.on:
                self.refused += 1
                raise OSError(28, "No space left on device")
            write(path, job)

        monkeypatch.setattr(jobs, "write_job", refusing)
        monkeypatch.setattr("web.runner._SECONDS_BETWEEN_TRIES", 0.05)


def test_a_full_disk_stops_nothing_for_good(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch)
    clip = write_clip(tmp_path / "slow.mp4", b"_slow")
    with site(tmp_path / "w") as page:
        first = page.upload(clip)
        page.until(first, lambda j: j["number"] == 2)
        second = page.upload(write_clip(tmp_path / "a.mp4"))
        disk.on = True
        assert page.post("/api/jobs", clip.read_bytes(), name="b.mp4")[0] == 507  # told so, and then not done all the same
        assert page.post(f"/api/jobs/{second}/cancel")[0] == 507 and page.job(second)["state"] == "queued"
        assert {j["id"] for j in json.loads(page.get("/api/state"))["jobs"]} == {first, second}
        os.killpg(int(json.loads((tmp_path / "w" / first / "job.json").read_text())["pid"]), signal.SIGKILL)
        until(lambda: "cannot be written" in json.loads(page.get("/api/state"))["trouble"], 30)
        disk.on = False
        assert page.until(first, finished)["state"] == "failed"
        assert page.until(second, finished)["state"] == "done"
        assert json.loads(page.get("/api/state"))["trouble"] == ""


def test_deleting_and_going_on_at_the_same_time_leaves_one_of_both(tmp_path):
    store = JobStore(tmp_path)
    runner = Runner(store, QUICK)
    runner.start()
    try:
        for turn in range(30):
            job = new_job(store, f"j{turn}", state="failed")
            said: list[str] = []

            def go_on(job=job, said=said):
                try:
                    store.enqueue(job.id, ("failed", "cancelled"), "", state="queued")
                    runner.wake()
                    said.append("resumed")
                except NotFoundError:
                    said.append("gone")

            def delete(job=job, said=said):
                try:
                    jobs.discard(store.remove(job.id))
                    said.append("deleted")
                except ConflictError:
                    said.append("refused")

            threads = [threading.Thread(target=work) for work in ((go_on, delete) if turn % 2 else (delete, go_on))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(said) in ({"resumed", "refused"}, {"deleted", "gone"}), said
        assert all(thread.is_alive() for thread in runner._threads)
    finally:
        runner.stop()


def test_a_folder_deleted_by_hand_is_a_run_that_is_gone(tmp_path):
    with site(tmp_path / "w") as page:
        job = page.upload(write_clip(tmp_path / "slow.mp4", b"_slow"))
        page.until(job, lambda j: j["number"] == 2)
        until(lambda: shutil.rmtree(tmp_path / "w" / job) or True, 10)  # the run may be writing into it
        page.ask("POST", f"/api/jobs/{job}/cancel")
        until(lambda: not json.loads(page.get("/api/state"))["jobs"], 30)
        assert page.until(page.upload(write_clip(tmp_path / "a.mp4")), finished)["state"] == "done"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"id": "a", "name": "a", "source": "a", "pid": "\\u0000"}',
        '{"id": "a"}',
        "null",
        "\0\0",
        '{"id": "a", "name": 1, "source": "a"}',
    ],
)
def test_a_job_file_that_is_damaged_is_left_out(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "job.json").write_text(text)
    (tmp_path / "a" / "viewer.pid").write_bytes(b"\0\0\0")  # of an earlier version
    assert JobStore(tmp_path).all() == []


def test_cancelling_a_mesh_leaves_the_world_done_and_a_mesh_does_not_wait_for_other_worlds(tmp_path, monkeypatch):
    monkeypatch.setattr("web.server.find_spec", lambda name: object())
    sleeper = replace(
        QUICK, export=(sys.executable, "-c", "import sys, time; time.sleep(60 if 'mesh-glb' in sys.argv else 0); sys.exit(1)")
    )
    with site(tmp_path / "w", sleeper) as page:
        done = page.upload(write_clip(tmp_path / "a.mp4"))
        before = page.until(done, finished)
        page.until(page.upload(write_clip(tmp_path / "slow.mp4", b"_slow")), lambda j: j["state"] == "running")
        assert page.post(f"/api/jobs/{done}/exports", kind="mesh")[0] == 200
        page.until(done, lambda j: j["extras"] == "running", 20)
        assert page.post(f"/api/jobs/{done}/exports", kind="mesh")[0] == 409 and page.ask("DELETE", f"/api/jobs/{done}")[0] == 409
        page.post(f"/api/jobs/{done}/cancel")
        after = page.until(done, lambda j: not j["extras"])
        assert after["state"] == "done" and "mesh" not in after["wanted"] and after["finished"] == before["finished"]
        assert page.post(f"/api/jobs/{done}/exports", kind="../x")[0] == 422


# ------------------------------------------------------------------------------------------------ children

SERVE = """
import sys
from pathlib import Path
import web.server
from configs.web import WebConfig
from tests.web_site import QUICK
web.server.Commands = lambda: QUICK
web.server.serve(WebConfig(workspace=Path(sys.argv[1]), port=int(sys.argv[2]), min_free_mb=0))
"""


def _hangs_up() -> None:
    """A closed terminal ends the server, also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_what_it_started_ends_with_the_server_however_that_ends(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "w"), str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=_hangs_up,  # noqa: PLW1509
    )
    try:
        assert b"worlds are kept" in server.stdout.readline() and b"open http://localhost" in server.stdout.readline()
        page = Client(port)
        job = until(lambda: page.upload(write_clip(tmp_path / "slow.mp4", b"_slow")), 30)
        page.until(job, lambda j: j["number"] == 2)
        mark = str(tmp_path / "w" / job).encode()
        assert len(running_with(mark)) == 2  # the keeper and the pipeline
        server.send_signal(number)
        server.wait(30)
        until(lambda: not running_with(mark), 30)
    finally:
        server.kill()
        server.wait()
    assert [j.state for j in JobStore(tmp_path / "w").all()] == ["queued"]


def running_with(mark: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# ------------------------------------------------------------------------------------------------ doors


def test_a_page_for_others_asks_for_its_token(tmp_path):
    access = Access(secret="0123456789abcdef")
    with site(tmp_path / "w", access=access) as page:
        assert page.ask("GET", "/api/state")[0] == page.ask("GET", "/")[0] == page.ask("POST", "/api/jobs?name=a.mp4", b"x")[0] == 401
        status, _, headers = page.ask("GET", "/?token=0123456789abcdef")
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
        assert status == 303 and page.ask("GET", "/api/state", headers=cookie)[0] == 200


def test_foreign_sites_reach_nothing(tmp_path):
    with site(tmp_path / "w") as page:
        foreign = {"Origin": "https://evil.example"}
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        assert page.ask("GET", "/", headers=foreign | upgrade)[0] != 101
        assert page.ask("DELETE", "/api/jobs/x", headers=foreign | {"Host": "evil.example"})[0] == 403
        assert page.ask("GET", "/", headers={"Host": "["})[0] == 400
