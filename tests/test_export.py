"""`zoo export-onnx`: tokenizers and encoders for other runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_world import the_world
from torch import nn

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.testing.subject import Subject
from tokenizers_zoo.tokenizers import export as exporting
from tokenizers_zoo.tokenizers.export import (
    ExportError,
    Network,
    Port,
    example_values,
    export_networks,
    export_tokenizer,
    run_export,
)
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig
from tokenizers_zoo.tokenizers.quantizers.quantizer import ADAPTERS, Quantizer
from zoo_backbone import FourMEncoder
from zoo_backbone.use.export import export_encoder

pytest.importorskip("onnxruntime")
FORMATS = [("onnx", ".onnx"), ("torch", ".pt2")]
SMALL = {"zoo": {"image_size": 16, "patch_size": 8}}
FAMILIES = ["depth", "semseg", "canny", "rgb_patches", "clip", "dinov2_global", "imu", "video"]
"""Continuous, class ids, binary, patches, feature maps, vectors, series, clips."""
SIMILAR = ["semseg", "canny", "clip", "dinov2_global"]
SAME_ADAPTER = ["bsq", "product_vq", "grouped_residual_vq"]
"""Kinds of quantizers whose adapter another kind has, too."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a modality with a small trained tokenizer."""

    def of(name: str, **table: Any) -> Any:
        zoo = Zoo.from_tables({**SMALL, "modalities": {name: {"tokenizer": table}} if table else {}})
        return Subject(zoo=zoo, name=name, workdir=tmp_path_factory.mktemp(name)).trained

    return of


@pytest.mark.parametrize(
    ("name", "format", "ending"),
    [
        *(pytest.param(name, *FORMATS[0], marks=[pytest.mark.slow] if name in SIMILAR else []) for name in FAMILIES),
        ("clip", *FORMATS[1]),
    ],
)
def test_exported_tokenizers_of_all_families_give_the_same_outputs(
    name: str, format: Any, ending: str, trained: Callable[..., Any], tmp_path: Path
) -> None:
    """Batches of 5, which is neither a traced nor a compared size."""
    handle = trained(name)
    record = export_tokenizer(handle, tmp_path / "out", format)
    assert read_table(tmp_path / "out" / "export.json") == json.loads(json.dumps(record))
    assert record["fingerprint"] == handle.fingerprint and not record["skipped"]
    port = Port(**record["files"][f"encoder{ending}"]["inputs"][0])
    values = example_values(port, 5)
    (tokens,) = run_export(tmp_path / "out" / f"encoder{ending}", {"values": values.numpy()})
    expected = np.asarray(handle.encode(values))
    if handle.spec.continuous:
        np.testing.assert_allclose(tokens, expected, atol=1e-5)
    else:
        assert tokens.dtype == np.int64 and (tokens != expected).mean() < 0.05
    (back,) = run_export(tmp_path / "out" / f"decoder{ending}", {"tokens": expected})
    decoded = np.asarray(handle.decode(torch.from_numpy(expected)))
    np.testing.assert_allclose(back, decoded, atol=1e-3 * max(1, np.ptp(decoded)))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SAME_ADAPTER else []) for kind in ADAPTERS]
)
def test_exported_quantizers_give_the_same_tokens(kind: Any, tmp_path: Path) -> None:
    class Both(nn.Module):
        def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (tokens := quantizer.encode(latents)), quantizer.decode(tokens)

    torch.manual_seed(0)
    size = {} if "fsq" in kind else {"codebook_size": 16}  # few codes, so that none are equal
    quantizer, latents = Quantizer(QuantizerConfig(kind=kind, **size), 16), torch.randn(8, 4, 5, 16)
    quantizer(latents)  # initialises codebooks
    quantizer.eval()
    ports = [Port(name=name, shape=(), dtype="") for name in ("latents", "tokens", "codes")]
    network = Network(
        name="both", module=Both(), examples=(latents,), inputs=tuple(ports[:1]), outputs=tuple(ports[1:])
    )
    record = export_networks([network], tmp_path / "out", "onnx", {})
    assert record["files"]["both.onnx"]["largest_difference"]["tokens"] == 0


def test_a_decoder_that_cannot_be_traced_is_skipped(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding depends on values; the encoder is exported alone."""
    handle = trained("canny")
    codec = handle.tokenizer.codec
    from_network = codec.from_network
    monkeypatch.setattr(
        codec, "from_network", lambda outputs: from_network(outputs) if outputs.max() > 0 else outputs[:1]
    )
    record = export_tokenizer(handle, tmp_path / "out", "torch")
    assert set(record["files"]) == {"encoder.pt2"} and set(record["skipped"]) == {"decoder"}
    monkeypatch.setattr(codec, "to_network", lambda values: values if values.max() > 0 else values[:1])
    with pytest.raises(ExportError, match="encoder"):
        export_tokenizer(handle, tmp_path / "other", "torch")


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_an_export_that_cannot_be_written_is_an_error(format: str) -> None:
    """An error of the disk is not an error of the tracer. PyTorch's own writer would end the process."""
    world = the_world().put_back()
    before = world.files()
    world(f"export-onnx depth --out networks --format {format}", largest=20_000).refused("networks: ", "larger")
    assert world.files() == before


@pytest.mark.parametrize("name", ["canny", "rgb_patches"])
def test_an_export_that_computes_something_else_is_not_kept(
    name: str, trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, and numbers."""

    def shifted(path: Path, inputs: Any) -> Any:
        return [output + 1 for output in run_export(path, inputs)]

    monkeypatch.setattr(exporting, "run_export", shifted)
    with pytest.raises(ExportError, match=r"encoder\.pt2: tokens"):
        export_tokenizer(trained(name), tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("format", "ending"), FORMATS)
def test_an_exported_backbone_encoder_gives_the_same_features(format: Any, ending: str, tmp_path: Path) -> None:
    run = the_world().put_back().folder / "run"
    encoder = FourMEncoder.from_run(run)
    record = export_encoder(encoder, run, ["rgb_patches", "depth", "caption"], tmp_path / "out", format)
    (file,) = record["files"].values()
    inputs = {port["name"]: example_values(Port(**port), 5) for port in file["inputs"]}
    assert list(inputs) == ["rgb_patches", "depth", "caption", "caption_used"]
    lengths = torch.tensor([0, 1, 3, 5, 9])
    inputs["caption_used"] = torch.arange(inputs["caption"].shape[1]) < lengths[:, None]
    features, embedding = run_export(
        tmp_path / "out" / f"encoder{ending}", {name: value.numpy() for name, value in inputs.items()}
    )
    captions = [row[:count].numpy() for row, count in zip(inputs["caption"], lengths, strict=True)]
    tokens = {"rgb_patches": inputs["rgb_patches"], "depth": inputs["depth"], "caption": captions}
    expected = encoder(*encoder.prepare(tokens)).numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    assert features.shape == (5, sum(encoder.layout.spec(name).layout.length for name in tokens), encoder.num_features)


def test_export_onnx_exports_tokenizers_and_encoders(
    run_zoo: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = the_world().put_back().folder
    monkeypatch.chdir(folder)

    def export(words: str) -> str:
        code, printed, complaint = run_zoo("export-onnx", *words.split())
        assert code == 0, complaint
        return printed

    printed = export("depth --out onnx")
    assert "encoder.onnx" in printed and "of ids" in printed
    assert "float32 (batch, 32)" in export("run --inputs depth --out encoder")
    assert export("run --inputs rgb_patches --out encoder --format torch --overwrite")
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    for words, *parts in (
        ("run --inputs depth --out encoder", "--overwrite"),
        ("run --out encoder --overwrite", "--inputs", "rgb_patches"),
        ("run --inputs dept --out new", "dept", "depth"),
        ("caption --out new", "caption"),
        ("detph --out new", "detph", "depth"),
        ("depth --inputs caption --out new", "--inputs", "RUN"),
        ("depth --out mine --overwrite", "mine"),
    ):
        code, _, complaint = run_zoo("export-onnx", *words.split())
        assert code in (1, 2) and all(part in complaint.splitlines()[-1] for part in parts), complaint
    assert not (folder / "new").exists()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript.*pip install 'tokenizers-zoo\[onnx\]'"):
        exporting.check_library("onnx")
