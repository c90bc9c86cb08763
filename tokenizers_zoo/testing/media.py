"""Picture, animation and sound files of every kind."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.pictures import IMAGE_EXTENSIONS, ORIENTATION
from tokenizers_zoo.testing.probe import Array, File, Probe, bars, read_or_none

if TYPE_CHECKING:
    import PIL.Image

WORDS = {
    "RGB": "8-bit RGB",
    "L": "8-bit grey",
    "P": "8-bit indexed colours",
    "1": "1-bit black and white",
    "I;16": "16-bit grey",
    "F": "grey of floats",
}
NUMERIC = ("I;16", "F")
"""Modes of pictures that may hold numbers without a range."""
GREY = (51, 204)
"""A fifth and four fifths of white."""
NUMBERS = (2000, 5000)
"""Numbers of pictures without a range."""
SIZE = (24, 16)


def save_picture(image: PIL.Image.Image, extension: str = "png", **options: Any) -> File:
    """Return a picture as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    image.save(buffer, format=Image.registered_extensions()[f".{extension}"], **options)
    return File(buffer.getvalue(), extension)


def save_plain_picture(image: PIL.Image.Image) -> File:
    """Return a picture as a file of the usual kind."""
    return save_picture(image, "tif" if image.mode == "F" else "png")


def readable_picture(handle: ModalityHandle, good: Array) -> PIL.Image.Image | None:
    """Return a readable picture: the file that the modality writes, or the first readable candidate; else None."""
    from PIL import Image

    data, extension = handle.write(good)
    if extension in IMAGE_EXTENSIONS:
        return Image.open(io.BytesIO(data))
    grey, numbers = Image.fromarray(bars(SIZE, GREY, "uint8")), bars(SIZE, NUMBERS)
    candidates = grey.convert("RGB"), grey, Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(numbers)
    read = (image for image in candidates if read_or_none(handle, save_plain_picture(image)) is not None)
    return next(read, None)


def picture_extensions(handle: ModalityHandle, plain: PIL.Image.Image) -> list[str]:
    """Return the extensions of picture files that the modality reads."""
    corner = plain.crop((0, 0, 1, 1)).resize(plain.size)  # of one colour, which JPEG keeps
    images = [corner] if plain.mode in NUMERIC else [corner, corner.convert("RGB"), corner.convert("L")]

    def read(image: PIL.Image.Image, extension: str) -> bool:
        try:
            return read_or_none(handle, save_picture(image, extension)) is not None
        except (OSError, KeyError):  # a kind of file that cannot hold such pictures
            return False

    return [extension for extension in IMAGE_EXTENSIONS if any(read(image, extension) for image in images)]


def picture_probes(handle: ModalityHandle, plain: PIL.Image.Image) -> Iterator[Probe]:
    """Picture files that show what `plain` shows, and some that show nothing."""
    from PIL import Image

    file = save_plain_picture(plain)
    same = (("the same as " + WORDS.get(plain.mode, plain.mode), file),)
    ids = np.dtype(handle.spec.value.dtype).kind in "iu"  # of classes or instances
    versions = versions_of(plain, ids)
    colours = versions["RGB"]
    for mode, image in versions.items():
        readings: tuple[tuple[str, File], ...] = same
        if mode in NUMERIC and not ids:  # brightness, unless it is a plain number
            grey = save_picture(versions["L"].convert("RGB")), save_picture(versions["L"])
            readings = tuple(("brightness, white is 65535", reading) for reading in grey if mode == "I;16")
        elif mode == plain.mode:
            continue
        elif mode == "L" and plain.mode == "RGB":
            readings = (("as grey RGB", save_picture(image.convert("RGB"))),)
        yield Probe(WORDS[mode], save_plain_picture(image), readings)
    opaque = colours.convert("RGBA")
    yield Probe("RGBA without transparency", save_picture(opaque), same)
    mask = Image.new("L", opaque.size, 255)
    mask.paste(0, (0, 0, opaque.width // 2, opaque.height))
    opaque.putalpha(mask)
    blended = [
        (f"the transparent half is {ground}", Image.composite(colours, Image.new("RGB", mask.size, ground), mask))
        for ground in ("white", "black")
    ]
    blended.append(("the colours under what is transparent", colours))
    readings = tuple((how, save_picture(image)) for how, image in blended)
    yield Probe("RGBA half transparent", save_picture(opaque), readings)
    printed = save_picture(colours.convert("CMYK"), "jpg", quality=100)
    yield Probe("CMYK", printed, (("the same as 8-bit RGB", save_picture(colours)), *same))
    if ids:
        yield Probe("JPEG", save_picture(versions["L"], "jpg", quality=75))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by a quarter to the right
    lying = plain.transpose(Image.Transpose.ROTATE_90)
    extension = file.extension
    yield Probe("turned by EXIF", save_picture(lying, extension, exif=exif), (("upright", file),), must_match=True)
    yield Probe("extension in capitals", File(file.data, extension.upper()), same, must_match=True)
    yield Probe("cut off", File(file.data[:-30], extension), damaged=True)
    yield Probe("no picture", File(b"no picture", extension), damaged=True)


def versions_of(plain: PIL.Image.Image, ids: bool) -> Mapping[str, PIL.Image.Image]:
    """Return the picture as RGB, grey, palette, 16-bit and float pictures with the same colours, or the same `ids`.

    Ids over several channels keep their colours too.
    """
    from PIL import Image

    numbers = np.asarray(plain)
    floats = numbers
    if ids and numbers.ndim == 2:
        grey = Image.fromarray(numbers.astype(np.uint8))
        indexed = plain if plain.mode == "P" else grey.convert("P")
        colours = indexed.convert("RGB")
    else:
        if plain.mode in NUMERIC:  # numbers without a range have no colours
            grey = Image.fromarray(bars(SIZE, GREY, "uint8"))
        else:
            grey = plain.convert("L")
            numbers, floats = np.asarray(grey).astype(np.uint16) * 257, np.asarray(grey) / 255
        colours = plain if plain.mode == "RGB" else grey.convert("RGB")
        indexed = colours.quantize()
    deep, exact = Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(floats.astype(np.float32))
    return {"RGB": colours, "L": grey, "P": indexed, "I;16": deep, "F": exact}


def animation(frames: int, extension: str = "gif") -> File:
    """Return an animation of 0.1 s per frame."""
    from PIL import Image

    tones = [GREY, GREY[::-1]]
    images = [Image.fromarray(bars((32, 32), tones[number % 2], "uint8")).convert("RGB") for number in range(frames)]
    return save_picture(images[0], extension, save_all=True, append_images=images[1:], duration=100, loop=0)


def moving_probes(frames: int) -> Iterator[Probe]:
    """Yield animations that are too long and too short, for a modality of `frames` frames."""
    plain, longer = animation(4 * frames), animation(8 * frames)
    yield Probe(f"{8 * frames} frames", longer, ((f"the first {frames}", plain),))
    yield Probe("2 frames", animation(2))
    yield Probe("one frame", animation(1, "png"))


RATES = (8000, 44100, 48000)
PITCH = 440
"""Hz of the tone."""
LOUD = 0.5
"""Amplitude of the tone."""


def wav(samples: Array, rate: int, width: int = 2) -> File:
    """Return float samples (time, channels) in [-1, 1) as a file of `width` bytes per sample; 0 means 32-bit floats."""
    buffer = io.BytesIO()
    if width == 0:
        from scipy.io import wavfile

        wavfile.write(buffer, rate, samples.astype(np.float32))
        return File(buffer.getvalue(), "wav")
    with wave.open(buffer, "wb") as file:
        file.setparams((samples.shape[1], width, rate, 0, "NONE", ""))
        numbers = np.round(samples * 2 ** (8 * width - 1)).astype("<i4")
        numbers += 128 if width == 1 else 0  # 8 bits: unsigned
        file.writeframes(numbers.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
    return File(buffer.getvalue(), "wav")


def tone(rate: int, seconds: float) -> Array:
    """float64 (time, 1)."""
    return LOUD * np.sin(2 * np.pi * PITCH * np.arange(round(rate * seconds)) / rate)[:, None]


def sound_probes(written: File) -> Iterator[Probe]:
    """Yield WAV files that differ from the modality's own file, which gives rate, channels and length."""
    with wave.open(io.BytesIO(written.data)) as file:
        rate, channels, seconds = file.getframerate(), file.getnchannels(), file.getnframes() / file.getframerate()
    samples = tone(rate, seconds).repeat(channels, axis=1)
    plain = wav(samples, rate)
    if channels == 1:
        mixed = (("mixed down", wav(samples / 2, rate)), ("the first channel", plain))
        yield Probe("two channels", wav(np.hstack([samples, 0 * samples]), rate), mixed, must_match=True)
    else:
        yield Probe("one channel", wav(samples[:, :1], rate), (("the same in each", plain),))
    for other_rate in (other_rate for other_rate in RATES if other_rate != rate):
        resampled = wav(tone(other_rate, seconds).repeat(channels, axis=1), other_rate)
        yield Probe(f"{other_rate} Hz", resampled, (("resampled", plain),), must_match=True)
    for width, sample_format in ((1, "8 bits"), (3, "24 bits"), (0, "floats")):
        yield Probe(sample_format, wav(samples, rate, width), (("", plain),), must_match=True)
    yield Probe("floats beyond full scale", wav(4 * samples, rate, 0))
    longer, half = np.concatenate([samples, samples]), samples[: len(samples) // 2]
    yield Probe("twice as long", wav(longer, rate), (("cut at the end", plain),))
    filled = wav(np.concatenate([half, np.zeros_like(samples)[len(half) :]]), rate)
    yield Probe("half as long", wav(half, rate), (("silence after it", filled),))
    yield Probe("no sound in it", wav(np.zeros((0, channels)), rate))
    yield Probe("cut off", File(plain.data[:-100], "wav"), damaged=True)
    yield Probe("no WAV file", File(b"no sound", "wav"), damaged=True)
