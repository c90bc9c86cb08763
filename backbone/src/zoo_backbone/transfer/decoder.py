"""The head for tokens: a small decoder reads the encoder's features and writes a modality's tokens one by one."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo_backbone.config import ModelConfig
from zoo_backbone.model import EMBEDDING_STD, OUTPUT_STD
from zoo_backbone.numbers import start_alike
from zoo_backbone.transfer.kinds import Tokens
from zoo_backbone.transfer.reading import Head, Reads
from zoo_backbone.transformer import DecoderBlock, KeyValueCache, initialise, layer_norm


class TokenDecoder(Head):
    """Blocks like the backbone's decoder's, from random weights, over features (Pix2Seq, arXiv 2109.10852)."""

    reads: ClassVar[Reads] = "tokens"

    def __init__(self, config: ModelConfig, kind: Tokens) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.embedding = nn.Embedding(kind.vocab_size, config.dim)
        self.start = nn.Parameter(torch.empty(1, 1, config.dim))
        self.positions = nn.Parameter(torch.empty(kind.length, config.dim))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.norm = layer_norm(config.dim, config)
        self.out = nn.Linear(config.dim, kind.vocab_size, bias=False)
        self.apply(initialise)
        for table in (self.embedding.weight, self.start, self.positions):
            nn.init.normal_(table, std=EMBEDDING_STD)
        nn.init.normal_(self.out.weight, std=OUTPUT_STD)
        start_alike(self.embedding.weight, kind.ordered_ids, EMBEDDING_STD)
        start_alike(self.out.weight, kind.ordered_ids, OUTPUT_STD)

    def _context(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [cast(DecoderBlock, block).keys_and_values(features, None) for block in self.blocks]

    def taught(self, features: Tensor, mask: Tensor | None, targets: Tensor) -> Tensor:
        """Logits `batch tokens vocabulary` of each target, which sees the true ones before it."""
        before = self.embedding(targets[:, :-1].clamp(min=0))
        x = torch.cat([self.start.expand(len(targets), -1, -1), before], 1) + self.positions
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        seen = None if mask is None else rearrange(mask, "b n -> b 1 1 n")
        for block, context in zip(self.blocks, self._context(features), strict=True):
            x = block(x, None, context, causal, seen)
        result: Tensor = self.out(self.norm(x))
        return result

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """The likeliest ids `batch tokens`, each given those before it; what follows an end has no meaning."""
        contexts, batch = self._context(features), len(features)
        caches = [KeyValueCache.empty(batch, self.kind.length, self.config, features) for _ in self.blocks]
        seen = None if mask is None else rearrange(mask, "b n -> b 1 1 n")
        x, written = self.start.expand(batch, -1, -1), []
        ended = torch.zeros(batch, dtype=torch.bool, device=features.device)
        for position in range(self.kind.length - (self.kind.end is not None)):
            x = x + self.positions[position]
            for block, context, cache in zip(self.blocks, contexts, caches, strict=True):
                x = block(x, None, context, None, seen, cache)
            ids = self._allowed(self.out(self.norm(x[:, 0]))).argmax(1)
            written.append(ids)
            if self.kind.end is not None:
                ended |= ids == self.kind.end
                if bool(ended.all()):
                    break
            x = self.embedding(ids).unsqueeze(1)
        return torch.stack(written, 1)

    def _allowed(self, logits: Tensor) -> Tensor:
        """Without the sentinels, which no value has."""
        first, count = self.kind.sentinels
        inside = torch.arange(logits.shape[1], device=logits.device)
        return logits.masked_fill((inside >= first) & (inside < first + count), -torch.inf)
