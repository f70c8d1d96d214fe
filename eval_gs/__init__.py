"""Evaluation: films of the consistent world, novel views, and the figures of `metrics.json`.

Reads a trained checkpoint and the frames it was trained on; publishes `gs_video_eval/` and the scene's `report.html`.
May import: anything below `utils/`; no other stage.
Start: `stage.run`; each figure is a function in `metrics`.
"""
