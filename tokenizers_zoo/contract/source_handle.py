"""SourceHandle: one installed source with checked settings and lazy, checked samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers_zoo.contract.file_samples import FileSamples
from tokenizers_zoo.contract.plugins import Claim, Plugin, call_error
from tokenizers_zoo.contract.samples import LazySequence
from tokenizers_zoo.contract.source import ModalityNames, Sample, SourceSpec
from tokenizers_zoo.contract.validation import describe
from tokenizers_zoo.errors import ConfigError, OneLineError, PluginError
from tokenizers_zoo.files.tar import key_problem
from tokenizers_zoo.records.config import Origin, Settings
from tokenizers_zoo.records.limits import Limits, limited


class SourceHandle:
    """One source. Raises PluginError if it fails or breaks the contract, MachineError if memory runs out, and its own
    ZooErrors.
    """

    def __init__(
        self, plugin: Plugin, shared: Mapping[str, Any], names: Callable[[], ModalityNames], limits: Limits
    ) -> None:
        """`names` returns the names of the enabled modalities."""
        self.name = plugin.claim.name
        self.distribution = plugin.claim.distribution
        self._plugin, self._shared, self._names, self._limits = plugin, shared, names, limits
        spec = plugin.call(self.name, "source_spec")
        if not isinstance(spec, SourceSpec) or spec.name != self.name:
            actual = f"the name {spec.name!r}" if isinstance(spec, SourceSpec) else describe(spec)
            expected = f"expected a SourceSpec named {self.name!r}"
            raise PluginError(f"{self.name}: source_spec of {plugin.claim} gave {actual}, {expected}")
        self.spec = spec

    def settings_in_use(self) -> Any:
        """Return the source's settings with `[zoo]`'s keys; the class if a key is required; None without settings."""
        try:
            return self.settings_with({})
        except ConfigError:
            return self.spec.settings

    def settings_with(self, options: Mapping[str, Any]) -> Any:
        """Return the source's settings with `options`, or None if it takes none. Raises ConfigError."""
        settings = self._parsed_settings(options)
        return None if self.spec.settings is None else settings.take(self.spec.settings)

    def _parsed_settings(self, options: Mapping[str, Any] | None) -> Settings:
        settings = Settings(self.name, options, shared=self._shared, origin=Origin(option="--set"))
        if self.spec.settings is not None:
            settings.take(self.spec.settings)
        elif settings:
            raise ConfigError(f"source {self.name} takes no settings, got {', '.join(settings)}")
        return settings

    def shared_settings(self) -> dict[str, Any]:
        """Return the source's settings that come from `[zoo]`."""
        fields = () if self.spec.settings is None else dataclasses.fields(self.spec.settings)
        return {field.name: self._shared[field.name] for field in fields if field.name in self._shared}

    def samples(
        self, split: str, count: int | None, seed: int, options: Mapping[str, Any] | None = None
    ) -> CheckedSamples | FileSamples:
        """Return lazy samples `(key, {modality: value})` with random access.

        `count` None means all samples of the source. `options` are the source's settings. Raises ConfigError for
        unknown ones.
        """
        settings = self._parsed_settings(options)
        arguments = {"split": split, "count": count, "seed": seed, "settings": settings, "names": self._names()}
        with limited(self._limits):
            samples = self._plugin.call(self.name, "samples", **arguments)
        error = "" if hasattr(samples, "__getitem__") and hasattr(samples, "__len__") else "expected a sequence"
        if not error and count is not None and len(samples) > count:
            error = f"{len(samples)} samples where {count} were asked for"
        if error:
            raise PluginError(f"{self.name}: samples of {self._plugin.claim} gave {describe(samples)}: {error}")
        if isinstance(samples, FileSamples):
            return samples
        return CheckedSamples(self.spec, self._plugin.claim, samples, self._limits)


class CheckedSamples(LazySequence[Sample]):
    """A source's samples, with keys and modality names checked on access; the modalities check the values."""

    def __init__(self, spec: SourceSpec, claim: Claim, samples: Sequence[Sample], limits: Limits) -> None:
        self._spec, self._claim, self._samples, self._limits = spec, claim, samples, limits

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the samples may have: from the spec, or from the samples if they depend on settings."""
        return self._spec.modalities or tuple(getattr(self._samples, "modalities", ()))

    offered = modalities

    @property
    def contents(self) -> str:
        """Digest of the contents, for a source whose settings do not determine them; else empty."""
        return str(getattr(self._samples, "contents", ""))

    @property
    def notes(self) -> list[str]:
        """Lines about the samples for the user."""
        return list(getattr(self._samples, "notes", ()))

    def __len__(self) -> int:
        return len(self._samples)

    def item(self, index: int) -> Sample:
        """Return a sample. Raises PluginError if it breaks the contract."""
        try:
            with limited(self._limits):
                sample = self._samples[index]
        except OneLineError:
            raise
        except (Exception, SystemExit) as error:
            raise call_error(f"{self._spec.name}: sample {index} of {self._claim}", error) from error
        if violation := self._contract_violation(sample):
            raise PluginError(f"{self._spec.name}: sample {index} of {self._claim} {violation}")
        return sample

    def _contract_violation(self, sample: Any) -> str | None:
        if not (isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[1], Mapping)):
            return f"is {describe(sample)}, expected (key, {{modality: value}})"
        key, values = sample
        if reason := key_problem(key) if isinstance(key, str) else "expected a str":
            return f"has the key {key!r}: {reason}"
        if self._spec.modalities and (unknown := sorted(set(values) - set(self._spec.modalities))):
            return f"has {', '.join(unknown)}, which its spec does not declare"
        return None
