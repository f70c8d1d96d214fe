"""Dense optical flow of many image pairs at once.

`reference` is the method in torch on any device; `triton` has its inner step as kernels. No geometry: `utils.matching.flow` adds it.
May import: what `utils.matching` may.
Start: `reference`.
"""
