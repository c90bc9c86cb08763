"""torch.compile for the blocks of a model, where it can."""

from __future__ import annotations

from collections.abc import Callable

import torch

from backbone.model import FourM


def compile_blocks(model: FourM, attempt: Callable[[], object]) -> str:
    """Compile each block; `attempt` is then done once. Gives why that fails, with all as it was, or nothing.

    Blocks alone, since they are the cost, and alike: what comes before and after them has shapes that change.
    """
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
