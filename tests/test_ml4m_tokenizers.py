"""Published tokenizers: imported, compared with a plain PyTorch version, and exported bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_tokenizers import imported, neutral, tokenizer_results
from published_tokenizers import published, twin
from stores import write_tar, writing_values
from torch import Tensor

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.checkpoint import ORIGIN
from tokenizers_zoo.files.published import PublishedCheckpoint, read_published, write_published
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.tokenizers.autoencoder.diffusion import noise_schedule
from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer
from tokenizers_zoo.tokenizers.ml4m.architecture import read_architecture

TOLERANCE = 2e-5
VIT: dict[str, Any] = {
    "class": "VQVAE", "enc_type": "vit_t_enc", "dec_type": "vit_t_dec", "image_size": 32, "patch_size": 8,
    "n_channels": 3, "latent_dim": 8, "codebook_size": 64,
}  # fmt: skip
MLP: dict[str, Any] = {
    "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
    "patch_size": 1, "n_channels": 10, "latent_dim": 16, "codebook_size": 32,
}  # fmt: skip
DIVAE: dict[str, Any] = {
    **VIT, "class": "DiVAE", "dec_type": "unet_tiny", "post_mlp": True, "beta_schedule": "linear",
    "prediction_type": "sample",
}  # fmt: skip
MEMCODES = {"quant_type": "memcodes", "num_codebooks": 4}
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": (VIT, (2, 3, 32, 32)),
    "post_mlp and out_conv": ({**VIT, "post_mlp": True, "out_conv": True}, (2, 3, 32, 32)),
    "another size": ({**VIT, "post_mlp": True}, (1, 3, 48, 24)),
    "euclidean": ({**VIT, "norm_codes": False}, (2, 3, 32, 32)),
    "memcodes": ({**VIT, **MEMCODES}, (2, 3, 32, 32)),
    "features": ({**VIT, "patch_proj": False, "n_channels": 6, "out_conv": True}, (2, 6, 4, 4)),
    "classes": ({**VIT, "n_labels": 7, "n_channels": 5, "out_conv": True}, (2, 32, 32)),
    "vectors": ({**MLP, **MEMCODES}, (3, 10, 1, 1)),
    "vectors at places": (MLP, (2, 10, 2, 3)),
    "diffusion": (DIVAE, (2, 3, 32, 32)),
    "codes over 1.5 cells": ({**DIVAE, "image_size": 24, "patch_size": 6}, (1, 3, 24, 24)),
}


def random_inputs(config: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return random inputs of this shape."""
    torch.manual_seed(1)
    if "n_labels" in config:
        return {"x": torch.randint(config["n_labels"], shape, dtype=torch.uint8)}
    inputs = {"x": torch.randn(shape)}
    if config["class"] == "DiVAE":
        inputs |= {"noise": torch.randn(shape), "timesteps": torch.tensor([3, 900])[: shape[0]]}
    return inputs


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert torch.equal(actual["tokens"], expected["tokens"])
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape
        scale = float(tensor.float().abs().max())
        assert float((actual[name].float() - tensor.float()).abs().max()) <= TOLERANCE * scale, name


def assert_same(actual: PublishedCheckpoint, expected: PublishedCheckpoint) -> None:
    """Assert that configuration, tensor names, dtypes and bits are equal."""
    assert dict(actual.config) == dict(expected.config)
    assert dict(actual.same_as) == dict(expected.same_as)
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert actual.tensors[name].dtype == tensor.dtype, name
        assert actual.tensors[name].contiguous().numpy().tobytes() == tensor.numpy().tobytes(), name


def handle_of(name: str, table: dict[str, Any], folder: Path, **settings: Any) -> ModalityHandle:
    """Return the handle of an installed modality whose checkpoint is the import in `folder`."""
    return Zoo.from_tables({"modalities": {name: {**table, **settings, "checkpoint": str(folder)}}})[name]


@pytest.mark.parametrize("case", CASES)
def test_an_import_computes_what_was_published(case: str, tmp_path: Path) -> None:
    config, shape = CASES[case]
    checkpoint, inputs = published(**config), random_inputs(config, shape)
    results = tokenizer_results(checkpoint, inputs, tmp_path / "own", names=())
    assert len(results["tokens"].unique()) > 1 and results.pop("tokens/margin").min() > 0
    assert_equal(results, twin(checkpoint, inputs))


@pytest.mark.parametrize("case", CASES)
def test_import_and_export_round_trip_bit_for_bit(case: str, tmp_path: Path) -> None:
    round_trip(published(**CASES[case][0], only_in_training=0.25), tmp_path)


def round_trip(checkpoint: PublishedCheckpoint, folder: Path) -> ModalityHandle:
    """Return the handle of the import after checking that its export is the same."""
    handle = imported(checkpoint, folder / "own", names=())
    export = handle.export_published()
    write_published(export, folder / "again")
    for exported in (export, read_published(folder / "again")):
        assert_same(exported, checkpoint)
    assert exported.metadata == checkpoint.metadata
    return handle


def test_dtypes_metadata_and_a_missing_class_survive_the_round_trip(tmp_path: Path) -> None:
    """4M's code reads its configuration from the file's metadata; on the hub it lacks the name of the class."""
    full_precision = published(**VIT)
    halves = {name: tensor.half() for name, tensor in full_precision.tensors.items()}
    handle = round_trip(dataclasses.replace(full_precision, tensors=halves), tmp_path / "half")
    assert all(tensor.dtype == torch.float32 for tensor in handle.tokenizer.module.parameters())
    with_metadata = dataclasses.replace(full_precision, metadata={"format": "pt", "enc_type": "vit_b_enc"})
    round_trip(with_metadata, tmp_path / "told")
    assert (
        with_metadata.extra_metadata() and not full_precision.extra_metadata()
    )  # default metadata does not change the fingerprint
    for config in (VIT, DIVAE):
        complete = published(**config)
        checkpoint = dataclasses.replace(complete, config={k: v for k, v in config.items() if k != "class"})
        assert read_architecture(checkpoint) == read_architecture(complete)
        round_trip(checkpoint, tmp_path / config["class"])


BAD: dict[str, tuple[dict[str, Any], Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (VIT, lambda t: t.pop("encoder.blocks.1.mlp.fc1.bias"), "no tensor encoder.blocks.1.mlp.fc1.bias"),
    "extra": (VIT, lambda t: t.update(more=torch.ones(1)), "more, .*config.json"),
    "shape": (VIT, lambda t: t.update({"quant_proj.weight": torch.ones(9, 32, 1, 1)}), r"quant_proj.weight is \[9, 32"),
    "positions": ({**VIT, "image_size": 64}, lambda t: t.update({"encoder.pos_emb": torch.ones(1, 32, 4, 4)}),
                  "encoder.pos_emb is"),
    "class": ({**VIT, "class": "VQControlNet"}, lambda t: None, "class: expected VQVAE or DiVAE"),
    "decoder": ({**DIVAE, "dec_type": "uvit_b_p4_f16"}, lambda t: None, "dec_type: expected unet_"),
    "quantizer": ({**VIT, "quant_type": "fsq"}, lambda t: None, "quant_type: expected .*lucid"),
    "schedule": ({**DIVAE, "beta_schedule": "shifted_cosine:0.5"}, lambda t: None, "beta_schedule: expected"),
    "number": ({**VIT, "latent_dim": 0}, lambda t: None, "latent_dim: expected int >= 1"),
    "patch": ({**VIT, "image_size": 30}, lambda t: None, "patch_size: 8 .* 30 x 30"),
    "colours": ({**VIT, "undo_std": True}, lambda t: None, "undo_std: expected false"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mismatches_are_named_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    config, change, message = BAD[case]
    sound = published(**(DIVAE if config["class"] == "DiVAE" else VIT))
    tensors = dict(sound.tensors)
    change(tensors)
    broken = dataclasses.replace(sound, config=config, tensors=tensors, path="FOLDER")
    handle = neutral(read_architecture(sound), {}, tmp_path)
    with pytest.raises(CheckpointError, match=f"^FOLDER: .*{message}") as error:
        handle.import_published(broken, tmp_path / "own")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("rgb", "features", "it has 6 channels, expected 3"),
        ("rgb", "classes", "classes, .* numbers"),
        ("rgb", "vectors", "it is an MLP"),
        ("semseg", "plain", "numbers, .* class ids"),
        ("dinov2_global", "vectors", "it has 10 channels, expected 768"),
    ],
)
def test_a_tokenizer_of_other_values_is_refused(zoo: Zoo, name: str, case: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"made: is no tokenizer of {name}: .*{reason}"):
        zoo[name].import_published(published(**CASES[case][0]), tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_a_modality_without_a_counterpart_says_so(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="caption: has no published counterpart"):
        zoo["caption"].import_published(published(**VIT), tmp_path)
    with pytest.raises(CheckpointError, match="caption: has no published counterpart"):
        zoo["caption"].export_published(tmp_path)


def test_a_tokenizer_that_was_not_imported_is_not_exported(tmp_path: Path) -> None:
    handle = imported(published(**VIT), tmp_path, names=())
    config = read_table(tmp_path / "config.json")
    del config[ORIGIN]
    write_table(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match="was trained here"):
        handle.export_published()


# ---------------------------------------------------------------------- values of the zoo


def encoded(handle: ModalityHandle, values: Any) -> Tensor:
    """Encode values of a modality with a fixed number of tokens."""
    tokens = handle.encode(values)
    assert isinstance(tokens, Tensor)
    return tokens


def tokens_of(checkpoint: PublishedCheckpoint, x: Tensor) -> Tensor:
    return twin(checkpoint, {"x": x, "noise": torch.zeros_like(x), "timesteps": torch.zeros(len(x))})["tokens"]


def test_pictures_are_encoded_between_minus_one_and_one(zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**VIT)
    handle = handle_of("rgb", zoo["rgb"].import_published(checkpoint, tmp_path), tmp_path)
    values = torch.rand(2, 3, 32, 32)
    tokens = encoded(handle, values)
    assert torch.equal(tokens, tokens_of(checkpoint, 2 * values - 1))
    expected = (twin(checkpoint, {"x": 2 * values - 1})["decoded"] / 2 + 0.5).clamp(0, 1)
    assert np.allclose(np.stack(handle.decode(tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_are_encoded_as_minus_one_and_one(channels: int, zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**{**DIVAE, "n_channels": channels, "num_train_timesteps": 4})
    handle = handle_of("canny", zoo["canny"].import_published(checkpoint, tmp_path), tmp_path)
    values = (torch.rand(2, 1, 32, 32) < 0.3).float()
    tokens = encoded(handle, values)
    assert torch.equal(tokens, tokens_of(checkpoint, (2 * values - 1).repeat(1, channels, 1, 1)))
    decoded = handle.decode(tokens)
    assert all(np.array_equal(first, second) for first, second in zip(decoded, handle.decode(tokens), strict=True))
    assert torch.equal(handle.tokenizer.codec.to_network(values), values.repeat(1, channels, 1, 1))
    with pytest.raises(CheckpointError, match="has a diffusion decoder only"):
        handle.tokenizer.decode_plain(tokens)
    assert not handle.tokenizer.module.has_two_decoders


def test_depth_is_standardised_for_each_picture(zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**{**VIT, "n_channels": 1})
    handle = handle_of("depth", zoo["depth"].import_published(checkpoint, tmp_path), tmp_path)
    metres = (torch.rand(2, 1, 32, 32) * torch.tensor([3.0, 20.0]).view(2, 1, 1, 1)) + 0.5
    expected = []
    for picture in metres:
        middle = picture.flatten().sort().values[102:921]  # drops a tenth of 1024 at each end
        expected.append((picture - middle.mean()) / middle.std())
    assert torch.equal(encoded(handle, metres), tokens_of(checkpoint, torch.stack(expected)))
    assert torch.equal(encoded(handle, metres), encoded(handle, 3 * metres))  # the unit does not matter
    decoded = np.stack(handle.decode(encoded(handle, metres)))
    raw = twin(checkpoint, {"x": torch.stack(expected)})["decoded"]
    assert np.allclose(decoded, (raw * 1.5 + 4.0).clamp(0.001, 100), atol=1e-4)


def test_classes_are_encoded_as_ids_and_names_are_imported(zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**{**VIT, "n_labels": 134, "n_channels": 5})
    table = zoo["semseg"].import_published(checkpoint, tmp_path)
    assert table["classes"][:2] == ["void", "person"] and table["classes"][-1] == "rug-merged"
    handle = handle_of("semseg", table, tmp_path)
    ids = torch.randint(134, (2, 32, 32))
    tokens = encoded(handle, ids)
    assert torch.equal(tokens, tokens_of(checkpoint, ids))
    expected = twin(checkpoint, {"x": ids})["decoded"].argmax(dim=1)
    assert np.array_equal(np.stack(handle.decode(tokens)), expected)
    unnamed = zoo["semseg"].import_published(published(**{**VIT, "n_labels": 3}), tmp_path / "other")
    assert unnamed["classes"] == ["class 0", "class 1", "class 2"]


def test_vectors_are_encoded_unchanged(zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**{**MLP, **MEMCODES, "n_channels": 1280})
    table = zoo["imagebind_global"].import_published(checkpoint, tmp_path)
    assert (table["vector"], table["colours"]) == ("class", "imagenet")
    handle = handle_of("imagebind_global", table, tmp_path)
    values = torch.randn(3, 1280)
    expected = twin(checkpoint, {"x": values[:, :, None, None]})
    assert torch.equal(encoded(handle, values), expected["tokens"][:, :, 0, 0])
    decoded = np.stack(handle.decode(encoded(handle, values)))
    assert np.allclose(decoded, torch.nn.functional.normalize(expected["decoded"][:, :, 0, 0]), atol=1e-6)


def test_masks_and_poses_are_encoded_item_by_item(tmp_path: Path) -> None:
    """With `layout = "codes"`; test_published_sequences.py tests the text layout."""
    zoo = Zoo.from_tables({"modalities": {name: {"layout": "codes"} for name in ("sam_instance", "human_poses")}})
    masks = published(**{**VIT, "n_channels": 1, "image_size": 16, "out_conv": True})
    handle = handle_of("sam_instance", zoo["sam_instance"].import_published(masks, tmp_path / "m"), tmp_path / "m")
    value = np.zeros((64, 64), np.int32)
    value[8:24, 16:32] = 1
    value[8:12, 16:20] = 0
    (ids,) = handle.encode([value])
    x = torch.ones(1, 1, 16, 16)
    x[:, :, :4, :4] = 0
    start = handle.tokenizer.grammar.code_start
    assert np.array_equal(ids[4:] - start, tokens_of(masks, x).flatten())
    assert handle.decode([ids])[0].shape == (64, 64)

    poses = published(**{**MLP, **MEMCODES, "n_channels": 207})
    handle = handle_of("human_poses", zoo["human_poses"].import_published(poses, tmp_path / "p"), tmp_path / "p")
    skeleton = handle.tokenizer.fitted["skeleton"]
    height = skeleton[[3, 6, 9, 12, 15], 1].sum() - skeleton[[1, 4, 7, 10], 1].sum()
    assert 1.4 < height < 1.7  # from the soles to the head joint
    pose = body_at_rest(skeleton)
    (ids,) = handle.encode([[pose]])
    x = torch.eye(3).repeat(23, 1, 1).flatten()[None, :, None, None]
    codes = ids[ids >= handle.tokenizer.grammar.code_start] - handle.tokenizer.grammar.code_start
    offsets = 32 * np.arange(4)  # each codebook has ids of its own
    assert np.array_equal(codes - offsets, tokens_of(poses, x).flatten())
    assert len(handle.decode([ids])[0]) == 1


def body_at_rest(skeleton: np.ndarray) -> dict[str, Any]:
    """Return a person in the rest pose, 3 m away."""
    from zoo_geometry import body

    joints = body.joints_of(np.zeros((1, 24, 3)), skeleton[None], np.array([[0.0, 0.0, -3.0]]))
    image = body.image_of(joints, np.array([[0.5, 0.5]]), np.array([[1.0, 1.0]]))
    return {
        "joint_rotations": np.zeros((24, 3)).tolist(), "joints_camera": joints[0].tolist(),
        "joints_image": image[0].tolist(), "box": [0.2, 0.2, 0.8, 0.8],
    }  # fmt: skip


def test_a_tokenizer_without_a_plain_decoder_is_evaluated(zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = published(**{**DIVAE, "num_train_timesteps": 2})
    table = zoo["rgb"].import_published(checkpoint, tmp_path / "own")
    handle = handle_of("rgb", table, tmp_path / "own")
    with writing_values(tmp_path / "data", "test", "rgb") as shard:
        data, extension = handle.write(np.full((3, 32, 32), 0.25, np.float32))
        shard.add("a", data, extension)
    tables = {"modalities": {"rgb": {**table, "checkpoint": str(tmp_path / "own")}}, "zoo": {"modalities": ["rgb"]}}
    result = evaluate_tokenizer(Zoo.from_tables(tables)["rgb"], tmp_path / "data", write=False)
    assert result.samples == 1 and not any("plain" in name for name in json.dumps(result.to_json()).split('"'))


# ---------------------------------------------------------------------- parts


def test_the_noise_schedule_equals_our_reference(tmp_path: Path) -> None:
    handle = imported(published(**{**DIVAE, "num_train_timesteps": 100, "thresholding": False}), tmp_path, names=())
    config = handle.tokenizer.module.diffusion
    schedule = noise_schedule(config)
    betas = torch.linspace(1e-4, 0.02, 100)
    roots = (1 - betas).cumprod(0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])  # arXiv 2305.08891, algorithm 1
    assert torch.allclose(schedule.alphas_cumprod, roots.square(), atol=1e-5)
    assert (config.prediction, config.sampling_steps, config.limit) == ("x0", 50, "none")


def test_clipping_keeps_samples_within_one(tmp_path: Path) -> None:
    checkpoint = published(**DIVAE)
    checkpoint.tensors["decoder.out.2.bias"][:] = 9.0
    samples = {}
    for clip, options in ((True, {}), (False, {"thresholding": False})):
        handle = imported(dataclasses.replace(checkpoint, config=DIVAE | options), tmp_path / str(clip), names=())
        with torch.inference_mode():
            samples[clip] = handle.tokenizer.module.sample(torch.zeros(1, 8, 4, 4), torch.randn(1, 3, 32, 32))
    assert float(samples[True].max()) <= 1 + 1e-5 < 5 < float(samples[False].max())


def test_aliases_are_unambiguous(zoo: Zoo) -> None:
    owners = dict.fromkeys(zoo.names(), "")
    for handle in zoo.handles():
        for alias in handle.spec.aliases:
            assert alias not in owners, alias
            owners[alias] = handle.name
    expected = {"tok_rgb@224": "rgb", "rgb@448": "rgb_patches", "det": "boxes", "DINOv2-B14-global": "dinov2_global"}
    assert {alias: owners[alias] for alias in expected} == expected


def test_folders_of_tokens_hold_no_values(zoo: Zoo, tmp_path: Path) -> None:
    """Of the folders of an ml-4m data set, only the folders with values are imported, as our modalities."""
    boxes = zoo["boxes"].write([])[0]
    for name, data in (("tok_rgb@224", b""), ("det", boxes)):
        write_tar(tmp_path / "train" / name / "0.tar", {f"a.{'npy' if not data else 'json'}": data})
    result = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options={"path": str(tmp_path)}, workers=0)
    assert ValueStore(tmp_path / "data").modalities("train") == ["boxes"]
    assert list(result.skipped) == ["tok_rgb@224"]
