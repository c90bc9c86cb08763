"""`zoo vocabulary`: the content and users of a shared text vocabulary, and its growth when a plugin is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.errors import CheckpointError, UnknownNameError, count_of
from tokenizers_zoo.files.checkpoint import CONFIG, config_record, load_config
from tokenizers_zoo.records.io import disk_errors
from tokenizers_zoo.tokenizers.text_vocab import CLASS, TextVocabulary, VocabularyConfig, VocabularyRecord

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyUse:
    """A vocabulary on disk, and the enabled modalities that share it, each with the special tokens that it needs."""

    name: str
    folder: Path
    vocabulary: TextVocabulary
    needs: Mapping[str, tuple[str, ...]]

    @property
    def missing(self) -> tuple[str, ...]:
        """Special tokens that modalities need and the vocabulary lacks, in the order in which it would get them."""
        special_tokens = set(self.vocabulary.all_special_tokens)
        needed_tokens = dict.fromkeys(chain.from_iterable(self.needs.values()))
        return tuple(token for token in needed_tokens if token not in special_tokens)

    @property
    def unused(self) -> tuple[str, ...]:
        """Special tokens that no enabled modality needs, such as of removed plugins. They keep their ids."""
        used_tokens = set(chain.from_iterable(self.needs.values()))
        return tuple(token for token in self.vocabulary.all_special_tokens if token not in used_tokens)


def text_vocabularies(zoo: Zoo) -> dict[str, list[ModalityHandle]]:
    """Return the shared text vocabularies, each with the enabled modalities that share it; both sorted by name."""
    vocabularies: dict[str, list[ModalityHandle]] = {}
    for name, sharing in zoo.vocabularies().items():
        handles = [zoo[modality] for modality in sharing]
        sequences = all(handle.spec.layout.causal for handle in handles)
        shared = any(handle.spec.shared_vocabulary for handle in handles)
        if sequences and (shared or _holds_text(handles[0].files.vocabulary_folder())):
            vocabularies[name] = handles
    return vocabularies


def _holds_text(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and load_config(folder)["class"] == CLASS


def describe_vocabulary(zoo: Zoo, name: str) -> VocabularyUse:
    """Read a vocabulary and the tokens that each modality needs. Raises UnknownNameError and CheckpointError."""
    handles, folder, config = _open_vocabulary(zoo, name)
    needs = {handle.name: handle.vocabulary_tokens() for handle in handles}
    return VocabularyUse(name=name, folder=folder, vocabulary=TextVocabulary.load(folder, config), needs=needs)


def grow_vocabulary(zoo: Zoo, name: str) -> tuple[TextVocabulary, TextVocabulary]:
    """Append the special tokens that the enabled modalities need and the vocabulary lacks; existing ids do not change.

    The capacity is raised to the registry.toml value if that is larger. Returns the old and the new vocabulary. Raises
    the errors of `describe_vocabulary`, and ConfigError if there is no room left.
    """
    handles, folder, config = _open_vocabulary(zoo, name)
    with disk_errors(folder):
        grown = TextVocabulary.grow_folder(
            folder, config, chain.from_iterable(handle.vocabulary_tokens() for handle in handles)
        )
    for handle in handles:
        handle.forget_tokenizer()
    return grown


def missing_special_tokens(handle: ModalityHandle) -> list[str]:
    """Return the special tokens that a modality's values may need and its trained vocabulary lacks."""
    required_tokens = handle.vocabulary_tokens()
    if not required_tokens or not _holds_text(folder := handle.files.vocabulary_folder()):
        return []
    record = config_record(folder, CLASS, VocabularyRecord)
    vocabulary_tokens = {*record.special_tokens, *record.grown_tokens}
    return [token for token in required_tokens if token not in vocabulary_tokens]


def learned_on_others(handle: ModalityHandle) -> tuple[str, ...] | None:
    """Return the modalities that a modality's trained vocabulary was learned on, if its own text was not among them.

    Else, or if this is unknown, return None. Text is exact in any case; words that were not learned take more tokens.
    """
    if not handle.implements("vocabulary_texts") or not _holds_text(folder := handle.files.vocabulary_folder()):
        return None
    learned = config_record(folder, CLASS, VocabularyRecord).text_of
    return None if learned is None or handle.name in learned else learned


def check_special_tokens(handle: ModalityHandle) -> None:
    """Raise CheckpointError if a modality's vocabulary lacks special tokens that its values may need."""
    if missing := missing_special_tokens(handle):
        name, folder = handle.spec.vocabulary, handle.files.vocabulary_folder()
        first = f"first: {missing[0]}; add them" if missing[1:] else f"{missing[0]}; add it"
        raise CheckpointError(
            f"{handle.name}: writes {count_of(len(missing), 'special token')} that the vocabulary {name} at {folder} "
            f"lacks, {first}: zoo vocabulary grow {name}"
        )


def _open_vocabulary(zoo: Zoo, name: str) -> tuple[list[ModalityHandle], Path, VocabularyConfig]:
    """Return the modalities that share a vocabulary, its folder, and its settings.

    Raises UnknownNameError, and CheckpointError if it has not been trained.
    """
    vocabularies = text_vocabularies(zoo)
    if name not in vocabularies:
        hint = "" if vocabularies else "(no enabled modality is text)"
        raise UnknownNameError.of("text vocabulary", name, list(vocabularies), hint)
    handles = vocabularies[name]
    folder = handles[0].files.vocabulary_folder()
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"vocabulary {name}: none at {folder} yet; zoo tokenizer train {handles[0].name} --data DATA trains it for "
            f"all who share it: {', '.join(handle.name for handle in handles)}"
        )
    return handles, folder, handles[0].settings.vocabulary(name, VocabularyConfig)
