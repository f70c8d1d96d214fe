"""Whole batches by real workers whose stages only write manifests: resume, kills, bad scenes, interrupts, stores, the page."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from batch import cli
from batch.engine import LocalEngine
from batch.tasks import Resources
from utils.errors import ArtifactError, ConfigError, V2WError
from web.jobs import JobStore
from web.processes import Commands
from web.runner import pipeline_command

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = (sys.executable, str(ROOT / "tests" / "batch_stand_in.py"))
STAGES = ["geometry", "alignment", "joint alignment", "inverse deformation", "3dgs splats", "3dgs evaluation"]


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """A folder of clips, and a batch of it with two CPUs; returns what came of each scene, whether or not that is an error."""
    monkeypatch.setattr(cli, "LocalEngine", partial(LocalEngine, command=STAND_IN))
    monkeypatch.setattr(cli, "this_machine", lambda cpus, device: Resources(2, 0, 8))
    monkeypatch.chdir(tmp_path)
    scenes: list = []
    over = cli._work
    monkeypatch.setattr(cli, "_work", lambda found, *rest: scenes.extend(found) or over(found, *rest))

    def run(*flags: str, clips: dict[str, str]) -> dict:
        (tmp_path / "clips").mkdir(exist_ok=True)
        for name, says in clips.items():
            (tmp_path / "clips" / f"{name}.mp4").write_text(f"clip_{says}")
        scenes.clear()
        try:
            cli.main(["clips", "--device", "cpu", *flags])
        except V2WError as error:
            assert "failed" in error.message, error.message
        return {scene.name: scene for scene in scenes}

    return run


def ran(tmp_path: Path, name: str) -> Counter:
    """How often each stage of a scene ran."""
    return Counter(line.rsplit(" ", 2)[0] for line in (tmp_path / "clips" / f"{name}.log").read_text().splitlines())


def test_one_bad_scene_and_one_that_is_killed_do_not_stop_the_others(batch, tmp_path, capsys):
    clips = {"a": "fine", "b": "bad", "c": "killed", "d": "fault", "e": "fine"}
    scenes = batch("--retries", "2", clips=clips)
    assert {k: s.state for k, s in scenes.items()} == {"a": "done", "b": "failed", "c": "done", "d": "failed", "e": "done"}
    assert ran(tmp_path, "a") == Counter(STAGES) and ran(tmp_path, "b") == Counter(STAGES[:2])
    assert ran(tmp_path, "c") == Counter(STAGES) + Counter({"alignment": 2})
    assert ran(tmp_path, "d") == Counter(STAGES[:2]) + Counter({"alignment": 2})
    told = capsys.readouterr()
    rows = {line.split()[0]: line for line in told.out.splitlines()}
    assert "24.50 dB" in rows["a"] and "2 stages tried again" in rows["c"]
    assert "alignment: the camera hardly moves; take a clip in which it travels" in rows["b"]
    assert "RuntimeError: a bug (tried 3 times)" in rows["d"] and "log.txt" in rows["d"]
    page = (tmp_path / "worlds" / "index.html").read_text()
    assert 'href="a/report.html"' in page and 'src="a/film.mp4"' in page and "24.50 dB" in page and "the camera hardly moves" in page


def test_what_is_finished_is_not_even_looked_at_again(batch, tmp_path):
    clips = {"a": "fine", "b": "bad"}
    batch(clips=clips)
    before = ran(tmp_path, "a")
    scenes = batch(clips={"b": "mended"})
    assert scenes["a"].state == "kept" and scenes["a"].figures["psnr"] == 24.5 and ran(tmp_path, "a") == before
    assert scenes["b"].state == "done" and "geometry" not in scenes["b"].took  # its first stage was found done
    (tmp_path / "clips" / "a.mp4").write_text("clip_other")  # another clip of the same name
    assert batch(clips={})["a"].state == "done"
    scenes = batch("--", "--gs.num-iters", "77", clips={})  # other settings
    assert {s.state for s in scenes.values()} == {"done"}
    made = next((tmp_path / "worlds" / "a").glob("*/gs_3dgs"))
    assert {s.state for s in batch("--", "--gs.num-iters", "77", clips={}).values()} == {"kept"}
    (made / "manifest.json").unlink()  # a result is gone
    assert batch("--", "--gs.num-iters", "77", clips={})["a"].state == "done"


def test_a_store_takes_the_place_of_the_folder(batch, tmp_path):
    """`local://` is a folder behind fsspec: fetched and put back by processes that share nothing else."""
    store = tmp_path / "store"
    flags = ("--out", f"local://{store}", "--scratch", str(tmp_path / "scratch"))
    scenes = batch(*flags, clips={"a": "fine", "c": "killed"})
    assert {s.state for s in scenes.values()} == {"done"}
    assert len(list((store / "a").rglob("manifest.json"))) == 6 and (store / "index.html").is_file()
    assert not list(store.rglob("*.lock"))
    subprocess.run(["rm", "-r", str(tmp_path / "scratch")], check=True)  # another machine
    before = ran(tmp_path, "a")
    assert {s.state for s in batch(*flags, clips={}).values()} == {"kept"} and ran(tmp_path, "a") == before


def test_settings_of_a_scene_win_and_wrong_ones_fail_it_alone(batch, tmp_path, capsys):
    batch(clips={"a": "fine", "b": "fine"})
    rows = [
        {"source": "clips/a.mp4", "settings": {"gs.num_iters": 77}},
        {"source": "clips/b.mp4", "settings": {"gs.num_iterations": 77}},
        {"source": "clips/none.mp4"},
        {"source": "clips/a.mp4", "name": "c", "settings": {"root_path": "elsewhere"}},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(V2WError, match="3 of 4 scenes failed: b, none, c"):
        cli.main(["list.json", "--device", "cpu", "--out", "other", "--", "--gs.num-iters", "55", "--gs.target-num-points", "900"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "num-iterations" in rows["b"] and "is not there" in rows["none"] and "root-path" in rows["c"]
    job = json.loads((tmp_path / "other" / "a" / "job.json").read_text())
    assert job["words"][job["words"].index("--config.gs.target-num-points") + 1] == "900"
    assert [job["words"][i + 1] for i, w in enumerate(job["words"]) if w == "--config.gs.num-iters"][-1] == "77"


def test_threads_follow_the_machine_and_the_number_of_scenes(batch, tmp_path):
    batch(clips={"a": "fine"})
    assert {line.rsplit(" ", 2)[1] for line in (tmp_path / "clips" / "a.log").read_text().splitlines()} == {"2"}
    batch("--out", "many", clips={"a": "fine", "b": "fine", "c": "fine"})
    assert {line.rsplit(" ", 2)[1] for line in (tmp_path / "clips" / "b.log").read_text().splitlines()} == {"1"}


def test_a_dry_run_does_nothing(batch, tmp_path, capsys):
    batch("--dry-run", clips={"a": "fine", "b": "fine"})
    told = capsys.readouterr().out
    assert "a: 6 stages" in told and "--config.input-video" in told and re.search(r"about .* in all", told)
    assert not (tmp_path / "worlds").exists() and not (tmp_path / "clips" / "a.log").exists()


def test_the_web_page_takes_a_batch_as_a_workspace(batch, tmp_path):
    batch(clips={"a": "fine", "b": "bad"})
    store = JobStore(tmp_path / "worlds")
    jobs = {job.id: job for job in store.all()}
    assert {k: j.state for k, j in jobs.items()} == {"a": "done", "b": "failed"}
    assert store.scene_root("a") == tmp_path / "worlds" / "a" and jobs["b"].hint == "take a clip in which it travels"
    words = pipeline_command(Commands(pipeline=("run",)), store, jobs["b"])
    assert words[words.index("--config.root-path") + 1] == str(tmp_path / "worlds" / "b")
    assert words[words.index("--config.input-video") + 1] == str(tmp_path / "clips" / "b.mp4")


@pytest.mark.parametrize("name", ["index.html", "batch.json", "a/batch.json"])
def test_files_of_the_users_are_not_replaced(batch, tmp_path, name):
    mine = tmp_path / "worlds" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_text("clip_fine")
    with pytest.raises(ArtifactError, match=r"was not made by this program"):
        cli.main(["clips", "--device", "cpu"])
    assert mine.read_text() == '{"mine": 1}' and not (tmp_path / "clips" / "a.log").exists()


@pytest.mark.parametrize("name", ["job.json", "thumbnail.jpg"])
def test_what_the_web_page_would_want_leaves_files_of_the_users_alone(batch, tmp_path, name):
    mine = tmp_path / "worlds" / "a" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    assert batch(clips={"a": "fine"})["a"].state == "done"
    assert mine.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("number", "engine"), [(signal.SIGINT, "local"), (signal.SIGTERM, "local"), (signal.SIGINT, "ray"), (signal.SIGTERM, "ray")]
)
def test_an_interrupt_ends_stages_and_workers_and_the_same_command_goes_on(tmp_path, number, engine):
    """Ctrl-C reaches the whole process group, a scheduler's SIGTERM the batch alone."""
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra `cluster`")
    (tmp_path / "clips").mkdir()
    for name, says in {"a": "slow", "b": "slow", "c": "fine"}.items():
        (tmp_path / "clips" / f"{name}.mp4").write_text(f"clip_{says}")
    code = (
        "import batch.cli as c, functools, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"c.LocalEngine = functools.partial(c.LocalEngine, command={STAND_IN!r})\n"
        "import batch.engine_ray as r\n"
        f"r.RayEngine = functools.partial(r.RayEngine, command={STAND_IN!r})\n"
        "c.this_machine = lambda cpus, device: c.Resources(2, 0, 8)\n"
        "c.entry()\n"
    )
    words = [sys.executable, "-c", code, "clips", "--device", "cpu", "--engine", engine]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = subprocess.Popen(words, start_new_session=True, **options)
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(
        (tmp_path / "clips" / f"{n}.log").exists() and "alignment" in (tmp_path / "clips" / f"{n}.log").read_text() for n in "ab"
    ):
        time.sleep(0.05)
    os.killpg(first.pid, number) if number == signal.SIGINT else os.kill(first.pid, number)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and "not finished" in said and "Traceback" not in said
    assert not _children_in(tmp_path)
    (tmp_path / "clips" / "quick").touch()
    second = subprocess.run(words, timeout=120, check=False, **options)
    assert second.returncode == 0, second.stdout
    assert ran(tmp_path, "a")["geometry"] == 2 and (tmp_path / "worlds" / "index.html").is_file()  # the second time it was found done


def _children_in(folder: Path) -> list[int]:
    """Processes that still work on scenes of this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(path)) == folder and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_worker_that_is_killed_takes_its_stage_with_it(tmp_path):
    (tmp_path / "a.mp4").write_text("clip_slow")
    engine = LocalEngine(Resources(1, 0, 8), STAND_IN)
    from batch.tasks import StageTask

    words = ("--config.input-video", str(tmp_path / "a.mp4"), "--config.device", "cpu")
    engine.submit(StageTask("a", words, 2, 6, "alignment", Resources(1, 0, 1), str(tmp_path / "worlds")))
    until = time.monotonic() + 60
    while not (tmp_path / "a.log").exists() and time.monotonic() < until:
        time.sleep(0.05)
    worker = engine.busy()["a"]
    children = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == worker.pid]
    assert children
    worker.kill()
    [(_, outcome)] = engine.wait(30)
    assert outcome.end == "lost" and "worker" in outcome.error
    for child in children:
        while _parent(Path(f"/proc/{child}/stat")) is not None and time.monotonic() < until:
            time.sleep(0.02)
        assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
    engine.stop()


def _parent(stat: Path) -> int | None:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def test_an_engine_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(V2WError, match="needs the package ray") as caught:
        cli.main([str(tmp_path), "--engine", "ray", "--out", str(tmp_path / "w")])
    assert "--engine local" in caught.value.hint
    with pytest.raises(ConfigError, match="is for the engine ray"):
        cli.main([str(tmp_path), "--engine", "local", "--address", "auto"])


def test_the_command_explains_itself_without_ray():
    code = "import sys, batch.cli; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    done = subprocess.run([sys.executable, "-m", "batch", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--stage-cpus" in done.stdout and "SCENES" in done.stdout
