"""`FourMFeatures`: scikit-learn's own checks, and pipelines as a user writes them."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from command_world import the_world
from small_modalities import VECTORS, changed, installed

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError, UnknownNameError
from zoo_backbone import AnyToAny, FourM
from zoo_backbone.learn.checkpoint import save_model
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.run import Run

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from zoo_backbone import FourMFeatures

TRANSFORM = """
    @hookimpl
    def transform(self, value):
        return value[:1, np.arange(8) * value.shape[1] // 8]
    @hookimpl
    def train_tokenizer("""
FIELD = changed(VECTORS, {
    "VectorLayout(length=4) if vector else PatchesLayout(shape=(1, 1), dim=4,": "PatchesLayout(shape=(1, 4), dim=2,",
    "shape=(4,), low=0, high=1": "shape=(1, 8)",
    "\n    @hookimpl\n    def train_tokenizer(": TRANSFORM,
    "else values[:, None]": "else values.clamp(-1e4, 1e4).unflatten(2, (4, 2))[:, 0]",
    "else tokens[:, 0]": "else tokens.flatten(1)[:, None]",
})  # fmt: skip
"""A line of numbers without bounds, as 4 patches of 2; lines of other lengths are resampled."""


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an untrained model that reads lines of numbers of any length."""
    root = tmp_path_factory.mktemp("fields")
    with installed(tmp_path_factory.mktemp("site"), "field", {"field": FIELD}):
        (root / "registry.toml").write_text('[zoo]\ncheckpoints = "tokenizers"\nmodalities = ["field", "depth"]\n')
        zoo = Zoo.from_toml(root / "registry.toml")
        zoo["field"].train_tokenizer(TrainingSamples(train=[], test=[]), zoo["field"].checkpoint, 0)
        model = FourM.seeded(ModelConfig(dim=16, heads=2, encoder_depth=1, decoder_depth=1),
                             [zoo["field"].spec, zoo["depth"].spec], 0)  # fmt: skip
        save_model(model, root / "run", {"fingerprints": {"field": zoo["field"].fingerprint}})
        Run(tokens=root / "tokens", registry=root / "registry.toml").save(root / "run")
        yield root / "run"


def test_the_checks_of_scikit_learn(fields: Path) -> None:
    """All of them: the modality takes rows of any length as values of any length. The check of other array libraries is
    skipped unless SCIPY_ARRAY_API is set."""
    estimator = FourMFeatures(str(fields), modality="field", shape=(1, -1), device="cpu")
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert sum(result["status"] == "passed" for result in results) > 40


@pytest.fixture(scope="module")
def run() -> Path:
    return the_world().put_back().folder / "run"


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray[Any, Any]]:
    """24 pictures, each the darker or the brighter half of all grey levels."""
    rng = np.random.default_rng(0)
    return [rng.integers(128 * (number % 2), 128 * (number % 2) + 128, (16, 16, 3)).astype(np.uint8)
            for number in range(24)]  # fmt: skip


def test_pictures_are_accepted_in_any_form(run: Path, pictures: list[Any], tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        PIL.Image.fromarray(picture).save(path)
    expected = AnyToAny.from_pretrained(run, device="cpu").embed(rgb=pictures)
    stack = np.stack(pictures)
    forms: list[Any] = [
        pictures, stack, paths, list(map(str, paths)), np.array(list(map(str, paths))), np.array(paths, object),
        list(map(PIL.Image.fromarray, pictures)), [{"rgb": path} for path in paths], stack.transpose(0, 3, 1, 2) / 255,
    ]  # fmt: skip
    for form in forms:
        features = FourMFeatures(run, device="cpu", batch_size=7).fit_transform(form)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, atol=1e-5)
    with_modality = FourMFeatures(run, modality="rgb", device="cpu").fit_transform(pictures)
    np.testing.assert_allclose(with_modality, expected, atol=1e-5)
    flat = FourMFeatures(run, shape=(16, 16, 3), device="cpu").fit(stack.reshape(24, -1))
    assert flat.n_features_in_ == 768 and flat.modality_ == "rgb_patches"
    np.testing.assert_allclose(flat.transform(stack.reshape(24, -1)), expected, atol=1e-5)
    assert list(flat.get_feature_names_out()) == [f"fourmfeatures{number}" for number in range(32)]


def test_pictures_are_cropped_as_asked(run: Path) -> None:
    wide = [np.random.default_rng(0).integers(0, 256, (16, 40, 3)).astype(np.uint8)]
    model = AnyToAny.from_pretrained(run, device="cpu")
    for crop in ("middle", "whole"):
        features = FourMFeatures(run, crop=crop, device="cpu").fit_transform(wide)
        np.testing.assert_allclose(features, model.embed(rgb=wide, crop=crop), atol=1e-5)


def test_a_pipeline_with_a_classifier(run: Path, pictures: list[Any]) -> None:
    labels = [number % 2 for number in range(24)]
    pipeline = make_pipeline(FourMFeatures(run, device="cpu"), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, np.stack(pictures), labels, cv=3).min() == 1
    fitted = pipeline.fit(pictures, labels)
    unpickled = pickle.loads(pickle.dumps(fitted))
    assert unpickled.predict(pictures).tolist() == labels
    assert len(pickle.dumps(fitted[0])) < 2000
    cloned = clone(fitted).set_params(fourmfeatures__crop="whole")
    assert cloned[0].get_params()["crop"] == "whole"
    with pytest.raises(NotFittedError):
        cloned[0].transform(pictures)


def test_nearest_neighbours_of_the_documentation(
    run: Path, pictures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code block of docs/transfer.md classifies a new picture."""
    page = (Path(__file__).parent.parent / "docs" / "transfer.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "KNeighbors" in block)
    monkeypatch.chdir(tmp_path)
    for number, picture in enumerate(pictures):
        PIL.Image.fromarray(picture).save(f"{number}.png")
    PIL.Image.fromarray(pictures[1]).save("new.png")
    rows = [f"{number}.png,{'bright' if number % 2 else 'dark'}" for number in range(len(pictures))]
    Path("labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    exec(code.replace("runs/demo/backbone", str(run)), {})
    assert capsys.readouterr().out == "['bright']\n"


def test_samples_of_several_modalities_are_embedded(run: Path, pictures: list[Any]) -> None:
    samples = [{"rgb": picture, "caption": "a room"} for picture in pictures[:3]]
    embedded = FourMFeatures(run, device="cpu").fit_transform(samples)
    expected = AnyToAny.from_pretrained(run, device="cpu").embed(rgb=pictures[:3], caption=["a room"] * 3)
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    for size in (1, 2, 3):
        features = FourMFeatures(run, device="cpu", batch_size=size).fit(samples)
        for different in ({"rgb": pictures[2]}, pictures[2], {**samples[2], "depth": pictures[2]}):
            with pytest.raises(InvalidValueError, match="sample 2"):
                features.transform([*samples[:2], different])
    texts = FourMFeatures(run, modality="caption", device="cpu").fit_transform(["a room", "a ball"])
    assert texts.shape == (2, 32)
    assert FourMFeatures(run, device="cpu").fit(pictures).transform([]).shape == (0, 32)


def test_wrong_samples_and_models_are_refused(run: Path, pictures: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="colour"):
        FourMFeatures(run, modality="colour").fit(pictures)
    with pytest.raises(ConfigError, match="rows have 5 numbers"):
        FourMFeatures(run).fit(np.zeros((2, 5)))
    with pytest.raises(InvalidValueError, match=r"nowhere\.png"):
        FourMFeatures(run).fit(["nowhere.png"]).transform(["nowhere.png"])
    with pytest.raises(CheckpointError):
        FourMFeatures(tmp_path / "none").fit(pictures)


def test_a_replaced_model_is_refused(fields: Path) -> None:
    fitted = FourMFeatures(fields, modality="field", device="cpu").fit(np.zeros((2, 8)))
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.transform(np.ones((2, 8))), fitted.transform(np.ones((2, 8))))
    changed = pickle.loads(pickle.dumps(fitted))
    changed.fingerprint_ = "0" * 64
    with pytest.raises(CheckpointError, match="fit again"):
        changed.transform(np.zeros((2, 8)))


def test_a_missing_scikit_learn_is_named() -> None:
    script = "import sys; sys.modules['sklearn'] = None\nimport zoo_backbone\nzoo_backbone.FourMFeatures"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1].endswith("pip install 'zoo-backbone[sklearn]'")
