"""Published tokenizers of vectors as checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.published import NotThisKind, settings_of, write_imported
from tokenizers_zoo.families.vectors.model import VectorVQ
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.ml4m.architecture import read_architecture
from tokenizers_zoo.nn import MlpConfig

if TYPE_CHECKING:
    from tokenizers_zoo.families.vectors.modality import VectorModality


def import_tokenizer(
    modality: VectorModality, published: PublishedCheckpoint, out_dir: Path, settings: Settings
) -> Mapping[str, Any]:
    """Write a VQVAE of MLPs as a checkpoint of `modality`, and give the settings that take it. CheckpointError.

    Vectors go in as they are. Nothing says how long they are on average: after a cosine loss they come out at length 1.
    """
    architecture = read_architecture(published)
    encoder, decoder = architecture.encoder, architecture.decoder
    if not isinstance(encoder, MlpConfig) or not isinstance(decoder, MlpConfig) or architecture.classes:
        raise NotThisKind.because(published, settings, "it is of pictures, and values here are vectors")
    tokenizer = {**architecture.quantizer_table, **architecture.block_table}
    table = {**modality.published_settings(architecture), "tokenizer": tokenizer}
    fresh = settings_of(published, settings, modality.settings_class, table)
    wanted = modality.model_config(modality.options(fresh))
    if architecture.channels != wanted.dim:
        reason = f"it is of vectors of {architecture.channels} numbers, expected {wanted.dim}"
        raise NotThisKind.because(published, settings, reason)
    model = replace(
        wanted,
        expansion=encoder.expansion,
        final_norm=False,
        latent_map=True,
        decoder=decoder if decoder != encoder else None,
    )
    given = {"mean": torch.zeros(model.dim), "std": torch.ones(model.dim), "length": torch.ones(())}
    with torch.device("meta"):
        module = VectorVQ(model)
    description = {**modality.describe(fresh), "model": recorded(model)}
    write_imported(published, architecture, module, given, description, out_dir)
    return table
