"""The published sizes of image-like tokenizers, and Transformers at image sizes that differ from training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spatial_samples import PLUGINS, values

from tokenizers_zoo.config import Settings

PUBLISHED_CODES = {"canny": 8192, "depth": 8192, "normal": 8192, "rgb": 16384, "semseg": 4096}
VIT_BASE = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
"""Parameters of 12 blocks and the last norm, without patch embedding and head."""


def published(name: str, **own: Any) -> Settings:
    return Settings(name, {"preset": "4m", **own}, shared={"image_size": 64, "patch_size": 8})


@pytest.mark.parametrize("name", PLUGINS)
def test_a_preset_overrides_shared_settings_but_not_given_ones(name: str) -> None:
    plugin = PLUGINS[name]
    spec = plugin.modality_spec(published(name))
    assert spec.vocab_size == PUBLISHED_CODES[name] and spec.layout.shape == (14, 14)
    assert spec.value.shape[-2:] == (224, 224)
    config = plugin.codec(published(name)).model
    assert (config.encoder.kind, config.encoder.width, config.encoder.depth, config.encoder.heads) == (
        "vit",
        768,
        12,
        12,
    )
    assert (config.quantizer.kind, config.quantizer.distance, config.quantizer.codebook_dim) == ("vq", "cosine", 32)
    own = published(name, image_size=448, tokenizer={"codebook_size": 64, "steps": 5})
    spec, table = plugin.modality_spec(own), plugin.options(own).tokenizer
    assert spec.layout.shape == (28, 28) and spec.vocab_size == 64
    assert (table.steps, table.width, table.precision) == (5, 768, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_the_published_size_runs_forward_and_back(name: str) -> None:
    """Run a step at 224 x 224, and the same weights at another size."""
    from tokenizers_zoo.autoencoder.tokenizer import AutoencoderTokenizer

    plugin, given = PLUGINS[name], published(name)
    task = plugin.task(given)
    pictures = values(name, 2, 224)
    torch.manual_seed(0)
    module = task.build(pictures, np.random.default_rng(0))
    for half in (module.encoder, module.decoder):
        beside = sum(p.numel() for n, p in half.named_parameters() if "transformer" not in n)
        assert sum(p.numel() for p in half.parameters()) - beside == VIT_BASE
    losses = task.losses(module.train(), task.batch(pictures, np.random.default_rng(0)))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    tokenizer = AutoencoderTokenizer(task.codec, module)
    wide = torch.from_numpy(np.stack(values(name, 1, 224)))[..., :192]
    tokens = tokenizer.encode(wide)
    assert tokens.shape == (1, 14, 12) and tokens.max() < PUBLISHED_CODES[name]
    assert tokenizer.decode(tokens).shape == wide.shape
