"""Cameras (and depth) that another program has found: COLMAP models and nerfstudio's transforms.json.

Everything is translated to the conventions of `utils.types` here and nowhere else.
May import: `utils.sfm`, `utils.matching`, `utils.scene`, `utils.cameras` and below.
Start: `backend` (the geometry backend), `cameras` (readers).
"""
