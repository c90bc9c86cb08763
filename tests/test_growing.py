"""Growing: outputs of old modalities stay bit-identical, and training adds the new modalities."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_samples import (
    ADDED,
    SMALL,
    TRAINING,
    all_layouts,
    killed_after,
    outcome,
    packed_batch,
    run,
    sequence,
    spec,
    write_splits,
    write_store,
)
from backbone_worker import train_in_two_processes
from command_world import World, the_world
from golden_formats import GOLDEN
from test_backbone_saving import remapped
from test_ml4m_backbone import VARIANTS, imported, published

from tokenizers_zoo.contract.layouts import GridLayout, PatchesLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.files.checkpoint import load_config
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import read_table, write_table
from zoo_backbone.learn.checkpoint import freeze, initial_model, load_model
from zoo_backbone.learn.masking import Masker
from zoo_backbone.learn.train import Trainer, train
from zoo_backbone.measure.evaluation import Figure, read_evaluation
from zoo_backbone.measure.grow import (
    Trained,
    growing_config,
    growing_mixtures,
    grown_specs,
    replay_mixtures,
    write_report,
)
from zoo_backbone.measure.growth import PairChange, pair_changes
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import MaskingConfig, Mixture, TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.published import PublishedConfig, PublishedLayout
from zoo_backbone.model.run import Run

LONGER = 120
NEW = [
    ADDED, spec("global", VectorLayout(length=4), 9),
    spec("names", sequence(9), LONGER, "text"), spec("raw", PatchesLayout(shape=(2, 2), dim=5)),
]  # fmt: skip
"""One new modality of each kind; "names" extends a vocabulary that old modalities use."""


def grown() -> list[ModalitySpec]:
    """Return the old modalities with the longer vocabulary, and the new modalities."""
    old = [
        dataclasses.replace(item, vocab_size=LONGER) if item.vocabulary == "text" else item for item in all_layouts()
    ]
    return old + NEW


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run over all layouts."""
    root = tmp_path_factory.mktemp("old")
    return run(root / "run", write_splits(root / "tokens"), steps=4)


@pytest.fixture(scope="module")
def new_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store of two old modalities and all new ones."""
    root = tmp_path_factory.mktemp("new")
    specs = [grown()[0], grown()[3], *NEW]
    write_store(root, specs, 24, seed=5)
    write_store(root, specs, 8, "test", seed=6)
    return root


def assert_same(old: FourM, new: FourM) -> None:
    """Assert that both models give bit-identical outputs for the old modalities."""
    batch = packed_batch(list(old.layout.specs), size=3, seed=3, layout=old.layout)
    with torch.no_grad():
        before = old.eval().decode_targets(batch)
        after = new.eval().decode_targets(remapped(batch, old.layout, new.layout))
        assert torch.equal(before, after)
        for name, rows in old.layout.token_tables.items():
            assert torch.equal(old.logits(before, name), new.logits(after, name)[..., : rows.stop - rows.start])


def test_old_outputs_are_unchanged_before_the_first_step(old_run: Path) -> None:
    beginning = initial_model(grown(), SMALL, 7, old_run)
    assert_same(load_model(old_run), beginning.model)
    assert beginning.record is not None
    assert list(beginning.record.knows) == [item.name for item in all_layouts()]
    assert list(beginning.record.added) == [item.name for item in NEW]
    for table in ("modality_embedding", "mask_embedding"):  # new markers start as the mean of the old ones
        rows = getattr(beginning.model, table).weight
        mean = rows[: len(all_layouts())].mean(0)
        torch.testing.assert_close(rows[len(all_layouts()) :], mean.expand(len(NEW), -1))


def test_a_published_backbone_grows(tmp_path: Path) -> None:
    imported(published(VARIANTS["registers"]), tmp_path)
    trained = Trained.load(tmp_path / "backbone")
    assert trained.run is None and isinstance(trained.model, PublishedConfig) and trained.model.stored_positions
    added = spec("height", GridLayout(shape=(4, 4)), 21)
    specs = grown_specs(trained, {"height": added}, ["height"])
    write_store(tmp_path / "tokens", [trained.specs[0], added], 8)
    config = growing_config(trained, specs, tmp_path / "tokens", {"steps": 2, "batch_size": 4, "freeze": True}, 0.0)
    first = initial_model(specs, trained.model, 0, tmp_path / "backbone").model
    folder = train(tmp_path / "run", tmp_path / "tokens", specs, trained.model, config, start=tmp_path / "backbone")
    after = load_model(folder)
    for model in (first, after):
        assert_same(load_model(tmp_path / "backbone"), model)
    assert not torch.equal(after.output["height"], first.output["height"])
    write_report(folder, trained, tmp_path / "tokens")


def test_freeze_changes_only_new_rows(old_run: Path, new_tokens: Path, tmp_path: Path) -> None:
    trained = Trained.load(old_run)
    settings = {
        "steps": 5, "learning_rate": 0.03, "weight_decay": 0.5, "optimizer": "muon", "freeze": True,
        "grad_accum_steps": 2,
    }  # fmt: skip
    config = growing_config(trained, grown(), new_tokens, settings, 0.0)
    folder = train(tmp_path / "run", new_tokens, grown(), SMALL, config, start=old_run)
    assert_same(load_model(old_run), load_model(folder))
    first, last = initial_model(grown(), SMALL, config.seed, old_run), load_model(folder).state_dict()
    for name, parameter in first.model.named_parameters():
        moved = (last[name] != parameter).flatten(1 if parameter.dim() > 1 else 0)
        moved = moved.any(1) if parameter.dim() > 1 else moved
        assert not moved[first.pretrained_rows[name]].any(), name
        if name.startswith(("output.height", "projections.raw", "modality_emb", "mask_emb")):
            assert moved.any(), name
    assert last["output.text"][100:].ne(first.model.output["text"][100:]).any(), "new ids of an old vocabulary move"
    report = write_report(folder, trained, new_tokens)
    losses = {name: row for name, row in report.losses.items() if name not in ("words", "tags")}
    assert len(losses) == 3 and all(row.before == row.after for row in losses.values())


def test_frozen_weights_stay_fixed_when_sequences_become_longer(
    old_run: Path, new_tokens: Path, tmp_path: Path
) -> None:
    trained = Trained.load(old_run)
    specs = [dataclasses.replace(item, layout=sequence(31)) if item.name == "words" else item for item in grown()]
    config = growing_config(trained, specs, new_tokens, {"steps": 2, "freeze": True}, 0.0)
    folder = train(tmp_path / "run", new_tokens, specs, SMALL, config, start=old_run)
    assert_same(load_model(old_run), load_model(folder))
    assert Trained.load(folder).model.position_lengths == {"words": 20}
    assert initial_model(specs, SMALL, 0, folder).model.config.position_lengths == {"words": 20}, "trained on, it stays"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pretrained_weights_move_by_their_fraction_of_a_step(
    optimizer: str, old_run: Path, new_tokens: Path, tmp_path: Path
) -> None:
    trained = Trained.load(old_run)
    first = initial_model(grown(), SMALL, trained.train.seed, old_run)
    weights = {name: parameter.detach() for name, parameter in first.model.named_parameters()}
    steps = {}
    for share in (1.0, 0.25):
        settings = {
            "steps": 1, "learning_rate": 0.03, "weight_decay": 0.5, "optimizer": optimizer,
            "pretrained_lr_scale": share,
        }  # fmt: skip
        config = growing_config(trained, grown(), new_tokens, settings, 0.0)
        last = load_model(train(tmp_path / f"{share}", new_tokens, grown(), SMALL, config, start=old_run)).state_dict()
        steps[share] = {name: last[name] - weight for name, weight in weights.items()}
    for name, pretrained in first.pretrained_rows.items():
        full, slow = steps[1.0][name], steps[0.25][name]
        torch.testing.assert_close(slow[~pretrained], full[~pretrained], rtol=1e-5, atol=1e-8, msg=name)
        torch.testing.assert_close(slow[pretrained], 0.25 * full[pretrained], rtol=1e-3, atol=1e-6, msg=name)
    assert all(steps[1.0][name].any() for name in ("token_embedding.weight", "output.text", "output.height"))


def test_slower_and_frozen_weights_need_a_start_that_fits(old_run: Path, new_tokens: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TRAINING, steps=1, pretrained_lr_scale=0.1)
    with pytest.raises(ConfigError, match=r"pretrained_lr_scale 0\.1: .* backbone"):
        train(tmp_path / "run", new_tokens, NEW, SMALL, config)
    with pytest.raises(ConfigError, match="expected a backbone to start from"):
        freeze(initial_model(all_layouts(), SMALL, 0, None))
    with pytest.raises(ConfigError, match="starts without"):
        freeze(initial_model(all_layouts(), SMALL, 0, old_run))
    larger = {"picture": GridLayout(shape=(8, 8)), "pixels": PatchesLayout(shape=(8, 8), dim=12)}
    for name, layout in larger.items():
        specs = [dataclasses.replace(item, layout=layout) if item.name == name else item for item in grown()]
        with pytest.raises(ConfigError, match=f"freeze: expected {name}"):
            freeze(initial_model(specs, SMALL, 0, old_run))


def test_replay_takes_its_share_of_the_samples(old_run: Path, new_tokens: Path, tmp_path: Path) -> None:
    trained = Trained.load(old_run)
    config = growing_config(trained, grown(), new_tokens, {"steps": 6, "save_every": 2}, 0.25)
    assert [dataset.weight for dataset in config.datasets] == pytest.approx([1 / 3])
    assert config.datasets[0].modalities and "height" not in config.datasets[0].modalities
    batches: list[PackedBatch] = []
    step = Trainer.train_step

    def watched(self: Trainer, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        batches.append(batch)
        return step(self, batch, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        uninterrupted = train(tmp_path / "whole", new_tokens, grown(), SMALL, config, start=old_run)
    old_only = torch.cat([(batch.targets.modalities < 7).all(1) & (batch.inputs.modalities < 7).all(1)
                          for batch in batches])  # fmt: skip
    assert old_only.reshape(6, 8)[:, 6:].all(), "the last two of eight are replayed"
    assert not old_only.reshape(6, 8)[:, :6].all(1).any()
    with killed_after(3):
        train(tmp_path / "killed", new_tokens, grown(), SMALL, config, start=old_run)
    train(tmp_path / "killed", new_tokens, grown(), SMALL, config, start=old_run)
    assert outcome(uninterrupted) == outcome(tmp_path / "killed")
    saved_config = load_config(uninterrupted)
    assert saved_config["start"]["weights_sha256"] == load_config(old_run)["weights_sha256"]
    assert Run.load(uninterrupted).start == old_run.resolve()
    report = write_report(uninterrupted, trained, new_tokens)
    assert set(report.losses) == {item.name for item in all_layouts() if not item.continuous}
    assert any(row.before != row.after for row in report.losses.values())
    assert set(report.new) <= {"height", "global", "names"} and report.new["height"].targets > 0


def test_mixtures_for_new_modalities_follow_the_mixtures_of_the_run() -> None:
    specs = [all_layouts()[0], all_layouts()[4], NEW[0], NEW[3]]
    old, added = ["picture", "pixels"], ["height", "raw"]
    new_inputs = Mixture(inputs=("height", "raw"), targets=("picture",))
    new_targets = Mixture(weight=8.0, inputs=("picture", "pixels"), targets=("height",), fallback_targets=("picture",))
    assert growing_mixtures([Mixture(weight=7.0)], old, added, specs) == (Mixture(), new_targets, new_inputs)
    mixture = Mixture(
        weight=3.0, inputs=("pixels", "gone"), targets=("picture",), input_alpha=10.0, single_input_prob=0.5
    )
    apart = Mixture(weight=9.0, inputs=("gone",))
    parts = growing_mixtures([mixture, apart, Mixture(target_alpha=2.0)], old, added, specs)
    assert parts == (
        Mixture(),
        dataclasses.replace(
            mixture, weight=6.0, inputs=("pixels",), targets=("height",), fallback_targets=("picture",)
        ),
        dataclasses.replace(new_targets, weight=2.0, target_alpha=2.0), new_inputs,
    )  # fmt: skip
    frozen = growing_mixtures([mixture], old, added, specs, frozen=True)
    assert [part.fallback_targets for part in frozen] == [(), (), ()], "what does not move fills no budget"


def test_growing_respects_input_only_and_output_only_modalities() -> None:
    specs = [*all_layouts(), ADDED]
    model = PublishedConfig(inputs_only=("picture",), targets_only=("clip",))
    parts = growing_mixtures([Mixture()], ["picture", "clip", "code"], ["height"], specs, model)
    assert parts[1].inputs == ("picture", "code") and parts[2].targets == ("clip", "code")
    Masker(PublishedLayout(specs, model), MaskingConfig(mixtures=parts))


def test_added_modality_is_old_when_the_run_grows_again(old_run: Path, new_tokens: Path, tmp_path: Path) -> None:
    trained, specs = Trained.load(old_run), [*all_layouts(), ADDED]
    config = growing_config(trained, specs, new_tokens, {"steps": 1})
    mixtures = replay_mixtures(trained, specs, {})
    train(tmp_path / "once", new_tokens, specs, SMALL, config, start=old_run, replay_mixtures=mixtures)
    once = dataclasses.replace(Trained.load(tmp_path / "once"), run=Run(tokens=new_tokens))
    assert once.train.masking.mixtures == mixtures == trained.train.masking.mixtures != config.masking.mixtures
    regrown = growing_config(once, [*specs, NEW[1]], new_tokens, {}, 0.5)
    (asking,) = (part for part in regrown.masking.mixtures if part.targets == ("global",))
    assert "height" in asking.inputs and "height" in asking.fallback_targets
    assert regrown.datasets[0].mixtures == mixtures and "height" in regrown.datasets[0].modalities
    part = Mixture(inputs=("picture",), targets=("words",))
    masking = dataclasses.replace(trained.train.masking, mixtures=(part,))
    named = dataclasses.replace(trained, train=dataclasses.replace(trained.train, masking=masking))
    mixtures = replay_mixtures(named, [*specs, NEW[3]], {})
    assert mixtures == (dataclasses.replace(part, targets=("words", "height")),), "patches cannot be made"


def test_settings_take_precedence_over_the_run(old_run: Path, new_tokens: Path) -> None:
    trained = Trained.load(old_run)
    config = growing_config(trained, grown(), new_tokens, {"masking": {"target_budget": 9}, "batch_size": 3}, 0.0)
    assert (config.batch_size, config.masking.target_budget) == (3, 9)
    assert (config.masking.input_budget, config.learning_rate) == (24, 3e-3) and not config.datasets
    settings = {"masking": {"mixtures": [{"input_alpha": 3.0}]}}
    config = growing_config(trained, grown(), new_tokens, settings, 0.5)
    assert config.masking.mixtures == (Mixture(input_alpha=3.0),)
    assert config.datasets[0].mixtures == (Mixture(),)
    rates = [
        growing_config(trained, grown(), new_tokens, table, 0.0).pretrained_lr_scale
        for table in ({}, {"pretrained_lr_scale": 0.5}, {"freeze": True})
    ]
    assert rates == [0.3, 0.5, 1.0]
    old = {"masking": {"mixtures": [{"inputs": ["picture"], "targets": ["code"]}]}}
    with pytest.raises(ConfigError, match=r"masking\] mixtures: .* height"):
        growing_config(trained, grown(), new_tokens, old, 0.5)
    for table, replay, message in (
        ({}, 1.0, "from 0 to below 1, got 1"), ({"pretrained_lr_scale": 1.5}, 0.0, "lr_scale: expected float in"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            growing_config(trained, grown(), new_tokens, table, replay)


def test_more_is_replayed_if_new_samples_have_no_room_for_old_targets(old_run: Path, tmp_path: Path) -> None:
    trained, specs = Trained.load(old_run), [*all_layouts(), ADDED]
    write_store(tmp_path, specs, 4)

    def replayed(**table: Any) -> float:
        weight = sum(dataset.weight for dataset in growing_config(trained, specs, tmp_path, table).datasets)
        return weight / (1 + weight)

    room, length = {"target_budget": 4 * ADDED.layout.length}, ADDED.layout.length
    assert replayed(masking=room) == pytest.approx(0.25)
    assert replayed(masking={"target_budget": length + 1}) == 0.5, "what is new fills the budget"
    assert replayed(masking={**room, "input_budget": 60}) == 0.5, "inputs take most of it"
    assert replayed(masking=room, freeze=True) == 0


def test_only_old_modalities_of_an_extended_store_are_replayed(old_run: Path, new_tokens: Path) -> None:
    trained = dataclasses.replace(Trained.load(old_run), run=Run(tokens=new_tokens))
    assert [dataset.modalities for dataset in trained.stores(Path("another"))] == [("picture", "words")]
    gone = dataclasses.replace(trained, run=Run(tokens=new_tokens / "gone"))
    assert [dataset.tokens for dataset in gone.stores(new_tokens)] == [new_tokens]


def test_modality_without_tokens_is_not_replayed(old_run: Path, tmp_path: Path) -> None:
    specs, tokens = [*all_layouts(), ADDED], tmp_path / "tokens"
    write_store(tokens, [ADDED], 24)
    write_store(tokens, [ADDED], 8, "test", seed=1)
    trained = dataclasses.replace(Trained.load(old_run), run=Run(tokens=tmp_path / "gone"))
    with pytest.raises(ConfigError, match=rf"--replay 0.5: {tmp_path}/gone and {tokens}"):
        growing_config(trained, specs, tokens, {}, 0.5)
    config = growing_config(trained, specs, tokens, {"steps": 1}, 0.0)
    report = write_report(train(tmp_path / "run", tokens, specs, SMALL, config, start=old_run), trained, tokens)
    assert report.losses == {} and set(report.new) == {"height"}


def test_moved_run_is_not_grown_again(
    old_run: Path, new_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = tmp_path / "here", tmp_path / "there"
    shutil.copytree(old_run.parent, source)
    shutil.copytree(new_tokens, source / "new")

    def grow_in(root: Path) -> Path:
        Run(tokens=root / "tokens").save(root / "run")
        config = growing_config(Trained.load(root / "run"), grown(), root / "new", {"steps": 1}, 0.5)
        assert config.datasets[0].tokens == root / "tokens"
        return train(root / "grown", root / "new", grown(), SMALL, config, start=root / "run")

    grow_in(source)
    shutil.move(source, destination)
    record = read_table(destination / "grown/run.json")["identity"]
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("trained grow_in"))
    assert Run.load(grow_in(destination)).tokens == destination / "new"
    assert read_table(destination / "grown/run.json")["identity"] == record
    write_store(destination / "tokens", all_layouts(), 24, seed=9)
    with pytest.raises(FolderError, match="contents"):
        grow_in(destination)


def test_bad_growth_is_refused(old_run: Path, new_tokens: Path, tmp_path: Path) -> None:
    trained = Trained.load(old_run)
    specs_by_name = {item.name: item for item in grown()}
    with pytest.raises(ConfigError, match="each once; got height, height"):
        grown_specs(trained, specs_by_name, ["height", "height"])
    assert {
        item.vocab_size for item in grown_specs(trained, specs_by_name, ["names"]) if item.vocabulary == "text"
    } == {LONGER}
    unknown_specs = [*all_layouts(), spec("absent", GridLayout(shape=(2, 2)), 5)]
    with pytest.raises(DataError, match="no tokens of absent"):
        train(tmp_path / "run", new_tokens, unknown_specs, SMALL, TrainConfig(steps=1), start=old_run)
    write_store(tmp_path / "apart", NEW[:1], 4)
    config = growing_config(trained, [*all_layouts(), NEW[0]], tmp_path / "apart", {"steps": 1}, 0.5)
    with pytest.raises(ConfigError, match="height: no modality is shared"):
        train(tmp_path / "run", tmp_path / "apart", [*all_layouts(), NEW[0]], SMALL, config, start=old_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"freeze": True}, {"pretrained_lr_scale": 0.1}], ids=str)
def test_two_processes_grow_like_one(how: dict[str, Any], old_run: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "tokens", [*all_layouts(), ADDED], 24, seed=5)
    changes = {"steps": 5, "weight_decay": 0.5, "optimizer": "muon", **how}
    config = dataclasses.replace(TRAINING, **changes)
    train(tmp_path / "one", tmp_path / "tokens", [*all_layouts(), ADDED], SMALL, config, start=old_run)
    train_in_two_processes(tmp_path / "two", tmp_path / "tokens", changes, start=old_run)
    single_process, two_processes = (load_model(tmp_path / folder).state_dict() for folder in ("one", "two"))
    first = initial_model([*all_layouts(), ADDED], SMALL, TRAINING.seed, old_run)
    for name, pretrained in first.pretrained_rows.items():
        before = first.model.state_dict()[name]
        assert torch.equal(two_processes[name][pretrained], before[pretrained]) or "freeze" not in how, name
        torch.testing.assert_close(two_processes[name], single_process[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(two_processes["output.height"], first.model.output["height"])


@pytest.fixture(scope="module")
def world() -> World:
    return the_world()


def test_backbone_grow_reports_losses_and_refuses_mistakes(world: World) -> None:
    world.put_back()
    train_old = "backbone train --tokens tokens --out old --config backbone.toml --modalities depth,rgb_patches"
    assert world(train_old).code == 0
    grow = "backbone grow old --add caption --tokens tokens --out grown --set steps=4"
    done = world(grow)
    assert done.code == 0, done.complaint
    assert "depth" in done.printed and "caption (new)" in done.printed and "skill score" not in done.printed
    report = read_table(world.folder / "grown/growth.json")
    settings = load_config(world.folder / "grown")["train"]
    assert settings["pretrained_lr_scale"] == 0.3 and [part["weight"] for part in settings["datasets"]] == [1.0]
    grown_config, old_config = (load_config(world.folder / folder) for folder in ("grown", "old"))
    assert grown_config["asked"] == old_config["train"]["masking"]["mixtures"], "for when it grows again"
    assert report["start"]["added"] == ["caption"] and report["losses"]["depth"]["before"] > 0
    rerun = world(grow)
    assert rerun.code == 0 and rerun.printed == done.printed
    for folder in ("old", "grown"):
        assert world(f"backbone eval {folder} --config backbone.toml --input rgb_patches --target depth").code == 0
    assert "rgb_patches to depth" in world(grow).printed
    frozen = world("backbone grow old --add caption --tokens tokens --out frozen --set steps=1 --freeze")
    assert frozen.code == 0
    settings = read_table(world.folder / "frozen/run.json")["identity"]["train"]
    assert settings["freeze"] and not settings["datasets"], "there is nothing to replay for"
    (world.folder / "wide.toml").write_text("[model]\ndim = 64\n")
    for words, *parts in (
        ("backbone grow old --add caption --config wide.toml", "wide.toml:2 [model] dim", "32"),
        ("backbone grow old --add depth", "old: has depth already"),
        ("backbone grow old --add boxes", "no tokens of boxes", "caption", "zoo tokenize "),
        ("backbone grow tokenizers/depth --add caption", "expected a backbone"),
        ("backbone grow old --add caption --freeze --replay 0.1", "not both"),
    ):
        world(f"{words} --tokens tokens --out x").refused(*parts)
    world("backbone grow old --add caption --tokens tokens --out ./old").refused("old: is RUN itself")
    warm = world("backbone train --tokens tokens --out warm --config backbone.toml --from old --set steps=2")
    assert warm.code == 0, warm.complaint
    assert read_table(world.folder / "warm/config.json")["start"]["knows"] == ["depth", "rgb_patches"]
    config = read_table(world.folder / "old/config.json")
    config["fingerprints"]["depth"] = "0" * 64
    write_table(world.folder / "old/config.json", config)
    for words in ("backbone grow old --add caption", "backbone train --config backbone.toml --from old"):
        world(f"{words} --tokens tokens --out x").refused("depth: ", "tokenizer 000000000000")
    assert not (world.folder / "x").exists()
    world.put_back()


def test_skills_are_compared_for_pairs_in_both_evaluations(tmp_path: Path) -> None:
    """Only where the samples, values, settings and decoders are the same, and the evaluation is of these weights."""
    golden = read_evaluation(GOLDEN / "run/evaluation/evaluation.json")
    identity = dataclasses.replace(golden.identity, weights="1" * 64)
    score = golden.pairs[0]

    def write(name: str, skill: float, samples: int = 8, **changed: Any) -> Path:
        config = {"class": "FourM", "architecture": "FourM", "model": {}, "specs": [], "weights_sha256": "1" * 64}
        pair = dataclasses.replace(score, samples=samples, figures={"skill": Figure(value=skill)})
        evaluation = dataclasses.replace(golden, identity=dataclasses.replace(identity, **changed), pairs=(pair,))
        write_table(tmp_path / name / "config.json", config)
        write_table(tmp_path / name / "evaluation" / "evaluation.json", evaluation)
        return tmp_path / name

    before = write("before", 0.5)
    change = PairChange(metric="skill", inputs=score.inputs, target=score.target, before=0.5, after=0.25)
    assert pair_changes(before, write("after", 0.25)) == (change,)
    for folder in (
        write("fewer", 0.25, samples=7), write("likeliest", 0.25, settings={**identity.settings, "draws": 9}),
        write("values", 0.25, values=dict.fromkeys(identity.values, "2")), tmp_path / "none",
        write("decoders", 0.25, decoders=dict.fromkeys(identity.decoders, "2")),
        write("weights", 0.25, weights="2" * 64),
    ):  # fmt: skip
        assert pair_changes(before, folder) == ()
