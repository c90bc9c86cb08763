"""The token store: what is written comes back by key, and what does not fit is refused."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS, TokenizerFiles
from tokenizers_zoo.config import Origin
from tokenizers_zoo.data.store_record import RECORD, StoreRecord
from tokenizers_zoo.data.token_file import read_tokens
from tokenizers_zoo.data.token_part import TokenMetadata, read_part, write_part
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, samples_digest
from tokenizers_zoo.errors import CheckpointError, DataError, OtherLayoutError, OtherTokenizerError, ReadError
from tokenizers_zoo.registry import ModalityHandle
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)

LAYOUTS: dict[str, TokenLayout] = {
    "grid": GridLayout(shape=(2, 3)),
    "vector": VectorLayout(length=4),
    "sequence": SequenceLayout(max_length=5, end=0, sentinel_start=1, num_sentinels=2),
    "patches": PatchesLayout(shape=(2, 2), dim=3, dtype="float32"),
    "embeddings": EmbeddingsLayout(max_length=4, dim=2),
}


def metadata(layout: TokenLayout, **changes: Any) -> TokenMetadata:
    continuous = isinstance(layout, PatchesLayout | EmbeddingsLayout)
    fields: dict[str, Any] = {
        "modality": "m", "vocabulary": "v", "vocab_size": 0 if continuous else 70000, "layout": layout,
        "fingerprint": "f" * 64, "distribution": "zoo-m 1.0", "run": {"data": "d", "crops": 1},
    }  # fmt: skip
    return TokenMetadata(**{**fields, **changes})


def random_rows(layout: TokenLayout, count: int, rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    rows: list[np.ndarray[Any, Any]] = []
    for _ in range(count):
        if isinstance(layout, GridLayout):
            rows.append(rng.integers(0, 70000, layout.shape))
        elif isinstance(layout, VectorLayout):
            rows.append(rng.integers(0, 70000, layout.length))
        elif isinstance(layout, SequenceLayout):
            rows.append(rng.integers(3, 70000, rng.integers(0, layout.max_length + 1)))
        elif isinstance(layout, PatchesLayout):
            rows.append(rng.normal(size=(layout.length, layout.dim)).astype(np.float32))
        else:
            size = (int(rng.integers(0, layout.max_length + 1)), layout.dim)
            rows.append(rng.normal(size=size).astype(np.float16).astype(np.float32))
    return rows


def write_store(root: Path, layout: TokenLayout, parts: list[int], **changes: Any) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    rows: list[np.ndarray[Any, Any]] = []
    for number, count in enumerate(parts):
        new = random_rows(layout, count, rng)
        keys = [f"k{len(rows) + i}" for i in range(count)]
        write_part(
            root / f"train/m/part-{number:05}.arrow", metadata(layout, **changes), keys, new, {f"x{number}": "no"}
        )
        rows += new
    return rows


@pytest.mark.parametrize("kind", LAYOUTS)
def test_tokens_come_back_as_they_were_written(tmp_path: Path, kind: str) -> None:
    layout = LAYOUTS[kind]
    rows = write_store(tmp_path, layout, [5, 0, 4])
    column = TokenStore(tmp_path).open("train", "m")
    assert (len(column), column.layout, column.vocabulary, column.fingerprint) == (9, layout, "v", "f" * 64)
    assert column.keys == [f"k{i}" for i in range(9)]
    assert column.rows["k7"] == 7
    assert column.dropped == {"x0": "no", "x1": "no", "x2": "no"}
    order = [8, 0, 3, 3, 5, 4]
    for again in (column, pickle.loads(pickle.dumps(column))):
        taken = again.take(np.array(order))
        dtype = np.float32 if kind in ("patches", "embeddings") else np.int64
        assert len(taken) == len(order)
        for got, index in zip(taken, order, strict=True):
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, rows[index].reshape(got.shape))
    shapes = {"grid": (6, 2, 3), "vector": (6, 4), "patches": (6, 4, 3)}
    if kind in shapes:
        assert column.take(order).shape == shapes[kind]
    per_row = [row.shape[0] if kind in ("sequence", "embeddings") else layout.length for row in rows]
    assert column.lengths.tolist() == per_row
    ids = [int(row.max()) + 1 for row in rows if row.size]
    assert column.needed_vocab_size == (0 if kind in ("patches", "embeddings") else max(ids))
    with pytest.raises(IndexError):
        column.take([9])


def test_parts_that_were_written_otherwise_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path, LAYOUTS["grid"], [3, 3])
    path = tmp_path / "train/m/part-00001.arrow"
    write_part(path, metadata(LAYOUTS["grid"], fingerprint="e" * 64), ["z"], [np.zeros((2, 3), int)], {})
    with pytest.raises(DataError, match=r"part-00001.*written differently \(fingerprint: f+ and e+\)"):
        TokenStore(tmp_path).open("train", "m")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"part-00001\.arrow: not a sound part.*tokenize again"):
        TokenStore(tmp_path).open("train", "m")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("grid", np.zeros((2, 2), int), "expected 6 tokens, got an array of shape"),
        ("vector", np.full(4, 70000), "ids 70000..70000, expected 0..69999"),
        ("sequence", np.arange(6), "expected up to 5 tokens"),
        ("vector", np.array([0, -1, 2, 3]), "ids -1..3"),
        ("patches", np.full((4, 3), np.nan, np.float32), "not finite"),
        ("embeddings", np.full((1, 2), 1e6, np.float32), "not finite as float16"),
        ("embeddings", np.zeros((1, 3), np.float32), "expected up to 4 tokens of 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, kind: str, row: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_part(tmp_path / "p.arrow", metadata(LAYOUTS[kind]), ["k"], [row], {})
    assert not list(tmp_path.iterdir())


def codec(
    tmp_path: Path, layout: TokenLayout, fingerprint: str = "f" * 64, vocab_size: int = 70000, **config: Any
) -> Any:
    """What check_codec needs of a handle."""
    folder = tmp_path / "codec"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"class": "C", **config}))
    (folder / WEIGHTS).touch()
    spec: Any = SimpleNamespace(layout=layout, vocab_size=vocab_size)
    files = TokenizerFiles(spec=spec, checkpoint=folder, origin=Origin())
    handle = SimpleNamespace(name="m", fingerprint=fingerprint, checkpoint=folder, files=files, spec=spec)
    for method in ("speaks", "check_tokens_of"):
        setattr(handle, method, functools.partial(getattr(ModalityHandle, method), handle))
    return handle


def test_another_codec_is_refused_and_a_grown_vocabulary_is_not(tmp_path: Path) -> None:
    write_store(tmp_path, LAYOUTS["vector"], [3])
    column = TokenStore(tmp_path).open("train", "m")
    layout, needed = LAYOUTS["vector"], column.needed_vocab_size
    column.check_codec(codec(tmp_path, layout))
    column.check_codec(codec(tmp_path, layout, vocab_size=10**6))
    with pytest.raises(OtherTokenizerError, match=r"by tokenizer ffffffffffff, the tokenizer in .*codec is eeeeeeee"):
        column.check_codec(codec(tmp_path, layout, "e" * 64))
    lineage = [{"fingerprint": "f" * 64, "length": needed}]
    column.check_codec(codec(tmp_path, layout, "e" * 64, lineage=lineage))
    with pytest.raises(OtherTokenizerError):
        shorter = [{"fingerprint": "f" * 64, "length": needed - 1}]
        column.check_codec(codec(tmp_path, layout, "e" * 64, lineage=shorter))
    with pytest.raises(DataError, match="ids of m below 5"):
        column.check_codec(codec(tmp_path, layout, vocab_size=5))
    with pytest.raises(OtherLayoutError):
        column.check_codec(codec(tmp_path, VectorLayout(length=5)))


def test_columns_are_aligned_by_key(tmp_path: Path) -> None:
    for name, keys in (("a", ["p", "q", "r"]), ("b", ["r", "p", "s"])):
        rows = [np.full(4, ord(key)) for key in keys]
        write_part(tmp_path / f"train/{name}/part-00000.arrow", metadata(LAYOUTS["vector"]), keys, rows, {})
    store = TokenStore(tmp_path)
    assert store.modalities("train") == ["a", "b"] and store.splits() == ["train"]
    columns = {name: store.open("train", name) for name in ("a", "b")}
    aligned = store.align(columns)
    assert aligned.keys == ["p", "q", "r", "s"]
    assert aligned.rows.tolist() == [[0, 1], [1, -1], [2, 0], [-1, 2]]
    assert aligned.complete.tolist() == [True, False, True, False]
    both = aligned.rows[aligned.complete]
    np.testing.assert_array_equal(columns["a"].take(both[:, 0]), columns["b"].take(both[:, 1]))
    with pytest.raises(DataError, match=r"unknown modality .*'c'; known: a, b"):
        store.open("train", "c")
    with pytest.raises(DataError, match="no tokens of a split 'test'; splits here: train"):
        store.open("test", "a")
    with pytest.raises(DataError, match="no such folder; `zoo tokenize"):
        TokenStore(tmp_path / "absent")


def test_alignment_is_that_of_the_slow_way_and_keeps_keys_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, parts in (("a", (6, 0, 9)), ("b", (8,)), ("c", (0,))):
        for number, count in enumerate(parts):
            keys = [f"k{key:02}" for key in rng.choice(20, count, replace=False)]
            layout = VectorLayout(length=4)
            part = tmp_path / f"train/{name}/part-{number:05}.arrow"
            write_part(part, metadata(layout, modality=name), keys, random_rows(layout, count, rng), {})
    store = TokenStore(tmp_path)
    columns = {name: store.open("train", name) for name in "abc"}
    aligned = store.align(columns)
    assert not any("keys" in vars(column) for column in columns.values())
    slow: dict[str, list[int]] = {}
    for position, column in enumerate(columns.values()):
        for row, key in enumerate(column.keys):
            slow.setdefault(key, [-1, -1, -1])[position] = row
    assert aligned.keys == list(slow) and aligned.rows.tolist() == list(slow.values())
    assert store.align({}).rows.shape == (0, 0)


def test_the_digest_of_samples_is_that_of_the_slow_way_and_keeps_no_keys(tmp_path: Path) -> None:
    """That of recorded indexes, evaluations and probes, whatever the layout, parts and order; b and c lack samples."""
    rng = np.random.default_rng(0)
    layouts = [LAYOUTS["sequence"], LAYOUTS["grid"], LAYOUTS["embeddings"], LAYOUTS["patches"], LAYOUTS["vector"]]
    for name, layout, parts in zip("abcde", layouts, ((6, 0, 9), (8,), (0,), (3, 2), (20,)), strict=True):
        for number, count in enumerate(parts):
            keys = [f"k{key:02}é" for key in rng.choice(20, count, replace=False)]
            part = tmp_path / f"train/{name}/part-{number:05}.arrow"
            write_part(part, metadata(layout, modality=name), keys, random_rows(layout, count, rng), {})
    store = TokenStore(tmp_path)
    for names in ("abcde", "edcba", "bc", "a", "c", ""):
        columns = {name: store.open("train", name) for name in names}
        for only in (None, ["k07é", "k03é", "k11é", "absent"], []):
            found = samples_digest(columns, only)
            assert not any({"keys", "rows"} & set(vars(column)) for column in columns.values())
            assert found == slow_digest({name: store.open("train", name) for name in names}, only)
    assert samples_digest({"e": store.open("train", "e")}, ["k03é"]) != samples_digest(
        {"e": store.open("train", "e")}, ["k07é"]
    )


def slow_digest(columns: dict[str, TokenColumn], only: list[str] | None) -> str:
    """As it was first written."""
    keys = sorted({key for column in columns.values() for key in column.rows} if only is None else only)
    digest = hashlib.sha256(json.dumps(keys).encode())
    for name in sorted(columns):
        column = columns[name]
        rows = np.array([column.rows.get(key, -1) for key in keys], np.int64)
        digest.update(np.packbits(rows >= 0).tobytes())
        rows = rows[rows >= 0]
        if len(rows):
            digest.update(column.lengths[rows].tobytes())
            digest.update(np.concatenate(list(column.take(rows))).tobytes())
    return digest.hexdigest()


def test_a_part_is_one_batch_that_is_mapped_not_copied(tmp_path: Path) -> None:
    write_store(tmp_path, LAYOUTS["grid"], [4])
    part, batch = read_part(tmp_path / "train/m/part-00000.arrow")
    assert batch.num_rows == 4 and str(batch.schema.field("tokens").type) == "fixed_size_list<item: int32>[6]"
    assert part.metadata == metadata(LAYOUTS["grid"])
    column = TokenColumn([part.path])
    assert not column._columns[0][0].flags.owndata and not column._columns[0][0].flags.writeable


def test_where_the_values_are(tmp_path: Path) -> None:
    assert TokenStore(tmp_path).data is None
    StoreRecord().and_of(tmp_path / "data", {}, []).write(tmp_path)
    assert TokenStore(tmp_path).data == tmp_path / "data"
    tables = ('{"samples": null}', '{"rows": [1]}', '{"rows": {"train": 3}}')
    for damaged in ("{}", "[]", "{", *(f'{{"data": "data", {table[1:]}' for table in tables)):
        (tmp_path / RECORD).write_text(damaged)
        with pytest.raises(CheckpointError, match=r"store.json: .*delete it"):
            _ = TokenStore(tmp_path).data


# ---------------------------------------------------------------------- the file of one value


def token_file(path: Path, tokens: Any, fingerprint: Any = "f" * 64) -> Path:
    path.write_text(json.dumps({"modality": "m", "fingerprint": fingerprint, "tokens": tokens}))
    return path


def handle_of(*, continuous: bool) -> Any:
    spec = SimpleNamespace(continuous=continuous)
    return SimpleNamespace(
        name="m",
        fingerprint="f" * 64,
        checkpoint=Path("tokenizers/m"),
        spec=spec,
        speaks=lambda codec: codec == "f" * 64,
    )


NO_NUMBERS = ("abc", None, 3, {"a": 1}, ["1", "2"], [True, 1], [[1, 2], [3]], [1, [2]], [None])


@pytest.mark.parametrize("tokens", [*NO_NUMBERS, [1.5, 2], [10**30], [float("nan")]])
def test_a_token_file_holds_whole_numbers(tmp_path: Path, tokens: Any) -> None:
    with pytest.raises(DataError, match=r"a.json: tokens: expected lists of ids, got .*; encode again$"):
        read_tokens(handle_of(continuous=False), token_file(tmp_path / "a.json", tokens))


@pytest.mark.parametrize("tokens", [*NO_NUMBERS, [10**400]])
def test_a_token_file_of_a_continuous_layout_holds_numbers(tmp_path: Path, tokens: Any) -> None:
    with pytest.raises(DataError, match=r"a.json: tokens: expected lists of numbers, got .*; encode again$"):
        read_tokens(handle_of(continuous=True), token_file(tmp_path / "a.json", tokens))


@pytest.mark.parametrize(
    ("depth", "words"), [(600, "tokens: expected lists of ids"), (50_000, "expected the JSON that")]
)
def test_a_token_file_that_is_nested_too_deeply_is_told_in_one_line(tmp_path: Path, depth: int, words: str) -> None:
    file = token_file(tmp_path / "a.json", [])
    file.write_text(file.read_text().replace("[]", "[" * depth + "]" * depth))
    with pytest.raises(DataError, match=rf"a.json: {words}"):
        read_tokens(handle_of(continuous=False), file)


def test_a_token_file_comes_back(tmp_path: Path) -> None:
    ids = read_tokens(handle_of(continuous=False), token_file(tmp_path / "a.json", [[1, 2], [3, 4]]))
    assert ids.dtype == np.int64 and ids.tolist() == [[1, 2], [3, 4]]
    numbers = read_tokens(handle_of(continuous=True), token_file(tmp_path / "a.json", [[1, 2.5]]))
    assert numbers.dtype == np.float32 and numbers.tolist() == [[1, 2.5]]
    assert read_tokens(handle_of(continuous=False), token_file(tmp_path / "a.json", [])).size == 0
    with pytest.raises(DataError, match=r"a.json: fingerprint: expected text, got int 12; encode again"):
        read_tokens(handle_of(continuous=False), token_file(tmp_path / "a.json", [1], 12))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EMFILE, "cannot be read: Too many open files; run the same command again"),
        (errno.EACCES, "cannot be read: Permission denied; run the same command again"),
        (errno.EIO, "cannot be read: Input/output error; run the same command again"),
        (errno.ENOMEM, r"cannot be mapped: the limit of mappings .*\(sysctl vm\.max_map_count\)"),
    ],
)
def test_a_part_that_the_system_does_not_open_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    write_store(tmp_path, LAYOUTS["grid"], [3])
    path = tmp_path / "train/m/part-00000.arrow"

    def refused(name: str, mode: str) -> None:
        raise OSError(code, f"Failed to open local file '{name}'")

    with monkeypatch.context() as patched:
        patched.setattr("pyarrow.memory_map", refused)
        with pytest.raises(ReadError, match=rf"part-00000\.arrow: {said}") as error:
            TokenStore(tmp_path).open("train", "m")
    assert "delete" not in str(error.value)
    assert len(read_part(path)[1]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_part_without_room_to_map_it_is_not_damaged(tmp_path: Path) -> None:
    """Of a failed mapping Arrow gives no number."""
    small, large = tmp_path / "small.arrow", tmp_path / "large.arrow"
    write_part(small, metadata(LAYOUTS["grid"]), [], [], {})
    large.touch()
    os.truncate(large, 2**30)
    script = f"""
import resource
from pathlib import Path
from tokenizers_zoo.data.token_part import read_part
read_part(Path({str(small)!r}))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
read_part(Path({str(large)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "ReadError" in ended.stderr and "sysctl vm.max_map_count" in ended.stderr


def test_columns_that_are_open_are_not_mapped_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path, LAYOUTS["grid"], [3])
    StoreRecord.note(tmp_path, tmp_path, {}, [("train", "m", 5)])
    store = TokenStore(tmp_path)
    column = store.open("train", "m")
    monkeypatch.setattr("tokenizers_zoo.data.tokens.read_part", None)
    with pytest.raises(DataError, match="holds 4 of 5 samples"):
        store.check_whole("train", ["m"], {"m": column})
