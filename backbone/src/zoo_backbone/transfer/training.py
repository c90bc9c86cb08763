"""How a probe is trained: by the loop that trains tokenizers, on features that are kept or through the encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import CARD, CONFIG, WEIGHTS, float32_by_default, save_checkpoint
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.samples import TEST, TRAIN, TrainingSamples, spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.io import file_digest, write_json
from tokenizers_zoo.progress import say
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.run_folder import TOKENIZER, RunFolder, RunKind
from tokenizers_zoo.train.batches import seeded, to_device
from tokenizers_zoo.train.loop import identity, train
from tokenizers_zoo.train.task import Kept
from zoo_backbone.checkpoint import spec_from_json
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.encoder import parameter_groups
from zoo_backbone.run import Run, stored_config
from zoo_backbone.transfer.config import TransferConfig, chosen_head
from zoo_backbone.transfer.heads import Neighbours, build_head
from zoo_backbone.transfer.keeping import KeptFeatures
from zoo_backbone.transfer.kinds import Kind, kind_to_json
from zoo_backbone.transfer.lora import require_peft
from zoo_backbone.transfer.metrics import METRICS, probe_card
from zoo_backbone.transfer.probe import Network, Probe, encoder_of
from zoo_backbone.transfer.reading import Grid, Head, padded_features
from zoo_backbone.transfer.samples import Example, Examples, Labelled, Part, Places, labelled
from zoo_backbone.transfer.saving import CONSTANT, SEEN, described, note_places, packed_constant, tensors_of
from zoo_backbone.transfer.scores import constant_of, scored, unseen_labels
from zoo_backbone.transfer.tasks import Task

FOLDER = "transfer"
DIGITS = 16
"""Of a digest that is compared."""
PROBE = RunKind(
    name="probe",
    files=(WEIGHTS, CONFIG, CARD, METRICS, "metrics.jsonl", "tensorboard"),
    state=TOKENIZER.state,
    results=(WEIGHTS, CONFIG, METRICS),
)
BATCH = 64
"""Samples that are answered at a time."""


@float32_by_default()
def transfer(
    run: Path,
    zoo: Zoo,
    task_text: str,
    given: Sequence[str],
    out: Path,
    config: TransferConfig,
    *,
    seed: int = 0,
    wanted: Any = None,
    data: Path | None = None,
    overwrite: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train a probe on the run's stored tokens of `given` and write its folder `out`, which is returned.

    Labels are values in `data` (default: the run's), or a table's. Killed and called again it goes on, to the same
    weights; a finished folder is left alone, but says where what it is of is now; with `overwrite` a probe that is
    there is replaced, but stays where nothing is trained. Raises ZooErrors for what does not fit together, before
    anything is written.
    """
    started = time.perf_counter()
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: expected 0 or more, below 2^63")
    run, place = Path(run), Run.load(run)
    stored = stored_config(run)
    layout = EmbeddingLayout(list(map(spec_from_json, stored["specs"])), from_mapping(ModelConfig, stored["model"]))
    given = [layout.spec(name).name for name in given]
    for name in given:
        layout.check_read(name, "--given")
    if len(set(given)) != len(given):
        raise ConfigError(f"--given {','.join(given)}: expected each modality once")
    task = Task.parse(task_text, zoo, wanted)
    task.refuse_given(given)
    if config.tuning == "lora":
        require_peft()
    data = place.values() if data is None and task.handle is not None else data or place.data
    places = Places(
        tokens=place.tokens, store=ValueStore.of(data, zoo) if data and task.handle else None, zoo=zoo, owner=str(run),
        specs=[layout.spec(name) for name in given], trained_on=stored["fingerprints"],
    )  # fmt: skip
    unknown = places.unknown(task)
    known, test = places.part(task, TRAIN), places.part(task, TEST)
    used = labelled(task, known, config, seed)
    if used.few is not None and config.patience is not None:
        raise ConfigError(f"patience: {used.few_text(config)}; raise labels or validation, or leave patience out")
    kind, targets = task.fitted(used.part.labels, config.scale)
    task.check_labels(kind, test.labels)
    head = chosen_head(kind.kind, config)
    grid = Grid.of(layout, given) if kind.kind.endswith("map") else None
    if head == "linear" and grid is None and config.batch_size < 2:
        raise ConfigError(f"batch_size {config.batch_size}: the linear head norms over a batch; expected at least 2")
    settings = described(run, task, kind_to_json(kind), given, head, config, seed, place, zoo, data)
    left_out = {"train": dict(known.left_out), "test": dict(test.left_out), "unknown_keys": unknown}
    trainee = TransferTask(
        run=run, task=task, kind=kind, head=head, grid=grid, config=config, seed=seed, zoo=zoo, settings=settings,
        used=used, targets=targets, test=test, left_out=left_out, started=started,
    )  # fmt: skip
    provenance = digests_of(task, places.store, used.part, test)
    if task.file is not None:
        provenance["sha256"] = file_digest(task.file)
    judges = Examples(used.part, used.validation) if used.validation else Examples(test)
    samples = TrainingSamples(train=Examples(used.part, used.training), test=judges, provenance=provenance)
    if head == "knn":
        trainee.without_steps(samples, out, overwrite)
    else:
        train(trainee, samples, config, out, seed, on_step, overwrite)
    note_places(out, settings)
    return out


def digests_of(task: Task, store: ValueStore | None, train: Part, test: Part) -> dict[str, str]:
    """What tells the samples of a probe from others in the same place: the beginning of a sha256 (hex) each."""
    found = {}
    for split, part in ((TRAIN, train), (TEST, test)):
        found[f"{split} inputs"] = part.digest()[:DIGITS]
        found[f"{split} labels"] = task.digest(store, split, part.labels)[:DIGITS]
    return found


@dataclass(kw_only=True)
class TransferTask:
    """What the training loop asks of a transfer; see `TokenizerTask` and `SupervisedTask` in tokenizers_zoo."""

    run: Path
    task: Task
    kind: Kind
    head: Any
    grid: Grid | None
    config: TransferConfig
    seed: int
    zoo: Zoo
    settings: Mapping[str, Any]
    used: Labelled
    targets: Sequence[Any]
    """What the kind encodes, of all samples whose labels are used."""
    test: Part
    left_out: Mapping[str, Any]
    started: float

    kind_of_run = PROBE
    codebook_size = 0

    def __post_init__(self) -> None:
        self.part = self.used.part
        self.validates = bool(self.used.validation)
        self.title = f"transfer {self.task.title}"
        codecs = self.settings["backbone"]["fingerprints"].items()
        self.codecs = {name: codec for name, codec in codecs if name in self.settings["given"]}
        self.spec = self.task.spec(self.kind)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.frozen = self.config.tuning == "frozen"
        self.features: dict[int, KeptFeatures] = {}  # by the id of a part
        self.network: Network
        self.trained = 0  # parameters; those that are averaged, and judged, want no gradient

    def describe(self) -> Mapping[str, Any]:
        """See `TokenizerTask`; a table is known by its name and content, as folders may have moved since."""
        text = self.task.text if self.task.file is None else Path(self.task.text).name
        backbone = {"weights_sha256": self.settings["backbone"]["weights_sha256"], "fingerprints": self.codecs}
        names = ("class", "task", "kind", "given", "head", "settings")
        table = {name: self.settings[name] for name in names}
        return {**table, "task": {**self.settings["task"], "text": text}, "backbone": backbone}

    # ------------------------------------------------------------------ the model

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> nn.Module:
        """See `TokenizerTask`: a head alone on frozen features, else all of the network."""
        if self.used.few is not None:
            line = f"{self.title}: {self.used.few_text(self.config)}; all are learned from, and the last step is kept"
            say(Console(stderr=True), line)
        encoder = encoder_of(self.run, self.config, self.seed)
        model = encoder.model.config
        head: Head
        if self.head == "knn":
            head = Neighbours(torch.zeros(1, model.dim), torch.zeros(1, 1), 1, 1.0, 1)
        else:
            head = build_head(self.head, self.kind, self.config, model, self.grid)
        self.network = Network(encoder.to(self.device), head, self.grid)
        module: nn.Module = head if self.frozen else self.network
        self.trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if self.frozen:
            for part in (self.part, self.test):
                self.features[id(part)] = KeptFeatures(self.network, part, self.config.batch_size)
            self.keep()
        return module

    def keep(self) -> None:
        """Compute the features of what evaluations look at, and for knn of all that it learns from."""
        if self.head == "knn":
            self.features[id(self.part)].keep(range(len(self.part)))
        elif self.validates:
            self.features[id(self.part)].keep(self.used.validation)
        else:
            self.features[id(self.test)].keep(spread(len(self.test), self.config.eval_samples))

    def inputs(self, examples: Sequence[Example]) -> Any:
        """What the trained module is given: features, or tokens."""
        part, places = examples[0].part, [example.place for example in examples]
        if self.frozen:
            return padded_features(self.features[id(part)].of(places))
        return self.network.encoder.prepare(part.tokens(places))

    def head_of(self, module: nn.Module) -> Head:
        """The head of what is trained, which on frozen features is all of it."""
        return cast(Head, module) if self.frozen else cast(Network, module).head

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """See `SupervisedTask`: layers of the encoder at rates that fall towards its input, the head at a whole one."""
        head = self.head_of(module)
        groups = []
        if not self.frozen:
            layers = parameter_groups(
                cast(Network, module).encoder, 1.0, decay=self.config.layer_decay, weight_decay=self.config.weight_decay
            )  # fmt: skip
            groups = [{**{key: group[key] for key in ("params", "weight_decay")}, "rate": group["lr"]}
                      for group in layers]  # fmt: skip
        matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": self.config.weight_decay, "rate": 1.0})
        groups.append({"params": others, "weight_decay": 0.0, "rate": 1.0})
        return [group for group in groups if group["params"]]

    # ------------------------------------------------------------------ steps

    def batch(self, values: list[Any], rng: np.random.Generator) -> Any:
        """See `TokenizerTask`."""
        return self.inputs(values), self.kind.encode([self.targets[example.place] for example in values])

    def losses(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        """See `TokenizerTask`."""
        inputs, targets = batch
        features, mask = inputs if self.frozen else cast(Network, module).read(*inputs)
        features = F.dropout(features, self.config.dropout, module.training)
        return {"loss": self.kind.loss(self.head_of(module).taught(features, mask, targets), targets)}

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], None]:
        """See `TokenizerTask`: answers."""
        answers = []
        for start in range(0, len(values), BATCH):
            here = values[start : start + BATCH]
            outputs = module(*to_device(self.inputs(here), self.device))
            answers += self.task.answers(self.kind, self.kind.decode(outputs))
        return answers, None

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """See `TokenizerTask`."""
        return self.task.score(self.kind, predicted, [example.part.labels[example.place] for example in target])

    def render(self, value: Any) -> Any:
        """See `TokenizerTask`: of an answer, or of a sample's label."""
        if isinstance(value, Example):
            value = self.task.truth(self.kind, value.part.labels[value.place])
        return self.task.render(self.kind, value)

    # ------------------------------------------------------------------ the end

    def without_steps(self, samples: TrainingSamples, out: Path, overwrite: bool) -> None:
        """Store the features and answers of the training samples as a probe that asks its neighbours."""
        with RunFolder(out, PROBE, identity(self, samples, self.config, self.seed)).open(overwrite) as run:
            if run.finished is not None:
                return
            with seeded(self.seed):
                self.build(samples.train, np.random.default_rng(0))
            bank = torch.stack(self.features[id(self.part)].of(range(len(self.part))))
            answers = self.kind.encode(list(self.targets))
            head = Neighbours(
                bank, answers, self.config.neighbours, self.config.temperature, self.kind.outputs
            ).to(self.device)  # fmt: skip
            self.save(run, head, 0, time.perf_counter() - self.started, None)

    def save(self, run: RunFolder, module: nn.Module, steps: int, seconds: float, kept: Kept | None) -> None:
        """See `SupervisedTask`: score all held-out samples, and write the probe's folder."""
        if self.frozen:
            self.network.head = self.head_of(module)
        else:
            self.network = cast(Network, module)
        constant = constant_of(self.task, self.kind, self.part.labels)
        kept_tensors, record = packed_constant(self.task, constant)
        seen = sorted(set(self.targets)) if self.kind.kind == "classes" else []
        settings = {**self.settings, CONSTANT: record, **({SEEN: seen} if seen else {})}
        probe = Probe(
            self.network, self.task, self.kind, settings["given"], self.zoo, settings["backbone"]["fingerprints"],
            constant, seen,
        )  # fmt: skip
        result = {
            "task": {"name": self.task.title, "kind": self.kind.kind},
            "given": settings["given"], "head": self.head, "tuning": self.config.tuning, "seed": self.seed,
            "labels": {"asked": self.config.labels, "train": len(self.used.training),
                       "validation": len(self.used.validation), "test": len(self.test)},
            "metrics": scored(probe, self.test),
            "settings": settings["settings"],
            "left_out": dict(self.left_out),
            "unseen": unseen_labels(probe, self.test.labels),
            "backbone": {key: settings["backbone"][key] for key in ("run", "weights_sha256")},
            "parameters": {"trained": self.trained, "all": sum(p.numel() for p in probe.parameters())},
            "steps": steps,
            **({"kept_step": kept.step, "validation": {"name": self.spec.metrics[0].name, "score": kept.score}}
               if kept is not None else {}),
            "seconds": {"training": round(seconds, 1), "all": round(time.perf_counter() - self.started, 1)},
        }  # fmt: skip
        tensors = tensors_of(self.network, self.config) | kept_tensors
        save_checkpoint(run.path, tensors, settings, probe_card(settings, result))
        write_json(run.path / METRICS, result)
        run.finish(steps=steps)
