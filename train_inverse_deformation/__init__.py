"""Stage 3.1, inverse deformation: from canonical space back into the camera of each frame.

Solves it from the forward lattices (default) or trains a network (`network`), and measures the round trip (`validate`).
May import: anything below `utils/`; no other stage.
Start: `stage.run`; the solved inverse is `utils.deformation.inverse`.
"""
