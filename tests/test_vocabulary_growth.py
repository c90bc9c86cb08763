"""A plugin installed after training extends the vocabulary; old tokens and models stay valid."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from token_stores import write_tokens
from toy_plugins import Install, snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.build.tokenizers import train_tokenizer
from tokenizers_zoo.cli.main import main
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, InvalidValueError
from tokenizers_zoo.stores.token_shard import TokenMetadata
from tokenizers_zoo.stores.tokens import TokenStore
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary
from tokenizers_zoo.tokenizers.vocabulary import describe_vocabulary, grow_vocabulary, text_vocabularies
from zoo_backbone.generate.plans import GenerationPlan, TargetPlan
from zoo_backbone.learn.checkpoint import freeze, ids_in_use, initial_model, load_model, save_model
from zoo_backbone.learn.data import TokenData, stored_samples
from zoo_backbone.learn.train import train
from zoo_backbone.model.config import MaskingConfig, ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import Run
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.generate_to_folder import generate_to_folder
from zoo_backbone.use.retrieval import EmbeddingConfig
from zoo_backbone.use.retrieval.embed import Embedder

REGISTRY = """[zoo]
checkpoints = "tokenizers"
[vocabularies.text]
size = {size}
sentinels = 8
coordinate_axes = 1
coordinate_bins = 16
reserve = 8
"""
USED = ("caption", "web_text", "mood")
MOOD = '''
"""Whether a text is happy, as one special token."""
from dataclasses import dataclass
from tokenizers_zoo import hookimpl
from tokenizers_zoo.families.text import TextModality
from tokenizers_zoo.contract.spec import ValueSpec
from tokenizers_zoo.tokenizers.text_vocab import Special

@dataclass(frozen=True, kw_only=True)
class MoodSettings:
    max_length: int = 1

class Mood(TextModality):
    summary = "happy or sad"
    value = ValueSpec(kind="text")
    settings_class = MoodSettings
    derived_from = ("caption",)

    @hookimpl
    def derive(self, sample):
        return "sad" if "blue" in sample["caption"] else "happy"

    @hookimpl
    def vocabulary_tokens(self, settings):
        return ("<happy>", "<sad>")

    def encode_value(self, value, tokenizer):
        return tokenizer.vocabulary.encode([Special(f"<{value}>")])

    def decode_value(self, pieces, tokenizer):
        return "sad" if Special("<sad>") in pieces else "happy"

plugin = Mood()
'''


class World:
    """A folder with data, a vocabulary for captions and web text, their tokens, and a backbone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.tokens, self.run = folder / "data", folder / "tokens", folder / "run"
        self.vocabulary = folder / "tokenizers" / "text"

    def zoo(self, size: int = 900) -> Zoo:
        unused = [name for name in Zoo.installed().names() if name not in USED]
        disabled = "".join(f"[modalities.{name}]\nenabled = false\n" for name in unused)
        (self.folder / "registry.toml").write_text(REGISTRY.format(size=size) + disabled)
        return Zoo.from_toml(self.folder / "registry.toml")

    def make(self) -> World:
        for split, count in (("train", 12), ("test", 4)):
            for name in ("caption", "web_text"):
                out = self.folder / "files" / split / name
                out.mkdir(parents=True)
                for number in range(count):
                    colour = ("red", "blue", "green")[number % 3]
                    (out / f"{split}{number:02}.txt").write_text(f"a {colour} chair in the {name.split('_')[0]} room")
        zoo = self.zoo()
        path = {"path": str(self.folder / "files")}
        make_data(zoo, "folder", self.data, train=None, test=None, options=path, workers=0, shard_size=8)
        train_tokenizer(zoo, "caption", self.data)
        tokenize(zoo, self.data, self.tokens)
        self.train(zoo, self.run)
        return self

    def train(self, zoo: Zoo, folder: Path) -> None:
        """Train a backbone on captions and web text with the current vocabulary."""
        settings = TrainConfig(
            steps=4, batch_size=4, warmup_steps=1, masking=MaskingConfig(input_budget=16, target_budget=16)
        )
        specs = [zoo[name].spec for name in ("caption", "web_text")]
        fingerprints = {name: zoo[name].fingerprint for name in ("caption", "web_text")}
        run = Run(tokens=self.tokens, data=self.data, registry=self.folder / "registry.toml")
        config = ModelConfig(dim=32, encoder_depth=1, decoder_depth=1, heads=2)
        train(folder, self.tokens, specs, config, settings, run=run, fingerprints=fingerprints)


@pytest.fixture(scope="module")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world")).make()


@pytest.fixture
def world(trained_world: World, tmp_path: Path) -> World:
    """Return a copy that a test may change."""
    shutil.copytree(trained_world.folder, tmp_path / "world")
    return World(tmp_path / "world")


@pytest.fixture
def add_mood(install: Install) -> None:
    """Install the plugin that is added later."""
    install("zoo-mood", {"tokenizers_zoo": {"mood": "zoo_mood:plugin"}}, {"zoo_mood": MOOD})


def command(words: str, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return everything that a command prints."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr(sys, "argv", ["zoo", *words.split()])
    try:
        main()
    except SystemExit as error:
        assert error.code in (0, None, 1)
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_tokens_of_a_new_plugin_are_added_at_the_end(world: World, add_mood: None) -> None:
    zoo = world.zoo()
    before = describe_vocabulary(zoo, "text")
    assert before.missing == ("<happy>", "<sad>")
    assert list(before.needs) == ["caption", "mood", "web_text"] == [h.name for h in text_vocabularies(zoo)["text"]]
    with pytest.raises(InvalidValueError, match=r"mood: .*'<sad>': run `zoo vocab"):
        zoo["mood"].encode(["sad"])
    used = before.vocabulary.used
    old, new = grow_vocabulary(zoo, "text")
    assert (new.grown_tokens, old.used, new.used) == (("<happy>", "<sad>"), used, used + 2)
    after = describe_vocabulary(zoo, "text")
    assert after.missing == () and zoo["mood"].encode(["sad"])[0].tolist() == [used + 1]


def test_old_tokens_and_the_old_backbone_stay_valid(world: World, add_mood: None, tmp_path: Path) -> None:
    old = world.zoo()["caption"]
    old_tokens = old.encode(["a red chair in the room"])[0].tolist()
    zoo = world.zoo()
    grow_vocabulary(zoo, "text")
    assert zoo["caption"].fingerprint != old.fingerprint
    assert zoo["caption"].encode(["a red chair in the room"])[0].tolist() == old_tokens
    column = TokenStore(world.tokens).open("train", "caption")
    column.check_tokenizer(zoo["caption"])
    assert column.summary.needed_vocab_size <= describe_vocabulary(zoo, "text").vocabulary.used - 2
    recipe = GenerationPlan(inputs=("caption",), targets=(TargetPlan(name="web_text", max_length=4),))
    folders = generate_to_folder(AnyToAny.from_pretrained(world.run, zoo=zoo), recipe, tmp_path / "made", world.tokens)
    assert len(folders) == 4 and all((folder / "web_text.txt").is_file() for folder in folders)


def test_tokens_from_before_the_growth_fit_a_later_backbone(world: World, add_mood: None) -> None:
    """The reverse also holds; tokens of any other tokenizer are refused."""
    grow_vocabulary(world.zoo(), "text")
    zoo = world.zoo()
    world.train(zoo, world.folder / "later")
    settings = EmbeddingConfig(space="plain")
    for run in (world.run, world.folder / "later"):
        embedder = Embedder(AnyToAny.from_pretrained(run, zoo=zoo), settings)
        assert len(embedder.load_split("test", ["caption"])) == 4
    specs = [zoo["caption"].spec]
    for model in (embedder.model.model, AnyToAny.from_pretrained(world.run, zoo=zoo).model):
        codec = dataclasses.replace(TokenMetadata.of(zoo["caption"], {}), fingerprint="0" * 64)
        write_tokens(world.folder / "other", "test", codec, {"a": np.arange(40, 43)})
        with pytest.raises(DataError, match="tokens of caption by tokenizer 000000000000"):
            stored_samples(world.folder / "other", "test", specs, model.trained_on, zoo, "RUN")


def test_tokenize_waits_for_special_tokens_that_are_missing(world: World, add_mood: None) -> None:
    """Otherwise only values without new tokens would be stored."""
    zoo = world.zoo()
    TextVocabulary.grow_folder(world.vocabulary, describe_vocabulary(zoo, "text").vocabulary.config, ["<happy>"])
    derive_data(zoo, world.data, workers=0)
    before = snapshot(world.tokens)
    with pytest.raises(CheckpointError, match=r"^mood: writes 1 special token .* lacks, <sad>"):
        tokenize(zoo, world.data, world.tokens, overwrite=True)
    assert snapshot(world.tokens) == before
    grow_vocabulary(zoo, "text")
    outcomes = {(o.split, o.modality): o for o in tokenize(zoo, world.data, world.tokens).outcomes}
    assert [outcomes[split, "mood"].written for split in ("train", "test")] == [12, 4]
    assert not outcomes["train", "mood"].dropped


def test_tokens_beyond_the_vocabulary_are_a_one_line_error(world: World, add_mood: None) -> None:
    zoo = world.zoo()
    grow_vocabulary(zoo, "text")
    derive_data(zoo, world.data, workers=0)
    tokenize(zoo, world.data, world.tokens)
    column = TokenStore(world.tokens).open("train", "mood")
    count = column.summary.needed_vocab_size
    smaller = world.zoo(size=count - 1)
    with pytest.raises(DataError, match=rf"mood below {count - 1}, got up to {count - 1}"):
        column.check_tokenizer(smaller["mood"])
    with pytest.raises(DataError, match=rf"ids up to {count - 1}, .*'text'"):
        TokenData(world.tokens, "train", [smaller["mood"].spec])
    with pytest.raises(CheckpointError, match=rf"needs {count} ids and has {count - 1}"):
        smaller["mood"].encode(["sad"])


def test_show_grow_and_decode_commands(
    world: World, add_mood: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.zoo()

    def zoo(words: str) -> str:
        return command(words, world, capsys, monkeypatch)

    output = zoo("vocabulary show")
    assert "of 900 ids, in tokenizers/text" in output and "missing  <happy>, <sad>; zoo vocabulary grow" in output
    zoo("encode caption files/test/caption/test00.txt --out old.json")
    grown = zoo("vocabulary grow")
    assert "is now <happy>" in grown and "is now <sad>" in grown and "ids grew to" in grown
    assert "nothing is missing" in zoo("vocabulary grow text")
    output = zoo("vocabulary show text")
    assert "missing  " not in output and "grown from  " in output
    assert "value in" in zoo("decode caption old.json --out back"), "tokens from before it grew"
    assert zoo("vocabulary show txet") == "error: unknown text vocabulary 'txet'; did you mean text?\n"


def test_a_training_resumes_once_the_vocabulary_has_grown(
    world: World, add_mood: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.zoo()
    small = " ".join(f"--set {key}" for key in ("steps=3", "batch_size=4", "warmup_steps=1", "eval_samples=4"))
    training = f"backbone train --tokens tokens --out trained --modalities caption,web_text --preset nano {small}"
    assert "2 modalities, in trained" in command(training, world, capsys, monkeypatch)
    files_before = snapshot(world.folder / "trained")
    command("vocabulary grow", world, capsys, monkeypatch)
    assert "2 modalities, in trained" in command(training, world, capsys, monkeypatch)
    assert snapshot(world.folder / "trained") == files_before
    zoo = world.zoo()
    derive_data(zoo, world.data, workers=0)
    old_files = {name: data for name, data in snapshot(world.tokens).items() if name.endswith(".tokens")}
    result = tokenize(zoo, world.data, world.tokens)
    assert {o.modality for o in result.outcomes if o.written} == {"mood"}
    assert old_files.items() <= snapshot(world.tokens).items()
    growing = f"--registry registry.toml backbone grow run --add mood --tokens tokens --out grown {small}"
    assert "1 of them new, in grown" in command(growing, world, capsys, monkeypatch)


def test_new_ids_of_a_grown_vocabulary_count_as_unknown(world: World, add_mood: None) -> None:
    """The table has a row for each id of the capacity; rows of ids unused in training count as new."""
    used = describe_vocabulary(world.zoo(), "text").vocabulary.used
    grow_vocabulary(world.zoo(), "text")
    zoo = world.zoo()
    handles = [zoo[name] for name in USED]
    ids = ids_in_use(world.run, handles)
    assert ids == {"caption": used, "web_text": used, "mood": used + 2}
    specs, config = [handle.spec for handle in handles], load_model(world.run).config
    beginning = initial_model(specs, config, 0, world.run, ids)
    for name in ("token_embedding.weight", "output.text"):
        is_known = beginning.pretrained_rows[name]
        assert len(is_known) == 900 and is_known[:used].all() and not is_known[used:].any(), name
    frozen = freeze(beginning)
    moving = {name for name, parameter in beginning.model.named_parameters() if parameter.requires_grad}
    markers = {"modality_embedding.weight", "mask_embedding.weight"}
    assert moving == set(frozen) == {"token_embedding.weight", "output.text", *markers}


def test_freeze_is_refused_for_a_modality_without_rows_of_its_own(world: World, add_mood: None) -> None:
    grow_vocabulary(world.zoo(), "text")
    zoo = world.zoo()
    config = load_model(world.run).config
    caption, later_run = zoo["caption"], world.folder / "without_web_text"
    save_model(FourM.seeded(config, [caption.spec], 0), later_run, {"fingerprints": {"caption": caption.fingerprint}})
    beginning = initial_model(
        [caption.spec, zoo["web_text"].spec], config, 0, later_run, ids_in_use(later_run, [zoo["web_text"]])
    )
    with pytest.raises(ConfigError, match=r"freeze: web_text .* text,"):
        freeze(beginning)
