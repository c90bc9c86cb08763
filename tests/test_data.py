"""Value shards and their manifests, foreign tar files, the folder source, and the order of training samples."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import write_tar, write_values

from tokenizers_zoo.contract.file_samples import FileSamples
from tokenizers_zoo.contract.source import FileBytes, ModalityNames
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, MachineError, PluginError, ReadError
from tokenizers_zoo.files.tar import Dropped, Member, read_member, scan_tar
from tokenizers_zoo.records.config import load_toml
from tokenizers_zoo.records.io import (
    disk_problem,
    file_digest,
    open_regular,
    read_json,
    read_regular,
    read_table,
    write_table,
)
from tokenizers_zoo.records.limits import Limits
from tokenizers_zoo.stores import shards as shards_module
from tokenizers_zoo.stores.folder import FolderSettings, open_folder
from tokenizers_zoo.stores.manifest import (
    Dataset,
    FileRecord,
    Split,
    SplitRecord,
    ValueManifest,
    inputs_digest,
    manifest_path,
    read_manifest,
    remove_shard,
    shard_name,
    shards_of,
    sound_manifest,
    verify,
    write_manifest,
)
from tokenizers_zoo.stores.shards import LazyValues, Location, ValueStore, writing_shard
from tokenizers_zoo.train.batches import permuted

BLOCK = 512


def named(*names: str) -> ModalityNames:
    """Folder names that are modalities' own."""
    return ModalityNames(by_name={name: name for name in names})


def scan(path: Path) -> tuple[dict[str, Member], list[Dropped]]:
    """Return the members of a tar file by key, and its unusable parts."""
    members: dict[str, Member] = {}
    dropped: list[Dropped] = []
    for item in scan_tar(path):
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            members[item[0]] = item[1]
    return members, dropped


# ---------------------------------------------------------------------- foreign tar files


def test_a_tar_of_any_format_is_read(tmp_path: Path) -> None:
    values = {"a": b"1", "b/c": b"", "z" * 150: b"x" * 1500, "caf\xe9" * 40: b"y", "p" * 90 + "/" + "q" * 90: b"z"}
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format) as tar:
            for key, data in values.items():
                info = tarfile.TarInfo(f"{key}.bin")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        members, dropped = scan(path)
        assert {key: read_member(member) for key, member in members.items()} == values and not dropped
        os.utime(path, ns=(1, 1))
        with pytest.raises(ReadError, match="changed since it was listed"):
            read_member(members["a"])


@pytest.fixture(scope="module")
def tar_of_six(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar file of six members of 600 bytes: each takes a header and two blocks."""
    return write_tar(
        tmp_path_factory.mktemp("six") / "s.tar", {f"{i}.bin": bytes([i]) * 600 for i in range(6)}
    ).read_bytes()


def of_size(tar_of_six: bytes, size: bytes) -> bytes:
    """Return the tar file with another size of the first member, with a checksum that is right."""
    block = bytearray(tar_of_six[:BLOCK])
    block[124:136], block[148:156] = size, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + tar_of_six[BLOCK:]


THIRD = 2 * 3 * BLOCK
"""Start of the third member."""
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "a byte of a header": (lambda tar: tar[: THIRD + 110] + b"\xff" + tar[THIRD + 111 :], "01345", "damaged header"),
    "a header of zeros": (lambda tar: tar[:THIRD] + bytes(BLOCK) + tar[THIRD + BLOCK :], "01345", "header: zeros"),
    "too large a size": (lambda tar: of_size(tar, b"77777777777\0"), "12345", ""),
    "a negative size": (lambda tar: of_size(tar, b"\xff" * 12), "12345", ""),
    "cut off in a header": (lambda tar: tar[: THIRD + 100], "01", "end mark"),
    "cut off in a value": (lambda tar: tar[: THIRD + BLOCK + 599], "01", "cut off"),
    "cut off after a value": (lambda tar: tar[: THIRD + BLOCK + 700], "012", "end mark"),
}
"""A change of the tar file of six members, the keys that are left, and a reason."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_loses_only_its_members_and_is_reported(tar_of_six: bytes, tmp_path: Path, damage: str) -> None:
    change, keys, reason = DAMAGES[damage]
    (tmp_path / "s.tar").write_bytes(change(tar_of_six))
    members, dropped = scan(tmp_path / "s.tar")
    assert list(members) == list(keys)
    assert all(read_member(member) == bytes([int(key)]) * 600 for key, member in members.items())
    assert len(dropped) == 1 and reason in dropped[0].reason
    assert "header" not in reason or f"byte {THIRD}" in dropped[0].reason


@pytest.mark.parametrize(("size", "count", "reason"), [(1 << 15, 1, "digits"), (0, 1500, "recursion")])
def test_extended_headers_of_digits_and_in_a_row_are_damage(tmp_path: Path, size: int, count: int, reason: str) -> None:
    """tarfile's search is quadratic in a number's digits, and it reads headers in a row by recursion."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, size
    (tmp_path / "s.tar").write_bytes((header.tobuf() + b"1" * size) * count + bytes(2 * BLOCK))
    with pytest.raises(DataError, match=rf"no usable member .*{reason}"):
        scan(tmp_path / "s.tar")


def test_a_name_of_two_mebibytes_is_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.bin", "b" * (2 << 20), "c.bin"):
            tar.addfile(tarfile.TarInfo(name))
    members, dropped = scan(tmp_path / "s.tar")
    assert {"a", "c"} <= set(members) and max(map(len, members)) < BLOCK
    assert any("extended header" in part.reason for part in dropped)


@pytest.fixture(scope="module")
def tar_of_three(tar_of_six: bytes) -> bytes:
    """The first three members, without an end mark."""
    return tar_of_six[: 9 * BLOCK]


@given(st.dictionaries(st.integers(0, 9 * BLOCK - 1), st.integers(0, 255), min_size=1, max_size=8))
def test_scan_never_fails_or_reads_out_of_bounds(
    tar_of_three: bytes, tmp_path_factory: Any, changes: dict[int, int]
) -> None:
    content = bytearray(tar_of_three)
    for offset, byte in changes.items():
        content[offset] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    path.write_bytes(content)
    try:
        members, _ = scan(path)
    except DataError:
        return
    for member in members.values():
        assert 0 <= member.offset <= member.offset + member.size <= len(content)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" * 1000, b"x"])
def test_file_that_is_no_tar_is_named_in_the_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar: no usable member"):
        scan(tmp_path / "s.tar")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(path := tmp_path / "pipe.tar")
    for read in (open_regular, read_regular, read_json, file_digest, load_toml, lambda path: list(scan_tar(path))):
        with pytest.raises(ReadError, match=r"pipe\.tar: expected a regular file"):
            read(path)


LINKS = {"l.x": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE, "g.x": tarfile.GNUTYPE_SPARSE}
OUTSIDE = ("../../b.x", "/b.x", "a/../../b.x", "a//b.x", "a/./b.x", "a\\b.x")
"""Two keys must not be the same path either, because a sample's results are written under its key."""


@pytest.mark.parametrize(
    ("names", "keys", "skipped", "reason"),
    [
        (["a.x", ".z", *LINKS], ["a"], [".z", "l", "g"], ""),
        *(([name, "./a/b.x"], ["a/b"], [name.removesuffix(".x")], f"{name!r}") for name in OUTSIDE),
        ([b"caf\xe9.x", "caf\xe9.x", b".\xff", "a\x1b[2J.x"], ["caf\xe9"], [r"caf\xe9", r".\xff", r"a\x1b[2J"], ""),
    ],
)
def test_links_and_members_with_unusable_names_are_skipped(
    tmp_path: Path, names: list[str | bytes], keys: list[str], skipped: list[str], reason: str
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(os.fsdecode(name))
            info.type, info.linkname = LINKS.get(info.name, tarfile.REGTYPE), "a.x"
            tar.addfile(info)
    members, dropped = scan(tmp_path / "s.tar")
    assert list(members) == keys and [item.key for item in dropped] == skipped
    assert not reason or (reason in dropped[0].reason and "no backslash" in dropped[0].reason)


# ---------------------------------------------------------------------- value store


def write(folder: Path, values: dict[str, bytes | None], **finish: Any) -> None:
    """Write shard 0 of a folder; None is an absent value."""
    with writing_shard(folder, 0) as writer:
        for key, data in values.items():
            if data is None:
                writer.skip()
            else:
                writer.add(key, data, "bin")
        writer.finish(**{"keys": "k", "inputs": "i", "record": {}, **finish})


def test_an_error_of_memory_is_not_reported_as_a_full_disk() -> None:
    message = "depth: encode ran out of memory: a file of cache (os error 28)"
    assert disk_problem(MachineError(message)) is None and "the disk is full" in str(disk_problem(PluginError(message)))


def test_written_shards_are_deterministic_and_standard_tar_files(tmp_path: Path) -> None:
    values = {"a": b"1", "b/c": b"", "none": None, "z" * 150: b"x" * 1500}
    for folder in ("one", "two"):
        write(tmp_path / folder, values)
    names = ["shard-00000.index", "shard-00000.json", "shard-00000.tar"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with tarfile.open(tmp_path / "one/shard-00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert [member.mtime + member.uid + member.gid for member in tar] == [0, 0, 0]
    assert members == {f"{key}.bin": data for key, data in values.items() if data is not None}


@pytest.mark.parametrize("key", ["a.b", "/a", "a//b", "../a", "", ".a", "a\\b", "./a", "a\nb"])
def test_keys_that_do_not_round_trip_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=r"key .*no backslash"), writing_shard(tmp_path, 0) as writer:
        writer.add(key, b"", "bin")


def test_failed_or_unfinished_writer_keeps_the_old_shard(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"old"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), writing_shard(tmp_path, 0) as writer:
        writer.add("a", b"new", "bin")
        raise KeyboardInterrupt
    with pytest.raises(TypeError), writing_shard(tmp_path, 0) as writer:
        writer.add("a", b"new", "bin")  # and no `finish`
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def store(tmp_path: Path) -> ValueStore:
    """Eight samples in shards of three; `two` lacks some."""
    one_samples = {f"{i:04}": (f"one {i}".encode(), "txt") for i in range(8)}
    two_samples = {f"{i:04}": (f"two {i}".encode(), "txt") for i in (7, 6, 5, 3, 1, 0)}
    write_values(tmp_path / "data", "train", {"one": one_samples, "two": two_samples}, shard_size=3)
    return ValueStore(tmp_path / "data")


def text_handle(name: str) -> Any:
    """The part of a handle that a ValueStore uses."""
    return SimpleNamespace(
        name=name,
        limits=Limits(),
        read=lambda data, extension: f"{data.decode()} ({extension})",
        transform=lambda value, crop, trusted: value,
    )


def test_values_are_read_by_shard_and_row_and_by_key(store: ValueStore) -> None:
    assert (store.splits(), store.modalities("train")) == (["train"], ["one", "two"])
    rows = store.rows("train", ["one", "two"])
    keys = ["0000", "0001", "0003", "0005", "0006", "0007"]
    assert len(rows) == 6 and list(rows.keys()) == keys == store.keys("train", "one", "two")
    assert list(rows) == rows[:] == [Location(*at) for at in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 1))]
    assert [rows.key(rows[number]) for number in range(-1, 5)] == ["0007", *keys[:-1]]
    for name in ("one", "two"):
        for row in rows:
            expected = f"{name} {int(rows.key(row))} (txt)"
            assert store.read(text_handle(name), "train", *row) == expected
            assert store.read_key(text_handle(name), "train", rows.key(row)) == expected
    assert store.present("train", "two", 0).tolist() == [True, True, False]
    assert store.find("train", "0005") == Location(1, 2)
    with pytest.raises(IndexError):
        rows[6]


def test_store_errors_list_existing_names(store: ValueStore) -> None:
    root = store.root
    (root.parent / "empty").mkdir()
    for act, message in (
        (lambda: store.modalities("valid"), "'valid'; .*train"),
        (lambda: store.rows("train", ["on"]), "'on'; did you mean one.*zoo data derive"),
        (lambda: store.read_key(text_handle("two"), "train", "0002"), "'0002'"),
        (lambda: store.find("train", "0009"), "'0009'"),
        (lambda: ValueStore(root / "absent"), "absent.*zoo data make"),
        (lambda: ValueStore(root / "train"), f"{root}$"),
        (lambda: ValueStore(root.parent / "empty"), "empty.*zoo data make"),
    ):
        with pytest.raises(DataError, match=message):
            act()


def test_shards_with_other_keys_or_without_a_manifest_are_ignored(store: ValueStore) -> None:
    (store.root / "train/two/shard-00000.json").unlink()
    assert store.keys("train", "two") == ["0003", "0005", "0006", "0007"]
    store.split("train").write_keys(1, ["a", "b", "c"])
    reopened = ValueStore(store.root)
    assert reopened.keys("train", "two") == ["0006", "0007"]
    with pytest.raises(DataError, match="not written to its end"):
        reopened.read_bytes("train", "two", 0, 0)
    (store.root / "train/one/shard-00002.tar").unlink()
    with pytest.raises(ReadError, match=r"shard-00002\.tar"):
        reopened.read_bytes("train", "one", 2, 0)


def test_number_of_open_files_does_not_grow_with_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"k{i}": (f"{i}".encode(), "txt") for i in range(60)}
    write_values(tmp_path / "many", "train", {"one": values}, shard_size=1)
    monkeypatch.setattr(shards_module, "OPEN_SHARDS", 4)
    many_shards = ValueStore(tmp_path / "many")
    before = len(os.listdir("/proc/self/fd"))

    def read(numbers: Any) -> list[bool]:
        return [many_shards.read_bytes("train", "one", int(i), 0)[0] == f"{i}".encode() for i in numbers]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, [np.random.default_rng(i).permutation(60) for i in range(4)]))
    assert results == [[True] * 60] * 4 and len(os.listdir("/proc/self/fd")) <= before + 4


def test_value_returned_in_several_reads_is_complete(store: ValueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read call returns less than 2 GiB."""
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read(file, min(size, 3), offset))
    assert store.read_bytes("train", "one", 1, 1) == (b"one 4", "txt")
    monkeypatch.setattr(os, "pread", lambda file, size, offset: b"")
    with pytest.raises(DataError, match="was cut off"):
        store.read_bytes("train", "one", 1, 1)


def test_lazy_values_are_cached_while_they_fit_and_skip_unreadable_values() -> None:
    reads: list[str] = []

    def read(key: str) -> Any:
        reads.append(key)
        if key == "c":
            raise InvalidValueError("broken")
        return np.full(1000, ord(key), np.float32)

    values = LazyValues(list("abcd"), read, cache_bytes=9000)
    with pytest.raises(InvalidValueError, match="broken"):
        list(values)
    assert values[3][0] == 100
    assert reads == list("abcd")
    assert values[-1][0] == 100 and [value[0] for value in values[:2]] == [97, 98]
    assert reads == [*"abcd", "d"]  # two fit in 9,000 bytes
    with pytest.raises(IndexError):
        values[4]


# ---------------------------------------------------------------------- folder source


def touch(root: Path, *names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def opened(root: Path, split: str = "train", names: ModalityNames | None = None) -> FileSamples:
    return open_folder(FolderSettings(path=str(root), test_fraction=0), split, None, names=names)


@pytest.fixture
def ml4m(tmp_path: Path) -> Path:
    """A folder as ml-4m users have it: other shard names, unequal shard lists, keys in another order, some missing."""
    root = tmp_path / "data"
    write_tar(root / "train/one/000000.tar", {f"{i:04}.txt": f"one {i}".encode() for i in range(4)})
    write_tar(root / "train/one/000001.tar", {f"{i:04}.txt": f"one {i}".encode() for i in range(4, 8)})
    write_tar(root / "train/two@224/all.tar", {f"./{i:04}.txt": f"two {i}".encode() for i in (7, 6, 5, 3, 1, 0, 9)})
    (root / "train/one/notes.md").write_text("no value")
    (root / "train/one/._000000.tar").write_bytes(b"Mac OS X")
    (root / "train/empty").mkdir()
    return root


def test_samples_keep_their_split_when_files_are_added(tmp_path: Path) -> None:
    for i in range(200):
        for modality, extension in (("one", "txt"), ("two", "json")):
            path = tmp_path / modality / f"k{i}.{extension}"
            path.parent.mkdir(exist_ok=True)
            if modality == "one" or i % 2:
                path.write_text(f"{i}")
    config = FolderSettings(path=str(tmp_path), test_fraction=0.2)
    train, test = (open_folder(config, split, None) for split in ("train", "test"))
    sides = {split: {key for key, _ in samples} for split, samples in (("train", train), ("test", test))}
    assert len(sides["train"]) + len(sides["test"]) == 200 and not sides["train"] & sides["test"]
    assert 20 <= len(sides["test"]) <= 60
    assert train.modalities == ("one", "two")
    samples = dict(train[:])
    key = sorted(sides["train"] & {f"k{i}" for i in range(1, 200, 2)})[0]
    assert samples[key]["two"] == FileBytes(data=key[1:].encode(), extension="json")
    (tmp_path / "one/added.txt").write_text("more")
    assert {key for key, _ in open_folder(config, "test", None)} - {"added"} == sides["test"]
    assert [key for key, _ in open_folder(config, "train", 3)] == [key for key, _ in train[:3]]
    with pytest.raises(DataError, match="1000"):
        open_folder(config, "train", 1000)


def test_existing_splits_and_shards_are_kept(tmp_path: Path, ml4m: Path) -> None:
    touch(tmp_path / "own", "train/one/sub/a.txt", "test/one/sub/a.txt", "test/.thumbnails/b.txt")
    file = FileBytes(data=b"test/one/sub/a.txt", extension="txt")
    assert opened(tmp_path / "own", "test")[:] == [("sub/a", {"one": file})]
    shards = opened(ml4m)
    assert shards.modalities == ("one", "two@224")
    assert dict(shards[:])["0009"] == {"two@224": FileBytes(data=b"two 9", extension="txt")}


def test_a_split_below_the_modalities_is_kept(tmp_path: Path) -> None:
    touch(
        tmp_path, "one/train/a.txt", "one/train/north/b.txt", "one/test/c.txt", "one/val/d.txt", "one/e.txt",
        "two/train/a.txt", "two/train/f.txt", "three/test/c.txt", "scripts/run.py",
    )  # fmt: skip
    mine = named("one", "two", "three")
    train, test = (opened(tmp_path, split, mine) for split in ("train", "test"))
    assert [(key, set(files)) for key, files in train] == [("a", {"one", "two"}), ("f", {"two"}), ("north/b", {"one"})]
    assert [(key, set(files)) for key, files in test] == [("c", {"one", "three"})]
    assert train[0][1]["one"] == FileBytes(data=b"one/train/a.txt", extension="txt")
    assert set(train.offered) >= set(mine.by_name) and train.modalities == ("one", "scripts", "two")


def test_files_tars_and_aliases_may_be_mixed(ml4m: Path) -> None:
    touch(ml4m / "train", "three/0001.txt")
    aliased = opened(ml4m, names=ModalityNames(by_name={"two@224": "two", "one": "one", "three": "three"}))
    assert set(dict(aliased[:])["0001"]) == {"one", "two", "three"}
    by_name = {"one": "two@224", "two@224": "two@224"}  # an alias, and its own name
    aliased = opened(ml4m, names=ModalityNames(by_name=by_name))
    assert aliased[0][1]["two@224"] == FileBytes(data=b"two 0", extension="txt")


def test_missing_tars_and_splits_are_named(tmp_path: Path, ml4m: Path) -> None:
    (ml4m / "train/one/late.tar").symlink_to("gone.tar")
    with pytest.raises(ReadError, match=r"late\.tar"):
        opened(ml4m, names=named("one"))
    write_tar(tmp_path / "valid/valid/one/a.tar", {})
    with pytest.raises(DataError, match=r"no split 'train'.*valid"):
        opened(tmp_path / "valid", names=named("one"))


def test_unrelated_files_are_ignored(tmp_path: Path) -> None:
    names = ("a.tif", "a.tif.aux.xml", "a.TFW", "b.tif", ".b.tif", ".ipynb_checkpoints/a-checkpoint.tif", "README")
    touch(tmp_path / "one", *names, "end\x1bof\nlines.tif")
    samples = opened(tmp_path)
    assert [key for key, _ in samples] == ["a", "b"]
    count, first = samples.dropped["one"]
    assert count == 1 and r"end\x1bof\x0alines: a key has no backslash, no control character" in first


def test_links_out_of_the_folder_need_follow_links(tmp_path: Path) -> None:
    touch(tmp_path, "mine/one/a.txt", "mine/one/in/b.txt", "mine/two/c.txt", "far/d.txt", "far/e.txt")
    write_tar(tmp_path / "far/t.tar", {"f.txt": b"f"})
    (tmp_path / "mine/unknown").symlink_to(tmp_path / "far")  # no modality's: never read
    (tmp_path / "mine/one/c.txt").symlink_to(tmp_path / "mine/two/c.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    names = named("one", "two")
    expected = {"a", "in/b", "c"}
    for root in (tmp_path / "mine", tmp_path / "linked"):
        assert set(dict(opened(root, names=names)[:])) == expected
    for link, target, keys in (
        ("one/d.txt", "far/d.txt", {"d"}), ("one/in/day", "far", {"in/day/d", "in/day/e"}),
        ("two/t.tar", "far/t.tar", {"f"}),
    ):  # fmt: skip
        (path := tmp_path / "mine" / link).symlink_to(tmp_path / target)
        with pytest.raises(DataError, match=f"{link}: a link .*--follow-links"):
            opened(tmp_path / "mine", names=names)
        config = FolderSettings(path=str(tmp_path / "mine"), test_fraction=0, follow_links=True)
        samples = dict(open_folder(config, "train", None, names=names)[:])
        assert keys <= set(samples)
        path.unlink()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/one").symlink_to(tmp_path / "far")
    touch(tmp_path, "loose/a.txt")
    (tmp_path / "loose/b.txt").symlink_to(tmp_path / "far/d.txt")
    loose = ModalityNames(by_name={"one": "one"}, by_extension={"txt": "one"})
    for folder, modalities, link in (("whole", names, "whole/one"), ("loose", loose, r"b\.txt")):
        with pytest.raises(DataError, match=rf"{link}.*: a link"):
            opened(tmp_path / folder, names=modalities)


def test_links_to_folders_are_followed_without_loops(tmp_path: Path) -> None:
    touch(tmp_path, "mine/one/a.txt", "mine/one/in/b.txt", "far/c.txt", "mine/two/d.txt")
    for link, target in (
        ("mine/one/day1", "far"), ("mine/one/day2", "far"), ("far/back", "mine/one"), ("mine/one/in/up", "mine"),
        ("mine/one/gone", "nowhere"),
    ):  # fmt: skip
        (tmp_path / link).symlink_to(tmp_path / target)
    config = FolderSettings(path=str(tmp_path / "mine"), test_fraction=0, follow_links=True)
    samples = dict(open_folder(config, "train", None)[:])
    assert sorted(key for key in samples if "one" in samples[key]) == ["a", "day1/c", "day2/c", "in/b"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "one/a.txt", "two/a.txt", "two/b.txt")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name == "two":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(ReadError, match=f"^{tmp_path}/two: .*Permission denied"):
        opened(tmp_path)


def test_samples_are_those_of_known_modalities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "mine/notes/a.txt", "mine/one/c.txt", "mine/one/d.txt")
    samples = open_folder(FolderSettings(path="~/mine", test_fraction=0), "train", 1, names=named("one"))
    assert [key for key, _ in samples] == ["c"] and samples.modalities == ("notes", "one")


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        opened(tmp_path / "absent")
    with pytest.raises(DataError, match="one folder per modality"):
        opened(tmp_path)
    touch(tmp_path, "one/a.txt", "one/a.b.txt")
    with pytest.raises(DataError, match="key 'a'"):
        opened(tmp_path)
    (tmp_path / "one/a.b.txt").unlink()
    samples = opened(tmp_path)
    (tmp_path / "one/a.txt").unlink()
    (key, files) = samples[0]
    assert key == "a" and isinstance(files["one"], ReadError)
    (tmp_path / "one" / os.fsdecode(b"caf\xe9.txt")).write_text("")
    with pytest.raises(DataError, match=r"one: .*caf\\xe9.txt .*UTF-8"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="test_fraction"):
        FolderSettings(path="", test_fraction=1.0)


# ---------------------------------------------------------------------- manifests, and the order of samples


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
            ValueManifest(
                rows=rows, count=rows, keys=digest, inputs=f"in{shard}", files=files, dropped={0: "gone"}, record={}
            ),
        )
    Dataset(splits={"train": SplitRecord(samples=samples, shard_size=shard_size)}).write(root)
    return split


def test_a_split_locates_its_samples_and_reads_its_keys(tmp_path: Path) -> None:
    split = a_split(tmp_path)
    assert (split.shards, [split.rows(shard) for shard in range(3)]) == (3, [3, 3, 1])
    assert split.locate(5) == (1, 2)
    assert split.key(6) == "a/6"
    assert [split.find("a/4"), split.find("a/44"), split.find("a/")] == [4, None, None]
    assert split.modalities() == ["rgb"]
    for name in ("shard-3.json", "shard-000004.json", "shard-x.json"):
        (split.folder / "rgb" / name).touch()
    assert shards_of(split.folder / "rgb") == [0, 1, 2]
    with pytest.raises(IndexError):
        split.locate(7)


def test_manifests_are_read_back_and_mark_finished_shards(tmp_path: Path) -> None:
    folder = a_split(tmp_path).folder / "rgb"
    manifest = read_manifest(folder, 1, ValueManifest)
    assert manifest is not None and manifest.dropped == {0: "gone"} and manifest.files["tar"].size == 2

    assert sound_manifest(folder, 1, ValueManifest) == manifest
    (folder / shard_name(1, "tar")).write_bytes(b"cut off")
    assert sound_manifest(folder, 1, ValueManifest) is None
    remove_shard(folder, 1)
    assert read_manifest(folder, 1, ValueManifest) is None and not (folder / shard_name(1, "tar")).exists()


@pytest.mark.parametrize("change", [
    {"rows": -1, "count": -1}, {"count": 9}, {"dropped": {"x": "y"}}, {"record": {"value": {"shape": 1}}},
    {"files": {"tar": {"size": 1}}}, {"files": {"../x": {"size": 1, "sha256": ""}}}, {"dropped": {"3": "late"}},
])  # fmt: skip
def test_a_damaged_manifest_is_an_error_and_not_finished(tmp_path: Path, change: dict[str, object]) -> None:
    folder = a_split(tmp_path).folder / "rgb"
    path = manifest_path(folder, 0)
    write_table(path, read_table(path) | change)
    with pytest.raises(DataError, match="damaged"):
        read_manifest(folder, 0, ValueManifest)
    assert sound_manifest(folder, 0, ValueManifest) is None


@pytest.mark.parametrize("splits", [{"../x": {"samples": 1, "shard_size": 1}}, {"a": {"samples": 0, "shard_size": 0}}])
def test_an_impossible_split_is_an_error(tmp_path: Path, splits: dict[str, object]) -> None:
    write_table(tmp_path / "dataset.json", {"splits": splits})
    with pytest.raises(DataError, match=f"^{tmp_path}"):
        for name, record in Dataset.read(tmp_path).splits.items():
            record.open(tmp_path, name)


def test_the_inputs_digest_depends_on_every_part_and_on_no_order() -> None:
    first = inputs_digest(seed=1, settings={"a": 1, "b": Path("x")})
    assert first == inputs_digest(settings={"b": Path("x"), "a": 1}, seed=1)
    assert len({first, inputs_digest(seed=2, settings={"a": 1, "b": "x"}), inputs_digest(seed=1, settings={})}) == 3


def test_verify_finds_each_kind_of_damage(tmp_path: Path) -> None:
    split = a_split(tmp_path, samples=12)
    folder = split.folder / "rgb"
    manifest_path(folder, 0).with_name("shard-3.json").write_text("a user's file")
    assert not list(verify(split))
    (folder / shard_name(0, "tar")).write_bytes(b"y")
    (folder / shard_name(1, "tar")).unlink()
    split.write_keys(2, ["p", "q", "r"])
    manifest_path(folder, 3).write_text("{")
    damage_by_shard = {wrong.number: wrong.reason for wrong in verify(split)}
    for shard, word in enumerate(("checksum", "missing", "keys", "damaged")):
        assert word in damage_by_shard[shard]


def test_duplicate_keys_are_found(tmp_path: Path) -> None:
    split = a_split(tmp_path, samples=9)
    for shard, keys in {0: ["a", "b", "a"], 1: ["c", "d", "e"], 2: ["f", "g", "d"]}.items():
        digest = split.write_keys(shard, keys)
        table = read_table(path := manifest_path(split.folder / "rgb", shard))
        write_table(path, {**table, "keys": digest})
    assert {wrong.number for wrong in verify(split) if wrong.modality == "keys" and "twice" in wrong.reason} == {0, 2}
    with pytest.raises(DataError, match="key 'a' twice"):
        split.keys(0)
    assert split.keys(2) == ("f", "g", "d")


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
    counts = Counter(int(permuted([3], n, seed)[0]) for seed in range(keys))
    expected = keys / n
    chi_squared = sum((counts[position] - expected) ** 2 / expected for position in range(n))
    assert chi_squared < 33.7  # 9 degrees of freedom, p = 1e-4
    order = permuted(np.arange(100_000), 100_000, 7)
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    with pytest.raises(ValueError, match="positions"):
        permuted([100], 100, 7)
