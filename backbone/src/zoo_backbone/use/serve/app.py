"""The server: a page to play with a model, and the JSON API that the page uses; its schema is at /api/schema."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import socket
import tempfile
import webbrowser
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from tokenizers_zoo.contract.pictures import png_bytes
from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, InvalidValueError, OneLineError, UnknownNameError, size_text
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.report.pictures import data_uri
from tokenizers_zoo.stores.shards import ValueStore
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.generate.request import GenerationRequest, Sample
from zoo_backbone.generate.sampling import STRONGEST
from zoo_backbone.measure.evaluation_data import ranked_names
from zoo_backbone.model.run import BUNDLE
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.retrieval.index import Index
from zoo_backbone.use.retrieval.query import weighted_sum
from zoo_backbone.use.serve import border
from zoo_backbone.use.serve.jobs import BusyError, Job, Jobs

PAGE = Path(__file__).parent / "page"
NEAREST = PIL.Image.Resampling.NEAREST
UPLOAD_CACHE_BYTES = 256 << 20
"""Bytes of uploaded files and their values that are kept."""
MAX_EDITABLE = 64
"""Numbers in an array that the page shows as a list to edit, such as the colours of a palette."""
SAMPLES = 50
"""Held-out samples that the page offers."""
DRAWS = 16
"""Draws of one job."""
Strength = Annotated[float, Field(ge=-STRONGEST, le=STRONGEST)]


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits on requests."""

    upload_bytes: int = 20_000_000
    """Size of an uploaded file."""
    waiting: int = 16
    """Jobs in the queue; further ones are refused."""
    seconds: float = 120.0
    """Time of one job."""


class Value(BaseModel):
    """The origin of an input; exactly one key."""

    model_config = ConfigDict(extra="forbid")
    upload: str | None = Field(None, description="The id of an upload.")
    sample: str | None = Field(None, description="The key of a held-out sample.")
    text: str | None = Field(None, description="A text.")
    data: Any = Field(None, description="A JSON value.")
    result: str | None = Field(None, description="A generated value: JOB/TARGET/NUMBER.")


class Region(BaseModel):
    """The part of an input to regenerate."""

    model_config = ConfigDict(extra="forbid")
    cells: list[tuple[int, int]] | None = Field(None, max_length=65536, description="Rows and columns of the grid.")
    region: str | None = Field(None, max_length=2000, description="As zoo backbone generate --inpaint, without files.")


class Query(BaseModel):
    """Inputs of a call."""

    model_config = ConfigDict(extra="forbid")
    inputs: dict[str, Value] = Field(default_factory=dict, max_length=256, description="By modality.")


class Generation(Query):
    """A generation."""

    targets: list[str] = Field(min_length=1, max_length=256, description="Modalities, generated in this order.")
    num_samples: int = Field(1, ge=1, le=DRAWS)
    seed: int = Field(0, ge=0, lt=2**32)
    steps: int = Field(8, ge=1, le=256)
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(0.95, gt=0, le=1)
    guidance: Strength | dict[str, Strength] = Field(1.0, description="One scale, or a weight by input modality.")
    inpaint: dict[str, Region] = Field(default_factory=dict, max_length=256, description="By input modality.")


class Search(Query):
    """A query of the index."""

    find: str = Field("", description="Modality to compare with; empty: all together.")
    count: int = Field(8, ge=1, le=50)


@contextmanager
def collect_error(errors: list[str], name: str) -> Iterator[None]:
    """Add an error about a modality, with its name, instead of raising it."""
    try:
        yield
    except OneLineError as error:
        errors += [] if str(error) in errors else [str(error) if name in str(error) else f"{name}: {error}"]


def kind_of(spec: ModalitySpec) -> str:
    """Return the kind of a modality's values on the page: an array of few numbers is an object, a list to edit."""
    kind, shape = spec.value.kind, spec.value.shape
    fixed = kind == "array" and all(isinstance(size, int) for size in shape)
    return "object" if fixed and math.prod(map(int, shape)) <= MAX_EDITABLE else kind


def sample_of(handle: ModalityHandle, value: Any) -> Sample:
    """Return the tokens of a checked value: AnyToAny takes a str for a path."""
    return Sample(handle, handle.encode([value], trusted=True)[0], value)


@dataclass
class Uploads:
    """Values that visitors uploaded, the latest ones."""

    values: OrderedDict[str, tuple[str, Any]] = field(default_factory=OrderedDict)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Any, size: int) -> str:
        """Keep a value of the modality `name`, from a file of `size` bytes; return its id."""
        key = secrets.token_urlsafe(12)
        self.sizes[key] = size + getattr(value, "nbytes", 0)  # first: another thread may drop it at once
        self.values[key] = (name, value)
        while sum(self.sizes.values()) > UPLOAD_CACHE_BYTES and len(self.values) > 1:
            del self.sizes[self.values.popitem(last=False)[0]]
        return key


class Server:
    """A model, its held-out samples, uploads and jobs."""

    def __init__(self, model: AnyToAny, limits: RequestLimits, index: Index | None = None) -> None:
        self.model, self.limits, self.index = model, limits, index
        self.jobs, self.uploads = Jobs(limits.waiting, limits.seconds), Uploads()
        layout = model.model.layout
        readable = {layout.spec(name).input_form_of or name for name in layout.readable}
        names = {name for name in (*readable, *layout.discrete) if name in model.zoo}
        ranked = ranked_names([model.zoo[name].spec for name in names])
        self.inputs = [name for name in ranked if name in readable]
        self.targets = [name for name in ranked if name in layout.discrete]
        self.embedder = index.embedder(model) if index else None
        data = model.run.data
        self.values = ValueStore(data) if data is not None and data.is_dir() else None
        self.keys: list[str] = []
        if self.values is not None and TEST in self.values.splits():
            split = self.values.split(TEST)
            self.keys = [split.key(number) for number in range(min(SAMPLES, split.samples))]

    def handle(self, name: str) -> ModalityHandle:
        """Return a modality that the page offers. Raises UnknownNameError."""
        if name not in (*self.inputs, *self.targets):
            raise UnknownNameError.of("modality", name, {*self.inputs, *self.targets})
        return self.model.zoo[name]

    def describe(self) -> dict[str, Any]:
        """Return modalities, samples and limits for the page."""
        modalities = {}
        for name in dict.fromkeys((*self.inputs, *self.targets)):  # pictures first
            spec = self.handle(name).spec
            grid = () if spec.continuous else spec.grid_shape
            modalities[name] = {
                "summary": spec.summary,
                "kind": kind_of(spec),
                "value": str(spec.value),
                "layout": str(spec.layout),
                "grid": list(grid) if len(grid) == 2 else None,
                "input": name in self.inputs,
                "target": name in self.targets,
                "inpaint": name in self.targets and name in self.inputs and spec.layout.spatial,
                "fields": dict(spec.value.fields),
                "choices": list(spec.value.classes) if spec.value.kind == "text" else [],
            }
        folder = self.model.run.folder.absolute()
        return {
            "title": "/".join(folder.parts[-1:] if (folder / BUNDLE).is_file() else folder.parts[-2:]),
            "device": str(self.model.device),
            "modalities": modalities,
            "samples": self.keys,
            "retrieval": self.index.names if self.index else [],
            "limits": {"upload_bytes": self.limits.upload_bytes, "samples": DRAWS},
        }

    def value(self, name: str, origin: Value) -> Any:
        """Return an input for AnyToAny. Raises ZooErrors."""
        handle, fields = self.handle(name), origin.model_dump(exclude_none=True)
        if len(fields) != 1:
            origins = "one of upload, sample, text, data and result"
            raise InvalidValueError.expected(name, origins, ", ".join(fields) or "nothing")
        if origin.upload is not None:
            owner, value = self.uploads.values.get(origin.upload, ("", None))
            if owner != name:
                raise InvalidValueError(f"{name}: the uploaded value is gone; upload it again")
            return value
        if origin.sample is not None:
            return self.sample_value(name, origin.sample)
        if origin.result is not None:
            return self.generated_sample(name, origin.result)
        kind = kind_of(handle.spec)
        if (origin.text is not None) != (kind == "text") or kind == "array":
            expected = {"text": "a text", "object": "data", "array": "a file"}[kind]
            raise InvalidValueError.expected(name, expected, ", ".join(fields))
        value = origin.text if origin.text is not None else origin.data
        if handle.spec.value.kind == "array":
            try:
                value = np.asarray(value, handle.spec.value.dtype)
            except (TypeError, ValueError, OverflowError):
                raise InvalidValueError.expected(name, "lists of numbers", "other data") from None
        handle.check(value)
        return sample_of(handle, value)

    def sample_value(self, name: str, key: str) -> Any:
        """Return the value of a held-out sample. Raises ZooErrors."""
        if self.values is None or key not in self.keys:
            raise UnknownNameError.of("sample", key, self.keys)
        return self.values.read_key(self.handle(name), TEST, key)

    def generated_sample(self, name: str, result_path: str) -> Sample:
        """Return a generated sample of `name` by JOB/TARGET/NUMBER. Raises InvalidValueError."""
        job_id, _, rest = result_path.partition("/")
        target, _, number = rest.partition("/")
        job, index = self.jobs.get(job_id), int(number) if re.fullmatch(r"\d{1,9}", number) else -1
        samples: list[Sample] = (job.result or {}).get(target, []) if job is not None and job.finished else []
        if not 0 <= index < len(samples) or name != target:
            raise InvalidValueError(f"{name}: the generated value is gone; generate it again")
        return samples[index]

    def display(self, name: str, value: Any) -> dict[str, Any]:
        """Return a value for the page: a picture as a data URL, or a text; and JSON values to edit."""
        handle = self.handle(name)
        cell = handle.render(value)
        entry: dict[str, Any] = {"text": cell} if isinstance(cell, str) else {"image": data_uri(png_bytes(cell))}
        if kind_of(handle.spec) != "array":
            entry["data"] = value.tolist() if isinstance(value, np.ndarray) else value
        return entry

    # ------------------------------------------------------------------ jobs

    def read_inputs(self, query: Query, errors: list[str]) -> dict[str, Any]:
        """Return the inputs, by modality. Adds an error for each that does not fit."""
        values = {}
        for name, origin in query.inputs.items():
            with collect_error(errors, name):
                if name not in self.inputs:
                    raise UnknownNameError.of("input", name, self.inputs)
                values[name] = self.value(name, origin)
        return values

    def request(self, query: Generation) -> GenerationRequest:
        """Return the checked request. Raises InvalidValueError with an argument for each wrong part."""
        errors: list[str] = []
        values = self.read_inputs(query, errors)
        for name in query.targets:
            with collect_error(errors, name):
                if name not in self.targets:
                    raise UnknownNameError.of("target", name, self.targets)
        with tempfile.TemporaryDirectory() as folder:
            regions = {}
            for name, region in query.inpaint.items():
                with collect_error(errors, name):
                    regions[name] = self.region(name, region, Path(folder))
            if errors:
                raise InvalidValueError(*errors)
            settings = query.model_dump(exclude={"inputs", "inpaint", "num_samples"})
            return self.model.request(GenerationPlan.of(**settings, inpaint=regions, draws=query.num_samples), values)

    def generate(self, request: GenerationRequest, job: Job) -> dict[str, list[Sample]]:
        """Generate, with an event for each decoding step."""
        step = 0

        def on_step(name: str, tokens: Any) -> None:
            nonlocal step
            step += 1
            job.add_event({"target": name, "step": step, "shown": self.partial(name, tokens)})

        samples_by_target = {name: list(samples) for name, samples in request.generate(on_step).items()}
        for name, samples in samples_by_target.items():
            values = [self.display(name, sample.value) for sample in samples]
            job.add_event(
                {
                    "target": name,
                    "values": [{**value, "result": f"{job.id}/{name}/{number}"} for number, value in enumerate(values)],
                }
            )
        return samples_by_target

    def partial(self, name: str, tokens: Any) -> list[dict[str, Any]]:
        """Return unfinished values for the page: pictures with grey cells, or the number of tokens."""
        handle = self.handle(name)
        if handle.spec.layout.causal:
            return [{"text": f"{len(row)} tokens"} for row in tokens]
        masks = tokens >= 0
        values = handle.decode(tokens.clamp(min=0), trusted=True)
        entries = []
        for mask, value in zip(masks, values, strict=True):
            picture = handle.render(value)
            if isinstance(picture, str):
                entries.append({"text": f"{int(mask.sum())} of {mask.numel()} tokens"})
                continue
            grid = handle.spec.grid_shape
            cells = mask.reshape(*grid, -1).all(-1) if len(grid) == 2 else torch.ones(1, 1)
            shade = PIL.Image.fromarray(np.uint8(cells.numpy()) * 255).resize(picture.size, NEAREST)
            grey = PIL.Image.new("RGB", picture.size, "grey")
            shaded = PIL.Image.composite(picture.convert("RGB"), grey, shade)
            entries.append({"image": data_uri(png_bytes(shaded))})
        return entries

    def region(self, name: str, region: Region, folder: Path) -> str:
        """Return a region for AnyToAny; cells become a mask file. Raises ConfigError."""
        if region.region is not None and "mask:" not in region.region:
            return region.region
        spec = self.handle(name).spec
        if not region.cells or len(spec.grid_shape) != 2:
            raise ConfigError(f"inpaint {name}: expected cells of its token grid")
        mask = np.zeros(spec.grid_shape, bool)
        for row, column in region.cells:
            if not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]):
                expected = f"cells of a grid {size_text(mask.shape)}"
                raise ConfigError.expected(f"inpaint {name}", expected, f"{row}, {column}")
            mask[row, column] = True
        np.save(folder / f"{name}.npy", mask)
        return f"mask:{folder / f'{name}.npy'}"

    def query_inputs(self, query: Search) -> dict[str, Any]:
        """Return the inputs. Raises InvalidValueError with an argument for each part that does not fit."""
        errors: list[str] = []
        values = self.read_inputs(query, errors)
        if self.index is None or not query.inputs:
            no_index = "the server has no index; start it with --index FOLDER"
            errors.append(f"retrieval: {'expected at least one input' if self.index else no_index}")
        else:
            layout, indexed = self.model.model.layout, self.index.names
            names = [layout.readable_as(name, indexed, prefers_form=True) for name in values]
            for name in (*names, query.find):
                with collect_error(errors, name):
                    self.index.check([name])
        if errors:
            raise InvalidValueError(*errors)
        return values

    def search(self, query: Search, values: dict[str, Any], job: Job) -> None:
        """Search the index; the hits are an event."""
        assert self.index is not None and self.embedder is not None
        tokens = self.model.tokenize(values)
        vectors = {name: self.embedder.embed(name, batch) for name, batch in tokens.items()}
        (hits,) = self.index.search(weighted_sum(vectors, {}), query.count, query.find)
        entries = []
        for hit in hits:
            entry: dict[str, Any] = {"key": hit.key, "cosine": round(hit.cosine, 4)}
            if self.values is not None:
                name = query.find if query.find in self.inputs else self.inputs[0]
                entry |= self.display(name, self.values.read_key(self.handle(name), self.index.split, hit.key))
            entries.append(entry)
        job.add_event({"hits": entries})

    def tokens(self, name: str, origin: Value) -> dict[str, Any]:
        """Return the token ids of a value of a grid."""
        handle = self.handle(name)
        if handle.spec.continuous or len(handle.spec.grid_shape) != 2:
            raise ConfigError(f"{name}: its tokens are no grid of rows and columns")
        value = self.value(name, origin)
        ids = value.tokens if isinstance(value, Sample) else handle.encode([handle.fitted(value)], trusted=True)[0]
        return {"ids": ids.reshape(*handle.spec.grid_shape, -1).tolist(), "vocabulary": handle.spec.vocab_size}


async def answer_error(request: Request, error: Exception) -> border.Answer:
    """Answer an error; an error about several parts of a request has an argument for each."""
    if isinstance(error, RequestValidationError):
        parts = [(".".join(map(str, item["loc"][1:])) or "body", item["msg"]) for item in error.errors()]
        return border.refusal(422, (f"{name}: {message}" for name, message in parts))
    if isinstance(error, HTTPException):
        return border.refusal(error.status_code, [f"{request.method} {request.url.path}: {error.detail}"])
    if isinstance(error, OneLineError):
        return border.refusal(429 if isinstance(error, BusyError) else 422, map(str, error.args))
    return border.refusal(500, [f"unexpected {type(error).__name__}; the output of zoo serve says more"])


def build_app(server: Server, hosts: Sequence[str] = ("*",)) -> ASGIApp:
    """Return the web application, which answers requests for these host names."""
    app = FastAPI(
        title="tokenizers-zoo",
        openapi_url="/api/schema",
        docs_url=None,
        redoc_url=None,
        default_response_class=border.Answer,
        exception_handlers=dict.fromkeys(
            (OneLineError, RequestValidationError, HTTPException, Exception), answer_error
        ),
    )

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        """The modalities, samples and limits of the model."""
        return server.describe()

    @app.get("/api/samples/{key}/{name}")
    def sample(key: str, name: str) -> dict[str, Any]:
        """A value of a held-out sample."""
        return server.display(name, server.sample_value(name, key))

    @app.post(border.UPLOADS + "{name}")
    async def upload(name: str, request: Request, filename: str = "") -> dict[str, Any]:
        """Upload the file of a value (the request's body); `filename` gives its extension."""
        data = await request.body()

        def read() -> dict[str, Any]:
            handle = server.handle(name)
            value = handle.read(data, Path(filename).suffix)
            value = handle.transform(value, handle.middle(value), trusted=True)  # `fitted` takes a str for a path
            item = value if isinstance(value, np.ndarray) else sample_of(handle, value)
            return {"upload": server.uploads.add(name, item, len(data)), **server.display(name, value)}

        return await asyncio.to_thread(read)

    @app.post("/api/tokens/{name}")
    def tokens(name: str, origin: Value) -> dict[str, Any]:
        """The token ids of a value of a grid modality."""
        return server.tokens(name, origin)

    @app.post("/api/generate")
    def generate(query: Generation) -> dict[str, str]:
        """Start a generation; its events are at /api/jobs/JOB."""
        request = server.request(query)
        return {"job": server.jobs.add(lambda job: server.generate(request, job)).id}

    @app.post("/api/search")
    def search(query: Search) -> dict[str, str]:
        """Start a search of the index; its events are at /api/jobs/JOB."""
        inputs = server.query_inputs(query)
        return {"job": server.jobs.add(lambda job: server.search(query, inputs, job)).id}

    @app.get("/api/jobs/{job_id}", response_class=StreamingResponse)
    def events(job_id: str) -> StreamingResponse:
        """The events of a job as JSON lines, until it ends: the last one has "done" or "error"."""
        job = server.jobs.get(job_id)
        if job is None:
            raise InvalidValueError("the job is gone; start it again")
        return StreamingResponse(event_lines(job), media_type="application/x-ndjson")

    @app.delete("/api/jobs/{job_id}")
    def cancel(job_id: str) -> dict[str, bool]:
        """Stop a job at its next step."""
        if (job := server.jobs.get(job_id)) is not None:
            job.cancelled = True
        return {"cancelled": job is not None}

    @app.get("/api/results/{job_id}/{name}/{number}")
    def result(job_id: str, name: str, number: str) -> Response:
        """The file of a generated value."""
        handle = server.handle(name)
        data, extension = handle.write(server.generated_sample(name, f"{job_id}/{name}/{number}").value)
        attached = f'attachment; filename="{re.sub(r"[^A-Za-z0-9_-]", "_", name)}.{extension}"'
        return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": attached})

    app.mount("/page", StaticFiles(directory=PAGE))
    return TrustedHostMiddleware(border.Border(app, server.limits.upload_bytes), hosts, www_redirect=False)


async def event_lines(job: Job) -> AsyncIterator[bytes]:
    """Yield the events of a job as they happen, one JSON line each."""
    sent = 0
    while True:
        finished = job.finished
        for event in job.events[sent:]:
            if event is not None:
                yield bytes(border.Answer(event).body) + b"\n"
            sent += 1
        if finished and sent == len(job.events):
            return
        await asyncio.sleep(0.03)


def serve(
    model: AnyToAny, host: str, port: int, limits: RequestLimits, index: Index | None = None, open_browser: bool = False
) -> None:
    """Print the address, and serve the page until interrupted. Raises ConfigError for an address that it cannot use."""
    try:
        addresses = socket.getaddrinfo(host or " ", port, type=socket.SOCK_STREAM)
        family, *_, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)  # IPv4 if it has both
        listening = socket.create_server(address, family=family, backlog=128)
    except (OSError, ValueError) as error:
        reason = f"{getattr(error, 'strerror', None) or 'no host has this name'}; give another address or port"
        raise ConfigError(f"zoo serve: cannot listen at --host {host!r:.80} --port {port}: {reason}") from None
    bound, number = listening.getsockname()[:2]
    name = f"[{bound}]:{number}" if family == socket.AF_INET6 else f"{bound}:{number}"
    app = build_app(Server(model, limits, index), border.answered_hosts(bound))
    echo(f"http://{name}  (stop with Ctrl-C)")
    if open_browser:
        webbrowser.open(f"http://{name}")
    config = uvicorn.Config(app, log_level="warning", headers=border.HEADERS)
    border.AbruptServer(config).run(sockets=[listening])
