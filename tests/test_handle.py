"""A modality's handle: tokenizer, checkpoint, refused values, and default hooks."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import only, trained, values, write_registry
from small_modalities import LETTERS, installed

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, DataError, InvalidValueError, PluginError
from tokenizers_zoo.files.checkpoint import (
    fingerprint,
    float32_by_default,
    is_complete,
    load_checkpoint,
    resolve_folder,
    save_checkpoint,
)  # fmt: skip
from tokenizers_zoo.records.io import replacing_file

Install = Callable[..., Path]
DEPTHS = np.random.default_rng(0).uniform(1, 5, (4, 1, 16, 16)).astype(np.float32)
# ---------------------------------------------------------------- tokenizers and checkpoints


def test_checkpoints_are_relative_to_the_registry_or_in_the_home_folder(
    install_example: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    install_example("a_map")
    text = "[modalities.a_map]\ncheckpoint = 'mine/a'\n[modalities.b_map]\nplugin = 'a_map'\n"
    text += "[modalities.c_map]\nplugin = 'a_map'\ncheckpoint = '~/large'\n"
    zoo = Zoo.from_toml(write_registry(tmp_path / "registry.toml", "[zoo]\ncheckpoints = '~/trained'\n" + text))
    assert zoo["b_map"].checkpoint == tmp_path / "home/trained/b_map"
    zoo = Zoo.from_toml(write_registry(tmp_path / "registry.toml", "[zoo]\ncheckpoints = 'codecs'\n" + text))
    folders = {"a_map": "mine/a", "b_map": "codecs/b_map", "c_map": "home/large"}
    assert {name: zoo[name].checkpoint for name in folders} == {name: tmp_path / at for name, at in folders.items()}
    assert not zoo["b_map"].has_tokenizer
    with pytest.raises(CheckpointError, match=rf"b_map: .*codecs/b_map; .* \[modalities.b_map\] of {zoo.path}$"):
        _ = zoo["b_map"].tokenizer


def test_a_trained_tokenizer_encodes_and_decodes(install_example: Install, tmp_path: Path) -> None:
    install_example("a_map")
    zoo = only({"a_map": {"checkpoint": str(tmp_path / "a")}})
    path = trained(zoo, "a_map", tmp_path / "a")
    handle = zoo["a_map"]
    assert handle.has_tokenizer and handle.fingerprint == fingerprint(path)
    tokens = handle.encode(values())
    assert tuple(tokens.shape) == (3, 4, 4) and not tokens.is_inference()
    expected = np.stack(values()).reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
    np.testing.assert_array_equal(tokens.numpy(), np.round(expected * 15).astype(np.int64))
    decoded = handle.decode(tokens)
    assert len(decoded) == 3 and decoded[0].shape == (1, 16, 16) and decoded[0].dtype == np.float32
    np.testing.assert_allclose(decoded[1][0, ::4, ::4], tokens[1].numpy() / 15, rtol=1e-6)
    assert torch.equal(handle.encode(torch.from_numpy(np.stack(values()))), tokens)
    assert torch.equal(handle.encode(np.stack(values())), tokens)
    mirrored = np.stack(values())[..., ::-1]  # a view
    assert torch.equal(handle.encode(mirrored), handle.encode(mirrored.copy()))
    assert all(np.array_equal(a, b) for a, b in zip(handle.decode(tokens.numpy()), decoded, strict=True))
    with pytest.raises(InvalidValueError, match=r"a_map: expected int64 \(batch, 4, 4\)"):
        handle.decode(tokens + 16)


@pytest.mark.parametrize("kind", ["plain", "gradients", "bfloat16"])
def test_tensors_are_accepted_wherever_arrays_are(depth_registry: Path, kind: str) -> None:
    handle = Zoo.from_toml(depth_registry)["depth"]
    tensor = torch.from_numpy(DEPTHS[0]).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    tensor.requires_grad_(kind == "gradients")
    array = tensor.detach().float().numpy()
    tokens = handle.encode([array])
    assert torch.equal(handle.encode([tensor]), tokens) and torch.equal(handle.encode(tensor[None]), tokens)
    handle.check(tensor)
    for value in (handle.fitted(tensor), handle.open(tensor), handle.transform(tensor, Crop())):
        assert isinstance(value, np.ndarray) and np.array_equal(value, array)
    assert handle.write(tensor) == handle.write(array)
    assert np.array_equal(np.asarray(handle.render(tensor)), np.asarray(handle.render(array)))
    assert handle.score([tensor, tensor], tensor[None].repeat(2, 1, 1, 1)) == handle.score([array] * 2, [array] * 2)
    assert np.array_equal(handle.constant_baseline([tensor]), handle.constant_baseline([array]))
    with pytest.raises(InvalidValueError, match="depth"):
        handle.check(tensor[0])


@pytest.fixture(scope="module")
def depth_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a tokenizer of one step."""
    path = tmp_path_factory.mktemp("depth_registry") / "registry.toml"
    path.write_text("[zoo]\nimage_size = 16\ncheckpoints = 'codecs'\nmodalities = ['depth']\n")
    handle = Zoo.from_toml(path)["depth"]
    handle.train_tokenizer(TrainingSamples(train=list(DEPTHS), test=list(DEPTHS)), handle.checkpoint, 0, steps=1)
    return path


def test_a_tokenizer_is_the_same_in_any_context_of_the_caller(depth_registry: Path, tmp_path: Path) -> None:
    expected, handle = Zoo.from_toml(depth_registry)["depth"].encode(DEPTHS), Zoo.from_toml(depth_registry)["depth"]
    with torch.device("meta"):
        _ = handle.tokenizer
    assert torch.equal(handle.encode(DEPTHS), expected)
    decoded = handle.decode(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(handle.encode(DEPTHS), expected)
        assert all(map(np.array_equal, handle.decode(expected), decoded))
    samples = TrainingSamples(train=list(DEPTHS), test=list(DEPTHS))
    for dtype in (torch.float64, torch.bfloat16):
        handle, state = Zoo.from_toml(depth_registry)["depth"], torch.random.get_rng_state()
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(handle.encode(DEPTHS), expected)  # loads, within inference mode
            assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == dtype
            assert handle.decode(expected)[0].dtype == np.float32
            handle.train_tokenizer(samples, tmp_path / str(dtype), 0, steps=1)
        finally:
            torch.set_default_dtype(torch.float32)
        assert {weight.dtype for weight in handle.tokenizer.module.parameters()} == {torch.float32}
        weights = (handle.checkpoint / "model.safetensors").read_bytes()
        assert (tmp_path / str(dtype) / "model.safetensors").read_bytes() == weights


def test_threads_see_one_default_dtype() -> None:
    """A thread that changes the dtype for a while does not change it for others."""
    inside, dtypes = threading.Barrier(2, timeout=20), list[torch.dtype]()

    def other() -> None:
        inside.wait()
        with float32_by_default():
            dtypes.append(torch.get_default_dtype())
            time.sleep(0.05)
            dtypes.append(torch.get_default_dtype())

    torch.set_default_dtype(torch.bfloat16)
    thread = threading.Thread(target=other)
    try:
        thread.start()
        with float32_by_default():
            inside.wait()
            time.sleep(0.02)
        thread.join()
        assert dtypes == [torch.float32] * 2 and torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_process_forked_during_a_load_can_load() -> None:
    script = (
        "import os, threading; from tokenizers_zoo.files.checkpoint import loading; import signal, torch\n"
        "holds, done = threading.Event(), threading.Event()\n"
        "def hold():\n with loading(): holds.set(); done.wait()\n"
        "thread = threading.Thread(target=hold); thread.start(); holds.wait()\n"
        "child = os.fork()\n"
        "if not child:\n signal.alarm(20)\n with loading(): os._exit(7)\n"
        "status = os.waitpid(child, 0)[1]; done.set(); thread.join()\n"
        "raise SystemExit(os.waitstatus_to_exitcode(status))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script]).returncode == 7


def test_another_device_reads_weights_and_fingerprint_together(install_example: Install, tmp_path: Path) -> None:
    install_example("a_map")
    first, second = (only({"a_map": {"checkpoint": str(tmp_path / "a"), "levels": levels}}) for levels in (16, 4))
    trained(first, "a_map", tmp_path / "a")
    handle, before = first["a_map"], first["a_map"].fingerprint
    assert len(handle.tokenizer) == 16
    trained(second, "a_map", tmp_path / "a")
    handle.device = "cpu:0"
    assert handle.fingerprint == second["a_map"].fingerprint != before and len(handle.tokenizer) == 4


def test_values_are_copied_if_a_plugin_reuses_its_buffer(make_handle: Callable[..., Any]) -> None:
    decoded = 'repeat(tokenizer[tokens], "batch h w -> batch 1 (h p) (w q)", p=4, q=4)'
    buffer = f"self.kept = getattr(self, 'kept', {decoded})\n        self.kept[:] = {decoded}\n"
    handle = make_handle({f"return {decoded}": f"{buffer}        return self.kept"})
    tokens = handle.encode(values())
    first = handle.decode(tokens)
    before = [value.copy() for value in first]
    handle.decode(0 * tokens)
    assert all(np.array_equal(a, b) for a, b in zip(first, before, strict=True)) and first[0].any()


def test_sequences_and_objects_are_copied_if_a_plugin_reuses_them(tmp_path: Path) -> None:
    source = LETTERS.replace('kind="text"', 'kind="object", items="number"')
    for hook, replacement in {
        "return [np.array(": "self.row[:] = values[0]; return [self.row]\n    row, kept = np.zeros(2, int), [[]]",
        'return ["".join(': "self.kept[0][:] = tokens[0].tolist()\n        return self.kept",
    }.items():
        source = source.replace(source[source.index(hook) :].partition("\n")[0], replacement)
    with installed(tmp_path, "again", {"letters": source}):
        zoo = only({"letters": {"checkpoint": str(tmp_path / "letters")}})
        trained(zoo, "letters", tmp_path / "letters")
        tokens = zoo["letters"].encode([[3, 4]])
        zoo["letters"].encode([[5, 5]])
        decoded = zoo["letters"].decode(tokens)
        zoo["letters"].decode([np.array([5, 5])])
        assert tokens[0].tolist() == [3, 4] and decoded == [[3, 4]]


@pytest.mark.parametrize("same", [True, False])
def test_killed_replacement_never_mixes_two_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    def save(number: int) -> None:
        weights = {"codes": torch.full((3,), 0.0 if same else float(number))}
        save_checkpoint(tmp_path, weights, {"class": "Example", "number": number}, "An example.\n")

    def state_on_disk() -> str:
        if not is_complete(tmp_path):
            return "none"
        tensors, config = load_checkpoint(tmp_path)
        assert same or tensors["codes"][0] == config["number"]
        return "old" if config["number"] == 1 else "new"

    def replace_until(last: int) -> Callable[..., None]:
        def replace(*paths: Path) -> None:
            nonlocal done
            if done == last:
                raise KeyboardInterrupt
            done += 1
            rename(*paths)

        return replace

    rename, outcomes = os.replace, []
    for last in range(3):
        save(1)
        done = 0
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", replace_until(last))
            save(2)
        outcomes.append(state_on_disk())
    save(2)
    assert state_on_disk() == "new" and outcomes == ["old" if same else "none"] * 3


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    """safetensors writes to `.tmpXXXXXX` in the same folder."""
    for suffix in ("", ".d/.tmpK5gzAS"):
        (left := tmp_path / f".model.safetensors.0123.tmp{suffix}").parent.mkdir(exist_ok=True)
        left.write_bytes(b"half")
    save_checkpoint(tmp_path, {"codes": torch.zeros(3)}, {"class": "Example"}, "An example.\n")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    before, mode = os.umask(0o027), 0o640
    try:
        save_checkpoint(tmp_path / "checkpoint", {"codes": torch.zeros(3)}, {"class": "Example"}, "An example.\n")
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "checkpoint").iterdir()} == {mode}
        for content in ("new", "replaced"):
            with replacing_file(tmp_path / "file") as temporary:
                temporary.write_text(content)
            assert (tmp_path / "file").read_text() == content
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    finally:
        os.umask(before)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_on_which_only_root_changes_modes_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refused)
    with replacing_file(tmp_path / "file") as temporary:
        temporary.write_text("written")
    assert (tmp_path / "file").read_text() == "written"


def test_interrupted_download_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class TransportError(Exception):
        """Not an OSError, like the errors of the hub's transport."""

    def broken_off(hub_id: str, **options: Any) -> str:
        raise TransportError("peer closed the connection\nwithout a word")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken_off)
    with pytest.raises(CheckpointError, match=r"^some/a: .*: peer closed the connection$"):
        resolve_folder("some/a")


@pytest.mark.parametrize(("revision", "cached"), [(None, False), (None, True), ("v1", True)])
def test_a_cached_download_keeps_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, revision: str | None, cached: bool
) -> None:
    downloads = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        downloads.append((name, revision, local_files_only))
        if local_files_only and not cached:
            raise FileNotFoundError
        assert not {"*", "*.bin", "*.pt", "*.py"} & set(allow_patterns)
        return str(tmp_path / "snapshots" / ("c0ffee" if local_files_only else revision or "newest"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    folder = resolve_folder(f"some/a@{revision}" if revision else "some/a")
    assert folder.name == ("c0ffee" if cached else "newest")
    assert downloads == [("some/a", revision, True), ("some/a", "c0ffee" if cached else revision, False)]


def test_a_train_hook_that_leaves_no_checkpoint_is_an_error(install_example: Install, tmp_path: Path) -> None:
    install_example("a_map", {"        save_checkpoint(": "        (lambda *_: None)("})
    with pytest.raises(PluginError, match="train_tokenizer of plugin 'a_map'"):
        trained(only(), "a_map", tmp_path / "a")


def test_tokenizer_other_than_the_pinned_one_is_refused(install_example: Install, tmp_path: Path) -> None:
    install_example("a_map")
    pinned = "0" * 64
    text = f"[modalities.a_map]\ncheckpoint = 'a'\nsha256 = '{pinned}'\n"
    zoo = Zoo.from_toml(write_registry(tmp_path / "registry.toml", text))
    trained_fingerprint = fingerprint(trained(zoo, "a_map", tmp_path / "a"))
    with pytest.raises(CheckpointError, match=rf"{trained_fingerprint}.*{pinned}|{pinned}.*{trained_fingerprint}"):
        zoo["a_map"].encode(values())
    write_registry(tmp_path / "registry.toml", text.replace(pinned, trained_fingerprint))
    assert Zoo.from_toml(tmp_path / "registry.toml")["a_map"].encode(values()).shape == (3, 4, 4)


def test_retraining_reloads_the_tokenizer_of_all_that_share_it(install_example: Install, tmp_path: Path) -> None:
    shared = {"vocab_size=config.levels": 'vocab_size=16, vocabulary="levels"'}
    install_example("one", shared)
    install_example("two", shared)
    zoo = only(zoo={"checkpoints": str(tmp_path)})
    trained(zoo, "one", zoo["one"].checkpoint)
    before = zoo["two"].fingerprint
    assert len(zoo["two"].tokenizer) == 16
    coarser_zoo = only({"one": {"levels": 4}}, zoo={"checkpoints": str(tmp_path)})
    assert len(coarser_zoo["two"].tokenizer) == 16
    trained(coarser_zoo, "one", coarser_zoo["one"].checkpoint)
    assert coarser_zoo["two"].fingerprint != before and len(coarser_zoo["two"].tokenizer) == 4


def test_a_pickled_handle_works_in_another_folder(
    depth_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(depth_registry.parent)
    handle = Zoo.from_toml(depth_registry.name)["depth"]
    handle.device = "cpu:0"
    tokens, sent = handle.encode(DEPTHS), (handle, handle, handle.at(Path("codecs/depth")))
    pickled = pickle.dumps(sent)
    monkeypatch.chdir(tmp_path)
    received = pickle.loads(pickled)
    assert received[0] is received[1]
    for copy, original in zip(received, sent, strict=True):
        assert (copy.name, copy.device) == ("depth", original.device)
        assert copy.checkpoint == depth_registry.parent / "codecs/depth"
        assert torch.equal(copy.encode(DEPTHS), tokens)


def test_hub_id_is_not_reported_as_a_missing_folder(
    install_example: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example("a_map")
    hub = only({"a_map": {"checkpoint": "somebody/a-tokenizer"}})["a_map"]
    assert hub.has_tokenizer and hub.files.hub_id == "somebody/a-tokenizer"
    pinned = only({"a_map": {"checkpoint": "somebody/a-tokenizer@v1.0"}})["a_map"]
    assert pinned.files.hub_id == "somebody/a-tokenizer@v1.0"
    assert only({"a_map": {"checkpoint": "somebody/a"}}, zoo={"checkpoints": "."})["a_map"].has_tokenizer
    for local in ("runs/a", "some/where/a", "./some/a", str(tmp_path / "a"), "some/my--a", "some/a.git"):
        assert not only({"a_map": {"checkpoint": local}})["a_map"].has_tokenizer, local
    pipeline_files = dataclasses.replace(hub.files, checkpoint=tmp_path / "made")
    (tmp_path / "made/samples").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: f"/cache/{hub_id}")
    assert pipeline_files.folder() == Path("/cache/somebody/a-tokenizer")
    trained(only(), "a_map", tmp_path / "made")
    assert pipeline_files.folder() == tmp_path / "made"  # a folder that is there by now goes before the hub


# ---------------------------------------------------------------- input and output validation


@pytest.fixture
def make_handle(install_example: Install, tmp_path: Path) -> Callable[..., Any]:
    """A trained handle of an example plugin with changes."""

    def make(changes: Mapping[str, str] | None = None) -> Any:
        install_example("a_map", changes)
        zoo = only({"a_map": {"checkpoint": str(tmp_path / "a")}})
        trained(zoo, "a_map", tmp_path / "a")
        return zoo["a_map"]

    return make


def test_bad_values_are_refused_wherever_they_enter(make_handle: Callable[..., Any]) -> None:
    handle, value = make_handle(), np.full((1, 16, 16), np.nan, np.float32)
    for refuses in (handle.check, handle.write, lambda value: handle.encode([values()[0], value])):
        with pytest.raises(InvalidValueError, match=r"a_map: .* finite"):
            refuses(value)
    for batch in ([], "text", torch.zeros(2, 1, 16, 16, dtype=torch.float64), torch.full((2, 1, 16, 16), torch.nan)):
        with pytest.raises(InvalidValueError, match="a_map: expected"):
            handle.encode(batch)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (".round().long()", ".round().int()", r"encode of plugin 'a_map' of zoo-a_map 1.0 .* int32"),
        (".round().long()", ".round().long() + 99", "outside the range"),
        (".round().long()", ".round().long()[:2]", "tokens of 3 values"),
        ("means = reduce(", "raise ValueError('1\\n2')  # ", r"encode .* ValueError: 1 2 \(.*zoo_a"),
        ("return repeat(", "raise NotImplementedError  # (", r"decode .* to be written"),
        ("repeat(tokenizer[tokens]", "repeat(2 * tokenizer[tokens]", r"decode .* outside the range"),
        ("repeat(tokenizer[tokens]", "repeat(tokenizer[tokens][:2]", r"decode .* 3 values, .* 2"),
    ],
)
def test_plugin_return_values_are_checked(old: str, new: str, message: str, make_handle: Callable[..., Any]) -> None:
    handle = make_handle({old: new})
    with pytest.raises(PluginError, match=message):
        handle.encode(values())
        handle.decode(torch.full((3, 4, 4), 12))


def test_optional_hooks_are_checked_too(make_handle: Callable[..., Any]) -> None:
    handle = make_handle(
        {
            "np.ascontiguousarray(picked": "np.float64(picked",
            '{"mae": float(': '{"rmse": float(',
            "return Image.fromarray(": "return np.asarray(",
        }
    )
    with pytest.raises(PluginError, match=r"transform of plugin 'a_map' .* float64"):
        handle.transform(values()[0], Crop())
    with pytest.raises(PluginError, match=r"score .* mae, .*'rmse'"):
        handle.score(values(), values())
    with pytest.raises(PluginError, match=r"render .* uint8"):
        handle.render(values()[0])
    with pytest.raises(DataError, match="a_map: is not derived"):
        handle.derive({})


def test_transform_accepts_any_size_and_returns_the_declared_size(make_handle: Callable[..., Any]) -> None:
    handle = make_handle()
    assert handle.transform(values(side=40)[0], Crop(left=0.5, width=0.5)).shape == (1, 16, 16)
    with pytest.raises(InvalidValueError, match=r"a_map: .* shape"):
        handle.transform(np.zeros((3, 40, 40), np.float32), Crop())


# ---------------------------------------------------------------- defaults of optional hooks


def test_defaults_of_optional_hooks(make_handle: Callable[..., Any]) -> None:
    handle = make_handle()
    value = values()[0]
    data, extension = handle.write(value)
    assert extension == "npy"
    np.testing.assert_array_equal(handle.read(data, ".NPY"), value)
    with pytest.raises(InvalidValueError, match=r"a_map: .* \.npy .* \.png"):
        handle.read(data, "png")
    for damaged in (b"", b"garbage", data[:-7]):
        with pytest.raises(InvalidValueError, match=r"a_map: damaged .npy file"):
            handle.read(damaged, "npy")
    assert handle.vocabulary_tokens() == () and handle.vocabulary_texts([value]) == () and not handle.single_ids()
    levels = [np.full((1, 16, 16), level, np.float32) for level in (0, 0.4, 0.5, 0.9, 1)]
    assert handle.constant_baseline(levels)[0, 0, 0] == 0.5  # the median has the least mean absolute error
    with pytest.raises(InvalidValueError, match="as many predictions as targets"):
        handle.score(levels, levels[:2])


def test_damaged_files_are_invalid_values_whatever_the_plugin_raises(make_handle: Callable[..., Any]) -> None:
    reader = "    @hookimpl\n    def read_value(self, data):\n        return [][1]\n\n    @hookimpl\n    def score("
    handle = make_handle({"    @hookimpl\n    def score(": reader})
    with pytest.raises(InvalidValueError, match=r"a_map: .*\.npy: IndexError"):
        handle.read(b"", "npy")
