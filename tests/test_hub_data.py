"""Datasets of other programs: `hf` reads parquet, arrow and csv files and folders, `webdataset` tar files and URLs."""

from __future__ import annotations

import functools
import http.server
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores import write_tar

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.source import FileBytes
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.stores.shards import ValueStore

datasets = pytest.importorskip("datasets")
hf = pytest.importorskip("zoo_hub_data.hf")
Run = Callable[..., tuple[int, str, str]]
REGISTRY = """[zoo]
image_size = 16
patch_size = 8
modalities = ["boxes", "caption", "depth", "rgb", "semseg"]
"""
WORKERS = ("--workers", "0")


def picture(number: int, width: int = 40, height: int = 20) -> bytes:
    """Return a JPEG file whose middle square has the grey level of its number."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, (width - height) // 2 : (width + height) // 2] = 5 * number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def zoo(tmp_path: Path, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "registry.toml").write_text(REGISTRY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return run_zoo


def make(zoo: Run, *words: str) -> str:
    code, printed, complaint = zoo("data", "make", *words, *WORKERS)
    assert code == 0, complaint
    return printed


def error_line(zoo: Run, *words: str) -> str:
    code, _, complaint = zoo("data", "make", *words, *WORKERS)
    line = complaint.splitlines()[-1]
    assert code == 1 and line.startswith("error: "), complaint
    return line


def stored_values(name: str, split: str = "train") -> dict[str, Any]:
    handle, store = Zoo.from_toml("registry.toml")[name], ValueStore(Path("data"))
    return {key: store.read_key(handle, split, key) for key in store.keys(split, name)}


def without_border(picture: np.ndarray) -> np.ndarray:
    """Return a picture without its borders, where JPEG blurs."""
    return picture[:, 4:-4, 4:-4]


# ---------------------------------------------------------------- hf


def rows(count: int = 12) -> Any:
    """Return a table with pictures, captions for most, depth maps, labels, and an unknown column."""
    return datasets.Dataset.from_dict(
        {
            "photo": [{"bytes": picture(number), "path": None} for number in range(count)],
            "text": [f"level {number}" if number % 4 else None for number in range(count)],
            "depth": [np.full((1, 10, 20), number + 1.0, np.float32).tolist() for number in range(count)],
            "boxes": [[{"label": "chair", "box": [0.25, 0.0, 0.75, 1.0]}]] * count,
            "width": list(range(count)),
        },
        features=datasets.Features(
            photo=datasets.Image(), text=datasets.Value("string"),
            depth=datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
            boxes=datasets.List({"label": datasets.Value("string"), "box": datasets.List(datasets.Value("float64"))}),
            width=datasets.Value("int64"),
        ),
    )  # fmt: skip


def check_rows() -> None:
    """Assert that the stored values are those of `rows`."""
    pictures, captions, depth = (stored_values(name) for name in ("rgb", "caption", "depth"))
    assert len(pictures) == len(depth) == 12
    for key, value in pictures.items():
        number = int(key.rpartition("-")[2])
        assert without_border(value) == pytest.approx(number * 5 / 255, abs=0.03), "cropped to the middle"
        assert captions.get(key) == (f"level {number}" if number % 4 else None)
        assert depth[key] == pytest.approx(number + 1)
    assert next(iter(stored_values("boxes").values()))[0]["box"] == pytest.approx([0, 0, 1, 1])


@pytest.mark.parametrize("kind", ["parquet", "folder", "arrow", "saved"])
def test_local_datasets_of_any_kind_are_read(zoo: Run, kind: str) -> None:
    path = {"parquet": "rows.parquet", "folder": "rows/train-00000-of-00001.parquet", "saved": "rows"}.get(
        kind, "rows.arrow"
    )
    Path(path).parent.mkdir(exist_ok=True)
    if kind == "saved":
        rows().save_to_disk(path)
    elif kind == "arrow":
        rows().save_to_disk("saved")
        next(Path("saved").glob("*.arrow")).rename(path)
    else:
        rows().to_parquet(path)
    dataset_path = "rows" if kind == "folder" else path
    words = ("hf", "data", "--test", "0", "--set", f"path={dataset_path}", "--set", "test_fraction=0")
    printed = make(zoo, *words)
    assert "columns: boxes is boxes, depth is depth, photo is rgb, text is caption" in printed
    assert "rgb: stored at 16 x 16" in printed or "depth, rgb: stored at 16 x 16" in printed
    check_rows()
    second_output = make(zoo, *words)
    assert "12 unchanged" in second_output and "train/rgb: 0 written" in second_output


def test_columns_and_splits_are_chosen_by_settings(zoo: Run) -> None:
    Path("rows").mkdir()
    for split, count in (("train", 12), ("validation", 5)):
        table = rows(count).rename_columns({"photo": "a", "text": "b"})
        table.to_parquet(f"rows/{split}-00000-of-00001.parquet")
    columns = 'columns={a = "images", b = "caption", depth = ""}'
    printed = make(zoo, "hf", "data", "--set", "path=rows", "--set", columns)
    assert "train/rgb: 12 written" in printed and "test/rgb: 5 written" in printed and "depth" not in printed
    record = read_table(Path("data/dataset.json"))["splits"]["train"]["source"]
    assert record["source"] == "hf" and record["options"]["columns"] == {"a": "images", "b": "caption", "depth": ""}
    assert set(stored_values("rgb", "test")) == {f"validation-{number:08}" for number in range(5)}
    shared = ("--set", "path=rows/train-00000-of-00001.parquet", "--set", "test_fraction=0.4")
    make(zoo, "hf", "shared", *shared)
    keys = [set(ValueStore(Path("shared")).keys(split, "rgb")) for split in ("train", "test")]
    assert len(keys[0] | keys[1]) == 12 and not keys[0] & keys[1] and 1 < len(keys[1]) < 10


def test_a_stream_reads_in_order_and_needs_a_number(zoo: Run) -> None:
    rows().to_parquet("rows.parquet")
    words = ("hf", "data", "--set", "path=rows.parquet", "--set", "streaming=true", "--set", "test_fraction=0")
    assert "--train 1000" in error_line(zoo, *words, "--test", "0")
    make(zoo, *words, "--test", "0", "--train", "12")
    check_rows()
    streamed = Zoo.from_toml("registry.toml").source("hf").samples(
        "train", 12, 0, {"path": "rows.parquet", "streaming": True, "test_fraction": 0}
    )  # fmt: skip
    assert [streamed[index][0] for index in (3, 5, 4, 0)] == [f"train-{index:08}" for index in (3, 5, 4, 0)]


def test_changed_rows_are_made_again(zoo: Run) -> None:
    words = ("hf", "data", "--test", "0", "--set", "path=rows.parquet", "--set", "test_fraction=0")
    rows(8).to_parquet("rows.parquet")
    make(zoo, *words)
    rows(9).select(range(1, 9)).to_parquet("rows.parquet")
    assert "train/rgb: 8 written" in make(zoo, *words)
    assert stored_values("depth")["train-00000000"] == pytest.approx(2)


@pytest.mark.usefixtures("zoo")
def test_paths_in_a_dataset_are_not_followed_out_of_it() -> None:
    Path("secret.png").write_bytes(picture(1))
    Path("set").mkdir()
    Path("set/own.jpg").write_bytes(picture(2))
    Path("set/link.jpg").symlink_to(Path("secret.png").resolve())
    root = Path("set").resolve()
    file, *refusals = (
        hf.as_file({"bytes": None, "path": str(path)}, hf.FileRoots.of(hf.HubSettings(path="set")))
        for path in (
            root / "own.jpg", root / "link.jpg", root / "../secret.png", "", "../secret.png", "own.jpg\0",
            "zip://a.png::../secret.zip", f"zip://a.png::{root.parent}/secret.zip", "hf://datasets/some/one/a.png",
        )
    )  # fmt: skip
    assert file.data == picture(2)
    assert all("not among the dataset's files" in str(refusal) for refusal in refusals)


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize("kind", ["zip", "relative"])
def test_pictures_in_files_of_the_dataset_are_read(zoo: Run, kind: str, streaming: str) -> None:
    Path("set/images").mkdir(parents=True)
    if kind == "zip":
        with zipfile.ZipFile("set/train.zip", "w") as archive:
            for number in range(4):
                archive.writestr(f"{number}.jpg", picture(number))
    else:
        for number in range(4):
            Path(f"set/images/{number}.jpg").write_bytes(picture(number))
        files = [{"bytes": None, "path": f"images/{number}.jpg"} for number in range(4)]
        table = pa.table({"image": pa.array(files, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
        features = datasets.Features(image=datasets.Image())
        pq.write_table(table.cast(features.arrow_schema), "set/rows.parquet")
    path = "set" if kind == "zip" else "set/rows.parquet"
    settings = ("--set", f"path={path}", "--set", f"streaming={streaming}", "--set", "test_fraction=0")
    assert "train/rgb: 4 written" in make(zoo, "hf", "data", "--train", "4", "--test", "0", *settings)
    for number, value in enumerate(stored_values("rgb").values()):
        assert without_border(value) == pytest.approx(number * 5 / 255, abs=0.03)


def test_files_of_a_hub_dataset_are_read_from_its_own_repository_and_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/datasets/me/own@main/a.jpg", picture(3))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("b.jpg", picture(4))
    files.pipe("/datasets/me/own/train.zip", content.getvalue())
    real = fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda url, mode: real(url.replace("hf://", "memory://"), mode))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    downloads = [tmp_path / folder for folder in ("hub/datasets--me--own/blobs", "hub/datasets--you--own", "downloads")]
    for folder in downloads:
        folder.mkdir(parents=True)
        (folder / "c.jpg").write_bytes(picture(5))
    locations = hf.FileRoots.of(hf.HubSettings(path="me/own"))
    repository = "hf://datasets/me/own"
    for address, number in (
        (f"{repository}@main/a.jpg", 3), (f"zip://b.jpg::{repository}/train.zip", 4),
        (downloads[0] / "c.jpg", 5), (downloads[2] / "c.jpg", 5),
    ):  # fmt: skip
        assert hf.as_file({"bytes": None, "path": str(address)}, locations) == FileBytes(
            data=picture(number), extension="jpg"
        )
    for address in (
        f"{repository}er/a.jpg", f"{repository}/../../you/own/a.jpg", f"{repository}/%2e%2e/you/a.jpg", "hf://datasets/you/own/a.jpg",
        f"{repository}/a.jpg::file:///etc/passwd", downloads[1] / "c.jpg", tmp_path / "registry.toml", "a.jpg",
    ):  # fmt: skip
        refusal = hf.as_file({"bytes": None, "path": str(address)}, locations)
        assert "not among the dataset's files" in str(refusal), address
    for address in (
        f"{repository}/absent.jpg",
        f"zip://absent.jpg::{repository}/train.zip",
        f"zip://b.jpg::{repository}@main/a.jpg",
    ):
        assert isinstance(hf.as_file({"bytes": None, "path": address}, locations), InvalidValueError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["path=absent.parquet"], ["absent.parquet"]),
        (["path=rows.parquet", 'columns={foto = "rgb"}'], ["foto", "photo"]),
        (["path=rows.parquet", 'columns={photo = "rgbb"}'], ["rgbb", "rgb"]),
        (["path=rows.parquet", 'columns={photo = "rgb", text = "rgb"}'], ["one modality"]),
        (["path=rows.parquet", 'splits={train = "all"}'], ["no split 'all'", "train"]),
        (["path=registry.toml"], [".parquet"]),
    ],
)  # fmt: skip
def test_wrong_settings_of_hf_are_named(zoo: Run, options: list[str], words: list[str]) -> None:
    rows(2).to_parquet("rows.parquet")
    line = error_line(zoo, "hf", "data", "--test", "0", *(word for option in options for word in ("--set", option)))
    assert all(word in line for word in words), line


def test_without_the_package_its_install_line_is_shown(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "zoo-hub-data[hf]"' in error_line(zoo, "hf", "data", "--set", "path=somebody/something")


# ---------------------------------------------------------------- webdataset


def write_shards(folder: Path, shards: int = 3, samples: int = 4) -> None:
    """Write tar files: pictures, captions for all but the first of each, depth, masks and other files."""
    for shard in range(shards):
        files = {}
        for number in range(samples):
            files[f"{number:04}.jpg"] = picture(shard * samples + number)
            if number:
                files[f"{number:04}.txt"] = f"level {shard * samples + number}".encode()
            array = io.BytesIO()
            np.save(array, np.full((1, 10, 20), 1.0 + shard * samples + number, np.float32))
            files[f"{number:04}.depth.npy"] = array.getvalue()
            mask = io.BytesIO()
            Image.fromarray(np.full((10, 20), 1, np.uint8)).save(mask, "PNG")
            files[f"{number:04}.seg.png"] = mask.getvalue()
            files[f"{number:04}.cls"] = b"3"
        write_tar(folder / f"part-{shard:03}.tar", files)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `served` at a local address; yields the address and the list of requested files."""
    (tmp_path / "served").mkdir()
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path.rpartition("/")[2])
            super().do_GET()

        def log_message(self, *words: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", requested
        http_server.shutdown()


EXTENSIONS = 'extensions={"seg.png" = "semseg"}'


@pytest.mark.parametrize("path", ["served", "served/part-*.tar", "served/part-{000..002}.tar", "file", "http"])
def test_shards_are_read_from_folders_patterns_and_urls(zoo: Run, server: tuple[str, list[str]], path: str) -> None:
    write_shards(Path("served"))
    address, requested = server
    if path in ("file", "http"):
        path = (Path("served").resolve().as_uri() if path == "file" else address) + "/part-{000..002}.tar"
    settings = ("--set", EXTENSIONS, "--set", "test_fraction=0", "--set", "cache=downloads")
    words = ("webdataset", "data", "--test", "0", "--set", f"path={path}", *settings)
    printed = make(zoo, *words)
    for name, count in (("rgb", 12), ("caption", 9), ("depth", 12), ("semseg", 12)):
        assert f"train/{name}: {count} written" in printed
    assert "12 .cls" in printed and "stored at 16 x 16" in printed
    pictures, depth = stored_values("rgb"), stored_values("depth")
    assert list(pictures)[:5] == ["part-000/0000", "part-000/0001", "part-000/0002", "part-000/0003", "part-001/0000"]
    for number, (key, value) in enumerate(pictures.items()):
        assert without_border(value) == pytest.approx(number * 5 / 255, abs=0.03) and depth[key] == pytest.approx(
            number + 1
        )
    assert stored_values("caption")["part-002/0003"] == "level 11"
    assert "train/rgb: 0 written, 12 unchanged" in make(zoo, *words)
    if path.startswith("http"):
        assert sorted(requested) == [f"part-{number:03}.tar" for number in range(3)], "each is downloaded once"


def test_only_needed_shards_are_downloaded(zoo: Run, server: tuple[str, list[str]]) -> None:
    write_shards(Path("served"))
    address, requested = server
    words = ("--set", f"path={address}/part-{{000..002}}.tar", "--set", "test_fraction=0", "--set", "cache=downloads")
    assert "train/rgb: 6 written" in make(zoo, "webdataset", "data", "--train", "6", "--test", "0", *words)
    assert requested == ["part-000.tar", "part-001.tar"]
    assert list(stored_values("rgb"))[-1] == "part-001/0001"


def test_a_test_split_comes_from_shards_or_a_share(zoo: Run) -> None:
    write_shards(Path("a"))
    write_shards(Path("b"), shards=1)
    words = ("webdataset", "data", "--set", "path=a", "--set", "test=b")
    assert "test/rgb: 4 written" in make(zoo, *words)
    shared = make(zoo, "webdataset", "shared", "--set", "path=a", "--set", "test_fraction=0.3")
    assert "train/rgb" in shared and "test/rgb" in shared


def test_damaged_shards_lose_only_their_members(zoo: Run) -> None:
    write_shards(Path("a"), shards=1)
    tar = Path("a/part-000.tar")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    printed = make(zoo, "webdataset", "data", "--test", "0", "--set", "path=a", "--set", "test_fraction=0")
    assert "cannot be used (first: part-000.tar" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["path=absent"], ["absent", "no tar file"]),
        (["path=a/{00..99999999999999999999}.tar"], ["names more than"]),
        (['path=["a", "a"]'], ["part-000", "rename one"]),
        (["path=a", 'extensions={jpg = "rgbb"}'], ["rgbb", "rgb"]),
        (["path=a", 'extensions={jpg = "", txt = "", "depth.npy" = "", "seg.png" = ""}'], ["no sample"]),
        (["path=bad"], ["bad.tar"]),
        (["path=ftq://host/a.tar"], ["ftq"]),
        (["path=http://127.0.0.1:9/a.tar"], ["127.0.0.1:9"]),
    ],
)
def test_wrong_settings_of_webdataset_are_named(zoo: Run, options: list[str], words: list[str]) -> None:
    write_shards(Path("a"), shards=1)
    Path("bad").mkdir()
    Path("bad/bad.tar").write_bytes(b"not a tar file" * 100)
    line = error_line(
        zoo, "webdataset", "data", "--test", "0", *(word for option in options for word in ("--set", option))
    )
    assert all(word in line for word in words), line


def test_a_missing_file_at_a_url_is_named(zoo: Run, server: tuple[str, list[str]]) -> None:
    line = error_line(zoo, "webdataset", "data", "--test", "0", "--set", f"path={server[0]}/none.tar")
    assert "none.tar" in line and "Traceback" not in line


def test_without_the_package_for_http_its_install_line_is_shown(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("aiohttp", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "http", raising=False)
    line = error_line(zoo, "webdataset", "data", "--test", "0", "--set", "path=http://127.0.0.1:9/a.tar")
    assert 'pip install "zoo-hub-data[http]"' in line


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("source", "options"),
    [("hf", {"streaming": True}), pytest.param("hf", {}, marks=pytest.mark.slow), ("webdataset", {})],
)
def test_processes_write_the_same_bytes(source: str, options: dict[str, Any]) -> None:
    """Each process opens the source again, and may start with a later shard."""
    write_shards(Path("shards"))
    rows().to_parquet("rows.parquet")
    options = {**options, "path": "rows.parquet" if source == "hf" else "shards", "test_fraction": 0}
    files = []
    for workers in (0, 2):
        zoo, out = Zoo.from_toml("registry.toml"), Path(f"data-{workers}")
        make_data(zoo, source, out, train=12, test=0, options=options, workers=workers, shard_size=4)
        files.append({path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.tar"))})
    assert len(files[0]) > 6 and files[0] == files[1]


@pytest.mark.parametrize("source", ["hf", "webdataset"])
def test_an_instance_under_another_name_gets_its_plugins_files(zoo: Run, source: str) -> None:
    table = '[modalities.rgb_8]\nplugin = "rgb"\nimage_size = 8\n'
    Path("registry.toml").write_text(REGISTRY.replace('"rgb"', '"rgb", "rgb_8"') + table)
    write_shards(Path("shards"), shards=1)
    rows(4).to_parquet("rows.parquet")
    path = "rows.parquet" if source == "hf" else "shards"
    printed = make(zoo, source, "data", "--test", "0", "--set", f"path={path}", "--set", "test_fraction=0")
    assert "train/rgb: 4 written" in printed and "train/rgb_8: 4 written" in printed
