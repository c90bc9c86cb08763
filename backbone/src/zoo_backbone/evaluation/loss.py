"""How well a backbone predicts tokens of held-out samples: their cross-entropy, masked as in its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.errors import DataError
from zoo_backbone.config import MaskingConfig
from zoo_backbone.data import TokenData
from zoo_backbone.evaluation.config import EvaluationConfig
from zoo_backbone.masking import Masker
from zoo_backbone.model import FourM, uniform_loss


@torch.inference_mode()
def cross_entropy(
    model: FourM, tokens: Path, names: Sequence[str], masking: MaskingConfig, config: EvaluationConfig
) -> dict[str, Any]:
    """The table "cross_entropy" of evaluation.json (see evaluate.py), where tokens of `names` alone are seen.

    Raises DataError where there is nothing to predict.
    """
    layout, size = model.layout, config.batch_size
    if not set(names) & set(layout.discrete):
        raise DataError(f"{tokens / TEST}: has no tokens to predict that a codec of the training wrote")
    data = TokenData(tokens, TEST, layout.specs, names=names)
    masker = Masker(layout, masking)
    chosen = np.random.default_rng(config.seed).permutation(len(data))[: config.loss_samples]
    device = model.token_embedding.weight.device
    sums, counts = np.zeros(len(layout)), np.zeros(len(layout))
    for step, start in enumerate(range(0, len(chosen), size)):
        batch = masker(data.batch(chosen[start : start + size]), config.seed, step)
        losses = model(batch.trimmed().to(device))
        sums, counts = sums + losses.sums.cpu().numpy(), counts + losses.counts.cpu().numpy()
    return {
        "samples": len(chosen),
        "tokens_of": list(names),
        "modalities": {
            spec.name: {"nats": total / count, "uniform": uniform_loss(spec.vocab_size), "targets": int(count)}
            for spec, total, count in zip(layout.specs, sums.tolist(), counts.tolist(), strict=True)
            if count
        },
    }
