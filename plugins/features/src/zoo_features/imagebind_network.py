"""The vision trunk of ImageBind, read from the published checkpoint's tensors. Needs torch: import it inside functions.

Our own module after the paper (arXiv 2305.05665) and the published layout of names. The published file is a pickle,
which is never read here: save its tensors, under the same names, as safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.pretrained import files_of, one_line

if TYPE_CHECKING:
    from jaxtyping import Float

HEAD_DIM = 80
"""Numbers per attention head; 16 heads for the published 1,280 channels."""
INPUTS, TRUNK, HEAD = "modality_preprocessors.vision.", "modality_trunks.vision.", "modality_heads.vision."
STEM = f"{INPUTS}rgbt_stem.proj.1.weight"
EPSILON = 1e-6


class Seen(NamedTuple):
    """Outputs of the network."""

    patches: Float[Tensor, "batch n dim"]
    """Patch vectors of the last layer, after the head's norm, row by row."""
    whole: Float[Tensor, "batch dim"]
    """The class vector, after the head's norm."""
    embedding: Float[Tensor, "batch out_dim"]
    """The projected class vector, of length 1."""


class Mlp(nn.Module):
    """Linear, exact GELU, linear, under the published names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        """Same shape as `x`."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual sum."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, dim // HEAD_DIM, batch_first=True)
        self.mlp = Mlp(dim, hidden)
        self.norm_1 = nn.LayerNorm(dim, eps=EPSILON)
        self.norm_2 = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        """Same shape as `x`."""
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class VisionTrunk(nn.Module):
    """ViT trunk: patches, class token, learned positions, norm, blocks. Sizes follow from the tensors."""

    def __init__(self, dim: int, side: int, positions: int, depth: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.side = side
        self.stem = nn.Conv2d(3, dim, side, stride=side, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.norm_in = nn.LayerNorm(dim, eps=EPSILON)
        self.blocks = nn.Sequential(*[Block(dim, hidden) for _ in range(depth)])
        self.norm_out = nn.LayerNorm(dim, eps=EPSILON)
        self.project = nn.Linear(dim, out_dim, bias=False)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Seen:
        """Vectors of normalised pictures whose sides are multiples of the patch's."""
        patches = self.stem(pixels)
        rows, columns = patches.shape[2:]
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), rearrange(patches, "b d h w -> b (h w) d")], 1)
        x = self.norm_out(self.blocks(self.norm_in(tokens + self.positions(rows, columns))))
        return Seen(patches=x[:, 1:], whole=x[:, 0], embedding=F.normalize(self.project(x[:, 0]), dim=1))

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 n dim"]:
        """Learned positions, interpolated (bicubic) to a grid of another size."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = math.isqrt(rest.shape[1])
        if (rows, columns) == (side, side):
            return self.pos_embed
        plane = rearrange(rest, "b (h w) d -> b d h w", h=side)
        plane = F.interpolate(plane, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([first, rearrange(plane, "b d h w -> b (h w) d")], dim=1)


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the vision trunk under the names of `VisionTrunk`; those of other modalities are left out.

    The published stem is a convolution over two frames, and a picture is shown to it twice: the sum over its frames.
    """
    renamed = {STEM: "stem.weight", f"{INPUTS}cls_token": "cls_token"}
    renamed[f"{INPUTS}pos_embedding_helper.pos_embed"] = "pos_embed"
    renamed |= {f"{TRUNK}pre_transformer_layer.0.{part}": f"norm_in.{part}" for part in ("weight", "bias")}
    renamed |= {f"{HEAD}0.{part}": f"norm_out.{part}" for part in ("weight", "bias")}
    renamed[f"{HEAD}2.weight"] = "project.weight"
    found = {ours: tensors[theirs] for theirs, ours in renamed.items() if theirs in tensors}
    found |= {key.removeprefix(TRUNK): value for key, value in tensors.items() if key.startswith(f"{TRUNK}blocks.")}
    if "stem.weight" in found:
        found["stem.weight"] = found["stem.weight"].sum(dim=2)
    return found


def load_vision_trunk(folder: Path, device: str) -> VisionTrunk:
    """The trunk of the .safetensors files in `folder`, in eval mode. Raises PretrainedError where it is another."""
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    files = files_of(folder, "*.safetensors")
    with one_line(f"{folder}: is not the vision trunk of ImageBind under its published names ({STEM}, ...)"):
        for path in files:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith((INPUTS, TRUNK, HEAD))]  # noqa: SIM118
                tensors |= {name: file.get_tensor(name).float() for name in names}
        found = own_names(tensors)
        depth = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("blocks."))
        trunk = VisionTrunk(
            dim=found["stem.weight"].shape[0],
            side=found["stem.weight"].shape[-1],
            positions=found["pos_embed"].shape[1],
            depth=depth,
            hidden=len(found["blocks.0.mlp.fc1.bias"]),
            out_dim=len(found["project.weight"]),
        )
        trunk.load_state_dict(found)
    return trunk.eval().requires_grad_(False).to(device)
