"""zoo import-ml4m and export-ml4m: folders in, folders out, the text vocabulary, and errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from backbone_samples import SMALL, all_layouts
from click.testing import CliRunner
from published_tokenizers import MEMCODES
from published_tokenizers import published as published_tokenizer
from safetensors.torch import save_file
from test_ml4m_backbone import VARIANTS, published
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenizers_zoo.cli.main import zoo as command
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.errors import CheckpointError, ConfigError, OneLineError, UnknownNameError
from tokenizers_zoo.files.published import PublishedCheckpoint, read_published, write_published
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.testing.probe import STUMBLES
from tokenizers_zoo.tokenizers.text_vocab import Coordinate, TextVocabulary, VocabularyConfig
from zoo_backbone.cli.ml4m import export_command, import_command
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.measure.evaluation_data import pairs_of
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import Run
from zoo_backbone.use.ml4m import folders
from zoo_backbone.use.ml4m.folders import TableRow, export_folder, import_folders, modality_of
from zoo_backbone.use.ml4m.modalities import size_in

WORDS = ["a", "red", "dog", "##s", "sit", "##ting", "hot", "on", "it", ",", "'", "[", "]", "s", "_", "0", "v0", "=",
         "5"]  # fmt: skip
CONFIG = VocabularyConfig(size=30_000, end=3, unused=1, sentinels=199, coordinate_axes=4, coordinate_bins=1000)
DINOV2 = "4M_tokenizers_DINOv2-B14-global_8k_16_224"
GRID = {
    "class": "VQVAE", "enc_type": "vit_t_enc", "dec_type": "vit_t_dec", "image_size": 448, "patch_size": 16,
    "latent_dim": 8,
}  # fmt: skip
CLIP = {**GRID, "patch_proj": False, "n_channels": 512, "codebook_size": 8192}
SEMSEG = {**GRID, "n_labels": 134, "n_channels": 6, "codebook_size": 4096}
GRID_FOLDERS = ("4M_tokenizers_CLIP-B16_8k_224-448", "4M_tokenizers_semseg_4k_224-448")
SIZED = {
    **VARIANTS["gated"], "image_size": 224, "patch_size": 16, "domains_in": ["tok_clip@224", "tok_semseg@224"],
    "domains_out": ["tok_clip@224", "tok_semseg@224"],
}  # fmt: skip
"""A backbone with 14 x 14 tokens of both modalities, the tokenizers' grids at 224 pixels."""
PLUGGED = {
    **VARIANTS["gated"], "image_size": 224, "patch_size": 16,
    "domains_in": ["caption", "rgb@224", "t5_caption", "tok_depth@224"],
    "domains_out": ["caption", "t5_caption", "tok_depth@224"],
}  # fmt: skip


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
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def run(command: object, *arguments: object) -> str:
    """Run a command and return its output; exceptions are raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


class Workspace:
    """Published checkpoints in the folder `source`, and the folder `out` that they are imported into."""

    def __init__(self, root: Path) -> None:
        self.root, self.source, self.out = root, root / "in", root / "out"
        self.backbone, self.registry = self.out / "backbone", self.out / "registry.toml"

    def put(self, name: str, checkpoint: PublishedCheckpoint | None = None) -> Path:
        """Write a checkpoint into a folder of `source`; by default a tokenizer of global vectors of DINOv2."""
        write_published(checkpoint or published_tokenizer(**MEMCODES, n_channels=768), self.source / name)
        return self.source / name

    def run_import(self, *names: str | Path, options: tuple[str, ...] = ()) -> str:
        """Import these parts of `source`, by default all at once; return what is printed, without line breaks."""
        outputs = [run(import_command, self.source / name, self.out, *options) for name in names or ("",)]
        return " ".join(" ".join(outputs).split())

    def write_registry(self, text: str) -> None:
        """Write a registry.toml before the first import."""
        self.out.mkdir()
        self.registry.write_text(text)

    @property
    def zoo(self) -> Zoo:
        return Zoo.from_toml(self.registry)

    @property
    def tables(self) -> dict[str, Any]:
        return tomllib.loads(self.registry.read_text())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, with the folder's own path in them replaced."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"FOLDER")
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }  # fmt: skip


# --- the text vocabulary


@pytest.fixture(scope="module")
def text_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.json")


def test_the_published_text_vocabulary_gives_the_published_ids(text_json: Path) -> None:
    vocabulary = TextVocabulary(CONFIG, published=text_json.read_text())
    reference = Tokenizer.from_file(str(text_json))
    for text in ("A red dog, sitting", "hot dogs", "a hot dog on it", "RED"):
        assert vocabulary.encode_text(text) == reference.encode(text).ids
    boxes = [Coordinate(axis, 10 * axis) for axis in range(4)]
    assert vocabulary.encode([*boxes, " hot dog"]) == reference.encode("v0=0 v1=10 v2=20 v3=30 hot dog").ids
    assert vocabulary.decode([*vocabulary.encode(boxes), *vocabulary.encode_text("a dog")]) == [*boxes, "a dog"]
    assert vocabulary.decode_text(vocabulary.encode_text("A Red dog, sitting")) == "a red dog, sitting"
    assert (vocabulary.used, vocabulary.parts["learned pieces"]) == (4204 + 1 + len(WORDS), (4204, 1 + len(WORDS)))
    for text in ("[S_0]", "v0=5", "[EOS]", "[PAD]", "a v0=5 dog"):  # never a sentinel or a coordinate
        ids = vocabulary.encode_text(text)
        assert ids and all(index == 1 or index >= 4204 for index in ids)


def test_a_limit_cuts_between_words_and_all_is_restored(text_json: Path, tmp_path: Path) -> None:
    vocabulary = TextVocabulary(CONFIG, published=text_json.read_text())
    for text in ("red dogs sitting", "RED Dogs sitting"):
        assert vocabulary.decode_text(vocabulary.encode_text(text, limit=4)) == "red dogs"
    ids = vocabulary.encode_text("red dogs")
    assert vocabulary.encode_text(f"{' ' * 17_000}red dogs", limit=10) == ids, "spaces do not count"
    vocabulary.save(tmp_path / "text")
    loaded = TextVocabulary.load(tmp_path / "text", CONFIG)
    assert loaded.encode_text("red dogs") == ids and len(loaded.encode_text("hot dog")) == 1
    grown = loaded.grow(["<new>"])
    assert grown.all_special_tokens == ("<new>",) and grown.used == loaded.used + 1
    assert grown.encode_text("red dogs") == ids


def test_truncation_and_padding_of_a_vocabulary_file_are_ignored(text_json: Path) -> None:
    tokenizer = Tokenizer.from_file(str(text_json))
    ids = tokenizer.encode("red dogs on it").ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert TextVocabulary(CONFIG, published=tokenizer.to_str()).encode_text("red dogs on it") == ids


def test_another_vocabulary_file_is_refused(workspace: Workspace) -> None:
    for content in ("{}", "[EOS]"):
        with pytest.raises(CheckpointError, match="tokenizers library"):
            TextVocabulary(CONFIG, published=content)
    other_vocabulary = text_file(workspace.source / "moved.json", **{"[EOS]": 2, "[SOS]": 3})
    with pytest.raises(CheckpointError, match=r"\[EOS\] .* 2, expected 3"):
        TextVocabulary(CONFIG, published=other_vocabulary.read_text())
    file = text_file(workspace.source / "text.json")
    workspace.run_import("text.json")
    assert "is there already" in workspace.run_import("text.json")
    (workspace.source / "other.json").write_text(file.read_text().replace("sit", "run"))
    with pytest.raises(CheckpointError, match=r"text: .* another vocabulary .*other\.json"):
        workspace.run_import("other.json")


def test_plugins_write_sequences_as_4m_does(text_json: Path, tmp_path: Path) -> None:
    run(import_command, text_json, tmp_path)
    tables = {"zoo": {"checkpoints": "tokenizers"}, "vocabularies": {"text": {"preset": "4m"}}}
    tables["modalities"] = {name: {"preset": "4m"} for name in ("boxes", "palette", "metadata")}
    zoo, reference = Zoo.from_tables(tables, tmp_path / "registry.toml"), Tokenizer.from_file(str(text_json))

    def token_ids(name: str, value: object) -> list[int]:
        ids = zoo[name].encode([value])[0]
        encoded = zoo[name].encode([zoo[name].decode([ids])[0]])[0]
        assert encoded.tolist() == ids.tolist()
        return ids.tolist()

    instances = [{"label": "hot dog", "box": [0.5, 0.5, 0.9, 1.0]}, {"label": "dog", "box": [0.1, 0.2, 0.3, 0.4]}]
    text = "v0=100 v1=200 v2=300 v3=400 dog v0=500 v1=500 v2=899 v3=999 hot dog"  # sorted from the upper left corner
    assert token_ids("boxes", instances) == reference.encode(text).ids
    colours = np.array([(0, 0.5, 1), (1, 0.5, 0)] * 3 + [(0, 0.5, 1)], np.float32)
    text = "v1=7" + " v0=0 v0=128 v0=255 v0=255 v0=128 v0=0" * 3 + " v0=0 v0=128 v0=255"
    assert token_ids("palette", colours) == reference.encode(text).ids
    colours[3:] = colours[2]  # three colours; the last is repeated to fill up the palette
    three_colours = reference.encode("v1=3 v0=0 v0=128 v0=255 v0=255 v0=128 v0=0 v0=0 v0=128 v0=255").ids
    assert token_ids("palette", colours) == three_colours
    table = {"original_width": 650.0, "n_humans": 3, "brightness": 103, "walkability": 0.99, "aesthetic_score": 5.0}
    assert (
        token_ids("metadata", table) == reference.encode("v1=0 v0=20 v1=5 v0=3 v1=10 v0=19 v1=14 v0=48 v1=20 v0=1").ids
    )


# --- folders in, folders out


def test_a_folder_of_checkpoints_becomes_a_folder_with_a_registry(workspace: Workspace) -> None:
    source = workspace.put("4M_B", published(VARIANTS["gated"]))
    text_file(workspace.source / "words.json")
    assert "tok_thing_32" in workspace.run_import()
    zoo, outputs = workspace.zoo, workspace.root / "made"
    assert zoo["caption"].spec.vocab_size == 30_000
    assert zoo["caption"].decode([zoo["caption"].encode(["a red dog"])[0]]) == ["a red dog"]
    assert read_table(workspace.backbone / "config.json")["fingerprints"] == {"caption": zoo["caption"].fingerprint}
    generate = ("--registry", zoo.path, "backbone", "generate", workspace.backbone, "--target", "caption")
    run(command, *generate, "--out", outputs, "--samples", 2, "--set", "max_length=3")
    assert len(list(outputs.rglob("caption.txt"))) == 2
    other_source = Path(shutil.copytree(source, workspace.root / "other"))
    config = json.loads((other_source / "config.json").read_text())
    (other_source / "config.json").write_text(json.dumps({**config, "num_register_tokens": 4}))
    with pytest.raises(CheckpointError, match=r"backbone: holds another published .*num_register_tokens"):
        workspace.run_import(other_source)
    run(export_command, workspace.backbone, workspace.root / "back")
    assert files_in(workspace.root / "back") == files_in(source)


def test_modalities_become_those_of_installed_plugins(workspace: Workspace) -> None:
    workspace.put("", published(PLUGGED))
    workspace.run_import()
    zoo = workspace.zoo
    assert zoo.names() == ["caption", "depth", "rgb_patches", "t5_caption"]
    assert load_model(workspace.backbone, [zoo[name].spec for name in zoo.names()])
    grey = np.full((3, 224, 224), 0.5, np.float32)  # normalised by ImageNet's statistics, as published backbones expect
    red, green, blue = zoo["rgb_patches"].encode([grey])[0, 0].reshape(3, 256)[:, 0].tolist()
    assert (red, green, blue) == pytest.approx(((0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225))
    vectors = np.arange(2 * 4096, dtype=np.float32).reshape(2, 4096)
    assert np.array_equal(zoo["t5_caption"].encode([vectors])[0], vectors)


@pytest.mark.parametrize(
    ("size", "message"),
    [((196, 4096), "8192 ids, and these are 4096"), ((100, 8192), "196 tokens, and these have 100")],
)
def test_tokens_unlike_the_plugins_become_a_separate_modality(
    size: tuple[int, int], message: str, workspace: Workspace
) -> None:
    workspace.put("", published(PLUGGED, tok_depth_at_224=size))
    output = workspace.run_import()
    assert "tok_depth_224" in output and all(word in output for word in message.split())
    assert "depth" not in workspace.zoo.names()
    spec = load_model(workspace.backbone).layout.spec("tok_depth_224")
    assert (spec.layout.length, spec.vocab_size) == size


def test_an_imported_tokenizer_runs_and_is_exported(workspace: Workspace) -> None:
    source = workspace.put(DINOV2)
    workspace.run_import()
    assert workspace.zoo["dinov2_global"].encode([np.ones(768, np.float32)]).shape == (1, 4)
    run(export_command, workspace.out / "tokenizers" / "dinov2_global", workspace.root / "back")
    assert files_in(workspace.root / "back") == files_in(source)


def test_a_foreign_config_is_exported_or_refused(workspace: Workspace) -> None:
    workspace.put(DINOV2)
    workspace.run_import()
    folder = workspace.out / "tokenizers" / "dinov2_global"
    config = read_table(folder / "config.json")
    for key, inner in [(key, None) for key in config] + [("published", key) for key in config["published"]]:
        for value in (3, "x", [], {}, None, [{"a": 1}]):
            write_table(folder / "config.json", {**config, key: {**config[key], inner: value} if inner else value})
            try:
                export_folder(folder, workspace.root / "back")
                shutil.rmtree(workspace.root / "back")
            except OneLineError as error:
                assert not isinstance(error.__cause__, STUMBLES), (key, inner, value, str(error))


@pytest.mark.parametrize(
    ("name", "size"), [("tok@448", 448), ("tok", None), ("tok@\N{SUPERSCRIPT TWO}", None), ("tok@" + 5000 * "9", None)]
)
def test_the_image_size_is_read_from_a_published_name(name: str, size: int | None) -> None:
    """Names of strangers may be odd."""
    assert size_in(name) == size


def test_checkpoints_with_equal_configurations_are_told_apart_by_weights(tmp_path: Path) -> None:
    """Published variants (CC12M, COYO) share a configuration."""
    small = {**VARIANTS["gated"], "domains_in": ["caption"], "domains_out": ["caption"]}
    backbones, tokenizers = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    for name in ("CC12M", "COYO"):
        backbones.put(name, published(small, seed=name))
    for seed, name in enumerate(("one", "two")):
        tokenizers.put(name, published_tokenizer(seed=seed, **MEMCODES, n_channels=768))
    alias = ("--as", "dinov2_global")
    for workspace, first, second, options in ((backbones, "CC12M", "COYO", ()), (tokenizers, "one", "two", alias)):
        workspace.run_import(first, options=options)
        before = files_in(workspace.out)
        with pytest.raises(CheckpointError, match=r"another published .* weights differ"):
            workspace.run_import(second, options=options)
        assert "is there already" in workspace.run_import(first, options=options)
        assert files_in(workspace.out) == before


def test_checkpoints_that_were_not_imported_stay(workspace: Workspace) -> None:
    workspace.put("dinov2_global")
    workspace.run_import()
    table = workspace.tables["modalities"]["dinov2_global"]
    workspace.registry.unlink()
    config = workspace.out / "tokenizers" / "dinov2_global" / "config.json"
    write_table(config, {key: value for key, value in read_table(config).items() if key != "published"})

    def assert_import_refused() -> None:
        before = files_in(workspace.out)
        with pytest.raises(CheckpointError, match=r"dinov2_global: .* not imported; .*OUT"):
            workspace.run_import()
        assert files_in(workspace.out) == before

    assert_import_refused()
    (workspace.out / "tokenizers").rename(workspace.out / "mine")  # the folder named in the registry
    entry = {key: value for key, value in table.items() if key not in ("checkpoint", "sha256")}
    workspace.registry.write_text(
        tomli_w.dumps({"zoo": {"checkpoints": "mine"}, "modalities": {"dinov2_global": entry}})
    )
    assert workspace.zoo["dinov2_global"].has_tokenizer
    assert_import_refused()


class Killed(BaseException):
    """Raised in place of a kill signal."""


def test_a_killed_import_resumes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.put("4M_B", published(PLUGGED))
    text_file(workspace.source / "words.json")
    workspace.put("4M_tokenizers_DINOv2-B14-global_8k")
    workspace.run_import()
    complete_files, writes, real = files_in(workspace.out), 0, os.replace

    def killed_at(last: int) -> Callable[..., None]:
        def replace(source: str, target: str) -> None:
            nonlocal writes
            writes += 1
            if writes > last:
                raise Killed
            real(source, target)

        return replace

    for last in range(0, 60, 5):
        writes, workspace.out = 0, workspace.root / f"out{last}"
        monkeypatch.setattr(os, "replace", killed_at(last))
        try:
            workspace.run_import()
            break  # the import finished before the kill
        except Killed:
            monkeypatch.setattr(os, "replace", real)
        workspace.run_import()
        assert files_in(workspace.out) == complete_files, last
    assert 10 < last < 55


def test_a_simultaneous_import_into_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"dinov2_global": 768, "human_poses": 207}
    for name, width in widths.items():
        write_published(published_tokenizer(**MEMCODES, n_channels=width), tmp_path / name)
    out, real = tmp_path / "out", folders.import_tokenizer

    def second() -> None:
        with pytest.raises(FolderError, match="another process"):
            import_folders(tmp_path / "human_poses", out, None)

    def meanwhile(*arguments: Any) -> TableRow:
        with ThreadPoolExecutor() as pool:
            pool.submit(second).result()
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(folders, "import_tokenizer", meanwhile)
        import_folders(tmp_path / "dinov2_global", out, None)
    import_folders(tmp_path / "human_poses", out, None)
    assert set(Zoo.from_toml(out / "registry.toml").names()) == set(widths)


def test_a_killed_export_resumes_and_leaves_foreign_files(workspace: Workspace) -> None:
    source, back = workspace.put("", published(VARIANTS["gated"])), workspace.root / "back"
    workspace.run_import()
    half = workspace.root / ".back.tmp"
    (half / "new").mkdir(parents=True)
    (half / "new" / "model.safetensors").write_bytes(b"half")
    for folder in (back, workspace.root / "empty"):
        folder.mkdir()
        run(export_command, workspace.backbone, folder)
        assert files_in(folder) == files_in(source) and not half.exists()
    for _ in range(2):  # a checkpoint may consist of the weights file alone
        before = files_in(back)
        with pytest.raises(FolderError, match=r"back: .* empty folder"):
            run(export_command, workspace.backbone, back)
        assert files_in(back) == before
        (back / "config.json").unlink(missing_ok=True)


def test_input_only_and_output_only_modalities_of_a_published_model(workspace: Workspace) -> None:
    """Super-resolution models read tokens at 224 pixels and predict tokens at 448."""
    names = {"domains_in": ["tok_clip@224", "tok_semseg@224"], "domains_out": ["tok_clip@448", "tok_semseg@224"]}
    tables = {"tok_clip_at_224": (196, 8192), "tok_clip_at_448": (784, 8192), "tok_semseg_at_224": (196, 4096)}
    source = workspace.put("", published({**SIZED, **names}, **tables))
    output = workspace.run_import()
    assert "an input only" in output and "made only, no input" in output
    model, root, backbone = load_model(workspace.backbone), workspace.root, workspace.backbone
    assert model.layout.discrete == ("clip_448", "semseg") and model.layout.readable == ("clip", "semseg")
    assert sorted(pairs_of(model.layout.specs, model.layout)) == [
        (("clip",), "clip_448"), (("clip",), "semseg"), (("semseg",), "clip_448")
    ]  # fmt: skip
    (root / "labels.csv").write_text("key,label\n")
    generate = ("generate", backbone, "--samples", 1, "--out", root / "made", "--target")
    for message, *rest in (
        ("clip: .* only an input .* clip_448, semseg$", "backbone", *generate, "clip"),
        ("rank semseg of clip_448: .* only a target", "backbone", *generate, "clip_448", "--rank", "semseg"),
        ("--input clip_448: .* only a target", "transfer", "train", backbone, "--task",
         root / "labels.csv", "--input", "semseg,clip_448"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            run(command, "--registry", workspace.registry, *rest)
    assert not (root / "made").exists()
    with pytest.raises(ConfigError, match=r"features of clip_448: .* only a target"):
        FourMEncoder.from_run(backbone).prepare({"clip_448": np.zeros((1, 28, 28), np.int64)})
    run(export_command, backbone, root / "back")
    assert files_in(root / "back") == files_in(source)


# --- the registry


def weights_of(folder: Path) -> dict[Path, int]:
    """Return when each weights file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}


def test_a_repeated_import_only_restores_lost_registry_entries(workspace: Workspace) -> None:
    workspace.put("4M_B", published(PLUGGED))
    workspace.put("dinov2_global")
    text_file(workspace.source / "words.json")
    workspace.run_import()
    Run(tokens=workspace.root / "mine", registry=workspace.registry).save(workspace.backbone)  # a user's edit
    before, write_times = files_in(workspace.out), weights_of(workspace.out)
    assert workspace.run_import().count("is there already") == 3 and weights_of(workspace.out) == write_times
    workspace.registry.unlink()
    output = workspace.run_import()
    assert files_in(workspace.out) == before and weights_of(workspace.backbone).items() <= write_times.items()
    assert "4M_B" in output and "tok_depth@224" in output and output.count("is there already") == 2
    # Only modalities without a table are added back; the user's list and settings are unchanged.
    lists = '[zoo]\ncheckpoints = "tokenizers"\nmodalities = ["heightmap"]\n[modalities.caption]\nmax_length = 20\n'
    workspace.registry.write_text(lists)
    workspace.run_import("4M_B")
    assert workspace.zoo.names() == ["depth", "heightmap", "rgb_patches", "t5_caption"]
    assert workspace.tables["modalities"]["caption"] == {"max_length": 20}


def test_settings_in_an_existing_registry_stay(workspace: Workspace) -> None:
    workspace.put("4M_B", published(VARIANTS["gated"]))
    workspace.put("4M_tokenizers_human-poses_1k_8", published_tokenizer(**MEMCODES, n_channels=207))
    text_file(workspace.source / "text.json")
    tables = {"caption": {"max_length": 20}, "human_poses": {"layout": "codes", "bins": 500}}
    workspace.write_registry(tomli_w.dumps({"zoo": {"checkpoints": "elsewhere"}, "modalities": tables}))
    workspace.run_import("text.json", "4M_B", "4M_tokenizers_human-poses_1k_8")
    caption, poses, registry_tables = workspace.zoo["caption"], workspace.zoo["human_poses"], workspace.tables
    assert caption.has_tokenizer and caption.checkpoint == workspace.out / "elsewhere" / "text"
    assert workspace.zoo.names() == ["caption", "human_poses"] and not (workspace.out / "tokenizers" / "text").exists()
    assert registry_tables["modalities"]["caption"] == tables["caption"]
    assert registry_tables["modalities"]["human_poses"].items() >= tables["human_poses"].items()
    assert poses.spec.vocabulary == "human_poses" and poses.has_tokenizer


def test_a_moved_folder_keeps_its_paths_and_edits(workspace: Workspace) -> None:
    workspace.put("", published(VARIANTS["gated"]))
    workspace.run_import()
    shutil.move(workspace.out, workspace.root / "other")
    workspace.out, backbone = workspace.root / "other", workspace.root / "other" / "backbone"
    imported_run = Run.load(backbone)
    assert (imported_run.tokens, imported_run.registry) == (workspace.out / "tokens", workspace.out / "registry.toml")
    workspace.run_import()
    assert Run.load(backbone) == imported_run
    Run(tokens=workspace.root / "mine", registry=imported_run.registry).save(backbone)  # a user's edit
    workspace.run_import()
    assert Run.load(backbone).tokens == workspace.root / "mine"


def test_a_user_run_in_place_of_the_backbone_stays(workspace: Workspace) -> None:
    workspace.put("dinov2_global")
    save_model(FourM(SMALL, all_layouts()), workspace.backbone, {"fingerprints": {}})
    Run(tokens=workspace.root / "mine", data=workspace.root / "data").save(workspace.backbone)
    before = files_in(workspace.backbone)
    workspace.run_import()
    assert files_in(workspace.backbone) == before


def test_an_invalid_registry_is_refused_before_anything_is_written(workspace: Workspace) -> None:
    text = "[modalities]\ndepth = 3"
    workspace.put("dinov2_global")
    workspace.write_registry(text)
    with pytest.raises(ConfigError, match="got int 3"):
        workspace.run_import()
    assert files_in(workspace.out) == {"registry.toml": text.encode()}


# --- names of tokenizers


def test_the_modality_is_read_from_folder_name_config_or_link(workspace: Workspace) -> None:
    zoo = Zoo.installed()
    for folder, config, name in (
        ("4M_tokenizers_rgb_16k_224-448", {}, "rgb"),
        (DINOV2, {}, "dinov2_global"),  # the longest matching name wins
        ("4M_tokenizers_rgb_16k", {"domain": "canny_edge"}, "canny"),
        ("anything", {"domain": "semseg_coco"}, "semseg"),
    ):
        assert modality_of(folder, config, zoo) == name
    workspace.source.mkdir()
    workspace.source = workspace.root / "cache"
    target = workspace.put("0123abc")
    workspace.source = workspace.root / "in"
    (workspace.source / DINOV2).symlink_to(target)
    assert "dinov2_global" in workspace.run_import()


def test_an_option_names_the_modality_of_a_tokenizer(workspace: Workspace) -> None:
    workspace.put("", published_tokenizer(**MEMCODES, n_channels=207))
    assert "human_poses" in workspace.run_import(options=("--as", "human-poses"))
    with pytest.raises(UnknownNameError, match="human-pose'"):
        workspace.run_import(options=("--as", "human-pose"))


def test_a_hub_id_names_the_modality_of_a_tokenizer(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = workspace.put(f"models--EPFL-VILAB--{DINOV2}/snapshots/" + "0" * 40)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: str(snapshot))
    output = run(import_command, f"EPFL-VILAB/{DINOV2}", workspace.out)
    assert "dinov2_global" in output and "0" * 20 not in output
    assert workspace.zoo["dinov2_global"].has_tokenizer


@pytest.mark.parametrize("to_text", [str, json.dumps])
def test_a_single_file_has_its_configuration_in_its_metadata(to_text: Callable[[Any], str], tmp_path: Path) -> None:
    """The downloads linked in 4M's README are such files; values are written as Python or as JSON."""
    backbone = published({**PLUGGED, "mlp_ratio": 4.0, "act_layer": "SiLU"})
    tokenizer = published_tokenizer(**MEMCODES, n_channels=768)
    alias, stored_name = "quantize.to_v.weight", "quantize.to_k.weight"  # of one tensor, which the file has once
    tensors_stored_once = {**tokenizer.tensors, alias: tokenizer.tensors[stored_name]}
    tokenizer = dataclasses.replace(tokenizer, tensors=tensors_stored_once, same_as={alias: stored_name})
    names = "4M-7_B_CC12M", DINOV2
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for name, checkpoint in zip(names, (backbone, tokenizer), strict=True):
        metadata = {
            key: value if isinstance(value, str) else to_text(value) for key, value in checkpoint.config.items()
        }
        tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key not in checkpoint.same_as}
        save_file(tensors, downloads / f"{name}.safetensors", {"format": "pt", **metadata, **checkpoint.same_as})
        write_published(checkpoint, tmp_path / "folders" / name)
        checkpoint_read = read_published(downloads / f"{name}.safetensors")
        assert checkpoint_read.config == checkpoint.config and checkpoint_read.same_as == checkpoint.same_as
        assert checkpoint_read.tensors.keys() == checkpoint.tensors.keys()
    output = run(import_command, downloads, tmp_path / "out")
    run(import_command, tmp_path / "folders", tmp_path / "same")
    assert all(name in output for name in names)
    for checkpoint_path in ("backbone", "tokenizers/dinov2_global"):
        weights = [(tmp_path / out / checkpoint_path / "model.safetensors").read_bytes() for out in ("out", "same")]
        assert weights[0] == weights[1]
    run(export_command, tmp_path / "out" / "backbone", tmp_path / "back")
    assert read_published(tmp_path / "back" / "model.safetensors").config == backbone.config


def test_files_that_cannot_be_imported_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").touch()
    save_file({"mask_token": torch.zeros(1)}, tmp_path / "bare.safetensors", {"format": "pt"})
    for name, config in {"strange": "{}", "endless": '{"domains_in": [], "lr": Infinity}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    for name in ("one", "two"):
        write_published(published(VARIANTS["gated"]), tmp_path / "two" / name)
    for error, message, source in (
        (CheckpointError, "no published checkpoint", "empty"),
        (CheckpointError, "nowhere: .* hub id", "nowhere"),
        (CheckpointError, r"model\.safetensors: damaged", "model.safetensors"),
        (CheckpointError, r"bare\.safetensors: .* metadata", "bare.safetensors"),
        (ConfigError, r"2 backbones \(one, two\)", "two"),
        (ConfigError, "strange: .* which modality", "strange"),
        (CheckpointError, "endless: config.json .* finite", "endless"),
    ):
        with pytest.raises(error, match=message):
            run(import_command, tmp_path / source, tmp_path / "out")
    with pytest.raises(ConfigError, match="--as depth"):
        run(import_command, "--as", "depth", tmp_path / "two/one", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- image sizes of tokenizers


@pytest.fixture
def two_sizes(workspace: Workspace) -> Workspace:
    """Write a backbone at 224 pixels, and tokenizers of two of its modalities that were built for 448."""
    for name, config in zip(GRID_FOLDERS, (CLIP, SEMSEG), strict=True):
        workspace.put(name, published_tokenizer(**config))
    workspace.put("4M_B", backbone_of("224"))
    return workspace


def backbone_of(*sizes: str) -> PublishedCheckpoint:
    """Return a backbone with maps of both modalities at each of `sizes` (in pixels)."""
    names = [f"tok_{name}@{size}" for size in sizes for name in ("clip", "semseg")]
    ids = {"clip": 8192, "semseg": 4096}
    tables = {name.replace("@", "_at_"): ((int(name[-3:]) // 16) ** 2, ids[name[4:-4]]) for name in names}
    return published({**SIZED, "domains_in": names, "domains_out": names}, **tables)


def token_grids(workspace: Workspace, *, as_in_backbone: bool = True) -> dict[str, tuple[int, ...]]:
    """Return both modalities' token grids by registry.toml, after checking that the tokenizers produce them.

    With `as_in_backbone`, also check that the backbone has the same ones.
    """
    zoo = workspace.zoo
    shapes = {name: zoo[name].spec.layout.shape for name in ("clip", "semseg")}
    for name, shape in shapes.items():
        tokens = zoo[name].encode(np.zeros((1, *zoo[name].spec.value.shape), zoo[name].spec.value.dtype))
        assert tuple(tokens.shape) == (1, *shape)
    if as_in_backbone:
        specs = {spec.name: spec.layout for spec in load_model(workspace.backbone).layout.specs}
        assert all(specs.get(name) == zoo[name].spec.layout for name in shapes)
    return shapes


ORDERS = {"backbone": ("4M_B", *GRID_FOLDERS), "tokenizers": (*GRID_FOLDERS, "4M_B"), "all": ("",)}
orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


@orders
def test_tokenizers_take_the_backbones_image_size_in_any_order(order: tuple[str, ...], two_sizes: Workspace) -> None:
    words = two_sizes.run_import(*order)
    assert token_grids(two_sizes) == {"clip": (14, 14), "semseg": (14, 14)}
    assert words.count("it was built for") == 2 and "other tokens" not in words


def test_without_a_backbone_the_folder_name_gives_the_size(two_sizes: Workspace) -> None:
    two_sizes.run_import(GRID_FOLDERS[0])
    # The name states other sizes than config.json.
    (two_sizes.source / GRID_FOLDERS[1]).rename(two_sizes.source / "semseg_256-512")
    output = two_sizes.run_import("semseg_256-512")
    assert token_grids(two_sizes, as_in_backbone=False) == {"clip": (14, 14), "semseg": (28, 28)}
    assert "built for" not in output


@pytest.mark.parametrize("pixels", [224, 448])
def test_a_backbone_changes_a_size_that_an_import_chose(pixels: int, two_sizes: Workspace) -> None:
    """From 448 pixels, for which the tokenizers were built, to 224, and the reverse."""
    for name, short in zip(GRID_FOLDERS, ("CLIP-B16", "semseg"), strict=True):
        folder = two_sizes.source / name
        two_sizes.run_import(folder.rename(two_sizes.source / short) if pixels == 224 else folder)
    two_sizes.put("other", backbone_of(str(pixels)))
    output, side = two_sizes.run_import("other"), pixels // 16
    assert token_grids(two_sizes) == {"clip": (side, side), "semseg": (side, side)}
    assert output.count("as this backbone has it; it was") == 2 and f"image_size = {pixels}," in output


def test_a_size_that_the_registry_states_stays(two_sizes: Workspace) -> None:
    two_sizes.write_registry("[modalities.clip]\nmap_size = 28\n[modalities.semseg]\nimage_size = [448, 224]\n")
    output = two_sizes.run_import()
    assert token_grids(two_sizes, as_in_backbone=False) == {"clip": (28, 28), "semseg": (28, 14)}
    assert "it was built for image_size = 448" in output and "the plugin clip has other tokens" in output
    assert {"tok_clip_224", "tok_semseg_224"} == {spec.name for spec in load_model(two_sizes.backbone).layout.specs}


def test_an_impossible_size_in_the_registry_is_reported(two_sizes: Workspace) -> None:
    two_sizes.write_registry('[zoo]\ncheckpoints = "tokenizers"\nimage_size = 100\npatch_size = 4\n')
    output = two_sizes.run_import(GRID_FOLDERS[1])
    assert "image_size = 448, its own: image_size = 100" in output and "16 does not divide the image size" in output
    assert two_sizes.zoo["semseg"].spec.layout.shape == (28, 28)


@orders
def test_two_sizes_become_two_modalities_with_one_tokenizer(order: tuple[str, ...], two_sizes: Workspace) -> None:
    two_sizes.put("4M_B", backbone_of("224", "448"))
    output = [two_sizes.run_import(name) for name in order][-1]
    assert "no tokenizer yet" not in output
    assert token_grids(two_sizes) == {"clip": (14, 14), "semseg": (14, 14)}
    zoo = two_sizes.zoo
    for name in ("clip", "semseg"):
        large, value = zoo[f"{name}_448"], zoo[f"{name}_448"].spec.value
        assert large.spec.layout.shape == (28, 28) and large.has_tokenizer
        assert large.checkpoint == zoo[name].checkpoint and large.fingerprint == zoo[name].fingerprint
        tokens = large.encode(np.zeros((1, *value.shape), value.dtype))
        assert tuple(tokens.shape) == (1, 28, 28) and np.asarray(large.decode(tokens)[0]).shape == value.shape
        assert read_table(two_sizes.backbone / "config.json")["fingerprints"][large.name] == large.fingerprint
