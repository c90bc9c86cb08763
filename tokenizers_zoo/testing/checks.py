"""The conformance checks, each a function of a Subject.

A ModalityHandle refuses tokens and values of plugins that do not fit the spec, so checks do not look at these again.
"""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import describe, is_batched
from tokenizers_zoo.errors import InvalidValueError, ZooError
from tokenizers_zoo.files import checkpoint as checkpoints
from tokenizers_zoo.files.run_folder import TOKENIZER, FolderError, check_replaceable
from tokenizers_zoo.machine.device import resolve_device
from tokenizers_zoo.records.io import as_json
from tokenizers_zoo.records.typed import convert
from tokenizers_zoo.testing.geometry import check_crop_geometry
from tokenizers_zoo.testing.probe import CLOSE, outcome_of
from tokenizers_zoo.testing.probes import OTHER, probed_files
from tokenizers_zoo.testing.results import Checks, Failed, Skipped, expect
from tokenizers_zoo.testing.subject import Subject, equal, per_sample, unchanged_copy

FLIPS_ALLOWED = 1e-3
"""Share of the tokens that may differ between a batch and single samples, because rounding decides ties."""
DEVICE_FLIPS_ALLOWED = 0.02
"""Share of the tokens that may differ between devices because of rounding."""
ROUNDING = 1e-4
"""Relative difference of values that are resized or mirrored there and back."""
THREADS = 4
LONG = 100_000
"""Letters or bytes of a long value."""

CHECKS = Checks(Subject)


# ---------------------------------------------------------------- the spec


@CHECKS.add
def spec(subject: Subject) -> None:
    """The spec is valid, the same each time, and survives JSON."""
    declared = subject.handle.spec
    expect(subject.handle.at(subject.workdir).spec == declared, "modality_spec gives another spec when asked again")
    expect(convert(as_json(declared), type(declared)) == declared, "the spec does not survive JSON")
    for metric in declared.metrics:
        expect(bool(metric.meaning), f"the metric {metric.name} does not say what it means")


@CHECKS.add
def sample_values(subject: Subject) -> None:
    """Transformed sample values fit the spec."""
    for value in subject.values:
        subject.handle.check(value)


# ---------------------------------------------------------------- values to tokens and back


@CHECKS.add
def encode(subject: Subject) -> None:
    """Tokens have the declared layout, dtype and range; the values are not modified."""
    with unchanged_copy("encode", subject.values) as values:
        subject.trained.encode(values)
    if is_batched(subject.handle.spec.value):
        import torch

        with unchanged_copy("encode", np.stack(subject.values)) as batch:
            subject.trained.encode(torch.from_numpy(batch))  # plugins get tensors unchanged, and lists stacked


@CHECKS.add
def decode(subject: Subject) -> None:
    """Decoded tokens fit the spec."""
    _ = subject.decoded


@CHECKS.add
def any_tokens(subject: Subject) -> None:
    """All valid ids decode to a value."""
    declared, rng = subject.handle.spec, np.random.default_rng(0)
    if declared.continuous:
        raise Skipped("continuous tokens are an input only")
    layout, ids = declared.layout, np.arange(declared.vocab_size)
    content = ids[~layout.is_special(ids)]
    if layout.variable:
        lengths = [0, 1, layout.length, *rng.integers(0, layout.length + 1, 13)]
        tokens: Any = [rng.choice(content, size=length) for length in lengths]
    else:
        tokens = rng.choice(content, (16, *layout.token_shape))
    subject.trained.decode(tokens)


@CHECKS.add
def deterministic(subject: Subject) -> None:
    """The same values give the same tokens, and the same tokens the same values."""
    expect_same(subject, subject.trained, "the second time")


@CHECKS.add
def batches(subject: Subject) -> None:
    """A value's tokens do not depend on the rest of its batch, whose size may be odd."""
    for size in (1, 3):
        rows: list[Any] = []
        for start in range(0, len(subject.values), size):
            tokens = subject.trained.encode(subject.values[start : start + size])
            subject.trained.decode_if_able(tokens)
            rows += per_sample(tokens)
        expect_close(subject, rows, f"a batch and batches of {size}", FLIPS_ALLOWED, 1e-4)


def expect_same(subject: Subject, handle: ModalityHandle, when: str) -> None:
    """Raise Failed unless a tokenizer encodes and decodes as the subject's did, bit by bit."""
    expect(equal(per_sample(handle.encode(subject.values)), subject.rows), f"the same values give other tokens {when}")
    expect(equal(subject.decoded, handle.decode(subject.tokens)), f"the same tokens give other values {when}")


def expect_close(subject: Subject, rows: list[Any], between: str, flips: float, tolerance: float) -> None:
    """Raise Failed unless tokens are the subject's, up to rounding: a share `flips` of ids, or numbers' `tolerance`."""
    expect(
        [row.shape for row in rows] == [row.shape for row in subject.rows], f"tokens differ in shape between {between}"
    )
    a, b = (np.concatenate([row.ravel() for row in items]) for items in (subject.rows, rows))
    if subject.handle.spec.continuous:
        expect(np.allclose(a, b, rtol=tolerance, atol=tolerance), f"tokens differ between {between}")
    else:
        differing = int((a != b).sum())
        expect(differing <= math.floor(a.size * flips), f"{differing} of {a.size} tokens differ between {between}")


# ---------------------------------------------------------------- checkpoints


@CHECKS.add
def save_and_load(subject: Subject) -> None:
    """A copied checkpoint gives the same fingerprint, tokens and values."""
    copy = subject.workdir / "copy"
    shutil.copytree(subject.trained.files.folder(), copy, dirs_exist_ok=True)
    loaded = subject.handle.at(copy)
    expect(loaded.fingerprint == subject.trained.fingerprint, "the fingerprint depends on the folder")
    expect_same(subject, loaded, "after the checkpoint is loaded again")


@CHECKS.add
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
        raise Failed(f"{error}; what decides tokens belongs into {files}, whose sha256 is their identity") from None
    checkpoints.load_checkpoint(folder)


# ---------------------------------------------------------------- files, crops, pictures


@CHECKS.add
def files(subject: Subject) -> None:
    """Written values are read back (arrays up to rounding) and written to the same bytes; damaged files are refused."""
    values, span = subject.values, None
    if all(isinstance(value, np.ndarray) for value in values):
        lowest, highest = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
        span = highest - lowest or abs(highest) or 1.0
    for value in values:
        data, extension = subject.handle.write(value)
        reread = subject.handle.read(data, extension)
        if span is not None:
            is_close = value.shape == reread.shape
            is_close = is_close and np.abs(reread.astype(np.float64) - value.astype(np.float64)).mean() <= CLOSE * span
            message = f"{describe(value)} is read back from .{extension} as {describe(reread)}, which is another value"
            expect(bool(is_close), message)
        rewritten = subject.handle.write(reread)
        expect(rewritten == (data, extension), f"a value read from .{extension} is written otherwise")
    for damaged in (b"\xff\xfe\x00garbage\xff", data[: len(data) // 2] + b"\xff"):
        try:
            value = subject.handle.read(damaged, extension)
        except InvalidValueError as error:
            expect("\n" not in str(error), f"a damaged .{extension} file is refused in several lines: {str(error)!r}")
            continue
        raise Failed(f"a damaged .{extension} file is read as {describe(value)}")


@CHECKS.add
def transform(subject: Subject) -> None:
    """The whole crop changes nothing, two flips cancel out, crops fit the spec, and the input is not modified."""
    handle = subject.handle
    mirror, part = Crop(flip=True), Crop(top=0.25, left=0.1, height=0.5, width=0.75, flip=True)
    for value in subject.values:
        for crop in (mirror, part):
            with unchanged_copy("transform", value) as argument:
                handle.transform(argument, crop)
        uncropped = handle.transform(value, Crop())
        expect(equal(uncropped, value, ROUNDING), "the crop of the whole picture changes the value")
        twice = handle.transform(handle.transform(value, mirror), mirror)
        expect(equal(twice, value, ROUNDING), "flipped twice, the value is another")


@CHECKS.add
def crop_geometry(subject: Subject) -> None:
    """A crop shows the same part of the picture as in every other modality."""
    check_crop_geometry(subject.handle, subject.values)


@CHECKS.add
def render(subject: Subject) -> None:
    """A value is rendered as a non-empty PIL image or text, and is not modified."""
    for value in subject.values:
        with unchanged_copy("render", value) as argument:
            rendering = subject.handle.render(argument)
        expect(bool(rendering) if isinstance(rendering, str) else min(rendering.size) > 0, "nothing is shown")


# ---------------------------------------------------------------- metrics


@CHECKS.add
def score(subject: Subject) -> None:
    """Values score best against themselves, with finite numbers, and others score worse by the main metric."""
    handle, values = subject.handle, subject.values
    with unchanged_copy("score", (values, values)) as (predicted, target):
        perfect = handle.score(predicted, target)
    rivals = {"other values": values[1:] + values[:1], "a constant": [handle.constant_baseline(values)] * len(values)}
    for name, number in perfect.items():
        expect(math.isfinite(number), f"{name} of values against themselves is {number}")
    main, discriminates = handle.spec.metrics[0], equal(values[1:], values[:-1])
    for rival, rival_values in rivals.items():
        with unchanged_copy("score", (rival_values, values)) as (predicted, target):
            rival_scores = handle.score(predicted, target)
        gap = rival_scores[main.name] - perfect[main.name]
        discriminates |= gap < 0 if main.higher_is_better else gap > 0
        for metric in handle.spec.metrics:
            sign = 1 if metric.higher_is_better else -1
            perfect_score, rival_score = perfect[metric.name], rival_scores[metric.name]
            message = f"{metric.name} is better for {rival} ({rival_score:g}) than for the values themselves"
            is_best = math.isnan(rival_score) or sign * perfect_score >= sign * rival_score - 1e-6
            expect(is_best, f"{message} ({perfect_score:g})")
    message = f"{main.name} tells nothing: {perfect[main.name]:g} for the values themselves, and no worse for"
    expect(discriminates, f"{message} {' or '.join(rivals)}, although the values differ")


@CHECKS.add
def constant_baseline(subject: Subject) -> None:
    """The constant baseline fits the spec and is the same each time."""
    answers = [subject.handle.constant_baseline(subject.values) for _ in range(2)]
    expect(equal(answers[0], answers[1]), "the constant baseline is another each time")


@CHECKS.add
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
        subject.handle.transform(value, Crop())
        with unchanged_copy("derive", sample) as argument:
            rederived = subject.handle.derive(argument)
        expect(equal(value, rederived), "derived again, the value is another")


@CHECKS.add
def vocabulary(subject: Subject) -> None:
    """Special tokens are distinct and not empty, texts are strings, and no value repeats a single id."""
    tokens = subject.handle.vocabulary_tokens()
    expect(len(set(tokens)) == len(tokens) and all(tokens), f"special tokens repeat or are empty: {tokens}")
    expect(tokens == subject.handle.vocabulary_tokens(), "the special tokens come in another order each time")
    subject.handle.vocabulary_texts(subject.values)
    if subject.handle.implements("single_ids"):
        single = subject.trained.single_ids()
        for row in subject.rows:
            single_tokens = [index for index in row.ravel().tolist() if index in single]
            expect(len(set(single_tokens)) == len(single_tokens), "a value's tokens have one of single_ids twice")


@CHECKS.add
def probes(subject: Subject) -> None:
    """Files of users are read as values that can be encoded, or refused in one helpful line."""
    handle = subject.handle
    read: dict[str, Any] = {}
    files = probed_files(handle, subject.example)
    for kind, probe in (*files.probes, ("", OTHER)):
        outcome = outcome_of(handle, probe)
        name = f"{kind} {probe.description}".strip()
        expect(not outcome.fault, f"{name}: {outcome.fault}")
        if outcome.read:
            read[name] = outcome.value
    for name, value in read.items():
        try:
            subject.trained.encode([value])
        except ZooError as error:
            raise Failed(f"{name}: it is read, but not encoded: {error}") from None


@CHECKS.add
def devices(subject: Subject) -> None:
    """An accelerator gives the same tokens and dtype as the CPU, and its decoded values fit the spec."""
    device = resolve_device(subject.device)
    if device == "cpu":
        raise Skipped("no accelerator is there or was asked for")
    moved = subject.handle.at(subject.trained.checkpoint)
    moved.device = device
    rows = per_sample(moved.encode(subject.values))
    dtypes = {row.dtype for row in (*subject.rows, *rows)}
    expect(len(dtypes) == 1, f"tokens of several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    expect_close(subject, rows, f"cpu and {device}", DEVICE_FLIPS_ALLOWED, 1e-2)
    moved.decode_if_able(subject.tokens)


@CHECKS.add
def threads(subject: Subject) -> None:
    """Concurrent threads get the same results as a single one."""
    values = subject.values[:THREADS]

    def round_trip(value: Any) -> tuple[Any, Any]:
        tokens = subject.trained.encode([value])
        return per_sample(tokens), subject.trained.decode_if_able(tokens)

    sequential = [round_trip(value) for value in values]
    with ThreadPoolExecutor(THREADS) as pool:
        concurrent = list(pool.map(round_trip, values * 2))
    for kind, index in (("tokens", 0), ("values", 1)):
        same = equal([result[index] for result in concurrent], [result[index] for result in sequential * 2])
        expect(same, f"{THREADS} threads at once get other {kind} than one alone")


@CHECKS.add
def long_inputs(subject: Subject) -> None:
    """A value far longer than `max_length` is cut or refused in one line."""
    try:
        subject.trained.encode([long_value(subject)])
    except InvalidValueError as error:
        expect("\n" not in str(error), f"a long value is refused in several lines: {str(error)[:200]!r}")


def long_value(subject: Subject) -> Any:
    """Return a text, a list in JSON, or an array of 100,000 letters or bytes."""
    spec = subject.handle.spec
    free = [axis for axis, size in enumerate(spec.value.shape) if isinstance(size, str)]
    if not spec.layout.variable or (spec.value.kind == "array" and not free):
        raise Skipped("all its values are of one length")
    first = subject.example
    if isinstance(first, np.ndarray):
        return np.concatenate([first] * (LONG // first.nbytes + 1), axis=free[0])
    if isinstance(first, str):
        return f"{first.strip()} " * (LONG // len(first) + 1)
    if not isinstance(first, list) or not first:
        raise Skipped("its values are no lists that could be long")
    return first * (LONG // len(json.dumps(first)) + 1)
