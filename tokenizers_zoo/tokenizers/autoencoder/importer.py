"""Published 4M tokenizers as checkpoints of ours, and back.

The checkpoint's config.json keeps the published configuration under ORIGIN, including keys that our model ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import CONFIG, ORIGIN, checkpoint_errors, load_checkpoint, save_checkpoint
from tokenizers_zoo.files.published import EXTRA_METADATA, PLAIN_METADATA, PublishedCheckpoint
from tokenizers_zoo.records.config import Origin, Settings
from tokenizers_zoo.records.io import REMEDY
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig
from tokenizers_zoo.tokenizers.autoencoder.model import DENOISER
from tokenizers_zoo.tokenizers.autoencoder.tokenizer import build_autoencoder
from tokenizers_zoo.tokenizers.ml4m.architecture import DIFFUSION, PLAIN, Architecture, read_architecture
from tokenizers_zoo.tokenizers.ml4m.tensors import from_published, tensor_mappings, to_published
from tokenizers_zoo.tokenizers.nn.config import BlockConfig


class NotThisKind(CheckpointError):
    """A published tokenizer of other values than the modality's."""


def difference(model: AutoencoderConfig, channels: tuple[int, ...] | None, architecture: Architecture) -> str | None:
    """Return why a published tokenizer does not fit values of `model`, or None; `channels` are those it may have."""
    pictures = all(isinstance(part, BlockConfig | None) for part in (architecture.encoder, architecture.decoder))
    if pictures != bool(model.patch):
        return "it is of pictures, and values here are vectors" if pictures else "it is an MLP, for vectors"
    if (model.kind == "classes") != bool(architecture.classes):
        if model.kind == "classes":
            return "it is of numbers, and values here are class ids"
        return "it is of classes, and values here are numbers"
    if architecture.classes and architecture.unet is not None:
        return "its decoder draws pictures, and values here are class ids"
    if channels is not None and not architecture.classes and architecture.channels not in channels:
        return f"it has {architecture.channels} channels, expected {' or '.join(map(str, channels))}"
    return None


def import_tokenizer(
    modality: Any, published: PublishedCheckpoint, out_dir: Path, settings: Settings
) -> dict[str, Any]:
    """Write a published tokenizer as a checkpoint of a `families.base.TrainedModality`; return the settings for it.

    Raises CheckpointError if it is not a tokenizer of such values, or tensors and configuration do not fit; nothing is
    written then.
    """

    def mismatch(reason: str) -> NotThisKind:
        name = settings.name
        return NotThisKind(f"{published.path}: is no tokenizer of {name}: {reason}; import it as another modality")

    architecture, options = read_architecture(published), modality.options(settings)
    if reason := difference(modality.model_config(options), None, architecture):
        raise mismatch(reason)
    field_names = {field.name for field in fields(options.tokenizer)} | {"diffusion"}
    tokenizer = {key: value for key, value in architecture.tokenizer_table.items() if key in field_names}
    fixed_settings = {key: settings[key] for key in modality.published_choices if key in settings}
    table = {**modality.published_settings(architecture, options), **fixed_settings, "tokenizer": tokenizer}
    new_values = {key: value for key, value in settings.items() if key != "preset"} | table
    tables = {"shared": settings.shared, "vocabularies": settings.vocabularies}
    new_settings = modality.importing(
        Settings(settings.name, new_values, **tables, origin=Origin(table=settings.origin.table))
    )
    try:
        options = modality.options(new_settings)
        model = modality.model_config(options)
        reason = difference(model, modality.published_channels or (model.channels,), architecture)
        if reason := reason or modality.published_difference(architecture, options):
            raise mismatch(reason)
        codec = modality.codec(new_settings)
    except ConfigError as error:
        raise mismatch(f"it would need {error}") from None
    diffusion = codec.diffusion
    encoder, decoder = architecture.encoder, architecture.decoder
    model = replace(
        codec.model,
        channels=architecture.classes or architecture.channels,
        encoder=encoder,
        decoder=decoder if decoder != encoder else None,
        plain_decoder=decoder is not None,
        inputs="published",
        **({"class_channels": architecture.channels} if architecture.classes else {}),
    )
    with checkpoint_errors(published.path), torch.device("meta"):
        module = build_autoencoder(model, diffusion)
    state = module.state_dict()
    mean, std = modality.published_scale
    tensors = {name: torch.tensor(x).expand(state[name].shape) for name, x in (("mean", mean), ("std", std))}
    tensors |= {f"fitted_{name}": torch.from_numpy(array) for name, array in modality.published_fitted(options).items()}
    if model.directions:
        tensors["length"] = torch.ones(())
    description = {**codec.describe(), "model": as_dicts(model)}
    if diffusion is not None:
        description["diffusion"] = diffusion.trained_settings()
        tensors[f"{DENOISER}scale"] = torch.ones(()).expand(model.channels, 1, 1)
        tensors[f"{DENOISER}hidden_code"] = torch.zeros(architecture.latent_dim, 1, 1)
    if architecture.quantizer.distance == "cosine":  # the EMA sums that these codes would come from
        rows = architecture.quantizer.codebook_size, architecture.latent_dim
        codes = published.tensor("quantize._codebook.embed", *rows)
        tensors["quantizer.adapter.vq._codebook.embed_avg"] = codes[None].clone()
    tensors = from_published(published, tensor_mappings(architecture), state, tensors)
    cls = DIFFUSION if architecture.unet is not None else PLAIN
    origin = {"class": cls, "config": dict(published.config), "same_as": dict(published.same_as)}
    origin |= published.extra_metadata()
    card = f"# {settings.name}\n\nImported from a published {cls} of 4M (github.com/apple/ml-4m).\n"
    save_checkpoint(out_dir, tensors, {**description, ORIGIN: origin}, card)
    return table


def export_tokenizer(checkpoint: Path, checkpoint_class: str) -> PublishedCheckpoint:
    """Return an imported tokenizer as it was published. Raises CheckpointError for a tokenizer trained here."""
    tensors, config = load_checkpoint(checkpoint, checkpoint_class)
    origin: Mapping[str, Any] | None = config.get(ORIGIN)
    if origin is None:
        raise CheckpointError(f"{checkpoint}: was trained here; only imported tokenizers can be exported")
    if not isinstance(origin.get("class"), str):  # no field of a record can have this name
        raise CheckpointError(f"{checkpoint / CONFIG}: damaged: {ORIGIN}.class: expected str; {REMEDY}")
    config_with_class = {**origin["config"], "class": origin["class"]}
    architecture = read_architecture(PublishedCheckpoint(config=config_with_class, tensors={}, path=str(checkpoint)))
    return PublishedCheckpoint(
        config=origin["config"],
        tensors=to_published(tensors, tensor_mappings(architecture)),
        same_as=origin["same_as"],
        metadata=origin.get(EXTRA_METADATA, PLAIN_METADATA),
        path=str(checkpoint),
    )
