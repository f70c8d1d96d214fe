"""`third_party/fetch.sh` with a local repository in place of the real ones, and sources found there without being installed."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import third_party

ROOT = Path(__file__).resolve().parents[2]


def git(folder, *words):
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    return subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def place(tmp_path):
    """A copy of the script beside a list of one local repository with two commits, pinned to the first, and a patch for it."""
    upstream, here = tmp_path / "upstream", tmp_path / "third_party"
    package = upstream / "src" / "a_backend"
    package.mkdir(parents=True)
    git(tmp_path, "init", "-q", str(upstream))
    (package / "model.py").write_text("ANSWER = 1\n")
    (upstream / "pyproject.toml").write_text('dependencies = [\n    "dataclasses>=0.8",\n    "einops",\n]\n')
    git(upstream, "add", "-A")
    git(upstream, "commit", "-qm", "first")
    pin = git(upstream, "rev-parse", "HEAD")
    (package / "model.py").write_text("ANSWER = 2\n")
    git(upstream, "commit", "-qam", "second")
    here.mkdir()
    shutil.copy(ROOT / "third_party" / "fetch.sh", here)
    (here / "sources.txt").write_text(f"# name url commit\na-backend {upstream} {pin}\n")
    (tmp_path / "patches").mkdir()
    patch = '--- a/pyproject.toml\n+++ b/pyproject.toml\n@@ -1,3 +1,2 @@\n dependencies = [\n-    "dataclasses>=0.8",\n     "einops",\n'
    (tmp_path / "patches" / "a-backend.patch").write_text(patch)
    return here


def fetch(place, *names):
    return subprocess.run([str(place / "fetch.sh"), *names], capture_output=True, text=True, check=False)


def test_the_pinned_commit_is_checked_out_and_patched_once(place):
    for names in (["a-backend"], ["all"]):
        done = fetch(place, *names)
        assert done.returncode == 0, done.stderr
        assert (place / "a-backend" / "src" / "a_backend" / "model.py").read_text() == "ANSWER = 1\n"
        assert "dataclasses" not in (place / "a-backend" / "pyproject.toml").read_text()


def test_other_names_are_refused(place):
    done = fetch(place, "b-backend")
    assert done.returncode == 2 and "known are: a-backend" in done.stderr
    assert fetch(place).returncode == 2


def test_a_checkout_is_used_without_being_installed(place, monkeypatch):
    assert not third_party.available("a_backend")
    fetch(place, "a-backend")
    monkeypatch.setattr(third_party, "CHECKOUTS", place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert not third_party.available("a_backend", compiled="a_backend_bindings/*.so")
    assert third_party.available("a_backend")
    assert importlib.import_module("a_backend.model").ANSWER == 1
    assert sys.path[-1].startswith(str(place))  # an installed package of the name would win
    del sys.modules["a_backend"], sys.modules["a_backend.model"]


def test_table_pins_and_patches_belong_together():
    rows = [line.split() for line in (ROOT / "third_party" / "sources.txt").read_text().splitlines() if not line.startswith("#")]
    named = re.findall(r"^\| ([\w-]+) \|", (ROOT / "third_party" / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == named[1:]
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for _, _, commit in rows)
    for patch in (ROOT / "patches").glob("*.patch"):
        assert patch.stem in named
        for file in re.findall(r"^\+\+\+ b/(.*)$", patch.read_text(), re.MULTILINE):
            assert file in ("pyproject.toml", "setup.py", "setup.cfg"), "patches are for packaging metadata"
