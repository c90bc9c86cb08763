"""Networks that label pictures: the setting `labeller` of a modality that may also come from a source."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from tokenizers_zoo.families.images import rgb_image
from tokenizers_zoo.pretrained import PretrainedConfig, PretrainedError
from tokenizers_zoo.spec import ModalitySpec

SETTING = "labeller"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabellerConfig(PretrainedConfig):
    """A network of transformers in the hub's format, with its processor's settings.

    A plugin subclasses it to name the accepted classes and to convert their outputs to values.
    """

    files: ClassVar[tuple[str, ...]] = ("config.json", "*.safetensors", "*processor_config.json")
    architectures: ClassVar[tuple[str, ...]] = ()
    """Accepted endings of the transformers class in config.json."""

    @property
    def network(self) -> Any:
        """The network in eval mode on `device`. Raises PretrainedError if it is none of `architectures`."""
        try:
            config = json.loads((self.locate() / "config.json").read_text(encoding="utf-8"))
            found = [str(name) for name in config.get("architectures") or ()]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise PretrainedError(f"{self.model}: config.json cannot be read: {error}") from None
        for name in found:
            if name.endswith(self.architectures):
                return self.transformers(name)
        wanted = " or ".join(f"...{end}" for end in self.architectures)
        raise PretrainedError(f"{self.model}: is a {', '.join(found) or 'network of no class'}, expected {wanted}")

    @property
    def processor(self) -> Any:
        """The processor of inputs and outputs."""
        return self.transformers("AutoImageProcessor")

    def inputs(self, picture: NDArray[Any]) -> Any:
        """Return the network's inputs for a picture, float (3, height, width) in [0, 1]: tensors by name, on
        `device`."""
        return self.processor(images=rgb_image(picture), return_tensors="pt").to(self.torch_device)

    def outputs(self, picture: NDArray[Any]) -> Any:
        """Return the network's outputs for a picture, float (3, height, width) in [0, 1]."""
        import torch

        network, inputs = self.network, self.inputs(picture)
        with torch.inference_mode():
            return network(**inputs)


def labelled(spec: ModalitySpec, options: Any) -> ModalitySpec:
    """Return the spec of a modality that is derived from rgb if its settings have a `labeller` that names a network."""
    if not hasattr(options, SETTING):
        return spec
    if options.labeller is None:
        return dataclasses.replace(spec, derive_setting=SETTING)
    licence = f"{spec.licence}; labels by {options.labeller.model}, under that network's licence"
    return dataclasses.replace(spec, derive_setting=SETTING, derived_from=("rgb",), licence=licence)
