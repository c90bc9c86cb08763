"""Values of image-like modalities: reading, writing, cropping, showing, and the best constant."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import InvalidValueError, first_line, is_of_the_machine
from tokenizers_zoo.families.base import PluginBase
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.limits import limits
from tokenizers_zoo.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.validation import CountedReads, array_bytes, array_of, commonest_classes

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
CONSTANT_SAMPLES = 512
"""Number of values that a constant baseline is computed from, evenly spread over the given ones."""
QUANTILES = (0.5, 0.4, 0.3, 0.2, 0.6)
"""Quantiles tried per pixel as constant baseline; for relative errors the best one is below the median."""
SHARES_ON = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Shares of off pixels tried as constant baseline; with one half, rarely set pixels would all be off."""
STRIP = 1 << 20
"""Pixels that are converted at once."""
PSNR_CEILING = 100.0
"""PSNR of two equal values, dB, for which the formula is infinite."""
_PILLOW_LOCK = threading.RLock()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """Size of an image-like modality's values, and of its tokens' patches."""

    image_size: int | tuple[int, int] = 64
    """Pixels: one number for squares, or [height, width]."""
    patch_size: int = 8
    """Pixels per token along each side; divides the image size."""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"image_size: expected at least 1 pixel, got {self.image_size}")
        if math.prod(self.size) > (max_pixels := limits().image_pixels):
            raise ValueError(
                f"image_size: expected at most {max_pixels:,} pixels (image_pixels in [limits]), got {self.size}"
            )
        if self.patch_size < 1 or any(side % self.patch_size for side in self.size):
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide the image size {self.size[0]} x {self.size[1]}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def patch(self) -> tuple[int, ...]:
        """Pixels per token along each axis."""
        return (self.patch_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per column and per row."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size


class ValueHooks(PluginBase):
    """The hooks for files, pictures and metrics, as methods that get the plugin's settings dataclass."""

    def read(self, data: bytes, extension: str, options: Any) -> Any:
        """Read one value from a file's bytes, at the file's size. Raises ValueError or InvalidValueError."""
        raise NotImplementedError

    def write(self, value: Any, options: Any) -> tuple[bytes, str]:
        """Return a file's bytes, and its extension in lower case without a dot; `read` reads it back."""
        raise NotImplementedError

    def picture(self, value: Any, options: Any) -> PIL.Image.Image:
        """Return the value as a PIL image of any size, in a mode that PNG supports."""
        raise NotImplementedError

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> Mapping[str, float]:
        """Return `metrics` by name over aligned lists of values, each as one number for the whole list."""
        raise NotImplementedError

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> Any:
        """Read one value from a file's bytes, at the file's size. Raises InvalidValueError."""
        try:
            return self.read(data, extension, self.options(settings))
        except (ValueError, OSError, SyntaxError) as error:
            raise InvalidValueError(f"{settings.name}: .{extension} file: {error}") from None

    @hookimpl
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        return self.write(value, self.options(settings))

    @hookimpl
    def render(self, value: Any, settings: Settings) -> PIL.Image.Image:
        return self.picture(value, self.options(settings))

    @hookimpl
    def score(self, predicted: Sequence[Any], target: Sequence[Any], settings: Settings) -> Mapping[str, float]:
        return self.measure(list(predicted), list(target), self.options(settings))


class ImageValues(ValueHooks):
    """Everything about image-like values that has nothing to do with tokens, as hooks.

    A plugin sets the attributes, and overrides the methods without `@hookimpl` (read, write, picture, measure,
    resized).
    """

    settings_class: ClassVar[type[Any]] = ImageSettings
    kind: ClassVar[Literal["continuous", "classes", "binary"]] = "continuous"
    """continuous: float32 (c, h, w); classes: int64 ids (h, w); binary: float32 (1, h, w) of 0 and 1."""
    channels: ClassVar[int] = 3
    unit: ClassVar[str] = ""
    low: ClassVar[float | None] = None
    high: ClassVar[float | None] = None
    description: ClassVar[str] = ""
    written_as: ClassVar[Literal["npy", "png"]] = "npy"
    """Kind of files: arrays, or the result of `picture` where it loses nothing."""
    unscored: ClassVar[tuple[str, ...]] = ()
    """Classes that `measure` ignores, such as "void". The spec lists them if the settings contain them."""

    def class_names(self, options: Any) -> tuple[str, ...]:
        """Return the names of the class ids; empty if values are not class ids."""
        return ()

    def value_shape(self, options: Any) -> tuple[int, ...]:
        """Return the shape of one value at the configured size."""
        return options.size if self.kind == "classes" else (self.channels, *options.size)

    def value_spec(self, options: Any) -> ValueSpec:
        names = self.class_names(options)
        classes = self.kind == "classes"
        return ValueSpec(
            shape=self.value_shape(options),
            dtype="int64" if classes else "float32",
            unit="class id" if classes else self.unit,
            low=0 if classes else self.low,
            high=len(names) - 1 if classes else self.high,
            classes=names,
            description=self.description,
            unscored=tuple(name for name in names if name in self.unscored),
        )

    def read(self, data: bytes, extension: str, options: Any) -> Array:
        """Read one value of any size from a file's bytes; `kind` determines axes and dtype. Raises ValueError.

        An array (h, w) is read as the only channel of a one-channel map.
        """
        array = read_array(data, extension)
        return array[None] if array.ndim == 2 and self.channels == 1 and self.kind != "classes" else array

    def write(self, value: Array, options: Any) -> tuple[bytes, str]:
        if self.written_as == "png":
            return png_bytes(self.picture(value, options)), "png"
        return array_bytes(value), "npy"

    def measure_main(self, predicted: list[Array], target: list[Array], options: Any) -> float:
        """Return the first number of `metrics`; override it if the other metrics are slower."""
        return self.measure(predicted, target, options)[self.metrics[0].name]

    def resized(self, value: Array, crop: Crop, size: tuple[int, int]) -> Array:
        """Return the crop of `value` at `size`, clipped: bilinear with anti-aliasing, or nearest for class ids."""
        if self.kind == "classes":
            return crop_and_resize(value, crop, size, nearest=True)
        result = crop_and_resize(value, crop, size)
        return result if self.low is None and self.high is None else np.clip(result, self.low, self.high)

    @hookimpl
    def transform(self, value: Array, crop: Crop, settings: Settings) -> Array:
        size = self.options(settings).size
        return value if crop.is_whole and value.shape[-2:] == size else self.resized(value, crop, size)

    @hookimpl
    def constant_baseline(self, values: Sequence[Array], settings: Settings) -> Array:
        """Return the constant map with the best main metric on these values, from several candidates."""
        indices = np.unique(np.linspace(0, len(values) - 1, CONSTANT_SAMPLES).astype(int))
        stack = np.stack([np.asarray(values[index]) for index in indices])
        options, truth = self.options(settings), list(stack)
        candidates = self.constant_maps(stack, options)
        if len(candidates) == 1:
            return candidates[0]
        scores = [self.measure_main([candidate] * len(truth), truth, options) for candidate in candidates]
        return candidates[self.metrics[0].best(scores)]

    def constant_maps(self, stack: Array, options: Any) -> list[Array]:
        """Return candidates for the constant baseline of values `(count, ...)`, the usual one first.

        Continuous values: the median, other quantiles and the mean per pixel. Class ids: the most frequent scored
        class. Binary values: the pixels that are on in at least half of the values, then at lower thresholds.
        """
        if self.kind == "continuous":
            maps = [*np.quantile(stack, QUANTILES, axis=0), stack.mean(axis=0)]
            return [self.resized(values.astype(np.float32), Crop(), stack.shape[-2:]) for values in maps]
        if self.kind == "binary":
            share = stack.mean(axis=0)
            return [(share >= threshold).astype(stack.dtype) for threshold in (0.5, *np.quantile(share, SHARES_ON))]
        return [commonest_classes(stack, self.value_spec(options).unscored_ids)]


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
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
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
        raise ValueError(f"JPEG changes numbers at every border; save {contents} as .png")
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


PSNR = Metric(
    name="psnr", unit="dB", higher_is_better=True, meaning="peak signal-to-noise ratio, peak 1, mean over samples"
)
"""The metric that `psnr` computes."""


def psnr(predicted: Sequence[Array], target: Sequence[Array]) -> float:
    """Return the mean peak signal-to-noise ratio (dB) over aligned pairs of arrays in [0, 1].

    The PSNR of a pair is -10 log10 of its mean squared error, since the peak is 1 (Hore and Ziou, ICPR 2010, equation
    1), and at most PSNR_CEILING.
    """
    pairs = zip(predicted, target, strict=True)
    error = np.array([np.mean((guess - truth) ** 2, dtype=np.float64) for guess, truth in pairs])
    return float(np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), PSNR_CEILING).mean())


def angle_degrees(first: Array, second: Array) -> NDArray[np.float64]:
    """Return the angles between vectors along the first axis, degrees in [0, 180]; exact near 0, where arccos is not.

    Vectors of length 0 are at 0 degrees to each other and at 90 to all others. (W. Kahan, How futile are mindless
    assessments of roundoff, 2006, section 12)
    """
    doubles = (vectors.astype(np.float64) for vectors in (first, second))
    a, b = (vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-12) for vectors in doubles)
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=0), np.linalg.norm(a + b, axis=0)))


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
