"""Value shards, provenance and the folder source: layouts, alignment by key, damage, and what is refused."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from examples import only

from tokenizers_zoo.data import shards as shards_module
from tokenizers_zoo.data.folder import FileBytes, FolderSettings, open_folder
from tokenizers_zoo.data.made_of import contents
from tokenizers_zoo.data.provenance import DATASET, check_same_source, digest, read_entries, read_entry, record_entry
from tokenizers_zoo.data.shards import LazyValues, ModalityIndex, ValueStore
from tokenizers_zoo.data.tar import read_member, scan_shard, split_name, writing_shard
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, MachineError, PluginError, ReadError
from tokenizers_zoo.io import disk_errors, disk_problem
from tokenizers_zoo.pipeline.results import Outcome

BLOCK = 512


def write_tar(path: Path, members: Mapping[str, bytes], **info: Any) -> Path:
    """A tar as any other program may write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            for key, value in info.items():
                setattr(header, key, value)
            tar.addfile(header, io.BytesIO(data))
    return path


# ---------------------------------------------------------------------- tar shards


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("000001.png", "000001", "png"),
        ("a/b.c.PNG", "a/b", "png"),
        ("./x/y.json", "x/y", "json"),
        ("v1.2/img.npy", "v1.2/img", "npy"),
        ("noext", "noext", ""),
        (".DS_Store", "", "ds_store"),
        ("a/.hidden.png", "", "png"),
    ],
)
def test_key_is_everything_before_the_first_dot_of_the_basename(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)


def test_written_shards_have_the_same_bytes_and_are_read_back(tmp_path: Path) -> None:
    values = {"a": b"1", "b/c": b"", "z" * 150: b"x" * 1500}
    for folder in ("one", "two"):
        with writing_shard(tmp_path / folder / "s.tar") as writer:
            for key, data in values.items():
                writer.add(key, data, "bin")
    assert (tmp_path / "one/s.tar").read_bytes() == (tmp_path / "two/s.tar").read_bytes()
    index = scan_shard(tmp_path / "one/s.tar")
    assert {key: read_member(member) for key, member in index.members.items()} == values
    assert not index.dropped
    with tarfile.open(tmp_path / "one/s.tar") as tar:
        assert [member.mtime + member.uid + member.gid for member in tar] == [0, 0, 0]


@pytest.mark.parametrize("key", ["a.b", "/a", "a//b", "../a", "", ".a", "a\\b", "./a", "a\nb"])
def test_keys_that_would_be_read_back_otherwise_are_refused(tmp_path: Path, key: str) -> None:
    with writing_shard(tmp_path / "s.tar") as writer, pytest.raises(DataError, match=r"key .*no backslash"):
        writer.add(key, b"", "bin")


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing_shard(tmp_path / "s.tar") as writer:
        writer.add("a", b"1", "bin")
        raise KeyboardInterrupt
    with writing_shard(tmp_path / "t.tar") as writer:
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_header_costs_one_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {f"{i}.bin": bytes([i]) * 600 for i in range(6)})
    data = bytearray(path.read_bytes())
    assert len(scan_shard(path).members) == 6
    data[2 * 3 * BLOCK + 110] ^= 0xFF  # the third member's header; each takes a header and two blocks
    path.write_bytes(data)
    index = scan_shard(path)
    assert list(index.members) == ["0", "1", "3", "4", "5"]
    assert read_member(index.members["5"]) == bytes([5]) * 600
    assert [item.shard for item in index.dropped] == ["s.tar"]
    assert "damaged header" in index.dropped[0].reason
    assert f"byte {2 * 3 * BLOCK}" in index.dropped[0].reason


def test_zeros_in_place_of_a_header_are_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {f"{i}.bin": bytes([i]) * 600 for i in range(6)})
    sound = path.read_bytes()
    data = bytearray(sound)
    data[2 * 3 * BLOCK : 2 * 3 * BLOCK + BLOCK] = bytes(BLOCK)
    path.write_bytes(data)
    index = scan_shard(path)
    assert list(index.members) == ["0", "1", "3", "4", "5"]
    assert [item.reason.split(";")[0] for item in index.dropped] == ["zeros in place of a header"]
    path.write_bytes(sound + bytes(40 * BLOCK))  # as much behind the end as somebody likes
    assert len(scan_shard(path).members) == 6 and not scan_shard(path).dropped


@pytest.mark.parametrize(
    ("cut", "members", "reason"),
    [
        (3 * BLOCK * 2, 2, "end mark"),
        (3 * BLOCK * 2 + 100, 2, "damaged header"),
        (3 * BLOCK * 2 + BLOCK, 2, "cut off"),
        (3 * BLOCK * 2 + BLOCK + 599, 2, "cut off"),
        (3 * BLOCK * 2 + BLOCK + 700, 3, "end mark"),
    ],
)
def test_a_truncated_shard_gives_its_whole_members_and_says_so(
    tmp_path: Path, cut: int, members: int, reason: str
) -> None:
    path = write_tar(tmp_path / "s.tar", {f"{i}.bin": bytes([i]) * 600 for i in range(6)})
    path.write_bytes(path.read_bytes()[:cut])
    index = scan_shard(path)
    assert list(index.members) == [str(i) for i in range(members)]
    assert len(index.dropped) == 1
    assert reason in index.dropped[0].reason


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" * 1000, b"x"])
def test_what_is_not_a_tar_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar: not a tar file .* delete it"):
        scan_shard(tmp_path / "s.tar")


def test_a_shard_that_the_system_does_not_open_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "s.tar").symlink_to(tmp_path / "moved.tar")
    with pytest.raises(ReadError, match=r"s\.tar: cannot be read: No such file"):
        scan_shard(tmp_path / "s.tar")


def test_values_of_another_kind_are_refused_with_what_differs(tmp_path: Path) -> None:
    value = {"kind": "array", "shape": [1, 64, 64], "unit": "index", "low": -1.0, "high": 1.0}
    write_tar(tmp_path / "train/ndvi/shard-00000.tar", {"a.bin": b"1"})
    record_entry(tmp_path, "train", "ndvi", {"source": "folder", "value": value})
    check_same_source(tmp_path, "train", "ndvi", {"source": "folder", "value": value})
    said = r"train/ndvi was made with another value \(value\.low was -1\.0, is 0\.0\); give another folder"
    with pytest.raises(DataError, match=said):
        check_same_source(tmp_path, "train", "ndvi", {"source": "folder", "value": {**value, "low": 0.0}})


def test_links_nameless_and_repeated_members_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("a.x", tarfile.REGTYPE), ("a.y", tarfile.REGTYPE), (".z", tarfile.REGTYPE),
                           ("l.x", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.x"
            tar.addfile(info)
    index = scan_shard(path)
    assert list(index.members) == ["a"]
    assert [item.key for item in index.dropped] == ["a", ".z", "l"]
    assert "second member" in index.dropped[0].reason


@pytest.mark.parametrize("name", ["../../b.x", "/b.x", "a/../../b.x", "a//b.x", "a/./b.x", "a\\b.x"])
def test_a_key_that_leads_out_of_a_folder_costs_its_member(tmp_path: Path, name: str) -> None:
    """Or that is another's path: what is made of a sample is written below a folder, under its key."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for member in (name, "./a/b.x"):
            tar.addfile(tarfile.TarInfo(member))
    index = scan_shard(tmp_path / "s.tar")
    assert list(index.members) == ["a/b"]
    assert [item.reason for item in index.dropped] == [
        f"the name {name!r}: a key has no backslash, and no part that is empty, '.' or '..'"
    ]


@pytest.mark.parametrize("character", ["\n", "\x1b", "\x7f", "\x9b"])
def test_a_key_with_a_control_character_costs_its_member_and_is_shown_without(tmp_path: Path, character: str) -> None:
    name, shown = f"a{character}[2J", rf"a\x{ord(character):02x}[2J"
    write_tar(tmp_path / "s.tar", {f"{name}.x": b"", f".{name}": b"", "caf\xe9.x": b""})
    index = scan_shard(tmp_path / "s.tar")
    assert list(index.members) == ["caf\xe9"]
    assert [item.key for item in index.dropped] == [shown, f".{shown}"]
    assert "a key has no control character, such as a line break" in index.dropped[0].reason
    outcome = Outcome(split="train", modality="light")
    outcome.add(0, {name: "refused"})
    for told in (outcome.first_reason, *(item.reason for item in index.dropped)):
        assert character not in told
    assert outcome.first_reason == f"refused (sample {shown})"


def test_a_name_that_is_not_utf8_costs_its_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in (b"caf\xe9.x", "caf\xe9.x".encode(), b".\xff", b"a.\xff"):
            tar.addfile(tarfile.TarInfo(os.fsdecode(name)))
    index = scan_shard(tmp_path / "s.tar")
    assert list(index.members) == ["caf\xe9"]
    assert [item.key for item in index.dropped] == [r"caf\xe9", r".\xff", "a"]
    assert "not UTF-8" in index.dropped[0].reason and "not UTF-8" in index.dropped[2].reason


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"disk is full.*same command"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="odd"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "odd")


# ---------------------------------------------------------------------- value store


@pytest.fixture
def ml4m(tmp_path: Path) -> Path:
    """A folder as ml-4m users have it: other shard names, unequal shard lists, keys in another order, some missing."""
    root = tmp_path / "data"
    write_tar(root / "train/one/000000.tar", {f"{i:04}.txt": f"one {i}".encode() for i in range(4)})
    write_tar(root / "train/one/000001.tar", {f"{i:04}.txt": f"one {i}".encode() for i in range(4, 8)})
    write_tar(root / "train/two@224/all.tar", {f"./{i:04}.txt": f"two {i}".encode() for i in (7, 6, 5, 3, 1, 0, 9)})
    (root / "train/one/notes.txt").write_text("no shard")
    (root / "train/empty").mkdir()
    return root


def text_handle(name: str) -> Any:
    """What a ValueStore needs of a handle."""
    return SimpleNamespace(
        name=name,
        read=lambda data, extension: f"{data.decode()} ({extension})",
        transform=lambda value, crop: value,
    )


def test_a_foreign_folder_is_read_as_it_is_and_aligned_by_key(ml4m: Path) -> None:
    store = ValueStore(ml4m, aliases={"two@224": "two"})
    assert store.splits() == ["train"]
    assert store.modalities("train") == ["one", "two"]
    keys = store.aligned_keys("train", ["one", "two"])
    assert keys == ["0000", "0001", "0003", "0005", "0006", "0007"]
    for key in keys:
        number = int(key)
        assert store.read(text_handle("one"), "train", key) == f"one {number} (txt)"
        assert store.read(text_handle("two"), "train", key) == f"two {number} (txt)"
    assert store.read_bytes("train", "two", "0009") == (b"two 9", "txt")
    assert read_entries(ml4m) == {}


def test_a_modality_that_bears_another_ones_alias_has_its_own_data(
    install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("light", {"name=settings.name,": 'name=settings.name, aliases=("bright", "dark"),'})
    write_tar(tmp_path / "train/dark/000000.tar", {"0000.npy": b""})
    write_tar(tmp_path / "train/bright/000000.tar", {"0000.npy": b""})
    assert ValueStore.of(tmp_path, only()).modalities("train") == ["light"]
    instances = {"a_light": {"plugin": "light"}, "z_light": {"plugin": "light"}}
    assert ValueStore.of(tmp_path, only(modalities=instances)).modalities("train") == ["light"]
    instances["light"] = {"enabled": False}
    assert ValueStore.of(tmp_path, only(modalities=instances)).modalities("train") == ["a_light"]
    install_example("dark")
    assert ValueStore.of(tmp_path, only()).modalities("train") == ["dark", "light"]


def test_a_key_in_two_shards_is_read_from_the_first_and_reported(ml4m: Path) -> None:
    write_tar(ml4m / "train/one/000002.tar", {"0002.txt": b"late"})
    store = ValueStore(ml4m)
    assert store.read_bytes("train", "one", "0002")[0] == b"one 2"
    assert [(item.shard, item.key) for item in store.dropped("train", "one")] == [("000002.tar", "0002")]


def test_errors_of_a_store_say_what_is_there(ml4m: Path) -> None:
    store = ValueStore(ml4m)
    with pytest.raises(DataError, match="no split 'valid'; splits here: train"):
        store.modalities("valid")
    with pytest.raises(DataError, match=r"unknown modality .*'on'; did you mean one.*zoo data derive"):
        store.keys("train", "on")
    with pytest.raises(DataError, match="no value for key '0009'"):
        store.read_bytes("train", "one", "0009")
    with pytest.raises(DataError, match="no such folder; `zoo data make"):
        ValueStore(ml4m / "absent")
    for ask in (ValueStore.splits, lambda store: store.modalities("train")):
        with pytest.raises(DataError, match=f"this is a split, not a data folder; give {ml4m}$"):
            ask(ValueStore(ml4m / "train"))
    with pytest.raises(DataError, match=r"no <split>/<modality>/\*\.tar here; `zoo data make` writes them"):
        ValueStore(ml4m / "train/empty").splits()


@pytest.mark.parametrize("empty", [True, False])
def test_a_shard_that_is_replaced_meanwhile_is_an_error(ml4m: Path, empty: bool) -> None:
    """Also by one of the same size, in which other samples lie in the old places."""
    store, shard = ValueStore(ml4m), ml4m / "train/one/000001.tar"
    values = {key: store.read_bytes("train", "one", key) for key in scan_shard(shard).members}
    size = shard.stat().st_size
    with writing_shard(shard) as writer:
        for key, (data, extension) in reversed(values.items()):
            writer.add(key, data, extension)
    assert shard.stat().st_size == size
    if empty:
        shard.write_bytes(b"")
    with pytest.raises(ReadError, match=r"000001\.tar: was replaced or changed since it was opened"):
        store.read_bytes("train", "one", "0005")


def test_a_value_that_the_system_gives_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read gives less than 2 GiB."""
    values = {"a": os.urandom(1234), "b": b"", "c": os.urandom(100)}
    path = write_tar(tmp_path / "s.tar", {f"{key}.bin": data for key, data in values.items()})
    index, stat, read = scan_shard(path), path.stat(), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read(file, min(size, 100), offset))
    assert {key: read_member(member) for key, member in index.members.items()} == values
    os.truncate(path, index.members["a"].offset + 1000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ReadError, match=r"s\.tar: was replaced or changed since it was opened"):
        read_member(index.members["a"])


def test_lazy_values_are_read_once_while_they_fit_and_leave_out_what_cannot_be_read() -> None:
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
    sound = values.without({"c"})
    assert reads == list("abcd")
    assert [value[0] for value in sound] == [97, 98, 100]
    assert sound[-1][0] == 100 and [value[0] for value in sound[1:]] == [98, 100]
    assert reads == [*"abcd", "d", "d", "d"]  # two fit in 9,000 bytes
    with pytest.raises(IndexError):
        sound[3]


# ---------------------------------------------------------------------- provenance


def test_entries_are_kept_side_by_side_and_damage_is_named(tmp_path: Path) -> None:
    record_entry(tmp_path, "train", "b", {"source": "s", "seed": 1, "count": 5})
    record_entry(tmp_path, "test", "a", {"options": {"x": (1, 2)}})
    record_entry(tmp_path, "train", "a", {"seed": 2})
    record_entry(tmp_path, "train", "a", None)
    assert read_entries(tmp_path) == {
        "test": {"a": {"options": {"x": [1, 2]}}},
        "train": {"b": {"source": "s", "seed": 1, "count": 5}},
    }
    entry = read_entry(tmp_path, "train", "b") or {}
    assert digest(entry) == digest({**entry, "count": 9}) != digest({**entry, "seed": 2})
    for damaged in ("[]", '{"splits": []}', '{"splits": {"train": {"b": 5}}}'):
        (tmp_path / DATASET).write_text(damaged)
        with pytest.raises(DataError, match=f"{DATASET}: damaged: "):
            read_entries(tmp_path)


# ---------------------------------------------------------------------- folder source


def test_folders_are_split_by_their_keys_and_keep_sides_when_files_are_added(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="samples for this split, asked for 1000"):
        open_folder(config, "train", 1000)


def test_split_folders_and_shards_are_read_as_they_are(tmp_path: Path, ml4m: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "own" / split / "one/sub").mkdir(parents=True)
        (tmp_path / "own" / split / "one/sub/a.txt").write_text(split)
    (tmp_path / "own/test/.thumbnails").mkdir()
    (tmp_path / "own/test/.thumbnails/b.txt").write_text("hidden")
    config = FolderSettings(path=str(tmp_path / "own"))
    assert [key for key, _ in open_folder(config, "test", None)[:]] == ["sub/a"]
    assert open_folder(config, "test", None)[0] == ("sub/a", {"one": FileBytes(data=b"test", extension="txt")})
    shards = open_folder(FolderSettings(path=str(ml4m)), "train", None)
    assert shards.modalities == ("one", "two@224")
    assert dict(shards[:])["0009"] == {"two@224": FileBytes(data=b"two 9", extension="txt")}


def test_a_split_below_the_modalities_is_kept(tmp_path: Path) -> None:
    names = (
        "one/train/a.txt", "one/train/north/b.txt", "one/test/c.txt", "one/val/d.txt", "one/e.txt",
        "two/train/a.txt", "two/train/f.txt", "three/test/c.txt", "scripts/run.py",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    config, mine = FolderSettings(path=str(tmp_path)), {"one", "two", "three"}
    train, test = (open_folder(config, split, None, names=mine) for split in ("train", "test"))
    assert [(key, set(files)) for key, files in train] == [("a", {"one", "two"}), ("f", {"two"}), ("north/b", {"one"})]
    assert [(key, set(files)) for key, files in test] == [("c", {"one", "three"})]
    assert train[0][1]["one"] == FileBytes(data=b"one/train/a.txt", extension="txt")
    assert set(train.offered) >= mine and train.modalities == ("one", "two")
    with pytest.raises(DataError, match=r"scripts: expected its files in folders train and test, which .*/one has and"):
        open_folder(config, "train", None)
    for name in ("one/test/c.txt", "three/test/c.txt"):
        (tmp_path / name).unlink()
    whole = open_folder(FolderSettings(path=str(tmp_path), test_fraction=0), "train", None, names=mine)
    keys = ["e", "train/a", "train/f", "train/north/b", "val/d", "run"]
    assert [key for key, _ in whole] == keys, "`train` alone may be a class"


def test_files_and_shards_may_lie_beside_each_other(tmp_path: Path, ml4m: Path) -> None:
    for name in ("three/0001.txt", "four/a.tar/0001.txt", "five/a.tar"):
        (ml4m / "train" / name).parent.mkdir(parents=True)
        (ml4m / "train" / name).write_text("own")
    samples = open_folder(FolderSettings(path=str(ml4m)), "train", None, names={"one", "three"})
    assert set(dict(samples[:])["0001"]) == {"one", "two@224", "three"}
    assert samples.modalities == ("four", "one", "three", "two@224")
    (ml4m / "train/one/late.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(ReadError, match=r"late\.tar: cannot be read: No such file"):
        open_folder(FolderSettings(path=str(ml4m)), "train", None, names={"one"})
    write_tar(tmp_path / "flat/one/north/old.tar", {})
    (tmp_path / "flat/one/a.txt").write_text("own")
    flat = FolderSettings(path=str(tmp_path / "flat"), test_fraction=0)
    assert [key for key, _ in open_folder(flat, "train", None, names={"one"})] == ["a", "north/old"]
    write_tar(tmp_path / "valid/valid/one/a.tar", {})
    with pytest.raises(DataError, match="no split 'train'; splits here: valid"):
        open_folder(FolderSettings(path=str(tmp_path / "valid")), "train", None, names={"one"})


def test_the_home_of_a_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine/one").mkdir(parents=True)
    (tmp_path / "mine/one/a.txt").write_text("")
    assert len(open_folder(FolderSettings(path="~/mine", test_fraction=0), "train", None)) == 1
    with pytest.raises(ConfigError, match="path: ~nobody-here: no such folder"):
        open_folder(FolderSettings(path="~nobody-here"), "train", None)


def test_samples_of_what_is_asked_for_come_first(tmp_path: Path) -> None:
    for name in ("notes/a.txt", "notes/b.txt", "one/c.txt", "one/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    config = FolderSettings(path=str(tmp_path), test_fraction=0)
    assert [key for key, _ in open_folder(config, "train", 1, names={"one"})] == ["c"]
    assert [key for key, _ in open_folder(config, "train", None, names={"one"})] == ["c", "d", "a", "b"]


def test_a_link_to_a_file_that_is_gone_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "one/b.txt").symlink_to("/dev/null")
    ((key, files),) = open_folder(FolderSettings(path=str(tmp_path), test_fraction=0), "train", None)
    assert key == "a" and "a.txt: cannot be read: No such file" in str(files["one"])


def test_what_lies_beside_the_files_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.tif", "a.tif.aux.xml", "a.TFW", "b.tif", ".b.tif", ".ipynb_checkpoints/a-checkpoint.tif", "README"):
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    samples = open_folder(FolderSettings(path=str(tmp_path), test_fraction=0), "train", None)
    assert [key for key, _ in samples[:]] == ["a", "b"]


def test_links_to_folders_are_followed_and_never_round_and_round(tmp_path: Path) -> None:
    one, far = tmp_path / "mine/one", tmp_path / "far"
    for path in (one / "a.txt", one / "in/b.txt", far / "c.txt", tmp_path / "mine/two/d.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.stem)
    for link, target in (
        (one / "day1", far), (one / "day2", far), (far / "back", one), (one / "in/up", tmp_path / "mine"),
        (one / "gone", tmp_path / "nowhere"),
    ):  # fmt: skip
        link.symlink_to(target)
    samples = dict(open_folder(FolderSettings(path=str(tmp_path / "mine"), test_fraction=0), "train", None)[:])
    assert sorted(key for key in samples if "one" in samples[key]) == ["a", "day1/c", "day2/c", "in/b"]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        open_folder(FolderSettings(path=str(tmp_path / "absent")), "train", None)
    with pytest.raises(DataError, match="one folder per modality"):
        open_folder(FolderSettings(path=str(tmp_path)), "train", None)
    (tmp_path / "one").mkdir()
    for name in ("a.txt", "a.b.txt"):
        (tmp_path / "one" / name).write_text("")
    with pytest.raises(DataError, match="second file with the key 'a'"):
        open_folder(FolderSettings(path=str(tmp_path)), "train", None)
    (tmp_path / "one/a.b.txt").unlink()
    samples = open_folder(FolderSettings(path=str(tmp_path), test_fraction=0), "train", None)
    (tmp_path / "one/a.txt").unlink()
    (key, files) = samples[0]
    assert key == "a" and isinstance(files["one"], DataError) and "cannot be read" in str(files["one"])
    (tmp_path / "one" / os.fsdecode(b"caf\xe9.txt")).write_text("")
    with pytest.raises(DataError, match=r"one: the name of caf\\xe9.txt is not UTF-8; rename it"):
        open_folder(FolderSettings(path=str(tmp_path)), "train", None)
    with pytest.raises(ValueError, match="test_fraction"):
        FolderSettings(path="", test_fraction=1.0)


def test_what_needs_the_names_of_shards_alone_reads_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [write_tar(tmp_path / f"train/one/{name}.tar", {f"{name}.txt": b"x"}) for name in "abc"]
    index = ModalityIndex(shards, most=2)
    assert list(index.members) == ["a", "b"]
    monkeypatch.setattr(shards_module, "scan_shard", None)
    store = ValueStore(tmp_path)
    assert store.shards("train", "one") == shards and list(contents(store, "train", "one")) == shards
    with pytest.raises(DataError, match=r"unknown modality in .*'two'"):
        store.shards("train", "two")


def test_a_machine_that_failed_is_no_full_disk() -> None:
    told = "depth: encode ran out of memory: a file of cache (os error 28)"
    assert disk_problem(MachineError(told)) is None
    assert "the disk is full" in str(disk_problem(PluginError(told)))
