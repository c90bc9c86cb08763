"""Record a command in a terminal of 80 columns, and draw the recording as an animated SVG.

    python tools/record.py runs/demo.cast demo.svg make demo
    python tools/record.py runs/demo.cast demo.svg             # draw an earlier recording again

The recording is an asciicast of asciinema (version 2) with real times. The animation is shorter: each line gets a short
time, and the rest is divided in proportion to the square roots of the real times. A clock shows the real time.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import json
import os
import pty
import shlex
import struct
import sys
import termios
import time
from collections.abc import Sequence
from datetime import timedelta
from html import escape
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

import pyte

COLUMNS, ROWS = 80, 24
SECONDS, LAST = 20.0, 3.0
"""Seconds of the animation for the command's output, and for the last frame."""
FRAME, PER_LINE, PER_LETTER = 0.1, 0.05, 0.08
"""Seconds: shortest frame, least time of a line, time of a typed letter."""
CELL, LINE, MARGIN, TITLE, FONT = 9.6, 20, 16, 34, 16
"""Pixels: width and height of a character, margin, height of the title, size of the font."""
PROMPT = "\x1b[32m$\x1b[0m "
COLORS = {
    "default": "#d6d6d6", "black": "#7d7d7d", "red": "#f47067", "green": "#8ddb8c", "brown": "#e5c07b",
    "blue": "#6cb6ff", "magenta": "#dcbdfb", "cyan": "#76d4d6", "white": "#ffffff",
}  # fmt: skip
STYLE = f"""
text {{ font: {FONT}px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", "Liberation Mono", Consolas, monospace;
       white-space: pre; fill: {COLORS["default"]} }}
.b {{ font-weight: bold }}
.clock {{ fill: {COLORS["black"]}; text-anchor: end }}
"""


class Frame(NamedTuple):
    """A picture of the terminal."""

    film_time: float
    """Seconds since the start of the animation."""
    real: float
    """Seconds since the start of the command."""
    rows: tuple[str, ...]
    """Each row as SVG, with its baseline at 0."""


class Screen(pyte.Screen):  # type: ignore[misc]
    """A terminal that counts all its lines and draws its rows."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines)
        self.scrolled, self.count, self.row_svgs = 0, 0, [""] * lines

    def index(self) -> None:
        self.scrolled += self.cursor.y == self.lines - 1
        super().index()
        self.count = max(self.count, self.scrolled + self.cursor.y)

    def rows(self) -> tuple[str, ...]:
        """Return the rows as SVG: a text for each run of characters in one style."""
        for number in self.dirty:
            self.row_svgs[number], column = "", 0
            characters = [self.buffer[number][column_number] for column_number in range(self.columns)]
            for (color, bold), group in groupby(characters, key=attrgetter("fg", "bold")):
                text = "".join(character.data for character in group)
                if visible := text.rstrip():
                    style = "" if color == "default" else f' style="fill:{COLORS.get(color, f"#{color}")}"'
                    weight = ' class="b"' if bold else ""
                    position = f'x="{column * CELL:g}" textLength="{len(visible) * CELL:g}"'
                    self.row_svgs[number] += f"<text {position}{weight}{style}>{escape(visible, quote=False)}</text>"
                column += len(text)
        self.dirty.clear()
        return tuple(self.row_svgs)


def record(cast: Path, command: Sequence[str]) -> int:
    """Run a command in a terminal, show and record its output, and return its exit code."""
    process, terminal = pty.fork()
    if process == 0:
        for name in ("COLUMNS", "LINES", "NO_COLOR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            os.environ.pop(name, None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.execvpe(command[0], [*command], os.environ | {"TERM": "xterm-256color"})
    start, decoder = time.time(), codecs.getincrementaldecoder("utf-8")("replace")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "timestamp": int(start), "command": shlex.join(command)}
    cast.parent.mkdir(parents=True, exist_ok=True)
    with cast.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        while data := read(terminal):
            sys.stdout.write(text := decoder.decode(data))
            sys.stdout.flush()
            file.write(json.dumps([round(time.time() - start, 3), "o", text]) + "\n")
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def read(terminal: int) -> bytes:
    """Return the next output, or b"" after the end of the process."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux
        return b""


def frames_of(cast: Path) -> list[Frame]:
    """Return the frames of the animation; the first ones type the command."""
    header, *events = (json.loads(line) for line in cast.read_text("utf-8").splitlines())
    screen = Screen(header["width"], header["height"])
    stream = pyte.Stream(screen)
    stream.feed(PROMPT)
    frames = [Frame(0.0, 0.0, screen.rows())]
    for letter in header["command"]:
        stream.feed(letter)
        frames.append(Frame(frames[-1].film_time + PER_LETTER, 0.0, screen.rows()))
    stream.feed("\r\n")

    states = []  # (line number, real seconds, rows) after each piece of output
    for real, _, text in events:
        for piece in text.splitlines(keepends=True):
            stream.feed(piece)
            states.append((screen.count, real, screen.rows()))
    lines = [list(group) for _, group in groupby(states, key=itemgetter(0))]
    ends = [0.0, *(line[-1][1] for line in lines)]
    roots = [(end - begin) ** 0.5 for begin, end in pairwise(ends)]
    scale = max(SECONDS - PER_LINE * len(lines), 0.0) / max(sum(roots), FRAME)
    start, timed = frames[-1].film_time + 5 * PER_LETTER, []
    for line, begin, root in zip(lines, ends, roots, strict=False):
        length = PER_LINE + scale * root
        timed += [
            Frame(start + length * ((real - begin) / root**2 if root else 1), real, rows) for _, real, rows in line
        ]
        start += length
    latest = {int(frame.film_time / FRAME): frame for frame in timed}
    return frames + [frame._replace(film_time=number * FRAME) for number, frame in latest.items()]


def svg_of(frames: Sequence[Frame], title: str) -> str:
    """Return an animated SVG: a column of frames that moves behind a window."""
    width, height = COLUMNS * CELL + 2 * MARGIN, ROWS * LINE + TITLE + MARGIN
    names = {
        row: f"r{number}" for number, row in enumerate(dict.fromkeys(row for frame in frames for row in frame.rows))
    }
    total = frames[-1].film_time + LAST
    keys, film = [], []
    for number, frame in enumerate(frames):
        keys.append(f"{frame.film_time / total:.3%} {{ transform: translateY({-number * height}px) }}")
        film.append(f'<g transform="translate(0 {number * height})">')
        clock = timedelta(seconds=int(frame.real))
        film.append(f'<text class="clock" x="{width - 2 * MARGIN:g}" y="-12">real time {clock}</text>')
        film += [
            f'<use href="#{names[row]}" y="{(row_number + 0.8) * LINE:g}"/>'
            for row_number, row in enumerate(frame.rows)
            if row
        ]
        film.append("</g>")
    last = f"transform: translateY({-(len(frames) - 1) * height}px)"
    circles = "".join(
        f'<circle cx="{MARGIN + 6 + 20 * number}" cy="17" r="6" fill="{color}"/>'
        for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    size = f'viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}.film {{ animation: film {total:.2f}s step-end infinite }}",
        "@keyframes film {", *keys, "}",
        f"@media (prefers-reduced-motion: reduce) {{ .film {{ animation: none; {last} }} }}",
        "</style>",
        "<defs>", *(f'<g id="{name}">{row}</g>' for row, name in names.items() if row), "</defs>",
        f'<rect width="100%" height="100%" rx="8" fill="#1e1e1e"/>{circles}',
        f'<g transform="translate({MARGIN} {TITLE})"><g class="film">', *film, "</g></g>",
        "</svg>", "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cast", type=Path, help="the recording")
    parser.add_argument("svg", type=Path, help="the animation")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to record; default: draw CAST again")
    arguments = parser.parse_args()
    if arguments.command and (code := record(arguments.cast, arguments.command)):
        sys.exit(f"{shlex.join(arguments.command)}: failed with exit code {code}; nothing was drawn")
    frames = frames_of(arguments.cast)
    command = json.loads(arguments.cast.read_text("utf-8").partition("\n")[0])["command"]
    arguments.svg.write_text(svg_of(frames, f"{command}, in a terminal"), encoding="utf-8")
    print(f"{arguments.svg}: {frames[-1].film_time + LAST:.0f} s, {arguments.svg.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
