"""How evenly budgets are shared among modalities: the Dirichlets' concentration, and all of 4M's mixed.

python studies/alphas.py --steps 1000 --seeds 3
"""

from __future__ import annotations

from common import GIVEN_PICTURE, Study, Variant, begin, compare

from zoo_backbone.model.config import Mixture

ALPHAS = 0.01, 0.1, 1.0, 10.0


def main() -> None:
    study = Study.from_command_line("alphas", __doc__, steps=1000)
    mixtures = {f"alpha {alpha:g}": Mixture(input_alpha=alpha, target_alpha=alpha) for alpha in ALPHAS}
    parts = {**{name: (mixture,) for name, mixture in mixtures.items()}, "all four mixed": tuple(mixtures.values())}
    compare(
        study,
        [
            Variant(name=name, modalities=study.modalities, model=study.model, train=study.settings(part))
            for name, part in parts.items()
        ],
        also=GIVEN_PICTURE,
    )


if __name__ == "__main__":
    begin(main)
