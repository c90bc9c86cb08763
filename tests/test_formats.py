"""Every file format: files that an earlier version wrote are read with the same results, and newer ones are refused."""

from __future__ import annotations

import copy
import functools
import operator
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_formats import EXPECTED, GOLDEN, PROBE, SHORT, STATES, bundled, checksums, results

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli import run as zoo_command
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.errors import CheckpointError, OneLineError, ZooError
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.records.io import read_lines, read_numbers, read_table, write_table
from tokenizers_zoo.stores.manifest import verify
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, read_tokens
from tokenizers_zoo.testing.probe import STUMBLES
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary
from tokenizers_zoo.tokenizers.vocabulary import learned_on_others
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.measure.compare import read_compared
from zoo_backbone.measure.evaluation import read_evaluation
from zoo_backbone.measure.probes import read_probe
from zoo_backbone.model.run import Run
from zoo_backbone.use import bundle
from zoo_backbone.use.retrieval.index import Index
from zoo_backbone.use.transfer import load


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def alike(actual: Any, expected: Any) -> bool:
    """Return whether two results are equal, apart from rounding of other processors."""
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(alike(actual[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(map(alike, actual, expected))
    return actual == pytest.approx(expected, rel=0.01, abs=0.01) if isinstance(expected, float) else actual == expected


def test_files_of_each_format_give_the_same_results(golden: Path) -> None:
    expected = read_table(golden / EXPECTED)
    actual = results(golden)
    assert actual.keys() == expected.keys()
    for name, result in expected.items():
        assert alike(actual[name], result), name
    for store in (ValueStore(golden / "data"), TokenStore(golden / "tokens")):
        assert not [wrong for name in store.splits() for wrong in verify(store.split(name))]


@pytest.mark.parametrize(("folder", "finished_folder", "command"), [
    ("depth_state", "tokenizers/depth", "tokenizer train depth --data data"),
    ("run_state", "run", "backbone train --tokens tokens --out run --config backbone.toml"),
])  # fmt: skip
def test_killed_trainings_resume(
    golden: Path, folder: str, finished_folder: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the saved step, to the weights of the training that was not killed."""
    assert list((golden / folder).rglob(STATES[folder]))
    expected, finished = checksums(golden / finished_folder), read_run(golden / finished_folder)
    shutil.rmtree(golden / finished_folder)
    (golden / folder).rename(golden / finished_folder)
    call(golden, command, monkeypatch)
    assert alike(checksums(golden / finished_folder), expected) and read_run(golden / finished_folder) == finished


def call(golden: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of zoo, which must succeed."""
    monkeypatch.chdir(golden)
    monkeypatch.setattr("sys.argv", ["zoo", *command.split()])
    try:
        zoo_command()
    except SystemExit as ended:
        assert not ended.code


def test_a_finished_probe_is_kept(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its identity has not changed; with more steps it is lengthened."""
    metrics = (golden / "probe/metrics.json").read_bytes()
    call(golden, f"{PROBE} {SHORT}", monkeypatch)
    assert (golden / "probe/metrics.json").read_bytes() == metrics
    call(golden, f"{PROBE} {SHORT} --set steps=3", monkeypatch)
    assert read_table(golden / "probe/metrics.json")["steps"] == 3


def depth_of(golden: Path) -> Any:
    return Zoo.from_toml(golden / "registry.toml")["depth"]


READERS: dict[str, Callable[[Path], Any]] = {
    "data/dataset.json": lambda golden: ValueStore(golden / "data"),
    "data/test/depth/shard-00000.json": lambda golden: ValueStore(golden / "data").rows(TEST, ["depth"]),
    "tokens/store.json": lambda golden: TokenStore(golden / "tokens"),
    "tokens/test/depth/summary.json": lambda golden: TokenStore(golden / "tokens").open(TEST, "depth"),
    "tokens/test/depth/shard-00000.json": lambda golden: TokenStore(golden / "tokens").open(TEST, "depth").take([0]),
    "one.json": lambda golden: read_tokens(depth_of(golden), golden / "one.json"),
    "tokenizers/depth/config.json": lambda golden: depth_of(golden).tokenizer,
    "tokenizers/depth/run.json": lambda golden: read_run(golden / "tokenizers/depth"),
    "tokenizers/text/config.json": lambda golden: (
        learned_on_others(Zoo.from_toml(golden / "registry.toml")["caption"]),
        TextVocabulary.load(golden / "tokenizers/text"),
    ),
    "run/config.json": lambda golden: (read_compared(golden / "run"), load_model(golden / "run")),
    "run/metrics.jsonl": lambda golden: read_lines(golden / "run/metrics.jsonl"),
    "run/run.json": lambda golden: read_run(golden / "run"),
    "run/evaluation/evaluation.json": lambda golden: read_compared(golden / "run"),
    "bundle/bundle.json": lambda golden: Run.open(golden / "bundle"),
    "bundle/config.json": lambda golden: bundle.verify(
        golden / "bundle", load_model(golden / "bundle"), bundled(golden)
    ),
    "index/run.json": lambda golden: Index(golden / "index"),
    "index/config.json": lambda golden: Index(golden / "index"),
    "index/keys.json": lambda golden: Index(golden / "index"),
    "probe/config.json": lambda golden: load(golden / "probe"),
    "probe/run.json": lambda golden: load(golden / "probe"),
    "probe/metrics.json": lambda golden: read_probe(golden / "probe"),
    "run_state/training_state/step-00000002/checksums-00000.json": lambda golden: read_table(
        golden / "run_state/training_state/step-00000002/checksums-00000.json"
    ),
    "depth_state/training_state.safetensors": lambda golden: read_numbers(
        golden / "depth_state/training_state.safetensors", "remove it"
    ),
}
"""A reader of each kind of file that has a format."""


TRIED = 20
"""Odd values that `make test` tries in each record, in addition to three for each key of its first level."""
LOST = object()
"""Removes the key or item."""


@pytest.mark.parametrize("name", READERS)
def test_newer_formats_are_refused(golden: Path, name: str) -> None:
    READERS[name](golden)
    data = (golden / name).read_bytes()
    old, new = (b'"format": 1', b'"format": 2') if ".json" in name else (b'"format":"1"', b'"format":"2"')
    assert data.count(old) == 1
    (golden / name).write_bytes(data.replace(old, new))
    with pytest.raises(ZooError, match=rf"^{re.escape(str(golden / name))}: .*format 2.* 1; pip install --upgrade"):
        READERS[name](golden)


def key_paths(value: Any, key_path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value of a table; of a list, only to its first two."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*key_path, key)
        yield from key_paths(inner, (*key_path, key))


@pytest.mark.parametrize("tried", [TRIED, pytest.param(10**6, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
def test_odd_records_give_one_line_errors(golden: Path, name: str, tried: int) -> None:
    """An untrusted record has a right checksum, whatever its values are. The error names the wrong one."""
    table, draw = read_table(golden / name), random.Random(name)
    odd_values = (LOST, 3, "x", -1, 10**12, "", "../x", [], {}, None, True, 1.5, [[1]], {"a": 1})
    changes = [(key_path, value) for key_path in key_paths(table) for value in odd_values]
    first = [(key_path, value) for key_path, value in changes if len(key_path) == 1 and value in odd_values[:3]]
    for key_path, value in [*first, *draw.sample(changes, min(len(changes), tried))]:
        changed = copy.deepcopy(table)
        part, key = functools.reduce(operator.getitem, key_path[:-1], changed), key_path[-1]
        if value is LOST:
            del part[key]
        else:
            part[key] = value
        write_table(golden / name, changed)
        try:
            READERS[name](golden)
        except OneLineError as error:
            assert not isinstance(error.__cause__, STUMBLES), (key_path, value, str(error))


@pytest.mark.parametrize(("name", "key", "size"), [
    ("run/config.json", "dim", 2**16),
    ("tokenizers/depth/config.json", "latent_dim", 10**12),
])  # fmt: skip
def test_sizes_in_untrusted_files_take_no_memory(golden: Path, name: str, key: str, size: int) -> None:
    """They are compared with the weights first; these are larger than any memory."""
    table = read_table(golden / name)
    write_table(golden / name, {**table, "model": {**table["model"], key: size}})
    with pytest.raises(CheckpointError, match=rf"expected \(.*{size}"):
        READERS[name](golden)


@pytest.mark.parametrize(("name", "table", "key"), [
    ("run/config.json", "model", "encoder_depth"), ("run/config.json", "model", "decoder_depth"),
    ("tokenizers/depth/config.json", "encoder", "depth"),
])  # fmt: skip
def test_networks_in_untrusted_files_have_bounded_depths(golden: Path, name: str, table: str, key: str) -> None:
    """Building 1,000 blocks before their sizes are compared would take many seconds."""
    config = read_table(golden / name)
    (config["model"] if table == "model" else config["model"][table])[key] = 257
    write_table(golden / name, config)
    with pytest.raises(CheckpointError, match=rf"{key}: expected int in \[[01], 256\], got int 257"):
        READERS[name](golden)


def test_an_evaluation_has_metrics_of_each_target(golden: Path) -> None:
    path = golden / "run/evaluation/evaluation.json"
    evaluation = read_table(path)
    target = evaluation["pairs"][0]["target"]
    evaluation["modalities"][target]["metrics"] = []
    write_table(path, evaluation)
    with pytest.raises(CheckpointError, match=f"evaluation.json: damaged: has no metrics of {target};"):
        read_evaluation(path)


@pytest.mark.parametrize("name", ["run/config.json", "tokenizers/depth/config.json"])
def test_a_lost_tensor_is_named(golden: Path, name: str) -> None:
    folder = (golden / name).parent
    tensors, config = load_checkpoint(folder)
    lost = sorted(tensors)[0]
    save_checkpoint(folder, {key: tensor for key, tensor in tensors.items() if key != lost}, config, "A card.")
    with pytest.raises(CheckpointError, match=f"has no tensor {lost};"):
        READERS[name](golden)


@pytest.mark.parametrize("key", ["vocabulary", "special_tokens", "grown_tokens", "trained_on"])
def test_a_vocabulary_without_a_key_is_refused(golden: Path, key: str) -> None:
    path = golden / "tokenizers/text/config.json"
    write_table(path, {name: value for name, value in read_table(path).items() if name != key})
    with pytest.raises(CheckpointError, match=f"{key}: is missing"):
        TextVocabulary.load(path.parent)


@pytest.mark.parametrize(("kind", "shape"), [
    ("grid", []), ("grid", [-2, -3]), ("grid", [4, 0]), ("grid", [2**13, 2**13]), ("patches", [1, 2**25]),
    ("x", [2, 2]),
])  # fmt: skip
def test_layouts_in_untrusted_files_have_tokens(golden: Path, kind: str, shape: list[int]) -> None:
    table = read_table(golden / "run/config.json")
    table["specs"][0]["layout"] = {"kind": kind, "shape": shape, **({"dim": 3} if kind == "patches" else {})}
    write_table(golden / "run/config.json", table)
    with pytest.raises(CheckpointError, match=r"without tokens|layout\.kind"):
        load_model(golden / "run")


def test_all_json_files_have_a_format() -> None:
    values = {path for folder in ("golden",) for path in (GOLDEN / "bundle" / folder).iterdir()}
    for path in set(GOLDEN.rglob("*.json")) - values:
        read_table(path)
