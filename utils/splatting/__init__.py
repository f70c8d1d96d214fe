"""Gaussian splats: rendering, losses, spherical harmonics, checkpoints.

Operations with several implementations have a folder each (`rasterize`, `ssim`, `view`). Training itself is the stage `train_gs`.
May import: `utils.deformation`, `utils.scene`, `utils.points`, `utils.cameras`, `utils.device` and below.
Start: `render` (trained worlds), `checkpoint`, `rasterize`.
"""
