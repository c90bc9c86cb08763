"""Retrieval from the run to what is found: vectors, indexes on disk, queries, recall, and the commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from retrieval_world import NAMES, SOURCES, World, all_five, copied, make_world
from small_modalities import installed, write
from token_stores import rewrite_tokens, stored_tokens, write_tokens

from tokenizers_zoo.checkpoint import fingerprint, load_config, save_checkpoint
from tokenizers_zoo.data.token_shard import TokenMetadata
from tokenizers_zoo.data.tokens import STORE
from tokenizers_zoo.errors import CheckpointError, ConfigError, ZooError
from tokenizers_zoo.io import write_json
from tokenizers_zoo.report.pictures import cells_of
from tokenizers_zoo.spec import ModalitySpec, ValueSpec, VectorLayout
from zoo_backbone.checkpoint import load_model, save_model
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.evaluation.gallery import CELL
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.ml4m.folders import note_codecs
from zoo_backbone.model import FourM
from zoo_backbone.retrieval import building, evaluate, vector_files
from zoo_backbone.retrieval.building import build
from zoo_backbone.retrieval.cli import retrieve
from zoo_backbone.retrieval.config import EmbeddingConfig, RecallConfig, Search
from zoo_backbone.retrieval.embedding import Embedder, Samples, check_via
from zoo_backbone.retrieval.evaluate import evaluate_retrieval
from zoo_backbone.retrieval.index import Index
from zoo_backbone.retrieval.pictures import RIGHT, framed, write_hits
from zoo_backbone.retrieval.query import combined, query_keys, query_values
from zoo_backbone.retrieval.recall import chance
from zoo_backbone.retrieval.spaces import unit
from zoo_backbone.retrieval.vector_files import faiss, index_of
from zoo_backbone.run import Run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "small", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def index(world: World) -> Index:
    return build(world.run, world.zoo, world.root / "index", config=EmbeddingConfig())


def zoo(world: World, *words: Any) -> Result:
    """Run `zoo retrieve WORDS`."""
    return CliRunner().invoke(retrieve, [str(word) for word in words], obj={"registry": None, "debug": False})


def refused(world: World, *words: Any) -> str:
    """The one line that a command complains with."""
    result = zoo(world, *words)
    assert isinstance(result.exception, ZooError), (result.output, result.exception)
    text = str(result.exception)
    assert "\n" not in text
    return text


def stored(world: World, name: str, count: int = 8) -> tuple[list[str], Any]:
    tokens = stored_tokens(world.root / "tokens", "test", name)
    rows = list(tokens.values())[:count]
    return list(tokens)[:count], rows if name == "letters" else np.stack(rows)


# ---------------------------------------------------------------- vectors


def test_vectors_of_the_encoder_are_the_mean_of_its_features(world: World) -> None:
    embedder = Embedder(world.run, world.zoo, EmbeddingConfig(space="plain"))
    encoder = FourMEncoder.from_run(world.run, world.zoo)
    _, tokens = stored(world, "letters")
    features, mask = encoder.forward_features(*encoder.prepare({"letters": tokens}))
    expected = [row[used].mean(0) for row, used in zip(features, mask, strict=True)]
    embedder.fit(["letters"], lambda total: pytest.fail("nothing is fitted"))
    assert np.allclose(embedder.embed("letters", tokens), unit(torch.stack(expected).numpy()), atol=1e-5)


def test_predicted_vectors_are_the_decoded_values_of_what_is_generated(world: World) -> None:
    embedder = Embedder(world.run, world.zoo, EmbeddingConfig(embedding="predicted", via="gist", space="plain"))
    _, tokens = stored(world, "light")
    plan = TargetPlan(name="gist", temperature=0, steps=1)
    made = generate(load_model(world.run).eval(), {"light": tokens}, [plan], 0)["gist"]
    assert np.allclose(embedder.raw("light", tokens), made.numpy() / 5)
    _, own = stored(world, "gist")
    assert np.allclose(embedder.raw("gist", own), own / 5)  # its own tokens are not predicted


def test_the_space_is_fitted_to_training_samples_only(world: World) -> None:
    """Without the training split there is nothing to fit to; without the test split the space is the same."""
    spaces = []
    for missing in ("test", "train"):
        root = world.root / f"without-{missing}"
        shutil.copytree(world.root / "tokens", root, ignore=shutil.ignore_patterns(missing))
        embedder = Embedder(world.run, world.zoo, EmbeddingConfig(space="centred"))
        object.__setattr__(embedder.run, "tokens", root)
        if missing == "train":
            with pytest.raises(ZooError, match="no tokens of a split 'train'"):
                embedder.fit(NAMES, lambda total: building.progress_bar("fit", total))
        else:
            embedder.fit(NAMES, lambda total: building.progress_bar("fit", total))
            spaces.append(embedder.spaces["dark"].mean)
    whole = Embedder(world.run, world.zoo, EmbeddingConfig(space="centred"))
    whole.fit(NAMES, lambda total: building.progress_bar("fit", total))
    assert np.array_equal(spaces[0], whole.spaces["dark"].mean)


def test_a_modality_that_is_never_beside_another_is_refused_where_the_space_is_shared(
    world: World, tmp_path: Path
) -> None:
    other, generator = copied(world, tmp_path / "world"), np.random.default_rng(1)
    write(other.root, other.zoo, "train", "letters", {f"else-{i}": all_five(generator)["letters"] for i in range(9)})
    words = (other.run, "--out", tmp_path / "out", "--modalities", "light,letters,dark")
    for command in ("build", "eval"):
        text = refused(world, command, *words)
        assert text.startswith(
            "letters: --space shared expected training samples that have it beside another of light,"
        )
        assert "none of the 169 has; use --space whitened, or leave it out" in text and not (tmp_path / "out").exists()
    assert zoo(world, "build", *words, "--space", "whitened").exception is None


@pytest.mark.parametrize("command", ["build", "eval"])
def test_predicted_vectors_need_the_tokenizer_of_the_training(world: World, tmp_path: Path, command: str) -> None:
    other = copied(world, tmp_path / "world")
    save_checkpoint(other.zoo["gist"].checkpoint, {"x": torch.ones(1)}, {"class": "Numbers"}, "Numbers.")
    words = ("--out", tmp_path / "out", "--modalities", "light,dark", "--embedding", "predicted", "--via", "gist")
    text = refused(world, command, other.run, *words)
    assert text.startswith("gist: the model was trained on codec") and not (tmp_path / "out").exists()


def test_a_class_is_no_vector_of_numbers() -> None:
    mood = ModalitySpec(name="mood", summary="a mood", value=ValueSpec(kind="text", classes=("calm", "wild")),
                        layout=VectorLayout(length=1), vocab_size=2)  # fmt: skip
    gist = ModalitySpec(name="gist", summary="numbers", value=ValueSpec(shape=(4,)), layout=VectorLayout(length=4),
                        vocab_size=6)  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"--via mood: expected .* and mood has values of kind text; this run has gist$"
    ):
        check_via(EmbeddingLayout([mood, gist]), "mood")
    with pytest.raises(ConfigError, match="this run has none: use --embedding encoder"):
        check_via(EmbeddingLayout([mood]), "mood")
    check_via(EmbeddingLayout([mood, gist]), "gist")
    with pytest.raises(ConfigError, match=r"and gist is an input only; this run has none: use --embedding encoder$"):
        check_via(EmbeddingLayout([mood, gist], ModelConfig(inputs_only=("gist",))), "gist")


# ---------------------------------------------------------------- the index


def test_an_index_holds_every_modality_and_all_together(world: World, index: Index) -> None:
    assert index.names == list(NAMES) and index.keys == world.keys
    assert len(index.keys_of("letters")) == 28 and "test-003" not in index.keys_of("letters")
    config = load_config(index.folder)
    assert (config["together"], config["modalities"]["letters"], config["search"]) == (30, 28, "exact")
    embedder = index.embedder(world.zoo)
    vectors = {}
    for name in NAMES:
        keys, tokens = stored(world, name, 2)
        assert keys == world.keys[:2]
        vectors[name] = embedder.embed(name, tokens)
        found = index.search(vectors[name], 1, name)
        assert [hits[0].cosine for hits in found] == pytest.approx([1, 1], abs=1e-5)
    hits = index.search(unit(sum(vectors.values())), 1)  # type: ignore[arg-type]
    assert [(found[0].key, round(found[0].cosine, 4)) for found in hits] == [("test-000", 1), ("test-001", 1)]
    assert oct(index.folder.stat().st_mode)[-3:] == "755"


def test_building_again_gives_the_same_bytes(world: World, index: Index) -> None:
    again = build(world.run, world.zoo, world.root / "again", config=EmbeddingConfig())
    for path in index.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


def test_an_index_that_is_there_is_kept_or_replaced_as_asked(world: World, index: Index, tmp_path: Path) -> None:
    place = tmp_path / "index"
    shutil.copytree(index.folder, place)
    before = {path.name: path.stat().st_ino for path in place.iterdir()}
    build(world.run, world.zoo, place, config=EmbeddingConfig())
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == before
    with pytest.raises(ConfigError, match=r"with embedding\.space = shared, not centred; .*--overwrite"):
        build(world.run, world.zoo, place, config=EmbeddingConfig(space="centred"))
    with pytest.raises(ConfigError, match=r"with modalities = (\w+, )+\w+, not light; replace it with --overwrite"):
        build(world.run, world.zoo, place, config=EmbeddingConfig(), modalities=["light"])
    build(world.run, world.zoo, place, config=EmbeddingConfig(space="centred"), overwrite=True)
    assert Index(place).embedding.space == "centred" and [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    for folder in (tmp_path / "mine", world.run):
        with pytest.raises(ConfigError, match="that is no index, or a damaged one: give another folder") as told:
            build(world.run, world.zoo, folder, config=EmbeddingConfig())
        assert "--overwrite" not in str(told.value), "it would not replace that"
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        build(world.run, world.zoo, tmp_path / "mine", config=EmbeddingConfig(), overwrite=True)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"
    (place / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"index: holds notes\.txt, which is no part of an index"):
        build(world.run, world.zoo, place, config=EmbeddingConfig(), overwrite=True)
    assert (place / "notes.txt").read_text() == "mine" and Index(place).embedding.space == "centred"


Rows = tuple[list[str], list[Any]]
"""Keys, and tokens of each."""


def rewrite(world: World, light: Rows, letters: Rows) -> None:
    """Store other samples in the test split."""
    shutil.rmtree(world.root / "tokens" / "test")
    for name, (keys, tokens) in (("light", light), ("letters", letters)):
        metadata = TokenMetadata.of(world.zoo[name], {})
        every = sorted({*light[0], *letters[0]}) if name == "light" else None
        write_tokens(world.root / "tokens", "test", metadata, dict(zip(keys, tokens, strict=True)), keys=every)


def test_an_index_of_other_samples_is_not_kept(world: World, tmp_path: Path) -> None:
    other, place = copied(world, tmp_path / "world"), tmp_path / "index"
    words = ("build", other.run, "--out", place, "--modalities")
    (keys, maps), (lettered, texts) = stored(other, "light", 30), stored(other, "letters", 28)
    first, second = texts[0], texts[1]
    texts = [first[:2], second[:3], *texts[2:]]
    rewrite(other, (keys, maps), (lettered, texts))
    assert zoo(world, *words, "light,letters").exception is None
    before = (place / "config.json").stat().st_ino
    assert zoo(world, *words, "letters,light").exception is None, "asked for the other way round"
    assert (place / "config.json").stat().st_ino == before
    changes: list[tuple[Rows, Rows]] = [
        ((keys[:-1], maps[:-1]), (lettered, texts)),
        (([f"new-{key}" for key in keys], maps), ([f"new-{key}" for key in lettered], texts)),
        ((keys, [*maps[1:], maps[0]]), (lettered, texts)),
        ((keys, maps), (lettered, [np.append(first[:2], second[0]), second[1:3], *texts[2:]])),
    ]
    for light, letters in changes:
        rewrite(other, light, letters)
        text = refused(world, *words, "light,letters")
        assert f"{place}: holds an index of other samples than {other.root / 'tokens' / 'test'} has now" in text
        assert "replace it with --overwrite" in text
    rewrite(other, *changes[0])
    assert zoo(world, *words, "light,letters", "--overwrite").exception is None
    assert Index(place).size("light") == 29


def test_a_killed_build_leaves_nothing_that_counts_and_begins_again(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for good, without any clearing up, just before the rename."""
    place = tmp_path / "index"
    reader = os.fork()
    if reader == 0:  # pragma: no cover
        monkeypatch.setattr(building.os, "replace", lambda *paths: os._exit(9) if paths[1] == place else rename(*paths))
        build(world.run, world.zoo, place, config=EmbeddingConfig())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 9
    assert not place.exists() and len(list(tmp_path.iterdir())) == 1
    other = tmp_path / ".index.more.building"  # of an index that is being built
    other.mkdir()
    build(world.run, world.zoo, place, config=EmbeddingConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "index"]
    assert (place / "keys.json").read_bytes() == (index.folder / "keys.json").read_bytes()


rename = os.replace


@pytest.mark.parametrize("search", ["exact", "approximate"])
def test_a_build_goes_on_after_a_kill(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: Search
) -> None:
    """To the same bytes, whether or not the run was moved meanwhile; what is damaged is made again."""
    whole, place, run = tmp_path / "whole", tmp_path / "index", tmp_path / "run"
    shutil.copytree(world.run, run)
    build(run, world.zoo, whole, config=EmbeddingConfig(), search=search)
    written = building.write_vectors

    def killed(path: Path, *given: Any) -> None:
        if path.name == "of-gist.faiss":
            os._exit(9)
        written(path, *given)

    reader = os.fork()
    if reader == 0:  # pragma: no cover
        monkeypatch.setattr(building, "write_vectors", killed)
        build(world.run, world.zoo, place, config=EmbeddingConfig(), search=search)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 9
    begun = tmp_path / ".index.building" / "new"
    finished = {"of-light.faiss", "of-dark.faiss", "of-letters.faiss"}
    assert {path.name for path in begun.glob("*.faiss")} == finished
    (begun / "of-dark.faiss").write_bytes(b"IxF")
    embedded: list[tuple[str, bool]] = []
    monkeypatch.setattr(Embedder, "embed_stored", spied(embedded))
    build(run, world.zoo, place, config=EmbeddingConfig(), search=search)
    assert embedded == [("dark", False), ("gist", False), ("raw", False)], "no space is fitted again"
    assert sorted(path.name for path in place.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "run", "whole"]


def spied(embedded: list[tuple[str, bool]]) -> Any:
    """`Embedder.embed_stored` that notes the modality, and whether it was to fit the space."""
    made = Embedder.embed_stored

    def embed(self: Embedder, data: Samples, name: str, *given: Any, raw: bool = False) -> Any:
        embedded.append((name, raw))
        return made(self, data, name, *given, raw=raw)

    return embed


def test_a_full_disk_is_told_in_one_line(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS wraps the system's error, as the text here."""
    written = faiss().write_index

    def full(index: Any, path: str) -> None:
        if "of-letters" in path:
            raise RuntimeError(f"Error in write_index: write error in {path}: 0 != 1 (No space left on device)")
        written(index, path)

    monkeypatch.setattr(faiss(), "write_index", full)
    text = refused(world, "build", world.run, "--out", tmp_path / "index")
    assert text.startswith(f"{tmp_path / 'index'}: the disk is full; what was finished is kept")
    names = {path.name for path in (tmp_path / ".index.building" / "new").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "of-light.faiss", "of-dark.faiss"}
    monkeypatch.undo()
    assert zoo(world, "build", world.run, "--out", tmp_path / "index").exception is None
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_another_build_begins_anew(world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that did not come to its end was of another space, and the next one of other modalities."""
    place = tmp_path / "index"

    def full(path: Path, *given: Any) -> None:
        raise OSError(28, "No space left on device")

    for space, names in (("centred", NAMES), ("shared", NAMES[::-1])):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(building, "write_vectors", full)
            build(world.run, world.zoo, place, config=EmbeddingConfig(space=space), modalities=names)  # type: ignore[arg-type]
        assert (tmp_path / ".index.building" / "new" / "config.json").is_file() and not place.exists()
    build(world.run, world.zoo, place, config=EmbeddingConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    for path in index.folder.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes(), path.name


def test_vectors_of_one_modality_at_a_time_are_held(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, alive = Embedder.embed_stored, list[Any]()

    def embed(self: Embedder, *given: Any, raw: bool = False) -> Any:
        if not raw:
            assert not [name for name in alive if name() is not None]
        found = made(self, *given, raw=raw)
        if not raw:
            alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Embedder, "embed_stored", embed)
    for search in ("exact", "approximate"):
        build(world.run, world.zoo, tmp_path / search, config=EmbeddingConfig(), search=search)  # type: ignore[arg-type]
    assert len(alive) == 2 * len(NAMES)


@pytest.mark.parametrize("search", ["exact", "approximate"])
def test_the_bars_of_a_build_come_to_their_end(
    world: World, search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All vectors are embedded, and for graphs linked, those of all modalities together included."""
    bars = list[list[int]]()

    @contextlib.contextmanager
    def bar(title: str, total: int) -> Iterator[Any]:
        bars.append([total, 0])

        def advance(count: int, title: str = "") -> None:
            bars[-1][1] += count

        yield advance

    monkeypatch.setattr(building, "progress_bar", bar)
    index = build(world.run, world.zoo, tmp_path / "index", config=EmbeddingConfig(), search=search)
    vectors = sum(map(index.size, index.names))
    assert all(total == done for total, done in bars)
    assert bars[-1][0] == (vectors if search == "exact" else 2 * vectors + index.size())


def test_how_far_a_graph_is_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is that of all vectors added in one go by one thread."""
    vectors = unit(np.random.default_rng(0).standard_normal((3000, 16)))
    library, told = faiss(), list[int]()
    monkeypatch.setattr(vector_files, "LOOK", 0.02)
    made = index_of(vectors, "approximate", told.append)
    assert len(told) > 3 and sum(told) == 3000 and min(told) >= 0 and max(told) < 3000
    plain = library.IndexHNSWFlat(16, vector_files.LINKS, library.METRIC_INNER_PRODUCT)
    plain.hnsw.efConstruction = vector_files.BUILD_WIDTH
    threads = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    plain.add(vectors)
    library.omp_set_num_threads(threads)
    assert np.array_equal(library.serialize_index(made), library.serialize_index(plain))
    monkeypatch.setattr(vector_files, "faiss", lambda: _Broken(library))
    with pytest.raises(AssertionError):
        index_of(vectors, "approximate")


class _Broken:
    """FAISS, whose graphs take no vectors."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def IndexHNSWFlat(self, dims: int, *given: Any) -> Any:
        return self.library.IndexHNSWFlat(dims + 1, *given)


def test_a_modality_that_no_sample_has_is_named_before_anything_is_embedded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copied(world, tmp_path / "world")
    rewrite_tokens(other.root / "tokens", "test", "letters", {})
    monkeypatch.setattr(Embedder, "embed_stored", lambda *given: pytest.fail("embedded"))
    text = refused(world, "build", other.run, "--out", tmp_path / "index")
    assert text == "letters: no sample of this split has it; leave it out of --modalities"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_keys_are_kept_once_and_an_earlier_index_opens(world: World, index: Index, tmp_path: Path) -> None:
    table = json.loads((index.folder / "keys.json").read_text())
    assert table == {"keys": world.keys, "lacks": {name: [3, 7] if name == "letters" else [] for name in NAMES}}
    place = tmp_path / "index"
    shutil.copytree(index.folder, place)
    earlier = {"": world.keys, **{name: index.keys_of(name) for name in NAMES}}
    write_json(place / "keys.json", earlier)
    opened = Index(place)
    assert opened.names == index.names and opened.keys == index.keys
    for name in NAMES:
        assert opened.keys_of(name) == index.keys_of(name) and opened.size(name) == index.size(name)
    words = ("--keys", "test-004", "--given", "dark", "--find", "letters", "-k", 30)
    assert zoo(world, "query", place, *words).output == zoo(world, "query", index.folder, *words).output
    assert zoo(world, "build", world.run, "--out", place).exception is None, "it is the same"
    assert json.loads((place / "keys.json").read_text()) == earlier
    for damage in ({"keys": world.keys}, {"keys": world.keys, "lacks": {"light": [30]}}, {"keys": 3, "lacks": {}},
                   {"keys": world.keys, "lacks": {"light": [1, 1]}}, {"keys": world.keys, "lacks": []},
                   {"keys": world.keys, "lacks": {"light": ["a"]}}):  # fmt: skip
        write_json(place / "keys.json", damage)
        text = refused(world, "query", place, *words)
        assert "index" in text and ("keys.json: damaged" in text or "does not describe" in text), text


def test_a_run_that_was_moved(world: World, index: Index, tmp_path: Path) -> None:
    place, old, new = tmp_path / "index", tmp_path / "old", tmp_path / "new"
    shutil.copytree(world.run, old)
    assert zoo(world, "build", old, "--out", place).exception is None
    old.rename(new)
    words = ("query", place, "--keys", "test-004", "--given", "dark")
    assert refused(world, *words) == f"{place}: its backbone was in {old}, which is gone; give --run FOLDER"
    expected = zoo(world, "query", index.folder, *words[2:])
    moved = zoo(world, *words, "--run", new, "--out", tmp_path / "found")
    assert moved.exception is None and moved.output.startswith(expected.output)
    assert (tmp_path / "found" / "hits.png").is_file()
    assert "no run here" in refused(world, *words, "--run", old)
    other = load_model(new)
    with torch.no_grad():
        other.encoder_norm.weight.mul_(1.01)
    config = load_config(new)
    shutil.copytree(new, tmp_path / "other")
    save_model(other, tmp_path / "other", {key: config[key] for key in ("train", "fingerprints")})
    assert "give the folder of that backbone with --run" in refused(world, *words, "--run", tmp_path / "other")
    # Built again at the new place it is the same index, which notes the place.
    vectors = (place / "together.faiss").stat().st_ino
    assert zoo(world, "build", new, "--out", place).exception is None
    assert (place / "together.faiss").stat().st_ino == vectors and Index(place).run == new
    assert str(new) in (place / "README.md").read_text() and str(old) not in (place / "README.md").read_text()
    assert zoo(world, *words).output == expected.output
    for path in build(new, world.zoo, tmp_path / "again", config=EmbeddingConfig()).folder.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes(), path.name


def test_of_crops_the_whole_samples_count(world: World, tmp_path: Path) -> None:
    """Under their plain keys, in the space, the index, queries and recall: as if there were no crops."""
    other, plain = copied(world, tmp_path / "world"), tmp_path / "plain"
    data, tokens = world.root / "data", other.root / "tokens"
    Run(tokens=tokens, data=data, registry=other.root / "registry.toml").save(other.run)
    words = ("--split", "train", "--modalities", "light,letters,dark")
    assert zoo(world, "build", other.run, "--out", plain, *words).exception is None
    asked = ("--keys", "train-003,train-150", "--given", "letters", "--find", "light", "--exclude-self", "--out")
    expected = zoo(world, "query", plain, *asked, tmp_path / "found")
    measured = [evaluated(world, other.run, tmp_path / "eval", *words)]
    whole = {name: stored_tokens(tokens, "train", name) for name in NAMES}
    shutil.rmtree(tokens / "train")
    (tokens / STORE).unlink()
    for name, samples in whole.items():
        rows = list(samples.values())
        views = {key: [rows[(n + 7 * view) % len(rows)] for view in range(3)] for n, key in enumerate(samples)}
        write_tokens(tokens, "train", TokenMetadata.of(other.zoo[name], {}), views, crops=3)
    place = tmp_path / "index"
    assert zoo(world, "build", other.run, "--out", place, *words).exception is None
    for path in plain.iterdir():
        if path.name != "config.json":  # which has the digest of the samples as they are stored
            assert path.read_bytes() == (place / path.name).read_bytes(), path.name
    before = (place / "config.json").stat().st_ino
    assert zoo(world, "build", other.run, "--out", place, *words).exception is None
    assert (place / "config.json").stat().st_ino == before
    result = zoo(world, "query", place, *asked, tmp_path / "found-again")
    assert result.exception is None and "#" not in result.output.replace("found-again", "found")
    assert result.output.replace("found-again", "found") == expected.output
    assert (tmp_path / "found-again" / "hits.png").read_bytes() == (tmp_path / "found" / "hits.png").read_bytes()
    measured.append(evaluated(world, other.run, tmp_path / "eval-again", *words))
    assert measured[0]["pairs"] == measured[1]["pairs"] and measured[0]["galleries"] == measured[1]["galleries"]
    assert [pair["samples"] for pair in measured[1]["pairs"]] == [160] * 6
    assert "unknown sample 'train-003#1'" in refused(world, "query", place, "--keys", "train-003#1")


def evaluated(world: World, run: Path, out: Path, *words: str) -> dict[str, Any]:
    """What `zoo retrieve eval` found."""
    assert zoo(world, "eval", run, "--out", out, "--galleries", 2, *words).exception is None
    return dict(json.loads((out / "retrieval.json").read_text()))


def test_figures_of_another_split_have_their_own_place(world: World, tmp_path: Path) -> None:
    other = copied(world, tmp_path / "world")
    words = ("eval", other.run, "--modalities", "light,dark", "--galleries", 0)
    assert zoo(world, *words).exception is None
    kept = (other.run / "retrieval" / "retrieval.json").read_bytes()
    result = zoo(world, *words, "--split", "train")
    assert result.output.endswith(f"all of it: {other.run / 'retrieval-train' / 'retrieval.json'}\n")
    found = json.loads((other.run / "retrieval-train" / "retrieval.json").read_text())
    assert found["identity"]["split"] == "train" and found["pairs"][0]["samples"] == 160
    assert (other.run / "retrieval" / "retrieval.json").read_bytes() == kept
    assert "no tokens of a split 'tset'" in refused(world, *words, "--split", "tset")
    assert not (other.run / "retrieval-tset").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_index_that_a_kill_left_aside_comes_back(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Killed between the rename of the old index and that of the new one; then the next build is refused."""
    place = tmp_path / "index"
    shutil.copytree(index.folder, place)
    reader = os.fork()
    if reader == 0:  # pragma: no cover
        monkeypatch.setattr(building.os, "replace", lambda *paths: os._exit(9) if paths[1] == place else rename(*paths))
        build(world.run, world.zoo, place, config=EmbeddingConfig(space="centred"), overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 9
    assert not place.exists()
    with pytest.raises(ZooError, match=r"holds an index with embedding|no sample of this split has"):
        monkeypatch.setattr(building, "_fill", no_samples)
        build(world.run, world.zoo, place, config=EmbeddingConfig(space="centred"), overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".index.building", "index"], "it can go on"
    for path in index.folder.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes(), path.name
    monkeypatch.undo()
    # What is wanted is there: what was begun is not.
    words = [] if overwrite else ["--overwrite", "--space", "centred"]
    assert zoo(world, "build", world.run, "--out", place, *words).exception is None
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert Index(place).embedding.space == ("shared" if overwrite else "centred")


def no_samples(*given: Any) -> Any:
    raise ConfigError("no sample of this split has it")


def test_an_index_comes_back_where_the_new_one_cannot_be_put_in_its_place(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    shutil.copytree(index.folder, place)

    def full(old: Path, new: Path) -> None:
        if old.name == building.NEW:
            raise OSError(28, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(building.os, "replace", full)
    words = ("build", world.run, "--out", place, "--space", "centred", "--overwrite")
    assert "the disk is full" in refused(world, *words)
    assert Index(place).config == index.config
    monkeypatch.undo()
    assert zoo(world, *words).exception is None, "it goes on"
    assert [path.name for path in tmp_path.iterdir()] == ["index"] and Index(place).embedding.space == "centred"


@pytest.mark.parametrize("there", [False, True])
def test_one_process_at_a_time_builds_an_index(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    place, linked, written, told = tmp_path / "index", tmp_path / "link", building._fill, list[str]()
    linked.symlink_to(place)
    if there:
        shutil.copytree(index.folder, place)

    def write(*given: Any) -> None:
        for out, more in ((place, ["--overwrite"]), (place, []), (linked, ["--overwrite"])):
            told.append(refused(world, "build", world.run, "--out", out, *more))
        written(*given)

    monkeypatch.setattr(building, "_fill", write)
    assert zoo(world, "build", world.run, "--out", place, "--space", "centred", "--overwrite").exception is None
    assert told == [
        f"{out}: another process builds this index right now; wait for its end, or stop it"
        for out in (place, place, linked)
    ]
    assert Index(place).embedding.space == "centred"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "link"]


def test_a_build_that_ends_while_another_begins_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other removes its folder between the second's look at it and its lock."""
    taken = building.held

    @contextlib.contextmanager
    def late(folder: Path, told: str) -> Iterator[None]:
        with taken(folder, told):
            folder.rmdir()
            yield

    monkeypatch.setattr(building, "held", late)
    assert "another process builds this index" in refused(world, "build", world.run, "--out", tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_no_place_for_an_index(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, empty, disk = (tmp_path / name for name in ("index", "empty", "disk"))
    shutil.copytree(index.folder, place)
    empty.mkdir()
    disk.mkdir()
    words = ("build", world.run.resolve(), "--out")
    for folder in (place, empty):
        monkeypatch.chdir(folder)
        assert refused(world, *words, ".", "--overwrite") == (
            ".: is where the command runs, and cannot be replaced; run it somewhere else"
        )
    monkeypatch.chdir(place)
    assert zoo(world, *words, ".").exception is None  # the same is kept
    monkeypatch.setattr(Path, "is_mount", lambda path: path == disk)
    assert refused(world, *words, disk).startswith(f"{disk}: is a disk of its own")
    monkeypatch.chdir(tmp_path)
    assert zoo(world, *words, "empty").exception is None and Index(empty).config == index.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "empty", "index"]


def test_an_approximate_index_finds_nearly_what_the_exact_one_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng.standard_normal((1000, 16))), unit(rng.standard_normal((50, 16)))
    made = [index_of(vectors, kind) for kind in ("exact", "approximate", "approximate")]
    rows = [made_one.search(queries, 5)[1] for made_one in made]
    expected = np.argsort(-queries @ vectors.T, axis=1)[:, :5]
    assert np.array_equal(rows[0], expected)
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows[1], expected, strict=True)])
    assert overlap > 0.95
    library = faiss()
    assert np.array_equal(library.serialize_index(made[1]), library.serialize_index(made[2]))  # the same again
    # Chosen by size, and by hand.
    place = tmp_path / "index"
    assert build(world.run, world.zoo, place, config=EmbeddingConfig(), search="approximate").search_kind == (
        "approximate"
    )
    keys, tokens = stored(world, "light", 3)
    opened = Index(place)
    assert [hits[0].key for hits in opened.search(opened.embedder(world.zoo).embed("light", tokens), 3)] == keys
    monkeypatch.setattr(building, "LARGE", 20)
    large = build(world.run, world.zoo, tmp_path / "large", config=EmbeddingConfig(), modalities=["light"])
    assert large.search_kind == "approximate" and large.names == ["light"]


def test_model_and_tokenizers_run_on_the_device(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the CPU by another name."""
    asked: list[str] = []

    def loaded(folder: Path, device: str) -> FourM:
        asked.append(device)
        return load_model(folder, device=device)

    monkeypatch.setattr("zoo_backbone.retrieval.embedding.load_model", loaded)
    other, place = copied(world, tmp_path / "world"), tmp_path / "index"
    config = EmbeddingConfig(embedding="predicted", via="gist", space="plain")
    found = build(other.run, other.zoo, place, config=config, modalities=["light", "gist"], device="cpu:0")
    data, extension = other.zoo["light"].write(np.full((1, 8, 8), 0.5, np.float32))
    (tmp_path / f"light.{extension}").write_bytes(data)
    query_values(found, other.zoo, {"light": str(tmp_path / f"light.{extension}")}, {}, 1, device="cpu:0")
    query_keys(found, other.zoo, world.keys[:1], ["light"], {}, 1, device="cpu:0")
    assert asked == ["cpu:0"] * 3
    assert [other.zoo[name].device for name in ("light", "gist", "dark")] == ["cpu:0", "cpu:0", "cpu"]


def test_an_index_of_one_modality_finds_its_samples(world: World, tmp_path: Path) -> None:
    place = tmp_path / "index"
    assert zoo(world, "build", world.run, "--out", place, "--modalities", "light").exception is None
    result = zoo(world, "query", place, "--keys", "test-005", "-k", 1)
    assert result.output.splitlines()[2].split() == ["1", "test-005", "1.000"], result.exception


# ---------------------------------------------------------------- queries


def test_a_weighted_sum_by_hand() -> None:
    one, other = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    assert np.allclose(combined({"a": one, "b": other}, {}), [[0.5**0.5, 0.5**0.5]])
    assert np.allclose(combined({"a": one, "b": other}, {"a": 3.0, "b": -4.0}), [[0.6, -0.8]])
    assert np.allclose(combined({"a": one, "b": other}, {"b": 0.0}), one)
    for scale in (1e39, 1e-30, 1e308):  # beyond float32, small, and near the end of float64
        assert np.allclose(combined({"a": one, "b": other}, {"a": 0.75 * scale, "b": -scale}), [[0.6, -0.8]]), scale
    with pytest.raises(ConfigError, match="is zero, and says nothing"):
        combined({"a": one, "b": one}, {"b": -1.0})
    with pytest.raises(ConfigError, match="--weights c: is not given; given: a, b"):
        combined({"a": one, "b": other}, {"c": 1.0})


def test_one_modality_finds_the_same_sample_by_another(world: World, index: Index) -> None:
    found = query_keys(index, world.zoo, world.keys[:3], ["dark"], {}, 4, find="light")
    assert [answer.hits[0].key for answer in found] == world.keys[:3]
    assert all(len(answer.hits) == 4 for answer in found)
    cosines = [hit.cosine for hit in found[0].hits]
    assert cosines == sorted(cosines, reverse=True)
    without = query_keys(index, world.zoo, world.keys[:3], ["dark"], {}, 4, find="light", exclude_self=True)
    assert [hit.key for hit in without[0].hits][:3] == [hit.key for hit in found[0].hits][1:]
    assert len(without[0].hits) == 4


def test_a_sample_of_another_split_is_not_itself(world: World, tmp_path: Path) -> None:
    """A key of another split may be that of another sample, which is found."""
    other = copied(world, tmp_path / "world")
    keys, tokens = stored(other, "light", 30)
    shutil.rmtree(other.root / "tokens/train")
    metadata = TokenMetadata.of(other.zoo["light"], {})
    write_tokens(other.root / "tokens", "train", metadata, dict(zip(keys, tokens[::-1], strict=True)), keys=keys)
    config = EmbeddingConfig(space="plain")
    index = build(other.run, other.zoo, tmp_path / "index", config=config, modalities=["light"])
    asked: dict[str, Any] = {"keys": keys[:1], "given": ["light"], "weights": {}, "k": 30, "exclude_self": True}
    for split, without in ((None, 1), ("test", 1), ("train", 0)):
        (answer,) = query_keys(index, other.zoo, split=split, **asked)
        assert len(answer.hits) == 30 - without and (keys[0] in {hit.key for hit in answer.hits}) == (not without)


def test_a_negative_weight_asks_for_what_is_unlike(world: World, index: Index) -> None:
    (like,) = query_keys(index, world.zoo, ["test-005"], ["light"], {}, 30, find="dark")
    (unlike,) = query_keys(index, world.zoo, ["test-005"], ["light"], {"light": -1}, 30, find="dark")
    assert [hit.key for hit in unlike.hits] == [hit.key for hit in like.hits][::-1]
    assert unlike.hits[-1].cosine == pytest.approx(-like.hits[0].cosine, abs=1e-5)


def test_query_of_files(world: World, index: Index, tmp_path: Path) -> None:
    (tmp_path / "word.txt").write_text("fade")
    out = tmp_path / "found"
    result = zoo(world, "query", index.folder, "--given", f"letters={tmp_path / 'word.txt'}", "-k", 3, "--out", out)
    assert result.exception is None, result.exception
    lines = result.output.splitlines()
    assert lines[0] == "asked with letters of files:" and lines[1].split() == ["rank", "sample", "cosine"]
    written = json.loads((out / "hits.json").read_text())
    (answer,) = written["answers"]
    assert [hit["key"] for hit in answer["hits"]] == [line.split()[1] for line in lines[2:5]]
    embedder = index.embedder(world.zoo)
    expected = index.search(embedder.embed("letters", world.zoo["letters"].encode(["fade"])), 3)
    assert [hit["cosine"] for hit in answer["hits"]] == pytest.approx([hit.cosine for hit in expected[0]])
    text = zoo(world, "query", index.folder, "--given", "letters='fade'", "-k", 3, "--out", out)
    assert text.output == result.output, "a text may be written out"
    assert json.loads((out / "hits.json").read_text())["answers"] == written["answers"]
    cells = cells_of(out / "hits.png")  # what was asked with is text; hits are pictures
    assert cells is not None and [cell is None for cell in cells[0]] == [True, False, False, False]
    words = ("--given", f"letters={tmp_path / 'word.txt'}", "--find", "letters", "--out", out)
    assert zoo(world, "query", index.folder, *words).exception is None
    assert not (out / "hits.png").exists(), "nothing of this query is a picture"
    assert "no picture: all that would be shown is text" in zoo(world, "query", index.folder, *words).output
    gone = copied(world, tmp_path / "world")
    Run(tokens=gone.root / "tokens", data=tmp_path / "gone", registry=gone.root / "registry.toml").save(gone.run)
    result = zoo(world, "query", index.folder, "--run", gone.run, *words[:2], "--find", "light", "--out", out)
    assert f"no picture: the values of {gone.run} were in {tmp_path / 'gone'}, which is gone" in result.output
    assert (out / "hits.json").is_file()
    (tmp_path / "gone").mkdir()
    result = zoo(world, "query", index.folder, "--run", gone.run, *words[:2], "--find", "light", "--out", out)
    assert f"no picture: {tmp_path / 'gone'}: no " in result.output


def test_the_picture_shows_some_of_many_queries(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo_backbone.retrieval.answers.ASKED", 2)
    keys = ",".join(world.keys[:6])
    done = zoo(world, "query", index.folder, "--keys", keys, "--given", "light", "-k", 3, "--out", tmp_path)
    assert done.exception is None, done.exception
    assert len(json.loads((tmp_path / "hits.json").read_text())["answers"]) == 6
    assert len(cells_of(tmp_path / "hits.png") or ()) == 2


def test_the_picture_of_a_query_says_the_weights(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headings: list[list[str]] = []
    monkeypatch.setattr("zoo_backbone.retrieval.answers.write_hits", lambda path, asked, *_: headings.append(asked))
    weights = ("--given", "raw,dark", "--weights", "raw=-1")
    zoo(world, "query", index.folder, "--keys", "test-001", *weights, "--out", tmp_path / "found")
    assert headings == [["asked: - raw", "asked: dark"]]


def test_query_of_keys_on_the_command_line(world: World, index: Index, tmp_path: Path) -> None:
    out = tmp_path / "found"
    words = ("query", index.folder, "--keys", "test-001,test-004", "--given", "raw,dark", "--weights", "raw=0.25")
    result = zoo(world, *words, "--find", "letters", "-k", 99, "--out", out)
    assert "-k 99: the index has 28 samples; these are all" in result.output
    written = json.loads((out / "hits.json").read_text())
    assert [answer["key"] for answer in written["answers"]] == ["test-001", "test-004"]
    assert [len(answer["hits"]) for answer in written["answers"]] == [28, 28]
    assert (written["find"], written["weights"]) == ("letters", {"raw": 0.25})
    everything = zoo(world, "query", index.folder, "--keys", "test-001", "-k", 1)
    assert everything.output.splitlines()[0] == f"asked with {' + '.join(NAMES)} of test-001:"
    assert everything.output.splitlines()[2].split() == ["1", "test-001", "1.000"]
    alone = zoo(world, "query", index.folder, "--keys", "test-001", "--weights", "dark=2", "--exclude-self", "-k", 2)
    assert alone.output.startswith("asked with 2 dark of test-001:") and "test-001" not in alone.output[30:]
    unlike = zoo(world, "query", index.folder, "--keys", "test-001", "--weights", "raw=-1,dark=0.5,light=1", "-k", 1)
    assert unlike.output.startswith("asked with - raw + 0.5 dark + light of test-001:")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--given", "letter=FILE"), ("unknown modality of this index 'letter'", "did you mean letters?")),
        (("--given", "light"), ("--given light: expected NAME=FILE",)),
        (("--given", "lihgt='dark'"), ("'lihgt'", "did you mean light?")),
        (("--given", "lihgt=a b"), ("'lihgt'", "did you mean light?")),
        (("--given", "light=absent.npy"), ("absent.npy", "expected a file that is there")),
        (("--given", "letters=FILE", "--given", "letters=FILE"), ("letters is given twice",)),
        (("--given", "letters=FILE", "--find", "lihgt"), ("'lihgt'", "did you mean light?")),
        (("--given", "letters=FILE", "--weights", "dark=1"), ("--weights dark: is not given; given: letters",)),
        (("--given", "letters=FILE", "--weights", "letters=much"), ("--weights letters=much: expected NAME=NUMBER",)),
        (("--given", "letters=FILE", "--weights", "letters=nan"), ("--weights letters=nan: expected NAME=NUMBER",)),
        (("--given", "letters=FILE", "--weights", "letters=1,letters=2"), ("letters=2: letters is there twice",)),
        (("--given", "letters=FILE", "--exclude-self"), ("give --keys",)),
        (("--keys", "test-000", "--given", "letters=FILE"), ("expected a NAME beside --keys",)),
        (("--keys", "tset-000", "--given", "light"), ("unknown sample 'tset-000'", "did you mean test-000")),
        (("--keys", "test-003", "--given", "light,letters"), ("sample 'test-003' has no letters",)),
        (("--keys", "test-003", "--given", "letters"), ("sample 'test-003' has no letters",)),
        (("--keys", "test-003", "--given", "light", "--split", "tset"), ("no tokens of a split 'tset'",)),
        ((), ("expected --given NAME=FILE, or --keys",)),
    ],
)
def test_a_query_that_cannot_be(
    world: World, index: Index, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "word.txt").write_text("fade")
    words = tuple(word.replace("FILE", str(tmp_path / "word.txt")) for word in words)
    text = refused(world, "query", index.folder, *words, "--out", tmp_path / "out")
    assert all(part in text for part in parts), text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--embedding", "predicted", "--via", "raw"), ("--via raw", "is an input only", "this run has gist")),
        (("--embedding", "predicted", "--via", "light"), ("--via light", "is a grid", "this run has gist")),
        (("--embedding", "predicted", "--via", "gits"), ("'gits'", "did you mean gist?")),
        (("--embedding", "predicted"), ("--via NAME: goes with --embedding predicted",)),
        (("--via", "gist"), ("--via NAME: goes with --embedding predicted",)),
        (("--modalities", "lihgt"), ("'lihgt'", "did you mean light?")),
        (("--split", "tset"), ("no tokens of a split 'tset'",)),
    ],
)
@pytest.mark.parametrize("command", ["build", "eval"])
def test_vectors_that_cannot_be(
    world: World, tmp_path: Path, command: str, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    text = refused(world, command, world.run, "--out", tmp_path / "out", *words)
    assert all(part in text for part in parts), text
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_and_one_that_is_no_index(world: World, tmp_path: Path) -> None:
    assert "no run here" in refused(world, "build", tmp_path, "--out", tmp_path / "out")
    assert "no index here; make one with zoo retrieve build RUN" in refused(world, "query", tmp_path, "--keys", "a")
    assert "holds a FourM, expected a RetrievalIndex" in refused(world, "query", world.run, "--keys", "a")
    assert "at least two modalities" in refused(world, "eval", world.run, "--modalities", "light")


def test_modalities_asked_for_twice_count_once(world: World, tmp_path: Path) -> None:
    text = refused(world, "eval", world.run, "--out", tmp_path / "eval", "--modalities", "light,light")
    assert text.endswith("expected at least two modalities, got light")
    words = ("--out", tmp_path / "out", "--modalities", "light,light,dark")
    assert zoo(world, "build", world.run, *words).exception is None and Index(tmp_path / "out").names == [
        "light",
        "dark",
    ]
    assert zoo(world, "eval", world.run, *words, "--galleries", 0).exception is None
    measured = json.loads((tmp_path / "out" / "retrieval.json").read_text())["pairs"]
    assert [(pair["query"], pair["found"]) for pair in measured] == [("light", "dark"), ("dark", "light")]


def test_by_default_modalities_are_those_that_the_store_has(world: World, tmp_path: Path) -> None:
    """A run over several stores has some that its own lacks."""
    other = copied(world, tmp_path / "world")
    shutil.rmtree(other.root / "tokens" / "train" / "letters")
    shutil.rmtree(other.root / "tokens" / "test" / "gist")
    words = ("build", other.run, "--out")
    assert zoo(world, *words, tmp_path / "index").exception is None
    assert Index(tmp_path / "index").names == ["light", "dark", "raw"]
    assert zoo(world, *words, tmp_path / "plain", "--space", "plain").exception is None
    assert Index(tmp_path / "plain").names == ["light", "dark", "letters", "raw"], "nothing is fitted"
    assert zoo(world, "eval", other.run, "--galleries", 0).exception is None
    measured = json.loads((other.run / "retrieval" / "retrieval.json").read_text())["pairs"]
    assert {pair["query"] for pair in measured} == {"light", "dark", "raw"}
    assert "letters" in refused(world, *words, tmp_path / "x", "--modalities", "light,letters"), "that was asked for"
    for name in ("light", "dark", "raw"):
        shutil.rmtree(other.root / "tokens" / "train" / name)
    assert "has no modality of" in refused(world, *words, tmp_path / "x")


def test_an_index_of_another_backbone_or_codec_is_refused(world: World, index: Index, tmp_path: Path) -> None:
    place, run = tmp_path / "index", tmp_path / "run"
    shutil.copytree(world.run, run)
    build(run, world.zoo, place, config=EmbeddingConfig(space="centred"))
    model = load_model(run)
    with torch.no_grad():
        model.encoder_norm.weight.mul_(1.01)
    config = load_config(run)
    save_model(model, run, {key: config[key] for key in ("train", "fingerprints")})
    text = refused(world, "query", place, "--keys", "test-000", "--given", "light")
    assert f"built by the backbone {Index(place).fingerprint[:12]}" in text and "--overwrite" in text
    assert "holds an index with fingerprint" in refused(world, "build", run, "--out", place, "--space", "centred")


def test_codecs_that_are_noted_later_leave_an_index_its_backbone(world: World, tmp_path: Path) -> None:
    """As where tokenizers are imported after an imported backbone."""
    changed, place = copied(world, tmp_path), tmp_path / "index"
    config = load_config(changed.run)
    whole = config["fingerprints"]
    known = {name: codec for name, codec in whole.items() if name not in ("dark", "letters")}
    write_json(changed.run / "config.json", {**config, "fingerprints": known})
    index = build(changed.run, changed.zoo, place, config=EmbeddingConfig(space="plain"))
    assert index.fingerprint == fingerprint(changed.run)
    for _ in range(2):
        note_codecs(changed.run, tmp_path / "registry.toml")
        assert load_config(changed.run)["fingerprints"] == whole
    assert index.fingerprint != fingerprint(changed.run)
    assert zoo(changed, "query", place, "--keys", "test-000", "--given", "light").exit_code == 0
    build(changed.run, changed.zoo, place, config=EmbeddingConfig(space="plain"))  # is there already
    model = load_model(changed.run)
    with torch.no_grad():
        model.encoder_norm.weight.mul_(1.01)
    save_model(model, changed.run, {key: config[key] for key in ("train", "fingerprints")})
    assert "built by the backbone" in refused(changed, "query", place, "--keys", "test-000", "--given", "light")


def test_a_damaged_index_is_named(world: World, index: Index, tmp_path: Path) -> None:
    for name, damage, part in (
        ("together.faiss", b"IxF", "together.faiss: no sound FAISS index"),
        ("together.faiss", (index.folder / "of-letters.faiss").read_bytes(), "holds 28 vectors, and keys.json has 30"),
        ("keys.json", b"{", "keys.json: cannot be read as JSON"),
        ("config.json", b'{"class": "RetrievalIndex"}', "config.json does not describe an index"),
    ):
        place = tmp_path / name / part[:9]
        shutil.copytree(index.folder, place)
        (place / name).write_bytes(damage)
        assert part in refused(world, "query", place, "--keys", "test-000", "--given", "light")
        again = refused(world, "build", world.run, "--out", place)
        assert part in again and "with --overwrite" in again
        if name != "config.json":
            assert zoo(world, "build", world.run, "--out", place, "--overwrite").exit_code == 0
            assert zoo(world, "query", place, "--keys", "test-000", "--given", "light").exit_code == 0
        else:
            assert "is no part of an index" in refused(world, "build", world.run, "--out", place, "--overwrite")


def test_without_faiss_the_extra_is_named(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    text = refused(world, "build", world.run, "--out", tmp_path / "out")
    assert "pip install 'zoo-backbone[retrieval]'" in text and not list(tmp_path.iterdir())
    assert "zoo-backbone[retrieval]" in refused(world, "query", index.folder, "--keys", "test-000")
    assert zoo(world, "eval", world.run, "--out", tmp_path / "eval", "--galleries", 0).exception is None


# ---------------------------------------------------------------- recall


@pytest.fixture(scope="module")
def measured(world: World) -> tuple[Path, dict[str, Any]]:
    out = world.root / "recall"
    config = RecallConfig(gallery_pairs=8, gallery_samples=3)
    return out, evaluate_retrieval(world.run, world.zoo, out, embedding=EmbeddingConfig(), config=config)


def of(result: dict[str, Any], query: str, found: str) -> dict[str, Any]:
    (entry,) = [entry for entry in result["pairs"] if (entry["query"], entry["found"]) == (query, found)]
    return entry


def test_recall_of_every_ordered_pair_with_chance_beside_it(measured: tuple[Path, dict[str, Any]]) -> None:
    out, result = measured
    assert json.loads((out / "retrieval.json").read_text()) == result
    assert len(result["pairs"]) == len(NAMES) * (len(NAMES) - 1)
    light_dark, letters = of(result, "light", "dark"), of(result, "dark", "letters")
    assert (light_dark["samples"], letters["samples"]) == (30, 28)
    assert light_dark["chance"] == {
        "recall": {str(k): pytest.approx(share, abs=1e-6) for k, share in chance(30).at.items()}, "median_rank": 15.5
    }  # fmt: skip
    assert light_dark["recall"]["1"] > 0.9 and light_dark["median_rank"] == 1
    mean = np.mean([entry["recall"]["5"] for entry in result["pairs"]])
    assert result["mean"]["recall"]["5"] == pytest.approx(mean, abs=1e-5)


def test_the_default_space_is_the_best(world: World, measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    quiet = RecallConfig(gallery_pairs=0)
    shares = {
        space: evaluate_retrieval(
            world.run, world.zoo, tmp_path, embedding=EmbeddingConfig(space=space), config=quiet  # type: ignore[arg-type]
        )["mean"]["recall"]["1"]
        for space in ("plain", "centred", "whitened")
    }  # fmt: skip
    assert measured[1]["mean"]["recall"]["1"] > 2 * max(shares.values()), shares


def test_galleries_frame_the_right_one(world: World, measured: tuple[Path, dict[str, Any]]) -> None:
    out, result = measured
    assert [(entry["query"], entry["found"]) for entry in result["galleries"]][:3] == [
        ("light", "dark"), ("dark", "light"), ("raw", "dark"),
    ]  # fmt: skip
    gallery = result["galleries"][0]
    assert gallery["columns"] == ["asked: light", "1", "2", "3", "4", "5"] and len(gallery["rows"]) == 3
    with Image.open(out / gallery["picture"]) as sheet:
        boxes = json.loads(sheet.text["cells"])  # type: ignore[attr-defined]
        for row, places in zip(gallery["rows"], boxes, strict=True):
            for key, (left, top, _, _) in zip(row["hits"], places[1:], strict=True):
                corner = "#{:02x}{:02x}{:02x}".format(*sheet.convert("RGB").getpixel((left, top)))  # type: ignore[misc]
                assert (corner == RIGHT) == (key == row["key"])
    texts = next(entry for entry in result["galleries"] if entry["found"] == "letters")
    for row in texts["rows"]:
        marked = [cell.startswith("[right] ") for cell in row["cells"][1:]]
        assert marked == [key == row["key"] for key in row["hits"]]


def test_frames_and_sheets(tmp_path: Path) -> None:
    small = framed(Image.new("RGB", (8, 4), "red"))
    assert not isinstance(small, str) and small.size == (CELL, CELL // 2)
    assert small.getpixel((5, 5)) == (26, 150, 65) and small.getpixel((6, 6)) == (255, 0, 0)
    assert framed("words") == "[right] words"
    assert write_hits(tmp_path / "x.png", ["a"], [["q"], [small]], [[small, "b"], [small]])
    assert not write_hits(tmp_path / "y.png", ["a"], [["q"]], [["b"]]) and not (tmp_path / "y.png").exists()


def test_the_command_prints_80_columns(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = zoo(world, "eval", world.run, "--out", tmp_path, "--modalities", "light,letters", "--galleries", 1)
    assert "not held-out figures" not in result.output
    lines = [line for line in result.stdout.splitlines() if "/" in line]
    assert result.exception is None and max(map(len, lines[:3])) <= 80
    assert lines[0].split()[:2] == ["light", "letters"] and lines[0].split()[-1] == "28"
    assert lines[0].split()[2].endswith("/3.6") and lines[2].startswith("[mean]")
    assert lines[-1] == f"all of it: {tmp_path / 'retrieval.json'}"
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["letters-finds-light.png"]


def test_figures_of_training_samples_are_called_so(world: World, tmp_path: Path) -> None:
    words = ["--out", tmp_path, "--modalities", "light,letters", "--galleries", 0, "--split", "train"]
    assert "not held-out figures" in zoo(world, "eval", world.run, *words).output.splitlines()[-2]


def test_no_figures_are_beside_pictures_of_others(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eval_again(space: str) -> dict[str, Any]:
        return evaluate_retrieval(
            world.run, world.zoo, tmp_path, embedding=EmbeddingConfig(space=space),  # type: ignore[arg-type]
            config=RecallConfig(samples=8, gallery_pairs=1, gallery_samples=1), modalities=["light", "dark"],
        )  # fmt: skip

    def write(path: Path, *given: Any) -> bool:
        assert not (tmp_path / "retrieval.json").exists()
        with pytest.raises(CheckpointError, match="another zoo retrieve eval writes it right now"):
            eval_again("plain")
        raise KeyboardInterrupt

    eval_again("centred")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(evaluate, "write_hits", write)
        eval_again("plain")
    assert not (tmp_path / "retrieval.json").exists()
    assert json.loads(json.dumps(eval_again("plain"))) == json.loads((tmp_path / "retrieval.json").read_text())


def test_samples_are_bounded_and_values_may_be_gone(world: World, tmp_path: Path) -> None:
    config = RecallConfig(samples=10)
    result = evaluate_retrieval(
        world.run, world.zoo, tmp_path, embedding=EmbeddingConfig(), config=config, modalities=["light", "dark"],
        data_root=tmp_path / "gone",
    )  # fmt: skip
    assert [entry["samples"] for entry in result["pairs"]] == [10, 10] and result["galleries"] == []
    with pytest.raises(ValueError, match="samples: expected at least 2, got 1"):
        RecallConfig(samples=1)
