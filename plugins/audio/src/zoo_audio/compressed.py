"""Sound files other than WAV, decoded by soundfile (libsndfile)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.limits import limits

EXTENSIONS = ("flac", "mp3", "ogg", "oga", "opus", "aif", "aiff", "au", "caf")
MOST_CHANNELS = 64
"""Channels of a file that is read."""


def check_length(seconds: float) -> None:
    """Raise InvalidValueError above the limit `audio_seconds`."""
    limits().check("audio_seconds", seconds, f"{seconds:,.1f} seconds of sound")


def check_channels(channels: int) -> None:
    """Raise ValueError for more than MOST_CHANNELS."""
    if channels > MOST_CHANNELS:
        raise ValueError(f"{channels} channels: expected up to {MOST_CHANNELS}; mix it down first")


def read_compressed(data: bytes, extension: str, seconds: float, fastest: int) -> tuple[int, NDArray[np.float32]]:
    """Return the sample rate, and up to `seconds` of sound as float32 (samples, channels) in [-1, 1].

    Compressed sound may overshoot; it is clipped. Raises ValueError for damaged files, and for rates above `fastest`.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the wheel's library is not there
        raise ValueError('needs the package soundfile; pip install "zoo-audio[soundfile]"') from None

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            if not 1 <= rate <= fastest:
                raise ValueError(f"sample rate {rate} Hz: expected up to {fastest:,}; resample it first")
            check_channels(channels)
            check_length(file.frames / rate)
            samples: NDArray[np.float32] = file.read(int(seconds * rate) + 1, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        why = getattr(error, "error_string", str(error)).rstrip(".")
        raise ValueError(f"cannot be read as .{extension}: {why}") from None
    if not samples.size:
        raise ValueError("it holds no sound")
    if not np.isfinite(samples).all():
        raise ValueError("it holds numbers that are not finite")
    return rate, np.clip(samples, -1, 1)
