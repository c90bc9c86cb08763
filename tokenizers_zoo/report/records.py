"""Shapes of the records that pages and comparisons read; see `tokenizers_zoo.io.shape_error`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import REMEDY, read_table

NUMBER, NAMES = (float, None), [str]
MODEL = {
    "specs": [{"name": str, "layout": dict, "vocab_size": int}], "fingerprints": {str: str}, "model?": dict,
    "train?": {"steps?": int, "batch_size?": int}, "training_seconds?": float,
    "start?": ({"folder": str, "added": NAMES}, None), "weights_sha256?": str,
}  # fmt: skip
"""config.json of a backbone."""
METRIC = {"name": str, "unit": str, "higher_is_better": bool, "meaning": str}
PAIR = {
    "inputs": NAMES, "target": str, "samples": int, "skill": NUMBER, "score": {str: NUMBER},
    "constant_baseline": {str: NUMBER}, "reconstruction": {str: NUMBER}, "resampled_skill": [NUMBER],
}  # fmt: skip
GALLERY = {
    "inputs?": NAMES, "query?": str, "target": str, "picture": (str, None), "columns": NAMES,
    "rows": [{"key": str, "cells": [(str, None)], "hits?": NAMES}],
}  # fmt: skip
SCORES = {
    "identity": {"weights?": str, "settings": dict, "values?": dict, "decoders?": dict},
    "pairs": [PAIR], "galleries": [GALLERY], "modalities?": {str: {"metrics": [METRIC]}}, "skipped?": {str: str},
    "cross_entropy?": {"modalities": {str: {"nats": float, "uniform": float}}}, "unreadable?": {str: dict},
    "seconds?": float,
}  # fmt: skip
"""evaluation.json of a backbone."""
CODES = {
    "size?": int, "usage?": NUMBER, "perplexity?": NUMBER, "codebooks?": float, "least_usage?": float,
}  # fmt: skip
TOKENIZER = {"metrics?": {str: NUMBER}, "samples?": int, "split?": str, "codebook?": CODES, **CODES}
"""evaluation.json of a tokenizer."""
CHANGE = {"after": NUMBER, "before?": NUMBER, "uniform?": NUMBER}
GROWTH = {
    "losses": {str: CHANGE}, "new": {str: CHANGE}, "skills": [{"inputs": NAMES, "target": str, **CHANGE}],
}  # fmt: skip
"""growth.json of a grown backbone."""
RECALL = {"recall": {"1": float, "5": float, "10": float}, "median_rank": float}
RETRIEVAL = {
    "identity": {"fingerprint": str, "split": str, "embedding": {"via": str, "space": str}},
    "pairs": [{"query": str, "target": str, "samples": int, "chance": RECALL, **RECALL}],
    "mean": {**RECALL, "chance": RECALL}, "galleries": [GALLERY],
}  # fmt: skip
"""retrieval.json, the result of `zoo retrieve eval`."""
PROBE = {
    "task": {"name": str, "kind": str}, "inputs": NAMES, "head": str, "tuning": str, "seed": int,
    "labels": {"train": int, "validation": int, "test": int}, "settings": dict, "backbone": {"weights_sha256": str},
    "metrics": [{**METRIC, "score": NUMBER, "baseline": NUMBER}],
}  # fmt: skip
"""metrics.json of a probe."""


def read_scores(path: Path) -> dict[str, Any]:
    """Return the evaluation.json of a backbone, with metrics of each target. Raises CheckpointError if damaged."""
    scores = read_table(path, SCORES)
    for pair in scores["pairs"]:
        if not scores.get("modalities", {}).get(pair["target"], {}).get("metrics"):
            raise CheckpointError(f"{path}: damaged: has no metrics of {pair['target']}; {REMEDY}")
    return scores
