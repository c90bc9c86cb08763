"""FourMFeatures: a trained model's features as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.files.checkpoint import fingerprint
from zoo_backbone.generate.plans import Cropping
from zoo_backbone.measure.evaluation_data import ranked_names
from zoo_backbone.use.any_to_any import AnyToAny

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise ImportError("FourMFeatures: needs scikit-learn; pip install 'zoo-backbone[sklearn]'") from None


class FourMFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a trained model for scikit-learn: one vector per sample, the mean of the encoder's features.

        features = FourMFeatures("runs/demo/backbone")
        classifier = make_pipeline(features, StandardScaler(), LogisticRegression())
        classifier.fit(["a.jpg", "b.jpg"], ["cat", "dog"])

    Nothing is trained. Samples are any of:

    - Paths, PIL images, arrays or texts of one modality, as a list or as an array with a first axis of samples.
    - Dicts of inputs by modality, for several modalities at once.
    - Rows of numbers, an array with two axes: values of one modality, flattened.

    A pickle has the parameters and the fingerprint, and loads the model again from its place.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        modality: str | None = None,
        shape: Sequence[int] | None = None,
        crop: Cropping = "middle",
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        """Set the parameters.

        Args:
            model: The folder of a run or bundle, the name of an installed bundle, or a hub id.
            modality: The modality of samples that are no dicts; default: the pixels or picture that it
                reads.
            shape: The shape of the value in a row of numbers, such as (64, 64, 3); default: the modality's own. One
                number may be -1.
            crop: The part of input pictures that is used, see `AnyToAny.tokenize`.
            batch_size: Samples that are read at a time.
            device: A torch device, or "auto".
        """
        self.model = model
        self.modality = modality
        self.shape = shape
        self.crop = crop
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model and check the form of the samples; `y` is ignored.

        Sets `fingerprint_`, `modality_`, and for rows of numbers `n_features_in_`. Raises the errors of
        `AnyToAny.from_pretrained`, and UnknownNameError for a modality that the model does not have.
        """
        self._loaded = AnyToAny.from_pretrained(self.model, device=self.device)
        self.fingerprint_ = fingerprint(self._loaded.run.folder)
        layout = self._loaded.model.layout
        ranked = ranked_names([layout.spec(name) for name in layout.readable])
        forms = [name for name in layout.readable if layout.spec(name).input_form_of]
        name = [*forms, *ranked][0] if self.modality is None else self.modality
        self.modality_ = layout.readable_as(name, prefers_form=True)
        self._loaded.handle(self.modality_)
        self._n_features_out = self._loaded.encoder.num_features
        self._samples(X, reset=True)
        return self

    def transform(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the features of samples, float32 `(samples, dim)`.

        Raises InvalidValueError for values that do not fit and for dicts with other modalities than the first sample,
        CheckpointError if the model changed since `fit`.
        """
        check_is_fitted(self)
        samples, model = self._samples(X, reset=False), self._model()
        _check_same_modalities(samples)
        parts = [np.empty((0, self._n_features_out), np.float32)]
        for first in range(0, len(samples), self.batch_size):
            batch = samples[first : first + self.batch_size]
            if isinstance(batch[0], Mapping):
                inputs = {name: [sample[name] for sample in batch] for name in batch[0]}
            else:
                inputs = {self.modality_: batch}
            parts.append(model.embed(inputs, crop=self.crop))
        return np.concatenate(parts)

    def _samples(self, X: Any, reset: bool) -> list[Any]:
        """Return samples; rows of numbers are checked and get their shape. `reset`: `n_features_in_` is set."""
        if isinstance(X, list | tuple) and not (X and isinstance(X[0], list | tuple)):
            if not X or np.ndim(X[0]) != 1:
                return list(X)
        elif isinstance(X, np.ndarray) and X.ndim != 2 and not (X.ndim < 2 and X.dtype.kind in "biuf"):
            return list(X)
        rows = validate_data(self, X, reset=reset)
        spec = self._model().handle(self.modality_).spec.value
        shape = tuple(size for size in spec.shape if isinstance(size, int)) if self.shape is None else self.shape
        if rows.dtype.kind in "iu" and rows.dtype != np.uint8 and np.dtype(spec.dtype).kind == "f":
            rows = rows.astype(spec.dtype)  # uint8 may be a picture
        try:
            return list(rows.reshape(len(rows), *shape))
        except ValueError:
            raise ConfigError(
                f"FourMFeatures: rows have {rows.shape[1]} numbers, a value of {self.modality_} is {tuple(shape)};"
                " set shape, or give paths or pictures"
            ) from None

    def _model(self) -> AnyToAny:
        """Return the model, loaded again after unpickling."""
        if not hasattr(self, "_loaded"):
            self._loaded = AnyToAny.from_pretrained(self.model, device=self.device)
            if (loaded_fingerprint := fingerprint(self._loaded.run.folder)) != self.fingerprint_:
                raise CheckpointError(
                    f"{self.model}: the model changed since fit: its fingerprint is {loaded_fingerprint[:12]}, it was"
                    f" {self.fingerprint_[:12]}; fit again"
                )
        return self._loaded

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # features are float32
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the model."""
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}


def _check_same_modalities(samples: Sequence[Any]) -> None:
    """Raise InvalidValueError unless all samples are dicts of the same modalities, or none is a dict."""
    modalities = [sample.keys() if isinstance(sample, Mapping) else None for sample in samples]
    for number, names in enumerate(modalities):
        if names != modalities[0]:
            pair = modalities[0], names
            expected, actual = ("no dict" if keys is None else ", ".join(keys) or "none" for keys in pair)
            raise InvalidValueError.expected(
                f"FourMFeatures: sample {number}",
                f"the modalities of sample 0 ({expected})",
                actual,
                "transform samples with other modalities separately",
            )
