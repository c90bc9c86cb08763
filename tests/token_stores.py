"""Helpers that write token stores, one modality at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.contract.layouts import EmbeddingsLayout, PatchesLayout, TokenLayout
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.stores.token_shard import TokenMetadata, write_token_shard
from tokenizers_zoo.stores.tokens import STORE, TokenSplit, TokenStore, TokenSummary, whole_samples, write_store


def metadata_of(spec: ModalitySpec) -> TokenMetadata:
    """Return metadata for tokens of `spec` by a tokenizer that does not exist."""
    return TokenMetadata(
        modality=spec.name, vocabulary=spec.vocabulary, vocab_size=spec.vocab_size, layout=spec.layout,
        fingerprint=f"codec of {spec.vocabulary}", distribution="tests 0", settings={},
    )  # fmt: skip


def plain_metadata(layout: TokenLayout, **changes: Any) -> TokenMetadata:
    """Return metadata for tokens of a modality m with a vocabulary v of 70000 ids."""
    continuous = isinstance(layout, PatchesLayout | EmbeddingsLayout)
    fields: dict[str, Any] = {
        "modality": "m", "vocabulary": "v", "vocab_size": 0 if continuous else 70000, "layout": layout,
        "fingerprint": "f" * 64, "distribution": "zoo-m 1.0", "settings": {},
    }  # fmt: skip
    return TokenMetadata(**{**fields, **changes})


def write_tokens(
    root: Path,
    split: str,
    metadata: TokenMetadata,
    tokens: Mapping[str, Any],
    *,
    keys: Sequence[str] | None = None,
    shard_size: int = 16,
    crops: int = 1,
    **store: Any,
) -> None:
    """Write one modality: the tokens of each key, or a list with the tokens of each of its `crops`.

    `keys` are all samples of the split, by default its samples so far and then the new keys of `tokens`.
    """
    before = TokenStore(root) if (root / STORE).is_file() else None
    split_exists = before is not None and split in before._record.splits
    rewritten: dict[str, tuple[TokenMetadata, Mapping[str, Any]]] = {}
    if keys is None and before is not None and split_exists:
        token_split = before.split(split)
        stored_keys = dict.fromkeys(key for shard in range(token_split.shards) for key in token_split.keys(shard))
        if set(tokens) - set(stored_keys):
            keys, shard_size = list(stored_keys | dict.fromkeys(tokens)), token_split.shard_size
            names = [name for name in before.modalities(split) if name != metadata.modality]
            rewritten = {name: (before.open(split, name).metadata, stored_tokens(root, split, name)) for name in names}
    if keys is not None or not split_exists:
        keys = list(tokens) if keys is None else keys
        token_split = TokenSplit(root, split, len(keys), shard_size, crops=crops, **store)
        for shard in range(token_split.shards):
            token_split.write_keys(shard, keys[shard * shard_size : (shard + 1) * shard_size])
        write_store(root, None if before is None else before.data, [token_split])
    for item, content in [*rewritten.values(), (metadata, tokens)]:
        (token_split.folder / item.modality).mkdir(parents=True, exist_ok=True)
        for shard in range(token_split.shards):
            token_rows = [content.get(key) for key in token_split.keys(shard)]
            rows = [None if row is None else [np.asarray(view) for view in ([row] if token_split.crops == 1 else row)]
                    for row in token_rows]  # fmt: skip
            write_token_shard(
                token_split.folder / item.modality, shard, item, rows,
                keys=token_split.keys_digest(shard), crops=token_split.crops,
            )  # fmt: skip
        TokenSummary.of(token_split, item.modality).write(token_split.folder / item.modality)


def stored_tokens(root: Path, split: str, name: str) -> dict[str, Any]:
    """Return the tokens of each whole (uncropped) sample that has some."""
    column = TokenStore(root).open(split, name)
    rows = dict(whole_samples([column]))
    return dict(zip(rows, column.take(rows.values()), strict=True))


def rewrite_tokens(root: Path, split: str, name: str, tokens: Mapping[str, Any]) -> None:
    """Replace the stored tokens of a modality."""
    write_tokens(root, split, TokenStore(root).open(split, name).metadata, tokens)


def reversed_tokens(root: Path, split: str, name: str) -> None:
    """Store the samples' tokens in reverse order, so that keys and tokens no longer match."""
    tokens = stored_tokens(root, split, name)
    rewrite_tokens(root, split, name, dict(zip(tokens, list(tokens.values())[::-1], strict=True)))


def note_source(root: Path, data: Path, sources: Mapping[str, str | None] | None = None) -> None:
    """Record the folder of a store's values, and the source of each split's samples."""
    store = TokenStore(root)
    changed = [dataclasses.replace(store.split(split), source=source) for split, source in (sources or {}).items()]
    write_store(root, data, changed)
