"""What a transfer gives: an encoder and a head that answer one question about samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.registry import Zoo
from zoo_backbone.checkpoint import load_model
from zoo_backbone.codecs import check_codec
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.model import FourM
from zoo_backbone.transfer.config import TransferConfig
from zoo_backbone.transfer.kinds import Kind
from zoo_backbone.transfer.lora import add_lora
from zoo_backbone.transfer.reading import Grid, Head, read
from zoo_backbone.transfer.tasks import Task


class Network(nn.Module):
    """An encoder with a head on it."""

    def __init__(self, encoder: FourMEncoder, head: Head, grid: Grid | None) -> None:
        super().__init__()
        self.encoder, self.head, self.grid = encoder, head, grid

    def read(self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The features that the head takes, and their mask; tokens as `FourMEncoder.prepare` gives them."""
        return read(self.encoder, tokens, used, self.head.reads, self.grid)

    def forward(self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Tensor:
        """The head's outputs."""
        result: Tensor = self.head(*self.read(tokens, used))
        return result


class Probe(nn.Module):
    """A trained transfer: `predict` answers from tokens, `predict_values` from values.

    Answers are as the task's labels are: values of its modality, numbers, or names of classes. `constant` is the best
    single answer to the labels of its training; None where an earlier version did not keep it. `seen` are, of
    classes, those that its training labels had.
    """

    def __init__(
        self, network: Network, task: Task, kind: Kind, given: Sequence[str], zoo: Zoo, trained_on: Mapping[str, str],
        constant: Any = None, seen: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.task, self.kind, self.given = network, task, kind, tuple(given)
        self.zoo, self.trained_on, self.constant, self.seen = zoo, trained_on, constant, tuple(seen)
        self.eval()

    @torch.inference_mode()
    def predict(self, tokens: Mapping[str, Any]) -> list[Any]:
        """Answers to samples of which tokens of all that is given are there, as codecs give them.

        Raises ConfigError where something is missing, InvalidValueError for tokens that do not fit.
        """
        if missing := [name for name in self.given if name not in tokens]:
            raise ConfigError(f"{self.task.text} is predicted from {', '.join(self.given)}; {missing[0]} is missing")
        prepared = self.network.encoder.prepare({name: tokens[name] for name in self.given})
        return self.task.answers(self.kind, self.kind.decode(self.network(*prepared)))

    def predict_values(self, values: Mapping[str, Any]) -> list[Any]:
        """Answers to samples of which values of all that is given are there, by modality.

        Raises DataError where a tokenizer is not that of the backbone's training.
        """
        if missing := [name for name in self.given if name not in values]:
            raise ConfigError(f"{self.task.text} is predicted from {', '.join(self.given)}; {missing[0]} is missing")
        for name in self.given:
            check_codec(self.zoo[name], self.trained_on.get(name), self.network.encoder.layout.spec(name))
        return self.predict({name: self.zoo[name].encode(values[name]) for name in self.given})


def encoder_of(run: Path, config: TransferConfig, seed: int) -> FourMEncoder:
    """The encoder of a run as its tuning begins; random weights and additions are drawn from torch's generator.

    Positions that a published model has stored are no weights: a network from scratch has them, too.
    """
    model = load_model(run)
    if config.tuning == "scratch":
        positions = dict(model.named_buffers())
        model = FourM.seeded(model.config, model.layout.specs, seed)
        for name, buffer in model.named_buffers():
            buffer.copy_(positions[name])
    frozen = config.tuning in ("frozen", "lora")
    encoder = FourMEncoder(model, frozen=frozen)
    if config.tuning == "lora":
        add_lora(encoder, config.lora_rank, config.lora_alpha)
    return encoder.eval()
