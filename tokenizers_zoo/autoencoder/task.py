"""Training tasks for the common loop: an autoencoder, and one with a discriminator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenizers_zoo.autoencoder.config import TokenizerConfig, TokenizerSetup
from tokenizers_zoo.autoencoder.discriminator import (
    REDUCTION,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_losses,
)
from tokenizers_zoo.autoencoder.losses import (
    RECONSTRUCTION_LOSSES,
    PerceptualDistance,
    check_losses,
    direction_loss,
    frequency_weights,
)
from tokenizers_zoo.autoencoder.model import Autoencoder
from tokenizers_zoo.autoencoder.statistics import least_deviation, moments, to_divide_by
from tokenizers_zoo.autoencoder.tokenizer import AutoencoderTokenizer, ValueCodec
from tokenizers_zoo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float


class AutoencoderTask:
    """Train an Autoencoder on the values of a modality; see `TokenizerTask`.

    Raises ConfigError for losses that do not fit the values.
    """

    def __init__(self, setup: TokenizerSetup, codec: ValueCodec) -> None:
        self.setup, self.codec, self.spec = setup, codec, setup.spec
        quantizer = setup.model.quantizer
        self.codebook_size = quantizer.codebook_size * (quantizer.codes_per_position // self.spec.num_codebooks)
        self.class_weights: Tensor | None = None
        self.perceptual: PerceptualDistance | None = None
        check_losses(setup.losses, setup.model.kind, setup.table, setup.tokenizer_origin)
        if getattr(setup.table, "class_balance", None) is not None and not self._weighs_classes:
            where = setup.tokenizer_origin.at("class_balance")
            raise ConfigError(f"{where}: works with cross_entropy and bce only; remove it")
        if "perceptual" in setup.losses:
            if self.spec.value.low is None or self.spec.value.high is None:
                where = setup.tokenizer_origin.at("perceptual_weight")
                raise ConfigError(f"{where}: needs bounded values, and {self.spec.name} declares no low and high")
            self.perceptual = PerceptualDistance()

    @property
    def _weighs_classes(self) -> bool:
        return bool({"cross_entropy", "bce"} & set(self.setup.losses))

    def describe(self) -> Mapping[str, Any]:
        return self.setup.describe()

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> Autoencoder:
        """Return a model with random weights and the statistics of some training values."""
        setup = self.setup
        module = Autoencoder(setup.model)
        items, fitted = self.codec.fit(train, setup.statistics_samples, rng)
        for name, tensor in fitted.items():
            module.get_buffer(f"fitted_{name}").copy_(tensor)
        if setup.model.kind != "continuous":
            if setup.class_balance and self._weighs_classes:
                self.class_weights = frequency_weights(torch.cat([*items]), setup.model.channels, setup.class_balance)
        elif setup.standardise != "none":
            self._set_statistics(module, [*items] if setup.model.directions else items)
        return module

    def _set_statistics(self, module: Autoencoder, items: Any) -> None:
        mean, std = moments(self.codec.to_network(batch) for batch in items)
        if self.setup.standardise == "common":
            std = std.square().mean().sqrt().expand_as(std)
        if self.setup.model.directions:  # small components matter little for a direction: do not amplify them
            std = std.clamp_min(least_deviation(mean, std))
            module.length.copy_(torch.cat([batch.double().norm(dim=1) for batch in items]).mean())
        module.mean.copy_(mean.view_as(module.mean))
        module.std.copy_(to_divide_by(mean, std).view_as(module.std))

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        return self.codec.batch(values, rng)

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Return the weighted reconstruction losses plus the quantizer's loss."""
        assert isinstance(module, Autoencoder)
        outputs, quantizer_loss = module(batch)
        return self.compare(module, batch, outputs.float(), quantizer_loss)

    def compare(
        self, module: Autoencoder, inputs: Tensor, outputs: Tensor, quantizer_loss: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the decoder's outputs for network inputs, by name."""
        parts = {name: self._loss(name, module, inputs, outputs) for name in self.setup.losses}
        reconstruction = torch.stack([weight * parts[name] for name, weight in self.setup.losses.items()]).sum()
        named = {f"{name}_loss": loss for name, loss in parts.items()} if len(parts) > 1 else {}
        losses = {"loss": reconstruction + quantizer_loss, "reconstruction_loss": reconstruction, **named}
        return losses | {"quantizer_loss": quantizer_loss}

    def _loss(self, name: str, module: Autoencoder, inputs: Tensor, outputs: Tensor) -> Float[Tensor, ""]:
        if name == "perceptual":
            return self._perceptual_loss(module, inputs, outputs)
        if name == "cosine" and module.config.directions:
            return direction_loss(outputs * module.std + module.mean, inputs, float(module.length))
        weights = None if self.class_weights is None else self.class_weights.to(inputs.device)
        return RECONSTRUCTION_LOSSES[name](outputs, target_of(module, inputs), weights)

    def _perceptual_loss(self, module: Autoencoder, inputs: Tensor, outputs: Tensor) -> Float[Tensor, ""]:
        """Compare decoded and true values as pictures from `low` to `high`; see `TokenizerConfig.perceptual_weight`."""
        low, high = self.spec.value.low, self.spec.value.high
        assert self.perceptual is not None and low is not None and high is not None
        values = (self.codec.from_network(module.unstandardise(outputs)), self.codec.from_network(inputs))
        scaled = [(value - low) / (high - low) for value in values]
        pictures = [value if value.shape[1] == 3 else value[:, :1].expand(-1, 3, -1, -1) for value in scaled]
        return self.perceptual.to(inputs.device)(*pictures)

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor | None]:
        assert isinstance(module, Autoencoder)
        return self.codec.reconstruct(AutoencoderTokenizer(self.codec, module, module.mean.device.type), values)

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        return self.codec.score(predicted, target)

    def render(self, value: Any) -> Any:
        return self.codec.render(value)


def target_of(module: Autoencoder, inputs: Tensor) -> Tensor:
    """Return the target of the decoder's outputs: class ids, or standardised inputs."""
    return inputs if module.config.kind == "classes" else module.standardise(inputs)


class AdversarialAutoencoderTask(AutoencoderTask):
    """Train an Autoencoder of pictures with a patch discriminator; see `AdversarialTask`.

    Raises ConfigError for values that are not continuous.
    """

    def __init__(self, setup: TokenizerSetup, codec: ValueCodec) -> None:
        super().__init__(setup, codec)
        assert isinstance(setup.table, TokenizerConfig)
        self.table = setup.table
        self.critic_rate = self.table.adversarial_rate
        self.critic_start = min(math.ceil(self.table.adversarial_start * self.table.steps), self.table.steps - 1)
        check_losses(["adversarial"], setup.model.kind, setup.table, setup.tokenizer_origin)

    def build_critic(self) -> PatchDiscriminator:
        """Return an untrained discriminator. Raises ConfigError for maps that are too small for it."""
        height, width = (int(side) for side in (self.spec.value.shape or ())[-2:])
        if min(height, width) < REDUCTION:
            where = self.setup.tokenizer_origin.at("adversarial_weight")
            raise ConfigError(
                f"{where}: needs values of at least {REDUCTION} x {REDUCTION}, and {self.spec.name} has {height} x"
                f" {width}; remove it"
            )
        return PatchDiscriminator(self.setup.model.channels)

    def losses_against(self, module: nn.Module, critic: nn.Module, batch: Tensor, step: int) -> dict[str, Tensor]:
        """Return `losses`, and from `critic_start` on the adversarial loss and the discriminator's."""
        assert isinstance(module, Autoencoder)
        outputs, quantizer_loss = module(batch)
        outputs = outputs.float()
        losses = self.compare(module, batch, outputs, quantizer_loss)
        if step < self.critic_start:
            return losses
        adversarial, critic_loss = adversarial_losses(critic, outputs, target_of(module, batch))
        weight = adaptive_weight(losses["reconstruction_loss"], adversarial, module.decoder)
        return losses | {
            "loss": losses["loss"] + self.table.adversarial_weight * weight * adversarial,
            "adversarial_loss": adversarial,
            "adversarial_weight": weight,
            "critic_loss": critic_loss,
        }
