"""Where a modality's tokenizer and vocabulary are, and their fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.checkpoint import (
    CheckpointRecord,
    config_record,
    fingerprint,
    hub_folder,
    is_complete,
    joint_fingerprint,
)
from tokenizers_zoo.records.config import Origin


@dataclass(frozen=True)
class CheckpointLocation:
    """A local checkpoint folder, and the hub id to download from while that folder holds no checkpoint."""

    folder: Path
    hub_id: str | None = None

    @property
    def available(self) -> bool:
        """True if the checkpoint is in the folder or has a hub id. Does not access the network."""
        return self.hub_id is not None or is_complete(self.folder)

    def fetch(self) -> Path:
        """Return the local folder, or the downloaded snapshot. The folder may be empty if there is no hub id."""
        if self.hub_id is None or is_complete(self.folder):
            return self.folder
        return hub_folder(self.hub_id)


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Folders of a modality's tokenizer and vocabulary, and their fingerprint."""

    spec: ModalitySpec
    checkpoint: Path
    """Folder of the tokenizer, or of the shared vocabulary if the modality has no tokenizer of its own."""
    locate_vocabulary: Callable[[ModalitySpec], CheckpointLocation] | None = None
    """Returns the place of the shared vocabulary, for a spec with `own_tokenizer`."""
    hub_id: str | None = None
    sha256: str | None = None
    """The fingerprint that the registry asks for."""
    origin: Origin
    """The modality's table in the registry, for error messages."""

    @property
    def _tokenizer_location(self) -> CheckpointLocation:
        return CheckpointLocation(self.checkpoint, self.hub_id)

    @property
    def _vocabulary_location(self) -> CheckpointLocation:
        if self.spec.own_tokenizer and self.locate_vocabulary is not None:
            return self.locate_vocabulary(self.spec)
        return self._tokenizer_location

    @property
    def vocabulary(self) -> Path:
        """Folder of the vocabulary: the checkpoint itself unless the spec says `own_tokenizer`."""
        return self._vocabulary_location.folder

    @property
    def lacks_vocabulary(self) -> bool:
        """True if the tokenizer needs a shared vocabulary that is neither here nor on the hub."""
        return self.spec.own_tokenizer and not self._vocabulary_location.available

    @property
    def complete(self) -> bool:
        """True if tokenizer and vocabulary are here or on the hub. Does not access the network."""
        return self._tokenizer_location.available and not self.lacks_vocabulary

    def vocabulary_folder(self) -> Path:
        """Return the vocabulary's folder, downloaded if needed. It may not exist yet."""
        return self._vocabulary_location.fetch()

    def folder(self) -> Path:
        """Return the tokenizer's folder, downloaded if needed. Raises CheckpointError if there is none."""
        if not self._tokenizer_location.available:
            table = f"[modalities.{self.spec.name}] of {self.origin.file}"
            published = ", import a published one (zoo import-ml4m)" if self.spec.aliases else ""
            advice = f"train one there (zoo tokenizer train){published}, or set checkpoint in {table}"
            raise CheckpointError(f"{self.spec.name}: no tokenizer at {self.checkpoint}; {advice}")
        return self._tokenizer_location.fetch()

    def fingerprint(self) -> str:
        """Return the sha256 of the tokenizer, joined with its vocabulary's if the two are separate.

        Growing the vocabulary does not change it. Raises CheckpointError if a folder is missing, or if the registry
        asks for another fingerprint.
        """
        folder = self.folder()
        digest = fingerprint(folder)
        if self.sha256 is not None and digest != self.sha256:
            raise CheckpointError(
                f"{self.spec.name}: the tokenizer at {folder} has the fingerprint {digest}, but"
                f" {self.origin.at('sha256')} says {self.sha256}; put that tokenizer there, or update sha256"
            )
        if not self.spec.own_tokenizer:
            return digest
        if self.lacks_vocabulary:
            raise CheckpointError(
                f"{self.spec.name}: no vocabulary {self.spec.vocabulary} at {self.vocabulary}; train it there "
                "(zoo tokenizer train), or import the published one"
            )
        vocabulary = self.vocabulary_folder()
        return joint_fingerprint(digest, next(iter(_lineage(vocabulary)), "") or fingerprint(vocabulary))

    @property
    def published(self) -> bool:
        """True if the tokenizer was imported from 4M; False if it is still on the hub."""
        try:
            return config_record(self.checkpoint, None, CheckpointRecord).published is not None
        except CheckpointError:
            return False

    def grew_from(self, fingerprint: str, needed_vocab_size: int = 0) -> bool:
        """Return whether the tokenizer grew from `fingerprint` and kept its first `needed_vocab_size` ids.

        A text vocabulary grows by ids; a diffusion tokenizer gets another decoder for a frozen encoder.
        """
        try:
            return needed_vocab_size <= _lineage(self.folder()).get(fingerprint, -1)
        except CheckpointError:
            return False


def _lineage(folder: Path) -> dict[str, int]:
    """Return the fingerprints that a checkpoint grew from, oldest first, each with its number of ids."""
    return {past.fingerprint: past.length for past in config_record(folder, None, CheckpointRecord).lineage}
