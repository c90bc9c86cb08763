"""The VQ autoencoder with a diffusion decoder beside its plain one: what it learns, how it draws, what is loaded.

Targets are standardised values, or -1 and 1 for values of 0 and 1; or how they differ from the plain decoder's output.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from tokenizers_zoo.config import Origin, Settings, from_mapping
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.families.spatial.denoiser import Denoiser
from tokenizers_zoo.families.spatial.diffusion_settings import DiffusionConfig
from tokenizers_zoo.families.spatial.model import DENOISER, SpatialTokenizer, SpatialVQ

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.families.spatial.modality import SpatialModality
    from tokenizers_zoo.families.spatial.settings import SpatialModelConfig

PREDICTIONS = {"x0": "sample", "v": "v_prediction", "epsilon": "epsilon"}
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
CLEAN = -1
"""The time after the last one of the way back, where no noise is left."""


def noise_schedule(config: DiffusionConfig) -> DDIMScheduler:
    """How much noise there is at each time."""
    return DDIMScheduler(
        num_train_timesteps=config.noise_levels,
        beta_schedule=SCHEDULES[config.schedule],
        prediction_type=PREDICTIONS[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        thresholding=config.limit == "range",
        sample_max_value=1.0,  # dynamic thresholding that may not go beyond 1 is clipping
    )


def sampling_times(config: DiffusionConfig) -> list[int]:
    """The times of the way back from noise, evenly spaced from the last one on ("trailing", arXiv 2305.08891)."""
    levels, steps = config.noise_levels, config.sampling_steps
    return [int(level) - 1 for level in np.round(np.arange(levels, 0, -levels / steps))[:steps]]  # one more by rounding


class Ddim:
    """DDIM without noise (arXiv 2010.02502, eq. 12 with sigma 0), from each time to the next one.

    diffusers' goes from each time to one that lies `noise_levels // sampling_steps` before it, which is not the next
    one where the number of steps does not divide that of the levels: ever more noise would stay.
    """

    def __init__(self, schedule: DDIMScheduler, times: list[int], limited: bool) -> None:
        self.kept, self.limited = schedule.alphas_cumprod, limited
        self.timesteps = torch.tensor(times)
        self.prediction = schedule.config["prediction_type"]
        self.next = dict(itertools.pairwise([*times, CLEAN]))

    def step(self, predicted: Tensor, time: Tensor, noisy: Tensor) -> tuple[Tensor]:
        """What is left at the next time, from what the network says of `noisy` at this one."""
        kept, following = self.kept[time], self.next[int(time)]
        then = self.kept[following] if following != CLEAN else torch.tensor(1.0)
        if self.prediction == "sample":
            clean, noise = predicted, (noisy - kept**0.5 * predicted) / (1 - kept) ** 0.5
        elif self.prediction == "epsilon":
            clean, noise = (noisy - (1 - kept) ** 0.5 * predicted) / kept**0.5, predicted
        else:
            clean = kept**0.5 * noisy - (1 - kept) ** 0.5 * predicted
            noise = kept**0.5 * predicted + (1 - kept) ** 0.5 * noisy
        if self.limited:
            clean = clean.clamp(-1, 1)
        return (then**0.5 * clean + (1 - then) ** 0.5 * noise,)


def sampler_of(config: DiffusionConfig) -> Ddim | DPMSolverMultistepScheduler:
    """The sampler of the settings, at its start."""
    schedule, times = noise_schedule(config), sampling_times(config)
    if config.sampler == "ddim":
        return Ddim(schedule, times, config.limit == "range")
    sampler = DPMSolverMultistepScheduler.from_config(schedule.config)
    sampler.alphas_cumprod = sampler.alphas_cumprod.numpy()  # which it makes of it in a way numpy 2 warns of
    sampler.set_timesteps(timesteps=times)
    return sampler


class DiffusionVQ(SpatialVQ):
    """A SpatialVQ whose tokens may also be decoded by diffusion; its own tensors are those named `denoiser.*`."""

    def __init__(self, config: SpatialModelConfig, diffusion: DiffusionConfig, kind: str) -> None:
        super().__init__(config)
        self.diffusion, self.kind, self.frozen = diffusion, kind, False
        self.denoiser = Denoiser(diffusion, config.channels, config.latent_dim, config.patch_size)
        self.schedule = noise_schedule(diffusion)

    @classmethod
    def around(cls, plain: SpatialVQ, diffusion: DiffusionConfig, kind: str) -> DiffusionVQ:
        """A copy of `plain` with an untrained denoiser; with `base` only the denoiser will learn."""
        module = cls(plain.config, diffusion, kind)
        module.load_state_dict(plain.state_dict() | module.denoiser.state_dict(prefix=DENOISER))
        if diffusion.base is not None:
            module.frozen = True
            module.requires_grad_(False).denoiser.requires_grad_(True)
        return module

    def train(self, mode: bool = True) -> DiffusionVQ:
        """As ever, except that a frozen autoencoder stays in eval mode: its codebook is not to move."""
        super().train(mode)
        if self.frozen:
            for part in self.children():
                part.train(mode and part is self.denoiser)
        return self

    def clean(self, inputs: Tensor) -> Float[Tensor, "batch channels height width"]:
        """What the decoders are to give for inputs."""
        return 2 * inputs - 1 if self.kind == "binary" else self.standardise(inputs)

    def plain(self, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch channels height width"] | None:
        """The plain decoder's output as a clean one, where the denoiser refines it."""
        if self.diffusion.target == "values":
            return None
        outputs = self.decoder(codes)
        return torch.tanh(outputs / 2) if self.kind == "binary" else outputs

    def measure_scale(self, inputs: Tensor) -> None:
        """Measure on some inputs how large a residual is, so that what is denoised has deviation 1."""
        plain = self.plain(self.frozen_codes(inputs))
        if plain is not None:
            scale = (self.clean(inputs) - plain).double().std(dim=(0, 2, 3), correction=0).clamp_min(1e-6)
            self.denoiser.scale.copy_(scale[:, None, None])

    @torch.no_grad()
    def frozen_codes(self, inputs: Tensor) -> Float[Tensor, "batch dim h w"]:
        """The codes of the tokens of inputs, as a decoder meets them."""
        return self.codes_of(self.encode(inputs))

    def diffusion_loss(self, inputs: Tensor, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, ""]:
        """Mean squared error of the prediction at random times, from torch's generator; spread evenly over a batch.

        The spread is that of arXiv 2107.00630, appendix I.1: every batch sees little and much noise.
        """
        with torch.no_grad():
            plain = self.plain(codes)
        target = self.clean(inputs) if plain is None else (self.clean(inputs) - plain) / self.denoiser.scale
        count, device = len(inputs), inputs.device
        share = (torch.rand((), device=device) + torch.arange(count, device=device) / count) % 1
        times = (share * self.diffusion.noise_levels).long()
        noise = torch.randn_like(target)
        shown = torch.rand(count, device=device) >= self.diffusion.drop_share
        noisy = self.schedule.add_noise(target, noise, times)  # type: ignore[arg-type]
        wanted = {
            "x0": lambda: target,
            "v": lambda: self.schedule.get_velocity(target, noise, times),  # type: ignore[arg-type]
            "epsilon": lambda: noise,
        }[self.diffusion.prediction]()
        return F.mse_loss(self.denoiser(noisy, times, codes, plain, shown).float(), wanted)

    def draw(
        self, codes: Float[Tensor, "batch dim h w"], noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Outputs for codes, by the sampler of the settings, from standard normal noise."""
        plain = self.plain(codes)
        sampler = sampler_of(self.diffusion)
        current = noise
        for time in sampler.timesteps:
            times = time.to(noise.device).expand(len(noise))
            predicted = self.guided(current, times, codes, plain)
            current = sampler.step(predicted, time, current)[0]
        return current if plain is None else plain + current * self.denoiser.scale

    def guided(self, noisy: Tensor, times: Tensor, codes: Tensor, plain: Tensor | None) -> Tensor:
        """The prediction, moved away from that without codes (arXiv 2207.12598, eq. 6 with w = scale - 1)."""
        told = self.denoiser(noisy, times, codes, plain)
        if self.diffusion.guidance_scale == 1:
            return told
        untold = self.denoiser(
            noisy, times, codes, plain, torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
        )
        return untold + self.diffusion.guidance_scale * (told - untold)


class DiffusionTokenizer(SpatialTokenizer):
    """A SpatialTokenizer that decodes by diffusion: a value depends on its own tokens and the seed, on nothing else."""

    module: DiffusionVQ

    @classmethod
    def restored(
        cls,
        modality: SpatialModality,
        settings: Settings,
        model: SpatialModelConfig,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> DiffusionVQ:
        """The module of a checkpoint, with the samples' way from noise that the settings say."""
        if "diffusion" not in config:
            raise CheckpointError(
                f"{settings.name}: its tokenizer has no diffusion decoder, and"
                f" {settings.origin.inner('tokenizer').at('diffusion')} asks for one; take that out, or train one on it"
                " (base = its folder)"
            )
        wanted: DiffusionConfig = modality.options(settings).tokenizer.diffusion
        table = {**config["diffusion"], **wanted.sampled(), "base": config.get("base")}
        diffusion = from_mapping(DiffusionConfig, table, Origin(table="diffusion"))
        module = DiffusionVQ(model, diffusion, modality.kind)
        module.load_state_dict(dict(tensors))
        return module

    def decode(self, tokens: Int[Tensor, "batch h w *codes"]) -> Tensor:
        """Values on the device of `tokens`. Raises InvalidValueError for ids outside the codebook."""
        return self._chunks(tokens, lambda chunk: self.values(self._drawn(chunk)), self.pixels(tokens))

    @property
    def has_plain(self) -> bool:
        """Whether there is a plain decoder, too."""
        return self.module.config.plain_decoder

    def decode_plain(self, tokens: Int[Tensor, "batch h w *codes"]) -> Tensor:
        """Values by the plain decoder, which averages where the diffusion decoder draws."""
        return super().decode(tokens)

    def _drawn(self, tokens: Tensor) -> Tensor:
        config = self.module.config
        codes = self.module.codes_of(tokens)
        shape = (config.channels, codes.shape[2] * config.patch_size, codes.shape[3] * config.patch_size)
        noise = torch.stack([noise_of(one, self.module.diffusion.seed, shape) for one in tokens.cpu()])
        return self.module.draw(codes, noise.to(tokens.device))


def noise_of(tokens: Int[Tensor, "h w *codes"], seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that is the same for the same tokens and seed, on any device, alone or in a batch."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + tokens.contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)
