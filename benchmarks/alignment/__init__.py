"""Alignment on synthetic worlds with known truth: `python -m benchmarks.alignment`.

`variants` are the ways to align that are compared, `metrics` what is measured, `tables` the markdown, `timing` time and memory
by the number of frames, `jobs` the command lines of all tables for many cores.
"""
