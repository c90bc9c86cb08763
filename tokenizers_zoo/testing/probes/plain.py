"""Arrays of other numbers, types and axes; texts in other encodings; incomplete JSON objects."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tokenizers_zoo.errors import MachineError
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.spec import Crop
from tokenizers_zoo.testing.probes.probe import Array, File, Probe, npy, plainly_read, span_of
from tokenizers_zoo.validation import bounds

FREE = 3
"""Size of an axis of free size."""
BLOCK = 8
"""Bars end at multiples of this many pixels, so that JPEG keeps them."""
UNSIZED_PICTURE = 32
"""Height and width of a picture of free size."""


def made_up(handle: ModalityHandle) -> Array | None:
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
            value = candidate()
            data, extension = handle.write(value)
        except MachineError:
            raise
        except Exception:  # any error means it is not valid
            continue
        found: Array | None = plainly_read(handle, File(data=data, extension=extension))
        if found is not None:
            return found
    return None


def bars(shape: tuple[int, ...], tones: tuple[float, float], dtype: str = "float32") -> Array:
    """Return an array of two numbers in bars along the last two axes, without symmetry.

    An array without axes has one number.
    """
    pattern = np.array([[0, 1], [1, 0], [1, 1]])
    if not shape:
        return np.asarray(tones[0], dtype)
    if len(shape) < 2:
        return np.broadcast_to(np.array(tones)[pattern[:, 0]].repeat(-(-shape[-1] // 3))[: shape[-1]], shape).astype(
            dtype
        )
    rows, columns = (places(size, count) for size, count in zip(shape[-2:], pattern.shape, strict=True))
    return np.ascontiguousarray(np.broadcast_to(np.array(tones)[pattern[rows][:, columns]], shape).astype(dtype))


def places(size: int, count: int) -> Array:
    """Return the bar number, below `size`, of each of `count` positions."""
    block = BLOCK if size >= BLOCK * count else 1
    return np.minimum(np.arange(size) // block * block * count // size, count - 1)


def array_probes(handle: ModalityHandle, good: Array) -> Iterator[Probe]:
    """Yield files of arrays that differ from the valid value `good` in one respect."""
    spec, plain = handle.spec.value, npy(good)
    asis = (("", plain),)
    if good.dtype.kind == "f":
        for what, number in (("NaN in it", np.nan), ("infinity in it", np.inf)):
            yield Probe(what=what, file=npy(with_one(good, number)))
    for bound, step, word in zip(bounds(spec), (-1, 1), ("below", "above"), strict=True):
        outside = None if bound is None else bound + step * max(1, abs(bound))
        if outside is not None and fits(outside, good.dtype):
            yield Probe(what=f"a number {word} {bound:g}", file=npy(with_one(good, outside)))
    yield Probe(what="zeros everywhere", file=npy(np.zeros_like(good)))
    yield from other_types(good, span_of(handle))
    if good.ndim >= 3 and good.shape[0] != good.shape[-1]:
        last = np.ascontiguousarray(np.moveaxis(good, good.ndim - 3, -1))
        yield Probe(what="channels last", file=npy(last), readings=asis)
    if good.ndim == 3 and good.shape[0] == 1:
        yield Probe(what="no axis of channels", file=npy(good[0]), readings=asis)
    if good.ndim >= 4:
        fewer, more = good[:-1], np.concatenate([good, good])
        yield Probe(what=f"{len(fewer)} instead of {len(good)} along the first axis", file=npy(fewer))
        yield Probe(
            what=f"{len(more)} instead of {len(good)} along the first axis", file=npy(more),
            readings=((f"the first {len(good)}", plain),),
        )  # fmt: skip
    if good.ndim >= 3 or (good.ndim == 2 and good.dtype.kind in "iu"):
        larger = good.repeat(2, axis=-1).repeat(2, axis=-2)
        yield Probe(what="twice as high and wide", file=npy(larger), readings=(("resized", plain),))
    elif good.ndim:
        half = good[..., : good.shape[-1] // 2]
        filled = np.concatenate([half, np.zeros_like(good)[..., half.shape[-1] :]], axis=-1)
        twice = np.concatenate([good, good], axis=-1)
        yield Probe(what="half as long", file=npy(half), readings=(("zeros after it", npy(filled)),))
        yield Probe(what="twice as long", file=npy(twice), readings=(("cut at the end", plain),))
    yield Probe(what="an axis too many", file=npy(good[None]))
    yield Probe(what="an empty array", file=npy(good[..., :0] if good.ndim else good[None][:0]))
    yield Probe(what="cut off", file=replace(plain, data=plain.data[:-4]), damaged=True)
    yield Probe(what="Python objects in it", file=pickled(), damaged=True)
    yield Probe(what="no array", file=File(data=b"no array", extension="npy"), damaged=True)


def other_types(good: Array, tones: tuple[float, float]) -> Iterator[Probe]:
    """Yield the same numbers in other types, and 0 to 255 instead of 0 to 1."""
    asis = (("", npy(good)),)
    if good.dtype.kind == "f":
        for name in ("float64", "float16"):
            yield Probe(what=name, file=npy(good.astype(name)), readings=asis)
        for name, low, high in (("uint8", 64, 192), ("int16", 1000, 3000)):
            numbers = np.where(good > np.mean(tones), high, low).astype(name)
            yield Probe(what=name, file=npy(numbers), numbers=numbers)
        if 0 <= tones[0] < tones[1] <= 1:
            yield Probe(what="0 to 255 as floats", file=npy(good * 255))
    elif good.dtype.kind in "iu":
        for name in ("uint8", "int64" if good.dtype != np.int64 else "int32"):
            yield Probe(what=name, file=npy(good.astype(name)), readings=asis)
        yield Probe(what="floats", file=npy(good.astype(np.float32)), readings=asis)


def with_one(good: Array, number: float) -> Array:
    """Return a copy with another number in the middle."""
    other = good.copy()
    other.flat[good.size // 2] = number
    return other


def fits(number: float, dtype: np.dtype[Any]) -> bool:
    """True if a dtype can hold a number."""
    if dtype.kind == "f":
        return abs(number) <= float(np.finfo(dtype).max)
    return dtype.kind in "iu" and bool(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)


def pickled() -> File:
    """Return a pickled array of Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    return File(data=buffer.getvalue(), extension="npy")


SCRIPTS = "Стул 椅子 🪑"
LONG = 100_000
"""Letters of a long text."""
LARGER = 1000
"""Factor between units: millimetres for metres, or about pixels for fractions."""


def txt(text: str, encoding: str = "utf-8") -> File:
    """Return a text as a file."""
    return File(data=text.encode(encoding), extension="txt")


def as_json(value: Any) -> File:
    """Return a value as a JSON file; NaN and Infinity are written as words."""
    return File(data=json.dumps(value, ensure_ascii=False).encode(), extension="json")


def plain_text(handle: ModalityHandle) -> str:
    """Return a valid text: the first class if there are classes."""
    classes = handle.spec.value.classes
    return classes[0] if classes else "a red chair"


def text_probes(handle: ModalityHandle) -> Iterator[Probe]:
    """Yield text files."""
    classes = handle.spec.value.classes
    good = plain_text(handle)
    same = (("", txt(good)),)
    yield Probe(what="a line end of Windows after it", file=txt(f"{good}\r\n"), readings=same)
    yield Probe(what="a byte order mark before it", file=txt(f"\ufeff{good}"), readings=(("without it", txt(good)),))
    yield Probe(what="nothing in it", file=txt(""))
    if classes:
        yield Probe(what="space around it", file=txt(f"  {good} "), readings=(("without it", txt(good)),))
        yield Probe(what="capital letters", file=txt(good.upper()), readings=same)
        yield Probe(what="no name of a class", file=txt(f"{good}{good[-1]}"))
    else:
        yield Probe(what="letters of any script", file=txt(SCRIPTS))
        yield Probe(what=f"{LONG} letters", file=txt("chair " * (LONG // 6)))
        yield Probe(what="a control character", file=txt("a red\x00 chair"))
    yield Probe(what="Latin-1 instead of UTF-8", file=txt("caf\u00e9", "latin-1"))
    yield Probe(what="UTF-16 instead of UTF-8", file=txt(good, "utf-16"))


def listed_text_probes(good: str) -> Iterator[Probe]:
    """Yield JSON files of texts."""
    same = (("", txt(good)),)
    yield Probe(what="a text", file=as_json(good), readings=same)
    yield Probe(what="a list of texts", file=as_json([good, "other"]), readings=(("the first", txt(good)),))
    yield Probe(what="a number", file=as_json(3))


def object_probes(example: Any) -> Iterator[Probe]:
    """Yield JSON files that differ from the valid value `example` in one respect."""
    item, within = (example[0], True) if isinstance(example, list) and example else (example, False)

    def of(changed: Any) -> File:
        return as_json([changed] if within else changed)

    if isinstance(example, list):
        yield Probe(what="an empty list", file=as_json([]))
        yield Probe(what="one without a list around it", file=as_json(item))
        yield Probe(what="a table without anything", file=as_json([{}]))
    else:
        yield Probe(what="an empty table", file=as_json({}))
        yield Probe(what="a list around it", file=as_json([example]))
    if isinstance(item, dict):
        if within:
            for key in item:
                yield Probe(what=f"without `{key}`", file=of({name: item[name] for name in item if name != key}))
        yield Probe(what="a key more, `remark`", file=of({**item, "remark": "ok"}))
        words = [key for key, part in item.items() if isinstance(part, str)]
        numeric = [key for key, part in item.items() if first_number(part) is not None]
        for key in words[: None if within else 1]:
            yield Probe(what=f"`{key}` is a number", file=of({**item, key: 3}))
            yield Probe(what=f"`{key}` is an empty text", file=of({**item, key: ""}))
        for key in numeric[: None if within else 1]:
            yield Probe(what=f"`{key}` is a text", file=of({**item, key: "one"}))
            yield Probe(what=f"`{key}` is {LARGER} times larger", file=of({**item, key: scaled(item[key], LARGER)}))
            if isinstance(item[key], list):
                yield Probe(what=f"`{key}` lacks its last", file=of({**item, key: item[key][:-1]}))
        for key in numeric[:1]:
            for what, number in (("NaN", float("nan")), ("infinity", float("inf"))):
                yield Probe(what=f"{what} in it", file=of({**item, key: replaced(item[key], number)}))
    marked = File(data=b"\xef\xbb\xbf" + as_json(example).data, extension="json")
    yield Probe(what="a byte order mark before it", file=marked, readings=(("without it", as_json(example)),))
    yield Probe(what="cut off", file=File(data=as_json(example).data[:-1], extension="json"), damaged=True)
    yield Probe(what="in UTF-16", file=File(data=json.dumps(example).encode("utf-16"), extension="json"))
    yield Probe(what="nothing in it", file=File(data=b"", extension="json"), damaged=True)


def first_number(part: Any) -> float | None:
    """Return the first number in nested lists, or None."""
    while isinstance(part, list) and part:
        part = part[0]
    return None if isinstance(part, bool) or not isinstance(part, int | float) else part


def scaled(part: Any, factor: float) -> Any:
    """Return nested lists with all numbers multiplied by a factor."""
    if isinstance(part, list):
        return [scaled(item, factor) for item in part]
    return part if first_number(part) is None else part * factor


def replaced(part: Any, number: float) -> Any:
    """Return nested lists with another first number."""
    if not isinstance(part, list):
        return number
    changed = copy.deepcopy(part)
    inner = changed
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = number
    return changed
