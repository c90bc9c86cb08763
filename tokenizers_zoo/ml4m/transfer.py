"""Tensors of a published tokenizer to ours, and back to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.errors import CheckpointError, and_others
from tokenizers_zoo.ml4m.names import Place
from tokenizers_zoo.ml4m.source import PublishedCheckpoint


def to_own(
    published: PublishedCheckpoint, places: Sequence[Place], state: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every tensor of our model: those that have a place from the published ones, the others as `given`.

    `state` is our model's, of which only the shapes count. Raises CheckpointError, naming the tensor, for a published
    one that is missing, that nothing here takes, or whose shape is not what its config.json asks for.
    """
    names = {place.published for place in places}
    if more := sorted(set(published.tensors) - names):
        raise CheckpointError(
            f"{published.place}: has {more[0]}{and_others(len(more) - 1)}, which its config.json does not ask for; "
            "copy the folder again"
        )
    tensors = dict(given)
    for place in places:
        shape = _put_back(place, [state[name] for name in place.own]).shape
        tensor = published.tensor(place.published, *shape)
        if place.published in published.same_as:  # our files hold no tensor twice
            tensor = tensor.clone()
        tensors |= zip(place.own, _taken(place, tensor), strict=True)
    assert tensors.keys() == state.keys(), tensors.keys() ^ state.keys()
    return tensors


def to_published(tensors: Mapping[str, Tensor], places: Sequence[Place]) -> dict[str, Tensor]:
    """The published tensors of our own. Raises CheckpointError where one of them is not there."""
    for place in places:
        for name in place.own:
            if name not in tensors:
                raise CheckpointError(f"the weights have no {name}, which becomes {place.published}; import them again")
    return {place.published: _put_back(place, [tensors[name] for name in place.own]) for place in places}


def _taken(place: Place, tensor: Tensor) -> list[Tensor]:
    if place.pattern:
        tensor = rearrange(tensor, place.pattern, **place.sizes)
    return [tensor] if len(place.own) == 1 else list(tensor.unbind())


def _put_back(place: Place, tensors: Sequence[Tensor]) -> Tensor:
    tensor = tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))
    if not place.pattern:
        return tensor
    before, after = place.pattern.split("->")
    return rearrange(tensor, f"{after} -> {before}", **place.sizes)
