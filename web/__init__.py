"""The web page: `python -m web [--port 8000] [--host 127.0.0.1] [--workspace ./worlds]`.

Starlette and uvicorn serve one plain page. Gradio was weighed: it brings some forty packages and keeps its queue in memory, while
here the queue is on disk, so that a restart loses nothing; and this page must ask no other host for anything.

* `jobs`: what is known of every run, one JSON file each.
* `runner`: takes the next job and runs `run_reconstruction.py` for it as a process of its own, which `keeper` ends with the server.
* `uploads`: limits on what comes in; `check_upload` looks at it in a process that may fail.
* `describe`: what the page shows of every run; `results`: which files it offers. Nothing else is ever sent.
* `exhibits`: which world the viewer of a run shows.
* `server`: addresses and answers.

May import: everything.
Start: `server`, `runner`.
"""
