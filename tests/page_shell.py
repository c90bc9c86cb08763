"""Write the files of a docs/ page to a folder and run its commands there, unchanged."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

BLOCK = re.compile(r"^```\w+(?: file=(\S+))?\n(.*?)^```", re.M | re.S)


def page_files(page: Path) -> dict[str, str]:
    """Return the files of a page by path."""
    return {path: text for path, text in BLOCK.findall(page.read_text(encoding="utf-8")) if path}


def page_steps(page: Path) -> list[tuple[str, str]]:
    """Return files as (path, text) and commands as ("", command), in the order of the page."""
    steps = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        path, text = block.groups()
        if path:
            steps.append((path, text))
        elif block.group().startswith("```console"):
            steps += [("", line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
    return steps


class Shell:
    """A new virtual environment that also sees the packages of the current one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        packages = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
        below = sysconfig.get_path("purelib")
        (Path(packages) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
        binaries = folder / "env" / "bin"
        for name, module, main in (
            ("zoo", "tokenizers_zoo.cli.main", "main"), ("pytest", "pytest", "console_main"),
            ("torchrun", "torch.distributed.run", "main"),
        ):  # fmt: skip
            script = f"#!{binaries}/python\nimport sys\nfrom {module} import {main}\n"
            script += f"if __name__ == '__main__':\n    sys.exit({main}())\n"
            (binaries / name).write_text(script)
            (binaries / name).chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONWARNINGS", None)

    def run(self, command: str, *expect: int, within: str = ".") -> str:
        """Run a command line of a page and return its output. The exit code must be 0 or one of `expect`.

        `within` is the working folder; it is created if missing.
        """
        folder = self.folder / within
        folder.mkdir(exist_ok=True)
        words = shlex.split(command)
        if words[0] == "pip":
            words = [str(self.folder / "env" / "bin" / "python"), "-m", *words]
            # The build backend is among the project's development packages, so that nothing has to be downloaded.
            words += ["--no-build-isolation"] if "install" in words else []
        done = subprocess.run(
            words, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode in (expect or (0,)), f"{command}: exit code {done.returncode}\n{output[-3000:]}"
        assert "Traceback" not in output, output[-3000:]
        return output
