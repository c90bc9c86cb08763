"""Few tokens a sample and many samples, or many tokens and few: equal tokens in all.

python studies/budgets.py --steps 1000 --seeds 3
"""

from __future__ import annotations

import dataclasses

from common import GIVEN_PICTURE, Study, Variant, begin, compare

FACTORS = 0.5, 1.0, 2.0


def main() -> None:
    study = Study.from_command_line("budgets", __doc__, steps=1000)
    variants = []
    for factor in FACTORS:
        config = study.settings()
        inputs, targets = round(config.masking.input_budget * factor), round(config.masking.target_budget * factor)
        masking = dataclasses.replace(config.masking, input_budget=inputs, target_budget=targets)
        batch = max(1, round(config.batch_size / factor))
        config = dataclasses.replace(
            config, masking=masking, batch_size=batch, grad_accum_steps=min(config.grad_accum_steps, batch)
        )
        name = f"{inputs} in, {targets} out, {batch} samples"
        variants.append(Variant(name=name, modalities=study.modalities, model=study.model, train=config))
    compare(study, variants, also=GIVEN_PICTURE)


if __name__ == "__main__":
    begin(main)
