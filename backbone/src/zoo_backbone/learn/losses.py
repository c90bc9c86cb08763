"""Loss weights of modalities, gradient accumulation, and losses on held-out samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_zoo.contract.samples import TEST, spread
from tokenizers_zoo.contract.spec import ModalitySpec
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.learn.data import Mix, open_sources
from zoo_backbone.learn.optim import RowAdam
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import TrainConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import Losses

NAME = "log_variance"


class LossBalance:
    """Weights of the modalities in the loss.

    The settings' `loss_weights` are relative: their mean over the targets of a batch is 1. With "uncertainty", the loss
    of a modality is exp(-s) L + s / 2 with a learned s (arXiv 1705.07115, equation 10, for a cross-entropy), which
    converges to a weight of 1 / (2 L). The gradient of s needs L only, so it costs nothing. Raises UnknownNameError for
    an unknown modality in `loss_weights`, and ConfigError if it is only an input.
    """

    def __init__(self, layout: EmbeddingLayout, config: TrainConfig, device: torch.device) -> None:
        self.layout, self.config = layout, config
        self.fixed = torch.ones(len(layout), device=device)
        layout.check_targets(config.loss_weights, "loss_weights:")
        for name, weight in config.loss_weights.items():
            self.fixed[layout.index(name)] = weight
        self.learned = config.balance == "uncertainty"
        self.adam = RowAdam(torch.zeros(len(layout), 1, device=device), config.betas)

    def weights(self, target_counts: Tensor) -> Tensor | None:
        """Return the weights `(modalities,)` for a batch with `target_counts` targets; None if all are 1."""
        if not self.learned and not self.config.loss_weights:
            return None
        share = target_counts if self.config.loss == "token" else (target_counts > 0).float()
        fixed = self.fixed * (share.sum() / (self.fixed * share).sum().clamp(min=1e-9))
        return fixed * self._factors() if self.learned else fixed

    def update(self, sums: Tensor, target_counts: Tensor, rate: float) -> None:
        """Update the learned weights by the summed losses of the whole batch."""
        if self.learned:
            gradient = 0.5 - self._factors() * sums / target_counts.clamp(min=1)
            self.adam.step(torch.where(target_counts > 0, gradient, 0.0).unsqueeze(1), rate)

    def _factors(self) -> Tensor:
        return torch.exp(-self.adam.table.squeeze(1))

    def log_scalars(self) -> dict[str, float]:
        """Return the learned weights for the log."""
        names = self.layout.names if self.learned else ()
        return {f"weight/{name}": factor for name, factor in zip(names, self._factors().tolist(), strict=False)}

    def state(self) -> dict[str, Tensor]:
        """Return the learned weights and their optimizer state."""
        return {NAME: self.adam.table, **self.adam.state(NAME)} if self.learned else {}


class GradAccumulation:
    """Sums the gradients of `count` parts of a batch, whose losses add up to the loss of the batch.

    With `parallel`, as on a CPU, up to `count` threads compute one part each: the operations of a small model are too
    short to be divided among cores. Gradients are summed in the order of the parts, so the result does not depend on
    the number of threads. Use it in a `with` block, which ends them.
    """

    def __init__(self, model: nn.Module, count: int, *, parallel: bool) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.count = count
        self.cores = torch.get_num_threads()
        self.threads = min(count, self.cores) if parallel else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.threads > 1:
            share = max(self.cores // self.threads, 1)
            self._pool = ThreadPoolExecutor(self.threads, "part", initializer=torch.set_num_threads, initargs=(share,))
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self.cores)

    def backward(self, batch: PackedBatch, compute: Callable[[PackedBatch], Losses], scale: float = 1.0) -> Losses:
        """Add the gradient of `scale` times the loss to `.grad`, and return the losses of the whole batch."""

        def with_gradients(part: PackedBatch) -> tuple[Losses, Sequence[Tensor | None]]:
            losses = compute(part)
            return losses, torch.autograd.grad(losses.loss * scale, self.parameters, allow_unused=True)

        parts, part_losses = batch.split(self.count), list[Losses]()
        if self._pool is None:
            for part in parts:
                part_losses.append(compute(part))
                torch.autograd.backward(part_losses[-1].loss * scale)
        else:
            results = list(self._pool.map(with_gradients, parts))
            part_losses = [losses for losses, _ in results]
            for parameter, *gradients in zip(self.parameters, *(gradients for _, gradients in results), strict=True):
                for gradient in gradients:
                    if gradient is not None:
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        sides = zip(*((of.loss.detach(), of.sums, of.counts) for of in part_losses), strict=True)
        loss, sums, counts = (functools.reduce(torch.add, side) for side in sides)
        return Losses(loss=loss, sums=sums, counts=counts)


SEED = 1 << 63
"""A bit of the seed that makes held-out masks differ from training masks."""


def held_out_losses(
    forward: Callable[[PackedBatch], Losses], mix: Mix, config: TrainConfig, pieces: int | None = None
) -> Losses:
    """Return the losses of up to `config.eval_samples` samples of each store, with the same masks each time.

    Each batch is computed in `pieces`, by default the settings' `grad_accum_steps`, as in training. The `loss` that is
    returned is the sum over all tokens.
    """
    parts = []
    for source, masker in zip(mix.sources, mix.maskers, strict=True):
        samples = np.asarray(spread(len(source.data), config.eval_samples))
        for packed in source.data.batches(samples, config.batch_size, masker, config.seed ^ SEED):
            parts += [forward(piece) for piece in packed.split(pieces or config.grad_accum_steps)]
    sums, counts = (sum(getattr(losses, side) for losses in parts) for side in ("sums", "counts"))
    return Losses(loss=sums.sum(), sums=sums, counts=counts)


@torch.no_grad()
def losses_of(
    folder: Path,
    specs: Sequence[ModalitySpec],
    tokens: Path,
    config: TrainConfig,
    optional_names: Collection[str] = (),
    device: torch.device | str = "cpu",
    max_batch_size: int | None = None,
) -> dict[str, tuple[float, int]]:
    """Return the held-out loss of a backbone in nats, and the number of target tokens, by modality.

    `optional_names` are modalities that the token store may lack; the result is empty without held-out samples. At most
    `max_batch_size` samples are computed together on `device`, by default as many as in training.
    """
    model = load_model(folder, specs, device).eval()
    mix = Mix(open_sources(tokens, TEST, specs, config, optional_names), model.layout, config)
    if not mix.sources:
        return {}
    pieces = None if max_batch_size is None else -(-config.batch_size // max_batch_size)
    losses = held_out_losses(lambda batch: model(batch.to(device)), mix, config, pieces)
    counts = dict(zip(model.layout.names, losses.counts.tolist(), strict=True))
    return {name: (loss, int(counts[name])) for name, loss in losses.per_modality(model.layout.names).items()}
