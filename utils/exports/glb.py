"""A minimal writer of binary glTF 2.0: arrays become accessors, the caller says what they mean."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from utils.types import Array

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
POINTS, TRIANGLES = 0, 4
_COMPONENTS = {"float32": 5126, "uint32": 5125, "uint16": 5123, "uint8": 5121}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class Glb:
    """Collects the parts of one file; `document` may be added to before `write`."""

    def __init__(self, title: str = "") -> None:
        self._binary = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "video_to_world"},
            "scene": 0,
            "scenes": [{"nodes": [0]} | ({"name": title} if title else {})],
            "nodes": [{"mesh": 0} | ({"name": title} if title else {})],
            "accessors": [],
            "bufferViews": [],
        }

    def view(self, data: bytes, target: int | None = None) -> int:
        """Index of a buffer view of these bytes."""
        entry: dict[str, int] = {"buffer": 0, "byteOffset": len(self._binary), "byteLength": len(data)}
        self._binary += data + b"\0" * (-len(data) % 4)
        self.document["bufferViews"].append(entry | ({"target": target} if target else {}))
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: Array, target: int = ARRAY_BUFFER, *, normalized: bool = False, bounds: bool = False) -> int:
        """Index of an accessor of values (N,) or (N, 2..4), float32, uint32, uint16 or uint8 in rows of whole words."""
        table = np.ascontiguousarray(values).reshape(len(values), -1)
        assert table.shape[1] * table.itemsize % 4 == 0 or target == ELEMENT_ARRAY_BUFFER
        entry: dict[str, Any] = {
            "bufferView": self.view(table.tobytes(), target),
            "componentType": _COMPONENTS[table.dtype.name],
            "count": len(table),
            "type": _TYPES[table.shape[1]],
        }
        if normalized:
            entry["normalized"] = True
        if bounds and len(table):
            entry |= {"min": table.min(axis=0).tolist(), "max": table.max(axis=0).tolist()}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def write(self, path: Path) -> None:
        """Writes the file: header, JSON padded by spaces, binary padded by zeros."""
        self.document["buffers"] = [{"byteLength": len(self._binary)}]
        text = json.dumps(self.document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(self._binary)
        with path.open("wb") as stream:
            stream.write(struct.pack("<4sII", b"glTF", 2, total))
            stream.write(struct.pack("<I4s", len(text), b"JSON") + text)
            stream.write(struct.pack("<I4s", len(self._binary), b"BIN\0") + self._binary)


def linear_from_srgb(values: Array) -> Array:
    """Linear light of sRGB values 0..1 (IEC 61966-2-1); glTF's vertex colours are linear."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
