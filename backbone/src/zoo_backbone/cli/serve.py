"""zoo serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import DEVICE, PATH
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.cli import run_argument

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.model.run import Run


@click.command("serve")
@run_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; 0.0.0.0 for other machines, too.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@click.option("--index", "index_folder", type=PATH, help="An index of zoo retrieve build, to find similar samples.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("--max-seconds", type=click.FloatRange(min=1), default=120, show_default=True, help="Time of a job.")
@click.option("--max-upload", type=click.FloatRange(min=0.1), default=20, show_default=True, help="Size of a file, MB.")
@click.option("--max-waiting", type=click.IntRange(min=1), default=16, show_default=True, help="Jobs in the queue.")
@DEVICE
def serve_command(
    run: Run,
    zoo: Zoo,
    host: str,
    port: int,
    index_folder: Path | None,
    open_browser: bool,
    max_seconds: float,
    max_upload: float,
    max_waiting: int,
    device: str,
) -> None:
    """Serve a page to play with a model, and a JSON API.

    Choose or upload inputs, edit texts, boxes and fields, mask regions, and watch
    targets being generated. The page loads nothing from other hosts. It has no
    login: serve it to people whom you trust.

    \b
    Examples:
      zoo serve runs/demo/backbone --open
      zoo serve bundle --index index --host 0.0.0.0
    """
    try:
        from zoo_backbone.use.serve.app import RequestLimits, serve
    except ImportError as error:
        raise ConfigError(f'zoo serve: needs {error.name}; pip install "zoo-backbone[serve]"') from None
    from zoo_backbone.use.any_to_any import AnyToAny
    from zoo_backbone.use.retrieval.index import Index

    model = AnyToAny.load(run, zoo, device=device)
    index = None if index_folder is None else Index(index_folder, run.folder)
    limits = RequestLimits(upload_bytes=int(max_upload * 1e6), waiting=max_waiting, seconds=max_seconds)
    serve(model, host, port, limits, index, open_browser)
