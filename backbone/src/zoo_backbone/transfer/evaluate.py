"""Scores and predictions of a probe on stored samples."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.tar import key_problem
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import read_json, replacing_file, write_json
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.run_folder import locked
from zoo_backbone.gallery import shown, write_sheet
from zoo_backbone.transfer.data import Samples, Stores
from zoo_backbone.transfer.probe import Probe

BATCH = 32
TABLE, PICTURE, WRITTEN = "predictions.csv", "predictions.png", ".predictions.json"
SHOWN = 100
"""Maximum number of samples in the picture."""


def predict(probe: Probe, samples: Samples, places: Sequence[int]) -> list[Any]:
    """Return the predictions for the samples at these places, with a progress bar."""
    predicted: list[Any] = []
    with progress_bar("predict", len(places)) as advance:
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            predicted += probe.predict(samples.tokens(batch))
            advance(len(batch))
    return predicted


def score(probe: Probe, samples: Samples) -> list[dict[str, Any]]:
    """Return the "metrics" of metrics.json for all samples. Raises DataError for a label of another kind."""
    task, target = probe.task, probe.target
    task.check_labels(target, samples.labels)
    labels = list(samples.labels)
    scores = task.score(target, predict(probe, samples, range(len(samples))), labels)
    baseline = task.score(target, [probe.constant_baseline] * len(labels), labels)
    return [
        {"name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better,
         "meaning": metric.meaning, "score": _finite(scores[metric.name]), "baseline": _finite(baseline[metric.name])}
        for metric in task.metrics(target)
    ]  # fmt: skip


def unseen_classes(probe: Probe, labels: Iterable[Any]) -> dict[str, int]:
    """Return the number of labels of each class without a training label; empty for other kinds of targets."""
    if probe.target.kind != "classes":
        return {}
    counts = Counter(map(str, labels))
    return {name: counts[name] for name in sorted(counts.keys() - set(probe.config["train_classes"]))}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def predict_to_folder(
    probe: Probe, stores: Stores, out: Path, *, split: str, samples: int, keys: Sequence[str] | None = None
) -> list[str]:
    """Predict samples of a split (`keys`, or `samples` evenly spread ones), write files, and return the keys.

    Writes OUT/<key>.<ext> for values of a modality, else OUT/predictions.csv; and OUT/predictions.png with inputs,
    prediction and label. Files of an earlier prediction in OUT are removed at the end. Raises DataError for a key
    without inputs or label, FolderError if another process writes OUT.
    """
    task, target = probe.task, probe.target
    found = stores.samples(task, split)
    places = spread(len(found), samples)
    if keys is not None:
        number = {key: place for place, key in enumerate(found.keys)}
        if missing := [key for key in keys if key not in number]:
            raise DataError(
                f"--keys {missing[0]}: no such sample with inputs and label in the split {split}; keys look like "
                f"{found.keys[0]!r}"
            )
        places = [number[key] for key in keys]
    chosen = [found.keys[place] for place in places]
    whole = None if target.kind == "classes" else task.whole
    for key in chosen if whole is not None else ():
        if problem := key_problem(key):
            raise DataError(f"{stores.tokens / split}: sample {key!r}: {problem}; cannot be a file name")
    predicted = predict(probe, found, places)
    truth = [task.truth(target, found.labels[place]) for place in places]
    files: dict[str, bytes] = {}
    if whole is not None:
        for key, value in zip(chosen, predicted, strict=True):
            data, extension = whole.write(value)
            files[f"{key}.{extension}"] = data
    else:
        table = io.StringIO()
        csv.writer(table).writerows([("key", "predicted", "true"), *zip(chosen, predicted, truth, strict=True)])
        files[TABLE] = table.getvalue().encode()
    shown_inputs = [] if stores.values is None else [n for n in probe.inputs if n in stores.values.modalities(split)]
    rows = []
    for place in spread(len(chosen), SHOWN):
        cells = [shown(stores.values, probe.zoo[name], split, chosen[place]) for name in shown_inputs if stores.values]
        rows.append([*cells, task.render(target, predicted[place]), task.render(target, truth[place])])
    with locked(out):
        earlier = set(read_json(out / WRITTEN)) if (out / WRITTEN).is_file() else set()
        write_json(out / WRITTEN, sorted(earlier | files.keys() | {PICTURE}))  # complete even after a kill
        for name, data in files.items():
            with replacing_file(out / name) as temporary:
                temporary.write_bytes(data)
        written = set(files)
        if write_sheet(out / PICTURE, [*shown_inputs, f"{task.title} predicted", f"true {task.title}"], rows):
            written.add(PICTURE)
        for name in sorted((earlier | {PICTURE}) - written):
            if key_problem(name) is None:
                (out / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty
                    for folder in list(Path(name).parents)[:-1]:
                        (out / folder).rmdir()
        write_json(out / WRITTEN, sorted(written))
    return chosen
