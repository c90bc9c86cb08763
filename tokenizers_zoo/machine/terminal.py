r"""Functions that print texts: none can move the cursor, change colours or reverse letters.

Names, captions and reasons in data may hold any character. Control characters are printed as `\u001b`, as JSON would
write them, and so are characters that change the direction of text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed; separators of lines; directions of text; halves of characters."""


def printable(text: object) -> str:
    r"""Return a text with `\u001b` for each character of `UNSAFE`."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", str(text))


def echo(text: object = "", *, err: bool = False, bold: bool = False) -> None:
    """Print a text on stdout, or on stderr, as `printable` returns it; `bold` on terminals that can."""
    click.echo(click.style(printable(text), bold=True) if bold else printable(text), err=err)


def console(**options: Any) -> Console:
    """Return a console of rich on stderr whose texts are `printable`; `options` are rich's."""
    from rich.console import Console
    from rich.segment import Segment

    class Printable(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    return Printable(**{"stderr": True, **options})


def show(renderable: RenderableType, width: int | None) -> None:
    """Print a renderable of rich on stdout, without spaces at the ends of lines; None: the terminal's width."""
    out = console(stderr=False, markup=False, highlight=False, width=width)
    with out.capture() as capture:
        out.print(renderable)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
