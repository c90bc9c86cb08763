"""Splits, manifests, and the permutation that orders training samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tokenizers_zoo.data.manifest import (
    FileRecord,
    Manifest,
    Split,
    inputs_digest,
    manifest_path,
    read_manifest,
    read_splits,
    remove_shard,
    shard_name,
    shards_of,
    sound_manifest,
    verify,
    write_manifest,
    write_record,
)
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.train.batches import permuted


def a_split(root: Path, samples: int = 7, shard_size: int = 3) -> Split:
    split = Split(root, "train", samples, shard_size)
    for shard in range(split.shards):
        start = shard * shard_size
        digest = split.write_keys(shard, [f"a/{start + row}" for row in range(split.rows(shard))])
        file = split.folder / "rgb" / shard_name(shard, "tar")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * (shard + 1))
        files = {"tar": FileRecord.of(file)}
        rows = split.rows(shard)
        write_manifest(
            file.parent,
            shard,
            Manifest(rows=rows, count=rows, keys=digest, inputs=f"in{shard}", files=files, dropped={0: "gone"}),
        )
    write_record(root / "dataset.json", {"splits": {"train": {"samples": samples, "shard_size": shard_size}}})
    return read_splits(root / "dataset.json")["train"]


def test_a_split_locates_its_samples_and_reads_its_keys(tmp_path: Path) -> None:
    split = a_split(tmp_path)
    assert (split.shards, [split.rows(shard) for shard in range(3)]) == (3, [3, 3, 1])
    assert split.locate(5) == (1, 2)
    assert split.key(6) == "a/6"
    assert [split.find("a/4"), split.find("a/44"), split.find("a/")] == [4, None, None]
    assert split.modalities() == ["rgb"]
    assert shards_of(split.folder / "rgb") == [0, 1, 2]
    with pytest.raises(IndexError):
        split.locate(7)


def test_manifests_are_read_back_and_tell_what_is_finished(tmp_path: Path) -> None:
    folder = a_split(tmp_path).folder / "rgb"
    manifest = read_manifest(folder, 1)
    assert manifest is not None and manifest.dropped == {0: "gone"} and manifest.files["tar"].size == 2

    assert sound_manifest(folder, 1) == manifest
    (folder / shard_name(1, "tar")).write_bytes(b"cut off")
    assert sound_manifest(folder, 1) is None
    remove_shard(folder, 1)
    assert read_manifest(folder, 1) is None and not (folder / shard_name(1, "tar")).exists()


@pytest.mark.parametrize("change", [
    {"format": 2}, {"rows": -1, "count": -1}, {"count": 9}, {"rows": "3"}, {"files": []}, {"dropped": {"x": "y"}},
    {"record": 3}, {"unknown": 1}, {"files": {"tar": {"size": 1}}},
])  # fmt: skip
def test_a_damaged_manifest_is_an_error_and_not_finished(tmp_path: Path, change: dict[str, object]) -> None:
    folder = a_split(tmp_path).folder / "rgb"
    path = manifest_path(folder, 0)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="damaged"):
        read_manifest(folder, 0)
    assert sound_manifest(folder, 0) is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1, "splits": {"../x": {"samples": 1, "shard_size": 1}}}',
                                  '{"format": 1, "splits": {"a": {"samples": 1, "shard_size": 0}}}'])  # fmt: skip
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_splits(tmp_path / "dataset.json")


def test_the_inputs_digest_depends_on_every_part_and_on_no_order() -> None:
    first = inputs_digest(seed=1, settings={"a": 1, "b": Path("x")})
    assert first == inputs_digest(settings={"b": Path("x"), "a": 1}, seed=1)
    assert len({first, inputs_digest(seed=2, settings={"a": 1, "b": "x"}), inputs_digest(seed=1, settings={})}) == 3


def test_verify_finds_each_kind_of_damage(tmp_path: Path) -> None:
    split = a_split(tmp_path, samples=12)
    folder = split.folder / "rgb"
    assert not list(verify(split))
    (folder / shard_name(0, "tar")).write_bytes(b"y")
    (folder / shard_name(1, "tar")).unlink()
    split.write_keys(2, ["p", "q", "r"])
    manifest_path(folder, 3).write_text("{")
    found = {wrong.shard: wrong.problem for wrong in verify(split)}
    assert "checksum" in found[0] and "missing" in found[1] and "keys" in found[2] and "damaged" in found[3]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_the_permutation_visits_each_number_once(n: int) -> None:
    orders = [permuted(np.arange(n), n, 0, epoch) for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(n))
    if n > 16:
        assert (orders[0] != orders[1]).any()
    assert permuted([n - 1], n, 0, 1)[0] == orders[1][n - 1]


def test_the_permutation_is_uniform_and_looks_random() -> None:
    n, keys = 10, 4000
    places = Counter(int(permuted([3], n, seed)[0]) for seed in range(keys))
    expected = keys / n
    chi_squared = sum((places[place] - expected) ** 2 / expected for place in range(n))
    assert chi_squared < 33.7  # 9 degrees of freedom, p = 1e-4
    order = permuted(np.arange(100_000), 100_000, 7)
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    with pytest.raises(ValueError, match="positions"):
        permuted([100], 100, 7)
