"""The web page: `python -m web [--port 8000] [--host 127.0.0.1] [--workspace ./worlds]`.

Starlette and uvicorn serve one plain page. Gradio was weighed: it brings some forty packages and keeps its queue in memory, while
here the queue is on disk, so that a restart loses nothing; and this page must ask no other host for anything.

* `jobs`: what is known of every run, one JSON file each.
* `runner`: one thread that takes the next job and runs `run_reconstruction.py` for it as a process of its own.
* `clips`: what is checked of an upload before it becomes a job.
* `results`: which files of a run the page offers. Nothing else is ever sent.
* `viewers`: the 3D viewer of a run, started when it is asked for.
* `server`: addresses and answers.

May import: everything.
Start: `server`, `runner`.
"""
