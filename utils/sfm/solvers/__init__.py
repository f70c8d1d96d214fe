"""Least squares of structure from motion: positions, bundle adjustment of tracks and of dense matches.

`*_batched` is the same in torch, for a GPU. May import: `utils.cameras`, `utils.device`.
Start: `track_bundle_adjustment.adjust_tracks`, `dense_bundle_adjustment.adjust`.
"""
