"""Loads `utils` before any test imports torch: process-wide thread settings are made there."""

import utils  # noqa: F401
