"""Meshes as PLY and as binary glTF that looks the same in every reader: colours are light that was seen, so the material is unlit.

Vertex colours of glTF are linear, those of PLY and of pictures are sRGB. Readers that do not know KHR_materials_unlit get a rough,
non-metallic material and normals, so that no reader shows it black.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.exports.glb import ELEMENT_ARRAY_BUFFER, TRIANGLES, Glb, linear_from_srgb
from utils.exports.meshes.mesh import Mesh, vertex_normals
from utils.exports.meshes.texture import TexturedMesh
from utils.types import Array

_UNLIT = "KHR_materials_unlit"
_JPEG_QUALITY = 93


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Binary PLY with vertex colours and normals."""
    vertex = np.zeros(len(mesh.vertices), [("position", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)])
    vertex["position"], vertex["normal"], vertex["color"] = mesh.vertices, vertex_normals(mesh), mesh.colors
    face = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, mesh.faces
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertex)}"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    lines += [f"element face {len(face)}", "property list uchar int vertex_indices", "end_header", ""]
    path.write_bytes("\n".join(lines).encode("ascii") + vertex.tobytes() + face.tobytes())


def write_mesh_glb(path: Path, mesh: Mesh) -> None:
    """Binary glTF with vertex colours, in glTF's axes already: x right, y up, z back."""
    glb = Glb("world")
    colors = np.concatenate([linear_from_srgb(mesh.colors / 255.0), np.ones((len(mesh.colors), 1))], axis=1)
    attributes = {
        "POSITION": glb.accessor(mesh.vertices.astype(np.float32), bounds=True),
        "NORMAL": glb.accessor(vertex_normals(mesh).astype(np.float32)),
        "COLOR_0": glb.accessor(np.rint(65535 * colors).astype(np.uint16), normalized=True),
    }
    _finish(path, glb, attributes, mesh.faces, {}, unlit=True)


def write_collider_glb(path: Path, mesh: Mesh) -> None:
    """Binary glTF of the bare surface, which is lit where it is looked at."""
    glb = Glb("collider")
    attributes = {
        "POSITION": glb.accessor(mesh.vertices.astype(np.float32), bounds=True),
        "NORMAL": glb.accessor(vertex_normals(mesh).astype(np.float32)),
    }
    _finish(path, glb, attributes, mesh.faces, {}, unlit=False)


def write_textured_glb(path: Path, mesh: TexturedMesh) -> None:
    """Binary glTF with a JPEG texture inside."""
    glb = Glb("world")
    done, picture = cv2.imencode(".jpg", np.ascontiguousarray(mesh.texture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    attributes = {
        "POSITION": glb.accessor(mesh.vertices.astype(np.float32), bounds=True),
        "NORMAL": glb.accessor(mesh.normals.astype(np.float32)),
        "TEXCOORD_0": glb.accessor(mesh.uv.astype(np.float32)),
    }
    glb.document["images"] = [{"bufferView": glb.view(picture.tobytes()), "mimeType": "image/jpeg"}]
    glb.document["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
    glb.document["textures"] = [{"source": 0, "sampler": 0}]
    _finish(path, glb, attributes, mesh.faces, {"baseColorTexture": {"index": 0}}, unlit=True)


def _finish(path: Path, glb: Glb, attributes: dict[str, int], faces: Array, more: dict[str, Any], *, unlit: bool) -> None:
    """Adds triangles and the material, and writes; seen from behind, too, as people look into rooms from outside."""
    indices = glb.accessor(faces.reshape(-1, 1).astype(np.uint32), ELEMENT_ARRAY_BUFFER)
    material: dict[str, Any] = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0, **more},
        "doubleSided": True,
    }
    if unlit:
        material["extensions"] = {_UNLIT: {}}
        glb.document["extensionsUsed"] = [_UNLIT]
    glb.document["materials"] = [material]
    primitive = {"attributes": attributes, "indices": indices, "material": 0, "mode": TRIANGLES}
    glb.document["meshes"] = [{"primitives": [primitive]}]
    glb.write(path)
