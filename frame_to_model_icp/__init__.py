"""Stage 1, frame-to-model alignment: each frame of `results.npz` against the frames before it.

The command around the algorithm: reads the scene, chooses frames, publishes `after_non_rigid_icp/`.
May import: anything below `utils/`; no other stage.
Start: `stage.run`; the algorithm itself is `utils.registration.sequential`.
"""
