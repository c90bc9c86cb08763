"""The VQ autoencoder of image-like modalities, and the tokenizer that it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.families.chunks import chunk_size, in_chunks
from tokenizers_zoo.families.spatial.settings import SpatialModelConfig
from tokenizers_zoo.families.trained import check_meaning, fitting
from tokenizers_zoo.nn import build_decoder, build_encoder
from tokenizers_zoo.quantizers import build_quantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.spatial.modality import SpatialModality

DENOISER = "denoiser."
"""How the names of a diffusion decoder's tensors begin; all others are those of the autoencoder that it belongs to."""
CHUNK_PIXELS = {"cpu": 16 * 64 * 64, "cuda": 256 * 64 * 64}
"""Pixels that go through the model at once, per device; see `SpatialTokenizer`."""


class SpatialVQ(nn.Module):
    """Encoder, quantizer and decoder, with the channels' mean and deviation, or an embedding of the classes.

    Inputs are (batch, channels, height, width), or class ids (batch, height, width); outputs are standardised
    channels, or a logit per class.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SpatialModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.class_channels if config.classes else config.channels
        if config.classes:
            self.embedding = nn.Embedding(config.channels, config.class_channels)
        self.encoder = build_encoder(config.blocks, channels, config.latent_dim, config.patch_size)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.decoder: nn.Module = NoDecoder()
        if config.plain_decoder:
            blocks = config.decoder or config.blocks
            self.decoder = build_decoder(blocks, config.latent_dim, config.channels, config.patch_size)
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("std", torch.ones(config.channels, 1, 1))

    def forward(self, inputs: Tensor) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, ""]]:
        """Outputs after the quantizer, and its loss."""
        codes, loss = self.codes(inputs)
        return self.decoder(codes), loss

    def codes(self, inputs: Tensor) -> tuple[Float[Tensor, "batch dim h w"], Float[Tensor, ""]]:
        """What the decoder is given for inputs, with a gradient to the encoder, and the quantizer's loss."""
        quantized = self.quantizer(rearrange(self.latents(inputs), "b d h w -> b h w d"))
        return rearrange(quantized.codes, "b h w d -> b d h w"), quantized.loss

    def standardise(self, inputs: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Inputs at mean 0 and deviation 1."""
        return (inputs - self.mean) / self.std

    def unstandardise(self, outputs: Float[Tensor, "batch channels height width"]) -> Tensor:
        """The inverse of `standardise`."""
        return outputs * self.std + self.mean

    def latents(self, inputs: Tensor) -> Float[Tensor, "batch dim h w"]:
        """What the encoder makes of inputs."""
        if self.config.classes:
            return self.encoder(rearrange(self.embedding(inputs), "b h w c -> b c h w"))
        return self.encoder(self.standardise(inputs))

    def encode(self, inputs: Tensor) -> Int[Tensor, "batch h w *codes"]:
        """Tokens of inputs; several per latent are one more axis."""
        return self.quantizer.encode(rearrange(self.latents(inputs), "b d h w -> b h w d"))

    def decode(self, tokens: Int[Tensor, "batch h w *codes"]) -> Float[Tensor, "batch channels height width"]:
        """Outputs of tokens."""
        return self.decoder(self.codes_of(tokens))

    def codes_of(self, tokens: Int[Tensor, "batch h w *codes"]) -> Float[Tensor, "batch dim h w"]:
        """What the decoder is given for tokens."""
        return rearrange(self.quantizer.decode(tokens), "b h w d -> b d h w")


class NoDecoder(nn.Module):
    """In the place of a plain decoder that a tokenizer does not have."""

    def forward(self, codes: Tensor) -> Tensor:
        """Raises CheckpointError, always."""
        raise CheckpointError(
            "this tokenizer has a diffusion decoder only; give it a table tokenizer.diffusion, as the registry.toml of "
            "its import has"
        )


class SpatialTokenizer:
    """What encode and decode work with: values to tokens and back, in float32.

    The model always runs on chunks of one size, the last one filled up, because the kernels that libraries choose for
    another batch size round differently, and a latent on the border between two codes would then change its token.
    """

    def __init__(self, modality: SpatialModality, module: SpatialVQ, device: str = "cpu") -> None:
        self.modality, self.device = modality, device
        self.module = module.to(device).eval()

    @classmethod
    def load(cls, modality: SpatialModality, settings: Settings, folder: Path, device: str) -> SpatialTokenizer:
        """Load a checkpoint folder. Raises CheckpointError where it is damaged, or not what the settings ask for.

        The sizes of encoder and decoder are those of the checkpoint; its tokens, classes and channels have to be those
        of settings and plugin.
        """
        tensors, config = load_checkpoint(folder, modality.checkpoint_class)
        with fitting(folder):
            found = from_mapping(SpatialModelConfig, config["model"], Origin(table="model"))
            module = cls.restored(modality, settings, found, config, tensors)
        wanted = modality.model_config(modality.options(settings))
        meanings: dict[str, tuple[Any, Any]] = {
            "patch_size": (found.patch_size, wanted.patch_size),
            "classes": (config.get("classes"), modality.describe(settings)["classes"]),
            "channels": (found.channels, wanted.channels if found.inputs == "own" else found.channels),
            "quantizer": (found.quantizer.meaning(), wanted.quantizer.meaning()),
        }
        check_meaning(settings, folder, meanings)
        return cls(modality, module, device)

    @classmethod
    def restored(
        cls,
        modality: SpatialModality,
        settings: Settings,
        model: SpatialModelConfig,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> SpatialVQ:
        """The module of a checkpoint's tensors, without a diffusion decoder that may be among them."""
        module = SpatialVQ(model)
        module.load_state_dict({name: part for name, part in tensors.items() if not name.startswith(DENOISER)})
        return module

    def encode(self, values: Tensor) -> Int[Tensor, "batch h w *codes"]:
        """Tokens int64 on the device of `values`. Raises InvalidValueError for sizes the patch does not divide."""
        return self._chunks(values, lambda chunk: self.module.encode(self.inputs(chunk)), math.prod(values.shape[1:]))

    def decode(self, tokens: Int[Tensor, "batch h w *codes"]) -> Tensor:
        """Values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        return self._chunks(tokens, lambda chunk: self.values(self.module.decode(chunk)), self.pixels(tokens))

    def pixels(self, tokens: Int[Tensor, "batch h w *codes"]) -> int:
        """Pixels of one sample of these tokens; of maps whose positions have more channels than pixels, numbers."""
        positions = tokens[0].numel() // self.module.quantizer.codes_per_position
        return positions * max(self.module.config.patch_size**2, self.module.config.channels)

    def values(self, outputs: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Values from what the model gives."""
        if self.modality.kind == "classes":
            return outputs.max(dim=1).indices  # what argmax gives, in a quarter of its time on a CPU
        if self.modality.kind == "binary":
            return (outputs.mean(dim=1, keepdim=True) > 0).float()
        outputs = self.module.unstandardise(outputs)
        if self.module.config.inputs == "published":
            return self.modality.from_published(outputs)
        return self.modality.from_model(outputs)

    def inputs(self, values: Tensor) -> Tensor:
        """What the model is given for values."""
        return model_inputs(self.modality, values, self.module.config)

    def _chunks(self, batch: Tensor, function: Callable[[Tensor], Tensor], pixels: int) -> Tensor:
        return torch.cat(list(in_chunks(function, batch, chunk_size(CHUNK_PIXELS, self.device, pixels), self.device)))


def model_inputs(modality: SpatialModality, values: Tensor, config: SpatialModelConfig) -> Tensor:
    """What a model of `config` is given for values: class ids as they are, or what the modality makes of them.

    A published model with more channels than the values have is given each of them as often as that takes.
    """
    if modality.kind == "classes":
        return values
    if config.inputs == "own":
        return modality.to_model(values.float())
    inputs = modality.to_published(values.float())
    return inputs.repeat(1, config.channels // inputs.shape[1], 1, 1)
