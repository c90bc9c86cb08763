"""An autoencoder with a diffusion decoder: network, noise schedule, training loss and samplers."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig, DiffusionConfig
from tokenizers_zoo.tokenizers.autoencoder.model import DENOISER, Autoencoder
from tokenizers_zoo.tokenizers.nn.layers import shuffle, unshuffle

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

HEAD_DIM, NORM_GROUPS = 64, 32
"""Largest attention head and largest number of norm groups; reduced to divisors of the width."""
PREDICTIONS = {"x0": "sample", "v": "v_prediction", "epsilon": "epsilon"}
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class Denoiser(nn.Module):
    """A UNet on patches that predicts the clean target from a noisy one, the codes and, for residuals, plain outputs.

    `patch_size` is the modality's: pixels per code along each side. Values and grids may have any size.
    """

    scale: Tensor
    """Standard deviation of the target per channel; targets are divided by it."""

    def __init__(self, config: DiffusionConfig, channels: int, latent_dim: int, patch_size: int) -> None:
        super().__init__()
        patch = (config.patch_size,) * 2
        cells = channels * math.prod(patch)
        self.coarsening = 2 ** (len(config.multipliers) - 1)
        self.unshuffle, self.shuffle = unshuffle(patch), shuffle(patch)
        self.hidden_code = nn.Parameter(torch.zeros(latent_dim, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.spread: nn.Module | None = None
        conditioning = latent_dim
        if config.layout == "own":
            factor, conditioning = patch_size // config.patch_size, config.width
            widened = nn.Conv2d(latent_dim, conditioning * factor**2, 3, padding=1)
            self.spread = nn.Sequential(widened, nn.SiLU(), shuffle((factor, factor)))
        inputs = cells * (2 if config.target == "residual" else 1) + conditioning
        self.network = unet(config, inputs, cells)
        nn.init.zeros_(self.network.conv_out.weight)  # start from the mean prediction

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        times: Int[Tensor, " batch"],
        codes: Float[Tensor, "batch dim h w"],
        plain: Float[Tensor, "batch channels height width"] | None,
        conditioned: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the prediction; samples that are not `conditioned` do without codes and plain outputs."""
        if conditioned is not None:
            codes = torch.where(conditioned[:, None, None, None], codes, self.hidden_code)
            plain = plain if plain is None else plain * conditioned[:, None, None, None]
        first = self.unshuffle(noisy)
        spread = F.interpolate(codes, first.shape[-2:], mode="nearest") if self.spread is None else self.spread(codes)
        parts = [first, spread] if plain is None else [first, spread, self.unshuffle(plain)]
        cells = torch.cat(parts, dim=1)
        height, width = cells.shape[-2:]
        padded = F.pad(cells, (0, -width % self.coarsening, 0, -height % self.coarsening))
        return self.shuffle(self.network(padded, times, return_dict=False)[0][..., :height, :width])


def unet(config: DiffusionConfig, channels: int, out_channels: int) -> UNet2DModel:
    """Return the UNet on cells."""
    own_layout = config.layout == "own"
    plain = len(config.multipliers) - config.attention
    down = ["DownBlock2D"] * plain + ["AttnDownBlock2D"] * config.attention
    return UNet2DModel(
        in_channels=channels,
        out_channels=out_channels,
        block_out_channels=tuple(config.width * multiplier for multiplier in config.multipliers),
        layers_per_block=config.depth,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in down[::-1]),
        attention_head_dim=math.gcd(config.width, HEAD_DIM) if own_layout else config.width * config.multipliers[-1],
        norm_num_groups=math.gcd(config.width, NORM_GROUPS),
        resnet_time_scale_shift="scale_shift" if own_layout else "default",
    )


def noise_schedule(config: DiffusionConfig) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=config.noise_levels,
        beta_schedule=SCHEDULES[config.schedule],
        prediction_type=PREDICTIONS[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        thresholding=config.limit == "range",
        sample_max_value=1.0,  # dynamic thresholding with a maximum of 1 is clipping
    )


def sampler_of(config: DiffusionConfig) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return the sampler of the settings, ready for one decoding.

    Time steps are evenly spaced from the last one down ("trailing", arXiv 2305.08891).
    """
    sampler = noise_schedule(config)
    if config.sampler == "dpm":
        sampler = DPMSolverMultistepScheduler.from_config(sampler.config)
        sampler.alphas_cumprod = sampler.alphas_cumprod.numpy()  # its own conversion warns with numpy 2
    sampler.set_timesteps(config.sampling_steps)
    return sampler


class DiffusionAutoencoder(Autoencoder):
    """An Autoencoder of pictures with a diffusion decoder.

    Its targets are standardised values, -1 and 1 for binary values, or the error of the plain decoder.
    """

    def __init__(self, config: AutoencoderConfig, diffusion: DiffusionConfig) -> None:
        super().__init__(config)
        self.diffusion, self.frozen, self.has_two_decoders = diffusion, False, config.plain_decoder
        self.denoiser = Denoiser(diffusion, config.channels, config.latent_dim, config.patch[0])
        self.schedule = noise_schedule(diffusion)

    @classmethod
    def from_plain(cls, plain: Autoencoder, diffusion: DiffusionConfig) -> DiffusionAutoencoder:
        """Return a copy of `plain` with an untrained denoiser; with `base`, all but the denoiser is frozen."""
        module = cls(plain.config, diffusion)
        module.load_state_dict(plain.state_dict() | module.denoiser.state_dict(prefix=DENOISER))
        if diffusion.base is not None:
            module.frozen = True
            module.requires_grad_(False).denoiser.requires_grad_(True)
        return module

    def train(self, mode: bool = True) -> DiffusionAutoencoder:
        """Switch the mode; a frozen autoencoder stays in eval mode, so that its codebook does not move."""
        super().train(mode)
        if self.frozen:
            for part in self.children():
                part.train(mode and part is self.denoiser)
        return self

    def target(self, inputs: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Return the ideal output of the decoders."""
        return 2 * inputs - 1 if self.config.kind == "binary" else self.standardise(inputs)

    def plain(self, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch channels height width"] | None:
        """Return the plain decoder's output in the range of `target`, or None if it is not refined."""
        if self.diffusion.target == "values":
            return None
        outputs = self.decoder(codes)
        return torch.tanh(outputs / 2) if self.config.kind == "binary" else outputs

    @torch.no_grad()
    def frozen_codes(self, inputs: Tensor) -> Float[Tensor, "batch dim h w"]:
        """Return the codes of the tokens of inputs, as in decoding."""
        return self.codes_of(self.encode(inputs))

    def measure_scale(self, inputs: Tensor) -> None:
        """Set the denoiser's scale to the standard deviation of the residuals of some inputs."""
        plain = self.plain(self.frozen_codes(inputs))
        if plain is not None:
            scale = (self.target(inputs) - plain).double().std(dim=(0, 2, 3), correction=0).clamp_min(1e-6)
            self.denoiser.scale.copy_(scale[:, None, None])

    def diffusion_loss(self, inputs: Tensor, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, ""]:
        """Return the mean squared error of the prediction at random times.

        Times are spread evenly over the batch (arXiv 2107.00630, appendix I.1).
        """
        with torch.no_grad():
            plain = self.plain(codes)
        target = self.target(inputs) if plain is None else (self.target(inputs) - plain) / self.denoiser.scale
        count, device = len(inputs), inputs.device
        share = (torch.rand((), device=device) + torch.arange(count, device=device) / count) % 1
        times = (share * self.diffusion.noise_levels).long()
        noise = torch.randn_like(target)
        conditioned = torch.rand(count, device=device) >= self.diffusion.drop_share
        noisy = self.schedule.add_noise(target, noise, times)  # type: ignore[arg-type]
        prediction_target = {
            "x0": lambda: target,
            "v": lambda: self.schedule.get_velocity(target, noise, times),  # type: ignore[arg-type]
            "epsilon": lambda: noise,
        }[self.diffusion.prediction]()
        return F.mse_loss(self.denoiser(noisy, times, codes, plain, conditioned).float(), prediction_target)

    def sample(
        self, codes: Float[Tensor, "batch dim h w"], noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return standardised outputs for codes, from standard normal noise."""
        plain = self.plain(codes)
        sampler = sampler_of(self.diffusion)
        noisy = noise
        for time in sampler.timesteps:
            times = time.to(noise.device).expand(len(noise))
            noisy = sampler.step(self.guided_prediction(noisy, times, codes, plain), time, noisy)[0]
        return noisy if plain is None else plain + noisy * self.denoiser.scale

    def decode(self, tokens: Int[Tensor, "batch h w *codes"]) -> Float[Tensor, "batch channels height width"]:
        """Return sampled outputs in the units of the inputs; they depend on the tokens and the seed only."""
        codes = self.codes_of(tokens)
        shape = (self.config.channels, *(n * side for n, side in zip(codes.shape[2:], self.config.patch, strict=True)))
        noise = torch.stack([noise_of(sample_tokens, self.diffusion.seed, shape) for sample_tokens in tokens.cpu()])
        return self.unstandardise(self.sample(codes, noise.to(tokens.device)))

    def guided_prediction(self, noisy: Tensor, times: Tensor, codes: Tensor, plain: Tensor | None) -> Tensor:
        """Return the prediction with classifier-free guidance (arXiv 2207.12598, eq. 6 with w = scale - 1)."""
        conditional = self.denoiser(noisy, times, codes, plain)
        if self.diffusion.guidance_scale == 1:
            return conditional
        unconditioned = torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
        unconditional = self.denoiser(noisy, times, codes, plain, unconditioned)
        return unconditional + self.diffusion.guidance_scale * (conditional - unconditional)


def noise_of(tokens: Int[Tensor, "h w *codes"], seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise that depends on the tokens and the seed only, not on device or batch."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + tokens.contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)
