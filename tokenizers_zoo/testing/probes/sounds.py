"""Sound files of other rates, widths and channels than the modality writes."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterator

import numpy as np

from tokenizers_zoo.testing.probes.probe import Array, File, Probe

RATES = (8000, 44100, 48000)
PITCH = 440
"""Hz of the tone."""
LOUD = 0.5
"""Amplitude of the tone."""


def wav(samples: Array, rate: int, width: int = 2) -> File:
    """float (time, channels) in [-1, 1) as a file of `width` bytes per sample; 0 for floats of 32 bits."""
    buffer = io.BytesIO()
    if width == 0:
        return float_wav(samples.astype("<f4"), rate)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        numbers = np.round(samples * 2 ** (8 * width - 1)).astype("<i4")
        if width == 1:
            numbers = numbers + 128  # such files have no sign
        file.writeframes(numbers.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
    return File(data=buffer.getvalue(), extension="wav")


def float_wav(samples: Array, rate: int) -> File:
    """A file of 32-bit floats (format 3), which the module `wave` does not write."""
    channels, body = samples.shape[1], samples.tobytes()
    head = struct.pack("<HHIIHH", 3, channels, rate, 4 * channels * rate, 4 * channels, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(body)) + body
    return File(data=b"RIFF" + struct.pack("<I", len(chunks)) + chunks, extension="wav")


def tone(rate: int, seconds: float, loud: float = LOUD) -> Array:
    """float64 (time, 1)."""
    return loud * np.sin(2 * np.pi * PITCH * np.arange(round(rate * seconds)) / rate)[:, None]


def sound_probes(written: File) -> Iterator[Probe]:
    """WAV files beside the one that the modality writes, which says its rate, its channels and how long it is."""
    with wave.open(io.BytesIO(written.data)) as file:
        rate, channels, seconds = file.getframerate(), file.getnchannels(), file.getnframes() / file.getframerate()

    def sound(rate: int, seconds: float) -> Array:
        return tone(rate, seconds).repeat(channels, axis=1)

    samples = sound(rate, seconds)
    plain = wav(samples, rate)
    if channels == 1:
        yield Probe(
            what="two channels", file=wav(np.hstack([samples, 0 * samples]), rate),
            readings=(("mixed down", wav(samples / 2, rate)), ("the first channel", plain)), must_match=True,
        )  # fmt: skip
    else:
        yield Probe(what="one channel", file=wav(samples[:, :1], rate), readings=(("the same in each", plain),))
    for other in RATES:
        if other != rate:
            yield Probe(
                what=f"{other} Hz", file=wav(sound(other, seconds), other), readings=(("resampled", plain),),
                must_match=True,
            )  # fmt: skip
    for width, what in ((1, "8 bits"), (3, "24 bits"), (0, "floats")):
        yield Probe(what=what, file=wav(samples, rate, width), readings=(("", plain),), must_match=True)
    yield Probe(what="floats beyond full scale", file=wav(4 * samples, rate, 0))
    yield Probe(what="twice as long", file=wav(sound(rate, 2 * seconds), rate), readings=(("cut at the end", plain),))
    half = samples[: len(samples) // 2]
    filled = wav(np.concatenate([half, np.zeros_like(samples)[len(half) :]]), rate)
    yield Probe(what="half as long", file=wav(half, rate), readings=(("silence after it", filled),))
    yield Probe(what="no sound in it", file=wav(np.zeros((0, channels)), rate))
    yield Probe(what="cut off", file=File(data=plain.data[:-100], extension="wav"), damaged=True)
    yield Probe(what="no WAV file", file=File(data=b"no sound", extension="wav"), damaged=True)


def is_wav(file: File) -> bool:
    """True for a WAV file that the module `wave` opens."""
    try:
        wave.open(io.BytesIO(file.data)).close()
    except (wave.Error, EOFError):
        return False
    return file.extension in ("wav", "wave")
