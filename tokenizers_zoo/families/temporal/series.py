"""Time series: several channels over a number of time steps, as a row of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.spatial.values import read_array
from tokenizers_zoo.families.temporal.modality import TemporalModality
from tokenizers_zoo.families.temporal.settings import SeriesSettings
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Crop, ValueSpec

if TYPE_CHECKING:
    import PIL.Image

PICTURE = (256, 256)
"""Pixels of a series' picture: its width, and the height that its channels share."""
BAND = (8, 32)
"""Least and most pixels of the height of one channel."""
INK = (40, 70, 140)


class SeriesModality(TemporalModality):
    """float32 (channels, time). A plugin sets attributes, and `mirrored` where left and right mean something.

    It gives `measure`; `picture` draws a curve for each channel where it gives none.
    """

    settings_class: ClassVar[type[Any]] = SeriesSettings

    def value_spec(self, options: Any) -> ValueSpec:
        """What one value looks like at the length of the settings."""
        return ValueSpec(
            shape=(self.channels, options.length),
            unit=self.unit,
            low=self.low,
            high=self.high,
            description=self.description,
        )

    def read(self, data: bytes, extension: str, options: Any) -> NDArray[Any]:
        """One series of any length, (channels, time), from a file's bytes. Raises ValueError.

        An array (time,) is taken as the one channel of series that have one.
        """
        array = read_array(data, extension)
        return array[None] if array.ndim == 1 and self.channels == 1 else array

    def mirrored(self, value: NDArray[Any]) -> NDArray[Any]:
        """The same series of a scene whose left and right are exchanged."""
        return value

    def picture(self, value: NDArray[Any], options: Any) -> PIL.Image.Image:
        """Channels as curves over time, the first on top, each from its own least to its own greatest number."""
        from PIL import Image, ImageDraw

        width, band = PICTURE[0], int(np.clip(PICTURE[1] // len(value), *BAND))
        sheet = Image.new("RGB", (width, band * len(value)), "white")
        draw = ImageDraw.Draw(sheet)
        places = np.linspace(0, width - 1, value.shape[1])
        least, most = value.min(axis=1, keepdims=True), value.max(axis=1, keepdims=True)
        heights = np.where(most > least, (most - value) / np.where(most > least, most - least, 1), 0.5)
        for top, curve in zip(range(0, sheet.height, band), heights, strict=True):
            levels = top + 1 + curve * (band - 3)
            draw.line(list(zip(places.tolist(), levels.tolist(), strict=True)), fill=INK)
        return sheet

    @hookimpl
    def transform(self, value: NDArray[Any], crop: Crop, settings: Settings) -> NDArray[Any]:
        """The first `length` time steps, mirrored where the crop says so; a crop does not cut time.

        Raises InvalidValueError for another number of channels, and where the series is shorter.
        """
        options = self.options(settings)
        if value.shape[0] != self.channels or value.shape[1] < options.length:
            raise InvalidValueError(
                f"{settings.name}: expected {self.channels} channels of at least {options.length} time steps"
                f" ({settings.origin.at('length')}), got {value.shape[0]} of {value.shape[1]}"
            )
        value = value[:, : options.length]
        return np.ascontiguousarray(self.mirrored(value)) if crop.flip else value
