"""Which files of a run the page offers. A request names one of these; no path from a request is ever joined to a folder."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.scene.layout import RunLayout, SceneLayout
from utils.viewer.world import newest_training

# Files that a visitor asks for afterwards: name -> formats.
BUNDLES = {"mesh": ("mesh-glb", "mesh-ply")}
_EXPORT_NAMES = {"ply": "splats_{}.ply", "splat": "splats_{}.splat", "spz": "splats_{}.spz", "mesh-glb": "mesh.glb", "mesh-ply": "mesh.ply"}
_EXPORT_WORDS = {
    "ply": "Splats, PLY: opens in most viewers and editors",
    "spz": "Splats, SPZ: the smallest",
    "splat": "Splats, .splat: for web viewers",
    "mesh-glb": "Mesh, GLB: for Blender and game engines",
    "mesh-ply": "Mesh, PLY",
}
_FILM_WORDS = {
    "gs_video": "Fly-through",
    "input_poses": "From the cameras of the clip",
    "optimised_poses": "From the refined cameras",
}
# Name of `utils.splatting.checkpoint`, which is not imported: it would load PyTorch into the server.
_CHECKPOINT = "model_final.pt"
_METRICS = {"psnr": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}"}


@dataclass(frozen=True)
class Offer:
    """One file that may be fetched.

    Attributes:
        key: how a request names it, relative to the scene.
        path: where it is.
        kind: `film` or `export`.
        words: what it is.
    """

    key: str
    path: Path
    kind: str
    words: str


def splat_folders(root: Path) -> list[Path]:
    """Folders with trained splats, of the newest run that has any."""
    layout = SceneLayout(root)
    for name in reversed(layout.runs()):
        folders = [p.parent for p in sorted(layout.run(name).root.glob(f"gs_*/{_CHECKPOINT}")) if not p.parent.suffix]
        if folders:
            return folders
    return []


def viewable(root: Path) -> bool:
    """Whether the viewer has something to show: trained splats, or those of a training that is under way."""
    return newest_training(root) is not None


def export_path(folder: Path, kind: str) -> Path:
    """Where the export command puts a format."""
    return folder / _EXPORT_NAMES[kind].format(folder.name.removeprefix("gs_"))


def offers(root: Path) -> list[Offer]:
    """Films and exports of a scene."""
    found = []
    folders = splat_folders(root)
    for folder in folders:
        renderer = folder.name.removeprefix("gs_")
        suffix = f" ({renderer.upper()})" if len(folders) > 1 else ""
        for path in sorted(RunLayout.evaluation(folder).glob("*.mp4")):
            words = next((w for k, w in _FILM_WORDS.items() if k in path.stem), path.stem.replace("_", " "))
            found.append(Offer(path.relative_to(root).as_posix(), path, "film", words + suffix))
        for kind, words in _EXPORT_WORDS.items():
            path = export_path(folder, kind)
            if path.is_file():
                found.append(Offer(path.relative_to(root).as_posix(), path, "export", words + suffix))
    return found


def quality(root: Path) -> list[str]:
    """How good the splats are, one line per renderer."""
    lines = []
    for folder in splat_folders(root):
        metrics = _json(RunLayout.evaluation(folder) / "metrics.json")
        for part, words in (("heldout", "on frames that training never saw"), ("train", "on training frames")):
            values = metrics.get(part) or {}
            numbers = [form.format(values[key]) for key, form in _METRICS.items() if isinstance(values.get(key), int | float)]
            if numbers:
                lines.append(f"{folder.name.removeprefix('gs_').upper()}: {', '.join(numbers)} {words}")
                break
    return lines


def papers(root: Path) -> bytes:
    """A zip of the report and of everything that was measured or set: report.html, summaries, metrics, manifests."""
    packed = io.BytesIO()
    names = ("report.html", "report.json", "run_summary.json", "metrics.json", "manifest.json", "preprocess_frames.json")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for name in names for p in root.rglob(name)):
            archive.write(path, path.relative_to(root).as_posix())
    return packed.getvalue()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
