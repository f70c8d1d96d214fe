"""Stage 0 with learned geometry: Depth Anything 3 estimates cameras, depth and confidence.

Needs the `da3` extra and weights on disk; `chunks` joins the pieces of a clip that is too long for one pass.
May import: `utils.matching`, `utils.scene`, `utils.points`, `utils.cameras`, `utils.device` and below.
Start: `backend.Da3Geometry`.
"""
