"""Benchmarks. Importing `utils` first makes its process-wide settings, as in every command."""

import utils  # noqa: F401
