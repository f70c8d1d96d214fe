"""Import edges, light imports and documented settings: what keeps the code easy to change."""

import ast
import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import utils

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("preprocess", "frame_to_model_icp", "global_optimization", "train_inverse_deformation", "train_gs", "eval_gs")
LAYERS_ABOVE = (*STAGES, "video_to_world", "web", "batch")
# From the bottom up; a module imports from its own folder and from the layers before it.
LAYERS = (
    (
        "utils.types",
        "utils.errors",
        "utils.ending",
        "utils.runtime",
        "utils.reporting",
        "utils.registry",
        "utils.version",
        "utils.third_party",
        "configs",
    ),
    ("utils.device", "utils.cameras", "utils.viewer_bundle", "utils.serving"),
    ("utils.scene", "utils.points", "utils.synthetic"),
    ("utils.deformation", "utils.geometry_backend"),
    ("utils.matching", "utils.splatting"),
    ("utils.registration", "utils.sfm", "utils.da3"),
    ("utils.published", "utils.imports", "utils.exports", "utils.report"),
    ("utils.viewer",),
    (*STAGES, "utils.view_checkpoint", "utils.export_checkpoint_to_ply"),
    ("video_to_world", "web", "utils"),
    ("batch",),
)
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
    for path in (ROOT / stage).rglob("*.py"):
        for name in imports_of(path):
            top = name.split(".")[0]
            assert top not in STAGES or top == stage, f"{path} imports {name}"


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of this project that it imports, lazily or at the top."""
    paths = [p for top in (*LAYERS_ABOVE, "configs", "utils") for p in (ROOT / top).rglob("*.py")]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    graph: dict[str, set[str]] = {}
    for module, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update(f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in names else node.module for a in node.names)
        graph[module] = (found & names.keys()) - {module}
    return graph


FOLDERS = sorted({str(p.parent.relative_to(ROOT)) for top in (*LAYERS_ABOVE, "configs", "utils") for p in (ROOT / top).rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_where_to_start(folder):
    """In its docstring: what lives there, what it may import, and modules or functions to start with, which exist."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text())
    documented = ast.get_docstring(tree) or ""
    start = re.search(r"^Start: (.*)", documented, re.MULTILINE | re.DOTALL)
    assert start and "May import: " in documented
    here = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for module, name in re.findall(r"`(\w+)(?:\.(\w+))?`", start[1]):
        places = [ROOT / folder / f"{module}.py", ROOT / folder / module / "__init__.py"]
        file = next((place for place in places if place.is_file()), None)
        assert module in here or file, module
        assert not name or (file and re.search(rf"^(class|def) {name}\b|^{name}\b", file.read_text(), re.MULTILINE)), name


def test_no_import_circles():
    graph = import_graph()
    assert len(graph) > 150
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_imports_go_down():
    def place(module: str) -> tuple[int, str]:
        for rank, names in enumerate(LAYERS):
            for name in names:
                if module == name or module.startswith(f"{name}."):
                    return rank, name
        raise AssertionError(f"{module} has no place in LAYERS")

    for module, imported in import_graph().items():
        rank, folder = place(module)
        for other in imported - {"utils"}:  # its __init__ only makes process-wide settings
            other_rank, other_folder = place(other)
            assert other_rank < rank or other_folder == folder or rank == 0, f"{module} imports {other}, which is not in a layer below"


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
        *(["-m", stage] for stage in STAGES if stage != "preprocess"),
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
