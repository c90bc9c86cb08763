"""Damaged and strange files for every reader: it has to give a value or an error of ours in one line, in bounded time
and memory.

FUZZ is the number of inputs for each modality; each kind of our own files gets a tenth of it. `make fuzz` sets it, and
`make test` runs a short form for modalities.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_world import the_world
from hostile import Edit, edited
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from test_limits import at_most

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import InvalidValueError, OneLineError, ZooError
from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.files.tar import Dropped, read_member, scan_tar
from tokenizers_zoo.records.io import read_lines, table_text
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, read_tokens
from tokenizers_zoo.testing.probe import STUMBLES, File
from tokenizers_zoo.testing.probes import probed_files
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.use.retrieval.index import TOGETHER, Index

FUZZ, SEED = int(os.environ.get("FUZZ", "10")), int(os.environ.get("FUZZ_SEED", "0"))
SECONDS, BYTES = 5, 1 << 30
"""Bounds of processor time, and of memory beyond what the process has."""
ZOO = Zoo.installed()
BY_NAME = sorted(ZOO)
COUNTS: dict[str, Counter[str]] = {}
"""Outcomes by reader."""

numbers = st.builds(
    lambda form, number: struct.pack(form, number % 2 ** (8 * struct.calcsize(form))),
    st.sampled_from(["<B", "<H", ">H", "<I", ">I", "<Q", ">Q"]),
    st.sampled_from([0, 1, 2, 127, 255, 10_000, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, -1, -2]),
)
texts = st.sampled_from(
    [b"[", b"{", b'"', b"\\", b",", b"-", b"NaN", b"1e999", b"9" * 5000, b"null", b"\0", b"\xff", b"\xed\xa0\x80",
     b"../", b"\x1b[2J", b"[" * 5000, b"\n\n", b"=", b".5.", "\u202e".encode()]
)  # fmt: skip
edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "replace", "replace", "insert", "cut", "drop", "repeat"]),
        st.floats(0, 1, exclude_max=True) | st.floats(0, 0.02),
        numbers | texts | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=2,
)
odd = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, -1, 2**70, 1.5, "", "a", "../x", "\ud800", [], {}])
    | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
quiet = settings(
    database=None, deadline=None, print_blob=False,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip


def changed(table: Any, steps: list[int], value: Any) -> Any:
    """Return a JSON value with one of its parts, at the end of `steps`, replaced."""
    items: list[Any] = (
        list(table) if isinstance(table, dict) else list(range(len(table))) if table and isinstance(table, list) else []
    )
    if not steps or not items:
        return value
    chosen_key = items[steps[0] % len(items)]
    inner = changed(table[chosen_key], steps[1:], value)
    if isinstance(table, list):
        return [inner if index == chosen_key else item for index, item in enumerate(table)]
    return {key: inner if key == chosen_key else item for key, item in table.items()}


@contextlib.contextmanager
def bounded(reader: str, allowed: type[OneLineError]) -> Iterator[None]:
    """Count the outcome of a read; fail for another error than `allowed`, and for much time."""
    began, count = time.process_time(), COUNTS.setdefault(reader, Counter())
    try:
        yield
        count["read"] += 1
    except allowed as error:
        count["refused"] += 1
        assert "\n" not in str(error), str(error)
        assert len(str(error)) < 2000, str(error)
        assert not isinstance(error.__cause__, (*STUMBLES, MemoryError)), f"{error.__cause__!r}: {error}"
    spent = time.process_time() - began
    count["slowest, ms"] = max(count["slowest, ms"], int(1000 * spent))
    assert spent < SECONDS, spent


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """Print the counts, if asked for."""
    yield
    if "FUZZ" in os.environ:
        total: Counter[str] = Counter()
        for reader, count in sorted(COUNTS.items()):
            print(f"{reader:24}", ", ".join(f"{outcome} {number:,}" for outcome, number in sorted(count.items())))
            total += count
        print(f"{total['read'] + total['refused']:,} inputs: {total['read']:,} read, {total['refused']:,} refused")


@cache
def seeds(name: str) -> Mapping[str, File]:
    """Return valid and nearly valid files of a modality by description."""
    handle = ZOO[name]
    files = {description: File(*file) for description, file in handle.example_files().items()}
    with contextlib.suppress(ZooError):
        files |= {f"{kind} {probe.description}": probe.file for kind, probe in probed_files(handle).probes}
    return files or {"text": File(b"a", "txt"), "list": File(b'[{"a": 1}]', "json")}


@pytest.mark.parametrize("name", BY_NAME)
def test_any_file_of_a_modality_is_read_or_refused(name: str) -> None:
    handle, files = ZOO[name], seeds(name)
    endings = sorted({file.extension for file in files.values()})

    @seed(SEED)
    @settings(quiet, max_examples=FUZZ)
    @given(
        st.sampled_from(sorted(files)), edits, st.none() | st.sampled_from(endings),
        st.lists(st.integers(0, 60), min_size=1, max_size=5), odd,
    )  # fmt: skip
    def check(description: str, changes: list[Edit], new_extension: str | None, steps: list[int], value: Any) -> None:
        data, extension = files[description]
        if extension == "json" and len(changes) == 1:
            data = json.dumps(changed(json.loads(data), steps, value)).encode() if is_json(data) else data
        else:
            data = edited(data, changes)
        with bounded(f"values of {name}", InvalidValueError):
            handle.transform(handle.read(data, new_extension or extension), Crop(), trusted=True)

    with at_most(BYTES):
        check()


def is_json(data: bytes) -> bool:
    """Return whether a file is JSON."""
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def values(root: Path, zoo: Zoo) -> None:
    store = ValueStore(root / "data")
    for name in ("depth", "caption"):
        _ = list(store.values(zoo[name], "test"))


def tokens(root: Path, zoo: Zoo) -> None:
    store = TokenStore(root / "tokens")
    for name in ("depth", "caption", "rgb_patches"):
        column = store.open("test", name)
        column.take(np.arange(len(column)))


def tokenizer(name: str) -> Callable[[Path, Zoo], None]:
    def read(root: Path, zoo: Zoo) -> None:
        zoo[name].forget_tokenizer()
        _ = zoo[name].fingerprint, zoo[name].tokenizer

    return read


def backbone(root: Path, zoo: Zoo) -> None:
    load_model(root / "run")
    read_run(root / "run")


def index(root: Path, zoo: Zoo) -> None:
    opened = Index(root / "index", root / "run")
    for find in (*opened.names, TOGETHER):
        opened.keys_of(find), opened.vectors(find)


def foreign(root: Path, zoo: Zoo) -> None:
    for item in scan_tar(root / "data/test/depth/shard-00000.tar"):
        if not isinstance(item, Dropped):
            read_member(item[1])


def registry(root: Path, zoo: Zoo) -> None:
    opened = Zoo.from_toml(root / "registry.toml")
    _ = opened["depth"], opened["caption"]


READERS: Mapping[str, tuple[str, Callable[[Path, Zoo], Any]]] = {
    "value store": ("data/dataset.json data/test/*.txt data/test/depth/* data/test/caption/*", values),
    "foreign tar": ("data/test/depth/shard-00000.tar", foreign),
    "token store": ("tokens/store.json tokens/test/*.txt tokens/test/*/*", tokens),
    "tokenizer": ("tokenizers/depth/config.json tokenizers/depth/model.safetensors", tokenizer("depth")),
    "vocabulary": ("tokenizers/text/config.json tokenizers/text/model.safetensors", tokenizer("caption")),
    "backbone": ("run/config.json run/model.safetensors run/run.json", backbone),
    "index": ("index/*.json index/*.safetensors", index),
    "metrics": ("run/metrics.jsonl", lambda root, zoo: read_lines(root / "run/metrics.jsonl")),
    "tokens of a file": ("one.json", lambda root, zoo: read_tokens(zoo["depth"], root / "one.json")),
    "registry.toml": ("registry.toml", registry),
}


@cache
def world() -> Path:
    """Return the folder in which the pipeline ran, with an index."""
    finished = the_world().put_back()
    assert finished("retrieve build run --out index").code == 0
    return finished.folder


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_any_file_of_ours_is_read_or_refused(reader: str) -> None:
    """Also records of odd types whose checksum is right."""
    root = world()
    patterns, read = READERS[reader]
    paths = [path for pattern in patterns.split() for path in sorted(root.glob(pattern)) if path.suffix != ".lock"]
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    zoo = Zoo.from_toml(root / "registry.toml")
    read(root, zoo)

    @seed(SEED)
    @settings(quiet, max_examples=max(FUZZ // 10, 10))
    @given(
        st.sampled_from(sorted(contents)),
        edits,
        st.booleans(),
        st.lists(st.integers(0, 60), min_size=1, max_size=5),
        odd,
    )
    def check(path: Path, changes: list[Edit], resign: bool, steps: list[int], value: Any) -> None:
        data = edited(contents[path], changes)
        if path.suffix == ".json" and resign:
            table = json.loads(contents[path])
            table = changed(
                {key: item for key, item in table.items() if key not in ("format", "checksum")}, steps, value
            )
            with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, which no file can hold
                data = table_text(table).encode()
        try:
            path.write_bytes(data)
            with bounded(reader, ZooError):
                read(root, zoo)
        finally:
            path.write_bytes(contents[path])

    with at_most(2 * BYTES):
        check()
