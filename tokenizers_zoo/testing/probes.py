"""Files that users may have, made from a modality's spec, and how it reads them.

Arrays of another type, shape or range; all kinds of picture, animation or sound files if the modality reads them; texts
in other encodings; incomplete objects; and the plugin's `example_files`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.pictures import IMAGE_EXTENSIONS
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import bounds
from tokenizers_zoo.errors import DataError, MachineError
from tokenizers_zoo.testing.media import (
    animation,
    moving_probes,
    picture_extensions,
    picture_probes,
    readable_picture,
    sound_probes,
)
from tokenizers_zoo.testing.probe import Array, File, Probe, bars, fits, npy, read_or_none, span_of

FREE = 3
"""Size of an axis of free size."""
UNSIZED_PICTURE = 32
"""Height and width of a picture of free size."""
SCRIPTS = "Стул 椅子 🪑"
LONG = 100_000
"""Letters of a long text."""
LARGER = 1000
"""Factor between units: millimetres for metres, or about pixels for fractions."""
OTHER = Probe("another kind of file", File(b"PK", "docx"))
PICTURE = "picture"
MOVING = ("gif", "png", "apng", "webp")
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
    examples = {description: File(data, end) for description, (data, end) in handle.example_files().items()}
    kind, shape, value = handle.spec.value.kind, handle.spec.value.shape, sample
    if kind == "text":
        value = plain_text(handle)
    elif kind == "array":
        generated = example_array(handle)
        value = sample if generated is None else generated
    elif examples:
        first = next(iter(examples.values()))
        if first.extension == "json" and read_or_none(handle, first) is not None:
            value = json.loads(first.data)
    if value is None:
        raise DataError(
            f"{handle.name}: there is no sound value to make files from; give a .json of one as the first of the hook"
            " example_files"
        )
    written = File(*handle.write(value))
    groups: list[Group] = [("", readable(handle, written), ())]
    if kind == "text":
        groups.append(("`.txt`", readable(handle, txt(value)), tuple(text_probes(handle))))
        if extensions := readable(handle, as_json(value)):
            groups.append(("`.json`", extensions, tuple(json_text_probes(value))))
    elif kind == "object":
        groups.append(("`.json`", readable(handle, as_json(value)), tuple(object_probes(value))))
    else:
        plain = readable_picture(handle, value)
        if plain is not None:
            groups.append((PICTURE, tuple(picture_extensions(handle, plain)), tuple(picture_probes(handle, plain))))
        if len(shape) >= 4 and isinstance(shape[0], int):
            animations = (animation(4 * shape[0], extension) for extension in MOVING)
            if moving := readable(handle, *animations):
                groups.append(("moving picture", moving, tuple(moving_probes(shape[0]))))
        if written.extension == "wav":
            names = [File(written.data, name) for name in ("wav", "wave")]
            groups.append(("`.wav`", readable(handle, *names), tuple(sound_probes(written))))
        if arrays := readable(handle, npy(value)):
            groups.append(("`.npy`", arrays, tuple(array_probes(handle, value))))
    pictures = any(kind == PICTURE for kind, _, _ in groups)
    for number, (description, file) in enumerate(examples.items()):
        file_kind = PICTURE if pictures and file.extension in IMAGE_EXTENSIONS else f"`.{file.extension}`"
        base = kind == "object" and number == 0
        groups.append((file_kind, readable(handle, file), () if base else (Probe(description, file),)))
    return ProbedFiles(
        reads=tuple(dict.fromkeys(extension for _, extensions, _ in groups for extension in extensions)),
        writes=written.extension,
        probes=tuple((kind, probe) for kind, _, probes in groups for probe in probes),
    )


def readable(handle: ModalityHandle, *files: File) -> list[str]:
    """Return the extensions of the readable files."""
    return [file.extension for file in files if read_or_none(handle, file) is not None]


def example_array(handle: ModalityHandle) -> Array | None:
    """Return a valid value made from the spec: bars of two numbers, as its own file reads them back; None if
    impossible."""
    shape = tuple(size if isinstance(size, int) else FREE for size in handle.spec.value.shape)
    if len(shape) >= 2 and all(isinstance(size, str) for size in handle.spec.value.shape[-2:]):
        shape = (*shape[:-2], UNSIZED_PICTURE, UNSIZED_PICTURE)
    tones = span_of(handle)
    candidates = [lambda: bars(shape, tones, handle.spec.value.dtype)]
    if len(shape) >= 2:  # resizing makes constrained values valid, such as unit vectors
        larger = (*shape[:-2], 2 * shape[-2], 2 * shape[-1])
        candidates.append(lambda: handle.transform(bars(larger, tones, handle.spec.value.dtype), Crop()))
    for candidate in candidates:
        try:
            data, extension = handle.write(candidate())
        except MachineError:
            raise
        except Exception:  # any error means it is not valid
            continue
        value: Array | None = read_or_none(handle, File(data, extension))
        if value is not None:
            return value
    return None


def array_probes(handle: ModalityHandle, good: Array) -> Iterator[Probe]:
    """Yield files of arrays that differ from the valid value `good` in one respect."""
    spec, plain = handle.spec.value, npy(good)
    asis = (("", plain),)
    if good.dtype.kind == "f":
        for description, number in (("NaN in it", np.nan), ("infinity in it", np.inf)):
            yield Probe(description, npy(with_number(good, number)))
    for bound, step, word in zip(bounds(spec), (-1, 1), ("below", "above"), strict=True):
        outside = None if bound is None else bound + step * max(1, abs(bound))
        if outside is not None and fits(outside, good.dtype):
            yield Probe(f"a number {word} {bound:g}", npy(with_number(good, outside)))
    yield Probe("zeros everywhere", npy(np.zeros_like(good)))
    yield from other_types(good, span_of(handle))
    if good.ndim >= 3 and good.shape[0] != good.shape[-1]:
        last = np.ascontiguousarray(np.moveaxis(good, good.ndim - 3, -1))
        yield Probe("channels last", npy(last), asis)
    if good.ndim == 3 and good.shape[0] == 1:
        yield Probe("no axis of channels", npy(good[0]), asis)
    if good.ndim >= 4:
        count, first = len(good), f"the first {len(good)}"
        yield Probe(f"{count - 1} instead of {count} along the first axis", npy(good[:-1]))
        twice = npy(np.concatenate([good, good]))
        yield Probe(f"{2 * count} instead of {count} along the first axis", twice, ((first, plain),))
    if good.ndim >= 3 or (good.ndim == 2 and good.dtype.kind in "iu"):
        larger = good.repeat(2, axis=-1).repeat(2, axis=-2)
        yield Probe("twice as high and wide", npy(larger), (("resized", plain),))
    elif good.ndim:
        half, filled = good[..., : good.shape[-1] // 2], good.copy()
        filled[..., half.shape[-1] :] = 0
        yield Probe("half as long", npy(half), (("zeros after it", npy(filled)),))
        yield Probe("twice as long", npy(np.concatenate([good, good], axis=-1)), (("cut at the end", plain),))
    yield Probe("an axis too many", npy(good[None]))
    yield Probe("an empty array", npy(good[..., :0] if good.ndim else good[None][:0]))
    yield Probe("cut off", File(plain.data[:-4], "npy"), damaged=True)
    yield Probe("Python objects in it", pickled_array(), damaged=True)
    yield Probe("no array", File(b"no array", "npy"), damaged=True)


def other_types(good: Array, tones: tuple[float, float]) -> Iterator[Probe]:
    """Yield the same numbers in other types, and 0 to 255 instead of 0 to 1."""
    asis = (("", npy(good)),)
    if good.dtype.kind == "f":
        for name in ("float64", "float16"):
            yield Probe(name, npy(good.astype(name)), asis)
        for name, low, high in (("uint8", 64, 192), ("int16", 1000, 3000)):
            yield Probe(name, npy(np.where(good > np.mean(tones), high, low).astype(name)))
        if 0 <= tones[0] < tones[1] <= 1:
            yield Probe("0 to 255 as floats", npy(good * 255))
    elif good.dtype.kind in "iu":
        for name in ("uint8", "int64" if good.dtype != np.int64 else "int32"):
            yield Probe(name, npy(good.astype(name)), asis)
        yield Probe("floats", npy(good.astype(np.float32)), asis)


def with_number(good: Array, number: float) -> Array:
    """Return a copy with another number in the middle."""
    changed = good.copy()
    changed.flat[good.size // 2] = number
    return changed


def pickled_array() -> File:
    """Return a pickled array of Python objects, which readers must refuse: unpickling runs code from the file."""
    np.save(buffer := io.BytesIO(), np.array([{}]), allow_pickle=True)
    return File(buffer.getvalue(), "npy")


def txt(text: str, encoding: str = "utf-8") -> File:
    return File(text.encode(encoding), "txt")


def as_json(value: Any) -> File:
    """Return a value as a JSON file; NaN and Infinity are written as words."""
    return File(json.dumps(value, ensure_ascii=False).encode(), "json")


def plain_text(handle: ModalityHandle) -> str:
    """Return a valid text: the first class if there are classes."""
    classes = handle.spec.value.classes
    return classes[0] if classes else "a red chair"


def text_probes(handle: ModalityHandle) -> Iterator[Probe]:
    classes = handle.spec.value.classes
    good = plain_text(handle)
    same = (("", txt(good)),)
    yield Probe("a line end of Windows after it", txt(f"{good}\r\n"), same)
    yield Probe("a byte order mark before it", txt(f"\ufeff{good}"), (("without it", txt(good)),))
    yield Probe("nothing in it", txt(""))
    if classes:
        yield Probe("space around it", txt(f"  {good} "), (("without it", txt(good)),))
        yield Probe("capital letters", txt(good.upper()), same)
        yield Probe("no name of a class", txt(f"{good}{good[-1]}"))
    else:
        yield Probe("letters of any script", txt(SCRIPTS))
        yield Probe(f"{LONG} letters", txt("chair " * (LONG // 6)))
        yield Probe("a control character", txt("a red\x00 chair"))
    yield Probe("Latin-1 instead of UTF-8", txt("caf\u00e9", "latin-1"))
    yield Probe("UTF-16 instead of UTF-8", txt(good, "utf-16"))


def json_text_probes(good: str) -> Iterator[Probe]:
    """Yield JSON files of texts."""
    same = (("", txt(good)),)
    yield Probe("a text", as_json(good), same)
    yield Probe("a list of texts", as_json([good, "other"]), (("the first", txt(good)),))
    yield Probe("a number", as_json(3))


def object_probes(example: Any) -> Iterator[Probe]:
    """Yield JSON files that differ from the valid value `example` in one respect."""
    item, within = (example[0], True) if isinstance(example, list) and example else (example, False)

    def changed_file(changed: Any) -> File:
        return as_json([changed] if within else changed)

    if isinstance(example, list):
        yield Probe("an empty list", as_json([]))
        yield Probe("one without a list around it", as_json(item))
        yield Probe("a table without anything", as_json([{}]))
    else:
        yield Probe("an empty table", as_json({}))
        yield Probe("a list around it", as_json([example]))
    if isinstance(item, dict):
        if within:
            for key in item:
                yield Probe(f"without `{key}`", changed_file({name: item[name] for name in item if name != key}))
        yield Probe("a key more, `remark`", changed_file({**item, "remark": "ok"}))
        words = [key for key, part in item.items() if isinstance(part, str)]
        numeric = [key for key, part in item.items() if first_number(part) is not None]
        for key in words[: None if within else 1]:
            yield Probe(f"`{key}` is a number", changed_file({**item, key: 3}))
            yield Probe(f"`{key}` is an empty text", changed_file({**item, key: ""}))
        for key in numeric[: None if within else 1]:
            yield Probe(f"`{key}` is a text", changed_file({**item, key: "one"}))
            yield Probe(f"`{key}` is {LARGER} times larger", changed_file({**item, key: scale(item[key], LARGER)}))
            if isinstance(item[key], list):
                yield Probe(f"`{key}` lacks its last", changed_file({**item, key: item[key][:-1]}))
        for key in numeric[:1]:
            yield Probe("NaN in it", changed_file({**item, key: scale(item[key], math.nan)}))
    marked = File(b"\xef\xbb\xbf" + as_json(example).data, "json")
    yield Probe("a byte order mark before it", marked, (("without it", as_json(example)),))
    yield Probe("cut off", File(as_json(example).data[:-1], "json"), damaged=True)
    yield Probe("in UTF-16", File(json.dumps(example).encode("utf-16"), "json"))
    yield Probe("nothing in it", File(b"", "json"), damaged=True)


def first_number(part: Any) -> float | None:
    """Return the first number in nested lists, or None."""
    while isinstance(part, list) and part:
        part = part[0]
    return None if isinstance(part, bool) or not isinstance(part, int | float) else part


def scale(part: Any, factor: float) -> Any:
    """Return nested lists with all numbers multiplied by a factor."""
    if isinstance(part, list):
        return [scale(item, factor) for item in part]
    return part if first_number(part) is None else part * factor
