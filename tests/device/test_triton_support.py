"""Where Triton cannot build its launchers, the program says so once and does without."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
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
