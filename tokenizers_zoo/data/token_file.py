"""The tokens of one value as a JSON file: {"modality", "fingerprint" of the tokenizer, "tokens"}."""

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
    """Return the JSON of one value's tokens."""
    return json.dumps(
        {"modality": handle.name, "fingerprint": handle.fingerprint, "tokens": np.asarray(tokens).tolist()}
    )


def is_token_file(data: bytes) -> bool:
    """Return True if these bytes are the JSON of a token file."""
    try:
        stored = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and set(KEYS) <= set(stored)


def read_tokens(handle: ModalityHandle, file: Path) -> np.ndarray[Any, Any]:
    """Return the tokens of one value. Raises DataError for another kind of file, modality or tokenizer."""
    data = file.read_bytes()
    if not is_token_file(data):
        raise DataError(f"{file}: expected the JSON that `zoo encode` writes ({', '.join(KEYS)})")
    stored = json.loads(data)
    if stored["modality"] != handle.name:
        raise DataError(f"{file}: holds tokens of {stored['modality']}, not of {handle.name}")
    if not isinstance(stored["fingerprint"], str):
        raise DataError(f"{file}: fingerprint: expected text, got {describe(stored['fingerprint'])}; encode again")
    handle.check_tokens_of(file, stored["fingerprint"], remedy="encode again, or use the old checkpoint")
    kinds, dtype = ((int, float), np.float32) if handle.spec.continuous else ((int,), np.int64)
    with contextlib.suppress(ValueError, OverflowError, RecursionError), np.errstate(over="ignore"):
        if isinstance(stored["tokens"], list) and _consists_of(kinds, stored["tokens"]):
            return np.asarray(stored["tokens"], dtype)
    expected = "numbers" if handle.spec.continuous else "ids"
    raise DataError(f"{file}: tokens: expected lists of {expected}, got {describe(stored['tokens'])}; encode again")


def _consists_of(kinds: tuple[type, ...], tokens: Any) -> bool:
    """Return True for (nested) lists of exactly these types: True and False are no ids."""
    return all(_consists_of(kinds, item) for item in tokens) if isinstance(tokens, list) else type(tokens) in kinds
