"""Quick stand-ins for the programs behind the web page: `python tests/web_stand_in.py pipeline|export|prepare <their flags>`.

The clip steers the pipeline: the tests put a word behind its bytes. A stage that has left its file is kept, as in the real one.
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np


def flag(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def pipeline() -> None:
    root, progress = Path(flag("--config.root-path")), Path(flag("--config.progress-file"))
    root.mkdir(parents=True, exist_ok=True)
    (root / "argv.json").write_text(json.dumps(sys.argv[2:]))
    source = Path(flag("--config.input-video") or flag("--config.frames-dir"))
    tail = source.read_bytes()[-5:] if source.is_file() else b""
    stages = ["geometry", "alignment", "3dgs splats"]
    state = {"stages": stages, "of": 3, "finished": []}

    def say() -> None:
        beside = progress.with_suffix(".partial")
        beside.write_text(json.dumps(state))
        beside.replace(progress)

    for number, title in enumerate(stages, 1):
        kept = (root / f"{number}.stage").exists()
        for step in range(5):
            state |= {"number": number, "title": title, "since": time.time()}
            state |= {"phase": title, "step": step, "total": 5, "seconds_left": 5 - step}
            say()
            time.sleep(0 if kept else 0.02)
        if tail == b"_slow" and number == 2 and not kept:
            time.sleep(60 if not (root / "be_quick").exists() else 0)
        if tail == b"error" and number == 2:
            print("some chatter\nerror: the camera hardly moves\nhint: pass a clip in which the camera travels", file=sys.stderr)
            sys.exit(2)
        if tail == b"crash" and number == 2:
            raise RuntimeError("a bug")
        (root / f"{number}.stage").touch()
        state["finished"].append({"title": title, "seconds": 0.1, "kept": kept})
        say()
    splats = root / "frame_to_model_icp_8_1_offset0" / "gs_3dgs"
    films = splats / "gs_video_eval"
    films.mkdir(parents=True, exist_ok=True)
    (splats / "model_final.pt").write_text("splats")
    (splats / "splats_3dgs.ply").write_bytes(small_ply())
    (root / "frames_subsampled").mkdir(exist_ok=True)
    (root / "frames_subsampled" / "000000.png").write_bytes(cv2.imencode(".png", np.full((72, 96, 3), 99, np.uint8))[1].tobytes())
    (films / "metrics.json").write_text(json.dumps({"heldout": {"psnr": 24.5, "ssim": 0.8, "canonical_psnr": 18.5}}))
    (films / "render_gs_video.mp4").write_bytes(source.read_bytes() if source.is_file() else b"film")
    (root / "report.html").write_text(
        "<!doctype html><html lang=en><title>report</title><style>h1{color:#222}</style><h1>A report</h1></html>"
    )
    summary = {"seconds": 1, "stages": [{"title": t, "seconds": 10.0, "kept": False} for t in stages]}
    (root / "run_summary.json").write_text(json.dumps(summary))


def small_ply() -> bytes:
    """Two hundred grey splats on a wall in front of the camera."""
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    rows = np.zeros((200, len(names)), "<f4")
    rows[:, 0], rows[:, 1], rows[:, 2] = np.arange(200) % 20 / 10 - 1, np.arange(200) // 20 / 10 - 0.5, 2
    rows[:, 6], rows[:, 7:10], rows[:, 10] = 4, -3, 1
    head = "".join(f"property float {name}\n" for name in names)
    return f"ply\nformat binary_little_endian 1.0\nelement vertex 200\n{head}end_header\n".encode() + rows.tobytes()


def prepare() -> None:
    folder = Path(sys.argv[3]) / "view"
    folder.mkdir(exist_ok=True)
    camera = {"c2w": np.eye(4).reshape(-1).tolist(), "fx": 90, "fy": 90, "cx": 48, "cy": 36, "width": 96, "height": 72}
    settings = {"version": 1, "renderer": "3dgs", "splats": 200, "up": [0, -1, 0], "seconds": 1, "unfinished": False}
    settings |= {"cameras": [{**camera, "frame": 0, "heldout": False}] * 2, "file": "../splats_3dgs.ply"}
    (folder / "view.json").write_text(json.dumps(settings))


def export() -> None:
    kind, folder = flag("--config.format"), Path(flag("--config.checkpoint-dir"))
    if kind == "mesh-ply":
        print("error: no surface\nhint: train longer", file=sys.stderr)
        sys.exit(2)
    name = {"splat": "splats_3dgs.splat", "spz": "splats_3dgs.spz", "mesh-glb": "mesh.glb", "html": "world.html"}[kind]
    (folder / name).write_text(kind)


if __name__ == "__main__":
    {"pipeline": pipeline, "export": export, "prepare": prepare}[sys.argv[1]]()
