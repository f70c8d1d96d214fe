"""Stage 0: a clip or a folder of frames becomes a scene: `results.npz`, the chosen frames, cameras of the whole clip, a fly-through path.

`source` decodes, lists and chooses -> `frames` reads, masks and straightens -> `geometry` says who estimates cameras and depth -> `scene`
takes sky, overlays and masks out -> `outputs` writes. Settings: `configs.preprocess`; command line: `preprocess_video.py`.
May import: anything below `utils/`; no other stage.
Start: `stage.run`.
"""
