"""A disk that is full while something is written: an error with what is left and may be deleted, nothing half written, nothing lost."""

import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.notes import Notes
from utils.errors import ArtifactError
from utils.scene.artifacts import save_tensors, write_json, write_points_ply
from utils.scene.checkpoints import CheckpointFolder, parts_of
from utils.scene.manifest import writing
from utils.scene.media import write_image
from utils.scene.transaction import publish

NUMBERS = np.random.default_rng(0).random((50_000, 3)).astype(np.float32)
WRITERS: dict[str, Callable[[Path], object]] = {
    "points": lambda folder: write_points_ply(folder / "a.ply", NUMBERS, np.zeros((50_000, 3), np.uint8)),
    "tensors": lambda folder: save_tensors(folder / "a.pt", torch.from_numpy(NUMBERS)),
    "arrays": lambda folder: np.savez(folder / "a.npz", a=NUMBERS),
    "raw": lambda folder: NUMBERS.tofile(folder / "a.bin"),
    "json": lambda folder: write_json(folder / "a.json", NUMBERS.tolist()),
    "image": lambda folder: write_image(folder / "a.png", (NUMBERS[:40_000] * 255).astype(np.uint8).reshape(200, 200, 3)),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 60 kB, which fails as a full disk does: in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_says_so_and_the_earlier_result_stands(tmp_path: Path, small_files: None, kind: str) -> None:
    """`write_points_ply` ended in "50000 requested and 20741 written", torch in "enforce fail at inline_container.cc"."""
    with publish(tmp_path / "out", "thing/1") as folder:
        (folder / "data").write_text("first")
    with pytest.raises(ArtifactError, match="cannot write") as caught, publish(tmp_path / "out", "thing/1") as folder:
        WRITERS[kind](folder)
    assert "free some space" in caught.value.hint and "MB are left" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "data").read_text() == "first"


def test_parts_that_fit_are_kept_for_the_next_try(tmp_path: Path, small_files: None) -> None:
    folder = CheckpointFolder(tmp_path / "out", {}, {})
    folder.save("small", {"x": NUMBERS[:100]})
    with pytest.raises(ArtifactError):
        folder.save("large", {"x": NUMBERS})
    again = CheckpointFolder(tmp_path / "out", {}, {})
    kept = again.load("small")
    assert len(again) == 1 and kept is not None and np.array_equal(kept["x"], NUMBERS[:100]) and again.load("large") is None
    assert [p.name for p in parts_of(tmp_path / "out").glob("*/*")] == ["small.npz"]


def test_what_may_be_deleted_is_named_with_its_size(tmp_path: Path) -> None:
    for name, size in (("roma_cache", 3_000_000), ("out.failed-0123abcd", 2_000_000), ("frames", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(bytes(size))
    with pytest.raises(ArtifactError) as caught, writing(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    named = caught.value.hint.partition("may be deleted: ")[2]
    assert named == f"{tmp_path / 'roma_cache'} (3 MB), {tmp_path / 'out.failed-0123abcd'} (2 MB)"


@pytest.mark.parametrize("number", [1, 5, 12, 16, 21, 26, 36, 39, 40, 116, 122])
def test_other_refusals_are_errors_too(tmp_path: Path, number: int) -> None:
    with pytest.raises(ArtifactError, match="cannot write") as caught, publish(tmp_path / "out", "thing/1", report=Notes()):
        raise OSError(number, "refused")
    assert caught.value.hint
