"""Masking: budgets, positions, spans and determinism, tested on random specs, samples and settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import END, FIRST_WORD, SENTINEL, all_layouts, raw_batch, sequence, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizers_zoo.contract.layouts import GridLayout, PatchesLayout, SequenceLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, UnknownNameError
from zoo_backbone.learn.masking import Masker, fill, fill_with_limit
from zoo_backbone.model.batch import PackedBatch, RawBatch
from zoo_backbone.model.config import MaskingConfig, Mixture
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.published import PublishedConfig, PublishedLayout
from zoo_backbone.model.spans import Spans, choose, mask_spans, ragged

CASES = settings(max_examples=60, deadline=None, derandomize=True)


def slow_fill(weights: np.ndarray, capacity: np.ndarray, budget: int) -> np.ndarray:
    """Reference implementation of water-filling for one row, without rounding."""
    amounts = np.zeros(len(weights))
    remaining = min(budget, int(capacity.sum()))
    while remaining > 1e-9:
        room = capacity - amounts
        share = np.where(room > 1e-12, weights, 0)
        increment = np.minimum(remaining * share / share.sum(), room)
        amounts += increment
        remaining -= increment.sum()
    return amounts


@CASES
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 60), st.booleans())
def test_fill_rounds_the_water_level(seed: int, size: int, budget: int, faint: bool) -> None:
    """Some weights may be so small that they count as faint."""
    rng = np.random.default_rng(seed)
    logs = np.log(rng.gamma(0.3, size=(20, size)) + 1e-9)
    if faint:
        logs = rng.choice([0.0, -300.0, -598.0, -601.0, -640.0], (20, size)) - rng.exponential(1.5, (20, size))
    capacity = rng.integers(0, 20, (20, size))
    counts = fill(logs - 2000 * faint, capacity, np.full(20, budget), rng.random(20))
    assert (counts.sum(axis=1) == np.minimum(budget, capacity.sum(axis=1))).all()
    assert (counts <= capacity).all() and (counts >= 0).all()
    for row in range(20):
        exact = slow_fill(np.exp(logs[row]), capacity[row], budget)
        assert (np.abs(counts[row] - exact) < 1 + 1e-6).all()


def test_fill_limits_some_entries() -> None:
    shares, half = np.log(np.array([[1.0, 1.0, 2.0]])), np.array([0.5])
    last = np.array([[False, False, True]])
    limited = fill_with_limit(shares, np.array([[9, 9, 9]]), np.array([8]), half, last, np.array([2]))
    assert limited.tolist() == [[3, 3, 2]]


def test_fill_rounds_without_bias_and_survives_tiny_shares() -> None:
    draws = 4000
    offsets = (np.arange(draws) + 0.5) / draws
    shares = np.tile(np.log([[0.25, 0.35, 1.4]]), (draws, 1))
    counts = fill(shares, np.full((draws, 3), 9), np.full(draws, 2), offsets)
    np.testing.assert_allclose(counts.mean(axis=0), [0.25, 0.35, 1.4], atol=1e-3)
    tiny = fill(np.array([[0.0, -1e5, -2e5]]), np.array([[1, 4, 4]]), np.array([7]), np.array([0.0]))
    assert tiny.tolist() == [[1, 4, 2]]


def test_ragged_and_choose_by_hand() -> None:
    rows, columns = ragged(np.array([2, 0, 1]))
    assert rows.tolist() == [0, 0, 2] and columns.tolist() == [0, 1, 0]
    keys = np.random.default_rng(0).integers(0, 2**63, (500, 9)).astype(np.uint64)
    selected = choose(keys, np.full(500, 2), np.full(500, 5))
    assert (selected.sum(axis=1) == 2).all() and not selected[:, 5:].any()
    # Each of five is chosen with probability 2/5, so its count over 500 draws has a standard deviation of 11.
    assert (np.abs(selected[:, :5].sum(axis=0) - 200) < 45).all()


@CASES
@given(st.integers(0, 10**6), st.floats(1, 6), st.integers(1, 10))
def test_masked_spans_leave_exactly_the_quota(seed: int, span_length: float, limit: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, 40)
    quota = np.minimum(rng.integers(0, 35, 40), lengths)
    keys = rng.integers(0, 2**63, (40, 61)).astype(np.uint64)
    masked = mask_spans(lengths, quota, np.full(40, limit), span_length, rng.random(40), keys[:, :30], keys[:, 30:])
    spans = Spans.of(masked)
    count = spans.starts.sum(axis=1)
    visible = lengths - masked.sum(axis=1)
    assert not masked[np.arange(30) >= lengths[:, None]].any()
    part = (quota > 0) & (quota < lengths)
    assert (visible[part] + count[part] == quota[part]).all()
    assert (count[part] >= 1).all() and (count <= limit).all()
    assert (masked.sum(axis=1)[quota == 0] == lengths[quota == 0]).all()
    assert not masked[(quota == lengths) & (quota > 0)].any()


def test_mean_span_length_is_the_setting() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, (3000, 201)).astype(np.uint64)
    lengths = np.full(3000, 100)
    masked = mask_spans(
        lengths, np.full(3000, 70), np.full(3000, 50), 4.0, rng.random(3000), keys[:, :100], keys[:, 100:]
    )
    spans = Spans.of(masked)
    assert abs(spans.length.mean() - 4.0) < 0.02
    # 40 of 100 are masked, equally often at every position except near the ends, which fewer spans can cover.
    assert (np.abs(masked.mean(axis=0)[10:-10] - 0.4) < 0.06).all()


class Unpacked:
    """One sample of a packed batch, read back with plain loops."""

    def __init__(self, layout: EmbeddingLayout, batch: PackedBatch, sample: int) -> None:
        self.layout = layout
        inputs, targets = batch.inputs, batch.targets
        self.inputs: dict[str, list[tuple[int, int]]] = {}
        self.targets: dict[str, list[tuple[int, int, int]]] = {}
        self.runs: list[str] = []
        for slot in range(inputs.ids.shape[1]):
            if inputs.mask[sample, slot]:
                name = layout.names[int(inputs.modalities[sample, slot])]
                position = int(inputs.positions[sample, slot]) - layout.positions[name].start
                first = 0 if layout.spec(name).continuous else layout.token_rows(name).start
                self.inputs.setdefault(name, []).append((int(inputs.ids[sample, slot]) - first, position))
        for slot in range(targets.ids.shape[1]):
            if targets.mask[sample, slot]:
                name = layout.names[int(targets.modalities[sample, slot])]
                if not self.runs or self.runs[-1] != name:
                    self.runs.append(name)
                position = int(targets.positions[sample, slot]) - layout.positions[name].start
                first = layout.token_rows(name).start
                read = int(targets.read[sample, slot])
                read = -1 if read < 0 else read - first
                self.targets.setdefault(name, []).append((int(targets.ids[sample, slot]) - first, position, read))


def check_fixed(item: ModalitySpec, sample: Unpacked, tokens: np.ndarray) -> None:
    inputs = sample.inputs.get(item.name, [])
    targets = sample.targets.get(item.name, [])
    positions = [position for _, position, *_ in (*inputs, *targets)]
    assert len(set(positions)) == len(positions), "a token is used twice"
    for token, position, *_ in (*inputs, *targets):
        assert tokens[position] == token
    assert all(read == -1 for _, _, read in targets)


def check_sequence(item: ModalitySpec, sample: Unpacked, length: int, target_budget: int) -> None:
    """Rebuild the sequence from the sample; tokens count up from FIRST_WORD, so each token gives its position."""
    inputs = sample.inputs.get(item.name, [])
    targets = sample.targets.get(item.name, [])
    assert isinstance(item.layout, SequenceLayout)
    assert [position for _, position in inputs] == list(range(len(inputs)))
    assert [position for _, position, _ in targets] == list(range(len(targets)))
    ids, reads = [token for token, _, _ in targets], [read for _, _, read in targets]
    assert reads[1:] == ids[:-1]
    content = [FIRST_WORD + index for index in range(length)]
    if not inputs:
        full = [SENTINEL, *content, END]
        assert reads == full[: len(reads)] and ids == full[1 : 1 + len(ids)]
        return
    # Find the hidden spans from the gaps between the visible tokens; sentinels number them.
    spans: dict[int, list[int]] = {}
    offset = 0
    for index, (token, _) in enumerate(inputs):
        if token < FIRST_WORD:
            assert token == SENTINEL + len(spans)
            following = next((t for t, _ in inputs[index + 1 :] if t >= FIRST_WORD), FIRST_WORD + length)
            spans[token] = list(range(FIRST_WORD + offset, following))
            offset = following - FIRST_WORD
        else:
            assert token == FIRST_WORD + offset
            offset += 1
    assert offset == length
    assert all(spans.values())
    assert len(spans) <= item.layout.num_sentinels
    if targets and ids[-1] != END:
        # A cut-off sequence: there are no other targets, and no span fits the budget.
        stream = [token for sentinel in sorted(spans) for token in (sentinel, *spans[sentinel])]
        assert reads == stream[: len(reads)] and list(sample.targets) == [item.name]
        assert len(reads) == target_budget < 1 + min(map(len, spans.values()))
    elif targets:
        sentinels = [read for read in reads if read < FIRST_WORD]
        assert sentinels == sorted(sentinels)
        assert reads == [token for sentinel in sentinels for token in (sentinel, *spans[sentinel])]


def without_end(item: ModalitySpec, sample: Unpacked, length: int) -> int:
    """Rewrite `sample` so that its own END token becomes an ordinary word; return the new length."""
    layout = item.layout
    assert isinstance(layout, SequenceLayout)
    word = FIRST_WORD + length  # stands in for END inside the sequence
    input_ids = [token for token, _ in sample.inputs.get(item.name, [])]
    targets = sample.targets.get(item.name, [])
    ids, reads = [token for token, _, _ in targets], [read for _, _, read in targets]
    spans = sum(SENTINEL <= token < FIRST_WORD for token in input_ids) if input_ids else 1
    sentinels = [read for read in reads if SENTINEL <= read < FIRST_WORD]
    assert sentinels == [sentinels[0] + number for number in range(len(sentinels))], "spans that are not neighbours"
    following = sentinels[-1] + 1 if sentinels else SENTINEL
    closing = following if following < SENTINEL + layout.num_sentinels else END
    last_asked = SENTINEL + spans - 1 in sentinels
    closed = bool(ids) and ids[-1] == closing
    if closed and closing == END and END not in input_ids and length < layout.max_length:
        closed = END in ids[:-1] or not last_asked
    assert ids.count(closing) == closed or closing == END
    if length < layout.max_length:
        assert END not in reads or last_asked
        length += 1
    ids = [word if token == END else token for token in ids]
    if closed:
        ids[-1] = END
    sample.inputs[item.name] = [(word if token == END else token, position) for position, token in enumerate(input_ids)]
    sample.targets[item.name] = [
        (token, position, word if read == END else read)
        for token, (_, position, read) in zip(ids, targets, strict=True)
    ]
    sample.inputs = {name: tokens for name, tokens in sample.inputs.items() if tokens}
    sample.targets = {name: tokens for name, tokens in sample.targets.items() if tokens}
    return length


def check_batch(layout: EmbeddingLayout, raw: RawBatch, batch: PackedBatch, config: MaskingConfig) -> None:
    for number in range(len(raw)):
        sample = Unpacked(layout, batch, number)
        assert len(sample.runs) == len(set(sample.runs)), "targets of one modality lie apart"
        for column, item in enumerate(layout.specs):
            used = item.name in sample.inputs or item.name in sample.targets
            if not raw.present[number, column]:
                assert not used
            elif item.continuous:
                assert item.name not in sample.targets
                positions = [position for _, position in sample.inputs.get(item.name, [])]
                assert len(set(positions)) == len(positions)
                assert all(position < raw.lengths[number, column] for position in positions)
            elif isinstance(item.layout, SequenceLayout):
                length = int(raw.lengths[number, column])
                length = without_end(item, sample, length) if isinstance(layout, PublishedLayout) else length
                check_sequence(item, sample, length, config.target_budget)
            else:
                check_fixed(item, sample, raw.tokens[item.name][number])
    for name, (index, vectors) in batch.inputs.vectors.items():
        budget = config.input_budget
        flat = batch.inputs.positions.flatten()[index] - layout.positions[name].start
        assert (batch.inputs.modalities.flatten()[index] == layout.index(name)).all()
        np.testing.assert_array_equal(vectors.numpy(), raw.tokens[name][(index // budget).numpy(), flat.numpy()])
    continuous = torch.tensor([layout.specs[kind].continuous for kind in range(len(layout))])
    marked = (continuous[batch.inputs.modalities] & batch.inputs.mask).sum()
    assert marked == sum(len(index) for index, _ in batch.inputs.vectors.values())


def masked(
    specs: list[ModalitySpec], raw: RawBatch, *mixtures: Mixture, layout: EmbeddingLayout | None = None, **settings: int
) -> PackedBatch:
    """Mask samples, and check that each can be read back."""
    config, layout = MaskingConfig(mixtures=mixtures, **settings), layout or EmbeddingLayout(specs)
    batch = Masker(layout, config)(raw, seed=0, step=0)
    check_batch(layout, raw, batch, config)
    return batch


@CASES
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.01, 0.3, 1.0, 10.0]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(1, 6),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
)
def test_every_sample_can_be_read_back(
    seed: int, alpha: float, inputs: int, targets: int, span_length: float, absent: float, published: bool
) -> None:
    specs = all_layouts()
    raw = raw_batch(specs, 4, seed, absent)
    mixtures = (
        Mixture(input_alpha=alpha, target_alpha=alpha, single_input_prob=0.3),
        Mixture(inputs=("words", "code"), single_input_prob=0.7),
    )
    config = MaskingConfig(
        input_budget=inputs, target_budget=targets, min_input=0, span_length=span_length, mixtures=mixtures
    )
    layout = PublishedLayout(specs, PublishedConfig()) if published else EmbeddingLayout(specs)
    batch = Masker(layout, config)(raw, seed=seed, step=3)
    assert batch.inputs.ids.shape == (4, inputs) and batch.targets.ids.shape == (4, targets)
    check_batch(layout, raw, batch, config)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_budgets_fill_where_the_data_allow(alpha: float) -> None:
    specs = [spec(f"grid_{n}", GridLayout(shape=(6, 6))) for n in range(3)]
    specs += [spec(f"line_{n}", sequence(30, 12), 100, "text") for n in range(4)]
    raw = raw_batch(specs, 200, seed=1, absent=0.2)
    mixture = Mixture(input_alpha=alpha, target_alpha=alpha)
    batch = masked(specs, raw, mixture, input_budget=40, target_budget=40, min_input=0)
    rich = torch.from_numpy(raw.lengths.sum(axis=1) >= 80)
    assert rich.sum() > 80
    assert batch.inputs.mask[rich].all()
    assert batch.targets.mask[rich].float().mean() >= 0.99


@pytest.mark.parametrize("length", [1, 5])
def test_one_of_few_tokens_is_an_input_if_there_is_no_other_input(length: int) -> None:
    """The target budget has room for all of these tokens, so plain rounding would make all of them targets."""
    specs = [spec("few", VectorLayout(length=length)), spec("picture", GridLayout(shape=(4, 4)))]
    raw = raw_batch(specs, 200)
    for mixture in (Mixture(inputs=("few",)), Mixture(single_input_prob=1.0)):
        batch = masked(specs, raw, mixture, input_budget=16, target_budget=128)
        assert batch.inputs.mask.any(dim=1).all()
        few_inputs = batch.inputs.mask & (batch.inputs.modalities == 0)
        assert few_inputs.sum(dim=1).max() == 1, "the others are left as targets"


def test_a_sequence_target_is_whole_or_a_prefix_that_fits() -> None:
    specs = [spec("pixels", PatchesLayout(shape=(2, 2), dim=3)), spec("words", sequence(20), 100)]
    raw = raw_batch(specs, 1)
    raw.lengths[:, 1] = 6
    mixture = Mixture(inputs=("pixels",), targets=("words",))
    for budget in (3, 7, 20):
        targets = masked(specs, raw, mixture, input_budget=4, target_budget=budget, min_input=0).targets
        full = [70, 71, 72, 73, 74, 75, END]
        assert targets.ids[0][targets.mask[0]].tolist() == full[:budget]
        assert targets.read[0][targets.mask[0]].tolist() == [SENTINEL, *full[:-1]][:budget]


def test_if_no_span_fits_a_prefix_of_the_spans_is_the_target() -> None:
    specs = [spec("picture", GridLayout(shape=(14, 14))), spec("words", sequence(256, 200), 600)]
    raw = raw_batch(specs, 400)
    raw.lengths[:, 1] = 256
    mixture = Mixture(targets=("words",), input_alpha=0.5)
    batch = masked(specs, raw, mixture, input_budget=64, target_budget=64, min_input=0)
    input_counts = (batch.inputs.mask & (batch.inputs.modalities == 1)).sum(dim=1)
    sparse = (input_counts > 0) & (input_counts <= 2)
    assert sparse.sum() >= 20 and batch.targets.mask.any(dim=1).all()
    assert (batch.targets.mask[sparse].sum(dim=1) == 64).all()


def flat_tensors(batch: PackedBatch) -> list[torch.Tensor]:
    inputs, targets = batch.inputs, batch.targets
    tensors = [inputs.ids, inputs.positions, inputs.modalities, inputs.mask]
    return [*tensors, targets.ids, targets.read, targets.positions, targets.modalities, targets.mask]


def test_published_layout_keeps_the_end_token_and_closes_with_a_sentinel() -> None:
    specs = [spec("words", sequence(8, 3), 100), spec("picture", GridLayout(shape=(6, 6)))]
    layout = PublishedLayout(specs, PublishedConfig())
    raw = raw_batch(specs, 300)
    raw.lengths[:, 0] = 4
    mixtures = (Mixture(inputs=("words",)),)
    config = MaskingConfig(input_budget=3, target_budget=20, min_input=0, mixtures=mixtures)
    closed: dict[tuple[int, ...], list[int]] = {}
    for span_length in (1, 3):
        batch = Masker(layout, dataclasses.replace(config, span_length=span_length))(raw, seed=0, step=0)
        for number in range(300):
            sample = Unpacked(layout, batch, number)
            input_ids = tuple(token for token, _ in sample.inputs.get("words", []))
            target_ids = [token for token, _, _ in sample.targets.get("words", [])]
            closed[input_ids] = max(closed.get(input_ids, []), target_ids, key=len)
    s, w = SENTINEL, FIRST_WORD
    assert closed[w, s, END] == [w + 1, w + 2, w + 3, s + 1]  # END is an input
    assert closed[s, w + 3, s + 1] == [w, w + 1, w + 2, s + 1, END, s + 2]  # END is a target
    target_config = dataclasses.replace(config, mixtures=(Mixture(inputs=("picture",), targets=("words",)),))
    targets = Unpacked(layout, Masker(layout, target_config)(raw, seed=0, step=0), 0).targets["words"]
    assert [token for token, _, _ in targets] == [w, w + 1, w + 2, w + 3, END, s + 1]  # all tokens are targets
    full_config = MaskingConfig(input_budget=8, target_budget=8, min_input=8, mixtures=mixtures)
    assert Unpacked(layout, Masker(layout, full_config)(raw, seed=0, step=0), 0).inputs["words"][-1] == (END, 4)
    raw.lengths[:, 0] = 8  # max_length: no room for END
    assert Unpacked(layout, Masker(layout, full_config)(raw, seed=0, step=0), 0).inputs["words"][-1] == (w + 7, 7)


def test_published_layout_closes_with_the_end_token_if_no_sentinel_is_left() -> None:
    specs = [spec("words", sequence(8, 1), 100)]
    raw = raw_batch(specs, 50)
    raw.lengths[:, 0] = 4
    layout = PublishedLayout(specs, PublishedConfig())
    settings = {"input_budget": 3, "target_budget": 20, "min_input": 3, "span_length": 1}
    targets = masked(specs, raw, Mixture(), layout=layout, **settings).targets
    last = targets.mask.sum(dim=1) - 1
    assert (targets.ids.gather(1, last.unsqueeze(1)) == END).all()


def test_masks_depend_on_seed_step_slot_and_sample_only() -> None:
    specs = all_layouts()
    mixtures = (
        Mixture(single_input_prob=0.5),
        Mixture(weight=2, input_alpha=0.1, inputs=("picture", "words"), targets=("code",)),
    )
    masker = Masker(
        EmbeddingLayout(specs), MaskingConfig(input_budget=24, target_budget=24, min_input=0, mixtures=mixtures)
    )
    raw = raw_batch(specs, 8, seed=3, absent=0.2)
    full_batch = flat_tensors(masker(raw, seed=5, step=7))
    assert all(torch.equal(a, b) for a, b in zip(full_batch, flat_tensors(masker(raw, seed=5, step=7)), strict=True))
    tokens = {name: array[3:5] for name, array in raw.tokens.items()}
    part = RawBatch(tokens=tokens, lengths=raw.lengths[3:5], present=raw.present[3:5])
    alone = flat_tensors(masker(part, seed=5, step=7, slots=np.arange(3, 3 + len(part))))
    assert all(torch.equal(a[3:5], b) for a, b in zip(full_batch, alone, strict=True))
    for changed_batch in (masker(raw, seed=6, step=7), masker(raw, seed=5, step=8)):
        assert not torch.equal(full_batch[1], changed_batch.inputs.positions)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_are_a_dirichlet(alpha: float) -> None:
    count, budget, samples = 4, 200, 3000
    specs = [spec(f"grid_{n}", GridLayout(shape=(20, 20))) for n in range(count)]
    mixtures = (Mixture(input_alpha=alpha, target_alpha=2 * alpha),)
    config = MaskingConfig(input_budget=budget, target_budget=budget, min_input=0, mixtures=mixtures)
    batch = Masker(EmbeddingLayout(specs), config)(raw_batch(specs, samples), seed=0, step=0)
    for kinds, value in ((batch.inputs.modalities, alpha), (batch.targets.modalities, 2 * alpha)):
        shares = torch.nn.functional.one_hot(kinds, count).sum(dim=1) / budget
        variance = (1 / count) * (1 - 1 / count) / (count * value + 1)
        assert (shares.mean(dim=0) - 1 / count).abs().max() < 4 * (variance / samples) ** 0.5
        # Inputs take at most 200 of a grid's 400 positions, so they rarely limit the targets' shares.
        np.testing.assert_allclose(shares.var(dim=0).numpy(), variance, rtol=0.15)


def test_mixtures_are_drawn_by_weight_among_the_usable_ones() -> None:
    specs = all_layouts()
    mixtures = (Mixture(weight=3, inputs=("picture",), targets=("clip",)), Mixture(inputs=("clip",), targets=("code",)))
    layout = EmbeddingLayout(specs)
    masker = Masker(layout, MaskingConfig(input_budget=4, target_budget=4, min_input=0, mixtures=mixtures))
    batch = masker(raw_batch(specs, 2000), seed=0, step=0)
    first = (batch.targets.modalities == layout.index("clip")).all(dim=1)
    assert abs(first.float().mean().item() - 0.75) < 0.04
    assert (batch.inputs.modalities[first] == layout.index("picture")).all()
    raw = raw_batch(specs, 50)
    raw.present[:, layout.index("clip")] = False
    raw.lengths[:, layout.index("clip")] = 0
    assert (masker(raw, seed=0, step=0).targets.modalities == layout.index("code")).all()
    inputs = (Mixture(weight=9, inputs=("clip",), targets=("code",)), Mixture(inputs=("picture",), targets=("code",)))
    masker = Masker(layout, MaskingConfig(input_budget=4, target_budget=4, min_input=1, mixtures=inputs))
    batch_inputs = masker(raw, seed=0, step=0).inputs
    assert batch_inputs.mask.any(dim=1).all(), "not asked from nothing"


def test_input_budgets_are_drawn_from_min_input_upwards() -> None:
    specs = [spec("picture", GridLayout(shape=(8, 8)))]
    config = MaskingConfig(input_budget=12, target_budget=8, min_input=5)
    counts = Masker(EmbeddingLayout(specs), config)(raw_batch(specs, 2000), seed=0, step=0).inputs.mask.sum(dim=1)
    histogram = torch.bincount(counts, minlength=13)
    assert histogram[:5].sum() == 0 and (histogram[5:] - 250).abs().max() < 60
    assert [MaskingConfig(input_budget=n).least_input for n in (4, 128)] == [1, 16]  # an eighth, at least 1
    assert MaskingConfig(input_budget=12, min_input=0).least_input == 12


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_single_input_prob_is_the_share_of_samples_with_one_input_modality(share: float) -> None:
    specs = [spec("picture", GridLayout(shape=(8, 8))), spec("other", GridLayout(shape=(8, 8)))]
    specs += [spec("class", VectorLayout(length=1)), spec("raw", PatchesLayout(shape=(3, 3), dim=2))]
    raw = raw_batch(specs, 3000, seed=1, absent=0.3)
    mixtures = (Mixture(inputs=("picture", "class", "raw"), single_input_prob=share),)
    config = MaskingConfig(input_budget=40, target_budget=60, min_input=0, mixtures=mixtures)
    batch = Masker(EmbeddingLayout(specs), config)(raw, seed=0, step=0)
    counts = torch.nn.functional.one_hot(batch.inputs.modalities, len(specs)) * batch.inputs.mask[:, :, None]
    counts = counts.sum(dim=1)
    # Use the samples that have all three inputs, so that no modality is short of tokens.
    three = torch.from_numpy(raw.present.all(axis=1))
    alone = three & ((counts > 0).sum(dim=1) == 1)
    class_or_raw = alone & (counts[:, 0] == 0)
    assert three.sum() > 600 and counts[:, 1].sum() == 0
    assert abs(class_or_raw[three].float().mean().item() - share * 2 / 3) < 0.06
    assert (counts[class_or_raw][:, [2, 3]].sum(dim=1) == torch.where(counts[class_or_raw, 2] > 0, 1, 9)).all()
    assert batch.targets.mask[three].all()


def test_fallback_targets_get_only_the_rest_of_the_budget() -> None:
    specs = [spec(f"grid_{n}", GridLayout(shape=(4, 4))) for n in range(4)] + [spec("words", sequence(9, 4), 30)]
    names = [item.name for item in specs]
    mixture = Mixture(inputs=("grid_0",), targets=("grid_1", "words"), fallback_targets=("grid_2", "grid_3"))
    raw = raw_batch(specs, 300, seed=3, absent=0.2)
    for budget in (20, 40):
        batch = masked(specs, raw, mixture, input_budget=16, target_budget=budget)
        kinds = batch.targets.modalities.where(batch.targets.mask, torch.full((), -1))
        counts = torch.stack([(kinds == k).sum(dim=1) for k in range(len(specs))], dim=1)
        has = torch.from_numpy(raw.lengths + raw.present * np.array([0, 0, 0, 0, 1]))  # a sequence also has its end
        first, last = (
            torch.tensor([names.index(name) for name in part]) for part in (mixture.targets, mixture.fallback_targets)
        )
        of_first, of_last = has[:, first].sum(dim=1), has[:, last].sum(dim=1)
        assert torch.equal(counts[:, first].sum(dim=1), of_first.clamp(max=budget))
        assert torch.equal(counts[:, last].sum(dim=1), of_last.minimum((budget - of_first).clamp(min=0)))
        assert not counts[:, 0].any()


FILLING = ("grid_1", "grid_2")


@pytest.mark.parametrize(
    ("targets", "budget"), [*((("words",), budget) for budget in (1, 2, 3, 4, 8)), (("grid_0", "words"), 24)]
)
def test_fallback_targets_change_neither_inputs_nor_other_targets(targets: tuple[str, ...], budget: int) -> None:
    """A small budget holds only a prefix of the words' spans."""
    specs = [spec(f"grid_{n}", GridLayout(shape=(4, 4))) for n in range(3)] + [spec("words", sequence(9, 4), 30)]
    raw, layout = raw_batch(specs, 300, seed=4, absent=0.2), EmbeddingLayout(specs)
    mixture, settings = Mixture(targets=targets), {"input_budget": max(8, budget), "target_budget": budget}
    filling = dataclasses.replace(mixture, fallback_targets=FILLING)
    alone, filled = (masked(specs, raw, part, **settings) for part in (mixture, filling))
    kinds, overlapping = [layout.index(name) for name in targets], 0
    for number in np.flatnonzero(raw.present[:, kinds].any(axis=1)):
        before, after = (Unpacked(layout, batch, int(number)) for batch in (alone, filled))
        assert after.inputs == before.inputs
        rest = {name: run for name, run in after.targets.items() if name not in before.targets}
        assert after.targets == before.targets | rest and set(rest) <= set(FILLING)
        for name, run in rest.items():
            given_too = {position for _, position in after.inputs.get(name, [])}
            assert not given_too & {position for _, position, *_ in run}
            overlapping += bool(given_too)
    assert overlapping > 20 or budget < 24
    raw.present[:, kinds], raw.lengths[:, kinds] = False, 0
    filled_only = masked(specs, raw, filling, **settings)
    assert filled_only.targets.mask[torch.from_numpy(raw.present[:, 1:3].any(axis=1))].any(dim=1).all(), (
        "only what fills"
    )
    filled_only = masked(specs, raw, filling, Mixture(weight=0.01, inputs=("grid_1",), targets=("grid_2",)), **settings)
    has_both_grids = torch.from_numpy(raw.present[:, 1] & raw.present[:, 2])
    assert (filled_only.targets.modalities[has_both_grids][filled_only.targets.mask[has_both_grids]] == 2).all(), (
        "where no other part has its targets"
    )


def test_the_single_input_is_never_an_empty_sequence() -> None:
    specs = [
        spec("picture", GridLayout(shape=(4, 4))),
        spec("words", sequence(12), 100),
        spec("code", VectorLayout(length=5)),
    ]
    raw = raw_batch(specs, 50, seed=2)
    raw.lengths[:, 1] = 0
    mixture = Mixture(inputs=("picture", "words"), targets=("code",), single_input_prob=1.0)
    batch = masked(specs, raw, mixture, input_budget=24, target_budget=8, min_input=0)
    assert (batch.inputs.mask.sum(dim=1) == 16).all()


LAYOUT = EmbeddingLayout(all_layouts())
ONE_WAY = PublishedLayout(all_layouts(), PublishedConfig(inputs_only=("picture",), targets_only=("words",)))


@pytest.mark.parametrize(
    ("layout", "part", "error", "message"),
    [
        (LAYOUT, {"fallback_targets": ("code",)}, ValueError, "^fallback_targets: expected"),
        (LAYOUT, {"single_input_prob": 1.1}, ValueError, "^single_input_prob: expected"),
        (LAYOUT, {"targets": ("clip",), "fallback_targets": ("pixels",)}, ConfigError,
         "fallback_targets: pixels: a patches"),
        (LAYOUT, {"targets": ("clip",), "fallback_targets": ("pictures",)}, UnknownNameError, "did you mean picture"),
        (LAYOUT, {"targets": ("pixels",)}, ConfigError, "mixtures: targets: pixels: a patches modality is an input"),
        (EmbeddingLayout([all_layouts()[-1]]), {}, ConfigError, "nothing to predict"),
        (ONE_WAY, {"targets": ("picture",)}, ConfigError, "targets: picture: it is only an input of this model"),
        (ONE_WAY, {"inputs": ("words",)}, ConfigError, "inputs: words: it is only a target"),
    ],
)  # fmt: skip
def test_wrong_mixtures_are_refused(
    layout: EmbeddingLayout, part: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Masker(layout, MaskingConfig(mixtures=(Mixture(**part),)))


def test_input_only_and_output_only_modalities_are_respected() -> None:
    specs = list(ONE_WAY.specs)
    batch = masked(specs, raw_batch(specs, 30), Mixture(), layout=ONE_WAY, min_input=0)
    inputs, targets = (set(side.modalities[side.mask].tolist()) for side in (batch.inputs, batch.targets))
    assert {specs[kind].name for kind in inputs} == {item.name for item in specs} - {"words"}
    assert {specs[kind].name for kind in targets} == {"clip", "code", "words", "tags"}
