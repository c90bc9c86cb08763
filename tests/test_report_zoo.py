"""The pages of a zoo: all modalities, and each tokenizer's held-out samples at several settings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import only, trained
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.report.pages import variants, write_zoo_report
from tokenizers_zoo.train.report import write_pictures

Install = Callable[..., Path]


def leave_results(checkpoint: Path, colour: str, mae: float, **config: Any) -> None:
    """Write a training's other files (metrics, pictures, config) into a checkpoint folder."""
    write_pictures(checkpoint, [(Image.new("RGB", (16, 16), colour), Image.new("RGB", (16, 16), "black"))])
    codebook = {"size": config["model"]["levels"], "usage": 0.875, "perplexity": 7.2}
    (checkpoint / "evaluation.json").write_text(
        json.dumps({"samples": 12, "metrics": {"mae": mae}, "codebook": codebook})
    )
    lines = [{"step": step, "train/loss": 1 / step, "held_out/mae": mae + 1 / step} for step in (10, 20, 30)]
    (checkpoint / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.fixture
def zoo(install_example: Install, tmp_path: Path) -> Zoo:
    """`light` with two checkpoints and a second instance, and the untrained `dusk`."""
    install_example("light", {'summary="brightness"': 'summary="how bright <it> is"'})
    install_example("dusk")
    zoo = only({"light_32": {"plugin": "light", "image_size": 32}}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    folder = tmp_path / "tokenizers"
    for name, where, colour, mae, levels in (
        ("light", "light", "red", 0.25, 16), ("light", "light_coarse", "blue", 0.5, 4),
        ("light_32", "light_32", "lime", 0.125, 16), ("light", "other", "white", 0.0, 16),
    ):  # fmt: skip
        trained(zoo, name, folder / where)
        modality = "elsewhere" if where == "other" else name
        leave_results(folder / where, colour, mae, modality=modality, model={"levels": levels, "kind": "even"})
    return zoo


def test_no_page_of_a_modality_is_written_over_that_of_the_zoo(zoo: Zoo, tmp_path: Path) -> None:
    page = write_zoo_report(zoo, tmp_path / "pages" / "dusk.html")
    assert {path.name for path in page.parent.glob("*.html")} == {
        "dusk.html", "dusk-.html", "light.html", "light_32.html"
    }  # fmt: skip
    assert 'href="dusk-.html"' in page.read_text(encoding="utf-8")


def test_the_checkpoints_of_a_modality(zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizers"
    assert variants(zoo, zoo["light"]) == {
        "light": folder / "light", "light_32": folder / "light_32", "light_coarse": folder / "light_coarse",
    }  # fmt: skip
    assert list(variants(zoo, zoo["light_32"])) == ["light_32", "light"]
    assert variants(zoo, zoo["dusk"]) == {}


def test_the_pages_show_every_modality_and_every_setting(zoo: Zoo, tmp_path: Path) -> None:
    page = write_zoo_report(zoo)
    assert page == tmp_path / "report" / "index.html"
    assert {path.name for path in page.parent.glob("*.html")} == {
        "index.html", "light.html", "light_32.html", "dusk.html",
    }  # fmt: skip
    text = page.read_text(encoding="utf-8")
    for part in ("A zoo of 3 modalities", 'href="light_32.html"', "how bright &lt;it&gt; is", "mae 0.25", "88 %",
                 "not trained", "grid 4 x 4", "zoo-light 1.0"):  # fmt: skip
        assert part in text, part
    light = (page.parent / "light.html").read_text(encoding="utf-8")
    for part in ("Held-out samples, at 3 settings", "model.levels 4", "mae", "0.5", "0.125", "Training loss",
                 "of 16, on held-out samples", "of 4, on held-out samples", "judged on 12 held-out samples",
                 zoo["light"].fingerprint, 'href="index.html"'):  # fmt: skip
        assert part in light, part
    assert "model.kind" not in light.split("<pre>")[0] and "elsewhere" not in light
    dusk = (page.parent / "dusk.html").read_text(encoding="utf-8")
    assert "zoo tokenizer train dusk --data DATA" in dusk and "mean absolute error" in dusk and "Held-out" not in dusk
    drawn = {path.name for path in (page.parent / "pictures").iterdir()}
    assert {"tokenizer-light-0.png", "light-light_coarse-0.png", "light-train-loss.png"} <= drawn
    picture = Image.open(io.BytesIO((page.parent / "pictures" / "light-light_coarse-0.png").read_bytes()))
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    assert 'src="pictures' not in text + light  # pictures are embedded in the pages


def test_damage_in_one_modality_is_a_problem_on_the_page(install_example: Install, tmp_path: Path) -> None:
    names = ("light", "odd", "pinned")
    for name in names:
        install_example(name)
    zoo = only({"pinned": {"sha256": "0" * 64}}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    for name in names:
        trained(zoo, name, zoo[name].checkpoint)
    (zoo["odd"].checkpoint / "evaluation.json").write_text("{")
    page = write_zoo_report(zoo)
    assert {path.name for path in page.parent.glob("*.html")} == {"index.html", "light.html"}
    text = page.read_text(encoding="utf-8")
    assert 'href="light.html"' in text and text.count("<p>Problem: ") == 2
    assert "<p>Problem: odd: " in text and "odd/evaluation.json: cannot be read as JSON" in text
    assert "; zoo tokenizer eval writes it anew" in text
    assert "<p>Problem: pinned: the tokenizer at " in text
