"""Rasterisers of 3D Gaussians and surfels (2DGS), one contract, several backends.

`reference` is the definition in plain torch; `numba*` runs on the CPU, `triton*` on CUDA, `gsplat` wraps that package.
May import: what `utils.splatting` may.
Start: `contract.Rasterizer` and `contract.RASTERIZERS`; to add a backend, register it there.
"""
