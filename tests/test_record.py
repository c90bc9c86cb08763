"""tools/record.py: a command's terminal output as an animated SVG."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

TOOL = Path(__file__).parent.parent / "tools" / "record.py"
SVG = "{http://www.w3.org/2000/svg}"
PROGRAM = r"""
for number in $(seq 30); do echo "line $number"; done
printf 'step 1 of 2'; sleep 0.4; printf '\r\033[2Kstep 2 of 2\n\033[1;32m<done>\033[0m\n'
"""


def test_a_command_becomes_an_animation(tmp_path: Path) -> None:
    program = tmp_path / "program.sh"
    program.write_text(PROGRAM)
    cast, svg = tmp_path / "demo.cast", tmp_path / "demo.svg"
    subprocess.run([sys.executable, TOOL, cast, svg, "bash", program], check=True, timeout=60)
    tree = ElementTree.parse(svg)
    rows = {group.get("id"): "".join(group.itertext()) for group in tree.iter(f"{SVG}g") if group.get("id")}
    (film,) = (group for group in tree.iter(f"{SVG}g") if group.get("class") == "film")
    frames = [[rows[use.get("href", "")[1:]] for use in frame.iter(f"{SVG}use")] for frame in film]
    assert frames[0] == ["$"] and frames[-1][-3:] == ["line 30", "step 2 of 2", "<done>"]
    assert any(frame[-1] == "step 1 of 2" for frame in frames)
    assert not any({"step 1 of 2", "step 2 of 2"} <= {*frame} for frame in frames), "a rewritten line is kept"
    assert max(map(len, frames)) == 24
    starts = [float(share) for share in re.findall(r"^([\d.]+)% \{", svg.read_text(), re.M)]
    assert len(starts) == len(frames) and starts[0] == 0 and starts == sorted({*starts}) and starts[-1] < 100

    before = svg.read_bytes()
    subprocess.run([sys.executable, TOOL, cast, svg], check=True, timeout=60)
    assert svg.read_bytes() == before
