"""Where scenes are kept: a folder that every machine sees, or a store behind fsspec (S3 and the like, or memory in tests).

A store is worked on through a local copy: before a stage what the copy lacks is fetched, after it what changed is put back. The scene
folder stays what it is, file by file. Manifests say that a result is whole (`utils.scene.manifest`), so they leave the store first and come
back last: a machine that is lost while it writes leaves a result without a manifest, which the next one makes again.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ArtifactError, ConfigError, MissingDependencyError
from utils.scene.lock import LOCK
from utils.scene.manifest import MANIFEST, MARK, writing

_INDEX = ".video_to_world.synced.json"  # beside a local copy: what the store held when both were last the same
MADE_BY = "video_to_world batch"
"""Stands near the beginning of every small file that a batch writes, so that it replaces its own only."""
_BEGINNING = 4096  # bytes in which it is looked for
# Names of what is on its way in a scene folder, and of no use elsewhere.
_PASSING = (".partial", ".failed-", ".old-", ".video_to_world.commit-")


@dataclass(frozen=True)
class Storage:
    """Scenes by name.

    Attributes:
        out: a folder, or an address that fsspec knows.
        scratch: folder of local copies; empty for one in the system's temporary directory.
    """

    out: str
    scratch: str = ""

    @property
    def shared(self) -> bool:
        """A plain folder: scenes are worked on where they are."""
        return "://" not in self.out or self.out.startswith("file://")

    @property
    def folder(self) -> Path:
        """The folder of scenes, or of their local copies."""
        if self.shared:
            return Path(self.out.removeprefix("file://")).absolute()
        name = hashlib.sha256(self.out.encode()).hexdigest()[:12]
        return Path(self.scratch or Path(tempfile.gettempdir()) / "video_to_world_batch") / name

    def root(self, scene: str) -> Path:
        """The scene folder on this machine."""
        return self.folder / scene

    def fetch(self, scene: str, only: str = "") -> Path:
        """Makes the local copy what the store holds; returns the scene folder.

        Args:
            scene: its name.
            only: beginning of the names of files that are wanted; empty for all.

        Raises:
            ArtifactError: the store does not answer.
        """
        root = self.root(scene)
        if self.shared:
            return root
        with self._answering():
            root.mkdir(parents=True, exist_ok=True)
            there = self._list(scene)
            known = _index(root)
            for name, version in there.items():
                path = root / name
                if name.startswith(only) and (known.get(name) != [version, _stamp(path)] or not path.is_file()):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(self._key(scene, name), str(path))
            if not only:
                for name in _files(root) - there.keys():
                    (root / name).unlink()
                _remember(root, there)
        return root

    def put(self, scene: str) -> None:
        """Makes the store what the local copy holds: manifests go first and come last.

        Raises:
            ArtifactError: the store does not answer.
        """
        if self.shared:
            return
        root = self.root(scene)
        with self._answering():
            there, known = self._list(scene), _index(root)
            names = _files(root)
            changed = {n for n in names if n not in there or known.get(n) != [there[n], _stamp(root / n)]}
            gone = there.keys() - names
            touched = {Path(n).parent for n in changed | gone}
            stale = {n for n in there if Path(n).name == MANIFEST and (n in changed or n in gone or Path(n).parent in touched)}
            for name in sorted(stale):
                self._fs.rm_file(self._key(scene, name))
            for name in sorted(gone - stale):
                self._fs.rm_file(self._key(scene, name))
            for name in sorted(changed | (stale & names), key=_order):
                self._fs.put_file(str(root / name), self._key(scene, name))
            _remember(root, self._list(scene))

    def put_file(self, scene: str, name: str, content: bytes) -> None:
        """Writes one small file of a scene, or beside the scenes (`scene` empty), in one step; `content` begins with `MADE_BY`.

        Raises:
            ArtifactError: it cannot be written, or another program's or the user's file stands there.
        """
        self.require_own(scene, name)
        path = self.folder / scene / name
        with writing(path) if self.shared else self._answering():
            if self.shared:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(path.name + ".partial")
                beside.write_bytes(content)
                beside.replace(path)
            else:
                self._fs.pipe_file(self._key(scene, name), content)

    def require_own(self, scene: str, name: str) -> None:
        """Checks that writing a small file replaces nothing that a batch has not made.

        Raises:
            ArtifactError: it would.
        """
        there = self.read_file(scene, name)
        if there and MADE_BY.encode() not in there[:_BEGINNING]:
            what = "/".join(part for part in (self.out.rstrip("/"), scene, name) if part)
            raise ArtifactError(f"{what} exists and was not made by this program", "move it away, or choose another folder for the worlds")

    def read_file(self, scene: str, name: str) -> bytes | None:
        """One small file; None if it is not there.

        Raises:
            ArtifactError: the store does not answer.
        """
        with self._answering():
            try:
                if self.shared:
                    return (self.folder / scene / name).read_bytes()
                return bytes(self._fs.cat_file(self._key(scene, name)))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def read_json(self, scene: str, name: str) -> dict[str, Any]:
        """A small JSON object; empty if it is not there or is none."""
        try:
            content = json.loads(self.read_file(scene, name) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def _fs(self) -> Any:
        return file_system(self.out)

    def _key(self, scene: str, name: str) -> str:
        base = self._fs._strip_protocol(self.out).rstrip("/")
        return "/".join(part for part in (base, scene, name) if part)

    def _list(self, scene: str) -> dict[str, str]:
        """Files of a scene in the store -> what tells their content from an earlier one: size, time and checksum as the store has them."""
        base = self._key(scene, "")
        self._fs.invalidate_cache()  # others write too
        try:
            found = self._fs.find(base, detail=True)
        except FileNotFoundError:
            return {}
        return {key[len(base) :].lstrip("/"): _version(facts) for key, facts in found.items() if facts.get("type") == "file"}

    @contextlib.contextmanager
    def _answering(self) -> Any:
        try:
            yield
        except OSError as error:
            raise ArtifactError(f"{self.out} cannot be used: {error}", "check the address, the network and who may write there") from error


def file_system(address: str) -> Any:
    """The fsspec file system of an address.

    Raises:
        ConfigError: fsspec knows no such protocol.
        MissingDependencyError: the protocol needs a package that is not installed.
    """
    import fsspec

    try:
        found = fsspec.core.url_to_fs(address)[0]
        if hasattr(found, "auto_mkdir"):  # where there are folders, they are made as in stores that have none
            found.auto_mkdir = True
        return found
    except ValueError as error:
        raise ConfigError(f"{address}: {error}", "give a folder, or an address that fsspec knows, such as s3://bucket/worlds") from error
    except ImportError as error:
        raise MissingDependencyError(f"{address} needs a package that is not installed: {error}", "install it with pip") from error


def fetch_source(address: str, folder: Path) -> Path:
    """A clip, list or results.npz behind an address as a local file, fetched once per size; local paths are returned as they are.

    Raises:
        ArtifactError: it cannot be fetched.
    """
    if "://" not in address:
        return Path(address)
    fs = file_system(address)
    path = folder / hashlib.sha256(address.encode()).hexdigest()[:12] / address.rstrip("/").rpartition("/")[2]
    try:
        size = int(fs.info(address)["size"])
        if not path.is_file() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(path.name + ".partial")
            fs.get_file(address, str(beside))
            beside.replace(path)
    except OSError as error:
        raise ArtifactError(f"{address} cannot be fetched: {error}", "check the address and who may read it") from error
    return path


def forget(storage: Storage, scene: str) -> None:
    """Removes the local copy of a scene that is kept elsewhere."""
    if not storage.shared:
        shutil.rmtree(storage.root(scene), ignore_errors=True)
        index_of(storage.root(scene)).unlink(missing_ok=True)


def index_of(root: Path) -> Path:
    """The file beside a local copy that says what the store held."""
    return root.with_name(root.name + _INDEX)


def _order(name: str) -> int:
    """Marks first, so that what is torn off is known as this program's; manifests last."""
    return {MARK: 0, MANIFEST: 2}.get(Path(name).name, 1)


def _files(root: Path) -> set[str]:
    """Files of a scene folder, relative, without what is on its way."""
    found = set()
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.name != LOCK and not any(sign in part for part in name.parts for sign in _PASSING) and path.is_file():
            found.add(name.as_posix())
    return found


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _index(root: Path) -> dict[str, Any]:
    """Name -> [version in the store, time of the local file] when both were last the same."""
    try:
        content = json.loads(index_of(root).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(root: Path, versions: dict[str, str]) -> None:
    index = {name: [version, _stamp(root / name)] for name, version in versions.items()}
    index_of(root).write_text(json.dumps(index))


def _version(facts: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted((k, str(v)) for k, v in facts.items())).encode()).hexdigest()[:16]
