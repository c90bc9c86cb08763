"""All commands in a new process, with token grids of one, two and three axes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_world import BACKBONE

from tokenizers_zoo import Zoo

WIDE_REGISTRY = """[zoo]
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
TINY = "--set steps=2 --set batch_size=4 --set width=16 --set depth=1 --set latent_dim=8"
WIDE = (
    "data make bouncing data --train 6 --test 2 --workers 1 --set frames=4 --set seconds=0.5 --set sample_rate=4000"
    " --set image_size=16",
    f"tokenizer train audio video imu flow --data data {TINY}",
    "tokenize data --out tokens",
    "backbone train --tokens tokens --out run --config backbone.toml --set steps=2",
    "backbone generate run --input imu --target video,audio,flow --out made --samples 2",
    "backbone generate run --input video,audio --target imu --out felt --samples 2",
)


@pytest.mark.slow
def test_the_pipeline_with_one_two_and_three_axes(tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text(WIDE_REGISTRY)
    (tmp_path / "backbone.toml").write_text(BACKBONE)
    program = (
        "import sys; from tokenizers_zoo.cli.main import main\n"
        f"for words in {[line.split() for line in WIDE]!r}:\n"
        "    sys.argv = ['zoo', *words]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, words\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    zoo = Zoo.from_toml(tmp_path / "registry.toml")
    shapes = {name: zoo[name].spec.layout.shape for name in ("imu", "audio", "video", "flow")}
    assert shapes == {"imu": (16,), "audio": (4, 4), "video": (2, 2, 2), "flow": (2, 2, 2)}
    shapes_of_files = {"video": (4, 3, 16, 16), "audio": (2000,), "flow": (2, 16, 16)}
    for folder, names in (("made", shapes_of_files), ("felt", {"imu": (6, 64)})):
        for name, shape in names.items():
            files = [path for path in (tmp_path / folder).rglob(f"{name}.*") if path.suffix in (".npy", ".wav", ".flo")]
            assert len(files) == 2, name
            for path in files:
                value = zoo[name].read(path.read_bytes(), path.suffix)
                assert value.shape == shape and np.isfinite(value).all()
