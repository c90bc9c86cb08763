"""A small untrained model, tokens for it, and a slow computation of its logits, for the tests of generation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from backbone_samples import spec

from tokenizers_zoo.contract.layouts import EmbeddingsLayout, GridLayout, PatchesLayout, SequenceLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec
from zoo_backbone.generate.sampling import draw
from zoo_backbone.learn.checkpoint import architecture_for
from zoo_backbone.model.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import EncoderInputs
from zoo_backbone.model.published import PublishedConfig

SHAPE: dict[str, Any] = {"dim": 32, "encoder_depth": 2, "decoder_depth": 2, "heads": 2, "rotary": True}
CONFIG, PUBLISHED = ModelConfig(**SHAPE), PublishedConfig(**SHAPE)
WORDS = SequenceLayout(max_length=6, end=1, sentinel_start=2, num_sentinels=4)


SPECS = [
    spec("left", GridLayout(shape=(2, 3)), 7),
    spec("words", WORDS, 20, "text"),
    spec("right", GridLayout(shape=(3, 3)), 11),
    spec("bag", VectorLayout(length=4), 5),
    spec("pixels", PatchesLayout(shape=(2, 2), dim=3)),
    spec("vectors", EmbeddingsLayout(max_length=5, dim=4)),
]


def sharp_model(specs: Sequence[ModalitySpec] = SPECS, config: ModelConfig = CONFIG) -> FourM:
    """Return a model with sharper predictions than at initialisation, so that inputs matter."""
    torch.manual_seed(0)
    model = architecture_for(config)(config, specs)
    with torch.no_grad():
        for table in (*model.output.values(), model.token_embedding.weight, model.modality_embedding.weight):
            table.mul_(40)
        for block in model.decoder:
            block.cross_attention.out.weight.mul_(40)  # type: ignore[union-attr, operator]
    return model


def random_inputs(batch: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "left": torch.from_numpy(random.integers(0, 7, (batch, 2, 3))),
        "words": [random.integers(6, 20, length) for length in random.integers(0, 7, batch)],
        "pixels": torch.from_numpy(random.standard_normal((batch, 4, 3), np.float32)),
        "vectors": [random.standard_normal((n, 4), np.float32) for n in random.integers(1, 6, batch)],
    }


def only(input_tokens: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: tokens[index : index + 1] for name, tokens in input_tokens.items()}


def contents(inputs: PackedInputs) -> set[tuple[Any, ...]]:
    """Return every used token: its sample, modality, position, and id or vector."""
    width = inputs.ids.shape[1]
    vectors = {
        int(slot): tuple(row.tolist())
        for slots, rows in inputs.vectors.values()
        for slot, row in zip(slots, rows, strict=True)
    }
    return {
        (
            sample, int(inputs.modalities[sample, slot]), int(inputs.positions[sample, slot]),
            vectors.get(sample * width + slot, int(inputs.ids[sample, slot])),
        )
        for sample, slot in inputs.mask.nonzero().tolist()
    }  # fmt: skip


def full_logits(model: FourM, inputs: PackedInputs, name: str, read: list[int], ranks: Sequence[int]) -> torch.Tensor:
    """Slow reference: compute the logits of all targets of one sample at once through the training path."""
    tables = model.layout
    row = torch.tensor([read])
    targets = PackedTargets(
        ids=torch.zeros_like(row), read=row, positions=torch.tensor([ranks]) + tables.positions[name].start,
        modalities=torch.full_like(row, tables.index(name)), mask=torch.ones_like(row, dtype=torch.bool),
    )  # fmt: skip
    hidden = model.decode_targets(PackedBatch(inputs=inputs, targets=targets))
    return model.logits(hidden, tables.table_of(tables.spec(name)))[0]


def draw_one(logits: torch.Tensor, uniform: torch.Tensor, *settings: Any, **options: Any) -> torch.Tensor:
    """Return ids `...` for logits `... ids` and uniform numbers `...`."""
    return draw(logits, uniform.unsqueeze(-1), *settings, **options).squeeze(-1)


def whole_inputs(model: FourM, input_tokens: dict[str, Any], names: Collection[str] | None = None) -> EncoderInputs:
    """Return the encoder's inputs: all of `input_tokens`, or those in `names`."""
    inputs = EncoderInputs(model.layout, len(next(iter(input_tokens.values()))), torch.device("cpu"))
    for name, tokens in input_tokens.items():
        if names is None or name in names:
            inputs.add_whole(name, tokens)
    return inputs
