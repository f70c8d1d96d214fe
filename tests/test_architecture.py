"""Import edges, light imports and documented settings: what keeps the code easy to change."""

import ast
import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import utils

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("frame_to_model_icp", "global_optimization", "train_inverse_deformation", "train_gs", "eval_gs")
CONFIG_MODULES = [f"configs.{m.name}" for m in pkgutil.iter_modules(configs.__path__)]


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_utils_is_ours():
    assert Path(utils.__path__[0]).resolve() == ROOT / "utils"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_each_other(stage):
    allowed = {"eval_gs": {"train_gs"}}.get(stage, set())  # evaluation renders exactly what training rendered
    for path in (ROOT / stage).glob("*.py"):
        for name in imports_of(path):
            top = name.split(".")[0]
            assert top not in STAGES or top == stage or top in allowed, f"{path} imports {name}"


def test_utils_do_not_import_the_driver():
    for path in (ROOT / "utils").rglob("*.py"):
        assert not {"run_reconstruction", "preprocess_video"} & imports_of(path), path


@pytest.mark.parametrize("module", CONFIG_MODULES)
def test_configs_import_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'numba', 'cv2', 'tyro') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", CONFIG_MODULES)
def test_every_setting_is_documented(module):
    loaded = importlib.import_module(module)
    source = ast.parse(Path(loaded.__file__).read_text())
    for node in source.body:
        if not isinstance(node, ast.ClassDef) or not dataclasses.is_dataclass(getattr(loaded, node.name)):
            continue
        documented = ast.get_docstring(node)
        assert documented, f"{module}.{node.name} has no docstring"
        for this, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name):
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
                grouped = "Config" in ast.unparse(this.annotation)
                assert explained or grouped or "Attributes:" in documented, f"{module}.{node.name}.{this.target.id} is not documented"


@pytest.mark.parametrize(
    "command",
    [
        ["run_reconstruction.py"],
        ["preprocess_video.py"],
        *(["-m", stage] for stage in STAGES),
        ["-m", "utils.export_checkpoint_to_ply"],
        ["-m", "utils.view_checkpoint"],
        ["-m", "utils.synthetic"],
    ],
    ids=lambda c: c[-1],
)
def test_help_explains(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower() and len(done.stdout) > 400
