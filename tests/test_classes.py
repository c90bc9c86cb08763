"""Class labels: one token of declared classes, which may become more at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.classes import ClassSettings
from tokenizers_zoo.files.checkpoint import CONFIG
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.testing import check_modality

NAME = "scene_class"
NOTHING = TrainingSamples(train=[], test=[])
PAGE = Path(__file__).parent.parent / "docs" / "writing-a-plugin.md"


def handle_of(classes: Sequence[str] | None = None, folder: Path | None = None) -> ModalityHandle:
    table: dict[str, Any] = {} if classes is None else {"classes": list(classes)}
    if folder is not None:
        table["checkpoint"] = str(folder)
    return Zoo.from_tables({"modalities": {NAME: table}})[NAME]


def test_class_token_is_its_index_in_the_list(tmp_path: Path) -> None:
    handle = handle_of(("b", "a", "c"), tmp_path)
    assert handle.train_tokenizer(NOTHING, tmp_path, 0) == tmp_path
    tokens = handle.encode(["a", "c", "b", "a"])
    assert tokens.tolist() == [[1], [2], [0], [1]] and handle.decode(tokens) == ["a", "c", "b", "a"]
    assert (handle.spec.layout.length, handle.spec.vocab_size) == (1, 3)
    assert handle.spec.value.classes == ("b", "a", "c") and handle.render("a") == "a"


def test_a_file_holds_a_name() -> None:
    assert handle_of().read(b" dining room\r\n", "txt") == "dining room"
    assert handle_of().write("dining room") == (b"dining room\n", "txt")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda h: h.read(b"dinning room", "txt"), "'dinning room'; did you mean dining room"),
        (lambda h: h.read(b"x", "txt"), "'x'; known: dining room, empty room, library"),
        (lambda h: h.read(b"library", "json"), ".txt.*json"),
        (lambda h: h.read(b"\xff", "txt"), "UTF-8"),
        (lambda h: h.encode(["library", "a\nb"]), r"'a\\nb'"),
        (lambda h: h.check(3), "str"),
    ],
    ids=["close", "unknown", "kind", "encoding", "second", "type"],
)
def test_invalid_class_is_refused_in_one_line(act: Callable[[ModalityHandle], Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=f"^{NAME}: .*{message}") as caught:
        act(handle_of())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a"], "two or more"), (["a", "b", "a"], "3"), (["a", ""], "''"), (["a", " b"], "' b'"),
        (["a", "b\tc"], "b.tc"), (["a", "b\u200b"], "printable"), ("ab", "expected list of str"),
    ],
)  # fmt: skip
def test_invalid_class_names_are_refused(classes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"classes: .*{message}"):
        Settings(NAME, {"classes": classes}).take(ClassSettings)


def test_the_metrics_by_hand() -> None:
    target = ["library"] * 8 + ["playroom"] * 2
    predicted = ["library"] * 6 + ["playroom"] * 3 + ["empty room"]
    # 6 of 8 and 1 of 2
    assert handle_of().score(predicted, target) == {"accuracy": 0.7, "balanced_accuracy": 0.625}
    assert handle_of().score(target, target) == {"accuracy": 1.0, "balanced_accuracy": 1.0}


def test_the_constant_baseline_is_the_most_frequent_class() -> None:
    assert handle_of().constant_baseline(["playroom", "library", "playroom"]) == "playroom"
    assert handle_of().constant_baseline(["playroom", "library"]) == "library"  # ties: the lower id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "classes: expected list of str, got int 3"),
        ({"classes": ["a", None]}, r"classes\[1\]: expected str"),
        ({"lineage": {}}, "lineage: expected list of"),
        ({"lineage": [{"length": 1}]}, r"lineage\[0\]\.fingerprint: is missing"),
    ],
)  # fmt: skip
def test_an_untrusted_record_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Its checksum is right, whatever its values are."""
    handle_of(("a", "b"), tmp_path).train_tokenizer(NOTHING, tmp_path, 0)
    write_table(tmp_path / CONFIG, {**read_table(tmp_path / CONFIG), **change})
    for act in (lambda h: h.encode(["a"]), lambda h: h.train_tokenizer(NOTHING, tmp_path, 0)):
        with pytest.raises(CheckpointError, match=f"{CONFIG}: damaged: .*{message}"):
            act(handle_of(("a", "b", "c"), tmp_path))


def test_training_adds_classes_and_keeps_the_rest(tmp_path: Path) -> None:
    first = handle_of(("a", "b"), tmp_path)
    first.train_tokenizer(NOTHING, tmp_path, 0)
    first_fingerprint = first.fingerprint
    grown = handle_of(("a", "b", "c"), tmp_path)
    with pytest.raises(CheckpointError, match=f"2 classes, .* 3; `zoo tokenizer train {NAME} "):
        grown.encode(["a"])
    grown.train_tokenizer(NOTHING, tmp_path, 0)
    assert grown.encode(["a", "b", "c"]).tolist() == [[0], [1], [2]] and grown.fingerprint != first_fingerprint
    assert grown.can_read(first_fingerprint, 2) and not grown.can_read("0" * 64)
    largest = handle_of(("a", "b", "c", "d", "e"), tmp_path)
    largest.train_tokenizer(NOTHING, tmp_path, 0)
    fingerprint = largest.fingerprint
    largest.train_tokenizer(NOTHING, tmp_path, 0)
    assert largest.fingerprint == fingerprint
    assert handle_of(("a", "b", "c", "d", "e"), tmp_path).fingerprint == fingerprint


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("b", "a"), "class 0 is 'a'.*'b'"), (("a", "c"), "class 1 is 'b'"), (("a", "b"), "class 2 is 'c'.*2 classes")],
    ids=["order", "replaced", "removed"],
)
def test_any_other_change_of_classes_is_refused(classes: tuple[str, ...], message: str, tmp_path: Path) -> None:
    handle_of(("a", "b", "c"), tmp_path).train_tokenizer(NOTHING, tmp_path, 0)
    handle = handle_of(classes, tmp_path)
    for act in (lambda: handle.train_tokenizer(NOTHING, tmp_path, 0), lambda: handle.tokenizer):
        with pytest.raises(CheckpointError, match=message):
            act()


def test_the_plugin_of_the_docs_keeps_the_contract(install: Callable[..., Path]) -> None:
    """There is no source, so the kit uses the classes as values."""
    section = PAGE.read_text(encoding="utf-8").split("## A class label")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None and len(code[1].splitlines()) < 40
    install("zoo-weather", {"tokenizers_zoo": {"weather": "zoo_weather:plugin"}}, {"zoo_weather": code[1]})
    zoo = Zoo.installed()
    results = check_modality(zoo, "weather")
    assert {r.name for r in results if r.skipped} == {"derive", "crop_geometry", "devices", "long_inputs"}
    assert zoo["weather"].spec.value.classes == ("sun", "cloud", "rain")
