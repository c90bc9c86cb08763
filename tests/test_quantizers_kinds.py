"""Quantizers: each kind against the formula of its paper, or an independent reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import vector_quantize_pytorch as vqp
from quantizer_samples import DIM, some_latents, trained
from torch.nn import functional

from tokenizers_zoo.quantizers import kinds
from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.kinds import DIVERSITY, MemoryCodes, entropy_loss, spread_loss
from tokenizers_zoo.quantizers.quantizer import Quantizer, Residual, SideBySide

CONFIGS = {
    "vq_cosine": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=8),
    "vq_euclidean": QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=DIM, distance="euclidean"),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=64, codebook_dim=8),
}


def test_fsq_against_the_formula() -> None:
    """arXiv 2309.15505, section 3.1: odd levels round tanh(x) times half the range; ids are mixed radix."""
    quantizer = Quantizer(QuantizerConfig(levels=(5, 3)), 2).eval()  # dim 2: no projections
    latents = torch.tensor([[[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0], [0.4, 0.2]]])
    # levels 5: {-1, -.5, 0, .5, 1}, tanh(.4) * 2 = .76 -> 1 -> .5; levels 3: {-1, 0, 1}, tanh(.2) = .197 -> 0
    expected = torch.tensor([[[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [0.5, 0.0]]])
    codes, tokens, _ = quantizer(latents)
    torch.testing.assert_close(codes, expected)
    assert tokens.tolist() == [[2 + 5 * 1, 4 + 5 * 0, 0 + 5 * 2, 3 + 5 * 1]]


def test_lfq_against_the_formula() -> None:
    """Eq. 3-4 of arXiv 2310.05737: signs are the code, and bits (first dimension highest) the id."""
    quantizer = Quantizer(QuantizerConfig(kind="lfq", codebook_size=8), 3).eval()
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


def test_bsq_against_the_formula() -> None:
    """Eq. 3 of arXiv 2406.07548: codes are signs on the unit sphere; the length of a latent has no effect."""
    quantizer = Quantizer(QuantizerConfig(kind="bsq", codebook_size=16), 4).eval()
    codes, tokens, _ = quantizer(torch.tensor([[[0.1, -2.0, 3.0, 1.0], [-9.0, -1.0, -1.0, 0.5]]]))
    assert codes.tolist() == [[[0.5, -0.5, 0.5, 0.5], [-0.5, -0.5, -0.5, 0.5]]]
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
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    got = entropy_loss(ours[0], magnitude)
    expected = reference(theirs, inv_temperature=magnitude**-2).entropy_aux_loss
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    got.backward()
    expected.backward()
    if not spherical:  # the library differentiates before normalising to the sphere
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


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


def test_codes_side_by_side_are_those_of_their_parts() -> None:
    quantizer = trained(QuantizerConfig(kind="product_vq", codebook_size=32, num_codebooks=3)).eval()
    assert isinstance(quantizer.adapter, SideBySide)
    latents = quantizer.project_in(some_latents())
    expected = [part.tokens(latents[..., 8 * i : 8 * i + 8]) for i, part in enumerate(quantizer.adapter.parts)]
    assert torch.equal(quantizer.encode(some_latents()), torch.stack(expected, dim=2))


def test_residual_vq_equals_the_library() -> None:
    config = QuantizerConfig(kind="residual_vq", codebook_size=32, codebook_dim=DIM, num_codebooks=3)
    quantizer = trained(config).eval()
    assert isinstance(quantizer.adapter, Residual)
    reference = vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=32, rotation_trick=False).eval()
    for ours, theirs in zip(quantizer.adapter.steps, reference.layers, strict=True):
        theirs.load_state_dict(ours.vq.state_dict())
    expected_codes, expected_tokens, _ = reference(some_latents())
    codes, tokens, _ = quantizer(some_latents())
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(codes, expected_codes)
    reference.train()
    quantizer.train()
    torch.manual_seed(5)
    _, expected_tokens, losses = reference(some_latents(3))
    torch.manual_seed(5)
    _, tokens, loss = quantizer(some_latents(3))
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(loss, losses.mean())


def test_residual_simvq_equals_the_library() -> None:
    config = QuantizerConfig(kind="residual_simvq", codebook_size=32, codebook_dim=DIM, num_codebooks=3)
    quantizer = trained(config).eval()
    reference = vqp.ResidualSimVQ(dim=DIM, num_quantizers=3, codebook_size=32)
    for ours, theirs in zip(quantizer.adapter.steps, reference.layers, strict=True):
        theirs.load_state_dict(ours.simvq.state_dict())
    expected_codes, expected_tokens, losses = reference(some_latents())
    codes, tokens, _ = quantizer(some_latents())
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(codes, expected_codes)
    torch.testing.assert_close(quantizer.train()(some_latents()).loss, losses.mean())


def test_grouped_residual_tokens_are_group_after_group() -> None:
    config = QuantizerConfig(kind="grouped_residual_vq", codebook_size=32, codebook_dim=DIM // 2, num_codebooks=6)
    quantizer = trained(config).eval()
    tokens = quantizer.encode(some_latents())
    for group, part in enumerate(quantizer.adapter.parts):
        own = some_latents()[..., 12 * group : 12 * group + 12]
        assert torch.equal(tokens[..., 3 * group : 3 * group + 3], part.tokens(own))


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
        together = shares.mean(dim=0)
        each = -(shares * shares.log()).sum(dim=1).mean()
        expected.append(2 * (each + DIVERSITY * (together * together.log()).sum()))
    torch.testing.assert_close(quantizer(some_latents()).loss.double(), torch.stack(expected).mean(), rtol=1e-4, atol=0)
