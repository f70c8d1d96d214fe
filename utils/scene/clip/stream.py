"""Video files, opened and decoded: every frame that can be had, what is known of the stream, and what is damaged in it.

A packet that cannot be decoded costs its frame, not the rest of the clip. Frames that lean on a lost one are known by their place: they
come after it and before the next key frame.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.codec
import av.container
import av.error
import av.filter
import av.video
import numpy as np

from utils.errors import InputError
from utils.runtime import ffmpeg_name
from utils.types import Array

# Decoders that give the transparency of VP8 and VP9, which FFmpeg's own leave out.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Errors in a row with no frame between them after which a stream is given up: a file that is no video below its first frames.
_GIVE_UP = 2000


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """What a container says of its video.

    Attributes:
        fps: average frames a second, 0 if unknown.
        frames: how many frames it announces, 0 if it does not.
        seconds: duration, 0 if unknown.
        size: (h, w) as stored.
        others: number of further video streams.
    """

    fps: float
    frames: int
    seconds: float
    size: tuple[int, int]
    others: int = 0


@dataclass
class Damage:
    """What decoding could not give; filled while frames are taken.

    Attributes:
        lost: times in seconds of frames that are in the file but cannot be decoded.
        ended: why the file ends early, empty if it does not.
        packets: how many frames the file was found to hold.
    """

    lost: list[float] = field(default_factory=list)
    ended: str = ""
    packets: int = 0


@dataclass(frozen=True)
class Decoded:
    """One frame as FFmpeg gives it.

    Attributes:
        frame: PyAV's.
        time: seconds from the beginning of the clip.
        spoiled: it, or a frame that it is predicted from, is damaged: 0 no, 1 leans on a lost frame, 2 leans on a lost key frame or is
            damaged itself.
    """

    frame: "av.VideoFrame"
    time: float
    spoiled: int = 0


def open_video(path: Path) -> "av.container.InputContainer":
    """The container of a video file.

    Raises:
        InputError: no file, no video, or a file that is no regular one.
    """
    try:
        there, regular = path.exists(), path.is_file()
    except OSError as error:
        raise InputError(f"cannot read {str(path)[:200]}: {error.strerror}", "check the path given to --input_video") from error
    if not there:
        raise InputError(f"{path} does not exist", "check the path given to --input_video")
    if not regular:
        raise InputError(f"{path} is no file", "pass a clip: MP4, MOV, WebM, MKV, AVI or GIF")
    try:
        container = av.open(ffmpeg_name(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path.name} cannot be read as a video: {getattr(error, 'strerror', None) or error}",
            "the file may be truncated or not a video; play it, or download it again",
        ) from error
    if _stream(container) is None:
        container.close()
        raise InputError(f"{path.name} has no video stream", "pass an MP4, MOV, WebM or GIF clip that shows the scene")
    return container


def _stream(container: "av.container.InputContainer") -> Any:
    """The stream with the clip: not a cover picture, and of several the one a player would take."""
    moving = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
    best = container.streams.best("video")
    return best if best in moving else next(iter(moving), None)


def facts(path: Path) -> StreamFacts:
    """What a file's container says of its video; nothing is decoded.

    Raises:
        InputError: as `open_video`.
    """
    with open_video(path) as container:
        stream = _stream(container)
        seconds = float(stream.duration * stream.time_base) if stream.duration else float(container.duration or 0) / av.time_base
        return StreamFacts(
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            frames=int(stream.frames),
            seconds=max(seconds, 0.0),
            size=(stream.height, stream.width),
            others=sum(not (s.disposition & av.stream.Disposition.attached_pic) for s in container.streams.video) - 1,
        )


def pixel_aspect(path: Path) -> float:
    """Width of a stored pixel over its height, as the container or the codec says; 1 if neither does.

    Raises:
        InputError: as `open_video`.
    """
    with open_video(path) as container:
        stream = _stream(container)
        return float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or 1.0


def decoded(path: Path, damage: Damage | None = None, *, deinterlace: bool = False, threads: int = 0) -> Iterator[Decoded]:
    """Every frame of a clip that can be decoded, in the order they are shown.

    Args:
        path: the file.
        damage: filled with what is lost.
        deinterlace: put whole pictures in the place of interlaced ones, one for each frame.
        threads: of the decoder, each with frames of its own in memory; 0: as many as it likes.

    Raises:
        InputError: as `open_video`.
    """
    damage = damage if damage is not None else Damage()
    with open_video(path) as container:
        stream = _stream(container)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        frames = _checked(_frames(container, stream, damage), stream, damage)
        yield from _deinterlaced(frames, stream) if deinterlace else frames


def _frames(container: Any, stream: Any, damage: Damage) -> Iterator[tuple[Any, list[Any]]]:
    """Frames and, for each, the packets (pts, is key frame, failed) that went into the decoder since the frame before."""
    decoder = _alpha_decoder(stream)
    sent: list[Any] = []
    failures = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            damage.ended, packet = str(error.strerror or error), None
        failed = False
        frames: list[Any] = []
        try:
            frames = decoder.decode(packet) if decoder is not None else packet.decode() if packet is not None else stream.decode(None)
        except EOFError:
            pass
        except (av.error.FFmpegError, ValueError):
            failed = True
        if packet is not None and packet.size:
            damage.packets += 1
            sent.append((packet.pts, packet.is_keyframe, failed, packet.is_discard))
        for frame in frames:
            failures = 0
            yield frame, sent
            sent = []
        failures += failed
        if packet is None or failures > _GIVE_UP:
            break
    yield None, sent


def _alpha_decoder(stream: Any) -> Any:
    """A decoder that gives transparency where the stream says that it has some and FFmpeg's own decoder drops it."""
    name = _ALPHA_DECODERS.get(stream.codec_context.name, "")
    said = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode")
    if said != "1" or name not in av.codec.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _checked(frames: Iterator[tuple[Any, list[Any]]], stream: Any, damage: Damage) -> Iterator[Decoded]:
    """Frames with their times and what they lean on; `damage` learns which packets gave none."""
    base = stream.time_base
    start = stream.start_time or 0
    expected: list[int] = []
    got: set[int] = set()
    keys: list[int] = []
    bad: list[tuple[int, int]] = []  # (time stamp, 2 for a key frame)
    count = 0
    for frame, sent in frames:
        for pts, key, failed, discarded in sent:
            if pts is None or discarded:
                continue
            expected.append(pts)
            if key:
                keys.append(pts)
            if failed:
                bad.append((pts, 2 if key else 1))
        if frame is None:
            break
        pts = frame.pts if frame.pts is not None else count
        got.add(pts)
        if frame.is_corrupt:
            bad.append((pts, 2))
        time = float((pts - start) * (base or 1))
        yield Decoded(frame, time, _leaning(pts, keys, bad))
        count += 1
    damage.lost = [float((pts - start) * base) for pts in sorted(set(expected) - got) if pts >= start]


def _leaning(pts: int, keys: list[int], bad: list[tuple[int, int]]) -> int:
    """How a frame of this time stamp is touched by damage before it, since the last key frame."""
    if not bad:
        return 0
    key = max((k for k in keys if k <= pts), default=-(1 << 62))
    return max((how for at, how in bad if key <= at <= pts), default=0)


def _deinterlaced(frames: Iterator[Decoded], stream: Any) -> Iterator[Decoded]:
    """The frames through FFmpeg's bwdif, which weaves where nothing moves; a change of format within the clip passes through as it is."""
    graph = source = sink = None
    kind: Any = None
    waiting: deque[Decoded] = deque()

    def pulled() -> Iterator[Decoded]:
        while waiting and sink is not None:
            try:
                frame = sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            old = waiting.popleft()
            yield Decoded(frame, old.time, old.spoiled)

    for item in frames:
        this = (item.frame.width, item.frame.height, item.frame.format.name)
        if graph is None:
            graph, kind = av.filter.Graph(), this
            source = graph.add_buffer(template=stream, width=this[0], height=this[1], format=item.frame.format)
            weave = graph.add("bwdif", "mode=send_frame:deint=all")
            sink = graph.add("buffersink")
            source.link_to(weave)
            weave.link_to(sink)
            graph.configure()
        if this != kind or source is None:
            yield item
            continue
        waiting.append(item)
        source.push(item.frame)
        yield from pulled()
    if source is not None:
        source.push(None)
        yield from pulled()


def combed_share(luma: Array) -> float:
    """Share of textured places of a picture (h, w) that show combs: rows that alternate more than pairs of rows do.

    In a picture taken at once the finest vertical detail is the weakest; where two fields of different moments are woven, it is the
    strongest. Columns are never woven: what they show of the kind is the picture's own.
    """
    return max(0.0, _alternating(luma) - 1.5 * _alternating(luma.T))


def _alternating(luma: Array) -> float:
    rows = luma[: len(luma) // 4 * 4].astype(np.int16)
    a, b, c, d = rows[0::4], rows[1::4], rows[2::4], rows[3::4]
    fine, coarse = np.abs(a - b + c - d), np.abs(a + b - c - d)
    strong = np.maximum(fine, coarse) > 24
    return float((fine[strong] > 1.5 * coarse[strong]).mean()) if strong.sum() > 50 else 0.0
