"""Scenes behind fsspec: what comes back is what was put, and what is torn off counts as not made."""

import uuid

import fsspec
import pytest

from batch.storage import Storage, fetch_source
from utils.errors import ArtifactError, ConfigError


@pytest.fixture
def stores(tmp_path):
    """Two machines that see one store."""
    out = f"memory://{uuid.uuid4().hex}/worlds"
    return Storage(out, str(tmp_path / "one")), Storage(out, str(tmp_path / "two"))


def write(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_second_machine_goes_on_with_what_the_first_has_made(stores):
    one, two = stores
    assert not one.shared and one.fetch("kitchen") == one.root("kitchen")
    root = write(one.root("kitchen"), **{"npz__a": "1", "npz__manifest.json": "{}", "x.partial-0a__b": "no", ".video_to_world.lock": "no"})
    one.put("kitchen")
    there = two.fetch("kitchen")
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()) == ["npz/a", "npz/manifest.json"]
    write(there, npz__a="2", gs__splats="3")
    (there / "npz" / "manifest.json").unlink()
    two.put("kitchen")
    one.fetch("kitchen")
    assert (root / "npz" / "a").read_text() == "2" and (root / "gs" / "splats").read_text() == "3"
    assert not (root / "npz" / "manifest.json").exists()


def test_only_what_has_changed_travels(stores, monkeypatch):
    one, _ = stores
    write(one.root("s"), a="1", b="1")
    one.put("s")
    sent = []
    fs = fsspec.filesystem("memory")
    put = fs.put_file
    monkeypatch.setattr(type(fs), "put_file", lambda self, local, key, **k: sent.append(key.rsplit("/", 1)[-1]) or put(local, key, **k))
    write(one.root("s"), b="2")
    one.put("s")
    assert sent == ["b"]
    one.fetch("s")
    one.put("s")
    assert sent == ["b"]


def test_a_machine_lost_while_it_writes_leaves_no_manifest(stores, monkeypatch):
    one, two = stores
    write(one.root("s"), gs__a="1", gs__b="1", **{"gs__manifest.json": "{}"})
    one.put("s")
    write(one.root("s"), gs__a="2", gs__b="2", **{"gs__manifest.json": '{"new": 1}'})
    fs = fsspec.filesystem("memory")
    put, sent = fs.put_file, []

    def until_lost(self, local, key, **kwargs):
        if len(sent) == 1:
            raise OSError("connection reset")
        sent.append(key)
        put(local, key, **kwargs)

    monkeypatch.setattr(type(fs), "put_file", until_lost)
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        one.put("s")
    assert caught.value.hint
    assert not (two.fetch("s") / "gs" / "manifest.json").exists()


def test_addresses_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        Storage("nowhere://a/b").fetch("s")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/clips/a.mp4", b"clip")
    assert fetch_source("memory://clips/a.mp4", tmp_path).read_bytes() == b"clip"
    assert fetch_source("/here/b.mp4", tmp_path).as_posix() == "/here/b.mp4"
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        fetch_source("memory://clips/none.mp4", tmp_path)
