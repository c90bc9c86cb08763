"""The initial model of a run: a new one, or a trained backbone with rows for new modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from tokenizers_zoo.checkpoint import WEIGHTS, load_config
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.io import difference
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.text_vocab import Special, TextVocabulary
from zoo_backbone.checkpoint import (
    CLASS,
    GROWING,
    PUBLISHED,
    architecture_for,
    load_model,
    model_tensors,
    stored_specs,
)
from zoo_backbone.config import ModelConfig
from zoo_backbone.model import FourM
from zoo_backbone.optim import TOKEN_TABLE

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The initial model of a run."""

    model: FourM
    known: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows (bool `rows`) by parameter that the start backbone has."""
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows (bool `rows`) by parameter of vocabulary ids that have no meaning yet."""
    record: Mapping[str, Any] | None = None
    """Record of the start backbone for config.json; None for a new model."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """The entry of an imported backbone in config.json; empty for others."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of an imported backbone that are not part of the model."""
    reshaped: tuple[str, ...] = ()
    """Known grids whose shape, and so positions, have changed."""
    without_rows: tuple[ModalitySpec, ...] = ()
    """Added modalities that only use known ids of a shared vocabulary."""

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities of the start backbone."""
        return tuple(self.record["knows"]) if self.record else ()

    def seed(self, seed: int) -> int:
        """Return the seed of samples and masks.

        With a start backbone, it differs from `seed`: otherwise the samples of its training would come again in the
        same order.
        """
        return (seed + int(self.record["weights_sha256"][:15], 16)) % 2**63 if self.record else seed


def begin(
    specs: Sequence[ModalitySpec],
    config: ModelConfig,
    seed: int,
    start: Path | None,
    ids: Mapping[str, int] | None = None,
) -> Beginning:
    """Return a new model, or one with the weights of the backbone `start`.

    `ids` are the results of `ids_in_use`; by default the start backbone knows all ids of its vocabularies. Raises
    CheckpointError, and ConfigError if its shape differs from `config`.
    """
    if start is None:
        return Beginning(model=architecture_for(config).seeded(config, specs, seed))
    stored = load_config(start, CLASS)
    model = load_model(start, specs, seed=seed)
    config = dataclasses.replace(config, position_lengths=model.config.position_lengths)
    if problem := difference(dataclasses.asdict(model.config), dataclasses.asdict(config)):
        raise ConfigError(f"{start}: cannot be the start of a model of another shape: {problem}")
    ids, trained = ids or {}, stored_specs(stored)
    old = {spec.name: spec for spec in trained}
    added = [spec for spec in specs if spec.name not in old]
    used = _ids_by_table(model, trained, ids)
    in_use = _ids_by_table(model, [*trained, *added], ids)
    with safe_open(start / WEIGHTS, "pt") as file:
        lengths = {name: (file.get_slice(name).get_shape() or [1])[0] for name in file.keys()}  # noqa: SIM118
        beside = {name: file.get_tensor(name) for name in lengths if name.startswith(f"{PUBLISHED}.")}
    state = model.state_dict()
    known, unused = ({name: torch.zeros(len(x), dtype=torch.bool) for name, x in state.items()} for _ in range(2))
    for name, rows in model_tensors(model, known).items():  # parts of those, to be written to
        if name in lengths and name.startswith(GROWING):
            rows[: min(lengths[name], used[name.partition(".")[2]])] = True
        elif name in lengths:
            rows.fill_(True)
    for name, rows in model_tensors(model, unused).items():
        if name.startswith(GROWING):
            rows[in_use[name.partition(".")[2]] :] = True
    with torch.no_grad():  # new modality embeddings and mask tokens are the mean of the known ones
        for name, table in model.named_parameters():
            if name in model.modality_rows and known[name].any():
                table[~known[name]] = table[known[name]].mean(0)
    record = {
        "folder": str(Path(start).resolve()), "weights_sha256": stored["weights_sha256"],
        "knows": [spec.name for spec in specs if spec.name in old], "added": [spec.name for spec in added],
    }  # fmt: skip
    shapes = {spec.name: getattr(spec.layout, "shape", ()) for spec in trained}
    parameters = [name for name, _ in model.named_parameters()]
    return Beginning(
        model=model, known={name: known[name] for name in parameters}, record=record, beside=beside,
        unused={name: unused[name] for name in parameters},
        published={PUBLISHED: stored[PUBLISHED]} if PUBLISHED in stored else {},
        reshaped=tuple(spec.name for spec in specs
                       if shapes.get(spec.name, ()) not in ((), getattr(spec.layout, "shape", ()))),
        without_rows=tuple(spec for spec in added
                           if spec.name in ids and ids[spec.name] <= used.get(model.layout.table_of(spec), -1)),
    )  # fmt: skip


def _ids_by_table(model: FourM, specs: Iterable[ModalitySpec], ids: Mapping[str, int]) -> dict[str, int]:
    """Return by token table the number of ids in use: from `ids`, or the vocabulary size."""
    counts: dict[str, int] = {}
    for spec in specs:
        table = model.layout.table_of(spec)
        counts[table] = max(counts.get(table, 0), ids.get(spec.name, spec.vocab_size))
    return counts


def check_meaning(start: Path, handles: Iterable[ModalityHandle]) -> None:
    """Raise DataError where the backbone in `start` was trained on ids that mean something else by now."""
    trained_on = load_config(start, CLASS).get("fingerprints", {})
    for handle in handles:
        fingerprint = trained_on.get(handle.name, handle.fingerprint)
        if not handle.speaks(fingerprint):
            now = f"tokenizer {fingerprint[:12]}, which is now {handle.fingerprint[:12]}"
            trained = f"was trained on tokens of {handle.name} by {now}"
            raise DataError(f"{start}: {trained}; use the registry of that training")


def ids_in_use(start: Path, handles: Iterable[ModalityHandle]) -> dict[str, int]:
    """Return the number of ids in use, counted from 0, by modality with a text vocabulary.

    For modalities of the backbone `start`, this is the length of the vocabulary in its training. If that is unknown,
    the length of another modality with the same vocabulary is used; otherwise the modality is left out. For added
    modalities, it is the last of their special tokens plus 1: all other text pieces exist from the beginning. Raises
    CheckpointError if a vocabulary is missing.
    """
    stored = load_config(start, CLASS)
    old, trained_on = {spec["name"]: spec["vocabulary"] for spec in stored["specs"]}, stored.get("fingerprints", {})
    texts = [handle for handle in handles if handle.writes_text]
    folders = {handle.spec.vocabulary: handle.files.vocabulary_folder() for handle in texts}
    vocabularies = {name: TextVocabulary.load(folder) for name, folder in folders.items()}
    found, by_vocabulary = {}, dict[str, int]()
    for name, vocabulary in old.items():
        lengths = vocabularies[vocabulary].compatible_fingerprints if vocabulary in vocabularies else {}
        if trained_on.get(name) in lengths:
            found[name] = lengths[trained_on[name]]
            by_vocabulary[vocabulary] = max(by_vocabulary.get(vocabulary, 0), found[name])
    found = {name: by_vocabulary[vocabulary] for name, vocabulary in old.items() if vocabulary in by_vocabulary} | found
    for handle in texts:
        if handle.name not in old:
            shared = vocabularies[handle.spec.vocabulary]
            own = [Special(token) for token in handle.vocabulary_tokens() if token in shared.all_special_tokens]
            found[handle.name] = max(shared.encode(own), default=-1) + 1
    return found


def freeze(beginning: Beginning) -> dict[str, Tensor]:
    """Exclude known parameters from training; return the frozen rows of partly known parameters.

    Rows of ids without a meaning are frozen, too. Raises ConfigError if nothing or everything is known, if an added
    modality has no rows of its own, or if a known grid has other positions now.
    """
    if beginning.reshaped:
        wanted = f"{beginning.reshaped[0]} to be a grid of the shape that it was trained with"
        raise ConfigError(f"freeze: expected {wanted}; set that shape, or leave freeze out")
    for spec in beginning.without_rows:
        reason = f"writes in the vocabulary {spec.vocabulary}, whose rows stay: it has nothing to train"
        raise ConfigError(f"freeze: {spec.name} {reason}; leave freeze out")
    partly, moves = {}, False
    for name, parameter in beginning.model.named_parameters():
        known = beginning.known.get(name, torch.zeros(1, dtype=torch.bool))
        if not known.all():
            moves = True
        elif name != TOKEN_TABLE:
            parameter.requires_grad_(False)
            continue
        if known.any():
            partly[name] = known | beginning.unused[name]
    if beginning.record is None or not moves:
        missing = "a backbone to start from" if beginning.record is None else "a modality that it starts without"
        raise ConfigError(f"freeze: expected {missing}, so that some rows are new and the others are kept")
    return partly
