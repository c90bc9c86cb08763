"""Texts in other encodings and forms, and JSON files of objects that lack something or have it wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.testing.probes.probe import File, Probe

SCRIPTS = "Стул 椅子 🪑"
LONG = 100_000
"""Letters of a long text."""
LARGER = 1000
"""By how much a number is larger in another unit: millimetres for metres, or about pixels for fractions."""


def txt(text: str, encoding: str = "utf-8") -> File:
    """A text as a file."""
    return File(data=text.encode(encoding), extension="txt")


def as_json(value: Any) -> File:
    """A value as a file, with the words NaN and Infinity where it holds such."""
    return File(data=json.dumps(value, ensure_ascii=False).encode(), extension="json")


def plain_text(handle: ModalityHandle) -> str:
    """A sound text: the name of the first class where there are classes."""
    classes = handle.spec.value.classes
    return classes[0] if classes else "a red chair"


def text_probes(handle: ModalityHandle) -> Iterator[Probe]:
    """Text files."""
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
    """JSON files of texts, for a modality that reads such files."""
    same = (("", txt(good)),)
    yield Probe(what="a text", file=as_json(good), readings=same)
    yield Probe(what="a list of texts", file=as_json([good, "other"]), readings=(("the first", txt(good)),))
    yield Probe(what="a number", file=as_json(3))


def object_probes(example: Any) -> Iterator[Probe]:
    """JSON files that are like the sound value `example`, but for one thing."""
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
    """The first number in lists of them; None where there is none."""
    while isinstance(part, list) and part:
        part = part[0]
    return None if isinstance(part, bool) or not isinstance(part, int | float) else part


def scaled(part: Any, factor: float) -> Any:
    """All numbers of lists, times a factor; what else is among them stays as it is."""
    if isinstance(part, list):
        return [scaled(item, factor) for item in part]
    return part if first_number(part) is None else part * factor


def replaced(part: Any, number: float) -> Any:
    """Lists with another first number."""
    if not isinstance(part, list):
        return number
    changed = copy.deepcopy(part)
    inner = changed
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = number
    return changed
