"""The setting `loggers` of both training loops: TensorBoard, Weights & Biases, and a user's installed logger."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_world import the_world
from small_modalities import write_metadata

from tokenizers_zoo.errors import PluginError, UnknownNameError
from tokenizers_zoo.records.io import read_lines
from tokenizers_zoo.train.loggers import Logger, new_loggers

MINE = '''
import json
from tokenizers_zoo.train.loggers import Logger

class Mine(Logger):
    """Lines of JSON in logs/mine.jsonl."""
    def start(self, folder, title, config, step):
        (folder / "logs").mkdir(exist_ok=True)
        self.file = open(folder / "logs" / "mine.jsonl", "a")
        self._write(start=step, title=title, learning_rate=config["train"]["learning_rate"])
    def _write(self, **line):
        self.file.write(json.dumps(line) + "\\n")
    def log(self, step, figures):
        self._write(step=step, names=sorted(figures))
    def image(self, step, name, picture):
        self._write(image=step, name=name, size=picture.size)
    def flush(self):
        self.file.flush()
    def finish(self):
        self._write(finished=True)
        self.file.close()

class Broken(Logger):
    def __init__(self):
        raise RuntimeError("no server")
'''


@pytest.fixture
def logger_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with two loggers."""
    site = tmp_path / "site"
    points = {"mine": "zoo_mine_loggers:Mine", "broken": "zoo_mine_loggers:Broken"}
    write_metadata(site, "zoo-mine", "1.0", {"tokenizers_zoo.loggers": points})
    (site / "zoo_mine_loggers.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    sys.modules.pop("zoo_mine_loggers", None)


def lines_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "words", "folder"),
    [
        ("train", "tokenizer train depth --data data --set loggers=['mine']", "tokenizers/depth"),
        ("backbone", "backbone train --tokens tokens --out run --config backbone.toml --set loggers=['mine']", "run"),
    ],
)
def test_an_installed_logger_gets_all_metrics(stage: str, words: str, folder: str, logger_site: Path) -> None:
    world = the_world().put_back(the_world().before[stage])
    ended = world(words, path=[str(logger_site)])
    assert ended.code == 0, ended.complaint
    run_folder = world.folder / folder
    first, *lines, last = lines_of(run_folder / "logs" / "mine.jsonl")
    assert first["start"] == 0 and isinstance(first["learning_rate"], float | None) and last == {"finished": True}
    logged = {name for line in lines for name in line.get("names", [])}  # type: ignore[attr-defined]
    assert logged == {"speed/samples_per_second"} | {
        name for line in read_lines(run_folder / "metrics.jsonl") for name in line if name != "step"
    }
    assert any("image" in line for line in lines) == (stage == "train")
    assert not (run_folder / "tensorboard").exists()


def test_other_loggers_do_not_change_the_run(logger_site: Path) -> None:
    world = the_world().put_back()
    before = world.files()
    assert world("tokenizer train depth --data data --set loggers=[]").code == 0
    assert world("backbone train --tokens tokens --out run --config backbone.toml --set loggers=[]").code == 0
    assert world.files() == before
    retrain = "tokenizer train depth --data data --overwrite --set loggers=['mine']"
    assert world(retrain, path=[str(logger_site)]).code == 0
    assert world("tokenizer train depth --data data --overwrite").code == 0
    assert not (world.folder / "tokenizers/depth/logs").exists()


def test_wrong_logger_names_are_refused(logger_site: Path) -> None:
    world = the_world().put_back()
    words = "tokenizer train depth --data data --overwrite --set loggers=['tensorbord']"
    world(words).refused("tensorbord", "did you mean tensorboard?")
    with pytest.raises(UnknownNameError, match="mine"):
        new_loggers(["nine"])
    with pytest.raises(PluginError, match=r"broken \(zoo_mine_loggers:Broken\): no server"):
        new_loggers(["broken"])
    assert isinstance(new_loggers(["mine"])[0], Logger)


OFFLINE = """
import sys
from pathlib import Path
from PIL import Image
from tokenizers_zoo.train.log import StepLog
for first, last in ((0, 3), (2, 4)):
    log = StepLog(Path(sys.argv[1]), "mine", steps=4, done=first, samples_per_step=1, loggers=["wandb"],
                  config={"a": 1})
    with log:
        for step in range(first + 1, last + 1):
            log.write(step, {"train/loss": 1 / step})
        log.write_image(step, "picture", Image.new("RGB", (4, 4)))
"""


def test_wandb_logs_a_resumed_training_as_one_run(tmp_path: Path) -> None:
    """A killed and resumed training is one run."""
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    script = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    name = (tmp_path / "logs" / "wandb-id").read_text()
    folders = [path.name for path in tmp_path.glob("logs/wandb/offline-run-*")]
    assert folders and all(f"-{name}" in folder for folder in folders), "two of the same second end in -1"
    assert list(tmp_path.glob("logs/wandb/offline-run-*/files/media/images/picture*.png"))


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    script = f"import sys; sys.modules['wandb'] = None\n{OFFLINE}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "pip install 'tokenizers-zoo[wandb]'" in done.stderr.splitlines()[-1]
