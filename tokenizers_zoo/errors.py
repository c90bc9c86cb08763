"""The errors that users meet: one clear line each, printed without a traceback by the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tokenizers_zoo.wording import close_names

MOST_NAMES = 20
"""Names that a message lists where none is close."""


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
