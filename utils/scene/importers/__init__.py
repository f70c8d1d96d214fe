"""Readers of other programs' cameras: COLMAP models and nerfstudio's transforms.json."""
