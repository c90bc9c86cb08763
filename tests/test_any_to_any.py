"""`AnyToAny`: values in, values out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from command_world import the_world

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError, PluginError, UnknownNameError
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import read_table, write_table
from zoo_backbone import AnyToAny, FourM
from zoo_backbone.generate import Guidance, TargetPlan
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.run import Run
from zoo_backbone.use.bundle import as_dtype
from zoo_backbone.use.wheels import write_wheels

COMMIT = "abc123" + "0" * 34


@pytest.fixture(scope="module")
def model() -> AnyToAny:
    return AnyToAny.from_pretrained(the_world().put_back().folder / "run", device="cpu")


@pytest.fixture
def picture() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def ids(samples: Any) -> list[list[int]]:
    return [np.asarray(sample.tokens).ravel().tolist() for sample in samples]


def test_a_picture_may_have_any_form(model: AnyToAny, picture: PIL.Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "photo.png")
    pixels = np.asarray(picture)
    forms = [
        picture, tmp_path / "photo.png", str(tmp_path / "photo.png"), pixels, torch.from_numpy(pixels.copy()),
        pixels.transpose(2, 0, 1).astype(np.float32) / 255,
    ]  # fmt: skip
    vectors = model.embed(rgb=forms)
    features, mask = model.forward_features(rgb=picture)
    assert features.shape == (1, 4, 32) and mask.all()
    np.testing.assert_allclose(features.mean(1).numpy(), vectors[:1], atol=1e-6)
    assert vectors.shape == (len(forms), 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.repeat(vectors[:1], len(forms), 0), atol=1e-6)
    np.testing.assert_allclose(vectors[:1], model.embed({"rgb": picture}), atol=1e-6)
    turned = picture.transpose(PIL.Image.Transpose.ROTATE_90)
    turned.getexif()[274] = 6  # the camera was turned: rotate by 270 degrees
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=100, subsampling=0)
    with PIL.Image.open(tmp_path / "turned.jpg") as opened:
        np.testing.assert_allclose(model.embed(rgb=opened), model.embed(rgb=tmp_path / "turned.jpg"), atol=1e-5)
    assert model.embed(rgb=[picture.convert("CMYK"), torch.from_numpy(forms[-1]).bfloat16()]).shape == (2, 32)
    square = picture.crop((4, 0, 20, 16))
    np.testing.assert_allclose(model.embed(rgb=square), vectors[:1], atol=1e-5)
    assert not np.allclose(model.embed(rgb=picture, crop="whole"), vectors[:1], atol=1e-3)
    grey = picture.convert("L")
    np.testing.assert_allclose(model.embed(rgb=np.asarray(grey)), model.embed(rgb=grey), atol=1e-6)
    tokens = model.tokenize(rgb=picture)["rgb_patches"]
    photo = tmp_path / "photo.png"
    assert torch.equal(model.handle("rgb_patches").encode([picture, photo, str(photo)]), tokens.repeat(3, 1, 1))


def test_tokens_are_accepted_as_inputs(model: AnyToAny, picture: PIL.Image.Image) -> None:
    patches = model.tokenize(rgb=picture)["rgb_patches"]
    depth = model.generate(targets="depth", seed=3).depth[0].tokens
    words = model.handle("caption").encode(["a red ball"])
    inputs = {"rgb_patches": patches, "depth": depth, "caption": words[0]}
    for count in (1, 2):
        batch = {name: item if count == 1 else [item.reshape(item.shape[-2:]) if name == "rgb_patches" else item] * 2
                 for name, item in inputs.items()}  # fmt: skip
        tokens = model.tokenize(batch)
        assert torch.equal(tokens["rgb_patches"], patches.repeat(count, 1, 1))
        assert torch.equal(tokens["depth"], depth.repeat(count, 1, 1))
        assert np.array_equal(np.stack(list(tokens["caption"])), [words[0]] * count)
    assert torch.equal(model.tokenize(depth=torch.stack([depth] * 3))["depth"], depth.repeat(3, 1, 1))
    with pytest.raises(InvalidValueError, match="depth: expected"):
        model.tokenize(depth=depth + 10_000)


def test_more_samples_than_a_batch_give_the_same_results(model: AnyToAny, picture: PIL.Image.Image) -> None:
    pictures = [picture.rotate(angle) for angle in range(40)]
    vectors = model.embed(rgb=pictures)
    assert vectors.shape == (40, 32)
    np.testing.assert_allclose(vectors[-1:], model.embed(rgb=pictures[-1]), atol=1e-5)
    draws = model.generate(rgb=picture, targets="depth", num_samples=35, steps=1)
    two_draws = model.generate(rgb=picture, targets="depth", num_samples=2, steps=1)
    assert len(draws.depth) == 35 and ids(draws.depth[:2]) == ids(two_draws.depth)


def test_pictures_of_other_proportions_stay_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture, depth of a part in its middle, and boxes in the picture; a time series shares nothing."""
    zoo = Zoo.from_toml(the_world().put_back().folder / "registry.toml")
    names = ("rgb_patches", "depth", "boxes", "imu")
    specs = [zoo[name].spec for name in names]
    small = FourM.seeded(ModelConfig(dim=16, heads=2, encoder_depth=1, decoder_depth=1), specs, 0)
    monkeypatch.setattr(zoo["imu"], "encode", lambda values, **_: torch.zeros(len(values), 1))
    channels, length = zoo["imu"].spec.value.shape
    x = np.linspace(0, 1, 32, dtype=np.float32)
    wide = np.broadcast_to(x, (3, 16, 32)).copy()
    boxes = [{"label": "chair", "box": [0.375, 0.0, 0.625, 1.0]}]
    part = np.broadcast_to(1 + x[6:26], (1, 16, 20)).copy()
    series = np.zeros((channels, 4 * int(length)), np.float32)
    inputs = {"depth": part, "rgb": wide, "boxes": boxes, "imu": series}
    model = AnyToAny(small, zoo)
    for order in (("depth", "rgb", "boxes"), ("imu", "boxes", "rgb", "depth"), ("rgb", "boxes", "imu")):
        tokens = model.tokenize({name: inputs[name] for name in order})
        assert zoo["boxes"].decode(tokens["boxes"])[0][0]["box"] == pytest.approx([0.25, 0, 0.75, 1], abs=0.01)
        assert "depth" not in order or torch.equal(tokens["depth"], zoo["depth"].encode([part[:, :, 2:18]]))
        assert torch.equal(tokens["rgb_patches"], zoo["rgb_patches"].encode([wide[:, :, 8:24]]))
    alone = model.tokenize(depth=part, boxes=boxes)["boxes"]
    assert zoo["boxes"].decode(alone)[0][0]["box"] == pytest.approx([0.34, 0, 0.66, 1], abs=0.01)


def test_the_spec_decides_whether_a_list_is_one_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zoo = Zoo.from_toml(the_world().put_back().folder / "registry.toml")
    small = FourM.seeded(ModelConfig(dim=16, heads=2, encoder_depth=1, decoder_depth=1), [zoo["boxes"].spec], 0)
    model, encode, calls = AnyToAny(small, zoo), zoo["boxes"].encode, list[Any]()

    def counted(values: Any, **options: Any) -> Any:
        calls.append(values)
        return encode(values, **options)

    monkeypatch.setattr(zoo["boxes"], "encode", counted)
    box = {"label": "chair", "box": [0.0, 0.0, 1.0, 1.0]}
    (tmp_path / "a.json").write_text(json.dumps([box]))
    row, file = model.tokenize(boxes=[box, box])["boxes"][0], str(tmp_path / "a.json")
    for item, count in (([box, box], 1), ([], 1), ([[box, box], [box, box]], 2), ([file], 1), ((file, [box]), 2)):
        calls.clear()
        tokens = model.tokenize(boxes=item)["boxes"]
        assert len(tokens) == count and len(calls) == 1
        assert file in str(item) or not item or all(np.array_equal(ids, row) for ids in tokens)
    with pytest.raises(InvalidValueError, match="boxes"):
        model.tokenize(boxes=[3])


def test_generated_values_have_arrays_pictures_texts_and_files(
    model: AnyToAny, picture: PIL.Image.Image, tmp_path: Path
) -> None:
    out = model.generate(rgb=picture, targets=["depth", "caption"], num_samples=2, seed=1, steps=2)
    assert list(out) == ["depth", "caption"] and len(out.depth) == len(out["caption"]) == 2
    assert out.depth[0].array.shape == (1, 16, 16) and out.depth[0].image.size == (16, 16)
    assert isinstance(out.caption[1].text, str)
    assert "\n" not in f"{out!r}{out.depth!r}{out.caption!r}" and "float32 (1, 16, 16)" in repr(out.depth[0])
    for sample, name in ((out.caption[0], "array"), (out.depth[0], "text")):
        with pytest.raises(InvalidValueError):
            getattr(sample, name)
    assert not hasattr(out, "normal")
    out.save(tmp_path)
    saved = tmp_path / "000" / "1"
    assert json.loads((saved / "depth.tokens.json").read_text())["tokens"] == out.depth[1].tokens.tolist()
    assert np.array_equal(np.load(saved / "depth.npy"), out.depth[1].array)


def test_a_batch_equals_its_samples(model: AnyToAny, picture: PIL.Image.Image, tmp_path: Path) -> None:
    rotated = picture.transpose(PIL.Image.Transpose.ROTATE_90)
    pair = model.generate(rgb=[picture, rotated], caption=["a room", "a ball"], targets="depth", num_samples=2)
    first = model.generate(rgb=picture, caption="a room", targets="depth", num_samples=2)
    assert len(pair.depth) == 4 and ids(pair.depth[:2]) == ids(first.depth)
    pair.save(tmp_path)
    saved = [json.loads(file.read_text())["tokens"] for file in sorted(tmp_path.glob("00[01]/[01]/depth.tokens.json"))]
    assert saved == [sample.tokens.tolist() for sample in pair.depth]


def test_the_command_generates_the_same(model: AnyToAny, picture: PIL.Image.Image) -> None:
    world = the_world().put_back()
    picture.save(world.folder / "photo.png")
    words = "backbone generate run --out new --input rgb=photo.png --input caption=red --target depth --draws 2"
    assert world(words).code == 0
    files = sorted(world.folder.glob("new/*/*/depth.tokens.json"))
    written = [json.loads(file.read_text())["tokens"] for file in files]
    out = model.generate(rgb=picture, caption="red", targets=["depth"], num_samples=2)
    assert [sample.tokens.tolist() for sample in out.depth] == written


def test_generated_samples_are_inputs(model: AnyToAny, picture: PIL.Image.Image) -> None:
    out = model.generate(rgb=picture, targets=["depth"])
    by_sample = model.generate(depth=out.depth[0], targets=["caption"], seed=3)
    by_value = model.generate(depth=out.depth[0].array, targets=["caption"], seed=3)
    assert by_sample.caption[0].tokens.tolist() is not None and isinstance(by_value.caption[0].text, str)
    inpainted = model.generate(depth=out.depth[0], targets=["depth"], inpaint={"depth": "cells:0,0,1,1"}, seed=5)
    assert np.array_equal(inpainted.depth[0].tokens.ravel()[1:], out.depth[0].tokens.ravel()[1:])


def test_settings_change_the_result(model: AnyToAny, picture: PIL.Image.Image) -> None:
    usual = ids(model.generate(rgb=picture, targets="depth", num_samples=8).depth)
    cold = ids(model.generate(rgb=picture, targets="depth", num_samples=8, temperature=0).depth)
    assert all(sample_ids == cold[0] for sample_ids in cold) and usual != cold
    assert usual == ids(model.generate(rgb=picture, targets=[TargetPlan(name="depth")], num_samples=8).depth)
    assert usual != ids(model.generate(rgb=picture, targets="depth", num_samples=8, seed=1).depth)
    guided = model.generate(rgb=picture, targets="depth", num_samples=8, guidance={"rgb": -20.0})
    assert ids(guided.depth) != usual
    guided_plan = [TargetPlan(name="depth", guidance=Guidance(weights={"rgb_patches": -20.0}))]
    assert ids(model.generate(rgb=picture, targets=guided_plan, num_samples=8, guidance=3.0).depth) == ids(guided.depth)
    nucleus = model.generate(rgb=picture, targets="depth", num_samples=8, top_p=1e-6, steps=1)
    best = model.generate(rgb=picture, targets="depth", temperature=0, steps=1)
    assert ids(nucleus.depth) == ids(best.depth) * 8
    assert len(model.generate(targets="caption", num_samples=3).caption) == 3


def test_draws_of_a_sample_and_of_the_next_one_differ(model: AnyToAny, picture: PIL.Image.Image) -> None:
    results = ids(model.generate(rgb=[picture, picture], targets="depth", num_samples=2).depth)
    assert all(results[first] != results[second] for first in range(4) for second in range(first))


def test_a_copy_of_the_model_alone_opens_with_a_zoo(model: AnyToAny, picture: PIL.Image.Image, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        shutil.copy(model.run.folder / name, tmp_path)
    copied = AnyToAny.from_pretrained(tmp_path, zoo=model.zoo, device="cpu")
    expected, actual = (loaded.generate(rgb=picture, targets="depth").depth for loaded in (model, copied))
    assert ids(actual) == ids(expected)
    with pytest.raises(CheckpointError, match="values"):
        copied.run.values()


def test_on_step_is_called_after_each_step(model: AnyToAny, picture: PIL.Image.Image) -> None:
    steps: list[tuple[str, Any]] = []
    out = model.generate(
        rgb=picture, targets=["depth", "caption"], steps=3, on_step=lambda name, tokens: steps.append((name, tokens))
    )
    grids = [tokens for name, tokens in steps if name == "depth"]
    undecided = [int((tokens < 0).sum()) for tokens in grids]
    assert len(grids) == 3 and undecided == sorted(undecided, reverse=True) and undecided[0] > 0
    assert torch.equal(grids[-1][0], out.depth[0].tokens)
    texts = [tokens for name, tokens in steps if name == "caption"]
    assert texts[-1][0].tolist() == out.caption[0].tokens.tolist()


def test_a_model_runs_in_half_precision(picture: PIL.Image.Image) -> None:
    half = AnyToAny.from_pretrained(the_world().put_back().folder / "run", device="cpu", dtype=torch.bfloat16)
    assert half.embed(rgb=picture).dtype == np.float32
    assert half.model.token_embedding.weight.dtype == torch.bfloat16
    assert len(half.generate(rgb=picture, targets=["depth", "caption"]).depth) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"rgb": "nowhere.png"}, InvalidValueError, "nowhere.png"),
        ({"colour": "a.png"}, UnknownNameError, "colour"),
        ({"rgb": np.zeros((3, 16), np.float32)}, InvalidValueError, "rgb"),
        ({"caption": ["a", "b"], "depth": [np.ones((1, 16, 16), np.float32)]}, InvalidValueError, "caption 2"),
        ({"caption": "a", "targets": ["colour"]}, UnknownNameError, "colour"),
        ({"caption": "a", "targets": ["rgb_patches"]}, ConfigError, "rgb_patches"),
        ({"caption": "a", "inpaint": {"depth": "box:0,0,1,1"}}, ConfigError, "depth"),
        ({"caption": "a", "guidance": {"rgb": 2.0}}, ConfigError, "rgb"),
        *(
            ({"caption": "a", name: value}, ConfigError, named)
            for name, values, named in (
                ("num_samples", (0, True, 1.5), "num_samples"),
                ("steps", (-1,), "steps"),
                ("temperature", (math.nan, "hot"), "temperature"),
                ("top_p", (2,), "top_p"),
                ("seed", (0.5,), "seed"),
                ("guidance", (math.nan, 1e30, None, {"caption": 1e30}), "scale|weights"),
                ("crop", ("nonsense",), "crop"),
                ("inpaint", ({"caption": 3},), "caption"),
                ("targets", ([3],), "name"),
            )
            for value in values
        ),
        (
            {"rgb": np.zeros((16, 16, 3), np.uint8), "rgb_patches": np.zeros((16, 16, 3), np.uint8)},
            InvalidValueError,
            "rgb",
        ),
    ],
)
def test_wrong_arguments_are_named(
    model: AnyToAny, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        model.generate(**{"targets": ["depth"], **arguments})


def test_missing_models_and_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        AnyToAny.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tpu"):
        AnyToAny.from_pretrained(the_world().put_back().folder / "run", device="tpu")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="runs/demo: no such folder"):
        AnyToAny.from_pretrained("runs/demo")  # no hub id, as there is a folder runs


def test_a_moved_project_still_works(picture: PIL.Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the stores and runs names the folder in which it was written."""
    world = the_world().put_back()
    generated_folder = world.folder / "made"  # a plan names its inputs by absolute paths
    moved = tmp_path / "elsewhere"
    shutil.copytree(world.folder, moved, ignore=shutil.ignore_patterns(generated_folder.name, "report"))
    named = str(world.folder).encode()
    assert [str(file) for file in moved.rglob("*.json") if named in file.read_bytes()] == []
    monkeypatch.chdir(tmp_path)
    run = Run.load(moved / "run")
    assert (run.tokens, run.data, run.registry) == (moved / "tokens", moved / "data", moved / "registry.toml")
    assert AnyToAny.from_pretrained("elsewhere/run").generate(rgb=picture, targets="depth").depth


def test_a_run_without_a_registry_finds_its_tokenizers(tmp_path: Path) -> None:
    world = the_world().put_back()
    run = shutil.copytree(world.folder / "run", tmp_path / "run")
    record = Run.load(world.folder / "run")
    dataclasses.replace(record, registry=world.folder / "tokenizers").save(run)
    handle = AnyToAny.from_pretrained(run).zoo["caption"]
    assert handle.checkpoint == world.folder / "tokenizers" / "text"


def test_the_middle_crop_by_hand(model: AnyToAny) -> None:
    depth = model.handle("depth")
    assert depth.middle(np.zeros((1, 10, 20))) == Crop(left=0.25, width=0.5)
    assert depth.middle(np.zeros((1, 40, 20))) == Crop(top=0.25, height=0.5)
    assert depth.middle(np.zeros((1, 7, 7))).is_whole
    assert model.handle("caption").middle("a text", Crop(left=0.5, width=0.5)).left == 0.5
    imu = Zoo.installed()["imu"]
    channels, length = imu.spec.value.shape
    assert imu.middle(np.zeros((channels, 2 * int(length)))) == Crop(left=0.25, width=0.5)


def test_score_equals_the_stored_evaluation(model: AnyToAny) -> None:
    world = the_world().put_back()
    scores = model.score(inputs=["rgb"], targets=["depth"], data=world.folder / "data", samples=4)
    assert [(score.inputs, score.target, score.samples) for score in scores] == [(("rgb_patches",), "depth", 4)]
    assert {"rmse", "abs_rel"} <= set(scores[0].score) and "skill" in scores[0].figures
    evaluated = read_table(world.folder / "run/evaluation/evaluation.json")["pairs"][0]
    assert scores[0].reconstruction == evaluated["reconstruction"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    world = the_world().put_back()
    ended = world(f"backbone export run {folder} --dtype float16 --samples 2")
    assert ended.code == 0, ended.complaint
    assert "MB, in" in ended.printed
    return folder


def test_a_bundle_works_anywhere(bundle: Path, picture: PIL.Image.Image, tmp_path: Path) -> None:
    """Without the folder in which it was trained."""
    moved = shutil.copytree(bundle, tmp_path / "moved")
    world = the_world().put_back({})
    picture.save(world.folder / "a.png")
    model = AnyToAny.from_pretrained(moved)
    model.verify()
    assert model.generate(rgb=picture, targets=["depth", "caption"]).depth[0].array.shape == (1, 16, 16)
    names = {path.relative_to(moved).as_posix() for path in moved.rglob("*") if path.is_file()}
    assert {"registry.toml", "bundle.json", "golden/depth.npy", "tokenizers/depth/model.safetensors"} <= names
    ended = world(f"backbone generate {moved} --input rgb=a.png --target depth --out made")
    assert ended.code == 0, ended.complaint
    ended = world(f"backbone generate {moved} --input rgb --target depth --out stored")
    assert ended.code == 0 and ended.printed.startswith("2 samples"), ended.complaint
    ended = world(f"backbone verify {moved}")
    assert ended.code == 0 and "predicted caption" in ended.printed, ended


def test_the_card_has_scores_for_the_hub(bundle: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard.load(bundle / "README.md").data
    assert data.library_name == "tokenizers-zoo" and data.pipeline_tag == "any-to-any"
    assert {"rgb_patches to depth: rmse"} <= {result.metric_name for result in data.eval_results}


def test_a_bundle_that_computes_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(bundle, tmp_path / "changed")
    record = read_table(changed / "bundle.json")
    record["golden"]["tokens"]["depth"] = [[15, 15], [15, 15]]
    write_table(changed / "bundle.json", record)
    with pytest.raises(CheckpointError, match="depth"):
        AnyToAny.from_pretrained(changed).verify()


@pytest.mark.parametrize("name", ["registry.toml", "golden/depth.npy", "bundle.json", "config.json"])
def test_a_changed_file_of_a_bundle_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    changed = shutil.copytree(bundle, tmp_path / "changed") / name
    changed.write_bytes(changed.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(CheckpointError, match=re.escape(str(changed))):
        AnyToAny.from_pretrained(tmp_path / "changed")


@pytest.fixture(scope="module")
def bundle_with_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with wheels, and the folder `site` into which these are installed."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle_with_wheels"
    world = the_world().put_back()
    ended = world(f"backbone export run {folder} --with-plugins")
    assert ended.code == 0, ended.complaint
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, folder.parent / "site", *(folder / "wheels").glob("*.whl")], check=True)
    return folder


def test_a_bundle_works_with_its_wheels_alone(bundle_with_wheels: Path) -> None:
    record = read_table(bundle_with_wheels / "bundle.json")
    wheels = {name.removeprefix("wheels/") for name in record["files"] if name.startswith("wheels/")}
    assert wheels == {path.name for path in (bundle_with_wheels / "wheels").iterdir()}
    assert len(wheels) == len(record["requires"])
    assert "pip install bundle_with_wheels/wheels/*.whl" in (bundle_with_wheels / "README.md").read_text()
    script = """import sys
sys.path += sys.argv[1:3]  # -S leaves out editable installations
import tokenizers_zoo
from zoo_backbone import AnyToAny
model = AnyToAny.from_pretrained(sys.argv[3])
model.verify()
print(tokenizers_zoo.__file__, model.generate(targets=["depth"]).depth[0].array.shape)"""
    site, packages = str(bundle_with_wheels.parent / "site"), sysconfig.get_path("purelib")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", script, site, packages, str(bundle_with_wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=bundle_with_wheels.parent)
    assert done.stdout.startswith(site) and done.stdout.endswith(" (1, 16, 16)\n"), done.stderr


def test_wheels_of_installed_distributions_are_packed_again(
    bundle_with_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = shutil.copytree(bundle_with_wheels.parent / "site", tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    write_wheels(["tokenizers-zoo", "zoo-geometry"], tmp_path / "again")
    packed = sorted((tmp_path / "again").iterdir())
    assert len(packed) == 2
    for wheel in packed:
        assert contents(wheel) == contents(bundle_with_wheels / "wheels" / wheel.name)
    write_wheels(["tokenizers-zoo", "zoo-geometry"], tmp_path / "once more")
    assert [(tmp_path / "once more" / wheel.name).read_bytes() == wheel.read_bytes() for wheel in packed] == [True] * 2
    module = site / "zoo_geometry" / "__init__.py"
    module.write_text(module.read_text() + "# changed\n")
    with pytest.raises(PluginError, match=re.escape(str(module))):
        write_wheels(["zoo-geometry"], tmp_path / "changed")


def contents(wheel: Path) -> dict[str, Any]:
    """Return the files of a wheel; of RECORD its lines, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return {name: sorted(data.split()) if name.endswith("/RECORD") else data for name, data in files.items()}


def test_an_editable_distribution_that_cannot_be_built_is_named(install: Callable[..., Path], tmp_path: Path) -> None:
    metadata = install("zoo-broken", {}, {}) / "zoo_broken-1.0.dist-info"
    (tmp_path / "source").mkdir()
    url = (tmp_path / "source").as_uri()
    (metadata / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {"editable": True}}))
    with pytest.raises(PluginError, match=re.escape(url)):
        write_wheels(["zoo-broken"], tmp_path / "wheels")


def test_a_bundle_with_a_further_wheel_is_refused(bundle_with_wheels: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(bundle_with_wheels, tmp_path / "changed")
    wheel = changed / "wheels" / "zoo_evil-1.0-py3-none-any.whl"
    wheel.write_bytes(b"changed")
    the_world().put_back()(f"backbone verify {changed}").refused(str(wheel))


def test_a_missing_plugin_is_named_with_the_wheels(bundle_with_wheels: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle_with_wheels, tmp_path / "to a colleague")
    record = read_table(moved / "bundle.json")
    write_table(moved / "bundle.json", {**record, "requires": {"zoo-nowhere": "1"}})
    with pytest.raises(CheckpointError, match=re.escape(f"zoo-nowhere; install it: pip install '{moved}/wheels'/*")):
        AnyToAny.from_pretrained(moved)


def test_weights_beyond_half_precision_stay_single() -> None:
    weights = as_dtype({"small": torch.ones(1), "large": torch.full((1,), 1e6)}, "float16")
    assert weights["small"].dtype == torch.float16 and weights["large"].dtype == torch.float32


def test_a_bundle_is_loaded_from_the_hub(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache: models--owner--name/refs/main and snapshots/<commit>."""
    cached = tmp_path / "models--me--small"
    shutil.copytree(bundle, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = AnyToAny.from_pretrained("me/small", revision=COMMIT, sha256=fingerprint(bundle))
    assert model.modalities == ("caption", "depth", "rgb_patches")
    assert FourMEncoder.from_run("me/small").zoo is not None
    with pytest.raises(CheckpointError, match="fingerprint"):
        AnyToAny.from_pretrained("me/small", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="me/small"):
        AnyToAny.from_pretrained("me/small", revision="v2")
    with pytest.raises(CheckpointError, match="me/other"):
        AnyToAny.from_pretrained("me/other")


def test_a_loaded_bundle_is_saved_and_pushed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AnyToAny.from_pretrained(bundle)
    model.save_pretrained(tmp_path / "again")
    saved = AnyToAny.from_pretrained(tmp_path / "again")
    assert saved.verify() and saved.modalities == model.modalities
    with pytest.raises(FolderError):
        model.save_pretrained(tmp_path / "again")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FolderError):
        model.save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").is_file()
    uploaded = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            uploaded.append(name)

        def upload_folder(self, repo_id: str, folder_path: Path) -> Any:
            uploaded.append((repo_id, (folder_path / "bundle.json").is_file()))
            return SimpleNamespace(repo_url="https://hub/me/small")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert model.push_to_hub("me/small") == "https://hub/me/small"
    assert uploaded == ["me/small", ("me/small", True)]
