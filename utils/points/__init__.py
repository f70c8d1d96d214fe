"""Sets of points: voxel grids, depth edges, normals and neighbours of a cloud, confidence filter.

May import: `utils.cameras`, `utils.device` and below.
Start: `voxels`, `surface`; `confidence.confident_pixels` is what stages 1 and 2 filter with.
"""
