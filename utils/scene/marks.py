"""How this program knows what it has made: a mark in every folder it publishes, and one beside every single file.

An artifact is marked by its `manifest.json`. Every other folder carries `.video_to_world.json` with `whole` set: all of it was made here.
Where only some files of a folder were (an export into a user's folder, `report.html`), the same file lists them with their hashes, and
`whole` is not set.
"""

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.runtime import in_threads
from utils.scene.json_files import json_object
from utils.scene.manifest import MANIFEST, MARK, content_hash, sha256

_HEAD = 4096  # bytes in which a signature is looked for
# Left in any folder by file managers and network file systems; never worth keeping.
_SYSTEM_FILES = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".nfs*", ".fuse_hidden*")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a folder says of itself.

    Attributes:
        kind: what was made ("frames", "export", or the name of an artifact's schema).
        whole: the folder itself was made here, not only files in it.
        content_id: hash of the names and contents of its files.
        files: relative name -> [size in bytes, sha256] of files made here.
    """

    kind: str = ""
    whole: bool = False
    content_id: str = ""
    files: dict[str, list[Any]] = field(default_factory=dict)


def read_mark(folder: Path) -> Mark:
    """The mark of a folder; an empty one where there is none, or one that cannot be read."""
    manifest, listed = json_object(folder / MANIFEST), json_object(folder / MARK)
    files = {**_files(manifest), **_files(listed)}
    if isinstance(manifest.get("schema"), str) and "content_id" in manifest:
        return Mark(kind=manifest["schema"].partition("/")[0], whole=True, content_id=str(manifest["content_id"]), files=files)
    return Mark(
        kind=str(listed.get("kind", "")), whole=listed.get("whole") is True, content_id=str(listed.get("content_id", "")), files=files
    )


def _files(content: dict[str, Any]) -> dict[str, list[Any]]:
    files = content.get("files")
    return {k: v for k, v in files.items() if isinstance(v, list) and len(v) == 2} if isinstance(files, dict) else {}


def mark_folder(folder: Path, kind: str) -> str:
    """Marks a finished folder as made here, all of it; returns the hash of its content."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARK)
    digests = in_threads(sha256, paths)
    files = {p.relative_to(folder).as_posix(): [p.stat().st_size, digest] for p, digest in zip(paths, digests, strict=True)}
    content_id = content_hash(kind, files)
    mark = Mark(kind=kind, whole=True, content_id=content_id, files=files)
    _replace(folder / MARK, {"program": "video_to_world", **vars(mark)})
    return content_id


def mark_files(folder: Path, names: Iterable[str]) -> None:
    """Notes in a folder that these files of it were made here; a manifest that lists one is brought up to date."""
    entries = {name: [(folder / name).stat().st_size, sha256(folder / name)] for name in names}
    manifest = json_object(folder / MANIFEST)
    if listed := entries.keys() & _files(manifest).keys():
        manifest["files"] |= {name: entries.pop(name) for name in listed}
        _replace(folder / MANIFEST, manifest)
    if not entries:
        return
    content = json_object(folder / MARK)
    known = {name: entry for name, entry in _files(content).items() if (folder / name).is_file()}
    _replace(folder / MARK, {"program": "video_to_world", **content, "files": known | entries})


def _replace(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(path)


def made_here(path: Path, signature: bytes = b"") -> bool:
    """Whether this very file was written here: listed beside it or in its artifact, and unchanged since; or empty.

    Args:
        path: a file.
        signature: a file that holds this near its beginning counts too.
    """
    size = path.stat().st_size
    if signature:
        with path.open("rb") as stream:
            if signature in stream.read(_HEAD):
                return True
    listed = read_mark(path.parent).files.get(path.name)
    return size == 0 or (listed is not None and listed[0] == size and listed[1] == sha256(path))


def foreign(folder: Path) -> list[Path]:
    """What lies in a folder made here without having been made here, outermost first.

    Files of the system's do not count, nor do artifacts and exports that were put into the folder later: they are marked themselves.
    """
    found: list[Path] = []
    _collect(folder, set(read_mark(folder).files), folder, found)
    return found


def _collect(top: Path, known: set[str], folder: Path, found: list[Path]) -> None:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(top).as_posix()
        if path.name in (MARK, MANIFEST) or name in known or any(fnmatch.fnmatch(path.name, p) for p in _SYSTEM_FILES):
            continue
        if path.is_dir() and not path.is_symlink():
            if any(listed.startswith(f"{name}/") for listed in known):
                _collect(top, known, path, found)
            elif not read_mark(path).whole and any(path.iterdir()):
                found.append(path)
            elif read_mark(path).whole:
                found += foreign(path)
        else:
            found.append(path)
