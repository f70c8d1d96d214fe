"""Which points of a registered frame join the model: those that fit about as well as in the frames before."""

import numpy as np

from configs.icp import IcpConfig
from utils.types import Array

_MAD_TO_SIGMA = 1.4826


class ResidualHistory:
    """A percentile of every registered frame's squared residuals, geometric and photometric."""

    def __init__(self) -> None:
        self._geometric: list[float] = []
        self._photometric: list[float] = []

    def keep(self, geometric: Array, photometric: Array, valid: Array, config: IcpConfig) -> Array:
        """(N,) bool, and remembers the frame. Points without a neighbour (`valid` false) are kept.

        Args:
            geometric: (N,) squared distance along the normal.
            photometric: (N,) squared colour residual.
            valid: (N,) bool, the point has a neighbour in the model.
            config: sigmas, share of the worst, percentile.
        """
        keep = np.ones(len(valid), bool)
        if not config.filter_points or not valid.any():
            return keep
        self._geometric.append(float(np.percentile(geometric[valid], config.filter_base_percentile)))
        self._photometric.append(float(np.percentile(photometric[valid], config.filter_base_percentile)))
        if len(self._geometric) >= config.filter_min_frames:
            keep &= ~valid | (geometric <= threshold(self._geometric, config.filter_geom_sigma))
            keep &= ~valid | (photometric <= threshold(self._photometric, config.filter_color_sigma))
        rest = keep & valid
        if rest.any():
            cost = geometric + config.color_weight * photometric
            keep &= ~valid | (cost <= np.quantile(cost[rest], 1 - config.filter_worst_pct))
        return keep


def threshold(values: list[float], sigma: float) -> float:
    """Median plus `sigma` robust standard deviations."""
    middle = float(np.median(values))
    spread = max(float(np.median(np.abs(np.array(values) - middle))), 1e-12)
    return middle + sigma * _MAD_TO_SIGMA * spread
