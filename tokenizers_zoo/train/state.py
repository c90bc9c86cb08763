"""What a training run keeps on disk: which run it is, and the state from which it goes on after a kill."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import CARD, CONFIG, ORIGIN, WEIGHTS, check_weights, is_complete, load_config
from tokenizers_zoo.data.provenance import DATASET
from tokenizers_zoo.data.samples import ADDED_PROVENANCE
from tokenizers_zoo.data.tokens import STORE
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import (
    BUSY,
    as_recorded,
    check_opens,
    difference,
    held,
    read_table,
    remove_folder,
    replacing_file,
    write_json,
    write_tensors,
)
from tokenizers_zoo.step_log import METRICS, TENSORBOARD

if TYPE_CHECKING:
    import torch

RUN, STATE, EVALUATION, PICTURES = "run.json", "training_state.safetensors", "evaluation.json", "samples"
OWN = frozenset({RUN, STATE, EVALUATION, PICTURES, WEIGHTS, CONFIG, CARD, METRICS, TENSORBOARD})
"""What training and evaluation write into a folder; where modalities share it, an evaluation in a folder of each."""
COPY = "copy it again, or give another --out"
"""What is to be done about a damaged RUN: without it a folder is no run's."""
TAKEN = "{}: another run has begun there meanwhile; give another --out"


def of_split(name: str, split: str) -> str:
    """What EVALUATION or PICTURES are called where they are of another split than the held-out one, or of a part."""
    return f"{Path(name).stem}-{split}{Path(name).suffix}"


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What `TrainingRun.restore` found."""

    tensors: Mapping[str, torch.Tensor]
    counters: Mapping[str, float]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors that were saved as part `name`, by their own names."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A folder that belongs to one run, known by its `identity`: model, training settings, data and seed."""

    folder: Path
    identity: Mapping[str, Any]
    result: str = EVALUATION
    """The file that is written last."""

    @classmethod
    def open(
        cls, folder: Path, identity: Mapping[str, Any], what: str = "tokenizer", result: str = EVALUATION
    ) -> TrainingRun:
        """Take a free folder, see `check_free`, or one of the same run. Raises CheckpointError where it holds another.

        One that was killed before it saved anything is in nobody's way. Nothing is written yet: see `begin`.
        """
        identity = json.loads(json.dumps(identity, allow_nan=False))
        command = _command(identity) if what == "tokenizer" else ""
        alone = f", for {_modality(identity)} alone," if command else ""
        advice = f"give another --out, or train it anew: the same command{alone} with --overwrite"
        if (folder / RUN).is_file():
            before = read_table(folder / RUN, remedy=COPY)
            recorded = _as_recorded(before, identity)
            problem = difference(before, recorded)
            if problem and not nothing_saved(folder):
                raise CheckpointError(f"{folder}: holds a {what} trained otherwise ({problem}); {advice}")
            identity = identity if problem else recorded
        elif _is_imported(folder):
            raise CheckpointError(
                f"{folder}: holds a published {what} that was imported, which --overwrite would not replace; give "
                f"another --out{f': {command} --out FOLDER' if command else ''}"
            )
        elif (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder}: holds a checkpoint that was not trained here; {advice}")
        else:
            check_free(folder, result)
        return cls(folder=folder, identity=identity, result=result)

    def begin(self) -> None:
        """Write down whose folder it is, once nothing refuses the run any more.

        Also in place of a run that has saved nothing; raises CheckpointError where that one trains right now.
        """
        if not (self.folder / RUN).is_file():
            (self.folder / self.result).unlink(missing_ok=True)  # another's would say that this run is finished
            write_json(self.folder / RUN, self.identity)
        elif self._is_of_another:
            with held(self.folder, BUSY.format(self.folder)):
                if not nothing_saved(self.folder):
                    raise CheckpointError(TAKEN.format(self.folder))
                write_json(self.folder / RUN, self.identity)

    @property
    def _is_of_another(self) -> bool:
        """True where the folder says that it is another run's."""
        return (self.folder / RUN).is_file() and bool(
            difference(read_table(self.folder / RUN, remedy=COPY), self.identity)
        )

    @property
    def finished(self) -> bool:
        """True where the checkpoint and its result, which is written last, are there.

        Raises CheckpointError where the checkpoint has been damaged or altered since.
        """
        if not ((self.folder / self.result).is_file() and is_complete(self.folder)):
            return False
        check_weights(self.folder, load_config(self.folder))
        return True

    @property
    def digest(self) -> str:
        """sha256 of the identity: what ties a state file to its run."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def save(
        self,
        parts: Mapping[str, Mapping[str, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
        counters: Mapping[str, float],
    ) -> None:
        """Write the state in one rename: tensors by part and name, with the counters in the file's own header.

        Raises CheckpointError where another run took the folder before there was a state.
        """
        if self._is_of_another:
            raise CheckpointError(TAKEN.format(self.folder))
        tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in entry.items()}
        metadata = {"run": self.digest, **{name: repr(number) for name, number in counters.items()}}
        with replacing_file(self.folder / STATE) as temporary:
            write_tensors(temporary, tensors, metadata)

    def restore(self, optimizer: torch.optim.Optimizer) -> SavedState | None:
        """The saved state, if there is one, with that of `optimizer` loaded into it."""
        from safetensors import SafetensorError, safe_open

        if not (self.folder / STATE).is_file():
            return None
        check_opens(self.folder / STATE)
        try:
            with safe_open(self.folder / STATE, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / STATE}: damaged: {error}; remove it to start anew") from None
        if metadata.pop("run", None) != self.digest:
            raise CheckpointError(f"{self.folder / STATE}: belongs to another run; remove it to start anew")
        saved = SavedState(tensors=tensors, counters={name: float(number) for name, number in metadata.items()})
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in saved.part("optimizer").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return saved

    def forget_state(self) -> None:
        """Remove the state of a run that is finished."""
        (self.folder / STATE).unlink(missing_ok=True)


def _command(identity: Mapping[str, Any]) -> str:
    """What trains the tokenizer of this identity, and no other."""
    return f"zoo tokenizer train {_modality(identity)} --data DATA"


def _modality(identity: Mapping[str, Any]) -> str:
    """Whose tokenizer has this identity."""
    model = identity.get("model")
    name = model.get("modality") if isinstance(model, Mapping) else None
    return str(name or "NAME")


def nothing_saved(folder: Path) -> bool:
    """True for a folder with what a run leaves that is killed before its first state, and nothing else."""
    temporary = {*folder.glob(".*.tmp"), *folder.glob(".*.tmp.d")}
    return {path.name for path in set(folder.iterdir()) - temporary} <= {RUN, METRICS, TENSORBOARD}


def _is_imported(folder: Path) -> bool:
    """True for a folder with a checkpoint that 4M published."""
    return (folder / CONFIG).is_file() and ORIGIN in read_table(folder / CONFIG)


def check_free(folder: Path, result: str = EVALUATION) -> None:
    """Raise CheckpointError where a folder that is no run's holds what a run with this `result` would replace, or data.

    Figures and pictures of an evaluation may be there, such as those of a tokenizer that came from the hub.
    """
    for name in sorted({CARD, METRICS, result} - {EVALUATION}):
        if (folder / name).exists():
            raise CheckpointError(f"{folder}: holds {name}, no run's, which would be replaced; give another --out")
    for name in (DATASET, STORE):
        if (folder / name).exists():
            raise CheckpointError(f"{folder}: holds data ({name}); give another --out")


def _as_recorded(before: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without what the record of a run of an older version says nothing of."""
    data, past = identity["data"], before.get("data")
    known = past.get("provenance") if isinstance(past, Mapping) else None
    if not isinstance(known, Mapping):
        return dict(identity)
    return {**identity, "data": {**data, "provenance": as_recorded(known, data["provenance"], *ADDED_PROVENANCE)}}


def check_replaceable(folder: Path, result: str = EVALUATION) -> None:
    """Raise CheckpointError for a folder that holds anything else than a run or a checkpoint: it would be lost."""
    found = sorted(set(folder.glob("*")) - set(folder.glob(".*.tmp")) - set(folder.glob(".*.tmp.d")))
    for path in found:
        inner = list(path.iterdir()) if path.is_dir() else []
        of_evaluations = _of_evaluation(path) or (path.is_dir() and all(map(_of_evaluation, inner)))
        if path.name not in OWN | {result} and not of_evaluations:
            raise CheckpointError(
                f"{folder}: holds {path.name}, which is no part of a run and would be removed; move it away, or give "
                "another folder"
            )
    if found and not {RUN, STATE, CONFIG, WEIGHTS} & {path.name for path in found}:
        raise CheckpointError(
            f"{folder}: holds neither a run nor a checkpoint, and cannot be replaced; give another folder"
        )


def _of_evaluation(path: Path) -> bool:
    """True for figures and pictures that an evaluation left, also for those of `of_split`."""
    split = path.name.removesuffix(Path(EVALUATION).suffix).partition("-")[2]
    figures = of_split(EVALUATION, split)
    of_part = path.name in (figures, of_split(PICTURES, split)) and (path.parent / figures).is_file()
    return path.name in (EVALUATION, PICTURES) or of_part


@contextlib.contextmanager
def replacing_run(folder: Path, overwrite: bool, result: str = EVALUATION) -> Iterator[None]:
    """With `overwrite`, set `folder` aside while the block trains in its place; remove it when that is done.

    It waits beside it as `.NAME.replaced`, and comes back where the block fails before it has saved a state. What a
    killed run left there comes back now, also without `overwrite`; with a state to go on from it waits until the block
    is done, unless `overwrite` begins that anew, too. Raises CheckpointError where a process that is alive replaces the
    folder, or anything would be removed that is not of a run with this `result`.
    """
    busy = f"{folder}: another run replaces it right now; wait for its end"
    place = folder.resolve()
    aside = place.with_name(f".{place.name}.replaced")
    if aside.is_dir():
        with held(aside, busy):
            if is_complete(place):
                remove_folder(aside)
            elif overwrite or not (place / STATE).is_file():
                check_replaceable(place, result)
                _put_back(aside, place)
    old = place if overwrite else aside
    if not old.is_dir():
        yield
        return
    if overwrite and Path.cwd().is_relative_to(place):
        raise CheckpointError(f"{folder}: is where the command runs, and cannot be replaced; run it somewhere else")
    with held(old, busy):
        if overwrite:
            check_replaceable(place, result)
            os.replace(place, aside)
        try:
            place.mkdir(exist_ok=True)
            yield
        except BaseException:
            if not (place / STATE).is_file() and not is_complete(place):
                _put_back(aside, place)
            raise
        remove_folder(aside)


def _put_back(aside: Path, place: Path) -> None:
    remove_folder(place)
    os.replace(aside, place)
