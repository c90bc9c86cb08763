"""Text vocabularies: learned from all modalities that use them, trained once, with problems kept separate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from examples import only, values
from stores import writing_values
from toy_plugins import Install, Toy

from tokenizers_zoo import Zoo
from tokenizers_zoo.build import tokenizers
from tokenizers_zoo.build.tokenizers import TokenizerJob, train_tokenizer, train_tokenizers, training_samples
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary
from tokenizers_zoo.tokenizers.vocabulary import describe_vocabulary, text_vocabularies

NOTES = '''
"""Texts over the vocabulary `VOCABULARY`."""
from dataclasses import dataclass
from tokenizers_zoo import hookimpl
from tokenizers_zoo.families.text import TextModality
from tokenizers_zoo.contract.spec import ValueSpec

@dataclass(frozen=True, kw_only=True)
class NotesSettings:
    max_length: int = 20

class Notes(TextModality):
    summary = "notes"
    value = ValueSpec(kind="text")
    settings_class = NotesSettings
    vocabulary_name = "VOCABULARY"

    @hookimpl
    def vocabulary_tokens(self, settings):
        return (f"<{settings.name}>",)

    @hookimpl
    def vocabulary_texts(self, values, settings):
        return values

    def encode_value(self, value, tokenizer):
        return tokenizer.vocabulary.encode_text(value, tokenizer.settings.max_length)

    def decode_value(self, pieces, tokenizer):
        return "".join(piece for piece in pieces if isinstance(piece, str))

plugin = Notes()
'''
WRITES_TEXT = """
    @hookimpl
    def vocabulary_texts(self, values, settings):
        return values
"""
TABLE = {"size": 900, "sentinels": 8, "coordinate_axes": 0, "reserve": 8}


@pytest.fixture
def make(install: Install, tmp_path: Path) -> Toy:
    """Return a function that makes a zoo of text modalities with named vocabularies and installed modalities."""

    def zoo(vocabularies: dict[str, str], modalities: dict[str, Any] | None = None) -> Zoo:
        for name, vocabulary in vocabularies.items():
            source = NOTES.replace("VOCABULARY", vocabulary)
            install(f"zoo-{name}", {"tokenizers_zoo": {name: f"zoo_{name}:plugin"}}, {f"zoo_{name}": source})
        tables = dict.fromkeys(vocabularies.values(), TABLE)
        return only(modalities, zoo={"checkpoints": str(tmp_path / "tokenizers")}, vocabularies=tables)

    return zoo


def write(zoo: Zoo, folder: Path, name: str, values: Iterable[Any]) -> Path:
    values = list(values)
    for split in ("train", "test"):
        with writing_values(folder, split, name) as shard:
            for number, value in enumerate(values):
                shard.add(f"{split}-{number:03}", *zoo[name].write(value))
    return folder


def sentences(colour: str) -> list[str]:
    return [f"{colour} chairs and {colour} tables in room {number}" for number in range(20)]


@pytest.mark.parametrize("vocabulary", ["notes", "journal"])
def test_a_vocabulary_of_one_modality_is_learned_from_its_texts(vocabulary: str, make: Toy, tmp_path: Path) -> None:
    """The vocabulary may have the modality's name or another name."""
    zoo = make({"notes": vocabulary})
    data = write(zoo, tmp_path / "data", "notes", sentences("red"))
    folder = train_tokenizer(zoo, "notes", data)
    learned = TextVocabulary.load(folder)
    assert folder.name == vocabulary and learned.special_tokens == ("<notes>",)
    assert len(learned.encode_text("a chairs tables")) == len(learned.encode_text("a")) + 2
    assert list(text_vocabularies(zoo)) == [vocabulary]
    assert describe_vocabulary(zoo, vocabulary).missing == ()


def test_a_vocabulary_learns_the_texts_of_all_its_modalities(make: Toy, tmp_path: Path) -> None:
    """This holds even if one of these modalities has the vocabulary's name."""
    zoo = make({"journal": "journal", "notes": "journal", "other": "elsewhere"})
    for name, colour in (("journal", "red"), ("notes", "blue"), ("other", "green")):
        data = write(zoo, tmp_path / "data", name, sentences(colour))
    store = ValueStore(data)
    for name in ("journal", "notes"):
        samples = training_samples(zoo, zoo[name], store)
        assert list(samples.texts()) == sentences("red") + sentences("blue")
        assert samples.special_tokens == ("<journal>", "<notes>")
    assert list(text_vocabularies(zoo)) == ["elsewhere", "journal"]


def test_a_vocabulary_trained_without_text_prints_a_warning(
    make: Toy, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Values of a modality that writes no text are not read for it."""
    source = NOTES.replace("VOCABULARY", "journal").replace(WRITES_TEXT, "")
    assert "vocabulary_texts" not in source
    install("zoo-marks", {"tokenizers_zoo": {"marks": "zoo_marks:plugin"}}, {"zoo_marks": source})
    zoo = make({"album": "journal", "notes": "journal"})
    data = write(zoo, tmp_path / "data", "marks", sentences("red"))
    original_read, names_read = ValueStore.read, list[str]()
    monkeypatch.setattr(ValueStore, "read", lambda *call: names_read.append(call[1].name) or original_read(*call))
    samples = training_samples(zoo, zoo["marks"], ValueStore(data))
    names_read.clear()
    capsys.readouterr()
    assert not list(samples.texts()) and not names_read
    line = (
        f"vocabulary journal: {data}/train has no text of album, notes: no pieces are learned, and text is then written"
        " byte by byte; once there is some, train the vocabulary anew (--overwrite)\n"
    )
    assert capsys.readouterr().err == line
    assert not TextVocabulary.load(train_tokenizer(zoo, "marks", data)).pieces and line in capsys.readouterr().err
    train_tokenizer(zoo, "marks", data)
    assert line not in capsys.readouterr().err, "what is trained already was told before"
    write(zoo, data, "notes", [" ", ""])
    list(training_samples(zoo, zoo["marks"], ValueStore(data)).texts())
    assert line in capsys.readouterr().err
    write(zoo, data, "album", sentences("blue"))
    list(training_samples(zoo, zoo["marks"], ValueStore(data)).texts())
    quiet = make({}, {"album": {"enabled": False}, "notes": {"enabled": False}})
    assert not TextVocabulary.load(train_tokenizer(quiet, "marks", data, out=tmp_path / "marks")).pieces
    assert "vocabulary" not in capsys.readouterr().err


def test_a_modality_does_not_replace_a_text_vocabulary(make: Toy, install_example: Install, tmp_path: Path) -> None:
    install_example("journal")
    install_example("field")
    folder = tmp_path / "tokenizers" / "journal"
    zoo = make({"album": "journal", "notes": "journal"}, {"field": {"checkpoint": str(folder)}})
    data = write(zoo, tmp_path / "data", "notes", sentences("red"))
    for name in ("field", "journal"):
        write(zoo, data, name, values())
        with pytest.raises(ConfigError, match=f"^{name}: .* text vocabulary 'journal' of album"):
            train_tokenizer(zoo, name, data)
    assert not folder.exists()
    train_tokenizer(zoo, "notes", data)
    without_journal = make({}, {"journal": {"enabled": False}})
    assert without_journal["field"].checkpoint != folder and "field" not in without_journal.problems()
    with pytest.raises(ConfigError, match=r"field: .*journal .*text vocabulary"):
        train_tokenizer(without_journal, "field", data, out=folder, overwrite=True)
    assert TextVocabulary.load(folder).pieces
    assert train_tokenizer(without_journal, "field", data, out=tmp_path / "mine") == tmp_path / "mine"


def test_a_shared_vocabulary_is_retrained_once(make: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make({"album": "journal", "journal": "journal", "notes": "journal"})
    names = zoo.names()
    for name in names:
        before = write(zoo, tmp_path / "before", name, sentences("red"))
        data = write(zoo, tmp_path / "data", name, sentences("blue"))
    train_tokenizer(zoo, "album", before)
    trainings, text_reads = [], []
    train, texts = TextVocabulary.train, tokenizers._texts
    monkeypatch.setattr(TextVocabulary, "train", lambda *arguments: trainings.append(1) or train(*arguments))
    monkeypatch.setattr(tokenizers, "_texts", lambda *arguments: text_reads.append(1) or texts(*arguments))
    jobs = [TokenizerJob(name=name, data=data, overwrite=True) for name in names]
    checkpoints = dict(train_tokenizers(zoo, jobs, 2))
    assert list(checkpoints) == names
    assert len(trainings) == len(text_reads) == 1
    vocabulary = TextVocabulary.load(checkpoints[names[0]])
    assert len(vocabulary.encode_text("a blue")) == len(vocabulary.encode_text("a")) + 1
    before = TextVocabulary.load(checkpoints[names[0]]).fingerprint
    repeated = dict(train_tokenizers(zoo, [TokenizerJob(name=name, data=data) for name in names], 2))
    assert TextVocabulary.load(repeated[names[0]]).fingerprint == before and len(trainings) == 1
