"""Making and deriving values with toy plugins: kills, resuming, new modalities and refused input."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_world import World, shared_server
from examples import only, write_registry
from stores import write_tar, write_values
from toy_plugins import Install, Toy, derived, make_toy, scaled, snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.outcomes import RunResult
from tokenizers_zoo.build.stores import describe_data, repair_store, verify_store
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.build.tokenizers import train_tokenizer
from tokenizers_zoo.contract import pretrained
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, MachineError, PluginError, ReadError
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores.manifest import Dataset, ValueManifest, read_manifest
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import SUMMARY


def processes_of(session: int) -> list[int]:
    """Return the processes of a session, read from /proc (pid (command) state ppid group session ...)."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                processes.append(int(path.parent.name))
    return processes


def counts(result: Any, split: str = "train") -> dict[str, tuple[int, int, int]]:
    """Map each modality to its numbers of written samples, dropped samples and samples in skipped shards."""
    return {o.modality: (o.written, o.dropped, o.unchanged) for o in result.outcomes if o.split == split}


# ---------------------------------------------------------------------- make


def test_make_writes_enabled_modalities_in_aligned_shards(toy: Toy, tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "data"
    result = make_toy(zoo, out)
    assert counts(result) == {"field": (23, 2, 0), "words": (21, 0, 0)}
    assert counts(result, "test") == {"field": (5, 0, 0), "words": (4, 0, 0)}
    assert list(result.skipped) == ["other"]
    assert "train/field: 23 written, 2 dropped (first: field: expected float32" in result.summary()
    store = ValueStore(out)
    split = store.split("train")
    assert (split.samples, split.shards, store.modalities("train")) == (25, 3, ["field", "words"])
    assert [key for shard in range(3) for key in split.keys(shard)] == [f"train-{i:04}" for i in range(25)]
    rows = store.rows("train", ["field", "words"])
    assert list(rows.keys()) == [f"train-{i:04}" for i in range(25) if i % 10 != 9 and i % 7]
    samples = dict(zoo.source("toy").samples("train", 25, 3)[:])
    for position in rows:
        np.testing.assert_array_equal(
            store.read(zoo["field"], "train", *position), samples[rows.key(position)]["field"]
        )
        assert store.read(zoo["words"], "train", *position) == samples[rows.key(position)]["words"]
    manifest = read_manifest(out / "train/field", 0, ValueManifest)
    assert manifest is not None and manifest.dropped.keys() == {9}
    assert "every number has to be finite" in manifest.dropped[9]
    record = store.record("train", "field")
    assert (record["source"], record["seed"], record["distribution"]) == ("toy", 3, "zoo-toy 1.0")
    assert counts(make_toy(zoo, out)) == {"field": (0, 2, 23), "words": (0, 0, 21)}


def test_processes_write_the_same_bytes_and_survive_sigkill(toy: Toy, tmp_path: Path) -> None:
    make_toy(toy(), tmp_path / "one", train=2000, shard_size=None)
    write_registry(tmp_path / "registry.toml", "")
    words = "data make toy two --train 2000 --test 5 --seed 3 --workers 2"
    plugins = {"path": [path for path in sys.path if str(tmp_path) in path], "forks": True}
    world = World(folder=tmp_path, server=shared_server())
    killed = world(words, event="kill", after="two/**/*.tar", **plugins)
    assert killed.code == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while processes_of(killed.process):  # workers exit with their parent process
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert world(words, **plugins).code == 0
    one_process, two_processes = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert {name: two_processes[name] for name in one_process} == one_process


def test_modalities_and_samples_can_be_added_later(toy: Toy, tmp_path: Path) -> None:
    make_toy(toy(enabled=("field",)), tmp_path / "grown", train=13)
    result = make_toy(toy(), tmp_path / "grown", train=13)
    assert {o.modality: o.written for o in result.outcomes if o.split == "train"} == {"field": 0, "words": 11}
    make_toy(toy(), tmp_path / "grown", train=25)
    make_toy(toy(), tmp_path / "whole", train=25)
    assert snapshot(tmp_path / "grown") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "tables", "message"),
    [
        ({"seed": 4}, {}, "seed"),
        ({"options": {"brightness": 0.5}}, {}, "brightness"),
        ({"train": 7}, {}, "25 samples"),
        ({"shard_size": 5}, {}, "shard_size"),
        ({}, {"zoo": {"image_size": 32}}, "image_size"),
    ],
)
def test_data_of_other_settings_are_never_mixed_in(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    make_toy(toy(), tmp_path / "data")
    before = snapshot(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        make_toy(toy(tables), tmp_path / "data", **changes)
    assert snapshot(tmp_path / "data") == before


def test_tar_files_of_others_are_not_touched(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    foreign_tar = write_tar(data / "train/field/shard-00000.tar", {"a.npy": b""})
    with pytest.raises(DataError, match=f"{foreign_tar}: not written by zoo data"):
        make_toy(zoo, data)
    shutil.rmtree(data)
    make_toy(zoo, data)
    for name in ("shard-00000.tar", "mine.tar"):
        foreign_tar = write_tar(data / "train/dark" / name, {"a.npy": b"mine"})
        before = snapshot(data)
        with pytest.raises(DataError, match=f"{foreign_tar}: not written by zoo data"):
            derive_data(zoo, data, workers=0)
        assert snapshot(data) == before, "test comes before train, and nothing of it was made either"
        foreign_tar.unlink()


def test_a_modality_without_valid_samples_is_an_error(toy: Toy, tmp_path: Path) -> None:
    zoo = toy()
    handle = zoo["field"]
    transform = handle.transform
    handle.transform = lambda value, crop, trusted: (_ for _ in ()).throw(DataError("no"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"train/field: all 25 samples .*: no"):
        make_toy(zoo, tmp_path / "data")
    handle.transform = transform  # type: ignore[method-assign]
    assert counts(make_toy(zoo, tmp_path / "data")) == {"field": (23, 2, 0), "words": (0, 0, 21)}


@pytest.mark.parametrize("damage", ["cut off", "no manifest", "other keys"])
def test_a_damaged_shard_is_made_again(toy: Toy, tmp_path: Path, damage: str) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    before, shard = snapshot(data), data / "train/field/shard-00001.tar"
    if damage == "cut off":
        os.truncate(shard, 1000)
    elif damage == "no manifest":
        shard.with_suffix(".json").unlink()
    else:
        (data / "train/keys/shard-00001.txt").write_text("a\nb\n")
    words = (9, 0, 12) if damage == "other keys" else (0, 0, 21)
    assert counts(make_toy(zoo, data)) == {"field": (9, 2, 14), "words": words}
    assert snapshot(data) == before


def test_classes_of_the_source_are_checked_before_anything_is_written(toy: Toy, tmp_path: Path) -> None:
    zoo = toy(enabled=("field",))
    object.__setattr__(zoo["field"].spec.value, "classes", ("a", "c"))
    with pytest.raises(ConfigError, match=r"a, c, .* a, b; .*\[modalities.field\]"):
        make_toy(zoo, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_sources_without_samples_or_settings_are_refused(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    with pytest.raises(ConfigError, match=r"field, other, words, .* enabled: none"):
        make_toy(toy(enabled=()), data)
    with pytest.raises(ConfigError, match="say how many"):
        make_toy(zoo, data, train=None)
    with pytest.raises(ConfigError, match=r"^path: required, .* --set path="):
        make_data(zoo, "folder", data, train=None, test=None, options={"test_fraction": 0})
    assert not data.exists()


def test_the_documented_recipe_for_grouped_samples_works(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_files(tmp_path / "all", range(3))
    for name, patient in ((name, patient) for name in ("field", "words") for patient in range(7)):
        shutil.copytree(tmp_path / "all" / name, tmp_path / "files" / name / f"p{patient:03}")
    page = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    recipe = page.partition("### Samples that belong together\n")[2].split("```")[1].removeprefix("python")
    assert len(recipe.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "recipe", "exec"), {})
    zoo = toy()
    make_data(zoo, "folder", Path("data"), train=None, test=None, options={"path": "split"}, workers=0)
    store = ValueStore(Path("data"))
    keys = {split: store.keys(split, "field", "words") for split in ("train", "test")}
    assert {key.partition("/")[0] for key in keys["test"]} == {"p000", "p005"}
    assert {key.partition("/")[0] for key in keys["train"]} == {"p001", "p002", "p003", "p004", "p006"}
    assert [len(keys[split]) for split in ("train", "test")] == [15, 6]


def import_files(zoo: Zoo, files: Path, data: Path, shard_size: int = 4) -> RunResult:
    """Import a user's files, all for training."""
    options = {"path": str(files), "test_fraction": 0}
    return make_data(zoo, "folder", data, train=None, test=0, options=options, workers=0, shard_size=shard_size)


def counts_of_import(zoo: Zoo, files: Path, data: Path) -> dict[str, tuple[int, int, int]]:
    return counts(import_files(zoo, files, data))


def own_files(folder: Path, numbers: Iterable[int]) -> None:
    for i in numbers:
        for name, data in (("field", np.full((1, 48, 64), i / 30, np.float32)), ("words", f"file {i}")):
            path = folder / name / f"f{i:02}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, str):
                path.with_suffix(".txt").write_text(data)
            else:
                np.save(path.with_suffix(".npy"), data)


@pytest.mark.parametrize("output", ["data", "field/made/data"])
def test_output_inside_the_input_folder_is_not_read_as_input(output: str, toy: Toy, tmp_path: Path) -> None:
    zoo, files = toy(), tmp_path / "mine"
    own_files(files, range(8))
    for written_count in (8, 0):
        result = import_files(zoo, files, files / output)
        assert [outcome.written for outcome in result.outcomes] == [written_count] * 2 and not result.skipped
    with pytest.raises(ConfigError, match=f"path: {files}: .* cannot go there"):
        import_files(zoo, files, files / "field/..")


def pictures(folder: Path, sizes: dict[str, dict[str, tuple[int, int]]]) -> None:
    """Write files of these sizes (height, width), given by modality and key."""
    for name, files in sizes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for key, size in files.items():
            before, kind = {"rgb": ((3,), "f4"), "video": ((8, 3), "f4"), "sam_instance": ((), "i4")}.get(
                name, ((1,), "f4")
            )
            np.save(folder / name / f"{key}.npy", np.ones((*before, *size), kind))


def zoo_of_pictures(*names: str) -> Zoo:
    return Zoo.from_tables({"zoo": {"image_size": 16, "patch_size": 8, "modalities": list(names)}})


def make_pictures(folder: Path, *names: str) -> Any:
    """Import the files of these modalities from `folder` / mine."""
    return import_files(zoo_of_pictures(*names), folder / "mine", folder / "data", shard_size=2)


def test_a_sample_refused_for_its_shape_is_imported_once_repaired(tmp_path: Path) -> None:
    pytest.importorskip("zoo_geometry")
    square = dict.fromkeys("abcd", (16, 16))
    pictures(tmp_path / "mine", {"rgb": square, "depth": {**square, "b": (16, 11)}})

    def make() -> dict[str, tuple[int, int, int]]:
        return counts(make_pictures(tmp_path, "rgb", "depth"))

    assert make() == {"rgb": (3, 1, 0), "depth": (3, 1, 0)}
    assert make() == {"rgb": (0, 1, 3), "depth": (0, 1, 3)}, "nothing has changed"
    pictures(tmp_path / "mine", {"depth": {"b": (16, 16)}})
    assert make() == {"rgb": (2, 0, 2), "depth": (2, 0, 2)}
    assert ValueStore(tmp_path / "data").keys("train", "rgb") == list("abcd")


@pytest.mark.parametrize("name", ["sam_instance", "video"])
def test_masks_and_frames_are_cropped_like_the_picture(name: str, tmp_path: Path) -> None:
    """This holds for tokens in a sequence and in a grid of three axes."""
    pytest.importorskip("zoo_semantics" if name == "sam_instance" else "zoo_motion")
    sizes = {"a": (24, 16), "b": (32, 48), "c": (48, 32)}
    pictures(tmp_path / "mine", {"rgb": dict.fromkeys(sizes, (48, 32)), name: sizes})
    assert counts(make_pictures(tmp_path, "rgb", name)) == {"rgb": (2, 1, 0), name: (2, 1, 0)}


def test_modalities_without_a_common_sample_are_reported(tmp_path: Path) -> None:
    pytest.importorskip("zoo_geometry")
    size = (16, 16)
    files = {"rgb": {"0_rgb": size, "1_rgb": size}, "depth": {"0_depth": size, "1_depth": size}}
    pictures(tmp_path / "mine", files)
    result = make_pictures(tmp_path, "rgb", "depth")
    size_note, *notes = result.notes
    assert "stored at 16 x 16" in size_note and [note.partition(":")[0] for note in notes] == ["depth", "rgb"]
    assert "keys such as 0_depth, and 0_rgb of rgb" in notes[0]
    pictures(tmp_path / "mine", {"depth": {"1_rgb": size}})
    assert make_pictures(tmp_path, "rgb", "depth").notes == [size_note], "one sample in which they meet is enough"


@pytest.fixture
def units(install_example: Install, tmp_path: Path) -> Toy:
    """Return a function that makes zoos of `field`, with files in units of `scale`, and `dark`, derived from it."""
    install_example("field", scaled())
    install_example("dark", derived("field"))

    def make(**settings: Any) -> Zoo:
        return only({"field": settings}, zoo={"checkpoints": str(tmp_path / "tokenizers")})

    return make


def test_foreign_tars_are_imported_once_and_losses_are_reported(toy: Toy, tmp_path: Path) -> None:
    """ml-4m's layout: other shard names and key order, missing samples, and a truncated file."""
    zoo, files, data = toy(), tmp_path / "mine/train", tmp_path / "data"
    field = {f"{i:04}": zoo["field"].write(np.full((1, 16, 16), i / 10, np.float32))[0] for i in range(6)}
    write_tar(files / "field/all.tar", {f"./{key}.npy": field[key] for key in reversed(field)})
    write_tar(files / "words/000000.tar", {f"{i:04}.txt": f"word {i}".encode() for i in range(4)})
    cut = write_tar(files / "words/000001.tar", {f"{i:04}.txt": f"word {i}".encode() for i in (2, 7, 8)})
    os.truncate(cut, 2 * 1024 + 512)
    for name in ("b.txt", ".hidden.txt", "LICENSE", "a.aux.xml"):
        (files / "words" / name).write_text(name)
    for expected in ({"field": (6, 0, 0), "words": (5, 0, 0)}, {"field": (0, 0, 6), "words": (0, 0, 5)}):
        result = import_files(zoo, tmp_path / "mine", data)
        assert counts(result) == expected
        (note,) = (note for note in result.notes if "stored at" not in note)
        assert note.startswith("train/words: not used of what its folder holds: 3 (first: 000001.tar: 0002: a second")
    store = ValueStore(data)
    assert store.keys("train", "words") == ["0000", "0001", "0002", "0003", "0007"]
    assert store.keys("train", "words", "field") == ["0000", "0001", "0002", "0003"]
    assert store.read_key(zoo["field"], "train", "0003").max() == np.float32(0.3)
    with pytest.raises(DataError, match=f"zoo data make folder DATA --set path={tmp_path / 'mine'}"):
        ValueStore(tmp_path / "mine")


def test_new_files_between_old_ones_are_imported_once(toy: Toy, tmp_path: Path) -> None:
    zoo, files, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(files, [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16])
    (files / "field/f02.npy").write_bytes(b"broken")
    (files / "words/f05.txt").unlink()
    counts_of_import(zoo, files, data)
    assert counts_of_import(zoo, files, data) == {"field": (0, 1, 11), "words": (0, 0, 11)}
    old = snapshot(data)
    own_files(files, [7, 9, 17])
    handle = zoo["field"]
    write, calls = handle.write, iter(range(100))

    def killed(value: Any, trusted: bool) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return write(value, trusted=trusted)

    handle.write = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        counts_of_import(zoo, files, data)
    handle.write = write  # type: ignore[method-assign]
    assert old.keys() <= snapshot(data).keys(), "no shard is missing at any time"
    assert counts_of_import(zoo, files, data) == {"field": (7, 1, 7), "words": (7, 0, 7)}, (
        "one was made before the kill"
    )
    keys = [f"f{i:02}" for i in (*range(11), 12, 14, 16, 17)]
    assert ValueStore(data).keys("train", "field") == [key for key in keys if key != "f02"]
    assert ValueStore(data).keys("train", "words") == [key for key in keys if key != "f05"]
    counts_of_import(zoo, files, tmp_path / "fresh")
    assert snapshot(data).items() - snapshot(tmp_path / "fresh").items() == set()


def test_a_replaced_file_is_imported_again(toy: Toy, tmp_path: Path) -> None:
    zoo, files, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(files, range(12))
    counts_of_import(zoo, files, data)
    np.save(files / "field/f05.npy", np.full((1, 48, 64), 0.75, np.float32))  # same size
    assert counts_of_import(zoo, files, data) == {"field": (4, 0, 8), "words": (0, 0, 12)}
    assert ValueStore(data).read_key(zoo["field"], "train", "f05").max() == 0.75
    for number in range(4):
        (files / f"field/f{number:02}.npy").write_bytes(b"broken")
    for _ in range(2):
        assert counts_of_import(zoo, files, data)["field"] == (0, 4, 8), "it is tried again"
    assert ValueStore(data).keys("train", "field") == [f"f{i:02}" for i in range(4, 12)]
    own_files(files, range(4))
    assert counts_of_import(zoo, files, data)["field"] == (4, 0, 8)


def test_an_instance_with_files_does_not_use_its_plugins_files(toy: Toy, tmp_path: Path) -> None:
    """Samples and splits without its own files get no value for it."""
    user_files, data = tmp_path / "mine", tmp_path / "data"
    files = {"train/field/a": 0.25, "train/field/b": 0.25, "train/lamp/a": 0.5, "test/field/c": 0.25}
    for name, value in files.items():
        (user_files / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(user_files / f"{name}.npy", np.full((1, 16, 16), value, np.float32))
    instances = {name: {"plugin": "field"} for name in ("lamp", "torch")}
    zoo = toy({"modalities": instances}, enabled=("field", "lamp", "torch"))
    result = make_data(zoo, "folder", data, train=None, test=None, options={"path": str(user_files)}, workers=0)
    assert counts(result) == {"field": (2, 0, 0), "lamp": (1, 0, 0), "torch": (2, 0, 0)}
    assert counts(result, "test") == {"field": (1, 0, 0), "torch": (1, 0, 0)}
    store = ValueStore(data)
    assert store.read_key(zoo["lamp"], "train", "a").max() == 0.5 and store.keys("train", "lamp") == ["a"]


def test_a_modality_named_like_an_alias_has_separate_data(install_example: Install, tmp_path: Path) -> None:
    install_example("light", {"name=settings.name,": 'name=settings.name, aliases=("bright", "dark"),'})
    for name in ("dark", "bright"):
        value = only()["light"].write(np.zeros((1, 16, 16), np.float32))[0]
        write_tar(tmp_path / f"mine/train/{name}/0.tar", {"a.npy": value})

    def modalities_of_files(number: int, **modalities: Any) -> list[str]:
        result = make_data(only(modalities), "folder", tmp_path / f"data{number}", train=None, test=0, workers=0,
                           options={"path": str(tmp_path / "mine")})  # fmt: skip
        return sorted(counts(result))

    assert modalities_of_files(0) == ["light"]
    instances = {"a_light": {"plugin": "light"}, "z_light": {"plugin": "light"}, "light": {"enabled": False}}
    assert modalities_of_files(1, **instances) == ["a_light"]
    install_example("dark")
    assert modalities_of_files(2) == ["dark", "light"]


def test_files_are_imported_again_after_their_settings_change(units: Toy, tmp_path: Path) -> None:
    files, data = tmp_path / "mine", tmp_path / "data"
    (files / "field").mkdir(parents=True)
    (files / "field/a.num").write_text("0.2")
    assert counts_of_import(units(), files, data) == {"field": (1, 0, 0)}
    scaled_zoo = units(scale=0.5)
    assert counts_of_import(scaled_zoo, files, data) == {"field": (1, 0, 0)}
    assert ValueStore(data).read_key(scaled_zoo["field"], "train", "a").max() == np.float32(0.1)


def refuse_for_memory(patch: pytest.MonkeyPatch, handle: Any, number: int, error: Exception | None = None) -> None:
    """Reading one value runs out of memory, or fails with another error."""
    original_read, calls = handle.read, iter(range(100))

    def failing(data: bytes, extension: str) -> Any:
        if next(calls) != number:
            return original_read(data, extension)
        if error is not None:
            raise error
        raise InvalidValueError(f"{handle.name}: cannot be read: MemoryError") from MemoryError()

    patch.setattr(handle, "read", failing)


@pytest.mark.parametrize("failure", ["files", "memory", "disk"])
def test_a_file_that_could_not_be_read_is_retried(
    failure: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, files, data = toy(), tmp_path / "mine", tmp_path / "data"
    own_files(files, range(8))
    with monkeypatch.context() as patch:
        if failure == "files":
            (files / "field/f05.npy").rename(tmp_path / "aside")
            (files / "field/f05.npy").symlink_to(files / "mounted")  # as on a disk that is not mounted
        else:
            refuse_for_memory(patch, zoo["field"], 5, ReadError("Input/output error") if failure == "disk" else None)
        assert counts_of_import(zoo, files, data) == {"field": (7, 1, 0), "words": (8, 0, 0)}
        reasons = str([row.reasons for row in describe_data(data).rows])
        error = {"files": "No such file", "memory": "MemoryError", "disk": "Input"}[failure]
        assert "f05: " in reasons and error in reasons
    if failure == "files":
        (tmp_path / "aside").rename(files / "mounted")
    assert counts_of_import(zoo, files, data) == {"field": (4, 0, 4), "words": (0, 0, 8)}
    assert counts_of_import(zoo, files, data) == {"field": (0, 0, 8), "words": (0, 0, 8)}


def test_a_picture_refused_beside_an_unread_one_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once depth can be read, it agrees with rgb, so only the mask with the other shape is refused."""
    pytest.importorskip("zoo_geometry")
    pytest.importorskip("zoo_semantics")
    square = dict.fromkeys("abcd", (16, 16))
    pictures(tmp_path / "mine", {"rgb": square, "depth": square, "sam_instance": {**square, "b": (16, 11)}})
    zoo = zoo_of_pictures("rgb", "depth", "sam_instance")
    with monkeypatch.context() as patch:
        refuse_for_memory(patch, zoo["depth"], 1)
        first = counts(import_files(zoo, tmp_path / "mine", tmp_path / "data", shard_size=2))
    assert first == dict.fromkeys(("depth", "rgb", "sam_instance"), (3, 1, 0))
    second = counts(import_files(zoo, tmp_path / "mine", tmp_path / "data", shard_size=2))
    assert second == {"depth": (2, 0, 2), "rgb": (2, 0, 2), "sam_instance": (1, 1, 2)}


# ---------------------------------------------------------------------- derive


def test_derive_computes_missing_values_and_records_failures(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    monkeypatch.setitem(pretrained._loaded, "a network", object())
    result = derive_data(zoo, out, workers=0)
    assert not pretrained._loaded, "one modality's networks leave their memory to the next one's"
    store = ValueStore(out)
    field, dark = store.rows("train", ["field"]), store.rows("train", ["dark"])
    bright = [position for position in field if store.read(zoo["field"], "train", *position)[0, 0, 1] > 0.9]
    assert bright and set(dark) == set(field) - set(bright)
    for position in dark:
        expected = 1 - store.read(zoo["field"], "train", *position)
        np.testing.assert_array_equal(store.read(zoo["dark"], "train", *position), expected)
    info = describe_data(out)
    row = {(row.split, row.modality): row for row in info.rows}["train", "dark"]
    assert (row.samples, row.dropped) == (len(dark), len(bright)) and row.made_by == "zoo-dark 1.0, from field"
    assert any("too dark" in reason for reason in row.reasons)
    assert info.aligned["train"] == len(store.keys("train", "field", "dark", "words"))
    assert counts(result)["dark"] == (len(dark), len(bright), 0)
    assert counts(derive_data(zoo, out, workers=0)) == {"dark": (0, len(bright), len(dark))}


def test_derivation_follows_new_samples_and_settings(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    make_toy(zoo, data, train=33)
    assert describe_data(data).rows[3].missing == 2, "the last shard has more samples, and one is new"
    assert counts(derive_data(zoo, data, workers=0))["dark"][2] == 17
    assert Dataset.read(data).splits["train"].open(data, "train").shards == 4
    other_settings = toy({"modalities": {"dark": {"levels": 8}}})
    assert counts(derive_data(other_settings, data, workers=0))["dark"][2] == 0


def test_values_are_derived_again_when_their_inputs_change(units: Toy, tmp_path: Path) -> None:
    data, zoo = tmp_path / "data", units()

    def write(**numbers: float) -> None:
        values = {key: (str(number).encode(), "num") for key, number in numbers.items()}
        write_values(data, "train", {"field": values}, shard_size=2)

    def derive_counts(zoo: Zoo) -> tuple[int, int, int]:
        return counts(derive_data(zoo, data, workers=0))["dark"]

    write(a=0.5, b=0.5, c=0.5)
    assert derive_counts(zoo) == (3, 0, 0) and derive_counts(zoo) == (0, 0, 3)
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)  # all files get new modification times
    data = tmp_path / "copied"
    assert derive_counts(zoo) == (0, 0, 3)
    assert derive_counts(units(scale=0.5)) == (3, 0, 0), "its inputs are read with other settings"
    assert ValueStore(data).read_key(zoo["dark"], "train", "a").max() == 0.75
    assert derive_counts(zoo) == (3, 0, 0)
    object.__setattr__(zoo["field"].spec.value, "classes", ("a", "c"))
    assert derive_counts(zoo) == (3, 0, 0) and derive_counts(zoo) == (0, 0, 3)
    shutil.rmtree(data / "train/dark")
    derive_counts(zoo)
    write(a=0.5, b=0.5, c=1)
    for _ in range(2):
        assert derive_counts(zoo) == (0, 1, 2), "too dark now, and tried again"
    assert ValueStore(data).keys("train", "dark") == ["a", "b"]


@pytest.mark.parametrize("path", [
    "data/train/field/shard-00001.tar", "data/train/dark/shard-00001.index", "data/train/dark/shard-00001.json",
    "data/train/keys/shard-00001.txt", "tokens/train/words/shard-00001.tokens", "tokens/train/words/shard-00001.json",
    "tokens/train/words/summary.json", "tokens/train/keys/shard-00001.txt",
])  # fmt: skip
def test_repair_restores_the_damage_that_verify_reports(path: str, toy: Toy, tmp_path: Path) -> None:
    zoo, data, tokens = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    if (root := tmp_path / path.partition("/")[0]) == tokens:
        train_tokenizer(zoo, "words", data)
        tokenize(zoo, data, tokens, crops=2, seed=4)
    before, damaged = snapshot(root), tmp_path / path
    assert not list(verify_store(root))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # same size, so only the checksum differs
    damaged.write_bytes(b"{" if damaged.suffix == ".json" else content)
    name = damaged.parent.name
    damaged_shards = {(damage.modality, damage.number) for damage in verify_store(root)}
    assert damaged_shards == {(name, None if damaged.name == SUMMARY else 1)}
    if damaged.suffix in (".tar", ".index"):
        with pytest.raises(ReadError, match=f"{damaged}: has another checksum .*repair"):
            ValueStore(data).read(zoo[name], "train", 1, 3)
    lines = list(repair_store(zoo, root, workers=0))
    assert any(str(damaged.parent) in line for line in lines)
    assert snapshot(root) == before
    assert list(repair_store(zoo, root, workers=0)) == [f"{root}: all files agree with their manifests"]


def test_repair_removes_shards_beyond_the_split(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    before = snapshot(data)
    for path in (data / "train/field").glob("shard-00000.*"):
        path.with_name(path.name.replace("00000", "00009")).write_bytes(path.read_bytes())
    assert [damage.number for damage in verify_store(data)] == [9]
    assert len(list(repair_store(zoo, data, workers=0))) == 2
    assert snapshot(data) == before and not list(verify_store(data))


def test_a_repair_without_sources_removes_nothing(toy: Toy, install_example: Install, tmp_path: Path) -> None:
    """Values without a source: `dark` is derived from them, and `darker` from `dark`."""
    install_example("darker", derived("dark"))
    zoo, data = toy(enabled=("field", "words", "dark", "darker")), tmp_path / "data"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    record = read_table(data / "dataset.json")
    splits = {name: {**split, "source": None} for name, split in record["splits"].items()}
    write_table(data / "dataset.json", {**record, "splits": splits})
    before = snapshot(data)
    for name in ("field", "darker"):
        path = data / f"train/{name}/shard-00001.tar"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"field/shard-00001.tar: .* checksum .* cannot be made again"):
        list(repair_store(zoo, data, workers=0))
    changed = {name for name, content in snapshot(data).items() if before[name] != content}
    assert snapshot(data).keys() == before.keys()
    assert changed == {"train/field/shard-00001.tar", "train/field/shard-00001.json"}


def test_a_duplicate_key_is_refused(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    split = ValueStore(data).split("train")
    split.write_keys(1, [split.keys(0)[0], *split.keys(1)[1:]])
    with pytest.raises(DataError, match=r"keys/shard-00001.txt: .* twice, .* cannot be made again"):
        list(repair_store(zoo, data, workers=0))


@pytest.mark.parametrize("stage", ["derive", "tokenize"])
def test_a_damaged_shard_is_no_error_of_a_sample(stage: str, toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    train_tokenizer(zoo, "words", data)
    damaged = data / f"train/{'field' if stage == 'derive' else 'words'}/shard-00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"1")
    with pytest.raises(ReadError, match=f"{damaged}: has another checksum .*repair"):
        derive_data(zoo, data, workers=0) if stage == "derive" else tokenize(zoo, data, tmp_path / "tokens")


def test_a_failing_machine_is_no_error_of_a_sample(toy: Toy, install_example: Install, tmp_path: Path) -> None:
    data, memory_flag = tmp_path / "data", tmp_path / "room"
    failing = f"        if not Path({str(memory_flag)!r}).exists():\n            raise MemoryError('13 GB')\n"
    install_example("shadow", derived("field") | {"        return value\n\n": f"{failing}        return value\n\n"})
    zoo = toy(enabled=("field", "shadow"))
    make_toy(zoo, data, test=0)
    with pytest.raises(MachineError, match=r"^shadow: derive .* \w+Error: .* fewer workers"):
        derive_data(zoo, data, workers=0)
    assert not list(data.rglob("shadow/*"))
    memory_flag.touch()
    assert [(o.written, o.dropped) for o in derive_data(zoo, data, workers=0).outcomes] == [(22, 1)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), MachineError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), MachineError),
        (KeyError("x"), PluginError),
    ],
)
def test_errors_of_a_source_name_the_sample(
    error: Exception, kind: type[Exception], toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = toy().source("toy").samples("train", 3, 0, {})
    monkeypatch.setattr(type(samples._samples), "__getitem__", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(kind, match=r"^toy: sample 1 of "):
        samples[1]


def test_derivation_follows_shared_settings(toy: Toy, install_example: Install, tmp_path: Path) -> None:
    own_setting = {"    levels: int = 16\n": "    levels: int = 16\n    shade: float = 1.0\n"}
    install_example("shadow", derived("field") | own_setting)
    data = tmp_path / "data"

    def open_zoo(**shared_settings: Any) -> Zoo:
        return toy({"zoo": shared_settings}, enabled=("field", "shadow"))

    def derive(**shared_settings: Any) -> list[tuple[bool, int]]:
        outcomes = derive_data(open_zoo(**shared_settings), data, workers=0).outcomes
        return [(outcome.written > 0, outcome.unchanged) for outcome in outcomes]

    make_toy(open_zoo(), data, test=0)
    assert derive() == [(True, 0)] and derive(patch_size=4, of_no_plugin=1) == [(False, 22)]
    assert derive(shade=0.5) == [(True, 0)] and derive(shade=0.5) == [(False, 22)]
    assert derive() == [(True, 0)]


def test_derive_takes_inputs_first_and_says_what_is_missing(toy: Toy, install_example: Install, tmp_path: Path) -> None:
    install_example("alpha", derived("dark"))  # its name sorts before its input's
    install_example("zeta", derived("absent"))
    zoo = toy(enabled=("field", "dark", "alpha", "zeta"))
    make_toy(zoo, tmp_path / "data")
    with pytest.raises(DataError, match=r"zeta: .* absent, .* field"):
        derive_data(zoo, tmp_path / "data", modalities=["zeta"], workers=0)
    with pytest.raises(DataError, match=r"field: zoo-field 1.0 does not derive"):
        derive_data(zoo, tmp_path / "data", modalities=["field"], workers=0)
    result = derive_data(zoo, tmp_path / "data", modalities=["alpha"], splits=["train"], workers=0)
    assert [outcome.modality for outcome in result.outcomes] == ["dark", "alpha"]
    result = derive_data(zoo, tmp_path / "data", workers=0)
    assert result.skipped["zeta"].startswith("derived from absent")
    assert {(o.split, o.modality) for o in result.outcomes if o.written} == {("test", "dark"), ("test", "alpha")}


def test_derived_values_are_inputs_even_without_their_own_inputs(
    toy: Toy, install_example: Install, tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))
    zoo, data = toy(enabled=("field", "dark", "alpha")), tmp_path / "data"
    make_toy(zoo, data, train=5, test=0)
    derive_data(zoo, data, modalities=["dark"], workers=0)
    shutil.rmtree(data / "train/field")
    for modalities in (None, ["alpha"]):
        assert list(counts(derive_data(zoo, data, modalities=modalities, workers=0))) == ["alpha"]
    assert ValueStore(data).keys("train", "alpha") == ValueStore(data).keys("train", "dark")
