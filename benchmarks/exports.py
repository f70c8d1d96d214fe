"""Every export format of a trained world: size, time to write, and how far three of its views are from the project's own renders.

Run `python -m benchmarks.exports ROOT`. Fidelity is that of the project's reader, which the tests hold against gsply, usd-core and
trimesh. With `--splat-transform COMMAND` (PlayCanvas's converter, a Node program) each file that it reads is turned into a PLY by it
and that is measured, too. Process time is the number to trust on a busy machine.
"""

import argparse
import json
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from configs.evaluation import ExportConfig
from utils.exports.check import RECORD, psnr_of_file
from utils.exports.stage import run as export
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer

# Format, layout and name of the file; those in right-up-back axes come back right-down-front from the converter.
SPLATS = (
    ("ply", "standard", "a.ply"),
    ("ply", "strict", "strict.ply"),
    ("glb", "standard", "a.glb"),
    ("usd", "standard", "a.usdc"),
    ("sog", "standard", "a.sog"),
    ("spz", "strict", "v2.spz"),
    ("spz", "standard", "v3.spz"),
    ("spz", "newest", "v4.spz"),
    ("ply-compressed", "standard", "a.compressed.ply"),
    ("splat", "standard", "a.splat"),
    ("html", "standard", "world.html"),
)
MESHES = (("mesh-glb", False), ("collider", False), ("collider", True), ("mesh-textured", False))
_CONVERTIBLE = (".ply", ".sog", ".spz", ".splat")


def main() -> None:
    """Prints two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--splat-transform", default="", help="command that starts splat-transform")
    options = parser.parse_args()
    _, checkpoint = locate_checkpoint(options.root, "", None)
    rasterizer, device, reason = resolve_rasterizer("auto", "auto")
    view = SplatView(load_checkpoint(checkpoint), rasterizer, device)
    print(f"{len(view.splats)} splats of degree {view.splats.sh_degree}, {reason}\n")
    with tempfile.TemporaryDirectory() as folder:
        splat_table(options.root, checkpoint, view, Path(folder), shlex.split(options.splat_transform))
        mesh_table(options.root, Path(folder))


def splat_table(root: Path, checkpoint: Path, view: SplatView, folder: Path, converter: list[str]) -> None:
    print("| format | layout | MB | write, s | PSNR, our reader | PSNR, splat-transform |\n| --- | --- | --- | --- | --- | --- |")
    for kind, layout, name in SPLATS:
        path = export(ExportConfig(root_path=root, format=kind, layout=layout, out_ply=folder / name))  # type: ignore[arg-type]
        entry = json.loads((checkpoint / RECORD).read_text())[name]
        other = converted(converter, path, view) if converter and path.suffix in _CONVERTIBLE else "-"
        print(f"| {kind} | {layout} | {entry['bytes'] / 1e6:.2f} | {entry['seconds']:.2f} | {worst(entry['psnr'])} | {other} |")


def converted(converter: list[str], path: Path, view: SplatView) -> str:
    """PSNR of what another program makes of the file."""
    ply = path.with_name(f"from_{path.name}.ply")
    subprocess.run([*converter, "-q", "-w", str(path), str(ply)], check=True, capture_output=True)
    return worst(psnr_of_file(ply, view, np.eye(3), 1.0)[1])


def worst(psnr: list[float]) -> str:
    return f"{min(psnr):.1f}"


def mesh_table(root: Path, folder: Path) -> None:
    print("\n| mesh | MB | CPU s |\n| --- | --- | --- |")
    for kind, watertight in MESHES:
        path, start = folder / f"{kind}.glb", time.process_time()
        export(ExportConfig(root_path=root, format=kind, watertight=watertight, out_ply=path))  # type: ignore[arg-type]
        print(f"| {kind}{', watertight' * watertight} | {path.stat().st_size / 1e6:.1f} | {time.process_time() - start:.1f} |")


if __name__ == "__main__":
    main()
