"""Clips as they are: decoded, looked at, and planned before a frame is written.

`stream` decodes -> `picture` and `colour` make upright square sRGB of a frame -> `survey` looks at every frame small -> `plan` decides by
`timing`, `shots`, `exposure`, `borders` and `marks` -> `extract` writes what is used.
May import: `utils.scene`, `utils.types` and `utils.errors`.
Start: `survey.survey_clip`, then `plan.plan_clip`.
"""
