"""zoo doctor: gates over a modality's values, tokenizer and tokens, in pipeline order, each with figures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers_zoo.build.tokenizers import train_tokenizer, usable_modalities
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TEST, spread
from tokenizers_zoo.contract.spec import Crop, Metric
from tokenizers_zoo.contract.validation import bounds, values_equal
from tokenizers_zoo.errors import ZooError, count_of
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.testing.geometry import CROPS, MIN_SIDE, Shift, check_crop_geometry, is_picture, shift_between
from tokenizers_zoo.testing.results import CheckResult, Checks, Failed, Skipped, expect
from tokenizers_zoo.testing.subject import Subject
from tokenizers_zoo.train.usage import COLLAPSED, CodebookUsage, reachable_usage

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


@dataclass(kw_only=True)
class Patient(Subject):
    """A modality with up to `limit` held-out values of a data folder."""

    store: ValueStore
    split: str
    limit: int
    rejections: dict[str, str] = field(default_factory=dict)
    """Reasons of refused values by key."""
    read_error: str = ""
    """Why no value can be read."""

    @cached_property
    def values(self) -> list[Any]:
        """The values that can be read, which may be none."""
        try:
            rows = self.store.rows(self.split, [self.name])
        except ZooError as error:
            self.read_error = str(error)
            return []
        rows_to_read = [rows[index] for index in spread(len(rows), self.limit)]
        if not rows_to_read:
            self.read_error = f"{self.store.folder(self.split, self.name)}: holds no values"
        values = []
        with progress_bar(f"read {self.split}/{self.name}", len(rows_to_read)) as advance:
            for row in rows_to_read:
                try:
                    values.append(self.store.read(self.handle, self.split, *row))
                except ZooError as error:
                    self.rejections[rows.key(row)] = str(error)
                advance(1)
        return values

    @property
    def planned_steps(self) -> int | None:
        """Training steps of the settings; None if a tokenizer is made in no steps."""
        steps: int | None = getattr(self.handle.known_settings().get("tokenizer"), "steps", None)
        return steps

    def train(self, folder: Path) -> Path:
        """Train a tokenizer on the data folder."""
        overrides = {} if self.planned_steps is None else {"steps": self.steps or STEPS}
        return train_tokenizer(
            self.zoo,
            self.name,
            self.store.root,
            out=folder,
            overrides=overrides,
            limit=MAX_TRAINING_SAMPLES,
            device=self.handle.device,
        )

    @cached_property
    def tokenizer_error(self) -> str:
        """Why there is no tokenizer, or why it cannot encode and decode; "" if it can."""
        try:
            with contextlib.suppress(Skipped):
                _ = self.decoded
        except ZooError as error:
            return str(error)
        return ""

    def usage(self) -> CodebookUsage:
        """Return the counts of the ids of all values. Raises Skipped without ids."""
        if self.tokenizer_error:
            raise Skipped("no tokens")
        if self.handle.spec.continuous:
            raise Skipped("continuous, no ids")
        usage = CodebookUsage(self.handle.spec.vocab_size, self.handle.spec.num_codebooks)
        for row in self.rows:
            usage.update(row)
        if usage.counts.sum() <= usage.num_codebooks:
            raise Skipped("too few tokens to tell")
        return usage


GATES = Checks(Patient, advice="`zoo check NAME` says more about the plugin")


def examine(
    zoo: Zoo, name: str, data: Path, *, split: str = TEST, samples: int = SAMPLES, steps: int | None = None
) -> Iterator[CheckResult]:
    """Run every gate on a modality and yield the results.

    Reads up to `samples` values of `split`. With `steps` a temporary tokenizer is trained; otherwise the modality's own
    is used, or a temporary one of 100 steps if it has none. Raises DataError if the data lack the modality; every other
    failure is a result.
    """
    store = ValueStore(data)
    store.folder(split, name)
    return GATES.examine(zoo=zoo, name=name, store=store, split=split, limit=samples, steps=steps)


def examinable(zoo: Zoo, data: Path, split: str) -> list[str]:
    """Return a split's enabled modalities, sorted; a plugin may fail to load. Raises DataError if none is usable."""
    present = ValueStore(data).modalities(split)
    broken = [name for name in zoo.problems() if name in zoo and name in present]
    return sorted({*usable_modalities(zoo, data, split), *broken})


@GATES.add
def values(patient: Patient) -> str:
    """Held-out values fit the spec, differ, and span more than a hundredth of the declared range (a thousandth if 0 is
    inside)."""
    values, spec, count = patient.values, patient.handle.spec.value, len(patient.values)
    expect(not patient.read_error, patient.read_error, "make, derive or copy these data again")
    for key, reason in patient.rejections.items():
        raise Failed(
            f"{len(patient.rejections)} of {count + len(patient.rejections)} are refused; {key}: {reason}",
            "convert them to the declared unit, range and type, or declare what they are; then make the data again",
        )
    differ = count == 1 or not all(values_equal(value, values[0]) for value in values[1:])
    expect(differ, f"all {count} are the same", "look at what made them: there is nothing to learn")
    if spec.kind != "array":
        return f"{count} sound"
    minimum, maximum = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    low, high = bounds(spec)
    unit = f" {spec.unit}" if spec.unit else ""
    figure = f"{count} sound, {minimum:.4g} to {maximum:.4g}{unit}"
    if low is None or high is None:
        return figure
    figure += f" (declared {low:g} to {high:g})"
    share = LEAST_SIGNED_SPAN if low < 0 < high else LEAST_SPAN
    expect(
        values[0].dtype.kind != "f" or maximum - minimum >= share * (high - low),
        f"{figure}: less than {100 * share:g}% of the range",
        f"are they really{unit or ' in the declared unit'}? convert them, or declare the range that they have",
    )
    return figure


@GATES.add
def trained(patient: Patient) -> str:
    """A tokenizer exists or can be trained, and encodes the values."""
    if patient.tokenizer_error:
        raise ZooError(patient.tokenizer_error)
    if patient.trained is patient.handle:
        return f"the one in {patient.handle.checkpoint}"
    return "trained" if patient.planned_steps is None else f"trained for {count_of(patient.steps or STEPS, 'step')}"


def main_scores(patient: Patient) -> tuple[Metric, float, float, float]:
    """Return the main metric and the scores of the reconstruction, the constant baseline, and the values themselves."""
    if patient.tokenizer_error:
        raise Skipped("no tokens")
    handle, metric = patient.handle, patient.handle.spec.metrics[0]
    constant = [handle.constant_baseline(patient.values)] * len(patient.values)
    scores = [handle.score(side, patient.values)[metric.name] for side in (patient.decoded, constant, patient.values)]
    return metric, scores[0], scores[1], scores[2]


def _meets(metric: Metric, score: float, least: float) -> bool:
    return score >= least if metric.higher_is_better else score <= least


def _number(metric: Metric, value: float) -> str:
    return f"{value:.3g}{f' {metric.unit}' if metric.unit else ''}"


@GATES.add
def floor(patient: Patient) -> str:
    """decode(encode) scores better than the constant baseline."""
    metric, score, constant, perfect = main_scores(patient)
    figure = f"{metric.name} {_number(metric, score)}, the best constant {_number(metric, constant)}"
    if math.isnan(constant) or constant == perfect:
        raise Skipped(f"{figure}, which {'is perfect already' if constant == perfect else 'is no score'}")
    advice = "train longer (--steps), lower the learning rate, or use more codes: nothing is learnt yet"
    expect(score != constant and _meets(metric, score, constant), figure, advice)
    return figure


@GATES.add
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
    fully = patient.trained is patient.handle or (patient.steps or STEPS) >= (patient.planned_steps or 0)
    if declared and fully:
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
    expect(share >= HALF_WAY, f"{figure}, expected {HALF_WAY:.0%}", advice)
    return figure


def _least(usage: CodebookUsage, figure: Callable[[CodebookUsage], float], form: str) -> tuple[float, str]:
    """Return the least figure of all codebooks, and a text that names the codebook if there are several."""
    figures = [figure(book) for book in usage.per_codebook()]
    least = min(figures)
    text = f"; codebook {figures.index(least) + 1} of {len(figures)}: {form.format(least)}"
    return least, text if len(figures) > 1 else ""


@GATES.add
def codebook(patient: Patient) -> str:
    """Most reachable codes are used, in the worst codebook too."""
    if patient.handle.spec.layout.causal:
        raise Skipped("ids of a sequence, not a codebook")
    usage = patient.usage()
    reachable = reachable_usage(int(usage.counts.sum()) // usage.num_codebooks, usage.codebook_size)
    figure = f"{usage.usage:.1%} of {usage.codebook_size} codes used, {reachable:.1%} where tokens are spread evenly"
    least, codebook_text = _least(usage, lambda book: book.usage, "{:.1%}")
    advice = "fewer codes, the quantizer fsq, a lower learning rate, or longer training"
    expect(least >= COLLAPSED * reachable, figure + codebook_text, advice)
    return figure


@GATES.add
def varied(patient: Patient) -> str:
    """Tokens differ between samples and carry a fair share of the maximal bits, in the worst codebook too."""
    usage = patient.usage()
    max_bits = math.log2(min(usage.codebook_size, usage.counts.sum() / usage.num_codebooks))
    distinct = len({row.tobytes() for row in patient.rows})
    count, bits = len(patient.rows), usage.entropy_bits
    figure = f"{distinct} of {count} samples differ; {bits:.2f} bits per token of {max_bits:.2f}"
    least, codebook_text = _least(usage, lambda book: book.entropy_bits, "{:.2f} bits")
    advice = "the values hardly differ for the tokenizer: check its input, train longer, or use other codes"
    expect(least >= LEAST_ENTROPY * max_bits and (distinct > 1 or count == 1), figure + codebook_text, advice)
    return figure


@GATES.add
def crops(patient: Patient) -> str:
    """Crops are exact, and the edges of a sample's pictures align, whole and cropped."""
    if not patient.values:
        raise Skipped("no values")
    check_crop_geometry(patient.handle, patient.values[:8])
    name, aligned = patient.handle.name, []
    for modality in patient.store.modalities(patient.split):
        shift = edge_shift(patient, modality) if modality in patient.zoo and modality != name else None
        if shift is None:
            continue
        advice = f"the pictures of a sample have to show the same view: compare what made {name} and {modality}"
        expect(shift.aligned, f"edges of {modality} lie {shift}", advice)
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
