"""Captions as the vectors of a T5 encoder, for the backbone to read (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.families.continuous import EmbeddingsModality, EmbeddingsSettings
from tokenizers_zoo.pretrained import PretrainedConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Network(PretrainedConfig):
    """A T5 encoder with its tokenizer."""

    model: str = "google-t5/t5-small"


@dataclass(frozen=True, kw_only=True, slots=True)
class T5CaptionSettings(EmbeddingsSettings):
    """Settings of `t5_caption`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {"network": {"model": "google/t5-v1_1-xxl"}, "dim": 4096, "max_length": 77}
    }

    preset: Literal["4m"] | None = None
    """4m: T5-XXL, as the 4M papers have it."""
    network: T5Network = T5Network()
    """The encoder: a hub id or a local folder."""


class T5Caption(EmbeddingsModality):
    """One vector per token of the caption, the end token among them.

    The caption is not mirrored with the picture, so left and right would be swapped.
    """

    summary = "The caption as vectors of a T5 encoder"
    settings_class = T5CaptionSettings
    source = "caption"
    licence = "Apache-2.0; weights of google-t5/t5-small: Apache-2.0"

    def embed(self, value: str, options: T5CaptionSettings) -> npt.NDArray[Any]:
        import torch

        tokenizer = options.network.transformers("AutoTokenizer")
        encoder = options.network.transformers("T5EncoderModel")
        words = tokenizer(value, truncation=True, max_length=options.max_length, return_tensors="pt")
        with torch.inference_mode():
            vectors = encoder(**words.to(options.network.torch_device)).last_hidden_state[0]
        result: npt.NDArray[Any] = vectors.cpu().numpy().astype(np.float32)
        return result


plugin = T5Caption()
