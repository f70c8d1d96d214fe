"""Where Triton cannot build its launchers, the program says so once and does without."""

import ast
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from utils.device import triton_support
from utils.device.triton_support import triton_ready


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    triton_ready.cache_clear()
    yield
    triton_ready.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, target: Callable[[], object]) -> None:
    """A CUDA device, and a Triton whose driver answers with `target`."""
    runtime = ModuleType("triton.runtime")
    runtime.driver = SimpleNamespace(active=SimpleNamespace(get_current_target=target))  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)


def test_without_a_compiler_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def target() -> object:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    installed(monkeypatch, target)
    with caplog.at_level(logging.WARNING):
        assert not triton_ready()
        assert not triton_ready()
    (record,) = caplog.records
    assert "Failed to find C compiler" in record.getMessage()
    assert "python3-dev" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_compiler_that_fails_is_not_quoted_with_its_whole_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def target() -> object:
        raise subprocess.CalledProcessError(1, ["gcc", "launcher.c", "-I/usr/include/python3.11"])

    installed(monkeypatch, target)
    with caplog.at_level(logging.WARNING):
        assert not triton_ready()
    assert "the C compiler failed" in caplog.text
    assert "launcher.c" not in caplog.text


def test_a_working_driver_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, lambda: "cuda:90")
    assert triton_ready()


def test_without_a_device_triton_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, lambda: pytest.fail("asked"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not triton_ready()


ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(p for top in ("utils", "train_gs") for p in (ROOT / top).rglob("*triton*.py"))


def named_factors_first(path: Path) -> list[str]:
    """Products in kernels whose first factor is a `tl.constexpr` of the module."""
    tree = ast.parse(path.read_text())
    named = {
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and "constexpr" in ast.unparse(node.value)
    }
    kernels = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list)
    ]
    products = [n for k in kernels for n in ast.walk(k) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult)]
    return [
        ast.unparse(n) for n in products if isinstance(n.left, ast.Name) and n.left.id in named and not isinstance(n.right, ast.Constant)
    ]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_constants_are_the_second_factor(path: Path) -> None:
    """`constexpr * tensor` is a constexpr that holds a tensor in Triton 3.7's interpreter, which nothing can compare or store."""
    assert named_factors_first(path) == []


def test_the_search_finds_such_factors(tmp_path: Path) -> None:
    (tmp_path / "k.py").write_text("_A = tl.constexpr(2.0)\n@triton.jit\ndef k(x):\n    return _A * x + x * _A + _A * 2\n")
    assert named_factors_first(tmp_path / "k.py") == ["_A * x"]
