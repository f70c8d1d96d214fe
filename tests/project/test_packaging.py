"""Dockerfile, Conda environment and pinned versions against pyproject.toml: what they name is there and belongs together."""

import re
import shlex
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from configs.base import parse
from configs.evaluation import ViewerConfig
from run_reconstruction import configure

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DOCKER = (ROOT / "Dockerfile").read_text()
CONDA = (ROOT / "environment.yml").read_text()
# The Python that the named base images bring.
PYTHON_OF = {"python:3.11-slim-bookworm": "3.11", "nvidia/cuda:13.0.1-runtime-ubuntu24.04": "3.12"}


def pins() -> dict[str, Version]:
    found = {}
    for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement, _, marker = line.partition(";")
            assert Marker(marker.strip()).evaluate({"python_version": "3.11"})
            name, version = requirement.strip().split("==")
            found[re.sub(r"[-_.]+", "-", name).lower()] = Version(version)
    return found


def requirements(extras: set[str]) -> list[Requirement]:
    """Of the project with these extras, those that extras draw in included."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    pending, done = list(extras), set()
    while pending:
        extra = pending.pop()
        if extra in done:
            continue
        done.add(extra)
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == PROJECT["name"]:
                pending += requirement.extras
            else:
                found.append(requirement)
    return found


def docker_arguments() -> list[dict[str, str]]:
    """The build arguments of the default build and of every build in the comments."""
    defaults = {k: v.strip('"') for k, v in re.findall(r"^ARG (\w+)=(.*)$", DOCKER, re.MULTILINE)}
    builds = re.findall(r"^# \w+:\s+docker build (.*)$", DOCKER, re.MULTILINE)
    given = [dict(word.split("=", 1) for word in shlex.split(line) if re.match(r"[A-Z]+=", word)) for line in builds]
    assert len(given) == 2
    return [defaults | more for more in given]


@pytest.mark.parametrize("build", docker_arguments(), ids=["cpu", "cuda"])
def test_docker_builds_install_what_there_is(build: dict[str, str]) -> None:
    assert set(build) == {"BASE", "EXTRAS", "CONSTRAINTS"}  # every --build-arg is declared
    assert set(build["EXTRAS"].split(",")) <= set(EXTRAS)
    assert Version(PYTHON_OF[build["BASE"]]) in SpecifierSet(PROJECT["requires-python"])
    if build["CONSTRAINTS"]:
        assert (ROOT / build["CONSTRAINTS"].removeprefix("-c ")).is_file()
        assert PYTHON_OF[build["BASE"]] == "3.11"  # what the pins are for
    installed = re.search(r"apt-get install -y --no-install-recommends (.*) \\", DOCKER)
    assert installed is not None
    assert {"python3", "python3-venv", "gcc", "python3-dev"} <= set(installed[1].split())  # Triton needs the last two


def test_docker_commands_are_ones_that_exist() -> None:
    folder = re.search(r"^WORKDIR (.*)$", DOCKER, re.MULTILINE)
    entry = re.search(r'^ENTRYPOINT \["python", "(.*)"\]$', DOCKER, re.MULTILINE)
    assert folder is not None and entry is not None
    assert entry[1] == f"{folder[1]}/run_reconstruction.py" and (ROOT / "run_reconstruction.py").is_file()
    runs = [shlex.split(line) for line in re.findall(r"docker run (.*?)(?: {3}.*)?$", DOCKER, re.MULTILINE)]
    assert len(runs) == 2
    configure(runs[0][runs[0].index("video_to_world") + 1 :])
    words = runs[1][runs[1].index("video_to_world") + 1 :]
    assert words[:2] == ["-m", "utils.view_checkpoint"]
    viewer = parse(ViewerConfig, words[2:], prog="view")
    assert f"EXPOSE {viewer.port}\n" in DOCKER and f"{viewer.port}:{viewer.port}" in runs[1] and viewer.host == "0.0.0.0"


def test_the_image_takes_no_environments_caches_or_results() -> None:
    left_out = set((ROOT / ".dockerignore").read_text().split())
    for ignored in ("__pycache__", ".venv", "venv", "worlds", "runs", "outputs", "demo_world"):
        assert {ignored, f"**/{ignored}"} & left_out, ignored
    for needed in ("constraints", "configs", "utils", "web", "README.md", "LICENSE", "pyproject.toml"):
        assert needed not in left_out


def test_the_conda_environment_belongs_to_the_project() -> None:
    python, constraint, project = (re.search(p, CONDA) for p in (r"- python=(\S+)", r"- -c (\S+)", r"- -e \.\[(.*)\]"))
    assert python is not None and constraint is not None and project is not None
    assert Version(python[1]) in SpecifierSet(PROJECT["requires-python"]) and python[1] == "3.11"
    assert (ROOT / constraint[1]).is_file() and set(project[1].split(",")) <= set(EXTRAS)
    assert f"name: {PROJECT['name']}\n" in CONDA and "  - pip\n" in CONDA


def test_pins_lie_in_the_ranges_and_leave_nothing_of_the_tests_out() -> None:
    pinned = pins()
    for requirement in requirements({"test", "viewer", "web", "mesh"}):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pinned, f"{name} is not pinned"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]} is outside {requirement.specifier}"
    optional = [Requirement(text) for texts in EXTRAS.values() for text in texts]
    for requirement in optional:
        version = pinned.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert version is None or version in requirement.specifier, requirement
