"""Correspondences between frames: which pairs, which pixels, and which of them are good.

A matcher has one method, `match`, and a name in `contract.MATCHERS`: `flow` (optical flow), `romav2` (learned).
`checks` are the tests every match passes; `support` weighs matches for the alignment.
May import: `utils.deformation`, `utils.scene`, `utils.points`, `utils.cameras`, `utils.device` and below.
Start: `contract.Matcher`, then `flow`.
"""
