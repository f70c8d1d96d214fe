"""The scene folder: paths, artifacts with manifests, frames in and out, masks, camera trajectories.

`layout` knows every path; `manifest` publishes a folder as a whole or not at all; `artifacts` has one reader and one writer per file.
May import: `utils.cameras`, `utils.device` and below.
Start: `layout.SceneLayout`, `artifacts`, `manifest.writing`.
"""
