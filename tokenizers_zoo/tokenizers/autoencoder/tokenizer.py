"""Encode and decode batches with a trained autoencoder, and load it from a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tokenizers_zoo.errors import CheckpointError, InvalidValueError
from tokenizers_zoo.files.checkpoint import CheckpointRecord, check_sizes, checkpoint_errors, load_record
from tokenizers_zoo.records.config import Origin, from_mapping
from tokenizers_zoo.records.io import as_json
from tokenizers_zoo.tokenizers.autoencoder.codec import ValueCodec
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig, DiffusionConfig
from tokenizers_zoo.tokenizers.autoencoder.model import DENOISER, Autoencoder, NoDecoder
from tokenizers_zoo.tokenizers.nn.layers import FunctionModule

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

CHUNK_NUMBERS = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Input or output elements of one chunk, per device."""
CHUNK_ITEMS = {"cpu": 64, "cuda": 256}
"""Largest chunk, per device."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecord(CheckpointRecord):
    """config.json."""

    model: Mapping[str, Any]
    meaning: Mapping[str, Any]
    """Settings that the meaning of tokens depends on."""
    diffusion: Mapping[str, Any] | None = None
    base: str | None = None
    """Fingerprint of the tokenizer whose encoder is used."""


class AutoencoderTokenizer:
    """Encode and decode batches of values in float32.

    The model always runs on chunks of the same size, the last one padded, because kernels for other batch sizes round
    differently and could change the token of a latent at the border between two codes. So tokens and decoded values
    never depend on the rest of the batch.
    """

    def __init__(self, codec: ValueCodec, module: Autoencoder, device: str = "cpu") -> None:
        self.codec, self.device = codec, device
        self.module = module.to(device).eval()

    def encode(self, values: Tensor) -> Int[Tensor, "batch *grid_codes"]:
        """Return int64 tokens on the device of `values`."""
        return self._chunks(
            lambda chunk: self.module.encode(self.codec.to_network(chunk)), values, math.prod(values.shape[1:])
        )

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Tensor:
        """Return values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        return self._decode_chunks(self.module.decode, tokens)

    def decode_plain(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Tensor:
        """Return values of the plain decoder, which averages details that the diffusion decoder samples."""
        return self._decode_chunks(self.module.decode_plain, tokens)

    def networks(self) -> dict[str, nn.Module]:
        """Return encoder (values to tokens) and plain decoder (tokens to values) as modules without chunks, for export.

        There is no decoder if the tokenizer has a diffusion decoder only.
        """
        codec = self.codec
        encoder, decoder = (_without(self.module, name, DENOISER[:-1]) for name in ("decoder", "encoder"))
        networks: dict[str, nn.Module] = {
            "encoder": FunctionModule(lambda values: encoder.encode(codec.to_network(values)), encoder)
        }
        if not isinstance(self.module.decoder, NoDecoder):
            networks["decoder"] = FunctionModule(
                lambda tokens: codec.from_network(decoder.decode_plain(tokens)), decoder
            )
        return networks

    def _decode_chunks(self, decode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        config = self.module.config
        positions = tokens[0].numel() // config.quantizer.codes_per_position if len(tokens) else 1
        numbers = positions * math.prod(config.patch) * (1 if config.kind == "classes" else config.channels)
        return self._chunks(lambda chunk: self.codec.from_network(decode(chunk)), tokens, numbers)

    def _chunks(self, function: Callable[[Tensor], Tensor], batch: Tensor, numbers: int) -> Tensor:
        """Return the results for chunks of equal size, the last padded with its last row.

        A sample has `numbers` elements. Raises InvalidValueError for an empty batch.
        """
        if not len(batch):
            raise InvalidValueError("encode and decode need at least one sample")
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        size = max(1, min(CHUNK_ITEMS[kind], CHUNK_NUMBERS[kind] // max(1, numbers)))
        results = []
        for chunk in batch.split(size):
            padded = torch.cat([chunk, chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])])
            with torch.inference_mode():
                results.append(function(padded.to(self.device))[: len(chunk)].to(batch.device))
        return torch.cat(results)


def _without(module: Autoencoder, *names: str) -> Autoencoder:
    """Return a module with the same weights, without these parts."""
    part = copy.copy(module)
    part._modules = {name: child for name, child in module._modules.items() if name not in names}
    return part


def load_autoencoder(folder: Path, codec: ValueCodec, diffusion: DiffusionConfig | None = None) -> Autoencoder:
    """Load a checkpoint folder, with its diffusion decoder where `diffusion` is given.

    Encoder and decoder have the checkpoint's sizes. Raises CheckpointError if it is damaged, or if its tokens have
    another meaning than the settings require.
    """
    tensors, config = load_record(folder, codec.modality.checkpoint_class, AutoencoderRecord)
    name, expected_meaning = codec.spec.name, codec.describe()["meaning"]
    if diffusion is not None and config.diffusion is None:
        raise CheckpointError(
            f"{name}: the tokenizer at {folder} has no diffusion decoder, but"
            f" {codec.origin.at('diffusion')} asks for one; remove that, or train one (base = {folder})"
        )
    with checkpoint_errors(folder):
        model = from_mapping(AutoencoderConfig, config.model, Origin(table="model"))
        if diffusion is not None and config.diffusion is not None:
            # trained settings of the checkpoint, sampler settings of the registry
            table = {**config.diffusion, **diffusion.sampling_settings(), "base": config.base}
            diffusion = from_mapping(DiffusionConfig, table, Origin(table="diffusion"))
        check_sizes(folder, tensors, lambda: build_autoencoder(model, diffusion).state_dict())
        module = build_autoencoder(model, diffusion)
        if diffusion is None:
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(DENOISER)}
        module.load_state_dict(dict(tensors))
        checkpoint_meaning = as_json({**config.meaning, **_meaning(model)})
    for setting, expected in as_json({**expected_meaning, **_meaning(codec.model)}).items():
        actual = checkpoint_meaning.get(setting)
        if actual != expected and not (setting == "channels" and model.inputs == "published"):
            raise CheckpointError(
                f"{name}: the tokenizer at {folder} has {setting} {actual}, but {codec.settings.origin.at(setting)}"
                f" asks for {expected}; change the settings, or train another"
            )
    return module


def build_autoencoder(config: AutoencoderConfig, diffusion: DiffusionConfig | None = None) -> Autoencoder:
    """Return an untrained autoencoder, with a diffusion decoder where `diffusion` is given."""
    if diffusion is None:
        return Autoencoder(config)
    from tokenizers_zoo.tokenizers.autoencoder.diffusion import (
        DiffusionAutoencoder,  # diffusers takes seconds to import
    )

    return DiffusionAutoencoder(config, diffusion)


def _meaning(model: AutoencoderConfig) -> dict[str, Any]:
    """Return the part of an architecture that determines the meaning of tokens."""
    return {
        "patch_size": model.patch,
        "channels": model.channels,
        "kind": model.kind,
        **{f"quantizer {name}": value for name, value in model.quantizer.meaning().items()},
    }
