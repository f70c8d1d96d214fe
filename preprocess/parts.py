"""Parts of a clip that agree in themselves: one becomes the scene, the others are kept as scenes of their own in `parts/`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.preprocess import PreprocessConfig
from preprocess import outputs
from preprocess.frames import Footage
from preprocess.geometry import settings_of
from preprocess.scene import Reconstruction, reconstruct
from utils.errors import GeometryError
from utils.matching.contradictions import find_evidence
from utils.matching.parts import divide
from utils.scene.artifacts import save_results
from utils.scene.clip.plan import Finding
from utils.scene.layout import PARTS, SceneLayout, part_name
from utils.scene.lock import writing_scene
from utils.scene.manifest import write_manifest, writing
from utils.scene.transaction import Transaction
from utils.types import Reporter

LEAST_FRAMES = 8
"""Frames of the smallest part that is built or kept."""
_LEAST_NAMED = 3
"""Contradicting pairs that are told of; fewer may be chance."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """A clip's frames by the places they show.

    Attributes:
        built: the part that becomes the scene.
        kept: the other parts of at least `LEAST_FRAMES` frames, the largest first.
        dropped: positions in the source of the chosen frames of each smaller part.
        contradictions: positions in the source of two frames that show different places in one spot, one of the scene first.
    """

    built: Reconstruction
    kept: tuple[Reconstruction, ...] = ()
    dropped: tuple[list[int], ...] = ()
    contradictions: tuple[tuple[int, int], ...] = ()

    @property
    def whole(self) -> bool:
        """There is one part only."""
        return not self.kept and not self.dropped


def divided(config: PreprocessConfig, footage: Footage, backend: str, report: Reporter) -> Division:
    """The geometry of the chosen frames, of each part by itself where they contradict each other or nothing connects them.

    Captured frames, whose cameras are given, and those of an input that is to be used as it is stay together.

    Raises:
        GeometryError: the frames do not determine it.
        InputError: masks that do not fit.
    """
    made = reconstruct(config, footage, backend, report)
    if config.as_is or config.cameras is not None:
        return Division(built=made)
    parts, dropped, contradictions = _agreeing(config, footage, made, backend, report)
    parts += _unplaced(config, footage, made, backend, report)
    first = _chosen_part(config, footage, parts)
    parts = [parts[first], *sorted((p for k, p in enumerate(parts) if k != first), key=lambda p: -len(p.positions))]
    if len(parts) + len(dropped) > 1:
        owners = [(position, k) for k, p in enumerate([*(part.positions for part in parts), *dropped]) for position in p]
        parts = [replace(part, shown=_nearest(owners, k, len(footage.source.frames))) for k, part in enumerate(parts)]
    scene = set(parts[0].positions)
    contradictions = [pair if pair[0] in scene else pair[::-1] for pair in contradictions]
    return Division(built=parts[0], kept=tuple(parts[1:]), dropped=tuple(dropped), contradictions=tuple(contradictions))


def _agreeing(
    config: PreprocessConfig, footage: Footage, made: Reconstruction, backend: str, report: Reporter
) -> tuple[list[Reconstruction], list[list[int]], list[tuple[int, int]]]:
    """Parts of a reconstruction that agree, the positions of those too small to be one, and which frames contradict each other."""
    chosen = made.scene.cameras.frame_ids
    images = footage.frames.chosen[chosen]
    clips = None if footage.frames.clips is None else footage.frames.clips[images]
    evidence = find_evidence(made.scene, [footage.frames.images[image] for image in images])
    parts = divide(evidence, clips)
    pairs = [(made.positions[i], made.positions[j]) for i, j in np.argwhere(np.triu(evidence.contradict, 1))]
    if len(parts) == 1:
        return [made], [], pairs
    report.note(f"parts: {len(pairs)} pairs of frames show different things in one spot; geometry again, of each part by itself")
    large = [part for part in parts if len(part) >= LEAST_FRAMES] or parts[:1]
    small = [[made.positions[i] for i in part] for part in parts[len(large) :]]
    joint = [replace(made, scene=made.scene.select(part), positions=[made.positions[i] for i in part]) for part in large]
    return (
        [_alone(config, footage.of(chosen[part]), known, backend, report) for part, known in zip(large, joint, strict=True)],
        small,
        pairs,
    )


def _alone(config: PreprocessConfig, own: Footage, joint: Reconstruction, backend: str, report: Reporter) -> Reconstruction:
    """A part's geometry from its frames alone, which no other place has spoilt; as it was found with all where it loses frames."""
    try:
        alone = reconstruct(config, own, backend, report)
    except GeometryError as error:
        report.note(f"parts: frames {_spans(own, joint.positions)} keep the geometry they have with the others: {error}")
        return joint
    return alone if len(alone.positions) == len(joint.positions) else joint


def _unplaced(config: PreprocessConfig, footage: Footage, made: Reconstruction, backend: str, report: Reporter) -> list[Reconstruction]:
    """Reconstructions of frames that have no place in the first one: runs of them, each mapped by itself, where that succeeds."""
    chosen = footage.frames.chosen
    missing = np.setdiff1d(np.arange(len(chosen)), made.scene.cameras.frame_ids)
    apart = np.diff(missing) > 1
    if footage.frames.clips is not None:
        apart |= np.diff(footage.frames.clips[chosen[missing]]) != 0
    found = []
    for run in np.split(missing, np.flatnonzero(apart) + 1):
        if len(run) < LEAST_FRAMES:
            continue
        own = footage.of(run)
        names = _spans(own, own.choice.scene)
        report.note(f"parts: frames {names} have no place among the others; they are mapped by themselves")
        try:
            part = reconstruct(config, own, backend, report)
        except GeometryError as error:
            report.note(f"parts: frames {names} are left out: {error}")
            continue
        if len(part.positions) >= LEAST_FRAMES:
            found.append(part)
    return found


def _chosen_part(config: PreprocessConfig, footage: Footage, parts: Sequence[Reconstruction]) -> int:
    """The part that holds the frame the user names, or the one nearest to it; without a name the largest."""
    if config.part_of is None:
        return int(np.argmax([len(part.positions) for part in parts]))
    numbers = np.array(footage.source.numbers)
    return int(np.argmin([np.abs(numbers[part.positions] - (config.part_of - 1)).min() for part in parts]))


def _nearest(owners: list[tuple[int, int]], part: int, count: int) -> list[int]:
    """Positions among `count` frames to which a chosen frame (position, part) of this part is nearest."""
    positions, names = np.array(sorted(owners)).T
    after = np.clip(np.searchsorted(positions, np.arange(count)), 1, max(len(positions) - 1, 1))
    later = positions[after] - np.arange(count) <= np.arange(count) - positions[after - 1]
    return np.flatnonzero(names[np.where(later, after, after - 1)] == part).tolist()


def findings_of(division: Division, footage: Footage) -> tuple[Finding, ...]:
    """One line about the parts and one about the contradictions; none where there is nothing to tell."""
    found = []
    if not division.whole:
        built = _spans(footage, division.built.positions)
        kept = [f"frames {_spans(footage, p.positions)} in {PARTS}/{part_name(k + 2)}" for k, p in enumerate(division.kept)]
        small = [f"frames {_spans(footage, positions)} are too few" for positions in division.dropped]
        others = f"; kept as scenes of their own: {'; '.join(kept)}" if kept else ""
        left = f"; {'; '.join(small)}" if small else ""
        text = (
            f"the clip shows {1 + len(kept) + len(small)} places: frames {built} are built{others}{left}."
            " --config.part-of FRAME builds the one that frame shows"
        )
        count = sum(len(p.positions) for p in division.kept) + sum(map(len, division.dropped))
        found.append(Finding("parts", text, count, warning=True))
    if len(division.contradictions) >= _LEAST_NAMED:
        found.append(Finding("contradictions", _contradictions_in_words(footage, division.contradictions), warning=True))
    return tuple(found)


def _contradictions_in_words(footage: Footage, pairs: Sequence[tuple[int, int]]) -> str:
    """Which frames of the clip, from 1, show different things in one spot."""
    some = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, min(4, len(pairs))).astype(int))]
    named = ", ".join(f"{a} and {b}" for a, b in numbered(footage, some))
    one, other = (_spans(footage, sorted({pair[side] for pair in pairs})) for side in (0, 1))
    return f"{len(pairs)} pairs of frames show different things in one spot, {one} against {other}: for example {named}"


def numbered(footage: Footage, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of frames by their numbers in the clip, from 1, instead of by their positions among the usable ones."""
    numbers = footage.source.numbers
    return [(numbers[a] + 1, numbers[b] + 1) for a, b in pairs]


def _spans(footage: Footage, positions: Sequence[int]) -> str:
    """Frames of the clip, from 1, such as '1 to 40, 61 to 80': runs of chosen frames that follow each other."""
    order = {position: row for row, position in enumerate(footage.choice.scene)}
    rows = np.array([order[position] for position in positions])
    runs = np.split(np.array(positions), np.flatnonzero(np.diff(rows) > 1) + 1)
    ends = [(footage.source.numbers[run[0]] + 1, footage.source.numbers[run[-1]] + 1) for run in runs]
    return ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in ends)


def record(division: Division, footage: Footage) -> dict[str, object]:
    """What `preprocess_frames.json` says of the parts; empty where there is one and nothing contradicts.

    Frames are those of the clip, from 1; `names` are their files in the folder of frames, for pictures.
    """
    if division.whole and len(division.contradictions) < _LEAST_NAMED:
        return {}
    source = footage.source
    frames = lambda positions: [source.numbers[p] + 1 for p in positions]  # noqa: E731
    parts: list[dict[str, object]] = [{"folder": ".", "frames": frames(division.built.positions)}]
    parts += [{"folder": f"{PARTS}/{part_name(k + 2)}", "frames": frames(p.positions)} for k, p in enumerate(division.kept)]
    parts += [{"folder": None, "frames": frames(positions)} for positions in division.dropped]
    pairs = [
        {"frames": list(numbers), "names": [source.names[p] for p in pair]}
        for numbers, pair in zip(numbered(footage, division.contradictions), division.contradictions, strict=True)
    ]
    return {"parts": parts, "contradictions": pairs}


def keep(config: PreprocessConfig, division: Division, footage: Footage, backend: str, inputs: dict[str, str], report: Reporter) -> None:
    """Writes the parts that are not built as scenes of their own, each as stage 0 would write it by itself.

    Raises:
        V2WError: something stands there that was not made here, or the disk.
    """
    for index, part in enumerate(division.kept):
        started, layout = time.monotonic(), SceneLayout(config.root).part(index + 2)
        own = replace(config, scene_root=layout.root, part_of=footage.source.numbers[part.positions[0]] + 1)
        wanted = outputs.outputs_of(layout, with_frames=False)
        with (
            writing_scene(layout.root, report),
            Transaction(wanted, home=layout.root, report=report) as transaction,
            writing(layout.root),
        ):
            outputs.write_scene(own, layout, transaction, footage, part, {}, report)
            save_results(transaction.path(layout.npz_dir), part.scene)
            write_manifest(
                transaction.path(layout.npz_dir),
                schema=outputs.SCHEMA,
                config=settings_of(own, backend),
                inputs=inputs,
                backends=part.provenance,
                seed=config.seed,
                seconds=time.monotonic() - started,
            )
