"""`zoo backbone generate` as a process: inputs, kept parts, guidance, draws, output files and refused arguments."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from command_world import World, the_world

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.files.checkpoint import load_config
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores.tokens import TokenColumn
from zoo_backbone.generate import TargetPlan
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.measure.gallery import write_sheet
from zoo_backbone.use import generate_to_folder as outputs
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.plan_request import PlanRequest

MAKE = "backbone generate run --out new"
DIGITS = "9" * 5000


@pytest.fixture
def world() -> World:
    return the_world().put_back()


def tokens(world: World, folder: str, name: str = "depth") -> Any:
    return json.loads((world.folder / folder / f"{name}.tokens.json").read_text())["tokens"]


def results_in(world: World, out: str) -> dict[str, bytes]:
    """Return the results in a folder without its state files."""
    files = {name.removeprefix(f"{out}/"): data for name, data in world.files().items() if name.startswith(f"{out}/")}
    return {name: data for name, data in files.items() if name not in ("run.json", ".lock", "sheet.png")}


def generated(world: World, recipe: GenerationPlan, **options: Any) -> list[Path]:
    """Run the command in this process."""
    model = AnyToAny.from_pretrained(world.folder / "run", device="cpu")
    return outputs.generate_to_folder(model, recipe, world.folder / "new", world.folder / "tokens", **options)


def printed_by(world: World, words: str) -> str:
    ended = world(words)
    assert ended.code == 0, ended.complaint
    return ended.printed


def test_written_plan_reproduces_the_results(world: World) -> None:
    (world.folder / "text.txt").write_text("a red ball")
    words = f"{MAKE} --input rgb_patches --input caption=text.txt --target depth --guide rgb_patches=2,caption=-0.5"
    printed = printed_by(world, f"{words} --samples 1-2 --draws 2 --seed 3 --steps 2")
    assert printed == "2 samples, 2 draws of each, in new, side by side in new/sheet.png\n"
    first = results_in(world, "new")
    assert {name.split("/")[-1] for name in first} == {"depth.npy", "depth.png", "depth.tokens.json", "plan.toml"}
    plan = tomllib.loads(first["plan.toml"].decode())
    assert plan["inputs"] == ["rgb_patches", f"caption={world.folder}/text.txt"]
    assert (plan["samples"], plan["seed"], plan["guidance"]["weights"]["caption"]) == ("1-2", 3, -0.5)
    assert plan["targets"] == [{"name": "depth", "steps": 2}]
    assert "# weights sha256: " in first["plan.toml"].decode()
    printed_by(world, "backbone generate run --plan new/plan.toml --out again")
    assert results_in(world, "again") == first
    printed_by(world, "backbone generate run --plan new/plan.toml --out third --seed 4")
    assert results_in(world, "third") != first and "seed = 4" in (world.folder / "third/plan.toml").read_text()


def test_sample_does_not_depend_on_other_samples(world: World) -> None:
    words = "--input rgb_patches --target depth,caption --set temperature=3 --set caption.max_length=5"
    printed_by(world, f"backbone generate run --out all {words} --samples 0-3 --draws 2")
    printed_by(world, f"backbone generate run --out one {words} --samples 2-2")
    printed_by(world, f"backbone generate run --out key {words} --keys test02 --draws 3")
    every = results_in(world, "all")
    for out, draws in (("one", (0,)), ("key", (0, 1))):
        for draw in draws:
            for name in ("depth.tokens.json", "caption.tokens.json", "depth.npy"):
                assert results_in(world, out)[f"test02/{draw}/{name}"] == every[f"test02/{draw}/{name}"]
    assert len({every[f"test0{i}/{draw}/caption.tokens.json"] for i in range(4) for draw in range(2)}) >= 4
    assert all(len(tokens(world, f"all/test0{i}/0", "caption")) <= 5 for i in range(4))
    # Without inputs, only the numbers of sample and draw make draws differ.
    printed_by(world, f"{MAKE} --target depth --samples 0-1 --draws 2 --set temperature=3")
    depth_files = [data for name, data in results_in(world, "new").items() if name.endswith("depth.tokens.json")]
    assert len(depth_files) == len(set(depth_files)) == 4


def test_a_part_is_kept_and_values_are_given_in_every_way(world: World) -> None:
    command = f"{MAKE} --input depth --target depth --samples 2 --set temperature=5"
    printed_by(world, f"{command} --inpaint depth=box:0,0,1,0.5 --draws 3")
    for key in ("test00", "test01"):
        left = {str(np.array(tokens(world, f"new/{key}/{draw}"))[:, 0]) for draw in range(3)}
        right = {str(np.array(tokens(world, f"new/{key}/{draw}"))[:, 1]) for draw in range(3)}
        assert len(left) > 1 and len(right) == 1
    # Inputs can be a token file, a value file or text, and a given text can be continued.
    inputs = "--input depth=new/test00/0/depth.tokens.json --input caption='red'"
    printed_by(world, f"backbone generate run --out again {inputs} --target caption --inpaint caption=after")
    text = (world.folder / "again/depth/0/caption.txt").read_text()
    assert text.startswith("red"), text
    printed_by(world, "backbone generate run --out file --input depth=files/test/depth/test00.npy --target caption")
    assert (world.folder / "file/test00/0/caption.txt").is_file()


def test_sheet_titles_use_the_requested_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the model reads rgb as rgb_patches. Long titles take several lines, and none reaches the next column."""
    titles: list[str] = []
    monkeypatch.setattr(outputs, "write_sheet", lambda path, columns, rows: titles.extend(columns))
    targets = (TargetPlan(name="depth", steps=1),)
    (folder,) = generated(
        world, GenerationPlan(inputs=(f"rgb={world.folder}/files/test/rgb/test00.png",), targets=targets)
    )
    assert titles == ["rgb", "generated depth"] and folder == world.folder / "new/test00/0"
    picture = PIL.Image.new("RGB", (8, 8), "red")
    tops = []
    for names in (["rgb", "depth"], ["generated backscatter_of_radar 1", "W" * 400]):
        write_sheet(world.folder / "sheet.png", names, [[picture, picture]])
        sheet = PIL.Image.open(world.folder / "sheet.png")
        boxes = json.loads(sheet.text["cells"])[0]
        tops.append(boxes[0][1])
        header = np.asarray(sheet)[: tops[-1]].min(axis=(0, 2))
        for left, _, right, _ in boxes:
            assert header[left : right - 4].min() < 255 and header[right - 4 : right + 4].min() == 255
    assert tops[1] > tops[0] + 10


def test_command_line_guidance_replaces_the_guidance_of_each_target(world: World) -> None:
    plan = 'inputs = ["rgb_patches"]\n[[targets]]\nname = "depth"\nsteps = 2\nguidance.scale = 2.0\n'
    (world.folder / "own.toml").write_text(plan)
    printed_by(world, "backbone generate run --out own --plan own.toml --samples 4 --guide -6")
    printed_by(world, f"{MAKE} --input rgb_patches --target depth --samples 4 --set steps=2 --guide -6")
    assert "scale = 2.0" not in (world.folder / "own/plan.toml").read_text()
    for key in ("test00", "test01", "test02", "test03"):
        assert tokens(world, f"own/{key}/0") == tokens(world, f"new/{key}/0")
    printed_by(world, "backbone generate run --out plain --plan own.toml --samples 4")
    assert any(tokens(world, f"own/test0{i}/0") != tokens(world, f"plain/test0{i}/0") for i in range(4))


def test_settings_change_the_plan(world: World) -> None:
    """A setting of one target takes precedence, and guidance keeps its other settings."""
    plan = 'inputs = ["rgb_patches", "caption"]\n[guidance]\nscale = 2.0\n[[targets]]\nname = "depth"\n'
    (world.folder / "shared.toml").write_text(plan)
    for words, key, expected in (
        ("--input rgb_patches --target depth,caption --set depth.top_p=0.5 --set top_p=0.7", "top_p", [0.5, 0.7]),
        ('--plan shared.toml --set guidance.always=["caption"]', "guidance", [{"scale": 2.0, "always": ["caption"]}]),
    ):
        printed_by(world, f"{MAKE} --overwrite --samples 1 {words}")
        targets = tomllib.loads((world.folder / "new/plan.toml").read_text())["targets"]
        assert [target[key] for target in targets] == expected


def test_a_folder_belongs_to_one_generation(world: World) -> None:
    words = f"{MAKE} --input rgb_patches --target caption --samples 2"
    assert world(f"{words} --rank depth --draws 3", kill_after=11).code < 0
    assert "new/plan.toml" not in world.files() and b"test00" in world.files()["new/done.jsonl"]
    done = world.files()["new/done.jsonl"].decode()
    (world.folder / "new/done.jsonl").write_text(done + done.replace("test00", "test01"))  # a damaged line
    written = [(path, path.stat().st_mtime_ns) for path in (world.folder / "new/test00").rglob("*")]
    printed_by(world, f"{words} --rank depth --draws 3")
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written, "what is done is kept"
    first = results_in(world, "new")
    assert len([name for name in first if name.endswith("caption.txt")]) == 6
    printed_by(world, f"{words} --rank depth --draws 3")
    assert results_in(world, "new") == first
    world(words).refused("new: holds another generation", "plan.draws was 3, is 1", "--overwrite")
    printed_by(world, f"{words} --overwrite")
    assert len(results_in(world, "new")) == 5, "the other draws are gone"
    (world.folder / "mine").mkdir()
    (world.folder / "mine" / "plan.toml").write_text("# mine")
    world(f"{words} --out mine").refused("mine: holds plan.toml")


def test_changed_inputs_or_weights_make_another_generation(world: World) -> None:
    text, run = world.folder / "text.txt", world.folder / "run"
    words = f"{MAKE} --input caption=text.txt --target depth"
    for content in ("a blue box", "a red ball"):
        text.write_text(content)
        printed_by(world, f"{words} --overwrite")
    text.write_text("a blue box")
    world(words).refused("new: holds another generation")
    text.write_text("a red ball")
    printed_by(world, words)
    model = load_model(run)
    torch.nn.init.zeros_(model.output["depth"])
    save_model(model, run, {"fingerprints": load_config(run)["fingerprints"]})
    world(words).refused("new: holds another generation", "weights")


def test_inputs_in_the_folder_are_not_overwritten(world: World) -> None:
    printed_by(world, f"{MAKE} --input caption='red' --target depth")
    words = f"{MAKE} --input depth=new/sample/0/depth.npy --target caption --overwrite"
    world(words).refused("depth.npy: is an input", "another --out")


@pytest.mark.parametrize("words", ["--input {}", "--input {}=files/test/rgb/test00.png", "--input {} --guide {}=2"])
def test_inputs_are_converted_to_the_modality_the_model_reads(world: World, words: str) -> None:
    """The model knows rgb_patches, but not rgb."""
    for out, name in (("form", "rgb"), ("plain", "rgb_patches")):
        options = words.format(name, name)
        printed_by(world, f"backbone generate run --samples 1 --target depth --out {out} {options}")
    form, plain = results_in(world, "form"), results_in(world, "plain")
    form_plan, plain_plan = form.pop("plan.toml"), plain.pop("plan.toml")
    assert form_plan != plain_plan == re.sub(rb"\brgb(?=[ =\"])", b"rgb_patches", form_plan)
    assert form.items() <= plain.items()


def test_values_can_be_given_without_tokens(world: World) -> None:
    for file in sorted((world.folder / "tokens").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (world.folder / "tokens").rmdir()
    printed_by(world, f"{MAKE} --input caption='red' --target depth")
    printed_by(world, f"{MAKE} --target depth --samples 1 --overwrite")
    world(f"{MAKE} --input caption --target depth --overwrite").refused("tokens: no such folder")


def test_inputs_are_read_when_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All inputs together may exceed the memory. The results do not depend on where batches are cut."""
    read: list[int] = []
    take = TokenColumn.take

    def noted(column: TokenColumn, indices: list[int]) -> Any:
        read.append(len(indices))
        return take(column, indices)

    def in_batches_of_two(*arguments: Any) -> PlanRequest:
        request = PlanRequest(*arguments)
        request.batch = 2
        return request

    targets = (TargetPlan(name="depth", steps=1, temperature=3.0),)
    recipe = GenerationPlan(inputs=("rgb_patches", "caption"), targets=targets, samples="4", draws=3)
    folders = generated(world, recipe)
    assert folders == [world.folder / f"new/test0{i}/{draw}" for i in range(4) for draw in range(3)]
    unbatched = results_in(world, "new")
    monkeypatch.setattr(TokenColumn, "take", noted)
    monkeypatch.setattr(outputs, "BATCH", 2)
    monkeypatch.setattr(outputs, "PlanRequest", in_batches_of_two)
    monkeypatch.setattr(outputs, "SHEET_ROWS", 2)
    generated(world, dataclasses.replace(recipe, draws=1), overwrite=True)
    assert max(read) == 2
    generated(world, recipe, overwrite=True)
    assert results_in(world, "new") == unbatched


def test_a_scorer_gives_a_number_for_each_draw(world: World) -> None:
    recipe = GenerationPlan(inputs=("caption",), targets=(TargetPlan(name="depth", steps=1),), samples="1", draws=2)
    with pytest.raises(InvalidValueError, match=r"rank: .* 2 draws"):
        generated(world, recipe, scorer=lambda inputs, generated: [1.0])
    assert not results_in(world, "new")


def test_the_command_line_chooses_other_samples_than_the_plan(world: World) -> None:
    (world.folder / "keys.toml").write_text(
        'inputs = ["caption"]\nkeys = ["test01", "test02"]\n[[targets]]\nname = "depth"\n'
    )
    assert (
        printed_by(world, f"{MAKE} --plan keys.toml --samples 1") == "1 sample in new, side by side in new/sheet.png\n"
    )
    assert {name.split("/")[0] for name in results_in(world, "new")} == {"test00", "plan.toml"}
    printed_by(world, "backbone generate run --plan new/plan.toml --keys test03,test04 --out again")
    assert {name.split("/")[0] for name in results_in(world, "again")} == {"test03", "test04", "plan.toml"}


def test_draws_are_written_best_first(world: World) -> None:
    words = "--input rgb_patches --target caption --rank depth --draws 4 --samples 2 --set temperature=3"
    printed_by(world, f"backbone generate run --out new {words}")
    printed_by(world, f"backbone generate run --out plain {words.replace('--rank depth', '')}")
    for key in ("test00", "test01"):
        ranking = read_table(world.folder / "new" / key / "ranking.json")
        assert ranking["by"] == "depth" and sorted(ranking["draws"]) == [0, 1, 2, 3]
        assert ranking["scores"] == sorted(ranking["scores"], reverse=True) and -1 <= ranking["scores"][0] <= 1 + 1e-9
        for rank, draw in enumerate(ranking["draws"]):
            assert tokens(world, f"new/{key}/{rank}", "caption") == tokens(world, f"plain/{key}/{draw}", "caption")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--target rgb_patches", ["rgb_patches: ", "input only"]),
        ("--input caption=text.txt --target depth --samples 3", ["samples 3", "--draws"]),
        ("--input caption=absent.txt --target depth", ["absent.txt", '"TEXT"']),
        ("--input depth=made/test00/0/caption.tokens.json --target caption", ["tokens of caption, not of depth"]),
        ("--input depth=short.tokens.json --target caption", ["short.tokens.json: depth: ", "int64", "shape"]),
        ("--input depth --target depth", ["depth: ", "input and target"]),
        ("--input depth --target depth --inpaint depth=box:0,0,1,1", ["inpaint depth=box:0,0,1,1", "all tokens"]),
        ("--input depth --target depth --inpaint depth=not:cells:0,0,2,2", ["not:cells:0,0,2,2", "no token"]),
        (f"--input depth --target depth --inpaint depth={'not:' * 3000}box:0,0,1,1", ["inpaint depth=not:", "covers"]),
        (f"--input caption --target caption --inpaint caption=after:{DIGITS}", ["inpaint caption", "expected"]),
        (f"--input caption --target caption --inpaint caption=tokens:{DIGITS}", ["inpaint caption", "expected"]),
        (f"--input depth --target depth --inpaint depth=cells:0,0,1,{DIGITS}", ["inpaint depth", "expected"]),
        ("--input caption=a.txt,depth=b.npy --target depth", ["a.txt,depth=b.npy", "repeat --input"]),
        ("--input caption --target depth --guide nan", ["scale"]),
        ("--input caption --target depth --samples 3-8", ["samples 3-8", "0 to 7"]),
        ("--target depth --samples 0-1000000", ["samples 0-1000000", "at most 1,000,000"]),
        (f"--target depth --samples {DIGITS}", ["samples", "expected"]),
        ("--target depth --keys test00", ["keys test00"]),
        ("--input depth --target caption --rank caption", ["rank caption", "draws"]),
        ("--input caption --target depth --rank depth", ["rank depth", "target"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(world: World, words: str, parts: list[str]) -> None:
    (world.folder / "text.txt").write_text("a red ball")
    file = read_table(world.folder / "made/test00/0/depth.tokens.json")
    write_table(world.folder / "short.tokens.json", {**file, "tokens": file["tokens"][1:]})
    assert len(world(f"{MAKE} {words}").refused(*parts)) < 1000
    assert not (world.folder / "new").exists()


def test_a_folder_of_pictures_gives_a_sample_for_each(world: World) -> None:
    """Samples are named by their files, and a sheet shows all inputs and results."""
    photos = world.folder / "photos"
    photos.mkdir()
    for name, size in (("beach", (20, 30)), ("street", (16, 16)), ("tree", (40, 20))):
        PIL.Image.new("RGB", size, "red").save(photos / f"{name}.png")
    (photos / "tree.txt").write_text("a tree")  # the caption of a picture, as zoo data make folder takes it
    printed = printed_by(world, f"{MAKE} --input rgb=photos --target depth --draws 2")
    assert printed == "3 samples, 2 draws of each, in new, side by side in new/sheet.png\n"
    assert {path.name for path in (world.folder / "new").iterdir()} >= {"beach", "street", "tree", "sheet.png"}
    sheet = PIL.Image.open(world.folder / "new/sheet.png")
    assert len(json.loads(sheet.text["cells"])) == 3 and len(json.loads(sheet.text["cells"])[0]) == 3
    printed_by(world, "backbone generate run --input rgb=photos/s*.png --target depth --out one")
    assert tokens(world, "one/street/0") != [] and not (world.folder / "one/beach").exists()
    printed_by(
        world, "backbone generate run --input rgb=photos --input caption=red --target depth --samples 1-2 --out two"
    )
    assert sorted(path.name for path in (world.folder / "two").glob("*/0")) == ["0", "0"]
    for words, part in (
        ("--input rgb=photos/x*.png", "no such files"),
        ("--input rgb=photos/t*", "two files have the same name; give a pattern"),
        ("--input rgb=photos --input depth=files/test/depth", "beach"),
        ("--input rgb=photos --input depth", "stored"),
    ):
        world(f"backbone generate run {words} --target caption --out wrong").refused(part)
