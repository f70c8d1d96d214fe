"""Finished parts of a stage that is under way, on disk until its result is published."""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from utils.scene.manifest import code_version, portable, significant, writing
from utils.scene.manifest import content_hash as hash_of
from utils.types import Array


def parts_of(result: Path) -> Path:
    """Where the finished parts of a result that is being made are kept."""
    return result.with_name(result.name + ".resume")


def forget_parts(result: Path) -> None:
    """Deletes the parts of a result that is finished, also those of a run that was killed just after it had published."""
    folder = parts_of(result)
    if folder.is_dir() and all(_is_part(path) for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _is_part(path: Path) -> bool:
    """Named as this program names parts: a user's folder that happens to end in `.resume` stays."""
    return bool(re.fullmatch(r"[0-9a-f]{24}|(state|preview|block_\d+(_state)?)\.(pt|partial)|view", path.name))


class CheckpointFolder:
    """Named groups of arrays in `<result>.resume/<key>/`, one npz a name.

    The key is made of settings, inputs and program version, so that what another run left behind is never mixed in; it is deleted.
    """

    def __init__(self, result: Path, config: Any, inputs: dict[str, str]):
        self._result, self._root = result, parts_of(result)
        self._folder = self._root / hash_of(significant(portable(config)), inputs, code_version())
        for other in self._root.glob("*"):
            if other != self._folder and _is_part(other):
                shutil.rmtree(other, ignore_errors=True)
        with writing(self._root):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._found = len(list(self._folder.glob("*.npz")))

    def __len__(self) -> int:
        """Parts that an interrupted run left."""
        return self._found

    def load(self, name: str) -> dict[str, Array] | None:
        """The arrays of this name; None if there are none, or if the file is damaged."""
        path = self._folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except (zipfile.BadZipFile, ValueError, OverflowError, EOFError, OSError):
            return None

    def save(self, name: str, arrays: dict[str, Array]) -> None:
        """Writes the arrays beside and renames the file, so that it is whole or not there.

        Raises:
            ArtifactError: the file system refuses.
        """
        path = self._folder / f"{name}.npz"
        beside = path.with_suffix(".partial")
        with writing(path):
            try:
                with beside.open("wb") as stream:
                    np.savez(stream, **arrays)  # type: ignore[arg-type]
                beside.replace(path)
            except OSError:
                beside.unlink(missing_ok=True)  # the next try needs the space
                raise

    def remove(self) -> None:
        """Deletes everything: the result is published."""
        forget_parts(self._result)
