"""How the common loop trains a diffusion decoder: on a finished tokenizer that stays as it is, or with a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import fingerprint, load_config, resolve_folder
from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.families.spatial.diffusion import DiffusionTokenizer, DiffusionVQ
from tokenizers_zoo.families.spatial.model import SpatialTokenizer, model_inputs
from tokenizers_zoo.families.spatial.task import STATISTICS_SAMPLES, SpatialTask
from tokenizers_zoo.families.statistics import some_values

if TYPE_CHECKING:
    from tokenizers_zoo.families.spatial.critic import PatchCritic
    from tokenizers_zoo.families.spatial.modality import SpatialModality


class DiffusionTask(SpatialTask):
    """How the training loop trains a DiffusionVQ; see `TokenizerTask`.

    Raises ConfigError for class ids, which have no noise between them, for a critic beside it, and for a network whose
    cells hold more numbers than it has channels.
    """

    def __init__(self, modality: SpatialModality, settings: Settings) -> None:
        super().__init__(modality, settings)
        self.diffusion = self.table.diffusion
        where = settings.origin.inner("tokenizer").at("diffusion")
        if modality.kind == "classes":
            raise ConfigError(
                f"{where}: is for continuous and 0/1 values, and {settings.name} has class ids; take it out"
            )
        if self.table.adversarial_weight and self.diffusion.base is None:
            raise ConfigError(
                f"{where}: does not train beside a critic; set adversarial_weight = 0, or train the tokenizer first and"
                " name it by base"
            )
        cell = modality.model_config(self.options).channels * self.diffusion.patch_size**2
        if cell > self.diffusion.width:
            raise ConfigError(
                f"{where}: a width of {self.diffusion.width} does not hold the {cell} numbers of a cell of"
                f" {self.diffusion.patch_size} x {self.diffusion.patch_size} pixels, so that noise would stay; lower"
                f" patch_size, or set a width of at least {-(-cell // 16) * 16}"
            )
        self.base: SpatialTokenizer | None = None
        if self.diffusion.base is not None:
            try:
                self.folder = resolve_folder(self.diffusion.base)
                self.base = SpatialTokenizer.load(modality, settings, self.folder, "cpu")
            except CheckpointError as error:
                raise CheckpointError(f"{where}: base: {error}") from None

    def describe(self) -> Mapping[str, Any]:
        """The checkpoint's config; with a base its model, and the codecs whose tokens this one decodes, too."""
        config = {**super().describe(), "diffusion": self.diffusion.trained()}
        if self.base is None:
            return config
        codec, older = fingerprint(self.folder), load_config(self.folder).get("lineage", [])
        lineage = [*older, {"fingerprint": codec, "length": self.codebook_size}]
        return {**config, "model": recorded(self.base.module.config), "base": codec, "lineage": lineage}

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> DiffusionVQ:
        """The base, or a new autoencoder, with a new denoiser, and the deviation of what that is to draw."""
        plain = self.base.module if self.base is not None else super().build(train, rng)
        module = DiffusionVQ.around(plain, self.diffusion, self.modality.kind).eval()
        if self.base is not None:
            values = torch.stack([*some_values(train, STATISTICS_SAMPLES, rng)])
            module.measure_scale(model_inputs(self.modality, values, module.config))
        return module

    def build_critic(self) -> PatchCritic | None:
        """None: the critic of the settings, if any, was that of the base."""
        return None

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """The diffusion loss, and without a base those of the autoencoder, too."""
        assert isinstance(module, DiffusionVQ)
        inputs = model_inputs(self.modality, batch, module.config)
        if module.frozen:
            loss = module.diffusion_loss(inputs, module.frozen_codes(inputs))
            return {"loss": loss, "diffusion_loss": loss}
        codes, quantizer_loss = module.codes(inputs)
        losses, _, _ = self._judged(module, batch, inputs, module.decoder(codes).float(), quantizer_loss)
        diffusion_loss = module.diffusion_loss(inputs, codes)
        return losses | {"loss": losses["loss"] + diffusion_loss, "diffusion_loss": diffusion_loss}

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor]:
        """Values after encode and decode by diffusion, and the tokens."""
        assert isinstance(module, DiffusionVQ)
        tokenizer = DiffusionTokenizer(self.modality, module, module.mean.device.type)
        tokens = tokenizer.encode(torch.from_numpy(np.stack(values)))
        return list(tokenizer.decode(tokens).numpy()), tokens
