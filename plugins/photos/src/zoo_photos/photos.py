"""Real photographs that the scikit-image and scikit-learn wheels carry, as random square crops at many scales.

A photograph is for training or for testing, never for both: crops of one picture are not held out from each other.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.contract.source import Sample, SourceSpec
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.families.sources import MadeSource
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval, PositiveInt

PHOTOS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/flower.jpg",
    ),
    "test": (
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "sklearn/datasets/images/china.jpg",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotosSettings(Checked):
    """The size of the pictures, and the scales of the crops."""

    image_size: PositiveInt = 64
    """Height and width in pixels."""
    smallest: Annotated[float, Interval("(0, 1]")] = 0.25
    """Side of the smallest crop, as a fraction of the photograph's shorter side, in (0, 1]. Crops are never enlarged
    unless the photograph itself is smaller than `image_size`."""
    flips: bool = True
    """Mirror half of the crops left and right."""


def _sample(config: PhotosSettings, split: str, seed: int, number: int) -> Sample:
    """Return a crop of a photograph of the split, a pure function of the arguments. Raises ConfigError."""
    if split not in PHOTOS:
        raise ConfigError(f"photos: no split {split!r}; splits: {', '.join(sorted(PHOTOS))}")
    rng = np.random.default_rng([seed, sorted(PHOTOS).index(split), number])
    photo = PHOTOS[split][int(rng.integers(len(PHOTOS[split])))]
    return f"photo-{split}-{number:06}", {"rgb": _crop(_load(photo), config, rng)}


def _crop(picture: Any, config: PhotosSettings, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A square crop with a log-uniform side, at a uniform place, as float32 `(3, size, size)` in [0, 1]."""
    from PIL import Image

    shorter, size = min(picture.size), config.image_size
    smallest = min(max(config.smallest * shorter, size), shorter)
    side = min(float(np.exp(rng.uniform(np.log(smallest), np.log(shorter)))), shorter)  # exp(log(x)) may pass x
    left = float(rng.uniform(0, picture.width - side))
    top = float(rng.uniform(0, picture.height - side))
    box = (left, top, left + side, top + side)
    resized = picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    if config.flips and rng.random() < 0.5:
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)


@functools.cache
def _load(photo: str) -> Any:
    """A photograph as an RGB picture, from the file in the wheel: nothing is ever downloaded."""
    from PIL import Image

    package, _, name = photo.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else Path(photo)
    if not path.is_file():
        raise DataError(f"photos: {photo} is not in the installed {package}; install a release of it that carries it")
    with Image.open(path) as picture:
        return picture.convert("RGB")


source = MadeSource(
    SourceSpec(
        name="photos",
        summary="random crops of 9 real photographs from the scikit-image and scikit-learn wheels",
        modalities=("rgb",),
        licence="public domain, CC0, or no known copyright restrictions (scikit-image);"
        " CC BY 2.0, danielbuechele and vultilion (scikit-learn)",
        settings=PhotosSettings,
    ),
    _sample,
)
