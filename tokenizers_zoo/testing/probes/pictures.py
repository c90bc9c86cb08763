"""Picture files of every kind, from one that the modality reads."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.testing.probes.arrays import bars
from tokenizers_zoo.testing.probes.probe import Array, File, Probe, plainly_read

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
"""What pictures of numbers without a range hold."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a picture has to be turned."""
SIZE = (24, 16)


def saved(image: PIL.Image.Image, extension: str = "png", **options: Any) -> File:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=FORMATS[extension.lower()], **options)
    return File(data=buffer.getvalue(), extension=extension)


def plain_picture(handle: ModalityHandle, good: Array) -> PIL.Image.Image | None:
    """A sound picture: the file that the modality writes, or the first of some that it reads; None without one."""
    from PIL import Image

    data, extension = handle.write(good)
    if extension in FORMATS:
        return Image.open(io.BytesIO(data))
    numbers = bars(SIZE, NUMBERS)
    candidates = (
        Image.fromarray(bars(SIZE, GREY, "uint8")).convert("RGB"), Image.fromarray(bars(SIZE, GREY, "uint8")),
        Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(numbers),
    )  # fmt: skip
    found = (image for image in candidates if readable(handle, image))
    return next(found, None)


def readable(handle: ModalityHandle, image: PIL.Image.Image) -> bool:
    """True where the modality reads a picture."""
    file = saved(image, "tif" if image.mode == "F" else "png")
    return plainly_read(handle, file) is not None


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

    file = saved(plain, "tif" if plain.mode == "F" else "png")
    same = (("the same as " + WORDS.get(plain.mode, plain.mode), file),)
    versions = versions_of(plain, handle)
    colours = versions["RGB"]
    for mode, image in versions.items():
        numeric = mode in ("I;16", "F") and not holds_ids(handle)
        if mode == plain.mode and not numeric:
            continue
        readings: tuple[tuple[str, File], ...] = same
        if numeric:  # brightness, unless it is a number that stands for itself
            grey = saved(versions["L"].convert("RGB")), saved(versions["L"])
            readings = tuple(("brightness, white is 65535", reading) for reading in grey if mode == "I;16")
        elif mode == "L" and plain.mode == "RGB":
            readings = (("as grey RGB", saved(image.convert("RGB"))),)
        yield Probe(
            what=WORDS[mode], file=saved(image, "tif" if mode == "F" else "png"), readings=readings,
            numbers=np.asarray(image) if numeric else None,
        )  # fmt: skip
    opaque = colours.convert("RGBA")
    yield Probe(what="RGBA without transparency", file=saved(opaque), readings=same)
    yield half_transparent(opaque)
    yield Probe(
        what="CMYK", file=saved(colours.convert("CMYK"), "jpg", quality=100),
        readings=(("the same as 8-bit RGB", saved(colours)), *same),
    )  # fmt: skip
    if holds_ids(handle):
        yield Probe(what="JPEG", file=saved(versions["L"], "jpg", quality=75))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by a quarter to the right
    lying = plain.transpose(Image.Transpose.ROTATE_90)
    extension = file.extension
    yield Probe(
        what="turned by EXIF", file=saved(lying, extension, exif=exif), readings=(("upright", file),), must_match=True
    )
    yield Probe(
        what="extension in capitals", file=File(data=file.data, extension=extension.upper()), readings=same,
        must_match=True,
    )  # fmt: skip
    yield Probe(what="cut off", file=File(data=file.data[:-30], extension=extension), damaged=True)
    yield Probe(what="no picture", file=File(data=b"no picture", extension=extension), damaged=True)


def versions_of(plain: PIL.Image.Image, handle: ModalityHandle) -> Mapping[str, PIL.Image.Image]:
    """The picture as RGB, grey, palette, 16-bit and float pictures: the same colours, or, of ids, the same numbers.

    Ids that are spread over several channels are in no other kind of picture: of those, too, the same colours.
    """
    from PIL import Image

    if holds_ids(handle) and np.asarray(plain).ndim == 2:
        numbers = np.asarray(plain).astype(np.uint8)
        colours = plain if plain.mode == "P" else with_palette(numbers)
        return {
            "RGB": colours.convert("RGB"), "L": Image.fromarray(numbers), "P": colours,
            "I;16": Image.fromarray(numbers.astype(np.uint16)), "F": Image.fromarray(numbers.astype(np.float32)),
        }  # fmt: skip
    if plain.mode in ("I;16", "F"):  # numbers that have no range, and so no colours
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
    """True where numbers of a picture stand for something else than brightness: classes, instances."""
    return np.dtype(handle.spec.value.dtype).kind in "iu"


def with_palette(numbers: Array) -> PIL.Image.Image:
    """Ids in colours that mean nothing: shades of red."""
    from PIL import Image

    image = Image.fromarray(numbers)
    image.putpalette([level if channel == 0 else 60 for level in range(256) for channel in range(3)])
    return image


def few_colours(colours: PIL.Image.Image) -> PIL.Image.Image:
    """An RGB picture of up to 256 colours as numbers of a palette, in an order of its own."""
    from PIL import Image

    table, numbers = np.unique(np.asarray(colours).reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(numbers.reshape(colours.size[::-1]).astype(np.uint8))
    image.putpalette(table.astype(np.uint8).tobytes())
    return image


def half_transparent(opaque: PIL.Image.Image) -> Probe:
    """A picture whose left half is transparent: laid over something, or its hidden colours taken."""
    from PIL import Image

    pixels = np.array(opaque)
    pixels[:, : pixels.shape[1] // 2, 3] = 0
    image = Image.fromarray(pixels)

    def over(ground: str) -> File:
        laid = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        return saved(laid.convert("RGB"))

    return Probe(
        what="RGBA half transparent",
        file=saved(image),
        readings=(
            ("the transparent half is white", over("white")), ("the transparent half is black", over("black")),
            ("the colours under what is transparent", saved(opaque.convert("RGB"))),
        ),
    )  # fmt: skip


def animation(frames: int, extension: str = "gif") -> File:
    """A moving picture of so many frames, a tenth of a second each."""
    from PIL import Image

    tones = [GREY, (GREY[1], GREY[0])]
    images = [Image.fromarray(bars((32, 32), tones[number % 2], "uint8")).convert("RGB") for number in range(frames)]
    buffer = io.BytesIO()
    formats = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "apng": "PNG"}
    images[0].save(buffer, format=formats[extension], save_all=True, append_images=images[1:], duration=100, loop=0)
    return File(data=buffer.getvalue(), extension=extension)


def moving_extensions(handle: ModalityHandle, frames: int) -> list[str]:
    """The extensions of moving pictures that the modality reads."""
    kinds = ("gif", "png", "apng", "webp")
    return [kind for kind in kinds if plainly_read(handle, animation(4 * frames, kind)) is not None]


def moving_probes(frames: int) -> Iterator[Probe]:
    """Moving pictures that are too long and too short, for a modality that reads those of `frames` frames."""
    plain, longer = animation(4 * frames), animation(8 * frames)
    yield Probe(what=f"{8 * frames} frames", file=longer, readings=((f"the first {frames}", plain),))
    yield Probe(what="2 frames", file=animation(2))
    yield Probe(what="one frame", file=animation(1, "png"))
