"""Pictures as input: patches of pixels, tokens, or both.

python studies/pixels_or_tokens.py --steps 1000 --seeds 3
"""

from __future__ import annotations

from common import GIVEN, Study, Variant, begin, compare

from zoo_backbone.model.config import Mixture

TOKENS = "rgb"
TARGETS = "depth", "normal", "semseg"


def main() -> None:
    study = Study.from_command_line("pixels_or_tokens", __doc__, steps=1000)
    variants = {"patches": (GIVEN,), "tokens": (TOKENS,), "both": (GIVEN, TOKENS)}
    # A picture may be a complete input; with two, the Dirichlet divides the budget.
    parts = {name: Mixture(inputs=inputs, targets=TARGETS) for name, inputs in variants.items()}
    compare(
        study,
        [
            Variant(
                name=name, modalities=(*TARGETS, *inputs), model=study.model, train=study.settings((parts[name],)),
                question=parts[name],
            )
            for name, inputs in variants.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    begin(main)
