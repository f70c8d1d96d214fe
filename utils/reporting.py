"""Reporters: a progress line on the console, scalars for TensorBoard, a file for other programs. Algorithms only see the protocol."""

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from utils.errors import ConfigError
from utils.types import Reporter, StepReport


def line(message: str) -> None:
    """Writes one line to stderr, above a bar that may be open there."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class ConsoleReporter:
    """One tqdm bar at a time, with time left and the latest values; plain lines when stderr is no terminal."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._stage = ""
        self._last_line = 0.0
        self._started = 0.0

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the current bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def step(self, report: StepReport) -> None:
        """Moves the bar of `report.stage`, opening it when the stage is new."""
        if not self._enabled:
            return
        if report.stage != self._stage:
            self.close()
            self._stage = report.stage
            self._started = self._last_line = time.monotonic()
            if self._terminal:
                self._bar = tqdm(total=report.total, desc=f"  {report.stage}", leave=False, dynamic_ncols=True, mininterval=0.3)
        if self._bar is not None:
            self._bar.total = report.total
            self._bar.update(report.step + 1 - self._bar.n)
            if report.values:
                self._bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in report.values.items()), refresh=False)
        elif not self._terminal and time.monotonic() - self._last_line > 15:
            self._line(report)

    def _line(self, report: StepReport) -> None:
        self._last_line = time.monotonic()
        done = report.step + 1
        left = (self._last_line - self._started) * (report.total - done) / done
        values = " ".join(f"{k} {v:.4g}" for k, v in report.values.items())
        print(f"  {report.stage} {done}/{report.total}, about {left:.0f} s left {values}".rstrip(), file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """Prints one line without disturbing the bar."""
        if self._enabled:
            line(f"  {message}")


class TensorBoardReporter:
    """Writes the values of every step as scalars, then hands the step on."""

    def __init__(self, folder: Path, inner: Reporter):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._inner = inner

    def step(self, report: StepReport) -> None:
        """Scalars `stage/name` at the step."""
        for name, value in report.values.items():
            self._writer.add_scalar(f"{report.stage}/{name}", value, report.step)
        self._inner.step(report)

    def note(self, message: str) -> None:
        """Handed on."""
        self._inner.note(message)

    def by_frame(self, frames: list[int], series: dict[str, list[Any]]) -> None:
        """Scalars `frames/name` at the step of the frame's id; None is left out."""
        for name, values in series.items():
            for frame, value in zip(frames, values, strict=True):
                if value is not None:
                    self._writer.add_scalar(f"frames/{name}", value, frame)

    def close(self) -> None:
        """Flushes the events to disk."""
        self._writer.close()


@contextmanager
def tensorboard(wanted: bool, folder: Path, inner: Reporter) -> Iterator[Reporter]:
    """A reporter that also writes scalars to `folder`, if `wanted` and TensorBoard is installed (else a note says so)."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        inner.note("TensorBoard is not installed, so no scalars are written: pip install -e '.[tensorboard]' in this program's folder")
        wanted = False
    if not wanted:
        yield inner
        return
    shutil.rmtree(folder, ignore_errors=True)  # curves of an earlier run would be drawn over these
    board = TensorBoardReporter(folder, inner)
    try:
        yield board
    finally:
        board.close()


class ProgressFileReporter:
    """Keeps one JSON file saying where a run is, for programs that watch it, and hands every step on.

    The file is replaced as a whole, at most twice a second: `stages` (titles), `number` and `of` (the stage under way, from 1), `title`,
    `since` (its start, seconds of the epoch), `phase`, `step` and `total` (inside the stage), `seconds_left` (of the phase; null while
    unknown) and `finished` (title, seconds, kept).
    """

    _SECONDS_BETWEEN = 0.5

    def __init__(self, path: Path, stages: list[str], inner: Reporter):
        self._path, self._inner = path, inner
        self._state: dict[str, Any] = {"stages": stages, "of": len(stages), "number": 0, "title": "", "finished": []}
        self._written = self._phase_started = 0.0
        self._phase_first = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, number: int) -> None:
        """Stage `number`, from 1, starts."""
        self._state |= {"number": number, "title": self._state["stages"][number - 1], "since": time.time()}
        self._state |= {"phase": "", "step": 0, "total": 0, "seconds_left": None}
        self._write()

    def end(self, seconds: float, kept: bool) -> None:
        """The stage under way is finished, or was found up to date."""
        self._state["finished"].append({"title": self._state["title"], "seconds": round(seconds, 2), "kept": kept})
        self._write()

    def step(self, report: StepReport) -> None:
        """Notes the step; the time left is extrapolated from the steps of this phase so far."""
        now, done = time.monotonic(), report.step + 1
        if report.stage != self._state.get("phase"):
            self._phase_started, self._phase_first, self._written = now, done, 0.0
        elapsed = now - self._phase_started
        left = elapsed * (report.total - done) / (done - self._phase_first) if elapsed > 1 and done > self._phase_first else None
        self._state |= {"phase": report.stage, "step": done, "total": report.total, "seconds_left": left}
        if now - self._written >= self._SECONDS_BETWEEN:
            self._write()
        self._inner.step(report)

    def note(self, message: str) -> None:
        """Handed on."""
        self._inner.note(message)

    def _write(self) -> None:
        self._written = time.monotonic()
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")  # no name that a person's file may have
        try:
            beside.write_text(json.dumps(self._state))
            beside.replace(self._path)
        except OSError as error:
            raise ConfigError(f"cannot write the progress file {self._path}: {error.strerror}", "choose another path for it") from error


def number_ranges(numbers: list[int]) -> str:
    """'3-5, 9' for [3, 4, 5, 9]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
