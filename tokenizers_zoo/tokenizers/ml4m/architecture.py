"""Convert the config.json of a published tokenizer to our configurations. Keys and defaults follow ml-4m's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.records.config import Checked, Sides, from_mapping, height_width
from tokenizers_zoo.records.typed import PositiveInt
from tokenizers_zoo.tokenizers.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetSize:
    """A UNet on patches of pixels."""

    patch_size: int
    """Pixels per cell along each side."""
    width: int
    multipliers: tuple[int, ...]
    depth: int
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention: int
    """Number of resolutions with attention, counted from the coarsest."""


VITS: dict[str, tuple[int, int, int]] = {"vit_s": (512, 8, 8), "vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}
"""Width, depth and heads of the published ViTs."""
UNETS = {"unet_patched": UnetSize(patch_size=4, width=256, multipliers=(1, 2, 2, 2), depth=3, attention=2)}
PLAIN, DIFFUSION = "VQVAE", "DiVAE"
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"sample": "x0", "v_prediction": "v", "epsilon": "epsilon"}
OUT_BLOCKS = 2
"""Number of ConvNeXt blocks that `out_conv` adds after a decoder."""
SAMPLING_STEPS = 50
"""Number of sampling steps in the evaluation of the published decoders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A published tokenizer's parts and sizes."""

    channels: int
    """Input channels; for class ids, the embedding size of a class id."""
    classes: int
    """Number of classes; 0 if values are numbers."""
    size: tuple[int, int]
    """Height and width of the training inputs, in pixels (in vectors if `patch_size` is 1)."""
    patch_size: int
    """Pixels per code along each side."""
    latent_dim: int
    quantizer: QuantizerConfig
    encoder: BlockConfig | MlpConfig
    decoder: BlockConfig | MlpConfig | None
    """None if the decoder is a UNet."""
    unet: UnetSize | None
    noise: Mapping[str, Any]
    """The UNet's noise schedule and sampling settings, as keys of the table `tokenizer.diffusion`."""

    @property
    def tokenizer_table(self) -> dict[str, Any]:
        """The table `tokenizer` that builds an autoencoder with these sizes."""
        names = ("codebook_size", "codebook_dim", "distance", "num_codebooks")
        quantizer_fields = {name: getattr(self.quantizer, name) for name in names}
        table = {name: value for name, value in quantizer_fields.items() if value is not None}
        table |= {"quantizer": self.quantizer.kind, "latent_dim": self.latent_dim}
        table |= {"width": self.encoder.width, "depth": self.encoder.depth}
        if isinstance(self.encoder, BlockConfig):
            table |= {"blocks": "vit", "heads": self.encoder.heads, "patch_size": self.patch_size}
        else:
            table |= {"blocks": "mlp", "expansion": self.encoder.expansion}
        if self.unet is not None:
            size = {name: getattr(self.unet, name) for name in ("patch_size", "width", "depth", "attention")}
            multipliers = list(self.unet.multipliers)
            table["diffusion"] = {**size, "multipliers": multipliers, "layout": "published", **self.noise}
        return table


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedKeys(Checked):
    """The keys of a published config.json that decide how to build the tokenizer, with ml-4m's defaults."""

    image_size: Sides = (224, 224)
    image_size_enc: Sides | None = None
    image_size_dec: Sides | None = None
    patch_size: PositiveInt = 16
    patch_size_dec: int | None = None
    enc_type: str = "vit_b_enc"
    dec_type: str | None = None
    patch_proj: bool = True
    post_mlp: bool = False
    out_conv: bool = False
    undo_std: bool = False
    n_channels: PositiveInt = 3
    n_labels: int = 0
    latent_dim: PositiveInt = 32
    quant_type: Literal["lucid", "memcodes"] = "lucid"
    codebook_size: int = 16384
    num_codebooks: PositiveInt = 1
    norm_codes: bool = True
    norm_latents: bool = False
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    prediction_type: Literal["sample", "v_prediction", "epsilon"] = "v_prediction"
    num_train_timesteps: PositiveInt = 1000
    cls_free_guidance_dropout: float = 0.0
    thresholding: bool = True
    clip_sample: bool = False
    zero_terminal_snr: bool = True

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.undo_std:
            raise ValueError(
                "undo_std: expected false: encoders here take pictures in [-1, 1], not by ImageNet's colours"
            )
        if self.quant_type == "memcodes" and self.latent_dim % self.num_codebooks:
            raise ValueError(f"num_codebooks: {self.num_codebooks} does not divide latent_dim {self.latent_dim}")
        if self.quant_type == "lucid" and self.num_codebooks != 1:
            raise ValueError(f"num_codebooks: expected 1 with quant_type lucid, got {self.num_codebooks}")
        if self.norm_latents and not self.norm_codes:
            raise ValueError("norm_latents: expected false where norm_codes is false")

    def size(self, side: Literal["enc", "dec"] | None = None) -> tuple[int, int]:
        """Return height and width of the inputs, or the size that the position grid of one side is for."""
        image_size = self.image_size
        if side is not None:
            image_size = (self.image_size_enc if side == "enc" else self.image_size_dec) or image_size
        return height_width(image_size)

    def blocks(self, side: Literal["enc", "dec"], name: str) -> BlockConfig | MlpConfig:
        """Return the encoder or decoder of a type name."""
        if (stem := name.removesuffix(f"_{side}")) in VITS and stem != name:
            width, depth, heads = VITS[stem]
            height, columns = self.size(side)
            if height % self.patch_size or columns % self.patch_size:
                raise ValueError(f"patch_size: {self.patch_size} does not divide the image size {height} x {columns}")
            return BlockConfig(
                kind="vit",
                width=width,
                depth=depth,
                heads=heads,
                final_norm=False,
                post_mlp=self.post_mlp,
                positions=(height // self.patch_size, columns // self.patch_size),
                out_blocks=OUT_BLOCKS if side == "dec" and self.out_conv else 0,
            )
        if match := re.fullmatch(r"BottleneckMLP/B_(\d+)-Wi_(\d+)(?:-E_(\d+))?", name):
            depth, width, expansion = (int(number or 4) for number in match.groups())
            return MlpConfig(width=width, depth=depth, expansion=expansion, latent_map=True)
        expected = ", ".join(f"{stem}_{side}" for stem in VITS)
        raise ValueError(f"{side}_type: expected {expected} or BottleneckMLP/B_x-Wi_y, got {name!r}")

    def quantizer(self) -> QuantizerConfig:
        size, dim, count = self.codebook_size, self.latent_dim, self.num_codebooks
        if self.quant_type == "memcodes":
            return QuantizerConfig(kind="memcodes", codebook_size=size, num_codebooks=count, codebook_dim=dim // count)
        distance: Literal["cosine", "euclidean"] = "cosine" if self.norm_codes else "euclidean"
        return QuantizerConfig(kind="vq", codebook_size=size, codebook_dim=dim, distance=distance)

    def noise(self) -> dict[str, Any]:
        """Return the noise schedule. Dynamic thresholding is limited to 1, which equals clipping."""
        return {
            "prediction": PREDICTIONS[self.prediction_type],
            "schedule": SCHEDULES[self.beta_schedule],
            "zero_terminal_snr": self.zero_terminal_snr,
            "drop_share": self.cls_free_guidance_dropout,
            "noise_levels": self.num_train_timesteps,
            "sampling_steps": min(SAMPLING_STEPS, self.num_train_timesteps),
            "limit": "range" if self.thresholding or self.clip_sample else "none",
        }


def read_architecture(published: PublishedCheckpoint) -> Architecture:
    """Return the architecture of a tokenizer. Raises CheckpointError if it is not supported."""
    key_names = {field.name for field in fields(PublishedKeys)}
    values = {key: value for key, value in published.config.items() if key in key_names and value is not None}
    try:
        parsed = {key: int(x) if isinstance(x, str) and x.isdecimal() else x for key, x in values.items()}
        keys = from_mapping(PublishedKeys, parsed)
        diffusion = _class_name(published) == DIFFUSION
        dec_type = keys.dec_type or ("unet_patched" if diffusion else "vit_b_dec")
        if diffusion and dec_type not in UNETS:
            raise ValueError(f"dec_type: expected {' or '.join(UNETS)}, got {dec_type!r}")
        (height, width), side = keys.size(), keys.patch_size
        if not diffusion and keys.patch_size_dec not in (None, side):  # a UNet has its own patches
            raise ValueError(f"patch_size_dec: expected {side}, the patch_size, got {keys.patch_size_dec}")
        pixels = keys.enc_type.startswith("vit_") and keys.patch_proj
        return Architecture(
            channels=keys.n_channels,
            classes=keys.n_labels,
            size=(height, width) if pixels else (height // side, width // side),
            patch_size=side if pixels else 1,
            latent_dim=keys.latent_dim,
            quantizer=keys.quantizer(),
            encoder=keys.blocks("enc", keys.enc_type),
            decoder=None if diffusion else keys.blocks("dec", dec_type),
            unet=UNETS[dec_type] if diffusion else None,
            noise=keys.noise() if diffusion else {},
        )
    except (ConfigError, ValueError) as error:  # also a size that blocks or quantizers do not take
        raise CheckpointError(f"{published.path}: config.json: {error}") from None


def _class_name(published: PublishedCheckpoint) -> str:
    """Return VQVAE or DiVAE, from the key `class` or, if it is absent, from the decoder."""
    class_name = published.config.get("class")
    if class_name is None:
        if not any(name.startswith("decoder.") for name in published.tensors):
            raise ValueError(f"is no tokenizer with a decoder; expected a {PLAIN} or a {DIFFUSION}")
        has_unet = str(published.config.get("dec_type", "")).startswith(("unet", "uvit"))
        has_unet |= "decoder.input_blocks.0.0.weight" in published.tensors
        return DIFFUSION if has_unet else PLAIN
    if class_name not in (PLAIN, DIFFUSION):
        raise ValueError(f"class: expected {PLAIN} or {DIFFUSION}, got {class_name!r}")
    return str(class_name)
