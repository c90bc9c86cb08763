"""A trained model that `AnyToAny.from_pretrained("showcase")` and every command with a RUN take by its name.

`make showcase` trains it again (`configs/showcase.toml`) and writes the bundle in `showcase/`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "showcase"
