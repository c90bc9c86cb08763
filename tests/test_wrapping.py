"""The page about wrappers, executed: its plugin wraps all modalities and knows which modality is called."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from examples import only, trained, values

from tokenizers_zoo.errors import PluginError

PAGE = Path(__file__).parent.parent / "docs" / "wrapping.md"
FILE = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```", re.M | re.S)
Install = Callable[..., Path]


@pytest.fixture
def page_installed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the page's distribution with its entry points; its report at exit is disabled."""
    monkeypatch.setattr("atexit.register", lambda function: function)
    files = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
    project = tomllib.loads(files["zoo-timing/pyproject.toml"])["project"]
    module = files["zoo-timing/zoo_timing/__init__.py"]
    install(project["name"], project["entry-points"], {"zoo_timing": module}, project["version"])


def test_the_wrapper_of_the_page_knows_which_modality_is_called(
    page_installed: None, install_example: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_example("one")
    install_example("two")
    zoo = only({"three": {"plugin": "one"}}, zoo={"checkpoints": str(tmp_path)})
    for name in ("one", "two", "three"):
        trained(zoo, name, zoo[name].checkpoint)
    assert "wrapper timing" not in zoo.problems()
    tokens = zoo["one"].encode(values(3))
    zoo["three"].encode(values(2))
    zoo["two"].decode(tokens)
    zoo["two"].decode(tokens)
    plugin = sys.modules["zoo_timing"].plugin
    assert plugin.samples == {("one", "encode"): 3, ("three", "encode"): 2, ("two", "decode"): 6}
    assert plugin.seconds.keys() == plugin.samples.keys() and min(plugin.seconds.values()) > 0
    plugin.tell()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" samples")[0] for line in told] == ["one: encode: 3", "three: encode: 2", "two: decode: 6"]


def test_results_and_errors_pass_through_the_wrapper(
    page_installed: None, install_example: Install, tmp_path: Path
) -> None:
    install_example("one")
    install_example("torn", {"return (means * (len(tokenizer) - 1)).round().long()": "raise ValueError('torn')"})
    zoo = only(zoo={"checkpoints": str(tmp_path)})
    for name in ("one", "torn"):
        trained(zoo, name, zoo[name].checkpoint)
    with pytest.raises(PluginError, match=r"torn: encode of plugin 'torn' .* ValueError: torn"):
        zoo["torn"].encode(values(2))
    assert sys.modules["zoo_timing"].plugin.samples == {("torn", "encode"): 2}
    whole = torch.stack([torch.from_numpy(value) for value in values(1)])
    means = whole.reshape(1, 4, 4, 4, 4).mean(dim=(2, 4))
    assert torch.equal(zoo["one"].encode(whole), (means * 15).round().long())
