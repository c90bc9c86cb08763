"""Arrays that are not as declared: other numbers, other types, other axes."""

from __future__ import annotations

import io
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
"""Size of an axis whose size is free."""
BLOCK = 8
"""Pixels on whose multiples the bars of a picture end, so that JPEG keeps them."""
UNSIZED_PICTURE = 32
"""Height and width of a picture whose size is free."""


def made_up(handle: ModalityHandle) -> Array | None:
    """A sound value from the spec alone, bars of two numbers as its own file gives them back; None without one."""
    shape = tuple(size if isinstance(size, int) else FREE for size in handle.spec.value.shape)
    if len(shape) >= 2 and all(isinstance(size, str) for size in handle.spec.value.shape[-2:]):
        shape = (*shape[:-2], UNSIZED_PICTURE, UNSIZED_PICTURE)
    tones = span_of(handle)
    candidates = [lambda: bars(shape, tones, handle.spec.value.dtype)]
    if len(shape) >= 2:  # brought to another size, a plugin makes sound what is bound to be of some length
        larger = (*shape[:-2], 2 * shape[-2], 2 * shape[-1])
        candidates.append(lambda: handle.transform(bars(larger, tones, handle.spec.value.dtype), Crop()))
    for candidate in candidates:
        try:
            value = candidate()
            data, extension = handle.write(value)
        except MachineError:
            raise
        except Exception:  # whatever is wrong with it: it is no sound value
            continue
        found: Array | None = plainly_read(handle, File(data=data, extension=extension))
        if found is not None:
            return found
    return None


def bars(shape: tuple[int, ...], tones: tuple[float, float], dtype: str = "float32") -> Array:
    """An array of two numbers, in bars along the last two axes that look otherwise when turned or mirrored.

    Without an axis there is one number.
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
    """For each of `size` places the number of its bar, of `count`."""
    block = BLOCK if size >= BLOCK * count else 1
    return np.minimum(np.arange(size) // block * block * count // size, count - 1)


def array_probes(handle: ModalityHandle, good: Array) -> Iterator[Probe]:
    """Files of arrays that are like the sound value `good`, but for one thing."""
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
    """The same numbers in other types; and 0 to 255, where 0 to 1 is meant."""
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
    """A copy with another number in the middle."""
    other = good.copy()
    other.flat[good.size // 2] = number
    return other


def fits(number: float, dtype: np.dtype[Any]) -> bool:
    """True where a type can hold a number."""
    if dtype.kind == "f":
        return abs(number) <= float(np.finfo(dtype).max)
    return dtype.kind in "iu" and bool(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)


def pickled() -> File:
    """An array of Python objects, which only unpickling could read."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    return File(data=buffer.getvalue(), extension="npy")
