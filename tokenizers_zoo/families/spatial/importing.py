"""Published tokenizers of image-like values as checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.published import NotThisKind, settings_of, write_imported
from tokenizers_zoo.families.spatial.diffusion import DiffusionVQ
from tokenizers_zoo.families.spatial.model import DENOISER, SpatialVQ
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.ml4m.architecture import Architecture, read_architecture
from tokenizers_zoo.nn import BlockConfig

if TYPE_CHECKING:
    from tokenizers_zoo.families.spatial.modality import SpatialModality


def import_tokenizer(
    modality: SpatialModality, published: PublishedCheckpoint, out_dir: Path, settings: Settings
) -> Mapping[str, Any]:
    """Write a VQVAE or DiVAE as a checkpoint of `modality`, and give the settings that take it. CheckpointError."""
    architecture = read_architecture(published)
    if reason := difference(modality, architecture):
        raise NotThisKind.because(published, settings, reason)
    table = modality.published_settings(architecture, modality.options(settings))
    tokenizer = {**architecture.quantizer_table, "blocks": "vit", **architecture.block_table}
    if architecture.unet is not None:
        tokenizer["diffusion"] = architecture.diffusion_table
    fresh = settings_of(published, settings, modality.settings_class, {**table, "tokenizer": tokenizer})
    options = modality.options(fresh)
    if options.patch_size != architecture.patch_size:
        reason = f"its patches are of {architecture.patch_size} cells, and those here of {options.patch_size}"
        raise NotThisKind.because(published, settings, reason)
    encoder, decoder = architecture.encoder, architecture.decoder
    assert isinstance(encoder, BlockConfig) and isinstance(decoder, BlockConfig | None)
    channels = architecture.classes or architecture.channels
    model = replace(
        modality.model_config(options),
        channels=channels,
        blocks=encoder,
        decoder=decoder if decoder != encoder else None,
        plain_decoder=decoder is not None,
        inputs="published",
    )
    if architecture.classes:
        model = replace(model, class_channels=architecture.channels)
    mean, std = modality.published_scale
    given = {"mean": torch.full((channels, 1, 1), mean), "std": torch.full((channels, 1, 1), std)}
    description = {**modality.describe(fresh), "model": recorded(model)}
    diffusion = options.tokenizer.diffusion
    with torch.device("meta"):
        module = SpatialVQ(model) if diffusion is None else DiffusionVQ(model, diffusion, modality.kind)
    if diffusion is not None:
        given[f"{DENOISER}scale"] = torch.ones(channels, 1, 1)
        given[f"{DENOISER}hidden_code"] = torch.zeros(architecture.latent_dim, 1, 1)
        description["diffusion"] = diffusion.trained()
    write_imported(published, architecture, module, given, description, out_dir)
    return {**table, "tokenizer": tokenizer}


def difference(modality: SpatialModality, architecture: Architecture) -> str | None:
    """In what a published tokenizer is of other values than the modality's; None where it is not."""
    parts = (architecture.encoder, architecture.decoder)
    if not all(isinstance(part, BlockConfig | None) for part in parts):
        return "it is an MLP, for vectors"
    if modality.kind == "classes" and not architecture.classes:
        return "it is of numbers, and values here are class ids"
    if modality.kind != "classes" and architecture.classes:
        return f"it is of {architecture.classes} classes, and values here are numbers"
    if architecture.classes and architecture.unet is not None:
        return "its decoder draws pictures, and values here are class ids"
    if architecture.classes or architecture.channels in modality.published_channels:
        return None
    expected = " or ".join(map(str, modality.published_channels))
    return f"it has {architecture.channels} channels, expected {expected}"
