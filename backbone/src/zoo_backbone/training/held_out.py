"""Losses on held-out samples, the same ones of each store and always with the same masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from tokenizers_zoo.data.samples import TEST, spread
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.batch import PackedBatch
from zoo_backbone.checkpoint import load_model
from zoo_backbone.config import TrainConfig
from zoo_backbone.data import Mix, open_sources
from zoo_backbone.model import Losses

SEED = 1 << 63
"""Set in the seed of held-out masks, so that they are not those of training."""


def held_out_losses(
    forward: Callable[[PackedBatch], Losses], mix: Mix, config: TrainConfig, pieces: int | None = None
) -> Losses:
    """The sums and counts of up to `config.eval_samples` samples of each store; their loss is the sum of all.

    A batch goes through `forward` in `pieces`, by default the settings' `grad_accum_steps`: as few samples at a time as
    in training, where each process has its share of the batch.
    """
    size = config.batch_size
    found = []
    for source, masker in zip(mix.sources, mix.maskers, strict=True):
        chosen = np.asarray(spread(len(source.data), config.eval_samples))
        for step, first in enumerate(range(0, len(chosen), size)):
            samples = chosen[first : first + size]
            packed = masker(source.data.batch(samples), config.seed ^ SEED, step).trimmed()
            found += [forward(piece) for piece in packed.split(pieces or config.grad_accum_steps)]
    sums, counts = (sum(getattr(losses, side) for losses in found) for side in ("sums", "counts"))
    return Losses(loss=sums.sum(), sums=sums, counts=counts)


@torch.no_grad()
def losses_of(
    folder: Path,
    specs: Sequence[ModalitySpec],
    tokens: Path,
    config: TrainConfig,
    known: Collection[str] = (),
    device: torch.device | str = "cpu",
    at_once: int | None = None,
) -> dict[str, tuple[float, int]]:
    """By modality, the loss of the backbone in `folder` on held-out samples, nats, and the number of their targets.

    `known` are modalities that the tokens may lack; nothing is given where there are no held-out samples. The model
    runs on `device`, on `at_once` samples at most (default: a step's, in its `grad_accum_steps`).
    """
    model = load_model(folder, specs, device).eval()
    mix = Mix(open_sources(tokens, TEST, specs, config, known), model.layout, config)
    if not mix.sources:
        return {}
    pieces = None if at_once is None else -(-config.batch_size // at_once)
    losses = held_out_losses(lambda batch: model(batch.to(device)), mix, config, pieces)
    counts = dict(zip(model.layout.names, losses.counts.tolist(), strict=True))
    return {name: (loss, int(counts[name])) for name, loss in losses.per_modality(model.layout.names).items()}
