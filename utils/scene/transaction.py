"""The only writer of outputs: several files and folders appear together or not at all, and nothing that was not made here is lost.

Outputs are written into sibling folders `<name>.partial-<random>`. `Transaction.commit` writes a journal, swaps every output for what stood
at its place and drops that. A process that is killed before the journal leaves everything as it was; one killed after it is finished by the
next writer (`recover`). What stands at a target is replaced only if it carries this program's mark (`utils.scene.marks`); links stay links.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.errors import ArtifactError, ConfigError, V2WError
from utils.scene.manifest import MANIFEST, MARK, writing
from utils.scene.marks import foreign, made_here, mark_files, mark_folder, read_mark
from utils.types import NULL_REPORTER, Reporter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_JOURNAL = ".video_to_world.commit-"
_TOKEN = 8  # hexadecimal digits in the names of folders on their way


@dataclass(frozen=True)
class Output:
    """One thing a stage writes.

    Attributes:
        path: where it will be.
        kind: what it is: the artifact's schema, or a word of its own. Only something of the same kind, of any version, is replaced.
        file: a single file, not a folder.
        signature: a file that holds this near its beginning was made here, whatever the marks say.
    """

    path: Path
    kind: str
    file: bool = False
    signature: bytes = b""

    @property
    def family(self) -> str:
        """The kind without its version."""
        return self.kind.partition("/")[0]

    @property
    def place(self) -> Path:
        """The path with links followed, so that the folder behind a link is replaced and not the link."""
        return Path(os.path.realpath(self.path))


# ------------------------------------------------------------------------------------------------ what may be replaced


def require_replaceable(outputs: Sequence[Output], reads: Sequence[Path] = (), sources: Sequence[Path] = ()) -> None:
    """Checks, before any work, that writing the outputs loses nothing.

    Args:
        outputs: what will be written.
        reads: files and folders that are read; none may lie in an output.
        sources: those of them that belong to the user; no output may lie in one that is a folder.

    Raises:
        ConfigError: an output holds an input, or lies in one.
        ArtifactError: something stands at the target that this program did not make, or something of another kind.
    """
    for output in outputs:
        place = output.place
        for given in (*reads, *sources):
            read = Path(os.path.realpath(given))
            if place == read or place in read.parents:
                raise ConfigError(f"{output.path} would be replaced, but {given} is read from there", "choose another place for the output")
        for given in sources:
            folder = Path(os.path.realpath(given))
            if folder.is_dir() and folder in place.parents:
                raise ConfigError(
                    f"{output.path} would be written into {given}, which is read", "choose a place for the output that is not in the input"
                )
        with writing(output.path):
            _require_own(output, place)


def _require_own(output: Output, place: Path) -> None:
    move = "move it away, or choose another place for the output"
    if not place.exists():
        return
    if place.is_dir() == output.file or not (place.is_dir() or place.is_file()):
        expected, is_what = ("file", "folder") if output.file else ("folder", "file")
        raise ArtifactError(f"{output.path} is a {is_what}, where a {expected} is to be written", move)
    if output.file:
        if not made_here(place, output.signature):
            raise ArtifactError(f"{output.path} exists and was not made by this program", move)
        return
    mark = read_mark(place)
    if not mark.whole and any(place.iterdir()):
        raise ArtifactError(f"{output.path} exists and was not made by this program", move)
    if mark.whole and mark.kind != output.family:
        raise ArtifactError(f"{output.path} holds another result ({mark.kind}), where {output.family} is to be written", move)


# ------------------------------------------------------------------------------------------------ the transaction


@dataclass
class _Staged:
    """An output on its way.

    Attributes:
        output: what it will be.
        final: where it will be, links followed.
        staging: the folder that becomes it, or that holds the file that does.
        lock: open file that tells other processes that this one is at work.
    """

    output: Output
    final: Path
    staging: Path
    lock: Any

    @property
    def content(self) -> Path:
        return self.staging / self.final.name if self.output.file else self.staging


class Transaction:
    """Writes outputs together: `with Transaction([...]) as t: write into t.path(target)`; leaving the block commits.

    If the block raises, what stood at the targets stays. What was written so far is removed, or kept as `<name>.failed-<random>` until the
    next try if the error is none that a user can mend.

    Args:
        outputs: what will be written. The first one is what makes the others count: it disappears first and appears last.
        reads: see `require_replaceable`.
        sources: see `require_replaceable`.
        home: folder of the journal, for example the scene root; whoever writes there next finishes a commit that was cut off.
        report: told what was kept and where.

    Raises:
        ConfigError, ArtifactError: see `require_replaceable`; also where the file system refuses.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        *,
        reads: Sequence[Path] = (),
        sources: Sequence[Path] = (),
        home: Path | None = None,
        report: Reporter = NULL_REPORTER,
    ):
        self._home = Path(os.path.realpath(home)) if home is not None else outputs[0].place.parent
        self._report = report
        recover(self._home, report)
        require_replaceable(outputs, reads, sources)
        self._staged: dict[Path, _Staged] = {}
        try:
            for output in outputs:
                self._staged[output.path] = _stage(output)
        except BaseException:
            self._drop()
            raise

    def path(self, target: Path) -> Path:
        """Where to write the output that will be `target`: an empty folder, or the path of a file that does not exist yet."""
        return self._staged[target].content

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            try:
                with writing(next(iter(self._staged))):
                    self._commit()
            except V2WError:
                self._drop()
                raise
            finally:
                self._release()
        elif isinstance(error, Exception) and not isinstance(error, V2WError | OSError):
            self._keep_for_inspection()
        else:
            self._drop()

    def _commit(self) -> None:
        moves = []
        for staged in self._staged.values():
            if not staged.output.file and not (staged.staging / MANIFEST).is_file():
                mark_folder(staged.staging, staged.output.family)
            elif not staged.output.file:
                (staged.staging / MARK).unlink(missing_ok=True)
            moves.append(_Move(staged.content, staged.final, staged.output.file, staged.output.signature))
        with _alone(self._home):
            journal = self._home / f"{_JOURNAL}{secrets.token_hex(4)}.json"
            _write_synced(journal, {"entries": [move.written(self._home) for move in moves]})
            try:
                _swap(moves, self._report)
            except OSError:
                journal.unlink(missing_ok=True)
                raise
            journal.unlink(missing_ok=True)  # after an interrupt it stays, and the next writer finishes the commit
        _sync(self._home)
        for move in moves:
            _clear(move)

    def _release(self) -> None:
        for staged in self._staged.values():
            staged.lock.close()

    def _drop(self) -> None:
        self._release()
        for staged in self._staged.values():
            shutil.rmtree(staged.staging, ignore_errors=True)

    def _keep_for_inspection(self) -> None:
        self._release()
        kept = []
        for staged in self._staged.values():
            with contextlib.suppress(OSError):
                (staged.staging / MARK).unlink(missing_ok=True)
                if not any(staged.staging.iterdir()):
                    staged.staging.rmdir()
                    continue
                failed = staged.staging.with_name(staged.staging.name.replace(".partial-", ".failed-"))
                staged.staging.rename(failed)
                kept.append(failed)
        if kept:
            self._report.note(f"what was written before the error is kept until the next try: {', '.join(map(str, kept))}")


@contextlib.contextmanager
def publish(
    final: Path,
    kind: str,
    *,
    reads: Sequence[Path] = (),
    sources: Sequence[Path] = (),
    home: Path | None = None,
    report: Reporter = NULL_REPORTER,
) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `final` when the block ends well; arguments and errors as for `Transaction`."""
    with Transaction([Output(final, kind)], reads=reads, sources=sources, home=home, report=report) as transaction, writing(final):
        yield transaction.path(final)


@contextlib.contextmanager
def publish_file(final: Path, *, reads: Sequence[Path] = (), signature: bytes = b"", report: Reporter = NULL_REPORTER) -> Iterator[Path]:
    """Yields a path to write to; the file takes the place of `final` when the block ends well."""
    with Transaction([Output(final, "file", file=True, signature=signature)], reads=reads, report=report) as transaction, writing(final):
        yield transaction.path(final)


def _stage(output: Output) -> _Staged:
    """An empty folder beside the output's place, after what earlier tries have left there is removed."""
    final = output.place
    with writing(output.path):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        staging = final.with_name(f"{final.name}.partial-{secrets.token_hex(_TOKEN // 2)}")
        staging.mkdir()
        lock = (staging / MARK).open("w")
        json.dump({"unfinished": True, "pid": os.getpid(), "host": socket.gethostname()}, lock)
        lock.flush()
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return _Staged(output, final, staging, lock)


# ------------------------------------------------------------------------------------------------ what earlier processes left


def _sweep(final: Path) -> None:
    """Removes what killed or failed tries have left beside an output; folders that a living process writes into stay.

    A result that was put aside and never replaced, because its journal was lost or an older version was killed, comes back.
    """
    found = [path for path in final.parent.iterdir() if _state(path, final)]
    for path in found:
        aside = _state(path, final) == ".old"
        if aside and not final.exists() and (path.is_file() or read_mark(path).whole):
            path.rename(final)
        elif not _in_use(path):
            _remove(path)
    legacy = final.with_name(f"{final.name}.old")
    if not final.exists() and read_mark(legacy).whole:
        legacy.rename(final)


def _state(path: Path, final: Path) -> str:
    """Which of this module's states of `final` a path beside it holds: ".partial", ".failed", ".old"; empty if none."""
    state, _, token = path.name.removeprefix(final.name).partition("-")
    ours = state in (".partial", ".failed", ".old") and len(token) == _TOKEN and all(c in "0123456789abcdef" for c in token)
    return state if ours and path.name.startswith(final.name) else ""


def _in_use(staging: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with (staging / MARK).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def recover(home: Path, report: Reporter = NULL_REPORTER) -> None:
    """Finishes commits whose process was killed: their outputs were complete."""
    if not any(home.glob(f"{_JOURNAL}*")):
        return
    with writing(home), _alone(home):
        for unfinished in home.glob(f"{_JOURNAL}*.partial"):
            unfinished.unlink(missing_ok=True)
        for journal in sorted(home.glob(f"{_JOURNAL}*.json")):
            try:
                moves = [_Move.read(entry, home) for entry in json.loads(journal.read_bytes())["entries"]]
            except (OSError, ValueError, KeyError, TypeError):
                moves = []
            if moves:
                _swap(moves, report)
            journal.unlink(missing_ok=True)
            for move in moves:
                _clear(move)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process commits with this home."""
    handle = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


# ------------------------------------------------------------------------------------------------ the swap


@dataclass(frozen=True)
class _Move:
    """One output that goes to its place.

    Attributes:
        staged: the finished file or folder.
        final: its place.
        file: it is a single file.
        signature: see `Output`.
    """

    staged: Path
    final: Path
    file: bool
    signature: bytes = b""

    @classmethod
    def read(cls, entry: dict[str, Any], home: Path) -> "_Move":
        return cls(home / entry["staged"], home / entry["final"], bool(entry["file"]), str(entry["signature"]).encode())

    def written(self, home: Path) -> dict[str, Any]:
        """For the journal, relative to its folder where possible: a scene may be moved before the commit is finished."""
        paths = {"staged": self.staged, "final": self.final}
        return {k: os.path.relpath(v, home) if v.is_relative_to(home) else str(v) for k, v in paths.items()} | {
            "file": self.file,
            "signature": self.signature.decode(),
        }


def _swap(moves: list[_Move], report: Reporter) -> None:
    """Puts every output into its place. After a kill anywhere it can be called again; a refusal undoes what was done.

    Raises:
        OSError: the file system refuses to rename.
    """
    renamed: list[tuple[Path, Path]] = []

    def rename(path: Path, target: Path) -> None:
        path.rename(target)
        renamed.append((path, target))

    try:
        if moves[0].staged.exists() and moves[0].final.exists():
            rename(moves[0].final, _aside(moves[0]))
        for move in (*moves[1:], moves[0]):
            if not move.staged.exists():  # done by the process that was killed
                continue
            if move.file and len(moves) == 1 and move.final.is_file() and made_here(move.final, move.signature):
                move.staged.replace(move.final)  # readers of a single file never miss it
                continue
            if move.final.exists():
                rename(move.final, _aside(move))
            rename(move.staged, move.final)
    except OSError:
        for path, target in reversed(renamed):
            with contextlib.suppress(OSError):
                target.rename(path)
        raise
    for move in moves:
        if move.file:
            mark_files(move.final.parent, [move.final.name])
        else:
            _save_foreign(move.final, report)


def _aside(move: _Move) -> Path:
    """Where what stands at the place goes: out of the way, and for good if it came there during the work and was not made here."""
    own = made_here(move.final, move.signature) if move.final.is_file() else read_mark(move.final).whole or not any(move.final.iterdir())
    return move.final.with_name(f"{move.final.name}.{'old' if own else 'kept'}-{secrets.token_hex(_TOKEN // 2)}")


def _clear(move: _Move) -> None:
    """Removes what the output replaced, and the folder that held a single file."""
    for path in move.final.parent.iterdir():
        if _state(path, move.final) == ".old":
            _remove(path)
    if move.file and _state(move.staged.parent, move.final):
        _remove(move.staged.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _save_foreign(final: Path, report: Reporter) -> None:
    """Files that somebody put into a folder made here: they go into the new one, or beside it where that would mix them up."""
    for old in [path for path in final.parent.iterdir() if _state(path, final) == ".old" and path.is_dir()]:
        kept = final.with_name(f"{final.name}.kept-{old.name[-_TOKEN:]}")
        try:
            for path in foreign(old):
                name = path.relative_to(old)
                target = final / name
                if len(name.parts) > 1 or path.is_dir() or target.exists():
                    target = kept / name
                    report.note(f"{final / name} was not made by this program and is kept as {target}")
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        except OSError:  # rather the whole of it than to lose a file
            old.rename(f"{kept}-all")
            report.note(f"{final} held files that were not made by this program; what it was is kept as {kept}-all")


def _write_synced(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_suffix(".partial")
    with beside.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Makes renames in a folder last through a power failure, where the system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
