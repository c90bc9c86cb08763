"""The encoder as a feature extractor: against the model's own encoder, hand-computed pooling, compiled and exported."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import END, all_layouts, raw_batch, sequence
from torch import Tensor

from tokenizers_zoo.contract.layouts import GridLayout, VectorLayout
from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, InvalidValueError, UnknownNameError
from tokenizers_zoo.files.run_folder import RunRecord, write_run
from zoo_backbone import AnyToAny, FourM, FourMEncoder
from zoo_backbone.learn.checkpoint import architecture_for, save_model
from zoo_backbone.learn.encoder import parameter_groups
from zoo_backbone.model.batch import PackedInputs
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.published import PublishedConfig, PublishedLayout
from zoo_backbone.model.run import Run, training_fingerprints

SPECS = all_layouts()
BATCH = 3


def model(kind: type[ModelConfig] = ModelConfig, **changes: Any) -> FourM:
    config = kind(dim=32, encoder_depth=2, decoder_depth=1, heads=2, **changes)
    return architecture_for(config).seeded(config, SPECS, 0)


def tokens_of(*names: str) -> dict[str, Any]:
    """Return tokens as codecs return them, with sequences of different lengths."""
    raw = raw_batch(SPECS, BATCH, seed=1)
    tokens: dict[str, Any] = {}
    for column, spec in enumerate(SPECS):
        rows, lengths = raw.tokens[spec.name], raw.lengths[:, column]
        if spec.layout.kind in ("sequence", "embeddings"):
            tokens[spec.name] = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        else:
            shape = rows.shape[1:] if spec.continuous else spec.layout.token_shape
            tokens[spec.name] = torch.from_numpy(rows.reshape(BATCH, *shape))
    return {name: tokens[name] for name in names}


def one_sample(backbone: FourM, tokens: dict[str, Any], number: int) -> PackedInputs:
    """Build the inputs of a single sample, token by token."""
    ids, positions, kinds = [], [], []
    vectors = {}
    for name, rows in tokens.items():
        row = np.asarray(rows[number])
        if backbone.layout.spec(name).continuous:
            vectors[name] = torch.arange(len(ids), len(ids) + len(row)), torch.as_tensor(row)
            ids += [0] * len(row)
        else:
            row = row.ravel()
            layout = backbone.layout.spec(name).layout
            if isinstance(backbone.layout, PublishedLayout) and layout.kind == "sequence" and len(row) < layout.length:
                row = np.append(row, END)
            ids += [backbone.layout.token_rows(name).start + int(token) for token in row]
        positions += [backbone.layout.positions[name].start + index for index in range(len(row))]
        kinds += [backbone.layout.names.index(name)] * len(row)
    return PackedInputs(
        ids=torch.tensor([ids]), positions=torch.tensor([positions]), modalities=torch.tensor([kinds]),
        mask=torch.ones(1, len(ids), dtype=torch.bool), vectors=vectors,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"registers": 2, "bias": True, "qk_norm": True},
                                     {"rotary": True, "registers": 1}])  # fmt: skip
def test_features_equal_the_models_encoder_output(changes: dict[str, Any]) -> None:
    backbone = model(PublishedConfig if changes else ModelConfig, **changes)
    encoder = FourMEncoder(copy.deepcopy(backbone))
    tokens = tokens_of("words", "picture", "vectors", "code", "pixels", "clip")
    features, mask = encoder.forward_features(*encoder.prepare(tokens))
    assert features.shape[:2] == mask.shape
    for number in range(BATCH):
        expected = backbone.encode(one_sample(backbone, tokens, number))[0]
        assert torch.allclose(features[number][mask[number]], expected, atol=2e-5)


def test_run_is_loaded_without_its_decoder(tmp_path: Path) -> None:
    backbone = model()
    save_model(backbone, tmp_path)
    Run(tokens=tmp_path).save(tmp_path)
    encoder = FourMEncoder.from_run(tmp_path)
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    modules = {name.split(".")[1] for name in encoder.state_dict()}
    assert modules == {
        "token_embedding", "modality_embedding", "learned_positions", "projections", "encoder", "encoder_norm"
    }  # fmt: skip
    tokens = tokens_of("code", "picture")
    features, mask = encoder.forward_features(*encoder.prepare(tokens))
    assert torch.allclose(features[0], backbone.encode(one_sample(backbone, tokens, 0))[0], atol=2e-5) and mask.all()
    assert FourMEncoder.from_run(tmp_path, frozen=False).model.encoder_norm.weight.requires_grad


def test_a_linked_registry_resolves_paths_from_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers are looked up in the link's folder, not in the folder of the linked file."""
    for folder in ("shared", "mine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shared" / "registry.toml").write_text('[zoo]\ncheckpoints = "tokenizers"\n')
    (tmp_path / "mine" / "registry.toml").symlink_to(tmp_path / "shared" / "registry.toml")
    monkeypatch.chdir(tmp_path / "mine")
    Run(tokens=Path("tokens"), registry=Path("registry.toml")).save(tmp_path)
    run = Run.load(tmp_path)
    assert run == Run(tokens=tmp_path / "mine/tokens", registry=tmp_path / "mine/registry.toml")
    assert run.zoo().checkpoints == tmp_path / "mine/tokenizers"


@pytest.mark.parametrize(
    ("modalities", "key"), [(3, "modalities"), ({"x": 3}, r"modalities\.x"), ({"x": {}}, r"modalities\.x\.fingerprint")]
)
def test_a_damaged_identity_of_a_training_is_named(tmp_path: Path, modalities: Any, key: str) -> None:
    write_run(tmp_path, RunRecord(kind="backbone", identity={"modalities": modalities}, places={}, finished=None))
    with pytest.raises(CheckpointError, match=rf"run\.json: damaged: identity\.{key}: "):
        training_fingerprints(tmp_path, [])
    write_run(tmp_path, RunRecord(kind="index", identity={"modalities": modalities}, places={}, finished=None))
    assert training_fingerprints(tmp_path, []) == {}  # of another command, which the training refuses


def test_a_model_without_a_run_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from_pretrained"):
        AnyToAny(model(), Zoo({})).save_pretrained(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_values_are_encoded_by_the_training_tokenizers(tmp_path: Path) -> None:
    """Sequences may become longer; see `TokenLayout.same_tokens`."""
    save_model(model(), tmp_path, {"fingerprints": {"words": "0" * 64}})
    Run(tokens=tmp_path).save(tmp_path)

    def encoder(layout: Any, fingerprint: str) -> FourMEncoder:
        words: Any = SimpleNamespace(
            name="words", fingerprint=fingerprint, checkpoint=tmp_path, encode=lambda values: [np.array([70])],
            can_read=lambda wrote, _=0: wrote == fingerprint, spec=SimpleNamespace(layout=layout, vocab_size=100),
        )  # fmt: skip
        words.check_tokens_of = functools.partial(ModalityHandle.check_tokens_of, words)
        return FourMEncoder.from_run(tmp_path, {"words": words})  # type: ignore[arg-type]

    assert encoder(sequence(99), "0" * 64).tokenize({"words": ["a"]}) == {"words": [np.array([70])]}
    for layout, fingerprint, message in (
        (sequence(20), "1" * 64, "000000000000, .* 1111"),
        (VectorLayout(length=20), "0" * 64, "sequence <=20, .* vector 20"),
    ):
        with pytest.raises(DataError, match=f"^words: .*{message}.*registry"):
            encoder(layout, fingerprint).tokenize({"words": ["a"]})


def test_pooling_by_hand() -> None:
    encoder = FourMEncoder(model())
    tokens, used = encoder.prepare({**tokens_of("picture"), "words": [np.zeros(0, np.int64), np.array([70, 71]), [70]]})
    features, mask = encoder.forward_features(tokens, used)
    assert mask.sum(1).tolist() == [36, 38, 37]
    assert torch.allclose(encoder(tokens, used)[1], features[1, :38].mean(0), atol=1e-6)
    assert torch.allclose(encoder(tokens, used)[2], features[2, :37].mean(0), atol=1e-6)
    of_words = encoder(tokens, used, of="words")
    assert torch.equal(of_words[0], torch.zeros(32))  # it has none
    assert torch.allclose(of_words[1], features[1, 36:38].mean(0), atol=1e-6)
    assert torch.allclose(encoder(tokens, used, of="picture")[2], features[2, :36].mean(0), atol=1e-6)


def test_empty_sample_gives_finite_features_and_does_not_change_others() -> None:
    encoder = FourMEncoder(model())
    full = tokens_of("words")["words"]
    empty = [full[0], np.zeros(0, np.int64), full[2]]
    masks: list[Tensor] = []
    encoder.model.encoder[0].register_forward_pre_hook(lambda _, arguments: masks.append(arguments[2]))
    pooled = encoder(*encoder.prepare({"words": empty}))
    assert masks[0].any(-1).all()  # a row without any key is NaN on some devices
    assert torch.isfinite(encoder.forward_features(*encoder.prepare({"words": empty}))[0]).all()
    assert torch.equal(pooled[1], torch.zeros(32))
    assert torch.allclose(pooled[0], encoder(*encoder.prepare({"words": full}))[0], atol=1e-5)


def test_pyramid_has_the_requested_sizes_and_keeps_positions() -> None:
    encoder = FourMEncoder(FourM.seeded(ModelConfig(dim=32, encoder_depth=5, decoder_depth=1, heads=2), SPECS, 0))
    assert encoder.out_indices == (0, 1, 2, 4)
    tokens, used = encoder.prepare(tokens_of("words", "pixels", "picture"))
    maps = encoder.pyramid(tokens, used, of="picture")
    assert [tuple(level.shape) for level in maps] == [
        (BATCH, 32, 24, 24), (BATCH, 32, 12, 12), (BATCH, 32, 6, 6), (BATCH, 32, 3, 3)
    ]  # fmt: skip
    last, between, _ = encoder.forward_intermediates(tokens, used)
    start = tokens["words"].shape[1] + 36
    assert torch.allclose(maps[2][:, :, 1, 4], between[2][:, start + 6 + 4])
    grid = last[:, start:].unflatten(1, (6, 6))
    assert torch.allclose(maps[3][:, :, 0, 1], grid[:, :2, 2:4].mean((1, 2)), atol=1e-5)  # of the last block
    single = FourMEncoder(model(), out_indices=[-1])
    assert [tuple(m.shape[2:]) for m in single.pyramid(tokens, used, of="pixels", scales=[1])] == [(6, 6)]


def test_pyramid_of_a_wide_grid_keeps_rows_and_columns() -> None:
    config = ModelConfig(dim=32, encoder_depth=2, decoder_depth=1, heads=2)
    wide = dataclasses.replace(SPECS[0], name="wide", layout=GridLayout(shape=(2, 3)))
    encoder = FourMEncoder(FourM.seeded(config, [wide], 0))
    tokens, used = encoder.prepare({"wide": torch.arange(6).reshape(1, 2, 3)})
    features, _ = encoder.forward_features(tokens, used)
    larger, same = encoder.pyramid(tokens, used, of="wide", scales=[2, 1])
    assert larger.shape == (1, 32, 4, 6) and same.shape == (1, 32, 2, 3)
    assert torch.equal(same[:, :, 1, 0], features[:, 3]) and torch.equal(same[:, :, 1, 2], features[:, 5])


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda e: e.prepare({"pictures": []}), UnknownNameError, "pictures"),
        (lambda e: e.prepare({"picture": torch.zeros(2, 5, 5).long()}), InvalidValueError, "picture"),
        (lambda e: e.prepare({**tokens_of("picture"), "code": torch.zeros(2, 5).long()}), InvalidValueError, "code: "),
        (lambda e: e.prepare({}), ConfigError, "at least one modality"),
        (lambda e: e.tokenize({"picture": []}), ConfigError, "zoo"),
        (lambda e: e.pyramid({}, of="code"), ConfigError, "code.*vector"),
        (lambda e: e.pyramid(e.prepare(tokens_of("picture"))[0], of="pixels"), ConfigError, "pixels"),
        (lambda e: e.pyramid(e.prepare(tokens_of("picture"))[0], of="picture", scales=[1.0, 0.0]), ConfigError, "2 "),
    ],
    ids=["name", "shape", "samples", "nothing", "no zoo", "layout", "absent", "scales"],
)
def test_bad_input_is_named(act: Callable[[FourMEncoder], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act(FourMEncoder(model()))


def test_gradients_flow_to_unfrozen_parts_and_always_to_pixels() -> None:
    tokens, used = FourMEncoder(model()).prepare(tokens_of("pixels", "words"))
    for frozen in (True, False):
        encoder = FourMEncoder(model(), frozen=frozen)
        pixels = tokens["pixels"].clone().requires_grad_()
        # A plain mean would give the norm's scale almost nothing.
        encoder({**tokens, "pixels": pixels}, used).square().sum().backward()
        assert pixels.grad is not None and pixels.grad.abs().sum() > 0
        touched = {name for name, p in encoder.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == set() if frozen else {"projections.pixels.weight", "encoder.0.attention.qkv.weight"} < touched


def test_layer_decay_covers_every_parameter_once() -> None:
    encoder = FourMEncoder(model(PublishedConfig, bias=True, registers=1), frozen=False)
    groups = parameter_groups(encoder, 1e-2, decay=0.5, weight_decay=0.1)
    assert [(group["layer"], group["lr"], group["weight_decay"]) for group in groups] == [
        (0, 1.25e-3, 0.0), (0, 1.25e-3, 0.1), (1, 2.5e-3, 0.0), (1, 2.5e-3, 0.1), (2, 5e-3, 0.0), (2, 5e-3, 0.1),
        (3, 1e-2, 0.0),
    ]  # fmt: skip
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in encoder.parameters())
    weights: list[Tensor] = groups[1]["params"]
    assert {id(weight) for weight in weights} == {id(p.weight) for p in encoder.model.projections.values()}
    assert parameter_groups(FourMEncoder(model()), 1e-2) == []
    torch.optim.AdamW(groups).step()


def test_export_and_compile() -> None:
    encoder = FourMEncoder(model(rotary=True))
    tokens, used = encoder.prepare(tokens_of("picture", "words", "pixels"))
    expected = encoder(tokens, used)
    exported = torch.export.export(encoder, (tokens, used))
    changed = {**tokens, "picture": (tokens["picture"] + 1) % 50}
    assert torch.allclose(exported.module()(changed, used), encoder(changed, used), atol=1e-6)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(tokens, used), expected, atol=1e-6)
