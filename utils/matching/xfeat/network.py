"""The network of XFeat: local descriptors, keypoint and reliability maps, and the head that refines matches of cells.

Written from the paper (Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024, section 3): a backbone that
triples its channels as it halves its resolution, a pyramid fused at 1/8, a keypoint branch of its own on 8 x 8 blocks of raw pixels, and
a small perceptron on pairs of descriptors. Names of submodules are those of the published weights, which load strictly.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

CELL = 8  # pixels along the side of the block that one descriptor stands for
MULTIPLE = 32  # sides of images must be multiples of it: the coarsest map of the pyramid is at 1/32
DESCRIPTOR_SIZE = 64


class _Layer(nn.Module):
    """Convolution, normalisation over the batch without a gain of its own, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1):
        super().__init__()
        convolution = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.layer = nn.Sequential(convolution, nn.BatchNorm2d(channels_out, affine=False), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_out, h / stride, w / stride)."""
        result: Tensor = self.layer(x)
        return result


def _stage(channels: list[int], *, stride: int = 2, last_kernel: int = 3) -> nn.Sequential:
    """Layers from each number of channels to the next; the first one has the stride, the last one its own kernel."""
    steps = list(pairwise(channels))
    return nn.Sequential(
        *(_Layer(a, b, stride=stride if k == 0 else 1, kernel=last_kernel if k == len(steps) - 1 else 3) for k, (a, b) in enumerate(steps))
    )


def _pointwise(count: int, channels_out: int) -> list[nn.Module]:
    """`count` 1 x 1 layers of 64 channels and a 1 x 1 convolution: a head."""
    layers: list[nn.Module] = [_Layer(DESCRIPTOR_SIZE, DESCRIPTOR_SIZE, kernel=1) for _ in range(count)]
    return [*layers, nn.Conv2d(DESCRIPTOR_SIZE, channels_out, 1)]


def _perceptron(width: int) -> nn.Sequential:
    """From two descriptors one after the other to a logit for each pixel of a cell."""
    modules: list[nn.Module] = []
    size = 2 * DESCRIPTOR_SIZE
    for _ in range(4):
        modules += [nn.Linear(size, width), nn.BatchNorm1d(width, affine=False), nn.ReLU(inplace=True)]
        size = width
    return nn.Sequential(*modules, nn.Linear(width, CELL * CELL))


class XFeatNetwork(nn.Module):
    """Maps of a batch of grey images; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4, stride=4), nn.Conv2d(1, 24, 1))
        # The only stage that halves twice: at its second and fourth layer.
        self.block1 = nn.Sequential(_Layer(1, 4), _Layer(4, 8, stride=2), _Layer(8, 8), _Layer(8, 24, stride=2))
        self.block2 = _stage([24, 24, 24], stride=1)
        self.block3 = _stage([24, 64, 64, 64], last_kernel=1)
        self.block4 = _stage([64, 64, 64, 64])
        self.block5 = _stage([64, 128, 128, 128, 64], last_kernel=1)
        self.block_fusion = nn.Sequential(_Layer(64, 64), _Layer(64, 64), nn.Conv2d(64, DESCRIPTOR_SIZE, 1))
        self.heatmap_head = nn.Sequential(*_pointwise(2, 1), nn.Sigmoid())
        self.keypoint_head = nn.Sequential(*_pointwise(3, CELL * CELL + 1))
        self.fine_matcher = _perceptron(512)

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Descriptors, keypoint logits and reliability of images.

        Args:
            grey: (B, 1, H, W) of any range, sides multiples of `MULTIPLE`; each image is normalised by itself.

        Returns:
            (B, 64, H/8, W/8) descriptors, not of unit length;
            (B, 65, H/8, W/8) logits of the 64 pixels of a cell, row by row, and of "no keypoint here";
            (B, 1, H/8, W/8) reliability, 0 to 1.
        """
        grey = self.norm(grey)
        quarter = self.block2(self.block1(grey) + self.skip1(grey))
        eighth = self.block3(quarter)
        sixteenth = self.block4(eighth)
        coarsest = self.block5(sixteenth)
        size = eighth.shape[-2:]
        pyramid = eighth + _enlarged(sixteenth, size) + _enlarged(coarsest, size)
        descriptors = self.block_fusion(pyramid)
        return descriptors, self.keypoint_head(functional.pixel_unshuffle(grey, CELL)), self.heatmap_head(descriptors)

    def refine(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, 64) logits of where in the first one's cell the anchor of the second one's cell lies, row by row; for descriptors (N, 64)."""
        result: Tensor = self.fine_matcher(torch.cat([first, second], -1))
        return result


def folded(network: XFeatNetwork) -> XFeatNetwork:
    """The network in evaluation mode, its normalisations taken into the convolutions: the same maps in half the time on a CPU."""
    network.eval()
    for module in network.modules():
        if isinstance(module, _Layer):
            convolution, normalisation, activation = module.layer
            assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
            module.layer = nn.Sequential(fuse_conv_bn_eval(convolution, normalisation), activation)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(False)


def _enlarged(maps: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def keypoint_map(logits: Tensor) -> Tensor:
    """(B, H, W) probability of a keypoint at each pixel of the image, from logits (B, 65, H/8, W/8)."""
    return functional.pixel_shuffle(logits.softmax(1)[:, : CELL * CELL], CELL)[:, 0]
