"""Training samples, evaluation and token stores of toy tokenizers: kills, resuming, refused input, crops."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import only
from stores import writing_values
from toy_plugins import Install, Toy, make_toy, scaled, snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.outcomes import RunResult
from tokenizers_zoo.build.stores import describe_data
from tokenizers_zoo.build.tokenize import random_crop, tokenize
from tokenizers_zoo.build.tokenizers import train_tokenizer, training_samples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, DataError, MachineError, ReadError
from tokenizers_zoo.records.io import difference, read_table, write_table
from tokenizers_zoo.stores.shards import ValueStore, writing_shard
from tokenizers_zoo.stores.tokens import TokenStore, whole_samples
from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer

# ---------------------------------------------------------------------- tokenizers


def train_on_toys(zoo: Zoo, data: Path, *names: str, **changes: Any) -> None:
    """Train tokenizers on toy data, which are made if they are not there."""
    if not data.exists():
        make_toy(zoo, data, **changes)
    for name in names:
        train_tokenizer(zoo, name, data)


def test_training_samples_are_the_readable_values_of_all_sharing_modalities(toy: Toy, tmp_path: Path) -> None:
    zoo = toy({"modalities": {"more": {"plugin": "words"}}})
    data = tmp_path / "data"
    make_toy(zoo, data)
    samples = training_samples(zoo, zoo["field"], ValueStore(data))
    assert (len(samples.train), len(samples.test)) == (23, 5)
    assert samples.train[0].shape == (1, 16, 16) and samples.special_tokens == () and list(samples.texts()) == []
    assert samples.provenance["data"]["seed"] == 3
    folder = train_tokenizer(zoo, "words", data)
    assert folder == tmp_path / "runs/tokenizers/letters"
    config = read_table(folder / "config.json")
    words = [f"sample {i} of train" for i in range(25) if i % 7]
    assert config["train"] == words and config["special"] == ["<w>"]
    assert config["texts"] == words * 2  # the instance `more` has the same texts and comes first
    with pytest.raises(DataError, match=r"'dark'; known: field, more, words"):
        train_tokenizer(zoo, "dark", data)


def test_provenance_records_values_and_read_settings(install_example: Install, tmp_path: Path) -> None:
    install_example("field", scaled())
    data = tmp_path / "data"

    def provenance(number: bytes, root: Path = data, **settings: Any) -> dict[str, Any]:
        for split in ("train", "test"):
            with writing_values(root, split, "field") as writer:
                writer.add("a", number if split == "test" else b"0.5", "num")
        zoo = only({"field": settings})
        return dict(training_samples(zoo, zoo["field"], ValueStore(root)).provenance)

    first = provenance(b"0.5")
    assert provenance(b"0.5", tmp_path / "copy/data") == first and first["settings"] == {}
    assert difference(first, provenance(b"0.7")).startswith("contents.test was ")
    assert difference(first, provenance(b"0.5", scale=0.5)) == "settings.scale was null, is 0.5"


def test_evaluation_reads_encodes_decodes_and_writes_figures(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    train_on_toys(zoo, data, "field", "words", test=40)
    result = evaluate_tokenizer(zoo["field"], data)
    store, handle = ValueStore(data), zoo["field"]
    values = [store.read_key(handle, "test", key) for key in store.keys("test", "field")]
    tokens = handle.encode(values).numpy()
    assert result.metrics == handle.score(handle.decode(tokens), values)
    assert result.samples == 36 and result.tokens_per_sample == 16
    counts = np.bincount(tokens.ravel(), minlength=16)
    shares = counts[counts > 0] / counts.sum()
    assert result.usage == pytest.approx((counts > 0).mean())
    assert result.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert result.several == {}
    evaluation = read_table(handle.checkpoint / "evaluation.json")
    assert evaluation["metrics"] == result.metrics and evaluation["samples"] == 36
    assert result.pictures is not None and len(list(result.pictures.iterdir())) == 8
    with pytest.raises(DataError, match="no values here"):
        evaluate_tokenizer(zoo["field"], tmp_path)
    handle.score = lambda predicted, target: {"psnr": float("nan"), "mse": 1.0}  # type: ignore[method-assign]
    assert np.isnan(evaluate_tokenizer(zoo["field"], data).metrics["psnr"])
    assert read_table(handle.checkpoint / "evaluation.json")["metrics"] == {"psnr": None, "mse": 1.0}
    limited = evaluate_tokenizer(zoo["words"], data, limit=3, write=False)
    assert limited.samples == 3 and limited.metrics == {"exact": 1.0} and limited.pictures is None
    assert limited.tokens_per_sample == len("sample 1 of test")
    evaluate_tokenizer(zoo["words"], data)
    assert (zoo["words"].checkpoint / "words" / "evaluation.json").is_file(), "apart from those of the same vocabulary"


TWO_CODEBOOKS = {
    "import numpy as np\n": "import numpy as np\nimport torch\n",
    "layout=GridLayout(shape=(side // 4, side // 4)),":
        "layout=GridLayout(shape=(side // 4, side // 4, 2)), num_codebooks=2,",
    "return (means * (len(tokenizer) - 1)).round().long()":
        "first = (means * (len(tokenizer) - 1)).round().long(); return torch.stack([first, 0 * first], -1)",
    "repeat(tokenizer[tokens], ": "repeat(tokenizer[tokens[..., 0]], ",
}  # fmt: skip


def test_one_dead_codebook_of_several_is_reported(install_example: Install, tmp_path: Path) -> None:
    install_example("field", TWO_CODEBOOKS)
    zoo, data = only({}, zoo={"checkpoints": str(tmp_path / "tokenizers")}), tmp_path / "data"
    shades = np.linspace(0, 1, 16, dtype=np.float32).repeat(16).reshape(16, 1, 16, 1)
    for split in ("train", "test"):
        with writing_values(data, split, "field") as writer:
            for key, row in enumerate(shades):
                writer.add(f"{key:02}", *zoo["field"].write(np.broadcast_to(row, (1, 16, 16)).copy()))
    train_on_toys(zoo, data, "field")
    result = evaluate_tokenizer(zoo["field"], data)
    assert (result.usage, result.several) == (
        pytest.approx((1 + 1 / 16) / 2), {"codebooks": 2, "least_usage": 1 / 16, "least_used": 2},
    )  # fmt: skip
    evaluation = read_table(zoo["field"].checkpoint / "evaluation.json")
    assert {key: evaluation[key] for key in result.several} == result.several


def test_an_evaluation_leaves_out_what_cannot_be_read_or_encoded(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    train_on_toys(zoo, data, "words")
    clean = evaluate_tokenizer(zoo["words"], data, write=False)
    with writing_values(data, "test", "words", more=True) as writer:
        writer.add("odd", b"nothing", "txt")
        writer.add("broken", b"\xff", "txt")
    result = evaluate_tokenizer(zoo["words"], data, write=False)
    assert (result.samples, result.metrics, set(result.dropped)) == (clean.samples, clean.metrics, {"odd", "broken"})
    assert result.usage == clean.usage and "odd words" in result.dropped["odd"]
    with writing_values(data, "test", "words") as writer:
        writer.add("odd", b"nothing", "txt")
    with pytest.raises(DataError, match=r"nothing to evaluate; odd: .*odd words"):
        evaluate_tokenizer(zoo["words"], data, write=False)


def test_a_failing_machine_drops_no_value(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "field")
    plugin = type(zoo["field"]._plugin)
    call = plugin.call_raw

    def failing(self: Any, name: str, hook: str, **arguments: Any) -> Any:
        if hook == "encode":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return call(self, name, hook, **arguments)

    monkeypatch.setattr(plugin, "call_raw", failing)
    for command in (lambda: evaluate_tokenizer(zoo["field"], data), lambda: tokenize(zoo, data, out)):
        with pytest.raises(MachineError, match=r"^field: encode .*CUDA out of memory"):
            command()
    assert not list(out.rglob("*.tokens"))


def test_evaluations_of_other_samples_are_written_apart(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    train_on_toys(zoo, data, "field")
    folder = zoo["field"].checkpoint
    training = {"steps": 9, "codebook": {"usage": 0.5, "perplexity": 7.0}, "metrics": {"mae": 5.0}, "samples": 2000}
    write_table(folder / "evaluation.json", training)
    for name in ("samples/07.png", "samples/00.txt", "samples/decoders.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of an older evaluation")
    before = snapshot(folder)
    for split, limit, count in (("train", None, 23), ("test", 3, 3)):
        result = evaluate_tokenizer(zoo["field"], data, split=split, limit=limit)
        assert result.pictures == folder / f"samples-{split}" and len(list(result.pictures.iterdir())) == min(count, 8)
        evaluation = read_table(folder / f"evaluation-{split}.json")
        assert (evaluation["split"], evaluation["samples"]) == (split, count) and "steps" not in evaluation
    assert before.items() <= snapshot(folder).items()
    result = evaluate_tokenizer(zoo["field"], data, limit=5)
    evaluation = read_table(folder / "evaluation.json")
    assert (evaluation["samples"], evaluation["metrics"]) == (5, result.metrics)
    assert (evaluation["steps"], evaluation["codebook"], evaluation["usage"]) == (9, training["codebook"], result.usage)
    assert sorted(path.name for path in result.pictures.iterdir()) == [f"{i:02}.png" for i in range(5)]
    train_tokenizer(zoo, "field", data, overwrite=True)
    assert not (folder / "samples-train").exists(), "what evaluations left is replaced, too"


def test_evaluations_leave_the_hub_unchanged(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, hub = tmp_path / "data", tmp_path / "hub"
    local = toy()
    make_toy(local, data)
    for name in ("field", "words"):
        train_tokenizer(local, name, data, out=hub / name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id, **_: str(hub / id.split("/")[1]))
    table = {name: {"checkpoint": f"somebody/{name}"} for name in ("field", "words")}
    before = snapshot(hub)
    for _ in range(2):
        zoo = toy({"modalities": table})
        assert evaluate_tokenizer(zoo["field"], data).samples == 5
        evaluate_tokenizer(zoo["words"], data)
    assert snapshot(hub) == before
    folder = tmp_path / "somebody"
    assert (folder / "field/evaluation.json").is_file() and (folder / "words/words/evaluation.json").is_file()
    assert tokenize(zoo, data, tmp_path / "tokens").outcomes


# ---------------------------------------------------------------------- tokenize


def counts(result: RunResult) -> dict[str, tuple[int, int, int]]:
    """Map split and modality to the numbers of written, kept and dropped samples."""
    return {f"{o.split}/{o.modality}": (o.written, o.unchanged, o.dropped) for o in result.outcomes}


def unfinished_modalities(out: Path) -> list[str]:
    """Return the splits and modalities that lack shards."""
    return [f"{row.split}/{row.modality}" for row in describe_data(out).rows if row.missing]


def tokens_of(zoo: Zoo, out: Path, name: str) -> dict[str, Any]:
    column = TokenStore(out).open("train", name)
    column.check_tokenizer(zoo[name])
    rows = dict(whole_samples([column]))
    return dict(zip(rows, column.take(rows.values()), strict=True))


def test_tokens_are_those_of_the_tokenizer(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    train_on_toys(zoo, data, "field", "words")
    result = tokenize(zoo, data, out, batch_size=7)
    assert "no tokenizer at" in result.skipped["dark"]
    values = ValueStore(data)
    for name in ("field", "words"):
        tokens = tokens_of(zoo, out, name)
        assert set(tokens) == set(values.keys("train", name))
        expected = zoo[name].encode([values.read_key(zoo[name], "train", key) for key in tokens])
        for token_row, expected_row in zip(tokens.values(), expected, strict=True):
            np.testing.assert_array_equal(token_row, np.asarray(expected_row))
    assert [row.samples for row in describe_data(out).rows] == [5, 4, 23, 21]
    before = snapshot(out)
    second = tokenize(zoo, data, out, batch_size=5)
    assert all(outcome.written == 0 and outcome.unchanged for outcome in second.outcomes) and snapshot(out) == before
    with pytest.raises(CheckpointError, match="dark: no tokenizer"):
        tokenize(zoo, data, out, modalities=["dark"])


def change_values(zoo: Zoo, data: Path, shard: int) -> None:
    """Write other values under the same keys, in one shard."""
    store = ValueStore(data)
    present_mask = store.present("train", "field", shard)
    split, record = store.split("train"), store.record("train", "field")
    with writing_shard(data / "train/field", shard) as writer:
        for key, present in zip(split.keys(shard), present_mask, strict=True):
            if present:
                writer.add(key, *zoo["field"].write(np.random.default_rng(len(key)).random((1, 16, 16), np.float32)))
            else:
                writer.skip()
        writer.finish(keys=split.keys_digest(shard), inputs="changed", record=record)


def test_only_shards_of_other_inputs_are_made_again(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "field", test=0)

    def run() -> tuple[int, int, int]:
        return counts(tokenize(zoo, data, out))["train/field"]

    assert run() == (23, 0, 0)
    change_values(zoo, data, 1)
    written_count, kept_count, _ = run()
    assert written_count + kept_count == 23 and 9 <= written_count < 23
    store, tokens = ValueStore(data), tokens_of(zoo, out, "field")
    expected = zoo["field"].encode([store.read_key(zoo["field"], "train", key) for key in tokens])
    np.testing.assert_array_equal(np.asarray(list(tokens.values())), np.asarray(expected))
    make_toy(zoo, data, train=31, test=0)
    written_count, kept_count, _ = run()
    assert written_count + kept_count == 28 and kept_count >= 6
    for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, 8)):
        damage(out / "train/field/shard-00000.tokens")
        assert 0 < run()[0] <= 10
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)  # all files get new modification times
    assert counts(tokenize(zoo, tmp_path / "copied", out))["train/field"][0] == 0
    train_tokenizer(zoo, "field", data, overwrite=True)
    assert run()[0] == 0, "the same weights"
    with pytest.raises(DataError, match="holds 31 samples"):
        shutil.rmtree(data)
        make_toy(zoo, data, train=12, test=0)
        run()


def test_a_new_tokenizer_or_other_settings_encode_all_again(install_example: Install, tmp_path: Path) -> None:
    install_example("field", scaled())
    data, out = tmp_path / "data", tmp_path / "tokens"
    for split in ("train", "test"):
        with writing_values(data, split, "field") as writer:
            for key in "abcdefgh":
                writer.add(key, b"0.5", "num")

    def run(**settings: Any) -> tuple[int, int, int]:
        zoo = only({"field": settings}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
        if not zoo["field"].has_tokenizer:
            train_on_toys(zoo, data, "field")
        result = counts(tokenize(zoo, data, out))["train/field"]
        TokenStore(out).open("train", "field").check_tokenizer(zoo["field"])
        return result

    assert [run(), run(), run(scale=0.5), run(scale=0.5)] == [(8, 0, 0), (0, 8, 0), (8, 0, 0), (0, 8, 0)]
    shutil.rmtree(tmp_path / "tokenizers")
    assert run(levels=9) == (8, 0, 0)


def test_values_that_cannot_be_read_or_encoded_are_dropped_with_reasons(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "words", test=0)
    with writing_values(data, "train", "words", more=True) as writer:
        writer.add("odd", b"nothing", "txt")
        writer.add("broken", b"\xff", "txt")
    for expected in ((21, 0, 2), (0, 21, 2)):
        assert counts(tokenize(zoo, data, out, modalities=["words"])) == {"train/words": expected}
        (row,) = describe_data(out).rows
        assert (row.samples, row.dropped) == (21, 2)
        assert "odd words" in str(row.reasons) and "not UTF-8" in str(row.reasons)
    zoo["words"].encode = lambda values, **options: (_ for _ in ()).throw(DataError("never"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="words: all 23 samples were dropped"):
        tokenize(zoo, data, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.tokens")) and TokenStore(tmp_path / "none").splits() == []


def test_one_failing_modality_does_not_stop_the_others(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    train_on_toys(zoo, data, "field", "dark", "words")
    zoo["dark"].encode = lambda values, **options: (_ for _ in ()).throw(DataError("never"))  # type: ignore[method-assign]
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"test/dark: all 5 samples .* train/dark \(22\)"):
            tokenize(zoo, data, out, overwrite=overwrite)
        assert all(TokenStore(out).modalities(split) == ["field", "words"] for split in ("test", "train"))
        assert unfinished_modalities(out) == []


def test_an_unreadable_file_costs_no_sample(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, data, out = toy(enabled=("field",)), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "field")
    pread = os.pread

    def failing(file: int, size: int, offset: int) -> bytes:
        if offset > 5000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    for command in (lambda: tokenize(zoo, data, out), lambda: evaluate_tokenizer(zoo["field"], data, split="train")):
        with pytest.raises(ReadError, match=r"shard-00000.tar: cannot be read"):
            command()
    monkeypatch.undo()
    assert not list(zoo["field"].checkpoint.glob("evaluation-*.json")), "figures of other samples"
    assert counts(tokenize(zoo, data, out)) == {"test/field": (5, 0, 0), "train/field": (23, 0, 0)}


def test_a_modality_may_be_in_only_one_split(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "field", "words")
    shutil.rmtree(data / "test/words")
    result = tokenize(zoo, data, out, modalities=["field", "words"])
    assert list(counts(result)) == ["test/field", "train/field", "train/words"]
    assert list(result.skipped) == ["words"]
    with pytest.raises(DataError, match=f"unknown modality in {data / 'test'}: 'words'"):
        tokenize(zoo, data, out, modalities=["words"], splits=["test"])


def unrecorded(folder: Path, keys: str, of: str = "train") -> Path:
    """Write words that were not made by `zoo data make`."""
    with writing_values(folder, "train", "words") as writer:
        for key in keys:
            writer.add(key, f"{key} of {of}".encode(), "txt")
    return folder


def data_of_two_seeds(zoo: Zoo, folder: Path) -> tuple[Path, Path]:
    """Write two data sets with the same keys, and train tokenizers on the first."""
    first, second = folder / "one", folder / "two"
    make_toy(zoo, first)
    make_toy(zoo, second, seed=1)
    train_on_toys(zoo, first, "field", "words")
    return first, second


def test_modalities_of_other_samples_are_not_mixed(toy: Toy, tmp_path: Path) -> None:
    """The keys are equal, so a backbone would pair values of different samples."""
    zoo, out = toy(), tmp_path / "tokens"
    first, second = data_of_two_seeds(zoo, tmp_path)
    unrecorded(tmp_path / "three", "abc")
    tokenize(zoo, first, out, modalities=["field"])
    before = snapshot(out)
    for data, overwrite in ((second, False), (tmp_path / "three", True)):
        with pytest.raises(DataError, match=f"field: .*{first}, .*other samples"):
            tokenize(zoo, data, out, modalities=["words"], overwrite=overwrite)
        assert snapshot(out) == before
    tokenize(zoo, first, out, modalities=["words"])
    with pytest.raises(DataError, match="--overwrite"):
        tokenize(zoo, second, out)
    tokenize(zoo, second, out, overwrite=True)
    assert TokenStore(out).data == second


def test_unrecorded_data_are_identified_by_path_or_values(toy: Toy, tmp_path: Path) -> None:
    zoo, out = toy(enabled=("words",)), tmp_path / "tokens"
    first, second = unrecorded(tmp_path / "one", "abc"), unrecorded(tmp_path / "two", "abc", "train and others")
    train_on_toys(zoo, first, "words")
    tokenize(zoo, first, out)
    before = snapshot(out)
    with pytest.raises(DataError, match="other samples"):
        tokenize(zoo, second, out)
    assert snapshot(out) == before
    assert counts(tokenize(zoo, tmp_path / "two/../one", out)) == {"train/words": (0, 3, 0)}
    assert counts(tokenize(zoo, second, out, overwrite=True)) == {"train/words": (3, 0, 0)}
    second.rename(tmp_path / "three")  # the same values in another place
    assert counts(tokenize(zoo, tmp_path / "three", out)) == {"train/words": (0, 3, 0)}


def test_a_killed_overwrite_keeps_no_tokens_of_other_data(toy: Toy, tmp_path: Path) -> None:
    zoo, out = toy(), tmp_path / "tokens"
    first, second = data_of_two_seeds(zoo, tmp_path)
    tokenize(zoo, first, out)
    encode = zoo["field"].encode
    zoo["field"].encode = lambda values, **options: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tokenize(zoo, second, out, overwrite=True)
    assert not list(out.rglob("*.tokens"))
    zoo["field"].encode = encode  # type: ignore[method-assign]
    tokenize(zoo, second, out, modalities=["field"])
    assert unfinished_modalities(out) == ["test/words", "train/words"]
    tokenize(zoo, second, out)
    assert unfinished_modalities(out) == []


def test_folders_with_other_files_are_refused(toy: Toy, tmp_path: Path) -> None:
    zoo, data = toy(), tmp_path / "data"
    make_toy(zoo, data)
    run = train_tokenizer(zoo, "field", data)
    (tmp_path / "deep/one/two/three").mkdir(parents=True)
    before = snapshot(tmp_path)
    for out in (data, run, data / "train", tmp_path / "deep"):
        with pytest.raises(DataError, match=f"^{out}: holds .*; give another --out$"):
            tokenize(zoo, data, out, modalities=["field"], overwrite=True)
    assert snapshot(tmp_path) == before


def test_data_without_any_tokenizer_are_refused(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    with pytest.raises(DataError, match=rf"^{data}: .* tokenizer \(field, words\)"):
        tokenize(zoo, data, out)
    assert not out.exists()
    train_on_toys(zoo, data, "words")
    result = tokenize(zoo, data, out)
    assert set(result.skipped) == {"field"} and {outcome.modality for outcome in result.outcomes} == {"words"}


def test_unfinished_data_are_reported(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    train_on_toys(zoo, data, "field", "words")
    assert tokenize(zoo, data, out).notes == []
    (data / "train/field/shard-00001.json").unlink()
    assert "train/field: 2 of 3 shards" in tokenize(zoo, data, tmp_path / "others").notes[0]


def test_tokens_that_cannot_be_stored_drop_their_sample(toy: Toy, tmp_path: Path) -> None:
    pytest.importorskip("zoo_images.rgb")
    tables = {"zoo": {"image_size": 16, "patch_size": 8}, "modalities": {"rgb_patches": {"dtype": "float16"}}}
    zoo, data = toy(tables, enabled=("rgb_patches",)), tmp_path / "data"
    handle = zoo["rgb_patches"]
    for split in ("train", "test"):
        with writing_values(data, split, "rgb_patches") as writer:
            for key, level in {"a": 0.2, "b": 0.7, "white": 1}.items():
                writer.add(key, *handle.write(np.full((3, 16, 16), level, np.float32)))
    train_on_toys(zoo, data, "rgb_patches")
    encode = handle.encode

    def huge(values: Any, **options: Any) -> Any:
        return [row * (1e6 if value.min() == 1 else 1) for row, value in zip(encode(values), values, strict=True)]

    handle.encode = huge  # type: ignore[method-assign]
    (outcome,) = tokenize(zoo, data, tmp_path / "tokens", splits=["train"]).outcomes
    assert (outcome.written, outcome.dropped) == (2, 1)
    assert "exceed float16" in outcome.first_dropped and "(sample white)" in outcome.first_dropped


def test_crops_are_shared_by_all_modalities_and_only_for_training(toy: Toy, tmp_path: Path) -> None:
    zoo, data, out = toy(), tmp_path / "data", tmp_path / "tokens"
    make_toy(zoo, data)
    derive_data(zoo, data, workers=0)
    train_on_toys(zoo, data, "field", "dark")
    tokenize(zoo, data, out, modalities=["field", "dark"], crops=3, seed=5)
    store, values = TokenStore(out), ValueStore(data)
    assert (store.split("train").crops, store.split("test").crops) == (3, 1)
    for name in ("field", "dark"):
        column, handle = store.open("train", name), zoo[name]
        for key, row in list(whole_samples([column]))[:6]:
            crops = [values.read_key(handle, "train", key, random_crop(5, key, number)) for number in range(3)]
            np.testing.assert_array_equal(column.take(range(row, row + 3)), np.asarray(handle.encode(crops)))
    for crops, seed in ((2, 5), (3, 6)):
        with pytest.raises(DataError, match="--crops 3 --seed 5"):
            tokenize(zoo, data, out, modalities=["field"], overwrite=True, crops=crops, seed=seed)


def test_random_crops_stay_inside_and_depend_on_seed_key_and_number() -> None:
    assert random_crop(0, "a", 0) == Crop()
    crops = [random_crop(0, f"k{i}", 1) for i in range(400)]
    assert len(set(crops)) == 400 and not any(crop.flip for crop in crops)
    assert 0.5 <= min(crop.height for crop in crops) < 0.52 and 0.98 < max(crop.width for crop in crops) <= 1
    assert random_crop(0, "a", 1) == random_crop(0, "a", 1) != random_crop(1, "a", 1) != random_crop(0, "a", 2)
