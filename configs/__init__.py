"""Settings of every command as frozen dataclasses, one module a stage, and their command line.

Each field has its unit, range and effect in the string under it. A setting belongs here if a user may want to change it.
May import: only other `configs` modules and `utils.errors`, nothing heavy: `--help` answers before torch is loaded.
Start: `pipeline.PipelineConfig`, which holds all the others; `base.parse`.
"""
