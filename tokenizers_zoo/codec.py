"""Where the codec of a modality is: its checkpoint, the vocabulary that it writes in, and the fingerprint of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers_zoo import checkpoint as checkpoints
from tokenizers_zoo.config import Origin
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.text_vocab import first_fingerprint


@dataclass(frozen=True)
class CheckpointPlace:
    """A checkpoint's folder, and the hub id that it comes from as long as none is there."""

    folder: Path
    hub_id: str | None = None

    @property
    def known(self) -> bool:
        """True where a checkpoint is there, or named on the hub; never looks outside."""
        return self.hub_id is not None or checkpoints.is_complete(self.folder)

    def fetched(self) -> Path:
        """The folder, or the snapshot of the hub id; without one, the folder may hold none. Raises CheckpointError.

        A checkpoint here goes before the one on the hub; a folder that holds none does not.
        """
        if self.hub_id is None or checkpoints.is_complete(self.folder):
            return self.folder
        return checkpoints.hub_folder(self.hub_id)


@dataclass(frozen=True, kw_only=True)
class CodecFiles:
    """The folders of one modality's codec; they need not be there yet."""

    spec: ModalitySpec
    checkpoint: Path
    """The tokenizer; of a modality that only writes in a shared vocabulary, that vocabulary."""
    locate_vocabulary: Callable[[ModalitySpec], CheckpointPlace] | None = None
    """Where a shared vocabulary is, for a spec with `own_tokenizer`."""
    hub_id: str | None = None
    """Where the checkpoint comes from as long as none is at that place."""
    hub_evaluations: Path = Path()
    """Where evaluations of a checkpoint on the hub leave figures and pictures."""
    sha256: str | None = None
    """The fingerprint that the checkpoint has to have."""
    origin: Origin
    """The modality's table in the registry, for errors."""

    @property
    def vocabulary(self) -> Path:
        """The checkpoint of the vocabulary: the modality's own, unless it has a tokenizer beside a shared one."""
        return self._vocabulary_place.folder

    @property
    def _place(self) -> CheckpointPlace:
        return CheckpointPlace(self.checkpoint, self.hub_id)

    @property
    def _vocabulary_place(self) -> CheckpointPlace:
        if self.spec.own_tokenizer and self.locate_vocabulary is not None:
            return self.locate_vocabulary(self.spec)
        return self._place

    @property
    def lacks_vocabulary(self) -> bool:
        """True where a shared vocabulary is needed beside the tokenizer, and neither there nor named on the hub."""
        return self.spec.own_tokenizer and not self._vocabulary_place.known

    @property
    def complete(self) -> bool:
        """True where all is there, or named on the hub; never looks outside."""
        return self._place.known and not self.lacks_vocabulary

    @property
    def evaluations(self) -> Path:
        """Where evaluations leave figures and pictures: the checkpoint, where that is not on the hub."""
        on_hub = self.hub_id is not None and not checkpoints.is_complete(self.checkpoint)
        return self.hub_evaluations if on_hub else self.checkpoint

    def vocabulary_folder(self) -> Path:
        """The vocabulary's folder, fetched from the hub where it is there. It need not be there yet."""
        return self._vocabulary_place.fetched()

    def folder(self) -> Path:
        """The checkpoint's folder, fetched from the hub where it is there. Raises CheckpointError for none."""
        if not self._place.known:
            table = f"[modalities.{self.spec.name}] of {self.origin.file}"
            published = ", import a published one (zoo import-ml4m)" if self.spec.aliases else ""
            where = f"train one there (zoo tokenizer train){published}, or set checkpoint in {table}"
            raise CheckpointError(f"{self.spec.name}: no tokenizer at {self.checkpoint}; {where}")
        return self._place.fetched()

    def fingerprint(self) -> str:
        """sha256 of the tokenizer's weights and config, and of the vocabulary's where they are two.

        Growing a vocabulary leaves it. Raises CheckpointError where the tokenizer is not the pinned one, or one of
        them is not there.
        """
        folder = self.folder()
        found = checkpoints.fingerprint(folder)
        if self.sha256 is not None and found != self.sha256:
            raise CheckpointError(
                f"{self.spec.name}: the tokenizer at {folder} has the fingerprint {found}, but"
                f" {self.origin.at('sha256')} says {self.sha256}; put that tokenizer there, or update sha256"
            )
        if not self.spec.own_tokenizer:
            return found
        if self.lacks_vocabulary:
            raise CheckpointError(
                f"{self.spec.name}: writes in the vocabulary {self.spec.vocabulary}, and there is none at "
                f"{self.vocabulary}; train it there (zoo tokenizer train), or import the published one"
            )
        return checkpoints.joint_fingerprint(found, first_fingerprint(self.vocabulary_folder()))

    @property
    def published(self) -> bool:
        """True where the tokenizer is one that 4M published; never looks outside: False where it is on the hub."""
        try:
            return checkpoints.ORIGIN in checkpoints.load_config(self.checkpoint)
        except CheckpointError:
            return False

    def grew_from(self, fingerprint: str, needed_vocab_size: int = 0) -> bool:
        """True where the codec grew from that one, and has the same first `needed_vocab_size` ids.

        A text vocabulary gets more ids; a tokenizer of a base that was frozen gets another decoder.
        """
        try:
            lineage = checkpoints.load_config(self.folder()).get("lineage", [])
            lengths = {str(old["fingerprint"]): int(old["length"]) for old in lineage}
        except (CheckpointError, KeyError, TypeError, ValueError):
            return False
        return needed_vocab_size <= lengths.get(fingerprint, -1)
