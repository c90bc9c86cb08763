"""The shared vector space, and recall, against hand-computed numbers and synthetic data with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from zoo_backbone.measure.retrieval import RECALL_AT, Recall
from zoo_backbone.use.retrieval import query
from zoo_backbone.use.retrieval.embed import RIDGE, Affine, Vectors, fit, unit
from zoo_backbone.use.retrieval.query import TIE_TOLERANCE, chance, recall


def test_centred_takes_off_each_modalitys_own_mean() -> None:
    vectors = {"a": np.array([[1, 0], [3, 0]], np.float32), "b": np.array([[0, 5], [np.nan] * 2], np.float32)}
    space = fit("centred", vectors)
    assert space["a"].mean.tolist() == [2, 0] and space["b"].mean.tolist() == [0, 5]
    assert space["a"].projection is None
    assert fit("plain", vectors)["a"].mean.tolist() == [0, 0]


def test_whitening_by_hand() -> None:
    """Variances of 4 and 1 (mean 2.5) along the axes become nearly equal, in the same directions."""
    rows = np.array([[2, 1], [2, -1], [-2, 1], [-2, -1]], np.float32)
    projection = fit("whitened", {"a": rows})["a"].projection
    expected = np.diag([1 / np.sqrt(4 + RIDGE * 2.5), 1 / np.sqrt(1 + RIDGE * 2.5)])
    assert projection is not None and np.allclose(projection, expected, atol=1e-6)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    turned = fit("whitened", {"a": rows @ turn.T})["a"].projection
    assert turned is not None and np.allclose(turned, turn @ expected @ turn.T, atol=1e-6)


def views(samples: int, seed: int) -> dict[str, Vectors]:
    """Return three modalities: the same 4 numbers, rotated and shifted, among 12 larger numbers of their own."""
    rng, axes = np.random.default_rng(seed), np.random.default_rng(0)
    shared = rng.standard_normal((samples, 4))
    vectors = {}
    for name in "abc":
        turn = np.linalg.qr(axes.standard_normal((16, 16)))[0]
        noise = 2 * rng.standard_normal((samples, 12))
        vectors[name] = (np.concatenate([shared, noise], 1) @ turn + 10 * axes.standard_normal(16)).astype(np.float32)
    return vectors


def top1_recall(space: dict[str, Affine], held_out: dict[str, Vectors]) -> float:
    return recall(space["a"](held_out["a"]), space["c"](held_out["c"])).recall["1"]


def test_the_shared_space_generalises_to_new_samples() -> None:
    held_out = views(50, 2)
    assert top1_recall(fit("shared", views(400, 1)), held_out) > 0.5
    for kind in ("plain", "centred", "whitened"):
        assert top1_recall(fit(kind, views(400, 1)), held_out) < 0.1  # type: ignore[arg-type]


def test_a_sample_may_lack_modalities() -> None:
    vectors = views(600, 1)
    for number, name in enumerate("abc"):
        vectors[name][number::3] = np.nan  # no sample has all three
    assert top1_recall(fit("shared", vectors), views(50, 2)) > 0.4
    missing = {name: np.full((9, 16), np.nan, np.float32) for name in "abc"}
    extended = {name: np.concatenate([rows, missing[name]]) for name, rows in vectors.items()}
    first, second = fit("shared", vectors)["b"], fit("shared", extended)["b"]
    assert first.projection is not None and second.projection is not None
    assert np.array_equal(first.mean, second.mean) and np.allclose(first.projection, second.projection, atol=1e-6)


def test_a_modality_never_paired_with_another_is_projected_to_zero() -> None:
    vectors = views(600, 1)
    vectors["c"][:400] = vectors["a"][400:] = vectors["b"][400:] = np.nan
    space = fit("shared", {name: vectors[name] for name in "acb"})  # this order leaves a rounding error
    assert space["c"].projection is not None and not space["c"].projection.any()
    held_out = views(50, 2)
    assert recall(space["a"](held_out["a"]), space["b"](held_out["b"])).recall["1"] > 0.5


ANGLES = np.linspace(0, 1, 21)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)
AXES = np.eye(12, dtype=np.float32)
SAME_FOR_ALL = np.tile(unit(np.ones((1, 3))), (40, 1))


@pytest.mark.parametrize(
    ("queries", "gallery", "shares", "median"),
    [
        # One hit of the first query is closer; its own ties with 10 others.
        (np.concatenate([AXES[1:2], AXES[1:]]), AXES, {"1": 11 / 12, "5": (11 + 4 / 11) / 12}, 1),
        # All queries equal the first: the ranks are 1 to 21.
        (np.tile(CIRCLE[:1], (21, 1)), CIRCLE, {"1": 1 / 21, "5": 5 / 21, "10": 10 / 21}, 11),
        # A gallery that says nothing gives what chance gives.
        (SAME_FOR_ALL, SAME_FOR_ALL, chance(40).recall, 20.5),
    ],
)
def test_recall_by_hand(queries: Vectors, gallery: Vectors, shares: dict[str, float], median: float) -> None:
    result = recall(queries, gallery)
    assert {key: result.recall[key] for key in shares} == pytest.approx(shares, abs=1e-6)
    assert result.median_rank == median


def test_chance_by_hand() -> None:
    assert chance(40) == Recall(recall={"1": 0.025, "5": 0.125, "10": 0.25}, median_rank=20.5)
    assert chance(4).recall["10"] == 1


def test_recall_in_blocks_is_recall_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((101, 8)))
    gallery[50:60] = gallery[3]  # equally close
    queries = unit(gallery + 0.5 * rng.standard_normal(gallery.shape))
    cosines = queries.astype(np.float64) @ gallery.astype(np.float64).T
    own_cosines = np.diagonal(cosines)[:, None]
    closer, equal = (
        (cosines > own_cosines + TIE_TOLERANCE).sum(1),
        (np.abs(cosines - own_cosines) <= TIE_TOLERANCE).sum(1),
    )
    assert equal.max() > 1 and closer.max() > 10
    shares = {k: round(float(np.clip((int(k) - closer) / equal, 0, 1).mean()), 6) for k in RECALL_AT}
    expected = Recall(recall=shares, median_rank=float(np.median(closer + (equal + 1) / 2)))
    for rows in (0.1, 1, 7, 100, 101, 1000):  # at least one row per block
        monkeypatch.setattr(query, "BLOCK_BYTES", int(rows * 8 * len(gallery)))
        assert recall(queries, gallery) == expected, rows
