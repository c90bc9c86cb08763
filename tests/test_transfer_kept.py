"""Features of a frozen encoder: which are computed, how much memory they take, and that nothing else comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_modalities import installed
from transfer_world import SOURCES, TRAIN, World, make_world, train

from tokenizers_zoo.data.shards import ValueStore
from zoo_backbone.transfer import keeping
from zoo_backbone.transfer.config import transfer_config
from zoo_backbone.transfer.heads import build_head
from zoo_backbone.transfer.keeping import KeptFeatures, widened
from zoo_backbone.transfer.kinds import Numbers
from zoo_backbone.transfer.probe import Network, encoder_of
from zoo_backbone.transfer.reading import unpadded
from zoo_backbone.transfer.samples import Part, Places
from zoo_backbone.transfer.tasks import Task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


def network_and_part(world: World, given: tuple[str, ...]) -> tuple[Network, Part]:
    """A frozen encoder with a head that reads all tokens, and the training samples."""
    config = transfer_config({})
    encoder = encoder_of(world.run, config, 0)
    kind = Numbers(mean=(0.0,), std=(1.0,))
    places = Places(
        tokens=world.root / "tokens", store=ValueStore.of(world.root / "data", world.zoo), zoo=world.zoo, owner="",
        specs=[world.zoo[name].spec for name in given], trained_on={},
    )  # fmt: skip
    network = Network(encoder, build_head("attentive", kind, config, encoder.model.config, None), None)
    return network, places.part(Task.parse("facts.total", world.zoo), "train")


class Encoded:
    """How many samples went through the encoder, in training and evaluation: not those of the last score."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples = 0
        computed = KeptFeatures._computed

        def counted(kept: KeptFeatures, places: Any) -> Any:
            self.samples += len(places)
            return computed(kept, places)

        monkeypatch.setattr(KeptFeatures, "_computed", counted)


def test_a_short_training_encodes_what_it_uses(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of two steps, one that is read ahead, and what judges them; all samples once in a longer one."""
    encoded = Encoded(monkeypatch)
    train(world, tmp_path / "short", "facts.total", steps=2, batch_size=8)
    assert encoded.samples <= 3 * 8 + 19
    encoded.samples = 0
    train(world, tmp_path / "long", "facts.total")
    assert encoded.samples == TRAIN
    encoded.samples = 0
    train(world, tmp_path / "unjudged", "facts.total", steps=1, batch_size=8, validation=0.0, eval_samples=5)
    assert encoded.samples <= 2 * 8 + 5


def test_a_resumed_training_encodes_what_is_left(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(step: int) -> None:
        if step == 8:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"steps": 9, "batch_size": 4, "eval_every": 8, "eval_samples": 8}
    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path, "facts.total", on_step=die, **settings)
    encoded = Encoded(monkeypatch)
    train(world, tmp_path, "facts.total", **settings)
    assert encoded.samples <= 2 * 4 + 8


def test_features_are_those_of_all_samples_in_order(world: World) -> None:
    """As computed beforehand, 64 at a time; kernels may round otherwise for that many."""
    network, part = network_and_part(world, ("light", "gist"))
    with torch.no_grad():
        wanted = [
            row for start in (0, 64)
            for row in unpadded(*network.read(*network.encoder.prepare(
                part.tokens(range(start, min(start + 64, TRAIN)))
            )))
        ]  # fmt: skip
    found = KeptFeatures(network, part)
    generator = np.random.default_rng(0)
    for size in (5, 32, 1, 40, 96):
        places = generator.permutation(TRAIN)[:size].tolist()
        for row, place in zip(found.of(places), places, strict=True):
            torch.testing.assert_close(row, wanted[place])


@pytest.mark.parametrize("given", [("light",), ("letters",), ("letters", "light")])
def test_features_depend_on_no_other_sample(
    world: World, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is kept, and with sequences that are shorter than others."""
    network, part = network_and_part(world, given)
    take = Part.tokens

    def shorter(part: Part, places: Any) -> Any:
        tokens = take(part, places)
        if "letters" in tokens:
            tokens["letters"] = [row[: 1 + place % 4] for row, place in zip(tokens["letters"], places, strict=True)]
        return tokens

    monkeypatch.setattr(Part, "tokens", shorter)
    whole = KeptFeatures(network, part).of(range(TRAIN))
    assert len({len(row) for row in whole}) == (4 if "letters" in given else 1)
    monkeypatch.setattr(keeping, "KEPT_BYTES", 20 * whole[3].nbytes)
    some = KeptFeatures(network, part)
    generator = np.random.default_rng(1)
    for size in (1, 7, 16, 33):
        places = generator.integers(0, TRAIN, size).tolist()
        assert all(torch.equal(row, whole[place]) for row, place in zip(some.of(places), places, strict=True))
    assert 0 < len(some.kept) < 60


def test_always_as_many_samples_are_encoded_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = network_and_part(world, ("light",))
    read, sizes = network.read, list[int]()

    def noted(tokens: Any, used: Any) -> Any:
        sizes.append(len(tokens["light"]))
        return read(tokens, used)

    monkeypatch.setattr(network, "read", noted)
    features = KeptFeatures(network, part, rows=6)
    for places in ([0], [1, 2, 3, 4, 5, 6, 7], [8, 9]):
        features.of(places)
    assert sizes == [6, 6, 6, 6]


def test_vectors_of_variable_number_are_filled_up_as_tokens_are() -> None:
    tokens = {"words": torch.ones(2, 3, dtype=torch.long), "vectors": torch.ones(2, 1, 5), "grid": torch.ones(2, 4)}
    used = {"words": torch.ones(2, 3, dtype=torch.bool), "vectors": torch.ones(2, 1, dtype=torch.bool)}
    wide, mask = widened(tokens, used, {"words": 5, "vectors": 3})
    assert {name: tuple(value.shape) for name, value in wide.items()} == {
        "words": (2, 5), "vectors": (2, 3, 5), "grid": (2, 4),
    }  # fmt: skip
    assert mask["words"].sum(1).tolist() == [3, 3] and mask["vectors"].sum(1).tolist() == [1, 1]
    assert wide["vectors"][:, 1:].abs().sum() == 0 and tokens["vectors"].shape == (2, 1, 5)


def test_what_is_kept_fits_and_holds_no_more_memory_than_it_says(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = network_and_part(world, ("light",))
    size = KeptFeatures(network, part).of([0])[0].nbytes
    monkeypatch.setattr(keeping, "KEPT_BYTES", 10 * size + size // 2)
    features = KeptFeatures(network, part)
    features.of(range(TRAIN))
    assert sorted(features.kept) == list(range(10)) and features.room == size // 2
    assert all(row.untyped_storage().nbytes() == size for row in features.kept.values())


@pytest.mark.parametrize("given", ["light", "letters,light"])
def test_weights_depend_neither_on_what_is_kept_nor_on_a_kill(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """All is kept; some is; nothing is; some is, and the training is killed between two evaluations."""

    def die(step: int) -> None:
        if step == 25:
            raise KeyboardInterrupt

    def weights(name: str) -> bytes:
        train(world, tmp_path / name, "facts.total", given)
        return (tmp_path / name / "model.safetensors").read_bytes()

    wanted = weights("all")
    for name, room in (("some", 9_000), ("none", 0)):
        monkeypatch.setattr(keeping, "KEPT_BYTES", room)
        assert weights(name) == wanted, name
    monkeypatch.setattr(keeping, "KEPT_BYTES", 9_000)
    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "killed", "facts.total", given, on_step=die)
    assert weights("killed") == wanted
    assert (tmp_path / "all" / "metrics.jsonl").read_bytes() == (tmp_path / "killed" / "metrics.jsonl").read_bytes()


def test_knn_has_all_features_where_they_do_not_fit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, tmp_path / "all", "facts.total", head="knn")
    monkeypatch.setattr(keeping, "KEPT_BYTES", 600)
    train(world, tmp_path / "none", "facts.total", head="knn")
    bank = load_file(tmp_path / "all" / "model.safetensors")["head.bank"]
    assert torch.equal(bank, load_file(tmp_path / "none" / "model.safetensors")["head.bank"]) and len(bank) == TRAIN
