"""Cameras for other programs: COLMAP models, nerfstudio's transforms.json, and a clip's frames beside both.

May import: what `utils.exports` may.
Start: `clip.write_clip`; `colmap` and `nerfstudio` write one format each.
"""
