"""Previews: pictures and text generated from held-out samples during backbone training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_modalities import EXAMPLE, LETTERS, VECTORS_ALONE, changed, installed, sample, write

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TEST, TrainingSamples
from tokenizers_zoo.errors import MachineError, PluginError
from zoo_backbone.measure import gallery
from zoo_backbone.measure.gallery import Previews, write_sheet
from zoo_backbone.model.config import ModelConfig, Preview, TrainConfig
from zoo_backbone.model.fourm import FourM

SOURCES = {"brightness": changed(EXAMPLE, VECTORS_ALONE), "light": EXAMPLE, "letters": LETTERS}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Three modalities with tokenizers; ROOT/tokens has their tokens for four held-out samples."""
    root = tmp_path_factory.mktemp("world")
    tables = {"brightness": {"image_size": 8}, "light": {"image_size": 8, "levels": 6}}
    with installed(tmp_path_factory.mktemp("site"), "shown", SOURCES):
        listed = {"checkpoints": str(root / "tokenizers"), "modalities": [*SOURCES]}
        zoo = Zoo.from_tables({"zoo": listed, "modalities": tables}, root / "registry.toml")
        generator = np.random.default_rng(0)
        samples = {f"test-{number}": sample(generator) for number in range(4)}
        for name in SOURCES:
            zoo[name].train_tokenizer(TrainingSamples(train=[], test=[]), zoo[name].checkpoint, 0)
            of = "light" if name == "brightness" else name
            write(root, zoo, TEST, name, {key: values[of] for key, values in samples.items()})
        yield zoo


def draw_preview(zoo: Zoo, folder: Path, preview: Preview) -> Path:
    handles = {name: zoo[name] for name in SOURCES}
    model = FourM.seeded(
        ModelConfig(dim=16, encoder_depth=1, decoder_depth=1, heads=2), [handle.spec for handle in handles.values()], 0
    )
    tokens = zoo["light"].checkpoint.parent.parent / "tokens"
    config = TrainConfig(previews=(preview,), preview_every=1)
    (sheet,) = Previews(handles, tokens, config)(model, folder, 1).values()
    return sheet


def test_an_input_that_has_no_decoder_is_counted(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preview shows the number of its vectors in place of a picture or text."""
    with pytest.raises(PluginError, match="NotImplementedError"):
        zoo["brightness"].decode([np.zeros((4, 1), np.float32)])
    assert draw_preview(zoo, tmp_path, Preview(inputs=("brightness",), target="light")) == (
        tmp_path / "previews" / "step-00000001" / "brightness-to-light.png"
    )
    sheets: list[Any] = []

    def record_sheet(path: Path, headers: Any, rows: Any, **options: Any) -> None:
        sheets.append((headers[0], [row[0] for row in rows]))
        write_sheet(path, headers, rows, **options)

    monkeypatch.setattr(gallery, "write_sheet", record_sheet)
    assert draw_preview(zoo, tmp_path, Preview(inputs=("brightness",), target="letters")).is_file(), "of text alone"
    assert sheets == [("brightness", ["4 vectors"] * 4)]


@pytest.mark.parametrize(
    ("name", "error"), [("light", PluginError), ("light", MachineError), ("brightness", MachineError)]
)
def test_a_decoder_that_fails_is_told(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    def fails(tokens: object, **options: object) -> None:
        raise error(f"{name}: decode failed")

    monkeypatch.setattr(zoo[name], "decode", fails)
    with pytest.raises(error, match=f"{name}: decode failed"):
        draw_preview(zoo, tmp_path, Preview(inputs=("brightness",), target="light"))
