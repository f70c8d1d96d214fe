"""Time and memory of stages 1 and 2 by the number of frames: `python -m benchmarks.alignment --speed N`, `--time-sweep N N ... --plot F`.

Worlds are made small and enlarged, since only time and memory count. Files, held-out pairs and pictures are not included.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alignment.variants import Task, both_stages
from benchmarks.gpu_scaling import enlarged
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.points.confidence import confident_pixels
from utils.registration import build_cloud, usable_pixels
from utils.report.charts import line_chart
from utils.synthetic import WorldConfig, make_world

_MADE = (144, 256)  # size that worlds are made at
_SAMPLE = 0.02  # seconds between looks at the memory in use
_PAGE = 4096
_STYLE = (
    "svg { font: 11px sans-serif; background: white } text { fill: #444 } .grid { stroke: #ddd } "
    "polyline { fill: none; stroke: #1f6fb4; stroke-width: 2 } .s2 { stroke: #c4601d }"
)


class PeakMemory:
    """Most memory in use by this process, in GB, between entering and leaving; Linux only."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e9


def time_task(layout: str, frames: int, size: tuple[int, int], stage1: FrameToModelICPConfig, stage2: GlobalOptimizationConfig) -> Task:
    """A clip of that many frames of (h, w) pixels."""
    world = make_world(WorldConfig(layout=layout, frames=frames, size=_MADE))
    scene = enlarged(world.predicted_scene(), size)
    return Task(world, scene, usable_pixels(scene, confident_pixels(scene, stage1.alignment), stage1.filter), stage1, stage2)


def measure(
    layout: str, frames: int, size: tuple[int, int], stage1: FrameToModelICPConfig, stage2: GlobalOptimizationConfig
) -> dict[str, Any]:
    """Wall and CPU seconds, pairs, and memory of one clip; after a clip of four frames, so that kernels are compiled."""
    both_stages(time_task(layout, 4, size, stage1, stage2))
    task = time_task(layout, frames, size, stage1, stage2)
    with PeakMemory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        outcome = both_stages(task)
        found = outcome.registration
        assert found is not None
        stages = time.perf_counter() - start
        cloud = build_cloud(task.scene, found.cameras, found.fields, found.aligned, task.usable, stage1.filter)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    parts = {"stage 1": 0.0, "stage 2": 0.0} | (outcome.seconds or {}) | {"cloud": seconds - stages}
    return {
        "frames": frames,
        "size": list(size),
        "seconds": seconds,
        "cpu": cpu,
        "parts": parts,
        "pairs": len(found.diagnostics.pairs),
        "points": len(cloud),
        "memory": memory.peak,
        "memory_before": memory.start,
    }


def words(line: dict[str, Any]) -> str:
    """One line about `measure`."""
    parts = ", ".join(f"{name} {value:.1f}" for name, value in line["parts"].items())
    return (
        f"{line['frames']} frames of {line['size'][1]}x{line['size'][0]}: {line['seconds']:.1f} s ({line['cpu']:.1f} s of CPU): {parts}; "
        f"{line['pairs']} pairs, {line['points']} points; peak memory {line['memory']:.2f} GB, {line['memory_before']:.2f} before the start"
    )


def sweep(lengths: list[int], layout: str, size: tuple[int, int], plot: Path | None) -> str:
    """Measures every length in a process of its own; a markdown table, and the plot as SVG."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines.jsonl"
        for frames in lengths:
            setting = ["--speed", str(frames), "--size", *map(str, size), "--layouts", layout, "--json", str(file)]
            subprocess.run([sys.executable, "-m", "benchmarks.alignment", *setting], check=True)
        lines = [json.loads(text) for text in file.read_text().splitlines()]
    if plot:
        plot.write_text(drawing(lines))
    return sweep_table(lines)


def sweep_table(lines: list[dict[str, Any]]) -> str:
    """One row per length, and how much faster than linear the CPU time grows: its slope over the lengths in a log-log plot."""
    head = (
        "| frames | seconds | of CPU | CPU ms a frame | pairs a frame | CPU ms a pair | peak memory GB (before) | MB a frame |\n"
        + "|---" * 8
        + "|"
    )
    rows = []
    for line in lines:
        n, pairs, grown = line["frames"], line["pairs"], line["memory"] - line["memory_before"]
        times = (
            f"{line['seconds']:.1f} | {line['cpu']:.1f} | {1000 * line['cpu'] / n:.0f} | {pairs / n:.1f} | {1000 * line['cpu'] / pairs:.0f}"
        )
        rows.append(f"| {n} | {times} | {line['memory']:.2f} ({line['memory_before']:.2f}) | {1000 * grown / n:.1f} |")
    table = "\n".join([head, *rows])
    if len(lines) < 2:
        return table
    slope = np.polyfit(*(np.log([line[key] for line in lines]) for key in ("frames", "cpu")), 1)[0]
    return f"{table}\n\nCPU time grows with frames to the power of {slope:.2f}."


def drawing(lines: list[dict[str, Any]]) -> str:
    """An SVG with time and memory over the number of frames."""
    frames = [float(line["frames"]) for line in lines]
    of = lambda key: (frames, [float(line[key]) for line in lines])  # noqa: E731
    charts = [
        line_chart({"wall": of("seconds")}, title="seconds by frames", x_label="frames", y_label="wall seconds of stages 1 and 2"),
        line_chart({"peak": of("memory")}, title="memory by frames", x_label="frames", y_label="peak memory, GB"),
    ]
    placed = [c.replace('class="chart"', f'y="{190 * k}" width="440" height="190"', 1) for k, c in enumerate(charts)]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 380"><style>{_STYLE}</style>{"".join(placed)}</svg>\n'
