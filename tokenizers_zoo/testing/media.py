"""Picture, animation and sound files of every kind."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.testing.probe import Array, File, Probe, bars, plainly_read

if TYPE_CHECKING:
    import PIL.Image


FORMATS = {
    "png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF",
}  # fmt: skip
"""Pillow's names of picture files, by extension."""
WORDS = {
    "RGB": "8-bit RGB", "L": "8-bit grey", "P": "8-bit indexed colours", "1": "1-bit black and white",
    "I;16": "16-bit grey", "F": "grey of floats",
}  # fmt: skip
GREY = (51, 204)
"""A fifth and four fifths of white."""
NUMBERS = (2000, 5000)
"""Numbers of pictures without a range."""
ORIENTATION = 0x0112
"""The EXIF tag for orientation."""
SIZE = (24, 16)


def saved(image: PIL.Image.Image, extension: str = "png", **options: Any) -> File:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=FORMATS[extension.lower()], **options)
    return File(buffer.getvalue(), extension)


def plainly_saved(image: PIL.Image.Image) -> File:
    """Return a picture as a file of the usual kind."""
    return saved(image, "tif" if image.mode == "F" else "png")


def plain_picture(handle: ModalityHandle, good: Array) -> PIL.Image.Image | None:
    """Return a readable picture: the file that the modality writes, or the first readable candidate; else None."""
    from PIL import Image

    data, extension = handle.write(good)
    if extension in FORMATS:
        return Image.open(io.BytesIO(data))
    grey, numbers = Image.fromarray(bars(SIZE, GREY, "uint8")), bars(SIZE, NUMBERS)
    candidates = grey.convert("RGB"), grey, Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(numbers)
    read = (image for image in candidates if plainly_read(handle, plainly_saved(image)) is not None)
    return next(read, None)


def picture_extensions(handle: ModalityHandle, plain: PIL.Image.Image) -> Iterator[str]:
    """The extensions of picture files that the modality reads."""
    corner = plain.crop((0, 0, 1, 1)).resize(plain.size)  # of one colour, which JPEG keeps
    images = [corner, corner.convert("RGB"), corner.convert("L")] if plain.mode not in ("I;16", "F") else [corner]
    for extension in FORMATS:
        for image in images:
            try:
                file = saved(image, extension)
            except (OSError, KeyError):  # a kind of file that cannot hold such pictures
                continue
            if plainly_read(handle, file) is not None:
                yield extension
                break


def picture_probes(handle: ModalityHandle, plain: PIL.Image.Image) -> Iterator[Probe]:
    """Picture files that show what `plain` shows, and some that show nothing."""
    from PIL import Image

    file = plainly_saved(plain)
    same = (("the same as " + WORDS.get(plain.mode, plain.mode), file),)
    versions = versions_of(plain, handle)
    colours = versions["RGB"]
    for mode, image in versions.items():
        numeric = mode in ("I;16", "F") and not holds_ids(handle)
        if mode == plain.mode and not numeric:
            continue
        readings: tuple[tuple[str, File], ...] = same
        if numeric:  # brightness, unless it is a plain number
            grey = saved(versions["L"].convert("RGB")), saved(versions["L"])
            readings = tuple(("brightness, white is 65535", reading) for reading in grey if mode == "I;16")
        elif mode == "L" and plain.mode == "RGB":
            readings = (("as grey RGB", saved(image.convert("RGB"))),)
        yield Probe(WORDS[mode], plainly_saved(image), readings, numbers=np.asarray(image) if numeric else None)
    opaque = colours.convert("RGBA")
    yield Probe("RGBA without transparency", saved(opaque), same)
    yield half_transparent(opaque)
    printed = saved(colours.convert("CMYK"), "jpg", quality=100)
    yield Probe("CMYK", printed, (("the same as 8-bit RGB", saved(colours)), *same))
    if holds_ids(handle):
        yield Probe("JPEG", saved(versions["L"], "jpg", quality=75))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by a quarter to the right
    lying = plain.transpose(Image.Transpose.ROTATE_90)
    extension = file.extension
    yield Probe("turned by EXIF", saved(lying, extension, exif=exif), (("upright", file),), must_match=True)
    yield Probe("extension in capitals", File(file.data, extension.upper()), same, must_match=True)
    yield Probe("cut off", File(file.data[:-30], extension), damaged=True)
    yield Probe("no picture", File(b"no picture", extension), damaged=True)


def versions_of(plain: PIL.Image.Image, handle: ModalityHandle) -> Mapping[str, PIL.Image.Image]:
    """Return the picture as RGB, grey, palette, 16-bit and float pictures with the same colours, or the same ids.

    Ids over several channels keep their colours too.
    """
    from PIL import Image

    if holds_ids(handle) and np.asarray(plain).ndim == 2:
        numbers = np.asarray(plain).astype(np.uint8)
        colours = plain if plain.mode == "P" else with_palette(numbers)
        return {
            "RGB": colours.convert("RGB"), "L": Image.fromarray(numbers), "P": colours,
            "I;16": Image.fromarray(numbers.astype(np.uint16)), "F": Image.fromarray(numbers.astype(np.float32)),
        }  # fmt: skip
    if plain.mode in ("I;16", "F"):  # numbers without a range have no colours
        grey = Image.fromarray(bars(SIZE, GREY, "uint8"))
        numbers = np.asarray(plain)
        deep, floats = Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(numbers.astype(np.float32))
    else:
        grey = plain.convert("L")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    colours = plain if plain.mode == "RGB" else grey.convert("RGB")
    return {"RGB": colours, "L": grey, "P": few_colours(colours), "I;16": deep, "F": floats}


def holds_ids(handle: ModalityHandle) -> bool:
    """True if a picture's numbers are ids (classes, instances)."""
    return np.dtype(handle.spec.value.dtype).kind in "iu"


def with_palette(numbers: Array) -> PIL.Image.Image:
    """Return ids in arbitrary colours: shades of red."""
    from PIL import Image

    image = Image.fromarray(numbers)
    image.putpalette([level if channel == 0 else 60 for level in range(256) for channel in range(3)])
    return image


def few_colours(colours: PIL.Image.Image) -> PIL.Image.Image:
    """Return an RGB picture of up to 256 colours as a palette picture."""
    from PIL import Image

    table, numbers = np.unique(np.asarray(colours).reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(numbers.reshape(colours.size[::-1]).astype(np.uint8))
    image.putpalette(table.astype(np.uint8).tobytes())
    return image


def half_transparent(opaque: PIL.Image.Image) -> Probe:
    """Return a picture with a transparent left half, composited on white or black, or read with the hidden colours."""
    from PIL import Image

    pixels = np.array(opaque)
    pixels[:, : pixels.shape[1] // 2, 3] = 0
    image = Image.fromarray(pixels)

    def over(ground: str) -> File:
        laid = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        return saved(laid.convert("RGB"))

    return Probe(
        "RGBA half transparent",
        saved(image),
        (
            ("the transparent half is white", over("white")), ("the transparent half is black", over("black")),
            ("the colours under what is transparent", saved(opaque.convert("RGB"))),
        ),
    )  # fmt: skip


def animation(frames: int, extension: str = "gif") -> File:
    """Return an animation of 0.1 s per frame."""
    from PIL import Image

    tones = [GREY, (GREY[1], GREY[0])]
    images = [Image.fromarray(bars((32, 32), tones[number % 2], "uint8")).convert("RGB") for number in range(frames)]
    buffer = io.BytesIO()
    formats = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "apng": "PNG"}
    images[0].save(buffer, format=formats[extension], save_all=True, append_images=images[1:], duration=100, loop=0)
    return File(buffer.getvalue(), extension)


def moving_extensions(handle: ModalityHandle, frames: int) -> list[str]:
    """Return the animation formats that the modality reads."""
    kinds = ("gif", "png", "apng", "webp")
    return [kind for kind in kinds if plainly_read(handle, animation(4 * frames, kind)) is not None]


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
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        numbers = np.round(samples * 2 ** (8 * width - 1)).astype("<i4")
        if width == 1:
            numbers = numbers + 128  # 8-bit files are unsigned
        file.writeframes(numbers.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
    return File(buffer.getvalue(), "wav")


def tone(rate: int, seconds: float, loud: float = LOUD) -> Array:
    """float64 (time, 1)."""
    return loud * np.sin(2 * np.pi * PITCH * np.arange(round(rate * seconds)) / rate)[:, None]


def sound_probes(written: File) -> Iterator[Probe]:
    """Yield WAV files that differ from the modality's own file, which gives rate, channels and length."""
    with wave.open(io.BytesIO(written.data)) as file:
        rate, channels, seconds = file.getframerate(), file.getnchannels(), file.getnframes() / file.getframerate()

    def sound(rate: int, seconds: float) -> Array:
        return tone(rate, seconds).repeat(channels, axis=1)

    samples = sound(rate, seconds)
    plain = wav(samples, rate)
    if channels == 1:
        yield Probe(
            "two channels", wav(np.hstack([samples, 0 * samples]), rate),
            (("mixed down", wav(samples / 2, rate)), ("the first channel", plain)), must_match=True,
        )  # fmt: skip
    else:
        yield Probe("one channel", wav(samples[:, :1], rate), (("the same in each", plain),))
    for other in RATES:
        if other != rate:
            yield Probe(
                f"{other} Hz", wav(sound(other, seconds), other), (("resampled", plain),),
                must_match=True,
            )  # fmt: skip
    for width, what in ((1, "8 bits"), (3, "24 bits"), (0, "floats")):
        yield Probe(what, wav(samples, rate, width), (("", plain),), must_match=True)
    yield Probe("floats beyond full scale", wav(4 * samples, rate, 0))
    yield Probe("twice as long", wav(sound(rate, 2 * seconds), rate), (("cut at the end", plain),))
    half = samples[: len(samples) // 2]
    filled = wav(np.concatenate([half, np.zeros_like(samples)[len(half) :]]), rate)
    yield Probe("half as long", wav(half, rate), (("silence after it", filled),))
    yield Probe("no sound in it", wav(np.zeros((0, channels)), rate))
    yield Probe("cut off", File(plain.data[:-100], "wav"), damaged=True)
    yield Probe("no WAV file", File(b"no sound", "wav"), damaged=True)


def is_wav(file: File) -> bool:
    """True if the module `wave` opens the file."""
    try:
        wave.open(io.BytesIO(file.data)).close()
    except (wave.Error, EOFError):
        return False
    return file.extension in ("wav", "wave")
