"""The encoder of a backbone as an ONNX or torch.export file: tokens to features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.tokenizers.export import CHECKED, Format, Network, Port, example_values, export_networks
from zoo_backbone.learn.encoder import FourMEncoder

USED = "_used"
"""Ending of the name of the mask of a modality of variable length."""


class Features(nn.Module):
    """The encoder with its inputs in a fixed order: tokens of each modality, then their mask if there is one."""

    def __init__(self, encoder: FourMEncoder, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `batch tokens dim` and their mean over the used tokens `batch dim`."""
        tokens: dict[str, Tensor] = {}
        used: dict[str, Tensor] = {}
        tensors = iter(inputs)
        for name in self.names:
            spec = self.encoder.layout.spec(name)
            content = next(tensors)
            tokens[name] = content if spec.continuous else content.flatten(1)
            if spec.layout.variable:
                used[name] = next(tensors)
        features, mask = self.encoder.forward_features(tokens, used)
        return features, self.encoder.forward_head(features, mask)


def export_encoder(
    encoder: FourMEncoder,
    run: Path,
    inputs: Sequence[str],
    out: Path,
    format: Format = "onnx",
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the encoder of the model in `run` for these input modalities; return the record of `export_networks`.

    Sequences have their maximum length, with a mask of used tokens. Raises ConfigError for modalities that the model
    does not read, and the errors of `export_networks`.
    """
    if not inputs or len(set(inputs)) < len(inputs):
        raise ConfigError(f"inputs of an export: expected different modalities, got {', '.join(inputs) or 'none'}")
    encoder.layout.check_inputs(inputs, "export")
    specs = [encoder.layout.spec(name) for name in inputs]
    ports = [port for spec in specs for port in ports_of(encoder, spec)]
    examples = tuple(example_values(port, max(CHECKED)) for port in ports)
    module = Features(encoder.eval(), inputs)
    with torch.no_grad():
        features, embedding = module(*examples)
    outputs = (
        Port(name="features", shape=tuple(features.shape[1:]), dtype="float32", meaning="one vector per token"),
        Port(name="embedding", shape=tuple(embedding.shape[1:]), dtype="float32", meaning="mean over the used tokens"),
    )
    network = Network(name="encoder", module=module, examples=examples, inputs=tuple(ports), outputs=outputs)
    about = {
        "fingerprint": fingerprint(run),
        "modalities": {spec.name: as_dicts(spec.layout) for spec in specs},
        "tokenizers": {name: encoder.model.trained_on.get(name) for name in inputs},
    }
    return export_networks([network], out, format, about, overwrite=overwrite)


def ports_of(encoder: FourMEncoder, spec: ModalitySpec) -> list[Port]:
    """Return the inputs for one modality: its tokens, and a mask if their number varies."""
    layout = spec.layout
    shape = layout.token_shape
    if layout.continuous:
        tokens = Port(name=spec.name, shape=shape, dtype="float32")
    else:
        end = encoder.layout.input_end(spec)
        meaning = f"a sequence below the maximum length ends with id {end}" if end is not None else ""
        tokens = Port(name=spec.name, shape=shape, dtype="int64", low=0, high=spec.vocab_size - 1, meaning=meaning)
    if not layout.variable:
        return [tokens]
    return [
        tokens,
        Port(
            name=spec.name + USED,
            shape=(layout.length,),
            dtype="bool",
            low=0,
            high=1,
            meaning="true for tokens, which come first",
        ),
    ]
