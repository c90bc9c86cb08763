"""`zoo serve`: the JSON API, and the page in headless Chromium, both against the real server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from command_world import the_world
from starlette.testclient import TestClient

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import ConfigError
from zoo_backbone import AnyToAny, FourM
from zoo_backbone.learn.checkpoint import save_model
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.run import Run
from zoo_backbone.use.retrieval import EmbeddingConfig
from zoo_backbone.use.retrieval.index import build
from zoo_backbone.use.serve import app, border
from zoo_backbone.use.serve import jobs as queue
from zoo_backbone.use.serve.jobs import BusyError, Job, Jobs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PART = {"targets": ["depth"], "inputs": {"depth": {"sample": "test00"}}}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = the_world().put_back()
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(world.folder, folder, dirs_exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "broken.png").write_bytes(b"this is no picture")
    return folder


@contextlib.contextmanager
def start_server(folder: Path, *options: str, run: str = "run") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server with 6 GB of memory; yield its process and address."""
    command = [sys.executable, "-m", "tokenizers_zoo.cli.main", "serve", run, "--port", "0", *options]
    command = ["sh", "-c", 'ulimit -v 6000000; exec "$@"', "-", *command]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as server:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        try:
            assert line.startswith("http://"), server.stderr.read()
            yield server, line.split()[0]
        finally:
            server.kill()


@contextlib.contextmanager
def serving(folder: Path, *options: str, run: str = "run") -> Iterator[str]:
    """Run the server and yield its address. An exception in it fails the test."""
    with start_server(folder, *options, run=run) as (server, address):
        yield address
        server.kill()
        assert server.stderr is not None
        errors = server.stderr.read()
        assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    build(Run.load(folder / "run"), Zoo.from_toml(folder / "registry.toml"), folder / "index", config=EmbeddingConfig())
    with serving(folder, "--index", "index") as address:
        yield address


@pytest.fixture(scope="module")
def model(folder: Path) -> AnyToAny:
    return AnyToAny.from_pretrained(folder / "run", device="cpu")


def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Return status, headers and JSON of an answer to a request with these headers (`_` is `-`)."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(data) if data[:1] in (b"{", b"[") else data


def call(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return the status and the JSON of an answer; bytes are a file, other bodies become JSON."""
    if body is None:
        status, _, answer = ask(address, "GET", path)
    elif isinstance(body, bytes):
        status, _, answer = ask(address, "POST", path, body)
    else:
        status, _, answer = ask(address, "POST", path, json.dumps(body), Content_Type="application/json")
    return status, answer


def events(address: str, path: str, body: Any) -> list[dict[str, Any]]:
    """Start a job and return all its events."""
    status, started = call(address, path, body)
    assert status == 200, started
    with urllib.request.urlopen(f"{address}/api/jobs/{started['job']}", timeout=60) as answer:
        return [json.loads(line) for line in answer.read().splitlines()]


# --- the JSON API


def test_the_model_is_described(address: str) -> None:
    status, facts = call(address, "/api/model")
    assert status == 200 and set(facts["modalities"]) == {"caption", "depth", "rgb"}
    assert facts["modalities"]["rgb"]["input"] and not facts["modalities"]["rgb"]["target"]
    assert facts["samples"][:2] == ["test00", "test01"] and facts["modalities"]["depth"]["grid"] == [2, 2]
    with urllib.request.urlopen(f"{address}/") as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    _, schema = call(address, "/api/schema")
    assert {"/api/generate", "/api/uploads/{name}", "/api/jobs/{job_id}"} <= set(schema["paths"])


def test_generation_sends_an_event_for_each_step(address: str, folder: Path) -> None:
    _, uploaded = call(address, "/api/uploads/rgb?filename=photo.png", (folder / "photo.png").read_bytes())
    inputs = {"rgb": {"upload": uploaded["upload"]}, "caption": {"text": "a red ball"}}
    body = {"inputs": inputs, "targets": ["depth"], "num_samples": 2, "steps": 3, "seed": 4}
    answers = events(address, "/api/generate", body)
    steps = [event for event in answers if "step" in event]
    assert steps[-1]["step"] == 3 and len(steps[-1]["shown"]) == 2, "older steps may be gone"
    assert steps[-1]["shown"][0]["image"].startswith("data:image/png") and answers[-1] == {"done": True}
    (values,) = [event["values"] for event in answers if "values" in event]
    assert len(values) == 2
    with urllib.request.urlopen(f"{address}/api/results/{values[1]['result']}") as answer:
        assert 'filename="depth.npy"' in answer.headers["Content-Disposition"] and answer.read()[1:6] == b"NUMPY"
    _, grid = call(address, "/api/tokens/depth", {"result": values[0]["result"]})
    assert np.shape(grid["ids"]) == (2, 2, 1)
    request = {"inputs": {"depth": {"result": values[0]["result"]}}, "targets": ["depth"], "seed": 5}
    answers = events(address, "/api/generate", {**request, "inpaint": {"depth": {"cells": [[0, 0]]}}})
    (inpainted,) = [event["values"] for event in answers if "values" in event]
    _, changed = call(address, "/api/tokens/depth", {"result": inpainted[0]["result"]})
    assert np.array_equal(np.ravel(changed["ids"])[1:], np.ravel(grid["ids"])[1:])
    body = {**request, "num_samples": 8, "inpaint": {"depth": {"cells": [[0, 1]]}}}
    (inpainted,) = [event["values"] for event in events(address, "/api/generate", body) if "values" in event]
    for value in inpainted:
        _, changed = call(address, "/api/tokens/depth", {"result": value["result"]})
        assert np.array_equal(np.ravel(changed["ids"])[[0, 2, 3]], np.ravel(grid["ids"])[[0, 2, 3]])
    _, answer = call(address, "/api/generate", {**body, "inputs": {"depth": {"upload": uploaded["upload"]}}})
    assert answer["error"].startswith("depth: the uploaded value is gone"), "it is a value of rgb"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/uploads/rgb?filename=a.png", b"no picture", "rgb"),
        ("/api/uploads/colour?filename=a.png", b"", "colour"),
        ("/api/generate", {"targets": []}, "targets"),
        ("/api/generate", {"targets": ["depth"], "colour": 1}, "colour"),
        ("/api/tokens/caption", {"text": "a"}, "caption"),
        ("/api/tokens/depth", {"text": "a", "sample": "b"}, "one of"),
    ],
)
def test_wrong_calls_get_an_error_that_names_the_cause(address: str, path: str, body: Any, message: str) -> None:
    status, answer = call(address, path, body)
    assert status == 422 and message in json.dumps(answer), answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"targets": ["caption"], "inputs": {"depth": {"result": "a/depth/0"}}}, "depth"),
        ({"targets": ["depth"], "inputs": {"depth": {"sample": "test00"}}}, "depth"),
        ({**PART, "inpaint": {"depth": {"cells": [[9, 9]]}}}, "9, 9"),
        ({**PART, "inpaint": {"depth": {"cells": [[-1, 0]]}}}, "-1, 0"),
        ({**PART, "inpaint": {"depth": {"region": "mask:/etc/passwd"}}}, "cells"),
        ({**PART, "inpaint": {"depth": {"region": "box:0,0,1,1"}}}, "all tokens"),
        ({"targets": ["depth"], "inpaint": {"depth": {"cells": [[0, 0]]}}}, "not among the inputs"),
        ({"targets": ["depth"], "guidance": {"rgb": 2}}, "rgb"),
        ({"targets": ["depth"], "inputs": {"caption": {"text": "a"}}, "inpaint": {"caption": {"region": "tokens:99"}}},
         "caption"),
    ],
)  # fmt: skip
def test_requests_are_checked_before_the_model_runs(address: str, body: Any, message: str) -> None:
    status, answer = call(address, "/api/generate", body)
    assert status == 422 and message in answer["error"], answer


def test_all_wrong_parts_of_a_request_are_named(address: str) -> None:
    inputs = {"rgb": {"upload": "gone"}, "caption": {"sample": "nobody"}, "colour": {"text": "a"}}
    inpaint = {"depth": {"cells": [[0, 9]]}, "rgb": {"region": "circle:1"}}
    body = {"inputs": inputs, "targets": ["depth", "rgb", "shape"], "inpaint": inpaint}
    status, answer = call(address, "/api/generate", body)
    parts = ["rgb: the uploaded", "caption: ", "'colour'", "target 'rgb'", "'shape'", "0, 9"]
    assert status == 422 and answer["error"] == "; ".join(answer["errors"])
    assert [part for part in parts if not any(part in error for error in answer["errors"])] == [], answer["errors"]
    settings = {"temperature": 99, "steps": 0, "seed": -1, "num_samples": 17, "guidance": 1e30, "top_p": "a"}
    status, answer = call(address, "/api/generate", {"targets": ["depth"], **settings})
    assert status == 422 and {error.partition(":")[0].partition(".")[0] for error in answer["errors"]} == set(settings)
    status, answer = call(address, "/api/search", {"inputs": inputs})
    assert status == 422 and all(name in answer["error"] for name in inputs)


def test_texts_and_data_are_never_read_as_paths(address: str, folder: Path) -> None:
    """Otherwise visitors could read files of the server."""
    (folder / "secret.txt").write_text("a secret")
    for value in ({"text": str(folder / "secret.txt")}, {"data": str(folder / "secret.txt")}, {"data": [str(folder)]}):
        for name in ("rgb", "depth"):
            _, answer = call(address, "/api/generate", {"inputs": {name: value}, "targets": ["caption"]})
            assert f"{name}: expected a file" in answer["error"]
    answers = events(address, "/api/generate", {"inputs": {"caption": {"text": str(folder)}}, "targets": ["depth"]})
    assert answers[-1] == {"done": True}, "a text stays a text"


def test_similar_samples_are_found(address: str) -> None:
    code, answer = call(address, "/api/search", {"find": "rgb", "inputs": {"caption": {"sample": "nobody"}}})
    assert code == 422 and "caption" in answer["errors"][0] and "rgb" in answer["errors"][1]
    answers = events(address, "/api/search", {"inputs": {"depth": {"sample": "test00"}}, "find": "depth", "count": 3})
    hits = [hit["key"] for hit in answers[-2]["hits"]]
    assert hits[0] == "test00" and len(hits) == 3


def test_without_an_index_a_search_says_how_to_get_one(model: AnyToAny) -> None:
    client = TestClient(app.build_app(app.Server(model, app.RequestLimits())))
    answer = client.post("/api/search", json={"inputs": {"depth": {"sample": "test00"}}})
    assert answer.status_code == 422 and "--index" in answer.text


# --- the border


def has_security_headers(headers: Any) -> bool:
    return all(headers[name] == value for name, value in border.HEADERS)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"targets": ["depth"], "temperature": NaN}', 400),
        (b'{"targets": ["depth"], "temperature": 1e999}', 400),
        (b'{"targets": ["depth"], "inputs": {"caption": {"text": "\\ud800"}}}', 400),
        (b'{"targets": ["depth"], "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"targets": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"targets": ["depth"], "targets": ["caption"]}', 400),
        (b'{"targets": ["\xff"]}', 400),
        (b"what is this", 400),
        (b"[1, 2]", 422),
        (b'{"targets": [' + b"1," * 400_000 + b"1]}", 422),
        (b'{"targets": ["depth"], "inputs": {' + b",".join(b'"%d":1' % i for i in range(60_000)) + b"}}", 400),
        (b'{"targets": ["depth"], "inpaint": {"depth": {"cells": [' + b"[0,0]," * 70_000 + b"[0,0]]}}}", 422),
        (b"", 422),
    ],
)  # fmt: skip
def test_malformed_request_bodies_are_refused(address: str, body: bytes, status: int) -> None:
    for path in ("/api/generate", "/api/search", "/api/tokens/depth"):
        code, headers, answer = ask(address, "POST", path, body, Content_Type="application/json")
        expected = status if path == "/api/generate" or status == 400 else 422
        assert code == expected and 0 < len(answer["error"]) < 11_000 and "\n" not in answer["error"], answer
        assert has_security_headers(headers)


def test_every_answer_has_the_security_headers(address: str) -> None:
    for method, path, expected in (
        ("GET", "/", 200), ("GET", "/page/app.js", 200), ("GET", "/page/no.js", 404), ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/api/model", 200), ("GET", "/api/results/a/depth/" + "9" * 5000, 422), ("PUT", "/api/model", 405),
        ("GET", "/api/jobs/none", 422), ("POST", "/api/generate", 422), ("GET", "/api/samples/none/depth", 422),
    ):  # fmt: skip
        status, headers, answer = ask(address, method, path)
        assert status == expected and has_security_headers(headers), (path, status)
        assert status == 200 or answer["error"], path
    status, headers, answer = ask(address, "POST", "/api/generate", b"{}", Content_Type="text/plain")
    assert status == 415 and "application/json" in answer["error"] and has_security_headers(headers)


@pytest.mark.parametrize(
    ("path", "size", "limit"),
    [("/api/generate", 20, "1 MB"), ("/api/search", 20, "1 MB"), ("/api/uploads/rgb?filename=a.png", 30, "20 MB")],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_as_they_arrive(address: str, path: str, size: int, limit: str, chunked: bool) -> None:
    """The server has 6 GB of memory, and parsing 100 MB of numbers takes 19 GB."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    length = str(13 + 2_000_000 * (size // 2) + 3)
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", length)))
    connection.endheaders()
    parts = [b'{"targets": [', *[b"1," * 1_000_000] * (size // 2), b"1]}"]
    for part in parts:
        connection.send(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        assert len(part) < 2_000_000 or call(address, "/api/model")[0] == 200
    connection.send(b"0\r\n\r\n" if chunked else b"")
    answer = connection.getresponse()
    assert answer.status == 413 and limit in json.loads(answer.read())["error"]
    assert has_security_headers(answer.headers)
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "http://localhost:7", "Host": "localhost:7"}, 200),
        ({"Origin": "https://localhost", "Host": "LOCALHOST"}, 200),
        ({"Sec_Fetch_Site": "same-origin", "Origin": "https://proxy.example"}, 200),
        ({"Host": "attacker.example"}, 400),
        ({"Host": "localhost.attacker.example"}, 400),
        ({"Host": "[::1"}, 400),
        ({"Host": "[::1].evil.example"}, 400),
        ({"Host": "[::1]evil.example:7"}, 400),
        ({"Host": "[::1]@evil.example"}, 400),
        ({"Host": "localhost:7@evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": "[::1]:7"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "127.0.0.1:7"}, 200),
        ({"Host": "127.0.0.2"}, 400),
    ],
)
def test_requests_of_other_sites_and_for_other_hosts_are_refused(
    address: str, folder: Path, headers: dict[str, str], status: int
) -> None:
    photo = (folder / "photo.png").read_bytes()
    for method, path, body in (
        ("POST", "/api/uploads/rgb?filename=photo.png", photo), ("DELETE", "/api/jobs/none", None),
        ("POST", "/api/tokens/depth", b'{"sample": "test00"}'),
    ):  # fmt: skip
        code, response_headers, answer = ask(address, method, path, body, Content_Type="application/json", **headers)
        assert code == status and (status != 403 or answer["error"]) and has_security_headers(response_headers)
    reading = 400 if status == 400 else 200  # other sites may link to the page, and their scripts cannot read answers
    code, response_headers, _ = ask(address, "GET", "/api/model", **headers)
    assert code == reading and "Access-Control-Allow-Origin" not in response_headers
    assert response_headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("host", ["LOCALHOST", "127.1", "localhost", "127.0.0.1", "127.0.0.2"])
def test_local_host_names_are_served_by_their_address(
    host: str, model: AnyToAny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(border.AbruptServer, "run", lambda server, sockets: served.append((server.config.app, sockets)))
    app.serve(model, host, 0, app.RequestLimits())
    ((border_app, (listening,)),) = served
    port = listening.getsockname()[1]
    listening.close()
    bound = "127.0.0.2" if host == "127.0.0.2" else "127.0.0.1"
    assert capsys.readouterr().out.startswith(f"http://{bound}:{port} ")
    for name, status in ((f"localhost:{port}", 200), (f"{bound}:7", 200), ("attacker.example", 400), ("", 400)):
        assert TestClient(border_app).get("/api/model", headers={"Host": name}).status_code == status


@pytest.mark.parametrize("host", ["", "a" * 64, "a..b", "a\0b", "two words", "\udcff", "ü" * 70, "[::1]", "8.8.8.8"])
def test_an_invalid_host_is_refused(host: str, model: AnyToAny) -> None:
    with pytest.raises(ConfigError, match="cannot listen at --host"):
        app.serve(model, host, 0, app.RequestLimits())


def test_a_port_in_use_is_refused(address: str, model: AnyToAny) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=str(port)):
        app.serve(model, "127.0.0.1", port, app.RequestLimits())


@pytest.mark.parametrize(("host", "sign"), [("127.1", signal.SIGINT), ("::1", signal.SIGTERM)])
def test_a_signal_ends_it_at_once(folder: Path, host: str, sign: signal.Signals) -> None:
    """Jobs run and wait, a job is watched, and an upload is open."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("the machine has no IPv6")
    with start_server(folder, "--host", host) as (server, address):
        assert address.startswith("http://[::1]:" if ":" in host else "http://127.0.0.1:")
        assert ask(address, "GET", "/api/model", Host="attacker.example")[0] == 400
        jobs = [call(address, "/api/generate", {"targets": ["caption"], "num_samples": 16})[1] for _ in range(12)]
        with urllib.request.urlopen(f"{address}/api/jobs/{jobs[-1]['job']}", timeout=60) as response:
            assert response.readline()
            upload = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
            upload.putrequest("POST", "/api/uploads/rgb?filename=a.png")
            upload.putheader("Content-Length", "1000")
            upload.endheaders(b"half of it")
            server.send_signal(sign)
            assert server.wait(timeout=10) == 128 + sign
            assert server.stderr is not None and "Traceback" not in server.stderr.read()
            upload.close()


def test_answers_are_valid_json_and_errors_one_line(model: AnyToAny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that JSON lacks become null."""
    server = app.Server(model, app.RequestLimits())
    client = TestClient(app.build_app(server), raise_server_exceptions=False)
    monkeypatch.setattr(server, "describe", lambda: {"numbers": [float("nan"), float("inf"), 1.5], "half": "\ud800"})
    assert json.loads(client.get("/api/model").text, parse_constant=pytest.fail)["numbers"] == [None, None, 1.5]
    job = server.jobs.add(lambda job: job.add_event({"cosine": float("nan")}))
    wait_for_end(job)
    lines = client.get(f"/api/jobs/{job.id}").text.splitlines()
    assert {"cosine": None} in [json.loads(line, parse_constant=pytest.fail) for line in lines]
    monkeypatch.setattr(server, "describe", lambda: 1 / 0)
    answer = client.get("/api/model")
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]


# --- limits, and unfinished pictures


def wait_for_end(job: Job) -> Any:
    """Wait for a job and return its last event."""
    while not job.finished:
        time.sleep(0.01)
    return job.events[-1]


def test_jobs_can_be_cancelled_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, started, release = Jobs(waiting=1, seconds=60), threading.Event(), threading.Event()

    def work(job: Job) -> None:
        started.set()
        release.wait(60)
        job.add_event({"step": 1})

    first = jobs.add(work)
    started.wait(60)
    second = jobs.add(work)
    with pytest.raises(BusyError):
        jobs.add(work)
    first.cancelled = True
    release.set()
    assert wait_for_end(first) == {"error": "cancelled"} and wait_for_end(second) == {"done": True}
    timed_out = Jobs(waiting=1, seconds=-1).add(work)
    assert "takes too long" in wait_for_end(timed_out)["error"]
    monkeypatch.setattr(queue, "MAX_JOBS", 1)
    third = jobs.add(work)
    assert jobs.get(first.id) is jobs.get(second.id) is None and jobs.get(third.id) is third


def test_old_uploads_are_removed_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "UPLOAD_CACHE_BYTES", 100)
    store = app.Uploads()
    keys = [store.add("rgb", np.zeros(20, np.uint8), 20) for _ in range(4)]
    assert list(store.values) == list(store.sizes) == keys[2:], "40 bytes each"


def test_undecided_cells_are_grey(model: AnyToAny) -> None:
    server, depth = app.Server(model, app.RequestLimits()), model.handle("depth")
    tokens = torch.tensor([[[0, -1], [-1, 5]]])
    (partial,) = server.partial("depth", tokens)
    rendered = np.asarray(depth.render(depth.decode(tokens.clamp(min=0))[0]).convert("RGB"))
    with urllib.request.urlopen(partial["image"]) as file, PIL.Image.open(file) as picture:
        pixels = np.asarray(picture)
    half = pixels.shape[0] // 2
    for rows, columns, is_known in ((0, 0, True), (0, 1, False), (1, 0, False), (1, 1, True)):
        cell = np.s_[rows * half : rows * half + half, columns * half : columns * half + half]
        assert np.array_equal(pixels[cell], rendered[cell] if is_known else np.full_like(rendered[cell], 128))


# --- the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def choose_nothing(page: Any, address: str) -> None:
    """Open the page, which chooses the first input and a target, and unselect them."""
    page.goto(address)
    page.wait_for_selector("#targets input:checked")
    for name in page.eval_on_selector_all("input:checked", "boxes => boxes.map(box => box.id)"):
        page.uncheck(f"#{name}")


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page in a window of its own; errors on the console and requests to other hosts fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url)
            if not request.url.startswith((address, "data:")) else None)  # fmt: skip
    choose_nothing(page, address)
    yield page
    context.close()
    refusals = "the server responded with a status of 422"  # of deliberate mistakes, which the page tells in words
    assert [text for text in errors if refusals not in text] == []


def status(page: Any, part: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_contain_text(part, timeout=60_000)


@needs_chromium
def test_the_page_generates_from_an_upload_and_explains_mistakes(page: Any, folder: Path) -> None:
    page.check("#use-rgb")
    page.set_input_files("#file-rgb", folder / "broken.png")
    status(page, "rgb: ")
    page.click("#generate")
    status(page, "Choose at least one target")
    page.set_input_files("#file-rgb", folder / "photo.png")
    status(page, "photo.png is the input rgb")
    page.check("#use-caption")
    page.fill("#text-caption", "a red ball")
    page.check("#target-depth")
    settings = {"num_samples": 3, "seed": 7, "steps": 2, "temperature": 1.5, "top_p": 0.9, "guidance": 2}
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    status(page, "Generated depth in")
    assert page.locator("#row-depth figure img").count() == 3
    assert page.locator("#row-depth a").first.get_attribute("href").startswith("/api/results/")
    page.locator("#row-depth button", has_text="Tokens").first.click()
    page.wait_for_selector("#row-depth canvas.tokens")
    page.locator("#row-depth button", has_text="Use as input").nth(1).click()
    status(page, "depth 2 is an input now")
    page.uncheck("#target-depth")
    page.check("#target-caption")
    page.click("#generate")
    status(page, "caption is an input and a target: leave one out")
    page.uncheck("#use-caption")
    page.click("#generate")
    status(page, "Generated caption in")
    assert page.locator("#row-caption figure pre").count() == 3


@needs_chromium
def test_a_sample_that_comes_late_replaces_no_typed_text(page: Any) -> None:
    routes: list[Any] = []
    page.route("**/api/samples/**", lambda route: routes.append(route))
    with page.expect_request("**/api/samples/**"):
        page.check("#use-caption")
    page.fill("#text-caption", "a red ball")
    with page.expect_response("**/api/samples/**"):
        routes[0].continue_()
    page.evaluate("fetch('/api/model').then((answer) => answer.json())")  # the page has seen the sample by then
    assert page.input_value("#text-caption") == "a red ball"


@needs_chromium
def test_boxes_are_drawn_and_colours_and_fields_edited(folder: Path, browser: Any) -> None:
    """The model is untrained and has no held-out samples."""
    zoo = Zoo.from_toml(folder / "registry.toml")
    handles = [zoo[name] for name in ("depth", "boxes", "palette", "metadata")]
    sizes = ModelConfig(dim=16, encoder_depth=1, decoder_depth=1, heads=2)
    save_model(
        FourM.seeded(sizes, [handle.spec for handle in handles], 0), folder / "seeded",
        {"fingerprints": {handle.name: handle.fingerprint for handle in handles}},
    )  # fmt: skip
    Run(tokens=folder / "none", registry=folder / "registry.toml").save(folder / "seeded")
    colours = [[0.5, 0.25, 0.75]] * 5
    with serving(folder, run="seeded") as address:
        inputs = {"palette": {"data": colours[:2]}, "metadata": {"data": {"colour": "red"}}, "boxes": {"data": [1]}}
        code, answer = call(address, "/api/generate", {"targets": ["depth"], "inputs": inputs})
        assert code == 422 and [error.partition(":")[0] for error in answer["errors"]] == list(inputs), answer
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        page.wait_for_selector("#target-depth")
        requests: list[Any] = []
        page.on("request", lambda request: requests.append(request.post_data_json) if request.post_data else None)
        for name in ("boxes", "palette", "metadata"):
            page.check(f"#use-{name}")
        canvas = page.locator("canvas[aria-label^='Boxes']")
        canvas.scroll_into_view_if_needed()
        area = canvas.bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] * 3 / 4)
        page.mouse.up()
        page.get_by_label("Label of box 1").fill("chair")
        for name, value in (("palette", colours), ("metadata", {"num_objects": 3})):
            page.fill(f"#data-{name}", json.dumps(value))
            page.locator(f"#data-{name}").blur()
        page.get_by_label("Colour 1").fill("#ff0000")
        page.fill("#field-metadata-num_objects", "5")
        page.fill("#weight-boxes", "2")
        page.check("#target-depth")
        page.click("#generate")
        status(page, "Generated depth in")
        page.close()
    ((box,), palette, metadata) = (requests[-1]["inputs"][name]["data"] for name in ("boxes", "palette", "metadata"))
    assert box["label"] == "chair" and box["box"] == pytest.approx([0.25, 0.25, 0.5, 0.75], abs=0.02)
    assert palette == [[1, 0, 0], *colours[1:]] and metadata == {"num_objects": 5}
    assert requests[-1]["guidance"] == {"boxes": 2}


@needs_chromium
def test_a_painted_region_is_generated_again(page: Any) -> None:
    page.select_option("#sample", "test01")
    page.check("#use-depth")
    picture = page.locator("#inputs canvas[aria-label='Cells of depth to generate anew']")
    picture.wait_for()
    page.check("#target-depth")
    page.click("#generate")
    status(page, "paint the cells")
    picture.click(position={"x": 10, "y": 10})
    page.click("#generate")
    status(page, "Generated depth in")
    page.locator("#inputs button", has_text="Clear the mask").click()
    page.locator("#inputs button", has_text="Tokens").click()
    page.wait_for_selector("#inputs canvas.tokens")
    page.locator("#inputs .card:not(.off) button", has_text="Take from the sample").click()


@needs_chromium
def test_the_page_finds_similar_samples(page: Any) -> None:
    page.check("#use-depth")
    page.wait_for_selector("#inputs .card:not(.off) img")
    page.select_option("#find", "depth")
    page.click("#search")
    status(page, "Searched in")
    assert page.locator("#results figure img").count() > 1


@needs_chromium
def test_the_page_is_accessible_and_fits_a_phone(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for name in ("rgb", "depth", "caption"):
        page.check(f"#use-{name}")
    page.check("#target-depth")
    page.click("#generate")
    status(page, "paint the cells")
    violations = axe.Axe().run(page).response["violations"]
    assert [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in violations] == []
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
