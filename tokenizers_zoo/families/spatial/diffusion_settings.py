"""Settings of the diffusion decoder of image-like modalities, readable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tokenizers_zoo.config import ADDED, check_counts, recorded


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """The table `tokenizer.diffusion`: a second decoder, which draws what tokens leave open instead of averaging it.

    The first lines say what is trained, the last ones, from `sampler` on, how it is run: those may change at any time.
    """

    sampling_fields: ClassVar[tuple[str, ...]] = ("sampler", "sampling_steps", "guidance_scale", "limit", "seed")

    base: str | None = None
    """Folder (or hub id) of a trained tokenizer whose encoder, quantizer and plain decoder are kept as they are, so
    that its tokens, token stores and backbones stay valid; absent trains everything together."""
    target: Literal["values", "residual"] = "values"
    """values: the decoder makes values from codes; residual, with `base` only: what the plain decoder's output lacks,
    from codes and that output (predict and refine, arXiv 2112.02475), which needs far fewer steps."""
    prediction: Literal["x0", "v", "epsilon"] = "v"
    """What the network is trained to give: the clean target, the velocity (arXiv 2202.00512), or the noise.

    All need a width of at least the channels x patch_size^2 numbers of a cell, or they cannot tell its noise from it.
    """
    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise over time: linear betas (arXiv 2006.11239), or the squared cosine of arXiv 2102.09672, with less noise."""
    zero_terminal_snr: bool = True
    """Whether the last time is pure noise, as sampling assumes (arXiv 2305.08891); epsilon cannot learn from that."""
    drop_share: float = 0.1
    """Share of the training samples whose codes are hidden, for guidance (arXiv 2207.12598)."""
    patch_size: int = 2
    """Pixels per cell of the network, along each side; divides the modality's patch size."""
    width: int = 32
    """Channels at the network's finest resolution; a multiple of 16."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each resolution as multiples of the width; each is half as fine as the one before."""
    depth: int = 1
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention: int = 0
    """How many of the coarsest resolutions attend to all of their cells, beyond the middle, which always does."""
    layout: Literal["own", "published"] = field(default="own", metadata=ADDED)
    """published: the network of 4M's tokenizers. The codes go in as they are, each over its cells, the time is added in
    each residual block, and attention has one head; own spreads the codes, and scales and shifts by the time."""
    noise_levels: int = field(default=1000, metadata=ADDED)
    """Times at which the target is more and more noise."""
    sampler: Literal["ddim", "dpm"] = "ddim"
    """DDIM without noise (arXiv 2010.02502), or DPM-Solver++ of second order (arXiv 2211.01095)."""
    sampling_steps: int = 10
    """Passes through the network for one decoding, or twice as many with guidance."""
    guidance_scale: float = 1.0
    """1 goes by the codes alone; more goes further away from what the network draws without codes."""
    limit: Literal["none", "range"] = "none"
    """range keeps what each pass predicts of the clean target within [-1, 1]."""
    seed: int = 0
    """Chooses among the values that fit the same tokens; the same seed and tokens give the same values."""

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "prediction: epsilon says nothing of a target that is all noise; choose x0 or v, or set"
                " zero_terminal_snr = false"
            )
        if self.target == "residual" and self.base is None:
            raise ValueError("target: residual refines a plain decoder that is trained already; name it by base")
        check_counts(self, "patch_size", "depth", "noise_levels", "sampling_steps")
        if self.zero_terminal_snr and self.noise_levels < 2:
            raise ValueError(f"noise_levels: expected at least 2 with zero_terminal_snr, got {self.noise_levels}")
        if self.sampling_steps > self.noise_levels:
            raise ValueError(f"sampling_steps: expected up to {self.noise_levels}, got {self.sampling_steps}")
        if self.width < 16 or self.width % 16:
            raise ValueError(f"width: expected a multiple of 16, got {self.width}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected one or more numbers of at least 1, got {list(self.multipliers)}")
        if not 0 <= self.attention <= len(self.multipliers):
            raise ValueError(f"attention: expected 0 to {len(self.multipliers)} resolutions, got {self.attention}")
        if not 0 <= self.drop_share < 1:
            raise ValueError(f"drop_share: expected a share in [0, 1), got {self.drop_share}")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale: expected 0 or more, got {self.guidance_scale}")
        if self.guidance_scale != 1 and not self.drop_share:
            raise ValueError("guidance_scale: needs a drop_share above 0 in training; without, leave it at 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, got {self.seed}")

    def trained(self) -> dict[str, Any]:
        """What the weights depend on, JSON types, without the place of `base`."""
        left_out = {"base", *self.sampling_fields}
        return {name: value for name, value in recorded(self).items() if name not in left_out}

    def sampled(self) -> dict[str, Any]:
        """How it is run, which the weights do not depend on."""
        return {name: getattr(self, name) for name in self.sampling_fields}


PUBLISHED_DIFFUSION: dict[str, Any] = {
    "prediction": "x0",
    "schedule": "linear",
    "drop_share": 0.0,
    "patch_size": 4,
    "width": 256,
    "multipliers": [1, 2, 2, 2],
    "depth": 3,
    "attention": 2,
    "sampler": "ddim",
    "sampling_steps": 50,
}
"""The patched UNet decoder of 4M's image, depth, normal and edge tokenizers."""
