"""Colour palettes: the few colours that a picture is made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import image_of
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.families.text import TextModality, TextTokenizer
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import Interval
from tokenizers_zoo.tokenizers.text_vocab import (
    Coordinate,
    Piece,
    VocabularyConfig,
    coordinate_fraction,
    coordinate_level,
)

if TYPE_CHECKING:
    import PIL.Image
    import torch

Colours = npt.NDArray[Any]
PIXELS = 1024  # about as many pixels of a picture are clustered
ROUNDS = 10  # of k-means; the colours hardly move after that
BYTES = 256  # levels of the layout 4m
GREY = (0.5, 0.5, 0.5)  # what a sequence without a colour decodes to
SWATCH = 48  # pixels, height and width


@dataclass(frozen=True, kw_only=True, slots=True)
class PaletteSettings(Checked):
    """Settings of `palette`. Raises ValueError, naming the field, for a value out of range."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {"colours": 7, "layout": "4m"}}

    preset: Literal["4m"] | None = None
    """4m: seven colours in the layout of the 4M papers."""
    colours: Annotated[int, Interval("[1, 16]")] = 5
    """Colours of a palette, 1 to 16."""
    layout: Literal["axes", "4m"] = "axes"
    """axes: red, green and blue on axes v0, v1 and v2. 4m: the number of colours on v1, then every red, green and blue
    on v0, its level the number from 0 to 255. There repetitions of the last colour are dropped. One token more than the
    colours take is left for the end of the sequence."""


class Palette(TextModality[PaletteSettings]):
    """The main colours, most frequent first, each as `v0=red v1=green v2=blue` (or as `layout` says).

    A palette describes the whole picture. Crops and flips do not change it.
    """

    summary = "The main colours of the picture, most frequent first"
    aliases = ("color_palette",)
    settings_class = PaletteSettings
    derived_from = ("rgb",)
    axes = 3
    metrics = (
        Metric(
            name="delta_e",
            unit="CIELAB units",
            higher_is_better=False,
            meaning="mean colour difference (CIE 1976) of the colours, paired with the target's so that it is least",
            bound=1.5,
        ),
    )

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all text modalities. Raises ConfigError where the vocabulary lacks levels of the layout 4m."""
        bins = settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins
        if settings.take(PaletteSettings).layout == "4m" and bins < BYTES:
            raise ConfigError(
                f'{settings.name}: with layout = "4m" [vocabularies.{self.vocabulary_name}] coordinate_bins has to be'
                f' {BYTES} or more, and is {bins}; raise it, or set layout to "axes"'
            )
        return super().modality_spec(settings)

    def value_spec(self, options: PaletteSettings) -> ValueSpec:
        return ValueSpec(shape=(options.colours, 3), unit="sRGB", low=0.0, high=1.0)

    def max_length(self, options: PaletteSettings) -> int:
        return 3 * options.colours + 2 * (options.layout == "4m")

    def encode_value(self, value: Any, tokenizer: TextTokenizer[PaletteSettings]) -> list[int]:
        axes, bins = axes_of(tokenizer)
        colours = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        rows = [[coordinate_level(float(number), bins) for number in colour] for colour in colours]
        start = []
        if tokenizer.settings.layout == "4m":
            while len(rows) > 1 and rows[-1] == rows[-2]:
                rows.pop()
            start = [Coordinate(1, len(rows))]
        levels = (Coordinate(axis, level) for row in rows for axis, level in zip(axes, row, strict=True))
        return tokenizer.vocabulary.encode([*start, *levels])

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[PaletteSettings]) -> Colours:
        """Read every three coordinates as a colour. The last colour is repeated if some are missing."""
        axes, bins = axes_of(tokenizer)
        count, colours, levels = tokenizer.settings.colours, list[list[float]](), list[int]()
        for piece in pieces:
            if isinstance(piece, Coordinate) and piece.axis == axes[len(levels)]:
                levels.append(piece.level)
            else:
                levels = [piece.level] if isinstance(piece, Coordinate) and piece.axis == 0 else []
            if len(levels) == 3:
                colours.append([coordinate_fraction(level, bins) for level in levels])
                levels = []
        padded = [*colours, *[colours[-1] if colours else list(GREY)] * count]
        return np.array(padded[:count], dtype=np.float32)

    @hookimpl
    def decode(self, tokenizer: TextTokenizer[PaletteSettings], tokens: Sequence[Any]) -> torch.Tensor:
        """Palettes, float32 `(batch, colours, 3)`, of any ids."""
        import torch

        return torch.from_numpy(np.stack(super().decode(tokenizer, tokens)))

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> Colours:
        """The picture's colours by k-means."""
        return main_colours(sample[self.derived_from[0]], settings.take(PaletteSettings).colours)

    @hookimpl
    def render(self, value: Colours) -> PIL.Image.Image:
        """The colours side by side."""
        row = np.repeat(np.round(np.clip(value, 0, 1) * 255).astype(np.uint8)[None], SWATCH, axis=0)
        return image_of(np.repeat(row, SWATCH, axis=1))

    @hookimpl
    def score(self, predicted: Sequence[Colours], target: Sequence[Colours]) -> dict[str, float]:
        """Over all palettes."""
        distances = [pairing(lab(guess), lab(truth))[1] for guess, truth in zip(predicted, target, strict=True)]
        return {"delta_e": float(np.mean(distances))}

    @hookimpl
    def constant_baseline(self, values: Sequence[Colours]) -> Colours:
        """The palette of medians of paired colours, or one of `values`: whichever has the least `delta_e`.

        At most 512 evenly spaced values are compared.
        """
        from skimage.color import lab2rgb

        subset = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(len(values), 512)).astype(int))]
        labs = [lab(value) for value in subset]
        candidates = [np.asarray(value, dtype=np.float32) for value in subset[:: max(1, len(subset) // 32)]]
        centre = np.median(labs, axis=0)
        for _ in range(5):
            paired_labs = [colours[pairing(colours, centre)[0]] for colours in labs]
            centre = np.median(paired_labs, axis=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a median may lie outside of sRGB, and is clipped into it
                candidates.append(np.clip(lab2rgb(centre), 0, 1).astype(np.float32))
        means = [np.mean([pairing(colours, target)[1] for target in labs]) for colours in map(lab, candidates)]
        return candidates[int(np.argmin(means))]


def axes_of(tokenizer: TextTokenizer[PaletteSettings]) -> tuple[tuple[int, int, int], int]:
    """The axes of red, green and blue, and the number of levels."""
    return ((0, 0, 0), BYTES) if tokenizer.settings.layout == "4m" else ((0, 1, 2), tokenizer.bins)


def main_colours(picture: Colours, count: int) -> Colours:
    """The `count` main colours of a picture `(3, height, width)` in [0, 1], most frequent first, float32 `(count, 3)`.

    k-means with k-means++ seeding (Arthur and Vassilvitskii 2007) on an even grid of pixels. If the picture has fewer
    colours, the last is repeated.
    """
    step = max(1, math.isqrt(picture.shape[1] * picture.shape[2] // PIXELS))
    pixels = np.asarray(picture, dtype=np.float64)[:, ::step, ::step].reshape(3, -1).T
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    if len(colours) > count:
        from scipy.cluster.vq import kmeans2  # without a thread pool, which would make the result depend on its size

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty cluster: its colour comes last
            colours, owners = kmeans2(pixels, count, iter=ROUNDS, minit="++", rng=0)
        counts = np.bincount(owners, minlength=count)
    order = sorted(range(len(colours)), key=lambda i: (-counts[i], *colours[i]))
    order += [order[-1]] * (count - len(order))
    return np.clip(colours[order], 0, 1).astype(np.float32)


def lab(colours: Colours) -> Colours:
    """sRGB in [0, 1] to CIELAB (D65)."""
    from skimage.color import rgb2lab

    return rgb2lab(np.asarray(colours, dtype=np.float64))


def pairing(first: Colours, second: Colours) -> tuple[npt.NDArray[np.intp], float]:
    """For each colour of `second` its partner in `first`, and the mean distance, which no other pairing makes less."""
    from scipy.optimize import linear_sum_assignment

    distances = np.linalg.norm(second[:, None] - first[None], axis=2)
    rows, columns = linear_sum_assignment(distances)
    return columns, float(distances[rows, columns].mean())


plugin = Palette()
