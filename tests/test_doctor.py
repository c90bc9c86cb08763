"""The doctor: each gate passes where it should, fails with figures where it should, and the command says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import only, write_registry
from skimage.feature import canny
from stores import write_values, writing_values

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.testing import CheckResult
from tokenizers_zoo.testing.doctor import GATES, examinable, examine
from tokenizers_zoo.testing.geometry import shift_between

Install = Callable[..., Path]
COUNT = 24


def blocks(number: int, low: float = 0.0, high: float = 1.0, side: int = 16) -> np.ndarray:
    """4 x 4 blocks of random brightness, which the example plugin's tokens can represent."""
    coarse = np.random.default_rng(number).uniform(low, high, (1, side // 4, side // 4))
    return np.kron(coarse, np.ones((1, 4, 4))).astype(np.float32)


def write_data(zoo: Zoo, folder: Path, values: Sequence[Any], name: str = "field") -> Path:
    """`values` in both splits."""
    for split in ("train", "test"):
        with writing_values(folder, split, name) as shard:
            for number, value in enumerate(values):
                shard.add(f"{split}-{number:03}", *zoo[name].write(value))
    return folder


def findings(zoo: Zoo, data: Path, name: str = "field", **options: Any) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in examine(zoo, name, data, **options)}


@pytest.fixture
def zoo(install_example: Install, tmp_path: Path) -> Zoo:
    """The example plugin as `field`, and nothing else."""
    install_example("field")
    return only(zoo={"checkpoints": str(tmp_path / "tokenizers")})


def test_a_sound_modality_passes_every_gate_with_figures(zoo: Zoo, tmp_path: Path) -> None:
    data = write_data(zoo, tmp_path / "data", [blocks(i) for i in range(COUNT)])
    zoo["field"].train_tokenizer(TrainingSamples(train=[blocks(0)], test=[blocks(0)]), zoo["field"].checkpoint, 0)
    gates = findings(zoo, data, samples=16)
    assert list(gates) == list(GATES) and all(finding.passed for finding in gates.values()), gates
    assert {name for name, finding in gates.items() if finding.skipped} == set()
    assert gates["values"].message.startswith("16 sound, 0.00") and "(declared 0 to 1)" in gates["values"].message
    assert "mae 0.01" in gates["floor"].message and "best constant 0.2" in gates["floor"].message
    assert gates["codebook"].message == "100.0% of 16 codes used, 100.0% where tokens are spread evenly"
    assert gates["varied"].message.startswith("16 of 16 samples differ")
    assert examinable(zoo, data, "test") == ["field"]


def assert_gate_fails(zoo: Zoo, data: Path, gate: str, *parts: str, **options: Any) -> None:
    """Assert that `gate` fails with each of `parts` in its figures and with advice, each in one line."""
    finding = findings(zoo, data, **options)[gate]
    assert not finding.passed and finding.advice, finding
    for part in parts:
        assert part in finding.message, finding.message
    assert "\n" not in finding.message + finding.advice


def test_refused_constant_and_misscaled_values_fail(zoo: Zoo, tmp_path: Path) -> None:
    data = write_data(zoo, tmp_path / "one", [blocks(i) for i in range(3)])
    with writing_values(data, "test", "field", more=True) as shard:
        shard.add("wide", b"\x93NUMPY damaged", "npy")
    assert_gate_fails(zoo, data, "values", "1 of 4 are refused; wide: field: ")
    same = write_data(zoo, tmp_path / "two", [blocks(1)] * 3)
    assert_gate_fails(zoo, same, "values", "all 3 are the same")
    small = write_data(zoo, tmp_path / "three", [blocks(i, 0.5, 0.505) for i in range(3)])
    assert_gate_fails(zoo, small, "values", "0.50", "less than 1% of the range")
    write_values(tmp_path / "four", "test", {"field": {}, "other": {"a": (b"", "npy")}})
    assert_gate_fails(zoo, tmp_path / "four", "values", "test/field: holds no values")
    shutil.rmtree(tmp_path / "four" / "test" / "field")
    with pytest.raises(DataError, match=r"unknown modality .*'field'; known: other"):
        findings(zoo, tmp_path / "four")


def test_error_in_one_modality_is_reported_separately(install_example: Install, tmp_path: Path) -> None:
    for name in ("broken", "cut", "field"):
        install_example(name, {MARKS: "raise ValueError('no luck')"} if name == "broken" else {})
    zoo = only(zoo={"checkpoints": str(tmp_path / "tokenizers")})
    for name in ("broken", "cut", "field"):
        data = write_data(zoo, tmp_path / "data", [blocks(i) for i in range(COUNT)], name)
    (data / "test/cut/shard-00000.tar").write_bytes(b"not a tar" * 99)
    findings_by_name = {name: findings(zoo, data, name, steps=4) for name in examinable(zoo, data, "test")}
    assert all(list(gates) == list(GATES) for gates in findings_by_name.values())
    assert all(finding.passed for finding in findings_by_name["field"].values())
    failed = {name: [gate for gate, f in gates.items() if not f.passed] for name, gates in findings_by_name.items()}
    assert failed == {"broken": ["floor", "bound"], "cut": ["values", "trained"], "field": []}
    floor = findings_by_name["broken"]["floor"]
    assert "score of plugin 'broken'" in floor.message and floor.advice
    assert "test/cut/shard-00000.tar" in findings_by_name["cut"]["values"].message


ENCODE = "(means * (len(tokenizer) - 1)).round().long()"


METRICS = 'metrics=(Metric(name="mae", higher_is_better=False, meaning="mean absolute error"),)'
MARKS = """return {"mae": float(np.mean([np.abs(p - t).mean() for p, t in zip(predicted, target, strict=True)]))}"""
SCORE = "np.mean([(np.abs(p - t) < 0.1).mean() for p, t in zip(predicted, target, strict=True)])"
COARSE = {"levels: int = 16": "levels: int = 4"}


def codebooks(columns: str) -> dict[str, str]:
    """The example plugin with eight codebooks, whose ids are `columns`."""
    return {
        "(side // 4, side // 4)": "(side // 4, side // 4, 8)",
        "vocab_size=config.levels": "num_codebooks=8, vocab_size=config.levels",
        f"return {ENCODE}": f"ids = {ENCODE}\n        return __import__('torch').stack({columns}, dim=-1)",
        "tokenizer[tokens]": "tokenizer[tokens[..., 0]]",
    }


def two_metrics(mae: float) -> dict[str, str]:
    """The example plugin with bounds for the error and for a second metric, the share of pixels within 0.1."""
    return {
        METRICS: f"""metrics=(Metric(name="mae", higher_is_better=False, meaning="error", bound={mae}),
            Metric(name="near", higher_is_better=True, meaning="share within 0.1", bound=0.99))""",
        MARKS: f"{MARKS[:-1]}, 'near': float({SCORE})}}",
    }


def ratio(bound: str) -> dict[str, str]:
    """The example plugin judged by a ratio in dB: no tokenizer reaches the middle between constant and perfect."""
    return {
        METRICS: f'metrics=(Metric(name="psnr", unit="dB"{bound}, higher_is_better=True, meaning="signal to noise"),)',
        MARKS: """errors = [np.mean((p - t) ** 2) for p, t in zip(predicted, target, strict=True)]
        return {"psnr": float(np.mean(np.minimum(-10 * np.log10(np.maximum(errors, 1e-30)), 100)))}""",
    }


NAN = f"""if all(np.array_equal(p, predicted[0]) for p in predicted):
            return {{'mae': float('nan')}}
        {MARKS}"""
ONE_CODE = {
    "levels: int = 16": "levels: int = 64", ENCODE: "(means * 5).round().long() * 12",
    'meaning="mean absolute error"': 'meaning="mean absolute error", bound=0.02',
}  # fmt: skip
Expected = dict[str, tuple[str, ...]]
"""By gate: its result, and parts of its figure."""
PLUGINS: dict[str, tuple[dict[str, str], Expected]] = {
    "dull": ({ENCODE: "means.long() * 0"}, {
        "floor": ("FAIL", "mae 0.", "the best constant 0.2"), "bound": ("FAIL", "-", "of the way", "expected 50%"),
        "varied": ("FAIL", "1 of 24 samples differ; 0.00 bits per token of 4.00"),
    }),
    "collapsed": (ONE_CODE, {
        "codebook": ("FAIL", "9.4% of 64 codes used", "99."), "bound": ("FAIL", "mae 0.0", "bound 0.02"),
    }),
    "partly_collapsed": (codebooks("[ids] * 2 + [0 * ids] * 6"), {
        "codebook": ("FAIL", "29.7% of 16 codes used, 100.0% where tokens are spread evenly; codebook 3 of 8: 6.2%"),
        "varied": ("FAIL", "24 of 24 samples differ", " bits per token of 4.00; codebook 3 of 8: 0.00 bits"),
    }),
    "bounded": (two_metrics(0.1), {"bound": ("ok", "mae 0.01", "near 1, bound 0.99")}),
    "strict": (two_metrics(0.001), {"bound": ("FAIL", "mae 0.01", "bound 0.001")}),
    "coarse": (two_metrics(0.1) | COARSE, {"bound": ("FAIL", "near 0.", "bound 0.99")}),
    "ratio": (ratio(""), {"bound": ("-", "psnr in dB", "declare a bound")}),
    "coarse_ratio": (ratio(", bound=25.0") | COARSE, {"bound": ("FAIL", "bound 25 dB")}),
    "nan": ({MARKS: NAN}, {
        "floor": ("-", "the best constant nan, which is no score"),
        "bound": ("-", "no way from the best constant, nan"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLUGINS)
def test_gates_judge_a_tokenizer(kind: str, install_example: Install, tmp_path: Path) -> None:
    changes, expected = PLUGINS[kind]
    install_example("field", changes)
    zoo = only(zoo={"checkpoints": str(tmp_path / "tokenizers")})
    gates = findings(zoo, write_data(zoo, tmp_path / "data", [blocks(i) for i in range(COUNT)]))
    for gate, (result, *parts) in expected.items():
        finding = gates[gate]
        assert result == ("-" if finding.skipped else "ok" if finding.passed else "FAIL"), finding
        assert all(part in finding.message for part in parts), finding.message
        assert bool(finding.advice) == (result == "FAIL") and "\n" not in finding.message + finding.advice


def test_every_main_metric_in_db_has_a_bound() -> None:
    main = {handle.name: handle.spec.metrics[0] for handle in Zoo.installed().handles()}
    ratios = {name: metric.bound for name, metric in main.items() if metric.unit == "dB" and metric.higher_is_better}
    assert {"rgb", "multispectral", "video"} <= set(ratios) and None not in ratios.values(), ratios


def test_briefly_trained_tokenizer_must_get_half_way_to_the_bound(tmp_path: Path) -> None:
    """Two of four steps count as brief."""
    settings = {"image_size": 16, "tokenizer": {"steps": 4, "width": 16}}
    zoo = Zoo.from_tables({"zoo": {"checkpoints": str(tmp_path)}, "modalities": {"depth": settings}})
    values = [np.kron(1 + 9 * np.random.default_rng(i).random((1, 2, 2)), np.ones((8, 8))) for i in range(8)]
    data = write_data(zoo, tmp_path / "data", [value.astype(np.float32) for value in values], "depth")
    bound = findings(zoo, data, "depth", steps=2)["bound"]
    assert not bound.passed and re.search(r"% of the way from the best constant to the bound 0\.08", bound.message)
    assert_gate_fails(zoo, data, "bound", "abs_rel 0.", "bound 0.08; delta1 0.", "bound 0.93", name="depth", steps=4)


def test_shifted_pictures_fail_the_crops_gate(install_example: Install, zoo: Zoo, tmp_path: Path) -> None:
    install_example("moved")
    zoo = only(zoo={"checkpoints": str(tmp_path / "tokenizers"), "image_size": 32})
    values = [np.random.default_rng(i).random((1, 8, 8)).repeat(4, 1).repeat(4, 2).astype(np.float32) for i in range(9)]
    data = write_data(zoo, tmp_path / "data", values)
    write_data(zoo, data, [0.9 * value for value in values], "moved")
    assert "edges lie on those of moved" in findings(zoo, data)["crops"].message
    shifted = [np.roll(value, (3, -2), axis=(1, 2)) for value in values]
    write_data(zoo, tmp_path / "other", values)
    write_data(zoo, tmp_path / "other", shifted, "moved")
    assert_gate_fails(zoo, tmp_path / "other", "crops", "edges of moved lie 3 pixels lower and 2 further left")


def test_text_is_examined_without_a_codebook(tmp_path: Path) -> None:
    tables = {"zoo": {"checkpoints": str(tmp_path / "tokenizers")}, "vocabularies": {"text": {"size": 2048}}}
    zoo = Zoo.from_tables(tables)
    words = [f"a {a} {b} near the {c}" for a in ("red", "blue") for b in ("dog", "tree") for c in ("house", "road")]
    data = write_data(zoo, tmp_path / "data", words, "caption")
    gates = findings(zoo, data, "caption")
    assert all(finding.passed for finding in gates.values()), gates
    assert {name for name, finding in gates.items() if finding.skipped} == {"codebook", "crops"}
    assert gates["values"].message == "8 sound" and gates["bound"].message == "exact 1, bound 0.95"


def test_values_may_use_a_small_part_of_a_range_around_0(install_example: Install, tmp_path: Path) -> None:
    """Optical flow is an example: it may be 1000 pixels per frame but is mostly a few pixels."""
    install_example("field", {"low=0, high=1": "low=-1000, high=1000"})
    zoo = only(zoo={"checkpoints": str(tmp_path / "tokenizers")})
    data = write_data(zoo, tmp_path / "pixels", [blocks(i, -7, 7) for i in range(3)])
    assert findings(zoo, data)["values"].passed
    data = write_data(zoo, tmp_path / "fractions", [blocks(i, -0.1, 0.1) for i in range(3)])
    assert_gate_fails(zoo, data, "values", "less than 0.1% of the range")


def test_a_single_token_does_not_show_variation(tmp_path: Path) -> None:
    zoo = Zoo.from_tables({"zoo": {"checkpoints": str(tmp_path / "tokenizers")}})
    for values, skipped in ((["library"], True), (["library", "playroom"], False)):
        data = write_data(zoo, tmp_path / str(len(values)), values, "scene_class")
        gates = findings(zoo, data, "scene_class")
        assert gates["varied"].passed and gates["varied"].skipped == skipped


def test_the_requested_device_is_used(
    zoo: Zoo, tmp_path: Path, run_zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a temporary tokenizer."""
    data = write_data(zoo, tmp_path / "data", [blocks(i) for i in range(COUNT)])
    zoo["field"].device = "meta"
    assert "device 'meta'" in findings(zoo, data, samples=4, steps=1)["trained"].message
    registry = write_registry(tmp_path / "registry.toml", f'[zoo]\ncheckpoints = "{tmp_path}/tokenizers"\n')
    devices = []
    monkeypatch.setattr(
        "tokenizers_zoo.testing.doctor.examine", lambda zoo, name, *_, **__: devices.append(zoo[name].device) or ()
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = ["--registry", str(registry), "doctor", "field", "--data", str(data), "--device", "cuda"]
    assert run_zoo(*words)[0] == 0 and devices == ["cuda"]


@pytest.mark.parametrize(("down", "right"), [(0, 0), (5, 0), (0, -7), (-3, 6)])
def test_known_shift_is_found_between_different_modalities(down: int, right: int) -> None:
    ids = [np.random.default_rng(i).integers(0, 3, (8, 8)).repeat(6, 0).repeat(6, 1) for i in range(4)]
    levels = [np.roll(1.0 - 0.2 * value[None], (down, right), axis=(1, 2)) for value in ids]
    shift = shift_between(ids, levels)
    assert shift is not None and (shift.down, shift.right) == (down, right)
    assert shift.aligned == (max(abs(down), abs(right)) <= 1)
    single = shift_between(ids[:1], levels[:1])  # a single sample has no others to share its edges with
    assert single is not None and (single.down, single.right) == (down, right)


def test_other_densities_of_edges_are_no_shift() -> None:
    generator = np.random.default_rng(0)
    bands = [np.zeros((24, 1, 40, 40)) for _ in range(2)]
    for band, top in zip(bands, (10, 18), strict=True):  # dots in a band of the picture, different ones in each sample
        band[:, 0, top : top + 8] = generator.random((24, 8, 40)) < 0.2
    assert shift_between(*map(list, bands)) is None


def test_edges_of_smooth_waves_are_no_shift() -> None:
    """Lines where a smooth picture changes most: their correlation with its gradient has a broad peak."""
    generator = np.random.default_rng(0)
    down, right = np.meshgrid(*[np.linspace(0, 1, 64)] * 2, indexing="ij")
    pictures = []
    for _ in range(4):
        waves = [np.sin(generator.uniform(2, 9) * down + generator.uniform(2, 9) * right + generator.uniform(0, 6))
                 for _ in range(3)]  # fmt: skip
        pictures.append(0.5 + 0.4 * np.stack(waves))
    lines = [canny(picture.mean(axis=0), sigma=1.0)[None].astype(np.float32) for picture in pictures]
    shift = shift_between(pictures, lines)
    assert shift is not None and shift.aligned
    moved = shift_between(pictures, [np.roll(line, (9, 0), axis=(1, 2)) for line in lines])
    assert moved is not None and not moved.aligned


def test_noise_gives_no_shift() -> None:
    first, second = (np.random.default_rng(seed).random((16, 1, 32, 32)) for seed in (0, 1))
    assert shift_between(list(first), list(second)) is None
    assert shift_between([np.zeros((1, 8, 8))], [np.zeros((1, 8, 8))]) is None


def test_the_command_fits_80_columns_and_reports_failures(
    install_example: Install, tmp_path: Path, run_zoo: Callable[..., Any]
) -> None:
    install_example("field")
    install_example("dull", {ENCODE: "means.long() * 0", 'summary="brightness"': 'summary="brightness " * 12'})
    registry = write_registry(tmp_path / "registry.toml", f'[zoo]\ncheckpoints = "{tmp_path}/tokenizers"\n')
    zoo = Zoo.from_toml(registry)
    data = write_data(zoo, tmp_path / "data", [blocks(i) for i in range(COUNT)])
    start = ["--registry", str(registry), "doctor"]
    code, printed, progress = run_zoo(*start, "field", "--data", str(data))
    assert code == 0 and printed.endswith("sound\n") and "read test/field" in progress
    assert re.findall(r"^  (?:ok|-) +(\w+) ", printed, re.M) == list(GATES)
    write_data(zoo, data, [blocks(i) for i in range(COUNT)], "dull")
    code, printed, _ = run_zoo(*start, "--data", str(data))
    lines = printed.splitlines()
    assert code == 1 and max(map(len, lines)) <= 80 and len(lines) < 40
    assert [(line.split()[0], "FAIL" in line) for line in lines[1:3]] == [("dull", True), ("field", False)]
    assert len(re.findall(r"^  FAIL", printed, re.M)) == int(lines[-1].split()[0])
    code, printed, _ = run_zoo(*start, "dull", "--data", str(data), "--json", "--steps", "5")
    report = json.loads(printed)
    gates = {finding["name"]: finding for finding in report["modalities"]["dull"]}
    assert code == 1 and not report["sound"] and list(gates) == list(GATES)
    assert not gates["varied"]["passed"] and gates["varied"]["advice"]
    shutil.rmtree(data / "test" / "dull")
    install_example("lame", {"plugin = Example()": "plugin = 3 /"})
    shutil.copytree(data / "test" / "field", data / "test" / "lame")
    code, printed, _ = run_zoo(*start, "--data", str(data))
    assert code == 1 and re.search(r"^  FAIL loads +lame: ", printed, re.M)
