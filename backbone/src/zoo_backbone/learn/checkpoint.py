"""Backbones on disk, as models and as starts: tensors are named by table and modality, so that a registry may grow.

model.safetensors has `tokens.<table>`, `output.<table>`, `modalities.<name>`, `masks.<name>`, `positions.<name>`
(learned ones), `projections.<name>.*` (continuous inputs) and the tensors of the Transformer; published models have a
few more (see `ml4m.model.PublishedFourM`). A table is a vocabulary. config.json is a `BackboneRecord` with its
"class". "ml4m" in config.json and tensors `ml4m.*` serve the export of an imported backbone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError, ConfigError, count_of
from tokenizers_zoo.files.checkpoint import (
    card_row,
    check_sizes,
    checkpoint_errors,
    config_record,
    load_record,
    loading,
    save_checkpoint,
)
from tokenizers_zoo.records.config import from_mapping
from tokenizers_zoo.records.io import difference
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.tokenizers.text_vocab import Special, TextVocabulary
from zoo_backbone.learn.optim import TOKEN_TABLE
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM, check_handle
from zoo_backbone.model.published import PublishedFourM
from zoo_backbone.model.run import BackboneRecord, Start

CLASS = "FourM"
ARCHITECTURES: dict[str, type[FourM]] = {"FourM": FourM, "PublishedFourM": PublishedFourM}
PUBLISHED = "ml4m"
"""Key in config.json, and prefix of tensors, for the export of an imported backbone."""
REPLAY_MIXTURES = "asked"
"""Key in config.json: the mixtures that a grown backbone uses when it grows again. Its own training mostly had new
modalities as targets."""
LEARNED = "learned_positions."


def backbone_config(folder: Path) -> BackboneRecord:
    """Return the config.json of a backbone. Raises CheckpointError."""
    return config_record(folder, CLASS, BackboneRecord)


def model_config(config: BackboneRecord) -> ModelConfig:
    """Return the model's config in the config.json of a backbone."""
    return from_mapping(ARCHITECTURES[config.architecture].config_class, config.model)


def architecture_for(config: ModelConfig) -> type[FourM]:
    """Return the model class that has this kind of config."""
    return next(model for model in ARCHITECTURES.values() if model.config_class is type(config))


def layout_for(config: ModelConfig, specs: Sequence[ModalitySpec]) -> EmbeddingLayout:
    """Return the embedding layout of a backbone with this config."""
    return architecture_for(config).layout_class(specs, config)


def model_tensors(model: FourM, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a state dict of `model`, by default its own, by their names on disk.

    Tables are split by vocabulary and modality.
    """
    layout, stored_positions = model.layout, model.layout.positions_of("stored")
    named: dict[str, Tensor] = {}
    for key, tensor in (model.state_dict() if state is None else state).items():
        if prefix := model.table_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[rows] for name, rows in layout.token_tables.items()}
        elif prefix := model.modality_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[index] for index, name in enumerate(layout.names)}
        elif prefix := model.stored_rows.get(key):
            named |= {f"{prefix}.{name}": tensor[rows] for name, rows in stored_positions.items()}
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
    extra_tensors: Mapping[str, Tensor] | None = None,
) -> str:
    """Write a backbone atomically and return its fingerprint.

    `extra` is added to config.json. `state` has the (gathered) tensors of a model whose parameters are sharded; tensors
    of `extra_tensors` are written as they are.
    """
    config = {**stored_config(model.config, model.layout.specs), **(extra or {})}
    tensors = {**model_tensors(model, state), **(extra_tensors or {})}
    return save_checkpoint(folder, tensors, config, model_card(model))


def stored_config(config: ModelConfig, specs: Sequence[ModalitySpec]) -> dict[str, Any]:
    """Return the config.json of a backbone."""
    return {
        "class": CLASS,
        "architecture": architecture_for(config).__name__,
        "model": as_dicts(config),
        "specs": as_dicts(list(specs)),
    }


def load_model(
    folder: Path, specs: Sequence[ModalitySpec] | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> FourM:
    """Load the backbone in a folder, for its own modalities or for `specs`.

    Modalities and vocabularies are matched by name. Stored rows keep their values, so that the outputs of stored
    modalities are bit-identical; other rows are initialised from `seed`; stored modalities that are not in `specs` are
    skipped. A longer sequence keeps its trained positions and gets new ones. A grid of another shape gets the positions
    of that shape. Raises CheckpointError if the tokens of a modality have changed meaning.
    """
    return _load(Path(folder), specs, device, seed)[0]


def _load(
    folder: Path, specs: Sequence[ModalitySpec] | None, device: torch.device | str, seed: int
) -> tuple[FourM, dict[str, Tensor], dict[str, Tensor]]:
    """Return a loaded model, the rows that were loaded by entry of its state dict, and all stored tensors."""
    tensors, config = load_record(folder, CLASS, BackboneRecord)
    with checkpoint_errors(folder):
        checkpoint_specs, shape = config.specs, model_config(config)
    with loading():
        check_sizes(folder, tensors, lambda: model_tensors(architecture_for(shape)(shape, checkpoint_specs)))
        may_grow, specs = specs is not None, checkpoint_specs if specs is None else specs
        old = {spec.name: spec for spec in checkpoint_specs}
        for spec in specs:
            if spec.name in old and (mismatch := _changed_meaning(old[spec.name], spec)):
                remedy = "give it another name, or use the registry of the backbone's training"
                reason = f"{spec.name} is not the modality of its training: its {mismatch}"
                raise CheckpointError(f"{folder}: {reason}; {remedy}")
        lengths = {spec.name: spec.layout.length for spec in checkpoint_specs} | dict(shape.position_lengths)
        changed_lengths = {
            spec.name: lengths[spec.name]
            for spec in specs
            if spec.layout.variable and lengths.get(spec.name, spec.layout.length) != spec.layout.length
        }
        shape = dataclasses.replace(shape, position_lengths=changed_lengths)
        model = architecture_for(shape).seeded(shape, specs, seed)
        sizes = {name: len(tensor) if tensor.ndim else 1 for name, tensor in model.state_dict().items()}
        loaded_rows = {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
        rows, growing = model_tensors(model, loaded_rows), model.vocabulary_prefixes
        with torch.no_grad():
            for name, target in model_tensors(model).items():  # parts of the model, to be written to
                source = tensors.get(name)
                grows = may_grow and name.startswith(growing)
                if source is None:  # of a new modality
                    continue
                if source.shape[grows:] != target.shape[grows:] or (grows and len(source) > len(target)):
                    raise CheckpointError(f"{folder}: {name} is {tuple(source.shape)}, expected {tuple(target.shape)}")
                (target[: len(source)] if grows else target).copy_(source)
                (rows[name][: len(source)] if grows else rows[name]).fill_(True)
        model.record = config
        return model.to(device), loaded_rows, tensors


def _changed_meaning(old: ModalitySpec, new: ModalitySpec) -> str:
    """Return how the meaning of a modality's ids has changed, or ""; its size may change."""

    def meaning(spec: ModalitySpec) -> dict[str, Any]:
        return {"layout": spec.layout.kind, "vocabulary": spec.vocabulary, **spec.layout.meaning}

    mismatch = difference(meaning(old), meaning(new))
    if not mismatch and old.vocab_size > new.vocab_size:
        mismatch = f"vocabulary had {old.vocab_size} ids and has {new.vocab_size}; a vocabulary only grows"
    return mismatch


def model_card(model: FourM) -> str:
    """Return README.md of a backbone."""
    rows = [
        card_row(
            spec.name,
            f"{spec.layout.kind} of {spec.layout.length}",
            spec.vocabulary if spec.vocab_size else "-",
            spec.vocab_size or "-",
            spec.summary,
        )
        for spec in model.layout.specs
    ]
    config, millions = model.config, model.transformer_parameters() / 1e6
    return f"""# A 4M backbone over {count_of(len(rows), "modality", "modalities")}

Any-to-any masked modelling (arXiv 2312.06647): one encoder-decoder Transformer, dim {config.dim}, depth
{config.encoder_depth}/{config.decoder_depth}, {config.heads} heads, {millions:.1f} M parameters without embeddings.

```python
from zoo_backbone import AnyToAny

model = AnyToAny.from_pretrained("this folder")
```

| modality | tokens | vocabulary | ids | summary |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


# --- the initial model of a run: a new one, or a trained backbone with rows for new modalities


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """The initial model of a run."""

    model: FourM
    pretrained_rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows (bool `rows`) that the start backbone has, by parameter or buffer."""
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows of vocabulary ids that have no meaning yet."""
    record: Start | None = None
    """Record of the start backbone for config.json; None for a new model."""
    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of an imported backbone that are not part of the model."""
    reshaped: tuple[str, ...] = ()
    """Known grids whose shape, and so positions, have changed."""
    without_rows: tuple[ModalitySpec, ...] = ()
    """Added modalities that only use known ids of a shared vocabulary."""

    def seed(self, seed: int) -> int:
        """Return the seed of samples and masks.

        With a start backbone, it differs from `seed`: otherwise the samples of its training would come again in the
        same order.
        """
        return (seed + int(self.record.weights_sha256[:15], 16)) % 2**63 if self.record else seed


def initial_model(
    specs: Sequence[ModalitySpec],
    config: ModelConfig,
    seed: int,
    start: Path | None,
    ids: Mapping[str, int] | None = None,
) -> InitialModel:
    """Return a new model, or one with the weights of the backbone `start`.

    `ids` are the results of `ids_in_use`; by default the start backbone knows all ids of its vocabularies. Raises
    CheckpointError, and ConfigError if its shape differs from `config`.
    """
    if start is None:
        return InitialModel(model=architecture_for(config).seeded(config, specs, seed))
    model, pretrained_rows, tensors = _load(start, specs, "cpu", seed)
    start_record = model.record
    assert start_record is not None
    config = dataclasses.replace(config, position_lengths=model.config.position_lengths)
    if mismatch := difference(dataclasses.asdict(model.config), dataclasses.asdict(config)):
        raise ConfigError(f"{start}: cannot be the start of a model of another shape: {mismatch}")
    ids, trained = ids or {}, start_record.specs
    old = {spec.name: spec for spec in trained}
    added = [spec for spec in specs if spec.name not in old]
    used = _ids_by_table(model, trained, ids)
    in_use = _ids_by_table(model, [*trained, *added], ids)
    extra_tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{PUBLISHED}.")}
    unused = {name: torch.zeros_like(rows) for name, rows in pretrained_rows.items()}
    for side, counts, mark in ((pretrained_rows, used, False), (unused, in_use, True)):
        for name, rows in model_tensors(model, side).items():  # parts of those, to be written to
            if name.startswith(model.vocabulary_prefixes):
                rows[counts.get(name.partition(".")[2], 0) :] = mark
    with torch.no_grad():  # new modality embeddings and mask tokens are the mean of the known ones
        for name, table in model.named_parameters():
            if name in model.modality_rows and pretrained_rows[name].any():
                table[~pretrained_rows[name]] = table[pretrained_rows[name]].mean(0)
    record = Start(
        folder=str(Path(start).resolve()),
        weights_sha256=start_record.weights_sha256,
        knows=tuple(spec.name for spec in specs if spec.name in old),
        added=tuple(spec.name for spec in added),
    )
    shapes = {spec.name: spec.grid_shape for spec in trained}
    return InitialModel(
        model=model,
        pretrained_rows=pretrained_rows,
        unused=unused,
        record=record,
        extra_tensors=extra_tensors,
        reshaped=tuple(spec.name for spec in specs if shapes.get(spec.name, ()) not in ((), spec.grid_shape)),
        without_rows=tuple(
            spec for spec in added if spec.name in ids and ids[spec.name] <= used.get(model.layout.table_of(spec), -1)
        ),
    )


def _ids_by_table(model: FourM, specs: Iterable[ModalitySpec], ids: Mapping[str, int]) -> dict[str, int]:
    """Return by token table the number of ids in use: from `ids`, or the vocabulary size."""
    counts: dict[str, int] = {}
    for spec in specs:
        table = model.layout.table_of(spec)
        counts[table] = max(counts.get(table, 0), ids.get(spec.name, spec.vocab_size))
    return counts


def check_meaning(start: Path, handles: Iterable[ModalityHandle]) -> None:
    """Raise DataError where the backbone in `start` was trained on ids that mean something else by now."""
    trained_on = backbone_config(start).fingerprints
    for handle in handles:
        check_handle(handle, trained_on.get(handle.name))


def ids_in_use(start: Path, handles: Iterable[ModalityHandle]) -> dict[str, int]:
    """Return the number of ids in use, counted from 0, by modality with a text vocabulary.

    For modalities of the backbone `start`, this is the length of the vocabulary in its training. If that is unknown,
    the length of another modality with the same vocabulary is used; otherwise the modality is left out. For added
    modalities, it is the last of their special tokens plus 1: all other text pieces exist from the beginning. Raises
    CheckpointError if a vocabulary is missing.
    """
    start_config = backbone_config(start)
    old = {spec.name: spec.vocabulary for spec in start_config.specs}
    trained_on = start_config.fingerprints
    text_handles = [handle for handle in handles if handle.writes_text]
    folders = {handle.spec.vocabulary: handle.files.vocabulary_folder() for handle in text_handles}
    vocabularies = {name: TextVocabulary.load(folder) for name, folder in folders.items()}
    counts, by_vocabulary = {}, dict[str, int]()
    for name, vocabulary in old.items():
        lengths = vocabularies[vocabulary].compatible_fingerprints if vocabulary in vocabularies else {}
        if trained_on.get(name) in lengths:
            counts[name] = lengths[trained_on[name]]
            by_vocabulary[vocabulary] = max(by_vocabulary.get(vocabulary, 0), counts[name])
    counts = {name: by_vocabulary[table] for name, table in old.items() if table in by_vocabulary} | counts
    for handle in text_handles:
        if handle.name not in old:
            shared = vocabularies[handle.spec.vocabulary]
            specials = [Special(token) for token in handle.vocabulary_tokens() if token in shared.all_special_tokens]
            counts[handle.name] = max(shared.encode(specials), default=-1) + 1
    return counts


def freeze(initial: InitialModel) -> dict[str, Tensor]:
    """Exclude known parameters from training; return the frozen rows of partly known parameters.

    Rows of ids without a meaning are frozen, too. Raises ConfigError if nothing or everything is known, if an added
    modality has no rows of its own, or if a known grid has other positions now.
    """
    if initial.reshaped:
        expected = f"{initial.reshaped[0]} to be a grid of the shape that it was trained with"
        raise ConfigError(f"freeze: expected {expected}; set that shape, or leave freeze out")
    for spec in initial.without_rows:
        reason = f"writes in the vocabulary {spec.vocabulary}, whose rows stay: it has nothing to train"
        raise ConfigError(f"freeze: {spec.name} {reason}; leave freeze out")
    frozen_rows, has_new_rows = {}, False
    for name, parameter in initial.model.named_parameters():
        pretrained_rows = initial.pretrained_rows.get(name, torch.zeros(1, dtype=torch.bool))
        if not pretrained_rows.all():
            has_new_rows = True
        elif name != TOKEN_TABLE:
            parameter.requires_grad_(False)
            continue
        if pretrained_rows.any():
            frozen_rows[name] = pretrained_rows | initial.unused[name]
    if initial.record is None or not has_new_rows:
        missing = "a backbone to start from" if initial.record is None else "a modality that it starts without"
        raise ConfigError(f"freeze: expected {missing}, so that some rows are new and the others are kept")
    return frozen_rows
