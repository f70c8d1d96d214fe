"""The pose of a frame as a function of its twist, in any float type and on any device."""

from torch import Tensor

from utils.cameras import se3


def pose(twist: Tensor, scale: Tensor, w2c: Tensor) -> Tensor:
    """(4, 4) camera-to-world `(exp(scale * twist) @ w2c)^-1`, differentiable in the twist.

    Args:
        twist: (6,) [omega, v], radians and multiples of the scale.
        scale: (6,) unit of each component; for v scene units.
        w2c: (4, 4) world-to-camera as aligned.
    """
    return se3.inverse(se3.exp(twist * scale) @ w2c)
