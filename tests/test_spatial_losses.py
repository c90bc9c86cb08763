"""Losses of image-like tokenizers: values by hand, weights, adversarial training with a discriminator, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spatial_samples import PLUGINS, TINY, rgb, semseg, settings, train_killed, values
from torch import nn

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.checkpoint import load_checkpoint
from tokenizers_zoo.records.io import read_lines, read_table
from tokenizers_zoo.tokenizers.autoencoder.losses import (
    RECONSTRUCTION_LOSSES,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_losses,
    ordinal,
)
from tokenizers_zoo.tokenizers.autoencoder.task import frequency_weights
from tokenizers_zoo.train.loop import train

EVERYTHING = {"l1_weight": 0.5, "adversarial_weight": 0.5, "adversarial_start": 0.4}
SAMPLES = TrainingSamples(train=values("rgb", 8), test=values("rgb", 3, seed=1))


def test_losses_by_hand() -> None:
    outputs, target = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[0.0]], [[2.0]]]])
    for name, expected in (("l1", 2.5), ("l2", 6.5), ("smooth_l1", (2.5 + 1.5) / 2), ("cosine", 1 - 0.8)):
        assert float(RECONSTRUCTION_LOSSES[name](outputs, target, None)) == pytest.approx(expected)
    logits, ids = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]]]), torch.tensor([[[0, 1]]])
    nats = [np.log(2), np.log(1 + np.exp(-2))]
    weighted = (3 * nats[0] + nats[1]) / 4
    assert float(RECONSTRUCTION_LOSSES["cross_entropy"](logits, ids, torch.tensor([3.0, 1.0]))) == pytest.approx(
        weighted
    )
    edge = RECONSTRUCTION_LOSSES["bce"](torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([3.0]))
    assert float(edge) == pytest.approx((1 + 3) / 2 * np.log(2))


def test_rare_classes_weigh_more() -> None:
    ids = torch.tensor([[0] * 9 + [1]])
    weights = frequency_weights(ids, 2, 0.5)
    assert float(weights[1] / weights[0]) == pytest.approx(3)
    assert float(0.9 * weights[0] + 0.1 * weights[1]) == pytest.approx(1)
    assert torch.equal(frequency_weights(ids, 3, 0.0), torch.ones(3))
    assert float(frequency_weights(torch.tensor([1.0, 0, 0, 0, 0]), 1, 0.5)) == pytest.approx(2)


def test_the_balance_of_classes_is_a_setting() -> None:
    ids = [np.zeros((16, 16), np.int64) for _ in range(4)]
    for value in ids:
        value[:4, :4] = 1  # one pixel of sixteen
    for balance, ratio in ((0.5, 15**0.5), (1.0, 15.0)):
        table = {**TINY, "class_balance": balance}
        task = semseg.plugin.task(settings("semseg", classes=["a", "b"], tokenizer=table))
        task.build(ids, np.random.default_rng(0))
        assert float(task.class_weights[1] / task.class_weights[0]) == pytest.approx(ratio)


def test_the_distance_of_ordered_classes_by_hand() -> None:
    """The truth is class 0 of three; shares of 1/2, 0, 1/2 make two cumulative errors of 1/2."""
    logits = torch.tensor([0.0, -100.0, 0.0])[None, :, None, None]
    assert float(ordinal(logits, torch.tensor([[[0]]]))) == pytest.approx(0.25 + 0.25)


def test_weights_are_those_of_the_table() -> None:
    table = {**TINY, "l2_weight": 3.0, "smooth_l1_weight": 0.5}
    task = rgb.plugin.task(settings("rgb", tokenizer=table))
    module = task.build(SAMPLES.train, np.random.default_rng(0))
    batch = torch.from_numpy(np.stack(SAMPLES.train))
    outputs, quantizer_loss = module(batch)
    target = (batch - module.mean) / module.std
    expected = 3 * (outputs - target).square().mean() + 0.5 * nn.functional.smooth_l1_loss(outputs, target)
    torch.testing.assert_close(task.losses(module, batch)["loss"], expected + quantizer_loss)
    assert quantizer_loss > 0.001


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("semseg", {"loss": "l1"}, r"\] loss: l1 does not fit classes values; choose cross_entropy or ordinal"),
        ("rgb", {"ordinal_weight": 1.0}, "ordinal_weight: ordinal does not fit continuous values; choose l1 or l2"),
        ("depth", {"class_balance": 0.5}, "class_balance: works with cross_entropy and bce only"),
        ("canny", {"adversarial_weight": 1.0}, "adversarial_weight: adversarial does not fit binary values"),
        ("rgb", {"l1_weight": -1.0}, "l1_weight: expected float >= 0"),
        ("rgb", {"adversarial_start": 0.6}, "adversarial_start: used with adversarial_weight only"),
    ],
)
def test_losses_that_do_not_fit_a_modality_are_refused(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PLUGINS[name].task(settings(name, tokenizer={**TINY, **table}))


# ---------------------------------------------------------------- against a discriminator


def test_a_discriminator_needs_maps_that_it_can_halve_three_times() -> None:
    table = {**TINY, "adversarial_weight": 1.0}
    maps = [settings("rgb", image_size=[size, 12], patch_size=1, tokenizer=table) for size in (7, 8)]
    small, large = (rgb.plugin.task(map_settings) for map_settings in maps)
    with pytest.raises(ConfigError, match=r"adversarial_weight: .* has 7 x 12"):
        small.discriminator()
    discriminator = large.discriminator()
    assert discriminator is not None and discriminator(torch.zeros(1, 3, 8, 12)).shape == (1, 1, 1, 1)


def test_the_model_maximises_the_discriminator_score() -> None:
    """The discriminator is the identity: it scores the output as 2.0 and the truth as 0.5."""
    outputs, target = torch.full((2, 1, 4, 4), 2.0), torch.full((2, 1, 4, 4), 0.5)
    loss, discriminator_loss = adversarial_losses(nn.Identity(), outputs, target)
    assert float(loss) == -2 and float(discriminator_loss) == 0.5 * (0.5 + 3)


def test_each_loss_moves_its_own_side_only() -> None:
    discriminator, model = PatchDiscriminator(3), nn.Conv2d(3, 3, 1)
    pictures = torch.randn(2, 3, 16, 16)
    loss, discriminator_loss = adversarial_losses(discriminator, model(pictures), pictures)
    loss.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert model.weight.grad is not None and model.weight.grad.abs().sum() > 0
    before = model.weight.grad.clone()
    discriminator_loss.backward()
    assert torch.equal(model.weight.grad, before)
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in discriminator.parameters())


def test_adaptive_weight_by_hand() -> None:
    decoder = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(2, 1))
    with torch.no_grad():
        decoder[2].weight.copy_(torch.tensor([[3.0, 4.0]]))
    last = decoder[2].weight
    reconstruction, adversarial = 2 * last.sum(), last.square().sum()  # gradients (2, 2) and (6, 8)
    assert float(adaptive_weight(reconstruction, adversarial, decoder)) == pytest.approx(8**0.5 / 10, rel=1e-4)
    assert float(adaptive_weight(reconstruction, 0 * adversarial, decoder)) == pytest.approx(1e4)


def test_with_a_discriminator_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Killed before the discriminator starts, afterwards, and after the last step; checkpoints do not contain it."""
    rgb_settings = settings("rgb", tokenizer={**TINY, **EVERYTHING, "steps": 8, "eval_every": 2, "grad_accum_steps": 2})
    uninterrupted = rgb.plugin.train_tokenizer(rgb_settings, SAMPLES, tmp_path / "whole", 0, "cpu")
    for last in (3, 5, 8):
        train_killed(rgb.plugin, rgb_settings, SAMPLES, tmp_path / str(last), last)
        resumed = rgb.plugin.train_tokenizer(rgb_settings, SAMPLES, tmp_path / str(last), 0, "cpu")
        assert (resumed / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    plain = rgb.plugin.train_tokenizer(settings("rgb"), SAMPLES, tmp_path / "plain", 0, "cpu")
    names = [set(load_checkpoint(folder, rgb.plugin.checkpoint_class)[0]) for folder in (uninterrupted, plain)]
    assert names[0] == names[1]
    line = read_lines(uninterrupted / "metrics.jsonl")[-2]
    names = ("discriminator_loss", "discriminator_gradient_norm", "l1_loss")
    assert all(line[f"train/{name}"] > 0 for name in names)


def test_patience_begins_with_the_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best weights from before the discriminator's start are not kept."""
    table = {**TINY, **EVERYTHING, "steps": 10, "eval_every": 1, "patience": 2}
    scores = iter([40.0, 30.0, 20.0, 10.0, 1.0, 3.0, 2.0, 1.0])

    @hookimpl
    def score(predicted: Any, target: Any) -> dict[str, float]:
        return {"psnr": next(scores, 3.0), "ssim": 0.0}

    monkeypatch.setattr(rgb.plugin, "score", score, raising=False)
    folder = rgb.plugin.train_tokenizer(settings("rgb", tokenizer=table), SAMPLES, tmp_path, 0, "cpu")
    result = read_table(folder / "evaluation.json")
    assert (result["steps"], result["kept_step"]) == (8, 6)


def test_the_discriminator_counts_with_adversarial_weight() -> None:
    """It does not count before its start."""
    torch.manual_seed(0)
    task = rgb.plugin.task(settings("rgb", tokenizer={**TINY, "adversarial_weight": 0.3}))
    module, discriminator = task.build(SAMPLES.train, np.random.default_rng(0)), task.discriminator()
    assert discriminator is not None
    batch = torch.from_numpy(np.stack(SAMPLES.train))
    start, plain = task.discriminator_start, task.losses(module, batch)
    assert start > 0 and task.losses_against(module, discriminator, batch, start - 1).keys() == plain.keys()
    losses = task.losses_against(module, discriminator, batch, start)
    logits = discriminator(module(batch)[0]).mean()
    torch.testing.assert_close(losses["adversarial_loss"], -logits)
    last = [p for p in module.decoder.parameters() if p.ndim > 1][-1]
    norms = [torch.autograd.grad(loss, last)[0].norm() for loss in (plain["reconstruction_loss"], logits)]
    added = losses["loss"] - plain["loss"]
    torch.testing.assert_close(added, -0.3 * norms[0] / norms[1] * logits, rtol=1e-2, atol=0)


def test_the_discriminator_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """In the first step AdamW moves each number without weight decay by the learning rate."""
    table = {**TINY, "steps": 1, "adversarial_weight": 1.0, "adversarial_start": 0.0, "adversarial_rate": 0.2}
    rgb_settings = settings("rgb", tokenizer=table)
    task, config = rgb.plugin.task(rgb_settings), rgb.plugin.options(rgb_settings).tokenizer
    module, discriminator = task.build(SAMPLES.train, np.random.default_rng(0)), task.discriminator()
    assert discriminator is not None
    task.build = lambda train, rng: module  # type: ignore[method-assign]
    task.discriminator = lambda: discriminator  # type: ignore[method-assign]
    biases = [next(p for p in part.parameters() if p.ndim == 1) for part in (module, discriminator)]
    before = [bias.detach().cpu().clone() for bias in biases]
    train(task, SAMPLES, config, tmp_path, 0)
    changes = [float((bias.detach().cpu() - old).abs().max()) for bias, old in zip(biases, before, strict=True)]
    rate = config.learning_rate_at(0)
    # The trained module ends with its EMA weights, which start with a decay of 0.1.
    assert changes == pytest.approx([0.9 * rate, 0.2 * rate], rel=1e-3)


# ---------------------------------------------------------------- seen by a trained network


def test_perceptual_distance_grows_with_noise() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from tokenizers_zoo.tokenizers.autoencoder.losses import PerceptualDistance

    network = PerceptualDistance().train()
    assert not network.network.training and not any(p.requires_grad for p in network.parameters())
    sharp = torch.from_numpy(np.stack(values("rgb", 2, 64)))
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    slightly, strongly = ((sharp + amount * noise).clamp(0, 1) for amount in (0.02, 0.2))
    assert float(network(sharp, sharp)) == pytest.approx(0, abs=1e-6)
    assert 0 < network(slightly, sharp) < network(strongly, sharp)
    reconstruction = slightly.clone().requires_grad_()
    network(reconstruction, sharp).backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_a_tokenizer_trains_with_perceptual_loss(tmp_path: Path, name: str) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    plugin = PLUGINS[name]
    samples = TrainingSamples(train=values(name, 4), test=values(name, 2))
    tokenizer_settings = settings(name, tokenizer={**TINY, "steps": 1, "perceptual_weight": 0.1})
    folder = plugin.train_tokenizer(tokenizer_settings, samples, tmp_path, 0, "cpu")
    line = read_lines(folder / "metrics.jsonl")[0]
    main = line[f"train/{plugin.loss}_loss"] + 0.1 * line["train/perceptual_loss"]
    assert line["train/reconstruction_loss"] == pytest.approx(main) and line["train/perceptual_loss"] > 0
