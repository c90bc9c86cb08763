"""Training task of a diffusion decoder: on a frozen tokenizer, or together with a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_zoo.autoencoder.config import DiffusionConfig, TokenizerSetup
from tokenizers_zoo.autoencoder.diffusion import DiffusionAutoencoder
from tokenizers_zoo.autoencoder.model import Autoencoder
from tokenizers_zoo.autoencoder.task import AutoencoderTask
from tokenizers_zoo.autoencoder.tokenizer import ValueCodec, load_autoencoder
from tokenizers_zoo.checkpoint import fingerprint, load_config, resolve_folder
from tokenizers_zoo.errors import CheckpointError, ConfigError


class TrainedBase(NamedTuple):
    """A trained tokenizer that a diffusion decoder is trained on."""

    module: Autoencoder
    fingerprint: str
    lineage: Sequence[Mapping[str, Any]]
    """The tokenizers whose tokens it decodes, too."""

    @classmethod
    def load(cls, setup: TokenizerSetup, base: str) -> TrainedBase:
        """Load the tokenizer in a folder or on the hub. Raises CheckpointError."""
        try:
            folder = resolve_folder(base)
            module = load_autoencoder(folder, setup)
        except CheckpointError as error:
            where = setup.tokenizer_origin.at("diffusion")
            raise CheckpointError(f"{where}: base: {error}") from None
        return cls(module, fingerprint(folder), load_config(folder).get("lineage", []))


class DiffusionTask(AutoencoderTask):
    """Train a DiffusionAutoencoder: on a frozen `base`, or everything together.

    Raises ConfigError for class ids, for a discriminator besides it, and for a network that is too narrow.
    """

    def __init__(
        self, setup: TokenizerSetup, codec: ValueCodec, diffusion: DiffusionConfig, base: TrainedBase | None
    ) -> None:
        super().__init__(setup, codec)
        self.diffusion, self.base = diffusion, base
        where = setup.tokenizer_origin.at("diffusion")
        if setup.model.kind == "classes":
            raise ConfigError(f"{where}: works with continuous and binary values only; remove it")
        if getattr(setup.table, "adversarial_weight", 0) and base is None:
            raise ConfigError(f"{where}: set adversarial_weight = 0, or train the tokenizer first and set base")
        cell = setup.model.channels * diffusion.patch_size**2
        if cell > diffusion.width:
            raise ConfigError(
                f"{where}: width {diffusion.width} is below the {cell} numbers of a cell of {diffusion.patch_size} x"
                f" {diffusion.patch_size} pixels; lower patch_size, or set width to at least {-(-cell // 16) * 16}"
            )

    def describe(self) -> Mapping[str, Any]:
        config = {**super().describe(), "diffusion": self.diffusion.trained()}
        if self.base is None:
            return config
        lineage = [*self.base.lineage, {"fingerprint": self.base.fingerprint, "length": self.codebook_size}]
        return {**config, "base": self.base.fingerprint, "lineage": lineage}

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> DiffusionAutoencoder:
        """Return the base, or a new autoencoder, with a new denoiser and the deviation of its targets."""
        plain = self.base.module if self.base is not None else super().build(train, rng)
        module = DiffusionAutoencoder.around(plain, self.diffusion).eval()
        if self.base is not None:
            items, _ = self.codec.fit(train, self.setup.statistics_samples, rng)
            module.measure_scale(self.codec.to_network(torch.cat([*items])))
        return module

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Return the diffusion loss, and without a base also the losses of the autoencoder."""
        assert isinstance(module, DiffusionAutoencoder)
        if module.frozen:
            loss = module.diffusion_loss(batch, module.frozen_codes(batch))
            return {"loss": loss, "diffusion_loss": loss}
        codes, quantizer_loss = module.codes(batch)
        losses = self.compare(module, batch, module.decoder(codes).float(), quantizer_loss)
        diffusion_loss = module.diffusion_loss(batch, codes)
        return losses | {"loss": losses["loss"] + diffusion_loss, "diffusion_loss": diffusion_loss}
