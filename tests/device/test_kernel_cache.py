"""What Numba has compiled does not outlive the kernels it contains."""

import os
from pathlib import Path

from utils.device.kernel_cache import drop_stale_kernels


def package(tmp_path: Path) -> Path:
    """Two files with kernels, of which only the caller keeps what is compiled, and one without."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "inlined.py").write_text("@njit\ndef inner(): return 1\n")
    (tmp_path / "parts" / "caller.py").write_text("@njit(cache=True)\ndef outer(): return inner()\n")
    (tmp_path / "plain.py").write_text("x = 1\n")
    return tmp_path


def compiled(root: Path) -> list[Path]:
    """Stands in for Numba: writes the caller's cache."""
    folder = root / "parts" / "__pycache__"
    folder.mkdir(exist_ok=True)
    files = [folder / "caller.outer-1.py311.nbi", folder / "caller.outer-1.py311.1.nbc"]
    for file in files:
        file.write_bytes(b"machine code")
    return files


def test_a_changed_kernel_drops_what_inlined_it(tmp_path: Path) -> None:
    root = package(tmp_path)
    drop_stale_kernels(root)
    files = compiled(root)
    (root / "inlined.py").write_text("@njit\ndef inner(): return 2\n")
    assert drop_stale_kernels(root) == 2
    assert not any(file.exists() for file in files)


def test_unchanged_kernels_stay_compiled(tmp_path: Path) -> None:
    root = package(tmp_path)
    drop_stale_kernels(root)
    files = compiled(root)
    (root / "plain.py").write_text("x = 2\n")
    os.utime(root / "inlined.py", (1, 1))
    assert drop_stale_kernels(root) == 0
    assert all(file.exists() for file in files)


def test_code_that_cannot_be_written_to_is_left_alone(tmp_path: Path) -> None:
    root = package(tmp_path)
    (root / "__pycache__").write_text("a file where the folder would be")
    assert drop_stale_kernels(root) == 0
