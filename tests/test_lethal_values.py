"""Values that kill or block their process: found, named, dropped and remembered; everything else is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_plugins import SOURCE, WORDS, Install, snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.outcomes import RunResult
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.build.tokenizers import train_tokenizer
from tokenizers_zoo.build.workers import WorkerError
from tokenizers_zoo.errors import PluginError
from tokenizers_zoo.stores.manifest import ValueManifest, read_manifest
from tokenizers_zoo.stores.token_shard import TokenManifest
from tokenizers_zoo.stores.tokens import STORE

HARM = '''
"""Harm at the calls that the folder $HARM lists: a file per call, with the kind of harm and how often it happens."""
import ctypes, os, re, signal, sys, time
from pathlib import Path

def harm(call):
    file = Path(os.environ["HARM"]) / call
    if not file.exists():
        return
    kind, times = file.read_text().split()
    tries = file.with_name(f"{call}.tries")
    with tries.open("a") as counter:
        counter.write("x")
    if len(tries.read_text()) > int(times):
        return
    if kind.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, kind))
    elif kind == "segfault":
        ctypes.string_at(0)
    elif kind == "exits":
        os._exit(3)
    elif kind == "sys.exit":
        sys.exit("enough")
    elif kind == "memory":
        raise MemoryError("not that much")
    elif kind == "sleeps":
        time.sleep(1000)
    elif kind == "slow":
        time.sleep(0.3)
    elif kind == "holds":  # the interpreter's lock
        re.match("(a+)+$", "a" * 60 + "b")
'''
DERIVED = """
    @hookimpl
    def derive(self, sample, settings):
        harm(f"derive {sample['words']} to {settings.name}")
        return sample["words"]

    @hookimpl
    def encode("""
READ = """
    @hookimpl
    def read_value(self, data):
        harm(f"read {data.decode()}".strip())
        return data.decode().strip()

    @hookimpl
    def transform(self, value):
        harm(f"transform {value}")
        return value

    @hookimpl
    def encode("""
Harm = Callable[[str, str], Path]


@pytest.fixture
def zoo(install: Install, tmp_path: Path) -> Zoo:
    """Texts `words` of a source, and `loud` and `calm` derived from `words`; each can be harmful."""
    encode = "\n    @hookimpl\n    def encode("
    start = "from zoo_harm import harm\n"
    words = start + WORDS.replace(
        "        if any(", '        for value in values:\n            harm(f"encode {value}")\n        if any('
    )
    derived = words.replace('summary="words",', 'summary="words", derived_from=("words",),').replace(encode, DERIVED)
    source = start + SOURCE.replace("        rng =", '        harm(f"sample {i}")\n        rng =')
    install("zoo-harm", {}, {"zoo_harm": HARM})
    install("zoo-toy", {"tokenizers_zoo.sources": {"toy": "zoo_toy:source"}}, {"zoo_toy": source})
    for name, code in {"words": words.replace(encode, READ), "loud": derived, "calm": derived}.items():
        install(f"zoo-{name}", {"tokenizers_zoo": {name: f"zoo_{name}:plugin"}}, {f"zoo_{name}": code})
    tables = {
        "zoo": {"modalities": ["words", "loud", "calm"], "checkpoints": "tokenizers"},
        "limits": {"value_seconds": 2.0},
    }
    return Zoo.from_tables(tables, tmp_path / "registry.toml")


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harm:
    """Return a function that prepares harm at a call, and returns the file that counts the tries."""
    (tmp_path / "harm").mkdir()
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))

    def prepare(call: str, kind: str, times: int = 1000) -> Path:
        (tmp_path / "harm" / call).write_text(f"{kind} {times}")
        return tmp_path / "harm" / f"{call}.tries"

    return prepare


def make(zoo: Zoo, data: Path, workers: int = 1) -> dict[str, Any]:
    """Make 2 shards of 6 samples; the source has no words for samples 0 and 7."""
    return counts(make_data(zoo, "toy", data, train=12, test=0, workers=workers, shard_size=6))


def derive(zoo: Zoo, data: Path, workers: int = 1) -> dict[str, Any]:
    return counts(derive_data(zoo, data, workers=workers))


def counts(result: RunResult) -> dict[str, Any]:
    outcomes = result.outcomes
    return {outcome.modality: (outcome.written, outcome.unchanged, outcome.first_dropped) for outcome in outcomes}


@pytest.mark.parametrize(
    ("kind", "reason", "tries"),
    [
        ("SIGKILL", "killed (SIGKILL, perhaps for lack of memory), at both tries", 2),
        ("exits", "ended its process (exit code 3), at both tries", 2),
        ("holds", "took more than 2 s (value_seconds in [limits] of registry.toml), at both tries", 2),
        ("sys.exit", "SystemExit: enough", 1),
        ("segfault", "killed (SIGSEGV), at both tries", 2),
        pytest.param("sleeps", "took more than 2 s", 2, marks=pytest.mark.slow),
    ],
)
def test_a_value_that_kills_its_derivation_is_dropped(
    zoo: Zoo, harm: Harm, tmp_path: Path, kind: str, reason: str, tries: int
) -> None:
    workers = 2 if kind == "SIGKILL" else 1
    data = tmp_path / "data"
    assert make(zoo, data, 0) == {"words": (10, 0, "")}
    counter = harm("derive sample 8 of train to loud", kind)
    outcomes = derive(zoo, data, workers)
    assert outcomes["calm"] == (10, 0, "") and outcomes["loud"][:2] == (9, 0)
    assert reason in outcomes["loud"][2] and "(sample train-0008)" in outcomes["loud"][2]
    assert len(counter.read_text()) == tries
    rerun = derive(zoo, data, workers)
    assert rerun["loud"][:2] == (0, 9) and reason in rerun["loud"][2] and len(counter.read_text()) == tries


def test_values_dropped_for_memory_are_tried_again_next_time(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make(zoo, data, 0)
    harm("derive sample 8 of train to loud", "memory", times=2)
    outcomes = derive(zoo, data)
    assert outcomes["calm"] == (10, 0, "")
    assert outcomes["loud"][:2] == (9, 0) and "ran out of memory" in outcomes["loud"][2]
    assert derive(zoo, data)["loud"] == (5, 5, "")


def test_tokens_dropped_for_memory_are_made_again_next_time(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    data, tokens = tmp_path / "data", tmp_path / "tokens"
    make(zoo, data, 0)
    train_tokenizer(zoo, "words", data)
    harm("encode sample 8 of train", "memory", times=2)
    assert counts(tokenize(zoo, data, tokens, workers=1))["words"][:2] == (9, 0)
    assert counts(tokenize(zoo, data, tokens, workers=1))["words"] == (5, 5, "")


def stored_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(folder).items() if name != STORE}  # it names the folder of the values


@pytest.mark.parametrize("kind", ["SIGKILL", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_single_worker_death_changes_nothing(zoo: Zoo, harm: Harm, tmp_path: Path, kind: str) -> None:
    unharmed, data = tmp_path / "whole", tmp_path / "data"
    make(zoo, unharmed, 0)
    derive(zoo, unharmed, 0)
    train_tokenizer(zoo, "words", unharmed)
    tokenize(zoo, unharmed, tmp_path / "whole tokens")
    calls = ["sample 8", "transform sample 9 of train", "derive sample 8 of train to loud", "encode sample 8 of train"]
    for call in calls if kind == "memory" else [*calls, "read sample 9 of train"]:
        harm(call, kind, times=1)
    make(zoo, data)
    derive(zoo, data)
    tokenize(zoo, data, tmp_path / "tokens", workers=1)
    assert stored_files(data) == stored_files(unharmed) and stored_files(tmp_path / "tokens") == stored_files(
        tmp_path / "whole tokens"
    )


@pytest.mark.parametrize(
    ("call", "dropped"), [("sample 8", "toy: its process"), ("transform sample 8 of train", "words: its process")]
)
def test_a_sample_that_kills_its_source_is_dropped(
    zoo: Zoo, harm: Harm, tmp_path: Path, call: str, dropped: str
) -> None:
    counter = harm(call, "segfault")
    assert make(zoo, tmp_path / "data")["words"][:2] == (9, 0)
    written, unchanged, reason = make(zoo, tmp_path / "data")["words"]
    assert (written, unchanged) == (0, 9) and reason.startswith(dropped) and len(counter.read_text()) == 2


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("encode sample 8 of train", "SIGKILL"),
        pytest.param("encode sample 8 of train", "sleeps", marks=pytest.mark.slow),
        ("read sample 8 of train", "SIGKILL"),
        pytest.param("read sample 8 of train", "sleeps", marks=pytest.mark.slow),
    ],
)
def test_a_value_that_kills_its_encoder_is_dropped(zoo: Zoo, harm: Harm, tmp_path: Path, call: str, kind: str) -> None:
    """Also in a batch with others, whose tokens are written; other modalities are encoded, too."""
    data, out = tmp_path / "data", tmp_path / "tokens"
    make(zoo, data, 0)
    derive(zoo, data, 0)
    train_tokenizer(zoo, "words", data)
    counter = harm(call, kind)
    for is_rerun in (False, True):
        outcomes = {
            outcome.modality: outcome
            for outcome in tokenize(zoo, data, out, modalities=["words", "calm"], workers=1).outcomes
        }
        words = outcomes["words"]
        assert (words.written, words.unchanged, words.dropped) == ((0, 9, 1) if is_rerun else (9, 0, 1))
        assert words.first_dropped.startswith("words: ") and "(sample train-0008)" in words.first_dropped
        assert outcomes["calm"].dropped == (1 if call.startswith("encode") else 0)
        assert len(counter.read_text()) in ((2, 3) if call.startswith("read") else (4, 5, 6))
    manifest = read_manifest(out / "train/words", 1, TokenManifest)
    assert manifest is not None and list(manifest.dropped) == [2]


def test_values_that_are_slow_together_are_tried_alone_once(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    """9 values of .3 s exceed the limit of 2 s for one; the next shard is another job."""
    data, out = tmp_path / "data", tmp_path / "tokens"
    make_data(zoo, "toy", data, train=24, test=0, workers=0, shard_size=24)
    train_tokenizer(zoo, "words", data)
    values = read_manifest(data / "train/words", 0, ValueManifest)
    assert values is not None
    counters = [harm(f"encode sample {row} of train", "slow") for row in range(24) if row not in values.dropped]
    (outcome,) = tokenize(zoo, data, out, batch_size=9, workers=1).outcomes
    tries = sorted(len(counter.read_text()) for counter in counters if counter.exists())
    assert (outcome.dropped, outcome.written) == (len(values.dropped), len(tries)) and len(tries) > 18
    assert tries.count(1) > 9 and max(tries) <= 3


def test_a_raised_time_limit_encodes_dropped_values_again(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "tokens"
    make(zoo, data, 0)
    train_tokenizer(zoo, "words", data)
    counter = harm("encode sample 8 of train", "sleeps", times=2)
    assert tokenize(zoo, data, out, workers=1).outcomes[0].dropped == 1
    counter.unlink()
    (tmp_path / "harm/encode sample 8 of train").unlink()
    patient = Zoo.from_tables({**zoo.tables, "limits": {"value_seconds": 20.0}}, zoo.path)
    assert tokenize(patient, data, out, workers=1).outcomes[0].dropped == 0


def test_a_broken_plugin_ends_its_modality_only(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make(zoo, data, 0)
    for number in range(12):
        harm(f"derive sample {number} of train to calm", "SIGKILL")
    with pytest.raises(WorkerError, match=r"train/calm, shard-00000: .* 1, 2, 3, 4, 5 "):
        derive(zoo, data)
    for shard, count in ((0, 5), (1, 5)):
        manifest = read_manifest(data / "train/loud", shard, ValueManifest)
        assert manifest is not None and manifest.count == count
    assert read_manifest(data / "train/calm", 0, ValueManifest) is None


def test_in_this_process_exits_are_errors_of_the_plugin(zoo: Zoo, harm: Harm, tmp_path: Path) -> None:
    harm("encode sample 8 of train", "sys.exit")
    data = tmp_path / "data"
    make(zoo, data, 0)
    train_tokenizer(zoo, "words", data)
    with pytest.raises(PluginError, match=r"words: encode .* SystemExit: enough"):
        zoo["words"].encode(["sample 8 of train"])
