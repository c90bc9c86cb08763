"""The VQ autoencoder of image-like modalities, how it is trained, and the tokenizer that it becomes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.blocks import build_decoder, build_encoder
from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.spatial.losses import RECONSTRUCTION_LOSSES, check_loss, frequency_weights
from tokenizers_zoo.families.spatial.settings import SpatialModelConfig
from tokenizers_zoo.modality import Crop
from tokenizers_zoo.quantizers import build_quantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.spatial.modality import SpatialModality

STATISTICS_SAMPLES = 256
"""Training values from which mean, deviation and class frequencies are computed."""
CLASS_CHANNELS = 8
"""Numbers per pixel that class ids are embedded in."""
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
        channels = CLASS_CHANNELS if config.classes else config.channels
        if config.classes:
            self.embedding = nn.Embedding(config.channels, CLASS_CHANNELS)
        self.encoder = build_encoder(config.blocks, channels, config.latent_dim, config.patch_size)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.decoder = build_decoder(config.blocks, config.latent_dim, config.channels, config.patch_size)
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("std", torch.ones(config.channels, 1, 1))

    def forward(self, inputs: Tensor) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, ""]]:
        """Outputs after the quantizer, and its loss."""
        latents = self.latents(inputs)
        quantized = self.quantizer(rearrange(latents, "b d h w -> b (h w) d"))
        codes = rearrange(quantized.codes, "b (h w) d -> b d h w", h=latents.shape[2])
        return self.decoder(codes), quantized.loss

    def standardise(self, inputs: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Inputs at mean 0 and deviation 1."""
        return (inputs - self.mean) / self.std

    def latents(self, inputs: Tensor) -> Float[Tensor, "batch dim h w"]:
        """What the encoder makes of inputs."""
        if self.config.classes:
            return self.encoder(rearrange(self.embedding(inputs), "b h w c -> b c h w"))
        return self.encoder(self.standardise(inputs))

    def encode(self, inputs: Tensor) -> Int[Tensor, "batch h w"]:
        """Tokens of inputs."""
        latents = self.latents(inputs)
        tokens = self.quantizer.encode(rearrange(latents, "b d h w -> b (h w) d"))
        return rearrange(tokens, "b (h w) -> b h w", h=latents.shape[2])

    def decode(self, tokens: Int[Tensor, "batch h w"]) -> Float[Tensor, "batch channels height width"]:
        """Outputs of tokens."""
        codes = self.quantizer.decode(rearrange(tokens, "b h w -> b (h w)"))
        return self.decoder(rearrange(codes, "b (h w) d -> b d h w", h=tokens.shape[1]))


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

        The sizes of encoder and decoder are those of the checkpoint; its tokens and classes have to be the settings'.
        """
        tensors, config = load_checkpoint(folder, modality.checkpoint_class)
        try:
            found = from_mapping(SpatialModelConfig, config["model"], Origin(table="model"))
            module = SpatialVQ(found)
            module.load_state_dict(tensors)
        except (ConfigError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: the weights do not fit the configuration: {reason}") from None
        wanted = modality.describe(settings)
        model = wanted["model"]
        for what, here, there in (
            ("patch_size", found.patch_size, model["patch_size"]),
            ("classes", config.get("classes"), wanted["classes"]),
            ("quantizer", asdict(found.quantizer), model["quantizer"]),
        ):
            if here != there:
                raise CheckpointError(
                    f"{settings.name}: the tokenizer at {folder} has {what} {here}, but"
                    f" {settings.origin.at(what)} asks for {there}; change the settings, or train another"
                )
        return cls(modality, module, device)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.module.quantizer.codebook_size

    def encode(self, values: Tensor) -> Int[Tensor, "batch h w"]:
        """Tokens int64 on the device of `values`. Raises InvalidValueError for sizes the patch does not divide."""
        return self._chunks(
            values, lambda chunk: self.module.encode(model_inputs(self.modality, chunk)), values[0].numel()
        )

    def decode(self, tokens: Int[Tensor, "batch h w"]) -> Tensor:
        """Values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        pixels = tokens[0].numel() * self.module.config.patch_size**2
        return self._chunks(tokens, lambda chunk: self.values(self.module.decode(chunk)), pixels)

    def values(self, outputs: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Values from what the model gives."""
        if self.modality.kind == "classes":
            return outputs.argmax(dim=1)
        if self.modality.kind == "binary":
            return (outputs > 0).float()
        return self.modality.from_model(outputs * self.module.std + self.module.mean)

    @torch.inference_mode()
    def _chunks(self, batch: Tensor, function: Any, pixels: int) -> Tensor:
        if not len(batch):
            raise InvalidValueError("encode and decode need at least one sample")
        size = max(1, CHUNK_PIXELS.get(self.device.split(":")[0], CHUNK_PIXELS["cpu"]) // pixels)
        results = []
        for chunk in batch.split(size):
            filled = torch.cat([chunk, chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])])
            results.append(function(filled.to(self.device))[: len(chunk)].to(batch.device))
        return torch.cat(results).clone()


def model_inputs(modality: SpatialModality, values: Tensor) -> Tensor:
    """What a model is given for values: class ids as they are, or what `to_model` gives."""
    return values if modality.kind == "classes" else modality.to_model(values.float())


class SpatialTask:
    """How the training loop trains a SpatialVQ for a modality."""

    def __init__(self, modality: SpatialModality, settings: Settings) -> None:
        self.modality, self.settings = modality, settings
        self.options = modality.options(settings)
        self.spec = modality.modality_spec(settings)
        self.codebook_size = self.spec.vocab_size
        self.loss_name = self.options.tokenizer.loss or modality.loss
        check_loss(self.loss_name, modality.kind, settings)
        self.weights: Tensor | None = None

    def describe(self) -> Mapping[str, Any]:
        """See `TokenizerTask`."""
        return self.modality.describe(self.settings)

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> SpatialVQ:
        """A model with random weights, and the statistics of up to STATISTICS_SAMPLES training values."""
        module = SpatialVQ(self.modality.model_config(self.options))
        chosen = rng.permutation(len(train))[:STATISTICS_SAMPLES]
        values = torch.from_numpy(np.stack([train[int(index)] for index in chosen]))
        if self.modality.kind != "continuous":
            self.weights = frequency_weights(values, module.config.channels, self.modality.class_balance)
        elif self.modality.standardised:
            inputs = self.modality.to_model(values).double()
            std, mean = torch.std_mean(inputs, dim=(0, 2, 3), correction=0)
            module.mean.copy_(mean[:, None, None])
            module.std.copy_(std.clamp_min(1e-6)[:, None, None])
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        """Values (batch, ...), half of them mirrored at random where the settings say so."""
        if self.options.tokenizer.flip:
            mirrored = rng.random(len(values)) < 0.5
            transform = functools.partial(self.modality.transform, crop=Crop(flip=True), settings=self.settings)
            values = [transform(value) if flip else value for value, flip in zip(values, mirrored, strict=True)]
        return torch.from_numpy(np.stack(values))

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction loss plus the quantizer's."""
        assert isinstance(module, SpatialVQ)
        inputs = model_inputs(self.modality, batch)
        outputs, quantizer_loss = module(inputs)
        target = inputs if module.config.classes else module.standardise(inputs)
        weights = None if self.weights is None else self.weights.to(batch.device)
        reconstruction = RECONSTRUCTION_LOSSES[self.loss_name](outputs.float(), target, weights)
        return {
            "loss": reconstruction + quantizer_loss,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer_loss,
        }

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor]:
        """Values after encode and decode, and the tokens."""
        assert isinstance(module, SpatialVQ)
        tokenizer = SpatialTokenizer(self.modality, module, module.mean.device.type)
        tokens = tokenizer.encode(torch.from_numpy(np.stack(values)))
        return list(tokenizer.decode(tokens).numpy()), tokens

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """The modality's metrics."""
        return self.modality.score(predicted, target, self.settings)

    def render(self, value: Any) -> Any:
        """The modality's picture."""
        return self.modality.render(value, self.settings)
