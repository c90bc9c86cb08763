"""Bundles: a trained model with everything that it needs, in one folder with relative paths.

    OUT/model.safetensors, config.json   the backbone
    OUT/registry.toml, tokenizers/       settings and tokenizers of its modalities
    OUT/run.json                         the record of a finished run, so that every command takes the folder as RUN
    OUT/bundle.json                      the distributions that it needs, the golden sample, sha256 sums of its files
    OUT/golden/<modality>.<ext>          a value of each modality
    OUT/samples/, tokens/                on request, some held-out samples, as values and as tokens
    OUT/wheels/*.whl                     on request, the distributions that it needs; loading it never installs them
    OUT/README.md                        the model card, with evaluation results

The **golden sample** shows whether a bundle works elsewhere as it did where it was written: a value of each modality,
its tokens, and the tokens that the model predicts from one of the modalities.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

from tokenizers_zoo import __version__
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.contract.registry import CORE_KEYS, ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.errors import CheckpointError, DataError, ZooError
from tokenizers_zoo.files.checkpoint import CARD, CONFIG, card_row, load_checkpoint, save_checkpoint
from tokenizers_zoo.files.run_folder import replacing_folder
from tokenizers_zoo.machine.progress import say
from tokenizers_zoo.machine.terminal import console
from tokenizers_zoo.records.io import file_digest, read_record, read_regular, write_table
from tokenizers_zoo.stores.manifest import Dataset, Split, SplitRecord
from tokenizers_zoo.stores.shards import ValueStore, writing_shard
from zoo_backbone.generate.plans import TargetPlan
from zoo_backbone.generate.sampler import generate
from zoo_backbone.learn.checkpoint import CLASS, load_model, model_card
from zoo_backbone.measure.evaluation import FILE, FOLDER, PAIR_METRICS, PairScore, read_evaluation
from zoo_backbone.measure.evaluation_data import ranked_names, title_of
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import BUNDLE, REGISTRY, TOKENIZERS, WHEELS, BundleRecord, Golden, Run
from zoo_backbone.use.wheels import write_wheels

GOLDEN = "golden"
SAMPLES, TOKENS = "samples", "tokens"
AGREEMENT = 0.95
"""Smallest share of equal tokens in a verified bundle: other processors round differently, so that close choices may
differ."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_bundle(
    run: Run,
    zoo: Zoo,
    out: Path,
    dtype: str = "float32",
    samples: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    with_plugins: bool = False,
) -> None:
    """Write the model of a run, its tokenizers and its registry into the folder `out`.

    `dtype` is the type of stored weights, `samples` the number of held-out samples to include. The golden sample is
    computed on `device`. `with_plugins` includes the wheels of the distributions that the bundle needs. Raises
    FolderError if `out` holds anything, except a bundle with `overwrite`, and PluginError if a wheel cannot be made.
    """
    with replacing_folder(out, BUNDLE, overwrite) as folder:
        tensors, config = load_checkpoint(run.folder, CLASS)
        model, samples_folder = load_model(run.folder), None
        handles = [zoo[name] for name in model.layout.names]
        for handle in handles:
            model.check_tokenizer(handle)
        sample = _held_out(run.data, {handle.name: handle for handle in handles})
        plugins = dict(handle.distribution.split(" ", 1) for handle in handles)
        requires = {"tokenizers-zoo": __version__, "zoo-backbone": version("zoo-backbone"), **plugins}
        card = card_of(model, run.folder, out.absolute().name, requires, with_plugins)
        wheels = write_wheels(requires, folder / WHEELS) if with_plugins else []
        (folder / REGISTRY).write_text(tomli_w.dumps(registry_of(zoo, handles)), encoding="utf-8")
        for handle in handles:
            _copy_tokenizer(handle, folder, dtype)
        bundle_zoo = Zoo.from_toml(folder / REGISTRY)
        fingerprints = {handle.name: bundle_zoo[handle.name].fingerprint for handle in handles}
        config |= {"fingerprints": fingerprints, "start": None}
        save_checkpoint(folder, as_dtype(tensors, dtype), config, "")
        if samples:
            samples_folder = folder / SAMPLES
            copy_samples(ValueStore(run.values()), [handle.name for handle in handles], samples_folder, samples)
            tokenize(bundle_zoo, samples_folder, folder / TOKENS, device=device)
        Run(tokens=folder / TOKENS, data=samples_folder, registry=folder / REGISTRY).save(folder)
        model = load_model(folder, device=device).eval()
        for name in model.layout.names:
            bundle_zoo[name].device = device
        golden = golden_sample(model, bundle_zoo, sample, folder)
        file_names = REGISTRY, *golden.files.values(), *(f"{WHEELS}/{name}" for name in wheels)
        files = {name: file_digest(folder / name) for name in file_names}
        write_table(folder / BUNDLE, BundleRecord(requires=requires, files=files, golden=golden))
        (folder / CARD).write_text(card, encoding="utf-8")


def registry_of(zoo: Zoo, handles: Sequence[ModalityHandle]) -> dict[str, Any]:
    """Return the tables of a registry.toml for these modalities, with their tokenizers in one folder."""
    names = sorted(handle.name for handle in handles)
    tables = {name: zoo.tables["modalities"].get(name, {}) for name in names}
    settings = {
        name: {key: value for key, value in table.items() if key not in ("checkpoint", "sha256", "enabled")}
        for name, table in tables.items()
    }
    used = {*CORE_KEYS, *(key for handle in handles for key in handle.known_settings())}
    shared = {key: value for key, value in zoo.tables["zoo"].items() if key in used}
    vocabularies = {name for handle in handles for name in handle.plugin_vocabularies()}
    return {
        "zoo": {**shared, "checkpoints": TOKENIZERS, "modalities": names},
        "vocabularies": {name: table for name, table in zoo.tables["vocabularies"].items() if name in vocabularies},
        "modalities": {name: table for name, table in settings.items() if table},
    }


def _copy_tokenizer(handle: ModalityHandle, folder: Path, dtype: str) -> None:
    """Copy a tokenizer, and its vocabulary if that is apart, to their usual places in the bundle."""
    spec = handle.spec
    sources = {spec.name if spec.own_tokenizer else spec.vocabulary: handle.files.folder()}
    if spec.own_tokenizer and not spec.continuous:
        sources.setdefault(spec.vocabulary, handle.files.vocabulary_folder())
    for name, source in sources.items():
        target = folder / TOKENIZERS / name
        if target.is_dir() or not (source / CONFIG).is_file():
            continue
        tensors, config = load_checkpoint(source)
        card = source / CARD
        save_checkpoint(target, as_dtype(tensors, dtype), config, (read_regular(card) or b"").decode())


def copy_samples(values: ValueStore, names: Sequence[str], out: Path, count: int) -> None:
    """Write the first held-out samples with all modalities that the values have among `names` as a folder of values."""
    available = [name for name in names if name in values.modalities(TEST)]
    positions = list(islice(values.rows(TEST, available), count))
    split = Split(out, TEST, len(positions), max(len(positions), 1))
    keys = [values.split(TEST).keys(position.shard)[position.row] for position in positions]
    digest = split.write_keys(0, keys)
    Dataset(splits={TEST: SplitRecord(samples=split.samples, shard_size=split.shard_size)}).write(out)
    for name in available:
        with writing_shard(out / TEST / name, 0) as writer:
            for key, position in zip(keys, positions, strict=True):
                writer.add(key, *values.read_bytes(TEST, name, *position))
            writer.finish(keys=digest, inputs="copied", record={})


def as_dtype(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Convert float32 tensors whose numbers all fit into the type."""
    converted = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    return {**tensors, **{name: tensor for name, tensor in converted.items() if tensor.isfinite().all()}}


# --- the golden sample


def golden_sample(model: FourM, zoo: Zoo, sample: Mapping[str, Any], folder: Path) -> Golden:
    """Write a value of each modality into folder/golden; return its tokens and predictions for bundle.json.

    They are the values of `sample`, or generated if it has none.
    """
    handles = {name: zoo[name] for name in model.layout.names}
    if not sample:
        plans = [TargetPlan(name=name, temperature=0) for name in model.layout.discrete]
        generated = generate(model, {}, plans, 0, [0])
        sample = {name: handles[name].decode(tokens)[0] for name, tokens in generated.items()}
    files = {}
    for name, value in sample.items():
        data, extension = handles[name].write(value)
        files[name] = f"{GOLDEN}/{name}.{extension}"
        (folder / files[name]).parent.mkdir(exist_ok=True)
        (folder / files[name]).write_bytes(data)
    specs = [handles[name].spec for name in sample if name in model.layout.readable]
    source = ranked_names(specs)[0]
    return Golden(files=files, input=source, **_golden_tokens(folder, model, zoo, files, source))


def _held_out(data: Path | None, handles: Mapping[str, ModalityHandle]) -> dict[str, Any]:
    """Return the values of the first held-out sample with all modalities, by name; {} without one, and say why."""
    try:
        if data is None:
            raise DataError("the run names no data")
        values = ValueStore(data)
        for position in values.rows(TEST, list(handles)):
            return {name: values.read(handle, TEST, *position) for name, handle in handles.items()}
        raise DataError(f"{data}: no held-out sample has all modalities")
    except ZooError as error:
        say(console(), f"the golden sample of the bundle is generated, not held out ({error})")
        return {}


def _golden_tokens(
    folder: Path, model: FourM, zoo: Zoo, files: Mapping[str, str], source: str
) -> dict[str, dict[str, Any]]:
    """Return tokens of the golden values, and the most likely tokens that the model predicts from one of them."""
    encoded = {name: zoo[name].encode([folder / file]) for name, file in files.items()}
    plans = [TargetPlan(name=name, temperature=0, steps=1) for name in model.layout.discrete if name != source]
    inputs = {source: encoded[source]}
    predicted = {plan.name: generate(model, inputs, [plan], 0)[plan.name] for plan in plans}
    discrete = {name: tokens for name, tokens in encoded.items() if name in model.layout.discrete}
    return {
        "tokens": {name: tokens[0].tolist() for name, tokens in discrete.items()},
        "predicted": {name: tokens[0].tolist() for name, tokens in predicted.items()},
    }


def verify(folder: Path, model: FourM, zoo: Zoo) -> dict[str, float]:
    """Compute the golden sample anew; return the share of tokens that are equal to the stored ones.

    The shares are by modality: `depth` for the tokenizer, `predicted depth` for the model. Raises CheckpointError if a
    share is below AGREEMENT, or if the folder is no bundle.
    """
    if not (folder / BUNDLE).is_file():
        raise CheckpointError(f"{folder}: is no bundle; make one with zoo backbone export")
    record = read_record(folder / BUNDLE, BundleRecord)
    golden = record.golden
    if golden.input not in golden.files:
        raise CheckpointError(f"{folder / BUNDLE}: has no golden value of {golden.input}; export it again")
    if unverified := sorted(set(golden.files.values()) - set(record.files)):
        raise CheckpointError(f"{folder / BUNDLE}: has no checksum of {unverified[0]}; export it again")
    computed = _golden_tokens(folder, model, zoo, golden.files, golden.input)
    try:
        shares = {
            f"{prefix}{name}": agreement(tokens, computed[key][name])
            for key, prefix in (("tokens", ""), ("predicted", "predicted "))
            for name, tokens in getattr(golden, key).items()
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / BUNDLE}: damaged golden tokens: {error}; export it again") from None
    for name, share in shares.items():
        if share < AGREEMENT:
            advice = "compare the versions in bundle.json with zoo env"
            raise CheckpointError(f"{folder}: {name}: only {share:.0%} of the golden tokens are the same; {advice}")
    return shares


def agreement(expected: Any, actual: Any) -> float:
    """Return the share of equal tokens; those beyond the end of the shorter sequence differ."""
    expected, actual = np.ravel(expected), np.ravel(actual)
    shorter, longer = sorted((len(expected), len(actual)))
    return float((expected[:shorter] == actual[:shorter]).sum()) / longer if longer else 1.0


# --- the model card


def card_of(model: FourM, run: Path, title: str, requires: Mapping[str, str], with_plugins: bool) -> str:
    """Return README.md of a bundle: metadata for the hub, how to use it, and the scores of the run's evaluation."""
    from huggingface_hub import EvalResult, ModelCardData

    results, rows = [], []
    for pair, metrics in _scored_pairs(run):
        title_of_pair = title_of(pair.pair)
        figures = [metric.text(pair.figure(name)) for name, metric in PAIR_METRICS.items()]
        rows.append(card_row(title_of_pair, *figures, f"{metrics[0]} {pair.score[metrics[0]]:.3g}", pair.samples))
        results += [
            EvalResult(
                task_type="any-to-any",
                dataset_type="held-out",
                dataset_name="held-out samples",
                metric_type=metric,
                metric_name=f"{title_of_pair}: {metric}",
                metric_value=pair.score[metric],
            )
            for metric in metrics
            if pair.score[metric] is not None
        ]
    data = ModelCardData(
        model_name=title,
        library_name="tokenizers-zoo",
        pipeline_tag="any-to-any",
        tags=["4m", "multimodal"],
        eval_results=results or None,
    )
    install = f"{shlex.quote(title)}/{WHEELS}/*.whl" if with_plugins else " ".join(sorted(requires))
    meanings = [f"{metric.name}: {metric.meaning}." for metric in PAIR_METRICS.values()]
    header = card_row("inputs and target", *PAIR_METRICS, "metric", "samples")
    lines = ["", "## Evaluation", "", *meanings, "", header, "|---" * (len(PAIR_METRICS) + 3) + "|", *rows, ""]
    table = "\n".join(lines) if rows else ""
    return f"---\n{data.to_yaml()}\n---\n\n{model_card(model)}\n    pip install {install}\n{table}"


def _scored_pairs(run: Path) -> Iterator[tuple[PairScore, list[str]]]:
    """Yield the scored pairs of a run's evaluation, each with the names of its metrics, the main one first."""
    file = run / FOLDER / FILE
    if file.is_file():
        evaluation = read_evaluation(file)
        for pair in evaluation.pairs:
            names = [metric.name for metric in evaluation.modalities[pair.target].metrics]
            if pair.score.get(names[0]) is not None:
                yield pair, names
