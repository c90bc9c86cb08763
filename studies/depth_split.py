"""Where depth is worth most: the same number of blocks, shared out between encoder and decoder.

python studies/depth_split.py --steps 1000 --seeds 3
"""

from __future__ import annotations

import dataclasses

from common import GIVEN_PICTURE, Study, Variant, begin, compare


def main() -> None:
    study = Study.from_command_line("depth_split", __doc__, steps=1000)
    blocks = study.model.encoder_depth + study.model.decoder_depth
    variants = []
    for decoder in range(1, blocks):
        model = dataclasses.replace(study.model, encoder_depth=blocks - decoder, decoder_depth=decoder)
        name = f"{blocks - decoder} encoder, {decoder} decoder"
        variants.append(Variant(name=name, modalities=study.modalities, model=model, train=study.settings()))
    compare(study, variants, also=GIVEN_PICTURE)


if __name__ == "__main__":
    begin(main)
