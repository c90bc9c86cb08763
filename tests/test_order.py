"""The order of training samples: every epoch has all samples, for any reader and from any start."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from zoo_backbone.learn.order import SampleOrder


def starts_of(sizes: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@pytest.mark.parametrize("sizes", [[7], [4, 4, 4, 2], [5, 0, 3, 0, 1, 8, 2], [1] * 40])
@pytest.mark.parametrize(("lanes", "window"), [(1, 4), (3, 2), (4, 100), (64, 3)])
def test_every_epoch_is_a_permutation(sizes: list[int], lanes: int, window: int) -> None:
    order, count = SampleOrder(starts_of(sizes), lanes, window, 0, 0), sum(sizes)
    epochs = order.samples(np.arange(4 * count)).reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    assert count < 8 or len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_any_place_can_be_read_first_and_alone() -> None:
    starts, positions = starts_of([5, 3, 8, 2, 7]), np.arange(60)
    expected = SampleOrder(starts, 4, 3, 0, 0).samples(positions)
    order = SampleOrder(starts, 4, 3, 0, 0)
    backwards = [int(order.samples(np.array([position]))[0]) for position in positions[::-1]]
    assert backwards[::-1] == expected.tolist()
    ranks = [positions[positions % 4 % 3 == rank] for rank in range(3)]
    parts = [SampleOrder(starts, 4, 3, 0, 0).samples(part) for part in ranks]
    assert sorted(np.concatenate(parts)) == sorted(expected)


def test_orders_of_seeds_and_stores_are_unrelated() -> None:
    orders = [SampleOrder(starts_of([10] * 5), 2, 20, *key).samples(np.arange(100)) for key in ((0, 0), (0, 1), (1, 0))]
    assert len({order.tobytes() for order in orders}) == 3


def test_neighbours_come_from_different_blocks_and_few_blocks_are_open() -> None:
    starts = starts_of([16] * 256)
    order = SampleOrder(starts, 8, 64, 0, 0)
    samples = order.samples(np.arange(4096))
    blocks = (samples // 16).reshape(-1, 8)
    assert np.mean([len(set(row)) for row in blocks.tolist()]) > 7.5
    for first in range(0, 512, 64):  # a window of each lane: four or five blocks
        opened = blocks[first : first + 64]
        assert all(len(set(opened[:, lane].tolist())) <= 5 for lane in range(8))
    lane_blocks = [set(blocks[:, lane].tolist()) for lane in range(8)]
    assert sum(map(len, lane_blocks)) <= 256 + 8, "lanes share blocks at their ends only"


def test_samples_of_a_window_are_well_mixed() -> None:
    """Stored neighbours are read far apart."""
    order = SampleOrder(starts_of([32] * 64), 1, 128, 0, 0).samples(np.arange(2048))
    position = np.argsort(order)
    distances = np.abs(np.diff(position.reshape(64, 32), axis=1))
    assert 30 < distances.mean() < 60  # 128 / 3 in a uniform shuffle
