"""Saved backbones: loading, and adding or removing modalities by name without changing old outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, packed_batch, sequence, spec

from tokenizers_zoo.contract.layouts import EmbeddingsLayout, GridLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.checkpoint import load_checkpoint, load_config, save_checkpoint
from tokenizers_zoo.records.io import as_json
from tokenizers_zoo.records.typed import convert
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.optim import Optimizer
from zoo_backbone.model.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM


def remapped(batch: PackedBatch, old: EmbeddingLayout, new: EmbeddingLayout) -> PackedBatch:
    """Return the same tokens with the ids of another layout's tables."""
    rows, positions = torch.zeros(old.num_tokens, dtype=torch.int64), torch.zeros(old.num_positions, dtype=torch.int64)
    for name, span in old.token_tables.items():
        rows[span] = new.token_tables[name].start + torch.arange(span.stop - span.start)
    for name, span in old.positions.items():
        positions[span] = new.positions[name].start + torch.arange(span.stop - span.start)
    kinds = torch.tensor([new.index(name) for name in old.names])
    inputs, targets = batch.inputs, batch.targets
    return PackedBatch(
        inputs=PackedInputs(
            ids=rows[inputs.ids], positions=positions[inputs.positions], modalities=kinds[inputs.modalities],
            mask=inputs.mask, vectors=inputs.vectors,
        ),
        targets=PackedTargets(
            ids=rows[targets.ids], read=torch.where(targets.read < 0, -1, rows[targets.read]),
            positions=positions[targets.positions], modalities=kinds[targets.modalities], mask=targets.mask,
        ),
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[FourM, Path]:
    model = FourM.seeded(SMALL, all_layouts(), 0)
    optimizer = Optimizer(model, TRAINING)
    for step in range(2):
        model(packed_batch(all_layouts(), seed=step)).loss.backward()
        optimizer.step(1e-2)
    save_model(model, tmp_path / "model", {"fingerprints": {"picture": "abc"}})
    return model.eval(), tmp_path / "model"


def test_saved_model_round_trips(saved: tuple[FourM, Path]) -> None:
    model, folder = saved
    loaded = load_model(folder)
    assert loaded.config == model.config and loaded.layout.specs == model.layout.specs
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert load_config(folder)["fingerprints"] == {"picture": "abc"}
    assert "| words | sequence of 20 | text | 100 |" in (folder / "README.md").read_text()
    classes = ValueSpec(shape=(2, 2), dtype="int64", classes=("void", "a"), unscored=("void",))
    for item in (*all_layouts(), dataclasses.replace(all_layouts()[0], value=classes)):
        assert convert(as_json(item), ModalitySpec) == item


def test_a_table_without_its_last_rows_is_an_error(saved: tuple[FourM, Path]) -> None:
    name = "tokens.text"
    tensors, config = load_checkpoint(saved[1])
    save_checkpoint(saved[1], tensors | {name: tensors[name][:-1].clone()}, config, "A card.")
    with pytest.raises(CheckpointError, match=rf"{name} .*\(99, 32\).*\(100, 32\)"):
        load_model(saved[1])


def test_unscored_classes_are_saved_with_the_spec() -> None:
    value = ValueSpec(shape=(2, 2), dtype="int64", classes=("void", "a"), unscored=("void",))
    modality = ModalitySpec(name="ids", summary="ids", value=value, layout=GridLayout(shape=(1, 1)), vocab_size=2)
    written = as_json(modality)
    assert written["value"]["unscored"] == ["void"] and convert(written, ModalitySpec) == modality


def test_new_rows_start_as_in_a_new_model_of_the_same_seed(saved: tuple[FourM, Path]) -> None:
    """test_growing.py compares the outputs of old modalities."""
    grown = [dataclasses.replace(item, vocab_size=130) for item in all_layouts() if item.vocabulary == "text"]
    larger, same_seed = (
        load_model(saved[1], [*grown, spec("new", GridLayout(shape=(3, 3)), 21)], seed=7) for _ in "12"
    )
    assert all(torch.equal(a, b) for a, b in zip(larger.parameters(), same_seed.parameters(), strict=True))
    assert larger.output["text"][100:].std().item() == pytest.approx(0.02, rel=0.2)


def of_length(words: int, vectors: int) -> list[ModalitySpec]:
    layouts = {"words": sequence(words), "vectors": EmbeddingsLayout(max_length=vectors, dim=9)}
    return [dataclasses.replace(item, layout=layouts.get(item.name, item.layout)) for item in all_layouts()]


@pytest.mark.parametrize(("words", "vectors"), [(33, 16), (41, 7), (12, 3)])
def test_sequences_of_another_length_keep_their_positions(
    saved: tuple[FourM, Path], tmp_path: Path, words: int, vectors: int
) -> None:
    model, folder = saved
    resized = load_model(folder, of_length(words, vectors)).eval()
    shorter = min((model, resized), key=lambda model: model.layout.spec("words").layout.length)
    batch = packed_batch(list(shorter.layout.specs), size=4, seed=9)

    def outputs(model: FourM) -> torch.Tensor:
        return model.decode_targets(remapped(batch, shorter.layout, model.layout))

    assert torch.equal(outputs(model), outputs(resized))
    save_model(resized, tmp_path / "other")
    reloaded = load_model(tmp_path / "other").eval()
    longer = load_model(tmp_path / "other", of_length(50, 20)).eval()
    assert torch.equal(outputs(model), outputs(reloaded)) and torch.equal(outputs(model), outputs(longer))
    assert longer.config.position_lengths == {"words": 20, "vectors": 7}
    original_size = load_model(tmp_path / "other", all_layouts())
    assert original_size.config == model.config and torch.equal(original_size.fixed_positions, model.fixed_positions)


def test_a_subset_of_modalities_loads(saved: tuple[FourM, Path]) -> None:
    model, folder = saved
    remaining_specs = [all_layouts()[3], all_layouts()[0]]
    smaller = load_model(folder, remaining_specs)
    assert smaller.layout.names == ("words", "picture")
    assert torch.equal(smaller.output["text"], model.output["text"])
    rows, old = smaller.layout.token_rows("picture"), model.layout.token_rows("picture")
    assert torch.equal(smaller.token_embedding.weight[rows], model.token_embedding.weight[old])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("picture", {"layout": VectorLayout(length=36)}, 'layout .*"grid".*"vector"'),
        ("code", {"layout": VectorLayout(length=6)}, "length .*5.*6"),
        ("picture", {"vocab_size": 49}, "vocabulary"),
        ("words", {"layout": dataclasses.replace(sequence(20), end=9)}, "end .*0.*9"),
        ("pixels", {"layout": dataclasses.replace(all_layouts()[4].layout, dim=13)}, "dim .*12.*13"),
    ],
    ids=["layout", "length", "vocabulary", "end", "dim"],
)
def test_modality_with_another_meaning_is_an_error(
    saved: tuple[FourM, Path], name: str, change: dict[str, Any], message: str
) -> None:
    specs = [dataclasses.replace(item, **change) if item.name == name else item for item in all_layouts()]
    with pytest.raises(CheckpointError, match=message):
        load_model(saved[1], specs)
