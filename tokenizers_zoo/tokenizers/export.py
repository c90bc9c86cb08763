"""Networks as files for other runtimes: ONNX and torch.export, each compared with PyTorch before it is kept.

OUT/encoder.onnx, decoder.onnx   the networks; inputs and outputs have a batch axis of any size
OUT/export.json                  inputs and outputs with shapes, units and ranges, fingerprints, and the comparison
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_zoo import __version__
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.validation import bounds
from tokenizers_zoo.errors import ConfigError, ZooError, is_of_the_machine
from tokenizers_zoo.files.run_folder import replacing_folder
from tokenizers_zoo.records.io import write_table
from tokenizers_zoo.records.typed import as_dicts

Format = Literal["onnx", "torch"]
FILES: Mapping[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
RECORD = "export.json"
TRACED, CHECKED = 3, (1, 8)
"""Batch sizes of the trace and of the comparisons, which need other ones."""
AGREEMENT = 0.95
"""Smallest share of equal token or class ids: runtimes round differently, so that close choices may differ."""
TOLERANCE = 1e-3
"""Largest difference of numbers as a share of their range."""
LONGEST_REASON = 120
"""Characters of a tracer's error that are shown."""
LARGEST_FILE = 1 << 30
"""Bytes of weights above which ONNX weights get a file of their own; an ONNX file is limited to 2 GiB."""


class ExportError(ZooError):
    """A network cannot be exported, or the exported one computes something else."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of an exported network. The shape lacks the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to export: `module` maps the tensors of `inputs` to the tensors of `outputs`, in this order."""

    name: str
    """The file's name without its extension."""
    module: nn.Module
    examples: tuple[Tensor, ...]
    """A batch of at least max(CHECKED) samples of each input."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def export_networks(
    networks: Sequence[Network], out: Path, format: Format, about: Mapping[str, Any], *, overwrite: bool = False
) -> dict[str, Any]:
    """Write networks and export.json, which starts with `about`, into the folder `out`; return the record.

    A network that cannot be traced is left out, and the record says why. Raises FolderError if `out` holds anything but
    an export that `overwrite` replaces, ConfigError if a library is missing, and ExportError if no network can be
    traced or if one computes something else than PyTorch.
    """
    check_library(format)
    files: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    with replacing_folder(out, RECORD, overwrite) as folder:
        for network in networks:
            path = folder / f"{network.name}{FILES[format]}"
            try:
                with _quiet(), torch.no_grad():
                    save = _trace(network, format)
            except Exception as error:  # tracers raise errors of no common class
                if is_of_the_machine(error):
                    raise
                skipped[network.name] = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
                continue
            with _quiet():
                save(path)
            files[path.name] = {
                "inputs": [asdict(port) for port in network.inputs],
                "outputs": [asdict(port) for port in network.outputs],
                "largest_difference": _compare(network, path),
            }
        if not files:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise ExportError(f"{out}: nothing is written, because torch.export fails: {reasons}")
        versions = {"tokenizers-zoo": __version__, "torch": torch.__version__}
        record = {**about, "files": files, "skipped": skipped, "versions": versions}
        write_table(folder / RECORD, record)
    return record


def check_library(format: Format) -> None:
    """Raise ConfigError if a library for the format is not installed."""
    for name in ("onnx", "onnxruntime", "onnxscript") if format == "onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(
                f"ONNX: needs {name}, which is not installed; pip install 'tokenizers-zoo[onnx]'"
            ) from None


def _trace(network: Network, format: Format) -> Callable[[Path], object]:
    """Trace a network with a batch axis of any size; return a function that writes it."""
    examples = tuple(example[:TRACED] for example in network.examples)
    inputs, outputs = ([port.name for port in ports] for ports in (network.inputs, network.outputs))
    sizes = ({0: torch.export.Dim.DYNAMIC},) * len(examples)
    program = torch.export.export(_NamedInputs(network.module, inputs), examples, dynamic_shapes=sizes)
    if format == "torch":
        file = io.BytesIO()  # on a full disk its writer, in C++, would end the process
        torch.export.save(program, file)
        return lambda path: path.write_bytes(file.getvalue())
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=({0: "batch"},) * len(examples),
    )
    assert exported is not None
    for node in exported.model.graph:
        for value in node.outputs:  # are called after operations, and an operation may be called as an input or output
            if value.name in (*inputs, *outputs) and not value.is_graph_output():
                value.name = f"{value.name}_inner"
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    return partial(exported.save, external_data=weights > LARGEST_FILE)


class _NamedInputs(nn.Module):
    """A network whose `forward` has one named parameter per input: torch 2.9 cannot use exported `*inputs`."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module

        def forward(*inputs: Tensor) -> Any:
            return module(*inputs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        self.forward = forward


def run_export(path: Path, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Return the outputs of an exported network, run by onnxruntime or by PyTorch."""
    if path.suffix == FILES["torch"]:
        program = torch.export.load(path).module()
        with torch.no_grad():
            outputs = program(*(torch.from_numpy(value) for value in inputs.values()))
        return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]
    import onnxruntime

    return list(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, dict(inputs)))


def _compare(network: Network, path: Path) -> dict[str, float]:
    """Return the largest difference from PyTorch by output, over batches of several sizes.

    Differences of ids are shares of unequal ids, those of numbers are in the output's unit. Raises ExportError.
    """
    pairs_by_output: dict[str, list[tuple[Any, Any]]] = {port.name: [] for port in network.outputs}
    for size in CHECKED:
        examples = [example[:size] for example in network.examples]
        with torch.no_grad():
            result = network.module(*examples)
        names = [port.name for port in network.inputs]
        try:
            outputs = run_export(path, {name: example.numpy() for name, example in zip(names, examples, strict=True)})
        except Exception as error:  # runtimes raise errors of no common class
            if is_of_the_machine(error):
                raise
            raise ExportError(f"{path.name}: does not run: {' '.join(str(error).split())[:LONGEST_REASON]}") from error
        references = [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]
        for (name, pairs), reference, output in zip(pairs_by_output.items(), references, outputs, strict=True):
            expected, actual = (f"{array.dtype} {array.shape}" for array in (reference, output))
            if expected != actual:
                raise ExportError.expected(f"{path.name}: {name}", expected, actual)
            pairs.append((reference.ravel(), output.ravel()))
    differences = {}
    for name, pairs in pairs_by_output.items():
        reference, output = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        if reference.dtype.kind in "iub":
            difference, limit = float((reference != output).mean()), 1 - AGREEMENT
        else:
            difference, limit = float(np.abs(reference - output).max()), TOLERANCE * float(np.ptp(reference)) + 1e-6
        if not difference <= limit:
            raise ExportError(
                f"{path.name}: {name} differs from PyTorch by {difference:.3g}, at most {limit:.3g} was expected;"
                " try the other --format, or report a bug with the versions of zoo env"
            )
        differences[name] = difference
    return differences


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings and progress of tracers; problems are raised."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


# --- tokenizers


def export_tokenizer(
    handle: ModalityHandle, out: Path, format: Format = "onnx", *, overwrite: bool = False
) -> dict[str, Any]:
    """Write encoder (values to tokens) and decoder (tokens to values) of a tokenizer; return the record.

    The plain decoder is exported, because a diffusion decoder draws random numbers.

    Raises ConfigError for a tokenizer that is not a network, such as for text, and the errors of `export_networks`.
    """
    spec, layout = handle.spec, as_dicts(handle.spec.layout)
    modules: Mapping[str, nn.Module] = getattr(handle.tokenizer, "networks", dict)()
    if not modules:
        raise ConfigError(
            f"{handle.name}: its tokenizer is not a network from arrays to tokens; there is nothing to export"
        )
    low, high = bounds(spec.value)
    value = Port(
        name="values",
        shape=tuple(int(size) for size in spec.value.shape),
        dtype=spec.value.dtype,
        unit=spec.value.unit,
        low=low,
        high=high,
        meaning=spec.value.description,
    )
    values = example_values(value, max(CHECKED))
    with torch.no_grad():
        tokens = modules["encoder"](values)
    token = Port(
        name="tokens",
        shape=tuple(tokens.shape[1:]),
        dtype=str(tokens.dtype).removeprefix("torch."),
        low=None if spec.continuous else 0,
        high=None if spec.continuous else spec.vocab_size - 1,
    )
    ports = {"encoder": (values, value, token), "decoder": (tokens, token, value)}
    networks = [
        Network(name=name, module=modules[name], examples=(batch,), inputs=(source,), outputs=(target,))
        for name, (batch, source, target) in ports.items()
        if name in modules
    ]
    about = {"modality": spec.name, "fingerprint": handle.fingerprint, "layout": layout, "classes": spec.value.classes}
    return export_networks(networks, out, format, about, overwrite=overwrite)


def example_values(port: Port, count: int) -> Tensor:
    """Return a batch of random values within the bounds of an input, with different samples."""
    rng = np.random.default_rng(0)
    shape = (count, *port.shape)
    if np.dtype(port.dtype).kind in "iub":
        return torch.from_numpy(rng.integers(int(port.low or 0), int(port.high or 0) + 1, shape).astype(port.dtype))
    noise = rng.standard_normal(shape)
    if port.low is not None and port.high is not None:
        noise = port.low + (port.high - port.low) / (1 + np.exp(-noise))
    elif port.low is not None or port.high is not None:
        noise = port.low + np.abs(noise) if port.low is not None else port.high - np.abs(noise)
    return torch.from_numpy(noise.astype(port.dtype))
