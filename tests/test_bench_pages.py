"""The tables that benches write into a page."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_table_replaces_its_predecessor_or_goes_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from pages import write_table

    page = tmp_path / "page.md"
    page.write_text("# Page\n\nText.\n", encoding="utf-8")
    before = "# Page\n\nText.\n\n<!-- speed: made by bench/speed.py -->\n"
    write_table(page, "speed", [{"name": "a", "seconds": 3}], "Once.")
    table = "| name | seconds |\n| --- | --- |\n| a | {} |\n<!-- end of speed -->\n"
    assert page.read_text(encoding="utf-8") == f"{before}Once.\n\n{table.format(3)}"
    page.write_text(page.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    write_table(page, "speed", [{"name": "a", "seconds": 2}], "Again.")
    assert page.read_text(encoding="utf-8") == f"{before}Again.\n\n{table.format(2)}\nMore.\n"
