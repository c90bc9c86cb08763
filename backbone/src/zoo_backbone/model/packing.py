"""The encoder's inputs from whole samples, and during generation, where they grow and differ between passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.contract.validation import checked_tokens, describe, expected_tokens
from tokenizers_zoo.errors import InvalidValueError, count_of
from zoo_backbone.model.batch import Packed, PackedInputs
from zoo_backbone.model.embedding_layout import EmbeddingLayout, consecutive

Tokens = dict[str, Tensor]
"""By modality: ids `batch tokens` (grids row-major), or numbers `batch tokens dim` for continuous layouts."""
Used = dict[str, Tensor]
"""By modality of variable length: bool `batch tokens`, True where a sample has a token."""


def padded(
    layout: EmbeddingLayout, tokens_by_modality: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[Tokens, Used]:
    """Convert the output of tokenizers to tensors; sequences and embeddings are padded to the longest of the batch.

    Raises InvalidValueError if tokens do not fit their modality or numbers of samples differ, UnknownNameError for a
    modality that the backbone does not have.
    """
    tokens: Tokens = {}
    used: Used = {}
    count, count_reason = None, ""
    for name, value in tokens_by_modality.items():
        spec = layout.spec(name)
        checked = checked_batch(spec, value, count, count_reason)
        count, count_reason = len(checked), f"{next(iter(tokens_by_modality))} has {len(checked)}"
        tokens[name], mask = pad_tokens(layout, spec, checked, device)
        if spec.layout.variable:
            used[name] = mask
    return tokens, used


def checked_batch(spec: ModalitySpec, tokens: Any, samples: int | None, count_reason: str) -> Any:
    """Return the tokens as a tensor (layouts of fixed length) or a list of arrays.

    Raises InvalidValueError if they do not fit the spec or the number of samples is not `samples`.
    """
    checked, error = checked_tokens(spec, tokens)
    if error is None and samples is not None and len(checked) != samples:
        error = f"{count_of(len(checked), 'sample')}, and {count_reason}"
    if error is not None:
        raise InvalidValueError(f"{spec.name}: expected {expected_tokens(spec)}, got {describe(tokens)}: {error}")
    return checked


def pad_tokens(
    layout: EmbeddingLayout, spec: ModalitySpec, checked: Any, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return checked tokens as a tensor `batch tokens` (continuous: also `dim`), and a mask, bool `batch tokens`, True
    for tokens.

    Sequences end as in the model's training, see `EmbeddingLayout.input_end`.
    """
    rows = [torch.as_tensor(row) if spec.continuous else torch.as_tensor(row).flatten() for row in checked]
    if (end := layout.input_end(spec)) is not None:
        rows = [F.pad(row, (0, int(len(row) < spec.layout.length)), value=end) for row in rows]
    content = pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return content, torch.arange(content.shape[1], device=device) < lengths.unsqueeze(1)


def spans_of(tokens: Mapping[str, Tensor]) -> dict[str, slice]:
    """Return the slice of each modality's tokens in the packed tokens."""
    return dict(zip(tokens, consecutive(value.shape[1] for value in tokens.values()), strict=True))


def packed(layout: EmbeddingLayout, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> PackedInputs:
    """Concatenate all tokens in the order of the mapping, without control flow that depends on tensor values.

    Gradients flow to continuous tokens.
    """
    first = next(iter(tokens.values()))
    inputs = EncoderInputs(layout, first.shape[0], first.device)  # len() would fix the size under torch.export
    for name, content in tokens.items():
        inputs.add_content(name, content, used.get(name))
    return inputs.all_tokens()


@dataclass(frozen=True, kw_only=True)
class _Block(Packed):
    """Tokens of one modality, `batch count`; `vectors` are the values of a continuous modality, `batch count dim`."""

    name: str
    vectors: Tensor | None = None


class EncoderInputs:
    """Tokens of several modalities for a batch of samples; each sample has its own number of tokens.

    A row represents `draws` draws of its sample, until `split_draws` gives each draw a row.
    """

    def __init__(self, layout: EmbeddingLayout, batch: int, device: torch.device, draws: int = 1) -> None:
        self.layout, self.batch, self.device, self.draws = layout, batch, device, draws
        self._blocks: list[_Block] = []
        self._open: list[_Block] = []
        """Blocks of `mark_open`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities with tokens, in the order in which they were added."""
        return tuple(dict.fromkeys(block.name for block in self._blocks))

    def add(self, name: str, ids: Tensor, ranks: Tensor, mask: Tensor | None = None) -> None:
        """Append ids of a modality's vocabulary at its positions `ranks`; all are `batch count`."""
        if name not in self.layout.targets_only:
            self._blocks.append(self._block(name, ids, ranks, mask))

    def add_whole(self, name: str, tokens: Any) -> None:
        """Append all tokens of a modality, as `checked_batch` returns them."""
        self.add_content(name, *pad_tokens(self.layout, self.layout.spec(name), tokens, self.device))

    def add_content(self, name: str, content: Tensor, mask: Tensor | None = None) -> None:
        """Append all tokens of a modality, as `pad_tokens` returns them."""
        self.add(name, content, torch.arange(content.shape[1], device=self.device).expand(self.batch, -1), mask)

    def mark_open(self, name: str) -> None:
        """Represent a modality by its `EmbeddingLayout.placeholder` while it has no tokens.

        Passes that hide the modality have the placeholder only if they are marked.
        """
        token = self.layout.placeholder(self.layout.spec(name))
        if token is None or name in self.layout.targets_only or name in [block.name for block in self._open]:
            return
        content = token.to(self.device).expand(self.batch, *token.shape)
        ranks = torch.zeros(self.batch, 1, dtype=torch.int64, device=self.device)
        self._open.append(self._block(name, content, ranks))

    def _block(self, name: str, content: Tensor, ranks: Tensor, mask: Tensor | None = None) -> _Block:
        continuous = self.layout.spec(name).continuous
        return _Block(
            name=name,
            ids=torch.zeros_like(ranks) if continuous else content + self.layout.token_rows(name).start,
            positions=ranks + self.layout.positions[name].start,
            modalities=torch.full_like(ranks, self.layout.index(name)),
            mask=torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask,
            vectors=content if continuous else None,
        )

    def remove(self, name: str) -> None:
        """Remove a modality's tokens."""
        self._blocks = [block for block in self._blocks if block.name != name]

    def split_draws(self) -> None:
        """Give each draw a row of its own; the draws of a sample are consecutive."""
        if self.draws > 1:
            for blocks in (self._blocks, self._open):
                blocks[:] = [block.map_tensors(lambda rows: rows.repeat_interleave(self.draws, 0)) for block in blocks]
            self.batch, self.draws = self.batch * self.draws, 1

    def all_tokens(self) -> PackedInputs:
        """Return all tokens, `batch inputs`."""
        joined, column_slices = _joined(self._blocks)
        rows = joined["ids"].shape[1] * torch.arange(self.batch, device=self.device).unsqueeze(1)
        vectors = {
            block.name: (
                (rows + columns.start + torch.arange(block.ids.shape[1], device=self.device)).flatten(),
                block.vectors.flatten(0, 1),
            )
            for block, columns in zip(self._blocks, column_slices, strict=True)
            if block.vectors is not None
        }
        return PackedInputs(**joined, vectors=vectors)

    def packed(self, hidden: Collection[str] = (), marked: bool = False) -> PackedInputs:
        """Return the inputs of a pass without the `hidden` modalities, `batch inputs`, as wide as the longest sample.

        Used tokens come first. There is at least one slot, and unused slots are zero, as in training.
        """
        blocks = [block for block in self._open if block.name not in self.names or (marked and block.name in hidden)]
        blocks += [block for block in self._blocks if block.name not in hidden]
        if not blocks:
            empty = torch.zeros(self.batch, 1, dtype=torch.int64, device=self.device)
            return PackedInputs(ids=empty, positions=empty, modalities=empty, mask=empty.bool())
        joined, column_slices = _joined(blocks)
        mask = joined["mask"]
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        slots = order.argsort(dim=1)
        width = max(1, int(mask.sum(1).max()))
        order = order[:, :width]
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for block, columns in zip(blocks, column_slices, strict=True):
            if block.vectors is not None:
                flat = slots[:, columns] + width * torch.arange(self.batch, device=self.device).unsqueeze(1)
                parts = [*vectors.get(block.name, ()), flat[block.mask], block.vectors[block.mask]]
                vectors[block.name] = torch.cat(parts[::2]), torch.cat(parts[1::2])
        used = mask.gather(1, order)
        return PackedInputs(**{name: x.gather(1, order) * used for name, x in joined.items()}, vectors=vectors)


def _joined(blocks: Sequence[_Block]) -> tuple[dict[str, Tensor], list[slice]]:
    """Return the tokens of all blocks, and the columns of each."""
    joined = {
        name: torch.cat([getattr(block, name) for block in blocks], 1)
        for name in ("ids", "positions", "modalities", "mask")
    }
    return joined, consecutive(block.ids.shape[1] for block in blocks)
