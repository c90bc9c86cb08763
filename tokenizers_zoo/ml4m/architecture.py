"""Convert the config.json of a published tokenizer to our configurations. Keys and defaults follow ml-4m's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.ml4m.source import PublishedCheckpoint
from tokenizers_zoo.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig


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
        given = {name: getattr(self.quantizer, name) for name in names}
        table = {name: value for name, value in given.items() if value is not None}
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


def read_architecture(published: PublishedCheckpoint) -> Architecture:
    """Return the architecture of a tokenizer. Raises CheckpointError if it is not supported."""
    try:
        return _Reader(published).architecture()
    except ValueError as error:  # a size that blocks or quantizers do not take
        raise CheckpointError(f"{published.place}: config.json: {error}") from None


class _Reader:
    """Read and check the keys of one config.json."""

    def __init__(self, published: PublishedCheckpoint) -> None:
        self.config, self.place, self.tensors = published.config, published.place, published.tensors

    def architecture(self) -> Architecture:
        """Return the architecture from all keys."""
        cls = self.class_name()
        if self.flag("undo_std", False):
            raise self.wrong("undo_std", "false: encoders here take pictures in [-1, 1], not by ImageNet's colours")
        size = self.size("image_size", (224, 224))
        enc_type = self.text("enc_type", "vit_b_enc")
        pixels = enc_type.startswith("vit_") and self.flag("patch_proj", True)
        cut = self.number("patch_size", 16)
        encoder = self.blocks("enc_type", enc_type, size, cut)
        decoder, unet, noise = None, None, {}
        dec_type = self.text("dec_type", "vit_b_dec" if cls == PLAIN else "unet_patched")
        if cls == PLAIN:
            if self.number("patch_size_dec", cut) != cut:
                raise self.wrong("patch_size_dec", f"{cut}, the patch_size")
            decoder = self.blocks("dec_type", dec_type, size, cut)
        elif dec_type not in UNETS:
            raise self.wrong("dec_type", " or ".join(UNETS))
        else:
            unet, noise = UNETS[dec_type], self.noise()
        latent_dim = self.number("latent_dim", 32)
        return Architecture(
            channels=self.number("n_channels", 3),
            classes=self.number("n_labels", 0),
            size=size if pixels else (size[0] // cut, size[1] // cut),
            patch_size=cut if pixels else 1,
            latent_dim=latent_dim,
            quantizer=self.quantizer(latent_dim),
            encoder=encoder,
            decoder=decoder,
            unet=unet,
            noise=noise,
        )

    def class_name(self) -> str:
        """Return VQVAE or DiVAE, from the key `class` or, if it is absent, from the decoder."""
        found = self.config.get("class")
        if found is None and not any(name.startswith("decoder.") for name in self.tensors):
            raise CheckpointError(f"{self.place}: is no tokenizer with a decoder; expected a {PLAIN} or a {DIFFUSION}")
        if found is None:
            drawn = str(self.config.get("dec_type", "")).startswith(("unet", "uvit"))
            found = DIFFUSION if drawn or "decoder.input_blocks.0.0.weight" in self.tensors else PLAIN
        if found not in (PLAIN, DIFFUSION):
            raise self.wrong("class", f"{PLAIN} or {DIFFUSION}")
        return str(found)

    def blocks(self, key: str, name: str, size: tuple[int, int], cut: int) -> BlockConfig | MlpConfig:
        """Return the encoder or decoder of a type name. Its position grid is from `image_size_enc` (or `_dec`), or
        `size`."""
        side = key[:3]
        if (stem := name.removesuffix(f"_{side}")) in VITS and stem != name:
            width, depth, heads = VITS[stem]
            return BlockConfig(
                kind="vit",
                width=width,
                depth=depth,
                heads=heads,
                final_norm=False,
                post_mlp=self.flag("post_mlp", False),
                positions=self.grid(f"image_size_{side}", size, cut),
                out_blocks=OUT_BLOCKS if side == "dec" and self.flag("out_conv", False) else 0,
            )
        if match := re.fullmatch(r"BottleneckMLP/B_(\d+)-Wi_(\d+)(?:-E_(\d+))?", name):
            depth, width, expansion = (int(number or 4) for number in match.groups())
            return MlpConfig(width=width, depth=depth, expansion=expansion, latent_map=True)
        raise self.wrong(key, f"{', '.join(f'{stem}_{side}' for stem in VITS)} or BottleneckMLP/B_x-Wi_y")

    def quantizer(self, latent_dim: int) -> QuantizerConfig:
        """Return the quantizer. Raises CheckpointError for an unsupported kind or inconsistent sizes."""
        kind = self.text("quant_type", "lucid")
        size, count = self.number("codebook_size", 16384), self.number("num_codebooks", 1)
        if kind == "memcodes":
            if latent_dim % count:
                raise self.wrong("num_codebooks", f"a divisor of latent_dim {latent_dim}")
            dim = latent_dim // count
            return QuantizerConfig(kind="memcodes", codebook_size=size, num_codebooks=count, codebook_dim=dim)
        if kind != "lucid":
            raise self.wrong("quant_type", "lucid or memcodes")
        if count != 1:
            raise self.wrong("num_codebooks", "1 with quant_type lucid")
        distance: Literal["cosine", "euclidean"] = "cosine" if self.flag("norm_codes", True) else "euclidean"
        if distance == "euclidean" and self.flag("norm_latents", False):
            raise self.wrong("norm_latents", "false where norm_codes is false")
        return QuantizerConfig(kind="vq", codebook_size=size, codebook_dim=latent_dim, distance=distance)

    def noise(self) -> dict[str, Any]:
        """Return the noise schedule. Dynamic thresholding is limited to 1, which equals clipping."""
        schedule = self.text("beta_schedule", "squaredcos_cap_v2")
        prediction = self.text("prediction_type", "v_prediction")
        if schedule not in SCHEDULES:
            raise self.wrong("beta_schedule", " or ".join(SCHEDULES))
        if prediction not in PREDICTIONS:
            raise self.wrong("prediction_type", ", ".join(PREDICTIONS))
        levels = self.number("num_train_timesteps", 1000)
        limited = self.flag("thresholding", True) or self.flag("clip_sample", False)
        return {
            "prediction": PREDICTIONS[prediction],
            "schedule": SCHEDULES[schedule],
            "zero_terminal_snr": self.flag("zero_terminal_snr", True),
            "drop_share": self.share("cls_free_guidance_dropout"),
            "noise_levels": levels,
            "sampling_steps": min(SAMPLING_STEPS, levels),
            "limit": "range" if limited else "none",
        }

    def value(self, key: str, default: Any) -> Any:
        """Return the value of a key, or the default if the key is absent or null."""
        found = self.config.get(key)
        return default if found is None else found

    def size(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """Return height and width from one number, two numbers or, if the key is absent, the default."""
        found = self.value(key, default)
        sides = (found, found) if isinstance(found, int) else tuple(found) if isinstance(found, list | tuple) else ()
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise self.wrong(key, "one or two numbers of pixels")
        return sides

    def grid(self, key: str, size: tuple[int, int], cut: int) -> tuple[int, int]:
        """Codes per column and row at the size that `key` says, or at `size`."""
        height, width = self.size(key, size)
        if height % cut or width % cut:
            raise self.wrong("patch_size", f"a divisor of the image size {height} x {width}")
        return height // cut, width // cut

    def number(self, key: str, default: int) -> int:
        """Return an integer of at least 1, or the default if the key is absent."""
        found = self.value(key, default)
        if default == found:
            return default
        if isinstance(found, str) and found.isdigit():
            found = int(found)
        if type(found) is not int or found < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return found

    def share(self, key: str) -> float:
        """Return a number in [0, 1), or 0 if the key is absent."""
        found = self.value(key, 0.0)
        if not isinstance(found, int | float) or not 0 <= found < 1:
            raise self.wrong(key, "a share in [0, 1)")
        return float(found)

    def text(self, key: str, default: str) -> str:
        """Return a text, or the default if the key is absent."""
        found = self.value(key, default)
        if not isinstance(found, str):
            raise self.wrong(key, f"a word, such as {default}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean, or the default if the key is absent."""
        found = self.value(key, default)
        if not isinstance(found, bool):
            raise self.wrong(key, "true or false")
        return found

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """Return the error for one key."""
        return CheckpointError(f"{self.place}: config.json: {key} {self.config.get(key)!r}: expected {expected}")
