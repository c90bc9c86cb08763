"""The `terrain` source: landscapes with what covers them, seen from orbit in twelve bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.source import MadeSamples, SourceSpec
from zoo_worlds.samples import check_limits, made


@dataclass(frozen=True, kw_only=True, slots=True)
class TerrainSettings:
    """Settings of the `terrain` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: int = 64
    """Height and width in pixels, 8 to 1024; above 128 there is no more detail."""
    extent: float = 3840.0
    """Metres that a sample shows along each side, 500 to 50000. No value shows it: set the `pixel_metres` of height
    maps to extent / their `image_size`; as it is, 60, it goes with the 3840 m here on 64 pixels."""

    def __post_init__(self) -> None:
        check_limits(self, {"image_size": (8, 1024), "extent": (500, 50000)})


def make_sample(rng: np.random.Generator, settings: TerrainSettings) -> dict[str, Any]:
    """Both modalities of one sample; the landscape does not depend on the picture's size."""
    from tokenizers_zoo.families.images import crop_and_resize
    from tokenizers_zoo.spec import Crop
    from zoo_worlds.land import raise_relief, reflectance

    relief = raise_relief(rng, settings.extent)
    size = (settings.image_size, settings.image_size)
    fields = {"heightmap": relief.metres[None], "multispectral": reflectance(relief, settings.extent, rng)}
    return {name: crop_and_resize(field.astype(np.float32), Crop(), size) for name, field in fields.items()}


class TerrainSource:
    """The plugin object of the entry point `terrain`."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        return SourceSpec(
            name="terrain",
            summary="landscapes shaped by water, with fields, forests and snow: heights and twelve bands",
            modalities=("heightmap", "multispectral"),
            licence="Apache-2.0, made by this code",
            settings=TerrainSettings,
        )

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> MadeSamples:
        return made("terrain", make_sample, split, count, seed, settings.take(TerrainSettings))


source = TerrainSource()
