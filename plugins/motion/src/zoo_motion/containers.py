"""Video files in containers such as .mp4, decoded by PyAV (FFmpeg) within bounds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.limits import limits
from tokenizers_zoo.pictures import fractions

CONTAINERS = {"mp4": "mp4", "m4v": "mp4", "mov": "mov", "webm": "matroska", "mkv": "matroska", "avi": "avi"}
"""Extensions, and FFmpeg's name of their container. FFmpeg never guesses it: a playlist could name other files."""
HALF_MILLISECOND = 0.0005
"""Seconds by which a frame may begin late: half of Matroska's time unit."""


class Decoding:
    """The frames of a video that are decoded, checked one by one against the limits."""

    def __init__(self, frame_count: int) -> None:
        """`frame_count` is the number of frames of the value."""
        self.frame_count, self.frames, self.pixels = frame_count, 0, 0

    def check(self, width: int, height: int, scale: float = 1.0) -> None:
        """Count a frame, which is reduced by `scale` in the value. Raises InvalidValueError above the limits."""
        self.frames, self.pixels = self.frames + 1, self.pixels + width * height
        description = f"frames of {width} x {height} pixels"
        limits().check("image_pixels", width * height, description)
        limits().check("frames", self.frames, f"{self.frames:,} frames before the last one that is needed")
        limits().check("video_pixels", self.pixels, f"{self.frames:,} {description}")
        elements = 3 * self.frame_count * width * height * scale**2
        limits().check("array_elements", elements, f"{self.frame_count} {description}")


def read_container(data: bytes, extension: str, frames: int, frame_rate: float, side: int) -> NDArray[np.float32]:
    """Return the frames (`frames`, 3, height, width) shown at 0, 1, ... x 1 / `frame_rate` s after the first.

    Frames are upright, as the file's rotation says. Frames whose shorter side is over 2 * `side` pixels are reduced to
    it, so that memory does not depend on the resolution. Raises ValueError for damaged and for short files, and
    InvalidValueError above the limits.
    """
    try:
        import av
    except ImportError:
        raise ValueError('needs the package av; pip install "zoo-motion[av]"') from None

    images: list[NDArray[np.uint8]] = []
    try:
        with av.open(io.BytesIO(data), format=CONTAINERS[extension]) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            begin = until = 0.0
            for number, (start, end, frame) in enumerate(_timed_frames(container, Decoding(frames), side)):
                if number == 0:
                    begin = start
                until = max(until, end - begin)
                begun = [k for k in range(len(images), frames) if k / frame_rate < until - HALF_MILLISECOND]
                if begun:  # the times at which this frame is the last that has begun
                    images += [_pixels(frame, side)] * len(begun)
                if len(images) == frames:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"cannot be read as .{extension}: {error.strerror or type(error).__name__}") from None
    return video_of(images, until, frames, frame_rate)


def video_of(images: list[NDArray[np.uint8]], seconds: float, frames: int, frame_rate: float) -> NDArray[np.float32]:
    """Return the frames of a video as one array. Raises ValueError if it was shown for too few `seconds`."""
    if len(images) < frames:
        raise ValueError(
            f"it is shown for {seconds:g} s, which is {len(images)} frames at {frame_rate:g} per second, expected"
            f" {frames}; set frames lower, or frame_rate higher"
        )
    return fractions(np.stack(images))


def _timed_frames(container: Any, decoding: Decoding, side: int) -> Iterator[tuple[float, float, Any]]:
    """Yield start and end (s) of each frame with the frame. A frame ends where the next one starts."""
    stream = container.streams.video[0]
    context = stream.codec_context
    limits().check("image_pixels", context.width * context.height, f"{context.width} x {context.height} pixels")
    context.options = {"max_pixels": str(limits().image_pixels)}  # a frame may have another size than the header
    context.thread_count = 1  # each thread would have frames of its own
    usual = 1 / float(stream.average_rate or 25)
    previous: tuple[float, Any] | None = None
    for number, frame in enumerate(container.decode(stream)):
        decoding.check(frame.width, frame.height, _scale(frame, side))
        start = frame.time if frame.time is not None else number * usual
        if previous is not None:
            yield previous[0], start, previous[1]
        previous = start, frame
    if previous is not None:
        yield previous[0], previous[0] + usual, previous[1]


def _scale(frame: Any, side: int) -> float:
    """Return the factor that reduces a frame to twice `side` on its shorter side."""
    return min(1.0, 2 * side / min(frame.width, frame.height))


def _pixels(frame: Any, side: int) -> NDArray[np.uint8]:
    """Return a frame as uint8 (3, height, width), upright, reduced by `_scale`."""
    scale = _scale(frame, side)
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    turned = np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90) % 4)
    return np.ascontiguousarray(turned.transpose(2, 0, 1))
