"""The page of a zoo: all modalities, with their tokenizers' metrics and held-out samples."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from examples import only, trained
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.report.pages import write_zoo_report
from tokenizers_zoo.train.report import write_pictures

Install = Callable[..., Path]


def leave_results(checkpoint: Path, colour: str, mae: float) -> None:
    """Write a training's metrics and pictures into a checkpoint folder."""
    write_pictures(checkpoint, [(Image.new("RGB", (16, 16), colour), Image.new("RGB", (16, 16), "black"))])
    codebook = {"size": 16, "usage": 0.875, "perplexity": 7.2}
    (checkpoint / "evaluation.json").write_text(
        json.dumps({"samples": 12, "metrics": {"mae": mae}, "codebook": codebook})
    )


@pytest.fixture
def zoo(install_example: Install, tmp_path: Path) -> Zoo:
    """`light`, a second instance of it, and the untrained `dusk`."""
    install_example("light", {'summary="brightness"': 'summary="how bright <it> is"'})
    install_example("dusk")
    zoo = only({"light_32": {"plugin": "light", "image_size": 32}}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    folder = tmp_path / "tokenizers"
    for name, colour, mae in (("light", "red", 0.25), ("light_32", "lime", 0.125)):
        trained(zoo, name, folder / name)
        leave_results(folder / name, colour, mae)
    return zoo


def test_the_page_shows_every_modality(zoo: Zoo, tmp_path: Path) -> None:
    page = write_zoo_report(zoo)
    assert page == tmp_path / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    for part in ("A zoo of 3 modalities", "how bright &lt;it&gt; is", "mae 0.25", "mae 0.125", ">88 ", "not trained",
                 "of 16, on held-out samples", "grid 4x4", "zoo-light 1.0", zoo["light"].fingerprint[:16],
                 "zoo tokenizer train dusk --data DATA", "mean absolute error"):  # fmt: skip
        assert part in text, part
    drawn = {path.name for path in (page.parent / "pictures").iterdir()}
    assert drawn == {"tokenizer-light-0.png", "tokenizer-light_32-0.png"}
    picture = Image.open(io.BytesIO((page.parent / "pictures" / "tokenizer-light_32-0.png").read_bytes()))
    assert picture.getpixel((0, 0)) == (0, 255, 0)
    assert 'src="pictures' not in text  # pictures are embedded in the page


def test_damage_in_one_modality_is_a_problem_on_the_page(install_example: Install, tmp_path: Path) -> None:
    names = ("light", "odd", "pinned")
    for name in names:
        install_example(name)
    zoo = only({"pinned": {"sha256": "0" * 64}}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    for name in names:
        trained(zoo, name, zoo[name].checkpoint)
    (zoo["odd"].checkpoint / "evaluation.json").write_text("{")
    page = write_zoo_report(zoo)
    text = page.read_text(encoding="utf-8")
    assert "<h3>light " in text and text.count("<p>Problem: ") == 2
    assert "<p>Problem: odd: " in text and "odd/evaluation.json: cannot be read as JSON" in text
    assert "; zoo tokenizer eval writes it anew" in text
    assert "<p>Problem: pinned: the tokenizer at " in text
