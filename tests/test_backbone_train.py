"""The training loop of the backbone: a killed and resumed run ends bit-identical to an uninterrupted run."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import (
    SMALL,
    TRAINING,
    Killed,
    all_layouts,
    killed_after,
    metrics,
    outcome,
    run,
    sequence,
    spec,
    write_splits,
    write_store,
)
from backbone_worker import train_in_two_processes
from token_stores import reversed_tokens
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.modules.module import register_module_forward_hook

from tokenizers_zoo.contract.layouts import GridLayout
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, ReadError
from tokenizers_zoo.files.checkpoint import load_config
from tokenizers_zoo.files.run_folder import FolderError, RunFolder
from tokenizers_zoo.machine.process import Interrupted
from tokenizers_zoo.records.config import Origin, from_mapping
from tokenizers_zoo.train.log import read_metrics
from tokenizers_zoo.train.optim import DivergedError
from zoo_backbone.learn import distributed
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.train import Trainer
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import MaskingConfig, Mixture, TrainConfig, TrainingStore
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import BACKBONE, Run

GOLDEN = Path(__file__).parent / "golden" / "backbone_losses.json"
STATE = BACKBONE.state


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def finished_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("run") / "whole", store)


def test_finished_run_keeps_model_metrics_and_state(finished_run: Path, store: Path) -> None:
    config = load_config(finished_run, "FourM")
    assert [item["name"] for item in config["specs"]] == [item.name for item in all_layouts()]
    assert config["fingerprints"]["words"] == "codec of text" and config["train"]["steps"] == 12
    assert Run.load(finished_run).tokens == store.resolve()
    assert [line["step"] for line in metrics(finished_run) if "train/loss" in line] == list(range(1, 13))
    held_out = [line for line in metrics(finished_run) if "held_out/loss" in line]
    assert [line["step"] for line in held_out] == [5, 10, 12]
    names = {item.name for item in all_layouts() if not item.continuous}
    assert {key.removeprefix("held_out/") for key in held_out[0]} == names | {"loss", "step"}
    assert held_out[0]["held_out/loss"] > held_out[-1]["held_out/loss"]
    by_modality = [held_out[0][f"held_out/{name}"] for name in names]
    assert held_out[0]["held_out/loss"] == pytest.approx(np.mean(by_modality))
    assert any((finished_run / "tensorboard").iterdir())
    assert [path.name for path in (finished_run / STATE).iterdir()] == ["step-00000012"]


def test_losses_equal_the_golden_losses(finished_run: Path) -> None:
    losses = {side: metrics(finished_run, f"{side}/loss") for side in ("train", "held_out")}
    expected = json.loads(GOLDEN.read_text())
    assert all(losses[side] == pytest.approx(expected[side], rel=1e-4) for side in losses)


def test_gradient_accumulation_changes_only_the_last_bits(finished_run: Path, store: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "parts", store, grad_accum_steps=3)
    assert metrics(folder, "train/loss") == pytest.approx(metrics(finished_run, "train/loss"), rel=1e-4)


@pytest.mark.parametrize(
    "steps", [step if step in (0, 4, 11) else pytest.param(step, marks=pytest.mark.slow) for step in range(12)]
)
def test_killed_run_resumes_to_the_same_result(finished_run: Path, store: Path, tmp_path: Path, steps: int) -> None:
    with killed_after(steps):
        run(tmp_path, store)
    run(tmp_path, store)
    assert outcome(tmp_path) == outcome(finished_run)


def test_an_interrupted_run_goes_on_from_its_step(
    finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, rates = Trainer.train_step, list[float]()

    def interrupted(self: Trainer, batch: PackedBatch, rate: float) -> Any:
        rates.append(rate)
        if len(rates) in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        for steps in (3, 7):
            with pytest.raises(Interrupted) as raised:
                run(tmp_path / "run", store)
            assert (raised.value.number, raised.value.saved) == (signal.SIGTERM, f"step {steps} of 12")
        run(tmp_path / "run", store)
    assert len(rates) == 12 and outcome(tmp_path / "run") == outcome(finished_run)


def test_a_finished_run_is_lengthened(finished_run: Path, store: Path, tmp_path: Path) -> None:
    """After a kill, it goes on to the same result. The finished weights stay until then."""
    results = []
    for kills in ((), (0, 3)):
        folder = Path(shutil.copytree(finished_run, tmp_path / str(len(kills))))
        for steps in kills:
            with killed_after(steps):
                run(folder, store, steps=18)
            assert (folder / "model.safetensors").read_bytes() == outcome(finished_run)["model.safetensors"]
            assert load_config(folder, "FourM")["train"]["steps"] == 12 and read_metrics(folder)
        run(folder, store, steps=18)
        results.append(outcome(folder))
        assert [line["step"] for line in metrics(folder) if "train/loss" in line] == list(range(1, 19))
        config = load_config(folder, "FourM")
        assert config["train"]["steps"] == 18 and config["lengthened"] == [12]
    assert results[0] == results[1]
    with pytest.raises(FolderError, match=r"train\.steps was 18, is 12"):
        run(folder, store)
    shutil.rmtree(folder / STATE)
    assert run(folder, store, steps=18) == folder
    with pytest.raises(FolderError, match=f"its {STATE} is gone"):
        run(folder, store, steps=20)


def test_kill_during_a_state_write_is_harmless(
    finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the previous state and a part of the next one, which are removed."""
    saved: list[int] = []

    def dying(*arguments: Any, **options: Any) -> None:
        saved.append(1)
        save(*arguments, **options)
        if len(saved) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("zoo_backbone.learn.distributed.save", dying)
        run(tmp_path, store)
    assert len(list((tmp_path / STATE).iterdir())) == 2
    (tmp_path / STATE / ".step-00000009.tmp").mkdir()
    run(tmp_path, store)
    assert outcome(tmp_path) == outcome(finished_run)
    assert [path.name for path in (tmp_path / STATE).iterdir()] == ["step-00000012"]


@pytest.fixture(scope="module")
def killed_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed after its last step, before the model was written."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda self, **_: None)
        run(folder, store, steps=4)
    (folder / "config.json").unlink()
    return folder


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("files", "change", "reason"),
    [
        ("*.safetensors", flipped, "another checksum"),
        ("*.safetensors", Path.unlink, "files of all processes"),
        ("checksums-*", Path.unlink, "files of all processes"),
        ("checksums-*", flipped, "its checksum"),
    ],
    ids=["flipped", "missing", "without checksums", "flipped checksums"],
)
def test_a_damaged_state_is_named(
    killed_run: Path, store: Path, tmp_path: Path, files: str, change: Callable[[Path], object], reason: str
) -> None:
    folder = Path(shutil.copytree(killed_run, tmp_path / "run"))
    change(next(folder.glob(f"training_state/step-*/{files}")))
    with pytest.raises(CheckpointError, match=rf"step-00000004.*: damaged: .*{reason}.*; remove it"):
        run(folder, store, steps=4)


def test_a_state_that_cannot_be_read_now_is_not_called_damaged(
    killed_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice of a damaged state is to remove it."""
    folder = Path(shutil.copytree(killed_run, tmp_path / "run"))
    opened = os.open

    def load(*_: object, **__: object) -> None:
        raise CheckpointException("load", {0: (torch.OutOfMemoryError("CUDA out of memory."), None)})  # type: ignore[dict-item]

    def opening(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(".safetensors"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *args, **options)

    for owner, name, failing, raised in (
        (distributed, "load", load, torch.OutOfMemoryError), (os, "open", opening, ReadError),
    ):  # fmt: skip
        with monkeypatch.context() as patch, pytest.raises(raised):
            patch.setattr(owner, name, failing)
            run(folder, store, steps=4)
    run(folder, store, steps=4)


def test_finished_run_is_kept_and_another_run_is_refused(
    finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, foreign = outcome(finished_run), tmp_path / "foreign"
    save_model(FourM(SMALL, all_layouts()), tmp_path)
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    monkeypatch.setattr(FourM, "__init__", lambda *_: pytest.fail("builds a model before it looks at the folder"))
    assert run(finished_run, store) == finished_run
    masking = MaskingConfig(input_budget=30, target_budget=24)
    for message, changed in (
        (r"train\.masking\.input_budget was 24, is 30", {"masking": masking}),
        (r"model\.heads was 2, is 4", {"model": dataclasses.replace(SMALL, heads=4)}),
        (r"modalities\.picture\.fingerprint was", {"fingerprints": {"picture": "another"}}),
        (r"order was \[", {"specs": all_layouts()[::-1]}),
    ):
        with pytest.raises(FolderError, match=message):
            run(finished_run, store, **changed)
    assert outcome(finished_run) == before
    with pytest.raises(ConfigError, match="start from"):
        run(finished_run, store, start=finished_run, overwrite=True)
    for folder, message in ((tmp_path, "not trained here"), (foreign, "notes.txt")):
        with pytest.raises(FolderError, match=message):
            run(folder, store)


def test_a_run_of_other_tokens_is_refused(finished_run: Path, store: Path, tmp_path: Path) -> None:
    """Otherwise a killed run would resume with other tokens, and a finished run would pass for a model of them."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    reversed_store = Path(shutil.copytree(store, tmp_path / "other"))
    reversed_tokens(reversed_store, "train", "picture")
    renamed = tmp_path / "renamed"  # the same tokens, in the same order, of other samples
    write_splits(renamed, prefix="other-")
    before = outcome(folder)
    for tokens in (reversed_store, renamed):
        with pytest.raises(FolderError, match=r"contents(\[0\])? was"):
            run(folder, tokens, run=Run(tokens=tokens))
    assert outcome(folder) == before


def test_previews_use_the_weights_that_the_run_will_save(store: Path, tmp_path: Path) -> None:
    previewed_weights: list[dict[str, torch.Tensor]] = []

    def show(model: FourM, _folder: Path, _step: int) -> dict[str, Path]:
        previewed_weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return {}

    folder = run(tmp_path, store, ema_decay=0.5, preview_every=TRAINING.steps, show=show)
    finished = load_model(folder).state_dict()
    (weights,) = previewed_weights
    assert all(torch.equal(finished[name], weight) for name, weight in weights.items())


def test_moved_tokens_are_recorded_in_run_and_last_weights(store: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", store, steps=1, ema_decay=0.5)
    moved = Path(shutil.copytree(store, tmp_path / "tokens"))
    run(tmp_path / "run", moved, steps=1, ema_decay=0.5)
    for folder in (tmp_path / "run", tmp_path / "run" / "last"):
        assert Run.load(folder).tokens == moved


def test_a_run_starts_from_a_backbone_of_other_modalities(finished_run: Path, store: Path, tmp_path: Path) -> None:
    specs = [*all_layouts()[3:], *all_layouts()[:2]]
    settings = {"specs": specs, "steps": 1, "learning_rate": 1e-9, "eval_samples": 10}
    run(tmp_path / "run", store, start=finished_run, **settings)
    old, new = load_model(finished_run), load_model(tmp_path / "run")
    torch.testing.assert_close(new.output["text"], old.output["text"], rtol=0, atol=1e-6)
    with pytest.raises(FolderError, match=r"start was .*, is null"):
        run(tmp_path / "run", store, **settings)
    with pytest.raises(ConfigError, match="heads was 2, is 4"):
        run(tmp_path / "other", store, model=dataclasses.replace(SMALL, heads=4), start=finished_run, **settings)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"warmup_steps": 0}, r"warmup_steps \(0\)"),
        ({"warmup_steps": 4}, r"steps \(8\), half of which are warm-up"),
        ({"warmup_steps": 0, "precision": "bfloat16"}, "set precision to float32"),
    ],
)
def test_diverged_run_keeps_its_state_and_suggests_effective_settings(
    store: Path, tmp_path: Path, settings: dict[str, Any], advice: str
) -> None:
    with pytest.raises(DivergedError, match=f"step 2 .*learning_rate .*{advice}$"):
        run(tmp_path, store, steps=8, learning_rate=1e30, gradient_clip=0.0, save_every=1, **settings)
    assert [path.name for path in (tmp_path / STATE).iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "0"), ("batch_size", 10**10, "10000000000"), ("gradient_clip", -1.0, r"-1\.0"),
        ("learning_rate", math.nan, "nan"), ("betas", [1.0, 0.9], r"1\.0"), ("seed", 2**63, "9"),
        ("loss_weights", {"words": math.nan}, "nan"), ("ema_decay", 1.0, r"1\.0"), ("decay_fraction", 2.0, r"2\.0"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[train.*{key}.*: expected .*got (int|float) {message}"):
        from_mapping(TrainConfig, {"learning_rate": 3e-3, key: value}, Origin(table="train"))


def test_a_rate_that_ends_above_the_peak_of_its_width_leaves_no_folder(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_learning_rate: .*0\.001.*0\.002"):
        run(tmp_path / "run", store, learning_rate=None, min_learning_rate=0.002)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_layers_compute_in_the_precision_of_the_settings(store: Path, tmp_path: Path, precision: str) -> None:
    dtypes = set()

    def watch(layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(layer, nn.Linear):
            dtypes.add(output.dtype)

    with register_module_forward_hook(watch):
        run(tmp_path, store, steps=2, precision=precision, loss="token")
    assert dtypes == {getattr(torch, precision)}
    assert metrics(tmp_path)[-1]["held_out/loss"] == pytest.approx(math.log(60), rel=0.2)


def test_held_out_samples_may_lack_modalities_or_be_absent(tmp_path: Path) -> None:
    specs = [spec("picture", GridLayout(shape=(2, 2)), 30), spec("words", sequence(6), 100)]
    write_store(tmp_path / "tokens", specs, 12)
    run(tmp_path / "none", tmp_path / "tokens", specs, steps=2)
    assert metrics(tmp_path / "none")[-1]["step"] == 2 and not metrics(tmp_path / "none", "held_out/loss")
    write_store(tmp_path / "tokens", specs[:1], 12, "test")
    run(tmp_path / "run", tmp_path / "tokens", specs, steps=2)
    assert metrics(tmp_path / "run")[-1].keys() == {"step", "held_out/loss", "held_out/picture"}
    write_store(tmp_path / "less", specs[:1], 12)
    with pytest.raises(DataError, match="train: 'words'"):
        run(tmp_path / "new", tmp_path / "less", specs)


@pytest.mark.parametrize("loss", ["modality", "token"])
def test_held_out_samples_without_a_target_are_reported_and_not_logged(
    loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [spec("picture", GridLayout(shape=(2, 2)), 30), spec("words", sequence(6), 100)]
    write_store(tmp_path / "tokens", specs, 12)
    write_store(tmp_path / "tokens", specs, 12, "test")
    pictures = MaskingConfig(input_budget=4, target_budget=4, mixtures=(Mixture(targets=("picture",)),))
    shutil.rmtree(tmp_path / "tokens/test/picture")
    write_store(tmp_path / "more", specs[:1], 12)
    datasets = (TrainingStore(tokens=tmp_path / "more"),)
    run(tmp_path / "run", tmp_path / "tokens", specs, steps=2, loss=loss, masking=pictures, datasets=datasets)
    assert "held_out" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert "no held-out sample has a target" in capsys.readouterr().err


def test_one_of_several_processes_exits_without_interpreter_shutdown() -> None:
    """Only the first of several processes prints results."""
    script = """
import atexit, os
from zoo_backbone.learn.distributed import leave
atexit.register(print, "at exit")
os.environ["RANK"] = "1"
if os.fork() == 0:
    leave(first=False)
    print("the second process went on")
os.wait()
os.environ["RANK"] = "0"
leave(first=False)
print("results")
leave()
print("the first process went on")
"""
    environment = {**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "results\n"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="adamw", marks=pytest.mark.slow),
        pytest.param({"optimizer": "muon"}, id="muon"),
        pytest.param(
            {"ema_decay": 0.9, "balance": "uncertainty", "activation_checkpointing": True}, id="options",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_two_processes_train_like_one_and_one_resumes_their_run(
    store: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    finished = run(tmp_path / "whole", store, **changes)
    saved = train_in_two_processes(tmp_path / "two", store, changes, interrupt_after=6)
    assert saved == ["step 6 of 12"] * 2, "both processes stop if one has a signal"
    assert len(list(tmp_path.glob("two/training_state/step-00000006/*.safetensors"))) == 2
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    train_in_two_processes(tmp_path / "two", store, changes)
    run(tmp_path / "one", store, **changes)
    for folder in ("two", "one"):
        for line, expected in zip(metrics(tmp_path / folder), metrics(finished), strict=True):
            assert line == pytest.approx(expected, rel=1e-4)
        loaded, uninterrupted = load_model(tmp_path / folder), load_model(finished)
        for name, tensor in uninterrupted.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
