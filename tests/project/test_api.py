"""`video_to_world` from Python: every example of docs/python.md runs, on a clip of a box whose geometry is made up."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import run_reconstruction
import video_to_world
from configs.pipeline import Budget
from tests.box_world import make_box_world
from utils.errors import MissingArtifactError
from utils.geometry_backend import GEOMETRY, ClipFrames
from utils.scene import media
from utils.types import CameraSet, Reporter, Scene

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SIZE = 8, (56, 84)


class BoxGeometry:
    """Knows the depth and poses of the box's clip, which disagree as estimated ones do."""

    def __init__(self, **settings: object):
        pass

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        box = make_box_world(FRAMES, SIZE).scene
        rows = np.asarray(frames.chosen)
        cameras = CameraSet(c2w=box.cameras.c2w[rows], K=box.cameras.K[rows], size=SIZE, frame_ids=np.arange(len(rows)))
        return Scene(cameras=cameras, images=box.images[rows], depth=box.depth[rows], confidence=box.confidence[rows])


def test_examples(tmp_path, monkeypatch, capsys):
    media.write_mp4(tmp_path / "clip.mp4", make_box_world(FRAMES, SIZE).scene.images, 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "box_geometry", sys.modules[__name__])
    monkeypatch.setitem(GEOMETRY._entries, "sfm", "box_geometry:BoxGeometry")
    few = Budget(frames=FRAMES, resolution=84, splats=2000, iterations=60, sh_degree=0)
    monkeypatch.setattr("configs.pipeline.BUDGETS", dict.fromkeys(run_reconstruction.BUDGETS, few))
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(examples) >= 5
    names: dict = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)  # a name that an example needs was made by one before it
    told = capsys.readouterr().out
    assert f"gs_3dgs {names['world'].metrics['heldout']['psnr']} dB" in told
    assert names["image"].shape == (*SIZE, 3) and names["image"].mean() > 20
    assert (tmp_path / "world.spz").is_file() and (tmp_path / "clip" / "report.html").is_file()
    assert np.nanmedian(np.abs(names["points"] - names["alignment"].cloud.points.mean(0))) < 3
    assert names["folder"].name == "after_non_rigid_icp" and names["folder"].parent.name.endswith("_four")
    assert names["result"].aligned.all()
    assert video_to_world.load_alignment(names["folder"].parent).aligned.shape == (4,)


def test_what_is_not_there_is_said(tmp_path):
    for load in (video_to_world.load_scene, video_to_world.load_alignment, video_to_world.load_world):
        with pytest.raises(MissingArtifactError) as caught:
            load(tmp_path)
        assert caught.value.hint


def test_importing_it_is_light_and_tells_the_version():
    code = "import sys, video_to_world; print(video_to_world.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [video_to_world.__version__, "False"]
    done = subprocess.run([sys.executable, "-m", "video_to_world", "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"video_to_world {video_to_world.__version__}\n"


def test_sources_without_a_flag(tmp_path):
    configure = run_reconstruction.configure
    (tmp_path / "frames").mkdir()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "scene" / "exports" / "npz").mkdir(parents=True)
    assert configure(["a.mp4", "b.mp4", "--mode", "extensive"]).input_video == (Path("a.mp4"), Path("b.mp4"))
    assert configure([str(tmp_path / "clips")]).input_video == (tmp_path / "clips",)
    assert configure([str(tmp_path / "frames")]).frames_dir == tmp_path / "frames"
    assert configure([str(tmp_path / "scene")]).root_path == tmp_path / "scene"
    short = configure(["a.mp4", "--gs.num-iters", "7", "--no-precompile", "--preprocess-max-frames=9"])
    assert short == configure(
        "--config.input-video a.mp4 --config.gs.num-iters 7 --config.no-precompile --config.stage0.max-frames 9".split()
    )


def test_help_is_short_and_has_the_rest_behind_it(capsys):
    run_reconstruction.main(["--help"])
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 100 and "--help-all" in short and "Most frames that become the scene" in short
    with pytest.raises(SystemExit) as ended:
        run_reconstruction.main(["--help-all"])
    everything = capsys.readouterr().out
    assert ended.value.code == 0 and len(everything) > 5 * len(short)
    for name in run_reconstruction.HELP:
        assert name.rpartition(".")[2].replace("_", "-") in everything
