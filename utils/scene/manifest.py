"""What makes a folder an artifact: a manifest with content ids, and the test whether it is current.

The manifest is written last, before `utils.scene.transaction` puts the folder into its place: nothing but a readable manifest means "done".
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import ArtifactError, ConventionError, CorruptArtifactError, MissingArtifactError, SchemaVersionError, StaleArtifactError
from utils.runtime import in_threads

MANIFEST = "manifest.json"
MARK = ".video_to_world.json"  # see `utils.scene.marks`
PICTURES = "pictures"  # folder of an artifact that holds what is only looked at

# Settings that do not change a result: two runs that differ only in these count as the same.
COSMETIC = frozenset(
    [
        "root_path",
        "scene_root",
        "out_path",
        "out_dir",
        "overwrite",
        "tensorboard",
        "tensorboard_log_dir",
        "progress",
        "report",
        "num_threads",
        "roma_cache",
        "allow_stale",
        "max_gpu_gb",
        # what these name enters a result by its content, as an input
        "inverse_deform_dir",
        "checkpoint_dir",
        "original_images_dir",
        "transforms_path",
        "ground_truth",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an artifact.

    Attributes:
        schema: name/version of the format, for example "alignment/2".
        content_id: hash of schema, settings, files and inputs; not of times or paths.
        config: the settings, nested.
        inputs: artifact name -> content id it was made from.
        files: relative name -> [size in bytes, sha256].
        conventions: see `utils.types.CONVENTIONS`.
        backends: family -> name and why it was chosen.
        seed: the random seed.
        seconds: wall time of the stage.
        peak_memory_mb: peak resident memory of the process at its end.
        code: version of the program.
        created: ISO time.
    """

    schema: str
    content_id: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, list[Any]]
    conventions: dict[str, str]
    backends: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    code: str = ""
    created: str = ""


def to_plain(value: Any) -> Any:
    """Dataclasses, paths, tuples and numpy scalars as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def portable(config: Any) -> Any:
    """Settings as JSON values for a file in the scene: paths inside the scene (`root_path`) are relative to it, others absolute.

    The scene itself is ".". A scene that is moved, renamed or opened by another spelling of its path then still has the same settings.
    """
    root = getattr(config, "root_path", None)
    return to_plain(config) if root is None else to_plain(_relative_to(Path(os.path.realpath(root)), config))


def _relative_to(root: Path, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _relative_to(root, getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _relative_to(root, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative_to(root, v) for v in value]
    if isinstance(value, Path):
        place = Path(os.path.realpath(value))
        return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)
    return value


def in_scene(root: Path, stored: str | Path | None) -> Path | None:
    """A path from settings that `portable` wrote; None if none was set.

    Settings of earlier versions hold paths as they were typed: these are tried as they are if the scene has nothing of that name.
    """
    if not stored:
        return None
    return root / stored if (root / stored).exists() or not Path(stored).exists() else Path(stored)


def significant(config: Any) -> Any:
    """Plain settings without those that do not change a result."""
    if isinstance(config, dict):
        return {k: significant(v) for k, v in config.items() if k not in COSMETIC}
    return config


def sha256(path: Path) -> str:
    """Hash of a file's bytes; an OSError names the file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256_slow(stream)
    except OSError as error:
        error.filename = str(path)
        raise


def _sha256_slow(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def content_hash(*parts: Any) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(to_plain(list(parts)), sort_keys=True).encode()).hexdigest()[:24]


# Files up to this size are hashed whole; of longer ones their size and this many pieces, evenly from the first byte to the last.
_WHOLE, _PIECES, _PIECE = 8 << 20, 16, 256 << 10


def fingerprint(path: Path) -> str:
    """Hash that tells a file's content, whatever its name, folder and time; of a long video only samples are read.

    Raises:
        OSError: unreadable.
    """
    size = path.stat().st_size
    if size <= _WHOLE:
        return sha256(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for piece in range(_PIECES):
            stream.seek((size - _PIECE) * piece // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def fingerprints(paths: Sequence[Path]) -> list[str]:
    """`fingerprint` of many files."""
    return in_threads(fingerprint, paths)


def code_version() -> str:
    """`git describe` of the program, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def restart_peak_memory() -> None:
    """Makes `peak_memory_mb` count from now on, so that stages of one process can be told apart; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Peak resident memory of this process since it began or `restart_peak_memory`, in MB (0 where the platform does not tell)."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the file system's refusals while writing `path` into errors with a remedy.

    Raises:
        ArtifactError: full disk, no permission, read-only file system, a path too long, and whatever else it refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # NumPy's tofile tells how much was written, and not why no more
            raise ArtifactError(f"cannot write {path}: {error}", _room(path)) from error
        where = error.filename2 or error.filename or path
        raise ArtifactError(f"cannot write {where}: {error.strerror}", _remedy(error.errno, path)) from error


def _remedy(number: int, path: Path) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _room(path)
    if number in (errno.EACCES, errno.EPERM):
        return "choose a scene root you may write to"
    if number == errno.EROFS:
        return "choose a scene root on a writable file system"
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "a part of this path is a file; choose another scene root"
    if number == errno.ENAMETOOLONG:
        return "choose a scene root with a shorter path"
    return "check the disk and the path, or choose another scene root; finished stages are kept"


# Folders beside or in a scene that hold nothing which the next run needs.
_DISPENSABLE = ("*.failed", "*.failed-*", "*.old", "*.old-*", "roma_cache", "tensorboard")


def _room(path: Path) -> str:
    """What to do on a full disk: how much is left, what may be deleted, and that work done so far is not lost."""
    words = "free some space or choose another scene root, then run the same command again: finished stages and parts are kept"
    there = next((p for p in path.absolute().parents if p.is_dir()), None)
    if there is None:
        return words
    with contextlib.suppress(OSError):
        left = f"{shutil.disk_usage(there).free / 1e6:.0f} MB are left"
        found = [p for folder in (there, there.parent) for pattern in _DISPENSABLE for p in folder.glob(pattern)]
        sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) / 1e6 for p in found}
        worth = [f"{p} ({size:.0f} MB)" for p, size in sorted(sizes.items(), key=lambda item: -item[1]) if size >= 1]
        return f"{words}; {left}" + (f"; may be deleted: {', '.join(worth[:5])}" if worth else "")
    return words


def write_manifest(
    folder: Path,
    *,
    schema: str,
    config: Any,
    inputs: dict[str, str],
    backends: dict[str, str] | None = None,
    seed: int = 0,
    seconds: float = 0.0,
    digests: dict[str, str] | None = None,
) -> Manifest:
    """Writes `manifest.json` for the files that are in `folder` now; call it last inside `publish`.

    Args:
        folder: the partial folder.
        schema: name/version of the format.
        config: the stage's settings (dataclass or dict).
        inputs: artifact name -> content id.
        backends: family -> chosen name and reason.
        seed: the random seed.
        seconds: wall time of the stage.
        digests: `sha256` of files where it is known already, by name in the folder.
    """
    from utils.types import CONVENTIONS

    known = digests or {}

    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, MARK))
    digest_of = lambda path: known.get(str(path.relative_to(folder))) or sha256(path)  # noqa: E731
    hashed = zip(names, in_threads(digest_of, names), strict=True)
    files = {str(p.relative_to(folder)): [p.stat().st_size, digest] for p, digest in hashed}
    plain = portable(config)
    # reports hold times and event files hold dates: they do not belong to the identity of a result; nor do pictures of it
    cosmetic = (PICTURES + "/", PICTURES + "\\")
    stable = {
        k: v for k, v in files.items() if not k.endswith(("report.json", ".html")) and "tensorboard" not in k and not k.startswith(cosmetic)
    }
    manifest = Manifest(
        schema=schema,
        content_id=content_hash(schema, significant(plain), stable, inputs),
        config=plain,
        inputs=inputs,
        files=files,
        conventions=CONVENTIONS,
        backends=backends or {},
        seed=seed,
        seconds=round(seconds, 3),
        peak_memory_mb=round(peak_memory_mb(), 1),
        code=code_version(),
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    (folder / MANIFEST).write_text(json.dumps(to_plain(manifest), indent=1))
    return manifest


def read_manifest(folder: Path, schema: str, made_by: str) -> Manifest:
    """The manifest of an artifact of this schema, with file sizes checked.

    Args:
        folder: the artifact.
        schema: expected name/version.
        made_by: the command that makes it, for the hint.

    Raises:
        MissingArtifactError: no folder or no manifest.
        SchemaVersionError: another format.
        ConventionError: other conventions.
        CorruptArtifactError: unreadable manifest, or a listed file is missing or has another size.
    """
    from utils.types import CONVENTIONS

    path = folder / MANIFEST
    if not path.is_file():
        raise MissingArtifactError(f"{folder} is missing or unfinished (no {MANIFEST})", f"make it with: {made_by}")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        _require_shapes(manifest)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}", f"make it again with: {made_by}") from error
    if manifest.schema != schema:
        raise SchemaVersionError(f"{folder} has format {manifest.schema}, expected {schema}", f"make it again with: {made_by}")
    if manifest.conventions != CONVENTIONS:
        raise ConventionError(f"{folder} was written with other conventions: {manifest.conventions}", f"make it again with: {made_by}")
    for name, (size, _) in manifest.files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise CorruptArtifactError(f"{folder / name} is missing or has changed since it was written", f"make it again with: {made_by}")
    return manifest


def _require_shapes(manifest: Manifest) -> None:
    """Raises ValueError where a field is not of the type that it is declared with."""
    for name, kind in (("schema", str), ("content_id", str), ("config", dict), ("inputs", dict), ("files", dict), ("conventions", dict)):
        if not isinstance(getattr(manifest, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    for name, entry in manifest.files.items():
        if not isinstance(entry, list) or len(entry) != 2 or "\0" in name:
            raise ValueError(f"files: {name!r} has no size and hash")


def is_current(folder: Path, schema: str, config: Any, inputs: dict[str, str]) -> bool:
    """Whether the artifact is there, whole, and made with these settings from these inputs."""
    try:
        manifest = read_manifest(folder, schema, "")
    except ArtifactError:
        return False
    return manifest.inputs == inputs and significant(manifest.config) == significant(portable(config))


def require_fresh(folder: Path, manifest: Manifest, inputs: dict[str, str], rerun: str) -> None:
    """Checks that an artifact was made from the inputs as they are now.

    Raises:
        StaleArtifactError: an input was made again since.
    """
    for name, content in inputs.items():
        if name in manifest.inputs and manifest.inputs[name] != content:
            raise StaleArtifactError(
                f"{folder} was made from an earlier {name}, which has been made again since", f"make it again with: {rerun}"
            )
