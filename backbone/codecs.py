"""Stored tokens and tokenizers beside a trained backbone: do they speak of the same ids as its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from backbone.training.data import TokenData
from tokenizers_zoo.data.tokens import grew_from
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.modality import ModalitySpec
from tokenizers_zoo.registry import ModalityHandle, Zoo


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
    data = TokenData(tokens, split, specs, aligned=aligned)
    # A vocabulary that has grown since speaks of the same ids.
    same = {
        name: codec
        for name, codec in trained_on.items()
        if name not in data.columns or name not in zoo or not grew_from(zoo[name], codec, 0)
    }
    data.check_fingerprints(same, owner)
    return data


def check_codec(handle: ModalityHandle, codec: str | None) -> None:
    """Raise DataError where a handle's tokenizer is not the codec that a model was trained with; None: it says none.

    A vocabulary that has grown since speaks of the same ids.
    """
    if codec not in (None, handle.fingerprint) and not grew_from(handle, str(codec), 0):
        raise DataError(
            f"{handle.name}: the model was trained on codec {str(codec)[:12]}, the registry has "
            f"{handle.fingerprint[:12]} ({handle.checkpoint}); use the registry of its training"
        )
