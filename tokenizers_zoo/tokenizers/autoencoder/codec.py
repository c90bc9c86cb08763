"""The values of a modality as an autoencoder sees them; importable without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.plugins import hook_calls
from tokenizers_zoo.contract.spec import Crop, ModalitySpec
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig, DiffusionConfig, QuantizedTrainConfig

if TYPE_CHECKING:
    import torch

CHUNK = 16
"""Values that are read together for statistics."""


class ValueCodec:
    """A modality's values and settings, as an autoencoder of `model` sees them.

    The autoencoder uses nothing else of a modality, which is a `families.base.TrainedModality`. `table` is its
    `tokenizer` table, written at `origin`; `losses` are the weights of the reconstruction losses by name.
    """

    def __init__(self, modality: Any, settings: Settings, model: AutoencoderConfig | None = None) -> None:
        self.modality, self.settings = modality, settings
        self.options = modality.options(settings)
        self.call = hook_calls(modality, settings)
        self.spec: ModalitySpec = self.call("modality_spec")
        self.model: AutoencoderConfig = model or modality.model_config(self.options)
        self.table: QuantizedTrainConfig = self.options.tokenizer
        self.origin = settings.origin.inner("tokenizer")
        self.losses = self.table.loss_weights(modality.loss)
        self.diffusion: DiffusionConfig | None = getattr(self.table, "diffusion", None)
        balance = getattr(self.table, "class_balance", None)
        self.class_balance: float = modality.class_balance if balance is None else balance

    def describe(self) -> dict[str, Any]:
        """Return the checkpoint's config as JSON types; it is also part of a training run's identity."""
        return {
            "class": self.modality.checkpoint_class,
            "modality": self.spec.name,
            "value_shape": list(self.spec.value.shape or ()),
            "meaning": as_dicts(self.modality.meaning(self.options)),
            "losses": dict(self.losses),
            **self.table.augmentation(),
            "model": as_dicts(self.model),
        }

    def to_network(self, items: torch.Tensor) -> torch.Tensor:
        """Return network inputs (batch, channels, *axes), or class ids (batch, *axes).

        Published tokenizers with more channels get each channel several times.
        """
        if self.model.kind == "classes":
            return items
        if self.model.inputs == "own":
            return self.modality.to_network(items.float(), self.options)
        inputs = self.modality.to_published(items.float(), self.options)
        return inputs.repeat(1, self.model.channels // inputs.shape[1], *[1] * (inputs.ndim - 2))

    def from_network(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return values for any outputs."""
        if self.model.kind == "classes":
            return outputs.max(dim=1).indices  # as argmax, in a quarter of its time on a CPU
        if self.model.kind == "binary":
            return (outputs.mean(dim=1, keepdim=True) > 0).float()
        if self.model.inputs == "own":
            return self.modality.from_network(outputs, self.options)
        return self.modality.from_published(outputs, self.options)

    def fit(
        self, train: Sequence[Any], count: int, rng: np.random.Generator
    ) -> tuple[Iterator[torch.Tensor], dict[str, torch.Tensor]]:
        """Return batches of about `count` training items, and the statistics in `AutoencoderConfig.fitted`."""
        indices = rng.permutation(len(train))[:count]
        chunks = (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK))
        return (stack_values([train[int(index)] for index in chunk]) for chunk in chunks), {}

    def batch(self, values: list[Any], rng: np.random.Generator) -> torch.Tensor:
        """Return the network inputs of a training batch, augmented with random numbers from `rng`."""
        return self.to_network(stack_values(self.augment(values, rng)))

    def augment(self, values: list[Any], rng: np.random.Generator) -> list[Any]:
        """Mirror half of the values left to right if the setting `flip` is on and the modality has `transform`."""
        if getattr(self.modality, "transform", None) is None or not getattr(self.options.tokenizer, "flip", False):
            return values
        mirrored = rng.random(len(values)) < 0.5
        return [
            self.call("transform", value=value, crop=Crop(flip=True)) if flip else value
            for value, flip in zip(values, mirrored, strict=True)
        ]

    def reconstruct(self, tokenizer: Any, values: list[Any]) -> tuple[list[Any], torch.Tensor | None]:
        """Return the values after encode and decode, and the codes (None without any)."""
        tokens = self.call("encode", tokenizer=tokenizer, values=stack_values(values))
        return list(self.call("decode", tokenizer=tokenizer, tokens=tokens).numpy()), tokens


def stack_values(values: Sequence[Any]) -> torch.Tensor:
    """Return values of one shape as a batch."""
    import torch

    return torch.from_numpy(np.stack(values))
