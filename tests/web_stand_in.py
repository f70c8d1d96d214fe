"""Quick stand-ins for the programs behind the web page: `python tests/web_stand_in.py pipeline|export|viewer <their flags>`.

The clip steers the pipeline: the tests put a word behind its bytes. A stage that has left its file is kept, as in the real one.
"""

import json
import socket
import sys
import time
from pathlib import Path


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
    (splats / "splats_3dgs.ply").write_bytes(b"ply\n" + bytes(1000))
    (films / "metrics.json").write_text(json.dumps({"heldout": {"psnr": 24.5, "ssim": 0.8}}))
    (films / "render_gs_video.mp4").write_bytes(source.read_bytes() if source.is_file() else b"film")
    (root / "report.html").write_text(
        "<!doctype html><html lang=en><title>report</title><style>h1{color:#222}</style><h1>A report</h1></html>"
    )
    summary = {"seconds": 1, "stages": [{"title": t, "seconds": 10.0, "kept": False} for t in stages]}
    (root / "run_summary.json").write_text(json.dumps(summary))


def export() -> None:
    kind, folder = flag("--config.format"), Path(flag("--config.checkpoint-dir"))
    if kind == "mesh-ply":
        print("error: no surface\nhint: train longer", file=sys.stderr)
        sys.exit(2)
    name = {"splat": "splats_3dgs.splat", "spz": "splats_3dgs.spz", "mesh-glb": "mesh.glb"}[kind]
    (folder / name).write_text(kind)


def viewer() -> None:
    port = int(flag("--config.port"))
    with socket.create_server((flag("--config.host"), port)) as server:
        print(f"  viewer: open http://localhost:{port} (Ctrl+C ends it)", file=sys.stderr, flush=True)
        while True:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nthe viewer")


if __name__ == "__main__":
    {"pipeline": pipeline, "export": export, "viewer": viewer}[sys.argv[1]]()
