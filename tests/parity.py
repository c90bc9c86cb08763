"""Compare the outputs of imported 4M checkpoints with the outputs of the published code, number by number.

    python tests/parity.py FOLDER...

A folder holds config.json, manifest.json, notes.json, inputs.safetensors, expected.safetensors and, where the manifest
says `stored`, stored.safetensors. Weights and inputs are generated from the manifest, written as a published
checkpoint, imported through the public import, and run. Prints JSON. The exit code is 1 if any output differs or cannot
be checked.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_backbone import backbone_results
from safetensors.torch import load_file
from torch import Tensor

from tokenizers_zoo.files.published import PublishedCheckpoint, read_published, write_published

TOLERANCE = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest allowed difference of a float, relative to the key's largest magnitude, by stored dtype."""
TIE = 1e-4
"""An id may differ if the margin between the two best is below this."""


def drawn(key: str, shape: list[int]) -> Tensor:
    """Return standard normal numbers seeded by a name."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32))


def made_tensor(key: str, entry: dict[str, Any], stored_tensors: dict[str, Tensor]) -> Tensor:
    """Return the weight that a manifest entry describes."""
    return filled(key, entry["shape"], entry["fill"], stored_tensors).to(getattr(torch, entry["dtype"]))


def filled(key: str, shape: list[int], fill: str, stored_tensors: dict[str, Tensor]) -> Tensor:
    """Return a weight in float32, before it is cast."""
    if fill == "stored":
        return stored_tensors[key]
    if fill == "zeros":
        return torch.zeros(shape)
    if fill not in ("normal", "recipe", "recipe_l2norm"):
        raise ValueError(f"{key}: fill {fill!r}: expected recipe, normal, recipe_l2norm, zeros or stored")
    tensor = drawn(key, shape)
    if fill == "normal":
        return tensor
    if len(shape) >= 2:
        tensor = torch.from_numpy(tensor.numpy() / np.float32(np.prod(shape[1:]) ** 0.5))
    elif len(shape) == 1:
        tensor = tensor * 0.02 + float(key.endswith("weight"))
    if fill == "recipe_l2norm":
        tensor = tensor / tensor.norm(dim=-1, keepdim=True)
    return tensor


def published_folder(fixture: Path, folder: Path) -> PublishedCheckpoint:
    """Write the checkpoint that a fixture describes, and read it like any published checkpoint."""
    manifest = json.loads((fixture / "manifest.json").read_text())
    stored_tensors = load_file(fixture / "stored.safetensors") if (fixture / "stored.safetensors").is_file() else {}
    tensors = {key: made_tensor(key, entry, stored_tensors) for key, entry in manifest.items()}
    config = json.loads((fixture / "config.json").read_text())
    write_published(PublishedCheckpoint(config=config, tensors=tensors), folder)
    return read_published(folder)


def fixture_inputs(fixture: Path) -> dict[str, Tensor]:
    """Return the stored and the generated inputs of a fixture."""
    notes = json.loads((fixture / "notes.json").read_text())
    inputs = load_file(fixture / "inputs.safetensors")
    inputs.pop("none", None)
    for name, shape in notes.get("recipe_inputs", {}).items():
        key = f"{name}/tensor" if notes["kind"] == "backbone" else name
        inputs[key] = drawn(f"input:{fixture.name}/{name}", shape)
    return inputs


def as_stored(decoded: Tensor, checkpoint: PublishedCheckpoint, expected: Tensor) -> Tensor:
    """Return the stored part of a decoder's output: strided class logits, or three channels of a large map."""
    if checkpoint.config.get("n_labels"):
        return decoded[:, ::16, ::4, ::4]
    return decoded[:, :3] if expected.shape[1] == 3 else decoded


def compare(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return the difference of each expected key and whether it is within the tolerance."""
    report: dict[str, dict[str, Any]] = {}
    for key, target in sorted(expected.items()):
        if key not in actual:
            report[key] = {"ok": False, "problem": "not computed"}
            continue
        output = actual[key]
        if output.shape != target.shape:
            report[key] = {"ok": False, "problem": f"{list(output.shape)}, expected {list(target.shape)}"}
        elif not target.numel():
            report[key] = {"ok": True}
        elif target.is_floating_point():
            difference = (output.to(target.dtype).double() - target.double()).abs()
            scale = float(target.double().abs().max())
            report[key] = {
                "max": float(difference.max()), "mean": float(difference.mean()), "scale": scale,
                "ok": bool(difference.max() <= TOLERANCE[target.dtype] * scale),
            }  # fmt: skip
        else:
            same = output.long() == target.long()
            margin = actual.get(margin_of(key))
            clear = torch.ones_like(same) if margin is None else margin > TIE
            report[key] = {"equal": float(same.double().mean()), "ok": bool((same | ~clear).all())}
    return report


def margin_of(key: str) -> str:
    """Return the key that stores the margins of another key's ids."""
    head, _, last = key.rpartition("/")
    return f"{head}/margin" if last == "argmax" else f"{key}/margin"


def check(fixture: Path) -> dict[str, Any]:
    """Check one folder and return the report."""
    expected = load_file(fixture / "expected.safetensors")
    if not expected:
        raise ValueError(f"{fixture}: expected.safetensors has no keys")
    with tempfile.TemporaryDirectory() as work:
        checkpoint = published_folder(fixture, Path(work) / fixture.name)
        inputs = fixture_inputs(fixture)
        if checkpoint.is_backbone:
            results = backbone_results(checkpoint, inputs, Path(work))
        else:
            from parity_tokenizers import tokenizer_results

            results = tokenizer_results(checkpoint, inputs, Path(work))
    if "decoded" in expected and "decoded" in results:
        results["decoded"] = as_stored(results["decoded"], checkpoint, expected["decoded"])
    keys = compare(expected, results)
    return {"ok": all(entry["ok"] for entry in keys.values()), "keys": keys}


def checked(fixture: Path) -> dict[str, Any]:
    """Check one folder; an exception becomes part of the report, so that the remaining folders are still checked."""
    try:
        return check(fixture)
    except Exception as error:
        return {"ok": False, "problem": f"{type(error).__name__}: {error}", "keys": {}}


def main(folders: list[str]) -> int:
    """Check all folders and print JSON; return 1 if any differs."""
    report = {folder: checked(Path(folder).resolve()) for folder in folders}
    print(json.dumps(report, indent=1))
    return 0 if report and all(entry["ok"] for entry in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
