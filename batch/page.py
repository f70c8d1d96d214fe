"""`index.html` over all scenes of a batch: a still, a film, figures, and the way to each report. One file, no script."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from batch.schedule import SceneRun
from batch.storage import MADE_BY
from batch.view import duration
from utils.report.style import PAGE, STYLE

_STYLE = (
    ".worlds { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }"
    ".worlds section { margin: 0; padding: 12px; } .worlds video, .worlds img { width: 100%; aspect-ratio: 16/9; object-fit: cover;"
    " border-radius: 6px; background: #8884; display: block; }"
    " .worlds h2 { font-size: 1.05rem; margin: 8px 0 2px; overflow-wrap: anywhere; }"
    ".worlds p { margin: 2px 0; font-size: .9rem; overflow-wrap: anywhere; }"
)
_WORDS = {"done": "done", "kept": "done", "failed": "failed", "stopped": "not finished", "waiting": "waiting", "running": "under way"}


def index_page(scenes: Sequence[SceneRun], title: str = "Worlds") -> str:
    """The page; links are relative to the folder that holds the scene folders."""
    finished = [s for s in scenes if s.state in ("done", "kept")]
    values = sorted(s.figures["psnr"] for s in finished if isinstance(s.figures.get("psnr"), int | float))
    words = [f"{len(finished)} of {len(scenes)} scenes done"]
    failed = sum(s.state == "failed" for s in scenes)
    words += [f"{failed} failed"] if failed else []
    words += [f"held-out PSNR {values[0]:.1f} to {values[-1]:.1f} dB, median {values[len(values) // 2]:.1f}"] if values else []
    cards = "".join(_card(scene) for scene in scenes)
    page = PAGE.replace("<script>{script}</script>", "").replace("<head>", f'<head><meta name="generator" content="{MADE_BY}">')
    body = f'<div class="worlds">{cards}</div>'
    for name, text in {"title": escape(title), "subtitle": escape(", ".join(words)), "style": STYLE + _STYLE, "body": body}.items():
        page = page.replace(f"{{{name}}}", text)
    return page


def _card(scene: SceneRun) -> str:
    told, place = scene.figures, quote(scene.name)
    still = f"data:image/jpeg;base64,{told['still']}" if told.get("still") else ""
    name = escape(scene.name)
    if told.get("film"):
        poster = f' poster="{escape(still)}"' if still else ""
        picture = f'<video controls loop muted playsinline preload="none"{poster} src="{place}/{quote(str(told["film"]))}"></video>'
    else:
        picture = f'<img alt="{name}" src="{escape(still)}">' if still else ""
    report = f'<p><a href="{place}/{quote(str(told["report"]))}">Report</a></p>' if told.get("report") else ""
    facts = [_WORDS[scene.state]]
    facts += [f"{told['psnr']:.2f} dB on held-out frames"] if isinstance(told.get("psnr"), int | float) else []
    facts += [str(told["grade"])] if told.get("grade") else []
    facts += [f"{told['splats']:,} splats".replace(",", " ")] if isinstance(told.get("splats"), int) else []
    facts += [duration(scene.seconds)] if scene.took else []
    wrong = f'<p class="warnings">{escape(scene.error)}{". " + escape(scene.hint) if scene.hint else ""}</p>' if scene.error else ""
    return f"<section>{picture}<h2>{name}</h2><p>{escape(', '.join(facts))}</p>{wrong}{report}</section>"
