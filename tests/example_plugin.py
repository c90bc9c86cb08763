"""A complete plugin without any base class: brightness maps whose tokens are the mean of each 4 x 4 patch, in levels.

The tests install copies of this file as distributions of their own, unchanged or with a deliberate defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.layouts import GridLayout
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSettings:
    """Height and width in pixels, and the number of levels."""

    image_size: int = 16
    levels: int = 16


class Example:
    """Float32 (1, size, size) in [0, 1]; tokens (size / 4, size / 4)."""

    @hookimpl
    def modality_spec(self, settings):
        config = settings.take(ExampleSettings)
        side = config.image_size
        return ModalitySpec(
            name=settings.name,
            summary="brightness",
            value=ValueSpec(shape=(1, side, side), low=0, high=1, unit="brightness"),
            layout=GridLayout(shape=(side // 4, side // 4)),
            vocab_size=config.levels,
            metrics=(Metric(name="mae", higher_is_better=False, meaning="mean absolute error"),),
        )

    @hookimpl
    def train_tokenizer(self, config, samples, out_dir):
        import torch

        levels = config.take(ExampleSettings).levels
        codes = torch.arange(levels, dtype=torch.float32) / (levels - 1)
        save_checkpoint(out_dir, {"codes": codes}, {"class": "Example", "levels": levels}, "An example.\n")
        return Path(out_dir)

    @hookimpl
    def load_tokenizer(self, checkpoint, device):
        tensors, _ = load_checkpoint(checkpoint, "Example")
        return tensors["codes"].to(device)

    @hookimpl
    def encode(self, tokenizer, values):
        from einops import reduce

        means = reduce(values, "batch 1 (h p) (w q) -> batch h w", "mean", p=4, q=4)
        return (means * (len(tokenizer) - 1)).round().long()

    @hookimpl
    def decode(self, tokenizer, tokens):
        from einops import repeat

        return repeat(tokenizer[tokens], "batch h w -> batch 1 (h p) (w q)", p=4, q=4)

    @hookimpl
    def transform(self, value, crop, settings):
        side = settings.take(ExampleSettings).image_size
        height, width = value.shape[-2:]
        rows = (crop.top + (np.arange(side) + 0.5) / side * crop.height) * height
        columns = (crop.left + (np.arange(side) + 0.5) / side * crop.width) * width
        picked = value[:, rows.astype(int)[:, None], columns.astype(int)[None]]
        return np.ascontiguousarray(picked[..., ::-1] if crop.flip else picked)

    @hookimpl
    def score(self, predicted, target):
        return {"mae": float(np.mean([np.abs(p - t).mean() for p, t in zip(predicted, target, strict=True)]))}

    @hookimpl
    def render(self, value):
        from PIL import Image

        return Image.fromarray((value[0] * 255).astype(np.uint8))


plugin = Example()
