"""The training loop: optimizer, EMA, exact resuming, early stopping, messages, and the files of a run."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.errors import CheckpointError, ReadError
from tokenizers_zoo.files.checkpoint import load_checkpoint
from tokenizers_zoo.files.run_folder import TOKENIZER, FolderError
from tokenizers_zoo.machine.process import Interrupted, deferred_signals
from tokenizers_zoo.records.io import read_lines, read_table
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig
from tokenizers_zoo.tokenizers.quantizers.quantizer import Quantizer
from tokenizers_zoo.train.batches import seeded
from tokenizers_zoo.train.config import TrainConfig
from tokenizers_zoo.train.log import read_metrics
from tokenizers_zoo.train.loop import Task, train
from tokenizers_zoo.train.optim import DivergedError

DIM = 6


class Autoencoder(nn.Module):
    def __init__(self, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(DIM, 4), nn.Linear(4, DIM)
        self.drop = nn.Dropout(0.1)
        self.quantizer = Quantizer(quantizer, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        quantized = self.quantizer(self.drop(self.down(x))[:, None])
        return self.up(quantized.codes[:, 0]), quantized.tokens, quantized.loss


class VectorTask(Task):
    """A task of noisy six-number vectors that uses both random generators of the loop."""

    metrics = (Metric(name="mse", unit="", higher_is_better=False, meaning="mean squared error"),)

    def __init__(self, quantizer: QuantizerConfig | None = None, poison: float = 0.0, noise: float = 0.01) -> None:
        self.quantizer = quantizer or QuantizerConfig(levels=(5, 3, 3))
        self.codebook_size = self.quantizer.codebook_size
        self.poison, self.noise = poison, noise
        self.spec = ModalitySpec(
            name="vector",
            summary="six numbers",
            value=ValueSpec(shape=(DIM,)),
            layout=VectorLayout(length=self.quantizer.codes_per_position),
            vocab_size=self.codebook_size,
            num_codebooks=self.quantizer.codes_per_position,
            metrics=self.metrics,
        )

    def describe(self) -> Mapping[str, Any]:
        return {"class": "Autoencoder", "codebook_size": self.codebook_size}

    def build(self, train: Any, rng: np.random.Generator) -> nn.Module:
        module = Autoencoder(self.quantizer)
        module.drop.p = 0.1 if self.noise else 0.0
        return module

    def batch(self, values: list[Any], rng: np.random.Generator) -> torch.Tensor:
        noise = rng.normal(0, self.noise, (len(values), DIM)).astype(np.float32)
        return torch.from_numpy(np.stack(values) + noise)

    def losses(self, module: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs, _, quantizer_loss = module(batch)
        error = (outputs - batch).square().mean()
        return {"loss": error + quantizer_loss + self.poison * torch.tensor(math.inf if self.poison else 0.0)}

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], torch.Tensor]:
        outputs, tokens, _ = module(torch.from_numpy(np.stack(values)))
        return list(outputs.numpy()), tokens

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        return {"mse": float(np.mean((np.stack(predicted) - np.stack(target)) ** 2))}

    def render(self, value: Any) -> str:
        return " ".join(f"{number:.2f}" for number in value)


def vectors(count: int, seed: int) -> list[np.ndarray]:
    mix = np.random.default_rng(0).normal(size=(3, DIM))
    return list((np.random.default_rng(seed).normal(size=(count, 3)) @ mix).astype(np.float32))


SAMPLES = TrainingSamples(train=vectors(50, 1), test=vectors(20, 2), provenance={"source": "a random plane"})
STATE = TOKENIZER.state
CONFIG = TrainConfig(steps=12, batch_size=8, eval_every=5, warmup_steps=3, learning_rate=0.01, grad_accum_steps=2)


class Killed(Exception):
    """Raised in place of a kill signal."""


def killed_at(step: int) -> Any:
    def callback(done: int) -> None:
        if done == step:
            raise Killed

    return callback


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, "Autoencoder")[0]


def same_tensors(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(VectorTask(), SAMPLES, CONFIG, tmp_path_factory.mktemp("whole") / "run", 0)


def test_the_training_loop_equals_plain_adamw(tmp_path: Path) -> None:
    """One step against the update written out: arXiv 1711.05101, algorithm 2, with bias correction."""
    config = TrainConfig(
        steps=1, batch_size=50, warmup_steps=0, learning_rate=0.01, gradient_clip=0.0, ema_decay=0.0, weight_decay=0.1
    )
    task = VectorTask()
    task.batch = lambda values, rng: torch.from_numpy(np.stack(values))  # type: ignore[method-assign]
    with seeded(0):
        module = Autoencoder(task.quantizer)
    module.drop.p = 0.0
    task.build = lambda train, rng: module  # type: ignore[method-assign]
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    task.losses(module, torch.from_numpy(np.stack(SAMPLES.train)))["loss"].backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}  # type: ignore[union-attr]
    rate = config.learning_rate_at(0)
    after = weights(train(task, SAMPLES, config, tmp_path / "run", 0))
    for name, old in before.items():
        decay = 1 - rate * (0.1 if old.ndim > 1 else 0.0)
        step = gradients[name] / (gradients[name].abs() + 1e-8)
        torch.testing.assert_close(after[name], old * decay - rate * step, atol=2e-5, rtol=0)


def test_the_ema_weights_are_saved(tmp_path: Path) -> None:
    """The decay is min((1 + step) / (10 + step), ema_decay)."""
    module = Autoencoder(VectorTask().quantizer)
    task, snapshots = VectorTask(), list[dict[str, torch.Tensor]]()
    task.build = lambda train, rng: module  # type: ignore[method-assign]

    def look(step: int = 0) -> None:
        snapshots.append({name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()})

    look()
    config = TrainConfig(steps=3, batch_size=8, warmup_steps=0, learning_rate=0.01, ema_decay=0.2)
    saved = weights(train(task, SAMPLES, config, tmp_path, 0, on_step=look))
    for name, expected in snapshots[0].items():
        for decay, after in zip((1 / 10, 2 / 11, 0.2), snapshots[1:], strict=True):
            expected = decay * expected + (1 - decay) * after[name]
        torch.testing.assert_close(saved[name], expected, atol=1e-6, rtol=0)


def test_gradients_are_clipped_and_logged_unclipped(tmp_path: Path) -> None:
    """After one step, the optimizer's first moment is 0.1 times the gradient."""

    def one_step(limit: float) -> tuple[float, float]:
        folder, gradients = tmp_path / str(limit), list[torch.Tensor]()

        def look(step: int) -> None:
            state = load_file(folder / STATE)
            gradients.extend(10 * tensor.flatten() for name, tensor in state.items() if name.endswith("/exp_avg"))

        train(VectorTask(), SAMPLES, TrainConfig(steps=1, gradient_clip=limit), folder, 0, on_step=look)
        return float(torch.cat(gradients).norm()), logged(folder)[0]["train/gradient_norm"]

    (unclipped, norm), (clipped, logged_norm) = one_step(0.0), one_step(1e-3)
    assert clipped == pytest.approx(1e-3, rel=1e-3) and logged_norm == norm == pytest.approx(unclipped, rel=1e-5)
    assert norm > 0.1


@pytest.mark.parametrize("step", [3, 5, 11, 12])
def test_a_training_killed_at_any_step_gives_the_same_weights(uninterrupted: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0, on_step=killed_at(step))
    if step >= 5:
        assert (tmp_path / STATE).is_file()
    steps: list[int] = []
    train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0, on_step=steps.append)
    resumed_after = {3: 0, 5: 5, 11: 10, 12: 12}[step]
    assert steps == list(range(resumed_after + 1, 13))
    assert same_tensors(weights(tmp_path), weights(uninterrupted))
    assert (tmp_path / "config.json").read_text() == (uninterrupted / "config.json").read_text()
    assert [line["step"] for line in logged(tmp_path)] == [line["step"] for line in logged(uninterrupted)]


def signals(*numbers: int, at: int) -> Any:
    def callback(done: int) -> None:
        for number in numbers if done == at else ():
            os.kill(os.getpid(), number)

    return callback


@pytest.mark.parametrize(
    ("number", "quantizer"),
    [
        (signal.SIGTERM, QuantizerConfig(levels=(5, 3, 3))),
        (signal.SIGINT, QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=4)),
    ],
)
def test_an_interrupted_training_resumes_from_its_step(tmp_path: Path, number: int, quantizer: QuantizerConfig) -> None:
    """Interrupted between two evaluations and two lines of the log, while it waits for a better metric."""
    config = dataclasses.replace(CONFIG, steps=27, eval_every=7, patience=9)
    uninterrupted = train(VectorTask(quantizer), SAMPLES, config, tmp_path / "whole", 0)
    folder, handlers = tmp_path / "run", [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for step in (13, 14, 26):
        with pytest.raises(Interrupted) as interrupted:
            train(VectorTask(quantizer), SAMPLES, config, folder, 0, on_step=signals(number, signal.SIGTERM, at=step))
        assert (interrupted.value.number, interrupted.value.saved) == (number, f"step {step} of 27 (vector)")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    steps: list[int] = []
    train(VectorTask(quantizer), SAMPLES, config, folder, 0, on_step=steps.append)
    assert steps == [27]
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0, on_step=signals(signal.SIGINT, signal.SIGINT, at=3))
    assert not isinstance(interrupted.value, Interrupted) and not (tmp_path / STATE).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_still_ends_the_command(number: int) -> None:
    """The training has nothing to save, and commands after it must not run."""
    sent: list[int] = []
    before = signal.signal(number, lambda number, _: sent.append(number))
    try:
        with deferred_signals() as received:
            os.kill(os.getpid(), number)
            assert received == [number] and not sent
        assert sent == [number]
    finally:
        signal.signal(number, before)


def test_a_finished_training_is_lengthened(uninterrupted: Path, tmp_path: Path) -> None:
    """After a kill, it goes on to the same result. The finished weights stay until then."""
    longer, results = dataclasses.replace(CONFIG, steps=21), []
    for kills in ((), (12, 13, 16)):
        folder = Path(shutil.copytree(uninterrupted, tmp_path / str(len(kills))))
        for step in kills:
            with pytest.raises(Killed):
                train(VectorTask(), SAMPLES, longer, folder, 0, on_step=killed_at(max(step, 13)))
            assert same_tensors(weights(folder), weights(uninterrupted)) and read_metrics(folder)
        steps: list[int] = []
        train(VectorTask(), SAMPLES, longer, folder, 0, on_step=steps.append)
        assert steps[0] == (16 if kills else 13) and steps[-1] == 21
        assert load_checkpoint(folder)[1]["lengthened"] == [12]
        assert [line["step"] for line in logged(folder)] == [5, 10, 10, 12, 12, 15, 20, 20, 21, 21]
        results.append(weights(folder))
        train(VectorTask(), SAMPLES, longer, folder, 0, on_step=lambda _: pytest.fail("trained again"))
    assert same_tensors(*results) and not same_tensors(results[0], weights(uninterrupted))
    rates = [line["train/learning_rate"] for line in logged(folder) if "train/learning_rate" in line]
    assert rates[2:] == [longer.learning_rate_at(step - 1) for step in (20, 21)], "the schedule of the longer run"


class RandomNumberRecorder(VectorTask):
    """A task that notes a random number of each generator of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.batches, self.forward = list[float](), list[float](), list[float]()

    def build(self, train: Any, rng: np.random.Generator) -> nn.Module:
        self.begun += [float(torch.rand(())), rng.random()]
        return super().build(train, rng)

    def batch(self, values: list[Any], rng: np.random.Generator) -> torch.Tensor:
        self.batches.append(rng.random())
        return super().batch(values, rng)

    def losses(self, module: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.forward.append(float(torch.rand(())))
        return super().losses(module, batch)


def test_random_numbers_depend_on_seed_and_batch_alone(tmp_path: Path) -> None:
    config, before = dataclasses.replace(CONFIG, steps=2), torch.get_rng_state()

    def random_numbers(seed: int, name: str) -> list[float]:
        task = RandomNumberRecorder()
        train(task, SAMPLES, config, tmp_path / name, seed)
        assert (len(task.begun), len(task.batches), len(task.forward)) == (2, 4, 4)
        return task.begun + task.batches + task.forward

    first, second = random_numbers(0, "first"), random_numbers(1, "other")
    assert random_numbers(0, "again") == first and len({*first, *second}) == 20
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(FolderError, match="seed was 0, is 1"):
        train(VectorTask(), SAMPLES, config, tmp_path / "first", 1)


def test_without_provenance_runs_are_identified_by_their_values(tmp_path: Path) -> None:
    samples = dataclasses.replace(SAMPLES, provenance={})
    train(VectorTask(), samples, CONFIG, tmp_path, 0)
    copied = dataclasses.replace(samples, train=[value.copy() for value in samples.train])
    assert train(VectorTask(), copied, CONFIG, tmp_path, 0, on_step=lambda _: pytest.fail("again")) == tmp_path
    for split in ("train", "test"):
        changed = dataclasses.replace(samples, **{split: vectors(len(getattr(samples, split)), 7)})
        with pytest.raises(FolderError, match=rf'data.provenance.contents.{split} was "\w+", is "\w+"'):
            train(VectorTask(), changed, CONFIG, tmp_path, 0)
    with pytest.raises(FolderError, match=r"data\.train was 50, is 40"):
        train(VectorTask(), dataclasses.replace(SAMPLES, train=SAMPLES.train[:40]), CONFIG, tmp_path, 0)


def test_only_unreadable_content_counts_as_a_damaged_state(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0, on_step=killed_at(6))
    state = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="damaged"):
        train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0)
    (tmp_path / STATE).write_bytes(state)

    def failing(path: Any, *rest: Any, real_open: Any = os.open) -> Any:
        if str(path).endswith(".safetensors"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real_open(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(ReadError, match=r"state.safetensors: cannot be read"):
            train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0)
        with pytest.raises(ReadError, match=r"model.safetensors: cannot be read"):
            load_checkpoint(uninterrupted)
    train(VectorTask(), SAMPLES, CONFIG, tmp_path, 0)
    assert same_tensors(weights(tmp_path), weights(uninterrupted))


def test_a_finished_run_has_metrics_card_and_log(uninterrupted: Path) -> None:
    names = "README.md config.json evaluation.json metrics.jsonl model.safetensors run.json samples tensorboard"
    assert {path.name for path in uninterrupted.iterdir()} - {".lock"} == {STATE, *names.split()}
    result = result_of(uninterrupted)
    assert result["samples"] == 20 and result["steps"] == 12
    module = Autoencoder(QuantizerConfig(levels=(5, 3, 3)))
    module.load_state_dict(weights(uninterrupted))
    with torch.inference_mode():
        predicted, tokens = VectorTask().reconstruct(module.eval(), SAMPLES.test)  # type: ignore[arg-type]
    assert result["metrics"]["mse"] == pytest.approx(VectorTask().score(predicted, SAMPLES.test)["mse"], rel=1e-6)  # type: ignore[arg-type]
    assert result["codebook"]["usage"] == pytest.approx(len(tokens.unique()) / 45)
    card = (uninterrupted / "README.md").read_text()
    assert "a random plane" in card and "Zoo.from_toml" in card
    steps = [line["step"] for line in logged(uninterrupted)]
    assert steps == [5, 10, 10, 12, 12]
    assert "held_out/mse" in logged(uninterrupted)[0] and "train/loss" in logged(uninterrupted)[-2]


def test_a_nonfinite_loss_stops_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"vector: step 1 of 12: .*inf.*learning_rate"):
        train(VectorTask(poison=1.0), SAMPLES, CONFIG, tmp_path, 0)


# ---------------------------------------------------------------- stopping early


class GivenScores(VectorTask):
    """A task with a given held-out metric for each evaluation; the last number is for the final evaluation."""

    def __init__(self, marks: list[float]) -> None:
        super().__init__()
        self.marks = iter(marks)

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        return {"mse": next(self.marks)}


def result_of(folder: Path) -> dict[str, Any]:
    return read_table(folder / "evaluation.json")


def test_patience_stops_and_keeps_the_best_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations 1 to 3 improve, 4 and 5 do not, so step 5 is the last and the weights of step 3 are kept."""

    class Seen(GivenScores):
        def reconstruct(self, module: nn.Module, values: list[Any]) -> Any:
            snapshots.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
            return super().reconstruct(module, values)

    snapshots: list[dict[str, torch.Tensor]] = []
    config = TrainConfig(steps=9, batch_size=8, eval_every=1, patience=2)
    folder = train(Seen([5.0, 4.0, 3.0, 3.0, math.nan, 1.0, 0.5]), SAMPLES, config, tmp_path, 0)
    result = result_of(folder)
    assert (result["steps"], result["kept_step"], result["metrics"]["mse"]) == (5, 3, 1.0)
    assert "stops after step 5 of 9" in " ".join(capsys.readouterr().err.split())
    assert same_tensors(weights(folder), snapshots[2]) and not same_tensors(snapshots[2], snapshots[4])
    longer = dataclasses.replace(config, steps=12)  # the waiting starts again
    train(Seen([2.0, 2.5, 2.5, 0.5]), SAMPLES, longer, folder, 0)
    result = result_of(folder)
    assert (result["steps"], result["kept_step"]) == (8, 6) and load_checkpoint(folder)[1]["lengthened"] == [5]


@pytest.mark.parametrize("step", [4, 5])
def test_a_killed_run_remembers_how_long_it_waited(tmp_path: Path, step: int) -> None:
    """Killed between evaluations, and after the evaluation that ends the run."""
    marks = [5.0, 4.0, 4.5, 4.6, 4.7, 1.0]
    config = TrainConfig(steps=9, batch_size=8, eval_every=1, patience=3)
    uninterrupted = train(GivenScores(marks), SAMPLES, config, tmp_path / "whole", 0)
    with pytest.raises(Killed):
        train(GivenScores(marks), SAMPLES, config, tmp_path / "killed", 0, on_step=killed_at(step))
    resumed = train(GivenScores(marks[step:]), SAMPLES, config, tmp_path / "killed", 0)
    for result in (result_of(uninterrupted), result_of(resumed)):
        assert (result["steps"], result["kept_step"]) == (5, 2)
    assert same_tensors(weights(resumed), weights(uninterrupted))
    assert (resumed / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()


# ---------------------------------------------------------------- batches, codebooks, settings


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    shared = {"steps": 3, "eval_every": 3, "learning_rate": 0.01, "warmup_steps": 0}
    large_batch = train(VectorTask(noise=0), SAMPLES, TrainConfig(**shared, batch_size=12), tmp_path / "whole", 0)
    parts = train(
        VectorTask(noise=0), SAMPLES, TrainConfig(**shared, batch_size=4, grad_accum_steps=3), tmp_path / "p", 0
    )
    for name, tensor in weights(large_batch).items():
        torch.testing.assert_close(weights(parts)[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_collapsing_codebook_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantizer = QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=4, kmeans_iterations=0, revive_below=0.0)
    same_tensors = [np.ones(DIM, np.float32)] * 40
    config = TrainConfig(steps=40, batch_size=8, eval_every=10, eval_samples=40)
    train(VectorTask(quantizer, noise=0), TrainingSamples(train=same_tensors, test=same_tensors), config, tmp_path, 0)
    output = " ".join(capsys.readouterr().err.split())
    for step in (20, 30, 40):
        assert f"step {step}: the codebook collapses: 1.6% of 64" in output
    assert "step 10: the codebook" not in output, "it has not settled"


def test_usage_of_several_codebooks_is_counted_apart(tmp_path: Path) -> None:
    quantizer = QuantizerConfig(kind="residual_fsq", levels=(5, 3), num_codebooks=3)
    folder = train(VectorTask(quantizer), SAMPLES, dataclasses.replace(CONFIG, steps=2), tmp_path, 0)
    module = Autoencoder(quantizer)
    module.load_state_dict(weights(folder))
    with torch.inference_mode():
        _, tokens = VectorTask(quantizer).reconstruct(module.eval(), SAMPLES.test)  # type: ignore[arg-type]
    usages = [len(tokens[..., column].unique()) / 15 for column in range(3)]
    codebook = result_of(folder)["codebook"]
    assert codebook["usage"] == pytest.approx(np.mean(usages))
    assert codebook["reachable"] == pytest.approx(1 - math.exp(-20 / 15))
    assert (codebook["codebooks"], codebook["least_usage"]) == (3, pytest.approx(min(usages)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_layers_run_in_the_chosen_precision(precision: str, tmp_path: Path) -> None:
    module = Autoencoder(VectorTask().quantizer)
    task, dtypes = VectorTask(), set[tuple[str, torch.dtype]]()
    task.build = lambda train, rng: module  # type: ignore[method-assign]
    for name in ("down", "up", "quantizer.project_in"):

        def look(layer: nn.Module, _: Any, output: torch.Tensor, name: str = name) -> None:
            if layer.training:
                dtypes.add((name, output.dtype))

        module.get_submodule(name).register_forward_hook(look)
    config = TrainConfig(steps=2, eval_every=2, precision=precision)  # type: ignore[arg-type]
    saved = weights(train(task, SAMPLES, config, tmp_path, 0))
    dtype = getattr(torch, precision)
    assert dtypes == {("down", dtype), ("up", dtype), ("quantizer.project_in", torch.float32)}
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}


def test_evaluation_samples_are_spread_over_the_split(tmp_path: Path) -> None:
    evaluated: list[list[int]] = []

    class Watched(VectorTask):
        def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
            evaluated.append([int(value[0]) for value in target])
            return super().score(predicted, target)

    numbered = [np.full(DIM, number, np.float32) for number in range(20)]
    samples = dataclasses.replace(SAMPLES, test=numbered)
    train(Watched(), samples, dataclasses.replace(CONFIG, eval_samples=5), tmp_path, 0)
    *during, final = evaluated
    assert during and all(numbers == [0, 4, 8, 12, 16] for numbers in during), "the first may all be of one kind"
    assert final == list(range(20))


# ---------------------------------------------------------------- memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a setting of glibc")
def test_freed_memory_is_reused_in_training_and_returned_afterwards() -> None:
    """Also at the end of an inner block, such as the previews of a training."""
    script = """
import ctypes, resource
from tokenizers_zoo.machine.process import LIBC, kept_memory
LIBC.malloc.restype = ctypes.c_void_p

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(LIBC.malloc(120 << 20))
    LIBC.memset(block, 1, 120 << 20)
    LIBC.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_pages():
    return int(open("/proc/self/statm").read().split()[1])

with kept_memory():
    with kept_memory():
        new_pages()
    assert min(new_pages() for _ in range(3)) < 1000
    inside = resident_pages()
assert inside - resident_pages() > 25_000, "pages of 4 KiB"
assert new_pages() > 25_000
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("key", ["batch_size", "grad_accum_steps"])
def test_a_batch_that_would_never_be_complete_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}: expected int in \[1, 1000000\], got int 10000000000"):
        TrainConfig(**{key: 10**10})  # type: ignore[arg-type]
