"""The part of the alignment's gradient that noise in depth makes up, so that it can be left out.

The distance e of a match holds the noise of both its depths, n_i r_i - n_j r_j along the unit rays r. A field that contracts space along
the rays makes it smaller although no surface comes to lie where it belongs, and the more so the noisier a region is: a solution by
plain least squares shrinks (attenuation by errors in variables; Fuller, Measurement Error Models, 1987). In the gradient the cause is that
nodes are weighted at noisy depths: a weight a(s + n) differs from a(s) by n da/ds, and its product with e does not vanish on average,

    E[n da/ds w e | e] = w da/ds (r . e) d_i^2 / (d_i^2 + (r_i . r_j)^2 d_j^2) r,

for noise in proportion to the distances d, with e taken along the ray. That is summed here, for every end, to be subtracted.
"""

import numpy as np
from numba import njit, prange


@njit(parallel=True, fastmath=True, cache=True)
def add_noise_gradient(frames, base, weights, rates, relative, weight, difference, known, count, stride_y, stride_z, out):  # type: ignore[no-untyped-def]
    """Adds the gradient that is due to noise to one accumulator per part.

    Args:
        frames: (M, 2) frame of each end, -1 for fixed ends, whose noise counts like that of the other end.
        base: (M, 2) lowest of the eight nodes.
        weights: (M, 2, 4) fractions across and down; the other two are not read.
        rates: (M, 2, 2) change of the near and far weight per distance along the ray.
        relative: (M, 2, 3) ends relative to their camera centres.
        weight: (M,) of the matches.
        difference: (M, 3) distance between the ends.
        known: (M,) size of the noise of both ends together, if the distance is no measure of it; else empty.
        count: nodes per frame.
        stride_y: from a node to the one below.
        stride_z: to the one in the next layer.
        out: (parts, F*N, 3).
    """
    total, parts = len(frames), out.shape[0]
    for part in prange(parts):
        for m in range(total * part // parts, total * (part + 1) // parts):
            dot = 0.0
            squares = np.zeros(2)
            for k in range(3):
                dot += relative[m, 0, k] * relative[m, 1, k]
                squares[0] += relative[m, 0, k] ** 2
                squares[1] += relative[m, 1, k] ** 2
            fixed = frames[m, 1] < 0
            for end in range(2):
                frame = frames[m, end]
                if frame < 0:
                    continue
                own = squares[end]
                # d_j^2 (r_i . r_j)^2 = dot^2 / d_i^2
                share = 0.5 if fixed else own * own / (own * own + dot * dot)
                along = 0.0
                for k in range(3):
                    along += relative[m, end, k] * difference[m, k]
                squared = known[m] ** 2 if len(known) > 0 else along * along / own
                push = weight[m] * squared * share / np.sqrt(own)
                start = frame * count + base[m, end]
                fx, fy = weights[m, end, 0], weights[m, end, 1]
                for corner in range(8):
                    rate = rates[m, end, corner >> 2] * (fx if corner & 1 else 1 - fx) * (fy if corner & 2 else 1 - fy)
                    node = start + (corner & 1) + (stride_y if corner & 2 else 0) + (stride_z if corner & 4 else 0)
                    for k in range(3):
                        out[part, node, k] += rate * push * relative[m, end, k]
