"""Packs whole samples as the encoder's inputs: every token of the input modalities, in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.errors import InvalidValueError, count_of
from tokenizers_zoo.spec import ModalitySpec, SequenceLayout
from tokenizers_zoo.validation import checked_tokens, describe, expected_tokens, has_fixed_length
from zoo_backbone.batch import PackedInputs
from zoo_backbone.embedding_layout import EmbeddingLayout

Tokens = dict[str, Tensor]
"""By modality: ids `batch tokens` (grids row-major), or numbers `batch tokens dim` for continuous layouts."""
Used = dict[str, Tensor]
"""By modality of variable length: bool `batch tokens`, True where a sample has a token."""


def padded(
    layout: EmbeddingLayout, given: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[Tokens, Used]:
    """Convert the output of tokenizers to tensors; sequences and embeddings are padded to the longest of the batch.

    Raises InvalidValueError if tokens do not fit their modality or numbers of samples differ, UnknownNameError for a
    modality that the backbone does not have.
    """
    tokens: Tokens = {}
    used: Used = {}
    count, others = None, ""
    for name, value in given.items():
        spec = layout.spec(name)
        found = accepted(spec, value, count, others)
        count, others = len(found), f"{next(iter(given))} has {len(found)}"
        tokens[name], mask = filled(layout, spec, found, device)
        if not has_fixed_length(spec.layout):
            used[name] = mask
    return tokens, used


def accepted(spec: ModalitySpec, tokens: Any, samples: int | None, others: str) -> Any:
    """Return the tokens as a tensor (layouts of fixed length) or a list of arrays.

    Raises InvalidValueError if they do not fit the spec or the number of samples is not `samples`.
    """
    found, problem = checked_tokens(spec, tokens)
    if problem is None and samples is not None and len(found) != samples:
        problem = f"{count_of(len(found), 'sample')}, and {others}"
    if problem is not None:
        raise InvalidValueError(f"{spec.name}: expected {expected_tokens(spec)}, got {describe(tokens)}: {problem}")
    return found


def filled(
    layout: EmbeddingLayout, spec: ModalitySpec, found: Any, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return checked tokens as a tensor `batch tokens` (continuous: also `dim`), and a mask, bool `batch tokens`, True
    for tokens.

    Sequences end as in the model's training, see `EmbeddingLayout.marked_inputs`.
    """
    rows = [torch.as_tensor(row) if spec.continuous else torch.as_tensor(row).flatten() for row in found]
    if (end := shown_end(layout, spec)) is not None:
        rows = [F.pad(row, (0, int(len(row) < spec.layout.length)), value=end) for row in rows]
    content = pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return content, torch.arange(content.shape[1], device=device) < lengths.unsqueeze(1)


def shown_end(layout: EmbeddingLayout, spec: ModalitySpec) -> int | None:
    """Return the id that follows a complete input sequence of this modality; None if there is no such id."""
    return spec.layout.end if layout.marked_inputs and isinstance(spec.layout, SequenceLayout) else None


def spans_of(tokens: Mapping[str, Tensor]) -> dict[str, slice]:
    """Return the slice of each modality's tokens in the packed tokens."""
    spans, start = {}, 0
    for name, value in tokens.items():
        spans[name] = slice(start, start + value.shape[1])
        start += value.shape[1]
    return spans


def packed(layout: EmbeddingLayout, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> PackedInputs:
    """Concatenate all tokens in the order of the mapping, without control flow that depends on tensor values.

    Gradients flow to continuous tokens.
    """
    first = next(iter(tokens.values()))
    batch, device = len(first), first.device
    spans = spans_of(tokens)
    width = max(span.stop for span in spans.values())
    ids, positions, kinds, masks = [], [], [], []
    vectors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, value in tokens.items():
        count = value.shape[1]
        places = torch.arange(count, device=device).expand(batch, -1)
        if layout.spec(name).continuous:
            flat = width * torch.arange(batch, device=device).unsqueeze(1) + spans[name].start + places
            vectors[name] = (flat.flatten(), value.flatten(0, 1))
            ids.append(torch.zeros_like(places))
        else:
            ids.append(value + layout.token_rows(name).start)
        positions.append(places + layout.positions[name].start)
        kinds.append(torch.full_like(places, layout.index(name)))
        masks.append(used[name] if name in used else torch.ones_like(places, dtype=torch.bool))
    return PackedInputs(
        ids=torch.cat(ids, 1), positions=torch.cat(positions, 1), modalities=torch.cat(kinds, 1),
        mask=torch.cat(masks, 1), vectors=vectors,
    )  # fmt: skip
