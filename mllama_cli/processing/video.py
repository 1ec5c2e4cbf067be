"""Take frames out of videos. Imported by decoding processes alone: FFmpeg may crash or hang on a hostile file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import ImageError, UsageError
from mllama_cli.core.selection import clock, time_span
from mllama_cli.processing.canvas import fitted
from mllama_cli.processing.images import Admit, NotAdmittedError
from mllama_cli.processing.limits import MAX_VIDEO_PIXELS
from mllama_cli.processing.memory_budget import DecodingPlan

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_THREADS = 2
_KEPT_FRAMES = 20
"""Frames that a decoder keeps: references, and those of other threads."""
_FIXED_BYTES = 128_000_000
_SEEK_SECONDS = 5.0
"""A gap that is sooner decoded than skipped: half of the usual distance between key frames."""
_CONVERT = "Convert it first: ffmpeg -i in.mp4 -c:v libx264 out.mp4"


@dataclass(frozen=True)
class Frame:
    """A frame, upright and no larger than the model's canvas, and its time in seconds."""

    image: Image.Image
    time: float


def video_frames(
    file: BinaryIO,
    demuxer: str,
    name: str,
    selection: str,
    count: int,
    config: ImageProcessorConfig,
    admit: Admit | None = None,
) -> list[Frame]:
    """Return up to ``count`` frames spread evenly over the part of a video that ``selection`` names.

    Those are the frames in the middle of ``count`` equal parts, so that a fade at either end counts for nothing; of a
    short part each frame comes once.

    Raises:
        ImageError: no pictures in it, damaged, too large, or PyAV is not installed.
        UsageError: no such part.
        NotAdmittedError: ``admit`` refuses.
    """
    start, end = time_span(selection, name)
    with _opened(file, demuxer, name) as video:
        _require_small(video.stream.codec_context, name, admit)
        length = video.length()
        frames = _spread(video, start, end, length, count, config)
        if frames is None:  # the file ends before its header says
            length = video.measured_length()
            frames = _spread(video, start, end, length, count, config)
    if not frames:
        if length is not None and start > length:
            raise UsageError(f"{name} ends at {clock(length)}, before {clock(start)}", f"Name a part: {name}#0:00-")
        raise ImageError(f"{name} is a video without a frame that can be decoded", _CONVERT)
    return frames


def _spread(
    video: "_Video", start: float, end: float | None, length: float | None, count: int, config: ImageProcessorConfig
) -> list[Frame] | None:
    """Return the frames, each once; None if the length is unknown, or the video ends before it."""
    if length is None:
        return None
    if start > length:
        return None if video.measured is None else []
    last = min(length, length if end is None else end)
    step = (last - start) / count
    times = [start + step * (index + 0.5) for index in range(count)] if step > 0 else [start]
    frames: list[Frame] = []
    with video.reading() as reader:
        for time in times:
            found = reader.frame_at(time)
            if found is None:
                return None if video.measured is None else frames
            at, frame = found
            if not frames or frames[-1].time != at:
                frames.append(Frame(fitted(_upright(frame, video.stream), config), at))
    return frames


class _Video:
    """An open video: times are in seconds from its first frame."""

    def __init__(self, container: "InputContainer", stream: "VideoStream", *, guesses_length: bool) -> None:
        self.container, self.stream = container, stream
        self._guesses_length = guesses_length
        self.base = float(stream.time_base or 0) or 1 / 90_000
        self.origin = (stream.start_time or 0) * self.base
        self.measured: float | None = None

    def length(self) -> float | None:
        """Return how long the file says it is; None if it does not."""
        if self._guesses_length:
            return None
        if self.stream.duration:
            seconds = float(self.stream.duration) * self.base
        else:
            seconds = (self.container.duration or 0) / 1_000_000
        return seconds if seconds > 0 else None

    def measured_length(self) -> float | None:
        """Read the whole file, without decoding it, and return where its last frame ends; None without a frame."""
        ends = []
        self.rewind()
        with suppress(Exception):  # damaged somewhere: what comes before can be shown
            for packet in self.container.demux(self.stream):
                if packet.pts is not None:
                    ends.append((packet.pts + (packet.duration or 0)) * self.base - self.origin)
        self.measured = max(ends) if ends else None
        return self.measured

    def rewind(self) -> None:
        with suppress(Exception):
            self.container.seek(0, any_frame=False, backward=True)

    @contextmanager
    def reading(self) -> "Iterator[_Reader]":
        reader = _Reader(self)
        try:
            yield reader
        finally:
            reader.close()


class _Reader:
    """Decodes forward, and seeks where that is quicker."""

    def __init__(self, video: _Video) -> None:
        self._video = video
        self._frames: Iterator[Any] = iter(())
        self._next: tuple[float, VideoFrame] | None = None
        self._shown: tuple[float, VideoFrame] | None = None
        self._started = False

    def frame_at(self, time: float) -> "tuple[float, VideoFrame] | None":
        """Return the frame that is shown at a time, with its own; None after the end. Times must not decrease."""
        position = self._next[0] if self._next is not None else -_SEEK_SECONDS
        if not self._started or time - position > _SEEK_SECONDS:
            self._seek(time)
        while self._next is None or self._next[0] <= time:
            following = self._decoded()
            if following is None:
                # The last frame is shown until the end.
                shown, self._shown = self._next or self._shown, None
                self._next = None
                return shown
            self._shown, self._next = self._next or self._shown, following
        return self._shown or self._next

    def close(self) -> None:
        self._frames = iter(())

    def _seek(self, time: float) -> None:
        video = self._video
        self._shown = self._next = None
        target = round((time + video.origin) / video.base)
        try:
            video.container.seek(max(target, 0), stream=video.stream, backward=True)
        except Exception:  # not seekable, or beyond the end
            video.rewind()
        self._frames = self._all_frames()
        self._started = True

    def _all_frames(self) -> "Iterator[VideoFrame]":
        for packet in self._video.container.demux(self._video.stream):
            with suppress(*_packet_errors()):  # a damaged or empty packet costs its own frame
                yield from packet.decode()

    def _decoded(self) -> "tuple[float, VideoFrame] | None":
        for frame in self._frames:
            if frame.width * frame.height > MAX_VIDEO_PIXELS:
                raise ValueError("a frame larger than the header says")
            if frame.pts is not None:
                return float(frame.pts * (frame.time_base or self._video.base)) - self._video.origin, frame
        return None


def _packet_errors() -> tuple[type[Exception], ...]:
    from av.error import ArgumentError, InvalidDataError

    return InvalidDataError, ArgumentError


@contextmanager
def _opened(file: BinaryIO, demuxer: str, name: str) -> Iterator[_Video]:
    try:
        import av
    except ImportError:
        raise ImageError(
            f"{name} is a video, and PyAV, which reads those, is not installed",
            'Install it: pip install "mllama-cli[video]"',
        ) from None
    try:
        # The demuxer is named: others follow addresses, or open further files.
        with av.open(file, "r", format=demuxer, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ImageError(f"{name} has no pictures in it, only sound", "Give a video or a picture.")
            stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
            stream.codec_context.thread_count = _THREADS
            yield _Video(container, stream, guesses_length=demuxer == "mpeg")
    except (ImageError, UsageError, NotAdmittedError, MemoryError):
        raise
    except Exception as error:  # of FFmpeg's, and what PyAV makes of strange streams
        raise ImageError(f"{name} is a video that is damaged and cannot be decoded", _CONVERT) from error


def _require_small(codec: Any, name: str, admit: Admit | None) -> None:
    width, height = codec.width, codec.height
    if width * height > MAX_VIDEO_PIXELS:
        raise ImageError(
            f"{name} is too large: {width} x {height} has more than {MAX_VIDEO_PIXELS // 1_000_000} million pixels",
            "Make it smaller first: ffmpeg -i in.mp4 -vf scale=1920:-2 out.mp4",
        )
    plan = DecodingPlan(1, int(width * height * (1.5 * _KEPT_FRAMES + 8)) + _FIXED_BYTES)
    if admit is not None and not admit(plan):
        raise NotAdmittedError


def _upright(frame: Any, stream: "VideoStream") -> Image.Image:
    """Return a frame in RGB as it is shown: its pixels made square, then turned."""
    image: Image.Image = frame.to_image()
    ratio = float(stream.sample_aspect_ratio or 1)
    if 0.1 < ratio < 10 and ratio != 1:
        image = image.resize((max(1, round(image.width * ratio)), image.height), Image.Resampling.BILINEAR)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def frame_names(name: str, frames: Sequence[Frame]) -> list[str]:
    return [f"{name}#{clock(frame.time)}" for frame in frames]
