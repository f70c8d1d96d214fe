"""Trained worlds and cameras in the formats of other programs, one module a format.

PLY, .splat, SPZ, meshes for splats; COLMAP and nerfstudio for cameras. `select` chooses splats and turns the world upright.
May import: `utils.registration`, `utils.splatting`, `utils.scene` and below.
Start: `stage.run`; to add a format, write a module and add it to `stage`.
"""
