"""The `zoo` command as users run it: its output, and one clear line for bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch
from command_world import the_world

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli import main as cli
from tokenizers_zoo.cli.main import RESUMES, SAVED, STARTS_AGAIN
from tokenizers_zoo.cli.main import zoo as group
from tokenizers_zoo.cli.options import parse_assignments
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.records.config import tables_of
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.model.run import Run as BackboneRun

ROOT = Path(__file__).parent.parent
REGISTRY = """[zoo]
image_size = 32
patch_size = 8
checkpoints = "tokenizers"
[vocabularies.text]
size = 1024
sentinels = 16
coordinate_bins = 32
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def zoo(run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo("list")` in a folder in which the whole pipeline ran."""
    monkeypatch.chdir(the_world().put_back().folder)
    return run_zoo


@pytest.fixture
def zoo_without_data(tmp_path: Path, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in a folder with only the registry."""
    (tmp_path / "registry.toml").write_text(REGISTRY)
    monkeypatch.chdir(tmp_path)
    return run_zoo


def test_data_info_counts_tokens(zoo: Run) -> None:
    code, printed, _ = zoo("data", "info", "tokens")
    assert code == 0
    rows = {tuple(row[:2]): row[2:] for row in (line.split() for line in printed.splitlines()[1:]) if row}
    assert set(rows) == {(split, name) for split in ("test", "train") for name in ("caption", "depth", "rgb_patches")}
    samples, _, dropped, tokens, vocabulary, codec = rows["train", "depth"]
    assert (samples, tokens, dropped, vocabulary) == ("24", "96", "0", "depth")
    assert codec == TokenStore(Path("tokens")).open("train", "depth").fingerprint[:12]


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    """The exit code of an error, one line, no traceback, and each of `parts` in it."""
    code, _, complaint = result
    lines = [line for line in complaint.splitlines() if line.startswith("error: ")]
    assert code in (1, 2) and len(lines) == 1 and "Traceback" not in complaint, complaint
    for part in parts:
        assert part in lines[0], lines[0]


def test_list_and_info(zoo: Run) -> None:
    code, printed, _ = zoo("list")
    listed = {line.split()[0]: line.split() for line in printed.splitlines() if line[:1].strip()}
    assert code == 0 and listed["depth"][1:3] == ["grid", "2x2"]
    assert "yes" in listed["depth"] and "no" in listed["normal"]
    settings = json.loads(zoo("info", "depth", "--settings", "--json")[1])
    assert list(settings) == ["settings"] and settings["settings"]["modalities.depth"]["tokenizer"]["steps"] == 6
    depth = next(
        modality for modality in json.loads(zoo("list", "--json")[1])["modalities"] if modality["name"] == "depth"
    )
    assert depth["trained"] and depth["layout"] == {"kind": "grid", "shape": [2, 2]}
    assert [metric["bound"] for metric in depth["metrics"]] == [0.08, 0.93, None]
    code, printed, _ = zoo("info", "depth")
    assert code == 0 and "log metres" in printed and "abs_rel" in printed
    assert "lower is better; fit for use: at most 0.08" in " ".join(printed.split())
    code, printed, _ = zoo("source", "list")
    assert code == 0 and "scenes" in printed and "photos" in printed


def test_info_shows_every_setting_with_default_and_value_in_use(zoo_without_data: Run) -> None:
    """Also show the value in use if it differs: set by the modality's table, by [zoo] or by a preset."""
    text = REGISTRY + '[modalities.depth]\ntokenizer = { steps = 7 }\n[modalities.semseg]\npreset = "4m"\n'
    Path("own.toml").write_text(text)
    lines = zoo_without_data("--registry", "own.toml", "info", "depth", "--settings")[1].splitlines()
    assert max(map(len, lines)) <= 80
    printed = " ".join(" ".join(lines).split())
    handle = Zoo.from_toml(Path("own.toml"))["depth"]
    for table in [table for config in handle.plugin_settings() for table in tables_of(config, "modalities.depth")]:
        assert table.header in printed
        for key in table.keys:
            assert f"{key.name} {key.type}; default {key.default}" in printed or key.default == "required", key
            assert key.meaning in printed

    def info(name: str) -> str:
        return " ".join(zoo_without_data("--registry", "own.toml", "info", name, "--settings")[1].split())

    printed = info("depth")
    assert "; default 64; here 32 " in printed and "steps int >= 1; default 800; here 7 " in printed
    assert "[modalities.depth.tokenizer.diffusion] (absent unless given)" in printed
    assert "; default 64; here 224 " in info("semseg") and "size int >= 1; default 4096; here 1024 " in info("caption")


def test_info_of_a_source_shows_its_settings(zoo_without_data: Run) -> None:
    code, printed, _ = zoo_without_data("source", "info", "scenes")
    assert code == 0 and max(map(len, printed.splitlines())) <= 80 and "person" in printed
    for key in next(tables_of(Zoo.installed().source("scenes").spec.settings, "")).keys:
        assert f"  {key.name}  {key.type}; default {key.default}" in printed
        assert key.meaning in " ".join(printed.split())
    assert "image_size  int in [8, 2048]; default 64; here 32\n" in printed  # by [zoo]
    assert "path  str; required\n" in zoo_without_data("source", "info", "folder")[1]


def test_list_counts_installed_but_disabled_modalities(zoo_without_data: Run) -> None:
    installed = len(Zoo.installed())
    text = (
        '[zoo]\nmodalities = ["depth", "rgb"]\n[modalities.caption]\nenabled = false\n[modalities.b]\nplugin = "gone"\n'
    )
    Path("few.toml").write_text(text)
    code, printed, complaint = zoo_without_data("--registry", "few.toml", "list")
    assert code == 0 and len(printed.splitlines()) == 3
    assert complaint.startswith(f"{installed - 2} modalities are disabled (few.toml: ")
    assert "disabled" not in zoo_without_data("list")[2]


def test_list_shows_the_others_beside_a_damaged_tokenizer(zoo_without_data: Run) -> None:
    Path("mine.toml").write_text('[zoo]\ncheckpoints = "tokenizers"\n')
    damaged = Path("tokenizers/text/config.json")
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    (damaged.parent / "model.safetensors").touch()
    code, printed, complaint = zoo_without_data("--registry", "mine.toml", "list")
    states = {line.split()[0]: line for line in printed.splitlines() if line[:1].strip()}
    assert code == 0 and "damaged" in states["caption"] and "damaged" not in states["depth"]
    assert complaint.count("problem: tokenizers/text/config.json: damaged: ") == 1
    listed = json.loads(zoo_without_data("--registry", "mine.toml", "list", "--json")[1])
    assert {"depth"} <= {modality["name"] for modality in listed["modalities"]} and "caption" in listed["problems"]


def test_list_and_info_do_not_import_torch() -> None:
    program = "import sys; sys.argv = ['zoo', *sys.argv[1:]]\nfrom tokenizers_zoo.cli.main import main\nmain()\n"
    program += "assert 'torch' not in sys.modules"
    for words in ("list", "info rgb --settings"):
        subprocess.run([sys.executable, "-c", program, *words.split()], cwd=ROOT, check=True)


@pytest.mark.parametrize(("closed", "code", "complaint"), [
    (">&-", 1, "error: standard output is closed; > /dev/null discards it\n"), ("2>&-", 0, ""), ("<&-", 0, ""),
    ("<&- 2>&-", 0, ""), ("<&- >&- 2>&-", 1, ""),
])  # fmt: skip
def test_closed_standard_streams_are_handled(closed: str, code: int, complaint: str) -> None:
    program = "from tokenizers_zoo.cli.main import main\nmain()\n"
    words = shlex.join([sys.executable, "-c", program, "source", "list", "--quiet"])
    ended = subprocess.run(["sh", "-c", f"{words} {closed}"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, complaint) and ("scenes" in ended.stdout) == (code == 0)


def test_a_number_of_samples_that_no_disk_holds_is_refused(zoo_without_data: Run) -> None:
    for count in ("99999999999999999999", "9999999999999999"):
        words = f"data make scenes data --train {count} --test 1 --dry-run"
        assert_refused(zoo_without_data(*words.split()), "--train", count)


def test_errors_of_many_names_are_short(zoo_without_data: Run) -> None:
    names = [f"name_{number}" for number in range(20_000)]
    Path("many.toml").write_text(f"[zoo]\nmodalities = {json.dumps(names)}\nimage_size = {json.dumps(names)}\n")
    for words in (["--registry", "many.toml", "list"], ["info", "x" * 20_000]):
        result = zoo_without_data(*words)
        assert_refused(result)
        assert len(result[2]) < 2100, len(result[2])
    with pytest.raises(ZooError) as error:
        raise ZooError(f"a.json: needs {', '.join(names)}; install it")
    assert str(error.value).startswith("a.json: needs name_0, name_1, ") and str(error.value).endswith("; install it")
    assert len(str(error.value)) <= 2000


def commands(command: click.Command, path: str = "zoo") -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path} {name}")


def examples(text: str) -> list[list[str]]:
    """Return the commands in a text, split into words. A backslash continues a line; two spaces end a command."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    command_lines = [line.strip().partition("  ")[0] for line in lines if re.match(r"\s+zoo [-\w]", line)]
    return [shlex.split(command, comments=True) for command in command_lines]


def test_every_help_fits_a_screen_and_shows_an_example() -> None:
    for path, command in commands(group):
        settings = group.context_settings | {"terminal_width": 80}
        lines = command.get_help(click.Context(command, info_name=path, **settings)).splitlines()
        assert len(lines) <= (60 if command is group else 45) and max(map(len, lines)) <= 80, path
        assert "--help" in lines[-1] or isinstance(command, click.Group), path
        if command is not group:
            assert re.search(rf"Examples?:\n\s+{path}\b", "\n".join(lines)), path


def test_examples_use_existing_options_and_all_required_ones() -> None:
    """In the help of each command, and on all pages."""
    commands_by_path = dict(commands(group))
    texts = {path: command.help or "" for path, command in commands_by_path.items()}
    for page in ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md"):
        if page.name != "commands.md":
            texts[str(page)] = page.read_text(encoding="utf-8")
    for source, text in texts.items():
        for words in examples(text):
            start = 3 if words[1] == "--registry" else 1
            depth = next(n for n in (2, 1) if " ".join(["zoo", *words[start : start + n]]) in commands_by_path)
            called = commands_by_path[" ".join(["zoo", *words[start : start + depth]])]
            options, _, _ = called.make_parser(click.Context(called)).parse_args(words[start + depth :])
            missing = [
                option.name for option in called.params if option.required and not options.get(option.name or "")
            ]
            assert not missing, (source, words, missing)


def test_encode_and_decode_overwrite_no_file_unasked(zoo: Run) -> None:
    text = "A cat — naïve 木 \U0001f3e0 on the floor."
    Path("cat.txt").write_text(f"{text}\n", encoding="utf-8")
    assert_refused(zoo("encode", "caption", "cat.txt", "--out", "./cat.txt"), "cat.txt", "is read")
    assert zoo("encode", "caption", "cat.txt", "--out", "cat.json")[0] == 0
    code, printed, _ = zoo("decode", "caption", "cat.json")
    assert code == 0 and "cat_decoded.txt" in printed
    assert Path("cat_decoded.txt").read_text(encoding="utf-8").strip() == text
    Path("cat.txt").write_text("mine")
    assert_refused(zoo("decode", "caption", "cat.json"), "cat_decoded.txt", "already", "--out")
    for name in ("cat", "cat.txt"):
        Path("cat.txt").write_text("mine")
        assert zoo("decode", "caption", "cat.json", "--out", name)[0] == 0, "asked for by name"
        assert Path("cat.txt").read_text(encoding="utf-8").strip() == text


def test_a_missing_registry_is_named(zoo: Run, tmp_path: Path) -> None:
    """A mistyped registry, or a trained run's registry that has moved; ./registry.toml is another file."""
    assert_refused(zoo("--registry", "registri.toml", "list"), "registri.toml: no such file")
    gone, moved = tmp_path / "gone.toml", tmp_path / "moved"
    moved.mkdir()
    BackboneRun(tokens=Path("tokens").resolve(), registry=gone).save(moved)
    write_table(moved / "config.json", {"specs": [], "fingerprints": {}, "weights_sha256": ""})
    for words in (("backbone", "eval", str(moved)), ("retrieve", "eval", str(moved))):
        assert_refused(zoo(*words), str(moved), str(gone), "--registry FILE")
        code, _, complaint = zoo("--registry", "registry.toml", *words)
        assert code == 1 and str(gone) not in complaint


def test_a_variant_of_a_tokenizer_is_scored_in_its_folder(zoo: Run, tmp_path: Path) -> None:
    variant, own_scores = str(tmp_path / "variant"), Path("tokenizers/depth/evaluation.json")
    train = "tokenizer train depth --data data --set steps=2 --set quantizer=vq --out"
    assert zoo(*train.split(), variant)[0] == 0
    before, score = own_scores.read_bytes(), ("tokenizer", "eval", "depth", "--data", "data")
    settings = "--set", "quantizer=vq", "--checkpoint"
    code, printed, complaint = zoo(*score, *settings, variant, "--json")
    assert code == 0, complaint
    assert own_scores.read_bytes() == before
    scores = read_table(tmp_path / "variant/evaluation.json")
    assert json.loads(printed)["metrics"] == scores["metrics"] != read_table(own_scores)["metrics"]
    assert scores["split"] == "test" and scores["fingerprint"] == fingerprint(tmp_path / "variant")
    assert_refused(zoo(*score, "--checkpoint", variant), variant, "codebook_size")
    assert_refused(zoo(*score, "--checkpoint", "tokenizers/text"), "tokenizers/text: holds a TextVocabulary")
    assert_refused(zoo(*score, "--checkpoint", "nowhere"), "no tokenizer at nowhere")
    assert_refused(zoo(*score, *settings[:2]), "--set", "--checkpoint")


def test_a_missing_device_is_named(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words in ("tokenize data --out new", "backbone eval run", "encode depth registry.toml"):
        command = "zoo " + re.split(" (data|run|new|depth)", words)[0]
        assert_refused(zoo(*words.split(), "--device", "cuda"), f"{command}: ", '"cuda"', "--device")


def test_a_date_on_the_command_line_is_text() -> None:
    assignments = parse_assignments(["path=2026-05-01", "time=07:30:00", "steps=20", "levels=[8, 5]", "quantizer=vq"])
    assert list(assignments.values()) == ["2026-05-01", "07:30:00", 20, [8, 5], "vq"]


def test_all_tables_of_a_configuration_are_checked_before_training(zoo_without_data: Run) -> None:
    for text, parts in {
        "[eval]\nsamples = 4\ninputs = ['rgb']\n": ("asks.toml:3 [eval] inputs", "'rgb'"),
        "[transfer]\nhead = 'x'\n": ("asks.toml:2 [transfer] head", "'x'"),
        "train = 3\n": ("asks.toml:1 train", "got 3"),
    }.items():
        Path("asks.toml").write_text(text)
        for words in ("eval run", "train --tokens tokens --out new"):
            assert_refused(zoo_without_data("backbone", *words.split(), "--config", "asks.toml"), *parts)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "MemoryError ("),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "OutOfMemoryError: CUDA out of memory. ("),
        (EOFError("No data left in file"), 1, "error: unexpected EOFError: No data left in file"),
        (KeyboardInterrupt(), 130, f"\ninterrupted; {RESUMES.format(SAVED)}\n"),
    ],
    ids=["memory", "device", "bug", "interrupt"],
)
def test_errors_and_interruptions_are_one_line(
    zoo: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def stop(**_: object) -> None:
        raise error

    monkeypatch.setattr("tokenizers_zoo.cli.inspect.open_zoo", stop)
    exit_code, _, complaint = zoo("list")
    assert exit_code == code and message in complaint and len(complaint.strip().splitlines()) == 1
    assert ("a bug" in complaint) == isinstance(error, EOFError)


def test_interrupted_command_says_how_to_resume(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    commands_by_path = dict(commands(group))
    for path, words in (
        ("zoo tokenizer train", "depth --data data"),
        ("zoo backbone train", "--tokens tokens --out run"),
    ):
        monkeypatch.setattr(commands_by_path[path], "callback", stop)
        for flags, expected in (([], RESUMES), (["--overwrite"], STARTS_AGAIN)):
            message = f"\ninterrupted; {expected.format(SAVED)}\n"
            assert zoo(*path.split()[1:], *words.split(), *flags)[::2] == (130, message), path


def test_threads_spin_less_when_other_processes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(cli, "LOAD", tmp_path / "loadavg")
    for load, spins in ((None, None), ("0.00 0.00 0.00 1/80 4711", None), ("1.20 0.70 0.30 3/80 4711", cli.SPINS)):
        if load is not None:  # some systems have no such file
            (tmp_path / "loadavg").write_text(load)
        cli.avoid_spinning()
        assert os.environ.get("GOMP_SPINCOUNT") == spins
