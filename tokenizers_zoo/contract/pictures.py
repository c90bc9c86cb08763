"""Reading, writing, cropping and converting pictures, within the limits for untrusted files."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import CountedReads, array_of
from tokenizers_zoo.errors import first_line, is_of_the_machine
from tokenizers_zoo.records.limits import limits

if TYPE_CHECKING:
    import PIL.Image


Array = NDArray[Any]
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff")
EXACT_EXTENSIONS = ("png", "tif", "tiff")
"""Lossless formats that also store more than 8 bits."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Accepted formats by Pillow's names, for any extension. PostScript is excluded: it starts another program."""
BITS_PER_SAMPLE, PHOTOMETRIC, TILE_WIDTH, TILE_LENGTH = 258, 262, 322, 323
"""TIFF tags; PHOTOMETRIC is 0 if 0 means white."""
SEGMENTS = (273, 279, 324, 325)
"""TIFF tags of the places and sizes of strips and tiles."""
MOST_TAGS, MOST_PAGES, MOST_SEGMENTS = 4096, 1000, 400_000
"""Limits of a TIFF file: tags per page that are looked at, pages, and places and sizes of strips and tiles."""
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""A marker of a JPEG file that encoded pixels do not contain (ITU T.81, B.1.1.3)."""
FILL = b"\xff" * 65_536
"""Fill bytes between the parts of a JPEG file, which take quadratic time; no part of a picture is as long."""
MOST_SCANS = 64
"""Scans of a progressive JPEG, each decoded over the whole picture, and colour profiles of a PNG. Encoders write about
10 scans and 1 profile."""
ORIENTATION = 0x0112
"""The EXIF orientation tag: 1 is upright, 2 to 8 are the other rotations and reflections."""
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Keys of Pillow's `info` in which the orientation tag may be stored."""
BITS, WHITE_IS_ZERO = "zoo bits", "zoo white is zero"
"""Keys in `info` of an opened image: bits per number in the file, and whether 0 means white."""
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
"""Pillow's modes that a PNG file stores."""
TIFF_MODES = ("F", "I")
"""Pillow's modes that only a TIFF file stores."""
WHOLE_NUMBERS = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes with one integer channel of more than 8 bits: 16 bits in either byte order, or 32."""
STRIP = 1 << 20
"""Pixels that are converted at once."""
_PILLOW_LOCK = threading.RLock()


def crop_and_resize(value: Array, crop: Crop, size: tuple[int, int], *, nearest: bool = False) -> Array:
    """Cut `(..., height, width)` by fractions, mirror, and resize to `size` (height, width).

    Bilinear with anti-aliasing in float32, or nearest for integers below 2^31; a crop's borders may fall inside pixels.
    """
    from PIL import Image

    height, width = value.shape[-2:]
    left, top = crop.left * width, crop.top * height
    box = (left, top, min(left + crop.width * width, width), min(top + crop.height * height, height))
    resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    dtype = np.int32 if nearest else np.float32
    planes = (np.ascontiguousarray(value[index], dtype) for index in np.ndindex(value.shape[:-2]))
    out = np.stack([np.asarray(Image.fromarray(plane).resize(size[::-1], resampling, box)) for plane in planes])
    out = out[..., ::-1] if crop.flip else out
    return np.ascontiguousarray(out.reshape(*value.shape[:-2], *size), dtype=value.dtype)


def read_array(data: bytes, extension: str) -> Array:
    """Return the array of an .npy file. Raises ValueError if it is damaged or empty."""
    if extension != "npy":
        raise ValueError("expected .npy")
    array = array_of(data)
    if not array.size:
        raise ValueError(f"the array {array.shape} is empty")
    return array


def open_image(data: bytes, extension: str, expected: Sequence[str] = IMAGE_EXTENSIONS) -> PIL.Image.Image:
    """Open an image file, rotated as its EXIF data say. Raises ValueError if it is no image or of another format.

    `expected` are the kinds that are advised then.
    """
    if extension not in IMAGE_EXTENSIONS:
        raise ValueError(f"expected .npy or a picture (.{', .'.join(expected)})")
    try:
        image = open_undecoded(data)
        with _silent_about_tags():  # of TIFF files, they are read with the pixels
            image.load()
        image.info.update(_stored_format(image, data))
        return upright(image.copy() if image.format == "WEBP" else image)  # without the decoder and its canvases
    except (EOFError, OSError, TypeError) as error:  # TypeError: of Pillow, for a fraction as an offset
        raise ValueError(f"cannot be read as a picture: {first_line(error)}") from None


def open_undecoded(data: bytes, formats: tuple[str, ...] = FORMATS) -> PIL.Image.Image:
    """Return a picture whose pixels are not decoded yet. Raises InvalidValueError above the limit `image_pixels`.

    Raises ValueError for other files; Pillow's other errors pass.
    """
    from PIL import Image, UnidentifiedImageError

    check_directories(data)
    check_scans(data)
    try:
        with bounded_pictures(), _silent_about_tags():
            image = Image.open(CountedReads(data), formats=formats)
    except UnidentifiedImageError:
        raise ValueError("this is not a picture, or one of a kind that cannot be read") from None
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    for size in (image.size, (tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0))):
        if all(isinstance(side, int) for side in size):
            limits().check("image_pixels", size[0] * size[1], f"{size[0]} x {size[1]} pixels")
    return image


def check_directories(data: bytes) -> None:
    """Raise ValueError for a TIFF file with so many pages, or parts of one, that listing them takes long.

    TIFF 6.0, section 2, and BigTIFF: directories are chained, and each has entries of tag, type, count and value.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    big = data[2:4] in (b"+\0", b"\0+")
    if not order or not (big or data[2:4] in (b"*\0", b"\0*")):
        return
    formats = ("Q", "Q", "HHQQ") if big else ("I", "H", "HHII")
    offset_type, count_type, entry_type = (struct.Struct(order + codes) for codes in formats)
    pages, segments = 0, 0
    with contextlib.suppress(struct.error):  # cut off: the reader reports it
        (offset,) = offset_type.unpack_from(data, 8 if big else 4)
        while offset:
            (entries,) = count_type.unpack_from(data, offset)
            offset += count_type.size
            for index in range(min(entries, MOST_TAGS)):
                tag, _, count, _ = entry_type.unpack_from(data, offset + index * entry_type.size)
                segments += count if tag in SEGMENTS else 0
            pages += 1
            if pages > MOST_PAGES or segments > MOST_SEGMENTS:
                raise ValueError(f"a TIFF of more than {MOST_PAGES:,} pages or {MOST_SEGMENTS:,} strips; save it again")
            (offset,) = offset_type.unpack_from(data, offset + entries * entry_type.size)


def check_scans(data: bytes) -> None:
    """Raise ValueError for a JPEG of so many scans, or a PNG of so many colour profiles, that decoding them takes long.

    The picture ends at its end marker: other bytes may follow, such as the video of a motion photo.
    """
    file, count = CountedReads(data), 0
    if data.startswith(b"\xff\xd8"):
        file.seek(2)
        while (marker := MARKER.search(data, file.tell())) and marker[1] != b"\xd9":
            count += marker[1] == b"\xda"
            file.seek(marker.end())
            length = int.from_bytes(file.read(2))
            file.seek(marker.end() + (length if marker[1] >= b"\xc0" else 0))
        if data.find(FILL, 0, marker.start() if marker else None) >= 0:
            raise ValueError("a JPEG of long gaps between its parts; save it again")
    elif data.startswith(b"\x89PNG"):
        file.seek(8)
        while (header := file.read(8)) and header[4:] != b"IEND":
            count += header[4:] == b"iCCP"
            file.seek(int.from_bytes(header[:4]) + 4, 1)
    if count > MOST_SCANS:
        raise ValueError(f"{count:,} scans or colour profiles, at most {MOST_SCANS}; save it again")


@contextlib.contextmanager
def bounded_pictures() -> Iterator[None]:
    """Let Pillow refuse pictures above the limit `image_pixels`, as it reads their headers. One thread at a time.

    Raises InvalidValueError. Pillow refuses pictures of more than twice `MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (limits().image_pixels + 1) // 2
        try:
            yield
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            limits().check("image_pixels", math.inf, f"{int(pixels[0]):,} pixels" if pixels else "too many pixels")
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _stored_format(image: PIL.Image.Image, data: bytes) -> dict[str, Any]:
    """Return BITS and WHITE_IS_ZERO of a file. They override texts that the file may have under these names."""
    if image.format == "PNG":
        return {BITS: data[24], WHITE_IS_ZERO: False}
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return {BITS: tags.get(BITS_PER_SAMPLE, (8,))[0], WHITE_IS_ZERO: tags.get(PHOTOMETRIC) == 0}


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a loaded image, rotated as its EXIF data say; unchanged if they cannot be read.

    `ImageOps.exif_transpose` rewrites all EXIF data, which fails if any tag has an unexpected type.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        with _silent_about_tags():
            turn = turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # Pillow's readers of tags raise errors of no common class
        if is_of_the_machine(error):
            raise
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in ORIENTATION_KEYS:
        turned.info.pop(key, None)
    return turned


@contextlib.contextmanager
def _silent_about_tags() -> Iterator[None]:
    """Suppress Pillow's warnings about odd image metadata; only the orientation tag is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def read_rgb(data: bytes, extension: str) -> Array:
    """Read any image as float32 (3, height, width) in [0, 1]; transparent parts become white. Raises ValueError."""
    value = opaque_picture(data, extension, "RGB", "white")
    return np.repeat(value, 3, axis=0) if len(value) == 1 else value


def read_grey(data: bytes, extension: str) -> Array:
    """Read any image as float32 (1, height, width) in [0, 1]; transparent parts become black. Raises ValueError."""
    return opaque_picture(data, extension, "L", "black")


def read_numbers(data: bytes, extension: str, contents: str, small: Sequence[str] = (), advice: str = "") -> Array:
    """Read the numbers (height, width) of an image of more than 8 bits, or of a mode in `small`.

    Greys of 2 and 4 bits, which Pillow spreads over 0 to 255, are the numbers that the file has. Raises ValueError for
    other files and for JPEG; it names the `contents` ("class ids") and ends with the `advice`.
    """
    if extension in ("jpg", "jpeg"):
        raise ValueError(f"JPEG changes numbers at every border{advice or f'; save {contents} as .png'}")
    image = open_image(data, extension, EXACT_EXTENSIONS)
    if image.mode not in (*small, *WHOLE_NUMBERS):
        modes = ", ".join((*small, *WHOLE_NUMBERS[:1], WHOLE_NUMBERS[-1]))
        raise ValueError(f"expected one channel of {contents} (mode {modes}), got mode {image.mode}{advice}")
    numbers: Array = np.asarray(image)
    return numbers // (255 // (2 ** image.info[BITS] - 1)) if image.mode == "L" else numbers


def opaque_picture(data: bytes, extension: str, mode: str, ground: str) -> Array:
    """Read an image as float32 (bands of `mode`, height, width) in [0, 1], over the background colour `ground`.

    16-bit images have one band. Raises ValueError.
    """
    image = open_image(data, extension)
    if image.mode == "I" and not 256 <= np.asarray(image).max() <= 65535:
        raise ValueError("a picture of 32-bit integers has no range; save it as 8 or 16 bits")
    if image.mode in WHOLE_NUMBERS:
        grey = np.array(image, dtype=np.float32)[None]
        grey /= 65535
        np.clip(grey, 0, 1, out=grey)
        return np.subtract(1, grey, out=grey) if image.info[WHITE_IS_ZERO] else grey  # Pillow turns those of 8 bits
    if image.mode == "F":
        raise ValueError("a picture of floats has no range; save it as 8 or 16 bits")
    return fractions(bands_of(image, mode, ground))


def bands_of(image: PIL.Image.Image, mode: str, ground: str | None = None) -> Array:
    """Return 8-bit bands as float32 (bands, height, width) of 0 ... 255, over a background colour `ground` if given.

    Works in strips: Pillow's copies of a whole picture would need more memory than the result.
    """
    from PIL import Image

    width, height = image.size
    rows = max(1, STRIP // width)
    bands = np.empty((Image.getmodebands(mode), height, width), np.float32)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        levels = np.asarray((over_background(strip, ground) if ground else strip).convert(mode))
        bands[:, top : top + rows] = levels if levels.ndim == 2 else levels.transpose(2, 0, 1)
    return bands


def fractions(levels: Array) -> Array:
    """Return 0 ... 255 as float32 in [0, 1]; floats are converted in place."""
    value = levels.astype(np.float32, copy=False)
    value /= 255
    return value


def over_background(image: PIL.Image.Image, ground: str) -> PIL.Image.Image:
    """Return an image without transparency; transparent parts get the background colour `ground`."""
    from PIL import Image

    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image


def to_bytes(value: Array) -> NDArray[np.uint8]:
    """Convert numbers in [0, 1] to the nearest of 0 ... 255."""
    return (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)


def image_of(pixels: Array) -> PIL.Image.Image:
    """Return an array (height, width), or (height, width, channels) of uint8, as an image of the mode that fits."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))


def rgb_image(value: Array) -> PIL.Image.Image:
    """Return (3, height, width) in [0, 1] as an 8-bit image."""
    return image_of(to_bytes(value).transpose(1, 2, 0))


def canvas(size: tuple[int, int], ground: str | tuple[int, int, int]) -> tuple[Any, Any]:
    """Return a new RGB image of (width, height) pixels, and Pillow's pen to draw on it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, ground)
    return image, ImageDraw.Draw(image)


def png_bytes(image: PIL.Image.Image) -> bytes:
    """Return an image as a PNG file."""
    return _file_bytes(image, "PNG")


def image_file(image: PIL.Image.Image) -> tuple[bytes, str]:
    """Return an image of any mode as a file and its extension, upright and without loss; CMYK and others as RGB."""
    image = upright(image)
    if image.mode in TIFF_MODES:
        return _file_bytes(image, "TIFF"), "tiff"
    return png_bytes(image if image.mode in PNG_MODES else image.convert("RGB")), "png"


def _file_bytes(image: PIL.Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()
