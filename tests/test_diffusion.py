"""The diffusion decoder: predictions, sampling, unchanged tokens, and resumed runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from spatial_samples import PLUGINS, TINY, rgb, settings, train_killed, values
from stores import writing_values

from tokenizers_zoo.autoencoder.config import DiffusionConfig
from tokenizers_zoo.autoencoder.diffusion import (
    DiffusionAutoencoder,
    noise_of,
    noise_schedule,
    sampler_of,
)
from tokenizers_zoo.autoencoder.tokenizer import CHUNK_NUMBERS, AutoencoderTokenizer
from tokenizers_zoo.checkpoint import fingerprint, load_checkpoint, load_config
from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.io import read_table
from tokenizers_zoo.pipeline.evaluate import evaluate_tokenizer
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.train.batches import seeded

SMALL = {"width": 16, "multipliers": [1, 2], "sampling_steps": 4}


def diffusing(name: str = "rgb", table: dict[str, Any] | None = None, **diffusion: Any) -> Settings:
    return settings(name, tokenizer={**TINY, **(table or {}), "diffusion": {**SMALL, **diffusion}})


def samples(name: str = "rgb") -> TrainingSamples:
    return TrainingSamples(train=values(name, 8), test=values(name, 3, seed=1))


def train(folder: Path, chosen: Settings, name: str = "rgb") -> Path:
    return PLUGINS[name].train_tokenizer(chosen, samples(name), folder, 0, "cpu")


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """The model runs on chunks of 64 x 64 pixels by 16: at 16 x 16 pixels most of them would be filling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_NUMBERS, "cpu", 8 * 16 * 16)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("base") / "rgb", settings("rgb"))


@pytest.fixture(scope="module")
def second(base: Path) -> Path:
    return train(base.parent / "second", diffusing(base=str(base), target="residual"))


def loaded(folder: Path, **diffusion: Any) -> AutoencoderTokenizer:
    return rgb.plugin.load_tokenizer(folder, "cpu", diffusing(**diffusion))


def batch(count: int, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.stack(values("rgb", count, size, seed=2)))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prediction": "epsilon"}, r"prediction: epsilon needs zero_terminal_snr = false"),
        ({"target": "residual"}, r"target: residual refines .* set base"),
        ({"drop_share": 0, "guidance_scale": 2}, "guidance_scale: values other than 1 need a drop_share above 0"),
        ({"sampling_steps": 0}, "sampling_steps: expected at least 1"),
        ({"sampling_steps": 30}, "sampling_steps: expected a divisor of 1000, got 30"),
        ({"noise_levels": 1, "sampling_steps": 1}, r"noise_levels: expected a number in \[2, 100000\], got 1"),
        ({"width": 20}, "width: expected a multiple of 16"),
        ({"patch_size": 3}, r"tokenizer.diffusion.patch_size: 3 does not divide patch_size 8"),
    ],
)
def test_wrong_settings_are_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rgb.plugin.modality_spec(diffusing(**table))


def test_class_ids_and_discriminators_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diffusion: works with continuous and binary values"):
        train(tmp_path, diffusing("semseg"), "semseg")
    with pytest.raises(ConfigError, match="set adversarial_weight = 0"):
        train(tmp_path, diffusing(table={"adversarial_weight": 0.1}))
    with pytest.raises(ConfigError, match=r"width 16 is below the 48 numbers .* 4 x 4 .* width to at least 48"):
        train(tmp_path, diffusing(patch_size=4))
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- noise and targets


def test_noise_depends_on_tokens_and_seed_only() -> None:
    tokens = torch.arange(4).reshape(2, 2)
    first = noise_of(tokens, 0, (3, 64, 64))
    assert torch.equal(first, noise_of(tokens.clone(), 0, (3, 64, 64)))
    assert not torch.equal(first, noise_of(tokens, 1, (3, 64, 64)))
    assert not torch.equal(first, noise_of(tokens.flip(0), 0, (3, 64, 64)))
    assert abs(float(first.mean())) < 0.03 and abs(float(first.std()) - 1) < 0.03


def test_edges_are_targets_of_either_sign() -> None:
    module = PLUGINS["canny"].task(diffusing("canny")).build(samples("canny").train, np.random.default_rng(0))
    assert module.target(torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist() == [-1, 1]


# ---------------------------------------------------------------- the network and its samplers


def module_of(**diffusion: Any) -> DiffusionAutoencoder:
    """Return an untrained module with non-zero predictions."""
    task = rgb.plugin.task(diffusing(**diffusion))
    with seeded(0):
        module = task.build(samples().train, np.random.default_rng(0))
        torch.nn.init.normal_(module.denoiser.network.conv_out.weight, std=0.05)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("table", [{}, {"prediction": "v"}, {"prediction": "epsilon", "zero_terminal_snr": False}])
@pytest.mark.parametrize("steps", [50, 125])
def test_both_samplers_sample_the_distribution(sampler: Any, table: dict[str, Any], steps: int) -> None:
    """For normally distributed values the perfect network is known."""
    config = DiffusionConfig(**table, sampler=sampler, sampling_steps=steps)
    mean, variance, levels = 0.7, 0.25, noise_schedule(config).alphas_cumprod
    drawer = sampler_of(config)
    times = [int(time) for time in drawer.timesteps]
    assert len(times) == steps and times[0] == 999 and times[-1] >= 0
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for time in drawer.timesteps:
        kept = levels[time]
        expected = mean + kept.sqrt() * variance / (kept * variance + 1 - kept) * (values - kept.sqrt() * mean)
        noise = (values - kept.sqrt() * expected) / (1 - kept).sqrt()
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * expected
        predicted = {"x0": expected, "v": velocity, "epsilon": noise}[config.prediction]
        values = drawer.step(predicted, time, values)[0]
    assert abs(float(values.mean()) - mean) < 0.02 and abs(float(values.std()) - 0.5) < 0.04


class Oracle(torch.nn.Module):
    """A network that knows the target and returns the loss-minimising prediction."""

    def __init__(self, module: DiffusionAutoencoder, target: torch.Tensor) -> None:
        super().__init__()
        self.target, self.schedule, self.prediction = target, module.schedule, module.diffusion.prediction
        self.scale = module.denoiser.scale

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, *_: Any) -> torch.Tensor:
        kept = self.schedule.alphas_cumprod[times][:, None, None, None]
        noise = (noisy - kept.sqrt() * self.target) / (1 - kept).sqrt()
        return {
            "x0": self.target.expand_as(noisy),
            "v": kept.sqrt() * noise - (1 - kept).sqrt() * self.target,
            "epsilon": noise,
        }[self.prediction]


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("table", [{"prediction": "x0"}, {"prediction": "v", "schedule": "cosine"}])
def test_perfect_network_has_zero_loss_and_samples_the_target(sampler: Any, table: dict[str, Any]) -> None:
    module = module_of(**table, sampler=sampler, sampling_steps=8)
    inputs = batch(4)
    target = module.target(inputs)
    module.denoiser = Oracle(module, target)  # type: ignore[assignment]
    codes = module.frozen_codes(inputs)
    assert module.diffusion_loss(inputs, codes) < 1e-8
    torch.testing.assert_close(module.sample(codes, torch.randn_like(target)), target, atol=1e-3, rtol=0)


def test_guidance_1_is_conditional_and_guidance_0_is_unconditional() -> None:
    module = module_of(drop_share=0.5)
    noisy, times, codes = torch.randn(2, 3, 16, 16), torch.tensor([500, 10]), torch.randn(2, 32, 2, 2)
    told = module.denoiser(noisy, times, codes, None)
    untold = module.denoiser(noisy, times, torch.zeros_like(codes), None)  # the code of nothing starts at 0
    assert not torch.allclose(told, untold)
    for scale, expected in ((1.0, told), (0.0, untold), (3.0, untold + 3 * (told - untold))):
        module.diffusion = dataclasses.replace(module.diffusion, guidance_scale=scale)
        torch.testing.assert_close(module.guided_prediction(noisy, times, codes, None), expected)


# ---------------------------------------------------------------- a second stage


def test_second_stage_changes_only_the_diffusion_decoder(base: Path, second: Path) -> None:
    before, after = load_checkpoint(base)[0], load_checkpoint(second)[0]
    assert {name for name in after if not name.startswith("denoiser.")} == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    first = rgb.plugin.load_tokenizer(base, "cpu", settings("rgb"))
    both = loaded(second)
    tokens = first.encode(batch(5))
    assert torch.equal(both.encode(batch(5)), tokens)
    assert torch.equal(both.decode_plain(tokens), first.decode(tokens))
    assert not torch.equal(both.decode(tokens), first.decode(tokens))


def test_tokens_of_the_base_tokenizer_stay_valid(base: Path, second: Path, tmp_path: Path, zoo: Zoo) -> None:
    codec = fingerprint(base)
    size = rgb.plugin.modality_spec(settings("rgb")).vocab_size
    assert load_config(second)["lineage"] == [{"fingerprint": codec, "length": size}]
    assert fingerprint(second) != codec
    handle = zoo["rgb"].at(second)
    assert handle.files.grew_from(codec, size) and not handle.files.grew_from(codec, size + 1)
    third = train(tmp_path / "third", diffusing(base=str(second), seed=3))
    assert [old["fingerprint"] for old in load_config(third)["lineage"]] == [codec, fingerprint(second)]


def test_settings_choose_the_decoder_and_how_it_is_run(base: Path, second: Path) -> None:
    tokens = loaded(second).encode(batch(2))
    plain = rgb.plugin.load_tokenizer(second, "cpu", settings("rgb"))
    assert torch.equal(plain.decode(tokens), loaded(second).decode_plain(tokens))
    kept = loaded(second).decode(tokens)
    assert torch.equal(loaded(second, width=64).decode(tokens), kept)  # sizes come from the checkpoint
    for changed in ({"seed": 1}, {"sampling_steps": 2}, {"sampler": "dpm"}, {"guidance_scale": 2.0}):
        assert not torch.equal(loaded(second, **changed).decode(tokens), kept)
    with pytest.raises(CheckpointError, match="has no diffusion decoder"):
        loaded(base)


def test_a_value_depends_on_its_own_tokens_only(second: Path) -> None:
    tokenizer = loaded(second)
    tokens = torch.randint(0, 15, (7, 2, 2), generator=torch.Generator().manual_seed(0))
    tokens[6] = tokens[1]
    together = tokenizer.decode(tokens)
    assert torch.equal(together[6], together[1])
    alone = torch.cat([tokenizer.decode(tokens[index : index + 1]) for index in range(7)])
    assert torch.equal(together, alone)
    assert torch.equal(tokenizer.decode(tokens.flip(0)), together.flip(0))
    assert tokenizer.decode(torch.zeros(1, 3, 5, dtype=torch.int64)).shape == (1, 3, 24, 40)
    assert together.min() >= 0 and together.max() <= 1


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("stage", ["second", "together"])
def test_killed_run_resumes_to_the_same_weights(stage: str, base: Path, tmp_path: Path) -> None:
    chosen = diffusing(base=str(base)) if stage == "second" else diffusing()
    whole = load_checkpoint(train(tmp_path / "whole", chosen))[0]
    train_killed(rgb.plugin, chosen, samples(), tmp_path / "killed", 2)
    resumed = load_checkpoint(train(tmp_path / "killed", chosen))[0]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_joint_training_also_trains_the_encoder_on_the_diffusion_loss() -> None:
    task = rgb.plugin.task(diffusing())
    with seeded(0):
        module = task.build(samples().train, np.random.default_rng(0))
        torch.nn.init.normal_(module.denoiser.network.conv_out.weight, std=0.05)
    assert module.train().encoder.training and not module.frozen
    losses = task.losses(module, batch(4))
    assert losses["loss"] > losses["diffusion_loss"] > 0
    losses["diffusion_loss"].backward()
    assert all(parameter.grad is not None for parameter in module.encoder.parameters())
    assert not any(parameter.grad is not None for parameter in module.decoder.parameters())


@pytest.mark.parametrize("name", ["canny", "depth", "normal"])
def test_other_fields_are_drawn_within_their_bounds(name: str, tmp_path: Path) -> None:
    chosen = diffusing(name, prediction="v")
    folder = train(tmp_path, chosen, name)
    tokenizer = PLUGINS[name].load_tokenizer(folder, "cpu", chosen)
    decoded = tokenizer.decode(tokenizer.encode(torch.from_numpy(np.stack(values(name, 3))))).numpy()
    for value in decoded:
        assert value.shape == values(name, 1)[0].shape and np.isfinite(value).all()
    if name == "canny":
        assert set(np.unique(decoded)) <= {0.0, 1.0}
    if name == "normal":
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)


# ---------------------------------------------------------------- reports


def test_eval_puts_both_decoders_side_by_side(second: Path, tmp_path: Path) -> None:
    table = {"checkpoint": str(second), "tokenizer": {**TINY, "diffusion": {"sampling_steps": 2}}}
    zoo = Zoo.from_tables({"zoo": {"image_size": 16, "patch_size": 8}, "modalities": {"rgb": table}})
    with writing_values(tmp_path / "data", "test", "rgb") as writer:
        for number, value in enumerate(values("rgb", 5)):
            writer.add(f"{number}", *zoo["rgb"].write(value))
    result = evaluate_tokenizer(zoo["rgb"], tmp_path / "data")
    rows = {name: number for name, number, _, _ in result.codebook_rows()}
    assert {"plain psnr", "plain ssim", "sharpness", "plain sharpness", "perceptual", "plain perceptual"} <= set(rows)
    assert rows["plain psnr"] != result.metrics["psnr"]
    stored = read_table(second / "evaluation.json")
    assert stored["plain psnr"] == rows["plain psnr"] and stored["fingerprint"] == zoo["rgb"].fingerprint
    with Image.open(second / "samples/decoders.png") as sheet:
        assert sheet.size == (3 * 16 + 4, 5 * 18 - 2)
        pixels = np.asarray(sheet)
    true = np.asarray(zoo["rgb"].render(values("rgb", 5)[0]))
    np.testing.assert_array_equal(pixels[:16, 36:52], true)


@pytest.mark.slow
def test_the_published_size_runs_forward_and_back() -> None:
    """ViT-B encoder and patched UNet on fewer pixels than theirs; encoder and network both get gradients."""
    task = rgb.plugin.task(Settings("rgb", {"preset": "4m"}))
    value = values("rgb", 1, 64)
    module = task.build(value, np.random.default_rng(0)).train()
    network = sum(parameter.numel() for parameter in module.denoiser.parameters())
    assert 200e6 < network < 225e6
    task.losses(module, torch.from_numpy(np.stack(value)))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.denoiser.network.parameters())
    assert next(module.encoder.parameters()).grad is not None
