"""Clips of every kind that people bring, made small and by seed, each with its right answer.

A kind draws its own numbers (bars of which width, repeated how often) from the seed, so that a rule is tried and not an example.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.inputs_world import Cube, make_cube
from preprocess.source import Choice, Source
from utils.scene.clip.colour import srgb_to_light
from utils.scene.media import read_image

SIZE = (144, 192)


@dataclass(frozen=True)
class Outcome:
    """What stage 0 makes of an input before geometry.

    Attributes:
        source: its usable frames.
        choice: those of the scene.
        notes: what was said.
    """

    source: Source
    choice: Choice
    notes: tuple[str, ...]

    def images(self, count: int = 5) -> list[tuple[int, np.ndarray]]:
        """Some frames with their number in the clip, from 0."""
        some = np.linspace(0, len(self.source.frames) - 1, count).astype(int)
        return [(int(self.source.frames[i].stem) - 1, read_image(self.source.frames[i])) for i in some]

    def says(self, word: str) -> bool:
        """Whether a line on the console has the word."""
        return any(word in note for note in self.notes)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: what it is.
        build: writes it into a folder: (folder, generator of random numbers) -> the input, and what to ask of the outcome.
        settings: of stage 0, beside the input.
    """

    name: str
    build: Callable[[Path, np.random.Generator], tuple[Path, Callable[[Outcome], str]]]
    settings: dict[str, Any]


CLIPS: list[Kind] = []


def kind(name: str, **settings: Any) -> Callable[[Any], Any]:
    """Registers a builder."""

    def register(build: Any) -> Any:
        CLIPS.append(Kind(name, build, settings))
        return build

    return register


def wrong(*pairs: tuple[bool, str]) -> str:
    """The first thing that is not as it should be; empty if all are."""
    return next((text for good, text in pairs if not good), "")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b) ** 2), 1e-9)))


def cube(rng: np.random.Generator, frames: int = 40, size: tuple[int, int] = SIZE) -> Cube:
    return make_cube(frames, size, seed=int(rng.integers(1 << 30)))


def encode(
    path: Path,
    frames: Any,
    *,
    codec: str = "libx264",
    pix: str = "yuv420p",
    rate: float = 24,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    container: str | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Path:
    """Writes frames (h, w, 3 or 4), uint8 or uint16, as a clip."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options={"crf": "16"} | (options or {}))
        first = True
        for image in frames:
            if first:
                stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], pix
                if aspect is not None:
                    stream.codec_context.sample_aspect_ratio = aspect
                for name, value in (tags or {}).items():
                    setattr(stream.codec_context, name, value)
                first = False
            kind_of = {(2, 3): "rgb48le", (1, 3): "rgb24", (1, 4): "rgba"}[image.dtype.itemsize, image.shape[2]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind_of)
            matrix = (tags or {}).get("colorspace")
            frame = frame.reformat(format=pix, **({} if matrix is None else {"dst_colorspace": matrix, "dst_color_range": 1}))
            if prepare is not None:
                frame = prepare(frame)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def _as_clean(truth: Cube, least: float = 30.0) -> Callable[[Outcome], str]:
    """Asks that all frames are there and look like the truth."""

    def ask(out: Outcome) -> str:
        quality = min(psnr(image, truth.images[number]) for number, image in out.images())
        return wrong(
            (len(out.source.frames) == len(truth.images), f"{len(out.source.frames)} frames"), (quality > least, f"{quality:.1f} dB")
        )

    return ask


@kind("as it should be")
def plain(folder: Path, rng: np.random.Generator):
    truth = cube(rng)
    return encode(folder / "clip.mp4", truth.images), lambda out: _as_clean(truth)(out) or wrong((not out.notes, f"said {out.notes}"))


@kind("pixels that are not square")
def pixel_aspect(folder: Path, rng: np.random.Generator):
    aspect = [Fraction(4, 3), Fraction(64, 45), Fraction(8, 9), Fraction(3, 4), Fraction(10, 11)][rng.integers(5)]
    truth = cube(rng)
    h, w = truth.size
    narrow = (
        [cv2.resize(i, (2 * round(w / aspect / 2), h), interpolation=cv2.INTER_AREA) for i in truth.images]
        if aspect > 1
        else [cv2.resize(i, (w, 2 * round(h * aspect / 2)), interpolation=cv2.INTER_AREA) for i in truth.images]
    )

    def ask(out: Outcome) -> str:
        number, image = out.images(1)[0]
        size, quality = image.shape[:2], psnr(cv2.resize(image, (w, h)), truth.images[number])
        off = max(abs(size[0] - h), abs(size[1] - w))
        return wrong((off <= 2, f"{size[1]}x{size[0]}"), (quality > 22, f"{quality:.1f} dB"), (out.says("times as wide"), "not said"))

    return encode(folder / "clip.mp4", narrow, aspect=aspect), ask


def _interlaced(truth: Cube, top_first: bool) -> Iterator[np.ndarray]:
    """Two moments woven into each picture: the frames 2k and 2k + 1."""
    for k in range(len(truth.images) // 2):
        first, second = truth.images[2 * k], truth.images[2 * k + 1]
        woven = first.copy()
        rows = slice(1, None, 2) if top_first else slice(0, None, 2)
        woven[rows] = second[rows]
        yield woven


@kind("interlaced")
def interlaced(folder: Path, rng: np.random.Generator):
    truth = make_cube(48, SIZE, seed=int(rng.integers(1 << 30)), start=-1.0, span=2.0)
    top, flagged = bool(rng.integers(2)), bool(rng.integers(2))
    options = {"x264-params": f"{'tff' if top else 'bff'}=1", "flags": "+ildct+ilme"} if flagged else {}
    path = encode(folder / "clip.mp4", _interlaced(truth, top), options=options)

    def ask(out: Outcome) -> str:
        quality = [max(psnr(image, truth.images[2 * number + k]) for k in (0, 1)) for number, image in out.images()]
        woven = list(_interlaced(truth, top))
        before = [max(psnr(woven[number], truth.images[2 * number + k]) for k in (0, 1)) for number, _ in out.images()]
        gain = np.median(quality) - np.median(before)
        return wrong((out.says("interlaced"), "not said"), (gain > 1, f"{gain:+.1f} dB"))

    return path, ask


def _hdr(images: np.ndarray, transfer: str, primaries: str, white: float) -> Iterator[np.ndarray]:
    """SDR pictures as a mastering house puts them into HDR: their white at `white` of the HDR reference white."""
    matrix = {"bt2020": np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]), "bt709": np.eye(3)}
    for image in images:
        light = white * srgb_to_light(image / 255.0) @ matrix[primaries].T
        if transfer == "pq":
            y = np.clip(light * 203 / 10000, 0, 1) ** 0.1593017578125
            code = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
        else:
            luminance = np.maximum(light @ [0.2627, 0.6780, 0.0593], 1e-6) * 203 / 1000
            scene = np.clip(light * 203 / 1000 * luminance[..., None] ** (1 / 1.2 - 1), 0, 1)
            code = np.where(
                scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
            )
        yield np.clip(code * 65535 + 0.5, 0, 65535).astype(np.uint16)


@kind("HDR (PQ or HLG)")
def high_range(folder: Path, rng: np.random.Generator):
    transfer, codec = [("pq", "libx265"), ("hlg", "libx265"), ("pq", "ffv1"), ("hlg", "ffv1")][rng.integers(4)]
    truth = cube(rng, 24)
    tags = {"color_trc": 16 if transfer == "pq" else 18, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    path = folder / ("clip.mp4" if codec == "libx265" else "clip.mkv")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    encode(path, _hdr(truth.images, transfer, "bt2020", 1.0), codec=codec, pix="yuv420p10le", tags=tags, options=options)
    return path, lambda out: _as_clean(truth, 25.0)(out) or wrong((out.says("tone-mapped"), "not said"))


@kind("wide gamut (BT.2020 or P3) without HDR")
def wide_gamut(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 24)
    light = srgb_to_light(truth.images / 255.0) @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)
    wide = np.clip(code * 65535, 0, 65535).astype(np.uint16)
    tags = {"color_trc": 14, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    encode(folder / "clip.mkv", wide, codec="ffv1", pix="yuv422p10le", tags=tags)
    return folder / "clip.mkv", lambda out: _as_clean(truth, 28.0)(out) or wrong((out.says("BT.2020"), "not said"))


@kind("transparent pixels")
def transparent(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 24)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    radius = rng.uniform(45, 65)
    inside = np.hypot(x - SIZE[1] / 2, y - SIZE[0] / 2) < radius
    noise = rng.integers(0, 255, truth.images.shape).astype(np.uint8)  # what lies under transparent pixels is anything
    shown = np.where(inside[None, ..., None], truth.images, noise)
    images = np.concatenate([shown, np.broadcast_to(np.where(inside, 255, 0).astype(np.uint8)[None, ..., None], (*shown.shape[:3], 1))], -1)
    name, codec, pix = [("clip.mov", "qtrle", "argb"), ("clip.mov", "png", "rgba"), ("clip.webm", "libvpx-vp9", "yuva420p")][
        rng.integers(3)
    ]
    options = {"auto-alt-ref": "0", "b": "2M"} if codec == "libvpx-vp9" else {}
    path = encode(folder / name, images, codec=codec, pix=pix, options=options)

    def ask(out: Outcome) -> str:
        if out.source.masks is None:
            return "no masks"
        mask = read_image(next(iter(sorted(out.source.masks.glob("*.png")))))[..., 0] > 127
        agree = float((mask == inside).mean())
        return wrong((agree > 0.98, f"masks agree in {agree:.1%}"), (out.says("transparent"), "not said"))

    return path, ask


@kind("turned or mirrored by its container")
def turned(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 24)
    matrix, undo = [
        ((0, 1, -1, 0), lambda i: np.rot90(i, 1)),
        ((-1, 0, 0, -1), lambda i: np.rot90(i, 2)),
        ((0, -1, 1, 0), lambda i: np.rot90(i, 3)),
        ((-1, 0, 0, 1), lambda i: i[:, ::-1]),
    ][rng.integers(4)]
    path = encode(folder / "clip.mp4", [undo(image) for image in truth.images])
    raw = bytearray(path.read_bytes())
    start = raw.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    raw[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(raw))
    return path, _as_clean(truth)


@kind("cut without re-encoding, with an edit list")
def edit_list(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 48)
    encode(folder / "whole.mp4", truth.images, options={"g": "12"})
    skip = int(rng.integers(14, 22))  # within the second group of pictures: decoding starts at 12, showing at `skip`
    with av.open(str(folder / "whole.mp4")) as source, av.open(str(folder / "clip.mp4"), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        begin = int(skip / 24 / stream.time_base)
        source.seek(begin, stream=stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts -= begin
                packet.dts -= begin
                packet.stream = copy
                out.mux(packet)

    def ask(out: Outcome) -> str:
        _, image = out.images()[0]
        first = int(np.argmax([psnr(image, other) for other in truth.images]))
        return wrong((first == skip, f"begins with frame {first}, not {skip}"), (not out.says("decoded"), "damage is claimed"))

    return folder / "clip.mp4", ask


@kind("damaged packets")
def damaged(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 60)
    path = encode(folder / "clip.mp4", truth.images, options={"g": "12"})
    packets = []
    with av.open(str(path)) as source:
        packets = [(p.pos, p.size) for p in source.demux(source.streams.video[0]) if p.size and p.pos is not None]
    raw = bytearray(path.read_bytes())
    for hit in rng.choice(np.arange(2, len(packets) - 2), 2, replace=False):
        at, size = packets[hit]
        raw[at : at + size] = rng.integers(0, 255, size).astype(np.uint8).tobytes()
    path.write_bytes(bytes(raw))

    def ask(out: Outcome) -> str:
        count = len(out.source.frames)
        return wrong((count >= 20, f"{count} frames are left"), (out.says("cannot be decoded") or out.says("damage"), "not said"))

    return path, ask


@kind("pictures repeated to reach a frame rate")
def repeated(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 40)
    if rng.integers(2):
        times = int(rng.integers(2, 9))
        order = np.repeat(np.arange(40), times)
    else:
        every = int(rng.integers(3, 6))  # 24 in 30 and the like
        order = np.repeat(np.arange(40), np.where(np.arange(40) % every == every - 1, 2, 1))
    path = encode(folder / "clip.mp4", [truth.images[i] for i in order], options={"crf": str(int(rng.integers(14, 28)))}, rate=30)

    def ask(out: Outcome) -> str:
        shown = [int(order[int(p.stem) - 1]) for p in out.source.frames]
        twins = len(shown) - len(set(shown))
        return wrong(
            (twins == 0, f"{twins} twins are left"), (len(shown) >= 38, f"{len(shown)} of 40 pictures"), (out.says("repeat"), "not said")
        )

    return path, ask


def _barred(image: np.ndarray, sides: tuple[int, int, int, int], level: tuple[int, int, int]) -> np.ndarray:
    top, bottom, left, right = sides
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=level)


@kind("bars")
def bars(folder: Path, rng: np.random.Generator):
    inner = [(104, 192), (144, 128), (104, 150), (140, 192)][rng.integers(4)]
    truth = cube(rng, 40, inner)
    total = (SIZE[0] - inner[0], SIZE[1] - inner[1])
    top = total[0] // 2 + int(rng.integers(-2, 3)) if total[0] > 8 else total[0] // 2
    left = total[1] // 2 + int(rng.integers(-4, 5)) if total[1] > 8 else 0
    sides = (top, total[0] - top, left, total[1] - left)
    level = [(0, 0, 0), (16, 16, 16), (255, 255, 255), (40, 60, 90)][rng.integers(4)]
    path = encode(folder / "clip.mp4", [_barred(i, sides, level) for i in truth.images], options={"crf": str(int(rng.integers(16, 28)))})

    def ask(out: Outcome) -> str:
        got = out.source.crop.sides
        return wrong(
            (all(want <= have <= want + 2 for have, want in zip(got, sides, strict=True)), f"cut {got}, not {sides}"),
            (out.says("bars"), "not said"),
        )

    return path, ask


@kind("a half-transparent mark")
def marked(folder: Path, rng: np.random.Generator):
    truth = make_cube(40, (216, 288), seed=int(rng.integers(1 << 30)), start=-1.0, span=2.0)
    mask = np.zeros((216, 288), np.uint8)
    cv2.putText(mask, "LOGO", (int(rng.integers(5, 150)), int(rng.integers(40, 205))), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 3, cv2.LINE_AA)
    share = rng.uniform(0.25, 0.5) * (mask / 255.0)[..., None]
    path = encode(folder / "clip.mp4", [(i * (1 - share) + 255 * share).astype(np.uint8) for i in truth.images])
    return path, lambda out: wrong((out.says("half-transparent"), "not said"))


@kind("first frames that do not belong")
def bad_start(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 60)
    images, which = truth.images.astype(np.float32), int(rng.integers(4))
    if which == 0:
        bad = 4
        images[0] = 0
        images[1:4] *= rng.uniform(1.3, 1.7)
    elif which == 1:
        bad = int(rng.integers(6, 14))
        images[:bad] *= (np.arange(bad) / bad)[:, None, None, None]
    elif which == 2:
        bad = int(rng.integers(2, 6))
        images[:bad] *= np.array([1.25, 1.0, 0.75], np.float32)
    else:
        bad = int(rng.integers(6, 14))
        share = (np.arange(bad) / bad)[:, None, None, None]
        images[:bad] = images[:bad] * share + 255 * (1 - share)
    path = encode(folder / "clip.mp4", np.clip(images, 0, 255).astype(np.uint8))

    def ask(out: Outcome) -> str:
        first = int(out.source.frames[0].stem) - 1
        last = int(out.source.frames[-1].stem)
        text = f"begins with {first}, not {bad}; ends with {last}"
        return wrong((bad - 2 <= first <= bad + 1 and last == 60, text), (out.says("left out"), "not said"))

    return path, ask


@kind("last frames that do not belong")
def bad_end(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 60)
    images, bad = truth.images.astype(np.float32), int(rng.integers(5, 12))
    level = 0 if rng.integers(2) else 255
    share = (np.arange(bad)[::-1] / bad)[:, None, None, None]
    images[60 - bad :] = images[60 - bad :] * share + level * (1 - share)
    path = encode(folder / "clip.mp4", np.clip(images, 0, 255).astype(np.uint8))

    def ask(out: Outcome) -> str:
        last = int(out.source.frames[-1].stem)
        return wrong((60 - bad - 1 <= last <= 60 - bad + 2, f"ends with {last}, not {60 - bad}"), (out.says("left out"), "not said"))

    return path, ask


@kind("several shots")
def cuts(folder: Path, rng: np.random.Generator):
    lengths = [(20, 20), (30, 10), (10, 30), (12, 24, 12)][rng.integers(4)]
    shots = [cube(rng, n) for n in lengths]
    path = encode(folder / "clip.mp4", np.concatenate([s.images for s in shots]))
    longest = int(np.argmax(lengths))
    want = (sum(lengths[:longest]), sum(lengths[: longest + 1]))

    def ask(out: Outcome) -> str:
        got = int(out.source.frames[0].stem) - 1, int(out.source.frames[-1].stem)
        return wrong((got == want, f"used {got}, not {want}"), (out.says("shots"), "not said"))

    return path, ask


@kind("played forwards and backwards, or twice")
def twins(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 40)
    forth = list(range(40))
    order = [forth + forth[::-1], forth + forth[-2:0:-1], forth + forth][rng.integers(3)]
    path = encode(folder / "clip.mp4", [truth.images[i] for i in order], options={"crf": str(int(rng.integers(16, 27)))})

    def ask(out: Outcome) -> str:
        shown = [order[int(p.stem) - 1] for p in out.source.frames]
        twice = len(shown) - len(set(shown))
        return wrong((twice <= 1, f"{twice} twins are left"), (len(shown) >= 38, f"{len(shown)} of 40"), (out.says("left out"), "not said"))

    return path, ask


@kind("a standing start")
def standing(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 40)
    still = int(rng.integers(12, 40))
    path = encode(folder / "clip.mp4", [truth.images[0]] * still + list(truth.images[1:]))

    def ask(out: Outcome) -> str:
        count = len(out.source.frames)
        return wrong((38 <= count <= 41, f"{count} of 40 pictures"), (out.says(f"the first {still} frames"), f"said {out.notes}"))

    return path, ask


@kind("a WebM called .mp4, with a cover picture's stream or sound")
def misnamed(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 30)
    path = encode(folder / "clip.mp4", truth.images, codec="libvpx-vp9", options={"b": "3M"}, container="webm")
    return path, _as_clean(truth, 27.0)


@kind("no key frame at its beginning")
def headless(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 60)
    encode(folder / "whole.ts", truth.images, options={"g": "20"}, container="mpegts")
    raw = (folder / "whole.ts").read_bytes()
    skip = 188 * (len(raw) // 188 // 8)
    (folder / "clip.ts").write_bytes(raw[skip:])

    def ask(out: Outcome) -> str:
        quality = [max(psnr(image, other) for other in truth.images) for _, image in out.images()]
        return wrong((len(out.source.frames) >= 38, f"{len(out.source.frames)} frames"), (min(quality) > 28, f"{min(quality):.1f} dB"))

    return folder / "clip.ts", ask


@contextmanager
def small_disk(free: float) -> Iterator[None]:
    """The disk seems to have this many bytes left."""
    from utils.scene.clip import extract

    before = extract.free_bytes
    extract.free_bytes = lambda folder: int(free)
    try:
        yield
    finally:
        extract.free_bytes = before
