"""Uploads that are meant to do harm: small files that ask for much. Shared by the tests and `benchmarks.reliability.web`."""

import bz2
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Attack = tuple[str, bytes]


def png(width: int, height: int) -> bytes:
    """A valid one-colour picture of any size, some kilobytes."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + row.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gif(width: int, height: int) -> bytes:
    """A valid GIF of one frame, with a screen of this size."""
    one = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff" + one + b"\x3b"


def frames_zip(pictures: list[bytes], names: list[str] | None = None, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of frames."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(names[i] if names else f"{i}.png", picture)
    return packed.getvalue()


def small_picture() -> bytes:
    """A frame as it should be."""
    return cv2.imencode(".png", np.full((72, 96, 3), 90, np.uint8))[1].tobytes()


def lying_zip(megabytes: int, method: int) -> bytes:
    """Eight members that unpack to `megabytes` each and declare 1000 bytes."""
    packer = bz2.BZ2Compressor(9) if method == zipfile.ZIP_BZIP2 else zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    out, central = b"", b""
    for i in range(8):
        name = f"{i}.png".encode()
        fields = struct.pack("<HHHHHIIIHH", 46, 0, method, 0, 33, 0, len(body), 1000, len(name), 0)
        central += b"PK\x01\x02" + struct.pack("<H", 46) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(out)) + name
        out += b"PK\x03\x04" + fields + name + body
    return out + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 8, 8, len(central), len(out), 0)


def attacks() -> dict[str, Callable[[], Attack]]:
    """What it is -> file name and bytes."""
    good = small_picture()
    return {
        "bzip2 member that unpacks to 700 MB, declared 1000 bytes": lambda: ("a.zip", lying_zip(700, zipfile.ZIP_BZIP2)),
        "deflated member that unpacks to 700 MB, declared 1000 bytes": lambda: ("a.zip", lying_zip(700, zipfile.ZIP_DEFLATED)),
        "ZIP of eight zeros of 300 MB each": lambda: ("a.zip", frames_zip([bytes(300 << 20)] * 8)),
        "ZIP of frames of 1 x 2000": lambda: ("a.zip", frames_zip([png(1, 2000)] * 8)),
        "ZIP of frames of 1 x 60000": lambda: ("a.zip", frames_zip([png(1, 60000)] * 8)),
        "ZIP of frames of 20000 x 20000": lambda: ("a.zip", frames_zip([png(20000, 20000)] * 8)),
        "ZIP of frames of 33000 x 33000": lambda: ("a.zip", frames_zip([png(33000, 33000)] * 8)),
        "GIF of 1 x 2000": lambda: ("a.gif", gif(1, 2000)),
        "GIF of 60000 x 60000": lambda: ("a.gif", gif(60000, 60000)),
        "names with a superscript digit": lambda: ("a.zip", frames_zip([good] * 8, [f"1²{i}.png" for i in range(8)])),
        "names of 5000 digits": lambda: ("a.zip", frames_zip([good] * 8, [f"{'9' * 5000}{i}.png" for i in range(8)])),
        "two frames": lambda: ("a.zip", frames_zip([good] * 2)),
        "text named as frames": lambda: ("a.zip", frames_zip([b"text"] * 8)),
        "playlist named MP4": lambda: ("a.mp4", b"#EXTM3U\nfile:///etc/passwd\n"),
        "MP4 of zeros": lambda: ("a.mp4", b"\0\0\0\x18ftypisom" + bytes(200_000)),
        "WebM of noise": lambda: ("a.webm", b"\x1a\x45\xdf\xa3" + np.random.default_rng(0).bytes(200_000)),
        "ZIP cut in half": lambda: ("a.zip", frames_zip([good] * 8)[:400]),
        "ZIP with a damaged member": lambda: ("a.zip", _damaged(frames_zip([good] * 8))),
        "bzip2 with a damaged member": lambda: ("a.zip", _damaged(frames_zip([good] * 8, method=zipfile.ZIP_BZIP2))),
    }


def _damaged(archive: bytes) -> bytes:
    spoilt = bytearray(archive)
    spoilt[60:90] = bytes(30)
    return bytes(spoilt)


def write_attack(folder: Path, attack: Attack) -> Path:
    """Writes an attack's file."""
    path = folder / attack[0]
    path.write_bytes(attack[1])
    return path
