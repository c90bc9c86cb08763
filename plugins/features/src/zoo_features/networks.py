"""Pictures as networks want them, two networks, and arrays of their vectors. Needs torch: import it in functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.contract.pretrained import PretrainedError, files_of, pretrained_errors
from tokenizers_zoo.errors import size_text
from tokenizers_zoo.tokenizers.nn.vit import resized_positions

if TYPE_CHECKING:
    from jaxtyping import Float


Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of a network's training pictures: red, green, blue."""
COLOURS: dict[str, Colours] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "bytes": ((127 / 255,) * 3, (128 / 255,) * 3),
}
"""clip: as CLIP (arXiv 2103.00020; in its preprocessor_config.json) and ImageBind were trained; imagenet: DINOv2;
bytes: EfficientNet-Lite, pixels of 0 to 255 less 127, over 128."""


class PictureFeatures(NamedTuple):
    """Outputs of a network that looks at pictures."""

    patches: Float[Tensor, "batch n dim"]
    """Vectors of the patches, row by row."""
    pooled: Float[Tensor, "batch dim"]
    """The vector of the whole picture."""
    embedding: Float[Tensor, "batch out_dim"] | None = None
    """ImageBind: the projected class vector, of length 1."""


def preprocess(
    rgb: np.ndarray[Any, Any], patches: tuple[int, int], side: int, colours: Colours, device: str
) -> Float[Tensor, "1 3 height width"]:
    """The whole picture (3, height, width) in [0, 1] resized (bicubic) to rows and columns of patches of `side` pixels,
    less the colours' mean, over their deviation.

    Nothing is cut off, so that the vectors of a map lie where the picture's pixels lie.
    """
    size = patches[0] * side, patches[1] * side
    pixels = torch.from_numpy(np.ascontiguousarray(rgb, dtype=np.float32))[None].to(device)
    if tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    shift, scale = (torch.tensor(numbers, device=device)[:, None, None] for numbers in colours)
    return (pixels - shift) / scale


def as_array(vectors: Tensor, channels: int, size: tuple[int, ...], model: str) -> np.ndarray[Any, Any]:
    """Vectors (1, n, dim) of a picture, row by row, as float32 (channels, *size); one vector (1, dim) for the size ().

    Raises PretrainedError where they are of another length or number.
    """
    rows = vectors.movedim(-1, 1)[0]
    if rows.shape != (channels, *([math.prod(size)] if size else [])):
        shape = size_text(reversed(rows.shape))
        raise PretrainedError(
            f"{model}: gives vectors {shape}, expected {size_text((*size, channels))}; take another network"
        )
    return rows.float().cpu().contiguous().numpy().reshape(channels, *size)


WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions, scale by scale."""
MEAN = (104.00699, 116.66877, 122.67892)
"""Mean of the training pictures: blue, green, red in [0, 255]."""


class EdgeNetwork(nn.Module):
    """VGG-16 to its fifth scale, an edge map from each, and their weighted sum (arXiv 1504.06375, section 3)."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        self.scales = nn.ModuleList()
        for widths in WIDTHS:
            dims = (inputs, *widths)
            self.scales.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(dims, widths, strict=False)))
            inputs = widths[-1]
        self.sides = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1) for widths in WIDTHS)
        self.fuse = nn.Conv2d(len(WIDTHS), 1, 1)

    def forward(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
        """How likely each pixel of RGB pictures in [0, 1] is an edge, in [0, 1]."""
        x = pictures.flip(1) * 255 - torch.tensor(MEAN, device=pictures.device)[:, None, None]
        maps = []
        for number, (scale, side) in enumerate(zip(self.scales, self.sides, strict=True)):
            x = F.max_pool2d(x, 2, ceil_mode=True) if number else x
            assert isinstance(scale, nn.ModuleList)
            for convolution in scale:
                x = F.relu(convolution(x))
            maps.append(F.interpolate(side(x), size=pictures.shape[-2:], mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, dim=1)).sigmoid()


def load_edge_network(folder: Path, device: str) -> EdgeNetwork:
    """The network of the folder's .weights.h5, in eval mode. Raises PretrainedError where it is another."""
    try:
        import h5py
    except ImportError:
        raise PretrainedError("its network needs h5py; pip install h5py") from None
    path = files_of(folder, "*.weights.h5")[0]
    network = EdgeNetwork()
    names = {f"dsn{number}": side for number, side in enumerate(network.sides, 1)} | {"fuse": network.fuse}
    for number, scale in enumerate(network.scales, 1):
        assert isinstance(scale, nn.ModuleList)
        names |= {f"block{number}/layers/conv2d{f'_{i}' if i else ''}": layer for i, layer in enumerate(scale)}
    with pretrained_errors(f"{path}: does not hold the weights of HED"), h5py.File(path) as file, torch.no_grad():
        for name, layer in names.items():
            kernel, bias = (torch.from_numpy(file[f"{name}/vars/{part}"][()]) for part in (0, 1))
            layer.load_state_dict({"weight": kernel.permute(3, 2, 0, 1).contiguous(), "bias": bias})
    return network.eval().requires_grad_(False).to(device)


HEAD_DIM = 80
"""Numbers per attention head; 16 heads for the published 1,280 channels."""
INPUTS, TRUNK, HEAD = "modality_preprocessors.vision.", "modality_trunks.vision.", "modality_heads.vision."
STEM = f"{INPUTS}rgbt_stem.proj.1.weight"
BLOCK = {"attn": "self_attn", "mlp.fc1": "linear1", "mlp.fc2": "linear2", "norm_1": "norm1", "norm_2": "norm2"}
"""Published names of a block's parts, and torch's."""
EPSILON = 1e-6


class VisionTrunk(nn.Module):
    """ImageBind's vision trunk (arXiv 2305.05665): patches, class token, learned positions, norm, pre-norm blocks."""

    def __init__(self, dim: int, side: int, positions: int, depth: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.side = side
        self.stem = nn.Conv2d(3, dim, side, stride=side, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.norm_in = nn.LayerNorm(dim, eps=EPSILON)
        heads = dim // HEAD_DIM
        blocks = [
            nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, "gelu", EPSILON, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm_out = nn.LayerNorm(dim, eps=EPSILON)
        self.project = nn.Linear(dim, out_dim, bias=False)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> PictureFeatures:
        """Vectors of normalised pictures whose sides are multiples of the patch's."""
        patches = self.stem(pixels)
        rows, columns = patches.shape[2:]
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), rearrange(patches, "b d h w -> b (h w) d")], 1)
        x = self.norm_out(self.blocks(self.norm_in(tokens + self.positions(rows, columns))))
        return PictureFeatures(patches=x[:, 1:], pooled=x[:, 0], embedding=F.normalize(self.project(x[:, 0]), dim=1))

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 n dim"]:
        """Learned positions, interpolated (bicubic) to a grid of another size."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        plane = rearrange(rest, "b (h w) d -> b d h w", h=math.isqrt(rest.shape[1]))
        return torch.cat([first, resized_positions(plane, (rows, columns))[None]], dim=1)


def trunk_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the vision trunk under the names of `VisionTrunk`; those of other modalities are left out.

    The published stem is a convolution over two frames, and a picture is shown to it twice: the sum over its frames.
    """
    renamed = {STEM: "stem.weight", f"{INPUTS}cls_token": "cls_token"}
    renamed[f"{INPUTS}pos_embedding_helper.pos_embed"] = "pos_embed"
    renamed |= {f"{TRUNK}pre_transformer_layer.0.{part}": f"norm_in.{part}" for part in ("weight", "bias")}
    renamed |= {f"{HEAD}0.{part}": f"norm_out.{part}" for part in ("weight", "bias")}
    renamed[f"{HEAD}2.weight"] = "project.weight"
    state = {ours: tensors[theirs] for theirs, ours in renamed.items() if theirs in tensors}
    for key, value in tensors.items():
        if key.startswith(f"{TRUNK}blocks."):
            for theirs, ours in BLOCK.items():
                key = key.replace(f".{theirs}.", f".{ours}.")
            state[key.removeprefix(TRUNK)] = value
    if "stem.weight" in state:
        state["stem.weight"] = state["stem.weight"].sum(dim=2)
    return state


def load_vision_trunk(folder: Path, device: str) -> VisionTrunk:
    """The trunk of the .safetensors files in `folder`, in eval mode; its sizes follow from the tensors.

    The published file is a pickle, which is never read: its tensors have to be saved under the same names. Raises
    PretrainedError where it is another network.
    """
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    files = files_of(folder, "*.safetensors")
    with pretrained_errors(f"{folder}: is not the vision trunk of ImageBind under its published names ({STEM}, ...)"):
        for path in files:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith((INPUTS, TRUNK, HEAD))]  # noqa: SIM118
                tensors |= {name: file.get_tensor(name).float() for name in names}
        state = trunk_state(tensors)
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        trunk = VisionTrunk(
            dim=state["stem.weight"].shape[0],
            side=state["stem.weight"].shape[-1],
            positions=state["pos_embed"].shape[1],
            depth=depth,
            hidden=len(state["blocks.0.linear1.bias"]),
            out_dim=len(state["project.weight"]),
        )
        trunk.load_state_dict(state)
    return trunk.eval().requires_grad_(False).to(device)
