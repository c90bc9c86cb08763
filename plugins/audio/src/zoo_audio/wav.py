"""WAV files to float waveforms of one channel at one sample rate, and back."""

from __future__ import annotations

import io
import math
import warnings
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UNKNOWN_FROM = 0x7FFFF000
"""Where a file's size belongs, programs that write to a pipe put 0, or from here on to 0xFFFFFFFF."""
TAPS = 10
"""Samples of the slower rate that the filter of `resampled` reaches to each side."""
FASTEST = 1_000_000
"""Hz: the highest sample rate of a file that is read."""
FINEST = 100_000
"""The ratio of two sample rates is taken as one of whole numbers up to this, exactly or within 5 millionths of it: so
long the filter of `resampled` becomes, and usual rates need a few thousand."""


def read_wav(data: bytes) -> tuple[int, NDArray[Any]]:
    """Sample rate and (samples, channels) as the file has them: 8 to 32 bits, or floats. Raises ValueError."""
    from scipy.io import wavfile

    if data[:4] not in (b"RIFF", b"RIFX", b"RF64") or data[8:12] != b"WAVE":
        raise ValueError("this is not a WAV file")
    declared = int.from_bytes(data[4:8], "big" if data[:4] == b"RIFX" else "little")
    if not 0 < declared < UNKNOWN_FROM:
        data = _up_to_the_end(data)
    elif declared + 8 > len(data):
        raise ValueError(f"cut off: {len(data)} of {declared + 8} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that it does not know, such as tags
            rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as error:
        raise ValueError(f"cannot be read as WAV: {error}") from None
    if not samples.size or rate < 1:
        raise ValueError("it holds no sound")
    if rate > FASTEST:
        raise ValueError(f"sample rate {rate} Hz: expected up to {FASTEST:,}; resample it first")
    return rate, samples.reshape(len(samples), -1)


def _up_to_the_end(data: bytes) -> bytes:
    """Replace sizes of 0 in the headers by 0xFFFFFFFF, so that scipy reads all samples that follow."""
    order: Literal["big", "little"] = "big" if data[:4] == b"RIFX" else "little"
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)
        if data[place : place + 4] == b"data":
            whole = bytearray(data)
            for start in (4, place + 4):
                if not any(data[start : start + 4]):
                    whole[start : start + 4] = b"\xff" * 4
            return bytes(whole)
        place += 8 + size + size % 2
    return data


def to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Integers, by the full scale of their width, as numbers in [-1, 1); floats as they are, if they are in range.

    Raises ValueError.
    """
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if samples.dtype.kind != "f":
        raise ValueError(f"expected a waveform of floats in [-1, 1] or of integers, got {samples.dtype}")
    if not np.isfinite(samples).all():
        raise ValueError("every number has to be finite: fill the others first")
    peak = float(np.abs(samples).max(initial=0))
    if peak > 1:
        raise ValueError(f"expected floats in [-1, 1], got a peak of {peak:g}; divide by the peak, or save 16 bits")
    return samples.astype(np.float32)


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """A waveform (samples,) at another sample rate, by polyphase filtering; within [-1, 1]."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    return np.clip(resample_poly(samples, *_ratio(rate, wanted)), -1, 1).astype(np.float32)


def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    """Samples at `wanted` and at `rate` that take equally long, see FINEST."""
    low, high = sorted((rate, wanted))
    ratio = Fraction(low, high).limit_denominator(max(FINEST, math.ceil(high / low)))
    return ratio.as_integer_ratio() if wanted < rate else (ratio.denominator, ratio.numerator)


def heard(length: int, rate: int, wanted: int) -> int:
    """Samples at `rate` that the first `length` at the rate `wanted` are made of by `resampled`."""
    up, down = _ratio(rate, wanted)
    return length if rate == wanted else math.ceil((length * down + TAPS * max(up, down)) / up) + 1


def fitted(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """The first `length` samples, with silence after them where there are fewer."""
    cut = samples[:length]
    return np.pad(cut, (0, length - len(cut)))


def wav_bytes(samples: NDArray[np.float32], rate: int) -> bytes:
    """A waveform (samples,) in [-1, 1] as a 16-bit WAV file."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    wavfile.write(buffer, rate, np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16))
    return buffer.getvalue()
