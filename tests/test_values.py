"""Validation messages for every kind of value and every token layout."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from tokenizers_zoo.contract.layouts import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
from tokenizers_zoo.contract.plugins import Defaults
from tokenizers_zoo.contract.spec import DTYPES, EXACT, ModalitySpec, ValueSpec
from tokenizers_zoo.contract.validation import (
    array_bytes,
    array_of,
    batch_problem,
    checked_tokens,
    describe,
    in_declared_width,
    is_batched,
    value_problem,
)
from tokenizers_zoo.errors import InvalidValueError, PluginError

HOOKS = Defaults()
FLOAT = ValueSpec(shape=(1, "height", "width"), unit="metres", low=0, high=100)
IDS = ValueSpec(shape=(4, 4), dtype="int64", classes=("a", "b", "c"))
OUTSIDE = "numbers lie outside the range: convert or clip them first"
NOT_FINITE = "every number has to be finite: fill the others first"


def test_free_axes_take_any_size() -> None:
    for shape in ((1, 3, 5), (1, 64, 64)):
        assert value_problem(FLOAT, np.ones(shape, np.float32)) is None
    assert value_problem(FLOAT, np.ones((2, 3, 5), np.float32)) == "the shape is not (1, height, width)"
    assert value_problem(FLOAT, np.ones((1, 0, 5), np.float32)) == "it is empty"
    assert not is_batched(FLOAT) and is_batched(IDS)


def test_class_ids_are_bounded_by_the_classes() -> None:
    assert value_problem(IDS, np.full((4, 4), 2)) is None
    assert value_problem(IDS, np.full((4, 4), 3)) == "numbers lie outside the range: map them to classes first"
    assert value_problem(IDS, np.full((4, 4), 2, np.int32)) == "convert it to int64 first"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_clipped_at_a_bound_are_within_it(dtype: str) -> None:
    spec = ValueSpec(shape=("n",), dtype=dtype, low=0.01, high=100.3)
    cut = np.array([0, 200], dtype).clip(0.01, 100.3)
    assert float(cut[0]) != 0.01 and float(cut[1]) != 100.3
    assert value_problem(spec, cut) is None
    assert batch_problem(spec, torch.from_numpy(np.array([[0, 200]], dtype)).clamp(0.01, 100.3)) is None
    for outside in (np.nextafter(cut[:1], np.array(-1, dtype)), np.nextafter(cut[1:], np.array(200, dtype))):
        assert value_problem(spec, outside) == OUTSIDE
    assert value_problem(ValueSpec(shape=("n",), dtype=dtype, low=0, high=1e39), cut) is None


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_one_nan_is_found_in_arrays_and_batches(hole: float) -> None:
    free = ValueSpec(shape=(2, 2))
    value = np.zeros((2, 2), np.float32)
    value[1, 0] = hole
    assert value_problem(free, value) == NOT_FINITE
    assert batch_problem(free, torch.from_numpy(value)[None]) == NOT_FINITE
    assert batch_problem(free, torch.zeros(3, 2, 2)) is None
    assert batch_problem(free, torch.zeros(2, 2)) == "the shape is not (batch, 2, 2)"


def test_text_and_objects() -> None:
    text, json, table = ValueSpec(kind="text"), ValueSpec(kind="object", items="table"), ValueSpec(kind="object")
    assert value_problem(text, "") is None and value_problem(text, "ü") is None
    assert value_problem(text, b"bytes") == "give a str"
    assert value_problem(text, "\ud800") == "it cannot be written as UTF-8"
    assert value_problem(json, [{"a": [1, 2.5, None, True, "x"]}, {}]) is None
    assert "Out of range float" in str(value_problem(table, {"a": [0.5, float("nan")]}))
    assert "float32 is not JSON" in str(value_problem(table, {"a": np.float32(1)}))
    assert all("JSON changes it" in str(value_problem(table, value)) for value in ({3: 1}, {"a": (1, 2)}))
    assert value_problem(json, [{"a": "\ud800"}]) == "it cannot be written as UTF-8"


@pytest.mark.parametrize(("items", "value"), [("table", [{}]), ("list", [[]]), ("text", ["a"]), ("number", [1, 0.5])])
def test_objects_have_to_be_of_the_declared_type(items: Any, value: list[Any]) -> None:
    listed, table = ValueSpec(kind="object", items=items), ValueSpec(kind="object")
    assert value_problem(listed, value) is None and value_problem(listed, []) is None
    assert value_problem(table, {"a": value}) is None
    assert value_problem(listed, {}) == value_problem(listed, "a") == "give a list"
    assert all(value_problem(table, wrong) == "give a dict" for wrong in ([], [{}], "a", 3, None))
    with pytest.raises(PluginError, match="value: items"):
        ModalitySpec(name="x", summary="x", value=ValueSpec(items=items), layout=VectorLayout(length=1), vocab_size=2)


def nested(levels: int) -> Any:
    value: Any = {}
    for level in range(levels - 1):
        value = {"a": value} if (levels - level) % 2 == 0 else [value]
    return value


@pytest.mark.parametrize("levels", [201, 6000, 100_000])
def test_a_deeply_nested_object_is_refused_in_one_line(levels: int) -> None:
    """Some releases of Python read nesting deeper than their recursion limit."""
    value = nested(levels)
    assert value_problem(ValueSpec(kind="object"), value) == "it is nested too deeply: 200 levels at most"
    assert value_problem(ValueSpec(kind="object"), nested(200)) is None
    description = describe(value)
    assert description.startswith("dict ") and len(description) < 70


@pytest.mark.parametrize(
    ("field", "value", "spec_fields"),
    [
        ("unscored", {"classes": ("a", "b"), "unscored": ("void",)}, {}),
        ("input_form_of", {}, {"input_form_of": "rgb"}),
        ("vocabulary", {}, {"vocabulary": "../x"}),
        ("extensions", {}, {"extensions": (".png",)}),
        ("vocab_size", {}, {"vocab_size": 0}),
        ("num_codebooks", {}, {"num_codebooks": 3}),
        ("metrics", {}, {"metrics": (EXACT, EXACT)}),
        ("dtype", {"dtype": "flaot32"}, {}),
        *[("low", {"low": low, "high": high}, {}) for low, high in ((2, 1), (math.nan, 1))],
    ],
)
def test_an_impossible_spec_names_the_field(field: str, value: dict[str, Any], spec_fields: dict[str, Any]) -> None:
    fields = {"layout": VectorLayout(length=2), "vocab_size": 2, **spec_fields}
    with pytest.raises(PluginError, match=rf"^x: ModalitySpec .*{field}"):
        ModalitySpec(name="x", summary="x", value=ValueSpec(**{"shape": (2,), **value}), **fields)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_any_type_are_bounded_alone_and_in_batches(dtype: str) -> None:
    spec = ValueSpec(shape=(), dtype=dtype, low=None if dtype == "bool" else 1, high=None if dtype == "bool" else 3)
    for number, sound in ((1, True), (3, True), (4, dtype == "bool")):
        values = np.array([1, number], dtype)
        assert (value_problem(spec, values[1]) is None) is sound
        assert (value_problem(spec, values[1:].reshape(())) is None) is sound
        assert (batch_problem(spec, values) is None) is sound
        assert (batch_problem(spec, torch.from_numpy(values)) is None) is sound


def test_layouts_with_other_tokens_are_told_apart() -> None:
    patches, embeddings = PatchesLayout(shape=(2, 2), dim=3), EmbeddingsLayout(max_length=4, dim=2)
    assert patches.same_tokens(dataclasses.replace(patches)) and not patches.same_tokens(embeddings)
    assert not patches.same_tokens(dataclasses.replace(patches, dim=4))
    assert embeddings.same_tokens(dataclasses.replace(embeddings, max_length=9))
    assert not embeddings.same_tokens(dataclasses.replace(embeddings, dim=3))


def modality(layout: TokenLayout, vocab_size: int) -> ModalitySpec:
    return ModalitySpec(name="x", summary="x", value=ValueSpec(), layout=layout, vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("layout", "vocab_size", "error"),
    [
        (GridLayout(shape=(2, 2, 2, 2)), 10, "one to three axes"),
        (VectorLayout(length=4), 0, "vocab_size 0"),
        (PatchesLayout(shape=(2, 2), dim=5), 10, "vocab_size 10"),
        *(
            (SequenceLayout(max_length=3, end=end, sentinel_start=start, num_sentinels=count), 10, "end and sentinels")
            for end, start, count in ((-1, 4, 2), (10, 4, 2), (1, 9, 2), (1, -1, 2), (1, 4, 0), (5, 4, 2))
        ),
    ],
)
def test_a_layout_that_does_not_fit_its_ids_is_refused(layout: TokenLayout, vocab_size: int, error: str) -> None:
    with pytest.raises(PluginError, match=error):
        modality(layout, vocab_size)


def test_sequences_may_use_the_first_and_the_last_id() -> None:
    layout = SequenceLayout(max_length=3, end=9, sentinel_start=0, num_sentinels=9)
    assert modality(layout, 10).layout.special == {"end": 9, "sentinel_start": 0, "num_sentinels": 9}


GRID = modality(GridLayout(shape=(2, 3)), 10)
VECTOR = modality(VectorLayout(length=4), 10)
SEQUENCE = modality(SequenceLayout(max_length=3, end=1, sentinel_start=4, num_sentinels=2), 10)
PATCHES = modality(PatchesLayout(shape=(2, 2), dim=5), 0)
EMBEDDINGS = modality(EmbeddingsLayout(max_length=3, dim=2), 0)


@pytest.mark.parametrize(
    ("spec", "tokens", "kind"),
    [
        (GRID, torch.zeros(7, 2, 3, dtype=torch.int64), torch.Tensor),
        (GRID, [np.zeros((2, 3), np.int64)] * 7, torch.Tensor),
        (VECTOR, torch.full((2, 4), 9), torch.Tensor),
        (PATCHES, torch.zeros(2, 4, 5), torch.Tensor),
        (SEQUENCE, [np.array([0, 2, 9]), torch.tensor([3]), np.zeros(0, np.int64)], list),
        (EMBEDDINGS, [np.zeros((3, 2), np.float32), torch.zeros(0, 2)], list),
        (EMBEDDINGS, torch.zeros(4, 3, 2), list),
    ],
)
def test_tokens_become_a_tensor_or_a_list_of_arrays(spec: ModalitySpec, tokens: Any, kind: type) -> None:
    tokens_checked, error = checked_tokens(spec, tokens)
    assert error is None and isinstance(tokens_checked, kind)
    assert [tuple(item.shape) for item in tokens_checked] == [tuple(item.shape) for item in tokens]
    assert kind is torch.Tensor or all(isinstance(item, np.ndarray) for item in tokens_checked)


def test_tokens_may_be_views_of_arrays() -> None:
    tokens = np.arange(12).reshape(2, 2, 3) % 10
    for array in (tokens[..., ::-1], np.broadcast_to(3, tokens.shape)):
        for listed in (array, list(array)):
            tokens_checked, error = checked_tokens(GRID, listed)
            assert error is None and tokens_checked.is_contiguous() and np.array_equal(tokens_checked.numpy(), array)


@pytest.mark.parametrize(
    ("spec", "tokens", "words"),
    [
        (GRID, torch.zeros(1, 2, 3), "convert it to int64 first"),
        (GRID, torch.zeros(2, 3, dtype=torch.int64), "the shape is not (batch, 2, 3)"),
        (GRID, torch.full((1, 2, 3), 10), "numbers lie outside the range"),
        (GRID, torch.zeros(0, 2, 3, dtype=torch.int64), "it is empty"),
        (GRID, [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)], "stack expects"),
        (GRID, np.zeros((1, 2, 3), np.uint64), "convert it to int64 first"),
        (GRID, np.full((1, 2, 3), "3"), "can't convert np.ndarray of type numpy.str_"),
        (PATCHES, torch.full((1, 4, 5), torch.nan), "every number has to be finite"),
        (SEQUENCE, [], "it is empty"),
        (SEQUENCE, [np.array([0]), np.array([0, 2, 2, 2])], "item 1 is int64 (4,) 0..2: it is longer than 3"),
        (SEQUENCE, [np.array([10])], "numbers lie outside the range"),
        (SEQUENCE, [np.array([0], np.int32)], "convert it to int64 first"),
        (SEQUENCE, [np.array([0, 1])], "it holds the end or a sentinel"),
        (SEQUENCE, [np.array([4])], "it holds the end or a sentinel"),
        (EMBEDDINGS, [np.zeros((4, 2), np.float32)], "it is longer than 3"),
        (EMBEDDINGS, [np.full((3, 2), np.inf, np.float32)], "every number has to be finite"),
    ],
)
def test_bad_tokens_are_refused(spec: ModalitySpec, tokens: Any, words: str) -> None:
    _, error = checked_tokens(spec, tokens)
    assert error is not None and words in error


def test_numbers_from_files_take_the_declared_width_where_they_fit() -> None:
    bytes_of = ValueSpec(shape=(2,), dtype="uint8")
    fitting, too_large, below = (np.array(numbers) for numbers in ([0, 255], [0, 256], [-1, 0]))
    assert in_declared_width(bytes_of, fitting).dtype == np.uint8
    for number in (too_large, below, np.array([0.0, 1.0])):
        assert in_declared_width(bytes_of, number) is number
    metres = in_declared_width(FLOAT, np.array([[[1.5, 1e300]]]))
    assert metres.dtype == np.float32 and metres[0, 0].tolist() == [1.5, np.inf]
    assert in_declared_width(FLOAT, fitting) is fitting


@pytest.mark.parametrize("dtype", ["bool", "int16", ">u4", "float32"])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 1, 3)])
def test_arrays_of_numbers_are_read_as_numpy_does(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for data in (array_bytes(np.ascontiguousarray(array)), array_bytes(np.asfortranarray(array)) + b"more"):
        read, expected = array_of(data), np.load(io.BytesIO(data))
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == expected.dtype and read.flags.writeable
        assert read.flags.f_contiguous == expected.flags.f_contiguous


def test_other_arrays_are_read_as_numpy_does() -> None:
    pairs = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    for array in (np.array(["ab", "c"]), pairs, np.array([1 + 2j])):
        np.testing.assert_array_equal(array_of(array_bytes(array)), array)
    content = array_bytes(np.arange(6.0))
    short = content[:8] + b"\x10\x00" + content[10:]  # the stated header length is too short
    with pytest.raises(ValueError, match="its header cannot be read"):
        array_of(short)
    with pytest.raises(ValueError, match=r"^cut off: it has 47 of 48 bytes$"):
        array_of(content[:-1])
    long = content.replace(b"(6,), }" + 20 * b" ", b"(3000, 3000), }" + 12 * b" ")
    with pytest.raises(ValueError, match=r"^cut off: it has 48 of 72000000 bytes$"):
        array_of(long)
    huge = content.replace(b"(6,), }" + 20 * b" ", b"(9000000, 9000000), }" + 6 * b" ")
    with pytest.raises(InvalidValueError, match=r"9000000 x 9000000 numbers, at most .*array_elements"):
        array_of(huge)


@pytest.mark.parametrize(
    ("value", "spec", "extension"),
    [
        *((np.full(shape, 2.5, np.float32, order="F"), ValueSpec(shape=shape), "npy") for shape in ((), (1,), (1, 2))),
        *((text, ValueSpec(kind="text"), "txt") for text in ("", "ein Bär", "a\nb", "\n", "\ufeff", "\ufeff\ufeffb")),
        ({"a": [1, 2.5, None, "ü"]}, ValueSpec(kind="object"), "json"),
    ],
)
def test_a_value_round_trips_through_its_file(value: Any, spec: ValueSpec, extension: str) -> None:
    """Includes a single number, and texts that begin like a byte order mark."""
    of = ModalitySpec(name="x", summary="x", value=spec, layout=VectorLayout(length=1), vocab_size=2)
    data, written = HOOKS.write_value(value, of)
    read = HOOKS.read_value(data, extension, of)
    assert written == extension and np.array_equal(read, value) and value_problem(spec, read) is None


@pytest.mark.parametrize(
    ("kind", "value", "data", "extension"),
    [
        ("text", "ein Bär", "ein Bär\n".encode(), "txt"),
        ("object", {"a": [1, 2.5, None, "ü"]}, '{"a": [1, 2.5, null, "ü"]}'.encode(), "json"),
    ],
)
def test_files_of_text_and_objects_by_hand(kind: Any, value: Any, data: bytes, extension: str) -> None:
    spec = ModalitySpec(name="x", summary="x", value=ValueSpec(kind=kind), layout=VectorLayout(length=1), vocab_size=2)
    assert HOOKS.write_value(value, spec) == (data, extension)
    windows = data.replace(b"\n", b"\r\n")
    for content in (data, b"\xef\xbb\xbf" + data, windows):
        assert HOOKS.read_value(content, extension, spec) == value
    with pytest.raises(InvalidValueError, match="not UTF-8 at byte 0"):
        HOOKS.read_value(b"\xff", extension, spec)
    assert isinstance(HOOKS.render(value, spec), str)
    if kind == "text":
        with pytest.raises(InvalidValueError, match="carriage return"):
            HOOKS.write_value(f"{value}\r\n", spec)
