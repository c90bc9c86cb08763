"""Modalities that write in one vocabulary: what they have to agree on, and what is in the way of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.spec import SequenceLayout


def is_text(handle: ModalityHandle) -> bool:
    """Whether a modality takes the table of its vocabulary, as those do that share one as text."""
    return not handle.spec.continuous and handle.spec.vocabulary in handle.taken_vocabularies()


def text_sharers(handles: Iterable[ModalityHandle]) -> dict[str, list[ModalityHandle]]:
    """The text vocabularies that are not one modality's own, and who writes in each."""
    found: dict[str, list[ModalityHandle]] = {}
    for handle in filter(is_text, handles):
        found.setdefault(handle.spec.vocabulary, []).append(handle)
    return {name: sharing for name, sharing in found.items() if any(other.name != name for other in sharing)}


def misplaced(handles: Sequence[ModalityHandle]) -> dict[str, str]:
    """By name, what is no text and has its vocabulary or its checkpoint in the place of one that others share."""
    found = {}
    for vocabulary, sharing in text_sharers(handles).items():
        folders = _folders(sharing)
        for handle in handles:
            way = ""
            if handle.spec.vocabulary == handle.name == vocabulary and not (is_text(handle) or handle.spec.continuous):
                way = f"is no text, and {vocabulary!r} is the text vocabulary of {_some_names(sharing)}"
            elif _is_apart(handle, vocabulary) and handle.checkpoint.resolve() in folders:
                way = _in_place_of(vocabulary, sharing, handle.checkpoint)
            if way:
                found[handle.name] = f"{handle.name}: {way}; rename the modality, or disable it"
    return found


def in_the_way(handle: ModalityHandle, folder: Path, others: Iterable[ModalityHandle]) -> str:
    """What is wrong with a modality's tokenizer in a folder that is a vocabulary's of others; else nothing."""
    for vocabulary, sharing in text_sharers(others).items():
        if _is_apart(handle, vocabulary) and folder.resolve() in _folders(sharing):
            return f"{handle.name}: {_in_place_of(vocabulary, sharing, folder)}"
    return ""


def _is_apart(handle: ModalityHandle, vocabulary: str) -> bool:
    """Whether a modality's checkpoint holds another thing than a text vocabulary, and none that it shares by name."""
    shares = handle.spec.shares_checkpoint and handle.spec.vocabulary == vocabulary
    return not shares and (handle.spec.own_tokenizer or not is_text(handle))


def _folders(sharing: Iterable[ModalityHandle]) -> set[Path]:
    return {handle.codec.vocabulary.resolve() for handle in sharing}


def _in_place_of(vocabulary: str, sharing: Iterable[ModalityHandle], folder: Path) -> str:
    return f"{folder} is the folder of the text vocabulary {vocabulary!r} of {_some_names(sharing)}"


def _some_names(handles: Iterable[ModalityHandle]) -> str:
    names = [handle.name for handle in handles]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def disagreements(vocabulary: str, handles: Iterable[ModalityHandle]) -> Iterator[tuple[str, str]]:
    """Modalities of one vocabulary have to agree on its size, its special ids and its checkpoint."""
    first: ModalityHandle | None = None
    for handle in handles:
        first = first or handle
        for what, mine, other in zip(
            ("vocab_size", "(end, first sentinel, sentinels)", "checkpoint"), _ids(handle), _ids(first), strict=True
        ):
            if mine != other and mine is not None and other is not None:
                yield (
                    handle.name,
                    f"{handle.name}: shares the vocabulary {vocabulary!r} with {first.name}, but has {what} {mine}"
                    f" where {first.name} has {other}",
                )


def _ids(handle: ModalityHandle) -> tuple[Any, ...]:
    layout = handle.spec.layout
    special = (layout.end, layout.sentinel_start, layout.num_sentinels) if isinstance(layout, SequenceLayout) else None
    return handle.spec.vocab_size, special, handle.codec.vocabulary
