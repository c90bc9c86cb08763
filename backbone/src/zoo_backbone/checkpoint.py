"""Backbones on disk: every table's rows under the name of their vocabulary or modality, so that a registry may grow.

Tensors are `tokens.<table>`, `output.<table>`, `modalities.<name>`, `masks.<name>`, `positions.<name>` (learned ones),
`projections.<name>.*` (continuous inputs), and the Transformer's own; where the model's configuration has them,
`read.<table>` (token rows of the decoder), `target_modalities.<name>`, `input_positions.<name>` and
`target_positions.<name>` (stored ones), `mask` (one for all modalities), `registers`. A table is a vocabulary's, or a
modality's where tables are separate. config.json holds "class",
"model" (its ModelConfig), "specs" (the ModalitySpecs, in order) and what the caller adds. Of a backbone that was
imported, "ml4m" in config.json and tensors `ml4m.*` are what it takes to write it as it was published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_zoo.checkpoint import card_row, load_checkpoint, loading, save_checkpoint
from tokenizers_zoo.config import from_mapping, recorded
from tokenizers_zoo.errors import CheckpointError, ZooError, count_of
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    ModalitySpec,
    PatchesLayout,
    SequenceLayout,
    VectorLayout,
    layout_from_json,
    layout_to_json,
)
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.model import FourM

CLASS = "FourM"
PUBLISHED = "ml4m"
"""The key in config.json, and with a dot what names of tensors begin with, of what a model has no place for and goes
back to a published file."""
ASKED = "asked"
"""The key in config.json of how a model that grew is asked when it grows again. In its own training it was mostly asked
for what was new."""
BY_TABLE = {"token_embedding.weight": "tokens", "read_embedding.weight": "read"}
BY_MODALITY = {
    "modality_embedding.weight": "modalities", "target_modality_embedding.weight": "target_modalities",
    "mask_embedding.weight": "masks",
}  # fmt: skip
STORED = {"fixed_positions": "input_positions", "target_positions": "target_positions"}
"""Flat tables of the state dict, and what the names of their parts on disk begin with."""
LEARNED = "learned_positions."
GROWING = (*(f"{prefix}." for prefix in BY_TABLE.values()), "output.")
NEW = *GROWING, *(f"{prefix}." for prefix in (BY_MODALITY | STORED).values()), "positions.", "projections."
"""How the names of tensors begin that a model with more modalities, or longer vocabularies, has more of."""


def spec_to_json(spec: ModalitySpec) -> dict[str, Any]:
    """A spec as JSON types."""
    return {**recorded(spec), "layout": layout_to_json(spec.layout)}


def spec_from_json(data: Mapping[str, Any]) -> ModalitySpec:
    """The spec that `spec_to_json` wrote."""
    return from_mapping(ModalitySpec, {**data, "layout": layout_from_json(data["layout"])})


def named_tensors(tables: EmbeddingLayout, state: Mapping[str, Tensor], one_mask: bool = False) -> dict[str, Tensor]:
    """A model's state dict with its flat tables cut up by table and modality; `one_mask`: it has one mask token."""
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if prefix := BY_TABLE.get(key):
            named |= {f"{prefix}.{name}": tensor[rows.slice] for name, rows in tables.token_tables.items()}
        elif key == "mask_embedding.weight" and one_mask:
            named["mask"] = tensor[0]
        elif prefix := BY_MODALITY.get(key):
            named |= {f"{prefix}.{name}": tensor[index] for index, name in enumerate(tables.names)}
        elif prefix := STORED.get(key):
            named |= {f"{prefix}.{name}": tensor[tables.positions[name].slice] for name in tables.stored_positions}
        elif key.startswith(LEARNED):
            named[f"positions.{key.removeprefix(LEARNED)}"] = tensor
        else:
            named[key] = tensor
    return named


def model_tensors(model: FourM, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state`, as of this model, under their names on disk."""
    return named_tensors(model.layout, state, one_mask=model.config.mask_tokens == "shared")


def save_model(model: FourM, folder: Path, extra: Mapping[str, Any] | None = None, card: str = "") -> str:
    """Write a backbone, atomically, and give its fingerprint; `extra` is added to config.json, `card` is README.md."""
    return save_state(model, model.state_dict(), folder, extra, card)


def save_state(
    model: FourM,
    state: Mapping[str, Tensor],
    folder: Path,
    extra: Mapping[str, Any] | None = None,
    card: str = "",
    beside: Mapping[str, Tensor] | None = None,
) -> str:
    """As `save_model`, with the tensors of `state`: those of a sharded model, gathered; `beside` are no part of it."""
    config = {
        "class": CLASS,
        "model": recorded(model.config),
        "specs": [spec_to_json(spec) for spec in model.layout.specs],
        **(extra or {}),
    }
    tensors = {**model_tensors(model, state), **(beside or {})}
    return save_checkpoint(folder, tensors, config, card or model_card(model))


def load_model(
    folder: Path, specs: Sequence[ModalitySpec] | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> FourM:
    """The backbone in a folder, for its own modalities or for `specs`.

    Modalities and vocabularies are found by name: rows that the checkpoint has keep their values, so outputs of its
    modalities are the same to the bit; rows that it has not are initialised from `seed`; modalities that are not among
    `specs` are left out. A sequence that is longer or shorter now keeps the positions that it was trained with, and
    has further ones; a grid of another shape has the positions of that shape, as its cells lie elsewhere. Raises
    CheckpointError where a modality's tokens now mean something else.
    """
    tensors, config = load_checkpoint(Path(folder), CLASS)
    try:
        stored = [spec_from_json(spec) for spec in config["specs"]]
        model_config = from_mapping(ModelConfig, config["model"])
    except (KeyError, TypeError, ValueError, ZooError) as error:
        raise CheckpointError(f"{folder}: config.json does not describe a backbone: {error}") from None
    old = {spec.name: spec for spec in stored}
    for spec in specs or ():
        if spec.name in old:
            _check_same_tokens(folder, old[spec.name], spec)
    if specs is not None:
        model_config = dataclasses.replace(model_config, position_lengths=_trained_lengths(model_config, old, specs))
    with loading():
        model = FourM.unfilled(model_config, stored) if specs is None else FourM.seeded(model_config, specs, seed)
        _copy(folder, tensors, model, complete=specs is None)
        return model.to(device)


def _check_same_tokens(folder: Path, old: ModalitySpec, new: ModalitySpec) -> None:
    """A modality may get a longer sequence, a larger grid or a longer vocabulary; its ids must mean what they did."""
    problem = ""
    if type(old.layout) is not type(new.layout):
        problem = f"its layout was {old.layout.kind} and is {new.layout.kind}"
    elif old.vocabulary != new.vocabulary:
        problem = f"its vocabulary was {old.vocabulary!r} and is {new.vocabulary!r}"
    elif old.vocab_size > new.vocab_size:
        problem = f"its vocabulary had {old.vocab_size} ids and has {new.vocab_size}; a vocabulary only grows"
    elif isinstance(old.layout, VectorLayout) and old.layout != new.layout:
        problem = f"it had {old.layout.length} tokens and has {new.layout.length}"
    elif isinstance(old.layout, PatchesLayout | EmbeddingsLayout) and isinstance(new.layout, type(old.layout)):
        if old.layout.dim != new.layout.dim:
            problem = f"its vectors had {old.layout.dim} numbers and have {new.layout.dim}"
    elif isinstance(old.layout, SequenceLayout) and isinstance(new.layout, SequenceLayout):
        before, now = (old.layout.end, old.layout.sentinel_start), (new.layout.end, new.layout.sentinel_start)
        if before != now:
            problem = f"the ids of its end and first sentinel were {before} and are {now}"
    if problem:
        raise CheckpointError(
            f"{folder}: {old.name} is not the modality that this backbone knows: {problem}; "
            "give it another name, or use the registry of its training"
        )


def _trained_lengths(
    config: ModelConfig, old: Mapping[str, ModalitySpec], specs: Sequence[ModalitySpec]
) -> dict[str, int]:
    """The `position_lengths` of the model for `specs`."""
    lengths = {name: spec.layout.length for name, spec in old.items()} | dict(config.position_lengths)
    return {
        spec.name: lengths[spec.name] for spec in specs
        if isinstance(spec.layout, SequenceLayout | EmbeddingsLayout) and spec.name not in config.stored_positions
        and lengths.get(spec.name, spec.layout.length) != spec.layout.length
    }  # fmt: skip


@torch.no_grad()
def _copy(folder: Path, tensors: Mapping[str, Tensor], model: FourM, complete: bool) -> None:
    """Copy stored rows into the model's, by name; a stored vocabulary may be shorter, unless it is to be `complete`."""
    by_name = model_tensors(model, model.state_dict())
    missing = [name for name in by_name if name not in tensors]
    if complete and missing:
        raise CheckpointError(f"{folder}: has no tensor {missing[0]}")
    for name, target in by_name.items():
        source = tensors.get(name)
        grows = not complete and name.startswith(GROWING)
        if source is None and not name.startswith(NEW):
            raise CheckpointError(f"{folder}: has no tensor {name}")
        if source is None:
            continue
        if source.shape[grows:] != target.shape[grows:] or (grows and len(source) > len(target)):
            raise CheckpointError(f"{folder}: {name} is {tuple(source.shape)}, expected {tuple(target.shape)}")
        (target[: len(source)] if grows else target).copy_(source)


def model_card(model: FourM) -> str:
    """README.md of a backbone."""
    rows = [
        card_row(
            spec.name, f"{spec.layout.kind} of {spec.layout.length}", spec.vocabulary if spec.vocab_size else "-",
            spec.vocab_size or "-", spec.summary,
        )
        for spec in model.layout.specs
    ]  # fmt: skip
    config, millions = model.config, model.transformer_parameters() / 1e6
    return f"""# A 4M backbone over {count_of(len(rows), "modality", "modalities")}

Any-to-any masked modelling (arXiv 2312.06647): one encoder-decoder Transformer, dim {config.dim}, depth
{config.encoder_depth}/{config.decoder_depth}, {config.heads} heads, {millions:.1f} M parameters without embeddings.

```python
from zoo_backbone.checkpoint import load_model
model = load_model("this folder")
```

| modality | tokens | vocabulary | ids | what it is |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
