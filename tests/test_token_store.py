"""The token store: tokens are read back by row, and files that contradict their manifests are refused."""

from __future__ import annotations

import builtins
import errno
import functools
import gc
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from token_stores import plain_metadata, write_tokens

from tokenizers_zoo.checkpoint import save_checkpoint
from tokenizers_zoo.config import Origin
from tokenizers_zoo.data import token_shard
from tokenizers_zoo.data.manifest import verify
from tokenizers_zoo.data.token_shard import write_token_shard
from tokenizers_zoo.data.tokens import STORE, TokenColumn, TokenStore, read_tokens, samples_digest, whole_samples
from tokenizers_zoo.errors import DataError, OtherLayoutError, OtherTokenizerError, ReadError
from tokenizers_zoo.io import file_digest, read_table, write_table
from tokenizers_zoo.layouts import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
from tokenizers_zoo.registry import ModalityHandle
from tokenizers_zoo.tokenizer_files import TokenizerFiles

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
    return root / "train/m/shard-00000.arrow"


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
        assert column.longest == max(len(row) for row in rows)
    ids = [int(row.max()) + 1 for row in rows if row.size and dtype == np.int64]
    assert column.needed_vocab_size == max(ids, default=0)
    with pytest.raises(IndexError):
        column.take([9 * crops])
    assert not list(verify(TokenStore(tmp_path).split("train")))


def test_files_are_arrow_with_small_ids(tmp_path: Path) -> None:
    tokens = make_store(tmp_path, LAYOUTS["grid"], absent=(1,), ids=1000)
    with pa.OSFile(str(first_shard(tmp_path)), "rb") as source:
        column = pa.ipc.open_file(source).read_all().column("tokens")
    assert str(column.type) == "fixed_size_list<item: uint16>[6]"
    expected = [tokens[key].ravel().tolist() if key in tokens else None for key in ("k0é", "k1é", "k2é", "k3é")]
    assert column.to_pylist() == expected


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


def others_present(root: Path) -> None:
    table = read_table(first_shard(root).with_suffix(".json"))
    write_table(first_shard(root).with_suffix(".json"), {**table, "count": 3})
    other_manifest(root, present="e0")


DAMAGES = (
    lambda root: os.truncate(first_shard(root), first_shard(root).stat().st_size - 8),
    lambda root: first_shard(root).unlink(),
    lambda root: other_manifest(root, needed_vocab_size=5),
    others_present,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: Any) -> None:
    make_store(tmp_path, LAYOUTS["sequence"])
    damage(tmp_path)
    column = TokenStore(tmp_path).open("train", "m")
    with pytest.raises(DataError, match=r"shard-00000\.arrow"):
        column.take([0])
    assert len(column.take([8])) == 1, "other shards are read"


def test_the_number_of_open_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, LAYOUTS["sequence"], count=200)
    expected = TokenStore(tmp_path).open("train", "m").take(range(200))
    token_shard._open_cached.cache_clear()
    monkeypatch.setattr(token_shard, "_open_cached", functools.lru_cache(7)(token_shard.ShardFile.open))
    column = TokenStore(tmp_path).open("train", "m")

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 200, 300)
        return all(np.array_equal(tokens, expected[row]) for tokens, row in zip(column.take(rows), rows, strict=True))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, range(4)))
    assert results == [True] * 4
    gc.collect()
    if (files := Path("/proc/self/fd")).is_dir():
        assert sum(str(tmp_path) in os.path.realpath(file) for file in files.iterdir()) == 7


@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_truncating_an_open_file_is_an_error(tmp_path: Path, layout: str) -> None:
    make_store(tmp_path, LAYOUTS[layout])
    column = TokenStore(tmp_path).open("train", "m")
    column.take([0])
    os.truncate(first_shard(tmp_path), 8)
    with pytest.raises(ReadError, match=r"shard-00000\.arrow: was cut off"):
        column.take(range(8))


def test_a_shard_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    column = TokenStore(tmp_path).open("train", "m")

    def failing_open(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", failing_open)
        with pytest.raises(ReadError, match=r"shard-00000\.arrow: cannot be read"):
            column.take([0])
    assert len(column.take([0])) == 1


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_flipped_bit_is_never_read(tmp_path: Path, kind: str) -> None:
    """Wherever it is: most of them would give other tokens without a word."""
    make_store(tmp_path, LAYOUTS[kind])
    path = first_shard(tmp_path).with_suffix(".arrow")
    content = path.read_bytes()
    for offset in random.Random(0).sample(range(len(content)), 40):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(DataError, match="size or checksum"):
            TokenStore(tmp_path).open("train", "m").take([0])
    path.write_bytes(content)
    assert len(TokenStore(tmp_path).open("train", "m").take([0])) == 1


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    store = TokenStore(tmp_path)
    (tmp_path / "train/m/shard-00001.json").unlink()
    with pytest.raises(DataError, match=r"train/m: has 2 of 3 shards"):
        store.open("train", "m")


def test_shards_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path, LAYOUTS["grid"])
    folder, split = tmp_path / "train/m", TokenStore(tmp_path).split("train")
    metadata = plain_metadata(LAYOUTS["grid"], fingerprint="e" * 64)
    write_token_shard(folder, 1, metadata, [[np.zeros((2, 3), int)]] * 4, keys=split.keys_digest(1))
    with pytest.raises(DataError, match=r"shard-00001: .*another tokenizer"):
        TokenColumn(split, "m")


def test_shards_of_other_samples_and_odd_levels_are_refused(tmp_path: Path) -> None:
    """A stranger's manifest has a right checksum."""
    make_store(tmp_path, LAYOUTS["patches"])
    path = first_shard(tmp_path).with_suffix(".json")
    table, split = read_table(path), TokenStore(tmp_path).split("train")
    for levels in ([[3, 1e39, 1.0]], [[2, 0.0, 1.0]], [[10**12, 0.0, 1.0]], [[4, 0.0, 1.0], [-1, 0.0, 1.0]]):
        writer = {**table["record"]["writer"], "levels": levels}
        write_table(path, {**table, "record": {**table["record"], "writer": writer}})
        for shard in (1, 2):
            manifest = read_table(path.with_name(f"shard-{shard:05}.json"))
            write_table(
                path.with_name(f"shard-{shard:05}.json"),
                {**manifest, "record": {**manifest["record"], "writer": writer}},
            )
        with pytest.raises(DataError, match="damaged"):
            TokenColumn(split, "m")
    write_table(path, {**table, "keys": "0" * 64})
    with pytest.raises(DataError, match=r"shard-00000: .*sample keys"):
        TokenColumn(split, "m")


def arrow_file(table: pa.Table, **options: Any) -> bytes:
    with pa.BufferOutputStream() as stream:
        with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)
        return bytes(stream.getvalue())


def with_tokens(change: Callable[[list[Any]], None]) -> Callable[[pa.Table], bytes]:
    """Return a change of the file that changes its rows in place."""

    def changed(table: pa.Table) -> bytes:
        rows = table["tokens"].to_pylist()
        change(rows)
        return arrow_file(pa.table({"tokens": pa.array(rows, table["tokens"].type)}))

    return changed


def set_first(row: list[Any], value: Any) -> None:
    row[0] = value


def late_beginning(table: pa.Table) -> bytes:
    """Let the first sequence begin one token late; pyarrow itself does not write this."""
    offsets = np.cumsum([0, *map(len, table["tokens"].to_pylist())]).astype(np.int32)
    content, old_offsets = arrow_file(table), offsets.tobytes()
    assert content.count(old_offsets) == 1 and offsets[1] > 1
    return content.replace(old_offsets, np.int32(1).tobytes() + old_offsets[4:])


@pytest.mark.parametrize(("layout", "change", "reason"), [
    ("grid", with_tokens(lambda rows: set_first(rows[0], None)), "tokens without a number"),
    ("grid", with_tokens(lambda rows: set_first(rows[0], -1)), "it has ids -1"),
    ("grid", with_tokens(lambda rows: set_first(rows[0], max(map(max, rows)) + 1)), "it has ids"),
    ("grid", with_tokens(lambda rows: set_first(rows, None)), "rows are not those of its manifest"),
    ("sequence", with_tokens(lambda rows: rows[0].extend([5] * 5)), "longer sequence than its layout"),
    ("sequence", late_beginning, "tokens of no row"),
    ("patches", with_tokens(lambda rows: set_first(rows[0], float("nan"))), "not finite"),
    ("embeddings", with_tokens(lambda rows: set_first(rows[1][0], np.float16("inf"))), "not finite"),
])  # fmt: skip
def test_foreign_tokens_have_to_fit_the_layout(
    tmp_path: Path, layout: str, change: Callable[[pa.Table], bytes], reason: str
) -> None:
    make_store(tmp_path, LAYOUTS[layout])
    check_refused(tmp_path, change, reason)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda table: arrow_file(table.append_column("more", table["tokens"])), "other columns"),
    (lambda table: arrow_file(table, compression="zstd"), "compressed"),
    (lambda table: arrow_file(table, metadata_version=pa.ipc.MetadataVersion.V4), "compressed"),
    (lambda table: b"ARROW1" + bytes(100) + b"ARROW1", "it has no rows"),
    (lambda table: arrow_file(table)[8:], "not a sound shard"),
])  # fmt: skip
def test_other_arrow_files_are_refused(tmp_path: Path, change: Callable[[pa.Table], bytes], reason: str) -> None:
    """A stranger's shard has a right checksum, and may become large."""
    make_store(tmp_path, LAYOUTS["grid"])
    check_refused(tmp_path, change, reason)


def check_refused(root: Path, change: Callable[[pa.Table], bytes], reason: str) -> None:
    """Change the first shard, with a right checksum, and read it."""
    path = first_shard(root)
    path.write_bytes(change(pa.ipc.open_file(path.read_bytes()).read_all()))
    manifest = read_table(path.with_suffix(".json"))
    manifest["files"]["arrow"] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    write_table(path.with_suffix(".json"), manifest)
    with pytest.raises(DataError, match=reason):
        TokenStore(root).open("train", "m").take([0])


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
    id_count = column.needed_vocab_size
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
