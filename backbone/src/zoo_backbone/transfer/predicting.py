"""What a probe says of stored samples, as files: answers in the modality's own format, or a table, and a picture."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import key_problem
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import held, replacing_file
from zoo_backbone.evaluation.gallery import shown, write_sheet
from zoo_backbone.transfer.probe import Probe
from zoo_backbone.transfer.samples import Places
from zoo_backbone.transfer.scores import predictions

TABLE, PICTURE, WRITTEN = "predictions.csv", "predictions.png", ".predicted.jsonl"
BUSY = "{}: another prediction writes it right now; wait for its end, or give another --out"
PICTURED = 100
"""Samples, at most, in the picture."""


def predict_to_folder(
    probe: Probe, places: Places, out: Path, *, split: str, samples: int, keys: Sequence[str] | None = None
) -> list[str]:
    """Predict stored samples: those of `keys`, or `samples` of them spread over the split; gives their keys.

    Writes OUT/<key>.<ext>, a value of the modality, or OUT/predictions.csv with key, predicted, true; and
    OUT/predictions.png: what is given, predicted, true, of more than PICTURED samples of so many that are spread over
    them. What earlier predictions wrote into OUT and this one does not is removed then. Raises DataError for a key
    without inputs or label, and CheckpointError where another prediction writes OUT.
    """
    part = places.part(probe.task, split)
    chosen = spread(len(part), samples)
    if keys is not None:
        number = {key: place for place, key in enumerate(part.keys)}
        if missing := [key for key in keys if key not in number]:
            raise DataError(f"--keys {missing[0]}: no such sample with inputs and a label in the split {split}; keys "
                            f"there are like {part.keys[0]!r}")  # fmt: skip
        chosen = [number[key] for key in keys]
    found = [part.keys[place] for place in chosen]
    whole = None if probe.kind.kind == "classes" else probe.task.whole
    for key in found if whole is not None else ():
        if problem := key_problem(key):
            raise DataError(f"{places.tokens / split}: sample {key!r}: {problem}; no file can be written for it")
    answers = predictions(probe, part, chosen)
    truth = [probe.task.truth(probe.kind, part.labels[place]) for place in chosen]
    of = spread(len(found), PICTURED)
    pictured = [[listed[place] for place in of] for listed in (found, answers, truth)]
    headers, rows = picture_of(probe, places.store, split, *pictured)  # before anything is written
    out.mkdir(parents=True, exist_ok=True)
    with held(out, BUSY.format(out)):
        written = Written(out)
        if whole is not None:
            for key, answer in zip(found, answers, strict=True):
                data, extension = whole.write(answer)
                with replacing_file(out / f"{key}.{extension}") as temporary:
                    temporary.write_bytes(data)
                written.add(f"{key}.{extension}")
        else:
            write_table(out / TABLE, found, answers, truth)
            written.add(TABLE)
        if write_sheet(out / PICTURE, headers, rows):
            written.add(PICTURE)
        else:
            (out / PICTURE).unlink(missing_ok=True)  # that of an earlier version's prediction is not in the list
        written.end()
    return found


class Written:
    """OUT/.predicted.jsonl: a line for each file below OUT that the last prediction wrote, and killed ones after it."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / WRITTEN
        self.earlier = _listed(self.path)
        self.files: set[str] = set()

    def add(self, file: str) -> None:
        """This prediction wrote a file."""
        self.files.add(file)
        with open(self.path, "a", encoding="utf-8") as lines:
            lines.write(f"\n{json.dumps(file)}")  # apart from a line that a kill cut off

    def end(self) -> None:
        """All are written: remove those of earlier predictions."""
        for file in sorted(self.earlier - self.files):
            (self.out / file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something
                for folder in list(Path(file).parents)[:-1]:
                    (self.out / folder).rmdir()
        with replacing_file(self.path) as temporary:
            temporary.write_text("\n".join(map(json.dumps, sorted(self.files))) + "\n", encoding="utf-8")


def _listed(path: Path) -> set[str]:
    """The files in a list, which may not be there; without lines that a kill cut off."""
    found = set[str]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.add(json.loads(line))
    return {file for file in found if key_problem(file) is None}


def write_table(path: Path, keys: Sequence[str], answers: Sequence[Any], truth: Sequence[Any]) -> None:
    """key, predicted, true."""
    with replacing_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "predicted", "true"))
        writer.writerows(zip(keys, answers, truth, strict=True))


def picture_of(
    probe: Probe, values: ValueStore | None, split: str, keys: Sequence[str], answers: Sequence[Any],
    truth: Sequence[Any],
) -> tuple[list[str], list[list[Any]]]:  # fmt: skip
    """Headers, and a row per sample: what is given where its values are there, predicted, true."""
    given = [] if values is None else [name for name in probe.given if name in values.modalities(split)]
    headers = [*given, f"{probe.task.title} predicted", f"true {probe.task.title}"]
    rows = []
    for key, answer, true in zip(keys, answers, truth, strict=True):
        inputs = [shown(values, probe.zoo[name], split, key) for name in given] if values is not None else []
        rows.append([*inputs, probe.task.render(probe.kind, answer), probe.task.render(probe.kind, true)])
    return headers, rows
