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

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import fingerprint, load_checkpoint, load_config
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.tokenizers.autoencoder.config import DiffusionConfig
from tokenizers_zoo.tokenizers.autoencoder.diffusion import DiffusionAutoencoder, noise_of, noise_schedule, sampler_of
from tokenizers_zoo.tokenizers.autoencoder.tokenizer import CHUNK_NUMBERS, AutoencoderTokenizer
from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer
from tokenizers_zoo.train.batches import seeded

SMALL = {"width": 16, "multipliers": [1, 2], "sampling_steps": 4}


def diffusion_settings(name: str = "rgb", table: dict[str, Any] | None = None, **diffusion: Any) -> Settings:
    return settings(name, tokenizer={**TINY, **(table or {}), "diffusion": {**SMALL, **diffusion}})


def samples(name: str = "rgb") -> TrainingSamples:
    return TrainingSamples(train=values(name, 8), test=values(name, 3, seed=1))


def train(folder: Path, config: Settings, name: str = "rgb") -> Path:
    return PLUGINS[name].train_tokenizer(config, samples(name), folder, 0, "cpu")


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """The model runs on chunks of 64 x 64 pixels by 16: at 16 x 16 pixels most of them would be filling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_NUMBERS, "cpu", 8 * 16 * 16)
        yield


@pytest.fixture(scope="module")
def base_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("base") / "rgb", settings("rgb"))


@pytest.fixture(scope="module")
def second_stage(base_tokenizer: Path) -> Path:
    return train(base_tokenizer.parent / "second", diffusion_settings(base=str(base_tokenizer), target="residual"))


def loaded(folder: Path, **diffusion: Any) -> AutoencoderTokenizer:
    return rgb.plugin.load_tokenizer(folder, "cpu", diffusion_settings(**diffusion))


def batch(count: int, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.stack(values("rgb", count, size, seed=2)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prediction": "epsilon"}, "prediction: .*zero_terminal_snr"),
        ({"target": "residual"}, "target: .*base"),
        ({"drop_share": 0, "guidance_scale": 2}, "guidance_scale: .*drop_share"),
        ({"sampling_steps": 30}, "sampling_steps: .*1000.*30"),
        ({"noise_levels": 1, "sampling_steps": 1}, "noise_levels: .*1$"),
        ({"width": 20}, "width: .*16"),
        ({"patch_size": 3}, r"diffusion\.patch_size: 3 .*8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rgb.plugin.modality_spec(diffusion_settings(**table))


def test_class_ids_and_discriminators_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diffusion: "):
        train(tmp_path, diffusion_settings("semseg"), "semseg")
    with pytest.raises(ConfigError, match="set adversarial_weight = 0"):
        train(tmp_path, diffusion_settings(table={"adversarial_weight": 0.1}))
    with pytest.raises(ConfigError, match=r"width 16 .*48"):
        train(tmp_path, diffusion_settings(patch_size=4))
    assert not any(tmp_path.iterdir())


def test_noise_depends_on_tokens_and_seed_only() -> None:
    tokens = torch.arange(4).reshape(2, 2)
    first = noise_of(tokens, 0, (3, 64, 64))
    assert torch.equal(first, noise_of(tokens.clone(), 0, (3, 64, 64)))
    assert not torch.equal(first, noise_of(tokens, 1, (3, 64, 64)))
    assert not torch.equal(first, noise_of(tokens.flip(0), 0, (3, 64, 64)))
    assert abs(float(first.mean())) < 0.03 and abs(float(first.std()) - 1) < 0.03


def test_edges_are_targets_of_either_sign() -> None:
    module = PLUGINS["canny"].task(diffusion_settings("canny")).build(samples("canny").train, np.random.default_rng(0))
    assert module.target(torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist() == [-1, 1]


def module_of(**diffusion: Any) -> DiffusionAutoencoder:
    """Return an untrained module with non-zero predictions."""
    task = rgb.plugin.task(diffusion_settings(**diffusion))
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
        alpha = levels[time]
        expected = mean + alpha.sqrt() * variance / (alpha * variance + 1 - alpha) * (values - alpha.sqrt() * mean)
        noise = (values - alpha.sqrt() * expected) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * expected
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
        alpha = self.schedule.alphas_cumprod[times][:, None, None, None]
        noise = (noisy - alpha.sqrt() * self.target) / (1 - alpha).sqrt()
        return {
            "x0": self.target.expand_as(noisy),
            "v": alpha.sqrt() * noise - (1 - alpha).sqrt() * self.target,
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
    conditional = module.denoiser(noisy, times, codes, None)
    unconditional = module.denoiser(noisy, times, torch.zeros_like(codes), None)  # the code of nothing starts at 0
    assert not torch.allclose(conditional, unconditional)
    for scale, expected in (
        (1.0, conditional),
        (0.0, unconditional),
        (3.0, unconditional + 3 * (conditional - unconditional)),
    ):
        module.diffusion = dataclasses.replace(module.diffusion, guidance_scale=scale)
        torch.testing.assert_close(module.guided_prediction(noisy, times, codes, None), expected)


def test_second_stage_changes_only_the_diffusion_decoder(base_tokenizer: Path, second_stage: Path) -> None:
    before, after = load_checkpoint(base_tokenizer)[0], load_checkpoint(second_stage)[0]
    assert {name for name in after if not name.startswith("denoiser.")} == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    first = rgb.plugin.load_tokenizer(base_tokenizer, "cpu", settings("rgb"))
    two_stage = loaded(second_stage)
    tokens = first.encode(batch(5))
    assert torch.equal(two_stage.encode(batch(5)), tokens)
    assert torch.equal(two_stage.decode_plain(tokens), first.decode(tokens))
    assert not torch.equal(two_stage.decode(tokens), first.decode(tokens))


def test_tokens_of_the_base_tokenizer_stay_valid(
    base_tokenizer: Path, second_stage: Path, tmp_path: Path, zoo: Zoo
) -> None:
    codec = fingerprint(base_tokenizer)
    size = rgb.plugin.modality_spec(settings("rgb")).vocab_size
    assert load_config(second_stage)["lineage"] == [{"fingerprint": codec, "length": size}]
    assert fingerprint(second_stage) != codec
    handle = zoo["rgb"].at(second_stage)
    assert handle.files.grew_from(codec, size) and not handle.files.grew_from(codec, size + 1)
    third = train(tmp_path / "third", diffusion_settings(base=str(second_stage), seed=3))
    assert [old["fingerprint"] for old in load_config(third)["lineage"]] == [codec, fingerprint(second_stage)]


def test_settings_choose_the_decoder_and_how_it_is_run(base_tokenizer: Path, second_stage: Path) -> None:
    tokens = loaded(second_stage).encode(batch(2))
    plain = rgb.plugin.load_tokenizer(second_stage, "cpu", settings("rgb"))
    assert torch.equal(plain.decode(tokens), loaded(second_stage).decode_plain(tokens))
    decoded = loaded(second_stage).decode(tokens)
    assert torch.equal(loaded(second_stage, width=64).decode(tokens), decoded)  # sizes come from the checkpoint
    for changed in ({"seed": 1}, {"sampling_steps": 2}, {"sampler": "dpm"}, {"guidance_scale": 2.0}):
        assert not torch.equal(loaded(second_stage, **changed).decode(tokens), decoded)
    with pytest.raises(CheckpointError, match="has no diffusion decoder"):
        loaded(base_tokenizer)


def test_a_value_depends_on_its_own_tokens_only(second_stage: Path) -> None:
    tokenizer = loaded(second_stage)
    tokens = torch.randint(0, 15, (7, 2, 2), generator=torch.Generator().manual_seed(0))
    tokens[6] = tokens[1]
    together = tokenizer.decode(tokens)
    assert torch.equal(together[6], together[1])
    alone = torch.cat([tokenizer.decode(tokens[index : index + 1]) for index in range(7)])
    assert torch.equal(together, alone)
    assert torch.equal(tokenizer.decode(tokens.flip(0)), together.flip(0))
    assert tokenizer.decode(torch.zeros(1, 3, 5, dtype=torch.int64)).shape == (1, 3, 24, 40)
    assert together.min() >= 0 and together.max() <= 1


@pytest.mark.parametrize("stage", ["second", "together"])
def test_killed_run_resumes_to_the_same_weights(stage: str, base_tokenizer: Path, tmp_path: Path) -> None:
    config = diffusion_settings(base=str(base_tokenizer)) if stage == "second" else diffusion_settings()
    uninterrupted = load_checkpoint(train(tmp_path / "whole", config))[0]
    train_killed(rgb.plugin, config, samples(), tmp_path / "killed", 2)
    resumed = load_checkpoint(train(tmp_path / "killed", config))[0]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())


def test_joint_training_also_trains_the_encoder_on_the_diffusion_loss() -> None:
    task = rgb.plugin.task(diffusion_settings())
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
    config = diffusion_settings(name, prediction="v")
    folder = train(tmp_path, config, name)
    tokenizer = PLUGINS[name].load_tokenizer(folder, "cpu", config)
    decoded = tokenizer.decode(tokenizer.encode(torch.from_numpy(np.stack(values(name, 3))))).numpy()
    for value in decoded:
        assert value.shape == values(name, 1)[0].shape and np.isfinite(value).all()
    if name == "canny":
        assert set(np.unique(decoded)) <= {0.0, 1.0}
    if name == "normal":
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)


def test_eval_puts_both_decoders_side_by_side(second_stage: Path, tmp_path: Path) -> None:
    table = {"checkpoint": str(second_stage), "tokenizer": {**TINY, "diffusion": {"sampling_steps": 2}}}
    zoo = Zoo.from_tables({"zoo": {"image_size": 16, "patch_size": 8}, "modalities": {"rgb": table}})
    with writing_values(tmp_path / "data", "test", "rgb") as writer:
        for number, value in enumerate(values("rgb", 5)):
            writer.add(f"{number}", *zoo["rgb"].write(value))
    result = evaluate_tokenizer(zoo["rgb"], tmp_path / "data")
    rows = {name: number for name, number, _, _ in result.codebook_rows()}
    assert {"plain psnr", "plain ssim", "sharpness", "plain sharpness", "perceptual", "plain perceptual"} <= set(rows)
    assert rows["plain psnr"] != result.metrics["psnr"]
    evaluation = read_table(second_stage / "evaluation.json")
    assert evaluation["plain psnr"] == rows["plain psnr"] and evaluation["fingerprint"] == zoo["rgb"].fingerprint
    with Image.open(second_stage / "samples/decoders.png") as sheet:
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
