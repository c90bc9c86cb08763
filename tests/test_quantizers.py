"""Quantizers: every kind keeps the contract; look-ups, losses and usage against independent references."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.quantizers import FSQ_LEVELS, CodebookUsage, Quantizer, QuantizerConfig, build_quantizer
from tokenizers_zoo.quantizers import adapters as adapters_module
from tokenizers_zoo.quantizers.config import KIND_DEFAULTS

DIM = 24
CONFIGS = {
    "fsq": QuantizerConfig(kind="fsq", levels=(5, 4, 3)),
    "vq_cosine": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8),
    "vq_euclidean": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=DIM, distance="euclidean"),
    "vq_random_start": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8, kmeans_iterations=0),
    "lfq": QuantizerConfig(kind="lfq", codebook_size=64),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=64, codebook_dim=8),
}


def some_latents(seed: int = 0, batch: int = 4, n: int = 50) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(config: QuantizerConfig) -> Quantizer:
    """A quantizer that has met two batches in training."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config, DIM)
    for seed in (1, 2):
        quantizer(some_latents(seed))
    return quantizer


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> QuantizerConfig:
    return CONFIGS[request.param]


def state_of(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def assert_same_state(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_every_kind_is_tested() -> None:
    assert {config.kind for config in CONFIGS.values()} == set(KIND_DEFAULTS) == set(adapters_module.ADAPTERS)


def test_shapes_types_and_range(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    for training in (True, False):
        codes, tokens, loss = quantizer.train(training)(some_latents())
        assert codes.shape == (4, 50, DIM) and codes.dtype == torch.float32
        assert tokens.shape == (4, 50) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < quantizer.codebook_size
        assert loss.shape == () and loss.isfinite()
    assert quantizer.num_codebooks == 1
    assert loss == 0


def test_eval_round_trip_is_exact_and_deterministic(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    before = state_of(quantizer)
    first, second = quantizer(some_latents()), quantizer(some_latents())
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codes, quantizer.decode(first.tokens))
    assert torch.equal(first.tokens, quantizer.encode(some_latents()))
    assert len(first.tokens.unique()) > 8
    assert_same_state(before, state_of(quantizer))


def test_training_and_eval_mode_agree(config: QuantizerConfig) -> None:
    """The library's training path and our look-up give the same ids and codes from the same state."""
    quantizer = trained(config)
    expected = quantizer.eval()(some_latents())
    got = quantizer.train()(some_latents())
    assert torch.equal(got.tokens, expected.tokens)
    torch.testing.assert_close(got.codes, expected.codes, atol=2e-6, rtol=1e-5)


def test_encode_in_training_mode_changes_nothing(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    expected = quantizer.eval().encode(some_latents())
    quantizer.train()
    before = state_of(quantizer)
    assert torch.equal(quantizer.encode(some_latents()), expected)
    assert quantizer.training and quantizer.adapter.training
    assert_same_state(before, state_of(quantizer))


def test_batch_equals_one_by_one(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    latents = some_latents()
    singles = torch.cat([quantizer.encode(latents[i : i + 1, j : j + 1]) for i in range(4) for j in range(50)])
    assert torch.equal(quantizer.encode(latents), singles.view(4, 50))


def test_gradient_reaches_the_latents(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    latents = some_latents().requires_grad_()
    (quantizer(latents).codes * some_latents(5)).sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()
    assert (latents.grad.abs().amax(dim=2) > 0).float().mean() > 0.99


def test_straight_through_is_the_identity_for_euclidean_vq() -> None:
    quantizer = trained(CONFIGS["vq_euclidean"])  # no projection: codes live where the latents do
    latents, weights = some_latents().requires_grad_(), some_latents(5)
    (quantizer(latents).codes * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


@pytest.mark.parametrize("name", ["vq_cosine", "vq_euclidean", "lfq", "simvq"])
def test_loss_pulls_latents_to_their_codes(name: str) -> None:
    quantizer = trained(CONFIGS[name])
    latents = some_latents().requires_grad_()
    quantizer(latents).loss.backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_saved_state_gives_the_same_tokens(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    torch.manual_seed(99)
    other = build_quantizer(from_mapping(QuantizerConfig, dataclasses.asdict(quantizer.config)), DIM).eval()
    other.load_state_dict(quantizer.state_dict(), strict=True)
    expected, got = quantizer(some_latents()), other(some_latents())
    assert torch.equal(expected.tokens, got.tokens) and torch.equal(expected.codes, got.codes)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_no_token(config: QuantizerConfig, training: bool) -> None:
    rounded = some_latents().bfloat16()
    expected = trained(config).train(training)(rounded.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantizer = trained(config).train(training)
        got = quantizer(rounded)
        assert torch.equal(quantizer.decode(got.tokens), quantizer.decode(expected.tokens))
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.codes, expected.codes) and got.codes.dtype == torch.float32
    assert torch.equal(got.loss, expected.loss)


def test_unknown_ids_are_rejected(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    size = quantizer.codebook_size
    for bad in (-1, size):
        with pytest.raises(InvalidValueError, match=rf"expected ids in \[0, {size}\), got .*{bad}"):
            quantizer.decode(torch.tensor([[0, bad]]))


def test_every_id_can_be_decoded_and_codes_differ(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    ids = torch.arange(min(quantizer.codebook_size, 500))[None]
    codes = quantizer.decode(ids)[0]
    assert len(codes.unique(dim=0)) == ids.shape[1]


# Each kind against a reference of its own


def test_fsq_against_the_formula() -> None:
    """arXiv 2309.15505, section 3.1: odd levels round tanh(x) times half the range; ids are mixed radix."""
    quantizer = build_quantizer(QuantizerConfig(levels=(5, 3)), 2).eval()  # dim 2: no projections
    latents = torch.tensor([[[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0], [0.4, 0.2]]])
    # levels 5: {-1, -.5, 0, .5, 1}, tanh(.4) * 2 = .76 -> 1 -> .5; levels 3: {-1, 0, 1}, tanh(.2) = .197 -> 0
    expected = torch.tensor([[[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [0.5, 0.0]]])
    codes, tokens, _ = quantizer(latents)
    torch.testing.assert_close(codes, expected)
    assert tokens.tolist() == [[2 + 5 * 1, 4 + 5 * 0, 0 + 5 * 2, 3 + 5 * 1]]


def test_lfq_against_the_formula() -> None:
    """Eq. 3-4 of arXiv 2310.05737: signs are the code, and bits (first dimension highest) the id."""
    quantizer = build_quantizer(QuantizerConfig(kind="lfq", codebook_size=8), 3).eval()
    codes, tokens, _ = quantizer(torch.tensor([[[0.1, -2.0, 3.0], [-1.0, -1.0, -1.0]]]))
    assert codes.tolist() == [[[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]]
    assert tokens.tolist() == [[0b101, 0b000]]


@pytest.mark.parametrize("name", ["vq_euclidean", "vq_cosine", "simvq"])
def test_tokens_are_the_nearest_codes(name: str) -> None:
    quantizer = trained(CONFIGS[name]).eval()
    latents = quantizer.project_in(some_latents()).detach().double()
    adapter = quantizer.adapter
    book = adapter.lookup(torch.arange(64)[None])[0].detach().double()
    if name == "vq_cosine":
        torch.testing.assert_close(book.norm(dim=1), torch.ones(64).double(), atol=1e-5, rtol=0)
        expected = torch.nn.functional.cosine_similarity(latents[:, :, None], book, dim=3).argmax(dim=2)
    else:
        expected = (latents[:, :, None] - book).square().sum(dim=3).argmin(dim=2)
    assert torch.equal(quantizer.encode(some_latents()), expected)


def test_chunks_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = trained(CONFIGS["simvq"]).eval()
    expected = quantizer.encode(some_latents())
    monkeypatch.setattr(adapters_module, "MAX_DISTANCES", 64 * 7)  # 7 latents at a time, of 200
    assert torch.equal(quantizer.encode(some_latents()), expected)


def test_moving_average_follows_its_latents() -> None:
    """After k-means on two far clusters, a step moves each code by (1 - decay) towards its latents' mean."""
    config = QuantizerConfig(
        kind="vq", codebook_size=2, codebook_dim=1, distance="euclidean", decay=0.75, revive_below=0.0
    )
    torch.manual_seed(0)
    quantizer = build_quantizer(config, 1)
    first = torch.tensor([[[-10.0], [-12.0], [10.0], [12.0]]])
    quantizer(first)
    assert sorted(quantizer.decode(torch.tensor([[0, 1]])).flatten().tolist()) == pytest.approx([-11, 11], abs=1e-3)
    quantizer(first + 4)  # means -7 and 15
    assert sorted(quantizer.decode(torch.tensor([[0, 1]])).flatten().tolist()) == pytest.approx([-10, 12], abs=1e-3)


def test_dead_codes_are_revived_also_in_small_batches() -> None:
    """More codes than latents in a batch: unused codes come alive, used ones are not thrown away each time."""

    def usage_after(revive_below: float) -> float:
        torch.manual_seed(0)
        config = QuantizerConfig(
            kind="vq", codebook_size=128, codebook_dim=DIM, kmeans_iterations=0, revive_below=revive_below
        )
        quantizer, usage = build_quantizer(config, DIM), CodebookUsage(128)
        clusters = torch.randn(32, DIM) * 3
        draws = torch.Generator().manual_seed(1)
        for _ in range(60):
            which = torch.randint(0, 32, (64,), generator=draws)
            noise = torch.randn(64, DIM, generator=draws)
            quantizer((clusters[which] + noise)[None])
        usage.update(quantizer.encode((clusters.repeat(64, 1) + torch.randn(2048, DIM, generator=draws))[None]))
        return usage.usage

    dead, revived = usage_after(0.0), usage_after(0.1)
    assert revived > 0.5 > 0.3 > dead


def test_kmeans_never_runs_in_eval_mode() -> None:
    quantizer = build_quantizer(CONFIGS["vq_cosine"], DIM).eval()
    before = state_of(quantizer)
    with pytest.raises(CheckpointError, match="never trained"):
        quantizer(some_latents())
    with pytest.raises(CheckpointError, match="never trained"):
        quantizer.train().encode(some_latents())
    assert_same_state(before, state_of(quantizer))


def test_lfq_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = build_quantizer(CONFIGS["lfq"], DIM)
    monkeypatch.setattr(adapters_module, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="one process"):
        quantizer(some_latents())


# Configuration


def test_defaults_are_resolved_and_survive_json() -> None:
    for kind in KIND_DEFAULTS:
        config = QuantizerConfig(kind=kind)  # type: ignore[arg-type]
        data = dataclasses.asdict(config)
        assert all(data[name] is not None for name in KIND_DEFAULTS[kind])
        assert from_mapping(QuantizerConfig, {**data, "levels": data["levels"] and list(data["levels"])}) == config


def test_fsq_table_and_sizes() -> None:
    assert list(FSQ_LEVELS) == [240, 1000, 4375, 15360, 64000]
    for size, levels in FSQ_LEVELS.items():
        assert math.prod(levels) == size
        assert QuantizerConfig(codebook_size=size).levels == levels
    assert QuantizerConfig(levels=(7, 5)).codebook_size == 35
    assert build_quantizer(QuantizerConfig(levels=(7, 5)), DIM).codebook_size == 35


def test_levels_in_another_order_are_another_configuration() -> None:
    """The weights load either way, and mean other codes: it is the configuration that tells them apart."""
    one, two = QuantizerConfig(levels=(8, 5, 5, 5)), QuantizerConfig(levels=(5, 8, 5, 5))
    assert one.codebook_size == two.codebook_size and one != two
    first, second = build_quantizer(one, DIM), build_quantizer(two, DIM)
    second.load_state_dict(first.state_dict())
    ids = torch.arange(1000)[None]
    assert not torch.equal(first.decode(ids), second.decode(ids))


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("kind", {"kind": "gumbel"}),
        ("levels", {"kind": "vq", "levels": (8, 5)}),
        ("levels", {"levels": ()}),
        ("levels", {"levels": (2, 5)}),
        ("levels", {"levels": (3,) * 24}),
        ("codebook_size", {"kind": "simvq", "codebook_size": 2**24 + 1}),
        ("codebook_size", {"codebook_size": 1024}),
        ("codebook_size", {"levels": (8, 5), "codebook_size": 41}),
        ("codebook_size", {"kind": "lfq", "codebook_size": 1000}),
        ("codebook_size", {"kind": "vq", "codebook_size": 1}),
        ("codebook_size", {"kind": "vq", "codebook_size": -5}),
        ("codebook_dim", {"kind": "fsq", "codebook_dim": 8}),
        ("codebook_dim", {"kind": "vq", "codebook_dim": 0}),
        ("distance", {"kind": "simvq", "distance": "cosine"}),
        ("distance", {"kind": "vq", "distance": "manhattan"}),
        ("decay", {"kind": "vq", "decay": 1.0}),
        ("decay", {"kind": "lfq", "decay": 0.9}),
        ("kmeans_iterations", {"kind": "vq", "kmeans_iterations": -1}),
        ("revive_below", {"kind": "vq", "revive_below": float("nan")}),
        ("revive_below", {"kind": "vq", "revive_below": 1.0}),
        ("commitment_weight", {"kind": "fsq", "commitment_weight": 0.0}),
        ("commitment_weight", {"kind": "lfq", "commitment_weight": -0.1}),
        ("entropy_weight", {"kind": "vq", "entropy_weight": 0.1}),
    ],
)
def test_bad_configurations_name_the_field(field: str, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        QuantizerConfig(**given)  # type: ignore[arg-type]


def test_configuration_needs_no_torch() -> None:
    program = (
        "import sys; from tokenizers_zoo.quantizers import QuantizerConfig, CodebookUsage;"
        "assert QuantizerConfig(kind='vq').codebook_size == 1024 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Usage


def test_usage_by_hand() -> None:
    usage = CodebookUsage(8)
    assert (usage.usage, usage.entropy_bits, usage.perplexity) == (0.0, 0.0, 1.0)
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    assert (usage.usage, usage.entropy_bits) == (0.25, 1.0)
    assert usage.perplexity == pytest.approx(2.0)
    usage.update(np.array([1, 1, 7, 7]))  # counts 2, 4, 2: shares 1/4, 1/2, 1/4
    assert usage.usage == 0.375
    assert usage.entropy_bits == pytest.approx(1.5)
    assert usage.perplexity == pytest.approx(2**1.5)


def test_usage_of_several_codebooks_is_their_mean() -> None:
    usage = CodebookUsage(4, num_codebooks=2)
    usage.update(torch.tensor([[[0, 0], [0, 1]], [[0, 2], [0, 3]]]))  # first: one code; second: all four
    assert usage.usage == pytest.approx((0.25 + 1.0) / 2)
    assert usage.entropy_bits == pytest.approx((0.0 + 2.0) / 2)
    assert usage.perplexity == pytest.approx((1.0 + 4.0) / 2)


def test_usage_rejects_unknown_ids() -> None:
    with pytest.raises(ValueError, match=r"expected ids in \[0, 4\), got 0 to 4"):
        CodebookUsage(4).update(np.array([0, 4]))
