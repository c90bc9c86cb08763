"""Training samples, evaluation and token stores of toy tokenizers: killed, resumed, refused, cropped."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import only
from toy_plugins import install_toy, make_toy, scaled, snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.ahead import read_ahead
from tokenizers_zoo.data.shards import ModalityIndex, ValueStore
from tokenizers_zoo.data.store_record import RECORD, StoreRecord
from tokenizers_zoo.data.tar import Member, scan_shard, writing_shard
from tokenizers_zoo.data.token_part import TokenMetadata, read_part, write_part
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InvalidValueError,
    MachineError,
    ReadError,
)
from tokenizers_zoo.io import difference
from tokenizers_zoo.pipeline import tokenize as tokenize_module
from tokenizers_zoo.pipeline import views as views_module
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.evaluate import evaluate_tokenizer
from tokenizers_zoo.pipeline.info import describe_tokens, unfinished_tokens
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.pipeline.tokenize import tokenize
from tokenizers_zoo.pipeline.tokenizers import train_tokenizer, training_samples
from tokenizers_zoo.pipeline.views import Row, Views, random_crop
from tokenizers_zoo.report.pictures import Pictures
from tokenizers_zoo.report.samples import left_behind
from tokenizers_zoo.spec import Crop


@pytest.fixture
def toy(install: Callable[..., Path], install_example: Callable[..., Path], tmp_path: Path) -> Callable[..., Zoo]:
    """Makes zoos of the toy modalities."""
    return install_toy(install, install_example, tmp_path)


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


def test_what_a_mac_lays_beside_files_is_no_shard_and_no_part(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    tokenize(zoo, data, out, modalities=["field"])
    before = TokenStore(out).open("train", "field").keys
    for path in (*data.rglob("*.tar"), *out.rglob("*.arrow")):
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    assert TokenStore(out).open("train", "field").keys == before
    assert list(ValueStore.of(data, zoo).index("train", "field").members) == before
    tokenize(zoo, data, tmp_path / "again", modalities=["field"])
    tokenize(zoo, data, out, modalities=["field"])
    make_toy(zoo, data)
    assert TokenStore(tmp_path / "again").open("train", "field").keys == before


def test_provenance_says_what_the_values_are_and_how_they_are_read(
    install_example: Callable[..., Path], tmp_path: Path
) -> None:
    install_example("field", scaled())
    data = tmp_path / "data"

    def provenance(number: bytes, root: Path = data, **own: Any) -> dict[str, Any]:
        for split in ("train", "test"):
            with writing_shard(root / split / "field/0.tar") as writer:
                writer.add("a", number if split == "test" else b"0.5", "num")
        zoo = only({"field": own})
        return dict(training_samples(zoo, zoo["field"], ValueStore.of(root, zoo)).provenance)

    first = provenance(b"0.5")
    assert provenance(b"0.5", tmp_path / "copy/data") == first and first["settings"] == {}
    assert difference(first, provenance(b"0.7")).startswith("contents.test was ")
    assert difference(first, provenance(b"0.5", scale=0.5)) == "settings.scale was null, is 0.5"


def test_overwrite_starts_anew_and_out_is_another_place(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    folder = train_tokenizer(zoo, "field", data, out=tmp_path / "elsewhere", overrides={})
    assert folder == tmp_path / "elsewhere" and not zoo["field"].has_tokenizer
    (folder / "samples").mkdir()
    train_tokenizer(zoo, "field", data, out=folder, overwrite=True)
    assert not (folder / "samples").exists() and (folder / "config.json").exists()


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
    meanings = {name: meaning for name, _, _, meaning in result.codebook_rows()}
    assert meanings["usage"] == "share of the codes that occurred" and result.several == {}
    written = json.loads((handle.checkpoint / "evaluation.json").read_text())
    assert written["metrics"] == result.metrics and written["samples"] == 36
    assert result.pictures is not None and len(list(result.pictures.iterdir())) == 8
    with pytest.raises(DataError, match=r"no <split>/<modality>/\*\.tar here"):
        evaluate_tokenizer(zoo, "field", tmp_path)
    handle.score = lambda predicted, target: {"psnr": float("nan"), "mse": 1.0}  # type: ignore[method-assign]
    assert np.isnan(evaluate_tokenizer(zoo, "field", data).metrics["psnr"])
    assert json.loads((handle.checkpoint / "evaluation.json").read_text())["metrics"] == {"psnr": None, "mse": 1.0}
    few = evaluate_tokenizer(zoo, "words", data, limit=3, write=False)
    assert few.samples == 3 and few.metrics == {"exact": 1.0} and few.pictures is None
    assert few.tokens_per_sample == len("sample 1 of test")
    evaluate_tokenizer(zoo, "words", data)
    assert (zoo["words"].checkpoint / "words" / "evaluation.json").is_file(), "apart from those of the same vocabulary"


TWO_CODEBOOKS = {
    "import numpy as np\n": "import numpy as np\nimport torch\n",
    "layout=GridLayout(shape=(side // 4, side // 4)),":
        "layout=GridLayout(shape=(side // 4, side // 4, 2)), num_codebooks=2,",
    "return (means * (len(tokenizer) - 1)).round().long()":
        "first = (means * (len(tokenizer) - 1)).round().long(); return torch.stack([first, 0 * first], -1)",
    "repeat(tokenizer[tokens], ": "repeat(tokenizer[tokens[..., 0]], ",
}  # fmt: skip


def test_a_dead_codebook_of_several_is_seen(install_example: Callable[..., Path], tmp_path: Path) -> None:
    """In the terminal, in evaluation.json, and in what reports show of it."""
    install_example("field", TWO_CODEBOOKS)
    zoo, data = only({}, zoo={"checkpoints": str(tmp_path / "tokenizers")}), tmp_path / "data"
    shades = np.linspace(0, 1, 16, dtype=np.float32).repeat(16).reshape(16, 1, 16, 1)
    for split in ("train", "test"):
        with writing_shard(data / split / "field/0.tar") as writer:
            for key, row in enumerate(shades):
                writer.add(f"{key:02}", *zoo["field"].write(np.broadcast_to(row, (1, 16, 16)).copy()))
    trained(zoo, data, "field")
    result = evaluate_tokenizer(zoo, "field", data)
    assert (result.usage, result.several) == (
        pytest.approx((1 + 1 / 16) / 2), {"codebooks": 2, "least_usage": 1 / 16, "least_used": 2},
    )  # fmt: skip
    meanings = {name: meaning for name, _, _, meaning in result.codebook_rows()}
    assert meanings["usage"] == "share of the codes that occurred; mean of 2 codebooks, the least of them 6.2%"
    assert meanings["perplexity"].endswith("; mean of 2 codebooks")
    handle = zoo["field"]
    written = json.loads((handle.checkpoint / "evaluation.json").read_text())
    assert {key: written[key] for key in result.several} == result.several
    found = left_behind(handle, handle.checkpoint, Pictures(folder=tmp_path / "pictures"), "field", 1)
    assert [code["meaning"] for code in found.codes] == [
        "of 16, on held-out samples; mean of 2 codebooks, the least of them 6.2%",
        "as varied as this many codes that are equally frequent; mean of 2 codebooks",
    ]


def test_an_evaluation_leaves_out_what_cannot_be_read_or_encoded(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    trained(zoo, data, "words")
    whole = evaluate_tokenizer(zoo, "words", data, write=False)
    with writing_shard(data / "test/words/zz.tar") as writer:
        writer.add("odd", b"nothing", "txt")
        writer.add("broken", b"\xff", "txt")
    result = evaluate_tokenizer(zoo, "words", data, write=False)
    assert (result.samples, result.metrics, set(result.dropped)) == (whole.samples, whole.metrics, {"odd", "broken"})
    assert result.usage == whole.usage and "odd words" in result.dropped["odd"]
    with writing_shard(data / "test/words/zzz.tar") as writer:
        for key in ("zz-1", "zz-2"):
            writer.add(key, b"nothing", "txt")
    monkeypatch.setattr("tokenizers_zoo.pipeline.evaluate.BATCH", whole.samples + 2)
    result = evaluate_tokenizer(zoo, "words", data, write=False)  # a batch of which all is refused
    assert (result.samples, set(result.dropped)) == (whole.samples, {"odd", "broken", "zz-1", "zz-2"})
    for path in (data / "test/words").glob("*.tar"):
        path.unlink()
    with writing_shard(data / "test/words/zz.tar") as writer:
        writer.add("odd", b"nothing", "txt")
    with pytest.raises(DataError, match=r"nothing to evaluate; odd: .*odd words"):
        evaluate_tokenizer(zoo, "words", data, write=False)


@pytest.mark.parametrize("hook", ["encode", "transform"])
def test_no_value_is_left_out_where_the_machine_fails(
    hook: str, toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    call = zoo["field"]._plugins.call

    def failing(plugin: Any, name: str, arguments: Any) -> Any:
        if name == hook:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return call(plugin, name, arguments)

    monkeypatch.setattr(zoo["field"]._plugins, "call", failing)
    for command in (lambda: evaluate_tokenizer(zoo, "field", data), lambda: tokenize(zoo, data, out)):
        with pytest.raises(MachineError, match=rf"^field: {hook} of .* ran out of memory.*: CUDA out of memory"):
            command()
    assert not list(out.rglob("*.arrow"))
    monkeypatch.undo()
    assert [(o.written, o.dropped) for o in tokenize(zoo, data, out).outcomes] == [(5, {}), (23, {})]


def test_a_value_left_out_as_memory_ran_out_is_encoded_the_next_time(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data, test=0)
    trained(zoo, data, "field")
    read, left = zoo["field"].read, itertools.count()

    def failing(value: bytes, extension: str) -> Any:
        if next(left) != 3:
            return read(value, extension)
        try:
            raise MemoryError
        except MemoryError as error:
            raise InvalidValueError("field: cannot be read: MemoryError") from error

    def counts() -> list[tuple[int, int, int]]:
        return [(o.written, o.kept, len(o.dropped)) for o in tokenize(zoo, data, out).outcomes]

    with monkeypatch.context() as patch:
        patch.setattr(zoo["field"], "read", failing)
        assert counts() == [(22, 0, 1)]
    assert counts() == [(23, 0, 0)]
    assert counts() == [(0, 23, 0)]


def test_only_all_of_the_held_out_values_give_the_figures_of_a_checkpoint(
    toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    folder = zoo["field"].checkpoint
    training = {"steps": 9, "codebook": {"usage": 0.5, "perplexity": 7.0}, "metrics": {"mae": 5.0}, "samples": 2000}
    (folder / "evaluation.json").write_text(json.dumps(training))
    for name in ("samples/07.png", "samples/00.txt", "samples/decoders.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of an older evaluation")
    before = snapshot(folder)
    for split, limit, count in (("train", None, 23), ("test", 3, 3)):
        result = evaluate_tokenizer(zoo, "field", data, split=split, limit=limit)
        assert result.pictures == folder / f"samples-{split}" and len(list(result.pictures.iterdir())) == min(count, 8)
        written = json.loads((folder / f"evaluation-{split}.json").read_text())
        assert (written["split"], written["samples"]) == (split, count) and "steps" not in written
    assert before.items() <= snapshot(folder).items()
    result = evaluate_tokenizer(zoo, "field", data, limit=5)
    written = json.loads((folder / "evaluation.json").read_text())
    assert (written["samples"], written["metrics"]) == (5, result.metrics)
    assert (written["steps"], written["codebook"], written["usage"]) == (9, training["codebook"], result.usage)
    assert sorted(path.name for path in result.pictures.iterdir()) == [f"{i:02}.png" for i in range(5)]
    train_tokenizer(zoo, "field", data, overwrite=True)
    assert not (folder / "samples-train").exists(), "what evaluations left is replaced, too"


def test_an_evaluation_leaves_a_tokenizer_on_the_hub_there(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, hub = tmp_path / "data", tmp_path / "hub"
    local = toy()
    make_toy(local, data)
    for name in ("field", "words"):
        train_tokenizer(local, name, data, out=hub / name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id, revision=None: str(hub / id.split("/")[1]))
    (tmp_path / "somebody/field").mkdir(parents=True)  # holds no checkpoint
    table = {name: {"checkpoint": f"somebody/{name}"} for name in ("field", "words")}
    before = snapshot(hub)
    for _ in range(2):
        zoo = toy({"modalities": table})
        assert evaluate_tokenizer(zoo, "field", data).samples == 5
        evaluate_tokenizer(zoo, "words", data)
    assert snapshot(hub) == before and not (tmp_path / "somebody/words").exists()
    kept = tmp_path / "runs/tokenizers/somebody"
    assert (kept / "field/evaluation.json").is_file() and (kept / "words/words/evaluation.json").is_file()
    assert tokenize(zoo, data, tmp_path / "tokens").outcomes
    trained(zoo, data, "field")
    assert toy({"modalities": table})["field"].files.folder() == tmp_path / "somebody/field", "a checkpoint is here now"


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
    tokenize(zoo, data, tmp_path / "elsewhere", modalities=["field"], device="cpu:0")  # the CPU by another name
    assert (zoo["field"].device, zoo["words"].device) == ("cpu:0", "cpu")


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
    with pytest.raises(DataError, match="by tokenizer"):
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
    assert "odd words" in outcome.dropped["odd"] and "not UTF-8" in outcome.dropped["broken"]
    column = TokenStore(out).open("train", "words")
    assert len(column) == 21 and set(column.dropped) == {"odd", "broken"}
    assert set(tokenize(zoo, data, out).outcomes[0].dropped) == {"odd", "broken"}
    handle = zoo["words"]
    handle.encode = lambda values: (_ for _ in ()).throw(DataError("never"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="words: none of 23 samples could be encoded"):
        tokenize(zoo, data, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.arrow"))


def test_a_file_that_is_not_read_now_costs_no_sample(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    pread = os.pread

    def failing(file: int, size: int, offset: int) -> bytes:
        if offset > 5000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    for command in (lambda: tokenize(zoo, data, out), lambda: evaluate_tokenizer(zoo, "field", data, split="train")):
        with pytest.raises(ReadError, match=r"shard-00000.tar: cannot be read: Input/output error"):
            command()
    monkeypatch.undo()
    assert not list(zoo["field"].checkpoint.glob("evaluation-*.json")), "figures of other samples"
    assert [(o.written, o.dropped) for o in tokenize(zoo, data, out).outcomes] == [(5, {}), (23, {})]


def test_tokens_of_values_that_have_changed_are_encoded_again(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data, test=0)
    trained(zoo, data, "field")
    monkeypatch.setattr(tokenize_module, "PART_SAMPLES", 9)  # those of a shard
    tokenize(zoo, data, out)
    handle, shard = zoo["field"], data / "train/field/shard-00001.tar"
    keys = list(scan_shard(shard).members)

    def change() -> None:
        with writing_shard(shard) as writer:
            for key in keys:
                writer.add(key, *handle.write(np.random.default_rng(len(key)).random((1, 16, 16), np.float32)))

    change()
    assert [(o.written, o.kept) for o in tokenize(zoo, data, out).outcomes] == [(9, 14)]
    column = TokenStore(out).open("train", "field")
    values = ValueStore.of(data, zoo)
    now = handle.encode([values.read(handle, "train", key) for key in column.keys])
    np.testing.assert_array_equal(column.take(range(len(column))), np.asarray(now))
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)  # all files get new times
    assert [(o.written, o.kept) for o in tokenize(zoo, tmp_path / "copied", out).outcomes] == [(0, 23)]
    for path in (out / "train/field").glob("*.arrow"):  # as an older version wrote it
        part, batch = read_part(path)
        tokens = [np.asarray(row) for row in batch.column("tokens").to_pylist()]
        write_part(path, part.metadata, batch.column("key").to_pylist(), tokens, part.dropped)
    shard.unlink()
    change()
    assert [(o.written, o.kept) for o in tokenize(zoo, data, out).outcomes] == [(0, 23)]


def test_tokens_of_values_that_were_read_otherwise_are_refused(
    install_example: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example("field", scaled())
    monkeypatch.setattr(tokenize_module, "PART_SAMPLES", 1)
    data, out = tmp_path / "data", tmp_path / "tokens"
    for split in ("train", "test"):
        with writing_shard(data / split / "field/0.tar") as writer:
            writer.add("a", b"0.5", "num")

    def zoo(**own: Any) -> Zoo:
        return only({"field": own}, zoo={"checkpoints": str(tmp_path / "tokenizers")})

    trained(zoo(), data, "field")
    tokenize(zoo(), data, out)
    assert [outcome.kept for outcome in tokenize(zoo(), data, out).outcomes] == [1, 1]
    with pytest.raises(DataError, match=r"holds other tokens \(run settings.scale was null, is 0.5\); .*--overwrite"):
        tokenize(zoo(scale=0.5), data, out)
    for path in out.rglob("*.arrow"):  # as an older version wrote them
        part, batch = read_part(path)
        run = {key: item for key, item in part.metadata.run.items() if key != "settings"}
        metadata = dataclasses.replace(part.metadata, run=run)
        tokens = [np.asarray(row) for row in batch.column("tokens").to_pylist()]
        write_part(path, metadata, batch.column("key").to_pylist(), tokens, part.dropped, part.made_of)
    assert [outcome.kept for outcome in tokenize(zoo(scale=0.5), data, out).outcomes] == [1, 1]
    with writing_shard(data / "train/field/1.tar") as writer:
        writer.add("b", b"0.5", "num")
    added = tokenize(zoo(scale=0.5), data, out).outcomes[1]
    assert (added.written, added.kept) == (1, 1) and TokenStore(out).open("train", "field").keys == ["a", "b"]


def test_a_modality_that_was_asked_for_may_be_in_one_split_alone(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    shutil.rmtree(data / "test/words")
    result = tokenize(zoo, data, out, modalities=["field", "words"])
    assert [(o.split, o.modality) for o in result.outcomes] == [
        ("test", "field"), ("train", "field"), ("train", "words"),
    ]  # fmt: skip
    assert result.skipped == {"words": f"{data / 'test'} lacks it"}
    for arguments in ({"modalities": ["words"], "splits": ["test"]}, {"modalities": ["field", "wrods"]}):
        with pytest.raises(DataError, match=f"unknown modality in {data / 'test'}: '{arguments['modalities'][-1]}'"):
            tokenize(zoo, data, out, **arguments)


def foreign(folder: Path, keys: str, of: str = "train") -> Path:
    """Words that are not of this program's making."""
    with writing_shard(folder / "train/words/0.tar") as writer:
        for key in keys:
            writer.add(key, f"{key} of {of}".encode(), "txt")
    return folder


def test_a_refusal_costs_no_tokens(toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, out = toy(enabled=("words",)), tmp_path / "tokens"
    data = foreign(tmp_path / "data", "abcdefgh")
    trained(zoo, data, "words")
    monkeypatch.setattr(tokenize_module, "PART_SAMPLES", 4)
    tokenize(zoo, data, out)
    before = snapshot(out)
    foreign(data, "abc")
    with pytest.raises(DataError, match=r"part-00001\.arrow: holds samples that the data lack now"):
        tokenize(zoo, data, out)
    assert snapshot(out) == before
    foreign(data, "abcxdefgh")
    tokenize(zoo, data, out)
    assert TokenStore(out).open("train", "words").keys == list("abcxdefgh")


def test_data_of_which_nothing_is_known_are_known_by_their_place(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy(enabled=("words",)), tmp_path / "tokens"
    one, two = foreign(tmp_path / "one", "abc"), foreign(tmp_path / "two", "abc", "train and others")
    trained(zoo, one, "words")
    tokenize(zoo, one, out)
    before = snapshot(out)
    with pytest.raises(DataError, match=f"words: holds tokens made of {one}; by their keys samples of {two} would"):
        tokenize(zoo, two, out)
    assert snapshot(out) == before
    assert [outcome.kept for outcome in tokenize(zoo, tmp_path / "two/../one", out).outcomes] == [3]
    assert [outcome.written for outcome in tokenize(zoo, two, out, overwrite=True).outcomes] == [3]
    assert TokenStore(out).data == two
    two.rename(tmp_path / "three")  # the same values, wherever they lie
    assert [outcome.kept for outcome in tokenize(zoo, tmp_path / "three", out).outcomes] == [3]
    make_toy(zoo, tmp_path / "made", test=0)
    tokenize(zoo, tmp_path / "made", tmp_path / "of_made")
    (tmp_path / "made").rename(tmp_path / "moved")
    assert [outcome.kept for outcome in tokenize(zoo, tmp_path / "moved", tmp_path / "of_made").outcomes] == [21]


def data_of_two_seeds(zoo: Zoo, folder: Path) -> tuple[Path, Path]:
    """Samples of the same keys, and the tokenizers of the first."""
    one, two = folder / "one", folder / "two"
    make_toy(zoo, one)
    make_toy(zoo, two, seed=1)
    trained(zoo, one, "field", "words")
    return one, two


@pytest.mark.parametrize("overwrite", [False, True])
def test_modalities_of_other_samples_do_not_come_together(
    toy: Callable[..., Zoo], tmp_path: Path, overwrite: bool
) -> None:
    """Their keys are the same, and a backbone would take them for the same samples."""
    zoo, out = toy(), tmp_path / "tokens"
    one, two = data_of_two_seeds(zoo, tmp_path)
    tokenize(zoo, one, out, modalities=["field"])
    before = snapshot(out)
    with pytest.raises(DataError, match=rf"field: holds tokens made of {one}; by their keys samples of {two} would be"):
        tokenize(zoo, two, out, modalities=["words"], overwrite=overwrite)
    assert snapshot(out) == before
    foreign(tmp_path / "three", "abc")
    with pytest.raises(DataError, match="would be taken for the same ones; give another folder"):
        tokenize(zoo, tmp_path / "three", out, modalities=["words"], overwrite=overwrite)
    assert snapshot(out) == before
    tokenize(zoo, one, out, modalities=["words"])
    tokenize(zoo, two, out, modalities=["field", "words"], overwrite=True)
    assert TokenStore(out).data == two
    (out / RECORD).write_text(json.dumps({"data": str(two)}))  # as older versions wrote it
    tokenize(zoo, two, out)


def test_tokens_of_what_other_data_lack_are_to_be_deleted(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "tokens"
    one, two = data_of_two_seeds(zoo, tmp_path)
    tokenize(zoo, one, out)
    for split in ("test", "train"):
        shutil.rmtree(two / split / "field")
    for split in ("test", "train"):
        for overwrite in (False, True):
            with pytest.raises(DataError, match=f"give another folder, or delete {out / split / 'field'}$"):
                tokenize(zoo, two, out, overwrite=overwrite)
        with pytest.raises(DataError, match=f"give another folder, or delete {out / split / 'field'}$"):
            tokenize(zoo, two, out, modalities=["words"], overwrite=True)
        shutil.rmtree(out / split / "field")
    tokenize(zoo, two, out, overwrite=True)
    assert TokenStore(out).data == two and TokenStore(out).modalities("train") == ["words"]
    TokenStore(out).check_whole("train")  # what was deleted is not expected any more
    tokenize(zoo, one, out, overwrite=True)
    make_toy(zoo, tmp_path / "three", seed=2)
    with pytest.raises(DataError, match="or make all anew by --overwrite without --only"):
        tokenize(zoo, tmp_path / "three", out, modalities=["words"], overwrite=True)


def own_words(zoo: Zoo, folder: Path, of: str) -> Path:
    """Files of a user as data: their path, as it is given, is the same for all."""
    for number in range(3):
        (folder / "files/words").mkdir(parents=True, exist_ok=True)
        (folder / f"files/words/{number}.txt").write_text(f"{number} of train {of}")
    with contextlib.chdir(folder):
        make_data(
            zoo, "folder", Path("data"), train=None, test=0, seed=0, options={"path": "files", "test_fraction": 0.0}
        )
    return folder / "data"


def test_files_of_two_users_do_not_come_together(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, out = toy({"modalities": {"more": {"plugin": "words"}}}, enabled=("words", "more")), tmp_path / "tokens"
    one, two = (own_words(zoo, tmp_path / name, name) for name in ("one", "two"))
    trained(zoo, one, "words")
    tokenize(zoo, one, out, modalities=["words"])
    with pytest.raises(DataError, match=f"words: holds tokens made of {one}; by their keys samples of {two} would be"):
        tokenize(zoo, two, out, modalities=["more"])
    one.rename(tmp_path / "moved")
    tokenize(zoo, tmp_path / "moved", out, modalities=["more"])


def test_of_other_data_nothing_stays_where_a_new_beginning_is_killed(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = toy(), tmp_path / "tokens"
    one, two = data_of_two_seeds(zoo, tmp_path)
    tokenize(zoo, one, out)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as context:
        context.setattr(tokenize_module, "write_part", killed)
        tokenize(zoo, two, out, overwrite=True)
    assert not list(out.rglob("*.arrow"))
    tokenize(zoo, two, out, modalities=["field"])
    with pytest.raises(DataError, match="words: is not there, and is to have"):
        TokenStore(out).check_whole("train")
    tokenize(zoo, two, out)
    TokenStore(out).check_whole("train")


def test_data_made_anew_in_the_same_folder_are_other_data(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    """Also for a store that an older version wrote, and where dataset.json still has what was made before."""
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    tokenize(zoo, data, out)
    before = json.loads((data / "dataset.json").read_text())
    for split in ("train", "test"):
        shutil.rmtree(data / split)
    make_toy(zoo, data, seed=1)
    again = {"modalities": ["words"], "overwrite": True}
    noted = (out / RECORD).read_text()
    for written in (noted, json.dumps({"data": str(data)})):
        (out / RECORD).write_text(written)
        with pytest.raises(DataError, match="field: holds tokens made of"):
            tokenize(zoo, data, out, **again)
    now = json.loads((data / "dataset.json").read_text())
    for split in ("train", "test"):
        shutil.rmtree(data / split / "field")
        now["splits"][split]["field"] = before["splits"][split]["field"]
    (data / "dataset.json").write_text(json.dumps(now))
    (out / RECORD).write_text(noted)
    with pytest.raises(DataError, match="field: holds tokens made of"):
        tokenize(zoo, data, out, **again)


@pytest.mark.parametrize("older", [False, True])
def test_what_is_derived_otherwise_since_is_of_the_same_samples(
    toy: Callable[..., Zoo], tmp_path: Path, older: bool
) -> None:
    """Its own tokens are out of date, those of other modalities are not refused for it."""
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    tokenize(zoo, data, out)
    entries = json.loads((data / "dataset.json").read_text())
    for split in ("train", "test"):
        entries["splits"][split]["words"] = {"derived_from": ["field"], "distribution": "another", "read_with": {}}
        with writing_shard(data / split / "words/shard-00000.tar") as writer:
            writer.add("0", f"0 of {split}, derived otherwise".encode(), "txt")
    (data / "dataset.json").write_text(json.dumps(entries))
    if older:
        (out / RECORD).write_text(json.dumps({"data": str(data)}))
    tokenize(zoo, data, out, modalities=["field"])


def test_a_folder_of_something_else_is_refused(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    """And is as it was; the same for data of which nothing is recorded, and for any other files."""
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    run = train_tokenizer(zoo, "field", data)
    unrecorded, split = tmp_path / "unrecorded", data / "train"
    shutil.copytree(split, unrecorded / "train")
    (tmp_path / "deep/one/two/three").mkdir(parents=True)
    before = snapshot(tmp_path)
    for out, held in (
        (data, r"data \(dataset\.json\)"),
        (run, r"\S+, and no token store"),
        (unrecorded, r"train/\w+/shard-\d+\.\S+, and no token store"),
        (split, r"\w+/shard-\d+\.\S+, and no token store"),
        (tmp_path / "deep", "one/two/three, and no token store"),
    ):
        for overwrite in (False, True):
            with pytest.raises(DataError, match=rf"^{out}: holds {held}; give another --out$"):
                tokenize(zoo, data, out, modalities=["field"], overwrite=overwrite)
    assert snapshot(tmp_path) == before and not list(tmp_path.rglob("*.arrow"))


def test_a_store_that_was_begun_is_a_token_store(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    """Whatever else is beside its record or its parts, of which older versions wrote no record."""
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field")
    folder = out / "train/field"
    folder.mkdir(parents=True)
    for killed in (out / f".{RECORD}.0a.tmp", folder / ".part-00000.arrow.0a.tmp", out / ".DS_Store"):
        killed.touch()
    notes = out / "notes.txt"
    notes.touch()
    with pytest.raises(DataError, match=r"holds notes\.txt, and no token store"):
        tokenize(zoo, data, out)
    notes.unlink()
    tokenize(zoo, data, out)
    notes.touch()
    (out / RECORD).unlink()
    assert not any(outcome.written for outcome in tokenize(zoo, data, out).outcomes)
    for path in out.rglob("[!.]*.arrow"):
        path.unlink()
    assert all(outcome.written for outcome in tokenize(zoo, data, out).outcomes)


def test_data_without_any_tokenizer_are_refused(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    advice = f"`zoo tokenizer train field --data {data}` trains that of one, --all in place of the name those of all"
    with pytest.raises(
        DataError, match=rf"^{data}: none of its modalities has a tokenizer \(field, words\); {advice}$"
    ):
        tokenize(zoo, data, out)
    assert not out.exists()
    trained(zoo, data, "words")
    result = tokenize(zoo, data, out)
    assert set(result.skipped) == {"field"} and {outcome.modality for outcome in result.outcomes} == {"words"}


def test_two_processes_note_at_once(tmp_path: Path) -> None:
    def noted(number: int) -> None:
        for row in range(20):
            StoreRecord.note(tmp_path, tmp_path, {}, [("train", f"{number}-{row}", 1)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(noted, range(4)))
    assert len(StoreRecord.read(tmp_path).rows["train"]) == 80


def test_what_cannot_be_encoded_at_all_is_not_waited_for(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    with pytest.raises(DataError, match="field: none of 5 samples could be encoded"), monkeypatch.context() as context:
        context.setattr(TokenMetadata, "number_problem", lambda metadata, tokens: "no numbers")
        tokenize(zoo, data, out, modalities=["field"])
    tokenize(zoo, data, out, modalities=["words"])
    TokenStore(out).check_whole("test")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_encoded_at_all_keeps_no_other_from_it(
    overwrite: bool, toy: Callable[..., Zoo], tmp_path: Path
) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    trained(zoo, data, "field", "dark", "words")
    zoo["dark"].encode = lambda values: (_ for _ in ()).throw(DataError("never"))  # type: ignore[method-assign]
    wanted = r"^test/dark: none of 5 samples could be encoded; \S+: never; train/dark: none of \d+ samples .*: never$"
    for _ in range(2):
        with pytest.raises(DataError, match=wanted):
            tokenize(zoo, data, out, overwrite=overwrite)
        store = TokenStore(out)
        for split in ("test", "train"):
            assert store.modalities(split) == ["field", "words"]
            store.check_whole(split)
    assert not list(out.glob("*/dark/*.arrow"))


def test_a_store_that_is_not_finished_is_known(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    monkeypatch.setattr(tokenize_module, "PART_SAMPLES", 8)
    written: list[Path] = []

    def killed(path: Path, *arguments: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_part(path, *arguments)

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as context:
        context.setattr(tokenize_module, "write_part", killed)
        tokenize(zoo, data, out)
    store = TokenStore(out)
    assert [f"{path.parent.parent.name}/{path.parent.name}" for path in written] == [
        "test/field", "test/words", "train/field",
    ]  # fmt: skip
    store.check_whole("test")
    for names in (None, ["field"]):
        with pytest.raises(DataError, match=r"train/field: holds 8 of 23 samples: `zoo tokenize` did not come to its"):
            store.check_whole("train", names)
    with pytest.raises(DataError, match="train/words: is not there, and is to have 21 samples; tokenize it"):
        store.check_whole("train", ["words"])
    assert list(unfinished_tokens(out)) == ["train/field", "train/words"]
    tokenize(zoo, data, out)
    store.check_whole("train")


def test_a_split_without_a_value_of_a_modality_is_whole(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    with writing_shard(data / "test/field/shard-00000.tar"):
        pass
    tokenize(zoo, data, out)
    assert unfinished_tokens(out) == {} and TokenStore(out).modalities("test") == ["words"]
    TokenStore(out).check_whole("test")


def test_data_that_are_not_all_made_are_told(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    assert tokenize(zoo, data, out).unfinished == []
    for split, name, shard in (("train", "field", "shard-00001.tar"), ("test", "words", "shard-00000.tar")):
        (data / split / name / shard).unlink()
        (data / split / name / shard).with_suffix(".failed.jsonl").unlink(missing_ok=True)
    result = tokenize(zoo, data, tmp_path / "others")
    told = "train/field: 2 of 3 shards are there"  # as a killed `zoo data make` leaves it; words were taken away
    assert result.unfinished == [told]
    assert f"{told}: `zoo data make` did not come to its end" in result.summary()
    assert tokenize(zoo, data, tmp_path / "others", splits=["test"]).unfinished == []


def test_one_modality_at_a_time_is_indexed(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members of all of them would not fit in memory, where there are millions."""
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    trained(zoo, data, "field", "words")
    held, index = list[int](), ValueStore.index

    def indexed(store: ValueStore, split: str, modality: str) -> ModalityIndex:
        found = index(store, split, modality)
        held.append(len(store._indexes))
        return found

    monkeypatch.setattr(ValueStore, "index", indexed)
    tokenize(zoo, data, tmp_path / "tokens")
    assert set(held) == {1} and len(held) == 8, "two splits of two, to plan and to write"


def test_shards_that_are_replaced_meanwhile_are_told_from_those_that_were_planned(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    trained(zoo, data, "words")
    note = StoreRecord.note

    def noted(*what: Any) -> None:
        note(*what)
        with writing_shard(data / "train/words/shard-00000.tar") as writer:
            writer.add("new", b"other words", "txt")

    with monkeypatch.context() as patched:
        patched.setattr(StoreRecord, "note", noted)
        with pytest.raises(ReadError, match=r"train/words: shards came, went or were replaced meanwhile"):
            tokenize(zoo, data, out, modalities=["words"])
    tokenize(zoo, data, out, modalities=["words"])
    column = TokenStore(out).open("train", "words")
    assert "new" in {*column.rows, *column.dropped}


def test_crops_are_drawn_when_their_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {key: Member(Path("0.tar"), place, 1, "x", 0) for place, key in enumerate("abc")}
    views = Views(members, 4, seed=3)
    assert views[5] == Row("b#1", members["b"], random_crop(3, "b", 1)) and len(views[2:12:3]) == 4
    assert views.members(range(4, 12)) == [members["b"], members["c"]]
    assert [row.key for row in Views(members, 1, seed=3)] == ["a", "b", "c"]
    monkeypatch.setattr(views_module, "random_crop", None)
    assert len(Views(members, 10**6, seed=0)) == 3 * 10**6 and views.key(11) == "c#3"


def with_patches(toy: Callable[..., Zoo], tmp_path: Path, keys: str) -> tuple[Zoo, Path]:
    """Two splits of pictures of four patches, below white, and their tokenizer."""
    pytest.importorskip("zoo_images.rgb_patches")
    zoo, data = toy({"zoo": {"image_size": 16, "patch_size": 8}}, enabled=("rgb_patches",)), tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with writing_shard(data / split / "rgb_patches/0.tar") as writer:
            for key in keys:
                writer.add(key, *zoo["rgb_patches"].write(rng.uniform(0, 0.9, (3, 16, 16)).astype(np.float32)))
    trained(zoo, data, "rgb_patches")
    return zoo, data


@pytest.mark.parametrize("alone", [False, True])
def test_numbers_that_cannot_be_stored_cost_their_sample(toy: Callable[..., Zoo], tmp_path: Path, alone: bool) -> None:
    zoo, data = with_patches(toy, tmp_path, "abcd")
    handle = zoo["rgb_patches"]
    with writing_shard(data / "train/rgb_patches/1.tar") as writer:
        writer.add("white", *handle.write(np.ones((3, 16, 16), np.float32)))
    encode = handle.encode

    def huge(values: Any) -> Any:
        if alone and len(values) > 1:
            raise DataError("one by one")
        return [row * (1e6 if value.min() == 1 else 1) for row, value in zip(encode(values), values, strict=True)]

    handle.encode = huge  # type: ignore[method-assign]
    (outcome,) = tokenize(zoo, data, tmp_path / "tokens", splits=["train"]).outcomes
    assert outcome.written == 4 and set(outcome.dropped) == {"white"}
    assert 'exceed float16; set dtype = "float32"' in outcome.dropped["white"]


def test_parts_of_long_vectors_have_fewer_samples(
    toy: Callable[..., Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, data = with_patches(toy, tmp_path, "abcde")
    monkeypatch.setattr(tokenize_module, "PART_BYTES", 4 * 192 * 2 * 7)  # seven rows of four patches in float16
    tokenize(zoo, data, tmp_path / "tokens", crops=3)
    parts = [read_part(path)[1] for path in sorted((tmp_path / "tokens/train/rgb_patches").glob("*.arrow"))]
    keys = ["".join(key.as_py()[0] for key in part.column("key")) for part in parts]
    assert keys == ["aaabbb", "cccddd", "eee"]
    monkeypatch.setattr(tokenize_module, "PART_BYTES", 1)
    assert tokenize_module.part_rows(zoo["rgb_patches"].spec, 3) == 3, "no part without a sample"


def test_crops_are_shared_by_all_modalities_and_only_for_training(toy: Callable[..., Zoo], tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=1)
    trained(zoo, data, "field", "dark")
    tokenize(zoo, data, out, modalities=["field", "dark"], crops=3, seed=5)
    store, values = TokenStore(out), ValueStore.of(data, zoo)
    field, dark = (store.open("train", name) for name in ("field", "dark"))
    assert field.keys == [f"{key}#{c}" for key in values.keys("train", "field") for c in range(3)]
    assert store.open("test", "field").keys == values.keys("test", "field")
    for key in dark.keys[:12]:
        base, number = key.split("#")
        crop = random_crop(5, base, int(number))
        for column in (field, dark):
            handle = zoo[column.metadata.modality]
            expected = handle.encode([values.read(handle, "train", base, crop)])[0].numpy()
            np.testing.assert_array_equal(column.take([column.rows[key]])[0], expected)
    with pytest.raises(DataError, match="holds other tokens"):
        tokenize(zoo, data, out, modalities=["field"], crops=2, seed=5)


def test_random_crops_stay_inside_and_depend_on_seed_key_and_number() -> None:
    assert random_crop(0, "a", 0) == Crop()
    crops = [random_crop(0, f"k{i}", 1) for i in range(400)]
    assert len(set(crops)) == 400 and not any(crop.flip for crop in crops)
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
