"""zoo init: a registry for the data in a folder."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_world import the_world
from PIL import Image
from stores import write_tar

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.stores import describe_data
from tokenizers_zoo.machine.terminal import UNSAFE
from tokenizers_zoo.records.config import load_toml
from tokenizers_zoo.stores.manifest import ValueManifest, read_manifest, write_manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def zoo(tmp_path: Path, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo("init", "files")` in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return run_zoo


def write_pictures(folder: Path, size: tuple[int, int], count: int = 12) -> None:
    """Write PNG files of this width and height."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / f"{number:02}.png")


def write_texts(folder: Path, count: int = 12) -> None:
    """Write text files of the same keys."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:02}.txt").write_text("a red ball\n")


@pytest.mark.parametrize(("size", "image_size"), [((20, 30), 64), ((90, 64), 64), ((200, 150), 128), ((300, 400), 224)])
def test_the_size_fits_the_pictures(zoo: Run, size: tuple[int, int], image_size: int) -> None:
    write_pictures(Path("files/rgb"), size)
    assert zoo("init", "files")[0] == 0
    table = load_toml(Path("registry.toml"))["zoo"]
    assert table["image_size"] == image_size and image_size % table["patch_size"] == 0
    assert f"the files have {size[0]} x {size[1]}" in Path("registry.toml").read_text()


def test_a_few_small_pictures_do_not_decide_the_size(zoo: Run) -> None:
    write_pictures(Path("files/rgb"), (200, 150), 24)
    for number, size in ((0, 20), (1, 30)):
        Image.new("RGB", (size, size)).save(f"files/rgb/{number:02}.png")
    assert zoo("init", "files")[0] == 0
    assert load_toml(Path("registry.toml"))["zoo"]["image_size"] == 128
    for number in range(2, 6):
        Image.new("RGB", (70, 70)).save(f"files/rgb/{number:02}.png")
    assert zoo("init", "files", "--overwrite")[0] == 0
    assert load_toml(Path("registry.toml"))["zoo"]["image_size"] == 64


def test_the_registry_works_and_the_next_commands_do(zoo: Run) -> None:
    write_pictures(Path("files/rgb"), (40, 40))
    write_texts(Path("files/caption"))
    write_texts(Path("files/notes"), 1)
    code, printed, complaint = zoo("init", "files")
    assert code == 0 and "12 samples: caption, rgb" in printed and "not used: notes: no installed modality" in complaint
    registry = Zoo.from_toml(Path("registry.toml"))
    assert registry.problems() == {} and registry.check_file() == []
    assert {"rgb", "caption", "rgb_patches", "canny", "palette"} <= set(registry.names())
    assert not {"clip", "depth", "minilm"} & set(registry.names()), "these need a network"
    commands = [shlex.split(line)[1:] for line in complaint.partition("next:\n")[2].splitlines()]
    names = "data data tokenizer tokenize backbone backbone report"
    assert " ".join(words[0] for words in commands) == names
    for words in commands[:2]:
        code, printed, complaint = zoo(*words, "--workers", "1")
        assert code == 0, complaint
    assert (Path("data/train/rgb_patches")).is_dir()


@pytest.mark.parametrize("count", [3, 10, 30])
def test_both_splits_of_a_small_folder_have_every_modality(zoo: Run, count: int) -> None:
    write_pictures(Path("files"), (70, 70), count)
    for path in list(Path("files").iterdir())[::3][:2]:
        path.rename(path.with_stem(f"with text {path.stem}"))
        Path(f"files/with text {path.stem}.txt").write_text("a red ball\n")
    _, printed, complaint = zoo("init", "files")
    assert f", {count} samples" in printed
    make = shlex.split(next(line for line in complaint.splitlines() if " data make " in line))[1:]
    assert zoo(*make, "--workers", "0")[0] == 0
    rows = {(row.split, row.modality): row.samples for row in describe_data(Path("data")).rows}
    names = {"rgb"} if count == 3 else {"rgb", "caption"}
    assert all(rows[split, name] for split in ("train", "test") for name in names)
    code, _, complaint = zoo("tokenizer", "train", "rgb", "--data", "data", "--steps", "1")
    assert code == 0, complaint


ODD_NAMES = [
    "it's", "$HOME `id` \"x\"", "--set", "2024", "~root", "[2024] trip", "a\nb\x1b[31m", "naïve\u202e", "# a;b&c|d>e*",
]  # fmt: skip
INJECTION = 'x\n]\n[modalities.depth]\ncheckpoint = "evil"\n[vocabularies.a]\nb = [\r#\x7f\u2028\x85'


@pytest.mark.parametrize("name", [*ODD_NAMES, INJECTION])
def test_commands_for_folders_of_odd_names_run_in_a_shell(zoo: Run, name: str) -> None:
    write_pictures(Path(name), (70, 70), 3)
    code, printed, complaint = zoo("init", "--", name)
    assert code == 0 and len(printed.splitlines()) == 1
    commands = complaint.partition("next:\n")[2].splitlines()
    assert len(commands) == 7 and all(line.isprintable() for line in commands)
    words = shell_words(commands[0])
    assert zoo(*words, "--workers", "0", "--dry-run")[0] == 0
    assert set(load_toml(Path("registry.toml"))) == {"zoo"}


def shell_words(line: str) -> list[str]:
    """Return the words that bash reads."""
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return words.decode().split("\0")[1:-1]


def test_texts_of_manifests_set_nothing(zoo: Run) -> None:
    world = the_world().put_back()
    for split in ("train", "test"):
        folder = world.folder / "data" / split / "depth"
        manifest = read_manifest(folder, 0, ValueManifest)
        assert manifest
        record = {**manifest.record, "distribution": INJECTION, "source": INJECTION}
        write_manifest(folder, 0, dataclasses.replace(manifest, record=record))
    code, printed, complaint = zoo("init", str(world.folder / "data"))
    assert code == 0 and not UNSAFE.search(printed + complaint)
    assert set(load_toml(Path("registry.toml"))) == {"zoo"} and "evil" in Path("registry.toml").read_text()
    assert not Path("registry.toml").read_text().count("\x7f")


def test_links_out_of_the_folder_are_followed_if_asked(zoo: Run) -> None:
    write_pictures(Path("elsewhere"), (40, 40))
    Path("files").mkdir()
    Path("files/rgb").symlink_to(Path("elsewhere").resolve())
    code, _, complaint = zoo("init", "files")
    assert code == 1 and "add --follow-links" in complaint
    code, _, complaint = zoo("init", "files", "--follow-links")
    assert code == 0 and "zoo data make folder data --set path=files --follow-links" in complaint


def test_a_registry_is_not_overwritten_unasked(zoo: Run) -> None:
    write_pictures(Path("files/rgb"), (40, 40))
    Path("registry.toml").write_text("mine")
    code, _, complaint = zoo("init", "files")
    assert code == 1 and "registry.toml: is there already; --overwrite replaces it" in complaint
    assert Path("registry.toml").read_text() == "mine"
    code, _, complaint = zoo("--registry", "other.toml", "init", "files")
    assert code == 0 and "zoo report run --registry other.toml" in complaint
    assert Zoo.from_toml(Path("other.toml")).check_file() == []
    code, _, complaint = zoo("init", "files", "--overwrite", "--quiet")
    assert code == 0 and not complaint
    assert "rgb" in Zoo.from_toml(Path("registry.toml")).names()


def test_splits_and_tar_files_are_recognised(zoo: Run) -> None:
    for split in ("train", "test"):
        write_pictures(Path(f"loose/{split}/rgb"), (70, 70), 4)
    code, printed, complaint = zoo("init", "loose")
    assert code == 0 and "1 modality of loose, 8 samples: rgb" in printed and "test_fraction" not in complaint
    assert "8 files" in Path("registry.toml").read_text()
    for split in ("train", "test"):
        write_pictures(Path(f"inner/rgb/{split}"), (70, 70), 3 if split == "train" else 2)
    assert ", 5 samples" in zoo("init", "inner", "--overwrite")[1]
    files = {f"{path.stem}.png": path.read_bytes() for path in Path("loose/train/rgb").iterdir()}
    for folder in ("rgb", "tok_depth@224"):
        Path(f"tars/train/{folder}").mkdir(parents=True)
        write_tar(Path(f"tars/train/{folder}/0.tar"), files)
    code, printed, complaint = zoo("init", "tars", "--overwrite")
    assert code == 0 and "1 modality of tars, 4 samples: rgb" in printed
    assert "not used: tok_depth@224: tokens of ml-4m's tokenizers, not values" in complaint


def test_init_reads_an_existing_data_folder(zoo: Run) -> None:
    world = the_world().put_back()
    code, printed, complaint = zoo("init", str(world.folder / "data"))
    samples = sum(describe_data(world.folder / "data").aligned.values())
    assert f"{samples} samples" in printed and f"{samples} samples; " in Path("registry.toml").read_text()
    assert code == 0 and "data make" not in complaint and f"zoo data derive {world.folder / 'data'}" in complaint
    table = load_toml(Path("registry.toml"))["zoo"]
    assert table["image_size"] == 16 and {"rgb", "depth", "caption", "rgb_patches"} <= set(table["modalities"])


def test_folders_without_values_are_refused(zoo: Run) -> None:
    write_texts(Path("a/captoin"))
    code, _, complaint = zoo("init", "a")
    assert code == 1 and "captoin" in complaint and "rename it to caption" in complaint
    Path("empty").mkdir()
    code, _, complaint = zoo("init", "empty")
    assert code == 1 and "empty: " in complaint
    code, _, complaint = zoo("init", str(the_world().put_back().folder / "tokens"))
    assert code == 1 and "holds tokens" in complaint
    assert zoo("init", "gone")[0] != 0
    assert not Path("registry.toml").exists()


def test_texts_alone_need_no_size(zoo: Run) -> None:
    write_texts(Path("files/caption"))
    assert zoo("init", "files")[0] == 0
    registry = Zoo.from_toml(Path("registry.toml"))
    assert registry.check_file() == [] and "caption" in registry.names()
