"""A small world for transfer tests: a backbone on modalities with the same content, and others it never saw."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from small_modalities import EXAMPLE, LETTERS, LEVELS, VECTORS, sample, small_zoo, write, write_values

from tokenizers_zoo import Zoo
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, whole_samples
from zoo_backbone.learn.checkpoint import save_model
from zoo_backbone.model.config import ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import Run
from zoo_backbone.use.transfer.config import transfer_config
from zoo_backbone.use.transfer.train import train_probe

UNTRAINED = """
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.layouts import GridLayout, VectorLayout
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec

class Untrained:
    @hookimpl
    def train_tokenizer(self, out_dir):
        raise AssertionError("no test trains it")
    @hookimpl
    def load_tokenizer(self, checkpoint):
        return None
"""
ZONES = (
    UNTRAINED
    + '''
class Zones(Untrained):
    """int64 (8, 8): low, middle or high."""
    @hookimpl
    def modality_spec(self, settings):
        right = Metric(name="right", higher_is_better=True, meaning="share of pixels that are right")
        value = ValueSpec(shape=(8, 8), dtype="int64", classes=("low", "middle", "high"))
        return ModalitySpec(name=settings.name, summary="zones", value=value, layout=GridLayout(shape=(2, 2)),
                            vocab_size=3, metrics=(right,))
    @hookimpl
    def encode(self, values):
        return values[:, ::4, ::4]
    @hookimpl
    def decode(self, tokens):
        return tokens.repeat_interleave(4, 1).repeat_interleave(4, 2)
    @hookimpl
    def score(self, predicted, target):
        return {"right": float(np.mean([np.mean(p == t) for p, t in zip(predicted, target, strict=True)]))}
    @hookimpl
    def render(self, value):
        from PIL import Image
        return Image.fromarray((value * 100).astype(np.uint8))

plugin = Zones()
'''
)
FACTS = (
    UNTRAINED
    + '''
class Facts(Untrained):
    """Numbers and words about a sample."""
    @hookimpl
    def modality_spec(self, settings):
        fields = (("total", "sum of the levels"), ("first", "letter of the first level"), ("rare", "seldom there"),
                  ("same", "always the same"))
        value = ValueSpec(kind="object", description="facts", fields=fields)
        return ModalitySpec(name=settings.name, summary="facts", value=value, layout=VectorLayout(length=1),
                            vocab_size=9)
    @hookimpl
    def encode(self, values):
        return [[0] for _ in values]
    @hookimpl
    def decode(self, tokens):
        return [{} for _ in tokens]

plugin = Facts()
'''
)
WARMTH = (
    UNTRAINED
    + '''
class Warmth(Untrained):
    """float32 (), a number in [0, 1]."""
    @hookimpl
    def modality_spec(self, settings):
        off = Metric(name="off", higher_is_better=False, meaning="mean of |predicted - true|")
        value = ValueSpec(shape=(), low=0, high=1)
        return ModalitySpec(name=settings.name, summary="warmth", value=value, layout=VectorLayout(length=1),
                            vocab_size=9, metrics=(off,))
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
)
SOURCES = {
    "light": EXAMPLE, "dark": EXAMPLE, "letters": LETTERS, "gist": VECTORS, "zones": ZONES, "facts": FACTS,
    "warmth": WARMTH,
}  # fmt: skip
SEEN, UNSEEN = ("light", "dark", "letters", "gist"), ("zones", "facts", "warmth")
TRAIN, TEST = 96, 24
STEPS = {"steps": 40, "batch_size": 16, "eval_every": 20, "warmup_steps": 4}


@dataclasses.dataclass(frozen=True)
class World:
    root: Path
    zoo: Zoo
    run: Path

    @property
    def table(self) -> Path:
        """A user's table of labels: whether the first level is above the second. Three keys match no sample."""
        return self.root / "mine.csv"

    def tokens(self, name: str, split: str = "test") -> tuple[list[str], Any]:
        column = TokenStore(self.root / "tokens").open(split, name)
        keys, rows = zip(*whole_samples([column]), strict=True)
        return list(keys), column.take(rows)


def make_world(root: Path) -> World:
    """Make values, tokens and a backbone. Test samples 3 and 7 lack letters; 5 and 6 lack facts."""
    zoo = small_zoo(root, [*SEEN, *UNSEEN], SEEN)
    generator = np.random.default_rng(0)
    rows = ["key,label"]
    for split, count in (("train", TRAIN), ("test", TEST)):
        samples = {f"{split}/{number:03}": facts_of(sample(generator), number) for number in range(count)}
        without = {"letters": {"test/003", "test/007"}, "facts": {"test/005", "test/006"}}
        for name in SEEN:
            write(root, zoo, split, name, {key: values[name] for key, values in samples.items()
                                           if key not in without.get(name, ())})  # fmt: skip
        for name in UNSEEN:
            write_values(root, zoo, split, name, {key: values[name] for key, values in samples.items()
                                                  if key not in without.get(name, ())})  # fmt: skip
        rows += [f"{key},{'down' if values['letters'][0] > values['letters'][1] else 'up'}"
                 for key, values in samples.items()]  # fmt: skip
    (root / "mine.csv").write_text("\n".join([*rows, "nobody,up", "nowhere,up", "nothing,down"]) + "\n")
    specs = [zoo[name].spec for name in SEEN]
    model = FourM.seeded(ModelConfig(dim=32, encoder_depth=2, decoder_depth=1, heads=2), specs, 7)
    fingerprints = {name: zoo[name].fingerprint for name in SEEN}
    save_model(model, root / "run", {"train": dataclasses.asdict(TrainConfig()), "fingerprints": fingerprints})
    Run(tokens=root / "tokens", data=root / "data", registry=root / "registry.toml").save(root / "run")
    return World(root=root, zoo=zoo, run=root / "run")


def facts_of(values: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a sample with the values of the unseen modalities."""
    levels = np.array([ord(letter) - ord("a") for letter in values["letters"]]).reshape(2, 2)
    facts = {
        "total": int(levels.sum()), "first": values["letters"][0], "same": 4,
        "rare": "yes" if number % 3 == 0 else None,
    }  # fmt: skip
    zones = (levels // 2).repeat(4, 0).repeat(4, 1).astype(np.int64)
    gist = (levels.ravel() / (LEVELS - 1)).astype(np.float32)
    return {**values, "gist": gist, "zones": zones, "facts": facts, "warmth": np.asarray(gist.mean())}


def with_run(world: World, folder: Path, **paths: Path | None) -> World:
    """Return the world with a copy of its run without probes; its tokens, data or registry may be others."""
    run = shutil.copytree(world.run, folder / "run", ignore=shutil.ignore_patterns("transfer"))
    dataclasses.replace(Run.load(world.run), **paths).save(run)
    return dataclasses.replace(world, run=run)


def train(world: World, out: Path, task: str, inputs: str = "light", seed: int = 0, **table: Any) -> dict[str, Any]:
    """Train a probe into `out` and return its metrics.json. `table` holds settings and arguments of `train_probe`."""
    arguments = {key: table.pop(key) for key in ("as_classes", "data", "on_step", "overwrite") if key in table}
    config = transfer_config({**STEPS, **table})
    train_probe(Run.load(world.run), world.zoo, task, inputs.split(","), out, config, seed=seed, **arguments)
    metrics: dict[str, Any] = read_table(out / "metrics.json")
    return metrics


def read(world: World, name: str, key: str, split: str = "test") -> Any:
    return ValueStore(world.root / "data").read_key(world.zoo[name], split, key)


def set_paths(probe: Path, **paths: str | None) -> None:
    """Change paths that a probe recorded."""
    record = read_table(probe / "run.json")
    write_table(probe / "run.json", {**record, "places": {**record["places"], **paths}})
