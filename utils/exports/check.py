"""What an exported file looks like: it is read back, drawn at three of the trained cameras, and compared with the project's own renders."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from utils.exports.readers import read_splats
from utils.exports.select import transform_splats
from utils.scene import artifacts
from utils.scene.transaction import publish_file
from utils.splatting.render import SplatView
from utils.splatting.sh import sh_basis
from utils.types import Array, Splats

RECORD = "exports.json"
_MOST_DB = 99.0


@dataclass(frozen=True, kw_only=True)
class ExportCheck:
    """How close a file is to the world it was made from.

    Attributes:
        format: as the export command calls it.
        splats: number in the file.
        bytes: size of the file.
        seconds: time to write it.
        psnr: dB at the first, middle and last trained camera, against the project's own renders.
        drawn_in: splats that were too far away for a quantised format and were moved nearer along the line of sight.
        clamped: splats with a size that the format cannot hold.
    """

    format: str
    splats: int
    bytes: int
    seconds: float
    psnr: list[float]
    drawn_in: int
    clamped: int


def psnr_of_file(path: Path, view: SplatView, file_from_world: Array, scale: float, suffix: str = "") -> tuple[Splats, list[float]]:
    """The splats of a file, back in the world's axes and scale, and the PSNR in dB of three views of them, at most 99.

    Files hold ellipsoids: a world of discs is drawn as other programs will, as thin ellipsoids.

    Args:
        path: a splat file.
        view: the world it was made from.
        file_from_world: (3, 3) rotation that was applied on writing, then `scale`.
        scale: factor on lengths.
        suffix: which format it is, where its name does not say.
    """
    splats = transform_splats(read_splats(path, suffix), file_from_world.T, 1 / scale, sh_basis)
    return splats, psnr_of(splats, view)


def psnr_of(splats: Splats, view: SplatView) -> list[float]:
    """The PSNR in dB of three views of splats against those of `view`, at most 99; see `psnr_of_file`."""
    trained = view.trained
    other = SplatView(replace(trained, splats=splats, renderer="3dgs"), view.rasterizer, view.device, near=view.near)
    cameras = trained.cameras
    scores = []
    for i in dict.fromkeys((0, len(cameras) // 2, len(cameras) - 1)):
        ours, theirs = (v.render(cameras.c2w[i], cameras.K[i], cameras.size).rgb.clamp(0, 1).double() for v in (view, other))
        error = float(((ours - theirs) ** 2).mean())
        scores.append(round(min(_MOST_DB, -10 * float(np.log10(max(error, 1e-12)))), 2))
    return scores


def written_splats(checkpoint: Path, view: SplatView) -> Splats | None:
    """The splats of the PLY that training wrote; None if there is none or the export command wrote it again, which checked it."""
    ply = checkpoint / f"splats_{view.trained.renderer}.ply"
    return read_splats(ply) if ply.name not in _recorded(checkpoint) and ply.is_file() else None


def checked_exports(checkpoint: Path, view: SplatView, written: Splats | None) -> dict[str, object]:
    """What `exports.json` holds, with the PLY that training wrote, whose splats are `written`, checked now."""
    known, ply = _recorded(checkpoint), checkpoint / f"splats_{view.trained.renderer}.ply"
    if written is not None:
        psnr = psnr_of(written, view)
        known[ply.name] = {"format": "ply", "splats": len(written), "bytes": ply.stat().st_size, "psnr": psnr}
    return known


def _recorded(checkpoint: Path) -> dict[str, object]:
    path = checkpoint / RECORD
    return dict(artifacts.read_json(path)) if path.is_file() else {}


def record(checkpoint: Path, name: str, check: ExportCheck) -> None:
    """Adds or replaces an entry of `exports.json` beside the checkpoint, which the evaluation copies into metrics.json."""
    path, known = checkpoint / RECORD, _recorded(checkpoint)
    with publish_file(path) as beside:
        artifacts.write_json(beside, dict(sorted((known | {name: asdict(check)}).items())))
