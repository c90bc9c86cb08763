"""How the common loop trains the VQ autoencoder of an image-like modality: statistics, batches, losses, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.families.spatial.critic import (
    REDUCTION,
    PatchCritic,
    adaptive_weight,
    adversarial_losses,
    last_weight,
)
from tokenizers_zoo.families.spatial.losses import RECONSTRUCTION_LOSSES, check_losses, frequency_weights
from tokenizers_zoo.families.spatial.model import SpatialTokenizer, SpatialVQ, model_inputs
from tokenizers_zoo.families.spatial.perceptual import PerceptualDistance
from tokenizers_zoo.families.statistics import moments, some_values, to_divide_by
from tokenizers_zoo.families.trained import half_mirrored

if TYPE_CHECKING:
    from jaxtyping import Float

    from tokenizers_zoo.families.spatial.modality import SpatialModality

STATISTICS_SAMPLES = 256
"""Training values from which mean, deviation and class frequencies are computed."""


class SpatialTask:
    """How the training loop trains a SpatialVQ for a modality; see `TokenizerTask` and `AdversarialTask`."""

    def __init__(self, modality: SpatialModality, settings: Settings) -> None:
        self.modality, self.settings = modality, settings
        self.options = modality.options(settings)
        self.table = self.options.tokenizer
        self.spec = modality.modality_spec(settings)
        self.codebook_size = self.spec.vocab_size
        self.critic_rate = self.table.adversarial_rate
        self.critic_start = min(math.ceil(self.table.adversarial_start * self.table.steps), self.table.steps - 1)
        self.loss_weights = self.table.loss_weights(modality.loss)
        adversarial = ["adversarial"] if self.table.adversarial_weight else []
        check_losses([*self.loss_weights, *adversarial], modality.kind, settings)
        if self.table.class_balance is not None and not {"cross_entropy", "bce"} & set(self.loss_weights):
            where = settings.origin.inner("tokenizer").at("class_balance")
            why = "has none" if modality.kind == "continuous" else "has no loss that does so, such as cross_entropy"
            raise ConfigError(f"{where}: weighs classes, and {settings.name} {why}; leave it out")
        self.class_weights: Tensor | None = None
        self.perceptual: PerceptualDistance | None = None
        if "perceptual" in self.loss_weights:
            if modality.low is None or modality.high is None:
                where = settings.origin.inner("tokenizer").at("perceptual_weight")
                raise ConfigError(f"{where}: shows values as pictures, and {settings.name} declares no low and high")
            self.perceptual = PerceptualDistance()

    def describe(self) -> Mapping[str, Any]:
        """The checkpoint's config."""
        return self.modality.describe(self.settings)

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> SpatialVQ:
        """A model with random weights, and the statistics of up to STATISTICS_SAMPLES training values."""
        module = SpatialVQ(self.modality.model_config(self.options))
        values = some_values(train, STATISTICS_SAMPLES, rng)
        if self.modality.kind != "continuous":
            balance = self.table.class_balance if self.table.class_balance is not None else self.modality.class_balance
            self.class_weights = frequency_weights(torch.stack([*values]), module.config.channels, balance)
        elif self.modality.standardised:
            mean, std = moments(self.modality.to_model(value[None]) for value in values)
            if self.modality.common_scale:
                std = std.square().mean().sqrt().expand_as(std)
            module.mean.copy_(mean[:, None, None])
            module.std.copy_(to_divide_by(mean, std)[:, None, None])
        return module

    def build_critic(self) -> PatchCritic | None:
        """A critic of standardised values, where the settings give it a weight. Raises ConfigError for tiny maps."""
        if not self.table.adversarial_weight:
            return None
        height, width = self.options.size
        if min(height, width) < REDUCTION:
            where = self.settings.origin.inner("tokenizer").at("adversarial_weight")
            raise ConfigError(
                f"{where}: its critic looks at {REDUCTION} x {REDUCTION} cells or more, and {self.settings.name} has"
                f" {height} x {width}; leave it out"
            )
        return PatchCritic(self.modality.channels)

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        """Values (batch, ...), half of them mirrored at random where the settings say so."""
        if self.table.flip:
            values = half_mirrored(self.modality, values, self.settings, rng)
        return torch.from_numpy(np.stack(values))

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction losses and that of the quantizer, weighted."""
        return self._compared(module, batch)[0]

    def losses_against(self, module: nn.Module, critic: nn.Module, batch: Tensor, step: int) -> dict[str, Tensor]:
        """The same, and from `adversarial_start` on what the critic says of it, and what it learns."""
        losses, outputs, target = self._compared(module, batch)
        if step < self.critic_start:
            return losses
        assert isinstance(module, SpatialVQ)
        adversarial, critic_loss = adversarial_losses(critic, outputs, target)
        weight = adaptive_weight(losses["reconstruction_loss"], adversarial, last_weight(module.decoder))
        return losses | {
            "loss": losses["loss"] + self.table.adversarial_weight * weight * adversarial,
            "adversarial_loss": adversarial,
            "adversarial_weight": weight,
            "critic_loss": critic_loss,
        }

    def _compared(self, module: nn.Module, batch: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by name, what the decoder gave, and what it should have given."""
        assert isinstance(module, SpatialVQ)
        inputs = model_inputs(self.modality, batch, module.config)
        codes, quantizer_loss = module.codes(inputs)
        return self._judged(module, batch, inputs, module.decoder(codes).float(), quantizer_loss)

    def _judged(
        self, module: SpatialVQ, batch: Tensor, inputs: Tensor, outputs: Tensor, quantizer_loss: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What `_compared` gives, for what the model was given of a batch and what came of it."""
        target = inputs if module.config.classes else module.standardise(inputs)
        class_weights = None if self.class_weights is None else self.class_weights.to(batch.device)
        parts = {
            name: self._perceptual(module, outputs, batch)
            if name == "perceptual"
            else RECONSTRUCTION_LOSSES[name](outputs, target, class_weights)
            for name in self.loss_weights
        }
        reconstruction = torch.stack([weight * parts[name] for name, weight in self.loss_weights.items()]).sum()
        named = {f"{name}_loss": loss for name, loss in parts.items()} if len(parts) > 1 else {}
        losses = {"loss": reconstruction + quantizer_loss, "reconstruction_loss": reconstruction, **named}
        return losses | {"quantizer_loss": quantizer_loss}, outputs, target

    def _perceptual(self, module: SpatialVQ, outputs: Tensor, batch: Tensor) -> Float[Tensor, ""]:
        """The distance of decoded and true values, both seen as pictures."""
        assert self.perceptual is not None
        network = self.perceptual.to(batch.device)
        return network(self._seen(self.modality.from_model(module.unstandardise(outputs))), self._seen(batch.float()))

    def _seen(self, values: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """Values between their bounds as pictures in [0, 1]; the first channel as grey where there are not three."""
        low, high = self.modality.low, self.modality.high
        assert low is not None and high is not None
        scaled = (values - low) / (high - low)
        return scaled if scaled.shape[1] == 3 else scaled[:, :1].expand(-1, 3, -1, -1)

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
