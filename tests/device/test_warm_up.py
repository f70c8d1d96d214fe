"""Compiling ahead: the made scene goes through every stage, and a machine is warmed up once."""

import subprocess
from pathlib import Path

import pytest

from configs.stage3_gs import GSConfig
from video_to_world import warm_up

pytestmark = pytest.mark.slow


def test_every_stage_runs_on_the_made_scene(tmp_path: Path) -> None:
    warm_up.compile_part("alignment", tmp_path / "a", GSConfig())
    warm_up.compile_part("splats", tmp_path / "b", GSConfig(renderer="3dgs"))
    assert next((tmp_path / "a").glob("*/after_global_optimization/manifest.json")).is_file()
    assert next((tmp_path / "b").glob("*/gs_3dgs/splats_3dgs.ply")).is_file()


def test_only_what_is_not_compiled_yet_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    commands = []

    class Process:
        def __init__(self, command: list[str], **_: object) -> None:
            commands.append(command[-2:])

        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    with warm_up.warming_up(("2dgs", "3dgs")):
        pass
    assert sorted(commands) == [["alignment", "2dgs"], ["splats", "2dgs"], ["splats", "3dgs"]]
    commands.clear()
    for renderer in ("2dgs", "3dgs"):
        warm_up.marker(renderer).touch()
    with warm_up.warming_up(("2dgs", "3dgs")):
        pass
    assert not commands
