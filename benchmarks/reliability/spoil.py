"""Damage to files, by chance: bytes, JSON, arrays, PyTorch files, and things that are no files at all."""

import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (0, -1, 1, 2, 1e-300, 1e300, -1e12, 1e12, 2**31, 2**63, 2**70, 0.5, float("nan"), float("inf"), float("-inf"))
WORDS = (
    "",
    " ",
    "x",
    "../../../etc/passwd",
    "/dev/null",
    "own",
    "a" * 300,
    "new\nline",
    "nul\0",
    "\u202eabc",
    "\ud800",
    "ten",
    "nan",
    "1e400",
)
PLAIN: tuple[Any, ...] = (*NUMBERS, *WORDS, None, True, [], {}, [[]], [None], {"": 0}, [[0, 0], [0]])


def bytes_of(draws: random.Random, path: Path) -> str:
    """Cuts, empties, overwrites or lengthens a file; says what was done."""
    raw = bytearray(path.read_bytes())
    how = draws.choice(("cut", "cut", "emptied", "zeros", "noise", "bits", "bits", "bits", "doubled", "text", "head", "number"))
    if how == "cut":
        raw = raw[: draws.randrange(len(raw) + 1)]
    elif how == "emptied":
        raw = bytearray()
    elif how == "zeros":
        raw = bytearray(len(raw))
    elif how == "noise":
        raw = bytearray(draws.randbytes(min(len(raw), 100_000)))
    elif how == "bits" and raw:
        for _ in range(draws.choice((1, 4, 40))):
            raw[draws.randrange(len(raw))] = draws.randrange(256)
    elif how == "head" and raw:
        for _ in range(4):
            raw[draws.randrange(min(len(raw), 200))] = draws.randrange(256)
    elif how == "number" and len(raw) > 8:
        at = draws.randrange(min(len(raw) - 8, 400) + 1)
        raw[at : at + 8] = struct.pack("<q", draws.choice((-1, 0, 2**31, 2**40, 2**62, 10**9)))
    elif how == "doubled":
        raw = raw * 2
    else:
        raw = bytearray("this is text, äöü\n".encode() * 20)
    path.write_bytes(raw)
    return f"bytes: {how}"


def kind_of(draws: random.Random, path: Path) -> str:
    """Puts something else where a file was: nothing, a folder, a pipe, a link to itself, to nowhere or to a device."""
    how = draws.choice(("gone", "folder", "pipe", "loop", "dangling", "/dev/null", "/dev/zero", "/proc/self/mem", "socket"))
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "socket":
        os.mknod(path, 0o140644)
    elif how != "gone":
        path.symlink_to(how)
    return f"is now: {how}"


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a nested one, its own first."""
    found = [place]
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*place, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 40)):
            found += _places(value[i], (*place, i))
    return found


def value_in(draws: random.Random, value: Any) -> tuple[Any, str]:
    """A nested value with one part replaced, removed, repeated or nested; and what was done."""
    place = draws.choice(_places(value))
    how = draws.choice(("replace", "replace", "replace", "replace", "remove", "repeat", "nest"))
    if not place:
        return draws.choice(PLAIN), "all of it replaced"
    owner = value
    for step in place[:-1]:
        owner = owner[step]
    last, name = place[-1], ".".join(map(str, place))
    if how == "remove":
        del owner[last]
    elif how == "repeat":
        if isinstance(owner, list):
            owner.extend([owner[last]] * draws.choice((1, 3, 2000)))
        else:
            owner[f"{last}_"] = owner[last]
    elif how == "nest":
        for _ in range(draws.choice((1, 30))):
            owner[last] = draws.choice(([owner[last]], {"a": owner[last]}))
    else:
        new = draws.choice(PLAIN)
        owner[last] = new
        return value, f"{name} = {str(new)[:40]!r}"
    return value, f"{name}: {how}"


def json_in(draws: random.Random, path: Path) -> str:
    """Changes a JSON file: a part of its value, or the text of it."""
    how = draws.random()
    if how < 0.05:
        path.write_text("[" * 100_000)
        return "JSON: 100,000 brackets"
    if how < 0.1:
        path.write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
        return "JSON: 50,000 objects"
    if how < 0.15:
        path.write_bytes(path.read_bytes().replace(b'"', b"\xff", 3))
        return "JSON: not UTF-8"
    if how < 0.2:
        path.write_text("9" * 6000)
        return "JSON: a number of 6000 digits"
    value, about = json.loads(path.read_text()), []
    for _ in range(draws.choice((1, 1, 1, 3))):
        value, words = value_in(draws, value)
        about.append(words)
    path.write_text(json.dumps(value))
    return "JSON: " + "; ".join(about)


def array_in(draws: random.Random, array: np.ndarray) -> tuple[Any, str]:
    """An array of another type, shape or content; and what was done."""
    changes: dict[str, Callable[[np.ndarray], Any]] = {
        "text": lambda a: np.full(a.shape, "abc"),
        "objects": lambda a: np.array([None, "x"], dtype=object),
        "nan": lambda a: np.full(a.shape, np.nan, np.float32),
        "infinite": lambda a: np.full(a.shape, np.inf, np.float32),
        "one nan": lambda a: _with(a, draws, np.nan),
        "one infinite": lambda a: _with(a, draws, np.inf),
        "one huge": lambda a: _with(a, draws, 1e30),
        "zeros": np.zeros_like,
        "negative": lambda a: -a.astype(np.float64),
        "huge": lambda a: a.astype(np.float64) * 1e30,
        "tiny": lambda a: a.astype(np.float64) * 1e-300,
        "constant": lambda a: np.full_like(a, 1),
        "complex": lambda a: a.astype(np.complex128),
        "bool": lambda a: a.astype(bool),
        "int64": lambda a: np.nan_to_num(a).astype(np.int64),
        "float16": lambda a: a.astype(np.float16),
        "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
        "empty": lambda a: a[:0],
        "one": lambda a: a[:1],
        "shorter": lambda a: a[:-1],
        "longer": lambda a: np.concatenate([a, a]),
        "flat": np.ravel,
        "transposed": np.transpose,
        "one axis more": lambda a: a[None],
        "scalar": lambda a: a.ravel()[:1].sum(),
        "last axis cut": lambda a: a[..., :1],
        "second axis cut": lambda a: a[:, :1],
        "both axes cut": lambda a: a[:, :2, :2],
        "reversed": lambda a: a[::-1],
        "times": lambda a: np.zeros(a.shape, "datetime64[s]"),
        "records": lambda a: np.zeros(len(a), [("x", "f4")]),
    }
    name = draws.choice(list(changes))
    with np.errstate(all="ignore"):
        try:
            return changes[name](array), name
        except (ValueError, IndexError, TypeError):
            return np.zeros(0), "nothing"


def _with(array: np.ndarray, draws: random.Random, value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    if changed.size:
        changed.ravel()[draws.randrange(changed.size)] = value
    return changed.reshape(array.shape)


def npz_in(draws: random.Random, path: Path) -> str:
    """Changes an array of an npz file, removes it, or makes the archive lie."""
    with np.load(path, allow_pickle=True) as stored:
        arrays = dict(stored)
    name = draws.choice(sorted(arrays))
    how = draws.random()
    if how < 0.1:
        del arrays[name]
        np.savez(path, **arrays)
        return f"npz: no {name}"
    if how < 0.2:
        return _lying(path, arrays, name, draws)
    if how < 0.25:
        np.savez(path, **arrays, **{f"more_{name}": arrays[name]})
        return "npz: one array more"
    arrays[name], about = array_in(draws, arrays[name])
    np.savez(path, **arrays)
    return f"npz: {name} {about}"


def _lying(path: Path, arrays: dict[str, np.ndarray], name: str, draws: random.Random) -> str:
    """An archive in which one member declares a shape that it has not."""
    shape = draws.choice(
        ("(1000000000,)", "(1000000, 1000000)", "(-1,)", "()", "(2, 'x')", "(10000000000000000000000,)", "__import__('os')")
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            raw = stream.getvalue()
            if key == name:
                header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
                header += " " * (-(len(header) + 11) % 64) + "\n"
                raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(1000)
            archive.writestr(f"{key}.npy", raw)
    return f"npz: {name} declares {shape}"


def tensors_in(draws: random.Random, path: Path) -> str:
    """Changes a value of a PyTorch file."""
    import torch

    value = torch.load(path, map_location="cpu", weights_only=True)
    keys = [place for place in _places(value) if place]
    if not keys or draws.random() < 0.1:
        torch.save(draws.choice(PLAIN), path)
        return "pt: all of it replaced"
    place = draws.choice(keys)
    owner = value
    for step in place[:-1]:
        owner = owner[step]
    last, old = place[-1], owner[place[-1]]
    about = "replaced"
    if isinstance(old, torch.Tensor) and draws.random() < 0.8:
        array, about = array_in(draws, old.numpy())
        try:
            owner[last] = torch.as_tensor(np.array(array))
        except (TypeError, ValueError):
            owner[last] = about
    elif draws.random() < 0.2 and isinstance(owner, dict):
        del owner[last]
        about = "removed"
    else:
        owner[last] = draws.choice(PLAIN)
    torch.save(value, path)
    return f"pt: {'.'.join(map(str, place))} {about}"


def text_in(draws: random.Random, path: Path) -> str:
    """Changes a word of a text file, or drops, repeats or cuts a line."""
    lines = path.read_text(errors="replace").splitlines()
    at = draws.randrange(len(lines)) if lines else 0
    how = draws.choice(("word", "word", "word", "word", "drop", "repeat", "cut", "long"))
    if lines and how == "word":
        words = lines[at].split(" ")
        words[draws.randrange(len(words))] = str(draws.choice((*NUMBERS, *WORDS[:10])))
        lines[at] = " ".join(words)
    elif lines and how == "drop":
        del lines[at]
    elif lines and how == "repeat":
        lines[at:at] = [lines[at]] * 3
    elif lines and how == "cut":
        lines[at] = lines[at][: len(lines[at]) // 2]
    else:
        lines.append("1 " * 200_000)
    path.write_text("\n".join(lines), errors="replace")
    return f"text: {how} in line {at + 1}"


def spoil(draws: random.Random, path: Path) -> str:
    """Damages a file in a way that fits its kind; says how."""
    fitting: dict[str, Callable[[random.Random, Path], str]] = {
        ".json": json_in, ".npz": npz_in, ".pt": tensors_in, ".txt": text_in, ".ply": bytes_of,
    }  # fmt: skip
    choice = draws.random()
    if choice < 0.15:
        about = kind_of(draws, path)
    elif choice < 0.35 or path.suffix not in fitting:
        about = bytes_of(draws, path)
    else:
        try:
            about = fitting[path.suffix](draws, path)
        except (ValueError, RecursionError):  # its content is none of its kind as it is
            about = bytes_of(draws, path)
    return f"{path.name}: {about}"
