"""Files and folders that may not be read or written are told in two lines, whoever runs the program."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_DROP_FROM_BOUNDING_SET, _PASS_OVER_PERMISSIONS = 24, (1, 2)  # PR_CAPBSET_DROP; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def as_anybody() -> None:
    """In a process about to start: permissions hold for it even if root runs it."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _PASS_OVER_PERMISSIONS:
            libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities of Linux")
@pytest.mark.parametrize(
    ("forbidden", "mode", "words"),
    [
        ("frames", 0, ["preprocess_video.py", "--frames_dir", "frames", "--scene_root", "made"]),
        ("made", 0, ["preprocess_video.py", "--frames_dir", "frames", "--scene_root", "made"]),
        ("scene", 0, ["-m", "frame_to_model_icp", "--config.root-path", "scene"]),
        ("scene", 0, ["run_reconstruction.py", "scene", "--config.device", "cpu"]),
        ("scene/exports/npz/results.npz", 0, ["-m", "frame_to_model_icp", "--config.root-path", "scene"]),
        ("made", 0o500, ["-m", "utils.synthetic", "--out", "made/x"]),
        ("made", 0o500, ["-m", "utils.synthetic", "--out", "made"]),
        ("made", 0o500, ["-m", "batch", ".", "--out", "made", "--device", "cpu"]),
        ("made", 0o500, ["-m", "web", "--workspace", "made", "--port", "28311"]),
        ("made", 0, ["-m", "batch", "made", "--out", "w", "--device", "cpu", "--dry-run"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else str(value),
)
def test_what_may_not_be_read_or_written_is_told(tmp_path: Path, forbidden: str, mode: int, words: list[str]) -> None:
    for name in ("frames/0.png", "frames/1.png", "made/x.txt", "scene/exports/npz/results.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / forbidden).chmod(mode)
    words = [str(ROOT / words[0]), *words[1:]] if words[0] != "-m" else words
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, preexec_fn=as_anybody
    )
    (tmp_path / forbidden).chmod(0o700)
    *_, error, hint = done.stderr.strip().splitlines()
    assert done.returncode == 2 and error.startswith("error: ") and hint.startswith("hint: ") and "Permission denied" in error, done.stderr
