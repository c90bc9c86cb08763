"""Files that users may have, made from a modality's spec, and how it reads them.

Arrays of another type, shape or range; all kinds of picture, animation or sound files if the modality reads them; texts
in other encodings; incomplete objects; and the plugin's `example_files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers_zoo.errors import DataError
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.testing.probes.media import (
    FORMATS,
    is_wav,
    moving_extensions,
    moving_probes,
    picture_extensions,
    picture_probes,
    plain_picture,
    sound_probes,
)
from tokenizers_zoo.testing.probes.plain import (
    array_probes,
    as_json,
    listed_text_probes,
    made_up,
    object_probes,
    plain_text,
    text_probes,
    txt,
)
from tokenizers_zoo.testing.probes.probe import File, Outcome, Probe, npy, outcome_of, plainly_read, shortened

__all__ = ["File", "Outcome", "Probe", "ProbedFiles", "outcome_of", "probed_files", "shortened"]

OTHER = Probe(what="another kind of file", file=File(data=b"PK", extension="docx"))
PICTURE = "picture"
Group = tuple[str, Sequence[str], Sequence[Probe]]
"""A kind of file, its extensions that the modality reads, and its probes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedFiles:
    """The extensions that a modality reads and writes, and all probes as `(kind of file, probe)`."""

    reads: tuple[str, ...]
    writes: str
    probes: tuple[tuple[str, Probe], ...]


def probed_files(handle: ModalityHandle, sample: Any = None) -> ProbedFiles:
    """Return the probes of a modality. Raises DataError if there is no valid value to make files from.

    `sample` is a valid value, for objects without examples and arrays whose generated value is invalid.
    """
    examples = {what: File(data=data, extension=end) for what, (data, end) in handle.example_files().items()}
    value = sound_value(handle, examples, sample)
    data, extension = handle.write(value)
    written = File(data=data, extension=extension)
    groups: list[Group] = [("", readable(handle, written), ())]
    groups += {"text": text_files, "object": object_files, "array": array_files}[handle.spec.value.kind](
        handle, value, written
    )
    base = next(iter(examples)) if handle.spec.value.kind == "object" and examples else None
    pictures = any(kind == PICTURE for kind, _, _ in groups)
    for what, file in examples.items():
        kind = PICTURE if pictures and file.extension in FORMATS else f"`.{file.extension}`"
        probes = () if what == base else (Probe(what=what, file=file),)
        groups.append((kind, readable(handle, file), probes))
    return ProbedFiles(
        reads=tuple(dict.fromkeys(extension for _, extensions, _ in groups for extension in extensions)),
        writes=extension,
        probes=tuple((kind, probe) for kind, _, probes in groups for probe in probes),
    )


def sound_value(handle: ModalityHandle, examples: dict[str, File], sample: Any) -> Any:
    """Return a valid value: the first example for objects, a generated one for others, else `sample`. Raises
    DataError."""
    value: Any = None
    if handle.spec.value.kind == "text":
        return plain_text(handle)
    if handle.spec.value.kind == "array":
        value = made_up(handle)
    elif examples:
        first = next(iter(examples.values()))
        value = plainly_read(handle, first) if first.extension == "json" else None
        value = json.loads(first.data) if value is not None else None
    value = sample if value is None else value
    if value is None:
        raise DataError(
            f"{handle.name}: there is no sound value to make files from; give a .json of one as the first of the hook"
            " example_files"
        )
    return value


def text_files(handle: ModalityHandle, value: str, written: File) -> Iterator[Group]:
    """Yield files of texts."""
    yield "`.txt`", readable(handle, txt(value)), tuple(text_probes(handle))
    if extensions := readable(handle, as_json(value)):
        yield "`.json`", extensions, tuple(listed_text_probes(value))


def object_files(handle: ModalityHandle, value: Any, written: File) -> Iterator[Group]:
    """Yield files of lists and tables."""
    yield "`.json`", readable(handle, as_json(value)), tuple(object_probes(value))


def array_files(handle: ModalityHandle, value: Any, written: File) -> Iterator[Group]:
    """Yield files of arrays, pictures, animations and sound, as far as the modality reads them."""
    shape = handle.spec.value.shape
    if (plain := plain_picture(handle, value)) is not None:
        yield PICTURE, tuple(picture_extensions(handle, plain)), tuple(picture_probes(handle, plain))
    if len(shape) >= 4 and isinstance(shape[0], int) and (moving := moving_extensions(handle, shape[0])):
        yield "moving picture", moving, tuple(moving_probes(shape[0]))
    if is_wav(written):
        names = [File(data=written.data, extension=name) for name in ("wav", "wave")]
        yield "`.wav`", readable(handle, *names), tuple(sound_probes(written))
    if arrays := readable(handle, npy(value)):
        yield "`.npy`", arrays, tuple(array_probes(handle, value))


def readable(handle: ModalityHandle, *files: File) -> list[str]:
    """Return the extensions of the readable files."""
    return [file.extension for file in files if plainly_read(handle, file) is not None]
