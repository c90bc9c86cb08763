"""TOKENS/store.json: where the values of a token store are, whose samples they are, and how many rows are to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers_zoo.checkpoint import read_table, write_json

RECORD = "store.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRecord:
    """What is noted of a store; stores of older versions have no `samples` and no `rows`."""

    data: Path | None = None
    """The folder of the values; None where it was not recorded."""
    samples: Mapping[str, str | None] = field(default_factory=dict)
    """By split the identity of its samples, see `samples_identity`."""
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By split and modality how many rows there are when `zoo tokenize` has come to its end."""

    @classmethod
    def read(cls, root: Path) -> StoreRecord:
        """That of a folder; an empty one where it has none. Raises CheckpointError where it is damaged."""
        path = root / RECORD
        if not path.is_file():
            return cls()
        table = read_table(path, "data")
        return cls(data=Path(table["data"]), samples=table.get("samples", {}), rows=table.get("rows", {}))

    def and_of(
        self, data: Path, samples: Mapping[str, str | None], rows: Iterable[tuple[str, str, int]]
    ) -> StoreRecord:
        """With what is written now: `samples` by split, `rows` of split and modality; what is known of others stays."""
        counts = {split: dict(of_split) for split, of_split in self.rows.items()}
        for split, name, count in rows:
            counts.setdefault(split, {})[name] = count
        return StoreRecord(data=data.resolve(), samples={**self.samples, **samples}, rows=counts)

    def write(self, root: Path) -> None:
        """Into a folder, in place of an earlier one."""
        write_json(root / RECORD, {"data": str(self.data), "samples": dict(self.samples), "rows": self.rows})
