"""The machine: which accelerator, how much memory, threads, caches of compiled kernels.

May import: `configs` and the modules directly in `utils/`.
Start: `accelerator.accelerator` and `accelerator.or_on_cpu`, by which operations choose an implementation.
"""
