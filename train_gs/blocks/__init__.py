"""Worlds larger than one device: splats and views in spatial blocks with borders, trained one after another and merged.

1. The whole world is trained coarsely, with a fraction of the splats. That settles what the blocks share: poses, deformations and colour
   maps of the frames. They stay fixed from then on, so that blocks fit each other.
2. Each block is trained on the frames that see it. It holds the splats of its core and of a border around it at full density, and the
   coarse ones elsewhere, so that its frames are complete pictures.
3. The world is what each block has in its core. A splat near a border was trained with its neighbours on the other side.

(The coarse world as a background is that of Liu et al., "CityGaussian", ECCV 2024; cores with borders are those of Lin et al.,
"VastGaussian", CVPR 2024.)

May import: what `train_gs` may.
Start: `train.BlockTraining`; `cut.cut` divides space, `views.shares` says which frames see which block.
"""
