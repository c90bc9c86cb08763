"""AdamW that spends nothing on rows that no token touched, its learning rate, and its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from backbone.config import TrainConfig
from backbone.model import FourM
from tokenizers_zoo.errors import CheckpointError

EPSILON = 1e-8
TOKEN_TABLE = "token_embedding.weight"


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step`, counted from 0: linear warm-up, then a cosine to the least (arXiv 1608.03983, eq. 5)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    low, high = config.min_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def decays(name: str, parameter: Tensor) -> bool:
    """True for the matrices of linear layers and output rows; norms, biases and embeddings do not decay."""
    return parameter.dim() >= 2 and "embedding" not in name and not name.startswith("learned_positions")


class RowAdam:
    """Adam (arXiv 1412.6980, algorithm 1) for a table of which a step touches few rows.

    Each row is an Adam of its own whose clock ticks when the row has a gradient: moments, bias correction and weights
    of the other rows stay as they are. So a row that is first met late moves as far as one met early, and where every
    row is touched at every step this is plain Adam. Rows whose gradient is exactly zero were read as padding only.
    """

    def __init__(self, table: Tensor, betas: tuple[float, float]) -> None:
        self.table = table
        self.betas = betas
        self.first = torch.zeros_like(table, requires_grad=False)
        self.second = torch.zeros_like(table, requires_grad=False)
        self.ticks = torch.zeros(len(table), device=table.device)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """Update `rows` (each once) by `gradient`, `rows dim`."""
        low, high = self.betas
        ticks = self.ticks[rows] + 1
        first = self.first[rows].lerp_(gradient, 1 - low)
        second = self.second[rows].mul_(high).addcmul_(gradient, gradient, value=1 - high)
        self.ticks[rows], self.first[rows], self.second[rows] = ticks, first, second
        size = rate / (1 - low**ticks)
        scale = (1 - high**ticks).sqrt()
        move = first.mul_(size.unsqueeze(1)).div_(second.sqrt_().div_(scale.unsqueeze(1)).add_(EPSILON))
        self.table[rows] = self.table[rows].sub_(move)


class Optimizer:
    """AdamW (arXiv 1711.05101) for a FourM: fused for dense parameters, by rows for the token table.

    Output rows of a vocabulary without targets have no gradient and are left as they are. `sparse` off makes the token
    table a dense parameter like the others, which sharded training needs.
    """

    def __init__(self, model: FourM, config: TrainConfig, *, sparse: bool = True) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        model.token_embedding.sparse = sparse
        self.rows = RowAdam(model.token_embedding.weight, config.betas) if sparse else None
        dense = {name: p for name, p in self.parameters.items() if not (sparse and name == TOKEN_TABLE)}
        groups = [
            {"params": [p for name, p in dense.items() if decays(name, p)], "weight_decay": config.weight_decay},
            {"params": [p for name, p in dense.items() if not decays(name, p)], "weight_decay": 0.0},
        ]
        self.dense = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=EPSILON, fused=True)

    def step(self, rate: float) -> float:
        """Clip the gradients, update with learning rate `rate`, drop the gradients; gives the norm before clipping."""
        table = self.rows.table if self.rows is not None else None
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None and p is not table]
        touched = _touched(table.grad) if table is not None and table.grad is not None else None
        parts = gradients if touched is None else [*gradients, touched[1]]
        norm = _whole(torch.nn.utils.get_total_norm(parts))
        if self.config.gradient_clip and norm > self.config.gradient_clip:
            torch._foreach_mul_(parts, self.config.gradient_clip / norm)
        for group in self.dense.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            self.dense.step()
            if touched is not None and self.rows is not None:
                self.rows.step(*touched, rate)
        self.dense.zero_grad(set_to_none=True)
        if table is not None:
            table.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on, by `<parameter>.first`, `.second` and `.ticks`."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.dense.state.get(parameter)
            if state:
                tensors[f"{name}.first"], tensors[f"{name}.second"] = state["exp_avg"], state["exp_avg_sq"]
                tensors[f"{name}.ticks"] = state["step"]
        if self.rows is not None:
            rows = {"first": self.rows.first, "second": self.rows.second, "ticks": self.rows.ticks}
            tensors |= {f"{TOKEN_TABLE}.{part}": tensor for part, tensor in rows.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises CheckpointError where it is another model's."""
        unknown = {name.rpartition(".")[0] for name in tensors} - set(self.parameters)
        if unknown:
            raise CheckpointError(f"the optimizer's state is of another model: it has {sorted(unknown)[0]}")
        for name, parameter in self.parameters.items():
            if f"{name}.first" not in tensors:
                continue
            first, second, ticks = (tensors[f"{name}.{part}"].clone() for part in ("first", "second", "ticks"))
            if first.shape != parameter.shape:
                raise CheckpointError(f"the optimizer's state of {name} has another shape than the model's")
            if self.rows is not None and name == TOKEN_TABLE:
                self.rows.first, self.rows.second, self.rows.ticks = first, second, ticks
            else:
                self.dense.state[parameter] = {"step": ticks, "exp_avg": first, "exp_avg_sq": second}


def _touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with a gradient that is not all zero, each once, and their gradients."""
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    used = values.any(dim=1)
    return rows[used], values[used]


def _whole(norm: Tensor) -> float:
    """The norm as a number; of sharded gradients, that of all shards."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
