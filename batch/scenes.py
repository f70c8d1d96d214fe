"""The list of scenes: a folder, a JSON or a CSV becomes names, sources and settings."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, InputError
from utils.scene.layout import SceneLayout
from utils.scene.media import CLIP_SUFFIXES, IMAGE_SUFFIXES

_LIST_SUFFIXES = (".json", ".csv")
_EXAMPLE = 'for example [{"source": "kitchen.mp4", "settings": {"mode": "extensive"}}], or a CSV with the columns source, name and settings'


@dataclass(frozen=True)
class SceneEntry:
    """One scene that is asked for.

    Attributes:
        name: of its folder.
        sources: clips, a frame folder, a scene folder or a results.npz; paths or addresses that fsspec knows.
        settings: flags of its own, as words of the command line.
    """

    name: str
    sources: tuple[str, ...]
    settings: tuple[str, ...] = ()


def read_scenes(place: str) -> list[SceneEntry]:
    """The scenes of a folder or a list, names made unique.

    Raises:
        InputError: nothing is there.
        ConfigError: the list cannot be understood.
    """
    path = Path(place)
    suffix = path.suffix.lower()
    if path.is_dir():
        entries = list(_of_folder(path))
    elif path.is_file() and suffix in _LIST_SUFFIXES:
        entries = list(_of_list(path))
    elif path.is_file() and (suffix in CLIP_SUFFIXES or suffix == ".npz"):
        entries = [SceneEntry(_plain(path.stem), (str(path.absolute()),))]
    elif path.exists():
        raise ConfigError(f"{place} is no list of scenes", f"give a folder, a .json or a .csv: {_EXAMPLE}")
    else:
        raise InputError(f"{place} is not there", "give a folder of clips, or a list of them as .json or .csv")
    if not entries:
        raise InputError(f"{place} holds no scenes", "put clips, folders of frames, or results.npz files into it")
    return _with_unique_names(entries)


def setting_words(settings: dict[str, Any], where: str) -> tuple[str, ...]:
    """Settings by their names on the command line as its words: `{"stage0.max_frames": 48}` is `--config.stage0.max-frames 48`.

    Raises:
        ConfigError: a value that is neither text, number, truth value nor a list of them.
    """
    words: list[str] = []
    for name, value in settings.items():
        flag = f"--config.{name}".replace("_", "-")
        if isinstance(value, bool):
            group, _, field = flag.rpartition(".")
            words.append(flag if value else f"{group}.no-{field}")
        elif isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
            words += [flag, *(str(v) for v in value)]
        elif isinstance(value, str | int | float):
            words += [flag, str(value)]
        else:
            raise ConfigError(f"{where}: the value of {name} is {value!r}", "give text, a number, true, false, or a list of these")
    return tuple(words)


def _of_folder(folder: Path) -> Iterator[SceneEntry]:
    """Clips and npz files in it, and every folder that holds clips (of one place), frames, or a results.npz."""
    for path in sorted(folder.absolute().iterdir()):
        if path.name.startswith("."):
            continue
        suffix = path.suffix.lower()
        if path.is_file() and (suffix in CLIP_SUFFIXES or suffix == ".npz"):
            yield SceneEntry(_plain(path.stem), (str(path),))
        elif path.is_dir() and _is_source(path):
            yield SceneEntry(_plain(path.name), (str(path),))


def _is_source(folder: Path) -> bool:
    if SceneLayout(folder).results_npz.is_file() or (folder / "results.npz").is_file():
        return True
    return any(p.is_file() and p.suffix.lower() in CLIP_SUFFIXES | IMAGE_SUFFIXES for p in folder.iterdir())


def _of_list(path: Path) -> Iterator[SceneEntry]:
    for number, given in enumerate(_rows(path), 1):
        where = f"{path}, scene {number}"
        row = {"source": given} if isinstance(given, str) else given
        if not isinstance(row, dict) or not row.get("source"):
            raise ConfigError(f"{where} names no source", _EXAMPLE)
        unknown = row.keys() - {"source", "name", "settings"}
        if unknown:
            raise ConfigError(f"{where}: {', '.join(sorted(unknown))} is not known", "an entry has source, name and settings")
        sources = row["source"] if isinstance(row["source"], list) else [row["source"]]
        settings = row.get("settings") or {}
        if not all(isinstance(s, str) for s in sources) or not isinstance(settings, dict) or not isinstance(row.get("name", ""), str):
            raise ConfigError(f"{where} cannot be understood", _EXAMPLE)
        places = tuple(s if "://" in s else str((path.absolute().parent / s).absolute()) for s in sources)
        name = row.get("name") or Path(sources[0].rstrip("/")).stem
        yield SceneEntry(_plain(name), places, setting_words(settings, where))


def _rows(path: Path) -> Iterable[Any]:
    """Entries of a JSON list, or rows of a CSV whose further columns are settings."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            rows = content.get("scenes") if isinstance(content, dict) else content
            if not isinstance(rows, list):
                raise ConfigError(f"{path} holds no list", _EXAMPLE)
            return rows
        table = csv.DictReader(text.splitlines())
        if "source" not in (table.fieldnames or []):
            raise ConfigError(f"{path} has no column `source`", _EXAMPLE)
        return [_row(row) for row in table]
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", _EXAMPLE) from error


def _row(row: dict[str, Any]) -> dict[str, Any]:
    cells = {k.strip(): v.strip() for k, v in row.items() if k and isinstance(v, str) and v.strip()}
    settings = {k: _value(v) for k, v in cells.items() if k not in ("source", "name")}
    sources = [s.strip() for s in cells.get("source", "").split(";") if s.strip()]
    return {"source": sources, "name": cells.get("name", ""), "settings": settings}


def _value(cell: str) -> str | bool:
    return {"true": True, "false": False}.get(cell.lower(), cell)


def _plain(name: str) -> str:
    """A folder name without what shells, addresses and file systems take for something else."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:80] or "scene"


def _with_unique_names(entries: list[SceneEntry]) -> list[SceneEntry]:
    taken: set[str] = set()
    found = []
    for entry in entries:
        name, number = entry.name, 2
        while name.lower() in taken:
            name, number = f"{entry.name}_{number}", number + 1
        taken.add(name.lower())
        found.append(SceneEntry(name, entry.sources, entry.settings))
    return found
