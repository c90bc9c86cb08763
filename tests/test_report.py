"""The report: sheets cut into cells, the overview of one sample, colour scales, and the whole page."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.run_folder import RunRecord, write_run
from tokenizers_zoo.records.io import as_json, read_lines, read_table, write_table
from tokenizers_zoo.report import pages
from tokenizers_zoo.report.pages import read_inside
from tokenizers_zoo.report.pictures import Pictures, cells_of, legend_of
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary, VocabularyConfig
from tokenizers_zoo.train.log import StepLog
from zoo_backbone.measure import page as run_page
from zoo_backbone.measure.evaluation import (
    CrossEntropy,
    Entropy,
    EvaluatedModality,
    EvaluationIdentity,
    EvaluationRecord,
    Figure,
    GalleryRecord,
    PairScore,
)
from zoo_backbone.measure.gallery import CELL, write_gallery, write_sheet
from zoo_backbone.measure.growth import Growth, LossChange, PairChange
from zoo_backbone.measure.page import registry_of, write_report
from zoo_backbone.measure.samples import overview, read_galleries
from zoo_backbone.model.run import Start

Run = tuple[Path, EvaluationRecord]
NAMES = ("rgb_patches", "depth", "caption")
RECORD = {"kind": "backbone", "identity": {}, "finished": {}}
"""A run.json without its places."""


def decoded_picture(uri: str) -> Image.Image:
    """Return the picture in a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def plain_picture(colour: str, width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def gallery(run: Path, name: str, target: str, rows: list[list[Image.Image | str]]) -> GalleryRecord:
    """Write a gallery as `zoo backbone eval` does, with two draws."""
    columns = name, f"{target} 1", f"{target} 2", f"true {target}"
    picture = f"gallery/{name}-to-{target}.png"
    entry = GalleryRecord(inputs=(name,), target=target, picture=picture, columns=columns, rows=())
    return write_gallery(run / "evaluation", entry, [f"sample {i}" for i in range(len(rows))], rows)


def pair(name: str, target: str, skill: float | None) -> PairScore:
    return PairScore(
        inputs=(name,), target=target, samples=8, score={"main": 0.25}, constant_baseline={"main": 0.5},
        reconstruction={"main": None}, figures={"skill": Figure(value=skill)},
    )  # fmt: skip


def write_evaluation(run: Path, evaluation: EvaluationRecord) -> None:
    write_table(run / "evaluation" / "evaluation.json", evaluation)


def bare_run(folder: Path, zoo: Zoo, names: tuple[str, ...], **config: Any) -> Path:
    """Write a run folder of these modalities without figures; its model has 1.2 million parameters."""
    folder.mkdir()
    modality_specs = [zoo[name].spec for name in names]
    specs = [as_json(spec) for spec in modality_specs]
    write_table(folder / "config.json", {
        "class": "FourM", "architecture": "FourM", "model": {}, "specs": specs, "fingerprints": {}, **config
    })  # fmt: skip
    write_table(folder / "run.json", {**RECORD, "places": {"tokens": "tokens", "data": str(folder / "gone")}})
    extra_tensors = {"ml4m.b": np.zeros((1000, 1000), np.uint8)}  # for exporting an imported model; no parameter
    save_file({"a": np.zeros((1000, 1200), np.float32), **extra_tensors}, folder / "model.safetensors")
    return folder


def write_log(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Write the metrics.jsonl of a finished training."""
    with StepLog(folder, "a training", steps=1, done=0, samples_per_step=1) as log:
        for line in lines:
            log.write(
                line["step"],
                {name: math.nan if value is None else value for name, value in line.items() if name != "step"},
            )


@pytest.fixture
def run(tmp_path: Path, zoo: Zoo) -> Run:
    """A hand-made run folder with an evaluation of two pairs and a text that needs escaping."""
    train = {"steps": 30, "batch_size": 4}
    folder = bare_run(tmp_path / "run", zoo, NAMES, fingerprints={"depth": "f" * 64}, train=train)
    lines = [{"step": step, "train/loss": 7.0 - step / 10} for step in range(1, 31)]
    lines += [{"step": 30, "held_out/loss": 5.5, "held_out/depth": 5.0, "held_out/caption": None}]
    write_log(folder, lines)
    red, green, blue = plain_picture("red"), plain_picture("green"), plain_picture("blue", 32, 16)
    metric = Metric(name="main", unit="m", higher_is_better=False, meaning="an error")
    evaluation = EvaluationRecord(
        identity=EvaluationIdentity(weights="", settings={}, tokenizers={}, samples="", values={}, decoders={}),
        pairs=(pair("rgb_patches", "depth", 0.618), pair("rgb_patches", "caption", -0.25)),
        galleries=(
            gallery(folder, "rgb_patches", "depth", [[red, green, green, blue], [green, red, red, blue]]),
            gallery(folder, "rgb_patches", "caption", [[red, "<script>", "two", "truth"], [green, "a", "b", "c"]]),
        ),
        modalities=dict.fromkeys((*NAMES, "rgb"), EvaluatedModality(test_samples=8, metrics=(metric,))),
        skipped={"normal": "no test tokens"},
        unreadable={},
        cross_entropy=CrossEntropy(
            samples=4, tokens_of=("depth",), modalities={"depth": Entropy(nats=3.21, uniform=5.48, targets=9)}
        ),
        seconds=1.0,
    )
    write_evaluation(folder, evaluation)
    return folder, evaluation


def test_a_sheet_is_cut_into_the_pictures_that_were_put_in(tmp_path: Path) -> None:
    first, strip, large = plain_picture("red", 2, 2), plain_picture("blue", 64, 16), plain_picture("green", 300, 150)
    first.putpixel((1, 1), (1, 2, 3))
    write_sheet(tmp_path / "x.png", ["a", "b", "c"], [[first, "some words", strip], [large, "", first]])
    cells = cells_of(tmp_path / "x.png")
    assert cells is not None and [[cell is None for cell in row] for row in cells] == [[False, True, False]] * 2
    back = decoded_picture(cells[0][0] or "")
    assert back.size == (CELL, CELL)
    assert back.resize((2, 2), Image.Resampling.NEAREST).tobytes() == first.tobytes()
    assert decoded_picture(cells[0][2] or "").size == (CELL, CELL // 4)
    write_sheet(tmp_path / "y.png", ["a", "b", "c"], [[first, "other words", strip], [large, "", first]])
    first_pixels, second_pixels = (np.asarray(Image.open(tmp_path / name)) for name in ("x.png", "y.png"))
    assert (first_pixels != second_pixels).any(), "texts are drawn"
    assert decoded_picture(cells[1][0] or "").size == (CELL, CELL // 2)
    assert set(decoded_picture(cells[1][0] or "").convert("RGB").getcolors() or []) == {(CELL * CELL // 2, (0, 128, 0))}


def test_gallery_columns_are_inputs_draws_and_truth(run: Run, tmp_path: Path) -> None:
    pictures = Pictures(folder=tmp_path / "pictures")
    galleries, _ = read_galleries(run[0] / "evaluation", run[1].galleries, pictures)
    roles = [[(cell.role, cell.label) for cell in row] for row in galleries[0].rows]
    assert roles == [[("input", "input"), ("generated", "draw 1"), ("generated", "draw 2"), ("truth", "truth")]] * 2
    assert decoded_picture(galleries[0].rows[0][3].image or "").size == (CELL, CELL // 2)
    assert [cell.text for cell in galleries[1].rows[0]] == [None, "<script>", "two", "truth"]
    assert (galleries[0].texts, galleries[1].texts, galleries[1].wide) == (False, True, True)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "generated-rgb_patches-to-caption.png", "generated-rgb_patches-to-depth.png",
    ]  # fmt: skip


def test_the_overview_takes_one_sample_of_the_set_with_most_galleries(tmp_path: Path) -> None:
    red, green = plain_picture("red"), plain_picture("green")
    rows: list[list[Image.Image | str]] = [[red, green, green, green]] * 2
    entries = [
        gallery(tmp_path, "z", "a", rows), gallery(tmp_path, "b", "a", rows),
        gallery(tmp_path, "b", "words", [[red, "1", "2", "3"]] * 2), gallery(tmp_path, "b", "c", rows),
    ]  # fmt: skip
    galleries, _ = read_galleries(tmp_path / "evaluation", entries, Pictures(folder=tmp_path / "pictures"))
    summary = overview(galleries, {("b", "a"): 0.1, ("b", "words"): 0.9, ("b", "c"): 0.2, ("z", "a"): 1.0})
    assert summary is not None and summary["key"] == "sample 0"
    assert [cell.modality for cell in summary["inputs"]] == ["b"]
    # Pictures come before texts; both are sorted by skill.
    assert [(card["name"], card["skill"]) for card in summary["cards"]] == [("c", 0.2), ("a", 0.1), ("words", 0.9)]
    assert [[cell.label for cell in card["cells"]] for card in summary["cards"]] == [["generated", "truth"]] * 3


def test_colours_of_classes_are_those_of_the_pictures(zoo: Zoo) -> None:
    handle = zoo["semseg"]
    swatches = legend_of(handle)
    assert [entry["label"] for entry in swatches] == list(handle.spec.value.classes)
    picture = handle.render(np.full((64, 64), 5)).convert("RGB")  # type: ignore[union-attr]
    assert swatches[5]["colour"] == "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0)))  # type: ignore[misc]


def test_colours_of_a_quantity_have_its_unit_and_open_ends(zoo: Zoo) -> None:
    labels = [entry["label"] for entry in legend_of(zoo["depth"])]
    assert labels == ["≤ 0.5", "1", "2", "5", "10", "≥ 20 metres"]
    assert len({entry["colour"] for entry in legend_of(zoo["depth"])}) == len(labels)


def test_the_page_shows_scores_galleries_and_tokenizers(run: Run, zoo: Zoo) -> None:
    folder, _ = run
    page = write_report(zoo, folder)
    text = page.read_text(encoding="utf-8")
    assert page == folder / "report" / "index.html"
    for part in (
        "One model of 3 modalities that generates any of 2 from any others",
        "<b>depth</b>", "0.62", "skill −0.25", "<b>1.2</b>", "million parameters", ">120<", ">−0.25</td>",
        "&lt;script&gt;", "normal was not evaluated: no test tokens", "0.25", "3.21", "metres", "ffffffffffffffff",
        "main (lower is better)", zoo["depth"].distribution,
    ):  # fmt: skip
        assert part in text, part
    assert "<script>two" not in text and text.count("<script>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "url(" not in text
    assert set(re.findall(r"<th>([^<]*)</th>", text)) >= {"depth", "caption", "rgb_patches", "input ↓ target →"}
    names = {path.name for path in (folder / "report" / "pictures").iterdir()}
    assert names == {
        "training-loss.png", "loss-per-modality.png", "generated-rgb_patches-to-depth.png",
        "generated-rgb_patches-to-caption.png",
    }  # fmt: skip
    assert text.count('class="cell input') == 1 + 4  # the overview, and a row per sample of both galleries


def test_the_input_in_another_form_is_not_the_best_result(run: Run, zoo: Zoo) -> None:
    folder, evaluation = run
    picture: list[Image.Image | str] = [plain_picture("red")] * 4
    copies = gallery(folder, "rgb_patches", "rgb", [picture] * 2)
    pairs, galleries = (pair("rgb_patches", "rgb", 0.9), *evaluation.pairs), (copies, *evaluation.galleries)
    write_evaluation(folder, replace(evaluation, pairs=pairs, galleries=galleries))
    text = write_report(zoo, folder).read_text(encoding="utf-8")
    assert "<b>depth</b> from <b>rgb_patches</b>" in text
    summary = text.partition('<div class="at-a-glance">')[2].partition("</div>\n\n")[0]
    assert re.findall(r"<h3>(\w+) <span", summary)[:3] == ["depth", "rgb", "caption"]


@pytest.mark.parametrize("averaged", [False, True])
def test_curves_show_held_out_losses_of_the_final_weights(
    run: Run, zoo: Zoo, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    folder, _ = run
    lines = [{"step": step, "held_out_average/loss": 5.0, "held_out_average/depth": 4.5} for step in (20, 30)]
    if averaged:
        write_log(folder, [*read_lines(folder / "metrics.jsonl"), *lines])
    chart_curves, chart = list[Any](), pages.curve_chart
    monkeypatch.setattr(pages, "curve_chart", lambda curves, *rest: chart_curves.append(curves) or chart(curves, *rest))
    write_report(zoo, folder)
    losses, by_modality = chart_curves
    average = {"held-out, averaged weights": [(20, 5.0), (30, 5.0)]} if averaged else {}
    assert {"held-out": [(30, 5.5)], **average} == {name: line for name, line in losses.items() if name != "training"}
    assert by_modality == {"depth": [(20, 4.5), (30, 4.5)] if averaged else [(30, 5.0)]}


def test_the_page_says_that_a_run_is_not_evaluated(run: Run, zoo: Zoo, tmp_path: Path) -> None:
    folder, _ = run
    (folder / "evaluation" / "evaluation.json").unlink()
    (folder / "metrics.jsonl").unlink()
    page = write_report(zoo, folder, tmp_path / "elsewhere.html")
    text = page.read_text(encoding="utf-8")
    assert "The tokenizers" in text and "Skill scores" not in text and "How training went" not in text
    assert "shown here at work" not in text and f"not evaluated yet: <code>zoo backbone eval {folder}</code>" in text


def test_the_page_shows_losses_before_and_after_growing(run: Run, zoo: Zoo) -> None:
    folder, _ = run
    start = {"folder": "/runs/first", "weights_sha256": "c" * 64, "knows": ["depth"], "added": ["caption"]}
    config = read_table(folder / "config.json")
    write_table(folder / "config.json", {**config, "start": start})
    text = write_report(zoo, folder).read_text(encoding="utf-8")
    assert re.search(r"goes on from <code>/runs/first</code>, with caption\s+added\.", text)
    growth = Growth(
        start=Start(folder="/runs/first", added=("caption",)),
        losses={"depth": LossChange(before=4.5, after=4.25, targets=9)},
        new={"caption": LossChange(before=6.5, after=2.0, targets=9)},
        pairs=(PairChange(metric="skill", inputs=("caption", "rgb"), target="depth", before=None, after=0.625),),
    )
    write_table(folder / "growth.json", growth)
    text = write_report(zoo, folder).read_text(encoding="utf-8")
    rows = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in re.findall("<tr><td>(?:loss|skill) .*</tr>", text)]
    assert rows == [
        ["loss of depth, nats", "4.500", "4.250", "−0.250"],
        ["loss of caption (new), nats; before: uniform", "6.500", "2.000", "−4.500"],
        ["skill from caption + rgb to depth", "–", "0.625", "–"],
    ]  # fmt: skip


def test_figures_of_another_model_are_left_out(run: Run, zoo: Zoo) -> None:
    folder, evaluation = run
    config = read_table(folder / "config.json")
    write_table(folder / "config.json", {**config, "weights_sha256": "b" * 64})
    for weights, same_model in (("b", True), ("a", False)):
        identity = replace(evaluation.identity, weights=64 * weights)
        write_evaluation(folder, replace(evaluation, identity=identity))
        text = write_report(zoo, folder).read_text(encoding="utf-8")
        assert [part in text for part in ("skill score of 0.62", "truth", "3.21")] == [same_model, True, same_model]
        assert ("other weights" in text) is not same_model


@pytest.mark.parametrize("picture", ["gone.png", "../../secret.png", "{}/secret.png"])
def test_a_gallery_without_a_sheet_in_its_folder_is_left_out(run: Run, zoo: Zoo, tmp_path: Path, picture: str) -> None:
    folder, evaluation = run
    plain_picture("red", 40, 20).save(tmp_path / "secret.png")
    first, second = evaluation.galleries
    first = replace(first, picture=picture.format(tmp_path))
    write_evaluation(folder, replace(evaluation, galleries=(first, second)))
    text = write_report(zoo, folder).read_text(encoding="utf-8")
    assert f"{Path(picture).name} is missing" in text
    assert "rgb_patches → caption" in text and "rgb_patches → depth" not in text and ">0.62</b>" in text
    assert base64.b64encode((tmp_path / "secret.png").read_bytes()).decode() not in text
    assert not list((folder / "report").rglob("*secret*"))


@pytest.mark.parametrize("made_with", ["none", "its own", "another"])
def test_pages_embed_no_file_named_only_in_a_record(run: Run, zoo: Zoo, tmp_path: Path, made_with: str) -> None:
    folder, _ = run
    registry_path = tmp_path / "secret.toml"
    registry_path.write_text("# a secret\n")
    (tmp_path / "other.toml").write_text("")
    write_run(folder, RunRecord(**{**RECORD, "places": {"registry": str(registry_path)}}))
    registries = {"none": zoo, "its own": Zoo.at(registry_path), "another": Zoo.at(tmp_path / "other.toml")}
    text = write_report(registries[made_with], folder).read_text(encoding="utf-8")
    assert ("a secret" in text) == (made_with == "its own")


def test_links_out_of_a_folder_are_not_embedded(run: Run, zoo: Zoo, tmp_path: Path) -> None:
    folder, evaluation = run
    sheet = folder / "evaluation" / str(evaluation.galleries[0].picture)
    sheet.rename(tmp_path / "outside.png")
    sheet.symlink_to(tmp_path / "outside.png")
    assert f"{sheet.name} is missing" in write_report(zoo, folder).read_text(encoding="utf-8")
    (tmp_path / "inside.png").write_bytes(b"1")
    (folder / "link.png").symlink_to("/proc/self/environ")
    assert read_inside(folder, folder / "link.png") is read_inside(folder, folder / "none.png") is None
    assert read_inside(tmp_path, tmp_path / "inside.png") == b"1"


def test_pages_load_nothing_and_run_only_their_own_script(run: Run, zoo: Zoo) -> None:
    text = write_report(zoo, run[0]).read_text(encoding="utf-8")
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)[0]
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sources = {words[0]: words[1:] for part in policy.split("; ") if (words := part.split())}
    assert sources["script-src"] == [f"'sha256-{digest}'"] and sources["default-src"] == ["'none'"]
    assert sources["img-src"] == ["data:"] and not re.search("http|[*]", policy)
    folders = Path(pages.__file__).parents[1] / "templates", Path(run_page.__file__).parent / "templates"
    templates = [path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.j2")]
    for template in templates:
        assert ("<head>" in template) == ('content="{{ policy }}"' in template)
        assert re.sub("<script>{{ script }}</script>", "", template).count("<script") == 0
    assert sum("<head>" in template for template in templates) == 4


def test_a_damaged_sheet_is_named_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_sheet(path, ["a", "b"], [[plain_picture("red", 4, 4), plain_picture("blue", 8, 4)]])
    content = path.read_bytes()
    for end in range(0, len(content) * 3 // 4, 7):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=f"^{path}: damaged: [^\n]*$"):
            cells_of(path)


@pytest.mark.parametrize("cells", [
    "[" * 60_000, "[[[0, 0, 20000, 20000]]]", "[[[0, 0, 21, 5]]]", "[[[0, 0, 5, 21]]]", "[[[-1, 0, 5, 5]]]",
    "[[[0, -1, 5, 5]]]", "[[[0, 0, Infinity, 5]]]", "[[[0, 0]]]", "3",
], ids=len)  # fmt: skip
def test_a_sheet_with_odd_cells_is_named(tmp_path: Path, cells: str) -> None:
    text = PngInfo()
    text.add_text("cells", cells, zip=True)
    plain_picture("red", 20, 20).save(tmp_path / "sheet.png", pnginfo=text)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'sheet.png'}: damaged: "):
        cells_of(tmp_path / "sheet.png")


@pytest.mark.parametrize("change", [{"columns": ()}, {"rows": ()}])
def test_a_gallery_that_is_not_its_sheets_is_damage(run: Run, zoo: Zoo, change: dict[str, Any]) -> None:
    folder, evaluation = run
    write_report(zoo, folder)
    galleries = tuple(replace(entry, **change) for entry in evaluation.galleries)
    write_evaluation(folder, replace(evaluation, galleries=galleries))
    with pytest.raises(CheckpointError, match=f"{folder}: its files do not fit together"):
        write_report(zoo, folder)


@pytest.mark.parametrize("key_path", ["extra", "pairs[1].extra", "modalities.depth.metrics[0].extra"])
def test_an_unknown_key_in_a_record_is_named(run: Run, zoo: Zoo, key_path: str) -> None:
    folder, evaluation = run
    table: Any = as_json(evaluation)
    inner = table
    for key in re.findall(r"\w+", key_path)[:-1]:
        inner = inner[int(key) if key.isdecimal() else key]
    inner["extra"] = 1
    write_table(folder / "evaluation" / "evaluation.json", table)
    with pytest.raises(
        CheckpointError, match=rf"evaluation.json: damaged: {re.escape(key_path)}: is unknown; expected"
    ):
        write_report(zoo, folder)


def test_a_tokenizer_of_other_tokens_than_the_runs_is_left_out(run: Run, tmp_path: Path) -> None:
    folder, _ = run
    tables = {"zoo": {"checkpoints": str(tmp_path / "tokenizers")}}
    handle = Zoo.from_tables(tables)["caption"]
    checkpoint, section = handle.checkpoint, f'<h3>caption <span class="soft">{handle.spec.summary}</span>'

    def page(codec: str) -> str:
        config = read_table(folder / "config.json")
        write_table(folder / "config.json", {**config, "fingerprints": {"caption": codec}})
        return write_report(Zoo.from_tables(tables), folder).read_text(encoding="utf-8")

    vocabulary = TextVocabulary.train(VocabularyConfig(), ["a red ball"])
    codec = vocabulary.save(checkpoint)
    grown = vocabulary.grow(["[new]"])
    assert grown.save(checkpoint) != codec
    for fingerprint in (codec, grown.fingerprint, ""):
        assert "Problem: " not in (text := page(fingerprint)) and section in text
    new_codec = TextVocabulary.train(VocabularyConfig(), ["one box, two boxes"]).save(checkpoint)[:12]
    text = page(codec)
    assert re.findall("<p>Problem: (.*)</p>", text) == [
        f"caption: its tokenizer in {checkpoint} is another one ({new_codec}) than that of the run&#39;s tokens "
        f"({codec[:12]}); its figures are left out"
    ]
    assert section not in text and '<h3>depth <span class="soft">metric depth' in text


def test_a_run_names_its_registry(run: Run, tmp_path: Path) -> None:
    folder, _ = run
    assert registry_of(folder) is None
    (tmp_path / "registry.toml").write_text("")
    write_table(folder / "run.json", {**RECORD, "places": {"registry": str(tmp_path / "registry.toml")}})
    assert registry_of(folder) == tmp_path / "registry.toml"
    (tmp_path / "registry.toml").unlink()
    assert registry_of(folder) is None
    with pytest.raises(CheckpointError, match="no trained backbone here"):
        registry_of(tmp_path)
