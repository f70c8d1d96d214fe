"""Stage 0 without weights: structure from motion, then depth of every frame from flow along its poses.

Order: `mapping` (poses, sparse points), `solvers.dense_bundle_adjustment` (poses, focal length), `flow_depth` and `plane_sweep` (depth),
`depth_completion` and `depth_filling` (dense maps and confidence); `posed_depth` for cameras that are given.
May import: `utils.matching`, `utils.deformation`, `utils.scene`, `utils.points`, `utils.cameras`, `utils.device` and below.
Start: `backend.SfmGeometry`.
"""
