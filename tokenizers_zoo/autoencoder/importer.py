"""Published 4M tokenizers as checkpoints of ours, and back.

The checkpoint's config.json keeps the published configuration under ORIGIN, including keys that our model ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizers_zoo.autoencoder.config import AutoencoderConfig, DiffusionConfig, TokenizerSetup
from tokenizers_zoo.autoencoder.model import DENOISER
from tokenizers_zoo.autoencoder.tokenizer import build_autoencoder
from tokenizers_zoo.checkpoint import ORIGIN, load_checkpoint, save_checkpoint
from tokenizers_zoo.config import recorded
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.ml4m.architecture import DIFFUSION, PLAIN, Architecture, read_architecture
from tokenizers_zoo.ml4m.source import PLAIN_METADATA, SAID
from tokenizers_zoo.ml4m.tensors import places, to_own, to_published
from tokenizers_zoo.nn.config import BlockConfig


class NotThisKind(CheckpointError):
    """A published tokenizer of other values than the modality's."""


def difference(model: AutoencoderConfig, channels: tuple[int, ...] | None, architecture: Architecture) -> str | None:
    """Return why a published tokenizer does not fit values of `model`, or None; `channels` are those it may have."""
    pictures = all(isinstance(part, BlockConfig | None) for part in (architecture.encoder, architecture.decoder))
    if pictures != bool(model.patch):
        return "it is of pictures, and values here are vectors" if pictures else "it is an MLP, for vectors"
    if (model.kind == "classes") != bool(architecture.classes):
        here, there = ("class ids", "numbers") if model.kind == "classes" else ("numbers", "classes")
        return f"it is of {there}, and values here are {here}"
    if architecture.classes and architecture.unet is not None:
        return "its decoder draws pictures, and values here are class ids"
    if channels is not None and not architecture.classes and architecture.channels not in channels:
        return f"it has {architecture.channels} channels, expected {' or '.join(map(str, channels))}"
    return None


def import_tokenizer(
    published: PublishedCheckpoint,
    architecture: Architecture,
    setup: TokenizerSetup,
    diffusion: DiffusionConfig | None,
    scale: tuple[float, float],
    fitted: Mapping[str, NDArray[np.float64]],
    out_dir: Path,
) -> None:
    """Write the checkpoint of a published tokenizer.

    `scale` is the mean and deviation of its inputs, `fitted` the statistics that training would have computed. Raises
    CheckpointError if tensors and configuration do not fit; nothing is written then.
    """
    encoder, decoder = architecture.encoder, architecture.decoder
    model = replace(
        setup.model,
        channels=architecture.classes or architecture.channels,
        encoder=encoder,
        decoder=decoder if decoder != encoder else None,
        plain_decoder=decoder is not None,
        inputs="published",
    )
    if architecture.classes:
        model = replace(model, class_channels=architecture.channels)
    with torch.device("meta"):
        module = build_autoencoder(model, diffusion)
    state = module.state_dict()
    own = {name: torch.full(state[name].shape, number) for name, number in zip(("mean", "std"), scale, strict=True)}
    own |= {f"fitted_{name}": torch.from_numpy(array) for name, array in fitted.items()}
    if model.directions:
        own["length"] = torch.ones(())
    description = {**setup.describe(), "model": recorded(model)}
    if diffusion is not None:
        description["diffusion"] = diffusion.trained()
        own[f"{DENOISER}scale"] = torch.ones(model.channels, 1, 1)
        own[f"{DENOISER}hidden_code"] = torch.zeros(architecture.latent_dim, 1, 1)
    if architecture.quantizer.distance == "cosine":  # the EMA sums that these codes would come from
        rows = architecture.quantizer.codebook_size, architecture.latent_dim
        codes = published.tensor("quantize._codebook.embed", *rows)
        own["quantizer.adapter.vq._codebook.embed_avg"] = codes[None].clone()
    tensors = to_own(published, places(architecture), state, own)
    cls = DIFFUSION if architecture.unet is not None else PLAIN
    origin = {"class": cls, "config": dict(published.config), "same_as": dict(published.same_as), **published.said()}
    card = f"# {setup.spec.name}\n\nImported from a published {cls} of 4M (github.com/apple/ml-4m).\n"
    save_checkpoint(out_dir, tensors, {**description, ORIGIN: origin}, card)


def export_tokenizer(checkpoint: Path, checkpoint_class: str) -> PublishedCheckpoint:
    """Return an imported tokenizer as it was published. Raises CheckpointError for a tokenizer trained here."""
    tensors, config = load_checkpoint(checkpoint, checkpoint_class)
    if ORIGIN not in config:
        raise CheckpointError(f"{checkpoint}: was trained here; only imported tokenizers can be exported")
    origin: Mapping[str, Any] = config[ORIGIN]
    named = {**origin["config"], "class": origin["class"]}
    architecture = read_architecture(PublishedCheckpoint(config=named, tensors={}, place=str(checkpoint)))
    return PublishedCheckpoint(
        config=origin["config"],
        tensors=to_published(tensors, places(architecture)),
        same_as=origin["same_as"],
        metadata=origin.get(SAID, PLAIN_METADATA),
        place=str(checkpoint),
    )
