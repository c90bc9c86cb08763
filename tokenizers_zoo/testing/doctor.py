"""zoo doctor: gates over a modality's values, tokenizer and tokens, in pipeline order, each with figures."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ZooError, count_of
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.pipeline.tokenizers import train_tokenizer, usable_modalities
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.quantizers.usage import COLLAPSED, CodebookUsage, reachable_usage
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.samples import TEST, spread
from tokenizers_zoo.spec import Crop, Metric
from tokenizers_zoo.testing.geometry import CROPS, MIN_SIDE, Shift, check_crop_geometry, is_picture, shift_between
from tokenizers_zoo.testing.subject import Skipped, per_sample
from tokenizers_zoo.validation import bounds, values_equal

SAMPLES = 64
"""Default number of held-out samples."""
STEPS = 100
"""Training steps of a temporary tokenizer."""
MAX_TRAINING_SAMPLES = 2000
"""Maximal training samples of a temporary tokenizer, spread over the split."""
LEAST_SPAN = 0.01
"""Least share of the declared range that values span; less hints at another unit."""
LEAST_SIGNED_SPAN = 0.001
"""The same for a range with 0 inside, where most numbers are close to 0."""
HALF_WAY = 0.5
"""Least share of the way from the constant baseline to perfect, or to the main metric's bound after a short
training."""
LEAST_ENTROPY = 0.2
"""Least share of the maximal bits per token."""
SHIFT_SAMPLES = 16
"""Samples of the shift test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one gate: its figures in words, and advice if it failed."""

    gate: str
    passed: bool
    figure: str
    advice: str = ""
    skipped: bool = False


class Failed(Exception):
    """A gate failed; the arguments are its figures and advice."""


@dataclass(kw_only=True)
class Patient:
    """One modality under examination: up to `samples` held-out values, their tokens, and the reconstructions."""

    zoo: Zoo
    handle: ModalityHandle
    store: ValueStore
    split: str
    values: list[Any] = field(default_factory=list)
    rejections: dict[str, str] = field(default_factory=dict)
    read_error: str = ""
    """Why no value can be read."""
    how_trained: str = ""
    trained_fully: bool = True
    """False if the tokenizer was trained for fewer steps than its settings say."""
    tokenizer_error: str = ""
    """Why there is no tokenizer, or why it cannot encode."""
    rows: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """The tokens of each value."""
    decoded: list[Any] | None = None

    def read(self, limit: int) -> None:
        """Read up to `limit` held-out values; note the reasons of refused ones.

        Raises DataError if the data lack the modality.
        """
        try:
            rows = self.store.rows(self.split, [self.handle.name])
        except ZooError as error:
            if self.handle.name not in self.store.modalities(self.split):
                raise
            self.read_error = str(error)
            return
        rows_to_read = [rows[index] for index in spread(len(rows), limit)]
        if not rows_to_read:
            self.read_error = f"{self.store.folder(self.split, self.handle.name)}: holds no values"
        with progress_bar(f"read {self.split}/{self.handle.name}", len(rows_to_read)) as advance:
            for row in rows_to_read:
                try:
                    self.values.append(self.store.read(self.handle, self.split, *row))
                except ZooError as error:
                    self.rejections[rows.key(row)] = str(error)
                advance(1)

    def encode(self, data: Path, steps: int | None, workdir: Path) -> None:
        """Encode and decode the values with the modality's tokenizer, or a temporary one of `steps` steps."""
        if not self.values:
            self.tokenizer_error = "no value can be read"
            return
        try:
            handle = self.handle
            if steps is None and handle.has_tokenizer:
                self.how_trained = f"the one in {handle.checkpoint}"
            else:
                handle = self._train_temporary(data, steps or STEPS, workdir / "tokenizer")
            tokens = handle.encode(self.values)
            self.rows, self.decoded = per_sample(tokens), handle.decode_if_able(tokens)
        except ZooError as error:
            self.tokenizer_error = str(error)

    def _train_temporary(self, data: Path, steps: int, out: Path) -> ModalityHandle:
        planned_steps = getattr(self.handle.known_settings().get("tokenizer"), "steps", None)
        overrides = {} if planned_steps is None else {"steps": steps}
        device = self.handle.device
        folder = train_tokenizer(
            self.zoo, self.handle.name, data, out=out, overrides=overrides, limit=MAX_TRAINING_SAMPLES, device=device
        )  # fmt: skip
        handle = self.handle.at(folder)
        handle.device = self.handle.device
        self.trained_fully = planned_steps is None or steps >= planned_steps
        self.how_trained = "trained" if planned_steps is None else f"trained for {count_of(steps, 'step')}"
        return handle

    def usage(self) -> CodebookUsage:
        """Return the counts of the ids of all values. Raises Skipped without ids."""
        if self.tokenizer_error or self.handle.spec.continuous:
            raise Skipped("no tokens" if self.tokenizer_error else "continuous, no ids")
        usage = CodebookUsage(self.handle.spec.vocab_size, self.handle.spec.num_codebooks)
        for row in self.rows:
            usage.update(row)
        if usage.counts.sum() <= usage.num_codebooks:
            raise Skipped("too few tokens to tell")
        return usage


def examine(
    zoo: Zoo, name: str, data: Path, *, split: str = TEST, samples: int = SAMPLES, steps: int | None = None
) -> Iterator[Finding]:
    """Run every gate on a modality and yield the findings.

    Reads up to `samples` values of `split`. With `steps` a temporary tokenizer is trained; otherwise the modality's own
    is used, or a temporary one of 100 steps if it has none. Raises ZooError if the plugin does not load or the data
    lack the modality; every other failure is a finding.
    """
    patient = Patient(zoo=zoo, handle=zoo[name], store=ValueStore(data), split=split)
    patient.read(samples)
    advice_on_error = f"`zoo check {name}` says more about the plugin"
    with tempfile.TemporaryDirectory(prefix="zoo-doctor-") as workdir:
        patient.encode(data, steps, Path(workdir))
        for gate_name, function in GATES.items():
            try:
                yield Finding(gate=gate_name, passed=True, figure=function(patient))
            except Skipped as reason:
                yield Finding(gate=gate_name, passed=True, figure=str(reason), skipped=True)
            except Failed as failure:
                figure, advice = failure.args
                yield Finding(gate=gate_name, passed=False, figure=figure, advice=advice)
            except ZooError as error:
                yield Finding(gate=gate_name, passed=False, figure=str(error), advice=advice_on_error)


def examinable(zoo: Zoo, data: Path, split: str) -> tuple[list[str], list[str]]:
    """Return two sorted lists of a split's enabled modalities: plugins that load, and plugins that fail to load.

    Raises DataError if there are none to examine.
    """
    names, present = usable_modalities(zoo, data, split), ValueStore(data).modalities(split)
    return names, sorted(name for name in zoo.problems() if name in zoo and name in present)


GATES: dict[str, Callable[[Patient], str]] = {}
"""Each returns its figures, or raises Failed, Skipped, or the ZooError of a plugin."""


def gate(function: Callable[[Patient], str]) -> Callable[[Patient], str]:
    """Add a function to GATES under its name."""
    GATES[function.__name__] = function
    return function


@gate
def values(patient: Patient) -> str:
    """Held-out values fit the spec, differ, and span more than a hundredth of the declared range (a thousandth if 0 is
    inside)."""
    values, spec = patient.values, patient.handle.spec.value
    if patient.read_error:
        raise Failed(patient.read_error, "make, derive or copy these data again")
    if patient.rejections:
        key, reason = next(iter(patient.rejections.items()))
        raise Failed(
            f"{len(patient.rejections)} of {len(values) + len(patient.rejections)} are refused; {key}: {reason}",
            "convert them to the declared unit, range and type, or declare what they are; then make the data again",
        )
    if len(values) > 1 and all(values_equal(value, values[0]) for value in values[1:]):
        raise Failed(f"all {len(values)} are the same", "look at what made them: there is nothing to learn")
    if spec.kind != "array":
        return f"{len(values)} sound"
    minimum, maximum = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    low, high = bounds(spec)
    unit = f" {spec.unit}" if spec.unit else ""
    figure = f"{len(values)} sound, {minimum:.4g} to {maximum:.4g}{unit}"
    if low is None or high is None:
        return figure
    figure += f" (declared {low:g} to {high:g})"
    share = LEAST_SIGNED_SPAN if low < 0 < high else LEAST_SPAN
    if values[0].dtype.kind == "f" and maximum - minimum < share * (high - low):
        raise Failed(
            f"{figure}: less than {100 * share:g}% of the range",
            f"are they really{unit or ' in the declared unit'}? convert them, or declare the range that they have",
        )
    return figure


@gate
def trained(patient: Patient) -> str:
    """A tokenizer exists or can be trained, and encodes the values."""
    if patient.tokenizer_error:
        raise ZooError(patient.tokenizer_error)
    return patient.how_trained


def main_scores(patient: Patient) -> tuple[Metric, float, float, float]:
    """Return the main metric and the scores of the reconstruction, the constant baseline, and the values themselves."""
    if patient.tokenizer_error:
        raise Skipped("no tokens")
    if patient.decoded is None:
        raise Skipped("an input only, not decoded")
    handle, metric = patient.handle, patient.handle.spec.metrics[0]
    constant = [handle.constant_baseline(patient.values)] * len(patient.values)
    scores = [handle.score(side, patient.values)[metric.name] for side in (patient.decoded, constant, patient.values)]
    return metric, scores[0], scores[1], scores[2]


def _meets(metric: Metric, score: float, least: float) -> bool:
    return score >= least if metric.higher_is_better else score <= least


def _number(metric: Metric, value: float) -> str:
    return f"{value:.3g}{f' {metric.unit}' if metric.unit else ''}"


@gate
def floor(patient: Patient) -> str:
    """decode(encode) scores better than the constant baseline."""
    metric, score, constant, perfect = main_scores(patient)
    figure = f"{metric.name} {_number(metric, score)}, the best constant {_number(metric, constant)}"
    if math.isnan(constant) or constant == perfect:
        raise Skipped(f"{figure}, which {'is perfect already' if constant == perfect else 'is no score'}")
    if score == constant or not _meets(metric, score, constant):
        advice = "train longer (--steps), lower the learning rate, or use more codes: nothing is learnt yet"
        raise Failed(figure, advice)
    return figure


@gate
def bound(patient: Patient) -> str:
    """decode(encode) meets every declared bound; without a bound, it is half way from the constant baseline to perfect.

    After a short training it has to be half way to the main metric's bound. A ratio in dB has no finite optimum, so it
    needs a bound.
    """
    metric, score, constant, perfect = main_scores(patient)
    advice = "train longer, use more codes (levels, codebook_size) or more tokens (a smaller patch_size)"
    if patient.handle.spec.layout.causal:
        advice = "use a longer max_length, or more coordinate_bins: what does not fit is cut or rounded"
    declared = [(m, m.bound) for m in patient.handle.spec.metrics if m.bound is not None]
    if declared and patient.trained_fully:
        assert patient.decoded is not None
        scores = patient.handle.score(patient.decoded, patient.values)
        figures = {m.name: f"{m.name} {_number(m, scores[m.name])}, bound {_number(m, least)}" for m, least in declared}
        if missed_bounds := [figures[m.name] for m, least in declared if not _meets(m, scores[m.name], least)]:
            raise Failed("; ".join(missed_bounds), advice)
        return "; ".join(figures.values())
    if metric.bound is None and metric.unit == "dB" and metric.higher_is_better:
        raise Skipped(f"half way to a perfect {metric.name} in dB says nothing: declare a bound (Metric.bound)")
    goal, name = (perfect, "perfect") if metric.bound is None else (metric.bound, f"the bound {metric.bound:g}")
    if math.isnan(constant) or _meets(metric, constant, goal):
        raise Skipped(f"there is no way from the best constant, {_number(metric, constant)}, to {name}")
    share = (score - constant) / (goal - constant)
    figure = f"{share:.0%} of the way from the best constant to {name}"
    if not share >= HALF_WAY:
        raise Failed(f"{figure}, expected {HALF_WAY:.0%}", advice)
    return figure


def _worst(usage: CodebookUsage, key: Callable[[CodebookUsage], float]) -> tuple[CodebookUsage, str]:
    """Return the codebook with the least `key`, and a text that introduces its figure; empty for a single codebook."""
    usages = usage.per_codebook()
    number = min(range(len(usages)), key=lambda index: key(usages[index]))
    return usages[number], f"; codebook {number + 1} of {len(usages)}: " if len(usages) > 1 else ""


@gate
def codebook(patient: Patient) -> str:
    """Most reachable codes are used, in the worst codebook too."""
    if patient.handle.spec.layout.causal:
        raise Skipped("ids of a sequence, not a codebook")
    usage = patient.usage()
    reachable = reachable_usage(int(usage.counts.sum()) // usage.num_codebooks, usage.codebook_size)
    figure = f"{usage.usage:.1%} of {usage.codebook_size} codes used, {reachable:.1%} where tokens are spread evenly"
    worst, worst_label = _worst(usage, lambda book: book.usage)
    if worst.usage < COLLAPSED * reachable:
        advice = "fewer codes, the quantizer fsq, a lower learning rate, or longer training"
        raise Failed(figure + (f"{worst_label}{worst.usage:.1%}" if worst_label else ""), advice)
    return figure


@gate
def varied(patient: Patient) -> str:
    """Tokens differ between samples and carry a fair share of the maximal bits, in the worst codebook too."""
    usage = patient.usage()
    max_bits = math.log2(min(usage.codebook_size, usage.counts.sum() / usage.num_codebooks))
    distinct = len({row.tobytes() for row in patient.rows})
    count, bits = len(patient.rows), usage.entropy_bits
    figure = f"{distinct} of {count} samples differ; {bits:.2f} bits per token of {max_bits:.2f}"
    worst, worst_label = _worst(usage, lambda book: book.entropy_bits)
    if worst.entropy_bits < LEAST_ENTROPY * max_bits or (distinct == 1 and count > 1):
        advice = "the values hardly differ for the tokenizer: check its input, train longer, or use other codes"
        raise Failed(figure + (f"{worst_label}{worst.entropy_bits:.2f} bits" if worst_label else ""), advice)
    return figure


@gate
def crops(patient: Patient) -> str:
    """Crops are exact, and the edges of a sample's pictures align, whole and cropped."""
    if not patient.values:
        raise Skipped("no values")
    try:
        check_crop_geometry(patient.handle, patient.values[:8])
    except (AssertionError, ZooError) as error:
        advice = "let the hook transform cut crop.top, left, height, width (fractions), then flip"
        raise Failed(str(error), advice) from None
    name, aligned = patient.handle.name, []
    for modality in patient.store.modalities(patient.split):
        shift = edge_shift(patient, modality) if modality in patient.zoo and modality != name else None
        if shift is None:
            continue
        if not shift.aligned:
            advice = f"the pictures of a sample have to show the same view: compare what made {name} and {modality}"
            raise Failed(f"edges of {modality} lie {shift}", advice)
        aligned.append(modality)
    edges = f"edges lie on those of {', '.join(aligned)}" if aligned else "no other modality here has its edges"
    return f"{len(CROPS)} crops as computed; {edges}"


def edge_shift(patient: Patient, modality: str) -> Shift | None:
    """Return the shift of whole values, or of cropped values if only these differ.

    None if the other modality has no pictures of the same size, or there are few common edges.
    """
    size = patient.values[0].shape[-2:]
    shifts = []
    try:
        handles = patient.handle, patient.zoo[modality]
        if not is_picture(handles[1]) or handles[1].spec.value.shape[-2:] != size or min(size) < MIN_SIDE:
            return None
        rows = list(islice(patient.store.rows(patient.split, [handle.name for handle in handles]), SHIFT_SAMPLES))
    except ZooError:
        return None  # reported when that modality is examined
    for crop in (Crop(), CROPS[2]):
        pairs = []
        for row in rows:
            with contextlib.suppress(ZooError):  # the gate of values reports refused values
                pairs.append([patient.store.read(handle, patient.split, *row, crop) for handle in handles])
        if pairs and (shift := shift_between(*map(list, zip(*pairs, strict=True)))) is not None:
            shifts.append(shift)
    return next((shift for shift in shifts if not shift.aligned), shifts[0] if shifts else None)
