"""TOKENS/store.json: where the values of a token store are, whose samples they are, and how many rows are to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers_zoo.data.provenance import samples_identity
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.io import held, read_table, write_json

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
        samples, rows = table.get("samples", {}), table.get("rows", {})
        tables = [samples, rows, *(rows.values() if isinstance(rows, Mapping) else ())]
        if not all(isinstance(table, Mapping) for table in tables):
            raise CheckpointError(f"{path}: damaged: expected tables `samples` and `rows`; delete it")
        return cls(data=Path(table["data"]), samples=samples, rows=rows)

    @classmethod
    def check(cls, root: Path, data: Path, split: str) -> None:
        """Raise DataError where the samples of a split in `data` are known to be others than those of the tokens.

        They may have the same keys, by which they would be taken for the same ones.
        """
        record = cls.read(root)
        before, now = record.samples.get(split), samples_identity(data, split)
        if before and now and before != now:
            raise DataError(
                f"{data}: its samples of the split {split} are others than those that the tokens in {root} were made"
                f" of, {record.data}; give that, or tokens of {data}"
            )

    @classmethod
    def note(
        cls, root: Path, data: Path, samples: Mapping[str, str | None], rows: Iterable[tuple[str, str, int]]
    ) -> None:
        """Change that of a folder, see `and_of`; of processes that do so at once, one waits for the other."""
        with held(root):
            cls.read(root).and_of(data, samples, rows).write(root)

    @classmethod
    def forget(cls, root: Path, split: str, name: str) -> None:
        """Change that of a folder, see `without`."""
        with held(root):
            cls.read(root).without(split, name).write(root)

    def without(self, split: str, name: str) -> StoreRecord:
        """Where nothing of a modality can be written."""
        rows = {key: {other: count for other, count in of.items() if (key, other) != (split, name)}
                for key, of in self.rows.items()}  # fmt: skip
        return replace(self, rows=rows)

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
