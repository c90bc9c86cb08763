"""All commands from `make` to `generate`, with token grids of one, two and three axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from roads import go

for plugin in ("zoo_audio", "zoo_motion", "zoo_worlds"):
    pytest.importorskip(plugin)

REGISTRY = """[zoo]
image_size = 16
patch_size = 8
checkpoints = "tokenizers"
[modalities.audio]
sample_rate = 4000
length = 2000
hop = 125
window = 250
mels = 16
iterations = 4
tokenizer = { levels = [4, 3] }
[modalities.video]
frames = 4
tokenizer = { levels = [4, 3] }
[modalities.imu]
length = 64
tokenizer = { levels = [4, 3] }
[modalities.flow]
tokenizer = { quantizer = "residual_fsq", num_codebooks = 2, levels = [4, 3] }
"""
BACKBONE = """[model]
dim = 32
encoder_depth = 1
decoder_depth = 1
heads = 2
[train]
steps = 2
batch_size = 4
eval_every = 2
save_every = 2
masking = { input_budget = 16, target_budget = 16 }
"""
TINY = "--set steps=2 --set batch_size=4 --set width=16 --set depth=1 --set latent_dim=8"
ROAD = (
    "data make bouncing data --train 6 --test 2 --workers 1 --set frames=4 --set seconds=0.5 --set sample_rate=4000"
    " --set image_size=16",
    f"tokenizer train audio video imu flow --data data {TINY}",
    "tokenize data --out tokens",
    "backbone train --tokens tokens --out run --config backbone.toml",
    "backbone generate run --input imu --target video,audio,flow --out made --samples 2",
    "backbone generate run --input video,audio --target imu --out felt --samples 2",
)


def test_the_whole_road_with_one_two_and_three_axes(tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text(REGISTRY)
    (tmp_path / "backbone.toml").write_text(BACKBONE)
    go(tmp_path, *ROAD)
    from tokenizers_zoo import Zoo

    zoo = Zoo.from_toml(tmp_path / "registry.toml")
    shapes = {name: zoo[name].spec.layout.shape for name in ("imu", "audio", "video", "flow")}
    assert shapes == {"imu": (16,), "audio": (4, 4), "video": (2, 2, 2), "flow": (2, 2, 2)}
    wanted = {"video": (4, 3, 16, 16), "audio": (2000,), "flow": (2, 16, 16)}
    for folder, names in (("made", wanted), ("felt", {"imu": (6, 64)})):
        for name, shape in names.items():
            files = [
                p for p in (tmp_path / folder).rglob("*") if p.suffix in (".npy", ".wav", ".flo") and name in str(p)
            ]
            assert len(files) == 2, (name, sorted((tmp_path / folder).rglob("*")))
            for path in files:
                value = zoo[name].read(path.read_bytes(), path.suffix)
                assert value.shape == shape and np.isfinite(value).all()
