"""Stored tokens and tokenizers beside a trained backbone: do they speak of the same ids as its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers_zoo.data.tokens import TokenColumn
from tokenizers_zoo.errors import DataError, by, count_of
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.run_folder import read_run
from tokenizers_zoo.spec import (
    GridLayout,
    ModalitySpec,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
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
    """The stored samples of a split, for `owner`, which was trained on tokens of the codecs `trained_on`, by name.

    With `aligned`, those that have all modalities. Raises DataError where the tokens are of other codecs.
    """
    data = TokenData(tokens, split, specs, aligned=aligned, whole=True)
    for name, column in data.columns.items():
        check_stored(column, trained_on.get(name), zoo, owner)
    return data


def check_stored(column: TokenColumn, codec: str | None, zoo: Zoo, owner: str) -> None:
    """Raise DataError where stored tokens are not of the codec that `owner` was trained with; None: it says none.

    A vocabulary speaks of the same ids as those that it grew from, whichever of the two has it: tokens or training.
    """
    name = column.modality
    if codec in (None, column.fingerprint):
        return
    if not (name in zoo and _is_or_was(zoo[name], str(codec)) and _is_or_was(zoo[name], column.fingerprint)):
        raise DataError(
            f"{column.folder}: written by codec {column.fingerprint[:12]}, and {owner} was trained on tokens "
            f"of {name} by {str(codec)[:12]}; use the tokens of that codec, or train anew"
        )


def codecs_to_train_with(folder: Path, handles: Iterable[ModalityHandle]) -> dict[str, str]:
    """The handles' codecs by name; those with which a training in `folder` began, where they grew from these.

    So a training goes on though a vocabulary has grown since. Raises CheckpointError where a tokenizer is not there.
    """
    record = read_run(folder)
    modalities = record["identity"].get("modalities", {}) if record else {}
    begun = {name: str(modality["fingerprint"]) for name, modality in modalities.items()}
    return {
        handle.name: begun[handle.name] if handle.files.grew_from(begun.get(handle.name, "")) else handle.fingerprint
        for handle in handles
    }


def _is_or_was(handle: ModalityHandle, codec: str) -> bool:
    """True where a handle's tokenizer is this codec, or one that grew from it."""
    return handle.files.grew_from(codec) or (handle.has_tokenizer and handle.fingerprint == codec)


def check_codec(handle: ModalityHandle, codec: str | None, spec: ModalitySpec | None = None) -> None:
    """Raise DataError where a handle's tokenizer is not the codec that a model was trained with; None: it says none.

    A vocabulary that has grown since speaks of the same ids. With `spec`, the modality as the model knows it, also
    where a sample's tokens have another shape by now; only sequences and embeddings may have another length.
    """
    if codec is not None and not handle.speaks(str(codec)):
        raise DataError(
            f"{handle.name}: the model was trained on codec {str(codec)[:12]}, the registry has "
            f"{handle.fingerprint[:12]} ({handle.checkpoint}); use the registry of its training"
        )
    if spec is not None and (before := _shape_of(spec.layout)) != (now := _shape_of(handle.spec.layout)):
        raise DataError(
            f"{handle.name}: the model was trained on {before}, the registry has {now}; use the registry of its "
            "training"
        )


def _shape_of(layout: TokenLayout) -> str:
    """What all samples of a modality have in common, in words: `a grid of 8 x 8`."""
    if isinstance(layout, GridLayout):
        return f"a grid of {by(layout.shape)}"
    if isinstance(layout, VectorLayout):
        return f"a vector of {count_of(layout.length, 'token')}"
    if isinstance(layout, SequenceLayout):
        return "a sequence"
    place = f"patches of {by(layout.shape)}" if isinstance(layout, PatchesLayout) else "embeddings"
    return f"{place} with {count_of(layout.dim, 'number')} each"
