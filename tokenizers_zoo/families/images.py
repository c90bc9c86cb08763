"""Image-like modalities: settings, the hooks of their values, and the best constant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.pictures import Array, crop_and_resize, png_bytes, read_array
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.contract.validation import array_bytes, commonest_classes
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.base import PluginBase
from tokenizers_zoo.records.config import Checked, Settings, Sides, height_width
from tokenizers_zoo.records.limits import limits
from tokenizers_zoo.records.typed import PositiveInt

if TYPE_CHECKING:
    import PIL.Image
CONSTANT_SAMPLES = 512
"""Number of values that a constant baseline is computed from, evenly spread over the given ones."""
QUANTILES = (0.5, 0.4, 0.3, 0.2, 0.6)
"""Quantiles tried per pixel as constant baseline; for relative errors the best one is below the median."""
SHARES_ON = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Shares of off pixels tried as constant baseline; with one half, rarely set pixels would all be off."""
PSNR_CEILING = 100.0
"""PSNR of two equal values, dB, for which the formula is infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings(Checked):
    """Size of an image-like modality's values, and of its tokens' patches."""

    image_size: Sides = 64
    """Pixels: one number for squares, or [height, width]."""
    patch_size: PositiveInt = 8
    """Pixels per token along each side; divides the image size."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if math.prod(self.size) > (max_pixels := limits().image_pixels):
            raise ValueError(
                f"image_size: expected at most {max_pixels:,} pixels (image_pixels in [limits]), got {self.size}"
            )
        if any(side % self.patch_size for side in self.size):
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide the image size {self.size[0]} x {self.size[1]}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return height_width(self.image_size)

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
