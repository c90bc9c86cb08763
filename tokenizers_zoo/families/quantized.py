"""The part of a `tokenizer` table that all families with a quantizer share, readable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_zoo.config import check_counts
from tokenizers_zoo.quantizers.config import QuantizerConfig, QuantizerKind, unused_fields
from tokenizers_zoo.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedTrainConfig(TrainConfig):
    """Training and quantizer in one flat table. A family derives from it to add encoder and decoder."""

    quantizer: QuantizerKind = "fsq"
    """How latents become tokens; see `QuantizerConfig.kind`."""
    levels: tuple[int, ...] | None = None
    """fsq kinds: values per dimension; their product is the codebook size."""
    codebook_size: int = 0
    """Codes of each codebook; 0 takes the default of the family or of the quantizer."""
    num_codebooks: int | None = None
    """Kinds with several codes per latent: how many."""
    groups: int | None = None
    """grouped_residual_vq: parts of a latent that have residual codes of their own."""
    codebook_dim: int | None = None
    """Kinds with a codebook: numbers per code."""
    distance: Literal["cosine", "euclidean"] | None = None
    """vq, product_vq: what "nearest" means."""
    decay: float | None = None
    """vq kinds: share of the old codebook that a training batch keeps; with `grad_accum_steps` a step has several."""
    kmeans_iterations: int | None = None
    """vq kinds: k-means iterations on the first batch."""
    revive_below: float | None = None
    """vq kinds: share of the mean use below which a code is replaced."""
    commitment_weight: float | None = None
    """All but fsq kinds and memcodes: weight of the distance between latents and codes in the loss."""
    entropy_weight: float | None = None
    """lfq, bsq, memcodes: weight of the entropy term in the loss."""
    spread_weight: float | None = None
    """fsq kinds: weight in the loss of how far codes are from equal use."""
    latent_dim: int = 32
    """Numbers per latent between encoder, quantizer and decoder."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        check_counts(self, "latent_dim")
        self.quantizer_config()

    @classmethod
    def emptied_by(cls, table: Mapping[str, Any]) -> Iterable[str]:
        """Fields that were for another kind than the one that a table names, whoever set them: a class or a preset."""
        return unused_fields(str(table["quantizer"])) if "quantizer" in table else ()

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """Fields of the quantizer that the family fills where the table leaves them empty."""
        return {}

    def quantizer_config(self) -> QuantizerConfig:
        """The quantizer's part of the table, resolved."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(QuantizerConfig) if f.name != "kind"}
        empty = {f.name: f.default for f in dataclasses.fields(QuantizerConfig)}
        filled = {name: value for name, value in self.quantizer_defaults().items() if given[name] == empty[name]}
        return QuantizerConfig(kind=self.quantizer, **{**given, **filled})
