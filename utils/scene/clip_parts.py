"""The parts of a clip that shows several places, as `preprocess_frames.json` of the scene tells of them."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from utils.scene.json_files import json_object
from utils.scene.layout import PARTS, SceneLayout

_FOLDER = re.compile(rf"\.|{PARTS}/[0-9]+")


@dataclass(frozen=True)
class ClipPart:
    """Frames of a clip that show one place.

    Attributes:
        root: its scene; None where there are too few frames for one.
        frames: chosen frames, by their numbers in the clip, from 1.
    """

    root: Path | None
    frames: tuple[int, ...]

    def report(self, scene_root: Path) -> dict[str, Any]:
        """For metrics.json: folder below the scene, "." for the scene itself, and frames."""
        return {"folder": None if self.root is None else self.root.relative_to(scene_root).as_posix(), "frames": list(self.frames)}


@dataclass(frozen=True)
class Contradiction:
    """Two frames that show different things in one spot.

    Attributes:
        frames: their numbers in the clip, from 1.
        pictures: their files.
    """

    frames: tuple[int, int]
    pictures: tuple[Path, Path]


def clip_parts(scene_root: Path) -> list[ClipPart]:
    """All parts of the scene's clip, its own first; empty where there is only one, or nothing tells."""
    found = []
    for part in _listed(scene_root, "parts"):
        folder, frames = part.get("folder"), part.get("frames")
        named = isinstance(folder, str) and _FOLDER.fullmatch(folder)
        if (named or folder is None) and _are_numbers(frames):
            found.append(ClipPart(scene_root / str(folder) if named else None, tuple(frames)))
    return found if len(found) > 1 else []


def clip_contradictions(scene_root: Path) -> list[Contradiction]:
    """Pairs of frames of the scene's clip that contradict each other."""
    record = json_object(SceneLayout(scene_root).preprocess_json)
    folder = scene_root / str(record.get("source_frames_dir", ""))
    found = []
    for pair in _listed(scene_root, "contradictions"):
        frames, names = pair.get("frames"), pair.get("names")
        if _are_numbers(frames) and _are_files_inside(names) and len(frames) == len(names) == 2:
            found.append(Contradiction((frames[0], frames[1]), (folder / names[0], folder / names[1])))
    return found


def words_about_parts(scene_root: Path) -> list[str]:
    """What stage 0 said about parts and contradictions, one line each."""
    told = [finding for finding in _listed(scene_root, "findings") if finding.get("kind") in ("parts", "contradictions")]
    return [str(finding.get("text", "")) for finding in told]


def _are_numbers(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(isinstance(value, int) for value in values)


def _are_files_inside(names: Any) -> TypeGuard[list[str]]:
    """Whether these are names of files, none of which leads out of its folder."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    return not any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in names)


def _listed(scene_root: Path, key: str) -> list[dict[str, Any]]:
    values = json_object(SceneLayout(scene_root).preprocess_json).get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
