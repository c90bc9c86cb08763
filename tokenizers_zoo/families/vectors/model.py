"""The VQ autoencoder of global vectors, how it is trained, and the tokenizer that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.families.chunks import in_chunks
from tokenizers_zoo.families.statistics import least_deviation, some_values, to_divide_by
from tokenizers_zoo.families.trained import check_meaning, fitting
from tokenizers_zoo.families.vectors.settings import VectorModelConfig
from tokenizers_zoo.nn.mlp import mlp_decoder, mlp_encoder
from tokenizers_zoo.quantizers import build_quantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.vectors.modality import VectorModality

STATISTICS_SAMPLES = 4096
"""Training values from which mean, deviation and length are computed."""
CHUNK = 64
"""Vectors that go through the model at once; see `VectorTokenizer`."""
SHORT = 1e-6
"""Share of the mean length below which a vector counts as shorter than it is, where only directions are trained."""


class VectorVQ(nn.Module):
    """Encoder, quantizer and decoder of vectors, with the mean, deviation and mean length of the training values."""

    mean: Tensor
    std: Tensor
    length: Tensor

    def __init__(self, config: VectorModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = mlp_encoder(config.blocks, config.dim, config.latent_dim)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.decoder = mlp_decoder(config.decoder or config.blocks, config.latent_dim, config.dim)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("std", torch.ones(config.dim))
        self.register_buffer("length", torch.ones(()))

    def forward(self, values: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, ""]]:
        """Outputs at mean 0 and deviation 1 after the quantizer, and its loss."""
        quantized = self.quantizer(self.encoder(self.standardise(values)))
        return self.decoder(quantized.codes), quantized.loss

    def standardise(self, values: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Values at mean 0 and deviation 1."""
        return (values - self.mean) / self.std

    def restore(self, outputs: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Values of outputs: the inverse of `standardise`; where only directions were trained, of the mean length."""
        values = outputs * self.std + self.mean
        least = torch.finfo(values.dtype).tiny
        return F.normalize(values, dim=1, eps=least) * self.length if self.config.loss == "cosine" else values

    def encode(self, values: Float[Tensor, "batch dim"]) -> Int[Tensor, "batch codes"]:
        """Tokens of values."""
        return self.quantizer.encode(self.encoder(self.standardise(values))).reshape(len(values), -1)

    def decode(self, tokens: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Values of tokens."""
        codes = self.quantizer.decode(tokens if self.quantizer.codes_per_position > 1 else tokens[:, 0])
        return self.restore(self.decoder(codes))


class VectorTokenizer:
    """What encode and decode work with, in float32.

    The model runs on chunks of one size, the last one filled up: kernels for another batch size round differently, and
    a latent on the border between two codes would then change its token.
    """

    def __init__(self, module: VectorVQ, device: str = "cpu") -> None:
        self.device = device
        self.module = module.to(device).eval()

    @classmethod
    def load(cls, modality: VectorModality, settings: Settings, folder: Path, device: str) -> VectorTokenizer:
        """Load a checkpoint folder. Raises CheckpointError where it is damaged, or not what the settings ask for.

        The sizes of encoder and decoder are those of the checkpoint; vector and tokens have to be the settings'.
        """
        tensors, config = load_checkpoint(folder, modality.checkpoint_class)
        with fitting(folder):
            found = from_mapping(VectorModelConfig, config["model"], Origin(table="model"))
            module = VectorVQ(found)
            module.load_state_dict(tensors)
        wanted = modality.model_config(modality.options(settings))
        quantizers = found.quantizer.meaning(), wanted.quantizer.meaning()
        check_meaning(settings, folder, {"dim": (found.dim, wanted.dim), "quantizer": quantizers})
        return cls(module, device)

    def encode(self, values: Float[Tensor, "batch dim"]) -> Int[Tensor, "batch codes"]:
        """Tokens int64 on the device of `values`."""
        return self._chunks(values.float(), self.module.encode)

    def decode(self, tokens: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        return self._chunks(tokens, self.module.decode)

    def _chunks(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat(list(in_chunks(function, batch, CHUNK, self.device)))


class VectorTask:
    """How the training loop trains a VectorVQ for a modality; see `TokenizerTask`."""

    def __init__(self, modality: VectorModality, settings: Settings) -> None:
        self.modality, self.settings = modality, settings
        self.spec = modality.modality_spec(settings)
        self.codebook_size = self.spec.vocab_size

    def describe(self) -> Mapping[str, Any]:
        """The checkpoint's config."""
        return self.modality.describe(self.settings)

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> VectorVQ:
        """A model with random weights, and the statistics of up to STATISTICS_SAMPLES training values."""
        module = VectorVQ(self.modality.model_config(self.modality.options(self.settings)))
        values = torch.stack([*some_values(train, STATISTICS_SAMPLES, rng)]).double()
        std, mean = torch.std_mean(values, dim=0, correction=0)
        module.mean.copy_(mean)
        # A number that hardly varies in training must not be all that the model sees of a value where it does. Where
        # each number counts for itself it may as well be one of a larger unit: only what never varies is held back.
        alike = module.config.loss == "cosine"
        module.std.copy_(std.clamp_min(least_deviation(mean, std)) if alike else to_divide_by(mean, std))
        module.length.copy_(values.norm(dim=1).mean())
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        """Values (batch, dim)."""
        return torch.from_numpy(np.stack(values))

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction loss plus the quantizer's."""
        assert isinstance(module, VectorVQ)
        outputs, quantizer_loss = module(batch)
        outputs = outputs.float()
        if module.config.loss == "cosine":
            least = SHORT * min(1.0, float(module.length))
            directions = F.cosine_similarity(outputs * module.std + module.mean, batch, dim=1, eps=least)
            reconstruction = 1 - directions.mean()
        else:
            reconstruction = F.smooth_l1_loss(outputs, module.standardise(batch))
        return {
            "loss": reconstruction + quantizer_loss,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer_loss,
        }

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor]:
        """Values after encode and decode, and the tokens."""
        assert isinstance(module, VectorVQ)
        tokenizer = VectorTokenizer(module, module.mean.device.type)
        tokens = tokenizer.encode(torch.from_numpy(np.stack(values)))
        return list(tokenizer.decode(tokens).numpy()), tokens

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """The modality's metrics."""
        return self.modality.score(predicted, target)

    def render(self, value: Any) -> Any:
        """The modality's picture."""
        return self.modality.render(value)
