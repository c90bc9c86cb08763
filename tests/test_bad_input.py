"""Bad input on the command line: one line that says what, where, and what to do; exit code 1; nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_world import REGISTRY, STAGES, World, results, the_world
from stores import write_values

from tokenizers_zoo.build.stores import describe_data
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.records.io import read_table, write_table

Install = Callable[..., Path]


@pytest.fixture
def world() -> Iterator[World]:
    """The finished pipeline; a refused command leaves all its files unchanged."""
    yield the_world().put_back()


def unchanged(world: World) -> bool:
    """True if all files of the pipeline are unchanged."""
    remaining, expected = results(world.files()), results(world.after["score"])
    return all(remaining.get(name) == data for name, data in expected.items())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("info dept", ("unknown modality 'dept'", "did you mean depth?")),
        ("data make foldr new", ("unknown source 'foldr'", "did you mean folder?")),
        ("tokenizer eval depth --data data --split tset", ("no split 'tset'", "test, train")),
        ("backbone train --tokens tokens --out new --preset nanno", ("nanno", "nano")),
        ("backbone train --tokens tokens --out new --set masking.input_budgit=3", ("input_budget",)),
        ("backbone train --tokens tokens --out new --set masking.input_budget=4 --set masking=3", ("masking",)),
        ("backbone train --tokens tokens --out new --modalities rgb_patches", ("discrete",)),
        ("backbone eval run --input depth --target captoin", ("captoin", "caption")),
        ("backbone generate run --input caption --target depth --out new --keys tset00", ("tset00", "test00")),
        ("doctor --jsn", ("--jsn", "--json")),
        ("tokenize data --out new --modalities ,", ("expected names",)),
    ],
)  # fmt: skip
def test_unknown_names_offer_close_ones_in_every_command(world: World, words: str, parts: tuple[str, ...]) -> None:
    world(words).refused(*parts)
    assert unchanged(world) and not (world.folder / "new").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("data info absent", ("absent: no such folder", "zoo data make SOURCE absent")),
        ("data make folder new --set path=absent", ("absent", "no such folder")),
        ("encode depth absent.npy", ("absent.npy",)),
        ("tokenizer train normal --data data", ("data/train", "normal", "zoo data derive data")),
        ("tokenize data --out new --modalities rgb", ("rgb", "zoo tokenizer train")),
        ("data derive data --modalities normal", ("normal",)),
        ("backbone train --tokens tokens --out new --modalities rgb", ("tokens/train", "rgb", "caption")),
        ("backbone eval absent", ("absent: no such folder",)),
        ("backbone eval run --target rgb", ("rgb", "caption, depth, rgb_patches")),
        ("report absent", ("absent", "no trained backbone")),
        ("tokenize data --out registry.toml --modalities depth", ("registry.toml", "file", "folder")),
        ("encode depth files/test/depth/test00.npy --out data", ("data", "folder", "file")),
    ],
)  # fmt: skip
def test_missing_files_are_named_with_the_command_that_creates_them(
    world: World, words: str, parts: tuple[str, ...]
) -> None:
    world(words).refused(*parts)
    assert unchanged(world) and not (world.folder / "new").exists()


def test_a_plugin_that_cannot_be_loaded_is_named(world: World, install_example: Install) -> None:
    changes, message = {"def score(": "def scores("}, "there is no hook 'scores'; did you mean 'score'?"
    path = [str(install_example("broken", changes))]
    values = {f"train{number:02}": (array_bytes(np.zeros((1, 16, 16), np.float32)), "npy") for number in range(8)}
    write_values(world.folder / "data", "train", {"broken": values})
    data = "--data data"
    for words in ("info broken", f"tokenizer train broken {data}", "tokenize data --out new --modalities broken"):
        world(words, path=path).refused("broken: ", "zoo-broken 1.0", message)
    listed = world("list", path=path)
    assert listed.code == 0 and "depth" in listed.printed and "problem: broken: " in listed.complaint
    assert world("check", path=path).code == 1
    skipped = world("tokenize data --out tokens --workers 0", path=path)  # the others work
    assert skipped.code == 0 and "broken: skipped: broken: " in skipped.printed


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("image_size = 16", "image_sise = 16", (":2 [zoo] image_sise", "did you mean image_size")),
        ("image_size = 16", "image_size = 40000", (":2 [zoo] image_size: expected at most 50,000,000 pixels",)),
        ("[vocabularies.text]", "[vocabularies.txet]", ("[vocabularies] txet", "did you mean text?")),
        ("steps = 6", "steps = '6'", (":11 [modalities.depth.tokenizer] steps", "expected int >= 1, got str '6'")),
        ("[modalities.depth]", "[modalities.depth]\nchekpoint = 'x'", (":11 [modalities.depth] chekpoint: unknown",)),
        ("[zoo]", "[zoo", ("not valid TOML", "line 1")),
    ],
)
def test_registry_mistakes_stop_every_command(world: World, old: str, new: str, parts: tuple[str, ...]) -> None:
    (world.folder / "registry.toml").write_text(REGISTRY.replace(old, new))
    for words in (STAGES["make"], "tokenizer train caption --data data"):
        world(words).refused("registry.toml", *parts)
    for words in ("list", "check"):  # these commands list all problems
        ended = world(words)
        text = " ".join(f"{ended.printed}{ended.complaint}".split())  # lines are wrapped
        assert all(part in text for part in parts)


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


USES = {
    "tokenizers/depth": ("tokenizer train depth --data data", "tokenize data --out new --modalities depth"),
    "tokenizers/text": (
        "tokenizer eval caption --data data", "encode caption files/test/caption/test00.txt",
    ),
    "run": (STAGES["backbone"], STAGES["eval"], STAGES["generate"]),
}  # fmt: skip


@pytest.mark.parametrize("folder", USES)
def test_an_altered_checkpoint_is_refused_and_left(world: World, folder: str) -> None:
    for name, damage, parts in (
        ("model.safetensors", altered, ("sha256", "expected", "copy this folder again")),
        ("config.json", cut, (f"{folder}/config.json: damaged", "copy it again")),
    ):
        world.put_back()
        damage(file := world.folder / folder / name)
        data = file.read_bytes()
        for words in USES[folder]:
            world(words).refused(folder, *parts)
        assert file.read_bytes() == data and not (world.folder / "new").exists()


@pytest.mark.parametrize(
    ("file", "content", "commands"),
    [
        ("tokenizers/depth/run.json", "[]", ("tokenizer train depth --data data",)),
        ("run/run.json", "[]", (STAGES["backbone"], STAGES["eval"], STAGES["generate"], STAGES["report"])),
        ("run/evaluation/evaluation.json", "[]", (STAGES["eval"], STAGES["report"])),
        ("run/metrics.jsonl", '{"format": 1}\n{"step" 2}\n', (STAGES["report"],)),
    ],
)
def test_run_file_with_unexpected_content_is_named(
    world: World, file: str, content: str, commands: tuple[str, ...]
) -> None:
    """Without its run.json a folder would start again or belong to nobody, so that must not be deleted."""
    (world.folder / file).write_text(content)
    for words in commands:
        assert ("delete" in world(words).refused(file, "damaged")) != file.endswith("run.json")


def test_a_path_with_nul_is_named_with_its_file(world: World) -> None:
    path = world.folder / "run/run.json"
    record = read_table(path)
    write_table(path, record | {"places": record["places"] | {"tokens": "/a\0b"}})
    for name in ("backbone", "eval", "report"):
        world(STAGES[name]).refused("run/run.json: damaged: places.tokens", "copy it again")
    (world.folder / "registry.toml").write_text(f'{REGISTRY}[modalities.rgb]\ncheckpoint = "a\\u0000b"\n')
    world("encode rgb files/test/rgb/test00.png").refused("registry.toml: ", "NUL")


def test_mistake_with_overwrite_deletes_nothing(world: World) -> None:
    train = "tokenizer train depth --data data --overwrite --set"
    world(f"{train} stepz=3").refused("[modalities.depth.tokenizer] stepz", "did you mean steps?")
    world(f"{train} steps=0").refused("steps: expected int >= 1")
    altered(world.folder / "tokenizers/depth/model.safetensors")
    world("tokenize data --out tokens --modalities depth --overwrite --workers 0").refused("sha256")
    assert (world.folder / "tokens/train/depth/shard-00000.tokens").exists()


def test_tokenizer_is_replaced_only_by_a_new_tokenizer(world: World) -> None:
    shutil.rmtree(world.folder / "data/test")
    before = world.files()
    world("tokenizer train depth --data data --overwrite").refused("depth: ", "held-out samples")
    assert world.files() == before


def test_setting_for_all_applies_to_modalities_that_have_it(world: World) -> None:
    train = "tokenizer train --all --data data --set"
    world(f"{train} stepz=3").refused("[modalities.", "tokenizer] stepz", "did you mean steps?")
    done = world(f"{train} steps=6")
    assert done.code == 0 and "depth: tokenizer in" in done.printed
    assert re.search("caption: .*no steps", done.complaint)
    assert "depth: tokenizer in tokenizers/depth" in (rerun := world(f"{train} steps=6")).printed
    assert " step " not in rerun.complaint
    retrained = world(f"{train} steps=5")
    assert retrained.code == 0 and "depth: left as it is: tokenizers/depth" in retrained.complaint
    world(f"{train} steps=5 --strict").refused("tokenizers/depth: holds another tokenizer", "steps was 6, is 5")


def test_tokens_of_a_disabled_modality_are_refused(world: World) -> None:
    path = world.folder / "registry.toml"
    path.write_text(path.read_text().replace("[zoo]", '[zoo]\nmodalities = ["depth", "rgb_patches"]', 1))
    train = "backbone train --tokens tokens --out new --config backbone.toml"
    world(train).refused("'caption' is disabled", "registry.toml:2", "--modalities")
    assert "--modalities" not in world(f"{train} --modalities caption").refused("'caption' is disabled")
    assert world(f"{train} --modalities depth,rgb_patches").code == 0


def test_tokens_of_another_tokenizer_are_refused(world: World) -> None:
    ours = json.loads((world.folder / "one.json").read_text())["fingerprint"][:12]
    assert world("tokenizer train depth --data data --overwrite --seed 1").code == 0
    theirs = world("info depth").printed.split("fingerprint")[1].split()[0][:12]
    assert theirs != ours
    for words in ("decode depth one.json", STAGES["eval"], STAGES["generate"]):
        world(words).refused("depth", ours, theirs)
    world("backbone train --tokens tokens --out new --config backbone.toml").refused("depth", ours, theirs)
    world("decode caption one.json").refused("one.json", "depth", "caption")


def test_unreadable_user_files_are_skipped_with_the_reason(world: World) -> None:
    files = world.folder / "files" / "train"
    depth = np.full((1, 16, 16), 2, np.float32)
    depth[0, 3, 4] = np.nan
    np.save(files / "depth" / "train00.npy", depth)
    (files / "depth" / "train02.npy").write_bytes(b"\x80no array")
    (files / "caption" / "train06.txt").write_bytes(b"na\xefve")
    cut(files / "rgb" / "train07.png")
    result = world("data make folder new --set path=files --workers 0")
    assert result.code == 0
    dropped = [
        f"{row.split}/{row.modality}/{reason}"
        for row in describe_data(world.folder / "new").rows
        for reason in row.reasons
    ]
    reasons = {
        ("depth", "train00"): "no number", ("depth", "train02"): ".npy file", ("caption", "train06"): "UTF-8",
        ("rgb", "train07"): "picture",
    }  # fmt: skip
    assert len(dropped) == len(reasons)
    for (name, key), words in reasons.items():
        assert any(line.startswith(f"train/{name}/shard-00000: {key}: ") and words in line for line in dropped), dropped
    assert re.search(r"train/depth: 22 written, 2 dropped .*\(sample train00\)", result.printed)


def test_folder_without_any_readable_file_is_refused(world: World) -> None:
    for path in (world.folder / "files/test").glob("[rd]*/*"):
        path.write_bytes(b"")
    message = "test/depth", "all 8 samples", "test00", "test/rgb (8)"
    world("data make folder newer --set path=files --workers 0").refused(*message)
    (world.folder / "files/train/depth").rename(world.folder / "files/train/Depths")
    (world.folder / "files/test/depth").rename(world.folder / "files/test/Depths")
    printed = " ".join(world("data make folder newest --set path=files --test 0 --workers 0").printed.split())
    assert "Depths: skipped" in printed and "did you mean depth?" in printed
    mine = world.folder / "mine" / "depth"
    mine.mkdir(parents=True)
    (mine / "a.npy").write_bytes((world.folder / "files/train/Depths/train00.npy").read_bytes())
    world("data make folder new2 --set path=mine").refused("none of its 1 samples", "--test 0", "test_fraction")
    assert not (world.folder / "new2").exists()
    (world.folder / "split/train").mkdir(parents=True)
    mine.rename(world.folder / "split/train/depth")
    world("data make folder new2 --set path=split").refused("no split 'test'", "train", "--test 0")
    assert not (world.folder / "new2").exists()
    assert world("data make folder new2 --set path=split --test 0 --workers 0").code == 0


def test_a_damaged_shard_is_named_and_repaired(world: World) -> None:
    shard = "data/train/depth/shard-00000.tar"
    cut(world.folder / shard)
    tokenize = "tokenize data --out new --modalities depth --workers 0"
    for words in (tokenize, "tokenizer train depth --data data --out newer"):
        world(words).refused(shard, "zoo data repair")
    world("data verify data").refused(shard, "zoo data repair")
    repaired = world("data repair data --workers 0")
    assert repaired.code == 0 and shard in repaired.printed
    assert world.files()[shard] == world.after["score"][shard]


def test_damaged_tokens_and_dataset_records_are_named(world: World) -> None:
    cut(world.folder / "tokens/train/depth/shard-00000.tokens")
    train = "backbone train --tokens tokens --out new_run --config backbone.toml"
    world(train).refused("tokens/train/depth/shard-00000.tokens", "zoo data repair")
    assert world("data repair tokens --workers 0").code == 0 and world("data verify tokens").code == 0
    cut(world.folder / "data/dataset.json")
    for words in ("data info data", STAGES["make"]):
        world(words).refused("data/dataset.json: damaged", "copy it again")


def test_unexpected_error_is_one_line_and_debug_shows_the_traceback(world: World, install: Install) -> None:
    code = "import click\n@click.command()\ndef odd():\n    [][1]\n"
    path = [str(install("zoo-odd", {"tokenizers_zoo.commands": {"odd": "zoo_odd:odd"}}, {"zoo_odd": code}))]
    line = world("odd", path=path).refused("unexpected IndexError: ", "--debug")
    assert ".py:" in line
    assert "Traceback" in world("--debug odd", path=path).complaint
