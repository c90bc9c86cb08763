"""Quantizers: every kind keeps the contract, and invalid configurations are named."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
import torch
from quantizer_samples import DIM, some_latents, trained

from tokenizers_zoo.errors import CheckpointError, InvalidValueError
from tokenizers_zoo.quantizers.config import KIND_DEFAULTS, QuantizerConfig, QuantizerKind
from tokenizers_zoo.quantizers.quantizer import ADAPTERS, Quantizer
from tokenizers_zoo.quantizers.usage import CodebookUsage

CONFIGS = {
    "fsq": QuantizerConfig(kind="fsq", levels=(5, 4, 3)),
    "vq_cosine": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8),
    "vq_euclidean": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=DIM, distance="euclidean"),
    "vq_random_start": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8, kmeans_iterations=0),
    "lfq": QuantizerConfig(kind="lfq", codebook_size=64),
    "bsq": QuantizerConfig(kind="bsq", codebook_size=64),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=64, codebook_dim=8),
    "product_vq": QuantizerConfig(kind="product_vq", codebook_size=32, num_codebooks=3),
    "memcodes": QuantizerConfig(kind="memcodes", codebook_size=32, codebook_dim=8, num_codebooks=3),
    "residual_vq": QuantizerConfig(kind="residual_vq", codebook_size=32, codebook_dim=8, num_codebooks=3),
    "grouped_residual_vq": QuantizerConfig(kind="grouped_residual_vq", codebook_size=32, codebook_dim=8),
    "residual_fsq": QuantizerConfig(kind="residual_fsq", levels=(5, 4, 3), num_codebooks=3),
    "residual_simvq": QuantizerConfig(kind="residual_simvq", codebook_size=32, codebook_dim=8, num_codebooks=2),
}


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
    kinds = {config.kind for config in CONFIGS.values()}
    assert kinds == set(KIND_DEFAULTS) == set(ADAPTERS) == set(get_args(QuantizerKind))


@pytest.mark.parametrize("grid", [(), (50,), (5, 10), (2, 5, 5)])
def test_shapes_types_and_range(config: QuantizerConfig, grid: tuple[int, ...]) -> None:
    quantizer = trained(config)
    several = config.num_codebooks is not None
    latents = some_latents()[:, : math.prod(grid)].reshape(4, *grid, DIM)
    for training in (True, False):
        codes, tokens, loss = quantizer.train(training)(latents)
        assert codes.shape == (4, *grid, DIM) and codes.dtype == torch.float32
        assert tokens.shape == (4, *grid, config.num_codebooks) if several else tokens.shape == (4, *grid)
        assert tokens.shape == (4, *config.token_shape(grid)) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < quantizer.codebook_size
        assert loss.shape == () and loss.isfinite()
    assert loss == 0
    assert quantizer.decode(tokens).shape == (4, *grid, DIM)
    assert quantizer.codes_per_position == (config.num_codebooks or 1)


def test_eval_round_trip_is_exact_and_deterministic(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    before = state_of(quantizer)
    first, second = quantizer(some_latents()), quantizer(some_latents())
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codes, quantizer.decode(first.tokens))
    assert torch.equal(first.tokens, quantizer.encode(some_latents()))
    assert all(len(column.unique()) > 8 for column in first.tokens.view(200, -1).T)
    quantizer.train()
    assert torch.equal(first.tokens, quantizer.encode(some_latents()))
    assert quantizer.training and quantizer.adapter.training
    assert_same_state(before, state_of(quantizer))


def test_training_and_eval_mode_agree(config: QuantizerConfig) -> None:
    """The library's training path and our lookup give the same ids and codes for the same state."""
    quantizer = trained(config)
    expected = quantizer.eval()(some_latents())
    got = quantizer.train()(some_latents())
    assert torch.equal(got.tokens, expected.tokens)
    torch.testing.assert_close(got.codes, expected.codes, atol=2e-6, rtol=1e-5)


def test_zero_codes_are_rarely_used_in_eval_as_in_training() -> None:
    """k-means on few latents leaves zero rows; their cosine of 0 must not win against negative cosines."""
    config = QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8, revive_below=0.0)
    torch.manual_seed(0)
    quantizer = Quantizer(config, DIM)
    quantizer(some_latents(1, batch=1, n=8))
    unmet = quantizer.adapter.vq.codebook.norm(dim=1) == 0
    latents = some_latents(2, n=400)
    tokens = quantizer.eval()(latents).tokens
    assert unmet.sum() >= 56 and unmet[tokens].float().mean() < 0.1
    assert torch.equal(quantizer.train()(latents).tokens, tokens)


def test_unused_codes_keep_their_direction() -> None:
    """In a cosine codebook without revival, unused codes stay when their moving averages reach 0."""
    config = QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=8, decay=0.5, revive_below=0.0)
    torch.manual_seed(0)
    quantizer = Quantizer(config, 8)
    everywhere, corner = some_latents(1)[..., :8], some_latents(2)[..., :8].abs()
    quantizer(everywhere)
    book = quantizer.adapter.vq._codebook
    started = book.embed[0].clone()
    used = torch.cat([quantizer(corner).tokens for _ in range(200)]).unique()
    dead = torch.ones(16, dtype=torch.bool).index_fill(0, used, False)
    assert 0 < dead.sum() < 16 and (book.embed_avg[0][dead] == 0).all()
    torch.testing.assert_close(book.embed[0][dead], started[dead])
    torch.testing.assert_close(book.embed[0].norm(dim=1), torch.ones(16))
    expected = quantizer.eval()(everywhere)
    got = quantizer.train()(everywhere)
    assert torch.equal(got.tokens, expected.tokens) and dead[got.tokens].any()
    torch.testing.assert_close(got.codes, expected.codes)


def test_batch_equals_one_by_one(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    latents = some_latents()[:, :8]
    singles = torch.cat([quantizer.encode(latents[i : i + 1, j : j + 1]) for i in range(4) for j in range(8)])
    assert torch.equal(quantizer.encode(latents), singles.view(4, *config.token_shape((8,))))


def test_gradient_reaches_the_latents(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    latents = some_latents().requires_grad_()
    (quantizer(latents).codes * some_latents(5)).sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()
    assert (latents.grad.abs().amax(dim=2) > 0).float().mean() > 0.99
    for name, parameter in quantizer.named_parameters():
        assert name.startswith(("adapter.", "project_in.bias")) or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "fsq"])
def test_the_loss_reaches_the_latents(name: str) -> None:
    latents = some_latents().requires_grad_()
    trained(CONFIGS[name])(latents).loss.backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["vq_euclidean"],
        QuantizerConfig(kind="residual_vq", codebook_size=32, codebook_dim=DIM),
        QuantizerConfig(kind="residual_simvq", codebook_size=32, codebook_dim=DIM),
        QuantizerConfig(kind="grouped_residual_vq", codebook_size=32, codebook_dim=DIM // 2),
    ],
    ids=lambda config: config.kind,
)
def test_straight_through_is_the_identity(config: QuantizerConfig) -> None:
    quantizer = trained(config)  # no projection: codes have the latents' dim
    latents, weights = some_latents().requires_grad_(), some_latents(5)
    (quantizer(latents).codes * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


@pytest.mark.parametrize("name", ["fsq", "residual_fsq"])
def test_the_spread_brings_codes_into_use(name: str) -> None:
    """Small, correlated latents use few codes until the spread loss separates them; at weight 0 the loss is 0."""
    config = dataclasses.replace(CONFIGS[name], spread_weight=0.1)
    torch.manual_seed(0)
    latents = (torch.randn(4096, 3) * torch.tensor([1.0, 0.2, 0.05])) @ torch.randn(3, DIM)
    quantizer = Quantizer(config, DIM).train()
    optimizer = torch.optim.Adam(quantizer.project_in.parameters(), lr=0.1)

    def used() -> float:
        usage = CodebookUsage(config.codebook_size)
        tokens = quantizer.encode(latents)
        usage.update(tokens if tokens.ndim == 1 else tokens[:, 0])
        return usage.perplexity / config.codebook_size

    before = used()
    for _ in range(500):
        optimizer.zero_grad()
        quantizer(latents).loss.backward()
        optimizer.step()
    assert before < 0.3 and used() > 0.8
    assert Quantizer(dataclasses.replace(config, spread_weight=0.0), DIM).train()(latents).loss == 0


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
            quantizer.decode(torch.tensor([[0, bad]]).expand(config.codes_per_position, 2).T[None].squeeze(2))


def test_eval_mode_never_starts_or_revives_codes(config: QuantizerConfig) -> None:
    """In eval mode, distant latents trigger no k-means, no replacement of dead codes and no update of statistics."""
    fresh = Quantizer(config, DIM).eval()
    before = state_of(fresh)
    if config.kmeans_iterations:
        with pytest.raises(CheckpointError, match="never trained"):
            fresh(some_latents())
        with pytest.raises(CheckpointError, match="never trained"):
            fresh.train().encode(some_latents())
    else:
        fresh(some_latents())
    assert_same_state(before, state_of(fresh))
    quantizer = trained(config).eval()
    before = state_of(quantizer)
    for _ in range(3):
        quantizer(some_latents() * 9 + 50)
    assert_same_state(before, state_of(quantizer))


# Configuration


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("levels", {"kind": "vq", "levels": (8, 5)}),
        ("levels", {"levels": ()}),
        ("levels", {"levels": (2, 5)}),
        ("levels", {"levels": (5, 1001)}),
        ("codebook_size", {"kind": "simvq", "codebook_size": 2**24 + 1}),
        ("codebook_size", {"codebook_size": 1024}),
        ("codebook_size", {"levels": (8, 5), "codebook_size": 41}),
        ("codebook_size", {"kind": "lfq", "codebook_size": 1000}),
        ("codebook_size", {"kind": "vq", "codebook_size": 1}),
        ("codebook_dim", {"kind": "fsq", "codebook_dim": 8}),
        ("codebook_dim", {"kind": "vq", "codebook_dim": 0}),
        ("distance", {"kind": "simvq", "distance": "cosine"}),
        ("decay", {"kind": "vq", "decay": 1.0}),
        ("kmeans_iterations", {"kind": "vq", "kmeans_iterations": -1}),
        ("revive_below", {"kind": "vq", "revive_below": float("nan")}),
        ("commitment_weight", {"kind": "fsq", "commitment_weight": 0.0}),
        ("entropy_weight", {"kind": "vq", "entropy_weight": 0.1}),
        ("spread_weight", {"kind": "fsq", "spread_weight": -0.1}),
        ("num_codebooks", {"kind": "vq", "num_codebooks": 2}),
        ("groups", {"kind": "product_vq", "groups": 2}),
        ("groups", {"kind": "grouped_residual_vq", "num_codebooks": 4, "groups": 3}),
    ],
)
def test_bad_configurations_name_the_field(field: str, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        QuantizerConfig(**given)  # type: ignore[arg-type]
