"""Video as tokens: a grid over time, rows and columns."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.pictures import (
    bounded_pictures,
    fractions,
    open_undecoded,
    over_background,
    read_array,
    rgb_image,
    to_bytes,
)
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import first_line
from tokenizers_zoo.families.images import PSNR, psnr
from tokenizers_zoo.families.temporal import ClipModality, ClipSettings
from tokenizers_zoo.records.limits import limits
from tokenizers_zoo.records.typed import PositiveFloat

if TYPE_CHECKING:
    import PIL.Image

CONTAINERS = {"mp4": "mp4", "m4v": "mp4", "mov": "mov", "webm": "matroska", "mkv": "matroska", "avi": "avi"}
"""Extensions, and FFmpeg's name of their container. FFmpeg never guesses it: a playlist could name other files."""
HALF_MILLISECOND = 0.0005
"""Seconds that a frame may begin late: half of Matroska's time unit."""
ANIMATIONS = ("gif", "png", "apng", "webp")
FORMATS = ("GIF", "PNG", "WEBP")
"""Pillow's names of what these files may hold."""
COLUMNS = 4
"""Frames in a row of a contact sheet."""
HALF_TICK = 5.0
"""Milliseconds by which a frame of an animation may begin late: half of GIF's time unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSettings(ClipSettings):
    """Settings of video."""

    frame_rate: PositiveFloat = 8.0
    """Frames per second of the values. Files are sampled at these times; animations with a tolerance of 5 ms, because
    they round their times."""


class Video(ClipModality):
    """float32 (time, 3, height, width) in [0, 1], sRGB."""

    settings_class = VideoSettings
    summary = "video as a grid of tokens over time, rows and columns"
    aliases = ("videos", "clips")
    extensions = (*CONTAINERS, "gif")
    channels = 3
    low, high = 0.0, 1.0
    unit = "sRGB"
    description = "frames one after the other, at frame_rate"
    loss = "l2"
    metrics = (
        replace(PSNR, bound=21.0),
        Metric(
            name="change_error",
            higher_is_better=False,
            meaning="mean absolute error of the change from each frame to the next: what is wrong about motion",
        ),
    )

    def meaning(self, options: VideoSettings) -> dict[str, Any]:
        return {"frame_rate": options.frame_rate}

    def read(self, data: bytes, extension: str, options: VideoSettings) -> NDArray[np.float32]:
        """The first `frames` frames of a video file, an animated .gif, .png or .webp, or .npy (time, 3, height, width).

        Video files (.mp4, .webm, .mkv, ...) need the extra `av`. uint8 arrays are taken as 0 to 255. Raises ValueError
        for other files, and where there are too few frames.
        """
        if extension == "npy":
            video = read_array(data, extension)
            video = fractions(video) if video.dtype == np.uint8 else video
        elif extension in ANIMATIONS:
            video = read_animation(data, options.frames, options.frame_rate)
        elif extension in CONTAINERS:
            video = read_container(data, extension, options.frames, options.frame_rate, max(options.size))
        else:
            raise ValueError(f"expected .npy, .{', .'.join(CONTAINERS)}, or an animated .{', .'.join(ANIMATIONS)}")
        if video.ndim != 4 or video.shape[1] != 3:
            raise ValueError(f"expected (time, 3, height, width), got {video.shape}")
        if len(video) < options.frames:
            raise ValueError(f"expected at least {options.frames} frames, got {len(video)}; set frames lower")
        return video[: options.frames]

    def write(self, value: NDArray[np.float32], options: VideoSettings) -> tuple[bytes, str]:
        return array_bytes(to_bytes(value)), "npy"

    def picture(self, value: NDArray[np.float32], options: VideoSettings) -> Any:
        """A contact sheet, read like text."""
        from PIL import Image

        height, width = value.shape[-2:]
        rows = -(-len(value) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * (width + 1) - 1, rows * (height + 1) - 1), "white")
        for number, frame in enumerate(value):
            row, column = divmod(number, COLUMNS)
            sheet.paste(rgb_image(frame), (column * (width + 1), row * (height + 1)))
        return sheet

    def measure(self, predicted: list[Any], target: list[Any], options: VideoSettings) -> Mapping[str, float]:
        pairs = list(zip(predicted, target, strict=True))
        change = [np.abs(np.diff(guess, axis=0) - np.diff(truth, axis=0)).mean() for guess, truth in pairs]
        return {"psnr": psnr(predicted, target), "change_error": float(np.mean(change))}


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
                if begun:  # no later frame has begun at these times
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


def read_animation(data: bytes, frames: int, frame_rate: float) -> NDArray[np.float32]:
    """The frames (`frames`, 3, height, width) that an animation shows at 0, 1, ... x 1 / `frame_rate` s.

    Files round the times of their frames, so a frame counts as shown up to HALF_TICK before its start (at most half of
    1 / `frame_rate`). An animation is not started again: ValueError is raised where it is over before, and for other
    files. Transparent parts are laid over white, as in pictures.
    """
    images: list[NDArray[np.uint8]] = []
    until = 0.0  # milliseconds
    late = min(HALF_TICK, 500 / frame_rate)
    try:
        with open_undecoded(data, FORMATS) as image:
            if not getattr(image, "is_animated", False):
                raise ValueError("one frame, which is a picture: a video has at least two")
            for frame in _frames(image, frames):
                if frame.tell() == 0 and image.info.get("default_image"):
                    continue  # shown by viewers without animation; not a frame
                frame.load()  # a WebP says how long a frame is shown only then
                until += float(frame.info.get("duration") or 100)  # 0 is shown for 100 ms, as browsers do
                pixels = np.asarray(over_background(frame, "white").convert("RGB")).transpose(2, 0, 1)
                while len(images) < frames and len(images) * 1000 / frame_rate + late < until:
                    images.append(pixels)
                if len(images) == frames:
                    break
    except (EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"cannot be read as an animation: {first_line(error)}") from None
    return video_of(images, until / 1000, frames, frame_rate)


def _frames(image: PIL.Image.Image, frame_count: int) -> Iterator[PIL.Image.Image]:
    """Yield the image at each of its frames, within the limits of a value of `frame_count` frames."""
    decoding = Decoding(frame_count)
    for number in itertools.count():
        with bounded_pictures():
            try:
                image.seek(number)
            except EOFError:
                return
            except (IndexError, struct.error):  # Pillow's, of a GIF
                raise ValueError(f"cut off in frame {number + 1}") from None
        decoding.check(*image.size)
        yield image


plugin = Video()
