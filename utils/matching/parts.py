"""A scene's frames divided into parts that agree, where frames contradict each other: two places in one spot become two parts."""

import numpy as np

from utils.matching.contradictions import Evidence
from utils.types import Array

_AGAINST = 0.5
"""What a contradicting pair weighs against an agreeing one: one wrong pair must not divide what holds together."""
_AGAINST_OWN = 2.0
"""The same once parts are found, for where in time one ends and the next begins: a part should not contradict itself."""
_LEAST_PAIRS = 12
"""Contradicting pairs between two parts; fewer are named, but do not divide a scene."""


def divide(evidence: Evidence, clips: Array | None = None) -> list[Array]:
    """Parts of the F frames, ascending indices; the largest first, the earlier one of equally large ones.

    Correlation clustering: agreeing pairs pull together, contradicting ones apart, and the sum decides; neighbours in time always agree.
    By greedy additive edge contraction (Keuper et al., "Efficient decomposition of image and mesh graphs by lifted multicuts", ICCV 2015),
    then single frames move where they fit better. Parts that do not clearly contradict each other are one.

    Args:
        evidence: of all pairs.
        clips: (F,) clip of each frame. None: all are of one.
    """
    count = len(evidence.agree)
    if np.triu(evidence.contradict, 1).sum() < _LEAST_PAIRS:
        return [np.arange(count)]
    weight = evidence.agree.astype(float) - _AGAINST * evidence.contradict
    for i in range(count - 1):
        if clips is None or clips[i] == clips[i + 1]:
            weight[i, i + 1] = weight[i + 1, i] = 1.0
    label = _moved(weight, _contracted(weight))
    label = _joined(evidence, weight, label)
    label = _shifted(evidence.agree - _AGAINST_OWN * (evidence.contradict | evidence.partly), label)
    parts = [np.flatnonzero(label == k) for k in np.unique(label)]
    return sorted(parts, key=lambda part: (-len(part), int(part[0])))


def _contracted(weight: Array) -> Array:
    """(F,) label of each frame: the two parts that pull most become one, until none pull."""
    label, between = np.arange(len(weight)), weight.copy()
    np.fill_diagonal(between, -np.inf)
    while True:
        a, b = sorted(int(k) for k in np.unravel_index(between.argmax(), between.shape))
        if between[a, b] <= 0:
            return label
        label[label == b] = a
        between[a] += between[b]
        between[:, a] = between[a]
        between[b] = between[:, b] = between[a, a] = -np.inf


def _moved(weight: Array, label: Array) -> Array:
    """The labels after single frames moved to the part that pulls them most, in turn, until all stay."""
    label = label.copy()
    for _ in range(len(weight)):
        changed = False
        for frame in range(len(weight)):
            names = np.unique(label)
            pull = np.array([weight[frame, (label == name) & (np.arange(len(label)) != frame)].sum() for name in names])
            best = names[pull.argmax()]
            if pull.max() > pull[names == label[frame]][0]:
                label[frame], changed = best, True
        if not changed:
            break
    return label


def _shifted(weight: Array, label: Array) -> Array:
    """The labels after cuts in time were moved, frame by frame, to where parts contradict themselves least."""
    label = label.copy()
    for _ in range(len(label)):
        changed = False
        for frame, beside in [(i, k) for i in range(len(label)) for k in (i - 1, i + 1) if 0 <= k < len(label)]:
            own, other = (weight[frame, label == label[at]].sum() for at in (frame, beside))
            if other > own:
                label[frame], changed = label[beside], True
        if not changed:
            break
    return label


def _joined(evidence: Evidence, weight: Array, label: Array) -> Array:
    """The labels after parts with too little between them that contradicts were joined, those that agree most first."""
    label = label.copy()
    while True:
        names = np.unique(label)
        best, pair = -np.inf, None
        for a in names:
            for b in names[names > a]:
                rows = np.ix_(label == a, label == b)
                against, together = evidence.contradict[rows].sum(), evidence.agree[rows].sum()
                pull = weight[rows].sum()
                if (against < _LEAST_PAIRS or _AGAINST * against <= together) and pull > best:
                    best, pair = pull, (a, b)
        if pair is None:
            return label
        label[label == pair[1]] = pair[0]
