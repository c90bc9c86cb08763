"""zoo import-ml4m and export-ml4m: folders in, folders out, the text vocabulary, and errors."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import shutil
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from backbone_samples import SMALL, all_layouts
from click.testing import CliRunner
from published_tokenizers import TINY_VIT
from published_tokenizers import published as published_tokenizer
from safetensors.torch import save_file
from test_ml4m_backbone import VARIANTS, published
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenizers_zoo.cli.main import zoo as command
from tokenizers_zoo.errors import CheckpointError, ConfigError, UnknownNameError, ZooError
from tokenizers_zoo.io import read_table
from tokenizers_zoo.ml4m import PublishedCheckpoint, read_published, words, write_published
from tokenizers_zoo.ml4m.architecture import VITS
from tokenizers_zoo.registry import CHECKPOINTS, Zoo
from tokenizers_zoo.text_vocab import Coordinate, TextVocabulary, VocabularyConfig
from zoo_backbone.checkpoint import load_model, save_model
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.evaluation_data import default_pairs
from zoo_backbone.ml4m import folders
from zoo_backbone.ml4m.commands import export_command, import_command
from zoo_backbone.ml4m.folders import Told, import_folders, modality_of, share_tokenizers
from zoo_backbone.model import FourM
from zoo_backbone.run import Run

WORDS = [
    "a",
    "red",
    "dog",
    "##s",
    "sit",
    "##ting",
    "hot",
    "on",
    "it",
    ",",
    "'",
    "[",
    "]",
    "s",
    "_",
    "0",
    "v0",
    "=",
    "5",
]
CONFIG = VocabularyConfig(size=30_000, end=3, unused=1, sentinels=199, coordinate_axes=4, coordinate_bins=1000)

MEMCODES = {
    "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
    "patch_size": 1, "latent_dim": 16, "codebook_size": 32, "quant_type": "memcodes", "num_codebooks": 4,
}  # fmt: skip
"""Configuration of a tokenizer of vectors, without the vector length (`n_channels`)."""


GRID = {
    "class": "VQVAE", "enc_type": "vit_t_enc", "dec_type": "vit_t_dec", "image_size": 448, "patch_size": 16,
    "latent_dim": 8,
}  # fmt: skip
CLIP = {**GRID, "patch_proj": False, "n_channels": 512, "codebook_size": 8192}
SEMSEG = {**GRID, "n_labels": 134, "n_channels": 6, "codebook_size": 4096}
GRIDS = ("4M_tokenizers_CLIP-B16_8k_224-448", "4M_tokenizers_semseg_4k_224-448")
SIZED = {
    **VARIANTS["gated"], "image_size": 224, "patch_size": 16, "domains_in": ["tok_clip@224", "tok_semseg@224"],
    "domains_out": ["tok_clip@224", "tok_semseg@224"],
}  # fmt: skip
"""A backbone with 14 x 14 tokens of both modalities, the tokenizers' grids at 224 pixels."""


def text_file(path: Path, **changed: int) -> Path:
    """Write a vocabulary with few words in the published form."""
    special = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{i}]" for i in range(200))]
    special += [f"v{axis}={level}" for axis in range(4) for level in range(1000)]
    names = [*special, "hot dog", *WORDS]
    ids = {name: index for index, name in enumerate(names)} | changed
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(name, single_word=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken("hot dog", single_word=True, normalized=True)])
    tokenizer.save(str(path))
    return path


def run(command: object, *arguments: object) -> str:
    """Run a command and return its output; exceptions are raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


def test_the_published_text_vocabulary_gives_the_published_ids(tmp_path: Path) -> None:
    path = text_file(tmp_path / "text.json")
    vocabulary = TextVocabulary(CONFIG, published=path.read_text())
    theirs = Tokenizer.from_file(str(path))
    for text in ("A red dog, sitting", "hot dogs", "a hot dog on it", "RED"):
        assert vocabulary.encode_text(text) == theirs.encode(text).ids
    boxes = [Coordinate(axis, 10 * axis) for axis in range(4)]
    assert vocabulary.encode([*boxes, " hot dog"]) == theirs.encode("v0=0 v1=10 v2=20 v3=30 hot dog").ids
    assert vocabulary.decode([*vocabulary.encode(boxes), *vocabulary.encode_text("a dog")]) == [*boxes, "a dog"]
    assert vocabulary.decode_text(vocabulary.encode_text("A Red dog, sitting")) == "a red dog, sitting"
    assert (vocabulary.used, vocabulary.parts["learned pieces"]) == (4204 + 1 + len(WORDS), (4204, 1 + len(WORDS)))


def test_no_text_makes_a_sentinel_or_a_coordinate(tmp_path: Path) -> None:
    vocabulary = TextVocabulary(CONFIG, published=text_file(tmp_path / "text.json").read_text())
    for text in ("[S_0]", "v0=5", "[EOS]", "[PAD]", "a v0=5 dog"):
        ids = vocabulary.encode_text(text)
        assert ids and all(index == 1 or index >= 4204 for index in ids)


def test_a_limit_cuts_between_words_and_all_is_restored(tmp_path: Path) -> None:
    vocabulary = TextVocabulary(CONFIG, published=text_file(tmp_path / "text.json").read_text())
    assert vocabulary.decode_text(vocabulary.encode_text("red dogs sitting", limit=4)) == "red dogs"
    vocabulary.save(tmp_path / "text")
    again = TextVocabulary.load(tmp_path / "text", CONFIG)
    assert again.encode_text("red dogs") == vocabulary.encode_text("red dogs")
    grown = again.grow(["<new>"])
    assert grown.all_special_tokens == ("<new>",) and grown.used == again.used + 1
    assert grown.encode_text("red dogs") == vocabulary.encode_text("red dogs")
    assert again.longest_pieces(1) == ["hot dog"]
    assert vocabulary.decode_text(vocabulary.encode_text("RED Dogs sitting", limit=4)) == "red dogs"


@pytest.mark.parametrize("before", [" " * 17_000, "\u0301" * 17_000])
def test_characters_without_an_id_do_not_count_towards_the_limit(before: str, tmp_path: Path) -> None:
    vocabulary = TextVocabulary(CONFIG, published=text_file(tmp_path / "text.json").read_text())
    ids = vocabulary.encode_text("red dogs")
    assert vocabulary.encode_text(f"{before}red dogs", limit=10) == ids
    assert vocabulary.encode_text(f"{'x' * 17_000} red dogs", limit=10) == [1, *ids], "a word that it lacks"


def test_lengths_that_a_vocabulary_file_states_are_left_to_the_modality(tmp_path: Path) -> None:
    path = text_file(tmp_path / "text.json")
    tokenizer = Tokenizer.from_file(str(path))
    ids = tokenizer.encode("red dogs on it").ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    assert TextVocabulary(CONFIG, published=path.read_text()).encode_text("red dogs on it") == ids


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "not a file of the tokenizers library"), ("[EOS]", "not a file of the tokenizers")]
)
def test_another_vocabulary_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        TextVocabulary(CONFIG, published=content)
    path = text_file(tmp_path / "moved.json", **{"[EOS]": 2, "[SOS]": 3})
    with pytest.raises(CheckpointError, match=r"\[EOS\] has the id 2, expected 3: another vocabulary"):
        TextVocabulary(CONFIG, published=path.read_text())


def test_want_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "json", SimpleNamespace(loads=lambda file: bytes(2**62)))
    with pytest.raises(MemoryError):
        words.WordMatcher("{}", 0, {})


def test_plugins_write_sequences_as_4m_does(tmp_path: Path) -> None:
    path = text_file(tmp_path / "text.json")
    run(import_command, path, tmp_path)
    names = ("boxes", "palette", "metadata")
    tables = {"zoo": {"checkpoints": "tokenizers"}, "vocabularies": {"text": {"preset": "4m"}}}
    tables["modalities"] = {name: {"preset": "4m"} for name in names}
    zoo, theirs = Zoo.from_tables(tables, tmp_path / "registry.toml"), Tokenizer.from_file(str(path))

    def written(name: str, value: object) -> list[int]:
        ids = zoo[name].encode([value])[0]
        again = zoo[name].encode([zoo[name].decode([ids])[0]])[0]
        assert again.tolist() == ids.tolist()
        return ids.tolist()

    things = [{"label": "hot dog", "box": [0.5, 0.5, 0.9, 1.0]}, {"label": "dog", "box": [0.1, 0.2, 0.3, 0.4]}]
    text = "v0=100 v1=200 v2=300 v3=400 dog v0=500 v1=500 v2=899 v3=999 hot dog"  # sorted from the upper left corner
    assert written("boxes", things) == theirs.encode(text).ids
    colours = np.array([(0, 0.5, 1), (1, 0.5, 0)] * 3 + [(0, 0.5, 1)], np.float32)
    text = "v1=7" + " v0=0 v0=128 v0=255 v0=255 v0=128 v0=0" * 3 + " v0=0 v0=128 v0=255"
    assert written("palette", colours) == theirs.encode(text).ids
    colours[3:] = colours[2]  # three colours; the last is repeated to fill up the palette
    fewer = theirs.encode("v1=3 v0=0 v0=128 v0=255 v0=255 v0=128 v0=0 v0=0 v0=128 v0=255").ids
    assert written("palette", colours) == fewer
    file = io.BytesIO()
    np.save(file, colours[:3])
    assert written("palette", zoo["palette"].read(file.getvalue(), "npy")) == fewer
    table = {"original_width": 650.0, "n_humans": 3, "brightness": 103, "walkability": 0.99, "aesthetic_score": 5.0}
    assert written("metadata", table) == theirs.encode("v1=0 v0=20 v1=5 v0=3 v1=10 v0=19 v1=14 v0=48 v1=20 v0=1").ids


def test_a_folder_of_checkpoints_becomes_a_folder_with_a_registry(tmp_path: Path) -> None:
    checkpoint = published(VARIANTS["gated"])
    write_published(checkpoint, tmp_path / "in" / "4M_B")
    text_file(tmp_path / "in" / "words.json")
    output = run(import_command, tmp_path / "in", tmp_path / "out")
    assert "tok_thing_32" in output and "use it by: zoo --registry" in output
    assert all(len(line) <= 80 for line in output.splitlines()[:-1])
    zoo = Zoo.from_toml(tmp_path / "out" / "registry.toml")
    assert zoo["caption"].spec.vocab_size == 30_000
    ids = zoo["caption"].encode(["a red dog"])[0]
    assert zoo["caption"].decode([ids]) == ["a red dog"]
    assert read_table(tmp_path / "out" / "backbone" / "config.json")["fingerprints"] == {
        "caption": zoo["caption"].fingerprint
    }
    made = tmp_path / "made"
    arguments = ("--input", 'caption="a red dog"', "--target", "caption", "--set", "max_length=3")
    with pytest.raises(ZooError, match="caption: is input and target"):
        run(
            command,
            "--registry",
            zoo.path,
            "backbone",
            "generate",
            tmp_path / "out" / "backbone",
            *arguments,
            "--out",
            made,
        )
    arguments = ("--target", "caption", "--samples", 2, "--set", "max_length=3", "--out", made)
    run(command, "--registry", zoo.path, "backbone", "generate", tmp_path / "out" / "backbone", *arguments)
    assert len(list(made.rglob("caption.txt"))) == 2
    before = (tmp_path / "out" / "backbone" / "model.safetensors").stat().st_mtime_ns
    again = run(import_command, tmp_path / "in", tmp_path / "out")
    assert again.count("is there already") == 2
    assert (tmp_path / "out" / "backbone" / "model.safetensors").stat().st_mtime_ns == before
    shutil.copytree(tmp_path / "in" / "4M_B", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "num_register_tokens": 4}))
    with pytest.raises(CheckpointError, match=r"backbone: holds another published .*num_register_tokens"):
        run(import_command, tmp_path / "other", tmp_path / "out")
    run(export_command, tmp_path / "out" / "backbone", tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / "4M_B" / name).read_bytes()
    with pytest.raises(CheckpointError, match="is there already; give a new or empty folder"):
        run(export_command, tmp_path / "out" / "backbone", tmp_path / "back")


PLUGGED = {
    **VARIANTS["gated"], "image_size": 224, "patch_size": 16,
    "domains_in": ["caption", "rgb@224", "t5_caption", "tok_depth@224"],
    "domains_out": ["caption", "t5_caption", "tok_depth@224"],
}  # fmt: skip


def test_modalities_become_those_of_installed_plugins(tmp_path: Path) -> None:
    write_published(published(PLUGGED), tmp_path / "in")
    run(import_command, tmp_path / "in", tmp_path / "out")
    zoo = Zoo.from_toml(tmp_path / "out" / "registry.toml")
    assert zoo.names() == ["caption", "depth", "rgb_patches", "t5_caption"]
    assert load_model(tmp_path / "out" / "backbone", [zoo[name].spec for name in zoo.names()])
    grey = np.full((3, 224, 224), 0.5, np.float32)  # normalised by ImageNet's statistics, as published backbones expect
    red, green, blue = zoo["rgb_patches"].encode([grey])[0, 0].reshape(3, 256)[:, 0].tolist()
    assert (red, green, blue) == pytest.approx(((0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225))
    vectors = np.arange(2 * 4096, dtype=np.float32).reshape(2, 4096)
    assert np.array_equal(zoo["t5_caption"].encode([vectors])[0], vectors)


@pytest.mark.parametrize(
    ("size", "message"),
    [((196, 4096), "8192 ids, and these are 4096"), ((100, 8192), "196 tokens, and these have 100")],
)
def test_other_tokens_than_the_plugins_are_a_modality_of_their_own(
    size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    write_published(published(PLUGGED, tok_depth_at_224=size), tmp_path / "in")
    output = " ".join(run(import_command, tmp_path / "in", tmp_path / "out").split())
    assert "tok_depth_224" in output and all(word in output for word in message.split())
    assert "depth" not in Zoo.from_toml(tmp_path / "out" / "registry.toml").names()
    specs = {spec.name: spec for spec in load_model(tmp_path / "out" / "backbone").layout.specs}
    assert specs["tok_depth_224"].vocab_size == size[1] and specs["tok_depth_224"].layout.length == size[0]


def test_a_tokenizer_is_imported_once_and_runs(tmp_path: Path) -> None:
    published_folder = tmp_path / "in" / "4M_tokenizers_DINOv2-B14-global_8k_16_224"
    write_published(published_tokenizer(**MEMCODES, n_channels=768), published_folder)
    run(import_command, tmp_path / "in", tmp_path / "out")
    handle = Zoo.from_toml(tmp_path / "out" / "registry.toml")["dinov2_global"]
    assert handle.encode([np.ones(768, np.float32)]).shape == (1, 4)
    place = tmp_path / "out" / "tokenizers" / "dinov2_global" / "model.safetensors"
    before = place.stat().st_mtime_ns
    assert "is there already" in run(import_command, tmp_path / "in", tmp_path / "out")
    assert place.stat().st_mtime_ns == before
    run(export_command, place.parent, tmp_path / "back")
    original = tmp_path / "in" / "4M_tokenizers_DINOv2-B14-global_8k_16_224"
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()


def test_checkpoints_with_equal_configurations_are_told_apart_by_weights(tmp_path: Path) -> None:
    """Published variants (CC12M, COYO, text to image) share a configuration; only their weights differ."""
    backbone = {name: published({**VARIANTS["gated"], "domains_in": ["caption"], "domains_out": ["caption"]}, seed=name)
                for name in ("CC12M", "COYO")}  # fmt: skip
    for name, checkpoint in backbone.items():
        write_published(checkpoint, tmp_path / name)
    for seed, name in enumerate(("one", "two")):
        tokenizer = published_tokenizer(seed=seed, **MEMCODES, n_channels=768)
        write_published(tokenizer, tmp_path / name / "dinov2_global")
    write_published(published_tokenizer(**{**MEMCODES, "codebook_size": 64}, n_channels=768), tmp_path / "three")
    for first, others in (("CC12M", {"COYO": "the weights differ"}), ("one", {
        "two": "the weights differ", "three": r"config\.json\.codebook_size was 32, is 64"})):  # fmt: skip
        more = () if first == "CC12M" else ("--as", "dinov2_global")
        inner = "" if first == "CC12M" else "dinov2_global"
        run(import_command, tmp_path / first / inner, tmp_path / "out", *more)
        before = files_in(tmp_path / "out")
        for other, difference in others.items():
            source = tmp_path / other / (inner if other == "two" else "")
            with pytest.raises(CheckpointError, match=rf"another published checkpoint than .* \({difference}\)"):
                run(import_command, source, tmp_path / "out", *more)
        assert "is there already" in run(import_command, tmp_path / first / inner, tmp_path / "out", *more)
        assert files_in(tmp_path / "out") == before


def test_checkpoints_that_were_not_imported_stay(tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tmp_path / "in" / "dinov2_global")
    run(import_command, tmp_path / "in", tmp_path / "out")
    modality = tomllib.loads((tmp_path / "out" / "registry.toml").read_text())["modalities"]["dinov2_global"]
    (tmp_path / "out" / "registry.toml").unlink()
    place = tmp_path / "out" / "tokenizers" / "dinov2_global" / "config.json"
    config = read_table(place)
    del config["published"]  # as in a tokenizer that was trained here
    place.write_text(json.dumps(config))
    message = r"dinov2_global: holds a .* that was not imported; give another OUT"
    before = files_in(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        run(import_command, tmp_path / "in", tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    (tmp_path / "out" / "tokenizers").rename(tmp_path / "out" / "mine")  # the folder named in the registry
    table = {key: value for key, value in modality.items() if key not in ("checkpoint", "sha256")}
    tables = {"zoo": {"checkpoints": "mine"}, "modalities": {"dinov2_global": table}}
    (tmp_path / "out" / "registry.toml").write_text(tomli_w.dumps(tables))
    assert Zoo.from_toml(tmp_path / "out" / "registry.toml")["dinov2_global"].has_tokenizer
    before = files_in(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        run(import_command, tmp_path / "in", tmp_path / "out")
    assert files_in(tmp_path / "out") == before


def test_another_vocabulary_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    file = text_file(tmp_path / "text.json")
    run(import_command, file, tmp_path / "out")
    assert "is there already" in run(import_command, file, tmp_path / "out")
    other = tmp_path / "other.json"
    other.write_text(file.read_text().replace("sit", "run"))
    with pytest.raises(CheckpointError, match=r"text: holds another vocabulary than .*other\.json; give another OUT"):
        run(import_command, other, tmp_path / "out")


class Killed(BaseException):
    """Raised in place of a kill signal."""


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, with the folder's own path in them replaced."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"FOLDER")
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published(published(PLUGGED), tmp_path / "in" / "4M_B")
    text_file(tmp_path / "in" / "words.json")
    config = {
        "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
        "patch_size": 1, "n_channels": 768, "latent_dim": 16, "codebook_size": 32,
    }  # fmt: skip
    write_published(published_tokenizer(**config), tmp_path / "in" / "4M_tokenizers_DINOv2-B14-global_8k")
    run(import_command, tmp_path / "in", tmp_path / "whole")
    whole = files_in(tmp_path / "whole")
    writes = 0
    real = os.replace

    def killed_at(last: int) -> Callable[..., None]:
        def replace(source: str, target: str) -> None:
            nonlocal writes
            writes += 1
            if writes > last:
                raise Killed
            real(source, target)

        return replace

    for last in range(40):
        writes, out = 0, tmp_path / f"out{last}"
        monkeypatch.setattr(os, "replace", killed_at(last))
        try:
            run(import_command, tmp_path / "in", out)
            break  # the import finished before the kill
        except Killed:
            monkeypatch.setattr(os, "replace", real)
        run(import_command, tmp_path / "in", out)
        assert files_in(out) == whole, last
    assert 10 < last < 39


def test_two_imports_into_one_folder_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"dinov2_global": 768, "human_poses": 207}
    for name, width in widths.items():
        write_published(published_tokenizer(**MEMCODES, n_channels=width), tmp_path / name)
    out, told, real = tmp_path / "out", list[Told](), folders.import_tokenizer
    second = threading.Thread(target=import_folders, args=(tmp_path / "human_poses", out, None, told.append))

    def meanwhile(folder: Path, title: str, name: str, out: Path, tables: dict[str, Any]) -> Told:
        if name == "dinov2_global":
            second.start()
            second.join(3)
        return real(folder, title, name, out, tables)

    monkeypatch.setattr(folders, "import_tokenizer", meanwhile)
    import_folders(tmp_path / "dinov2_global", out, None, told.append)
    second.join()
    assert {item.ours for item in told} == set(widths) == set(Zoo.from_toml(out / "registry.toml").names())


def test_a_repeated_import_restores_lost_registry_entries(tmp_path: Path) -> None:
    write_published(published(PLUGGED), tmp_path / "in" / "4M_B")
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tmp_path / "in" / "dinov2_global")
    text_file(tmp_path / "in" / "words.json")
    out, registry = tmp_path / "out", tmp_path / "out" / "registry.toml"
    run(import_command, tmp_path / "in", out)
    Run(tokens=tmp_path / "mine", registry=registry).save(out / "backbone")  # a user's edit
    weights = out / "backbone" / "model.safetensors"
    before, written = files_in(out), weights.stat().st_mtime_ns
    names = Zoo.from_toml(registry).names()
    registry.unlink()
    said = run(import_command, tmp_path / "in", out)
    assert files_in(out) == before and weights.stat().st_mtime_ns == written
    assert "4M_B" in said and "tok_depth@224" in said and said.count("is there already") == 2
    registry.unlink()
    run(import_command, tmp_path / "in" / "4M_B", out)
    assert Zoo.from_toml(registry).names() == [name for name in names if name != "dinov2_global"]
    # Only modalities without a table are added back; the user's list and settings are unchanged.
    registry.write_text(
        '[zoo]\ncheckpoints = "tokenizers"\nmodalities = ["heightmap"]\n[modalities.caption]\nmax_length = 20\n'
    )
    run(import_command, tmp_path / "in" / "4M_B", out)
    assert Zoo.from_toml(registry).names() == ["depth", "heightmap", "rgb_patches", "t5_caption"]
    assert tomllib.loads(registry.read_text())["modalities"]["caption"] == {"max_length": 20}


def test_a_registry_that_names_none_keeps_all_that_have_a_table(tmp_path: Path) -> None:
    write_published(published(VARIANTS["gated"]), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "registry.toml").write_text("[modalities.heightmap]\n")
    run(import_command, tmp_path / "in", tmp_path / "out")
    assert Zoo.from_toml(tmp_path / "out" / "registry.toml").names() == ["caption", "heightmap"]


def test_a_killed_export_resumes_and_leaves_foreign_files(tmp_path: Path) -> None:
    checkpoint = published(VARIANTS["gated"])
    write_published(checkpoint, tmp_path / "in")
    run(import_command, tmp_path / "in", tmp_path / "out")
    back = tmp_path / "back"
    beside = back / ".model.safetensors.0123456789abcdef.tmp.d"
    beside.mkdir(parents=True)
    for place in (beside, back):
        (place / ".model.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    run(export_command, tmp_path / "out" / "backbone", back)
    assert files_in(back) == files_in(tmp_path / "in") and not beside.exists()
    (back / "config.json").rename(back / ".config.json.0123456789abcdef.tmp")  # killed after the weights were written
    run(export_command, tmp_path / "out" / "backbone", back)
    assert files_in(back) == files_in(tmp_path / "in")

    def refused() -> None:
        before = files_in(back)
        with pytest.raises(CheckpointError, match="back: is there already; give a new or empty folder"):
            run(export_command, tmp_path / "out" / "backbone", back)
        assert files_in(back) == before

    refused()
    (back / "config.json").rename(back / "notes.json")
    refused()
    (back / "notes.json").unlink()
    other = {name: tensor + 1 for name, tensor in checkpoint.tensors.items()}
    write_published(dataclasses.replace(checkpoint, tensors=other), back)
    (back / "config.json").unlink()  # a checkpoint may consist of the weights file alone
    refused()


def test_a_folder_or_its_configuration_says_whose_tokenizer_it_is() -> None:
    zoo = Zoo.installed()
    for folder, config, name in (
        ("4M_tokenizers_rgb_16k_224-448", {}, "rgb"),
        ("4M_tokenizers_DINOv2-B14_8k_224-448", {}, "dinov2"),
        ("4M_tokenizers_DINOv2-B14-global_8k_16_224", {}, "dinov2_global"),  # the longest matching name wins
        ("4M_tokenizers_rgb_16k", {"domain": "canny_edge"}, "canny"),
        ("anything", {"domain": "semseg_coco"}, "semseg"),
    ):
        assert modality_of(folder, config, zoo) == name


def test_settings_in_the_registry_stay(tmp_path: Path) -> None:
    write_published(published(VARIANTS["gated"]), tmp_path / "in" / "4M_B")
    out = tmp_path / "out"
    out.mkdir()
    (out / "registry.toml").write_text('[zoo]\ncheckpoints = "elsewhere"\n[modalities.caption]\nmax_length = 20\n')
    run(import_command, tmp_path / "in" / "4M_B", out)
    tables = tomllib.loads((out / "registry.toml").read_text())
    assert tables["zoo"]["checkpoints"] == "elsewhere"
    assert tables["modalities"]["caption"] == {"max_length": 20}
    assert not (out / "tokenizers").exists()


def test_input_only_and_output_only_modalities_of_a_published_model(tmp_path: Path) -> None:
    """Super-resolution models read tokens at 224 pixels and predict tokens at 448."""
    names = {"domains_in": ["tok_clip@224", "tok_semseg@224"], "domains_out": ["tok_clip@448", "tok_semseg@224"]}
    tables = {"tok_clip_at_224": (196, 8192), "tok_clip_at_448": (784, 8192), "tok_semseg_at_224": (196, 4096)}
    write_published(published({**SIZED, **names}, **tables), tmp_path / "in")
    said = run(import_command, tmp_path / "in", tmp_path / "out")
    assert "an input only" in said and "made only, no input" in said
    backbone, registry = tmp_path / "out" / "backbone", tmp_path / "out" / "registry.toml"
    model = load_model(backbone)
    assert model.layout.discrete == ("clip_448", "semseg") and model.layout.readable == ("clip", "semseg")
    specs = model.layout.specs
    assert sorted(default_pairs(specs, model.config)) == [
        (("clip",), "clip_448"), (("clip",), "semseg"), (("semseg",), "clip_448")
    ]  # fmt: skip
    generating = ("--registry", registry, "backbone", "generate", backbone, "--out", tmp_path / "made", "--target")
    with pytest.raises(ConfigError, match=r"clip: it is only an input of this model, which predicts clip_448, semseg$"):
        run(command, *generating, "clip", "--samples", 1)
    with pytest.raises(ConfigError, match="rank clip: it is only an input of this model"):
        run(command, *generating, "semseg", "--samples", 1, "--rank", "clip")
    with pytest.raises(ConfigError, match="rank semseg of clip_448: it is only a target"):
        run(command, *generating, "clip_448", "--samples", 1, "--rank", "semseg")
    assert not (tmp_path / "made").exists()
    (tmp_path / "labels.csv").write_text("key,label\n")
    training = ("transfer", "train", backbone, "--task", tmp_path / "labels.csv", "--input", "semseg,clip_448")
    with pytest.raises(ConfigError, match="--input clip_448: it is only a target of this model"):
        run(command, "--registry", registry, *training)
    with pytest.raises(ConfigError, match="features of clip_448: it is only a target"):
        FourMEncoder.from_run(backbone).prepare({"clip_448": np.zeros((1, 28, 28), np.int64)})
    run(command, "--registry", registry, "report", backbone)
    assert (
        "One model of 3 modalities that makes any of 2 from any others" in (backbone / "report/index.html").read_text()
    )
    run(export_command, backbone, tmp_path / "back")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "in" / file).read_bytes()


def test_a_later_import_enables_only_its_own_modalities(tmp_path: Path) -> None:
    write_published(published(PLUGGED), tmp_path / "in" / "4M_B")
    tokenizer = tmp_path / "in" / "4M_tokenizers_DINOv2-B14-global_8k_16_224"
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tokenizer)
    registry = tmp_path / "out" / "registry.toml"
    run(import_command, tmp_path / "in" / "4M_B", tmp_path / "out")
    assert Zoo.from_toml(registry).names() == ["caption", "depth", "rgb_patches", "t5_caption"]
    text = registry.read_text()
    assert text.count('    "t5_caption",\n') == 1
    # Replace one modality with another, which has no table.
    registry.write_text(text.replace('    "t5_caption",\n', '    "heightmap",\n'))
    for source in (tmp_path / "in" / "4M_B", tokenizer, tokenizer):
        run(import_command, source, tmp_path / "out")
    assert Zoo.from_toml(registry).names() == ["caption", "depth", "dinov2_global", "heightmap", "rgb_patches"]


@pytest.mark.parametrize(
    ("said", "place"),
    [('[zoo]\ncheckpoints = "elsewhere"\n', "elsewhere"), ("[modalities.caption]\nmax_length = 20\n", CHECKPOINTS)],
)
def test_the_vocabulary_is_written_where_an_existing_registry_expects_it(said: str, place: str, tmp_path: Path) -> None:
    write_published(published(VARIANTS["gated"]), tmp_path / "in" / "4M_B")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "registry.toml").write_text(said)
    for source in (text_file(tmp_path / "in" / "text.json"), tmp_path / "in" / "4M_B"):
        run(import_command, source, tmp_path / "out")
        caption = Zoo.from_toml(tmp_path / "out" / "registry.toml")["caption"]
        assert caption.has_tokenizer and caption.checkpoint == tmp_path / "out" / place / "text"


@pytest.mark.parametrize("copied", [True, False])
def test_the_next_import_updates_paths_of_a_moved_or_copied_folder(copied: bool, tmp_path: Path) -> None:
    write_published(published(VARIANTS["gated"]), tmp_path / "in")
    run(import_command, tmp_path / "in", tmp_path / "out")
    (shutil.copytree if copied else shutil.move)(tmp_path / "out", tmp_path / "other")
    run(import_command, tmp_path / "in", tmp_path / "other")
    home = Run.load(tmp_path / "other" / "backbone")
    assert (home.tokens, home.registry) == (tmp_path / "other" / "tokens", tmp_path / "other" / "registry.toml")
    Run(tokens=tmp_path / "mine", registry=home.registry).save(tmp_path / "other" / "backbone")  # a user's edit
    run(import_command, tmp_path / "in", tmp_path / "other")
    assert Run.load(tmp_path / "other" / "backbone").tokens == tmp_path / "mine"


def test_settings_of_a_modality_stay_when_its_tokenizer_is_imported(tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=207), tmp_path / "in" / "4M_tokenizers_human-poses_1k_8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "registry.toml").write_text(
        '[zoo]\ncheckpoints = "tokenizers"\n[modalities.human_poses]\nlayout = "codes"\nbins = 500\n'
    )
    run(import_command, tmp_path / "in", tmp_path / "out")
    tables = tomllib.loads((tmp_path / "out" / "registry.toml").read_text())
    said = tables["modalities"]["human_poses"]
    assert (said["layout"], said["bins"]) == ("codes", 500) and "vocabularies" not in tables
    handle = Zoo.from_toml(tmp_path / "out" / "registry.toml")["human_poses"]
    assert handle.spec.vocabulary == "human_poses" and handle.has_tokenizer


def test_a_published_name_says_whose_tokenizer_it_is(tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=207), tmp_path / "in")
    assert "human_poses" in run(import_command, tmp_path / "in", tmp_path / "out", "--as", "human-poses")
    with pytest.raises(UnknownNameError, match="human-pose'"):
        run(import_command, tmp_path / "in", tmp_path / "other", "--as", "human-pose")


def test_a_hub_id_says_whose_tokenizer_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--EPFL-VILAB--4M_tokenizers_DINOv2-B14-global_8k_16_224" / "snapshots" / ("0" * 40)
    config = {
        "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
        "patch_size": 1, "n_channels": 768, "latent_dim": 16, "codebook_size": 32,
    }  # fmt: skip
    write_published(published_tokenizer(**config), snapshot)
    monkeypatch.setattr("tokenizers_zoo.checkpoint.hub_folder", lambda hub_id: snapshot)
    output = run(import_command, "EPFL-VILAB/4M_tokenizers_DINOv2-B14-global_8k_16_224", tmp_path / "out")
    assert "dinov2_global" in output and "0" * 20 not in output
    assert Zoo.from_toml(tmp_path / "out" / "registry.toml")["dinov2_global"].has_tokenizer


@pytest.mark.parametrize("written", [str, json.dumps])
def test_a_file_alone_has_its_configuration_in_its_metadata(written: Callable[[Any], str], tmp_path: Path) -> None:
    """The downloads linked in 4M's README are such files; values are written as Python or as JSON."""
    backbone = published({**PLUGGED, "mlp_ratio": 4.0, "act_layer": "SiLU"})
    tokenizer = published_tokenizer(**MEMCODES, n_channels=768)
    theirs, ours = "quantize.to_v.weight", "quantize.to_k.weight"  # one tensor with two names; the file has only one
    once = {**tokenizer.tensors, theirs: tokenizer.tensors[ours]}
    tokenizer = dataclasses.replace(tokenizer, tensors=once, same_as={theirs: ours})
    names = "4M-7_B_CC12M", "4M_tokenizers_DINOv2-B14-global_8k_16_224"
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for name, checkpoint in zip(names, (backbone, tokenizer), strict=True):
        said = {key: value if isinstance(value, str) else written(value) for key, value in checkpoint.config.items()}
        held = {key: tensor for key, tensor in checkpoint.tensors.items() if key not in checkpoint.same_as}
        save_file(held, downloads / f"{name}.safetensors", {"format": "pt", **said, **checkpoint.same_as})
        write_published(checkpoint, tmp_path / "folders" / name)
        found = read_published(downloads / f"{name}.safetensors")
        assert found.config == checkpoint.config and found.same_as == checkpoint.same_as
        assert found.tensors.keys() == checkpoint.tensors.keys()
    output = run(import_command, downloads, tmp_path / "out")
    run(import_command, tmp_path / "folders", tmp_path / "same")
    assert all(name in output for name in names)
    for place in ("backbone", "tokenizers/dinov2_global"):
        weights = [(tmp_path / out / place / "model.safetensors").read_bytes() for out in ("out", "same")]
        assert weights[0] == weights[1]
    assert run(import_command, downloads / f"{names[0]}.safetensors", tmp_path / "out").count("is there already") == 1
    run(export_command, tmp_path / "out" / "backbone", tmp_path / "back")
    assert read_published(tmp_path / "back" / "model.safetensors").config == backbone.config
    # A file named model.safetensors takes its folder's name, with or without a config.json next to it.
    alone = downloads / names[1] / "model.safetensors"
    alone.parent.mkdir()
    (downloads / f"{names[1]}.safetensors").rename(alone)
    assert names[1] in run(import_command, alone, tmp_path / "one")
    beside = tmp_path / "folders" / names[1] / "model.safetensors"
    assert names[1] in run(import_command, beside, tmp_path / "beside")


def test_a_link_says_whose_tokenizer_it_is(tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tmp_path / "cache" / "0123abc")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "4M_tokenizers_DINOv2-B14-global_8k_16_224").symlink_to(tmp_path / "cache" / "0123abc")
    assert "dinov2_global" in run(import_command, tmp_path / "in", tmp_path / "out")


def test_a_user_run_in_place_of_the_backbone_stays(tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tmp_path / "dinov2_global")
    own = tmp_path / "out" / "backbone"
    save_model(FourM(SMALL, all_layouts()), own, {"fingerprints": {}})
    Run(tokens=tmp_path / "mine", data=tmp_path / "data").save(own)
    before = files_in(own)
    run(import_command, tmp_path / "dinov2_global", tmp_path / "out")
    assert files_in(own) == before
    (own / "config.json").unlink()  # as in a training run that has not saved a model yet
    run(import_command, tmp_path / "dinov2_global", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo = 3", "zoo: expected a table, got int 3"), ("modalities = 3", "modalities: expected a table, got int 3"),
        ("[modalities]\ndepth = 3", "depth: expected a table, got int 3"),
        ("[zoo]\nmodalities = 3", r"\[zoo\] modalities: expected .*, got int 3"),
    ],
)  # fmt: skip
def test_an_invalid_registry_is_refused_before_anything_is_written(text: str, message: str, tmp_path: Path) -> None:
    write_published(published_tokenizer(**MEMCODES, n_channels=768), tmp_path / "dinov2_global")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "registry.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run(import_command, tmp_path / "dinov2_global", tmp_path / "out")
    assert files_in(tmp_path / "out") == {"registry.toml": text.encode()}


def test_files_that_cannot_be_imported_are_refused(tmp_path: Path) -> None:
    def fails(error: type[ZooError], message: str, *arguments: object) -> None:
        with pytest.raises(error, match=message):
            run(import_command, *arguments, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    (tmp_path / "empty").mkdir()
    fails(CheckpointError, "no published checkpoint here", tmp_path / "empty")
    fails(CheckpointError, "no such folder, and not a hub id", tmp_path / "nowhere")
    (tmp_path / "model.safetensors").touch()
    fails(CheckpointError, r"model\.safetensors: damaged", tmp_path / "model.safetensors")
    save_file({"mask_token": torch.zeros(1)}, tmp_path / "bare.safetensors", {"format": "pt"})
    fails(CheckpointError, r"bare\.safetensors: has no configuration in its metadata", tmp_path / "bare.safetensors")
    fails(CheckpointError, r"gone\.safetensors: no such file", tmp_path / "gone.safetensors")
    (tmp_path / "model.pth").touch()
    fails(CheckpointError, r"model\.pth: expected a folder with a config\.json", tmp_path / "model.pth")
    fails(CheckpointError, r"nowhere\.json: no such file; give that of 4M's text tokenizer", tmp_path / "nowhere.json")
    for name in ("one", "two"):
        write_published(published(VARIANTS["gated"]), tmp_path / "two" / name)
    fails(ConfigError, r"holds 2 backbones \(one, two\)", tmp_path / "two")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text("{}")
    fails(ConfigError, "its name does not say which modality it is a tokenizer of; add --as NAME", tmp_path / "strange")
    (tmp_path / "bad.json").write_text("{}")
    fails(CheckpointError, r"bad\.json: not a file of the tokenizers library", tmp_path / "bad.json")
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless" / "config.json").write_text('{"domains_in": [], "lr": Infinity}')
    fails(CheckpointError, "endless: config.json has a number that is not finite", tmp_path / "endless")
    unigram = {"added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}}
    (tmp_path / "unigram.json").write_text(json.dumps(unigram))
    with pytest.raises(CheckpointError, match="another vocabulary"):
        run(import_command, tmp_path / "unigram.json", tmp_path / "other")
    # --as names the modality of a single tokenizer.
    for name in ("first", "second"):
        (tmp_path / "several" / name).mkdir(parents=True)
        (tmp_path / "several" / name / "config.json").write_text("{}")
    text_file(tmp_path / "text.json")
    for place, held in (
        ("several", "2 tokenizers, 0 b"),
        ("two/one", "1 backbone"),
        ("text.json", "1 text tokenizer"),
    ):
        fails(ConfigError, f"--as depth: is for one tokenizer, .* holds .*{held}", "--as", "depth", tmp_path / place)


# ---------------------------------------------------------------------- image sizes of tokenizers


@pytest.fixture
def sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a backbone at 224 pixels, and tokenizers of two of its modalities that were built for 448."""
    monkeypatch.setitem(VITS, "vit_t", TINY_VIT)
    for name, config in zip(GRIDS, (CLIP, SEMSEG), strict=True):
        write_published(published_tokenizer(**config), tmp_path / "in" / name)
    write_published(backbone_of("224"), tmp_path / "in" / "4M_B")
    return tmp_path / "in"


def backbone_of(*sizes: str) -> PublishedCheckpoint:
    """Return a backbone with maps of both modalities at each of `sizes` (in pixels)."""
    names = [f"tok_{name}@{size}" for size in sizes for name in ("clip", "semseg")]
    ids = {"clip": 8192, "semseg": 4096}
    tables = {name.replace("@", "_at_"): ((int(name[-3:]) // 16) ** 2, ids[name[4:-4]]) for name in names}
    return published({**SIZED, "domains_in": names, "domains_out": names}, **tables)


def grids(out: Path) -> dict[str, tuple[int, ...]]:
    """Return both modalities' token grids by registry.toml, after checking that the tokenizers produce them."""
    zoo = Zoo.from_toml(out / "registry.toml")
    found = {name: zoo[name].spec.layout.shape for name in ("clip", "semseg")}
    for name, shape in found.items():
        tokens = zoo[name].encode(np.zeros((1, *zoo[name].spec.value.shape), zoo[name].spec.value.dtype))
        assert tuple(tokens.shape) == (1, *shape)
    return found


def same_as_in_backbone(out: Path) -> bool:
    """Whether both modalities have the same token layout in the backbone as in the registry."""
    zoo = Zoo.from_toml(out / "registry.toml")
    specs = {spec.name: spec.layout for spec in load_model(out / "backbone").layout.specs}
    return all(specs.get(name) == zoo[name].spec.layout for name in ("clip", "semseg"))


@pytest.mark.parametrize("order", [("4M_B", *GRIDS), (*GRIDS, "4M_B"), ("",)], ids=["backbone", "tokenizers", "all"])
def test_a_tokenizer_for_several_sizes_fits_the_backbone_in_any_order(order: tuple[str, ...], sized: Path) -> None:
    out = sized.parent / "out"
    said = "".join(run(import_command, sized / name, out) for name in order)
    assert grids(out) == {"clip": (14, 14), "semseg": (14, 14)} and same_as_in_backbone(out)
    words = " ".join(said.split())
    assert words.count("it was built for") == 2 and "other tokens" not in words


def test_without_a_backbone_the_name_says_the_size(sized: Path) -> None:
    run(import_command, sized / GRIDS[0], sized.parent / "out")
    (sized / GRIDS[1]).rename(sized / "semseg_256-512")  # the name gives other sizes than its config.json
    said = run(import_command, sized / "semseg_256-512", sized.parent / "out")
    assert grids(sized.parent / "out") == {"clip": (14, 14), "semseg": (28, 28)} and "built for" not in said


@pytest.mark.parametrize("pixels", [224, 448])
def test_a_backbone_changes_a_size_that_an_import_chose(pixels: int, sized: Path) -> None:
    """From 448 pixels, for which the tokenizers were built, to 224, and the reverse."""
    out = sized.parent / "out"
    for name, short in zip(GRIDS, ("CLIP-B16", "semseg"), strict=True):
        run(import_command, (sized / name).rename(sized / short) if pixels == 224 else sized / name, out)
    write_published(backbone_of(str(pixels)), sized / "other")
    said = " ".join(run(import_command, sized / "other", out).split())
    side = pixels // 16
    assert grids(out) == {"clip": (side, side), "semseg": (side, side)} and same_as_in_backbone(out)
    assert said.count("as this backbone has it; it was") == 2 and f"image_size = {pixels}," in said


@pytest.mark.parametrize("order", [("4M_B", *GRIDS), (*GRIDS, "4M_B"), ("",)], ids=["backbone", "tokenizers", "all"])
def test_a_size_that_the_registry_states_stays(order: tuple[str, ...], sized: Path) -> None:
    out = sized.parent / "out"
    out.mkdir()
    (out / "registry.toml").write_text(
        '[zoo]\ncheckpoints = "tokenizers"\n[modalities.clip]\nmap_size = 28\ncolours = "clip"\n'
        "[modalities.semseg]\nimage_size = [448, 224]\n"
    )
    said = " ".join("".join(run(import_command, sized / name, out) for name in order).split())
    assert grids(out) == {"clip": (28, 28), "semseg": (28, 14)}
    assert "it was built for image_size = 448" in said and "the plugin clip has other tokens" in said
    assert {"tok_clip_224", "tok_semseg_224"} == {spec.name for spec in load_model(out / "backbone").layout.specs}
    assert Zoo.from_toml(out / "registry.toml")["clip"].known_settings()["colours"] == "clip"


def test_an_impossible_size_in_the_registry_is_reported(sized: Path) -> None:
    out = sized.parent / "out"
    out.mkdir()
    (out / "registry.toml").write_text('[zoo]\ncheckpoints = "tokenizers"\nimage_size = 100\npatch_size = 4\n')
    said = " ".join(run(import_command, sized / GRIDS[1], out).split())
    assert "image_size = 448, its own: image_size = 100" in said and "16 does not divide the image size" in said
    assert Zoo.from_toml(out / "registry.toml")["semseg"].spec.layout.shape == (28, 28)


def test_no_instance_gets_a_tokenizer_that_was_trained_here(tmp_path: Path) -> None:
    tables = {
        "zoo": {"modalities": ["clip", "clip_448"]},
        "modalities": {
            "clip": {"checkpoint": "mine/clip", "map_size": 14}, "clip_448": {"plugin": "clip", "map_size": 28}
        },
    }  # fmt: skip
    assert not Zoo.from_tables(tables, tmp_path / "registry.toml")["clip_448"].has_tokenizer
    before = copy.deepcopy(tables)
    share_tokenizers(tables, tmp_path / "registry.toml")
    assert tables == before


@pytest.mark.parametrize("order", [("4M_B", *GRIDS), (*GRIDS, "4M_B"), ("",)], ids=["backbone", "tokenizers", "all"])
def test_two_sizes_in_one_backbone_are_two_modalities_with_one_tokenizer(order: tuple[str, ...], sized: Path) -> None:
    out = sized.parent / "out"
    write_published(backbone_of("224", "448"), sized / "4M_B")
    said = [run(import_command, sized / name, out) for name in order][-1]
    assert "no tokenizer yet" not in said
    assert grids(out) == {"clip": (14, 14), "semseg": (14, 14)} and same_as_in_backbone(out)
    zoo = Zoo.from_toml(out / "registry.toml")
    for name in ("clip", "semseg"):
        large, value = zoo[f"{name}_448"], zoo[f"{name}_448"].spec.value
        assert large.spec.layout.shape == (28, 28) and large.has_tokenizer
        assert large.checkpoint == zoo[name].checkpoint and large.fingerprint == zoo[name].fingerprint
        tokens = large.encode(np.zeros((1, *value.shape), value.dtype))
        assert tuple(tokens.shape) == (1, 28, 28) and np.asarray(large.decode(tokens)[0]).shape == value.shape
        assert read_table(out / "backbone" / "config.json")["fingerprints"][large.name] == large.fingerprint
