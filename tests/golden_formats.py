"""Write tests/golden/formats again: a small file of every format, and what reading them gives.

    python tests/golden_formats.py

Needed after a change of a format only; test_formats.py then compares with the new results.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from command_world import STAGES, World, new_world

from tokenizers_zoo import Zoo
from tokenizers_zoo.files.checkpoint import load_checkpoint
from tokenizers_zoo.records.io import read_lines, read_table, write_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, read_tokens
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.measure.compare import read_compared
from zoo_backbone.use import bundle
from zoo_backbone.use.retrieval.index import Index
from zoo_backbone.use.transfer import load

GOLDEN = Path(__file__).with_name("golden") / "formats"
EXPECTED = "expected.json"
STATES = {"depth_state": "training_state.safetensors", "run_state": "step-00000002"}
"""Folders of killed trainings, and the names of their states."""
NAMES = "depth", "rgb_patches", "caption"
LEFT_OUT = "files", "made", "samples0*", "tensorboard", "report", ".lock", "unfinished.json"
PROBE = "transfer train run --task depth --input rgb_patches --out probe --head linear"
SHORT = "--set steps=2 --set batch_size=4 --set eval_every=2"
SMALLER = {
    "size = 1600": "size = 700",
    "bins = 64": "bins = 8",
    "dim = 32": "dim = 16",
    "steps = 6": "steps = 4",
    "loss_samples = 8": "loss_samples = 4",
}
"""Changes of the test world's settings."""


def write(golden: Path) -> None:
    """Run the pipeline, kill two trainings, and copy its files."""
    with tempfile.TemporaryDirectory() as temporary:
        world = new_world(Path(temporary))
        for name in ("registry.toml", "backbone.toml"):
            text = (world.folder / name).read_text()
            for old, new in SMALLER.items():
                text = text.replace(old, new)
            (world.folder / name).write_text(text)
        stages = {stage: words for stage, words in STAGES.items() if stage not in ("report", "generate", "decode")}
        stages["export"] = "backbone export run bundle --samples 2 --dtype float16"
        stages["index"] = "retrieve build run --out index"
        stages["transfer"] = f"{PROBE} {SHORT}"
        world.go(stages)
        for folder, stage in zip(STATES, ("train", "backbone"), strict=True):
            _kill(world, stage, folder)
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(world.folder, golden, ignore=shutil.ignore_patterns(*LEFT_OUT))
    write_table(golden / EXPECTED, results(golden))


def _kill(world: World, stage: str, folder: str) -> None:
    """Kill a training after it wrote its first state, and move its files to `folder`."""
    finished = {"train": "tokenizers/depth", "backbone": "run"}[stage]
    backup = world.folder / f"{folder}.kept"
    (world.folder / finished).rename(backup)
    assert world(STAGES[stage], kill_after=world.renames[stage].index(STATES[folder])).code < 0
    (world.folder / finished).rename(world.folder / folder)
    backup.rename(world.folder / finished)


def results(golden: Path) -> dict[str, Any]:
    """Return what the files hold, as JSON types."""
    zoo, values, tokens = Zoo.from_toml(golden / "registry.toml"), ValueStore(golden / "data"), golden / "tokens"
    key = values.keys("test", *NAMES)[0]
    columns = {name: TokenStore(tokens).open("test", name).take([0])[0] for name in NAMES}
    index = Index(golden / "index")
    return {
        "keys": values.keys("test", *NAMES),
        "values": {name: listed(values.read_key(zoo[name], "test", key)) for name in NAMES},
        "tokens": {name: listed(column) for name, column in columns.items()},
        "one token file": listed(read_tokens(zoo["depth"], golden / "one.json")),
        "decoded": {name: listed(zoo[name].decode([column])[0]) for name, column in columns.items()},
        "pairs": [
            [*inputs, target, pair.score] for (inputs, target), pair in read_compared(golden / "run").pairs.items()
        ],
        "losses": read_lines(golden / "run/metrics.jsonl"),
        "tokenizer": read_table(golden / "tokenizers/depth/evaluation.json")["metrics"],
        "hits": [hit.key for hit in index.search(index.vectors("depth")[:1].numpy(), 5, "depth")[0]],
        "predicted": listed(load(golden / "probe").predict({"rgb_patches": columns["rgb_patches"][None]})[0]),
        "bundle": sorted(bundle.verify(golden / "bundle", load_model(golden / "bundle"), bundled(golden))),
        "weights": {name: checksums(golden / name) for name in ("tokenizers/depth", "run")},
    }


def bundled(golden: Path) -> Zoo:
    return Zoo.from_toml(golden / "bundle" / "registry.toml")


def checksums(folder: Path) -> dict[str, float]:
    """Return the sum of each tensor of a checkpoint."""
    return {name: round(float(tensor.double().sum()), 4) for name, tensor in load_checkpoint(folder)[0].items()}


def listed(value: Any) -> Any:
    """Return a value or tokens as JSON types; of long arrays, some numbers."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    numbers = array.ravel()[:: max(1, array.size // 64)]
    return {"shape": list(array.shape), "numbers": np.round(numbers.astype(float), 4).tolist()}


if __name__ == "__main__":
    write(GOLDEN)
