"""Whole runs from Python, and what a run prepares while another stage is at work.

May import: anything.
Start: `warm_up`.
"""
