"""Configurations of encoders and decoders, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval, PositiveInt

MOST_BLOCKS, WIDEST = 256, 1 << 16
"""Limits for the configurations of strangers, whose networks are built before weights are compared."""
KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "conv": {"width": 48, "depth": 2},
    "vit": {"width": 256, "depth": 4, "heads": 4, "mlp_ratio": 4.0},
}
"""Size fields of each kind and their defaults; fields of another kind are rejected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig(Checked):
    """The size and kind of an encoder or a decoder.

    Fields left at their empty value (0, None) take the default of their kind, so a configuration read back says
    everything. A field that its kind does not use is rejected. Raises ValueError that begins with the field's name.
    ViT-B, as in the 4M tokenizers, is `kind="vit", width=768, depth=12, heads=12`.
    """

    kind: Literal["conv", "vit"] = "conv"
    """conv: residual convolutions, quick on small pictures; vit: a Transformer on patches, for scale."""
    width: Annotated[int, Interval(f"[0, {WIDEST}]")] = 0
    """Channels: of the finest feature map for conv (doubled at each down-sampling), of every token for vit."""
    depth: Annotated[int, Interval(f"[0, {MOST_BLOCKS}]")] = 0
    """Residual blocks. conv: at the resolution of the token grid; finer ones have a third, rounded down. vit: in
    total."""
    heads: PositiveInt | None = None
    """vit: attention heads; divides the width."""
    mlp_ratio: Annotated[float, Interval("(0, 100]")] | None = None
    """vit: hidden width of the MLPs as a multiple of `width`."""
    final_norm: bool = True
    """vit: whether a norm follows the last block."""
    post_mlp: bool = False
    """vit: whether norm, MLP with tanh and a residual sum follow the last block (ViT-VQGAN, arXiv 2110.04627)."""
    positions: tuple[PositiveInt, ...] = ()
    """vit: grid of the position table stored with the weights, interpolated (bicubic on two axes) at other sizes.
    Empty: positions are computed."""
    out_blocks: Annotated[int, Interval(f"[0, {MOST_BLOCKS}]")] = 0
    """vit: ConvNeXt blocks after a decoder, which connect neighbouring patches; 0 for encoders."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for item in fields(self) if self.kind != "vit" else ():
            if item.name not in ("kind", "width", "depth") and getattr(self, item.name) != item.default:
                raise ValueError(f"{item.name}: used by kind vit only, and kind is {self.kind}; leave it out")
        if len(self.positions) > 3:
            raise ValueError(f"positions: expected one to three numbers, got {list(self.positions)}")
        for name, default in KIND_DEFAULTS[self.kind].items():
            if getattr(self, name) is None or (name in ("width", "depth") and getattr(self, name) == 0):
                object.__setattr__(self, name, default)
        if self.kind == "conv" and self.width % 16:
            raise ValueError(f"width: expected a multiple of 16 for conv, got {self.width}")
        if self.heads is not None and self.width % (4 * self.heads):
            raise ValueError(f"heads: width {self.width} is not a multiple of 4 x {self.heads} heads")


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpConfig(Checked):
    """The size of an MLP encoder or decoder of vectors. Raises ValueError that begins with the field's name."""

    width: Annotated[int, Interval(f"[1, {WIDEST}]")]
    """Numbers between the blocks."""
    depth: Annotated[int, Interval(f"[1, {MOST_BLOCKS}]")]
    """Residual blocks."""
    expansion: PositiveInt = 2
    """Hidden width of a block as a multiple of `width`."""
    final_norm: bool = False
    """Whether a norm follows the last block."""
    latent_map: bool = False
    """Whether there is a second linear map on the side of the latents: encoder and decoder end and begin at `width`."""
