"""What is given: modalities of stored samples by name, or one value for all samples, from a file or written out.

NAME                  tokens of stored samples
NAME=FILE             a value's file, or the tokens that `zoo encode` and `zoo backbone generate` write
NAME="TEXT"           a text, in either kind of quotes
NAME={...}, [...]     JSON, for values that are written as JSON
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.token_file import is_token_file, read_tokens
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, whole_samples
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, UnknownNameError
from tokenizers_zoo.registry import ModalityHandle
from tokenizers_zoo.spec import Crop
from zoo_backbone.packing import accepted
from zoo_backbone.run import Run

QUOTES = ('"', "'")


def sources_of(given: Iterable[str]) -> dict[str, str]:
    """Each modality given with where its value comes from; "" for stored samples. Raises ConfigError."""
    sources: dict[str, str] = {}
    for item in given:
        name, equals, source = (part.strip() for part in item.partition("="))
        if not name or (equals and not source):
            raise ConfigError(f'input {item}: expected NAME, NAME=FILE or NAME="TEXT"')
        if name in sources:
            raise ConfigError(f"input {item}: {name} is there twice; give one value")
        sources[name] = source
    return sources


def is_written_out(source: str) -> bool:
    """True for a text in quotes, and for JSON."""
    return source[:1] in (*QUOTES, "{", "[")


def data_of_source(name: str, source: str) -> tuple[bytes, str]:
    """The bytes of a value that is given, and the extension that says what they are. Raises ConfigError."""
    if source[:1] in QUOTES:
        if len(source) < 2 or source[-1] != source[0]:
            raise ConfigError(f"input {name}={source}: expected a closing quote")
        return source[1:-1].encode(), "txt"
    if is_written_out(source):
        return source.encode(), "json"
    path = Path(source)
    if not os.path.isfile(path):  # that of pathlib raises an error for what is too long to be a file's name
        several = "; repeat --input for each" if re.search(r",\w+=", source) else ""
        raise ConfigError(f'input {name}={source}: expected a file that is there, or "TEXT" in quotes{several}')
    try:
        data = path.read_bytes()
    except PermissionError:
        raise ConfigError(f"input {name}={source}: may not be read; allow it, or give another file") from None
    return data, path.suffix.removeprefix(".").lower()


def value_of_source(handle: ModalityHandle, source: str) -> Any:
    """A value that is given, of the size that the modality has. Raises ConfigError, InvalidValueError."""
    return handle.transform(handle.read(*data_of_source(handle.name, source)), Crop())


def tokens_of_source(handle: ModalityHandle, source: str) -> Any:
    """Tokens of one sample, as `handle.encode` gives them. Raises ConfigError, DataError, InvalidValueError."""
    data, extension = data_of_source(handle.name, source)
    if extension == "json" and not is_written_out(source) and is_token_file(data):
        tokens = [read_tokens(handle, Path(source))]
        try:
            accepted(handle.spec, tokens, None, "")
        except InvalidValueError as error:
            raise DataError(f"{source}: {error}") from None
        return tokens
    return handle.encode([value_of_source(handle, source)])


def stored_columns(run: Run, handles: Iterable[ModalityHandle], split: str) -> dict[str, TokenColumn]:
    """The stored tokens of these modalities. Raises DataError where there are none, or they are of another codec."""
    store = TokenStore(run.tokens)
    columns = {handle.name: store.open(split, handle.name) for handle in handles}
    for handle in handles:
        columns[handle.name].check_tokenizer(handle)
    return columns


def shared_rows(columns: Mapping[str, TokenColumn], place: Path) -> dict[str, int]:
    """Map the key of each sample that has tokens of all these to its row. Raises DataError where there are none."""
    shared = dict(whole_samples(list(columns.values())))
    if not shared:
        raise DataError(f"{place}: no sample has tokens of {', '.join(columns)}")
    return shared


def numbers_of_keys(keys: Iterable[str], shared: Sequence[str], place: Path) -> list[int]:
    """The number of each key among all. Raises UnknownNameError."""
    number = {key: row for row, key in enumerate(shared)}
    for key in keys:
        if key not in number:
            raise UnknownNameError.of("sample", key, shared[:1000], f"(in {place}; --split gives another part)")
    return [number[key] for key in keys]
