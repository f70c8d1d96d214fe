"""Deformation of frames: displacement lattices over (u, v, inverse depth), and their inverse.

Forward is `canonical = c2w (p + delta(p))` for p in camera space; the inverse finds p again (fixed point with a Newton fallback).
May import: `utils.scene`, `utils.points`, `utils.cameras`, `utils.device` and below.
Start: `lattice` (forward fields), `inverse` (the way back, `inverse.FixedPointInverseWarp`), `artifact` (files).
"""
