"""Stage 2, joint alignment: all frames of stage 1 at once, with loop closures.

The command around the algorithm: reads an alignment, publishes `after_global_optimization/`.
May import: anything below `utils/`; no other stage.
Start: `stage.run`; the algorithm itself is `utils.registration.joint`.
"""
