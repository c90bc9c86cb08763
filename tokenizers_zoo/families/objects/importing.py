"""Published tokenizers of what objects look like as checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.objects.model import ObjectVQ
from tokenizers_zoo.families.published import NotThisKind, settings_of, write_imported
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.ml4m.architecture import read_architecture
from tokenizers_zoo.nn import BlockConfig

if TYPE_CHECKING:
    from tokenizers_zoo.families.objects.modality import ObjectModality


def import_tokenizer(
    modality: ObjectModality, published: PublishedCheckpoint, out_dir: Path, settings: Settings
) -> Mapping[str, Any]:
    """Write a VQVAE as a checkpoint of `modality`, and give the settings that take it. Raises CheckpointError.

    Items go in as they are, and what training would have fitted to them is `published_fitted`. A `layout` that the
    settings say stays; else it is the published one.
    """
    architecture = read_architecture(published)
    encoder, decoder = architecture.encoder, architecture.decoder
    picture = isinstance(encoder, BlockConfig)
    if architecture.classes or decoder is None or isinstance(decoder, BlockConfig) != picture:
        raise NotThisKind.because(published, settings, "its decoder gives no such items")
    shape = (architecture.channels, *architecture.size) if picture else (architecture.channels,)
    tokenizer = {**architecture.quantizer_table, "blocks": "vit" if picture else "mlp", **architecture.block_table}
    if picture:
        tokenizer["patch_size"] = architecture.patch_size
    chosen = {key: settings[key] for key in ("layout",) if key in settings}
    table = {**modality.published_settings(architecture), **chosen, "tokenizer": tokenizer}
    fresh = settings_of(published, settings, modality.settings_class, table)
    options = modality.options(fresh)
    if shape != modality.item_shape(options):
        reason = f"it is of {' x '.join(map(str, shape))} numbers, expected {modality.item_shape(options)}"
        raise NotThisKind.because(published, settings, reason)
    model = replace(modality.model_config(fresh), blocks=encoder, decoder=decoder if decoder != encoder else None)
    with torch.device("meta"):
        module = ObjectVQ(model)
    given = {"mean": torch.zeros(shape), "scale": torch.ones(())}
    for name, array in modality.published_fitted(options).items():
        given[f"fitted_{name}"] = torch.from_numpy(array)
    description = {**modality.describe(fresh), "model": recorded(model)}
    write_imported(published, architecture, module, given, description, out_dir)
    return table
