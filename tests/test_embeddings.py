"""Input-only modalities: vectors of a text encoder and patches of pixels, standardised and read by the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feature_networks as networks
import numpy as np
import pytest
import torch

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.build.tokenizers import train_tokenizer
from tokenizers_zoo.contract.layouts import EmbeddingsLayout
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.families.continuous import mean_and_deviation
from tokenizers_zoo.files.checkpoint import load_checkpoint
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, whole_samples
from tokenizers_zoo.tokenizers.autoencoder.task import moments
from zoo_images import rgb
from zoo_language.caption import t5_caption

NAME = "t5_caption"
WORDS = ["a", "red", "blue", "chair", "table", "person", "and", "two", "in", "the", "room", "small"]
CAPTIONS = ["a red chair", "two blue chair and a small table in the room", "", "a person", "the room and a red table"]


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.t5(tmp_path_factory.mktemp("hub") / "tiny-t5", WORDS, dim=16)


def zoo_of(patches_tokenizer: Path, network: Path | str, **settings: Any) -> Zoo:
    enabled = ("caption", NAME)
    tables: dict[str, Any] = {name: {"enabled": False} for name in Zoo.installed().names() if name not in enabled}
    tables[NAME] = {"network": {"model": str(network)}, "dim": 16, "max_length": 8, **settings}
    vocabularies = {"text": {"size": 1600, "sentinels": 8, "coordinate_bins": 64}}
    return Zoo.from_tables({"vocabularies": vocabularies, "modalities": tables}, patches_tokenizer / "registry.toml")


@pytest.fixture(scope="module")
def zoo_and_folder(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zoo, Path]]:
    """Captions in a folder, their vectors derived, both tokenized."""
    folder = tmp_path_factory.mktemp("road")
    for split, copies in (("train", 4), ("test", 2)):
        (folder / "files" / split / "caption").mkdir(parents=True)
        for number, text in enumerate(CAPTIONS * copies):
            (folder / "files" / split / "caption" / f"{split}{number:02}.txt").write_text(text)
    zoo = zoo_of(folder, tiny_t5)
    make_data(zoo, "folder", folder / "data", train=None, test=None, options={"path": str(folder / "files")}, workers=0)
    derive_data(zoo, folder / "data", modalities=[NAME], workers=0)
    for name in ("caption", NAME):
        train_tokenizer(zoo, name, folder / "data")
    tokenize(zoo, folder / "data", folder / "tokens")
    yield zoo, folder


def test_vectors_equal_the_encoder_output(zoo_and_folder: tuple[Zoo, Path], tiny_t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    zoo, folder = zoo_and_folder
    store = ValueStore(folder / "data")
    words, encoder = AutoTokenizer.from_pretrained(tiny_t5), T5EncoderModel.from_pretrained(tiny_t5).eval()
    for number, text in enumerate(CAPTIONS):
        derived = store.read_key(zoo[NAME], "train", f"train{number:02}")
        expected = encoder(**words([text], return_tensors="pt")).last_hidden_state[0].detach().numpy()
        assert derived.dtype == np.float32 and len(derived) == min(len(text.split()) + 1, 8)
        if len(expected) <= 8:
            np.testing.assert_allclose(derived, expected, atol=1e-3 * np.abs(expected).max())
    long = store.read_key(zoo[NAME], "train", "train01")
    end = encoder(**words([" ".join(CAPTIONS[1].split()[:7])], return_tensors="pt")).last_hidden_state[0, -1]
    np.testing.assert_allclose(long[-1], end.detach().numpy(), atol=2e-3)  # cut before the end token, which stays
    entry = store.record("train", NAME)
    assert len(entry["networks"]["network"]["sha256"]["model.safetensors"]) == 64


def test_tokens_are_standardised_and_of_variable_length(zoo_and_folder: tuple[Zoo, Path]) -> None:
    zoo, folder = zoo_and_folder
    column = TokenStore(folder / "tokens").open("train", NAME)
    assert column.metadata.layout == zoo[NAME].spec.layout == EmbeddingsLayout(max_length=8, dim=16)
    keys, rows = zip(*whole_samples([column]), strict=True)
    tokens = column.take(rows)
    assert sorted({len(row) for row in tokens}) == [1, 3, 4, 7, 8]
    numbers = np.concatenate(tokens)
    assert np.abs(numbers.mean(0)).max() < 0.01 and np.abs(numbers.std(0) - 1).max() < 0.01
    decoded = zoo[NAME].decode(tokens)
    values = [ValueStore(folder / "data").read_key(zoo[NAME], "train", key) for key in keys]
    assert zoo[NAME].score(decoded, values)["cosine"] == pytest.approx(1, abs=1e-4)


def test_the_published_size_is_a_preset() -> None:
    spec = t5_caption.modality_spec(Settings(NAME, {"preset": "4m"}))
    assert spec.layout == EmbeddingsLayout(max_length=77, dim=4096) and spec.derived_from == ("caption",)
    assert "weights of" in spec.licence
    for key, value in (("preset", "5m"), ("preset", ["4m"]), ("preset", {"4m": 1}), ("dim", 0)):
        with pytest.raises(ConfigError, match=f"{key}: expected"):
            t5_caption.modality_spec(Settings(NAME, {key: value}))


def test_a_network_of_another_size_is_refused(tiny_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"99; set dim = 16"):
        zoo_of(tmp_path, tiny_t5, dim=99)[NAME].derive({"caption": "a chair"})


def test_streamed_channel_statistics_equal_direct_statistics() -> None:
    """Also far from 0, where a sum of squares in single precision would be noise."""
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.normal(1e4, [[0.1], [3]], (n, 2, 5)).astype(np.float32)) for n in (1, 3, 2)]
    mean, std = moments(iter(batches))
    combined = torch.cat(batches).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, combined.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(std, combined.std(dim=1, correction=0), rtol=1e-9, atol=0)


def test_statistics_and_scores_by_hand() -> None:
    mean, std = mean_and_deviation([np.array([[1, 5]]), np.empty((0, 2)), np.array([[2, 5], [3, 5]])])
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(std, [(2 / 3) ** 0.5, 0.005 * (2 / 3) ** 0.5], rtol=1e-6)  # the floor: 1 % of their mean
    target = [np.array([[1.0, 0], [0, 2]]), np.array([[3.0, 0]])]
    predicted = [np.array([[1.0, 1]]), np.array([[-1.0, 0], [9, 9]])]
    for unit in (1, 1e-9):
        scaled = ([unit * vectors for vectors in values] for values in (predicted, target))
        assert t5_caption.score(*scaled)["cosine"] == pytest.approx((0.5**0.5 + 0 - 1) / 3)


@pytest.mark.parametrize("unit", [1e-13, 1e-9, 1e6])
def test_statistics_do_not_depend_on_the_unit(unit: float) -> None:
    mean, std = mean_and_deviation([unit * np.array([[-1, 5]]), unit * np.array([[1, 5]])])
    np.testing.assert_allclose(mean / unit, [0, 5], rtol=1e-6)
    np.testing.assert_allclose(std / unit, [1, 0.005], rtol=1e-6)
    same = np.full((3, 2), 0.1)
    for second in (same, np.nextafter(same, 1)):
        assert mean_and_deviation([same, second])[1].tolist() == [np.float32(1e-6)] * 2


def test_numbers_too_large_for_half_precision_are_refused(zoo_and_folder: tuple[Zoo, Path]) -> None:
    large = np.full((1, 16), 1e5, np.float32)
    with pytest.raises(InvalidValueError, match='set dtype = "float32"'):
        zoo_and_folder[0][NAME].write(large)
    single_precision = zoo_of(Path(), "no/network", dtype="float32")[NAME]
    assert (single_precision.read(*single_precision.write(large)) == large).all()


plugin = rgb.patches
PATCHES = Settings("rgb_patches", {"image_size": [8, 12], "patch_size": 4})


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.9, (count, 3, 8, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def patches_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = TrainingSamples(train=list(pictures(6)), test=list(pictures(2, 1)), provenance={"source": "noise"})
    return plugin.train_tokenizer(PATCHES, samples, tmp_path_factory.mktemp("run") / "rgb_patches", 0)


def test_patches_are_normalised_and_in_order(patches_tokenizer: Path) -> None:
    tokenizer = plugin.load_tokenizer(patches_tokenizer, "cpu", PATCHES)
    tensors, _ = load_checkpoint(patches_tokenizer)
    np.testing.assert_allclose(tensors["mean"], pictures(6).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(tensors["std"], pictures(6).std(axis=(0, 2, 3)), rtol=1e-4)
    values = pictures(2, 5)
    tokens = plugin.encode(tokenizer, torch.from_numpy(values))
    assert tokens.shape == (2, 6, 48) and tokens.dtype == torch.float32
    # patch 4 is row 1, column 1: rows 4..7, columns 4..7; number 16 + 4 + 2 of it is channel 1, row 1, column 2
    expected = (values[1, 1, 5, 6] - tensors["mean"][1]) / tensors["std"][1]
    assert tokens[1, 4, 22] == pytest.approx(float(expected), abs=1e-6)
    decoded = plugin.decode(tokenizer, tokens)
    np.testing.assert_allclose(decoded.numpy(), values, atol=1e-6)


def test_spec_and_decoding_stay_within_bounds(patches_tokenizer: Path) -> None:
    spec = plugin.modality_spec(PATCHES)
    assert (spec.layout.shape, spec.layout.dim, spec.vocab_size, spec.continuous) == ((2, 3), 48, 0, True)
    tokenizer = plugin.load_tokenizer(patches_tokenizer, "cpu", PATCHES)
    decoded = plugin.decode(tokenizer, 100 * torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0)))
    assert decoded.min() == 0 and decoded.max() == 1


def test_number_of_held_out_values_read_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are evenly spaced, because the first samples of a sorted list may all be alike."""
    monkeypatch.setattr("tokenizers_zoo.train.loop.FINAL_SAMPLES", 3)
    read = []

    class Watched(list[np.ndarray]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    provenance = {"source": "pictures"}  # otherwise some values are read to identify the data
    samples = TrainingSamples(train=list(pictures(2)), test=Watched(pictures(6, 1)), provenance=provenance)
    folder = plugin.train_tokenizer(PATCHES, samples, tmp_path / "rgb_patches", 0)
    assert read_table(folder / "evaluation.json")["samples"] == 3
    assert "2 training and 6 held-out samples" in (folder / "README.md").read_text()
    assert read == [0, 2, 4]


def test_invalid_patches_and_samples_are_refused(patches_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = plugin.load_tokenizer(patches_tokenizer, "cpu", PATCHES)
    with pytest.raises(InvalidValueError, match="patch size 4"):
        plugin.encode(tokenizer, torch.zeros(1, 3, 8, 10))
    with pytest.raises(InvalidValueError, match=r"6 .*5"):
        plugin.decode(tokenizer, torch.zeros(1, 5, 48))
    with pytest.raises(DataError, match="held-out"):
        plugin.train_tokenizer(PATCHES, TrainingSamples(train=list(pictures(1)), test=[]), tmp_path / "x", 0)
    assert not (tmp_path / "x").exists()
