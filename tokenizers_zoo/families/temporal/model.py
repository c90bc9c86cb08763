"""The VQ autoencoder on any number of axes, how it is trained, and the tokenizer that it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.families.chunks import chunk_size, in_chunks
from tokenizers_zoo.families.statistics import moments, some_values, to_divide_by
from tokenizers_zoo.families.temporal.settings import TemporalModelConfig
from tokenizers_zoo.families.trained import check_meaning, fitting, half_mirrored
from tokenizers_zoo.nn import build_decoder, build_encoder
from tokenizers_zoo.quantizers import build_quantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.temporal.modality import TemporalModality

LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}
STATISTICS_SAMPLES = 256
"""Training values from which mean and deviation are computed."""
CHUNK_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Numbers that go through the model at once, per device; see `TemporalCodec`."""


class TemporalVQ(nn.Module):
    """Encoder, quantizer and decoder over (batch, channels, *axes), with the channels' mean and deviation.

    Tokens are int64 (batch, *grid), or (batch, *grid, codes) where a place has several.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TemporalModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.blocks, config.channels, config.latent_dim, config.patch)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.decoder = build_decoder(config.blocks, config.latent_dim, config.channels, config.patch)
        per_channel = (config.channels, *[1] * len(config.patch))
        self.register_buffer("mean", torch.zeros(per_channel))
        self.register_buffer("std", torch.ones(per_channel))

    def forward(self, inputs: Float[Tensor, "batch channels *axes"]) -> tuple[Tensor, Tensor]:
        """Standardised outputs after the quantizer, and its loss."""
        quantized = self.quantizer(self.latents(inputs))
        return self.decoder(quantized.codes.movedim(-1, 1)), quantized.loss

    def standardise(self, inputs: Float[Tensor, "batch channels *axes"]) -> Tensor:
        """Inputs at mean 0 and deviation 1."""
        return (inputs - self.mean) / self.std

    def latents(self, inputs: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch *grid dim"]:
        """What the encoder makes of inputs."""
        return self.encoder(self.standardise(inputs)).movedim(1, -1)

    def encode(self, inputs: Float[Tensor, "batch channels *axes"]) -> Int[Tensor, "batch *grid_codes"]:
        """Tokens of inputs."""
        return self.quantizer.encode(self.latents(inputs))

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch channels *axes"]:
        """What the tokenizer works on, from tokens."""
        return self.decoder(self.quantizer.decode(tokens).movedim(-1, 1)) * self.std + self.mean


class TemporalCodec:
    """What encode and decode work with: values to tokens and back, in float32.

    The model always runs on chunks of one size, the last one filled up, because the kernels that libraries choose for
    another batch size round differently, and a latent on the border between two codes would then change its token.
    """

    def __init__(self, modality: TemporalModality, options: Any, module: TemporalVQ, device: str = "cpu") -> None:
        self.modality, self.options, self.device = modality, options, device
        self.module = module.to(device).eval()

    @classmethod
    def load(cls, modality: TemporalModality, settings: Settings, folder: Path, device: str) -> TemporalCodec:
        """Load a checkpoint folder. Raises CheckpointError where it is damaged, or not what the settings ask for.

        The sizes of encoder and decoder are those of the checkpoint; its tokens and `signal` have to be the settings'.
        """
        tensors, config = load_checkpoint(folder, modality.checkpoint_class)
        with fitting(folder):
            found = from_mapping(TemporalModelConfig, config["model"], Origin(table="model"))
            module = TemporalVQ(found)
            module.load_state_dict(tensors)
        options = modality.options(settings)
        here, there = (
            {"quantizer": model.quantizer.meaning(), "channels": model.channels, **signal, "patch": list(model.patch)}
            for model, signal in (
                (found, config["signal"]), (modality.model_config(options), modality.signal(options))
            )
        )  # fmt: skip
        check_meaning(settings, folder, {what: (here.get(what), value) for what, value in there.items()})
        return cls(modality, options, module, device)

    def encode(self, values: Tensor) -> Int[Tensor, "batch *grid_codes"]:
        """Tokens on the device of `values`. Raises InvalidValueError for sizes that the patch does not divide."""

        def tokens(chunk: Tensor) -> Tensor:
            return self.module.encode(self.modality.to_model(chunk.float(), self.options))

        return torch.cat(list(self._chunks(values, tokens, math.prod(values.shape[1:]))))

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Tensor:
        """Values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        places = math.prod(tokens.shape[1:]) // self.module.quantizer.codes_per_position
        numbers = places * math.prod(self.module.config.patch) * self.module.config.channels
        outputs = self._chunks(tokens, self.module.decode, numbers)
        return torch.cat([self.modality.from_model(chunk, self.options) for chunk in outputs])

    def _chunks(self, batch: Tensor, function: Callable[[Tensor], Tensor], numbers: int) -> Iterator[Tensor]:
        return in_chunks(function, batch, chunk_size(CHUNK_NUMBERS, self.device, numbers), self.device)


class TemporalTask:
    """How the training loop trains a TemporalVQ for a modality."""

    def __init__(self, modality: TemporalModality, settings: Settings) -> None:
        self.modality, self.settings = modality, settings
        self.options = modality.options(settings)
        self.spec = modality.modality_spec(settings)
        self.codebook_size = self.spec.vocab_size
        self.loss_weights: dict[str, float] = self.options.tokenizer.loss_weights(modality.loss)

    def describe(self) -> Mapping[str, Any]:
        """See `TokenizerTask`."""
        return self.modality.describe(self.settings)

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> TemporalVQ:
        """A model with random weights, and the statistics of up to STATISTICS_SAMPLES training values."""
        module = TemporalVQ(self.modality.model_config(self.options))
        values = some_values(train, STATISTICS_SAMPLES, rng)
        mean, std = moments(self.modality.to_model(value[None], self.options) for value in values)
        module.mean.copy_(mean.view_as(module.mean))
        module.std.copy_(to_divide_by(mean, std).view_as(module.std))
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        """What the model works on (batch, channels, *axes), half of it mirrored at random where the settings say so."""
        if self.options.tokenizer.flip:
            values = half_mirrored(self.modality, values, self.settings, rng)
        return self.modality.to_model(torch.from_numpy(np.stack(values)), self.options)

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction losses, weighted, plus the quantizer's."""
        assert isinstance(module, TemporalVQ)
        outputs, quantizer_loss = module(batch)
        target = module.standardise(batch)
        parts = [weight * LOSS_FUNCTIONS[name](outputs.float(), target) for name, weight in self.loss_weights.items()]
        reconstruction = torch.stack(parts).sum()
        return {
            "loss": reconstruction + quantizer_loss,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer_loss,
        }

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor]:
        """Values after encode and decode, and the tokens."""
        assert isinstance(module, TemporalVQ)
        tokenizer = TemporalCodec(self.modality, self.options, module, module.mean.device.type)
        tokens = tokenizer.encode(torch.from_numpy(np.stack(values)))
        return list(tokenizer.decode(tokens).numpy()), tokens

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """The modality's metrics."""
        return self.modality.score(predicted, target, self.settings)

    def render(self, value: Any) -> Any:
        """The modality's picture."""
        return self.modality.render(value, self.settings)
