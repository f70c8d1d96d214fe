"""Outputs appear whole and together, and nothing is lost that this program did not make: kills, links, strangers' files, full disks."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.notes import Notes
from utils.errors import ArtifactError, ConfigError, InputError, V2WError
from utils.scene.manifest import MANIFEST, MARK, write_manifest
from utils.scene.marks import foreign, made_here, read_mark
from utils.scene.transaction import Output, Transaction, publish, publish_file, recover, require_replaceable

KIND = "thing/1"
# Whatever changes a folder: a kill is tried before each of these.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def make(final: Path, text: str, *, manifest: bool = True, home: Path | None = None) -> None:
    with publish(final, KIND, home=home) as folder:
        (folder / "data").write_text(text)
        if manifest:
            write_manifest(folder, schema=KIND, config={}, inputs={})


def tree(root: Path) -> dict[str, str]:
    """Every file below a folder and its text, marks apart."""
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file() and p.name not in (MARK, MANIFEST)}


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Runs `work` in a child that is killed before its change of that number; whether it was."""
    child = os.fork()
    if not child:
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or written:
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("manifest", [True, False])
def test_a_folder_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path, manifest: bool) -> None:
    for text in ("first", "second"):
        make(tmp_path / "out", text, manifest=manifest)
        assert tree(tmp_path) == {"out/data": text}
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and read_mark(tmp_path / "out").whole
    assert (tmp_path / "out" / MARK).exists() != manifest


@pytest.mark.parametrize("target", ["folder", "file", ".", "folder/inner/..", ""])
def test_what_a_user_has_made_is_refused_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "photo.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    before = tree(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        make(Path(target), "x")
    assert caught.value.hint
    with pytest.raises(ArtifactError), publish_file(Path(target)) as path:
        path.write_text("x")
    assert tree(tmp_path) == before


def test_an_empty_folder_and_an_empty_file_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    make(tmp_path / "folder", "x")
    with publish_file(tmp_path / "file") as path:
        path.write_text("y")
    assert tree(tmp_path) == {"folder/data": "x", "file": "y"}


def test_a_result_of_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", "x")
    with pytest.raises(ArtifactError, match="another result"), publish(tmp_path / "out", "other/1"):
        pass
    with publish(tmp_path / "out", "thing/2") as folder:  # another version of the same
        (folder / "data").write_text("y")
    assert tree(tmp_path) == {"out/data": "y"}


def test_a_file_is_replaced_only_as_it_was_written(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with publish_file(tmp_path / "world.ply") as path:
            path.write_text(text)
    assert tree(tmp_path) == {"world.ply": "second"} and made_here(tmp_path / "world.ply")
    (tmp_path / "world.ply").write_text("edited")
    with pytest.raises(ArtifactError, match="not made by this program"), publish_file(tmp_path / "world.ply"):
        pass
    with publish_file(tmp_path / "world.ply", signature=b"edi") as path:
        path.write_text("third")
    assert tree(tmp_path) == {"world.ply": "third"}


def test_a_file_of_an_artifact_stays_part_of_it(tmp_path: Path) -> None:
    """The export's default target is a file that training wrote."""
    make(tmp_path / "out", "x")
    with publish_file(tmp_path / "out" / "data") as path:
        path.write_text("longer")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]["data"][0] == 6
    assert made_here(tmp_path / "out" / "data") and foreign(tmp_path / "out") == []


def test_inputs_in_outputs_and_outputs_in_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shots" / "day").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "shots")
    for target, given in (("shots", "shots"), ("shots", "shots/day"), ("shots/day", "link/day"), ("link", "shots")):
        with pytest.raises(ConfigError, match="is read"):
            require_replaceable([Output(tmp_path / target, KIND)], reads=[tmp_path / given])
    with pytest.raises(ConfigError, match="is read"):
        require_replaceable([Output(tmp_path / "link" / "scene", KIND)], sources=[tmp_path / "shots"])
    require_replaceable([Output(tmp_path / "shots_scene", KIND)], reads=[tmp_path / "shots"], sources=[tmp_path / "shots"])


def test_a_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    """Twice: the second time there is something to be put aside. A link to nothing yet works too."""
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big" / "out")
    for text in ("first", "second"):
        make(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink() and tree(tmp_path / "big") == {"out/data": text}
    assert [p.name for p in (tmp_path / "big").iterdir()] == ["out"]


def test_files_that_somebody_put_into_a_result_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "x")
    make(out / "evaluation", "derived")
    with publish_file(out / "mesh.glb") as path:
        path.write_text("derived")
    (out / "path.json").write_text("mine")
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("mine")
    (out / "evaluation" / "b.txt").write_text("mine")
    (out / ".DS_Store").write_text("nobody's")
    with Transaction([Output(out, KIND)], report=(notes := Notes())) as transaction:
        (transaction.path(out) / "data").write_text("y")
    kept = next(p.name for p in tmp_path.iterdir() if ".kept-" in p.name)
    assert tree(tmp_path) == {
        "out/data": "y", "out/path.json": "mine", f"{kept}/notes/a.txt": "mine", f"{kept}/evaluation/b.txt": "mine",
    }  # fmt: skip
    assert len(notes.lines) == 2 and all("kept as" in line for line in notes.lines)


def test_a_folder_that_appears_during_the_work_is_kept(tmp_path: Path) -> None:
    with publish(tmp_path / "out", KIND) as folder:
        (folder / "data").write_text("x")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    kept = next(p.name for p in tmp_path.iterdir() if ".kept-" in p.name)
    assert tree(tmp_path) == {"out/data": "x", f"{kept}/mine": "mine"}


@pytest.mark.parametrize("error", [InputError("a", "b"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_after_an_error_the_earlier_result_stands_alone(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "out", "first")
    with pytest.raises((V2WError, KeyboardInterrupt)), publish(tmp_path / "out", KIND) as folder:
        (folder / "data").write_text("half")
        raise error
    assert tree(tmp_path) == {"out/data": "first"} and len(list(tmp_path.iterdir())) == 1


def test_after_a_bug_the_unfinished_folder_is_named_and_kept_until_the_next_try(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "out", KIND, report=(notes := Notes())) as folder:
        (folder / "data").write_text("half")
        raise ZeroDivisionError
    (failed,) = tmp_path.iterdir()
    assert ".failed-" in failed.name and str(failed) in notes.lines[0] and (failed / "data").read_text() == "half"
    make(tmp_path / "out", "whole")
    assert tree(tmp_path) == {"out/data": "whole"}


def outputs(root: Path) -> list[Output]:
    return [Output(root / "exports" / "npz", KIND), Output(root / "frames", "frames"), Output(root / "book.json", "file", file=True)]


def write_all(root: Path, text: str) -> None:
    with Transaction(outputs(root), home=root) as transaction:
        for output in outputs(root):
            path = transaction.path(output.path)
            (path if output.file else path / "data").write_text(text)
        write_manifest(transaction.path(outputs(root)[0].path), schema=KIND, config={}, inputs={})


def contents(root: Path) -> list[str]:
    return [(o.path if o.file else o.path / "data").read_text() for o in outputs(root)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_kill_before_any_step_leaves_all_old_or_all_new(tmp_path: Path, before: str) -> None:
    """And no moment in which the first output stands while another is missing or of the other run."""
    finished, number = [], 0
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        if before == "old":
            write_all(root, "old")
        was_killed = killed_at(number, lambda root=root: write_all(root, "new"))  # type: ignore[misc]
        first = outputs(root)[0].path / "data"
        if first.is_file():
            assert set(contents(root)) == {first.read_text()}
        root = root.rename(tmp_path / f"moved{number}")  # the scene may be moved in between
        recover(root)
        if outputs(root)[0].path.exists() or before == "old":
            assert len(set(contents(root))) == 1
            finished.append(contents(root)[0])
        else:
            assert not any(o.path.exists() for o in outputs(root))
            finished.append("nothing")
        write_all(root, "next")
        assert tree(root) == {"exports/npz/data": "next", "frames/data": "next", "book.json": "next"}
        assert not [p for p in root.rglob("*") if ".partial" in p.name or ".old" in p.name or ".commit" in p.name]
        if not was_killed:
            break
        number += 1
    assert number > 20
    assert finished == sorted(finished, key=["nothing", "old", "new"].index) and {before, "new"} == set(finished)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_single_publication_never_loses_the_result(tmp_path: Path) -> None:
    number = 0
    while True:
        final = tmp_path / str(number) / "out"
        final.parent.mkdir()
        make(final, "old")
        (final / "mine").write_text("mine")
        was_killed = killed_at(number, lambda final=final: make(final, "new"))  # type: ignore[misc]
        recover(final.parent)
        assert (final / "data").read_text() in ("old", "new")
        make(final, "next")
        assert tree(final.parent) == {"out/data": "next", "out/mine": "mine"}
        if not was_killed:
            break
        number += 1
    assert number > 10


def test_a_result_put_aside_comes_back_if_nothing_replaced_it(tmp_path: Path) -> None:
    """A lost journal, and what the first versions left when they were killed between two renames."""
    for name in ("out.old-0123abcd", "out.old"):
        make(tmp_path / name, "old")
        with pytest.raises(InputError), publish(tmp_path / "out", KIND):
            raise InputError("stop", "here")
        assert tree(tmp_path) == {"out/data": "old"}
        make(tmp_path / "out", "x")
        (tmp_path / "out").rename(tmp_path / "done")
        make(tmp_path / "done", "done")
        for path in (tmp_path / "done").iterdir():
            path.unlink()
        (tmp_path / "done").rmdir()


def test_leftovers_that_cannot_be_removed_do_not_stop_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system keeps names of open files: the folder put aside stays, with something in it."""
    make(tmp_path / "out", "first")
    from utils.scene import transaction

    monkeypatch.setattr(transaction.shutil, "rmtree", lambda *args, **kwargs: None)
    make(tmp_path / "out", "second")
    (old,) = tmp_path.glob("out.old-*")
    (old / ".nfs000000000001").write_text("open elsewhere")
    make(tmp_path / "out", "third")
    assert (tmp_path / "out" / "data").read_text() == "third"


def test_a_refused_rename_undoes_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, "old")
    rename, count = Path.rename, [0]

    def refuse(path: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == 4:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        write_all(tmp_path, "new")
    assert set(contents(tmp_path)) == {"old"}


def test_another_process_at_work_keeps_its_folder(tmp_path: Path) -> None:
    """Two exports to one place: neither removes what the other is writing, the last one stands."""
    with publish(tmp_path / "out", KIND) as first:
        (first / "data").write_text("first")
        make(tmp_path / "out", "second")
        assert (first / "data").is_file()
    assert tree(tmp_path) == {"out/data": "first"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": null}, "whole": "yes"}', "[" * 100_000])
def test_a_damaged_mark_counts_as_none(tmp_path: Path, content: str) -> None:
    for name in (MARK, MANIFEST):
        (tmp_path / name).write_text(content)
    assert not read_mark(tmp_path).whole
