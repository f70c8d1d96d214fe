"""Stage 3.2, Gaussian splatting through the inverse deformation: an alignment and its inverse become `gs_<renderer>/`.

First splats come from `start`; `train` is the loop; `refine`, `cameras` and `appearance` are what is trained beside the splats.
May import: anything below `utils/`; no other stage.
Start: `stage.run`, then `train.train`.
"""
