"""Training of autoencoders: plain, against a discriminator, or with a diffusion decoder; statistics of the inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import Ancestor, CheckpointRecord, config_record, fingerprint, resolve_folder
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.tokenizers.autoencoder.codec import ValueCodec
from tokenizers_zoo.tokenizers.autoencoder.losses import (
    RECONSTRUCTION_LOSSES,
    REDUCTION,
    PatchDiscriminator,
    PerceptualDistance,
    adaptive_weight,
    adversarial_losses,
    check_losses,
    direction_loss,
)
from tokenizers_zoo.tokenizers.autoencoder.model import Autoencoder
from tokenizers_zoo.tokenizers.autoencoder.tokenizer import AutoencoderTokenizer, load_autoencoder
from tokenizers_zoo.train.loop import Task

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

LEAST_DEVIATION = 0.01
"""The smallest deviation of a channel, as a fraction of the mean deviation."""
SMALL, ROUNDING = 1e-6, 1e-9
"""A channel is constant if its deviation is below SMALL of the largest (or of 1) or below ROUNDING of its mean. If all
channels are constant, their deviation is set to SMALL."""


class AutoencoderTask(Task):
    """Train an Autoencoder on the values of a modality, if the settings say so with a patch discriminator.

    Raises ConfigError for losses that do not fit the values.
    """

    adversarial: ClassVar[bool] = True
    """Whether there may be a discriminator."""

    def __init__(self, codec: ValueCodec) -> None:
        self.codec, self.spec = codec, codec.spec
        quantizer, table, origin = codec.model.quantizer, codec.table, codec.origin
        self.codebook_size = quantizer.codebook_size * (quantizer.codes_per_position // self.spec.num_codebooks)
        self.class_weights: Tensor | None = None
        self.perceptual: PerceptualDistance | None = None
        self.weighs_classes = bool({"cross_entropy", "bce"} & set(codec.losses))
        self.adversarial_weight = getattr(table, "adversarial_weight", 0.0) if self.adversarial else 0.0
        losses = [*codec.losses, "adversarial"] if self.adversarial_weight else codec.losses
        check_losses(losses, codec.model.kind, table, origin)
        if self.adversarial_weight:
            self.discriminator_rate = table.adversarial_rate  # type: ignore[attr-defined]
            start = math.ceil(table.adversarial_start * table.steps)  # type: ignore[attr-defined]
            self.discriminator_start = min(start, table.steps - 1)
        if getattr(table, "class_balance", None) is not None and not self.weighs_classes:
            raise ConfigError(f"{origin.at('class_balance')}: works with cross_entropy and bce only; remove it")
        if "perceptual" in codec.losses:
            if self.spec.value.low is None or self.spec.value.high is None:
                location = origin.at("perceptual_weight")
                raise ConfigError(f"{location}: needs bounded values, and {self.spec.name} declares no low and high")
            self.perceptual = PerceptualDistance()

    def describe(self) -> Mapping[str, Any]:
        return self.codec.describe()

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> Autoencoder:
        """Return a model with random weights and the statistics of some training values."""
        codec, modality = self.codec, self.codec.modality
        module = Autoencoder(codec.model)
        batches, fitted = codec.fit(train, modality.statistics_samples, rng)
        for name, tensor in fitted.items():
            module.get_buffer(f"fitted_{name}").copy_(tensor)
        if codec.model.kind != "continuous":
            if codec.class_balance and self.weighs_classes:
                self.class_weights = frequency_weights(torch.cat([*batches]), codec.model.channels, codec.class_balance)
        elif modality.standardise != "none":
            items = [*batches] if codec.model.directions else batches
            mean, std = moments(codec.to_network(batch) for batch in items)
            if modality.standardise == "common":
                std = std.square().mean().sqrt().expand_as(std)
            if codec.model.directions:  # small components matter little for a direction: do not amplify them
                std = std.clamp_min(least_deviation(mean, std))
                module.length.copy_(torch.cat([batch.double().norm(dim=1) for batch in items]).mean())
            module.mean.copy_(mean.view_as(module.mean))
            std = std.where(varies(mean, std), least_deviation(mean, std))  # else constant channels would dominate
            module.std.copy_(std.view_as(module.std))
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        return self.codec.batch(values, rng)

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Return the weighted reconstruction losses plus the quantizer's loss."""
        assert isinstance(module, Autoencoder)
        return self.compare(module, batch, *module(batch))

    def compare(
        self, module: Autoencoder, inputs: Tensor, outputs: Tensor, quantizer_loss: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the decoder's outputs for network inputs, by name."""
        outputs = outputs.float()
        parts = {name: self._loss(name, module, inputs, outputs) for name in self.codec.losses}
        reconstruction = torch.stack([weight * parts[name] for name, weight in self.codec.losses.items()]).sum()
        named = {f"{name}_loss": loss for name, loss in parts.items()} if len(parts) > 1 else {}
        losses = {"loss": reconstruction + quantizer_loss, "reconstruction_loss": reconstruction, **named}
        return losses | {"quantizer_loss": quantizer_loss}

    def _loss(self, name: str, module: Autoencoder, inputs: Tensor, outputs: Tensor) -> Float[Tensor, ""]:
        if name == "cosine" and module.config.directions:
            return direction_loss(outputs * module.std + module.mean, inputs, float(module.length))
        if name != "perceptual":
            weights = None if self.class_weights is None else self.class_weights.to(inputs.device)
            return RECONSTRUCTION_LOSSES[name](outputs, target_of(module, inputs), weights)
        # Decoded and true values as pictures from `low` to `high`; see `TokenizerConfig.perceptual_weight`.
        low, high = self.spec.value.low, self.spec.value.high
        assert self.perceptual is not None and low is not None and high is not None
        values = (self.codec.from_network(module.unstandardise(outputs)), self.codec.from_network(inputs))
        scaled = [(value - low) / (high - low) for value in values]
        pictures = [value if value.shape[1] == 3 else value[:, :1].expand(-1, 3, -1, -1) for value in scaled]
        return self.perceptual.to(inputs.device)(*pictures)

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor | None]:
        assert isinstance(module, Autoencoder)
        return self.codec.reconstruct(AutoencoderTokenizer(self.codec, module, str(module.mean.device)), values)

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        return cast(Mapping[str, float], self.codec.call("score", predicted=predicted, target=target, spec=self.spec))

    def render(self, value: Any) -> Any:
        return self.codec.call("render", value=value, spec=self.spec)

    def discriminator(self) -> PatchDiscriminator | None:
        """Return an untrained discriminator, or None. Raises ConfigError for maps that are too small for it."""
        if not self.adversarial_weight:
            return None
        height, width = (int(side) for side in (self.spec.value.shape or ())[-2:])
        if min(height, width) < REDUCTION:
            location = self.codec.origin.at("adversarial_weight")
            raise ConfigError(
                f"{location}: needs values of at least {REDUCTION} x {REDUCTION}, and {self.spec.name} has {height} x"
                f" {width}; remove it"
            )
        return PatchDiscriminator(self.codec.model.channels)

    def losses_against(
        self, module: nn.Module, discriminator: nn.Module, batch: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Return `losses`, and from `discriminator_start` on the adversarial loss and the discriminator's."""
        assert isinstance(module, Autoencoder)
        outputs, quantizer_loss = module(batch)
        losses = self.compare(module, batch, outputs, quantizer_loss)
        if step < self.discriminator_start:
            return losses
        adversarial, discriminator_loss = adversarial_losses(discriminator, outputs.float(), target_of(module, batch))
        weight = adaptive_weight(losses["reconstruction_loss"], adversarial, module.decoder)
        return losses | {
            "loss": losses["loss"] + self.adversarial_weight * weight * adversarial,
            "adversarial_loss": adversarial,
            "adversarial_weight": weight,
            "discriminator_loss": discriminator_loss,
        }


def target_of(module: Autoencoder, inputs: Tensor) -> Tensor:
    """Return the target of the decoder's outputs: class ids, or standardised inputs."""
    return inputs if module.config.kind == "classes" else module.standardise(inputs)


class DiffusionTask(AutoencoderTask):
    """Train a DiffusionAutoencoder: on a frozen `base`, or everything together.

    Raises ConfigError for class ids, for a discriminator besides it, and for a network that is too narrow.
    """

    adversarial = False

    def __init__(self, codec: ValueCodec) -> None:
        diffusion, location = codec.diffusion, codec.origin.at("diffusion")
        assert diffusion is not None
        self.base: Autoencoder | None = None
        self.diffusion, self.lineage = diffusion, list[Ancestor]()
        if diffusion.base is not None:
            try:
                folder = resolve_folder(diffusion.base)
                self.base = load_autoencoder(folder, codec)
            except CheckpointError as error:
                raise CheckpointError(f"{location}: base: {error}") from None
            length, former = codec.model.quantizer.codebook_size, config_record(folder, None, CheckpointRecord).lineage
            self.lineage = [*former, Ancestor(fingerprint=fingerprint(folder), length=length)]
            codec = codec.modality.codec(codec.settings, self.base.config)
        super().__init__(codec)
        if codec.model.kind == "classes":
            raise ConfigError(f"{location}: works with continuous and binary values only; remove it")
        if getattr(codec.table, "adversarial_weight", 0) and self.base is None:
            raise ConfigError(f"{location}: set adversarial_weight = 0, or train the tokenizer first and set base")
        cell = codec.model.channels * diffusion.patch_size**2
        if cell > diffusion.width:
            raise ConfigError(
                f"{location}: width {diffusion.width} is below the {cell} numbers of a cell of {diffusion.patch_size} x"
                f" {diffusion.patch_size} pixels; lower patch_size, or set width to at least {-(-cell // 16) * 16}"
            )

    def describe(self) -> Mapping[str, Any]:
        config = {**super().describe(), "diffusion": self.diffusion.trained_settings()}
        if self.base is None:
            return config
        return {**config, "base": self.lineage[-1].fingerprint, "lineage": as_dicts(self.lineage)}

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> Autoencoder:
        """Return the base, or a new autoencoder, with a new denoiser and the deviation of its targets."""
        from tokenizers_zoo.tokenizers.autoencoder.diffusion import (
            DiffusionAutoencoder,  # diffusers takes seconds to import
        )

        plain = self.base if self.base is not None else super().build(train, rng)
        module = DiffusionAutoencoder.from_plain(plain, self.diffusion).eval()
        if self.base is not None:
            items, _ = self.codec.fit(train, self.codec.modality.statistics_samples, rng)
            module.measure_scale(self.codec.to_network(torch.cat([*items])))
        return module

    def losses(self, module: Any, batch: Tensor) -> dict[str, Tensor]:
        """Return the diffusion loss, and without a base also the losses of the autoencoder."""
        if module.frozen:
            loss = module.diffusion_loss(batch, module.frozen_codes(batch))
            return {"loss": loss, "diffusion_loss": loss}
        codes, quantizer_loss = module.codes(batch)
        losses = self.compare(module, batch, module.decoder(codes), quantizer_loss)
        diffusion_loss = module.diffusion_loss(batch, codes)
        return losses | {"loss": losses["loss"] + diffusion_loss, "diffusion_loss": diffusion_loss}


def frequency_weights(values: Tensor, classes: int, balance: float) -> Float[Tensor, " classes"]:
    """Return class weights frequency ^ -balance with mean 1 over the pixels; for 0/1 values, the weight of a one.

    A class that does not occur counts as one pixel.
    """
    if values.dtype.is_floating_point:
        one_count = float(values.sum().clamp(1, values.numel() - 1))
        return torch.tensor([((values.numel() - one_count) / one_count) ** balance])
    counts = torch.bincount(values.flatten(), minlength=classes).double().clamp_min(1)
    shares = counts / counts.sum()
    weights = shares**-balance
    return (weights / (weights * shares).sum()).float()


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (channels,), float64, over batches (batch, channels, ...).

    Sums of squares are merged around the running mean (Chan, Golub and LeVeque 1979), which avoids cancellation.
    """
    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        numbers = batch.double().transpose(0, 1).flatten(1)
        if not (new := numbers.shape[1]):
            continue
        variance, average = torch.var_mean(numbers, dim=1, correction=0)
        shift = average - mean
        squares = squares + new * variance + shift**2 * (count * new / (count + new))
        mean = mean + shift * (new / (count + new))
        count += new
    return mean, (squares / count).sqrt()


def varies(mean: Tensor, deviations: Tensor) -> Tensor:
    """Return which channels vary by more than rounding, in any unit; see SMALL and ROUNDING."""
    return deviations > (ROUNDING * mean.abs()).clamp_min(SMALL * min(1.0, float(deviations.max())))


def least_deviation(mean: Tensor, deviations: Tensor) -> float:
    """Return LEAST_DEVIATION of the mean deviation, or SMALL if no channel varies."""
    return LEAST_DEVIATION * float(deviations.mean()) if bool(varies(mean, deviations).any()) else SMALL
