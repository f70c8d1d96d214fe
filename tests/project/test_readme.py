"""What README and docs tell a reader to type, and the messages they explain: they exist, parse and run."""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eval_gs.stage
import preprocess_video
import run_reconstruction
import train_gs.stage
import train_inverse_deformation.stage
import utils.exports.stage
from benchmarks.inputs import parse as parse_inputs
from configs.base import parse
from configs.evaluation import EvalConfig, ExportConfig, ViewerConfig
from configs.pipeline import PipelineConfig
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from configs.web import WebConfig
from tests.trained_world import RUN, write_trained_world
from utils.synthetic.__main__ import build_parser
from utils.viewer.app import load_world

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("usage", "how-it-works", "backends", "clips", "file-formats"))]
README = "\n".join((ROOT / page).read_text() for page in PAGES)
CONFIGS: dict[str, type] = {
    "frame_to_model_icp": FrameToModelICPConfig,
    "global_optimization": GlobalOptimizationConfig,
    "train_inverse_deformation": InverseDeformationConfig,
    "train_gs": GSConfig,
    "eval_gs": EvalConfig,
    "utils.export_checkpoint_to_ply": ExportConfig,
    "utils.view_checkpoint": ViewerConfig,
}


def parse_web(arguments: list[str]) -> WebConfig:
    import tyro

    return tyro.cli(WebConfig, args=arguments)


def parse_pytest(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="*")
    for flag in ("-m", "-k", "-n", "--dist"):
        parser.add_argument(flag)
    return parser.parse_args(arguments)


PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "run_reconstruction.py": run_reconstruction.configure,
    "video-to-world": run_reconstruction.configure,
    "docs/draw_data_flow.py": lambda arguments: arguments,
    "preprocess_video.py": preprocess_video.parse,
    "utils.synthetic": lambda arguments: build_parser().parse_args(arguments),
    "benchmarks.inputs": parse_inputs,
    "web": parse_web,
    "venv": lambda arguments: arguments,
    "pip": lambda arguments: arguments,
    "pytest": parse_pytest,
    **{name: (lambda arguments, c=config: parse(c, arguments)) for name, config in CONFIGS.items()},
}


def commands() -> list[list[str]]:
    """Every command line that starts python or the installed command, in blocks and between backticks, as words."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(part, comments=True) for text in [*lines, *inline] for part in text.split("&&")]
    return [words for words in found if words and re.fullmatch(r"python3?|video-to-world", words[0].rpartition("/")[2])]


def program(words: list[str]) -> tuple[str, list[str]]:
    """Module or script, and its arguments."""
    if words[0] == "video-to-world":
        return words[0], words[1:]
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


def exists(config: Any, path: str) -> bool:
    """Whether a dotted flag leads to a setting."""
    setting = path.replace("-", "_")
    for name in getattr(config, "ALIASES", {}).get(setting, setting).split("."):
        hints = typing.get_type_hints(config) if dataclasses.is_dataclass(config) else {}
        if name not in hints and name.removeprefix("no_") not in hints:
            return False
        config = hints.get(name, bool)
    return True


def test_every_command_parses() -> None:
    assert len(commands()) > 8
    for words in commands():
        name, arguments = program(words)
        if name == "run_reconstruction.py" and not any("input-video" in a or "root-path" in a or "frames-dir" in a for a in arguments):
            arguments = [*arguments, "--config.root-path", "S"]  # a mention of one flag
        assert name in PROGRAMS, f"README calls {name}, of which this test knows nothing"
        try:
            PROGRAMS[name](arguments)
        except SystemExit as ended:
            assert not ended.code, shlex.join(words)


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n not in ("venv", "pip", "pytest", "video-to-world", "docs/draw_data_flow.py")])
def test_every_program_explains_itself(name: str) -> None:
    call = [name] if name.endswith(".py") else ["-m", name]
    done = subprocess.run([sys.executable, *call, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr


def test_every_flag_is_a_setting() -> None:
    """Flags that are only mentioned, whole or, in the table of stages, without the common beginning."""
    known = [PipelineConfig, *CONFIGS.values()]
    flags = set(re.findall(r"--config\.([a-z0-9.-]*[a-z0-9])", README))
    assert len(flags) > 10
    for flag in flags:
        assert any(exists(config, flag) for config in known), f"no command has --config.{flag}"
    stages = 0
    for row in re.findall(r"^\|.*\|$", README, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        named = re.match(r"`python -m ([\w.]+) --config", cells[1]) if len(cells) == 5 else None
        for flag in re.findall(r"`([a-z0-9.-]+)`", cells[4]) if named else ():
            assert exists(CONFIGS[named[1]], flag), f"{named[1]} has no --config.{flag}"
            stages += 1
    assert stages >= 8


def test_extras_and_files_that_are_named_exist() -> None:
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    for names in re.findall(r"\"?\.\[([a-z0-9,]+)\]", README):
        for name in names.split(","):
            assert re.search(rf"^{name} = ", extras, re.MULTILINE), f"there is no extra {name}"
    for path in re.findall(r"-c (\S+\.txt)", README):
        assert (ROOT / path).is_file(), path


def test_explained_messages_are_those_of_the_program() -> None:
    """Each message of the troubleshooting table, up to its gaps, is somewhere in the program's text."""
    folders = [*ROOT.glob("utils"), *ROOT.glob("configs"), *ROOT.glob("web"), *(ROOT / name for name in ("eval_gs", "train_gs"))]
    folders += [ROOT / name for name in ("frame_to_model_icp", "global_optimization", "train_inverse_deformation")]
    text = "".join(path.read_text() for path in [*ROOT.glob("*.py"), *(p for folder in folders for p in folder.rglob("*.py"))])
    table = README.split("## When something goes wrong")[1].split("\n## ")[0]
    messages = [m for row in table.splitlines() if row.startswith("| `") for m in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(messages) >= 5
    for message in messages:
        parts = [part.strip(" :") for part in message.split("...") if part.strip(" :")]
        parts = [part for part in parts if "No space left" not in part]  # the operating system's words
        assert any(part in text for part in parts), f"no error says '{message}'"


def test_commands_from_the_inverse_deformation_on_run_on_a_tiny_scene(tmp_path: Path) -> None:
    """With S and R filled in and the work cut short; the stages before are run by their own tests, the viewer in its browser test."""
    layout = write_trained_world(tmp_path)
    shorter: dict[str, dict[str, Any]] = {
        "train_inverse_deformation": {"validation_points": 50},
        "train_gs": {"num_iters": 2, "target_num_points": 200, "sh_degree": 0},
        "eval_gs": {"max_frames": 2, "render_input_poses": False, "render_optimised_poses": False},
        "utils.export_checkpoint_to_ply": {},
        "utils.view_checkpoint": {"device": "cpu"},
    }
    runs: dict[str, Callable[[Any], Any]] = {
        "train_inverse_deformation": train_inverse_deformation.stage.run,
        "train_gs": train_gs.stage.run,
        "eval_gs": eval_gs.stage.run,
        "utils.export_checkpoint_to_ply": utils.exports.stage.run,
        "utils.view_checkpoint": load_world,
    }
    for name, run in runs.items():
        words = next(words for words in commands() if program(words)[0] == name and "S" in words)
        arguments = [{"S": str(tmp_path), "R": RUN}.get(word, word) for word in program(words)[1]]
        config = replace(PROGRAMS[name](arguments), **shorter[name])
        assert run(config)
    assert (layout.gs("3dgs") / "splats_3dgs.ply").is_file() and (tmp_path / "report.html").is_file()
