"""Video files in containers such as .mp4, decoded by PyAV (FFmpeg) within bounds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTAINERS = {"mp4": "mp4", "m4v": "mp4", "mov": "mov", "webm": "matroska", "mkv": "matroska", "avi": "avi"}
"""Extensions, and FFmpeg's name of their container. FFmpeg never guesses it: a playlist could name other files."""
MOST_PIXELS = 40_000_000
"""Pixels of a frame; more are refused. 8K has 33 million."""
MOST_FRAMES = 20_000
"""Frames of a file that are decoded at most."""
HALF_MILLISECOND = 0.0005
"""Seconds by which a frame may begin late: half of Matroska's time unit."""


def read_container(data: bytes, extension: str, frames: int, frame_rate: float, side: int) -> NDArray[np.float32]:
    """Return the frames (`frames`, 3, height, width) shown at 0, 1, ... x 1 / `frame_rate` s after the first.

    Frames are upright, as the file's rotation says. Frames whose shorter side is over 2 * `side` pixels are reduced to
    it, so that memory does not depend on the resolution. Raises ValueError for damaged and for short files.
    """
    try:
        import av
    except ImportError:
        raise ValueError('needs the package av; pip install "zoo-motion[av]"') from None

    shown: list[NDArray[np.uint8]] = []
    try:
        with av.open(io.BytesIO(data), format=CONTAINERS[extension]) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            begin = until = 0.0
            for number, (start, end, frame) in enumerate(_timed(container)):
                if number == 0:
                    begin = start
                until = max(until, end - begin)
                wanted = 0  # times at which this frame is the last that has begun
                while len(shown) + wanted < frames and (len(shown) + wanted) / frame_rate < until - HALF_MILLISECOND:
                    wanted += 1
                if wanted:
                    shown += [_pixels(frame, side)] * wanted
                if len(shown) == frames:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"cannot be read as .{extension}: {error.strerror or type(error).__name__}") from None
    if len(shown) < frames:
        raise ValueError(
            f"it is shown for {until:g} s, which is {len(shown)} frames at {frame_rate:g} per second, expected"
            f" {frames}; set frames lower, or frame_rate higher"
        )
    return np.stack(shown).astype(np.float32) / np.float32(255)


def _timed(container: Any) -> Iterator[tuple[float, float, Any]]:
    """Yield start and end (s) of each frame with the frame. A frame ends where the next one starts.

    Raises ValueError for too large and too many frames.
    """
    stream = container.streams.video[0]
    usual = 1 / float(stream.average_rate or 25)
    before: tuple[float, Any] | None = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.width * frame.height > MOST_PIXELS:
            raise ValueError(f"frames of {frame.width} x {frame.height} pixels: expected up to {MOST_PIXELS:,} pixels")
        if number == MOST_FRAMES:
            raise ValueError(f"more than {MOST_FRAMES:,} frames before the last one that is needed")
        start = frame.time if frame.time is not None else number * usual
        if before is not None:
            yield before[0], start, before[1]
        before = start, frame
    if before is not None:
        yield before[0], before[0] + usual, before[1]


def _pixels(frame: Any, side: int) -> NDArray[np.uint8]:
    """Return a frame as uint8 (3, height, width), upright, reduced to twice `side` on its shorter side."""
    scale = min(1.0, 2 * side / min(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    turned = np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90) % 4)
    return np.ascontiguousarray(turned.transpose(2, 0, 1))
