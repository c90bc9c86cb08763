"""Checks that stored tokens, tokenizers and trained models agree on the tokenizer of each modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers_zoo.data.tokens import TokenColumn
from tokenizers_zoo.errors import OtherTokenizerError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.run_folder import read_run
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.data import TokenData


def stored_samples(
    tokens: Path,
    split: str,
    specs: Sequence[ModalitySpec],
    trained_on: Mapping[str, str],
    zoo: Zoo,
    owner: str,
    *,
    aligned: bool = False,
) -> TokenData:
    """Return the stored samples of a split, seen whole, for a model that was trained with the tokenizers `trained_on`.

    `aligned` keeps samples that have every modality; `owner` is the model's name in messages. Raises DataError where
    another tokenizer wrote the tokens.
    """
    data = TokenData(tokens, split, specs, aligned=aligned, whole=True)
    for name, column in data.columns.items():
        check_stored(column, trained_on.get(name), zoo, owner)
    return data


def check_stored(column: TokenColumn, fingerprint: str | None, zoo: Zoo, owner: str) -> None:
    """Raise DataError unless the tokenizer `fingerprint`, with which `owner` was trained, wrote these tokens.

    Either of the two may have a vocabulary that grew from the other. None: the tokenizer is unknown.
    """
    name = column.modality
    if fingerprint in (None, column.fingerprint):
        return
    if not (name in zoo and all(_is_or_was(zoo[name], str(one)) for one in (fingerprint, column.fingerprint))):
        remedy = "use tokens of the tokenizer of the training, or train again"
        raise OtherTokenizerError.of(column.folder, name, column.fingerprint, str(fingerprint), owner, remedy)


def codecs_to_train_with(folder: Path, handles: Iterable[ModalityHandle]) -> dict[str, str]:
    """Return the fingerprints of the handles' tokenizers by name.

    Where a training in `folder` started with a tokenizer whose vocabulary has grown since, return that fingerprint, so
    that the training resumes. Raises CheckpointError where a tokenizer is missing.
    """
    record = read_run(folder)
    modalities = record["identity"].get("modalities", {}) if record else {}
    begun = {name: str(modality["fingerprint"]) for name, modality in modalities.items()}
    return {
        handle.name: begun[handle.name] if handle.files.grew_from(begun.get(handle.name, "")) else handle.fingerprint
        for handle in handles
    }


def _is_or_was(handle: ModalityHandle, fingerprint: str) -> bool:
    """Return True if a handle has this tokenizer, or has grown from it."""
    return handle.files.grew_from(fingerprint) or (handle.has_tokenizer and handle.fingerprint == fingerprint)


def check_codec(handle: ModalityHandle, fingerprint: str | None, spec: ModalitySpec | None = None) -> None:
    """Raise DataError unless a model was trained with the handle's tokenizer, and on the layout of `spec`.

    A vocabulary may have grown since. None: the tokenizer, or the layout, is unknown.
    """
    remedy = "use the registry of its training"
    layout = None if spec is None else spec.layout
    handle.check_tokens_of(f"{handle.name}: the model was trained on", fingerprint, layout, remedy=remedy)
