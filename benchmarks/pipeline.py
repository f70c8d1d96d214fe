"""The demo of the README, timed: wall time and peak memory per stage, with an empty JIT cache and again with a warm one.

python -m benchmarks.pipeline [--out DIR] [--clip CLIP] [--budgets 10 20 30] [-- FLAGS OF run_reconstruction.py]

With `--budgets` the splats are trained again from the same alignment in so many seconds each: PSNR against time.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(clip: Path, root: Path, cache: Path, flags: list[str]) -> tuple[float, dict]:
    """Wall seconds of the whole command and its summary."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "run_reconstruction.py", "--config.input-video", str(clip), "--config.root-path", str(root), *flags]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, json.loads((root / "run_summary.json").read_text())


def train_again(summary: dict, seconds: float, folder: Path) -> tuple[float, float, float]:
    """Splats trained in so many seconds: held-out and training PSNR in dB, and the wall seconds of the whole stage."""
    command = next(stage["command"] for stage in summary["stages"] if stage["title"].endswith("splats"))
    words = [sys.executable, *shlex.split(command)[1:], "--config.budget-seconds", str(seconds), "--config.out-dir", str(folder)]
    started = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((folder / "report.json").read_text())
    return report["heldout_psnr"], report["train_psnr"], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to keep the results in; a temporary one without it")
    parser.add_argument("--clip", type=Path, help="clip to run; the demo clip without it")
    parser.add_argument("--budgets", type=float, nargs="+", default=[], help="seconds to train the splats again in")
    parser.add_argument("flags", nargs="*", help="flags handed on to run_reconstruction.py, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        clip = args.clip
        if clip is None:
            clip = out / "demo" / "clip.mp4"
            subprocess.run([sys.executable, "-m", "utils.synthetic", "--out", str(clip.parent)], cwd=ROOT, check=True)
        results = {}
        for name in ("cold", "warm"):
            results[name] = run(clip.resolve(), (out / name).resolve(), (Path(temporary) / "jit").resolve(), args.flags)
        print("| stage | cold s | warm s | peak memory MB (warm) |\n|---|---|---|---|")
        for cold, warm in zip(results["cold"][1]["stages"], results["warm"][1]["stages"], strict=True):
            print(f"| {cold['title']} | {cold['seconds']:.1f} | {warm['seconds']:.1f} | {warm['peak_memory_mb']} |")
        memory = max(s["peak_memory_mb"] for s in results["warm"][1]["stages"])
        print(f"| whole command | {results['cold'][0]:.1f} | {results['warm'][0]:.1f} | {memory} |")
        if args.budgets:
            print("\n| seconds to train in | held out dB | training dB | whole stage s |\n|---|---|---|---|")
        for seconds in args.budgets:
            held_out, training, whole = train_again(results["warm"][1], seconds, Path(temporary) / f"budget_{seconds:g}")
            print(f"| {seconds:g} | {held_out:.2f} | {training:.2f} | {whole:.1f} |")


if __name__ == "__main__":
    main()
