"""The errors that users meet, each one line without a traceback, and the words that messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Self

MOST_NAMES = 20
"""Names that a message lists if none is close."""
MISSPELT = 0.7
"""Smallest similarity at which an unknown name counts as misspelt: `captions` and `caption`, not `thermal` and
`normal`, whose plugin may be missing."""
OTHER_REGISTRY = "use the registry of that time, or tokenize again with --overwrite"
LONGEST_MESSAGE = 2000
"""Characters of a message; records of others may hold any number of names."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters (Unicode category Cc), which a terminal would obey."""
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""JSON can spell it (`\\ud800`), but no file in UTF-8 can hold it."""


class OneLineError(Exception):
    """Base of all errors whose text is the whole message; the command line prints it without a traceback."""

    def __str__(self) -> str:
        return shortened(super().__str__())


class ZooError(OneLineError):
    """Base of all errors about inputs: settings, files, values, plugins. The message says what to do."""

    @classmethod
    def expected(cls, subject: object, expected: str, actual: object, remedy: str | None = None) -> Self:
        """Build `WHERE: expected EXPECTED, got GOT; REMEDY`."""
        return cls(f"{subject}: expected {expected}, got {actual}{f'; {remedy}' if remedy else ''}")


class ConfigError(ZooError):
    """A setting is unknown, of the wrong type or out of range; names file, line and key."""


class SettingError(ConfigError, ValueError):
    """A field of a settings class is out of range; names the field. `from_mapping` adds file and line."""


class UnknownNameError(ZooError):
    """A name is unknown; the message offers close names."""

    @classmethod
    def of(
        cls,
        kind: str,
        name: str,
        known_names: Iterable[str],
        hint: str = "",
        *,
        aliases: Mapping[str, str] | None = None,
    ) -> UnknownNameError:
        """Build the message for an unknown `name` of a `kind` ("modality", "source", ...) among `known_names` names.

        `aliases` maps names of other projects to ours.
        """
        suffix = f" {hint}" if hint else ""
        if aliases and name in aliases:
            return cls(f"unknown {kind} {name!r}; here it is called {aliases[name]}{suffix}")
        names = sorted(known_names)
        close = close_names(name[:80], names, MISSPELT)
        remainder = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        listed = (", ".join(names[:MOST_NAMES]) or "none") + remainder
        offer = f"did you mean {' or '.join(close)}?" if close else f"known: {listed}"
        return cls(f"unknown {kind} {name!r:.80}; {offer}{suffix}")


class PluginError(ZooError):
    """A plugin fails to import, misses or misspells a hook, or returns a result that does not match its spec."""


class InvalidValueError(ZooError):
    """A value has another dtype, shape, range or unit than its modality declares."""


class CheckpointError(ZooError):
    """A checkpoint is missing, altered, of another class, or does not fit its configuration."""


class DataError(ZooError):
    """Stored values or tokens are missing, damaged, or do not fit the modality."""


class OtherTokenizerError(DataError):
    """Tokens were written by, or a model was trained with, another tokenizer than the one in use."""

    @classmethod
    def of(
        cls, owner: object, name: str, writer: str, in_use: str, folder: object = "use", remedy: str = OTHER_REGISTRY
    ) -> Self:
        """Build the message for a modality from the fingerprints of the tokens' tokenizer and of the one in use.

        `owner` is the file, folder or model that the tokens belong to, `folder` the folder of the tokenizer in use.
        """
        tokens = f"tokens of {name} by tokenizer {writer[:12]}"
        return cls(f"{owner}: {tokens}, the tokenizer in {folder} is {in_use[:12]}; {remedy}")


class OtherLayoutError(DataError):
    """Tokens have another layout than their modality has now."""

    @classmethod
    def of(cls, owner: object, modality: str, layout: object, in_use: object, remedy: str = OTHER_REGISTRY) -> Self:
        """Build the message from two token layouts. `owner` is the file, folder or model that the tokens belong to."""
        texts = (str(layout), str(in_use)) if str(layout) != str(in_use) else (repr(layout), repr(in_use))
        return cls(f"{owner}: tokens of {modality} are {texts[0]}, the registry has {texts[1]}; {remedy}")


class ReadError(ZooError):
    """Stored values cannot be read now (disk, network, permissions, a damaged shard); no value is to blame."""


class MachineError(OneLineError):
    """A plugin ran out of memory, or its device failed.

    It is no ZooError, because no input is to blame: code that skips a sample or a modality on a ZooError stops here.
    """


MACHINE_ERRORS = ("OutOfMemoryError", "AcceleratorError")
"""Names of torch's classes; comparing names needs no import, and older versions lack the second."""
MACHINE_MESSAGES = re.compile(r"(CUDA|cuDNN) error|.*DefaultCPUAllocator: (can't|not enough)")
"""Beginnings of the RuntimeErrors for which torch has no class."""


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether memory ran out or the device failed."""
    if isinstance(error, MemoryError) or any(kind.__name__ in MACHINE_ERRORS for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and MACHINE_MESSAGES.match(str(error)) is not None


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: a file could not be read, or the machine failed somewhere in the chain."""
    link: BaseException | None = error
    seen_ids = set[int]()  # an error that was raised twice may be in its own chain
    while link is not None and id(link) not in seen_ids:
        if isinstance(link, MachineError) or is_of_the_machine(link):
            return True
        seen_ids.add(id(link))
        link = link.__cause__ or link.__context__
    return isinstance(error, ReadError)


def close_names(name: str, names: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Return up to three known names that resemble `name`, closest first; case does not matter."""
    by_lowercase = {known_name.lower(): known_name for known_name in sorted(names, reverse=True)}
    return [by_lowercase[match] for match in difflib.get_close_matches(name.lower(), by_lowercase, n=3, cutoff=cutoff)]


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, at most 300 characters; the name of its class if it has no text."""
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__


def shortened(message: str) -> str:
    """Return a message without its middle if it is longer than LONGEST_MESSAGE; the advice is at its end."""
    half = LONGEST_MESSAGE // 2
    return message if len(message) <= LONGEST_MESSAGE else f"{message[: half - 10]} [...] {message[10 - half :]}"


def count_of(number: int, singular: str, plural: str = "") -> str:
    """Return "1 sample", "2 samples"; `plural` is an irregular plural."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def size_text(sizes: Iterable[int | str]) -> str:
    """Return sizes as "64 x 60"; "1" for none."""
    return " x ".join(map(str, sizes)) or "1"


def and_others(number: int) -> str:
    """Return " and 1 other", " and 2 others", or nothing for 0."""
    return f" and {count_of(number, 'other')}" if number else ""
