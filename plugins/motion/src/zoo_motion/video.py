"""Video as tokens: a grid over time, rows and columns."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import check_interval
from tokenizers_zoo.errors import first_line
from tokenizers_zoo.families.images import PSNR, psnr
from tokenizers_zoo.families.temporal import ClipModality, ClipSettings
from tokenizers_zoo.pictures import (
    bounded_pictures,
    fractions,
    open_undecoded,
    over_background,
    read_array,
    rgb_image,
    to_bytes,
)
from tokenizers_zoo.spec import Metric
from tokenizers_zoo.validation import array_bytes
from zoo_motion.containers import CONTAINERS, Decoding, read_container, video_of

if TYPE_CHECKING:
    import PIL.Image

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

    frame_rate: float = 8.0
    """Frames per second of the values. Files are sampled at these times; animations with a tolerance of 5 ms, because
    they round their times."""

    def __post_init__(self) -> None:
        ClipSettings.__post_init__(self)
        check_interval(self, "(0, inf)", "frame_rate", unit="frames per second")


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
