"""Finished parts of a stage that is under way, on disk until its result is published."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from utils.scene.manifest import code_version, significant, to_plain, writing
from utils.scene.manifest import content_hash as hash_of
from utils.types import Array


class CheckpointFolder:
    """Named groups of arrays in `<result>.resume/<key>/`, one npz a name.

    The key is made of settings, inputs and program version, so that what another run left behind is never mixed in; it is deleted.
    """

    def __init__(self, result: Path, config: Any, inputs: dict[str, str]):
        self._root = result.with_name(result.name + ".resume")
        self._folder = self._root / hash_of(significant(to_plain(config)), inputs, code_version())
        for other in self._root.glob("*"):
            if other != self._folder:
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
        except (zipfile.BadZipFile, ValueError, EOFError, OSError):
            return None

    def save(self, name: str, arrays: dict[str, Array]) -> None:
        """Writes the arrays beside and renames the file, so that it is whole or not there.

        Raises:
            ArtifactError: the file system refuses.
        """
        path = self._folder / f"{name}.npz"
        beside = path.with_suffix(".partial")
        with writing(path):
            with beside.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            beside.replace(path)

    def remove(self) -> None:
        """Deletes everything: the result is published."""
        shutil.rmtree(self._root, ignore_errors=True)
