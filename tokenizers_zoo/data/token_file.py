"""The tokens of one value as a JSON file: {"modality", "fingerprint" of the codec that wrote them, "tokens"}."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.errors import DataError
from tokenizers_zoo.validation import describe

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle

KEYS = ("modality", "fingerprint", "tokens")


def token_text(handle: ModalityHandle, tokens: Any) -> str:
    """What the file of one value's tokens holds, without a line's end."""
    return json.dumps(
        {"modality": handle.name, "fingerprint": handle.fingerprint, "tokens": np.asarray(tokens).tolist()}
    )


def is_token_file(data: bytes) -> bool:
    """True where these bytes are the JSON of a token file."""
    try:
        stored = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and set(KEYS) <= set(stored)


def read_tokens(handle: ModalityHandle, file: Path) -> np.ndarray[Any, Any]:
    """The tokens of one value. Raises DataError for another file, modality or codec."""
    data = file.read_bytes()
    if not is_token_file(data):
        raise DataError(f"{file}: expected the JSON that `zoo encode` writes ({', '.join(KEYS)})")
    stored = json.loads(data)
    if stored["modality"] != handle.name:
        raise DataError(f"{file}: holds tokens of {stored['modality']}, not of {handle.name}")
    if not isinstance(stored["fingerprint"], str):
        raise DataError(f"{file}: fingerprint: expected text, got {describe(stored['fingerprint'])}; encode again")
    if not handle.speaks(stored["fingerprint"]):
        raise DataError(
            f"{file}: tokens were written by codec {stored['fingerprint'][:12]}, the tokenizer of {handle.name} is "
            f"{handle.fingerprint[:12]} ({handle.checkpoint}); encode again or use the old checkpoint"
        )
    kinds, dtype = ((int, float), np.float32) if handle.spec.continuous else ((int,), np.int64)
    with contextlib.suppress(ValueError, OverflowError, RecursionError), np.errstate(over="ignore"):
        if isinstance(stored["tokens"], list) and _consists_of(kinds, stored["tokens"]):
            return np.asarray(stored["tokens"], dtype)
    expected = "numbers" if handle.spec.continuous else "ids"
    raise DataError(f"{file}: tokens: expected lists of {expected}, got {describe(stored['tokens'])}; encode again")


def _consists_of(kinds: tuple[type, ...], tokens: Any) -> bool:
    """True for lists, or lists of lists, of these types alone; True and False are no ids."""
    return all(_consists_of(kinds, item) for item in tokens) if isinstance(tokens, list) else type(tokens) in kinds
