"""Settings of lists of objects and of their tokenizers, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tokenizers_zoo.config import ADDED, check_counts
from tokenizers_zoo.families.quantized import QuantizedTrainConfig
from tokenizers_zoo.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTokenizerConfig(QuantizedTrainConfig):
    """The `tokenizer` table of registry.toml: quantizer, encoder, decoder and training, in one flat table.

    `batch_size` counts values; all objects in them are trained on together. A plugin derives from it to give other
    defaults.
    """

    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Per kind of quantizer, what its fields are where the table says nothing of them."""

    blocks: Literal["mlp", "conv", "vit"] = "mlp"
    """Kind of encoder and decoder: mlp for vectors, conv and vit for pictures."""
    width: int = 0
    """Channels of encoder and decoder; 0 takes the default of the kind (256 for mlp)."""
    depth: int = 0
    """Residual blocks; 0 takes the default of the kind (2 for mlp)."""
    expansion: int = field(default=2, metadata=ADDED)
    """mlp: hidden width of a block as a multiple of `width`."""
    heads: int | None = None
    """vit: attention heads."""
    patch_size: int = 16
    """conv and vit: pixels per code along each side of an object's picture."""
    flip: bool = True
    """Mirror half of the training values left to right."""

    def __post_init__(self) -> None:
        QuantizedTrainConfig.__post_init__(self)
        check_counts(self, "patch_size")
        if self.blocks == "mlp" and self.heads is not None:
            raise ValueError("heads: used by vit only, and blocks is mlp; leave it out")
        if self.blocks != "mlp" and self.expansion != 2:
            raise ValueError(f"expansion: used by mlp only, and blocks is {self.blocks}; leave it out")
        self.block_config()

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """Those of the kind; the table's levels say how many codes there are."""
        defaults = dict(self.kind_defaults.get(self.quantizer, {}))
        if self.levels:
            defaults.pop("codebook_size", None)
        return defaults

    def block_config(self) -> MlpConfig | BlockConfig:
        """The encoder's and decoder's part of the table, resolved."""
        if self.blocks == "mlp":
            return MlpConfig(width=self.width or 256, depth=self.depth or 2, expansion=self.expansion)
        return BlockConfig(kind=self.blocks, width=self.width, depth=self.depth, heads=self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSettings:
    """Settings that all lists of objects have. Raises ValueError, naming the field, for a value out of range."""

    sentinels: int = 64
    """Ids that mark masked spans; the most spans that one sequence can be given."""
    bins: int = 256
    """Levels of each coordinate."""
    tokenizer: ObjectTokenizerConfig = ObjectTokenizerConfig()

    def __post_init__(self) -> None:
        for name, least in (("sentinels", 1), ("bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpelledSettings(ObjectSettings):
    """Settings of lists of objects that can be spelled as text, too."""

    layout: Literal["codes", "4m"] = "codes"
    """codes: an id for each code and each level, in a vocabulary of its own. 4m: words and coordinates of the shared
    vocabulary `text`, as 4M-21 has them (its `[vocabularies.text]` has to be as large); `bins` is 1000 and
    `sentinels` are those of the vocabulary then."""
    max_length: int = 256
    """Most tokens of one value with the layout 4m; the least important objects that do not fit are left out."""

    def __post_init__(self) -> None:
        ObjectSettings.__post_init__(self)
        check_counts(self, "max_length")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectModelConfig:
    """What an object tokenizer's weights are of; saved beside them, and checked when they are loaded."""

    item_shape: tuple[int, ...]
    """What is tokenized of one object: (numbers,), or (channels, height, width)."""
    fitted: dict[str, tuple[int, ...]]
    """Shapes of what else was computed from the training values, by name."""
    latent_dim: int
    quantizer: QuantizerConfig
    blocks: MlpConfig | BlockConfig
    patch_size: int
    """Pixels per code; 1 for vectors."""
    decoder: MlpConfig | BlockConfig | None = field(default=None, metadata=ADDED)
    """The decoder's blocks, where they are not those of the encoder."""

    @property
    def positions(self) -> int:
        """Latents of one object."""
        rows = [side // self.patch_size for side in self.item_shape[1:]]
        return rows[0] * rows[1] if rows else 1
