"""The encoder's inputs during generation: they grow with each decoding step and differ between guidance passes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from tokenizers_zoo.spec import EmbeddingsLayout, SequenceLayout
from zoo_backbone.batch import PackedInputs
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.packing import accepted, filled


class EncoderInputs:
    """Tokens of several modalities for a batch of samples; each sample has its own number of tokens.

    A row represents `draws` draws of its sample, until `split_draws` gives each draw a row.
    """

    def __init__(self, layout: EmbeddingLayout, batch: int, device: torch.device, draws: int = 1) -> None:
        self.layout = layout
        self.batch = batch
        self.draws = draws
        self.device = device
        empty = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        self._ids, self._positions, self._modalities, self._mask = empty, empty, empty, empty.bool()
        self._vectors: list[tuple[str, int, Tensor]] = []
        self._names: list[str] = []
        self._open: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities with tokens, in the order in which they were added."""
        return tuple(self._names)

    def add(self, name: str, ids: Tensor, ranks: Tensor, mask: Tensor | None = None) -> None:
        """Append ids of a modality's vocabulary at its positions `ranks`; all are `batch count`."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        self._append(name, ids + self.layout.token_rows(name).start, ranks, mask)

    def add_whole(self, name: str, tokens: Any) -> None:
        """Append all tokens of a modality. Raises InvalidValueError if they do not fit the modality."""
        spec = self.layout.spec(name)
        found = accepted(spec, tokens, self.batch, f"the batch has {self.batch}")
        content, mask = filled(self.layout, spec, found, self.device)
        ranks = torch.arange(content.shape[1], device=self.device).expand(self.batch, -1)
        if spec.continuous:
            self._vectors.append((name, self._ids.shape[1], content))
            self._append(name, torch.zeros_like(ranks), ranks, mask)
        else:
            self.add(name, content, ranks, mask)

    def mark_open(self, name: str) -> None:
        """Represent a sequence without tokens by one sentinel, and embeddings by a zero vector, as 4M's code does.

        Only in models with `EmbeddingLayout.marked_inputs`; in passes that hide the modality only if they are marked.
        """
        layout = self.layout.spec(name).layout
        marked = self.layout.marked_inputs and name not in self.layout.targets_only
        if not marked or not isinstance(layout, SequenceLayout | EmbeddingsLayout) or name in self._open:
            return
        self._open[name] = self._ids.shape[1]
        names = list(self._names)
        first = torch.zeros(self.batch, 1, dtype=torch.int64, device=self.device)
        if isinstance(layout, EmbeddingsLayout):
            self._vectors.append((name, self._ids.shape[1], torch.zeros(self.batch, 1, layout.dim, device=self.device)))
            self._append(name, first, first, first > 0)
        else:
            self.add(name, first + layout.sentinel_start, first, first > 0)
        self._names = names

    def _append(self, name: str, ids: Tensor, ranks: Tensor, mask: Tensor) -> None:
        if name in self.layout.targets_only:
            return
        self._ids = torch.cat([self._ids, ids], 1)
        self._positions = torch.cat([self._positions, ranks + self.layout.positions[name].start], 1)
        self._modalities = torch.cat([self._modalities, torch.full_like(ids, self.layout.index(name))], 1)
        self._mask = torch.cat([self._mask, mask], 1)
        if name not in self._names:
            self._names.append(name)

    def remove(self, name: str) -> None:
        """Remove a modality's tokens."""
        self._mask = self._mask & (self._modalities != self.layout.index(name))
        self._names = [other for other in self._names if other != name]

    def split_draws(self) -> None:
        """Give each draw a row of its own; the draws of a sample are consecutive."""
        if self.draws == 1:
            return
        self._ids, self._positions, self._modalities, self._mask = (
            x.repeat_interleave(self.draws, 0) for x in (self._ids, self._positions, self._modalities, self._mask)
        )
        self._vectors = [(name, at, content.repeat_interleave(self.draws, 0)) for name, at, content in self._vectors]
        self.batch, self.draws = self.batch * self.draws, 1

    def packed(self, hidden: Collection[str] = (), marked: bool = False) -> PackedInputs:
        """Return the inputs of a pass without the `hidden` modalities, `batch inputs`, as wide as the longest sample.

        Used tokens come first. There is at least one slot, and unused slots are zero, as in training.
        """
        mask = self._mask.clone()
        for name in hidden:
            mask &= self._modalities != self.layout.index(name)
        for name, column in self._open.items():
            mask[:, column] = name not in self._names or (marked and name in hidden)
        if mask.shape[1] == 0:
            empty = self._ids.new_zeros(self.batch, 1)
            return PackedInputs(ids=empty, positions=empty, modalities=empty, mask=empty.bool())
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        slots = order.argsort(dim=1)
        width = max(1, int(mask.sum(1).max()))
        order = order[:, :width]
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, start, content in self._vectors:
            block = slice(start, start + content.shape[1])
            used = mask[:, block]
            flat = slots[:, block] + width * torch.arange(self.batch, device=self.device).unsqueeze(1)
            parts = [*vectors.get(name, ()), flat[used], content[used]]
            vectors[name] = torch.cat(parts[::2]), torch.cat(parts[1::2])
        used = mask.gather(1, order)
        return PackedInputs(
            ids=self._ids.gather(1, order) * used,
            positions=self._positions.gather(1, order) * used,
            modalities=self._modalities.gather(1, order) * used,
            mask=used,
            vectors=vectors,
        )
