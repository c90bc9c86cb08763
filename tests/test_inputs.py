"""Inputs of a trained model that could be taken for something else."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

from tokenizers_zoo.errors import InvalidValueError
from zoo_backbone import AnyToAny


@pytest.fixture(scope="module")
def model() -> AnyToAny:
    return AnyToAny.from_pretrained("showcase", device="cpu")


def test_data_from_a_visitor_is_never_a_path(model: AnyToAny, tmp_path: Path) -> None:
    """Else `zoo serve` would read the files of its machine for everyone."""
    app = pytest.importorskip("zoo_backbone.use.serve.app")
    boxes = [{"label": "chair", "box": [0.1, 0.1, 0.5, 0.5]}]
    (tmp_path / "secret.json").write_text(json.dumps(boxes))
    server = app.Server(model, app.RequestLimits())
    assert server.value("boxes", app.Value(data=boxes)).value == boxes
    for path in (tmp_path / "secret.json", tmp_path / "missing.json"):
        with pytest.raises(InvalidValueError, match=r"^boxes: expected a list of tables"):
            server.value("boxes", app.Value(data=str(path)))


@pytest.mark.parametrize("names", [("rgb", "rgb_patches"), ("rgb_patches", "rgb")])
def test_a_picture_and_its_tokens_are_one_input_too_many(model: AnyToAny, names: tuple[str, str]) -> None:
    picture = PIL.Image.new("RGB", (128, 128), "red")
    inputs = {"rgb": picture, "rgb_patches": model.tokenize(rgb_patches=picture)["rgb_patches"]}
    with pytest.raises(InvalidValueError, match="rgb_patches is an input twice"):
        model.tokenize({name: inputs[name] for name in names})
