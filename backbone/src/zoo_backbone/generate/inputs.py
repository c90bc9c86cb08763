"""The packed inputs of a batch, which grow by what has been generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizers_zoo.spec import EmbeddingsLayout, SequenceLayout
from zoo_backbone.batch import PackedInputs
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.generate.guidance import Passes
from zoo_backbone.packing import accepted, filled

ONE_PASS = Passes()


class GrowingInputs:
    """Tokens of several modalities for a batch of samples, each sample with its own number of them.

    A row stands for `draws` draws of its sample, until `part` gives each a row of its own.
    """

    def __init__(self, tables: EmbeddingLayout, batch: int, device: torch.device, draws: int = 1) -> None:
        self.layout = tables
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
        """The modalities with tokens among the inputs, in the order in which they came."""
        return tuple(self._names)

    def add(self, name: str, ids: Tensor, ranks: Tensor, mask: Tensor | None = None) -> None:
        """Append ids of a modality's vocabulary at its positions `ranks`; all `batch count`; mask None: all used."""
        self._append(
            name, ids + self.layout.token_rows(name).start, ranks, torch.ones_like(ids) > 0 if mask is None else mask
        )

    def add_whole(self, name: str, tokens: Any) -> None:
        """Append all tokens of a modality, as its codec gives them.

        Raises InvalidValueError where they do not fit the modality.
        """
        spec = self.layout.spec(name)
        content, mask = filled(
            self.layout, spec, accepted(spec, tokens, self.batch, generated_text(self.batch)), self.device
        )
        ranks = torch.arange(content.shape[1], device=self.device).expand(self.batch, -1)
        if spec.continuous:
            self._vectors.append((name, self._ids.shape[1], content))
            self._append(name, torch.zeros_like(ranks), ranks, mask)
        else:
            self.add(name, content, ranks, mask)

    def mark_open(self, name: str) -> None:
        """Let a sequence of which a pass sees nothing stand as one sentinel, see `ModelConfig.marked_inputs`.

        That is as long as it has no tokens here, and in passes that hide it where these are `marked`. In those
        embeddings stand as one vector of zeros, as in 4M's code.
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
        """Append rows of the token table; none, as in 4M's code, of a modality that the model only makes."""
        if name in self.layout.targets_only:
            return
        self._ids = torch.cat([self._ids, ids], 1)
        self._positions = torch.cat([self._positions, ranks + self.layout.positions[name].start], 1)
        self._modalities = torch.cat([self._modalities, torch.full_like(ids, self.layout.index(name))], 1)
        self._mask = torch.cat([self._mask, mask], 1)
        if name not in self._names:
            self._names.append(name)

    def hide(self, name: str) -> None:
        """Take a modality's tokens out again."""
        self._mask = self._mask & (self._modalities != self.layout.index(name))
        self._names = [other for other in self._names if other != name]

    def split_draws(self) -> None:
        """From now on each draw has a row: those of a sample follow one another."""
        if self.draws == 1:
            return
        self._ids, self._positions, self._modalities, self._mask = (
            x.repeat_interleave(self.draws, 0) for x in (self._ids, self._positions, self._modalities, self._mask)
        )
        self._vectors = [(name, at, content.repeat_interleave(self.draws, 0)) for name, at, content in self._vectors]
        self.batch, self.draws = self.batch * self.draws, 1

    def rows_of_draws(self, passes: Passes) -> Tensor:
        """For each draw of each pass, `(passes batch draws)`, its row among `packed(passes)`."""
        return torch.arange(len(passes) * self.batch, device=self.device).repeat_interleave(self.draws)

    def packed(self, passes: Passes = ONE_PASS) -> PackedInputs:
        """What each pass sees, `(passes batch) inputs`: the used tokens at the front, as wide as the longest sample.

        At least one slot. What is not used is zero, as in training, so that nothing hidden can be read from it.
        """
        hidden = self._hidden(passes)
        times = len(passes)
        ids, positions, modalities = (x.repeat(times, 1) for x in (self._ids, self._positions, self._modalities))
        mask = self._mask.repeat(times, 1) & ~hidden.repeat_interleave(self.batch, 0).gather(1, modalities)
        for name, column in self._open.items():
            shown = [name not in self._names or (passes.marked and name in names) for names in passes.hidden]
            mask[:, column] = torch.tensor(shown, device=self.device).repeat_interleave(self.batch)
        if ids.shape[1] == 0:
            empty = ids.new_zeros(len(ids), 1)
            return PackedInputs(ids=empty, positions=empty, modalities=empty, mask=empty.bool())
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        width = max(1, int(mask.sum(1).max()))
        slots = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=self.device).expand_as(order)
        )
        order = order[:, :width]
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, start, content in self._vectors:
            block = slice(start, start + content.shape[1])
            used = mask[:, block]
            flat = slots[:, block] + width * torch.arange(len(ids), device=self.device).unsqueeze(1)
            parts = [*vectors.get(name, ()), flat[used], content.repeat(times, 1, 1)[used]]
            vectors[name] = torch.cat(parts[::2]), torch.cat(parts[1::2])
        used = mask.gather(1, order)
        return PackedInputs(
            ids=ids.gather(1, order) * used,
            positions=positions.gather(1, order) * used,
            modalities=modalities.gather(1, order) * used,
            mask=used,
            vectors=vectors,
        )

    def _hidden(self, passes: Passes) -> Tensor:
        """bool `passes modalities`."""
        hidden = torch.zeros(len(passes), len(self.layout), dtype=torch.bool, device=self.device)
        for row, names in enumerate(passes.hidden):
            for name in names:
                hidden[row, self.layout.index(name)] = True
        return hidden


def generated_text(samples: int) -> str:
    """What `accepted` tells of another number of samples."""
    return f"{samples} are generated"


def rows_of(tokens: Any, rows: Sequence[int]) -> Any:
    """The tokens of the samples `rows`, in this order; one may be asked for several times."""
    return [tokens[row] for row in rows] if isinstance(tokens, list) else tokens[list(rows)]
