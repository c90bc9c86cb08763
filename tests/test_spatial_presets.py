"""The published sizes of image-like tokenizers, and Transformers at image sizes that differ from training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spatial_samples import PLUGINS, depth, settings, values

from tokenizers_zoo import Zoo
from tokenizers_zoo.config import Settings, load_toml
from tokenizers_zoo.data.samples import TrainingSamples

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
    config = plugin.setup(published(name)).model
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


def test_a_transformer_sees_larger_pictures_than_it_was_trained_on(tmp_path: Path) -> None:
    """Positions scale with the picture, so flat pictures of twice the size are reconstructed equally well."""
    flat = lambda size: [np.full((1, size, size), metres, np.float32) for metres in np.geomspace(0.5, 20, 24)]  # noqa: E731
    table = {
        "steps": 80, "eval_every": 80, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 10, "levels": [8, 6, 5],
        "blocks": "vit", "width": 64, "depth": 1, "heads": 2,
    }  # fmt: skip
    chosen = settings("depth", tokenizer=table)
    samples = TrainingSamples(train=flat(16), test=flat(16)[1::5])
    folder = depth.plugin.train_tokenizer(chosen, samples, tmp_path / "run", 0)
    errors = {}
    for size in (16, 32):
        larger = settings("depth", image_size=size, tokenizer=table)
        tokenizer = depth.plugin.load_tokenizer(folder, "cpu", larger)
        truth = np.stack(flat(size))
        back = depth.plugin.decode(tokenizer, depth.plugin.encode(tokenizer, torch.from_numpy(truth))).numpy()
        errors[size] = depth.plugin.score(list(back), list(truth), larger)["abs_rel"]
    floor = depth.plugin.score([depth.plugin.constant_baseline(flat(16), chosen)] * 24, flat(16), chosen)["abs_rel"]
    assert errors[16] < 0.25 * floor and errors[32] < 0.5 * floor


def test_the_settings_for_quality_are_read_whole() -> None:
    path = Path(__file__).parent.parent / "configs" / "quality.toml"
    zoo = Zoo.from_toml(path)
    assert zoo.problems() == {} and sorted(load_toml(path)["modalities"]) == sorted(zoo.names())
    assert zoo["rgb"].spec.layout.shape == (16, 16, 5) and zoo["rgb"].spec.num_codebooks == 5
    assert zoo["depth"].spec.layout.shape == (16, 16)
