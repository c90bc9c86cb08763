"""Modalities over time: series (channels, time) and clips of pictures, as grids of tokens with one to three axes."""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.pictures import canvas, read_array
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import text_of
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.base import TrainedModality, token_grid
from tokenizers_zoo.families.images import ImageSettings, ImageValues
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.autoencoder.config import LossName, TokenizerConfig

if TYPE_CHECKING:
    import PIL.Image
    import torch

LOSSES = ("l1", "l2", "smooth_l1")
"""The losses for continuous values on any number of axes."""
PICTURE = (256, 256)
"""Width of a series' picture, and the height that its channels share, pixels."""
BAND = (8, 32)
"""Smallest and largest height of one channel, pixels."""
INK = (40, 70, 140)


def read_csv(data: bytes, columns: Sequence[str] = ()) -> NDArray[np.float64]:
    """Return the numbers of a .csv file as (columns, rows): values separated by commas, one row per time step.

    If the first line is a header that names all `columns`, they are returned in this order, and other columns, which
    may hold any text, are not read. Quotes and capitals of names do not matter. Without a header, or with other names,
    all columns are returned in the order of the file. Raises ValueError for an empty file, a row that is no row of as
    many numbers, and a header that has only some of the names, not at their places.
    """
    rows = _rows(text_of(data))
    number, head = next(rows, (0, []))
    first = [word.strip(" \t'").lower() for word in head]
    names = [] if all(map(_is_number, first)) else first
    column_names = [name.lower() for name in columns]
    column_indices = list(range(len(first)))
    if column_names and all(names.count(name) == 1 for name in column_names):
        column_indices = [names.index(name) for name in column_names]
    elif common := set(names) & set(column_names):
        same_order = len(names) == len(column_names) and all(names.index(n) == column_names.index(n) for n in common)
        if not same_order:
            header, expected = ", ".join(head), ", ".join(columns)
            raise ValueError(f"line {number}: expected the names {expected}, in any order, got {header:.90}")
    numbers = array("d")
    for line, row in rows if names or not head else itertools.chain([(number, head)], rows):
        try:
            if len(row) != len(first):
                raise ValueError
            numbers.extend([float(row[index]) for index in column_indices])
        except ValueError:
            raise ValueError(f"line {line}: expected {len(first)} numbers separated by commas") from None
    if not numbers:
        raise ValueError("it has no row of numbers")
    return np.ascontiguousarray(np.frombuffer(numbers).reshape(-1, len(column_indices)).T)


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row that is not empty. Raises ValueError."""
    try:
        yield from ((number, row) for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1) if row)
    except csv.Error as error:
        raise ValueError(f"cannot be read as .csv: {error}") from None


def _is_number(word: str) -> bool:
    """Return whether a word is a number, as Python reads it."""
    try:
        float(word)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalTokenizer(TokenizerConfig):
    """The `tokenizer` table of a modality over time: as for pictures, without losses that need pictures."""

    batch_size: int = 32
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if self.diffusion is not None:
            raise ValueError("diffusion: works with pictures only; remove it")
        if self.loss is not None and self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {self.loss!r}")
        for key in self.loss_settings():
            if key.removesuffix("_weight") not in LOSSES:
                raise ValueError(f"{key}: works with pictures and classes only; weights here: {', '.join(LOSSES)}")


def check_patch(size: int, side: int, name: str) -> None:
    """Raise ValueError, starting with the setting's name, if a patch does not divide its axis."""
    if size % side:
        raise ValueError(f"{name}: {side} does not divide {size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesSettings(Checked):
    """Length of a series' values, and of its tokens' patches."""

    length: PositiveInt = 128
    """Time steps of a value."""
    patch_length: PositiveInt = 8
    """Time steps per token; divides the length."""
    tokenizer: TemporalTokenizer = TemporalTokenizer()

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_patch(self.length, self.patch_length, "patch_length")
        token_grid(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Time steps."""
        return (self.length,)

    @property
    def patch(self) -> tuple[int, ...]:
        """Time steps per token."""
        return (self.patch_length,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings(ImageSettings):
    """Frames and size of a clip's values, and of its tokens' patches."""

    frames: Annotated[int, Interval("[2, inf)")] = 8
    """Frames of a value, at least 2."""
    patch_frames: PositiveInt = 2
    """Frames per token; divides the frames."""
    tokenizer: TemporalTokenizer = TemporalTokenizer(batch_size=8)  # a clip is as large as several pictures

    def __post_init__(self) -> None:
        ImageSettings.__post_init__(self)
        check_patch(self.frames, self.patch_frames, "patch_frames")
        token_grid(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Frames, height, width."""
        return (self.frames, *self.size)

    @property
    def patch(self) -> tuple[int, ...]:
        """Frames, rows and columns per token."""
        return (self.patch_frames, self.patch_size, self.patch_size)


class TemporalModality(ImageValues, TrainedModality):
    """Continuous values over time, as a grid of tokens with one to three axes.

    Plugins derive from `SeriesModality` or `ClipModality`; another base gives `value_shape`, `transform` and
    `to_network`. Files, pictures, metrics and the constant baseline are hooked as in `ImageValues`.
    """

    family = "temporal"
    loss: ClassVar[LossName] = "l1"


class SeriesModality(TemporalModality):
    """float32 (channels, time). A plugin gives `measure`, and `mirrored` where left and right mean something."""

    settings_class: ClassVar[type[Any]] = SeriesSettings
    columns: ClassVar[tuple[str, ...]] = ()
    """Names of the channels in the header of .csv files; see `read_csv`."""

    def value_shape(self, options: Any) -> tuple[int, ...]:
        return self.channels, options.length

    def read(self, data: bytes, extension: str, options: Any) -> NDArray[Any]:
        """Read one series (channels, time) of any length. Raises ValueError.

        An .npy file has this shape, or is (time,) for one channel. A .csv file has a row per time step, see `read_csv`.
        """
        if extension == "csv":
            return read_csv(data, self.columns)
        if extension != "npy":
            raise ValueError("expected .npy or .csv")
        array = read_array(data, extension)
        return array[None] if array.ndim == 1 and self.channels == 1 else array

    def mirrored(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the series of the mirrored scene."""
        return value

    def picture(self, value: NDArray[Any], options: Any) -> PIL.Image.Image:
        """Draw channels as curves over time, the first on top, each from its smallest to its largest number."""
        width, band = PICTURE[0], int(np.clip(PICTURE[1] // len(value), *BAND))
        sheet, draw = canvas((width, band * len(value)), "white")
        xs = np.linspace(0, width - 1, value.shape[1])
        lowest, highest = value.min(axis=1, keepdims=True), value.max(axis=1, keepdims=True)
        heights = np.where(highest > lowest, (highest - value) / np.where(highest > lowest, highest - lowest, 1), 0.5)
        for top, curve in zip(range(0, sheet.height, band), heights, strict=True):
            levels = top + 1 + curve * (band - 3)
            draw.line(list(zip(xs.tolist(), levels.tolist(), strict=True)), fill=INK)
        return sheet

    @hookimpl
    def transform(self, value: NDArray[Any], crop: Crop, settings: Settings) -> NDArray[Any]:
        """Return the first `length` time steps, mirrored with the crop; crops do not cut time.

        Raises InvalidValueError for other channels, and for a series that is too short.
        """
        options = self.options(settings)
        if value.shape[0] != self.channels or value.shape[1] < options.length:
            raise InvalidValueError(
                f"{settings.name}: expected {self.channels} channels of at least {options.length} time steps"
                f" ({settings.origin.at('length')}), got {value.shape[0]} of {value.shape[1]}"
            )
        value = value[:, : options.length]
        return np.ascontiguousarray(self.mirrored(value)) if crop.flip else value


class ClipModality(TemporalModality):
    """float32 (time, channels, height, width)."""

    settings_class: ClassVar[type[Any]] = ClipSettings

    def value_shape(self, options: Any) -> tuple[int, ...]:
        return options.frames, self.channels, *options.size

    def to_network(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """(batch, time, channels, height, width) -> (batch, channels, time, height, width)."""
        return values.transpose(1, 2)

    def from_network(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """(batch, channels, time, height, width) -> (batch, time, channels, height, width), within the bounds."""
        return super().from_network(outputs.transpose(1, 2), options)
