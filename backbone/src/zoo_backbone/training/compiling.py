"""torch.compile for the blocks of a model, where it can."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo_backbone.model import FourM

GRAPHS = 64
"""How many graphs are kept of a block's code: each is of one kind of block, with or without a mask, with or without
gradient, of a batch of one or of more, ... The first held-out losses reach PyTorch's default of 8, and what comes then
would not be compiled any more."""


def compile_blocks(model: FourM, attempt: Callable[[], object]) -> str:
    """Compile each block; `attempt` is then done once. Gives why that fails, with all as it was, or nothing.

    Blocks alone, since they are the cost, and alike: what comes before and after them has shapes that change.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    blocks = [*model.encoder, *model.decoder]
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        attempt()
    except Exception as error:  # whatever the compiler, the compiler's compiler, or the machine has to complain of
        for block in blocks:
            del block.forward
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""
