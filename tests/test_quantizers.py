"""Quantizers: every kind keeps the contract, follows its paper, uses its codebook; bad configurations are named."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
import vector_quantize_pytorch as vqp
from torch import nn
from torch.nn import functional

from tokenizers_zoo.errors import CheckpointError, InvalidValueError
from tokenizers_zoo.tokenizers.quantizers import kinds
from tokenizers_zoo.tokenizers.quantizers.config import KIND_DEFAULTS, QuantizerConfig, QuantizerKind
from tokenizers_zoo.tokenizers.quantizers.kinds import DIVERSITY, MemoryCodes, entropy_loss, spread_loss
from tokenizers_zoo.tokenizers.quantizers.quantizer import ADAPTERS, Quantizer, Residual, SideBySide
from tokenizers_zoo.train.usage import CodebookUsage

DIM = 24
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


def some_latents(seed: int = 0, batch: int = 4, n: int = 50) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(config: QuantizerConfig) -> Quantizer:
    """Return a quantizer after two training batches."""
    torch.manual_seed(0)
    quantizer = Quantizer(config, DIM)
    for seed in (1, 2):
        quantizer(some_latents(seed))
    return quantizer


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> QuantizerConfig:
    return CONFIGS[request.param]


def test_every_kind_is_tested() -> None:
    kinds = {config.kind for config in CONFIGS.values()}
    assert kinds == set(KIND_DEFAULTS) == set(ADAPTERS) == set(get_args(QuantizerKind))


@pytest.mark.parametrize("grid", [(), (50,), (5, 10), (2, 5, 5)])
def test_shapes_types_and_range(config: QuantizerConfig, grid: tuple[int, ...]) -> None:
    quantizer = trained(config)
    has_several = config.num_codebooks is not None
    latents = some_latents()[:, : math.prod(grid)].reshape(4, *grid, DIM)
    for training in (True, False):
        codes, tokens, loss = quantizer.train(training)(latents)
        assert codes.shape == (4, *grid, DIM) and codes.dtype == torch.float32
        assert tokens.shape == (4, *grid, config.num_codebooks) if has_several else tokens.shape == (4, *grid)
        assert tokens.shape == (4, *config.token_shape(grid)) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < quantizer.codebook_size
        assert loss.shape == () and loss.isfinite()
    assert loss == 0
    assert quantizer.decode(tokens).shape == (4, *grid, DIM)
    assert quantizer.codes_per_position == (config.num_codebooks or 1)


def test_eval_round_trip_is_exact_and_deterministic(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    before = copy.deepcopy(quantizer.state_dict())
    first, second = quantizer(some_latents()), quantizer(some_latents())
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codes, quantizer.decode(first.tokens))
    assert torch.equal(first.tokens, quantizer.encode(some_latents()))
    assert all(len(column.unique()) > 8 for column in first.tokens.view(200, -1).T)
    quantizer.train()
    assert torch.equal(first.tokens, quantizer.encode(some_latents()))
    assert quantizer.training and quantizer.adapter.training
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


def test_training_and_eval_mode_agree(config: QuantizerConfig) -> None:
    """The library's training path and our lookup give the same ids and codes for the same state."""
    quantizer = trained(config)
    expected = quantizer.eval()(some_latents())
    trained_output = quantizer.train()(some_latents())
    assert torch.equal(trained_output.tokens, expected.tokens)
    torch.testing.assert_close(trained_output.codes, expected.codes, atol=2e-6, rtol=1e-5)


def test_zero_codes_are_rarely_used_in_eval_as_in_training() -> None:
    """k-means on few latents leaves zero rows; their cosine of 0 must not win against negative cosines."""
    config = QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8, revive_below=0.0)
    torch.manual_seed(0)
    quantizer = Quantizer(config, DIM)
    quantizer(some_latents(1, batch=1, n=8))
    zero_codes = quantizer.adapter.vq.codebook.norm(dim=1) == 0
    latents = some_latents(2, n=400)
    tokens = quantizer.eval()(latents).tokens
    assert zero_codes.sum() >= 56 and zero_codes[tokens].float().mean() < 0.1
    assert torch.equal(quantizer.train()(latents).tokens, tokens)


def test_unused_codes_keep_their_direction() -> None:
    """In a cosine codebook without revival, unused codes stay when their moving averages reach 0."""
    config = QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=8, decay=0.5, revive_below=0.0)
    torch.manual_seed(0)
    quantizer = Quantizer(config, 8)
    everywhere, corner = some_latents(1)[..., :8], some_latents(2)[..., :8].abs()
    quantizer(everywhere)
    book = quantizer.adapter.vq._codebook
    starting_codes = book.embed[0].clone()
    used_ids = torch.cat([quantizer(corner).tokens for _ in range(200)]).unique()
    dead = torch.ones(16, dtype=torch.bool).index_fill(0, used_ids, False)
    assert 0 < dead.sum() < 16 and (book.embed_avg[0][dead] == 0).all()
    torch.testing.assert_close(book.embed[0][dead], starting_codes[dead])
    torch.testing.assert_close(book.embed[0].norm(dim=1), torch.ones(16))
    expected = quantizer.eval()(everywhere)
    trained_output = quantizer.train()(everywhere)
    assert torch.equal(trained_output.tokens, expected.tokens) and dead[trained_output.tokens].any()
    torch.testing.assert_close(trained_output.codes, expected.codes)


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
def test_the_spread_loss_brings_codes_into_use(name: str) -> None:
    """Small, correlated latents use few codes until the spread loss separates them; at weight 0 the loss is 0."""
    config = dataclasses.replace(CONFIGS[name], spread_weight=0.1)
    torch.manual_seed(0)
    latents = (torch.randn(4096, 3) * torch.tensor([1.0, 0.2, 0.05])) @ torch.randn(3, DIM)
    quantizer = Quantizer(config, DIM).train()
    optimizer = torch.optim.Adam(quantizer.project_in.parameters(), lr=0.1)

    def used_share() -> float:
        usage = CodebookUsage(config.codebook_size)
        tokens = quantizer.encode(latents)
        usage.update(tokens if tokens.ndim == 1 else tokens[:, 0])
        return usage.perplexity / config.codebook_size

    before = used_share()
    for _ in range(500):
        optimizer.zero_grad()
        quantizer(latents).loss.backward()
        optimizer.step()
    assert before < 0.3 and used_share() > 0.8
    assert Quantizer(dataclasses.replace(config, spread_weight=0.0), DIM).train()(latents).loss == 0


@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_no_token(config: QuantizerConfig, training: bool) -> None:
    rounded = some_latents().bfloat16()
    expected = trained(config).train(training)(rounded.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantizer = trained(config).train(training)
        output = quantizer(rounded)
        assert torch.equal(quantizer.decode(output.tokens), quantizer.decode(expected.tokens))
    assert torch.equal(output.tokens, expected.tokens)
    assert torch.equal(output.codes, expected.codes) and output.codes.dtype == torch.float32
    assert torch.equal(output.loss, expected.loss)


def test_unknown_ids_are_rejected(config: QuantizerConfig) -> None:
    quantizer = trained(config)
    size = quantizer.codebook_size
    for token_id in (-1, size):
        with pytest.raises(InvalidValueError, match=rf"expected ids in \[0, {size}\), got .*{token_id}"):
            quantizer.decode(torch.tensor([[0, token_id]]).expand(config.codes_per_position, 2).T[None].squeeze(2))


def test_eval_mode_never_starts_or_revives_codes(config: QuantizerConfig) -> None:
    """In eval mode, distant latents trigger no k-means, no replacement of dead codes and no update of statistics."""
    fresh = Quantizer(config, DIM).eval()
    before = copy.deepcopy(fresh.state_dict())
    if config.kmeans_iterations:
        with pytest.raises(CheckpointError, match="never trained"):
            fresh(some_latents())
        with pytest.raises(CheckpointError, match="never trained"):
            fresh.train().encode(some_latents())
    else:
        fresh(some_latents())
    torch.testing.assert_close(fresh.state_dict(), before, rtol=0, atol=0)
    quantizer = trained(config).eval()
    before = copy.deepcopy(quantizer.state_dict())
    for _ in range(3):
        quantizer(some_latents() * 9 + 50)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "table"),
    [
        ("levels", {"kind": "vq", "levels": (8, 5)}),
        ("levels", {"levels": ()}),
        ("levels", {"levels": (2, 5)}),
        ("levels", {"levels": (5, 1001)}),
        ("codebook_size", {"kind": "simvq", "codebook_size": 2**20 + 1}),
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
def test_bad_configurations_name_the_field(field: str, table: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        QuantizerConfig(**table)  # type: ignore[arg-type]


# ---------------------------------------------------------------- each kind against its paper, or a reference


def test_fsq_against_the_formula() -> None:
    """arXiv 2309.15505, section 3.1: odd levels round tanh(x) times half the range; ids are mixed radix."""
    quantizer = Quantizer(QuantizerConfig(levels=(5, 3)), 2).eval()  # dim 2: no projections
    latents = torch.tensor([[[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0], [0.4, 0.2]]])
    # levels 5: {-1, -.5, 0, .5, 1}, tanh(.4) * 2 = .76 -> 1 -> .5; levels 3: {-1, 0, 1}, tanh(.2) = .197 -> 0
    expected = torch.tensor([[[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [0.5, 0.0]]])
    codes, tokens, _ = quantizer(latents)
    torch.testing.assert_close(codes, expected)
    assert tokens.tolist() == [[2 + 5 * 1, 4 + 5 * 0, 0 + 5 * 2, 3 + 5 * 1]]


@pytest.mark.parametrize("name", ["vq_euclidean", "vq_cosine", "simvq"])
def test_tokens_are_the_nearest_codes(name: str) -> None:
    quantizer = trained(CONFIGS[name]).eval()
    latents = quantizer.project_in(some_latents()).detach().double()
    adapter = quantizer.adapter
    book = adapter.lookup(torch.arange(64)[None])[0].detach().double()
    if name == "vq_cosine":
        torch.testing.assert_close(book.norm(dim=1), torch.ones(64).double(), atol=1e-5, rtol=0)
        expected = functional.cosine_similarity(latents[:, :, None], book, dim=3).argmax(dim=2)
    else:
        expected = (latents[:, :, None] - book).square().sum(dim=3).argmin(dim=2)
    assert torch.equal(quantizer.encode(some_latents()), expected)


def test_chunks_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = trained(CONFIGS["simvq"]).eval()
    expected = quantizer.encode(some_latents())
    monkeypatch.setattr(kinds, "MAX_DISTANCES", 64 * 7)  # 7 latents at a time, of 200
    assert torch.equal(quantizer.encode(some_latents()), expected)


def test_moving_average_follows_its_latents() -> None:
    """After k-means on two distant clusters, a step moves each code by (1 - decay) towards its latents' mean."""
    config = QuantizerConfig(
        kind="vq", codebook_size=2, codebook_dim=1, distance="euclidean", decay=0.75, revive_below=0.0
    )
    torch.manual_seed(0)
    quantizer = Quantizer(config, 1)
    first = torch.tensor([[[-10.0], [-12.0], [10.0], [12.0]]])
    quantizer(first)
    assert sorted(quantizer.decode(torch.tensor([[0, 1]])).flatten().tolist()) == pytest.approx([-11, 11], abs=1e-3)
    quantizer(first + 4)  # means -7 and 15
    assert sorted(quantizer.decode(torch.tensor([[0, 1]])).flatten().tolist()) == pytest.approx([-10, 12], abs=1e-3)


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_codes_of_bits_against_the_formula(kind: str) -> None:
    """Signs are the code, and bits (first dimension highest) the id: eq. 3-4 of arXiv 2310.05737.

    BSQ's codes are on the unit sphere: eq. 3 of arXiv 2406.07548. The length of a latent has no effect.
    """
    quantizer = Quantizer(QuantizerConfig(kind=kind, codebook_size=16), 4).eval()  # type: ignore[arg-type]
    codes, tokens, _ = quantizer(torch.tensor([[[0.1, -2.0, 3.0, 1.0], [-9.0, -1.0, -1.0, 0.5]]]))
    signs = torch.tensor([[[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, 1.0]]])
    assert torch.equal(codes, signs / 2 if kind == "bsq" else signs)
    assert tokens.tolist() == [[0b1011, 0b0001]]


@pytest.mark.parametrize(("spherical", "magnitude"), [(False, 1.0), (True, 7**-0.5)])
def test_entropy_of_bits_is_that_of_the_whole_codebook(spherical: bool, magnitude: float) -> None:
    """The library compares all latents with all codes. The odd number of bits makes the two halves differ."""
    latents = torch.randn(1, 40, 7, generator=torch.Generator().manual_seed(0)) * 0.3
    if spherical:
        latents = functional.normalize(latents, dim=-1)
    reference = vqp.LFQ(
        dim=7, entropy_loss_weight=1.0, diversity_gamma=DIVERSITY, commitment_loss_weight=0.0, spherical=spherical
    )
    latents_ours, latents_reference = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    loss = entropy_loss(latents_ours[0], magnitude)
    expected = reference(latents_reference, inv_temperature=magnitude**-2).entropy_aux_loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    expected.backward()
    if not spherical:  # the library differentiates before normalising to the sphere
        torch.testing.assert_close(latents_ours.grad, latents_reference.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "times"),
    [
        (QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=6, distance="euclidean"), 1),
        (QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=6, distance="cosine"), 1),
        (QuantizerConfig(kind="simvq", codebook_size=16, codebook_dim=6), 1 + 0.25),
        (QuantizerConfig(kind="lfq", codebook_size=64), 1),
        (QuantizerConfig(kind="bsq", codebook_size=64), 1),
    ],
    ids=["vq_euclidean", "vq_cosine", "simvq", "lfq", "bsq"],
)
def test_commitment_loss_is_the_mean_squared_distance(config: QuantizerConfig, times: float) -> None:
    """SimVQ adds it twice (arXiv 2411.02038): with weight 1 for the codes and 0.25 for the latents."""
    latents = some_latents()[..., :6]
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        quantizer = Quantizer(dataclasses.replace(config, commitment_weight=weight), 6)
        codes, _, loss = quantizer(latents)
        losses.append(loss)
    on_sphere = config.kind == "bsq" or config.distance == "cosine"
    compared = functional.normalize(latents, dim=-1) if on_sphere else latents
    torch.testing.assert_close(losses[1] - losses[0], 2 * times * (compared - codes).square().mean())


@pytest.mark.parametrize(
    "config",
    [
        QuantizerConfig(kind="product_vq", codebook_size=32, num_codebooks=3),
        QuantizerConfig(kind="grouped_residual_vq", codebook_size=32, codebook_dim=DIM // 2, num_codebooks=6),
    ],
    ids=lambda config: config.kind,
)
def test_product_tokens_quantize_parts_of_the_latents(config: QuantizerConfig) -> None:
    quantizer = trained(config).eval()
    assert isinstance(quantizer.adapter, SideBySide)
    parts = quantizer.adapter.parts
    pieces = quantizer.project_in(some_latents()).chunk(len(parts), dim=2)
    token_parts = quantizer.encode(some_latents()).chunk(len(parts), dim=2)
    for part, latents, tokens in zip(parts, pieces, token_parts, strict=True):
        assert torch.equal(part.tokens(latents).view_as(tokens), tokens)


@pytest.mark.parametrize(
    ("kind", "library", "part"),
    [
        ("residual_vq", partial(vqp.ResidualVQ, rotation_trick=False), "vq"),
        ("residual_simvq", vqp.ResidualSimVQ, "simvq"),
    ],
)
def test_residual_quantizers_equal_the_library(kind: Any, library: Any, part: str) -> None:
    quantizer = trained(QuantizerConfig(kind=kind, codebook_size=32, codebook_dim=DIM, num_codebooks=3)).eval()
    assert isinstance(quantizer.adapter, Residual)
    reference = library(dim=DIM, num_quantizers=3, codebook_size=32).eval()
    for step, layer in zip(quantizer.adapter.steps, reference.layers, strict=True):
        layer.load_state_dict(getattr(step, part).state_dict())
    expected_codes, expected_tokens, _ = reference(some_latents())
    codes, tokens, _ = quantizer(some_latents())
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(codes, expected_codes)
    torch.manual_seed(5)
    _, expected_tokens, losses = reference.train()(some_latents(3))
    torch.manual_seed(5)
    _, tokens, loss = quantizer.train()(some_latents(3))
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(loss, losses.mean())


def test_residual_fsq_against_the_formula() -> None:
    """Levels 3: steps of 1, 1/3, 1/9; 0.62 is 1 - 1/3 - 1/9 + ..., coarse ids first."""
    quantizer = Quantizer(QuantizerConfig(kind="residual_fsq", levels=(3,), num_codebooks=3), 1).eval()
    bound = 1.5  # 1 + 1 / (levels - 1)
    latents = torch.tensor([[[0.62], [-0.4], [0.0]]])
    raw = torch.atanh(latents / bound) * bound  # inverse of the bounding function
    codes, tokens, _ = quantizer(raw)
    # .62 -> 1, left -.38 -> -1 (of 1/3), left -.0467 -> 0 (of 1/9); -.4 -> 0, -1, then -.0667 -> -1
    assert tokens.tolist() == [[[2, 0, 1], [1, 0, 0], [1, 1, 1]]]
    torch.testing.assert_close(codes, torch.tensor([[[1 - 1 / 3], [-1 / 3 - 1 / 9], [0.0]]]))


def test_the_spread_loss_by_hand() -> None:
    """Mean (1, 0), covariance diag(1, 4), target variance SPREAD ** 2 = 0.81: (0.2346^2 + 3.938^2 + 1) / 2."""
    latents = torch.tensor([[2.0, 2.0], [0.0, 2.0], [2.0, -2.0], [0.0, -2.0]])
    assert float(spread_loss(latents)) == pytest.approx(((1 / 0.81 - 1) ** 2 + (4 / 0.81 - 1) ** 2 + 1) / 2)
    together = torch.tensor([[0.9, 0.9], [-0.9, -0.9]])  # both off-diagonal entries count
    assert float(spread_loss(together)) == pytest.approx(1.0, abs=1e-5)


def test_memory_codes_against_the_formula() -> None:
    """Head i: the token is the key with the greatest dot product with the i-th part, the code its value."""
    quantizer = trained(QuantizerConfig(kind="memcodes", codebook_size=16, codebook_dim=8, num_codebooks=3)).eval()
    adapter = quantizer.adapter
    assert isinstance(adapter, MemoryCodes) and adapter.code_dim == DIM
    codes, tokens, _ = quantizer(some_latents())
    for head in range(3):
        part = some_latents()[..., 8 * head : 8 * head + 8].double()
        keys = adapter.codes[head].double() @ adapter.to_k[head].double()
        values = adapter.codes[head].double() @ adapter.to_v[head].double()
        expected = (part @ keys.T).argmax(dim=-1)
        assert torch.equal(tokens[..., head], expected)
        torch.testing.assert_close(codes[..., 8 * head : 8 * head + 8].double(), values[expected], rtol=1e-4, atol=1e-5)


def test_the_loss_of_memory_codes_by_hand() -> None:
    """Shares are a softmax of dot products / sqrt(d), as in arXiv 1706.03762, eq. 1; each head counts alike."""
    config = QuantizerConfig(kind="memcodes", codebook_size=16, codebook_dim=8, num_codebooks=3, entropy_weight=2.0)
    quantizer = trained(config)
    adapter, latents = quantizer.adapter, some_latents().double().flatten(0, 1)
    assert isinstance(adapter, MemoryCodes)
    expected = []
    for head in range(3):
        keys = adapter.codes[head].double() @ adapter.to_k[head].double()
        shares = (latents[:, 8 * head : 8 * head + 8] @ keys.T / 8**0.5).softmax(dim=1)
        mean_shares = shares.mean(dim=0)
        sample_entropy = -(shares * shares.log()).sum(dim=1).mean()
        expected.append(2 * (sample_entropy + DIVERSITY * (mean_shares * mean_shares.log()).sum()))
    torch.testing.assert_close(quantizer(some_latents()).loss.double(), torch.stack(expected).mean(), rtol=1e-4, atol=0)


# ---------------------------------------------------------------- the use of codebooks

TOY_DIM = 32


class Toy(nn.Module):
    """An autoencoder of vectors with twelve degrees of freedom."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, TOY_DIM))
        self.quantizer = Quantizer(config, TOY_DIM)
        self.decoder = nn.Sequential(nn.Linear(TOY_DIM, 64), nn.GELU(), nn.Linear(64, 32))


def toy_values(count: int, draws: torch.Generator) -> torch.Tensor:
    world = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 64, generator=world) * 0.28, torch.randn(64, 32, generator=world) / 8
    return torch.tanh(torch.randn(count, 12, generator=draws) @ first) @ second


@torch.enable_grad()
def trained_toy(config: QuantizerConfig) -> Toy:
    torch.manual_seed(0)
    toy, draws, steps, learning_rate = Toy(config), torch.Generator().manual_seed(1), 150, 5e-3
    optimizer = torch.optim.AdamW(toy.parameters(), learning_rate, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
        values = toy_values(256, draws)
        quantized = toy.quantizer(toy.encoder(values))
        loss = (toy.decoder(quantized.codes) - values).square().mean() + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(toy.parameters(), 1.0)
        optimizer.step()
    return toy.eval()


@torch.no_grad()
def usage_of(toy: Toy) -> CodebookUsage:
    """Return codebook usage on held-out values."""
    quantizer = toy.quantizer
    usage = CodebookUsage(quantizer.codebook_size, quantizer.codes_per_position)
    values = toy_values(32 * quantizer.codebook_size, torch.Generator().manual_seed(2))
    usage.update(quantizer.encode(toy.encoder(values)))
    return usage


@pytest.mark.parametrize("kind", KIND_DEFAULTS)
def test_every_default_uses_its_codebook(kind: str) -> None:
    """With a codebook small enough to fill in seconds."""
    size = {"fsq": 240, "residual_fsq": 0}.get(kind, 128)
    toy = trained_toy(QuantizerConfig(kind=kind, codebook_size=size))  # type: ignore[arg-type]
    usage = usage_of(toy)
    assert usage.usage >= 0.9
    assert (usage.counts > 0).mean(axis=1).min() >= 0.85
    assert usage.perplexity > 0.4 * toy.quantizer.codebook_size


def test_dead_codes_are_revived_also_in_small_batches() -> None:
    """With more codes than latents in a batch, unused codes are revived and used codes are not replaced."""

    def usage_after(revive_below: float) -> float:
        torch.manual_seed(0)
        config = QuantizerConfig(
            kind="vq", codebook_size=128, codebook_dim=TOY_DIM, kmeans_iterations=0, revive_below=revive_below
        )
        quantizer, usage = Quantizer(config, TOY_DIM), CodebookUsage(128)
        clusters = torch.randn(32, TOY_DIM) * 3
        draws = torch.Generator().manual_seed(1)
        for _ in range(60):
            cluster_ids = torch.randint(0, 32, (64,), generator=draws)
            noise = torch.randn(64, TOY_DIM, generator=draws)
            quantizer((clusters[cluster_ids] + noise)[None])
        usage.update(quantizer.encode((clusters.repeat(64, 1) + torch.randn(2048, TOY_DIM, generator=draws))[None]))
        return usage.usage

    dead, revived = usage_after(0.0), usage_after(0.1)
    assert revived > 0.5 > 0.3 > dead


def test_codebook_usage_by_hand() -> None:
    usage = CodebookUsage(8)
    assert (usage.usage, usage.entropy_bits, usage.perplexity) == (0.0, 0.0, 1.0)
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    assert (usage.usage, usage.entropy_bits) == (0.25, 1.0)
    assert usage.perplexity == pytest.approx(2.0)
    usage.update(np.array([1, 1, 7, 7]))  # counts 2, 4, 2: shares 1/4, 1/2, 1/4
    assert usage.usage == 0.375
    assert usage.entropy_bits == pytest.approx(1.5)
    assert usage.perplexity == pytest.approx(2**1.5)
