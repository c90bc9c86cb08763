"""Train a backbone with the tokenizers of a zoo, or grow it: train it further with new modalities."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.files.run_folder import RUN
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.records.config import Origin, from_mapping, merged
from tokenizers_zoo.records.io import write_table
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.learn.checkpoint import (
    backbone_config,
    check_meaning,
    ids_in_use,
    layout_for,
    model_config,
)
from zoo_backbone.learn.data import check_tokenizers, datasets_of
from zoo_backbone.learn.distributed import Ranks, processes
from zoo_backbone.learn.losses import losses_of
from zoo_backbone.learn.train import train
from zoo_backbone.measure.gallery import Previews
from zoo_backbone.measure.growth import GROWTH, Growth, LossChange, pair_changes
from zoo_backbone.model.config import Mixture, ModelConfig, TrainConfig, TrainingStore
from zoo_backbone.model.run import Run, check_stored, training_fingerprints

PRETRAINED_LR_SCALE = 0.3
"""Default `pretrained_lr_scale` when growing: at the full rate, pretrained weights forget more."""
NEW_TARGETS = 8.0
"""Number of samples with new targets, per sample with new inputs and per sample with any inputs and targets."""
REPLAY, REPLAY_APART = 0.25, 0.5
"""Default share of replayed samples: the first if the other samples also have all old modalities as targets, else the
second."""
OLD_TARGETS = 0.5
"""Smallest share of the target budget for old modalities in samples with new and old targets."""


def train_run(
    out: Path,
    tokens: Path,
    handles: Mapping[str, ModalityHandle],
    registry: Path | None,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    start: Path | None = None,
    overwrite: bool = False,
    device: str = AUTO,
) -> Path:
    """Train over the modalities of `handles`, whose tokenizers wrote the token store `tokens`; see `train`.

    Previews are drawn if `preview_every` is set. Raises DataError for tokens of other tokenizers.
    """
    check_tokenizers(datasets_of(tokens, config), handles.values())
    if start is not None:
        check_meaning(start, handles.values())
    return train(
        out,
        tokens,
        [handle.spec for handle in handles.values()],
        model_config,
        config,
        start=start,
        run=Run(tokens=tokens, data=TokenStore(tokens).data, registry=registry),
        ids=None if start is None else ids_in_use(start, handles.values()),
        show=Previews(handles, tokens, config, model=model_config) if config.preview_every else None,
        fingerprints=training_fingerprints(out, handles.values()),
        overwrite=overwrite,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A backbone before it grows."""

    folder: Path
    specs: tuple[ModalitySpec, ...]
    model: ModelConfig
    train: TrainConfig
    """Settings of its training, defaults if it was imported. If it has grown before, with the mixtures that
    `replay_mixtures` returned then."""
    fingerprints: Mapping[str, str]
    run: Run | None
    """The folder of its tokens; None if it was imported."""

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """Read config.json and run.json of a folder. Raises CheckpointError."""
        config = backbone_config(folder)
        train = from_mapping(TrainConfig, config.train)
        if config.asked:
            mixtures = tuple(from_mapping(Mixture, mixture) for mixture in config.asked)
            train = dataclasses.replace(train, masking=dataclasses.replace(train.masking, mixtures=mixtures))
        return cls(
            folder=Path(folder),
            specs=config.specs,
            model=model_config(config),
            train=train,
            fingerprints=config.fingerprints,
            run=Run.load(folder) if (folder / RUN).is_file() else None,
        )

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def stores(self, tokens: Path, *, skip_missing: bool = False) -> tuple[TrainingStore, ...]:
        """Return the token stores of its training, restricted to its modalities; `tokens` replaces a missing own store.

        With `skip_missing`, other missing stores are skipped.
        """
        run_tokens = self.run.tokens if self.run and self.run.tokens.is_dir() else tokens
        stores = []
        for dataset in datasets_of(run_tokens, self.train):
            if skip_missing and not dataset.tokens.is_dir():
                continue
            allowed = dataset.modalities or self.names
            names = tuple(name for name in TokenStore(dataset.tokens).modalities(TRAIN) if name in allowed)
            mixtures = dataset.mixtures or self.train.masking.mixtures
            stores.append(dataclasses.replace(dataset, modalities=names, mixtures=mixtures))
        return tuple(dataset for dataset in stores if dataset.modalities)


def grow(
    trained: Trained,
    tokens: Path,
    out: Path,
    added: Sequence[str],
    zoo: Zoo,
    table: Mapping[str, Any],
    replay: float | None = None,
    origin: Origin | None = None,
    overwrite: bool = False,
    device: str = AUTO,
) -> None:
    """Train a backbone further on `tokens` with the modalities `added` of the zoo into `out`.

    See `growing_config` for `table`, a table [train] from `origin`, and `replay`. Raises ConfigError, and DataError for
    tokens of other tokenizers than before.
    """
    store = TokenStore(tokens)
    available = store.modalities(TRAIN)
    old_names = [name for name in trained.names if name in available]
    for name in [zoo[name].name for name in added if name not in available]:
        data = shlex.quote(str(store.data or "DATA"))
        commands = [] if zoo[name].has_tokenizer else [f"zoo tokenizer train {name} --data {data}"]
        commands.append(f"zoo tokenize {data} --out {shlex.quote(str(tokens))} --modalities {name}")
        reason = f"has no tokens of {name}; it has {', '.join(available)}"
        raise DataError(f"{tokens}: {reason}; make them: {', then '.join(commands)}")
    handles = {name: zoo[name] for name in [*old_names, *added]}
    specs = grown_specs(trained, {name: handle.spec for name, handle in handles.items()}, added)
    check_tokenizers([TrainingStore(tokens=tokens)], handles.values())
    check_meaning(trained.folder, handles.values())
    config = growing_config(trained, specs, tokens, table, replay, origin)
    for dataset in config.datasets:
        replayed = TokenStore(dataset.tokens)
        for name in replayed.modalities(TRAIN):
            if name in trained.names and (not dataset.modalities or name in dataset.modalities):
                check_stored(replayed.open(TRAIN, name), trained.fingerprints.get(name), zoo, str(trained.folder))
    previews = None
    if config.preview_every:  # also of modalities that only replayed stores have
        preview_handles = {name: zoo[name] for name in [*trained.names, *added] if name in zoo}
        previews = Previews(preview_handles, tokens, config, model=trained.model, inherited="previews" not in table)
    train(
        out,
        tokens,
        specs,
        trained.model,
        config,
        start=trained.folder,
        fingerprints={**trained.fingerprints, **training_fingerprints(out, handles.values())},
        ids=ids_in_use(trained.folder, handles.values()),
        run=Run(tokens=tokens, data=store.data, registry=zoo.location),
        show=previews,
        replay_mixtures=replay_mixtures(trained, specs, table),
        overwrite=overwrite,
        device=device,
    )


def replay_mixtures(trained: Trained, specs: Sequence[ModalitySpec], table: Mapping[str, Any]) -> tuple[Mixture, ...]:
    """Return the mixtures that the grown backbone replays when it grows again.

    They are those of `trained`, with the added modalities as further targets where targets are named; nothing if
    `table` sets mixtures, which then hold.
    """
    if "mixtures" in table.get("masking", {}):
        return ()
    new = tuple(name for name in layout_for(trained.model, specs).discrete if name not in trained.names)
    return tuple(
        dataclasses.replace(part, targets=(*part.targets, *new) if part.targets else ())
        for part in trained.train.masking.mixtures
    )


def grown_specs(trained: Trained, zoo_specs: Mapping[str, ModalitySpec], added: Sequence[str]) -> list[ModalitySpec]:
    """Return the old modalities in their order, then the added ones; `zoo_specs` has the registry's specs by name.

    A vocabulary gets the largest size among its modalities. Raises ConfigError for a known modality.
    """
    if repeated := [name for name in added if name in trained.names]:
        advice = f"its modalities are {', '.join(trained.names)}; train on with zoo backbone train --from"
        raise ConfigError(f"{trained.folder}: has {repeated[0]} already; {advice}")
    if not added or len(set(added)) != len(added):
        raise ConfigError(f"--add: expected names of new modalities, each once; got {', '.join(added) or 'none'}")
    specs = [zoo_specs.get(spec.name, spec) for spec in trained.specs] + [zoo_specs[name] for name in added]
    longest: dict[str, int] = {}
    for spec in specs:
        longest[spec.vocabulary] = max(longest.get(spec.vocabulary, 0), spec.vocab_size)
    return [dataclasses.replace(spec, vocab_size=longest[spec.vocabulary]) for spec in specs]


def growing_mixtures(
    base_mixtures: Sequence[Mixture],
    old: Sequence[str],
    added: Sequence[str],
    specs: Sequence[ModalitySpec],
    model: ModelConfig | None = None,
    *,
    frozen: bool = False,
) -> tuple[Mixture, ...]:
    """Return mixtures that teach new modalities and keep old ones.

    Most samples have new targets, with the inputs, weights and shares of `base_mixtures`. Unless `frozen`, the rest of
    their target budget goes to the old targets of all components. For each `NEW_TARGETS` of these samples,
    one has new inputs and old targets, and one has any inputs and targets.
    """
    layout = layout_for(model or ModelConfig(), specs)
    old_inputs = [name for name in old if name in layout.readable]
    parts = [Mixture()]
    new_targets, old_targets = (tuple(name for name in names if name in layout.discrete) for names in (added, old))
    aims = [(*part.targets, *part.fallback_targets) or old_targets for part in base_mixtures]
    targets = tuple(name for name in old_targets if any(name in aim for aim in aims))
    if old_inputs and new_targets:
        usable = [part for part in base_mixtures if not part.inputs or set(part.inputs) & set(old_inputs)]
        components = usable or [Mixture()]
        scale = NEW_TARGETS / sum(part.weight for part in components)
        fallback = () if frozen else targets
        for part in components:
            inputs = tuple(name for name in part.inputs or old_inputs if name in old_inputs)
            part = dataclasses.replace(part, weight=scale * part.weight, inputs=inputs)
            parts.append(dataclasses.replace(part, targets=new_targets, fallback_targets=fallback))
    if old_targets:
        parts.append(Mixture(inputs=tuple(added), targets=old_targets))
    return tuple(parts)


def check_same_model(trained: Trained, table: Mapping[str, Any], origin: Origin) -> None:
    """Raise ConfigError if the table [model] contradicts the backbone."""
    model_settings = dataclasses.asdict(trained.model)
    requested_settings = dataclasses.asdict(from_mapping(type(trained.model), {**model_settings, **table}, origin))
    for key, value in model_settings.items():
        if requested_settings[key] != value:
            raise ConfigError(f"{origin.at(key)}: {trained.folder} has {value!r}, which stays; leave it out")


def growing_config(
    trained: Trained,
    specs: Sequence[ModalitySpec],
    tokens: Path,
    table: Mapping[str, Any],
    replay: float | None = None,
    origin: Origin | None = None,
) -> TrainConfig:
    """Return the settings of the earlier training, updated by `table`, with a share `replay` of replayed samples.

    By default `replay` is 0 with `freeze`, REPLAY if all old modalities are targets of the new samples, too, and
    otherwise REPLAY_APART; `pretrained_lr_scale` is PRETRAINED_LR_SCALE. Raises ConfigError for wrong values, and for
    mixtures in `table` without an added modality.
    """
    if replay is not None and not 0 <= replay < 1:
        raise ConfigError(f"--replay: expected a share from 0 to below 1, got {replay:g}")
    scale = 1.0 if table.get("freeze") else PRETRAINED_LR_SCALE
    base = dataclasses.replace(trained.train, datasets=(), freeze=False, pretrained_lr_scale=scale)
    config = from_mapping(TrainConfig, merged(dataclasses.asdict(base), table), origin)
    added = [spec.name for spec in specs if spec.name not in trained.names]
    discrete = [spec for spec in specs if not spec.continuous]
    has_old_targets = False
    if "mixtures" in table.get("masking", {}):
        parts = [*config.masking.mixtures, *(part for dataset in config.datasets for part in dataset.mixtures)]
        named = [spec.name for spec in discrete]
        aims = [(*part.targets, *part.fallback_targets) or named for part in parts]
        named_modalities = {name for names in (*aims, *(part.inputs or added for part in parts)) for name in names}
        if missing := [name for name in added if name not in named_modalities]:
            key_path = (origin or Origin(table="train")).inner("masking").at("mixtures")
            raise ConfigError(f"{key_path}: no mixture has {missing[0]} as an input or a target; name it in one")
    else:
        available = TokenStore(tokens).modalities(TRAIN)
        old = [name for name in trained.names if name in available]
        mixtures = growing_mixtures(config.masking.mixtures, old, added, specs, trained.model, frozen=config.freeze)
        masking = dataclasses.replace(config.masking, mixtures=mixtures)
        config = dataclasses.replace(config, masking=masking)
        # Whether new targets of full length leave enough budget and tokens for the old targets of fixed length.
        new_tokens = sum(spec.layout.length for spec in discrete if spec.name in added)
        old_specs = [spec for spec in discrete if spec.name not in added and not spec.layout.variable]
        old_tokens = sum(spec.layout.length for spec in old_specs)
        room = min(masking.target_budget - new_tokens, old_tokens - masking.input_budget)
        has_old_targets = old == trained.names and not config.datasets and room >= OLD_TARGETS * masking.target_budget
    if replay is None:
        replay = 0.0 if config.freeze else REPLAY if has_old_targets else REPLAY_APART
    if not replay:
        return config
    stores = trained.stores(tokens)
    if not stores:
        paths = " and ".join(str(store) for store in (trained.run and trained.run.tokens, tokens) if store)
        advice = "restore the token store of its training, or give --replay 0"
        raise ConfigError(f"--replay {replay:g}: {paths} has no tokens of the modalities of {trained.folder}; {advice}")
    scale = replay / (1 - replay) * (1 + sum(d.weight for d in config.datasets)) / sum(d.weight for d in stores)
    replayed = tuple(dataclasses.replace(dataset, weight=scale * dataset.weight) for dataset in stores)
    return dataclasses.replace(config, datasets=config.datasets + replayed)


def write_report(folder: Path, trained: Trained, tokens: Path, device: str = AUTO) -> Growth:
    """Compare the backbone in `folder` with `trained`, write FOLDER/growth.json and return its content."""
    config = backbone_config(folder)
    start, specs = config.start, config.specs
    assert start is not None
    old = [spec for spec in specs if spec.name in trained.names]
    new_config = dataclasses.replace(from_mapping(TrainConfig, config.train), datasets=())
    torch_device = Ranks(device).device
    max_batch_size = max(1, new_config.batch_size // (new_config.grad_accum_steps * processes()))  # as in training
    before: dict[str, tuple[float, int]] = {}
    after: dict[str, tuple[float, int]] = {}
    if stores := trained.stores(tokens, skip_missing=True):
        own_store, *other_stores = stores
        old_config = dataclasses.replace(trained.train, datasets=tuple(other_stores))
        before, after = (
            losses_of(backbone, old, own_store.tokens, old_config, trained.names, torch_device, max_batch_size)
            for backbone in (trained.folder, folder)
        )
    grown_losses = losses_of(folder, specs, tokens, new_config, trained.names, torch_device, max_batch_size)
    sizes = {spec.name: spec.vocab_size for spec in specs}
    growth = Growth(
        start=start,
        losses={
            name: LossChange(before=loss, after=after[name][0], targets=count) for name, (loss, count) in before.items()
        },
        new={
            name: LossChange(before=math.log(sizes[name]), after=grown_losses[name][0], targets=grown_losses[name][1])
            for name in start.added
            if name in grown_losses
        },
        pairs=pair_changes(trained.folder, folder),
    )
    write_table(folder / GROWTH, growth)
    return growth
