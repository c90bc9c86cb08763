"""Retrieval: embedding vectors, indexes on disk, queries, recall, and the commands."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from retrieval_world import NAMES, SOURCES, World, all_five, copied, make_world
from safetensors.torch import load, save
from small_modalities import command_result, installed, refusal, write
from token_stores import reversed_tokens, stored_tokens, write_tokens

from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, UnknownNameError, ZooError
from tokenizers_zoo.files.checkpoint import load_config, save_checkpoint
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import as_json, file_digest, read_table, table_text, write_table
from tokenizers_zoo.report.pictures import cells_of
from tokenizers_zoo.stores.token_shard import TokenMetadata
from tokenizers_zoo.stores.tokens import STORE, TokenStore
from zoo_backbone.cli.retrieve import retrieve
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.measure.retrieval import RetrievalRecord
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.run import Run
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.retrieval import EmbeddingConfig, QueryConfig, query
from zoo_backbone.use.retrieval import index as indexes
from zoo_backbone.use.retrieval.embed import Embedder, check_via, unit
from zoo_backbone.use.retrieval.index import Index, build
from zoo_backbone.use.retrieval.query import CORRECT, chance, evaluate_retrieval, query_keys, weighted_sum

VECTORS = "together.safetensors"
zoo, refused = partial(command_result, retrieve), partial(refusal, retrieve)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "small", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def index(world: World) -> Index:
    return build(Run.load(world.run), world.zoo, world.root / "index", EmbeddingConfig())


def loaded(world: World) -> AnyToAny:
    return AnyToAny.load(Run.load(world.run), world.zoo, device="cpu")


def stored_rows(world: World, name: str, count: int = 8) -> tuple[list[str], Any]:
    tokens = stored_tokens(world.root / "tokens", "test", name)
    rows = list(tokens.values())[:count]
    return list(tokens)[:count], rows if name == "letters" else np.stack(rows)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the files of an index."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "run.json")}


# ---------------------------------------------------------------- vectors


def test_vectors_of_the_encoder_are_the_mean_of_its_features(world: World) -> None:
    embedder = Embedder(loaded(world), EmbeddingConfig(space="plain"))
    encoder = FourMEncoder.from_run(world.run, world.zoo)
    _, tokens = stored_rows(world, "letters")
    features, mask = encoder.forward_features(*encoder.prepare({"letters": tokens}))
    expected = [row[token_mask].mean(0) for row, token_mask in zip(features, mask, strict=True)]
    embedder.fit(["letters"])
    assert np.allclose(embedder.embed("letters", tokens), unit(torch.stack(expected).numpy()), atol=1e-5)


def test_predicted_vectors_are_the_decoded_values_of_what_is_generated(world: World) -> None:
    embedder = Embedder(loaded(world), EmbeddingConfig(via="gist", space="plain"))
    _, tokens = stored_rows(world, "light")
    plan = TargetPlan(name="gist", temperature=0, steps=1)
    predicted = generate(load_model(world.run).eval(), {"light": tokens}, [plan], 0)["gist"]
    assert np.allclose(embedder.embed_raw("light", tokens), predicted.numpy() / 5)
    _, target_tokens = stored_rows(world, "gist")
    assert np.allclose(
        embedder.embed_raw("gist", target_tokens), target_tokens / 5
    )  # the target's tokens are not predicted


def test_the_space_is_fitted_to_training_samples_only(world: World, tmp_path: Path) -> None:
    """Without the test split the space is the same; without the training split fitting fails."""
    world_copy, means = copied(world, tmp_path / "world"), []
    for split in ("test", "train"):
        embedder = Embedder(loaded(world_copy), EmbeddingConfig(space="centred"))
        embedder.fit(NAMES)
        means.append(embedder.spaces["dark"].mean)
        shutil.rmtree(world_copy.root / "tokens" / split)
    assert np.array_equal(*means)
    with pytest.raises(ZooError, match="train"):
        Embedder(loaded(world_copy), EmbeddingConfig(space="centred")).fit(NAMES)


def test_an_unpaired_modality_is_refused_in_a_shared_space(world: World, tmp_path: Path) -> None:
    world_copy, generator = copied(world, tmp_path / "world"), np.random.default_rng(1)
    unpaired = {f"else-{i}": all_five(generator)["letters"] for i in range(9)}
    write(world_copy.root, world_copy.zoo, "train", "letters", unpaired)
    words = (world_copy.run, "--out", tmp_path / "out", "--modalities", "light,letters,dark")
    for command in ("build", "eval"):
        text = refused(command, *words, error=ConfigError)
        assert text.startswith("letters") and "--space whitened" in text and not (tmp_path / "out").exists()
    assert zoo("build", *words, "--space", "whitened").exception is None


# ---------------------------------------------------------------- the index


def test_an_index_holds_every_modality_and_all_together(world: World, index: Index) -> None:
    assert index.names == list(NAMES) and index.keys == world.keys
    assert len(index.keys_of("letters")) == 28 and "test-003" not in index.keys_of("letters")
    config = load_config(index.folder)
    assert tuple(config["embedding"]["modalities"]) == NAMES
    embedder = index.embedder(loaded(world))
    vectors = {}
    for name in NAMES:
        keys, tokens = stored_rows(world, name, 2)
        assert keys == world.keys[:2]
        vectors[name] = embedder.embed(name, tokens)
        hit_lists = index.search(vectors[name], 1, name)
        assert [hits[0].cosine for hits in hit_lists] == pytest.approx([1, 1], abs=1e-5)
    hit_lists = index.search(unit(sum(vectors.values())), 1)  # type: ignore[arg-type]
    assert [(hits[0].key, round(hits[0].cosine, 4)) for hits in hit_lists] == [("test-000", 1), ("test-001", 1)]


def test_an_index_is_refused_after_its_backbone_or_tokenizer_changed(world: World, tmp_path: Path) -> None:
    world_copy, folder, numbers = copied(world, tmp_path / "world"), tmp_path / "index", tmp_path / "numbers"
    words = ("build", world_copy.run, "--modalities", "light,dark", "--space", "centred", "--out")
    predicted = (*words, numbers, "--via", "gist")
    for command in ((*words, folder), predicted):
        assert zoo(*command).exception is None
    model, config = load_model(world_copy.run), load_config(world_copy.run)
    with torch.no_grad():
        model.encoder_norm.weight.mul_(1.01)
    save_model(model, world_copy.run, {key: config[key] for key in ("train", "fingerprints")})
    query = ("query", folder, "--keys", "test-000", "--input", "light")
    assert Index(folder).fingerprint[:12] in refused(*query, error=CheckpointError)
    assert "fingerprint" in refused(*words, folder, error=FolderError)
    save_checkpoint(world_copy.zoo["gist"].checkpoint, {"x": torch.ones(1)}, {"class": "Numbers"}, "Numbers.")
    for command in (predicted, ("eval", *predicted[1:])):
        assert "gist" in refused(*command, error=DataError)


def test_an_index_of_changed_samples_is_refused(world: World, tmp_path: Path) -> None:
    world_copy, words = copied(world, tmp_path / "world"), ("--modalities", "light", "--space", "plain")
    build_words = ("build", world_copy.run, "--out", tmp_path / "index", *words)
    assert zoo(*build_words).exception is None
    column = TokenStore(world_copy.root / "tokens").open("test", "light").metadata
    rows = list(stored_tokens(world_copy.root / "tokens", "test", "light").values())
    reversed_tokens(world_copy.root / "tokens", "test", "light")
    assert "samples was" in refused(*build_words, error=FolderError)
    for keys in ([f"new-{key}" for key in world.keys], world.keys[:-1]):
        shutil.rmtree(world_copy.root / "tokens" / "test")
        write_tokens(world_copy.root / "tokens", "test", column, dict(zip(keys, rows, strict=False)), keys=keys)
        assert "samples was" in refused(*build_words, error=FolderError)


def test_crops_are_ignored_in_favour_of_whole_samples(world: World, tmp_path: Path) -> None:
    """The space, the index, queries and recall are the same as without crops."""
    world_copy, results = copied(world, tmp_path / "world"), list[Any]()
    tokens, words = world_copy.root / "tokens", ("--split", "train", "--modalities", "light,letters,dark")
    samples_by_modality = {name: stored_tokens(tokens, "train", name) for name in NAMES}
    for crops in (1, 3):
        shutil.rmtree(tokens / "train")
        (tokens / STORE).unlink()
        for name, samples in samples_by_modality.items():
            rows = list(samples.values())
            views = {key: [rows[(n + 7 * view) % len(rows)] for view in range(3)] for n, key in enumerate(samples)}
            write_tokens(tokens, "train", TokenMetadata.of(world_copy.zoo[name], {}), views if crops > 1 else samples,
                         crops=crops, keys=list(samples_by_modality["light"]) if name == "light" else None)  # fmt: skip
        folder, out = tmp_path / f"index{crops}", tmp_path / f"eval{crops}"
        assert zoo("build", world_copy.run, "--out", folder, *words).exception is None
        options = ("--keys", "train-003,train-150", "--input", "letters", "--find", "light", "--exclude-self")
        answer = zoo("query", folder, *options)
        assert answer.exception is None
        assert zoo("eval", world_copy.run, "--out", out, "--galleries", 0, *words).exception is None
        pairs = read_table(out / "retrieval.json")["pairs"]
        results.append(({**bytes_of(folder), "config.json": b""}, answer.output, pairs))
    assert results[0] == results[1]


def test_a_killed_build_gives_the_same_bytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This also works if the run was moved; a damaged file is written again."""
    uninterrupted, folder, run = tmp_path / "whole", tmp_path / "index", tmp_path / "run"
    shutil.copytree(world.run, run)
    Run.load(world.run).save(run)
    build(Run.load(run), world.zoo, uninterrupted, EmbeddingConfig())
    write_file = indexes.write_vectors

    def killed(path: Path, *arguments: Any) -> str:
        if path.name == "of-gist.safetensors":
            raise KeyboardInterrupt
        return write_file(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(indexes, "write_vectors", killed)
        build(Run.load(world.run), world.zoo, folder, EmbeddingConfig())
    assert {path.stem for path in folder.glob("of-*")} == {"of-light", "of-dark", "of-letters"}
    assert "no finished index" in refused("query", folder, "--keys", "test-000")
    (folder / "of-dark.safetensors").write_bytes(b"IxF")
    embedded: list[tuple[str, bool]] = []
    embed_stored = Embedder.embed_stored

    def recording_embed(self: Embedder, data: Any, name: str, *arguments: Any, raw: bool = False) -> Any:
        embedded.append((name, raw))
        return embed_stored(self, data, name, *arguments, raw=raw)

    monkeypatch.setattr(Embedder, "embed_stored", recording_embed)
    build(Run.load(run), world.zoo, folder, EmbeddingConfig())
    assert embedded == [("dark", False), ("gist", False), ("raw", False)], "the space is not fitted again"
    assert bytes_of(folder) == bytes_of(uninterrupted)


def test_an_index_of_a_moved_run_is_searched(world: World, index: Index, tmp_path: Path) -> None:
    folder, old, new = tmp_path / "index", tmp_path / "old", tmp_path / "new"
    shutil.copytree(world.run, old)
    Run.load(world.run).save(old)
    assert zoo("build", old, "--out", folder).exception is None
    old.rename(new)
    words = ("query", folder, "--keys", "test-004", "--input", "dark")
    assert "--run" in refused(*words, error=CheckpointError)
    expected = zoo("query", index.folder, *words[2:])
    moved = zoo(*words, "--run", new, "--out", tmp_path / "found")
    assert moved.exception is None and moved.output.startswith(expected.output)
    assert (tmp_path / "found" / "hits.png").is_file()


@pytest.mark.parametrize("k", [1, 10, 4000])
def test_search_in_blocks_is_search_of_all_at_once(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (torch.from_numpy(unit(rng.standard_normal((count, 16)))) for count in (3100, 50))
    all_cosines = queries @ vectors.T
    expected = all_cosines.topk(min(k, len(vectors)))
    for block_bytes in (1, 4 * 50 * 7, 4 * 50 * 3100, 1 << 30):
        monkeypatch.setattr(indexes, "BLOCK_BYTES", block_bytes)
        cosines, rows = indexes.nearest(vectors, queries, k)
        assert torch.allclose(cosines, expected.values, atol=1e-6)
        assert torch.allclose(all_cosines.gather(1, rows), cosines, atol=1e-6)
        assert all(len(row.unique()) == expected.indices.shape[1] for row in rows)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF2,Flat"])
def test_faiss_finds_what_the_index_finds(index: Index, factory: str) -> None:
    queries = index.vectors("light")[:4].numpy()
    library = index.to_faiss("letters", factory)
    cosines, rows = library.search(queries, 1)
    (expected, *_), *_ = index.search(queries, 1, "letters")
    assert library.ntotal == index.size("letters") == 28
    assert index.keys_of("letters")[rows[0, 0]] == expected.key and cosines[0, 0] == pytest.approx(expected.cosine)


# ---------------------------------------------------------------- queries


def test_a_weighted_sum_by_hand() -> None:
    x, y = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    assert np.allclose(weighted_sum({"a": x, "b": y}, {}), [[0.5**0.5, 0.5**0.5]])
    assert np.allclose(weighted_sum({"a": x, "b": y}, {"a": 3.0, "b": -4.0}), [[0.6, -0.8]])
    assert np.allclose(weighted_sum({"a": x, "b": y}, {"b": 0.0}), x)
    with pytest.raises(ConfigError, match="--weights"):
        weighted_sum({"a": x, "b": x}, {"b": -1.0})


def test_one_modality_finds_the_same_sample_by_another(world: World, index: Index) -> None:
    results = query_keys(index, loaded(world), world.keys[:3], ["dark"], QueryConfig(k=4, find="light"))
    assert [result.hits[0].key for result in results] == world.keys[:3]
    assert all(len(result.hits) == 4 for result in results)
    cosines = [hit.cosine for hit in results[0].hits]
    assert cosines == sorted(cosines, reverse=True)
    query = QueryConfig(k=4, find="light", exclude_self=True)
    without_self = query_keys(index, loaded(world), world.keys[:3], ["dark"], query)
    assert [hit.key for hit in without_self[0].hits][:3] == [hit.key for hit in results[0].hits][1:]
    assert len(without_self[0].hits) == 4


def test_exclude_self_ignores_equal_keys_of_other_splits(world: World, tmp_path: Path) -> None:
    """Another split may use the same key for another sample; it is not excluded."""
    world_copy = copied(world, tmp_path / "world")
    keys, tokens = stored_rows(world_copy, "light", 30)
    shutil.rmtree(world_copy.root / "tokens/train")
    metadata = TokenMetadata.of(world_copy.zoo["light"], {})
    write_tokens(world_copy.root / "tokens", "train", metadata, dict(zip(keys, tokens[::-1], strict=True)), keys=keys)
    config = EmbeddingConfig(space="plain", modalities=("light",))
    index = build(Run.load(world_copy.run), world_copy.zoo, tmp_path / "index", config)
    for split, without in (("", 1), ("test", 1), ("train", 0)):
        query = QueryConfig(k=30, split=split, exclude_self=True)
        (result,) = query_keys(index, loaded(world_copy), keys[:1], ["light"], query)
        assert len(result.hits) == 30 - without and (keys[0] in {hit.key for hit in result.hits}) == (not without)


def test_files_are_queries(world: World, index: Index, tmp_path: Path) -> None:
    (tmp_path / "word.txt").write_text("fade")
    out = tmp_path / "found"
    words = ("query", index.folder, "-k", 3, "--out", out, "--input")
    result = zoo(*words, f"letters={tmp_path / 'word.txt'}")
    assert result.exception is None, result.exception
    lines = result.output.splitlines()
    assert lines[0] == "query: letters of files" and lines[1].split() == ["rank", "sample", "cosine"]
    results = read_table(out / "hits.json")
    (answer,) = results["queries"]
    assert [hit["key"] for hit in answer["hits"]] == [line.split()[1] for line in lines[2:5]]
    embedder = index.embedder(loaded(world))
    expected = index.search(embedder.embed("letters", world.zoo["letters"].encode(["fade"])), 3)
    assert [hit["cosine"] for hit in answer["hits"]] == pytest.approx([hit.cosine for hit in expected[0]])
    assert zoo(*words, "letters='fade'").output == result.output, "a text instead of a file"
    cells = cells_of(out / "hits.png")  # the query is text; hits are images
    assert cells is not None and [cell is None for cell in cells[0]] == [True, False, False, False]
    assert zoo(*words, "letters=fade").output == result.output
    assert "no picture" in zoo(*words, "letters='fade'", "--find", "letters").output
    assert not (out / "hits.png").exists()


def test_sample_keys_are_queries_on_the_command_line(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "found"
    words = ("query", index.folder, "--keys", "test-001", "--keys", "test-004", "--input", "raw,dark", "-k", 99)
    result = zoo(*words, "--weights", "raw=0.25", "--find", "letters", "--out", out)
    assert result.exception is None
    results = read_table(out / "hits.json")
    assert [answer["key"] for answer in results["queries"]] == ["test-001", "test-004"]
    assert [len(answer["hits"]) for answer in results["queries"]] == [28, 28]
    assert (results["find"], results["weights"]) == ("letters", {"raw": 0.25})
    all_modalities = zoo("query", index.folder, "--keys", "test-001", "-k", 1)
    assert all_modalities.output.splitlines()[0] == f"query: {' + '.join(NAMES)} of test-001"
    assert all_modalities.output.splitlines()[2].split() == ["1", "test-001", "1.000"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("--input letter=FILE", UnknownNameError, "letters"),
        ("--input light", click.UsageError, "--input light"),
        ("--input light=absent.npy", ZooError, "absent.npy"),
        ("--input letters=FILE --find lihgt", UnknownNameError, "light"),
        ("--input letters=FILE --weights dark=1", ConfigError, "--weights dark"),
        ("--input letters=FILE --weights letters=much", click.UsageError, "--weights letters=much"),
        ("--input letters=FILE --exclude-self", click.UsageError, "--exclude-self"),
        ("--keys test-000 --input letters=FILE", click.UsageError, "--input"),
        ("--keys tset-000 --input light", UnknownNameError, "test-000"),
        ("--keys test-003 --input light,letters", DataError, "'test-003' has no letters"),
        ("--keys test-003 --input light --split tset", DataError, "tset"),
        ("", click.UsageError, "--input"),
    ],
)
def test_a_bad_query_is_refused(index: Index, tmp_path: Path, words: str, error: type[Exception], message: str) -> None:
    (tmp_path / "word.txt").write_text("fade")
    parts = words.replace("FILE", str(tmp_path / "word.txt")).split()
    assert message in refused("query", index.folder, *parts, "--out", tmp_path / "out", error=error)
    assert not (tmp_path / "out").exists()


def test_classes_are_not_vectors_of_numbers() -> None:
    mood = ModalitySpec(name="mood", summary="a mood", value=ValueSpec(kind="text", classes=("calm", "wild")),
                        layout=VectorLayout(length=1), vocab_size=2)  # fmt: skip
    gist = dataclasses.replace(mood, name="gist", value=ValueSpec(shape=(4,)))
    check_via(EmbeddingLayout([mood, gist]), "gist")
    with pytest.raises(ConfigError, match="--via mood"):
        check_via(EmbeddingLayout([mood, gist]), "mood")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("command", ["build", "query", "query --keys", "eval"])
def test_the_networks_run_on_the_device(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    name, *keys = command.split()
    words = (index.folder, *(("--keys", "test-000") if keys else ("--input", "letters='fade'")))
    result = zoo(name, *(words if name == "query" else (world.run, "--out", tmp_path)), "--device", "cuda")
    assert re.search("CUDA|NVIDIA", str(result.exception))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--via light", "--via light"), ("--modalities lihgt", "light"), ("--split tset", "tset"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["build", "eval"])
def test_bad_vectors_are_refused(world: World, tmp_path: Path, command: str, words: str, message: str) -> None:
    assert message in refused(command, world.run, "--out", tmp_path / "out", *words.split())
    assert not list(tmp_path.iterdir())


def test_by_default_modalities_are_those_that_the_store_has(world: World, tmp_path: Path) -> None:
    """A run over several stores may have modalities that its own store lacks."""
    world_copy = copied(world, tmp_path / "world")
    shutil.rmtree(world_copy.root / "tokens" / "train" / "letters")
    shutil.rmtree(world_copy.root / "tokens" / "test" / "gist")
    words = ("build", world_copy.run, "--out")
    assert zoo(*words, tmp_path / "index").exception is None
    assert Index(tmp_path / "index").names == ["light", "dark", "raw"]
    assert zoo(*words, tmp_path / "plain", "--space", "plain").exception is None
    assert Index(tmp_path / "plain").names == ["light", "dark", "letters", "raw"], "nothing is fitted"
    assert zoo("eval", world_copy.run, "--galleries", 0).exception is None
    pairs = read_table(world_copy.run / "retrieval" / "retrieval.json")["pairs"]
    assert {pair["query"] for pair in pairs} == {"light", "dark", "raw"}


def with_flipped_bit(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    return bytes(data)


def test_a_damaged_index_is_named(world: World, index: Index, tmp_path: Path) -> None:
    keys = read_table(index.folder / "keys.json")
    assert keys == {"keys": world.keys, "lacks": {name: [3, 7] if name == "letters" else [] for name in NAMES}}
    damages: list[tuple[str, bytes]] = [
        (VECTORS, b"x"), (VECTORS, with_flipped_bit(index.folder / VECTORS)),
        (VECTORS, (index.folder / "of-letters.safetensors").read_bytes()),
        ("keys.json", b"{"), ("config.json", b'{"class": "Probe"}'), ("model.safetensors", b"x"),
        ("keys.json", table_text({"keys": world.keys, "lacks": {"light": [len(world.keys)]}}).encode()),
    ]  # fmt: skip
    for number, (name, damage) in enumerate(damages):
        folder = tmp_path / str(number)
        shutil.copytree(index.folder, folder)
        (folder / name).write_bytes(damage)
        words = ("query", folder, "--keys", "test-000", "--input", "light")
        assert str(folder) in refused(*words, error=CheckpointError)
        assert str(folder) in refused("build", world.run, "--out", folder)
    assert zoo("build", world.run, "--out", folder, "--overwrite").exit_code == 0
    assert zoo(*words).exit_code == 0


def test_missing_faiss_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ZooError, match=r"zoo-backbone\[retrieval\]"):
        index.to_faiss()
    assert zoo("query", index.folder, "--keys", "test-000").exception is None, "queries do not need it"


# ---------------------------------------------------------------- recall


@pytest.fixture(scope="module")
def evaluated(world: World) -> tuple[Path, dict[str, Any]]:
    out = world.root / "recall"
    return out, as_json(evaluate_retrieval(Run.load(world.run), world.zoo, out, EmbeddingConfig()))


def entry_of(result: dict[str, Any], query: str, target: str) -> dict[str, Any]:
    (entry,) = [entry for entry in result["pairs"] if (entry["query"], entry["target"]) == (query, target)]
    return entry


def test_recall_and_chance_are_reported_for_every_ordered_pair(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, result = evaluated
    assert read_table(out / "retrieval.json") == result
    assert len(result["pairs"]) == len(NAMES) * (len(NAMES) - 1)
    light_dark, letters = entry_of(result, "light", "dark"), entry_of(result, "dark", "letters")
    assert (light_dark["samples"], letters["samples"]) == (30, 28)
    assert light_dark["chance"] == as_json(chance(30)) and chance(30).median_rank == 15.5
    assert light_dark["recall"]["1"] > 0.9 and light_dark["median_rank"] == 1
    mean = np.mean([entry["recall"]["5"] for entry in result["pairs"]])
    assert result["mean"]["recall"]["5"] == pytest.approx(mean, abs=1e-5)


def test_results_of_another_split_are_stored_apart(world: World, tmp_path: Path) -> None:
    world_copy = copied(world, tmp_path / "world")
    words = ("eval", world_copy.run, "--modalities", "light,dark", "--galleries", 0)
    assert zoo(*words).exception is None
    test_results = (world_copy.run / "retrieval" / "retrieval.json").read_bytes()
    assert "not held-out" in zoo(*words, "--split", "train").output
    train_results = read_table(world_copy.run / "retrieval-train" / "retrieval.json")
    assert train_results["identity"]["split"] == "train" and train_results["pairs"][0]["samples"] == 160
    assert (world_copy.run / "retrieval" / "retrieval.json").read_bytes() == test_results


def test_galleries_frame_the_correct_hit(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, result = evaluated
    assert [(entry["query"], entry["target"]) for entry in result["galleries"]][:3] == [
        ("light", "dark"), ("dark", "light"), ("raw", "dark"),
    ]  # fmt: skip
    gallery = result["galleries"][0]
    assert gallery["columns"] == ["query: light", "1", "2", "3", "4", "5"] and len(gallery["rows"]) == 4
    with Image.open(out / gallery["picture"]) as sheet:
        boxes = json.loads(sheet.text["cells"])  # type: ignore[attr-defined]
        for row, row_boxes in zip(gallery["rows"], boxes, strict=True):
            for key, (left, top, _, _) in zip(row["hits"], row_boxes[1:], strict=True):
                corner = "#{:02x}{:02x}{:02x}".format(*sheet.convert("RGB").getpixel((left, top)))  # type: ignore[misc]
                assert (corner == CORRECT) == (key == row["key"])
    texts = next(entry for entry in result["galleries"] if entry["target"] == "letters")
    for row in texts["rows"]:
        marked = [cell.startswith("[correct] ") for cell in row["cells"][1:]]
        assert marked == [key == row["key"] for key in row["hits"]]


def test_results_never_stand_beside_pictures_of_another_evaluation(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eval_again(space: str) -> RetrievalRecord:
        config = EmbeddingConfig(space=space, modalities=("light", "dark"))  # type: ignore[arg-type]
        return evaluate_retrieval(Run.load(world.run), world.zoo, tmp_path, config, samples=8, galleries=1)

    def write(*arguments: Any) -> dict[str, Any]:
        assert not (tmp_path / "retrieval.json").exists()
        raise KeyboardInterrupt

    eval_again("centred")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(query, "write_gallery", write)
        eval_again("plain")
    assert not (tmp_path / "retrieval.json").exists()
    assert as_json(eval_again("plain")) == read_table(tmp_path / "retrieval.json")


@pytest.mark.parametrize("change", [
    lambda x: {}, lambda x: {"vectors": x[:-1]}, lambda x: {"vectors": x[:, 0]}, lambda x: {"vectors": x.half()},
    lambda x: {"vectors": x[:, :3]}, lambda x: {"vectors": x / 0},
])  # fmt: skip
def test_untrusted_vectors_with_a_right_checksum_are_checked(
    world: World, index: Index, tmp_path: Path, change: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    folder = Path(shutil.copytree(index.folder, tmp_path / "index"))
    tensors = change(load((folder / VECTORS).read_bytes())["vectors"])
    (folder / VECTORS).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    record = read_table(folder / "run.json")
    record["finished"]["files"][VECTORS] = file_digest(folder / VECTORS)
    write_table(folder / "run.json", record)
    refused("query", folder, "--run", world.run, "--keys", "test-000", error=CheckpointError)
