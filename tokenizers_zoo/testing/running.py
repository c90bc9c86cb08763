"""Conformance checks of batches, devices, threads, long values, and files of users."""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tokenizers_zoo.device import DEVICES
from tokenizers_zoo.errors import DataError, InvalidValueError, ZooError
from tokenizers_zoo.spec import EmbeddingsLayout
from tokenizers_zoo.testing.probes import OTHER, ProbedFiles, outcome_of, probed_files
from tokenizers_zoo.testing.subject import Skipped, Subject, all_same, expect, per_sample
from tokenizers_zoo.validation import has_fixed_length

DEVICE_FLIPS_ALLOWED = 0.02
"""Share of the tokens that may differ between devices because of rounding."""
THREADS = 4
LONG_LETTERS = 100_000
LONG_BASE, LONG_FACTOR = 32e6, 400
"""Bytes that encoding a long value may take: a constant, and a factor per letter or byte."""


def odd_batches(subject: Subject) -> None:
    """Batches of one and three values work."""
    for size in (1, 3):
        values = (subject.values * size)[:size]
        tokens = subject.trained.encode(values)
        expect(len(tokens) == size, f"{size} values give {len(tokens)} tokens")
        if not isinstance(subject.handle.spec.layout, EmbeddingsLayout):
            expect(len(subject.trained.decode(tokens)) == size, f"{size} samples decode to another number of values")


def accelerator() -> str | None:
    """Return this machine's accelerator that tokenizers run on, or None."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device is not None and device.type in DEVICES else None


def devices(subject: Subject) -> None:
    """An accelerator gives the same tokens and dtype as the CPU, and its decoded values fit the spec."""
    device = accelerator()
    if device is None:
        raise Skipped("there is no accelerator")
    tokens = per_sample(subject.trained.encode(subject.values))
    moved = subject.handle.at(subject.trained.checkpoint)
    moved.device = device
    theirs = per_sample(moved.encode(subject.values))
    dtypes = {item.dtype for item in tokens} | {item.dtype for item in theirs}
    expect(len(dtypes) == 1, f"tokens of several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    expect([item.shape for item in theirs] == [item.shape for item in tokens], f"other shapes on {device}")
    if subject.handle.spec.continuous:
        alike = all(np.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(tokens, theirs, strict=True))
        expect(alike, f"tokens differ between cpu and {device}")
        return
    differing = sum(int((a != b).sum()) for a, b in zip(tokens, theirs, strict=True))
    total = sum(item.size for item in tokens)
    expect(differing <= total * DEVICE_FLIPS_ALLOWED, f"{differing} of {total} tokens differ between cpu and {device}")
    for value in moved.decode(subject.trained.encode(subject.values)):
        subject.handle.check(value)


def threads(subject: Subject) -> None:
    """Concurrent threads get the same results as a single one."""
    alone = [per_sample(subject.trained.encode([value]))[0] for value in subject.values]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda value: per_sample(subject.trained.encode([value]))[0], subject.values * 2))
        expect(all_same(together, alone * 2), f"{THREADS} threads that encode at once get other tokens than one alone")
        if isinstance(subject.handle.spec.layout, EmbeddingsLayout):
            return
        tokens = [subject.trained.encode([value]) for value in subject.values]
        values = [subject.trained.decode(item)[0] for item in tokens]
        back = list(pool.map(lambda item: subject.trained.decode(item)[0], tokens * 2))
    expect(all_same(back, values * 2), f"{THREADS} threads that decode at once get other values than one alone")


def long_inputs(subject: Subject) -> None:
    """A value far longer than `max_length` is cut or refused in one line, with memory proportional to its length."""
    value = much_too_long(subject)
    _ = subject.trained.tokenizer  # loaded before memory is watched
    count = 0
    tracemalloc.start()
    try:
        count = len(subject.trained.encode([value])[0])
    except InvalidValueError as error:
        expect("\n" not in str(error), f"a long value is refused in several lines: {str(error)[:200]!r}")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    expect(count <= subject.handle.spec.layout.length, "a long value gives more tokens than max_length")
    size, unit = (value.nbytes, "bytes") if isinstance(value, np.ndarray) else (len(json.dumps(value)), "letters")
    allowed = LONG_BASE + LONG_FACTOR * size
    expect(
        peak <= allowed, f"{size} {unit} take {peak / 1e6:.0f} MB to encode, at most {allowed / 1e6:.0f} are expected"
    )


def much_too_long(subject: Subject) -> Any:
    """Return a text, a list in JSON, or an array of 100,000 letters or bytes."""
    spec = subject.handle.spec
    free = [axis for axis, size in enumerate(spec.value.shape) if isinstance(size, str)]
    if has_fixed_length(spec.layout) or (spec.value.kind == "array" and not free):
        raise Skipped("all its values are of one length")
    first = subject.values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate([first] * (LONG_LETTERS // first.nbytes + 1), axis=free[0])
    if isinstance(first, str):
        return (first.strip() + " ") * (LONG_LETTERS // (len(first.strip()) + 1) + 1)
    items = next((value for value in subject.values if isinstance(value, list) and value), None)
    if items is None:
        raise Skipped("its values are no lists that could be long")
    return items * (LONG_LETTERS // len(json.dumps(items)) + 1)


def probes(subject: Subject) -> None:
    """Files of users are read as values that can be encoded, or refused in one helpful line."""
    handle = subject.handle
    read: dict[str, Any] = {}
    for kind, probe in (*files_of(subject).probes, ("", OTHER)):
        outcome = outcome_of(handle, probe)
        name = f"{kind} {probe.what}".strip()
        expect(not outcome.fault, f"{name}: {outcome.fault}")
        if outcome.read:
            read[name] = outcome.value
    for name, value in read.items():
        try:
            subject.trained.encode([value])
        except ZooError as error:
            raise AssertionError(f"{name}: it is read, but not encoded: {error}") from None


def files_of(subject: Subject) -> ProbedFiles:
    """Return the probes of a modality, made from a sample value if necessary."""
    try:
        return probed_files(subject.handle)
    except DataError:
        values = subject.values
        return probed_files(subject.handle, next((value for value in values if len(value)), values[0]))
