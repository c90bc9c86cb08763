"""Probes can predict a modality whose value is a single number (an array without axes)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_modalities import installed, registry_of, write_values
from transfer_world import SOURCES, World, make_world, read, train

from tokenizers_zoo import Zoo
from zoo_backbone.transfer import load
from zoo_backbone.transfer.cli import transfer as command

WARMTH = '''
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.spec import Metric, ModalitySpec, ValueSpec, VectorLayout

class Warmth:
    """float32 (), a number in [0, 1]."""
    @hookimpl
    def modality_spec(self, settings):
        off = Metric(name="off", higher_is_better=False, meaning="mean of |predicted - true|")
        value = ValueSpec(shape=(), low=0, high=1)
        return ModalitySpec(name=settings.name, summary="warmth", value=value, layout=VectorLayout(length=1),
                            vocab_size=9, metrics=(off,))
    @hookimpl
    def train_tokenizer(self, out_dir):
        raise AssertionError("no test trains it")
    @hookimpl
    def load_tokenizer(self, checkpoint):
        return None
    @hookimpl
    def encode(self, values):
        return (values[:, None] * 8).round().long()
    @hookimpl
    def decode(self, tokens):
        return tokens[:, 0] / 8
    @hookimpl
    def score(self, predicted, target):
        assert {(value.dtype.name, value.shape) for value in (*predicted, *target)} == {("float32", ())}
        return {"off": float(np.mean([abs(p - t) for p, t in zip(predicted, target, strict=True)]))}
    @hookimpl
    def render(self, value):
        return f"{value.item():.1f}"

plugin = Warmth()
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The transfer world with one more modality: `warmth`, the brightness of a sample."""
    with installed(tmp_path_factory.mktemp("site"), "one", {**SOURCES, "warmth": WARMTH}):
        made = make_world(tmp_path_factory.mktemp("world"))
        (made.root / "registry.toml").write_text(registry_of([*SOURCES, "warmth"]))
        zoo = Zoo.from_toml(made.root / "registry.toml")
        for split in ("train", "test"):
            keys, _ = made.tokens("light", split)
            means = {key: np.asarray(read(made, "light", key, split).mean(), np.float32) for key in keys}
            write_values(made.root, zoo, split, "warmth", means)
        yield dataclasses.replace(made, zoo=zoo)


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_it_is_scored_and_written_as_an_array(head: str, world: World, tmp_path: Path) -> None:
    found = train(world, tmp_path / "probe", "warmth", head=head)
    assert found["task"]["kind"] == "numbers" and found["metrics"][0]["name"] == "off"
    words = ["predict", tmp_path / "probe", "--keys", "test-001,test-002", "--out", tmp_path / "made"]
    obj = {"registry": world.root / "registry.toml", "debug": False}
    done = CliRunner().invoke(command, [str(word) for word in words], obj=obj)
    assert done.exit_code == 0, (done.output, done.exception)
    keys, tokens = world.tokens("light")
    answers = dict(zip(keys, load(tmp_path / "probe", world.zoo).predict({"light": tokens}), strict=True))
    for key in ("test-001", "test-002"):
        written = np.load(tmp_path / "made" / f"{key}.npy")
        assert (written.dtype, written.shape) == (np.float32, ())
        np.testing.assert_allclose(written, answers[key], rtol=1e-5)
