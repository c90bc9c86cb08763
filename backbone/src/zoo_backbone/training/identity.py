"""What the result of a backbone's training depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers_zoo.io import as_json
from tokenizers_zoo.spec import ModalitySpec, layout_to_json
from zoo_backbone.config import ModelConfig, TrainConfig
from zoo_backbone.data import TokenData


def run_identity(
    specs: Sequence[ModalitySpec],
    model_config: ModelConfig,
    train_config: TrainConfig,
    fingerprints: Mapping[str, str],
    data: Sequence[TokenData],
    start: str | None,
) -> dict[str, Any]:
    """Return the identity of a run, as JSON types; token stores count by their contents, not by their paths.

    `data` are the samples of each token store, `start` is the sha256 of the weights that the run starts from.
    """
    train = dataclasses.asdict(train_config)
    train["datasets"] = [{**dataset, "tokens": None} for dataset in train["datasets"]]
    modalities = {
        spec.name: {
            "layout": layout_to_json(spec.layout), "vocabulary": spec.vocabulary, "vocab_size": spec.vocab_size,
            "fingerprint": fingerprints.get(spec.name, ""),
        }
        for spec in specs
    }  # fmt: skip
    return as_json({
        "model": dataclasses.asdict(model_config), "train": train, "modalities": modalities,
        "order": list(modalities), "start": start, "samples": [len(samples) for samples in data],
        "contents": [samples.contents() for samples in data],
    })  # fmt: skip


def lasting(config: TrainConfig) -> dict[str, Any]:
    """Return settings as JSON types for config.json, which is read from any folder: paths are absolute."""
    datasets = tuple(dataclasses.replace(dataset, tokens=dataset.tokens.resolve()) for dataset in config.datasets)
    return as_json(dataclasses.asdict(dataclasses.replace(config, datasets=datasets)))
