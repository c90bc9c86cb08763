"""Settings of lists of objects and of their tokenizers, readable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tokenizers_zoo.blocks.config import BlockConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig, QuantizerKind
from tokenizers_zoo.training_config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorBlockConfig:
    """The size of an MLP encoder or decoder."""

    width: int
    depth: int
    """Residual blocks."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: expected at least 1 (or 0 for the default), got {self.width}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1 (or 0 for the default), got {self.depth}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTokenizerConfig(TrainConfig):
    """The `tokenizer` table of registry.toml: quantizer, encoder, decoder and training, in one flat table.

    `batch_size` counts values; all objects in them are trained on together. A plugin derives from it to give other
    defaults.
    """

    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Per kind of quantizer, what its fields are where the table says nothing of them."""

    quantizer: QuantizerKind = "fsq"
    """How latents become codes; see `QuantizerConfig.kind`."""
    levels: tuple[int, ...] | None = None
    """fsq kinds: values per dimension; their product is the codebook size."""
    codebook_size: int = 0
    """Codes of each codebook; 0 takes the default of the quantizer."""
    num_codebooks: int | None = None
    """Kinds with several codes per latent: how many."""
    groups: int | None = None
    """grouped_residual_vq: parts of a latent that have residual codes of their own."""
    codebook_dim: int | None = None
    """Kinds with a codebook: numbers per code."""
    distance: Literal["cosine", "euclidean"] | None = None
    """vq, product_vq: what "nearest" means."""
    decay: float | None = None
    """vq kinds: share of the old codebook that a training step keeps."""
    kmeans_iterations: int | None = None
    """vq kinds: k-means iterations on the first batch."""
    revive_below: float | None = None
    """vq kinds: share of the mean code's uses below which a code is replaced."""
    commitment_weight: float | None = None
    """All but fsq kinds and memcodes: weight of the distance between latents and codes in the loss."""
    entropy_weight: float | None = None
    """lfq, bsq, memcodes: weight of the entropy term in the loss."""
    latent_dim: int = 32
    """Numbers per latent between encoder, quantizer and decoder."""
    blocks: Literal["mlp", "conv", "vit"] = "mlp"
    """Kind of encoder and decoder: mlp for vectors, conv and vit for pictures."""
    width: int = 0
    """Channels of encoder and decoder; 0 takes the default of the kind (256 for mlp)."""
    depth: int = 0
    """Residual blocks; 0 takes the default of the kind (2 for mlp)."""
    heads: int | None = None
    """vit: attention heads."""
    patch_size: int = 16
    """conv and vit: pixels per code along each side of an object's picture."""
    flip: bool = True
    """Mirror half of the training values left to right."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name in ("latent_dim", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.blocks == "mlp" and self.heads is not None:
            raise ValueError("heads: used by vit only, and blocks is mlp; leave it out")
        self.quantizer_config()
        self.block_config()

    def quantizer_config(self) -> QuantizerConfig:
        """The quantizer's part of the table, resolved."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(QuantizerConfig) if f.name != "kind"}
        sized = bool(self.codebook_size or self.levels)
        for name, default in self.kind_defaults.get(self.quantizer, {}).items():
            if not given[name] and not (sized and name == "codebook_size"):
                given[name] = default
        return QuantizerConfig(kind=self.quantizer, **given)

    def block_config(self) -> VectorBlockConfig | BlockConfig:
        """The encoder's and decoder's part of the table, resolved."""
        if self.blocks == "mlp":
            return VectorBlockConfig(width=self.width or 256, depth=self.depth or 2)
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
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectModelConfig:
    """What an object tokenizer's weights are of; saved beside them, and checked when they are loaded."""

    item_shape: tuple[int, ...]
    """What is tokenized of one object: (numbers,), or (channels, height, width)."""
    fitted: dict[str, tuple[int, ...]]
    """Shapes of what else was computed from the training values, by name."""
    latent_dim: int
    quantizer: QuantizerConfig
    blocks: VectorBlockConfig | BlockConfig
    patch_size: int
    """Pixels per code; 1 for vectors."""

    @property
    def positions(self) -> int:
        """Latents of one object."""
        rows = [side // self.patch_size for side in self.item_shape[1:]]
        return rows[0] * rows[1] if rows else 1
