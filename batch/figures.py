"""What a finished scene is told by in one line and one picture."""

import base64
from pathlib import Path
from typing import Any

from utils.report.verdict import verdict
from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout

_STILL_WIDTH = 320


def figures(root: Path, mode: str = "") -> dict[str, Any]:
    """Of the newest trained splats: PSNR on held-out frames, grade, number, film, still (JPEG, base64), report; empty before there are any.

    Args:
        root: the scene.
        mode: preset, for the advice.
    """
    folder = _newest(root)
    if folder is None:
        return {}
    metrics, report = json_object(RunLayout.evaluation(folder) / "metrics.json"), json_object(folder / "report.json")
    heldout = metrics["heldout"] if isinstance(metrics.get("heldout"), dict) else {}
    judged = verdict(folder, mode)
    film = next(
        iter(sorted(RunLayout.evaluation(folder).glob("*gs_video*.mp4")) or sorted(RunLayout.evaluation(folder).glob("*.mp4"))), None
    )
    page = SceneLayout(root).report_html
    return {
        "psnr": _number(heldout.get("psnr")),
        "ssim": _number(heldout.get("ssim")),
        "world_psnr": judged.psnr if judged else None,
        "grade": judged.grade if judged else "",
        "advice": judged.advice if judged else "",
        "splats": report.get("splats"),
        "film": film.relative_to(root).as_posix() if film else "",
        "report": page.name if page.is_file() else "",
        "still": still(film) if film else "",
    }


def still(film: Path) -> str:
    """The middle frame of a film as a small JPEG in base64; empty if it cannot be read."""
    import cv2

    from utils.scene.media import decode

    try:
        frames = list(decode(film))
    except Exception:  # a picture more or less ends no batch
        return ""
    if not frames:
        return ""
    frame = frames[len(frames) // 2]
    height = max(1, round(frame.shape[0] * _STILL_WIDTH / frame.shape[1]))
    small = cv2.resize(frame, (_STILL_WIDTH, height), interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(jpeg.tobytes()).decode() if done else ""


def _newest(root: Path) -> Path | None:
    layout = SceneLayout(root)
    trained = [folder for name in reversed(layout.runs()) for folder in layout.run(name).trained()]
    evaluated = [folder for folder in trained if (RunLayout.evaluation(folder) / "metrics.json").is_file()]
    return next(iter(evaluated or trained), None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
