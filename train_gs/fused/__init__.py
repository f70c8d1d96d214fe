"""One training step on a GPU between poses and images: draw a view, step the splats that it sees; for 3D Gaussians.

Its definition is the unfused step of `train_gs.train` (`utils.splatting.view`, the rasteriser, Adam), which `tests/train_gs/test_fused.py`
compares it with.
May import: what `train_gs` may.
Start: `step.FusedStep`; `triton` has the kernels.
"""
