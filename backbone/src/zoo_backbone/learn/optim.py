"""Optimizers of the backbone: AdamW, Muon for weight matrices, and Adam by rows for the token table."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.train.optim import learning_rate_at
from zoo_backbone.model.config import TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.transformer import FusedLinear

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOMENTUM = 0.9
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
ADAM_SIZE = 0.2
"""About the root mean square of the entries of an Adam update, in learning rates."""


def block_matrices(blocks: Iterable[nn.Module]) -> dict[Tensor, int]:
    """Return the weights of the linear layers in `blocks`, and the number of projections in each."""
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    return {layer.weight: layer.parts if isinstance(layer, FusedLinear) else 1 for layer in layers}


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U V^T for each of `matrices rows columns` = U S V^T, with singular values between 0.7 and 1.2.

    Newton-Schulz iterations with a quintic polynomial on the wide side, in bfloat16 on a GPU. Zero matrices stay zero.
    The result has the dtype of `matrices`.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Muon (Keller Jordan et al. 2024, kellerjordan.github.io/posts/muon) for `matrices`.

    An entry moves as far as AdamW would move it (arXiv 2502.16982, section 2.2), so both share a learning rate and a
    weight decay. `matrices` has the number of projections in each weight; each projection is a matrix of its own. If
    weights are sharded, so is the momentum. Each process orthogonalises whole matrices and keeps its rows.
    """

    def __init__(self, matrices: dict[Tensor, int], weight_decay: float) -> None:
        self.matrices = matrices
        self.weight_decay = weight_decay
        self.momentum = {weight: torch.zeros_like(weight, requires_grad=False) for weight in matrices}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all matrices that have a gradient."""
        by_shape = defaultdict[tuple[int, ...], list[tuple[Tensor, int, Tensor]]](list)
        updates_by_weight: dict[Tensor, list[Tensor]] = {}
        for weight, parts in self.matrices.items():
            if weight.grad is None:
                continue
            momentum = self.momentum[weight].lerp_(weight.grad, 1 - MOMENTUM)
            nesterov = weight.grad.lerp(momentum, MOMENTUM)
            updates_by_weight[weight] = list(gathered(nesterov).chunk(parts))
            for part, matrix in enumerate(updates_by_weight[weight]):
                by_shape[tuple(matrix.shape)].append((weight, part, matrix))
        for shape, group in by_shape.items():
            scale = ADAM_SIZE * math.sqrt(max(shape))
            for (weight, part, _), update in zip(group, orthogonal(torch.stack([m for *_, m in group])), strict=True):
                updates_by_weight[weight][part] = update * scale
        for weight, updates in updates_by_weight.items():
            update = sharded_like(weight, torch.cat(updates))
            weight.mul_(1 - rate * self.weight_decay).sub_(update, alpha=rate)


EPSILON = 1e-8
TOKEN_TABLE = "token_embedding.weight"
RATE_AT = 128
"""Model width for which learning rates of Muon are tuned."""


def for_width(rate: float, width: int) -> float:
    """Return a learning rate of Muon for a model of this width, from one for the width RATE_AT.

    An update grows with the square root of the width. See docs/training.md, Width.
    """
    return rate * math.sqrt(RATE_AT / width)


def peak_rate(config: TrainConfig, width: int) -> float:
    """Return the peak learning rate: the setting, or the optimizer's default for this width.

    Raises ConfigError if `min_learning_rate` is above it.
    """
    peak = config.learning_rate or (for_width(5e-3, width) if config.optimizer == "muon" else 1e-3)
    if config.min_learning_rate > peak:
        expected = f"expected at most the peak, {peak:.3g}"
        raise ConfigError(f"min_learning_rate: {expected}, got {config.min_learning_rate:g}")
    return peak


def learning_rate(config: TrainConfig, step: int, peak: float) -> float:
    """Return the learning rate of step `step`, counted from 0."""
    return learning_rate_at(
        step,
        steps=config.steps,
        peak=peak,
        warmup_steps=config.warmup_steps,
        minimum=config.min_learning_rate,
        schedule=config.schedule,
        decay_fraction=config.decay_fraction,
    )


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter has weight decay: matrices of linear layers and output rows have."""
    part = name.partition(".")[0]  # the rest may be the name of a modality or vocabulary
    return parameter.dim() >= 2 and not part.endswith(("embedding", "learned_positions", "registers"))


class RowAdam:
    """Adam (arXiv 1412.6980, algorithm 1) for a table with few used rows per step.

    Each row has its own step count, which advances if the row has a gradient. Moments, bias correction and weights of
    the other rows do not change. If every row is used in every step, this is plain Adam. A zero gradient counts as
    none: such rows were read as padding only.
    """

    def __init__(self, table: Tensor, betas: tuple[float, float], factors: Tensor | None = None) -> None:
        self.table = table
        self.betas = betas
        self.factors = factors
        """Factors of the learning rate, `rows 1`; None: 1."""
        with torch.no_grad():
            self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
            self.ticks = torch.zeros_like(table[:, :1])

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Update by the table's gradient; a sparse gradient must be coalesced."""
        if gradient.is_sparse:
            rows, values = gradient.indices()[0], gradient.values()
            used = values.any(dim=1)
            rows, values = rows[used], values[used]
        else:
            gradient = local(gradient)
            rows = gradient.any(dim=1).nonzero().squeeze(1)
            values = gradient[rows]
        table, first, second, ticks = (local(x) for x in (self.table, self.first, self.second, self.ticks))
        low, high = self.betas
        count = ticks[rows] + 1
        mean = first[rows].lerp_(values, 1 - low)
        square = second[rows].mul_(high).addcmul_(values, values, value=1 - high)
        ticks[rows], first[rows], second[rows] = count, mean, square
        scale = square.sqrt_().div_((1 - high**count).sqrt_()).add_(EPSILON)
        rates = rate if self.factors is None else rate * self.factors[rows]
        table[rows] = table[rows].sub_(mean.mul_(rates / (1 - low**count)).div_(scale))

    def state(self, name: str) -> dict[str, Tensor]:
        """Return the moments and step counts of the table, under this name."""
        return dict(zip(names_of(name), (self.first, self.second, self.ticks), strict=True))


class Optimizer:
    """AdamW (arXiv 1711.05101) for a FourM: fused for dense parameters, by rows for the token table.

    With `config.optimizer` "muon", Muon updates the matrices of the blocks. Output rows of a vocabulary without targets
    have no gradient and do not change. `frozen` marks rows of parameters (bool `rows`) that do not change. Rows marked
    in `pretrained_rows` have `config.pretrained_lr_scale` times the learning rate. `sparse` gives the token table a
    sparse gradient, which sharded parameters cannot have; the updates are the same.
    """

    def __init__(
        self,
        model: FourM,
        config: TrainConfig,
        *,
        sparse: bool = True,
        frozen: Mapping[str, Tensor] | None = None,
        pretrained_rows: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.frozen = {
            self.parameters[name]: rows_like(self.parameters[name], rows) for name, rows in (frozen or {}).items()
        }
        pretrained = set[Tensor]()
        """Parameters that the start backbone has completely."""
        self.pretrained_rows: dict[Tensor, Tensor] = {}
        """Rows of the start backbone in the other parameters."""
        factors, scale = None, config.pretrained_lr_scale
        for name, rows in (pretrained_rows or {}).items() if scale != 1 else ():
            if name == TOKEN_TABLE and rows.any():
                rows = rows_like(self.parameters[name], rows)
                factors = torch.where(rows, scale, 1.0).unsqueeze(1)
            elif name in self.parameters and rows.all():
                pretrained.add(self.parameters[name])
            elif name in self.parameters and rows.any():
                self.pretrained_rows[self.parameters[name]] = rows_like(self.parameters[name], rows)
        model.token_embedding.sparse = sparse
        self.row_adam = RowAdam(model.token_embedding.weight, config.betas, factors)
        blocks = [*model.encoder, *model.decoder]
        muon = config.optimizer == "muon"
        matrices = {p: parts for p, parts in block_matrices(blocks).items() if muon and p.requires_grad}
        # A start backbone has all blocks or none.
        self.muon = Muon(matrices, config.weight_decay)
        self.muon_factor = scale if pretrained.issuperset(matrices) else 1.0
        dense_parameters = {name: p for name, p in self.parameters.items() if name != TOKEN_TABLE and p not in matrices}
        groups = defaultdict[tuple[float, float], list[Tensor]](list)
        for name, parameter in dense_parameters.items():
            # A table with frozen rows has no weight decay, because AdamW decays a whole parameter.
            decay = config.weight_decay if decays(name, parameter) and parameter not in self.frozen else 0.0
            groups[decay, scale if parameter in pretrained else 1.0].append(parameter)
        param_groups = [{"params": p, "weight_decay": decay, "factor": factor} for (decay, factor), p in groups.items()]
        # Each step sets the learning rate.
        self.dense = torch.optim.AdamW(param_groups, lr=0.0, betas=config.betas, eps=EPSILON, fused=True)
        for parameter in dense_parameters.values():
            # The fused kernel reads its steps on the device of the parameter.
            first, second = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
            step = torch.zeros((), device=parameter.device)
            self.dense.state[parameter] = {"exp_avg": first, "exp_avg_sq": second, "step": step}

    def step(self, rate: float) -> float:
        """Clip the gradients, update with learning rate `rate`, and return the norm before clipping.

        Nothing is updated if the norm is not finite.
        """
        table = self.row_adam.table
        if table.grad is not None and table.grad.is_sparse:
            table.grad = table.grad.coalesce()
        for parameter, rows in self.frozen.items():
            if (gradient := parameter.grad) is not None and gradient.is_sparse:
                gradient.values()[rows[gradient.indices()[0]]] = 0.0
            elif gradient is not None:
                local(gradient)[rows] = 0.0
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        parts = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
        norm = float(gathered(torch.nn.utils.get_total_norm(parts)))
        if self.config.gradient_clip and norm > self.config.gradient_clip:
            torch._foreach_mul_(parts, self.config.gradient_clip / norm)
        for group in self.dense.param_groups:
            group["lr"] = rate * group["factor"]
        if math.isfinite(norm):
            self.muon.step(rate * self.muon_factor)
            with self._slowed():
                self.dense.step()
            if table.grad is not None:
                self.row_adam.step(table.grad, rate)
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    @contextlib.contextmanager
    def _slowed(self) -> Iterator[None]:
        """Scale the update of pretrained rows within the block."""
        rows_by_parameter = {p: rows for p, rows in self.pretrained_rows.items() if p.grad is not None}
        with torch.no_grad():
            before = {p: local(p)[rows] for p, rows in rows_by_parameter.items()}
            yield
            for p, rows in rows_by_parameter.items():
                local(p)[rows] = before[p].lerp(local(p)[rows], self.config.pretrained_lr_scale)

    def state(self) -> dict[str, Tensor]:
        """Return moments and steps by `<parameter>.first`, `.second` and `.ticks`."""
        tensors = self.row_adam.state(TOKEN_TABLE)
        for name, parameter in self.parameters.items():
            if parameter in self.muon.momentum:
                tensors[names_of(name)[0]] = self.muon.momentum[parameter]
            elif state := self.dense.state.get(parameter):
                tensors |= zip(names_of(name), state.values(), strict=True)
        return tensors


def names_of(parameter: str) -> tuple[str, str, str]:
    """Return the stored names of a parameter's moments and steps; Muon has only the first."""
    return f"{parameter}.first", f"{parameter}.second", f"{parameter}.ticks"


def rows_like(parameter: Tensor, rows: Tensor) -> Tensor:
    """Return bool `rows` on the parameter's device; of a sharded parameter, this process's part."""
    return local(sharded_like(parameter, rows.to(parameter.device)))


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """True for a tensor that is sharded over processes. Does not import DTensor, which takes a second."""
    return hasattr(tensor, "placements")


def gathered(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes; return any other tensor unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Shard a whole tensor as a parameter is sharded."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
