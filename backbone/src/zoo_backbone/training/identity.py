"""What a run's result depends on, kept in its folder: the same command goes on with it, and another is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.checkpoint import CONFIG
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.io import as_json, difference, read_table, write_json
from tokenizers_zoo.spec import ModalitySpec, layout_to_json
from tokenizers_zoo.train.state import check_free
from zoo_backbone.config import ModelConfig, TrainConfig
from zoo_backbone.data import TokenData

IDENTITY = "training_state.json"
CONTENTS = "contents"
"""Where it says what the samples are; runs of earlier versions do not."""
COPY = "copy it again, or give another folder"
"""What is to be done where it is damaged: without it a folder is no run's."""


def run_identity(
    specs: Sequence[ModalitySpec],
    model_config: ModelConfig,
    train_config: TrainConfig,
    fingerprints: Mapping[str, str],
    data: Sequence[TokenData],
    start: str | None,
) -> dict[str, Any]:
    """All that a run's result depends on, as JSON types.

    `data` are the samples of each token store, `start` is the sha256 of the weights that it starts from.
    """
    modalities = {
        spec.name: {
            "layout": layout_to_json(spec.layout), "vocabulary": spec.vocabulary, "vocab_size": spec.vocab_size,
            "fingerprint": fingerprints.get(spec.name, ""),
        }
        for spec in specs
    }  # fmt: skip
    identity = {
        "model": dataclasses.asdict(model_config), "train": dataclasses.asdict(train_config),
        "modalities": modalities, "samples": [len(samples) for samples in data], "start": start,
        CONTENTS: [samples.contents() for samples in data],
    }  # fmt: skip
    return as_json(identity)


def begun_codecs(folder: Path) -> dict[str, str]:
    """The fingerprints, by modality, of the codecs that the training in a folder began with; {} without one."""
    path = folder / IDENTITY
    modalities = read_table(path, "modalities", remedy=COPY)["modalities"] if path.is_file() else {}
    return {name: str(record["fingerprint"]) for name, record in modalities.items()}


def lasting(config: TrainConfig) -> dict[str, Any]:
    """Settings as JSON types for config.json, which is read from any folder: paths are absolute."""
    datasets = tuple(dataclasses.replace(dataset, tokens=dataset.tokens.resolve()) for dataset in config.datasets)
    return as_json(dataclasses.asdict(dataclasses.replace(config, datasets=datasets)))


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An identity that an earlier version wrote, with the defaults of settings that it did not know yet."""
    kinds = {"model": ModelConfig, "train": TrainConfig}
    return {**stored, **{key: as_json(dataclasses.asdict(from_mapping(kind, stored[key])))
                         for key, kind in kinds.items()}}  # fmt: skip


def without_places(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the folders of further token stores."""
    datasets = [{key: value for key, value in dataset.items() if key != "tokens"}
                for dataset in identity["train"]["datasets"]]  # fmt: skip
    return {**identity, "train": {**identity["train"], "datasets": datasets}}


def open_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Take a new folder, or one of the same run, whose token stores may have been moved since.

    Raises ConfigError where it holds another, CheckpointError where it is no run's: see `check_free`.
    """
    path = folder / IDENTITY
    if path.is_file():
        stored = completed(read_table(path, "model", "train", remedy=COPY))
        contents = stored.pop(CONTENTS, None)
        given = {key: value for key, value in identity.items() if key != CONTENTS}
        if contents is not None:  # which tell the samples, wherever they are now
            stored, given = without_places(stored), without_places(given)
        for name, record in given["modalities"].items():
            if record["fingerprint"] != stored["modalities"].get(name, record)["fingerprint"]:
                raise ConfigError(
                    f"{folder}: holds a run on other tokens of {name}, whose tokenizer was trained anew or has other "
                    "settings since; give another folder, or bring that tokenizer back"
                )
        if problem := difference(stored, given):
            raise ConfigError(
                f"{folder}: holds a run with other settings ({problem}); give those again, or another folder"
            )
        # Tables have their rows, and a state its tensors, in this order.
        before, now = (", ".join(record["modalities"]) for record in (stored, identity))
        if before != now:
            raise ConfigError(
                f"{folder}: holds a run of the same modalities in another order: expected {before}; got {now}; give "
                "that order again, or another folder"
            )
        if contents not in (None, identity[CONTENTS]):
            raise ConfigError(
                f"{folder}: holds a run on other samples, or on other tokens of them, than are there now; give those"
                " again, or another folder"
            )
    elif (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds a model that was not trained here; give another folder")
    else:
        check_free(folder)
        write_json(path, identity)
