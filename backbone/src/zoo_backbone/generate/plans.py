"""Plans: which targets to generate from which inputs, and how; in Python, or in a TOML file.

    inputs = ["rgb", 'caption="a red ball"']   # as --input
    seed = 0
    [inpaint]                                  # as --inpaint
    depth = "box:0,0,1,0.5"
    [guidance]                                 # of targets without their own
    scale = 3.0
    [[targets]]                                # in the order in which they are generated
    name = "depth"
    steps = 8
    guidance = { weights = { caption = 3.0 } }

Paths in a file are relative to its folder.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.config import Checked, Origin, default_of, from_mapping, load_toml
from tokenizers_zoo.records.typed import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt
from zoo_backbone.generate.sampling import Guidance, Passes, Schedule, TemperatureSchedule
from zoo_backbone.generate.schemes import SCHEMES
from zoo_backbone.generate.sources import InputSource, inputs_of, sources_of, written_sources
from zoo_backbone.model.config import expect
from zoo_backbone.model.embedding_layout import EmbeddingLayout

LAYOUT, LEFT_TO_RIGHT = "layout", "autoregressive"
"""Schemes of a plan: the first scheme that fits the layout, and the only scheme of sequences."""
TOP_P = 0.95
MASK = "mask:"
Cropping = Literal["middle", "whole"]
"""How input pictures are cropped: to the largest part in the middle with the proportions of their modality, or not at
all (squeezed)."""
DEFAULT_SAMPLES, DEFAULT_SPLIT = 4, TEST
MOST = 1_000_000
"""Samples at once; their names are in memory."""
DRAW = 1 << 32
"""Draw d of sample n has the number n + d * DRAW."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPlan(Checked):
    """How one target is generated. The defaults suit every layout."""

    name: str
    """The modality."""
    scheme: str = LAYOUT
    """Decoding order: of grids and vectors a scheme (table below the keys in docs/settings.md), of sequences
    "autoregressive"; "layout": the first that fits."""
    steps: NonNegativeInt = 0
    """Decoding steps of a grid or vector, at most one per token; 0: the scheme's default.
    Sequences always take one step per token."""
    schedule: Schedule = "cosine"
    """How many tokens each step decides: few first ("cosine"), equally many ("linear"), few first and last
    ("s-curve")."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature: the divisor of the logits; 0 selects the most likely id."""
    temperature_schedule: TemperatureSchedule = "constant"
    """Schedule of the temperature of a grid or vector, down to `final_temperature`: constant, "linear", or "inverse"
    (fast at first, as in 4M's published settings)."""
    final_temperature: NonNegativeFloat = 0.0
    """The last temperature of a falling schedule."""
    top_k: NonNegativeInt = 0
    """Sample among this many most likely ids; 0: all."""
    top_p: Annotated[float, Interval("(0, 1]")] = TOP_P
    """Sample among the most likely ids that together have this probability."""
    filter_before_temperature: bool = False
    """Apply `top_k` and `top_p` before the temperature, and rank MaskGIT's cells by the filtered probabilities, as 4M's
    code does."""
    confidence_noise: NonNegativeFloat = 0.0
    """Scale of the Gumbel noise on MaskGIT's log confidences at the first step; falls linearly to 0."""
    max_length: NonNegativeInt = 0
    """Maximum number of content tokens of a sequence; 0: the layout's."""
    guidance: Guidance | None = None
    """How strongly the inputs steer this target; none: the plan's guidance."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        expect(self, "scheme", self.scheme in (LAYOUT, *SCHEMES), f"one of {[LAYOUT, *SCHEMES]}")
        falls = self.temperature_schedule != "constant" or not self.final_temperature
        expect(self, "final_temperature", falls, 'temperature_schedule "linear" or "inverse" with it')

    def resolved(self, spec: ModalitySpec) -> TargetPlan:
        """Return the plan with the defaults of the modality. Raises ConfigError if they do not fit."""
        sequence = spec.layout.causal
        schemes = (LEFT_TO_RIGHT,) if sequence else tuple(SCHEMES)
        scheme = schemes[0] if self.scheme == LAYOUT else self.scheme
        for key, value, allowed in (
            ("scheme", scheme, schemes),
            ("temperature_schedule", self.temperature_schedule, ("constant",) if sequence else ()),
        ):
            if allowed and value not in allowed:
                kind = f"{key} {value!r} is not for a {spec.layout.kind}"
                raise ConfigError(f"generate {spec.name}: {kind}; expected {' or '.join(allowed)}")
        bound = spec.layout.length
        steps = min(self.steps or SCHEMES[scheme].default_steps or bound, bound)
        length = min(self.max_length or bound, bound)
        return replace(self, scheme=scheme, steps=steps, max_length=length, guidance=self.guidance or Guidance())


def resolved_plan(
    layout: EmbeddingLayout, plan: Sequence[TargetPlan], inputs: Collection[str], partial: Collection[str] = ()
) -> list[TargetPlan]:
    """Return the targets with the defaults of the model; `partial` are modalities with some of their tokens.

    Raises ConfigError or UnknownNameError for a plan without targets, a modality that is there twice, an input or
    target that the model does not support, or guidance by a modality that is not known yet. In guidance, a name means
    an earlier target or an input, or else the input form of this modality that is an input.
    """
    available = [*inputs, *partial]
    layout.check_targets((target.name for target in plan), "generate")
    layout.check_inputs(available, "generate")
    if not plan:
        raise ConfigError("generate: expected at least one target")
    names = [*inputs, *(target.name for target in plan)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        advice = "to generate a part, add --inpaint"
        raise ConfigError(f"generate: {', '.join(repeated)}: is input and target, or twice a target; {advice}")
    for name in partial:
        if (spec := layout.spec(name)).continuous:
            raise ConfigError(f"generate {name}: a {spec.layout.kind} modality cannot be inpainted; leave it out")
        if name in inputs:
            raise ConfigError(f"generate {name}: is an input whole and in part; expected one of the two")
    resolved = []
    for target in plan:
        guidance = (target.guidance or Guidance()).renamed(functools.partial(layout.readable_as, available=available))
        Passes.of(guidance, target.name, available)  # raises for names that are not known yet
        resolved.append(replace(target.resolved(layout.spec(target.name)), guidance=guidance))
        available += [] if target.name in available or target.name in layout.targets_only else [target.name]
    return resolved


# --- plans in files


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationPlan(Checked):
    """Everything that a generation depends on, except the model and the stored samples."""

    targets: tuple[TargetPlan, ...]
    """Generated in this order."""
    inputs: tuple[str, ...] = ()
    """NAME (stored samples), NAME=FILE, NAME="TEXT" or NAME={JSON}."""
    inpaint: Mapping[str, str] = field(default_factory=dict)
    """The region of an input to regenerate, by modality; the rest stays. Regions: docs/generation.md."""
    guidance: Guidance = field(default_factory=Guidance)
    """For targets without their own guidance."""
    crop: Cropping = "middle"
    """The part of input pictures from files that is used: "middle" cuts the longer side, "whole" squeezes it."""
    samples: str = ""
    """How many samples ("4") or which ("0-7,12"); empty: four, or one if all inputs are values."""
    keys: tuple[str, ...] = ()
    """Keys of stored samples, instead of `samples`."""
    split: str = DEFAULT_SPLIT
    """Split of the stored samples."""
    draws: PositiveInt = 1
    """Draws per sample."""
    seed: NonNegativeInt = 0
    """Seed of the draws."""
    rank: str = ""
    """A modality in which draws are compared with their inputs, to sort them; empty: no sorting."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        is_positive = not is_count(self.samples) or int(self.samples) > 0
        expect(self, "samples", is_positive, "a number from 1 on or numbers such as 0-7")
        expect(self, "samples", not (self.keys and self.samples), "either samples or keys")

    @classmethod
    def of(
        cls,
        targets: str | Sequence[str | TargetPlan],
        *,
        guidance: float | Mapping[str, float] = 1.0,
        steps: int = 0,
        temperature: float = 1.0,
        top_p: float = TOP_P,
        **settings: Any,
    ) -> Self:
        """Return the plan of a call from Python; a target that is only a name takes the settings of the call."""
        plans = tuple(
            target
            if isinstance(target, TargetPlan)
            else TargetPlan(name=target, steps=steps, temperature=temperature, top_p=top_p)
            for target in ([targets] if isinstance(targets, str) else targets)
        )
        shared = Guidance(weights=guidance) if isinstance(guidance, Mapping) else Guidance(scale=guidance)
        return cls(targets=plans, guidance=shared, **settings)

    @property
    def reads_store(self) -> bool:
        """Whether stored samples are an input."""
        return "" in written_sources(self.inputs).values()

    def target_plans(self) -> list[TargetPlan]:
        """Return the targets, each with its guidance."""
        return [replace(target, guidance=target.guidance or self.guidance) for target in self.targets]

    def with_absolute_paths(self, folder: Path, sources: Mapping[str, InputSource]) -> GenerationPlan:
        """Return the plan with the `sources` of its inputs, and with absolute paths of masks in `folder`."""
        regions = {}
        for name, region in self.inpaint.items():
            before, mask, file = region.partition(MASK)
            is_file = mask and not before.replace("not:", "")
            regions[name] = f"{before}{mask}{folder / file}" if is_file else region
        return replace(self, inputs=tuple(inputs_of(sources)), inpaint=regions)

    def numbers(self) -> list[int]:
        """Return the numbers of the samples. Raises ConfigError."""
        is_one = not self.samples or is_count(self.samples)
        count = int(self.samples or DEFAULT_SAMPLES) if is_one else 0
        runs = [(0, count - 1)] if is_one else ranges(self.samples, f"samples {self.samples:.40}")
        if sum(last - first + 1 for first, last in runs) > MOST or max(last for _, last in runs) >= DRAW:
            advice = f"at most {MOST:,} at once, such as {MOST}-{2 * MOST - 1}, with numbers below {DRAW}"
            raise ConfigError(f"samples {self.samples}: expected {advice}")
        numbers = [number for first, last in runs for number in range(first, last + 1)]
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"samples {self.samples}: a number is there twice")
        return numbers


def is_count(text: str) -> bool:
    """Return True for the digits of a whole number, not too many for Python to read."""
    return re.fullmatch("[0-9]{1,20}", text) is not None


def ranges(text: str, prefix: str) -> list[tuple[int, int]]:
    """Return `0-3,8` as pairs of first and last. Raises ConfigError."""
    pairs = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not is_count(first) or (dash and not is_count(last)) or int(last or first) < int(first):
            raise ConfigError(f"{prefix}: expected numbers and ranges such as 0-3,8; got {part!r:.40}")
        pairs.append((int(first), int(last or first)))
    return pairs


def read_plan(path: Path, zoo: Zoo) -> dict[str, Any]:
    """Return the checked tables of a plan file, with absolute paths. Raises ConfigError."""
    table, folder = load_toml(path), path.parent.resolve()
    plan = from_mapping(GenerationPlan, table, Origin(path=path))
    plan = plan.with_absolute_paths(folder, sources_of(plan.inputs, zoo, folder))
    return table | {"inputs": list(plan.inputs), "inpaint": plan.inpaint}


def written_plan(plan: GenerationPlan, notes: Mapping[str, str]) -> str:
    """Return the TOML of a plan without its defaults, with `notes` as comments."""
    lines = [f"# {key}: {note}\n" for key, note in notes.items()]
    return "".join(lines) + tomli_w.dumps(_changes(plan))


def _changes(item: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    changes = {}
    for declared in dataclasses.fields(item):
        value = getattr(item, declared.name)
        if value != default_of(declared) and value != ():
            if isinstance(value, Guidance):
                # Guidance that says "none" replaces the plan's guidance, so its defaults are written.
                value = _changes(value) or {key: part for key, part in asdict(value).items() if part not in ((), {})}
            changes[declared.name] = list(map(_changes, value)) if declared.name == "targets" else value
    return changes
