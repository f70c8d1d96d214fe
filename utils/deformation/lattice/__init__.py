"""Displacement lattices: evaluation, Jacobian, resampling and bounds.

`reference` defines the field (torch, any dtype); `numba` evaluates on the CPU, `batched` many frames on a device;
`numba_points` and `triton` evaluate it inside other kernels, those of the inverse and its derivatives.
May import: what `utils.deformation` may.
Start: `reference`.
"""
