"""Labellers: small networks of the hub's classes through `zoo data derive`, settings, normals, and post-processing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import labeller_networks as networks
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.cli.main import zoo as zoo_command
from tokenizers_zoo.contract.pictures import rgb_image
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.families.images import angle_degrees
from tokenizers_zoo.stores.shards import ValueStore
from zoo_geometry.normal import normals_of_depth
from zoo_semantics.labellers import (
    InstanceLabeller,
    boxes_of_masks,
    class_table,
    labelled_boxes,
    non_maximum_suppression,
)

PICTURE = np.random.default_rng(0).random((3, 48, 64)).astype(np.float32)
KEPT = 3
Hub = Callable[..., Path]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """`hub("dpt", metres=3.5)`: the folder of that network, made at its first use."""
    folders: dict[Any, Path] = {}

    def folder(name: str, **weights: Any) -> Path:
        key = name, *sorted(weights.items())
        if key not in folders:
            folders[key] = getattr(networks, name)(tmp_path_factory.mktemp(name) / "network", **weights)
        return folders[key]

    return folder


def zoo_of(folder: Path, tables: Mapping[str, Any]) -> Zoo:
    """rgb and the modalities of `tables`, everything else disabled."""
    disabled = {name: {"enabled": False} for name in Zoo.installed().names() if name != "rgb"}
    return Zoo.from_tables({"modalities": {**disabled, **tables}}, folder / "registry.toml")


def labelled(name: str, model: Path | str, **settings: Any) -> Any:
    """The handle of a modality with a labeller."""
    return Zoo.from_tables({"modalities": {name: {"labeller": {"model": str(model), **settings}}}})[name]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of scenes that holds rgb pictures only."""
    folder = tmp_path_factory.mktemp("pictures")
    make_data(zoo_of(folder, {}), "scenes", folder / "data", train=KEPT, test=1, workers=0)
    return folder


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
    pictures: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    models = {
        "depth": hub("dpt"), "semseg": hub("segformer", winner=2), "boxes": hub("yolos"), "sam": hub("sam"),
        "caption": hub("blip", word="chair"),
    }  # fmt: skip
    (pictures / "registry.toml").write_text(REGISTRY.format(**models))
    names = ("depth", "semseg", "boxes", "sam_instance", "caption")
    command = ["data", "derive", "data", "--modalities", ",".join(names), "--workers", "1"]
    done = CliRunner().invoke(zoo_command, command)
    assert all(f"train/{name}: {KEPT} written" in done.output for name in names), done.output
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

    rerun = CliRunner().invoke(zoo_command, command)
    assert all(f"train/{name}: 0 written, " in rerun.output for name in names), rerun.output


def test_modality_of_a_source_is_not_derived(tmp_path: Path, hub: Hub) -> None:
    zoo = zoo_of(tmp_path, {"depth": {"labeller": {"model": str(hub("dpt")), "metric": True}}})
    make_data(zoo, "scenes", tmp_path / "data", train=1, test=0, workers=0)
    before = (tmp_path / "data" / "train" / "depth" / "shard-00000.tar").read_bytes()
    result = derive_data(zoo, tmp_path / "data", modalities=["depth"], workers=0)
    assert result.skipped == {"depth": "is there, and was not derived"} and not result.outcomes
    assert not derive_data(zoo, tmp_path / "data", workers=0).outcomes
    assert (tmp_path / "data" / "train" / "depth" / "shard-00000.tar").read_bytes() == before


# ---- outputs equal transformers


def test_depth_equals_the_transformers_pipeline(hub: Hub) -> None:
    """Relative depth is inverse and scaled to the declared distances."""
    from transformers import pipeline

    for folder, settings in (
        (hub("dpt"), {"metric": True}),
        (hub("dpt"), {"scaled_to": [1, 4]}),
        (hub("depth_anything"), {}),
    ):
        ask = pipeline("depth-estimation", model=str(folder), device="cpu", image_processor_kwargs={"backend": "pil"})
        expected = ask(rgb_image(PICTURE))["predicted_depth"].numpy()
        if "scaled_to" in settings:
            expected = 1 / (0.25 + 0.75 * (expected - expected.min()) / np.ptp(expected))
        depth = labelled("depth", folder, **settings).derive({"rgb": PICTURE})
        assert depth.shape == (1, 48, 64) and depth.dtype == np.float32
        np.testing.assert_allclose(depth[0], np.clip(expected, 0.001, 100), atol=1e-5)


def test_metres_are_not_guessed(hub: Hub) -> None:
    with pytest.raises(PretrainedError, match=r"not metres; set labeller.scaled_to"):
        labelled("depth", hub("dpt")).derive({"rgb": PICTURE})
    with pytest.raises(PretrainedError, match=r"gives metres; remove labeller.scaled_to"):
        labelled("depth", hub("depth_anything"), scaled_to=[1, 8]).derive({"rgb": PICTURE})
    assert np.allclose(labelled("depth", hub("dpt", metres=3.5), metric=True).derive({"rgb": PICTURE}), 3.5)
    with pytest.raises(DataError, match="the same depth everywhere"):
        labelled("depth", hub("dpt", metres=3.5), scaled_to=[1, 8]).derive({"rgb": PICTURE})


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_classes_equal_transformers(name: str, hub: Hub) -> None:
    import transformers

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
    class_ids = handle.derive({"rgb": PICTURE})
    assert class_ids.dtype == np.int64
    np.testing.assert_array_equal(class_ids, expected)


def test_boxes_equal_transformers(hub: Hub) -> None:
    from transformers import pipeline

    ask = pipeline("object-detection", model=str(hub("detr")), device="cpu", image_processor_kwargs={"backend": "pil"})
    expected = ask(rgb_image(PICTURE), threshold=0.2)
    boxes = labelled("boxes", hub("detr"), threshold=0.2).derive({"rgb": PICTURE})
    assert len(boxes) == len(expected) > 0 and [box["label"] for box in boxes] == [box["label"] for box in expected]
    for mine, theirs in zip(boxes, expected, strict=True):
        pixels = np.array(mine["box"]) * (64, 48, 64, 48)
        assert np.abs(pixels - list(theirs["box"].values())).max() <= 1  # theirs are cut to whole pixels
    assert labelled("boxes", hub("yolos"), threshold=0.97).derive({"rgb": PICTURE}) == []
    assert labelled("boxes", hub("yolos"), labels={"wall": ""}).derive({"rgb": PICTURE}) == []
    renamed = labelled("boxes", hub("yolos"), labels={"wall": "a wall"}).derive({"rgb": PICTURE})
    assert {box["label"] for box in renamed} == {"a wall"}
    with pytest.raises(PretrainedError, match="has no label 'tree'"):
        labelled("boxes", hub("yolos"), labels={"tree": "shrub"}).derive({"rgb": PICTURE})


def test_sam_is_queried_at_the_grid_points(hub: Hub) -> None:
    """The logits equal one query per point, given in picture pixels through the processor."""
    from transformers import SamModel, SamProcessor

    folder = hub("sam")
    labeller = labelled("sam_instance", folder, points=2, batch=3, min_quality=0.0).known_settings()["labeller"]
    assert "batch" not in labeller.record(), "masks are not computed again for another batch"
    answers = list(labeller._predict_masks(PICTURE))
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
    with pytest.raises(PretrainedError, match=r"SegformerFor.* expected ...ForDepthEstimation"):
        labelled("depth", hub("segformer")).derive({"rgb": PICTURE})
    with pytest.raises(PretrainedError, match=r"DPTFor.* expected ...ForSemanticSegmentation"):
        labelled("semseg", hub("dpt")).derive({"rgb": PICTURE})
    (tmp_path / "config.json").write_text("[]")
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PretrainedError, match=r"config.json cannot be read"):
        labelled("boxes", tmp_path).derive({"rgb": PICTURE})


def test_missing_unused_weights_are_accepted(hub: Hub, tmp_path: Path) -> None:
    """DPT's first fusion layer never uses its first residual unit, and published files lack it."""
    from safetensors.torch import load_file, save_file

    folder = networks.dpt(tmp_path / "dpt")
    weights = load_file(folder / "model.safetensors")
    used_weights = {name: part for name, part in weights.items() if "fusion_stage.layers.0.residual_layer1" not in name}
    assert len(used_weights) < len(weights)
    save_file(used_weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = labelled("depth", hub("dpt"), metric=True).derive({"rgb": PICTURE})
    np.testing.assert_array_equal(labelled("depth", folder, metric=True).derive({"rgb": PICTURE}), expected)


# ---- without a network: settings, normals from depth, and post-processing of outputs


@pytest.mark.parametrize("name", ["depth", "semseg", "boxes", "sam_instance", "caption"])
def test_only_a_labeller_makes_a_modality_derived(name: str) -> None:
    plain = Zoo.installed()[name]
    assert plain.spec.derived_from == () and plain.spec.derive_setting == "labeller"
    with pytest.raises(DataError, match=rf"{name}: .* labeller in \[modalities.{name}"):
        plain.derive({"rgb": np.zeros((3, 8, 8), np.float32)})
    spec = labelled(name, "owner/network").spec
    assert spec.derived_from == ("rgb",) and "labels by owner/network" in spec.licence
    assert spec.layout == plain.spec.layout and spec.value == plain.spec.value


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("depth", {}, "model: required"),
        ("depth", {"model": "a/b", "scaled_to": [8, 1]}, r"scaled_to: .* \[8.0, 1.0\]"),
        ("depth", {"model": "a/b", "sacled_to": [1, 8]}, "sacled_to: unknown key; did you mean scaled_to"),
        ("semseg", {"model": "a/b", "labels": {"tree": "shrub"}}, "'tree' .* 'shrub'"),
        ("boxes", {"model": "a/b", "threshold": 1.0}, r"threshold: .* \(0, 1\), got float 1"),
        ("sam_instance", {"model": "a/b", "min_quality": 88}, r"min_quality: .* \[0, 1\], got float 88"),
    ],
)
def test_invalid_labeller_settings_are_refused(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Zoo.from_tables({"modalities": {name: {"labeller": table}}})[name]


def plane(normal: tuple[float, float, float], shape: tuple[int, int], fov: tuple[float, float]) -> np.ndarray:
    """Depth of the plane normal . point = -2, point in x right, y up, z towards the viewer: float64 (height, width)."""
    height, width = shape
    top, side = (np.tan(np.radians(angle) / 2) for angle in fov)
    x = np.linspace(-1 + 1 / width, 1 - 1 / width, width) * side
    y = np.linspace(1 - 1 / height, -1 + 1 / height, height)[:, None] * top
    return -2 / (normal[0] * x + normal[1] * y - normal[2])


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, 0.6, 0.8), (-0.48, 0.36, 0.8)])
def test_normals_of_a_plane_are_exact(normal: tuple[float, float, float]) -> None:
    truth = np.broadcast_to(np.array(normal)[:, None, None], (3, 12, 12))
    square = normals_of_depth(plane(normal, (12, 12), (50, 50)), 50)
    assert square.dtype == np.float32 and angle_degrees(square, truth).max() < 1e-3
    wide = normals_of_depth(plane(normal, (12, 12), (40, 60)), (40, 60))  # a wide picture, squeezed to a square
    assert angle_degrees(wide, truth).max() < 1e-3
    across = 2 * np.degrees(np.arctan(np.tan(np.radians(20)) * 20 / 12))
    long = normals_of_depth(plane(normal, (12, 20), (40, across)), 40)
    assert angle_degrees(long, truth[..., :1].repeat(20, axis=2)).max() < 1e-3


def test_normals_are_not_smoothed_across_edges() -> None:
    left, right = (-0.6, 0.0, 0.8), (0.0, 0.6, 0.8)
    depth = plane(left, (10, 10), (50, 50))
    depth[:, 5:] = plane(right, (10, 10), (50, 50))[:, 5:] + 0.0
    truth = np.array(left)[:, None, None].repeat(10, axis=1).repeat(10, axis=2)
    truth[:, :, 5:] = np.array(right)[:, None, None]
    depth[:, 5:] *= 2  # the same slopes, twice as far away
    assert angle_degrees(normals_of_depth(depth, 50), truth).max() < 1e-3


def test_camera_comes_from_settings_or_sample() -> None:
    depth = plane((0.6, 0.0, 0.8), (12, 12), (50, 50))[None].astype(np.float32)
    from_metadata, fixed, two_angles = (
        Zoo.from_tables({"modalities": {"normal": {"camera_fov": fov}}})["normal"]
        for fov in ("metadata", 50.0, [50.0, 50.0])
    )
    assert fixed.spec.derived_from == two_angles.spec.derived_from == ("depth",)
    assert from_metadata.spec.derived_from == ("depth", "metadata")
    expected = fixed.derive({"depth": depth})
    np.testing.assert_array_equal(two_angles.derive({"depth": depth}), expected)
    np.testing.assert_array_equal(from_metadata.derive({"depth": depth, "metadata": {"camera_fov": 50.0}}), expected)
    with pytest.raises(DataError, match=r"normal: .* camera_fov"):
        from_metadata.derive({"depth": depth, "metadata": {}})


CLASSES = ("void", "floor", "wall", "chair")


def test_labels_become_classes() -> None:
    names = {0: "Wall", 1: "floor, flooring", 2: "sky", 3: "armchair", 4: "seat;chair"}
    table = class_table(names, {"armchair": "chair"}, CLASSES, "net")
    assert table.tolist() == [2, 1, 0, 3, 3] and table.dtype.kind == "i"
    np.testing.assert_array_equal(table[np.array([[2, 3], [0, 1]])], [[0, 3], [2, 1]])
    declared = class_table({0: "wall", 1: "sky"}, {"wall": "void", "sky": "wall"}, CLASSES, "net")
    assert declared.tolist() == [0, 2]  # declared names take precedence over similar ones
    with pytest.raises(PretrainedError, match=r"net: .* LABEL_0, LABEL_1"):
        class_table({0: "LABEL_0", 1: "LABEL_1"}, {}, CLASSES, "net")
    with pytest.raises(PretrainedError, match=r"'sky' and 1 other, .* void"):
        class_table({0: "wall", 1: "sky", 2: "sea"}, {}, CLASSES[1:], "net")


def test_boxes_are_sorted_clipped_and_named() -> None:
    edges = [[-0.1, 0.2, 0.5, 1.3], [0.4, 0.4, 0.6, 0.6], [1.1, 0.0, 1.2, 0.5], [0, 0, 1, 1], [0, 0, 1, 1]]
    labels = ["potted  plant", "chair", "chair", "N/A", ""]
    assert labelled_boxes(labels, edges, [0.5, 0.9, 0.8, 0.7, 0.6]) == [
        {"label": "chair", "box": [0.4, 0.4, 0.6, 0.6]},
        {"label": "potted plant", "box": [0.0, 0.2, 0.5, 1.0]},
    ]
    assert labelled_boxes([], [], []) == []


def test_boxes_of_masks_and_suppression_by_hand() -> None:
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:3, 2:7] = masks[1, 5, 0] = masks[2, 0:6, 0:8] = True
    boxes = boxes_of_masks(masks)
    assert boxes.tolist() == [[2, 1, 7, 3], [0, 5, 1, 6], [0, 0, 8, 6]]
    shifted = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [5, 0, 15, 10], [20, 20, 30, 30]])
    scores = np.array([0.5, 0.9, 0.8, 0.1])  # overlaps with the second: 0.8, 40 / 140, 0
    assert non_maximum_suppression(shifted, scores, 0.7) == [1, 2, 3]
    assert non_maximum_suppression(shifted, scores, 0.8) == [1, 2, 0, 3]
    assert non_maximum_suppression(shifted, scores, 0.2) == [1, 3]
    assert non_maximum_suppression(np.zeros((0, 4)), np.zeros(0), 0.5) == []


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered(InstanceLabeller):
    """Fake answers: an object, the same object at lower quality, an unstable, a low-quality and an empty mask."""

    def _predict_masks(self, picture: Any) -> Iterator[tuple[Any, Any]]:
        logits = np.full((5, 8, 8), -5.0)
        logits[0, 1:4, 1:4] = logits[1, 1:4, 1:4] = logits[3, 5:, 5:] = 5.0
        logits[2, :, 6:] = 0.5
        yield logits[:2], np.array([0.9, 0.95])
        yield logits[2:], np.array([0.99, 0.5, 0.99])


def test_masks_are_filtered() -> None:
    picture = np.zeros((3, 8, 8))
    masks = Answered(model="none").masks(picture)
    assert masks.shape == (1, 8, 8) and masks[0].sum() == 9 and masks[0, 1:4, 1:4].all()
    assert len(Answered(model="none", max_overlap=1.0).masks(picture)) == 2
    assert len(Answered(model="none", min_quality=0.4).masks(picture)) == 2
    assert Answered(model="none", min_quality=1.0).masks(picture).shape == (0, 8, 8)
