"""Networks of the hub's classes, small and with random weights, label pictures through `zoo data derive`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import labeller_networks as networks
import numpy as np
import pytest
import torch

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli.main import main
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pretrained import PretrainedError

PICTURE = np.random.default_rng(0).random((3, 48, 64)).astype(np.float32)
KEPT = 3
Hub = Callable[..., Path]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """`hub("dpt", metres=3.5)`: the folder of that network, made at its first use."""
    made: dict[Any, Path] = {}

    def folder(name: str, **weights: Any) -> Path:
        key = name, *sorted(weights.items())
        if key not in made:
            made[key] = getattr(networks, name)(tmp_path_factory.mktemp(name) / "network", **weights)
        return made[key]

    return folder


def zoo_of(folder: Path, tables: Mapping[str, Any]) -> Zoo:
    """rgb and the modalities of `tables`, everything else disabled."""
    known = {name: {"enabled": False} for name in Zoo.installed().names() if name != "rgb"}
    return Zoo.from_tables({"modalities": {**known, **tables}}, folder / "registry.toml")


def labelled(name: str, model: Path, **own: Any) -> Any:
    """The handle of a modality with a labeller."""
    return Zoo.from_tables({"modalities": {name: {"labeller": {"model": str(model), **own}}}})[name]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of scenes that holds rgb pictures only."""
    folder = tmp_path_factory.mktemp("pictures")
    make_data(zoo_of(folder, {}), "scenes", folder / "data", train=KEPT, test=1, workers=1)
    return folder


@pytest.fixture
def zoo_command(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run `zoo_command("data derive data")` in the folder of `pictures` and return exit code and output."""
    monkeypatch.chdir(pictures)

    def call(words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", *words.split()])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    yield call


# ---- the public path


REGISTRY = """[zoo]
image_size = 64
[modalities.depth]
labeller = {{ model = "{depth}", scaled_to = [1.0, 8.0] }}
[modalities.semseg]
labeller = {{ model = "{semseg}", labels = {{ sky = "lamp" }} }}
[modalities.boxes]
labeller = {{ model = "{boxes}" }}
[modalities.sam_instance]
labeller = {{ model = "{sam}", points = 3, min_quality = 0.0, min_stability = 0.0 }}
[modalities.caption]
labeller = {{ model = "{caption}", max_words = 4 }}
"""


def test_everything_is_derived_from_rgb_by_the_command(
    pictures: Path, hub: Hub, zoo_command: Callable[..., tuple[int, str]]
) -> None:
    models = {
        "depth": hub("dpt"), "semseg": hub("segformer", winner=2), "boxes": hub("yolos"), "sam": hub("sam"),
        "caption": hub("blip", word="chair"),
    }  # fmt: skip
    (pictures / "registry.toml").write_text(REGISTRY.format(**models))
    names = ("depth", "semseg", "boxes", "sam_instance", "caption")
    code, said = zoo_command(f"data derive data --only {','.join(names)} --workers 1")
    assert code == 0 and all(f"train/{name}: {KEPT} written" in said for name in names), said
    zoo = Zoo.from_toml(pictures / "registry.toml")
    store = ValueStore(pictures / "data")
    keys = store.keys("train", "rgb", *names)
    assert len(keys) == KEPT
    values = {name: store.read_key(zoo[name], "train", keys[0]) for name in names}
    assert values["depth"].min() == pytest.approx(1.0, abs=1e-3) and values["depth"].max() == pytest.approx(8, abs=1e-2)
    assert (values["semseg"] == zoo["semseg"].spec.value.classes.index("lamp")).all()
    assert {box["label"] for box in values["boxes"]} == {"wall"}
    np.testing.assert_allclose([box["box"] for box in values["boxes"]], [[0, 0.25, 0.55, 0.75]] * 2, atol=1e-6)
    assert values["sam_instance"].shape == (64, 64) and values["sam_instance"].max() >= 1
    assert values["caption"] == "chair chair chair chair"
    record = store.record("train", "depth")["networks"]["labeller"]
    assert record["model"] == str(models["depth"]) and record["scaled_to"] == [1.0, 8.0] and record["revision"] is None
    assert {len(digest) for digest in record["sha256"].values()} == {64}
    assert set(record["sha256"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}

    code, again = zoo_command(f"data derive data --only {','.join(names)} --workers 1")
    assert code == 0 and all(f"train/{name}: 0 written, " in again for name in names), again


def test_modality_of_a_source_is_not_derived(tmp_path: Path, hub: Hub) -> None:
    zoo = zoo_of(tmp_path, {"depth": {"labeller": {"model": str(hub("dpt")), "metric": True}}})
    make_data(zoo, "scenes", tmp_path / "data", train=1, test=0, workers=1)
    before = (tmp_path / "data" / "train" / "depth" / "shard-00000.tar").read_bytes()
    result = derive_data(zoo, tmp_path / "data", modalities=["depth"], workers=1)
    assert result.skipped == {"depth": "is there, and was not derived"} and not result.outcomes
    assert not derive_data(zoo, tmp_path / "data", workers=1).outcomes
    assert (tmp_path / "data" / "train" / "depth" / "shard-00000.tar").read_bytes() == before


# ---- outputs equal transformers


def test_depth_equals_the_transformers_pipeline(hub: Hub) -> None:
    from transformers import pipeline

    from tokenizers_zoo.families.images import rgb_image

    for folder in (hub("dpt"), hub("depth_anything")):
        ask = pipeline("depth-estimation", model=str(folder), device="cpu", image_processor_kwargs={"backend": "pil"})
        expected = ask(rgb_image(PICTURE))["predicted_depth"].numpy()
        metric = {"metric": True} if "dpt" in str(folder) else {}
        found = labelled("depth", folder, **metric).derive({"rgb": PICTURE})
        assert found.shape == (1, 48, 64) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], np.clip(expected, 0.001, 100), atol=1e-5)


def test_metres_are_not_guessed(hub: Hub) -> None:
    with pytest.raises(PretrainedError, match=r"gives relative depth, not metres; set labeller.scaled_to"):
        labelled("depth", hub("dpt")).derive({"rgb": PICTURE})
    with pytest.raises(PretrainedError, match=r"gives metres; remove labeller.scaled_to"):
        labelled("depth", hub("depth_anything"), scaled_to=[1, 8]).derive({"rgb": PICTURE})
    assert np.allclose(labelled("depth", hub("dpt", metres=3.5), metric=True).derive({"rgb": PICTURE}), 3.5)
    with pytest.raises(DataError, match="the same depth everywhere"):
        labelled("depth", hub("dpt", metres=3.5), scaled_to=[1, 8]).derive({"rgb": PICTURE})


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_classes_equal_transformers(name: str, hub: Hub) -> None:
    import transformers

    from tokenizers_zoo.families.images import rgb_image

    folder = hub(name)
    kinds = {"segformer": "AutoModelForSemanticSegmentation", "mask2former": "AutoModelForUniversalSegmentation"}
    network = getattr(transformers, kinds[name]).from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        outputs = network(**processor(images=rgb_image(PICTURE), return_tensors="pt"))
    ids = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 64)])[0].numpy()
    handle = labelled("semseg", folder)
    classes = handle.spec.value.classes
    expected = np.array([classes.index("wall"), classes.index("floor"), classes.index("void")])[ids]
    found = handle.derive({"rgb": PICTURE})
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_boxes_equal_transformers(hub: Hub) -> None:
    from transformers import pipeline

    from tokenizers_zoo.families.images import rgb_image

    ask = pipeline("object-detection", model=str(hub("detr")), device="cpu", image_processor_kwargs={"backend": "pil"})
    expected = ask(rgb_image(PICTURE), threshold=0.2)
    found = labelled("boxes", hub("detr"), threshold=0.2).derive({"rgb": PICTURE})
    assert len(found) == len(expected) > 0 and [box["label"] for box in found] == [box["label"] for box in expected]
    for mine, theirs in zip(found, expected, strict=True):
        pixels = np.array(mine["box"]) * (64, 48, 64, 48)
        assert np.abs(pixels - list(theirs["box"].values())).max() <= 1  # theirs are cut to whole pixels
    assert labelled("boxes", hub("yolos"), threshold=0.97).derive({"rgb": PICTURE}) == []
    assert labelled("boxes", hub("yolos"), labels={"wall": ""}).derive({"rgb": PICTURE}) == []
    renamed = labelled("boxes", hub("yolos"), labels={"wall": "a wall"}).derive({"rgb": PICTURE})
    assert {box["label"] for box in renamed} == {"a wall"}
    with pytest.raises(PretrainedError, match="has no label 'tree'"):
        labelled("boxes", hub("yolos"), labels={"tree": "shrub"}).derive({"rgb": PICTURE})


def test_sam_is_queried_at_the_grid_points(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits equal one query per point, given in picture pixels through the processor."""
    from transformers import SamModel, SamProcessor

    from tokenizers_zoo.families.images import rgb_image

    folder = hub("sam")
    monkeypatch.setattr("zoo_semantics.labellers.POINTS_AT_ONCE", 3)
    labeller = labelled("sam_instance", folder, points=2, min_quality=0.0).known_settings()["labeller"]
    answers = list(labeller._answers(PICTURE))
    assert len(answers) == 2  # three points, and one
    logits, quality = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    network, processor = SamModel.from_pretrained(folder).eval(), SamProcessor.from_pretrained(folder)
    masks, qualities = [], []
    for x, y in ((16, 12), (48, 12), (16, 36), (48, 36)):
        inputs = processor(images=rgb_image(PICTURE), input_points=[[[x, y]]], return_tensors="pt")
        inputs["input_points"] = inputs["input_points"].float()
        with torch.no_grad():
            answer = network(**inputs)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        masks.append(processor.post_process_masks(answer.pred_masks, *sizes, binarize=False)[0][0].numpy())
        qualities.append(answer.iou_scores.flatten().numpy())
    expected = np.concatenate(qualities)
    likely = expected > 0
    assert logits.shape[1:] == (48, 64) and likely.any()
    np.testing.assert_allclose(quality, expected[likely], atol=1e-6)
    np.testing.assert_allclose(logits, np.concatenate(masks)[likely], atol=1e-6)


@pytest.mark.parametrize("name", ["blip", "git"])
def test_captions_equal_transformers(name: str, hub: Hub) -> None:
    import transformers

    from tokenizers_zoo.families.images import rgb_image

    folder = hub(name)
    kind = {"blip": transformers.BlipForConditionalGeneration, "git": transformers.GitForCausalLM}[name]
    network, processor = kind.from_pretrained(folder).eval(), transformers.AutoProcessor.from_pretrained(folder)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images=rgb_image(PICTURE), return_tensors="pt"
    )
    ids = network.generate(**pixels, max_new_tokens=30)
    expected = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert len(expected.split()) == 30
    assert labelled("caption", folder).derive({"rgb": PICTURE}) == expected


# ---- unsuitable networks


def test_another_network_is_refused_by_its_class(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"is a SegformerForSemanticSegmentation, expected ...ForDepthEstimation"):
        labelled("depth", hub("segformer")).derive({"rgb": PICTURE})
    with pytest.raises(PretrainedError, match=r"is a DPTForDepthEstimation, expected ...ForSemanticSegmentation or"):
        labelled("semseg", hub("dpt")).derive({"rgb": PICTURE})
    (tmp_path / "config.json").write_text("[]")
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PretrainedError, match=r"config.json cannot be read"):
        labelled("boxes", tmp_path).derive({"rgb": PICTURE})


def test_missing_network_is_one_line(pictures: Path, tmp_path: Path) -> None:
    zoo = zoo_of(pictures, {"depth": {"labeller": {"model": str(tmp_path / "absent")}}})
    with pytest.raises(PretrainedError, match=r"depth: .*absent: no such folder"):
        derive_data(zoo, pictures / "data", modalities=["depth"], workers=1)


def test_missing_unused_weights_are_accepted(hub: Hub, tmp_path: Path) -> None:
    """DPT's first fusion layer never uses its first residual unit, and published files lack it."""
    from safetensors.torch import load_file, save_file

    folder = networks.dpt(tmp_path / "dpt")
    weights = load_file(folder / "model.safetensors")
    kept = {name: part for name, part in weights.items() if "fusion_stage.layers.0.residual_layer1" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    expected = labelled("depth", hub("dpt"), metric=True).derive({"rgb": PICTURE})
    np.testing.assert_array_equal(labelled("depth", folder, metric=True).derive({"rgb": PICTURE}), expected)
