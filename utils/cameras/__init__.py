"""Camera and rigid-motion mathematics: SE(3), rotations, pinhole projection, lens distortion, similarities, pose blending.

Conventions are those of `utils.types`: OpenCV axes, camera-to-world, pixel centres at +0.5. Pure functions, no files.
May import: `configs` and the modules directly in `utils/`.
Start: `projection` (NumPy), `se3` and `pixels` (torch).
"""
