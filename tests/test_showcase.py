"""The trained model of plugins/showcase, and what README shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.files.checkpoint import CARD
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.testing import check_modality
from zoo_backbone import AnyToAny
from zoo_backbone.use.bundle import SAMPLES
from zoo_showcase import FOLDER

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def showcase() -> AnyToAny:
    model = AnyToAny.from_pretrained("showcase", device="cpu")
    model.verify()
    return model


def test_the_showcase_is_small_and_has_a_card(showcase: AnyToAny) -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert len(showcase.modalities) >= 10
    eval_results = ModelCard.load(FOLDER / CARD).data.eval_results
    assert eval_results and any(result.metric_name.startswith("rgb_patches to depth") for result in eval_results)


def test_generated_depth_is_nearest_to_its_own_picture(showcase: AnyToAny) -> None:
    """Generated depth is nearer to the truth than the depth of other samples."""
    store, names = ValueStore(FOLDER / SAMPLES), ("rgb_patches", "depth")
    keys = store.keys(TEST)[:4]
    pictures, truth = ([store.read_key(showcase.handle(name), TEST, key) for key in keys] for name in names)
    generated = showcase.generate(rgb_patches=pictures, targets=["depth"], temperature=0)
    errors = np.array([[np.abs(np.log(depth.array / true)).mean() for true in truth] for depth in generated.depth])
    assert (errors.argmin(axis=1) == np.arange(4)).all()


def test_python_code_of_the_readme_runs(showcase: AnyToAny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ValueStore(FOLDER / SAMPLES)
    picture = store.read_key(showcase.handle("rgb_patches"), TEST, store.keys(TEST)[0])
    showcase.handle("rgb_patches").render(picture).resize((300, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(block("from zoo_backbone import AnyToAny"), names := {})
    assert (tmp_path / "depth.png").is_file() and len(names["out"].caption) == 2


def test_the_modality_of_the_readme_passes_the_checks(install: Callable[..., Path]) -> None:
    install(
        "zoo-thermal", {"tokenizers_zoo": {"thermal": "zoo_thermal:plugin"}}, {"zoo_thermal": block("import numpy")}
    )
    tables = {"zoo": {"image_size": 16}, "modalities": {"thermal": {"tokenizer": {"steps": 2, "width": 16}}}}
    check_modality(Zoo.from_tables(tables), "thermal")


def block(start: str) -> str:
    """Return the code of README that starts with these words."""
    (code,) = re.findall(rf"```python\n({re.escape(start)}.*?)```", README, re.DOTALL)
    return str(code)
