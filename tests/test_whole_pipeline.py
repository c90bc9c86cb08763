"""All commands in new processes: networks from a hub, and token grids of one, two and three axes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import feature_networks as networks
import numpy as np
import pytest
from command_world import BACKBONE

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.io import read_table


def run_lines(folder: Path, *lines: str) -> None:
    """Run `zoo LINE` for each line in the folder and assert that each succeeds."""
    program = (
        "import sys; from tokenizers_zoo.cli.main import main\n"
        f"for words in {[line.split() for line in lines]!r}:\n"
        "    sys.argv = ['zoo', *words]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, words\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


# ---------------------------------------------------------------- token grids of one to three axes

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


def test_the_pipeline_with_one_two_and_three_axes(tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text(WIDE_REGISTRY)
    (tmp_path / "backbone.toml").write_text(BACKBONE)
    run_lines(tmp_path, *WIDE)
    zoo = Zoo.from_toml(tmp_path / "registry.toml")
    shapes = {name: zoo[name].spec.layout.shape for name in ("imu", "audio", "video", "flow")}
    assert shapes == {"imu": (16,), "audio": (4, 4), "video": (2, 2, 2), "flow": (2, 2, 2)}
    shapes_of_files = {"video": (4, 3, 16, 16), "audio": (2000,), "flow": (2, 16, 16)}
    for folder, names in (("made", shapes_of_files), ("felt", {"imu": (6, 64)})):
        for name, shape in names.items():
            files = [
                p for p in (tmp_path / folder).rglob("*") if p.suffix in (".npy", ".wav", ".flo") and name in str(p)
            ]
            assert len(files) == 2, (name, sorted((tmp_path / folder).rglob("*")))
            for path in files:
                value = zoo[name].read(path.read_bytes(), path.suffix)
                assert value.shape == shape and np.isfinite(value).all()


# ---------------------------------------------------------------- networks from a hub

HUB_REGISTRY = """[zoo]
image_size = 64
patch_size = 8
checkpoints = "tokenizers"
modalities = [
    "rgb", "rgb_patches", "caption", "web_text", "t5_caption", "clip", "dinov2", "dinov2_global", "imagebind",
    "imagebind_global",
]
[modalities.rgb]
tokenizer = { steps = 100 }
[modalities.web_text]
max_length = 128
[modalities.t5_caption]
network = { model = "networks/t5" }
dim = 128
[modalities.clip]
network = { model = "networks/clip" }
map_size = 8
tokenizer = { steps = 200 }
[modalities.dinov2]
network = { model = "networks/dinov2" }
map_size = 8
tokenizer = { steps = 200 }
[modalities.imagebind]
network = { model = "networks/imagebind" }
map_size = 8
tokenizer = { steps = 200 }
[modalities.dinov2_global]
network = { model = "networks/dinov2" }
[modalities.imagebind_global]
network = { model = "networks/imagebind" }
"""
HUB_BACKBONE = """[train]
steps = 2000
batch_size = 16
eval_every = 500
save_every = 500
[train.masking]
input_budget = 64
min_input = 0
target_budget = 160
[[train.masking.mixtures]]
weight = 2.0
inputs = ["rgb_patches"]
input_alpha = 10.0
targets = ["clip", "dinov2", "dinov2_global", "imagebind", "imagebind_global"]
[[train.masking.mixtures]]
weight = 1.0
inputs = ["t5_caption"]
targets = ["caption", "web_text"]
[[train.masking.mixtures]]
weight = 2.0
inputs = ["caption"]
targets = ["web_text"]
[eval]
samples = 40
draws = 1
inputs = [["rgb_patches"], ["t5_caption"], ["caption"]]
targets = ["clip", "dinov2", "dinov2_global", "imagebind", "imagebind_global", "caption", "web_text"]
"""
HUB = (
    "data make folder data --set path=files --workers 1",
    "data derive data --workers 1",
    "tokenizer train --all --data data",
    "tokenize data --out tokens",
    "backbone train --tokens tokens --out run --config backbone.toml",
    "backbone eval run --config backbone.toml",
    "report run",
)
LEAST = {
    ("rgb_patches", "clip"): 0.8, ("rgb_patches", "dinov2"): 0.8, ("rgb_patches", "dinov2_global"): 0.7,
    ("rgb_patches", "imagebind"): 0.5, ("rgb_patches", "imagebind_global"): 0.4,
    ("t5_caption", "caption"): 0.8, ("t5_caption", "web_text"): 0.8, ("caption", "web_text"): 0.5,
}  # fmt: skip
"""Minimum skill scores. Measured: 1.00, .99, .93, .80, .74, .99, 1.00, .99."""


def write_files(folder: Path) -> set[str]:
    """Pictures, captions and documents of a few scenes as files; gives the words of the captions."""
    run_lines(folder, "data make scenes scenes --train 800 --test 80")
    installed = Zoo.from_toml(folder / "registry.toml")
    store, words = ValueStore(folder / "scenes"), set[str]()
    for split in ("train", "test"):
        for key in store.keys(split, "rgb", "caption"):
            values = {name: store.read_key(installed[name], split, key) for name in ("rgb", "caption")}
            words |= set(values["caption"].replace(",", " ,").replace(".", " .").split())
            values["web_text"] = f"# A room\n\n{values['caption']}\n\nSeen by a camera that somebody holds.\n"
            for name, value in values.items():
                data, extension = installed[name].write(value)
                path = folder / "files" / split / name / f"{key}.{extension}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return words


@pytest.mark.slow
def test_whole_pipeline_with_random_networks(tmp_path: Path) -> None:
    """Even the features of a random network depend on the picture, so a backbone can learn them.

    Each caption comes with a document that repeats it, so that `web_text` can be learnt.
    """
    (tmp_path / "registry.toml").write_text(HUB_REGISTRY)
    (tmp_path / "backbone.toml").write_text(HUB_BACKBONE)
    words = write_files(tmp_path)
    networks.clip(tmp_path / "networks" / "clip")
    networks.dinov2(tmp_path / "networks" / "dinov2")
    networks.imagebind(tmp_path / "networks" / "imagebind")
    networks.t5(tmp_path / "networks" / "t5", sorted(words), dim=128)
    run_lines(tmp_path, *HUB)
    pairs = read_table(tmp_path / "run" / "evaluation" / "evaluation.json")["pairs"]
    closed = {(*pair["inputs"], pair["target"]): pair["skill"] for pair in pairs}
    learnt = {pair: closed[pair] for pair in LEAST}
    assert all(learnt[pair] > least for pair, least in LEAST.items()), learnt
    assert (tmp_path / "run" / "report" / "index.html").is_file()
