"""Clips: a fixed number of pictures one after the other, as a grid of tokens over time, rows and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.temporal.modality import TemporalModality
from tokenizers_zoo.families.temporal.settings import ClipSettings
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Crop, ValueSpec

if TYPE_CHECKING:
    import torch


class ClipModality(TemporalModality):
    """float32 (time, channels, height, width)."""

    settings_class: ClassVar[type[Any]] = ClipSettings

    def value_spec(self, options: Any) -> ValueSpec:
        """What one value looks like at the frames and size of the settings."""
        return ValueSpec(
            shape=(options.frames, self.channels, *options.size),
            unit=self.unit,
            low=self.low,
            high=self.high,
            description=self.description,
        )

    def to_model(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """(batch, time, channels, height, width) -> (batch, channels, time, height, width)."""
        return values.transpose(1, 2)

    def from_model(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """(batch, channels, time, height, width) -> (batch, time, channels, height, width), within the bounds."""
        return super().from_model(outputs.transpose(1, 2), options)

    @hookimpl
    def transform(self, value: NDArray[Any], crop: Crop, settings: Settings) -> NDArray[Any]:
        """The shared crop, flip and resize, the same for all frames."""
        size = self.options(settings).size
        return value if crop.is_whole and value.shape[-2:] == size else self.resized(value, crop, size)
