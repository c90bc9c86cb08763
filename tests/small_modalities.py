"""Small modalities given as source code, installed for the duration of a test, and stores of their samples."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from click import Command
from click.testing import CliRunner, Result
from stores import writing_values
from token_stores import write_tokens

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.stores.token_shard import TokenMetadata

EXAMPLE = Path(__file__).with_name("example_plugin.py").read_text(encoding="utf-8")
LETTERS = '''
from pathlib import Path
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec

class Letters:
    """Text of up to 4 letters a-f, one token each."""
    @hookimpl
    def modality_spec(self, settings):
        layout = SequenceLayout(max_length=4, end=0, sentinel_start=1, num_sentinels=2)
        return ModalitySpec(name=settings.name, summary="letters", value=ValueSpec(kind="text"), layout=layout,
                            vocab_size=9)
    @hookimpl
    def train_tokenizer(self, out_dir):
        import torch
        save_checkpoint(out_dir, {"x": torch.zeros(1)}, {"class": "Letters"}, "Letters.")
        return Path(out_dir)
    @hookimpl
    def load_tokenizer(self, checkpoint):
        return load_checkpoint(checkpoint, "Letters")
    @hookimpl
    def encode(self, values):
        return [np.array([ord(letter) - ord("a") + 3 for letter in value], np.int64) for value in values]
    @hookimpl
    def decode(self, tokens):
        return ["".join(chr(int(token) - 3 + ord("a")) for token in row) for row in tokens]

plugin = Letters()
'''
VECTORS = '''
from pathlib import Path
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.contract.layouts import PatchesLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec

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
LEVELS = 6
VECTORS_ALONE = {
    "import GridLayout": "import EmbeddingsLayout",
    "layout=GridLayout(shape=(side // 4, side // 4))": "layout=EmbeddingsLayout(max_length=99, dim=1)",
    "vocab_size=config.levels": "vocab_size=0",
    "(means * (len(tokenizer) - 1)).round().long()": "means.flatten(1)[..., None]",
    'return repeat(tokenizer[tokens], "batch h w -> batch 1 (h p) (w q)", p=4, q=4)': "raise NotImplementedError",
}
"""Changes that make the example plugin an input-only modality: vectors of one number without a decoder."""


def changed(source: str, changes: Mapping[str, str]) -> str:
    """Return source code with parts replaced."""
    for old, new in changes.items():
        assert old in source, old
        source = source.replace(old, new)
    return source


def write_metadata(folder: Path, name: str, version: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Write the metadata that pip writes for a distribution."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextmanager
def installed(folder: Path, distribution: str, sources: Mapping[str, str]) -> Iterator[None]:
    """Install zoo-DISTRIBUTION; `sources` maps modality names to the code of modules that define `plugin`."""
    modules = {name: f"zoo_{distribution}_{name}" for name in sources}
    points = {name: f"{module}:plugin" for name, module in modules.items()}
    write_metadata(folder, f"zoo-{distribution}", "1.0", {"tokenizers_zoo": points})
    for name, module in modules.items():
        (folder / f"{module}.py").write_text(sources[name], encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))
    for module in modules.values():
        sys.modules.pop(module, None)


def registry_of(names: Sequence[str]) -> str:
    """Return a registry.toml of these modalities; the maps are `light` and `dark`."""
    return f"""[zoo]
checkpoints = "tokenizers"
modalities = {list(names)!r}
[modalities.light]
image_size = 8
levels = {LEVELS}
[modalities.dark]
image_size = 8
levels = {LEVELS}
"""


def small_zoo(root: Path, names: Sequence[str], trained: Sequence[str] | None = None) -> Zoo:
    """Write a registry.toml, and train the tokenizers of all modalities or of those in `trained`."""
    (root / "registry.toml").write_text(registry_of(names))
    zoo = Zoo.from_toml(root / "registry.toml")
    for name in names if trained is None else trained:
        zoo[name].train_tokenizer(TrainingSamples(train=[], test=[]), zoo[name].checkpoint, 0)
    return zoo


def sample(generator: np.random.Generator) -> dict[str, Any]:
    """Return a sample: dark mirrors the levels of light, and the letters spell them."""
    levels = generator.integers(0, LEVELS, (2, 2))
    maps = {}
    for name, map_levels in (("light", levels), ("dark", LEVELS - 1 - levels)):
        flat = np.repeat(np.repeat(map_levels / (LEVELS - 1), 4, 0), 4, 1)[None]
        maps[name] = np.clip(flat + generator.normal(0, 0.02, flat.shape), 0, 1).astype(np.float32)
    return {**maps, "letters": "".join(chr(ord("a") + level) for level in levels.flat)}


def write_values(root: Path, zoo: Zoo, split: str, name: str, values: Mapping[str, Any]) -> None:
    """Write a shard of values in ROOT/data."""
    with writing_values(root / "data", split, name) as shard:
        for key, value in values.items():
            shard.add(key, *zoo[name].write(value))


def write(root: Path, zoo: Zoo, split: str, name: str, values: dict[str, Any]) -> None:
    """Write values in ROOT/data and their tokens in ROOT/tokens."""
    write_values(root, zoo, split, name, values)
    rows = zip(values, zoo[name].encode(list(values.values())), strict=True)
    write_tokens(root / "tokens", split, TokenMetadata.of(zoo[name], {}), dict(rows))


def command_result(command: Command, *words: Any, registry: Path | None = None, **options: Any) -> Result:
    """Run a command of the backbone in this process."""
    return CliRunner().invoke(command, [str(word) for word in words], obj={"registry": registry}, **options)


def refusal(command: Command, *words: Any, error: type[Exception] = ZooError) -> str:
    """Run a command that fails; return its one-line error."""
    result = command_result(command, *words, standalone_mode=False)
    assert isinstance(result.exception, error), (result.output, result.exception)
    text = str(result.exception)
    assert "\n" not in text
    return text
