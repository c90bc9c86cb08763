"""Errors that users meet, each one clear line without a traceback, and the words that messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

MOST_NAMES = 20
"""Names that a message lists where none is close."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""The control characters of Unicode (category Cc), which a terminal obeys where they are shown on it."""


class OneLineError(Exception):
    """Base of every error whose text is the whole message; the command line prints it without a traceback."""


class ZooError(OneLineError):
    """Base of every error about what was given: settings, files, values, plugins. Its text says what to mend."""


class ConfigError(ZooError):
    """A setting is unknown, of the wrong type or out of range; names file, line and key where known."""


class UnknownKeyError(ConfigError):
    """A key of a table that nothing reads."""


class UnknownNameError(ZooError):
    """A name that nothing answers to; the message offers close names."""

    @classmethod
    def of(
        cls, kind: str, name: str, known: Iterable[str], hint: str = "", *, aliases: Mapping[str, str] | None = None
    ) -> UnknownNameError:
        """Build the message for an unknown `name` of a `kind` ('modality', 'source', ...) among `known` names.

        `aliases` are other names that some of them go by elsewhere.
        """
        end = f" {hint}" if hint else ""
        if aliases and name in aliases:
            return cls(f"unknown {kind} {name!r}; here it is called {aliases[name]}{end}")
        names = sorted(known)
        close = close_names(name[:80], names)
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        known_ones = (", ".join(names[:MOST_NAMES]) or "none") + more
        offer = f"did you mean {' or '.join(close)}?" if close else f"known: {known_ones}"
        return cls(f"unknown {kind} {name!r:.80}; {offer}{end}")


class PluginError(ZooError):
    """A plugin fails to import, misses or misspells a hook, or returns what its spec does not declare."""


class InvalidValueError(ZooError):
    """A value has another dtype, shape, range or unit than its modality declares."""


class CheckpointError(ZooError):
    """A checkpoint is missing, altered, of another class, or does not fit its configuration."""


class DataError(ZooError):
    """Stored values or tokens are missing, damaged, or were written by another codec."""


class ReadError(DataError):
    """Stored values cannot be read now, for a reason that may pass (disk, network, rights): they are not to blame."""


class MachineError(OneLineError):
    """Memory ran out, or the device failed, where a plugin computed.

    It is no ZooError, because nothing that was given is to blame: whoever goes on without a sample, a modality or a
    decoder that a ZooError complains of stops here.
    """


OF_THE_MACHINE = ("OutOfMemoryError", "AcceleratorError")
"""Torch's errors, by name: nothing has to import it to ask, and older ones lack the second."""
SAID_OF_THE_MACHINE = re.compile(r"(CUDA|cuDNN) error|.*DefaultCPUAllocator: (can't|not enough)")
"""What a RuntimeError begins with where torch has no other for it."""


def is_of_the_machine(error: BaseException) -> bool:
    """True where memory ran out or the device failed, whatever was computed."""
    if isinstance(error, MemoryError) or any(kind.__name__ in OF_THE_MACHINE for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and SAID_OF_THE_MACHINE.match(str(error)) is not None


def passing(error: BaseException) -> bool:
    """True where the next try may do better: a file is not read now, or the machine failed as it was.

    An error of the machine may lie behind others, those among them that were raised `from None`.
    """
    behind, seen = [error], set[int]()
    while behind:
        found = behind.pop()
        if id(found) not in seen:
            if is_of_the_machine(found):
                return True
            seen.add(id(found))
            behind += [cause for cause in (found.__cause__, found.__context__) if cause is not None]
    return isinstance(error, ReadError)


def close_names(name: str, known: Iterable[str], alike: float = 0.5) -> list[str]:
    """Up to three of the known names that are like `name`, in capitals or not, the likest first."""
    lower = {one.lower(): one for one in sorted(known, reverse=True)}
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=alike)]


def count_of(number: int, one: str, many: str = "") -> str:
    """A number of things in words: "1 sample", "2 samples"; `many` where it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def by(sizes: Iterable[int | str]) -> str:
    """Sizes in words: "64 x 60"; "1" for that of a plain number."""
    return " x ".join(map(str, sizes)) or "1"


def and_others(number: int) -> str:
    """What follows the first of several names: " and 1 other", " and 2 others"; nothing where there are no more."""
    return f" and {count_of(number, 'other')}" if number else ""
