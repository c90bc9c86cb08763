"""The token store: tokens are read back by row, and files that contradict their manifests are refused."""

from __future__ import annotations

import builtins
import errno
import functools
import hashlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cachetools import LRUCache, cached
from token_stores import plain_metadata, write_tokens

from tokenizers_zoo.contract.layouts import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.tokenizer_files import TokenizerFiles
from tokenizers_zoo.errors import DataError, OtherLayoutError, OtherTokenizerError, ReadError
from tokenizers_zoo.files.checkpoint import save_checkpoint
from tokenizers_zoo.records.config import Origin
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores import token_shard
from tokenizers_zoo.stores.manifest import verify
from tokenizers_zoo.stores.token_shard import write_token_shard
from tokenizers_zoo.stores.tokens import (
    STORE,
    SUMMARY,
    UNFINISHED,
    TokenColumn,
    TokenStore,
    TokenSummary,
    read_tokens,
    samples_digest,
    whole_samples,
)

LAYOUTS: dict[str, TokenLayout] = {
    "grid": GridLayout(shape=(2, 3)),
    "vector": VectorLayout(length=4),
    "sequence": SequenceLayout(max_length=5, end=0, sentinel_start=1, num_sentinels=2),
    "patches": PatchesLayout(shape=(2, 2), dim=3, dtype="float32"),
    "embeddings": EmbeddingsLayout(max_length=4, dim=2),
}


def random_row(layout: TokenLayout, rng: np.random.Generator, ids: int = 70000) -> np.ndarray[Any, Any]:
    if isinstance(layout, GridLayout):
        return rng.integers(0, ids, layout.shape)
    if isinstance(layout, VectorLayout):
        return rng.integers(0, ids, layout.length)
    if isinstance(layout, SequenceLayout):
        return rng.integers(3, ids, rng.integers(0, layout.max_length + 1))
    if isinstance(layout, PatchesLayout):
        return rng.normal(size=(layout.length, layout.dim)).astype(np.float32)
    size = (int(rng.integers(0, layout.max_length + 1)), layout.dim)
    return rng.normal(size=size).astype(np.float16).astype(np.float32)


def make_store(
    root: Path, layout: TokenLayout, count: int = 9, *, absent: tuple[int, ...] = (), ids: int = 70000, **store: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    keys, crops = [f"k{i}é" for i in range(count)], store.get("crops", 1)
    rows = {key: [random_row(layout, rng, ids) for _ in range(crops)] for key in keys}
    tokens = {key: row if crops > 1 else row[0] for i, (key, row) in enumerate(rows.items()) if i not in absent}
    write_tokens(root, "train", plain_metadata(layout, **({"vocab_size": ids} if ids != 70000 else {})), tokens,
                 keys=keys, shard_size=4, **store)  # fmt: skip
    return tokens


def first_shard(root: Path) -> Path:
    return root / "train/m/shard-00000.tokens"


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_tokens_come_back_as_they_were_written(tmp_path: Path, kind: str, crops: int) -> None:
    layout = LAYOUTS[kind]
    tokens = make_store(tmp_path, layout, absent=(2, 5), crops=crops)
    column = TokenStore(tmp_path).open("train", "m")
    rows = [tokens[key] if crops == 1 else tokens[key][view] for key in tokens for view in range(crops)]
    assert (len(column), column.count, column.metadata.layout) == (9 * crops, 7 * crops, layout)
    assert dict(whole_samples([column])) == {key: crops * int(key[1]) for key in tokens}
    positions = np.flatnonzero(column.present(np.arange(len(column))))
    assert len(positions) == len(rows) and not column.present(np.array([2 * crops, 5 * crops])).any()
    order = np.array([6, 0, 3, 3, 5, 4, 1])
    batch = column.take(positions[order])
    dtype = np.float32 if kind in ("patches", "embeddings") else np.int64
    for row_read, index in zip(batch, order, strict=True):
        assert row_read.dtype == dtype
        np.testing.assert_array_equal(row_read, rows[index].reshape(row_read.shape))
    if kind in ("grid", "vector", "patches"):
        assert batch.shape == (7, *{"grid": (2, 3), "vector": (4,), "patches": (4, 3)}[kind])
    else:
        assert column.summary.longest == max(len(row) for row in rows)
    ids = [int(row.max()) + 1 for row in rows if row.size and dtype == np.int64]
    assert column.summary.needed_vocab_size == max(ids, default=0)
    with pytest.raises(IndexError):
        column.take([9 * crops])
    assert not list(verify(TokenStore(tmp_path).split("train")))


@pytest.mark.parametrize("ids", [1000, 70000])
@pytest.mark.parametrize("kind", ["grid", "vector", "sequence"])
def test_the_reader_of_the_docs_reads_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ids: int
) -> None:
    monkeypatch.setattr(token_shard, "BLOCK_SAMPLES", 2)
    page = (Path(__file__).parents[1] / "docs/file-formats.md").read_text()
    (code,) = (part.partition("```")[0] for part in page.split("```python\n") if "def read_shard" in part)
    names: dict[str, Any] = {}
    exec(code, names)
    tokens = make_store(tmp_path, LAYOUTS[kind], absent=(1,), ids=ids, crops=2)
    rows = list(names["read_shard"](first_shard(tmp_path).with_suffix("")))
    assert len(rows) == 4 and rows[1] is None
    for number in (0, 2, 3):
        for view, expected in zip(rows[number], tokens[f"k{number}é"], strict=True):
            np.testing.assert_array_equal(view, expected.ravel())


def test_rows_of_several_blocks_and_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shard, "BLOCK_SAMPLES", 2)
    for kind, layout in LAYOUTS.items():
        tokens = list(make_store(tmp_path / kind, layout, count=11, crops=2).values())
        column = TokenStore(tmp_path / kind).open("train", "m")
        assert len(column._open_shard(2).manifest.record.blocks) == 2
        rows = np.random.default_rng(0).integers(0, 22, 50)
        for row, read in zip(rows.tolist(), column.take(rows), strict=True):
            np.testing.assert_array_equal(read, tokens[row // 2][row % 2].reshape(read.shape))


def test_blocks_of_large_samples_have_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shard, "BLOCK_BYTES", 100)
    make_store(tmp_path, LAYOUTS["patches"])  # 48 bytes each
    assert read_table(first_shard(tmp_path).with_suffix(".json"))["record"]["block_samples"] == 2


def test_only_the_blocks_of_the_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shard, "BLOCK_SAMPLES", 2)
    make_store(tmp_path, LAYOUTS["grid"])
    content = bytearray(first_shard(tmp_path).read_bytes())
    content[-1] ^= 1
    first_shard(tmp_path).write_bytes(content)
    column = TokenStore(tmp_path).open("train", "m")
    assert len(column.take([0, 1])) == 2
    with pytest.raises(DataError, match=r"shard-00000\.tokens: block 1 .*checksum"):
        column.take([2])


def test_byte_patches_round_trip_exactly(tmp_path: Path) -> None:
    """Each channel has 256 levels; numbers beyond them are refused."""
    layout = PatchesLayout(shape=(2, 2), dim=6, dtype="uint8")
    mean, std = (np.repeat(np.array(numbers, np.float32), 3) for numbers in ((0.4, 0.5), (0.2, 0.25)))
    levels = tuple((3, float((0 - mean[at]) / std[at]), float((1 - mean[at]) / std[at])) for at in (0, 3))
    metadata = plain_metadata(layout, levels=levels)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6))
    rows = (pixels.astype(np.float32) / 255 - mean) / std
    write_tokens(tmp_path, "train", metadata, {f"k{number}": row for number, row in enumerate(rows)}, shard_size=3)
    column = TokenStore(tmp_path).open("train", "m")
    read_rows = column.take(range(5))
    assert read_rows.dtype == np.float32 and read_rows.shape == rows.shape
    np.testing.assert_allclose(read_rows, rows, atol=2e-6)
    np.testing.assert_array_equal(np.rint((read_rows * std + mean) * 255), pixels)
    assert first_shard(tmp_path).stat().st_size < 3 * 24 + 700
    with pytest.raises(DataError, match="exceed uint8"):
        write_token_shard(tmp_path / "m", 0, metadata, [[rows[0] * 100]], keys="")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("grid", np.zeros((2, 2), int), "expected 6 tokens"),
        ("vector", np.full(4, 70000), "ids 70000..70000, expected 0..69999"),
        ("sequence", np.arange(6), "expected up to 5 tokens"),
        ("patches", np.full((4, 3), np.nan, np.float32), "not finite"),
        ("embeddings", np.full((1, 2), 1e6, np.float32), "exceed float16"),
        ("embeddings", np.zeros((1, 3), np.float32), "expected up to 4 tokens of 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, kind: str, row: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_token_shard(tmp_path / "m", 0, plain_metadata(LAYOUTS[kind]), [[row]], keys="")
    assert not list(tmp_path.rglob("*.*"))


def other_manifest(root: Path, **record: Any) -> None:
    """Change the manifest's record so that it contradicts the file, with a correct checksum."""
    path = first_shard(root).with_suffix(".json")
    table = read_table(path)
    table["record"] |= record
    write_table(path, table)


def other_block(root: Path, **block: Any) -> None:
    """Change the record of the first shard's block."""
    table = read_table(first_shard(root).with_suffix(".json"))
    other_manifest(root, blocks=[{**table["record"]["blocks"][0], **block}])


DAMAGES = (
    lambda root: os.truncate(first_shard(root), first_shard(root).stat().st_size - 8),
    lambda root: first_shard(root).unlink(),
    lambda root: other_manifest(root, needed_vocab_size=5),
    lambda root: other_block(root, present="e0"),
    lambda root: other_block(root, present="no"),
    lambda root: other_block(root, tokens=1),
    lambda root: other_block(root, size=1 << 60),
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: Any) -> None:
    make_store(tmp_path, LAYOUTS["sequence"])
    damage(tmp_path)
    column = TokenStore(tmp_path).open("train", "m")
    with pytest.raises(DataError, match=r"shard-00000\.tokens"):
        column.take([0])
    assert len(column.take([8])) == 1, "other shards are read"


def test_threads_read_the_same_tokens_however_little_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shard, "BLOCK_SAMPLES", 2)
    make_store(tmp_path, LAYOUTS["sequence"], count=200)
    expected = TokenStore(tmp_path).open("train", "m").take(range(200))
    small = cached(LRUCache(1000, getsizeof=lambda block: block.nbytes), lock=threading.Lock())
    monkeypatch.setattr(token_shard, "read_block", small(token_shard.read_block.__wrapped__))
    column = TokenStore(tmp_path).open("train", "m")

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 200, 300)
        return all(np.array_equal(tokens, expected[row]) for tokens, row in zip(column.take(rows), rows, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [True] * 4


def opened_at_first_block(root: Path, monkeypatch: pytest.MonkeyPatch) -> TokenColumn:
    """Return a column whose first shard is open, and its first block read."""
    monkeypatch.setattr(token_shard, "BLOCK_SAMPLES", 2)
    make_store(root, LAYOUTS["grid"])
    column = TokenStore(root).open("train", "m")
    assert len(column.take([0])) == 1
    return column


def test_a_shard_that_is_replaced_while_it_is_open_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = opened_at_first_block(tmp_path, monkeypatch)
    make_store(tmp_path, LAYOUTS["grid"], absent=(2,))
    with pytest.raises(ReadError, match=r"shard-00000\.tokens: was replaced"):
        column.take([2])


def test_a_shard_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = opened_at_first_block(tmp_path, monkeypatch)

    def failing_open(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", failing_open)
        with pytest.raises(ReadError, match=r"shard-00000\.tokens: cannot be read"):
            column.take([2])
    assert len(column.take([2])) == 1


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_flipped_bit_is_never_read(tmp_path: Path, kind: str) -> None:
    """Wherever it is: most of them would give other tokens without a word."""
    make_store(tmp_path, LAYOUTS[kind])
    path = first_shard(tmp_path).with_suffix(".tokens")
    content = path.read_bytes()
    for offset in random.Random(0).sample(range(len(content)), 40):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(DataError, match="has another checksum"):
            TokenStore(tmp_path).open("train", "m").take([0])
    path.write_bytes(content)
    assert len(TokenStore(tmp_path).open("train", "m").take([0])) == 1


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    split, store = TokenStore(tmp_path).split("train"), TokenStore(tmp_path)
    (tmp_path / "train/m/shard-00001.json").unlink()
    assert [wrong.reason for wrong in verify(split)] == [f"{split.folder}/m: has 2 of 3 shards: {UNFINISHED}"]
    with pytest.raises(DataError, match=r"train/m: has 2 of 3 shards"):
        store.open("train", "m").take([4])
    (tmp_path / "train/m" / SUMMARY).unlink()
    assert not list(verify(split))
    with pytest.raises(DataError, match=r"train/m: has 2 of 3 shards"):
        store.open("train", "m")


def test_a_summary_has_to_agree_with_its_shards(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["sequence"])
    path, split = tmp_path / "train/m" / SUMMARY, TokenStore(tmp_path).split("train")
    table = read_table(path)
    for key, number in {"longest": 1, "needed_vocab_size": 5}.items():
        write_table(path, {**table, key: number})
        with pytest.raises(DataError, match=r"summary.json says"):
            TokenColumn(split, "m").take([0])
        assert [wrong.reason for wrong in verify(split)] == ["contradicts its shards"]
    for key in ("samples", "crops"):
        write_table(path, {**table, key: 7})
        with pytest.raises(DataError, match="other samples"):
            TokenColumn(split, "m")
    path.unlink()
    assert [wrong.reason for wrong in verify(split)] == ["is missing"]


def test_shards_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    folder, split = tmp_path / "train/m", TokenStore(tmp_path).split("train")
    metadata = plain_metadata(LAYOUTS["grid"], fingerprint="e" * 64)
    write_token_shard(folder, 1, metadata, [[np.zeros((2, 3), int)]] * 4, keys=split.keys_digest(1))
    column = TokenColumn(split, "m")
    assert len(column.take([0])) == 1
    for read in (lambda: column.take([4]), lambda: TokenSummary.of(split, "m")):
        with pytest.raises(DataError, match=r"shard-00001.*another tokenizer"):
            read()


@pytest.mark.parametrize(
    "levels", [[[3, 1e39, 1.0]], [[2, 0.0, 1.0]], [[10**12, 0.0, 1.0]], [[4, 0.0, 1.0], [-1, 0.0, 1.0]]]
)
def test_odd_levels_are_refused(tmp_path: Path, levels: list[list[float]]) -> None:
    """A stranger's records have a right checksum."""
    make_store(tmp_path, LAYOUTS["patches"])
    path = tmp_path / "train/m" / SUMMARY
    table = read_table(path)
    write_table(path, {**table, "writer": {**table["writer"], "levels": levels}})
    with pytest.raises(DataError, match=r"summary.json: damaged: writer"):
        TokenStore(tmp_path).open("train", "m")


def test_tokens_of_other_samples_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    path, split = first_shard(tmp_path).with_suffix(".json"), TokenStore(tmp_path).split("train")
    write_table(path, {**read_table(path), "keys": "0" * 64})
    for read in (lambda: list(whole_samples([TokenColumn(split, "m")])), lambda: TokenSummary.of(split, "m")):
        with pytest.raises(DataError, match=r"shard-00000: .*sample keys"):
            read()
    write_table(path, {**read_table(path), "rows": 3, "count": 3, "record": {**read_table(path)["record"]}})
    with pytest.raises(DataError, match=r"count or size|other samples"):
        TokenColumn(split, "m").take([0])


@pytest.mark.parametrize(("layout", "data", "tokens", "reason"), [
    ("grid", np.array([-1] * 24, "<i4").tobytes(), 24, "has ids -1"),
    ("grid", np.array([99999] * 24, "<i4").tobytes(), 24, "has ids 99999"),
    ("grid", bytes(4 * 23), 23, "another size than its samples"),
    ("sequence", np.array([6, 0, 0, 0] + [3] * 6, "<u4").tobytes(), 6, "longer sequences"),
    ("sequence", np.array([1, 0, 0, 0], "<u4").tobytes(), 1, "numbers of no sample"),
    ("sequence", bytes(15), 0, "another size than its samples"),
    ("patches", np.full(48, np.nan, "<f4").tobytes(), 16, "not finite"),
    ("embeddings", np.array([1, 0, 0, 0], "<u4").tobytes() + np.full(2, np.inf, "<f2").tobytes(), 1, "not finite"),
])  # fmt: skip
def test_foreign_tokens_have_to_fit_the_layout(
    tmp_path: Path, layout: str, data: bytes, tokens: int, reason: str
) -> None:
    """A stranger's shard has a right checksum."""
    make_store(tmp_path, LAYOUTS[layout])
    first_shard(tmp_path).write_bytes(data)
    other_block(tmp_path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), tokens=tokens)
    with pytest.raises(DataError, match=reason):
        TokenStore(tmp_path).open("train", "m").take([0])


def test_unknown_names_are_reported(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    store = TokenStore(tmp_path)
    assert (store.splits(), store.modalities("train"), store.data) == (["train"], ["m"], None)
    with pytest.raises(DataError, match=r"unknown modality .*'c'; known: m"):
        store.open("train", "c")
    with pytest.raises(DataError, match="'test'; splits here: train"):
        store.open("test", "m")
    with pytest.raises(DataError, match="no such folder; `zoo tokenize"):
        TokenStore(tmp_path / "absent")
    for damaged in ("[]", "{}"):
        (tmp_path / STORE).write_text(damaged)
        with pytest.raises(DataError, match=r"store.json: damaged"):
            TokenStore(tmp_path)


def test_the_digest_covers_keys_and_tokens(tmp_path: Path) -> None:
    all_digests = set()
    for number, (layout, absent) in enumerate([("grid", ()), ("grid", (1,)), ("vector", ())]):
        make_store(tmp_path / str(number), LAYOUTS[layout], absent=absent)
        column = TokenStore(tmp_path / str(number)).open("train", "m")
        digests = [samples_digest({"m": column}, keys) for keys in (None, ["k0é"], ["k1é"])]
        assert digests == [samples_digest({"m": column}, keys) for keys in (None, ["k0é"], ["k1é"])]
        all_digests.update(digests)
    assert len(all_digests) == 9


def handle_of(tmp_path: Path, layout: TokenLayout, fingerprint: str = "f" * 64, ids: int = 70000, **config: Any) -> Any:
    """Return a stand-in for a modality handle with the attributes that token checks use."""
    folder = tmp_path / "tokenizer"
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, {}, {"class": "C", **config}, "")
    continuous = isinstance(layout, PatchesLayout | EmbeddingsLayout)
    spec: Any = SimpleNamespace(layout=layout, vocab_size=ids, continuous=continuous)
    files = TokenizerFiles(spec=spec, checkpoint=folder, origin=Origin())
    handle = SimpleNamespace(name="m", fingerprint=fingerprint, checkpoint=folder, files=files, spec=spec)
    for method in ("can_read", "check_tokens_of"):
        setattr(handle, method, functools.partial(getattr(ModalityHandle, method), handle))
    return handle


def test_another_tokenizer_is_refused_and_a_grown_vocabulary_is_not(tmp_path: Path) -> None:
    layout = LAYOUTS["vector"]
    make_store(tmp_path / "tokens", layout)
    column = TokenStore(tmp_path / "tokens").open("train", "m")
    id_count = column.summary.needed_vocab_size
    for ids in (70000, 10**6):
        column.check_tokenizer(handle_of(tmp_path, layout, ids=ids))
    lineage = [{"fingerprint": "f" * 64, "length": id_count}]
    column.check_tokenizer(handle_of(tmp_path, layout, "e" * 64, lineage=lineage))
    shorter = [{"fingerprint": "f" * 64, "length": id_count - 1}]
    cases: list[tuple[type[DataError], TokenLayout, dict[str, Any]]] = [
        (OtherTokenizerError, layout, {"fingerprint": "e" * 64}),
        (OtherTokenizerError, layout, {"fingerprint": "e" * 64, "lineage": shorter}),
        (OtherLayoutError, VectorLayout(length=5), {}),
        (DataError, layout, {"ids": 5}),
    ]
    for error, other_layout, changes in cases:
        with pytest.raises(error, match="train/m: "):
            column.check_tokenizer(handle_of(tmp_path, other_layout, **changes))


# ---------------------------------------------------------------------- the file of one value


def token_file(path: Path, tokens: Any, fingerprint: Any = "f" * 64) -> Path:
    write_table(path, {"modality": "m", "fingerprint": fingerprint, "tokens": tokens})
    return path


@pytest.mark.parametrize("tokens", [["1", "2"], [True, 1], [[1, 2], [3]], [1.5, 2], [2**63]])
def test_a_token_file_has_to_hold_numbers(tmp_path: Path, tokens: Any) -> None:
    with pytest.raises(DataError, match=r"a.json: tokens: expected"):
        read_tokens(handle_of(tmp_path, LAYOUTS["vector"]), token_file(tmp_path / "a.json", tokens))


def test_a_token_file_round_trips(tmp_path: Path) -> None:
    ids, numbers = handle_of(tmp_path, LAYOUTS["vector"]), handle_of(tmp_path, LAYOUTS["patches"])
    tokens = read_tokens(ids, token_file(tmp_path / "a.json", [1, 2, 3, 4]))
    assert tokens.dtype == np.int64 and tokens.tolist() == [1, 2, 3, 4]
    tokens = read_tokens(numbers, token_file(tmp_path / "a.json", 4 * [[1, 2.5, 3]]))
    assert tokens.dtype == np.float32 and tokens.tolist() == 4 * [[1, 2.5, 3]]
    assert read_tokens(handle_of(tmp_path, LAYOUTS["sequence"]), token_file(tmp_path / "a.json", [])).size == 0
    with pytest.raises(DataError, match=r"a.json: m: expected .*shape"):
        read_tokens(ids, token_file(tmp_path / "a.json", [1, 2]))
    with pytest.raises(DataError, match=r"a.json: damaged: fingerprint: expected str, got int 12"):
        read_tokens(ids, token_file(tmp_path / "a.json", [1], 12))
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"a.json: .*zoo encode"):
        read_tokens(ids, tmp_path / "a.json")
