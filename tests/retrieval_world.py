"""A small world of retrieval: five modalities that say the same, on disk, and a backbone that has learned a little."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_evaluate import EXAMPLE, LETTERS, LEVELS, sample

from backbone.config import MaskingConfig, Mixture, ModelConfig, TrainConfig
from backbone.masking import Masker
from backbone.model import FourM
from backbone.run import Run
from backbone.saving import save_model
from backbone.training.data import TokenData
from tokenizers_zoo import Zoo
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.data.tar import writing_shard
from tokenizers_zoo.data.tokens import TokenMetadata, write_part

VECTORS = '''
from pathlib import Path
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.modality import ModalitySpec, PatchesLayout, ValueSpec, VectorLayout

class Numbers:
    """Four numbers in [0, 1]: as a vector of tokens, one a number, or as one patch of four."""
    @hookimpl
    def modality_spec(self, settings):
        vector = settings.name == "gist"
        layout = VectorLayout(length=4) if vector else PatchesLayout(shape=(1, 1), dim=4, dtype="float32")
        return ModalitySpec(name=settings.name, summary="four numbers", layout=layout, vocab_size=6 if vector else 0,
                            value=ValueSpec(shape=(4,), low=0, high=1))
    @hookimpl
    def train_tokenizer(self, out_dir):
        import torch
        save_checkpoint(out_dir, {"x": torch.zeros(1)}, {"class": "Numbers"}, "Numbers.")
        return Path(out_dir)
    @hookimpl
    def load_tokenizer(self, checkpoint):
        return load_checkpoint(checkpoint, "Numbers")
    @hookimpl
    def encode(self, values, settings):
        return (values * 5).round().long() if settings.name == "gist" else values[:, None]
    @hookimpl
    def decode(self, tokens, settings):
        return tokens.float() / 5 if settings.name == "gist" else tokens[:, 0]

plugin = Numbers()
'''
NAMES = ("light", "dark", "letters", "gist", "raw")
TRAIN, TEST = 160, 30
REGISTRY = f"""[zoo]
checkpoints = "tokenizers"
modalities = {list(NAMES)!r}
[modalities.light]
image_size = 8
levels = {LEVELS}
[modalities.dark]
image_size = 8
levels = {LEVELS}
"""


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Two brightness maps, letters, and four numbers as a vector and as a patch."""
    metadata = folder / "zoo_small-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-small\nVersion: 1.0\n")
    sources = {"light": EXAMPLE, "dark": EXAMPLE, "letters": LETTERS, "gist": VECTORS, "raw": VECTORS}
    lines = ["[tokenizers_zoo]", *(f"{name} = zoo_small_{name}:plugin" for name in sources)]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in sources.items():
        (folder / f"zoo_small_{name}.py").write_text(source, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))
    for name in sources:
        sys.modules.pop(f"zoo_small_{name}", None)


@dataclasses.dataclass(frozen=True)
class World:
    root: Path
    zoo: Zoo
    run: Path
    keys: list[str]
    """Of the test split."""


def make_world(root: Path) -> World:
    """Values, tokens and a trained run; the test samples 3 and 7 lack letters."""
    (root / "registry.toml").write_text(REGISTRY)
    zoo = Zoo.from_toml(root / "registry.toml")
    for name in NAMES:
        zoo[name].train_tokenizer(TrainingSamples(train=[], test=[]), zoo[name].checkpoint, 0)
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        samples = {f"{split}-{i:03}": all_five(generator) for i in range(count)}
        for name in NAMES:
            values = {key: found[name] for key, found in samples.items()}
            if name == "letters":
                values = {key: value for key, value in values.items() if key not in ("test-003", "test-007")}
            write(root, zoo, split, name, values)
    train(zoo, root)
    return World(root=root, zoo=zoo, run=root / "run", keys=[f"test-{i:03}" for i in range(TEST)])


def all_five(generator: np.random.Generator) -> dict[str, Any]:
    found = sample(generator)
    numbers = np.array([ord(letter) - ord("a") for letter in found["letters"]], np.float32) / (LEVELS - 1)
    return {**found, "gist": numbers, "raw": numbers}


def write(root: Path, zoo: Zoo, split: str, name: str, values: dict[str, Any]) -> None:
    with writing_shard(root / "data" / split / name / "shard-00000.tar") as shard:
        for key, value in values.items():
            shard.add(key, *zoo[name].write(value))
    rows = [np.asarray(row) for row in zoo[name].encode(list(values.values()))]
    part = root / "tokens" / split / name / "part-00000.arrow"
    write_part(part, TokenMetadata.of(zoo[name], {}), list(values), rows, {})


def train(zoo: Zoo, root: Path) -> None:
    """Learn the gist of each of the others."""
    torch.manual_seed(0)
    specs = [zoo[name].spec for name in NAMES]
    model = FourM(ModelConfig(dim=48, encoder_depth=1, decoder_depth=1, heads=2), specs)
    with torch.no_grad():
        model.token_embedding.weight.normal_()  # as large as the positions: learns in seconds
    mixtures = tuple(Mixture(inputs=(name,), targets=("gist",)) for name in ("light", "dark", "letters", "raw"))
    masking = MaskingConfig(input_budget=4, target_budget=4, mixtures=mixtures)
    data = TokenData(root / "tokens", "train", specs)
    masker, order = Masker(model.tables, masking), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        batch = masker(data.batch(order.choice(len(data), 48)), 0, step)
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    extra = {"train": dataclasses.asdict(TrainConfig(masking=masking)), "fingerprints": data.fingerprints}
    save_model(model, root / "run", extra)
    Run(tokens=root / "tokens", data=root / "data", registry=root / "registry.toml").save(root / "run")
