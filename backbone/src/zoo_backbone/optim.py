"""The optimizer: no work on rows that no token touched, Muon or AdamW for matrices; its rate, its state by name."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.train.optim import learning_rate_at
from zoo_backbone.config import TrainConfig, least_rate_problem
from zoo_backbone.model import FourM
from zoo_backbone.transformer import FusedLinear

MOMENTUM = 0.9
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
ADAM_SIZE = 0.2
"""About the root mean square of the entries of an Adam update, in learning rates."""


def block_matrices(blocks: Iterable[nn.Module]) -> dict[Tensor, int]:
    """The weights of the linear layers in `blocks`, and of how many projections side by side each is made."""
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    return {layer.weight: layer.parts if isinstance(layer, FusedLinear) else 1 for layer in layers}


def orthogonal(matrices: Tensor) -> Tensor:
    """For each of `matrices rows columns` = U S V^T about U V^T: singular values between 0.7 and 1.2.

    Newton-Schulz iterations with a quintic polynomial, on the wide side, on a GPU in bfloat16, as published; zero
    matrices stay zero. What is given has the dtype of `matrices`.
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
    """The optimizer of `matrices`: weights with the number of projections that each holds, one above the other.

    Each projection is a matrix of its own. Where weights are sharded, the momentum is too; each process orthogonalises
    whole matrices and keeps its rows.
    """

    def __init__(self, matrices: dict[Tensor, int], weight_decay: float) -> None:
        self.matrices = matrices
        self.weight_decay = weight_decay
        self.momentum = {weight: torch.zeros_like(weight, requires_grad=False) for weight in matrices}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move all matrices that have a gradient."""
        by_shape = defaultdict[tuple[int, ...], list[tuple[Tensor, int, Tensor]]](list)
        moved: dict[Tensor, list[Tensor]] = {}
        for weight, parts in self.matrices.items():
            if weight.grad is None:
                continue
            momentum = self.momentum[weight].lerp_(weight.grad, 1 - MOMENTUM)
            ahead = weight.grad.lerp(momentum, MOMENTUM)  # Nesterov's
            moved[weight] = list((ahead.full_tensor() if isinstance(ahead, DTensor) else ahead).chunk(parts))
            for part, matrix in enumerate(moved[weight]):
                by_shape[tuple(matrix.shape)].append((weight, part, matrix))
        for shape, found in by_shape.items():
            scale = ADAM_SIZE * math.sqrt(max(shape))
            for (weight, part, _), update in zip(found, orthogonal(torch.stack([m for *_, m in found])), strict=True):
                moved[weight][part] = update * scale
        for weight, updates in moved.items():
            update = torch.cat(updates)
            if isinstance(weight, DTensor):
                update = distribute_tensor(update, weight.device_mesh, weight.placements, src_data_rank=None)
            weight.mul_(1 - rate * self.weight_decay).sub_(update, alpha=rate)


EPSILON = 1e-8
TOKEN_TABLE = "token_embedding.weight"
RATE_AT = 128
"""The width that rates of Muon are tuned at."""


def for_width(rate: float, width: int) -> float:
    """A rate of Muon that suits a model of width RATE_AT, for one of another: an update grows with the width's root.

    docs/training.md, Width.
    """
    return rate * math.sqrt(RATE_AT / width)


def peak_rate(config: TrainConfig, width: int) -> float:
    """The rate after warm-up of a model of this width: what the settings say, or what suits their optimizer.

    Raises ConfigError where the schedule would have to end above that.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    peak = for_width(5e-3, width) if config.optimizer == "muon" else 1e-3
    if config.min_learning_rate > peak:
        raise ConfigError(least_rate_problem(config.min_learning_rate, peak))
    return peak


def learning_rate(config: TrainConfig, step: int, peak: float) -> float:
    """Return the learning rate of step `step`, counted from 0."""
    return learning_rate_at(
        step, steps=config.steps, peak=peak, warmup_steps=config.warmup_steps, minimum=config.min_learning_rate,
        schedule=config.schedule, decay_fraction=config.decay_fraction,
    )  # fmt: skip


def decays(name: str, parameter: Tensor) -> bool:
    """True for the matrices of linear layers and output rows; norms, biases and embeddings do not decay."""
    part = name.partition(".")[0]  # what follows may be the name of a modality or vocabulary
    return parameter.dim() >= 2 and not part.endswith(("embedding", "learned_positions", "registers"))


class RowAdam:
    """Adam (arXiv 1412.6980, algorithm 1) for a table of which a step touches few rows.

    Each row is an Adam of its own whose clock ticks when the row has a gradient: moments, bias correction and weights
    of the other rows stay as they are. So a row that is first met late moves as far as one met early, and where every
    row is touched at every step this is plain Adam. Rows whose gradient is zero were read as padding only.
    """

    def __init__(self, table: Tensor, betas: tuple[float, float], factors: Tensor | None = None) -> None:
        self.table = table
        self.betas = betas
        self.factors = factors
        """Of the rate, `rows 1`; None for 1 everywhere."""
        with torch.no_grad():
            self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
            self.ticks = torch.zeros_like(table[:, :1])

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Update by a gradient of the table, or of this process's rows of it; coalesced where it is sparse."""
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
        """The moments and ticks of the table, which goes by this name."""
        return dict(zip(names_of(name), (self.first, self.second, self.ticks), strict=True))

    def load_state(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.first, self.second, self.ticks = (tensors[part] for part in names_of(name))


class Optimizer:
    """AdamW (arXiv 1711.05101) for a FourM: fused for dense parameters, by rows for the token table.

    With `config.optimizer` "muon", Muon moves the matrices of the blocks instead. Output rows of a vocabulary without
    targets have no gradient and are left as they are, and so are parameters that want none and, of parameters with bool
    `rows` in `frozen`, the rows that are True. Those that are True in `known` move by `config.pretrained_lr_scale` of
    what others would. `sparse` says whether the token table's gradient is sparse too, which sharded parameters cannot
    have; the updates are the same.
    """

    def __init__(
        self,
        model: FourM,
        config: TrainConfig,
        *,
        sparse: bool = True,
        frozen: Mapping[str, Tensor] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.frozen = {self.parameters[name]: rows_like(self.parameters[name], rows)
                       for name, rows in (frozen or {}).items()}  # fmt: skip
        slow, self.slow_rows = self._slow(known or {})
        model.token_embedding.sparse = sparse
        table = model.token_embedding.weight
        slow_rows = self.slow_rows.pop(table, None)
        factors = None if slow_rows is None else torch.where(slow_rows, config.pretrained_lr_scale, 1.0).unsqueeze(1)
        self.rows = RowAdam(table, config.betas, factors)
        blocks = [*model.encoder, *model.decoder]
        muon = config.optimizer == "muon"
        matrices = {p: parts for p, parts in block_matrices(blocks).items() if muon and p.requires_grad}
        # Of a backbone that a run starts from, blocks are there as a whole or not at all.
        self.muon = Muon(matrices, config.weight_decay)
        self.muon_factor = config.pretrained_lr_scale if slow.issuperset(matrices) else 1.0
        others = {name: p for name, p in self.parameters.items() if name != TOKEN_TABLE and p not in matrices}
        # A table of which some rows stay decays not at all: AdamW shrinks a parameter as a whole.
        decayed = {name for name, p in others.items() if decays(name, p) and p not in self.frozen}
        groups = [
            {
                "params": [p for name, p in others.items() if (name in decayed, p in slow) == (decay, slower)],
                "weight_decay": config.weight_decay if decay else 0.0,
                "factor": config.pretrained_lr_scale if slower else 1.0,
            }
            for decay in (True, False)
            for slower in ((False, True) if slow else (False,))
        ]
        # The rate is that of each step.
        self.dense = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=EPSILON, fused=True)

    def _slow(self, known: Mapping[str, Tensor]) -> tuple[set[Tensor], dict[Tensor, Tensor]]:
        """Parameters that are known as a whole, and the known rows of the others and of the token table."""
        all_known, parts = set[Tensor](), dict[Tensor, Tensor]()
        for name, parameter in self.parameters.items() if self.config.pretrained_lr_scale != 1 else ():
            rows = known.get(name)
            if rows is not None and bool(rows.all()) and name != TOKEN_TABLE:
                all_known.add(parameter)
            elif rows is not None and bool(rows.any()):
                parts[parameter] = rows_like(parameter, rows)
        return all_known, parts

    def step(self, rate: float) -> float:
        """Clip the gradients, update with learning rate `rate`, drop the gradients; gives the norm before clipping.

        Where that norm is not finite, nothing is updated.
        """
        table = self.rows.table
        if table.grad is not None and table.grad.is_sparse:
            table.grad = table.grad.coalesce()
        for parameter, rows in self.frozen.items():
            if parameter.grad is not None:
                drop_rows(parameter.grad, rows)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        parts = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
        norm = float(whole(torch.nn.utils.get_total_norm(parts)))
        if self.config.gradient_clip and norm > self.config.gradient_clip:
            torch._foreach_mul_(parts, self.config.gradient_clip / norm)
        for group in self.dense.param_groups:
            group["lr"] = rate * group["factor"]
        if math.isfinite(norm):
            self.muon.step(rate * self.muon_factor)
            with self._slowed():
                self.dense.step()
            if table.grad is not None:
                self.rows.step(table.grad, rate)
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    @contextlib.contextmanager
    def _slowed(self) -> Iterator[None]:
        """Let rows that are known move by their share of what the block moves them."""
        moved = {p: rows for p, rows in self.slow_rows.items() if p.grad is not None}
        with torch.no_grad():
            before = {p: local(p)[rows] for p, rows in moved.items()}
            yield
            for p, rows in moved.items():
                local(p)[rows] = before[p].lerp(local(p)[rows], self.config.pretrained_lr_scale)

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on, by `<parameter>.first`, `.second` and `.ticks`."""
        tensors = self.rows.state(TOKEN_TABLE)
        for name, parameter in self.parameters.items():
            if parameter in self.muon.momentum:
                tensors[names_of(name)[0]] = self.muon.momentum[parameter]
            elif state := self.dense.state.get(parameter):
                values = state["exp_avg"], state["exp_avg_sq"], state["step"]
                tensors |= zip(names_of(name), values, strict=True)
        return tensors

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors like those of `state` for the given names. Raises CheckpointError for names of another model."""
        tensors = {}
        for name in names:
            parameter, _, part = name.rpartition(".")
            if parameter not in self.parameters:
                raise CheckpointError(f"the optimizer's state is of another model: it has {name}")
            like = self.parameters[parameter].detach()
            if part != "ticks":
                tensors[name] = torch.zeros_like(like)
            else:
                # AdamW's fused kernel reads its steps on the device of the parameter.
                steps = torch.zeros((), device=like.device)
                tensors[name] = torch.zeros_like(like[:, :1]) if parameter == TOKEN_TABLE else steps
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, parameter in self.parameters.items():
            first, second, ticks = (tensors.get(part) for part in names_of(name))
            if first is not None and parameter in self.muon.momentum:
                self.muon.momentum[parameter] = first
            if first is None or second is None or ticks is None:
                continue
            if name == TOKEN_TABLE:
                self.rows.load_state(name, tensors)
            else:
                self.dense.state[parameter] = {"step": ticks, "exp_avg": first, "exp_avg_sq": second}


def names_of(parameter: str) -> tuple[str, str, str]:
    """Under which names a parameter's moments and steps are kept; Muon has the first moment alone."""
    return f"{parameter}.first", f"{parameter}.second", f"{parameter}.ticks"


def rows_like(parameter: Tensor, rows: Tensor) -> Tensor:
    """bool `rows` on the parameter's device, and of this process's part of it where it is sharded."""
    rows = rows.to(parameter.device)
    if isinstance(parameter, DTensor):
        rows = local(distribute_tensor(rows, parameter.device_mesh, parameter.placements, src_data_rank=None))
    return rows


def drop_rows(gradient: Tensor, rows: Tensor) -> None:
    """Set the gradient of rows that are True to zero, in place; coalesced where it is sparse."""
    if gradient.is_sparse:
        gradient.values()[rows[gradient.indices()[0]]] = 0.0
    else:
        local(gradient)[rows] = 0.0


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, as it lies in memory; any other tensor as it is."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered
