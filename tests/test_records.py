"""Records, lines and states: their format and checksum are verified before their content is used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenizers_zoo.errors import CheckpointError, ConfigError, ReadError, SettingError
from tokenizers_zoo.files.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from tokenizers_zoo.records.config import Checked, Origin, from_mapping, load_toml
from tokenizers_zoo.records.io import (
    as_json,
    line_text,
    read_lines,
    read_numbers,
    read_record,
    read_table,
    table_text,
    write_state,
    write_table,
)
from tokenizers_zoo.records.typed import (
    OPTIONAL,
    Interval,
    NonNegativeFloat,
    PositiveInt,
    RecordError,
    as_dicts,
    convert,
)
from tokenizers_zoo.train.log import StepLog

TABLE = {"a": [1, 2.5, None], "b": {"c": 'é "checksum": "x"'}}
STATE = {"x/a": torch.arange(6.0).reshape(2, 3), "x/b": torch.tensor([3])}


def record(path: Path) -> Callable[[], Any]:
    write_table(path, TABLE)
    return lambda: read_table(path)


def line_of(path: Path) -> Callable[[], Any]:
    with StepLog(path.parent, "a training", steps=2, done=0, samples_per_step=1) as log:
        log.write(1, {"loss": 0.5})
        log.write(2, {"loss": math.nan})
    (path.parent / "metrics.jsonl").rename(path)
    return lambda: read_lines(path)


def state(path: Path) -> Callable[[], Any]:
    write_state(path, STATE, {"step": 3, "seconds": 0.1})
    return lambda: read_numbers(path, "remove it")


@pytest.mark.parametrize("write", [record, line_of, state])
def test_a_changed_byte_never_gives_other_content(tmp_path: Path, write: Callable[[Path], Callable[[], Any]]) -> None:
    read = write(path := tmp_path / "file")
    sound, data = read(), path.read_bytes()
    flips = [
        data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]
        for offset in range(len(data)) for bit in (1, 4, 128)
    ]  # fmt: skip
    refused_count = 0
    for damaged in (*flips, *(data[:end] for end in range(len(data)))):
        path.write_bytes(damaged)
        try:
            content = read()
        except CheckpointError:
            refused_count += 1
        else:
            assert content == sound  # line ends do not matter
    assert refused_count > 0.95 * len(flips)


def test_a_lost_line_is_missed(tmp_path: Path) -> None:
    read = line_of(path := tmp_path / "a.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    for line_number in range(len(lines)):
        path.write_text("".join(lines[:line_number] + lines[line_number + 1 :]))
        with pytest.raises(CheckpointError, match=r"a.jsonl(:1)?: damaged"):
            read()


@pytest.mark.parametrize("value", [10**400, -1e308, math.nan, "0.5", [1.0]])
def test_numbers_that_cannot_be_drawn_are_a_damaged_line(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"format": 1}, {"step": 1, "loss": value}, {"end": 2}]
    path.write_text("".join(map(line_text, lines)))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: damaged line"):
        read_lines(path)


@pytest.mark.parametrize(
    "value", ["1" + "0" * 30, str(-(2**63) - 1), str(2**64), "1e999", "NaN", "-Infinity", r'"\ud800"', r'{"\udc80": 1}']
)
def test_impossible_values_are_damage(tmp_path: Path, value: str) -> None:
    """A stranger's record has a right checksum."""
    text = '{\n  "format": 1,\n  "a": ' + value + ',\n  "checksum": "'
    (tmp_path / "a.json").write_text(f'{text}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n')
    with pytest.raises(CheckpointError, match=r"a.json: damaged"):
        read_table(tmp_path / "a.json")


def test_records_round_trip(tmp_path: Path) -> None:
    assert record(tmp_path / "a.json")() == TABLE
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["format", "a", "b", "checksum"]
    assert line_of(tmp_path / "b.jsonl")() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert state(tmp_path / "c.safetensors")() == {"step": 3, "seconds": 0.1}
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in load_file(tmp_path / "c.safetensors").items())


@pytest.mark.parametrize("text", [
    table_text({"a": 1}).replace('"a": 1', '"a": ' + 150_000 * "[" + 150_000 * "]"), "[" * 10**6, "{}", "[]", "1", "",
    '{"format": 1, "checksum": ""}', '{"format": 1, "checksum": "' + "é" * 64 + '"}',
])  # fmt: skip
def test_files_that_are_no_records_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a.json: damaged"):
        read_table(tmp_path / "a.json")


def test_deep_nesting_is_refused_though_its_checksum_is_right(tmp_path: Path) -> None:
    nested: Any = []
    for _ in range(120):
        nested = [nested]
    write_table(tmp_path / "a.json", {"a": nested})
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_table(tmp_path / "a.json")


@dataclass(frozen=True, kw_only=True)
class More:
    a: int


@dataclass(frozen=True, kw_only=True)
class Start:
    folder: str


@dataclass(frozen=True, kw_only=True)
class Record:
    names: tuple[str, ...]
    score: Mapping[str, float | None]
    more: More | None = None
    sizes: list[int] = field(default_factory=list)
    named: Mapping[int, str] = field(default_factory=dict)
    start: Start | None


SOUND: dict[str, Any] = {"names": ["x"], "score": {"m": 1, "n": None}, "start": None, "unknown": 3}


@pytest.mark.parametrize(("change", "error"), [
    ({}, None), ({"names": []}, None), ({"more": {"a": 1}}, None), ({"start": {"folder": "x"}}, None),
    ({"names": "x"}, "names: expected list of str, got str 'x'"),
    ({"names": ["x", 3]}, r"names[1]: expected str, got int 3"), ({"more": 3}, "more: expected table, got int 3"),
    ({"sizes": [1, "x"]}, "sizes[1]: expected int, got str 'x'"),
    ({"named": {"x": "y"}}, "named: expected table with whole numbers as keys"),
    ({"score": []}, "score: expected table, got list []"),
    ({"score": {"m": "1"}}, "score.m: expected float, got str '1'"),
    ({"score": {"m": True}}, "score.m: expected float, got bool True"), ({"more": {}}, "more.a: is missing"),
    ({"more": {"a": 1.5}}, "more.a: expected int, got float 1.5"),
    ({"start": {"folder": 1}}, "start.folder: expected str"),
])  # fmt: skip
def test_records_are_checked_against_their_class(tmp_path: Path, change: dict[str, Any], error: str | None) -> None:
    write_table(tmp_path / "a.json", SOUND | change)
    if error is None:
        record = read_record(tmp_path / "a.json", Record)
        assert (
            as_json(record).items()
            >= {key: value for key, value in (SOUND | change).items() if key != "unknown"}.items()
        )
    else:
        with pytest.raises(CheckpointError, match=re.escape(f"a.json: damaged: {error}")):
            read_record(tmp_path / "a.json", Record)


@dataclass(frozen=True, kw_only=True)
class Brief:
    always: int = 1
    rarely: int = field(default=2, metadata=OPTIONAL)


def test_optional_fields_are_left_out_of_files_at_their_default() -> None:
    assert as_dicts(Brief()) == {"always": 1} and as_dicts(Brief(rarely=3)) == {"always": 1, "rarely": 3}


def test_paths_of_records_have_no_nul() -> None:
    assert convert("a/b", Path) == Path("a/b")
    with pytest.raises(RecordError, match=r"outer\.inner: expected path"):
        convert("a\0b", Path, "outer", "inner")


@dataclass(frozen=True, kw_only=True)
class Table:
    ratio: float = 1.0
    sizes: tuple[int, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


def test_settings_take_numbers_of_numpy_and_refuse_sets() -> None:
    settings = from_mapping(Table, {"ratio": np.float32(0.5), "sizes": (np.int64(3), np.array(4))})
    assert settings == Table(ratio=0.5, sizes=(3, 4)) and type(settings.sizes[0]) is int
    with pytest.raises(ConfigError, match=r"^sizes: expected list of int, got a set"):
        from_mapping(Table, {"sizes": {3, 4}})


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges(Checked):
    """Settings with ranges in all places where a type may have one."""

    count: PositiveInt | None = None
    sides: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    amount: PositiveInt | Annotated[float, Interval("(0, 1]")] = 1
    weights: Mapping[str, NonNegativeFloat] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherDefaults(Ranges):
    """Changed defaults keep the ranges, also where a type is narrower."""

    count: int = 3
    sides: int | tuple[int, int] = 2


@pytest.mark.parametrize("cls", [Ranges, OtherDefaults])
@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"count": 0}, "count: expected int >= 1, got int 0"),
        ({"sides": 0}, "sides: expected int >= 1 or list of 2 int >= 1, got int 0"),
        ({"sides": [1, 0]}, "sides[1]: expected int >= 1, got int 0"),
        ({"amount": 0.0}, "amount: expected int >= 1 or float in (0, 1], got float 0.0"),
        ({"amount": 1.5}, "amount: expected int >= 1 or float in (0, 1], got float 1.5"),
        ({"amount": math.nan}, "amount: expected int >= 1 or float in (0, 1], got float nan"),
        ({"weights": {"a": 1.0, "b": -1.0}}, "weights.b: expected float >= 0, got float -1.0"),
        ({"weights": {"a": math.inf}}, "weights.a: expected float >= 0, got float inf"),
    ],
)
def test_numbers_lie_in_the_intervals_of_their_types(cls: type[Ranges], setting: dict[str, Any], error: str) -> None:
    """They are checked in files, and in settings from Python."""
    with pytest.raises(RecordError) as damaged:
        convert(setting, cls)
    assert str(damaged.value) == error
    with pytest.raises(SettingError) as refused:
        cls(**setting)
    assert error.rpartition(":")[2] in str(refused.value)


def test_numbers_at_the_ends_of_intervals_are_accepted() -> None:
    settings = Ranges(count=1, sides=(1, 2), amount=1.0, weights={"a": 0})
    assert settings == convert({"count": 1, "sides": [1, 2], "amount": 1.0, "weights": {"a": 0}}, Ranges)
    assert OtherDefaults(amount=5).count == 3


def test_errors_inside_a_table_or_list_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[train]\nsizes = [1, "x"]\n[train.weights]\nlight = "heavy"\n', encoding="utf-8")
    errors = {"sizes": r":2 \[train\] sizes\[1\]: expected int", "weights": r":4 \[train.weights\] light: expected"}
    for key, error in errors.items():
        table = {key: load_toml(path)["train"][key]}
        with pytest.raises(ConfigError, match=error):
            from_mapping(Table, table, Origin(path=path, table="train"))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, number: float) -> None:
    tensors = {"sound": torch.ones(2), "ids": torch.arange(3), "broken": torch.tensor([1.0, number])}
    save_checkpoint(tmp_path, tensors, {"class": "C"}, "")
    with pytest.raises(CheckpointError, match=r"model.safetensors: broken .*not finite"):
        load_checkpoint(tmp_path)


def test_other_weights_have_no_fingerprint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", {"x": torch.zeros(2)}, {"class": "C"}, "")
    save_checkpoint(tmp_path / "b", {"x": torch.ones(2)}, {"class": "C"}, "")
    (tmp_path / "b/model.safetensors").rename(tmp_path / "a/model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not the file that config.json was written with"):
        fingerprint(tmp_path / "a")


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="pipe: "):
        write_table(tmp_path / "pipe", TABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
