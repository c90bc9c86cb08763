"""Backbones on disk: tensors are named by embedding table and modality, so that a registry may grow.

model.safetensors has `tokens.<table>`, `output.<table>`, `modalities.<name>`, `masks.<name>`, `positions.<name>`
(learned ones), `projections.<name>.*` (continuous inputs) and the tensors of the Transformer; published models have a
few more (see `published.PublishedFourM`). A table is a vocabulary. config.json has "class" (the kind of checkpoint),
"architecture" (a key of `ARCHITECTURES`), "model" (its config), "specs" (the ModalitySpecs, in order) and keys of
the caller. "ml4m" in config.json and tensors `ml4m.*` serve the export of an imported backbone.
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
from zoo_backbone.published import PublishedFourM

CLASS = "FourM"
ARCHITECTURES: dict[str, type[FourM]] = {"FourM": FourM, "PublishedFourM": PublishedFourM}
PUBLISHED = "ml4m"
"""Key in config.json, and prefix of tensors, for the export of an imported backbone."""
ASKED = "asked"
"""Key in config.json: the mixtures that a grown backbone uses when it grows again. Its own training mostly had new
modalities as targets."""
LEARNED = "learned_positions."
GROWING = ("tokens.", "read.", "output.")
"""Prefixes of tensors with one row per id of a vocabulary."""
NEW = (
    *GROWING, "modalities.", "target_modalities.", "masks.", "input_positions.", "target_positions.", "positions.",
    "projections.",
)  # fmt: skip
"""Prefixes of tensors that a model with fewer modalities, or shorter vocabularies, may lack."""


def spec_to_json(spec: ModalitySpec) -> dict[str, Any]:
    """Return a spec as JSON types."""
    return {**recorded(spec), "layout": layout_to_json(spec.layout)}


def spec_from_json(data: Mapping[str, Any]) -> ModalitySpec:
    """Return the spec that `spec_to_json` wrote."""
    return from_mapping(ModalitySpec, {**data, "layout": layout_from_json(data["layout"])})


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the model's config in the config.json of a backbone."""
    return from_mapping(ARCHITECTURES[config["architecture"]].config_class, config["model"])


def stored_specs(config: Mapping[str, Any]) -> list[ModalitySpec]:
    """Return the specs in the config.json of a backbone."""
    return [spec_from_json(spec) for spec in config["specs"]]


def architecture_for(config: ModelConfig) -> type[FourM]:
    """Return the model class that has this kind of config."""
    return next(model for model in ARCHITECTURES.values() if model.config_class is type(config))


def layout_for(config: ModelConfig, specs: Sequence[ModalitySpec]) -> EmbeddingLayout:
    """Return the embedding layout of a backbone with this config."""
    return architecture_for(config).layout_class(specs, config)


def model_tensors(model: FourM, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict of `model` by their names on disk; tables are split by vocabulary and
    modality."""
    layout, stored = model.layout, model.layout.positions_of("stored")
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if prefix := model.table_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[rows.slice] for name, rows in layout.token_tables.items()}
        elif prefix := model.modality_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[index] for index, name in enumerate(layout.names)}
        elif prefix := model.stored_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[rows.slice] for name, rows in stored.items()}
        elif key.startswith(LEARNED):
            named[f"positions.{key.removeprefix(LEARNED)}"] = tensor
        else:
            named[key] = tensor
    return named


def save_model(
    model: FourM,
    folder: Path,
    extra: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> str:
    """Write a backbone atomically and return its fingerprint.

    `extra` is added to config.json. `state` has the (gathered) tensors of a model whose parameters are sharded; tensors
    of `beside` are written as they are.
    """
    config = {**stored_config(model.config, model.layout.specs), **(extra or {})}
    tensors = {**model_tensors(model, model.state_dict() if state is None else state), **(beside or {})}
    return save_checkpoint(folder, tensors, config, model_card(model))


def stored_config(config: ModelConfig, specs: Sequence[ModalitySpec]) -> dict[str, Any]:
    """Return the config.json of a backbone."""
    return {
        "class": CLASS, "architecture": architecture_for(config).__name__, "model": recorded(config),
        "specs": [spec_to_json(spec) for spec in specs],
    }  # fmt: skip


def load_model(
    folder: Path, specs: Sequence[ModalitySpec] | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> FourM:
    """Load the backbone in a folder, for its own modalities or for `specs`.

    Modalities and vocabularies are matched by name. Stored rows keep their values, so that the outputs of stored
    modalities are bit-identical; other rows are initialised from `seed`; stored modalities that are not in `specs` are
    skipped. A longer sequence keeps its trained positions and gets new ones. A grid of another shape gets the positions
    of that shape. Raises CheckpointError if the tokens of a modality have changed meaning.
    """
    tensors, config = load_checkpoint(Path(folder), CLASS)
    try:
        stored, shape = stored_specs(config), model_config(config)
    except (KeyError, TypeError, ValueError, ZooError) as error:
        raise CheckpointError(f"{folder}: config.json does not describe a backbone: {error}") from None
    with loading():
        if specs is None:
            model = architecture_for(shape).unfilled(shape, stored)
        else:
            old = {spec.name: spec for spec in stored}
            for spec in specs:
                if spec.name in old:
                    _check_same_tokens(folder, old[spec.name], spec)
            lengths = {spec.name: spec.layout.length for spec in stored} | dict(shape.position_lengths)
            changed = {
                spec.name: lengths[spec.name] for spec in specs
                if isinstance(spec.layout, SequenceLayout | EmbeddingsLayout)
                and lengths.get(spec.name, spec.layout.length) != spec.layout.length
            }  # fmt: skip
            shape = dataclasses.replace(shape, position_lengths=changed)
            model = architecture_for(shape).seeded(shape, specs, seed)
        with torch.no_grad():
            for name, target in model_tensors(model, model.state_dict()).items():  # parts of it, to be written to
                source = tensors.get(name)
                grows = specs is not None and name.startswith(GROWING)
                if source is None:
                    if specs is None or not name.startswith(NEW):
                        raise CheckpointError(f"{folder}: has no tensor {name}")
                    continue
                if source.shape[grows:] != target.shape[grows:] or (grows and len(source) > len(target)):
                    raise CheckpointError(f"{folder}: {name} is {tuple(source.shape)}, expected {tuple(target.shape)}")
                (target[: len(source)] if grows else target).copy_(source)
        return model.to(device)


def _check_same_tokens(folder: Path, old: ModalitySpec, new: ModalitySpec) -> None:
    """Raise CheckpointError unless the ids of a modality still mean the same; its size may change."""

    def meaning(spec: ModalitySpec) -> dict[str, object]:
        found: dict[str, object] = {"layout": spec.layout.kind, "vocabulary": spec.vocabulary}
        if isinstance(spec.layout, VectorLayout):
            found["number of tokens"] = spec.layout.length
        elif isinstance(spec.layout, SequenceLayout):
            found |= {"end": spec.layout.end, "first sentinel": spec.layout.sentinel_start}
        elif isinstance(spec.layout, PatchesLayout | EmbeddingsLayout):
            found["number of channels"] = spec.layout.dim
        return found

    before, now = meaning(old), meaning(new)
    problems = [f"its {key} was {was} and is {now[key]}" for key, was in before.items() if now.get(key, was) != was]
    if old.vocab_size > new.vocab_size:
        problems.append(f"its vocabulary had {old.vocab_size} ids and has {new.vocab_size}; a vocabulary only grows")
    if problems:
        remedy = "give it another name, or use the registry of the backbone's training"
        raise CheckpointError(f"{folder}: {old.name} is not the modality of its training: {problems[0]}; {remedy}")


def model_card(model: FourM) -> str:
    """Return README.md of a backbone."""
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

| modality | tokens | vocabulary | ids | summary |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
