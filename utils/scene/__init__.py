"""The scene folder: paths, artifacts with manifests, frames in and out, masks, camera trajectories.

`layout` knows every path; `manifest` says whether a result is current, `transaction` publishes it whole or not at all and replaces nothing
that was not made here (`marks`); `lock` keeps a second writer out; `artifacts` has one reader and one writer per file.
May import: `utils.cameras`, `utils.device` and below.
Start: `layout.SceneLayout`, `transaction.publish`, `artifacts`.
"""
