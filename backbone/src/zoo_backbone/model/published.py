"""The published 4M models (github.com/apple/ml-4m): their differences from ours, as subclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.contract.layouts import EmbeddingsLayout, PatchesLayout, SequenceLayout
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.typed import NonNegativeInt, PositiveInt
from zoo_backbone.model.batch import PackedInputs, RawBatch
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout, Positions, init_ordered_ids
from zoo_backbone.model.fourm import EMBEDDING_STD, FourM
from zoo_backbone.model.spans import Bools, Ints, Keys, Spans, ragged, sorted_draw
from zoo_backbone.model.transformer import initialise


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedConfig(ModelConfig):
    """The shape of a published 4M model."""

    share_modality_embeddings: bool = True
    """Whether the inputs and targets of a modality have the same modality embedding."""
    registers: NonNegativeInt = 0
    """Learned tokens that precede the inputs (arXiv 2309.16588)."""
    stored_positions: Mapping[str, PositiveInt] = field(default_factory=dict)
    """Rows of the position embeddings of each published modality. They are buffers, separate for inputs and targets."""
    inputs_only: tuple[str, ...] = ()
    """Discrete modalities without weights as targets."""
    targets_only: tuple[str, ...] = ()
    """Modalities without weights as inputs."""


class AdjacentSpans(Spans):
    """Where not all spans fit, the targets are adjacent spans, closed by the sentinel of the next one."""

    def select(self, budget: Ints, keys: Keys) -> Bools:
        """Return the spans to predict: of a row that does not fit, a random span and as many successors as fit."""
        need, counts = self.cost(), self.starts.sum(axis=1)
        selected = (need <= budget)[self.row]
        over_budget = np.flatnonzero(need > budget)
        number = sorted_draw(keys[over_budget], counts[over_budget])[:, 0]
        start = (np.cumsum(counts) - counts)[over_budget] + number
        row, turn = ragged(counts[over_budget] - number)
        span = start[row] + turn
        cost = np.cumsum(self.length[span] + 1)
        before = (cost - self.length[span] - 1)[turn == 0]
        selected[span[cost - before[row] <= budget[over_budget][row]]] = True
        return selected

    def closing(self, selected: Bools, sentinel: Ints, num_sentinels: Ints, end: Ints) -> Ints:
        """Return the sentinel of the span after the last selected one, or `end` if there is no such sentinel."""
        following = np.zeros(len(self.masked), np.int64)
        _, number = ragged(self.starts.sum(axis=1))
        following[self.row[selected]] = number[selected] + 1  # numbers rise within a row, so the last one stays
        return np.where(following < num_sentinels, sentinel + following, end)


class PublishedLayout(EmbeddingLayout):
    """Every modality has its own embedding table, and stored positions where the published model has it.

    Inputs mark sequences as in the published training: `end` follows a sequence shorter than its maximum length, and
    one sentinel represents a sequence that is still to be generated, or hidden from the unconditional pass of guidance.
    Embeddings hidden from this pass are one vector of zeros. In training, `end` is a token like others, kept or masked.
    """

    span_class = AdjacentSpans

    def __init__(self, specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> None:
        config = config or PublishedConfig()
        assert isinstance(config, PublishedConfig)
        self.stored_positions = config.stored_positions
        self.inputs_only, self.targets_only = frozenset(config.inputs_only), frozenset(config.targets_only)
        super().__init__(specs, config)

    def table_of(self, spec: ModalitySpec) -> str:
        return spec.name

    def with_ends(self, raw: RawBatch) -> RawBatch:
        tokens, lengths = dict(raw.tokens), raw.lengths.copy()
        for index, spec in enumerate(self.specs):
            if (end := self.input_end(spec)) is None:
                continue
            length, ids = raw.lengths[:, index], tokens[spec.name]
            rows = np.flatnonzero(raw.present[:, index] & (length < spec.layout.length))
            content = np.zeros((len(raw), spec.layout.length), ids.dtype)
            content[:, : ids.shape[1]] = ids
            content[rows, length[rows]] = end
            tokens[spec.name] = content
            lengths[rows, index] += 1
        return replace(raw, tokens=tokens, lengths=lengths)

    def input_end(self, spec: ModalitySpec) -> int | None:
        return spec.layout.special.get("end")

    def placeholder(self, spec: ModalitySpec) -> Tensor | None:
        if isinstance(spec.layout, EmbeddingsLayout):
            return torch.zeros(1, spec.layout.dim)
        return torch.tensor([spec.layout.sentinel_start]) if isinstance(spec.layout, SequenceLayout) else None

    def position_key(self, spec: ModalitySpec) -> tuple[Positions, Any]:
        return ("stored", spec.name) if spec.name in self.stored_positions else EmbeddingLayout.position_key(self, spec)

    def num_positions_of(self, spec: ModalitySpec) -> int:
        available = self.stored_positions.get(spec.name)
        if available is None:
            return EmbeddingLayout.num_positions_of(self, spec)
        # Targets of a sequence are its masked tokens, and a sentinel before each span; kept tokens separate spans.
        required = spec.layout.length + spec.layout.causal
        if available < required:
            reason = f"needs {required} positions, and the model stores {available}"
            raise ConfigError(f"backbone: {spec.name} {reason}; give it a shorter length or a smaller grid")
        return available


class PublishedFourM(FourM):
    """FourM with the weights of ml-4m.

    It has a second table for tokens that the decoder reads, one mask token for all modalities, patches without bias,
    stored positions, and optionally registers and separate modality embeddings of targets.
    """

    layout_class = PublishedLayout
    config_class = PublishedConfig
    config: PublishedConfig
    table_rows: ClassVar[Mapping[str, str]] = {**FourM.table_rows, "read_embedding.weight": "read"}
    modality_rows: ClassVar[Mapping[str, str]] = {
        "modality_embedding.weight": "modalities",
        "target_modality_embedding.weight": "target_modalities",
    }
    stored_rows: ClassVar[Mapping[str, str]] = {
        "fixed_positions": "input_positions",
        "target_positions": "target_positions",
    }

    decoder_only = FourM.decoder_only | {"read_embedding", "target_modality_embedding", "target_positions"}

    target_positions: Tensor

    def __init__(self, config: ModelConfig, specs: Sequence[ModalitySpec]) -> None:
        super().__init__(config, specs)
        dim = config.dim
        self.mask_embedding = nn.Embedding(1, dim)
        self.read_embedding = nn.Embedding(self.layout.num_tokens, dim)
        new_tables: list[Tensor] = [self.mask_embedding.weight, self.read_embedding.weight]
        if not self.config.share_modality_embeddings:
            self.target_modality_embedding = nn.Embedding(len(self.layout), dim)
            new_tables.append(self.target_modality_embedding.weight)
        if self.config.registers:
            self.registers = nn.Parameter(torch.empty(self.config.registers, dim))
            new_tables.append(self.registers)
        for spec in specs:
            if isinstance(spec.layout, PatchesLayout):
                self.projections[spec.name] = nn.Linear(spec.layout.dim, dim, bias=False).apply(initialise)
        for table in new_tables:
            nn.init.normal_(table, std=EMBEDDING_STD)
        for name, runs in self.layout.ordered_ids.items():
            init_ordered_ids(self.read_embedding.weight[self.layout.token_tables[name]], runs, EMBEDDING_STD)
        self.register_buffer("fixed_positions", self.fixed_positions, persistent=True)
        self.register_buffer("target_positions", self.fixed_positions.clone())

    def embed_targets(self, read: Tensor, positions: Tensor, modalities: Tensor) -> Tensor:
        masked = (read < 0).unsqueeze(-1)
        content = torch.where(masked, self.mask_embedding.weight[0], self.read_embedding(read.clamp(min=0)))
        shared = self.config.share_modality_embeddings
        modality = (self.modality_embedding if shared else self.target_modality_embedding)(modalities)
        return content + (self.embed_positions(positions, self.target_positions) + modality)

    def encoder_inputs(self, inputs: PackedInputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        content, position, rotation, mask = super().encoder_inputs(inputs)
        if not (count := self.config.registers):
            return content, position, rotation, mask
        content = torch.cat([self.registers.to(content.dtype).expand(len(content), -1, -1), content], 1)
        if rotation is not None:  # registers have no place: cosines are 1, sines 0
            unrotated = torch.ones_like(rotation[:, :1].expand(-1, count, -1))
            unrotated[..., unrotated.shape[-1] // 2 :] = 0
            rotation = torch.cat([unrotated, rotation], dim=1)
        return content, F.pad(position, (0, 0, count, 0)), rotation, F.pad(mask, (count, 0), value=True)
