"""Settings of modalities that run over time, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers_zoo.families.spatial import ImageSettings, TokenizerConfig
from tokenizers_zoo.nn.config import BlockConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig

LOSSES = ("l1", "l2", "smooth_l1")
"""The losses that fit continuous values on any number of axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalTokenizer(TokenizerConfig):
    """The `tokenizer` table of a modality that runs over time: that of image-like ones, less what needs pictures."""

    batch_size: int = 32
    """Samples in one forward pass."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if self.diffusion is not None:
            raise ValueError("diffusion: draws pictures only; leave it out")
        if self.loss is not None and self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {self.loss!r}")
        for key in self.extra_losses():
            if key.removesuffix("_weight") not in LOSSES:
                raise ValueError(f"{key}: fits pictures and classes only; weights here: {', '.join(LOSSES)}")


def check_patch(sizes: tuple[int, ...], patch: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Raise ValueError, beginning with the setting's name, where a patch's side does not divide its axis."""
    for size, side, name in zip(sizes, patch, names, strict=True):
        if size < 1 or side < 1 or size % side:
            raise ValueError(f"{name}: {side} does not divide {size}")


def token_grid(options: Any) -> tuple[int, ...]:
    """The shape of the tokens of one sample: patches along each axis, then the codes of a patch where it has several.

    Raises ValueError where that makes more than three axes.
    """
    places = tuple(size // side for size, side in zip(options.sizes, options.patch, strict=True))
    quantizer: QuantizerConfig = options.tokenizer.quantizer_config()
    shape = quantizer.token_shape(places)
    if len(shape) > 3:
        raise ValueError(
            f"tokenizer.quantizer: {quantizer.kind} gives {quantizer.codes_per_position} codes per place, a fourth axis"
            " of tokens, and a grid has three; take a quantizer of one code, such as fsq"
        )
    return shape


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesSettings:
    """Length of a series' values, and of its tokens' patches."""

    length: int = 128
    """Time steps of a value."""
    patch_length: int = 8
    """Time steps per token; divides the length."""
    tokenizer: TemporalTokenizer = TemporalTokenizer()

    def __post_init__(self) -> None:
        check_patch(self.sizes, self.patch, ("patch_length",))
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
class ClipTokenizer(TemporalTokenizer):
    """The `tokenizer` table of clips: small batches, as a clip has as many numbers as several pictures."""

    batch_size: int = 8
    """Samples in one forward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings(ImageSettings):
    """Frames and size of a clip's values, and of its tokens' patches."""

    frames: int = 8
    """Frames of a value, at least 2: one frame has no motion, and is a picture."""
    patch_frames: int = 2
    """Frames per token; divides the frames."""
    tokenizer: ClipTokenizer = ClipTokenizer()

    def __post_init__(self) -> None:
        ImageSettings.__post_init__(self)
        if self.frames < 2:
            raise ValueError(f"frames: expected at least 2, got {self.frames}; one frame is a picture")
        check_patch((self.frames,), (self.patch_frames,), ("patch_frames",))
        token_grid(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Frames, height, width."""
        return (self.frames, *self.size)

    @property
    def patch(self) -> tuple[int, ...]:
        """Frames, rows and columns per token."""
        return (self.patch_frames, self.patch_size, self.patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalModelConfig:
    """What a temporal tokenizer's weights are of; saved beside them, and checked when they are loaded."""

    channels: int
    """Channels of what the tokenizer works on."""
    patch: tuple[int, ...]
    """Cells per token along each axis."""
    latent_dim: int
    quantizer: QuantizerConfig
    blocks: BlockConfig
