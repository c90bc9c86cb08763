"""A trained backbone goes on with more modalities: how it is trained then, and what became of what it knew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.checkpoint import load_config
from tokenizers_zoo.config import Origin, from_mapping, merged
from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.io import read_table, write_json
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.run_folder import RUN
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.validation import has_fixed_length
from zoo_backbone.checkpoint import ASKED, CLASS, architecture_for, model_config, stored_specs
from zoo_backbone.codecs import check_stored
from zoo_backbone.config import Dataset, MaskingConfig, Mixture, ModelConfig, TrainConfig
from zoo_backbone.data import datasets_of
from zoo_backbone.distributed import Ranks, processes
from zoo_backbone.evaluate import FILE as EVALUATION
from zoo_backbone.evaluate import FOLDER
from zoo_backbone.losses import losses_of
from zoo_backbone.model import uniform_loss
from zoo_backbone.run import Run

REPORT = "growth.json"
PRETRAINED_LR_SCALE = 0.3
"""`pretrained_lr_scale` of a backbone that grows: at the whole rate of a new training it loses some of what it knew."""
ASKING = 8.0
"""Samples that ask for what is new, for one that gives it and one that leads from anything to anything."""
REPLAY, REPLAY_APART = 0.25, 0.5
"""Share of the samples that are replayed: where those that ask for what is new ask for all that is old, too, and
elsewhere."""
LEFT = 0.5
"""Share of the target budget that has to go to what is old, in samples that ask for what is new, to be asked enough."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A backbone as it was before it grew."""

    folder: Path
    specs: tuple[ModalitySpec, ...]
    model: ModelConfig
    train: TrainConfig
    """How it was trained; the defaults for one that was imported. Of one that grew, with the mixtures that
    `asked_from_now` gave."""
    fingerprints: Mapping[str, str]
    run: Run | None
    """Where its tokens are; None for one that was imported."""

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """What a folder's config.json and run.json say. Raises CheckpointError."""
        stored = load_config(folder, CLASS)
        return cls(
            folder=Path(folder),
            specs=tuple(stored_specs(stored)),
            model=model_config(stored),
            train=_as_asked(from_mapping(TrainConfig, stored.get("train", {})), stored.get(ASKED)),
            fingerprints=stored.get("fingerprints", {}),
            run=Run.load(folder) if (folder / RUN).is_file() else None,
        )

    @property
    def names(self) -> list[str]:
        """Its modalities."""
        return [spec.name for spec in self.specs]

    def stores(self, tokens: Path, *, left: bool = False) -> tuple[Dataset, ...]:
        """What it was trained on, old modalities alone; in place of its own store, where it is gone, `tokens`.

        With `left`, without other stores that are gone.
        """
        own = self.run.tokens if self.run and self.run.tokens.is_dir() else tokens
        found = []
        for dataset in datasets_of(own, self.train):
            if left and not dataset.tokens.is_dir():
                continue
            wanted = dataset.modalities or self.names
            names = tuple(name for name in TokenStore(dataset.tokens).modalities(TRAIN) if name in wanted)
            mixtures = dataset.mixtures or self.train.masking.mixtures
            found.append(dataclasses.replace(dataset, modalities=names, mixtures=mixtures))
        return tuple(dataset for dataset in found if dataset.modalities)


def _as_asked(train: TrainConfig, asked: Sequence[Mapping[str, Any]] | None) -> TrainConfig:
    if asked is None:
        return train
    mixtures = tuple(from_mapping(Mixture, part) for part in asked)
    return dataclasses.replace(train, masking=dataclasses.replace(train.masking, mixtures=mixtures))


def _made(specs: Sequence[ModalitySpec], model: ModelConfig) -> list[str]:
    """The modalities that such a model makes."""
    return list(architecture_for(model).layout_class(specs, model).discrete)


def asked_from_now(trained: Trained, specs: Sequence[ModalitySpec], table: Mapping[str, Any]) -> tuple[Mixture, ...]:
    """How a grown run is asked when it grows again, where what is added now is old: as `trained` was, and parts that
    name what they ask for ask for what is added, too. Nothing where `table` has mixtures: as these ask.
    """
    if "mixtures" in table.get("masking", {}):
        return ()
    new = tuple(name for name in _made(specs, trained.model) if name not in trained.names)
    return tuple(
        dataclasses.replace(part, targets=(*part.targets, *new) if part.targets else ())
        for part in trained.train.masking.mixtures
    )


def grown_specs(trained: Trained, now: Mapping[str, ModalitySpec], added: Sequence[str]) -> list[ModalitySpec]:
    """The old modalities in their order, then the added ones; `now` holds specs by name, as they are today.

    A vocabulary is as long as the longest of its modalities says. Raises ConfigError for one that is there already.
    """
    if there := [name for name in added if name in trained.names]:
        raise ConfigError(
            f"{trained.folder}: has {there[0]} already; its modalities are {', '.join(trained.names)}; train on with "
            "zoo backbone train --from"
        )
    if not added or len(set(added)) != len(added):
        raise ConfigError(f"--add: expected names of new modalities, each once; got {', '.join(added) or 'none'}")
    specs = [now.get(spec.name, spec) for spec in trained.specs] + [now[name] for name in added]
    longest: dict[str, int] = {}
    for spec in specs:
        longest[spec.vocabulary] = max(longest.get(spec.vocabulary, 0), spec.vocab_size)
    return [dataclasses.replace(spec, vocab_size=longest[spec.vocabulary]) for spec in specs]


def growing_mixtures(
    asked: Sequence[Mixture],
    old: Sequence[str],
    added: Sequence[str],
    specs: Sequence[ModalitySpec],
    model: ModelConfig | None = None,
    *,
    frozen: bool = False,
) -> tuple[Mixture, ...]:
    """Most samples ask for what is new, given what the parts of `asked` give: as often, shared out as they share it.

    What that leaves of the target budget goes to the old that any part asks for, but where that is `frozen`. For each
    `ASKING` of these samples one gives what is new and asks for what is old, and one leads from anything to anything.
    Of what is old, `model` may only read some, or only make some.
    """
    model = model or ModelConfig()
    discrete = _made(specs, model)
    read = [name for name in old if name in architecture_for(model).layout_class(specs, model).readable]
    parts = [Mixture()]
    new, known = (tuple(name for name in names if name in discrete) for names in (added, old))
    made = tuple(name for name in known if any(name in part.target_names(known) for part in asked))
    if read and new:
        ways = [part for part in asked if not part.inputs or set(part.inputs) & set(read)] or [Mixture()]
        scale = ASKING / sum(part.weight for part in ways)
        for part in ways:
            inputs = tuple(name for name in part.input_names(read) if name in read)
            weight, fill = scale * part.weight, () if frozen else made
            parts.append(dataclasses.replace(part, weight=weight, inputs=inputs, targets=new, fallback_targets=fill))
    if known:
        parts.append(Mixture(inputs=tuple(added), targets=known))
    return tuple(parts)


def check_same_model(trained: Trained, table: Mapping[str, Any], origin: Origin) -> None:
    """Raise ConfigError for a table [model] of another model than the one that grows."""
    known = dataclasses.asdict(trained.model)
    wanted = dataclasses.asdict(from_mapping(type(trained.model), {**known, **table}, origin))
    for key, value in known.items():
        if wanted[key] != value:
            raise ConfigError(
                f"{origin.at(key)}: {trained.folder} has {value!r}, and a model grows by modalities alone; leave it out"
            )


def growing_config(
    trained: Trained,
    specs: Sequence[ModalitySpec],
    tokens: Path,
    table: Mapping[str, Any],
    replay: float | None = None,
    origin: Origin | None = None,
) -> TrainConfig:
    """As it was trained, with the keys of `table` in their place, and `replay` of the samples old ones; 0 for none.

    Absent, `replay` is 0 for what is frozen, REPLAY where the new samples ask for all that is old, too, and else
    REPLAY_APART. What is known moves at PRETRAINED_LR_SCALE of the rate where `table` does not say otherwise. Raises
    ConfigError, also for mixtures in `table` that neither give nor ask for an added modality.
    """
    if replay is not None and not 0 <= replay < 1:
        raise ConfigError(f"--replay: expected a share from 0 to below 1, got {replay:g}")
    pretrained_lr_scale = 1.0 if table.get("freeze") else PRETRAINED_LR_SCALE
    base = dataclasses.asdict(
        dataclasses.replace(trained.train, datasets=(), freeze=False, pretrained_lr_scale=pretrained_lr_scale)
    )
    config = from_mapping(TrainConfig, merged(base, table), origin)
    added = [spec.name for spec in specs if spec.name not in trained.names]
    asks_for_old = False
    if "mixtures" in table.get("masking", {}):
        _check_met(config, added, specs, origin or Origin(table="train"))
    else:
        there = TokenStore(tokens).modalities(TRAIN)
        old = [name for name in trained.names if name in there]
        asked = config.masking.mixtures
        mixtures = growing_mixtures(asked, old, added, specs, trained.model, frozen=config.freeze)
        config = dataclasses.replace(config, masking=dataclasses.replace(config.masking, mixtures=mixtures))
        asks_for_old = old == trained.names and not config.datasets and _leaves_room(config.masking, specs, added)
    if replay is None:
        replay = 0.0 if config.freeze else REPLAY if asks_for_old else REPLAY_APART
    if not replay:
        return config
    stores = trained.stores(tokens)
    if not stores:
        where = " and ".join(str(store) for store in (trained.run and trained.run.tokens, tokens) if store)
        raise ConfigError(
            f"--replay {replay:g}: there is nothing to replay: looked in {where} for tokens of what {trained.folder} "
            "knows, and found none; bring those of its training back, or give --replay 0"
        )
    scale = replay / (1 - replay) * (1 + sum(d.weight for d in config.datasets)) / sum(d.weight for d in stores)
    replayed = tuple(dataclasses.replace(dataset, weight=scale * dataset.weight) for dataset in stores)
    return dataclasses.replace(config, datasets=config.datasets + replayed)


def share_replayed(config: TrainConfig, further: int) -> float:
    """The share of the samples that a growing replays, where `further` of its datasets are not for that."""
    weights = [dataset.weight for dataset in config.datasets]
    return sum(weights[further:]) / (1 + sum(weights))


def _leaves_room(masking: MaskingConfig, specs: Sequence[ModalitySpec], added: Sequence[str]) -> bool:
    """Whether of samples that ask for what is `added`, at its longest, enough is left to ask for what is old: of the
    budget, and, counting what always has its length, of that when the inputs are taken.
    """
    discrete = [spec for spec in specs if not spec.continuous]
    new = sum(spec.layout.length for spec in discrete if spec.name in added)
    old = sum(spec.layout.length for spec in discrete if spec.name not in added and has_fixed_length(spec.layout))
    room = min(masking.target_budget - new, old - masking.input_budget)
    return room >= LEFT * masking.target_budget


def _check_met(config: TrainConfig, added: Sequence[str], specs: Sequence[ModalitySpec], origin: Origin) -> None:
    """Raise ConfigError for an added modality that no part of the mixtures gives or asks for."""
    discrete = [spec.name for spec in specs if not spec.continuous]
    parts = [*config.masking.mixtures, *(part for dataset in config.datasets for part in dataset.mixtures)]
    met = {name for part in parts for name in (*part.input_names(added), *part.target_names(discrete))}
    for name in added:
        if name not in met:
            raise ConfigError(
                f"{origin.inner('masking').at('mixtures')}: no part gives or asks for {name}, so nothing would be "
                "learnt of it; name it in a part, or leave the mixtures out, and most samples ask for it"
            )


def check_replayed(trained: Trained, config: TrainConfig, zoo: Zoo) -> None:
    """Raise DataError where a further store has tokens of an old modality that are not of the codec of its training."""
    for dataset in config.datasets:
        store = TokenStore(dataset.tokens)
        for name in store.modalities(TRAIN):
            if name in trained.names and (not dataset.modalities or name in dataset.modalities):
                check_stored(store.open(TRAIN, name), trained.fingerprints.get(name), zoo, str(trained.folder))


def write_report(folder: Path, trained: Trained, tokens: Path) -> dict[str, Any]:
    """Measure what the backbone in `folder` grew from and what it became, on the device that trainings run on; gives
    what FOLDER/growth.json holds.

    {"start": {"folder", "weights_sha256", "knows", "added"},
     "losses": {name: {"before", "after", "targets"}}: nats per target token of held-out samples, masked alike
         before and after, over old modalities alone, as they are now: new ids of theirs are among the possible ones
         before, too; none where none of their tokens are left,
     "new": {name: {"after", "uniform", "targets"}}: those of added ones, and that of knowing nothing,
     "skills": [{"inputs", "target", "before", "after"}]: skill scores where zoo backbone eval has measured both}
    """
    stored = load_config(folder, CLASS)
    record = stored["start"]
    specs = stored_specs(stored)
    old = [spec for spec in specs if spec.name in trained.names]
    grown = dataclasses.replace(from_mapping(TrainConfig, stored["train"]), datasets=())
    device = Ranks().device
    at_once = max(1, grown.batch_size // (grown.grad_accum_steps * processes()))  # as in training
    before: dict[str, tuple[float, int]] = {}
    after: dict[str, tuple[float, int]] = {}
    if stores := trained.stores(tokens, left=True):
        own, *others = stores
        measuring = dataclasses.replace(trained.train, datasets=tuple(others))
        before, after = (
            losses_of(backbone, old, own.tokens, measuring, trained.names, device, at_once)
            for backbone in (trained.folder, folder)
        )
    now = losses_of(folder, specs, tokens, grown, trained.names, device, at_once)
    sizes = {spec.name: spec.vocab_size for spec in specs}
    result = {
        "start": record,
        "losses": {
            name: {"before": loss, "after": after[name][0], "targets": count} for name, (loss, count) in before.items()
        },
        "new": {
            name: {"after": now[name][0], "uniform": uniform_loss(sizes[name]), "targets": now[name][1]}
            for name in record["added"] if name in now
        },
        "skills": skills(trained.folder, folder),
    }  # fmt: skip
    write_json(folder / REPORT, result)
    return result


def skills(before: Path, after: Path) -> list[dict[str, Any]]:
    """Skill scores of the pairs that an evaluation of both has, by the same settings and of as many samples of the
    same values, with the same decoders. One that was made with other weights than the folder has is none.
    """
    found, identities = [], []
    for folder in (before, after):
        path = folder / FOLDER / EVALUATION
        table = read_table(path, "pairs", "identity") if path.is_file() else {"pairs": [], "identity": {}}
        if table["pairs"] and table["identity"].get("weights") != load_config(folder, CLASS).get("weights_sha256"):
            table = {"pairs": [], "identity": {}}
        identities.append(table["identity"])
        found.append({(tuple(p["inputs"]), p["target"], p["samples"]): p["skill"] for p in table["pairs"]})
    old, new = found if _asked_alike(*identities) else ({}, {})
    return [
        {"inputs": list(pair[0]), "target": pair[1], "before": skill, "after": new[pair]}
        for pair, skill in old.items() if pair in new
    ]  # fmt: skip


def _asked_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two evaluations had the same settings, and the same values and decoders of the modalities that both have.

    Those are told by their digests; where one is of an earlier version that did not note them, values by their folder.
    """
    if one.get("settings") != other.get("settings") or not _agree(one.get("decoders", {}), other.get("decoders", {})):
        return False
    if "values" not in one or "values" not in other:
        return bool(one.get("data") == other.get("data"))
    return _agree(one["values"], other["values"])


def _agree(here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether two tables hold the same under the keys that both have."""
    return all(here[key] == there[key] for key in here.keys() & there.keys())
