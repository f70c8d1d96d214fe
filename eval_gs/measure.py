"""How close renders come to the frames: per frame, and the means that go into `metrics.json`."""

from dataclasses import asdict, dataclass

import numpy as np

from eval_gs.metrics import Lpips, PerceptualDistance, psnr, sharpness, ssim
from utils.errors import MissingDependencyError
from utils.types import Array


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One frame against its renders.

    Attributes:
        frame_id: in results.npz.
        heldout: whether splatting never saw it.
        left_out: whether alignment could not place it, so that it was not trained on; its camera comes from its neighbours.
        psnr: dB, render through the frame's inverse deformation and colour map.
        ssim: the same, -1..1.
        lpips: the same; None if not measured.
        rigid_psnr: dB, the consistent world from the same camera, undeformed, through the frame's colour map.
        canonical_psnr: dB, the consistent world from the same camera, undeformed and in its own colours.
        canonical_ssim: the same, -1..1.
        sharpness: of the canonical render, squared grey levels.
        input_sharpness: of the frame.
    """

    frame_id: int
    heldout: bool
    left_out: bool
    psnr: float
    ssim: float
    lpips: float | None
    rigid_psnr: float
    canonical_psnr: float
    canonical_ssim: float
    sharpness: float
    input_sharpness: float


def score_frame(
    frame_id: int,
    image: Array,
    through: Array,
    rigid: Array,
    canonical: Array,
    lpips: PerceptualDistance | None,
    used: Array | None = None,
    *,
    heldout: bool,
    left_out: bool = False,
) -> FrameScore:
    """Scores of one frame.

    Args:
        frame_id: in results.npz.
        image: (h, w, 3) uint8, the frame.
        through: (h, w, 3) uint8, render through its deformation and colour map.
        rigid: (h, w, 3) uint8, render of the undeformed world through its colour map.
        canonical: (h, w, 3) uint8, render of the world as it is.
        lpips: the perceptual distance, or None.
        used: (h, w) bool, pixels that no mask takes out; None for all. The others neither count nor show in windows around those that do.
        heldout: whether splatting never saw it.
        left_out: whether alignment could not place it.
    """

    def expected(render: Array) -> Array:
        return image if used is None else np.where(used[..., None], image, render)

    return FrameScore(
        frame_id=frame_id,
        heldout=heldout,
        left_out=left_out,
        psnr=psnr(through, image, used),
        ssim=ssim(through, expected(through), used),
        lpips=None if lpips is None else lpips(through, expected(through)),
        rigid_psnr=psnr(rigid, image, used),
        canonical_psnr=psnr(canonical, image, used),
        canonical_ssim=ssim(canonical, expected(canonical), used),
        sharpness=sharpness(canonical, used),
        input_sharpness=sharpness(image, used),
    )


def summarize(scores: list[FrameScore]) -> dict[str, dict[str, float]]:
    """Means over training frames, held-out frames, and frames that alignment left out; a group without frames is left out."""
    summary: dict[str, dict[str, float]] = {}
    for name, members in (
        ("train", [s for s in scores if not s.heldout and not s.left_out]),
        ("heldout", [s for s in scores if s.heldout]),
        ("left_out", [s for s in scores if s.left_out]),
    ):
        rows = [asdict(s) for s in members]
        if not rows:
            continue
        keys = [k for k in rows[0] if k not in ("frame_id", "heldout", "left_out") and rows[0][k] is not None]
        summary[name] = {key: float(np.mean([row[key] for row in rows])) for key in keys} | {"frames": len(rows)}
    return summary


def lpips_or_reason(wanted: bool) -> tuple[PerceptualDistance | None, str]:
    """LPIPS if it was asked for and can run here; else None and why, empty if it was not asked for."""
    if not wanted:
        return None, ""
    try:
        return Lpips(), ""
    except MissingDependencyError as error:
        return None, f"{error.message}: {error.hint}."
