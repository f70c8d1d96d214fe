"""How a batch goes, in one view, and what came of it, in one table."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from batch.schedule import SceneRun, Schedule
from batch.storage import Storage
from batch.worker import PROGRESS_FILE

_SECONDS_BETWEEN = 1.0
_SECONDS_BETWEEN_LINES = 30.0
_MOST_RUNNING = 12
_SIGNS = {
    "done": "done",
    "kept": "done before",
    "failed": "failed",
    "stopped": "not finished",
    "waiting": "not finished",
    "running": "under way",
}


class View:
    """On a terminal a block that is drawn anew; elsewhere a line whenever something changes, and twice a minute how far all is.

    Args:
        storage: where scenes say how far they are inside a stage.
        stream: where to.
    """

    def __init__(self, storage: Storage, stream: TextIO = sys.stderr):
        self._storage, self._stream = storage, stream
        self._terminal = stream.isatty()
        self._drawn = 0
        self._shown = self._lined = 0.0
        self._known: dict[str, tuple[str, int, int]] = {}

    def show(self, schedule: Schedule) -> None:
        """Draws what has changed."""
        now = time.monotonic()
        changed = self._changes(schedule.scenes)
        if not self._terminal:
            for scene in changed:
                if scene.state == "waiting" and not scene.lost:
                    continue
                print(_event(scene), file=self._stream, flush=True)
            if now - self._lined > _SECONDS_BETWEEN_LINES:
                self._lined = now
                print(summary(schedule), file=self._stream, flush=True)
            return
        if now - self._shown < _SECONDS_BETWEEN and not changed:
            return
        self._shown = now
        self._erase()
        width = shutil.get_terminal_size().columns
        lines = [_event(scene) for scene in changed if scene.over]
        running = [scene for scene in schedule.scenes if scene.state == "running"]
        block = [summary(schedule), *(self._line(scene, schedule) for scene in running[:_MOST_RUNNING])]
        block += [f"  and {len(running) - _MOST_RUNNING} more"] if len(running) > _MOST_RUNNING else []
        self._drawn = len(block)
        print("\n".join(line[: width - 1] for line in (*lines, *block)), file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the screen clean for the table."""
        self._erase()

    def _changes(self, scenes: Sequence[SceneRun]) -> list[SceneRun]:
        changed = [s for s in scenes if self._known.get(s.name, ("waiting", 0, 0)) != (s.state, s.at, s.lost)]
        self._known |= {s.name: (s.state, s.at, s.lost) for s in changed}
        return changed

    def _erase(self) -> None:
        if self._terminal and self._drawn:
            print(f"\033[{self._drawn}F\033[J", end="", file=self._stream)
        self._drawn = 0

    def _line(self, scene: SceneRun, schedule: Schedule) -> str:
        task = scene.tasks[scene.at]
        gone = schedule.engine.now() - scene.begun
        return f"  {scene.name:<24} {scene.at + 1}/{len(scene.tasks)} {task.title}{self._inside(scene)}, {duration(gone)}"

    def _inside(self, scene: SceneRun) -> str:
        """How far a stage is, where it can be read without asking the network."""
        if not self._storage.shared:
            return ""
        try:
            now = json.loads((self._storage.root(scene.name) / PROGRESS_FILE).read_bytes())
            return f" {100 * now['step'] / now['total']:.0f} %" if now["number"] == scene.at + 1 and now["total"] else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def summary(schedule: Schedule) -> str:
    """How many scenes are where, and how long it will take."""
    counts = {state: sum(s.state == state for s in schedule.scenes) for state in ("done", "kept", "running", "waiting", "failed")}
    stages, done = sum(len(s.tasks) for s in schedule.scenes), sum(s.at if not s.over else len(s.tasks) for s in schedule.scenes)
    words = [f"{counts['done'] + counts['kept']} of {len(schedule.scenes)} scenes done", f"{counts['running']} under way"]
    words += [f"{counts['failed']} failed"] if counts["failed"] else []
    left = schedule.seconds_left()
    words += [f"{done} of {stages} stages", f"{duration(schedule.engine.now() - schedule.started)} so far"]
    return ", ".join(words + ([f"about {duration(left)} left"] if left is not None and counts["running"] + counts["waiting"] else []))


def _event(scene: SceneRun) -> str:
    if scene.state == "failed":
        return f"{scene.name}: failed in {scene.error}" + (f"; {scene.hint}" if scene.hint else "")
    if scene.over:
        return f"{scene.name}: {_SIGNS[scene.state]}{_quality(scene)}"
    again = f" (lost {scene.lost} time{'s' if scene.lost > 1 else ''})" if scene.lost else ""
    task = scene.tasks[scene.at]
    return f"{scene.name}: {scene.at + 1}/{len(scene.tasks)} {task.title} {'under way' if scene.state == 'running' else 'waits'}{again}"


def _quality(scene: SceneRun) -> str:
    psnr = scene.figures.get("psnr")
    return f", {psnr:.2f} dB held out" if isinstance(psnr, int | float) else ""


def table(scenes: Sequence[SceneRun]) -> str:
    """One line per scene: state, time, held-out PSNR, and what went wrong with what helps."""
    rows = [("scene", "state", "time", "held-out PSNR", "")]
    for scene in scenes:
        psnr = scene.figures.get("psnr")
        note = f"{scene.error}{'; ' + scene.hint if scene.hint else ''}" if scene.error else str(scene.figures.get("grade") or "")
        note += f" ({scene.lost} stage{'s' if scene.lost > 1 else ''} tried again)" if scene.lost and not scene.error else ""
        quality = f"{psnr:.2f} dB" if isinstance(psnr, int | float) else ""
        rows.append((scene.name, _SIGNS[scene.state], duration(scene.seconds) if scene.took else "", quality, note))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows)


def duration(seconds: float) -> str:
    """'12 s', '3 min 20 s', '2 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
