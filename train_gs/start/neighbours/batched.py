"""Nearest neighbours on a device: points in the order of a space-filling curve are cut into blocks, and each is compared with the points
of the nearest blocks.

Exact: whoever has found neighbours nearer than the nearest point that a block left out can hold is done; the others look into more
blocks, and the few for whom that is not enough go through the tree of `reference`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from train_gs.start.neighbours import reference
from utils.types import Array

_BLOCK = 64
_WIDE, _EACH, _MORE = 128, 24, 192
"""Blocks near a block from which its points choose, blocks that each looks into, and those where that was not enough."""
_PAIRS_AT_ONCE = 1 << 24
_BITS = 21  # per axis of the curve


def nearest(points: Array, count: int, device: torch.device) -> tuple[Array, Array]:
    """As `reference.nearest` of all rows; neighbours at the same distance may come in another order."""
    if len(points) < 2 * _BLOCK * _MORE:
        return reference.nearest(points, count)
    given = torch.from_numpy(points).to(device)
    order = _along_a_curve(given)
    blocks = _Blocks.of(given[order])
    distance, index = given.new_empty(len(points), count), order.new_empty(len(points), count)
    unsure = torch.ones(len(points), dtype=torch.bool, device=device)
    for rows in torch.arange(len(points), device=device).split(_BLOCK * max(1, _PAIRS_AT_ONCE // (_BLOCK**2 * _EACH))):
        distance[rows], index[rows], unsure[rows] = blocks.look(rows, *blocks.around(rows), _EACH, count)
    for rows in torch.nonzero(unsure)[:, 0].split(max(1, _PAIRS_AT_ONCE // (_BLOCK * _MORE))):
        distance[rows], index[rows], unsure[rows] = blocks.look(rows, None, None, _MORE, count)
    distances, indices = torch.empty_like(distance), torch.empty_like(index)
    distances[order], indices[order] = distance, order[index]
    result = distances.cpu().numpy(), indices.cpu().numpy()
    if len(rest := np.sort(order[torch.nonzero(unsure)[:, 0]].cpu().numpy())):
        result[0][rest], result[1][rest] = reference.nearest(points, count, rest)
    return result


@dataclass(frozen=True)
class _Blocks:
    """Points along the curve in blocks.

    Attributes:
        places: (B, _BLOCK, 3), filled up with infinity.
        low: (B, 3) corner of each block's box.
        high: (B, 3) the opposite corner.
    """

    places: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, points: Tensor) -> "_Blocks":
        places = functional.pad(points, (0, 0, 0, -len(points) % _BLOCK), value=float("inf")).view(-1, _BLOCK, 3)
        return cls(places, places.amin(1), torch.where(places.isinf(), -torch.inf, places).amax(1))

    def around(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R, _WIDE) the blocks nearest to the block of each row, and (R,) how far the next one is from that block.

        Rows are consecutive and begin with a block.
        """
        own = torch.arange(int(rows[0]) // _BLOCK, int(rows[-1]) // _BLOCK + 1, device=rows.device)
        gaps = _gap(self.low[own, None] - self.high, self.low - self.high[own, None])
        near = gaps.topk(_WIDE + 1, largest=False)
        block = rows // _BLOCK - own[0]
        return near.indices[block, :_WIDE], near.values[block, _WIDE]

    def look(self, rows: Tensor, among: Tensor | None, beyond: Tensor | None, each: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Distances (R, count) to the nearest points in the `each` nearest blocks, their rows, and whether others may be nearer (R,).

        Args:
            rows: (R,) along the curve.
            among: (R, W) blocks to choose from; None: all.
            beyond: (R,) least distance of what lies in no block of `among`; None: there is nothing.
            each: blocks.
            count: neighbours.
        """
        asking = self.places.view(-1, 3)[rows, None]
        low, high = (self.low, self.high) if among is None else (self.low[among], self.high[among])
        near = _gap(low - asking, asking - high).topk(each + 1, largest=False)
        chosen = near.indices[:, :each] if among is None else among.gather(1, near.indices[:, :each])
        bound = near.values[:, each] if beyond is None else torch.minimum(near.values[:, each], beyond)
        squared = (self.places[chosen].flatten(1, 2) - asking).square_().sum(-1)
        found = squared.topk(count, largest=False, sorted=True)
        members = (chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=rows.device)).flatten(1)
        distance = found.values.sqrt()
        return distance, members.gather(1, found.indices), distance[:, -1] > bound


def _gap(below: Tensor, above: Tensor) -> Tensor:
    """Distance to a box from what is this much below and above it, (..., 3) each."""
    return torch.maximum(below, above).clamp_(min=0).norm(dim=-1)


def _along_a_curve(points: Tensor) -> Tensor:
    """(N,) rows of points (N, 3) in the order of Morton's curve."""
    low = points.amin(0)
    cells = ((points - low) * ((2**_BITS - 1) / (points.amax(0) - low).amax().clamp(min=1e-300))).long()
    key = torch.zeros_like(cells[:, 0])
    for bit in range(_BITS):
        for axis in range(3):
            key |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return key.argsort()
