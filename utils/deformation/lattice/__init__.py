"""Displacement lattices: evaluation, Jacobian, inversion, resampling and bounds.

`reference` defines the field (torch, any dtype); `numba` evaluates on the CPU, `batched` many frames on a device;
`numba_inverse` and `triton` are kernels of the fixed-point inverse.
May import: what `utils.deformation` may.
Start: `reference`.
"""
