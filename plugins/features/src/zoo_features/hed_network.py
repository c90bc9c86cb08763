"""Holistically nested edge detection, read from the .h5 file of a wheel. Needs torch and h5py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.pretrained import PretrainedError, files_of, one_line

if TYPE_CHECKING:
    from jaxtyping import Float

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
    with one_line(f"{path}: does not hold the weights of HED"), h5py.File(path) as file, torch.no_grad():
        for name, layer in names.items():
            kernel, bias = (torch.from_numpy(_array(file, f"{name}/vars/{part}")) for part in (0, 1))
            layer.load_state_dict({"weight": kernel.permute(3, 2, 0, 1).contiguous(), "bias": bias})
    return network.eval().requires_grad_(False).to(device)


def _array(file: Any, name: str) -> Any:
    """A whole data set of an open .h5 file."""
    return file[name][()]
