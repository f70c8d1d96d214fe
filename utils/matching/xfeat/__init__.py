"""Learned local features: XFeat (Potje et al., CVPR 2024), with weights from an optional package.

May import: what `utils.matching` may.
Start: `features`, `match`.
"""
