"""The sums of `utils.registration.colour.reference` over the matches of all pairs at once on a device."""

from collections.abc import Iterator

import numpy as np
import torch

from utils.types import Array


class DeviceSums:
    """Matched colours of all pairs on the device, padded to the same number.

    Args:
        ends: (P, 2) source and target frame of each pair.
        pairs: per pair the colours (M, 4) of both ends.
        device: where to sum.
    """

    def __init__(self, ends: Array, pairs: list[tuple[Array, Array]], device: torch.device):
        most = max(len(s) for s, _ in pairs)
        both = np.zeros((2, len(pairs), most, 4))
        for k, (s, t) in enumerate(pairs):
            both[0, k, : len(s)], both[1, k, : len(t)] = s, t
        self._s, self._t = torch.from_numpy(both).to(device)
        self._there = self._s[..., 3]  # the appended 1
        self._source, self._target = torch.from_numpy(ends).to(device).unbind(1)

    def __call__(self, current: Array, scale: float) -> Iterator[tuple[Array, Array, Array, Array, Array, Array, float]]:
        """The sums of every pair, see `colour.pair_sums`."""
        s, t, corrections = self._s, self._t, torch.from_numpy(current).to(self._s.device)
        difference = s[..., :3] - t[..., :3]
        now = difference + s @ corrections[self._source] - t @ corrections[self._target]
        weight = (scale**2 / (scale**2 + now.square().sum(-1))).square() * self._there
        ws, wt = ((weight[..., None] * side).transpose(1, 2) for side in (s, t))
        sums = (ws @ s, wt @ t, ws @ t, wt @ s, ws @ difference, wt @ difference, weight.sum(1))
        return zip(*(part.cpu().numpy() for part in sums), strict=True)
