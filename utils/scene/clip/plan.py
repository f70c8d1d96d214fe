"""What is done with a clip before its frames become a scene: which of them are used, what is cut off them, and one line for each reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from utils.scene.clip.borders import Crop, find_bars
from utils.scene.clip.exposure import blank_frames, find_ends
from utils.scene.clip.marks import Mark, find_mark
from utils.scene.clip.shots import find_cuts, longest_shot
from utils.scene.clip.survey import Survey
from utils.scene.clip.timing import find_repeats, find_twins, level
from utils.types import Array

# A clip is not thinned below this many frames: what is left is then better than nothing.
_LEAST = 8
# Frames that lean on a damaged one are left out as long as they are at most this share of the clip.
_SPOILED_SHARE = 0.25
# Share of transparent pixels in the frames from which on transparency counts.
_TRANSPARENT = 0.002


@dataclass(frozen=True)
class Finding:
    """One thing about a clip.

    Attributes:
        kind: what it is, one word for programs.
        text: what it is and what is done about it, one line for people.
        frames: how many frames are left out for it.
        warning: the user should do something.
    """

    kind: str
    text: str
    frames: int = 0
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """What is used of a clip.

    Attributes:
        keep: (T,) bool, frames that are used.
        crop: what is cut off each.
        deinterlace: two fields are woven in its frames.
        transparent: its frames have pixels that do not count.
        mark: a half-transparent mark that stands still.
        findings: what was found, in the order it matters.
    """

    keep: Array
    crop: Crop = field(default_factory=Crop)
    deinterlace: bool = False
    transparent: bool = False
    mark: Mark | None = None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def used(self) -> Array:
        """(N,) positions of the frames that are used."""
        return np.flatnonzero(self.keep)


def plan_clip(survey: Survey, *, as_is: bool = False, part_of: int | None = None) -> ClipPlan:
    """What is used of a clip or a folder of frames.

    Args:
        survey: of its frames.
        as_is: leave no frame out and cut nothing off.
        part_of: a frame, from 0: of several shots that with this one is used. None: the longest.
    """
    findings = [*_about_the_file(survey)]
    keep = np.ones(len(survey), bool)
    if not as_is:
        keep = _undamaged(survey, keep, findings)
        # Where hardly a frame shows anything, nothing can be told of them.
        if (keep & ~blank_frames(survey.thumbs)).sum() >= _LEAST:
            for choose in (_shown, _distinct, _once, partial(_one_shot, part_of=part_of), _settled):
                keep = choose(survey, keep, findings)
    positions = [i for i, at in enumerate(survey.sampled) if keep[at]]
    if len(positions) < _LEAST:
        positions = list(range(len(survey.sampled)))
    crop = Crop() if as_is else find_bars([survey.profiles[i] for i in positions])
    if crop:
        (h, w), names = crop.size(survey.size), ("top", "bottom", "left", "right")
        bars = ", ".join(f"{name} {count}" for name, count in zip(names, crop.sides, strict=True) if count)
        findings.append(Finding("bars", f"bars around the picture are cut off ({bars} px): {w}x{h} of {survey.size[1]}x{survey.size[0]}"))
    mark = find_mark(survey.small[positions]) if not as_is else None
    if mark is not None:
        advice = "if it is a logo, --mask_overlays leaves it out of the scene"
        findings.append(
            Finding("watermark", f"something half-transparent seems to stand still at the {mark.words}; {advice}", warning=True)
        )
    transparent = survey.opacity[0] < 1 - _TRANSPARENT
    if transparent and survey.opacity[1] < 0.02:
        findings.append(Finding("alpha", "every pixel is transparent, so transparency is not heeded", warning=True))
        transparent = False
    elif transparent:
        findings.append(Finding("alpha", f"transparent pixels (up to {1 - survey.opacity[0]:.0%} of a frame) are masked out"))
    return ClipPlan(keep=keep, crop=crop, deinterlace=survey.interlaced, transparent=transparent, mark=mark, findings=tuple(findings))


def _about_the_file(survey: Survey) -> list[Finding]:
    """What is done to every frame, and what is damaged."""
    found = []
    shape = survey.shape
    if shape is not None and shape.aspect != 1:
        (h, w), (height, width) = shape.stored, shape.square
        found.append(Finding("pixel aspect", f"pixels are {shape.aspect:.3g} times as wide as high: {w}x{h} is shown as {width}x{height}"))
    if shape is not None and shape.turn[0] * shape.turn[3] - shape.turn[1] * shape.turn[2] < 0:
        found.append(Finding("mirrored", "the file says that its picture is mirrored; it is shown as players show it"))
    if survey.interlaced:
        found.append(Finding("interlaced", "interlaced: the fields are made whole pictures again (bwdif)"))
    if survey.conversion.needed:
        what = "tone-mapped to" if survey.conversion.high_range else "converted to"
        found.append(Finding("colour", f"{survey.conversion.name} is {what} BT.709 at 8 bits"))
    if survey.facts is not None and survey.facts.others > 0:
        found.append(Finding("streams", f"the file holds {survey.facts.others + 1} videos; the one that players show is used"))
    if survey.damage.lost or survey.damage.ended:
        found.append(_damage(survey))
    return found


def _damage(survey: Survey) -> Finding:
    lost = survey.damage.lost
    parts = [f"{len(lost)} of {len(survey) + len(lost)} frames cannot be decoded ({_at(lost)})"] if lost else []
    parts += [f"the file ends early: {survey.damage.ended}"] if survey.damage.ended else []
    return Finding("damage", "; ".join(parts) + "; the others are used", frames=0, warning=True)


def _at(times: Sequence[float]) -> str:
    """Times in seconds, abridged."""
    if len(times) == 1:
        return f"at {times[0]:.2f} s"
    return f"between {min(times):.2f} and {max(times):.2f} s"


def _less(keep: Array, without: Array) -> Array:
    """`keep` without some frames, or as it is where too little would be left."""
    left = keep & ~without
    return left if left.sum() >= min(_LEAST, int(keep.sum())) else keep


def _undamaged(survey: Survey, keep: Array, findings: list[Finding]) -> Array:
    """Without frames that show the traces of damage, where these are few; frames of another size always go."""
    if len(survey.odd) and survey.facts is not None:  # a folder of mixed sizes is refused, naming the files
        other = np.zeros_like(keep)
        other[survey.odd] = True
        left = _less(keep, other)
        if left is not keep:
            size = f"{survey.size[1]}x{survey.size[0]}"
            findings.append(Finding("sizes", f"{len(survey.odd)} frames are of another size than {size} and are left out", len(survey.odd)))
        keep = left
    spoiled = survey.spoiled > 0
    if not spoiled.any():
        return keep
    severe = spoiled if spoiled.mean() <= _SPOILED_SHARE else survey.spoiled > 1
    left = _less(keep, severe) if severe.mean() <= 0.5 else keep
    out, smeared = int((keep & ~left).sum()), int((left & spoiled).sum())
    if out:
        findings.append(Finding("spoiled", f"{out} frames after the damage show its traces and are left out", out))
    if smeared:
        findings.append(Finding("spoiled", f"{smeared} frames after the damage may show its traces and are used", warning=True))
    return left


def _shown(survey: Survey, keep: Array, findings: list[Finding]) -> Array:
    """Without blank frames."""
    blank = blank_frames(survey.thumbs) & keep
    left = _less(keep, blank)
    count = int((keep & ~left).sum())
    if count:
        shown = np.flatnonzero(left)
        where = "at the beginning" if blank[: shown[0]].sum() == count else "at the end" if blank[shown[-1] :].sum() == count else "in it"
        findings.append(Finding("blank", f"{count} blank frames {where} are left out", count))
    return left


def _distinct(survey: Survey, keep: Array, findings: list[Finding]) -> Array:
    """Every picture once."""
    repeats = find_repeats(level(survey.thumbs), keep)
    left = keep & repeats.keep
    if left.sum() < 2:  # it stands still; geometry says what that means
        return keep
    count = int((keep & ~left).sum())
    if not count:
        return keep
    standing = repeats.standing if repeats.standing > max(3, 2 * repeats.period) else 0
    if standing:
        text = f"the first {standing} frames show one picture; it is used once"
        findings.append(Finding("standing start", text, standing - 1))
        count -= standing - 1
    if count > 0:
        rate = survey.facts.fps if survey.facts is not None else 0.0
        shown = f" ({rate / repeats.period:.3g} pictures a second in a file of {rate:.3g})" if rate and repeats.period > 1.02 else ""
        findings.append(
            Finding("repeats", f"{count} of {int(keep.sum())} frames repeat the picture before them and are left out{shown}", count)
        )
    return left


def _one_shot(survey: Survey, keep: Array, findings: list[Finding], *, part_of: int | None = None) -> Array:
    """The longest shot, or the one with the frame `part_of`, or the used frame nearest to it."""
    frames = np.flatnonzero(keep)
    cuts = find_cuts(survey.thumbs, frames)
    if not len(cuts):
        return keep
    longest, shots = longest_shot(frames, cuts)
    shot = longest if part_of is None else min(shots, key=lambda one: int(np.abs(one - part_of).min()))
    if len(shot) < 2 or len(shots) > max(4, len(frames) // 6):  # a slide show, or a camera faster than its frames
        findings.append(Finding("cuts", f"the picture changes altogether {len(cuts)} times; all frames are used", warning=True))
        return keep
    left = np.zeros_like(keep)
    left[shot] = True
    at = ", ".join(f"{survey.times[frames[c]]:.2f}" for c in cuts[:5]) if survey.facts else ", ".join(str(frames[c] + 1) for c in cuts[:5])
    where = f"cut at {at}{' ...' if len(cuts) > 5 else ''}{' s' if survey.facts else ''}"
    out = int(keep.sum() - left.sum())
    text = (
        f"{len(shots)} shots ({where}): {'the longest' if part_of is None else f'that of frame {part_of + 1}'} is used, frames"
        f" {shot[0] + 1} to {shot[-1] + 1}; each other one is a scene of its own, which --config.part-of with one of its frames makes"
    )
    findings.append(Finding("cuts", text, out, warning=True))
    return left


def _settled(survey: Survey, keep: Array, findings: list[Finding]) -> Array:
    """Without fades and jumps of brightness at either end."""
    frames = np.flatnonzero(keep)
    ends = find_ends(survey.thumbs[frames], survey.tints[frames])
    out = np.zeros_like(keep)
    out[frames[: ends.first]] = True
    out[frames[len(frames) - ends.last :]] = True
    left = _less(keep, out)
    if left is not keep:
        for count, why, where in ((ends.first, ends.first_why, "first"), (ends.last, ends.last_why, "last")):
            if count:
                findings.append(Finding("ends", f"the {where} {count} frames show {why} and are left out", count))
    return left


def _once(survey: Survey, keep: Array, findings: list[Finding]) -> Array:
    """Without pictures that were there before: a clip played backwards, or again. One would be trained on and its twin held out."""
    twins = find_twins(level(survey.thumbs), keep)
    seen = twins >= 0
    left = _less(keep, seen)
    count = int((keep & ~left).sum())
    if count:
        twin_of = twins[seen & keep]
        order = np.sign(np.diff(twin_of)).sum()
        how = (
            "play the clip backwards"
            if order < -0.5 * len(twin_of)
            else "play it again"
            if order > 0.5 * len(twin_of)
            else "were seen before"
        )
        findings.append(Finding("twins", f"{count} frames {how} and are left out, so that none is both learned and held out", count))
    return left


def joined(plans: Sequence[ClipPlan]) -> list[ClipPlan]:
    """The plans of the clips of one scene: all are cut alike, as one camera's pictures are of one size."""
    crop = Crop()
    for plan in plans:
        crop = crop.joined(plan.crop)
    return [replace(plan, crop=crop) for plan in plans]
