"""Making and deriving values with plugins that exist for the tests only: killed, resumed, grown, refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from examples import only
from PIL import Image
from toy_plugins import derived, install_toy, make_toy, scaled, snapshot

from tokenizers_zoo import Zoo, pretrained
from tokenizers_zoo.data import audit as audit_module
from tokenizers_zoo.data import folder as folder_module
from tokenizers_zoo.data.folder import FolderSettings, open_folder
from tokenizers_zoo.data.provenance import (
    READ_WITH,
    digest,
    read_entries,
    read_entry,
    reading_settings,
    record_entry,
)
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import ShardWriter, read_member, scan_shard, writing_shard
from tokenizers_zoo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InvalidValueError,
    MachineError,
    PluginError,
    ReadError,
    ZooError,
    passing,
)
from tokenizers_zoo.pipeline import derive as derive_module
from tokenizers_zoo.pipeline import engines
from tokenizers_zoo.pipeline import make as make_module
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.engines import run_jobs
from tokenizers_zoo.pipeline.info import describe_data
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.tokenizers import training_samples
from tokenizers_zoo.pretrained import PretrainedConfig
from tokenizers_zoo.source_handle import CheckedSamples


@pytest.fixture
def toy(install: Callable[..., Path], install_example: Callable[..., Path], tmp_path: Path) -> Callable[..., Zoo]:
    """Makes zoos of the toy modalities."""
    return install_toy(install, install_example, tmp_path)


def wait_for(condition: Callable[[], Any], deadline: float) -> None:
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def processes_of(session: int) -> list[int]:
    """The processes of a session, by /proc (pid (command) state ppid group session ...)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                found.append(int(path.parent.name))
    return found


# ---------------------------------------------------------------------- make


def test_make_writes_what_is_given_and_enabled_aligned_by_key(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "data"
    result = make_toy(zoo, out)
    counts = {(o.split, o.modality): (o.written, o.failed) for o in result.outcomes}
    assert counts == {
        ("train", "field"): (23, 2), ("train", "words"): (21, 0), ("test", "field"): (5, 0), ("test", "words"): (4, 0),
    }  # fmt: skip
    assert list(result.skipped) == ["other"]
    assert "train/field: 23 written, 2 failed (first: field: expected float32" in result.summary()
    store = ValueStore.of(out, zoo)
    assert [path.name for path in store.index("train", "field").shards] == [f"shard-{i:05}.tar" for i in range(3)]
    keys = store.aligned_keys("train", ["field", "words"])
    assert keys == [f"train-{i:04}" for i in range(25) if i % 10 != 9 and i % 7]
    samples = dict(zoo.source("toy").samples("train", 25, 3)[:])
    for key in keys:
        np.testing.assert_array_equal(store.read(zoo["field"], "train", key), samples[key]["field"])
        assert store.read(zoo["words"], "train", key) == samples[key]["words"]
    failed = json.loads((out / "train/field/shard-00000.failed.jsonl").read_text())
    assert failed["key"] == "train-0009" and "every number has to be finite" in failed["reason"]
    entry = read_entries(out)["train"]["field"]
    assert (entry["source"], entry["seed"], entry["count"], entry["distribution"]) == ("toy", 3, 25, "zoo-toy 1.0")


def test_killed_at_any_sample_the_same_command_gives_the_same_bytes(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "whole")
    whole = snapshot(tmp_path / "whole")
    add = ShardWriter.add
    for stop in (0, 5, 17, 30, 41):
        calls = iter(range(1000))

        def killed(self: ShardWriter, *args: Any, calls: Any = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise KeyboardInterrupt
            add(self, *args)

        monkeypatch.setattr(ShardWriter, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            make_toy(zoo, tmp_path / f"killed{stop}")
        monkeypatch.setattr(ShardWriter, "add", add)
        assert not list(tmp_path.rglob("*.tmp"))
        assert set(snapshot(tmp_path / f"killed{stop}")) < set(whole)
        result = make_toy(zoo, tmp_path / f"killed{stop}")
        assert snapshot(tmp_path / f"killed{stop}") == whole
        assert sum(outcome.kept_shards for outcome in result.outcomes) == {0: 0, 5: 0, 17: 2, 30: 2, 41: 4}[stop]


def test_processes_write_the_same_bytes_and_survive_sigkill(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "one", train=300, shard_size=30)
    script = f"""
import sys
sys.path[:0] = {[p for p in sys.path if str(tmp_path) in p]!r}
from pathlib import Path
from tokenizers_zoo import Zoo
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.tokenizers import training_samples
if __name__ == "__main__":
    zoo = Zoo.from_tables({zoo.tables!r}, Path({str(zoo.path)!r}))
    out = Path({str(tmp_path / "two")!r})
    make_data(zoo, "toy", out, train=300, test=5, seed=3, workers=2, shard_size=30)
"""
    program = tmp_path / "program.py"
    program.write_text(script)
    process = subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    wait_for(lambda: list((tmp_path / "two").rglob("*.tar")) or process.poll() is not None, deadline)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes_of(process.pid), deadline)  # workers end with the process that started them
    subprocess.run([sys.executable, program], check=True, stderr=subprocess.DEVNULL)
    mine, theirs = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert {name for name in theirs if "json" not in name} == {name for name in mine if "json" not in name}
    assert {name: theirs[name] for name in mine} == mine


def test_a_dead_worker_is_told_with_what_may_be_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(ThreadPoolExecutor):
        def __init__(self, workers: int, *_: Any) -> None:
            super().__init__(workers)

        def submit(self, *_: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr(engines, "ProcessPoolExecutor", Dying)
    with pytest.raises(ZooError, match=r'lack of memory.* a script of yours .*`if __name__ == "__main__":`'):
        list(run_jobs(only(), lambda zoo, job: job, [1, 2], 2, lambda count: None))


def test_a_modality_that_is_installed_later_is_added_and_more_samples_too(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    make_toy(toy(enabled=("field",)), tmp_path / "grown", train=13)
    first = snapshot(tmp_path / "grown")
    result = make_toy(toy(), tmp_path / "grown", train=13)
    assert {o.modality: o.written for o in result.outcomes if o.split == "train"} == {"field": 0, "words": 11}
    assert {
        name: data for name, data in snapshot(tmp_path / "grown").items() if name in first and "json" not in name
    } == {name: data for name, data in first.items() if "json" not in name}
    make_toy(toy(), tmp_path / "grown", train=25)
    make_toy(toy(), tmp_path / "whole", train=25)
    assert snapshot(tmp_path / "grown") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "tables", "message"),
    [
        ({"seed": 4}, {}, "train/field was made with seed 3, now asked for 4"),
        ({"options": {"brightness": 0.5}}, {}, r'options \{\}, now asked for \{"brightness": 0.5\}'),
        ({}, {"zoo": {"brightness": 0.5}}, r'options \{\}, now asked for \{"brightness": 0.5\}'),
        ({"options": {"brightness": 0.5}}, {"zoo": {"brightness": 0.1}}, r'asked for \{"brightness": 0.5\}'),
        ({"train": 7}, {}, "made with 25 samples, now it would be 7; ask for as many"),
        ({"shard_size": 5}, {}, "shard_size 10, now asked for 5"),
        ({}, {"zoo": {"image_size": 32}}, "image_size null, now asked for 32"),
    ],
)
def test_other_data_are_never_mixed_in(
    toy: Callable[..., Zoo], tmp_path: Path, changes: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    make_toy(toy(), tmp_path / "data")
    before = snapshot(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        make_toy(toy(tables), tmp_path / "data", **changes)
    assert snapshot(tmp_path / "data") == before


def test_one_command_at_a_time_writes_a_data_folder(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data, train=10)
    refused = []

    @contextlib.contextmanager
    def meanwhile(*_: Any) -> Iterator[Callable[[int], None]]:
        before = snapshot(data)
        for command in (lambda: make_toy(zoo, data, seed=4), lambda: derive_data(zoo, data, workers=1)):
            with pytest.raises(
                CheckpointError, match="data: another zoo data make or derive writes it right now; wait"
            ):
                command()
            refused.append(command)
        assert snapshot(data) == before
        yield lambda count: None

    monkeypatch.setattr(make_module, "progress_bar", meanwhile)
    monkeypatch.setattr(derive_module, "progress_bar", meanwhile)
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    assert len(refused) == 6, "once while more is made, and once for each split that is derived"
    assert read_entry(data, "train", "dark") and read_entries(data)["train"]["field"]["seed"] == 3


def test_shards_of_others_are_not_touched(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    with writing_shard(tmp_path / "data/train/field/000.tar") as writer:
        writer.add("a", b"", "npy")
    with pytest.raises(DataError, match="holds shards that were written by something else than `zoo data make`"):
        make_toy(toy(), tmp_path / "data")


def test_classes_of_the_source_are_checked_before_anything_is_written(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    zoo = toy(enabled=("field",))
    object.__setattr__(zoo["field"].spec.value, "classes", ("a", "c"))
    with pytest.raises(
        ConfigError, match=r"2 classes a, c, and toy gives the 2 classes a, b; set \[modalities.field\]"
    ):
        make_toy(zoo, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_nothing_enabled_and_no_count_are_said(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives field, other, words, none of which is enabled; enabled: none"):
        make_toy(toy(enabled=()), tmp_path / "data")
    with pytest.raises(ConfigError, match="say how many"):
        make_toy(toy(), tmp_path / "data", train=None)


@pytest.mark.parametrize("count", [None, 400])
@pytest.mark.parametrize("number", [3, 300])
def test_files_of_nothing_enabled_are_said_however_many(
    toy: Callable[..., Zoo], tmp_path: Path, number: int, count: int | None
) -> None:
    (tmp_path / "mine/xray").mkdir(parents=True)
    for i in range(number):
        (tmp_path / f"mine/xray/{i}.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^folder gives xray, none of which is enabled; enabled: .*field"):
        make_data(toy(), "folder", tmp_path / "data", train=None, test=count, options={"path": str(tmp_path / "mine")})
    assert not (tmp_path / "data").exists()


def test_a_setting_that_a_source_has_to_be_given(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    for options, told in (
        ({}, r"^\[folder\] path: required, and not given; give --set path=\.\.\.$"),
        ({"test_fraction": 0}, r"^\[folder\] path: required, and not given; give --set path=\.\.\.$"),
        ({"pth": "mine"}, r"pth: unknown key; did you mean path\?"),
    ):
        with pytest.raises(ConfigError, match=told):
            make_data(toy(), "folder", tmp_path / "data", train=None, test=None, options=options)


def test_the_recipe_for_samples_that_belong_together(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patient in range(7):
        own_files(tmp_path / "all", range(3))
        for name in ("field", "words"):
            (tmp_path / "files" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "all" / name).rename(tmp_path / "files" / name / f"p{patient:03}")
    page = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    recipe = page.partition("### Samples that belong together\n")[2].split("```")[1].removeprefix("python")
    assert len(recipe.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "recipe", "exec"), {})
    zoo = toy()
    make_data(zoo, "folder", Path("data"), train=None, test=None, options={"path": "split"}, workers=1)
    store = ValueStore.of(Path("data"), zoo)
    keys = {split: store.aligned_keys(split, ["field", "words"]) for split in ("train", "test")}
    assert {key.partition("/")[0] for key in keys["test"]} == {"p000", "p005"}
    assert {key.partition("/")[0] for key in keys["train"]} == {"p001", "p002", "p003", "p004", "p006"}
    assert [len(keys[split]) for split in ("train", "test")] == [15, 6]


def test_a_full_disk_leaves_nothing_half_written(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "whole")
    add, calls = ShardWriter.add, iter(range(1000))

    def full(self: ShardWriter, *args: Any) -> None:
        if next(calls) == 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *args)

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(DataError, match="the disk is full; what was finished is kept"):
        make_toy(zoo, tmp_path / "data")
    monkeypatch.undo()
    whole, part = snapshot(tmp_path / "whole"), snapshot(tmp_path / "data")
    assert sum(name.endswith(".tar") for name in part) == 2
    assert all(whole[name] == data for name, data in part.items() if name.endswith(".tar"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_modality_of_which_every_sample_fails_is_an_error_and_tried_again(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    broken = toy({"modalities": {"field": {"image_size": 16}}})
    handle = broken["field"]
    transform = handle.transform
    handle.transform = lambda value, crop: (_ for _ in ()).throw(DataError("no"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="train/field: all 25 samples failed; the first one: no"):
        make_toy(broken, tmp_path / "data")
    handle.transform = transform  # type: ignore[method-assign]
    info = describe_data(broken, tmp_path / "data")
    assert {row.modality: (row.samples, row.dropped) for row in info.rows if row.split == "train"} == {
        "field": (0, 25), "words": (21, 0),
    }  # fmt: skip
    assert any(line.startswith("train/field/shard-00001.tar: train-0010: no") for line in info.reasons)
    result = make_toy(broken, tmp_path / "data")
    assert {o.modality: (o.written, o.kept_shards) for o in result.outcomes if o.split == "train"} == {
        "field": (23, 0), "words": (0, 3),
    }  # fmt: skip


def store_bytes(shard: Path) -> tuple[bytes, str]:
    """The first value of a shard, and its extension."""
    member = next(iter(scan_shard(shard).members.values()))
    return read_member(member), member.extension


def own_files(folder: Path, numbers: Iterable[int]) -> None:
    for i in numbers:
        for name, data in (("field", np.full((1, 48, 64), i / 30, np.float32)), ("words", f"file {i}")):
            path = folder / name / f"f{i:02}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, str):
                path.with_suffix(".txt").write_text(data)
            else:
                np.save(path.with_suffix(".npy"), data)


def test_own_files_are_made_into_data_at_the_size_of_the_settings(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    own_files(tmp_path / "mine", range(30))
    (tmp_path / "mine/field/f07.npy").write_bytes(b"broken")
    zoo = toy()
    options = {"path": str(tmp_path / "mine"), "test_fraction": 0.2}
    result = make_data(zoo, "folder", tmp_path / "data", train=None, test=None, options=options, workers=1)
    assert sum(o.written for o in result.outcomes) == 59 and sum(o.failed for o in result.outcomes) == 1
    store = ValueStore.of(tmp_path / "data", zoo)
    key = store.aligned_keys("train", ["field", "words"])[3]
    value = store.read(zoo["field"], "train", key)
    assert value.shape == (1, 16, 16)
    assert value[0, 0, 0] == np.float32(int(key[1:]) / 30)
    assert store.read(zoo["words"], "train", key) == f"file {int(key[1:])}"


@pytest.mark.parametrize("place", ["data", "field/made/data"])
def test_data_that_are_made_among_the_files_are_none_of_them(
    place: str, toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, mine = toy(), tmp_path / "mine"
    own_files(mine, range(8))
    options = {"path": str(mine), "test_fraction": 0}
    for written in (8, 0):
        made = make_data(zoo, "folder", mine / place, train=None, test=0, options=options, workers=1)
        assert [outcome.written for outcome in made.outcomes] == [written] * 2 and not made.skipped
    with pytest.raises(ConfigError, match=f"path: {mine}: what is made of its files cannot go there"):
        make_data(zoo, "folder", mine / "field/..", train=None, test=0, options=options, workers=1)


def test_a_file_that_fails_is_told_whatever_is_in_its_name(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, range(3))
    name = "end\u2028of\u0085lines\n"
    (mine / f"field/{name}.npy").write_bytes(b"broken")
    for written, kept in ((3, 0), (0, 1)):
        options = {"path": str(mine), "test_fraction": 0}
        made = make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1)
        assert [(o.written, o.kept_shards) for o in made.outcomes] == [(written, kept)] * 2
    (reason,) = describe_data(zoo, data).reasons
    assert ": end\u2028of\\x85lines\\x0a: field: damaged .npy" in reason


def test_what_is_lost_of_a_users_shards_is_told(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, mine = toy(), tmp_path / "mine"
    with writing_shard(mine / "train/words/a.tar") as writer:
        for key in "abc":
            writer.add(key, key.encode(), "txt")
    os.truncate(mine / "train/words/a.tar", 2 * 1024 + 512)
    options = {"path": str(mine)}
    for _ in range(2):
        made = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)
        assert made.notes == ["train/words: not used of what its folder holds: 1 (first: a.tar: c: cut off: the shard "
                             "ends inside it)"]  # fmt: skip
        assert made.notes[0] in made.summary()


def test_files_beside_shards_are_told(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    mine = tmp_path / "mine/train/words"
    with writing_shard(mine / "a.tar") as writer:
        writer.add("a", b"a", "txt")
    for name in ("b.txt", "c.txt", ".hidden.txt", "LICENSE", "a.aux.xml"):
        (mine / name).write_text(name)
    options = {"path": str(tmp_path / "mine")}
    made = make_data(toy(), "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)
    (note,) = made.notes
    assert note.startswith("train/words: not used of what its folder holds: 2 (first: b.txt: b: a file beside a.tar: ")
    assert [o.written for o in made.outcomes if o.modality == "words"] == [1]


def test_a_shard_that_a_kill_left_without_its_note_is_of_nothing(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that it was made of is put back, with its time, as the note of before the kill has it."""
    file, noted = tmp_path / "mine/train/words/a.txt", make_module.note_made_of
    file.parent.mkdir(parents=True)
    file.write_text("good")
    before, options = file.stat().st_mtime_ns, {"path": str(tmp_path / "mine")}

    def make() -> Any:
        return make_data(toy(), "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)

    def killed(root: Path, split: str, name: str, shards: dict[str, str]) -> None:
        if any(shards.values()):
            raise KeyboardInterrupt
        noted(root, split, name, shards)

    make()
    file.write_text("wrong")
    with monkeypatch.context() as patch:
        patch.setattr(make_module, "note_made_of", killed)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert read_member(scan_shard(tmp_path / "data/train/words/shard-00000.tar").members["a"]).strip() == b"wrong"
    file.write_text("good")
    os.utime(file, ns=(before, before))
    make()
    assert read_member(scan_shard(tmp_path / "data/train/words/shard-00000.tar").members["a"]).strip() == b"good"


def test_pictures_that_are_larger_than_the_source_draws_are_told(tmp_path: Path) -> None:
    tables = {
        "zoo": {"image_size": 16, "patch_size": 8, "modalities": ["rgb", "rgb_32", "scene_class"]},
        "modalities": {"rgb_32": {"plugin": "rgb", "image_size": 32}},
    }
    zoo = Zoo.from_tables(tables)
    made = make_data(zoo, "scenes", tmp_path / "small", train=1, test=1, workers=1)
    assert made.notes == [
        "rgb_32: enlarged, as scenes draws 16 pixels and image_size is 32; --set image_size=32 draws as many"
    ]
    made = make_data(zoo, "scenes", tmp_path / "large", train=1, test=1, options={"image_size": 32}, workers=1)
    assert not made.notes


def pictures(folder: Path, sizes: dict[str, dict[str, tuple[int, int]]]) -> None:
    """Files of these sizes (height, width), by modality and key."""
    for name, files in sizes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for key, size in files.items():
            value: Any = np.full((1, *size), 2, np.float32)
            if name == "rgb":
                value = np.zeros((3, *size), np.float32)
            elif name == "sam_instance":
                value = np.ones(size, np.int32)
            elif name == "video":
                value = np.zeros((8, 3, *size), np.float32)
            np.save(folder / name / f"{key}.npy", value)


def make_pictures(folder: Path, *names: str, modalities: dict[str, Any] | None = None) -> Any:
    """What `zoo data make folder` makes of a folder's files of these modalities, with the tables `modalities`."""
    shared = {"image_size": 16, "patch_size": 8, "modalities": list(names)}
    zoo = Zoo.from_tables({"zoo": shared, "modalities": modalities or {}})
    options = {"path": str(folder / "mine"), "test_fraction": 0}
    return make_data(zoo, "folder", folder / "data", train=None, test=0, options=options, workers=1, shard_size=2)


def test_a_picture_refused_beside_one_that_is_not_read_now_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third would have been of the first one's size."""
    pytest.importorskip("zoo_geometry")
    pytest.importorskip("zoo_semantics")
    square = dict.fromkeys("abcd", (16, 16))
    pictures(tmp_path / "mine", {"rgb": square, "depth": {**square, "b": (16, 11)}, "sam_instance": square})
    names, opened = ("rgb", "depth", "sam_instance"), os.open

    def failing(path: Any, *flags: int) -> int:
        if str(path).endswith("sam_instance/b.npy"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert {o.modality: o.failed for o in make_pictures(tmp_path, *names).outcomes} == dict.fromkeys(names, 1)
    made = {o.modality: (o.written, o.failed, o.kept_shards) for o in make_pictures(tmp_path, *names).outcomes}
    assert made == {"rgb": (2, 0, 1), "depth": (1, 1, 1), "sam_instance": (2, 0, 1)}
    assert [o.kept_shards for o in make_pictures(tmp_path, *names).outcomes] == [2, 2, 2]


def test_a_picture_that_was_refused_beside_another_is_made_once_that_one_is_mended(tmp_path: Path) -> None:
    pytest.importorskip("zoo_geometry")
    square = dict.fromkeys("abcd", (16, 16))
    pictures(tmp_path / "mine", {"rgb": square, "depth": {**square, "b": (16, 11)}})

    def make() -> dict[str, tuple[int, int, int]]:
        made = make_pictures(tmp_path, "rgb", "depth")
        return {o.modality: (o.written, o.failed, o.kept_shards) for o in made.outcomes}

    assert make() == {"rgb": (3, 1, 0), "depth": (3, 1, 0)}
    for _ in range(2):
        assert make() == {"rgb": (0, 0, 2), "depth": (0, 0, 2)}, "nothing has changed"
    pictures(tmp_path / "mine", {"depth": {"b": (16, 16)}})
    assert make() == {"rgb": (2, 0, 1), "depth": (2, 0, 1)}
    assert ValueStore(tmp_path / "data").keys("train", "rgb") == list("abcd")
    assert make() == {"rgb": (0, 0, 2), "depth": (0, 0, 2)}


def test_a_picture_refused_beside_one_that_is_read_by_other_settings_is_made_again(tmp_path: Path) -> None:
    """Depth is on rgb's side as soon as it can be read."""
    pytest.importorskip("zoo_geometry")
    pytest.importorskip("zoo_semantics")
    square = dict.fromkeys("abcd", (16, 16))
    pictures(tmp_path / "mine", {"rgb": square, "sam_instance": {**square, "b": (16, 11)}})
    (tmp_path / "mine" / "depth").mkdir()
    for key in square:
        Image.fromarray(np.full((16, 16), 2000 if key == "b" else 50, np.uint16)).save(
            tmp_path / "mine" / "depth" / f"{key}.png"
        )

    def failed(png_scale: float) -> dict[str, int]:
        settings = {"depth": {"png_scale": png_scale}}
        made = make_pictures(tmp_path, "rgb", "depth", "sam_instance", modalities=settings)
        return {o.modality: o.failed for o in made.outcomes}

    assert failed(png_scale=1.0) == {"rgb": 1, "depth": 1, "sam_instance": 1}, "2000 m is none"
    assert failed(png_scale=0.001) == {"rgb": 0, "depth": 0, "sam_instance": 1}
    assert ValueStore(tmp_path / "data").keys("train", "rgb") == list("abcd")


@pytest.mark.parametrize("name", ["sam_instance", "video"])
def test_masks_and_frames_show_what_the_picture_shows_in_its_proportions(name: str, tmp_path: Path) -> None:
    """Whatever their tokens are: a sequence, or a grid of three axes."""
    pytest.importorskip("zoo_semantics" if name == "sam_instance" else "zoo_motion")
    upright = dict.fromkeys("abc", (48, 32))
    pictures(tmp_path / "mine", {"rgb": upright, name: {"a": (24, 16), "b": (32, 48), "c": (48, 32)}})
    made = make_pictures(tmp_path, "rgb", name)
    assert {o.modality: (o.written, o.failed) for o in made.outcomes} == {"rgb": (2, 1), name: (2, 1)}
    refused = next(o.first_reason for o in made.outcomes if o.modality == name)
    assert refused.startswith(f"{name}: 32 x 48 pixels, where rgb has 48 x 32") and refused.endswith("(sample b)")


def test_modalities_that_never_meet_in_a_sample_are_told(tmp_path: Path) -> None:
    pytest.importorskip("zoo_geometry")
    size = (16, 16)
    files = {"rgb": {"0_rgb": size, "1_rgb": size}, "depth": {"0_depth": size, "1_depth": size}}
    pictures(tmp_path / "mine", files)
    made = make_pictures(tmp_path, "rgb", "depth")
    assert made.notes == [
        "depth: no sample has it beside another modality (keys such as 0_depth, and 0_rgb of rgb): the files of a "
        "sample have the same name",
        "rgb: no sample has it beside another modality (keys such as 0_rgb, and 0_depth of depth): the files of a "
        "sample have the same name",
    ]
    assert not make_pictures(tmp_path, "rgb").notes, "one alone, whatever else lies there"
    pictures(tmp_path / "mine", {"normal": {"0_rgb": size}})
    made = make_pictures(tmp_path, "rgb", "depth")
    assert len(made.notes) == 2 and "normal" in made.skipped
    pictures(tmp_path / "mine", {"depth": {"1_rgb": size}})
    assert not make_pictures(tmp_path, "rgb", "depth").notes, "one sample in which they meet is enough"


def test_files_that_come_to_lie_between_old_ones_are_made_and_none_twice(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16])
    (mine / "field/f02.npy").write_bytes(b"broken")
    (mine / "words/f05.txt").unlink()

    def make(out: Path) -> dict[str, tuple[int, int]]:
        options = {"path": str(mine), "test_fraction": 0}
        result = make_data(zoo, "folder", out, train=None, test=0, options=options, workers=1, shard_size=4)
        return {o.modality: (o.written, o.kept_shards) for o in result.outcomes}

    make(data)
    assert make(data) == {"field": (0, 3), "words": (0, 3)}
    old = snapshot(data)
    own_files(mine, [7, 9, 17])
    handle = zoo["field"]
    write, calls = handle.write, iter(range(100))

    def killed(value: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return write(value)

    handle.write = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make(data)
    handle.write = write  # type: ignore[method-assign]
    assert old.keys() <= snapshot(data).keys(), "no shard is missing at any time"
    assert make(data) == {"field": (7, 2), "words": (7, 2)}, "the second shard was made before the kill"
    store = ValueStore.of(data, zoo)
    keys = [f"f{i:02}" for i in (*range(11), 12, 14, 16, 17)]
    assert store.keys("train", "field") == [key for key in keys if key != "f02"]
    assert store.keys("train", "words") == [key for key in keys if key != "f05"]
    assert not store.dropped("train", "field") and not store.dropped("train", "words")
    make(tmp_path / "fresh")
    assert snapshot(data) == snapshot(tmp_path / "fresh")
    for name in ("field/f12.npy", "words/f12.txt"):
        (mine / name).rename(mine / name.replace("f12", "f13"))
    assert make(data) == {"field": (4, 3), "words": (4, 3)}, "as many samples, but others"
    assert "f13" in ValueStore.of(data, zoo).keys("train", "field")
    own_files(mine, [20])
    assert make(data) == {"field": (4, 3), "words": (4, 3)}, "the last shard has room for one more"
    assert "f20" in ValueStore.of(data, zoo).keys("train", "field")


def test_a_file_that_is_replaced_by_another_is_made_again(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, range(12))

    def make() -> dict[str, tuple[int, int]]:
        options = {"path": str(mine), "test_fraction": 0}
        result = make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1, shard_size=4)
        return {o.modality: (o.written, o.kept_shards) for o in result.outcomes}

    def replace(number: int) -> None:
        np.save(mine / f"field/f{number:02}.npy", np.full((1, 48, 64), 0.75, np.float32))  # of the same size

    make()
    replace(5)
    write, calls = zoo["field"].write, iter(range(100))

    def killed(value: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return write(value)

    monkeypatch.setattr(zoo["field"], "write", killed)
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.undo()
    assert make() == {"field": (4, 2), "words": (0, 3)}
    assert ValueStore.of(data, zoo).read(zoo["field"], "train", "f05").max() == 0.75
    assert make() == {"field": (0, 3), "words": (0, 3)}
    shutil.rmtree(data / ".audit")  # as data of an older version, of which nothing is known
    assert make() == {"field": (0, 3), "words": (0, 3)}
    replace(6)
    assert make() == {"field": (4, 2), "words": (0, 3)}


def test_a_shard_none_of_whose_files_can_be_read_any_more_is_gone(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, range(8))

    def make() -> list[tuple[int, int, int]]:
        options = {"path": str(mine), "test_fraction": 0}
        result = make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1, shard_size=4)
        return [(o.written, o.failed, o.kept_shards) for o in result.outcomes if o.modality == "field"]

    make()
    for number in range(4):
        (mine / f"field/f{number:02}.npy").write_bytes(b"broken")
    for _ in range(2):
        assert make() == [(0, 4, 1)], "it is tried again"
        assert ValueStore.of(data, zoo).keys("train", "field") == ["f04", "f05", "f06", "f07"]
    own_files(mine, range(4))
    assert make() == [(4, 0, 1)]


def test_an_instance_with_files_of_its_own_gets_none_of_its_plugins(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    """Neither for a sample that lacks them, nor in a split that does."""
    mine, data = tmp_path / "mine", tmp_path / "data"
    files = {"train/field/a": 0.25, "train/field/b": 0.25, "train/lamp/a": 0.5, "test/field/c": 0.25}
    for name, value in files.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(mine / f"{name}.npy", np.full((1, 16, 16), value, np.float32))
    instances = {name: {"plugin": "field"} for name in ("lamp", "torch")}
    zoo = toy({"modalities": instances}, enabled=("field", "lamp", "torch"))

    def make() -> dict[tuple[str, str], tuple[int, int]]:
        options = {"path": str(mine)}
        result = make_data(zoo, "folder", data, train=None, test=None, options=options, workers=1)
        return {(o.split, o.modality): (o.written, o.kept_shards) for o in result.outcomes}

    assert make() == {
        ("train", "field"): (2, 0), ("train", "lamp"): (1, 0), ("train", "torch"): (2, 0),
        ("test", "field"): (1, 0), ("test", "torch"): (1, 0),
    }  # fmt: skip
    store = ValueStore.of(data, zoo)
    assert store.read(zoo["lamp"], "train", "a").max() == 0.5 and store.keys("train", "lamp") == ["a"]
    note = data / ".audit/made-train-lamp.json"
    older = open_folder(FolderSettings(path=str(mine)), "train", None).signature(("lamp", "field"), 0, 2)
    note.write_text(json.dumps({"shard-00000.tar": older}))  # as an older version noted it
    assert make()["train", "lamp"] == (0, 1)
    with writing_shard(data / "train/lamp/shard-00000.tar") as writer:
        for key in "ab":  # as an older version made it, which took the other's file for the one that is missing
            writer.add(key, *zoo["lamp"].write(store.read(zoo["field"], "train", key)))
    assert make()["train", "lamp"] == (1, 0)
    assert ValueStore.of(data, zoo).keys("train", "lamp") == ["a"]


def number_files(folder: Path, count: int) -> Path:
    """Files of one number each, in units that the settings say."""
    for split in ("train", "test"):
        (folder / split / "field").mkdir(parents=True)
        for i in range(count):
            (folder / split / "field" / f"{split}{i}.num").write_text(str((i + 1) / 10))
    return folder


@pytest.fixture
def units(install_example: Callable[..., Path], tmp_path: Path) -> Callable[..., Zoo]:
    """Makes zoos of `field`, whose files are in units of `scale`, and of `dark`, which is derived from it."""
    install_example("field", scaled())
    install_example("dark", derived("field"))

    def make(**own: Any) -> Zoo:
        return only({"field": own}, zoo={"checkpoints": str(tmp_path / "tokenizers")})

    return make


def test_values_of_files_are_made_again_where_they_are_read_otherwise(
    units: Callable[..., Zoo], tmp_path: Path
) -> None:
    mine, data = number_files(tmp_path / "mine", 4), tmp_path / "data"

    def make(zoo: Zoo) -> tuple[int, int]:
        options = {"path": str(mine)}
        result = make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1, shard_size=2)
        return result.outcomes[0].written, result.outcomes[0].kept_shards

    assert make(units()) == (4, 0)
    assert read_entry(data, "train", "field")[READ_WITH] == {}
    before = digest(read_entry(data, "train", "field"))
    other = units(scale=0.5)
    write, calls = other["field"].write, iter(range(100))

    def killed(value: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return write(value)

    other["field"].write = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make(other)
    other["field"].write = write  # type: ignore[method-assign]
    assert len(list((data / "train/field").glob("*.tar"))) == 2, "no shard is missing at any time"
    assert make(other) == (2, 1), "the first shard was made before the kill"
    store = ValueStore.of(data, other)
    assert [store.read(other["field"], "train", f"train{i}").max() for i in range(4)] == pytest.approx(
        [0.05, 0.1, 0.15, 0.2]
    )
    assert digest(read_entry(data, "train", "field")) == before, "what is derived is known by the contents"
    entry = {key: item for key, item in read_entry(data, "train", "field").items() if key != READ_WITH}
    record_entry(data, "train", "field", entry)  # as an older version wrote it
    assert make(units(scale=0.25)) == (0, 2)
    assert read_entry(data, "train", "field")[READ_WITH] == {"scale": 0.25}


def test_what_values_are_read_with_leaves_out_tokenizer_and_networks() -> None:
    pytest.importorskip("zoo_geometry")
    own = {"png_scale": 0.1, "tokenizer": {"steps": 3}, "labeller": {"model": "somebody/depth"}}
    zoo = Zoo.from_tables({"zoo": {"image_size": 32, "patch_size": 8, "max_length": 9}, "modalities": {"depth": own}})
    assert reading_settings(zoo["depth"]) == {"image_size": 32, "png_scale": 0.1}
    zoo = Zoo.from_tables({"modalities": {"depth": {"shown": [1.0, 4.0]}}})
    assert reading_settings(zoo["depth"]) == {}  # it only changes pictures


def test_a_folder_that_cannot_be_read_is_named(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, scandir = tmp_path / "mine", os.scandir
    own_files(mine, range(3))

    def failing(path: Any) -> Any:
        if Path(path).name == "field":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(ReadError, match=f"^{mine}/field: cannot be read: Permission denied"):
        make_data(toy(), "folder", tmp_path / "data", train=None, test=0, options={"path": str(mine)}, workers=1)


def test_a_folder_that_is_no_modality_may_hold_anything(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    own_files(mine, range(4))
    for name in ("part-00000.arrow", "part-00000.failed.jsonl", os.fsdecode(b"caf\xe9.txt")):
        (mine / "tokens/train").mkdir(parents=True, exist_ok=True)
        (mine / "tokens/train" / name).write_text("")
    options = {"path": str(mine), "test_fraction": 0}
    result = make_data(toy(), "folder", mine / "data", train=None, test=0, options=options, workers=1)
    assert {o.modality: o.written for o in result.outcomes} == {"field": 4, "words": 4}
    assert "no enabled modality" in result.skipped["tokens"]
    (mine / "field/f03.v2.npy").write_bytes(b"")
    with pytest.raises(DataError, match="second file with the key 'f03'"):
        make_data(toy(), "folder", mine / "data", train=None, test=0, options=options, workers=1)


def test_a_source_that_may_not_read_is_not_blamed_on_the_output(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shut(*_: Any) -> None:
        raise PluginError("toy: samples failed") from PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/in")

    monkeypatch.setattr(make_module, "open_samples", shut)
    with pytest.raises(PluginError, match="toy: samples failed"):
        make_toy(toy(), tmp_path / "data")


def refuse_for_memory(monkeypatch: pytest.MonkeyPatch, handle: Any, refused: Callable[[Any], bool]) -> None:
    """Memory runs out where these values are read."""
    read = handle.read

    def failing(data: bytes, extension: str) -> Any:
        if not refused(value := read(data, extension)):
            return value
        try:
            raise MemoryError
        except MemoryError as error:
            raise InvalidValueError(f"{handle.name}: cannot be read: MemoryError") from error

    monkeypatch.setattr(handle, "read", failing)


def test_want_of_memory_passes_wherever_it_lies_behind_an_error() -> None:
    def caught(raises: Callable[[Exception], None], first: Exception) -> Exception:
        try:
            try:
                raise first
            except Exception as error:
                raises(error)
        except Exception as error:
            return error
        raise AssertionError

    def from_it(error: Exception) -> None:
        raise InvalidValueError("x") from error

    def from_none(error: Exception) -> None:
        raise ValueError("x") from None

    def from_itself(error: Exception) -> None:
        raise error from error

    for first, is_passing in ((MemoryError(), True), (torch.OutOfMemoryError("CUDA"), True), (ValueError("x"), False)):
        one = caught(from_it, first)
        for error in (one, caught(from_it, caught(from_none, first)), caught(from_itself, one)):
            assert passing(error) == is_passing
    assert passing(ReadError("x")) and not passing(DataError("x"))


@pytest.mark.parametrize("want", ["files", "memory"])
def test_a_file_that_is_not_read_now_is_read_the_next_time(
    want: str, toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, range(8))
    opened = os.open

    def failing(path: Any, *flags: int) -> int:
        if str(path).endswith("f05.npy"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *flags)

    def make() -> dict[str, tuple[int, int, int]]:
        options = {"path": str(mine), "test_fraction": 0}
        result = make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1, shard_size=4)
        return {o.modality: (o.written, o.failed, o.kept_shards) for o in result.outcomes}

    with monkeypatch.context() as patch:
        if want == "files":
            patch.setattr(os, "open", failing)
        else:
            refuse_for_memory(patch, zoo["field"], lambda value: value[0, 0, 0] == np.float32(5 / 30))
        assert make() == {"field": (7, 1, 0), "words": (8, 0, 0)}
        reasons = str(describe_data(zoo, data).reasons)
        assert "f05: " in reasons and {"files": "Too many open files", "memory": "MemoryError"}[want] in reasons
    assert make() == {"field": (4, 0, 1), "words": (0, 0, 2)}
    assert make() == {"field": (0, 0, 2), "words": (0, 0, 2)}


def test_a_folder_is_listed_once_and_files_that_come_meanwhile_move_no_sample(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, mine, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(mine, range(5, 13))
    listed, find, run = list[str](), folder_module._find, make_module.run_jobs

    def found(root: Path, split: str, *others: Any) -> Any:
        listed.append(split)
        return find(root, split, *others)

    def running(*others: Any, of: int) -> Any:
        own_files(mine, [0])
        return run(*others, of=of)

    monkeypatch.setattr(folder_module, "_find", found)
    monkeypatch.setattr(make_module, "run_jobs", running)
    options = {"path": str(mine), "test_fraction": 0}
    make_data(zoo, "folder", data, train=None, test=0, options=options, workers=1, shard_size=4)
    store = ValueStore.of(data, zoo)
    assert listed == ["train"]
    assert store.keys("train", "words") == [f"f{i:02}" for i in range(5, 13)]
    assert store.read(zoo["words"], "train", "f05") == "file 5"


# ---------------------------------------------------------------------- derive


def test_derive_computes_what_is_absent_and_lists_what_fails(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    monkeypatch.setitem(pretrained._loaded, "a network", object())
    result = derive_data(zoo, out, workers=1)
    assert not pretrained._loaded, "one modality's networks leave their memory to the next one's"
    store = ValueStore.of(out, zoo)
    field, dark = (dict.fromkeys(store.keys("train", name)) for name in ("field", "dark"))
    bright = [key for key in field if store.read(zoo["field"], "train", key)[0, 0, 1] > 0.9]
    assert bright and set(dark) == set(field) - set(bright)
    for key in dark:
        expected = 1 - store.read(zoo["field"], "train", key)
        np.testing.assert_array_equal(store.read(zoo["dark"], "train", key), expected)
    info = describe_data(zoo, out)
    row = {(row.split, row.modality): row for row in info.rows}["train", "dark"]
    assert (row.samples, row.dropped) == (len(dark), len(bright)) and row.made_by == "zoo-dark 1.0, from field"
    assert any("too dark" in line for line in info.reasons)
    assert info.aligned["train"] == len(store.aligned_keys("train", ["field", "dark", "words"]))
    assert [o.written for o in result.outcomes if o.split == "train"] == [len(dark)]
    again = derive_data(zoo, out, workers=1)
    assert [(o.written, o.failed) for o in again.outcomes] == [(0, 0), (0, 0)]
    (out / "train/dark/shard-00009.failed.jsonl").write_text('{"key": "k", "reason": "all failed"}\n')
    info = describe_data(zoo, out)
    row = {(row.split, row.modality): row for row in info.rows}["train", "dark"]
    assert (row.samples, row.dropped) == (len(dark), len(bright) + 1)
    derive_data(zoo, out, workers=1)
    assert not (out / "train/dark/shard-00009.failed.jsonl").exists(), "of a shard that there is no more"


def test_derive_goes_on_after_a_kill_and_follows_what_changes(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    for name in ("whole", "data"):
        make_toy(zoo, tmp_path / name)
    derive_data(zoo, tmp_path / "whole", workers=1)
    whole = snapshot(tmp_path / "whole")
    shards, run = iter(range(100)), derive_module.derive_shard

    def killed(*args: Any) -> Any:
        if next(shards) == 2:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(derive_module, "derive_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        derive_data(zoo, tmp_path / "data", workers=1)
    monkeypatch.undo()
    result = derive_data(zoo, tmp_path / "data", workers=1)
    assert sum(outcome.kept_shards for outcome in result.outcomes) == 2
    assert snapshot(tmp_path / "data") == whole

    path = tmp_path / "data/train/dark/shard-00001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert [o.written > 0 for o in derive_data(zoo, tmp_path / "data", workers=1).outcomes] == [False, True]
    assert snapshot(tmp_path / "data") == whole

    make_toy(zoo, tmp_path / "data", train=33)
    derive_data(zoo, tmp_path / "data", workers=1)
    store = ValueStore.of(tmp_path / "data", zoo)
    assert len(store.index("train", "dark").shards) == 4
    other = toy({"modalities": {"dark": {"levels": 8}}})
    rewritten = derive_data(other, tmp_path / "data", workers=1)
    assert all(outcome.written and not outcome.kept_shards for outcome in rewritten.outcomes)


@pytest.mark.parametrize("module", [make_module, derive_module])
def test_what_a_killed_command_left_is_made_as_a_part_of_the_whole(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    """With as many threads as if none were there: last bits of what a network gives depend on them."""
    zoo, asked = toy(), []

    def noted(*args: Any, of: int) -> Any:
        asked.append((len(args[2]), of))
        return run_jobs(*args, of=of)

    def all_of_it() -> None:
        make_toy(zoo, tmp_path / "data", test=0)
        derive_data(zoo, tmp_path / "data", workers=1)

    monkeypatch.setattr(module, "run_jobs", noted)
    all_of_it()
    (tmp_path / "data/train" / ("field" if module is make_module else "dark") / "shard-00001.tar").unlink()
    all_of_it()
    (whole, of), left = asked
    assert whole == of > 1 and left == (1, of)


OUT_OF_MEMORY = {
    "MemoryError": "MemoryError('13 GB')",
    "OutOfMemoryError": "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
    "AcceleratorError": "type('AcceleratorError', (RuntimeError,), {})('CUDA error: unspecified launch failure')",
    "device": "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)')",
    "processor": "RuntimeError('[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can\\'t allocate')",
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_no_sample_is_to_blame_where_the_machine_fails(
    error: str, toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    data, room = tmp_path / "data", tmp_path / "room"
    failing = f"        import torch\n        if not Path({str(room)!r}).exists():\n            raise {error}\n"
    install_example("shadow", derived("field") | {"        return value\n\n": f"{failing}        return value\n\n"})
    zoo = toy(enabled=("field", "shadow"))
    make_toy(zoo, data, test=0)
    with pytest.raises(MachineError, match=r"^shadow: derive of .* or its device failed: \w+Error: .* fewer workers"):
        derive_data(zoo, data, workers=1)
    assert not list(data.rglob("shadow/*"))
    room.touch()
    assert [(o.written, o.failed) for o in derive_data(zoo, data, workers=1).outcomes] == [(22, 1)]


def test_what_was_not_derived_as_memory_ran_out_is_derived_the_next_time(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = toy(enabled=("field", "dark")), tmp_path / "data"
    make_toy(zoo, data, test=0)
    store = ValueStore.of(data, zoo)
    bad = store.read(zoo["field"], "train", store.keys("train", "field")[0])
    with monkeypatch.context() as patch:
        refuse_for_memory(patch, zoo["field"], lambda value: np.array_equal(value, bad))
        (first,) = derive_data(zoo, data, workers=1).outcomes
    (second,) = derive_data(zoo, data, workers=1).outcomes
    assert second.kept_shards == 2 and second.written
    assert len(ValueStore.of(data, zoo).keys("train", "dark")) == first.written + 1
    (third,) = derive_data(zoo, data, workers=1).outcomes
    assert (third.written, third.kept_shards) == (0, 3)


@pytest.mark.parametrize("hook", ["transform", "sample"])
def test_a_sample_is_not_left_out_where_memory_ran_out_as_it_was_made(
    hook: str, toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"

    def fails(*_: Any) -> Any:
        raise MachineError("no memory")

    with monkeypatch.context() as patch:
        if hook == "transform":
            patch.setattr(zoo["field"], "transform", fails)
        else:
            patch.setattr(CheckedSamples, "_problem", fails)
        with pytest.raises(MachineError, match="no memory"):
            make_toy(zoo, out, test=0)
    assert not list(out.rglob("*.tar"))
    assert {outcome.written for outcome in make_toy(zoo, out, test=0).outcomes} == {23, 21}


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyError("x")])
def test_what_a_sample_of_a_source_raises(
    error: Exception, toy: Callable[..., Zoo], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = toy().source("toy").samples("train", 3, 0, {})
    given = type(samples._given)
    monkeypatch.setattr(given, "__getitem__", lambda self, place: (_ for _ in ()).throw(error))
    kind = PluginError if isinstance(error, KeyError) else MachineError
    with pytest.raises(kind, match=r"^toy: sample 1 of "):
        samples[1]


@pytest.mark.parametrize(("device", "workers", "taken"), [("cuda", None, 1), ("cuda", 4, 4), ("cpu", None, None)])
def test_a_network_on_a_gpu_is_loaded_there_once(
    device: str, workers: int | None, taken: int | None, toy: Callable[..., Zoo], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    zoo, asked = toy(enabled=("field", "dark")), []

    def one_process(zoo: Zoo, function: Any, jobs: Any, workers: int | None, advance: Any, *, of: int) -> Any:
        asked.append(workers)
        return run_jobs(zoo, function, jobs, 1, advance)

    make_toy(zoo, tmp_path / "data", test=0)
    monkeypatch.setattr(derive_module, "run_jobs", one_process)
    monkeypatch.setattr(derive_module, "networks_of", lambda settings: {"network": PretrainedConfig(model="a/b")})
    monkeypatch.setattr(PretrainedConfig, "record", lambda self, *, download: {"model": "a/b"})
    monkeypatch.setattr(PretrainedConfig, "torch_device", device)
    derive_data(zoo, tmp_path / "data", workers=workers)
    assert asked == [taken]


def test_what_is_derived_follows_what_all_are_offered(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    own_setting = {"    levels: int = 16\n": "    levels: int = 16\n    shade: float = 1.0\n"}
    install_example("shadow", derived("field") | own_setting)
    data = tmp_path / "data"

    def open_zoo(**offered: Any) -> Zoo:
        return toy({"zoo": offered}, enabled=("field", "shadow"))

    def derive(**offered: Any) -> list[tuple[bool, int]]:
        outcomes = derive_data(open_zoo(**offered), data, workers=1).outcomes
        return [(outcome.written > 0, outcome.kept_shards) for outcome in outcomes]

    make_toy(open_zoo(), data, test=0)
    assert derive() == [(True, 0)] and derive(patch_size=4, of_no_plugin=1) == [(False, 3)]
    assert derive(shade=0.5) == [(True, 0)] and derive(shade=0.5) == [(False, 3)]
    assert derive() == [(True, 0)]


def rewrite(shard: Path, handle: Any, change: Callable[[Any], Any]) -> None:
    """Other values under the same keys, in a file of the same size."""
    store, stat = ValueStore(shard.parents[2]), shard.stat()
    keys = scan_shard(shard).members
    values = {key: change(store.read(handle, shard.parents[1].name, key)) for key in keys}
    with writing_shard(shard) as writer:
        for key, value in values.items():
            writer.add(key, *handle.write(value))
    assert shard.stat().st_size == stat.st_size


def test_what_is_derived_of_values_that_have_changed_is_derived_again(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data, test=0)
    derive_data(zoo, data, workers=1)
    rewrite(data / "train/field/shard-00001.tar", zoo["field"], lambda value: value * np.float32(0.5))

    def derive() -> list[tuple[bool, int]]:
        return [(o.written > 0, o.kept_shards) for o in derive_data(zoo, data, workers=1).outcomes]

    assert derive() == [(True, 2)]
    store = ValueStore.of(data, zoo)
    for key in store.keys("train", "dark"):
        expected = 1 - store.read(zoo["field"], "train", key)
        np.testing.assert_array_equal(store.read(zoo["dark"], "train", key), expected)
    assert derive() == [(False, 3)]
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)  # all files get new times
    data = tmp_path / "copied"
    assert derive() == [(False, 3)]
    shutil.rmtree(data / ".audit")  # as data of an older version, of which nothing is known
    assert derive() == [(False, 3)]
    rewrite(data / "train/field/shard-00002.tar", zoo["field"], lambda value: value * np.float32(0.5))
    assert derive() == [(True, 2)]


def test_what_cannot_be_derived_any_more_is_not_what_was_derived_before(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data, test=0)
    derive_data(zoo, data, workers=1)
    rewrite(data / "train/field/shard-00001.tar", zoo["field"], np.ones_like)
    for _ in range(2):
        result = derive_data(zoo, data, workers=1)
        assert [(o.written, o.failed, o.kept_shards) for o in result.outcomes] == [(0, 9, 2)], "all are too dark now"
        store = ValueStore.of(data, zoo)
        assert not set(store.keys("train", "dark")) & {f"train-{number:04}" for number in range(10, 20)}


def own_shard(path: Path) -> Path:
    with writing_shard(path) as writer:
        writer.add("mine", b"anything", "npy")
    return path


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("noted", [False, True])
def test_derive_removes_no_shard_that_it_did_not_write(
    changed: bool, noted: bool, toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    (data / "train/dark/shard-00001.tar").unlink()
    if not noted:  # as in data of an older version
        shutil.rmtree(data / ".audit")
    mine = own_shard(data / "train/dark/mine.tar")
    zoo = toy({"modalities": {"dark": {"levels": 8}}}) if changed else zoo
    before = snapshot(data)
    with pytest.raises(DataError, match=f"^{mine}: is not known to be written by `zoo data derive`, which makes dark"):
        derive_data(zoo, data, workers=1)
    assert snapshot(data) == before, "test comes before train, and nothing of it was made anew either"
    own_shard(data / "train/dark/mine-too.tar")
    with pytest.raises(DataError, match=r"/mine-too.tar and 1 other: is not known"):
        derive_data(zoo, data, workers=1)
    for path in (data / "train/dark").glob("mine*"):
        path.rename(tmp_path / path.name)
    result = derive_data(zoo, data, workers=1)
    assert [(o.split, o.written > 0, o.kept_shards) for o in result.outcomes] == (
        [("test", True, 0), ("train", True, 0)] if changed else [("test", False, 1), ("train", True, 2)]
    )


def test_derive_removes_no_shard_of_what_is_derived_from_what_is_derived(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))
    zoo, data = toy(enabled=("field", "dark", "alpha", "words")), tmp_path / "data"
    make_toy(zoo, data, test=0)
    derive_data(zoo, data, workers=1)
    shutil.rmtree(data / "train/dark")
    mine = own_shard(data / "train/alpha/mine.tar")
    with pytest.raises(DataError, match=f"^{mine}: is not known"):
        derive_data(zoo, data, workers=1)
    assert mine.exists() and not (data / "train/dark").exists(), "told before the hours that dark may take"
    mine.unlink()
    assert [o.modality for o in derive_data(zoo, data, workers=1).outcomes] == ["dark", "alpha"]


def test_derive_removes_its_own_shards_of_inputs_that_are_gone(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data, test=0)
    run = derive_module.derive_shard

    def killed(*args: Any) -> Any:
        run(*args)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as context:
        context.setattr(derive_module, "derive_shard", killed)
        derive_data(zoo, data, workers=1)
    shards = [data / f"train/{name}/shard-00000.tar" for name in ("field", "dark")]
    assert all(shard.exists() for shard in shards)
    shards[0].rename(shards[0].with_name("shard-00009.tar"))
    derive_data(zoo, data, workers=1)
    assert not shards[1].exists(), "written, though nothing was noted of what it is made of"
    assert shards[1].with_name("shard-00009.tar").exists()
    own_shard(shards[1])
    with pytest.raises(DataError, match=f"^{shards[1]}: is not known"):
        derive_data(zoo, data, workers=1)
    assert list(scan_shard(shards[1]).members) == ["mine"], "no name stays noted of which there is no shard"
    with writing_shard(shards[0]):
        pass
    with pytest.raises(DataError, match=f"^{shards[1]}: is not known"):
        derive_data(zoo, data, workers=1)
    assert list(scan_shard(shards[1]).members) == ["mine"], "nor is a name ours where an input has it, and no sample"


def test_derive_takes_inputs_first_and_says_what_is_missing(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))  # sorted before what it is derived from
    install_example("zeta", derived("absent"))
    zoo = toy(enabled=("field", "dark", "alpha", "zeta"))
    make_toy(zoo, tmp_path / "data")
    with pytest.raises(DataError, match=r"zeta: derived from absent, which .* lacks; test has field"):
        derive_data(zoo, tmp_path / "data", modalities=["zeta"], workers=1)
    with pytest.raises(DataError, match=r"field: zoo-field 1.0 does not derive it"):
        derive_data(zoo, tmp_path / "data", modalities=["field"], workers=1)
    result = derive_data(zoo, tmp_path / "data", modalities=["alpha"], splits=["train"], workers=1)
    assert [outcome.modality for outcome in result.outcomes] == ["dark", "alpha"]
    result = derive_data(zoo, tmp_path / "data", workers=1)
    assert result.skipped["zeta"].startswith("derived from absent")
    assert {(o.split, o.modality) for o in result.outcomes if o.written} == {("test", "dark"), ("test", "alpha")}


def test_what_is_derived_of_values_that_are_read_otherwise_is_derived_again(
    units: Callable[..., Zoo], tmp_path: Path
) -> None:
    data, zoo = tmp_path / "data", units()
    with writing_shard(data / "train/field/0.tar") as writer:
        for key in "abc":
            writer.add(key, b"0.5", "num")

    def derive(zoo: Zoo) -> tuple[int, int]:
        outcome = derive_data(zoo, data, workers=1).outcomes[0]
        return outcome.written, outcome.kept_shards

    assert derive(zoo) == (3, 0) and derive(zoo) == (0, 1)
    assert derive(units(scale=0.5)) == (3, 0)
    assert ValueStore.of(data, zoo).read(zoo["dark"], "train", "a").max() == 0.75
    assert derive(zoo) == (3, 0)
    object.__setattr__(zoo["field"].spec.value, "classes", ("a", "c"))
    assert derive(zoo) == (3, 0) and derive(zoo) == (0, 1)
    entry = {key: item for key, item in read_entry(data, "train", "dark").items() if key != READ_WITH}
    record_entry(data, "train", "dark", entry)  # as an older version wrote it
    assert derive(units(scale=0.25)) == (0, 1)
    assert derive(units(scale=0.5)) == (3, 0)


def test_what_is_skipped_in_one_split_is_an_input_in_another(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))
    zoo = toy(enabled=("field", "dark", "alpha", "words"))
    make_toy(zoo, tmp_path / "data", train=5)
    shutil.rmtree(tmp_path / "data/test/field")
    result = derive_data(zoo, tmp_path / "data", workers=1)
    assert [(o.split, o.modality) for o in result.outcomes] == [("train", "dark"), ("train", "alpha")]
    assert result.skipped["dark"] == f"derived from field, which {tmp_path / 'data/test'} lacks"
    given = tmp_path / "given/train/dark"
    shutil.copytree(tmp_path / "data/train/dark", given)
    result = derive_data(zoo, given.parents[1], modalities=["dark", "alpha"], workers=1)
    assert result.skipped == {"dark": "is there, and was not derived"}
    assert [outcome.modality for outcome in result.outcomes] == ["alpha"]


@pytest.mark.parametrize("wanted", [None, ["alpha"]])
def test_what_was_derived_is_an_input_when_its_own_are_gone(
    wanted: list[str] | None, toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))
    zoo, data = toy(enabled=("field", "dark", "alpha", "words")), tmp_path / "data"
    make_toy(zoo, data, train=5, test=0)
    derive_data(zoo, data, modalities=["dark"], workers=1)
    shutil.rmtree(data / "train/field")
    result = derive_data(zoo, data, modalities=wanted, workers=1)
    assert [(o.modality, o.failed == 0) for o in result.outcomes] == [("alpha", True)]
    assert set(ValueStore.of(data, zoo).keys("train", "alpha")) == set(ValueStore.of(data, zoo).keys("train", "dark"))


def test_make_does_not_need_torch(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo = toy()
    program = f"""
import sys
sys.path[:0] = {[p for p in sys.path if str(tmp_path) in p]!r}
from pathlib import Path
from tokenizers_zoo import Zoo
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.tokenizers import training_samples
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.info import describe_data
zoo = Zoo.from_tables({zoo.tables!r}, Path({str(zoo.path)!r}))
make_data(zoo, "toy", Path({str(tmp_path / "d")!r}), train=3, test=0, workers=1)
derive_data(zoo, Path({str(tmp_path / "d")!r}), workers=1)
describe_data(zoo, Path({str(tmp_path / "d")!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)
    assert read_entry(tmp_path / "d", "train", "dark") is not None
    assert make_module.SHARD_SIZE == 500


# ---------------------------------------------------------------------- what cannot be read


def test_values_are_read_once_for_all_commands_until_they_or_the_settings_change(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    shard = out / "train/field/shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:600] + b"x" * 200 + shard.read_bytes()[800:])  # inside a value
    reads = []
    read = ValueStore.read
    monkeypatch.setattr(ValueStore, "read", lambda self, *where: (reads.append(where[1:]), read(self, *where))[1])

    def dropped(zoo: Zoo) -> tuple[int, Any]:
        reads.clear()
        samples = training_samples(zoo, zoo["field"], ValueStore.of(out, zoo))
        return len(reads), samples.provenance["dropped"]

    first = dropped(zoo)
    assert first[0] == 23 + 5 and first[1] == {"train": 1}
    assert dropped(zoo) == (0, {"train": 1})
    os.utime(shard, ns=(1, 1))
    of_shard = len(ValueStore.of(out, zoo).index("train", "field").members) - 14  # those of the other two
    assert dropped(zoo) == (of_shard, {"train": 1}) and dropped(zoo)[0] == 0
    (out / ".audit/train-field.json").write_text("[]")
    assert dropped(zoo) == (23, {"train": 1})
    assert dropped(toy({"modalities": {"field": {"levels": 3}}}))[0] == 28
    assert dropped(zoo) == (28, {"train": 1}) and dropped(zoo)[0] == 0
    monkeypatch.setattr(audit_module, "READERS", audit_module.READERS + 1)
    assert dropped(zoo) == (28, {"train": 1}), "what readers refuse since was read before"


def test_after_a_kill_only_shards_are_read_of_which_nothing_is_known(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with shards that were added, and of those whose keys another shard held."""
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    with writing_shard(out / "train/field/broken.tar") as writer:
        writer.add("broken", b"no", "npy")
    keys = {path.name: list(scan_shard(path).members) for path in sorted((out / "train/field").glob("*.tar"))}
    monkeypatch.setattr(audit_module, "SAVED_EVERY", 1)
    reads, read, stop = list[str](), ValueStore.read, [keys["shard-00001.tar"][3]]

    def reading(store: ValueStore, handle: Any, split: str, key: str) -> Any:
        if key in stop:
            raise KeyboardInterrupt
        reads.append(key)
        return read(store, handle, split, key)

    monkeypatch.setattr(ValueStore, "read", reading)

    def found() -> tuple[set[str], Any]:
        reads.clear()
        samples = training_samples(zoo, zoo["field"], ValueStore.of(out, zoo))
        return {key for key in reads if not key.startswith("test")}, samples.provenance["dropped"]

    with pytest.raises(KeyboardInterrupt):
        found()
    stop.clear()
    left = {key for name in ("shard-00001.tar", "shard-00002.tar") for key in keys[name]}
    assert found() == (left, {"train": 1})
    with writing_shard(out / "train/field/added.tar") as writer:
        writer.add("added", b"no", "npy")
        writer.add("broken", *store_bytes(out / "train/field/shard-00000.tar"))
    assert found() == ({"added", "broken"}, {"train": 1})
    (out / "train/field/added.tar").unlink()
    assert found() == ({"broken"}, {"train": 1})


def test_what_is_left_out_of_training_is_said(
    toy: Callable[..., Zoo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    with writing_shard(out / "train/field/zz.tar") as writer:
        writer.add("broken", b"no", "npy")
        writer.add("none", b"", "npy")
    for _ in range(2):  # found, and remembered
        training_samples(zoo, zoo["field"], ValueStore.of(out, zoo))
        said = capsys.readouterr().err
        assert "field: 2 train values left out, first: broken: field: damaged .npy file" in said
        assert said.count("left out") == 1


def test_only_what_is_wrong_with_a_value_itself_is_remembered(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    handle, pread = zoo["field"], os.pread

    def count() -> int:
        return len(training_samples(zoo, handle, ValueStore.of(out, zoo)).train)

    def failing(file: int, size: int, offset: int) -> bytes:
        if offset > 5000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    for command in (count, lambda: derive_data(zoo, out, workers=1)):
        with pytest.raises(ReadError, match=r"shard-00000.tar: cannot be read: Input/output error; run the same"):
            command()
    assert not list(out.rglob("dark/*")), "no sample is to blame"
    monkeypatch.undo()
    transform = handle.transform
    handle.transform = lambda value, crop: (  # type: ignore[method-assign]
        transform(value, crop) if value[0, 0, 0] > 0.1 else (_ for _ in ()).throw(PluginError("no memory"))
    )
    assert 0 < count() < 23
    handle.transform = lambda value, crop: (_ for _ in ()).throw(MachineError("no memory"))  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="no memory"):
        count()
    handle.transform = transform  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        refuse_for_memory(patch, handle, lambda value: True)
        assert count() < 23
    assert count() == 23


def test_a_shard_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)

    def failing(self: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("tarfile.TarFile.next", failing)
    with pytest.raises(ReadError, match=r"shard-00000.tar: cannot be read: Stale file handle"):
        ValueStore.of(out, zoo).keys("train", "field")
