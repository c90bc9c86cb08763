"""The VQ autoencoder of objects, how it is trained, and the tokenizer that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.families.chunks import in_chunks
from tokenizers_zoo.families.objects.grammar import ObjectGrammar, levels_of, numbers_of
from tokenizers_zoo.families.objects.settings import ObjectModelConfig
from tokenizers_zoo.families.objects.spelling import SpelledGrammar
from tokenizers_zoo.families.trained import fitting, half_mirrored
from tokenizers_zoo.nn import MlpConfig, build_decoder, build_encoder
from tokenizers_zoo.nn.mlp import mlp_decoder, mlp_encoder
from tokenizers_zoo.quantizers import build_quantizer
from tokenizers_zoo.quantizers.config import TRAINING_ONLY

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.objects.modality import Array, Fitted, ObjectModality

FITTED_VALUES = 1024
"""Training values from which statistics are computed, more where they hold no object."""
CHUNK = 64
"""Objects that go through the model at once; see `ObjectTokenizer`."""
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "bce": F.binary_cross_entropy_with_logits,
}


class ObjectVQ(nn.Module):
    """Encoder, quantizer and decoder of items, with their mean and scale, and what the plugin fitted.

    Items are (n, *item_shape), latents (n, positions, dim); outputs are at mean 0 and scale 1, or logits.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ObjectModelConfig) -> None:
        super().__init__()
        self.config = config
        channels, dim = config.item_shape[0], config.latent_dim
        self.encoder: nn.Module
        self.decoder: nn.Module
        blocks, decoder = config.blocks, config.decoder or config.blocks
        if isinstance(blocks, MlpConfig):
            self.encoder = mlp_encoder(blocks, channels, dim)
        else:
            self.encoder = build_encoder(blocks, channels, dim, config.patch_size)
        if isinstance(decoder, MlpConfig):
            self.decoder = mlp_decoder(decoder, dim, channels)
        else:
            self.decoder = build_decoder(decoder, dim, channels, config.patch_size)
        self.quantizer = build_quantizer(config.quantizer, dim)
        self.register_buffer("mean", torch.zeros(config.item_shape))
        self.register_buffer("scale", torch.ones(()))
        for name, shape in config.fitted.items():
            self.register_buffer(f"fitted_{name}", torch.zeros(shape, dtype=torch.float64))

    @property
    def fitted(self) -> Fitted:
        """What the plugin's `fit` gave."""
        return {name: self.get_buffer(f"fitted_{name}").cpu().numpy() for name in self.config.fitted}

    def standardise(self, items: Tensor) -> Tensor:
        """Items as the model sees them."""
        return (items - self.mean) / self.scale

    def latents(self, items: Tensor) -> Float[Tensor, "n positions dim"]:
        """What the encoder makes of items."""
        latents = self.encoder(self.standardise(items))
        return latents[:, None] if latents.ndim == 2 else rearrange(latents, "n d h w -> n (h w) d")

    def outputs(self, codes: Float[Tensor, "n positions dim"]) -> Tensor:
        """What the decoder makes of codes: (n, *item_shape)."""
        if len(self.config.item_shape) == 1:
            return self.decoder(codes[:, 0])
        rows = self.config.item_shape[1] // self.config.patch_size
        return self.decoder(rearrange(codes, "n (h w) d -> n d h w", h=rows))

    def forward(self, items: Tensor) -> tuple[Tensor, Float[Tensor, ""]]:
        """Outputs after the quantizer, and its loss."""
        quantized = self.quantizer(self.latents(items))
        return self.outputs(quantized.codes), quantized.loss

    def encode(self, items: Tensor) -> Int[Tensor, "n codes"]:
        """Codes of items, position by position, of each position codebook by codebook."""
        return self.quantizer.encode(self.latents(items)).flatten(1)

    def decode(self, codes: Int[Tensor, "n codes"]) -> Tensor:
        """Items of codes; logits where the loss is one of logits."""
        count = self.config.quantizer.codes_per_position
        tokens = codes if count == 1 else rearrange(codes, "n (p k) -> n p k", k=count)
        return self.outputs(self.quantizer.decode(tokens)) * self.scale + self.mean


class ObjectTokenizer:
    """What encode and decode work with: values to ids and back.

    The model always runs on CHUNK objects, the last ones filled up, because the kernels that libraries choose for
    another batch size round differently, and a latent on the border between two codes would then change its token.
    """

    def __init__(self, modality: ObjectModality, settings: Settings, module: ObjectVQ, device: str = "cpu") -> None:
        self.modality, self.name, self.device = modality, settings.name, device
        self.options = modality.options(settings)
        self.axes = modality.axes(self.options)
        self.grammar: ObjectGrammar | SpelledGrammar = modality.grammar(settings)
        self.module = module.to(device).eval()
        self.fitted = module.fitted

    @classmethod
    def load(cls, modality: ObjectModality, settings: Settings, folder: Path, device: str) -> ObjectTokenizer:
        """Load a checkpoint folder. Raises CheckpointError where it is damaged, or not what the settings ask for.

        The sizes of encoder and decoder are those of the checkpoint; ids have to mean what the settings say.
        """
        tensors, config = load_checkpoint(folder, modality.checkpoint_class)
        wanted = modality.describe(settings)
        with fitting(folder):
            meanings = _meanings(config, wanted)
            found = from_mapping(ObjectModelConfig, config["model"], Origin(table="model"))
            module = ObjectVQ(found)
            module.load_state_dict(tensors)
        for what, (here, there) in meanings.items():
            if here != there:
                raise CheckpointError(
                    f"{settings.name}: the tokenizer at {folder} has {what} {here}, but the settings ask for {there};"
                    " change the settings, or train another"
                )
        return cls(modality, settings, module, device)

    def encode(self, values: Sequence[Any]) -> list[Array]:
        """Ids of each value, int64 (tokens,)."""
        groups = self.modality.split_all(list(values), self.options, self.name)
        objects = [thing for group in groups for thing in group]
        if not objects:
            none = np.zeros((0, len(self.axes)), np.int64), np.zeros((0, self.grammar.codes), np.int64)
            return [self.grammar.write(*none) for _ in groups]
        items = torch.from_numpy(self.modality.items(objects, self.options))
        codes = self._chunks(items, self.module.encode).numpy()
        numbers = self.modality.coordinates(objects, self.fitted, self.options)
        levels = levels_of(self.axes, numbers, self.grammar.bins)
        cuts = np.cumsum([len(group) for group in groups])[:-1]
        return [self.grammar.write(*part) for part in zip(np.split(levels, cuts), np.split(codes, cuts), strict=True)]

    def decode(self, tokens: Sequence[Any]) -> list[Any]:
        """The value of each sequence of ids."""
        read = [self.grammar.read(ids) for ids in tokens]
        codes = np.concatenate([codes for _, codes in read])
        shape = (0, *self.module.config.item_shape)
        items = self._chunks(torch.from_numpy(codes), self.module.decode).numpy() if len(codes) else np.zeros(shape)
        cuts = np.cumsum([len(levels) for levels, _ in read])[:-1]
        return [
            self.modality.join(
                numbers_of(self.axes, levels, self.grammar.bins), part.astype(np.float64), self.fitted, self.options
            )
            for (levels, _), part in zip(read, np.split(items, cuts), strict=True)
        ]

    def _chunks(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat(list(in_chunks(function, batch, CHUNK, self.device)))


def _meanings(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What decides the meaning of ids, by name: as a checkpoint has it, and as the settings ask for it."""
    stored, wanted = ({**config["grammar"], "axes": config["axes"], **config["model"]} for config in (stored, wanted))
    names = [*(field.name for field in fields(ObjectGrammar)), "item_shape"]
    pairs = {name: (stored[name], wanted[name]) for name in names}
    for name in wanted["quantizer"].keys() - set(TRAINING_ONLY):
        pairs[f"quantizer {name}"] = stored["quantizer"].get(name), wanted["quantizer"][name]
    return {name: (_plain(here), _plain(there)) for name, (here, there) in sorted(pairs.items())}


def _plain(value: Any) -> Any:
    """As JSON has it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


class ObjectTask:
    """How the training loop trains an ObjectVQ for a modality."""

    def __init__(self, modality: ObjectModality, settings: Settings) -> None:
        self.modality, self.settings = modality, settings
        self.options = modality.options(settings)
        self.spec = modality.modality_spec(settings)
        self.grammar = modality.grammar(settings)
        self.codebook_size = self.grammar.codebooks * self.grammar.codebook_size
        self.spare: Array | None = None

    def describe(self) -> Mapping[str, Any]:
        """See `TokenizerTask`."""
        return self.modality.describe(self.settings)

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> ObjectVQ:
        """A model with random weights, and the statistics of training values. Raises DataError without an object."""
        objects = list[Any]()
        for count, index in enumerate(rng.permutation(len(train))):
            if count >= FITTED_VALUES and objects:
                break
            objects += self.modality.split_all([train[int(index)]], self.options, self.spec.name)[0]
        if not objects:
            raise DataError(f"{self.spec.name}: there is no object in any of the {len(train)} training values")
        self.spare = self.modality.items(objects[:1], self.options)
        module = ObjectVQ(self.modality.model_config(self.settings))
        if self.modality.loss == "smooth_l1":
            items = self.modality.items(objects, self.options)
            centred = items.astype(np.float64) - items.mean(axis=0, dtype=np.float64)
            module.mean.copy_(torch.from_numpy(items.mean(axis=0, dtype=np.float64)))
            module.scale.fill_(max(1e-6, float(np.sqrt(np.mean(centred**2)))))
        for name, array in self.modality.fit(objects, self.options).items():
            module.get_buffer(f"fitted_{name}").copy_(torch.from_numpy(np.asarray(array)))
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> Tensor:
        """The items of all objects in the values, half of them mirrored where the settings say so; at least one."""
        if self.options.tokenizer.flip:
            values = half_mirrored(self.modality, values, self.settings, rng)
        objects = [thing for group in self.modality.split_all(values, self.options, self.spec.name) for thing in group]
        items = self.modality.items(objects, self.options) if objects else self.spare
        assert items is not None
        return torch.from_numpy(items)

    def losses(self, module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction loss plus the quantizer's."""
        assert isinstance(module, ObjectVQ)
        outputs, quantizer_loss = module(batch)
        reconstruction = LOSSES[self.modality.loss](outputs.float(), module.standardise(batch))
        return {
            "loss": reconstruction + quantizer_loss,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer_loss,
        }

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Tensor | None]:
        """Values after encode and decode, and the codes, each codebook's at an offset; None without an object."""
        assert isinstance(module, ObjectVQ)
        tokenizer = ObjectTokenizer(self.modality, self.settings, module, module.mean.device.type)
        tokens = tokenizer.encode(values)
        ids = np.concatenate(tokens)
        codes = torch.from_numpy(ids[ids >= self.grammar.code_start] - self.grammar.code_start)
        return tokenizer.decode(tokens), codes if len(codes) else None

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """The modality's metrics."""
        scores: Mapping[str, float] = self.modality.score(predicted, target, self.settings)
        return scores

    def render(self, value: Any) -> Any:
        """The modality's picture."""
        return self.modality.render(value, self.settings)
