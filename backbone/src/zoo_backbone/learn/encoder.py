"""The encoder of a trained backbone as a feature extractor: token features, a pooled vector, or a feature pyramid."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import packed, padded, spans_of
from zoo_backbone.model.run import Run

LEVELS = 4
"""Default number of maps in a pyramid."""
SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sizes of a pyramid's maps relative to the grid, that is, strides from a quarter of a patch to two patches (ViTDet,
arXiv 2203.16527, section 3, without its learned layers)."""


class FourMEncoder(nn.Module):
    """The encoder of a backbone, from any set of modalities to features.

    It shares its weights with `model`. `frozen` weights have no gradients; gradients still reach continuous inputs.
    `out_indices` are the blocks that `forward_intermediates` and `pyramid` return, counted from the end where negative;
    default: four, evenly spaced, including the last, or all of fewer. `zoo` has the tokenizers of the training.

    The names of methods are timm's. They take the plain dictionaries of tensors that `prepare` returns, so that the
    module can be compiled and exported. The order of modalities does not matter.
    """

    def __init__(
        self,
        model: FourM,
        zoo: Zoo | None = None,
        *,
        frozen: bool = True,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model = _without_decoder(model)
        self.layout = model.layout
        self.num_features = model.config.dim
        """Numbers of a feature."""
        self.zoo = zoo
        depth = len(model.encoder)
        if out_indices is None:
            count = min(depth, LEVELS)
            out_indices = [depth * (level + 1) // count - 1 for level in range(count)]
        self.out_indices = tuple(index % depth if -depth <= index < depth else index for index in out_indices)
        if not self.out_indices or max(self.out_indices) >= depth or min(self.out_indices) < 0:
            raise ConfigError(f"out_indices: expected blocks from {-depth} to {depth - 1}, got {list(out_indices)}")
        if frozen:
            self.requires_grad_(False)

    @classmethod
    def from_run(
        cls,
        source: Path | str,
        zoo: Zoo | None = None,
        *,
        device: torch.device | str = "cpu",
        frozen: bool = True,
        out_indices: Sequence[int] | None = None,
    ) -> Self:
        """Load the encoder of a run or bundle, as `AnyToAny.from_pretrained` does. Raises CheckpointError.

        Its registry, or `zoo`, encodes values. A frozen encoder is in eval mode.
        """
        run = Run.open(source)
        zoo = run.zoo() if zoo is None else zoo
        encoder = cls(load_model(run.folder, device=device), zoo, frozen=frozen, out_indices=out_indices)
        return encoder.eval() if frozen else encoder

    @property
    def device(self) -> torch.device:
        return self.model.token_embedding.weight.device

    # ------------------------------------------------------------------ inputs

    def tokenize(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Encode values by the zoo's tokenizers, for `prepare`.

        Raises DataError for a tokenizer that differs from the backbone's training, ConfigError without a zoo.
        """
        if self.zoo is None:
            raise ConfigError("FourMEncoder: has no zoo to encode values; give one, or tokens")
        self.layout.check_inputs(values, "features of")
        for name in values:
            self.model.check_tokenizer(self.zoo[name])
        return {name: self.zoo[name].encode(batch) for name, batch in values.items()}

    def prepare(self, tokens: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return tokens as tensors on the encoder's device, and masks for modalities of variable length.

        Raises InvalidValueError for tokens that do not fit their modality, ConfigError without any modality or for a
        modality that is only a target.
        """
        if not tokens:
            raise ConfigError("FourMEncoder: expected at least one modality")
        self.layout.check_inputs(tokens, "features of")
        return padded(self.layout, tokens, self.device)

    # ------------------------------------------------------------------ features

    def forward_intermediates(
        self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the last features `batch tokens dim`, those after `out_indices`, and the mask `batch tokens`.

        All features are normed. The mask is True at tokens of the sample.
        """
        inputs = packed(self.layout, tokens, used or {})
        content, positions, rotation, mask = self.model.encoder_inputs(inputs)
        # A sample without tokens attends to its empty slots: a row without any key would give NaN.
        key_mask = rearrange(mask | ~mask.any(1, keepdim=True), "b n -> b 1 1 n") if used else None
        x = content + positions
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.model.encoder):
            x = block(x, rotation, key_mask)
            if number in self.out_indices:
                outputs[number] = x
        first = x.shape[1] - inputs.mask.shape[1]  # the inputs come last
        last, *intermediates = (
            self.model.encoder_norm(features)[:, first:] for features in (x, *map(outputs.get, self.out_indices))
        )
        return last, intermediates, inputs.mask

    def forward_features(
        self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features `batch tokens dim`, one modality after the other, and their mask `batch tokens`."""
        features, _, mask = self.forward_intermediates(tokens, used)
        return features, mask

    def forward_head(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the mean `batch dim` of the features of used tokens; zero without tokens."""
        weights = mask.unsqueeze(2).to(features.dtype)
        return (features * weights).sum(1) / weights.sum(1).clamp(min=1)

    def forward(
        self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor] | None = None, of: str | None = None
    ) -> Tensor:
        """Return mean features `batch dim` over all tokens, or over the modality `of`; zero without tokens."""
        features, mask = self.forward_features(tokens, used)
        if of is not None:
            span = self._span(tokens, of)
            features, mask = features[:, span], mask[:, span]
        return self.forward_head(features, mask)

    def pyramid(
        self,
        tokens: Mapping[str, Tensor],
        used: Mapping[str, Tensor] | None = None,
        *,
        of: str,
        scales: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """Return maps `batch dim rows columns` of a modality with two axes, one from each block of `out_indices`.

        `scales` are the sizes of the maps relative to the grid, with at least one cell; default: the last of `SCALES`.
        Larger maps are interpolated, smaller ones averaged. Raises ConfigError for a modality without two axes.
        """
        spec = self.layout.spec(of)
        shape = flat_grid(spec)
        if shape is None:
            raise ConfigError(f"pyramid of {of}: expected a grid or patches of two axes, it is a {spec.layout.kind}")
        span = self._span(tokens, of)
        blocks = len(self.out_indices)
        scales = SCALES[-blocks:] if scales is None else tuple(scales)
        if len(scales) != blocks or min(scales) <= 0:
            raise ConfigError(f"scales: expected {blocks} numbers above 0, one a block of out_indices; got {scales}")
        _, intermediates, _ = self.forward_intermediates(tokens, used)
        maps = []
        for features, scale in zip(intermediates, scales, strict=True):
            grid = rearrange(features[:, span], "b (h w) d -> b d h w", h=shape[0])
            rows, columns = (max(1, math.floor(side * scale)) for side in shape)
            if scale > 1:
                grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
            elif scale < 1:
                grid = F.adaptive_avg_pool2d(grid, (rows, columns))
            maps.append(grid)
        return maps

    def _span(self, tokens: Mapping[str, Tensor], name: str) -> slice:
        """Return the columns of a modality's features."""
        spans = spans_of(tokens)
        if name not in spans:
            raise ConfigError(f"{name}: is not among the inputs, {', '.join(spans)}")
        return spans[name]


def _without_decoder(model: FourM) -> FourM:
    """Return a model of the same weights that lacks the modules of the decoder."""
    encoder = copy.copy(model)
    for group in ("_modules", "_parameters", "_buffers"):
        entries = {name: item for name, item in getattr(model, group).items() if name not in model.decoder_only}
        setattr(encoder, group, entries)
    return encoder


def flat_grid(spec: ModalitySpec) -> tuple[int, int] | None:
    """Return rows and columns of a grid or patches with two axes and one feature per place, else None."""
    if len(spec.grid_shape) != 2 or spec.grid_shape != spec.layout.axes:
        return None
    return spec.grid_shape[0], spec.grid_shape[1]


def parameter_groups(
    encoder: FourMEncoder, learning_rate: float, *, decay: float = 0.75, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Return parameter groups with layer-wise learning-rate decay (BEiT, arXiv 2106.08254, appendix).

    Layers are the embeddings, each block, and the final norm, which has the full learning rate. Only matrices of the
    blocks and the projections have weight decay. Each group has `params`, `lr`, `weight_decay`, `layer`; frozen
    parameters are left out.
    """
    depth = len(encoder.model.encoder)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.model.named_parameters():
        parts = name.split(".")
        layer = int(parts[1]) + 1 if parts[0] == "encoder" else depth + 1 if parts[0] == "encoder_norm" else 0
        decays = parameter.ndim > 1 and parts[0] in ("encoder", "projections")
        if parameter.requires_grad:
            groups.setdefault((layer, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (depth + 1 - layer),
            "weight_decay": weight_decay if decays else 0.0,
            "layer": layer,
        }
        for (layer, decays), parameters in sorted(groups.items())
    ]
