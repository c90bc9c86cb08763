"""Imported 4M checkpoints against the numbers of the public code, and that the comparison sees a difference."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from parity import check, compare, main, published_folder
from parity_tokenizers import NEUTRAL, imported, tokenizer_results
from published_tokenizers import MEMCODES, published

GOLDEN = Path(__file__).parent / "golden" / "ml4m"
QUICK = ("fm7", "fm7_gelu_bias", "fm21", "tok_human_poses")
ALL = sorted(path.parent.name for path in GOLDEN.glob("*/manifest.json"))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_parity_with_the_public_code(name: str) -> None:
    report = check(GOLDEN / name)
    assert report["ok"], {key: entry for key, entry in report["keys"].items() if not entry["ok"]}
    assert len(report["keys"]) == (88 if name == "fm21" else 38 if name.startswith("fm") else 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("tok_")])
def test_an_installed_modality_imports_and_exports_it(name: str, tmp_path: Path) -> None:
    checkpoint = published_folder(GOLDEN / name, tmp_path / name)
    handle = imported(checkpoint, tmp_path / "own")
    assert handle.name != NEUTRAL
    exported = handle.export_published()
    assert exported.config == checkpoint.config and exported.tensors.keys() == checkpoint.tensors.keys()
    for key, tensor in checkpoint.tensors.items():
        assert exported.tensors[key].dtype == tensor.dtype and torch.equal(exported.tensors[key], tensor), key


def test_a_difference_is_seen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x, changed = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.0001])
    assert compare({"x": x}, {"x": x + 1e-6})["x"]["ok"] and not compare({"x": x}, {"x": changed})["x"]["ok"]
    half = x.half()
    assert compare({"x": half}, {"x": changed})["x"]["ok"] and not compare({"x": half}, {"x": x * 1.01})["x"]["ok"]
    ids, other_ids, margin = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]), torch.tensor([1.0, 1.0, 5e-5])
    assert compare({"a/argmax": ids}, {"a/argmax": other_ids, "a/margin": margin})["a/argmax"]["ok"]
    assert not compare({"a/argmax": ids}, {"a/argmax": other_ids, "a/margin": margin * 10})["a/argmax"]["ok"]
    assert not compare({"tokens": ids}, {"tokens": other_ids})["tokens"]["ok"]
    assert not compare({"x": x}, {})["x"]["ok"] and not compare({"x": x}, {"x": x[:1]})["x"]["ok"]
    assert compare({"x": x[:0]}, {"x": x[:0]})["x"]["ok"] and not compare({"x": x[:0]}, {"x": x})["x"]["ok"]
    assert not compare({"x": x}, {"x": x * math.nan})["x"]["ok"]
    damaged_folder = shutil.copytree(GOLDEN / "fm7", tmp_path / "fm7")
    manifest = json.loads((damaged_folder / "manifest.json").read_text())
    manifest["decoder_embeddings.caption.to_logits.weight"]["fill"] = "zeros"
    (damaged_folder / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(damaged_folder)]) == 1
    report = json.loads(capsys.readouterr().out)[str(damaged_folder)]
    different = {key for key, entry in report["keys"].items() if not entry["ok"]}
    assert different and all("caption" in key or key == "loss/mod_mean" for key in different)
    assert main([]) == 1


def test_margins_of_tokens_are_those_of_the_codes(tmp_path: Path) -> None:
    checkpoint = published(**MEMCODES, n_channels=207)
    inputs = {"x": torch.randn(3, 207, 1, 1, generator=torch.Generator().manual_seed(0))}
    results = tokenizer_results(checkpoint, inputs, tmp_path, ("human_poses",))
    assert results["tokens/margin"].shape == results["tokens"].shape == (3, 4, 1, 1)
    latent = results["latent"][:, :, 0, 0].unflatten(1, (4, 4))
    keys = checkpoint.tensors["quantize.codes"] @ checkpoint.tensors["quantize.to_k.weight"]
    scores = torch.einsum("bhd,hcd->bhc", latent, keys)
    best = scores.topk(2).values
    expected = (best[..., 0] - best[..., 1]) / scores.abs().amax(-1)
    torch.testing.assert_close(results["tokens/margin"][:, :, 0, 0], expected, rtol=1e-3, atol=1e-6)
