"""A toy source and toy modalities for pipeline tests, installed for one test at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.make import make_data

Toy = Callable[..., Zoo]
"""Makes a zoo of toy modalities."""
Install = Callable[..., Path]
"""Installs a distribution."""
SOURCE = '''
"""Samples without an end: `field` 16 x 16 (NaN in every tenth), `words` (every seventh lacks them), `other`."""
from dataclasses import dataclass
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.contract.source import SourceSpec

@dataclass(frozen=True, kw_only=True)
class ToySettings:
    image_size: int = 16
    brightness: float = 1.0

class Samples:
    def __init__(self, split, count, seed, config):
        self.split, self.count, self.seed, self.config = split, count, seed, config

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, len(self.split), i])
        side = self.config.image_size
        field = (rng.random((1, side, side)) * self.config.brightness).astype(np.float32)
        if i % 10 == 9:
            field[0, 0, 0] = np.nan
        values = {"field": field, "other": 1}
        if i % 7:
            values["words"] = f"sample {i} of {self.split}"
        return f"{self.split}-{i:04}", values

class Toy:
    @hookimpl
    def source_spec(self):
        return SourceSpec(
            name="toy", summary="toy", modalities=("field", "words", "other"), licence="none", settings=ToySettings,
            classes={"field": ("a", "b")},
        )

    @hookimpl
    def samples(self, split, count, seed, settings):
        if count is None:
            raise ConfigError("toy: say how many")
        return Samples(split, count, seed, settings.take(ToySettings))

source = Toy()
'''

WORDS = '''
"""Text as bytes over a shared vocabulary `letters`: 0 is the end, 1 and 2 are sentinels, bytes start at 3."""
from pathlib import Path
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.files.checkpoint import save_checkpoint
from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec

class Words:
    @hookimpl
    def modality_spec(self, settings):
        layout = SequenceLayout(max_length=40, end=0, sentinel_start=1, num_sentinels=2)
        return ModalitySpec(
            name=settings.name, summary="words", value=ValueSpec(kind="text"), layout=layout, vocab_size=259,
            vocabulary="letters",
        )

    @hookimpl
    def train_tokenizer(self, config, samples, out_dir):
        import torch
        table = {"class": "W", "texts": list(samples.texts()), "special": list(samples.special_tokens)}
        save_checkpoint(out_dir, {"x": torch.zeros(1)}, {**table, "train": list(samples.train)}, "card")
        return Path(out_dir)

    @hookimpl
    def load_tokenizer(self, checkpoint):
        return "bytes"

    @hookimpl
    def encode(self, values):
        if any("of train" not in value and "of test" not in value for value in values):
            raise ValueError("odd words")
        return [np.frombuffer(value.encode(), np.uint8).astype(np.int64) + 3 for value in values]

    @hookimpl
    def decode(self, tokens):
        return [bytes(int(i) - 3 for i in ids if i >= 3).decode("utf-8", "replace") for ids in tokens]

    @hookimpl
    def vocabulary_tokens(self):
        return ("<w>",)

    @hookimpl
    def vocabulary_texts(self, values):
        return list(values)

plugin = Words()
'''

DERIVE = """
    @hookimpl
    def derive(self, sample):
        from tokenizers_zoo.errors import DataError
        value = 1 - sample["field"]
        if value[0, 0, 1] < 0.1:
            raise DataError("too dark")
        return value

    @hookimpl
    def score("""


def derived(*inputs: str) -> dict[str, str]:
    """Return text replacements that make the example plugin derived from `inputs`."""
    return {
        'summary="brightness",': f'summary="brightness", derived_from={inputs!r},',
        "\n    @hookimpl\n    def score(": DERIVE.replace('"field"', repr(inputs[0])),
    }


SCALED = """
    @hookimpl
    def read_value(self, data, extension, settings):
        import io
        if extension == "npy":
            return np.load(io.BytesIO(data))
        return np.full((1, 16, 16), float(data) * settings.take(ExampleSettings).scale, np.float32)

    @hookimpl
    def score("""


def scaled() -> dict[str, str]:
    """Return text replacements that let the example plugin read `.num` files: one number in units of `scale`."""
    return {
        "    levels: int = 16\n": "    levels: int = 16\n    scale: float = 1.0\n",
        "\n    @hookimpl\n    def score(": SCALED,
    }


def install_toy(install: Install, install_example: Install, folder: Path) -> Toy:
    """Return a function that makes zoos of `field`, `words` and `dark` (derived from field), with the source `toy`."""
    install("zoo-toy", {"tokenizers_zoo.sources": {"toy": "zoo_toy:source"}}, {"zoo_toy": SOURCE})
    install("zoo-words", {"tokenizers_zoo": {"words": "zoo_words:plugin"}}, {"zoo_words": WORDS})
    install_example("field")
    install_example("dark", derived("field"))
    defaults = ("field", "words", "dark")

    def make(tables: dict[str, Any] | None = None, enabled: tuple[str, ...] = defaults) -> Zoo:
        tables = dict(tables or {})
        modalities = {name: {"enabled": False} for name in Zoo.installed().names() if name not in enabled}
        tables["modalities"] = {**modalities, **tables.get("modalities", {})}
        return Zoo.from_tables(tables, folder / "registry.toml")

    return make


def snapshot(root: Path) -> dict[str, bytes]:
    """Map the relative path of each file below a folder to its content."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def make_toy(zoo: Zoo, out: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"train": 25, "test": 5, "seed": 3, "workers": 0, "shard_size": 10}
    return make_data(zoo, "toy", out, **{**arguments, **changes})
