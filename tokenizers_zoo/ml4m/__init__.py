"""Read and write the checkpoints that EPFL and Apple published for 4M (github.com/apple/ml-4m)."""

from tokenizers_zoo.ml4m.source import PublishedCheckpoint, read_published, write_published

__all__ = ["PublishedCheckpoint", "read_published", "write_published"]
