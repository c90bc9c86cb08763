"""Command output fits 80 columns, is not truncated, and is not parsed as markup."""

from __future__ import annotations

import pytest

from tokenizers_zoo import progress
from tokenizers_zoo.cli.options import plain_table, show_table


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
    ("title", "total", "width", "shown"),
    [
        ("derive train/semantic_metadata", 1234567, 80, "━━━━ 1234567/1234567 "),
        *((f"evaluate {'rgb_patches, caption and ' * 2}metadata", 121, width, "… ━━━━ 121/121 0:00:00 left 0:00:00")
          for width in (40, 80)),
    ],
)  # fmt: skip
def test_progress_fits_the_width_and_keeps_its_figures_whole(
    title: str, total: int, width: int, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with progress.progress_bar(title, total) as advance:
        advance(total)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line.rstrip()) <= width and shown in line and ("…" in line) == (total == 121)
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
