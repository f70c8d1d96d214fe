"""Which files of a run the page offers. A request names one of these; no path from a request is ever joined to a folder."""

import io
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.report.verdict import verdict
from utils.scene.layout import RunLayout, SceneLayout
from utils.viewer.world import newest_training


@dataclass(frozen=True)
class Format:
    """A file that a finished world can be written to.

    Attributes:
        kinds: names of the export command.
        name: as people know it.
        use: what it is good for.
        file: where the command puts the first kind, in the checkpoint folder.
        needs: module without which it cannot be made; empty for none.
    """

    kinds: tuple[str, ...]
    name: str
    use: str
    file: str
    needs: str = ""


# By the name under which a visitor asks for it.
FORMATS = {
    "html": Format(("html",), "World as one file, HTML", "opens by double click, to send to anybody", "world.html"),
    "ply": Format(("ply",), "Splats, PLY", "opens in most viewers and editors", "splats_{}.ply"),
    "spz": Format(("spz",), "Splats, SPZ", "small", "splats_{}.spz"),
    "sog": Format(("sog",), "Splats, SOG", "the smallest, for the web", "splats_{}.sog"),
    "splat": Format(("splat",), "Splats, .splat", "for web viewers", "splats_{}.splat"),
    "glb": Format(("glb",), "Splats, glTF", "for engines that read KHR_gaussian_splatting", "splats_{}.glb"),
    "usd": Format(("usd",), "Splats, OpenUSD", "for Omniverse and other USD programs", "splats_{}.usdc", "pxr"),
    "mesh": Format(("mesh-glb", "mesh-ply"), "Mesh, GLB", "for Blender and game engines", "mesh.glb"),
}
_FILES = {kind: f.file for f in FORMATS.values() for kind in f.kinds[:1]} | {"mesh-ply": "mesh.ply"}
_FILM_WORDS = {
    "gs_video": "Fly-through",
    "clip_and_world": "The clip and the world, side by side",
    "input_poses": "From the cameras of the clip",
    "optimised_poses": "From the refined cameras",
}
# Name of `utils.splatting.checkpoint`, which is not imported: it would load PyTorch into the server.
_CHECKPOINT = "model_final.pt"


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
    return folder / _FILES[kind].format(folder.name.removeprefix("gs_"))


def offers(root: Path) -> list[Offer]:
    """Films and exports of a scene."""
    found = []
    folders = splat_folders(root)
    for folder in folders:
        renderer = folder.name.removeprefix("gs_")
        suffix = f" ({renderer.upper()})" if len(folders) > 1 else ""
        for path in sorted(RunLayout.evaluation(folder).glob("*.mp4"), key=_place):
            words = next((w for k, w in _FILM_WORDS.items() if k in path.stem), path.stem.replace("_", " "))
            found.append(Offer(path.relative_to(root).as_posix(), path, "film", words + suffix))
        for form in FORMATS.values():
            for kind in form.kinds:
                path = export_path(folder, kind)
                if path.is_file():
                    words = f"{form.name if kind == form.kinds[0] else 'Mesh, PLY'}: {form.use}"
                    found.append(Offer(path.relative_to(root).as_posix(), path, "export", words + suffix))
    return found


def _place(film: Path) -> tuple[int, str]:
    """Films that are looked at first come first."""
    return next((i for i, k in enumerate(_FILM_WORDS) if k in film.stem), len(_FILM_WORDS)), film.name


def judged(root: Path, mode: str) -> list[dict[str, Any]]:
    """How good the consistent worlds are, in words, one entry per renderer."""
    folders = splat_folders(root)
    found = [(folder, verdict(folder, mode)) for folder in folders]
    # Without the command line: it names folders of the server.
    return [
        {k: value for k, value in asdict(v).items() if k != "command"}
        | {"renderer": f.name.removeprefix("gs_").upper() if len(folders) > 1 else ""}
        for f, v in found
        if v is not None
    ]


def papers(root: Path) -> bytes:
    """A zip of the report and of everything that was measured or set: report.html, summaries, metrics, manifests."""
    packed = io.BytesIO()
    names = ("report.html", "report.json", "run_summary.json", "metrics.json", "manifest.json", "preprocess_frames.json")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for name in names for p in root.rglob(name)):
            archive.write(path, path.relative_to(root).as_posix())
    return packed.getvalue()
