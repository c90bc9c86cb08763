"""The conformance checks, each a function of a Subject that raises AssertionError, ZooError or Skipped."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenizers_zoo import checkpoint as checkpoints
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.pretrained import PretrainedError
from tokenizers_zoo.run_folder import TOKENIZER, FolderError, check_replaceable
from tokenizers_zoo.spec import (
    Crop,
    SequenceLayout,
    layout_from_json,
    layout_to_json,
    spec_problems,
)
from tokenizers_zoo.testing import running
from tokenizers_zoo.testing.geometry import check_crop_geometry
from tokenizers_zoo.testing.probes.plain import fits
from tokenizers_zoo.testing.probes.probe import CLOSE
from tokenizers_zoo.testing.subject import Skipped, Subject, all_same, decoded_or_skip, expect, lent, per_sample
from tokenizers_zoo.validation import (
    bounds,
    describe,
    expected_tokens,
    expected_value,
    fixed_shape,
    has_fixed_length,
    is_batched,
    same,
)

FLIPS_ALLOWED = 1e-3
"""Share of the tokens that may differ between a batch and single samples, because rounding decides ties."""


CHECKS: dict[str, Callable[[Subject], None]] = {}


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Add a function to CHECKS under its name."""
    CHECKS[function.__name__] = function
    return function


# ---------------------------------------------------------------- the spec


@check
def spec(subject: Subject) -> None:
    """The spec is valid, the same each time, and its layout survives JSON."""
    declared = subject.handle.spec
    problems = spec_problems(declared)
    expect(not problems, f"the spec is unsound: {'; '.join(problems)}")
    expect(subject.handle.at(subject.workdir).spec == declared, "modality_spec gives another spec when asked again")
    stored = json.loads(json.dumps(layout_to_json(declared.layout)))
    expect(layout_from_json(stored) == declared.layout, f"the layout does not survive JSON: {declared.layout}")
    for metric in declared.metrics:
        expect(bool(metric.meaning), f"the metric {metric.name} does not say what it means")


@check
def sample_values(subject: Subject) -> None:
    """Transformed sample values fit the spec."""
    for value in subject.values:
        subject.handle.check(value)


@check
def bad_values(subject: Subject) -> None:
    """`check` and `encode` refuse values of another type, dtype, shape or range in a line that says why."""
    declared = expected_value(subject.handle.spec.value)
    for bad in broken_values(subject):
        for act in (subject.handle.check, lambda value: subject.trained.encode([value])):
            try:
                act(bad)
            except InvalidValueError as error:
                text = str(error)
                told = text.startswith(f"{subject.name}: ") and "\n" not in text and declared in text
                expect(told, f"{describe(bad)} is refused without saying what was expected: {text!r}")
                continue
            raise AssertionError(f"{describe(bad)} is accepted, the spec declares {declared}")
    no_lists: list[Any] = [[], subject.values[0] if isinstance(subject.values[0], str | dict) else None]
    for batch in no_lists:
        try:
            subject.trained.encode(batch)
        except InvalidValueError:
            continue
        raise AssertionError(f"encode takes {describe(batch)}, which is no list of values")


def broken_values(subject: Subject) -> list[Any]:
    """Return values that the spec excludes."""
    declared = subject.handle.spec.value
    if declared.kind == "text":
        return [None, 3, ["a"], "\ud800", *(["none of the classes"] if declared.classes else [])]
    if declared.kind == "object":
        return [{"a": object()}, [float("nan")], [float("inf")], {1: 2}, (1, 2), np.zeros(2)]
    good = subject.values[0]
    other = np.float64 if good.dtype != np.float64 else np.float32
    bad = [None, "text", good.tolist(), good[None], good.astype(np.complex64), good.astype(other)]
    if declared.shape:
        bad.append(good[..., :0])
        if isinstance(declared.shape[-1], int):
            bad.append(np.concatenate([good, good], axis=-1))
    if good.dtype.kind == "f":
        for number in (np.nan, np.inf, -np.inf):
            hole = good.copy()
            hole.flat[0] = number
            bad.append(hole)
    low, high = bounds(declared)
    for bound, step in ((low, -1), (high, 1)):
        if bound is not None and (beyond := _beyond(bound, step, good.dtype)) is not None:
            outside = good.copy()
            outside.flat[-1] = beyond
            bad.append(outside)
    return bad


def _beyond(bound: float, step: int, dtype: np.dtype[Any]) -> float | None:
    """Return a number outside a bound, as far as the dtype allows; None if it holds none."""
    next_to_it = (bound + step,) if dtype.kind in "iu" else ()
    return next((number for number in (bound + step * max(1, abs(bound)), *next_to_it) if fits(number, dtype)), None)


# ---------------------------------------------------------------- values to tokens and back


@check
def encode(subject: Subject) -> None:
    """Tokens have the declared layout, dtype and range; the values are not modified."""
    declared = subject.handle.spec
    with lent("encode", subject.values) as values:
        tokens = subject.trained.encode(values)
    if is_batched(declared.value):
        import torch

        with lent("encode", np.stack(subject.values)) as batch:
            subject.trained.encode(torch.from_numpy(batch))  # plugins get tensors unchanged, and lists stacked
    expect(len(tokens) == len(subject.values), f"{len(tokens)} tokens for {len(subject.values)} values")
    for item in per_sample(tokens):
        got = f"expected {expected_tokens(declared)}, one sample is {describe(item)}"
        expect(item.dtype == (np.float32 if declared.continuous else np.int64), got)
        if has_fixed_length(declared.layout):
            expect(item.shape == fixed_shape(declared.layout), got)
        else:
            expect(len(item) <= declared.layout.length, got)
        if not declared.continuous and item.size:
            expect(item.min() >= 0 and item.max() < declared.vocab_size, got)


@check
def decode(subject: Subject) -> None:
    """Decoded tokens fit the spec."""
    tokens = subject.trained.encode(subject.values)
    decoded = decoded_or_skip(subject, tokens)
    expect(len(decoded) == len(subject.values), f"{len(decoded)} values of {len(subject.values)} samples")
    for value in decoded:
        subject.handle.check(value)


@check
def any_tokens(subject: Subject) -> None:
    """All valid ids decode to a value."""
    declared, rng = subject.handle.spec, subject.rng
    if declared.continuous:
        raise Skipped("continuous tokens are an input only")
    if isinstance(declared.layout, SequenceLayout):
        layout = declared.layout
        ids = np.arange(declared.vocab_size)
        sentinel = (ids >= layout.sentinel_start) & (ids < layout.sentinel_start + layout.num_sentinels)
        content = ids[~sentinel & (ids != layout.end)]
        lengths = [0, 1, layout.max_length, *rng.integers(0, layout.max_length + 1, 13)]
        tokens: Any = [rng.choice(content, size=length) for length in lengths]
    else:
        tokens = rng.integers(0, declared.vocab_size, (16, *fixed_shape(declared.layout)))
    for value in subject.trained.decode(tokens):
        subject.handle.check(value)


@check
def deterministic(subject: Subject) -> None:
    """The same values give the same tokens, and the same tokens the same values."""
    first, second = (per_sample(subject.trained.encode(subject.values)) for _ in range(2))
    expect(all_same(first, second), "the same values give other tokens when encoded again")
    tokens = subject.trained.encode(subject.values)
    expect(
        all_same(decoded_or_skip(subject, tokens), decoded_or_skip(subject, tokens)),
        "the same tokens give other values when decoded again",
    )


@check
def batches(subject: Subject) -> None:
    """A value's tokens do not depend on the rest of its batch."""
    together = per_sample(subject.trained.encode(subject.values))
    alone = [per_sample(subject.trained.encode([value]))[0] for value in subject.values]
    lengths = [len(item) for item in together]
    expect(lengths == [len(item) for item in alone], "tokens have other lengths in a batch than one by one")
    if subject.handle.spec.continuous:
        close = all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(together, alone, strict=True))
        expect(close, "tokens differ between a batch and its samples one by one")
        return
    differing = sum(int((a != b).sum()) for a, b in zip(together, alone, strict=True))
    total = sum(item.size for item in together)
    expect(
        differing <= math.floor(total * FLIPS_ALLOWED),
        f"{differing} of {total} tokens differ between a batch and its samples one by one",
    )


# ---------------------------------------------------------------- checkpoints


@check
def save_and_load(subject: Subject) -> None:
    """A copied checkpoint gives the same fingerprint, tokens and values."""
    original = subject.trained
    copy = subject.workdir / "copy"
    shutil.copytree(original.files.folder(), copy, dirs_exist_ok=True)
    loaded = subject.handle.at(copy)
    expect(loaded.fingerprint == original.fingerprint, "the fingerprint depends on the folder")
    tokens = original.encode(subject.values)
    expect(
        all_same(per_sample(loaded.encode(subject.values)), per_sample(tokens)),
        "the tokens are others after loading the checkpoint again",
    )
    decoded = decoded_or_skip(subject, tokens)
    expect(all_same(loaded.decode(tokens), decoded), "the decoded values are others after loading the checkpoint again")


@check
def train_again(subject: Subject) -> None:
    """Training again on a finished checkpoint does not change it, and it has all files."""
    folder = subject.workdir / "again"
    subject.train(folder)
    before = checkpoints.fingerprint(folder)
    expect(subject.train(folder) == folder, "train_tokenizer does not return the folder that it was given")
    expect(checkpoints.fingerprint(folder) == before, "training again on a finished checkpoint changes it")
    expect((folder / checkpoints.CARD).is_file(), f"the checkpoint has no {checkpoints.CARD}")
    try:
        check_replaceable(folder, TOKENIZER)
    except FolderError as error:
        files = f"{checkpoints.WEIGHTS} and {checkpoints.CONFIG}"
        raise AssertionError(
            f"{error}; what decides tokens belongs into {files}, whose sha256 is their identity"
        ) from None
    checkpoints.load_checkpoint(folder)


# ---------------------------------------------------------------- files, crops, pictures


@check
def files(subject: Subject) -> None:
    """Written values are read back (arrays up to rounding) and written to the same bytes; damaged files are refused."""
    span = span_of_all(subject.values)
    for value in subject.values:
        data, extension = subject.handle.write(value)
        again = subject.handle.read(data, extension)
        subject.handle.check(again)
        expect(
            span is None or kept(value, again, span),
            f"{describe(value)} is read back from .{extension} as {describe(again)}, which is another value",
        )
        expect(subject.handle.write(again) == (data, extension), f"a value read from .{extension} is written otherwise")
    for damaged in (b"\xff\xfe\x00garbage\xff", data[: len(data) // 2] + b"\xff"):
        try:
            value = subject.handle.read(damaged, extension)
        except InvalidValueError as error:
            told = str(error).startswith(f"{subject.name}: ") and "\n" not in str(error)
            expect(told, f"a damaged .{extension} file is refused otherwise than in one line: {str(error)!r}")
            continue
        raise AssertionError(f"a damaged .{extension} file is read as {describe(value)}")


def span_of_all(values: Sequence[Any]) -> float | None:
    """Return the range of all arrays' numbers, or the magnitude of a constant; None for other values."""
    if not all(isinstance(value, np.ndarray) for value in values):
        return None
    least, most = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
    return most - least or abs(most) or 1.0


def kept(value: np.ndarray[Any, Any], again: np.ndarray[Any, Any], span: float) -> bool:
    """True if an array's numbers differ from the original by at most CLOSE of `span` on average."""
    if value.shape != again.shape:
        return False
    return float(np.abs(again.astype(np.float64) - value.astype(np.float64)).mean()) <= CLOSE * span


@check
def transform(subject: Subject) -> None:
    """The whole crop changes nothing, two flips cancel out, crops fit the spec, and the input is not modified."""
    handle = subject.handle
    mirror, part = Crop(flip=True), Crop(top=0.25, left=0.1, height=0.5, width=0.75, flip=True)
    for value in subject.values:
        for crop in (mirror, part):
            with lent("transform", value) as mine:
                handle.check(handle.transform(mine, crop))
        expect(close(handle.transform(value, Crop()), value), "the crop of the whole picture changes the value")
        twice = handle.transform(handle.transform(value, mirror), mirror)
        expect(close(twice, value), "flipped twice, the value is another")


def close(first: Any, second: Any) -> bool:
    """Equal up to rounding, also inside lists and dicts."""
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and np.allclose(first, second, rtol=1e-4, atol=1e-5)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(close(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, float):
        return isinstance(second, float | int) and math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-5)
    return bool(first == second)


@check
def crop_geometry(subject: Subject) -> None:
    """A crop shows the same part of the picture as in every other modality."""
    if problem := check_crop_geometry(subject):
        raise Skipped(problem)


@check
def render(subject: Subject) -> None:
    """A value is rendered as a non-empty PIL image or text, and is not modified."""
    for value in subject.values:
        with lent("render", value) as mine:
            shown = subject.handle.render(mine)
        expect(bool(shown) if isinstance(shown, str) else min(shown.size) > 0, "nothing is shown")


# ---------------------------------------------------------------- metrics


@check
def score(subject: Subject) -> None:
    """Values score best against themselves, with finite numbers, and others score worse by the main metric."""
    handle, values = subject.handle, subject.values
    with lent("score", (values, values)) as (predicted, target):
        perfect = handle.score(predicted, target)
    rivals = {"other values": values[1:] + values[:1], "a constant": [handle.constant_baseline(values)] * len(values)}
    for name, number in perfect.items():
        expect(math.isfinite(number), f"{name} of values against themselves is {number}")
    main, told = handle.spec.metrics[0], all_same(values[1:], values[:-1])
    for rival, others in rivals.items():
        with lent("score", (others, values)) as (predicted, target):
            marks = handle.score(predicted, target)
        gap = marks[main.name] - perfect[main.name]
        told |= gap < 0 if main.higher_is_better else gap > 0
        for metric in handle.spec.metrics:
            sign = 1 if metric.higher_is_better else -1
            mine, theirs = perfect[metric.name], marks[metric.name]
            expect(
                math.isnan(theirs) or sign * mine >= sign * theirs - 1e-6,
                f"{metric.name} is better for {rival} ({theirs:g}) than for the values themselves ({mine:g})",
            )
    expect(
        told,
        f"{main.name} tells nothing: {perfect[main.name]:g} for the values themselves, and no worse for"
        f" {' or '.join(rivals)}, although the values differ",
    )


@check
def constant_baseline(subject: Subject) -> None:
    """The constant baseline fits the spec and is the same each time."""
    answer = subject.handle.constant_baseline(subject.values)
    subject.handle.check(answer)
    expect(same(answer, subject.handle.constant_baseline(subject.values)), "the constant baseline is another each time")


@check
def derive(subject: Subject) -> None:
    """The modality can be derived from its inputs, except for dropped samples."""
    inputs = subject.handle.spec.derived_from
    if not inputs:
        raise Skipped("it is not derived from other modalities")
    try:
        derived = subject.derived()
    except PretrainedError as error:
        raise Skipped(str(error)) from None
    if not derived:
        raise Skipped(f"nothing here gives {' and '.join(inputs)}")
    for sample, value in derived:
        subject.handle.check(subject.handle.transform(value, Crop()))
        with lent("derive", sample) as mine:
            again = subject.handle.derive(mine)
        expect(same(value, again), "derived again, the value is another")


@check
def vocabulary(subject: Subject) -> None:
    """Special tokens are distinct and not empty, texts are strings, and no value repeats a single id."""
    tokens = subject.handle.vocabulary_tokens()
    expect(len(set(tokens)) == len(tokens) and all(tokens), f"special tokens repeat or are empty: {tokens}")
    expect(tokens == subject.handle.vocabulary_tokens(), "the special tokens come in another order each time")
    subject.handle.vocabulary_texts(subject.values)
    if subject.handle.implements("single_ids"):
        single = subject.trained.single_ids()
        for row in per_sample(subject.trained.encode(subject.values)):
            named = [index for index in row.ravel().tolist() if index in single]
            expect(len(set(named)) == len(named), "a value's tokens have one of single_ids twice")


# ---------------------------------------------------------------- files of users, devices, threads

check(running.probes)
for function in (running.odd_batches, running.devices, running.threads, running.long_inputs):
    check(function)
