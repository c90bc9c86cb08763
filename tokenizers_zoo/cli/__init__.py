"""The `zoo` command."""

from __future__ import annotations

import sys


def run() -> None:
    """Run `zoo`. An interrupt while its modules are imported is one line and exit code 130, too."""
    try:
        from tokenizers_zoo.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
