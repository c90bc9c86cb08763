"""ModalitySpec: a modality's values, token layout and metrics. Crop: the crop that all modalities of a sample share."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_zoo.contract.layouts import TokenLayout
from tokenizers_zoo.errors import PluginError

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
"""Types of an array's numbers, as numpy and torch name them."""
ITEMS: dict[str, Any] = {"table": dict, "list": list, "text": str, "number": int | float}
"""Types of an object's items."""


@dataclass(frozen=True, kw_only=True)
class ValueSpec:
    """The type, shape and range of a modality's values.

    `kind` is "array" (a numpy array), "text" (str) or "object" (lists and dicts of JSON types). For arrays, `shape`
    holds fixed sizes and, as strings, the names of free axes ("height"), and `dtype` is one of DTYPES; `low` and `high`
    are inclusive bounds. `classes` names the class ids 0, 1, ... of an array, or lists the valid texts.
    """

    kind: Literal["array", "text", "object"] = "array"
    shape: tuple[int | str, ...] = ()
    dtype: str = "float32"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    classes: tuple[str, ...] = ()
    description: str = ""
    items: Literal["", "table", "list", "text", "number"] = ""
    """The items of an object that is a list; empty: the object is a table (a dict)."""
    fields: tuple[tuple[str, str], ...] = ()
    """Fields of a table, each a name and its meaning; shown by `zoo info`."""
    unscored: tuple[str, ...] = ()
    """Classes of an array that are not scored, such as "void": pixels of this class are left out, and neither the
    constant baseline nor a transfer head predicts it. Tokens may hold them."""

    @property
    def unscored_ids(self) -> tuple[int, ...]:
        """The ids of `unscored`, in the order of `classes`."""
        return ids_of(self.unscored, self.classes)

    def __str__(self) -> str:
        if self.kind != "array":
            return self.description or self.kind
        low, high = (f"{bound:g}" if bound is not None else "any" for bound in (self.low, self.high))
        bounds = "" if self.low is None and self.high is None else f" in [{low}, {high}]"
        return f"{self.dtype} ({', '.join(map(str, self.shape))}){f' {self.unit}' if self.unit else ''}{bounds}"


def ids_of(names: Collection[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of the `classes` that are in `names`."""
    return tuple(number for number, name in enumerate(classes) if name in names)


@dataclass(frozen=True, kw_only=True)
class OrderedIds:
    """`count` ids from `start` on that are the levels of one number, in order."""

    start: int
    count: int

    @classmethod
    def of_axes(cls, start: int, axes: int, bins: int) -> tuple[OrderedIds, ...]:
        """Return the ids of several numbers, one after the other, with `bins` levels each."""
        return tuple(cls(start=start + axis * bins, count=bins) for axis in range(axes))

    @property
    def stop(self) -> int:
        """The id after the last."""
        return self.start + self.count


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that `score` returns: its unit, its better direction, and its meaning in a sentence."""

    name: str
    unit: str = ""
    higher_is_better: bool
    meaning: str
    bound: float | None = None
    """The worst held-out value of a usable tokenizer with default settings, or None; `zoo doctor` compares with it."""

    def best(self, scores: Sequence[float]) -> int:
        """Return the index of the best number, the first of equals; NaN counts as the worst."""
        signed = [-math.inf if math.isnan(score) else score if self.higher_is_better else -score for score in scores]
        return signed.index(max(signed))


EXACT = Metric(name="exact", higher_is_better=True, meaning="fraction of values that are equal to their target")
"""The metric of a modality whose plugin has no hook `score`."""


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """Everything that the core and the backbone know about a modality.

    `vocabulary` names the id space: modalities that name the same one share a tokenizer checkpoint and an embedding
    table. `vocab_size` is its number of ids with special tokens (0 for continuous layouts). `metrics[0]` is the main
    metric.
    """

    name: str
    summary: str
    value: ValueSpec
    layout: TokenLayout
    vocab_size: int
    vocabulary: str = ""
    family: str = ""
    derived_from: tuple[str, ...] = ()
    derive_setting: str = ""
    """The setting that turns the hook `derive` on; without it `derived_from` is empty."""
    metrics: tuple[Metric, ...] = ()
    licence: str = "Apache-2.0"
    aliases: tuple[str, ...] = ()
    """Other names of the modality: its names in published models, and usual names of folders of its files."""
    extensions: tuple[str, ...] = ()
    """Extensions of files (lower case, no dot) that are values of this modality unless a folder's name says otherwise:
    the files of a folder of photographs, or of a WebDataset."""
    token_space: str = ""
    """The transform applied before tokenizing, such as "log metres"; shown by `zoo info`."""
    num_codebooks: int = 1
    """Codebooks whose tokens alternate along the last axis of the layout; each has `vocab_size` codes."""
    ordered_ids: tuple[OrderedIds, ...] = ()
    """Ids that are numbers, such as coordinates; a new backbone starts with similar embeddings for close numbers."""
    own_tokenizer: bool = False
    """True if the modality has a tokenizer besides its shared vocabulary; `load_tokenizer` gets both folders."""
    input_form_of: str | None = None
    """The discrete modality that this continuous one is the input form of. An input of that modality is then given in
    this form if the model was trained on it: `rgb=photo.jpg` gives pixels rather than tokens."""

    def __post_init__(self) -> None:
        if not self.vocabulary:
            object.__setattr__(self, "vocabulary", self.name)
        if not self.metrics:
            object.__setattr__(self, "metrics", (EXACT,))
        for error in spec_errors(self):
            raise PluginError(f"{self.name}: ModalitySpec {error}")

    @property
    def continuous(self) -> bool:
        """True for layouts that can only be an input."""
        return self.layout.continuous

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Positions along each axis of a grid or of patches, without an axis of codebooks; () for other layouts."""
        axes = self.layout.axes if self.layout.spatial else ()
        return axes[:-1] if axes and self.num_codebooks > 1 and axes[-1] == self.num_codebooks else axes

    @property
    def shared_vocabulary(self) -> bool:
        """True if the vocabulary belongs to several modalities."""
        return self.vocabulary != self.name

    @property
    def shares_checkpoint(self) -> bool:
        """True if the checkpoint is a shared vocabulary."""
        return self.shared_vocabulary and not self.own_tokenizer


def spec_errors(spec: ModalitySpec) -> Iterator[str]:
    """Yield the errors of a spec, one phrase each."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", spec.name):
        yield f"name {spec.name!r}: expected lower-case letters, digits and underscores"
    if not re.fullmatch(r"[\w-]+", spec.vocabulary):  # of folders and parameters
        yield f"vocabulary {spec.vocabulary!r}: expected letters, digits, underscores and hyphens"
    if not spec.summary or "\n" in spec.summary:
        yield "summary: expected one line"
    if invalid_extensions := [extension for extension in spec.extensions if not re.fullmatch(r"[a-z0-9]+", extension)]:
        yield f"extensions {invalid_extensions[0]!r}: expected lower-case letters and digits, without a dot"
    if not isinstance(spec.layout, TokenLayout):
        kinds = ", ".join(layout.kind for layout in TokenLayout.__subclasses__())
        yield f"layout: expected one of {kinds}, got {type(spec.layout).__name__}"
    elif spec.continuous != (spec.vocab_size == 0):
        yield f"vocab_size {spec.vocab_size}: expected 0 for continuous layouts and only for them"
    elif layout_error := spec.layout.error(spec.vocab_size):
        yield f"layout: {layout_error}"
    elif spec.num_codebooks < 1 or spec.layout.length % spec.num_codebooks:
        yield f"num_codebooks {spec.num_codebooks}: does not divide the {spec.layout.length} tokens"
    runs = sorted(spec.ordered_ids, key=lambda ids: ids.start)
    bounds = [0, *(bound for ids in runs for bound in (ids.start, ids.stop)), spec.vocab_size]
    if bounds != sorted(bounds):
        yield "ordered_ids: expected ids below vocab_size, none of them twice"
    if spec.value.kind == "array" and spec.value.dtype not in DTYPES:
        yield f"value: dtype {spec.value.dtype!r}: expected one of {', '.join(DTYPES)}"
    if spec.value.items and (spec.value.kind != "object" or spec.value.items not in ITEMS):
        yield f"value: items {spec.value.items!r}: expected one of {', '.join(ITEMS)}, of an object"
    low, high = spec.value.low, spec.value.high
    limits = [limit for limit in (low, high) if limit is not None]
    if not all(map(math.isfinite, limits)) or limits != sorted(limits):
        yield f"value: low {low} and high {high}: expected finite numbers, low first; None is no bound"
    unscored = set(spec.value.unscored)
    if unscored and (spec.value.kind != "array" or not unscored < set(spec.value.classes)):
        yield f"value: unscored {unscored}: expected some of the classes of an array, and not all of them"
    if spec.input_form_of is not None and (not spec.continuous or spec.input_form_of == spec.name):
        yield f"input_form_of {spec.input_form_of!r}: expected another modality, and a continuous layout"
    if len({metric.name for metric in spec.metrics}) != len(spec.metrics):
        yield "metrics: two have one name"


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The crop and flip that all modalities of a sample share, as fractions of the picture.

    `(top, left, height, width)` in [0, 1]; `flip` mirrors left and right after cropping. The size of the result follows
    from each modality's settings, so modalities of different resolutions stay aligned.
    """

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False

    def __post_init__(self) -> None:
        fits = self.top >= 0 and self.left >= 0 and self.height > 0 and self.width > 0
        if not (fits and self.top + self.height <= 1 + 1e-9 and self.left + self.width <= 1 + 1e-9):
            raise ValueError(f"crop leaves the picture: {self}")

    @property
    def is_whole(self) -> bool:
        """True if nothing is cut or mirrored; there may still be a resize."""
        return self == WHOLE


WHOLE = Crop()
