"""The road of data on plugins that exist for the tests only: make, derive, train, tokenize, each killed and resumed."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.provenance import read_entries, read_entry
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import ShardWriter, writing_shard
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.modality import Crop
from tokenizers_zoo.pipeline import derive as derive_module
from tokenizers_zoo.pipeline import make as make_module
from tokenizers_zoo.pipeline import tokenize as tokenize_module
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.engines import read_ahead
from tokenizers_zoo.pipeline.info import describe_data, describe_tokens
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.tokenize import random_crop, tokenize
from tokenizers_zoo.pipeline.tokenizers import evaluate_tokenizer, train_tokenizer, training_samples

SOURCE = '''
"""Samples without an end: `field` 16 x 16 (NaN in every tenth), `words` (every seventh lacks them), `other`."""
from dataclasses import dataclass
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.source import SourceSpec

@dataclass(frozen=True, kw_only=True)
class ToySettings:
    image_size: int = 16
    brightness: float = 1.0

class Samples:
    def __init__(self, split, count, seed, config):
        self.split, self.count, self.seed, self.config = split, count, seed, config

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, len(self.split), i])
        side = self.config.image_size
        field = (rng.random((1, side, side)) * self.config.brightness).astype(np.float32)
        if i % 10 == 9:
            field[0, 0, 0] = np.nan
        values = {"field": field, "other": 1}
        if i % 7:
            values["words"] = f"sample {i} of {self.split}"
        return f"{self.split}-{i:04}", values

class Toy:
    @hookimpl
    def source_spec(self):
        return SourceSpec(
            name="toy", summary="toy", modalities=("field", "words", "other"), licence="none", settings=ToySettings,
            classes={"field": ("a", "b")},
        )

    @hookimpl
    def samples(self, split, count, seed, settings):
        if count is None:
            raise ConfigError("toy: say how many")
        return Samples(split, count, seed, settings.take(ToySettings))

source = Toy()
'''

WORDS = '''
"""Text as bytes over a shared vocabulary `letters`: 0 is the end, 1 and 2 are sentinels, bytes start at 3."""
from pathlib import Path
import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.checkpoint import save_checkpoint
from tokenizers_zoo.modality import ModalitySpec, SequenceLayout, ValueSpec

class Words:
    @hookimpl
    def modality_spec(self, settings):
        layout = SequenceLayout(max_length=40, end=0, sentinel_start=1, num_sentinels=2)
        return ModalitySpec(
            name=settings.name, summary="words", value=ValueSpec(kind="text"), layout=layout, vocab_size=259,
            vocabulary="letters",
        )

    @hookimpl
    def train_tokenizer(self, config, samples, out_dir):
        import torch
        table = {"class": "W", "texts": list(samples.texts()), "special": list(samples.special_tokens)}
        save_checkpoint(out_dir, {"x": torch.zeros(1)}, {**table, "train": list(samples.train)}, "card")
        return Path(out_dir)

    @hookimpl
    def load_tokenizer(self, checkpoint):
        return "bytes"

    @hookimpl
    def encode(self, values):
        if any("of train" not in value and "of test" not in value for value in values):
            raise ValueError("odd words")
        return [np.frombuffer(value.encode(), np.uint8).astype(np.int64) + 3 for value in values]

    @hookimpl
    def decode(self, tokens):
        return [bytes(int(i) - 3 for i in ids if i >= 3).decode("utf-8", "replace") for ids in tokens]

    @hookimpl
    def vocabulary_tokens(self):
        return ("<w>",)

    @hookimpl
    def vocabulary_texts(self, values):
        return list(values)

plugin = Words()
'''

DERIVE = """
    @hookimpl
    def derive(self, sample):
        from tokenizers_zoo.errors import DataError
        value = 1 - sample["field"]
        if value[0, 0, 1] < 0.1:
            raise DataError("too dark")
        return value

    @hookimpl
    def score("""


def derived(*inputs: str) -> dict[str, str]:
    """Changes of the example plugin that make it one that is derived from `inputs`."""
    return {
        'summary="brightness",': f'summary="brightness", derived_from={inputs!r},',
        "\n    @hookimpl\n    def score(": DERIVE.replace('"field"', repr(inputs[0])),
    }


@pytest.fixture
def toy(install: Callable[..., Path], install_example: Callable[..., Path], tmp_path: Path) -> Callable[..., Zoo]:
    """A zoo of `field`, `words` and `dark` (derived from field) with the source `toy`; others are not enabled."""
    install("zoo-toy", {"tokenizers_zoo.sources": {"toy": "zoo_toy:source"}}, {"zoo_toy": SOURCE})
    install("zoo-words", {"tokenizers_zoo": {"words": "zoo_words:plugin"}}, {"zoo_words": WORDS})
    install_example("field")
    install_example("dark", derived("field"))
    mine = ("field", "words", "dark")

    def make(tables: dict[str, Any] | None = None, enabled: tuple[str, ...] = mine) -> Zoo:
        tables = dict(tables or {})
        modalities = {name: {"enabled": False} for name in Zoo.installed().names() if name not in enabled}
        tables["modalities"] = {**modalities, **tables.get("modalities", {})}
        return Zoo.from_tables(tables, tmp_path / "registry.toml")

    return make


def snapshot(root: Path) -> dict[str, bytes]:
    """All files below a folder, by their relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def wait_for(condition: Callable[[], Any], deadline: float) -> None:
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def processes_of(session: int) -> list[int]:
    """The processes of a session, by /proc (pid (command) state ppid group session ...)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                found.append(int(path.parent.name))
    return found


def make_toy(zoo: Zoo, out: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"train": 25, "test": 5, "seed": 3, "workers": 1, "shard_size": 10}
    return make_data(zoo, "toy", out, **{**arguments, **changes})


# ---------------------------------------------------------------------- make


def test_make_writes_what_is_given_and_enabled_aligned_by_key(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "data"
    result = make_toy(zoo, out)
    counts = {(o.split, o.modality): (o.written, o.failed) for o in result.outcomes}
    assert counts == {
        ("train", "field"): (23, 2), ("train", "words"): (21, 0), ("test", "field"): (5, 0), ("test", "words"): (4, 0),
    }  # fmt: skip
    assert list(result.skipped) == ["other"]
    assert "train/field: 23 written, 2 failed (first: field: expected float32" in result.summary()
    store = ValueStore.of(out, zoo)
    assert [path.name for path in store.index("train", "field").shards] == [f"shard-{i:05}.tar" for i in range(3)]
    keys = store.aligned_keys("train", ["field", "words"])
    assert keys == [f"train-{i:04}" for i in range(25) if i % 10 != 9 and i % 7]
    samples = dict(zoo.source("toy").samples("train", 25, 3)[:])
    for key in keys:
        np.testing.assert_array_equal(store.read(zoo["field"], "train", key), samples[key]["field"])
        assert store.read(zoo["words"], "train", key) == samples[key]["words"]
    failed = json.loads((out / "train/field/shard-00000.failed.jsonl").read_text())
    assert failed["key"] == "train-0009" and "every number has to be finite" in failed["reason"]
    entry = read_entries(out)["train"]["field"]
    assert (entry["source"], entry["seed"], entry["count"], entry["distribution"]) == ("toy", 3, 25, "zoo-toy 1.0")


def test_killed_at_any_sample_the_same_command_gives_the_same_bytes(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "whole")
    whole = snapshot(tmp_path / "whole")
    add = ShardWriter.add
    for stop in (0, 5, 17, 30, 41):
        calls = iter(range(1000))

        def killed(self: ShardWriter, *args: Any, calls: Any = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise KeyboardInterrupt
            add(self, *args)

        monkeypatch.setattr(ShardWriter, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            make_toy(zoo, tmp_path / f"killed{stop}")
        monkeypatch.setattr(ShardWriter, "add", add)
        assert not list(tmp_path.rglob("*.tmp"))
        assert set(snapshot(tmp_path / f"killed{stop}")) < set(whole)
        result = make_toy(zoo, tmp_path / f"killed{stop}")
        assert snapshot(tmp_path / f"killed{stop}") == whole
        assert sum(outcome.kept_shards for outcome in result.outcomes) == {0: 0, 5: 0, 17: 2, 30: 2, 41: 4}[stop]


def test_processes_write_the_same_bytes_and_survive_sigkill(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "one", train=300, shard_size=30)
    script = f"""
import sys
sys.path[:0] = {[p for p in sys.path if str(tmp_path) in p]!r}
from pathlib import Path
from tokenizers_zoo import Zoo
from tokenizers_zoo.pipeline.make import make_data
if __name__ == "__main__":
    zoo = Zoo.from_tables({zoo.tables!r}, Path({str(zoo.path)!r}))
    out = Path({str(tmp_path / "two")!r})
    make_data(zoo, "toy", out, train=300, test=5, seed=3, workers=2, shard_size=30)
"""
    program = tmp_path / "program.py"
    program.write_text(script)
    process = subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    wait_for(lambda: list((tmp_path / "two").rglob("*.tar")) or process.poll() is not None, deadline)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes_of(process.pid), deadline)  # workers end with the process that started them
    subprocess.run([sys.executable, program], check=True, stderr=subprocess.DEVNULL)
    mine, theirs = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert {name for name in theirs if "json" not in name} == {name for name in mine if "json" not in name}
    assert {name: theirs[name] for name in mine} == mine


def test_a_modality_that_is_installed_later_is_added_and_more_samples_too(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    make_toy(toy(enabled=("field",)), tmp_path / "grown", train=13)
    first = snapshot(tmp_path / "grown")
    result = make_toy(toy(), tmp_path / "grown", train=13)
    assert {o.modality: o.written for o in result.outcomes if o.split == "train"} == {"field": 0, "words": 11}
    assert {
        name: data for name, data in snapshot(tmp_path / "grown").items() if name in first and "json" not in name
    } == {name: data for name, data in first.items() if "json" not in name}
    make_toy(toy(), tmp_path / "grown", train=25)
    make_toy(toy(), tmp_path / "whole", train=25)
    assert snapshot(tmp_path / "grown") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "tables", "message"),
    [
        ({"seed": 4}, {}, "train/field was made with seed 3, now asked for 4"),
        ({"options": {"brightness": 0.5}}, {}, r'options \{\}, now asked for \{"brightness": 0.5\}'),
        ({"train": 7}, {}, "made with 25 samples, now asked for 7"),
        ({"shard_size": 5}, {}, "shard_size 10, now asked for 5"),
        ({}, {"zoo": {"image_size": 32}}, "image_size null, now asked for 32"),
    ],
)
def test_other_data_are_never_mixed_in(
    toy: Callable[..., Zoo], tmp_path: Path, changes: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    make_toy(toy(), tmp_path / "data")
    before = snapshot(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        make_toy(toy(tables), tmp_path / "data", **changes)
    assert snapshot(tmp_path / "data") == before


def test_shards_of_others_are_not_touched(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    with writing_shard(tmp_path / "data/train/field/000.tar") as writer:
        writer.add("a", b"", "npy")
    with pytest.raises(DataError, match="holds shards that were written by something else than `zoo data make`"):
        make_toy(toy(), tmp_path / "data")


def test_classes_of_the_source_are_checked_before_anything_is_written(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    zoo = toy(enabled=("field",))
    object.__setattr__(zoo["field"].spec.value, "classes", ("a", "c"))
    with pytest.raises(
        ConfigError, match=r"2 classes a, c, and toy gives the 2 classes a, b; set \[modalities.field\]"
    ):
        make_toy(zoo, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_nothing_enabled_and_no_count_are_said(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives field, other, words, none of which is enabled; enabled: none"):
        make_toy(toy(enabled=()), tmp_path / "data")
    with pytest.raises(ConfigError, match="say how many"):
        make_toy(toy(), tmp_path / "data", train=None)


def test_a_full_disk_leaves_nothing_half_written(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    make_toy(zoo, tmp_path / "whole")
    add, calls = ShardWriter.add, iter(range(1000))

    def full(self: ShardWriter, *args: Any) -> None:
        if next(calls) == 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *args)

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(DataError, match="the disk is full; what was finished is kept"):
        make_toy(zoo, tmp_path / "data")
    monkeypatch.undo()
    whole, part = snapshot(tmp_path / "whole"), snapshot(tmp_path / "data")
    assert sum(name.endswith(".tar") for name in part) == 2
    assert all(whole[name] == data for name, data in part.items() if name.endswith(".tar"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_modality_of_which_every_sample_fails_is_an_error_and_tried_again(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    broken = toy({"modalities": {"field": {"image_size": 16}}})
    handle = broken["field"]
    transform = handle.transform
    handle.transform = lambda value, crop: (_ for _ in ()).throw(DataError("no"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="train/field: all 25 samples failed; the first one: no"):
        make_toy(broken, tmp_path / "data")
    handle.transform = transform  # type: ignore[method-assign]
    result = make_toy(broken, tmp_path / "data")
    assert {o.modality: (o.written, o.kept_shards) for o in result.outcomes if o.split == "train"} == {
        "field": (23, 0), "words": (0, 3),
    }  # fmt: skip


def test_own_files_are_made_into_data_at_the_size_of_the_settings(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    for i in range(30):
        for name, data in (("field", np.full((1, 48, 64), i / 30, np.float32)), ("words", f"file {i}")):
            path = tmp_path / "mine" / name / f"f{i:02}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, str):
                path.with_suffix(".txt").write_text(data)
            else:
                np.save(path.with_suffix(".npy"), data)
    (tmp_path / "mine/field/f07.npy").write_bytes(b"broken")
    zoo = toy()
    options = {"path": str(tmp_path / "mine"), "test_fraction": 0.2}
    result = make_data(zoo, "folder", tmp_path / "data", train=None, test=None, options=options, workers=1)
    assert sum(o.written for o in result.outcomes) == 59 and sum(o.failed for o in result.outcomes) == 1
    store = ValueStore.of(tmp_path / "data", zoo)
    key = store.aligned_keys("train", ["field", "words"])[3]
    value = store.read(zoo["field"], "train", key)
    assert value.shape == (1, 16, 16)
    assert value[0, 0, 0] == np.float32(int(key[1:]) / 30)
    assert store.read(zoo["words"], "train", key) == f"file {int(key[1:])}"


# ---------------------------------------------------------------------- derive


def test_derive_computes_what_is_absent_and_lists_what_fails(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "data"
    make_toy(zoo, out)
    result = derive_data(zoo, out, workers=1)
    store = ValueStore.of(out, zoo)
    field, dark = (dict.fromkeys(store.keys("train", name)) for name in ("field", "dark"))
    bright = [key for key in field if store.read(zoo["field"], "train", key)[0, 0, 1] > 0.9]
    assert bright and set(dark) == set(field) - set(bright)
    for key in dark:
        expected = 1 - store.read(zoo["field"], "train", key)
        np.testing.assert_array_equal(store.read(zoo["dark"], "train", key), expected)
    info = describe_data(zoo, out)
    row = {(row.split, row.modality): row for row in info.rows}["train", "dark"]
    assert (row.samples, row.dropped) == (len(dark), len(bright)) and row.made_by == "zoo-dark 1.0, from field"
    assert any("too dark" in line for line in info.reasons)
    assert info.aligned["train"] == len(store.aligned_keys("train", ["field", "dark", "words"]))
    assert [o.written for o in result.outcomes if o.split == "train"] == [len(dark)]
    again = derive_data(zoo, out, workers=1)
    assert [(o.written, o.failed) for o in again.outcomes] == [(0, 0), (0, 0)]


def test_derive_goes_on_after_a_kill_and_follows_what_changes(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = toy()
    for name in ("whole", "data"):
        make_toy(zoo, tmp_path / name)
    derive_data(zoo, tmp_path / "whole", workers=1)
    whole = snapshot(tmp_path / "whole")
    shards, run = iter(range(100)), derive_module.derive_shard

    def killed(*args: Any) -> Any:
        if next(shards) == 2:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(derive_module, "derive_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        derive_data(zoo, tmp_path / "data", workers=1)
    monkeypatch.undo()
    result = derive_data(zoo, tmp_path / "data", workers=1)
    assert sum(outcome.kept_shards for outcome in result.outcomes) == 2
    assert snapshot(tmp_path / "data") == whole

    path = tmp_path / "data/train/dark/shard-00001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert [o.written > 0 for o in derive_data(zoo, tmp_path / "data", workers=1).outcomes] == [False, True]
    assert snapshot(tmp_path / "data") == whole

    make_toy(zoo, tmp_path / "data", train=33)
    derive_data(zoo, tmp_path / "data", workers=1)
    store = ValueStore.of(tmp_path / "data", zoo)
    assert len(store.index("train", "dark").shards) == 4
    other = toy({"modalities": {"dark": {"levels": 8}}})
    rewritten = derive_data(other, tmp_path / "data", workers=1)
    assert all(outcome.written and not outcome.kept_shards for outcome in rewritten.outcomes)


def test_derive_takes_inputs_first_and_says_what_is_missing(
    toy: Callable[..., Zoo], install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("alpha", derived("dark"))  # sorted before what it is derived from
    install_example("zeta", derived("absent"))
    zoo = toy(enabled=("field", "dark", "alpha", "zeta"))
    make_toy(zoo, tmp_path / "data")
    with pytest.raises(DataError, match=r"zeta: derived from absent, which .* lacks; test has field"):
        derive_data(zoo, tmp_path / "data", modalities=["zeta"], workers=1)
    with pytest.raises(DataError, match=r"field: zoo-field 1.0 does not derive it"):
        derive_data(zoo, tmp_path / "data", modalities=["field"], workers=1)
    result = derive_data(zoo, tmp_path / "data", modalities=["alpha"], splits=["train"], workers=1)
    assert [outcome.modality for outcome in result.outcomes] == ["dark", "alpha"]
    result = derive_data(zoo, tmp_path / "data", workers=1)
    assert result.skipped["zeta"].startswith("derived from absent")
    assert {(o.split, o.modality) for o in result.outcomes if o.written} == {("test", "dark"), ("test", "alpha")}


# ---------------------------------------------------------------------- tokenizers


def trained(zoo: Zoo, data: Path, *names: str) -> None:
    for name in names:
        train_tokenizer(zoo, name, data)


def test_training_samples_are_what_can_be_read_with_all_that_shares_the_vocabulary(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo = toy({"modalities": {"more": {"plugin": "words"}}})
    data = tmp_path / "data"
    make_toy(zoo, data)
    with writing_shard(data / "train/field/zz.tar") as writer:
        writer.add("broken", b"no", "npy")
    samples = training_samples(zoo, zoo["field"], ValueStore.of(data, zoo))
    assert (len(samples.train), len(samples.test)) == (23, 5)
    assert samples.train[0].shape == (1, 16, 16) and samples.special_tokens == () and list(samples.texts()) == []
    assert samples.provenance["dropped"] == {"train": 1} and samples.provenance["data"]["seed"] == 3
    folder = train_tokenizer(zoo, "words", data)
    assert folder == tmp_path / "runs/tokenizers/letters"
    config = json.loads((folder / "config.json").read_text())
    words = [f"sample {i} of train" for i in range(25) if i % 7]
    assert config["train"] == words and config["special"] == ["<w>"]
    assert config["texts"] == words * 2  # the instance `more` has the same values, and comes first
    with pytest.raises(DataError, match=r"unknown modality .*'dark'; known: field, more, words .`zoo data derive"):
        train_tokenizer(zoo, "dark", data)


def test_overwrite_starts_anew_and_out_is_another_place(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    folder = train_tokenizer(zoo, "field", data, out=tmp_path / "elsewhere", overrides={})
    assert folder == tmp_path / "elsewhere" and not zoo["field"].has_tokenizer
    (folder / "old.txt").write_text("")
    train_tokenizer(zoo, "field", data, out=folder, overwrite=True)
    assert not (folder / "old.txt").exists() and (folder / "config.json").exists()


def test_evaluation_reads_encodes_decodes_and_writes_figures(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data, test=40)
    trained(zoo, data, "field", "words")
    result = evaluate_tokenizer(zoo, "field", data)
    store, handle = ValueStore.of(data, zoo), zoo["field"]
    values = [store.read(handle, "test", key) for key in store.keys("test", "field")]
    tokens = handle.encode(values).numpy()
    assert result.metrics == handle.score(handle.decode(tokens), values)
    assert result.samples == 36 and result.tokens_per_sample == 16
    counts = np.bincount(tokens.ravel(), minlength=16)
    shares = counts[counts > 0] / counts.sum()
    assert result.usage == pytest.approx((counts > 0).mean())
    assert result.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    written = json.loads((handle.checkpoint / "evaluation.json").read_text())
    assert written["metrics"] == result.metrics and written["samples"] == 36
    assert result.pictures is not None and len(list(result.pictures.iterdir())) == 8
    with pytest.raises(DataError, match=r"no <split>/<modality>/\*\.tar here"):
        evaluate_tokenizer(zoo, "field", tmp_path)
    few = evaluate_tokenizer(zoo, "words", data, limit=3, write=False)
    assert few.samples == 3 and few.metrics == {"exact": 1.0} and few.pictures is None
    assert few.tokens_per_sample == len("sample 1 of test")


# ---------------------------------------------------------------------- tokenize


def test_tokens_are_those_of_the_tokenizer_by_key(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    trained(zoo, data, "field", "words")
    result = tokenize(zoo, data, out, batch_size=7)
    assert "no tokenizer at" in result.skipped["dark"] and 0 < result.encode_fraction <= 1
    assert "train/field: 23 encoded" in result.summary() and "of the time was spent" in result.summary()
    store, values = TokenStore(out), ValueStore.of(data, zoo)
    for name in ("field", "words"):
        column = store.open("train", name)
        column.check_codec(zoo[name])
        assert column.keys == values.keys("train", name)
        expected = zoo[name].encode([values.read(zoo[name], "train", key) for key in column.keys])
        for got, want in zip(column.take(range(len(column))), expected, strict=True):
            np.testing.assert_array_equal(got, np.asarray(want))
    assert [(row.split, row.modality, row.samples) for row in describe_tokens(out)] == [
        ("test", "field", 5), ("test", "words", 4), ("train", "field", 23), ("train", "words", 21),
    ]  # fmt: skip
    again = tokenize(zoo, data, out, batch_size=5)
    assert all(outcome.written == 0 and outcome.kept for outcome in again.outcomes)
    with pytest.raises(CheckpointError, match="dark: no tokenizer"):
        tokenize(zoo, data, out, modalities=["dark"])


def test_tokenize_goes_on_after_a_kill_with_the_same_bytes(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = toy(enabled=("field",)), tmp_path / "data"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    monkeypatch.setattr(tokenize_module, "PART_SAMPLES", 6)
    tokenize(zoo, data, tmp_path / "whole", batch_size=4)
    whole = snapshot(tmp_path / "whole")
    assert sum(name.endswith(".arrow") for name in whole) == 5
    handle = zoo["field"]
    encode, calls = handle.encode, iter(range(100))

    def killed(values: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return encode(values)

    handle.encode = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tokenize(zoo, data, tmp_path / "tokens", batch_size=4)
    handle.encode = encode  # type: ignore[method-assign]
    assert 0 < len(list((tmp_path / "tokens").rglob("*.arrow"))) < 5
    tokenize(zoo, data, tmp_path / "tokens", batch_size=4)
    assert snapshot(tmp_path / "tokens") == whole

    make_toy(zoo, data, train=31)  # the last part is encoded again with what belongs in it
    result = tokenize(zoo, data, tmp_path / "tokens", batch_size=4)
    assert {o.split: (o.written, o.kept) for o in result.outcomes} == {"test": (0, 5), "train": (10, 18)}


def test_another_codec_or_other_data_are_refused(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "tokens"
    zoo = toy(enabled=("field",))
    make_toy(zoo, data)
    trained(zoo, data, "field")
    tokenize(zoo, data, out)
    old = zoo["field"].fingerprint
    other = toy({"modalities": {"field": {"levels": 8}}}, enabled=("field",))
    train_tokenizer(other, "field", data, overwrite=True)
    with pytest.raises(DataError, match=f"holds other tokens .*fingerprint {old}.*--overwrite"):
        tokenize(other, data, out)
    with pytest.raises(DataError, match="written by codec"):
        TokenStore(out).open("train", "field").check_codec(other["field"])
    tokenize(other, data, out, overwrite=True)
    TokenStore(out).open("train", "field").check_codec(other["field"])
    make_toy(other, tmp_path / "other", seed=9)
    with pytest.raises(DataError, match=r"holds other tokens .run "):
        tokenize(other, tmp_path / "other", out)
    with pytest.raises(ConfigError, match="at least 1"):
        tokenize(other, data, out, batch_size=0)


def test_values_that_cannot_be_read_or_encoded_are_dropped_with_reasons(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data, test=0)
    trained(zoo, data, "words")
    with writing_shard(data / "train/words/zz.tar") as writer:
        writer.add("odd", b"nothing", "txt")
        writer.add("broken", b"\xff", "txt")
    result = tokenize(zoo, data, out)
    (outcome,) = result.outcomes
    assert (outcome.written, set(outcome.dropped)) == (21, {"odd", "broken"})
    assert "odd words" in outcome.dropped["odd"] and "damaged .txt" in outcome.dropped["broken"]
    column = TokenStore(out).open("train", "words")
    assert len(column) == 21 and set(column.dropped) == {"odd", "broken"}
    assert set(tokenize(zoo, data, out).outcomes[0].dropped) == {"odd", "broken"}
    handle = zoo["words"]
    handle.encode = lambda values: (_ for _ in ()).throw(DataError("never"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="words: none of 23 samples could be encoded"):
        tokenize(zoo, data, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.arrow"))


def test_crops_are_shared_by_all_modalities_and_only_for_training(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    trained(zoo, data, "field", "dark")
    tokenize(zoo, data, out, modalities=["field", "dark"], crops=3, seed=5, flips=True)
    store, values = TokenStore(out), ValueStore.of(data, zoo)
    field, dark = (store.open("train", name) for name in ("field", "dark"))
    assert field.keys == [f"{key}#{c}" for key in values.keys("train", "field") for c in range(3)]
    assert store.open("test", "field").keys == values.keys("test", "field")
    for key in dark.keys[:12]:
        base, number = key.split("#")
        crop = random_crop(5, base, int(number), flips=True)
        for column in (field, dark):
            handle = zoo[column.metadata.modality]
            expected = handle.encode([values.read(handle, "train", base, crop)])[0].numpy()
            np.testing.assert_array_equal(column.take([column.rows[key]])[0], expected)
    with pytest.raises(DataError, match="holds other tokens"):
        tokenize(zoo, data, out, modalities=["field"], crops=2, seed=5)


def test_random_crops_stay_inside_and_depend_on_seed_key_and_number() -> None:
    assert random_crop(0, "a", 0, flips=True) == Crop()
    crops = [random_crop(0, f"k{i}", 1, flips=True) for i in range(400)]
    assert len(set(crops)) == 400 and 150 < sum(crop.flip for crop in crops) < 250
    assert 0.5 <= min(crop.height for crop in crops) < 0.52 and 0.98 < max(crop.width for crop in crops) <= 1
    assert random_crop(0, "a", 1) == random_crop(0, "a", 1) != random_crop(1, "a", 1) != random_crop(0, "a", 2)


def test_batches_are_read_ahead_in_order() -> None:
    read: list[int] = []

    def slow(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        read.append(item)
        return item * 10

    ahead = read_ahead(slow, [[0, 1, 2], [3], [], [4, 5], [6]], threads=3, depth=2)
    assert next(ahead) == ([0, 1, 2], [0, 10, 20])
    assert list(ahead) == [([3], [30]), ([], []), ([4, 5], [40, 50]), ([6], [60])]
    assert sorted(read) == list(range(7))


def test_make_does_not_need_torch(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo = toy()
    program = f"""
import sys
sys.path[:0] = {[p for p in sys.path if str(tmp_path) in p]!r}
from pathlib import Path
from tokenizers_zoo import Zoo
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.info import describe_data
zoo = Zoo.from_tables({zoo.tables!r}, Path({str(zoo.path)!r}))
make_data(zoo, "toy", Path({str(tmp_path / "d")!r}), train=3, test=0, workers=1)
derive_data(zoo, Path({str(tmp_path / "d")!r}), workers=1)
describe_data(zoo, Path({str(tmp_path / "d")!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)
    assert read_entry(tmp_path / "d", "train", "dark") is not None
    assert make_module.SHARD_SIZE == 500
