"""Sound files other than WAV, decoded by soundfile (libsndfile)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.limits import limits

EXTENSIONS = ("flac", "mp3", "ogg", "oga", "opus", "aif", "aiff", "au", "caf")
FASTEST = 1_000_000
"""Hz: the highest sample rate of a file that is read."""
MOST_CHANNELS = 64
"""Channels of a file that is read."""


def check_sound(rate: int, channels: int, samples: int) -> None:
    """Raise ValueError above FASTEST and MOST_CHANNELS, InvalidValueError above the limit `audio_seconds`."""
    if not 1 <= rate <= FASTEST:
        raise ValueError(f"sample rate {rate} Hz: expected up to {FASTEST:,}; resample it first")
    if channels > MOST_CHANNELS:
        raise ValueError(f"{channels} channels: expected up to {MOST_CHANNELS}; mix it down first")
    limits().check("audio_seconds", samples / rate, f"{samples / rate:,.1f} seconds of sound")


def read_compressed(data: bytes, extension: str, seconds: float) -> tuple[int, NDArray[np.float32]]:
    """Return the sample rate, and up to `seconds` of sound as float32 (samples, channels) in [-1, 1].

    Compressed sound may overshoot; it is clipped. Raises as `check_sound`, and ValueError for damaged files.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the wheel's library is not there
        raise ValueError('needs the package soundfile; pip install "zoo-audio[soundfile]"') from None

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            check_sound(rate, file.channels, file.frames)
            samples: NDArray[np.float32] = file.read(int(seconds * rate) + 1, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        why = getattr(error, "error_string", str(error)).rstrip(".")
        raise ValueError(f"cannot be read as .{extension}: {why}") from None
    if not samples.size:
        raise ValueError("it holds no sound")
    if not np.isfinite(samples).all():
        raise ValueError("it holds numbers that are not finite")
    return rate, np.clip(samples, -1, 1)
