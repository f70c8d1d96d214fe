"""Which of another program's images a frame is: by name, however both were written."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from utils.errors import InputError
from utils.scene.media import IMAGE_SUFFIXES
from utils.types import Array


def plain_path(name: str) -> str:
    """A path as any system writes it, with forward slashes; a drive's letter goes."""
    name = name.strip().replace("\\", "/")
    if len(name) > 2 and name[1] == ":" and name[0].isalpha():
        name = name[2:]
    return name.removeprefix("./")


def bare(name: str) -> str:
    """A file's name without a suffix of images; `shot_0.10` has none."""
    last = PurePosixPath(name)
    return last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name


def matched(theirs: Sequence[str], ours: Sequence[str]) -> Array:
    """(M,) for each of our names the row of theirs that ends like it on the longest path, -1 for none.

    Names match with or without suffix, and in upper or lower case if not otherwise; folders only decide between images of one name.

    Raises:
        InputError: several images match a name equally well.
    """
    for fold in (str, str.casefold):
        rows = _matched([fold(plain_path(name)) for name in theirs], [fold(plain_path(name)) for name in ours])
        if (rows >= 0).any():
            return rows
    return rows


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> Array:
    by_name: dict[str, list[int]] = {}
    for row, name in enumerate(theirs):
        by_name.setdefault(bare(name), []).append(row)
    rows = np.full(len(ours), -1, np.int64)
    for i, name in enumerate(ours):
        candidates = by_name.get(bare(name), [])
        scores = [_common(theirs[row], name) for row in candidates]
        if not scores:
            continue
        best = [row for row, score in zip(candidates, scores, strict=True) if score == max(scores)]
        if len(best) > 1 and len({theirs[row] for row in best}) > 1:
            raise InputError(
                f"{name} may be {theirs[best[0]]} or {theirs[best[1]]} of the cameras",
                "give the folder above with --frames_dir, so that the frames' own folders tell them apart",
            )
        rows[i] = best[0]
    return rows


def _common(a: str, b: str) -> tuple[int, bool]:
    """How many folders two paths share from their end, and whether the names are the same to the suffix."""
    x, y = PurePosixPath(a).parts, PurePosixPath(b).parts
    count = 0
    for p, q in zip(reversed(x[:-1]), reversed(y[:-1]), strict=False):
        if p != q:
            break
        count += 1
    return count, x[-1] == y[-1]
