"""Global vectors: the training loss, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.vectors import VectorModality


class Small(VectorModality):
    """A modality of six numbers."""

    summary, dim = "six numbers", 6


@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
def test_the_loss_is_that_of_vectors_and_of_the_quantizer(loss: str) -> None:
    table = {"loss": loss, "width": 16, "depth": 1, "latent_dim": 8, "quantizer": "lfq", "codebook_size": 16}
    task = Small().task(Settings("small", {"tokenizer": table}))
    values = list(np.random.default_rng(0).normal(3, 2, (20, 6)).astype(np.float32))
    module, batch = task.build(values, np.random.default_rng(0)), task.batch(values, np.random.default_rng(0))
    outputs, quantizer_loss = module(batch)
    std, mean = torch.std_mean(batch, dim=0, correction=0)
    expected = {
        "smooth_l1": functional.smooth_l1_loss(outputs, (batch - mean) / std),
        "cosine": 1 - functional.cosine_similarity(outputs * std + mean, batch).mean(),
    }[loss]
    losses = task.losses(module, batch)
    torch.testing.assert_close(losses["reconstruction_loss"], expected)
    torch.testing.assert_close(losses["loss"], expected + quantizer_loss)
    assert quantizer_loss.abs() > 0.01
