"""Toy models that learn in seconds and reproduce their training data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from backbone_samples import spec

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.spec import GridLayout, ModalitySpec, SequenceLayout, ValueSpec
from zoo_backbone.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.config import ModelConfig
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.outputs import Agreement, best_first, cosine
from zoo_backbone.model import FourM

SAID = SequenceLayout(max_length=4, end=0, sentinel_start=1, num_sentinels=2)
MAPPED = [spec("a", GridLayout(shape=(2, 2)), 6), spec("b", GridLayout(shape=(2, 2)), 6), spec("c", SAID, 10)]
PERMUTATION = torch.tensor([3, 5, 0, 1, 2, 4])
TINY = ModelConfig(dim=48, encoder_depth=1, decoder_depth=1, heads=2)


def learned(specs: list[ModalitySpec], batch_of: Callable[[FourM], PackedBatch], steps: int) -> FourM:
    torch.manual_seed(0)
    model = FourM(TINY, specs)
    with torch.no_grad():
        model.token_embedding.weight.normal_()  # as large as the positions: learns in seconds
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch_of(model)).loss.backward()
        optimizer.step()
    return model


def mapping_batch(model: FourM, a: torch.Tensor) -> PackedBatch:
    """Map a (`batch 4`) to b, a permutation of a's ids, and to c, a sequence that spells a's ids."""
    layout, batch = model.layout, len(a)
    b, c = layout.token_rows("b").start, layout.token_rows("c").start
    stream = c + torch.cat([torch.full((batch, 1), 1), a + 4, torch.zeros(batch, 1, dtype=torch.int64)], 1)
    places = [layout.positions[name].start + torch.arange(n) for name, n in (("b", 4), ("c", 5))]
    return PackedBatch(
        inputs=PackedInputs(
            ids=a, positions=torch.arange(4).expand(batch, -1), modalities=torch.zeros_like(a),
            mask=torch.ones_like(a, dtype=torch.bool),
        ),
        targets=PackedTargets(
            ids=torch.cat([PERMUTATION[a] + b, stream[:, 1:]], 1),
            read=torch.cat([torch.full_like(a, -1), stream[:, :-1]], 1),
            positions=torch.cat(places).expand(batch, -1),
            modalities=torch.tensor([1] * 4 + [2] * 5).expand(batch, -1),
            mask=torch.ones(batch, 9, dtype=torch.bool),
        ),
    )  # fmt: skip


def test_a_trained_model_generates_the_mapping_it_saw() -> None:
    model = learned(MAPPED, lambda model: mapping_batch(model, torch.randint(0, 6, (48, 4))), 80)
    a = torch.randint(0, 6, (64, 2, 2))
    for plan in (TargetPlan(name="b", steps=1, temperature=0), TargetPlan(name="b", steps=1)):
        made = generate(model, {"a": a}, [plan], seed=0)["b"]
        assert (made == PERMUTATION[a]).float().mean() > 0.9
    words = generate(model, {"a": a}, [TargetPlan(name="c", temperature=0)], seed=0)["c"]
    wanted = (a.flatten(1) + 4).tolist()
    assert np.mean([row.tolist() == want for row, want in zip(words, wanted, strict=True)]) > 0.9


# --- draws ranked by how well they agree


SQUARE = GridLayout(shape=(2, 2))
SEEN = dataclasses.replace(spec("c", SQUARE, 6), value=ValueSpec(shape=(4, 6)))
RANKED = [spec("a", SQUARE, 6), spec("b", SQUARE, 6), SEEN]


def agreeing_batch(model: FourM) -> PackedBatch:
    """Map a and b to c, which has the same ids."""
    ids, kind = torch.randint(0, 6, (64, 4)), torch.randint(0, 2, (64, 1)).expand(-1, 4)
    used = torch.ones(64, 4, dtype=torch.bool)
    return PackedBatch(
        inputs=PackedInputs(
            ids=ids + 6 * kind, positions=torch.arange(4).expand(64, -1), modalities=kind, mask=used,
        ),
        targets=PackedTargets(
            ids=ids + 12, read=torch.full((64, 4), -1), modalities=torch.full((64, 4), 2), mask=used,
            positions=(model.layout.positions["c"].start + torch.arange(4)).expand(64, -1),
        ),
    )  # fmt: skip


def decode(tokens: torch.Tensor) -> list[np.ndarray]:
    return [np.eye(6)[np.asarray(row).ravel()] for row in tokens]


def test_the_draw_that_agrees_is_ranked_first() -> None:
    """`c` follows from `b` exactly as from `a`, so the draw of `b` that equals `a` agrees best."""
    model = learned(RANKED, agreeing_batch, 120)
    scorer = Agreement(model, "c", decode, ["a"], ["b"])
    a = torch.randint(0, 6, (2, 2, 2), generator=torch.Generator().manual_seed(3))
    draws = torch.stack([(a + 1) % 6, (a + torch.tensor([[0, 0], [0, 1]])) % 6, a], 1).flatten(0, 1)
    scores = scorer({"a": a.repeat_interleave(3, 0)}, {"b": draws})
    assert scores == pytest.approx([0, 0.75, 1] * 2, abs=0.26)
    given = scorer({"c": a.repeat_interleave(3, 0)}, {"b": draws})
    assert all(best_first(found[i : i + 3]) == [2, 1, 0] for found in (scores, given) for i in (0, 3))


IDS, LABELS = ValueSpec(shape=(4,), dtype="int32"), ValueSpec(dtype="uint8", classes=("a", "b"))


@pytest.mark.parametrize(
    ("value", "whole", "message"),
    [
        (SEEN.value, [], "there is no whole input"),
        (ValueSpec(kind="object"), ["a"], "draws are compared as vectors, and its values are object"),
        (IDS, ["a"], ".* its values are ids or other whole numbers"),
        (LABELS, ["a"], ".* its values are ids or other whole numbers"),
    ],
)
def test_draws_are_not_ranked_by_what_is_no_vector(value: ValueSpec, whole: list[str], message: str) -> None:
    model = FourM.seeded(TINY, [*RANKED[:2], dataclasses.replace(SEEN, value=value)], 0)
    with pytest.raises(ConfigError, match=f"rank c: {message}"):
        Agreement(model, "c", list, whole, ["b"])


@pytest.mark.parametrize("whole", ["a", "c"])
def test_scores_in_blocks_equal_those_of_one_batch(whole: str) -> None:
    """Score two samples with 35 draws each. The slow reference is one batch that predicts each row separately."""
    model, draws = FourM.seeded(TINY, RANKED, 0), 35
    with torch.no_grad():  # makes predictions depend on the inputs
        for weights in model.parameters():
            weights.normal_(generator=torch.Generator().manual_seed(weights.numel()))

    random = torch.Generator().manual_seed(0)
    given = torch.randint(0, 6, (2, 2, 2), generator=random).repeat_interleave(draws, 0)
    made = torch.randint(0, 6, (2 * draws, 2, 2), generator=random)
    plan = [TargetPlan(name="c", temperature=0, steps=1)]
    wanted = given if whole == "c" else generate(model, {whole: given}, plan, 0)["c"]
    pairs = zip(decode(generate(model, {"b": made}, plan, 0)["c"]), decode(wanted), strict=True)
    expected = [cosine(one.ravel(), other.ravel()) for one, other in pairs]
    assert len(set(expected)) > 3
    found = Agreement(model, "c", decode, [whole], ["b"])({whole: list(given)}, {"b": list(made)})
    assert found == pytest.approx(expected, abs=1e-12)


def test_ranks_and_cosines_by_hand() -> None:
    assert best_first([0.1, 0.9, 0.5]) == [1, 2, 0] and best_first([0.5, 0.2, 0.5]) == [0, 2, 1]
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(0.96)
    assert cosine(np.zeros(2), np.ones(2)) == 0
