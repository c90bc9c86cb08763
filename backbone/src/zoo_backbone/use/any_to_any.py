"""AnyToAny: a trained model with its tokenizers; values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.contract.spec import WHOLE
from tokenizers_zoo.contract.validation import token_batch, values_in
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.machine.device import resolve_device
from tokenizers_zoo.records.config import convert_setting
from zoo_backbone.generate.inpainting import partial_of
from zoo_backbone.generate.plans import TOP_P, Cropping, GenerationPlan, TargetPlan, resolved_plan
from zoo_backbone.generate.request import BATCH, Generated, GenerationRequest, Sample, blocks, taken
from zoo_backbone.generate.sampler import OnStep
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.measure.evaluate import evaluate
from zoo_backbone.measure.evaluation import PairScore
from zoo_backbone.model.config import EvaluationConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import Run
from zoo_backbone.use import bundle


class AnyToAny:
    """A trained any-to-any model with its tokenizers.

        model = AnyToAny.from_pretrained("runs/demo/backbone")
        out = model.generate(rgb="photo.jpg", targets=["depth", "caption"], num_samples=2, seed=0)
        out.depth[0].array, out.depth[0].image, out.caption[0].text

    Inputs are keyword arguments by modality, or a dictionary as the first argument. An input is a path, a PIL image, an
    array or tensor of the modality's value type, a text, a JSON value, or tokens: a generated `Sample`, or ids as
    `ModalityHandle.encode` returns them. A list that is no value of the modality is a batch, with one entry per sample;
    all inputs have equally many samples. An input such as `rgb` uses its input form, `rgb_patches`, if the model was
    trained on it.

    Raises UnknownNameError for a modality that the model does not have, InvalidValueError for a value that does not fit
    its modality, ConfigError for settings that do not fit.
    """

    def __init__(self, model: FourM, zoo: Zoo, run: Run | None = None) -> None:
        """`run` is the run or bundle that the model was loaded from."""
        self.model, self.zoo, self._run = model.eval(), zoo, run

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        zoo: Zoo | None = None,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        sha256: str | None = None,
    ) -> Self:
        """Load a trained model with its tokenizers.

        Args:
            source: The folder of a run or bundle, the name of an installed bundle, or a hub id, `owner/name` or
                `owner/name@REVISION`.
            zoo: The registry of the tokenizers; default: the registry of the training.
            device: A torch device, or "auto": the first of cuda, mps and cpu that this machine has.
            dtype: Type of the model's weights; tokenizers stay float32.
            revision: Branch, tag or commit of a hub id.
            sha256: The fingerprint that the model must have.

        Raises CheckpointError if there is no such model, or it is not the expected one.
        """
        run = Run.open(source, revision, sha256)
        model = load_model(run.folder, device=resolve_device(device)).to(dtype)
        return cls(model, run.zoo() if zoo is None else zoo, run)

    @classmethod
    def load(cls, run: Run, zoo: Zoo, *, device: str = "auto") -> Self:
        """Load the model of an opened run. Raises CheckpointError for damaged weights."""
        return cls(load_model(run.folder, device=resolve_device(device)), zoo, run)

    @property
    def run(self) -> Run:
        """The run or bundle that the model was loaded from. Raises ConfigError for a model made in Python."""
        if self._run is None:
            raise ConfigError("AnyToAny: its model is of no run folder; open a run with AnyToAny.from_pretrained")
        return self._run

    def verify(self) -> dict[str, float]:
        """Compute the golden sample of a bundle again; return the share of tokens that are equal to the stored ones.

        Raises CheckpointError if a share is too small. The weights should be float32, as where the bundle was written.
        """
        return bundle.verify(self.run.folder, self.model, self.zoo)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: str = "float32",
        samples: int = 0,
        overwrite: bool = False,
        with_plugins: bool = False,
    ) -> None:
        """Write a bundle: the model as it was loaded, its tokenizers and its registry. See `zoo backbone export`."""
        bundle.export_bundle(
            self.run, self.zoo, Path(folder), dtype, samples, overwrite, str(self.device), with_plugins
        )

    def push_to_hub(
        self, hub_id: str, *, private: bool = False, dtype: str = "float32", with_plugins: bool = False
    ) -> str:
        """Upload a bundle to the hub, with the login of huggingface_hub; return its address."""
        from huggingface_hub import HfApi

        with TemporaryDirectory() as temporary_folder:
            folder = Path(temporary_folder) / hub_id.rpartition("/")[2]
            self.save_pretrained(folder, dtype=dtype, with_plugins=with_plugins)
            api = HfApi()
            api.create_repo(hub_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=hub_id, folder_path=folder).repo_url)

    def __repr__(self) -> str:
        return f"AnyToAny({', '.join(self.model.layout.names)})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the model."""
        return self.model.layout.names

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.token_embedding.weight.device

    def handle(self, name: str) -> ModalityHandle:
        """Return a modality with its tokenizer, on the model's device.

        Raises UnknownNameError, and DataError for another tokenizer than in the training.
        """
        self.model.layout.spec(name)
        handle = self.zoo[name]
        self.model.check_tokenizer(handle)
        handle.device = str(self.device)
        return handle

    # ------------------------------------------------------------------ inputs

    def tokenize(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        crop: Cropping = "middle",
        as_tokens: Collection[str] = (),
        **values: Any,
    ) -> dict[str, Any]:
        """Return the tokens of inputs, a batch per modality, under the names that the model reads.

        Modalities `as_tokens` do not use their input form.

        `crop` "middle" uses the largest part in the middle of a picture with the proportions of its modality; "whole"
        squeezes the picture. Several pictures of a sample have one centre: each is cropped by its own proportions.
        Inputs that are no pictures, such as boxes, share the crop of the picture that loses the most.
        """
        crop = convert_setting(Cropping, crop, "crop")
        items = {**(inputs or {}), **values}
        layout = self.model.layout
        forms = {name: name if name in as_tokens else layout.readable_as(name, prefers_form=True) for name in items}
        layout.check_inputs(forms.values(), "inputs")
        tokens: dict[str, Any] = {}
        opened: dict[str, list[Any]] = {}
        for name, item in items.items():
            generated = item if isinstance(item, list) else [item]
            is_generated = generated and all(isinstance(entry, Sample) for entry in generated)
            ids: Any = None
            if is_generated:
                ids = [sample.tokens for sample in generated]
                ids = torch.stack(ids) if isinstance(ids[0], Tensor) else ids
            elif name in self.zoo:
                ids = token_batch(self.zoo[name].spec, item)
            is_read = ids is not None and name in layout.readable
            form = name if is_read else forms[name]
            if form in opened or form in tokens:
                raise InvalidValueError(f"{name}: {form} is an input twice, once as another modality; give one of them")
            if is_read:
                tokens[name] = ids
                continue
            if is_generated:
                item = [sample.value for sample in generated]
            elif ids is not None:
                item = self.handle(name).decode(ids)
            opened[form] = values_in(self.zoo[form].spec.value, item)
        handles = {name: self.handle(name) for name in opened}
        opened = {name: [handles[name].open(value) for value in batch] for name, batch in opened.items()}
        counts = {name: len(batch) for name, batch in (tokens | opened).items()}
        if len(set(counts.values())) > 1:
            counts_text = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InvalidValueError(f"inputs: expected equally many samples of each; got {counts_text}")
        cropped: dict[str, list[Any]] = {name: [] for name in opened}
        for sample in zip(*opened.values(), strict=True):
            values = dict(zip(opened, sample, strict=True))
            crops = [handles[name].middle(value) for name, value in values.items() if handles[name].is_picture]
            shared = min(crops, key=lambda part: part.height * part.width, default=WHOLE)
            for name, value in values.items():
                part = handles[name].middle(value, shared) if crop == "middle" else WHOLE
                cropped[name].append(handles[name].transform(value, part, trusted=True))
        return tokens | {name: handles[name].encode(values, trusted=True) for name, values in cropped.items()}

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        targets: str | Sequence[str | TargetPlan],
        num_samples: int = 1,
        seed: int = 0,
        steps: int = 0,
        temperature: float = 1.0,
        top_p: float = TOP_P,
        guidance: float | Mapping[str, float] = 1.0,
        inpaint: Mapping[str, str] | None = None,
        crop: Cropping = "middle",
        on_step: OnStep | None = None,
        **values: Any,
    ) -> Generated:
        """Generate the targets, in this order; each finished target is an input of the next.

        Args:
            targets: Modalities, or plans with all settings of a target.
            num_samples: Draws for each sample of the inputs, or in total without inputs.
            seed: Seed of the draws. The command `zoo backbone generate` draws the same.
            steps: Decoding steps of grids and vectors; 0: the target's default.
            temperature: Divisor of the logits; 0 takes the most likely token.
            top_p: Sample among the most likely tokens that together have this probability.
            guidance: Scale for all inputs together (1: none), or a weight by input modality.
            inpaint: Region of an input to regenerate, by modality, such as `{"depth": "box:0,0,1,0.5"}`.
            crop: The part of input pictures that is used, see `tokenize`.
            on_step: Called after each decoding step with the target and its tokens so far, -1 where undecided.
        """
        if (num_samples := convert_setting(int, num_samples, "num_samples")) < 1:
            raise ConfigError(f"num_samples {num_samples}: expected 1 or more")
        plan = GenerationPlan.of(
            targets,
            steps=steps,
            temperature=temperature,
            top_p=top_p,
            guidance=guidance,
            inpaint=inpaint or {},
            crop=crop,
            seed=seed,
            draws=num_samples,
        )
        return self.request(plan, {**(inputs or {}), **values}).generate(on_step)

    def request(self, plan: GenerationPlan, inputs: Mapping[str, Any]) -> GenerationRequest:
        """Return a checked request; takes targets, guidance, regions, crop, seed and draws of the plan.

        Raises ZooErrors for inputs and settings that do not fit.
        """
        tokens = self.tokenize(inputs, crop=plan.crop, as_tokens=plan.inpaint)
        targets = plan.target_plans()
        layout, partial = self.model.layout, {}
        count = len(next(iter(tokens.values()))) if tokens else 1
        for name, region in plan.inpaint.items():
            if name not in tokens:
                raise ConfigError(f"inpaint {name}: is not among the inputs; give its value, too")
            partial[name] = partial_of(layout.spec(name), tokens.pop(name), region)
        resolved_plan(layout, targets, tokens, partial)
        return GenerationRequest(
            model=self.model,
            handles={target.name: self.handle(target.name) for target in targets},
            targets=targets,
            numbers=range(count),
            tokens_of=lambda rows: (taken(tokens, rows), taken(partial, rows)),
            seed=plan.seed,
            draws=plan.draws,
        )

    def score(
        self,
        *,
        inputs: str | Sequence[str],
        targets: str | Sequence[str],
        data: str | Path,
        samples: int = 80,
        seed: int = 0,
    ) -> list[PairScore]:
        """Score predictions for held-out samples of a folder that `zoo data make` wrote, one `PairScore` per target.

        Each target is predicted from all `inputs` together. The held-out split is tokenized first. `zoo backbone eval`
        computes the same, with all settings.
        """
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        names = [self.model.layout.readable_as(name, prefers_form=True) for name in inputs]
        config = EvaluationConfig(
            inputs=(tuple(names),), targets=targets, samples=samples, seed=seed, gallery_pairs=0, loss_samples=1
        )
        with TemporaryDirectory() as temporary_folder:
            tokens = Path(temporary_folder) / "tokens"
            tokenize(
                self.zoo, Path(data), tokens, modalities=[*names, *targets], splits=[TEST], device=str(self.device)
            )
            record = evaluate(
                self.run.folder,
                self.zoo,
                tokens,
                Path(data),
                config=config,
                device=str(self.device),
                out=Path(temporary_folder) / "scores",
            )
        return list(record.pairs)

    # ------------------------------------------------------------------ features

    @cached_property
    def encoder(self) -> FourMEncoder:
        """The encoder as a feature extractor, which shares the model's weights."""
        return FourMEncoder(self.model, self.zoo).eval()

    def forward_features(
        self, inputs: Mapping[str, Any] | None = None, /, *, crop: Cropping = "middle", **values: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the encoder's features `batch tokens dim`, modality by modality, and their mask `batch tokens`."""
        with torch.no_grad():
            return self.encoder.forward_features(*self.encoder.prepare(self.tokenize(inputs, crop=crop, **values)))

    def embed(
        self, inputs: Mapping[str, Any] | None = None, /, *, crop: Cropping = "middle", **values: Any
    ) -> np.ndarray[Any, Any]:
        """Return one vector per sample, float32 `(batch, dim)`: the mean of the encoder's features."""
        tokens = self.tokenize(inputs, crop=crop, **values)
        count = len(next(iter(tokens.values()), ()))
        parts = []
        with torch.no_grad():
            for rows in blocks(range(count), BATCH) or [()]:  # without inputs, the encoder raises ConfigError
                parts.append(self.encoder(*self.encoder.prepare(taken(tokens, rows))).float().cpu().numpy())
        return np.concatenate(parts)
