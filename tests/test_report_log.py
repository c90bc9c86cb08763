"""Output of commands and training loops: tables, progress with and without a terminal, TensorBoard logs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli.options import plain_table, show_table
from tokenizers_zoo.machine import progress
from tokenizers_zoo.records.io import read_lines
from tokenizers_zoo.train.config import TrainConfig
from tokenizers_zoo.train.log import StepLog
from tokenizers_zoo.train.report import Evaluation, TrainingReport
from zoo_backbone import FourM
from zoo_backbone.learn.train import TrainingLog
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.config import TrainConfig as BackboneConfig


def log_of(folder: Path, done: int = 0) -> StepLog:
    return StepLog(folder, "a loop", steps=8, done=done, samples_per_step=4, loggers=["tensorboard"])


def lines_of(folder: Path) -> list[dict[str, float | None]]:
    return read_lines(folder / "metrics.jsonl")


def board_of(folder: Path) -> Any:
    """Read the TensorBoard files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


@pytest.mark.parametrize("steps_done", [0, 2])
def test_a_resumed_log_has_each_step_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], steps_done: int) -> None:
    """`steps_done` = 0: the run was killed before its first checkpoint."""
    for first, last in ((0, 5), (steps_done, 7)):
        capsys.readouterr()
        with log_of(tmp_path, done=first) as log:
            for step in range(first + 1, last + 1):
                log.write(step, {"loss": last})
    assert ("a loop: goes on after step 2" in capsys.readouterr().err) == (steps_done == 2)
    expected = [(step, 5 if step <= steps_done else 7) for step in range(1, 8)]
    assert lines_of(tmp_path) == [{"step": step, "loss": loss} for step, loss in expected]
    assert sorted((event.step, event.value) for event in board_of(tmp_path).Scalars("loss")) == expected


def test_without_a_terminal_lines_come_at_intervals_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_of(tmp_path) as log:
        log.advance(1, 0.25)
    assert [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()] == ["a loop: step 1 of 8"]
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with log_of(tmp_path) as log:
        for step in (1, 2):
            log.advance(step, 0.25)
        log.note = "[error] 3 m"
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("a loop: step 1 of 8, loss 0.25, ") and first.endswith(" left")
    assert second.startswith("a loop: step 2 of 8, ") and "samples/s" in second
    assert last.startswith("a loop: step 2 of 8, loss 0.25, [error] 3 m, ") and "took 0:00:" in last


def test_tensorboard_has_scalars_and_pictures_of_both_loops(tmp_path: Path, zoo: Zoo) -> None:
    config = TrainConfig(steps=10, batch_size=2)
    pair = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    evaluation = Evaluation(
        metrics={"abs_rel": 0.25},
        pairs=[pair],
        samples=1,
        codebook={"usage": 0.5, "perplexity": 3.0, "size": 6, "reachable": 0.5},
    )
    for name in ("tokenizer", "backbone"):
        (tmp_path / name).mkdir()
    with TrainingReport(zoo["depth"].spec, "a tokenizer", False, config, tmp_path / "tokenizer", 0, []) as report:
        for step in range(1, 11):
            report.step(step, {"loss": step / 10, "quantizer_loss": 0.0}, 1e-3)
        report.evaluation(10, evaluation)
    assert report.note == "abs_rel 0.25, codebook 50% (even: 50%)"  # the maximum for so few tokens
    model = FourM(ModelConfig(dim=32, heads=2, encoder_depth=1, decoder_depth=1), [zoo["depth"].spec])
    with TrainingLog(tmp_path / "backbone", BackboneConfig(steps=10, batch_size=2), 0, model) as log:
        for step in range(1, 11):
            log.step(step, 7.0 - step, 1.0, 1e-3, {"depth": 6.0})
        log.held_out(10, 5.0, {"depth": 4.0})
        log.flush()
    assert log.note == "held-out loss 5"

    tokenizer, backbone = (board_of(tmp_path / name) for name in ("tokenizer", "backbone"))
    assert set(tokenizer.Tags()["scalars"]) == {
        "train/loss", "train/quantizer_loss", "train/learning_rate", "held_out/abs_rel", "codebook/usage",
        "codebook/perplexity", "speed/samples_per_second",
    }  # fmt: skip
    assert [(event.step, event.value) for event in tokenizer.Scalars("train/loss")] == [(10, pytest.approx(0.55))]
    assert tokenizer.Tags()["images"] == ["held_out/input_and_reconstruction"]
    image = tokenizer.Images("held_out/input_and_reconstruction")[0]
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        assert np.asarray(picture)[4, [4, 14]].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert set(backbone.Tags()["scalars"]) == {
        "train/loss", "train/gradient_norm", "train/learning_rate", "train/depth", "held_out/loss", "held_out/depth",
        "speed/samples_per_second",
    }  # fmt: skip
    assert [event.step for event in backbone.Scalars("train/depth")] == [10]


# --- commands: 80 columns, not truncated, not parsed as markup


def test_tables_show_brackets_and_have_no_blanks_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = plain_table("name", ">count", "what", spaced=True)
    table.add_row("[bold]a[/]", "7", "a list [xmin, ymin] of [numbers]")
    table.add_row("b", "12", "")
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "[bold]a[/]" in text and "[xmin," in text and "[numbers]" in text
    assert all(line == line.rstrip() and len(line) <= 30 for line in lines)
    last = next(line for line in lines if line.startswith("b "))
    assert lines[1] == "" and last.endswith(" 12") and lines[lines.index(last) - 1] == ""


@pytest.mark.parametrize(
    ("title", "total", "width", "expected"),
    [
        ("derive train/semantic_metadata", 1234567, 80, "━━━━ 1234567/1234567 "),
        *((f"evaluate {'rgb_patches, caption and ' * 2}metadata", 121, width, "… ━━━━ 121/121 0:00:00 left 0:00:00")
          for width in (40, 80)),
    ],
)  # fmt: skip
def test_progress_fits_the_width_and_keeps_its_figures_whole(
    title: str, total: int, width: int, expected: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(width))
    with progress.progress_bar(title, total) as advance:
        advance(total)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line.rstrip()) <= width and expected in line and ("…" in line) == (total == 121)
    with progress.progress_bar("make nothing", 0):
        pass
    assert not capsys.readouterr().err


def test_without_a_terminal_progress_is_printed_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed() -> list[str]:
        with progress.progress_bar("evaluate [a] to b", 4) as advance:
            advance(0, "evaluate a to b")
            advance(1)
            advance(2, "evaluate [a] to b")
            advance(1)
        return capsys.readouterr().err.splitlines()

    assert len(printed()) == 1
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    first, second, last = printed()
    assert first == "evaluate a to b: 1 of 4, 0:00:00 left" and second == "evaluate [a] to b: 3 of 4, 0:00:00 left"
    assert "━ 4/4 " in last
