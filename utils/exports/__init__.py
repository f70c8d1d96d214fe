"""Trained worlds and cameras in the formats of other programs, one module a format.

A format of splats is a module here; `meshes` and `cameras` are folders of their own. `select` chooses splats and turns the world upright.
May import: `utils.registration`, `utils.splatting`, `utils.scene` and below.
Start: `stage.run`; to add a format, write a module and add it to `stage`.
"""
